"""The store in a SQLite database: in memory, or a file that several processes share.

This module opens the database and passes each call to the thread that owns the connection
(``pyncette.sqlite.thread``). The thread runs all queued calls in one transaction. The statements
are in ``pyncette.sqlite.table``.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from pyncette.clock import realtime
from pyncette.connections import Do, Link
from pyncette.errors import StoreMisconfiguredError, StoreUnavailableError
from pyncette.options import one_of
from pyncette.sqlite.errors import is_busy
from pyncette.sqlite.history import SqliteHistory
from pyncette.sqlite.joined import JoinedSqlite
from pyncette.sqlite.table import SqliteTable
from pyncette.sqlite.thread import BUSY_DEADLINE_S, ConnectionThread
from pyncette.sqlite.turns import Turns
from pyncette.store import (
    Claimed,
    Counted,
    Filter,
    Identity,
    Key,
    Page,
    Result,
    Source,
    WakeCallback,
    Write,
)
from pyncette.store.record import Record
from pyncette.store.sql.joined import Joined
from pyncette.store.sql.rows import check_table_name

MEMORY: Final = ":memory:"
OLDEST_SQLITE: Final = (3, 35, 0)
JOURNAL_BYTES_MAX: Final = 64 * 1024 * 1024
"""The size to which a write-ahead log is truncated when it starts again from its beginning."""

OWN_CALLS_S: Final = 0.2
"""How long a transaction of a run lets the store's own calls go first."""

_SYNCHRONOUS: Final = ("NORMAL", "FULL")


@dataclass(frozen=True)
class SqliteOptions:
    """The options of the store.

    Attributes:
        database: Path of the file, or ``:memory:``.
        table_name: The table; created if it is missing.
        synchronous: ``FULL``: acknowledged writes survive a crash of the machine. ``NORMAL``: they
            survive a crash of the process, but the last writes before a crash of the machine may
            be lost. The file stays valid in both cases.

    Raises:
        ValueError: An option is not valid.
    """

    database: str = MEMORY
    table_name: str = "pyncette_tasks"
    synchronous: str = "FULL"

    def __post_init__(self) -> None:
        if not isinstance(self.database, str) or not self.database or "\0" in self.database:
            raise ValueError(
                f"sqlite_database must be the path of a file or {MEMORY!r}, not {self.database!r}"
            )
        check_table_name("sqlite_table_name", self.table_name)
        one_of("sqlite_synchronous", self.synchronous, _SYNCHRONOUS)


@asynccontextmanager
async def sqlite_repository(
    *,
    sqlite_database: str | os.PathLike[str] = MEMORY,
    sqlite_table_name: str = "pyncette_tasks",
    sqlite_synchronous: str = "FULL",
    **_ignored: Any,
) -> AsyncIterator[SqliteStore]:
    """Opens a store in a SQLite database.

    Args:
        sqlite_database: Path of the file, which is created if it is missing; or ``:memory:``: each
            context has its own database, which is lost when the context closes.
        sqlite_table_name: The table; created if it is missing.
        sqlite_synchronous: ``NORMAL`` or ``FULL``, see ``SqliteOptions``.

    Raises:
        ValueError: An option is not valid.
        StoreMisconfiguredError: The file cannot be used, Pyncette did not create its table, or
            SQLite is older than 3.35.
        StoreUnavailableError: Another process keeps the file locked.
    """
    if isinstance(sqlite_database, os.PathLike):
        sqlite_database = os.fspath(sqlite_database)
    options = SqliteOptions(sqlite_database, sqlite_table_name, sqlite_synchronous)
    store = SqliteStore(options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def schema_sql(table_name: str = "pyncette_tasks") -> str:
    """Returns the statements that create the table and its index.

    Raises:
        ValueError: The name is not a lower-case ASCII identifier.
    """
    table = SqliteTable(check_table_name("table_name", table_name))
    return ";\n".join(table.schema) + ";\n"


class SqliteStore:
    """See ``pyncette.store.Store``. Made by ``sqlite_repository``.

    Attributes:
        history: The run history, see ``pyncette.store.history``.
    """

    def __init__(self, options: SqliteOptions) -> None:
        self._options = options
        # Absolute: the process may change its directory, and the file may have to be opened again.
        self._path = None if options.database == MEMORY else os.path.abspath(options.database)
        self._place = (
            "SQLite in memory" if self._path is None else f"SQLite file '{options.database}'"
        )
        self._table = SqliteTable(options.table_name)
        self._found = False
        self._watches: list[_Watch] = []
        self._turns = Turns()
        self._thread = ConnectionThread(
            self._place,
            self._connect,
            self._path,
            options.synchronous.upper(),
            self._changed,
        )
        self.history: SqliteHistory = SqliteHistory(
            self._thread.call, options.table_name, self._place
        )

    async def open(self) -> None:
        """Opens the database and creates the table if it is missing."""
        await self._thread.open()

    async def close(self) -> None:
        """Completes the queued calls and closes the database."""
        self._watches.clear()
        await self._thread.close()

    async def claim(
        self,
        sources: Sequence[Source],
        limit: int,
        now: int,
        token: str,
        repeated: bool = False,
        *,
        bounded: bool = False,
        unfinished_max: int | None = None,
    ) -> Claimed:
        """See ``pyncette.store.Store.claim``.

        ``bounded`` is ignored: this store uses the machine's clock, from which ``now`` was read.
        """

        def read(connection: sqlite3.Connection) -> Claimed | None:
            next_due = self._table.next_due(connection, sources)
            if limit > 0 and (repeated or _any_due(sources, next_due, now)):
                return None
            return Claimed([], next_due)

        def write(connection: sqlite3.Connection) -> Claimed:
            return self._table.claim(
                connection, sources, limit, now, token, repeated, unfinished_max
            )

        # Where a claim found something, the next one probably does, and need not look first. A
        # claim need not wait for the disk: a crash of the machine also ends the workers that hold
        # its leases, and outcomes of the claimed runs are never written without the claim.
        answer: Claimed = await self._thread.call(
            None if self._found and limit > 0 else read, write, urgent=True, durable=False
        )
        self._found = bool(answer.records)
        return answer

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        urgent = any(write.token is not None for write in batch)
        results: list[Result] = await self._thread.call(
            None, lambda connection: self._table.write(connection, batch, now), urgent
        )
        if wake:
            for watch in list(self._watches):
                watch.wake(wake)
        return results

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        records: list[Record | None] = await self._thread.call(
            lambda connection: self._table.get(connection, identities), None, urgent=False
        )
        return records

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        page: Page = await self._thread.call(
            lambda connection: self._table.scan(connection, group, where, cursor, limit),
            None,
            urgent=False,
        )
        return page

    async def count(self, group: str, where: Filter, limit: int) -> Counted:
        counted: Counted = await self._thread.call(
            lambda connection: self._table.count(connection, group, where, limit),
            None,
            urgent=False,
        )
        return counted

    async def now(self) -> int | None:
        return None

    async def joined(self, link: Link) -> Joined:
        """Returns the calls of this store on a connection of the application.

        Raises:
            TypeError: It is connected to another kind of database.
            StoreMisconfiguredError: The store is in memory.
        """
        return JoinedSqlite(link, self._table, self._path, self._place, self._settled)

    def turn(self, still: Callable[[], None]) -> AbstractAsyncContextManager[None]:
        """Waits until a transaction of a run may begin; see ``pyncette.sqlite.turns``.

        Args:
            still: Raises an error if it makes no sense to wait any longer.
        """
        return self._turns.turn(still)

    async def _settled(self) -> None:
        """Lets the calls that were made before go first, unless another process holds them up."""
        with suppress(TimeoutError, StoreUnavailableError):
            async with realtime.timeout(OWN_CALLS_S):
                await self._thread.call(lambda _: True, None, urgent=True)

    @asynccontextmanager
    async def lent(self, do: Do) -> AsyncIterator[sqlite3.Connection]:
        """Lends a connection to the file, for a transaction of a run.

        Raises:
            StoreMisconfiguredError: The store is in memory.
        """
        path = self._path
        if path is None:
            raise StoreMisconfiguredError(
                f"{self._place} has a single connection: use a file to have transactions in it"
            )
        # It waits for others as long as they wait for it.
        connection = await do(
            lambda: sqlite3.connect(
                path,
                timeout=BUSY_DEADLINE_S,
                isolation_level=None,
                # One that was lent to a function in a thread, which has left it open, is closed in
                # the event loop.
                check_same_thread=False,
            )
        )
        try:
            await do(
                lambda: connection.execute(f"PRAGMA synchronous = {self._options.synchronous}")
            )
            yield connection
        finally:
            await do(connection.close)

    async def watch(self, groups: Collection[str], on_wake: WakeCallback) -> _Watch:
        watch = _Watch(groups, on_wake, self._forget)
        self._watches.append(watch)
        self._thread.watch(True)
        return watch

    def _forget(self, watch: _Watch) -> None:
        if watch in self._watches:
            self._watches.remove(watch)
            self._thread.watch(bool(self._watches))

    def _changed(self) -> None:
        for watch in list(self._watches):
            watch.wake(None)

    # What follows runs in the thread.

    def _connect(self, making: bool) -> sqlite3.Connection:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise StoreMisconfiguredError(
                f"SQLite {sqlite3.sqlite_version} is too old: at least "
                f"{'.'.join(map(str, OLDEST_SQLITE))} is needed"
            )
        options = self._options
        reason = None if self._path is None else _why_unusable(self._path, making)
        if reason is not None:
            raise StoreMisconfiguredError(f"{self._place} cannot be opened: {reason}")
        connection = None
        try:
            if self._path is None:
                connection = sqlite3.connect(MEMORY, timeout=0, isolation_level=None)
            else:
                mode = "rwc" if making else "rw"
                connection = sqlite3.connect(
                    f"file:{_uri_path(self._path)}?mode={mode}",
                    timeout=0,
                    isolation_level=None,
                    uri=True,
                )
            if not making and not self._table.is_complete(connection, self._place):
                raise StoreMisconfiguredError(
                    f"{self._place} has no table '{options.table_name}', or not its index"
                )
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if self._path is not None and mode != "wal":
                raise StoreMisconfiguredError(
                    f"{self._place} cannot have a write-ahead log: its journal mode stays '{mode}'"
                )
            encoding = connection.execute("PRAGMA encoding").fetchone()[0]
            if encoding != "UTF-8":
                raise StoreMisconfiguredError(
                    f"{self._place} holds its texts in {encoding}; only UTF-8 keeps keys in order"
                )
            connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_BYTES_MAX}")
            connection.execute("SELECT count(*) FROM json_each('[]')")
            if making:
                self._table.make(connection, self._place)
            return connection
        except BaseException as error:
            if connection is not None:
                connection.close()
            if not isinstance(error, sqlite3.Error) or is_busy(error):
                raise
            raise StoreMisconfiguredError(f"{self._place} cannot be opened: {error}") from error


class _Watch:
    def __init__(
        self, groups: Collection[str], on_wake: WakeCallback, forget: Callable[[_Watch], None]
    ) -> None:
        self._groups = frozenset(groups)
        self._on_wake = on_wake
        self._forget = forget

    def wake(self, groups: Collection[str] | None) -> None:
        concerned = None if groups is None else self._groups.intersection(groups)
        if concerned is None or concerned:
            self._on_wake(concerned)

    def close(self) -> None:
        self._forget(self)


def _any_due(sources: Iterable[Source], next_due: Iterable[int | None], now: int) -> bool:
    return any(
        due_at is not None and due_at <= (now if isinstance(source, Key) else source.before)
        for source, due_at in zip(sources, next_due, strict=True)
    )


def _why_unusable(database: str, making: bool) -> str | None:
    """Returns why the file cannot be used; None if it can be used or created.

    Without this check, SQLite would open a file that is not writable, and fail later.
    """
    directory = os.path.dirname(database)
    if os.path.isdir(database):
        return "it is a directory"
    if not os.path.isdir(directory):
        return f"the directory '{directory}' does not exist"
    if not making and not os.path.exists(database):
        return "there is no such file"
    if os.path.exists(database) and not _may(database, os.R_OK | os.W_OK):
        return "no permission to read and write it"
    if not _may(directory, os.W_OK | os.X_OK):
        return f"no permission to write to its directory '{directory}', where its log has to be"
    return None


def _uri_path(path: str) -> str:
    """Quotes a path in a URI, without urllib, which takes longer to import than all of SQLite."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _may(path: str, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
