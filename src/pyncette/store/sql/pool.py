"""Connections to an SQL server: opened when needed, limited in number, always closed in the end.

Knows neither a driver nor a statement. The caller passes the parts that differ between drivers: how
to open and close a connection (``Supply``), and what an error means (``Driver``).

* Each call runs on its own connection. If all connections are in use, further calls wait.
* A call that is cancelled, or that loses its server, gives up its connection. The statement that it
  left running at the server is ended first. Until then the connection counts, so that the server
  never has more sessions than the size of the pool.
* If the server had closed a connection before the call sent anything, the call is made on another
  connection. Of calls that may have reached the server only those that read are repeated, and only
  if the connection had been idle before.
* A closed pool opens no connection. Running calls end with ``StoreUnavailableError``, and every
  connection is closed, also if closing is cancelled.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from pyncette.clock import realtime
from pyncette.errors import StoreError, StoreUnavailableError

CLOSE_TIMEOUT_S: Final = 2.0
"""How long closing one connection may take, including the end of its running statement."""

UNSENT_TRIES_MAX: Final = 3
"""How many closed connections one call may encounter before it fails."""

Connection = Any
"""A connection of some driver; it must be hashable."""

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Driver:
    """What the errors and connections of a driver mean.

    Attributes:
        errors: The exceptions of a call if the driver, the network or the server fails.
        translated: Translates such an error to one of Pyncette's.
        is_open: Whether a connection can be used, as far as the client knows.
        answered: Whether the server itself answered with this error, so that the connection can
            be used for the next statement.
        unsent: Whether the error proves that the server did not execute the statement, because
            the connection was closed before.
        idle_s_max: How long a connection may be idle, in seconds, before it is replaced because the
            server may be about to close it.
    """

    errors: tuple[type[Exception], ...]
    translated: Callable[[Exception], Exception]
    is_open: Callable[[Connection], bool]
    answered: Callable[[BaseException], bool]
    unsent: Callable[[BaseException], bool]
    idle_s_max: Callable[[Connection], float] = lambda connection: math.inf


class Supply(Protocol):
    """Opens and closes connections."""

    async def open(self) -> Connection:
        """Opens a connection and sets up its session. If cancelled, it leaves nothing open."""

    async def close(self, connection: Connection) -> None:
        """Ends the running statement, then closes the connection or returns it to its owner."""

    def drop(self, connection: Connection) -> None:
        """Closes the connection at once, without waiting."""


def always() -> bool:
    """Always true: for calls that may be repeated as long as nothing was sent."""
    return True


class Pool:
    """Runs calls, each on its own connection.

    Args:
        place: The server, for messages.
        size: Maximum number of connections, including those that are being closed.
        kept: Maximum number of idle connections that stay open.
        supply: See ``Supply``.
        driver: See ``Driver``.
    """

    def __init__(self, place: str, size: int, kept: int, supply: Supply, driver: Driver) -> None:
        self._place = place
        self._kept = kept
        self._supply = supply
        self._driver = driver
        self._room = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._idle_since: dict[Connection, float] = {}
        self._open: set[Connection] = set()
        self._calls: set[asyncio.Timeout] = set()
        self._closings: set[asyncio.Task[None]] = set()
        self._closed = False
        self._quiet = asyncio.Event()
        # Tasks that close connections belong to the store, not to the calls that gave them up.
        self._context = contextvars.copy_context()

    async def run(
        self,
        call: Callable[[Connection], Awaitable[_Answer]],
        repeatable: Callable[[], bool] = always,
        reads: bool = False,
    ) -> _Answer:
        """Makes a call, which may consist of several statements.

        Args:
            call: Gets a connection that no other call uses meanwhile.
            repeatable: Called if the connection was closed before a statement was sent. Returns
                whether no earlier statement of the call has changed anything.
            reads: Whether the call only reads. Then it is also repeated if it is unknown whether
                the server executed it.

        Raises:
            StoreError: It failed. It is unknown whether its last statement took effect.
        """
        self._check_open()
        # It has no deadline until the pool is closed, which makes it expire.
        scope = realtime.timeout(None)
        try:
            async with scope:
                self._calls.add(scope)
                try:
                    return await self._in_turn(call, repeatable, reads)
                finally:
                    self._calls.discard(scope)
                    self._notice_quiet()
        except self._driver.errors as error:
            if scope.expired():
                raise StoreUnavailableError(
                    f"{self._place}: the store was closed while a call was under way"
                ) from error
            raise self._driver.translated(error) from error

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[Connection]:
        """Lends a new connection, which is closed afterwards: its session may have been changed.

        Raises:
            StoreError: It cannot be opened.
        """
        await self._room.acquire()
        try:
            connection = await self._take(kept=False)
        except BaseException as error:
            self._room.release()
            if isinstance(error, self._driver.errors):
                raise self._driver.translated(error) from error
            raise
        try:
            yield connection
        finally:
            self._close_aside(connection, self._room.release)

    async def keep(self, connection: Connection) -> None:
        """Adds a connection that the same supply has opened."""
        self._open.add(connection)
        await self._give_back(connection)

    async def close(self) -> None:
        """Ends the running calls, and closes every connection.

        Takes little longer than ``CLOSE_TIMEOUT_S``. If it is cancelled, the connections that are
        still open are dropped at once.
        """
        try:
            if not self._closed:
                self._closed = True
                for scope in self._calls:
                    scope.reschedule(0.0)
                idle, self._idle = self._idle, []
                self._idle_since.clear()
                for connection in idle:
                    self._close_aside(connection)
            async with realtime.timeout(CLOSE_TIMEOUT_S + 0.5):
                while self._calls or self._closings:
                    self._quiet.clear()
                    await self._quiet.wait()
        except TimeoutError:
            pass
        finally:
            self.drop()

    def drop(self) -> None:
        """Closes every connection at once. No connection is opened afterwards."""
        self._closed = True
        for closing in self._closings:
            closing.cancel()
        for connection in list(self._open):
            self._drop(connection)
        self._idle.clear()
        self._idle_since.clear()

    async def _in_turn(
        self,
        call: Callable[[Connection], Awaitable[_Answer]],
        repeatable: Callable[[], bool],
        reads: bool,
    ) -> _Answer:
        await self._room.acquire()
        has_room = True
        try:
            for tries_left in reversed(range(UNSENT_TRIES_MAX)):
                # If one connection was closed, the others probably were, too.
                first = tries_left == UNSENT_TRIES_MAX - 1
                connection = await self._take(kept=first)
                try:
                    answer = await call(connection)
                except BaseException as error:
                    if isinstance(error, StoreError) or self._driver.answered(error):
                        await self._give_back(connection)
                    elif (tries_left and self._driver.unsent(error) and repeatable()) or (
                        first and reads and self._is_lost(connection, error)
                    ):
                        self._drop(connection)
                        continue
                    else:
                        has_room = False
                        self._close_aside(connection, self._room.release)
                    raise
                await self._give_back(connection)
                return answer
            raise AssertionError("never reached: the last try returns or raises")
        finally:
            if has_room:
                self._room.release()

    def _is_lost(self, connection: Connection, error: BaseException) -> bool:
        return isinstance(error, self._driver.errors) and not self._driver.is_open(connection)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError(f"{self._place}: the store is closed")

    async def _take(self, kept: bool) -> Connection:
        self._check_open()
        while kept and self._idle:
            connection = self._idle.pop()
            idle_s = realtime.monotonic() - self._idle_since.pop(connection)
            if self._driver.is_open(connection) and idle_s < self._driver.idle_s_max(connection):
                return connection
            self._drop(connection)
        connection = await self._supply.open()
        self._open.add(connection)
        return connection

    async def _give_back(self, connection: Connection) -> None:
        if not self._closed and len(self._idle) < self._kept and self._driver.is_open(connection):
            self._idle.append(connection)
            self._idle_since[connection] = realtime.monotonic()
        else:
            await self._close_one(connection)

    def _close_aside(self, connection: Connection, then: Callable[[], None] | None = None) -> None:
        """Closes a connection in the background, while its call raises."""
        closing = asyncio.get_running_loop().create_task(
            self._close_one(connection), name="pyncette closing", context=self._context
        )
        self._closings.add(closing)

        def closed(task: asyncio.Task[None]) -> None:
            self._closings.discard(task)
            # If it was cancelled before it began, the connection is still open.
            self._drop(connection)
            if then is not None:
                then()
            self._notice_quiet()

        closing.add_done_callback(closed)

    async def _close_one(self, connection: Connection) -> None:
        try:
            async with realtime.timeout(CLOSE_TIMEOUT_S):
                await self._supply.close(connection)
        except self._driver.errors:
            self._drop(connection)
        except BaseException:
            self._drop(connection)
            raise
        self._open.discard(connection)

    def _drop(self, connection: Connection) -> None:
        if connection in self._open:
            self._open.discard(connection)
            self._supply.drop(connection)

    def _notice_quiet(self) -> None:
        if not self._calls and not self._closings:
            self._quiet.set()
