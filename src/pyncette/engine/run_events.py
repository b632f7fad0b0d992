"""What an event says of a task and of a run."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import TYPE_CHECKING, Final, TypedDict

from pyncette.clock import from_microseconds
from pyncette.engine import rules
from pyncette.errors import printable
from pyncette.events import (
    AttemptEnded,
    Cancelled,
    Failed,
    GivenUp,
    Missed,
    Parked,
    Paused,
    Postponed,
    SkippedByBody,
    Succeeded,
    TimedOut,
)
from pyncette.model import RunOutcome
from pyncette.observers import Here, Reporter
from pyncette.store.record import DELETE, Change, Patch, Reading, Record, State, load_progress
from pyncette.task import Task

if TYPE_CHECKING:
    from pyncette.engine.execution import TaskParts


OUTCOMES: Final[dict[type[AttemptEnded], RunOutcome]] = {
    Succeeded: "succeeded",
    Failed: "failed",
    TimedOut: "timed_out",
    SkippedByBody: "skipped",
    Postponed: "postponed",
    Cancelled: "cancelled",
}
"""How an attempt ended, as the run history and the traces name it."""


class AboutTask(Here):
    """What all events of a task say."""

    task: str
    instance: str | None
    label: str


class AboutRun(AboutTask):
    """What all events of a run say."""

    execution_id: str
    attempt: int
    attempts: int | None
    planned_at: datetime


class Ran(TypedDict):
    """What all events of the end of an attempt say."""

    started_at: datetime
    due_at: datetime


def about_task(here: Here, task: Task, key: str, label: str) -> AboutTask:
    """Returns what an event says of the task of the record with this key."""
    instance = key if task.dynamic else None
    return {**here, "task": task.name, "instance": instance, "label": label}


def label_of(task: Task, record: Record) -> str:
    """Returns the name of the static task, or of the instance, for people."""
    return printable(task.from_record(record) if task.dynamic else task)


def about_run(parts: TaskParts, reading: Reading, label: str | None = None) -> AboutRun:
    """Returns what an event says of a run of a record."""
    here, record = parts.worker.reporter.here(), reading.record
    return {
        **about_task(here, parts.task, record.key, label or label_of(parts.task, record)),
        "execution_id": execution_id(parts.task, reading),
        "attempt": rules.attempt_of(reading),
        "attempts": None if parts.retry is None else parts.retry.attempts,
        "planned_at": planned_at(reading),
    }


def planned_at(reading: Reading) -> datetime:
    """Returns the planned time of the current occurrence, in the task's time zone."""
    instant = from_microseconds(reading.progress.occurrence or 0)
    return instant.astimezone(reading.schedule.timezone)


def execution_id(task: Task, reading: Reading) -> str:
    """The same for all attempts of an occurrence, whatever is done to the record meanwhile."""
    record, _, progress = reading
    instant = progress.planned if progress.triggered is None else f"trigger {progress.triggered}"
    # The group of the template: between two attempts the instance may move to another partition.
    text = "\0".join((task.group, record.key, progress.incarnation, str(instant)))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def tell_missed(
    parts: TaskParts, before: Reading, change: Change, less: int = 0, late: bool = False
) -> None:
    """Tells of the occurrences that a change skips.

    Args:
        parts: The parts of the task.
        before: What the change is made to.
        change: The change.
        less: How many of them are told already.
        late: Whether they are too late for ``misfire_grace``.
    """
    text = None if change is DELETE else getattr(change, "progress", None)
    count = 0 if text is None else load_progress(text).skipped - before.progress.skipped - less
    if count > 0 or late:
        reporter = parts.worker.reporter
        task, record = parts.task, before.record
        about = about_task(reporter.here(), task, record.key, label_of(task, record))
        grace = parts.task.misfire_grace if late else None
        reporter.tell(Missed(**about, count=max(count, 0), grace=grace))


def tell_exhausted(reporter: Reporter, about: AboutRun, change: Change) -> None:
    """Tells what becomes of a record whose occurrence has failed for good."""
    tell = reporter.tell
    state = change.state if isinstance(change, Patch) else None
    match state:
        case State.PARKED:
            tell(Parked(**about))
        case State.PAUSED:
            tell(Paused(**about))
        case _:
            tell(GivenUp(**about))
