"""The threads in which an open app runs the plain functions of its tasks."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from pyncette.clock import Clock

_T = TypeVar("_T")


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
        future = loop.run_in_executor(self._pool, call, _called, function, context)
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        return future.result()

    def close(self) -> None:
        """Lets the threads end. Call it when no function runs any more."""
        self._pool.shutdown(wait=False)


def _called(function: Callable[[Any], _T], context: Any) -> _T:
    try:
        return function(context)
    except StopIteration as error:
        # A future refuses it, and would never be done.
        raise RuntimeError(f"{function!r} raised StopIteration") from error
