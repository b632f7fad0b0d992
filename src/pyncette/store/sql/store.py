"""A store in an SQL database: which connection makes which call.

Claims and outcomes of runs have a connection each, so that they never wait for calls of users. The
statements of a call are in ``Table``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

from pyncette.connections import Do, Link, at_once
from pyncette.errors import StoreError
from pyncette.store import (
    Claimed,
    Counted,
    Filter,
    Identity,
    Page,
    Result,
    Source,
    WakeCallback,
    Watch,
    Write,
)
from pyncette.store.record import Record
from pyncette.store.sql.conditional import ConditionalWrite
from pyncette.store.sql.history import HistoryTable, SqlHistory
from pyncette.store.sql.joined import Joined
from pyncette.store.sql.listener import Listener
from pyncette.store.sql.low_water import LowWaterMarks
from pyncette.store.sql.pool import Connection, Pool

RESERVED: Final = 2
"""Connections that calls of users cannot use: one for claims, one for the outcomes of runs."""

POOL_SIZE_MIN: Final = RESERVED + 1


class Table(Protocol):
    """The statements of each call. See ``pyncette.store.Store`` for the calls."""

    low_water_marks: LowWaterMarks
    notifies: bool
    """Whether ``notify`` does anything."""

    async def claim(
        self,
        connection: Connection,
        sources: Sequence[Source],
        limit: int,
        now: int,
        token: str,
        repeated: bool,
        bounded: bool,
        unfinished_max: int | None,
    ) -> Claimed: ...

    async def write(self, connection: Connection, batch: ConditionalWrite, now: int) -> None:
        """Continues until every write has an answer, see ``ConditionalWrite.run``."""

    async def notify(self, connection: Connection, groups: Collection[str]) -> None:
        """Notifies other processes of these groups, if the server can."""

    async def get(
        self, connection: Connection, identities: Sequence[Identity]
    ) -> list[Record | None]: ...

    async def scan(
        self, connection: Connection, group: str, where: Filter, cursor: str | None, limit: int
    ) -> Page: ...

    async def count(
        self, connection: Connection, group: str, where: Filter, limit: int
    ) -> Counted: ...

    async def now(self, connection: Connection) -> int: ...


class SqlStore:
    """See ``pyncette.store.Store``.

    Args:
        table: Has the statements of the calls.
        pool: Makes a pool. Its arguments are the size, and how many connections stay open when
            they are idle.
        size: Maximum number of connections of all pools together, at least ``POOL_SIZE_MIN``.
        opening: Connects to the server with the pool of users' calls, and creates the table if it
            is missing. Returns the function that listens, if the server can notify.
        joining: Returns the calls on a connection of the application.
        lending: Makes a pool of this size, whose sessions are as the driver makes them.
        history: Has the statements of the run history.

    Attributes:
        history: The run history, see ``pyncette.store.history``.
    """

    def __init__(
        self,
        table: Table,
        pool: Callable[[int, int], Pool],
        size: int,
        opening: Callable[[Pool], Awaitable[Listener | None]],
        joining: Callable[[Pool, Link], Awaitable[Joined]],
        lending: Callable[[int], Pool],
        history: HistoryTable,
    ) -> None:
        self._table = table
        self._claims = pool(1, 1)
        self._outcomes = pool(1, 1)
        self._users = pool(max(size - RESERVED, 1), 0)
        self.history: SqlHistory = SqlHistory(history, self._users)
        self._opening = opening
        self._joining = joining
        self._lent = lending(max(size - RESERVED, 1))
        self._listener: Listener | None = None

    async def open(self) -> None:
        """Connects to the server, and creates the table if it is missing."""
        self._listener = await self._opening(self._users)

    async def close(self) -> None:
        """Closes every connection, also if it is cancelled."""
        pools = (self._claims, self._outcomes, self._users, self._lent)
        listener = self._listener
        try:
            await asyncio.gather(
                *(pool.close() for pool in pools), *(() if listener is None else [listener.close()])
            )
        finally:
            # If it was cancelled, gather may not have started the calls.
            for pool in pools:
                pool.drop()
            if listener is not None:
                listener.drop()

    async def claim(
        self,
        sources: Sequence[Source],
        limit: int,
        now: int,
        token: str,
        repeated: bool = False,
        *,
        bounded: bool = False,
        unfinished_max: int | None = None,
    ) -> Claimed:
        return await self._claims.run(
            lambda connection: self._table.claim(
                connection, sources, limit, now, token, repeated, bounded, unfinished_max
            )
        )

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        of_runs = any(write.token is not None for write in batch)
        pool = self._outcomes if of_runs else self._users
        told = wake if self._table.notifies else ()
        writing = ConditionalWrite(batch)

        async def call(connection: Connection) -> None:
            if batch:
                await self._table.write(connection, writing, now)
            if told:
                await self._table.notify(connection, told)

        if not batch and not told:
            return []
        try:
            await pool.run(call, lambda: writing.untouched)
        except StoreError as error:
            # A notification may be lost, but the answers to the writes must not.
            return writing.answers(error)
        return writing.answers()

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        return await self._users.run(
            lambda connection: self._table.get(connection, identities), reads=True
        )

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        return await self._users.run(
            lambda connection: self._table.scan(connection, group, where, cursor, limit),
            reads=True,
        )

    async def count(self, group: str, where: Filter, limit: int) -> Counted:
        return await self._users.run(
            lambda connection: self._table.count(connection, group, where, limit)
        )

    async def now(self) -> int | None:
        return await self._claims.run(self._table.now, reads=True)

    async def joined(self, link: Link) -> Joined:
        """Returns the calls of this store on a connection of the application.

        Raises:
            TypeError: It is connected to another kind of database.
        """
        return await self._joining(self._users, link)

    @asynccontextmanager
    async def lent(self, do: Do) -> AsyncIterator[Connection]:
        """Lends a connection of the driver, for a transaction of a run.

        Raises:
            TypeError: It is wanted in a thread.
            StoreError: It cannot be opened.
        """
        if do is not at_once:
            raise TypeError(
                "The connections of this store belong to the event loop: in a function that runs "
                "in a thread, pass a blocking connection of your own to context.transaction()"
            )
        async with self._lent.lent() as connection:
            yield connection

    async def watch(self, groups: Collection[str], on_wake: WakeCallback) -> Watch | None:
        if self._listener is None:
            return None

        def wake(concerned: Collection[str] | None) -> None:
            self._table.low_water_marks.forget()
            on_wake(concerned)

        return self._listener.watch(groups, wake)
