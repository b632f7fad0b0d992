"""The store in a MySQL or MariaDB database.

This module reads the options, opens the connections and hands each call to one of them: claims
and outcomes of runs have a connection each, so that they never wait behind what users ask for.
The statements are in ``pyncette.mysql.table``, the connections in
``pyncette.mysql.connection``.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pyncette.errors import StoreMisconfiguredError
from pyncette.mysql.connection import (
    Address,
    Connection,
    Connections,
    LentConnections,
    OwnConnections,
    query,
    server_of,
)
from pyncette.mysql.sql import schema_sql as _schema_sql
from pyncette.mysql.table import MysqlTable
from pyncette.options import whole_number
from pyncette.store import (
    Claimed,
    Filter,
    Identity,
    Page,
    Result,
    Source,
    WakeCallback,
    Watch,
    Write,
)
from pyncette.store.record import Record
from pyncette.store.sql.rows import COLUMNS, check_table_name, describe_foreign_table

DEFAULT_PORT: Final = 3306
TABLE_NAME_CHARACTERS_MAX: Final = 64

RESERVED: Final = 2
"""Connections that users' calls do not get: one for claims, one for the outcomes of runs."""

_SCHEMES: Final = ("mysql", "mariadb")
_NOW: Final = "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"


@dataclass(frozen=True)
class MysqlOptions:
    """The options of the store.

    Attributes:
        url: ``mysql://user:password@host:port/database``, in place of the five that follow, or
            for those of them that are None.
        host: Name or address of the server, or the path of its socket.
        port: 3306 where it is None.
        user: As whom to log in.
        password: None: without one.
        database: In which the table is.
        table_name: The table; made where it is missing.
        skip_table_create: Never make it.
        pool_size: Most connections that are opened.
        ssl: With what the connections are encrypted; None: they are not.
        pool: An ``asyncmy.Pool`` of the application's, in place of connections of our own.

    Raises:
        ValueError: One of them makes no sense.
    """

    url: str | None = field(default=None, repr=False)
    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: str | None = None
    table_name: str = "pyncette_tasks"
    skip_table_create: bool = False
    pool_size: int = 10
    ssl: ssl.SSLContext | None = None
    pool: Any = None

    def __post_init__(self) -> None:
        check_table_name("mysql_table_name", self.table_name)
        if len(self.table_name) > TABLE_NAME_CHARACTERS_MAX:
            raise ValueError(
                f"Table name {self.table_name!r} (mysql_table_name) must have at most "
                f"{TABLE_NAME_CHARACTERS_MAX} characters"
            )
        whole_number("mysql_pool_size", self.pool_size, RESERVED + 1, 1_000)
        if self.port is not None:
            whole_number("mysql_port", self.port, 1, 65_535)
        if self.ssl is not None and not isinstance(self.ssl, ssl.SSLContext):
            raise ValueError(f"mysql_ssl must be an ssl.SSLContext, not {self.ssl!r}")
        if self.pool is None:
            self.address()
            return
        size = getattr(self.pool, "maxsize", None)
        if not callable(getattr(self.pool, "acquire", None)) or not isinstance(size, int):
            raise ValueError(f"mysql_pool must be an asyncmy.Pool, not {type(self.pool).__name__}")
        whole_number("the maxsize of mysql_pool", size, RESERVED + 1, 1_000_000)

    def address(self) -> Address:
        """Where to connect to.

        Raises:
            ValueError: It is not known.
        """
        url = SplitResult("", "", "", "", "") if self.url is None else _parsed(self.url)
        port = url.port if self.port is None else self.port
        password = url.password if self.password is None else self.password
        return Address(
            _given("mysql_host", self.host, url.hostname),
            DEFAULT_PORT if port is None else port,
            _given("mysql_user", self.user, url.username),
            None if password is None else unquote(password) if self.password is None else password,
            _given("mysql_database", self.database, url.path[1:]),
            self.ssl or _tls_of(url),
        )


def _given(option: str, value: Any, of_url: str | None) -> str:
    value = unquote(of_url) if value is None and of_url else value
    if not isinstance(value, str) or not value:
        raise ValueError(f"{option} is required (or mysql_url with that in it), not {value!r}")
    return value


def _parsed(url: Any) -> SplitResult:
    # Never quoted: it may hold a password, wherever it went wrong.
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
    """What a URL says of encryption: ``?ssl=true``, ``?ssl_ca=FILE`` or nothing."""
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


@asynccontextmanager
async def mysql_repository(
    *,
    mysql_url: str | None = None,
    mysql_host: str | None = None,
    mysql_port: int | None = None,
    mysql_user: str | None = None,
    mysql_password: str | None = None,
    mysql_database: str | None = None,
    mysql_table_name: str = "pyncette_tasks",
    mysql_skip_table_create: bool = False,
    mysql_pool_size: int = 10,
    mysql_ssl: ssl.SSLContext | None = None,
    mysql_pool: Any = None,
    **_ignored: Any,
) -> AsyncIterator[MysqlStore]:
    """Opens a store in a MySQL or MariaDB database.

    Args:
        mysql_url: ``mysql://user:password@host:port/database``; ``?ssl=true`` encrypts and checks
            the server's certificate, ``?ssl_ca=FILE`` does so with an authority of your own. What
            is given as an option of its own, too, counts.
        mysql_host: The server; a path that begins with a slash is that of its socket.
        mysql_port: 3306, unless told.
        mysql_user: As whom to log in.
        mysql_password: With what.
        mysql_database: The database with the table.
        mysql_table_name: The table, made where it is missing.
        mysql_skip_table_create: It is made by somebody else, see ``schema_sql``.
        mysql_pool_size: Most connections to open; at least 3.
        mysql_ssl: Encrypts the connections. Without it, and without a URL that asks for it, they
            are not encrypted.
        mysql_pool: An ``asyncmy.Pool`` to use, and to leave open, in place of all of the above
            that say where the server is. Two of its connections stay with the store.

    Raises:
        ValueError: An option makes no sense.
        StoreMisconfiguredError: The server does not let us in, is older than MySQL 8.0 or MariaDB
            10.6, or its table is missing or not one of ours.
        StoreUnavailableError: The server cannot be reached.
    """
    options = MysqlOptions(
        mysql_url,
        mysql_host,
        mysql_port,
        mysql_user,
        mysql_password,
        mysql_database,
        mysql_table_name,
        mysql_skip_table_create,
        mysql_pool_size,
        mysql_ssl,
        mysql_pool,
    )
    store = MysqlStore(options)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


def schema_sql(table_name: str = "pyncette_tasks") -> str:
    """The statement that makes the table and its index.

    Raises:
        ValueError: The name is not a lower-case ASCII identifier.
    """
    return _schema_sql(check_table_name("table_name", table_name))


class MysqlStore:
    """See ``pyncette.store.Store``. Made by ``mysql_repository``."""

    def __init__(self, options: MysqlOptions) -> None:
        self._options = options
        self._table = MysqlTable(options.table_name)
        pool = options.pool
        self._place = "MySQL" if pool is not None else options.address().place
        size = options.pool_size if pool is None else pool.maxsize
        self._claims = self._connections(1, 1)
        self._outcomes = self._connections(1, 1)
        self._users = self._connections(size - RESERVED, 0)

    def _connections(self, size: int, kept: int) -> Connections:
        pool = self._options.pool
        if pool is None:
            return OwnConnections(self._options.address(), size)
        return LentConnections(self._place, size, kept, pool)

    async def open(self) -> None:
        """Reaches the server, and makes the table where it is missing."""
        await self._users.run(self._prepare)

    async def _prepare(self, connection: Connection) -> None:
        if server_of(connection.get_server_info(), self._place).mariadb:
            self._table.use_mariadb()
        columns, engine = await self._table.layout(connection)
        if not columns and not self._options.skip_table_create:
            await self._table.make(connection)
            columns, engine = await self._table.layout(connection)
        name = self._options.table_name
        if not columns:
            raise StoreMisconfiguredError(
                f"There is no table '{name}' in {self._place}, and mysql_skip_table_create is "
                "set. pyncette.mysql.schema_sql() tells how to make it."
            )
        if columns != list(COLUMNS):
            raise StoreMisconfiguredError(
                describe_foreign_table(name, self._place, columns, "mysql_table_name")
            )
        if engine != "InnoDB":
            raise StoreMisconfiguredError(
                f"Table '{name}' in {self._place} is kept by the engine {engine}, which cannot "
                "lock single rows; it must be InnoDB"
            )
        await self._table.check_indexes(connection)

    async def close(self) -> None:
        """Closes every connection of our own."""
        for connections in (self._claims, self._outcomes, self._users):
            await connections.close()

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
        return await self._claims.run(
            lambda connection: self._table.claim(connection, sources, limit, now, token, repeated)
        )

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        if not batch:
            return []
        of_runs = any(write.token is not None for write in batch)
        connections = self._outcomes if of_runs else self._users
        return await connections.run(lambda connection: self._table.write(connection, batch, now))

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        return await self._users.run(lambda connection: self._table.get(connection, identities))

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        return await self._users.run(
            lambda connection: self._table.scan(connection, group, where, cursor, limit)
        )

    async def now(self) -> int | None:
        async def call(connection: Connection) -> int:
            [[[instant]]] = await query(connection, _NOW)
            return int(instant)

        return await self._claims.run(call)

    async def watch(self, groups: Collection[str], on_wake: WakeCallback) -> Watch | None:
        return None
