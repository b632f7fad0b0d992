"""`Rule`: a recurrence rule of RFC 5545 on the clocks of a time zone."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, tzinfo
from typing import Any, Final, final

from pyncette.schedule.base import Schedule
from pyncette.schedule.instant import SECOND
from pyncette.schedule.rrule import CompiledRule
from pyncette.schedule.rule_grammar import (
    FIRST_YEAR,
    RuleParts,
    parse_rule,
    wall_datetime,
    wall_second,
)
from pyncette.schedule.wall import next_in_zone
from pyncette.schedule.zone import Offsets, name_of, normalize_timezone, offsets_of, parse_timezone

_START: Final = re.compile(r"[0-9]{8}T[0-9]{6}")
_START_FORM: Final = "%Y%m%dT%H%M%S"

_set = object.__setattr__


@final
class Rule(Schedule):
    """The times that match a recurrence rule (RRULE) on the clocks of a time zone.

    When the clocks change, a rule with FREQ=DAILY or slower does what a cron expression with a
    fixed time does: it runs once at the first instant after a gap for all of its times inside it,
    and in a repeated hour the first time only. A faster one is a rhythm: never in a gap, twice in
    a fold. COUNT counts times on the clock.
    """

    __slots__ = ("_compiled", "_offsets", "_start", "_until", "rule", "timezone", "timezone_name")

    rule: str
    timezone: tzinfo
    timezone_name: str
    _compiled: CompiledRule
    _offsets: Offsets
    _start: int
    _until: int | None

    def __init__(self, rule: str, *, start: datetime, timezone: str | tzinfo | None = None) -> None:
        """Compiles a rule.

        Args:
            rule: The value of an RRULE, such as `FREQ=MONTHLY;BYDAY=MO;BYSETPOS=1`, with or
                without `RRULE:` before it.
            start: Where it begins (DTSTART): it counts intervals and COUNT from here, takes what
                the rule leaves open from here, and has nothing before it. An aware datetime is an
                instant, a naive one a time on the clocks of `timezone`. Fractions of a second are
                cut off.
            timezone: The zone of the rule; if not given, that of `start`, or UTC.

        Raises:
            ValueError: Rule, start or zone is invalid, or the rule never occurs.
            TypeError: A value is of a wrong type.
        """
        parts = parse_rule(rule)
        if not isinstance(start, datetime):
            raise TypeError(f"start is a datetime, not {type(start).__name__}")
        if timezone is None:
            timezone = "UTC" if start.utcoffset() is None else name_of(_zone(start))
        zone = parse_timezone(timezone)
        if start.utcoffset() is not None:
            start = start.astimezone(zone)
        wall = wall_second(start.replace(tzinfo=None, microsecond=0))
        if not FIRST_YEAR <= start.year < 2255:
            raise ValueError(f"The start of a rule must lie from {FIRST_YEAR} to 2254, not {start}")
        compiled = CompiledRule(parts, wall)
        if parts.count is not None:
            compiled.last = compiled.counted(parts.count)
        self._fill(parts, compiled, wall, zone, normalize_timezone(timezone))
        if self.next(-(2**62)) is None:
            raise ValueError(
                f"Recurrence rule {parts.text!r} never occurs: it would never run from "
                f"{wall_datetime(wall)} on"
            )

    @classmethod
    def stored(cls, rule: str, start: str, timezone: str, last: int | None) -> Rule:
        """The rule that was stored.

        Args:
            rule: Its normal form.
            start: The time on the wall, as in 20260131T090000.
            timezone: The name of the zone.
            last: The wall second of the last occurrence, if it has a COUNT.

        Raises:
            ValueError: It is not valid.
            UnreadableHere: The zone is not known here.
        """
        parts, zone = parse_rule(rule), parse_timezone(timezone)
        if _START.fullmatch(start) is None:
            raise ValueError(f"{start[:40]!r} is not a start")
        wall = wall_second(datetime.strptime(start, _START_FORM))  # noqa: DTZ007
        compiled = CompiledRule(parts, wall, last)
        schedule = object.__new__(cls)
        schedule._fill(parts, compiled, wall, zone, normalize_timezone(timezone))
        return schedule

    def _fill(
        self, parts: RuleParts, compiled: CompiledRule, start: int, zone: tzinfo, name: str
    ) -> None:
        until = parts.until
        _set(self, "rule", parts.text)
        _set(self, "timezone", zone)
        _set(self, "timezone_name", name)
        _set(self, "_compiled", compiled)
        _set(self, "_offsets", offsets_of(zone))
        _set(self, "_start", start)
        in_utc = until is not None and until.utc
        _set(self, "_until", until.second * SECOND if until is not None and in_utc else None)

    @property
    def start(self) -> datetime:
        """Where it begins: an aware datetime in its zone."""
        return wall_datetime(self._start).replace(tzinfo=self.timezone)

    def next(self, after: int) -> int | None:
        """The first occurrence strictly after an instant."""
        until = self._until
        if until is not None and after >= until:
            return None
        found = next_in_zone(self._compiled, self._offsets, max(after, self._earliest()))
        return None if found is None or (until is not None and found > until) else found

    def _earliest(self) -> int:
        # No zone is a whole day away from UTC. A search does not look at years before the start.
        return (self._start - 90_000) * SECOND

    def _form(self) -> list[Any]:
        start = wall_datetime(self._start).strftime(_START_FORM)
        last = self._compiled.last if ";COUNT=" in self.rule else None
        return ["rule", self.timezone_name, start, last, self.rule]

    def _identity(self) -> tuple[str, int, str]:
        return self.rule, self._start, self.timezone_name

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rule):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        start = wall_datetime(self._start)
        return f"Rule({self.rule!r}, start={start!r}, timezone={self.timezone_name!r})"

    def __reduce__(self) -> tuple[Callable[..., Rule], tuple[str, str, str, int | None]]:
        _, zone, start, last, rule = self._form()
        return Rule.stored, (rule, start, zone, last)


def _zone(start: datetime) -> tzinfo:
    assert start.tzinfo is not None
    return start.tzinfo
