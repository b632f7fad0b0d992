"""Timeouts: a body that takes too long is cancelled, once, and has failed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
from tests.support import Bench, after, lines, logged, run, seconds

from pyncette import Context, ExecutionMode, FailureMode, Pyncette, Retry, Skip
from pyncette.clock import realtime
from pyncette.executor import SynchronousExecutor
from pyncette.model import Outcome, TaskState
from pyncette.store.record import load_progress

pytestmark = pytest.mark.every_poll


@pytest.fixture(params=[False, True], ids=["", "synchronous"])
def bench(request: pytest.FixtureRequest) -> Bench:
    if request.param:
        return Bench(executor_cls=SynchronousExecutor)
    return Bench()


ONCE: dict[str, Any] = {
    "interval": seconds(10),
    "timeout": seconds(5),
    "failure_mode": FailureMode.COMMIT,
}


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[None]:
    """The app runs; at the end nothing starts any more, and what runs is waited for."""
    async with bench.running() as context:
        yield
        for task in bench.app._tasks:
            task.enabled = False
        await bench.advance(1)
        while context._worker.dispatcher.executions:
            await bench.advance(100)


async def error_of(bench: Bench, task: Any) -> str | None:
    record = await bench.record(task)
    assert record is not None
    return load_progress(record.progress).error


def test_a_body_that_takes_too_long_is_cancelled_and_has_failed(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        seen: list[Any] = []

        @bench.app.task(**ONCE)
        async def slow(context: Context) -> None:
            await bench.note(context)
            seen.append(context.deadline)
            try:
                await bench.clock.sleep(100)
            except asyncio.CancelledError:
                seen.append(bench.clock.monotonic())
                raise

        async with running(bench):
            await bench.advance(17)
            assert (
                await error_of(bench, slow) == "TimeoutError: The task did not end within 0:00:05"
            )
            await bench.advance(5)
        assert bench.times == [10, 20]
        assert seen == [after(15), 15, after(25), 25]

    run(main())
    for entry in caplog.records:
        assert "slow failed in attempt 1 of the run" in entry.getMessage(), "one line for each"
        assert entry.exc_text is not None
        assert entry.exc_text.count("Traceback (most recent call last)") == 1
        assert "in slow\n    await bench.clock.sleep(100)" in entry.exc_text
        assert entry.exc_text.endswith("TimeoutError: The task did not end within 0:00:05")
    assert len(caplog.records) == 2


def test_a_body_that_is_quick_enough_notices_nothing(bench: Bench) -> None:
    async def main() -> None:
        @bench.app.task(**ONCE)
        async def quick(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(4)

        async with running(bench):
            await bench.advance(60)
        assert bench.planned == [10, 20, 30, 40, 50, 60]
        assert await error_of(bench, quick) is None

    run(main())


def test_without_a_timeout_there_is_no_deadline() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[Any] = []

        @bench.app.task(interval=seconds(10))
        async def job(context: Context) -> None:
            seen.append(context.deadline)

        async with running(bench):
            await bench.advance(10)
        assert seen == [None]

    run(main())


def test_a_timeout_is_retried_like_any_other_failure(bench: Bench) -> None:
    async def main() -> None:
        retry = Retry(attempts=2, initial=seconds(10), jitter=0)

        @bench.app.dynamic_task(timeout=seconds(5), retry=retry)
        async def slow(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(100)

        async with bench.running() as context:
            await context.schedule_task(slow, "a", execute_at=after(0))
            await bench.advance(100)
            state = await context.get_task(slow, "a")
        assert bench.times == [0, 15]
        assert state is not None
        assert (state.state, state.reason) == (
            "parked",
            "TimeoutError: The task did not end within 0:00:05",
        )

    run(main())


def test_middlewares_see_the_timeout_and_their_own_time_does_not_count(bench: Bench) -> None:
    async def main() -> None:
        seen: list[str] = []

        @bench.app.middleware
        async def slow_itself(context: Context, following: Callable[[], Awaitable[None]]) -> None:
            await bench.clock.sleep(7)
            try:
                await following()
            except TimeoutError as error:
                seen.append(str(error))
                await bench.clock.sleep(7)
                raise

        @bench.app.task(**ONCE)
        async def slow(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(100)

        async with running(bench):
            await bench.advance(30)
        assert bench.times[:1] == [10 + 7]
        assert seen[0] == "The task did not end within 0:00:05"

    run(main())


def test_a_timeout_error_of_the_bodys_own_is_an_ordinary_error(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        @bench.app.task(**ONCE)
        async def job(context: Context) -> None:
            raise TimeoutError("of the service")

        async with running(bench):
            await bench.advance(10)
            assert await error_of(bench, job) == "TimeoutError: of the service"

    run(main())
    assert not logged(caplog, "did not end within its timeout")


def test_a_body_that_swallows_the_cancellation_and_returns_has_failed_all_the_same(
    bench: Bench,
) -> None:
    async def main() -> None:
        @bench.app.task(**ONCE)
        async def stubborn(context: Context) -> None:
            await bench.note(context)
            try:
                await bench.clock.sleep(100)
            except asyncio.CancelledError:
                await bench.clock.sleep(2)

        async with running(bench):
            await bench.advance(19)
            error = await error_of(bench, stubborn)
            assert error == "TimeoutError: The task did not end within 0:00:05"
            await bench.advance(3)
        assert bench.times[:2] == [10, 20]

    run(main())


def test_a_body_that_goes_on_for_ever_is_named_at_growing_intervals(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.task(**{**ONCE, "lease_duration": timedelta(days=1)})
        async def stubborn(context: Context) -> None:
            await bench.note(context)
            try:
                await bench.clock.sleep(100)
            except asyncio.CancelledError:
                await bench.clock.sleep(1_000)

        async with running(bench):
            await bench.advance(1_100)
        assert bench.times[0] == 10

    run(main())
    said = [line for line in lines(caplog) if "still runs" in line]
    assert [line.split(", ")[1].split(" s")[0] for line in said[:4]] == ["10", "30", "70", "150"]
    assert "It keeps its slot and its lease until it ends" in said[0]


def test_a_body_that_goes_on_keeps_its_lease_until_it_ends(bench: Bench) -> None:
    async def main() -> None:
        @bench.app.task(**{**ONCE, "interval": seconds(100)}, lease_duration=seconds(12))
        async def stubborn(context: Context) -> None:
            await bench.note(context)
            ends = bench.clock.monotonic() + 61
            while (left := ends - bench.clock.monotonic()) > 0:
                with suppress(asyncio.CancelledError):
                    await bench.clock.sleep(left)

        async with running(bench):
            await bench.advance(160)
            assert bench.times == [100], "it is started once"
            record = await bench.record(stubborn)
            assert record is not None
            assert record.token is not None
            await bench.advance(2)
            assert (await error_of(bench, stubborn) or "").startswith("TimeoutError: The task did")
        assert bench.times == [100]

    run(main())


def test_a_plain_function_that_goes_on_keeps_its_lease_until_it_ends() -> None:
    async def main() -> None:
        app = Pyncette(poll_interval=0.05)
        started, may_end = threading.Event(), threading.Event()

        @app.dynamic_task(
            lease_duration=seconds(1), timeout=timedelta(milliseconds=20), retry=Retry(attempts=1)
        )
        def stubborn(context: Context) -> None:
            assert not started.is_set(), "it is started once"
            started.set()
            may_end.wait()

        async with app.running() as context:
            await context.schedule_task(stubborn, "a", execute_in=timedelta(0))

            async def state_of() -> TaskState:
                state = await context.get_task(stubborn, "a")
                assert state is not None
                return state

            ends: set[Any] = set()
            try:
                while len(ends) < 4:
                    state = await state_of()
                    assert state.state in ("scheduled", "running")
                    if state.locked_until is not None:
                        ends.add(state.locked_until)
                    await realtime.sleep(0.01)
            finally:
                may_end.set()
            while (state := await state_of()).state != "parked":
                await realtime.sleep(0.01)
            assert str(state.last_error).startswith("TimeoutError: The task did not end within")

    asyncio.run(main())


def test_what_a_body_raises_instead_when_it_is_cancelled_is_its_error(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        acts: list[Exception] = [ValueError("rolled back"), Skip("too late to matter")]

        @bench.app.task(**ONCE)
        async def job(context: Context) -> None:
            await bench.note(context)
            try:
                await bench.clock.sleep(100)
            except asyncio.CancelledError:
                raise acts.pop(0) from None

        async with running(bench):
            await bench.advance(16)
            assert await error_of(bench, job) == "ValueError: rolled back"
            await bench.advance(10)
            record = await bench.record(job)
            assert record is not None
            assert load_progress(record.progress).last_outcome is Outcome.SKIPPED

    run(main())
    assert logged(caplog, "job did not end within its timeout (0:00:05), was cancelled, and raised")


def test_at_most_once_is_cancelled_too() -> None:
    async def main() -> None:
        bench = Bench()
        ended: list[float] = []

        @bench.app.task(
            interval=seconds(10), timeout=seconds(5), execution_mode=ExecutionMode.AT_MOST_ONCE
        )
        async def slow(context: Context) -> None:
            try:
                await bench.clock.sleep(100)
            finally:
                ended.append(bench.clock.monotonic())

        async with running(bench):
            await bench.advance(26)
        assert ended == [15, 25]

    run(main())


@pytest.mark.parametrize("before", [0.0, 5.0])
def test_a_worker_that_is_cancelled_meanwhile_is_cancelled(before: float) -> None:
    """Also in the same moment: the cancellation of the worker is not taken for the timeout."""

    async def main() -> None:
        bench = Bench()

        @bench.app.task(**ONCE)
        async def slow(context: Context) -> None:
            await bench.note(context)
            try:
                await bench.clock.sleep(100)
            except asyncio.CancelledError:
                await asyncio.sleep(0)
                raise

        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.clock.settle()
            await bench.advance(10 + before)
            loop.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loop
        record = await bench.record(slow)
        assert record is not None
        if before == 0.0:
            assert record.state == "running", "the lease stays, as ever"
        assert len(bench.runs) == 1

    run(main())


def test_the_loop_goes_on_after_a_timeout_in_its_own_asyncio_task() -> None:
    async def main() -> None:
        bench = Bench(executor_cls=SynchronousExecutor)

        @bench.app.task(**ONCE)
        async def slow(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(100)

        async with running(bench):
            for _ in range(50):
                await bench.advance(1)
            current = [task for task in asyncio.all_tasks() if task.cancelling()]
            assert not current
        assert len(bench.runs) == 5

    run(main())
