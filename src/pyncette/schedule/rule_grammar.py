"""The grammar of recurrence rules (RRULE of RFC 5545), and which of them are refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from pyncette.schedule.instant import DAY_S

RULE_CHARACTERS_MAX: Final = 1_000
COUNT_MAX: Final = 10_000
INTERVAL_MAX: Final = 100_000
TIMES_MAX: Final = 1_440
"""How many times of a day a rule may list: one for each minute."""

FIRST_YEAR: Final = 1900

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 (a time on the wall)

_FREQUENCIES: Final = ("YEARLY", "MONTHLY", "WEEKLY", "DAILY", "HOURLY", "MINUTELY", "SECONDLY")
_WEEKDAYS: Final = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
_PARTS: Final = (
    "FREQ",
    "INTERVAL",
    "COUNT",
    "UNTIL",
    "WKST",
    "BYMONTH",
    "BYWEEKNO",
    "BYYEARDAY",
    "BYMONTHDAY",
    "BYDAY",
    "BYHOUR",
    "BYMINUTE",
    "BYSECOND",
    "BYSETPOS",
)
UNITS: Final = {"HOURLY": 3600, "MINUTELY": 60, "SECONDLY": 1}
"""Seconds of the unit in which a rule counts that is faster than daily."""

# Of a list: least and greatest value, and whether it may be negative (counted from the end).
_RANGES: Final = {
    "BYMONTH": (1, 12, False),
    "BYWEEKNO": (1, 53, True),
    "BYYEARDAY": (1, 366, True),
    "BYMONTHDAY": (1, 31, True),
    "BYHOUR": (0, 23, False),
    "BYMINUTE": (0, 59, False),
    "BYSECOND": (0, 59, False),
    "BYSETPOS": (1, 366, True),
}
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,6}")
_BYDAY: Final = re.compile(r"(?P<nth>[+-]?[0-9]{1,2})?(?P<day>MO|TU|WE|TH|FR|SA|SU)")
_UNTIL: Final = re.compile(r"[0-9]{8}(?:T[0-9]{6}Z?)?")


class Until(NamedTuple):
    """The end of a rule.

    Attributes:
        second: Seconds since 1970, of an instant or on the wall: the last that may occur.
        utc: Whether it is an instant.
    """

    second: int
    utc: bool


@dataclass(frozen=True, slots=True)
class RuleParts:
    """A rule, read and checked.

    Attributes:
        text: Its normal form.
        frequency: The FREQ.
        interval: The INTERVAL.
        count: The COUNT.
        until: The UNTIL.
        weekdays: The BYDAY, each with its number or 0.
        week_start: The WKST, 0 for Monday.
        lists: The other BY… parts.
    """

    text: str
    frequency: str
    interval: int
    count: int | None
    until: Until | None
    weekdays: tuple[tuple[int, int], ...]
    week_start: int
    lists: dict[str, tuple[int, ...]]


def parse_rule(text: str) -> RuleParts:
    """Reads the value of an RRULE, with or without `RRULE:` before it.

    Raises:
        ValueError: It is not valid, or not supported; the message names the part and the value.
        TypeError: It is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"a recurrence rule is a str, not {type(text).__name__}")
    try:
        if len(text) > RULE_CHARACTERS_MAX:
            raise ValueError(f"longer than {RULE_CHARACTERS_MAX} characters")
        return _parsed(text)
    except ValueError as error:
        shown = text if len(text) <= 100 else text[:97] + "..."
        raise ValueError(f"Invalid recurrence rule {shown!r}: {error}") from None


def _parsed(text: str) -> RuleParts:
    folded = text.strip().upper().removeprefix("RRULE:")
    if not folded.isascii():
        raise ValueError("only ASCII characters are understood")
    if re.search(r"\s|DTSTART|EXDATE|RDATE|EXRULE", folded):
        raise ValueError(
            "give one RRULE and nothing else: DTSTART is the argument start, an RDATE is joined as "
            "in rule | At(…), and days are excluded by rule - Calendar(…)"
        )
    parts: dict[str, str] = {}
    for part in folded.rstrip(";").split(";"):
        name, assigned, value = part.partition("=")
        if not assigned or not value:
            raise ValueError(f"{part!r} is not of the form NAME=VALUE")
        if name not in _PARTS:
            raise ValueError(f"{name!r} is not a part of a rule, known are {', '.join(_PARTS)}")
        if name in parts:
            raise ValueError(f"{name} is given twice")
        parts[name] = value
    frequency = parts.get("FREQ", "")
    if frequency not in _FREQUENCIES:
        raise ValueError(f"FREQ must be one of {', '.join(_FREQUENCIES)}, not {frequency!r}")
    lists = {name: _list(name, parts[name]) for name in _RANGES if name in parts}
    weekdays = _weekdays(parts["BYDAY"]) if "BYDAY" in parts else ()
    interval = _counted("INTERVAL", parts.get("INTERVAL", "1"), INTERVAL_MAX)
    count = _counted("COUNT", parts["COUNT"], COUNT_MAX) if "COUNT" in parts else None
    until = _until(parts["UNTIL"]) if "UNTIL" in parts else None
    week_start = parts.get("WKST", "MO")
    if week_start not in _WEEKDAYS:
        raise ValueError(f"WKST must be one of {', '.join(_WEEKDAYS)}, not {week_start!r}")
    if count is not None and until is not None:
        raise ValueError("COUNT and UNTIL exclude each other")
    _check_combination(frequency, lists, weekdays)
    normal = {name: ",".join(map(str, values)) for name, values in lists.items()}
    normal["FREQ"] = frequency
    if weekdays:
        normal["BYDAY"] = ",".join(f"{nth or ''}{_WEEKDAYS[day]}" for nth, day in weekdays)
    if interval != 1:
        normal["INTERVAL"] = str(interval)
    if week_start != "MO":
        normal["WKST"] = week_start
    if count is not None:
        normal["COUNT"] = str(count)
    if until is not None:
        normal["UNTIL"] = parts["UNTIL"]
    return RuleParts(
        ";".join(f"{name}={normal[name]}" for name in _PARTS if name in normal),
        frequency,
        interval,
        count,
        until,
        weekdays,
        _WEEKDAYS.index(week_start),
        lists,
    )


def _counted(name: str, value: str, greatest: int) -> int:
    if not value.isdecimal() or len(value) > 9 or not 1 <= int(value) <= greatest:
        raise ValueError(f"{name} must be a number from 1 to {greatest:,}, not {value[:40]!r}")
    return int(value)


def _list(name: str, text: str) -> tuple[int, ...]:
    low, high, negative = _RANGES[name]
    values = set()
    for item in text.split(","):
        value = int(item) if _NUMBER.fullmatch(item) else None
        if value is None or not (low <= value <= high or (negative and low <= -value <= high)):
            signs = f" or -{high} to -{low}" if negative else ""
            raise ValueError(f"{name} must be within {low} to {high}{signs}, not {item[:40]!r}")
        values.add(value)
    return tuple(sorted(values))


def _weekdays(text: str) -> tuple[tuple[int, int], ...]:
    values = set()
    for item in text.split(","):
        match = _BYDAY.fullmatch(item)
        nth = 0 if match is None or match["nth"] is None else int(match["nth"])
        if match is None or (match["nth"] is not None and not 1 <= abs(nth) <= 53):
            raise ValueError(
                f"BYDAY must be days such as MO, 2MO (the second) or -1FR (the last), not "
                f"{item[:40]!r}"
            )
        values.add((nth, _WEEKDAYS.index(match["day"])))
    return tuple(sorted(values))


def _until(text: str) -> Until:
    if _UNTIL.fullmatch(text) is None:
        raise ValueError(
            "UNTIL must be like 20261231T225959Z (UTC), 20261231T235959 (on the clock of the "
            f"zone) or 20261231 (this day included), not {text[:40]!r}"
        )
    form = "%Y%m%dT%H%M%S" if "T" in text else "%Y%m%d"
    end = datetime.strptime(text.removesuffix("Z"), form)  # noqa: DTZ007 (made a number below)
    if "T" not in text:
        end += timedelta(days=1, seconds=-1)
    return Until(wall_second(end), text.endswith("Z"))


def _check_combination(
    frequency: str, lists: dict[str, tuple[int, ...]], weekdays: Sequence[tuple[int, int]]
) -> None:
    """Refuses what RFC 5545 forbids, what is read in several ways, and what cannot be bounded."""

    def refuse(name: str, reason: str) -> ValueError:
        return ValueError(f"{name} cannot be combined with FREQ={frequency}: {reason}")

    if "BYWEEKNO" in lists and frequency != "YEARLY":
        raise refuse("BYWEEKNO", "weeks are numbered in a year (FREQ=YEARLY)")
    if "BYWEEKNO" in lists and not weekdays:
        raise ValueError("BYWEEKNO needs BYDAY: say which days of the week")
    if "BYYEARDAY" in lists and frequency in ("MONTHLY", "WEEKLY", "DAILY"):
        raise refuse("BYYEARDAY", "RFC 5545 forbids it")
    if "BYMONTHDAY" in lists and frequency == "WEEKLY":
        raise refuse("BYMONTHDAY", "RFC 5545 forbids it; FREQ=DAILY can have both")
    if any(nth for nth, _ in weekdays):
        if frequency not in ("YEARLY", "MONTHLY"):
            raise refuse("BYDAY with a number", "days are numbered in a month or a year")
        if "BYWEEKNO" in lists:
            raise ValueError("BYDAY with a number cannot be combined with BYWEEKNO")
    if "BYSETPOS" in lists:
        if frequency in UNITS:
            raise refuse(
                "BYSETPOS", "its search could not be bounded; list BYMINUTE or BYSECOND instead"
            )
        if not weekdays and set(lists) == {"BYSETPOS"}:
            raise ValueError("BYSETPOS chooses from other BY… parts, and there are none")
    times = 1
    for name, unit in (("BYHOUR", 3600), ("BYMINUTE", 60), ("BYSECOND", 1)):
        if unit < UNITS.get(frequency, DAY_S):
            times *= len(lists.get(name, ())) or 1
    if times > TIMES_MAX:
        raise ValueError(
            f"BYHOUR, BYMINUTE and BYSECOND name {times:,} times together, at most {TIMES_MAX:,} "
            "are supported: a cron expression or FREQ=MINUTELY says it shorter"
        )


def wall_second(wall: datetime) -> int:
    """A naive datetime as a wall second."""
    return (wall - _EPOCH) // timedelta(seconds=1)


def wall_datetime(second: int) -> datetime:
    """A wall second as a naive datetime."""
    return _EPOCH + timedelta(seconds=second)
