"""What can be known of a clock that tells whole seconds only."""

from __future__ import annotations

from datetime import datetime
from random import Random

import pytest

from pyncette.clock import Clock, from_microseconds
from pyncette.dynamodb.clock import RESOLUTION, WIDTH_GOOD, DateClock

SECOND = 1_000_000
NOW = 1_764_000_000_123_457


class Machine(Clock):
    """A machine whose wall clock is off by so much from the server's, and two clocks that drift."""

    def __init__(self, off: int) -> None:
        self.off = off
        self.elapsed = 0

    def now(self) -> datetime:
        return from_microseconds(self.microseconds())

    def microseconds(self) -> int:
        return NOW + self.off + self.elapsed

    def monotonic(self) -> float:
        return 77.5 + self.elapsed / SECOND

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody sleeps here")

    def passes(self, seconds: float) -> None:
        self.elapsed += round(seconds * SECOND)


def ask(clock: DateClock, machine: Machine, takes: float = 0.004, ahead: int = 0) -> None:
    """A call to the server, whose clock may have been moved; it looks at it half way."""
    sent = clock.monotonic()
    machine.passes(takes / 2)
    told = NOW + machine.elapsed + ahead
    machine.passes(takes / 2)
    clock.observe(sent, clock.monotonic(), told - told % RESOLUTION)


def error(clock: DateClock, machine: Machine, ahead: int = 0) -> int:
    now = clock.now()
    assert now is not None
    return now - NOW - machine.elapsed - ahead


def test_nothing_is_known_before_the_first_answer() -> None:
    assert DateClock(Machine(0)).now() is None


OFFS = [-300 * SECOND, -400_000, 0, 400_000, 300 * SECOND]
"""By how much the clock of the machine may be wrong. It decides nothing."""


@pytest.mark.parametrize("off", OFFS)
def test_the_first_answer_bounds_the_error_to_a_second(off: int) -> None:
    for phase in range(0, 1_000, 37):
        machine = Machine(off)
        machine.passes(phase / 1_000)
        clock = DateClock(machine)
        ask(clock, machine)
        assert -SECOND - 4_001 <= error(clock, machine) <= 0


@pytest.mark.parametrize("off", OFFS)
@pytest.mark.parametrize("seed", range(5))
def test_no_instant_is_told_before_it_has_come(off: int, seed: int) -> None:
    """Half a second early, with the middle of the first answer and a clock five minutes off."""
    random = Random(seed)
    machine = Machine(off)
    machine.passes(random.random())
    clock = DateClock(machine)
    for _ in range(200):
        ask(clock, machine, takes=random.choice([0.002, 0.02, 0.5, 3.0]) * random.random())
        assert error(clock, machine) <= 0
        machine.passes(random.choice([0.0, 0.01, 1.0, 100.0]) * random.random())
        assert error(clock, machine) <= 0


def test_no_instant_is_told_early_where_the_clocks_drift_apart() -> None:
    """Ours is too fast by half a thousandth, the most that is reckoned with."""
    machine = Machine(0)
    clock = DateClock(machine)
    lag = 0
    for _ in range(8):
        ask(clock, machine)
        machine.passes(clock.next_telling())
    for _ in range(100):
        machine.passes(10.0)
        lag += 10 * 500
        assert error(clock, machine, ahead=-lag) <= 0
        ask(clock, machine, ahead=-lag)


@pytest.mark.parametrize("off", OFFS)
def test_a_few_well_placed_answers_tell_milliseconds(off: int) -> None:
    for phase in range(0, 1_000, 37):
        machine = Machine(off)
        machine.passes(phase / 1_000)
        clock = DateClock(machine)
        for _ in range(8):
            ask(clock, machine)
            wait = clock.next_telling()
            assert 0 <= wait <= 1
            machine.passes(wait)
        assert clock.width <= WIDTH_GOOD
        assert -WIDTH_GOOD <= error(clock, machine) <= 0


def test_answers_to_ordinary_calls_tell_it_too() -> None:
    machine, random = Machine(-400_000), Random(1)
    clock = DateClock(machine)
    for _ in range(300):
        ask(clock, machine)
        machine.passes(random.random())
    assert -2 * WIDTH_GOOD <= error(clock, machine) <= 0


def test_a_slow_answer_changes_nothing() -> None:
    machine = Machine(-400_000)
    clock = DateClock(machine)
    for _ in range(8):
        ask(clock, machine)
        machine.passes(clock.next_telling())
    ask(clock, machine, takes=7.0)
    assert abs(error(clock, machine)) <= WIDTH_GOOD + 7_000


def test_knowledge_ages() -> None:
    machine = Machine(0)
    clock = DateClock(machine)
    ask(clock, machine)
    before = clock.width
    machine.passes(100)
    assert clock.width == before + 100_000


def test_machines_of_one_service_a_few_milliseconds_apart_do_not_contradict() -> None:
    machine, random = Machine(300 * SECOND), Random(2)
    clock = DateClock(machine)
    for _ in range(500):
        ask(clock, machine, ahead=random.randint(-4_000, 4_000))
        machine.passes(clock.next_telling())
    assert abs(error(clock, machine)) <= WIDTH_GOOD


def test_one_odd_answer_is_ignored() -> None:
    machine = Machine(0)
    clock = DateClock(machine)
    ask(clock, machine)
    before = error(clock, machine)
    ask(clock, machine, ahead=300 * SECOND)
    assert before - 10 <= error(clock, machine) <= 0
    ask(clock, machine)
    ask(clock, machine, ahead=300 * SECOND)
    assert -SECOND - 4_010 <= error(clock, machine) <= 0


@pytest.mark.parametrize("ahead", [-300 * SECOND, 300 * SECOND])
def test_a_second_answer_like_an_odd_one_says_that_the_clock_was_moved(ahead: int) -> None:
    machine = Machine(0)
    clock = DateClock(machine)
    ask(clock, machine)
    ask(clock, machine, ahead=ahead)
    ask(clock, machine, ahead=ahead)
    assert -SECOND - 4_001 <= error(clock, machine, ahead) <= 0
