"""The open context that the dashboard looks through: that of the service, or one of its own.

A mounted app gets no lifespan from most frameworks, so nothing may depend on one. If the program
has opened the app in the same event loop (``app.running()``, ``app.create()``), that context is
used. Otherwise the dashboard opens one, without fixtures and without a loop, with its first
request. A task of its own holds it, so that it is closed in the same task: after a while without
requests, at the end of a lifespan if there is one, or when the event loop ends, which cancels all
tasks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakSet

from pyncette.app import Pyncette
from pyncette.clock import realtime
from pyncette.context import PyncetteContext

logger: Final = logging.getLogger(__name__)

IDLE_S: Final = 60.0
"""After how long without a request the context is closed."""


_OWN: Final[WeakSet[PyncetteContext]] = WeakSet()
"""The contexts that dashboards have opened: no other dashboard may rely on them."""


class OpenedApp:
    """Lends the open context of an app."""

    def __init__(self, app: Pyncette, idle_s: float = IDLE_S) -> None:
        """Opens nothing yet."""
        self._app = app
        self._idle_s = idle_s
        self._own: _Own | None = None
        # Also those that close after a while without requests: nothing else waits for their end.
        self._not_closed: set[_Own] = set()

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[PyncetteContext]:
        """Lends an open context, which this does not close before the block ends.

        Raises:
            StoreError: The store cannot be opened, or is not available.
            ValueError: An option of the app is invalid.
        """
        for shared in self._app._opened.here():
            if shared not in _OWN:
                yield shared
                return
        own = self._own
        if own is None or own.ended or own.loop is not asyncio.get_running_loop():
            own = self._own = _Own(self._app, self._idle_s, self._not_closed.discard)
            self._not_closed.add(own)
        own.users += 1
        try:
            yield await own.get()
        finally:
            own.users -= 1

    async def close(self) -> None:
        """Closes the context of its own, if there is one, and waits until it is closed.

        So it does with one that is being closed for want of requests. The next request opens a new
        one.
        """
        self._own = None
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(own.close() for own in self._not_closed if own.loop is loop))


class _Own:
    """A context that the dashboard has opened, and the task that holds it."""

    def __init__(self, app: Pyncette, idle_s: float, on_end: Callable[[_Own], object]) -> None:
        self._on_end = on_end
        self.loop = asyncio.get_running_loop()
        self.users = 0
        self._opened: asyncio.Future[PyncetteContext] = self.loop.create_future()
        self._touched = asyncio.Event()
        self._closing = False
        self._task = self.loop.create_task(self._hold(app, idle_s), name="pyncette dashboard")
        self._task.add_done_callback(self._note_end)

    @property
    def ended(self) -> bool:
        """Whether it can be used no more."""
        return self._closing or self._task.done()

    async def get(self) -> PyncetteContext:
        self._touched.set()
        return await asyncio.shield(self._opened)

    async def close(self) -> None:
        self._closing = True
        self._touched.set()
        await asyncio.wait([self._task])

    async def _hold(self, app: Pyncette, idle_s: float) -> None:
        try:
            async with app.create(fixtures=False) as context:
                _OWN.add(context)
                self._opened.set_result(context)
                while not self._closing:
                    self._touched.clear()
                    if not await self._touched_within(idle_s) and not self.users:
                        self._closing = True
        except Exception as error:
            if self._opened.done():
                logger.warning("Closing the context of the dashboard has failed", exc_info=error)
            else:
                self._opened.set_exception(error)
                self._opened.exception()  # it may be that nothing waits for it any more

    async def _touched_within(self, seconds: float) -> bool:
        try:
            async with realtime.timeout(seconds):
                await self._touched.wait()
        except TimeoutError:
            return False
        return True

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._on_end(self)
        if not self._opened.done():
            self._opened.cancel()
        if not task.cancelled():
            task.exception()
