"""Tables of their own for tests on PostgreSQL, and statements run beside the store."""

from __future__ import annotations

import asyncio
import atexit
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import asyncpg

from pyncette.postgres import postgres_repository
from pyncette.testing.conformance import Place


def new_table() -> str:
    """A name that no other test has."""
    return f"test_{secrets.token_hex(6)}"


def run_sql(url: str, *statements: str) -> list[Any]:
    """Runs statements one by one on a connection of their own; the rows of the last."""

    async def main() -> list[Any]:
        connection = await asyncpg.connect(url, statement_cache_size=0)
        try:
            rows: list[Any] = []
            for statement in statements:
                rows = await connection.fetch(statement)
            return rows
        finally:
            await connection.close()

    return asyncio.run(main())


class _Standing:
    """A connection that lasts: PostgreSQL takes longer to make one than to run most tests."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._connection: asyncpg.Connection | None = None
        atexit.register(self._close)

    def run(self, statement: str) -> None:
        with self._lock:
            self._loop.run_until_complete(self._run(statement))

    async def _run(self, statement: str) -> None:
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(self._url, statement_cache_size=0)
        await self._connection.execute(statement)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
        self._loop.close()


standing = cache(_Standing)
"""The lasting connection to a server, for statements that leave nothing in their session."""


@contextmanager
def place_at(url: str, **more: Any) -> Iterator[Place]:
    """An empty place; its table is dropped afterwards."""
    with a_table(url) as table:
        yield Place(
            postgres_repository, {"postgres_url": url, "postgres_table_name": table, **more}
        )


@contextmanager
def a_table(url: str, *statements: str) -> Iterator[str]:
    """The name of a table that is dropped afterwards; statements make and fill it."""
    table = new_table()
    try:
        if statements:
            run_sql(url, *(statement.format(table=table) for statement in statements))
        yield table
    finally:
        standing(url).run(f"DROP TABLE IF EXISTS {table}, {table}_runs, {table}_run_totals")
