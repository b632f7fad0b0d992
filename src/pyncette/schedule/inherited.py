"""The default of a template, as it is stored for an instance that has no schedule of its own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import tzinfo
from typing import final

from pyncette.schedule.base import Schedule
from pyncette.schedule.calendar import Calendar
from pyncette.schedule.kinds import FORMAT

INHERITED_MARK = f"{FORMAT} default "
"""How the text of an inherited schedule begins. The text of the default follows."""

_set = object.__setattr__


@final
class Inherited(Schedule):
    """A default of a template, with the mark that an instance follows it.

    It has the occurrences of the default that it was made of. The template knows whether this is
    still its default.

    Attributes:
        schedule: The default.
        text: What is stored.
    """

    __slots__ = (
        "at_once",
        "calendars",
        "floats",
        "jitter",
        "schedule",
        "text",
        "timezone",
        "timezone_name",
    )

    schedule: Schedule
    text: str
    timezone: tzinfo
    timezone_name: str | None
    at_once: bool
    calendars: tuple[Calendar, ...]
    jitter: int
    floats: bool

    needs_task = True
    inherited = True

    def __init__(self, schedule: Schedule) -> None:
        """Marks a default.

        Raises:
            ValueError: It is marked already.
        """
        if isinstance(schedule, Inherited):
            raise ValueError(f"{schedule!r} is marked already")
        _set(self, "schedule", schedule)
        _set(self, "text", f"{INHERITED_MARK}{schedule._text()}")
        for name in ("timezone", "timezone_name", "at_once", "calendars", "jitter", "floats"):
            _set(self, name, getattr(schedule, name))

    def next(self, after: int) -> int | None:
        """See `Schedule`."""
        return self.schedule.next(after)

    def first(self, now: int) -> int | None:
        """See `Schedule`."""
        return self.schedule.first(now)

    def following(self, planned: int) -> int | None:
        """See `Schedule`."""
        return self.schedule.following(planned)

    def skip(self, planned: int, now: int) -> int | None:
        """See `Schedule`."""
        return self.schedule.skip(planned, now)

    def due(self, planned: int, group: str, key: str) -> int:
        """See `Schedule`."""
        return self.schedule.due(planned, group, key)

    def _text(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Inherited):
            return NotImplemented
        return self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Inherited({self.schedule!r})"

    def __reduce__(self) -> tuple[Callable[..., Inherited], tuple[Schedule]]:
        return Inherited, (self.schedule,)


def own(schedule: Schedule) -> Schedule:
    """The schedule without the mark."""
    return schedule.schedule if isinstance(schedule, Inherited) else schedule
