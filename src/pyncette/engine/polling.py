"""What a worker asks the store about, and when it asks next: one small table.

A source is a group, or the key of a static task. Each is asked when something in it was told to
come due, when somebody wakes it, and with all others once per poll interval. A source that showed
due records and yielded fewer than asked, because others hold them or its index lags, is left
alone for a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final

from pyncette.store.record import STATIC_GROUP
from pyncette.task import Task

NEVER: Final = 1 << 62
"""An instant that does not come."""

BACKOFF_INITIAL: Final = 5_000
"""Microseconds for which a source is left alone at first; doubles up to the poll interval."""

_VOID_MAX: Final = 64


class PolledSource:
    """One source and its next ask."""

    __slots__ = ("backoff", "group", "key", "next_ask", "seen", "serial", "task")

    def __init__(self, task: Task, group: str, key: str | None, serial: int) -> None:
        """Creates a source that is to be asked at once."""
        self.serial = serial
        self.task = task
        self.group = group
        self.key = key
        self.next_ask = 0
        self.backoff = 0
        self.seen = 0


class Sources:
    """The table."""

    def __init__(self) -> None:
        self._table: dict[tuple[str, str | None], PolledSource] = {}
        # An entry is void once its source has another instant; void ones go when they come up.
        self._heap: list[tuple[int, int, PolledSource]] = []
        self._serial = 0
        self._serials = count()

    def __len__(self) -> int:
        return len(self._table)

    def refresh(self, tasks: Iterable[Task]) -> None:
        """Takes in which tasks there are, and which of them this worker runs now."""
        self._serial += 1
        for task in tasks:
            for group in task.active_groups():
                identity = (group, None if task.dynamic else task.key)
                source = self._table.get(identity)
                if source is None or source.task is not task:
                    source = self._table[identity] = PolledSource(
                        task, *identity, next(self._serials)
                    )
                    self._push(source)
                source.seen = self._serial
        for identity, source in list(self._table.items()):
            if source.seen != self._serial:
                source.next_ask = NEVER
                del self._table[identity]

    def find(self, group: str, key: str) -> PolledSource | None:
        """The source that a record belongs to, if this worker asks it."""
        return self._table.get((group, key if group == STATIC_GROUP else None))

    def all(self) -> list[PolledSource]:
        """Every source."""
        return list(self._table.values())

    def ask_by(self, source: PolledSource, instant: int) -> bool:
        """Has the source asked at this instant at the latest; whether that changed anything."""
        if instant >= source.next_ask:
            return False
        source.next_ask = instant
        self._push(source)
        return True

    def hold_off(self, source: PolledSource, now: int, longest: int) -> None:
        """Leaves the source alone for a while, longer each time in a row."""
        source.backoff = min(2 * source.backoff or BACKOFF_INITIAL, longest)
        self.ask_by(source, now + source.backoff)

    def soonest(self) -> int:
        """When the next source is to be asked."""
        heap = self._heap
        while heap and heap[0][2].next_ask != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else NEVER

    def due(self, now: int) -> list[PolledSource]:
        """Takes out the sources that are to be asked now; each is asked never, until set."""
        due: list[PolledSource] = []
        while self.soonest() <= now:
            source = heappop(self._heap)[2]
            source.next_ask = NEVER
            # What was disabled since the last refresh is not asked any more.
            if source.task.claims_from(source.group):
                due.append(source)
        return due

    def _push(self, source: PolledSource) -> None:
        if source.next_ask >= NEVER:
            return
        heappush(self._heap, (source.next_ask, source.serial, source))
        if len(self._heap) > 2 * len(self._table) + _VOID_MAX:
            # Every poll tells each source's instant again: most entries are the same.
            self._heap = [
                (other.next_ask, other.serial, other)
                for other in self._table.values()
                if other.next_ask < NEVER
            ]
            heapify(self._heap)
