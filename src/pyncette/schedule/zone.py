"""Time zones: what a specifier means, and where its offset from UTC changes.

Knows the spellings of a zone and turns any `tzinfo` into plain integers: periods of one offset,
found by probing and kept. What a change of offset does to a schedule is decided in schedule.py.
"""

from __future__ import annotations

import difflib
import re
import struct
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import NamedTuple

from pyncette.schedule.unreadable import UnreadableHere

_FIXED_OFFSET = re.compile(
    r"(?:(?P<prefix>UTC|GMT)(?P<sign>[+-]?)|(?P<bare>[+-]))(?P<hours>[0-9]{1,2})"
    r"(?::?(?P<minutes>[0-5][0-9]))?",
    re.IGNORECASE,
)
# `UTC+530` could be 5:30 or 53 hours and nothing: nobody should have to guess.
_AMBIGUOUS_OFFSET = re.compile(r"[^0-9]*[0-9]{3}")

# What the key of a zone may look like, here or on a machine with other tz data.
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,40}(?:/[A-Za-z][A-Za-z0-9_+-]{0,40}){0,3}")

# Files beside the zones whose content differs between machines, or counts leap seconds.
_NOT_A_ZONE = frozenset({"localtime", "posixrules"})

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A day inside what datetime can hold, so that no offset leads out of it.
_EARLIEST = int((datetime(1, 1, 2, tzinfo=UTC) - _EPOCH).total_seconds())
_LATEST = int((datetime(9999, 12, 30, tzinfo=UTC) - _EPOCH).total_seconds())

# No zone of the IANA database changes its offset twice within six days, so probes three days
# apart see every change. Windows of half a year keep the cost of a first look near 60 µs.
_PROBE_BITS = 18
_WINDOW_BITS = 24
_WINDOWS_MAX = 512


def _invalid(specifier: object, reason: str = "") -> ValueError:
    shown = f"Invalid timezone specifier {str(specifier)!r}"
    return ValueError(f"{shown}: {reason}" if reason else shown)


@lru_cache(maxsize=1024)
def _parse(specifier: str) -> tzinfo:
    if specifier in ("UTC", "Etc/UTC"):
        return UTC
    match = _FIXED_OFFSET.fullmatch(specifier)
    if match is not None:
        if _AMBIGUOUS_OFFSET.fullmatch(specifier):
            raise _invalid(specifier)
        offset = timedelta(hours=int(match["hours"]), minutes=int(match["minutes"] or 0))
        if offset >= timedelta(days=1):
            raise _invalid(specifier)
        return timezone(-offset if "-" in (match["sign"], match["bare"]) else offset)

    from zoneinfo import ZoneInfo  # 4 ms that a program of UTC schedules never pays

    if not specifier or specifier in _NOT_A_ZONE or specifier.startswith("right/"):
        raise _invalid(specifier)
    try:
        zone = ZoneInfo(specifier)
    except (LookupError, ValueError, OSError, struct.error):  # the last for a file cut short
        zone = None
    # A file system that ignores case opens the file of another key.
    if zone is not None and _is_key(specifier):
        return zone
    if (key := _other_case(specifier)) not in (None, specifier):
        raise _invalid(specifier, f"did you mean {key!r}?")
    if _KEY.fullmatch(specifier) is None:
        raise _invalid(specifier)
    raise UnreadableHere(str(_invalid(specifier)))


def _is_key(specifier: str) -> bool:
    key = specifier.removeprefix("posix/")
    if key not in _keys():
        _keys.cache_clear()  # the tz data may have been updated since they were listed
    return key in _keys()


def _other_case(specifier: str) -> str | None:
    """The key that differs from a specifier only in case. No two keys do."""
    folded = specifier.casefold()
    return next((key for key in _keys() if key.casefold() == folded), None)


def nearest_timezone(specifier: str | None) -> str | None:
    """The key that looks most like a specifier which names no zone; None if none does."""
    close = difflib.get_close_matches(str(specifier), _keys(), 1, 0.8)
    return close[0] if close else None


@lru_cache(maxsize=1)
def _keys() -> frozenset[str]:
    from zoneinfo import available_timezones

    return frozenset(available_timezones())


def name_of(specifier: str | tzinfo) -> str:
    """A specifier as text: as given, or the name that a time zone object has.

    Raises:
        ValueError: It is an object from which no name can be had.
    """
    if isinstance(specifier, str):
        return specifier
    if not isinstance(specifier, tzinfo):
        raise _invalid(
            specifier, f"it is of type {type(specifier).__name__}, give a name or a tzinfo"
        )
    # `key` is that of zoneinfo and of pendulum, `zone` that of pytz.
    for attribute in ("key", "zone"):
        name = getattr(specifier, attribute, None)
        if isinstance(name, str):
            return name
    # Only an offset that does not depend on the date can be told without one.
    try:
        offset = specifier.utcoffset(None)
    except Exception as error:
        raise _invalid(
            specifier, f"its utcoffset() raised {type(error).__name__}: {error}"
        ) from error
    if offset is None:
        raise _invalid(
            specifier,
            "this object does not tell its name, give the name or a zoneinfo.ZoneInfo",
        )
    if offset % timedelta(minutes=1):
        raise _invalid(specifier, "an offset must be a whole number of minutes")
    if not offset:
        return "UTC"
    minutes = abs(offset) // timedelta(minutes=1)
    return f"UTC{'-' if offset < timedelta() else '+'}{minutes // 60:02}:{minutes % 60:02}"


def normalize_timezone(specifier: str | tzinfo) -> str:
    """The form of a specifier that is stored: as given, without spaces.

    Blanks around it are dropped, blanks inside a name become underscores
    (`America/New York` is `America/New_York`). `utc` and `gmt` become `UTC` and `GMT`. A time
    zone object is stored by its name, or as an offset.

    Raises:
        ValueError: It is an object from which no name can be had.
    """
    name = "_".join(name_of(specifier).split())
    return upper if (upper := name.upper()) in ("UTC", "GMT") else name


def parse_timezone(spec: str | tzinfo) -> tzinfo:
    """The time zone that a specifier names.

    Args:
        spec: An IANA name in its exact case (`Europe/Berlin`; `Etc/GMT+3` keeps its meaning,
            three hours west) or a fixed offset in which `+` is east: `UTC+6`, `GMT+3`, `UTC6`,
            `UTC+5:30`, `UTC+0530`, `+05:30`. `UTC` and `GMT` may be in any case; an offset is
            shorter than a day. Or an object: a zone with a name (`zoneinfo.ZoneInfo`), or one
            with a fixed offset (`datetime.UTC`, `datetime.timezone`).

    Raises:
        UnreadableHere: It is a name, but the tz data of this machine have no zone of that name.
        ValueError: It names no zone. POSIX rules (`EST5EDT,M3.2.0,M11.1.0`) are none.
    """
    name = normalize_timezone(spec)
    try:
        return _parse(name)
    except UnreadableHere:
        raise UnreadableHere(str(_invalid(spec))) from None
    except ValueError as error:
        # A name is shown as it was given, blanks included.
        raise (_invalid(spec) if str(error) == str(_invalid(name)) else error) from None


class Period(NamedTuple):
    """A stretch of time, `start <= instant < end`, with one offset. All in seconds.

    `before` is the offset up to `start`, so that a gap or a fold at `start` shows. It equals
    `offset` where `start` is only the edge of what was looked at; such an edge is at least three
    days away from the instant that was asked for.
    """

    start: int
    end: int
    offset: int
    before: int


class Offsets:
    """The offset of one zone at any instant, as integers.

    `zoneinfo` does not publish its transitions, and converting a wall time through it costs
    more than all the rest of a cron computation. So the offset is probed at fixed distances,
    each change found by bisection, and the resulting periods kept.
    """

    __slots__ = ("_windows", "_zone", "fixed")

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone
        self._windows: dict[int, tuple[Period, ...]] = {}
        # None where the offset may change.
        self.fixed: int | None = self._probe(0) if isinstance(zone, timezone) else None

    def period(self, second: int) -> Period:
        """The period that holds an instant, given in seconds since the epoch, UTC."""
        window = second >> _WINDOW_BITS
        periods = self._windows.get(window)
        if periods is None:
            if len(self._windows) >= _WINDOWS_MAX:
                self._windows.clear()
            periods = self._windows[window] = tuple(self._look(window))
        index = 0
        while second >= periods[index].end:
            index += 1
        return periods[index]

    def _look(self, window: int) -> list[Period]:
        step = 1 << _PROBE_BITS
        first = (window << _WINDOW_BITS) - step
        last = ((window + 1) << _WINDOW_BITS) + step
        periods: list[Period] = []
        start = first
        offset = before = self._probe(first)
        for probe in range(first + step, last + 1, step):
            reached = probe - step
            ahead = self._probe(probe)
            while offset != ahead:
                reached = self._change(reached, probe, offset)
                periods.append(Period(start, reached, offset, before))
                start, before, offset = reached, offset, self._probe(reached)
        periods.append(Period(start, last, offset, before))
        return periods

    def _change(self, low: int, high: int, offset: int) -> int:
        """The first second after `low` whose offset is another one."""
        while high - low > 1:
            middle = (low + high) // 2
            if self._probe(middle) == offset:
                low = middle
            else:
                high = middle
        return high

    def _probe(self, second: int) -> int:
        second = min(max(second, _EARLIEST), _LATEST)
        # Not fromtimestamp(), which refuses negative numbers on some systems.
        offset = (_EPOCH + timedelta(seconds=second)).astimezone(self._zone).utcoffset()
        assert offset is not None
        return offset // timedelta(seconds=1)


@lru_cache(maxsize=1024)
def offsets_of(zone: tzinfo) -> Offsets:
    """The shared `Offsets` of a zone."""
    return Offsets(zone)
