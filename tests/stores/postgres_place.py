"""Tables of their own for tests on PostgreSQL, and statements run beside the store."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
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
        run_sql(url, *(statement.format(table=table) for statement in statements))
        yield table
    finally:
        run_sql(url, f"DROP TABLE IF EXISTS {table}, {table}_runs, {table}_run_totals")
