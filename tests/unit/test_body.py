"""What may be a task, a fixture, a middleware: mistakes are refused where they are made."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest

from pyncette import Context, FailureMode, Pyncette, PyncetteContext
from pyncette.body import call_body
from pyncette.testing import VirtualClock

ran: list[object] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


async def body(context: Context) -> None:
    ran.append(context)


async def two(extra: object, context: Context) -> None:
    ran.append(context)


async def with_option(context: Context, *, color: str = "blue") -> None:
    ran.append(context)


def returns_a_coroutine(context: Context) -> Awaitable[None]:
    return body(context)


def returns_a_future(context: Context) -> Awaitable[None]:
    ran.append(context)
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future


def decorated(func: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(func)
    async def wrapper(context: Context) -> None:
        await func("pool", context)

    return wrapper


class Report:
    async def __call__(self, context: Context) -> None:
        ran.append(context)

    async def method(self, context: Context) -> None:
        ran.append(context)

    @staticmethod
    async def static(context: Context) -> None:
        ran.append(context)

    @classmethod
    async def of_class(cls, context: Context) -> None:
        ran.append(context)


GOOD_BODIES: dict[str, Any] = {
    "a coroutine function": body,
    "a partial": functools.partial(two, 1),
    "a lambda": lambda context: two(1, context),
    "a parameter with a default": with_option,
    "a method": Report().method,
    "a static method": Report.static,
    "a class method": Report.of_class,
    "an object that can be called": Report(),
    "a plain function that returns a coroutine": returns_a_coroutine,
    "a plain function that returns a future": returns_a_future,
    "a wrapper that adds an argument": decorated(two),
    "a mock": mock.AsyncMock(side_effect=ran.append),
}


def times_run(declare: Any) -> int:
    """How often the body of a one-off runs in ten minutes; once is right."""

    async def main() -> int:
        clock = VirtualClock()
        app = Pyncette(clock=clock)
        job = app.dynamic_task(name="job", failure_mode=FailureMode.NONE)(declare)
        async with app.create() as context:
            loop = asyncio.create_task(context.run())
            await context.schedule_task(job, "x", execute_at=clock.now())
            await clock.advance(timedelta(minutes=10))
            left = await context.get_task(job, "x")
            context.shutdown()
            await loop
        assert left is None
        return len(ran)

    return asyncio.run(main())


@pytest.mark.parametrize("func", GOOD_BODIES.values(), ids=GOOD_BODIES.keys())
def test_a_task_may_be(func: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert times_run(func) == 1
    assert caplog.messages == []


def test_what_has_no_signature_is_accepted() -> None:
    without: Any = max
    with pytest.raises(ValueError, match="signature"):
        inspect.signature(without)
    assert Pyncette().task(name="x", interval=1)(without).task_func is without


def plain(context: Context) -> None:
    ran.append(context)


def plain_with_a_value(context: Context) -> bool:
    ran.append(context)
    return True


@pytest.mark.parametrize("func", [plain, plain_with_a_value])
def test_a_plain_function_is_done_when_it_returns(func: Any) -> None:
    assert times_run(func) == 1


def test_a_function_that_returns_a_generator_has_run_nothing() -> None:
    async def generator(context: Context) -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match="returned a generator, which was not run"):
        asyncio.run(call_body(functools.partial(generator))(Context()))  # type: ignore[arg-type]


async def async_generator(context: Context) -> AsyncIterator[int]:
    yield 1


def generator(context: Context) -> Iterator[int]:
    yield 1


class GeneratorObject:
    async def __call__(self, context: Context) -> AsyncIterator[int]:
        yield 1


async def no_parameters() -> None: ...


async def too_many(context: Context, email: str, /) -> None: ...


async def by_name_only(*, context: Context) -> None: ...


BAD_BODIES: dict[str, tuple[Any, str]] = {
    "an async generator": (async_generator, "'async_generator'.*an async generator function"),
    "a generator": (generator, "'generator'.*a generator function"),
    "a partial of a generator": (functools.partial(generator), "a generator function"),
    "an object whose call is a generator": (GeneratorObject(), "an async generator function"),
    "no parameters": (no_parameters, r"'no_parameters'.*called with \(context\).*\(\)"),
    "a parameter that is given by position": (too_many, r"'email'.*remove the '/'"),
    "a parameter that is given by name": (by_name_only, "called with"),
    "a class in place of an object": (Report, r"'Report'.*called with \(context\)"),
    "a partial with everything given": (functools.partial(body, Context()), "called with"),
    "no function": ("report", "not callable: 'report'"),
}


@pytest.mark.parametrize(("func", "words"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_task_may_not_be(func: Any, words: str) -> None:
    app = Pyncette()
    for declare in (app.task(name="x", interval=1), app.dynamic_task(name="x")):
        with pytest.raises(TypeError, match=words):
            declare(func)
    with pytest.raises(TypeError, match=words):
        app.partitioned_task(2, name="x")(func)
    assert app._tasks == []


# Parentheses.


async def fixture(app_context: PyncetteContext) -> AsyncIterator[int]:
    yield 1


async def middleware(context: Context, next: Callable[[], Awaitable[None]]) -> None:  # noqa: A002
    await next()


@pytest.mark.parametrize(
    ("name", "func", "words"),
    [
        ("task", body, r"write @app\.task\(…\), with its options"),
        ("dynamic_task", body, r"write @app\.dynamic_task\(…\), with its options"),
        ("partitioned_task", body, r"write @app\.partitioned_task\(…\), with the number"),
        ("fixture", fixture, r"write @app\.fixture\(\), with parentheses"),
    ],
)
def test_a_decorator_without_its_parentheses_is_refused(name: str, func: Any, words: str) -> None:
    decorator: Any = getattr(Pyncette(), name)
    with pytest.raises(TypeError, match=words):
        decorator(func)


def test_a_middleware_with_parentheses_is_refused() -> None:
    app: Any = Pyncette()
    with pytest.raises(TypeError, match=r"write @app\.middleware, without parentheses"):
        app.middleware()


def test_options_of_a_task_are_given_by_name() -> None:
    app: Any = Pyncette()
    with pytest.raises(TypeError, match=r"task takes options by name only, not '@hourly'"):
        app.task("@hourly")


# Fixtures and middlewares.


async def fixture_without_parameters() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("func", "words"),
    [
        (fixture_without_parameters, r"cannot be a fixture: it is called with \(app_context\)"),
        (7, "A fixture is an async generator function, not 7"),
    ],
)
def test_a_fixture_may_not_be(func: Any, words: str) -> None:
    app = Pyncette()
    with pytest.raises(TypeError, match=words):
        app.use_fixture("x", func)
    with pytest.raises(TypeError, match=words):
        app.fixture("x")(func)


def test_a_coroutine_function_is_refused_as_a_fixture_when_the_app_opens() -> None:
    async def main() -> None:
        app = Pyncette()

        async def no_generator(app_context: PyncetteContext) -> int:
            return 1

        app.use_fixture("x", no_generator)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="not an async generator"):
            async with app.create():
                pass

    asyncio.run(main())


async def middleware_that_yields(context: Context, next: Any) -> AsyncIterator[None]:  # noqa: A002
    yield


@pytest.mark.parametrize(
    ("func", "words"),
    [
        (body, r"cannot be a middleware: it is called with \(context, next\)"),
        (middleware_that_yields, "Write 'await next\\(\\)' instead of 'yield'"),
        (7, "A middleware is a function"),
    ],
)
def test_a_middleware_may_not_be(func: Any, words: str) -> None:
    app = Pyncette()
    with pytest.raises(TypeError, match=words):
        app.middleware(func)
    with pytest.raises(TypeError, match=words):
        app.use_middleware(func)
    assert app._middlewares == []


def test_fixtures_and_middlewares_as_in_1x_are_accepted() -> None:
    class Middleware:
        async def __call__(self, context: Context, next: Any) -> None:  # noqa: A002
            await next()

    app = Pyncette()
    assert app.fixture()(fixture) is fixture
    app.use_fixture("y", functools.partial(fixture))
    assert app.middleware(middleware) is middleware
    app.use_middleware(Middleware())
    app.use_middleware(lambda context, next: next())  # noqa: A006
