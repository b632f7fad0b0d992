"""Compare-and-set in memory, with an index that lags: the weakest store that is allowed.

Its calls interleave where those of a real store would. Each swap is atomic, but a batch is not. A
change appears in the index a random number of calls later, for each key separately. If ``CasStore``
works on this backend, it works on any other.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any, NamedTuple

from pyncette.store import Failed, Filter, Identity, Page, Unknown
from pyncette.store.cas import CasStore, Entry, Made, Swap, Swapped
from pyncette.store.record import ABSENT, Record


class _Update(NamedTuple):
    """A change that the index does not show yet."""

    visible_at: int
    identity: Identity
    entry: Entry | None


class LaggingBackend:
    """See ``pyncette.store.cas.CasBackend``.

    Attributes:
        strike: Called with each swap. If it returns an answer, the swap is not made, and has this
            answer.
    """

    def __init__(self, random: Random, lag: int) -> None:
        """Creates an empty backend.

        Args:
            random: Chooses how long each change takes to show, and where calls interleave.
            lag: Maximum calls until the index shows a change; 0: at once.
        """
        self.strike: Callable[[Swap], Failed | Unknown | None] = lambda swap: None
        self._random = random
        self._lag = lag
        self._calls = 0
        self._records: dict[Identity, Record] = {}
        self._index: dict[str, dict[str, Entry]] = {}
        self._underway: list[_Update] = []
        self._visible_at: dict[Identity, int] = {}

    def catch_up(self) -> None:
        """Makes the index show all changes."""
        for update in self._underway:
            self._show(update)
        self._underway.clear()

    def edit(self, identity: Identity, **columns: Any) -> None:
        """Changes a record without any condition, as a user with a database client does."""
        record = self._records.pop(identity)._replace(**columns)
        self._announce(identity, None)
        self._records[record[:2]] = record
        self._announce(record[:2], record)

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        await self._pass()
        return [self._records.get((group, key)) for group, key in identities]

    async def swap(self, batch: Sequence[Swap]) -> list[Swapped]:
        answers: list[Swapped] = []
        for swap in batch:
            await self._pass()
            answers.append(self.strike(swap) or self._swap(swap))
        await self._pass()
        return answers

    async def due(
        self, group: str, since: int | None, before: int | None, limit: int
    ) -> list[Entry]:
        await self._pass()
        entries = sorted(
            entry
            for entry in self._index.get(group, {}).values()
            if (since is None or since <= entry.due_at)
            and (before is None or entry.due_at <= before)
        )
        return entries[:limit]

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        await self._pass()
        keys = sorted(key for other, key in self._records if other == group)
        page = keys[0 if cursor is None else bisect_right(keys, cursor) :][:limit]
        records = [self._records[group, key] for key in page]
        return Page(
            [record for record in records if where.admits(record)],
            page[-1] if len(page) == limit else None,
        )

    async def _pass(self) -> None:
        """Lets other calls run first, and advances the index by one call."""
        if self._random.random() < 0.1:
            await asyncio.sleep(0)
        self._calls += 1
        if self._underway:
            for update in self._underway:
                if update.visible_at <= self._calls:
                    self._show(update)
            self._underway = [
                update for update in self._underway if update.visible_at > self._calls
            ]

    def _swap(self, swap: Swap) -> Made | None:
        identity = swap.group, swap.key
        current = self._records.get(identity)
        version = ABSENT if current is None else current.version
        if (
            version != swap.expect
            or (swap.token is not None and (current is None or current.token != swap.token))
            or (swap.due_at is not None and (current is None or current.due_at != swap.due_at))
        ):
            return None
        if swap.columns is None:
            self._records.pop(identity, None)
            self._announce(identity, None)
            return Made(None)
        record = (
            Record(*identity, **swap.columns)
            if current is None
            else current._replace(**swap.columns)
        )
        self._records[identity] = record
        self._announce(identity, record)
        return Made(record)

    def _announce(self, identity: Identity, record: Record | None) -> None:
        entry = None
        if record is not None and record.due_at is not None:
            entry = Entry(record.due_at, record.key, record.version, record.unfinished_attempts)
        visible_at = max(
            self._calls + self._random.randint(0, self._lag), self._visible_at.get(identity, 0)
        )
        self._visible_at[identity] = visible_at
        update = _Update(visible_at, identity, entry)
        if self._lag:
            self._underway.append(update)
        else:
            self._show(update)

    def _show(self, update: _Update) -> None:
        group, key = update.identity
        if update.entry is None:
            self._index.get(group, {}).pop(key, None)
        else:
            self._index.setdefault(group, {})[key] = update.entry


class LaggingRepository:
    """A factory of stores that all share one lagging backend."""

    def __init__(self, seed: int = 0, lag: int = 20) -> None:
        """Creates an empty backend.

        Args:
            seed: The same seed gives the same interleavings.
            lag: As for ``LaggingBackend``.
        """
        self._random = Random(seed)
        self.backend = LaggingBackend(self._random, lag)

    @asynccontextmanager
    async def __call__(self, **configuration: Any) -> AsyncIterator[CasStore]:
        """Opens a store; there are no options."""
        yield CasStore(self.backend, self._random)
