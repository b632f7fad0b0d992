"""Executors: they run each execution in its own asyncio task, or one by one inside the loop.

Your own executor needs ``async spawn_task(awaitable)``. It returns when the work has started, and
waits while the executor cannot accept more. It may have a ``concurrency_limit``, the maximum number
of executions at once.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from types import CoroutineType
from typing import Any, Final, Self

DEFAULT_CONCURRENCY_LIMIT: Final = 100

_SWEEP_MIN: Final = 256

_Task = asyncio.Task[Any]

_NAME: Final = "pyncette execution"

_Start = Callable[[Coroutine[Any, Any, Any]], None]

# To make a name up for each task costs as much as half of making the task.
if sys.version_info >= (3, 12):

    def _starter(loop: asyncio.AbstractEventLoop, keep: Callable[[_Task], None]) -> _Start:
        def start(work: Coroutine[Any, Any, Any]) -> None:
            task = asyncio.Task(work, loop=loop, name=_NAME, eager_start=True)
            if not task.done():
                keep(task)

        return start

else:

    def _starter(loop: asyncio.AbstractEventLoop, keep: Callable[[_Task], None]) -> _Start:
        return lambda work: keep(asyncio.Task(work, loop=loop, name=_NAME))


class DefaultExecutor:
    """Runs any number of executions at the same time, each in its own asyncio task.

    From Python 3.12 on a task begins at once, in the call that starts it: a run that never waits
    then needs no iteration of the event loop. Closing the executor waits for all running tasks.
    """

    def __init__(self, **configuration: Any) -> None:
        """Creates an executor; the app's ``concurrency_limit`` bounds the executions at once."""
        # Ended tasks are removed when there are many, because a callback for each would cost more.
        self._tasks: list[asyncio.Task[Any]] = []
        self._sweep_at = _SWEEP_MIN

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)
            self._sweep()

    async def spawn_task(self, awaitable: Awaitable[Any]) -> None:
        """Starts the work and returns."""
        self.starter()(awaitable if type(awaitable) is CoroutineType else _awaited(awaitable))

    def starter(self) -> _Start:
        """Returns a function that starts a coroutine, as ``spawn_task`` does, for many in a row."""
        loop = asyncio.get_running_loop()
        if loop.get_task_factory() is None:
            return _starter(loop, self._keep)
        return lambda work: self._keep(loop.create_task(work))

    def _keep(self, task: _Task) -> None:
        self._tasks.append(task)
        if len(self._tasks) >= self._sweep_at:
            self._sweep()

    def _sweep(self) -> None:
        self._tasks = [task for task in self._tasks if not task.done()]
        self._sweep_at = max(2 * len(self._tasks), _SWEEP_MIN)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


class SynchronousExecutor:
    """Runs executions one by one inside the loop of the scheduler. Use it in tests."""

    concurrency_limit: Final = 1

    def __init__(self, **configuration: Any) -> None:
        """Creates an executor; it has no options."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        pass

    async def spawn_task(self, awaitable: Awaitable[Any]) -> None:
        """Does the work and returns."""
        await awaitable
