"""Connections to one Redis server: opened when needed, bounded in number, dropped when in doubt.

Knows the driver and what its errors mean; knows neither keys nor scripts. Commands go straight
through connections of redis-py, past its clients and pools: these repeat by themselves what was
not answered, so that a claim whose answer is late would be made again and again. Nothing is
repeated here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, Final, TypeVar

from redis import exceptions
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from pyncette.clock import realtime
from pyncette.errors import StoreError, StoreMisconfiguredError, StoreUnavailableError
from pyncette.redis.layout import encoded

CONNECT_TIMEOUT_S: Final = 5.0
"""How long opening a connection may take, where ``redis_timeout`` does not say."""

Argument = bytes | str | int
Command = Sequence[Argument]
Reply = Any
"""What the server answers; an error that it answers is an exception, returned and not raised."""

_Answer = TypeVar("_Answer")


class NotExecutedError(StoreUnavailableError):
    """The server is out of reach, or refused for now: it is certain that nothing was done."""


class Lane(Enum):
    """Who uses a connection. Each has its own, so that none waits for what others do."""

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
    except UnicodeEncodeError:  # a key that somebody else wrote, and that is no text
        return _pack_plainly(command)
    return packed


# Refusals that come before anything is done, and pass.
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
    """An error of the driver, of the network or of the server as one of ours.

    Args:
        error: What was raised, or answered.
        place: The server, in words.
        executed: Whether the server may have done what it was asked to.
    """
    if isinstance(error, StoreError):
        return error
    text = str(error) or type(error).__name__
    told = f"{place}: {text}"
    if isinstance(error, _NOT_YET) or text.startswith(_NOT_YET_WORDS):
        return NotExecutedError(told)
    if isinstance(error, exceptions.AuthenticationError | exceptions.NoPermissionError):
        return StoreMisconfiguredError(f"{place} does not let us in: {text}")
    # A ConnectionError, for redis-py, if it is met while connecting.
    if "invalid username-password pair" in text or text.startswith(("WRONGPASS", "NOAUTH")):
        return StoreMisconfiguredError(f"{place} does not let us in: {text}")
    unavailable = (exceptions.ConnectionError, exceptions.TimeoutError, OSError, TimeoutError)
    if isinstance(error, unavailable):
        return StoreUnavailableError(told) if executed else NotExecutedError(told)
    hint = next((hint for words, hint in _HINTS.items() if words in text), "")
    return StoreMisconfiguredError(f"{told}. {hint}".rstrip(". ") + ".")


class Dialer:
    """Opens connections: what they have in common, apart from the address.

    Args:
        connection_class: Of redis-py.
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
        self.timeout = timeout

    def make(self, address: dict[str, Any]) -> Any:
        """A connection to this address that is not open yet.

        Raises:
            TypeError: There is no such argument of a connection.
        """
        return self._connection_class(**{**self._arguments, **address})

    async def open(self, address: dict[str, Any], place: str) -> Any:
        """A connection to this address.

        Raises:
            StoreError: There is none to be had.
        """
        connection = self.make(address)
        try:
            async with realtime.timeout(self._arguments["socket_connect_timeout"]):
                await connection.connect()
        except BaseException as error:
            await drop(connection)
            if isinstance(error, Exception):
                raise translated(error, place, executed=False) from error
            raise
        return connection


async def drop(connection: Any) -> None:
    """Closes a connection without waiting for the other side."""
    with suppress(OSError, TimeoutError, exceptions.RedisError):
        await connection.disconnect(nowait=True)


def is_alive(connection: Any) -> bool:
    """Whether the server has not closed a connection that nobody uses at present.

    The driver's own look (``can_read``) has another name in each release.
    """
    reader = getattr(connection, "_reader", None)
    return bool(connection.is_connected) and not (reader is not None and reader.at_eof())


async def exchange(connection: Any, commands: Iterable[Command]) -> list[Reply]:
    """Sends commands in one go and returns what is answered to each.

    Raises:
        Exception: The connection is lost; whatever was sent may have been done or not.
    """
    packed = [pack(command) for command in commands]
    await connection.send_packed_command(packed, check_health=False)
    replies: list[Reply] = []
    for _ in packed:
        try:
            replies.append(await connection.read_response(disable_decoding=True))
        except exceptions.ResponseError as error:
            replies.append(error)
    return replies


async def ask(connection: Any, *command: Argument) -> Reply:
    """As ``exchange``, for one command.

    Raises:
        Exception: Also what the server answers.
    """
    [reply] = await exchange(connection, [command])
    if isinstance(reply, Exception):
        raise reply
    return reply


class Connections:
    """At most so many connections to one server, for one lane.

    Args:
        place: Where they lead, in words.
        size: How many.
        open_one: Opens one.
    """

    def __init__(self, place: str, size: int, open_one: Callable[[], Awaitable[Any]]) -> None:
        self._place = place
        self._open_one = open_one
        self._places = asyncio.Semaphore(size)
        self._idle: list[Any] = []
        self._closed = False

    async def run(self, call: Callable[[Any], Awaitable[_Answer]]) -> _Answer:
        """Calls with a connection; one that fails, or is cancelled, is dropped.

        Raises:
            NotExecutedError: There is no connection to be had.
            StoreError: Any other failure.
        """
        async with self._places:
            connection = await self._take()
            try:
                answer = await call(connection)
            except BaseException as error:
                await drop(connection)
                if isinstance(error, Exception):
                    raise translated(error, self._place) from error
                raise
            if self._closed:
                await drop(connection)
            else:
                self._idle.append(connection)
            return answer

    async def _take(self) -> Any:
        while self._idle:
            connection = self._idle.pop()
            if is_alive(connection):
                return connection
            await drop(connection)
        return await self._open_one()

    async def close(self) -> None:
        """Closes those that nobody uses, and the others when they are given back."""
        self._closed = True
        await self.drop_idle()

    async def drop_idle(self) -> None:
        """Closes those that nobody uses."""
        idle, self._idle = self._idle, []
        for connection in idle:
            await drop(connection)


class Server:
    """One server, with connections for each lane.

    Args:
        place: In words.
        dialer: Opens connections.
        address: Keyword arguments of a connection.
        pool_size: Most connections: one for claims, one for outcomes, the others for users.
    """

    def __init__(self, place: str, dialer: Dialer, address: dict[str, Any], pool_size: int) -> None:
        self.place = place
        self.address = address
        self._dialer = dialer
        sizes = {Lane.CLAIMS: 1, Lane.OUTCOMES: 1, Lane.USERS: pool_size - 2}
        self._lanes = {lane: Connections(place, size, self.open) for lane, size in sizes.items()}

    async def open(self) -> Any:
        """A connection of one's own."""
        return await self._dialer.open(self.address, self.place)

    async def send(self, lane: Lane, commands: Sequence[Command]) -> list[Reply]:
        """Sends commands in one go and returns what is answered to each.

        Raises:
            StoreError: The connection could not be had, or was lost.
        """
        return await self._lanes[lane].run(lambda connection: exchange(connection, commands))

    async def close(self, and_forget: bool = True) -> None:
        """Closes its connections: for good, or those that are idle."""
        for connections in self._lanes.values():
            await (connections.close() if and_forget else connections.drop_idle())
