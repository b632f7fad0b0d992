"""A store whose every call has a deadline.

This is the only place where calls to a store are wrapped. A call that exceeds its deadline is
cancelled, and the store closes its connection; the outcome of the call is then unknown. During a
call the app's clock is held, in case a test moves it. What a store raises leaves as one of the
classes in ``pyncette.errors``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, NoReturn, TypeVar

from pyncette.clock import Clock, realtime
from pyncette.connections import Do, Link
from pyncette.errors import (
    AppClosedError,
    DeadlineExceededError,
    StoreError,
    StoreUnavailableError,
    as_public,
    describe,
)
from pyncette.observers import Reporter
from pyncette.store import (
    Claimed,
    Counted,
    Filter,
    Identity,
    Page,
    Result,
    Source,
    Store,
    WakeCallback,
    Watch,
    Write,
)
from pyncette.store.history import History, RowsPage, RunFilter, RunRow, TotalRow
from pyncette.store.record import Record
from pyncette.store.sql.joined import Joined

_Answer = TypeVar("_Answer")


class _ClosedStore:
    """What is there in place of a store that is closed."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AppClosedError


class DeadlineStore:
    """Passes calls on to a store; see ``pyncette.store.Store`` for what they do.

    Attributes:
        deadline_s: Seconds that a call may take.
    """

    def __init__(
        self, store: Store, clock: Clock, deadline_s: float, reporter: Reporter | None = None
    ) -> None:
        """Wraps a store.

        Args:
            store: The store.
            clock: The app's clock.
            deadline_s: Seconds that a call may take.
            reporter: Tells of the calls.
        """
        self._reporter = reporter
        self._store = store
        self._clock = clock
        self.deadline_s = deadline_s

    @property
    def closed(self) -> bool:
        """Whether the app, and with it the store, is closed."""
        return isinstance(self._store, _ClosedStore)

    def close(self) -> None:
        """The store is closed: each call raises ``AppClosedError`` from now on."""
        closed: Any = _ClosedStore()
        self._store = closed

    async def _bounded(
        self, operation: str, call: Awaitable[_Answer], deadlines: int = 1
    ) -> _Answer:
        if self._reporter is not None and self._reporter.observers.watch_details:
            call = self._reporter.call(operation, call)
        deadline_s = deadlines * self.deadline_s
        try:
            with self._clock.hold():
                async with realtime.timeout(deadline_s) as deadline:
                    return await call
        except TimeoutError as error:
            if not deadline.expired():  # out of the store, and not ours
                raise StoreUnavailableError(f"{operation} failed: {describe(error)}") from error
            raise DeadlineExceededError(operation, deadline_s) from error
        except StoreError as error:
            raise as_public(error) from error.__cause__
        except asyncio.CancelledError as error:
            caller = asyncio.current_task()
            if caller is None or caller.cancelling():
                raise
            # Out of something that the store or its driver awaits: nobody has cancelled the caller,
            # which would end as if somebody had.
            raise StoreUnavailableError(
                f"{operation} failed: what the store waited for was cancelled"
            ) from error

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
        deadlines: int = 1,
    ) -> Claimed:
        call = self._store.claim(
            sources,
            limit,
            now,
            token,
            repeated,
            bounded=bounded,
            unfinished_max=unfinished_max,
        )
        return await self._bounded("claim", call, deadlines)

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        results = await self._bounded("write", self._store.write(batch, now, wake))
        self._clock.changed()
        return results

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        return await self._bounded("get", self._store.get(identities))

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        return await self._bounded("scan", self._store.scan(group, where, cursor, limit))

    async def count(self, group: str, where: Filter, limit: int) -> Counted:
        return await self._bounded("count", self._store.count(group, where, limit))

    async def now(self) -> int | None:
        return await self._bounded("now", self._store.now())

    async def shortcomings(self) -> list[str]:
        """Returns what the store could do its work better with, for people."""
        find: Callable[[], Awaitable[list[str]]] | None = getattr(self._store, "shortcomings", None)
        return [] if find is None else await self._bounded("shortcomings", find())

    @property
    def history(self) -> DeadlineHistory | None:
        """The run history of the store; None if it cannot keep one."""
        history: History | None = getattr(self._store, "history", None)
        return None if history is None else DeadlineHistory(history, self._bounded)

    @property
    def name(self) -> str:
        """What the store is, for messages."""
        return type(self._store).__name__

    async def joined(self, link: Link) -> Joined:
        """Returns the calls of the store on a connection of the application.

        Raises:
            TypeError: The store has no transactions, or the connection is to another database.
            StoreUnavailableError: The store does not answer.
        """
        join: Callable[[Link], Awaitable[Joined]] | None = getattr(self._store, "joined", None)
        if join is None:
            raise self._without_transactions()
        return await self._bounded("joining a transaction", join(link))

    def lent(self, do: Do) -> AbstractAsyncContextManager[Any]:
        """Lends a connection of the store's driver, for a transaction of a run.

        Args:
            do: Where a blocking connection is used.

        Raises:
            TypeError: The store has no transactions, or its connections cannot be used there.
        """
        lend = getattr(self._store, "lent", None)
        if lend is None:
            raise self._without_transactions()
        lent: AbstractAsyncContextManager[Any] = lend(do)
        return lent

    def turn(self, still: Callable[[], None]) -> AbstractAsyncContextManager[None]:
        """Waits until a transaction of a run may begin, in a store in which they take turns.

        Args:
            still: Raises an error if it makes no sense to wait any longer.
        """
        turn = getattr(self._store, "turn", None)
        taken: AbstractAsyncContextManager[None] = nullcontext() if turn is None else turn(still)
        return taken

    def _without_transactions(self) -> TypeError:
        return TypeError(
            f"The store of this app ({self.name}) cannot take part in a "
            "transaction: those in SQLite files, PostgreSQL, MySQL and MariaDB can"
        )

    @property
    def now_uncertainty(self) -> int:
        """By how many microseconds the store's clock may be ahead of the last ``now()``."""
        uncertainty: int = getattr(self._store, "now_uncertainty", 1)
        return uncertainty

    async def watch(self, groups: Collection[str], on_wake: WakeCallback) -> Watch | None:
        return await self._bounded("watch", self._store.watch(groups, on_wake))


class DeadlineHistory:
    """Passes calls on to the run history of a store; see ``pyncette.store.history.History``."""

    def __init__(self, history: History, bounded: Callable[..., Awaitable[Any]]) -> None:
        """Wraps it; ``bounded`` makes a call."""
        self._history = history
        self._bounded = bounded

    async def prepare(self, keep: int) -> None:
        await self._bounded("history.prepare", self._history.prepare(keep))

    async def append(self, runs: Sequence[RunRow], totals: Sequence[TotalRow]) -> None:
        await self._bounded("history.append", self._history.append(runs, totals))

    async def runs(self, where: RunFilter, cursor: str | None, limit: int) -> RowsPage:
        page: RowsPage = await self._bounded(
            "history.runs", self._history.runs(where, cursor, limit)
        )
        return page

    async def totals(self, task: str | None, since: int, until: int) -> list[TotalRow]:
        found: list[TotalRow] = await self._bounded(
            "history.totals", self._history.totals(task, since, until)
        )
        return found

    async def prune(self, task: str | None, before: int, limit: int) -> int:
        removed: int = await self._bounded(
            "history.prune", self._history.prune(task, before, limit)
        )
        return removed
