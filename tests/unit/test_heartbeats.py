"""Automatic heartbeats: they extend the lease while a task runs, without code in the task."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from tests.faulty_store import Fail
from tests.support import Bench, after, logged, run, seconds

from pyncette import Context, ExecutionMode, FailureMode, Heartbeat
from pyncette.engine.rules import Wanted, created
from pyncette.executor import SynchronousExecutor
from pyncette.memory import MemoryRepository
from pyncette.schedule import At
from pyncette.store import Write
from pyncette.store.record import ANY, DELETE
from pyncette.task import Task

pytestmark = pytest.mark.every_poll


@pytest.fixture(params=[False, True], ids=["", "synchronous"])
def synchronous(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"executor_cls": SynchronousExecutor} if request.param else {}


def long(bench: Bench, task_s: float) -> Callable[[Context], Awaitable[None]]:
    """A body that takes so long when it runs for the first time."""

    async def body(context: Context) -> None:
        await bench.note(context)
        if str(context.task) not in [each.name for each in bench.runs[:-1]]:
            await bench.clock.sleep(task_s)

    return body


@pytest.mark.parametrize("heartbeat", [True, Heartbeat(every=seconds(25))])
def test_a_task_that_takes_longer_than_its_lease_runs_once(
    heartbeat: bool | Heartbeat, synchronous: dict[str, Any]
) -> None:
    async def main() -> None:
        bench = Bench(**synchronous)
        job = bench.app.dynamic_task(name="job", lease_duration=seconds(30), heartbeat=heartbeat)(
            long(bench, 500)
        )
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=after(0))
            await bench.advance(600)
        assert bench.times == [0]
        assert await bench.record(job, "a") is None

    run(main())


def test_all_tasks_of_an_app_may_have_them_but_those_that_do_not_want_them() -> None:
    async def main() -> None:
        bench = Bench(heartbeat=True)
        options: dict[str, Any] = {"lease_duration": seconds(30)}
        job = bench.app.dynamic_task(name="job", **options)(long(bench, 50))
        other = bench.app.dynamic_task(name="other", heartbeat=False, **options)(long(bench, 50))
        once = bench.app.dynamic_task(
            name="once", execution_mode=ExecutionMode.AT_MOST_ONCE, **options
        )(long(bench, 50))
        async with bench.running() as context:
            for task in (job, other, once):
                await context.schedule_task(task, "a", execute_at=after(0))
            await bench.advance(100)
        assert [each.name for each in bench.runs] != []
        assert [each.at for each in bench.runs if each.name == "job:a"] == [0]
        assert [each.at for each in bench.runs if each.name == "once:a"] == [0]
        assert [each.at for each in bench.runs if each.name == "other:a"][:2] == [0, 30]

    run(main())


def test_a_lease_that_runs_while_bodies_wait_for_a_semaphore_is_kept() -> None:
    """40 runs, five at a time: without heartbeats, those that wait are run once more."""

    async def bodies(heartbeat: bool) -> int:
        bench = Bench()
        slots = asyncio.Semaphore(5)

        async def body(context: Context) -> None:
            await bench.note(context)
            async with slots:
                await bench.clock.sleep(10 if len(bench.runs) < 60 else 0)

        job = bench.app.dynamic_task(name="job", lease_duration=seconds(30), heartbeat=heartbeat)(
            body
        )
        async with bench.running() as context:
            for number in range(40):
                await context.schedule_task(job, f"{number}", execute_at=after(0))
            await bench.advance(1_000)
        return len(bench.runs)

    async def main() -> None:
        assert await bodies(True) == 40
        assert await bodies(False) > 60

    run(main())


def test_they_begin_before_the_middlewares_that_may_wait() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.middleware
        async def waits(context: Context, following: Callable[[], Awaitable[None]]) -> None:
            await bench.clock.sleep(100)
            await following()

        job = bench.app.dynamic_task(name="job", lease_duration=seconds(30), heartbeat=True)(
            bench.note
        )
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=after(0))
            await bench.advance(200)
        assert bench.times == [100]

    run(main())


async def take_away(bench: Bench, task: Task, how: str) -> None:
    """What another worker, or a user, does to the record of a run."""
    async with bench.store() as store:
        record = await bench.record(task, "a")
        assert record is not None
        put = created(
            Wanted(At(after(10_000)), "1 {}", "new", record[:2]), bench.clock.microseconds()
        )
        change = DELETE if how == "removed" else put
        await store.write([Write(record.group, "a", change, ANY)], bench.clock.microseconds())


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_body_whose_lease_is_lost_goes_on_and_is_not_recorded(
    how: str, caplog: pytest.LogCaptureFixture, synchronous: dict[str, Any]
) -> None:
    async def main() -> None:
        bench = Bench(**synchronous)
        ended: list[float] = []

        async def body(context: Context) -> None:
            await bench.clock.sleep(95)
            ended.append(bench.clock.monotonic())

        job = bench.app.dynamic_task(name="job", lease_duration=seconds(30), heartbeat=True)(body)
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=after(0))
            await bench.advance(5)
            await take_away(bench, job, how)
            await bench.advance(100)
        assert ended == [95]

    run(main())
    assert logged(caplog, "'job:a' was lost", "it goes on")
    assert logged(caplog, "job:a lost its lease: its outcome is not recorded")


@pytest.mark.parametrize("swallows", [False, True])
def test_a_body_whose_lease_is_lost_may_be_cancelled(
    swallows: bool, caplog: pytest.LogCaptureFixture, synchronous: dict[str, Any]
) -> None:
    async def main() -> None:
        bench = Bench(**synchronous)
        ended: list[float] = []

        async def body(context: Context) -> None:
            try:
                await bench.clock.sleep(95)
            except asyncio.CancelledError:
                ended.append(bench.clock.monotonic())
                if not swallows:
                    raise

        options: dict[str, Any] = {"heartbeat": Heartbeat(cancel_on_lease_lost=True)}
        job = bench.app.dynamic_task(name="job", lease_duration=seconds(30), **options)(body)
        tick = bench.app.task(interval=seconds(50), name="tick")(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=after(0))
            await bench.advance(5)
            await take_away(bench, job, "removed")
            await bench.advance(100)
            assert not [task for task in asyncio.all_tasks() if task.cancelling()]
        assert ended == [10]
        assert [each.at for each in bench.runs if each.name == str(tick)] == [50, 100]

    run(main())
    assert logged(caplog, "'job:a' was lost", "it is cancelled")
    assert not logged(caplog, "job:a failed")


def test_a_body_that_removes_its_own_record_is_not_cancelled_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        ended: list[float] = []

        async def body(context: Context) -> None:
            await context.app_context.unschedule_task(context.task)
            await bench.clock.sleep(95)
            ended.append(bench.clock.monotonic())

        options: dict[str, Any] = {"heartbeat": Heartbeat(cancel_on_lease_lost=True)}
        job = bench.app.dynamic_task(name="job", lease_duration=seconds(30), **options)(body)
        async with bench.running() as context:
            await context.schedule_task(job, "a", interval=seconds(10))
            await bench.advance(200)
        assert ended == [105]

    run(main())
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_heartbeat_that_fails_is_logged_and_the_next_one_is_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", lease_duration=seconds(30), heartbeat=True)(
            long(bench, 100)
        )
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=after(0))
            await bench.advance(5)
            bench.faults.next("write", Fail())
            await bench.advance(200)
        assert bench.times == [0]

    run(main())
    assert logged(caplog, "A heartbeat of job:a failed, the next one is in 10 s")


def test_nothing_beats_when_nothing_runs() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", lease_duration=seconds(30), heartbeat=True)(
            bench.note
        )
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=after(0))
            await bench.advance(100)
            names = {task.get_name() for task in asyncio.all_tasks()}
            assert "pyncette heartbeats" not in names
        assert len(bench.runs) == 1

    run(main())


def test_a_task_with_a_shorter_lease_begins_while_another_beats_slowly() -> None:
    async def main() -> None:
        bench = Bench()
        slow = bench.app.dynamic_task(name="slow", lease_duration=seconds(300), heartbeat=True)(
            long(bench, 500)
        )
        quick = bench.app.dynamic_task(name="quick", lease_duration=seconds(3), heartbeat=True)(
            long(bench, 50)
        )
        async with bench.running() as context:
            await context.schedule_task(slow, "a", execute_at=after(0))
            await bench.advance(10)
            await context.schedule_task(quick, "a", execute_at=after(10))
            await bench.advance(600)
        assert bench.times == [0, 10]

    run(main())


def test_a_failure_is_settled_from_the_extended_lease() -> None:
    async def main() -> None:
        bench = Bench()

        async def body(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(50)
            if len(bench.runs) == 1:
                raise ValueError("no")

        job = bench.app.dynamic_task(
            name="job",
            lease_duration=seconds(30),
            heartbeat=True,
            failure_mode=FailureMode.UNLOCK,
        )(body)
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=after(0))
            await bench.advance(200)
        assert bench.times == [0, 51]

    run(main())


def test_heartbeats_of_the_app_that_come_too_late_for_a_task_are_refused_when_it_opens() -> None:
    async def main() -> None:
        bench = Bench(heartbeat=Heartbeat(every=timedelta(minutes=2)))
        bench.app.dynamic_task(name="job", lease_duration=timedelta(hours=1))(bench.note)
        async with bench.app.create():
            pass
        bench.app.dynamic_task(name="short", lease_duration=seconds(30))(bench.note)
        with pytest.raises(ValueError, match="must be shorter than lease_duration"):
            bench.app.create()

    run(main())


def test_two_workers_run_a_long_task_once() -> None:
    async def main() -> None:
        repository = MemoryRepository()
        bench = Bench(repository, heartbeat=True)
        other = bench.another_app(worker_name="other")
        for app in (bench.app, other):
            task = app.task(name="job", interval=seconds(100), lease_duration=seconds(10))(
                long(bench, 60)
            )
        async with bench.running(), bench.running(other):
            await bench.advance(250)
        assert bench.planned == [100, 200]
        assert await bench.record(task) is not None

    run(main())
