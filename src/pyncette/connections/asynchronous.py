"""Connections for the event loop, each with what is special about its driver."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from pyncette.connections.blocking import (
    SQLALCHEMY,
    core_answer,
    known,
    plain_texts,
    style_of,
)
from pyncette.connections.links import Answer, Dialect
from pyncette.connections.placeholders import Style, rendered


async def _answer_of(cursor: Any) -> Answer:
    rows = [tuple(row) for row in await cursor.fetchall()] if cursor.description else []
    return Answer(rows, cursor.rowcount)


class _Given:
    """What all drivers have in common."""

    style = Style.PERCENT
    patience_s = 0.0

    def __init__(self, connection: Any, name: str) -> None:
        self.connection = connection
        self.name = name
        self._transaction: Any = None

    async def _begin_sqlite(self, connection: Any) -> None:
        """Begins in the order of those that write, unless a transaction is open already."""
        if not connection.in_transaction:
            try:
                async with self._impatient(connection):
                    await connection.execute("BEGIN IMMEDIATE")
            except asyncio.CancelledError:
                await connection.rollback()  # its thread may have begun
                raise

    @asynccontextmanager
    async def _impatient(self, connection: Any) -> AsyncIterator[None]:
        """Makes a connection of aiosqlite fail at once where it would wait for a lock."""
        patience_ms = await pragma(connection, "busy_timeout")
        self.patience_s = patience_ms / 1000
        await pragma(connection, "busy_timeout = 0")
        try:
            yield
        finally:
            await pragma(connection, f"busy_timeout = {patience_ms}")

    async def flush(self) -> None:
        """Nothing is held back."""

    async def run(self, statement: str, parameters: Sequence[Any]) -> Answer:
        text, ordered = rendered(statement, parameters, self.style)
        async with self._cursor() as cursor:
            await (cursor.execute(text) if ordered is None else cursor.execute(text, ordered))
            return await _answer_of(cursor)

    def _cursor(self) -> Any:
        return self.connection.cursor()


class Asyncpg(_Given):
    """asyncpg: a connection, or one of a pool."""

    def dialect(self) -> Dialect:
        return Dialect.POSTGRES

    async def run(self, statement: str, parameters: Sequence[Any]) -> Answer:
        rows = await self.connection.fetch(statement, *parameters)
        return Answer([tuple(row) for row in rows], -1)

    def is_outside(self) -> bool:
        return not self.has_begun()

    def has_begun(self) -> bool:
        return bool(self.connection.is_in_transaction())

    async def begin(self) -> None:
        self._transaction = self.connection.transaction()
        await self._transaction.start()

    async def commit(self) -> None:
        await self._transaction.commit()

    async def rollback(self, error: BaseException | None) -> None:
        await self._transaction.rollback()


class AsyncPsycopg(_Given):
    """psycopg 3."""

    def dialect(self) -> Dialect:
        return Dialect.POSTGRES

    def _cursor(self) -> Any:
        return self.connection.cursor(row_factory=sys.modules["psycopg"].rows.tuple_row)

    def is_outside(self) -> bool:
        return not self.has_begun()

    def has_begun(self) -> bool:
        return bool(self.connection.info.transaction_status)

    async def begin(self) -> None:
        self._transaction = AsyncExitStack()
        await self._transaction.enter_async_context(self.connection.transaction())

    async def commit(self) -> None:
        await self._transaction.aclose()

    async def rollback(self, error: BaseException | None) -> None:
        error = error or sys.modules["psycopg"].Rollback()
        await self._transaction.__aexit__(type(error), error, None)


class AsyncMysql(_Given):
    """asyncmy and aiomysql."""

    def dialect(self) -> Dialect:
        return Dialect.MYSQL

    def _cursor(self) -> Any:
        module = sys.modules[type(self.connection).__module__.partition(".")[0] + ".cursors"]
        return self.connection.cursor(module.Cursor)

    def is_outside(self) -> bool:
        return bool(self.connection.get_autocommit()) and not self.has_begun()

    def has_begun(self) -> bool:
        return bool(self.connection.get_transaction_status())

    async def begin(self) -> None:
        await self.connection.begin()

    async def commit(self) -> None:
        await self.connection.commit()

    async def rollback(self, error: BaseException | None) -> None:
        await self.connection.rollback()


class Aiosqlite(_Given):
    """aiosqlite."""

    style = Style.QUESTION

    def dialect(self) -> Dialect:
        return Dialect.SQLITE

    async def run(self, statement: str, parameters: Sequence[Any]) -> Answer:
        async with self.connection.cursor() as cursor:
            cursor.row_factory = None
            with plain_texts(self.connection):
                await cursor.execute(statement, parameters)
                return await _answer_of(cursor)

    def is_outside(self) -> bool:
        return not self.has_begun() and self.connection.isolation_level is None

    def has_begun(self) -> bool:
        return bool(self.connection.in_transaction)

    async def begin(self) -> None:
        await self._begin_sqlite(self.connection)

    async def commit(self) -> None:
        await self.connection.commit()

    async def rollback(self, error: BaseException | None) -> None:
        await self.connection.rollback()


class AsyncSqlalchemyConnection(_Given):
    """An ``AsyncConnection`` of SQLAlchemy.

    Args:
        connection: It.
        name: What it is, for messages.
        native: Returns the driver of what lies below; None if that is not known.
    """

    def __init__(self, connection: Any, name: str, native: Callable[[Any], Any | None]) -> None:
        super().__init__(connection, name)
        self._native = native
        self._below: Any = None

    def dialect(self) -> Dialect:
        name = self._dialect().name
        return known(SQLALCHEMY.get(name), self.name, name)

    def _dialect(self) -> Any:
        return self.connection.dialect

    async def _core(self) -> Any:
        return self.connection

    async def run(self, statement: str, parameters: Sequence[Any]) -> Answer:
        core = await self._core()
        self._below = core
        text, ordered = rendered(statement, parameters, style_of(core.dialect, self.name))
        given = () if ordered is None else (tuple(ordered),)
        if self.dialect() is not Dialect.SQLITE:
            return core_answer(await core.exec_driver_sql(text, *given))
        with plain_texts((await core.get_raw_connection()).driver_connection):
            return core_answer(await core.exec_driver_sql(text, *given))

    def is_outside(self) -> bool:
        native = self._native(self._below.sync_connection.connection.driver_connection)
        return native is not None and bool(native.is_outside())

    def has_begun(self) -> bool:
        return bool(self.connection.in_transaction())

    async def begin(self) -> None:
        self._transaction = await self.connection.begin()
        if self.dialect() is Dialect.SQLITE:
            try:
                core = await self._core()
                await self._begin_sqlite((await core.get_raw_connection()).driver_connection)
            except BaseException:
                await self._transaction.rollback()
                raise

    async def commit(self) -> None:
        await self._transaction.commit()

    async def rollback(self, error: BaseException | None) -> None:
        await self._transaction.rollback()


class AsyncSqlalchemySession(AsyncSqlalchemyConnection):
    """An ``AsyncSession`` of SQLAlchemy."""

    def _dialect(self) -> Any:
        return self.connection.get_bind().dialect

    async def _core(self) -> Any:
        return await self.connection.connection()

    async def flush(self) -> None:
        await self.connection.flush()


async def pragma(connection: Any, statement: str) -> Any:
    """Returns the answer to a ``PRAGMA`` of a connection of aiosqlite, whatever rows it makes."""
    async with connection.cursor() as cursor:
        cursor.row_factory = None
        await cursor.execute(f"PRAGMA {statement}")
        return (await cursor.fetchone())[0]
