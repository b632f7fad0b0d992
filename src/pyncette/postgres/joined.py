"""The table in PostgreSQL, in a transaction of the application."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Final

from pyncette.connections import Dialect, Link
from pyncette.errors import StoreMisconfiguredError
from pyncette.postgres.sql import Statements
from pyncette.store import Write, next_version
from pyncette.store.record import ABSENT, Delete, Patch, Record, record_of
from pyncette.store.sql.joined import (
    JoinedTable,
    causes,
    check_dialect,
    missing_table,
    values_of,
)

# Whether the table of the store is there, the name of the database, and settings of the session.
_CHECK: Final = """\
SELECT to_regclass($1::text) IS NOT NULL, current_database()::text,
    current_setting('transaction_read_only'), current_setting('lock_timeout'),
    current_setting('transaction_isolation')"""

_LOCK_NOT_AVAILABLE: Final = "55P03"


class JoinedPostgres(JoinedTable):
    """See ``pyncette.store.sql.joined.Joined``.

    Args:
        link: The connection.
        table: The name of the table, on which other workers listen.
        schema: Where it is, quoted if it has to be.
        database: The database of the store.
        place: The server, for messages.
    """

    def __init__(self, link: Link, table: str, schema: str, database: str, place: str) -> None:
        check_dialect(link, Dialect.POSTGRES, place)
        self._link = link
        self._table = table
        # By its schema, since the application may have another search path.
        self._name = f"{schema}.{table}"
        self._database = database
        self._place = place
        self._statements = Statements(self._name)
        self._lock_timeout = "0"

    async def check(self, settles: bool = False) -> None:
        """See ``Joined.check``."""
        [answer], _ = await self._link.run(_CHECK, self._name)
        there, database, read_only, lock_timeout, isolation = answer
        await self._link.check_inside()
        if database != self._database:
            raise StoreMisconfiguredError(
                f"{self._link.name} is connected to the database {database!r}, but the store of "
                f"this app is {self._place}, database {self._database!r}"
            )
        if not there:
            raise missing_table(self._link, self._name, self._place)
        if read_only == "on":
            raise StoreMisconfiguredError(
                f"{self._link.name} is in a transaction that may only read"
            )
        if settles and isolation not in ("read committed", "read uncommitted"):
            raise StoreMisconfiguredError(
                f"{self._link.name} is in a transaction at {isolation.upper()}: it could not be "
                "committed once a heartbeat, or a call, has changed the record of the run. Use "
                "READ COMMITTED"
            )
        self._lock_timeout = lock_timeout

    async def get(self, group: str, key: str) -> Record | None:
        """See ``Joined.get``."""
        rows, _ = await self._link.run(self._statements.get, [group], [key])
        return record_of(rows[0]) if rows else None

    async def make(self, write: Write, expect: int, now: int) -> int | None:
        """See ``JoinedTable.make``.

        An error within a transaction would undo all of it. So the change has a savepoint.
        """
        run = self._link.run
        await run("SAVEPOINT pyncette")
        try:
            version = await self._changed(write, expect, now)
        except Exception as error:
            await run("ROLLBACK TO SAVEPOINT pyncette")
            await run("RELEASE SAVEPOINT pyncette")
            if expect == ABSENT and _code_of(error) == _LOCK_NOT_AVAILABLE:
                return None  # another transaction is creating it
            raise
        await run("RELEASE SAVEPOINT pyncette")
        return version

    async def _changed(self, write: Write, expect: int, now: int) -> int | None:
        group, key, change, _, token = write
        run = self._link.run
        condition = ([group], [key], [expect], [token])
        if isinstance(change, Delete):
            [(count, *_)], _ = await run(self._statements.delete, *condition)
            return ABSENT if count else None
        columns = [[value] for value in values_of(change)]
        if expect == ABSENT:
            version = next_version(ABSENT, now)
            [(groups, _)], _ = await run(self._statements.insert, [group], [key], version, *columns)
            # The statement has set it for all of the transaction.
            await run("SELECT set_config('lock_timeout', $1::text, true)", self._lock_timeout)
            return version if groups else None
        kind = self._statements.patch if isinstance(change, Patch) else self._statements.put
        [(_, versions)], _ = await run(kind, *condition, now, *columns)
        return int(versions[0]) if versions else None

    async def notify(self, groups: Collection[str]) -> None:
        """See ``Joined.notify``. The server sends it with the commit."""
        await self._link.run(
            "SELECT pg_notify($1::text, $2::text)",
            self._table,
            json.dumps(sorted(groups), ensure_ascii=False),
        )


def _code_of(error: Exception) -> str | None:
    for one in causes(error):
        code = getattr(one, "sqlstate", None) or getattr(one, "pgcode", None)
        if isinstance(code, str):
            return code
    return None
