"""With ``raise_task_errors``, what a task raises makes the test fail that runs it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from tests.support import START, Bench, after, looping, run

from pyncette import Context, GiveUp, Pyncette, Retry, RetryIn, RunCounts, Skip
from pyncette.memory import MemoryRepository
from pyncette.testing import VirtualClock


def bench_with(*errors: BaseException, **options: object) -> Bench:
    """A bench with a task that raises one error after another."""
    bench = Bench(raise_task_errors=True)
    left = list(errors)

    @bench.app.task(interval=60, **options)  # type: ignore[call-overload, untyped-decorator]
    async def job(context: Context) -> None:
        if left:
            raise left.pop(0)

    return bench


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", ()))


def test_moving_the_clock_raises_it_at_that_instant() -> None:
    async def main() -> None:
        bench = bench_with(AssertionError("1 != 2"))
        async with bench.running():
            with pytest.raises(AssertionError, match="1 != 2") as caught:
                await bench.advance(3600)
            assert bench.clock.monotonic() == 60.0
            assert "task job, in attempt 1 of the run planned for" in notes(caught.value)
            await bench.advance(3600)  # it is raised once

    run(main())


def test_running_until_idle_raises_it_when_all_has_run() -> None:
    async def main() -> None:
        bench = bench_with(AssertionError("wrong"))
        other = bench.app.dynamic_task(name="other")(bench.note)
        async with bench.app.create() as context:
            await context.run_until_idle()
            await context.schedule_task(other, "x", execute_at=after(60))
            await bench.clock.advance(timedelta(seconds=60))
            with pytest.raises(AssertionError, match="wrong"):
                await context.run_until_idle()
        assert len(bench.runs) == 1

    run(main())


def test_one_call_may_raise_it_in_an_app_that_does_not() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.fail)
        async with bench.app.create() as context:
            for number in range(3):
                await context.schedule_task(job, str(number), execute_at=after(0))
            with pytest.raises(RuntimeError, match="the body failed") as caught:
                await context.run_until_idle(raise_task_errors=True)
            assert notes(caught.value).count("the body failed") == 2  # the others
            await context.schedule_task(job, "4", execute_at=after(0))
            assert await context.run_until_idle() == RunCounts(1, 1)

    run(main())


@pytest.mark.parametrize("in_background", [True, False])
def test_leaving_the_app_raises_it(in_background: bool) -> None:
    failed = asyncio.Event()

    async def main() -> None:
        app = Pyncette(MemoryRepository(), raise_task_errors=True)

        @app.dynamic_task()
        async def job(context: Context) -> None:
            failed.set()
            raise ValueError("from the task")

        async def use() -> None:
            if in_background:
                async with app.running() as context:
                    await context.schedule_task(job, "x", execute_in=timedelta())
                    await failed.wait()
            else:
                async with app.create() as context, looping(context):
                    await context.schedule_task(job, "x", execute_in=timedelta())
                    await failed.wait()

        with pytest.raises(ValueError, match="from the task"):
            await use()

    run(main())


def test_the_test_that_has_failed_itself_says_which_task_had_failed_before() -> None:
    failed = asyncio.Event()

    async def main() -> None:
        app = Pyncette(MemoryRepository(), clock=VirtualClock(START), raise_task_errors=True)

        @app.dynamic_task()
        async def job(context: Context) -> None:
            failed.set()
            raise ValueError("from the task")

        async def use() -> None:
            async with app.create() as context, looping(context):
                await context.schedule_task(job, "x", execute_in=timedelta())
                await failed.wait()
                raise AssertionError("no report")

        with pytest.raises(AssertionError, match="no report") as caught:
            await use()
        assert "task job:x, in attempt 1" in notes(caught.value)

    run(main())


def test_an_error_after_which_the_task_is_tried_again_is_raised_as_well() -> None:
    async def main() -> None:
        bench = bench_with(OSError("first"), OSError("second"), retry=Retry(attempts=5, jitter=0))
        async with bench.running():
            with pytest.raises(OSError, match="first"):
                await bench.advance(3600)
            with pytest.raises(OSError, match="second"):
                await bench.advance(3600)
            await bench.advance(3600)

    run(main())


def test_what_a_task_decides_itself_is_no_error() -> None:
    async def main() -> None:
        bench = bench_with(
            Skip("nothing to do"), RetryIn(timedelta(seconds=5), "later"), GiveUp("never")
        )
        async with bench.running():
            await bench.advance(3600)

    run(main())


def test_a_cancellation_that_a_task_raises_does_not_cancel_the_test() -> None:
    async def main() -> None:
        bench = bench_with(asyncio.CancelledError())
        async with bench.running():
            with pytest.raises(RuntimeError, match="raised CancelledError"):
                await bench.advance(3600)

    run(main())


def test_without_it_nothing_is_raised_and_failures_are_counted() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.fail)
        fine = bench.app.dynamic_task(name="fine")(bench.note)
        async with bench.app.create() as context:
            for number in range(3):
                await context.schedule_task(job, str(number), execute_at=after(0))
                await context.schedule_task(fine, str(number), execute_at=after(0))
            assert await context.run_until_idle() == RunCounts(runs=6, failures=3)
            assert await context.run_until_idle() == RunCounts(0, 0)
            context.shutdown()
            assert await context.run_until_idle() == RunCounts(0, 0)

    run(main())


def test_the_option_is_checked() -> None:
    with pytest.raises(TypeError, match="raise_task_errors must be True or False, not 'yes'"):
        Pyncette(raise_task_errors="yes")  # type: ignore[arg-type]
