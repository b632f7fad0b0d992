"""`Schedule`, and how schedules combine: `a | b`, `a - Calendar("x")`, `a.between(start, end)`, and
a jitter.

A combination has a normal form, so that equal ones have equal texts: a union has no unions in it
and its members in order, all calendars of an exclusion stand together, bounds are intersected,
and a jitter is outermost.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import blake2b
from typing import Any, Final, NoReturn, Self, final

from pyncette.schedule.calendar import Calendar, CalendarFunction, Days
from pyncette.schedule.instant import (
    INSTANT_FIRST,
    INSTANT_LIMIT,
    MICROSECOND,
    from_microseconds,
    instant_of,
    storable,
)
from pyncette.schedule.unreadable import UnreadableHere

FORMAT_COMBINED: Final = 2
"""The version of the texts that the release before could not read; the part after it is JSON."""

MEMBERS_MAX: Final = 100
TEXT_CHARACTERS_MAX: Final = 10_000
DEPTH_MAX: Final = 10

LOOKS_MAX: Final = 3_660
"""How many excluded days in a row are looked at: ten years of them."""

HORIZON: Final = timedelta(days=50 * 365) // MICROSECOND
"""How far a search passes over excluded days, where occurrences are rare."""

JITTER_MAX: Final = timedelta(days=366)

Resolve = Callable[[str], CalendarFunction]
"""Gives the function of a calendar, by name; raises `UnreadableHere` where there is none."""

_encode: Final = json.JSONEncoder(separators=(",", ":")).encode

_set = object.__setattr__


class Schedule(ABC):
    """A rule for when a record is due. Immutable, hashable, equal where written alike.

    Schedules combine: `a | b` has the occurrences of either, `a - Calendar("name")` those of `a`
    that are not on a day of the calendar, `a.between(start, end)` those from `start` to `end`.

    The engine asks `first` when a record is created, and `following` or `skip` when a run has
    ended; `next` is the rule itself. All take and return microseconds; None means that there is
    no such occurrence before 2255. What has a calendar raises `UnreadableHere` if its function is
    not known here, has failed, or leaves no occurrence for ten years.

    Attributes:
        timezone: The zone in which its times are shown; UTC where none was named.
        timezone_name: The zone as the user wrote it; None where none was named.
        at_once: Whether a record is first due when it is created.
        calendars: The calendars that are named in it.
        jitter: How long an occurrence may wait, in microseconds.
        floats: Whether its occurrences depend on when the record was created.
        inherited: Whether it is the default of a template, see `Inherited`.
        needs_task: Whether the task must be asked what it means: it is inherited, or has calendars.
    """

    __slots__ = ()

    timezone: tzinfo = UTC
    timezone_name: str | None = None
    at_once: bool = False
    calendars: tuple[Calendar, ...] = ()
    jitter: int = 0
    floats: bool = False
    inherited: bool = False
    needs_task: bool = False

    # What the engine asks.

    @abstractmethod
    def next(self, after: int) -> int | None:
        """The first occurrence strictly after an instant."""

    def first(self, now: int) -> int | None:
        """The first occurrence of a record that is created `now`: strictly after it."""
        return self.next(now)

    def following(self, planned: int) -> int | None:
        """The occurrence after the planned one."""
        return self.next(planned)

    def skip(self, planned: int, now: int) -> int | None:
        """The first occurrence after the planned one that lies later than `now`.

        Its cost does not depend on how many are skipped.
        """
        return self.next(max(planned, now))

    def due(self, planned: int, group: str, key: str) -> int:
        """When the planned occurrence of a record is due: at once, or after its jitter."""
        return planned

    def moved_to(self, planned: int) -> Schedule:
        """A single run at another instant; what has several occurrences stays as it is."""
        return self

    # What users ask.

    def next_after(self, instant: datetime) -> datetime | None:
        """The first occurrence strictly after an instant.

        Args:
            instant: An aware datetime; a naive one means local time of the machine.

        Returns:
            An aware datetime in UTC, or None where there is no further occurrence before 2255.

        Raises:
            UnreadableHere: It has a calendar, whose function only the app knows.
        """
        found = self.next(max(instant_of(instant), INSTANT_FIRST))
        return None if found is None else from_microseconds(found)

    def __or__(self, other: Schedule) -> Schedule:
        """The occurrences of either; where both fall together, it is one.

        Raises:
            ValueError: One of them depends on when the record was created, or there are too many.
            TypeError: The other one is not a schedule.
        """
        if not isinstance(other, Schedule):
            raise TypeError(
                f"Only a schedule can be joined to a schedule, not {other!r:.100}"
                + (f": write Cron({other!r:.100})" if isinstance(other, str) else "")
            )
        return AnyOf.of([self, other])

    def __sub__(self, calendar: Calendar) -> Schedule:
        """The occurrences that are not on a day of the calendar.

        Raises:
            ValueError: It is not clear in which zone the days are.
            TypeError: What is subtracted is not a calendar.
        """
        if not isinstance(calendar, Calendar):
            raise TypeError(
                f"Only a Calendar can be subtracted from a schedule, not {calendar!r:.100}"
                + (f": write Calendar({calendar!r:.100})" if isinstance(calendar, str) else "")
            )
        return Without.of(self, [calendar])

    def between(self, start: datetime | None = None, end: datetime | None = None) -> Schedule:
        """The occurrences from `start` to `end`, both included.

        An interval without an anchor is anchored at `start`: this is its first occurrence.

        Args:
            start: An aware datetime (a naive one means local time of the machine); None: no bound.
            end: Likewise.

        Raises:
            ValueError: There is no occurrence between them.
            TypeError: One of them is not a datetime.
        """
        bounds = [None if value is None else storable(instant_of(value)) for value in (start, end)]
        if bounds == [None, None]:
            return self
        return Bounded.of(self, *bounds)

    def with_jitter(self, jitter: timedelta) -> Schedule:
        """Each occurrence waits for a part of `jitter`: a hash of the record and the occurrence.

        The same occurrence of the same record waits the same time on every worker, and after a
        restart. Its planned time stays. It never waits beyond the following occurrence.

        Args:
            jitter: The longest wait; zero for none.

        Raises:
            ValueError: It is negative, or longer than a year.
            TypeError: It is not a timedelta.
        """
        if not isinstance(jitter, timedelta):
            raise TypeError(f"jitter must be a timedelta, not {jitter!r:.100}")
        if not timedelta(0) <= jitter <= JITTER_MAX:
            raise ValueError(f"jitter must be 0 to {JITTER_MAX.days} days, not {jitter!r}")
        return Jittered(self, jitter // MICROSECOND) if jitter >= MICROSECOND else self

    # What combinations ask of their parts.

    def _form(self) -> list[Any]:
        """What is stored of it, as JSON can hold it: its kind, and what belongs to that."""
        raise TypeError(f"{self!r} is not a schedule of this library, so it cannot be stored")

    def _text(self) -> str:
        return f"{FORMAT_COMBINED} {_encode(self._form())}"

    def _anchored(self, start: int) -> Schedule:
        """The same, with occurrences that do not depend on the record."""
        return self

    def _grid(self) -> Schedule:
        """The same without calendars."""
        return self

    def _depth(self) -> int:
        return 0

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")


def bind(schedule: Schedule, resolve: Resolve) -> Schedule:
    """The schedule, with the functions of its calendars.

    Raises:
        UnreadableHere: A calendar is not known.
    """
    if isinstance(schedule, _Combined) and schedule.calendars:
        return schedule._bound(resolve)
    return schedule


class _Combined(Schedule):
    """What is made of other schedules. Its text is its identity."""

    __slots__ = ("_stored", "calendars", "needs_task", "timezone", "timezone_name")

    _stored: str

    def _completed(self, parts: Sequence[Schedule], calendars: Sequence[Calendar] = ()) -> Self:
        """Sets what follows from the parts.

        Raises:
            ValueError: It is too large to be stored.
        """
        if self._depth() > DEPTH_MAX:
            raise ValueError(f"A schedule can be nested {DEPTH_MAX} times, not more: {self!r:.200}")
        named = {part.timezone_name: part.timezone for part in parts if part.timezone_name}
        [(name, zone)] = named.items() if len(named) == 1 else [(None, UTC)]
        _set(self, "timezone", zone)
        _set(self, "timezone_name", name)
        known = {calendar for part in parts for calendar in part.calendars} | {*calendars}
        _set(self, "calendars", tuple(sorted(known, key=repr)))
        _set(self, "needs_task", bool(known))
        _set(self, "_stored", super()._text())
        if len(self._stored) > TEXT_CHARACTERS_MAX:
            raise ValueError(
                f"A schedule may take {TEXT_CHARACTERS_MAX:,} characters when it is stored, not "
                f"{len(self._stored):,}: {self!r:.200}"
            )
        return self

    @abstractmethod
    def _bound(self, resolve: Resolve) -> Schedule:
        """The same, with the functions of its calendars."""

    def _text(self) -> str:
        return self._stored

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self._stored == other._stored

    def __hash__(self) -> int:
        return hash(self._stored)


@final
class AnyOf(_Combined):
    """The occurrences of any of several schedules; where some fall together, it is one.

    Its first occurrence lies after the creation of the record, unless one of the schedules runs
    at once.
    """

    __slots__ = ("_members", "at_once")

    _members: tuple[Schedule, ...]

    def __init__(self, members: Sequence[Schedule]) -> None:
        """Joins two schedules or more; see `of`."""
        _set(self, "_members", tuple(members))
        _set(self, "at_once", any(member.at_once for member in members))
        self._completed(members)

    @classmethod
    def of(cls, schedules: Sequence[Schedule]) -> Schedule:
        """The union of schedules: without the same one twice, in an order that does not vary.

        Raises:
            ValueError: One of them depends on when the record was created or has a jitter, or
                there are too many.
        """
        members: dict[str, Schedule] = {}
        for schedule in schedules:
            for member in schedule._members if isinstance(schedule, AnyOf) else [schedule]:
                if member.jitter:
                    raise ValueError(
                        "A schedule in a union has no jitter of its own: give it to the whole, as "
                        f"in (a | b).with_jitter(…), not to {member!r:.200}"
                    )
                if member.floats:
                    raise ValueError(
                        f"An interval in a union needs an anchor, because {member!r:.200} counts "
                        "from the run before: give it Every(…, anchor=…) or between(start)"
                    )
                members[member._text()] = member
        if len(members) > MEMBERS_MAX:
            raise ValueError(f"A union has at most {MEMBERS_MAX} schedules, not {len(members)}")
        ordered = [members[text] for text in sorted(members)]
        return ordered[0] if len(ordered) == 1 else cls(ordered)

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """The schedules, in the order in which they are stored."""
        return self._members

    def next(self, after: int) -> int | None:
        """The first occurrence of any of them strictly after an instant."""
        return _earliest([member.next(after) for member in self._members])

    def first(self, now: int) -> int | None:
        """The first occurrence after `now`; one that runs at once has it `now`."""
        return _earliest(
            [member.first(now) if member.at_once else member.next(now) for member in self._members]
        )

    def _form(self) -> list[Any]:
        return ["any", *(member._form() for member in self._members)]

    def _grid(self) -> Schedule:
        return AnyOf.of([member._grid() for member in self._members]) if self.calendars else self

    def _bound(self, resolve: Resolve) -> Schedule:
        return AnyOf([bind(member, resolve) for member in self._members])

    def _depth(self) -> int:
        return 1 + max(member._depth() for member in self._members)

    def __repr__(self) -> str:
        return f"({' | '.join(map(repr, self._members))})"

    def __reduce__(self) -> tuple[Callable[..., Schedule], tuple[Sequence[Schedule]]]:
        return AnyOf, (self._members,)


def _earliest(found: Sequence[int | None]) -> int | None:
    return min((instant for instant in found if instant is not None), default=None)


@final
class Without(_Combined):
    """The occurrences of a schedule that are not on a day of some calendars.

    A day is excluded where the clocks of the calendar's zone show it at the occurrence.
    """

    __slots__ = ("_days", "_inner", "_names", "at_once", "floats")

    _inner: Schedule
    _names: tuple[Calendar, ...]
    _days: tuple[Days, ...]

    def __init__(
        self, inner: Schedule, calendars: Sequence[Calendar], resolve: Resolve | None = None
    ) -> None:
        """Excludes the days of calendars; see `of`."""
        _set(self, "_inner", inner)
        _set(self, "_names", tuple(calendars))
        _set(self, "at_once", inner.at_once)
        _set(self, "floats", inner.floats)
        days = (
            Days(calendar, inner.timezone, None if resolve is None else resolve(calendar.name))
            for calendar in calendars
        )
        _set(self, "_days", tuple(days))
        self._completed([inner], calendars)

    @classmethod
    def of(cls, schedule: Schedule, calendars: Sequence[Calendar]) -> Schedule:
        """A schedule without the days of calendars.

        Raises:
            ValueError: Its parts have several zones, and a calendar has none.
        """
        if isinstance(schedule, Jittered):
            return Jittered(cls.of(schedule._inner, calendars), schedule.jitter)
        if isinstance(schedule, Without):
            calendars = [*schedule._names, *calendars]
            schedule = schedule._inner
        zones = sorted(_zones(schedule))
        for calendar in calendars:
            if len(zones) > 1 and calendar.timezone_name is None:
                raise ValueError(
                    f"The schedule has several time zones ({', '.join(zones)}): say in which one "
                    f"the days are, as in Calendar({calendar.name!r}, {zones[0]!r})"
                )
        return cls(schedule, sorted({*calendars}, key=repr))

    @property
    def schedule(self) -> Schedule:
        """The schedule from which the days are taken."""
        return self._inner

    def next(self, after: int) -> int | None:
        """The first occurrence strictly after an instant."""
        return self._admitted(self._inner.next(after))

    def first(self, now: int) -> int | None:
        """The first occurrence of a record that is created `now`."""
        return self._admitted(self._inner.first(now))

    def following(self, planned: int) -> int | None:
        """The occurrence after the planned one."""
        return self._admitted(self._inner.following(planned))

    def skip(self, planned: int, now: int) -> int | None:
        """The first occurrence after the planned one that lies later than `now`."""
        return self._admitted(self._inner.skip(planned, now))

    def _admitted(self, found: int | None) -> int | None:
        """The occurrence, or the first one after it that is not excluded. Goes day by day."""
        begun, looks = found, 0
        while found is not None and begun is not None:
            over = self._excluded_until(found)
            if over is None:
                return found
            looks += 1
            if looks > LOOKS_MAX or found - begun > HORIZON:
                names = ", ".join(repr(calendar.name) for calendar in self._names)
                raise UnreadableHere(
                    f"The schedule would never run: {names} exclude all its occurrences from "
                    f"{from_microseconds(begun):%Y-%m-%d} to {from_microseconds(found):%Y-%m-%d}"
                )
            found = self._inner.skip(found, over - 1)
        return None

    def _excluded_until(self, instant: int) -> int | None:
        for days in self._days:
            if (over := days.until(instant)) is not None:
                return over
        return None

    def _form(self) -> list[Any]:
        names = [[name.name, name.timezone_name] for name in self._names]
        return ["without", names, self._inner._form()]

    def _anchored(self, start: int) -> Schedule:
        return Without(self._inner._anchored(start), self._names)

    def _grid(self) -> Schedule:
        return self._inner._grid()

    def _bound(self, resolve: Resolve) -> Schedule:
        return Without(bind(self._inner, resolve), self._names, resolve)

    def _depth(self) -> int:
        return 1 + self._inner._depth()

    def __repr__(self) -> str:
        return f"({' - '.join([repr(self._inner), *map(repr, self._names)])})"

    def __reduce__(self) -> tuple[Callable[..., Schedule], tuple[Schedule, Sequence[Calendar]]]:
        return Without, (self._inner, self._names)


def _zones(schedule: Schedule) -> set[str]:
    """The names of the zones in a schedule."""
    if isinstance(schedule, AnyOf):
        return {zone for member in schedule.schedules for zone in _zones(member)}
    if isinstance(schedule, (Without, Bounded)):
        return _zones(schedule.schedule)
    return {schedule.timezone_name} if schedule.timezone_name else set()


@final
class Bounded(_Combined):
    """The occurrences of a schedule from an instant to another one, both included."""

    __slots__ = ("_end", "_inner", "_start", "at_once", "floats")

    _inner: Schedule
    _start: int | None
    _end: int | None

    def __init__(self, inner: Schedule, start: int | None, end: int | None) -> None:
        """Bounds a schedule; see `of`."""
        _set(self, "_inner", inner)
        _set(self, "_start", start)
        _set(self, "_end", end)
        _set(self, "at_once", inner.at_once)
        _set(self, "floats", inner.floats)
        self._completed([inner])

    @classmethod
    def of(cls, schedule: Schedule, start: int | None, end: int | None) -> Schedule:
        """A schedule between bounds.

        Raises:
            ValueError: It has no occurrence there.
        """
        if isinstance(schedule, Jittered):
            return Jittered(cls.of(schedule._inner, start, end), schedule.jitter)
        given = " to ".join(
            "…" if bound is None else from_microseconds(bound).isoformat() for bound in (start, end)
        )
        if isinstance(schedule, Bounded):
            start = max((b for b in (start, schedule._start) if b is not None), default=None)
            end = min((b for b in (end, schedule._end) if b is not None), default=None)
            schedule = schedule._inner
        if start is not None:
            schedule = schedule._anchored(start)
        if not schedule.floats:
            since = INSTANT_FIRST if start is None else start - 1
            found = schedule._grid().next(since)
            if found is None or (end is not None and found > end):
                raise ValueError(
                    f"The schedule would never run: {schedule!r:.200} has no occurrence between "
                    f"the bounds ({given})"
                )
        return cls(schedule, start, end)

    @property
    def schedule(self) -> Schedule:
        """The schedule that is bounded."""
        return self._inner

    @property
    def start(self) -> datetime | None:
        """The instant of the earliest occurrence that there may be, in UTC."""
        return None if self._start is None else from_microseconds(self._start)

    @property
    def end(self) -> datetime | None:
        """The instant of the last occurrence that there may be, in UTC."""
        return None if self._end is None else from_microseconds(self._end)

    def next(self, after: int) -> int | None:
        """The first occurrence strictly after an instant."""
        start = self._start
        if start is not None and after < start:
            after = start - 1
        return self._ended(self._inner.next(after))

    def first(self, now: int) -> int | None:
        """The first occurrence of a record that is created `now`; one at once waits for `start`."""
        start = self._start
        if start is None or now >= start:
            return self._ended(self._inner.first(now))
        return self._ended(
            self._inner.first(start) if self.at_once else self._inner.next(start - 1)
        )

    def following(self, planned: int) -> int | None:
        """The occurrence after the planned one."""
        start = self._start
        if start is not None and planned < start:
            return self.next(planned)
        return self._ended(self._inner.following(planned))

    def skip(self, planned: int, now: int) -> int | None:
        """The first occurrence after the planned one that lies later than `now`."""
        start = self._start
        if start is not None and (planned < start or now < start):
            return self.next(max(planned, now))
        return self._ended(self._inner.skip(planned, now))

    def _ended(self, found: int | None) -> int | None:
        end = self._end
        return found if found is None or end is None or found <= end else None

    def _form(self) -> list[Any]:
        return ["between", self._start, self._end, self._inner._form()]

    def _anchored(self, start: int) -> Schedule:
        return Bounded(self._inner._anchored(start), self._start, self._end)

    def _grid(self) -> Schedule:
        return Bounded(self._inner._grid(), self._start, self._end) if self.calendars else self

    def _bound(self, resolve: Resolve) -> Schedule:
        return Bounded(bind(self._inner, resolve), self._start, self._end)

    def _depth(self) -> int:
        return 1 + self._inner._depth()

    def __repr__(self) -> str:
        return f"{self._inner!r}.between({self.start!r}, {self.end!r})"

    def __reduce__(self) -> tuple[Callable[..., Schedule], tuple[Schedule, int | None, int | None]]:
        return Bounded, (self._inner, self._start, self._end)


@final
class Jittered(_Combined):
    """A schedule whose occurrences wait, each record a time of its own.

    The wait is a hash, spread evenly: no dice. It never changes between releases.
    """

    __slots__ = ("_inner", "_steps", "at_once", "floats", "jitter")

    _inner: Schedule
    _steps: Schedule

    def __init__(self, inner: Schedule, jitter: int) -> None:
        """Adds a jitter in microseconds; it takes the place of an earlier one."""
        if isinstance(inner, Jittered):
            inner = inner._inner
        _set(self, "_inner", inner)
        _set(self, "jitter", jitter)
        _set(self, "at_once", inner.at_once)
        _set(self, "floats", inner.floats)
        _set(self, "_steps", inner._grid())
        self._completed([inner])

    @property
    def schedule(self) -> Schedule:
        """The schedule whose occurrences wait."""
        return self._inner

    def next(self, after: int) -> int | None:
        """The first planned occurrence strictly after an instant."""
        return self._inner.next(after)

    def first(self, now: int) -> int | None:
        """The first planned occurrence of a record that is created `now`."""
        return self._inner.first(now)

    def following(self, planned: int) -> int | None:
        """The planned occurrence after a planned one."""
        return self._inner.following(planned)

    def skip(self, planned: int, now: int) -> int | None:
        """The first planned occurrence after the planned one that lies later than `now`."""
        return self._inner.skip(planned, now)

    def due(self, planned: int, group: str, key: str) -> int:
        """When a planned occurrence of a record is due.

        It never waits until the next occurrence is planned (calendars left aside), so that with
        `fast_forward` none is passed over because another one waited. The partition of a record
        does not matter.
        """
        jitter = self.jitter
        following = self._steps.following(planned)
        if following is not None:
            jitter = min(jitter, following - planned)
        identity = f"{planned}\0{group.partition(':')[0]}\0{key}".encode()
        number = int.from_bytes(blake2b(identity, digest_size=8).digest())
        return min(planned + (number * jitter >> 64), INSTANT_LIMIT - 1)

    def moved_to(self, planned: int) -> Schedule:
        """A single run at another instant; what has several occurrences stays as it is."""
        moved = self._inner.moved_to(planned)
        return self if moved is self._inner else Jittered(moved, self.jitter)

    def _form(self) -> list[Any]:
        return ["jitter", self.jitter, self._inner._form()]

    def _bound(self, resolve: Resolve) -> Schedule:
        return Jittered(bind(self._inner, resolve), self.jitter)

    def _depth(self) -> int:
        return 1 + self._inner._depth()

    def __repr__(self) -> str:
        return f"{self._inner!r}.with_jitter({timedelta(microseconds=self.jitter)!r})"

    def __reduce__(self) -> tuple[Callable[..., Schedule], tuple[Schedule, int]]:
        return Jittered, (self._inner, self.jitter)
