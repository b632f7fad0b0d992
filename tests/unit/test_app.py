"""The app: what it imports as, its constructor, fixtures, middlewares and context items."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.support import START, Bench, after, logged, run, seconds

import pyncette
from pyncette import Context, ExecutionMode, Pyncette, PyncetteContext
from pyncette.app import KNOWN_OPTIONS
from pyncette.errors import LeaseLostException, PyncetteException, TaskLockedException
from pyncette.executor import DefaultExecutor, SynchronousExecutor
from pyncette.memory import MemoryRepository
from pyncette.redis import redis_repository
from pyncette.sqlite import sqlite_repository
from pyncette.task import Task
from pyncette.testing import VirtualClock

# What can be imported from where.


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("pyncette", "Pyncette PyncetteContext Context ExecutionMode FailureMode __version__"),
        ("pyncette.pyncette", "Pyncette PyncetteContext"),
        (
            "pyncette.model",
            "Context TaskState ListTasksResponse ExecutionMode FailureMode Decorator TaskFunc "
            "NextFunc MiddlewareFunc FixtureFunc PartitionSelector Heartbeater Lease "
            "ContinuationToken",
        ),
        ("pyncette.errors", "PyncetteException LeaseLostException TaskLockedException"),
        ("pyncette.task", "Task PartitionedTask default_partition_selector"),
        ("pyncette.executor", "DefaultExecutor SynchronousExecutor"),
        ("pyncette.utils", "with_heartbeat"),
        ("pyncette.healthcheck", "use_healthcheck_server default_healthcheck"),
        ("pyncette.sqlite", "sqlite_repository"),
        ("pyncette.memory", "memory_repository MemoryRepository"),
        ("pyncette.clock", "Clock SystemClock"),
        ("pyncette.schedule", "Cron Every At"),
        ("pyncette.testing", "VirtualClock ScaledClock"),
    ],
)
def test_everything_is_where_it_is_said_to_be(module: str, names: str) -> None:
    imported = importlib.import_module(module)
    assert [name for name in names.split() if not hasattr(imported, name)] == []


def test_the_names_of_1x_are_the_very_same_objects() -> None:
    from pyncette import model
    from pyncette import pyncette as old

    assert old.Pyncette is Pyncette
    assert old.PyncetteContext is PyncetteContext
    assert model.Context is Context
    assert pyncette.__version__.count(".") >= 2


def test_the_repository_of_1x_raises_with_the_reason() -> None:
    with pytest.raises(ImportError, match=r"pyncette\.store\.Store"):
        from pyncette.repository import Repository  # noqa: F401


def test_asking_the_module_of_1x_for_what_every_module_may_have_is_no_error() -> None:
    module = importlib.import_module("pyncette.repository")
    assert not hasattr(module, "__wrapped__")
    assert not hasattr(module, "__path__")


def test_importing_the_package_loads_no_driver_but_sqlites() -> None:
    code = (
        "import sys, pyncette\n"
        "wanted = {'redis', 'asyncpg', 'aiomysql', 'asyncmy', 'aiobotocore', 'botocore', "
        "'prometheus_client', 'uvloop', 'hypothesis', 'pytest'}\n"
        "sys.exit(' '.join(wanted & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_the_exceptions_tell_their_task() -> None:
    task = Task(name="x", func=no_body, interval=1)
    lost = LeaseLostException(task)
    assert isinstance(lost, PyncetteException)
    assert lost.task is task
    locked = TaskLockedException(task)
    assert isinstance(locked, PyncetteException)
    assert locked.task is task
    assert locked.locked_until is None
    locked = TaskLockedException(task, START)
    assert locked.locked_until == START
    assert "2026-01-05T12:00:00" in str(locked)


async def no_body(context: Context) -> None:
    """Does nothing."""


# The constructor.


def test_without_arguments_it_runs_on_sqlite_in_memory_each_context_on_its_own() -> None:
    async def main() -> None:
        app = Pyncette()
        job = app.dynamic_task(name="job")(no_body)
        async with app.create() as one, app.create() as two:
            await one.schedule_task(job, "x", interval=5)
            assert await one.get_task(job, "x") is not None
            assert await two.get_task(job, "x") is None
        async with app.create() as three:
            assert await three.get_task(job, "x") is None

    run(main())


def test_its_parameters_may_be_given_by_position_as_in_1x() -> None:
    async def main() -> None:
        app = Pyncette(MemoryRepository(), SynchronousExecutor, seconds(2), batch_size=5)
        async with app.create() as context:
            assert context.last_tick is not None

    run(main())


@pytest.mark.parametrize("interval", [0, seconds(0), -1, seconds(-1)])
def test_a_poll_interval_is_longer_than_zero(interval: Any) -> None:
    with pytest.raises(ValueError, match="poll_interval"):
        Pyncette(poll_interval=interval)


def test_a_poll_interval_may_be_a_number_of_seconds() -> None:
    async def main() -> None:
        bench = Bench(poll_interval=0.5)
        async with bench.running() as context:
            await bench.advance(0.75)
            assert context.last_tick == after(0.5)

    run(main())


@pytest.mark.parametrize("option", ["batch_size", "concurrency_limit"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "10", None, True])
def test_a_limit_below_one_is_refused_when_the_context_opens(option: str, value: Any) -> None:
    async def main() -> None:
        app = Pyncette(MemoryRepository(), **{option: value})
        with pytest.raises(ValueError, match=option):
            async with app.create():
                pass

    run(main())


def test_factories_and_executors_are_called_with_all_options_as_keywords() -> None:
    async def main() -> None:
        seen: list[dict[str, Any]] = []

        @asynccontextmanager
        async def factory(**configuration: Any) -> AsyncIterator[Any]:
            seen.append(configuration)
            async with MemoryRepository()(**configuration) as store:
                yield store

        @asynccontextmanager
        async def executor(**configuration: Any) -> AsyncIterator[Any]:
            seen.append(configuration)
            async with DefaultExecutor(**configuration) as opened:
                yield opened

        options: dict[str, Any] = {"batch_size": 7, "my_own": object(), "concurrency_limit": 3}
        async with Pyncette(factory, executor, **options).create():
            pass
        assert seen == [options, options]

    run(main())


def test_an_unknown_option_is_no_error_and_one_close_to_a_known_name_is_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Pyncette(batchsize=3, my_own_thing=5, postgres_urll="x")
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert logged(caplog, "'batchsize'", "'batch_size'")
    assert logged(caplog, "'postgres_urll'", "'postgres_url'")


@pytest.mark.parametrize(
    ("option", "factory"),
    [
        ("postgres_url", "repository_factory=postgres_repository (from pyncette.postgres)"),
        ("postgres_pool", "repository_factory=postgres_repository (from pyncette.postgres)"),
        ("redis_url", "repository_factory=redis_repository (from pyncette.redis)"),
        ("mysql_host", "repository_factory=mysql_repository (from pyncette.mysql)"),
        ("dynamodb_table_name", "repository_factory=dynamodb_repository (from pyncette.dynamodb)"),
    ],
)
def test_options_of_a_store_without_its_factory_are_refused(option: str, factory: str) -> None:
    options: dict[str, Any] = {option: "x"}
    with pytest.raises(ValueError, match=f"^{option} is an option of .*{re.escape(factory)}"):
        Pyncette(batch_size=3, **options)


def test_what_is_certainly_meant_is_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    @functools.wraps(sqlite_repository)
    def wrapped(**configuration: Any) -> Any:
        return sqlite_repository(**configuration)

    Pyncette(redis_url=None)  # as an environment variable that is not set
    Pyncette(wrapped, redis_url="x")
    Pyncette(MemoryRepository(), redis_url="x")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("factory", "options"),
    [
        (sqlite_repository, {"redis_url": "x"}),
        (None, {"redis_url": "x", "sqlite_database": "y"}),
        (redis_repository, {"redis_url": "y", "postgres_url": "x", "sqlite_database": "z"}),
    ],
)
def test_options_of_another_store_than_the_given_one_are_warned_about(
    factory: Any, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    app = Pyncette(factory, **options)
    assert app._configuration == options
    [message] = caplog.messages
    unread = "postgres_url, sqlite_database" if factory is redis_repository else "redis_url"
    assert message.startswith(f"The store of this app does not read {unread}: ")


@pytest.mark.parametrize(
    "options",
    [
        {"repository_factory": "redis"},
        {"repository_factory": sqlite_repository()},
        {"executor_cls": SynchronousExecutor()},
    ],
    ids=["a name", "a store that is being opened", "an executor"],
)
def test_a_factory_is_passed_without_calling_it(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"^{next(iter(options))} must be .*without calling it"):
        Pyncette(**options)


def test_a_store_written_for_1x_is_refused_when_it_is_opened() -> None:
    async def main() -> None:
        class Repository:
            async def poll_dynamic_task(self) -> None: ...

        @asynccontextmanager
        async def factory(**configuration: Any) -> AsyncIterator[Any]:
            yield Repository()

        with pytest.raises(TypeError, match=r"Repository.*no claim.*1\.x"):
            async with Pyncette(factory).create():
                pass

    run(main())


def test_a_store_that_does_not_open_in_time_makes_create_raise() -> None:
    async def main() -> None:
        @asynccontextmanager
        async def factory(**configuration: Any) -> AsyncIterator[Any]:
            await asyncio.Event().wait()
            yield

        with pytest.raises(pyncette_errors().StoreUnavailableError, match="not opened within"):
            async with Pyncette(factory, open_timeout=0).create():
                pass

    from pyncette import opening

    before = opening.OPENING_DEADLINE_S
    opening.OPENING_DEADLINE_S = 0.01  # type: ignore[misc]
    try:
        run(main())
    finally:
        opening.OPENING_DEADLINE_S = before  # type: ignore[misc]


def pyncette_errors() -> Any:
    from pyncette import errors

    return errors


def test_opening_a_context_claims_nothing() -> None:
    async def main() -> None:
        bench = Bench()
        task = bench.app.task(name="tick", interval=1)(bench.note)
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(job, "x")
        async with bench.app.create() as context:
            await bench.advance(10)
            assert context.last_tick == START
            assert await context.get_task(task) is None
        assert bench.runs == []
        assert all(call.arguments[1] == 0 for call in bench.faults.made("claim"))

    run(main())


def test_opening_and_closing_need_no_time_to_pass() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=1)(bench.note)
        for _ in range(3):
            async with bench.running():
                pass
        assert bench.clock.now() == START

    run(main())


def test_one_app_may_be_opened_several_times_at_once() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[int] = []

        @bench.app.task(interval=seconds(1))
        async def tick(context: Context) -> None:
            await bench.note(context)
            seen.append(context.number)

        async with (
            bench.app.create({"number": 1}) as one,
            bench.app.create({"number": 2}) as two,
        ):
            loops = [asyncio.create_task(context.run()) for context in (one, two)]
            await bench.advance(50)
            one.shutdown()
            await bench.advance(10)
            two.shutdown()
            await asyncio.gather(*loops)
        assert bench.times == list(range(1, 61))
        assert set(seen) == {1, 2}
        assert seen[50:] == [2] * 10

    run(main())


def test_an_app_may_be_opened_again() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=1)(bench.note)
        async with bench.running():
            await bench.advance(2)
        async with bench.running():
            await bench.advance(2)
        assert bench.planned == [1, 2, 3, 4]

    run(main())


# Executors.


def test_the_synchronous_executor_runs_one_by_one_inside_the_loop() -> None:
    async def main() -> None:
        bench = Bench(executor_cls=SynchronousExecutor)
        order: list[str] = []

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            order.append(f"{context.task.name} begins")
            await bench.clock.sleep(1)
            order.append(f"{context.task.name} ends")

        for name in ("a", "b"):
            await bench.plant(job, name)
        async with bench.running():
            await bench.advance(0.5)
            records = [await bench.record(job, name) for name in ("a", "b")]
            assert sum(record is not None and record.state == "running" for record in records) == 1
            await bench.advance(2)
        assert [line.split()[1] for line in order] == ["begins", "ends", "begins", "ends"]

    run(main())


class SpawnOnly:
    """An executor, written by a user, with nothing but ``spawn_task``."""

    def __init__(self, **configuration: Any) -> None:
        self.spawned: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> SpawnOnly:
        return self

    async def __aexit__(self, *exception: object) -> None:
        pass

    async def spawn_task(self, awaitable: Any) -> None:
        self.spawned.append(asyncio.create_task(awaitable))


def test_an_executor_with_nothing_but_spawn_task_works() -> None:
    async def main() -> None:
        bench = Bench(executor_cls=SpawnOnly)
        torn_down: list[float] = []

        @bench.app.fixture()
        async def resource(context: PyncetteContext) -> AsyncIterator[int]:
            yield 7
            torn_down.append(bench.clock.monotonic())

        @bench.app.task(interval=seconds(1))
        async def tick(context: Context) -> None:
            await bench.clock.sleep(10)
            assert context.resource == 7
            assert torn_down == []
            await bench.note(context)

        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.advance(1)
            context.shutdown()
            await loop
            advancing = asyncio.create_task(bench.advance(20))
        await advancing
        assert bench.times == [11]
        assert torn_down == [11]
        record = await bench.record(tick)
        assert record is not None
        assert record.state == "scheduled"

    run(main())


def test_a_body_that_is_cancelled_by_itself_does_not_stop_a_loop_that_runs_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench(executor_cls=SynchronousExecutor)

        @bench.app.task(interval=seconds(1), lease_duration=seconds(3))
        async def tick(context: Context) -> None:
            await bench.note(context)
            if len(bench.runs) == 1:
                raise asyncio.CancelledError

        async with bench.running():
            await bench.advance(5)
        assert bench.planned[:3] == [1, 1, 2]
        assert bench.times[:3] == [1, 4, 4]
        assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == [
            "Task tick failed in attempt 1 of the run planned for 2026-01-05T12:00:01+00:00: it is "
            "retried when its lease ends at 2026-01-05T12:00:04+00:00"
        ]

    run(main())


# Fixtures.


def test_what_a_fixture_yields_is_an_attribute_of_every_context() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []

        @bench.app.fixture()
        async def database(context: PyncetteContext) -> AsyncIterator[str]:
            assert isinstance(context, PyncetteContext)
            yield "the database"

        @bench.app.task(interval=seconds(1))
        async def tick(context: Context) -> None:
            seen.append(context.database)

        async with bench.running():
            await bench.advance(2)
        assert seen == ["the database"] * 2

    run(main())


def test_fixtures_are_set_up_in_order_and_torn_down_in_reverse_after_the_last_task() -> None:
    async def main() -> None:
        bench = Bench()
        events: list[str] = []

        def fixture(name: str) -> Callable[[PyncetteContext], AsyncIterator[None]]:
            async def opened(context: PyncetteContext) -> AsyncIterator[None]:
                events.append(f"{name} opens")
                yield
                events.append(f"{name} closes")

            return opened

        bench.app.use_fixture("one", fixture("one"))
        bench.app.fixture("two")(fixture("two"))

        @bench.app.task(interval=seconds(1))
        async def slow(context: Context) -> None:
            events.append("task begins")
            await bench.clock.sleep(30)
            events.append("task ends")

        async with bench.app.create() as context:
            assert events == ["one opens", "two opens"]
            loop = asyncio.create_task(context.run())
            await bench.advance(1)
            context.shutdown()
            await loop
            events.append("the block ends")
            advancing = asyncio.create_task(bench.advance(60))
        await advancing
        assert events[2:] == [
            "task begins",
            "the block ends",
            "task ends",
            "two closes",
            "one closes",
        ]

    run(main())


def test_a_fixture_may_use_the_context_to_schedule_and_to_add_items() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)

        @bench.app.fixture()
        async def starter(context: PyncetteContext) -> AsyncIterator[int]:
            context.add_to_context("extra", 5)
            await context.schedule_task(job, "x", execute_at=START)
            yield 1
            assert await context.get_task(job, "x") is None

        async with bench.running():
            pass
        assert len(bench.runs) == 1

    run(main())


def test_a_fixture_that_fails_to_open_closes_those_before_it() -> None:
    async def main() -> None:
        bench = Bench()
        closed: list[str] = []

        @bench.app.fixture()
        async def first(context: PyncetteContext) -> AsyncIterator[None]:
            try:
                yield
            finally:
                closed.append("first")

        @bench.app.fixture()
        async def second(context: PyncetteContext) -> AsyncIterator[None]:
            raise RuntimeError("no second")
            yield

        with pytest.raises(RuntimeError, match="no second"):
            async with bench.app.create():
                pass
        assert closed == ["first"]

    run(main())


def test_a_coroutine_function_as_fixture_is_refused_when_the_context_opens() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.fixture()  # type: ignore[type-var]
        async def plain(context: PyncetteContext) -> int:
            return 5

        with pytest.raises(TypeError, match=r"plain.*async generator"):
            async with bench.app.create():
                pass

    run(main())


def test_a_function_that_yields_nothing_awaitable_is_refused_when_the_context_opens() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.use_fixture("plain", lambda context: 5)  # type: ignore[arg-type, return-value]
        with pytest.raises(TypeError, match="async generator"):
            async with bench.app.create():
                pass

    run(main())


def test_decorators_return_what_they_were_given() -> None:
    app = Pyncette()

    async def fixture(context: PyncetteContext) -> AsyncIterator[int]:
        yield 1

    async def middleware(context: Context, next: Any) -> None:  # noqa: A002
        await next()

    assert app.fixture()(fixture) is fixture
    assert app.middleware(middleware) is middleware


@pytest.mark.parametrize(
    "name",
    [
        "app_context",
        "task",
        "scheduled_at",
        "args",
        "heartbeat",
        "__class__",
        "__dict__",
        "__init__",
        "__getattr__",
        "_execution",
    ],
)
def test_a_reserved_name_is_refused(name: str) -> None:
    async def main() -> None:
        app = Pyncette(MemoryRepository())
        with pytest.raises(ValueError, match=name):
            app.use_fixture(name, no_fixture)
        with pytest.raises(ValueError, match=name):
            app.fixture(name)(no_fixture)
        with pytest.raises(ValueError, match=name):
            async with app.create({name: 1}):
                pass
        async with app.create() as context:
            with pytest.raises(ValueError, match=name):
                context.add_to_context(name, 1)

    run(main())


async def no_fixture(context: PyncetteContext) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    "name", ["_private", "attempt", "deadline", "execution_id", "fencing_token", "name", "über"]
)
def test_any_other_name_may_be_that_of_an_item(name: str) -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []

        @bench.app.task(interval=seconds(1))
        async def tick(context: Context) -> None:
            seen.append(getattr(context, name))

        async with bench.running(context_items={name: 5}):
            await bench.advance(1)
        assert seen == [5]

    run(main())


def test_a_name_that_is_taken_is_refused() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.use_fixture("thing", no_fixture)
        with pytest.raises(ValueError, match="'thing'"):
            bench.app.use_fixture("thing", no_fixture)
        with pytest.raises(ValueError, match="'thing'"):
            async with bench.app.create({"thing": 1}):
                pass
        async with bench.app.create({"item": 1}) as context:
            for name in ("thing", "item"):
                with pytest.raises(ValueError, match=f"'{name}'"):
                    context.add_to_context(name, 2)
            context.add_to_context("other", 2)
            with pytest.raises(ValueError, match="'other'"):
                context.add_to_context("other", 2)

    run(main())


@pytest.mark.parametrize("name", ["", None])
def test_a_fixture_without_a_name_is_refused(name: Any) -> None:
    class Nameless:
        def __call__(self, context: PyncetteContext) -> AsyncIterator[None]:
            return no_fixture(context)

    with pytest.raises(ValueError, match=r"^Unable to determine name for the fixture$"):
        Pyncette().fixture(name)(Nameless())


def test_an_item_without_a_name_is_refused() -> None:
    async def main() -> None:
        async with Pyncette(MemoryRepository()).create() as context:
            for name in ("", None, 5):
                with pytest.raises(ValueError, match="name"):
                    context.add_to_context(name, 1)  # type: ignore[arg-type]

    run(main())


# Context items.


class Describing:
    """A value that behaves oddly as an attribute of a class."""

    def __get__(self, instance: object, owner: object) -> str:
        return "called as a descriptor"


@pytest.mark.parametrize(
    "value",
    [
        1,
        None,
        "text",
        [1],
        print,
        len,
        lambda: 5,
        no_body,
        str,
        Describing(),
        property(lambda s: 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_arrive_as_they_are_and_functions_are_not_bound(value: Any) -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []

        async def fixture(context: PyncetteContext) -> AsyncIterator[Any]:
            yield value

        bench.app.use_fixture("fixed", fixture)

        @bench.app.task(interval=seconds(1))
        async def tick(context: Context) -> None:
            seen.extend([context.fixed, context.item, context.added])

        async with bench.running(context_items={"item": value}) as context:
            context.add_to_context("added", value)
            await bench.advance(1)
        assert len(seen) == 3
        assert all(entry is value for entry in seen)

    run(main())


def test_items_of_one_context_do_not_show_in_another() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.app.create({"thing": 1}), bench.app.create({"thing": 2}):
            pass
        async with bench.app.create() as context:
            context.add_to_context("thing", 3)

    run(main())


def test_items_may_be_changed_on_one_context_without_showing_in_the_next() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []

        @bench.app.task(interval=seconds(1))
        async def tick(context: Context) -> None:
            seen.append((context.thing, getattr(context, "own", None)))
            context.thing = "changed"
            context.own = 1

        async with bench.running(context_items={"thing": "fresh"}):
            await bench.advance(2)
        assert seen == [("fresh", None)] * 2

    run(main())


# Middlewares.


def test_middlewares_wrap_every_execution_the_first_outermost() -> None:
    async def main() -> None:
        bench = Bench()
        events: list[str] = []

        @bench.app.middleware
        async def outer(context: Context, next: Any) -> None:  # noqa: A002
            events.append("outer in")
            context.number = 1
            await next()
            events.append("outer out")

        async def inner(context: Context, next: Any) -> None:  # noqa: A002
            events.append("inner in")
            context.number += 1
            await next()
            events.append("inner out")

        bench.app.use_middleware(inner)

        @bench.app.task(interval=seconds(1))
        async def tick(context: Context) -> None:
            events.append(f"body {context.number}")

        async with bench.running():
            await bench.advance(1)
        assert events == ["outer in", "inner in", "body 2", "inner out", "outer out"]

    run(main())


def test_a_middleware_sees_the_exception_of_the_body() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Exception] = []

        @bench.app.middleware
        async def watch(context: Context, next: Any) -> None:  # noqa: A002
            try:
                await next()
            except RuntimeError as error:
                seen.append(error)
                raise

        task = bench.app.task(name="tick", interval=1)(bench.fail)
        async with bench.running():
            await bench.advance(1)
        assert [str(error) for error in seen] == ["the body failed"]
        record = await bench.record(task)
        assert record is not None
        assert record.state == "running"

    run(main())


def test_a_run_whose_exception_is_swallowed_by_a_middleware_is_a_success() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.middleware
        async def swallow(context: Context, next: Any) -> None:  # noqa: A002
            with suppress(RuntimeError):
                await next()

        bench.app.task(name="tick", interval=1)(bench.fail)
        async with bench.running():
            await bench.advance(3)
        assert bench.planned == [1, 2, 3]

    run(main())


def test_a_middleware_that_fails_makes_the_run_fail() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.middleware
        async def refuse(context: Context, next: Any) -> None:  # noqa: A002
            raise RuntimeError("not this one")

        task = bench.app.task(name="tick", interval=1)(bench.note)
        async with bench.running():
            await bench.advance(1)
        assert bench.runs == []
        record = await bench.record(task)
        assert record is not None
        assert "not this one" in record.progress

    run(main())


def test_a_middleware_that_does_not_call_on_skips_the_body() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.middleware
        async def skip(context: Context, next: Any) -> None:  # noqa: A002
            pass

        bench.app.task(name="tick", interval=1)(bench.note)
        async with bench.running():
            await bench.advance(3)
        assert bench.runs == []

    run(main())


def test_virtual_time_is_what_tasks_see_as_the_clock_of_the_app() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []

        @bench.app.task(interval=seconds(1))
        async def tick(context: Context) -> None:
            seen.append(context.app_context.clock)

        async with bench.running() as context:
            await bench.advance(1)
            assert seen == [context.clock] == [bench.clock]
        assert isinstance(bench.clock, VirtualClock)

    run(main())


def test_a_timeout_of_the_factory_itself_is_passed_on() -> None:
    async def main() -> None:
        @asynccontextmanager
        async def factory(**configuration: Any) -> AsyncIterator[Any]:
            raise TimeoutError("no route")
            yield

        with pytest.raises(TimeoutError, match="no route"):
            async with Pyncette(factory).create():
                pass

    run(main())


@pytest.mark.parametrize("name", ["", "x" * 201, "a\0b", "\ud800", 5])
def test_a_worker_has_a_name_that_every_store_can_keep(name: Any) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="worker_name"):
            async with Pyncette(MemoryRepository(), worker_name=name).create():
                pass

    run(main())


def test_main_works_outside_the_main_thread_and_says_that_signals_do_not(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("USE_UVLOOP", raising=False)
    app = Pyncette(MemoryRepository())
    opened: list[PyncetteContext] = []

    @app.fixture()
    async def stops(app_context: PyncetteContext) -> AsyncIterator[None]:
        opened.append(app_context)
        app_context.shutdown()
        yield

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    thread = threading.Thread(target=app.main, name="worker")
    thread.start()
    thread.join()
    assert len(opened) == 1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    [message] = [message for message in caplog.messages if "signal" in message]
    assert "main() runs in thread 'worker'" in message
    assert "Call shutdown() of its context" in message


def test_an_app_that_is_sent_to_another_process_says_what_to_do_instead() -> None:
    app = Pyncette(MemoryRepository())
    for sent in (app, app.main):
        with pytest.raises(TypeError, match=r"cannot be pickled.*a function of a module"):
            pickle.dumps(sent)


def test_a_function_that_imports_the_app_runs_it_in_a_spawned_process(tmp_path: Path) -> None:
    (tmp_path / "my_app.py").write_text(
        "from pyncette import Pyncette\n"
        "app = Pyncette()\n"
        "@app.fixture()\n"
        "async def stops(app_context):\n"
        "    app_context.shutdown()\n"
        "    yield\n"
        "def work():\n"
        "    app.main()\n"
    )
    program = (
        "import multiprocessing, my_app\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=my_app.work)\n"
        "    process.start(); process.join(); print(process.exitcode)\n"
    )
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "program.py"], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["0"], done.stderr


def test_the_options_that_a_misspelt_one_is_compared_with_are_those_of_all_stores() -> None:
    factories = [
        importlib.import_module(f"pyncette.{store}").__dict__[f"{store}_repository"]
        for store in ("sqlite", "redis", "postgres", "mysql", "dynamodb")
    ]
    known = {
        name
        for factory in factories
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    assert set(KNOWN_OPTIONS) == known | {"batch_size", "concurrency_limit", "worker_name"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["This app was given no store"]),
        ({"url": "sqlite://"}, []),
        ({"sqlite_database": ":memory:"}, []),
        ({"repository_factory": sqlite_repository}, []),
        ({"repository_factory": MemoryRepository()}, []),
        ({"clock": VirtualClock()}, []),
    ],
    ids=["none", "url", "database", "factory", "memory", "moved clock"],
)
def test_a_worker_without_a_store_says_once_that_its_records_are_lost(
    options: dict[str, Any], words: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with Pyncette(**options).create() as context:
            assert caplog.messages == []
            await context.run_until_idle()
            await context.run_until_idle()

    caplog.set_level(logging.WARNING, "pyncette.context")
    asyncio.run(main())
    assert [message[:27] for message in caplog.messages if "no store" in message] == words


@pytest.mark.parametrize("mode", ExecutionMode)
def test_a_middleware_cannot_start_a_body_twice_that_runs_at_most_once(mode: ExecutionMode) -> None:
    async def main() -> None:
        bench = Bench()
        errors: list[BaseException] = []

        @bench.app.middleware
        async def twice(context: Context, following: Callable[[], Awaitable[None]]) -> None:
            await following()
            try:
                await following()
            except PyncetteException as error:
                errors.append(error)
                raise

        @bench.app.task(interval=seconds(10), execution_mode=mode)
        async def job(context: Context) -> None:
            await bench.note(context)

        async with bench.running():
            await bench.advance(25)
        once = mode is ExecutionMode.AT_MOST_ONCE
        assert bench.times == ([10, 20] if once else [10, 10, 20, 20])
        assert len(errors) == (2 if once else 0)
        assert all("has called next() a second time" in str(error) for error in errors)

    run(main())


def test_opening_an_app_in_a_wrong_way_is_told_in_words(recwarn: pytest.WarningsRecorder) -> None:
    app = Pyncette()
    opening: Any = app.create()

    async def awaits() -> None:
        await opening

    async def runs() -> None:
        app.main()

    with pytest.raises(TypeError, match=r"'async with app.create\(\) as context:'"):
        asyncio.run(awaits())
    with pytest.raises(TypeError, match="entered with 'async with'"), opening:
        pass
    with pytest.raises(RuntimeError, match="one runs here already, as in a notebook"):
        asyncio.run(runs())
    assert not recwarn.list


def test_options_of_another_store_than_that_of_the_url_are_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Pyncette(url="sqlite://", sqlite_table_name="mine", postgres_table_name="mine")
    [message] = caplog.messages
    assert message == (
        "The store of this app does not read postgres_table_name: pass options of sqlite only, "
        "which url names, or remove it"
    )
