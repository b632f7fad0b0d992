"""Reads a table of 1.x in MySQL or MariaDB, and puts the copy in its place.

The server cannot rename tables in a transaction. So the copied data are compared with the current
data, and the next statement swaps both names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

from pyncette.migrate.copying import BATCH, Fingerprint, Layout
from pyncette.migrate.legacy import LegacyRow
from pyncette.migrate.tables import ROW_COLUMNS, Tables, tables_of
from pyncette.mysql import MysqlOptions, mysql_repository
from pyncette.mysql.connection import Connection, connect, query, server_of, translated
from pyncette.store import Store

TABLE_NAME_CHARACTERS_MAX: Final = 61
"""So that the names of the copy and of the old table have at most 64 characters."""

_COLUMNS: Final = """\
SELECT column_name FROM information_schema.columns
WHERE table_schema = DATABASE() AND table_name = '{table}'
    AND COALESCE(generation_expression, '') = '' ORDER BY ordinal_position"""

_OPTIONS: Final = tuple(
    f"mysql_{name}" for name in ("url", "host", "port", "user", "password", "database", "ssl")
)


@asynccontextmanager
async def open_source(
    *, mysql_table_name: str = "pyncette_tasks", **configuration: Any
) -> AsyncIterator[MysqlSource]:
    """Connects to the database.

    Raises:
        ValueError: An option is not valid.
        StoreError: The server cannot be reached.
    """
    given = {
        option: configuration[option]
        for option in _OPTIONS
        if configuration.get(option) is not None
    }
    options = MysqlOptions(**given, mysql_table_name=mysql_table_name)
    tables = tables_of(mysql_table_name, "mysql_table_name", TABLE_NAME_CHARACTERS_MAX)
    address = options.address()
    connection = await connect(address)
    try:
        server_of(connection.get_server_info(), address.place)
        # Renaming the table may have to wait for readers.
        await query(connection, "SET SESSION lock_wait_timeout = 10")
        yield MysqlSource(given, address.place, tables, connection)
    finally:
        connection.close()


class MysqlSource:
    """See ``pyncette.migrate.copying.Source``."""

    def __init__(
        self, options: dict[str, Any], place: str, tables: Tables, connection: Connection
    ) -> None:
        self.place = place
        self.kept = f"table '{tables.old}' in {place}"
        self._options = options
        self._tables = tables
        self._connection = connection

    async def look(self) -> Layout:
        return self._tables.layout(
            await self._columns(self._tables.current),
            await self._columns(self._tables.old),
            self.place,
            "mysql_table_name",
        )

    async def _columns(self, table: str) -> list[str]:
        return [row[0] for row in await self._query(_COLUMNS.format(table=table))]

    async def rows(self) -> AsyncIterator[list[LegacyRow]]:
        where = ""
        while True:
            found = await self._query(
                f"SELECT {ROW_COLUMNS} FROM {self._tables.current} {where} "
                f"ORDER BY name LIMIT {BATCH}"
            )
            if not found:
                return
            where = f"WHERE name > {self._connection.escape(found[-1][0])}"
            yield [LegacyRow(*row) for row in found]

    def target(self) -> AbstractAsyncContextManager[Store]:
        return mysql_repository(**self._options, mysql_table_name=self._tables.copy)

    async def finish(self, copied: Fingerprint, records: int) -> bool:
        current, copy, old = self._tables
        [[there]] = await self._query(f"SELECT count(*) FROM {copy}")
        if there != records:
            # It may contain records that 1.x has removed since an interrupted migration.
            await self._query(f"DROP TABLE {copy}")
            return False
        now = Fingerprint()
        async for rows in self.rows():
            now.add(rows)
        if now != copied:
            return False
        await self._query(f"RENAME TABLE {current} TO {old}, {copy} TO {current}")
        return True

    async def drop_old(self) -> bool:
        old = self._tables.old
        if not self._tables.check_old(await self._columns(old), self.place):
            return False
        await self._query(f"DROP TABLE {old}")
        return True

    async def _query(self, statement: str) -> Any:
        try:
            [result] = await query(self._connection, statement)
        except Exception as error:
            raise translated(error, self.place) from error
        return result
