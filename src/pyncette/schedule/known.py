"""The calendars that an app knows: it gives their functions to the schedules that name them."""

from __future__ import annotations

import inspect
from typing import Final

from pyncette.schedule.base import Schedule, bind
from pyncette.schedule.calendar import CalendarFunction, check_calendar_name, unknown

_KEPT_MAX: Final = 8_192


class Calendars:
    """Functions of calendars, by name."""

    def __init__(self) -> None:
        """Knows none."""
        self._functions: dict[str, CalendarFunction] = {}
        self._bound: dict[Schedule, Schedule] = {}

    def declare(self, name: str, function: CalendarFunction) -> None:
        """Adds a calendar.

        Raises:
            ValueError: The name is invalid or taken.
            TypeError: The function cannot be asked for a day.
        """
        check_calendar_name(name)
        if name in self._functions:
            raise ValueError(f"Duplicate calendar '{name}'")
        if not callable(function):
            raise TypeError(
                f"A calendar is a function that takes a date and returns a bool, not {function!r}"
            )
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(
                f"The function of calendar '{name}' must be a plain function that returns True or "
                "False at once: load what it needs before"
            )
        self._functions[name] = function

    def bind(self, schedule: Schedule) -> Schedule:
        """A schedule, with the functions of the calendars that it names.

        Raises:
            UnreadableHere: One of them is not known.
        """
        if not schedule.calendars:
            return schedule
        bound = self._bound.get(schedule)
        if bound is None:
            bound = bind(schedule, self._function)
            if len(self._bound) >= _KEPT_MAX:
                self._bound.clear()
            self._bound[schedule] = bound
        return bound

    def _function(self, name: str) -> CalendarFunction:
        function = self._functions.get(name)
        if function is None:
            raise unknown(name)
        return function


NO_CALENDARS: Final = Calendars()
"""Of what belongs to no app."""
