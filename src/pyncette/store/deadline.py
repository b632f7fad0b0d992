"""A store whose every call has a deadline.

The one place where calls to a store are wrapped: past its deadline a call is cancelled, so that
the store drops its connection, and what became of it is unknown. While one is under way, the
app's clock is held, in case it is one that is moved by hand.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Sequence
from typing import TypeVar

from pyncette.clock import Clock, realtime
from pyncette.errors import StoreUnavailableError
from pyncette.store import (
    Claimed,
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
from pyncette.store.record import Record

_Answer = TypeVar("_Answer")


class DeadlineStore:
    """Passes calls on to a store; see ``pyncette.store.Store`` for what they do."""

    def __init__(self, store: Store, clock: Clock, deadline_s: float) -> None:
        """Wraps a store."""
        self._store = store
        self._clock = clock
        self._deadline_s = deadline_s

    async def _bounded(self, name: str, call: Awaitable[_Answer]) -> _Answer:
        try:
            with self._clock.hold():
                async with realtime.timeout(self._deadline_s):
                    return await call
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"{name} was not answered within {self._deadline_s:g} s"
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
        return await self._bounded("claim", call)

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        return await self._bounded("write", self._store.write(batch, now, wake))

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        return await self._bounded("get", self._store.get(identities))

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        return await self._bounded("scan", self._store.scan(group, where, cursor, limit))

    async def now(self) -> int | None:
        return await self._bounded("now", self._store.now())

    async def watch(self, groups: Collection[str], on_wake: WakeCallback) -> Watch | None:
        return await self._bounded("watch", self._store.watch(groups, on_wake))
