"""Where a claim on an SQL server begins to read, so that it does not read finished runs again.

Knows instants and groups, but no statement and no connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pyncette.store import Write
from pyncette.store.record import Delete

BEGINNING: Final = -(1 << 63)
"""Before every instant."""


class LowWaterMarks:
    """For each group, an instant before which nothing is due, as far as this process knows.

    While another session keeps an old snapshot open, the server cannot remove the index entries of
    finished runs. They lie where a claim begins to read, and each claim would read all of them
    again: measured on PostgreSQL, 9,000 pages for a claim of 100 after 300,000 runs; on MySQL
    and MariaDB, 10 to 15 ms more after 20,000 runs. So a claim begins at the low-water mark of
    the claim before it. A record that another process writes before the mark is found when that
    process notifies, or when a claim reads from the beginning, as the first claim of every second
    does.
    """

    _INTERVAL = 1_000_000

    def __init__(self) -> None:
        # For each group the low-water mark, and when a claim last read from the beginning.
        self._low_water_marks: dict[str, tuple[int, int]] = {}
        # For each group the soonest instant that was written since the current claim was sent.
        self._written: dict[str, int] = {}
        self._forgotten = False

    def before_claim(self, groups: Sequence[str], now: int) -> list[int]:
        """Returns where the claim begins to read in each group."""
        self._written.clear()
        self._forgotten = False
        since = []
        for group in groups:
            mark, full_at = self._low_water_marks.get(group, (BEGINNING, now))
            fresh = 0 <= now - full_at < self._INTERVAL
            since.append(mark if fresh else BEGINNING)
        return since

    def after_claim(
        self,
        groups: Sequence[str],
        keys: Sequence[str | None],
        since: Sequence[int],
        next_due: Sequence[int | None],
        now: int,
    ) -> None:
        """Moves the marks to the soonest records that the claim has left, or to its instant."""
        if (
            self._forgotten
        ):  # the record that was notified may have been written after the claim had read
            return
        for group, key, begun, left in zip(groups, keys, since, next_due, strict=True):
            if key is None:
                mark = now if left is None else min(left, now)
                mark = min(mark, self._written.get(group, mark))
                full_at = now if begun == BEGINNING else self._low_water_marks[group][1]
                self._low_water_marks[group] = (mark, full_at)

    def note(self, batch: Sequence[Write]) -> None:
        """Moves the marks back for records that were written, or may have been."""
        for write in batch:
            change = write.change
            due_at = None if isinstance(change, Delete) else change.due_at
            if due_at is None:
                continue
            group = write.group
            if due_at < self._written.get(group, due_at + 1):
                self._written[group] = due_at
            mark = self._low_water_marks.get(group)
            if mark is not None and due_at < mark[0]:
                self._low_water_marks[group] = (due_at, mark[1])

    def forget(self) -> None:
        """Makes the next claims read from the beginning again."""
        self._low_water_marks.clear()
        self._forgotten = True
