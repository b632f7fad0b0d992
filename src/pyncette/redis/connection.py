"""Connections to one Redis server: opened when needed, limited in number, closed if uncertain.

Knows the driver and its errors; knows neither keys nor scripts. Commands are sent directly through
connections of redis-py, without its clients and pools. Those retry a command that was not answered,
so a claim whose answer is late would be made again and again. This module retries nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, Final

from redis import exceptions
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from pyncette.clock import realtime
from pyncette.errors import StoreError, StoreMisconfiguredError, StoreUnavailableError
from pyncette.redis.layout import encoded

CONNECT_TIMEOUT_S: Final = 5.0
"""How long opening a connection may take, if ``redis_timeout`` is not set."""

REFUSAL_TIMEOUT_S: Final = 0.3
"""How long a server may take to refuse an argument for its length."""

SILENT_FOR_S: Final = 1.0
"""How long no call is sent to a node of a cluster that does not answer."""

Argument = bytes | str | int
Command = Sequence[Argument]
Reply = Any
"""An answer of the server. If it answers with an error, that is returned and not raised."""


class NotExecutedError(StoreUnavailableError):
    """The server cannot be reached, or refused the call: the call was certainly not executed."""


class Lane(Enum):
    """The kinds of calls. Each kind has its own connections, so that none waits for another."""

    CLAIMS = "claims"
    OUTCOMES = "outcomes"
    USERS = "users"


def _pack_plainly(command: Command) -> bytes:
    texts = [arg if isinstance(arg, bytes) else encoded(str(arg)) for arg in command]
    return b"*%d\r\n%b" % (
        len(texts),
        b"".join([b"$%d\r\n%b\r\n" % (len(text), text) for text in texts]),
    )


_pack_quickly: Callable[[Any], Any] = _pack_plainly
with suppress(ImportError):
    import hiredis

    _pack_quickly = hiredis.pack_command


def pack(command: Command) -> bytes:
    """A command as it is sent. redis-py's asynchronous connections do this in Python only."""
    try:
        packed: bytes = _pack_quickly(tuple(command))
    except UnicodeEncodeError:  # a key of another program, which is not text
        return _pack_plainly(command)
    return packed


# Temporary refusals, before anything was done.
_NOT_YET: Final = (
    exceptions.BusyLoadingError,
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.OutOfMemoryError,
)
_NOT_YET_WORDS: Final = (
    *("OOM", "BUSY", "MISCONF", "NOREPLICAS", "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN"),
    "TRYAGAIN",
)
_HINTS: Final = {
    "unknown command": "Is it a Redis of 6.2 or newer, and are all commands allowed?",
    "WRONGTYPE": "A key that begins with 'pyncette2:' holds something that is not ours.",
}


def translated(error: Exception, place: str, executed: bool = True) -> StoreError:
    """Translates an error of the driver, the network or the server to one of Pyncette's.

    Args:
        error: The error that was raised or answered.
        place: The name of the server, for messages.
        executed: Whether the server may have executed the command.
    """
    if isinstance(error, StoreError):
        return error
    text = str(error) or type(error).__name__
    told = f"{place}: {text}"
    if isinstance(error, _NOT_YET) or text.startswith(_NOT_YET_WORDS):
        return NotExecutedError(told)
    if isinstance(error, exceptions.AuthenticationError | exceptions.NoPermissionError):
        return StoreMisconfiguredError(f"{place} does not let us in: {text}")
    # In redis-py these are ConnectionErrors if they happen while connecting.
    if "invalid username-password pair" in text or text.startswith(("WRONGPASS", "NOAUTH")):
        return StoreMisconfiguredError(f"{place} does not let us in: {text}")
    unavailable = (exceptions.ConnectionError, exceptions.TimeoutError, OSError, TimeoutError)
    if isinstance(error, unavailable):
        return StoreUnavailableError(told) if executed else NotExecutedError(told)
    hint = next((hint for words, hint in _HINTS.items() if words in text), "")
    return StoreMisconfiguredError(f"{told}. {hint}".rstrip(". ") + ".")


class Dialer:
    """Opens connections, and closes all of them at the end, including those in use.

    Args:
        connection_class: A class of connections of redis-py.
        arguments: Its keyword arguments, without ``host`` and ``port``.
        timeout: Seconds within which a connection is opened and within which a call is answered;
            None: five seconds for the first, and no limit for the second.
    """

    def __init__(
        self,
        connection_class: type[Any],
        arguments: dict[str, Any],
        timeout: float | None,
    ) -> None:
        self._connection_class = connection_class
        self._arguments = {
            "socket_connect_timeout": timeout or CONNECT_TIMEOUT_S,
            "socket_keepalive": True,
            **arguments,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_timeout": False,
            "retry_on_error": [],
            "decode_responses": False,
            "health_check_interval": 0,
        }
        if timeout is not None:
            self._arguments.update(socket_connect_timeout=timeout, socket_timeout=timeout)
        self._arguments.setdefault("socket_timeout", None)
        if not issubclass(connection_class, Connection):
            self._arguments.pop("socket_keepalive")
        self._opening: set[Any] = set()
        # The transport of each connection. The driver drops its reference after an error; data
        # that was not sent yet would then keep the socket to a hanging server open.
        self._open: dict[Any, asyncio.WriteTransport | None] = {}
        self._closed = False

    def make(self, address: dict[str, Any]) -> Any:
        """Creates a connection to this address, without opening it.

        Raises:
            TypeError: There is no such argument of a connection.
        """
        return self._connection_class(**{**self._arguments, **address})

    async def open(self, address: dict[str, Any], place: str) -> Any:
        """Opens a connection to this address.

        Raises:
            StoreError: It could not be opened, or the dialer is closed.
        """
        self._check_open(place)
        connection = self.make(address)
        self._opening.add(connection)
        try:
            async with realtime.timeout(self._arguments["socket_connect_timeout"]):
                await connection.connect()
            self._check_open(place)
        except BaseException as error:
            await self.drop(connection)
            if isinstance(error, Exception):
                raise translated(error, place, executed=False) from error
            raise
        finally:
            self._opening.discard(connection)
        self._open[connection] = _transport_of(connection)
        return connection

    def _check_open(self, place: str) -> None:
        if self._closed:
            raise NotExecutedError(f"{place} is not called any more: the store is closed")

    async def drop(self, connection: Any) -> None:
        """Closes a connection without waiting for the other side."""
        _abort(self._open.pop(connection, None) or _transport_of(connection))
        await _disconnect(connection)

    async def close(self) -> None:
        """Closes every connection, including those in use, and opens none from now on.

        All sockets are closed before anything is awaited, so that a cancellation leaves none.
        """
        self._closed = True
        opened, self._open = self._open, {}
        for transport in (*map(_transport_of, self._opening), *opened.values()):
            _abort(transport)
        # A connection that is being opened would otherwise be opened after this.
        for connection in opened:
            await _disconnect(connection)


def _transport_of(connection: Any) -> asyncio.WriteTransport | None:
    writer: asyncio.StreamWriter | None = getattr(connection, "_writer", None)
    return None if writer is None else writer.transport


def _abort(transport: asyncio.WriteTransport | None) -> None:
    """Closes the socket at once, without sending the rest."""
    if transport is not None:
        transport.abort()


async def _disconnect(connection: Any) -> None:
    with suppress(OSError, TimeoutError, exceptions.RedisError):
        await connection.disconnect(nowait=True)


def is_alive(connection: Any) -> bool:
    """Whether an idle connection is still open at the server.

    The driver's own check (``can_read``) has a different name in each release.
    """
    reader = getattr(connection, "_reader", None)
    return bool(connection.is_connected) and not (
        reader is not None and (reader.at_eof() or reader.exception() is not None)
    )


async def exchange(connection: Any, commands: Iterable[Command]) -> list[Reply]:
    """Sends commands together and returns the answer to each.

    Raises:
        Exception: The connection is lost; the commands may have been executed or not.
    """
    packed = [pack(command) for command in commands]
    await connection.send_packed_command(packed, check_health=False)
    replies: list[Reply] = []
    for _ in packed:
        try:
            replies.append(await connection.read_response(disable_decoding=True))
        except exceptions.ResponseError as error:
            if str(error).startswith("Protocol error"):  # and it closes the connection
                raise exceptions.ConnectionError(str(error)) from error
            replies.append(error)
    return replies


async def ask(connection: Any, *command: Argument) -> Reply:
    """As ``exchange``, for one command.

    Raises:
        Exception: As ``exchange``; also the error that the server answered.
    """
    [reply] = await exchange(connection, [command])
    if isinstance(reply, Exception):
        raise reply
    return reply


class _Places:
    """The connections of one lane: the number that may still be used, and the idle ones."""

    def __init__(self, size: int) -> None:
        self.free = asyncio.Semaphore(size)
        self.idle: list[Any] = []


class Server:
    """One server, with connections for each lane.

    Args:
        place: The name of the server, for messages.
        dialer: Opens connections.
        address: Keyword arguments of a connection.
        pool_size: Maximum connections: one for claims, one for outcomes, the others for users.
    """

    def __init__(self, place: str, dialer: Dialer, address: dict[str, Any], pool_size: int) -> None:
        self.place = place
        self.address = address
        self.dialer = dialer
        self._lanes = {
            Lane.CLAIMS: _Places(1),
            Lane.OUTCOMES: _Places(1),
            Lane.USERS: _Places(pool_size - 2),
        }
        self._retired = False
        self._silent_until = 0.0
        self._under_way = 0
        self._heard_at = 0.0
        self.judging = asyncio.Lock()

    @property
    def silence(self) -> float:
        """Returns for how many seconds the server has answered none of the calls under way."""
        return realtime.monotonic() - self._heard_at if self._under_way else 0.0

    @property
    def silent(self) -> bool:
        """Whether the server was marked as silent within the last ``SILENT_FOR_S`` seconds."""
        return self._silent_until > 0.0 and realtime.monotonic() < self._silent_until

    def found_silent(self) -> None:
        """Marks the server as silent for ``SILENT_FOR_S`` seconds."""
        self._silent_until = realtime.monotonic() + SILENT_FOR_S

    async def open(self) -> Any:
        """Opens a connection that belongs to no lane; the caller passes it to ``dialer.drop``."""
        return await self.dialer.open(self.address, self.place)

    async def send(self, lane: Lane, commands: Sequence[Command]) -> list[Reply]:
        """Sends commands together and returns the answer to each.

        A connection that fails, or whose call is cancelled, is closed.

        Raises:
            NotExecutedError: No connection could be opened.
            StoreError: The connection was lost.
        """
        places = self._lanes[lane]
        async with places.free:
            if not self._under_way:
                self._heard_at = realtime.monotonic()
            self._under_way += 1
            try:
                replies = await self._exchange(places, commands)
                self._heard_at = realtime.monotonic()
                return replies
            finally:
                self._under_way -= 1

    async def _exchange(self, places: _Places, commands: Sequence[Command]) -> list[Reply]:
        connection = await self._take(places)
        try:
            replies = await exchange(connection, commands)
        except BaseException as error:
            await self.dialer.drop(connection)
            if isinstance(error, Exception):
                raise translated(error, self.place) from error
            raise
        if self._retired:
            await self.dialer.drop(connection)
        else:
            places.idle.append(connection)
        return replies

    async def _take(self, places: _Places) -> Any:
        while places.idle:
            connection = places.idle.pop()
            if is_alive(connection):
                return connection
            await self.dialer.drop(connection)
        return await self.open()

    async def refuses_length(self, length: int) -> bool:
        """Whether the server refuses an argument of this many bytes (``proto-max-bulk-len``).

        The server closes the connection after such an argument, often before its error can be
        read. So only the beginning of such an argument is sent here.

        Raises:
            StoreError: The server cannot be reached.
        """
        connection = await self.open()
        try:
            beginning = b"*2\r\n$4\r\nPING\r\n$%d\r\n" % length
            await connection.send_packed_command(beginning, check_health=False)
            await connection.read_response(disable_decoding=True, timeout=REFUSAL_TIMEOUT_S)
        except exceptions.ResponseError as error:
            return "bulk length" in str(error)
        except (OSError, exceptions.RedisError) as error:
            raise translated(error, self.place) from error
        finally:
            await self.dialer.drop(connection)
        return False

    async def drop_idle(self) -> None:
        """Closes the idle connections."""
        for places in self._lanes.values():
            while places.idle:
                await self.dialer.drop(places.idle.pop())

    async def retire(self) -> None:
        """Closes the idle connections now, and the others when their calls end."""
        self._retired = True
        await self.drop_idle()
