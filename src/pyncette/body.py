"""What may be the body of a task, a fixture or a middleware, and how a body is called.

Mistakes are refused at the declaration, not at the first call of the function. If a mistake cannot
be detected there (a callable without a signature, the value that a function returns), the function
is accepted.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Awaitable, Callable
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final

_WRAPPERS_MAX: Final = 100
"""Maximum wrappers that are followed, since a chain of them may be a circle."""

Handler = Callable[[Any], Awaitable[None]]
"""Takes the context of a run, and returns an awaitable."""

BodyResult = (
    Awaitable[Any]
    | None
    | bool
    | int
    | float
    | str
    | bytes
    | list[Any]
    | tuple[Any, ...]
    | dict[Any, Any]
    | set[Any]
)
"""What such a function may return, for type checkers: what to await, or what a plain function
returns to other callers, which is ignored. Not a generator, which would not be run."""


class Declared:
    """A declared task, which has a body but is not one. The base class of ``Task``."""

    __slots__ = ()

    if TYPE_CHECKING:
        task_func: Any


def declared_in(func: object) -> Declared | None:
    """Returns the declared task that a callable is or visibly wraps; None if there is none."""
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

    Its parameters are looked at by ``pyncette.parameters``.

    Raises:
        TypeError: It is not callable, or is a generator function, so that calling it would run
            nothing.
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
        signature = signature_of(func)
    except (TypeError, ValueError):
        return  # a builtin without a signature
    try:
        signature.bind(*arguments)
    except TypeError as error:
        call = f"({', '.join(arguments)})"
        raise TypeError(
            f"{name_of(func)} cannot be {role}: it is called with {call}, but its parameters are "
            f"{signature} ({error})"
        ) from None


def signature_of(func: Callable[..., Any]) -> inspect.Signature:
    """The parameters of a function; of a wrapper its own, since it may add arguments.

    Raises:
        TypeError, ValueError: It has none that can be known.
    """
    if sys.version_info >= (3, 14):
        # Annotations may name what is there for type checkers only.
        from annotationlib import Format

        return inspect.signature(func, follow_wrapped=False, annotation_format=Format.FORWARDREF)
    return inspect.signature(func, follow_wrapped=False)


def name_of(func: object) -> str:
    """The name of a function, for messages; the ``repr`` of what cannot be called.

    A partial, or an object with a ``__call__``, has the name of the function that a call runs.
    """
    for named in (func, _function_of(func)):
        name = getattr(named, "__qualname__", None)
        if isinstance(name, str):
            return f"'{name}'"
    return repr(func)


def _function_of(func: object) -> object:
    """The function that a call runs: for an object with a ``__call__``, that method."""
    while isinstance(func, functools.partial):
        func = func.func
    if isinstance(func, (FunctionType, MethodType, type)):
        return func
    return getattr(type(func), "__call__", func)  # noqa: B004 (looked up as Python does)


def runs_in_thread(func: Callable[[Any], Any]) -> bool:
    """Returns whether a body is a plain function, which may block.

    What is, wraps, or says that it returns something to await, is called in the event loop.
    """
    seen: object = func
    for _ in range(_WRAPPERS_MAX):
        if inspect.iscoroutinefunction(seen) or inspect.iscoroutinefunction(_function_of(seen)):
            return False
        if isinstance(seen, functools.partial):
            seen = seen.func
            continue
        wrapped = getattr(seen, "__wrapped__", None)
        if wrapped is None:
            break
        seen = wrapped
    said = getattr(_function_of(seen), "__annotations__", {}).get("return")
    return not _AWAITABLE.search(said if isinstance(said, str) else repr(said))


def _needs_loop(error: RuntimeError) -> bool:
    """Whether asyncio has raised this, since no event loop runs in the thread."""
    said = error.args[0] if type(error) is RuntimeError and error.args else None
    return isinstance(said, str) and _NO_LOOP.match(said) is not None


_NO_LOOP: Final = re.compile("no running event loop|There is no current event loop")

_AWAITABLE: Final = re.compile(r"\b(Awaitable|Coroutine|CoroutineType|Future|Task)\b")


def call_body(
    func: Callable[..., Any], arguments: Callable[[Any], dict[str, Any]] | None = None
) -> Handler:
    """Returns a body as the engine calls it: it always returns an awaitable.

    A plain function is called in a thread of the app, see ``pyncette.threads``. If it returns an
    awaitable, that is awaited in the event loop.

    Args:
        func: The body.
        arguments: Returns the arguments that it takes besides the context of a run; None: none.
    """
    if inspect.iscoroutinefunction(func):
        return func if arguments is None else _with_arguments(func, arguments)
    in_thread = runs_in_thread(func)

    async def handler(context: Any) -> None:
        call = func if arguments is None else functools.partial(func, **arguments(context))
        if in_thread:
            try:
                result = await _called_in_thread(call, context)
            except RuntimeError as error:
                if _needs_loop(error):
                    error.add_note(
                        f"{name_of(func)} is a plain function, so it was called in a thread, where "
                        "no event loop runs. Declare it with 'async def'. If it has to stay a "
                        "plain function that returns an awaitable, annotate it with "
                        "'-> Awaitable[None]': then it is called in the event loop"
                    )
                raise
        else:
            result = call(context)
        if inspect.isawaitable(result):
            await result
        elif inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise TypeError(
                f"{name_of(func)} returned a generator, which was not run: a task returns an "
                "awaitable, or nothing"
            )

    return handler


def _with_arguments(
    func: Callable[..., Awaitable[None]], arguments: Callable[[Any], dict[str, Any]]
) -> Handler:
    async def handler(context: Any) -> None:
        await func(context, **arguments(context))

    return handler


def check_importable(func: object) -> None:
    """Refuses a body that another process cannot import, or that is not a plain function.

    Raises:
        TypeError: It is so.
    """
    name = getattr(func, "__qualname__", None)
    module = getattr(func, "__module__", None)
    if not callable(func) or not runs_in_thread(func):
        why = "it is asynchronous, and a function that computes is a plain one: write 'def'"
    elif isinstance(func, MethodType) and not isinstance(func.__self__, type):
        why = "it is a method of an object"
    elif not isinstance(name, str) or not isinstance(module, str):
        why = "it has no name by which it could be imported"
    elif "<" in name:
        why = f"it is defined inside of {name.partition('.<locals>')[0]}"
        why = "it is a lambda" if name.endswith("<lambda>") else why
    else:
        return
    raise TypeError(
        f"{name_of(func)} cannot run in a process of its own (executor=Process()): {why}. It must "
        "be a function at the top of a module, which the process imports"
    )


def check_found(func: Callable[..., Any]) -> None:
    """Refuses a body that is not what its module has under its name.

    Raises:
        TypeError: It is so.
    """
    try:
        found = function_named(func.__module__, func.__qualname__)
    except (ImportError, AttributeError) as error:
        found, why = None, f"{type(error).__name__}: {error}"
    else:
        why = "there is another object of that name"
    if found is not func:
        raise TypeError(
            f"{name_of(func)} cannot run in a process of its own (executor=Process()): it is not "
            f"found as '{func.__qualname__}' in the module '{func.__module__}' ({why})"
        )


def function_named(module: str, name: str) -> Any:
    """Imports a function; of a declared task, its function.

    Raises:
        ImportError: There is no such module.
        AttributeError: There is no such function in it.
    """
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found.task_func if isinstance(found, Declared) else found


def threads_of(context: Any) -> Any:
    """The threads of the app whose run this is; None if a test has made the context."""
    return getattr(getattr(context, "app_context", None), "_threads", None)


async def _called_in_thread(func: Callable[[Any], Any], context: Any) -> Any:
    threads = threads_of(context)
    if threads is None:  # the context was built by a test
        return await asyncio.to_thread(func, context)
    return await threads.run(func, context)
