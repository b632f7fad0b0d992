"""The clocks that run by themselves: the contract, the machine's clock, and physical waits."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest

from pyncette import clock as clock_module
from pyncette.clock import (
    Clock,
    StoreClock,
    SystemClock,
    corrected,
    from_microseconds,
    realtime,
    to_microseconds,
)
from pyncette.testing import VirtualClock


class UserClock(Clock):
    """What a user writes: the three methods, nothing else."""

    def now(self) -> datetime:
        return datetime(2026, 3, 4, 5, 6, 7, 891_011, tzinfo=timezone(timedelta(hours=2)))

    def monotonic(self) -> float:
        return 12.5

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


def test_a_clock_of_three_methods_tells_microseconds_and_can_be_held() -> None:
    clock = UserClock()
    with clock.hold(), clock.hold():
        assert clock.microseconds() == 1_772_593_567_891_011


def test_a_clock_without_one_of_the_three_methods_cannot_be_made() -> None:
    class Half(UserClock):
        sleep = Clock.sleep

    with pytest.raises(TypeError, match="sleep"):
        Half()


@pytest.mark.parametrize(
    "instant",
    [
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        # float seconds would lose the last digit of this one
        datetime(5138, 11, 16, 9, 46, 39, 999_999, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    ],
)
def test_instants_survive_the_way_to_microseconds_and_back(instant: datetime) -> None:
    assert from_microseconds(to_microseconds(instant)) == instant


def test_microseconds_count_from_1970_in_utc_whatever_the_zone() -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    assert to_microseconds(datetime(1970, 1, 1, 5, 30, 1, 2, tzinfo=east)) == 1_000_002
    assert from_microseconds(1_000_002).tzinfo is UTC


def test_a_naive_datetime_names_no_instant() -> None:
    with pytest.raises(ValueError, match="is naive"):
        to_microseconds(datetime(2026, 1, 1))  # noqa: DTZ001


def test_the_system_clock_tells_the_time_of_the_machine_in_utc() -> None:
    clock = SystemClock()
    before = time.time_ns() // 1_000
    told = [clock.microseconds(), to_microseconds(clock.now())]
    after = time.time_ns() // 1_000
    assert all(before <= instant <= after for instant in told)
    assert clock.now().tzinfo is UTC


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="only Linux has CLOCK_BOOTTIME")
def test_monotonic_time_counts_while_the_machine_is_suspended() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= SystemClock().monotonic() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_machine_without_a_clock_of_boot_time_uses_the_monotonic_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    assert clock_module._monotonic_source() is time.monotonic


def test_realtime_reads_the_same_in_every_process_of_the_machine() -> None:
    before = realtime.monotonic()
    program = "from pyncette.clock import realtime; print(repr(realtime.monotonic()))"
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert before <= float(child.stdout) <= realtime.monotonic()


@pytest.mark.parametrize("sleep", [SystemClock().sleep, realtime.sleep])
@pytest.mark.parametrize("seconds", [0, -1, -1e9])
def test_sleeping_for_nothing_lets_other_tasks_run(
    sleep: Callable[[float], Awaitable[None]], seconds: float
) -> None:
    async def main() -> list[str]:
        seen: list[str] = []
        asyncio.get_running_loop().call_soon(seen.append, "another")
        await sleep(seconds)
        return [*seen, "we"]

    assert asyncio.run(main()) == ["another", "we"]


def test_a_sleep_lasts_at_least_as_long_as_asked() -> None:
    async def main() -> float:
        clock = SystemClock()
        before = clock.monotonic()
        await clock.sleep(0.002)
        await realtime.sleep(0.002)
        return clock.monotonic() - before

    assert asyncio.run(main()) >= 0.004 - 1e-6


class Suspended(SystemClock):
    """A machine that is suspended for an hour just after a sleep has begun."""

    _longest_sleep_s = 0.001

    def __init__(self) -> None:
        self.readings = 0

    def monotonic(self) -> float:
        self.readings += 1
        return 0.0 if self.readings == 1 else 3_600.0


def test_a_sleep_that_ended_while_the_machine_was_suspended_ends_soon_after_the_resume() -> None:
    async def main() -> int:
        clock = Suspended()
        async with realtime.timeout(10):
            await clock.sleep(3_600)
        return clock.readings

    assert asyncio.run(main()) == 2


def test_a_physical_deadline_cancels_what_takes_longer() -> None:
    async def main() -> None:
        async with realtime.timeout(0.001):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(main())


def test_a_physical_deadline_of_none_never_comes() -> None:
    async def main() -> float | None:
        async with realtime.timeout(None) as deadline:
            return deadline.when()

    assert asyncio.run(main()) is None


def test_only_the_clock_of_the_machine_is_corrected_by_the_stores() -> None:
    assert isinstance(corrected(SystemClock()), StoreClock)
    for clock in (UserClock(), VirtualClock()):
        assert corrected(clock) is clock


def test_what_is_corrected_already_stays_as_it_is() -> None:
    clock = corrected(SystemClock())
    assert corrected(clock) is clock
