"""`ScaledClock`: compressed time on which real processes agree."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from pyncette.clock import realtime, to_microseconds
from pyncette.testing import ScaledClock

EPOCH = datetime(2026, 3, 28, 23, 0, tzinfo=UTC)
START = to_microseconds(EPOCH)


def test_it_reads_the_epoch_at_its_origin_and_runs_by_its_speed_from_there() -> None:
    clock = ScaledClock(1e-9, EPOCH, origin=realtime.monotonic() - 3e9)
    assert clock.now() == datetime(2026, 3, 28, 23, 0, 3, tzinfo=UTC)
    assert clock.microseconds() == START + 3_000_000
    assert clock.monotonic() == pytest.approx(3.0)


def test_it_starts_at_the_epoch_when_no_origin_is_given() -> None:
    before = realtime.monotonic()
    clock = ScaledClock(10_000, EPOCH)
    assert before <= clock.origin <= realtime.monotonic()
    assert clock.microseconds() >= START


def test_it_is_as_fast_as_asked() -> None:
    clock = ScaledClock(10_080, EPOCH)
    before = realtime.monotonic()
    told = clock.microseconds()
    after = realtime.monotonic()
    speed = 10_080 * 1_000_000
    assert (before - clock.origin) * speed - 1 <= told - START
    assert told - START <= (after - clock.origin) * speed + 1


def test_another_process_with_the_same_arguments_agrees() -> None:
    clock = ScaledClock(10_080, EPOCH)
    program = (
        "import sys; from datetime import datetime; from pyncette.testing import ScaledClock;"
        "speed, epoch, origin = sys.argv[1:];"
        "clock = ScaledClock(float(speed), datetime.fromisoformat(epoch), float(origin));"
        "print(clock.microseconds())"
    )
    arguments = [repr(clock.speed), clock.epoch.isoformat(), repr(clock.origin)]
    before = clock.microseconds()
    child = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    assert before <= int(child.stdout) <= clock.microseconds()


def test_a_pickled_clock_takes_its_origin_along() -> None:
    clock = ScaledClock(3_600, EPOCH)
    copy = pickle.loads(pickle.dumps(clock))
    before = clock.microseconds()
    assert before <= copy.microseconds() <= clock.microseconds()


def test_a_sleep_lasts_at_least_as_long_as_asked_in_scaled_time() -> None:
    async def main() -> float:
        clock = ScaledClock(10_000, EPOCH)
        before = clock.monotonic()
        await clock.sleep(20)
        return clock.monotonic() - before

    assert asyncio.run(main()) >= 20


def test_a_sleep_whose_timer_fires_early_goes_on() -> None:
    class Early(ScaledClock):
        readings = iter([100.0, 104.9, 105.0])

        def monotonic(self) -> float:
            return next(self.readings)

    asyncio.run(Early(10_000, EPOCH).sleep(5))
    assert list(Early.readings) == []


@pytest.mark.parametrize("seconds", [0, -5])
def test_sleeping_for_nothing_lets_other_tasks_run(seconds: float) -> None:
    async def main() -> list[str]:
        seen: list[str] = []
        asyncio.get_running_loop().call_soon(seen.append, "another")
        await ScaledClock(2, EPOCH).sleep(seconds)
        return seen

    assert asyncio.run(main()) == ["another"]


@pytest.mark.parametrize("speed", [0, -1, float("nan"), float("inf")])
def test_a_speed_that_is_none_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="speed must be a positive number"):
        ScaledClock(speed, EPOCH)


def test_a_naive_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="is naive"):
        ScaledClock(1, datetime(2026, 1, 1))  # noqa: DTZ001
