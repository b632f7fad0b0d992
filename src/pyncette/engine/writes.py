"""The write queue: it sends many small writes to the store in batches.

While one batch is under way, entries collect for the next. So there is no timer and no added
latency, and batches grow with the load. One queue has the outcomes and heartbeats of executions, so
that they keep their order; a second one has the calls of users. An entry decides what to write when
its batch is sent, and each entry gets its own answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from enum import Enum
from heapq import heappop, heappush
from typing import Final, NamedTuple, Protocol

from pyncette.clock import realtime
from pyncette.engine.background import Background, is_cancelled
from pyncette.errors import AppClosedError, StoreUnavailableError, describe, plural
from pyncette.store import (
    Applied,
    Failed,
    Identity,
    Refused,
    Result,
    Unknown,
    Write,
    expectation_holds,
)
from pyncette.store.record import Put

logger = logging.getLogger(__name__)

BATCH_MAX: Final = 1_000
"""Maximum writes in one batch."""

LARGE_CHARACTERS: Final = 200_000
"""A write with longer texts is sent alone, in parallel: it may take long, or be refused."""

LARGE_WRITES_MAX: Final = 4
"""Maximum large writes under way at once."""

RETRY_DELAY_INITIAL_S: Final = 0.05
RETRY_DELAY_MAX_S: Final = 2.0


class Next(Enum):
    """What the queue does with an entry after an answer."""

    DONE = "done"
    """The entry has ended."""

    RETRY = "retry"
    """Build and write it again with the next batch: the record has changed meanwhile."""

    BACK_OFF = "back off"
    """Build and write it again after a delay that doubles each time: the store has failed."""


class Entry(Protocol):
    """A change of one record that waits to be written."""

    def build(self, now: int) -> Write | None:
        """Decides what to write now; None if nothing is left to write."""

    def answered(self, answer: Result, write: Write, now: int) -> Next:
        """Handles the store's answer to a write."""

    def abandon(self, error: Exception) -> None:
        """Ends the entry, which will not be written (again); its caller gets the error."""


def again(write: Write, refused: Refused) -> Next:
    """Decides how to retry a refused write if its writer still holds the record.

    If the record is not as the write expected, a user has changed it: decide again at once. If it
    is, an open transaction holds the row (see ``pyncette.store.Failed``): back off, since a retry
    at once would only add load to the store.
    """
    return Next.BACK_OFF if expectation_holds(write, refused.current) else Next.RETRY


_DONE: Final = Next.DONE

Commit = Callable[[Sequence[Write], int], Awaitable[list[Result]]]


class _Batch(NamedTuple):
    entries: list[Entry]
    writes: list[Write]
    # Identities of the writes, and maybe of others that wait for them.
    identities: Collection[Identity]


class _Flight:
    """A batch that is under way, and the event of its end, if a call waits for it."""

    __slots__ = ("ended", "identities")

    def __init__(self, identities: Collection[Identity]) -> None:
        self.identities = identities
        self.ended: asyncio.Event | None = None


class WriteQueue:
    """A queue of entries, and the batches in which they are written.

    Attributes:
        on_written: Called when a batch has been answered, if set.
    """

    on_written: Callable[[], None] | None = None

    def __init__(self, commit: Commit, now: Callable[[], int], background: Background) -> None:
        """Creates an empty queue.

        Args:
            commit: Writes a batch to the store.
            now: The current instant.
            background: Where the queue's own tasks run.
        """
        self._commit = commit
        self._now = now
        self._background = background
        self._urgent: deque[Entry] = deque()
        self._queue: deque[Entry] = deque()
        # Entries that back off after a failure: when they may be written, a serial, the entry.
        self._deferred: list[tuple[float, int, Entry]] = []
        self._delays: dict[Entry, float] = {}
        self._serial = 0
        # Records that large writes under way change, and the number of these writes.
        self._busy: set[Identity] = set()
        self._large = 0
        # At most one batch, and the large writes.
        self._flights: list[_Flight] = []
        self._writing = False
        self._waiting = False
        self._closed = False
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Returns the number of entries that wait to be written."""
        return len(self._queue) + len(self._urgent) + len(self._deferred)

    def add(self, entry: Entry, urgent: bool = False) -> None:
        """Queues an entry; urgent entries are sent first."""
        if self._closed:
            _abandon(entry, AppClosedError())
            return
        (self._urgent if urgent else self._queue).append(entry)
        if not self._writing:
            self._start()
        elif self._waiting:
            self._changed.set()

    def _start(self) -> None:
        self._writing = True
        self._background.start(self._write_all(), "pyncette writes")

    @property
    def idle(self) -> bool:
        """Whether no write is under way."""
        return not self._flights

    async def settled(self, identities: Collection[Identity] | None = None) -> None:
        """Waits until the writes that are under way now have been answered.

        It does not wait for entries that are queued: one whose caller is cancelled is not sent.

        Args:
            identities: Waits only for the batches with one of these records; None: for all.
        """
        if not self._flights:
            return
        for flight in [*self._flights]:
            if identities is None or any(item in flight.identities for item in identities):
                if flight.ended is None:
                    flight.ended = asyncio.Event()
                await flight.ended.wait()

    async def drained(self) -> None:
        """Waits until nothing is queued or under way."""
        while self._writing or self._large:
            self._changed.clear()
            await self._changed.wait()

    async def close(self, patience_s: float) -> None:
        """Writes what is left, for a limited time; abandons and logs what was not written."""
        try:
            async with realtime.timeout(patience_s):
                await self.drained()
        except TimeoutError:
            pass
        finally:
            self._closed = True
            left = self._take_all()
            if left:
                logger.warning(
                    "%d writes were not made when the app closed: %s",
                    len(left),
                    _some_names(left, self._now()),
                )
                error = StoreUnavailableError("The app was closed before this was written")
                for entry in left:
                    _abandon(entry, error)

    def _take_all(self) -> list[Entry]:
        left = [*self._urgent, *self._queue, *(entry for _, _, entry in self._deferred)]
        self._urgent.clear()
        self._queue.clear()
        self._deferred.clear()
        self._delays.clear()
        return left

    # Writing.

    async def _write_all(self) -> None:
        try:
            while self._urgent or self._queue or self._deferred:
                self._take_ready()
                batch = self._next_batch()
                if batch.writes:
                    await self._write(batch)
                elif not (self._urgent or self._queue) or self._busy:
                    await self._wait()
        finally:
            self._writing = False
            self._changed.set()

    async def _wait(self) -> None:
        """Until an entry is added, a large write has ended, or a deferred entry is ready."""
        pause: float | None = None
        if self._deferred:
            pause = self._deferred[0][0] - realtime.monotonic()
            if pause <= 0:
                return
        elif not self._busy:
            return
        self._changed.clear()
        self._waiting = True
        try:
            async with realtime.timeout(pause):
                await self._changed.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting = False

    def _take_ready(self) -> None:
        now = realtime.monotonic() if self._deferred else 0.0
        while self._deferred and self._deferred[0][0] <= now:
            self._urgent.append(heappop(self._deferred)[2])

    def _next_batch(self) -> _Batch:
        """Takes the entries for one batch; of two writes to one record, the second waits."""
        now = self._now()
        entries: list[Entry] = []
        writes: list[Write] = []
        # The entry that each record was first taken for; a large write under way has no entry here.
        chosen: dict[Identity, Entry | None] = dict.fromkeys(self._busy)
        for queue in (self._urgent, self._queue):
            waiting: list[Entry] = []
            for _ in range(len(queue)):
                if len(writes) >= BATCH_MAX:
                    break
                entry = queue.popleft()
                try:
                    write = entry.build(now)
                except Exception as error:
                    # A defect, or an unexpected row: only this entry ends.
                    logger.exception("What to write could not be decided")
                    self._end(entry, error)
                    continue
                if write is None:
                    self._delays.pop(entry, None)
                    continue
                if chosen.setdefault(write[:2], entry) is not entry:
                    waiting.append(entry)
                elif type(write.change) is not Put or not _is_large(write.change):
                    entries.append(entry)
                    writes.append(write)
                elif self._large < LARGE_WRITES_MAX:
                    self._start_large(entry, write)
                else:
                    waiting.append(entry)
            queue.extendleft(reversed(waiting))
        return _Batch(entries, writes, chosen)

    def _start_large(self, entry: Entry, write: Write) -> None:
        self._busy.add(write[:2])
        self._large += 1
        self._background.start(self._write_large(entry, write), "pyncette large write")

    async def _write_large(self, entry: Entry, write: Write) -> None:
        try:
            await self._write(_Batch([entry], [write], (write[:2],)))
        finally:
            self._large -= 1
            self._busy.discard(write[:2])
            self._changed.set()
            if len(self) and not self._writing:
                self._start()

    async def _write(self, batch: _Batch) -> None:
        flight = _Flight(batch.identities)
        self._flights.append(flight)
        try:
            await self._send(batch)
        finally:
            self._flights.remove(flight)
            if flight.ended is not None:
                flight.ended.set()

    async def _send(self, batch: _Batch) -> None:
        entries, writes, _ = batch
        answers: Iterable[Result]
        try:
            answers = await self._commit(writes, self._now())
            if len(answers) != len(writes):
                raise StoreUnavailableError(
                    f"The store gave {len(answers)} answers to {len(writes)} writes"
                )
        except Exception as error:
            logger.warning(
                "Writing %s to the store failed: %s", plural(len(writes), "record"), describe(error)
            )
            answers = [Unknown(error)] * len(writes)
        except asyncio.CancelledError:
            closed = StoreUnavailableError("The app was closed while this was being written")
            if is_cancelled():
                # The worker is being torn down: the callers of these entries must get an error.
                for entry in entries:
                    self._end(entry, closed)
                raise
            answers = [Unknown(closed)] * len(writes)
        now = self._now()
        delays = self._delays
        again: list[Entry] = []
        for entry, write, answer in zip(entries, writes, answers, strict=True):
            try:
                following = entry.answered(answer, write, now)
            except Exception as error:
                logger.exception("The answer of the store could not be taken in")
                self._end(entry, error)
                continue
            if following is _DONE:
                if delays:
                    delays.pop(entry, None)
            elif self._closed:
                self._end(entry, StoreUnavailableError("The app is closed"))
            elif following is Next.RETRY:
                again.append(entry)
            else:
                self._defer(entry)
        self._urgent.extendleft(reversed(again))
        if self.on_written is not None:
            self.on_written()

    def _defer(self, entry: Entry) -> None:
        delay = self._delays.get(entry, RETRY_DELAY_INITIAL_S)
        self._delays[entry] = min(2 * delay, RETRY_DELAY_MAX_S)
        self._serial += 1
        heappush(self._deferred, (realtime.monotonic() + delay, self._serial, entry))

    def _end(self, entry: Entry, error: Exception) -> None:
        self._delays.pop(entry, None)
        _abandon(entry, error)


def _abandon(entry: Entry, error: Exception) -> None:
    try:
        entry.abandon(error)
    except Exception:
        logger.exception("A write could not be abandoned in order")


def _is_large(change: Put) -> bool:
    return len(change.args) + len(change.schedule) + len(change.progress) > LARGE_CHARACTERS


def _some_names(entries: Sequence[Entry], now: int) -> str:
    names: list[str] = []
    for entry in entries[:5]:
        try:
            write = entry.build(now)
        except Exception:
            continue
        if write is not None:
            names.append(f"{write.group!r} {write.key!r}")
    return ", ".join(names) + (" and others" if len(entries) > 5 else "")


class Call:
    """An entry that a caller awaits: one write, which is not decided again and not retried."""

    __slots__ = ("answer", "sent", "write")

    def __init__(self, write: Write) -> None:
        """Creates an entry for a write."""
        self.write = write
        # Whether it was sent: from then until its answer, its outcome is unknown.
        self.sent = False
        self.answer: asyncio.Future[Applied | Refused] = asyncio.get_running_loop().create_future()

    def build(self, now: int) -> Write | None:
        if self.answer.done():
            return None
        self.sent = True
        return self.write

    def answered(self, answer: Result, write: Write, now: int) -> Next:
        if not self.answer.done():
            if isinstance(answer, (Failed, Unknown)):
                self.answer.set_exception(answer.error)
            else:
                self.answer.set_result(answer)
        return Next.DONE

    def abandon(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def expire(self) -> None:
        """The deadline of the call has passed."""
        self.abandon(
            StoreUnavailableError(
                "The store did not answer within the deadline of its calls: "
                + ("what became of the call is unknown" if self.sent else "the call was not made")
            )
        )


class Waker:
    """Collects groups whose watchers to notify, and notifies at most once per interval."""

    INTERVAL_S: Final = 0.01

    def __init__(
        self, notify: Callable[[Collection[str]], Awaitable[object]], background: Background
    ) -> None:
        """Creates a waker without groups."""
        self._notify = notify
        self._background = background
        self._groups: set[str] = set()
        self._notified = -self.INTERVAL_S
        self._later = False
        self._ended = asyncio.Event()

    def add(self, group: str) -> None:
        """Adds a group in which a record comes due soon."""
        self._groups.add(group)

    def take(self) -> Collection[str]:
        """Returns the groups to notify with a write that is made now; others are notified later."""
        if not self._groups:
            return ()
        if realtime.monotonic() - self._notified < self.INTERVAL_S:
            if not self._later:
                self._later = True
                self._background.start(self._notify_later(), "pyncette waker")
            return ()
        self._notified = realtime.monotonic()
        groups, self._groups = self._groups, set()
        return groups

    async def _notify_later(self) -> None:
        try:
            while self._groups:
                await realtime.sleep(self.INTERVAL_S)
                if groups := self.take():
                    await self._notify(groups)
        except Exception as error:
            logger.debug("Notifying other workers failed: %s", describe(error))
        finally:
            self._later = False
            self._ended.set()

    async def close(self) -> None:
        """Waits until all notifications have been sent."""
        while self._later:
            self._ended.clear()
            await self._ended.wait()
