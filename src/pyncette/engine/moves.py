"""How an instance moves from one group to another: pure rules, a write at a time.

A store changes one record at a time, so a move takes four writes. At every moment exactly one of
the two places holds the instance, and no other place can be due:

===== ========================== ==================== ======================================
step  write                      condition            afterwards the instance is
===== ========================== ==================== ======================================
1     target: an arriving copy   target is absent     at the origin; the copy is never due
2     origin: becomes a mark     origin is as copied  at the target: its copy has been chosen
3     target: the copy is freed  copy is unchanged    at the target, as it was at the origin
4     origin: the mark is gone   mark is unchanged    at the target
===== ========================== ==================== ======================================

The second write decides. The copy says of which version of the origin it was made, and each copy
has an id of its own, which the mark names. So whatever is interrupted, delayed, or done by two
processes at once:

* A copy is chosen only if the origin has not changed since. Nothing that was changed is lost.
* A copy that no mark names, and whose origin has changed, can never be chosen: it is rubbish. So a
  copy that a slow process writes after the instance has moved, run and ended does not run again.
* A mark whose copy is not (or no longer) at the target has done its work, whatever became of the
  instance.

``next_step`` reads two records that were not read at the same instant. Where the order matters, it
asks for one of them to be read again.
"""

from __future__ import annotations

import json
from enum import Enum
from typing import Any, Final, NamedTuple

from pyncette import chance
from pyncette.engine import rules
from pyncette.engine.rules import Wanted
from pyncette.schedule import loads as load_schedule
from pyncette.store import Write
from pyncette.store.record import (
    ABSENT,
    DELETE,
    EARLIEST_INSTANT,
    LATEST_INSTANT,
    Change,
    Put,
    Record,
    State,
    dump_args,
)

_PREFIX: Final = "2 moving "
"""How the progress of a copy and of a mark begins. To a release that does not know it, this is a
record of a later release: it is left alone."""

EXPIRED_FOR: Final = 5_000_000
"""Microseconds after the end of its lease from which a run is moved, as if its worker had died.
Before that, a worker will perhaps take it over."""

_json: Final = json.JSONEncoder(separators=(",", ":")).encode


class Copy(NamedTuple):
    """What an arriving copy says.

    Attributes:
        id: Names this copy.
        origin: The group that it was copied from.
        version, token: Of the record that was copied.
        due_at, state, kept_token, progress: As the record is to be when the copy is freed.
    """

    id: str
    origin: str
    version: int
    token: str | None
    due_at: int | None
    state: str
    kept_token: str | None
    progress: str


class Mark(NamedTuple):
    """What the mark at an origin says.

    Attributes:
        id: The copy that holds the instance now.
        target: The group of that copy.
    """

    id: str
    target: str


def in_transit(record: Record) -> bool:
    """Returns whether a record is a copy or a mark, which no user shall see."""
    return is_transit(record.progress)


def is_transit(progress: str) -> bool:
    """Returns whether a record with this progress is a copy or a mark."""
    return _said_by(progress) is not None


def copy_of(record: Record | None) -> Copy | None:
    """Returns what an arriving copy says; None if the record is none."""
    said = None if record is None else _said_by(record.progress)
    return said if isinstance(said, Copy) else None


def mark_of(record: Record | None) -> Mark | None:
    """Returns what a mark says; None if the record is none."""
    said = None if record is None else _said_by(record.progress)
    return said if isinstance(said, Mark) else None


def _said_by(progress: str) -> Copy | Mark | None:
    """Reads a progress; None if it is none of a copy or a mark, or somebody has edited it."""
    if not progress.startswith(_PREFIX):
        return None
    try:
        kind, *content = json.loads(progress[len(_PREFIX) :])
        said = Copy(*content) if kind == "copy" else Mark(*content) if kind == "mark" else None
    except (ValueError, TypeError, RecursionError):
        return None
    return said if said is not None and _is_sound(said) else None


def _is_sound(said: Copy | Mark) -> bool:
    if isinstance(said, Mark):
        return all(isinstance(text, str) for text in said)
    texts = (said.id, said.origin, said.state, said.progress)
    tokens = (said.token, said.kept_token)
    instants = (said.version, 0 if said.due_at is None else said.due_at)
    return (
        all(isinstance(text, str) for text in texts)
        and all(token is None or isinstance(token, str) for token in tokens)
        and all(
            type(instant) is int and EARLIEST_INSTANT <= instant <= LATEST_INSTANT
            for instant in instants
        )
        and said.state in set(State)
        and not said.progress.startswith(_PREFIX)
    )


def _is_broken(record: Record | None) -> bool:
    """Returns whether a copy or a mark was edited, so that what it stood for is not known."""
    return record is not None and record.progress.startswith(_PREFIX) and not in_transit(record)


def _text(kind: str, content: tuple[Any, ...]) -> str:
    return f"{_PREFIX}{_json([kind, *content])}".replace("\x7f", "\\u007f")


def arriving(record: Record) -> Put:
    """Returns a copy of a record, which is not due."""
    group, _, due_at, version, token, state, attempts, schedule, args, progress = record
    # Whatever ends a run takes its token away.
    kept = None if state == State.RUNNING else token
    copy = Copy(
        f"moving:{chance.new_id(8)}", group, version, token, due_at, str(state), kept, progress
    )
    return Put(None, State.FINISHED, copy.id, attempts, schedule, args, _text("copy", copy))


def freed(record: Record, copy: Copy) -> Put:
    """Returns a copy as the record that it was made of."""
    return Put(
        copy.due_at,
        copy.state,
        copy.kept_token,
        record.unfinished_attempts,
        record.schedule,
        record.args,
        copy.progress,
    )


def as_freed(record: Record) -> Record:
    """Returns the record that a chosen copy stands for."""
    copy = copy_of(record)
    assert copy is not None
    return record_after(record, freed(record, copy), record.version)


def marked(origin: Record, mark: Mark) -> Put:
    """Returns the mark that takes the place of a record.

    It keeps the token: if the answer to the outcome of the last run was lost, its worker still
    recognises that the outcome was written. But a run whose lease has ended loses it.
    """
    token = None if origin.state == State.RUNNING else origin.token
    return Put(None, State.FINISHED, token, 0, "", dump_args({}), _text("mark", mark))


def reserved(target: str) -> Put:
    """Returns a mark for an instance that is created at its new place.

    A process that still creates instances at the old place finds it.
    """
    mark = Mark(f"created:{chance.new_id(8)}", target)
    return Put(None, State.FINISHED, mark.id, 0, "", dump_args({}), _text("mark", mark))


def movable(record: Record, now: int) -> bool:
    """Returns whether a record can be moved: no worker runs it."""
    if record.state != State.RUNNING or rules.failed_under_lease(record):
        return True
    return record.due_at is None or record.due_at <= now - EXPIRED_FOR


class Step(Enum):
    """What to do with a pair of records, if it is not a write."""

    DONE = "done"
    """Nothing is left to do."""

    WAIT = "wait"
    """The instance is running."""

    READ_ORIGIN = "read origin"
    READ_TARGET = "read target"
    """It must be read after the other one."""

    ELSEWHERE = "elsewhere"
    """The target is part of another move, which has to be ended first."""

    BROKEN = "broken"
    """Both places hold the instance, and the one at the origin cannot be read."""


class Pair(NamedTuple):
    """The two places of an instance that moves.

    Attributes:
        key: The name of the instance.
        origin_group, target_group: The places.
        origin, target: What they hold.
        newer: ``origin`` or ``target``: which of them was read later; empty: unknown.
    """

    key: str
    origin_group: str
    target_group: str
    origin: Record | None
    target: Record | None
    newer: str = ""


def next_step(pair: Pair, now: int) -> Write | Step:
    """Returns the next write of a move, or what has to be done instead."""
    key, origin_group, target_group, origin, target, newer = pair
    if _is_broken(origin) or _is_broken(target):
        return Step.BROKEN
    mark, copy = mark_of(origin), copy_of(target)
    if mark is not None:
        if mark.target != target_group:
            return Step.WAIT  # it has just been moved elsewhere
        if copy is not None and copy.id == mark.id:
            return _write(target_group, key, target, freed(_there(target), copy))
        if newer != "target":
            return Step.READ_TARGET
        return _write(origin_group, key, origin, DELETE)
    if origin is None or copy_of(origin) is not None:
        if copy is None or copy.origin != origin_group:
            return Step.DONE
        if newer != "origin":
            return Step.READ_ORIGIN
        return _write(target_group, key, target, DELETE)
    if not movable(origin, now):
        return Step.WAIT
    if target is None:
        return _write(target_group, key, None, arriving(origin))
    if copy is not None:
        if copy.origin != origin_group:
            return Step.ELSEWHERE
        if copy[2:4] == (origin.version, origin.token) and copy.progress == origin.progress:
            return _write(origin_group, key, origin, marked(origin, Mark(copy.id, target_group)))
        if newer != "origin":
            return Step.READ_ORIGIN
        return _write(target_group, key, target, arriving(origin))
    if mark_of(target) is not None:
        return Step.ELSEWHERE
    if newer != "origin":
        return Step.READ_ORIGIN
    return _merged(pair, _there(target), origin, now)


def _merged(pair: Pair, target: Record, origin: Record, now: int) -> Write | Step:
    """Both places hold the instance: a process that knew nothing of the move has scheduled it.

    Its request is granted where the instance is, as if it had been made there.
    """
    try:
        wanted = Wanted(
            load_schedule(origin.schedule),
            origin.args,
            chance.new_id(4),
            (pair.target_group, pair.key),
        )
        change = rules.merged(target, wanted, now)
    except ValueError:
        return Step.BROKEN
    if change is None:
        return Step.WAIT
    if record_after(target, change, target.version) == target:
        return _write(pair.origin_group, pair.key, origin, DELETE)
    return _write(pair.target_group, pair.key, target, change)


def _there(record: Record | None) -> Record:
    assert record is not None
    return record


def _write(group: str, key: str, current: Record | None, change: Change) -> Write:
    if current is None:
        return Write(group, key, change, ABSENT)
    return Write(group, key, change, current.version, current.token)


def record_after(record: Record, change: Put, version: int) -> Record:
    """Returns a record as a write leaves it."""
    due_at, state, token, attempts, schedule, args, progress = change
    return Record(
        record.group, record.key, due_at, version, token, state, attempts, schedule, args, progress
    )
