"""The run history: what is written of runs, what is lost, what is removed, and reading it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.faulty_store import Fail, Gate, LoseAnswer
from tests.support import START, Bench, after, logged, run, seconds

from pyncette import (
    Context,
    FailureMode,
    Pyncette,
    PyncetteContext,
    Retry,
    RetryIn,
    Skip,
    events,
    recorder,
)
from pyncette.clock import Clock, to_microseconds
from pyncette.engine.run_events import OUTCOMES
from pyncette.errors import (
    PyncetteException,
    StoreMisconfiguredError,
    StoreUnavailableError,
    describe,
)
from pyncette.history import Run, RunHistory, RunTotals, use_history
from pyncette.memory import MemoryRepository
from pyncette.schedule import Every
from pyncette.store.history import RunFilter, RunRow

pytestmark = pytest.mark.every_poll


class Recorded(Bench):
    """A bench whose workers write a history."""

    def __init__(self, *, keep: timedelta = timedelta(days=7), per_task: int | None = None) -> None:
        super().__init__(worker_name="w1")
        self.history: RunHistory = use_history(self.app, keep, per_task)

    @property
    def appended(self) -> int:
        """How many batches were sent to the store."""
        return len(self.faults.made("append"))

    async def rows(self) -> list[RunRow]:
        """What the store has."""
        async with self.repository() as store:
            return (await store.history.runs(RunFilter(), None, 1_000)).rows


@asynccontextmanager
async def in_steps(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Batches, queues and steps are small."""
    for name in ("BATCH_MAX", "PRUNE_STEP"):
        monkeypatch.setattr(recorder, name, 5)
    monkeypatch.setattr(recorder, "QUEUE_MAX", 20)
    yield


def test_each_attempt_is_recorded_with_its_times_its_worker_and_its_outcome() -> None:
    async def main() -> None:
        bench = Recorded()
        ids: list[str] = []

        @bench.app.dynamic_task(name="job", retry=Retry(attempts=2, initial=seconds(10)))
        async def job(context: Context) -> None:
            ids.append(context.execution_id)
            await bench.clock.sleep(3)
            if context.attempt == 1:
                raise ValueError("broken\nin two lines \0 \U0001f600")

        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=after(5))
            await bench.advance(60)
            page = await context.runs()
        assert page.cursor is None
        second, first = page.runs
        assert first == Run(
            task="job",
            instance="a",
            execution_id=ids[0],
            attempt=1,
            planned_at=after(5),
            started_at=after(5),
            ended_at=after(8),
            worker="w1",
            outcome="failed",
            error="ValueError: broken\\nin two lines \\x00 \U0001f600",
        )
        assert (second.attempt, second.outcome, second.error) == (2, "succeeded", None)
        assert second.execution_id == first.execution_id
        assert second.planned_at == first.planned_at
        assert second.ended_at > second.started_at > first.ended_at
        assert {first.planned_at.tzinfo, first.started_at.tzinfo, first.ended_at.tzinfo} == {UTC}

    run(main())


def test_all_ways_in_which_an_attempt_may_end_have_their_outcome_and_reason() -> None:
    async def main() -> None:
        bench = Recorded()

        @bench.app.dynamic_task(name="skips")
        async def skips(context: Context) -> None:
            raise Skip("nothing to do")

        @bench.app.dynamic_task(name="postpones")
        async def postpones(context: Context) -> None:
            raise RetryIn(timedelta(days=1), "not yet")

        @bench.app.dynamic_task(name="slow", timeout=seconds(1), retry=Retry(attempts=1))
        async def slow(context: Context) -> None:
            await bench.clock.sleep(10)

        @bench.app.dynamic_task(name="cancelled", lease_duration=timedelta(hours=1))
        async def cancelled(context: Context) -> None:
            await bench.clock.sleep(1_000)

        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            for task in (skips, postpones, slow, cancelled):
                await context.schedule_task(task, "a", execute_at=START)
            await bench.advance(30)
            loop.cancel()
            await asyncio.wait([loop])
        found = {row.task: row for row in await bench.rows()}
        assert {name: row.outcome for name, row in found.items()} == {
            "skips": "skipped",
            "postpones": "postponed",
            "slow": "timed_out",
            "cancelled": "cancelled",
        }
        assert "nothing to do" in (found["skips"].error or "")
        assert "not yet" in (found["postpones"].error or "")
        assert "closing" in (found["cancelled"].error or "")

    run(main())


def test_what_is_recorded_of_an_attempt_is_what_its_event_tells() -> None:
    async def main() -> None:
        bench = Recorded()
        told: list[events.AttemptEnded] = []
        bench.app.on_event(told.append, events.AttemptEnded)

        @bench.app.task(name="static", schedule="* * * * *", timezone="Asia/Tokyo")
        async def static(context: Context) -> None:
            await bench.clock.sleep(3)

        @bench.app.dynamic_task(
            name="job", retry=Retry(attempts=3, initial=seconds(5)), timeout=seconds(4)
        )
        async def job(context: Context) -> None:
            await bench.clock.sleep(2)
            match context.args["does"], context.attempt:
                case "fail", 1:
                    raise ValueError("broken")
                case "sleep", 1:
                    await bench.clock.sleep(60)
                case "skip", 1:
                    raise Skip("nothing to do")
                case "postpone", 1:
                    raise RetryIn(timedelta(seconds=9), "not yet")

        async with bench.running() as context:
            for does in ("fail", "sleep", "skip", "postpone"):
                await context.schedule_task(job, does, execute_at=after(1), does=does)
            await bench.advance(70)
        assert len({type(event) for event in told}) == 5
        rows = {(row.ended_at, row.execution_id): row for row in await bench.rows()}
        for event in told:
            row = rows.pop((to_microseconds(event.at), event.execution_id))
            assert row[2:9] == (
                event.task,
                event.instance,
                event.execution_id,
                event.attempt,
                to_microseconds(event.planned_at),
                to_microseconds(event.started_at),
                event.worker,
            )
            assert row.outcome == OUTCOMES[type(event)]
            said = getattr(event, "error", None) or getattr(event, "reason", None)
            assert row.error == said
        assert rows == {}

    run(main())


def test_a_history_alone_has_no_events_made_of_runs_that_succeed() -> None:
    # Two events take several times as long as what is recorded.
    async def main() -> None:
        bench = Recorded()
        bench.app.task(name="job", interval=seconds(10))(bench.note)
        async with bench.running() as context:
            await bench.advance(15)
            assert not context._worker.reporter.observers.watch_runs()
        assert [row.outcome for row in await bench.rows()] == ["succeeded"]

    run(main())


def test_an_attempt_that_cannot_be_recorded_is_counted_and_has_no_other_effect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        bench = Recorded()
        told: list[events.HistoryLost] = []
        bench.app.on_event(told.append, events.HistoryLost)
        bench.app.task(name="job", interval=seconds(10))(bench.note)
        # With a text instead of a number, what has failed cannot be recorded.
        monkeypatch.setattr(recorder, "ERROR_CHARACTERS_MAX", "2,000")
        bench.app.task(name="fails", interval=seconds(10))(bench.fail)
        async with bench.running():
            await bench.advance(15)
            assert bench.history.lost == 1
        assert [row.task for row in await bench.rows()] == ["job"]
        assert (told[0].attempts, told[0].reason[:9]) == (1, "TypeError")
        assert len(bench.runs) == 2

    run(main())


def test_runs_are_selected_by_task_instance_outcome_and_time_and_read_by_pages() -> None:
    async def main() -> None:
        bench = Recorded()

        @bench.app.dynamic_task(name="job", failure_mode=FailureMode.COMMIT)
        async def job(context: Context) -> None:
            if context.task.name == "b":
                raise ValueError("broken")

        other = bench.app.task(name="other", interval=seconds(10))(bench.note)
        async with bench.running() as context:
            for name in "ab":
                await context.schedule_task(job, name, schedule=Every(seconds(10)))
            await bench.advance(35)
            assert {run.task for run in (await context.runs()).runs} == {"job", "other"}
            assert len((await context.runs(job)).runs) == 6
            assert len((await context.runs(other)).runs) == 3
            of_b = (await context.runs(job, "b")).runs
            assert [run.ended_at for run in of_b] == [after(30), after(20), after(10)]
            [state] = [task async for task in context.iter_tasks(job) if task.task.name == "b"]
            assert (await context.runs(state.task)).runs == of_b
            failed = await context.runs(outcomes={"failed", "timed_out"})
            assert failed.runs == of_b
            assert (await context.runs(job, "a", outcomes=["failed"])).runs == []
            span = await context.runs(job, since=after(20), until=after(30))
            assert {run.ended_at for run in span.runs} == {after(20)}
            paged, cursor = [], None
            while True:
                page = await context.runs(job, limit=4, cursor=cursor)
                paged += page.runs
                cursor = page.cursor
                if cursor is None:
                    break
            assert paged == (await context.runs(job)).runs

    run(main())


def test_totals_count_outcomes_times_and_lateness_for_each_minute_and_task() -> None:
    async def main() -> None:
        bench = Recorded()

        @bench.app.dynamic_task(name="job", retry=Retry(attempts=2, initial=seconds(1)))
        async def job(context: Context) -> None:
            await bench.clock.sleep(2)
            if context.task.name == "b":
                raise ValueError("broken")

        @bench.app.dynamic_task(name="skips")
        async def skips(context: Context) -> None:
            raise Skip("not today")

        async with bench.app.create() as context:
            await context.schedule_task(job, "a", execute_at=START)
            await context.schedule_task(job, "b", execute_at=START)
        await bench.advance(7)
        async with bench.running() as context:
            await bench.advance(20)
            await context.schedule_task(skips, "c", execute_at=after(70))
            await bench.advance(60)
            totals = await context.run_totals(START)
            assert totals == [
                RunTotals(
                    task="job",
                    minute=START,
                    succeeded=1,
                    failed=2,
                    other=0,
                    took=seconds(6),
                    lateness_max=seconds(7),
                ),
                RunTotals(
                    task="skips",
                    minute=after(60),
                    succeeded=0,
                    failed=0,
                    other=1,
                    took=seconds(0),
                    lateness_max=seconds(0),
                ),
            ]
            assert await context.run_totals(START, after(60)) == totals[:1]
            assert await context.run_totals(START, task=skips) == totals[1:]

    run(main())


def test_a_jitter_is_no_lateness() -> None:
    async def main() -> None:
        bench = Recorded()
        bench.app.task(name="job", schedule=Every(seconds(360)), jitter=seconds(60))(bench.note)
        async with bench.running() as context:
            await bench.advance(500)
            [total] = await context.run_totals(START)
            [ended] = (await context.runs()).runs
            assert ended.started_at > ended.planned_at
            assert total.lateness_max < seconds(2)

    run(main())


def test_the_history_is_read_where_it_is_not_written_and_is_empty_without_one() -> None:
    async def main() -> None:
        bench = Recorded()
        job = bench.app.task(name="job", interval=seconds(10))(bench.note)
        reader = bench.another_app()
        async with reader.create() as looking:
            assert await looking.runs() == ([], None)
            assert await looking.run_totals(START) == []
            async with bench.running():
                await bench.advance(25)
            assert [run.task for run in (await looking.runs(limit=10)).runs] == ["job", "job"]
            assert len(await looking.run_totals(START)) == 1
            del job

    run(main())


class _Plain:
    """A store of the time before there was a history."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        if name == "history":
            raise AttributeError(name)
        return getattr(self._store, name)


def test_a_store_that_cannot_keep_a_history_is_refused_and_reads_as_empty() -> None:
    @asynccontextmanager
    async def plain(**configuration: Any) -> AsyncIterator[_Plain]:
        async with MemoryRepository()() as store:
            yield _Plain(store)

    async def main() -> None:
        app = Pyncette(plain)
        async with app.create() as context:
            assert await context.runs() == ([], None)
            assert await context.run_totals(START) == []
        use_history(app)
        with pytest.raises(PyncetteException, match=r"\(_Plain\) cannot keep a run history"):
            async with app.create():
                pass

    run(main())


def test_one_worker_of_an_app_does_not_write_what_another_one_runs() -> None:
    async def main() -> None:
        bench = Recorded()
        bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as first, bench.running() as second:
            [job] = bench.app.tasks
            for number in range(6):
                await first.schedule_task(job, f"{number}", execute_at=after(1))
            await bench.advance(5)
            await second.runs()
            assert len((await first.runs()).runs) == 6

    run(main())


def test_what_has_ended_is_written_when_the_app_is_closed() -> None:
    async def main() -> None:
        bench = Recorded()
        bench.app.task(name="job", interval=seconds(10))(bench.note)
        async with bench.running():
            await bench.advance(25)
            assert bench.appended == 0
        assert len(await bench.rows()) == 2
        assert bench.history.lost == 0

    run(main())


def test_a_full_batch_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with in_steps(monkeypatch):
            bench = Recorded()
            bench.app.task(name="job", interval=seconds(10))(bench.note)
            async with bench.running():
                await bench.advance(65)
                assert len(await bench.rows()) == 5

    run(main())


def test_a_store_that_is_down_for_the_history_delays_no_run_and_loses_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[events.HistoryLost] = []

    async def main() -> None:
        async with in_steps(monkeypatch):
            bench = Recorded()
            bench.app.on_event(told.append, events.HistoryLost)
            bench.app.task(name="job", interval=seconds(10))(bench.note)
            async with bench.running() as context:
                with bench.faults.down("append"):
                    await bench.advance(305)
                    assert bench.times == [10 * number for number in range(1, 31)]
                    # A batch of 5 is tried again and again, 20 wait, and the others are lost.
                    assert bench.history.lost == 5
                page = await context.runs()
                assert [run.planned_at for run in page.runs[::-1]] == [
                    after(10 * number) for number in range(1, 26)
                ]
                # The totals are complete all the same.
                totals = await context.run_totals(START)
                assert sum(total.succeeded for total in totals) == 30
        assert sum(event.attempts for event in told) == 5

    run(main())
    assert logged(caplog, "attempts are missing in the run history", "20 attempts wait")


def test_what_is_left_at_the_end_is_counted_as_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pyncette.context.CLOSING_HISTORY_PATIENCE_S", 0.05)

    async def main() -> None:
        bench = Recorded()
        bench.app.task(name="job", interval=seconds(10))(bench.note)
        with bench.faults.down("append"):
            async with bench.running():
                await bench.advance(35)
        assert bench.history.lost == 3
        assert await bench.rows() == []

    run(main())
    assert logged(caplog, "3 attempts are missing in the run history", "injected")


def test_a_batch_whose_answer_is_lost_is_there_once() -> None:
    async def main() -> None:
        bench = Recorded()
        bench.app.task(name="job", interval=seconds(10))(bench.note)
        async with bench.running() as context:
            await bench.advance(35)
            bench.faults.next("append", LoseAnswer())
            await context.runs()
            page = await context.runs()
            assert len(page.runs) == 3
            [total] = await context.run_totals(START)
            assert total.succeeded == 3
        assert bench.history.lost == 0

    run(main())


def test_a_batch_that_the_store_refuses_is_lost_and_the_next_one_is_written() -> None:
    async def main() -> None:
        bench = Recorded()
        bench.app.task(name="job", interval=seconds(10))(bench.note)
        async with bench.running() as context:
            await bench.advance(35)
            bench.faults.next("append", Fail(StoreMisconfiguredError("no right to insert")))
            assert (await context.runs()).runs == []
            assert bench.history.lost == 3
            await bench.advance(10)
            assert len((await context.runs()).runs) == 1

    run(main())


def test_a_batch_that_fails_while_others_are_written_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Poisoned(Fail):
        """The store is available, and fails for each batch with the first rows."""

        async def strike(self, call: Any) -> Any:
            batch = bench.faults.made("append")[-1].arguments[0]
            if any(row.started_at <= to_microseconds(after(100)) for row in batch):
                raise StoreUnavailableError("an error that is not known")
            return await call()

    async def main() -> None:
        async with in_steps(monkeypatch):
            bench.app.task(name="job", interval=seconds(10))(bench.note)
            async with bench.running() as context:
                assert context._recorder is not None
                with bench.faults.down("append", fault=Poisoned()):
                    await bench.advance(175)
                    for _ in range(40):
                        await context._recorder._flush_once()
                # Two batches of 5 are poisoned.
                assert bench.history.lost == 10
                assert len(await bench.rows()) == 7

    bench = Recorded()
    run(main())


def test_an_error_that_no_store_should_raise_loses_its_batch_alone() -> None:
    async def main() -> None:
        bench = Recorded()
        bench.app.task(name="job", interval=seconds(10))(bench.note)
        async with bench.running() as context:
            await bench.advance(35)
            bench.faults.next("append", Fail(KeyError("a store of others")))
            assert (await context.runs()).runs == []
            assert bench.history.lost == 3
            await bench.advance(10)
            assert len((await context.runs()).runs) == 1

    run(main())


def test_a_run_is_settled_while_the_history_waits_for_the_store() -> None:
    async def main() -> None:
        bench = Recorded()
        gate = Gate()
        job = bench.app.task(name="job", interval=seconds(10))(bench.note)
        async with bench.running() as context:
            await bench.advance(15)
            bench.faults.next("append", gate)
            reading = asyncio.create_task(context.runs())
            await gate.reached()
            async with bench.repository() as store:
                [record] = await store.get([(job.group, job.key)])
            assert record is not None
            assert record.state == "scheduled"
            gate.release()
            assert len((await reading).runs) == 1

    run(main())


class Ahead(Clock):
    """A clock that was set wrongly, beside a right one."""

    def __init__(self, right: Clock, ahead: timedelta) -> None:
        self._right = right
        self._ahead = ahead

    def now(self) -> datetime:
        return self._right.now() + self._ahead

    def monotonic(self) -> float:
        return self._right.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._right.sleep(seconds)


async def tidied(context: PyncetteContext) -> None:
    """Takes all steps that the recorder would take in the background."""
    assert context._recorder is not None
    await context._recorder.flush()
    for _ in range(100):
        await context._recorder._pruner.step()
        if not context._recorder._pruner.more:
            return
    raise AssertionError("there is always more to remove")


def test_what_is_older_than_it_is_kept_is_removed_in_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with in_steps(monkeypatch):
            bench = Recorded(keep=timedelta(minutes=5))
            bench.app.task(name="job", interval=seconds(10))(bench.note)
            async with bench.running() as context:
                await bench.advance(605)
                await tidied(context)
                await bench.advance(100)
                await tidied(context)
                found = [run.ended_at for run in (await context.runs(limit=1_000)).runs[::-1]]
                # A worker looks at it once a minute.
                assert after(340) <= found[0] <= after(410)
                assert found == [found[0] + seconds(10 * number) for number in range(len(found))]
                assert found[-1] == after(700)
                assert after(300) <= (await context.run_totals(START))[0].minute <= after(420)
                steps = [call.arguments for call in bench.faults.made("prune")]
                assert len(steps) > 5
                assert {limit for _, _, limit in steps} == {5}

    run(main())


def test_no_more_than_so_many_attempts_of_a_task_are_kept() -> None:
    async def main() -> None:
        bench = Recorded(per_task=20)
        bench.app.task(name="often", interval=seconds(10))(bench.note)
        seldom = bench.app.task(name="seldom", interval=seconds(100))(bench.note)
        async with bench.running() as context:
            await bench.advance(905)
            # On a slow machine the recorder, which waits in real time, may have looked just now.
            assert context._recorder is not None
            await context._recorder.flush()
            context._recorder._pruner._began = None
            await tidied(context)
            kept = [run for run in (await context.runs(limit=1_000)).runs if run.task == "often"]
            assert 20 <= len(kept) < 20 + 6
            assert kept[0].ended_at == after(900)
            assert len((await context.runs(seldom)).runs) == 9

    run(main())


@pytest.mark.parametrize("error", [StoreMisconfiguredError("no right to delete"), KeyError("x")])
def test_what_may_not_be_removed_is_said_once_and_the_history_goes_on(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> list[str]:
        return [
            record.getMessage()
            for record in caplog.records
            if record.levelname == "WARNING" and "is removed" in record.getMessage()
        ]

    async def main() -> None:
        bench = Recorded(keep=timedelta(minutes=1))
        bench.app.task(name="job", interval=seconds(10))(bench.note)
        async with bench.running() as context:
            assert context._recorder is not None
            with bench.faults.down("prune", fault=Fail(error)):
                for _ in range(3):
                    await bench.advance(70)
                    await context._recorder._pruner.step()
            assert len(bench.faults.made("prune")) >= 3
            [text] = said()
            assert describe(error) in text
            assert len((await context.runs(limit=100)).runs) == 21
            await bench.advance(70)
            await context._recorder._pruner.step()
            assert len((await context.runs(limit=100)).runs) < 16
            assert len(said()) == 1
            bench.faults.next("prune", Fail(error))
            await bench.advance(70)
            await context._recorder._pruner.step()
            assert len(said()) == 2

    run(main())


def test_a_clock_that_has_jumped_removes_nothing_at_first() -> None:
    async def main() -> None:
        bench = Recorded(keep=timedelta(minutes=5))
        bench.app.task(name="job", interval=seconds(10))(bench.note)
        async with bench.running() as context:
            await bench.advance(100)
            await tidied(context)
            assert context._recorder is not None
            pruner = context._recorder._pruner
            pruner._clock = Ahead(bench.clock, timedelta(days=365))
            for _ in range(4):
                await bench.advance(70)
                await tidied(context)
            pruner._clock = bench.clock
            await bench.advance(70)
            await tidied(context)
            assert len((await context.runs()).runs) == 45

    run(main())


@pytest.mark.parametrize(
    ("keep", "per_task"),
    [(timedelta(seconds=59), None), (timedelta(days=4_000), None), (timedelta(1), 0)],
)
def test_what_is_kept_must_be_within_bounds(keep: timedelta, per_task: int | None) -> None:
    with pytest.raises(ValueError, match=r"keep|per_task"):
        use_history(Pyncette(), keep, per_task)


def test_a_history_is_used_once() -> None:
    app = Pyncette()
    use_history(app)
    with pytest.raises(PyncetteException, match="called for this app before"):
        use_history(app)


def test_wrong_values_are_refused_in_words() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        static = bench.app.task(name="static", interval=seconds(10))(bench.note)
        async with bench.app.create() as context:
            for options, error, words in (
                ({"instance_name": "a"}, ValueError, "no task is given"),
                ({"task": static, "instance_name": "a"}, ValueError, "has no instances"),
                ({"task": job, "outcomes": "failed"}, TypeError, "collection of names"),
                ({"outcomes": {"broken"}}, ValueError, "no outcome 'broken'"),
                ({"since": 1}, TypeError, "since must be a datetime"),
                ({"limit": 0}, ValueError, "limit"),
                ({"cursor": "x"}, ValueError, "Not a cursor"),
            ):
                with pytest.raises(error, match=words):
                    await context.runs(**options)
            with pytest.raises(TypeError, match="cursor"):
                await context.runs(cursor=5)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="since"):
                await context.run_totals(None)  # type: ignore[arg-type]

    run(main())


def test_rows_that_are_no_rows_are_left_out(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "tasks.db"

    async def main() -> None:
        app = Pyncette(sqlite_database=path)
        use_history(app)

        @app.task(name="job", interval=0.01)
        async def job(context: Context) -> None:
            context.app_context.shutdown()

        async with app.create() as context:
            await context.run()
        with sqlite3.connect(path) as connection:
            for column, value in (
                ("outcome", "lost"),
                ("attempt", "many"),
                ("worker", b"\xff\xfe"),
                ("ended_at", 1 << 60),
                ("planned_at", "never"),
                ("error", b"\xff"),
            ):
                connection.execute(
                    "INSERT INTO pyncette_tasks_runs SELECT ended_at, id + 1 + "
                    "(SELECT count(*) FROM pyncette_tasks_runs), task, instance, execution_id, "
                    "attempt, planned_at, started_at, worker, outcome, error "
                    "FROM pyncette_tasks_runs ORDER BY id LIMIT 1"
                )
                connection.execute(
                    f"UPDATE pyncette_tasks_runs SET {column} = ? "
                    "WHERE id = (SELECT max(id) FROM pyncette_tasks_runs)",
                    (value,),
                )
            connection.execute("INSERT INTO pyncette_tasks_run_totals VALUES (1,'x',-1,0,0,0,0)")
        connection.close()
        async with app.create() as context:
            found = (await context.runs()).runs
            assert len(found) == 1
            [total] = await context.run_totals(datetime(1970, 1, 1, tzinfo=UTC))
            assert total.succeeded == 1

    run(main())
