"""How many occurrences of a schedule are overdue: counted by arithmetic, at a bounded cost."""

from __future__ import annotations

from typing import Final

from pyncette.schedule import Every, Schedule, own

_COUNTED_MAX: Final = 1_000


def overdue_count(schedule: Schedule, planned: int, now: int) -> int:
    """Returns the number of occurrences, from the planned one on, that lie at or before ``now``.

    Exact for intervals, and up to a thousand. Beyond that it is estimated from the mean distance
    of the first thousand.
    """
    schedule = own(schedule)
    if isinstance(schedule, Every):
        following = schedule.following(planned)
        return 1 if following is None else (now - planned) // (following - planned) + 1
    count, last = 0, planned
    upcoming: int | None = planned
    while upcoming is not None and upcoming <= now:
        count += 1
        last = upcoming
        if count == _COUNTED_MAX:
            return count * (now - planned) // (last - planned)
        upcoming = schedule.following(upcoming)
    return count
