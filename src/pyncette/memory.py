"""The store in memory: the simplest correct store, with which the others are compared.

Nothing persists, and nothing is shared with other processes. Every call completes without waiting,
so no call sees a part of another one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from heapq import heappop, heappush
from itertools import islice
from typing import Any, Final

from pyncette.store import (
    EVERYTHING,
    Applied,
    Claimed,
    Counted,
    Filter,
    Group,
    Identity,
    Key,
    Page,
    Refused,
    Result,
    Source,
    WakeCallback,
    Write,
    count_by_scan,
    next_version,
)
from pyncette.store.memory_history import MemoryHistory
from pyncette.store.record import ABSENT, ANY, Delete, Patch, Put, Record, State, record_of

_GONE: Final = Applied(ABSENT)


class _Shelf:
    """The records of one group, and a heap of the instants at which some of them come due.

    Each instant has the keys of the records that come due at it. When the last of them is gone, the
    instant stays in the heap until it reaches the top, or until there are more such instants than
    others.
    """

    # The keys are in a dictionary: it is ordered, and if it contains only strings, the garbage
    # collector need not traverse it (a quarter of the cost of a recurring run).

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self._due: dict[int, dict[str, None]] = {}
        self._instants: list[int] = []
        self._ordered: list[str] | None = []

    def keys(self) -> list[str]:
        """All keys in order. The order of code points is the order of the bytes in UTF-8."""
        if self._ordered is None:
            self._ordered = sorted(self.records)
        return self._ordered

    def put(self, record: Record) -> None:
        replaced = self.records.get(record.key)
        if replaced is None:
            self._ordered = None
        else:
            self._unlist(replaced)
        self.records[record.key] = record
        if record.due_at is not None:
            self._listed(record.due_at)[record.key] = None

    def remove(self, record: Record) -> None:
        del self.records[record.key]
        self._ordered = None
        self._unlist(record)

    def _listed(self, due_at: int) -> dict[str, None]:
        listed = self._due.get(due_at)
        if listed is None:
            listed = self._due[due_at] = {}
            heappush(self._instants, due_at)
            if len(self._instants) > 2 * len(self._due) + 100:
                self._instants = sorted(self._due)
        return listed

    def _unlist(self, record: Record) -> None:
        due_at = record.due_at
        if due_at is not None:
            listed = self._due[due_at]
            del listed[record.key]
            if not listed:
                del self._due[due_at]

    def soonest(self) -> Record | None:
        """One of the records that are due first; None if no record has an instant."""
        while self._instants:
            listed = self._due.get(self._instants[0])
            if listed is not None:
                return self.records[next(reversed(listed))]
            heappop(self._instants)
        return None

    def take(self, limit: int, before: int, due_at: int, now: int, token: str) -> list[Record]:
        """Claims the records that come due up to ``before``, soonest first.

        In one step, because a step for each record costs twice as much.
        """
        instants = self._instants
        keys: list[str] = []
        while instants and instants[0] <= before and len(keys) < limit:
            listed = self._due.get(instants[0])
            if listed is not None:
                keys += [listed.popitem()[0] for _ in range(min(limit - len(keys), len(listed)))]
                if listed:
                    break
                del self._due[instants[0]]
            heappop(instants)
        return self._taken(keys, due_at, now, token)

    def take_some(
        self, limit: int, before: int, due_at: int, now: int, token: str, unfinished_max: int
    ) -> list[Record]:
        """As ``take``, but only records with at most ``unfinished_max`` unfinished attempts.

        Instants that keep some of their records are put back on the heap.
        """
        records, instants = self.records, self._instants
        keys: list[str] = []
        kept: list[int] = []
        while instants and instants[0] <= before and len(keys) < limit:
            instant = heappop(instants)
            listed = self._due.get(instant)
            if listed is None:
                continue
            eligible = (key for key in listed if _admits(unfinished_max, records[key]))
            chosen = list(islice(eligible, limit - len(keys)))
            for key in chosen:
                del listed[key]
            keys += chosen
            if listed:
                kept.append(instant)
            else:
                del self._due[instant]
        for instant in kept:
            heappush(instants, instant)
        return self._taken(keys, due_at, now, token)

    def _taken(self, keys: Sequence[str], due_at: int, now: int, token: str) -> list[Record]:
        """The records of these keys after a claim; they are no longer in the heap."""
        if not keys:
            return []
        records = self.records
        taken = _running([records[key] for key in keys], due_at, now, token)
        records.update(zip(keys, taken, strict=True))
        self._listed(due_at).update(dict.fromkeys(keys))
        return taken


class _Watch:
    def __init__(self, watches: list[_Watch], groups: Collection[str], on_wake: WakeCallback):
        self.groups = frozenset(groups)
        self.on_wake = on_wake
        self._watches = watches
        watches.append(self)

    def close(self) -> None:
        if self in self._watches:
            self._watches.remove(self)


class MemoryStore:
    """See ``pyncette.store.Store``.

    Attributes:
        history: The run history, see ``pyncette.store.history``.
    """

    def __init__(self) -> None:
        self.history: MemoryHistory = MemoryHistory()
        self._shelves: dict[str, _Shelf] = {}
        self._watches: list[_Watch] = []

    async def claim(
        self,
        sources: Sequence[Source],
        limit: int,
        now: int,
        token: str,
        repeated: bool = False,
        *,
        bounded: bool = False,
        unfinished_max: int | None = None,
    ) -> Claimed:
        claimed: list[Record] = []
        rooms = [source.share if isinstance(source, Group) else 1 for source in sources]
        if repeated:
            for number, source in enumerate(sources):
                held = self._taken_before(source, now, token, unfinished_max)
                held = held[: min(rooms[number], limit - len(claimed))]
                rooms[number] -= len(held)
                claimed += held
        for source, left in zip(sources, rooms, strict=True):
            shelf = self._shelves.get(source.group)
            left_in_all = limit - len(claimed)
            if shelf is None or left_in_all <= 0:
                continue
            due_at = now + source.lease
            if isinstance(source, Group):
                room = min(left, left_in_all)
                if unfinished_max is None:
                    claimed += shelf.take(room, source.before, due_at, now, token)
                else:
                    claimed += shelf.take_some(
                        room, source.before, due_at, now, token, unfinished_max
                    )
                continue
            record = shelf.records.get(source.key)
            if (
                left
                and record is not None
                and record.due_at is not None
                and record.due_at <= now
                and (unfinished_max is None or _admits(unfinished_max, record))
            ):
                [record] = _running([record], due_at, now, token)
                shelf.put(record)
                claimed.append(record)
        return Claimed(claimed, [self._next_due(source) for source in sources])

    def _taken_before(
        self, source: Source, now: int, token: str, unfinished_max: int | None
    ) -> list[Record]:
        """The records that a claim with this token took from a source, and still holds."""
        shelf = self._shelves.get(source.group)
        if shelf is None:
            return []
        return [
            record
            for record in shelf.records.values()
            if record.token == token
            and record.due_at == now + source.lease
            and (isinstance(source, Group) or record.key == source.key)
            # The claim itself has increased the count.
            and (unfinished_max is None or _admits(unfinished_max + 1, record))
        ]

    def _next_due(self, source: Source) -> int | None:
        shelf = self._shelves.get(source.group)
        record = None if shelf is None else _soonest(shelf, source)
        return None if record is None else record.due_at

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        results = [self._write(write, now) for write in batch]
        if wake:
            for watch in list(self._watches):
                groups = watch.groups.intersection(wake)
                if groups:
                    watch.on_wake(groups)
        return results

    def _write(self, write: Write, now: int) -> Result:
        group, key, change, expect, token = write
        shelf = self._shelves.get(group)
        current = None if shelf is None else shelf.records.get(key)
        if shelf is None or current is None:
            if expect not in (ABSENT, ANY) or token is not None:
                return Refused(None)
            if not isinstance(change, Put):
                return _GONE
            if shelf is None:
                shelf = self._shelves[group] = _Shelf()
            return Applied(_put(shelf, write, change, next_version(ABSENT, now)))
        if (expect != current.version and expect != ANY) or (
            token is not None and current.token != token
        ):
            return Refused(current)
        if isinstance(change, Delete):
            shelf.remove(current)
            if not shelf.records:
                del self._shelves[group]
            return _GONE
        if isinstance(change, Patch):
            return Applied(_patch(shelf, current, change, now))
        return Applied(_put(shelf, write, change, next_version(current.version, now)))

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        shelves = self._shelves
        return [
            shelves[group].records.get(key) if group in shelves else None
            for group, key in identities
        ]

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        shelf = self._shelves.get(group)
        if shelf is None:
            return Page([], None)
        keys = shelf.keys()
        at = bisect_left(keys, where.prefix) if cursor is None else bisect_right(keys, cursor)
        records: list[Record] = []
        for key in islice(keys, at, None):
            if not key.startswith(where.prefix):
                break
            record = shelf.records[key]
            if not where.admits(record):
                continue
            if len(records) == limit:
                return Page(records, records[-1].key)
            records.append(record)
        return Page(records, None)

    async def count(self, group: str, where: Filter, limit: int) -> Counted:
        shelf = self._shelves.get(group)
        if shelf is not None and where == EVERYTHING:
            count = len(shelf.records)
            return Counted(min(count, limit), count <= limit)
        return await count_by_scan(self, group, where, limit, 1)

    async def now(self) -> int | None:
        return None

    async def watch(self, groups: Collection[str], on_wake: WakeCallback) -> _Watch:
        return _Watch(self._watches, groups, on_wake)


def _soonest(shelf: _Shelf, source: Source) -> Record | None:
    return shelf.records.get(source.key) if isinstance(source, Key) else shelf.soonest()


def _admits(unfinished_max: int, record: Record) -> bool:
    return record.unfinished_attempts <= unfinished_max


def _running(records: Iterable[Record], due_at: int, now: int, token: str) -> list[Record]:
    """The records after a claim."""
    state = State.RUNNING
    return [
        record_of(
            (
                group,
                key,
                due_at,
                now if version < now else version + 1,  # next_version, without a call for each
                token,
                state,
                unfinished_attempts + 1,
                schedule,
                args,
                progress,
            )
        )
        for (
            group,
            key,
            _,
            version,
            _,
            _,
            unfinished_attempts,
            schedule,
            args,
            progress,
        ) in records
    ]


def _put(shelf: _Shelf, write: Write, put: Put, version: int) -> int:
    due_at, state, token, unfinished_attempts, schedule, args, progress = put
    shelf.put(
        Record(
            write.group,
            write.key,
            due_at,
            version,
            token,
            state,
            unfinished_attempts,
            schedule,
            args,
            progress,
        )
    )
    return version


def _patch(shelf: _Shelf, record: Record, patch: Patch, now: int) -> int:
    group, key, _, version, token, _, _, schedule, args, unchanged = record
    due_at, state, unfinished_attempts, progress = patch
    version = next_version(version, now)
    if progress is None:
        progress = unchanged
    shelf.put(
        record_of(
            (
                group,
                key,
                due_at,
                version,
                token,
                state,
                unfinished_attempts,
                schedule,
                args,
                progress,
            )
        )
    )
    return version


class MemoryRepository:
    """A factory of one store in memory, shared by all contexts that are opened with this object.

    Its records live as long as the object.
    """

    def __init__(self) -> None:
        self._store = MemoryStore()

    @asynccontextmanager
    async def __call__(self, **configuration: Any) -> AsyncIterator[MemoryStore]:
        """Opens the store; there are no options."""
        yield self._store


memory_repository: MemoryRepository = MemoryRepository()
"""The store in memory of this process."""

__all__ = ["MemoryRepository", "MemoryStore", "memory_repository"]
