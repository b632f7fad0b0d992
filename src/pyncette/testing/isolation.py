"""An app of a program, isolated for a test: a store of its own, and a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from pyncette.app import Pyncette
from pyncette.clock import Clock
from pyncette.context import PyncetteContext
from pyncette.errors import PyncetteException
from pyncette.memory import MemoryRepository
from pyncette.model import RunCounts
from pyncette.testing.clocks import VirtualClock

__all__ = ["IsolatedApp", "isolated"]

_T = TypeVar("_T")


class IsolatedApp:
    """What a test does with an app that is isolated.

    The methods that are not asynchronous are for tests that are not either: they run an event loop
    until they return.

    Attributes:
        app: The app itself.
        clock: Its clock.
    """

    def __init__(self, app: Pyncette, clock: VirtualClock) -> None:
        """See ``isolated``, which returns one."""
        self.app = app
        self.clock = clock

    @asynccontextmanager
    async def running(self) -> AsyncIterator[PyncetteContext]:
        """As ``app.running()``; what is due at the start has run when the block begins."""
        async with self.app.running() as context:
            await self.clock.settle()
            yield context

    def advance(self, by: timedelta) -> None:
        """Moves the clock, while a worker runs what comes due.

        Raises:
            PyncetteException: An event loop runs in this thread: await ``clock.advance`` there.
            Exception: What ``VirtualClock.advance`` raises, for example what a task has raised.
        """

        async def move() -> None:
            async with self.running():
                await self.clock.advance(by)

        _run("advance", move())

    def run_until_idle(self) -> RunCounts:
        """Runs what is due now.

        Raises:
            PyncetteException: An event loop runs in this thread: await ``run_until_idle`` of the
                context there.
            Exception: What a task has raised.
        """

        async def run() -> RunCounts:
            async with self.app.create() as context:
                return await context.run_until_idle()

        return _run("run_until_idle", run())


def _run(method: str, work: Coroutine[Any, Any, _T]) -> _T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    work.close()
    raise PyncetteException(
        f"{method}() of an isolated app is for tests that are not asynchronous. In a coroutine, "
        "open it with app.running() and await clock.advance(…), or with app.create() and await "
        "run_until_idle() of the context"
    )


@contextmanager
def isolated(
    app: Pyncette, *, clock: VirtualClock | None = None, raise_task_errors: bool = True
) -> Iterator[IsolatedApp]:
    """Isolates an app: within the block, it has an empty store in memory and a clock by hand.

    ``app.create()``, ``app.running()``, ``app.sync()`` and ``app.main()`` all use these, and see
    the same records. Afterwards, the app is as it was. Leave what you have opened before.

    Args:
        app: The app of your program; do not open it before.
        clock: The clock; by default a new one.
        raise_task_errors: See ``Pyncette``.
    """
    clock = VirtualClock() if clock is None else clock
    before: tuple[Any, Clock, bool] = (
        app._repository_factory,
        app.clock,
        app._raise_task_errors,
    )
    app.sync().close()
    app._repository_factory = MemoryRepository()
    app.clock, app._raise_task_errors = clock, raise_task_errors
    try:
        yield IsolatedApp(app, clock)
    finally:
        app.sync().close()
        app._repository_factory, app.clock, app._raise_task_errors = before
