"""The table in MySQL or MariaDB, and what is done to it: statements, batches as JSON, records.

Every function works on the connection that it is given. **Each transaction is one statement**, so
that no lock outlives it, whatever becomes of this process. No statement waits for a row that
somebody holds: claims and changes find their rows with ``SKIP LOCKED`` in a derived table, and the
outer statement touches what this one has locked. Only an insertion may wait, for a second, for
another insertion of the same key.

These servers cannot return what they have changed. So a change is made of all rows of its batch or
of none (a window function counts what was found), and the number of changed rows says which; it is
above none whenever a row was found, since every change moves the version. A batch of which nothing
was changed is looked at, and what stood in its way taken out.

Every table is reached by a named index: by a plan that scans it, which a server prefers while it
is small, a statement would meet rows that are not its own, and wait for who holds them.

Batches travel as one JSON text. Keys are compared as bytes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from asyncmy import errors

from pyncette.clock import realtime
from pyncette.errors import StoreUnavailableError
from pyncette.mysql_connection import (
    DEADLOCK,
    DUPLICATE,
    LOCK_WAIT_TIMEOUT,
    Connection,
    Results,
    code_of,
    query,
)
from pyncette.record import ABSENT, ANY, Delete, Patch, Put, Record, State
from pyncette.sql import (
    COLUMNS,
    HELD_UNANSWERED_S,
    HeldRecords,
    prefix_end,
    record_from_row,
)
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

EXAMINED_MAX: Final = 5_000
"""So many rows a page of a filtered scan looks at, so that no call takes long."""

TRIES_MAX: Final = 10
"""So often a statement is tried that others' transactions made fail."""

ROWS_MAX: Final = 1_000
"""So many rows go into one statement,"""

CHARACTERS_MAX: Final = 1_000_000
"""and so many characters of their texts, unless it is one row."""

_SUBQUERIES_MAX: Final = 500
"""So many groups are asked for by one statement, which can have some thousands of columns."""

_SHORT_MAX: Final = 1_000
"""Texts up to this length stay in memory while a statement works on them."""

_DELAY_INITIAL_S: Final = 0.001
_DELAY_MAX_S: Final = 0.05
_VERSION_MAX: Final = 1 << 61
_STARTS_MAX: Final = 1 << 30
"""Beyond these no claim counts on, so that no edit brings one to where the table refuses it."""


# Keys are bytes: no collation takes two of them for one, and both halves of an identity, at most
# 1,000 bytes together, fit into an index, of which InnoDB allows 3,072.
SCHEMA: Final = """\
CREATE TABLE IF NOT EXISTS {table} (
    `group`  VARBINARY(1000) NOT NULL,
    `key`    VARBINARY(1000) NOT NULL,
    due_at   BIGINT,
    version  BIGINT NOT NULL,
    token    VARCHAR(1000),
    state    VARCHAR(20) NOT NULL,
    starts   INT NOT NULL,
    plan     MEDIUMTEXT NOT NULL,
    args     LONGTEXT NOT NULL,
    progress MEDIUMTEXT NOT NULL,
    PRIMARY KEY (`group`, `key`),
    KEY due (`group`, due_at),
    CHECK (version < 4611686018427387904),
    CHECK (starts < 2147483647),
    CHECK (COALESCE(HEX(CONVERT(`key` USING utf8mb4)), '') = HEX(`key`))
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET = utf8mb4 COLLATE = utf8mb4_bin"""

_COLUMNS: Final = ", ".join(
    f"CONVERT(r.`{column}` USING utf8mb4)" if column in ("group", "key") else f"r.`{column}`"
    for column in COLUMNS
)

# The same where a text may be none: MariaDB takes surrogates for characters.
_BYTES: Final = ", ".join(
    f"r.{column}" if column in ("due_at", "version", "starts") else f"CAST(r.`{column}` AS BINARY)"
    for column in COLUMNS
)

# Columns of a table of that name in the database, and its engine.
_LAYOUT: Final = """\
SELECT c.column_name, t.engine FROM information_schema.columns AS c
JOIN information_schema.tables AS t USING (table_schema, table_name)
WHERE c.table_schema = DATABASE() AND c.table_name = '{table}' ORDER BY c.ordinal_position"""

# The rows of a batch, in its order, and the records of the same keys, by the primary key.
_BATCH: Final = "JSON_TABLE({json}, '$[*]' COLUMNS (number FOR ORDINALITY, {columns})) AS j"
_BY_KEY: Final = """\
{table} AS r FORCE INDEX (PRIMARY)
    ON r.`group` = CAST(j.`group` AS BINARY) AND r.`key` = CAST(j.`key` AS BINARY)"""

# What is due of one group, by the index on (group, due_at).
_DUE_OF_GROUP: Final = """\
(SELECT r.`group`, r.`key`, {lease} AS lease FROM {table} AS r FORCE INDEX (due)
WHERE r.`group` = {group} AND r.due_at <= {before}
ORDER BY r.due_at LIMIT {limit} FOR UPDATE SKIP LOCKED)"""

# What is due of the keys, by the primary key.
_DUE_OF_KEYS: Final = """\
(SELECT r.`group`, r.`key`, j.lease FROM {batch}
STRAIGHT_JOIN {by_key} AND r.due_at <= {now}
LIMIT {limit} FOR UPDATE {of_rows} SKIP LOCKED)"""

# Takes what is due.
_CLAIM: Final = """\
UPDATE {due} AS q STRAIGHT_JOIN {table} AS t FORCE INDEX (PRIMARY)
    ON t.`group` = q.`group` AND t.`key` = q.`key`
SET t.state = '{running}', t.token = {token}, t.due_at = {now} + q.lease,
    t.starts = LEAST(t.starts, {starts_max}) + 1,
    t.version = GREATEST(LEAST(t.version, {version_max}) + 1, {now})"""

# What a token holds, of groups by the index on (group, due_at), of keys by the primary key.
_HELD_OF_GROUPS: Final = """\
SELECT j.number, {columns} FROM {batch}
STRAIGHT_JOIN {table} AS r FORCE INDEX (due)
    ON r.`group` = CAST(j.`group` AS BINARY) AND r.due_at = j.lease_end
WHERE CAST(r.token AS BINARY) = {token}"""
_HELD_OF_KEYS: Final = """\
SELECT j.number, {columns} FROM {batch}
STRAIGHT_JOIN {by_key} AND r.due_at = j.lease_end
WHERE CAST(r.token AS BINARY) = {token}"""

# The soonest of one group, by the index on (group, due_at). A range for each: with a join, MySQL
# would walk all records without an instant first.
_NEXT_DUE: Final = """\
(SELECT r.due_at FROM {table} AS r FORCE INDEX (due)
WHERE r.`group` = {group} AND r.due_at IS NOT NULL ORDER BY r.due_at LIMIT 1)"""
_NEXT_DUE_OF_KEYS: Final = """\
SELECT j.number, r.due_at FROM {batch} STRAIGHT_JOIN {by_key}"""

# The rows of a batch that are as expected and that nobody holds, by the primary key.
_EXPECTED: Final = """\
(SELECT j.*, COUNT(*) OVER () AS found FROM {batch}
STRAIGHT_JOIN {by_key} AND r.version = j.expect
    AND (j.expected_token IS NULL
        OR CAST(r.token AS BINARY) = CAST(j.expected_token AS BINARY))
FOR UPDATE {of_rows} SKIP LOCKED) AS q
STRAIGHT_JOIN {table} AS t FORCE INDEX (PRIMARY) ON t.`group` = CAST(q.`group` AS BINARY)
    AND t.`key` = CAST(q.`key` AS BINARY) AND q.found = {size}"""

# Creates what is absent, in the order of keys. What is there is not touched: an insertion would
# wait for whoever is changing it.
_INSERT: Final = """\
INSERT INTO {table}
SELECT CAST(q.`group` AS BINARY), CAST(q.`key` AS BINARY), q.due_at, q.version, q.token, q.state,
    q.starts, q.plan, q.args, q.progress
FROM (SELECT j.*, COUNT(*) OVER () AS found FROM {batch}
    LEFT JOIN {by_key} WHERE r.`key` IS NULL) AS q
WHERE q.found = {size} ORDER BY q.number"""

# Many records, by the primary key; which of them can be locked now; and which are there, or are
# being created in a transaction that has not ended.
_GET: Final = "SELECT j.number, {columns} FROM {batch} STRAIGHT_JOIN {by_key}"
_LOCKABLE: Final = """\
SELECT j.number FROM {batch} STRAIGHT_JOIN {by_key}
FOR UPDATE {of_rows} SKIP LOCKED"""
_DIRTILY: Final = "SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED"
_THERE: Final = "SELECT j.number FROM {batch} STRAIGHT_JOIN {by_key}"

# The last of the rows that a filtered page may look at, and a page; by the primary key.
_LAST_EXAMINED: Final = """\
SELECT CONVERT(r.`key` USING utf8mb4) FROM {table} AS r FORCE INDEX (PRIMARY)
WHERE {keys} ORDER BY r.`key` LIMIT 1 OFFSET {examined}"""
_PAGE: Final = """\
SELECT {columns} FROM {table} AS r FORCE INDEX (PRIMARY)
WHERE {wanted} ORDER BY r.`key` LIMIT {limit}"""

_TEXT: Final = "text"
_KEY_COLUMNS: Final[Mapping[str, str]] = {"group": _TEXT, "key": _TEXT}
_EXPECTED_COLUMNS: Final = {**_KEY_COLUMNS, "expect": "BIGINT", "expected_token": _TEXT}

_RUNNING: Final = State.RUNNING.value
_RecordOf = Callable[[tuple[Any, ...]], Record]
_to_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, eq=False)
class _Kind:
    """Changes that one statement makes.

    Attributes:
        statement: It.
        columns: Of its batch: type, or that it is a text.
    """

    statement: str
    columns: Mapping[str, str]


_DELETION: Final = _Kind("DELETE t FROM {expected}", _EXPECTED_COLUMNS)
_PATCHING: Final = _Kind(
    "UPDATE {expected} SET t.version = q.version, t.due_at = q.due_at, t.state = q.state, "
    "t.starts = q.starts, t.progress = COALESCE(q.progress, t.progress)",
    {
        **_EXPECTED_COLUMNS,
        "version": "BIGINT",
        "due_at": "BIGINT",
        "state": _TEXT,
        "starts": "INT",
        "progress": _TEXT,
    },
)
_ALL_COLUMNS: Final = {
    **_EXPECTED_COLUMNS,
    "version": "BIGINT",
    "due_at": "BIGINT",
    "state": _TEXT,
    "token": _TEXT,
    "starts": "INT",
    "plan": _TEXT,
    "args": _TEXT,
    "progress": _TEXT,
}
_REPLACEMENT: Final = _Kind(
    "UPDATE {expected} SET t.version = q.version, t.due_at = q.due_at, t.state = q.state, "
    "t.token = q.token, t.starts = q.starts, t.plan = q.plan, t.args = q.args, "
    "t.progress = q.progress",
    _ALL_COLUMNS,
)
_CREATION: Final = _Kind(_INSERT, _ALL_COLUMNS)
_KINDS: Final[Mapping[type, _Kind]] = {Delete: _DELETION, Patch: _PATCHING, Put: _REPLACEMENT}


def schema_sql(table_name: str) -> str:
    """The statement that makes the table and its index."""
    return SCHEMA.format(table=table_name) + ";\n"


class MysqlTable:
    """The statements on one table.

    Args:
        name: A lower-case ASCII identifier.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        # MySQL has to be told whose rows are locked, and MariaDB cannot be told.
        self._names: dict[str, Any] = {
            "table": name,
            "columns": _COLUMNS,
            "by_key": _BY_KEY.format(table=name),
            "of_rows": "OF r",
            "running": _RUNNING,
            "version_max": _VERSION_MAX,
            "starts_max": _STARTS_MAX,
        }
        self._record: _RecordOf = record_from_row
        self._held = HeldRecords()

    def use_mariadb(self) -> None:
        """The server turned out to be MariaDB."""
        self._names["of_rows"] = ""

    async def _run(self, connection: Connection, *statements: str) -> Results:
        """Runs statements, again where others' transactions made the first fail.

        It then did nothing, and of the statements of a trip only the first changes anything.
        """
        delay = _DELAY_INITIAL_S
        for tries_left in reversed(range(TRIES_MAX)):
            try:
                return await query(connection, *statements)
            except errors.MySQLError as error:
                if code_of(error) != DEADLOCK or not tries_left:
                    raise
            except UnicodeDecodeError:
                self._names["columns"] = _BYTES
                self._record = _decoded
                raise
            await realtime.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, _DELAY_MAX_S)
        raise AssertionError("never reached: the last try returns or raises")

    async def layout(self, connection: Connection) -> tuple[list[str], str]:
        """The names of the columns, none where there is no such table; and its engine."""
        [rows] = await query(connection, _LAYOUT.format(table=self.name))
        return [row[0] for row in rows], rows[0][1] if rows else ""

    async def make(self, connection: Connection) -> None:
        """Makes the table and its index, if nobody else was quicker."""
        await query(connection, SCHEMA.format(table=self.name))

    async def check_indexes(self, connection: Connection) -> None:
        """Fails where the indexes are not there that the statements name."""
        await query(connection, f"SELECT 1 FROM {self.name} FORCE INDEX (PRIMARY, due) LIMIT 0")

    async def claim(
        self,
        connection: Connection,
        sources: Sequence[Source],
        limit: int,
        now: int,
        token: str,
        repeated: bool,
    ) -> Claimed:
        """See :meth:`pyncette.store.Store.claim`.

        One trip: what is due is taken, what the token now holds is read, and what is left.
        """
        if not sources:
            return Claimed([], [])
        asked = _Asked(connection, self._names, sources, now, token)
        held: list[Record] = []
        room = [source.share if isinstance(source, Group) else 1 for source in sources]
        if repeated and limit > 0:
            held_before = await self._run(connection, *asked.held())
            for at, record in asked.read_held(held_before, self._record):
                if room[at] > 0 and len(held) < limit:
                    room[at] -= 1
                    held.append(record)
            limit -= len(held)
        take = asked.take(room, limit)
        if not take:
            results = await self._run(connection, *asked.next_due())
            return Claimed(held, asked.read_next_due(results))
        taken, *results = await self._run(connection, *take, *asked.held(), *asked.next_due())
        records = asked.read_held(results, self._record)
        next_due = asked.read_next_due(results)
        # The call whose answer was lost may have been carried out in between: what it took is held,
        # too, and left to its lease where there is no room for it.
        known = {record[:2] for record in held}
        for at, record in records:
            if taken > 0 and room[at] > 0 and record[:2] not in known:
                taken -= 1
                room[at] -= 1
                held.append(record)
        return Claimed(held, next_due)

    async def write(self, connection: Connection, batch: Sequence[Write], now: int) -> list[Result]:
        """See :meth:`pyncette.store.Store.write`.

        What was not written is read, together with what can be locked. Where that does not show
        why, somebody holds the record, and it is tried again for a while, see
        :class:`~pyncette.sql.HeldRecords`.

        Raises:
            StoreUnavailableError: An unconditional write, or a creation, met a record that
                somebody held for long.
        """
        results: list[Result | None] = [None] * len(batch)
        # The version that must be there. Where any will do, the one that a look has found.
        expected = [write.expect for write in batch]
        ready = [at for at, version in enumerate(expected) if version != ANY]
        pending = list(range(len(batch)))
        started = realtime.monotonic()
        delay = 0.0
        while True:
            await self._try(connection, batch, ready, expected, now, results)
            pending = [at for at in pending if results[at] is None]
            if not pending:
                return results  # type: ignore[return-value]
            await realtime.sleep(delay * random.uniform(0.5, 1.0))
            waited = realtime.monotonic() - started
            looks = await self._look(connection, [batch[at][:2] for at in pending])
            ready = []
            for at, (current, free) in zip(pending, looks, strict=True):
                results[at] = self._held.answer(batch[at], current, 0.0 if free else waited)
                if results[at] is None and free:
                    ready.append(at)
                    if batch[at].expect == ANY:
                        expected[at] = ABSENT if current is None else current.version
            pending = [at for at in pending if results[at] is None]
            if pending and waited > HELD_UNANSWERED_S:
                await self._try(connection, batch, ready, expected, now, results)
                for at in pending:
                    if results[at] is None:
                        group, key, *_ = batch[at]
                        raise StoreUnavailableError(
                            f"The record {key!r} of '{group}' is locked by somebody's open "
                            "transaction"
                        )
            delay = min(2 * delay or _DELAY_INITIAL_S, _DELAY_MAX_S)

    async def _try(
        self,
        connection: Connection,
        batch: Sequence[Write],
        chosen: Iterable[int],
        expected: Sequence[int],
        now: int,
        results: list[Result | None],
    ) -> None:
        """Makes what can be made now of these writes; their results tell."""
        kinds: dict[_Kind, list[int]] = {}
        for at in sorted(chosen, key=lambda at: batch[at][:2]):
            change = batch[at].change
            if expected[at]:
                kinds.setdefault(_KINDS[type(change)], []).append(at)
            elif isinstance(change, Put) and batch[at].token is None:
                kinds.setdefault(_CREATION, []).append(at)
        for kind, places in kinds.items():
            rows = [_row(batch[at], expected[at], now) for at in places]
            done = 0
            for part in _parts(rows):
                if await self._change(connection, kind, part):
                    for at, row in zip(places[done:], part, strict=False):
                        results[at] = Applied(ABSENT if kind is _DELETION else row[4])
                done += len(part)

    async def _change(
        self, connection: Connection, kind: _Kind, rows: Sequence[Sequence[Any]]
    ) -> bool:
        """Makes these changes, or none of them; whether it did."""
        names = {
            **self._names,
            "batch": _batch(connection, rows, kind.columns),
            "size": len(rows),
        }
        expected = "" if kind is _CREATION else _EXPECTED.format(**names)
        try:
            [changed] = await self._run(
                connection, kind.statement.format(**names, expected=expected)
            )
        except errors.MySQLError as error:
            if kind is not _CREATION or code_of(error) not in (DUPLICATE, LOCK_WAIT_TIMEOUT):
                raise
            return False
        return bool(changed == len(rows))

    async def _look(
        self, connection: Connection, identities: Sequence[Identity]
    ) -> list[tuple[Record | None, bool]]:
        """The records, and whether somebody holds them: changes them, or is creating them."""
        looks: list[tuple[Record | None, bool]] = []
        for part in _parts(identities):
            names = {**self._names, "batch": _batch(connection, part, _KEY_COLUMNS)}
            lockable, _, there, rows = await self._run(
                connection,
                _LOCKABLE.format(**names),
                _DIRTILY,
                _THERE.format(**names),
                _GET.format(**names),
            )
            records = {row[0]: self._record(row[1:]) for row in rows}
            held = {*records, *(row[0] for row in there)} - {row[0] for row in lockable}
            looks += [
                (records.get(number), number not in held) for number in range(1, len(part) + 1)
            ]
        return looks

    async def get(
        self, connection: Connection, identities: Sequence[Identity]
    ) -> list[Record | None]:
        """See :meth:`pyncette.store.Store.get`."""
        found: list[Record | None] = []
        for part in _parts(identities):
            batch = _batch(connection, part, _KEY_COLUMNS)
            [rows] = await self._run(connection, _GET.format(**self._names, batch=batch))
            records = {row[0]: self._record(row[1:]) for row in rows}
            found += [records.get(number) for number in range(1, len(part) + 1)]
        return found

    async def scan(
        self, connection: Connection, group: str, where: Filter, cursor: str | None, limit: int
    ) -> Page:
        """See :meth:`pyncette.store.Store.scan`. The cursor is the last key that was looked at."""
        states, prefix, due_before = where
        escape = connection.escape
        keys = [f"r.`group` = {escape(group)}"]
        if cursor is not None:
            keys.append(f"r.`key` > {escape(cursor)}")
        end = None
        if prefix:
            end = prefix_end(prefix)
            keys.append(f"r.`key` >= {escape(prefix)}")
        if end is not None:
            keys.append(f"r.`key` < {escape(end)}")
        wanted = list(keys)
        last_examined: str | None = None
        if states is not None or due_before is not None:
            [rows] = await self._run(
                connection,
                _LAST_EXAMINED.format(
                    **self._names,
                    keys=" AND ".join(keys),
                    examined=max(EXAMINED_MAX, limit) - 1,
                ),
            )
            if rows:
                [[last_examined]] = rows
                wanted.append(f"r.`key` <= {escape(last_examined)}")
        if states is not None:
            listed = ", ".join(escape(state.value) for state in states)
            wanted.append(f"r.state IN ({listed})" if states else "FALSE")
        if due_before is not None:
            wanted.append(f"r.due_at < {due_before}")
        [rows] = await self._run(
            connection,
            _PAGE.format(**self._names, wanted=" AND ".join(wanted), limit=limit + 1),
        )
        records = [self._record(row) for row in rows[:limit]]
        return Page(records, records[-1].key if len(rows) > limit else last_examined)


class _Asked:
    """The statements of a claim, and what their answers say.

    Args:
        connection: Only for its rules of quoting.
        names: What is in every statement.
        sources: At least one.
        now, token: See :meth:`pyncette.store.Store.claim`.
    """

    def __init__(
        self,
        connection: Connection,
        names: Mapping[str, Any],
        sources: Sequence[Source],
        now: int,
        token: str,
    ) -> None:
        self._connection = connection
        self._now = now
        self._names = {**names, "token": connection.escape(token), "now": now}
        self._size = len(sources)
        self._keys_first = isinstance(sources[0], Key)
        self._groups: list[tuple[int, Group]] = []
        self._keys: list[tuple[int, Key]] = []
        for at, source in enumerate(sources):
            if isinstance(source, Key):
                self._keys.append((at, source))
            else:
                self._groups.append((at, source))

    def take(self, room: Sequence[int], limit: int) -> list[str]:
        """The statement that takes what is due; none where there is room for nothing."""
        if limit <= 0:
            return []
        escape = self._connection.escape
        parts = [
            _DUE_OF_GROUP.format(
                **self._names,
                group=escape(source.group),
                before=source.before,
                lease=source.lease,
                limit=min(room[at], limit),
            )
            for at, source in self._groups
            if room[at] > 0
        ]
        keys = [(key.group, key.key, key.lease) for at, key in self._keys if room[at] > 0]
        if keys:
            batch = _batch(self._connection, keys, {**_KEY_COLUMNS, "lease": "BIGINT"})
            due = _DUE_OF_KEYS.format(**self._names, batch=batch, limit=limit)
            parts.insert(0 if self._keys_first else len(parts), due)
        if not parts:
            return []
        due = parts[0]
        if len(parts) > 1:
            due = f"(SELECT * FROM ({' UNION ALL '.join(parts)}) AS p LIMIT {limit})"
        return [_CLAIM.format(**self._names, due=due)]

    def held(self) -> list[str]:
        """The statements that read what the token holds."""
        statements = []
        if self._groups:
            ends = [(group.group, self._now + group.lease) for _, group in self._groups]
            batch = _batch(self._connection, ends, {"group": _TEXT, "lease_end": "BIGINT"})
            statements.append(_HELD_OF_GROUPS.format(**self._names, batch=batch))
        if self._keys:
            rows = [(key.group, key.key, self._now + key.lease) for _, key in self._keys]
            batch = _batch(self._connection, rows, {**_KEY_COLUMNS, "lease_end": "BIGINT"})
            statements.append(_HELD_OF_KEYS.format(**self._names, batch=batch))
        return statements

    def next_due(self) -> list[str]:
        """The statements that tell the soonest of each source."""
        escape = self._connection.escape
        soonest = [
            _NEXT_DUE.format(**self._names, group=escape(group.group)) for _, group in self._groups
        ]
        statements = [
            "SELECT " + ", ".join(soonest[first : first + _SUBQUERIES_MAX])
            for first in range(0, len(soonest), _SUBQUERIES_MAX)
        ]
        if self._keys:
            batch = _batch(self._connection, [key[:2] for _, key in self._keys], _KEY_COLUMNS)
            statements.append(_NEXT_DUE_OF_KEYS.format(**self._names, batch=batch))
        return statements

    def read_held(self, results: Results, record: _RecordOf) -> list[tuple[int, Record]]:
        """Takes the answers of :meth:`held` off the results: records, and of which source."""
        records = []
        for sources in (self._groups, self._keys):
            if sources:
                records += [(sources[row[0] - 1][0], record(row[1:])) for row in results.pop(0)]
        return records

    def read_next_due(self, results: Results) -> list[int | None]:
        """Takes the answers of :meth:`next_due` off the results."""
        soonest: list[int | None] = [None] * self._size
        for first in range(0, len(self._groups), _SUBQUERIES_MAX):
            [row] = results.pop(0)
            for (at, _), due_at in zip(self._groups[first:], row, strict=False):
                soonest[at] = due_at
        if self._keys:
            for number, due_at in results.pop(0):
                soonest[self._keys[number - 1][0]] = due_at
        return soonest


def _row(write: Write, expect: int, now: int) -> tuple[Any, ...]:
    """A write as a row of its batch."""
    group, key, change, _, token = write
    head = (group, key, expect, token)
    return head if isinstance(change, Delete) else (*head, next_version(expect, now), *change)


def _parts(rows: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """The rows, in their order, in parts that one statement takes."""
    first, size = 0, 0
    for at, row in enumerate(rows):
        length = sum(len(value) for value in row if isinstance(value, str))
        if at > first and (at - first >= ROWS_MAX or size + length > CHARACTERS_MAX):
            yield rows[first:at]
            first, size = at, 0
        size += length
    if first < len(rows):
        yield rows[first:]


def _batch(
    connection: Connection, rows: Sequence[Sequence[Any]], columns: Mapping[str, str]
) -> str:
    """Rows as a table in a statement. Texts that are short need no more room than they take."""
    declared = []
    for at, (name, kind) in enumerate(columns.items()):
        if kind is _TEXT:
            longest = max(len(row[at] or "") for row in rows)
            size = f"VARCHAR({longest or 1})" if longest <= _SHORT_MAX else "LONGTEXT"
            declared.append(f"`{name}` {size} CHARACTER SET utf8mb4 PATH '$[{at}]'")
        else:
            declared.append(f"`{name}` {kind} PATH '$[{at}]'")
    return _BATCH.format(json=connection.escape(_to_json(rows)), columns=", ".join(declared))


def _decoded(row: tuple[Any, ...]) -> Record:
    """A row of bytes as a record; what is no UTF-8 in it is replaced, and so found unreadable."""
    return record_from_row(
        tuple(
            value.decode(errors="replace") if isinstance(value, bytes) else value for value in row
        )
    )
