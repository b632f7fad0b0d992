"""From claimed records to running executions.

Decides about each record: it is executed, released or parked. It also counts the running
executions.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from inspect import CORO_CLOSED, getcoroutinestate
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pyncette import chance
from pyncette.body import runs_in_thread
from pyncette.engine import rules
from pyncette.engine.background import is_cancelled
from pyncette.engine.backlog import BACKLOG_AGE_MIN
from pyncette.engine.execution import (
    Batch,
    Execution,
    TaskParts,
    compose,
)
from pyncette.engine.heartbeats import beat_plan
from pyncette.engine.rules import Policy
from pyncette.engine.run_events import about_run, about_task, tell_exhausted, tell_missed
from pyncette.engine.timeouts import with_timeout
from pyncette.engine.writes import Next, again
from pyncette.errors import describe, printable
from pyncette.events import NotStartedAgain, Unreadable
from pyncette.executor import DefaultExecutor
from pyncette.logs import log_exception
from pyncette.model import ExecutionMode, Overlap, Process
from pyncette.schedule import At, UnreadableHere
from pyncette.store import Applied, Failed, Identity, Refused, Result, Write
from pyncette.store.record import (
    STATIC_GROUP,
    Change,
    Reading,
    Record,
    State,
    UnreadableRecord,
    read,
)
from pyncette.task import Task

if TYPE_CHECKING:
    from pyncette.engine.worker import Worker

logger = logging.getLogger(__name__)

AT_MOST_ONCE_LEASE_MIN: Final = 2_000_000
"""Minimum lease of an at-most-once record, in microseconds. The record is held only until it has
advanced. With a lease shorter than the store's latency, other workers would claim it before that,
again and again."""

UNREADABLE_DELAY_MAX: Final = 60_000_000
"""Maximum delay, in microseconds, of a record that this worker cannot read and releases."""

UNREADABLE_KNOWN_MAX: Final = 10_000

YIELDS_FOR_S: Final = 600.0
"""How long a worker lets others claim first from a group, after a record in it that it cannot
read."""

SUSPECT_DELAY: Final = 100_000
"""Delay, in microseconds, before a suspected crash-looper may be claimed again, if it was claimed
while another one runs."""


PACE_MAX: Final = 1_000_000
"""Maximum delay, in microseconds, between two runs of a record that is behind its schedule."""


_THREADS: Final = "threads"


class Claim(NamedTuple):
    """The claim that records came from.

    Attributes:
        sent: The monotonic instant at which it was sent.
        took: Seconds until it was answered.
        now: The instant of the answer.
    """

    sent: float
    took: float
    now: int


class Dispatcher:
    """Starts executions, and counts those that run."""

    def __init__(self, worker: Worker) -> None:
        """Prepares to dispatch for a worker."""
        # With the coroutine of each. Ordered, so that loops over it are the same in every replay.
        self.executions: dict[Execution, Coroutine[Any, Any, None]] = {}
        self._worker = worker
        self._parts: dict[Task, TaskParts] = {}
        self._catches_up_at_once = False
        self.suspect: Execution | None = None
        # How many executions were started; counted once for each claim.
        self.started = 0
        # How often each record was released because this worker cannot read it.
        self._released: dict[Identity, int] = {}
        # Until when, by the monotonic clock, other workers claim first from these groups.
        self.yields: dict[str, float] = {}
        self._outlived: set[Task] = set()
        self._put_back_of: set[Task] = set()

    @property
    def unfinished_max(self) -> int | None:
        """What a claim may take: while a suspect runs here, no other suspect."""
        return None if self.suspect is None else rules.SUSPECT_ATTEMPTS - 1

    def room(self, tasks: Iterable[Task], free: int) -> dict[Task, int]:
        """Returns how many more executions of these tasks may start now, by their limits.

        Args:
            tasks: The tasks; those without a limit are left out.
            free: The number of free slots of the worker.
        """
        running = Counter(execution.declared for execution in self.executions)
        taken = Counter[object]()
        for task, count in running.items():
            taken[self._places(task)] += count
        room: dict[Task, int] = {}
        for task in filter(self.is_limited, tasks):
            slots = free
            if task.limit is not None:
                slots = min(slots, max(task.limit.executions - running[task], 0))
            places = self._places(task)
            if places is not None:
                slots = min(slots, max(self._limit_of(places) - taken[places], 0))
                taken[places] += slots
            room[task] = slots
        return room

    def is_limited(self, task: Task) -> bool:
        """Returns whether fewer of its executions may run at once than the worker has slots."""
        return task.limit is not None or self._places(task) is not None

    def wait_for(self, task: Task, held: Iterable[Task]) -> list[Task]:
        """Returns the tasks that may have had to wait for an execution of this one."""
        places = self._places(task)
        if places is None:
            return [task]
        return [
            task,
            *(other for other in held if other is not task and self._places(other) == places),
        ]

    def _places(self, task: Task) -> Process | str | None:
        """Returns the threads or processes that executions of a task have to share."""
        if task.executor is not None:
            return task.executor
        if self._worker.settings.thread_limit is not None and self._task_parts(task).in_thread:
            return _THREADS
        return None

    def _limit_of(self, places: Process | str) -> int:
        if isinstance(places, Process):
            return places.limit
        return self._worker.settings.thread_limit or 0

    def catch_up_at_once(self, value: bool) -> None:
        """Sets whether what a record has missed runs without pauses."""
        if value is not self._catches_up_at_once:
            self._catches_up_at_once = value
            self._parts.clear()

    def lease(self, task: Task) -> int:
        """Returns the lease of the task's records, in microseconds."""
        return self._task_parts(task).lease

    async def dispatch(
        self,
        records: Iterable[Record],
        groups: Mapping[str, Task],
        static_tasks: Mapping[str, Task],
        claim: Claim,
    ) -> None:
        """Starts the executions of claimed records.

        Args:
            records: The claimed records.
            groups: The templates by group.
            static_tasks: The static tasks by key; separate, because one may have the name of a
                group.
            claim: The claim that the records came from.
        """
        worker = self._worker
        executions, now = self.executions, claim.now
        batches: dict[str, Batch] = {}
        spawn = worker.executor.spawn_task
        start = _direct_start(worker.executor)
        pauses = worker.pauses
        paused = bool(pauses.known)
        left = iter(records)
        try:
            for record in left:
                group = record.group
                batch = batches.get(group)
                if batch is None:
                    if group == STATIC_GROUP:
                        batch = self._batch(static_tasks[record.key], claim)
                    else:
                        batch = batches[group] = self._batch(groups[group], claim)
                if worker.stopping or (paused and pauses.holds(group, now)):
                    self.started -= 1
                    self.give_back(record)
                    continue
                execution = self._execution(batch, record, now)
                if execution is None:
                    self.started -= 1
                    continue
                run = executions[execution] = execution.run()
                try:
                    if start is None:
                        await self._spawn(spawn, run)
                    else:
                        start(run)
                except (Exception, asyncio.CancelledError) as error:
                    self._not_started(execution, run, error)
        except BaseException:
            # The loop is cancelled, or the process is ending.
            for record in left:
                self.started -= 1
                self.give_back(record)
            raise

    async def _spawn(
        self, spawn: Callable[[Any], Awaitable[None]], run: Coroutine[Any, Any, None]
    ) -> None:
        """Passes a run to an executor, which may run it within this call.

        Raises:
            asyncio.CancelledError: The loop was cancelled, even if the task has suppressed that.
        """
        loop = asyncio.current_task()
        before = 0 if loop is None else loop.cancelling()
        await spawn(run)
        if loop is not None and loop.cancelling() > before:
            raise asyncio.CancelledError

    def drop_unstarted(self) -> None:
        """Releases the records of runs whose asyncio task was cancelled before its first step.

        A callback of each task would tell sooner, and cost a tenth of a short run.
        """
        for execution, run in list(self.executions.items()):
            if not execution.begun and getcoroutinestate(run) == CORO_CLOSED:
                execution.tell_not_started("its asyncio task was cancelled")
                self._worker.execution_ended(execution)
                self.give_back(execution.reading.record)

    def cancel(self, give_back: bool = False) -> None:
        """Cancels the executions, and prevents those that have not started from starting.

        Args:
            give_back: Whether to release the leases as soon as the tasks have ended.
        """
        for execution in list(self.executions):
            execution.cancel(give_back)

    def withdraw_queued(self) -> None:
        """Gives back what the executor has taken on and never began, once it has been left."""
        for execution in list(self.executions):
            if not execution.begun:
                execution.cancel()
                self._worker.execution_ended(execution)
                self.give_back(execution.reading.record)

    def cancel_waiting(self) -> None:
        """Cancels the executions that wait for the store before their task may start."""
        for execution in list(self.executions):
            if execution.begun and not execution.in_body:
                execution.cancel(waits_no_more=True)

    def give_back(self, record: Record, delay: int = 0, started: int | None = None) -> None:
        """Releases a claimed record whose task was not run, or not to its end.

        Args:
            record: The record.
            delay: Microseconds before which it is not due.
            started: When its task started, if it did.
        """
        clock = self._worker.clock
        self._give_up(
            record, lambda record: _given_back(record, clock.microseconds(), delay, started)
        )

    def park(self, record: Record, reason: str) -> None:
        """Parks a record that no worker can run, with the reason."""
        incarnation = chance.new_id(4)
        self._give_up(record, lambda record: rules.parked(record, reason, incarnation))

    def _batch(self, task: Task, claim: Claim) -> Batch:
        parts = self._task_parts(task)
        lease_s = parts.lease / 1_000_000
        clock = self._worker.clock
        holds_s = lease_s - clock.uncertainty() / 1_000_000
        return Batch(
            parts,
            claim.sent + holds_s,
            claim.took > lease_s / 10,
            self._worker.reporter.observers.watch_runs(),
            self._worker.reporter.note_end is not None,
            claim.sent,
            clock.microseconds() - clock.monotonic() * 1_000_000,
        )

    def _execution(self, batch: Batch, record: Record, now: int) -> Execution | None:
        """Returns the execution of a claimed record; None if the record was released or parked."""
        parts = batch.parts
        try:
            reading = read(record)
            schedule = reading.schedule
            if schedule.needs_task:
                reading = self._bound(parts.task, reading)
            if parts.selective and self._is_not_run(parts, reading, now):
                return None
        except UnreadableHere as error:
            self._release(parts.task, record, error)
            return None
        except UnreadableRecord as error:
            self.tell_unreadable(parts.task, record, describe(error))
            self.park(record, describe(error))
            return None
        planned = reading.progress.planned
        if planned is not None and planned > now and rules.early(reading, now):
            self._put_back(parts, reading)
            return None
        behind = self._worker.backlogs.behind
        # A one-off is never behind.
        if planned is not None and (
            behind or (type(schedule) is not At and now - planned >= BACKLOG_AGE_MIN)
        ):
            self._note_backlog(parts.task, reading, planned, now)
        if record.unfinished_attempts > 1:
            return self._once_more(batch, reading)
        return Execution(batch, reading)

    def _bound(self, task: Task, reading: Reading) -> Reading:
        """Finds the schedule that holds from the next occurrence on, and its calendars.

        It also finds out whether the next occurrence can be planned by them.

        Raises:
            UnreadableHere: A calendar is not known here, has failed, or excludes everything. Then
                the task does not run: its outcome could not be written.
        """
        reading = task.bound(reading)
        _, schedule, progress = reading
        if schedule.calendars and progress.planned is not None:
            schedule.following(progress.planned)
        return reading

    def _note_backlog(self, task: Task, reading: Reading, planned: int, now: int) -> None:
        """Tells how far a task is behind; a fast-forwarded task never is."""
        if not task.fast_forward:
            backlogs, identity = self._worker.backlogs, reading.record[:2]
            with suppress(UnreadableHere):  # what is counted may reach other days
                backlogs.note(task, identity, reading.schedule, planned, now)

    def _is_not_run(self, parts: TaskParts, reading: Reading, now: int) -> bool:
        """Settles a record that gets no further attempt, or is too late for its first one."""
        record, policy = reading.record, parts.policy
        reporter = self._worker.reporter
        failure = rules.too_many(reading, policy, now)
        clock = self._worker.clock
        if failure is not None:
            about = about_run(parts, reading)
            reporter.tell(NotStartedAgain(**about, reason=failure.error))
            tell_exhausted(reporter, about, rules.exhausted(reading, policy, now, failure))
            self._give_up(
                record,
                lambda record: rules.exhausted(
                    parts.task.reading_of(record), policy, clock.microseconds(), failure
                ),
            )
            return True
        if rules.too_late(reading, policy, now):
            tell_missed(parts, reading, rules.misfired(reading, policy, now), late=True)
            self._give_up(
                record,
                lambda record: rules.misfired(
                    parts.task.reading_of(record), policy, clock.microseconds()
                ),
            )
            return True
        return False

    def _put_back(self, parts: TaskParts, reading: Reading) -> None:
        """Releases a record that is due before its time, until then."""
        record, clock = reading.record, self._worker.clock
        if parts.task not in self._put_back_of:
            self._put_back_of.add(parts.task)
            logger.warning(
                "%s of %s was due before its planned time: its row was edited. It is put back, and "
                "runs when it is planned. This is logged once for each task",
                printable(record.key),
                printable(parts.task),
            )
        self._give_up(
            record,
            lambda record: rules.put_back(parts.task.reading_of(record), clock.microseconds()),
        )

    def _once_more(self, batch: Batch, reading: Reading) -> Execution | None:
        """Returns the execution of a record whose last attempt ended without an outcome."""
        record = reading.record
        if self._runs(record):
            task = batch.parts.task
            if task not in self._outlived:
                self._outlived.add(task)
                logger.warning(
                    "%s is started again while its earlier execution still runs in this worker: "
                    "its body takes longer than lease_duration (%s). Give it a longer "
                    "lease_duration, or extend the lease with heartbeat().",
                    printable(task),
                    task.lease_duration,
                )
            return Execution(batch, reading)
        if not rules.suspect(record):
            return Execution(batch, reading)
        if self.suspect is not None:
            self.give_back(record, SUSPECT_DELAY)
            return None
        # The heartbeat is written together with what is given back: nobody waits for those
        # records if this one kills the process.
        self.suspect = Execution(replace(batch, extend=True), reading)
        return self.suspect

    def _runs(self, record: Record) -> bool:
        """Returns whether an earlier execution of this record still runs in this worker."""
        return any(execution.reading.record[:2] == record[:2] for execution in self.executions)

    def _release(self, task: Task, record: Record, error: Exception) -> None:
        """Releases a record that this worker cannot read, with a delay that grows each time."""
        identity = record[:2]
        if len(self._released) >= UNREADABLE_KNOWN_MAX:
            self._released.clear()
        times = self._released[identity] = self._released.get(identity, 0) + 1
        delay = min(self._worker.settings.poll_interval << min(times, 16), UNREADABLE_DELAY_MAX)
        self.tell_unreadable(task, record, describe(error), timedelta(microseconds=delay))
        self.yields[record.group] = self._worker.clock.monotonic() + YIELDS_FOR_S
        self.give_back(record, delay)

    def tell_unreadable(
        self, task: Task, record: Record, reason: str, left_for: timedelta | None = None
    ) -> None:
        """Tells of a record that cannot be read; see ``pyncette.events.Unreadable``."""
        reporter = self._worker.reporter
        label = f"{printable(record.key)} of {printable(task)}"
        about = about_task(reporter.here(), task, record.key, label)
        reporter.tell(Unreadable(**about, reason=reason, left_for=left_for))

    def _not_started(
        self, execution: Execution, run: Coroutine[Any, Any, None], error: BaseException
    ) -> None:
        if isinstance(error, asyncio.CancelledError):
            self._withdraw(execution, run, 0)
            # With a synchronous executor, a task may be cancelled alone; then the loop continues.
            if is_cancelled():
                raise error
        else:
            log_exception(
                logger, logging.ERROR, error, "The executor failed to take on %s", execution.label
            )
            self._withdraw(execution, run, self._worker.settings.poll_interval)

    def _withdraw(self, execution: Execution, run: Coroutine[Any, Any, None], delay: int) -> None:
        """Releases the record of an execution, unless the execution has begun."""
        if not execution.begun:
            run.close()
            self._worker.execution_ended(execution)
            self.give_back(execution.reading.record, delay)

    def _give_up(self, record: Record, decide: Callable[[Record], Change]) -> None:
        self._worker.writes.add(_Release(self._worker, record, decide))

    def _task_parts(self, task: Task) -> TaskParts:
        parts = self._parts.get(task)
        if parts is None or parts.options is not task.options:
            parts = self._parts[task] = self._new_parts(task)
        return parts

    def _new_parts(self, task: Task) -> TaskParts:
        worker = self._worker
        at_most_once = task.execution_mode is ExecutionMode.AT_MOST_ONCE
        retry, timeout = task.retry, task.timeout
        policy = Policy(
            task.fast_forward,
            task.failure_mode,
            worker.settings.poll_interval,
            task.exhausted,
            None if retry is None else retry.attempts,
            None if retry is None else _microseconds(retry.within),
            _microseconds(task.misfire_grace),
            task.overlap is Overlap.SKIP,
            0 if self._catches_up_at_once else min(worker.settings.poll_interval, PACE_MAX),
        )
        return TaskParts(
            worker,
            task,
            task.options,
            compose(
                worker.middlewares,
                task.task_func,
                None if timeout is None else lambda body: with_timeout(body, timeout, worker),
                task.options.parameters,
                task.executor,
                at_most_once,
            ),
            policy,
            max(task.lease, AT_MOST_ONCE_LEASE_MIN) if at_most_once else task.lease,
            at_most_once,
            retry,
            None if at_most_once else beat_plan(task, worker.settings.heartbeat),
            retry is not None or policy.misfire_grace is not None,
            task.fast_forward or policy.skip_overlap,
            task.executor is None and runs_in_thread(task.task_func),
        )


def _microseconds(duration: timedelta | None) -> int | None:
    return None if duration is None else duration // timedelta(microseconds=1)


def _direct_start(executor: object) -> Callable[[Any], None] | None:
    """How runs are started without a step of the caller, where nobody has changed that."""
    if (
        isinstance(executor, DefaultExecutor)
        and type(executor).spawn_task is DefaultExecutor.spawn_task
    ):
        return executor.starter()
    return None


def _given_back(record: Record, now: int, delay: int, started: int | None) -> Change:
    try:
        reading = read(record)
    except ValueError:
        return rules.given_back_unread(record, now, delay)
    return rules.given_back(reading, now, delay, started)


class _Release:
    """An entry of the write queue: a claimed record that is released or parked."""

    __slots__ = ("_decide", "_record", "_worker")

    def __init__(self, worker: Worker, record: Record, decide: Callable[[Record], Change]) -> None:
        self._worker = worker
        self._record = record
        self._decide = decide

    def build(self, now: int) -> Write | None:
        record = self._record
        return Write(record.group, record.key, self._decide(record), record.version, record.token)

    def answered(self, answer: Result, write: Write, now: int) -> Next:
        if isinstance(answer, Applied):
            self._worker.wrote(write)
            return Next.DONE
        held = self._record
        if isinstance(answer, Refused):
            current = answer.current
            if (
                current is None
                or current.token != held.token
                or current.unfinished_attempts != held.unfinished_attempts
                or current.state != State.RUNNING
            ):
                return Next.DONE
            self._record = current  # a user has changed it meanwhile
            return again(write, answer)
        if isinstance(answer, Failed) and isinstance(answer.error, ValueError):
            self.abandon(answer.error)
            return Next.DONE
        return Next.BACK_OFF if held.due_at is not None and now < held.due_at else Next.DONE

    def abandon(self, error: Exception) -> None:
        """Only logs the error: the record comes due when its lease ends."""
        logger.debug("%s was not given back: %s", printable(self._record.key), describe(error))
