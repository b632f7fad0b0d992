"""Instances that are moved to another number of partitions, while workers run and users call."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any, Final

import pytest
from tests.faulty_store import AnswerWrites, Fail, Fault, LoseAnswer
from tests.support import START, Bench, after, logged, micros, run, seconds

from pyncette import Context, Instance, OnExisting, Pyncette, PyncetteContext, Where
from pyncette.bulk import RebalanceResult
from pyncette.engine.moves import Mark, arriving, in_transit, marked
from pyncette.errors import (
    PyncetteException,
    TaskExistsError,
    TaskLockedException,
    TaskNotFoundError,
)
from pyncette.memory import MemoryRepository
from pyncette.model import ExecutionMode, TaskCount, TaskState
from pyncette.store import Failed, Write, scan_all
from pyncette.store.record import ABSENT, ANY, CONTROL_GROUP, DELETE, Put, Record, load_args
from pyncette.task import PartitionedTask

pytestmark = pytest.mark.every_poll

WAITS: Final = 200
"""Seconds that a move may take, on a clock that is moved."""


def numbered(count: int, name: str) -> int:
    """A partition that a test can tell: names end with a number."""
    return int("".join(filter(str.isdigit, name)) or 0) % count


def partitioned(
    bench: Bench, count: int, app: Pyncette | None = None, **options: Any
) -> PartitionedTask:
    return (app or bench.app).partitioned_task(count, numbered, name="job", **options)(bench.note)


async def finished(bench: Bench, call: Coroutine[Any, Any, Any] | asyncio.Task[Any]) -> Any:
    """Moves the clock until a call has returned."""
    task = asyncio.ensure_future(call)
    for _ in range(WAITS):
        if task.done():
            break
        await bench.advance(1)
    return await task


async def rebalanced(
    bench: Bench, context: PyncetteContext, job: PartitionedTask, count: int
) -> RebalanceResult:
    result: RebalanceResult = await finished(bench, context.rebalance(job, count))
    return result


async def contents(bench: Bench, job: PartitionedTask) -> dict[str, Record]:
    """All records of a template, by group and key."""
    async with bench.store() as store:
        return {
            f"{record.group} {record.key}": record
            for number in range(20)
            async for record in scan_all(store, f"{job.name}:{number}")
        }


async def fact(bench: Bench) -> dict[str, Any]:
    async with bench.store() as store:
        [record] = await store.get([(CONTROL_GROUP, "partitions:job")])
        assert record is not None
        return load_args(record.args)


def without_place(record: Record) -> tuple[Any, ...]:
    """What must not change when a record moves."""
    return (record.key, record.due_at, record.token, *record[5:])


STATES: Final[dict[str, dict[str, Any]]] = {
    "scheduled": {"planned": 1_000},
    "overdue": {"planned": -10},
    "retrying": {"planned": -10, "due": 1_000, "state": "retrying", "token": "worker:1:1"},
    "paused": {"planned": 1_000, "state": "paused", "token": "worker:1:1"},
    "parked": {"state": "parked", "token": "worker:1:1"},
    "crashed": {"planned": -99, "due": -60, "state": "running", "unfinished_attempts": 2},
    "failed under its lease": {"planned": -9, "due": 1_000, "state": "running"},
    "unreadable": {"planned": 1_000, "progress": "nonsense", "state": "parked"},
    "of a later release": {"planned": 1_000, "schedule": "9 later", "progress": "9 later"},
    "with arguments": {"planned": 1_000, "args": '1 {"text":"snake \\ud83d\\udc0d"}'},
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("counts", [(4, 8), (8, 3), (1, 2), (4, 4)])
def test_a_record_moves_with_everything_that_it_has(state: str, counts: tuple[int, int]) -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, counts[0])
        async with bench.app.create() as context:
            for number in range(20):
                await bench.plant(job, f"x{number}", **STATES[state])
            before = await contents(bench, job)
            result = await rebalanced(bench, context, job, counts[1])
            after_it = await contents(bench, job)
        assert sorted(map(without_place, after_it.values())) == sorted(
            map(without_place, before.values())
        )
        assert all(record.group == job.locate(record.key) for record in after_it.values())
        elsewhere = sum(n % counts[0] != n % counts[1] for n in range(20))
        assert result == RebalanceResult(counts[1], elsewhere, 0)
        assert job.partition_count == counts[1]
        assert len(job.groups()) == len(job.get_partitions()) == counts[1]
        for key, record in after_it.items():
            assert counts[0] == counts[1] or record.version > 0, key

    run(main())


def test_the_fencing_token_grows_when_an_instance_moves() -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        async with bench.app.create() as context:
            await bench.plant(job, "x5", planned=1_000)
            async with bench.store() as store:
                for _ in range(50):
                    [record] = await store.get([("job:1", "x5")])
                    assert record is not None
                    put = (record.due_at, record.state, record.token, *record[6:])
                    await store.write(
                        [Write("job:1", "x5", type(arriving(record))(*put), ANY)], micros(9_000)
                    )
                [record] = await store.get([("job:1", "x5")])
            await rebalanced(bench, context, job, 8)
            moved = await bench.record(job, "x5")
            assert record is not None
            assert moved is not None
            assert moved.group == "job:5"
            assert moved.version > record.version

    run(main())


def test_a_move_goes_through_its_stages() -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x5", execute_at=after(1_000))
            seen: list[dict[str, Any]] = []
            task = asyncio.create_task(context.rebalance(job, 8))
            while not task.done():
                if (now := await fact(bench)) not in seen:
                    seen.append(now)
                await bench.advance(1)
            await task
        assert seen == [
            {"partition_count": 4},
            {"partition_count": 4, "to": 8},
            {"partition_count": 8, "from": [4]},
            {"partition_count": 8, "was": [4]},
        ]

    run(main())


# Interrupted.


def crash(number: int, fault: Callable[[Exception], Fault]) -> Callable[[Bench], None]:
    """Ends the process at its n-th write of a record."""

    def plan(bench: Bench) -> None:
        count = 0

        def matches(batch: list[Write], *rest: Any) -> bool:
            nonlocal count
            count += any(write.group.startswith("job:") for write in batch)
            return count == number

        bench.faults.next("write", fault(RuntimeError("the process has died")), matches=matches)

    return plan


CRASHES: Final = {
    f"{fault.__name__} {number}": crash(number, fault)
    for number in range(1, 5)
    for fault in (Fail, LoseAnswer)
}


@pytest.mark.parametrize("at", CRASHES)
@pytest.mark.parametrize("counts", [(4, 8), (8, 3)])
def test_a_move_that_was_interrupted_goes_on_when_it_is_called_again(
    at: str, counts: tuple[int, int]
) -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, counts[0])
        async with bench.app.create() as context:
            for number in range(12):
                await context.schedule_task(job, f"x{number}", interval=1_000)
            before = sorted(map(without_place, (await contents(bench, job)).values()))
            CRASHES[at](bench)
            with pytest.raises(RuntimeError, match="the process has died"):
                await rebalanced(bench, context, job, counts[1])
        # Another process, which declares the number of before.
        other = bench.another_app()
        job = partitioned(bench, counts[0], other)
        async with other.create() as context:
            names = [state.task.name async for state in context.iter_tasks(job)]
            assert len(names) == len(set(names)) == 12
            # What is on its way is neither counted twice nor left out.
            assert await context.count_tasks(job) == TaskCount(12, True)
            assert await context.count_tasks(job, limit=11) == TaskCount(11, False)
            for number in range(12):
                assert await context.get_task(job, f"x{number}") is not None
            await rebalanced(bench, context, job, counts[1])
            assert sorted(map(without_place, (await contents(bench, job)).values())) == before
            assert (await fact(bench))["partition_count"] == counts[1]

    run(main())


@pytest.mark.parametrize("stage", ["to", "from", "was"])
def test_a_move_that_was_cancelled_in_a_stage_goes_on(stage: str) -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        async with bench.app.create() as context:
            for number in range(8):
                await context.schedule_task(job, f"x{number}", interval=1_000)
            task = asyncio.create_task(context.rebalance(job, 8))
            while stage not in await fact(bench):
                await bench.advance(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with (
                pytest.raises(PyncetteException, match=r"rebalance\(task, 8\)")
                if (stage != "was")
                else pytest.raises(ValueError, match="partition_count")
            ):
                await context.rebalance(job, 5 if stage != "was" else 0)
            await rebalanced(bench, context, job, 8)
            assert await fact(bench) == {"partition_count": 8, "was": [4]}
            assert len(await contents(bench, job)) == 8

    run(main())


def test_a_move_that_is_only_announced_can_be_withdrawn() -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x5", interval=1_000)
            task = asyncio.create_task(context.rebalance(job, 8))
            while "to" not in await fact(bench):
                await bench.advance(1)
            assert job.layout.others == (8,)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await rebalanced(bench, context, job, 4)
            assert await fact(bench) == {"partition_count": 4}
            assert list(await contents(bench, job)) == ["job:1 x5"]

    run(main())


# Calls, wherever the instance is on its way.


async def left_at(bench: Bench, at: str, name: str = "x5", **options: Any) -> None:
    """Leaves an instance on its way, by a process that dies at this point."""
    job = partitioned(bench, 4, **options)
    async with bench.app.create() as context:
        await context.schedule_task(job, name, interval=1_000, was=1)
        CRASHES[at](bench)
        with pytest.raises(RuntimeError, match="the process has died"):
            await rebalanced(bench, context, job, 8)


async def live(bench: Bench, job: PartitionedTask) -> list[Record]:
    return [record for record in (await contents(bench, job)).values() if not in_transit(record)]


def replaced_task(state: TaskState | None, job: PartitionedTask) -> TaskState | None:
    """A state that can be compared with another one."""
    return None if state is None else dataclasses.replace(state, task=job)


async def schedule(context: PyncetteContext, job: PartitionedTask, **options: Any) -> None:
    await context.schedule_task(job, "x5", interval=500, now=2, **options)


async def schedule_many(context: PyncetteContext, job: PartitionedTask) -> None:
    await context.schedule_tasks(
        job, [Instance("x5", interval=500, now=2)], on_existing=OnExisting.REPLACE
    )


async def sync(context: PyncetteContext, job: PartitionedTask) -> None:
    await context.sync_tasks(job, [Instance("x5", interval=500, now=2)])


CALLS: Final[dict[str, tuple[Callable[..., Any], dict[str, Any] | None]]] = {
    "sooner": (schedule, {"now": 2}),
    "replace": (lambda c, j: schedule(c, j, on_existing=OnExisting.REPLACE), {"now": 2}),
    "keep": (lambda c, j: schedule(c, j, on_existing=OnExisting.KEEP), {"was": 1}),
    "force": (lambda c, j: schedule(c, j, force=True), {"now": 2}),
    "many": (schedule_many, {"now": 2}),
    "sync": (sync, {"now": 2}),
    "pause": (lambda c, j: c.pause(j, "x5"), {"was": 1}),
    "resume": (lambda c, j: c.resume(j, "x5"), {"was": 1}),
    "trigger": (lambda c, j: c.trigger(j, "x5"), {"was": 1}),
    "trigger all": (lambda c, j: c.trigger(j), {"was": 1}),
    "drop parked": (lambda c, j: c.drop_parked(j, "x5"), {"was": 1}),
    "retry parked": (lambda c, j: c.retry_parked(j, "x5"), {"was": 1}),
    "unschedule": (lambda c, j: c.unschedule_task(j, "x5"), None),
    "unschedule many": (lambda c, j: c.unschedule_tasks(j, ["x5"]), None),
    "unschedule where": (lambda c, j: c.unschedule_tasks(j, where=Where()), None),
    "sync away": (lambda c, j: c.sync_tasks(j, [], allow_empty=True), None),
}


@pytest.mark.parametrize("at", CRASHES)
@pytest.mark.parametrize("call", CALLS)
def test_a_call_finds_an_instance_on_its_way(at: str, call: str) -> None:
    async def main() -> None:
        bench = Bench()
        await left_at(bench, at)
        other = bench.another_app()
        job = partitioned(bench, 4, other)
        function, args = CALLS[call]
        async with other.create() as context:
            state = await context.get_task(job, "x5")
            assert state is not None
            assert state.task.extra_args == {"was": 1}
            assert len(await live(bench, job)) <= 1
            await function(context, job)
            state = await context.get_task(job, "x5")
            found = [state.task.name async for state in context.iter_tasks(job)]
            if args is None:
                assert state is None
                assert found == []
                assert await live(bench, job) == []
            else:
                assert state is not None
                assert state.task.extra_args == args
                assert set(found) <= {"x5"}
                assert len(await live(bench, job)) <= 1
            await rebalanced(bench, context, job, 8)
            then = await context.get_task(job, "x5")
            assert replaced_task(then, job) == replaced_task(state, job)
            assert len(await contents(bench, job)) == (args is not None)

    run(main())


@pytest.mark.parametrize("at", CRASHES)
def test_an_instance_on_its_way_exists(at: str) -> None:
    async def main() -> None:
        bench = Bench()
        await left_at(bench, at)
        other = bench.another_app()
        job = partitioned(bench, 4, other)
        async with other.create() as context:
            with pytest.raises(TaskExistsError):
                await schedule(context, job, on_existing=OnExisting.RAISE)
            assert await context.preview(job, 1, "x5")
            result = await context.sync_tasks(
                job, [Instance("x5", interval=1_000, was=1)], dry_run=True
            )
            assert result.removed == result.created == result.updated == 0

    run(main())


def test_a_new_instance_is_created_at_its_new_place_while_others_move() -> None:
    async def main() -> None:
        bench = Bench()
        await left_at(bench, "Fail 1")
        other = bench.another_app()
        job = partitioned(bench, 4, other)
        async with other.create() as context:
            await context.schedule_task(job, "x6", interval=500)
            await context.schedule_tasks(job, [Instance("x7", interval=500)])
            assert sorted(record.group for record in await live(bench, job)) == [
                "job:1",
                "job:6",
                "job:7",
            ]
            # A mark keeps processes that know less from creating it at the old place.
            assert set(await contents(bench, job)) >= {"job:2 x6", "job:3 x7"}
            await rebalanced(bench, context, job, 8)
            assert sorted(await contents(bench, job)) == ["job:5 x5", "job:6 x6", "job:7 x7"]

    run(main())


def test_a_process_that_knows_only_the_announcement_finds_what_is_created_at_the_new_place() -> (
    None
):
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        other = bench.another_app()
        late = partitioned(bench, 4, other)
        async with bench.app.create() as context, other.create() as behind:
            task = asyncio.create_task(context.rebalance(job, 8))
            while "to" not in await fact(bench):
                await bench.advance(0.5)
            await behind.get_task(late, "x1")
            while "from" not in await fact(bench):
                await bench.advance(0.5)
                await behind.get_task(late, "x1")
            assert (job.layout.moving, late.layout.moving) == (True, False)
            await context.schedule_task(job, "x5", interval=1_000, by="first")
            assert late.layout.moving is False
            with pytest.raises(TaskExistsError):
                await behind.schedule_task(late, "x5", interval=1_000, on_existing=OnExisting.RAISE)
            await context.schedule_task(job, "x7", interval=1_000)
            await context.unschedule_task(job, "x7")
            assert late.layout.moving is False
            await behind.schedule_task(late, "x7", interval=1_000)
            assert late.layout.moving is True  # the mark at the old place made it ask
            assert {record.group for record in await live(bench, job)} == {"job:5", "job:7"}
            # The other way round: first the process that knows less.
            late.layout = late.layout._replace(partition_count=4, others=(8,), moving=False)
            await behind.schedule_task(late, "x6", interval=1_000)
            with pytest.raises(TaskExistsError):
                await context.schedule_task(job, "x6", interval=1_000, on_existing=OnExisting.RAISE)
            await finished(bench, task)

    run(main())


def test_a_copy_that_arrives_after_everything_is_over_does_not_run_again() -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        async with bench.running() as context:
            await context.schedule_task(job, "x5", execute_at=after(100))
            old = await bench.record(job, "x5")
            assert old is not None
            await rebalanced(bench, context, job, 8)
            await bench.advance(100)
            assert len(bench.runs) == 1
            async with bench.store() as store:
                await store.write([Write("job:5", "x5", arriving(old), ABSENT)], micros(0))
            await bench.advance(100)
            assert len(bench.runs) == 1
            assert await context.get_task(job, "x5") is None
            assert [state async for state in context.iter_tasks(job)] == []
            assert (await context.list_tasks(job)).tasks == []
            await context.schedule_task(job, "x5", execute_at=after(500))
            await bench.advance(500)
            assert len(bench.runs) == 2

    run(main())


def test_what_a_process_scheduled_late_at_the_old_place_is_granted_at_the_new_one() -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x5", execute_at=after(5_000), by="first")
            await rebalanced(bench, context, job, 8)
            # As a process would that slept through all of it.
            sleeper = Bench(bench.repository)
            asleep = partitioned(sleeper, 4)
            await sleeper.plant(asleep, "x5", planned=3_000, args='1 {"by":"late"}')
            await sleeper.plant(asleep, "x6", planned=3_000)
            result = await rebalanced(bench, context, job, 8)
            assert result.moved == 1
            assert sorted(await contents(bench, job)) == ["job:5 x5", "job:6 x6"]
            state = await context.get_task(job, "x5")
            assert state is not None
            assert state.scheduled_at == after(3_000)
            assert state.task.extra_args == {"by": "late"}

    run(main())


def test_a_move_tells_what_it_does_from_its_first_moment() -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        told: list[tuple[float, str, int]] = []

        def tell(so_far: RebalanceResult) -> None:
            told.append((bench.clock.monotonic(), so_far.stage, so_far.moved))

        async with bench.running() as context:
            await context.schedule_task(job, "x5", execute_at=after(1_000))
            result = await finished(bench, context.rebalance(job, 8, tell))
        assert result == RebalanceResult(8, 1, 0, "done")
        times = [0.0, *(time for time, _, _ in told)]
        assert max(later - sooner for sooner, later in pairwise(times)) <= 6
        assert list(dict.fromkeys(stage for _, stage, _ in told)) == [
            "announcing",
            "moving",
            "ending",
        ]
        assert {moved for _, stage, moved in told if stage == "ending"} == {1}

    run(main())


def test_what_came_late_into_a_partition_that_is_gone_is_said_when_an_app_is_opened(
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = ("lie in the group 'job:5'", "no worker runs them", "rebalance(task, 3)")

    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 8)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x5", interval=1_000)
            await context.schedule_task(job, "x1", interval=1_000)
            [late] = [
                record for record in (await contents(bench, job)).values() if "5" in record.key
            ]
            await rebalanced(bench, context, job, 3)
        other = bench.another_app()
        partitioned(bench, 3, other)
        async with other.create():
            assert not logged(caplog, "lie in the group")
        # A process that was frozen during the whole move goes on.
        async with bench.store() as store:
            put = Put(late.due_at, late.state, *late[4:5], 0, *late[7:])
            await store.write([Write("job:5", "x9", put, ABSENT)], micros(0))
        other = bench.another_app()
        job = partitioned(bench, 3, other)
        async with other.create() as context:
            assert logged(caplog, *words)
            assert await context.get_task(job, "x9") is None
            assert (await rebalanced(bench, context, job, 3)).moved == 1
            assert await context.get_task(job, "x9") is not None
        caplog.clear()
        other = bench.another_app()
        partitioned(bench, 3, other)
        async with other.create():
            assert not logged(caplog, "lie in the group")

    run(main())


# Runs.


def test_a_running_instance_moves_when_its_run_has_ended() -> None:
    async def main() -> None:
        bench = Bench()
        ended = asyncio.Event()
        told: list[RebalanceResult] = []

        async def body(context: Context) -> None:
            await bench.note(context)
            for _ in range(8):
                await bench.clock.sleep(20)
                await context.heartbeat()
            ended.set()

        job = bench.app.partitioned_task(4, numbered, name="job")(body)
        async with bench.running() as context:
            await context.schedule_task(job, "x5", execute_at=after(1))
            await bench.advance(2)
            call = context.rebalance(job, 8, told.append)
            result = await finished(bench, call)
            assert ended.is_set()
            assert max(step.waiting for step in told) == 1
            assert result.waiting == 0
            assert await contents(bench, job) == {}
        assert len(bench.runs) == 1

    run(main())


@pytest.mark.parametrize("mode", ExecutionMode)
@pytest.mark.parametrize("counts", [(4, 8), (8, 3)])
def test_every_run_happens_once_while_instances_move_under_two_workers(
    counts: tuple[int, int], mode: ExecutionMode
) -> None:
    async def main() -> None:
        bench = Bench()
        apps = [bench.app, bench.another_app(worker_name="other")]
        jobs = [partitioned(bench, counts[0], app, execution_mode=mode) for app in apps]
        async with bench.running(apps[0]) as context, bench.running(apps[1]):
            for number in range(200):
                await context.schedule_task(jobs[0], f"x{number}", interval=7)
            task = asyncio.create_task(context.rebalance(jobs[0], counts[1]))
            for _ in range(140):
                await bench.advance(0.5)
            assert task.done()
            await task
            assert [job.partition_count for job in jobs] == [counts[1]] * 2
        assert all(job.partition_count == counts[1] for job in jobs)
        runs = sorted((run.args.get("name", run.name), run.scheduled_at) for run in bench.runs)
        assert len(runs) == len(set(runs)) == 200 * 10

    run(main())


def test_an_occurrence_keeps_its_id_when_its_next_attempt_is_in_another_partition() -> None:
    async def main() -> None:
        bench = Bench()
        ids: list[str] = []

        async def body(context: Context) -> None:
            ids.append(context.execution_id)
            if len(ids) == 1:
                raise RuntimeError("once more")

        job = bench.app.partitioned_task(4, numbered, name="job", lease_duration=300)(body)
        async with bench.running() as context:
            await context.schedule_task(job, "x5", execute_at=after(1))
            await bench.advance(2)
            await rebalanced(bench, context, job, 8)
            await bench.advance(400)
        assert len(ids) == 2
        assert ids[0] == ids[1]

    run(main())


def test_a_record_in_a_partition_where_no_call_looks_runs_and_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        async with bench.running() as context:
            sleeper = Bench(bench.repository)
            astray = sleeper.app.partitioned_task(4, lambda count, name: 3, name="job")(bench.note)
            await sleeper.plant(astray, "x5", planned=1)
            await bench.advance(2)
            assert len(bench.runs) == 1
            assert await context.get_task(job, "x5") is None

    run(main())
    assert logged(caplog, "x5", "job:3", "await context.rebalance(task, 4)")


# What is declared, and what is in force.


def test_code_of_before_opens_with_the_number_in_force_and_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x5", execute_at=after(1_000))
            await rebalanced(bench, context, job, 8)
        old, new = bench.another_app(), bench.another_app()
        for app, count in ((old, 4), (new, 8)):
            job = partitioned(bench, count, app)
            async with app.create() as context:
                assert job.partition_count == 8
                assert await context.get_task(job, "x5") is not None
        other = bench.another_app()
        partitioned(bench, 6, other)
        with pytest.raises(PyncetteException, match=r"6 partitions.*8 partitions.*rebalance\(task"):
            async with other.create():
                pass

    run(main())
    assert logged(caplog, "job is declared with 4 partitions", "in 8", "partition_count=8")
    assert not logged(caplog, "declared with 8")


def test_an_app_that_is_opened_on_another_store_has_the_declared_number_again() -> None:
    async def main() -> None:
        bench = Bench()
        stores = [MemoryRepository(), MemoryRepository()]

        def open_next(**options: Any) -> Any:
            return stores.pop()(**options)

        app = Pyncette(open_next, clock=bench.clock)
        job = app.partitioned_task(4, numbered, name="job")(bench.note)
        async with app.create() as context:
            await rebalanced(bench, context, job, 8)
            assert job.partition_count == 8
        async with app.create() as context:
            assert job.partition_count == 4
            await context.schedule_task(job, "x5", interval=1)
            assert await context.get_task(job, "x5") is not None

    run(main())


def test_a_worker_with_some_partitions_claims_from_those_that_they_become(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        apps = [bench.app, bench.another_app(worker_name="other")]
        jobs = [
            partitioned(bench, 4, app, enabled_partitions=[2 * number, 2 * number + 1])
            for number, app in enumerate(apps)
        ]
        async with bench.running(apps[0]) as context, bench.running(apps[1]):
            for number in range(8):
                await context.schedule_task(jobs[0], f"x{number}", execute_at=after(200))
            await rebalanced(bench, context, jobs[0], 8)
            await bench.advance(200)
            assert len(bench.runs) == 8
            assert [len(job.active_groups()) for job in jobs] == [4, 4]
            jobs[0].enabled_partitions = [7]
            assert jobs[0].active_groups() == ["job:7"]

    run(main())
    assert logged(caplog, "enabled_partitions of job were chosen among 4", "modulo 4")


def test_a_running_worker_watches_and_claims_from_the_new_partitions() -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 1)
        other = bench.another_app(worker_name="caller")
        far = partitioned(bench, 1, other)
        async with bench.running(), other.create() as caller:
            await rebalanced(bench, caller, far, 3)
            assert job.partition_count == 3
            await caller.schedule_task(far, "x2", execute_in=seconds(0))
            await bench.advance(2)
            assert len(bench.runs) == 1

    run(main())


# Refused.


@pytest.mark.parametrize(
    ("count", "error", "words"),
    [
        (0, ValueError, "from 1 to 10,000, not 0"),
        (10_001, ValueError, "from 1 to 10,000, not 10,001"),
        (-1, ValueError, "from 1 to 10,000, not -1"),
        (True, TypeError, "a whole number, not True"),
        ("8", TypeError, "a whole number, not '8'"),
        (8.0, TypeError, "a whole number, not 8.0"),
        (None, TypeError, "a whole number, not None"),
    ],
)
def test_a_number_of_partitions_that_cannot_be_is_refused(
    count: Any, error: type[Exception], words: str
) -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        async with bench.app.create() as context:
            with pytest.raises(error, match=words):
                await context.rebalance(job, count)
            assert await fact(bench) == {"partition_count": 4}

    run(main())


def test_a_task_without_partitions_is_refused() -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        plain: Any = bench.app.dynamic_task(name="plain")(bench.note)
        nothing: Any = "job"
        partition: Any = job.get_partitions()[0]
        instance: Any = job.instantiate("x", interval=1)
        async with bench.app.create() as context:
            with pytest.raises(ValueError, match="'plain' has no partitions"):
                await context.rebalance(plain, 8)
            for wrong in (partition, instance):
                with pytest.raises(ValueError, match="is not a template: pass 'job'"):
                    await context.rebalance(wrong, 8)
            with pytest.raises(TypeError, match="A task is what"):
                await context.rebalance(nothing, 8)

    run(main())


def test_a_partition_that_is_paused_is_not_spread_over_others() -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        async with bench.app.create() as context:
            await context.pause(job.get_partitions()[2])
            with pytest.raises(PyncetteException, match="Partition 2 of job is paused"):
                await context.rebalance(job, 8)
            await context.resume(job.get_partitions()[2])
            await context.pause(job)
            await context.schedule_task(job, "x5", execute_at=after(1))
            assert (await rebalanced(bench, context, job, 8)).moved == 1

    run(main())


def test_a_running_instance_is_locked_while_others_move() -> None:
    async def main() -> None:
        bench = Bench()

        async def body(context: Context) -> None:
            await bench.clock.sleep(50)

        job = bench.app.partitioned_task(4, numbered, name="job", lease_duration=1_000)(body)
        async with bench.running() as context:
            await context.schedule_task(job, "x5", execute_at=START)
            await bench.advance(1)
            task = asyncio.create_task(context.rebalance(job, 8))
            while not job.layout.moving:
                await bench.advance(1)
            with pytest.raises(TaskLockedException):
                await context.schedule_task(job, "x5", interval=500)
            await context.schedule_task(job, "x5", interval=500, on_existing=OnExisting.REPLACE)
            await finished(bench, task)
            record = await bench.record(job, "x5")
            assert record is not None
            assert record.schedule == "1 every 500000000" or "500" in record.schedule

    run(main())


def test_the_store_may_fail_while_instances_move() -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        async with bench.app.create() as context:
            for number in range(12):
                await context.schedule_task(job, f"x{number}", interval=1_000)
            bench.faults.next("scan", Fail())
            bench.faults.next(
                "write",
                *(Fail(), LoseAnswer()) * 6,
                matches=lambda batch, *_: any(write.group.startswith("job:") for write in batch),
            )
            assert (await rebalanced(bench, context, job, 8)).waiting == 0
            assert len(await contents(bench, job)) == 12

    run(main())


def test_an_instance_that_was_removed_before_it_moved_stays_removed() -> None:
    async def main() -> None:
        bench = Bench()
        await left_at(bench, "LoseAnswer 1")  # a copy has arrived, and holds nothing yet
        other = bench.another_app()
        job = partitioned(bench, 4, other)
        async with other.create() as context:
            async with bench.store() as store:
                await store.write([Write("job:1", "x5", DELETE, ANY)], micros(0))
            assert await context.get_task(job, "x5") is None
            await context.schedule_task(job, "x5", interval=500)
            await context.unschedule_task(job, "x5")
            await rebalanced(bench, context, job, 8)
            assert await contents(bench, job) == {}

    run(main())


def test_after_a_move_calls_cost_what_they_did_before() -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        async with bench.app.create() as context:
            await rebalanced(bench, context, job, 8)
            for call in (
                context.schedule_task(job, "x5", interval=1_000),
                context.unschedule_task(job, "x5"),
                context.get_task(job, "x5"),
                context.schedule_tasks(job, [Instance("x6", interval=1_000)]),
            ):
                bench.faults.calls.clear()
                await call
                assert len(bench.faults.calls) == 1, bench.faults.calls

    run(main())


@pytest.mark.parametrize("stage", ["to", "from"])
def test_a_move_that_was_interrupted_is_said_when_an_app_is_opened(
    stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        async with bench.app.create() as context:
            task = asyncio.create_task(context.rebalance(job, 8))
            while stage not in await fact(bench):
                await bench.advance(1)
            task.cancel()
            await asyncio.wait([task])
        for count in (4, 8):
            other = bench.another_app()
            partitioned(bench, count, other)
            async with other.create():
                pass

    run(main())
    assert logged(caplog, "A move of the instances of job to 8", "await context.rebalance(task, 8)")


def test_what_a_removed_template_left_is_purged_in_the_middle_of_a_move() -> None:
    async def main() -> None:
        bench = Bench()
        await left_at(bench, "LoseAnswer 2")
        other = bench.another_app()
        job = partitioned(bench, 4, bench.another_app())
        async with other.create() as context:
            [unknown] = await context.unknown()
            assert (unknown.name, unknown.partition_count) == ("job", 8)
            await context.purge("job")
            assert await context.unknown() == []
            assert await contents(bench, job) == {}

    run(main())


def test_a_record_that_the_store_cannot_keep_elsewhere_is_named_and_stays() -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        async with bench.app.create() as context:
            for name in ("x4", "x5"):
                await context.schedule_task(job, name, interval=1_000)
            bench.faults.next(
                "write",
                AnswerWrites(Failed(ValueError("too large")), lambda write: write.key == "x5"),
                matches=lambda batch, *_: any(write.key == "x5" for write in batch),
            )
            with pytest.raises(PyncetteException, match=r"1 instance of job.*x5: .*too large"):
                await rebalanced(bench, context, job, 8)
            assert await context.get_task(job, "x5") is not None
            await rebalanced(bench, context, job, 8)
            assert sorted(await contents(bench, job)) == ["job:4 x4", "job:5 x5"]

    run(main())


def test_two_records_of_one_instance_of_which_one_cannot_be_read_are_left_and_named() -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        async with bench.app.create() as context:
            await rebalanced(bench, context, job, 8)
            await context.schedule_task(job, "x5", interval=1_000)
            sleeper = Bench(bench.repository)
            await sleeper.plant(partitioned(sleeper, 4), "x5", planned=3_000, schedule="9 later")
            with pytest.raises(PyncetteException, match=r"x5: .*two places"):
                await rebalanced(bench, context, job, 8)
            assert len(await contents(bench, job)) == 2

    run(main())


def test_a_move_of_before_that_was_left_in_the_middle_is_ended_by_the_next_one() -> None:
    async def main() -> None:
        bench = Bench()
        await left_at(bench, "LoseAnswer 3")  # a mark is left
        other = bench.another_app()
        job = partitioned(bench, 4, other)
        async with other.create() as context:
            [mark] = [
                record for record in (await contents(bench, job)).values() if in_transit(record)
            ]
            await rebalanced(bench, context, job, 8)
            async with bench.store() as store:  # a write of it that arrives late
                put = type(arriving(mark))(mark.due_at, mark.state, mark.token, *mark[6:])
                await store.write([Write(mark.group, mark.key, put, ABSENT)], micros(0))
            await rebalanced(bench, context, job, 4)
            assert list(await contents(bench, job)) == ["job:1 x5"]

    run(main())


def test_a_late_mark_at_the_new_place_does_not_keep_an_instance_from_moving() -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench, 4)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x5", interval=1_000)
            record = await bench.record(job, "x5")
            assert record is not None
            late = [
                Write("job:5", "x5", marked(record, Mark("id", "job:9")), ABSENT),
                Write("job:5", "x1", marked(record, Mark("id", "job:9")), ABSENT),
            ]
            async with bench.store() as store:
                await store.write(late, micros(0))
            await rebalanced(bench, context, job, 8)
            assert list(await contents(bench, job)) == ["job:5 x5"]

    run(main())


def test_a_bulk_call_rides_out_a_store_that_fails_while_instances_move() -> None:
    async def main() -> None:
        bench = Bench()
        await left_at(bench, "Fail 1")
        other = bench.another_app()
        job = partitioned(bench, 4, other)
        async with other.create() as context:
            wanted = [Instance(f"x{number}", interval=500) for number in range(4, 8)]
            bench.faults.next("write", Fail())
            bench.faults.next("get", Fail())
            result = await context.schedule_tasks(job, wanted)
            assert (result.handled, result.failed) == (4, 0)
            assert result.updated == 1
            assert len(await live(bench, job)) == 4
            wrong = await context.schedule_tasks(job, wanted, on_existing=OnExisting.RAISE)
            assert wrong.failed == 4

    run(main())


def test_a_call_goes_on_with_a_move_although_the_store_fails() -> None:
    async def main() -> None:
        bench = Bench()
        await left_at(bench, "LoseAnswer 2")
        other = bench.another_app()
        job = partitioned(bench, 4, other)
        async with other.create() as context:
            bench.faults.next("write", Fail(), Fail())
            await context.pause(job, "x5")
            state = await context.get_task(job, "x5")
            assert state is not None
            assert state.state == "paused"

    run(main())


def test_an_instance_that_is_not_there_is_not_there_while_others_move() -> None:
    async def main() -> None:
        bench = Bench()
        await left_at(bench, "Fail 1")
        other = bench.another_app()
        job = partitioned(bench, 4, other)
        async with other.create() as context:
            assert await context.get_task(job, "x6") is None
            await context.unschedule_task(job, "x6")
            with pytest.raises(TaskNotFoundError):
                await context.pause(job, "x6")
            assert sorted(await contents(bench, job)) == ["job:1 x5"]

    run(main())
