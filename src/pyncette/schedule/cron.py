"""Cron expressions, compiled: which wall times they match.

Knows the grammar and the calendar, and nothing of time zones: a *wall second* here is what a
clock on the wall shows, counted in seconds from 1970-01-01 00:00:00 on that clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from functools import lru_cache
from typing import NamedTuple

FIRST_YEAR = 1970
LAST_YEAR = 2254

EXPRESSION_LENGTH_MAX = 4096

_DAY = 86_400
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
# A day inside what date can hold; earlier wall times are taken for this one.
_EARLIEST_DAY = date(1, 1, 2).toordinal() - _EPOCH_ORDINAL

_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

_MONTH_NAMES = tuple("JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split())  # noqa: SIM905
_WEEKDAY_NAMES = tuple("SUN MON TUE WED THU FRI SAT".split())  # noqa: SIM905


class _Field(NamedTuple):
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


_MINUTE = _Field("minute", 0, 59)
_HOUR = _Field("hour", 0, 23)
_DAY_OF_MONTH = _Field("day of month", 1, 31)
_MONTH = _Field("month", 1, 12, _MONTH_NAMES)
_DAY_OF_WEEK = _Field("day of week", 0, 6, _WEEKDAY_NAMES)
_SECOND = _Field("second", 0, 59)
_YEAR = _Field("year", FIRST_YEAR, LAST_YEAR)

_RANGE = re.compile(
    r"(?:\*|(?P<first>[0-9]+|[A-Z]{3})(?:-(?P<last>[0-9]+|[A-Z]{3}))?)(?:/(?P<step>[0-9]+))?"
)
_NEAREST_WEEKDAY = re.compile(r"([0-9]+)W")
_NTH_WEEKDAY = re.compile(r"(?P<days>[^#/]+)#(?P<nth>[0-9]+)")
_LAST_WEEKDAY = re.compile(r"L(?P<after>[0-9]|[A-Z]{3})|(?P<before>[0-9]|[A-Z]{3})L")

# The days 1, 8, 15, 22 and 29, as bits.
_WEEKLY = 1 << 1 | 1 << 8 | 1 << 15 | 1 << 22 | 1 << 29


def _wrong(field: _Field, item: str, reason: str) -> ValueError:
    return ValueError(f"invalid {field.name} {item!r}: {reason}")


def _value(field: _Field, item: str, text: str) -> int:
    if not text.isdecimal():
        if text not in field.names:
            known = f", known are {', '.join(field.names)}" if field.names else ""
            raise _wrong(field, item, f"{text!r} is not a name here{known}")
        return field.low + field.names.index(text)
    # Longer than any value: int() need not read thousands of digits to say no.
    value = int(text) if len(text) <= 9 else -1
    high = 7 if field is _DAY_OF_WEEK else field.high
    if not field.low <= value <= high:
        raise _wrong(field, item, f"must be within {field.low} to {high}")
    return value


def _values(field: _Field, item: str) -> Iterator[int]:
    """The values of one item of a list: `*`, `5`, `1-5`, `FRI-MON`, each with `/step`."""
    if item == "?":
        if field not in (_DAY_OF_MONTH, _DAY_OF_WEEK):
            raise _wrong(field, item, "'?' may stand in the two day fields only")
        item = "*"
    match = _RANGE.fullmatch(item)
    if match is None:
        raise _wrong(field, item, "not understood")
    first, last, step_text = match["first"], match["last"], match["step"]
    step = 1
    if step_text is not None:
        step = int(step_text) if len(step_text) <= 9 else 0
        if step == 0:
            raise _wrong(field, item, "the step must be a number of 1 or more")
    low, high = field.low, field.high
    if first is not None:
        low = _value(field, item, first)
        if last is not None:
            high = _value(field, item, last)
        elif step_text is None:
            high = low
    if field is _DAY_OF_WEEK:
        if low == 7:  # Sunday opens a week here, whichever number was written
            low, high = 0, high % 7
        if low <= high:
            yield from (value % 7 for value in range(low, high + 1, step))
            return
    if low <= high:
        yield from range(low, high + 1, step)
        return
    if field is _YEAR:
        raise _wrong(field, item, "the range is empty")
    span = field.high - field.low + 1
    for value in range(low, high + span + 1, step):
        yield (value - field.low) % span + field.low


def _mask(field: _Field, text: str) -> int:
    bits = 0
    for item in text.split(","):
        for value in _values(field, item):
            bits |= 1 << (value - field.low)
    return bits


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


class _Days:
    """The two day fields: which days of a month match.

    Where both are restricted, a day that satisfies either matches (the rule of Vixie's and of
    Debian's cron). A field that starts with `*` or `?` is unrestricted, so that `*/2` together
    with `MON` means the Mondays with an odd number.
    """

    __slots__ = (
        "_days",
        "_either",
        "_last_day",
        "_last_weekday",
        "_last_weekdays",
        "_nearest_weekdays",
        "_nth_weekdays",
        "_weekdays",
    )

    def __init__(self, days: str, weekdays: str) -> None:
        self._either = days[0] not in "*?" and weekdays[0] not in "*?"
        self._days = self._weekdays = 0
        self._last_day = self._last_weekday = False
        self._nearest_weekdays: list[int] = []
        self._nth_weekdays: list[tuple[int, int]] = []
        self._last_weekdays: list[int] = []
        for item in days.split(","):
            self._add_day(item)
        for item in weekdays.split(","):
            self._add_weekday(item)

    def _add_day(self, item: str) -> None:
        if item == "L":
            self._last_day = True
        elif item == "LW":
            self._last_weekday = True
        elif match := _NEAREST_WEEKDAY.fullmatch(item):
            self._nearest_weekdays.append(_value(_DAY_OF_MONTH, item, match[1]))
        else:
            for day in _values(_DAY_OF_MONTH, item):
                self._days |= 1 << day

    def _add_weekday(self, item: str) -> None:
        if match := _NTH_WEEKDAY.fullmatch(item):
            nth = int(match["nth"]) if len(match["nth"]) == 1 else 0
            if not 1 <= nth <= 5:
                raise _wrong(_DAY_OF_WEEK, item, "the number after # must be within 1 to 5")
            self._nth_weekdays += [(day, nth) for day in _values(_DAY_OF_WEEK, match["days"])]
        elif match := _LAST_WEEKDAY.fullmatch(item):
            day = _value(_DAY_OF_WEEK, item, match["after"] or match["before"])
            self._last_weekdays.append(day % 7)
        else:
            for day in _values(_DAY_OF_WEEK, item):
                self._weekdays |= 1 << day

    def of_month(self, year: int, month: int) -> int:
        """The matching days, as bits 1 to 31."""
        first = date(year, month, 1).toordinal()
        following = date(year + month // 12, month % 12 + 1, 1).toordinal()
        length = following - first
        first_weekday = first % 7  # ordinal 7 was a Sunday
        whole = (2 << length) - 2

        by_day = self._days
        if self._last_day:
            by_day |= 1 << length
        if self._last_weekday:
            by_day |= 1 << _nearest_weekday(length, length, first_weekday)
        for day in self._nearest_weekdays:
            if day <= length:
                by_day |= 1 << _nearest_weekday(day, length, first_weekday)

        by_weekday = 0
        for weekday in range(7):
            if self._weekdays >> weekday & 1:
                by_weekday |= _WEEKLY << (weekday - first_weekday) % 7
        for weekday, nth in self._nth_weekdays:
            by_weekday |= 2 << (weekday - first_weekday) % 7 + 7 * (nth - 1)
        for weekday in self._last_weekdays:
            by_weekday |= 1 << length - (first_weekday + length - 1 - weekday) % 7

        return whole & (by_day | by_weekday if self._either else by_day & by_weekday)


def _nearest_weekday(day: int, length: int, first_weekday: int) -> int:
    """The day of Monday to Friday nearest to `day`, in the same month."""
    weekday = (first_weekday + day - 1) % 7
    if weekday == 6:
        return day - 1 if day > 1 else day + 2
    if weekday == 0:
        return day + 1 if day < length else day - 2
    return day


class CompiledCron:
    """An expression, ready to be asked for the next wall time that it matches.

    Attributes:
        fixed_time: Neither the minute nor the hour field starts with `*`: the expression names
            times of the day rather than a rhythm (Debian cron's distinction, which decides what
            a change of the clocks does to it).
    """

    __slots__ = (
        "_days",
        "_first_second",
        "_first_second_of_day",
        "_minutes_of_day",
        "_months",
        "_months_seen",
        "_run",
        "_seconds",
        "_years",
        "fixed_time",
    )

    def __init__(self, fields: list[str]) -> None:
        minutes, hours, days, months, weekdays, *rest = fields
        minute_bits = _mask(_MINUTE, minutes)
        hour_bits = _mask(_HOUR, hours)
        self._days = _Days(days, weekdays)
        self._months = _mask(_MONTH, months) << 1
        self._seconds = _mask(_SECOND, rest[0]) if rest else 1
        years = rest[1] if len(rest) > 1 else "*"
        self._years = None if years == "*" else _mask(_YEAR, years)
        self.fixed_time: bool = "*" not in (minutes[0], hours[0])

        self._minutes_of_day = sum(
            minute_bits << hour * 60 for hour in range(24) if hour_bits >> hour & 1
        )
        self._first_second = _lowest(self._seconds)
        self._first_second_of_day = _lowest(self._minutes_of_day) * 60 + self._first_second
        self._months_seen: dict[int, int] = {}
        # Of the days first <= day <= last only the last one matches.
        self._run = (0, -1)

        if self._next_day(0) is None:
            raise ValueError(
                f"never occurs: no day from {FIRST_YEAR} to {LAST_YEAR} has day of month {days!r}, "
                f"month {months!r}, day of week {weekdays!r} and year {years!r}"
            )

    def first_at_or_after(self, wall: int) -> int | None:
        """The first matching wall second that is `wall` or later; None if there is none."""
        day, second_of_day = divmod(wall, _DAY)
        first, last = self._run
        found = last if first <= day <= last else self._next_day(day)
        if found == day:
            minute = second_of_day // 60
            seconds = self._seconds >> second_of_day % 60
            minutes = self._minutes_of_day >> minute
            if minutes & 1 and seconds:
                return wall + (seconds & -seconds).bit_length() - 1
            minutes &= -2
            if minutes:
                minute += (minutes & -minutes).bit_length() - 1
                return day * _DAY + minute * 60 + self._first_second
            found = self._next_day(day + 1)
        if found is None:
            return None
        return found * _DAY + self._first_second_of_day

    def _next_day(self, day: int) -> int | None:
        """The first matching day that is `day` or later, counted from 1970-01-01."""
        day = max(day, _EARLIEST_DAY)
        start = date.fromordinal(day + _EPOCH_ORDINAL)
        year, month = start.year, start.month
        bits = self._days_of(year, month) >> start.day << start.day
        while not bits:
            later = self._months >> month + 1
            if later and self._has(year):
                month += _lowest(later) + 1
            else:
                year = self._year_after(year)
                # One more than the last: its first hours in the east are 2254 in UTC.
                if year > LAST_YEAR + 1:
                    return None
                month = _lowest(self._months)
            bits = self._days_of(year, month)
        found = date(year, month, _lowest(bits)).toordinal() - _EPOCH_ORDINAL
        self._run = (day, found)
        return found

    def _has(self, year: int) -> bool:
        years = self._years
        return years is None or (year >= FIRST_YEAR and years >> year - FIRST_YEAR & 1 == 1)

    def _year_after(self, year: int) -> int:
        if self._years is None:
            return year + 1
        year = max(year + 1, FIRST_YEAR)
        later = self._years >> year - FIRST_YEAR
        return year + _lowest(later) if later else LAST_YEAR + 2

    def _days_of(self, year: int, month: int) -> int:
        if not (self._months >> month & 1 and self._has(year)):
            return 0
        key = year * 12 + month
        bits = self._months_seen.get(key)
        if bits is None:
            if len(self._months_seen) >= 256:
                self._months_seen.clear()
            bits = self._months_seen[key] = self._days.of_month(year, month)
        return bits


def normalize_expression(expression: str) -> str:
    """The form of an expression that is stored: as given, with single blanks."""
    if not isinstance(expression, str):
        raise TypeError(f"a cron expression is a str, not {type(expression).__name__}")
    return " ".join(expression.split())


@lru_cache(maxsize=4096)
def compile_cron(expression: str) -> CompiledCron:
    """Compile an expression of five, six or seven fields, or an alias such as `@hourly`.

    Args:
        expression: `minute hour day-of-month month day-of-week [second [year]]`.

    Raises:
        ValueError: The expression is invalid, or never occurs; the message names the field and
            the value.
    """
    try:
        if len(expression) > EXPRESSION_LENGTH_MAX:
            raise ValueError(f"longer than {EXPRESSION_LENGTH_MAX} characters")
        if not expression.isascii():
            raise ValueError("only ASCII characters are understood")
        if expression.startswith("@"):
            text = _ALIASES.get(expression.strip().lower())
            if text is None:
                raise ValueError(f"unknown alias, known are {', '.join(_ALIASES)}")
        else:
            text = expression.upper()
        fields = text.split()
        if not 5 <= len(fields) <= 7:
            raise ValueError(f"has {len(fields)} fields, must have 5, 6 or 7")
        return _compiled(fields)
    except ValueError as error:
        shown = expression if len(expression) <= 100 else expression[:97] + "..."
        raise ValueError(f"Invalid cron expression {shown!r}: {error}") from None


def _compiled(fields: list[str]) -> CompiledCron:
    try:
        return CompiledCron(fields)
    except ValueError as error:
        if len(fields) > 5:
            second, *others = fields
            try:
                CompiledCron([*others[:5], second, *others[5:]])
            except ValueError:
                pass
            else:
                raise ValueError(
                    f"{error}. It reads like an expression with the second first, as Quartz has "
                    "it; here the second is the sixth field (and Sunday is 0 or 7)"
                ) from None
        raise


def seconds_may_be_first(expression: str) -> bool:
    """Whether a valid expression was perhaps meant to have the second first.

    `0 0 12 * * *` is noon of every day elsewhere, and `0 * * * * *` is each minute. Here it is each
    second of some minutes, which hardly anybody wants.
    """
    fields = expression.split()
    return len(fields) > 5 and fields[5] == "*" and fields[0] != "*"
