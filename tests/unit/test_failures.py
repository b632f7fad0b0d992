"""What follows a failure, on the whole engine: retries, the last attempt, parking, skipping."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support import START, Bench, Progress, after, lines, logged, micros, run, seconds

from pyncette import (
    CatchUp,
    Context,
    ExecutionMode,
    Exhausted,
    FailureMode,
    GiveUp,
    Instance,
    OnExisting,
    Overlap,
    PyncetteContext,
    Retry,
    RetryIn,
    Skip,
)
from pyncette.executor import SynchronousExecutor
from pyncette.model import Outcome
from pyncette.schedule import At, Every
from pyncette.store.record import Record, load_progress
from pyncette.task import Task

pytestmark = pytest.mark.every_poll

EXACT = Retry(attempts=3, initial=seconds(10), factor=2, jitter=0)
"""Attempts at 0, 10 and 30 s."""


class Failing:
    """A body that does, at each attempt, the next of these things; then it succeeds."""

    def __init__(self, bench: Bench, *acts: BaseException | None) -> None:
        self.bench = bench
        self.acts = list(acts)
        self.contexts: list[dict[str, Any]] = []

    async def __call__(self, context: Context) -> None:
        await self.bench.note(context)
        self.contexts.append(
            {
                name: getattr(context, name)
                for name in (
                    "attempt",
                    "execution_id",
                    "fencing_token",
                    "deadline",
                    "previous_error",
                )
            }
        )
        act = self.acts.pop(0) if self.acts else None
        if act is not None:
            raise act

    def seen(self, name: str) -> list[Any]:
        return [context[name] for context in self.contexts]


async def scheduled(bench: Bench, task: Task, name: str = "a", **options: Any) -> None:
    """Schedules an instance, at once by default."""
    async with bench.app.create() as context:
        await context.schedule_task(task, name, **(options or {"execute_at": START}))


async def progress_of(bench: Bench, task: Task, name: str | None = None) -> Progress:
    record = await bench.record(task, name)
    assert record is not None
    return load_progress(record.progress)


async def state_of(bench: Bench, task: Task, name: str | None = None) -> str | None:
    record: Record | None = await bench.record(task, name)
    return None if record is None else str(record.state)


@pytest.fixture(params=[False, True], ids=["", "synchronous"])
def bench(request: pytest.FixtureRequest) -> Bench:
    if request.param:
        return Bench(executor_cls=SynchronousExecutor)
    return Bench()


# Retries.


def test_a_failed_run_is_tried_again_after_growing_delays_until_it_succeeds(bench: Bench) -> None:
    async def main() -> None:
        body = Failing(bench, ValueError("one"), ValueError("two"))
        job = bench.app.dynamic_task(name="job", retry=EXACT)(body)
        await scheduled(bench, job)
        async with bench.running():
            assert await state_of(bench, job, "a") == "retrying"
            await bench.advance(60)
        assert bench.times == [0, 10, 30]
        assert body.seen("attempt") == [1, 2, 3]
        assert body.seen("previous_error") == [None, "ValueError: one", "ValueError: two"]
        assert len(set(body.seen("execution_id"))) == 1
        tokens = body.seen("fencing_token")
        assert tokens == sorted(set(tokens))
        assert await bench.record(job, "a") is None

    run(main())


def test_a_one_off_is_parked_after_its_last_attempt(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        job = bench.app.dynamic_task(name="job", retry=EXACT)(bench.fail)
        await scheduled(bench, job, execute_at=START, email="a@example.org")
        async with bench.running() as context:
            await bench.advance(1_000)
            assert bench.times == [0, 10, 30]
            state = await context.get_task(job, "a")
            assert state is not None
            assert (state.state, state.scheduled_at) == ("parked", None)
            assert state.reason == "RuntimeError: the body failed"
            assert state.task.extra_args == {"email": "a@example.org"}
        progress = await progress_of(bench, job, "a")
        assert progress.failures == 3
        assert progress.traceback is not None
        assert "support.py" in progress.traceback
        assert progress.last_started == micros(30)
        assert progress.last_outcome is Outcome.FAILED

    run(main())
    assert logged(caplog, "job:a failed in attempt 1 of 3", "retried in 10 s")
    assert logged(caplog, "job:a failed in attempt 3 of 3", "this was its last attempt")
    assert logged(caplog, "job:a is parked", "retry_parked", "unschedule_task")


def test_a_recurrence_gives_the_occurrence_up_keeps_the_error_and_goes_on(bench: Bench) -> None:
    async def main() -> None:
        body = Failing(bench, *[ValueError("no")] * 3)
        job = bench.app.task(name="job", interval=seconds(100), retry=EXACT)(body)
        async with bench.running():
            await bench.advance(150)
            assert bench.planned == [100, 100, 100]
            progress = await progress_of(bench, job)
            assert (progress.error, progress.failures) == ("ValueError: no", 0)
            assert progress.planned == micros(200)
            assert progress.traceback is not None
            await bench.advance(100)
        assert bench.times == [100, 110, 130, 200]
        assert body.seen("attempt") == [1, 2, 3, 1]
        assert body.seen("previous_error")[3] is None, "that was another occurrence"
        assert len(set(body.seen("execution_id"))) == 2
        progress = await progress_of(bench, job)
        assert (progress.error, progress.last_outcome) == (None, Outcome.SUCCEEDED)

    run(main())


def test_a_recurrence_can_be_paused_after_the_last_attempt(bench: Bench) -> None:
    async def main() -> None:
        body = Failing(bench, *[ValueError("no")] * 3)
        options: dict[str, Any] = {"retry": EXACT, "exhausted": Exhausted.PAUSE}
        job = bench.app.task(name="job", interval=seconds(100), **options)(body)
        async with bench.running():
            await bench.advance(1_000)
        assert bench.planned == [100, 100, 100]
        assert await state_of(bench, job) == "paused"
        progress = await progress_of(bench, job)
        assert (progress.error, progress.planned) == ("ValueError: no", micros(100))

    run(main())


def test_an_explicit_continue_parks_an_instance_that_has_nothing_to_continue_with(
    bench: Bench,
) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"retry": Retry(attempts=1), "exhausted": Exhausted.CONTINUE}
        job = bench.app.dynamic_task(name="job", **options)(bench.fail)
        await scheduled(bench, job)
        async with bench.running():
            await bench.advance(100)
        assert len(bench.runs) == 1
        assert await state_of(bench, job, "a") == "parked"

    run(main())


def test_exceptions_that_are_final_get_no_further_attempt(bench: Bench) -> None:
    async def main() -> None:
        retry = Retry(on=(OSError,), give_up_on=(FileNotFoundError,))
        job = bench.app.dynamic_task(name="job", retry=retry)(
            Failing(bench, FileNotFoundError("gone"))
        )
        other = bench.app.dynamic_task(name="other", retry=retry)(Failing(bench, TypeError("no")))
        await scheduled(bench, job)
        await scheduled(bench, other)
        async with bench.running():
            await bench.advance(1_000)
        assert len(bench.runs) == 2
        assert await state_of(bench, job, "a") == "parked"
        assert await state_of(bench, other, "a") == "parked"

    run(main())


def test_no_attempt_is_planned_for_later_than_within() -> None:
    async def main() -> None:
        bench = Bench()
        retry = Retry(
            attempts=100, initial=seconds(10), factor=2, jitter=0, within=timedelta(minutes=1)
        )
        job = bench.app.dynamic_task(name="job", retry=retry)(bench.fail)
        await scheduled(bench, job)
        async with bench.running():
            await bench.advance(1_000)
        assert bench.times == [0, 10, 30]  # the next one would be at 70
        assert await state_of(bench, job, "a") == "parked"

    run(main())


def test_a_late_first_attempt_is_made_whatever_within_says() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", retry=Retry(within=seconds(5)))(bench.fail)
        await scheduled(bench, job, execute_at=after(-1_000))
        async with bench.running():
            await bench.advance(1_000)
        assert bench.times == [0]

    run(main())


def test_a_policy_of_ones_own_decides_the_delay_and_may_end_the_retries() -> None:
    asked: list[tuple[int, str]] = []

    class Own(Retry):
        def delay(self, attempt: int, error: BaseException) -> timedelta | None:
            asked.append((attempt, str(error)))
            return None if attempt == 3 else attempt * seconds(5)

    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", retry=Own(attempts=100))(bench.fail)
        await scheduled(bench, job)
        async with bench.running():
            await bench.advance(1_000)
        assert bench.times == [0, 5, 15]
        assert await state_of(bench, job, "a") == "parked"

    run(main())
    assert asked == [(1, "the body failed"), (2, "the body failed"), (3, "the body failed")]


@pytest.mark.parametrize("answer", [5, seconds(-1), ValueError("a defect"), timedelta.max])
def test_a_policy_with_a_defect_is_replaced_by_the_plain_one(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Own(Retry):
        def delay(self, attempt: int, error: BaseException) -> timedelta | None:
            if isinstance(answer, Exception):
                raise answer
            wrong: timedelta = answer
            return wrong

    async def main() -> None:
        bench = Bench()
        retry = Own(attempts=3, initial=seconds(10), factor=2, jitter=0)
        job = bench.app.dynamic_task(name="job", retry=retry)(bench.fail)
        await scheduled(bench, job)
        async with bench.running():
            await bench.advance(1_000)
        assert bench.times == [0, 10, 30]

    run(main())
    assert logged(caplog, "The retry policy of job:a failed")


def test_a_deployment_that_allows_fewer_attempts_applies_at_the_next_claim() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", retry=EXACT)(bench.fail)
        await bench.plant(
            job, "a", state="retrying", progress=Progress(micros(-60), "i", failures=7, error="no")
        )
        async with bench.running():
            await bench.advance(100)
        assert bench.runs == []
        assert await state_of(bench, job, "a") == "parked"
        progress = await progress_of(bench, job, "a")
        assert (progress.failures, progress.error) == (7, "no")

    run(main())


@pytest.mark.parametrize("state", ["scheduled", "running"])
def test_starts_that_ended_without_a_word_count_as_attempts(
    state: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", retry=EXACT)(bench.note)
        await bench.plant(job, "a", state=state, token="dead", unfinished_attempts=3)
        await bench.plant(job, "b", state=state, token="dead", unfinished_attempts=2)
        await bench.plant(job, "c", unfinished_attempts=1, progress=Progress(0, "i", failures=2))
        async with bench.running():
            await bench.advance(100)
        assert [each.name for each in bench.runs] == ["job:b"]
        parked = await progress_of(bench, job, "a")
        assert await state_of(bench, job, "a") == "parked"
        assert parked.failures == 3
        assert parked.error is not None
        assert "ended without an outcome" in parked.error
        assert await state_of(bench, job, "c") == "parked"

    run(main())
    assert logged(caplog, "job:a is not started again", "ended without an outcome")


def test_starts_without_a_word_and_failures_are_counted_together() -> None:
    async def main() -> None:
        bench = Bench()
        body = Failing(bench, ValueError("no"), ValueError("no"))
        job = bench.app.dynamic_task(name="job", retry=EXACT)(body)
        await bench.plant(job, "a", state="running", token="dead", unfinished_attempts=1)
        async with bench.running():
            await bench.advance(100)
        assert body.seen("attempt") == [2, 3]
        assert "without an outcome" in body.seen("previous_error")[0]
        assert await state_of(bench, job, "a") == "parked"

    run(main())


def test_without_a_policy_a_start_without_a_word_is_repeated_for_ever() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(job, "a", state="running", token="dead", unfinished_attempts=50)
        async with bench.running():
            await bench.advance(1)
        assert len(bench.runs) == 1

    run(main())


def test_arguments_that_cannot_be_read_fail_like_a_body_and_end_parked() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", retry=EXACT)(bench.note)
        await bench.plant(job, "a", args="1 {")
        async with bench.running():
            await bench.advance(100)
        assert await state_of(bench, job, "a") == "parked"
        assert (await progress_of(bench, job, "a")).failures == 3

    run(main())


class NoException(BaseException):
    pass


class Unprintable(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise RuntimeError("no words for it")

    __repr__ = __str__


@pytest.mark.parametrize("error", [NoException(), Unprintable(), asyncio.CancelledError()])
def test_whatever_comes_out_of_a_body_is_retried(error: BaseException) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", retry=EXACT)(Failing(bench, *[error] * 5))
        await scheduled(bench, job)
        async with bench.running():
            await bench.advance(100)
        assert bench.times == [0, 10, 30]
        assert await state_of(bench, job, "a") == "parked"

    run(main())


def test_a_middleware_may_catch_what_would_be_retried() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[str] = []

        @bench.app.middleware
        async def watch(context: Context, following: Callable[[], Awaitable[None]]) -> None:
            try:
                await following()
            except Exception as error:
                seen.append(type(error).__name__)
                if isinstance(error, ValueError):
                    return
                raise

        acts = [RetryIn(seconds(1)), RetryIn(seconds(1)), ValueError("swallowed")]
        job = bench.app.dynamic_task(name="job", retry=EXACT)(Failing(bench, *acts))
        skips = bench.app.dynamic_task(name="skips")(Failing(bench, Skip("nothing to do")))
        gives_up = bench.app.dynamic_task(name="gives up")(Failing(bench, GiveUp("no use")))
        for task in (job, skips, gives_up):
            await scheduled(bench, task)
        async with bench.running():
            await bench.advance(100)
        assert sorted(seen) == ["GiveUp", "RetryIn", "RetryIn", "Skip", "ValueError"]
        assert await bench.record(job, "a") is None

    run(main())


# What a body says itself.


def test_a_body_may_ask_to_run_again_after_a_time(bench: Bench) -> None:
    async def main() -> None:
        body = Failing(bench, RetryIn(seconds(7), "busy"), RetryIn(seconds(9)))
        job = bench.app.dynamic_task(name="job")(body)
        await scheduled(bench, job)
        async with bench.running() as context:
            state = await context.get_task(job, "a")
            assert state is not None
            assert (state.state, state.reason) == ("retrying", "RetryIn: busy")
            progress = await progress_of(bench, job, "a")
            assert progress.last_outcome is Outcome.POSTPONED
            await bench.advance(100)
        assert bench.times == [0, 7, 16]
        assert body.seen("attempt") == [1, 2, 3]
        assert body.seen("previous_error") == [None, "RetryIn: busy", "RetryIn: in 0:00:09"]

    run(main())


def test_asking_to_run_again_costs_an_attempt_unless_it_is_free(bench: Bench) -> None:
    async def main() -> None:
        again = RetryIn(seconds(1))
        body = Failing(bench, *[again] * 9)
        job = bench.app.dynamic_task(name="job", retry=EXACT)(body)
        await scheduled(bench, job)
        free = RetryIn(seconds(1), "waits", free=True)
        waits = Failing(bench, *[free] * 9, *[again] * 9)
        other = bench.app.dynamic_task(name="other", retry=EXACT)(waits)
        await scheduled(bench, other)
        async with bench.running():
            await bench.advance(100)
        assert body.seen("attempt") == [1, 2, 3]
        assert waits.seen("attempt") == [1] * 10 + [2, 3]
        assert waits.seen("previous_error")[1] == "RetryIn: waits"
        assert await state_of(bench, job, "a") == "parked"
        assert await state_of(bench, other, "a") == "parked"

    run(main())


def test_free_attempts_end_where_within_ends() -> None:
    async def main() -> None:
        bench = Bench()
        free = RetryIn(seconds(10), free=True)
        retry = Retry(attempts=2, within=timedelta(minutes=1))
        job = bench.app.dynamic_task(name="job", retry=retry)(Failing(bench, *[free] * 99))
        await scheduled(bench, job)
        async with bench.running():
            await bench.advance(1_000)
        assert bench.times == [0, 10, 20, 30, 40, 50, 60]
        assert await state_of(bench, job, "a") == "parked"

    run(main())


@pytest.mark.parametrize(
    ("options", "free", "expected"),
    [
        ({}, False, [0, 2, 4]),
        ({}, True, [0, 2, 4]),
        ({"retry": Retry(attempts=3)}, True, [0, 2, 4]),
        ({"retry": Retry(attempts=3)}, False, [0, 0, 0]),
    ],
)
def test_asking_to_run_again_at_once_has_a_brake_where_nothing_limits_it(
    options: dict[str, Any],
    free: bool,
    expected: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench(poll_interval=seconds(2))
        again = RetryIn(timedelta(0), "more to do", free=free)
        body = Failing(bench, *[again] * 99)
        job = bench.app.dynamic_task(name="job", **options)(body)
        await scheduled(bench, job)
        async with bench.running():
            await bench.advance(5)
            assert bench.times == expected

    with caplog.at_level("INFO"):
        run(main())
    braked = "in 0:00:02, not in 0:00:00, which is too soon for attempts"
    assert logged(caplog, braked, "more to do") == (len(set(expected)) > 1)


def test_asking_to_run_again_goes_before_the_failure_mode() -> None:
    async def main() -> None:
        bench = Bench()
        for mode in FailureMode:
            body = Failing(bench, RetryIn(seconds(7)))
            job = bench.app.dynamic_task(name=f"{mode.name}", failure_mode=mode)(body)
            await scheduled(bench, job)
        async with bench.running():
            await bench.advance(20)
        assert bench.times == [0, 0, 0, 7, 7, 7]

    run(main())


@pytest.mark.parametrize("options", [{}, {"retry": EXACT}])
def test_a_body_may_give_up(options: dict[str, Any], bench: Bench) -> None:
    async def main() -> None:
        job = bench.app.dynamic_task(name="job", **options)(Failing(bench, GiveUp("unknown user")))
        body = Failing(bench, GiveUp("not today"))
        tick = bench.app.task(name="tick", interval=seconds(100), **options)(body)
        await scheduled(bench, job)
        async with bench.running() as context:
            await bench.advance(250)
            state = await context.get_task(job, "a")
            assert state is not None
            assert (state.state, state.reason) == ("parked", "GiveUp: unknown user")
        assert [each.at for each in bench.runs if each.name == "tick"] == [100, 200]
        assert await state_of(bench, tick) == "scheduled"

    run(main())


def test_giving_up_where_failures_count_as_done_is_done() -> None:
    async def main() -> None:
        bench = Bench()
        options: dict[str, Any] = {"failure_mode": FailureMode.COMMIT}
        job = bench.app.dynamic_task(name="job", **options)(Failing(bench, GiveUp()))
        await scheduled(bench, job)
        async with bench.running():
            await bench.advance(1)
        assert await bench.record(job, "a") is None

    run(main())


def test_a_skipped_run_is_done_and_is_said_to_have_been_skipped(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        body = Failing(bench, Skip("nothing to report"))
        job = bench.app.task(name="job", interval=seconds(10), retry=EXACT)(body)
        async with bench.running():
            await bench.advance(10)
            progress = await progress_of(bench, job)
            assert (progress.skipped, progress.error) == (1, "Skip: nothing to report")
            assert progress.last_outcome is Outcome.SKIPPED
            await bench.advance(10)
            progress = await progress_of(bench, job)
            assert (progress.skipped, progress.error) == (1, None)
        assert bench.times == [10, 20]

    with caplog.at_level("INFO"):
        run(main())
    assert logged(caplog, "job skipped attempt 1 of 3 of the run", "Skip: nothing to report")
    assert not any("failed" in line for line in lines(caplog))


@pytest.mark.parametrize(
    "act", [RetryIn(seconds(1)), GiveUp("no"), Skip("nothing"), ValueError("no")]
)
def test_at_most_once_is_never_repeated_whatever_the_body_says(
    act: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        options: dict[str, Any] = {"execution_mode": ExecutionMode.AT_MOST_ONCE}
        body = Failing(bench, act)
        bench.app.task(name="job", interval=seconds(10), **options)(body)
        async with bench.running():
            await bench.advance(25)
        assert bench.planned == [10, 20]
        assert body.seen("attempt") == [1, 1]

    with caplog.at_level("INFO"):
        run(main())
    assert logged(caplog, "job skipped" if isinstance(act, Skip) else "job failed")


# The many failures of a task without a policy.


@pytest.mark.parametrize(
    ("mode", "every", "words"),
    [
        (FailureMode.NONE, 6, "each time its lease ends"),
        (FailureMode.UNLOCK, 1, "after each poll interval"),
    ],
)
def test_an_occurrence_that_fails_again_and_again_is_said_at_growing_intervals(
    mode: FailureMode, every: float, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(
            name="job",
            schedule="1 12 * * *",
            failure_mode=mode,
            lease_duration=seconds(6),
        )(bench.fail)
        async with bench.running():
            await bench.advance(60 + 70 * every)
        assert len(bench.runs) == 71

    run(main())
    said = [line for line in lines(caplog) if "retry=Retry(" in line]
    assert len(said) == 4  # at 8, 16, 32 and 64 failures
    assert "job has failed 8 times for its occurrence of 2026-01-05T12:01:00+00:00" in said[0]
    assert words in said[0]


@pytest.mark.parametrize("options", [{"failure_mode": FailureMode.COMMIT}, {"retry": Retry(20)}])
def test_nothing_is_said_where_the_failures_of_an_occurrence_end(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="job", interval=seconds(100), **options)(bench.fail)
        async with bench.running():
            await bench.advance(1_000)

    run(main())
    assert not logged(caplog, "retry=Retry(")


# What the context tells.


def test_the_id_of_an_execution_is_that_of_its_occurrence_alone() -> None:
    async def main() -> None:
        bench = Bench()
        body = Failing(bench)
        job = bench.app.dynamic_task(name="job")(body)
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=START)
            await bench.advance(1)
            await context.schedule_task(job, "a", execute_at=START)
            await context.schedule_task(job, "b", execute_at=START)
            await bench.advance(1)
        ids = body.seen("execution_id")
        assert len(set(ids)) == 3
        assert all(len(text) == 32 and int(text, 16) for text in ids)

    run(main())


def test_the_fencing_token_is_that_of_the_claim_whatever_heartbeats_there_were() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[int] = []

        async def body(context: Context) -> None:
            await bench.clock.sleep(5)
            await context.heartbeat()
            await bench.clock.sleep(5)
            await context.heartbeat()
            seen.append(context.fencing_token)

        job = bench.app.dynamic_task(name="job")(body)
        await scheduled(bench, job)
        async with bench.running():
            record = await bench.record(job, "a")
            assert record is not None
            await bench.advance(20)
        assert seen == [record.version]

    run(main())


@pytest.mark.parametrize(
    "name", ["attempt", "execution_id", "fencing_token", "deadline", "previous_error"]
)
def test_a_fixture_or_an_item_of_that_name_goes_before_what_is_new_in_the_context(
    name: str,
) -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []

        async def body(context: Context) -> None:
            seen.append(getattr(context, name))

        job = bench.app.dynamic_task(name="job", timeout=seconds(5))(body)
        await scheduled(bench, job)
        async with bench.running(context_items={name: "mine"}):
            await bench.advance(1)
        assert seen == ["mine"]

    run(main())


# Parked.


def test_a_parked_task_is_run_again_with_all_of_its_attempts(bench: Bench) -> None:
    async def main() -> None:
        body = Failing(bench, *[ValueError("no")] * 5)
        job = bench.app.dynamic_task(name="job", retry=EXACT, color="blue")(body)
        await scheduled(bench, job, execute_at=START, size=1)
        async with bench.running() as context:
            await bench.advance(100)
            assert bench.times == [0, 10, 30]
            assert await context.retry_parked(job, "a")
            assert not await context.retry_parked(job, "a"), "it is under way"
            await bench.advance(100)
        assert bench.times == [0, 10, 30, 100, 110, 130]
        assert body.seen("attempt") == [1, 2, 3, 1, 2, 3]
        assert body.seen("previous_error")[3] == "ValueError: no"
        assert len(set(body.seen("execution_id"))) == 1
        assert {tuple(each.args.items()) for each in bench.runs} == {
            (("color", "blue"), ("size", 1))
        }
        assert await bench.record(job, "a") is None

    run(main())


def test_a_parked_task_that_is_triggered_is_run_again_with_all_of_its_attempts() -> None:
    async def main() -> None:
        bench = Bench()
        body = Failing(bench, *[ValueError("no")] * 6)
        job = bench.app.dynamic_task(name="job", retry=EXACT)(body)
        await scheduled(bench, job)
        async with bench.running() as context:
            shown: list[tuple[str, int]] = []

            async def show() -> None:
                state = await context.get_task(job, "a")
                assert state is not None
                shown.append((state.state, state.attempt))

            await bench.advance(1)
            await show()
            await bench.advance(50)
            await show()
            assert await context.trigger(job, "a") == 1
            await bench.advance(1)
            await show()
            await bench.advance(50)
            await show()
        assert body.seen("attempt") == [1, 2, 3, 1, 2, 3]
        assert len(set(body.seen("execution_id"))) == 1
        assert bench.planned == [0] * 6
        assert shown == [
            ("retrying", 2),
            ("parked", 3),
            ("retrying", 2),
            ("parked", 3),
        ]

    run(main())


def test_a_parked_task_is_run_again_with_new_arguments() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", retry=Retry(1), color="blue")(
            Failing(bench, ValueError("no"))
        )
        await scheduled(bench, job, execute_at=START, size=1)
        async with bench.running() as context:
            await bench.advance(1)
            assert await context.retry_parked(job, "a", size=2)
            await bench.advance(1)
        assert bench.runs[-1].args == {"color": "blue", "size": 2}
        assert bench.planned == [0, 0]

    run(main())


@pytest.mark.parametrize("how", [OnExisting.SOONER, OnExisting.REPLACE, OnExisting.KEEP])
def test_a_program_that_schedules_a_failing_one_off_at_each_start_frees_it_unless_it_keeps_it(
    how: OnExisting,
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", retry=Retry(1))(bench.fail)
        for _ in range(3):
            async with bench.running() as context:
                await context.schedule_task(job, "a", execute_at=START, on_existing=how)
                await bench.advance(10)
                assert await state_of(bench, job, "a") == "parked"
        assert bench.times == ([0] if how is OnExisting.KEEP else [0, 10, 20])

    run(main())


@pytest.mark.parametrize("bulk", [False, True])
def test_a_parked_task_that_is_scheduled_again_runs_by_what_is_new(bulk: bool) -> None:
    async def main() -> None:
        bench = Bench()
        body = Failing(bench, *[ValueError("no")] * 5)
        job = bench.app.dynamic_task(name="job", retry=EXACT)(body)
        await scheduled(bench, job, execute_at=START, size=1)
        async with bench.running() as context:
            await bench.advance(100)
            assert await state_of(bench, job, "a") == "parked"
            kept = await context.schedule_task(
                job, "a", execute_at=after(103), on_existing=OnExisting.KEEP
            )
            assert (kept.next_run, await state_of(bench, job, "a")) == (None, "parked")
            if bulk:
                instance = Instance("a", execute_at=after(105), size=2)
                result = await context.schedule_tasks(job, [instance])
                assert (result.updated, result.unchanged) == (1, 0)
            else:
                told = await context.schedule_task(job, "a", execute_at=after(105), size=2)
                assert told.next_run == after(105)
            await bench.advance(100)
        assert bench.times == [0, 10, 30, 105, 115, 135]
        assert body.seen("attempt") == [1, 2, 3, 1, 2, 3]
        assert [each.args["size"] for each in bench.runs] == [1, 1, 1, 2, 2, 2]
        assert len(set(body.seen("execution_id"))) == 2, "it is a new run, and not the old one"
        assert await bench.record(job, "a") is None

    run(main())


def test_synchronising_frees_a_parked_task_only_if_it_differs() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", retry=Retry(1))(Failing(bench, ValueError("no")))
        await scheduled(bench, job, execute_at=START, size=1)
        async with bench.running() as context:
            await bench.advance(1)
            await context.sync_tasks(job, [Instance("a", execute_at=START, size=1)])
            await bench.advance(1)
            assert await state_of(bench, job, "a") == "parked"
            await context.sync_tasks(job, [Instance("a", execute_at=START, size=2)])
            await bench.advance(1)
        assert [each.args["size"] for each in bench.runs] == [1, 2]

    run(main())


def test_what_is_not_parked_is_not_run_again() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            assert not await context.retry_parked(job, "a")
            await context.schedule_task(job, "a", interval=seconds(100))
            assert not await context.retry_parked(job, "a")
            await bench.advance(50)
        assert bench.runs == []

    run(main())


def test_what_cannot_be_run_again_is_refused_in_words() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        tick = bench.app.task(name="tick", interval=seconds(10))(bench.note)
        await bench.plant(job, "a", state="parked", schedule="what is this")
        async with bench.app.create() as context:
            with pytest.raises(ValueError, match=r"cannot be read by any .*schedule it anew"):
                await context.retry_parked(job, "a")
            with pytest.raises(TypeError, match="'tick' is a static task"):
                await context.retry_parked(tick, size=1)
            with pytest.raises(TypeError, match="interval is an option, not an argument"):
                await context.retry_parked(job, "a", interval=5)
            with pytest.raises(ValueError, match="JSON serializable"):
                await context.retry_parked(job, "a", when=START)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="instance name must be provided"):
                await context.retry_parked(job)

    run(main())


def test_a_parked_static_task_is_run_again() -> None:
    async def main() -> None:
        bench = Bench()
        options: dict[str, Any] = {"retry": Retry(1), "exhausted": Exhausted.PARK}
        tick = bench.app.task(name="tick", interval=seconds(10), **options)(
            Failing(bench, ValueError("no"))
        )
        async with bench.running() as context:
            await bench.advance(100)
            assert await state_of(bench, tick) == "parked"
            assert await context.retry_parked(tick)
            await bench.advance(1)
        assert bench.times[:3] == [10, 100, 101], "what was missed meanwhile follows with pauses"
        assert bench.planned[:3] == [10, 10, 20]

    run(main())


def test_a_start_says_that_a_static_task_is_parked_or_frees_it_if_its_schedule_changed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warning = "tick is parked and does not run: retry_parked()"

    async def main() -> None:
        bench = Bench()
        options: dict[str, Any] = {"retry": Retry(1), "exhausted": Exhausted.PARK}
        tick = bench.app.task(name="tick", interval=seconds(10), **options)(
            Failing(bench, ValueError("no"))
        )
        async with bench.running():
            await bench.advance(15)
        assert not logged(caplog, warning)
        async with bench.running():
            await bench.advance(15)
            assert await state_of(bench, tick) == "parked"
        assert logged(caplog, warning)
        caplog.clear()
        bench.app = bench.another_app()
        bench.app.task(name="tick", interval=seconds(7), **options)(bench.note)
        async with bench.running():
            await bench.advance(15)
        assert bench.times == [10, 37, 44]
        assert not logged(caplog, warning)
        assert logged(caplog, "tick was parked and is planned anew")

    run(main())


@pytest.mark.parametrize(
    ("options", "expected"), [({}, [20, 30, 40]), ({"catch_up": CatchUp.LATEST}, [40])]
)
def test_the_run_for_which_a_task_is_parked_is_given_up_and_the_next_one_follows(
    options: dict[str, Any], expected: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        options.update(retry=Retry(1), exhausted=Exhausted.PARK, interval=seconds(10))
        body = Failing(bench, ValueError("no"))
        tick = bench.app.task(name="tick", **options)(body)
        async with bench.running() as context:
            await bench.advance(35)
            assert await state_of(bench, tick) == "parked"
            assert await context.drop_parked(tick)
            assert not await context.drop_parked(tick), "it is not parked any more"
            state = await context.get_task(tick)
            assert state is not None
            assert state.last_error == "ValueError: no"
            await bench.advance(8)
        assert bench.planned == [10, *expected]
        assert body.seen("attempt") == [1] * len(bench.planned)
        assert len(set(body.seen("execution_id"))) == len(bench.planned)

    run(main())
    assert logged(caplog, "tick is parked", "drop_parked() gives this run up")


def test_a_one_off_that_is_parked_and_given_up_is_gone() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", retry=Retry(1))(bench.fail)
        await scheduled(bench, job)
        async with bench.running() as context:
            await bench.advance(1)
            assert await context.drop_parked(job, "a")
            assert await context.get_task(job, "a") is None
            assert not await context.drop_parked(job, "a")

    run(main())


def test_a_static_task_whose_progress_no_worker_could_read_goes_on_if_it_is_dropped() -> None:
    async def main() -> None:
        bench = Bench()
        tick = bench.app.task(name="tick", interval=seconds(10))(bench.note)
        await bench.plant(tick, progress="what is this")
        async with bench.running() as context:
            assert await state_of(bench, tick) == "parked"
            assert await context.drop_parked(tick)
            await bench.advance(25)
        assert bench.planned == [10, 20]

    run(main())


def test_a_parked_instance_is_removed_like_any_other() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", retry=Retry(1))(bench.fail)
        await scheduled(bench, job)
        async with bench.running() as context:
            await bench.advance(1)
            await context.unschedule_task(job, "a")
            assert await context.get_task(job, "a") is None

    run(main())


# Late occurrences.


def test_an_occurrence_that_is_too_late_is_skipped_and_counted(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"misfire_grace": seconds(25)}
        job = bench.app.task(name="job", interval=seconds(10), **options)(bench.note)
        await bench.plant(job, schedule=Every(seconds(10)), planned=-100)
        async with bench.running():
            progress = await progress_of(bench, job)
            assert progress.skipped == 8  # -100 to -30; 25 s late is not too late
            await bench.advance(10)
        assert bench.planned == [-20, -10, 0, 10]
        progress = await progress_of(bench, job)
        assert progress.skipped == 8

    with caplog.at_level("INFO"):
        run(main())
    assert [line for line in lines(caplog) if "misfire_grace" in line or "skipped" in line] == [
        "job is late by more than misfire_grace (0:00:25)",
        "Task job: 8 missed occurrences are skipped",
    ]


def test_a_one_off_that_is_too_late_does_not_run_and_leaves_a_trace(bench: Bench) -> None:
    async def main() -> None:
        job = bench.app.dynamic_task(name="job", misfire_grace=seconds(25))(bench.note)
        await scheduled(bench, job, execute_at=after(-60))
        async with bench.running() as context:
            await bench.advance(10)
            assert bench.runs == []
            state = await context.get_task(job, "a")
            assert state is not None
            assert (state.state, state.reason) == ("finished", "skipped: 60 s late")
            await context.schedule_task(job, "a", execute_at=after(20))
            await bench.advance(20)
        assert bench.planned == [20], "its name may be used again"

    run(main())


def test_how_late_what_is_skipped_was_does_not_include_its_jitter() -> None:
    async def main() -> None:
        bench = Bench()
        options: dict[str, Any] = {"misfire_grace": seconds(25), "jitter": seconds(1_000)}
        job = bench.app.dynamic_task(name="job", **options)(bench.note)
        plan = At(START).with_jitter(seconds(1_000))
        due = plan.due(micros(0), job.group, "a")
        await scheduled(bench, job)
        await bench.advance((due - micros(0)) / 1_000_000 + 40)
        async with bench.running() as context:
            state = await context.get_task(job, "a")
            assert state is not None
            assert (state.state, state.reason) == ("finished", "skipped: 40 s late")
        assert bench.runs == []

    run(main())


def test_only_the_first_start_of_an_occurrence_can_be_too_late() -> None:
    async def main() -> None:
        bench = Bench()
        options: dict[str, Any] = {"misfire_grace": seconds(5)}
        job = bench.app.dynamic_task(name="job", retry=EXACT, **options)(
            Failing(bench, *[ValueError("no")] * 3)
        )
        await scheduled(bench, job)
        waits = bench.app.dynamic_task(name="waits", **options)(
            Failing(bench, RetryIn(seconds(60), free=True))
        )
        await scheduled(bench, waits)
        died = bench.app.dynamic_task(name="died", **options)(bench.note)
        await bench.plant(died, "a", planned=-60, unfinished_attempts=1, state="running")
        async with bench.running() as context:
            await bench.advance(100)
            assert await context.retry_parked(job, "a")
            await bench.advance(1)
        assert [each.at for each in bench.runs if each.name == "job:a"] == [0, 10, 30, 100]
        assert [each.at for each in bench.runs if each.name == "waits:a"] == [0, 60]
        assert [each.at for each in bench.runs if each.name == "died:a"] == [0]

    run(main())


def test_an_occurrence_that_a_closing_worker_gave_back_is_not_too_late() -> None:
    async def main() -> None:
        bench = Bench()
        options: dict[str, Any] = {"misfire_grace": seconds(5)}

        async def slow(context: Context) -> None:
            await bench.note(context)
            if bench.clock.monotonic() == 0:
                await bench.clock.sleep(20)

        job = bench.app.dynamic_task(name="job", **options)(slow)
        tick = bench.app.task(name="tick", interval=seconds(100), **options)(slow)
        await bench.plant(tick, planned=0)
        await scheduled(bench, job)

        closing = asyncio.Event()

        async def serve() -> None:
            async with bench.app.create() as context:
                loop = asyncio.create_task(context.run())
                await bench.clock.settle()
                context.shutdown()
                await loop
                closing.set()

        serving = asyncio.create_task(serve())
        await closing.wait()
        serving.cancel()
        await asyncio.wait([serving])
        assert bench.times == [0, 0]
        assert [await state_of(bench, job, "a"), await state_of(bench, tick)] == ["scheduled"] * 2
        await bench.advance(60)
        async with bench.app.create() as context:
            assert await context.trigger(tick), "another run, before the one that was given back"
        async with bench.running():
            await bench.advance(30)
        assert sorted((each.name, each.scheduled_at) for each in bench.runs[2:]) == [
            ("job:a", 0),
            ("tick", 0),
            ("tick", 60),
        ]
        progress = await progress_of(bench, tick)
        assert (progress.planned, progress.skipped, progress.begun) == (micros(100), 0, None)

    run(main())


@pytest.mark.parametrize("triggered", [False, True])
def test_an_occurrence_that_was_tried_before_its_pause_is_not_too_late_after_it(
    triggered: bool,
) -> None:
    async def main() -> None:
        bench = Bench()
        options: dict[str, Any] = {"misfire_grace": seconds(5), "retry": EXACT}
        acts = [ValueError("no"), *([None] if triggered else []), ValueError("no")]
        body = Failing(bench, *acts)
        tick = bench.app.task(name="tick", interval=seconds(1_000), **options)(body)
        async with bench.running() as context:
            await bench.advance(1_000)
            await context.pause(tick)
            await bench.advance(100)
            if triggered:
                assert await context.trigger(tick)
                await bench.advance(10)
            await context.resume(tick)
            await bench.advance(100)
        tried = [1_000, 1_100] if triggered else [1_000]
        resumed = 1_110 if triggered else 1_100
        assert bench.planned == [*tried, 1_000, 1_000]
        assert bench.times[len(tried) :] == [resumed, resumed + (10 if triggered else 20)]
        assert body.seen("attempt") == ([1, 1, 1, 2] if triggered else [1, 2, 3])
        errors = [None, None, None, "no"] if triggered else [None, "no", "no"]
        told = [error and f"ValueError: {error}" for error in errors]
        assert body.seen("previous_error") == told

    run(main())


def test_a_pause_that_is_longer_than_the_grace_skips_what_it_kept_from_starting() -> None:
    async def main() -> None:
        bench = Bench()
        options: dict[str, Any] = {"misfire_grace": seconds(5)}
        tick = bench.app.task(name="tick", interval=seconds(10), **options)(bench.note)
        async with bench.running() as context:
            await context.pause(tick)
            await bench.advance(12)
            assert await context.trigger(tick), "a triggered run is never late"
            await bench.advance(26)
            await context.resume(tick)
            await bench.advance(5)
            assert (await progress_of(bench, tick)).skipped == 3
        assert bench.planned == [12, 40]

    run(main())


def test_at_most_once_is_skipped_too_if_it_is_too_late() -> None:
    async def main() -> None:
        bench = Bench()
        options: dict[str, Any] = {
            "misfire_grace": seconds(5),
            "execution_mode": ExecutionMode.AT_MOST_ONCE,
        }
        job = bench.app.task(name="job", interval=seconds(10), **options)(bench.note)
        await bench.plant(job, schedule=Every(seconds(10)), planned=-100)
        async with bench.running():
            await bench.advance(10)
        assert bench.planned == [0, 10]
        assert (await progress_of(bench, job)).skipped == 10

    run(main())


def test_what_is_missed_collapses_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench = Bench()
        options: dict[str, Any] = {"catch_up": CatchUp.LATEST}
        job = bench.app.task(name="job", schedule="* * * * *", **options)(bench.note)
        await bench.plant(job, planned=-3_600)
        async with bench.running():
            assert (await progress_of(bench, job)).skipped == 60
            await bench.advance(60)
        assert bench.planned == [-3_600, 60]

    with caplog.at_level("INFO"):
        run(main())
    assert logged(caplog, "job: 60 missed occurrences are skipped")


@pytest.mark.parametrize(
    ("overlap", "expected"), [(Overlap.QUEUE, [10, 20, 30, 40]), (Overlap.SKIP, [10, 40])]
)
def test_what_comes_due_during_a_run_runs_afterwards_or_is_skipped(
    overlap: Overlap, expected: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()

        async def body(context: Context) -> None:
            await bench.note(context)
            if context.scheduled_at == after(10):
                await bench.clock.sleep(25)

        job = bench.app.task(name="job", interval=seconds(10), overlap=overlap)(body)
        async with bench.running():
            await bench.advance(41)
        assert bench.planned == expected
        skipped = (await progress_of(bench, job)).skipped
        assert skipped == (2 if overlap is Overlap.SKIP else 0)

    with caplog.at_level("INFO"):
        run(main())
    assert logged(caplog, "job: 2 missed occurrences are skipped") == (overlap is Overlap.SKIP)


def test_what_was_missed_before_the_run_is_no_overlap() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.task(name="job", interval=seconds(10), overlap=Overlap.SKIP)(bench.note)
        await bench.plant(job, schedule=Every(seconds(10)), planned=-30)
        async with bench.running():
            await bench.advance(1)
        assert bench.planned == [-30, -20, -10, 0]

    run(main())


class Slow:
    """A body that takes these lengths in turn, in seconds, and a task of it that skips overlaps."""

    def __init__(self, bench: Bench, interval: int, *lengths: int, **options: Any) -> None:
        self.bench = bench
        self.lengths = lengths
        self.ends: list[float] = []
        self.task = bench.app.task(
            name="job",
            interval=seconds(interval),
            overlap=Overlap.SKIP,
            lease_duration=seconds(3_600),
            **options,
        )(self)

    async def __call__(self, context: Context) -> None:
        await self.bench.note(context)
        await self.bench.clock.sleep(self.lengths[len(self.ends) % len(self.lengths)])
        self.ends.append(self.bench.clock.monotonic())

    async def rest(self, context: PyncetteContext) -> None:
        """Lets the run that is under way end, and no other begin."""
        await context.pause(self.task)
        await self.bench.advance(max(self.lengths))


@given(
    interval=st.integers(2, 60),
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=8),
    missed=st.integers(0, 6),
)
@example(interval=60, lengths=[150], missed=5)
@settings(max_examples=12, deadline=None)
def test_a_backlog_is_worked_off_by_a_task_that_takes_longer_than_its_interval(
    interval: int, lengths: list[int], missed: int
) -> None:
    """What was missed runs, what comes due until that is done is skipped, then all is on time."""

    async def main() -> tuple[Bench, list[float]]:
        bench = Bench(poll_interval=seconds(30))
        slow = Slow(bench, interval, *lengths)
        start = -missed * interval
        await bench.plant(slow.task, schedule=Every(seconds(interval)), planned=start)
        async with bench.running() as context:
            await bench.advance(1_200)
            await slow.rest(context)
        return bench, slow.ends

    bench, ends = run(main())
    assert bench.planned[: missed + 1] == [count * interval for count in range(-missed, 1)]
    assert len(bench.runs) > missed + 1
    for ended, each in zip(ends[missed:], bench.runs[missed + 1 :], strict=False):
        assert each.at == each.scheduled_at == (ended // interval + 1) * interval


def test_what_overlaps_with_a_backlog_is_skipped_also_where_its_rest_is_too_late() -> None:
    async def main() -> None:
        bench = Bench()
        slow = Slow(bench, 10, 25, misfire_grace=seconds(40))
        await bench.plant(slow.task, schedule=Every(seconds(10)), planned=-40)
        async with bench.running() as context:
            await bench.advance(95)
            await slow.rest(context)
        # At 25, -30 and -20 are too late. At 50, what is left of the backlog is.
        runs = [(each.at, each.scheduled_at) for each in bench.runs]
        assert runs == [(0, -40), (25, -10), (60, 60), (90, 90)]
        progress = await progress_of(bench, slow.task)
        assert (progress.skipped, progress.backlog) == (2 + 6 + 2 + 2, None)

    run(main())


@pytest.mark.parametrize(
    ("steered", "planned"),
    [
        ("trigger", [-20, 5, -10, 0, 110, 140]),
        ("close", [-20, -10, 0, 80, 110, 140]),
        ("pause", [-20, -10, 0, 10, 20, 30]),
    ],
)
def test_a_backlog_lasts_over_other_runs_and_workers_but_not_over_a_pause(
    steered: str, planned: list[float]
) -> None:
    async def main() -> None:
        bench = Bench()
        slow = Slow(bench, 10, 25)
        await bench.plant(slow.task, schedule=Every(seconds(10)), planned=-20)
        async with bench.running() as context:
            await bench.advance(5)
            if steered == "trigger":
                assert await context.trigger(slow.task)
            elif steered == "pause":
                await context.pause(slow.task)
                await bench.advance(30)
                await context.resume(slow.task)
            await bench.advance(20)
            if steered == "close":
                context.shutdown()
                await bench.advance(25)
            else:
                await bench.advance(130)
                await slow.rest(context)
        if steered == "close":
            async with bench.running() as context:
                await bench.advance(120)
                await slow.rest(context)
        assert bench.planned[:6] == planned

    run(main())


def test_what_comes_due_between_the_attempts_of_an_occurrence_overlaps_with_it() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.task(name="job", interval=seconds(10), overlap=Overlap.SKIP, retry=EXACT)(
            Failing(bench, ValueError("no"), ValueError("no"))
        )
        async with bench.running():
            await bench.advance(55)
        assert bench.planned == [10, 10, 10, 50]
        assert bench.times == [10, 20, 40, 50]
        assert (await progress_of(bench, job)).skipped == 3

    run(main())


def test_a_task_that_was_away_for_a_month_catches_up_with_pauses_and_names_what_helps(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        options: dict[str, Any] = {"execution_mode": ExecutionMode.AT_MOST_ONCE}
        running = most = 0

        async def body(context: Context) -> None:
            nonlocal running, most
            await bench.note(context)
            running += 1
            most = max(most, running)
            await bench.clock.sleep(3)
            running -= 1

        hourly = bench.app.task(name="hourly", interval=seconds(3_600), **options)(body)
        month = 30 * 86_400
        await bench.plant(hourly, planned=-month)
        async with bench.running():
            assert len(bench.runs) == 1
            await bench.advance(10)
            assert len(bench.runs) == 11, "one a second"
            await bench.advance(721)
        assert len(bench.runs) == 721
        assert most <= 4

    run(main())
    line = next(line for line in lines(caplog) if "behind its schedule" in line)
    assert "about 721 occurrences" in line
    assert "CatchUp.LATEST" in line
    assert "misfire_grace" in line


def test_occurrences_that_are_close_together_are_caught_up_with_ten_times_as_fast() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.task(name="job", interval=seconds(1))(bench.note)
        await bench.plant(job, schedule=Every(seconds(1)), planned=-600)
        async with bench.running():
            await bench.advance(100)
        assert len(bench.runs) == 701

    run(main())


# Exceptions that cannot be asked.


class Forgetful(RetryIn):
    def __init__(self) -> None:
        """Does not call the class above, so that it has no delay."""


class UntrueError(Exception):
    def __bool__(self) -> bool:
        raise ValueError("neither true nor false")


class Undecided(Retry):
    def covers(self, error: BaseException) -> bool:
        raise ValueError("no idea")


def _far() -> RetryIn:
    error = RetryIn(seconds(1))
    error.delay = timedelta.max
    return error


@pytest.mark.parametrize(
    ("options", "attempts", "left"),
    [
        ({"retry": Retry(2, seconds(1))}, 2, "parked"),
        ({"retry": Undecided(2, seconds(1))}, 2, "parked"),
        ({"failure_mode": FailureMode.COMMIT}, 1, None),
        ({"execution_mode": ExecutionMode.AT_MOST_ONCE}, 1, None),
    ],
    ids=["policy", "a policy that cannot say", "commit", "at most once"],
)
@pytest.mark.parametrize(
    "error", [Forgetful, UntrueError, _far], ids=["forgetful", "untrue", "far"]
)
def test_an_exception_that_cannot_be_asked_is_an_ordinary_failure(
    error: Callable[[], Exception],
    options: dict[str, Any],
    attempts: int,
    left: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        starts: list[int] = []

        @bench.app.dynamic_task(**options)
        async def job(context: Context) -> None:
            starts.append(context.attempt)
            raise error()

        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=START)
            await bench.advance(100)
            state = await context.get_task(job, "a")
            assert (state and state.state) == left
        assert starts == list(range(1, attempts + 1))

    run(main())
    assert logged(caplog, "failed in attempt")
