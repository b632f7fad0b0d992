"""The table in MySQL or MariaDB, and the calls on it: round trips, answers, records.

Every function works on the connection that it is given. If nothing of a batch was changed, its
records are read, and the writes that cannot be made are removed from it. The statements are in
``pyncette.mysql.sql``, connections in ``pyncette.mysql.connection``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any, Final

from asyncmy import errors

from pyncette.mysql.claims import Asked, RecordOf
from pyncette.mysql.connection import (
    DEADLOCK,
    DUPLICATE,
    LOCK_WAIT_TIMEOUT,
    Connection,
    Results,
    code_of,
    packet_bytes_max,
    query,
    refusal,
    size_of,
)
from pyncette.mysql.sql import (
    CLOCK,
    COUNT,
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
    PAGE_OF_RARE,
    SCHEMA,
    THERE,
    Kind,
    batch_of,
    names_of,
)
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
    Write,
)
from pyncette.store.rare import is_rare, merged_page
from pyncette.store.record import ABSENT, ANY, Delete, Put, Record, State, record_of
from pyncette.store.sql.conditional import ROWS_MAX, ConditionalWrite, HeldRecords, Look
from pyncette.store.sql.conflicts import retried
from pyncette.store.sql.low_water import LowWaterMarks
from pyncette.store.sql.rows import (
    RARE,
    counted,
    prefix_end,
    version_after,
)

EXAMINED_MAX: Final = 5_000
"""Maximum rows that a page of a filtered scan examines, so that no call takes long."""

_BIGINT: Final = range(-(1 << 63), 1 << 63)
_INT: Final = range(-(1 << 31), 1 << 31)


class MysqlTable:
    """See ``pyncette.store.sql.store.Table``.

    Args:
        name: A lower-case ASCII identifier.
    """

    notifies = False

    def __init__(self, name: str) -> None:
        self.name = name
        # MySQL needs the name of the table whose rows are locked; MariaDB does not accept it.
        self._names = names_of(name, mariadb=False)
        self.low_water_marks = LowWaterMarks()
        self._record: RecordOf = record_of
        self._held = HeldRecords()

    def use_mariadb(self) -> None:
        """Prepares for MariaDB, once the server is known to be one."""
        self._names = names_of(self.name, mariadb=True)
        self._record = decoded

    async def _run(self, connection: Connection, *statements: str) -> Results:
        """Runs statements, and retries them if another transaction made the first one fail.

        The first one then had no effect, and only the first statement of a round trip writes.
        """
        return await retried(lambda: query(connection, *statements), _is_deadlock)

    async def layout(self, connection: Connection) -> tuple[list[str], str]:
        """The names of the columns, none if there is no such table; and its engine."""
        [rows] = await query(connection, LAYOUT.format(table=self.name))
        return [row[0] for row in rows], rows[0][1] if rows else ""

    async def make(self, connection: Connection) -> None:
        """Creates the table and its index, unless they exist."""
        # Another worker may be creating it, which takes longer than other locks on a table.
        await query(connection, "SET SESSION lock_wait_timeout = 10")
        await query(connection, SCHEMA.format(table=self.name, rare=RARE))
        await query(connection, "SET SESSION lock_wait_timeout = 1")

    async def check_indexes(self, connection: Connection) -> None:
        """Fails if an index is missing that the statements name."""
        await query(connection, f"SELECT 1 FROM {self.name} FORCE INDEX (PRIMARY, due) LIMIT 0")

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
        """See ``pyncette.store.Store.claim``.

        One round trip: it claims due records, reads what the token now holds, and what is left.
        """
        if not sources:
            return Claimed([], [])
        groups = [source.group for source in sources]
        keys = [source.key if isinstance(source, Key) else None for source in sources]
        since = self.low_water_marks.before_claim(groups, now)
        asked = Asked(connection, self._names, sources, since, now, token, bounded, unfinished_max)
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
            self.low_water_marks.after_claim(groups, keys, since, next_due, now)
            return Claimed(held, next_due)
        taken, *results = await self._run(connection, *take, *asked.held(), *asked.next_due())
        records = asked.read_held(results, self._record)
        next_due = asked.read_next_due(results)
        self.low_water_marks.after_claim(groups, keys, since, next_due, now)
        # The call whose answer was lost may have been executed in between. Then the token also
        # holds the records that it took; those beyond the limit wait until their lease ends.
        known = {record[:2] for record in held}
        for at, record in records:
            if taken > 0 and room[at] > 0 and record[:2] not in known:
                taken -= 1
                room[at] -= 1
                held.append(record)
        return Claimed(held, next_due)

    async def write(self, connection: Connection, batch: ConditionalWrite, now: int) -> None:
        """See ``pyncette.store.sql.store.Table.write``.

        Records that were not written are read, and whether they can be locked.
        """

        async def attempt(places: Sequence[int]) -> None:
            await self._try(connection, batch, places, now)

        async def look(identities: Sequence[Identity]) -> list[Look]:
            return await self._look(connection, identities)

        try:
            await batch.run(attempt, look, self._held)
        finally:
            self.low_water_marks.note(batch.batch)

    async def notify(self, connection: Connection, groups: Collection[str]) -> None:
        """Does nothing: these servers send no notifications."""

    async def now(self, connection: Connection) -> int:
        """See ``pyncette.store.Store.now``."""
        [[[instant]]] = await query(connection, f"SELECT {CLOCK}")
        return int(instant)

    async def _try(
        self, connection: Connection, batch: ConditionalWrite, places: Sequence[int], now: int
    ) -> None:
        """Makes the writes that can be made now, and stores their results in the batch.

        A write that accepts any version is made after the current version was read.
        """
        writes, expected = batch.batch, batch.expected
        kinds: dict[Kind, list[int]] = {}
        for at in sorted(places, key=lambda at: writes[at][:2]):
            change = writes[at].change
            if expected[at] == ANY:
                continue
            if expected[at] != ABSENT:
                kinds.setdefault(KINDS[type(change)], []).append(at)
            elif isinstance(change, Put) and writes[at].token is None:
                kinds.setdefault(CREATION, []).append(at)
        for kind, chosen in kinds.items():
            await batch.apply(chosen, partial(self._make, connection, batch, kind, now), refusal)

    async def _make(
        self,
        connection: Connection,
        batch: ConditionalWrite,
        kind: Kind,
        now: int,
        part: Sequence[int],
    ) -> None:
        """Makes all these changes of one kind, or none, and stores the results in the batch."""
        rows = [row_of(batch.batch[at], batch.expected[at], now) for at in part]
        if await self._change(connection, kind, rows):
            for at, row in zip(part, rows, strict=True):
                batch.results[at] = Applied(ABSENT if kind is DELETION else row[4])

    async def _change(
        self, connection: Connection, kind: Kind, rows: Sequence[Sequence[Any]]
    ) -> bool:
        """Makes all these changes, or none; returns whether it made them."""
        names = {
            **self._names,
            "batch": batch_of(connection, rows, kind.columns),
            "size": len(rows),
        }
        expected = "" if kind is CREATION else EXPECTED.format(**names)
        statement = kind.statement.format(**names, expected=expected)
        size, size_max = size_of(statement), packet_bytes_max(connection)
        if size >= size_max:
            raise ValueError(
                f"a statement of {size} bytes is larger than max_allowed_packet of the server, "
                f"which is {size_max}"
            )
        try:
            [changed] = await self._run(connection, statement)
        except errors.MySQLError as error:
            if kind is not CREATION or code_of(error) not in (DUPLICATE, LOCK_WAIT_TIMEOUT):
                raise
            return False
        return bool(changed == len(rows))

    async def _look(self, connection: Connection, identities: Sequence[Identity]) -> list[Look]:
        """The records, and whether another transaction changes or creates them."""
        looks: list[Look] = []
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
                Look(records.get(number), number not in held) for number in range(1, len(part) + 1)
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
        """See ``pyncette.store.Store.scan``. The cursor is the last key that was examined."""
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
        if states and is_rare(where):
            return await self._scan_of_rare(connection, states, keys, due_before, limit)
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

    async def _scan_of_rare(
        self,
        connection: Connection,
        states: Iterable[State],
        keys: Sequence[str],
        due_before: int | None,
        limit: int,
    ) -> Page:
        """The same, by the index of rare states: nothing else is looked at."""
        wanted = [*keys] if due_before is None else [*keys, f"r.due_at < {due_before}"]
        pages = []
        for state in states:
            [rows] = await self._run(
                connection,
                PAGE_OF_RARE.format(
                    **self._names,
                    state=connection.escape(state.value),
                    wanted=" AND ".join(wanted),
                    limit=limit + 1,
                ),
            )
            pages.append([self._record(row) for row in rows])
        return merged_page(pages, limit)

    async def count(self, connection: Connection, group: str, where: Filter, limit: int) -> Counted:
        """See ``pyncette.store.Store.count``."""
        states, prefix, due_before = where
        escape = connection.escape
        examined_max = max(EXAMINED_MAX, limit)
        keys, matches = [f"r.`group` = {escape(group)}"], ["TRUE"]
        index, order = "PRIMARY", "r.`key`"
        if states is not None:
            listed = ", ".join(escape(state.value) for state in states)
            matches.append(f"r.state IN ({listed})" if states else "FALSE")
        if due_before is not None:
            matches.append(f"COALESCE(r.due_at < {due_before}, FALSE)")
        if is_rare(where) and states and not prefix:
            keys.append(f"r.rare IN ({', '.join(escape(state.value) for state in states)})")
            index, order = "rare", "NULL"
        elif prefix:
            keys.append(f"r.`key` >= {escape(prefix)}")
            if (end := prefix_end(prefix)) is not None:
                keys.append(f"r.`key` < {escape(end)}")
        elif due_before is not None:
            keys.append(f"r.due_at < {due_before}")
            index, order = "due", "r.due_at"
        [rows] = await self._run(
            connection,
            COUNT.format(
                **self._names,
                read="r.due_at" if states is None else "r.due_at, r.state",
                matches=" AND ".join(matches),
                index=index,
                keys=" AND ".join(keys),
                order=order,
                examined=examined_max + 1,
            ),
        )
        [[examined, found]] = rows
        return counted(int(examined), int(found), examined_max, limit)


def row_of(write: Write, expect: int, now: int) -> tuple[Any, ...]:
    """A write as a row of its batch.

    Raises:
        ValueError: A number does not fit into its column: in a batch it would silently become NULL.
    """
    group, key, change, _, token = write
    head = (group, key, expect, token)
    if isinstance(change, Delete):
        return head
    if change.due_at is not None and change.due_at not in _BIGINT:
        raise ValueError(f"due_at is out of range: {change.due_at}")
    if change.unfinished_attempts not in _INT:
        raise ValueError(f"unfinished_attempts is out of range: {change.unfinished_attempts}")
    return (*head, version_after(expect, now), *change)


def _parts(identities: Sequence[Identity]) -> Iterable[Sequence[Identity]]:
    """The identities, in their order, in parts for one statement each."""
    return (identities[first : first + ROWS_MAX] for first in range(0, len(identities), ROWS_MAX))


def _is_deadlock(error: Exception) -> bool:
    return code_of(error) == DEADLOCK


def decoded(row: tuple[Any, ...]) -> Record:
    """Makes a record of a row of bytes. Bytes that are not UTF-8 are replaced: it is unreadable."""
    return record_of(
        tuple(
            value.decode(errors="replace") if isinstance(value, bytes) else value for value in row
        )
    )
