"""The store in a MySQL or MariaDB database.

This module reads the options and opens the store: it checks the server, and creates the table. The
calls on the table are in ``pyncette.mysql.table``, the connections in
``pyncette.mysql.connection``. ``pyncette.store.sql.store`` decides which connection makes which
call.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pyncette.connections import Dialect, Link
from pyncette.errors import StoreMisconfiguredError
from pyncette.mysql.connection import (
    Address,
    Connection,
    LentConnections,
    OwnConnections,
    PlainConnections,
    PlainlyLent,
    database_of,
    driver_of,
    server_of,
)
from pyncette.mysql.history import TABLE_NAME_CHARACTERS_MAX as HISTORY_NAME_CHARACTERS_MAX
from pyncette.mysql.history import MysqlHistory
from pyncette.mysql.history import history_schema_sql as _history_schema_sql
from pyncette.mysql.joined import JoinedMysql
from pyncette.mysql.sql import schema_sql as _schema_sql
from pyncette.mysql.table import MysqlTable
from pyncette.options import check_flag, store_factory, whole_number
from pyncette.store.sql.joined import check_dialect
from pyncette.store.sql.pool import Pool
from pyncette.store.sql.rows import check_layout, check_table_name
from pyncette.store.sql.store import POOL_SIZE_MIN, SqlStore

DEFAULT_PORT: Final = 3306
TABLE_NAME_CHARACTERS_MAX: Final = 64

_SCHEMES: Final = ("mysql", "mariadb")


@dataclass(frozen=True, kw_only=True)
class MysqlOptions:
    """The options of the store.

    Attributes:
        mysql_url: ``mysql://user:password@host:port/database``; ``?ssl=true`` encrypts and checks
            the server's certificate, ``?ssl_ca=FILE`` does so with your own authority. The other
            options override the URL.
        mysql_host: Name or address of the server; a path that begins with a slash is its socket.
        mysql_port: The port; 3306 by default.
        mysql_user: The user to log in as.
        mysql_password: The password; None: no password.
        mysql_database: The database with the table.
        mysql_table_name: The table; created if it is missing.
        mysql_skip_table_create: Never create the table, see ``schema_sql``.
        mysql_pool_size: Maximum number of connections; at least 3.
        mysql_ssl: Encrypts the connections. By default they are not encrypted, unless the URL asks
            for it.
        mysql_pool: An ``asyncmy.Pool`` of the application, used instead of an address. It stays
            open. The store keeps two of its connections.

    Raises:
        ValueError: An option is not valid.
    """

    mysql_url: str | None = field(default=None, repr=False)
    mysql_host: str | None = None
    mysql_port: int | None = None
    mysql_user: str | None = None
    mysql_password: str | None = field(default=None, repr=False)
    mysql_database: str | None = None
    mysql_table_name: str = "pyncette_tasks"
    mysql_skip_table_create: bool = False
    mysql_pool_size: int = 10
    mysql_ssl: ssl.SSLContext | None = None
    mysql_pool: Any = None

    def __post_init__(self) -> None:
        check_table_name("mysql_table_name", self.mysql_table_name, TABLE_NAME_CHARACTERS_MAX)
        check_flag("mysql_skip_table_create", self.mysql_skip_table_create)
        whole_number("mysql_pool_size", self.mysql_pool_size, POOL_SIZE_MIN, 1_000)
        if self.mysql_port is not None:
            whole_number("mysql_port", self.mysql_port, 1, 65_535)
        if self.mysql_ssl is not None and not isinstance(self.mysql_ssl, ssl.SSLContext):
            raise ValueError(f"mysql_ssl must be an ssl.SSLContext, not {self.mysql_ssl!r}")
        pool = self.mysql_pool
        if pool is None:
            self.address()
            return
        size = getattr(pool, "maxsize", None)
        if not callable(getattr(pool, "acquire", None)) or not isinstance(size, int):
            raise ValueError(f"mysql_pool must be an asyncmy.Pool, not {type(pool).__name__}")
        whole_number("the maxsize of mysql_pool", size, POOL_SIZE_MIN, 1_000_000)

    def address(self) -> Address:
        """Returns where to connect to.

        Raises:
            ValueError: No option says it.
        """
        url = SplitResult("", "", "", "", "") if self.mysql_url is None else _parsed(self.mysql_url)
        port = url.port if self.mysql_port is None else self.mysql_port
        password = self.mysql_password
        if password is None and url.password is not None:
            password = unquote(url.password)
        return Address(
            _given("mysql_host", self.mysql_host, url.hostname),
            DEFAULT_PORT if port is None else port,
            _given("mysql_user", self.mysql_user, url.username),
            password,
            _given("mysql_database", self.mysql_database, url.path[1:]),
            self.mysql_ssl or _tls_of(url),
        )


def _given(option: str, value: Any, of_url: str | None) -> str:
    value = unquote(of_url) if value is None and of_url else value
    if not isinstance(value, str) or not value:
        raise ValueError(f"{option} is required (or mysql_url with that in it), not {value!r}")
    return value


def _parsed(url: Any) -> SplitResult:
    # The message does not quote the URL, because it may contain a password.
    problem = "it is not text"
    if isinstance(url, str):
        try:
            parts = urlsplit(url)
            if parts.scheme in _SCHEMES and (parts.port is None or parts.port > 0):
                return parts
            problem = "it must begin with mysql:// or mariadb://"
        except ValueError:
            problem = "what is special in user or password must be percent-encoded"
    raise ValueError(
        f"mysql_url must look like mysql://user:***@host:port/database: {problem}"
    ) from None


def _tls_of(url: SplitResult) -> ssl.SSLContext | None:
    """The encryption that a URL asks for: ``?ssl=true``, ``?ssl_ca=FILE`` or none."""
    options = dict(parse_qsl(url.query, keep_blank_values=True))
    wanted = options.pop("ssl", "true" if "ssl_ca" in options else "false")
    authority = options.pop("ssl_ca", None)
    if options or wanted not in ("true", "false"):
        raise ValueError(
            "mysql_url may end in ?ssl=true, ?ssl=false or ?ssl_ca=FILE, and in nothing else"
        )
    if wanted == "false":
        return None
    try:
        return ssl.create_default_context(cafile=authority)
    except OSError as error:
        raise ValueError(f"ssl_ca of mysql_url: {authority!r} cannot be read: {error}") from error


@store_factory(MysqlOptions)
def mysql_repository(options: MysqlOptions) -> SqlStore:
    """Opens a store in a MySQL or MariaDB database; see ``MysqlOptions`` for the keywords.

    Raises:
        ValueError: An option is not valid.
        StoreMisconfiguredError: The server refuses the login, is older than MySQL 8.0 or MariaDB
            10.6, or the table is missing or was not created by Pyncette.
        StoreUnavailableError: The server cannot be reached.
    """
    table = MysqlTable(options.mysql_table_name)
    server = _Server(options, table)
    lender = options.mysql_pool
    size = options.mysql_pool_size if lender is None else lender.maxsize
    history = MysqlHistory(table.name, server.place, not options.mysql_skip_table_create)
    return SqlStore(table, server.pool, size, server.open, server.join, server.lend, history)


def schema_sql(table_name: str = "pyncette_tasks") -> str:
    """The statement that creates the table and its index.

    Raises:
        ValueError: The name is not a lower-case ASCII identifier.
    """
    return _schema_sql(check_table_name("table_name", table_name))


def history_schema_sql(table_name: str = "pyncette_tasks") -> str:
    """The statements that create the tables of the run history.

    Args:
        table_name: The name of the table of the records.

    Raises:
        ValueError: The name is not a lower-case ASCII identifier, or is too long.
    """
    check_table_name("table_name", table_name, HISTORY_NAME_CHARACTERS_MAX)
    return _history_schema_sql(table_name)


class _Server:
    """Connects to the server and checks it; makes the pools."""

    def __init__(self, options: MysqlOptions, table: MysqlTable) -> None:
        self._options = options
        self._table = table
        lent = options.mysql_pool is not None
        self.place = "MySQL" if lent else options.address().place
        self._database: str | None = None

    def pool(self, size: int, kept: int) -> Pool:
        """A pool with this maximum number of connections."""
        driver = driver_of(self.place)
        lender = self._options.mysql_pool
        if lender is not None:
            return Pool(self.place, size, kept, LentConnections(self.place, lender), driver)
        return Pool(self.place, size, size, OwnConnections(self._options.address()), driver)

    def lend(self, size: int) -> Pool:
        """A pool whose sessions have no settings of the store."""
        driver = driver_of(self.place)
        lender = self._options.mysql_pool
        if lender is not None:
            return Pool(self.place, max(size - 1, 1), 0, PlainlyLent(lender), driver)
        return Pool(self.place, size, 0, PlainConnections(self._options.address()), driver)

    async def open(self, users: Pool) -> None:
        """See ``pyncette.store.sql.store.SqlStore``. These servers send no notifications."""
        await users.run(self._prepare)

    async def join(self, users: Pool, link: Link) -> JoinedMysql:
        """See ``pyncette.store.sql.store.SqlStore``."""
        check_dialect(link, Dialect.MYSQL, self.place)
        if self._database is None:
            self._database = await users.run(database_of, reads=True)
        return JoinedMysql(link, self._table.name, self._database, self.place)

    async def _prepare(self, connection: Connection) -> None:
        if server_of(connection.get_server_info(), self.place).mariadb:
            self._table.use_mariadb()
        columns, engine = await self._table.layout(connection)
        if not columns and not self._options.mysql_skip_table_create:
            await self._table.make(connection)
            columns, engine = await self._table.layout(connection)
        check_layout(columns, self._table.name, self.place, "mysql")
        if engine != "InnoDB":
            raise StoreMisconfiguredError(
                f"Table '{self._table.name}' in {self.place} is kept by the engine {engine}, "
                "which cannot lock single rows; it must be InnoDB"
            )
        await self._table.check_indexes(connection)
