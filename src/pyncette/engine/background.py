"""Internal tasks: started in the worker's own context, and never left behind.

An internal task belongs to the worker and not to whoever happened to call first, so it does not
see the context variables (traces, tenants) of that caller. It is a plain task whatever task
factory the event loop has: no code of ours has to work when it has ended before its creator goes
on.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

logger = logging.getLogger(__name__)


class Background:
    """Starts internal tasks in the context in which it was created."""

    def __init__(self) -> None:
        """Takes the current event loop and a copy of the current context."""
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(
        self, coroutine: Coroutine[Any, Any, Any], name: str, awaited: bool = False
    ) -> asyncio.Task[Any]:
        """Starts a coroutine as a task of the worker.

        Args:
            coroutine: What it does.
            name: The name of the task.
            awaited: Whether somebody takes its result; else an error is logged.
        """
        task = asyncio.Task(coroutine, loop=self._loop, name=name, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard if awaited else self._ended)
        return task

    def call(self, function: Callable[[], None]) -> None:
        """Calls a function in the event loop soon; safe in signal handlers and other threads."""
        with suppress(RuntimeError):  # the loop is closed: nothing is left that could hear it
            self._loop.call_soon_threadsafe(function)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Cancels what is left and waits for its end."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)


async def finished(task: asyncio.Task[Any], on_cancel: Callable[[], None]) -> bool:
    """Waits for the end of a task, also where the caller is cancelled meanwhile.

    Args:
        task: An internal task.
        on_cancel: Called at each cancellation of the caller.

    Returns:
        Whether the caller was cancelled: it has to raise ``CancelledError`` when it has done
        what must be done.
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
    """Whether somebody has asked to cancel the current task.

    Tells a cancellation of this task from a ``CancelledError`` that came out of what it awaited.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
