"""Connections to MySQL and MariaDB: opened when needed, bounded in number, dropped when in doubt.

Knows asyncmy, what the errors of driver and servers mean, and what a session has to be set to;
knows no table. A call that was cancelled or that lost its server drops its connection, so that the
next one starts on a sound one. Nothing is repeated here.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

try:
    import asyncmy
    import cryptography  # noqa: F401 - asyncmy needs it to log in to MySQL 8, and does not say so
    from asyncmy import errors
    from asyncmy.cursors import Cursor
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "The store in MySQL needs asyncmy and cryptography: pip install 'pyncette[mysql]'"
    ) from error

from pyncette.clock import realtime
from pyncette.errors import StoreError, StoreMisconfiguredError, StoreUnavailableError

CONNECT_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0

DUPLICATE: Final = 1062
DEADLOCK: Final = 1213
LOCK_WAIT_TIMEOUT: Final = 1205

OLDEST_MYSQL: Final = (8, 0)
OLDEST_MARIADB: Final = (10, 6)

Connection = Any
"""An asyncmy connection."""

Results = list[Any]
"""Of each statement: its rows, or how many rows it changed."""

_Answer = TypeVar("_Answer")

# Access denied, unknown database, no such table, column or index, syntax, privileges, values that
# a statement-based binary log cannot take.
_MISCONFIGURED: Final = frozenset(
    (1044, 1045, 1046, 1049, 1054, 1064, 1142, 1143, 1146, 1176, 1227, 1251, 1665, 1698, 2059)
)
# Out of range, too long, not of the character set, against a check, larger than a packet.
_BAD_VALUE: Final = frozenset((1048, 1153, 1264, 1366, 1406, 3819, 3854, 4025))
_READ_ONLY: Final = frozenset((1290, 1792, 1836))

_ISOLATION: Final = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"
_VARIABLES: Final[Mapping[str, str]] = {
    # Each statement is a transaction of its own.
    "autocommit": "1",
    "sql_mode": "'TRADITIONAL'",
    "sql_safe_updates": "0",
    # The least there is, in seconds: what waits for a row is an insertion that meets another.
    "innodb_lock_wait_timeout": "1",
    # For who is altering the table.
    "lock_wait_timeout": "10",
}
SESSION: Final = (
    _ISOLATION,
    "SET " + ", ".join(f"SESSION {name} = {value}" for name, value in _VARIABLES.items()),
)


class Address(NamedTuple):
    """Where a server is, and as whom to log in.

    Attributes:
        host: Name or address; beginning with a slash, the path of a socket.
        port, user, password, database: As they are called everywhere.
        tls: What the connection must be encrypted with; None: it is not.
    """

    host: str
    port: int
    user: str
    password: str | None
    database: str
    tls: ssl.SSLContext | None

    def __repr__(self) -> str:
        return f"<{self.place}>"

    @property
    def place(self) -> str:
        """The place in words, without what is secret."""
        port = "" if self.host.startswith("/") else f":{self.port}"
        return f"MySQL at {self.host}{port}/{self.database}"


class Server(NamedTuple):
    """What a server is.

    Attributes:
        mariadb: It is MariaDB.
        version: The number of its release.
    """

    mariadb: bool
    version: tuple[int, ...]


def server_of(greeting: str, place: str) -> Server:
    """The server that calls itself so.

    Raises:
        StoreMisconfiguredError: It is too old, or another one that lacks what is needed.
    """
    # MariaDB puts a number before its own that old clients take for MySQL's.
    plain = greeting.removeprefix("5.5.5-")
    mariadb = "mariadb" in plain.lower()
    number = re.match(r"\d+(?:\.\d+)*", plain)
    version = tuple(map(int, number[0].split("."))) if number else (0,)
    oldest = OLDEST_MARIADB if mariadb else OLDEST_MYSQL
    if "tidb" in plain.lower() or version < oldest:
        raise StoreMisconfiguredError(
            f"{place} is {'MariaDB' if mariadb else 'MySQL'} {greeting}, which cannot be used: at "
            "least MySQL 8.0 or MariaDB 10.6 is needed, for SKIP LOCKED and JSON_TABLE"
        )
    return Server(mariadb, version)


def translated(error: Exception, place: str) -> Exception:
    """The error of the driver or of the network as one of ours."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, UnicodeDecodeError):
        return StoreUnavailableError(f"{place}: a text in the table is no UTF-8 ({error.reason})")
    code = code_of(error)
    if isinstance(error, errors.MySQLError) and len(error.args) > 1:
        text = f"{place}: {error.args[1]} ({code})"
    else:
        text = f"{place}: {error or type(error).__name__}"
    if code in _BAD_VALUE:
        return ValueError(f"{place} refuses a value: {error.args[1]} ({code})")
    if code in _READ_ONLY:
        return StoreUnavailableError(f"{text} (is it a replica?)")
    if code in _MISCONFIGURED or isinstance(error, (ValueError, ssl.SSLError)):
        return StoreMisconfiguredError(text)
    if isinstance(error.__cause__, ssl.SSLError):
        return StoreMisconfiguredError(text)
    return StoreUnavailableError(text)


def code_of(error: BaseException) -> int:
    """The number of an error; 0 where it has none."""
    code = error.args[0] if isinstance(error, errors.MySQLError) and error.args else 0
    return code if isinstance(code, int) else 0


async def query(connection: Connection, *statements: str) -> Results:
    """Has statements run, one after another, in one trip.

    Raises:
        asyncmy.errors.MySQLError: One of them failed; those before it were run, those after it
            were not.
    """
    cursor = connection.cursor(Cursor)
    await cursor.execute(";\n".join(statements))
    results: Results = []
    while True:
        results.append(cursor.rowcount if cursor.description is None else await cursor.fetchall())
        if not await cursor.nextset():
            return results


async def connect(address: Address) -> Connection:
    """Opens a connection and sets its session up.

    Raises:
        StoreUnavailableError: The server cannot be reached, or not now.
        StoreMisconfiguredError: It answers, but not to this address.
    """
    where = (
        {"unix_socket": address.host}
        if address.host.startswith("/")
        else {"host": address.host, "port": address.port}
    )
    connection = None
    try:
        async with realtime.timeout(CONNECT_TIMEOUT_S):
            connection = await asyncmy.connect(
                **where,
                user=address.user,
                password=address.password or "",
                database=address.database,
                ssl=address.tls,
                charset="utf8mb4",
                connect_timeout=CONNECT_TIMEOUT_S,
                program_name="pyncette",
            )
            await query(connection, *SESSION)
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, Exception):
            raise translated(error, address.place) from error
        raise
    return connection


class Connections(ABC):
    """Runs calls, at most so many at a time, each on a connection of its own.

    Args:
        place: Where they lead, for messages.
        size: At most so many calls at a time; the others wait for their turn.
        idle_max: So many connections are kept while nobody uses them.
    """

    def __init__(self, place: str, size: int, idle_max: int) -> None:
        self._place = place
        self._room = asyncio.Semaphore(size)
        self._idle_max = idle_max
        self._idle: list[Connection] = []

    async def run(self, call: Callable[[Connection], Awaitable[_Answer]]) -> _Answer:
        """Makes a call, which may make several trips.

        Raises:
            StoreError: It failed; whether its last statement took effect is unknown.
            ValueError: The server refuses a value.
        """
        async with self._room:
            try:
                connection = await self._take()
                sound = False
                try:
                    answer = await call(connection)
                    sound = True
                    return answer
                except (errors.MySQLError, StoreError) as error:
                    # The server has said no and waits for the next statement, unless it is gone.
                    sound = isinstance(error, StoreError) or 1000 <= code_of(error) < 2000
                    raise
                finally:
                    if not sound:
                        connection.close()
                    await self._give_back(connection)
            except (
                OSError,
                TimeoutError,
                RuntimeError,
                UnicodeDecodeError,
                errors.MySQLError,
            ) as error:
                raise translated(error, self._place) from error

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if is_open(connection):
                return connection
            await self._close(connection)
        return await self._open()

    async def _give_back(self, connection: Connection) -> None:
        if is_open(connection) and len(self._idle) < self._idle_max:
            self._idle.append(connection)
        else:
            await self._close(connection)

    async def close(self) -> None:
        """Closes those that are kept, or returns them to where they came from."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*map(self._close, idle))

    @abstractmethod
    async def _open(self) -> Connection:
        """One more connection, its session set up."""

    @abstractmethod
    async def _close(self, connection: Connection) -> None:
        """Takes leave of a connection, usable or dropped."""


class OwnConnections(Connections):
    """Connections that the store opens, keeps and closes.

    Args:
        address: Where to.
        size: At most so many.
    """

    def __init__(self, address: Address, size: int) -> None:
        super().__init__(address.place, size, size)
        self._address = address

    async def _open(self) -> Connection:
        return await connect(self._address)

    async def _close(self, connection: Connection) -> None:
        try:
            async with realtime.timeout(CLOSE_TIMEOUT_S):
                await connection.ensure_closed()
        except (OSError, TimeoutError, errors.MySQLError):
            connection.close()


class LentConnections(Connections):
    """Connections from a pool that the application brought, which stays the application's.

    While the store has one, its session is set as the store needs it; it is returned as it came.

    Args:
        place: Where they lead, for messages.
        size: At most so many calls at a time.
        kept: So many connections stay with the store for as long as it is open.
        pool: An ``asyncmy.Pool``.
    """

    def __init__(self, place: str, size: int, kept: int, pool: Any) -> None:
        super().__init__(place, size, kept)
        self._pool = pool
        self._sessions: dict[Connection, list[str]] = {}

    async def _open(self) -> Connection:
        connection = await self._pool.acquire()
        try:
            if connection.character_set_name() != "utf8mb4":
                raise StoreMisconfiguredError(
                    f"{self._place}: mysql_pool must have been made with charset='utf8mb4', not "
                    f"{connection.character_set_name()!r}"
                )
            server = server_of(connection.get_server_info(), self._place)
            old = server.mariadb and server.version < (11, 1)
            names = [*_VARIABLES, "tx_isolation" if old else "transaction_isolation"]
            asked = "SELECT " + ", ".join(f"@@SESSION.{name}" for name in names)
            [[values], *_] = await query(connection, asked, *SESSION)
            self._sessions[connection] = [
                f"SESSION {name} = {connection.escape(value)}"
                for name, value in zip(names, values, strict=True)
            ]
        except BaseException:
            connection.close()
            self._pool.release(connection)
            raise
        return connection

    async def _close(self, connection: Connection) -> None:
        session = self._sessions.pop(connection, None)
        try:
            if session is not None and is_open(connection):
                async with realtime.timeout(CLOSE_TIMEOUT_S):
                    await query(connection, "SET " + ", ".join(session))
        except (OSError, TimeoutError, errors.MySQLError):
            connection.close()
        except BaseException:
            connection.close()
            raise
        finally:
            self._pool.release(connection)


def is_open(connection: Connection) -> bool:
    """Whether the connection can be used, as far as our side of it knows."""
    return bool(connection.connected) and not getattr(connection, "_stream_broken", False)
