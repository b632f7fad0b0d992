"""Connections to an SQL server: opened when needed, bounded in number, closed whatever happens.

Knows neither a driver nor a statement. What differs between drivers is handed in: how to open and
close a connection (``Supply``), and what an error means (``Driver``).

* Each call runs on a connection of its own. Calls beyond the size of the pool wait for their turn.
* A call that is cancelled, or that loses its server, gives its connection up. What it left running
  at the server is ended first. Until then the connection counts, so that the server never has more
  sessions than the pool has room for.
* A connection that the server had closed before the call sent anything is replaced, and the call
  is made on another one. A call that may have reached the server is never repeated.
* A closed pool opens nothing. Calls under way end with ``StoreUnavailableError``, and every
  connection is closed, also when closing is cancelled.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from pyncette.clock import realtime
from pyncette.errors import StoreError, StoreUnavailableError

CLOSE_TIMEOUT_S: Final = 2.0
"""How long closing one connection may take, ending what still runs on it included."""

UNSENT_TRIES_MAX: Final = 3
"""How many connections one call may find closed before it fails."""

Connection = Any
"""A connection of some driver. It can be a member of a set."""

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Driver:
    """What the errors and connections of a driver mean.

    Attributes:
        errors: What a call raises when the driver, the network or the server fails.
        translated: Such an error as one of Pyncette's own.
        is_open: Whether a connection can be used, as far as this side knows.
        answered: Whether the server itself answered with this error, so that the connection can
            be used for the next statement.
        unsent: Whether the error proves that the server did not execute the statement, because
            the connection was closed before.
    """

    errors: tuple[type[Exception], ...]
    translated: Callable[[Exception], Exception]
    is_open: Callable[[Connection], bool]
    answered: Callable[[BaseException], bool]
    unsent: Callable[[BaseException], bool]


class Supply(Protocol):
    """Where connections come from, and where they go."""

    async def open(self) -> Connection:
        """One more connection, its session set up. When cancelled, it leaves nothing open."""

    async def close(self, connection: Connection) -> None:
        """Ends what still runs on the connection, then closes it or returns it to its owner."""

    def drop(self, connection: Connection) -> None:
        """Closes the connection at once, without waiting."""


def always() -> bool:
    """For calls that may be made again as long as nothing was sent."""
    return True


class Pool:
    """Runs calls, each on a connection of its own.

    Args:
        place: Where the connections lead, for messages.
        size: Maximum number of connections, those that are being closed included.
        kept: Maximum number of connections that stay open while no call uses them.
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
        self._open: set[Connection] = set()
        self._calls: set[asyncio.Timeout] = set()
        self._closings: set[asyncio.Task[None]] = set()
        self._closed = False
        self._quiet = asyncio.Event()
        # Closing a connection belongs to the store, not to the call that gave it up.
        self._context = contextvars.copy_context()

    async def run(
        self,
        call: Callable[[Connection], Awaitable[_Answer]],
        repeatable: Callable[[], bool] = always,
    ) -> _Answer:
        """Makes a call, which may consist of several statements.

        Args:
            call: Gets a connection that nothing else uses meanwhile.
            repeatable: Asked when the connection turned out to be closed before its statement was
                sent: whether no earlier statement of the call has changed anything.

        Raises:
            StoreError: It failed. Whether its last statement took effect is unknown.
        """
        self._check_open()
        # Never expires by itself: closing the pool makes it expire.
        scope = realtime.timeout(None)
        try:
            async with scope:
                self._calls.add(scope)
                try:
                    return await self._in_turn(call, repeatable)
                finally:
                    self._calls.discard(scope)
                    self._notice_quiet()
        except self._driver.errors as error:
            if scope.expired():
                raise StoreUnavailableError(
                    f"{self._place}: the store was closed while a call was under way"
                ) from error
            raise self._driver.translated(error) from error

    async def keep(self, connection: Connection) -> None:
        """Takes in a connection that was opened by the same supply."""
        self._open.add(connection)
        await self._give_back(connection)

    async def close(self) -> None:
        """Ends the calls under way, and closes every connection.

        Takes little longer than ``CLOSE_TIMEOUT_S``. When it is cancelled, what is still open is
        dropped at once.
        """
        try:
            if not self._closed:
                self._closed = True
                for scope in self._calls:
                    scope.reschedule(0.0)
                idle, self._idle = self._idle, []
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
        """Closes every connection at once. Nothing is opened afterwards."""
        self._closed = True
        for closing in self._closings:
            closing.cancel()
        for connection in list(self._open):
            self._drop(connection)
        self._idle.clear()

    async def _in_turn(
        self, call: Callable[[Connection], Awaitable[_Answer]], repeatable: Callable[[], bool]
    ) -> _Answer:
        await self._room.acquire()
        has_room = True
        try:
            for tries_left in reversed(range(UNSENT_TRIES_MAX)):
                # After one that was closed, the others are likely to be closed as well.
                connection = await self._take(kept=tries_left == UNSENT_TRIES_MAX - 1)
                try:
                    answer = await call(connection)
                except BaseException as error:
                    if isinstance(error, StoreError) or self._driver.answered(error):
                        await self._give_back(connection)
                    elif tries_left and self._driver.unsent(error) and repeatable():
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

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError(f"{self._place}: the store is closed")

    async def _take(self, kept: bool) -> Connection:
        self._check_open()
        while kept and self._idle:
            connection = self._idle.pop()
            if self._driver.is_open(connection):
                return connection
            self._drop(connection)
        connection = await self._supply.open()
        self._open.add(connection)
        return connection

    async def _give_back(self, connection: Connection) -> None:
        if not self._closed and len(self._idle) < self._kept and self._driver.is_open(connection):
            self._idle.append(connection)
        else:
            await self._close_one(connection)

    def _close_aside(self, connection: Connection, then: Callable[[], None] | None = None) -> None:
        """Closes a connection while its call goes on to raise."""
        closing = asyncio.get_running_loop().create_task(
            self._close_one(connection), name="pyncette closing", context=self._context
        )
        self._closings.add(closing)

        def closed(task: asyncio.Task[None]) -> None:
            self._closings.discard(task)
            # One that was cancelled before it began has closed nothing.
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
