"""From times on the wall to instants: what happens to a schedule when the clocks change.

A *wall second* is what a clock on the wall shows, counted in seconds from 1970-01-01 00:00:00 on
that clock.
"""

from __future__ import annotations

from typing import Protocol

from pyncette.schedule.instant import DAY_S, INSTANT_LIMIT, SECOND
from pyncette.schedule.zone import Offsets


class WallTimes(Protocol):
    """Times on the wall.

    Attributes:
        fixed_time: Whether they are times of the day rather than a rhythm.
    """

    @property
    def fixed_time(self) -> bool: ...

    def first_at_or_after(self, wall: int) -> int | None:
        """The first wall second of them that is `wall` or later; None if there is none."""


def next_in_zone(times: WallTimes, offsets: Offsets, after: int) -> int | None:
    """The first instant strictly after another one at which a clock in a zone shows such a time.

    When the clocks go forward, times of the day run once at the first instant after the gap, for
    all that lie inside it; when they go back, they run in the repeated hour the first time only. A
    rhythm runs whenever the clock shows such a time: never in a gap, twice in a fold. (The rule
    of Debian's cron.)

    Args:
        times: The times on the wall.
        offsets: The offsets of the zone.
        after: The instant, in microseconds.

    Returns:
        Microseconds; None if there is no such instant before 2255.
    """
    if after >= INSTANT_LIMIT:
        return None
    second = after // SECOND + 1
    fixed = offsets.fixed
    if fixed is None:
        found = _next_by_period(times, offsets, second)
    else:
        found = times.first_at_or_after(second + fixed)
        if found is not None:
            found -= fixed
    if found is None or (found := found * SECOND) >= INSTANT_LIMIT:
        return None
    return found


def _next_by_period(times: WallTimes, offsets: Offsets, second: int) -> int | None:
    """The first occurrence at `second` or later, period by period of constant offset."""
    period_at = offsets.period
    fixed_time = times.fixed_time
    while True:
        start, end, offset, before = period_at(second)
        wall = second + offset
        if fixed_time and (second == start or wall < start + before):
            # What a gap swallowed belongs to the first instant after it; what a fold
            # repeats has had its turn.
            wall = start + before
        found = times.first_at_or_after(wall)
        if found is None:
            return None
        if found < end + offset:
            return max(found - offset, start)
        second = end
        if fixed_time or period_at(end).offset >= offset:
            # Nothing matches before `found`, and no zone is a whole day away from UTC. But
            # a fold shows earlier times again, so a rhythm has to look into each.
            second = max(end, found - DAY_S)
