"""The occurrences that follow, found by the very rules that plan them."""

from __future__ import annotations

from datetime import datetime, tzinfo
from typing import Final

from pyncette.clock import from_microseconds
from pyncette.engine import rules
from pyncette.engine.rules import Policy
from pyncette.options import at_least_one
from pyncette.store.record import Delete, Put, Record, State, load_progress
from pyncette.task import Task

UPCOMING_MAX: Final = 1_000


def checked_number(number: int) -> int:
    """How many occurrences a caller wants to see.

    Raises:
        ValueError: It is less than one, or more than 1,000.
        TypeError: It is not a number.
    """
    if at_least_one("n", number) > UPCOMING_MAX:
        raise ValueError(f"n must be at most {UPCOMING_MAX:,}, not {number}")
    return number


def after_current(task: Task, record: Record, policy: Policy, now: int, number: int) -> list[int]:
    """Returns the planned instants after the current occurrence of a record.

    As if the current occurrence succeeded now, and each later one when it is planned. A run that
    was triggered besides is left out.

    Args:
        task: The static task, or the template.
        record: The record.
        policy: The options of the task.
        now: The current instant.
        number: How many at most.

    Raises:
        ValueError: The record cannot be read by this worker.
    """
    found: list[int] = []
    while len(found) < number:
        change = rules.succeeded(task.reading_of(record), policy, now)
        if isinstance(change, Delete):
            break
        if isinstance(change, Put):
            record = record._replace(schedule=change.schedule)
        record = record._replace(progress=change.progress or record.progress)
        progress = load_progress(record.progress)
        if progress.planned is None:
            break
        if progress.triggered is None:
            found.append(progress.planned)
            now = max(now, progress.planned)
    return found


def with_current(task: Task, record: Record, policy: Policy, now: int, number: int) -> list[int]:
    """As ``after_current``; if the record is not running, its current occurrence is the first."""
    if record.state in (State.PARKED, State.FINISHED):
        return []
    progress = load_progress(record.progress)
    planned = progress.planned
    if record.state == State.RUNNING or progress.triggered is not None or planned is None:
        return after_current(task, record, policy, now, number)
    later = after_current(task, record, policy, max(now, planned), number - 1)
    return [planned, *later]


def shown(instants: list[int], zone: tzinfo) -> list[datetime]:
    """The instants as aware datetimes in a zone."""
    return [from_microseconds(instant).astimezone(zone) for instant in instants]
