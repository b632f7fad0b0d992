"""A wrong value is refused, or warned about, in words: which option, which value, what to do.

On every path that takes it: the declaration, ``schedule_task``, ``Instance`` for bulk calls, and
the calls without asyncio.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, tzinfo
from typing import Any

import pytest
from tests.support import Bench, after, lines, logged, run, seconds

from pyncette import Instance, OnExisting, Pyncette, PyncetteContext, RetryIn, Where
from pyncette.dynamodb import DynamoDBOptions
from pyncette.memory import MemoryRepository
from pyncette.mysql import MysqlOptions
from pyncette.postgres import PostgresOptions
from pyncette.prometheus import use_prometheus
from pyncette.task import Task
from pyncette.utils import with_heartbeat


async def body(context: Any) -> None:
    """Does nothing."""


def untyped(value: object) -> Any:
    """A value of a wrong type, which no type checker would let pass."""
    return value


def declared(**options: Any) -> Task:
    return Pyncette().task(**{"name": "tick", "interval": 5, **options})(body)


@pytest.mark.parametrize("option", ["enabled", "fast_forward"])
@pytest.mark.parametrize("value", ["no", 1, None])
def test_a_word_is_not_taken_for_true(option: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{option}.* must be True or False, not {value!r}"):
        declared(**{option: value})
    task = declared()
    with pytest.raises(TypeError, match=f"{option}.* must be True or False, not {value!r}"):
        setattr(task, option, value)
    assert task.enabled


@pytest.mark.parametrize("count", ["4", 4.0, None, True])
def test_the_number_of_partitions_is_a_whole_number(count: object) -> None:
    with pytest.raises(
        TypeError, match=f"^partition_count of 'job' must be a whole number, not {count!r}$"
    ):
        Pyncette().partitioned_task(untyped(count), name="job")(body)


def test_the_traceback_of_a_partition_count_below_one_says_whose_it_is() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1") as caught:
        Pyncette().partitioned_task(0, name="job")(body)
    assert str(caught.value.__cause__) == "partition_count=0 of 'job'"


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_time_zone_that_is_not_known_is_refused_with_its_task_and_the_nearest_name(
    dynamic: bool,
) -> None:
    app = Pyncette()
    declare = app.dynamic_task if dynamic else app.task
    with pytest.raises(ValueError, match="Europe/Berln") as caught:
        declare(name="tick", schedule="0 9 * * *", timezone="Europe/Berln")(body)
    assert type(caught.value) is ValueError
    assert str(caught.value) == (
        "Invalid timezone specifier 'Europe/Berln' (timezone of the task 'tick'): did you mean "
        "'Europe/Berlin'?"
    )
    with pytest.raises(ValueError, match=r"task 'tick'\): did you mean 'Europe/Berlin'"):
        app.dynamic_task(name="tick", timezone="Europe/Berln")(body)


def test_execute_in_is_refused_where_a_task_is_declared() -> None:
    with pytest.raises(ValueError, match="it is an option of schedule_task"):
        declared(execute_in=timedelta(seconds=5))


def test_what_is_no_clock_is_refused() -> None:
    with pytest.raises(TypeError, match=r"clock must be a pyncette\.Clock, not 5"):
        Pyncette(clock=untyped(5))


@pytest.mark.parametrize(
    ("option", "use"),
    [
        ("cancel_on_lease_lost", lambda value: with_heartbeat(cancel_on_lease_lost=value)),
        ("measure_ticks", lambda value: use_prometheus(Pyncette(), measure_ticks=value)),
        ("measure_tasks", lambda value: use_prometheus(Pyncette(), measure_tasks=value)),
        ("measure_repository", lambda value: use_prometheus(Pyncette(), measure_repository=value)),
        (
            "postgres_skip_table_create",
            lambda value: PostgresOptions(
                postgres_url="postgresql://h/d", postgres_skip_table_create=value
            ),
        ),
        (
            "mysql_skip_table_create",
            lambda value: MysqlOptions(mysql_url="mysql://h/d", mysql_skip_table_create=value),
        ),
        (
            "dynamodb_skip_table_create",
            lambda value: DynamoDBOptions("table", skip_table_create=value),
        ),
    ],
)
def test_what_is_on_or_off_is_no_word(option: str, use: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match=f"{option} must be True or False, not 'no'"):
        use("no")


def test_whether_an_attempt_is_free_is_no_word() -> None:
    with pytest.raises(TypeError, match="free must be True or False, not 'no'"):
        RetryIn(timedelta(seconds=1), free=untyped("no"))


@pytest.mark.parametrize(
    ("option", "value", "error", "words"),
    [
        ("states", {"prked"}, ValueError, "There is no state 'prked'; there are scheduled, "),
        ("states", "parked", TypeError, "states must be a collection of names"),
        ("states", 5, TypeError, "states must be a collection of names"),
        ("prefix", 5, TypeError, "prefix must be a string, not 5"),
        ("paused", "no", TypeError, "paused must be True, False or None, not 'no'"),
        ("failing", 0, TypeError, "failing must be True, False or None, not 0"),
        ("due_before", "now", TypeError, "due_before must be a datetime, not 'now'"),
    ],
)
def test_a_selection_is_checked_where_it_is_made(
    option: str, value: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Where(**untyped({option: value}))


# What schedule_task, an Instance and the call without asyncio are given.

WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "exactly one of schedule, interval, execute_at and execute_in$"),
    ({"execute_in": 5}, "; execute_in takes a timedelta$"),
    ({"execut_in": 5}, "; did you mean 'execute_in' by 'execut_in'"),
    ({"execut_in": timedelta(5), "interval": 5}, "did you mean the option 'execute_in'"),
    ({"strat_at": after(5), "interval": 5}, "did you mean the option 'start_at'"),
    ({"execute_at": "tomorrow"}, "execute_at must be a datetime, not 'tomorrow'"),
    (
        {"schedule": "0 9 * * *", "timezone": "Europe/Berln"},
        r"'Europe/Berln' \(timezone of the task 'a'\): did you mean 'Europe/Berlin'",
    ),
]


async def once(context: PyncetteContext, job: Task, options: dict[str, Any]) -> object:
    return await context.schedule_task(job, "a", **options)


async def in_bulk(context: PyncetteContext, job: Task, options: dict[str, Any]) -> None:
    result = await context.schedule_tasks(job, [Instance("a", **options)])
    if result.failures:
        raise result.failures[0].error


@pytest.mark.parametrize("call", [once, in_bulk])
@pytest.mark.parametrize(("options", "words"), WRONG)
def test_a_wrong_option_of_an_instance_is_named(
    call: Callable[[PyncetteContext, Task, dict[str, Any]], Awaitable[object]],
    options: dict[str, Any],
    words: str,
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            with pytest.raises((TypeError, ValueError), match=words):
                await call(context, job, options)
            assert await context.get_task(job, "a") is None

    run(main())


@pytest.mark.parametrize(("options", "words"), WRONG)
def test_a_wrong_option_of_an_instance_is_named_without_asyncio(
    options: dict[str, Any], words: str
) -> None:
    app = Pyncette(MemoryRepository())
    job = app.dynamic_task(name="job")(body)
    with app.sync() as calls:
        with pytest.raises((TypeError, ValueError), match=words):
            calls.schedule_task(job, "a", **options)
        with pytest.raises(TypeError, match="force must be True or False, not 'yes'"):
            calls.schedule_task(job, "a", untyped("yes"), interval=5)


@pytest.mark.parametrize("call", [once, in_bulk])
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("on_existing", "keep", "take a pyncette.OnExisting; did you mean OnExisting.KEEP?"),
        ("on_existing", "REPLACE", "take a pyncette.OnExisting; did you mean OnExisting.REPLACE?"),
        ("on_existing", "other", "take a pyncette.OnExisting"),
        ("execut_in", 5, "did you mean 'execute_in'?"),
        ("execute_in", 5, "the option takes a timedelta"),
        ("misfire_grace", 5, "the option is one of the template, not of its instances"),
        ("catch_up", "latest", "the option is one of the template, not of its instances"),
    ],
)
def test_an_argument_that_was_perhaps_meant_as_an_option_is_warned_about(
    call: Callable[[PyncetteContext, Task, dict[str, Any]], Awaitable[object]],
    name: str,
    value: object,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", interval=5)(bench.note)
        async with bench.app.create() as context:
            await call(context, job, {name: value})
            state = await context.get_task(job, "a")
            assert state is not None
            assert state.args == {name: value}

    run(main())
    told = f"'{name}' is an argument of the task, not an option"
    [line] = [line for line in lines(caplog) if told in line]
    assert line.endswith(words)


def test_an_instance_of_a_bulk_call_has_neither_force_nor_on_existing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", interval=5)(bench.note)
        async with bench.app.create() as context:
            options: dict[str, Any] = {"on_existing": OnExisting.KEEP}
            result = await context.schedule_tasks(
                job, [Instance("a", force=True), Instance("b", **options)]
            )
            assert (result.created, result.failed) == (1, 1)
            assert "it is an option of schedule_task and schedule_tasks" in str(
                result.failures[0].error
            )

    run(main())
    assert logged(caplog, "its option on_existing, with OnExisting.REPLACE, replaces instances")


def test_options_of_calls_are_refused_before_anything_is_done() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", interval=5)(bench.note)
        async with bench.app.create() as context:
            with pytest.raises(TypeError, match="force must be True or False, not 'yes'"):
                await context.schedule_task(job, "a", untyped("yes"))
            some = [Instance("a")]
            for option in ("progress", "on_failure"):
                with pytest.raises(TypeError, match=f"{option} must be a function, not 5"):
                    await context.schedule_tasks(job, some, **untyped({option: 5}))
                with pytest.raises(TypeError, match=f"{option} must be a function, not 5"):
                    await context.unschedule_tasks(job, ["a"], **untyped({option: 5}))
                with pytest.raises(TypeError, match=f"{option} must be a function, not 5"):
                    await context.purge("other", **untyped({option: 5}))
            for option in ("dry_run", "allow_empty"):
                with pytest.raises(TypeError, match=f"{option} must be True or False, not 'no'"):
                    await context.sync_tasks(job, some, **untyped({option: "no"}))
            assert await context.get_task(job, "a") is None

    run(main())


def test_what_has_no_instances_or_no_name_is_told_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        tick = bench.app.task(name="tick", interval=5)(bench.note)
        job = bench.app.dynamic_task(name="job", interval=5)(bench.note)
        async with bench.app.create() as context:
            with pytest.raises(ValueError, match="Cannot list instances") as caught:
                await context.list_tasks(tick)
            assert "get_task(tick) returns its own state" in str(caught.value.__cause__)
            instance = await context.schedule_task(job, "a")
            with pytest.raises(ValueError, match="Cannot list instances") as caught:
                await context.count_tasks(instance)
            assert "pass its template, 'job'" in str(caught.value.__cause__)
            with pytest.raises(ValueError, match="instance name must be") as caught:
                await context.unschedule_task(job)
            assert "'job' is a template" in str(caught.value.__cause__)
            assert await context.get_task(job) is None

    run(main())
    assert logged(caplog, "get_task of the template 'job' without the name of an instance finds")


def test_a_task_of_another_app_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench = Bench()
        other = Pyncette()
        job = other.dynamic_task(name="job")(body)
        split = other.partitioned_task(4, name="split")(body)
        tick = other.task(name="tick", interval=5)(body)
        mine = bench.app.partitioned_task(4, name="mine")(bench.note)
        async with bench.app.create() as context:
            for _ in range(2):
                await context.schedule_task(job, "a", execute_in=seconds(5))
                await context.schedule_tasks(split, [Instance("a", execute_in=seconds(5))])
                await context.get_task(tick)
                await context.count_tasks(split.get_partitions()[1])
                instance = await context.schedule_task(mine, "a", execute_in=seconds(5))
                await context.pause(instance)
                await context.count_tasks(mine.get_partitions()[1])

    run(main())
    told = [line for line in lines(caplog) if "was not declared by this app" in line]
    assert [line.split("'")[1] for line in told] == ["job", "split", "tick"]


class BrokenZone(tzinfo):
    """A time zone that fails when it is asked."""

    def utcoffset(self, when: datetime | None) -> timedelta:
        raise RuntimeError("no tables")

    def dst(self, when: datetime | None) -> timedelta:
        raise RuntimeError("no tables")

    def tzname(self, when: datetime | None) -> str:
        raise RuntimeError("no tables")


def test_a_time_zone_that_fails_is_refused_in_words() -> None:
    at = datetime(2026, 1, 1, tzinfo=BrokenZone())
    for options in (
        {"interval": None, "execute_at": at},
        {"start_at": at},
        {"end_at": at},
        {"interval": None, "schedule": "0 9 * * *", "timezone": BrokenZone()},
    ):
        with pytest.raises(ValueError, match=r"raised RuntimeError: no tables"):
            declared(**options)


@pytest.mark.parametrize("value", [5, "x", None, True])
def test_a_value_that_is_no_connection_is_told_once_as_an_argument(
    value: object, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        plain: Task = bench.app.dynamic_task(name="plain")(bench.note)
        async with bench.app.create() as context:
            for name in ("a", "b"):
                await context.schedule_task(
                    plain, name, execute_at=after(9), connection=untyped(value)
                )
            found = await context.get_task(plain, "a")
            assert found is not None
            assert found.args == {"connection": value}
        assert len(lines(caplog)) == 1
        assert logged(caplog, "outside of your transaction")

    run(main())
