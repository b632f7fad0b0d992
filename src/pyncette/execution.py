"""One run: from the record that was claimed to the outcome that is handed to the settler.

Knows the order of things (may it still start, advance first if at most once, the context, the
middlewares, the body, the outcome) and what a refused write means for the run that asked for it.
What is written is decided by :mod:`pyncette.lifecycle`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

from pyncette import lifecycle
from pyncette.clock import Clock, from_microseconds
from pyncette.errors import LeaseLostException
from pyncette.lifecycle import Rules, Verdict
from pyncette.model import Context, ExecutionMode, MiddlewareFunc
from pyncette.record import Change, Reading, Record, read
from pyncette.settler import Entry, Lane
from pyncette.store import Applied, Result, Write
from pyncette.task import Task

logger = logging.getLogger(__name__)

Handler = Callable[[Any], Awaitable[None]]


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
            self.scheduled_at = instant.astimezone(reading.plan.timezone)
            return self.scheduled_at
        raise AttributeError(f"The context has no {name!r}: no fixture or item of that name")

    async def heartbeat(self) -> None:
        await self._execution.heartbeat()


class Runtime(Protocol):
    """What an execution needs of the worker that it runs in."""

    clock: Clock
    lane: Lane
    context_class: type[RunContext]

    def ended(self, execution: Execution) -> None:
        """The execution needs no slot any more."""

    def wrote(self, write: Write) -> None:
        """A write of one's own was applied: its record may come due soon."""


class Execution:
    """One execution of one record.

    It is itself the entry of its outcome in the settler's lane.
    """

    __slots__ = (
        "_error",
        "_extend",
        "_failed",
        "_handler",
        "_lost",
        "_rules",
        "_runtime",
        "_start_before",
        "_template",
        "_token",
        "_valid_until",
        "ended",
        "reading",
        "runner",
    )

    def __init__(
        self,
        runtime: Runtime,
        template: Task,
        handler: Handler,
        rules: Rules,
        reading: Reading,
        token: str,
        start_before: float,
        extend: bool,
    ) -> None:
        """Prepares an execution.

        Args:
            runtime: The worker.
            template: The declared task.
            handler: Middlewares and body.
            rules: The task's options about outcomes.
            reading: The record as claimed.
            token: Of the claim.
            start_before: The monotonic instant at which the lease may have ended.
            extend: Whether much of the lease is gone already.
        """
        self._runtime = runtime
        self._template = template
        self._handler = handler
        self._rules = rules
        self.reading = reading
        self._token = token
        self._start_before = start_before
        self._valid_until = reading.record.due_at or 0
        self._extend = extend
        self._lost = False
        self._failed = False
        self._error: str | None = None
        self.ended = False
        self.runner: asyncio.Task[Any] | None = None

    # What the body sees.

    def task(self) -> Task:
        """The declared task, or the instance as it was stored."""
        if not self._template.dynamic:
            return self._template
        record, plan, _ = self.reading
        return self._template.from_parts(record.key, plan, record.args)

    def arguments(self) -> dict[str, Any]:
        """The arguments, in a dictionary of their own."""
        if not self._template.dynamic:
            return dict(self._template.extra_args)
        return dict(self.task().extra_args)

    async def heartbeat(self) -> None:
        """Extends the lease; see :meth:`pyncette.model.Context.heartbeat`."""
        if self._template.execution_mode is ExecutionMode.AT_MOST_ONCE:
            return
        if self._lost:
            raise LeaseLostException(self.task())
        beat = _Beat(self)
        self._runtime.lane.add(beat)
        await beat.done

    # The run.

    async def run(self) -> None:
        """Runs it, unless it may not start any more."""
        try:
            self.runner = asyncio.current_task()
            if self._extend and not await self._extended():
                return
            if self._runtime.clock.monotonic() >= self._start_before:
                logger.warning(
                    "%s was not started: its lease ended before it could be", self.task()
                )
                return
            if self._template.execution_mode is ExecutionMode.AT_MOST_ONCE:
                await self._run_at_most_once()
            else:
                await self._run_at_least_once()
        finally:
            self.ended = True
            self._runtime.ended(self)

    def cancel(self) -> None:
        """Cancels it; if it has not ended, its lease stays."""
        if self.runner is not None:
            self.runner.cancel()

    async def _extended(self) -> bool:
        sent = self._runtime.clock.monotonic()
        try:
            beat = _Beat(self)
            self._runtime.lane.add(beat)
            await beat.done
        except Exception as error:
            logger.warning("%s was not started: %s", self.task(), error)
            return False
        self._start_before = sent + self._template.lease / 1_000_000
        return True

    async def _run_at_least_once(self) -> None:
        try:
            await self._call()
        except Exception as error:
            logger.exception("Task %s failed", self.task())
            self._failed = True
            self._error = describe(error)
        self._runtime.lane.add(self)

    async def _run_at_most_once(self) -> None:
        advance = _Advance(self)
        self._runtime.lane.add(advance, urgent=True)
        if not await advance.done:
            return
        try:
            await self._call()
        except Exception:
            logger.exception("Task %s failed", self.task())

    async def _call(self) -> None:
        context = self._runtime.context_class()
        context._execution = self
        await self._handler(context)

    # The outcome, as an entry of the settler's lane.

    def build(self, now: int) -> Write | None:
        """The change that the outcome leads to."""
        if self._lost:
            logger.warning("%s lost its lease: its outcome is not recorded", self.task())
            return None
        if self._failed:
            change = lifecycle.failed(self.reading, self._rules, now, self._error or "")
        else:
            change = lifecycle.succeeded(self.reading, self._rules, now)
        return self.write(change)

    def resolve(self, result: Result, write: Write, now: int) -> bool:
        """Takes the store's answer to the outcome."""
        if isinstance(result, Applied):
            self._runtime.wrote(write)
            return False
        found = self.meet(result.current)
        if found is Verdict.LOST:
            logger.warning("%s lost its lease: its outcome is not recorded", self.task())
        return found is Verdict.HELD

    def fail(self, error: Exception, now: int) -> bool:
        """Whether the outcome shall be written again: as long as the lease lives."""
        return now < self._valid_until

    # What the three kinds of entries share.

    def meet(self, current: Record | None) -> Verdict:
        """Takes in the record that stands in the way of a write."""
        found = lifecycle.verdict(current, self.reading)
        if found is Verdict.HELD and current is not None:
            try:
                self.reading = read(current)
            except ValueError:
                found = Verdict.LOST
            else:
                self.take(current)
        self._lost = found is Verdict.LOST
        return found

    def take(self, record: Record) -> None:
        """The record as it stands now."""
        self.reading = self.reading._replace(record=record)
        if record.due_at is not None:
            self._valid_until = record.due_at

    def write(self, change: Change) -> Write:
        """The change as a write that is conditional on holding the record."""
        record = self.reading.record
        return Write(record.group, record.key, change, record.version, self._token)


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
            lifecycle.heartbeat(execution.reading.record, now, execution._template.lease)
        )

    def resolve(self, result: Result, write: Write, now: int) -> bool:
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
        return execution.write(lifecycle.advanced(execution.reading, execution._rules, now))

    def resolve(self, result: Result, write: Write, now: int) -> bool:
        execution = self._execution
        if isinstance(result, Applied):
            execution._runtime.wrote(write)
            self._finish(True)
            return False
        found = execution.meet(result.current)
        if found is Verdict.LOST:
            logger.warning(
                "%s was not started: somebody else took it before it had moved on",
                execution.task(),
            )
        if found is not Verdict.HELD:
            self._finish(found is Verdict.SETTLED)
        return found is Verdict.HELD

    def fail(self, error: Exception, now: int) -> bool:
        again = not self.done.done() and now < self._execution._valid_until
        if not again:
            self._finish(False)
        return again

    def _finish(self, may_run: bool) -> None:
        if not self.done.done():
            self.done.set_result(may_run)


def compose(middlewares: Sequence[MiddlewareFunc], body: Handler) -> Handler:
    """The body wrapped in the middlewares; the first of them is outermost."""
    handler = body
    for middleware in reversed(middlewares):
        handler = _wrapped(middleware, handler)
    return handler


def _wrapped(middleware: MiddlewareFunc, inner: Handler) -> Handler:
    return lambda context: middleware(context, lambda: inner(context))


ERROR_CHARACTERS_MAX: Final = 500


def describe(error: BaseException) -> str:
    """An error in one line, for the record."""
    return f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS_MAX]


__all__ = ["Entry", "Execution", "Handler", "RunContext", "Runtime", "compose", "describe"]
