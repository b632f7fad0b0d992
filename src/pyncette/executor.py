"""How executions are run: each in a task of its own, or one by one inside the loop.

An executor of your own needs ``async spawn_task(awaitable)``, which returns once the work has
started and holds the caller back while no more can be taken on. It may have ``cancel()``, which
cancels all that waits for something in it, and ``concurrency_limit``, the most that it runs at
once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from contextvars import copy_context
from typing import Any, Final, Self

DEFAULT_CONCURRENCY_LIMIT: Final = 100


class DefaultExecutor:
    """Runs any number of executions side by side.

    One that has to wait for something has an asyncio task of its own. Those that come to their
    end without ever waiting share one, which saves half of the cost of a short run: a worker runs
    what is queued in turn, and when it is caught waiting, others take over the rest, and it ends
    with the execution that it is in. So does one whose execution has left traces in the task: a
    changed context variable, or a request to cancel.

    Leaving the executor waits for all that still run.
    """

    def __init__(self, **configuration: Any) -> None:
        """Creates an executor; how many run at once is ``concurrency_limit``'s to say."""
        self._queue: deque[Awaitable[Any]] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._looking = False
        self._looks = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        while self._workers:
            await asyncio.wait(self._workers)

    async def spawn_task(self, awaitable: Awaitable[Any]) -> None:
        """Starts the work and returns."""
        self._queue.append(awaitable)
        if not self._looking:
            self._start_workers(1)

    def cancel(self) -> None:
        """Cancels all that waits for something."""
        for worker in self._workers:
            worker.cancel()

    def _start_workers(self, count: int) -> None:
        for _ in range(count):
            worker = asyncio.create_task(self._work(), name="pyncette execution")
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        # Comes after the first step of each of them.
        self._looking = True
        asyncio.get_running_loop().call_soon(self._look, count)

    def _look(self, count: int) -> None:
        """What is still queued waits behind executions that wait: more workers are needed."""
        self._looking = False
        self._looks += 1
        if self._queue:
            self._start_workers(min(2 * count, len(self._queue)))

    async def _work(self) -> None:
        worker = asyncio.current_task()
        assert worker is not None
        looks = self._looks
        untouched = copy_context()
        try:
            while self._queue:
                await self._queue.popleft()
                if looks != self._looks or worker.cancelling() or copy_context() != untouched:
                    break
        finally:
            if self._queue and not self._looking:
                self._start_workers(1)


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
