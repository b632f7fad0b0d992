"""What holds for every schedule, however it is combined."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pyncette.schedule import (
    At,
    Calendar,
    Calendars,
    Cron,
    Every,
    Rule,
    Schedule,
    UnreadableHere,
    dumps,
    instant_of,
    loads,
)

pytestmark = pytest.mark.exhaustive

MANY = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = 60_000_000

CALENDARS = Calendars()


def weekend(day: date) -> bool:
    return day.weekday() >= 5


def first_of_month(day: date) -> bool:
    return day.day == 1


CALENDARS.declare("weekend", weekend)
CALENDARS.declare("first", first_of_month)

instants = st.integers(-400_000, 900_000).map(lambda n: BEGIN + timedelta(minutes=n))
zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "UTC+5:30"])
intervals = st.integers(1, 5_000).map(lambda n: timedelta(minutes=n))
anchored = st.builds(Every, intervals, anchor=instants, at_once=st.booleans())
crons = st.builds(
    Cron,
    st.sampled_from(
        ["0 9 * * *", "*/7 * * * *", "30 2 * * *", "0 0 1 * *", "15 8-17 * * MON-FRI", "0 0 29 2 *"]
    ),
    zones,
)
rules = st.builds(
    lambda rule, start, zone: Rule(rule, start=start, timezone=zone),
    st.sampled_from(
        [
            "FREQ=DAILY;INTERVAL=3",
            "FREQ=MONTHLY;BYDAY=MO;BYSETPOS=1",
            "FREQ=WEEKLY;BYDAY=TU,SA;COUNT=40",
            "FREQ=HOURLY;INTERVAL=5;BYMINUTE=0,20",
            "FREQ=YEARLY;BYMONTH=3,10;BYDAY=-1SU;BYHOUR=2;BYMINUTE=30",
            "FREQ=MINUTELY;INTERVAL=45;BYDAY=WE",
        ]
    ),
    instants,
    zones,
)
leaves = st.one_of(crons, rules, anchored, st.builds(At, instants))
calendars = st.builds(
    Calendar, st.sampled_from(["weekend", "first"]), st.sampled_from(["UTC", "Asia/Tokyo"])
)


@st.composite
def bounded(draw: st.DrawFn, schedules: st.SearchStrategy[Schedule]) -> Schedule:
    start, end = draw(st.none() | instants), draw(st.none() | instants)
    try:
        return draw(schedules).between(start, end)
    except ValueError:
        assume(False)
        raise


def combined(schedules: st.SearchStrategy[Schedule]) -> st.SearchStrategy[Schedule]:
    return st.one_of(
        st.builds(lambda a, b: a | b, schedules, schedules),
        st.builds(lambda a, b: a - b, schedules, calendars),
        bounded(schedules),
    )


fixed = st.recursive(leaves, combined, max_leaves=4)
floating = st.builds(Every, intervals, at_once=st.booleans())
everything = st.one_of(
    fixed,
    floating,
    st.builds(lambda a, b: a - b, floating, calendars),
    bounded(floating),
    st.builds(
        lambda a, minutes: a.with_jitter(timedelta(minutes=minutes)), fixed, st.integers(1, 900)
    ),
)


@contextmanager
def possible() -> Iterator[None]:
    """What a calendar excludes altogether is refused, and is no case."""
    try:
        yield
    except UnreadableHere as error:
        assume("would never run" not in str(error))
        raise


def following(schedule: Schedule, planned: int, number: int) -> list[int]:
    found: list[int] = []
    instant = schedule.following(planned)
    while instant is not None and len(found) < number:
        found.append(instant)
        instant = schedule.following(instant)
    return found


@MANY
@given(everything, instants)
def test_what_follows_lies_strictly_later(schedule: Schedule, after: datetime) -> None:
    schedule = CALENDARS.bind(schedule)
    before = after
    with possible():
        for _ in range(20):
            instant = schedule.next_after(before)
            if instant is None:
                break
            assert instant > before
            before = instant
        first = schedule.first(instant_of(after))
        if first is not None:
            found = [first, *following(schedule, first, 20)]
            assert found == sorted(set(found))


@MANY
@given(everything, instants, st.integers(0, 60_000))
def test_skipping_gives_what_going_on_would_give(
    schedule: Schedule, created: datetime, minutes: int
) -> None:
    schedule = CALENDARS.bind(schedule)
    with possible():
        planned = schedule.first(instant_of(created))
        assume(planned is not None)
        assert planned is not None
        now = planned + minutes * MINUTE
        expected = schedule.following(planned)
        for _ in range(3_000):
            if expected is None or expected > now:
                break
            expected = schedule.following(expected)
        else:
            assume(False)
        assert schedule.skip(planned, now) == expected
        # Nothing was missed: as if it simply went on.
        assert schedule.skip(planned, planned - minutes * MINUTE) == schedule.following(planned)


@MANY
@given(everything)
def test_the_text_gives_the_same_schedule(schedule: Schedule) -> None:
    text = dumps(schedule)
    again = loads(text)
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert dumps(again) == text
    assert text.isascii()
    assert text.isprintable()
    for copied in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert copied == schedule
    start = instant_of(BEGIN)
    with possible():
        assert CALENDARS.bind(again).next(start) == CALENDARS.bind(schedule).next(start)


@MANY
@given(fixed, fixed)
def test_equal_schedules_have_equal_texts_and_different_ones_have_not(
    one: Schedule, other: Schedule
) -> None:
    assert (one == other) == (dumps(one) == dumps(other))
    assert one | other == other | one
    assert (one | other) | one == one | other


@MANY
@given(fixed, fixed, instants)
def test_a_union_has_the_sooner_of_both(one: Schedule, other: Schedule, after: datetime) -> None:
    with possible():
        found = CALENDARS.bind(one | other).next_after(after)
        both = [CALENDARS.bind(schedule).next_after(after) for schedule in (one, other)]
        assert found == min((instant for instant in both if instant is not None), default=None)


@MANY
@given(fixed, instants, st.integers(1, 900), st.text("abc", max_size=5))
def test_a_wait_is_never_negative_and_never_reaches_the_following_occurrence(
    schedule: Schedule, created: datetime, minutes: int, key: str
) -> None:
    schedule = CALENDARS.bind(schedule.with_jitter(timedelta(minutes=minutes)))
    with possible():
        planned = schedule.first(instant_of(created))
        assume(planned is not None)
        assert planned is not None
        upcoming = schedule.following(planned)
    due = schedule.due(planned, "group", key)
    assert 0 <= due - planned < minutes * MINUTE
    assert upcoming is None or due < upcoming
    assert loads(dumps(schedule)).due(planned, "group", key) == due


@pytest.mark.parametrize("schedule", [Every(timedelta(seconds=1)), Cron("* * * * * *")], ids=repr)
def test_a_year_is_skipped_as_fast_as_a_second(schedule: Schedule) -> None:
    now = instant_of(BEGIN) + 365 * 24 * 60 * MINUTE
    assert schedule.skip(instant_of(BEGIN), now) == now + 1_000_000
