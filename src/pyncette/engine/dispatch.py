"""From claimed records to running executions.

Knows what a record leads to before any of it is run: an execution that is handed to the executor,
or its being given back or parked. It is also what executions know of the worker they run in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from pyncette import chance
from pyncette.clock import Clock
from pyncette.engine import rules
from pyncette.engine.execution import Batch, Execution, RunContext, TaskParts, compose
from pyncette.engine.rules import Policy
from pyncette.engine.writes import Lane
from pyncette.model import ExecutionMode, MiddlewareFunc
from pyncette.schedule import UnreadableHere
from pyncette.store import Applied, Refused, Write
from pyncette.store.record import (
    STATIC_GROUP,
    Change,
    Delete,
    Record,
    State,
    UnreadableRecord,
    read,
)
from pyncette.task import Task

logger = logging.getLogger(__name__)

AT_MOST_ONCE_LEASE_MIN: Final = 2_000_000
"""An at-most-once record is held only until it has moved on; a lease shorter than the store's
latency would have it taken away before, again and again."""

STRANGER_DELAY_MAX: Final = 60_000_000
"""Longest time for which a record of a newer format is left alone, in microseconds."""

SUSPECT_DELAY: Final = 100_000
"""For how long a suspect is given back while another one runs, in microseconds."""


class Executor(Protocol):
    """What runs executions."""

    async def spawn_task(self, awaitable: Any, /) -> None:
        """Returns once the work has started."""


class Claim(NamedTuple):
    """What is known of the claim that records came from.

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

    def __init__(
        self,
        executor: Executor,
        clock: Clock,
        lane: Lane,
        middlewares: Sequence[MiddlewareFunc],
        context_class: type[RunContext],
        poll_interval: int,
        on_ended: Callable[[], None],
        on_due: Callable[[str, str, int], None],
    ) -> None:
        """Prepares to dispatch.

        Args:
            executor: What runs executions.
            clock: Decides whether a lease still holds.
            lane: Carries outcomes and heartbeats to the store.
            middlewares: Wrapped around each body, the first outermost.
            context_class: The app's class of contexts.
            poll_interval: Microseconds after which a failed run of mode ``UNLOCK`` is due again.
            on_ended: Called when an execution has ended.
            on_due: Called with group, key and instant when a record of ours was written that
                comes due then.
        """
        self.clock = clock
        self.lane = lane
        self.context_class = context_class
        self.notes_runners = not hasattr(executor, "cancel")
        self.executions: set[Execution] = set()
        self._executor = executor
        self._middlewares = middlewares
        self._poll_interval = poll_interval
        self._on_ended = on_ended
        self._on_due = on_due
        self._parts: dict[Task, TaskParts] = {}
        self._strangers = 0
        self._suspect: Execution | None = None

    def lease(self, task: Task) -> int:
        """Microseconds for which a claim of the task's records holds."""
        return self._task_parts(task).lease

    async def dispatch(
        self,
        records: Iterable[Record],
        groups: Mapping[str, Task],
        statics: Mapping[str, Task],
        claim: Claim,
        stopping: Callable[[], bool],
    ) -> None:
        """Starts what was claimed.

        Args:
            records: What was claimed.
            groups: The templates by group.
            statics: The static tasks by key; apart, because one may be named like a group.
            claim: Where the records came from.
            stopping: Whether nothing is to start any more.
        """
        batches: dict[Task, Batch] = {}
        spawn = self._executor.spawn_task
        left = iter(records)
        try:
            for record in left:
                static = record.group == STATIC_GROUP
                task = statics[record.key] if static else groups[record.group]
                batch = batches.get(task)
                if batch is None:
                    batch = batches[task] = self._batch(task, claim)
                if stopping():
                    self._give_back(record, claim.now)
                    continue
                execution = self._execution(batch, record, claim.now)
                if execution is None:
                    continue
                self.executions.add(execution)
                run = execution.run()
                try:
                    await spawn(run)
                except (Exception, asyncio.CancelledError) as error:
                    self._not_started(execution, run, error)
        except asyncio.CancelledError:
            for record in left:
                self._give_back(record, claim.now)
            raise

    def cancel(self) -> None:
        """Cancels what runs, and lets nothing start any more."""
        for execution in list(self.executions):
            execution.cancel()
        if not self.notes_runners:
            self._executor.cancel()  # type: ignore[attr-defined]

    def ended(self, execution: Execution) -> None:
        self.executions.discard(execution)
        if execution is self._suspect:
            self._suspect = None
        self._on_ended()

    def wrote(self, write: Write) -> None:
        change = write.change
        if not isinstance(change, Delete) and change.due_at is not None:
            self._on_due(write.group, write.key, change.due_at)

    def _batch(self, task: Task, claim: Claim) -> Batch:
        parts = self._task_parts(task)
        lease_s = parts.lease / 1_000_000
        return Batch(parts, claim.sent + lease_s, claim.took > lease_s / 10)

    def _execution(self, batch: Batch, record: Record, now: int) -> Execution | None:
        """What a claimed record leads to: an execution, or its being given up."""
        task = batch.parts.task
        try:
            reading = read(record)
        except UnreadableHere as error:
            self._strangers += 1
            delay = min(self._poll_interval << min(self._strangers, 16), STRANGER_DELAY_MAX)
            logger.warning("%s of %s is left to another worker: %s", record.key, task, error)
            self._give_back(record, now, delay)
            return None
        except UnreadableRecord as error:
            logger.error("%s of %s is unreadable and parked: %s", record.key, task, error)
            reason, incarnation = str(error), chance.new_id(4)
            self._give_up(record, lambda record: rules.parked(record, reason, incarnation))
            return None
        execution = Execution(batch, reading)
        if rules.suspect(record):
            if self._suspect is not None:
                self._give_back(record, now, SUSPECT_DELAY)
                return None
            # The heartbeat takes along what was given back: nobody waits for it if this one dies.
            self._suspect = execution = Execution(batch._replace(extend=True), reading)
        return execution

    def _not_started(
        self, execution: Execution, run: Coroutine[Any, Any, None], error: BaseException
    ) -> None:
        if isinstance(error, asyncio.CancelledError):
            self._withdraw(execution, run, 0)
            # A body that is run inside the loop may be cancelled alone; the loop goes on then.
            current = asyncio.current_task()
            if current is None or current.cancelling():
                raise error
        else:
            logger.error("The executor failed to take on %s", execution.task(), exc_info=error)
            self._withdraw(execution, run, self._poll_interval)

    def _withdraw(self, execution: Execution, run: Coroutine[Any, Any, None], delay: int) -> None:
        """Gives back what the executor was handed, unless it has begun."""
        if not execution.begun:
            run.close()
            self.ended(execution)
            self._give_back(execution.reading.record, self.clock.microseconds(), delay)

    def _give_back(self, record: Record, now: int, delay: int = 0) -> None:
        self._give_up(record, lambda record: _given_back(record, now, delay))

    def _give_up(self, record: Record, decide: Callable[[Record], Change]) -> None:
        self.lane.add(_Release(self, record, decide))

    def _task_parts(self, task: Task) -> TaskParts:
        parts = self._parts.get(task)
        if parts is None:
            at_most_once = task.execution_mode is ExecutionMode.AT_MOST_ONCE
            parts = self._parts[task] = TaskParts(
                self,
                task,
                compose(self._middlewares, task.task_func),
                Policy(task.fast_forward, task.failure_mode, self._poll_interval),
                max(task.lease, AT_MOST_ONCE_LEASE_MIN) if at_most_once else task.lease,
                at_most_once,
            )
        return parts


def _given_back(record: Record, now: int, delay: int) -> Change:
    try:
        reading = read(record)
    except ValueError:
        return rules.given_back_unread(record, now, delay)
    return rules.given_back(reading, now, delay)


class _Release:
    """A claimed record that is not run: given back, or parked."""

    __slots__ = ("_decide", "_dispatcher", "_record")

    def __init__(
        self, dispatcher: Dispatcher, record: Record, decide: Callable[[Record], Change]
    ) -> None:
        self._dispatcher = dispatcher
        self._record = record
        self._decide = decide

    def build(self, now: int) -> Write | None:
        record = self._record
        return Write(record.group, record.key, self._decide(record), record.version, record.token)

    def resolve(self, result: Applied | Refused, write: Write, now: int) -> bool:
        if not isinstance(result, Refused):
            self._dispatcher.wrote(write)
            return False
        current, held = result.current, self._record
        if (
            current is None
            or (current.token, current.unfinished_attempts)
            != (held.token, held.unfinished_attempts)
            or current.state != State.RUNNING
        ):
            return False
        self._record = current  # somebody has asked for something meanwhile
        return True

    def fail(self, error: Exception, now: int) -> bool:
        return self._record.due_at is not None and now < self._record.due_at
