"""Going through instances, and counting them, by what they are."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
from tests.support import Bench, Progress, after, micros, run, seconds

from pyncette import FailureMode, Instance, PyncetteContext, Retry, Where
from pyncette.model import TaskCount
from pyncette.task import Task


async def names(context: PyncetteContext, job: Task, where: Where | None = None) -> list[str]:
    return sorted([state.task.name async for state in context.iter_tasks(job, where)])


async def with_all_states(bench: Bench, context: PyncetteContext, job: Task) -> None:
    for name in ("later", "soon", "paused", "until"):
        await context.schedule_task(job, name, execute_at=after(5 if name == "soon" else 500))
    await context.pause(job, "paused", reason="why")
    await context.pause(job, "until", until=after(50))
    failed = Progress(micros(0), "i", failures=2, error="no")
    await bench.plant(job, "retrying", state="retrying", due=60, progress=failed)
    await bench.plant(job, "parked", state="parked", due=9_000, progress=failed)
    await bench.plant(job, "running", state="running", due=60, token="w:1:2", unfinished_attempts=1)
    await bench.plant(job, "failed", state="running", due=60, token="w:1:2", progress=failed)


CASES: list[tuple[Where, Collection[str]]] = [
    (Where(states={"scheduled"}), ["later", "soon"]),
    (Where(states=["paused"]), ["paused", "until"]),
    (Where(paused=True), ["paused", "until"]),
    (Where(states={"parked", "paused"}, paused=False), ["parked"]),
    (Where(states={"running"}), ["running"]),
    (Where(states={"retrying"}), ["failed", "retrying"]),
    (Where(states={"retrying", "running"}), ["failed", "retrying", "running"]),
    (Where(failing=True), ["failed", "parked", "retrying"]),
    (Where(failing=False), ["later", "paused", "running", "soon", "until"]),
    (Where(prefix="pa"), ["parked", "paused"]),
    (Where(due_before=after(55)), ["soon"]),
    (Where(due_before=after(61)), ["failed", "retrying", "running", "soon"]),
    (Where(states=set()), []),
    (Where(paused=True, failing=True), []),
]


@pytest.mark.parametrize(("where", "expected"), CASES, ids=[str(n) for n in range(len(CASES))])
def test_instances_are_selected_and_counted_by_what_they_are(
    where: Where, expected: Collection[str]
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            await with_all_states(bench, context, job)
            assert await names(context, job, where) == expected
            assert await context.count_tasks(job, where) == TaskCount(len(expected), True)
            if len(expected) > 1:
                counted = await context.count_tasks(job, where, limit=1)
                assert counted == TaskCount(1, False)

    run(main())


@pytest.mark.parametrize("partitions", [None, 5])
def test_all_pages_of_all_partitions_are_gone_through(partitions: int | None) -> None:
    async def main() -> None:
        bench = Bench(batch_size=7)
        job = (
            bench.app.dynamic_task(name="job")(bench.note)
            if partitions is None
            else bench.app.partitioned_task(partitions, name="job")(bench.note)
        )
        async with bench.app.create() as context:
            await context.schedule_tasks(
                job, (Instance(f"{index:03}", execute_at=after(9)) for index in range(100))
            )
            assert await names(context, job) == [f"{index:03}" for index in range(100)]
            assert await context.count_tasks(job) == TaskCount(100, True)
            assert await context.count_tasks(job, limit=100) == TaskCount(100, True)
            assert str(await context.count_tasks(job, limit=99)) == "99+"
            assert str(await context.count_tasks(job)) == "100"
            if partitions is not None:
                parts = job.get_partitions()  # type: ignore[attr-defined]
                found = [await context.count_tasks(part) for part in parts]
                assert sum(part.count for part in found) == 100
                assert len(await names(context, parts[1])) == found[1].count

    run(main())


def test_a_count_that_must_look_at_each_record_ends_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pyncette.calls.listing.COUNTED_PAGES_MAX", 1)

    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            await context.schedule_tasks(
                job, (Instance(f"{index}", execute_at=after(9)) for index in range(1_001))
            )
            assert await context.count_tasks(job, Where(failing=False)) == TaskCount(1_000, False)

    run(main())


@pytest.mark.parametrize(
    "options", [{"retry": Retry(attempts=3)}, {"failure_mode": FailureMode.UNLOCK}]
)
def test_the_few_that_wait_for_a_retry_are_counted_by_an_index(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Where a failed run keeps its lease, those that run would have to be looked at."""
    monkeypatch.setattr("pyncette.calls.listing.COUNTED_PAGES_MAX", 1)

    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", **options)(bench.note)
        async with bench.app.create() as context:
            await context.schedule_tasks(
                job, (Instance(f"{index:04}", execute_at=after(9)) for index in range(1_001))
            )
            failed = Progress(micros(0), "i", failures=2, error="no")
            await bench.plant(job, "last", state="retrying", due=60, progress=failed)
            await bench.plant(
                job, "next", state="running", due=60, token="w:1:2", unfinished_attempts=1
            )
            where = Where(states={"retrying"})
            assert await context.count_tasks(job, where) == TaskCount(1, True)
            assert await names(context, job, where) == ["last"]
            assert await names(context, job, Where(states={"running"})) == ["next"]
            result = await context.unschedule_tasks(job, where=where)
            assert (result.removed, result.handled) == (1, 1)

    run(main())


def test_a_state_says_what_comes_next_and_with_which_arguments() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", failure_mode=FailureMode.UNLOCK, size=1)(
            bench.fail
        )
        app = bench.another_app(poll_interval=seconds(5))
        job = app.dynamic_task(name="job", failure_mode=FailureMode.UNLOCK, size=1)(bench.fail)
        async with bench.running(app) as context:
            await context.schedule_task(job, "x", execute_at=after(10), color="red")
            state = await context.get_task(job, "x")
            assert state is not None
            assert (state.next, state.attempt) == (after(10), 1)
            assert state.args == {"size": 1, "color": "red"}
            await bench.advance(16)
            state = await context.get_task(job, "x")
            assert state is not None
            assert (state.state, state.attempt) == ("retrying", 3)
            assert state.last_outcome is not None
            assert state.last_outcome.value == "failed"
            assert (state.last_started_at, state.last_finished_at) == (after(15), after(15))
            assert state.last_error == state.reason == "RuntimeError: the body failed"
            assert (state.scheduled_at, state.next) == (after(10), after(20))
            await context.pause(job, "x", until=after(100))
            state = await context.get_task(job, "x")
            assert state is not None
            assert (state.next, state.paused_until) == (after(100), after(100))

    run(main())


def test_bad_conditions_are_refused_in_words() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        static = bench.app.task(name="static", interval=1)(bench.note)
        calls: list[tuple[Any, type[Exception], str]] = [
            (lambda c: c.count_tasks(static), ValueError, "non-dynamic"),
            (lambda c: c.count_tasks(job, limit=0), ValueError, "limit"),
            (lambda c: c.count_tasks(job, Where(states={"done"})), ValueError, "no state 'done'"),  # type: ignore[arg-type]
            (lambda c: names(c, job, Where(failing=1)), TypeError, "failing"),  # type: ignore[arg-type]
            (lambda c: names(c, static), ValueError, "non-dynamic"),
        ]
        async with bench.app.create() as context:
            for call, error, words in calls:
                with pytest.raises(error, match=words):
                    await call(context)

    run(main())
