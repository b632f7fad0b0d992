"""Connections of the application, in whose transactions calls are made.

Recognises the connections of asyncpg, psycopg, psycopg2, asyncmy, aiomysql, PyMySQL, mysqlclient,
sqlite3, aiosqlite, SQLAlchemy and Django; see ``pyncette.connections.links``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pyncette.connections.asynchronous import (
    Aiosqlite,
    AsyncMysql,
    Asyncpg,
    AsyncPsycopg,
    AsyncSqlalchemyConnection,
    AsyncSqlalchemySession,
)
from pyncette.connections.blocking import (
    Django,
    Mysql,
    Psycopg,
    Psycopg2,
    SqlalchemyConnection,
    SqlalchemySession,
    Sqlite3,
)
from pyncette.connections.links import (
    Answer,
    AsyncDriver,
    AsyncLink,
    BlockingDriver,
    BlockingLink,
    Dialect,
    Do,
    Link,
    at_once,
)

_DRIVERS: Final = (
    "asyncpg, psycopg, psycopg2, asyncmy, aiomysql, PyMySQL, mysqlclient, sqlite3, aiosqlite, "
    "SQLAlchemy (a connection or a session) or Django"
)

# By the package and the name of a class. A subclass counts as what it is derived from.
_ASYNC: Final[dict[tuple[str, str], Callable[[Any, str], AsyncDriver]]] = {
    ("asyncpg", "Connection"): Asyncpg,
    ("asyncpg", "PoolConnectionProxy"): Asyncpg,
    ("psycopg", "AsyncConnection"): AsyncPsycopg,
    ("asyncmy", "Connection"): AsyncMysql,
    ("aiomysql", "Connection"): AsyncMysql,
    ("aiosqlite", "Connection"): Aiosqlite,
    ("sqlalchemy", "AsyncConnection"): lambda connection, name: AsyncSqlalchemyConnection(
        connection, name, _native
    ),
    ("sqlalchemy", "AsyncSession"): lambda connection, name: AsyncSqlalchemySession(
        connection, name, _native
    ),
}
_BLOCKING: Final[dict[tuple[str, str], Callable[[Any, str], BlockingDriver]]] = {
    ("sqlite3", "Connection"): Sqlite3,
    ("psycopg", "Connection"): Psycopg,
    ("psycopg2", "connection"): Psycopg2,
    ("pymysql", "Connection"): Mysql,
    ("MySQLdb", "Connection"): Mysql,
    ("django", "BaseDatabaseWrapper"): Django,
    ("sqlalchemy", "Connection"): lambda connection, name: SqlalchemyConnection(
        connection, name, _native
    ),
    ("sqlalchemy", "Session"): lambda connection, name: SqlalchemySession(
        connection, name, _native
    ),
}


def link_of(connection: Any, do: Do | None = None) -> Link:
    """Returns a connection of the application as the stores use it.

    Args:
        connection: A connection, or a session of SQLAlchemy. A link is returned as it is.
        do: Where the calls of a blocking connection are made; then one for the event loop is
            refused. None: the call is made in the event loop, and what would block it is refused.

    Raises:
        TypeError: It is no connection of a known driver, or cannot be used here.
    """
    if isinstance(connection, Link):
        return connection
    connection = _unwrapped(connection)
    name = f"This connection ({type(connection).__module__}.{type(connection).__qualname__})"
    for kind in _kinds(connection):
        if (blocking := _BLOCKING.get(kind)) is not None:
            driver = blocking(connection, name)
            if do is None and driver.dialect() is not Dialect.SQLITE:
                raise TypeError(
                    f"{name} would block the event loop: pass an asynchronous one, or make the "
                    "call by app.sync() in a thread of its own"
                )
            return BlockingLink(driver, do or at_once)
        if (asynchronous := _ASYNC.get(kind)) is not None:
            if do is not None:
                raise TypeError(
                    f"{name} belongs to an event loop: pass a blocking one here, or make the call "
                    "by the asynchronous context"
                )
            return AsyncLink(asynchronous(connection, name))
    raise TypeError(
        f"connection must be a connection of {_DRIVERS}, not {type(connection).__name__}"
        + (" (pass a connection of it, not the pool or the engine)" if _lends(connection) else "")
    )


def is_argument(value: Any) -> bool:
    """Returns whether a value is an argument of a task rather than a connection."""
    return value is None or isinstance(value, (str, int, float, bool, list, tuple, Mapping))


def _kinds(connection: Any) -> list[tuple[str, str]]:
    kinds = []
    for kind in type(connection).__mro__:
        package = kind.__module__.partition(".")[0].removeprefix("_")
        kinds.append((package, kind.__name__))
    return kinds


def _lends(connection: Any) -> bool:
    return any(
        callable(getattr(connection, name, None)) for name in ("acquire", "connect", "getconn")
    )


def _unwrapped(connection: Any) -> Any:
    """Returns what a proxy stands for: the session of a scope, Django's connection of a thread."""
    package = type(connection).__module__.partition(".")[0]
    name = type(connection).__name__
    if package == "sqlalchemy" and name in ("scoped_session", "async_scoped_session"):
        return connection()
    if package == "django" and name == "ConnectionProxy":
        return connection._connections[connection._alias]
    return connection


def _native(connection: Any) -> Any | None:
    """Returns the driver of a connection below SQLAlchemy; None if it is not known."""
    for kind in _kinds(connection):
        made: Callable[[Any, str], Any] | None = _BLOCKING.get(kind) or _ASYNC.get(kind)
        if made is not None:
            return made(connection, "")
    return None


__all__ = [
    "Answer",
    "Dialect",
    "Do",
    "Link",
    "at_once",
    "is_argument",
    "link_of",
]
