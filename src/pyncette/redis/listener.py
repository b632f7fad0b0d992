"""Listens for messages of other processes, on its own connection, and notifies the watches.

A lost connection, even if it is still open on this side, is detected within two ping intervals and
replaced. All watches are then notified that any record may have come due.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

from redis.exceptions import RedisError

from pyncette import chance
from pyncette.clock import realtime
from pyncette.errors import StoreMisconfiguredError, StoreUnavailableError
from pyncette.redis.connection import Server, ask, pack, translated
from pyncette.redis.layout import woken_groups
from pyncette.store import WakeCallback

logger = logging.getLogger(__name__)

PING_INTERVAL_S: Final = 5.0
"""How often a listening connection is pinged, and how long the answer may take."""

RECONNECT_DELAY_INITIAL_S: Final = 0.1
RECONNECT_DELAY_MAX_S: Final = 5.0


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


class Listener:
    """Listens on one channel.

    Args:
        channel: The name of the channel.
        open_one: Opens a connection, and returns its server.
    """

    def __init__(
        self, channel: bytes, open_one: Callable[[], Awaitable[tuple[Any, Server]]]
    ) -> None:
        self._channel = channel
        self._open_one = open_one
        self._closed = False
        self._watches: list[Watch] = []
        self._task: asyncio.Task[None] | None = None

    def watch(self, groups: Collection[str], on_wake: WakeCallback) -> Watch:
        """Registers a callback; listening begins with the first one.

        Raises:
            StoreUnavailableError: The listener is closed.
        """
        if self._closed:
            raise StoreUnavailableError("Redis is not listened to any more: the store is closed")
        watch = Watch(frozenset(groups), on_wake, self._watches)
        if self._task is None:
            self._task = asyncio.create_task(self._listen(), name="pyncette listener")
        return watch

    async def close(self) -> None:
        """Stops listening."""
        self._closed = True
        self._watches.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _listen(self) -> None:
        delay = RECONNECT_DELAY_INITIAL_S
        while True:
            try:
                connection, server = await self._open_one()
                try:
                    await self._hear(connection, server.place)
                    delay = RECONNECT_DELAY_INITIAL_S
                finally:
                    await server.dialer.drop(connection)
                logger.info("%s stopped notifying; listening again", server.place)
            except Exception as error:
                if delay == RECONNECT_DELAY_INITIAL_S:
                    logger.warning("Not notified for now, only polling: %s", error)
                if isinstance(error, StoreMisconfiguredError):
                    delay = RECONNECT_DELAY_MAX_S
                delay = min(2 * delay, RECONNECT_DELAY_MAX_S)
            await realtime.sleep(delay * chance.current().uniform(0.5, 1.0))

    async def _hear(self, connection: Any, place: str) -> None:
        """Listens as long as the connection answers.

        Raises:
            StoreError: Listening could not begin.
        """
        try:
            async with realtime.timeout(PING_INTERVAL_S):
                await ask(connection, "SUBSCRIBE", self._channel)
        except Exception as error:
            raise translated(error, place) from error
        self._tell(None)
        unanswered = 0
        while unanswered < 2:
            try:
                message = await connection.read_response(
                    disable_decoding=True, timeout=PING_INTERVAL_S
                )
                if message is not None:
                    unanswered = 0
                    if message[0] == b"message":
                        self._tell(woken_groups(message[2]))
                    continue
                unanswered += 1
                await connection.send_packed_command(pack(("PING",)), check_health=False)
            except (OSError, RedisError):
                return

    def _tell(self, groups: frozenset[str] | None) -> None:
        for watch in list(self._watches):
            concerned = None if groups is None else watch.groups & groups
            if concerned is None or concerned:
                watch.on_wake(concerned)
