"""Group commit: many small writes, asked for one by one, go to the store in batches.

One flight is under way at a time, and takes along all that was asked for while the one before it
was out: no timer, no added latency, and batches that grow with the load. The same lane carries
outcomes and heartbeats of executions, so that one never overtakes the other, and a second one
carries what users ask for. What is written is decided by the entries themselves, at the moment
when their flight leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, Protocol

from pyncette.clock import realtime
from pyncette.store import Applied, Failed, Identity, Refused, Result, Unknown, Write

logger = logging.getLogger(__name__)

FLIGHT_MAX: Final = 1_000
"""Most writes in one batch."""

RETRY_DELAY_INITIAL_S: Final = 0.05
RETRY_DELAY_MAX_S: Final = 2.0


class Entry(Protocol):
    """Something that wants one record changed."""

    def build(self, now: int) -> Write | None:
        """What to write, decided now; None: nothing any more."""

    def resolve(self, result: Applied | Refused, write: Write, now: int) -> bool:
        """Takes the answer. True: build and write again with the next flight."""

    def fail(self, error: Exception, now: int) -> bool:
        """The outcome of the write is unknown. True: build and write again after a while."""


Commit = Callable[[Sequence[Write], int], Awaitable[list[Result]]]


class Lane:
    """A queue of entries and the flights that empty it.

    Attributes:
        landed: Called when a flight has come back, if set.
    """

    landed: Callable[[], None] | None = None

    def __init__(self, commit: Commit, now: Callable[[], int]) -> None:
        """Creates an empty lane.

        Args:
            commit: Writes a batch to the store.
            now: The current instant.
        """
        self._commit = commit
        self._now = now
        self._urgent: deque[Entry] = deque()
        self._queue: deque[Entry] = deque()
        self._flights: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """How many entries wait for a flight."""
        return len(self._queue) + len(self._urgent)

    def add(self, entry: Entry, urgent: bool = False) -> None:
        """Queues an entry; urgent ones leave first."""
        (self._urgent if urgent else self._queue).append(entry)
        if self._flights is None:
            self._flights = asyncio.create_task(self._fly(), name="pyncette lane")

    async def drain(self) -> None:
        """Waits until nothing is queued or under way."""
        while self._flights is not None:
            await asyncio.shield(self._flights)

    async def _fly(self) -> None:
        delay = RETRY_DELAY_INITIAL_S
        try:
            while self._queue or self._urgent:
                now = self._now()
                flight, batch = self._board(now)
                if not batch:
                    continue
                try:
                    results = await self._commit(batch, now)
                except Exception as error:
                    if self._failed(flight, error):
                        await realtime.sleep(delay)
                        delay = min(2 * delay, RETRY_DELAY_MAX_S)
                    continue
                delay = RETRY_DELAY_INITIAL_S
                now = self._now()
                again = [
                    entry
                    for entry, write, result in zip(flight, batch, results, strict=True)
                    if (
                        entry.fail(result.error, now)
                        if isinstance(result, (Failed, Unknown))
                        else entry.resolve(result, write, now)
                    )
                ]
                self._urgent.extendleft(reversed(again))
                if self.landed is not None:
                    self.landed()
        finally:
            self._flights = None
            if self._queue or self._urgent:  # cancelled from outside: the loop is being closed
                logger.warning("%d writes were not sent to the store", len(self))

    def _board(self, now: int) -> tuple[list[Entry], list[Write]]:
        """Takes what fits on one flight; of two writes to one record, the second waits."""
        flight: list[Entry] = []
        batch: list[Write] = []
        aboard: set[Identity] = set()
        left_behind: list[Entry] = []
        for queue in (self._urgent, self._queue):
            for _ in range(min(len(queue), FLIGHT_MAX - len(batch))):
                entry = queue.popleft()
                try:
                    write = entry.build(now)
                except Exception as error:
                    # A defect, or a row that nobody thought of: the others shall not suffer.
                    logger.exception("What to write could not be decided")
                    entry.fail(error, now)
                    continue
                if write is None:
                    continue
                identity = write[:2]
                if identity in aboard:
                    left_behind.append(entry)
                    continue
                aboard.add(identity)
                flight.append(entry)
                batch.append(write)
        self._queue.extendleft(reversed(left_behind))
        return flight, batch

    def _failed(self, flight: list[Entry], error: Exception) -> bool:
        now = self._now()
        again = [entry for entry in flight if entry.fail(error, now)]
        self._urgent.extendleft(reversed(again))
        if again:
            logger.warning("Writing %d records to the store failed: %s", len(flight), error)
        return bool(again)


class Call:
    """An entry that somebody awaits: one write, made as it is, never repeated."""

    __slots__ = ("answer", "write")

    def __init__(self, write: Write) -> None:
        """Creates an entry for a write."""
        self.write = write
        self.answer: asyncio.Future[Applied | Refused] = asyncio.get_running_loop().create_future()

    def build(self, now: int) -> Write | None:
        return None if self.answer.cancelled() else self.write

    def resolve(self, result: Applied | Refused, write: Write, now: int) -> bool:
        if not self.answer.done():
            self.answer.set_result(result)
        return False

    def fail(self, error: Exception, now: int) -> bool:
        if not self.answer.done():
            self.answer.set_exception(error)
        return False


class Waker:
    """Collects which groups' watchers to tell, and does so at most once in a while."""

    INTERVAL_S: Final = 0.01

    def __init__(self, tell: Callable[[Collection[str]], Awaitable[object]]) -> None:
        """Creates a waker that has nothing to tell."""
        self._tell = tell
        self._groups: set[str] = set()
        self._told = -self.INTERVAL_S
        self._later: asyncio.Task[None] | None = None

    def add(self, group: str) -> None:
        """Something in this group comes due soon."""
        self._groups.add(group)

    def take(self) -> Collection[str]:
        """The groups to tell of along with a write that is made now; later ones follow alone."""
        if not self._groups:
            return ()
        if realtime.monotonic() - self._told < self.INTERVAL_S:
            if self._later is None:
                self._later = asyncio.create_task(self._tell_later(), name="pyncette waker")
            return ()
        self._told = realtime.monotonic()
        groups, self._groups = self._groups, set()
        return groups

    async def _tell_later(self) -> None:
        try:
            while self._groups:
                await realtime.sleep(self.INTERVAL_S)
                if groups := self.take():
                    await self._tell(groups)
        except Exception as error:
            logger.debug("Waking other workers failed: %s", error)
        finally:
            self._later = None

    async def close(self) -> None:
        """Waits until nothing is left to tell."""
        while self._later is not None:
            await asyncio.shield(self._later)
