"""The table in MySQL or MariaDB, and what is done to it: trips, answers, records.

Every function works on the connection that it is given. A batch of which nothing was changed is
looked at, and what stood in its way taken out. The statements are in ``pyncette.mysql.sql``,
connections in ``pyncette.mysql.connection``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from asyncmy import errors

from pyncette import chance
from pyncette.clock import realtime
from pyncette.mysql.claims import Asked, RecordOf
from pyncette.mysql.connection import (
    DEADLOCK,
    DUPLICATE,
    LOCK_WAIT_TIMEOUT,
    Connection,
    Results,
    code_of,
    query,
)
from pyncette.mysql.sql import (
    BYTES,
    CREATION,
    DELETION,
    DIRTILY,
    EXPECTED,
    GET,
    KEY_COLUMNS,
    KINDS,
    LAST_EXAMINED,
    LAYOUT,
    LOCKABLE,
    PAGE,
    SCHEMA,
    THERE,
    Kind,
    batch_of,
    names_of,
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
from pyncette.store.record import ABSENT, ANY, Delete, Put, Record, record_of
from pyncette.store.sql.low_water import LowWater
from pyncette.store.sql.rows import HeldRecords, prefix_end

EXAMINED_MAX: Final = 5_000
"""So many rows a page of a filtered scan looks at, so that no call takes long."""

TRIES_MAX: Final = 10
"""So often a statement is tried that others' transactions made fail."""

ROWS_MAX: Final = 1_000
"""So many rows go into one statement,"""

CHARACTERS_MAX: Final = 1_000_000
"""and so many characters of their texts, unless it is one row."""

_DELAY_INITIAL_S: Final = 0.001
_DELAY_MAX_S: Final = 0.05


class MysqlTable:
    """The statements on one table.

    Args:
        name: A lower-case ASCII identifier.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        # MySQL has to be told whose rows are locked, and MariaDB cannot be told.
        self._names = names_of(name, mariadb=False)
        self._marks = LowWater()
        self._record: RecordOf = record_of
        self._held = HeldRecords()

    def use_mariadb(self) -> None:
        """The server turned out to be MariaDB."""
        self._names = names_of(self.name, mariadb=True)

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
                self._names["columns"] = BYTES
                self._record = _decoded
                raise
            await realtime.sleep(delay * chance.current().uniform(0.5, 1.0))
            delay = min(2 * delay, _DELAY_MAX_S)
        raise AssertionError("never reached: the last try returns or raises")

    async def layout(self, connection: Connection) -> tuple[list[str], str]:
        """The names of the columns, none where there is no such table; and its engine."""
        [rows] = await query(connection, LAYOUT.format(table=self.name))
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
        """See ``pyncette.store.Store.claim``.

        One trip: what is due is taken, what the token now holds is read, and what is left.
        """
        if not sources:
            return Claimed([], [])
        groups = [source.group for source in sources]
        keys = [source.key if isinstance(source, Key) else None for source in sources]
        since = self._marks.before_claim(groups, now)
        asked = Asked(connection, self._names, sources, since, now, token)
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
            next_due = asked.read_next_due(await self._run(connection, *asked.next_due()))
            self._marks.after_claim(groups, keys, since, next_due, now)
            return Claimed(held, next_due)
        taken, *results = await self._run(connection, *take, *asked.held(), *asked.next_due())
        records = asked.read_held(results, self._record)
        next_due = asked.read_next_due(results)
        self._marks.after_claim(groups, keys, since, next_due, now)
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
        """See ``pyncette.store.Store.write``.

        What was not written is read, together with what can be locked. Where that does not show
        why, somebody holds the record, and it is tried again for a while, see
        ``HeldRecords``.
        """
        results: list[Result | None] = [None] * len(batch)
        # The version that must be there. Where any will do, the one that a look has found.
        expected = [write.expect for write in batch]
        ready = [at for at, version in enumerate(expected) if version != ANY]
        pending = list(range(len(batch)))
        started = realtime.monotonic()
        delay = 0.0
        try:
            while True:
                await self._try(connection, batch, ready, expected, now, results)
                pending = [at for at in pending if results[at] is None]
                if not pending:
                    return results  # type: ignore[return-value]
                await realtime.sleep(delay * chance.current().uniform(0.5, 1.0))
                delay = min(2 * delay or _DELAY_INITIAL_S, _DELAY_MAX_S)
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
        finally:
            self._marks.note(batch)

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
        kinds: dict[Kind, list[int]] = {}
        for at in sorted(chosen, key=lambda at: batch[at][:2]):
            change = batch[at].change
            if expected[at]:
                kinds.setdefault(KINDS[type(change)], []).append(at)
            elif isinstance(change, Put) and batch[at].token is None:
                kinds.setdefault(CREATION, []).append(at)
        for kind, places in kinds.items():
            rows = [_row(batch[at], expected[at], now) for at in places]
            done = 0
            for part in _parts(rows):
                if await self._change(connection, kind, part):
                    for at, row in zip(places[done:], part, strict=False):
                        results[at] = Applied(ABSENT if kind is DELETION else row[4])
                done += len(part)

    async def _change(
        self, connection: Connection, kind: Kind, rows: Sequence[Sequence[Any]]
    ) -> bool:
        """Makes these changes, or none of them; whether it did."""
        names = {
            **self._names,
            "batch": batch_of(connection, rows, kind.columns),
            "size": len(rows),
        }
        expected = "" if kind is CREATION else EXPECTED.format(**names)
        try:
            [changed] = await self._run(
                connection, kind.statement.format(**names, expected=expected)
            )
        except errors.MySQLError as error:
            if kind is not CREATION or code_of(error) not in (DUPLICATE, LOCK_WAIT_TIMEOUT):
                raise
            return False
        return bool(changed == len(rows))

    async def _look(
        self, connection: Connection, identities: Sequence[Identity]
    ) -> list[tuple[Record | None, bool]]:
        """The records, and whether somebody holds them: changes them, or is creating them."""
        looks: list[tuple[Record | None, bool]] = []
        for part in _parts(identities):
            names = {**self._names, "batch": batch_of(connection, part, KEY_COLUMNS)}
            lockable, _, there, rows = await self._run(
                connection,
                LOCKABLE.format(**names),
                DIRTILY,
                THERE.format(**names),
                GET.format(**names),
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
        """See ``pyncette.store.Store.get``."""
        found: list[Record | None] = []
        for part in _parts(identities):
            batch = batch_of(connection, part, KEY_COLUMNS)
            [rows] = await self._run(connection, GET.format(**self._names, batch=batch))
            records = {row[0]: self._record(row[1:]) for row in rows}
            found += [records.get(number) for number in range(1, len(part) + 1)]
        return found

    async def scan(
        self, connection: Connection, group: str, where: Filter, cursor: str | None, limit: int
    ) -> Page:
        """See ``pyncette.store.Store.scan``. The cursor is the last key that was looked at."""
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
                LAST_EXAMINED.format(
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
            PAGE.format(**self._names, wanted=" AND ".join(wanted), limit=limit + 1),
        )
        records = [self._record(row) for row in rows[:limit]]
        return Page(records, records[-1].key if len(rows) > limit else last_examined)


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


def _decoded(row: tuple[Any, ...]) -> Record:
    """A row of bytes as a record; what is no UTF-8 in it is replaced, and so found unreadable."""
    return record_of(
        tuple(
            value.decode(errors="replace") if isinstance(value, bytes) else value for value in row
        )
    )
