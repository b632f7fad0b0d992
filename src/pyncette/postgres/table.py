"""The table in PostgreSQL, and the calls on it: batches, answers, records.

Every function works on the connection that it is given, each statement in its own transaction. The
statements are in ``pyncette.postgres.sql``, connections in ``pyncette.postgres.connection``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any, Final

import asyncpg

from pyncette.postgres.connection import Connection, refusal
from pyncette.postgres.sql import Statements
from pyncette.store import (
    Applied,
    Claimed,
    Counted,
    Filter,
    Group,
    Identity,
    Key,
    Page,
    Source,
    next_version,
)
from pyncette.store.rare import is_rare, merged_page
from pyncette.store.record import ABSENT, ANY, Delete, Patch, Record, State, record_of
from pyncette.store.sql.conditional import ConditionalWrite, HeldRecords, Look
from pyncette.store.sql.conflicts import retried
from pyncette.store.sql.low_water import LowWaterMarks
from pyncette.store.sql.rows import counted, prefix_end

EXAMINED_MAX: Final = 5_000
"""Maximum rows that a page of a filtered scan examines, so that no call takes long."""

_RUNNING: Final = State.RUNNING.value
_AFTER_ANY_KEY: Final = "\U0010ffff" * 251
"""Greater than every key; keys have at most 1,000 bytes."""

_PAYLOAD_BYTES_MAX: Final = 7_900


class PostgresTable:
    """See ``pyncette.store.sql.store.Table``.

    Args:
        name: A lower-case ASCII identifier.
    """

    notifies = True

    def __init__(self, name: str) -> None:
        self.name = name
        self._statements = Statements(name)
        self.low_water_marks = LowWaterMarks()
        self._held = HeldRecords()

    async def columns(self, connection: Connection) -> list[str]:
        """The names of the columns of the table; none if there is no such table."""
        return [row[0] for row in await connection.fetch(self._statements.layout, self.name)]

    async def locate(self, connection: Connection) -> tuple[str, str]:
        """Returns the schema of the table, and the database."""
        [(schema, database)] = await connection.fetch(self._statements.place, self.name)
        return schema, database

    async def make(self, connection: Connection) -> None:
        """Creates the table and its index, unless they exist."""
        await connection.execute(self._statements.make)

    async def claim(
        self,
        connection: Connection,
        sources: Sequence[Source],
        limit: int,
        now: int,
        token: str,
        repeated: bool,
        bounded: bool,
        unfinished_max: int | None,
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
            rows = await fetch(
                connection,
                self._statements.held,
                groups,
                keys,
                ends,
                shares,
                token,
                limit,
                # The claim itself has increased the count.
                None if unfinished_max is None else unfinished_max + 1,
            )
            held = [record_of(row) for row in rows]
            for record in held:
                at = _source_of(record, groups, keys)
                shares[at] -= 1
        limit -= len(held)
        since = self.low_water_marks.before_claim(groups, now)
        rows = await fetch(
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
            bounded,
            unfinished_max,
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
        self.low_water_marks.after_claim(groups, keys, since, next_due, now)
        return Claimed(held + records if held else records, next_due)

    async def write(self, connection: Connection, batch: ConditionalWrite, now: int) -> None:
        """See ``pyncette.store.sql.store.Table.write``."""

        async def attempt(places: Sequence[int]) -> None:
            await self._try(connection, batch, places, now)

        async def look(identities: Sequence[Identity]) -> list[Look]:
            return [Look(record) for record in await self.get(connection, identities)]

        try:
            await batch.run(attempt, look, self._held)
        finally:
            self.low_water_marks.note(batch.batch)

    async def notify(self, connection: Connection, groups: Collection[str]) -> None:
        """See ``pyncette.store.sql.store.Table.notify``."""
        await connection.execute("SELECT pg_notify($1, $2)", self.name, _payload(groups))

    async def now(self, connection: Connection) -> int:
        """See ``pyncette.store.Store.now``."""
        instant: int = await connection.fetchval(self._statements.clock)
        return instant

    async def _try(
        self, connection: Connection, batch: ConditionalWrite, places: Sequence[int], now: int
    ) -> None:
        """Makes the writes that can be made now, and stores their results in the batch."""
        writes, results = batch.batch, batch.results
        deletes: list[int] = []
        patches: list[int] = []
        puts: list[int] = []
        creations: list[int] = []
        for at in places:
            write = writes[at]
            if isinstance(write.change, Patch):
                patches.append(at)
            elif isinstance(write.change, Delete):
                deletes.append(at)
            elif write.expect != ABSENT:
                puts.append(at)
            elif write.token is None:
                creations.append(at)

        async def delete(part: Sequence[int]) -> None:
            count, groups, keys = await self._change(
                connection, self._statements.delete, batch, part
            )
            gone = None if count == len(part) else set(zip(groups or (), keys or (), strict=True))
            for at in part:
                if gone is None or writes[at][:2] in gone:
                    results[at] = Applied(ABSENT)

        async def update(statement: str, part: Sequence[int]) -> None:
            changes = zip(*(writes[at].change for at in part), strict=True)
            numbers, versions = await self._change(
                connection, statement, batch, part, now, *map(list, changes)
            )
            for number, version in zip(numbers or (), versions or (), strict=True):
                results[part[number - 1]] = Applied(version)

        async def patch(part: Sequence[int]) -> None:
            await update(self._statements.patch, part)

        async def put(part: Sequence[int]) -> None:
            await update(self._statements.put, part)

        async def create(part: Sequence[int]) -> None:
            await self._create(connection, batch, part, now)

        if deletes:
            await batch.apply(deletes, delete, refusal)
        if patches:
            await batch.apply(patches, patch, refusal)
        if puts:
            await batch.apply(puts, put, refusal)
        creations += [
            at
            for at in puts
            if results[at] is None and writes[at].expect == ANY and writes[at].token is None
        ]
        if creations:
            creations.sort(key=lambda at: writes[at][:2])
            await batch.apply(creations, create, refusal)

    async def _change(
        self,
        connection: Connection,
        statement: str,
        batch: ConditionalWrite,
        part: Sequence[int],
        *values: Any,
    ) -> tuple[Any, ...]:
        """Changes the rows that are as expected; returns the rows of the statement's answer."""
        groups, keys, _, expected, tokens = zip(*(batch.batch[at] for at in part), strict=True)
        [row] = await fetch(
            connection, statement, list(groups), list(keys), list(expected), list(tokens), *values
        )
        return tuple(row)

    async def _create(
        self, connection: Connection, batch: ConditionalWrite, part: Sequence[int], now: int
    ) -> None:
        places = {batch.batch[at][:2]: at for at in part}
        version = next_version(ABSENT, now)
        changes = zip(*(batch.batch[at].change for at in part), strict=True)
        try:
            [(groups, keys)] = await fetch(
                connection,
                self._statements.insert,
                [group for group, _ in places],
                [key for _, key in places],
                version,
                *map(list, changes),
            )
        except asyncpg.LockNotAvailableError:
            return
        for identity in zip(groups or (), keys or (), strict=True):
            batch.results[places[identity]] = Applied(version)

    async def get(
        self, connection: Connection, identities: Sequence[Identity]
    ) -> list[Record | None]:
        """See ``pyncette.store.Store.get``."""
        if not identities:
            return []
        groups, keys = zip(*identities, strict=True)
        rows = await fetch(connection, self._statements.get, list(groups), list(keys))
        found: dict[Identity, Record] = {(row[0], row[1]): record_of(row) for row in rows}
        return [found.get(identity) for identity in identities]

    async def scan(
        self, connection: Connection, group: str, where: Filter, cursor: str | None, limit: int
    ) -> Page:
        """See ``pyncette.store.Store.scan``. The cursor is the last key that was examined."""
        states, prefix, due_before = where
        end = (prefix_end(prefix) if prefix else None) or _AFTER_ANY_KEY
        keys = (group, cursor or "", prefix, end)
        if states is not None and is_rare(where):
            pages = [
                await fetch(
                    connection,
                    self._statements.page_of_rare,
                    *keys,
                    state.value,
                    due_before,
                    limit + 1,
                )
                for state in states
            ]
            return merged_page([[record_of(row) for row in rows] for rows in pages], limit)
        last_examined: str | None = None
        if states is not None or due_before is not None:
            rows = await fetch(
                connection, self._statements.last_examined, *keys, max(EXAMINED_MAX, limit) - 1
            )
            last_examined = rows[0][0] if rows else None
        rows = await fetch(
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

    async def count(self, connection: Connection, group: str, where: Filter, limit: int) -> Counted:
        """See ``pyncette.store.Store.count``."""
        states, prefix, due_before = where
        examined_max = max(EXAMINED_MAX, limit)
        names = None if states is None else [state.value for state in states]
        match: tuple[Any, ...] = (due_before, names, group)
        statements = self._statements
        if is_rare(where) and not prefix:
            statement = statements.count_rare
        elif due_before is not None and not prefix and names is None:
            statement, match = statements.count_due, (due_before, group)
        elif due_before is not None and not prefix:
            statement = statements.count_due_in_states
        else:
            statement = statements.count
            match += (prefix, (prefix_end(prefix) if prefix else None) or _AFTER_ANY_KEY)
        [(examined, matches)] = await fetch(connection, statement, *match, examined_max + 1)
        return counted(examined, matches, examined_max, limit)


def _source_of(record: Record, groups: Sequence[str], keys: Sequence[str | None]) -> int:
    """The number of the source that a record belongs to."""
    return next(
        at
        for at, (group, key) in enumerate(zip(groups, keys, strict=True))
        if group == record.group and key in (None, record.key)
    )


def _payload(groups: Collection[str]) -> str:
    """The groups as text; if that is too long, the text for any group."""
    text = json.dumps(sorted(groups), ensure_ascii=False)
    return text if len(text.encode()) <= _PAYLOAD_BYTES_MAX else ""


def _is_conflict(error: Exception) -> bool:
    return isinstance(error, (asyncpg.SerializationError, asyncpg.DeadlockDetectedError))


async def fetch(connection: Connection, statement: str, *parameters: Any) -> list[Any]:
    """Runs a statement, and retries it if another transaction made it fail, without effect."""
    rows: list[Any] = await retried(lambda: connection.fetch(statement, *parameters), _is_conflict)
    return rows
