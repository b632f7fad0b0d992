"""Internal tasks: they run in the worker's own context, and all of them end when it closes.

An internal task belongs to the worker, not to the caller that happened to start it, so it does not
see the context variables (traces, tenants) of that caller. It is a plain task even if the event
loop has a task factory: with an eager factory, a task could end before the call that creates it
returns.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from pyncette.logs import log_exception

logger = logging.getLogger(__name__)


class Background:
    """Starts internal tasks in the context in which it was created."""

    def __init__(self) -> None:
        """Takes the current event loop and a copy of the current context."""
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(
        self, coroutine: Coroutine[Any, Any, Any], name: str, awaited: bool = False
    ) -> asyncio.Task[Any]:
        """Starts a coroutine as a task of the worker.

        Args:
            coroutine: The coroutine.
            name: The name of the task.
            awaited: Whether the caller takes its result. If not, an error is logged.
        """
        task = asyncio.Task(coroutine, loop=self.loop, name=name, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard if awaited else self._ended)
        return task

    def call(self, function: Callable[[], None]) -> None:
        """Calls a function in the event loop soon; safe in signal handlers and other threads."""
        with suppress(RuntimeError):  # the event loop is closed already
            self.loop.call_soon_threadsafe(function)

    def is_cancelled(self) -> bool:
        """Returns whether all its tasks are being cancelled, as they are when a loop ends."""
        return bool(self._tasks) and all(task.cancelling() for task in self._tasks)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log_exception(logger, logging.ERROR, error, "%s failed", task.get_name())

    async def close(self) -> None:
        """Cancels the tasks that are left and waits until they have ended."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)


async def finished(task: asyncio.Task[Any], on_cancel: Callable[[], None]) -> bool:
    """Waits for the end of a task, even if the caller is cancelled meanwhile.

    Args:
        task: An internal task.
        on_cancel: Called at each cancellation of the caller.

    Returns:
        Whether the caller was cancelled. If so, it must raise ``CancelledError`` after it has
        completed its work.
    """
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
            on_cancel()
    return cancelled


def is_cancelled() -> bool:
    """Returns whether a cancellation of the current task was requested.

    This tells a cancellation of this task from a ``CancelledError`` that an awaited call raised.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
