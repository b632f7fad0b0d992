"""One run: from the claimed record to the outcome, which goes into the write queue.

Knows the order of the steps (check the lease, advance first if at most once, create the context,
run the middlewares and the task, write the outcome), and what a refused write means for the run.
``pyncette.engine.rules`` decides what is written.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pyncette import events
from pyncette.body import Handler, call_body, name_of
from pyncette.clock import from_microseconds
from pyncette.engine import rules
from pyncette.engine.failures import Attempt, failure_of
from pyncette.engine.heartbeats import BeatPlan, keeping_plan
from pyncette.engine.rules import Failure, Policy, Verdict
from pyncette.engine.run_events import (
    OUTCOMES,
    AboutRun,
    Ran,
    about_run,
    execution_id,
    planned_at,
    tell_exhausted,
    tell_missed,
)
from pyncette.engine.transaction import Transaction
from pyncette.engine.upcoming import after_current, checked_number, shown
from pyncette.engine.writes import Next, again
from pyncette.errors import LeaseLostException, PyncetteException, describe, printable
from pyncette.logs import log_exception
from pyncette.model import Context, FailureMode, MiddlewareFunc, Outcome, Process, TaskFunc
from pyncette.observers import origin_in
from pyncette.parameters import Parameters
from pyncette.retry import Retry
from pyncette.store import Applied, Failed, Refused, Result, Unknown, Write, write_of
from pyncette.store.record import (
    DELETE,
    Change,
    Reading,
    Record,
    load_progress,
)
from pyncette.task import Task
from pyncette.task_options import TaskOptions

if TYPE_CHECKING:
    from pyncette.engine.worker import Worker

logger = logging.getLogger(__name__)

_ENDS_PROCESS: Final = (GeneratorExit, KeyboardInterrupt, SystemExit)

# Before Python 3.12, to read a member from its class takes as long as a call.
_DONE: Final = Next.DONE


class RunContext(Context):
    """The context of an execution. Attributes that are rarely read are created when first read.

    Each open app has its own subclass, whose attributes are its fixtures and context items.
    """

    _execution: Execution

    def __getattr__(self, name: str) -> Any:
        if name == "args":
            self.args = self._execution.arguments()
            return self.args
        if name == "task":
            self.task = self._execution.task()
            return self.task
        if name == "scheduled_at":
            self.scheduled_at = self._execution.planned_at()
            return self.scheduled_at
        value = _ATTRIBUTES.get(name)
        if value is not None:
            return value(self._execution)
        raise AttributeError(f"The context has no {name!r}: no fixture or item of that name")

    async def heartbeat(self) -> None:
        await self._execution.heartbeat()

    def upcoming(self, n: int = 1) -> list[datetime]:
        return self._execution.upcoming(n)

    def transaction(self, connection: Any = None) -> Transaction:
        return Transaction(self._execution, connection)


def _deadline(execution: Execution) -> datetime | None:
    deadline = None if execution.rare is None else execution.rare.deadline
    return None if deadline is None else from_microseconds(deadline)


# Attributes of the context that are computed each time. A fixture of the same name hides them.
_ATTRIBUTES: Final[dict[str, Callable[[Execution], Any]]] = {
    "attempt": lambda execution: rules.attempt_of(execution.reading),
    "execution_id": lambda execution: execution_id(execution.declared, execution.reading),
    "fencing_token": lambda execution: execution.fencing_token,
    "deadline": _deadline,
    "previous_error": lambda execution: rules.previous_error(execution.reading),
}


@dataclass(frozen=True, slots=True)
class TaskParts:
    """The parts that all executions of a task share.

    Attributes:
        worker: The worker that runs them.
        task: The declared task.
        options: The options of the task from which the other parts were made.
        handler: The middlewares and the function of the task.
        policy: The task's options about outcomes.
        lease: The lease of a claim, in microseconds.
        at_most_once: Whether the record advances before the task starts.
        retry: The task's policy about retries.
        beats: Its automatic heartbeats.
        selective: Whether a record may be claimed and not run: too many attempts, or too late.
        skips: Whether an outcome may skip occurrences.
        in_thread: Whether the function runs in a thread.
    """

    worker: Worker
    task: Task
    options: TaskOptions
    handler: Handler
    policy: Policy
    lease: int
    at_most_once: bool
    retry: Retry | None
    beats: BeatPlan | None
    selective: bool
    skips: bool
    in_thread: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """The parts that the executions of a task from one claim share.

    Attributes:
        parts: The parts of the task.
        start_before: The monotonic instant from which their leases may have ended.
        extend: Whether the lease must be extended before the task starts.
        watched: Whether runs that start and succeed are told.
        noted: Whether the end of an attempt is noted, as in the run history.
        sent: The monotonic instant of the claim.
        since_epoch: What to add to a monotonic instant in microseconds to have the instant.
    """

    parts: TaskParts
    start_before: float
    extend: bool
    watched: bool
    noted: bool
    sent: float
    since_epoch: float


class _Rare:
    """What only few executions need.

    Attributes:
        failure: Why the attempt has not succeeded.
        cancelled: Whether the execution was cancelled by its worker.
        deadline: The instant at which the body is cancelled.
        beat_at: The monotonic instant of the next automatic heartbeat.
        beating: Whether one is under way.
        kept: The heartbeats that keep the lease of a body that goes on after its timeout.
        interrupted: Whether the body was cancelled because its lease is lost.
        fencing_token: The version of the record at the claim, if the record has changed since.
        ended: When the body ended, if its outcome could not be written at once.
        loss: What became of the record, as a clause, if its lease is lost.
        timed_out: Whether the body was cancelled at its timeout.
        replaced_by_body: Whether the body itself has replaced or removed the record.
        give_back: Whether to release the lease when the execution, which is cancelled, has ended.
        transaction: The transaction of the body, from its beginning to its end.
        settling: Whether the outcome is being written in a transaction of the body.
        settled: Whether it was written so, and committed.
        waits_no_more: Whether the wait for the store before the body begins is given up.
    """

    __slots__ = (
        "beat_at",
        "beating",
        "cancelled",
        "deadline",
        "ended",
        "failure",
        "fencing_token",
        "give_back",
        "interrupted",
        "kept",
        "loss",
        "replaced_by_body",
        "settled",
        "settling",
        "timed_out",
        "transaction",
        "waits_no_more",
    )

    def __init__(self) -> None:
        self.failure: Failure | None = None
        self.cancelled = False
        self.deadline: int | None = None
        self.beat_at = 0.0
        self.beating = False
        self.interrupted = False
        self.kept: BeatPlan | None = None
        self.fencing_token: int | None = None
        self.ended: int | None = None
        self.loss: str | None = None
        self.timed_out = False
        self.replaced_by_body = False
        self.give_back = False
        self.transaction: Transaction | None = None
        self.settling = False
        self.settled = False
        self.waits_no_more = False


class Execution:
    """One execution of one record.

    It is also the entry of its outcome in the write queue.
    """

    # Slots, all of them set: to read the usual value from the class would take longer.
    __slots__ = (
        "_batch",
        "_parts",
        "_started",
        "rare",
        "reading",
        "runner",
    )

    def __init__(self, batch: Batch, reading: Reading) -> None:
        """Prepares an execution of a claimed record."""
        self._batch = batch
        self._parts = batch.parts
        self.reading: Reading = reading
        self.runner: asyncio.Task[Any] | None = None
        self.rare: _Rare | None = None
        # When the body started, in microseconds.
        self._started: int | None = None

    # Values that the task can read.

    def task(self) -> Task:
        """Returns the declared task, or the instance as it was stored."""
        task = self._parts.task
        if not task.dynamic:
            return task
        record, schedule, _ = self.reading
        found = task.from_parts(record.key, schedule, record.args)
        if found.group != record.group:
            self._parts.worker.partitions.note_place(task, record)
        return found

    def planned_at(self) -> datetime:
        """Returns the planned time of this run, in the task's time zone."""
        return planned_at(self.reading)

    def about(self) -> AboutRun:
        """Returns what an event says of this run."""
        return about_run(self._parts, self.reading, self.label)

    def upcoming(self, number: int) -> list[datetime]:
        """Returns the planned times that follow; see ``pyncette.model.Context.upcoming``."""
        parts, record = self._parts, self.reading.record
        found = after_current(
            parts.task,
            record,
            parts.policy,
            parts.worker.clock.microseconds(),
            checked_number(number),
        )
        return shown(found, self.reading.schedule.timezone)

    @property
    def parts(self) -> TaskParts:
        """What it shares with the other executions of its task."""
        return self._parts

    @property
    def declared(self) -> Task:
        """The declared task: a static task, or the template."""
        return self._parts.task

    @property
    def label(self) -> str:
        """The name of the task for logs, without line breaks and terminal codes."""
        return printable(self.task())

    def arguments(self) -> dict[str, Any]:
        """Returns a copy of the arguments, so that a change by the task affects no other run."""
        task = self._parts.task
        return self.task().extra_args if task.dynamic else copy.deepcopy(task.extra_args)

    @property
    def fencing_token(self) -> int:
        """The version of the record at the claim."""
        rare = self.rare
        if rare is None or rare.fencing_token is None:
            return self.reading.record.version
        return rare.fencing_token

    @property
    def ended(self) -> bool:
        """Whether the execution needs its slot no more."""
        return self not in self._parts.worker.dispatcher.executions

    @property
    def is_lost(self) -> bool:
        """Whether the lease is lost."""
        return self.rare is not None and self.rare.loss is not None

    @property
    def is_settled(self) -> bool:
        """Whether a transaction of the body has the outcome, or is about to have it."""
        return self.rare is not None and (self.rare.settling or self.rare.settled)

    def rarely(self) -> _Rare:
        """Returns what only few executions need, to change it."""
        if self.rare is None:
            self.rare = _Rare()
        return self.rare

    # Automatic heartbeats, and what they may do.

    @property
    def beats(self) -> BeatPlan | None:
        """The automatic heartbeats of the run, as long as they make sense."""
        if self.is_lost or self.is_settled or not self.begun:
            return None
        if self._parts.beats is not None or self.rare is None:
            return self._parts.beats
        return self.rare.kept

    def keep_lease(self) -> None:
        """Sends heartbeats until the body, which was cancelled, has ended."""
        parts = self._parts
        if parts.beats is None and not parts.at_most_once and not self.is_lost:
            self.rarely().kept = keeping_plan(parts.lease)
            parts.worker.heartbeats.begin(self, keeping_plan(parts.lease))

    @property
    def claimed_at(self) -> float:
        """The monotonic instant from which the lease runs."""
        return self._batch.sent

    def beat(self, answered: Callable[[Exception | None], None]) -> None:
        """Sends an automatic heartbeat, unless the one before is still under way.

        Args:
            answered: Called with its error.
        """
        rare = self.rarely()
        if not rare.beating:
            rare.beating = True
            self._parts.worker.writes.add(_AutomaticHeartbeat(self, answered))

    def interrupt(self) -> None:
        """Cancels the body, whose lease is lost."""
        rare = self.rarely()
        if self.in_body and not self.ended and not rare.interrupted and self.runner is not None:
            rare.interrupted = True
            self.runner.cancel()

    def _end_interruption(self) -> None:
        if self._interrupted and self.runner is not None:
            self.runner.uncancel()

    @property
    def begun(self) -> bool:
        """Whether the execution has begun, though perhaps not its body, or has ended."""
        return self.runner is not None or self.ended

    @property
    def in_body(self) -> bool:
        """Whether the body has begun."""
        return self._started is not None

    @property
    def _is_cancelled(self) -> bool:
        return self.rare is not None and self.rare.cancelled

    @property
    def _interrupted(self) -> bool:
        return self.rare is not None and self.rare.interrupted

    async def heartbeat(self) -> None:
        """Extends the lease; see ``pyncette.model.Context.heartbeat``."""
        if self._parts.at_most_once:
            return
        if self.is_lost:
            raise self.lost()
        heartbeat = _Heartbeat(self)
        self._parts.worker.writes.add(heartbeat)
        await heartbeat.done

    # The run.

    async def run(self) -> None:
        """Runs the task, unless it may not start any more."""
        parts = self._parts
        worker = parts.worker
        self.runner = asyncio.current_task()
        if parts.beats is not None:
            worker.heartbeats.begin(self, parts.beats)
        try:
            batch = self._batch
            start_before = batch.start_before
            if batch.extend:
                extended = await self._extended()
                if extended is None:
                    return
                start_before = extended
            began = worker.clock.monotonic()
            if began >= start_before or (self.rare is not None and self.rare.cancelled):
                self._not_started()
                return
            if parts.at_most_once and not await self._advanced():
                return
            self._started = int(began * 1_000_000 + batch.since_epoch)
            if batch.watched:
                self._tell_start()
            try:
                context = worker.context_class()
                context._execution = self
                await parts.handler(context)
                if self.rare is not None and self.rare.transaction is not None:
                    await self._leave_transaction(self.rare.transaction)
            except BaseException as error:
                ended = await self._left_transaction(error)
                if not issubclass(type(ended), Exception) and not self._ends_the_run(ended):
                    if ended is not error:  # it was cancelled while its transaction was undone
                        raise ended from error
                    raise
                self._failed(ended)
            if self.rare is not None:
                self._end_interruption()
            if batch.watched or batch.noted:
                self._tell_success()
            if not parts.at_most_once:
                worker.writes.add(self)
        finally:
            # Its asyncio task need not wait for the write: a hundred of them fill the garbage
            # collector's youngest generation, and the processor's cache.
            self.runner = None
            worker.execution_ended(self)

    async def _leave_transaction(self, transaction: Transaction) -> None:
        """Undoes a transaction that the body, which has returned, has left open.

        Raises:
            PyncetteException: It had one.
        """
        error = await transaction.leave(None)
        if error is not None:
            raise error

    async def _left_transaction(self, error: BaseException) -> BaseException:
        """Undoes a transaction that the body, which has raised this, has left open.

        Returns:
            The error of the body.
        """
        transaction = None if self.rare is None else self.rare.transaction
        if transaction is None or issubclass(type(error), _ENDS_PROCESS):
            return error
        left = await transaction.leave(error)
        return error if left is None else left

    def _failed(self, error: BaseException) -> None:
        if self._interrupted and issubclass(type(error), asyncio.CancelledError):
            self._tell_cancelled(True, "its lease is lost")  # there is no outcome
            return
        if self.is_settled:
            log_exception(
                logger,
                logging.WARNING,
                error,
                "Task %s raised after its transaction was committed; the run has succeeded all "
                "the same: %s",
                self.label,
                describe(error),
            )
            return
        parts = self._parts
        attempt = Attempt(
            self.reading,
            parts.retry,
            parts.policy,
            parts.at_most_once,
            self.label,
            self.planned_at().isoformat(),
            parts.worker.clock.microseconds(),
        )
        failure, what_follows = failure_of(error, attempt)
        self.rarely().failure = failure
        self._tell_failure(error, failure, what_follows)
        if failure.outcome is None:
            parts.worker.bodies.failed(error, attempt.name)

    # What is told of the body. The handlers are called in the asyncio task of the run.

    def _tell_start(self) -> None:
        self._parts.worker.reporter.tell(
            events.Started(
                **self.about(),
                due_at=self._came_due(),
                origin=origin_in(self.reading.progress.incarnation),
            )
        )

    def _tell_success(self) -> None:
        rare = self.rare
        if rare is None or (rare.failure is None and not rare.interrupted):
            if self._batch.watched:
                event = events.Succeeded(**self.about(), **self._ran())
                self._parts.worker.reporter.tell(event)
            self._note_end(events.Succeeded, None)

    def _note_end(self, kind: type[events.AttemptEnded], error: str | None) -> None:
        parts = self._parts
        note_end = parts.worker.reporter.note_end
        if note_end is not None:
            note_end(parts.task, self.reading, self._started or 0, OUTCOMES[kind], error)

    def _tell_failure(self, error: BaseException, failure: Failure, what_follows: str) -> None:
        parts, about, ran = self._parts, self.about(), self._ran()
        event: events.AttemptEnded
        if failure.outcome is Outcome.SKIPPED:
            event = events.SkippedByBody(**about, **ran, reason=failure.error)
        elif failure.outcome is Outcome.POSTPONED:
            delay = timedelta(microseconds=failure.delay or 0)
            event = events.Postponed(
                **about, **ran, delay=delay, reason=failure.error, what_follows=what_follows
            )
        else:
            timed_out = self.rare is not None and self.rare.timed_out
            commits = parts.retry is None and parts.policy.failure_mode is FailureMode.COMMIT
            event = (events.TimedOut if timed_out else events.Failed)(
                **about,
                **ran,
                error=failure.error,
                exception=error,
                what_follows=what_follows,
                final=failure.final or parts.at_most_once or commits,
            )
        parts.worker.reporter.tell(event)
        self._note_end(type(event), failure.error)

    def _tell_cancelled(self, by_worker: bool, reason: str) -> None:
        if self._started is not None:
            event = events.Cancelled(
                **self.about(), **self._ran(), by_worker=by_worker, reason=reason
            )
            self._parts.worker.reporter.tell(event)
            self._note_end(events.Cancelled, reason)

    def _ran(self) -> Ran:
        started_at = from_microseconds(self._started or 0)
        return {"started_at": started_at, "due_at": self._came_due()}

    def _came_due(self) -> datetime:
        return from_microseconds(rules.came_due(self.reading) or 0)

    def _lease_end(self) -> datetime:
        return from_microseconds(self.reading.record.due_at or 0)

    def _ends_the_run(self, error: BaseException) -> bool:
        """Returns whether a ``BaseException`` of the task is its outcome.

        It is not if the run was cancelled, if its coroutine is being closed, or if the process is
        ending: then there is no outcome.
        """
        kind = type(error)  # an exception may raise another one when it is asked itself
        if issubclass(kind, (KeyboardInterrupt, SystemExit)):
            if self.runner is not None:
                # The event loop raises it. Else asyncio also logs that it was never retrieved.
                self.runner.add_done_callback(_retrieve_exception)
            return False
        if issubclass(kind, GeneratorExit):
            return asyncio.current_task() is self.runner
        if not issubclass(kind, asyncio.CancelledError):
            return True
        if not self._is_cancelled and not self._cancelled_from_outside():
            return True  # raised by something that the task awaited
        if not self._is_cancelled and not self.is_settled and self._alone_cancelled():
            return True  # by the task itself, or by what it uses
        if self.is_settled:
            logger.debug("Task %s was cancelled after its transaction was committed", self.label)
            if self._batch.watched or self._batch.noted:
                self._tell_success()
            return False
        if not self._is_cancelled:
            self._tell_cancelled(
                False,
                "it is not run again"
                if self._parts.at_most_once
                else f"it is run again when its lease ends at {self._lease_end().isoformat()}",
            )
            return False
        self._tell_cancelled(True, "its worker is closing")
        if self.rarely().give_back and not self._parts.at_most_once and not self.is_lost:
            record = self.reading.record
            self._parts.worker.dispatcher.give_back(record, started=self._started)
        return False

    def _cancelled_from_outside(self) -> bool:
        runner = asyncio.current_task()
        return runner is not None and runner.cancelling() > self._interrupted

    def _alone_cancelled(self) -> bool:
        """Returns whether nothing but this run was cancelled; if so, takes the cancellation away.

        If the event loop is ending, the tasks of the worker are cancelled as well. In an executor
        that runs several executions in one asyncio task, it may be that task which is ended.
        """
        runner, worker = asyncio.current_task(), self._parts.worker
        coroutine = worker.dispatcher.executions.get(self)
        if runner is None or coroutine is None or runner.get_coro() is not coroutine:
            return False
        if worker.background.is_cancelled():
            return False
        while runner.cancelling() > self._interrupted:
            runner.uncancel()
        return True

    def tell_not_started(self, reason: str) -> None:
        """Tells that the body is not started after all."""
        self._parts.worker.reporter.tell(events.NotStarted(**self.about(), reason=reason))

    def _not_started(self) -> None:
        self.tell_not_started(
            "its worker is closing"
            if self._is_cancelled
            else "its lease ended before it could be started"
        )
        if self._is_cancelled:
            self._parts.worker.dispatcher.give_back(self.reading.record)

    def cancel(self, give_back: bool = False, waits_no_more: bool = False) -> None:
        """Cancels the execution, or prevents its start.

        Args:
            give_back: Whether to release the lease when the execution has ended; else it stays.
            waits_no_more: Whether to end its wait for the answer to a write before its start, too.
        """
        rare = self.rarely()
        rare.cancelled = True
        rare.give_back = rare.give_back or give_back
        rare.waits_no_more = rare.waits_no_more or waits_no_more
        if self.runner is not None:
            self.runner.cancel()

    async def _extended(self) -> float | None:
        """Extends the lease; returns the monotonic instant from which it may have ended."""
        clock = self._parts.worker.clock
        sent = clock.monotonic()
        try:
            heartbeat = _Heartbeat(self)
            self._parts.worker.writes.add(heartbeat)
            await heartbeat.done
        except Exception as error:
            self.tell_not_started(describe(error))
            return None
        return sent + (self._parts.lease - clock.uncertainty()) / 1_000_000

    async def _advanced(self) -> bool:
        """Advances the record; returns whether the task may run.

        If the run is cancelled while the store has that write, it waits for the answer: the record
        has perhaps moved on, and the run would be lost without a word. The body then begins, and is
        cancelled where it waits first.
        """
        worker = self._parts.worker
        advance = _Advance(self)
        worker.writes.add(advance, urgent=True)
        try:
            return await advance.done
        except asyncio.CancelledError:
            if not advance.is_decided and not advance.sent:
                raise
        while not advance.is_decided:
            if self.rarely().waits_no_more or worker.background.is_cancelled():
                raise asyncio.CancelledError
            with suppress(asyncio.CancelledError):
                await advance.renewed()
        may_run = advance.done.result()
        if may_run and self.runner is not None:
            self.runner.uncancel()
            self.runner.cancel()
        return may_run

    # The outcome, as an entry of the write queue.

    def build(self, now: int) -> Write | None:
        """Returns the change that follows from the outcome."""
        rare, parts = self.rare, self._parts
        started = self._started or 0
        if rare is None:
            return self.write(rules.succeeded(self.reading, parts.policy, now, (started, now)))
        if rare.settled:
            return None
        if rare.loss is not None:
            self._tell_lost()
            return None
        failure, ran = rare.failure, (started, rare.ended or now)
        if failure is None:
            return self.outcome(now)
        if failure.outcome is Outcome.SKIPPED:
            change = rules.skipped(self.reading, parts.policy, now, failure.error, ran)
        else:
            change = rules.failed(self.reading, parts.policy, now, failure, ran)
        return self.write(change)

    def outcome(self, now: int) -> Write:
        """Returns the change of a run that has succeeded."""
        ended = (self.rare and self.rare.ended) or now
        ran = (self._started or 0, ended)
        return self.write(rules.succeeded(self.reading, self._parts.policy, now, ran))

    def was_settled(self, write: Write, version: int) -> None:
        """A transaction of the body was committed, which has written the outcome."""
        self.rarely().settled = True
        self.answered(Applied(version), write, self._parts.worker.clock.microseconds())

    def answered(self, answer: Result, write: Write, now: int) -> Next:
        """Handles the store's answer to the outcome."""
        if isinstance(answer, Applied):
            if write.change is not DELETE:
                self._parts.worker.wrote(write)
            rare = self.rare
            if (rare is not None and rare.failure is not None) or self._parts.skips:
                self._tell_what_follows(write.change)
            return _DONE
        rare = self.rarely()
        if rare.ended is None:
            rare.ended = now
        if isinstance(answer, Refused):
            found = self.compare(answer.current)
            if found is Verdict.HELD:
                return again(write, answer)
            if found is Verdict.LOST:
                self._tell_lost()
            else:
                self._parts.worker.wrote(write)
            return Next.DONE
        if self.may_repeat(answer, now):
            return Next.BACK_OFF
        self.abandon(answer.error)
        return Next.DONE

    def _tell_what_follows(self, change: Change) -> None:
        failure = None if self.rare is None else self.rare.failure
        by_itself = failure is not None and failure.outcome is Outcome.SKIPPED
        reporter, about = self._parts.worker.reporter, self.about()
        tell_missed(self._parts, self.reading, change, by_itself)
        if failure is None:
            return
        if failure.final:
            tell_exhausted(reporter, about, change)
        elif failure.delay is not None and change.due_at is not None:
            reporter.tell(events.Retried(**about, retry_at=from_microseconds(change.due_at)))

    def abandon(self, error: Exception) -> None:
        """The outcome is not written: the run is repeated when its lease ends."""
        event = events.NotRecorded(
            **self.about(), lease_end=self._lease_end(), error=describe(error)
        )
        self._parts.worker.reporter.tell(event)

    def _tell_lost(self) -> None:
        rare = self.rarely()
        self._parts.worker.reporter.tell(
            events.LeaseLost(**self.about(), reason=rare.loss or "", by_body=rare.replaced_by_body)
        )

    def lost(self) -> LeaseLostException:
        """Returns the error about the lost lease."""
        rare = self.rarely()
        return LeaseLostException(self.task(), rare.loss or "", rare.replaced_by_body)

    def _what_became(self, current: Record | None) -> str:
        """Returns what became of the record after its lease was lost, as a clause."""
        if current is None:
            return "it was removed"
        try:
            same = load_progress(current.progress).incarnation == self.reading.progress.incarnation
        except ValueError:
            return "its record was changed so that it cannot be read"
        if not same:
            return "it was replaced, or removed and scheduled again"
        if current.token is None:
            return "it was scheduled again after its lease had ended"
        if current.token == self.reading.record.token:
            return "its record was changed so that it cannot be read"
        worker = current.token.rsplit(":", 2)[0]
        if worker == self._parts.worker.settings.worker_name:
            return "this worker took it again after its lease had ended"
        return f"worker {printable(worker)} took it after its lease had ended"

    # Shared by the three kinds of entries.

    def may_repeat(self, answer: Failed | Unknown, now: int) -> bool:
        """Returns whether to retry a write: until the lease ends, unless it can never succeed."""
        if isinstance(answer, Failed) and isinstance(answer.error, ValueError):
            return False
        return now < (self.reading.record.due_at or 0)

    def compare(self, current: Record | None) -> Verdict:
        """Compares with the current record after a write was refused."""
        found = rules.verdict(current, self.reading)
        self._note_claim()
        if found is Verdict.HELD and current is not None:
            try:
                self.reading = self._parts.task.reading_of(current)
            except ValueError:
                found = Verdict.LOST
        self.rarely().loss = self._what_became(current) if found is Verdict.LOST else None
        return found

    def take(self, record: Record) -> None:
        """Stores the record as it is now."""
        self._note_claim()
        self.reading = self.reading._replace(record=record)

    def extension(self, now: int) -> Write:
        """Returns the write that extends the lease."""
        return self.write(rules.heartbeat(self.reading.record, now, self._parts.lease))

    def was_extended(self, answer: Applied, write: Write) -> None:
        """The lease was extended by this write."""
        record = self.reading.record
        self.take(record._replace(version=answer.version, due_at=write.change.due_at))

    def _note_claim(self) -> None:
        rare = self.rarely()
        if rare.fencing_token is None:
            rare.fencing_token = self.reading.record.version

    def write(self, change: Change) -> Write:
        """Returns the change as a write with the condition that this worker holds the record."""
        # Its fields by name: to unpack ten of them takes twice as long.
        record = self.reading.record
        return write_of((record.group, record.key, change, record.version, record.token))


class _Extension:
    """The entry of a heartbeat in the write queue."""

    __slots__ = ("_execution",)

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    def build(self, now: int) -> Write | None:
        return self._execution.extension(now)

    def answered(self, answer: Result, write: Write, now: int) -> Next:
        execution = self._execution
        if isinstance(answer, Applied):
            execution.was_extended(answer, write)
            self._finish(None)
        elif isinstance(answer, Refused):
            if execution.is_settled:
                self._finish(None)
                return Next.DONE
            found = execution.compare(answer.current)
            if found is Verdict.HELD:
                return again(write, answer)
            self._finish(execution.lost() if found is Verdict.LOST else None)
        else:
            # It is unknown whether the heartbeat was written. The next write finds out, by its
            # token, whether the lease is still held. The caller gets the error and may retry.
            self._finish(answer.error)
        return Next.DONE

    def abandon(self, error: Exception) -> None:
        self._finish(error)

    def _finish(self, error: Exception | None) -> None:
        """The store has answered, or will not; None: the lease was extended."""
        raise NotImplementedError


class _Heartbeat(_Extension):
    """A heartbeat that its caller awaits."""

    __slots__ = ("done",)

    def __init__(self, execution: Execution) -> None:
        super().__init__(execution)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def build(self, now: int) -> Write | None:
        execution = self._execution
        if execution.ended or execution.is_settled or self.done.done():
            # The outcome supersedes the heartbeat.
            self._finish(None)
            return None
        if execution.is_lost:
            self._finish(execution.lost())
            return None
        return super().build(now)

    def _finish(self, error: Exception | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class _AutomaticHeartbeat(_Extension):
    """An automatic heartbeat, for which nothing waits."""

    __slots__ = ("_answered",)

    def __init__(self, execution: Execution, answered: Callable[[Exception | None], None]) -> None:
        super().__init__(execution)
        self._answered = answered

    def build(self, now: int) -> Write | None:
        execution = self._execution
        if execution.ended or execution.is_lost or execution.is_settled:
            execution.rarely().beating = False
            return None
        return super().build(now)

    def _finish(self, error: Exception | None) -> None:
        self._execution.rarely().beating = False
        self._answered(error)


class _Advance:
    """The entry that advances an at-most-once record.

    Attributes:
        done: Tells whether the task may run.
        sent: Whether the store has the write, and has not answered.
    """

    __slots__ = ("_execution", "_repeated", "done", "sent")

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._repeated = False
        self.sent = False
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    @property
    def is_decided(self) -> bool:
        """Whether it is known if the task may run."""
        return self.done.done() and not self.done.cancelled()

    def renewed(self) -> asyncio.Future[bool]:
        """Returns another ``done``, for one that was cancelled."""
        self.done = asyncio.get_running_loop().create_future()
        return self.done

    def build(self, now: int) -> Write | None:
        execution = self._execution
        if self.done.done():
            return None
        self.sent = True
        return execution.write(rules.advanced(execution.reading, execution._parts.policy, now))

    def answered(self, answer: Result, write: Write, now: int) -> Next:
        execution = self._execution
        worker = execution._parts.worker
        self.sent = False
        if isinstance(answer, Applied):
            worker.wrote(write)
            self._finish(True)
        elif isinstance(answer, Refused):
            found = execution.compare(answer.current)
            if found is Verdict.HELD:
                return again(write, answer)
            if found is Verdict.SETTLED:
                worker.wrote(write)
                self._finish(True)
            elif self._repeated and answer.current is None:
                self._refuse("whether it has moved on is unknown: an answer of the store was lost")
            else:
                self._refuse(f"{execution.rarely().loss}, before it had moved on")
        elif self.done.done():
            pass
        elif execution.may_repeat(answer, now):
            self._repeated = self._repeated or isinstance(answer, Unknown)
            return Next.BACK_OFF
        else:
            self.abandon(answer.error)
        return Next.DONE

    def abandon(self, error: Exception) -> None:
        self._refuse(f"whether it has moved on is unknown: {describe(error)}")

    def _refuse(self, reason: str) -> None:
        if not self.done.done():
            self._execution.tell_not_started(reason)
            self._finish(False)

    def _finish(self, may_run: bool) -> None:
        if not self.done.done():
            self.done.set_result(may_run)


def _retrieve_exception(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def compose(
    middlewares: Sequence[MiddlewareFunc],
    body: TaskFunc,
    limited: Callable[[Handler], Handler] | None = None,
    parameters: Parameters | None = None,
    process: Process | None = None,
    once: bool = False,
) -> Handler:
    """Wraps the function of a task in the middlewares; the first middleware is outermost.

    Args:
        middlewares: The middlewares.
        body: The function.
        limited: Wraps the function itself.
        parameters: Which arguments the function takes by name.
        process: The processes in which the function runs.
        once: Whether a middleware that starts the rest of the run again is refused.
    """
    if process is None:
        arguments = None if parameters is None else partial(_arguments, parameters)
        handler = call_body(body, arguments)
    else:
        handler = _in_process(process, (body.__module__, body.__qualname__))
    if limited is not None:
        handler = limited(handler)
    for middleware in reversed(middlewares):
        handler = (_wrapped_once if once else _wrapped)(middleware, handler)
    return handler


def _in_process(process: Process, function: tuple[str, str]) -> Handler:
    async def handler(context: Any) -> None:
        execution: Execution = context._execution
        view = {name: value(execution) for name, value in _ATTRIBUTES.items()}
        view.update(task_name=execution.label, args=context.args, scheduled_at=context.scheduled_at)
        await context.app_context._run_in_process(process, function, context, view)

    return handler


def _arguments(parameters: Parameters, context: Any) -> dict[str, Any]:
    return parameters.values(context.args, lambda: printable(context.task))


def _wrapped(middleware: MiddlewareFunc, inner: Handler) -> Handler:
    return lambda context: middleware(context, lambda: inner(context))


def _wrapped_once(middleware: MiddlewareFunc, inner: Handler) -> Handler:
    def handler(context: Any) -> Awaitable[None]:
        called = False

        def following() -> Awaitable[None]:
            nonlocal called
            if called:
                raise PyncetteException(
                    f"The middleware {name_of(middleware)} has called next() a second time, but "
                    f"{context._execution.label} is at most once: call it once in each run, or "
                    "give the task retry= instead of its execution_mode"
                )
            called = True
            return inner(context)

        return middleware(context, following)

    return handler


__all__ = [
    "Batch",
    "Execution",
    "Handler",
    "RunContext",
    "TaskParts",
    "compose",
]
