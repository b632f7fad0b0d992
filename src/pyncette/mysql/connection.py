"""Connections to MySQL and MariaDB: how to open, set up and close them.

Knows asyncmy, the errors of the driver and the servers, and the settings of a session; knows no
table. ``pyncette.store.sql.pool`` shares connections between calls.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

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
from pyncette.store.sql import pool

CONNECT_TIMEOUT_S: Final = 10.0

DUPLICATE: Final = 1062
NO_SUCH_TABLE: Final = 1146
DEADLOCK: Final = 1213
LOCK_WAIT_TIMEOUT: Final = 1205
GONE_AWAY: Final = 2006

OLDEST_MYSQL: Final = (8, 0)
OLDEST_MARIADB: Final = (10, 6)

Connection = Any
"""An asyncmy connection."""

Results = list[Any]
"""For each statement its rows, or the number of rows that it changed."""

# Access denied, unknown database, no such table, column or index, syntax, privileges, values that a
# statement-based binary log does not allow.
_MISCONFIGURED: Final = frozenset(
    (1044, 1045, 1046, 1049, 1054, 1064, 1142, 1143, 1146, 1176, 1227, 1251, 1665, 1698, 2059)
)
# Out of range, also as a sum; too long, not in the character set, violates a check, larger than a
# packet.
_BAD_VALUE: Final = frozenset((1048, 1153, 1264, 1366, 1406, 1690, 3819, 3854, 4025))
_READ_ONLY: Final = frozenset((1290, 1792, 1836))

_ISOLATION: Final = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"
_VARIABLES: Final[Mapping[str, str]] = {
    # Each statement is its own transaction.
    "autocommit": "1",
    "sql_mode": "'TRADITIONAL'",
    "sql_safe_updates": "0",
    # The minimum, in seconds. Only an insertion waits for a row, if another transaction inserts it.
    "innodb_lock_wait_timeout": "1",
    # The same for a table that is locked or altered. These servers do not notice that a client has
    # given up, so a session must not wait longer than its client.
    "lock_wait_timeout": "1",
}
SESSION: Final = (
    _ISOLATION,
    "SET " + ", ".join(f"SESSION {name} = {value}" for name, value in _VARIABLES.items()),
    "SELECT @@max_allowed_packet, @@wait_timeout",
)

_IDLE_SHARE: Final = 0.75
"""After this share of ``wait_timeout`` an idle connection is replaced, before the server closes it.
If the server closes it while a statement is on its way, it is unknown whether that was executed."""

_PACKET_MARGIN: Final = 1_024

# Round trips that were given up, and the largest packet of a session.
_trips: WeakKeyDictionary[Connection, asyncio.Task[Results]] = WeakKeyDictionary()
_packets: WeakKeyDictionary[Connection, int] = WeakKeyDictionary()
_idle_s_max: WeakKeyDictionary[Connection, float] = WeakKeyDictionary()


class Address(NamedTuple):
    """The address of a server, and the login.

    Attributes:
        host: Name or address; if it begins with a slash, the path of a socket.
        port, user, password, database: The usual parts of an address.
        tls: Encrypts the connection; None: no encryption.
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
        """The server for messages, without secrets."""
        port = "" if self.host.startswith("/") else f":{self.port}"
        return f"MySQL at {self.host}{port}/{self.database}"


class Server(NamedTuple):
    """The kind of a server.

    Attributes:
        mariadb: Whether it is MariaDB.
        version: Its version.
    """

    mariadb: bool
    version: tuple[int, ...]


def server_of(greeting: str, place: str) -> Server:
    """Reads the version that a server reports.

    Raises:
        StoreMisconfiguredError: It is too old, or another server without the needed features.
    """
    # MariaDB prepends a number that old clients take for the version of MySQL.
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
    """Translates an error of the driver or the network to one of Pyncette's."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, UnicodeDecodeError):
        return StoreUnavailableError(f"{place}: a text in the table is no UTF-8 ({error.reason})")
    code = code_of(error)
    if isinstance(error, errors.MySQLError) and len(error.args) > 1:
        text = f"{place}: {error.args[1]} ({code})"
    else:
        text = f"{place}: {error or type(error).__name__}"
    refused = refusal(error)
    if refused is not None:
        return refused
    if code in _READ_ONLY:
        return StoreUnavailableError(f"{text} (is it a replica?)")
    if code in _MISCONFIGURED or isinstance(error, (ValueError, ssl.SSLError)):
        return StoreMisconfiguredError(text)
    if isinstance(error.__cause__, ssl.SSLError):
        return StoreMisconfiguredError(text)
    return StoreUnavailableError(text)


def refusal(error: Exception) -> ValueError | None:
    """The error about a value that cannot be stored; None if the error has another cause.

    Text that is not UTF-8, or too large, is refused before it is sent.
    """
    if code_of(error) in _BAD_VALUE:
        return ValueError(f"The server refuses a value: {error.args[1]} ({code_of(error)})")
    if isinstance(error, ValueError) and not isinstance(error, UnicodeDecodeError):
        return ValueError(f"MySQL cannot keep a value: {error}")
    return None


def code_of(error: BaseException) -> int:
    """The number of an error; 0 if it has none."""
    code = error.args[0] if isinstance(error, errors.MySQLError) and error.args else 0
    return code if isinstance(code, int) else 0


async def query(connection: Connection, *statements: str) -> Results:
    """Runs statements, one after another, in one round trip.

    A cancellation does not cancel the round trip: asyncmy would close the socket, and the server
    does not notice that while a statement waits for a lock. ``settled`` waits for its end.

    Raises:
        asyncmy.errors.MySQLError: A statement failed. The statements before it were run, those
            after it were not.
    """
    trip = asyncio.get_running_loop().create_task(_trip(connection, statements))
    try:
        return await asyncio.shield(trip)
    except asyncio.CancelledError:
        if not trip.done():
            _trips[connection] = trip
        raise


async def _trip(connection: Connection, statements: tuple[str, ...]) -> Results:
    cursor = connection.cursor(Cursor)
    await cursor.execute(";\n".join(statements))
    results: Results = []
    while True:
        results.append(cursor.rowcount if cursor.description is None else await cursor.fetchall())
        if not await cursor.nextset():
            return results


async def database_of(connection: Connection) -> str:
    """Returns the database that a connection uses."""
    [[[database]]] = await query(connection, "SELECT DATABASE()")
    return str(database)


async def settled(connection: Connection) -> None:
    """Waits until the server has answered a round trip that was given up."""
    trip = _trips.pop(connection, None)
    if trip is not None:
        try:
            await asyncio.wait([trip])
        finally:
            trip.cancel()
        if not trip.cancelled():
            trip.exception()


def dropped(connection: Connection) -> None:
    """Closes the socket of a connection, and ends a round trip that was given up."""
    trip = _trips.pop(connection, None)
    if trip is not None:
        trip.cancel()
    connection.close()


def _note_limits(connection: Connection, packet_bytes: int, wait_timeout_s: int) -> None:
    _packets[connection] = packet_bytes
    _idle_s_max[connection] = _IDLE_SHARE * wait_timeout_s


def size_of(statement: str) -> int:
    """The bytes of a statement, as they are sent.

    Raises:
        ValueError: It is not UTF-8.
    """
    return len(statement) if statement.isascii() else len(statement.encode())


def packet_bytes_max(connection: Connection) -> int:
    """The maximum bytes of a statement that the server accepts on this connection."""
    return _packets[connection] - _PACKET_MARGIN


async def connect(address: Address, plainly: bool = False) -> Connection:
    """Opens a connection and sets up its session, unless it is to be as the server makes it.

    Raises:
        StoreUnavailableError: The server cannot be reached now.
        StoreMisconfiguredError: The server refuses the login or the database.
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
            if not plainly:
                [*_, [limits]] = await query(connection, *SESSION)
                _note_limits(connection, *limits)
    except BaseException as error:
        if connection is not None:
            dropped(connection)
        if isinstance(error, Exception):
            raise translated(error, address.place) from error
        raise
    return connection


def _unsent(error: BaseException) -> bool:
    """Whether asyncmy knew that the connection was closed before it sent the whole statement.

    If the server ends an idle session while a statement is being sent, asyncmy does not report
    that. The call then fails as after any lost connection.
    """
    return code_of(error) == GONE_AWAY or (
        isinstance(error, errors.InterfaceError) and code_of(error) == 0
    )


def driver_of(place: str) -> pool.Driver:
    """Tells a pool what it needs to know about asyncmy."""
    return pool.Driver(
        errors=(OSError, TimeoutError, RuntimeError, UnicodeDecodeError, errors.MySQLError),
        translated=partial(translated, place=place),
        is_open=is_open,
        # Higher numbers are errors of the driver.
        answered=lambda error: 1000 <= code_of(error) < 2000,
        unsent=_unsent,
        idle_s_max=_idle_s_max.__getitem__,
    )


class OwnConnections:
    """Connections that the store opens and closes; see ``pyncette.store.sql.pool.Supply``.

    Args:
        address: The address of the server.
    """

    def __init__(self, address: Address) -> None:
        self._address = address

    async def open(self) -> Connection:
        return await connect(self._address)

    async def close(self, connection: Connection) -> None:
        await settled(connection)
        await connection.ensure_closed()

    def drop(self, connection: Connection) -> None:
        dropped(connection)


class PlainConnections(OwnConnections):
    """The same for a transaction of the application, whose session it is."""

    async def open(self) -> Connection:
        return await connect(self._address, plainly=True)


class PlainlyLent:
    """The same from the application's pool.

    Args:
        lender: An ``asyncmy.Pool``.
    """

    def __init__(self, lender: Any) -> None:
        self._lender = lender

    async def open(self) -> Connection:
        return await self._lender.acquire()

    async def close(self, connection: Connection) -> None:
        self._lender.release(connection)

    def drop(self, connection: Connection) -> None:
        dropped(connection)
        self._lender.release(connection)


class LentConnections:
    """Connections of the application's pool; see ``pyncette.store.sql.pool.Supply``.

    While the store has a connection, its session has the settings of the store. They are reset when
    it is returned.

    Args:
        place: The server, for messages.
        lender: An ``asyncmy.Pool``.
    """

    def __init__(self, place: str, lender: Any) -> None:
        self._place = place
        self._lender = lender
        self._sessions: dict[Connection, list[str]] = {}

    async def open(self) -> Connection:
        connection = await self._lender.acquire()
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
            [[values], *_, [limits]] = await query(connection, asked, *SESSION)
            _note_limits(connection, *limits)
            self._sessions[connection] = [
                f"SESSION {name} = {connection.escape(value)}"
                for name, value in zip(names, values, strict=True)
            ]
        except BaseException:
            dropped(connection)
            self._lender.release(connection)
            raise
        return connection

    async def close(self, connection: Connection) -> None:
        await settled(connection)
        if is_open(connection):
            await query(connection, "SET " + ", ".join(self._sessions[connection]))
        self._return(connection)

    def drop(self, connection: Connection) -> None:
        dropped(connection)
        self._return(connection)

    def _return(self, connection: Connection) -> None:
        if self._sessions.pop(connection, None) is not None:
            self._lender.release(connection)


def is_open(connection: Connection) -> bool:
    """Whether the connection can be used, as far as the client knows."""
    return bool(connection.connected) and not getattr(connection, "_stream_broken", False)
