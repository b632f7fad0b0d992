"""The store in a PostgreSQL database.

This module reads the options and opens the store: it checks the server, and creates the table. The
calls on the table are in ``pyncette.postgres.table``, the connections in
``pyncette.postgres.connection``. ``pyncette.store.sql.store`` decides which connection makes which
call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from pyncette.connections import Dialect, Link
from pyncette.errors import StoreMisconfiguredError
from pyncette.options import check_flag, store_factory, whole_number
from pyncette.postgres.connection import (
    Connection,
    LentConnections,
    OwnConnections,
    close,
    connect,
    driver_of,
    is_pooled,
    listen,
    place_of,
    set_up,
    translated,
)
from pyncette.postgres.history import TABLE_NAME_CHARACTERS_MAX as HISTORY_NAME_CHARACTERS_MAX
from pyncette.postgres.history import PostgresHistory
from pyncette.postgres.history import history_schema_sql as _history_schema_sql
from pyncette.postgres.joined import JoinedPostgres
from pyncette.postgres.sql import schema_sql as _schema_sql
from pyncette.postgres.table import PostgresTable
from pyncette.store.sql.joined import check_dialect
from pyncette.store.sql.listener import Listener
from pyncette.store.sql.pool import Pool
from pyncette.store.sql.rows import check_layout, check_table_name
from pyncette.store.sql.store import POOL_SIZE_MIN, SqlStore

OLDEST_POSTGRES: Final = 13
TABLE_NAME_CHARACTERS_MAX: Final = 59
"""The maximum, since a name in PostgreSQL has 63 bytes and that of the index is longer."""


@dataclass(frozen=True, kw_only=True)
class PostgresOptions:
    """The options of the store.

    Attributes:
        postgres_url: Required, unless a pool is given. The options of libpq in a URL are accepted,
            including ``sslmode`` and the other options of TLS. With a pool it is only used in
            messages and to listen.
        postgres_table_name: The table; created if it is missing.
        postgres_skip_table_create: Never create the table, see ``schema_sql``.
        postgres_pool_size: Maximum number of connections, without the one that listens; at least 3.
        postgres_listen_url: Where to listen for notifications, if ``postgres_url`` is the address
            of a pooler that does not keep sessions. Without it, such a worker polls.
        postgres_pool: An ``asyncpg.Pool`` of the application, which stays open. The store listens
            only if a URL is given, too.

    Raises:
        ValueError: An option is not valid.
    """

    postgres_url: str | None = field(default=None, repr=False)
    postgres_table_name: str = "pyncette_tasks"
    postgres_skip_table_create: bool = False
    postgres_pool_size: int = 10
    postgres_listen_url: str | None = field(default=None, repr=False)
    postgres_pool: Any = None

    def __post_init__(self) -> None:
        pool = self.postgres_pool
        if self.postgres_url is not None or pool is None:
            _check_url("postgres_url", self.postgres_url)
        if self.postgres_listen_url is not None:
            _check_url("postgres_listen_url", self.postgres_listen_url)
        check_table_name("postgres_table_name", self.postgres_table_name, TABLE_NAME_CHARACTERS_MAX)
        check_flag("postgres_skip_table_create", self.postgres_skip_table_create)
        whole_number("postgres_pool_size", self.postgres_pool_size, POOL_SIZE_MIN, 1_000)
        if pool is not None and not callable(getattr(pool, "acquire", None)):
            raise ValueError(f"postgres_pool must be an asyncpg.Pool, not {type(pool).__name__}")


def _check_url(option: str, url: Any) -> None:
    if not isinstance(url, str) or not url.startswith(("postgresql://", "postgres://")):
        # The message does not quote the URL, because it may contain a password.
        raise ValueError(
            f"{option} must be a URL that begins with postgresql:// or postgres://"
            + ("" if isinstance(url, str) else f", not {url!r}")
        )


@store_factory(PostgresOptions)
def postgres_repository(options: PostgresOptions) -> SqlStore:
    """Opens a store in a PostgreSQL database; see ``PostgresOptions`` for the keywords.

    Raises:
        ValueError: An option is not valid.
        StoreMisconfiguredError: The server refuses the login, is older than PostgreSQL 13, or the
            table is missing or was not created by Pyncette.
        StoreUnavailableError: The server cannot be reached.
    """
    table = PostgresTable(options.postgres_table_name)
    server = _Server(options, table)
    lender = options.postgres_pool
    size = options.postgres_pool_size if lender is None else lender.get_max_size()
    history = PostgresHistory(table.name, server.place, not options.postgres_skip_table_create)
    return SqlStore(table, server.pool, size, server.open, server.join, server.lend, history)


def schema_sql(table_name: str = "pyncette_tasks") -> str:
    """The statements that create the table and its index.

    Raises:
        ValueError: The name is not a lower-case ASCII identifier.
    """
    return _schema_sql(check_table_name("table_name", table_name))


def history_schema_sql(table_name: str = "pyncette_tasks") -> str:
    """The statements that create the tables of the run history and their indexes.

    Args:
        table_name: The name of the table of the records.

    Raises:
        ValueError: The name is not a lower-case ASCII identifier, or is too long.
    """
    check_table_name("table_name", table_name, HISTORY_NAME_CHARACTERS_MAX)
    return _history_schema_sql(table_name)


class _Server:
    """Connects to the server and checks it; makes the pools; listens."""

    def __init__(self, options: PostgresOptions, table: PostgresTable) -> None:
        self._options = options
        self._table = table
        self.place = place_of(options.postgres_url or "")
        # Whether there is a pooler that shares sessions.
        self._pooled = False
        # The schema of the table, and the database: where they are does not change.
        self._located: tuple[str, str] | None = None

    def pool(self, size: int, kept: int) -> Pool:
        """A pool with this maximum number of connections."""
        driver = driver_of(self.place)
        lender = self._options.postgres_pool
        if lender is not None:
            return Pool(self.place, size, 0, LentConnections(lender), driver)
        return Pool(self.place, size, size, OwnConnections(self._connect), driver)

    def lend(self, size: int) -> Pool:
        """A pool whose sessions have no settings of the store."""
        driver = driver_of(self.place)
        lender = self._options.postgres_pool
        if lender is not None:
            return Pool(self.place, max(size - 1, 1), 0, LentConnections(lender), driver)
        return Pool(self.place, size, 0, OwnConnections(self._connect_plainly), driver)

    async def open(self, users: Pool) -> Listener | None:
        """See ``pyncette.store.sql.store.SqlStore``."""
        if self._options.postgres_pool is None:
            await self._look_for_a_pooler(users)
        await users.run(self._prepare)
        url = self._options.postgres_listen_url
        if url is None and not self._pooled:
            url = self._options.postgres_url
        if url is None:
            return None
        place = place_of(url)
        open_one = partial(connect, url, place, named=False)
        return Listener(place, partial(listen, open_one, self._table.name))

    async def join(self, users: Pool, link: Link) -> JoinedPostgres:
        """See ``pyncette.store.sql.store.SqlStore``."""
        check_dialect(link, Dialect.POSTGRES, self.place)
        if self._located is None:
            self._located = await users.run(self._table.locate, reads=True)
        return JoinedPostgres(link, self._table.name, *self._located, self.place)

    async def _connect_plainly(self) -> Connection:
        url = self._options.postgres_url or ""
        return await connect(url, self.place, named=not self._pooled)

    async def _connect(self) -> Connection:
        connection = await self._connect_plainly()
        return connection if self._pooled else await set_up(connection, self.place)

    async def _look_for_a_pooler(self, users: Pool) -> None:
        connection = await connect(self._options.postgres_url or "", self.place, named=True)
        try:
            self._pooled = await is_pooled(connection)
        except BaseException as error:
            connection.terminate()
            if isinstance(error, Exception):
                raise translated(error, self.place) from error
            raise
        if self._pooled:
            await close(connection)
        else:
            await users.keep(await set_up(connection, self.place))

    async def _prepare(self, connection: Connection) -> None:
        version = connection.get_server_version()
        if version.major < OLDEST_POSTGRES:
            raise StoreMisconfiguredError(
                f"{self.place} is PostgreSQL {version.major}.{version.minor}, which is too old: "
                f"at least {OLDEST_POSTGRES} is needed"
            )
        encoding = getattr(connection.get_settings(), "server_encoding", "UTF8")
        if encoding != "UTF8":
            raise StoreMisconfiguredError(
                f"{self.place} holds its texts in {encoding}; names may need any character of UTF8"
            )
        columns = await self._table.columns(connection)
        if not columns and not self._options.postgres_skip_table_create:
            await self._table.make(connection)
            columns = await self._table.columns(connection)
        check_layout(columns, self._table.name, self.place, "postgres")
