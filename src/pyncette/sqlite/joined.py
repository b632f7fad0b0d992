"""The table in a SQLite file, in a transaction of the application.

SQLite lets one transaction write at a time. So the first thing is to become this one: what is read
then stays as it is. That is tried again and again, in the place of SQLite's own wait: this one
would block the thread, which may be that of the event loop, in which the one that writes goes on.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable, Callable, Collection

from pyncette.clock import realtime
from pyncette.connections import Dialect, Link
from pyncette.errors import StoreMisconfiguredError, StoreUnavailableError
from pyncette.sqlite.errors import is_busy
from pyncette.sqlite.table import SqliteTable, insert_row
from pyncette.sqlite.thread import BUSY_DEADLINE_S
from pyncette.sqlite.turns import pause
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
        settled: Lets the store's own calls that were made before go first.
    """

    seconds_max: float | None = BUSY_DEADLINE_S / 2

    def __init__(
        self,
        link: Link,
        table: SqliteTable,
        path: str | None,
        place: str,
        settled: Callable[[], Awaitable[None]],
    ) -> None:
        check_dialect(link, Dialect.SQLITE, place)
        if path is None:
            raise StoreMisconfiguredError(
                f"The store of this app is {place}, which no other connection can reach: use a file"
            )
        self._link = link
        self._table = table
        self._path = path
        self._place = place
        self._settled = settled

    async def begin(self) -> None:
        """See ``Joined.begin``. It waits for as long as the connection would wait for a lock."""
        await self._settled()
        began = realtime.monotonic()
        while True:
            try:
                await self._link.begin()
                return
            except Exception as error:
                if not any(is_busy(one) for one in causes(error)):
                    raise
                if realtime.monotonic() - began >= self._link.patience_s:
                    raise self._locked() from error
            await pause()

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
        run = self._link.run
        # The connection's own patience, while it does not wait by itself.
        rows, _ = await run("PRAGMA busy_timeout")
        patience_ms = rows[0][0]
        await run("PRAGMA busy_timeout = 0")
        try:
            await self._touched(patience_ms / 1000)
        finally:
            await run(f"PRAGMA busy_timeout = {patience_ms}")

    async def _touched(self, patience_s: float) -> None:
        """Becomes the transaction that writes.

        First of all: what has read cannot write any more once another one has written.
        """
        began = realtime.monotonic()
        while True:
            try:
                await self._link.run(self._table.touch)
                return
            except Exception as error:
                if not any(is_busy(one) for one in causes(error)):
                    columns, _ = await self._link.run(f"PRAGMA main.table_info({self._table.name})")
                    if not columns:
                        raise missing_table(self._link, self._table.name, self._place) from error
                    raise
                if _is_too_late(error) or realtime.monotonic() - began >= patience_s:
                    raise self._locked() from error
            await pause()

    def _locked(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"{self._link.name} cannot write to {self._place} now: another connection writes, "
            "or has written since this transaction has read. Begin a transaction that writes "
            "with BEGIN IMMEDIATE; give the connection a longer timeout if others take long"
        )

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


def _is_too_late(error: BaseException) -> bool:
    """Returns whether the transaction has read what another one has changed since."""
    codes = (getattr(one, "sqlite_errorcode", 0) for one in causes(error))
    return sqlite3.SQLITE_BUSY_SNAPSHOT in codes


def _same_file(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:  # in memory, or gone
        return False
