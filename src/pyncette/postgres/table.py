"""The table in PostgreSQL, and what is done to it: batches, answers, records.

Every function works on the connection that it is given, each statement in a transaction of its
own. The statements are in ``pyncette.postgres.sql``, connections in
``pyncette.postgres.connection``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import asyncpg

from pyncette import chance
from pyncette.clock import realtime
from pyncette.postgres.connection import Connection
from pyncette.postgres.sql import Statements
from pyncette.store import (
    Applied,
    Claimed,
    Filter,
    Group,
    Identity,
    Key,
    Page,
    Result,
    Source,
    Write,
    next_version,
)
from pyncette.store.record import ABSENT, ANY, Delete, Patch, Record, State, record_of
from pyncette.store.sql.low_water import LowWater
from pyncette.store.sql.rows import HeldRecords, prefix_end

EXAMINED_MAX: Final = 5_000
"""So many rows a page of a filtered scan looks at, so that no call takes long."""

TRIES_MAX: Final = 10
"""So often a statement is tried that others' transactions made fail."""

_RUNNING: Final = State.RUNNING.value
_DELAY_INITIAL_S: Final = 0.001
_DELAY_MAX_S: Final = 0.05
_AFTER_ANY_KEY: Final = "\U0010ffff" * 251
"""Greater than every key: these have at most 1,000 bytes."""


class PostgresTable:
    """The statements on one table.

    Args:
        name: A lower-case ASCII identifier.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._statements = Statements(name)
        self.marks = LowWater()
        self._held = HeldRecords()

    async def columns(self, connection: Connection) -> list[str]:
        """The names of the columns of the table; none where there is no such table."""
        return [row[0] for row in await connection.fetch(self._statements.layout, self.name)]

    async def make(self, connection: Connection) -> None:
        """Makes the table and its index, if nobody else was quicker."""
        await connection.execute(self._statements.make)

    async def claim(
        self,
        connection: Connection,
        sources: Sequence[Source],
        limit: int,
        now: int,
        token: str,
        repeated: bool,
    ) -> Claimed:
        """See ``pyncette.store.Store.claim``."""
        if not sources:
            return Claimed([], [])
        held: list[Record] = []
        shares = [source.share if isinstance(source, Group) else 1 for source in sources]
        groups = [source.group for source in sources]
        keys = [source.key if isinstance(source, Key) else None for source in sources]
        leases = [source.lease for source in sources]
        if repeated and limit > 0:
            ends = [now + lease for lease in leases]
            rows = await _fetch(
                connection, self._statements.held, groups, keys, ends, shares, token, limit
            )
            held = [record_of(row) for row in rows]
            for record in held:
                at = _source_of(record, groups, keys)
                shares[at] -= 1
        limit -= len(held)
        since = self.marks.before_claim(groups, now)
        rows = await _fetch(
            connection,
            self._statements.claim,
            groups,
            keys,
            since,
            [source.before if isinstance(source, Group) else now for source in sources],
            shares,
            leases,
            max(limit, 0),
            now,
            token,
            leases[0] if len(set(leases)) == 1 else None,
        )
        records = [
            record_of(
                (
                    group,
                    key,
                    due_at,
                    version,
                    token,
                    _RUNNING,
                    unfinished_attempts,
                    schedule,
                    args,
                    progress,
                )
            )
            for group, key, due_at, version, unfinished_attempts, schedule, args, progress in rows[
                : -len(sources)
            ]
        ]
        next_due: list[int | None] = [row[2] for row in rows[-len(sources) :]]
        taken = {record.group for record in records}
        if taken:
            taken_keys = {record[:2] for record in records} if any(keys) else set()
            for at, (group, key) in enumerate(zip(groups, keys, strict=True)):
                if group in taken if key is None else (group, key) in taken_keys:
                    end = now + leases[at]
                    left = next_due[at]
                    next_due[at] = end if left is None or left > end else left
        self.marks.after_claim(groups, keys, since, next_due, now)
        return Claimed(held + records if held else records, next_due)

    async def write(self, connection: Connection, batch: Sequence[Write], now: int) -> list[Result]:
        """See ``pyncette.store.Store.write``.

        What was not written is read. Where that does not show why, somebody holds the record, or
        held it, and it is tried again for a while, see ``HeldRecords``.
        """
        results: list[Result | None] = [None] * len(batch)
        pending = list(range(len(batch)))
        started = realtime.monotonic()
        delay = _DELAY_INITIAL_S
        try:
            while True:
                await self._try(connection, batch, pending, now, results)
                pending = [at for at in pending if results[at] is None]
                if not pending:
                    break
                current = await self.get(
                    connection, [(batch[at].group, batch[at].key) for at in pending]
                )
                waited = realtime.monotonic() - started
                for at, record in zip(pending, current, strict=True):
                    results[at] = self._held.answer(batch[at], record, waited)
                pending = [at for at in pending if results[at] is None]
                if not pending:
                    break
                await realtime.sleep(delay * chance.current().uniform(0.5, 1.0))
                delay = min(2 * delay, _DELAY_MAX_S)
        finally:
            self.marks.note(batch)
        return results  # type: ignore[return-value]

    async def _try(
        self,
        connection: Connection,
        batch: Sequence[Write],
        pending: Sequence[int],
        now: int,
        results: list[Result | None],
    ) -> None:
        """Makes what can be made now of the pending writes; their results tell."""
        deletes: list[int] = []
        patches: list[int] = []
        puts: list[int] = []
        creations: list[int] = []
        for at in pending:
            write = batch[at]
            if isinstance(write.change, Patch):
                patches.append(at)
            elif isinstance(write.change, Delete):
                deletes.append(at)
            elif write.expect != ABSENT:
                puts.append(at)
            elif write.token is None:
                creations.append(at)
        if deletes:
            count, groups, keys = await self._change(
                connection, self._statements.delete, batch, deletes
            )
            gone = (
                None if count == len(deletes) else set(zip(groups or (), keys or (), strict=True))
            )
            for at in deletes:
                if gone is None or batch[at][:2] in gone:
                    results[at] = Applied(ABSENT)
        for statement, chosen in ((self._statements.patch, patches), (self._statements.put, puts)):
            if chosen:
                changes = zip(*(batch[at].change for at in chosen), strict=True)
                numbers, versions = await self._change(
                    connection, statement, batch, chosen, now, *map(list, changes)
                )
                for number, version in zip(numbers or (), versions or (), strict=True):
                    results[chosen[number - 1]] = Applied(version)
        creations += [
            at
            for at in puts
            if results[at] is None and batch[at].expect == ANY and batch[at].token is None
        ]
        if creations:
            await self._create(connection, batch, creations, now, results)

    async def _change(
        self,
        connection: Connection,
        statement: str,
        batch: Sequence[Write],
        chosen: Sequence[int],
        *values: Any,
    ) -> tuple[Any, ...]:
        """Changes the rows that are as expected; what the statement tells of it."""
        groups, keys, _, expected, tokens = zip(*(batch[at] for at in chosen), strict=True)
        [row] = await _fetch(
            connection, statement, list(groups), list(keys), list(expected), list(tokens), *values
        )
        return tuple(row)

    async def _create(
        self,
        connection: Connection,
        batch: Sequence[Write],
        chosen: Sequence[int],
        now: int,
        results: list[Result | None],
    ) -> None:
        ordered = {batch[at][:2]: at for at in sorted(chosen, key=lambda at: batch[at][:2])}
        version = next_version(ABSENT, now)
        changes = zip(*(batch[at].change for at in ordered.values()), strict=True)
        try:
            [(groups, keys)] = await _fetch(
                connection,
                self._statements.insert,
                [group for group, _ in ordered],
                [key for _, key in ordered],
                version,
                *map(list, changes),
            )
        except asyncpg.LockNotAvailableError:
            return
        for identity in zip(groups or (), keys or (), strict=True):
            results[ordered[identity]] = Applied(version)

    async def get(
        self, connection: Connection, identities: Sequence[Identity]
    ) -> list[Record | None]:
        """See ``pyncette.store.Store.get``."""
        if not identities:
            return []
        groups, keys = zip(*identities, strict=True)
        rows = await _fetch(connection, self._statements.get, list(groups), list(keys))
        found: dict[Identity, Record] = {(row[0], row[1]): record_of(row) for row in rows}
        return [found.get(identity) for identity in identities]

    async def scan(
        self, connection: Connection, group: str, where: Filter, cursor: str | None, limit: int
    ) -> Page:
        """See ``pyncette.store.Store.scan``. The cursor is the last key that was looked at."""
        states, prefix, due_before = where
        end = (prefix_end(prefix) if prefix else None) or _AFTER_ANY_KEY
        keys = (group, cursor or "", prefix, end)
        last_examined: str | None = None
        if states is not None or due_before is not None:
            rows = await _fetch(
                connection, self._statements.last_examined, *keys, max(EXAMINED_MAX, limit) - 1
            )
            last_examined = rows[0][0] if rows else None
        rows = await _fetch(
            connection,
            self._statements.page,
            *keys,
            last_examined or _AFTER_ANY_KEY,
            due_before,
            None if states is None else [state.value for state in states],
            limit + 1,
        )
        records = [record_of(row) for row in rows[:limit]]
        return Page(records, records[-1].key if len(rows) > limit else last_examined)


def _source_of(record: Record, groups: Sequence[str], keys: Sequence[str | None]) -> int:
    """The number of the source that a record belongs to."""
    return next(
        at
        for at, (group, key) in enumerate(zip(groups, keys, strict=True))
        if group == record.group and key in (None, record.key)
    )


async def _fetch(connection: Connection, statement: str, *parameters: Any) -> list[Any]:
    """Runs a statement, again where others' transactions made it fail: it then did nothing."""
    delay = _DELAY_INITIAL_S
    for tries_left in reversed(range(TRIES_MAX)):
        try:
            rows: list[Any] = await connection.fetch(statement, *parameters)
        except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError):
            if not tries_left:
                raise
        else:
            return rows
        await realtime.sleep(delay * chance.current().uniform(0.5, 1.0))
        delay = min(2 * delay, _DELAY_MAX_S)
    raise AssertionError("never reached: the last try returns or raises")
