"""The schedules that every release can read: `Cron`, `Every`, `At`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from pyncette.schedule.base import Schedule
from pyncette.schedule.cron import CompiledCron, compile_cron, normalize_expression
from pyncette.schedule.instant import (
    DAY_S,
    EPOCH,
    INSTANT_LIMIT,
    MICROSECOND,
    SECOND,
    from_microseconds,
    instant_of,
    storable,
)
from pyncette.schedule.wall import next_in_zone
from pyncette.schedule.zone import Offsets, normalize_timezone, offsets_of, parse_timezone

FORMAT = 1
"""The version of the texts that every release can read."""

_set = object.__setattr__


class Cron(Schedule):
    """The times that match a cron expression on the clocks of a time zone.

    When the clocks go forward, an expression whose minute and hour fields both do not start
    with `*` (*fixed-time*) runs once at the first instant after the gap, for all of its times
    inside it; when they go back, it runs in the repeated hour the first time only. Any other
    expression runs whenever the clock on the wall shows a matching time: never in a gap, twice
    in a fold. (The rule of Debian's cron.)
    """

    __slots__ = ("_compiled", "_offsets", "expression", "timezone", "timezone_name")

    expression: str
    timezone: tzinfo
    timezone_name: str
    _compiled: CompiledCron
    _offsets: Offsets

    def __init__(self, expression: str, timezone: str | tzinfo = "UTC") -> None:
        """Compile an expression.

        Args:
            expression: `minute hour day-of-month month day-of-week`, then if wanted the second,
                then if wanted the year; or an alias such as `@hourly`.
            timezone: An IANA name, a fixed offset or a time zone object, see `parse_timezone`.

        Raises:
            ValueError: Expression or zone is invalid, or the expression never occurs. It is an
                `UnreadableHere` where only this machine does not know the zone.
        """
        expression = normalize_expression(expression)
        # The expression first: where it is wrong, it is wrong on every machine; a zone may only
        # be unknown on this one.
        compiled = compile_cron(expression)
        name = normalize_timezone(timezone)
        zone = parse_timezone(timezone)
        _set(self, "_compiled", compiled)
        _set(self, "_offsets", offsets_of(zone))
        _set(self, "expression", expression)
        _set(self, "timezone", zone)
        _set(self, "timezone_name", name)

    def next(self, after: int) -> int | None:
        """The first occurrence strictly after an instant."""
        return next_in_zone(self._compiled, self._offsets, after)

    def _form(self) -> list[Any]:
        return ["cron", self.timezone_name, self.expression]

    def _text(self) -> str:
        return f"{FORMAT} cron {self.timezone_name} {self.expression}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cron):
            return NotImplemented
        return self.expression == other.expression and self.timezone_name == other.timezone_name

    def __hash__(self) -> int:
        return hash((self.expression, self.timezone_name))

    def __repr__(self) -> str:
        return f"Cron({self.expression!r}, {self.timezone_name!r})"

    def __reduce__(self) -> tuple[Callable[..., Cron], tuple[str, str]]:
        return Cron, (self.expression, self.timezone_name)


class Every(Schedule):
    """A fixed distance from one occurrence to the next, without drift.

    Without an anchor, a record has its first occurrence one interval after it was created. With
    one, all records have theirs at the same instants: the anchor plus or minus whole intervals.
    """

    __slots__ = ("_anchor", "_interval", "at_once", "floats")

    _interval: int
    _anchor: int | None

    def __init__(
        self, interval: timedelta, anchor: datetime | None = None, at_once: bool = False
    ) -> None:
        """Set the distance.

        Args:
            interval: Longer than zero.
            anchor: One of the occurrences, in the past or in the future; a naive datetime means
                local time of the machine. It is no bound: see `between`.
            at_once: A record is first due when it is created, then one interval later, or at the
                occurrences that the anchor gives.

        Raises:
            ValueError: The interval is not longer than zero, or reaches beyond 2255 from any
                instant since 1970; or the anchor lies in 2255 or later.
            TypeError: A value is of a wrong type.
        """
        if not isinstance(interval, timedelta):
            raise TypeError(f"an interval is a timedelta, not {type(interval).__name__}")
        if interval <= timedelta(0):
            raise ValueError(f"An interval must be longer than zero, not {interval!r}")
        length = interval // MICROSECOND
        if length >= INSTANT_LIMIT:
            raise ValueError(f"An interval must be shorter than 285 years, not {interval!r}")
        if not isinstance(at_once, bool):
            raise TypeError(f"at_once is True or False, not {at_once!r:.100}")
        self._fill(length, None if anchor is None else storable(instant_of(anchor)), at_once)

    @classmethod
    def of(cls, interval: int, anchor: int | None, at_once: bool) -> Every:
        """The schedule of an interval, and of an anchor, in microseconds.

        Raises:
            ValueError: See the constructor.
            OverflowError: The interval is absurdly long.
        """
        schedule = Every(timedelta(microseconds=interval), None, at_once)
        schedule._fill(interval, None if anchor is None else storable(anchor), at_once)
        return schedule

    def _fill(self, interval: int, anchor: int | None, at_once: bool) -> None:
        _set(self, "_interval", interval)
        _set(self, "_anchor", None if anchor is None else anchor % interval)
        _set(self, "at_once", at_once)
        _set(self, "floats", anchor is None)

    @property
    def interval(self) -> timedelta:
        """The distance from one occurrence to the next."""
        return timedelta(microseconds=self._interval)

    @property
    def anchor(self) -> datetime | None:
        """The first occurrence since 1970, in UTC; None: it depends on the record."""
        return None if self._anchor is None else from_microseconds(self._anchor)

    def next(self, after: int) -> int | None:
        """One interval after an instant; with an anchor, the first occurrence after it."""
        found = after + self._interval
        if self._anchor is not None:
            found -= (after - self._anchor) % self._interval
        return found if found < INSTANT_LIMIT else None

    def first(self, now: int) -> int | None:
        """One interval after the record was made, or as the anchor says; or at once."""
        return now if self.at_once else self.next(now)

    def following(self, planned: int) -> int | None:
        """One interval after the planned occurrence; with an anchor, the first one after it."""
        return self.next(planned)

    def skip(self, planned: int, now: int) -> int | None:
        """The first of planned + k × interval, k ≥ 1, that lies later than `now`.

        With an anchor, the first occurrence that lies later than both.
        """
        if self._anchor is not None:
            return self.next(max(planned, now))
        steps = max((now - planned) // self._interval, 0)
        return self.next(planned + steps * self._interval)

    def _form(self) -> list[Any]:
        return ["every", self._interval, self._anchor, self.at_once]

    def _text(self) -> str:
        if self._anchor is None and not self.at_once:
            return f"{FORMAT} every {self._interval}"
        return super()._text()

    def _anchored(self, start: int) -> Schedule:
        return self if self._anchor is not None else Every.of(self._interval, start, self.at_once)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Every):
            return NotImplemented
        return self._form() == other._form()

    def __hash__(self) -> int:
        return hash(("every", self._interval, self._anchor, self.at_once))

    def __repr__(self) -> str:
        anchor = "" if self._anchor is None else f", anchor={self.anchor!r}"
        return f"Every({self.interval!r}{anchor}{', at_once=True' if self.at_once else ''})"

    def __reduce__(self) -> tuple[Callable[..., Every], tuple[timedelta, datetime | None, bool]]:
        return Every, (self.interval, self.anchor, self.at_once)


class At(Schedule):
    """One occurrence, at an instant that may lie in the past."""

    __slots__ = ("_instant",)

    _instant: int

    def __init__(self, instant: datetime) -> None:
        """Set the instant.

        Args:
            instant: An aware datetime; a naive one means local time of the machine.

        Raises:
            ValueError: It lies in 2255 or later.
        """
        if type(instant) is datetime and instant.tzinfo is UTC:  # the usual case
            since = instant - EPOCH
            found = (since.days * DAY_S + since.seconds) * SECOND + since.microseconds
        else:
            found = instant_of(instant)
        set_instant(self, found if 0 <= found < INSTANT_LIMIT else storable(found))

    @classmethod
    def of(cls, instant: int) -> At:
        """The schedule of an instant in microseconds.

        Raises:
            ValueError: It lies in 2255 or later.
        """
        schedule = object.__new__(cls)
        _set(schedule, "_instant", storable(instant))
        return schedule

    @property
    def instant(self) -> datetime:
        """The instant, in UTC."""
        return from_microseconds(self._instant)

    def next(self, after: int) -> int | None:
        """The instant, if it lies later than `after`."""
        return self._instant if self._instant > after else None

    def first(self, now: int) -> int | None:
        """The instant, also when it is past: it is then due at once."""
        return self._instant

    def following(self, planned: int) -> int | None:
        """None: there is no second occurrence."""
        return None

    def skip(self, planned: int, now: int) -> int | None:
        """None: there is no second occurrence."""
        return None

    def moved_to(self, planned: int) -> Schedule:
        """A single run at another instant."""
        return self if planned == self._instant else At.of(planned)

    def _form(self) -> list[Any]:
        return ["at", self._instant]

    def _text(self) -> str:
        return f"{FORMAT} at {self._instant}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, At):
            return NotImplemented
        return self._instant == other._instant

    def __hash__(self) -> int:
        return hash(("at", self._instant))

    def __repr__(self) -> str:
        return f"At({self.instant!r})"

    def __reduce__(self) -> tuple[Callable[..., At], tuple[datetime]]:
        return At, (self.instant,)


set_instant: Callable[[At, int], None] = At.__dict__["_instant"].__set__
"""Sets the slot, in a third of the time of `object.__setattr__`."""
