"""The threads in which an open app runs the plain functions of its tasks."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import FrameType
from typing import Any, Final, TypeVar

from pyncette.clock import Clock

_T = TypeVar("_T")

FRAMES_MAX: Final = 30
"""How many frames of a function are told, the innermost ones."""


class Threads:
    """At most so many plain functions at once, each in a thread; threads start when needed."""

    def __init__(self, limit: int, clock: Clock) -> None:
        """Starts no thread yet.

        Args:
            limit: How many functions run at once; others wait.
            clock: A clock that a test moves stands still while a function runs.
        """
        self._pool = ThreadPoolExecutor(limit, "pyncette task")
        self._free = asyncio.Semaphore(limit)
        self._clock = clock
        self._running: dict[int, int] = {}  # by the identity of the context: the thread

    async def run(self, function: Callable[[Any], _T], context: Any) -> _T:
        """Runs a function in a thread, with the context variables of the caller.

        A thread cannot be cancelled. If the caller is cancelled, it waits until the function has
        ended, so that its slot is not given away before; and what the function has done counts.

        Raises:
            LeaseLostException: The function had to wait for a thread, and the lease was lost
                meanwhile: it was not called.
        """
        waits = self._free.locked()
        async with self._free:
            if waits:
                await context.heartbeat()
            with self._clock.hold():
                return await self._called(function, context)

    async def _called(self, function: Callable[[Any], _T], context: Any) -> _T:
        loop = asyncio.get_running_loop()
        call = contextvars.copy_context().run
        future = loop.run_in_executor(self._pool, call, self._call, function, context)
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        return future.result()

    def _call(self, function: Callable[[Any], _T], context: Any) -> _T:
        self._running[id(context)] = threading.get_ident()
        try:
            return _called(function, context)
        finally:
            del self._running[id(context)]

    def stack_of(self, context: Any) -> list[str]:
        """Where the function of an execution stands now: its last frames, as lines of a traceback.

        Empty if it does not run in a thread.
        """
        thread = self._running.get(id(context))
        if thread is None:
            return []
        frames: list[tuple[FrameType, int]] = []
        frame = sys._current_frames().get(thread)
        while frame is not None and frame.f_code is not _called.__code__:
            if len(frames) < FRAMES_MAX:
                frames.append((frame, frame.f_lineno))
            frame = frame.f_back
        if self._running.get(id(context)) != thread:
            return []  # it has ended meanwhile, and the thread may run another one
        return traceback.StackSummary.extract(reversed(frames)).format()

    def close(self) -> None:
        """Lets the threads end. Call it when no function runs any more."""
        self._pool.shutdown(wait=False)


def _called(function: Callable[[Any], _T], context: Any) -> _T:
    try:
        return function(context)
    except StopIteration as error:
        # A future refuses it, and would never be done.
        raise RuntimeError(f"{function!r} raised StopIteration") from error
