"""The table in a SQLite file, in a transaction of the application.

SQLite lets one transaction write at a time. So the first thing is to become this one: what is read
then stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from pyncette.connections import Dialect, Link
from pyncette.errors import StoreMisconfiguredError, StoreUnavailableError
from pyncette.sqlite.errors import is_busy
from pyncette.sqlite.table import SqliteTable, insert_row
from pyncette.sqlite.thread import BUSY_DEADLINE_S
from pyncette.store import Write, next_version
from pyncette.store.record import ABSENT, Delete, Patch, Put, Record, record_of
from pyncette.store.sql.joined import (
    JoinedTable,
    causes,
    check_dialect,
    missing_table,
    values_of,
)


class JoinedSqlite(JoinedTable):
    """See ``pyncette.store.sql.joined.Joined``.

    Others wait for the file for ``BUSY_DEADLINE_S``, then fail.

    Args:
        link: The connection.
        table: The statements on the table.
        path: The file of the store; None if it is in memory.
        place: The file, for messages.
    """

    seconds_max: float | None = BUSY_DEADLINE_S / 2

    def __init__(self, link: Link, table: SqliteTable, path: str | None, place: str) -> None:
        check_dialect(link, Dialect.SQLITE, place)
        if path is None:
            raise StoreMisconfiguredError(
                f"The store of this app is {place}, which no other connection can reach: use a file"
            )
        self._link = link
        self._table = table
        self._path = path
        self._place = place

    async def check(self, settles: bool = False) -> None:
        """See ``Joined.check``."""
        files, _ = await self._link.run("PRAGMA database_list")
        await self._link.check_inside()
        [main] = [file for _, schema, file in files if schema == "main"]
        if not _same_file(main, self._path):
            raise StoreMisconfiguredError(
                f"{self._link.name} has opened {main or 'a database in memory'!r}, but the store "
                f"of this app is {self._place}: a transaction cannot span both"
            )
        columns, _ = await self._link.run(f"PRAGMA main.table_info({self._table.name})")
        if not columns:
            raise missing_table(self._link, self._table.name, self._place)
        try:
            await self._link.run(self._table.touch)
        except Exception as error:
            if not any(is_busy(one) for one in causes(error)):
                raise
            raise StoreUnavailableError(
                f"{self._link.name} cannot write to {self._place} now: another connection writes, "
                "or has written since this transaction has read. Begin a transaction that writes "
                "with BEGIN IMMEDIATE; give the connection a longer timeout if others take long"
            ) from error

    async def get(self, group: str, key: str) -> Record | None:
        """See ``Joined.get``."""
        rows, _ = await self._link.run(self._table.select_one, group, key)
        return record_of(rows[0]) if rows else None

    async def make(self, write: Write, expect: int, now: int) -> int | None:
        """See ``JoinedTable.make``. No other transaction writes in between."""
        group, key, change, _, token = write
        current = await self.get(group, key)
        found = ABSENT if current is None else current.version
        if found != expect or (token is not None and (current is None or current.token != token)):
            return None
        version = next_version(expect, now)
        run = self._link.run
        if isinstance(change, Delete):
            await run(self._table.delete_one, group, key)
            return ABSENT
        if current is None:
            assert isinstance(change, Put)
            await run(self._table.insert_one, *insert_row(write, version))
        elif isinstance(change, Patch):
            await run(self._table.patch_one, version, *values_of(change), group, key)
        else:
            await run(self._table.put_one, version, *values_of(change), group, key)
        return version

    async def notify(self, groups: Collection[str]) -> None:
        """Does nothing: other connections notice that the file has changed."""


def _same_file(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:  # in memory, or gone
        return False
