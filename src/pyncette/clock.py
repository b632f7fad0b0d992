"""The only source of time in the package.

All decisions about runs read a `Clock`, which the application chooses and which tests move. All
physical waits (the deadline of a call, the delay before a reconnect) use `realtime`, because no
test clock can make a socket answer sooner. `StoreClock` keeps a worker's time equal to the clock
of the store, so that workers agree with each other even if the clocks of their machines do not.

Instants are whole microseconds since 1970-01-01 UTC inside the engine, and aware datetimes in the
public interface; two functions convert exactly. This module knows nothing of tasks, records or
stores: the caller of a store measures its clock, and reports it with `StoreClock.observe`.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Protocol

from pyncette.schedule.instant import from_microseconds, to_microseconds

__all__ = [
    "Clock",
    "StoreClock",
    "SystemClock",
    "Work",
    "corrected",
    "from_microseconds",
    "realtime",
    "to_microseconds",
]

_SECOND: Final = 1_000_000

# It has no state, so all callers can share one.
_NO_HOLD: Final[AbstractContextManager[None]] = nullcontext()


def _monotonic_source() -> Callable[[], float]:
    """Returns the monotonic clock, if possible one that counts the time a machine is suspended.

    A lease continues to run while a laptop sleeps or a virtual machine is paused. CLOCK_BOOTTIME
    counts that time, Linux's CLOCK_MONOTONIC (`time.monotonic`) does not.
    """
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    # Read before every body: a partial saves the frame of a function.
    return time.monotonic if boot_time is None else partial(time.clock_gettime, boot_time)


_monotonic: Final = _monotonic_source()


class Work(Protocol):
    """Work that runs by a clock, for a clock that a test moves."""

    def under_way(self) -> Iterable[tuple[str, asyncio.Task[Any]]]:
        """Returns the bodies that run, each with its name: the clock waits for them."""
        ...

    def check(self) -> None:
        """Called when nothing is left to do at an instant; what it raises, the move raises."""
        ...


class Clock(ABC):
    """The source of time of the library.

    Your own clock needs `now`, `monotonic` and `sleep`; the defaults of the other methods are right
    for every clock that moves by itself. The three must agree: `sleep(s)` returns when
    `monotonic()` has advanced by `s`, and never sooner.
    """

    @abstractmethod
    def now(self) -> datetime:
        """The current instant, as an aware UTC datetime."""

    @abstractmethod
    def monotonic(self) -> float:
        """Seconds since some fixed instant; never goes backwards, whatever `now` does."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`. Zero or less only lets other tasks run."""

    async def sleep_until_poll(self, seconds: float) -> None:
        """Wait before something is looked at again that is expected to be as it was.

        As `sleep`. A clock that a test moves may let it last longer, while nothing happens that
        could change what is looked at.
        """
        await self.sleep(seconds)

    def changed(self) -> None:  # noqa: B027 - only a clock that a test moves needs to know
        """Something was written that a poll may find."""

    def microseconds(self) -> int:
        """The current instant as whole microseconds since 1970-01-01 UTC."""
        return to_microseconds(self.now())

    def uncertainty(self) -> int:
        """By how many microseconds the true instant may be ahead of `now`.

        Whether a run is due, or the lease of another worker has ended, is decided with `now`, which
        is never ahead. Whether the worker's own lease is still held is decided with `now` plus
        this.
        """
        return 0

    def moves_by_hand(self) -> bool:
        """Whether time passes only when a test moves this clock."""
        return False

    def attend(self, work: Work) -> AbstractContextManager[None]:
        """Tell the clock of work that runs by it, until the block ends."""
        return _NO_HOLD

    def hold(self) -> AbstractContextManager[None]:
        """Hold the clock during work that does not sleep on it, such as a call to a store.

        A clock that a test moves does not move until it is released; any other clock does nothing.
        Never sleep on this clock inside: a clock that a test moves would wait for ever.
        """
        return _NO_HOLD


class SystemClock(Clock):
    """The machine's own clock."""

    # Timers of an event loop stand still while the machine is suspended. So a long sleep checks the
    # time at this interval: after a resume it is late by this at most.
    _longest_sleep_s: float = 10.0

    def now(self) -> datetime:
        return datetime.now(UTC)

    def microseconds(self) -> int:
        return time.time_ns() // 1_000

    def monotonic(self) -> float:
        return _monotonic()

    async def sleep(self, seconds: float) -> None:
        if seconds > self._longest_sleep_s:
            deadline = self.monotonic() + seconds
            while seconds > self._longest_sleep_s:
                await asyncio.sleep(self._longest_sleep_s)
                seconds = deadline - self.monotonic()
        await asyncio.sleep(max(seconds, 0.0))


class _Realtime:
    """Physical waits and deadlines, which do not depend on the application's clock.

    Use it only for gaps between transactions, deadlines of calls, and delays before reconnects. All
    decisions about runs read the application's `Clock`.
    """

    @staticmethod
    def monotonic() -> float:
        """Seconds since the machine started; the same in every process of the machine."""
        return _monotonic()

    @staticmethod
    async def sleep(seconds: float) -> None:
        """Wait for `seconds`; zero or less only lets other tasks run."""
        await asyncio.sleep(max(seconds, 0.0))

    @staticmethod
    def timeout(seconds: float | None) -> asyncio.Timeout:
        """Return an async context manager that raises `TimeoutError` if its body takes longer.

        Like `asyncio.timeout`: the body is cancelled, and None sets no deadline.
        """
        return asyncio.timeout(seconds)

    @staticmethod
    def timer(seconds: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        """Calls a function of no arguments in `seconds`, unless the handle is cancelled before."""
        return asyncio.get_running_loop().call_later(seconds, callback)

    @staticmethod
    def of(loop: asyncio.AbstractEventLoop) -> float:
        """The time by which an event loop sleeps."""
        return loop.time()

    @staticmethod
    def left(timer: asyncio.TimerHandle) -> float:
        """Seconds until a timer of the running event loop fires."""
        return timer.when() - asyncio.get_running_loop().time()


realtime: Final = _Realtime()


class StoreClock(Clock):
    """The time of the store's clock; between two measurements it advances by monotonic time.

    After a measurement, now is the instant of the store at that moment plus the monotonic time
    that has passed since. The wall clock of this machine has no effect, even if it is wrong or is
    stepped. Before the first measurement, and for a store that has no clock of its own (memory,
    SQLite: one machine, one clock), now is the wall clock of `source`, including its steps.

    A measurement is a call that asks the store for its instant. The store answered at some time
    between sending and receiving. So the offset (the store's instant minus the monotonic reading)
    lies in an interval as wide as the call took (F. Cristian, "Probabilistic clock
    synchronization", 1989). Intervals of successive measurements are intersected, after the older
    one has been widened by the possible drift of the two clocks (K. Marzullo, 1984).

    The *earliest* edge of the result is used, so that now is not ahead of the store's clock. So no
    run starts early, and no lease is taken over before it ends, even if the measuring calls were
    slow. The width of the interval is the `uncertainty`. A slow call has a wide interval and
    changes very little. A measurement that contradicts the known interval is ignored at first. If
    the next one contradicts it in the same direction, the store's clock was moved, for example by a
    failover to another server, and this measurement replaces the known interval.

    The first measurement applies at once, since no decision was made before. A later correction of
    up to a second is slewed, at a tenth of real speed, so that now does not go backwards. A larger
    one means that the store's clock was moved, and applies at once too, in either direction: until
    then the leases and delays that this worker writes end too late, or too early, by the
    difference.

    Reading is safe from any thread; `observe` must be called from one thread only.
    """

    # Parts per million; the fastest that adjtime(2), hence any NTP daemon, slews a clock.
    _DRIFT_PPM: Final = 500
    _LARGE: Final = _SECOND
    # A call to a near server takes a millisecond. If it took longer than this, measure again soon.
    _VAGUE: Final = 50_000

    def __init__(self, source: Clock) -> None:
        """Create the clock; nothing is measured yet.

        Args:
            source: the clock that is read between measurements.
        """
        self._source = source
        # The offset lies within (lowest, highest) as known at a monotonic instant.
        self._known: tuple[int, int, int] | None = None
        self._contradicted = 0
        # (since, offset, correction, duration): replaced as one, so that a reader in another
        # thread never sees half of a change.
        self._slew: tuple[int, int, int, int] | None = None
        # All large corrections so far. They move now, but not the end of a sleep.
        self._moved = 0

    def now(self) -> datetime:
        return from_microseconds(self.microseconds())

    def microseconds(self) -> int:
        slew = self._slew
        if slew is None:
            return self._source.microseconds()
        monotonic = round(self._source.monotonic() * _SECOND)
        since, offset, correction, duration = slew
        elapsed = monotonic - since
        if elapsed >= duration:
            return monotonic + offset + correction
        return monotonic + offset + correction * elapsed // duration

    def monotonic(self) -> float:
        return self._source.monotonic()

    @property
    def is_measured(self) -> bool:
        """Whether the store has a clock, and it was measured."""
        return self._known is not None

    def is_vague(self) -> bool:
        """Whether the uncertainty is so large that another measurement is worth its call."""
        return self._known is not None and self.uncertainty() > self._VAGUE

    def uncertainty(self) -> int:
        slew = self._slew
        if self._known is None or slew is None:
            return self._source.uncertainty()
        _, highest, at = self._known
        monotonic = round(self._source.monotonic() * _SECOND)
        drift = max(monotonic - at, 0) * self._DRIFT_PPM // 1_000_000
        return max(highest + drift + monotonic - self.microseconds(), 0)

    def moves_by_hand(self) -> bool:
        return self._source.moves_by_hand()

    def hold(self) -> AbstractContextManager[None]:
        return self._source.hold()

    async def sleep(self, seconds: float) -> None:
        """Wait until `now` has advanced by `seconds`, also during a correction that is slewed.

        It never ends too early. A correction that applies at once makes it neither shorter nor
        longer.
        """
        slew = self._slew
        if slew is None or seconds <= 0:
            await self._source.sleep(seconds)
            return
        target = self.microseconds() - self._moved + round(seconds * _SECOND)
        while (remaining := target - self.microseconds() + self._moved) > 0:
            slew = self._slew or slew
            await self._source.sleep(self._real(remaining, slew) / _SECOND)

    def observe(
        self, sent_monotonic: float, received_monotonic: float, store_now: int, resolution: int = 1
    ) -> bool:
        """Use one measurement.

        Args:
            sent_monotonic: `monotonic()` just before the call was sent.
            received_monotonic: `monotonic()` just after its answer.
            store_now: the answer, in microseconds since 1970-01-01 UTC.
            resolution: the unit to which `store_now` was rounded down, in microseconds.

        Returns:
            False if the measurement contradicts the known interval and was ignored. Measure again
            soon, to tell a bad answer from a store whose clock was moved.

        Raises:
            ValueError: the answer came before the call was sent, or `resolution` is not positive.
        """
        if received_monotonic < sent_monotonic or resolution <= 0:
            raise ValueError(
                f"no measurement: sent at {sent_monotonic}, received at {received_monotonic}, "
                f"resolution {resolution}"
            )
        at = round(received_monotonic * _SECOND)
        lowest = store_now - at
        highest = store_now + resolution - round(sent_monotonic * _SECOND)
        refines = True
        if self._known is not None:
            known_lowest, known_highest, known_at = self._known
            drift = max(at - known_at, 0) * self._DRIFT_PPM // 1_000_000
            known_lowest -= drift
            known_highest += drift
            direction = (lowest > known_highest) - (highest < known_lowest)
            if direction == 0:
                lowest = max(lowest, known_lowest)
                highest = min(highest, known_highest)
            elif direction != self._contradicted:
                self._contradicted = direction
                return False
            else:
                refines = False
        self._contradicted = 0
        self._known = (lowest, highest, at)
        self._aim(lowest, refines)
        return True

    async def measure(
        self, ask: Callable[[], Awaitable[int | None]], resolution: Callable[[], int] = lambda: 1
    ) -> bool:
        """Ask the store for its instant, and use the answer.

        Args:
            ask: returns the instant, or None if the store has no clock.
            resolution: by how much the true instant may have been ahead of the last answer.

        Returns:
            False if the store has no clock of its own, so that there is nothing to measure.
        """
        # The first call may have to connect, which takes long. That time would widen the interval,
        # until the next measurement, although the store reads its clock only afterwards.
        if self._known is None and await ask() is None:
            return False
        for _ in range(3):
            sent = self.monotonic()
            instant = await ask()
            if instant is None:
                return False
            if self.observe(sent, self.monotonic(), instant, resolution()):
                break
        return True

    def _aim(self, offset: int, refines: bool) -> None:
        """Begin a correction from the current offset to `offset`.

        Args:
            offset: the earliest offset that the measurements allow.
            refines: whether it agrees with the known interval, and only narrows it. Then a forward
                correction is made at once: the clock was behind, and is still not ahead.
        """
        monotonic = round(self._source.monotonic() * _SECOND)
        if self._slew is None:
            self._slew = (monotonic, offset, 0, 0)
            return
        since, start, correction, duration = self._slew
        start += correction * min(monotonic - since, duration) // duration if duration else 0
        correction = offset - start
        if abs(correction) > self._LARGE:
            self._moved += correction
            self._slew = (monotonic, offset, 0, 0)
        elif refines and correction > 0:
            self._slew = (monotonic, offset, 0, 0)
        else:
            self._slew = (monotonic, start, correction, abs(correction) * 10)

    def _real(self, microseconds: int, slew: tuple[int, int, int, int]) -> int:
        """Return how long it takes until `now` has advanced by `microseconds`, rounded up."""
        since, _, correction, duration = slew
        left = since + duration - round(self._source.monotonic() * _SECOND)
        if left <= 0:
            return microseconds
        moved = left * (duration + correction) // duration
        if moved <= microseconds:
            return left + microseconds - moved
        return -(-microseconds * duration // (duration + correction))


def corrected(clock: Clock) -> Clock:
    """Return the clock for decisions: a `SystemClock` corrected by the store's, any other as it is.

    Only the machine's clock needs a correction. A virtual or scaled clock, or the user's own, is
    the time that the application has chosen.
    """
    return StoreClock(clock) if isinstance(clock, SystemClock) else clock
