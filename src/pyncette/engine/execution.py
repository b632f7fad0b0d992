"""One run: from the record that was claimed to the outcome that is handed to the settler.

Knows the order of things (may it still start, advance first if at most once, the context, the
middlewares, the body, the outcome) and what a refused write means for the run that asked for it.
What is written is decided by ``pyncette.engine.rules``.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from pyncette.body import Handler, call_body
from pyncette.clock import Clock, from_microseconds
from pyncette.engine import rules
from pyncette.engine.rules import Policy, Verdict
from pyncette.engine.writes import Lane
from pyncette.errors import LeaseLostException
from pyncette.model import Context, MiddlewareFunc, TaskFunc
from pyncette.store import Applied, Refused, Write, write_of
from pyncette.store.record import Change, Delete, Reading, Record, read
from pyncette.task import Task

logger = logging.getLogger(__name__)


class RunContext(Context):
    """The context of an execution. What is seldom looked at is made when it is.

    Each app that is opened has a subclass of its own, whose attributes are its fixtures and
    context items.
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
            reading = self._execution.reading
            instant = from_microseconds(reading.progress.occurrence or 0)
            self.scheduled_at = instant.astimezone(reading.schedule.timezone)
            return self.scheduled_at
        raise AttributeError(f"The context has no {name!r}: no fixture or item of that name")

    async def heartbeat(self) -> None:
        await self._execution.heartbeat()


class Runtime(Protocol):
    """What an execution needs of the worker that it runs in.

    Attributes:
        clock: The app's clock.
        lane: Takes outcomes and heartbeats.
        context_class: The app's class of contexts.
        notes_runners: Whether executions note the asyncio task that they run in, so that it can
            be cancelled: where the executor cannot do that itself.
    """

    clock: Clock
    lane: Lane
    context_class: type[RunContext]
    notes_runners: bool

    def ended(self, execution: Execution) -> None:
        """The execution needs no slot any more."""

    def wrote(self, write: Write) -> None:
        """A write of one's own was applied: its record may come due soon."""


class TaskParts(NamedTuple):
    """What all executions of a task share.

    Attributes:
        runtime: The worker.
        task: The declared task.
        handler: Middlewares and body.
        rules: The task's options about outcomes.
        lease: Microseconds for which a claim of it holds.
        at_most_once: Whether its record moves on before the body starts.
    """

    runtime: Runtime
    task: Task
    handler: Handler
    policy: Policy
    lease: int
    at_most_once: bool


class Batch(NamedTuple):
    """What the executions of a task from one claim share.

    Attributes:
        parts: The task.
        start_before: The monotonic instant at which their leases may have ended.
        extend: Whether much of the leases was gone when the answer came.
    """

    parts: TaskParts
    start_before: float
    extend: bool


class Execution:
    """One execution of one record.

    It is itself the entry of its outcome in the settler's lane.
    """

    # What is seldom otherwise costs nothing to set.
    _lost = False
    _error: str | None = None
    begun = False
    ended = False
    runner: asyncio.Task[Any] | None = None

    def __init__(self, batch: Batch, reading: Reading) -> None:
        """Prepares an execution of a record as claimed."""
        self._parts, self._start_before, self._extend = batch
        self.reading = reading

    # What the body sees.

    def task(self) -> Task:
        """The declared task, or the instance as it was stored."""
        task = self._parts.task
        if not task.dynamic:
            return task
        record, schedule, _ = self.reading
        return task.from_parts(record.key, schedule, record.args)

    def arguments(self) -> dict[str, Any]:
        """The arguments, in a dictionary of their own."""
        return dict(self.task().extra_args)

    async def heartbeat(self) -> None:
        """Extends the lease; see ``pyncette.model.Context.heartbeat``."""
        if self._parts.at_most_once:
            return
        if self._lost:
            raise LeaseLostException(self.task())
        beat = _Beat(self)
        self._parts.runtime.lane.add(beat)
        await beat.done

    # The run.

    async def run(self) -> None:
        """Runs it, unless it may not start any more."""
        parts = self._parts
        runtime = parts.runtime
        self.begun = True
        try:
            if runtime.notes_runners:
                self.runner = asyncio.current_task()
            if self._extend and not await self._extended():
                return
            if runtime.clock.monotonic() >= self._start_before:
                reason = (
                    "its worker is closing"
                    if self._start_before == -math.inf
                    else "its lease ended before it could be"
                )
                logger.warning("%s was not started: %s", self.task(), reason)
                return
            if parts.at_most_once and not await self._advanced():
                return
            try:
                context = runtime.context_class()
                context._execution = self
                await parts.handler(context)
            except asyncio.CancelledError:
                if self._start_before != -math.inf:
                    logger.warning(
                        "Task %s was cancelled, by its own body or what that awaited: %s",
                        self.task(),
                        "it is not run again"
                        if parts.at_most_once
                        else "it is run again when its lease is over",
                    )
                raise
            except Exception as error:
                logger.exception("Task %s failed", self.task())
                self._error = describe(error)
            if not parts.at_most_once:
                runtime.lane.add(self)
        finally:
            self.ended = True
            runtime.ended(self)

    def cancel(self) -> None:
        """Cancels it, as far as its task is known, and keeps it from starting; its lease stays."""
        self._start_before = -math.inf
        if self.runner is not None:
            self.runner.cancel()

    async def _extended(self) -> bool:
        sent = self._parts.runtime.clock.monotonic()
        try:
            beat = _Beat(self)
            self._parts.runtime.lane.add(beat)
            await beat.done
        except Exception as error:
            logger.warning("%s was not started: %s", self.task(), error)
            return False
        self._start_before = sent + self._parts.lease / 1_000_000
        return True

    async def _advanced(self) -> bool:
        """Moves the record on; whether the body may run."""
        advance = _Advance(self)
        self._parts.runtime.lane.add(advance, urgent=True)
        return await advance.done

    # The outcome, as an entry of the settler's lane.

    def build(self, now: int) -> Write | None:
        """The change that the outcome leads to."""
        if self._lost:
            logger.warning("%s lost its lease: its outcome is not recorded", self.task())
            return None
        if self._error is None:
            change = rules.succeeded(self.reading, self._parts.policy, now)
        else:
            change = rules.failed(self.reading, self._parts.policy, now, self._error)
        return self.write(change)

    def resolve(self, result: Applied | Refused, write: Write, now: int) -> bool:
        """Takes the store's answer to the outcome."""
        if isinstance(result, Applied):
            if not isinstance(write.change, Delete):
                self._parts.runtime.wrote(write)
            return False
        found = self.meet(result.current)
        if found is Verdict.LOST:
            logger.warning("%s lost its lease: its outcome is not recorded", self.task())
        elif found is Verdict.SETTLED:
            self._parts.runtime.wrote(write)
        return found is Verdict.HELD

    def fail(self, error: Exception, now: int) -> bool:
        """Whether the outcome shall be written again: as long as the lease lives."""
        if now < self.valid_until:
            return True
        logger.warning("The outcome of %s could not be recorded: %s", self.task(), error)
        return False

    # What the three kinds of entries share.

    @property
    def valid_until(self) -> int:
        """The end of the lease, as far as this worker knows."""
        return self.reading.record.due_at or 0

    def meet(self, current: Record | None) -> Verdict:
        """Takes in the record that stands in the way of a write."""
        found = rules.verdict(current, self.reading)
        if found is Verdict.HELD and current is not None:
            try:
                self.reading = read(current)
            except ValueError:
                found = Verdict.LOST
        self._lost = found is Verdict.LOST
        return found

    def take(self, record: Record) -> None:
        """The record as it stands now."""
        self.reading = self.reading._replace(record=record)

    def write(self, change: Change) -> Write:
        """The change as a write that is conditional on holding the record."""
        record = self.reading.record
        return write_of((record.group, record.key, change, record.version, record.token))


class _Beat:
    """A heartbeat under way."""

    __slots__ = ("_execution", "done")

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def build(self, now: int) -> Write | None:
        execution = self._execution
        if execution.ended or self.done.cancelled():
            # The outcome says all, and comes first.
            self._finish(None)
            return None
        if execution._lost:
            self._finish(LeaseLostException(execution.task()))
            return None
        return execution.write(
            rules.heartbeat(execution.reading.record, now, execution._parts.lease)
        )

    def resolve(self, result: Applied | Refused, write: Write, now: int) -> bool:
        execution = self._execution
        if isinstance(result, Applied):
            due_at = getattr(write.change, "due_at", None)
            execution.take(execution.reading.record._replace(version=result.version, due_at=due_at))
            self._finish(None)
            return False
        found = execution.meet(result.current)
        if found is Verdict.LOST:
            self._finish(LeaseLostException(execution.task()))
        elif found is Verdict.SETTLED:
            self._finish(None)
        return found is Verdict.HELD

    def fail(self, error: Exception, now: int) -> bool:
        # What became of it is unknown: whether it holds will show at the next write, which finds
        # its own token. The caller is told, and may try again.
        self._finish(error)
        return False

    def _finish(self, error: Exception | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class _Advance:
    """An at-most-once record moving on before its body runs; ``done`` tells whether it may."""

    __slots__ = ("_execution", "done")

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def build(self, now: int) -> Write | None:
        execution = self._execution
        if self.done.cancelled():
            return None
        return execution.write(rules.advanced(execution.reading, execution._parts.policy, now))

    def resolve(self, result: Applied | Refused, write: Write, now: int) -> bool:
        execution = self._execution
        if isinstance(result, Applied):
            execution._parts.runtime.wrote(write)
            self._finish(True)
            return False
        found = execution.meet(result.current)
        if found is Verdict.LOST:
            logger.warning(
                "%s was not started: somebody else took it before it had moved on",
                execution.task(),
            )
        elif found is Verdict.SETTLED:
            execution._parts.runtime.wrote(write)
        if found is not Verdict.HELD:
            self._finish(found is Verdict.SETTLED)
        return found is Verdict.HELD

    def fail(self, error: Exception, now: int) -> bool:
        if self.done.done():
            return False
        if now < self._execution.valid_until:
            return True
        logger.warning(
            "%s was not started: whether it has moved on is unknown: %s",
            self._execution.task(),
            error,
        )
        self._finish(False)
        return False

    def _finish(self, may_run: bool) -> None:
        if not self.done.done():
            self.done.set_result(may_run)


def compose(middlewares: Sequence[MiddlewareFunc], body: TaskFunc) -> Handler:
    """The body wrapped in the middlewares; the first of them is outermost."""
    handler = call_body(body)
    for middleware in reversed(middlewares):
        handler = _wrapped(middleware, handler)
    return handler


def _wrapped(middleware: MiddlewareFunc, inner: Handler) -> Handler:
    return lambda context: middleware(context, lambda: inner(context))


ERROR_CHARACTERS_MAX: Final = 500


def describe(error: BaseException) -> str:
    """An error in one line, for the record."""
    return f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS_MAX]


__all__ = [
    "Batch",
    "Execution",
    "Handler",
    "RunContext",
    "Runtime",
    "TaskParts",
    "compose",
    "describe",
]
