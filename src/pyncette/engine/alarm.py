"""Waiting for an instant or for a call, whichever comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

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
        self._sleep = _Sleep(clock, clock.sleep, background, self.ring)
        # A clock that moves by itself makes no difference between the two: one sleep is enough.
        self._sleep_until_poll = (
            _Sleep(clock, clock.sleep_until_poll, background, self.ring)
            if clock.moves_by_hand()
            else None
        )
        self._waiting: asyncio.Future[None] | None = None
        self.rung = False

    async def wait_for(self, microseconds: int, until_poll: int = _NEVER) -> None:
        """Waits for this time, or returns at once if ``ring`` was called since the last wait.

        Args:
            microseconds: When something is to be done, from now.
            until_poll: When there may be something to do, of which nothing is known yet. See
                ``Clock.sleep_until_poll``.
        """
        if self.rung:
            self.rung = False
            return
        if self._sleep_until_poll is None:
            microseconds = min(microseconds, until_poll)
        else:
            self._sleep_until_poll.end_in(until_poll)
        self._sleep.end_in(microseconds)
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
        self._sleep.close()
        if self._sleep_until_poll is not None:
            self._sleep_until_poll.close()


class _Sleep:
    """A sleep on the clock that rings the alarm."""

    def __init__(
        self,
        clock: Clock,
        sleep: Callable[[float], Coroutine[Any, Any, None]],
        background: Background,
        ring: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._background = background
        self._ring = ring
        self._sleeper: asyncio.Task[None] | None = None
        self._set_for = _NEVER

    def end_in(self, microseconds: int) -> None:
        if microseconds >= _NEVER:
            return
        instant = round(self._clock.monotonic() * 1_000_000) + microseconds
        if instant < self._set_for:
            self.close()
            self._set_for = instant
            self._sleeper = self._background.start(self._until(microseconds), "pyncette alarm")

    def close(self) -> None:
        if self._sleeper is not None:
            self._sleeper.cancel()
        self._sleeper, self._set_for = None, _NEVER

    async def _until(self, microseconds: int) -> None:
        await self._sleep(microseconds / 1_000_000)
        self._sleeper, self._set_for = None, _NEVER
        self._ring()
