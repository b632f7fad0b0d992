"""`StoreClock`: now as the store's clock tells it, whatever the clock of this machine does."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyncette.clock import Clock, StoreClock, from_microseconds, to_microseconds
from pyncette.testing import VirtualClock

MILLISECOND = 1_000
SECOND = 1_000_000
MINUTE = 60 * SECOND
LEASE = 60 * SECOND


class Machine(Clock):
    """A machine whose wall clock can be wrong and stepped, and whose time we move by hand."""

    def __init__(self) -> None:
        self.wall_error = 0
        self.elapsed = 0
        self.held = 0
        self.slept: list[float] = []

    @property
    def true(self) -> int:
        """The true instant, in microseconds; what the stores of these tests go by."""
        return 1_800_000_000 * SECOND + self.elapsed

    def now(self) -> datetime:
        return from_microseconds(self.true + self.wall_error)

    def monotonic(self) -> float:
        return 1_000.0 + self.elapsed / SECOND

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.elapsed += max(round(seconds * SECOND), 0)

    def hold(self) -> AbstractContextManager[None]:
        self.held += 1
        return nullcontext()

    def measure(
        self,
        view: StoreClock,
        there: int = 1_000,
        back: int = 0,
        ahead: int = 0,
        resolution: int = 1,
    ) -> bool:
        """Ask a store whose clock is `ahead` of true time; the call takes `there` + `back`."""
        sent = self.monotonic()
        self.elapsed += there
        answer = (self.true + ahead) // resolution * resolution
        self.elapsed += back
        return view.observe(sent, self.monotonic(), answer, resolution)

    def error(self, view: StoreClock) -> int:
        return view.microseconds() - self.true


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def view(machine: Machine) -> StoreClock:
    return StoreClock(machine)


def test_without_a_measurement_now_is_the_wall_clock_also_after_a_step(
    machine: Machine, view: StoreClock
) -> None:
    machine.wall_error = -7 * SECOND
    assert machine.error(view) == -7 * SECOND
    machine.wall_error = MINUTE
    assert machine.error(view) == MINUTE
    assert view.now() == machine.now()


def test_the_first_measurement_holds_at_once_whatever_the_wall_clock_said(
    machine: Machine, view: StoreClock
) -> None:
    machine.wall_error = 5 * MINUTE
    assert machine.measure(view)
    assert machine.error(view) == 0
    assert to_microseconds(view.now()) == machine.true


def test_a_step_of_the_wall_clock_between_measurements_matters_nowhere(
    machine: Machine, view: StoreClock
) -> None:
    machine.measure(view)
    for step in (-5 * MINUTE, 5 * MINUTE, 3_600 * SECOND):
        machine.wall_error = step
        machine.elapsed += SECOND
        assert machine.error(view) == 0


@pytest.mark.parametrize(("there", "back"), [(9, 1), (1, 9), (1_500, 0), (0, 1_500)])
def test_now_is_never_ahead_of_the_store_and_says_by_how_much_it_may_be_behind(
    machine: Machine, view: StoreClock, there: int, back: int
) -> None:
    machine.measure(view, there=there * MILLISECOND, back=back * MILLISECOND)
    assert machine.error(view) == -back * MILLISECOND
    assert back * MILLISECOND <= view.uncertainty() <= (there + back) * MILLISECOND + 1


def test_a_slow_call_does_not_spoil_what_a_quick_one_has_told(
    machine: Machine, view: StoreClock
) -> None:
    machine.measure(view)
    machine.measure(view, there=4 * SECOND, back=0)
    machine.elapsed += MINUTE
    assert abs(machine.error(view)) <= 2_500


def test_a_quick_call_mends_at_once_what_a_slow_one_has_told(
    machine: Machine, view: StoreClock
) -> None:
    machine.measure(view, there=0, back=1_500 * MILLISECOND)
    assert machine.error(view) == -1_500 * MILLISECOND
    assert view.is_vague()
    machine.measure(view)
    assert machine.error(view) == 0
    assert not view.is_vague()


def test_without_a_measurement_nothing_is_uncertain(view: StoreClock) -> None:
    assert view.uncertainty() == 0
    assert not view.is_vague()
    assert not view.is_measured
    assert not view.moves_by_hand()


def test_answers_in_whole_seconds_are_narrowed_down_by_each_other(
    machine: Machine, view: StoreClock
) -> None:
    for _ in range(40):
        machine.elapsed += 1_037 * MILLISECOND
        assert machine.measure(view, resolution=SECOND)
    machine.elapsed += 10 * SECOND
    assert abs(machine.error(view)) < 60 * MILLISECOND


@pytest.mark.parametrize("parts_per_million", [400, -400])
def test_a_clock_of_the_store_that_drifts_is_followed(
    machine: Machine, view: StoreClock, parts_per_million: int
) -> None:
    ahead = 0
    for _ in range(360):
        assert machine.measure(view, ahead=ahead)
        machine.elapsed += 10 * SECOND
        ahead += 10 * parts_per_million
    assert abs(machine.error(view) - ahead) < 10 * MILLISECOND


def test_a_single_answer_that_contradicts_is_set_aside(machine: Machine, view: StoreClock) -> None:
    machine.measure(view)
    assert not machine.measure(view, ahead=5 * MINUTE)
    assert machine.measure(view)
    assert not machine.measure(view, ahead=5 * MINUTE)
    machine.elapsed += LEASE
    assert machine.error(view) == 0


def test_answers_that_contradict_in_different_directions_are_set_aside(
    machine: Machine, view: StoreClock
) -> None:
    machine.measure(view)
    for _ in range(3):
        assert not machine.measure(view, ahead=5 * MINUTE)
        assert not machine.measure(view, ahead=-5 * MINUTE)
    machine.elapsed += LEASE
    assert machine.error(view) == 0


@pytest.mark.parametrize("moved", [5 * MINUTE, -5 * MINUTE, 2 * SECOND, -2 * SECOND])
def test_a_store_whose_clock_is_moved_is_followed_at_once_when_a_second_answer_confirms_it(
    machine: Machine, view: StoreClock, moved: int
) -> None:
    machine.measure(view)
    assert not machine.measure(view, ahead=moved)
    assert machine.error(view) == 0
    assert machine.measure(view, ahead=moved)
    assert machine.error(view) == moved
    machine.elapsed += LEASE
    assert machine.error(view) == moved


@pytest.mark.parametrize("error", [900 * MILLISECOND, -900 * MILLISECOND])
def test_a_correction_of_less_than_a_second_runs_at_a_tenth_of_real_speed(
    machine: Machine, view: StoreClock, error: int
) -> None:
    machine.measure(view)
    machine.measure(view, ahead=error)
    machine.measure(view, ahead=error)
    machine.elapsed += SECOND
    assert machine.error(view) == pytest.approx(error // 9, abs=1)
    machine.elapsed += 8 * SECOND
    assert machine.error(view) == error


def test_a_correction_that_replaces_one_under_way_begins_where_the_clock_stands(
    machine: Machine, view: StoreClock
) -> None:
    machine.measure(view, there=0)
    for _ in range(2):
        machine.measure(view, there=0, ahead=-SECOND)
    machine.elapsed += 5 * SECOND
    assert machine.error(view) == -SECOND // 2
    for _ in range(2):
        machine.measure(view, there=0)
    assert machine.error(view) == -SECOND // 2
    machine.elapsed += 5 * SECOND
    assert machine.error(view) == 0


def test_a_measurement_asks_the_store_once_when_its_answer_agrees(
    machine: Machine, view: StoreClock
) -> None:
    asked = []

    async def ask() -> int:
        asked.append(machine.monotonic())
        machine.elapsed += MILLISECOND
        return machine.true - MILLISECOND // 2

    machine.measure(view)
    assert asyncio.run(view.measure(ask))
    assert len(asked) == 1
    assert machine.error(view) == 0


def test_the_time_that_connecting_takes_is_not_part_of_the_first_measurement(
    machine: Machine, view: StoreClock
) -> None:
    asked: list[int] = []

    async def ask() -> int:
        machine.elapsed += MILLISECOND if asked else 400 * MILLISECOND
        asked.append(machine.true)
        machine.elapsed += MILLISECOND
        return asked[-1]

    assert asyncio.run(view.measure(ask))
    assert abs(machine.error(view)) <= MILLISECOND


def test_a_measurement_that_contradicts_is_repeated_at_once(
    machine: Machine, view: StoreClock
) -> None:
    asked = []

    async def ask() -> int:
        asked.append(machine.monotonic())
        return machine.true + 5 * MINUTE

    machine.measure(view)
    assert asyncio.run(view.measure(ask))
    assert len(asked) == 2
    machine.elapsed += LEASE
    assert machine.error(view) == 5 * MINUTE


def test_answers_that_contradict_each_other_are_not_asked_for_without_end(
    machine: Machine, view: StoreClock
) -> None:
    answers = iter([5 * MINUTE, -5 * MINUTE, 5 * MINUTE])

    async def ask() -> int:
        return machine.true + next(answers)

    machine.measure(view)
    assert asyncio.run(view.measure(ask))
    machine.elapsed += LEASE
    assert machine.error(view) == 0


def test_a_store_without_a_clock_leaves_the_wall_clock_as_it_is(
    machine: Machine, view: StoreClock
) -> None:
    async def ask() -> None:
        return None

    machine.wall_error = MINUTE
    assert not asyncio.run(view.measure(ask))
    assert machine.error(view) == MINUTE


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 20 * SECOND),
            st.integers(0, 200 * MILLISECOND),
            st.integers(0, 200 * MILLISECOND),
            st.sampled_from([0, 0, 0, 200 * MILLISECOND, -200 * MILLISECOND]),
        ),
        max_size=30,
    )
)
def test_a_small_correction_never_sets_now_back(
    steps: list[tuple[int, int, int, int]],
) -> None:
    machine = Machine()
    view = StoreClock(machine)
    machine.measure(view)
    last = view.microseconds()
    for idle, there, back, ahead in steps:
        machine.elapsed += idle
        assert view.microseconds() >= last
        last = view.microseconds()
        machine.measure(view, there, back, ahead)
        assert view.microseconds() >= last
        last = view.microseconds()


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 60 * SECOND), st.integers(0, 3 * SECOND), st.integers(0, 3 * SECOND)
        ),
        min_size=1,
    )
)
def test_the_true_instant_is_never_before_now_nor_beyond_the_uncertainty(
    calls: list[tuple[int, int, int]],
) -> None:
    machine = Machine()
    view = StoreClock(machine)
    for idle, there, back in calls:
        machine.elapsed += idle
        assert machine.measure(view, there, back)
        assert 0 <= -machine.error(view) <= view.uncertainty() + 1
    machine.elapsed += 10 * LEASE
    assert 0 <= -machine.error(view) <= view.uncertainty() + 1


def test_a_sleep_lasts_until_now_has_moved_on_by_so_much(
    machine: Machine, view: StoreClock
) -> None:
    machine.measure(view)
    before = view.microseconds()
    asyncio.run(view.sleep(12.345678))
    assert view.microseconds() - before == 12_345_678
    assert machine.slept == [12.345678]


@pytest.mark.parametrize("ahead", [700 * MILLISECOND, -700 * MILLISECOND])
@pytest.mark.parametrize("seconds", [0.5, 3.0, 90.0, 1_000.0])
def test_a_sleep_takes_a_correction_under_way_into_account(
    machine: Machine, view: StoreClock, ahead: int, seconds: float
) -> None:
    for offset in (0, ahead, ahead):
        machine.measure(view, ahead=offset)
    before = view.microseconds()
    asyncio.run(view.sleep(seconds))
    assert 0 <= view.microseconds() - before - seconds * SECOND <= 10
    assert len(machine.slept) <= 2


@pytest.mark.parametrize("moved", [5 * MINUTE, -5 * MINUTE])
def test_a_sleep_takes_as_long_if_the_clock_of_the_store_is_moved_meanwhile(moved: int) -> None:
    class Moving(Machine):
        async def sleep(self, seconds: float) -> None:
            self.measure(clock, ahead=moved)
            self.measure(clock, ahead=moved)
            await super().sleep(seconds)

    machine = Moving()
    clock = StoreClock(machine)
    machine.measure(clock)
    before = machine.elapsed
    asyncio.run(clock.sleep(30))
    assert 30 * SECOND <= machine.elapsed - before <= 30 * SECOND + 10 * MILLISECOND


def test_a_sleep_that_wakes_too_early_goes_on(machine: Machine, view: StoreClock) -> None:
    class Hasty(Machine):
        async def sleep(self, seconds: float) -> None:
            await super().sleep(min(seconds, 0.3))

    hasty = Hasty()
    view = StoreClock(hasty)
    hasty.measure(view)
    before = view.microseconds()
    asyncio.run(view.sleep(1))
    assert view.microseconds() - before >= SECOND


@pytest.mark.parametrize("seconds", [0, -3])
def test_a_sleep_of_nothing_is_passed_on(
    machine: Machine, view: StoreClock, seconds: float
) -> None:
    machine.measure(view)
    asyncio.run(view.sleep(seconds))
    assert machine.slept == [seconds]


def test_a_sleep_before_the_first_measurement_is_passed_on(
    machine: Machine, view: StoreClock
) -> None:
    asyncio.run(view.sleep(5))
    assert machine.slept == [5]


def test_monotonic_time_and_holds_are_those_of_the_machine(
    machine: Machine, view: StoreClock
) -> None:
    assert view.monotonic() == machine.monotonic()
    with view.hold():
        assert machine.held == 1


def test_a_sleep_of_the_view_over_a_virtual_clock_ends_at_its_very_instant() -> None:
    async def main() -> list[int]:
        clock = VirtualClock()
        view = StoreClock(clock)
        view.observe(0.0, 0.0, clock.microseconds() + 5 * MINUTE)
        woken = []

        async def sleeper() -> None:
            await view.sleep(0.3)
            woken.append(clock.microseconds())

        task = asyncio.create_task(sleeper())
        start = clock.microseconds()
        await clock.advance(timedelta(seconds=1))
        await task
        return [instant - start for instant in woken]

    assert asyncio.run(main()) == [300_000]


@pytest.mark.parametrize(
    ("sent", "received", "resolution"), [(2.0, 1.0, 1), (1.0, 2.0, 0), (1.0, 2.0, -1)]
)
def test_a_measurement_that_cannot_be_one_is_refused(
    view: StoreClock, sent: float, received: float, resolution: int
) -> None:
    with pytest.raises(ValueError, match="no measurement"):
        view.observe(sent, received, 0, resolution)
