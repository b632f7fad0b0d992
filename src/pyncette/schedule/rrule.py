"""Recurrence rules, compiled: which wall times they match.

Knows the calendar, and nothing of zones. The days of one year, month or week are looked at
together, and the periods between are passed over by arithmetic, so that a rule that began long ago
costs no more than one that began today, and a search that finds nothing ends.

Not with `python-dateutil`, which is the oracle of the tests: it steps from the start of a rule at
each question, and where nothing matches any more it steps to the year 9999, for seconds.
"""

from __future__ import annotations

from bisect import bisect_left
from calendar import isleap, monthrange
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from typing import Final

from pyncette.schedule.cron import LAST_YEAR
from pyncette.schedule.instant import DAY_S
from pyncette.schedule.rule_grammar import UNITS, RuleParts, wall_datetime

_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
_LAST_DAY: Final = date(LAST_YEAR + 1, 12, 31).toordinal() - _EPOCH_ORDINAL
_PERIODS_KEPT: Final = 64


class CompiledRule:
    """A rule with its start, ready to be asked for the next wall time that it matches.

    Attributes:
        fixed_time: Whether it names times of the day: FREQ is DAILY or slower. Decides what a
            change of the clocks does to it.
        last: The last wall second that may occur, by COUNT or a local UNTIL; None: no bound.
    """

    __slots__ = ("_finder", "_start", "fixed_time", "last")

    def __init__(self, parts: RuleParts, start: int, last: int | None = None) -> None:
        """Compiles a rule.

        Args:
            parts: The rule.
            start: The DTSTART as a wall second. It is an occurrence only if it matches the rule.
            last: The wall second of the last occurrence, where COUNT was worked out before.
        """
        self._start = start
        self.fixed_time: bool = parts.frequency not in UNITS
        self._finder = (_ByPeriod if self.fixed_time else _BySteps)(parts, start)
        self.last = last
        if parts.until is not None and not parts.until.utc:
            self.last = parts.until.second

    def first_at_or_after(self, wall: int) -> int | None:
        """The first matching wall second that is `wall` or later; None if there is none."""
        if self.last is not None and wall > self.last:
            return None
        found = self._finder.find(max(wall, self._start))
        return None if found is None or (self.last is not None and found > self.last) else found

    def counted(self, count: int) -> int | None:
        """The wall second of the occurrence with this number; None: it lies after 2255."""
        found = self.first_at_or_after(self._start)
        while found is not None and count > 1:
            found = self.first_at_or_after(found + 1)
            count -= 1
        return found


class _Days:
    """The days of a year, a month or a week that match the parts about days. Periods are numbered.

    Of a DAILY rule, and of what is faster, the days of a month are looked at together.
    """

    def __init__(self, parts: RuleParts, start: int) -> None:
        frequency, lists = parts.frequency, dict(parts.lists)
        first = wall_datetime(start)
        weekdays = parts.weekdays
        if not (weekdays or {"BYWEEKNO", "BYYEARDAY", "BYMONTHDAY"} & set(lists)):
            # What the rule leaves open is as at its start.
            if frequency == "YEARLY":
                lists.setdefault("BYMONTH", (first.month,))
            if frequency in ("YEARLY", "MONTHLY"):
                lists["BYMONTHDAY"] = (first.day,)
            if frequency == "WEEKLY":
                weekdays = ((0, first.weekday()),)
        self.unit = frequency if frequency in ("YEARLY", "MONTHLY", "WEEKLY") else "DAILY"
        self._week_start = parts.week_start
        self._first_day = start // DAY_S
        self._interval = parts.interval if frequency == "DAILY" else 1
        self._months = frozenset(lists.get("BYMONTH", range(1, 13)))
        self._month_days = frozenset(lists.get("BYMONTHDAY", ()))
        self._year_days = frozenset(lists.get("BYYEARDAY", ()))
        self._weeks = frozenset(lists.get("BYWEEKNO", ()))
        self._weekdays = frozenset(day for nth, day in weekdays if not nth)
        self._numbered = frozenset((nth, day) for nth, day in weekdays if nth)
        self._by_weekday = bool(weekdays)
        self._in_year = frequency == "YEARLY" and "BYMONTH" not in lists
        self.every_day = self.unit == "DAILY" and not (
            weekdays or self._month_days or self._year_days or len(self._months) < 12
        )
        self._kept: dict[int, Sequence[int]] = {}

    def period_of(self, day: int) -> int:
        """The number of the period in which a day lies."""
        if self.unit == "WEEKLY":
            return (day + 3 - self._week_start) // 7  # 1970-01-01 was a Thursday
        of = date.fromordinal(day + _EPOCH_ORDINAL)
        return of.year if self.unit == "YEARLY" else of.year * 12 + of.month - 1

    def of_period(self, period: int) -> Sequence[int]:
        """The matching days of a period, in order, counted from 1970-01-01."""
        days = self._kept.get(period)
        if days is None:
            if len(self._kept) >= _PERIODS_KEPT:
                self._kept.clear()
            days = self._kept[period] = self._look(period)
        return days

    def _look(self, period: int) -> Sequence[int]:
        match self.unit:
            case "WEEKLY":
                first = period * 7 - 3 + self._week_start
                return self._matching(range(first, first + 7))
            case "YEARLY":
                months = sorted(self._months)
                return [day for month in months for day in self._of_month(period, month)]
        return self._of_month(period // 12, period % 12 + 1)

    def _of_month(self, year: int, month: int) -> Sequence[int]:
        if month not in self._months:
            return ()
        first, after = _day(year, month), _day(year + month // 12, month % 12 + 1)
        interval = self._interval
        # Of a DAILY rule, only the days in step.
        days = range(first + (self._first_day - first) % interval, after, interval)
        return days if self.every_day else self._matching(days)

    def _matching(self, days: Iterable[int]) -> list[int]:
        return [day for day in days if self._matches(date.fromordinal(day + _EPOCH_ORDINAL))]

    def _matches(self, day: date) -> bool:
        if day.month not in self._months:
            return False
        if self._by_weekday:
            weekday = day.weekday()
            if weekday not in self._weekdays and not self._is_numbered(day, weekday):
                return False
        if self._month_days:
            length = monthrange(day.year, day.month)[1]
            if not _counted_in(self._month_days, day.day, length):
                return False
        if self._year_days:
            length = 365 + isleap(day.year)
            if not _counted_in(self._year_days, _day_of_year(day), length):
                return False
        return not self._weeks or self._in_weeks(day)

    def _is_numbered(self, day: date, weekday: int) -> bool:
        if not self._numbered:
            return False
        if self._in_year:
            number, length = _day_of_year(day), 365 + isleap(day.year)
        else:
            number, length = day.day, monthrange(day.year, day.month)[1]
        from_start, from_end = (number - 1) // 7 + 1, (length - number) // 7 + 1
        return (from_start, weekday) in self._numbered or (-from_end, weekday) in self._numbered

    def _in_weeks(self, day: date) -> bool:
        """Week 1 is the first with four days in the year, which is the year of its fourth day."""
        fourth = self._fourth_of_week(day)
        # 28 December is in the last week of its year.
        last = self._fourth_of_week(date(fourth.year, 12, 28))
        number, weeks = ((_day_of_year(of) - 1) // 7 + 1 for of in (fourth, last))
        return _counted_in(self._weeks, number, weeks)

    def _fourth_of_week(self, day: date) -> date:
        return day + timedelta(days=3 - (day.weekday() - self._week_start) % 7)


def _counted_in(numbers: frozenset[int], number: int, length: int) -> bool:
    """Whether numbers from 1 on, or from -1 at the end, name this one of so many."""
    return number in numbers or number - length - 1 in numbers


def _day_of_year(day: date) -> int:
    return day.toordinal() - date(day.year, 1, 1).toordinal() + 1


def _day(year: int, month: int) -> int:
    return date(year, month, 1).toordinal() - _EPOCH_ORDINAL


class _ByPeriod:
    """DAILY and slower: each period that counts has some days, each day the same times."""

    def __init__(self, parts: RuleParts, start: int) -> None:
        lists = parts.lists
        at = wall_datetime(start)
        self._times = sorted(
            hour * 3600 + minute * 60 + second
            for hour in lists.get("BYHOUR", (at.hour,))
            for minute in lists.get("BYMINUTE", (at.minute,))
            for second in lists.get("BYSECOND", (at.second,))
        )
        self._positions: tuple[int, ...] = lists.get("BYSETPOS", ())
        if parts.frequency == "DAILY" and self._positions:
            self._times = _chosen(self._times, self._positions)
            self._positions = ()
        self._days = _Days(parts, start)
        # Of a DAILY rule, the days themselves know the interval.
        self._interval = 1 if parts.frequency == "DAILY" else parts.interval
        self._first = self._days.period_of(start // DAY_S)
        self._last = self._days.period_of(_LAST_DAY)
        self._chosen: dict[int, list[int]] = {}

    def find(self, wall: int) -> int | None:
        if not self._times:
            return None
        period = self._days.period_of(wall // DAY_S)
        period += (self._first - period) % self._interval
        look = self._in_chosen if self._positions else self._in_days
        while period <= self._last:
            found = look(period, wall)
            if found is not None:
                return found
            period += self._interval
        return None

    def _in_days(self, period: int, wall: int) -> int | None:
        days, times = self._days.of_period(period), self._times
        day, second = divmod(wall, DAY_S)
        index = bisect_left(days, day)
        if index < len(days) and days[index] == day:
            at = bisect_left(times, second)
            if at < len(times):
                return day * DAY_S + times[at]
            index += 1
        return days[index] * DAY_S + times[0] if index < len(days) else None

    def _in_chosen(self, period: int, wall: int) -> int | None:
        chosen = self._chosen.get(period)
        if chosen is None:
            if len(self._chosen) >= _PERIODS_KEPT:
                self._chosen.clear()
            days, times = self._days.of_period(period), self._times
            number = len(times)
            chosen = self._chosen[period] = [
                days[index // number] * DAY_S + times[index % number]
                for index in _chosen(range(len(days) * number), self._positions)
            ]
        index = bisect_left(chosen, wall)
        return chosen[index] if index < len(chosen) else None


def _chosen(items: Sequence[int], positions: Iterable[int]) -> list[int]:
    """The items at positions that count from 1, or from -1 at the end."""
    number = len(items)
    indices = {place - 1 if place > 0 else number + place for place in positions}
    return [items[index] for index in sorted(indices) if 0 <= index < number]


class _BySteps:
    """HOURLY and faster: every so many hours, minutes or seconds that the other parts allow."""

    def __init__(self, parts: RuleParts, start: int) -> None:
        lists = parts.lists
        at = wall_datetime(start)
        self._unit = UNITS[parts.frequency]
        self._interval = parts.interval
        self._origin = start // self._unit
        self._hours = frozenset(lists.get("BYHOUR", range(24)))
        self._minutes = frozenset(lists.get("BYMINUTE", range(60)))
        seconds = lists.get("BYSECOND", range(60) if self._unit == 1 else (at.second,))
        self._seconds = frozenset(seconds)
        # What an hour, a minute or a second that counts consists of.
        self._within = [0]
        if self._unit == 60:
            self._within = sorted(seconds)
        elif self._unit == 3600:
            minutes = lists.get("BYMINUTE", (at.minute,))
            self._within = sorted(minute * 60 + second for minute in minutes for second in seconds)
        self._days = _Days(parts, start)
        # Of the places in a step at which a day may begin, those without any time. It makes a
        # search end that finds nothing.
        self._empty: set[int] = set()

    def find(self, wall: int) -> int | None:
        day, second = divmod(wall, DAY_S)
        while (found := self._allowed(day)) is not None:
            if found != day:
                day, second = found, 0
            if (at := self._in_day(day, second)) is not None:
                return day * DAY_S + at
            day, second = day + 1, 0
        return None

    def _allowed(self, day: int) -> int | None:
        """The first day that is this one or later and may have times."""
        if self._days.every_day:
            return day if day <= _LAST_DAY else None
        period = self._days.period_of(min(day, _LAST_DAY + 1))
        last = self._days.period_of(_LAST_DAY)
        while period <= last:
            days = self._days.of_period(period)
            index = bisect_left(days, day)
            if index < len(days):
                return days[index]
            period += 1
        return None

    def _in_day(self, day: int, second: int) -> int | None:
        """The first time of a day that is this second or later."""
        begins = (day * (DAY_S // self._unit) - self._origin) % self._interval
        if begins in self._empty:
            return None
        found = self._search(begins, second)
        if found is None and second == 0:
            if len(self._empty) >= DAY_S:
                self._empty.clear()
            self._empty.add(begins)
        return found

    def _search(self, begins: int, second: int) -> int | None:
        unit, interval = self._unit, self._interval
        step = second // unit
        while True:
            step += -(begins + step) % interval
            at = step * unit
            if at >= DAY_S:
                return None
            hour, minute = at // 3600, at // 60 % 60
            if hour not in self._hours:
                step = (hour + 1) * 3600 // unit
            elif unit < 3600 and minute not in self._minutes:
                step = (at // 60 + 1) * 60 // unit
            elif unit == 1 and at % 60 not in self._seconds:
                step += 1
            else:
                index = bisect_left(self._within, second - at)
                if index < len(self._within):
                    return at + self._within[index]
                step += 1
