"""The table of a SQLite database, and what is done to it: statements, rows, records.

Every function works on the connection that it is given, within the transaction that is open on
it. Threads, transactions and files are in ``pyncette.sqlite.thread``.

The driver gives up Python's global lock around every row that it fetches and every set of
parameters that it binds. A thread that shares the interpreter with a busy event loop waits for
the lock each time, so that what is hot moves a hundred rows in one step of one statement: a claim
fetches one text, a settle binds all rows at once.

The table keeps its rowid: rows lie in the order in which they were made, which is often about the
order in which they come due, so that a claim touches few pages whatever the keys look like
(docs/stores/sqlite.md has the figures of both layouts).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pyncette.errors import StoreMisconfiguredError
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
from pyncette.store.record import (
    ABSENT,
    ANY,
    Delete,
    Patch,
    Progress,
    Put,
    Record,
    State,
    dump_progress,
    record_of,
)
from pyncette.store.sql.rows import COLUMNS, describe_foreign_table, prefix_end

EXAMINED_MAX: Final = 5_000
"""So many rows a page of a filtered scan looks at, so that no call keeps the others waiting."""

_STEPS: Final = (100, 25, 5, 1)
"""So many rows are written by one statement, the most first; each size is prepared once."""

_VERSION_MAX: Final = 1 << 61
_UNFINISHED_MAX: Final = 1 << 30
"""Beyond these no claim counts on, so that no edit brings one to where the table refuses it."""

# Somebody may edit a row by hand. What the checks let through can be claimed and parked; what
# they refuse (an instant as text, a version that cannot grow) would stand in everybody's way.
_TABLE: Final = """\
CREATE TABLE IF NOT EXISTS {table} (
    "group"  TEXT    NOT NULL CHECK (typeof("group") = 'text'),
    "key"    TEXT    NOT NULL CHECK (typeof("key") = 'text'),
    due_at   INTEGER CHECK (due_at IS NULL OR typeof(due_at) = 'integer'),
    version  INTEGER NOT NULL CHECK (typeof(version) = 'integer' AND version < 1 << 62),
    token    TEXT    CHECK (token IS NULL OR typeof(token) = 'text'),
    state    TEXT    NOT NULL CHECK (typeof(state) = 'text'),
    unfinished_attempts INTEGER NOT NULL
        CHECK (typeof(unfinished_attempts) = 'integer' AND unfinished_attempts < 1 << 31),
    schedule TEXT    NOT NULL CHECK (typeof(schedule) = 'text'),
    args     TEXT    NOT NULL CHECK (typeof(args) = 'text'),
    progress TEXT    NOT NULL CHECK (typeof(progress) = 'text'),
    PRIMARY KEY ("group", "key")
)"""
_INDEX: Final = """\
CREATE INDEX IF NOT EXISTS {table}_due ON {table} ("group", due_at) WHERE due_at IS NOT NULL"""


class SqliteTable:
    """The statements on one table. Each is prepared once: the driver keeps them by their text.

    Parameters have no numbers: Python 3.12.0 to 3.12.3 warn of those in a sequence.

    Args:
        name: A lower-case ASCII identifier.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.schema = (_TABLE.format(table=name), _INDEX.format(table=name))

        # CAST costs nothing on what is of that type, and makes of anything else what can be
        # handed on, so that whoever reads the record finds it unreadable and parks it.
        integers = ("due_at", "version", "unfinished_attempts")
        columns = ", ".join(
            f'CAST(t."{column}" AS {"INTEGER" if column in integers else "TEXT"})'
            for column in COLUMNS
        )
        version = f"max(min(CAST(version AS INTEGER), {_VERSION_MAX}) + 1, ?)"
        unfinished_attempts = f"min(CAST(unfinished_attempts AS INTEGER), {_UNFINISHED_MAX}) + 1"
        due = 'WHERE "group" = ? AND due_at <= ? ORDER BY due_at, rowid LIMIT ?'
        keyed = f'FROM json_each(?) AS j CROSS JOIN {name} AS t ON t."group" = ?'
        running = (
            f"state = '{State.RUNNING}', unfinished_attempts = {unfinished_attempts}, "
            f"version = {version}"
        )

        # Of one group, by the index on what is due.
        self._next_due = (
            f'SELECT due_at FROM {name} WHERE "group" = ? AND due_at IS NOT NULL '
            "ORDER BY due_at LIMIT 1"
        )
        self._due = (
            "SELECT json_group_array(json_array(k, v, s, p, a, g)) FROM ("
            f'SELECT CAST("key" AS TEXT) AS k, {version} AS v, {unfinished_attempts} AS s, '
            "CAST(schedule AS TEXT) AS p, CAST(args AS TEXT) AS a, CAST(progress AS TEXT) AS g "
            f"FROM {name} {due})"
        )
        self._take_due = (
            f"UPDATE {name} SET due_at = ?, token = ?, {running} "
            f"WHERE rowid IN (SELECT rowid FROM {name} {due})"
        )
        self._held = (
            f"SELECT {columns} FROM {name} AS t "
            'WHERE t."group" = ? AND t.due_at = ? AND t.token = ? LIMIT ?'
        )
        # Of one group and many keys, by the primary key.
        self._next_due_of_keys = (
            f'SELECT json_group_object(t."key", t.due_at) {keyed} AND t."key" = j.value '
            "WHERE t.due_at IS NOT NULL"
        )
        self._of_keys = f'SELECT {columns} {keyed} AND t."key" = j.value'
        # One record, by the primary key.
        self._one = f'SELECT {columns} FROM {name} AS t WHERE t."group" = ? AND t."key" = ?'
        self._take_key = (
            f'UPDATE {name} SET due_at = ?, token = ?, {running} WHERE "group" = ? AND "key" = ?'
        )
        self._put = (
            f"UPDATE {name} SET version = ?, due_at = ?, state = ?, token = ?, "
            "unfinished_attempts = ?, schedule = ?, args = ?, progress = ? "
            'WHERE "group" = ? AND "key" = ? AND version = ?'
        )
        # Many at once.
        unchanged = '"group" = ? AND version = ? AND (? IS NULL OR token = ?)'
        self._delete = (
            f'DELETE FROM {name} WHERE {unchanged} AND "key" IN (SELECT value FROM json_each(?))'
        )
        self._patches = {
            size: (
                f"UPDATE {name} SET version = ?, state = ?, unfinished_attempts = ?, "
                "due_at = c.column2, "
                "progress = coalesce(c.column3, progress) FROM (VALUES "
                + ", ".join(["(?, ?, ?)"] * size)
                + f') AS c WHERE {unchanged} AND "key" = c.column1'
            )
            for size in _STEPS
        }
        self._inserts = {
            size: (
                f"INSERT INTO {name} VALUES "
                + ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"] * size)
                + " ON CONFLICT DO NOTHING"
            )
            for size in _STEPS
        }
        # A range of keys, by the primary key.
        keys = '"group" = ? AND "key" >= ? AND "key" < ?'
        self._last_examined = (
            f'SELECT "key" FROM {name} WHERE {keys} ORDER BY "key" LIMIT 1 OFFSET ?'
        )
        self._page = (
            f"SELECT {columns} FROM {name} AS t WHERE {keys} AND (? IS NULL OR due_at < ?) "
            "AND (? IS NULL OR state IN (SELECT value FROM json_each(?))) "
            'ORDER BY "key" LIMIT ?'
        )
        # After a claim that met a key that is no text.
        self._park = (
            f"UPDATE {name} SET due_at = NULL, state = '{State.PARKED}', token = NULL, "
            'progress = ? WHERE "group" = ? AND due_at = ? AND token = ? '
            'AND "key" NOT IN (SELECT value FROM json_each(?))'
        )

    def make(self, connection: sqlite3.Connection, place: str) -> None:
        """Makes the table and its index where they are missing.

        Raises:
            StoreMisconfiguredError: There is a table of that name that is not one of ours.
        """
        if self._is_complete(connection, place):
            return
        connection.execute("BEGIN IMMEDIATE")
        if not self._is_complete(connection, place):
            for statement in self.schema:
                connection.execute(statement)
        connection.execute("COMMIT")

    def _is_complete(self, connection: sqlite3.Connection, place: str) -> bool:
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({self.name})")]
        if columns and columns != list(COLUMNS):
            raise StoreMisconfiguredError(
                describe_foreign_table(self.name, place, columns, "sqlite_table_name")
            )
        indexes = [row[1] for row in connection.execute(f"PRAGMA index_list({self.name})")]
        return f"{self.name}_due" in indexes

    def next_due(
        self, connection: sqlite3.Connection, sources: Sequence[Source]
    ) -> list[int | None]:
        """The soonest ``due_at`` in each source."""
        of_keys = self._due_of_keys(connection, sources)
        next_due: list[int | None] = []
        for source in sources:
            if isinstance(source, Key):
                next_due.append(of_keys[source.group].get(source.key))
            else:
                row = connection.execute(self._next_due, (source.group,)).fetchone()
                next_due.append(None if row is None else row[0])
        return next_due

    def _due_of_keys(
        self, connection: sqlite3.Connection, sources: Sequence[Source]
    ) -> dict[str, dict[str, int]]:
        keys: dict[str, list[str]] = {}
        for source in sources:
            if isinstance(source, Key):
                keys.setdefault(source.group, []).append(source.key)
        return {
            group: json.loads(
                connection.execute(self._next_due_of_keys, (json.dumps(names), group)).fetchone()[0]
            )
            for group, names in keys.items()
        }

    def claim(
        self,
        connection: sqlite3.Connection,
        sources: Sequence[Source],
        limit: int,
        now: int,
        token: str,
        repeated: bool,
    ) -> Claimed:
        """See ``pyncette.store.Store.claim``."""
        of_keys = self._due_of_keys(connection, sources)
        claimed: list[Record] = []
        shares: dict[Source, int] = {}
        if repeated:
            for source in sources:
                held = self._held_before(connection, source, limit - len(claimed), now, token)
                shares[source] = len(held)
                claimed += held
        for source in sources:
            left = limit - len(claimed)
            if left <= 0:
                break
            if isinstance(source, Key):
                dues = of_keys[source.group]
                due_at = dues.get(source.key)
                if due_at is not None and due_at <= now:
                    claimed.append(self._claim_key(connection, source, now, token))
                    dues[source.key] = now + source.lease
            else:
                left = min(left, source.share - shares.get(source, 0))
                if left > 0:
                    claimed += self._claim_group(connection, source, left, now, token)
        groups = [source for source in sources if isinstance(source, Group)]
        if not of_keys.keys().isdisjoint(source.group for source in groups):
            return Claimed(claimed, self.next_due(connection, sources))
        of_groups = iter(self.next_due(connection, groups))
        return Claimed(
            claimed,
            [
                of_keys[source.group].get(source.key)
                if isinstance(source, Key)
                else next(of_groups)
                for source in sources
            ],
        )

    def _held_before(
        self, connection: sqlite3.Connection, source: Source, limit: int, now: int, token: str
    ) -> list[Record]:
        lease_end = now + source.lease
        if isinstance(source, Key):
            record = self.one(connection, source.group, source.key)
            held = record is not None and record.token == token and record.due_at == lease_end
            return [record] if record is not None and held and limit > 0 else []
        limit = min(limit, source.share)
        rows = connection.execute(self._held, (source.group, lease_end, token, max(limit, 0)))
        return [record_of(row) for row in rows]

    def _claim_group(
        self, connection: sqlite3.Connection, source: Group, limit: int, now: int, token: str
    ) -> list[Record]:
        group, lease, _, before = source
        due = connection.execute(self._due, (now, group, before, limit)).fetchone()[0]
        rows = json.loads(due)
        if not rows:
            return []
        lease_end = now + lease
        connection.execute(self._take_due, (lease_end, token, now, group, before, limit))
        running = State.RUNNING.value
        records = [
            record_of(
                (
                    group,
                    key,
                    lease_end,
                    version,
                    token,
                    running,
                    unfinished_attempts,
                    schedule,
                    args,
                    progress,
                )
            )
            for key, version, unfinished_attempts, schedule, args, progress in rows
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
        found = {record.key: self.one(connection, group, record.key) for record in records}
        good = [record for record in found.values() if record and record.token == token]
        if len(good) != len(records):
            progress = dump_progress(Progress(None, "unreadable", error="the key is not UTF-8"))
            keys = json.dumps([record.key for record in good])
            connection.execute(self._park, (progress, group, lease_end, token, keys))
        return good

    def _claim_key(
        self, connection: sqlite3.Connection, source: Key, now: int, token: str
    ) -> Record:
        group, key, lease = source
        connection.execute(self._take_key, (now + lease, token, now, group, key))
        record = self.one(connection, group, key)
        assert record is not None
        return record

    def one(self, connection: sqlite3.Connection, group: str, key: str) -> Record | None:
        """One record, or None."""
        row = connection.execute(self._one, (group, key)).fetchone()
        return None if row is None else record_of(row)

    def write(
        self, connection: sqlite3.Connection, batch: Sequence[Write], now: int
    ) -> list[Result]:
        """See ``pyncette.store.Store.write``.

        What is alike goes in one statement. Where the number of rows that it changed says that
        one of them was refused, it is undone, and all of them are looked at one by one.
        """
        results: list[Result] = [Applied(ABSENT)] * len(batch)
        kinds: dict[tuple[Any, ...], list[int]] = {}
        singly: list[int] = []
        kind: tuple[Any, ...]
        for at, (group, _, change, expect, token) in enumerate(batch):
            if isinstance(change, Patch) and expect > 0:
                kind = (group, expect, token, change.state, change.unfinished_attempts)
            elif isinstance(change, Delete) and expect > 0:
                kind = (group, expect, token)
            elif isinstance(change, Put) and expect == ABSENT and token is None:
                kind = ()
            else:
                singly.append(at)
                continue
            places = kinds.get(kind)
            if places is None:
                kinds[kind] = [at]
            else:
                places.append(at)
        for kind, places in kinds.items():
            version = self._write_alike(connection, kind, [batch[at] for at in places], now)
            if version is None:
                singly += places
            elif version:
                applied = Applied(version)
                for at in places:
                    results[at] = applied
        for at in singly:
            results[at] = self._write_one(connection, batch[at], now)
        return results

    def _write_alike(
        self,
        connection: sqlite3.Connection,
        kind: tuple[Any, ...],
        writes: Sequence[Write],
        now: int,
    ) -> int | None:
        """Makes all these writes and returns the version that they give; or none, and None."""
        version = ABSENT
        steps: list[tuple[str, Sequence[Any]]]
        if len(kind) == 3:
            group, expect, token = kind
            keys = json.dumps([write.key for write in writes])
            steps = [(self._delete, (group, expect, token, token, keys))]
        elif kind:
            group, expect, token, state, unfinished_attempts = kind
            version = next_version(expect, now)
            rows: list[tuple[Any, ...]] = [
                (key, change.due_at, change.progress)
                for _, key, change, _, _ in writes
                if isinstance(change, Patch)
            ]
            steps = _in_steps(
                self._patches,
                (version, state, unfinished_attempts),
                rows,
                (group, expect, token, token),
            )
        else:
            version = next_version(ABSENT, now)
            rows = [_row(write, version) for write in writes]
            steps = _in_steps(self._inserts, (), rows, ())
        if len(writes) == 1:
            return version if connection.execute(*steps[0]).rowcount == 1 else None
        connection.execute("SAVEPOINT alike")
        written = sum(connection.execute(*step).rowcount for step in steps)
        if written != len(writes):
            connection.execute("ROLLBACK TO alike")
        connection.execute("RELEASE alike")
        return version if written == len(writes) else None

    def _write_one(self, connection: sqlite3.Connection, write: Write, now: int) -> Result:
        group, key, change, expect, token = write
        current = self.one(connection, group, key)
        version = ABSENT if current is None else current.version
        if expect not in (version, ANY) or (
            token is not None and (current is None or current.token != token)
        ):
            return Refused(current)
        version = next_version(version, now)
        if current is None:
            if not isinstance(change, Put):
                return Applied(ABSENT)
            connection.execute(self._inserts[1], _row(write, version))
        elif isinstance(change, Delete):
            connection.execute(
                self._delete, (group, current.version, None, None, json.dumps([key]))
            )
            return Applied(ABSENT)
        elif isinstance(change, Patch):
            due_at, state, unfinished_attempts, progress = change
            expected = (group, current.version, None, None)
            connection.execute(
                self._patches[1],
                (version, state, unfinished_attempts, key, due_at, progress, *expected),
            )
        else:
            connection.execute(
                self._put,
                (version, *change, group, key, current.version),
            )
        return Applied(version)

    def get(
        self, connection: sqlite3.Connection, identities: Sequence[Identity]
    ) -> list[Record | None]:
        """See ``pyncette.store.Store.get``."""
        keys: dict[str, list[str]] = {}
        for group, key in identities:
            keys.setdefault(group, []).append(key)
        found: dict[Identity, Record] = {}
        for group, names in keys.items():
            for row in connection.execute(self._of_keys, (json.dumps(names), group)):
                found[row[0], row[1]] = record_of(row)
        return [found.get(identity) for identity in identities]

    def scan(
        self,
        connection: sqlite3.Connection,
        group: str,
        where: Filter,
        cursor: str | None,
        limit: int,
    ) -> Page:
        """See ``pyncette.store.Store.scan``. The cursor is the last key that was looked at."""
        states, prefix, due_before = where
        # Keys hold no NUL, so that nothing lies between a key and the same with one appended; and
        # no text is greater than a blob.
        first = prefix if cursor is None else f"{cursor}\0"
        end: str | bytes = (prefix_end(prefix) if prefix else None) or b""
        last_examined = None
        if states is not None or due_before is not None:
            row = connection.execute(
                self._last_examined, (group, first, end, max(EXAMINED_MAX, limit) - 1)
            ).fetchone()
            if row is not None:
                last_examined = row[0]
                end = f"{last_examined}\0"
        wanted = None if states is None else json.dumps(sorted(states))
        rows = connection.execute(
            self._page, (group, first, end, due_before, due_before, wanted, wanted, limit + 1)
        ).fetchall()
        records = [record_of(row) for row in rows[:limit]]
        return Page(records, records[-1].key if len(rows) > limit else last_examined)


def _row(write: Write, version: int) -> tuple[Any, ...]:
    group, key, change, _, _ = write
    assert isinstance(change, Put)
    due_at, state, token, unfinished_attempts, schedule, args, progress = change
    return (
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


def _in_steps(
    statements: Mapping[int, str],
    head: tuple[Any, ...],
    rows: Sequence[tuple[Any, ...]],
    tail: tuple[Any, ...],
) -> list[tuple[str, Sequence[Any]]]:
    """Statements, with their parameters, that write all the rows: as few as there can be."""
    steps: list[tuple[str, Sequence[Any]]] = []
    start = 0
    for size, statement in statements.items():
        while len(rows) - start >= size:
            parameters = list(head)
            for row in rows[start : start + size]:
                parameters += row
            parameters += tail
            steps.append((statement, parameters))
            start += size
    return steps
