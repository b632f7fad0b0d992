"""A task that is behind its schedule: said once, and ever less often."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import Bench, micros, run, seconds

from pyncette import Context
from pyncette.engine.occurrences import overdue_count
from pyncette.events import Behind
from pyncette.schedule import Cron, Every

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
