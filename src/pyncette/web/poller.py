"""Looks at the store for all viewers together, and tells them when to look again.

What was read is kept for one interval, and whoever asks for the same meanwhile gets the same: ten
viewers of a screen cost what one costs. While a viewer has a live page open, an interval ends with
a tick, on which the pages read again. Without a viewer nothing is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

from pyncette.clock import realtime

_T = TypeVar("_T")

KEPT_MAX: Final = 256
"""Answers that are kept at most."""

LOAD_MAX: Final = 0.1
"""The part of the time that reading for live pages may take; if it takes more, ticks are rarer."""

INTERVAL_MAX_S: Final = 30.0
"""But no rarer than this."""


class Poller:
    """Keeps answers for an interval, and ticks."""

    def __init__(self, interval_s: float) -> None:
        """Keeps nothing yet."""
        self._interval_s = interval_s
        self._kept: dict[Hashable, tuple[float, asyncio.Task[Any]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._viewers: set[asyncio.Event] = set()
        # What reading has taken since the last tick, and between the two ticks before.
        self._took_s = self._took_before_s = 0.0

    @property
    def viewers(self) -> int:
        """How many live pages are open."""
        return len(self._viewers)

    @property
    def interval_s(self) -> float:
        """How long an answer is kept, and how long it is from one tick to the next."""
        return max(self._interval_s, min(self._took_before_s / LOAD_MAX, INTERVAL_MAX_S))

    async def get(self, key: Hashable, read: Callable[[], Awaitable[_T]]) -> _T:
        """Returns what ``read`` returns, or has returned within this interval for the same key."""
        self._here()
        now = realtime.monotonic()
        found = self._kept.get(key)
        if found is None or (found[1].done() and (now >= found[0] or _failed(found[1]))):
            if len(self._kept) >= KEPT_MAX:
                self._drop(now)
            task = asyncio.ensure_future(self._timed(read))
            task.add_done_callback(_failed)  # it may be that nothing waits for it any more
            # Kept from its start, so that nobody begins the same meanwhile.
            self._kept[key] = now + self.interval_s, task
        else:
            task = found[1]
        answer: _T = await asyncio.shield(task)
        return answer

    def forget(self) -> None:
        """Something was changed: what was read before is not shown any more."""
        self._kept.clear()
        for ticked in self._viewers:
            ticked.set()

    @contextmanager
    def watching(self) -> Iterator[asyncio.Event]:
        """Gives an event that is set at each tick, while the block lasts: a viewer looks."""
        self._here()
        ticked = asyncio.Event()
        self._viewers.add(ticked)
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.create_task(self._tick(), name="pyncette dashboard ticks")
        try:
            yield ticked
        finally:
            self._viewers.discard(ticked)
            if not self._viewers and self._ticking is not None:
                self._ticking.cancel()
                self._ticking = None

    def _here(self) -> None:
        """Begins anew if this is another event loop than before, as in tests."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._ticking = loop, None
            self._kept, self._viewers = {}, set()

    async def _tick(self) -> None:
        # What was read before anybody looked at a live page is no load of live pages.
        self._took_before_s = 0.0
        while True:
            self._took_s = 0.0
            await realtime.sleep(self.interval_s)
            self._took_before_s = self._took_s
            for ticked in self._viewers:
                ticked.set()

    async def _timed(self, read: Callable[[], Awaitable[_T]]) -> _T:
        began = realtime.monotonic()
        try:
            return await read()
        finally:
            self._took_s += realtime.monotonic() - began

    def _drop(self, now: float) -> None:
        for key, (until, _) in list(self._kept.items()):
            if until <= now:
                del self._kept[key]
        while len(self._kept) >= KEPT_MAX:
            with suppress(StopIteration):
                del self._kept[next(iter(self._kept))]


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
