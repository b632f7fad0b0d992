"""``run_until_idle`` runs what is due, then returns."""

from __future__ import annotations

import asyncio

import pytest
from tests.faulty_store import Fail
from tests.support import Bench, after, run, seconds

from pyncette import Context, PerWorker, PyncetteException, Retry

pytestmark = pytest.mark.every_poll


def test_what_is_due_runs_and_what_is_not_stays() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        bench.app.task(name="hourly", interval=3600)(bench.note)
        async with bench.app.create() as context:
            for second in (-5, 0, 60):
                await context.schedule_task(job, str(second), execute_at=after(second))
            await context.run_until_idle()
            assert [run.name for run in bench.runs] == ["job:-5", "job:0"]
            assert [state.task.name for state in (await context.list_tasks(job)).tasks] == ["60"]
            assert await context.workers() == []

            await bench.advance(60)
            await context.run_until_idle()
            assert [run.name for run in bench.runs[2:]] == ["job:60"]

    run(main())


def test_what_a_task_schedules_for_now_runs_too() -> None:
    async def main() -> None:
        bench = Bench()
        names = []

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            names.append(context.task.name)
            await asyncio.sleep(0)
            left = context.args["left"]
            if left:
                await context.app_context.schedule_task(
                    job, str(left), execute_at=after(0), left=left - 1
                )

        async with bench.app.create() as context:
            await context.schedule_task(job, "first", execute_at=after(0), left=3)
            await context.run_until_idle()
        assert names == ["first", "3", "2", "1"]

    run(main())


def test_more_than_a_claim_can_hold_runs() -> None:
    async def main() -> None:
        bench = Bench(batch_size=7, concurrency_limit=5)
        job = bench.app.dynamic_task(name="job", limit=PerWorker(2))(bench.note)
        other = bench.app.dynamic_task(name="other")(bench.note)
        async with bench.app.create() as context:
            for number in range(50):
                await context.schedule_task(job, str(number), execute_at=after(0))
                await context.schedule_task(other, str(number), execute_at=after(0))
            await context.run_until_idle()
        assert len(bench.runs) == 100

    run(main())


def test_a_retry_that_is_due_later_is_left() -> None:
    async def main() -> None:
        bench = Bench()
        policy = Retry(attempts=2, initial=seconds(30), jitter=0)
        job = bench.app.dynamic_task(name="job", retry=policy)(bench.fail)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x", execute_at=after(0))
            await context.run_until_idle()
            state = await context.get_task(job, "x")
            assert state is not None
            assert state.state == "retrying"
        assert len(bench.runs) == 1

    run(main())


def test_it_goes_on_while_the_store_fails() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x", execute_at=after(0))
            bench.faults.next("claim", Fail(), Fail(), Fail())
            running = asyncio.create_task(context.run_until_idle())
            while not running.done():
                await bench.advance(1)
        assert len(bench.runs) == 1

    run(main())


def test_run_may_follow_but_not_overlap() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=1)(bench.note)
        async with bench.app.create() as context:
            await context.run_until_idle()
            running = asyncio.create_task(context.run())
            await bench.advance(2)
            with pytest.raises(PyncetteException, match="under way"):
                await context.run_until_idle()
            context.shutdown()
            await running
            await context.run_until_idle()  # after a shutdown it runs nothing
            await bench.advance(5)
            await context.run_until_idle()
        assert bench.times == [1, 2]

    run(main())


def test_all_that_was_missed_runs_without_pauses() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="minutely", interval=60)(bench.note)
        async with bench.app.create() as context:
            await context.run_until_idle()
            await bench.advance(600)
            await context.run_until_idle()
            assert bench.planned == [60.0 * minute for minute in range(1, 11)]

    run(main())
