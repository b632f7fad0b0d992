"""The table in PostgreSQL, and what is done to it: statements, arrays, rows, records.

Every function works on the connection that it is given, each statement in a transaction of its
own. No statement waits for a row that somebody holds: claims and changes skip it (``SKIP
LOCKED``), creations give up after a moment. Connections are in
:mod:`pyncette.postgres_connection`.

Batches travel as arrays, one for each column, and come back as arrays or rows: one trip each.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

import asyncpg

from pyncette.clock import realtime
from pyncette.errors import StoreUnavailableError
from pyncette.postgres_connection import Connection
from pyncette.record import ABSENT, ANY, Delete, Patch, Put, Record, State
from pyncette.sql import COLUMNS, prefix_end, record_from_row
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
    Write,
    next_version,
)

EXAMINED_MAX: Final = 5_000
"""So many rows a page of a filtered scan looks at, so that no call takes long."""

TRIES_MAX: Final = 10
"""So often a statement is tried that others' transactions made fail."""

HELD_PATIENCE_S: Final = 0.25
"""How long a write waits for a record that somebody holds before it says so."""

HELD_AGAIN_PATIENCE_S: Final = 0.02
"""The same for a record that was held for that long before: others wait in the same flight."""

HELD_UNANSWERED_S: Final = 1.0
"""The same for a write that has no other answer than that it was made."""

HELD_KNOWN_MAX: Final = 1_000

_DELAY_INITIAL_S: Final = 0.001
_DELAY_MAX_S: Final = 0.05
_AFTER_ANY_KEY: Final = "\U0010ffff" * 251
"""Greater than every key: these have at most 1,000 bytes."""

_EVERYTHING_SINCE: Final = -(1 << 63)

# Every update moves the indexed due_at, so that none is "heap only": the free space that
# fillfactor leaves lets the new version of a row stay on its page. Vacuum comes early and often,
# because the entries of moved rows lie where claims begin to read.
SCHEMA: Final = """\
CREATE TABLE IF NOT EXISTS {table} (
    "group"  text COLLATE "C" NOT NULL,
    "key"    text COLLATE "C" NOT NULL,
    due_at   bigint,
    version  bigint NOT NULL CHECK (version < 4611686018427387904),
    token    text COLLATE "C",
    state    text COLLATE "C" NOT NULL,
    starts   integer NOT NULL CHECK (starts < 1073741824),
    plan     text NOT NULL,
    args     text NOT NULL,
    progress text NOT NULL,
    PRIMARY KEY ("group", "key")
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0.02
);
CREATE INDEX IF NOT EXISTS {table}_due ON {table} ("group", due_at) WHERE due_at IS NOT NULL;
"""

_RUNNING: Final = State.RUNNING.value
_COLUMNS: Final = ", ".join(f'r."{column}"' for column in COLUMNS)

# Columns of a table of that name on the search path; by the catalogue's own indexes.
_LAYOUT: Final = """\
SELECT attname::text FROM pg_attribute
WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum"""

# Makes the table unless it is there; one of several that start together does, the others wait.
_MAKE: Final = "SELECT pg_advisory_xact_lock(8247610394451120483);\n{schema}"

# Takes what is due: of groups by the index on (group, due_at), of keys by the primary key. Tells
# the soonest of each source among what it did not take, in rows without a key at the end.
# The rows are updated by their place: a join with them was once planned as a scan of the table.
_CLAIM: Final = """\
WITH sources AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[],
        $6::bigint[]) WITH ORDINALITY AS s("group", "key", since, before, share, lease, number)
), picked AS MATERIALIZED (
    SELECT p.place FROM sources AS s CROSS JOIN LATERAL (
        SELECT d.place FROM (
            SELECT r.ctid AS place FROM {table} AS r
            WHERE s."key" IS NULL AND r."group" = s."group"
                AND r.due_at >= s.since AND r.due_at <= s.before
            ORDER BY r.due_at LIMIT s.share FOR UPDATE SKIP LOCKED
        ) AS d
        UNION ALL
        SELECT d.place FROM (
            SELECT r.ctid AS place FROM {table} AS r
            WHERE r."group" = s."group" AND r."key" = s."key" AND r.due_at <= s.before
            FOR UPDATE SKIP LOCKED
        ) AS d
    ) AS p LIMIT $7
), taken AS (
    UPDATE {table} AS t SET state = '{running}', token = $9, starts = t.starts + 1,
        version = greatest(t.version + 1, $8),
        due_at = $8 + coalesce($10::bigint, (
            SELECT s.lease FROM sources AS s
            WHERE s."group" = t."group" AND (s."key" IS NULL OR s."key" = t."key")))
    WHERE t.ctid = ANY(ARRAY(SELECT place FROM picked))
    RETURNING t."group", t."key", t.due_at, t.version, t.starts, t.plan, t.args, t.progress
)
SELECT * FROM taken
UNION ALL
SELECT NULL, NULL, coalesce((
    SELECT r.due_at FROM {table} AS r
    WHERE s."key" IS NULL AND r."group" = s."group" AND r.due_at >= s.since
        AND r.ctid <> ALL(ARRAY(SELECT place FROM picked))
    ORDER BY r.due_at LIMIT 1
), (
    SELECT r.due_at FROM {table} AS r
    WHERE r."group" = s."group" AND r."key" = s."key"
        AND r.ctid <> ALL(ARRAY(SELECT place FROM picked))
)), NULL, NULL, NULL, NULL, NULL
FROM sources AS s"""

# What a claim took whose answer was lost; by the index on (group, due_at), keys by the primary key.
_HELD: Final = """\
SELECT h.* FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[])
    AS s("group", "key", lease_end, share)
CROSS JOIN LATERAL (
    (SELECT {columns} FROM {table} AS r
    WHERE s."key" IS NULL AND r."group" = s."group" AND r.due_at = s.lease_end AND r.token = $5
    LIMIT s.share)
    UNION ALL
    (SELECT {columns} FROM {table} AS r
    WHERE r."group" = s."group" AND r."key" = s."key" AND r.due_at = s.lease_end AND r.token = $5)
) AS h LIMIT $6"""

# The places of the rows that are as expected and that nobody holds, by the primary key.
_EXPECTED: Final = """\
SELECT w.*, l.place
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[]{arrays})
    WITH ORDINALITY AS w("group", "key", expect, expected_token{names}, number)
CROSS JOIN LATERAL (
    SELECT r.ctid AS place FROM {table} AS r
    WHERE r."group" = w."group" AND r."key" = w."key"
        AND (w.expect = -1 OR r.version = w.expect)
        AND (w.expected_token IS NULL OR r.token = w.expected_token)
    FOR UPDATE SKIP LOCKED
) AS l"""

# Tells which ones only where some were not as expected.
_DELETE: Final = """\
WITH gone AS (
    DELETE FROM {table} AS t WHERE t.ctid = ANY(ARRAY(SELECT w.place FROM ({expected}) AS w))
    RETURNING t."group", t."key"
)
SELECT count(*), CASE WHEN count(*) < cardinality($1) THEN array_agg("group") END,
    CASE WHEN count(*) < cardinality($1) THEN array_agg("key") END
FROM gone"""

_UPDATE: Final = """\
WITH changed AS (
    UPDATE {table} AS t SET version = greatest(t.version + 1, $5), {assignments}
    FROM ({expected}) AS w WHERE t.ctid = w.place RETURNING w.number, t.version
)
SELECT array_agg(number), array_agg(version) FROM changed"""

# Creates what is absent, in the order of keys. What is there is not touched: an insertion would
# wait for whoever is changing it. One that is being created elsewhere is waited for a moment.
_INSERT: Final = """\
WITH made AS (
    INSERT INTO {table} SELECT w."group", w."key", w.due_at, $3, w.token, w.state, w.starts,
        w.plan, w.args, w.progress
    FROM (SELECT set_config('lock_timeout', '100ms', true) AS timeout) AS s
    CROSS JOIN unnest($1::text[], $2::text[], $4::bigint[], $5::text[], $6::text[], $7::integer[],
        $8::text[], $9::text[], $10::text[]) WITH ORDINALITY
        AS w("group", "key", due_at, state, token, starts, plan, args, progress, number)
    WHERE s.timeout IS NOT NULL AND NOT EXISTS (
        SELECT FROM {table} AS r WHERE r."group" = w."group" AND r."key" = w."key")
    ORDER BY w.number
    ON CONFLICT DO NOTHING
    RETURNING "group", "key"
)
SELECT array_agg("group"), array_agg("key") FROM made"""

# Many records, by the primary key.
_GET: Final = """\
SELECT {columns} FROM unnest($1::text[], $2::text[]) AS w("group", "key")
JOIN {table} AS r ON r."group" = w."group" AND r."key" = w."key\""""

# The last of the rows that a filtered page may look at, by the primary key.
_LAST_EXAMINED: Final = """\
SELECT r."key" FROM {table} AS r
WHERE r."group" = $1 AND r."key" > $2 AND r."key" >= $3 AND r."key" < $4
ORDER BY r."key" OFFSET $5 LIMIT 1"""

# A range of keys, by the primary key.
_PAGE: Final = """\
SELECT {columns} FROM {table} AS r
WHERE r."group" = $1 AND r."key" > $2 AND r."key" >= $3 AND r."key" < $4 AND r."key" <= $5
    AND ($6::bigint IS NULL OR r.due_at < $6) AND ($7::text[] IS NULL OR r.state = ANY($7))
ORDER BY r."key" LIMIT $8"""

# What each kind of change writes: type of the array, and what becomes of the column.
_PATCHED: Final = {
    "due_at": ("bigint", "w.due_at"),
    "state": ("text", "w.state"),
    "starts": ("integer", "w.starts"),
    "progress": ("text", "coalesce(w.progress, t.progress)"),
}
_PUT: Final = {
    "due_at": ("bigint", "w.due_at"),
    "state": ("text", "w.state"),
    "token": ("text", "w.token"),
    "starts": ("integer", "w.starts"),
    "plan": ("text", "w.plan"),
    "args": ("text", "w.args"),
    "progress": ("text", "w.progress"),
}


def schema_sql(table_name: str) -> str:
    """The statements that make the table and its index."""
    return SCHEMA.format(table=table_name)


class PostgresTable:
    """The statements on one table.

    Args:
        name: A lower-case ASCII identifier.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._make = _MAKE.format(schema=schema_sql(name))
        self._claim = _CLAIM.format(table=name, running=_RUNNING)
        self._held = _HELD.format(table=name, columns=_COLUMNS)
        self._delete = _DELETE.format(table=name, expected=_expected(name, {}, 5))
        self._patch = _update(name, _PATCHED)
        self._put = _update(name, _PUT)
        self._insert = _INSERT.format(table=name)
        self._get = _GET.format(table=name, columns=_COLUMNS)
        self._last_examined = _LAST_EXAMINED.format(table=name)
        self._page = _PAGE.format(table=name, columns=_COLUMNS)
        self._marks = LowWater()
        # Records that somebody held for long when they were last to be written.
        self._known_held: set[Identity] = set()

    async def columns(self, connection: Connection) -> list[str]:
        """The names of the columns of the table; none where there is no such table."""
        return [row[0] for row in await connection.fetch(_LAYOUT, self.name)]

    async def make(self, connection: Connection) -> None:
        """Makes the table and its index, if nobody else was quicker."""
        await connection.execute(self._make)

    async def claim(
        self,
        connection: Connection,
        sources: Sequence[Source],
        limit: int,
        now: int,
        token: str,
        repeated: bool,
    ) -> Claimed:
        """See :meth:`pyncette.store.Store.claim`."""
        if not sources:
            return Claimed([], [])
        held: list[Record] = []
        shares = [source.share if isinstance(source, Group) else 1 for source in sources]
        groups = [source.group for source in sources]
        keys = [source.key if isinstance(source, Key) else None for source in sources]
        leases = [source.lease for source in sources]
        if repeated and limit > 0:
            ends = [now + lease for lease in leases]
            rows = await _fetch(connection, self._held, groups, keys, ends, shares, token, limit)
            held = [record_from_row(row) for row in rows]
            for record in held:
                at = _source_of(record, groups, keys)
                shares[at] -= 1
        limit -= len(held)
        since = self._marks.before_claim(groups, now)
        rows = await _fetch(
            connection,
            self._claim,
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
            record_from_row(
                (group, key, due_at, version, token, _RUNNING, starts, plan, args, progress)
            )
            for group, key, due_at, version, starts, plan, args, progress in rows[: -len(sources)]
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
        self._marks.after_claim(groups, keys, since, next_due, now)
        return Claimed(held + records if held else records, next_due)

    def forget_marks(self) -> None:
        """Somebody wrote what comes due sooner than may be known: claims read everything again."""
        self._marks.forget()

    async def write(self, connection: Connection, batch: Sequence[Write], now: int) -> list[Result]:
        """See :meth:`pyncette.store.Store.write`.

        What was not written is read. Where that does not show why, somebody holds the record, or
        held it, and it is tried again for a while. A conditional write of a record that is held
        for long is then refused with the record as it stands, so that others need not wait; the
        writer comes back with its next batch.

        Raises:
            StoreUnavailableError: An unconditional write, or a creation, met a record that
                somebody held for long.
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
                    results[at] = self._answer(batch[at], record, waited)
                pending = [at for at in pending if results[at] is None]
                if not pending:
                    break
                if waited > HELD_UNANSWERED_S:
                    group, key, *_ = batch[pending[0]]
                    raise StoreUnavailableError(
                        f"The record {key!r} of '{group}' is locked by somebody's open transaction"
                    )
                await realtime.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(2 * delay, _DELAY_MAX_S)
        finally:
            self._marks.note(batch)
        return results  # type: ignore[return-value]

    def _answer(self, write: Write, current: Record | None, waited: float) -> Result | None:
        """What to say of a write that was not made; None: try again."""
        identity = write[:2]
        if not _expected_is(write, current):
            self._known_held.discard(identity)
            return Refused(current)
        if current is None and not isinstance(write.change, Put):
            return Applied(ABSENT)
        if current is None or write.expect == ANY:
            return None
        if waited <= (HELD_AGAIN_PATIENCE_S if identity in self._known_held else HELD_PATIENCE_S):
            return None
        if len(self._known_held) >= HELD_KNOWN_MAX:
            self._known_held.clear()
        self._known_held.add(identity)
        return Refused(current)

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
            count, groups, keys = await self._change(connection, self._delete, batch, deletes)
            gone = (
                None if count == len(deletes) else set(zip(groups or (), keys or (), strict=True))
            )
            for at in deletes:
                if gone is None or batch[at][:2] in gone:
                    results[at] = Applied(ABSENT)
        for statement, chosen in ((self._patch, patches), (self._put, puts)):
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
                self._insert,
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
        """See :meth:`pyncette.store.Store.get`."""
        if not identities:
            return []
        groups, keys = zip(*identities, strict=True)
        rows = await _fetch(connection, self._get, list(groups), list(keys))
        found: dict[Identity, Record] = {(row[0], row[1]): record_from_row(row) for row in rows}
        return [found.get(identity) for identity in identities]

    async def scan(
        self, connection: Connection, group: str, where: Filter, cursor: str | None, limit: int
    ) -> Page:
        """See :meth:`pyncette.store.Store.scan`. The cursor is the last key that was looked at."""
        states, prefix, due_before = where
        end = (prefix_end(prefix) if prefix else None) or _AFTER_ANY_KEY
        keys = (group, cursor or "", prefix, end)
        last_examined: str | None = None
        if states is not None or due_before is not None:
            rows = await _fetch(
                connection, self._last_examined, *keys, max(EXAMINED_MAX, limit) - 1
            )
            last_examined = rows[0][0] if rows else None
        rows = await _fetch(
            connection,
            self._page,
            *keys,
            last_examined or _AFTER_ANY_KEY,
            due_before,
            None if states is None else [state.value for state in states],
            limit + 1,
        )
        records = [record_from_row(row) for row in rows[:limit]]
        return Page(records, records[-1].key if len(rows) > limit else last_examined)


class LowWater:
    """For each group, an instant before which nothing is due, as far as this process knows.

    While somebody keeps an old snapshot open, the server cannot drop the index entries of runs
    that are done. They lie where a claim begins to read, and each claim would pass all of them
    again: measured, 9,000 pages for a claim of 100 after 300,000 runs. So a claim begins at the
    mark that the one before it left. What others write before the mark shows when they notify, or
    when a claim reads from the very beginning: the first one of every second.
    """

    _INTERVAL = 1_000_000

    def __init__(self) -> None:
        # The mark, and when a claim has last read from the beginning.
        self._marks: dict[str, tuple[int, int]] = {}
        # Of what was written since the claim under way was sent, the soonest of each group.
        self._written: dict[str, int] = {}
        self._forgotten = False

    def before_claim(self, groups: Sequence[str], now: int) -> list[int]:
        """Where the claim begins to read in each group."""
        self._written.clear()
        self._forgotten = False
        since = []
        for group in groups:
            mark, full_at = self._marks.get(group, (_EVERYTHING_SINCE, now))
            fresh = 0 <= now - full_at < self._INTERVAL
            since.append(mark if fresh else _EVERYTHING_SINCE)
        return since

    def after_claim(
        self,
        groups: Sequence[str],
        keys: Sequence[str | None],
        since: Sequence[int],
        next_due: Sequence[int | None],
        now: int,
    ) -> None:
        """Moves the marks to what the claim has left, or to its instant."""
        if self._forgotten:  # what it was about may have come after the claim had read
            return
        for group, key, begun, left in zip(groups, keys, since, next_due, strict=True):
            if key is None:
                mark = now if left is None else min(left, now)
                mark = min(mark, self._written.get(group, mark))
                full_at = now if begun == _EVERYTHING_SINCE else self._marks[group][1]
                self._marks[group] = (mark, full_at)

    def note(self, batch: Sequence[Write]) -> None:
        """Takes in what was written, or may have been."""
        for write in batch:
            due_at = getattr(write.change, "due_at", None)
            if due_at is None:
                continue
            group = write.group
            if due_at < self._written.get(group, due_at + 1):
                self._written[group] = due_at
            mark = self._marks.get(group)
            if mark is not None and due_at < mark[0]:
                self._marks[group] = (due_at, mark[1])

    def forget(self) -> None:
        """Claims read from the very beginning again."""
        self._marks.clear()
        self._forgotten = True


def _source_of(record: Record, groups: Sequence[str], keys: Sequence[str | None]) -> int:
    """The number of the source that a record belongs to."""
    return next(
        at
        for at, (group, key) in enumerate(zip(groups, keys, strict=True))
        if group == record.group and key in (None, record.key)
    )


def _expected_is(write: Write, current: Record | None) -> bool:
    """Whether the expectation of a write holds for the record that is there."""
    version = ABSENT if current is None else current.version
    if write.expect not in (version, ANY):
        return False
    return write.token is None or (current is not None and current.token == write.token)


def _expected(table: str, columns: dict[str, tuple[str, str]], first: int) -> str:
    """The statement that finds the rows of a batch, with further columns of the batch."""
    arrays = "".join(
        f", ${number}::{kind}[]" for number, (kind, _) in enumerate(columns.values(), first)
    )
    names = "".join(f", {name}" for name in columns)
    return _EXPECTED.format(table=table, arrays=arrays, names=names)


def _update(table: str, columns: dict[str, tuple[str, str]]) -> str:
    """The statement that changes these columns."""
    assignments = ", ".join(f"{name} = {value}" for name, (_, value) in columns.items())
    expected = _expected(table, columns, 6)
    return _UPDATE.format(table=table, assignments=assignments, expected=expected)


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
        await realtime.sleep(delay * random.uniform(0.5, 1.0))
        delay = min(2 * delay, _DELAY_MAX_S)
    raise AssertionError("never reached: the last try returns or raises")
