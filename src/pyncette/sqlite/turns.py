"""Whose turn it is to write to a SQLite file, among the transactions of runs in one event loop.

SQLite lets one transaction write at a time, and does not queue those that wait. Here they queue,
without blocking the event loop: the one that writes could not go on in a blocked one. Other
processes, and the store itself, are waited for by trying again; between two turns they have a gap.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from pyncette import chance
from pyncette.clock import realtime

LOOK_INTERVAL_S: Final = 0.1
"""How often one that waits for its turn checks whether it still may."""

GAP_S: Final = 0.002
"""Pause between two turns, in which other processes find the file free."""


class Turns:
    """A fair queue of those who want to write."""

    def __init__(self) -> None:
        """Nobody writes."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken = False

    @asynccontextmanager
    async def turn(self, still: Callable[[], None]) -> AsyncIterator[None]:
        """Waits for a turn, which lasts as long as the block.

        Args:
            still: Raises an error if it makes no sense to wait any longer.
        """
        waited = self._taken
        if waited:
            await self._wait(still)
        self._taken = True
        try:
            if waited:
                await realtime.sleep(GAP_S)
            yield
        finally:
            self._next()

    async def _wait(self, still: Callable[[], None]) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            while not mine.done():
                still()
                with suppress(TimeoutError):
                    async with realtime.timeout(LOOK_INTERVAL_S):
                        await asyncio.wait([mine])
        except BaseException:
            if mine.done():
                self._next()
            else:
                self._waiting.remove(mine)
            raise

    def _next(self) -> None:
        """Hands the turn over, so that one that comes now queues behind those that wait."""
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._taken = False


async def pause() -> None:
    """Waits before another attempt to write, while another connection writes."""
    await realtime.sleep(chance.current().uniform(0.0005, 0.002))
