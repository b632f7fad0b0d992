"""The store in a SQLite database: in memory, or a file that several processes share.

This module knows the table and the statements. One thread owns the connection
(:mod:`pyncette.sqlite_thread`): it puts all calls that are queued into one transaction, and finds
out what others write to the file.

The table keeps its rowid: rows lie in the order in which they were made, which is often about the
order in which they come due, so that a claim touches few pages whatever the keys look like
(docs/stores/sqlite.md has the figures of both layouts).
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from pyncette.errors import StoreMisconfiguredError
from pyncette.options import one_of
from pyncette.record import (
    ABSENT,
    ANY,
    Delete,
    Patch,
    Progress,
    Put,
    Record,
    State,
    dump_progress,
)
from pyncette.sql import (
    COLUMNS,
    check_table_name,
    describe_foreign_table,
    prefix_end,
    record_from_row,
)
from pyncette.sqlite_thread import ConnectionThread
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
    Write,
    next_version,
)

MEMORY: Final = ":memory:"
OLDEST_SQLITE: Final = (3, 35, 0)
EXAMINED_MAX: Final = 5_000
"""So many rows a page of a filtered scan looks at, so that no call keeps the others waiting."""

JOURNAL_BYTES_MAX: Final = 64 * 1024 * 1024
"""What a write-ahead log is cut down to when it starts again from its beginning."""

_SYNCHRONOUS: Final = ("NORMAL", "FULL")

# Somebody may edit a row by hand. What the checks let through can be claimed and parked; what
# they refuse (an instant as text, a version that cannot grow) would stand in everybody's way.
_TABLE: Final = """\
CREATE TABLE {table} (
    "group"  TEXT    NOT NULL CHECK (typeof("group") = 'text'),
    "key"    TEXT    NOT NULL CHECK (typeof("key") = 'text'),
    due_at   INTEGER CHECK (due_at IS NULL OR typeof(due_at) = 'integer'),
    version  INTEGER NOT NULL CHECK (typeof(version) = 'integer' AND version < 1 << 62),
    token    TEXT    CHECK (token IS NULL OR typeof(token) = 'text'),
    state    TEXT    NOT NULL CHECK (typeof(state) = 'text'),
    starts   INTEGER NOT NULL CHECK (typeof(starts) = 'integer' AND starts < 1 << 31),
    plan     TEXT    NOT NULL CHECK (typeof(plan) = 'text'),
    args     TEXT    NOT NULL CHECK (typeof(args) = 'text'),
    progress TEXT    NOT NULL CHECK (typeof(progress) = 'text'),
    PRIMARY KEY ("group", "key")
)
"""
_INDEX: Final = """\
CREATE INDEX IF NOT EXISTS {table}_due ON {table} ("group", due_at) WHERE due_at IS NOT NULL
"""


@dataclass(frozen=True)
class SqliteOptions:
    """The options of the store.

    Attributes:
        database: Path of the file, or ``:memory:``.
        table_name: The table in it; made where it is missing.
        synchronous: ``FULL``: what was acknowledged survives a crash of the machine. ``NORMAL``:
            it survives a crash of the process, and the last moments before a crash of the machine
            may be lost, though the file stays sound.

    Raises:
        ValueError: One of them makes no sense.
    """

    database: str = MEMORY
    table_name: str = "pyncette_tasks"
    synchronous: str = "NORMAL"

    def __post_init__(self) -> None:
        if not isinstance(self.database, str) or not self.database or "\0" in self.database:
            raise ValueError(
                f"sqlite_database must be the path of a file or {MEMORY!r}, not {self.database!r}"
            )
        check_table_name("sqlite_table_name", self.table_name)
        one_of("sqlite_synchronous", self.synchronous, _SYNCHRONOUS)


@asynccontextmanager
async def sqlite_repository(
    *,
    sqlite_database: str | os.PathLike[str] = MEMORY,
    sqlite_table_name: str = "pyncette_tasks",
    sqlite_synchronous: str = "NORMAL",
    **_ignored: Any,
) -> AsyncIterator[SqliteStore]:
    """Opens a store in a SQLite database.

    Args:
        sqlite_database: Path of the file, made where it is missing, or ``:memory:``: a database of
            its own for each context, gone when the context closes.
        sqlite_table_name: The table in it, made where it is missing.
        sqlite_synchronous: ``NORMAL`` or ``FULL``, see :class:`SqliteOptions`.

    Raises:
        ValueError: An option makes no sense.
        StoreMisconfiguredError: The file cannot be used, its table is not one of ours, or SQLite
            is older than 3.35.
        StoreUnavailableError: Somebody else keeps the file locked.
    """
    if isinstance(sqlite_database, os.PathLike):
        sqlite_database = os.fspath(sqlite_database)
    options = SqliteOptions(sqlite_database, sqlite_table_name, sqlite_synchronous)
    store = SqliteStore(options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def schema_sql(table_name: str = "pyncette_tasks") -> str:
    """The statements that make the table and its index.

    Raises:
        ValueError: The name is not a lower-case ASCII identifier.
    """
    return ";\n".join(_schema(check_table_name("table_name", table_name))) + ";\n"


def _schema(table: str) -> tuple[str, str]:
    return (
        _TABLE.format(table=table).rstrip(),
        _INDEX.format(table=table).rstrip(),
    )


class _Statements:
    """The statements on one table. Each is prepared once: the driver keeps them by their text."""

    def __init__(self, table: str) -> None:
        # CAST costs nothing on what is of that type, and makes of anything else what can be
        # handed on, so that whoever reads the record finds it unreadable and parks it.
        columns = ", ".join(
            f'CAST(t."{column}" AS INTEGER)'
            if column in ("due_at", "version", "starts")
            else f'CAST(t."{column}" AS TEXT)'
            for column in COLUMNS
        )
        soonest = (
            f'SELECT rowid FROM {table} WHERE "group" = ?1 AND due_at <= ?2 '
            "ORDER BY due_at, rowid LIMIT ?3"
        )
        keyed = f'FROM json_each(?2) AS j CROSS JOIN {table} AS t ON t."group" = ?1'

        # Of one group, by the index on what is due.
        self.next_due = (
            f'SELECT due_at FROM {table} WHERE "group" = ? AND due_at IS NOT NULL '
            "ORDER BY due_at LIMIT 1"
        )
        self.due = (
            'SELECT CAST("key" AS TEXT), version, starts, CAST(plan AS TEXT), '
            f"CAST(args AS TEXT), CAST(progress AS TEXT) FROM {table} "
            'WHERE "group" = ?1 AND due_at <= ?2 ORDER BY due_at, rowid LIMIT ?3'
        )
        self.take_due = (
            f"UPDATE {table} SET due_at = ?4, version = max(version + 1, ?5), token = ?6, "
            f"state = '{State.RUNNING}', starts = starts + 1 "
            f"WHERE rowid IN ({soonest})"
        )
        self.held = (
            f"SELECT {columns} FROM {table} AS t "
            'WHERE t."group" = ?1 AND t.due_at = ?2 AND t.token = ?3 ORDER BY t."key" LIMIT ?4'
        )
        # Of one group and many keys, by the primary key.
        self.next_due_of_keys = (
            f'SELECT t."key", t.due_at {keyed} AND t."key" = j.value WHERE t.due_at IS NOT NULL'
        )
        self.of_keys = f'SELECT {columns} {keyed} AND t."key" = j.value'
        # One record, by the primary key.
        self.one = f'SELECT {columns} FROM {table} AS t WHERE t."group" = ? AND t."key" = ?'
        self.take_key = (
            f"UPDATE {table} SET due_at = ?1, version = ?2, token = ?3, "
            f"state = '{State.RUNNING}', starts = ?4 "
            'WHERE "group" = ?5 AND "key" = ?6'
        )
        self.insert = (
            f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
        )
        unchanged = (
            'WHERE "group" = ?1 AND "key" = ?2 AND version = ?3 AND (?4 IS NULL OR token = ?4)'
        )
        self.put = (
            f"UPDATE {table} SET version = ?5, due_at = ?6, state = ?7, token = ?8, starts = ?9, "
            f"plan = ?10, args = ?11, progress = ?12 {unchanged}"
        )
        self.patch = (
            f"UPDATE {table} SET version = ?5, due_at = ?6, state = ?7, starts = ?8, "
            f"progress = coalesce(?9, progress) {unchanged}"
        )
        self.delete = f"DELETE FROM {table} {unchanged}"
        # A range of keys, by the primary key.
        keys = '"group" = ?1 AND "key" >= ?2 AND "key" < ?3'
        self.last_examined = (
            f'SELECT "key" FROM {table} WHERE {keys} ORDER BY "key" LIMIT 1 OFFSET ?4'
        )
        self.page = (
            f"SELECT {columns} FROM {table} AS t WHERE {keys} AND (?4 IS NULL OR due_at < ?4) "
            "AND (?5 IS NULL OR state IN (SELECT value FROM json_each(?5))) "
            'ORDER BY "key" LIMIT ?6'
        )
        # After a claim that met a key that is no text.
        self.park = (
            f"UPDATE {table} SET due_at = NULL, state = '{State.PARKED}', token = NULL, "
            'progress = ?1 WHERE "group" = ?2 AND due_at = ?3 AND token = ?4 '
            'AND "key" NOT IN (SELECT value FROM json_each(?5))'
        )


class SqliteStore:
    """See :class:`pyncette.store.Store`. Made by :func:`sqlite_repository`."""

    def __init__(self, options: SqliteOptions) -> None:
        self._options = options
        self._place = (
            "SQLite in memory"
            if options.database == MEMORY
            else f"SQLite file '{options.database}'"
        )
        self._sql = _Statements(options.table_name)
        self._watches: list[_Watch] = []
        self._thread = ConnectionThread(
            self._place, self._connect, options.database != MEMORY, self._changed
        )

    async def open(self) -> None:
        """Opens the database and makes the table where it is missing."""
        await self._thread.open()

    async def close(self) -> None:
        """Finishes what was asked for and closes the database."""
        self._watches.clear()
        await self._thread.close()

    async def claim(
        self, sources: Sequence[Source], limit: int, now: int, token: str, repeated: bool = False
    ) -> Claimed:
        seen: list[int | None] = []

        def read(connection: sqlite3.Connection) -> Claimed | None:
            seen[:] = self._next_due(connection, sources)
            if limit > 0 and (repeated or _any_due(sources, seen, now)):
                return None
            return Claimed([], seen)

        def write(connection: sqlite3.Connection) -> Claimed:
            before = seen or self._next_due(connection, sources)
            return self._claim(connection, sources, before, limit, now, token, repeated)

        answer: Claimed = await self._thread.call(read, write, urgent=True)
        return answer

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        urgent = any(write.token is not None for write in batch)
        results: list[Result] = await self._thread.call(
            None, lambda connection: self._write(connection, batch, now), urgent
        )
        if wake:
            for watch in list(self._watches):
                watch.wake(wake)
        return results

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        records: list[Record | None] = await self._thread.call(
            lambda connection: self._get(connection, identities), None, urgent=False
        )
        return records

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        page: Page = await self._thread.call(
            lambda connection: self._scan(connection, group, where, cursor, limit),
            None,
            urgent=False,
        )
        return page

    async def now(self) -> int | None:
        return None

    async def watch(self, groups: Collection[str], on_wake: WakeCallback) -> _Watch:
        watch = _Watch(groups, on_wake, self._forget)
        self._watches.append(watch)
        self._thread.watch(True)
        return watch

    def _forget(self, watch: _Watch) -> None:
        if watch in self._watches:
            self._watches.remove(watch)
            self._thread.watch(bool(self._watches))

    def _changed(self) -> None:
        for watch in list(self._watches):
            watch.wake(None)

    # What follows runs in the thread.

    def _connect(self) -> sqlite3.Connection:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise StoreMisconfiguredError(
                f"SQLite {sqlite3.sqlite_version} is too old: at least "
                f"{'.'.join(map(str, OLDEST_SQLITE))} is needed"
            )
        options = self._options
        connection = None
        try:
            connection = sqlite3.connect(options.database, timeout=0, isolation_level=None)
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if options.database != MEMORY and mode != "wal":
                raise StoreMisconfiguredError(
                    f"{self._place} cannot have a write-ahead log: its journal mode stays '{mode}'"
                )
            encoding = connection.execute("PRAGMA encoding").fetchone()[0]
            if encoding != "UTF-8":
                raise StoreMisconfiguredError(
                    f"{self._place} holds its texts in {encoding}; only UTF-8 keeps keys in order"
                )
            connection.execute(f"PRAGMA synchronous = {options.synchronous}")
            connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_BYTES_MAX}")
            self._make_table(connection)
            return connection
        except BaseException as error:
            if connection is not None:
                connection.close()
            if not isinstance(error, sqlite3.Error):
                raise
            reason = _why_unusable(options.database)
            if reason is None:
                raise
            raise StoreMisconfiguredError(f"{self._place}: {reason} ({error})") from error

    def _make_table(self, connection: sqlite3.Connection) -> None:
        table = self._options.table_name
        connection.execute("SELECT count(*) FROM json_each('[]')")
        if not self._check_table(connection):
            connection.execute("BEGIN IMMEDIATE")
            if not self._check_table(connection):
                for statement in _schema(table):
                    connection.execute(statement)
            connection.execute("COMMIT")

    def _check_table(self, connection: sqlite3.Connection) -> bool:
        """Whether the table is there, with its index; refuses one that is not ours."""
        table = self._options.table_name
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        if not columns:
            return False
        if columns != list(COLUMNS):
            raise StoreMisconfiguredError(
                describe_foreign_table(table, self._place, columns, "sqlite_table_name")
            )
        indexes = [row[1] for row in connection.execute(f"PRAGMA index_list({table})")]
        if f"{table}_due" not in indexes:
            connection.execute(_schema(table)[1])
        return True

    def _next_due(
        self, connection: sqlite3.Connection, sources: Sequence[Source]
    ) -> list[int | None]:
        keys: dict[str, list[str]] = {}
        for source in sources:
            if isinstance(source, Key):
                keys.setdefault(source.group, []).append(source.key)
        of_keys = {
            group: dict(
                connection.execute(
                    self._sql.next_due_of_keys, (group, json.dumps(names))
                ).fetchall()
            )
            for group, names in keys.items()
        }
        next_due: list[int | None] = []
        for source in sources:
            if isinstance(source, Key):
                next_due.append(of_keys[source.group].get(source.key))
            else:
                row = connection.execute(self._sql.next_due, (source.group,)).fetchone()
                next_due.append(None if row is None else row[0])
        return next_due

    def _claim(
        self,
        connection: sqlite3.Connection,
        sources: Sequence[Source],
        before: Sequence[int | None],
        limit: int,
        now: int,
        token: str,
        repeated: bool,
    ) -> Claimed:
        """Claims from the sources, given what was due soonest in each a moment before."""
        claimed: list[Record] = []
        for source, due_at in zip(sources, before, strict=True):
            left = limit - len(claimed)
            if left <= 0:
                break
            if due_at is None:
                continue
            if isinstance(source, Key):
                if due_at <= now or (repeated and due_at == now + source.lease):
                    claimed += self._claim_key(connection, source, now, token, repeated)
            elif due_at <= source.before or repeated:
                left = min(left, source.share)
                if repeated:
                    held = self._held(connection, source, now, token, left)
                    claimed += held
                    left -= len(held)
                if left > 0:
                    claimed += self._claim_group(connection, source, now, token, left)
        # What was not due a moment ago is taken to be so still; a group is asked again.
        again = [
            source
            for source, due_at in zip(sources, before, strict=True)
            if isinstance(source, Group) or (due_at is not None and due_at <= now)
        ]
        told = dict(zip(again, self._next_due(connection, again), strict=True))
        return Claimed(
            claimed,
            [
                told[source] if source in told else due_at
                for source, due_at in zip(sources, before, strict=True)
            ],
        )

    def _held(
        self, connection: sqlite3.Connection, source: Group, now: int, token: str, limit: int
    ) -> list[Record]:
        rows = connection.execute(self._sql.held, (source.group, now + source.lease, token, limit))
        return [record_from_row(row) for row in rows]

    def _claim_group(
        self, connection: sqlite3.Connection, source: Group, now: int, token: str, limit: int
    ) -> list[Record]:
        group, lease, _, before = source
        rows = connection.execute(self._sql.due, (group, before, limit)).fetchall()
        if not rows:
            return []
        lease_end = now + lease
        connection.execute(self._sql.take_due, (group, before, limit, lease_end, now, token))
        running = State.RUNNING.value
        records = [
            record_from_row(
                (
                    group,
                    key,
                    lease_end,
                    version + 1 if version >= now else now,
                    token,
                    running,
                    starts + 1,
                    plan,
                    args,
                    progress,
                )
            )
            for key, version, starts, plan, args, progress in rows
        ]
        if connection.text_factory is not str:
            return self._addressable(connection, group, lease_end, token, records)
        return records

    def _addressable(
        self,
        connection: sqlite3.Connection,
        group: str,
        lease_end: int,
        token: str,
        records: list[Record],
    ) -> list[Record]:
        """Parks what was claimed under a key that is no text: nobody could settle it."""
        good = [record for record in records if self._one(connection, group, record.key)]
        if len(good) != len(records):
            progress = dump_progress(Progress(None, "unreadable", error="the key is not UTF-8"))
            keys = json.dumps([record.key for record in good])
            connection.execute(self._sql.park, (progress, group, lease_end, token, keys))
        return good

    def _claim_key(
        self, connection: sqlite3.Connection, source: Key, now: int, token: str, repeated: bool
    ) -> list[Record]:
        group, key, lease = source
        record = self._one(connection, group, key)
        if record is None or record.due_at is None:
            return []
        lease_end = now + lease
        if record.due_at > now:
            return [record] if record.token == token and record.due_at == lease_end else []
        record = record._replace(
            due_at=lease_end,
            version=next_version(record.version, now),
            token=token,
            state=State.RUNNING.value,
            starts=record.starts + 1,
        )
        connection.execute(
            self._sql.take_key, (lease_end, record.version, token, record.starts, group, key)
        )
        return [record]

    def _one(self, connection: sqlite3.Connection, group: str, key: str) -> Record | None:
        row = connection.execute(self._sql.one, (group, key)).fetchone()
        return None if row is None else record_from_row(row)

    def _write(
        self, connection: sqlite3.Connection, batch: Sequence[Write], now: int
    ) -> list[Result]:
        """Writes of one kind go in one statement; one by one only where one of them is refused."""
        results: list[Result] = [Applied(ABSENT)] * len(batch)
        kinds: dict[str, tuple[list[int], list[tuple[Any, ...]]]] = {}
        singly: list[int] = []
        for at, (group, key, change, expect, token) in enumerate(batch):
            parameters: tuple[Any, ...]
            if expect == ABSENT and token is None and isinstance(change, Put):
                statement = self._sql.insert
                version = next_version(ABSENT, now)
                due_at, state, holder, starts, plan, args, progress = change
                parameters = (
                    group, key, due_at, version, holder, state, starts, plan, args, progress
                )  # fmt: skip
            elif expect in (ANY, ABSENT):
                singly.append(at)
                continue
            elif isinstance(change, Delete):
                statement = self._sql.delete
                version = ABSENT
                parameters = (group, key, expect, token)
            else:
                statement = self._sql.patch if isinstance(change, Patch) else self._sql.put
                version = expect + 1 if expect >= now else now
                if isinstance(change, Patch):
                    parameters = (group, key, expect, token, version, *change)
                else:
                    due_at, state, holder, starts, plan, args, progress = change
                    parameters = (
                        group, key, expect, token, version,
                        due_at, state, holder, starts, plan, args, progress,
                    )  # fmt: skip
            kind = kinds.get(statement)
            if kind is None:
                kind = kinds[statement] = ([], [])
            kind[0].append(at)
            kind[1].append(parameters)
            if version:
                results[at] = Applied(version)
        for statement, (places, rows) in kinds.items():
            if not self._write_all(connection, statement, rows):
                singly += places
        for at in singly:
            results[at] = self._write_one(connection, batch[at], now)
        return results

    def _write_all(
        self, connection: sqlite3.Connection, statement: str, rows: Sequence[tuple[Any, ...]]
    ) -> bool:
        """Whether all were written. If not, none was."""
        if len(rows) == 1:
            return connection.execute(statement, rows[0]).rowcount == 1
        connection.execute("SAVEPOINT batch")
        written = connection.executemany(statement, rows).rowcount
        if written != len(rows):
            connection.execute("ROLLBACK TO batch")
        connection.execute("RELEASE batch")
        return written == len(rows)

    def _write_one(self, connection: sqlite3.Connection, write: Write, now: int) -> Result:
        group, key, change, expect, token = write
        current = self._one(connection, group, key)
        version = ABSENT if current is None else current.version
        if expect not in (version, ANY) or (
            token is not None and (current is None or current.token != token)
        ):
            return Refused(current)
        if current is None:
            if not isinstance(change, Put):
                return Applied(ABSENT)
            expect = ABSENT
        else:
            expect = version
        return self._write(connection, [write._replace(expect=expect, token=None)], now)[0]

    def _get(
        self, connection: sqlite3.Connection, identities: Sequence[Identity]
    ) -> list[Record | None]:
        keys: dict[str, list[str]] = {}
        for group, key in identities:
            keys.setdefault(group, []).append(key)
        found: dict[Identity, Record] = {}
        for group, names in keys.items():
            for row in connection.execute(self._sql.of_keys, (group, json.dumps(names))):
                found[row[0], row[1]] = record_from_row(row)
        return [found.get(identity) for identity in identities]

    def _scan(
        self,
        connection: sqlite3.Connection,
        group: str,
        where: Filter,
        cursor: str | None,
        limit: int,
    ) -> Page:
        states, prefix, due_before = where
        # Keys hold no NUL, so that nothing lies between a key and the same with one appended; and
        # no text is greater than a blob.
        first = prefix if cursor is None else f"{cursor}\0"
        end: str | bytes = (prefix_end(prefix) if prefix else None) or b""
        last_examined = None
        if states is not None or due_before is not None:
            row = connection.execute(
                self._sql.last_examined, (group, first, end, max(EXAMINED_MAX, limit) - 1)
            ).fetchone()
            if row is not None:
                last_examined = row[0]
                end = f"{last_examined}\0"
        wanted = None if states is None else json.dumps(sorted(states))
        rows = connection.execute(
            self._sql.page, (group, first, end, due_before, wanted, limit + 1)
        ).fetchall()
        records = [record_from_row(row) for row in rows[:limit]]
        return Page(records, records[-1].key if len(rows) > limit else last_examined)


class _Watch:
    def __init__(
        self, groups: Collection[str], on_wake: WakeCallback, forget: Callable[[_Watch], None]
    ) -> None:
        self._groups = frozenset(groups)
        self._on_wake = on_wake
        self._forget = forget

    def wake(self, groups: Collection[str] | None) -> None:
        concerned = None if groups is None else self._groups.intersection(groups)
        if concerned is None or concerned:
            self._on_wake(concerned)

    def close(self) -> None:
        self._forget(self)


def _any_due(sources: Iterable[Source], next_due: Iterable[int | None], now: int) -> bool:
    return any(
        due_at is not None and due_at <= (now if isinstance(source, Key) else source.before)
        for source, due_at in zip(sources, next_due, strict=True)
    )


def _why_unusable(database: str) -> str | None:
    """In words, what about the file itself keeps SQLite from using it; None where it is not it."""
    if database == MEMORY:
        return None
    directory = os.path.dirname(database) or os.curdir
    if os.path.isdir(database):
        return "it is a directory"
    if not os.path.isdir(directory):
        return f"the directory '{directory}' does not exist"
    if os.path.exists(database) and not os.access(database, os.R_OK | os.W_OK):
        return "no permission to read and write it"
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"no permission to write to its directory '{directory}', where its log has to be"
    return None
