"""What happens in an open app, as one stream of typed events.

``app.on_event`` registers a handler for them. The log of the runs, the metrics and the traces are
made from these events, and from nothing else.

Every run begins with ``Started`` or ``NotStarted``. A run that has started ends with exactly one of
``Succeeded``, ``Failed`` (or ``TimedOut``), ``SkippedByBody``, ``Postponed`` and ``Cancelled``.
These are told when the body has ended. What follows from that is told when the store has answered:
``Retried``, ``Parked``, ``Paused``, ``GivenUp``, ``LeaseLost`` or ``NotRecorded``. Nothing follows
a success that was recorded.

``Steered`` is told by the app that has made a call which changes what runs, when the store has
answered; that app need not run tasks. All workers notice the pause of a template:
``GroupPaused``, ``GroupResumed``.

All times are aware and in UTC, unless an attribute says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

__all__ = [
    "Action",
    "AttemptEnded",
    "Behind",
    "Cancelled",
    "Claimed",
    "Detail",
    "Event",
    "Failed",
    "GivenUp",
    "GroupPaused",
    "GroupResumed",
    "HistoryLost",
    "InstanceSteered",
    "LeaseLost",
    "LoopAnswered",
    "LoopBlocked",
    "LoopGoesOn",
    "LoopTimeStopped",
    "Missed",
    "NotRecorded",
    "NotStarted",
    "NotStartedAgain",
    "Parked",
    "PassBegan",
    "PassEnded",
    "Paused",
    "Postponed",
    "Retried",
    "RunEvent",
    "SkippedByBody",
    "Started",
    "Steered",
    "StoreCallBegan",
    "StoreCallEnded",
    "StoreDown",
    "StoreUp",
    "Succeeded",
    "TaskEvent",
    "TimedOut",
    "Unreadable",
    "Waiting",
    "WorkerJoined",
    "WorkerLeft",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that has happened.

    Attributes:
        at: When, by the app's clock.
        worker: The name of the worker.
    """

    at: datetime
    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJoined(Event):
    """The loop of a worker starts.

    Attributes:
        tasks: The number of tasks that it runs.
        left_to_others: The number of declared tasks that need tags which it does not have.
    """

    tasks: int
    left_to_others: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLeft(Event):
    """The loop of a worker has ended: it claims nothing more. Runs may still be under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDown(Event):
    """The loop could not reach the store, or the store failed; told at each try.

    Attributes:
        error: The error, in one line.
        exception: The error.
        failures: The number of failures in a row.
        retry_in: When the loop tries again.
    """

    error: str
    exception: Exception
    failures: int
    retry_in: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUp(Event):
    """The store answers again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryLost(Event):
    """Attempts are missing in the run history; told at growing intervals while that goes on.

    Attributes:
        attempts: How many, since it was last told.
        reason: Why, as a clause.
    """

    attempts: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed(Event):
    """A claim has returned records, which will now be run.

    Attributes:
        records: Their number; more than 0.
        took: How long the store took to answer.
    """

    records: int
    took: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail(Event):
    """A step of the engine. A handler gets such events only if it names their class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassBegan(Detail):
    """The loop begins a pass in which it calls the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassEnded(Detail):
    """Such a pass has ended.

    Attributes:
        took: Its duration, by the app's clock.
        exception: What has ended it; None: nothing.
    """

    took: timedelta
    exception: BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Detail):
    """How late a task is; told for each that this worker runs when that changes, once per poll.

    Attributes:
        task: The name of the static task or of the template.
        age: For how long its soonest due record has waited for a worker; 0: none waits.
    """

    task: str
    age: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopAnswered(Detail):
    """The event loop was asked for a sign of life; told twice a second, in a thread of its own.

    Also told while it does not answer, because something blocks it for longer than
    ``block_warning``. Not told without that option.

    Attributes:
        lag: How late it has answered, or how late it is.
    """

    lag: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopBlocked(Detail):
    """Something has blocked the event loop for longer than ``block_warning``, and still does.

    Told in a thread of its own, because the event loop does not run: the handler must be safe
    there. Told again while the same thing goes on blocking, after 10 s and at each doubling. If the
    same task blocks again soon, that is not told; the pause doubles each time, from a minute to an
    hour.

    Attributes:
        lag: For how long it has blocked the event loop until now.
        still: Whether this blocking was told before.
        task: The name of the static task or of the instance whose body blocks; None: it is other
            code.
        what: The same for people, or where the other code is.
        stack: The innermost frames, as in a traceback; at most 12.
    """

    lag: timedelta
    still: bool
    task: str | None
    what: str
    stack: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopGoesOn(Detail):
    """What has blocked the event loop, and was told, has ended. Told in the same thread.

    Attributes:
        lag: For how long it has blocked the event loop.
    """

    lag: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopTimeStopped(Detail):
    """The time of the event loop stands still: a test has frozen it. Told in the same thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCallBegan(Detail):
    """A call of the store begins.

    Attributes:
        operation: The name of the method, see ``pyncette.store.Store``.
    """

    operation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCallEnded(Detail):
    """A call of the store has ended. The handler is called in the same asyncio task.

    Attributes:
        operation: The name of the method.
        took: Its duration, by the app's clock.
        exception: Its error, also if it was cancelled; None: it was answered.
    """

    operation: str
    took: timedelta
    exception: BaseException | None


Action = Literal[
    "schedule",
    "unschedule",
    "sync",
    "pause",
    "resume",
    "trigger",
    "retry",
    "drop",
    "purge",
    "rebalance",
]
"""What a call does: ``sync`` is ``sync_tasks``, ``retry`` and ``drop`` are about parked runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steered(Event):
    """A call of this app has changed what runs; one event for each call.

    Told when the store has answered. A call that has failed, or changed nothing, is not told. Of
    ``schedule_task`` and ``unschedule_task``, only those within ``acting_as`` are told: there may
    be millions, see ``InstanceSteered``. To resume a template is told also if it was not paused.

    Attributes:
        action: What the call does.
        task: The name of the static task or of the template.
        instance: The name of the instance; None: the task is static, or the call was not about one
            instance.
        partition: The number of the partition, if the call was about one.
        label: These as one text for people, without line breaks and terminal codes.
        count: How many static tasks or instances were changed; None: the call changes a template or
            a partition as a whole, as to pause it does.
        failed: How many could not be changed.
        where: Which instances, in words; None: all, or the one that was named.
        until: When the pause ends by itself; None: when it is resumed.
        reason: Why it was paused.
        partition_count: The number of partitions that the template has now, if that was changed.
        by: Who the call was made for, see ``pyncette.acting_as``; None: nobody was named.
        in_transaction: Whether it was made in a transaction of the application, which may still be
            rolled back.
        interrupted: Whether the call has failed after it had changed some of what it was about.
    """

    action: Action
    task: str
    instance: str | None = None
    partition: int | None = None
    label: str
    count: int | None = 1
    failed: int = 0
    where: str | None = None
    until: datetime | None = None
    reason: str | None = None
    partition_count: int | None = None
    by: str | None = None
    in_transaction: bool = False
    interrupted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSteered(Detail):
    """A call of ``schedule_task`` or ``unschedule_task`` has changed an instance.

    Told only to handlers that name this class, when the store has answered. Not told of an instance
    that was left as it is. To remove an instance is told also if there was none.

    Attributes:
        action: What the call does.
        task: The name of the template.
        instance: The name of the instance.
        by: As of ``Steered``; such a call with a name is told as ``Steered`` as well.
        in_transaction: As of ``Steered``.
    """

    action: Action
    task: str
    instance: str
    by: str | None = None
    in_transaction: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPaused(Event):
    """The loop of a worker has noticed that a template or a partition is paused.

    From now on it claims nothing of it. Also told of pauses that a worker finds when it starts.

    Attributes:
        task: The name of the template.
        partition: The number of the partition; None: the whole template.
        label: Both as one text for people.
        until: When the pause ends by itself; None: when it is resumed.
        reason: Why it was paused; None if no reason was given.
        by: Who has paused it; None: nobody was named.
    """

    task: str
    partition: int | None
    label: str
    until: datetime | None
    reason: str | None
    by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResumed(Event):
    """The loop of a worker has noticed that such a pause has ended: it claims again.

    Attributes:
        task: The name of the template.
        partition: The number of the partition; None: the whole template.
        label: Both as one text for people.
    """

    task: str
    partition: int | None
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent(Event):
    """Something about a task.

    Attributes:
        task: The name of the static task or of the template.
        instance: The name of the instance; None: the task is static.
        label: Both as one text for people, without line breaks and terminal codes.
    """

    task: str
    instance: str | None
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind(TaskEvent):
    """A record is behind its schedule, by more than one occurrence, or has caught up.

    Attributes:
        count: About how many of its occurrences are overdue; 0: it has caught up.
        age: By how much the oldest is overdue.
    """

    count: int
    age: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed(TaskEvent):
    """Occurrences are skipped, as the options of the task ask for.

    Attributes:
        count: Their number; 0: the only run of the record was too late.
        grace: They were late by more than this (``misfire_grace``); None: another option.
    """

    count: int
    grace: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable(TaskEvent):
    """The record of a task cannot be read.

    Attributes:
        reason: Why.
        left_for: For how long this worker leaves it to others, which may be able to read it; None:
            no worker can read it, and it is parked.
    """

    reason: str
    left_for: timedelta | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent(TaskEvent):
    """Something about one attempt to run one occurrence.

    Attributes:
        execution_id: The same for all attempts of the occurrence.
        attempt: The number of the attempt; the first one is 1.
        attempts: How many there are at most; None: the task has no ``retry=``.
        planned_at: The planned time of the occurrence, in the task's time zone.
    """

    execution_id: str
    attempt: int
    attempts: int | None
    planned_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(RunEvent):
    """A body starts. The handler is called in the asyncio task of the run.

    Attributes:
        due_at: When the occurrence came due: at its planned time, or after its jitter; or when a
            user asked for it again.
        origin: What the call was that has scheduled the instance, if ``use_opentelemetry`` noted
            it: the identity of a span.
    """

    due_at: datetime
    origin: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotStarted(RunEvent):
    """A body was not started after all: the lease has ended, or the worker is closing.

    Attributes:
        reason: Why, as a clause.
    """

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotStartedAgain(RunEvent):
    """A record gets no further attempt: too many attempts have failed, or ended without an outcome.

    Attributes:
        reason: Why, with the last error.
    """

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded(RunEvent):
    """A body has ended. The handler is called in the asyncio task of the run.

    Attributes:
        started_at: When it started.
        due_at: When the occurrence came due: at its planned time, or after its jitter; or when a
            user asked for it again.
    """

    started_at: datetime
    due_at: datetime

    @property
    def took(self) -> timedelta:
        """How long the body took, its middlewares included."""
        return self.at - self.started_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeeded(AttemptEnded):
    """A body has returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(AttemptEnded):
    """A body has raised an exception.

    Attributes:
        error: The exception, in one line of at most 2,000 characters.
        exception: The exception.
        what_follows: What is done about it, as a clause.
        final: Whether there is no further attempt.
    """

    error: str
    exception: BaseException
    what_follows: str
    final: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOut(Failed):
    """A body did not end within its ``timeout`` and was cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedByBody(AttemptEnded):
    """A body has raised ``Skip``.

    Attributes:
        reason: The exception, in one line.
    """

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Postponed(AttemptEnded):
    """A body has raised ``RetryIn``.

    Attributes:
        delay: How long it is until the next attempt.
        reason: The exception, in one line.
        what_follows: When the next attempt is, as a clause; it may be later than was asked for.
    """

    delay: timedelta
    reason: str
    what_follows: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled(AttemptEnded):
    """A body was cancelled: the worker is closing, the lease is lost, or another task did it.

    Attributes:
        by_worker: Whether the worker has cancelled it.
        reason: Why, or what follows, as a clause.
    """

    by_worker: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried(RunEvent):
    """Another attempt is planned.

    Attributes:
        retry_at: When.
    """

    retry_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked(RunEvent):
    """The record does not run until it is asked for: its last attempt has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused(RunEvent):
    """The record is paused because its last attempt has failed (``Exhausted.PAUSE``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp(RunEvent):
    """The occurrence is given up because its last attempt has failed; the next one is planned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLost(RunEvent):
    """The lease of a run is lost, so that its outcome is not recorded.

    Attributes:
        reason: What became of the record, as a clause.
        by_body: Whether the body itself has replaced or removed its record.
    """

    reason: str
    by_body: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRecorded(RunEvent):
    """The outcome of a run could not be recorded: it may run again when its lease ends.

    Attributes:
        lease_end: When that is.
        error: The error of the store, in one line.
    """

    lease_end: datetime
    error: str
