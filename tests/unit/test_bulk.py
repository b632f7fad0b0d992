"""Scheduling, removing and aligning many instances: what is done, what fails, what is told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.faulty_store import AnswerWrites, Fail, LoseAnswer
from tests.support import START, Bench, after, run, seconds

from pyncette import ExecutionMode, Instance, OnExisting, PyncetteContext, Where
from pyncette.bulk import BulkFailure, BulkResult
from pyncette.calls.bulk import BATCH, SLICE
from pyncette.errors import (
    StoreUnavailableError,
    TaskExistsError,
    TaskLockedException,
    TaskUnreadableError,
)
from pyncette.schedule import At, Cron, Every, Schedule
from pyncette.store import Unknown
from pyncette.task import Task


def counts(result: BulkResult) -> tuple[int, int, int, int, int]:
    """Created, updated, removed, unchanged, failed."""
    return (result.created, result.updated, result.removed, result.unchanged, result.failed)


def of(bench: Bench, partitions: int | None = None, **options: Any) -> Task:
    if partitions is None:
        return bench.app.dynamic_task(name="job", **options)(bench.note)
    return bench.app.partitioned_task(partitions, name="job", **options)(bench.note)


def many(number: int, at: float = 10, **args: Any) -> Iterator[Instance]:
    return (Instance(f"i{index:05}", execute_at=after(at), **args) for index in range(number))


async def names(context: PyncetteContext, job: Task) -> list[str]:
    found: list[str] = []
    token = None
    while True:
        page = await context.list_tasks(job, 1_000, token)
        found += [state.task.name for state in page.tasks]
        token = page.continuation_token
        if token is None:
            return sorted(found)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of a tenth of the size, so that a tenth of the instances fill several."""
    monkeypatch.setattr("pyncette.calls.bulk.BATCH", BATCH // 10)
    monkeypatch.setattr("pyncette.calls.bulk.SLICE", SLICE // 10)
    monkeypatch.setattr("pyncette.calls.names.BATCH", BATCH // 10)


@pytest.mark.parametrize("partitions", [None, 4])
def test_many_instances_are_scheduled_in_batches_and_run(partitions: int | None) -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench, partitions)
        told: list[int] = []
        async with bench.running() as context:
            result = await context.schedule_tasks(
                job, many(2_500, n=1), progress=lambda done: told.append(done.handled)
            )
            assert counts(result) == (2_500, 0, 0, 0, 0)
            assert told == [1_000, 2_000, 2_500]
            assert len(bench.faults.made("write")) < 20
            await bench.advance(10)
        assert len(bench.runs) == 2_500
        assert bench.runs[0].args == {"n": 1}

    run(main())


def test_an_interrupted_call_is_made_again_and_leaves_alone_what_is_there() -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench)
        async with bench.app.create() as context:
            await context.schedule_tasks(job, many(1_200))
            before = await bench.record(job, "i00007")
            result = await context.schedule_tasks(job, many(1_500))
            assert counts(result) == (300, 0, 0, 1_200, 0)
            assert await bench.record(job, "i00007") == before

    run(main())


def test_what_is_there_is_read_and_not_written_but_for_the_first_batch(small_batches: None) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        wanted = [Instance(f"{index}", execute_at=after(500), n=1) for index in range(300)]
        new = [Instance(f"new {index}", execute_at=after(500)) for index in range(200)]
        async with bench.app.create() as context:
            bench.faults.calls.clear()
            assert (await context.schedule_tasks(job, wanted)).created == 300
            # New instances are not read first.
            assert [call.name for call in bench.faults.calls] == ["write"] * 3
            bench.faults.calls.clear()
            assert (await context.schedule_tasks(job, wanted)).unchanged == 300
            assert [call.name for call in bench.faults.calls] == ["write", "get", "get"]
            bench.faults.calls.clear()
            # Most of a batch is new again: the next one is not read first.
            assert (await context.schedule_tasks(job, [*wanted, *new])).created == 200
            assert [call.name for call in bench.faults.calls] == [
                *("write", "get", "get"),
                *("get", "write", "write"),
            ]

    run(main())


def test_a_record_of_a_later_release_fails_as_in_other_calls() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            await bench.plant(job, "x", progress="9 later")
            result = await context.sync_tasks(job, [Instance("x", execute_at=after(5))])
            assert result.failed == 1
            assert isinstance(result.failures[0].error, TaskUnreadableError)
            record = await bench.record(job, "x")
            assert record is not None
            assert record.progress == "9 later"

    run(main())


def test_instances_come_from_an_async_iterable_with_options_of_their_own() -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench, interval=seconds(5), color="red", size=1)

        async def instances() -> AsyncIterator[Instance]:
            yield Instance("default")
            await asyncio.sleep(0)
            yield Instance("cron", schedule="* * * * *", timezone="Europe/Berlin", size=2)

        async with bench.app.create() as context:
            assert counts(await context.schedule_tasks(job, instances())) == (2, 0, 0, 0, 0)
            state = await context.get_task(job, "cron")
            assert state is not None
            assert state.task.timezone == "Europe/Berlin"
            assert state.task.extra_args == {"color": "red", "size": 2}

    run(main())


def test_what_fails_is_told_item_by_item_and_keeps_no_other_from_being_scheduled() -> None:
    async def main() -> None:
        bench = Bench()

        async def slow(context: Any) -> None:
            await bench.clock.sleep(30)

        job = bench.app.dynamic_task(name="job")(slow)
        failures: list[BulkFailure] = []
        async with bench.running() as context:
            await context.schedule_task(job, "runs", execute_at=after(0))
            await bench.advance(1)
            result = await context.schedule_tasks(
                job,
                [
                    Instance("a", execute_at=after(99)),
                    Instance("", execute_at=after(99)),
                    Instance("no schedule"),
                    Instance("nul\0", execute_at=after(99)),
                    Instance("never", schedule="0 0 1 1 * 0 1970"),
                    Instance("no json", execute_at=after(99), what=object()),  # type: ignore[arg-type]
                    Instance("option", execute_at=after(99), lease_duration=5),
                    "b",  # type: ignore[list-item]
                    Instance("runs", execute_at=after(99)),
                    Instance("c", execute_at=after(99)),
                ],
                on_failure=failures.append,
            )
            assert counts(result) == (2, 0, 0, 0, 8)
            assert tuple(failures) == result.failures
            by_name = {failure.name: failure.error for failure in failures}
            assert isinstance(by_name["runs"], TaskLockedException)
            assert isinstance(by_name["never"], ValueError)
            assert isinstance(by_name["b"], TypeError)
            await bench.advance(30)

    run(main())


def test_on_existing_holds_for_each() -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench)
        async with bench.app.create() as context:
            await context.schedule_tasks(job, many(3, at=10))
            for on_existing, expected, at in (
                (OnExisting.KEEP, (1, 0, 0, 3, 0), 10),
                (OnExisting.RAISE, (0, 0, 0, 0, 4), 10),
                (OnExisting.REPLACE, (0, 4, 0, 0, 0), 50),
                (OnExisting.SOONER, (0, 0, 0, 4, 0), 50),
            ):
                result = await context.schedule_tasks(
                    job, many(4, at=50 if at == 50 else 20), on_existing=on_existing
                )
                assert counts(result) == expected, on_existing
                state = await context.get_task(job, "i00000")
                assert state is not None
                assert state.scheduled_at == after(at)
            assert isinstance(TaskExistsError(job), Exception)

    run(main())


def test_of_a_name_that_comes_twice_the_later_one_holds() -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench)
        async with bench.app.create() as context:
            result = await context.schedule_tasks(
                job,
                [Instance("x", execute_at=after(9), n=n) for n in range(5)],
            )
            assert counts(result) == (1, 4, 0, 0, 0)
            state = await context.get_task(job, "x")
            assert state is not None
            assert state.task.extra_args == {"n": 4}

    run(main())


def test_a_store_that_fails_for_a_while_is_tried_again() -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench)
        async with bench.app.create() as context:
            bench.faults.next("write", Fail(), LoseAnswer())
            bench.faults.next(
                "write",
                AnswerWrites(
                    Unknown(StoreUnavailableError("?")), lambda write: write.key == "i00003"
                ),
            )
            result = await context.schedule_tasks(job, many(10, at=900))
            assert result.failed == 0
            assert result.handled == 10
            assert len(await names(context, job)) == 10

    run(main())


@pytest.mark.parametrize(
    "schedule",
    [
        At(START),
        At(START) | At(after(1)),
        At(START).with_jitter(seconds(1)),
        Every(seconds(1), anchor=START).between(START, after(1)),
        Every(seconds(1), at_once=True).between(None, after(1)),
        Cron("0 12 5 1 * 1,3 2026"),
    ],
    ids=["once", "twice", "jitter", "bounded", "at once", "years"],
)
def test_what_is_soon_done_for_good_is_not_created_twice(schedule: Schedule) -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench)
        async with bench.running() as context:
            bench.faults.next("write", LoseAnswer(), matches=lambda batch, *_: len(batch) == 10)
            instances = [Instance(f"i{number}", schedule=schedule) for number in range(10)]
            result = await context.schedule_tasks(job, instances)
            assert counts(result) == (0, 0, 0, 0, 10)
            assert isinstance(result.failures[0].error, StoreUnavailableError)
            await bench.advance(5)
        planned = Counter((each.name, each.scheduled_at) for each in bench.runs)
        assert set(planned.values()) == {1}, "no run is made again"
        assert len({name for name, _ in planned}) == 10

    run(main())


def test_what_goes_on_is_created_again_if_it_is_unknown_whether_it_was() -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench)
        async with bench.running() as context:
            for schedule in (
                Every(seconds(9)),
                Cron("* * * * *"),
                Cron("* * * * * 0 2026-2027"),
                At(after(1)) | At(after(900)),
            ):
                lost = LoseAnswer()
                bench.faults.next("write", lost, matches=lambda batch, *_: len(batch) == 10)
                instances = [Instance(f"i{number}", schedule=schedule) for number in range(10)]
                assert (await context.schedule_tasks(job, instances)).failed == 0

    run(main())


def test_a_store_that_stays_down_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyncette.calls.requests.BULK_PATIENCE_S", 0.0)

    async def main() -> None:
        bench = Bench()
        job = of(bench)
        async with bench.app.create() as context:
            with bench.faults.down(), pytest.raises(StoreUnavailableError):
                await context.schedule_tasks(job, many(2_500))
            assert await names(context, job) == []

    run(main())


def test_an_iterable_that_fails_ends_the_call_and_leaves_no_task_behind() -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench)

        def instances() -> Iterator[Instance]:
            yield from many(1_500)
            raise RuntimeError("the table is gone")

        async with bench.app.create() as context:
            with pytest.raises(RuntimeError, match="the table is gone"):
                await context.schedule_tasks(job, instances())

    run(main())


def test_an_at_most_once_record_that_is_about_to_advance_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pyncette.calls.scheduling.ADVANCE_PATIENCE_S", 0.05)

    async def main() -> None:
        bench = Bench()
        job = of(bench, execution_mode=ExecutionMode.AT_MOST_ONCE)
        async with bench.app.create() as context:
            await bench.plant(job, "x", state="running", due=1, token="w:1:2", planned=0)
            result = await asyncio.wait_for(
                context.schedule_tasks(job, [Instance("x", execute_at=after(50))]), 10
            )
            assert result.failed == 1
            assert isinstance(result.failures[0].error, TaskLockedException)

    run(main())


# Removing.


@pytest.mark.parametrize("partitions", [None, 4])
def test_instances_are_removed_by_name(partitions: int | None, small_batches: None) -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench, partitions)
        async with bench.app.create() as context:
            await context.schedule_tasks(job, many(150))
            result = await context.unschedule_tasks(
                job, [*(f"i{index:05}" for index in range(120)), "absent", ""]
            )
            assert counts(result) == (0, 0, 120, 1, 1)
            assert len(await names(context, job)) == 30

    run(main())


def test_instances_are_removed_by_what_they_are() -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench, 4)
        async with bench.app.create() as context:
            await context.schedule_tasks(job, many(20))
            await context.schedule_task(job, "later", execute_at=after(500))
            await context.pause(job, "i00003")
            await bench.plant(job, "parked", state="parked", due=None, progress="what")
            result = await context.unschedule_tasks(job, where=Where(states={"parked"}))
            assert counts(result) == (0, 0, 1, 0, 0)
            result = await context.unschedule_tasks(job, where=Where(paused=True))
            assert counts(result) == (0, 0, 1, 0, 0)
            result = await context.unschedule_tasks(job, where=Where(prefix="i0000"))
            assert counts(result) == (0, 0, 9, 0, 0)
            result = await context.unschedule_tasks(job, where=Where(due_before=after(100)))
            assert counts(result) == (0, 0, 10, 0, 0)
            assert await names(context, job) == ["later"]
            result = await context.unschedule_tasks(job, where=Where())
            assert counts(result) == (0, 0, 1, 0, 0)

    run(main())


def test_an_instance_that_changed_after_it_was_selected_is_kept() -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x", execute_at=after(10))
            await context.pause(job, "x")
            scan = bench.repository._store.scan

            async def resuming(*arguments: Any) -> Any:
                page = await scan(*arguments)
                bench.repository._store.scan = scan  # type: ignore[method-assign]
                await context.resume(job, "x")
                return page

            bench.repository._store.scan = resuming  # type: ignore[method-assign,assignment]
            result = await context.unschedule_tasks(job, where=Where(paused=True))
            assert counts(result) == (0, 0, 0, 1, 0)
            assert await names(context, job) == ["x"]

    run(main())


# Aligning.


@pytest.mark.parametrize("partitions", [None, 4])
def test_a_store_is_made_equal_to_a_set(partitions: int | None, small_batches: None) -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench, partitions)
        async with bench.app.create() as context:
            await context.schedule_tasks(job, many(200, n=1))
            await context.pause(job, "i00001")

            def wanted() -> Iterator[Instance]:
                for index in range(100, 300):
                    n = 2 if index < 110 else 1
                    yield Instance(f"i{index:05}", execute_at=after(10), n=n)
                yield Instance("i00001", execute_at=after(20), n=1)

            expected = (100, 11, 99, 90, 0)
            before = await names(context, job)
            dry = await context.sync_tasks(job, wanted(), dry_run=True)
            assert counts(dry) == expected
            assert await names(context, job) == before
            assert counts(await context.sync_tasks(job, wanted())) == expected
            assert counts(await context.sync_tasks(job, wanted())) == (0, 0, 0, 201, 0)
            state = await context.get_task(job, "i00001")
            assert state is not None
            assert (state.state, state.scheduled_at) == ("paused", after(20))

    run(main())


def test_what_runs_is_replaced_from_the_end_of_its_run_and_not_twice() -> None:
    async def main() -> None:
        bench = Bench()

        async def slow(context: Any) -> None:
            await bench.note(context)
            await bench.clock.sleep(5)

        job = bench.app.dynamic_task(name="job")(slow)
        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=seconds(10))
            await bench.advance(11)
            new = [Instance("x", interval=seconds(30))]
            assert counts(await context.sync_tasks(job, new)) == (0, 1, 0, 0, 0)
            assert counts(await context.sync_tasks(job, new)) == (0, 0, 0, 1, 0)
            await bench.advance(40)
        assert bench.times == [10, 41]

    run(main())


def test_an_empty_set_is_refused_unless_it_is_meant() -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench)
        async with bench.app.create() as context:
            await context.schedule_tasks(job, many(3))
            with pytest.raises(ValueError, match="allow_empty"):
                await context.sync_tasks(job, [])
            assert len(await names(context, job)) == 3
            result = await context.sync_tasks(job, [], allow_empty=True)
            assert counts(result) == (0, 0, 3, 0, 0)

    run(main())


def test_nothing_is_removed_if_the_set_could_not_be_read_or_has_invalid_items() -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench)

        def failing() -> Iterator[Instance]:
            yield Instance("new", execute_at=after(10))
            raise RuntimeError("the table is gone")

        async with bench.app.create() as context:
            await context.schedule_tasks(job, many(3))
            with pytest.raises(RuntimeError):
                await context.sync_tasks(job, failing())
            assert len(await names(context, job)) == 3
            result = await context.sync_tasks(
                job, [Instance("i00001"), Instance("i00002", execute_at=after(10))]
            )
            assert counts(result) == (0, 0, 1, 1, 1)
            assert await names(context, job) == ["i00001", "i00002"]

    run(main())


# What is refused.


def test_bad_input_is_refused_in_words() -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench, 4)
        static = bench.app.task(name="static", interval=1)(bench.note)
        calls: list[tuple[Any, type[Exception], str]] = [
            (lambda c: c.schedule_tasks(static, []), ValueError, "not a dynamic task"),
            (lambda c: c.sync_tasks(job.get_partitions()[0], []), ValueError, "is a partition"),  # type: ignore[attr-defined]
            (lambda c: c.schedule_tasks("job", []), TypeError, "decorator"),
            (lambda c: c.schedule_tasks(job, "abc"), TypeError, "iterable"),
            (lambda c: c.schedule_tasks(job, 5), TypeError, "iterable"),
            (lambda c: c.schedule_tasks(job, [], on_existing="keep"), TypeError, "OnExisting"),
            (lambda c: c.unschedule_tasks(static, []), ValueError, "not dynamic"),
            (lambda c: c.unschedule_tasks(job), TypeError, "names or where"),
            (lambda c: c.unschedule_tasks(job, [], where=Where()), TypeError, "names or where"),
            (lambda c: c.unschedule_tasks(job, where={}), TypeError, "Where"),
            (
                lambda c: c.unschedule_tasks(job, where=Where(states={"dead"})),  # type: ignore[arg-type]
                ValueError,
                "no state 'dead'",
            ),
            (lambda c: c.unschedule_tasks(job, where=Where(states="parked")), TypeError, "states"),  # type: ignore[arg-type]
            (lambda c: c.unschedule_tasks(job, where=Where(prefix=5)), TypeError, "prefix"),  # type: ignore[arg-type]
            (lambda c: c.unschedule_tasks(job, where=Where(paused=1)), TypeError, "paused"),  # type: ignore[arg-type]
            (lambda c: c.unschedule_tasks(job, where=Where(due_before=1)), TypeError, "due_before"),  # type: ignore[arg-type]
        ]
        async with bench.app.create() as context:
            for call, error, words in calls:
                with pytest.raises(error, match=words):
                    await call(context)

    run(main())


def test_an_instance_can_be_printed() -> None:
    instance = Instance("x", interval=seconds(5), n=1)
    assert repr(instance) == "Instance('x', n=1, interval=datetime.timedelta(seconds=5))"
