"""A store built on compare-and-set, for databases that can only change one row conditionally.

``CasStore`` derives the seven calls of ``pyncette.store.Store`` from the four primitives of
``CasBackend``. It knows how to claim from an index that may lag, and how to retry after another
worker changed a record first. Requests, batch sizes and throttling are the backend's concern.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from random import Random
from typing import Any, Final, NamedTuple, Protocol

from pyncette import chance
from pyncette.errors import StoreError, StoreUnavailableError
from pyncette.store import (
    Applied,
    Claimed,
    Counted,
    Failed,
    Filter,
    Group,
    Identity,
    Key,
    Page,
    Refused,
    Result,
    Source,
    Unknown,
    WakeCallback,
    Watch,
    Write,
    count_by_scan,
    next_version,
)
from pyncette.store.record import ABSENT, ANY, Delete, Put, Record, State
from pyncette.store.together import together

logger: Final = logging.getLogger(__name__)

CLAIM_ROUNDS: Final = 4
"""Maximum rounds of a claim. Each round tries records that other workers did not claim first.
Records that are left stay due."""

OVERFETCH: Final = 4
"""A claim that competed with others reads this many times the records it still wants, and picks
among them at random."""

HELD_MAX: Final = 10_000
"""Maximum leases that end at the same instant, among which a repeated claim finds its own."""

LOOK_MAX: Final = 10_000
"""Maximum entries of a group that a claim with ``unfinished_max`` reads to get past the records
that it must not claim."""

LOOK_GROWTH: Final = 4
"""Factor by which such a claim reads more each time."""

COUNT_PAGES_MAX: Final = 10
"""Maximum pages that a count reads, where the backend has no better way."""

WRITE_ROUNDS_MAX: Final = 1_000
"""Maximum rounds of a write. A further round is needed if another writer made its change first.
More rounds than this mean that something else is wrong."""

REPORTED_MAX: Final = 100
"""Maximum records that cannot be claimed and are named in the log."""


class Entry(NamedTuple):
    """The entry of a record in the index of due records. The record may have changed since.

    Attributes:
        due_at: Its instant. Records without one are not in the index.
        key: The key within the group that was asked for.
        version: Its version.
        unfinished_attempts: Its count of unfinished attempts.
    """

    due_at: int
    key: str
    version: int
    unfinished_attempts: int


class Swap(NamedTuple):
    """A change that is made only if the record is still the one that was read.

    Attributes:
        group, key: The record.
        expect: The version that the record must have; ``ABSENT`` (0): there must be no record.
        columns: The columns of ``Record`` to write; all but group and key for a new record, always
            with ``version``. None: the record is removed.
        token: If not None, the token of the record must be this one, too.
        due_at: If not None, the ``due_at`` of the record must be exactly this one, too.
    """

    group: str
    key: str
    expect: int
    columns: Mapping[str, Any] | None
    token: str | None = None
    due_at: int | None = None


class Made(NamedTuple):
    """A swap was made: this is the record now (None: it was removed)."""

    record: Record | None


Swapped = Made | None | Failed | Unknown
"""The answer to one swap. None: the record is no longer the one that was read."""


class CasBackend(Protocol):
    """The primitives. All are safe to call concurrently; none retries by itself.

    Errors and cancellation are as described at ``pyncette.store.Store``.
    """

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        """As ``pyncette.store.Store.get``: what was written is seen at once."""
        ...

    async def swap(self, batch: Sequence[Swap]) -> Sequence[Swapped]:
        """Makes each swap whose conditions hold, and answers each one, in the order given.

        The answer is ``Made``; None if a condition does not hold; ``Failed`` if the swap was
        certainly not made, because of a ``ValueError`` (the database cannot keep this value) or a
        ``StoreError`` (it was throttled, for example); ``Unknown`` if it may have been made.
        Raises a ``StoreError`` only if it applies to all swaps.

        Each swap is atomic, the batch need not be. A batch contains no record twice.
        """
        ...

    async def due(
        self, group: str, since: int | None, before: int | None, limit: int
    ) -> list[Entry]:
        """Returns the soonest entries of a group with ``since <= due_at <= before``.

        None sets no bound. At most ``limit`` entries, soonest first; fewer only if there are no
        more. May lag.
        """
        ...

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        """As ``pyncette.store.Store.scan``."""
        ...


class CasStore:
    """See ``pyncette.store.Store``.

    A store with a clock overrides ``now``; a store that can notify overrides ``watch``.
    """

    def __init__(self, backend: CasBackend, random: Random | None = None) -> None:
        """Builds a store on a backend, which its owner opens and closes.

        Args:
            backend: The primitives.
            random: Picks among due records where workers compete; for tests that repeat exactly.
        """
        self._backend = backend
        self._random = chance.current() if random is None else random
        self._reported: set[Identity] = set()

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
        # ``bounded`` is ignored: the primitives have no clock to compare with.
        claim = _Claim(
            self._backend, self._random, sources, limit, now, token, repeated, unfinished_max
        )
        if repeated and limit > 0:
            await claim.find_held()
        await claim.look()
        await claim.take()
        self._report(claim.refused)
        return Claimed(claim.records, await claim.next_due())

    def _report(self, refused: Mapping[Identity, Exception]) -> None:
        """Logs each record that the database refuses to change once; each claim reads it again."""
        for identity, error in refused.items():
            if identity not in self._reported and len(self._reported) < REPORTED_MAX:
                self._reported.add(identity)
                logger.warning("%r in %r cannot be claimed: %s", identity[1], identity[0], error)

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        results: dict[int, Result] = {}
        # A write that names its version is tried without reading. The other writes, and a refusal,
        # need the current record.
        unseen = {n: _unseen(write, now) for n, write in enumerate(batch) if write.expect >= ABSENT}
        undecided = [n for n in range(len(batch)) if n not in unseen]
        undecided += await self._swap(results, unseen)
        for _ in range(WRITE_ROUNDS_MAX):
            if not undecided:
                break
            try:
                there = await self._backend.get([batch[number][:2] for number in undecided])
            except StoreError as error:
                results.update((number, Unknown(error)) for number in undecided)
                break
            swaps: dict[int, Swap] = {}
            for number, current in zip(undecided, there, strict=True):
                decided = _decide(batch[number], current, now)
                if isinstance(decided, Swap):
                    swaps[number] = decided
                else:
                    results[number] = decided
            undecided = await self._swap(results, swaps)
        for number in undecided:
            results.setdefault(number, Failed(_outrun(batch[number])))
        answers = [results[number] for number in range(len(batch))]
        _raise_if_all_failed(answers)
        return answers

    async def _swap(self, results: dict[int, Result], swaps: Mapping[int, Swap]) -> list[int]:
        """Makes swaps, stores the answers, and returns the numbers of the swaps without one."""
        if not swaps:
            return []
        try:
            answers = await self._backend.swap(list(swaps.values()))
        except StoreError as error:
            answers = [Unknown(error)] * len(swaps)
        missed: list[int] = []
        for number, answer in zip(swaps, answers, strict=True):
            if answer is None:
                missed.append(number)
            elif isinstance(answer, Made):
                version = ABSENT if answer.record is None else answer.record.version
                results[number] = Applied(version)
            else:
                results[number] = answer
        return missed

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        return await self._backend.get(identities) if identities else []

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        return await self._backend.scan(group, where, cursor, limit)

    async def count(self, group: str, where: Filter, limit: int) -> Counted:
        return await count_by_scan(self._backend, group, where, limit, COUNT_PAGES_MAX)

    async def now(self) -> int | None:
        return None

    async def watch(self, groups: Collection[str], on_wake: WakeCallback) -> Watch | None:
        return None


class _Claim:
    """One claim: the entries that it read, the records that it claimed, and those that it missed.

    Attributes:
        records: The claimed records.
        refused: Records that the database refuses to change, with the reason.
    """

    def __init__(
        self,
        backend: CasBackend,
        random: Random,
        sources: Sequence[Source],
        limit: int,
        now: int,
        token: str,
        repeated: bool,
        unfinished_max: int | None,
    ) -> None:
        self.records: list[Record] = []
        self.refused: dict[Identity, Exception] = {}
        self._backend = backend
        self._random = random
        self._sources = sources
        self._limit = limit
        self._now = now
        self._token = token
        self._repeated = repeated
        self._unfinished_max = unfinished_max
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

    def _admits(self, unfinished_attempts: int) -> bool:
        return self._unfinished_max is None or unfinished_attempts <= self._unfinished_max

    def _is_held(self, number: int, record: Record | None) -> bool:
        """Whether the token holds this record, claimed from this source at this instant."""
        return (
            record is not None
            and record.token == self._token
            and record.due_at == self._now + self._sources[number].lease
        )

    async def find_held(self) -> None:
        """Finds the records that the token holds from an earlier call, by their lease end."""
        groups = self._groups()
        ends = [self._now + source.lease for _, source in groups]
        found = await together(
            self._backend.due(source.group, end, end, HELD_MAX)
            for (_, source), end in zip(groups, ends, strict=True)
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
                and self._is_held(number, record)
                # The claim itself counted one more.
                and self._admits(record.unfinished_attempts - 1)
                and self._room[number] > 0
                and self._left > 0
            ):
                self._holds(number, record)

    async def look(self) -> None:
        """Reads the due entries: one more than wanted of each group, to see whether any is left."""
        wanted = [(number, min(self._room[number], self._left)) for number, _ in self._groups()]
        await together(
            [
                self._look_at_keys(),
                *(self._look_at_group(number, count + 1, count) for number, count in wanted),
            ]
        )

    async def _look_at_keys(self) -> None:
        keys = self._keys()
        there = await self._get((source.group, source.key) for _, source in keys)
        for (number, _), record in zip(keys, there, strict=True):
            if record is not None and record.due_at is not None:
                entry = Entry(record.due_at, record.key, record.version, record.unfinished_attempts)
                self._sees(number, [entry])

    async def _look_at_group(self, number: int, limit: int, needed: int) -> None:
        """Reads the soonest entries, and more of them while too few may be claimed."""
        group, before = self._sources[number].group, self._before(number)
        while True:
            entries = await self._backend.due(group, None, before, limit)
            self._sees(number, entries)
            if len(self._seen[number]) >= needed or len(entries) < limit or limit >= LOOK_MAX:
                return
            limit = min(limit * LOOK_GROWTH, LOOK_MAX)

    def _sees(self, number: int, entries: Iterable[Entry]) -> None:
        """Stores the entries; those that must not be claimed only count for ``next_due``."""
        seen: list[Entry] = []
        for entry in entries:
            if self._admits(entry.unfinished_attempts):
                seen.append(entry)
            else:
                self._lower(number, entry.due_at)
        self._seen[number] = seen

    async def _get(self, identities: Iterable[Identity]) -> list[Record | None]:
        asked = list(identities)
        return await self._backend.get(asked) if asked else []

    async def take(self) -> None:
        """Claims what was read; if other workers were faster, picks at random among more.

        Raises:
            StoreError: Nothing was claimed because of it, or it is unknown what was claimed. In the
                second case the claim must be repeated; it then first finds what it holds.
        """
        failure: Exception | None = None
        for _ in range(CLAIM_ROUNDS):
            chosen = self._choose()
            if not chosen:
                break
            answers = await self._backend.swap(
                [self._taking(number, entry) for number, entry in chosen]
            )
            missed: set[int] = set()
            unknown: list[tuple[int, Entry]] = []
            for (number, entry), answer in zip(chosen, answers, strict=True):
                self._tried.add((number, entry.key))
                if answer is None:
                    missed.add(number)
                elif isinstance(answer, Made):
                    if answer.record is not None:
                        self._seen[number].remove(entry)
                        self._holds(number, answer.record)
                elif isinstance(answer, Unknown):
                    failure = failure or answer.error
                    unknown.append((number, entry))
                elif isinstance(answer.error, StoreError):
                    failure = failure or answer.error
                else:
                    missed.add(number)
                    self.refused[self._sources[number].group, entry.key] = answer.error
            if unknown:
                await self._find_taken(unknown, failure)
            if not missed:
                break
            await self._look_wider(
                [number for number in missed if isinstance(self._sources[number], Group)]
            )
        if failure is not None and not self.records:
            raise failure

    async def _find_taken(
        self, unknown: Sequence[tuple[int, Entry]], failure: Exception | None
    ) -> None:
        """Finds out whether swaps without an answer were made.

        A first claim raises: when it is repeated, even a swap that was still under way has ended.
        A repeated claim reads the records, so that one that is never answered does not stop others.
        """
        if not self._repeated and failure is not None:
            raise failure
        there = await self._get(
            (self._sources[number].group, entry.key) for number, entry in unknown
        )
        for (number, entry), record in zip(unknown, there, strict=True):
            if record is not None and self._is_held(number, record):
                self._seen[number].remove(entry)
                self._holds(number, record)

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
            # The version alone is not enough: if the clock stands still, a record that was removed
            # and created again has the same version.
            due_at=entry.due_at,
        )

    async def _look_wider(self, numbers: Sequence[int]) -> None:
        tried = [sum(tried == number for tried, _ in self._tried) for number in numbers]
        wanted = [min(self._room[number], self._left) for number in numbers]
        await together(
            self._look_at_group(number, OVERFETCH * count + before + 1, count + before)
            for number, count, before in zip(numbers, wanted, tried, strict=True)
        )
        for number in numbers:
            self._random.shuffle(self._seen[number])

    async def next_due(self) -> list[int | None]:
        """The soonest instant left in each source."""
        for number, seen in enumerate(self._seen):
            for entry in seen:
                self._lower(number, entry.due_at)
        # In sources without due records that were left, the next entry was not read yet.
        beyond = [number for number, _ in self._groups() if not self._due_is_left(number)]
        entries = await together(
            self._backend.due(self._sources[number].group, self._before(number) + 1, None, 1)
            for number in beyond
        )
        for number, found in zip(beyond, entries, strict=True):
            for entry in found:
                self._lower(number, entry.due_at)
        return self._soonest

    def _due_is_left(self, number: int) -> bool:
        soonest = self._soonest[number]
        return soonest is not None and soonest <= self._before(number)


def _outrun(write: Write) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"others changed {write[:2]} {WRITE_ROUNDS_MAX} times in a row between reading and "
        "writing it"
    )


def _raise_if_all_failed(answers: Sequence[Result]) -> None:
    """Raises if the store failed as a whole, so that callers back off.

    Raises:
        StoreError: The error of the first write, if no write was applied, refused, or has a value
            that cannot be kept.
    """
    errors = [answer.error for answer in answers if isinstance(answer, (Failed, Unknown))]
    if errors and len(errors) == len(answers) and all(isinstance(e, StoreError) for e in errors):
        raise errors[0]


def _unseen(write: Write, now: int) -> Swap:
    """The swap of a write that names its version."""
    columns = _columns(write, next_version(write.expect, now))
    return Swap(write.group, write.key, write.expect, columns, write.token)


def _decide(write: Write, current: Record | None, now: int) -> Swap | Result:
    """Decides a write from the current record."""
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


__all__ = ["CasBackend", "CasStore", "Entry", "Made", "Swap", "Swapped"]
