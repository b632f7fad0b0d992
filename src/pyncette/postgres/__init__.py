"""The store in a PostgreSQL database.

This module reads the options, opens the connections and hands each call to one of them: claims
and outcomes of runs have a connection each, so that they never wait behind what users ask for.
The statements are in ``pyncette.postgres.table``, the connections in
``pyncette.postgres.connection``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from pyncette.errors import StoreMisconfiguredError
from pyncette.options import whole_number
from pyncette.postgres.connection import (
    Connect,
    Connection,
    Connections,
    LentConnections,
    Listener,
    OwnConnections,
    Watch,
    close,
    connect,
    is_pooled,
    place_of,
    set_up,
    translated,
)
from pyncette.postgres.sql import schema_sql as _schema_sql
from pyncette.postgres.table import PostgresTable
from pyncette.store import (
    Claimed,
    Filter,
    Identity,
    Page,
    Result,
    Source,
    WakeCallback,
    Write,
)
from pyncette.store.record import Record
from pyncette.store.sql.rows import COLUMNS, check_table_name, describe_foreign_table

OLDEST_POSTGRES: Final = 13
TABLE_NAME_CHARACTERS_MAX: Final = 59
"""With the ending of its index, as long as a name in PostgreSQL may be."""

RESERVED: Final = 2
"""Connections that users' calls do not get: one for claims, one for the outcomes of runs."""

_PAYLOAD_BYTES_MAX: Final = 7_900


@dataclass(frozen=True)
class PostgresOptions:
    """The options of the store.

    Attributes:
        url: ``postgresql://`` or ``postgres://``; with a pool only for messages and listening.
        table_name: The table; made where it is missing.
        skip_table_create: Never make it.
        pool_size: Most connections that are opened, beside one that listens.
        listen_url: Where to listen for notifications, if not at ``url``: past a pooler.
        pool: An ``asyncpg.Pool`` of the application's, in place of connections of our own.

    Raises:
        ValueError: One of them makes no sense.
    """

    url: str | None = field(repr=False)
    table_name: str = "pyncette_tasks"
    skip_table_create: bool = False
    pool_size: int = 10
    listen_url: str | None = field(default=None, repr=False)
    pool: Any = None

    def __post_init__(self) -> None:
        if self.url is not None or self.pool is None:
            _check_url("postgres_url", self.url)
        if self.listen_url is not None:
            _check_url("postgres_listen_url", self.listen_url)
        check_table_name("postgres_table_name", self.table_name)
        if len(self.table_name) > TABLE_NAME_CHARACTERS_MAX:
            raise ValueError(
                f"Table name {self.table_name!r} (postgres_table_name) must have at most "
                f"{TABLE_NAME_CHARACTERS_MAX} characters"
            )
        whole_number("postgres_pool_size", self.pool_size, RESERVED + 1, 1_000)
        if self.pool is not None and not callable(getattr(self.pool, "acquire", None)):
            raise ValueError(
                f"postgres_pool must be an asyncpg.Pool, not {type(self.pool).__name__}"
            )


def _check_url(option: str, url: Any) -> None:
    if not isinstance(url, str) or not url.startswith(("postgresql://", "postgres://")):
        # Not quoted: it may hold a password all the same.
        raise ValueError(
            f"{option} must be a URL that begins with postgresql:// or postgres://"
            + ("" if isinstance(url, str) else f", not {url!r}")
        )


@asynccontextmanager
async def postgres_repository(
    *,
    postgres_url: str | None = None,
    postgres_table_name: str = "pyncette_tasks",
    postgres_skip_table_create: bool = False,
    postgres_pool_size: int = 10,
    postgres_listen_url: str | None = None,
    postgres_pool: Any = None,
    **_ignored: Any,
) -> AsyncIterator[PostgresStore]:
    """Opens a store in a PostgreSQL database.

    Args:
        postgres_url: Required, unless there is a pool. What libpq reads from a URL holds here,
            ``sslmode`` and the other options of TLS among it.
        postgres_table_name: The table, made where it is missing.
        postgres_skip_table_create: It is made by somebody else, see ``schema_sql``.
        postgres_pool_size: Most connections to open, beside one that listens; at least 3.
        postgres_listen_url: Where to listen for notifications, if ``postgres_url`` leads to a
            pooler that does not keep sessions. Without it, such a worker polls.
        postgres_pool: An ``asyncpg.Pool`` to use, and to leave open. It listens only where a URL
            is given, too.

    Raises:
        ValueError: An option makes no sense.
        StoreMisconfiguredError: The server does not let us in, is older than PostgreSQL 13, or
            its table is missing or not one of ours.
        StoreUnavailableError: The server cannot be reached.
    """
    options = PostgresOptions(
        postgres_url,
        postgres_table_name,
        postgres_skip_table_create,
        postgres_pool_size,
        postgres_listen_url,
        postgres_pool,
    )
    store = PostgresStore(options)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


def schema_sql(table_name: str = "pyncette_tasks") -> str:
    """The statements that make the table and its index.

    Raises:
        ValueError: The name is not a lower-case ASCII identifier.
    """
    return _schema_sql(check_table_name("table_name", table_name))


class PostgresStore:
    """See ``pyncette.store.Store``. Made by ``postgres_repository``."""

    def __init__(self, options: PostgresOptions) -> None:
        self._options = options
        self._place = place_of(options.url or "")
        self._table = PostgresTable(options.table_name)
        self._pooled = False
        self._claims = self._connections(1)
        self._outcomes = self._connections(1)
        self._users = self._connections(self._users_size())
        self._listener = self._make_listener()

    def _users_size(self) -> int:
        pool = self._options.pool
        size: int = self._options.pool_size if pool is None else pool.get_max_size()
        return max(size - RESERVED, 1)

    def _connections(self, size: int) -> Connections:
        pool = self._options.pool
        if pool is not None:
            return LentConnections(self._place, size, pool)
        return OwnConnections(self._place, size, self._open_one)

    async def _open_one(self) -> Connection:
        url = self._options.url or ""
        connection = await connect(url, self._place, named=not self._pooled)
        return connection if self._pooled else await set_up(connection, self._place)

    def _make_listener(self) -> Listener | None:
        url = self._options.listen_url or self._options.url
        if url is None:
            return None
        place = place_of(url)
        open_one: Connect = partial(connect, url, place, named=False)
        return Listener(place, self._options.table_name, open_one)

    async def open(self) -> None:
        """Reaches the server, and makes the table where it is missing."""
        if self._options.pool is None:
            await self._look_for_a_pooler()
        await self._users.run(self._prepare)

    async def _look_for_a_pooler(self) -> None:
        connection = await connect(self._options.url or "", self._place, named=True)
        try:
            self._pooled = await is_pooled(connection)
        except BaseException as error:
            connection.terminate()
            if isinstance(error, Exception):
                raise translated(error, self._place) from error
            raise
        if self._pooled:
            await close(connection)
        else:
            await self._users.keep(await set_up(connection, self._place))

    async def _prepare(self, connection: Connection) -> None:
        version = connection.get_server_version()
        if version.major < OLDEST_POSTGRES:
            raise StoreMisconfiguredError(
                f"{self._place} is PostgreSQL {version.major}.{version.minor}, which is too old: "
                f"at least {OLDEST_POSTGRES} is needed"
            )
        encoding = getattr(connection.get_settings(), "server_encoding", "UTF8")
        if encoding != "UTF8":
            raise StoreMisconfiguredError(
                f"{self._place} holds its texts in {encoding}; names may need any character of UTF8"
            )
        columns = await self._table.columns(connection)
        if not columns and not self._options.skip_table_create:
            await self._table.make(connection)
            columns = await self._table.columns(connection)
        name = self._options.table_name
        if not columns:
            raise StoreMisconfiguredError(
                f"There is no table '{name}' in {self._place}, and postgres_skip_table_create is "
                "set. pyncette.postgres.schema_sql() tells how to make it."
            )
        if columns != list(COLUMNS):
            raise StoreMisconfiguredError(
                describe_foreign_table(name, self._place, columns, "postgres_table_name")
            )

    async def close(self) -> None:
        """Closes every connection of our own."""
        if self._listener is not None:
            await self._listener.close()
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
        of_runs = any(write.token is not None for write in batch)
        connections = self._outcomes if of_runs else self._users

        async def call(connection: Connection) -> list[Result]:
            results = await self._table.write(connection, batch, now) if batch else []
            if wake:
                await connection.execute(
                    "SELECT pg_notify($1, $2)", self._options.table_name, _payload(wake)
                )
            return results

        return await connections.run(call) if batch or wake else []

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        return await self._users.run(lambda connection: self._table.get(connection, identities))

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        return await self._users.run(
            lambda connection: self._table.scan(connection, group, where, cursor, limit)
        )

    async def now(self) -> int | None:
        async def call(connection: Connection) -> int:
            instant: int = await connection.fetchval(
                "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
            )
            return instant

        return await self._claims.run(call)

    async def watch(self, groups: Collection[str], on_wake: WakeCallback) -> Watch | None:
        if self._listener is None or (self._pooled and self._options.listen_url is None):
            return None

        def wake(concerned: Collection[str] | None) -> None:
            self._table.marks.forget()
            on_wake(concerned)

        return self._listener.watch(groups, wake)


def _payload(groups: Collection[str]) -> str:
    """The groups as text; where that is too long, what stands for any group."""
    text = json.dumps(sorted(groups), ensure_ascii=False)
    return text if len(text.encode()) <= _PAYLOAD_BYTES_MAX else ""
