"""Cron against a brute-force oracle that shares no code and no method with it.

The oracle steps through time, minute by minute or second by second, asks `zoneinfo` what the
clock on the wall shows, and decides for that one reading. What an expression means it does not
parse: expressions are generated together with the sets of values that they stand for.

`PYNCETTE_TEST_CRON_CASES` multiplies the number of cases (1 takes a few seconds).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from functools import partial
from zoneinfo import ZoneInfo

import pytest

from pyncette.schedule import Cron, instant_of

pytestmark = pytest.mark.exhaustive

CASES = int(os.environ.get("PYNCETTE_TEST_CRON_CASES", "1"))

MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
WEEKDAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]

Day = Callable[[date], bool]


# Expressions, each with its meaning


def spelled(number: int, names: list[str], first: int, rng: random.Random) -> str:
    if names and rng.random() < 0.4:
        name = names[number - first]
        return rng.choice([name, name.lower(), name.capitalize()])
    return rng.choice([str(number), str(number), f"{number:02}"])


def item(
    low: int, high: int, rng: random.Random, names: list[str], wraps: bool
) -> tuple[str, set[int]]:
    def spell(number: int) -> str:
        return spelled(number, names, low, rng)

    cycle = list(range(low, high + 1))
    first = rng.choice(cycle)
    match rng.randrange(7):
        case 0:
            return "*", set(cycle)
        case 1:
            step = rng.randint(1, max(2, len(cycle) // 2))
            return f"*/{step}", set(cycle[::step])
        case 2:
            step = rng.randint(1, max(2, len(cycle) // 2))
            return f"{spell(first)}/{step}", set(cycle[cycle.index(first) :: step])
        case 3 | 4:
            last = rng.choice(cycle)
            if last < first and not wraps:
                first, last = last, first
            turned = cycle[first - low :] + cycle[: first - low]
            chosen = turned[: turned.index(last) + 1]
            if rng.random() < 0.5:
                return f"{spell(first)}-{spell(last)}", set(chosen)
            step = rng.randint(1, 4)
            return f"{spell(first)}-{spell(last)}/{step}", set(chosen[::step])
        case _:
            return spell(first), {first}


def field(
    low: int, high: int, rng: random.Random, names: list[str] | None = None, wraps: bool = True
) -> tuple[str, set[int]]:
    if rng.random() < 0.25:
        return "*", set(range(low, high + 1))
    texts, values = [], set[int]()
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        text, chosen = item(low, high, rng, names or [], wraps)
        texts.append(text)
        values |= chosen
    return ",".join(texts), values


def length_of_month(day: date) -> int:
    return (date(day.year + day.month // 12, day.month % 12 + 1, 1) - timedelta(days=1)).day


def nearest_weekday(day: date, target: int) -> bool:
    length = length_of_month(day)
    if target > length:
        return False
    candidates = [n for n in range(1, length + 1) if day.replace(day=n).weekday() < 5]
    return day.day == min(candidates, key=lambda n: abs(n - target))


def days_of_month(rng: random.Random) -> tuple[str, Day]:
    match rng.randrange(10):
        case 0:
            return "L", lambda day: day.day == length_of_month(day)
        case 1:
            target = rng.randint(1, 31)
            return f"{target}W", lambda day: nearest_weekday(day, target)
        case 2:
            return "LW", lambda day: nearest_weekday(day, length_of_month(day))
        case 3:
            target, text_and_values = rng.randint(1, 28), field(1, 31, rng)
            text, values = text_and_values
            return (
                f"{text},{target}w,l",
                lambda day: (
                    day.day in values
                    or nearest_weekday(day, target)
                    or day.day == length_of_month(day)
                ),
            )
        case _:
            text, values = field(1, 31, rng)
            return text, lambda day: day.day in values


def cron_weekday(day: date) -> int:
    return day.isoweekday() % 7


def days_of_week(rng: random.Random) -> tuple[str, Day]:
    weekday = rng.randint(0, 6)
    name = rng.choice([str(weekday or rng.choice([0, 7])), WEEKDAYS[weekday]])
    match rng.randrange(10):
        case 0:
            text = rng.choice([f"L{name}", f"{name}L"])
            return (
                text,
                lambda day: (
                    cron_weekday(day) == weekday and (day + timedelta(days=7)).month != day.month
                ),
            )
        case 1:
            nth = rng.randint(1, 5)
            return (
                f"{name}#{nth}",
                lambda day: cron_weekday(day) == weekday and (day.day + 6) // 7 == nth,
            )
        case 2:
            nth, (text, values) = rng.randint(1, 4), field(0, 6, rng, WEEKDAYS)
            return (
                f"{name}#{nth},{text}",
                lambda day: (
                    cron_weekday(day) in values
                    or (cron_weekday(day) == weekday and (day.day + 6) // 7 == nth)
                ),
            )
        case 3:
            return f"{name},7", lambda day: cron_weekday(day) in (weekday, 0)
        case 4:
            last = rng.randint(weekday, 6)
            return f"{weekday}-7", lambda day: cron_weekday(day) in {*range(weekday, 7), 0}
        case 5:
            last = rng.randint(0, 6)
            return f"7-{last}", lambda day: cron_weekday(day) <= last
        case _:
            text, values = field(0, 6, rng, WEEKDAYS)
            return text, lambda day: cron_weekday(day) in values


@dataclass(frozen=True)
class Meaning:
    text: str
    fixed_time: bool
    times: Callable[[int, int, int], bool]
    days: Day


def starts_with_star(text: str) -> bool:
    return text[0] in "*?"


def expression(
    rng: random.Random, *, near: datetime | None = None, seconds: bool = False, years: bool = False
) -> Meaning:
    """A random expression; with `near`, one that often matches around that wall time."""
    minute, minutes = field(0, 59, rng)
    hour, hours = field(0, 23, rng)
    month, months = field(1, 12, rng, MONTHS)
    day_of_month, month_days = days_of_month(rng)
    day_of_week, week_days = days_of_week(rng)
    if near is not None:
        if rng.random() < 0.6:
            hours = {near.hour, (near.hour + rng.choice([1, 23])) % 24}
            hour = ",".join(map(str, hours))
        if rng.random() < 0.8:
            month, months = "*", set(range(1, 13))
        if rng.random() < 0.5:
            day_of_month, month_days = rng.choice(["*", "?"]), lambda _: True
        if rng.random() < 0.7:
            day_of_week, week_days = rng.choice(["*", "?"]), lambda _: True
    second, chosen_seconds = field(0, 59, rng) if seconds else ("", {0})
    year, chosen_years = "", None
    if years and rng.random() < 0.7:
        year, chosen_years = field(1970, 2254, rng, wraps=False)
        if rng.random() < 0.5:
            first = rng.randint(2000, 2010)
            year, chosen_years = f"{first}-{first + 12}/3", set(range(first, first + 13, 3))
    either = not starts_with_star(day_of_month) and not starts_with_star(day_of_week)

    def days(day: date) -> bool:
        in_month, in_week = month_days(day), week_days(day)
        return (
            day.month in months
            and (chosen_years is None or day.year in chosen_years)
            and ((in_month or in_week) if either else (in_month and in_week))
        )

    return Meaning(
        " ".join(
            [minute, hour, day_of_month, month, day_of_week]
            + ([second or "0"] if second or year else [])
            + ([year] if year else [])
        ),
        not starts_with_star(minute) and not starts_with_star(hour),
        lambda h, m, s: h in hours and m in minutes and s in chosen_seconds,
        days,
    )


# The oracle


class Walk:
    """What the clock on a wall shows, step by step, over a stretch of time."""

    def __init__(self, zone: tzinfo, start: datetime, end: datetime, step: timedelta) -> None:
        self.step = step
        self.readings: list[tuple[datetime, datetime]] = []
        instant = start
        while instant < end:
            self.readings.append((instant, instant.astimezone(zone).replace(tzinfo=None)))
            instant += step

    def occurrences(self, meaning: Meaning) -> list[datetime]:
        dates: dict[date, bool] = {}

        def matches(wall: datetime) -> bool:
            if not meaning.times(wall.hour, wall.minute, wall.second):
                return False
            day = wall.date()
            if day not in dates:
                dates[day] = meaning.days(day)
            return dates[day]

        found = []
        latest = self.readings[0][1] - self.step
        for instant, wall in self.readings:
            hit = matches(wall)
            if meaning.fixed_time:
                if wall <= latest:  # shown before
                    hit = False
                missed = latest + self.step
                while missed < wall and not hit:
                    hit = matches(missed)
                    missed += self.step
            latest = max(latest, wall)
            if hit:
                found.append(instant)
        return found


def all_of(cron: Cron, start: datetime, end: datetime) -> list[datetime]:
    found = []
    instant = cron.next_after(start - timedelta(microseconds=1))
    while instant is not None and instant < end:
        found.append(instant)
        instant = cron.next_after(instant)
    return found


def possible(rng: random.Random, make: Callable[[random.Random], Meaning]) -> tuple[Meaning, Cron]:
    """An expression that occurs at all, with its schedule in UTC."""
    while True:
        meaning = make(rng)
        try:
            return meaning, Cron(meaning.text)
        except ValueError as refused:
            reason = str(refused)
        leap_cycle = (date(1972, 1, 1) + timedelta(days=n) for n in range(365 * 28 + 7))
        if "never occurs" not in reason or any(meaning.days(day) for day in leap_cycle):
            pytest.fail(f"{meaning.text}: {reason}")


def changes(zone: ZoneInfo, year: int) -> Iterator[datetime]:
    """The hours in which a zone changes its offset in a year."""
    hour = datetime(year, 1, 1, tzinfo=UTC)
    while hour.year == year:
        day = hour + timedelta(days=1)
        if hour.astimezone(zone).utcoffset() != day.astimezone(zone).utcoffset():
            while (
                hour.astimezone(zone).utcoffset()
                == (hour + timedelta(hours=1)).astimezone(zone).utcoffset()
            ):
                hour += timedelta(hours=1)
            yield hour
        hour = datetime(day.year, day.month, day.day, tzinfo=UTC)


RESTLESS = [
    ("Europe/Berlin", (1980, 2045)),
    ("Europe/London", (1968, 2045)),
    ("Europe/Dublin", (1972, 2045)),  # its winter time is the exception
    ("America/New_York", (1970, 2045)),
    ("America/St_Johns", (1987, 2045)),  # changed at 00:01; two hours in 1988
    ("America/Havana", (1981, 2045)),  # changes at midnight
    ("America/Sao_Paulo", (1985, 2019)),  # changed at midnight
    ("America/Caracas", (2007, 2017)),  # by half an hour
    ("America/Nuuk", (1980, 2030)),
    ("Africa/Casablanca", (2008, 2040)),  # four changes a year
    ("Africa/Cairo", (2007, 2030)),
    ("Antarctica/Troll", (2006, 2030)),  # two hours
    ("Asia/Beirut", (1993, 2030)),
    ("Asia/Gaza", (2008, 2030)),
    ("Asia/Kathmandu", (1985, 1987)),  # by a quarter of an hour
    ("Asia/Pyongyang", (2014, 2019)),
    ("Australia/Lord_Howe", (1985, 2045)),  # by half an hour
    ("Pacific/Apia", (2010, 2020)),  # left out a day
    ("Pacific/Chatham", (1976, 2045)),
    ("Pacific/Kwajalein", (1992, 1994)),  # left out a day
]


@pytest.mark.parametrize(("name", "years"), RESTLESS, ids=[name for name, _ in RESTLESS])
def test_every_minute_around_a_change_of_the_clocks_is_right(
    name: str, years: tuple[int, int]
) -> None:
    rng, zone = random.Random(name), ZoneInfo(name)
    for _ in range(4 * CASES):
        found: list[datetime] = []
        while not found:
            found = list(changes(zone, rng.randint(*years)))
        change = rng.choice(found)
        start, end = change - timedelta(hours=26), change + timedelta(hours=40)
        walk = Walk(zone, start, end, timedelta(minutes=1))
        near = change.astimezone(zone)
        for _ in range(12):
            meaning, _ = possible(rng, partial(expression, near=near))
            cron = Cron(meaning.text, name)
            expected = walk.occurrences(meaning)
            assert all_of(cron, start, end) == expected, (meaning.text, change)
            for _ in range(5):
                after = start + (end - start) * rng.random()
                wanted = next((instant for instant in expected if instant > after), None)
                answer = cron.next_after(after)
                if wanted is None:
                    assert answer is None or answer >= end, (meaning.text, after)
                else:
                    assert answer == wanted, (meaning.text, after)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("Europe/Berlin", datetime(2026, 3, 29, 1, tzinfo=UTC)),
        ("Europe/Berlin", datetime(2026, 10, 25, 1, tzinfo=UTC)),
        ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=UTC)),
        ("Australia/Lord_Howe", datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),
        ("Africa/Monrovia", datetime(1972, 1, 7, 0, 44, 30, tzinfo=UTC)),
        ("America/St_Johns", datetime(2006, 10, 29, 2, 31, tzinfo=UTC)),
    ],
)
def test_every_second_around_a_change_of_the_clocks_is_right(name: str, change: datetime) -> None:
    rng, zone = random.Random(f"{name} {change}"), ZoneInfo(name)
    start, end = change - timedelta(hours=1, minutes=3), change + timedelta(hours=1, minutes=3)
    walk = Walk(zone, start, end, timedelta(seconds=1))
    assert len({instant.astimezone(zone).utcoffset() for instant in (start, end)}) == 2
    near = change.astimezone(zone)
    for _ in range(40 * CASES):
        meaning, _ = possible(rng, lambda rng: expression(rng, near=near, seconds=True))
        assert all_of(Cron(meaning.text, name), start, end) == walk.occurrences(meaning), (
            meaning.text
        )


@pytest.mark.parametrize("chunk", range(4))
def test_every_day_of_many_years_is_right(chunk: int) -> None:
    rng = random.Random(chunk)
    for _ in range(40 * CASES):
        meaning, cron = possible(rng, lambda rng: expression(rng, years=True))
        fields = meaning.text.split()
        at_noon = Cron(" ".join(["30", "12", *fields[2:]]))
        start = datetime(rng.randint(1970, 2080), rng.randint(1, 12), 1, tzinfo=UTC)
        end = start.replace(year=start.year + rng.choice([1, 4, 12]))
        expected = []
        day = start
        while day < end:
            if meaning.days(day.date()):
                expected.append(day.replace(hour=12, minute=30))
            day += timedelta(days=1)
        assert all_of(at_noon, start, end) == expected, meaning.text
        for found in expected[:2]:
            first_of_day = cron.next_after(found.replace(hour=0, minute=0) - timedelta(seconds=1))
            assert first_of_day is not None
            assert first_of_day.date() == found.date()


@pytest.mark.parametrize("minutes_east", [0, 330, -210, 840, -720])
def test_every_minute_at_a_fixed_offset_is_right(minutes_east: int) -> None:
    rng = random.Random(minutes_east)
    zone = timezone(timedelta(minutes=minutes_east))
    sign, minutes = "-" if minutes_east < 0 else "+", abs(minutes_east)
    name = f"UTC{sign}{minutes // 60}:{minutes % 60:02}"
    start = datetime(2028, 2, 28, 3, 17, tzinfo=UTC)
    end = start + timedelta(hours=50)
    walk = Walk(zone, start, end, timedelta(minutes=1))
    for _ in range(40 * CASES):
        meaning, _ = possible(rng, lambda rng: expression(rng, near=start))
        assert all_of(Cron(meaning.text, name), start, end) == walk.occurrences(meaning), (
            meaning.text
        )


def test_asking_step_by_step_and_asking_directly_agree_over_long_distances() -> None:
    rng = random.Random(11)
    for _ in range(200 * CASES):
        name, (first, last) = rng.choice(RESTLESS)
        meaning, _ = possible(rng, lambda rng: expression(rng, seconds=rng.random() < 0.3))
        cron = Cron(meaning.text, name)
        instant = instant_of(datetime(rng.randint(first, last), rng.randint(1, 12), 7, tzinfo=UTC))
        for _ in range(15):
            found = cron.next(instant)
            assert found is not None
            between = rng.randint(instant, found - 1)
            assert cron.next(between) == found, (meaning.text, name, between)
            instant = found
