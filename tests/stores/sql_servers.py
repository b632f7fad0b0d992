"""What tests of all SQL stores need: a table on each server, and sessions counted at the server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from tests.servers import url
from tests.stores import mysql_place, postgres_place

from pyncette.clock import realtime
from pyncette.mysql.connection import query
from pyncette.store.sql.store import SqlStore
from pyncette.testing.conformance import Place

SERVERS = ("postgres", "mysql", "mariadb")


class Admin:
    """A connection of its own, for statements beside the store. ``{table}`` is the table."""

    def __init__(self, connection: Any, mysql: bool, table: str) -> None:
        self._connection = connection
        self._mysql = mysql
        self._table = table

    async def run(self, statement: str) -> list[Any]:
        """Runs a statement; its rows."""
        statement = statement.format(table=self._table)
        if self._mysql:
            [rows] = await query(self._connection, statement)
            return rows if isinstance(rows, (list, tuple)) else []  # type: ignore[return-value]
        rows = await self._connection.fetch(statement.replace("`", '"'))
        return [tuple(row) for row in rows]

    def leave(self) -> None:
        """Closes the connection at once: its transaction and its locks end."""
        if self._mysql:
            self._connection.close()
        else:
            self._connection.terminate()


class SqlPlace(NamedTuple):
    """A table of a user of its own, whose sessions can be counted.

    Attributes:
        place: Where the store opens.
        user: Who opens it.
        server: Which server.
    """

    place: Place
    user: str
    server: str

    @property
    def mysql(self) -> bool:
        return self.server != "postgres"

    @property
    def table(self) -> str:
        name = "mysql_table_name" if self.mysql else "postgres_table_name"
        return str(self.place.configuration[name])

    def open(self, **more: Any) -> AbstractAsyncContextManager[SqlStore]:
        """Opens the store."""
        return self.place.open(**more)  # type: ignore[return-value]

    async def admin(self) -> Admin:
        """Another connection, which is not counted."""
        if self.mysql:
            connection = await mysql_place.connected(url(self.server))
        else:
            connection = await asyncpg.connect(url(self.server))
        return Admin(connection, self.mysql, self.table)

    async def sessions(self, admin: Admin) -> int:
        """How many sessions the store has at the server."""
        counted = (
            f"SELECT count(*) FROM information_schema.processlist WHERE user = '{self.user}'"
            if self.mysql
            else f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{self.user}'"
        )
        [[number]] = await admin.run(counted)
        return int(number)


@contextmanager
def place_of_a_user(server: str) -> Iterator[SqlPlace]:
    """A place at a server; its table and its user are dropped afterwards."""
    user = f"user_{secrets.token_hex(5)}"
    address = url(server)
    parts = urlsplit(address)
    own = urlunsplit(parts._replace(netloc=f"{user}:worker@{parts.hostname}:{parts.port}"))
    mysql = server != "postgres"
    # The table belongs to the administrator, who alone can drop it.
    place_at = mysql_place.place_at if mysql else postgres_place.place_at
    with place_at(address) as place:
        opening(place)
        table = str(place.configuration["mysql_table_name" if mysql else "postgres_table_name"])
        rights = f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {user}"
        configuration = {**place.configuration, f"{'mysql' if mysql else 'postgres'}_url": own}
        if mysql:
            mysql_place.run_sql(address, f"CREATE USER {user} IDENTIFIED BY 'worker'", rights)
        else:
            postgres_place.run_sql(address, f"CREATE ROLE {user} LOGIN PASSWORD 'worker'", rights)
        try:
            yield SqlPlace(Place(place.factory, configuration), user, server)
        finally:
            if mysql:
                mysql_place.run_sql(address, f"DROP USER {user}")
            else:
                postgres_place.run_sql(address, f"DROP OWNED BY {user}", f"DROP ROLE {user}")


def opening(place: Place) -> None:
    """Opens the store once, so that its table is there."""

    async def main() -> None:
        async with place.open():
            pass

    asyncio.run(main())


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Asks the server again and again; the deadline of the test ends it."""
    while not await holds():
        await realtime.sleep(0.01)
