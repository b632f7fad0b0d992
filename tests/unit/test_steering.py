"""Pausing, resuming and triggering, on every level, and what other workers see of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import pytest
from tests.faulty_store import Gate, LoseAnswer
from tests.support import Bench, after, logged, run, seconds

from pyncette import (
    Context,
    ExecutionMode,
    FailureMode,
    Instance,
    OnExisting,
    PyncetteContext,
    Where,
)
from pyncette.errors import (
    StoreUnavailableError,
    TaskNotFoundError,
    TaskPausedError,
    TaskUnreadableError,
)
from pyncette.model import PauseState, TaskState
from pyncette.store import Result, Write
from pyncette.store.record import ANY, CONTROL_GROUP, Put
from pyncette.task import PartitionedTask, Task

pytestmark = pytest.mark.every_poll

T = TypeVar("T")


async def state_of(context: PyncetteContext, task: Task, name: str | None = None) -> TaskState:
    state = await context.get_task(task, name)
    assert state is not None
    return state


def ticking(bench: Bench, **options: Any) -> Task:
    return bench.app.task(name="tick", interval=seconds(10), **options)(bench.note)


# One record.


def test_a_paused_static_task_rests_until_it_is_resumed_and_then_catches_up() -> None:
    async def main() -> None:
        bench = Bench()
        tick = ticking(bench)
        async with bench.running() as context:
            await bench.advance(10)
            await context.pause(tick, reason="the printer burns")
            await bench.advance(30)
            state = await state_of(context, tick)
            assert (state.state, state.reason) == ("paused", "the printer burns")
            assert state.paused_until is None
            await context.resume(tick)
            await bench.advance(5)
            assert (await state_of(context, tick)).state == "scheduled"
        assert bench.times == [10, 40, 40, 40]
        assert bench.planned == [10, 20, 30, 40]

    run(main())


def test_a_pause_with_an_end_ends_by_itself_on_a_worker_that_knows_nothing_of_it() -> None:
    async def main() -> None:
        bench = Bench()
        tick = ticking(bench, fast_forward=True)
        async with bench.running() as context:
            await context.pause(tick, until=after(35))
            assert (await state_of(context, tick)).paused_until == after(35)
        async with bench.running() as context:
            await bench.advance(42)
            state = await state_of(context, tick)
            assert (state.state, state.paused_until) == ("scheduled", None)
        assert bench.times == [35, 40]

    run(main())


def test_after_the_end_of_its_pause_a_record_runs_when_it_is_planned() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(50))
            await context.pause(job, "x", until=after(20), reason="why")
            await bench.advance(30)
            state = await state_of(context, job, "x")
            assert (state.state, state.reason, state.paused_until) == ("scheduled", None, None)
            assert state.scheduled_at == after(50)
            await bench.advance(30)
        assert bench.times == [50]

    run(main())


def test_a_running_task_ends_and_rests_afterwards() -> None:
    async def main() -> None:
        bench = Bench()

        async def slow(context: Any) -> None:
            await bench.note(context)
            await bench.clock.sleep(5)

        job = bench.app.dynamic_task(name="job", fast_forward=True)(slow)
        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=seconds(10))
            await bench.advance(12)
            await context.pause(job, "x", reason="enough")
            assert (await state_of(context, job, "x")).state == "running"
            await bench.advance(30)
            state = await state_of(context, job, "x")
            assert (state.state, state.reason) == ("paused", "enough")
            await context.resume(job, "x")
            await bench.advance(7)
        assert bench.times == [10, 42]

    run(main())


def test_what_is_paused_is_still_paused_after_a_restart_and_after_it_was_scheduled_anew() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=seconds(10))
            await context.pause(job, instance_name="x")
        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=seconds(5))
            await bench.advance(60)
            assert bench.times == []
            await context.resume(job, "x")
            await bench.advance(0)
        assert bench.planned[0] == 5

    run(main())


def test_a_static_task_can_be_paused_and_triggered_before_a_worker_starts_with_it() -> None:
    async def main() -> None:
        bench = Bench()
        tick = ticking(bench)
        tock = bench.app.task(name="tock", interval=seconds(10))(bench.note)
        async with bench.app.create() as context:
            await context.resume(tick)
            assert await bench.record(tick) is None
            await context.pause(tick)
            assert await context.trigger(tock) == 1
        async with bench.running():
            await bench.advance(15)
        assert [(item.name, item.at) for item in bench.runs] == [("tock", 0), ("tock", 10)]

    run(main())


def test_a_pause_or_trigger_of_what_does_not_exist_says_so() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            for call in (context.pause, context.resume, context.trigger):
                with pytest.raises(TaskNotFoundError, match="job:x"):
                    await call(job, "x")
                with pytest.raises(TaskNotFoundError, match="job:x"):
                    await call(job.instantiate("x", interval=seconds(1)))

    run(main())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"until": after(0)}, ValueError, "future"),
        ({"until": datetime(2300, 1, 1, tzinfo=after(0).tzinfo)}, ValueError, "2255"),
        ({"until": 5}, TypeError, "datetime"),
        ({"reason": 5}, TypeError, "string"),
        ({"reason": "x" * 501}, ValueError, "501"),
    ],
)
def test_a_bad_end_or_reason_is_refused_in_words(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    async def main() -> None:
        bench = Bench()
        tick = ticking(bench)
        async with bench.app.create() as context:
            with pytest.raises(error, match=words):
                await context.pause(tick, **options)
            with pytest.raises(TypeError, match="decorator"):
                await context.pause("tick")  # type: ignore[arg-type]

    run(main())


BROKEN = "cannot be read by any worker .*what is this"
NEWER = r"cannot be read by this process, but perhaps by another one \(NewerFormat: progress has"


@pytest.mark.parametrize(
    ("written", "elsewhere", "words"),
    [
        ({"schedule": "what is this"}, False, BROKEN + ".*: schedule it anew, or remove it"),
        ({"progress": "what is this"}, False, BROKEN + ".*: schedule it anew, or remove it"),
        ({"progress": "2 what is this"}, True, NEWER),
    ],
    ids=["schedule", "progress", "newer"],
)
@pytest.mark.parametrize("parked", [False, True], ids=["waits", "parked"])
def test_what_a_call_cannot_read_it_refuses_in_words(
    written: dict[str, Any], elsewhere: bool, words: str, parked: bool
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        tick = ticking(bench)
        state = "parked" if parked else "scheduled"
        await bench.plant(job, "x", due=1_000, state=state, **written)
        await bench.plant(tick, due=1_000, state=state, **written)
        async with bench.app.create() as context:
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: context.pause(job, "x"),
                lambda: context.resume(job, "x"),
                lambda: context.trigger(job, "x"),
            ]
            if parked:
                calls.append(lambda: context.retry_parked(job, "x"))
                assert await context.preview(job, 5, "x") == []
            else:
                calls.append(lambda: context.preview(job, 5, "x"))
            if elsewhere:
                again = partial(context.schedule_task, job, "x", interval=seconds(9))
                calls += [again, partial(again, on_existing=OnExisting.REPLACE)]
            for call in calls:
                with pytest.raises(TaskUnreadableError, match=f"'x' {words}") as refused:
                    await call()
                assert (refused.value.name, refused.value.elsewhere) == ("x", elsewhere)
            with pytest.raises(TaskUnreadableError, match="'tick' cannot be read") as refused:
                await context.pause(tick)
            assert ("a worker that starts plans it anew" in str(refused.value)) is not elsewhere
            await context.schedule_task(job, "x", force=True, execute_at=after(5))
            await context.pause(job, "x")

    run(main())


# Triggered.


def test_a_triggered_task_runs_once_now_and_its_plan_stands_still() -> None:
    async def main() -> None:
        bench = Bench()
        tick = ticking(bench)
        async with bench.running() as context:
            await bench.advance(13)
            assert await context.trigger(tick) == 1
            await bench.advance(20)
        assert bench.times == [10, 13, 20, 30]
        assert bench.planned == [10, 13, 20, 30]

    run(main())


def test_one_requested_run_is_enough() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x", execute_at=after(10))
            assert [await context.trigger(job, "x") for _ in range(3)] == [1, 0, 0]

    run(main())


@pytest.mark.parametrize("mode", ExecutionMode)
def test_runs_that_are_triggered_while_the_clock_stands_still_are_different_runs(
    mode: ExecutionMode,
) -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[str] = []

        async def body(context: Any) -> None:
            await bench.note(context)
            seen.append(context.execution_id)
            if len(seen) == 4:
                assert await context.app_context.trigger(context.task) == 1

        job = bench.app.dynamic_task(name="job", execution_mode=mode)(body)
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(10))
            for number in (1, 2, 3, 4):
                assert await context.trigger(job, "x") == 1
                await bench.clock.settle()
                await bench.advance(0.000_001)
                assert len(seen) == number + (number == 4)
            await bench.advance(20)
        assert len(set(seen)) == len(seen) == 6
        assert bench.times[-1] == 10

    run(main())


def test_a_triggered_one_off_runs_now_and_at_its_time() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(10))
            assert await context.trigger(job, "x") == 1
            await bench.advance(20)
            assert await context.get_task(job, "x") is None
        assert bench.times == [0, 10]

    run(main())


@pytest.mark.parametrize("mode", ExecutionMode)
def test_a_running_task_runs_once_more_if_it_is_triggered(mode: ExecutionMode) -> None:
    async def main() -> None:
        bench = Bench()

        async def slow(context: Any) -> None:
            await bench.note(context)
            await bench.clock.sleep(3)

        job = bench.app.dynamic_task(name="job", execution_mode=mode)(slow)
        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=seconds(10))
            await bench.advance(11)
            assert await context.trigger(job, "x") == 1
            await bench.advance(15)
        expected = [10, 13, 20] if mode is ExecutionMode.AT_LEAST_ONCE else [10, 11, 20]
        assert bench.times == expected

    run(main())


def test_a_paused_instance_is_triggered_and_stays_paused() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=seconds(10))
            await context.pause(job, "x", until=after(100), reason="why")
            await bench.advance(25)
            assert await context.trigger(job, "x") == 1
            await bench.advance(25)
            state = await state_of(context, job, "x")
            assert (state.state, state.reason) == ("paused", "why")
            assert state.paused_until == after(100)
        assert bench.times == [25]

    run(main())


def test_what_waits_for_a_retry_is_triggered_to_have_it_now() -> None:
    async def main() -> None:
        bench = Bench()
        app = bench.another_app(poll_interval=seconds(30))
        job = app.dynamic_task(name="job", failure_mode=FailureMode.UNLOCK)(bench.fail)
        async with bench.running(app) as context:
            await context.schedule_task(job, "x", execute_at=after(1))
            await bench.advance(2)
            assert (await state_of(context, job, "x")).state == "retrying"
            assert await context.trigger(job, "x") == 1
            await bench.advance(0)
        assert bench.times == [1, 2]

    run(main())


# A template and its partitions.


def partitioned(bench: Bench) -> PartitionedTask:
    return bench.app.partitioned_task(
        4, name="job", partition_selector=lambda count, name: int(name) % count
    )(bench.note)


def test_a_paused_template_rests_on_all_workers_within_a_poll_interval() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        other = bench.app.dynamic_task(name="other")(bench.note)
        second = bench.another_app(worker_name="second")
        second.dynamic_task(name="job")(bench.note)
        async with bench.running() as context, bench.running(second):
            for name in "abc":
                await context.schedule_task(job, name, interval=seconds(3))
            await context.schedule_task(other, "o", interval=seconds(3))
            await bench.advance(3)
            bench.runs.clear()
            async with bench.app.create() as user:
                await user.pause(job, reason="why")
                assert await user.pauses() == [PauseState("job", None, after(3), None, "why")]
            await bench.advance(30)
            assert {item.name for item in bench.runs} == {"other:o"}
            await context.resume(job)
            assert await context.pauses() == []
            await bench.advance(0)
            assert {item.name for item in bench.runs} == {"other:o", "job:a", "job:b", "job:c"}

    run(main())


def test_a_pause_of_a_template_ends_by_itself_to_the_microsecond() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", fast_forward=True)(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=seconds(4))
            await context.pause(job, until=after(9.25))
            await bench.advance(11)
            assert await context.pauses() == []
        assert bench.times == [9.25]

    run(main())


def test_a_template_is_paused_for_a_worker_that_starts_later() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x", execute_at=after(-5))
            await context.pause(job)
        async with bench.running():
            await bench.advance(10)
        assert bench.times == []

    run(main())


def test_a_partition_is_paused_alone() -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench)
        async with bench.running() as context:
            for name in "0123":
                await context.schedule_task(job, name, interval=seconds(3))
            await context.pause(job.get_partitions()[2])
            [pause] = await context.pauses()
            assert (pause.name, pause.partition) == ("job", 2)
            await bench.advance(3)
            assert sorted(item.name for item in bench.runs) == ["job:0:0", "job:1:1", "job:3:3"]
            await context.pause(job)
            await context.resume(job.get_partitions()[2])
            await bench.advance(10)
            assert len(bench.runs) == 3, "the whole template is paused now"
            await context.resume(job)
            await bench.advance(0)
        assert "job:2:2" in {item.name for item in bench.runs}

    run(main())


def test_a_name_with_colons_and_percent_signs_is_paused_alone() -> None:
    async def main() -> None:
        bench = Bench()
        odd = bench.app.dynamic_task(name="a%3A:b:1")(bench.note)
        even = bench.app.partitioned_task(2, name="a%3A:b")(bench.note)
        async with bench.running() as context:
            await context.schedule_task(odd, "x", execute_at=after(1))
            await context.schedule_task(even, "x", execute_at=after(1))
            await context.pause(odd)
            [pause] = await context.pauses()
            assert (pause.name, pause.partition) == ("a%3A:b:1", None)
            await bench.advance(3)
        assert [item.name.split(":x")[0] for item in bench.runs] == [
            f"a%3A::b:{even.locate('x')[-1]}"
        ]

    run(main())


def test_what_was_claimed_when_its_template_was_paused_is_given_back() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(5))
            await bench.advance(4)
            store = bench.repository._store
            claim = store.claim

            async def pausing(*arguments: Any, **options: Any) -> Any:
                claimed = await claim(*arguments, **options)
                if claimed.records:
                    store.claim = claim  # type: ignore[method-assign]
                    await context.pause(job)
                    await context._worker.pauses.refresh(context._store, 0)
                return claimed

            store.claim = pausing  # type: ignore[method-assign]
            await bench.advance(5)
            assert bench.times == []
            record = await bench.record(job, "x")
            assert record is not None
            assert (record.state, record.unfinished_attempts) == ("scheduled", 0)
            await context.resume(job)
            await bench.advance(0)
        assert bench.planned == [5]

    run(main())


def test_an_instance_of_a_paused_template_is_not_triggered() -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench)
        partition = job.get_partitions()[1]
        async with bench.running() as context:
            await context.schedule_task(job, "1", interval=seconds(60))
            for paused in (job, partition):
                await context.pause(paused, until=after(30), reason="why")
                instance = job.instantiate("1", interval=seconds(1))
                for what in ((job, "1"), (instance,), (partition,)):
                    with pytest.raises(TaskPausedError, match=r"paused until .* \(why\)"):
                        await context.trigger(*what)
                await context.resume(paused)
            await context.pause(partition, until=after(1))
            await bench.advance(2)
            assert await context.trigger(job, "1") == 1
            await bench.advance(0)
        assert bench.times == [2]

    run(main())


def test_a_triggered_template_runs_each_instance_once_and_moves_no_plan() -> None:
    async def main() -> None:
        bench = Bench()
        job = partitioned(bench)
        async with bench.running() as context:
            context._requests.batch_max = 3
            for number in range(20):
                await context.schedule_task(job, str(number), execute_at=after(100))
            await context.pause(job, "7")
            assert await context.trigger(job.get_partitions()[1]) == 5
            await bench.advance(1)
            assert len(bench.runs) == 5
            assert await context.trigger(job) == 20
            await bench.advance(1)
            assert len(bench.runs) == 25
            assert (await state_of(context, job, "7")).state == "paused"
            await bench.advance(100)
        assert len(bench.runs) == 44

    run(main())


def test_a_triggered_template_passes_over_what_cannot_be_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(job, "bad", schedule="what is this", due=1_000)
        async with bench.app.create() as context:
            await context.schedule_task(job, "good", execute_at=after(100))
            assert await context.trigger(job) == 1

    run(main())
    assert logged(caplog, "bad of job was not triggered")
    assert logged(caplog, "1 instance of job could not be triggered")


def test_a_trigger_whose_answer_was_lost_is_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            for name in "abc":
                await context.schedule_task(job, name, execute_at=after(500))
            bench.faults.next("write", LoseAnswer(), matches=lambda batch, *_: len(batch) == 3)
            assert await context.trigger(job) == 0
            await bench.advance(5)
        assert len(bench.runs) == 3

    run(main())
    assert logged(caplog, "3 instances of job could not be triggered")


def scans(bench: Bench) -> int:
    return sum(call.name == "scan" for call in bench.faults.calls)


def test_a_worker_without_templates_does_not_look_for_pauses() -> None:
    async def main() -> None:
        bench = Bench(polls_always=True)
        ticking(bench)
        async with bench.running():
            await bench.advance(10)
            assert scans(bench) == 0
        bench = Bench(polls_always=True)
        bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running():
            before = scans(bench)
            await bench.advance(10)
            assert scans(bench) - before == 10

    run(main())


def test_a_control_record_that_this_release_cannot_read_is_a_pause() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(5))
            await context.pause(job)
            async with bench.store() as store:
                put = Put(None, "finished", None, 0, "", "9 of tomorrow", "")
                await store.write([Write(CONTROL_GROUP, "paused:job", put, ANY)], 0)
            await bench.advance(10)
            assert bench.times == []
            [pause] = await context.pauses()
            assert (pause.name, pause.since, pause.until) == ("job", None, None)

    run(main())


def test_while_pauses_cannot_be_read_nothing_is_claimed() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(5))
            with bench.faults.down("scan"):
                await bench.advance(20)
            assert bench.times == []
            await bench.advance(5)
        assert bench.planned == [5]

    run(main())


# The order of the calls of one caller.


async def sent_and_cancelled(bench: Bench, call: Coroutine[Any, Any, object]) -> Gate:
    """Cancels a call whose write has left; it is made when the gate is released."""
    bench.faults.next("write", gate := Gate())
    task = asyncio.create_task(call)
    await gate.reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return gate


async def then(bench: Bench, gate: Gate, call: Coroutine[Any, Any, object]) -> None:
    """Makes the next call, and lets the write before it through as late as that allows."""
    task = asyncio.create_task(call)
    with bench.clock.hold():
        for _ in range(50):
            await asyncio.sleep(0)
    gate.release()
    await task
    with bench.clock.hold():
        for _ in range(50):
            await asyncio.sleep(0)


def test_a_pause_holds_although_a_resume_that_was_cancelled_before_is_still_under_way() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(interval=seconds(10), name="job")(bench.note)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x")
            await context.pause(job, "x", reason="a")
            gate = await sent_and_cancelled(bench, context.resume(job, "x"))
            await then(bench, gate, context.pause(job, "x", reason="a"))
            assert (await state_of(context, job, "x")).state == "paused"

    run(main())


def test_a_resume_holds_although_a_pause_that_was_cancelled_before_is_still_under_way() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(interval=seconds(10), name="job")(bench.note)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x")
            gate = await sent_and_cancelled(bench, context.pause(job, "x"))
            await then(bench, gate, context.resume(job, "x"))
            assert (await state_of(context, job, "x")).state == "scheduled"

    run(main())


def test_a_bulk_call_waits_for_the_write_of_a_call_that_was_cancelled_before() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(interval=seconds(10), name="job")(bench.note)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x")
            gate = await sent_and_cancelled(bench, context.unschedule_task(job, "x"))
            await then(bench, gate, context.schedule_tasks(job, [Instance("x")]))
            assert await context.get_task(job, "x") is not None

    run(main())


def test_a_bulk_call_by_where_finds_what_a_cancelled_call_before_it_wrote() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(interval=seconds(10), name="job")(bench.note)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x")
            gate = await sent_and_cancelled(bench, context.pause(job, "x"))
            where = Where(states={"paused"})
            await then(bench, gate, context.unschedule_tasks(job, where=where))
            assert await context.get_task(job, "x") is None

    run(main())


class Late:
    """A write that the store gets, and makes only when the test says so: its answer is unknown."""

    def __init__(self) -> None:
        self.batch: Sequence[Write] = ()

    async def strike(self, call: Callable[[], Awaitable[T]]) -> T:
        return await call()

    async def strike_writes(
        self,
        batch: Sequence[Write],
        make: Callable[[Sequence[Write]], Awaitable[list[Result]]],
    ) -> list[Result]:
        self.batch = batch
        raise StoreUnavailableError("injected: the connection was given up")

    async def land(self, bench: Bench) -> None:
        async with bench.store() as store:
            await store.write(self.batch, 0)


@pytest.mark.parametrize("sibling", ["pause", "bulk", "schedule"])
def test_what_seems_to_be_done_is_confirmed_if_an_earlier_write_may_still_be_made(
    sibling: str,
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(interval=seconds(10), name="job")(bench.note)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x")
            await context.pause(job, "x", reason="a")
            bench.faults.next("write", late := Late())
            with pytest.raises(StoreUnavailableError):
                await context.resume(job, "x")
            keep = OnExisting.KEEP
            match sibling:
                case "pause":
                    await context.pause(job, "x", reason="a")
                case "bulk":
                    done = await context.schedule_tasks(job, [Instance("x")], on_existing=keep)
                    assert done.unchanged == 1
                case _:
                    await context.schedule_task(job, "x", on_existing=keep)
            await late.land(bench)
            assert (await state_of(context, job, "x")).state == "paused"
            before = len(bench.faults.made("write"))
            await context.pause(job, "x", reason="a")
            assert len(bench.faults.made("write")) == before

    run(main())


def test_the_execution_id_tells_instances_of_one_name_of_two_templates_apart() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[tuple[str, float, str]] = []

        async def note(context: Context) -> None:
            seen.append((context.task.name, context.scheduled_at.timestamp(), context.execution_id))
            if context.attempt == 1:
                raise RuntimeError("once more")

        options: dict[str, Any] = {"failure_mode": FailureMode.UNLOCK}
        tasks = [bench.app.dynamic_task(name=name, **options)(note) for name in ("a", "b")]
        tasks += [bench.app.partitioned_task(2, name="c", **options)(note)]
        async with bench.running() as context:
            for task in tasks:
                await context.schedule_task(task, "one", execute_at=after(10))
            await bench.advance(30)
        assert len(seen) == 6
        assert len({(name, at) for name, at, _ in seen}) == 1
        counts = Counter(execution_id for _, _, execution_id in seen)
        assert sorted(counts.values()) == [2, 2, 2]

    run(main())


# Some instances of a template.


def test_the_instances_that_match_are_paused_and_resumed_each_by_itself() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.partitioned_task(3, name="job", interval=seconds(10))(bench.note)
        async with bench.running() as context:
            for name in ("a1", "a2", "b1"):
                await context.schedule_task(job, name)
            tenant = Where(prefix="a")
            told: list[int] = []
            result = await context.pause_tasks(
                job,
                where=tenant,
                until=after(100),
                reason="moves",
                progress=lambda done: told.append(done.handled),
            )
            assert (result.updated, result.failed, max(told)) == (2, 0, 2)
            await context.schedule_task(job, "a3")  # came later: it is not paused
            await bench.advance(15)
            assert sorted(run.name.split(":")[2] for run in bench.runs) == ["a3", "b1"]
            state = await state_of(context, job, "a1")
            assert (state.state, state.paused_until, state.reason) == (
                "paused",
                after(100),
                "moves",
            )
            assert await context.pauses() == []

            result = await context.resume_tasks(job, where=Where(paused=True))
            assert (result.updated, result.unchanged, result.failed) == (2, 0, 0)
            result = await context.resume_tasks(job, where=tenant)
            assert (result.updated, result.unchanged) == (0, 3)
            bench.runs.clear()
            await bench.advance(10)
            assert {run.name.split(":")[2] for run in bench.runs} == {"a1", "a2", "a3", "b1"}

    run(main())


def test_the_instances_that_match_are_triggered_once_and_not_while_the_template_is_paused() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            for name in ("a1", "a2", "b1"):
                await context.schedule_task(job, name, execute_at=after(500))
            await context.pause(job)
            with pytest.raises(TaskPausedError):
                await context.trigger_tasks(job, where=Where(prefix="a"))
            await context.resume(job)
            result = await context.trigger_tasks(job, where=Where(prefix="a"))
            assert (result.updated, result.unchanged, result.failed) == (2, 0, 0)
            result = await context.trigger_tasks(job, where=Where(prefix="a"))
            assert (result.updated, result.unchanged, result.failed) == (0, 2, 0)
            await bench.advance(1)
            assert sorted(run.name for run in bench.runs) == ["job:a1", "job:a2"]

    run(main())


def test_an_instance_that_does_not_match_any_more_is_left_as_it_is() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        other = bench.another_app(worker_name="other")
        same = other.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context, other.create() as elsewhere:
            await context.schedule_task(job, "a", execute_at=after(500))
            await context.pause(job, "a")
            bench.faults.next("write", gate := Gate())
            paused = Where(states={"paused"})
            triggering = asyncio.create_task(context.trigger_tasks(job, where=paused))
            await gate.reached()
            await elsewhere.resume(same, "a")
            gate.release()
            assert (await triggering).unchanged == 1
            state = await state_of(context, job, "a")
            assert (state.state, state.next) == ("scheduled", after(500))

    run(main())


@pytest.mark.parametrize("call", ["pause_tasks", "resume_tasks", "trigger_tasks"])
def test_a_call_for_many_refuses_what_it_cannot_do(call: str) -> None:
    async def main() -> None:
        bench = Bench()
        tick = ticking(bench)
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            change = getattr(context, call)
            with pytest.raises(TypeError, match="where must be a Where, not 'all'"):
                await change(job, where="all")
            with pytest.raises(TypeError, match="where must be a Where, not None"):
                await change(job, where=None)
            with pytest.raises(ValueError, match="'tick' is not a dynamic task"):
                await change(tick, where=Where())
            await bench.plant(job, "bad", schedule="what")
            failed = await change(job, where=Where())
            assert [failure.name for failure in failed.failures] == ["bad"]
        assert (failed.updated, failed.failed) == (0, 1)

    run(main())


def test_a_pause_of_many_is_checked_before_any_is_paused() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            with pytest.raises(ValueError, match="until must lie in the future"):
                await context.pause_tasks(job, where=Where(), until=after(-1))
            with pytest.raises(ValueError, match="reason has 501 characters"):
                await context.pause_tasks(job, where=Where(), reason="x" * 501)

    run(main())
