"""What becomes of a run: its context, its lease, its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack, nullcontext, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import pytest
from tests.faulty_store import Fail, Gate, LoseAnswer
from tests.support import START, Bench, Progress, after, logged, looping, micros, run, seconds

from pyncette import Context, ExecutionMode, FailureMode
from pyncette.engine import rules
from pyncette.engine.rules import Wanted
from pyncette.engine.writes import WriteQueue
from pyncette.errors import LeaseLostException, StoreUnavailableError
from pyncette.memory import MemoryStore
from pyncette.schedule import At
from pyncette.store import Refused, Result, Write
from pyncette.store.record import ANY, DELETE, STATIC_GROUP, Patch, load_progress
from pyncette.testing import VirtualClock

pytestmark = pytest.mark.every_poll

AMO = ExecutionMode.AT_MOST_ONCE

# The context.


def test_the_planned_time_is_told_in_the_tasks_time_zone() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []

        @bench.app.task(schedule="30 18 * * *", timezone="Asia/Kolkata")
        async def evening(context: Context) -> None:
            seen.append(context.scheduled_at)

        @bench.app.task(interval=timedelta(hours=1))
        async def hourly(context: Context) -> None:
            seen.append(context.scheduled_at)

        async with bench.running():
            await bench.advance(3600)
        assert {str(instant) for instant in seen} == {
            "2026-01-05 18:30:00+05:30",
            "2026-01-05 13:00:00+00:00",
        }

    run(main())


def test_a_static_task_finds_the_very_task_declared_and_its_arguments() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []

        args: dict[str, Any] = {"color": "blue", "timeout": 30}

        @bench.app.task(interval=seconds(1), **args)
        async def tick(context: Context) -> None:
            assert context.app_context is opened
            seen.append((context.task, context.args))

        async with bench.running() as opened:
            await bench.advance(1)
        assert seen == [(tick, {"color": "blue", "timeout": 30})]
        assert seen[0][0] is tick

    run(main())


@pytest.mark.parametrize("dynamic", [False, True])
def test_each_execution_has_a_copy_of_its_arguments(dynamic: bool) -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[dict[str, Any]] = []

        async def body(context: Context) -> None:
            seen.append(dict(context.args))
            context.args["color"] = "changed"
            context.args["more"] = 1

        options: dict[str, Any] = {"name": "job", "interval": 1, "color": "blue"}
        if dynamic:
            job = bench.app.dynamic_task(**options)(body)
            async with bench.running() as context:
                await context.schedule_task(job, "x")
                await bench.advance(2)
        else:
            bench.app.task(**options)(body)
            async with bench.running():
                await bench.advance(2)
        assert seen == [{"color": "blue"}] * 2

    run(main())


def test_a_context_can_be_built_by_a_test_of_a_task() -> None:
    async def main() -> None:
        async def body(context: Context) -> None:
            await context.heartbeat()
            context.result = context.args["n"] + 1

        context = Context()
        context.args = {"n": 1}
        await body(context)
        assert context.result == 2

    run(main())


def test_an_attribute_that_there_is_not_is_an_attribute_error() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []

        @bench.app.task(interval=seconds(1))
        async def tick(context: Context) -> None:
            seen.append(hasattr(context, "databse"))
            context.databse  # noqa: B018

        async with bench.running():
            await bench.advance(1)
        record = await bench.record(tick)
        assert record is not None
        assert "no 'databse'" in record.progress
        assert seen == [False]

    run(main())


# At least once.


def test_a_worker_that_was_killed_before_the_body_is_followed_by_another_when_its_lease_ends() -> (
    None
):
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(
            job, "x", due=7, state="running", token="killed:1:1", unfinished_attempts=1
        )
        async with bench.running():
            await bench.advance(10)
        assert (bench.times, bench.planned) == ([7], [0])

    run(main())


def test_a_lease_that_ends_has_the_same_occurrence_run_again_also_in_the_same_worker() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.dynamic_task(lease_duration=seconds(5))
        async def job(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(8 if len(bench.runs) == 1 else 1)

        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=seconds(100))
            await bench.advance(130)
        assert (bench.times, bench.planned) == ([100, 105], [100, 100])

    run(main())


def test_one_record_never_runs_twice_at_once_while_its_lease_holds() -> None:
    async def main() -> None:
        bench = Bench()
        running: list[str] = []

        async def body(context: Context) -> None:
            assert context.task.name not in running
            running.append(context.task.name)
            await bench.clock.sleep(3.7)
            running.remove(context.task.name)
            await bench.note(context)

        apps = [bench.app, bench.another_app(), bench.another_app()]
        jobs = [app.dynamic_task(name="job")(body) for app in apps]
        async with (
            bench.running(apps[0]) as context,
            bench.running(apps[1]),
            bench.running(apps[2]),
        ):
            for number in range(20):
                await context.schedule_task(jobs[0], str(number), interval=seconds(1))
            await bench.advance(30)
            for app in apps:
                for task in app._tasks:
                    task.enabled = False
            await bench.advance(10)
        assert len(bench.runs) >= 20 * 7

    run(main())


# Failures.


def test_a_failure_of_mode_none_is_retried_when_its_lease_ends() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=100, lease_duration=30)(bench.fail)
        async with bench.running():
            await bench.advance(170)
        assert bench.times == [100, 130, 160]
        assert bench.planned == [100] * 3

    run(main())


def test_a_failure_of_mode_none_counts_no_start() -> None:
    async def main() -> None:
        bench = Bench()
        task = bench.app.task(name="tick", interval=100, lease_duration=30)(bench.fail)
        async with bench.running():
            await bench.advance(300)
        record = await bench.record(task)
        assert record is not None
        assert record.unfinished_attempts == 0
        assert len(bench.runs) == 7

    run(main())


def test_a_failure_of_mode_unlock_is_due_again_after_one_poll_interval() -> None:
    async def main() -> None:
        bench = Bench(poll_interval=seconds(4))
        bench.app.task(name="tick", interval=100, failure_mode=FailureMode.UNLOCK)(bench.fail)
        async with bench.running():
            await bench.advance(109)
        assert bench.times == [100, 104, 108]
        assert bench.planned == [100] * 3

    run(main())


def test_a_failure_of_mode_commit_counts_as_done() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=10, failure_mode=FailureMode.COMMIT)(bench.fail)
        job = bench.app.dynamic_task(name="job", failure_mode=FailureMode.COMMIT)(bench.fail)
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(5))
            await bench.advance(25)
            assert await context.get_task(job, "x") is None
        assert bench.planned == [5, 10, 20]

    run(main())


@pytest.mark.parametrize("mode", FailureMode)
def test_an_exception_is_logged_with_its_traceback_and_never_stops_the_loop(
    mode: FailureMode, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="bad", interval=1, failure_mode=mode)(bench.fail)
        bench.app.task(name="good", interval=1)(bench.note)
        async with bench.running():
            await bench.advance(3)
        assert [entry.name for entry in bench.runs].count("good") == 3

    run(main())
    [record, *_] = [record for record in caplog.records if record.exc_info]
    assert record.name.startswith("pyncette")
    assert "bad" in record.getMessage()
    assert "the body failed" in str(record.exc_info)


def test_a_body_that_cancels_itself_has_failed() -> None:
    async def main() -> None:
        bench = Bench()
        tasks = [
            bench.app.task(name=mode.name, interval=1, failure_mode=mode)(_cancel_oneself)
            for mode in FailureMode
        ]
        async with bench.running():
            await bench.advance(1)
            found = {}
            for task in tasks:
                record = await bench.record(task)
                assert record is not None
                assert record.unfinished_attempts == 0
                failures = load_progress(record.progress).failures
                found[task.name] = record.state, record.due_at, failures
        assert found == {
            "NONE": ("running", micros(61), 1),
            "UNLOCK": ("retrying", micros(2), 1),
            "COMMIT": ("scheduled", micros(2), 0),
        }

    run(main())


async def _cancel_oneself(context: Context) -> None:
    current = asyncio.current_task()
    assert current is not None
    current.cancel()
    await asyncio.sleep(0)


def test_a_body_that_never_waits_and_cancels_itself_takes_no_other_along() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            if context.task.name == "bad":
                raise asyncio.CancelledError
            await bench.note(context)

        for name in ("a", "b", "bad", "y", "z"):
            await bench.plant(job, name)
        async with bench.running():
            pass
        assert sorted(entry.name[-1] for entry in bench.runs) == ["a", "b", "y", "z"]

    run(main())


@pytest.mark.parametrize("waits", [False, True])
def test_a_context_variable_set_by_one_execution_is_not_seen_by_the_next(waits: bool) -> None:
    async def main() -> None:
        bench = Bench()
        variable: ContextVar[str | None] = ContextVar("variable", default=None)
        seen: list[str | None] = []

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            seen.append(variable.get())
            variable.set(context.task.name)
            if waits:
                await asyncio.sleep(0)

        await bench.plant(job, *map(str, range(20)))
        async with bench.running():
            pass
        assert seen == [None] * 20

    run(main())


# At most once.


def test_an_at_most_once_record_has_moved_on_before_the_body_runs() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []

        @bench.app.dynamic_task(execution_mode=AMO)
        async def job(context: Context) -> None:
            seen.append(await context.app_context.get_task(job, context.task.name))

        async with bench.running() as context:
            await context.schedule_task(job, "once", execute_at=after(1))
            await context.schedule_task(job, "often", interval=seconds(2))
            await bench.advance(2)
        assert seen[0] is None
        assert (seen[1].scheduled_at, seen[1].locked_by) == (after(4), None)

    run(main())


def test_executions_of_an_at_most_once_record_may_overlap_when_it_is_slow() -> None:
    async def main() -> None:
        bench = Bench()
        most, running = 0, 0

        @bench.app.task(interval=seconds(1), execution_mode=AMO)
        async def tick(context: Context) -> None:
            nonlocal most, running
            running += 1
            most = max(most, running)
            await bench.note(context)
            await bench.clock.sleep(2.5)
            running -= 1

        async with bench.running() as context:
            await bench.advance(6)
            context.shutdown()
            await bench.advance(3)
        assert bench.times == [1, 2, 3, 4, 5, 6]
        assert most == 3

    run(main())


def test_an_at_most_once_task_that_fails_is_not_retried() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=10, execution_mode=AMO)(bench.fail)
        async with bench.running():
            await bench.advance(100)
        assert bench.planned == [10 * n for n in range(1, 11)]

    run(main())


def test_an_at_most_once_body_does_not_start_when_another_has_taken_the_record(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", execution_mode=AMO)(bench.note)
        gate = Gate()
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(5), n=1)
            bench.faults.next("write", gate)
            advancing = asyncio.create_task(bench.advance(5))
            await gate.reached()
            record = await bench.record(job, "x")
            assert record is not None
            async with bench.store() as store:
                await store.write(
                    [Write(job.group, "x", Patch(micros(60), "running", 1), record.version)],
                    micros(5),
                )
                await bench.plant(
                    job,
                    "x",
                    due=60,
                    state="running",
                    token="thief:1:1",
                    unfinished_attempts=1,
                    progress=record.progress,
                )
            gate.release()
            await advancing
        assert bench.runs == []

    run(main())
    assert logged(caplog, "job:x was not started", "worker thief took it")


def test_an_at_most_once_body_does_not_start_when_its_record_is_gone() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", execution_mode=AMO)(bench.note)
        gate = Gate()
        async with bench.running() as context, bench.another_app().create() as other:
            await context.schedule_task(job, "x", execute_at=after(5))
            bench.faults.next("write", gate)
            advancing = asyncio.create_task(bench.advance(5))
            await gate.reached()
            await other.unschedule_task(job, "x")
            gate.release()
            await advancing
        assert bench.runs == []

    run(main())


def test_an_at_most_once_body_does_not_start_when_its_advance_fails_for_a_whole_lease(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        task = bench.app.task(name="tick", interval=60, execution_mode=AMO, lease_duration=1)(
            bench.note
        )
        async with bench.running():
            with bench.faults.down("write"):
                await bench.advance(61.5)
                record = await bench.record(task)
                assert record is not None
                assert record.due_at == micros(62)
                task.enabled = False
                await bench.advance(10)
                for _ in range(40):
                    await asyncio.sleep(0.005)
                    if logged(caplog, "tick was not started", "unknown"):
                        break
        assert bench.runs == []

    run(main())
    assert logged(caplog, "tick was not started", "unknown", "injected")


def test_the_lease_of_an_at_most_once_record_is_not_shorter_than_a_slow_store() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=60, execution_mode=AMO, lease_duration=0.01)(
            bench.note
        )
        async with bench.running():
            await bench.advance(60)
            assert bench.times == [60]
        lease = {
            call.arguments[0][0].lease for call in bench.faults.made("claim") if call.arguments[1]
        }
        assert lease == {2_000_000}

    run(main())


class PassingClock(VirtualClock):
    """A clock that moves also while calls to the store are under way."""

    def hold(self) -> Any:
        return nullcontext()


@pytest.mark.parametrize("mode", ExecutionMode)
def test_a_claim_that_took_long_is_extended_before_the_body_starts(mode: ExecutionMode) -> None:
    async def main() -> None:
        bench = Bench()
        bench.clock = PassingClock(START)
        app = bench.another_app()

        @app.task(interval=seconds(60), lease_duration=seconds(1), execution_mode=mode)
        async def tick(context: Context) -> None:
            await bench.note(context)
            record = await bench.record(tick)
            assert record is not None
            if mode is ExecutionMode.AT_LEAST_ONCE:
                assert record.due_at == micros(61.5)

        gate = Gate(answer=True)
        async with bench.running(app):
            bench.faults.next("claim", gate, matches=lambda s, lim, now, *_: now >= micros(60))
            await bench.advance(60)
            await gate.reached()
            await bench.advance(0.5)
            gate.release()
            await bench.clock.settle()
        assert bench.times == [60.5]
        writes = [call.arguments[0][0].change for call in bench.faults.made("write")]
        lease = 1 if mode is ExecutionMode.AT_LEAST_ONCE else 2
        assert writes[1] == Patch(micros(60.5 + lease), "running", 1)

    run(main())


def test_a_claim_that_took_longer_than_the_lease_is_not_run_where_somebody_took_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        bench.clock = PassingClock(START)
        app = bench.another_app()
        job = app.dynamic_task(name="job", lease_duration=1)(bench.note)
        await bench.plant(job, "x", planned=60)
        gate = Gate(answer=True)
        async with bench.running(app) as context:
            bench.faults.next("claim", gate, matches=lambda s, lim, now, *_: now >= micros(60))
            await bench.advance(60)
            await gate.reached()
            await bench.advance(2)
            await bench.plant(
                job, "x", due=100, state="running", token="thief:1:1", unfinished_attempts=2
            )
            context.shutdown()
            gate.release()
            await bench.clock.settle()
        assert bench.runs == []

    run(main())


def test_a_slow_claim_that_cannot_be_extended_is_not_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        bench.clock = PassingClock(START)
        app = bench.another_app()
        job = app.dynamic_task(name="job", lease_duration=1)(bench.note)
        await bench.plant(job, "x", planned=60)
        gate = Gate(answer=True)
        async with bench.running(app):
            bench.faults.next("claim", gate, matches=lambda s, lim, now, *_: now >= micros(60))
            await bench.advance(60)
            await gate.reached()
            await bench.advance(0.5)
            bench.faults.next("write", Fail())
            gate.release()
            await bench.clock.settle()
            assert bench.runs == []
            await bench.advance(2)
        assert bench.planned == [60]

    run(main())
    assert logged(caplog, "job:x was not started", "injected")


# Heartbeats.


def test_a_heartbeat_extends_the_lease_by_its_duration_from_now() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.task(interval=seconds(100), lease_duration=seconds(10))
        async def slow(context: Context) -> None:
            await bench.note(context)
            for _ in range(5):
                await bench.clock.sleep(7)
                await context.heartbeat()
                state = await context.app_context.get_task(slow)
                assert state is not None
                assert state.locked_until == bench.clock.now() + seconds(10)

        async with bench.running():
            await bench.advance(199)
        assert bench.times == [100]

    run(main())


def test_a_lease_that_expired_and_that_nobody_took_can_be_extended() -> None:
    async def main() -> None:
        bench = Bench()
        beaten: list[float] = []

        @bench.app.task(interval=seconds(100), lease_duration=seconds(10))
        async def slow(context: Context) -> None:
            slow.enabled = False
            await bench.clock.sleep(25)
            await context.heartbeat()
            beaten.append(bench.clock.monotonic())

        async with bench.running():
            await bench.advance(150)
        record = await bench.record(slow)
        assert beaten == [125]
        assert record is not None
        assert (record.state, record.due_at) == ("scheduled", micros(200))

    run(main())


def test_a_lease_that_was_lost_raises_and_the_outcome_is_not_recorded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        lost: list[Any] = []

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(5)
            for _ in range(2):
                with suppress(LeaseLostException):
                    try:
                        await context.heartbeat()
                    except LeaseLostException as error:
                        lost.append(error.task.name)
                        raise

        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(1))
            await bench.advance(2)
            await bench.plant(
                job, "x", due=100, state="running", token="thief:1:1", unfinished_attempts=1
            )
            before = await bench.record(job, "x")
            await bench.advance(10)
            assert await bench.record(job, "x") == before
        assert lost == ["x", "x"]

    run(main())
    assert logged(caplog, "job:x lost its lease", "outcome is not recorded")


def test_a_heartbeat_of_a_record_that_was_removed_raises() -> None:
    async def main() -> None:
        bench = Bench()
        lost: list[Exception] = []

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            await context.app_context.unschedule_task(job, context.task.name)
            try:
                await context.heartbeat()
            except LeaseLostException as error:
                lost.append(error)
                raise

        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=5)
            await bench.advance(20)
            assert await context.get_task(job, "x") is None
        assert len(lost) == 1

    run(main())


def test_a_heartbeat_does_nothing_for_an_at_most_once_task() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.task(interval=seconds(10), execution_mode=AMO)
        async def tick(context: Context) -> None:
            before = await bench.record(tick)
            await context.heartbeat()
            assert await bench.record(tick) == before
            await bench.note(context)

        async with bench.running():
            await bench.advance(10)
        assert bench.times == [10]

    run(main())


def test_a_heartbeat_that_fails_tells_its_caller_who_may_try_again() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[str] = []

        @bench.app.task(interval=seconds(10))
        async def tick(context: Context) -> None:
            for fault in (Fail(), LoseAnswer()):
                bench.faults.next("write", fault)
                with suppress(StoreUnavailableError):
                    await context.heartbeat()
                    seen.append("not failed")
                await bench.clock.sleep(1)
                await context.heartbeat()
            seen.append("done")

        async with bench.running() as context:
            await bench.advance(15)
            state = await context.get_task(tick)
            assert state is not None
            assert state.scheduled_at == after(20)
        assert seen == ["done"]

    run(main())


def test_heartbeats_and_the_outcome_never_overtake_each_other() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.task(interval=seconds(10))
        async def tick(context: Context) -> None:
            beats = [asyncio.create_task(context.heartbeat()) for _ in range(3)]
            await asyncio.sleep(0)
            await bench.note(context)
            late.extend(beats)

        late: list[asyncio.Task[None]] = []
        async with bench.running():
            await bench.advance(10)
            assert all(beat.done() and beat.exception() is None for beat in late)
            record = await bench.record(tick)
            assert record is not None
            assert (record.state, record.due_at) == ("scheduled", micros(20))

    run(main())


def test_a_heartbeat_after_the_end_of_the_run_does_nothing() -> None:
    async def main() -> None:
        bench = Bench()
        contexts: list[Context] = []

        @bench.app.task(interval=seconds(10))
        async def tick(context: Context) -> None:
            contexts.append(context)

        async with bench.running():
            await bench.advance(10)
            before = await bench.record(tick)
            await contexts[0].heartbeat()
            assert await bench.record(tick) == before

    run(main())


# Outcomes on a store that fails.


class Locked(MemoryStore):
    """A store in which somebody's transaction holds every row of one group for some writes."""

    def __init__(self, group: str, times: int, like: MemoryStore) -> None:
        super().__init__()
        self._shelves = like._shelves
        self.group = group
        self.times = times
        self.refused = 0

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        if self.refused < self.times and any(write.group == self.group for write in batch):
            self.refused += 1
            return [Refused(record) for record in await self.get([write[:2] for write in batch])]
        return await super().write(batch, now, wake)


@pytest.mark.parametrize("mode", ExecutionMode)
def test_a_record_that_a_transaction_holds_is_written_again_with_pauses(
    mode: ExecutionMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[Any] = []

    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", execution_mode=mode)(bench.note)
        await bench.plant(job, "x")
        bench.repository._store = Locked(job.group, 4, bench.repository._store)
        defer = WriteQueue._defer

        def noting(queue: WriteQueue, entry: Any) -> None:
            pauses.append(entry)
            defer(queue, entry)

        monkeypatch.setattr(WriteQueue, "_defer", noting)
        async with bench.running():
            await bench.clock.settle()
        assert await bench.record(job, "x") is None
        assert len(bench.runs) == 1

    monkeypatch.setattr("pyncette.engine.writes.RETRY_DELAY_INITIAL_S", 0.001)
    run(main())
    assert len(pauses) == 4


def test_a_call_for_a_record_that_a_transaction_holds_waits_and_then_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", lease_duration=0.1)(bench.note)
        await bench.plant(job, "x", planned=50)
        locked = Locked(job.group, 10**6, bench.repository._store)
        bench.repository._store = locked
        async with bench.app.create() as context:
            with pytest.raises(StoreUnavailableError, match="locked by an open transaction"):
                await context.schedule_task(job, "x", interval=1)
            assert locked.refused < 20
            locked.times = locked.refused + 3
            await context.schedule_task(job, "x", interval=1)

    monkeypatch.setattr("pyncette.opening.DEADLINE_MIN_S", 0.1)
    run(main())


def test_an_outcome_whose_answer_was_lost_is_written_again_and_found_done() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=seconds(10))
            await context.schedule_task(job, "once", execute_at=after(10))
            bench.faults.next("write", LoseAnswer())
            await bench.advance(10)
        record = await bench.record(job, "x")
        assert record is not None
        assert (record.state, record.due_at) == ("scheduled", micros(20))
        assert await bench.record(job, "once") is None
        assert len(bench.runs) == 2

    run(main())


def test_an_outcome_that_cannot_be_written_while_the_lease_lives_is_dropped_with_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=100, lease_duration=5)(bench.note)
        async with bench.running():
            with bench.faults.down("write"):
                await bench.advance(105)
                for _ in range(100):
                    await asyncio.sleep(0.005)
                    if logged(caplog, "outcome of tick could not be recorded"):
                        break
                assert len(bench.runs) == 2
            await bench.advance(50)
        assert bench.planned == [100] * len(bench.runs)

    run(main())
    assert logged(caplog, "outcome of tick could not be recorded", "injected")


def test_what_was_asked_for_while_a_run_was_in_hand_holds_after_it() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            await bench.note(context)
            if len(bench.runs) == 1:
                async with bench.store() as store:
                    current = await bench.record(job, "x")
                    assert current is not None
                    wanted = Wanted(At(after(30)), '1 {"n":2}', "reborn", current[:2])
                    change = rules.replaced(current, wanted, micros(10))
                    await store.write([Write(job.group, "x", change, current.version)], micros(10))
                await context.heartbeat()

        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(10), n=1)
            await bench.advance(40)
            assert await context.get_task(job, "x") is None
        assert [(entry.at, entry.args["n"]) for entry in bench.runs] == [(10, 1), (30, 2)]

    run(main())


def test_a_record_that_becomes_unreadable_while_it_runs_is_lost_to_its_run() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            await bench.note(context)
            current = await bench.record(job, "x")
            assert current is not None
            async with bench.store() as store:
                patch = Patch(current.due_at, current.state, current.unfinished_attempts, "2 newer")
                await store.write([Write(job.group, "x", patch, current.version)], micros(10))

        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=10)
            await bench.advance(12)
            record = await bench.record(job, "x")
            assert record is not None
            assert record.progress == "2 newer"

    run(main())


# Catching up.


@pytest.mark.parametrize(
    ("options", "planned"),
    [
        ({"interval": 10}, [10, 20, 30, 40, 50, 60]),
        ({"schedule": "* * * * * */10"}, [10, 20, 30, 40, 50, 60]),
        ({"interval": 10, "fast_forward": True}, [10, 50, 60]),
        ({"schedule": "* * * * * */10", "fast_forward": True}, [10, 50, 60]),
    ],
    ids=str,
)
def test_missed_occurrences_run_in_order_or_collapse_into_the_one_in_hand(
    options: dict[str, Any], planned: list[float]
) -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", **options)(bench.note)
        async with bench.running():
            pass
        await bench.advance(45)
        async with bench.running():
            await bench.advance(15)
        assert bench.planned == planned
        assert bench.times[-2:] == [50, 60]
        assert set(bench.times[:-2]) == {45}

    run(main())


@pytest.mark.parametrize("fast_forward", [False, True])
def test_a_missed_one_off_runs_once(fast_forward: bool) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", fast_forward=fast_forward)(bench.note)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x", execute_at=after(5))
        await bench.advance(100)
        async with bench.running():
            await bench.advance(100)
        assert (bench.times, bench.planned) == ([100], [5])

    run(main())


def test_an_interval_does_not_drift_with_the_time_that_its_runs_take() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.task(interval=seconds(10))
        async def slow(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(3.3)

        async with bench.running() as context:
            await bench.advance(100)
            context.shutdown()
            await bench.advance(5)
        assert bench.times == [10 * n for n in range(1, 11)]

    run(main())


# Static tasks and their records.


def test_the_first_run_of_a_static_task_is_the_first_occurrence_after_it_was_met() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="every minute", schedule="* * * * *")(bench.note)
        bench.app.task(name="interval", interval=30)(bench.note)
        await bench.advance(70)
        async with bench.running():
            await bench.advance(60)
        assert [(entry.at, entry.name) for entry in bench.runs] == [
            (100, "interval"),
            (120, "every minute"),
            (130, "interval"),
        ]

    run(main())


def test_a_restart_does_not_put_a_static_task_off() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=10)(bench.note)
        for _ in range(5):
            async with bench.running():
                await bench.advance(6)
        assert bench.planned == [10, 20, 30]

    run(main())


def test_a_static_task_that_was_disabled_at_the_start_is_met_when_it_is_enabled() -> None:
    async def main() -> None:
        bench = Bench()
        task = bench.app.task(name="tick", interval=10, enabled=False)(bench.note)
        async with bench.running() as context:
            await bench.advance(50)
            assert await context.get_task(task) is None
            task.enabled = True
            await bench.advance(20)
        assert bench.times == [61]

    run(main())


@pytest.mark.parametrize(
    ("before", "then", "planned"),
    [
        ({"interval": 100}, {"interval": 30}, [35, 65, 95]),
        ({"interval": 10}, {"interval": 30}, [10, 40, 70, 100]),
        ({"interval": 100}, {"schedule": "* * * * *"}, [60]),
        ({"schedule": "* * * * *"}, {"schedule": "0 * * * *"}, [60]),
        ({"interval": 100}, {"interval": 100}, [100]),
    ],
    ids=str,
)
def test_a_static_task_whose_schedule_changed_in_code_is_replanned_at_the_start(
    before: dict[str, Any], then: dict[str, Any], planned: list[float]
) -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", **before)(bench.note)
        async with bench.running():
            await bench.advance(5)
        app = bench.another_app()
        task = app.task(name="tick", **then)(bench.note)
        async with bench.running(app) as context:
            state = await context.get_task(task)
            assert state is not None
            await bench.advance(95)
        assert bench.planned == planned

    run(main())


def test_a_schedule_that_changed_in_code_is_told_in_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=1)(bench.note)
        async with bench.running():
            await bench.advance(1)
        app = bench.another_app()
        app.task(name="tick", schedule="0 9 * * *", timezone="Europe/Berlin")(bench.note)
        with caplog.at_level("INFO"):
            async with bench.running(app):
                await bench.advance(1)

    run(main())
    told = "Schedule of tick: 'every 0:00:01' becomes '0 9 * * * Europe/Berlin'"
    assert told in caplog.messages


def test_an_overdue_occurrence_of_the_old_schedule_is_run_before_the_new_one() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=10)(bench.note)
        async with bench.running():
            await bench.advance(1)
        await bench.advance(20)
        app = bench.another_app()
        app.task(name="tick", interval=50)(bench.note)
        async with bench.running(app):
            await bench.advance(60)
        assert bench.planned == [10, 60]

    run(main())


def test_a_run_in_hand_goes_on_while_another_worker_replans_it() -> None:
    async def main() -> None:
        bench = Bench()

        async def slow(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(5)

        old = bench.app.task(name="tick", interval=10)(slow)
        app = bench.another_app()
        app.task(name="tick", interval=7)(slow)
        async with bench.running():
            await bench.advance(12)
            old.enabled = False
            async with bench.running(app) as other:
                await bench.advance(11)
                other.shutdown()
                await bench.advance(10)
        assert bench.planned == [10, 19]

    run(main())


def test_a_worker_of_the_old_release_runs_the_new_plan_and_does_not_bend_it() -> None:
    async def main() -> None:
        bench = Bench()
        task = bench.app.task(name="tick", interval=10)(bench.note)
        app = bench.another_app()
        app.task(name="tick", interval=7)(bench.note)
        async with bench.running():
            await bench.advance(1)
            async with bench.running(app):
                pass
            await bench.advance(22)
        assert bench.planned == [8, 15, 22]
        record = await bench.record(task)
        assert record is not None
        assert record.schedule == "1 every 7000000"

    run(main())


def test_a_schedule_of_a_newer_format_is_left_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        task = bench.app.task(name="tick", interval=10)(bench.note)
        await bench.plant(task, schedule="3 lunar", progress="2 newer", planned=100)
        async with bench.running():
            await bench.advance(5)
        record = await bench.record(task)
        assert record is not None
        assert (record.schedule, record.due_at) == ("3 lunar", micros(100))

    run(main())
    assert logged(caplog, "tick", "left as it is")


def test_two_workers_that_start_at_once_make_one_record() -> None:
    async def main() -> None:
        bench = Bench()
        apps = [bench.another_app() for _ in range(3)]
        for app in apps:
            app.task(name="tick", interval=10)(bench.note)
        gate = Gate()
        bench.faults.next("write", gate, gate, gate)
        async with AsyncExitStack() as stack:
            for app in apps:
                await stack.enter_async_context(
                    looping(await stack.enter_async_context(app.create()))
                )
            await gate.reached()
            for _ in range(50):
                await asyncio.sleep(0)
            gate.release()
            await bench.advance(30)
        assert bench.planned == [10, 20, 30]

    run(main())


def test_two_workers_that_replan_at_once_agree() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=1000)(bench.note)
        async with bench.running():
            pass
        apps = [bench.another_app() for _ in range(2)]
        for app in apps:
            app.task(name="tick", interval=10)(bench.note)
        gate = Gate()
        bench.faults.next("write", gate, gate)
        async with AsyncExitStack() as stack:
            for app in apps:
                await stack.enter_async_context(
                    looping(await stack.enter_async_context(app.create()))
                )
            await gate.reached()
            for _ in range(50):
                await asyncio.sleep(0)
            gate.release()
            await bench.advance(30)
        assert bench.planned == [10, 20, 30]

    run(main())


def test_a_static_record_that_somebody_removes_is_made_again() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=10)(bench.note)
        async with bench.running():
            await bench.advance(15)
            async with bench.store() as store:
                await store.write([Write(STATIC_GROUP, "tick", DELETE, ANY)], micros(15))
            await bench.advance(20)
        assert bench.times[:2] == [10, pytest.approx(26, abs=1)]

    run(main())


def test_a_triggered_record_runs_once_more_and_goes_on_as_planned() -> None:
    async def main() -> None:
        bench = Bench()
        task = bench.app.task(name="tick", interval=100)(bench.note)
        progress = Progress(micros(100), "incarnation", triggered=micros(3))
        await bench.plant(task, planned=100, due=3, progress=progress)
        async with bench.running():
            await bench.advance(110)
        assert (bench.times, bench.planned) == ([3, 100], [3, 100])

    run(main())


@pytest.mark.parametrize("mode", ExecutionMode)
def test_a_run_whose_outcome_was_not_acknowledged_has_its_successor_in_time(
    mode: ExecutionMode,
) -> None:
    async def main() -> None:
        bench = Bench(poll_interval=seconds(60))
        job = bench.app.dynamic_task(name="job", execution_mode=mode)(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=seconds(1))
            bench.faults.next("write", LoseAnswer())
            await bench.advance(1)
            await context._worker.writes.drained()
            await bench.advance(2)
        assert bench.planned == [1, 2, 3]
        assert bench.times == [1, 2, 3]

    run(main())


class Waiting:
    """An executor that begins nothing before it is left."""

    def __init__(self, **configuration: Any) -> None:
        self.queue: list[Any] = []

    async def __aenter__(self) -> Waiting:
        return self

    async def __aexit__(self, *exception: object) -> None:
        for awaitable in self.queue:
            await awaitable

    async def spawn_task(self, awaitable: Any) -> None:
        self.queue.append(awaitable)


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_did_not_begin_before_the_loop_was_cancelled_is_cancelled_with_it(
    cancelled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench(executor_cls=Waiting)
        task = bench.app.task(name="tick", interval=1)(bench.note)
        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.advance(1)
            if cancelled:
                loop.cancel()
            else:
                context.shutdown()
            await asyncio.wait([loop])
        record = await bench.record(task)
        assert record is not None
        if cancelled:
            assert (record.state, record.due_at) == ("scheduled", micros(1))
        assert logged(caplog, "tick was not started: its worker is closing") == cancelled
        assert bench.times == ([] if cancelled else [1])

    run(main())


@pytest.mark.parametrize("change", ["idle", "taken"])
def test_a_heartbeat_finds_what_became_of_the_record(change: str) -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[str] = []

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            record = await bench.record(job, "x")
            assert record is not None
            token = "thief:1:1" if change == "taken" else record.token
            await bench.plant(job, "x", due=50, state="scheduled", token=token)
            try:
                await context.heartbeat()
                seen.append("settled")
            except LeaseLostException:
                seen.append("lost")

        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(1))
            await bench.advance(2)
        assert seen == ["lost" if change == "taken" else "settled"]

    run(main())


def test_a_heartbeat_that_is_under_way_when_the_lease_is_found_lost_raises() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            await bench.plant(
                job, "x", due=50, state="running", token="thief:1:1", unfinished_attempts=1
            )
            seen.extend(
                await asyncio.gather(
                    context.heartbeat(), context.heartbeat(), return_exceptions=True
                )
            )

        seen: list[Any] = []
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(1))
            await bench.advance(2)
        assert [type(entry) for entry in seen] == [LeaseLostException] * 2

    run(main())


def test_a_cancelled_heartbeat_is_not_sent() -> None:
    async def main() -> None:
        bench = Bench()
        gate = Gate()

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            bench.faults.next("write", gate)
            first = asyncio.create_task(context.heartbeat())
            await gate.reached()
            second = asyncio.create_task(context.heartbeat())
            await asyncio.sleep(0)
            for beat in (first, second):
                beat.cancel()
            await asyncio.wait([first, second])
            before.extend(bench.faults.made("write"))
            gate.release()
            await asyncio.sleep(0)

        before: list[Any] = []
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(1))
            written = len(bench.faults.made("write"))
            await bench.advance(2)
        # The first had left; after it comes the outcome, and no second.
        assert len(bench.faults.made("write")) == len(before) + 1
        assert len(before) == written + 1

    run(main())


@pytest.mark.parametrize("applied", [False, True])
def test_an_at_most_once_run_that_is_cancelled_while_it_moves_on_begins_only_if_it_has(
    applied: bool,
) -> None:
    async def main() -> None:
        bench = Bench()
        task = bench.app.task(name="tick", interval=60, execution_mode=AMO)(bench.note)
        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.clock.settle()
            gate = Gate()
            bench.faults.next("write", gate)
            advancing = asyncio.create_task(bench.advance(60))
            await gate.reached()
            context._worker.dispatcher.cancel()
            await asyncio.sleep(0)
            if not applied:
                await bench.plant(
                    task, due=100, state="running", token="thief:1:1", unfinished_attempts=1
                )
            context.shutdown()
            gate.release()
            await loop
            await advancing
        # Nobody else would run it: what does not wait is not cancelled.
        assert len(bench.runs) == applied
        record = await bench.record(task)
        assert record is not None
        assert record.due_at == micros(120 if applied else 100)

    run(main())


def test_a_run_whose_lease_was_extended_may_start_until_the_end_of_that() -> None:
    async def main() -> None:
        bench = Bench()
        bench.clock = PassingClock(START)
        app = bench.another_app(concurrency_limit=1)
        job = app.dynamic_task(name="job", lease_duration=1)(bench.note)
        await bench.plant(job, "x", planned=60)
        claim, extension = Gate(answer=True), Gate(answer=True)
        async with bench.running(app):
            bench.faults.next("claim", claim, matches=lambda s, lim, now, *_: now >= micros(60))
            await bench.advance(60)
            await claim.reached()
            await bench.advance(0.8)
            bench.faults.next("write", extension)
            claim.release()
            await extension.reached()
            await bench.advance(0.8)
            extension.release()
            await bench.clock.settle()
        assert bench.times == [61.6]

    run(main())


class SpawnOnly:
    """An executor, written by a user, that cannot cancel what runs in it."""

    def __init__(self, **configuration: Any) -> None:
        self.spawned: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> SpawnOnly:
        return self

    async def __aexit__(self, *exception: object) -> None:
        pass

    async def spawn_task(self, awaitable: Any) -> None:
        self.spawned.append(asyncio.create_task(awaitable))


def test_a_cancelled_loop_cancels_what_runs_in_an_executor_that_cannot_cancel() -> None:
    async def main() -> None:
        bench = Bench(executor_cls=SpawnOnly)
        seen: list[str] = []

        @bench.app.task(interval=seconds(1))
        async def endless(context: Context) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                seen.append("cancelled")

        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.advance(1)
            loop.cancel()
            await asyncio.wait([loop])
            assert seen == []
        assert seen == ["cancelled"]

    run(main())


def test_an_at_most_once_run_that_is_cancelled_before_its_advance_leaves_keeps_the_record() -> None:
    async def main() -> None:
        bench = Bench()
        bench.clock = PassingClock(START)
        app = bench.another_app()
        first = app.task(name="first", interval=60)(bench.note)
        second = app.task(name="second", interval=61, execution_mode=AMO)(bench.note)
        gate = Gate()
        async with app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.clock.settle()
            bench.faults.next("write", gate)
            await bench.advance(60)
            await gate.reached()
            await bench.advance(1)
            assert len(context._worker.writes) == 1
            loop.cancel()
            await asyncio.wait([loop])
            context._worker.dispatcher.cancel()
            await asyncio.sleep(0)
            gate.release()
        assert [entry.name for entry in bench.runs] == ["first"]
        record = await bench.record(first)
        assert record is not None
        assert record.due_at == micros(120)
        record = await bench.record(second)
        assert record is not None
        assert (record.state, record.due_at) == ("running", micros(121))

    run(main())


def test_options_that_are_set_while_the_app_runs_apply_from_the_next_claim_on() -> None:
    async def main() -> None:
        bench = Bench()

        async def body(context: Context) -> None:
            record = await bench.record(job, "x")
            assert record is not None
            assert record.due_at is not None
            leases.append((record.due_at - micros(0)) / 1_000_000 - bench.clock.monotonic())
            await bench.fail(context)

        async def another(context: Context) -> None:
            await bench.note(context)

        leases: list[float] = []
        job = bench.app.partitioned_task(partition_count=2, lease_duration=seconds(5))(body)
        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=seconds(20))
            await bench.advance(21)
            assert leases == [5]
            job.lease_duration = seconds(3)
            await bench.advance(5)
            assert leases == [5, 3]
            job.failure_mode = FailureMode.COMMIT
            await bench.advance(13)
            assert bench.planned == [20, 20, 20]
            job.task_func = another
            await bench.advance(22)
            assert bench.planned == [20, 20, 20, 40, 60]
            assert leases == [5, 3, 3]

    run(main())
