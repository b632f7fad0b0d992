"""Keeps listening for notifications, and passes them on to watches.

Knows no driver: the caller passes the function that listens. Listening begins with the first watch.
A lost connection is replaced, and every watch is then notified that any record may have come due.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from pyncette import chance
from pyncette.clock import realtime
from pyncette.errors import StoreMisconfiguredError
from pyncette.store import WakeCallback

logger = logging.getLogger(__name__)

RECONNECT_DELAY_INITIAL_S: Final = 0.1
RECONNECT_DELAY_MAX_S: Final = 5.0

Tell = Callable[[frozenset[str] | None], None]
"""Passes a notification on: its groups, or None for any group."""


class Listener:
    """Listens until it is closed.

    Args:
        place: The server, for messages.
        listen: Opens a connection, listens until it is lost, and closes it. As soon as it listens,
            it notifies of None, because earlier notifications were missed. It raises if listening
            could not begin.
    """

    def __init__(self, place: str, listen: Callable[[Tell], Awaitable[None]]) -> None:
        self._place = place
        self._listen = listen
        self._watches: list[Watch] = []
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._context = contextvars.copy_context()

    def watch(self, groups: Collection[str], on_wake: WakeCallback) -> Watch:
        """Registers a callback."""
        watch = Watch(frozenset(groups), on_wake, self._watches)
        if self._task is None and not self._closed:
            self._task = asyncio.get_running_loop().create_task(
                self._keep_listening(), name="pyncette listener", context=self._context
            )
        return watch

    async def close(self) -> None:
        """Stops listening, and waits until the connection is closed."""
        self.drop()
        if self._task is not None:
            await asyncio.wait([self._task])

    def drop(self) -> None:
        """Stops listening. The connection is closed in the next iteration of the event loop."""
        self._closed = True
        self._watches.clear()
        if self._task is not None:
            self._task.cancel()

    async def _keep_listening(self) -> None:
        delay_s = RECONNECT_DELAY_INITIAL_S
        while True:
            try:
                await self._listen(self._tell)
                delay_s = RECONNECT_DELAY_INITIAL_S
                logger.info("%s stopped notifying; listening again", self._place)
            except Exception as error:
                if delay_s == RECONNECT_DELAY_INITIAL_S:
                    logger.warning("Not notified for now, only polling: %s", error)
                if isinstance(error, StoreMisconfiguredError):
                    delay_s = RECONNECT_DELAY_MAX_S
                delay_s = min(2 * delay_s, RECONNECT_DELAY_MAX_S)
            await realtime.sleep(delay_s * chance.current().uniform(0.5, 1.0))

    def _tell(self, groups: frozenset[str] | None) -> None:
        for watch in list(self._watches):
            concerned = None if groups is None else watch.groups & groups
            if concerned is None or concerned:
                watch.on_wake(concerned)


class Watch:
    """A registration with a ``Listener``."""

    def __init__(self, groups: frozenset[str], on_wake: WakeCallback, watches: list[Watch]) -> None:
        self.groups = groups
        self.on_wake = on_wake
        self._watches = watches
        watches.append(self)

    def close(self) -> None:
        """See ``pyncette.store.Watch.close``."""
        if self in self._watches:
            self._watches.remove(self)
