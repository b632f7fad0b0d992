"""A task that is behind its schedule: said once, and ever less often."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import Bench, micros, run, seconds

from pyncette import Context, PerWorker, Pyncette
from pyncette.engine.occurrences import overdue_count
from pyncette.events import Behind, Waiting
from pyncette.memory import MemoryRepository
from pyncette.schedule import Cron, Every
from pyncette.testing import VirtualClock

MINUTE = 60_000_000


def test_a_task_that_was_off_for_a_day_is_said_to_be_behind_and_to_have_caught_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[tuple[str, int, float]] = []

    async def main() -> None:
        bench = Bench(poll_interval=seconds(300))
        bench.app.on_event(
            lambda event: told.append((event.task, event.count, event.age.total_seconds())), Behind
        )

        @bench.app.task(interval=seconds(3_600))
        async def hourly(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(40)

        async with bench.running():
            await bench.advance(3_660)
        hourly.enabled = False
        async with bench.running():
            await bench.advance(86_340)
            hourly.enabled = True
            await bench.advance(3_000)
            assert len(bench.runs) == 25

    with caplog.at_level(logging.INFO):
        run(main())
    warnings = [line for line in caplog.messages if "behind its schedule" in line]
    assert 2 <= len(warnings) <= 5  # a minute apart, then two, four …
    assert "about 24 occurrences" in warnings[0]
    assert "fast_forward" in warnings[0]
    assert [line for line in caplog.messages if "has caught up" in line] == [
        "hourly has caught up with its schedule"
    ]
    assert told[0][:2] == ("hourly", 24)
    assert told[-1] == ("hourly", 0, 0.0)
    assert [count for _, count, _ in told] == sorted((count for _, count, _ in told), reverse=True)


def test_what_waits_for_its_jitter_is_no_backlog(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench = Bench()
        plan = Every(seconds(3_600)).with_jitter(seconds(3_600))
        job = bench.app.dynamic_task(name="job", schedule=plan)(bench.note)
        # Of a thousand, the one that waits for longest.
        due, name = max(
            (plan.due(micros(0), job.group, str(number)), str(number)) for number in range(1_000)
        )
        assert due > micros(3_580)
        await bench.plant(job, name, schedule=plan, due=(due - micros(0)) / 1_000_000)
        await bench.advance(3_600 + 30)
        async with bench.running():
            await bench.advance(1)
        assert bench.planned == [0]

    run(main())
    assert caplog.messages == []


@pytest.mark.parametrize("fast_forward", [False, True])
def test_a_one_off_and_what_collapses_are_no_backlog(
    fast_forward: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", fast_forward=fast_forward)(bench.note)
        await bench.plant(job, "x", planned=-86_400)
        if fast_forward:
            await bench.plant(job, "y", planned=-86_400, schedule=Every(timedelta(minutes=1)))
        async with bench.running():
            await bench.advance(1)

    run(main())
    assert not [line for line in caplog.messages if "behind" in line]


@given(st.integers(1, 10**9), st.integers(0, 10**11))
def test_overdue_occurrences_of_an_interval_are_counted_by_arithmetic(
    interval: int, age: int
) -> None:
    schedule = Every(timedelta(microseconds=interval))
    assert overdue_count(schedule, 7, 7 + age) == age // interval + 1


@pytest.mark.parametrize(("minutes", "expected"), [(0, 1), (59, 60), (9_999, 10_000)])
def test_overdue_occurrences_of_cron_are_counted_and_beyond_a_thousand_estimated(
    minutes: int, expected: int
) -> None:
    count = overdue_count(Cron("* * * * *"), micros(0), micros(0) + minutes * MINUTE)
    assert abs(count - expected) <= expected // 500


class Queue:
    """One-off instances that take ten seconds each, in a worker that may run one at a time."""

    def __init__(self, clock: VirtualClock, repository: MemoryRepository) -> None:
        self.ages: dict[str, float] = {}
        self.app = Pyncette(repository, clock=clock)
        self.app.on_event(self.waits, Waiting)

        @self.app.dynamic_task(limit=PerWorker(1))
        async def job(context: Context) -> None:
            await clock.sleep(context.args["seconds"])

        @self.app.dynamic_task()
        async def other(context: Context) -> None: ...

        self.job = job

    def waits(self, event: Waiting) -> None:
        self.ages[event.task] = event.age.total_seconds()


def test_one_off_runs_that_wait_for_a_limit_are_told_with_the_age_of_the_oldest() -> None:
    async def main() -> None:
        clock = VirtualClock()
        queue = Queue(clock, MemoryRepository())
        async with queue.app.running() as context:
            for name in range(3):
                await context.schedule_task(
                    queue.job, str(name), execute_in=timedelta(seconds=1), seconds=60
                )
            await clock.advance(timedelta(seconds=31))
            assert queue.ages == {"job": 30.0, "other": 0.0}
            await clock.advance(timedelta(seconds=60))
            assert queue.ages == {"job": 90.0, "other": 0.0}
            await context.pause(queue.job)
            await clock.advance(timedelta(seconds=2))
            assert queue.ages == {"job": 0.0, "other": 0.0}
            await context.resume(queue.job)
            await clock.advance(timedelta(seconds=32))
            assert queue.ages == {"job": 0.0, "other": 0.0}
            await clock.advance(timedelta(seconds=60))

    asyncio.run(main())


def test_what_another_worker_has_run_meanwhile_waits_no_more() -> None:
    async def main() -> None:
        clock, repository = VirtualClock(), MemoryRepository()
        busy, quick = Queue(clock, repository), Queue(clock, repository)
        async with busy.app.running() as context:
            await context.schedule_task(
                busy.job, "long", execute_in=timedelta(seconds=1), seconds=50
            )
            await clock.advance(timedelta(seconds=2))
            await context.schedule_task(
                busy.job, "short", execute_in=timedelta(seconds=1), seconds=1
            )
            await clock.advance(timedelta(seconds=11))
            assert busy.ages["job"] == 10.0
            async with quick.app.running():
                await clock.advance(timedelta(seconds=3))
                assert busy.ages["job"] == 0.0
            await clock.advance(timedelta(seconds=60))

    asyncio.run(main())


def test_a_worker_that_has_ended_tells_no_more_that_runs_wait() -> None:
    async def main() -> None:
        clock = VirtualClock()
        queue = Queue(clock, MemoryRepository())
        async with queue.app.running() as context:
            for name in range(2):
                await context.schedule_task(
                    queue.job, str(name), execute_in=timedelta(seconds=1), seconds=20
                )
            await clock.advance(timedelta(seconds=11))
            assert queue.ages["job"] == 10.0
            context.shutdown()
            await clock.advance(timedelta(seconds=10))
            assert queue.ages["job"] == 0.0

    asyncio.run(main())
