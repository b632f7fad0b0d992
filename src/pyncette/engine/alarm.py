"""Waiting for an instant or for a call, whichever comes first."""

from __future__ import annotations

import asyncio
from typing import Final

from pyncette.clock import Clock
from pyncette.engine.background import Background

_NEVER: Final = 1 << 63


class Alarm:
    """The loop waits on it, for an instant or a call of ``ring``.

    Attributes:
        rung: Whether ``ring`` was called since the last wait; to call it again changes nothing.

    Instants are monotonic: if the clock is set back, the loop must not sleep longer. A sleep on the
    clock is kept over many waits, since most of them end by ``ring``. It is replaced only if a
    sooner instant is needed. So a wait may also end too early.
    """

    def __init__(self, clock: Clock, background: Background) -> None:
        """Creates an alarm; nothing sleeps before the first wait."""
        self._clock = clock
        self._background = background
        self._sleeper: asyncio.Task[None] | None = None
        self._set_for = _NEVER
        self._waiting: asyncio.Future[None] | None = None
        self.rung = False

    async def wait_for(self, microseconds: int) -> None:
        """Waits for this time, or returns at once if ``ring`` was called since the last wait."""
        if self.rung:
            self.rung = False
            return
        instant = round(self._clock.monotonic() * 1_000_000) + microseconds
        if instant < self._set_for:
            self.close()
            self._set_for = instant
            self._sleeper = self._background.start(self._sleep(microseconds), "pyncette alarm")
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None
        self.rung = False

    def ring(self) -> None:
        """Ends the current wait; if there is none, the next wait returns at once."""
        self.rung = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def close(self) -> None:
        """Ends the sleep on the clock."""
        if self._sleeper is not None:
            self._sleeper.cancel()
        self._sleeper, self._set_for = None, _NEVER

    async def _sleep(self, microseconds: int) -> None:
        await self._clock.sleep(microseconds / 1_000_000)
        self._sleeper, self._set_for = None, _NEVER
        self.ring()
