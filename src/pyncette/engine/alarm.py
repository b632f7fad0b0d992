"""Waiting for an instant or for a call, whichever comes first."""

from __future__ import annotations

import asyncio
from typing import Final

from pyncette.clock import Clock
from pyncette.engine.background import Background

_NEVER: Final = 1 << 63


class Alarm:
    """What the loop waits on.

    Instants are monotonic: a clock that is set back must not put the loop to sleep. A sleep on
    the clock is kept over many waits, since most of them end by a ring: it is set anew only when
    a sooner instant is wanted. So a wait may also end too early.
    """

    def __init__(self, clock: Clock, background: Background) -> None:
        """Creates an alarm; nothing sleeps before the first wait."""
        self._clock = clock
        self._background = background
        self._sleeper: asyncio.Task[None] | None = None
        self._set_for = _NEVER
        self._waiting: asyncio.Future[None] | None = None
        self._rung = False

    async def wait_for(self, microseconds: int) -> None:
        """Waits for so long, or returns at once if it rang since the last wait."""
        if self._rung:
            self._rung = False
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
        self._rung = False

    def ring(self) -> None:
        """Ends the wait that is under way, or else the next one."""
        self._rung = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def close(self) -> None:
        """Lets nothing sleep any more."""
        if self._sleeper is not None:
            self._sleeper.cancel()
        self._sleeper, self._set_for = None, _NEVER

    async def _sleep(self, microseconds: int) -> None:
        await self._clock.sleep(microseconds / 1_000_000)
        self._sleeper, self._set_for = None, _NEVER
        self.ring()
