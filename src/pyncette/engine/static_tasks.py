"""The records of static tasks: created when a worker first starts with the task, and planned anew
when their schedule in code has changed, or when a wrong clock has planned them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from enum import Enum

from pyncette import chance
from pyncette.clock import Clock, from_microseconds
from pyncette.engine import rules
from pyncette.engine.rules import Wanted
from pyncette.errors import describe, printable
from pyncette.model import ExecutionMode
from pyncette.schedule import UnreadableHere, dumps, loads
from pyncette.store import Applied, Failed, Refused, Store, Unknown, Write
from pyncette.store.record import ABSENT, LATEST_INSTANT, Record, State, load_progress
from pyncette.task import Task
from pyncette.when import as_written

logger = logging.getLogger(__name__)


class Correction(Enum):
    """Which records that exist are changed."""

    NONE = "none"
    CLOCK = "clock"
    """Those that were planned for later than their own schedule allows."""
    ALL = "all"
    """These, and those that differ from the declaration in code. Only a worker that starts does
    this. Otherwise two releases that run at the same time would change a record again and again."""


async def ensure_records(
    store: Store, clock: Clock, tasks: Sequence[Task], correction: Correction
) -> list[Write]:
    """Creates the records that are missing, and corrects others.

    If several workers start at once, one of them succeeds; the others see its records.

    Args:
        store: The store of the records.
        clock: The first occurrence follows its current instant.
        tasks: Static tasks.
        correction: Which records that exist are changed.

    Returns:
        The writes that were applied.

    Raises:
        StoreError: The store failed, or an open transaction holds one of the records.
    """
    written: list[Write] = []
    if not tasks:
        return written
    current = await store.get([(task.group, task.key) for task in tasks])
    left = list(zip(tasks, current, strict=True))
    while left:
        now = clock.microseconds()
        writes = [
            (task, write)
            for task, record in left
            if (write := _wanted_if_planned(task, record, correction, now))
        ]
        if not writes:
            break
        results = await store.write([write for _, write in writes], now)
        left = []
        for (task, write), result in zip(writes, results, strict=True):
            match result:
                case Applied():
                    written.append(write)
                case Refused(current=found):
                    left.append((task, found))
                case Failed(error=error) | Unknown(error=error):
                    raise error
    return written


def _wanted_if_planned(
    task: Task, record: Record | None, correction: Correction, now: int
) -> Write | None:
    try:
        return _wanted(task, record, now) if _concerns(task, record, correction) else None
    except UnreadableHere as error:  # a calendar fails
        logger.warning("%s cannot be planned by this worker: %s", printable(task), describe(error))
        return None


def _concerns(task: Task, record: Record | None, correction: Correction) -> bool:
    if record is None or correction is Correction.ALL:
        return True
    return (
        correction is Correction.CLOCK
        and record.state != State.PARKED
        and record.schedule == dumps(task.plan)
    )


def _wanted(task: Task, record: Record | None, now: int) -> Write | None:
    if record is None:
        wanted = Wanted(task.plan, "", chance.new_id(4), (task.group, task.key))
        return Write(task.group, task.key, rules.created(wanted, now), ABSENT)
    at_most_once = task.execution_mode is ExecutionMode.AT_MOST_ONCE
    try:
        change = rules.replanned(record, task.plan, now, at_most_once, task.lease)
        left_ahead = at_most_once and change is None and rules.replanned(record, task.plan, now)
    except UnreadableHere as error:
        logger.warning("The schedule of %s is left as it is: %s", printable(task), describe(error))
        return None
    if record.state == State.PARKED and (change is None or change.state == State.PARKED):
        logger.warning(
            "%s is parked and does not run: retry_parked() runs it again, drop_parked() or a start "
            "with a changed schedule continue without",
            printable(task),
        )
    if left_ahead:
        logger.warning(
            "%s is at most once, and was planned for %s by a clock that was ahead: until then it "
            "does not run, since it may have run already what would be planned now. trigger() "
            "runs it once, a start with a changed schedule plans it from now on",
            printable(task),
            _shown(load_progress(record.progress).planned),
        )
    if change is None:
        return None
    if record.state == State.RUNNING and change.due_at != record.due_at:
        logger.warning(
            "The lease of %s would end at %s, by a clock that was ahead: it ends at %s",
            printable(task),
            _shown(record.due_at),
            _shown(change.due_at),
        )
    same = printable(record.schedule) == dumps(task.plan)
    planned = printable(as_written(task.plan))
    if record.state == State.PARKED and change.state != State.PARKED:
        logger.warning("%s was parked and is planned anew: '%s'", printable(task), planned)
    elif same and record.state != State.RUNNING:
        logger.warning(
            "%s was planned for later than its schedule '%s' allows, by a clock that was ahead: "
            "it is planned anew",
            printable(task),
            planned,
        )
    elif not same:
        logger.info(
            "Schedule of %s: '%s' becomes '%s'",
            printable(task),
            _in_words(record.schedule),
            planned,
        )
    return Write(task.group, task.key, change, record.version)


def _shown(instant: int | None) -> str:
    return (
        "never" if instant is None else from_microseconds(min(instant, LATEST_INSTANT)).isoformat()
    )


def _in_words(text: str) -> str:
    try:
        return printable(as_written(loads(text)))
    except ValueError:
        return printable(text)
