"""Arguments of a task by name: checked where they are scheduled, converted where they run."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from tests.support import Bench, after, logged, run, seconds

from pyncette import (
    ArgumentError,
    Context,
    FailureMode,
    Instance,
    OnExisting,
    Pyncette,
    Retry,
    Task,
)
from pyncette.body import call_body
from pyncette.parameters import parameters_of
from pyncette.utils import with_heartbeat

if TYPE_CHECKING:
    from pyncette.memory import MemoryRepository as OnlyForCheckers


class Color(Enum):
    RED = "red"


@dataclass
class Address:
    street: str
    since: date


class NoJson:
    pass


ADDRESS = Address("Main St", date(2026, 1, 1))


async def report(context: Context, email: str, pages: int = 3) -> None: ...


# What a function takes.


def test_a_body_gets_its_arguments_as_values_and_the_context_keeps_their_json() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []
        at = datetime(2026, 5, 1, 9, tzinfo=UTC)
        id_ = uuid4()

        @bench.app.dynamic_task()
        async def job(
            context: Context,
            id: UUID,  # noqa: A002
            at: datetime,
            color: Color,
            price: Decimal,
            address: Address | None = None,
            names: tuple[str, ...] = ("a",),
            *,
            wait: timedelta = timedelta(minutes=1),
        ) -> None:
            seen.append(((id, at, color, price, address, names, wait), context.args))

        async with bench.running() as context:
            await context.schedule_task(
                job,
                "x",
                execute_at=after(1),
                args=job.args(id_, at, Color.RED, price=Decimal("1.50"), address=ADDRESS),
            )
            await context.schedule_task(
                job,
                "y",
                execute_at=after(2),
                args={"at": at},
                id=str(id_),
                color="red",
                price="1.50",
            )
            await bench.advance(2)
        values, args = seen[0]
        assert values == (
            id_, at, Color.RED, Decimal("1.50"), ADDRESS, ("a",), timedelta(minutes=1)
        )  # fmt: skip
        assert args == {
            "id": str(id_),
            "at": "2026-05-01T09:00:00+00:00",
            "color": "red",
            "price": "1.50",
            "address": {"street": "Main St", "since": "2026-01-01"},
        }
        values, args = seen[1]
        assert values == (id_, at, Color.RED, Decimal("1.50"), None, ("a",), timedelta(minutes=1))

    run(main())


def test_a_static_task_gets_the_arguments_of_its_declaration() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []

        @bench.app.task(interval=1, email="a", args={"day": date(2026, 1, 1)})
        async def job(context: Context, email: str, day: date, pages: int = 3) -> None:
            seen.append((email, day, pages, context.args))

        async with bench.running():
            await bench.advance(1)
        assert seen == [("a", date(2026, 1, 1), 3, {"email": "a", "day": "2026-01-01"})]

    run(main())


def test_an_instance_gives_what_its_template_leaves_open() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []

        @bench.app.dynamic_task(interval=1, pages=4)
        async def job(context: Context, email: str, pages: int) -> None:
            seen.append((email, pages))

        async with bench.running() as context:
            await context.schedule_task(job, "x", email="a")
            await context.schedule_task(job, "y", email="b", pages=5)
            with pytest.raises(ArgumentError, match="'job:z' needs the argument email"):
                await context.schedule_task(job, "z", pages=5)
            await bench.advance(1)
        assert sorted(seen) == [("a", 4), ("b", 5)]

    run(main())


def test_a_plain_function_gets_its_arguments_in_its_thread() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []

        @bench.app.task(interval=1, day="2026-01-01")
        def job(context: Context, day: date) -> int:
            seen.append((day, threading.get_ident()))
            return 3

        async with bench.running():
            await bench.advance(1)
        [(day, thread)] = seen
        assert day == date(2026, 1, 1)
        assert thread != threading.get_ident()

    run(main())


def test_a_middleware_may_change_the_arguments_of_a_run() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []

        @bench.app.middleware
        async def more(context: Context, rest: Callable[[], Awaitable[None]]) -> None:
            context.args["pages"] = context.args["pages"] + 1
            await rest()

        @bench.app.task(interval=1, pages=3)
        async def job(context: Context, pages: int) -> None:
            seen.append(pages)

        async with bench.running():
            await bench.advance(2)
        assert seen == [4, 4]

    run(main())


def test_a_call_of_the_task_passes_arguments_on() -> None:
    seen: list[Any] = []

    @Pyncette().dynamic_task()
    async def job(context: Context, email: str, pages: int = 3) -> None:
        seen.append((email, pages))

    asyncio.run(job(Context(), "a", pages=4))
    assert seen == [("a", 4)]


class Callable_:  # noqa: N801
    async def __call__(self, context: Context, email: str) -> None: ...

    async def method(self, context: Context, email: str) -> None: ...


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


def with_a_parameter_more(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(context: Context, locale: str, **kwargs: Any) -> Any:
        return await function(context, **kwargs)

    return wrapper


def without_wraps(function: Callable[..., Any]) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


async def context_only(context: Context) -> None: ...


async def with_rest(context: Context, email: str, **rest: date) -> None: ...


async def two_contexts(database: object, context: Context, email: str) -> None: ...


@pytest.mark.parametrize(
    ("func", "names", "required"),
    [
        (report, ["email", "pages"], {"email"}),
        (Callable_(), ["email"], {"email"}),
        (Callable_().method, ["email"], {"email"}),
        (decorated(report), ["email", "pages"], {"email"}),
        (decorated(decorated(report)), ["email", "pages"], {"email"}),
        (with_a_parameter_more(report), ["locale", "email", "pages"], {"locale", "email"}),
        (with_heartbeat()(report), ["email", "pages"], {"email"}),
        (functools.partial(report, pages=5), ["email"], {"email"}),
        (functools.partial(two_contexts, object()), ["email"], {"email"}),
        (with_rest, ["email"], {"email"}),
    ],
)
def test_the_parameters_of_a_function_are_found(
    func: Any, names: list[str], required: set[str]
) -> None:
    found = parameters_of(func)
    assert found is not None
    assert [*found.names] == names
    assert found.required == required
    assert not found.lenient


async def with_an_object(context: Context, database: NoJson = NoJson()) -> None: ...  # noqa: B008


async def with_a_type_of_checkers(context: Context, store: OnlyForCheckers | None = None) -> None:
    return None


async def only_positions(context: Context, *more: object) -> None: ...


async def position_with_default(context: Context, more: int = 3, /) -> None: ...


@pytest.mark.parametrize(
    "func",
    [
        context_only,
        decorated(context_only),
        without_wraps(report),
        with_heartbeat()(context_only),
        functools.partial(report, email="a", pages=3),
        with_an_object,
        with_a_type_of_checkers,
        only_positions,
        position_with_default,
    ],
)
def test_what_takes_a_context_only_has_no_parameters(func: Any) -> None:
    assert parameters_of(func) is None


def test_a_function_of_1_x_whose_parameters_have_defaults_keeps_other_arguments() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []
        for number in range(2):

            async def job(context: Context, number=number) -> None:  # type: ignore[no-untyped-def]
                seen.append((number, context.args))

            bench.app.task(name=str(number), interval=1, email="a")(job)
        async with bench.running():
            await bench.advance(1)
        assert sorted(seen) == [(0, {"email": "a"}), (1, {"email": "a"})]

    run(main())


def test_what_no_parameter_takes_goes_into_the_rest() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []

        @bench.app.task(interval=1, email="a", born="2026-01-01")
        async def job(context: Context, /, email: str, **rest: date) -> None:
            seen.append((email, rest))

        async with bench.running():
            await bench.advance(1)
        assert seen == [("a", {"born": date(2026, 1, 1)})]
        with pytest.raises(ArgumentError, match=r"'context' \(it is the context\)"):
            bench.app.task(name="y", interval=1, email="a", context="x")(with_rest)  # type: ignore[arg-type]

    run(main())


# What is refused where a task is declared.


async def unknown_type(context: Context, database: NoJson) -> None: ...


async def unknown_type_inside(context: Context, databases: list[NoJson]) -> None: ...


async def unreadable(context: Context, store: OnlyForCheckers) -> None: ...


async def by_position(context: Context, email: str, /) -> None: ...


async def many(context: Context, *emails: str, pages: int) -> None: ...


async def unknown_rest(context: Context, **rest: NoJson) -> None: ...


@pytest.mark.parametrize(
    ("func", "words"),
    [
        (unknown_type, r"'database' has an annotation .*: NoJson\."),
        (unknown_type_inside, r"'databases' has an annotation .*: NoJson\."),
        (unreadable, "'OnlyForCheckers', which cannot be read.*NameError.*TYPE_CHECKING"),
        (by_position, "'email' can only be given by position.*remove the '/'"),
        (many, r"'\*emails' is given by position.*take a list"),
        (unknown_rest, r"'\*\*rest.*' has an annotation"),
    ],
)
def test_a_function_that_cannot_be_given_arguments_is_refused(func: Any, words: str) -> None:
    with pytest.raises(TypeError, match=f"cannot be a task.*{words}"):
        Pyncette().dynamic_task()(func)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"'report' needs the argument email: its function is report\(context, email: str, "),
        ({"email": 3}, "'email' of 'report' must be a str, not int 3"),
        ({"email": "a", "page": 3}, r"'report' takes no argument 'page': its function is report\("),
        ({"email": "a", "lease": 3}, "Did you mean the option 'lease_duration'"),
        ({"email": "a", "timeout": 30}, "The option 'timeout' takes a timedelta"),
        ({"args": {"email": "a"}, "email": "b"}, "'email' of 'report' was given twice"),
        ({"args": {1: "a"}}, "args must have strings as keys, not 1"),
    ],
)
def test_the_arguments_of_a_static_task_are_checked_at_its_declaration(
    options: dict[str, Any], words: str
) -> None:
    app = Pyncette()
    with pytest.raises(TypeError, match=words):
        app.task(interval=1, **options)(report)
    assert app._tasks == []


def test_the_defaults_of_a_template_may_be_some_of_the_arguments() -> None:
    app = Pyncette()
    app.dynamic_task(name="none")(report)
    app.dynamic_task(name="some", pages=4)(report)
    with pytest.raises(ArgumentError, match="'pages' of 'wrong' must be an int, not str '4'"):
        app.dynamic_task(name="wrong", pages="4")(report)
    with pytest.raises(ArgumentError, match="'unknown' takes no argument 'page'"):
        app.partitioned_task(4, name="unknown", page=4)(report)


def test_options_that_say_nothing_are_no_arguments() -> None:
    task = Pyncette().task(interval=1, email="a", heartbeat=True, timeout=None, limit=None)(report)
    assert task.extra_args == {"email": "a"}
    assert task.heartbeat


# What is refused where an instance is scheduled.

BAD_ARGUMENTS = [
    ({}, "'report:x' needs the argument email"),
    ({"email": 3}, "'email' of 'report:x' must be a str, not int 3"),
    ({"email": "a", "pages": "4"}, "'pages' of 'report:x' must be an int, not str '4'"),
    ({"email": "a", "page": 4}, "'report:x' takes no argument 'page'"),
    ({"email": "a", "intervall": 4}, "Did you mean the option 'interval'"),
    ({"email": "a", "pages": NoJson()}, "'pages' of 'report:x' must be an int, not NoJson"),
]


@pytest.mark.parametrize(("args", "words"), BAD_ARGUMENTS)
@pytest.mark.parametrize("apart", [False, True])
def test_arguments_that_do_not_fit_are_refused_where_they_are_scheduled(
    args: dict[str, Any], words: str, apart: bool
) -> None:
    async def main() -> None:
        bench = Bench()
        template = bench.app.dynamic_task()(report)
        given: dict[str, Any] = {"args": args} if apart else args
        async with bench.app.create() as context:
            with pytest.raises(ArgumentError, match=words):
                await context.schedule_task(template, "x", execute_at=after(1), **given)
            with pytest.raises(ArgumentError, match=words):
                await context.schedule_task(template, "x", schedule="* * * * *", **given)
            for result in (
                await context.schedule_tasks(template, [Instance("x", interval=1, **given)]),
                await context.sync_tasks(template, [Instance("x", interval=1, **given)]),
            ):
                [failure] = result.failures
                assert isinstance(failure.error, ArgumentError)
            assert await context.get_task(template, "x") is None

    run(main())


def test_calls_without_asyncio_refuse_the_same(tmp_path: Path) -> None:
    app = Pyncette(url=f"sqlite:///{tmp_path / 'tasks.db'}")
    template = app.dynamic_task(interval=1)(report)
    with app.sync() as calls:
        with pytest.raises(ArgumentError, match="'email' of 'report:x' must be a str, not int 3"):
            calls.schedule_task(template, "x", email=3)
        result = calls.schedule_tasks(template, [Instance("x", args={"mail": "a"})])
        assert isinstance(result.failures[0].error, ArgumentError)
        calls.schedule_task(template, "x", args=template.args("a", pages=4))
        state = calls.get_task(template, "x")
    assert state is not None
    assert state.args == {"email": "a", "pages": 4}


def test_a_refusal_is_in_one_line_whatever_the_names_are() -> None:
    template = Pyncette().dynamic_task(interval=1)(report)
    for args in ({"a\nb": 1}, {"email": "a\n", "pages": "\x1b[31m"}):
        with pytest.raises(ArgumentError) as caught:
            template.instantiate("x\ny", args=args)
        assert str(caught.value).isprintable()


def test_a_parameter_is_no_misspelt_option(caplog: pytest.LogCaptureFixture) -> None:
    async def job(context, lease=3):  # type: ignore[no-untyped-def]
        pass

    template = Pyncette().dynamic_task(interval=1, lease=4)(job)
    template.instantiate("x", lease=5)
    assert not caplog.records
    template.instantiate("x", lease_seconds=5)
    assert logged(caplog, "did you mean 'lease_duration'")


def test_a_handle_needs_no_arguments() -> None:
    async def main() -> None:
        bench = Bench()
        template = bench.app.dynamic_task(interval=1)(report)
        async with bench.app.create() as context:
            await context.schedule_task(template, "x", email="a")
            assert await context.get_task(template, "x") is not None
            await context.unschedule_task(template.instantiate("x"))
            assert await context.get_task(template, "x") is None
            with pytest.raises(ArgumentError, match="takes no argument 'page'"):
                template.instantiate("x", page=3)

    run(main())


def test_a_parked_run_gets_new_arguments_that_fit() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []

        @bench.app.dynamic_task(retry=Retry(attempts=1))
        async def job(context: Context, day: date) -> None:
            seen.append(day)
            if len(seen) == 1:
                raise OSError

        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(1), day="2026-01-01")
            await bench.advance(1)
            for args, words in (
                ({"day": 3}, "'day' of 'job:x' must be a date"),
                ({"dya": 3}, "takes no argument 'dya'"),
            ):
                with pytest.raises(ArgumentError, match=words):
                    await context.retry_parked(job, "x", **args)  # type: ignore[arg-type]
            with pytest.raises(ArgumentError, match="needs the argument day"):
                await context.retry_parked(job, "x", args={})
            assert await context.retry_parked(job, "x", args=job.args(date(2026, 1, 2)))
            await bench.advance(1)
        assert seen == [date(2026, 1, 1), date(2026, 1, 2)]

    run(main())


def test_an_instance_that_is_as_it_should_be_is_left_alone() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.dynamic_task(interval=1)
        async def job(context: Context, days: set[date], names: dict[str, int]) -> None: ...

        days = {date(2026, 1, number) for number in range(1, 20)}
        async with bench.app.create() as context:
            for given in (days, {*sorted(days)}, [str(day) for day in days]):
                args = {"days": given, "names": {"b": 1, "a": 2}}
                result = await context.sync_tasks(job, [Instance("x", args=args)])
        assert result.unchanged == 1

    run(main())


# Arguments apart from options.


def test_arguments_may_have_the_names_of_options() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []
        names = dict.fromkeys(
            ("name", "interval", "force", "task", "on_existing", "args", "retry"), 1
        )

        @bench.app.dynamic_task()
        async def job(
            context: Context,
            name: int,
            interval: int,
            force: int,
            task: int,
            on_existing: int,
            args: int,
            retry: int,
        ) -> None:
            seen.append((name, interval, force, task, on_existing, args, retry))

        untyped = bench.app.dynamic_task(name="untyped", args={"schedule": "x"})(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(1), args=names)
            await context.schedule_task(untyped, "x", execute_at=after(1), args=names)
            with pytest.raises(TypeError, match="in args="):
                await context.schedule_task(job, "y", execute_at=after(1), name="x")
            await bench.advance(1)
        assert seen == [(1,) * 7]
        assert bench.runs[0].args == {"schedule": "x", **names}

    run(main())


def test_args_that_is_no_mapping_is_an_argument_as_in_1_x() -> None:
    async def main() -> None:
        bench = Bench()
        values: list[Any] = [[1], "x", None, 3]
        template = bench.app.dynamic_task(args=values[0])(bench.note)
        static = bench.app.task(name="static", interval=1, args=values[1])(bench.note)
        assert template.extra_args == {"args": [1]}
        assert static.extra_args == {"args": "x"}
        assert template.instantiate("x", interval=1, args=values[2]).extra_args == {"args": None}
        async with bench.app.create() as context:
            instance = await context.schedule_task(
                template, "x", execute_at=after(1), args=values[3]
            )
            assert instance.extra_args == {"args": 3}
            nested = {"args": {"a": 1}}
            instance = await context.schedule_task(
                template, "x", execute_at=after(1), on_existing=OnExisting.REPLACE, args=nested
            )
            assert instance.extra_args == nested

    run(main())


def test_what_is_given_by_name_and_apart_is_one_set() -> None:
    template = Pyncette().dynamic_task(interval=1)(context_only)
    assert template.instantiate("x", args={"a": 1}, b=2).extra_args == {"a": 1, "b": 2}
    with pytest.raises(TypeError, match="'a' of 'x' was given twice"):
        template.instantiate("x", args={"a": 1}, a=1)
    with pytest.raises(TypeError, match="strings as keys"):
        template.instantiate("x", args={1: 1})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="must be JSON serializable"):
        template.instantiate("x", args={"a": NoJson()})


def test_arguments_by_the_signature_of_the_function() -> None:
    template = Pyncette().dynamic_task()(report)
    assert template.args("a", pages=4) == {"email": "a", "pages": 4}
    with pytest.raises(TypeError, match="takes 2 arguments besides the context, not 3"):
        template.args("a", 4, 5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="twice"):
        template.args("a", email="b")  # type: ignore[misc]


# A record that does not fit the function.


def with_body(bench: Bench, function: Callable[..., Any], **options: Any) -> Task:
    app = bench.another_app()
    bench.app = app
    return app.dynamic_task(name="job", **options)(function)


async def old(context: Context, email: str) -> None: ...


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ("renamed", "takes no argument 'email': its function is "),
        ("added", "needs the argument pages"),
        ("retyped", "'email' of 'job:x' must be an int, not str 'a'"),
    ],
)
@pytest.mark.parametrize("mode", [FailureMode.NONE, None])
def test_a_record_of_an_older_function_fails_its_run_and_not_the_loop(
    changed: str, words: str, mode: FailureMode | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def renamed(context: Context, mail: str = "x") -> None: ...

    async def added(context: Context, email: str, pages: int) -> None: ...

    async def retyped(context: Context, email: int) -> None: ...

    bodies: dict[str, Any] = {"renamed": renamed, "added": added, "retyped": retyped}

    async def main() -> None:
        bench = Bench()
        template = with_body(bench, old)
        async with bench.app.create() as context:
            await context.schedule_task(template, "x", execute_at=after(1), email="a")
        options: dict[str, Any] = (
            {"retry": Retry(attempts=2, initial=seconds(1), jitter=0)}
            if mode is None
            else {"failure_mode": mode}
        )
        template = with_body(bench, bodies[changed], **options)
        bench.app.task(name="good", interval=1)(bench.note)
        async with bench.running() as context:
            await bench.advance(1)
            state = await context.get_task(template, "x")
            assert state is not None
            assert state.last_error is not None
            assert words in state.last_error
            assert "If it was scheduled for an earlier version" in state.last_error
            assert state.args == {"email": "a"}
            await bench.advance(2)
            if mode is None:
                state = await context.get_task(template, "x")
                assert state is not None
                assert state.state == "parked"
        assert len(bench.runs) == 3

    run(main())
    assert logged(caplog, "Task job:x failed in attempt 1")


def test_a_record_fits_a_function_that_takes_more_with_defaults() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []
        template = with_body(bench, old)
        async with bench.app.create() as context:
            await context.schedule_task(template, "x", execute_at=after(1), email="a")

        async def newer(context: Context, pages: int = 3, **rest: str) -> None:
            seen.append((pages, rest))

        with_body(bench, newer)
        async with bench.running():
            await bench.advance(1)
        assert seen == [(3, {"email": "a"})]

    run(main())


def test_a_record_of_1_x_fits_a_function_with_parameters() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []
        template = with_body(bench, context_only)
        async with bench.app.create() as context:
            await context.schedule_task(
                template, "x", execute_at=after(1), email="a", at="2026-01-01T00:00:00+00:00"
            )

        async def newer(context: Context, email: str, at: datetime) -> None:
            seen.append((email, at))

        with_body(bench, newer)
        async with bench.running():
            await bench.advance(1)
        assert seen == [("a", datetime(2026, 1, 1, tzinfo=UTC))]

    run(main())


def test_a_body_that_takes_a_context_only_is_called_directly() -> None:
    assert call_body(context_only) is context_only


def test_a_body_with_heartbeats_takes_arguments() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []

        @bench.app.task(name="coroutine", interval=1, day="2026-01-01")
        @with_heartbeat()
        async def coroutine(context: Context, day: date) -> None:
            seen.append((day, threading.get_ident() == here))

        @bench.app.task(name="plain", interval=1, day="2026-01-01")
        @with_heartbeat()
        def plain(context: Context, day: date) -> int:
            seen.append((day, threading.get_ident() == here))
            return 3

        here = threading.get_ident()
        async with bench.running():
            await bench.advance(1)
        assert sorted(seen) == [(date(2026, 1, 1), False), (date(2026, 1, 1), True)]

    run(main())


def test_another_function_may_be_set_on_a_task() -> None:
    task = Pyncette().dynamic_task(interval=1)(context_only)
    task.task_func = report
    with pytest.raises(ArgumentError, match="takes no argument 'page'"):
        task.instantiate("x", page=3)
