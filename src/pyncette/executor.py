"""How executions are run: each in a task of its own, or one by one inside the loop.

An executor of your own needs ``async spawn_task(awaitable)``, which returns once the work has
started and holds the caller back while no more can be taken on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, Self

DEFAULT_CONCURRENCY_LIMIT: Final = 100

_PRUNE_MIN: Final = 256


class DefaultExecutor:
    """Runs each execution in an asyncio task of its own.

    Leaving it waits for those that are still running.
    """

    def __init__(self, **configuration: Any) -> None:
        """Creates an executor; how many run at once is ``concurrency_limit``'s to say."""
        self._tasks: list[asyncio.Task[Any]] = []
        self._prune_at = _PRUNE_MIN

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)
            self._prune()

    async def spawn_task(self, awaitable: Awaitable[Any]) -> None:
        """Starts the work and returns."""
        coroutine = awaitable if asyncio.iscoroutine(awaitable) else _wait_for(awaitable)
        task = asyncio.create_task(coroutine)
        # The event loop itself keeps no task alive. A callback for each that ends would cost as
        # much as starting it.
        self._tasks.append(task)
        if len(self._tasks) >= self._prune_at:
            self._prune()

    def _prune(self) -> None:
        self._tasks = [task for task in self._tasks if not task.done()]
        self._prune_at = 2 * len(self._tasks) + _PRUNE_MIN


class SynchronousExecutor:
    """Runs each execution inside the loop of the scheduler, one by one. Good for tests."""

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


async def _wait_for(awaitable: Awaitable[Any]) -> None:
    await awaitable
