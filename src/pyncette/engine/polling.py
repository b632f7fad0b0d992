"""The sources that a worker claims from, and when it claims from each next: one small table.

A source is a group, or the key of a static task. The worker claims from a source when one of its
records comes due, when it is notified, and from all sources once per poll interval. If a source had
due records but yielded fewer than wanted, because other workers hold them or its index lags, the
worker backs off from it.

The sources of a task that has as many executions as its ``limit`` allows are held: the worker
claims from them when one of these ends.

Partitions that workers share have an owner. From a partition of another worker, a worker claims
only once per poll interval, and only what is overdue: no news of a record makes it ask sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final, NamedTuple

from pyncette.store.record import STATIC_GROUP
from pyncette.task import Task

NEVER: Final = 1 << 62
"""An instant that is never reached."""

BACKOFF_INITIAL: Final = 5_000
"""First backoff from a source, in microseconds; doubles up to the poll interval."""

_VOID_MAX: Final = 64

_NO_SHARES: Final[Mapping[str, Share]] = {}


class Share(NamedTuple):
    """Which partitions of a template a worker owns.

    Attributes:
        position: Its place among the workers that share them, from 0.
        workers: How many these are.
    """

    position: int
    workers: int

    def owns(self, index: int) -> bool:
        """Returns whether a partition belongs to this worker."""
        return index % self.workers == self.position


class PolledSource:
    """One source, and when the worker claims from it next.

    Attributes:
        next_due: When its soonest record is due, as the last claim has told.
        own: Whether it is not a partition of another worker.
    """

    __slots__ = (
        *("backoff", "group", "key", "next_ask", "next_due", "own", "seen", "serial", "task"),
    )

    def __init__(self, task: Task, group: str, key: str | None, serial: int) -> None:
        """Creates a source that is due at once."""
        self.serial = serial
        self.task = task
        self.group = group
        self.key = key
        self.next_ask = 0
        self.next_due = NEVER
        self.backoff = 0
        self.own = True
        self.seen = 0


class Sources:
    """The table.

    Attributes:
        limited: Whether a task in it had a limit at the last refresh.
        held: The sources that wait until an execution of their task ends, by task.
    """

    def __init__(self) -> None:
        self.limited = False
        self.held: dict[Task, dict[PolledSource, None]] = {}
        self._table: dict[tuple[str, str | None], PolledSource] = {}
        # An entry is void if its source has another instant now; it is removed when it is reached.
        self._heap: list[tuple[int, int, PolledSource]] = []
        self._serial = 0
        self._serials = count()

    def __len__(self) -> int:
        return len(self._table)

    def refresh(
        self,
        tasks: Iterable[Task],
        is_paused: Callable[[str], bool] = lambda group: False,
        shares: Mapping[str, Share] = _NO_SHARES,
        is_limited: Callable[[Task], bool] = lambda task: task.limit is not None,
    ) -> None:
        """Updates the table to the tasks that are declared, and that this worker runs now.

        Args:
            tasks: The declared tasks.
            is_paused: Whether nothing is claimed from a group.
            shares: What this worker owns of templates, by name; of others it owns everything.
            is_limited: Whether fewer executions of a task may run at once than there are slots.
        """
        self._serial += 1
        self.limited = False
        for task in tasks:
            if is_limited(task):
                self.limited = True
            share = shares.get(task.name)
            for index, group in enumerate(task.active_groups()):
                if is_paused(group):
                    continue
                identity = (group, None if task.dynamic else task.key)
                source = self._table.get(identity)
                if source is None or source.task is not task:
                    source = self._table[identity] = PolledSource(
                        task, *identity, next(self._serials)
                    )
                    self._push(source)
                source.seen = self._serial
                source.own = share is None or share.owns(index)
        for identity, source in list(self._table.items()):
            if source.seen != self._serial:
                source.next_ask = NEVER
                del self._table[identity]

    def find(self, group: str, key: str) -> PolledSource | None:
        """Returns the source of a record, if this worker claims from it."""
        return self._table.get((group, key if group == STATIC_GROUP else None))

    def all(self) -> list[PolledSource]:
        """Returns every source."""
        return list(self._table.values())

    def ask_by(self, source: PolledSource, instant: int) -> bool:
        """Claims from the source at this instant at the latest; returns whether that is sooner.

        From a partition of another worker, nothing is claimed before the next poll.
        """
        if instant >= source.next_ask or not source.own:
            return False
        source.next_ask = instant
        self._push(source)
        return True

    def ask_again(self, source: PolledSource, now: int) -> None:
        """Claims from a source at once that was taken and not asked, or has more to give."""
        source.next_ask = now
        self._push(source)

    def hold_off(self, source: PolledSource, now: int, longest: int) -> None:
        """Backs off from the source, longer each time in a row."""
        source.backoff = min(2 * source.backoff or BACKOFF_INITIAL, longest)
        self.ask_by(source, now + source.backoff)

    def hold(self, source: PolledSource) -> None:
        """Claims no more from a source that was taken, until an execution of its task ends."""
        self.held.setdefault(source.task, {})[source] = None

    def release(self, task: Task, now: int) -> None:
        """An execution of the task has ended: claims now from its sources that were held."""
        for source in self.held.pop(task, ()):
            if self._table.get((source.group, source.key)) is source:
                self.ask_by(source, now)

    def soonest(self) -> int:
        """Returns when the next source is due."""
        heap = self._heap
        while heap and heap[0][2].next_ask != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else NEVER

    def due(self, now: int) -> list[PolledSource]:
        """Takes the sources that are due now. Their next instant is ``NEVER`` until it is set."""
        due: list[PolledSource] = []
        while self.soonest() <= now:
            source = heappop(self._heap)[2]
            source.next_ask = NEVER
            # A task may have been disabled since the last refresh.
            if source.task.claims_from(source.group):
                due.append(source)
        return due

    def _push(self, source: PolledSource) -> None:
        if source.next_ask >= NEVER:
            return
        heappush(self._heap, (source.next_ask, source.serial, source))
        if len(self._heap) > 2 * len(self._table) + _VOID_MAX:
            # Every poll adds an entry for each source: most entries are duplicates.
            self._heap = [
                (other.next_ask, other.serial, other)
                for other in self._table.values()
                if other.next_ask < NEVER
            ]
            heapify(self._heap)
