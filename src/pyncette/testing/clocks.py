"""Clocks for tests: one that the test moves, and one that runs faster than the machine's.

Both are `Clock`s and know nothing of applications or stores. Pass one of them to
`Pyncette(clock=…)`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pyncette.clock import Clock, Work, from_microseconds, realtime, to_microseconds
from pyncette.testing.waits import OutsideWait, outside_wait

__all__ = ["ScaledClock", "VirtualClock"]

logger: Final = logging.getLogger(__name__)

_SECOND: Final = 1_000_000
_NEVER: Final = 1 << 63
_DEFAULT_START: Final = datetime(2026, 1, 1, tzinfo=UTC)

# Longer than datetime can represent: a longer sleep, or an infinite one, never ends.
_FOREVER_S: Final = 1e12

# asyncio's own loop shows what is ready to run. After a few iterations that find nothing, data that
# other tasks of this process have just written to a socket have arrived, too.
_PASSES_WHEN_VISIBLE: Final = 3
# uvloop shows nothing. After this many iterations without a use of the clock, the loop is taken to
# be idle.
_PASSES_WHEN_HIDDEN: Final = 50


# When the log names a task for which the clock waits.
_WORD_AFTER_S: Final = 5.0


class VirtualClock(Clock):
    """A clock that stands still until it is moved, and then moves at once.

    `advance` ends all sleeps on this clock that end until the target, in the order of their
    instants; those of the same instant in the order in which they began. Each sleep ends when
    `now()` is exactly its instant, and time moves on only when nothing is left to do at that
    instant. Sleeps that begin while the clock moves count too. No real time passes, except for the
    work itself.

    While a task of an app waits for something outside (a socket, a thread, `asyncio.sleep`), time
    stands still, and the clock really waits for it, for up to `patience`. Then `advance` raises an
    error that names the task and the line where it waits. So a test server or a database may be
    slow. Other code that waits for something outside must hold the clock, see `hold`. The library
    does this around every call to a store.

    When the result is misleading: what a task waits for is read from its stack. Locks, events and
    queues of asyncio count as waits for other work in the process, during which time moves on; so
    put a task that waits in that way for something outside under `with clock.hold():`. On a loop
    other than asyncio's own, such as uvloop, the clock cannot see whether something is ready to
    run. It lets the loop run 50 iterations after the last use of the clock, then assumes that the
    loop is idle.

    A clock belongs to one event loop at a time. `hold` may be used from any thread.
    """

    def __init__(
        self,
        start: datetime | None = None,
        *,
        passes_max: int = 250_000,
        patience: timedelta = timedelta(minutes=1),
        every_poll: bool = False,
        waits_for_tasks: bool = True,
    ) -> None:
        """Create a clock that stands at `start`.

        Args:
            start: an aware datetime; 2026-01-01 00:00 UTC by default, the same on every run.
            passes_max: maximum iterations of the event loop at one instant; with more, the work is
                assumed to be endless.
            patience: real time after which a hold is assumed never to be released, and a task
                is assumed to wait for ever.
            every_poll: whether workers poll as often as in production. By default they leave out
                polls that cannot find anything new, see `sleep_until_poll`.
            waits_for_tasks: whether the clock stands still while a task waits for something
                outside. If not, time moves on meanwhile, also past the end of its lease.

        Raises:
            ValueError: `start` is naive, so it is not an instant.
        """
        self._start = self._now = to_microseconds(_DEFAULT_START if start is None else start)
        self._passes_max = passes_max
        self._patience = patience
        self._every_poll = every_poll
        self._waits_for_tasks = waits_for_tasks
        self._passes = 0
        self._uses = 0
        self._moving = False
        # Sorted by instant, then by the number of the sleep, which is unique.
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        # Of sleeps until a poll also when they began.
        self._pollers: list[tuple[int, int, asyncio.Future[None], int]] = []
        # The last instant at which anything but a poll happened.
        self._active_at = self._now
        self._holds = 0
        self._holds_lock = threading.Lock()
        self._released: asyncio.Future[None] | None = None
        self._attended: list[Work] = []
        # Since when, in real time, tasks wait for something outside.
        self._waits_since: dict[asyncio.Future[Any], float] = {}
        # Those of them that the log has named.
        self._told: set[asyncio.Future[Any]] = set()

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
        woken = asyncio.get_running_loop().create_future()
        self._uses += 1
        sleeper = (self._end_of(seconds), self._uses, woken)
        insort(self._sleepers, sleeper)
        try:
            await woken
        finally:
            if woken.cancelled() or not woken.done():
                del self._sleepers[bisect_left(self._sleepers, sleeper)]

    async def sleep_until_poll(self, seconds: float) -> None:
        """Wait as `sleep`, or longer: until something happens that a poll may find.

        That is: another sleep ends, something is written to a store, or the clock is moved once
        more. It ends at the latest when the clock has reached the instant to which it is moved. So
        a day in which nothing happens takes one poll, not 86,400.
        """
        if self._every_poll:
            await self.sleep(seconds)
            return
        woken = asyncio.get_running_loop().create_future()
        self._uses += 1
        poller = (self._end_of(max(seconds, 0.0)), self._uses, woken, self._now)
        insort(self._pollers, poller)
        try:
            await woken
        finally:
            if woken.cancelled() or not woken.done():
                del self._pollers[bisect_left(self._pollers, poller)]

    def changed(self) -> None:
        self._active_at = self._now

    def _end_of(self, seconds: float) -> int:
        return self._now + max(round(min(seconds, _FOREVER_S) * _SECOND), 1)

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

    @contextmanager
    def attend(self, work: Work) -> Iterator[None]:
        self._attended.append(work)
        try:
            yield
        finally:
            self._attended.remove(work)

    async def advance(self, by: timedelta) -> None:
        """Move the clock by `by`; return when everything that came due has been done.

        Moving by nothing is the same as `settle`.

        Raises:
            ValueError: `by` is negative.
            OverflowError: the new instant is out of the range of datetime.
            RuntimeError: the clock is already being moved; or work at one instant does not end,
                or a hold is not released, or a task waits for something else than this clock and
                does not get it. The clock then stands at that instant.
            Exception: what a task has raised, if the app has `raise_task_errors`; likewise.
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
            self._active_at = self._now
            self._passes = 0
            await self._until_idle()
            while (instant := self._next_instant()) <= target:
                self._now = max(instant, self._now)
                await self._wake(self._polls_now)
            self._now = target
            if self._pollers and self._pollers[0][0] <= target:
                await self._wake(lambda began: True)
        finally:
            self._moving = False

    def _next_instant(self) -> int:
        """The instant to which time moves next."""
        instants = [due for due, _, _, began in self._pollers if self._polls_now(began)][:1]
        instants += [due for due, _, _ in self._sleepers[:1]]
        return min(instants, default=_NEVER)

    def _polls_now(self, began: int) -> bool:
        """Whether anything has happened since a sleep until a poll began."""
        return began <= self._active_at

    async def _wake(self, polls: Callable[[int], bool]) -> None:
        """End the sleeps that end now, and return when nothing is left to do."""
        self._passes = 0
        while self._sleepers and self._sleepers[0][0] <= self._now:
            self._active_at = self._now
            self._sleepers.pop(0)[2].set_result(None)
        due = [one for one in self._pollers if one[0] <= self._now and polls(one[3])]
        for poller in due:
            self._pollers.remove(poller)
            poller[2].set_result(None)
        await self._until_idle()

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
                enough = _PASSES_WHEN_VISIBLE if visible else _PASSES_WHEN_HIDDEN
                if idle_passes == enough and await self._waited_outside():
                    idle_passes = 0
        for work in self._attended:
            work.check()

    async def _waited_outside(self) -> bool:
        """Wait until something happens that a task waits for; False if no task waits outside."""
        if not self._waits_for_tasks:
            return False
        waits = [
            (name, wait)
            for work in self._attended
            for name, task in work.under_way()
            if (wait := outside_wait(task)) is not None
        ]
        if not waits:
            self._waits_since.clear()
            return False
        now = realtime.monotonic()
        self._waits_since = {
            wait.future: self._waits_since.get(wait.future, now) for _, wait in waits
        }
        patience = self._patience.total_seconds()
        for name, wait in waits:
            left = self._waits_since[wait.future] + patience - now
            ends_in = wait.ends_in
            if left <= 0 or (ends_in is not None and ends_in > left):
                raise RuntimeError(self._never_ends(name, wait, ends_in))
        soonest = min(self._waits_since.values()) + patience - now
        futures = {wait.future for _, wait in waits}
        self._told &= futures
        with suppress(TimeoutError):
            async with realtime.timeout(min(max(soonest, 0.001), _WORD_AFTER_S)):
                await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        for name, wait in waits:
            waited_s = realtime.monotonic() - self._waits_since[wait.future]
            if waited_s >= _WORD_AFTER_S and not (wait.future.done() or wait.future in self._told):
                self._told.add(wait.future)
                logger.warning(
                    "The clock at %s stands still, because task %s waits for something that is "
                    "not this clock, for up to %s (patience):\n%s",
                    self.now(),
                    name,
                    self._patience,
                    wait.where,
                )
        return True

    def _never_ends(self, name: str, wait: OutsideWait, ends_in: float | None) -> str:
        how_long = (
            f"has waited for {self._patience} of real time"
            if ends_in is None
            else f"would wait for {ends_in:.1f} s of real time"
        )
        return (
            f"task {name} {how_long} for something that is not this clock, which stands at "
            f"{self.now()}:\n{wait.where}\n"
            "Sleep on the clock (await context.app_context.clock.sleep(…)), replace what it waits "
            "for in the test, or create the clock with a longer patience= or with "
            "waits_for_tasks=False"
        )

    def _next_release(self) -> asyncio.Future[None] | None:
        """Resolved when no block holds the clock any more; None if no block holds it now."""
        with self._holds_lock:
            if self._holds:
                self._released = asyncio.get_running_loop().create_future()
            return self._released

    def _running(self) -> str:
        names = sorted({name for work in self._attended for name, _ in work.under_way()})
        return f" Tasks that run: {', '.join(names[:10])}" if names else ""

    async def _until(self, released: asyncio.Future[None]) -> None:
        try:
            async with realtime.timeout(self._patience.total_seconds()):
                await released
        except TimeoutError:
            raise RuntimeError(
                f"the clock at {self.now()} has been held for {self._patience}: a call that does "
                f"not return, or a sleep on this clock inside `with clock.hold()`?{self._running()}"
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
