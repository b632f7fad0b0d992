"""Recurrence rules and combinations against oracles that share no code with them.

A rule is compared with `dateutil`, walked from its start, and with an oracle that looks at each day
(or each hour, minute and second) by itself. A combination is compared with sets: all occurrences of
its parts in a stretch of time, joined, filtered and cut.

`PYNCETTE_TEST_SCHEDULE_CASES` multiplies the number of cases (1 takes some seconds).
"""

from __future__ import annotations

import calendar
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

import pytest
from dateutil.rrule import rrulestr

from pyncette.schedule import (
    At,
    Calendar,
    Calendars,
    Cron,
    Every,
    Rule,
    Schedule,
    UnreadableHere,
    instant_of,
)

pytestmark = pytest.mark.exhaustive

CASES = int(os.environ.get("PYNCETTE_TEST_SCHEDULE_CASES", "1"))

WEEKDAYS = ["MO", "TU", "WE", "TH", "FR", "SA", "SU"]
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)


# Rules, each with its meaning.


@dataclass
class Parts:
    """A rule as it was put together."""

    frequency: str
    interval: int
    start: datetime
    lists: dict[str, list[int]] = field(default_factory=dict)
    weekdays: list[tuple[int, int]] = field(default_factory=list)

    @property
    def text(self) -> str:
        parts = [f"FREQ={self.frequency}", f"INTERVAL={self.interval}"]
        parts += [f"{name}={','.join(map(str, values))}" for name, values in self.lists.items()]
        if self.weekdays:
            named = (f"{nth or ''}{WEEKDAYS[day]}" for nth, day in self.weekdays)
            parts.append(f"BYDAY={','.join(named)}")
        return ";".join(parts)


def some(
    rng: random.Random, low: int, high: int, most: int = 3, negative: bool = False
) -> list[int]:
    values = {rng.randint(low, high) for _ in range(rng.randint(1, most))}
    return sorted({-value if negative and rng.random() < 0.3 else value for value in values})


def a_rule(rng: random.Random, frequencies: list[str]) -> Parts:
    frequency = rng.choice(frequencies)
    start = datetime(  # noqa: DTZ001 (a time on the wall)
        rng.randint(2019, 2026),
        rng.randint(1, 12),
        rng.randint(1, 28),
        rng.randint(0, 23),
        rng.choice([0, 30, rng.randint(0, 59)]),
        rng.choice([0, rng.randint(0, 59)]),
    )
    parts = Parts(frequency, rng.choice([1, 1, 2, 3, rng.randint(1, 40)]), start)
    lists = parts.lists
    slow = frequency in ("YEARLY", "MONTHLY", "WEEKLY", "DAILY")
    if rng.random() < 0.3:
        lists["BYMONTH"] = some(rng, 1, 12, 5)
    if frequency != "WEEKLY" and rng.random() < 0.3:
        lists["BYMONTHDAY"] = some(rng, 1, 31, 4, negative=True)
    if frequency in ("YEARLY", "HOURLY") and not lists and rng.random() < 0.2:
        lists["BYYEARDAY"] = some(rng, 1, 366, 4, negative=True)
    if rng.random() < 0.5:
        chosen = {(0, day) for day in some(rng, 0, 6, 4)}
        if frequency in ("YEARLY", "MONTHLY") and rng.random() < 0.5:
            highest = 5 if frequency == "MONTHLY" or "BYMONTH" in lists else 52
            chosen = {(nth, day) for _, day in chosen for nth in some(rng, 1, highest, 2, True)}
        parts.weekdays = sorted(chosen)
    plain = bool(parts.weekdays) and all(nth == 0 for nth, _ in parts.weekdays)
    if frequency == "YEARLY" and not lists and plain and rng.random() < 0.5:
        lists["BYWEEKNO"] = some(rng, 1, 51, 3)
    for name, high in (("BYHOUR", 23), ("BYMINUTE", 59), ("BYSECOND", 59)):
        if rng.random() < 0.2:
            lists[name] = some(rng, 0, high)
    if slow and (lists or parts.weekdays) and rng.random() < 0.3:
        lists["BYSETPOS"] = some(rng, 1, 4, 2, negative=True)
    return parts


# What a rule means, one day at a time.


def nth_of(day: date, weekday: tuple[int, int], in_year: bool) -> bool:
    nth, wanted = weekday
    if day.weekday() != wanted:
        return False
    if nth == 0:
        return True
    first = day.replace(month=1, day=1) if in_year else day.replace(day=1)
    length = 366 if calendar.isleap(day.year) else 365
    if not in_year:
        length = calendar.monthrange(day.year, day.month)[1]
    period = [first + n * DAY for n in range(length)]
    same = [other for other in period if other.weekday() == wanted]
    index = nth - 1 if nth > 0 else len(same) + nth
    return 0 <= index < len(same) and same[index] == day


def has_day(parts: Parts, day: date) -> bool:
    lists, start = parts.lists, parts.start
    if "BYMONTH" in lists and day.month not in lists["BYMONTH"]:
        return False
    length = calendar.monthrange(day.year, day.month)[1]
    if "BYMONTHDAY" in lists and not {day.day, day.day - length - 1} & {*lists["BYMONTHDAY"]}:
        return False
    of_year = day.timetuple().tm_yday
    of_end = of_year - (366 if calendar.isleap(day.year) else 365) - 1
    if "BYYEARDAY" in lists and not {of_year, of_end} & {*lists["BYYEARDAY"]}:
        return False
    if "BYWEEKNO" in lists and day.isocalendar().week not in lists["BYWEEKNO"]:
        return False
    if parts.weekdays:
        in_year = parts.frequency == "YEARLY" and "BYMONTH" not in lists
        return any(nth_of(day, weekday, in_year) for weekday in parts.weekdays)
    if {"BYMONTHDAY", "BYYEARDAY", "BYWEEKNO"} & {*lists}:
        return True
    match parts.frequency:
        case "YEARLY":
            return day.day == start.day and ("BYMONTH" in lists or day.month == start.month)
        case "MONTHLY":
            return day.day == start.day
        case "WEEKLY":
            return day.weekday() == start.weekday()
    return True


def period_of(parts: Parts, day: date) -> int:
    match parts.frequency:
        case "YEARLY":
            return day.year
        case "MONTHLY":
            return day.year * 12 + day.month
        case "WEEKLY":
            return (day - timedelta(days=day.weekday())).toordinal() // 7
    return day.toordinal()


def by_days(parts: Parts, last: date) -> list[datetime]:
    """All occurrences up to a day: each day is looked at, and then each period."""
    lists, start = parts.lists, parts.start
    times = [
        timedelta(hours=hour, minutes=minute, seconds=second)
        for hour in lists.get("BYHOUR", [start.hour])
        for minute in lists.get("BYMINUTE", [start.minute])
        for second in lists.get("BYSECOND", [start.second])
    ]
    periods: dict[int, list[datetime]] = {}
    day = start.date().replace(month=1, day=1) - 7 * DAY
    while day <= last + 370 * DAY:
        distance = period_of(parts, day) - period_of(parts, start.date())
        if distance % parts.interval == 0 and has_day(parts, day):
            midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001
            periods.setdefault(distance, []).extend(midnight + time for time in times)
        day += DAY
    found: list[datetime] = []
    for occurrences in periods.values():
        occurrences.sort()
        places = {*range(len(occurrences))}
        if "BYSETPOS" in lists:
            places = {n - 1 if n > 0 else len(occurrences) + n for n in lists["BYSETPOS"]}
        found += [o for place, o in enumerate(occurrences) if place in places]
    return sorted(o for o in found if o >= start and o.date() <= last)


def by_steps(parts: Parts, last: datetime) -> list[datetime]:
    """All occurrences of a faster rule up to an instant: each second, minute or hour by itself."""
    lists, start = parts.lists, parts.start
    unit = {"HOURLY": 3600, "MINUTELY": 60, "SECONDLY": 1}[parts.frequency]
    origin = int(start.replace(tzinfo=UTC).timestamp()) // unit
    fields = {
        "BYHOUR": ("hour", list(range(24))),
        "BYMINUTE": ("minute", [start.minute] if unit == 3600 else list(range(60))),
        "BYSECOND": ("second", [start.second] if unit > 1 else list(range(60))),
    }
    found, moment = [], start
    while moment <= last:
        number = int(moment.replace(tzinfo=UTC).timestamp()) // unit
        in_fields = (number - origin) % parts.interval == 0 and all(
            getattr(moment, name) in lists.get(part, usual)
            for part, (name, usual) in fields.items()
        )
        if in_fields and has_day(parts, moment.date()):
            found.append(moment)
        moment += SECOND
    return found


def walked(rule: Rule, last: datetime) -> Iterator[datetime]:
    """The occurrences of a rule in UTC, as times on the wall."""
    instant = rule.next_after(rule.start - SECOND)
    while instant is not None and instant.replace(tzinfo=None) <= last:
        yield instant.replace(tzinfo=None)
        instant = rule.next_after(instant)


def made(parts: Parts) -> Rule | None:
    """The rule; None if it never occurs."""
    try:
        return Rule(parts.text, start=parts.start)
    except ValueError as error:
        if "never occurs" in str(error):
            return None
        raise


@pytest.mark.parametrize("seed", range(8))
def test_a_rule_of_days_has_the_days_that_an_oracle_finds_one_by_one(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(40 * CASES):
        parts = a_rule(rng, ["YEARLY", "MONTHLY", "WEEKLY", "DAILY"])
        last = parts.start.date() + timedelta(days=rng.choice([400, 1500]))
        rule = made(parts)
        found = (
            []
            if rule is None
            else list(
                walked(rule, datetime(last.year, last.month, last.day, 23, 59, 59))  # noqa: DTZ001
            )
        )
        assert found == by_days(parts, last), (parts.text, parts.start)


@pytest.mark.parametrize("seed", range(4))
def test_a_faster_rule_has_the_times_that_an_oracle_finds_second_by_second(seed: int) -> None:
    rng = random.Random(f"steps {seed}")
    for _ in range(6 * CASES):
        parts = a_rule(rng, ["HOURLY", "MINUTELY", "SECONDLY"])
        last = parts.start + timedelta(hours=rng.choice([3, 30]))
        rule = made(parts)
        found = [] if rule is None else list(walked(rule, last))
        assert found == by_steps(parts, last), (parts.text, parts.start)


@pytest.mark.parametrize("seed", range(8))
def test_a_rule_has_the_occurrences_that_dateutil_finds_from_its_start(seed: int) -> None:
    rng = random.Random(f"dateutil {seed}")
    compared = 0
    while compared < 25 * CASES:
        parts = a_rule(rng, ["YEARLY", "MONTHLY", "WEEKLY", "DAILY", "HOURLY", "MINUTELY"])
        if len({bool(nth) for nth, _ in parts.weekdays}) > 1:
            continue  # dateutil wants both: a plain day that is a numbered one
        rule = made(parts)
        if rule is None:
            continue  # dateutil looks for it until the year 9999
        last = parts.start + timedelta(days=2_000)
        mine = list(islice(walked(rule, last), 40))
        theirs = rrulestr(parts.text, dtstart=parts.start)
        if len(mine) < 40:
            mine = list(islice(walked(rule, datetime(2254, 1, 1)), 3))  # noqa: DTZ001
        expected: list[datetime] = list(islice(theirs, len(mine)))
        if parts.frequency == "WEEKLY" and "BYSETPOS" in parts.lists:
            # dateutil chooses among the days of the first week that come after the start.
            after = parts.start + timedelta(days=7)
            mine = [o for o in mine if o > after][:10]
            expected = [o for o in islice(theirs, 60) if o > after][: len(mine)]
        assert mine == expected, (parts.text, parts.start)
        compared += 1


@pytest.mark.parametrize("seed", range(4))
def test_a_count_is_that_of_dateutil(seed: int) -> None:
    rng = random.Random(f"count {seed}")
    for _ in range(20 * CASES):
        parts = a_rule(rng, ["MONTHLY", "DAILY", "HOURLY"])
        if made(parts) is None or "BYSETPOS" in parts.lists or len(parts.lists) > 1:
            continue
        if len({bool(nth) for nth, _ in parts.weekdays}) > 1:
            continue
        text = f"{parts.text};COUNT={rng.randint(1, 30)}"
        theirs = list(rrulestr(text, dtstart=parts.start))
        rule = Rule(text, start=parts.start)
        assert list(walked(rule, datetime(2254, 1, 1))) == [  # noqa: DTZ001
            o for o in theirs if o.year < 2254
        ], text


# What the clocks do to a rule: the same as to a cron expression that says the same.


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Havana", "Australia/Lord_Howe"])
def test_a_rule_and_a_cron_expression_that_say_the_same_run_at_the_same_instants(zone: str) -> None:
    rng = random.Random(zone)
    for _ in range(20 * CASES):
        hours, minutes = some(rng, 0, 3), some(rng, 0, 59)
        pairs = [
            (
                f"{','.join(map(str, minutes))} {','.join(map(str, hours))} * * *",
                f"FREQ=DAILY;BYHOUR={','.join(map(str, hours))};"
                f"BYMINUTE={','.join(map(str, minutes))};BYSECOND=0",
            ),
            (
                f"{','.join(map(str, minutes))} * * * *",
                f"FREQ=HOURLY;BYMINUTE={','.join(map(str, minutes))};BYSECOND=0",
            ),
            ("*/15 0-3 * * *", "FREQ=MINUTELY;INTERVAL=15;BYHOUR=0,1,2,3;BYSECOND=0"),
        ]
        expression, rule = rng.choice(pairs)
        cron = Cron(expression, zone)
        made_of_rule = Rule(rule, start=datetime(2020, 1, 1), timezone=zone)  # noqa: DTZ001
        month = rng.choice([3, 4, 10, 11])
        instant: datetime | None = datetime(rng.randint(2020, 2030), month, 1, tzinfo=UTC)
        for _ in range(300):
            assert instant is not None
            expected = cron.next_after(instant)
            assert made_of_rule.next_after(instant) == expected, (expression, zone, instant)
            instant = expected


# Combinations, as sets.

BEGIN = datetime(2026, 3, 20, tzinfo=UTC)
END = datetime(2026, 4, 6, tzinfo=UTC)
"""A stretch with changes of the clocks."""

ZONES = ["UTC", "Europe/Berlin", "Asia/Tokyo", "America/New_York"]


@dataclass
class Case:
    """A schedule and all its occurrences in the stretch, up to the end."""

    schedule: Schedule
    occurrences: set[datetime]

    @property
    def single(self) -> bool:
        """Whether it is one instant, after which a record is done whatever it was planned for."""
        return "At(" in repr(self.schedule) and "|" not in repr(self.schedule)


def stepped(schedule: Schedule) -> set[datetime]:
    def steps() -> Iterator[datetime]:
        instant: datetime | None = BEGIN
        while instant is not None:
            try:
                instant = schedule.next_after(instant)
            except UnreadableHere as error:  # all that is left is excluded
                if "would never run" not in str(error):
                    raise
                return
            if instant is not None:
                yield instant

    return set(takewhile(lambda instant: instant <= END, steps()))


def a_leaf(rng: random.Random) -> Case:
    kind = rng.randrange(4)
    if kind == 0:
        schedule: Schedule = Cron(
            rng.choice(["0 ", "*/20 ", "15,45 "])
            + rng.choice(["*/5", "2", "9-11", "23,0"])
            + " * * *",
            rng.choice(ZONES),
        )
        return Case(schedule, stepped(schedule))
    if kind == 1:
        interval = timedelta(minutes=rng.choice([35, 60, 300, 1_500]))
        anchor = BEGIN + timedelta(minutes=rng.randint(-9_000, 90_000))
        first = anchor - (anchor - BEGIN) // interval * interval
        times = {first + n * interval for n in range(-1, (END - BEGIN) // interval + 2)}
        return Case(Every(interval, anchor=anchor), {time for time in times if BEGIN < time <= END})
    if kind == 2:
        instant = BEGIN + timedelta(minutes=rng.randint(-9_000, 30_000))
        return Case(At(instant), {instant} if BEGIN < instant <= END else set())
    rule = Rule(
        rng.choice(["FREQ=DAILY;INTERVAL=2", "FREQ=HOURLY;INTERVAL=7", "FREQ=WEEKLY;BYDAY=MO,SU"]),
        start=datetime(2016, 5, 1, rng.randint(0, 23), 30),  # noqa: DTZ001
        timezone=rng.choice(ZONES),
    )
    return Case(rule, stepped(rule))


def a_case(rng: random.Random, depth: int, calendars: Calendars) -> Case:
    if depth == 0:
        return a_leaf(rng)
    case = a_case(rng, depth - 1, calendars)
    match rng.randrange(4):
        case 0:
            other = a_case(rng, rng.randrange(depth), calendars)
            return Case(case.schedule | other.schedule, case.occurrences | other.occurrences)
        case 1:
            other = a_case(rng, 0, calendars)
            return Case(other.schedule | case.schedule, case.occurrences | other.occurrences)
        case 2:
            zone = rng.choice(ZONES)
            name = rng.choice(["weekend", "odd"])
            closed = CLOSED[name]
            kept = {
                time
                for time in case.occurrences
                if not closed(time.astimezone(ZoneInfo(zone)).date())
            }
            return Case(case.schedule - Calendar(name, zone), kept)
    start = BEGIN + timedelta(minutes=rng.randint(-9_000, 20_000))
    end = start + timedelta(minutes=rng.randint(0, 20_000))
    bounds = rng.choice([(start, None), (None, end), (start, end)])
    kept = {
        time
        for time in case.occurrences
        if (bounds[0] is None or time >= bounds[0]) and (bounds[1] is None or time <= bounds[1])
    }
    try:
        return Case(case.schedule.between(*bounds), kept)
    except ValueError:  # it would never run, which is right if nothing is left
        if kept:
            raise
        return case


CLOSED: dict[str, Callable[[date], bool]] = {
    "weekend": lambda day: day.weekday() >= 5,
    "odd": lambda day: day.day % 2 == 1,
}


@pytest.mark.parametrize("seed", range(6))
def test_a_combination_has_the_occurrences_of_its_parts_as_sets(seed: int) -> None:
    rng = random.Random(f"sets {seed}")
    calendars = Calendars()
    for name, function in CLOSED.items():
        calendars.declare(name, function)
    for _ in range(40 * CASES):
        case = a_case(rng, rng.choice([1, 2, 3, 4]), calendars)
        schedule = calendars.bind(case.schedule)
        expected = sorted(case.occurrences)
        assert sorted(stepped(schedule)) == expected, schedule
        for _ in range(20):
            planned = BEGIN + timedelta(minutes=rng.randint(0, 20_000))
            now = planned + timedelta(minutes=rng.randint(-900, 9_000))
            later = next((time for time in expected if time > max(planned, now)), None)
            if later is None or case.single:
                continue
            assert schedule.skip(instant_of(planned), instant_of(now)) == instant_of(later)
            assert schedule.first(instant_of(max(planned, now))) == instant_of(later)
