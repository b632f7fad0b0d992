"""Tables of their own for tests on MySQL and MariaDB, and statements run beside the store."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyncette.mysql import MysqlOptions, mysql_repository
from pyncette.mysql.connection import Connection, Results, connect, query
from pyncette.testing.conformance import Place


def new_table() -> str:
    """A name that no other test has."""
    return f"test_{secrets.token_hex(6)}"


async def connected(url: str) -> Connection:
    """A connection of its own."""
    return await connect(MysqlOptions(mysql_url=url).address())


def run_sql(url: str, *statements: str) -> Results:
    """Runs statements on a connection of their own; what each answered."""

    async def main() -> Results:
        connection = await connected(url)
        try:
            return await query(connection, *statements)
        finally:
            await connection.ensure_closed()

    return asyncio.run(main())


@contextmanager
def place_at(url: str, **more: Any) -> Iterator[Place]:
    """An empty place; its table is dropped afterwards."""
    table = new_table()
    yield Place(mysql_repository, {"mysql_url": url, "mysql_table_name": table, **more})
    run_sql(url, f"DROP TABLE IF EXISTS {table}, {table}_runs, {table}_run_totals")
