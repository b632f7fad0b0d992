"""The clock of a server that sends its time with every answer, but only in whole seconds.

This module combines many rough readings into a precise one. The caller makes the requests.
"""

from __future__ import annotations

from math import ceil, floor
from typing import Final

from pyncette.clock import Clock

RESOLUTION: Final = 1_000_000
"""The resolution of a ``Date`` header, in microseconds; the header is rounded down."""

WIDTH_MIN: Final = 10_000
"""Minimum width of the interval: the clocks of a service's machines differ by milliseconds."""

WIDTH_GOOD: Final = 25_000
"""The width from which no further readings are needed, in microseconds."""

DRIFT_PPM: Final = 500
"""How fast two clocks may drift apart, in parts per million."""


class DateClock:
    """Estimates the clock of a server.

    An answer contains the second in which the server gave it, at some moment between sending and
    receiving. So the difference between the server's time and our monotonic time lies in an
    interval whose width is one second plus the duration of the call. The intervals of all answers
    are intersected. A few readings at well-chosen moments narrow the result to milliseconds.

    ``now`` is the earliest instant that the answers allow, never a later one. So a run starts late
    by the width of the interval at most, and never early. The machine's own wall clock is not used.

    Args:
        source: The machine's clock, of which only the monotonic time is read.
    """

    def __init__(self, source: Clock) -> None:
        self._source = source
        # The server's time minus ours lies between the first two; the third is when this was known.
        self._known: tuple[int, int, int] | None = None
        self._contradicted = 0

    @property
    def width(self) -> int:
        """The width of the interval in which the server's time lies, in microseconds."""
        if self._known is None:
            return RESOLUTION
        lowest, highest = self._at(self._monotonic())
        return highest - lowest

    def monotonic(self) -> float:
        """The monotonic time in seconds, for ``observe``."""
        return self._source.monotonic()

    def observe(self, sent: float, received: float, date: int) -> None:
        """Uses the time of an answer.

        Args:
            sent, received: ``monotonic`` just before and just after the call.
            date: The second in which the server answered, in microseconds since the epoch.
        """
        # Rounded outwards, so that the interval contains the true value.
        at = ceil(received * 1_000_000)
        lowest = date - at
        highest = date + RESOLUTION - floor(sent * 1_000_000)
        if self._known is not None:
            known_lowest, known_highest = self._at(at)
            direction = (lowest > known_highest) - (highest < known_lowest)
            if direction == 0:
                lowest, highest = max(lowest, known_lowest), min(highest, known_highest)
            elif direction != self._contradicted:
                # One contradicting answer is ignored; after a second one the clock was set.
                self._contradicted = direction
                return
        self._contradicted = 0
        missing = WIDTH_MIN - (highest - lowest)
        if missing > 0:
            lowest, highest = lowest - missing // 2, highest + missing // 2
        self._known = lowest, highest, at

    def now(self) -> int | None:
        """The earliest time that the server's clock may show now, in microseconds since the epoch.

        None before the first answer.
        """
        if self._known is None:
            return None
        at = self._monotonic()
        lowest, _ = self._at(at)
        return at + lowest

    def next_telling(self) -> float:
        """Seconds until the next reading would be most useful.

        This is when a second of the server begins, if its time is the middle of the interval.
        """
        if self._known is None:
            return 0.0
        at = self._monotonic()
        middle = sum(self._at(at)) // 2
        return -(at + middle) % RESOLUTION / 1_000_000

    def _monotonic(self) -> int:
        return floor(self._source.monotonic() * 1_000_000)

    def _at(self, monotonic: int) -> tuple[int, int]:
        """The interval, widened by the possible drift of the clocks since it was known."""
        assert self._known is not None
        lowest, highest, at = self._known
        drift = max(monotonic - at, 0) * DRIFT_PPM // 1_000_000
        return lowest - drift, highest + drift
