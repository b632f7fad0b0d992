"""Calendars: days on which a schedule does not run. The record has the name, code the function."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, tzinfo
from typing import Final

from pyncette.schedule.instant import DAY_S, SECOND
from pyncette.schedule.unreadable import UnreadableHere
from pyncette.schedule.zone import Offsets, normalize_timezone, offsets_of, parse_timezone

CalendarFunction = Callable[[date], bool]
"""Says of a day whether it is in the calendar."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,99}")
_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()

_set = object.__setattr__


def check_calendar_name(name: str) -> None:
    """Refuses names that a stored schedule could not hold.

    Raises:
        ValueError: It is not made of 1 to 100 letters, digits and ``. _ / + -``.
        TypeError: It is not a string.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a calendar is a str, not {type(name).__name__}")
    if _NAME.fullmatch(name) is None:
        raise ValueError(
            f"Invalid name of a calendar {name[:100]!r}: it must have 1 to 100 ASCII letters, "
            "digits, '.', '_', '/', '+' or '-', and begin with a letter or a digit"
        )


class Calendar:
    """The name of a set of days, to be subtracted from a schedule: ``schedule - Calendar("x")``.

    Which days these are is said by the function that an app declares with
    ``app.calendar("x")``. Immutable, hashable, equal where name and zone are equal.

    Attributes:
        name: The name.
        timezone_name: The zone in which a day begins and ends; None: that of the schedule.
    """

    __slots__ = ("name", "timezone_name")

    name: str
    timezone_name: str | None

    def __init__(self, name: str, timezone: str | tzinfo | None = None) -> None:
        """Names a calendar.

        Args:
            name: 1 to 100 ASCII letters, digits, ``.``, ``_``, ``/``, ``+`` or ``-``.
            timezone: The zone of its days; the zone of the schedule if not given. An interval and
                a single instant have UTC.

        Raises:
            ValueError: The name or the zone is invalid.
        """
        check_calendar_name(name)
        if timezone is not None:
            parse_timezone(timezone)
        _set(self, "name", name)
        _set(self, "timezone_name", None if timezone is None else normalize_timezone(timezone))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("Calendar is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("Calendar is immutable")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Calendar):
            return NotImplemented
        return (self.name, self.timezone_name) == (other.name, other.timezone_name)

    def __hash__(self) -> int:
        return hash((self.name, self.timezone_name))

    def __repr__(self) -> str:
        zone = "" if self.timezone_name is None else f", {self.timezone_name!r}"
        return f"Calendar({self.name!r}{zone})"

    def __reduce__(self) -> tuple[Callable[..., Calendar], tuple[str, str | None]]:
        return Calendar, (self.name, self.timezone_name)


class Days:
    """The days of a calendar in a time zone."""

    __slots__ = ("_function", "_name", "_offsets")

    def __init__(self, calendar: Calendar, zone: tzinfo, function: CalendarFunction | None) -> None:
        """The days of a calendar.

        Args:
            calendar: The calendar.
            zone: The zone, where the calendar has none of its own.
            function: Says which days; None: not known here.
        """
        if calendar.timezone_name is not None:
            zone = parse_timezone(calendar.timezone_name)
        self._name = calendar.name
        self._offsets: Offsets = offsets_of(zone)
        self._function = function

    def until(self, instant: int) -> int | None:
        """When the calendar's day in which an instant lies may be over; None: it has no such day.

        The day may go on after that where the clocks are changed in it: then ask again.

        Raises:
            UnreadableHere: The function is not known here, or it failed.
        """
        second = instant // SECOND
        offset, end = self._offsets.fixed, None
        if offset is None:
            _, end, offset, _ = self._offsets.period(second)
        day = (second + offset) // DAY_S
        if not self._has(date.fromordinal(max(day + _EPOCH_ORDINAL, 1))):
            return None
        midnight = (day + 1) * DAY_S - offset
        return (midnight if end is None else min(midnight, end)) * SECOND

    def _has(self, day: date) -> bool:
        if self._function is None:
            raise unknown(self._name)
        try:
            answer = self._function(day)
        except Exception as error:
            raise UnreadableHere(
                f"Calendar '{self._name}' failed for {day}: {type(error).__name__}: {error}"
            ) from error
        if answer is not True and answer is not False:
            raise UnreadableHere(
                f"Calendar '{self._name}' answered {answer!r:.100} for {day}: its function must "
                "return True or False"
            )
        return answer


def unknown(name: str) -> UnreadableHere:
    """The error about a calendar that this app has not declared."""
    return UnreadableHere(
        f"Calendar '{name}' is not known here: declare it with @app.calendar({name!r})"
    )
