"""Reads a table of 1.x in PostgreSQL, and puts the copy in its place.

One transaction locks the old table, checks that nothing was changed since it was copied, and swaps
the names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

from pyncette.migrate.copying import BATCH, Fingerprint, Layout
from pyncette.migrate.legacy import LegacyRow
from pyncette.migrate.tables import Tables, tables_of
from pyncette.postgres import PostgresOptions, postgres_repository
from pyncette.postgres.connection import Connection, close, connect, place_of, translated
from pyncette.store import Store

TABLE_NAME_CHARACTERS_MAX: Final = 55
"""So that the names of the copy, the old table and their indexes have at most 63 characters."""

LOCK_PATIENCE_S: Final = 10
"""How long the last step waits for other users of the old table; new users wait for it."""

# Instants as text: one that is out of the range of datetime must not prevent reading the others.
_INSTANT: Final = """\
CASE WHEN isfinite({0}) THEN to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US')
ELSE {0}::text END"""

# A page of all rows, by the primary key.
_PAGE: Final = f"""\
SELECT name, parent_name, {_INSTANT.format("execute_after")}, {_INSTANT.format("locked_until")},
    locked_by::text, task_spec::text
FROM {{table}}{{after}} ORDER BY name LIMIT {BATCH}"""

_COLUMNS: Final = """\
SELECT attname::text FROM pg_attribute
WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum"""

_LOCK: Final = """\
SET LOCAL lock_timeout = '{patience}s';
LOCK TABLE {current} IN ACCESS EXCLUSIVE MODE"""

# The indexes of the copy get the names that they would have had from the start.
_SWAP: Final = """\
ALTER TABLE {current} RENAME TO {old};
ALTER INDEX IF EXISTS {current}_pkey RENAME TO {old}_pkey;
ALTER TABLE {copy} RENAME TO {current};
ALTER INDEX {copy}_pkey RENAME TO {current}_pkey;
ALTER INDEX {copy}_due RENAME TO {current}_due;
ALTER INDEX {copy}_rare RENAME TO {current}_rare;"""


@asynccontextmanager
async def open_source(
    *,
    postgres_url: str,
    postgres_table_name: str = "pyncette_tasks",
    **_ignored: Any,
) -> AsyncIterator[PostgresSource]:
    """Connects to the database.

    Raises:
        ValueError: An option is not valid.
        StoreError: The server cannot be reached.
    """
    PostgresOptions(postgres_url=postgres_url, postgres_table_name=postgres_table_name)
    tables = tables_of(postgres_table_name, "postgres_table_name", TABLE_NAME_CHARACTERS_MAX)
    place = place_of(postgres_url)
    connection = await connect(postgres_url, place, named=False)
    try:
        yield PostgresSource(postgres_url, place, tables, connection)
    finally:
        await close(connection)


class PostgresSource:
    """See ``pyncette.migrate.copying.Source``."""

    def __init__(self, url: str, place: str, tables: Tables, connection: Connection) -> None:
        self.place = place
        self.kept = f"table '{tables.old}' in {place}"
        self._url = url
        self._tables = tables
        self._connection = connection

    async def look(self) -> Layout:
        return self._tables.layout(
            await self._columns(self._tables.current),
            await self._columns(self._tables.old),
            self.place,
            "postgres_table_name",
        )

    async def _columns(self, table: str) -> list[str]:
        return [row[0] for row in await self._fetch(_COLUMNS, table)]

    async def rows(self) -> AsyncIterator[list[LegacyRow]]:
        name: str | None = None
        while True:
            found = await self._fetch(
                _PAGE.format(
                    table=self._tables.current, after="" if name is None else " WHERE name > $1"
                ),
                *([] if name is None else [name]),
            )
            if not found:
                return
            name = found[-1][0]
            yield [LegacyRow(*row) for row in found]

    def target(self) -> AbstractAsyncContextManager[Store]:
        return postgres_repository(postgres_url=self._url, postgres_table_name=self._tables.copy)

    async def finish(self, copied: Fingerprint, records: int) -> bool:
        names = self._tables._asdict()
        await self._execute("BEGIN")
        try:
            await self._execute(_LOCK.format(**names, patience=LOCK_PATIENCE_S))
            now = Fingerprint()
            async for rows in self.rows():
                now.add(rows)
            [[there]] = await self._fetch(f"SELECT count(*) FROM {self._tables.copy}")
            complete = now == copied and there == records
            if complete:
                await self._execute(_SWAP.format(**names))
            elif there != records:
                # It may contain records that 1.x has removed since an interrupted migration.
                await self._execute(f"DROP TABLE {self._tables.copy}")
            await self._execute("COMMIT")
        except BaseException:
            self._connection.terminate()
            raise
        if complete:
            await self._execute(f"ANALYZE {self._tables.current}")
        return complete

    async def drop_old(self) -> bool:
        old = self._tables.old
        if not self._tables.check_old(await self._columns(old), self.place):
            return False
        await self._execute(f"DROP TABLE {old}")
        return True

    async def _fetch(self, statement: str, *parameters: Any) -> list[Any]:
        try:
            rows: list[Any] = await self._connection.fetch(statement, *parameters)
        except Exception as error:
            raise translated(error, self.place) from error
        return rows

    async def _execute(self, statement: str) -> None:
        try:
            await self._connection.execute(statement)
        except Exception as error:
            raise translated(error, self.place) from error
