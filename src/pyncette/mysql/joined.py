"""The table in MySQL or MariaDB, in a transaction of the application.

These servers begin at REPEATABLE READ, where a plain read sees the state at the first read of the
transaction. So a record that a plain read finds is read once more, with a lock, which sees its
latest state. An absent one is not read with a lock: that would lock the gap between its neighbours,
and two transactions that create instances would block each other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from pyncette.connections import Dialect, Link
from pyncette.errors import StoreMisconfiguredError
from pyncette.mysql.sql import (
    DELETION,
    EXPECTED,
    GET,
    KEY_COLUMNS,
    KINDS,
    Kind,
    batch_of,
    names_of,
)
from pyncette.mysql.table import decoded, row_of
from pyncette.store import Write
from pyncette.store.record import ABSENT, Record, record_of
from pyncette.store.sql.joined import JoinedTable, causes, check_dialect, missing_table

_CHECK: Final = """\
SELECT (SELECT COUNT(*) FROM information_schema.tables
    WHERE table_schema = $1 AND table_name = $2),
    @@character_set_client, @@innodb_lock_wait_timeout, VERSION()"""

_DUPLICATE: Final = 1062
_LOCK_WAIT_TIMEOUT: Final = 1205
_LOCK_NOWAIT: Final = 3572
_LOCKED: Final = frozenset((_LOCK_WAIT_TIMEOUT, _LOCK_NOWAIT))
"""Another transaction holds the record. These undo the statement alone."""

_LOCK_WAIT_S: Final = 1
"""How long a creation waits while another transaction creates the same record."""

# Only if it is absent; with values, not with a SELECT, which would lock what it reads.
_INSERT: Final = """\
INSERT INTO {table} (`group`, `key`, due_at, version, token, state, unfinished_attempts, schedule,
    args, progress)
VALUES (CAST($1 AS BINARY), CAST($2 AS BINARY), $3, $4, $5, $6, $7, $8, $9, $10)"""

_LATEST: Final = GET + " FOR UPDATE {of_rows} NOWAIT"


class JoinedMysql(JoinedTable):
    """See ``pyncette.store.sql.joined.Joined``.

    Args:
        link: The connection.
        table: The name of the table.
        database: Where it is.
        place: The server, for messages.
    """

    def __init__(self, link: Link, table: str, database: str, place: str) -> None:
        check_dialect(link, Dialect.MYSQL, place)
        self._link = link
        self._table = table
        self._database = database
        self._place = place
        quoted = database.replace("`", "``")
        # By its database, since the application may use another one of this server.
        self._name = f"`{quoted}`.{table}"
        self._names = names_of(self._name, mariadb=False)
        self._mariadb = False
        self._lock_wait_s = 0

    async def check(self, settles: bool = False) -> None:
        """See ``Joined.check``."""
        [(there, charset, lock_wait_s, version)], _ = await self._link.run(
            _CHECK, self._database, self._table
        )
        await self._link.check_inside()
        if not there:
            raise missing_table(self._link, f"{self._database}.{self._table}", self._place)
        if charset != "utf8mb4":
            raise StoreMisconfiguredError(
                f"{self._link.name} must have been made with charset='utf8mb4', not {charset!r}"
            )
        self._lock_wait_s = int(lock_wait_s)
        self._mariadb = "mariadb" in version.lower()
        self._names = names_of(self._name, mariadb=self._mariadb)

    async def get(self, group: str, key: str) -> Record | None:
        """See ``Joined.get``."""
        found = await self._read(GET, group, key)
        return None if found is None else await self.get_latest(group, key)

    async def get_latest(self, group: str, key: str) -> Record | None:
        """See ``JoinedTable.get_latest``."""
        try:
            return await self._read(_LATEST, group, key)
        except Exception as error:
            if _code_of(error) not in _LOCKED:
                raise
        # What another transaction writes is not to be seen yet.
        return await self._read(GET, group, key)

    async def _read(self, statement: str, group: str, key: str) -> Record | None:
        marks = _Marks()
        batch = batch_of(marks, [(group, key)], KEY_COLUMNS)
        text = statement.format(**self._names, batch=batch)
        rows, _ = await self._link.run(text, *marks.values)
        if not rows:
            return None
        return decoded(rows[0][1:]) if self._mariadb else record_of(rows[0][1:])

    async def make(self, write: Write, expect: int, now: int) -> int | None:
        """See ``JoinedTable.make``."""
        row = row_of(write, expect, now)
        kind = KINDS[type(write.change)]
        if expect == ABSENT:
            made = await self._created(row)
        else:
            made = await self._changed(kind, row)
        if not made:
            return None
        return ABSENT if kind is DELETION else int(row[4])

    async def _created(self, row: Sequence[Any]) -> bool:
        group, key, _, _, version, due_at, state, token, *others = row
        if await self.get(group, key) is not None:
            return False
        values = (group, key, due_at, version, token, str(state), *others)
        wait = f"SET SESSION innodb_lock_wait_timeout = {_LOCK_WAIT_S}"
        await self._link.run(wait)
        try:
            await self._link.run(_INSERT.format(**self._names), *values)
        except Exception as error:
            if _code_of(error) == _DUPLICATE or _code_of(error) in _LOCKED:
                return False
            raise
        finally:
            await self._link.run(f"SET SESSION innodb_lock_wait_timeout = {self._lock_wait_s}")
        return True

    async def _changed(self, kind: Kind, row: Sequence[Any]) -> bool:
        marks = _Marks()
        names: Mapping[str, Any] = {
            **self._names,
            "batch": batch_of(marks, [row], kind.columns),
            "size": 1,
        }
        statement = kind.statement.format(**names, expected=EXPECTED.format(**names))
        return (await self._link.run(statement, *marks.values)).changed == 1

    async def notify(self, groups: Collection[str]) -> None:
        """Does nothing: these servers send no notifications."""


class _Marks:
    """Gives values their places in a statement, where a connection of the store quotes them."""

    def __init__(self) -> None:
        self.values: list[str] = []

    def escape(self, value: str) -> str:
        """Returns the mark of a value."""
        self.values.append(value)
        return f"${len(self.values)}"


def _code_of(error: Exception) -> int:
    codes = (one.args[0] for one in causes(error) if one.args)
    return next((code for code in codes if isinstance(code, int)), 0)
