"""Reads a table of 1.x in a SQLite file, and puts the copy in its place.

Both tables are in one file, so one transaction checks that nothing was changed since it was copied,
and swaps the names.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from pyncette.errors import StoreMisconfiguredError, StoreUnavailableError
from pyncette.migrate.copying import BATCH, Fingerprint, Layout, MigrationError
from pyncette.migrate.legacy import LegacyRow
from pyncette.migrate.tables import ROW_COLUMNS, Tables, tables_of
from pyncette.sqlite import MEMORY, sqlite_repository
from pyncette.sqlite.table import SqliteTable
from pyncette.store import Store

BUSY_TIMEOUT_S: Final = 10.0
"""How long to wait while another process keeps the file locked."""

TABLE_NAME_CHARACTERS_MAX: Final = 1_000


@asynccontextmanager
async def open_source(
    *,
    sqlite_database: str | os.PathLike[str],
    sqlite_table_name: str = "pyncette_tasks",
    **_ignored: Any,
) -> AsyncIterator[SqliteSource]:
    """Finds the file, and changes nothing in it.

    Raises:
        ValueError: An option is not valid.
        MigrationError: There is no such file.
    """
    database = os.fspath(sqlite_database)
    await asyncio.to_thread(_check_file, database)
    tables = tables_of(sqlite_table_name, "sqlite_table_name", TABLE_NAME_CHARACTERS_MAX)
    yield SqliteSource(database, tables)


class SqliteSource:
    """See ``pyncette.migrate.copying.Source``."""

    def __init__(self, database: str, tables: Tables) -> None:
        self.place = f"SQLite file '{database}'"
        self.kept = f"table '{tables.old}' in {self.place}"
        self._database = database
        self._tables = tables

    async def look(self) -> Layout:
        tables = self._tables

        def read() -> Layout:
            with self._connected("ro") as connection:
                return tables.layout(
                    _columns(connection, tables.current),
                    _columns(connection, tables.old),
                    self.place,
                    "sqlite_table_name",
                )

        return await asyncio.to_thread(read)

    async def rows(self) -> AsyncIterator[list[LegacyRow]]:
        def read(after: int | None) -> tuple[list[LegacyRow], int | None]:
            with self._connected("ro") as connection:
                return _page(connection, self._tables.current, after)

        after: int | None = None
        while True:
            rows, after = await asyncio.to_thread(read, after)
            if after is None:
                return
            yield rows

    def target(self) -> AbstractAsyncContextManager[Store]:
        return sqlite_repository(
            sqlite_database=self._database, sqlite_table_name=self._tables.copy
        )

    async def finish(self, copied: Fingerprint, records: int) -> bool:
        return await asyncio.to_thread(self._swap, copied, records)

    def _swap(self, copied: Fingerprint, records: int) -> bool:
        current, copy, old = self._tables
        with self._connected("rw") as connection:
            connection.execute("BEGIN IMMEDIATE")
            now = Fingerprint()
            after: int | None = None
            while True:
                rows, after = _page(connection, current, after)
                if after is None:
                    break
                now.add(rows)
            [there] = connection.execute(f"SELECT count(*) FROM {copy}").fetchone()
            if there != records:
                # It may contain records that 1.x has removed since an interrupted migration.
                connection.execute(f"DROP TABLE {copy}")
            if now != copied or there != records:
                connection.execute("COMMIT")
                return False
            # Indexes cannot be renamed.
            connection.execute(f"DROP INDEX {copy}_due")
            connection.execute(f"DROP INDEX {copy}_rare")
            connection.execute(f"ALTER TABLE {current} RENAME TO {old}")
            connection.execute(f"ALTER TABLE {copy} RENAME TO {current}")
            for statement in SqliteTable(current).schema:
                connection.execute(statement)
            connection.execute("COMMIT")
            return True

    async def drop_old(self) -> bool:
        old = self._tables.old

        def drop() -> bool:
            with self._connected("rw") as connection:
                if not self._tables.check_old(_columns(connection, old), self.place):
                    return False
                connection.execute(f"DROP TABLE {old}")
                return True

        return await asyncio.to_thread(drop)

    @contextmanager
    def _connected(self, mode: str) -> Iterator[sqlite3.Connection]:
        connection = None
        try:
            connection = sqlite3.connect(
                f"{Path(self._database).absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
            )
            # A text that is not UTF-8 must not prevent reading the rest of its row.
            connection.text_factory = _text
            yield connection
        except sqlite3.OperationalError as error:
            raise StoreUnavailableError(f"{self.place}: {error}") from error
        except sqlite3.Error as error:
            raise StoreMisconfiguredError(f"{self.place}: {error}") from error
        finally:
            if connection is not None:
                connection.close()


def _check_file(database: str) -> None:
    if database == MEMORY or not os.path.isfile(database):
        raise MigrationError(f"There is no SQLite file {database!r}")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def _page(
    connection: sqlite3.Connection, table: str, after: int | None
) -> tuple[list[LegacyRow], int | None]:
    """The rows that follow a rowid, and the last rowid; None if there are no more."""
    # Pages are not divided by name, because a name may have any value.
    rows = connection.execute(
        f"SELECT {ROW_COLUMNS}, rowid FROM {table} WHERE ? IS NULL OR rowid > ? "
        f"ORDER BY rowid LIMIT {BATCH}",
        (after, after),
    ).fetchall()
    # 1.x does not write an instant as a number.
    found = [
        LegacyRow(
            row[0],
            row[1],
            str(row[2]) if isinstance(row[2], (int, float)) else row[2],
            str(row[3]) if isinstance(row[3], (int, float)) else row[3],
            row[4],
            row[5],
        )
        for row in rows
    ]
    return found, rows[-1][6] if rows else None
