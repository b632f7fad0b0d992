"""Timeouts: they cancel the body of a task that takes too long.

Only the body is cancelled, so middlewares see its ``TimeoutError`` as they see any other exception,
and what they wait for does not count.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from pyncette.body import Handler, threads_of

if TYPE_CHECKING:
    from pyncette.engine.execution import Execution
    from pyncette.engine.worker import Worker

logger = logging.getLogger(__name__)

_WORD_PAUSE_INITIAL_S: Final = 10.0
"""When the log first names a body that goes on although it was cancelled; then at each doubling."""

_WORD_PAUSE_MAX_S: Final = 3_600.0


def with_timeout(body: Handler, timeout: timedelta, worker: Worker) -> Handler:
    """Limits the time of a body, from its start."""

    async def run(context: Any) -> None:
        async with _Timeout(worker, context, timeout):
            await body(context)

    return run


class _Timeout:
    """Cancels its block, once, after a time on the app's clock.

    It works like ``asyncio.timeout``: one ``cancel()`` is followed by one ``uncancel()``, so that a
    cancellation from outside is detected and raised again. A block that was cancelled here has
    failed with ``TimeoutError``, also if it catches the cancellation and returns. If it raises
    another exception, that one is raised.
    """

    def __init__(self, worker: Worker, context: Any, timeout: timedelta) -> None:
        self._worker = worker
        self._context = context
        self._execution: Execution = context._execution
        self._stack: list[str] = []
        self._timeout = timeout
        self._expired = False
        self._ended = False

    async def __aenter__(self) -> None:
        runner = asyncio.current_task()
        assert runner is not None
        self._runner = runner
        self._cancelling = runner.cancelling()
        clock = self._worker.clock
        self._execution.rarely().deadline = clock.microseconds() + self._timeout // _MICROSECOND
        self._timer = self._worker.background.start(self._run_out(), "pyncette timeout")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended = True
        self._timer.cancel()
        if not self._expired:
            return
        from_outside = self._runner.uncancel() > self._cancelling
        if error is None or (issubclass(type(error), asyncio.CancelledError) and not from_outside):
            # One traceback, which shows where the body was.
            timed_out = TimeoutError(f"The task did not end within {self._timeout}")
            if self._stack:
                # It ran in a thread, so that the traceback has none of its frames.
                timed_out.add_note("When its time ran out, its function stood here:")
                timed_out.add_note("".join(self._stack).rstrip())
            raise timed_out.with_traceback(traceback) from None
        if not issubclass(type(error), asyncio.CancelledError):
            logger.warning(
                "%s did not end within its timeout (%s), was cancelled, and raised another "
                "exception",
                self._execution.label,
                self._timeout,
            )

    async def _run_out(self) -> None:
        clock = self._worker.clock
        await clock.sleep(self._timeout.total_seconds())
        if self._ended:
            return
        threads = threads_of(self._context)
        if threads is not None:
            self._stack = threads.stack_of(self._context)
        # The line of its failure follows, unless it goes on.
        logger.debug(
            "%s did not end within its timeout (%s) and is cancelled",
            self._execution.label,
            self._timeout,
        )
        self._expired = self._execution.rarely().timed_out = True
        self._runner.cancel()
        self._execution.keep_lease()
        pause_s, waited_s = _WORD_PAUSE_INITIAL_S, 0.0
        while True:
            await clock.sleep(pause_s)
            waited_s += pause_s
            logger.warning(
                "%s still runs, %.0f s after its timeout (%s) has cancelled it: it catches "
                "CancelledError, blocks the event loop, or runs in a thread. It keeps its slot "
                "and its lease until it ends.",
                self._execution.label,
                waited_s,
                self._timeout,
            )
            pause_s = min(2 * pause_s, _WORD_PAUSE_MAX_S)


_MICROSECOND: Final = timedelta(microseconds=1)
