"""The text in which a schedule is stored: its format version, and what belongs to that.

Version 1 is read by every release: `1 cron Europe/Berlin 0 9 * * *`, `1 every 60000000`,
`1 at 1764000000000000`. Version 2 is JSON: `2 ["between",null,1764000000000000,["every",…]]`.
`1 default 1 every 60000000` is the default of a template, which the instance follows.
A schedule that version 1 can hold is written as that, so that workers of a release before read it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from types import MethodType
from typing import Any

from pyncette.schedule.base import (
    DEPTH_MAX,
    FORMAT_COMBINED,
    TEXT_CHARACTERS_MAX,
    AnyOf,
    Bounded,
    Jittered,
    Schedule,
    Without,
)
from pyncette.schedule.calendar import Calendar
from pyncette.schedule.inherited import INHERITED_MARK, Inherited
from pyncette.schedule.instant import INSTANT_LIMIT, storable
from pyncette.schedule.kinds import FORMAT, At, Cron, Every, set_instant
from pyncette.schedule.rule import Rule
from pyncette.schedule.unreadable import NewerFormat, UnreadableHere

_KINDS = ("cron", "every", "at", "default")
_KINDS_COMBINED = (*_KINDS[:3], "rule", "any", "without", "between", "jitter")
_KIND = re.compile(r"[a-z]{1,20}")

_USUAL_MIN = 10**15
_USUAL_LENGTH = len(f"{FORMAT} at {_USUAL_MIN}")

_new_at: Callable[[], At] = MethodType(object.__new__, At)


def dumps(schedule: Schedule) -> str:
    """The text in which a schedule is stored. Equal schedules have equal texts."""
    # Not `isinstance`, which takes as long as all the rest where the class is abstract.
    try:
        text = schedule._text
    except AttributeError:
        raise TypeError(f"{schedule!r} is not a schedule of this library") from None
    return text()


def loads(text: str) -> Schedule:
    """The schedule that a text of `dumps` stands for. Its calendars are names only, see `bind`.

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
                at = _new_at()
                set_instant(at, instant)
                return at
        return _read(text)
    return _read_and_keep(text)


def _read(text: str) -> Schedule:
    version, _, rest = text.partition(" ")
    try:
        if version == str(FORMAT):
            return _simple(text, rest)
        if version == str(FORMAT_COMBINED):
            return _combined(text, rest)
    except (NewerFormat, _Unreadable):
        raise
    except UnreadableHere as error:
        raise UnreadableHere(f"{error} in {_shown(text)}: this machine does not know it") from None
    except (ValueError, OverflowError, TypeError, RecursionError) as error:
        raise _unreadable(text, str(error)) from None
    if version.isascii() and version.isdecimal() and len(version) <= 4 and int(version) > FORMAT:
        raise NewerFormat(f"A schedule was stored by a newer release: {_shown(text)}")
    raise _unreadable(text)


_read_and_keep = lru_cache(maxsize=8192)(_read)


def _simple(text: str, rest: str) -> Schedule:
    kind, _, value = rest.partition(" ")
    if value and kind not in _KINDS and _KIND.fullmatch(kind):
        raise _unknown_kind(text)
    match kind:
        case "cron":
            zone, _, expression = value.partition(" ")
            return Cron(expression, zone)
        case "every":
            return Every(timedelta(microseconds=_integer(value)))
        case "at":
            return At.of(_integer(value))
        case "default" if not value.startswith(INHERITED_MARK):
            return Inherited(_read(value))
    raise _unreadable(text)


def _integer(text: str) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 20):
        raise ValueError(f"{text[:40]!r} is not a whole number")
    return int(text)


def _combined(text: str, rest: str) -> Schedule:
    if len(text) > TEXT_CHARACTERS_MAX + 100:
        raise _unreadable(text, "it is too long")
    return _schedule(text, json.loads(rest), DEPTH_MAX + 1)


def _schedule(text: str, form: Any, depth: int) -> Schedule:
    if depth < 0:
        raise _unreadable(text, "it is nested too deeply")

    def part(form: Any) -> Schedule:
        return _schedule(text, form, depth - 1)

    match form:
        case ["cron", str(zone), str(expression)]:
            return Cron(expression, zone)
        case ["every", interval, anchor, bool(at_once)]:
            return Every.of(_whole(interval), _whole_or_none(anchor), at_once)
        case ["at", instant]:
            return At.of(_whole(instant))
        case ["rule", str(zone), str(start), last, str(rule)]:
            return Rule.stored(rule, start, zone, _whole_or_none(last))
        case ["any", _, _, *_]:
            return AnyOf([part(member) for member in form[1:]])
        case ["without", [_, *_] as names, inner]:
            return Without(part(inner), [Calendar(name, zone) for name, zone in names])
        case ["between", start, end, inner]:
            bounds = [None if bound is None else storable(_whole(bound)) for bound in (start, end)]
            return Bounded(part(inner), *bounds)
        case ["jitter", jitter, inner] if _whole(jitter) > 0:
            return Jittered(part(inner), jitter)
        case [str(kind), *_] if kind not in _KINDS_COMBINED and _KIND.fullmatch(kind):
            raise _unknown_kind(text)
    raise _unreadable(text)


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r:.40} is not a whole number")
    return value


def _whole_or_none(value: Any) -> int | None:
    return None if value is None else _whole(value)


class _Unreadable(ValueError):  # noqa: N818
    """No worker can read a text; the message is complete."""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:197] + "...")


def _unknown_kind(text: str) -> NewerFormat:
    return NewerFormat(f"A schedule of a kind that is unknown here was stored: {_shown(text)}")


def _unreadable(text: str, reason: str = "") -> _Unreadable:
    reason = f" ({reason[:200]})" if reason else ""
    return _Unreadable(f"Not a stored schedule: {_shown(text)}{reason}")
