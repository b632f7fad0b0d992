"""What may be the body of a task, a fixture or a middleware, and how a body is called.

Mistakes are refused where they are made, not when the function is called for the first time.
What cannot be told from outside (a callable without a signature, what a function will return) is
accepted.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Generator
from types import CoroutineType, FunctionType, MethodType
from typing import Any, Final

logger = logging.getLogger(__name__)

_WRAPPERS_MAX: Final = 100
"""Decorators that are looked through; a chain of them may be a circle."""

Handler = Callable[[Any], Awaitable[None]]
"""Takes the context of a run, gives what is to be awaited."""


class Declared:
    """A declared task: it has a body, but is none. The base of ``pyncette.task.Task``."""

    __slots__ = ()


def declared_in(func: object) -> Declared | None:
    """The declared task that a callable is, or wraps; None if it wraps none that can be found."""
    for _ in range(_WRAPPERS_MAX):
        if isinstance(func, Declared):
            return func
        if isinstance(func, functools.partial):
            func = func.func
        elif isinstance(func, MethodType):
            func = func.__self__
        else:
            func = getattr(func, "__wrapped__", None)
    return None


def check_body(func: object) -> None:
    """Refuses what cannot be the body of a task.

    Raises:
        TypeError: It is not callable, cannot be called with a context alone, or is a generator
            function, so that calling it would run nothing.
    """
    if not callable(func):
        raise TypeError(f"The function of a task is not callable: {func!r}")
    for is_generator, kind in (
        (inspect.isasyncgenfunction, "an async generator function"),
        (inspect.isgeneratorfunction, "a generator function"),
    ):
        if is_generator(_function_of(func)):
            raise TypeError(
                f"{name_of(func)} cannot be a task: it is {kind}, so that calling it runs "
                "nothing of it. Remove the 'yield' (fixtures are declared with @app.fixture())"
            )
    check_parameters(func, "a task", ("context",))


def check_fixture(func: object) -> None:
    """Refuses what cannot be a fixture.

    Raises:
        TypeError: It is not callable, or cannot be called with the app's context alone.
    """
    if not callable(func):
        raise TypeError(f"A fixture is an async generator function, not {func!r}")
    check_parameters(func, "a fixture", ("app_context",))


def check_middleware(func: object) -> None:
    """Refuses what cannot be a middleware.

    Raises:
        TypeError: It is not callable, cannot be called with a context and the rest of the run,
            or is a generator function, so that calling it would run nothing.
    """
    if not callable(func):
        raise TypeError(f"A middleware is a function of a context and the next one, not {func!r}")
    function = _function_of(func)
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(
            f"{name_of(func)} cannot be a middleware: it is a generator function, so that calling "
            "it runs nothing of it. Write 'await next()' instead of 'yield'"
        )
    check_parameters(func, "a middleware", ("context", "next"))


def check_parameters(func: Callable[..., Any], role: str, arguments: tuple[str, ...]) -> None:
    """Refuses a function that cannot be called with these arguments, given by position.

    Raises:
        TypeError: It cannot.
    """
    try:
        # What a wrapper takes counts, not what it wraps: it may add arguments of its own.
        signature = inspect.signature(func, follow_wrapped=False)
    except (TypeError, ValueError):
        return  # a builtin without a signature
    try:
        signature.bind(*arguments)
    except TypeError as error:
        call = f"({', '.join(arguments)})"
        hint = ("; its arguments are in context.args" if len(signature.parameters) > 1 else "") * (
            role == "a task"
        )
        raise TypeError(
            f"{name_of(func)} cannot be {role}: it is called with {call}, but its parameters are "
            f"{signature} ({error}){hint}"
        ) from None


def name_of(func: object) -> str:
    """A function by its name, for people; anything else as it shows itself."""
    name = getattr(func, "__qualname__", None)
    return f"'{name}'" if isinstance(name, str) else repr(func)


def _function_of(func: object) -> object:
    """What is run when it is called: for an object with a ``__call__``, that."""
    while isinstance(func, functools.partial):
        func = func.func
    if isinstance(func, (FunctionType, MethodType, type)):
        return func
    return getattr(type(func), "__call__", func)  # noqa: B004 (looked up as Python does)


class _Done:
    """What is to be awaited where nothing is left to do."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


_DONE = _Done()


def call_body(func: Callable[[Any], Any]) -> Handler:
    """A body as the engine calls it: what it gives can always be awaited.

    A plain function that returns an awaitable has it awaited. One that returns anything else has
    done its work when it returns, and has blocked the event loop: that is said once.
    """
    if inspect.iscoroutinefunction(func):
        return func
    warned = False

    def handler(context: Any) -> Awaitable[None]:
        nonlocal warned
        result = func(context)
        if type(result) is CoroutineType or inspect.isawaitable(result):
            return result
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise TypeError(
                f"{name_of(func)} returned a generator, which was not run: a task returns an "
                "awaitable, or nothing"
            )
        if not warned:
            warned = True
            logger.warning(
                "Task %s is a plain function (%s): nothing else ran on the event loop while it "
                "did. Write it as 'async def', or call what blocks with asyncio.to_thread",
                getattr(context, "task", "?"),
                name_of(func),
            )
        return _DONE

    return handler
