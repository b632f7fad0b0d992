"""Clocks for tests: one that the test moves, and one that runs faster than the machine's.

Both are `Clock`s and know nothing of applications or stores. Pass one of them to
`Pyncette(clock=…)`.
"""

from __future__ import annotations

import asyncio
import math
import threading
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

from pyncette.clock import Clock, from_microseconds, realtime, to_microseconds

__all__ = ["ScaledClock", "VirtualClock"]

_SECOND: Final = 1_000_000
_DEFAULT_START: Final = datetime(2026, 1, 1, tzinfo=UTC)

# Longer than datetime can represent: a longer sleep, or an infinite one, never ends.
_FOREVER_S: Final = 1e12

# asyncio's own loop shows what is ready to run. After a few iterations that find nothing, data that
# other tasks of this process have just written to a socket have arrived, too.
_PASSES_WHEN_VISIBLE: Final = 3
# uvloop shows nothing. After this many iterations without a use of the clock, the loop is taken to
# be idle.
_PASSES_WHEN_HIDDEN: Final = 50


class VirtualClock(Clock):
    """A clock that stands still until it is moved, and then moves at once.

    `advance` ends all sleeps on this clock that end until the target, in the order of their
    instants; those of the same instant in the order in which they began. Each sleep ends when
    `now()` is exactly its instant, and time moves on only when nothing is left to do at that
    instant. Sleeps that begin while the clock moves count too. No real time passes, except for the
    work itself.

    If work waits for something outside (a thread, a socket, another process), hold the clock, see
    `hold`: the clock then waits for it. The library does this around every call to a store and
    around tasks that run in threads, so that a real server may be slow.

    When the result is misleading: the clock does not see a task that waits for something outside
    without `hold`, such as an HTTP call, `asyncio.to_thread` or `asyncio.sleep`. Time moves on
    while the task waits, to its next heartbeat or past the end of its lease. Put such a wait under
    `with clock.hold():`, or sleep on the clock instead. On a loop other than asyncio's own, such as
    uvloop, the clock cannot see either whether something is ready to run. It lets the loop run 50
    iterations after the last use of the clock, then assumes that the loop is idle.

    A clock belongs to one event loop at a time. `hold` may be used from any thread.
    """

    def __init__(
        self,
        start: datetime | None = None,
        *,
        passes_max: int = 250_000,
        patience: timedelta = timedelta(minutes=1),
    ) -> None:
        """Create a clock that stands at `start`.

        Args:
            start: an aware datetime; 2026-01-01 00:00 UTC by default, the same on every run.
            passes_max: maximum iterations of the event loop at one instant; with more, the work is
                assumed to be endless.
            patience: real time after which a hold is assumed never to be released.

        Raises:
            ValueError: `start` is naive, so it is not an instant.
        """
        self._start = self._now = to_microseconds(_DEFAULT_START if start is None else start)
        self._passes_max = passes_max
        self._patience = patience
        self._passes = 0
        self._uses = 0
        self._moving = False
        # Sorted by instant, then by the number of the sleep, which is unique.
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._holds = 0
        self._holds_lock = threading.Lock()
        self._released: asyncio.Future[None] | None = None

    def now(self) -> datetime:
        return from_microseconds(self._now)

    def microseconds(self) -> int:
        return self._now

    def monotonic(self) -> float:
        """Seconds that the clock has been moved since it was created."""
        return (self._now - self._start) / _SECOND

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has been moved by `seconds`, rounded to whole microseconds.

        Zero or less only lets other tasks run. Anything above is at least one microsecond.
        """
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        due = self._now + max(round(min(seconds, _FOREVER_S) * _SECOND), 1)
        woken = asyncio.get_running_loop().create_future()
        self._uses += 1
        sleeper = (due, self._uses, woken)
        insort(self._sleepers, sleeper)
        try:
            await woken
        finally:
            if woken.cancelled() or not woken.done():
                del self._sleepers[bisect_left(self._sleepers, sleeper)]

    def moves_by_hand(self) -> bool:
        """True: only the test moves this clock."""
        return True

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the clock from moving until the block ends; blocks may overlap and nest.

        Never sleep on the clock inside: `advance` and the block would wait for each other.
        `advance` raises an error after the clock's patience.
        """
        with self._holds_lock:
            self._holds += 1
            self._uses += 1
        try:
            yield
        finally:
            with self._holds_lock:
                self._holds -= 1
                self._uses += 1
                if self._holds == 0 and self._released is not None:
                    released, self._released = self._released, None
                    released.get_loop().call_soon_threadsafe(_resolve, released)

    async def advance(self, by: timedelta) -> None:
        """Move the clock by `by`; return when everything that came due has been done.

        Moving by nothing is the same as `settle`.

        Raises:
            ValueError: `by` is negative.
            OverflowError: the new instant is out of the range of datetime.
            RuntimeError: the clock is already being moved; or work at one instant does not end,
                or a hold is not released. The clock then stands at that instant.
        """
        if by < timedelta():
            raise ValueError(f"a clock moves forward only, not by {by}")
        await self._move_to(self._now + by // timedelta(microseconds=1))

    async def advance_to(self, instant: datetime) -> None:
        """Move the clock to `instant`, an aware datetime; otherwise the same as `advance`.

        Raises:
            ValueError: `instant` is naive, or lies before now.
        """
        target = to_microseconds(instant)
        if target < self._now:
            raise ValueError(f"a clock moves forward only: {instant} lies before {self.now()}")
        await self._move_to(target)

    async def settle(self) -> None:
        """Wait until all work that is possible at this instant is done. The clock does not move.

        Raises:
            RuntimeError: the same as for `advance`.
        """
        await self._move_to(self._now)

    async def _move_to(self, target: int) -> None:
        from_microseconds(target)  # an instant out of range is refused before moving
        if self._moving:
            raise RuntimeError(
                "this clock is already being moved: one advance or settle at a time, and none "
                "from a task that the clock itself has woken"
            )
        self._moving = True
        try:
            self._passes = 0
            await self._until_idle()
            while self._sleepers and self._sleepers[0][0] <= target:
                self._now = self._sleepers[0][0]
                self._passes = 0
                while self._sleepers and self._sleepers[0][0] == self._now:
                    self._sleepers.pop(0)[2].set_result(None)
                await self._until_idle()
            self._now = target
        finally:
            self._moving = False

    async def _until_idle(self) -> None:
        """Return when nothing holds the clock and nothing is ready to run."""
        ready = getattr(asyncio.get_running_loop(), "_ready", None)
        visible = isinstance(ready, deque)
        idle_passes = 0
        while idle_passes < (_PASSES_WHEN_VISIBLE if visible else _PASSES_WHEN_HIDDEN):
            self._passes += 1
            if self._passes > self._passes_max:
                raise RuntimeError(
                    f"work at {self.now()} does not end: the event loop has gone round "
                    f"{self._passes_max} times and something is still ready to run; a loop that "
                    f"sleeps for nothing, or that asks a store again and again?"
                )
            uses = self._uses
            await asyncio.sleep(0)
            released = self._next_release()
            if released is not None:
                await self._until(released)
                idle_passes = 0
            elif ready or self._uses != uses:
                idle_passes = 0
            else:
                idle_passes += 1

    def _next_release(self) -> asyncio.Future[None] | None:
        """Resolved when no block holds the clock any more; None if no block holds it now."""
        with self._holds_lock:
            if self._holds:
                self._released = asyncio.get_running_loop().create_future()
            return self._released

    async def _until(self, released: asyncio.Future[None]) -> None:
        try:
            async with realtime.timeout(self._patience.total_seconds()):
                await released
        except TimeoutError:
            raise RuntimeError(
                f"the clock at {self.now()} has been held for {self._patience}: a call that does "
                f"not return, or a sleep on this clock inside `with clock.hold()`?"
            ) from None
        finally:
            self._released = None


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class ScaledClock(Clock):
    """A clock that runs `speed` times as fast as the machine's: a week in a minute at 10,080.

    Use it for real processes in compressed time. Processes of one machine have the same time if
    their clocks have the same `speed`, `epoch` and `origin`. The first process gives no `origin`,
    and passes its own to the others (`clock.origin`, on a command line as `repr`). A clock that is
    pickled into a child process keeps its origin.

    Real delays are multiplied by the speed: at a speed of 10,000 a timer that fires a millisecond
    late is ten seconds late, and a store that answers in two milliseconds takes twenty seconds. So
    leases and poll intervals must be long in scaled time.
    """

    def __init__(self, speed: float, epoch: datetime, origin: float | None = None) -> None:
        """Create a clock that reads `epoch` at `origin`.

        Args:
            speed: scaled seconds per real second.
            epoch: an aware datetime.
            origin: the reading of `pyncette.clock.realtime.monotonic()`, which is the same in all
                processes of a machine and has no steps; by default the current reading.

        Raises:
            ValueError: `speed` is not a positive finite number, or `epoch` is naive.
        """
        if not (speed > 0 and math.isfinite(speed)):
            raise ValueError(f"speed must be a positive number, not {speed}")
        self.speed: Final = speed
        self.epoch: Final = epoch
        self.origin: Final = realtime.monotonic() if origin is None else origin
        self._epoch = to_microseconds(epoch)

    def now(self) -> datetime:
        return from_microseconds(self.microseconds())

    def microseconds(self) -> int:
        return self._epoch + round(self.monotonic() * _SECOND)

    def monotonic(self) -> float:
        """Scaled seconds since `origin`."""
        return (realtime.monotonic() - self.origin) * self.speed

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds` of scaled time. Zero or less only lets other tasks run."""
        deadline = self.monotonic() + seconds
        await realtime.sleep(seconds / self.speed)
        # A timer may fire a moment early; the speed multiplies that.
        while (remaining := deadline - self.monotonic()) > 0:
            await realtime.sleep(remaining / self.speed)
