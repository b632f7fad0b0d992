"""When a task runs: `Cron`, `Every`, `At`. Pure time: no clock, no record, no I/O.

Computes occurrences from a schedule and an instant, handles changes of the clocks, and reads and
writes the text in which a schedule is stored. The grammar of cron is in cron.py, zones are in
zone.py; the rules of the engine decide which occurrence a record runs.

Instants inside the engine are microseconds since the epoch, UTC, as `int`. All lie before 2255:
beyond, a double loses microseconds, and some stores keep instants as doubles.
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache

from pyncette.schedule.cron import (
    CompiledCron,
    compile_cron,
    normalize_expression,
    seconds_may_be_first,
)
from pyncette.schedule.instant import from_microseconds, to_microseconds
from pyncette.schedule.unreadable import NewerFormat, UnreadableHere
from pyncette.schedule.zone import (
    Offsets,
    name_of,
    normalize_timezone,
    offsets_of,
    parse_timezone,
)

__all__ = [
    "INSTANT_LIMIT",
    "At",
    "Cron",
    "Every",
    "NewerFormat",
    "Schedule",
    "UnreadableHere",
    "dumps",
    "instant_of",
    "loads",
    "name_of",
    "parse_timezone",
    "seconds_may_be_first",
]

logger = logging.getLogger(__name__)

INSTANT_LIMIT = to_microseconds(datetime(2255, 1, 1, tzinfo=UTC))
"""The first instant that is too late."""

_INSTANT_FIRST = to_microseconds(datetime(1, 1, 1, tzinfo=UTC))

FORMAT = 1
"""The version of the text form that `dumps` writes."""

_KINDS = ("cron", "every", "at")
_KIND = re.compile(r"[a-z]{1,20}")

_MICROSECOND = timedelta(microseconds=1)
_SECOND = 1_000_000
_DAY = 86_400


@lru_cache(maxsize=1)  # said once
def _warn_of_naive() -> None:
    logger.warning(
        "A datetime without a time zone is taken as local time of this machine. Give it one, "
        "for example datetime(2026, 5, 1, 12, tzinfo=UTC). Later ones are not reported."
    )


def instant_of(value: datetime) -> int:
    """A datetime of the user, as the engine counts instants.

    A naive datetime means local time of the machine, and is warned about in the log, once.

    Raises:
        ValueError: It is naive, and the machine cannot tell what it means.
        TypeError: It is no datetime.
    """
    if not isinstance(value, datetime):
        raise TypeError(f"an instant is a datetime, not {type(value).__name__}")
    if value.utcoffset() is None:
        _warn_of_naive()
        try:
            value = value.replace(tzinfo=None).astimezone()
        except (ValueError, OverflowError, OSError) as error:
            raise ValueError(f"{value!r} cannot be taken as local time: {error}") from None
    return to_microseconds(value)


class Schedule(ABC):
    """A rule for when a record is due. Immutable, hashable, equal where written alike.

    The engine asks `first` when a record is created, and `following` or `skip` when a run has
    ended; `next` is the rule itself. All take and return microseconds; None means that there is
    no such occurrence before 2255.

    Attributes:
        timezone: The zone in which its times are shown; UTC for all but cron.
        timezone_name: The zone as the user wrote it; None for all but cron.
    """

    __slots__ = ()

    timezone: tzinfo
    timezone_name: str | None

    @abstractmethod
    def next(self, after: int) -> int | None:
        """The first occurrence strictly after an instant."""

    @abstractmethod
    def first(self, now: int) -> int | None:
        """The first occurrence of a record that is created `now`."""

    @abstractmethod
    def following(self, planned: int) -> int | None:
        """The occurrence after the planned one."""

    @abstractmethod
    def skip(self, planned: int, now: int) -> int | None:
        """The first occurrence after the planned one that lies later than `now`.

        Its cost does not depend on how many are skipped.
        """

    def next_after(self, instant: datetime) -> datetime | None:
        """The first occurrence strictly after an instant.

        Args:
            instant: An aware datetime; a naive one means local time of the machine.

        Returns:
            An aware datetime in UTC, or None where there is no further occurrence before 2255.
        """
        found = self.next(max(instant_of(instant), _INSTANT_FIRST))
        return None if found is None else from_microseconds(found)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")


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
        if after >= INSTANT_LIMIT:
            return None
        second = after // _SECOND + 1
        fixed = self._offsets.fixed
        if fixed is None:
            found = self._next_in_zone(second)
        else:
            found = self._compiled.first_at_or_after(second + fixed)
            if found is not None:
                found -= fixed
        if found is None or (found := found * _SECOND) >= INSTANT_LIMIT:
            return None
        return found

    def _next_in_zone(self, second: int) -> int | None:
        """The first occurrence at `second` or later, period by period of constant offset."""
        compiled = self._compiled
        period_at = self._offsets.period
        fixed_time = compiled.fixed_time
        while True:
            start, end, offset, before = period_at(second)
            wall = second + offset
            if fixed_time and (second == start or wall < start + before):
                # What a gap swallowed belongs to the first instant after it; what a fold
                # repeats has had its turn.
                wall = start + before
            found = compiled.first_at_or_after(wall)
            if found is None:
                return None
            if found < end + offset:
                return max(found - offset, start)
            second = end
            if fixed_time or period_at(end).offset >= offset:
                # Nothing matches before `found`, and no zone is a whole day away from UTC. But
                # a fold shows earlier times again, so a rhythm has to look into each.
                second = max(end, found - _DAY)

    def first(self, now: int) -> int | None:
        """The first occurrence of a record that is made `now`: strictly after it."""
        return self.next(now)

    def following(self, planned: int) -> int | None:
        """The occurrence after the planned one."""
        return self.next(planned)

    def skip(self, planned: int, now: int) -> int | None:
        """The first occurrence after the planned one that lies later than `now`."""
        return self.next(max(planned, now))

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
    """A fixed distance from one occurrence to the next, without drift."""

    __slots__ = ("_interval",)

    _interval: int

    timezone: tzinfo = UTC
    timezone_name: None = None

    def __init__(self, interval: timedelta) -> None:
        """Set the distance.

        Args:
            interval: Longer than zero.

        Raises:
            ValueError: It is not, or reaches beyond 2255 from any instant since 1970.
        """
        if not isinstance(interval, timedelta):
            raise TypeError(f"an interval is a timedelta, not {type(interval).__name__}")
        if interval <= timedelta(0):
            raise ValueError(f"An interval must be longer than zero, not {interval!r}")
        length = interval // _MICROSECOND
        if length >= INSTANT_LIMIT:
            raise ValueError(f"An interval must be shorter than 285 years, not {interval!r}")
        _set(self, "_interval", length)

    @property
    def interval(self) -> timedelta:
        """The distance from one occurrence to the next."""
        return timedelta(microseconds=self._interval)

    def next(self, after: int) -> int | None:
        """One interval after an instant."""
        found = after + self._interval
        return found if found < INSTANT_LIMIT else None

    def first(self, now: int) -> int | None:
        """One interval after the record was made."""
        return self.next(now)

    def following(self, planned: int) -> int | None:
        """One interval after the planned occurrence."""
        return self.next(planned)

    def skip(self, planned: int, now: int) -> int | None:
        """The first of planned + k × interval, k ≥ 1, that lies later than `now`."""
        steps = max((now - planned) // self._interval, 0)
        return self.next(planned + steps * self._interval)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Every):
            return NotImplemented
        return self._interval == other._interval

    def __hash__(self) -> int:
        return hash(("every", self._interval))

    def __repr__(self) -> str:
        return f"Every({self.interval!r})"

    def __reduce__(self) -> tuple[Callable[..., Every], tuple[timedelta]]:
        return Every, (self.interval,)


class At(Schedule):
    """One occurrence, at an instant that may lie in the past."""

    __slots__ = ("_instant",)

    _instant: int

    timezone: tzinfo = UTC
    timezone_name: None = None

    def __init__(self, instant: datetime) -> None:
        """Set the instant.

        Args:
            instant: An aware datetime; a naive one means local time of the machine.

        Raises:
            ValueError: It lies in 2255 or later.
        """
        _set(self, "_instant", _checked(instant_of(instant)))

    @classmethod
    def of(cls, instant: int) -> At:
        """The schedule of an instant in microseconds.

        Raises:
            ValueError: It lies in 2255 or later.
        """
        schedule = object.__new__(cls)
        _set(schedule, "_instant", _checked(instant))
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


def _checked(instant: int) -> int:
    if not _INSTANT_FIRST <= instant < INSTANT_LIMIT:
        raise ValueError("An instant must lie before the year 2255")
    return instant


def dumps(schedule: Schedule) -> str:
    """The text in which a schedule is stored: format version, kind, and what belongs to it.

    For example `1 cron Europe/Berlin 0 9 * * *`, `1 every 60000000`, `1 at 1764000000000000`.
    Equal schedules have equal texts.
    """
    match schedule:
        case Cron():
            return f"{FORMAT} cron {schedule.timezone_name} {schedule.expression}"
        case Every():
            return f"{FORMAT} every {schedule._interval}"
        case At():
            return f"{FORMAT} at {schedule._instant}"
        case _:
            raise TypeError(f"{schedule!r} is not a schedule of this library")


_USUAL_MIN = 10**15
_USUAL_LENGTH = len(f"{FORMAT} at {_USUAL_MIN}")

_set_instant: Callable[[At, int], None] = At.__dict__["_instant"].__set__
"""Sets the slot, in a third of the time of ``_set``."""


def loads(text: str) -> Schedule:
    """The schedule that a text of `dumps` stands for.

    Raises:
        NewerFormat: A newer release wrote it: its format or its kind is unknown here.
        UnreadableHere: The tz data of this machine lack its time zone.
        ValueError: No worker can read it.
    """
    # One-off instants hardly ever repeat, and would drive out what does. Each claimed record is
    # read through here, so the usual form (any instant from 2001 on) goes straight.
    if text.startswith("1 at "):
        if len(text) == _USUAL_LENGTH and text.isascii():
            try:
                instant = int(text[5:])
            except ValueError:
                return _read(text)
            # Sixteen characters are nothing but digits if their number has sixteen digits.
            if _USUAL_MIN <= instant < INSTANT_LIMIT:
                at = object.__new__(At)
                _set_instant(at, instant)
                return at
        return _read(text)
    return _read_and_keep(text)


def _read(text: str) -> Schedule:
    version, _, rest = text.partition(" ")
    if version != str(FORMAT):
        if (
            version.isascii()
            and version.isdecimal()
            and len(version) <= 4
            and int(version) > FORMAT
        ):
            raise NewerFormat(f"A schedule was stored by a newer release: {_shown(text)}")
        raise _unreadable(text)
    kind, _, value = rest.partition(" ")
    if value and kind not in _KINDS and _KIND.fullmatch(kind):
        raise NewerFormat(f"A schedule of a kind that is unknown here was stored: {_shown(text)}")
    try:
        match kind:
            case "cron":
                zone, _, expression = value.partition(" ")
                return Cron(expression, zone)
            case "every":
                return Every(timedelta(microseconds=_integer(value)))
            case "at":
                return At.of(_integer(value))
    except UnreadableHere as error:
        raise UnreadableHere(f"{error} in {_shown(text)}: this machine does not know it") from None
    except (ValueError, OverflowError) as error:
        raise _unreadable(text, str(error)) from None
    raise _unreadable(text)


_read_and_keep = lru_cache(maxsize=8192)(_read)


def _integer(text: str) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 20):
        raise ValueError(f"{text[:40]!r} is not a whole number")
    return int(text)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:197] + "...")


def _unreadable(text: str, reason: str = "") -> ValueError:
    return ValueError(f"Not a stored schedule: {_shown(text)}" + (f" ({reason})" if reason else ""))
