"""Converts rows of release 1.x to records: pure functions, one row at a time.

Knows the names, texts and instants of 1.x, from whichever store they were read. Each store has a
reader in this package; ``pyncette.migrate.copying`` writes the records.

A row that cannot be read is never dropped. If it has a name, it is copied as a parked record, with
the reason and the whole text that 1.x has stored. Else it stays in its place, and is reported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import lru_cache
from typing import Any, Final, NamedTuple

from pyncette import chance
from pyncette.clock import to_microseconds
from pyncette.engine.rules import UNKNOWN_SCHEDULE
from pyncette.schedule import At, Cron, Every, dumps
from pyncette.store import Identity, Write
from pyncette.store.record import (
    ABSENT,
    EARLIEST_INSTANT,
    LATEST_INSTANT,
    STATIC_GROUP,
    Progress,
    Put,
    State,
    check_identity,
    dump_args,
    dump_progress,
    group_of,
)

PARKED_SCHEDULE: Final = "1.x"
"""The beginning of an unreadable record's schedule; the text that 1.x has stored follows."""

NOBODY: Final = "1.x:0"
"""The end of the token of a lease from 1.x; no worker of this release creates such a token."""

_HOLDER_CHARACTERS_MAX: Final = 200

# An odd number of colons: doubling gives an even one.
_ODD_COLONS: Final = re.compile(r"(?<!:)(?:::)*:(?!:)")
_PARTITION: Final = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)


class Parent(Enum):
    """Stands for the name of the parent."""

    UNKNOWN = "unknown"
    """The store does not have it: it follows from the name and the text of the row."""


class LegacyRow(NamedTuple):
    """The row of one task in a store of 1.x, as it was read: any field may have any value.

    Attributes:
        name: The canonical name.
        parent: The name of the template, or of its partition; None for static tasks.
        execute_after: The planned instant: a datetime, ISO text, or seconds since the epoch. None
            if the task is done.
        locked_until: The end of its lease, likewise.
        locked_by: The worker that has, or had, the lease.
        task_spec: Schedule and arguments as JSON text; None for static tasks.
    """

    name: object
    parent: object
    execute_after: object
    locked_until: object
    locked_by: object
    task_spec: object


class Taken(NamedTuple):
    """A record that is to be written.

    Attributes:
        label: The canonical name of its template or partition; empty for static tasks.
        write: The record.
        leased_until: The end of its lease, if it is leased.
        reason: Why it is parked, if it is.
    """

    label: str
    write: Write
    leased_until: int | None
    reason: str | None


class Done(NamedTuple):
    """Nothing is left to run, so nothing is copied.

    For a static task, the first worker creates a new record.
    """

    label: str


class LeftBehind(NamedTuple):
    """A row without a name that could be its key: it is not copied.

    Attributes:
        name: The value in the place of the name, made printable.
        reason: The defect.
    """

    name: str
    reason: str


class _Unreadable(ValueError):  # noqa: N818 - a state of the row
    """A field has a value that 1.x does not write; the text names the field and the defect."""


def taken_over(row: LegacyRow, now: int) -> Taken | Done | LeftBehind:
    """Converts a row.

    Args:
        row: The row of 1.x.
        now: Leases that end later are copied.
    """
    spec: Mapping[str, Any] | None = None
    reason: str | None = None
    try:
        spec = _spec(row.task_spec)
    except _Unreadable as error:
        reason = str(error)
    try:
        label, identity = _identity(row, spec)
    except ValueError as error:
        return LeftBehind(_shown(row.name), str(error))
    if row.execute_after is None:
        return Done(label)
    planned = None
    try:
        planned = _instant("execute_after", row.execute_after)
        locked = None
        if row.locked_until is not None:
            locked = _instant("locked_until", row.locked_until)
        if identity[0] == STATIC_GROUP:
            schedule, args = UNKNOWN_SCHEDULE, ""
        elif reason is not None:
            raise _Unreadable(reason)
        elif spec is None:
            raise _Unreadable("task_spec is missing")
        else:
            schedule, args = _plan(spec), _args(spec)
    except _Unreadable as error:
        change = _parked(row, identity, spec, planned, str(error))
        return Taken(label, Write(*identity, change, ABSENT), None, str(error))
    progress = dump_progress(Progress(planned, chance.new_id(4)))
    if locked is not None and locked > now:
        token = f"{_holder(row.locked_by)}:{NOBODY}"
        change = Put(locked, State.RUNNING, token, 1, schedule, args, progress)
        return Taken(label, Write(*identity, change, ABSENT), locked, None)
    change = Put(planned, State.SCHEDULED, None, 0, schedule, args, progress)
    return Taken(label, Write(*identity, change, ABSENT), None, None)


def _parked(
    row: LegacyRow,
    identity: Identity,
    spec: Mapping[str, Any] | None,
    planned: int | None,
    reason: str,
) -> Put:
    """The parked record: the readable part, the reason, and the text that 1.x has stored."""
    schedule, args = UNKNOWN_SCHEDULE, ""
    if identity[0] != STATIC_GROUP:
        schedule = f"{PARKED_SCHEDULE} {_ascii(row.task_spec)}"
        args = dump_args({})
        # Unreadable arguments are part of the text in the schedule.
        with suppress(_Unreadable):
            args = _args(spec or {})
    progress = Progress(planned, chance.new_id(4), error=f"taken over from 1.x: {reason}")
    return Put(None, State.PARKED, None, 0, schedule, args, dump_progress(progress))


# Names: template[:partition]:instance, with every colon within a part doubled.


def _identity(row: LegacyRow, spec: Mapping[str, Any] | None) -> tuple[str, Identity]:
    """The label, the group and the key of a row.

    Raises:
        ValueError: The row has no valid name.
    """
    name, parent = row.name, row.parent
    if not isinstance(name, str):
        raise ValueError(f"its name is {type(name).__name__}, not text")
    if parent is Parent.UNKNOWN:
        parent = None if row.task_spec is None else _parent_of(name, spec)
    if parent is None:
        key = undoubled(name)
        check_identity(STATIC_GROUP, key, "the name of a static task")
        return "", (STATIC_GROUP, key)
    if not isinstance(parent, str):
        raise ValueError(f"its parent_name is {type(parent).__name__}, not text")
    if not name.startswith(f"{parent}:"):
        raise ValueError(f"it does not begin with its parent_name {_shown(parent)}")
    group = group_of(*template_of(parent))
    key = undoubled(name[len(parent) + 1 :])
    check_identity(group, key, "the name of an instance")
    return parent, (group, key)


def _parent_of(name: str, spec: Mapping[str, Any] | None) -> str:
    """The canonical name of the template, or of its partition.

    The text of an instance contains the instance's own name. If it does not, the last single
    colon divides the name. Three or more colons in a row are ambiguous.
    """
    own = None if spec is None else spec.get("name")
    if isinstance(own, str):
        ending = ":" + own.replace(":", "::")
        if name.endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    divided = list(_ODD_COLONS.finditer(name))
    if not divided or len(divided[-1][0]) != 1:
        raise ValueError("it does not tell template and instance apart")
    return name[: divided[-1].start()]


@lru_cache(maxsize=4096)
def template_of(parent: str) -> tuple[str, int | None]:
    """The template of a canonical name, and the partition if there is one.

    Raises:
        ValueError: No template or partition can have this name.
    """
    if _ODD_COLONS.search(parent) is None:
        template, partition = undoubled(parent), None
    else:
        head, _, number = parent.rpartition(":")
        if _PARTITION.fullmatch(number) is None or _ODD_COLONS.search(head) is not None:
            raise ValueError(f"parent_name {_shown(parent)} names no template and no partition")
        template, partition = undoubled(head), int(number)
    if not template:
        raise ValueError(f"parent_name {_shown(parent)} names no template")
    return template, partition


def undoubled(part: str) -> str:
    """One part of a canonical name as it was before every colon in it was doubled.

    Raises:
        ValueError: A colon in it is not doubled.
    """
    if _ODD_COLONS.search(part) is not None:
        raise ValueError("a ':' in it is not doubled")
    return part.replace("::", ":")


# The values of a row.


def _instant(field: str, value: object) -> int:
    """Microseconds since the epoch. An instant without a time zone is in UTC, as in 1.x."""
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            aware = value if value.utcoffset() is not None else value.replace(tzinfo=UTC)
            instant = to_microseconds(aware)
        elif isinstance(value, float):
            instant = round(value * 1_000_000)
        else:
            raise _Unreadable(f"{field} {_shown(value)} is not an instant")
    except (ValueError, OverflowError):
        raise _Unreadable(f"{field} {_shown(value)} is not an instant") from None
    if not EARLIEST_INSTANT <= instant <= LATEST_INSTANT:
        raise _Unreadable(f"{field} {_shown(value)} is not before the year 2255")
    return instant


def _spec(text: object) -> Mapping[str, Any] | None:
    if text is None:
        return None
    if not isinstance(text, str):
        raise _Unreadable(f"task_spec is {type(text).__name__}, not text")
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Unreadable(f"task_spec {_shown(text)} is not JSON: {error}") from None
    if type(spec) is not dict:
        raise _Unreadable(f"task_spec {_shown(text)} is not an object")
    return spec


def _plan(spec: Mapping[str, Any]) -> str:
    """The text of the schedule. In 1.x a timezone had an effect on cron only."""
    given = {
        option: spec[option]
        for option in ("schedule", "interval", "execute_at")
        if spec.get(option) is not None
    }
    if len(given) != 1:
        raise _Unreadable(
            f"task_spec has {', '.join(given)}: only one can hold"
            if given
            else "task_spec has neither schedule nor interval nor execute_at"
        )
    [(option, value)] = given.items()
    try:
        if option == "schedule":
            zone = spec.get("timezone")
            return _cron(_text(value), "UTC" if zone is None else _text(zone))
        if option == "execute_at":
            return dumps(At.of(_instant(option, _text(value))))
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError("not a number of seconds")
        return dumps(Every(timedelta(seconds=value)))
    except _Unreadable:
        raise
    except (ValueError, OverflowError) as error:
        raise _Unreadable(f"{option} {_shown(value)}: {error}") from None


@lru_cache(maxsize=8192)
def _cron(expression: str, timezone: str) -> str:
    return dumps(Cron(expression, timezone))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is not text")
    return value


def _args(spec: Mapping[str, Any]) -> str:
    args = spec.get("extra_args")
    if args is None:
        return dump_args({})
    if type(args) is not dict:
        raise _Unreadable(f"extra_args {_shown(args)} is not an object")
    return dump_args(args)


def _holder(locked_by: object) -> str:
    """The worker that has the lease, as it is shown."""
    text = "" if locked_by is None else _ascii(locked_by)
    return text[:_HOLDER_CHARACTERS_MAX] or "1.x"


def _ascii(value: object) -> str:
    """A value as text that every store can keep."""
    text = value if isinstance(value, str) else repr(value)
    return text.encode("ascii", "backslashreplace").decode().replace("\0", "\\0")


def _shown(value: object) -> str:
    """A value for a message: printable, and cut off if it is long."""
    text = ascii(value)
    return text if len(text) <= 120 else text[:117] + "..."
