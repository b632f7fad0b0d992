"""A store out of compare-and-set: for places that can do no more than change a row conditionally.

``CasStore`` derives the six calls of ``pyncette.store.Store`` from the four primitives
of ``CasBackend``. Knows how to claim from an index that may lag, and how to repeat what
somebody else was quicker at. Trips, batch sizes and throttling are the backend's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from random import Random
from typing import Any, Final, NamedTuple, Protocol

from pyncette import chance
from pyncette.errors import StoreUnavailableError
from pyncette.store import (
    Applied,
    Claimed,
    Filter,
    Group,
    Identity,
    Key,
    Page,
    Refused,
    Result,
    Source,
    WakeCallback,
    Watch,
    Write,
    next_version,
)
from pyncette.store.record import ABSENT, ANY, Delete, Put, Record, State

CLAIM_ROUNDS: Final = 4
"""So often a claim tries for what others did not take before it. What is left stays due."""

OVERFETCH: Final = 4
"""Among so many times the records that it still wants, a claim that met others picks at random."""

HELD_MAX: Final = 10_000
"""A repeated claim looks for its own records among so many leases that end at one instant."""

WRITE_ROUNDS_MAX: Final = 1_000
"""In each round somebody's change is made: so many rivals at once are an error elsewhere."""


class Entry(NamedTuple):
    """What an index of the due records shows of one, perhaps no longer as it is.

    Attributes:
        due_at: Its instant. Records without one are not in the index.
        key: The key within the group that was asked for.
        version: Its version.
        starts: Its count of starts.
    """

    due_at: int
    key: str
    version: int
    unfinished_attempts: int


class Swap(NamedTuple):
    """A change that is made only if the record is the one that was seen.

    Attributes:
        group, key: The record.
        expect: The version that must be there; ``ABSENT`` (0): there must be no record.
        columns: The columns of ``Record`` to write; all but group and key
            for a new record, always with ``version``. None: the record is removed.
        token: Where not None, the record must carry this token, too.
        due_at: Where not None, the record must be due at this very instant, too.
    """

    group: str
    key: str
    expect: int
    columns: Mapping[str, Any] | None
    token: str | None = None
    due_at: int | None = None


class Made(NamedTuple):
    """A swap was made: this is the record now (None: it is gone)."""

    record: Record | None


class CasBackend(Protocol):
    """The primitives. All are safe to call concurrently; none repeats anything by itself.

    What is said of errors and of cancellation at ``Store`` holds here, too.
    """

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        """As ``pyncette.store.Store.get``: what was written is seen at once."""
        ...

    async def swap(self, batch: Sequence[Swap]) -> list[Made | None]:
        """Makes each swap whose conditions hold; None for each other one.

        Each is atomic, the batch need not be. No record stands twice in a batch.
        """
        ...

    async def due(
        self, group: str, since: int | None, before: int | None, limit: int
    ) -> list[Entry]:
        """The soonest entries of a group with ``since <= due_at <= before``; None sets no bound.

        At most ``limit``, soonest first; fewer only where there are no more. May lag.
        """
        ...

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        """As ``pyncette.store.Store.scan``."""
        ...


class CasStore:
    """See ``pyncette.store.Store``.

    A store with a clock, or one that can tell of due records, overrides ``now`` and
    ``watch``.
    """

    def __init__(self, backend: CasBackend, random: Random | None = None) -> None:
        """Builds a store on a backend, which stays its owner's to open and close.

        Args:
            backend: The primitives.
            random: Picks among due records where workers compete; for tests that repeat exactly.
        """
        self._backend = backend
        self._random = chance.current() if random is None else random

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
        claim = _Claim(self._backend, self._random, sources, limit, now, token)
        if repeated and limit > 0:
            await claim.find_held()
        await claim.look()
        await claim.take()
        return Claimed(claim.records, await claim.next_due())

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        results: list[Result | None] = [None] * len(batch)
        # A write that names its version is tried unseen. The others need to know what is there,
        # and so does a refusal.
        unseen = {n: _unseen(write, now) for n, write in enumerate(batch) if write.expect != ANY}
        undecided = [n for n in range(len(batch)) if n not in unseen]
        undecided += await self._swap(results, unseen)
        for _ in range(WRITE_ROUNDS_MAX):
            if not undecided:
                return [result for result in results if result is not None]
            there = await self._backend.get([batch[number][:2] for number in undecided])
            swaps: dict[int, Swap] = {}
            for number, current in zip(undecided, there, strict=True):
                decided = _decide(batch[number], current, now)
                if isinstance(decided, Swap):
                    swaps[number] = decided
                else:
                    results[number] = decided
            undecided = await self._swap(results, swaps)
        raise StoreUnavailableError(
            f"others changed {batch[undecided[0]][:2]} {WRITE_ROUNDS_MAX} times in a row "
            f"between reading and writing it"
        )

    async def _swap(self, results: list[Result | None], swaps: Mapping[int, Swap]) -> list[int]:
        """Makes swaps, notes those that were made, and returns the numbers of the others."""
        if not swaps:
            return []
        answers = await self._backend.swap(list(swaps.values()))
        missed: list[int] = []
        for number, made in zip(swaps, answers, strict=True):
            if made is None:
                missed.append(number)
            else:
                results[number] = Applied(ABSENT if made.record is None else made.record.version)
        return missed

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        return await self._backend.get(identities) if identities else []

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        return await self._backend.scan(group, where, cursor, limit)

    async def now(self) -> int | None:
        return None

    async def watch(self, groups: Collection[str], on_wake: WakeCallback) -> Watch | None:
        return None


class _Claim:
    """One claim on its way: what it saw, what it took, what it tried for in vain."""

    def __init__(
        self,
        backend: CasBackend,
        random: Random,
        sources: Sequence[Source],
        limit: int,
        now: int,
        token: str,
    ) -> None:
        self.records: list[Record] = []
        self._backend = backend
        self._random = random
        self._sources = sources
        self._limit = limit
        self._now = now
        self._token = token
        count = len(sources)
        # By the number of the source.
        self._room = [source.share if isinstance(source, Group) else 1 for source in sources]
        self._seen: list[list[Entry]] = [[] for _ in range(count)]
        self._soonest: list[int | None] = [None] * count
        self._tried: set[tuple[int, str]] = set()

    @property
    def _left(self) -> int:
        return self._limit - len(self.records)

    def _holds(self, number: int, record: Record) -> None:
        self.records.append(record)
        self._room[number] -= 1
        self._lower(number, record.due_at)

    def _lower(self, number: int, due_at: int | None) -> None:
        known = self._soonest[number]
        if due_at is not None and (known is None or due_at < known):
            self._soonest[number] = due_at

    def _before(self, number: int) -> int:
        source = self._sources[number]
        return min(source.before, self._now) if isinstance(source, Group) else self._now

    def _groups(self) -> list[tuple[int, Group]]:
        return [(n, source) for n, source in enumerate(self._sources) if isinstance(source, Group)]

    def _keys(self) -> list[tuple[int, Key]]:
        return [(n, source) for n, source in enumerate(self._sources) if isinstance(source, Key)]

    async def find_held(self) -> None:
        """Finds what the token holds from an earlier call: its leases end when these would."""
        groups = self._groups()
        ends = [self._now + source.lease for _, source in groups]
        found = await asyncio.gather(
            *(
                self._backend.due(source.group, end, end, HELD_MAX)
                for (_, source), end in zip(groups, ends, strict=True)
            )
        )
        asked: list[tuple[int, Identity]] = [
            (number, (source.group, entry.key))
            for (number, source), entries in zip(groups, found, strict=True)
            for entry in entries
        ]
        asked += [(number, (source.group, source.key)) for number, source in self._keys()]
        for (number, _), record in zip(
            asked, await self._get(identity for _, identity in asked), strict=True
        ):
            if (
                record is not None
                and record.token == self._token
                and record.due_at == self._now + self._sources[number].lease
                and self._room[number] > 0
                and self._left > 0
            ):
                self._holds(number, record)

    async def look(self) -> None:
        """Sees what is due: one more than wanted of each group, to tell whether some is left."""
        keys, groups = self._keys(), self._groups()
        there, entries = await asyncio.gather(
            self._get((source.group, source.key) for _, source in keys),
            asyncio.gather(
                *(
                    self._due(number, min(self._room[number], self._left) + 1)
                    for number, _ in groups
                )
            ),
        )
        for (number, _), record in zip(keys, there, strict=True):
            if record is not None and record.due_at is not None:
                entry = Entry(record.due_at, record.key, record.version, record.unfinished_attempts)
                self._seen[number] = [entry]
        for (number, _), seen in zip(groups, entries, strict=True):
            self._seen[number] = seen

    async def _due(self, number: int, limit: int) -> list[Entry]:
        return await self._backend.due(
            self._sources[number].group, None, self._before(number), limit
        )

    async def _get(self, identities: Iterable[Identity]) -> list[Record | None]:
        asked = list(identities)
        return await self._backend.get(asked) if asked else []

    async def take(self) -> None:
        """Takes what was seen; where others were quicker, picks at random among more."""
        for _ in range(CLAIM_ROUNDS):
            chosen = self._choose()
            if not chosen:
                return
            answers = await self._backend.swap(
                [self._taking(number, entry) for number, entry in chosen]
            )
            missed: set[int] = set()
            for (number, entry), made in zip(chosen, answers, strict=True):
                self._tried.add((number, entry.key))
                if made is None:
                    missed.add(number)
                elif made.record is not None:
                    self._seen[number].remove(entry)
                    self._holds(number, made.record)
            if not missed:
                return
            await self._look_wider(
                [number for number in missed if isinstance(self._sources[number], Group)]
            )

    def _choose(self) -> list[tuple[int, Entry]]:
        chosen: list[tuple[int, Entry]] = []
        for number, seen in enumerate(self._seen):
            before = self._before(number)
            fresh = (
                entry
                for entry in seen
                if entry.due_at <= before and (number, entry.key) not in self._tried
            )
            room = min(self._room[number], self._left - len(chosen))
            chosen += [(number, entry) for entry, _ in zip(fresh, range(room), strict=False)]
        return chosen

    def _taking(self, number: int, entry: Entry) -> Swap:
        source = self._sources[number]
        return Swap(
            source.group,
            entry.key,
            entry.version,
            {
                "due_at": self._now + source.lease,
                "version": next_version(entry.version, self._now),
                "token": self._token,
                "state": State.RUNNING.value,
                "unfinished_attempts": entry.unfinished_attempts + 1,
            },
            # The version alone could be that of a record made again while time stood still.
            due_at=entry.due_at,
        )

    async def _look_wider(self, numbers: Sequence[int]) -> None:
        tried = [sum(tried == number for tried, _ in self._tried) for number in numbers]
        found = await asyncio.gather(
            *(
                self._due(number, OVERFETCH * min(self._room[number], self._left) + count + 1)
                for number, count in zip(numbers, tried, strict=True)
            )
        )
        for number, entries in zip(numbers, found, strict=True):
            self._random.shuffle(entries)
            self._seen[number] = entries

    async def next_due(self) -> list[int | None]:
        """The soonest instant left in each source."""
        for number, seen in enumerate(self._seen):
            for entry in seen:
                self._lower(number, entry.due_at)
        # Where nothing due was left, what comes next was not looked at yet.
        beyond = [(number, source) for number, source in self._groups() if not self._seen[number]]
        entries = await asyncio.gather(
            *(
                self._backend.due(source.group, self._before(number) + 1, None, 1)
                for number, source in beyond
            )
        )
        for (number, _), found in zip(beyond, entries, strict=True):
            for entry in found:
                self._lower(number, entry.due_at)
        return self._soonest


def _unseen(write: Write, now: int) -> Swap:
    """The swap of a write that names its version."""
    columns = _columns(write, next_version(write.expect, now))
    return Swap(write.group, write.key, write.expect, columns, write.token)


def _decide(write: Write, current: Record | None, now: int) -> Swap | Result:
    """What comes of a write where this is there."""
    version = ABSENT if current is None else current.version
    if write.expect not in (version, ANY) or (
        write.token is not None and (current is None or current.token != write.token)
    ):
        return Refused(current)
    if current is None and not isinstance(write.change, Put):
        return Applied(ABSENT)
    columns = _columns(write, next_version(version, now))
    return Swap(write.group, write.key, version, columns, write.token)


def _columns(write: Write, version: int) -> dict[str, Any] | None:
    change = write.change
    if isinstance(change, Delete):
        return None
    columns: dict[str, Any] = {"version": version, **change._asdict()}
    if not isinstance(change, Put) and change.progress is None:
        del columns["progress"]
    return columns


__all__ = ["CasBackend", "CasStore", "Entry", "Made", "Swap"]
