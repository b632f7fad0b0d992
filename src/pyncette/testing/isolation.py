"""An app of a program, isolated for a test: a store of its own, and a clock that the test moves."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any, Final, Protocol, TypeVar

from pyncette.app import Pyncette
from pyncette.clock import Clock
from pyncette.context import PyncetteContext
from pyncette.errors import PyncetteException
from pyncette.memory import MemoryRepository
from pyncette.model import RunCounts
from pyncette.testing.clocks import VirtualClock

__all__ = ["Isolate", "IsolatedApp", "isolated"]

logger: Final = logging.getLogger(__name__)

_T = TypeVar("_T")


class IsolatedApp:
    """What a test does with an app that is isolated.

    The methods that are not asynchronous are for tests that are not either: they run an event loop
    until they return. A task that sleeps on the clock then goes on when the clock is moved again;
    at the end of the test, it is cancelled.

    Attributes:
        app: The app itself.
        clock: Its clock.
    """

    def __init__(self, app: Pyncette, clock: VirtualClock) -> None:
        """See ``isolated``, which returns one."""
        self.app = app
        self.clock = clock
        # Open as long as tasks sleep in it.
        self._runner: asyncio.Runner | None = None
        self._sleeping: list[_Session] = []

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
            async with self._session(self.app.running):
                await self.clock.settle()
                await self.clock.advance(by)

        self._run("advance", move)

    def run_until_idle(self) -> RunCounts:
        """Runs what is due now.

        A task that sleeps on the clock is counted, and goes on when the clock is moved.

        Raises:
            PyncetteException: An event loop runs in this thread: await ``run_until_idle`` of the
                context there.
            Exception: What a task has raised.
        """

        async def run() -> RunCounts:
            async with self._session(self.app.create) as session:
                running = asyncio.ensure_future(session.context.run_until_idle())
                try:
                    await self.clock.settle()
                    if session.sleeping():
                        session.context.shutdown()
                    return await running
                finally:
                    running.cancel()

        return self._run("run_until_idle", run)

    @asynccontextmanager
    async def _session(
        self, opening: Callable[[], AbstractAsyncContextManager[PyncetteContext]]
    ) -> AsyncIterator[_Session]:
        """The app, open until none of its tasks sleeps any more, in this call or a later one."""
        session = _Session(opening())
        sessions = [*self._sleeping, session]
        self._sleeping = []
        try:
            await session.opened()
            yield session
            session.context.shutdown()
            self._sleeping = [each for each in sessions if each.sleeping()]
            for each in sessions:
                if each not in self._sleeping:
                    await each.close()
        except BaseException as error:
            # What still sleeps would have to be waited for, and nothing moves the clock.
            self._sleeping = []
            for each in sessions:
                await each.cancel(error)
            raise

    def _run(self, method: str, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        if _in_a_loop():
            raise PyncetteException(
                f"{method}() of an isolated app is for tests that are not asynchronous. In a "
                "coroutine, open it with app.running() and await clock.advance(…), or with "
                "app.create() and await run_until_idle() of the context"
            )
        if self._runner is None:
            self._runner = asyncio.Runner()
        try:
            return self._runner.run(work(), context=contextvars.copy_context())
        finally:
            if not self._sleeping:
                self._close_runner()

    def _close_runner(self) -> None:
        if self._runner is not None:
            runner, self._runner = self._runner, None
            runner.close()

    def _end(self) -> None:
        """The test has ended: what still sleeps is cancelled."""
        if not self._sleeping or self._runner is None:
            return
        sessions, self._sleeping = self._sleeping, []
        names = sorted({name for each in sessions for name in each.sleeping()})
        logger.warning(
            "The test ends while these tasks sleep on its clock, so they are cancelled: %s. To see "
            "what they do, move the clock further",
            ", ".join(names[:10]),
        )

        async def cancel() -> None:
            for each in sessions:
                await each.cancel()

        try:
            self._runner.run(cancel())
        finally:
            self._close_runner()


class _Session:
    """An open app, in a task of its own: it may stay open when the call that opened it returns."""

    def __init__(self, opening: AbstractAsyncContextManager[PyncetteContext]) -> None:
        loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[PyncetteContext] = loop.create_future()
        self._left = asyncio.Event()
        self._kept = asyncio.ensure_future(self._keep(opening))

    async def _keep(self, opening: AbstractAsyncContextManager[PyncetteContext]) -> None:
        async with opening as context:
            self._opened.set_result(context)
            await self._left.wait()

    async def opened(self) -> None:
        """Waits until the app is open.

        Raises:
            Exception: What ``Pyncette.create`` raises.
        """
        both: list[asyncio.Future[Any]] = [self._opened, self._kept]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not self._opened.done():
            await self._kept

    @property
    def context(self) -> PyncetteContext:
        return self._opened.result()

    def sleeping(self) -> list[str]:
        """The tasks whose functions are under way, by name."""
        return [name for name, _ in self.context._worker.bodies.under_way()]

    async def close(self) -> None:
        """Closes the app.

        Raises:
            Exception: What a task has raised.
        """
        self._left.set()
        await self._kept

    async def cancel(self, error: BaseException | None = None) -> None:
        """Closes the app, and cancels its tasks. The error is what the caller raises instead."""
        if self._kept.done():
            return
        if error is not None and self._opened.done():
            self.context._worker.bodies.note_on(error)
        if self._opened.done():
            self.context._give_up_runs()
        self._kept.cancel()
        await asyncio.wait([self._kept])
        if not self._kept.cancelled() and (failed := self._kept.exception()) is not None:
            logger.warning("The app was not closed as it should be", exc_info=failed)


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Isolate(Protocol):
    """The type of what the fixture ``pyncette_isolated`` of pytest gives to a test."""

    def __call__(
        self, app: Pyncette, *, clock: VirtualClock | None = None, raise_task_errors: bool = True
    ) -> IsolatedApp:
        """Isolates an app for the rest of the test, see ``isolated``.

        Args:
            app: The app of your program.
            clock: The clock; by default that of the fixture ``pyncette_clock``.
            raise_task_errors: See ``Pyncette``.
        """
        ...


@contextmanager
def isolated(
    app: Pyncette, *, clock: VirtualClock | None = None, raise_task_errors: bool = True
) -> Iterator[IsolatedApp]:
    """Isolates an app: within the block, it has an empty store in memory and a clock by hand.

    ``app.create()``, ``app.running()``, ``app.sync()`` and ``app.main()`` all use these, and see
    the same records. A health check listens on a free port instead of its own. Afterwards, the app
    is as it was. Leave what you have opened before.

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
    app._sync.close()
    app._repository_factory = MemoryRepository()
    app.clock, app._raise_task_errors = clock, raise_task_errors
    nested, app._isolated = app._isolated, True
    world = IsolatedApp(app, clock)
    try:
        yield world
    finally:
        world._end()
        app._sync.close()
        app._repository_factory, app.clock, app._raise_task_errors = before
        app._isolated = nested
