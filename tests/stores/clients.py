"""Connections of an application, of every driver, each with the few calls that tests need."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import aiomysql
import aiosqlite
import asyncmy
import asyncpg
import psycopg
import psycopg2.extras
import pymysql
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from tests.servers import url

from pyncette.testing.conformance import Place

POSTGRES: Final = (
    "asyncpg",
    "asyncpg pool",
    "psycopg",
    "psycopg blocking",
    "psycopg2 blocking",
    "sqlalchemy asyncpg connection",
    "sqlalchemy asyncpg session",
    "sqlalchemy psycopg session",
    "sqlalchemy psycopg blocking session",
    "sqlalchemy psycopg blocking connection",
    "sqlalchemy psycopg2 blocking session",
    "django",
)
MYSQL: Final = (
    "asyncmy",
    "aiomysql",
    "pymysql",
    "sqlalchemy asyncmy session",
    "sqlalchemy aiomysql connection",
    "sqlalchemy pymysql blocking session",
    "django",
)
SQLITE: Final = (
    "sqlite3",
    "sqlite3 by hand",
    "aiosqlite",
    "sqlalchemy aiosqlite session",
    "sqlalchemy aiosqlite connection",
    "sqlalchemy pysqlite blocking session",
    "django",
)

KINDS: Final = [
    *(("postgres", driver) for driver in POSTGRES),
    *(("mysql", driver) for driver in MYSQL),
    *(("mariadb", driver) for driver in MYSQL),
    *(("sqlite-file", driver) for driver in SQLITE),
]
"""Each store with each driver of its database."""


class Client:
    """A connection of the application.

    Attributes:
        connection: What is passed to Pyncette.
        blocking: Whether its calls block, so that it is passed to ``app.sync()``.
    """

    def __init__(self, connection: Any, blocking: bool = False) -> None:
        self.connection = connection
        self.blocking = blocking

    async def begin(self) -> None:
        """Begins a transaction, where a statement does not do so by itself."""

    async def run(self, statement: str) -> list[Any]:
        """Runs a statement."""
        cursor = self.connection.cursor()
        cursor.execute(statement)
        rows = list(cursor.fetchall()) if cursor.description else []
        cursor.close()
        return rows

    async def commit(self) -> None:
        self.connection.commit()

    async def rollback(self) -> None:
        self.connection.rollback()


class _Asyncpg(Client):
    async def begin(self) -> None:
        self.transaction = self.connection.transaction()
        await self.transaction.start()

    async def run(self, statement: str) -> list[Any]:
        return list(await self.connection.fetch(statement))

    async def commit(self) -> None:
        await self.transaction.commit()

    async def rollback(self) -> None:
        await self.transaction.rollback()


class _Async(Client):
    async def run(self, statement: str) -> list[Any]:
        async with self.connection.cursor() as cursor:
            await cursor.execute(statement)
            return list(await cursor.fetchall()) if cursor.description else []

    async def commit(self) -> None:
        await self.connection.commit()

    async def rollback(self) -> None:
        await self.connection.rollback()


class _ByHand(Client):
    async def begin(self) -> None:
        self.connection.execute("BEGIN IMMEDIATE")


class _Alchemy(_Async):
    async def run(self, statement: str) -> list[Any]:
        result = await self.connection.execute(sqlalchemy.text(statement))
        return list(result.fetchall()) if result.returns_rows else []


class _BlockingAlchemy(Client):
    async def run(self, statement: str) -> list[Any]:
        result = self.connection.execute(sqlalchemy.text(statement))
        return list(result.fetchall()) if result.returns_rows else []


class _Django(Client):
    async def begin(self) -> None:
        from django.db import transaction

        self.atomic = transaction.atomic(using=self.connection.alias)
        self.atomic.__enter__()

    async def commit(self) -> None:
        self.atomic.__exit__(None, None, None)

    async def rollback(self) -> None:
        error = RuntimeError("undone")
        self.atomic.__exit__(RuntimeError, error, None)


@asynccontextmanager
async def client(
    store: str, driver: str, place: Place, shared: bool = False
) -> AsyncIterator[Client]:
    """A connection to the database of a store; closed afterwards.

    Args:
        store: The store.
        driver: The driver.
        place: Where the store is.
        shared: Whether another thread uses it, one at a time.
    """
    lite = store == "sqlite-file"
    address = str(place.configuration["sqlite_database"]) if lite else url(store)
    parts = urlsplit(address)
    mysql: dict[str, Any] = {
        "host": parts.hostname,
        "port": parts.port,
        "user": parts.username,
        "password": parts.password,
    }
    database = parts.path[1:]
    kind = driver.split()
    if kind[0] == "sqlalchemy":
        async with _sqlalchemy(store, kind, address) as made:
            yield made
        return
    if kind[0] == "django":
        connection = django_connection(store, address)
        if shared:
            connection.inc_thread_sharing()
        try:
            yield _Django(connection, blocking=True)
        finally:
            connection.close()
        return
    match driver:
        case "asyncpg":
            connection = await asyncpg.connect(address)
            try:
                yield _Asyncpg(connection)
            finally:
                await connection.close()
        case "asyncpg pool":
            async with (
                asyncpg.create_pool(address, min_size=1, max_size=1) as pool,
                pool.acquire() as connection,
            ):
                yield _Asyncpg(connection)
        case "psycopg":
            # As many programs do.
            rows: Any = psycopg.rows.dict_row
            async with await psycopg.AsyncConnection.connect(address, row_factory=rows) as one:
                yield _Async(one)
        case "psycopg blocking":
            with psycopg.connect(address, row_factory=psycopg.rows.tuple_row) as other:
                yield Client(other, blocking=True)
        case "psycopg2 blocking":
            older = psycopg2.connect(address, cursor_factory=psycopg2.extras.RealDictCursor)
            try:
                yield Client(older, blocking=True)
            finally:
                older.close()
        case "asyncmy":
            connection = await asyncmy.connect(**mysql, db=database)
            try:
                yield _Async(connection)
            finally:
                await connection.ensure_closed()
        case "aiomysql":
            connection = await aiomysql.connect(
                **mysql, db=database, cursorclass=aiomysql.DictCursor
            )
            try:
                yield _Async(connection)
            finally:
                await connection.ensure_closed()
        case "pymysql":
            connection = pymysql.connect(**mysql, database=database)
            try:
                yield Client(connection, blocking=True)
            finally:
                connection.close()
        case "aiosqlite":
            async with aiosqlite.connect(address) as file:
                file.row_factory = aiosqlite.Row
                yield _Async(file)
        case "sqlite3":
            lent = sqlite3.connect(address, check_same_thread=not shared)
            lent.row_factory = sqlite3.Row
            try:
                yield Client(lent)
            finally:
                lent.close()
        case _:
            lent = sqlite3.connect(address, isolation_level=None, check_same_thread=not shared)
            try:
                yield _ByHand(lent)
            finally:
                lent.close()


@asynccontextmanager
async def _sqlalchemy(store: str, kind: list[str], address: str) -> AsyncIterator[Client]:
    driver, blocking, session = kind[1], "blocking" in kind, "session" in kind
    name = {"sqlite-file": "sqlite", "postgres": "postgresql"}.get(store, store)
    rest = f"/{address}" if name == "sqlite" else address.partition("://")[2]
    place = f"{name}+{driver}://{rest}"
    if blocking:
        engine = sqlalchemy.create_engine(place)
        with Session(engine) if session else engine.connect() as connection:
            yield _BlockingAlchemy(connection, blocking=True)
        engine.dispose()
        return
    lasting = create_async_engine(place)
    opened: AsyncSession | AsyncConnection
    opened = AsyncSession(lasting) if session else lasting.connect()
    async with opened as held:
        yield _Alchemy(held)
    await lasting.dispose()


def django_connection(store: str, address: str) -> Any:
    """A connection of Django, under an alias of its own."""
    import django
    from django.conf import settings
    from django.db import connections
    from django.db.utils import load_backend

    # The tests call it in the thread of an event loop.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    if not settings.configured:
        settings.configure(USE_TZ=True)
        django.setup()
    parts = urlsplit(address)
    if store == "sqlite-file":
        wanted: dict[str, Any] = {"ENGINE": "django.db.backends.sqlite3", "NAME": address}
    else:
        engine = "postgresql" if store == "postgres" else "mysql"
        if engine == "mysql":
            pymysql.install_as_MySQLdb()
        wanted = {
            "ENGINE": f"django.db.backends.{engine}",
            "NAME": parts.path[1:],
            "HOST": parts.hostname,
            "PORT": parts.port,
            "USER": parts.username,
            "PASSWORD": parts.password,
        }
    alias = f"test_{secrets.token_hex(4)}"
    connections.settings[alias] = wanted
    connections.configure_settings({**connections.settings, alias: wanted})
    backend = load_backend(wanted["ENGINE"])
    connections.settings[alias] = connections.configure_settings({"default": wanted})["default"]
    connection = backend.DatabaseWrapper(connections.settings[alias], alias)
    connections[alias] = connection
    return connection
