"""The table of a SQLite database: its statements, rows and records.

Every function works on the connection that it is given, within the transaction that is open on
it. Threads, transactions and files are in ``pyncette.sqlite.thread``.

The driver releases Python's global lock around every row that it fetches and every set of
parameters that it binds. A thread that shares the interpreter with a busy event loop waits for the
lock each time. So the frequent statements move a hundred rows in one step: a claim fetches one
text, and a write of outcomes binds all rows at once.

The table keeps its rowid: rows are stored in the order in which they were created, which is often
about the order in which they come due. So a claim reads few pages, whatever the keys are
(docs/explanation/stores/sqlite.md has the figures of both layouts).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pyncette.errors import StoreMisconfiguredError
from pyncette.sqlite.errors import is_too_big, refuses_value
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
    Write,
    next_version,
)
from pyncette.store.rare import RARE_STATES, is_rare, merged_page
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
from pyncette.store.sql.rows import (
    COLUMNS,
    counted,
    describe_foreign_table,
    prefix_end,
)

EXAMINED_MAX: Final = 5_000
"""Maximum rows that one page of a filtered scan examines, so that other calls need not wait."""

_STEPS: Final = (100, 25, 5, 1)
"""Maximum rows per statement, largest first; a statement is prepared once for each size."""

_VERSION_MAX: Final = 1 << 61
_UNFINISHED_MAX: Final = 1 << 30
_INSTANT_MAX: Final = (1 << 63) - 1

# A row may be edited by hand to any value. The checks refuse values that SQLite would compare or
# count wrongly; but checks can be switched off, and dropped. So every value is read as a value of
# the right type: an invalid version counts as 1, an invalid count as 0, an instant that is not a
# number is never due, a missing text is empty. The engine then finds such a record unreadable, and
# parks it.
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
# Written out: SQLite would look for the states of an IN in a tree of its own, for every row whose
# state changes. That took a tenth of the cost of a run.
_RARE: Final = "(" + " OR ".join(f"state = '{state}'" for state in sorted(RARE_STATES)) + ")"
# The few records that do not simply go from run to run, for lists and counts of them. A plain run
# changes nothing in it.
_INDEX_OF_RARE: Final = f"""\
CREATE INDEX IF NOT EXISTS {{table}}_rare ON {{table}} ("group", state, "key") WHERE {_RARE}"""


class SqliteTable:
    """The statements on one table. Each is prepared once: the driver keeps them by their text.

    Parameters have no numbers: Python 3.12.0 to 3.12.3 warn if they are given as a sequence.

    Args:
        name: A lower-case ASCII identifier.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.schema = (
            _TABLE.format(table=name),
            _INDEX.format(table=name),
            _INDEX_OF_RARE.format(table=name),
        )

        version = (
            f"CASE WHEN typeof(version) = 'integer' AND version BETWEEN 1 AND {_VERSION_MAX} "
            "THEN version ELSE 1 END"
        )
        unfinished = (
            "CASE WHEN typeof(unfinished_attempts) = 'integer' "
            f"AND unfinished_attempts BETWEEN 0 AND {_UNFINISHED_MAX} "
            "THEN unfinished_attempts ELSE 0 END"
        )
        integers = {
            "due_at": "CASE WHEN typeof(due_at) IN ('integer', 'real') "
            "THEN CAST(due_at AS INTEGER) END",
            "version": version,
            "unfinished_attempts": unfinished,
        }
        # CAST costs nothing on what is a text already.
        texts = {
            column: f"coalesce(CAST({column} AS TEXT), '')"
            for column in ("state", "schedule", "args", "progress")
        }
        columns = ", ".join(
            integers.get(column) or texts.get(column) or f'CAST(t."{column}" AS TEXT)'
            for column in COLUMNS
        )
        claimed_version = f"max({version} + 1, ?)"
        # Few claims bound the attempts, and the condition costs a tenth of a claim.
        of_any = 'WHERE "group" = ? AND due_at <= ? ORDER BY due_at, rowid LIMIT ?'
        of_few = (
            f'WHERE "group" = ? AND due_at <= ? AND {unfinished} <= ? '
            "ORDER BY due_at, rowid LIMIT ?"
        )
        keyed = f'FROM json_each(?) AS j CROSS JOIN {name} AS t ON t."group" = ?'
        running = (
            f"state = '{State.RUNNING}', unfinished_attempts = {unfinished} + 1, "
            f"version = {claimed_version}"
        )

        # Of one group, by the index on what is due. No text and no blob is <= a number.
        self._next_due = (
            f'SELECT CAST(due_at AS INTEGER) FROM {name} WHERE "group" = ? '
            f"AND due_at <= {_INSTANT_MAX} ORDER BY due_at LIMIT 1"
        )
        self._due, self._take_due, self._park_due, self._rowids = (
            {bounded: statement + due + ")" for bounded, due in ((False, of_any), (True, of_few))}
            for statement in (
                "SELECT json_group_array(json_array(k, v, s, p, a, g)) FROM ("
                'SELECT CASE WHEN typeof("key") = \'text\' THEN "key" END AS k, '
                f"{claimed_version} AS v, {unfinished} + 1 AS s, {texts['schedule']} AS p, "
                f"{texts['args']} AS a, {texts['progress']} AS g FROM {name} ",
                f"UPDATE {name} SET due_at = ?, token = ?, {running} "
                f"WHERE rowid IN (SELECT rowid FROM {name} ",
                f"UPDATE {name} SET due_at = NULL, state = '{State.PARKED}', token = NULL, "
                f"version = {claimed_version}, progress = ? "
                f"WHERE rowid IN (SELECT rowid FROM {name} ",
                f"SELECT json_group_array(rowid) FROM (SELECT rowid FROM {name} ",
            )
        )
        self._held = (
            f"SELECT {columns} FROM {name} AS t "
            f'WHERE t."group" = ? AND t.due_at = ? AND t.token = ? AND {unfinished} <= ? LIMIT ?'
        )
        # Of one group and many keys, by the primary key.
        self._next_due_of_keys = (
            f'SELECT json_group_object(t."key", CAST(t.due_at AS INTEGER)) '
            f'{keyed} AND t."key" = j.value WHERE t.due_at <= {_INSTANT_MAX}'
        )
        self._of_keys = f'SELECT {columns} {keyed} AND t."key" = j.value'
        # One record, by the primary key.
        one = 'WHERE "group" = ? AND "key" = ?'
        self.select_one = f"SELECT {columns} FROM {name} AS t {one}"
        self._take_key = (
            f"UPDATE {name} SET due_at = ?, token = ?, {running} {one} AND {unfinished} <= ?"
        )
        self.put_one = (
            f"UPDATE {name} SET version = ?, due_at = ?, state = ?, token = ?, "
            f"unfinished_attempts = ?, schedule = ?, args = ?, progress = ? {one}"
        )
        self.patch_one = (
            f"UPDATE {name} SET version = ?, due_at = ?, state = ?, unfinished_attempts = ?, "
            f"progress = coalesce(?, progress) {one}"
        )
        self.delete_one = f"DELETE FROM {name} {one}"
        # Many at once.
        unchanged = '"group" = ? AND version = ? AND (? IS NULL OR token = ?)'
        self._deletes = (
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
        self.insert_one = self._inserts[1]
        # Changes nothing, but takes the lock of those that write.
        self.touch = f"UPDATE {name} SET due_at = due_at WHERE rowid = -1"
        # A range of keys, by the primary key. The bounds are bytes: a cursor may be a key that is
        # not UTF-8. No text is greater than a blob.
        keys = (
            '"group" = ? AND "key" >= CAST(? AS TEXT) AND "key" < coalesce(CAST(? AS TEXT), x\'\')'
        )
        self._last_examined = (
            f'SELECT "key" FROM {name} WHERE {keys} ORDER BY "key" LIMIT 1 OFFSET ?'
        )
        self._page = (
            f"SELECT {columns} FROM {name} AS t WHERE {keys} AND (? IS NULL OR due_at < ?) "
            "AND (? IS NULL OR state IN (SELECT value FROM json_each(?))) "
            'ORDER BY "key" LIMIT ?'
        )
        self._page_of_rare = (
            f"SELECT {columns} FROM {name} AS t WHERE {keys} AND state = ? AND {_RARE} "
            'AND (? IS NULL OR due_at < ?) ORDER BY "key" LIMIT ?'
        )
        matching = (
            "SELECT count(*), coalesce(sum(matches), 0) FROM (SELECT "
            "(? IS NULL OR coalesce(due_at < ?, 0)) "
            "AND (? IS NULL OR state IN (SELECT value FROM json_each(?))) AS matches "
            f"FROM {name} "
        )
        self._count = f'{matching} WHERE {keys} ORDER BY "key" LIMIT ?)'
        # In any state: no more is read than the index.
        self._count_due = (
            f"SELECT count(*), count(*) FROM (SELECT due_at FROM {name} AS t "
            'WHERE "group" = ? AND due_at < ? ORDER BY due_at LIMIT ?)'
        )
        self._count_due_in_states = (
            f'{matching} WHERE "group" = ? AND due_at < ? ORDER BY due_at LIMIT ?)'
        )
        self._count_rare = (
            f'{matching} WHERE "group" = ? AND {_RARE} '
            "AND state IN (SELECT value FROM json_each(?)) LIMIT ?)"
        )
        self._park = (
            f"UPDATE {name} SET due_at = NULL, state = '{State.PARKED}', token = NULL, "
            f"progress = ?, version = {claimed_version} "
            "WHERE rowid IN (SELECT value FROM json_each(?))"
        )

    def make(self, connection: sqlite3.Connection, place: str) -> None:
        """Creates the table and its index if they are missing.

        Raises:
            StoreMisconfiguredError: A table of that name exists that Pyncette did not create.
        """
        if self.is_complete(connection, place):
            return
        connection.execute("BEGIN IMMEDIATE")
        if not self.is_complete(connection, place):
            for statement in self.schema:
                connection.execute(statement)
        connection.execute("COMMIT")

    def is_complete(self, connection: sqlite3.Connection, place: str) -> bool:
        """Returns whether the table and its index exist.

        Raises:
            StoreMisconfiguredError: A table of that name exists that Pyncette did not create.
        """
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
        """Returns the soonest ``due_at`` in each source."""
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
        unfinished_max: int | None,
    ) -> Claimed:
        """See ``pyncette.store.Store.claim``."""
        of_keys = self._due_of_keys(connection, sources)
        claimed: list[Record] = []
        shares: dict[Source, int] = {}
        if repeated:
            for source in sources:
                held = self._held_before(
                    connection, source, limit - len(claimed), now, token, unfinished_max
                )
                shares[source] = len(held)
                claimed += held
        for source in sources:
            left = limit - len(claimed)
            if left <= 0:
                break
            if isinstance(source, Key):
                dues = of_keys[source.group]
                due_at = dues.get(source.key)
                if due_at is None or due_at > now:
                    continue
                record = self._claim_key(connection, source, now, token, unfinished_max)
                if record is not None:
                    claimed.append(record)
                    dues[source.key] = now + source.lease
            else:
                left = min(left, source.share - shares.get(source, 0))
                if left > 0:
                    claimed += self._claim_group(
                        connection, source, left, now, token, unfinished_max
                    )
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
        self,
        connection: sqlite3.Connection,
        source: Source,
        limit: int,
        now: int,
        token: str,
        unfinished_max: int | None,
    ) -> list[Record]:
        lease_end = now + source.lease
        # The claim that is repeated has counted one more.
        counted_max = 1 + (_UNFINISHED_MAX if unfinished_max is None else unfinished_max)
        if isinstance(source, Key):
            record = self.one(connection, source.group, source.key)
            held = (
                record is not None
                and record.token == token
                and record.due_at == lease_end
                and record.unfinished_attempts <= counted_max
            )
            return [record] if record is not None and held and limit > 0 else []
        limit = max(min(limit, source.share), 0)
        rows = connection.execute(
            self._held, (source.group, lease_end, token, counted_max, limit)
        ).fetchall()
        return [_record(connection, row) for row in rows]

    def _claim_group(
        self,
        connection: sqlite3.Connection,
        source: Group,
        limit: int,
        now: int,
        token: str,
        unfinished_max: int | None,
    ) -> list[Record]:
        group, lease, _, before = source
        bounded = unfinished_max is not None
        eligible = (group, before, unfinished_max) if bounded else (group, before)
        rows: list[tuple[Any, ...]] = []
        while limit > 0:
            try:
                due = connection.execute(self._due[bounded], (now, *eligible, limit)).fetchone()[0]
                rows = json.loads(due)
                break
            except Exception as error:
                if not is_too_big(error):
                    raise
            if limit == 1:
                # Even alone the record is too large to be returned, now and in future.
                parked = _unreadable("its texts are too long to be read")
                connection.execute(self._park_due[bounded], (now, parked, *eligible, 1))
                break
            limit //= 2
        if not rows:
            return []
        strict = connection.text_factory is str
        unreachable = [
            place
            for place, row in enumerate(rows)
            if row[0] is None or not (strict or _is_utf_8(row[0]))
        ]
        if unreachable:
            # No write can reach a record with such a key.
            found = connection.execute(self._rowids[bounded], (*eligible, limit)).fetchone()[0]
            rowids = json.loads(found)
            parked = _unreadable("the key is not UTF-8")
            bad = json.dumps([rowids[place] for place in unreachable])
            connection.execute(self._park, (parked, now, bad))
            limit -= len(unreachable)
            for place in reversed(unreachable):
                del rows[place]
        lease_end = now + lease
        connection.execute(self._take_due[bounded], (lease_end, token, now, *eligible, limit))
        running = State.RUNNING.value
        records = [
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
            for key, version, unfinished_attempts, schedule, args, progress in rows
        ]
        if strict:
            return [record_of(record) for record in records]
        return [_record(connection, record) for record in records]

    def _claim_key(
        self,
        connection: sqlite3.Connection,
        source: Key,
        now: int,
        token: str,
        unfinished_max: int | None,
    ) -> Record | None:
        group, key, lease = source
        if unfinished_max is None:
            unfinished_max = _UNFINISHED_MAX
        taken = connection.execute(
            self._take_key, (now + lease, token, now, group, key, unfinished_max)
        )
        return self.one(connection, group, key) if taken.rowcount else None

    def one(self, connection: sqlite3.Connection, group: str, key: str) -> Record | None:
        """One record, or None."""
        row = connection.execute(self.select_one, (group, key)).fetchone()
        return None if row is None else _record(connection, row)

    def write(
        self, connection: sqlite3.Connection, batch: Sequence[Write], now: int
    ) -> list[Result]:
        """See ``pyncette.store.Store.write``.

        Writes of the same kind are made by one statement. If it changes fewer rows than it should,
        or SQLite refuses a value, it is rolled back, and each of its writes is made separately.
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
            try:
                results[at] = self._write_one(connection, batch[at], now)
            except Exception as error:
                if not refuses_value(error):
                    raise
                results[at] = _failed(batch[at], error)
        return results

    def _write_alike(
        self,
        connection: sqlite3.Connection,
        kind: tuple[Any, ...],
        writes: Sequence[Write],
        now: int,
    ) -> int | None:
        """Makes all these writes and returns their new version; or makes none, and returns None."""
        version = ABSENT
        steps: list[tuple[str, Sequence[Any]]]
        if len(kind) == 3:
            group, expect, token = kind
            keys = json.dumps([write.key for write in writes])
            steps = [(self._deletes, (group, expect, token, token, keys))]
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
            rows = [insert_row(write, version) for write in writes]
            steps = _in_steps(self._inserts, (), rows, ())
        if len(writes) == 1:
            return version if _written(connection, steps) == 1 else None
        connection.execute("SAVEPOINT alike")
        written = _written(connection, steps)
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
            connection.execute(self.insert_one, insert_row(write, version))
        elif isinstance(change, Delete):
            connection.execute(self.delete_one, (group, key))
            return Applied(ABSENT)
        elif isinstance(change, Patch):
            connection.execute(self.patch_one, (version, *change, group, key))
        else:
            connection.execute(self.put_one, (version, *change, group, key))
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
                found[row[0], row[1]] = _record(connection, row)
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
        if states is not None and is_rare(where):
            return self._scan_of_rare(connection, group, where, cursor, limit)
        first, end = _keys(prefix, cursor)
        last_examined: str | None = None
        if states is not None or due_before is not None:
            row = connection.execute(
                self._last_examined, (group, first, end, max(EXAMINED_MAX, limit) - 1)
            ).fetchone()
            if row is not None:
                last_examined = row[0]
                end = _bytes(f"{last_examined}\0")
        wanted = None if states is None else json.dumps(sorted(states))
        rows = connection.execute(
            self._page, (group, first, end, due_before, due_before, wanted, wanted, limit + 1)
        ).fetchall()
        records = [_record(connection, row) for row in rows[:limit]]
        return Page(records, rows[limit - 1][1] if len(rows) > limit else last_examined)

    def _scan_of_rare(
        self,
        connection: sqlite3.Connection,
        group: str,
        where: Filter,
        cursor: str | None,
        limit: int,
    ) -> Page:
        """The same, by the index of rare states: nothing else is looked at."""
        states, prefix, due_before = where
        first, end = _keys(prefix, cursor)
        pages = []
        for state in sorted(states or ()):
            rows = connection.execute(
                self._page_of_rare,
                (group, first, end, state, due_before, due_before, limit + 1),
            )
            pages.append([_record(connection, row) for row in rows])
        return merged_page(pages, limit)

    def count(
        self, connection: sqlite3.Connection, group: str, where: Filter, limit: int
    ) -> Counted:
        """See ``pyncette.store.Store.count``."""
        states, prefix, due_before = where
        wanted = None if states is None else json.dumps(sorted(states))
        match = (due_before, due_before, wanted, wanted)
        examined_max = max(EXAMINED_MAX, limit)
        if is_rare(where) and not prefix:
            rows = connection.execute(
                self._count_rare, (*match, group, wanted, examined_max + 1)
            ).fetchall()
        elif due_before is not None and not prefix and states is None:
            rows = connection.execute(
                self._count_due, (group, due_before, examined_max + 1)
            ).fetchall()
        elif due_before is not None and not prefix:
            rows = connection.execute(
                self._count_due_in_states, (*match, group, due_before, examined_max + 1)
            ).fetchall()
        else:
            keys = (group, *_keys(prefix))
            rows = connection.execute(self._count, (*match, *keys, examined_max + 1)).fetchall()
        [(examined, matches)] = rows
        return counted(examined, matches, examined_max, limit)


def decode_leniently(text: bytes) -> str:
    """Decodes a text that may not be UTF-8; used as ``connection.text_factory``.

    Invalid bytes become lone surrogates, which never occur in valid UTF-8. So such a text can be
    detected, and converted back to its bytes.
    """
    return text.decode(errors="surrogateescape")


def _keys(prefix: str, cursor: str | None = None) -> tuple[bytes, bytes | None]:
    """The range of keys with a prefix, after a cursor: the first, and where they end."""
    # Keys hold no NUL, so that nothing lies between a key and the same with one appended.
    first = _bytes(prefix if cursor is None else f"{cursor}\0")
    end = prefix_end(prefix) if prefix else None
    return first, None if end is None else _bytes(end)


def _bytes(key: str) -> bytes:
    return key.encode(errors="surrogateescape")


def _is_utf_8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _record(connection: sqlite3.Connection, row: tuple[Any, ...]) -> Record:
    """Makes a record of a row; bytes that are not UTF-8 are replaced."""
    if connection.text_factory is not str:
        row = tuple(
            _bytes(value).decode(errors="replace") if isinstance(value, str) else value
            for value in row
        )
    return record_of(row)


def _unreadable(reason: str) -> str:
    """The progress of a record that the store parks."""
    return dump_progress(Progress(None, "unreadable", error=reason))


def _failed(write: Write, error: BaseException) -> Failed:
    refused = ValueError(f"SQLite refuses a value of {write.key!r} of '{write.group}': {error}")
    refused.__cause__ = error
    return Failed(refused)


def _written(
    connection: sqlite3.Connection, steps: Sequence[tuple[str, Sequence[Any]]]
) -> int | None:
    """Returns how many rows the statements changed; None if SQLite refuses a value."""
    try:
        return sum(connection.execute(*step).rowcount for step in steps)
    except Exception as error:
        if not refuses_value(error):
            raise
        return None


def insert_row(write: Write, version: int) -> tuple[Any, ...]:
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
    """Yields the statements, with their parameters, that write all rows: as few as possible."""
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
