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
    """A call to the server, whose clock may have been moved."""
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


def test_a_machine_whose_clock_is_right_knows_the_time_at_once() -> None:
    machine = Machine(3_000)
    clock = DateClock(machine)
    ask(clock, machine)
    assert error(clock, machine) == 3_000


@pytest.mark.parametrize("off", [-300 * SECOND, -400_000, 400_000, 300 * SECOND])
def test_the_first_answer_bounds_the_error_to_a_second(off: int) -> None:
    machine = Machine(off)
    clock = DateClock(machine)
    ask(clock, machine)
    assert abs(error(clock, machine)) <= min(abs(off), SECOND)


@pytest.mark.parametrize("off", [-300 * SECOND, -400_000, 400_000, 300 * SECOND])
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
        assert abs(error(clock, machine)) <= WIDTH_GOOD


def test_answers_to_ordinary_calls_tell_it_too() -> None:
    machine, random = Machine(-400_000), Random(1)
    clock = DateClock(machine)
    for _ in range(300):
        ask(clock, machine)
        machine.passes(random.random())
    assert abs(error(clock, machine)) <= WIDTH_GOOD


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


def test_one_odd_answer_is_set_aside() -> None:
    machine = Machine(0)
    clock = DateClock(machine)
    ask(clock, machine)
    ask(clock, machine, ahead=300 * SECOND)
    assert error(clock, machine) == 0
    ask(clock, machine)
    ask(clock, machine, ahead=300 * SECOND)
    assert error(clock, machine) == 0


@pytest.mark.parametrize("ahead", [-300 * SECOND, 300 * SECOND])
def test_a_second_answer_like_an_odd_one_says_that_the_clock_was_moved(ahead: int) -> None:
    machine = Machine(0)
    clock = DateClock(machine)
    ask(clock, machine)
    ask(clock, machine, ahead=ahead)
    ask(clock, machine, ahead=ahead)
    assert abs(error(clock, machine, ahead)) <= SECOND
