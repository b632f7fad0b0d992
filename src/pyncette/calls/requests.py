"""Writes that users ask for: batched with those of other callers, and decided again if refused."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence
from contextlib import ExitStack, aclosing, closing, suppress
from typing import Final, NamedTuple, Protocol

from pyncette.calls.identity import check_declared
from pyncette.calls.names import Names
from pyncette.calls.places import Places
from pyncette.calls.telling import Telling
from pyncette.calls.writing import (
    BULK_PATIENCE_S,
    PAUSE_INITIAL_S,
    PAUSE_MAX_S,
    Decide,
    Holding,
    change_record,
    write_after,
)
from pyncette.clock import Clock, realtime
from pyncette.engine.background import Background
from pyncette.engine.moves import in_transit
from pyncette.engine.worker import Worker
from pyncette.engine.writes import Call, Waker, WriteQueue
from pyncette.errors import DeadlineExceededError, StoreError, StoreUnavailableError, printable
from pyncette.schedule import NO_CALENDARS, Calendars
from pyncette.store import (
    Applied,
    Failed,
    Filter,
    Identity,
    Refused,
    Result,
    Unknown,
    Write,
    expectation_holds,
    scan_pages,
    write_of,
)
from pyncette.store.deadline import DeadlineStore
from pyncette.store.record import ABSENT, Patch, Record
from pyncette.task import Task

logger: Final = logging.getLogger(__name__)

__all__ = ["Changing", "Decide", "Holding", "Outcome", "Requests", "Wish", "write_after"]

CALLS_MAX: Final = 10_000
"""Maximum calls of users that wait for the store; more are refused at once."""

MEASURE_INTERVAL_S: Final = 10.0
"""How often the store's clock is measured for users' calls, if the loop does not run."""

BULK_BATCH_MIN: Final = 10

STRANGERS_MAX: Final = 100
"""Maximum tasks of other apps that are warned about only once."""

DOUBTFUL_MAX: Final = 10_000
"""Maximum records to remember of which it is unknown whether a write may still be made."""


class Wish(Protocol):
    """A change of one record that a bulk call wants.

    Attributes:
        group, key: The record.
        decide: Decides the change, again each time the record has changed. What it raises is the
            outcome.
    """

    @property
    def group(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def decide(self) -> Decide: ...

    def repeatable(self, now: int) -> bool:
        """Returns whether it may be made again if it is unknown whether it was made at ``now``.

        A run that was triggered may have ended by then: triggered again, it would run twice.
        """
        ...


class Changing(NamedTuple):
    """A wish that a function decides."""

    group: str
    key: str
    decide: Decide
    again: bool = True

    def repeatable(self, now: int) -> bool:
        """As the caller says."""
        return self.again


Outcome = Write | Exception | None
"""What came of a wish: the write that was applied, an error, or None if nothing was to be done."""


class Requests:
    """Writes for users.

    Attributes:
        store: The store.
        clock: The app's clock.
        places: Finds and changes instances that may lie in several places.
        telling: Tells of what calls have changed.
        batch_max: Maximum writes in one batch of a bulk call.
    """

    def __init__(
        self,
        worker: Worker,
        background: Background,
        batch_max: int = 1_000,
        calendars: Calendars = NO_CALENDARS,
    ) -> None:
        """Prepares to write for the users of a worker.

        Args:
            worker: The worker.
            background: Runs what is written.
            batch_max: See the attribute.
            calendars: The calendars of the app, which all of its tasks have.
        """
        self._calendars = calendars
        self._strangers: set[str] = set()
        self.store: DeadlineStore = worker.store
        self.clock: Clock = worker.clock
        self.places = Places(self, worker)
        self.telling = Telling(worker.reporter)
        self.batch_max = batch_max
        self._worker = worker
        self._background = background
        self._measure_at = worker.clock.monotonic() + MEASURE_INTERVAL_S
        self._batch = batch_max
        self._waker = Waker(
            lambda groups: self.store.write([], self.clock.microseconds(), groups), background
        )
        # Records with a write that was not answered and may still be made; oldest first.
        self._doubtful: dict[Identity, None] = {}
        self._queue = WriteQueue(self._write, self.clock.microseconds, background)
        self._deadlines = Deadlines(lambda: self.store.deadline_s)

    def check_declared(self, task: Task) -> None:
        """Refuses what is not a task, and warns, once each, of tasks of another app.

        Raises:
            TypeError: It is not a ``Task``.
        """
        check_declared(task)
        template = task.template
        if template.calendars is not self._calendars and template.name not in self._strangers:
            if len(self._strangers) < STRANGERS_MAX:
                self._strangers.add(template.name)
            logger.warning(
                "The task '%s' was not declared by this app: its workers run it only if they "
                "declare a task of this name, with the options that it has there",
                printable(template),
            )

    async def now(self) -> int:
        """Returns the current instant, by which a call decides.

        What is known of partitions is then fresh enough to decide by, too.

        The loop measures the clock of the store. In a program that does not run the loop this does:
        such a program may be open for months, while clocks drift apart, or the store's is moved.
        """
        await self._measure()
        await self._worker.partitions.fresh()
        return self.clock.microseconds()

    async def fresh(self) -> None:
        """Lets what is known of partitions be fresh enough to decide by."""
        await self._worker.partitions.fresh()

    def check_placed(self, group: str) -> None:
        """Refuses a call about a template of which it is not known where its instances are.

        Raises:
            TaskUnreadableError: Its control record cannot be read.
        """
        self._worker.partitions.check(group)

    async def _measure(self) -> None:
        monotonic = self.clock.monotonic()
        if not self._worker.loop.running and monotonic >= self._measure_at:
            self._measure_at = monotonic + MEASURE_INTERVAL_S
            # The call itself will find out whether the store fails.
            with suppress(StoreError):
                if not await self._worker.measure_clock():
                    self._measure_at = math.inf

    async def find(self, group: str, key: str) -> Record | None:
        """Returns a record, wherever it lies now; None: there is none.

        Raises:
            StoreError: The store failed.
        """
        await self._worker.partitions.fresh()
        if self.places.several(group, key):
            return await self.places.find(group, key)
        [record] = await self.store.get([(group, key)])
        if record is not None and in_transit(record):
            return await self.places.find(group, key)
        return record

    async def find_all(self, identities: Sequence[Identity]) -> list[Record | None]:
        """Returns records, wherever they lie now."""
        await self._worker.partitions.fresh()
        found = await self.store.get(identities)
        for index, (group, key) in enumerate(identities):
            record = found[index]
            if self.places.several(group, key) or (record is not None and in_transit(record)):
                found[index] = await self.places.find(group, key)
        return found

    async def pages(
        self, groups: Sequence[str], where: Filter, page_size: int
    ) -> AsyncGenerator[list[Record]]:
        """Yields the pages of groups, one after another.

        If instances are moved to other partitions meanwhile, all groups of their template are gone
        through once more, so that none is missed. If the move begins only meanwhile, some may come
        twice.
        """
        partitions = self._worker.partitions
        await partitions.fresh()
        partitions.check(groups[0])
        template = partitions.template_of(groups[0])
        if template is not None and len(groups) < len(template.groups()):
            template = None  # one partition, as it is now
        before = 0 if template is None else template.layout_version
        with ExitStack() as stack:
            names: Names | None = None
            if template is not None and template.layout.others:
                names = stack.enter_context(closing(Names()))
            for once_more in (False, True):
                if once_more:
                    if template is None:
                        return
                    await partitions.fresh()
                    if template.layout_version == before and not template.layout.others:
                        return
                    groups = template.groups()
                async with aclosing(scan_pages(self.store, groups, where, page_size)) as pages:
                    async for records in pages:
                        yield _new_ones(names, records)

    def moving(self, groups: Sequence[str]) -> bool:
        """Returns whether instances of the template of these groups are moved to other partitions.

        It says what was known when ``now`` was called last.
        """
        template = self._worker.partitions.template_of(groups[0])
        return template is not None and bool(template.layout.others)

    async def submit(self, write: Write) -> Applied | Refused:
        """Makes one write, together with those of other callers.

        Raises:
            StoreUnavailableError: The store did not answer within the deadline of its calls,
                counted from now; or too many calls are waiting.
        """
        if len(self._queue) >= CALLS_MAX:
            raise StoreUnavailableError(
                f"{CALLS_MAX:,} calls wait for the store already: this one was not made"
            )
        call = Call(write)
        self._queue.add(call)
        self._deadlines.add(call)
        return await call.answer

    async def settled(self, identities: Collection[Identity] | None = None) -> None:
        """Waits until the writes of users that are under way now have been answered.

        A call that reads, and may find that nothing is to be done, awaits this first. Otherwise a
        write of an earlier call, which was cancelled but has left already, could be made after
        that.

        Args:
            identities: The records that the call reads; None: any.
        """
        await self._queue.settled(identities)

    def confirmation(self, current: Record | None, group: str, key: str) -> Patch | None:
        """Returns what to write to a record that is to stay as it is; None: nothing.

        If an earlier write of the record was not answered, it may still be made. A new version of
        the record prevents that.
        """
        if current is None or (group, key) not in self._doubtful:
            return None
        return Patch(current.due_at, current.state, current.unfinished_attempts)

    async def change(self, group: str, key: str, decide: Decide) -> Write | None:
        """Changes one record, from what it is now.

        Returns:
            The write that was applied; None if there was nothing to change.

        Raises:
            StoreUnavailableError: As in ``submit``; or an open transaction holds the record.
        """
        return await change_record(self, group, key, decide)

    def wrote(self, write: Write) -> None:
        """A write was applied: the worker of this context may have to claim it soon."""
        self._worker.wrote(write)

    # Bulk.

    async def change_all(
        self, wishes: Sequence[Wish], known: Iterable[Record | None] | None = None
    ) -> list[Outcome]:
        """Changes many records, each from what it is now, in batches.

        A record that cannot be changed does not keep others from being changed. What the store
        does not answer is retried; each change is decided from the current record, so it is not
        made twice (except for wishes that are not repeatable, which fail instead).

        Args:
            wishes: The changes.
            known: The records as they were read last, or as they are expected to be. None: they
                are to be read first.

        Raises:
            StoreUnavailableError: The store has not answered for ``BULK_PATIENCE_S``.
        """
        await self._measure()
        if not self._queue.idle:
            await self.settled([(wish.group, wish.key) for wish in wishes])
        outcomes: list[Outcome] = [None] * len(wishes)
        current: dict[int, Record | None] = {} if known is None else dict(enumerate(known))
        left = list(range(len(wishes)))
        give_up_at = realtime.monotonic() + BULK_PATIENCE_S
        pause = PAUSE_INITIAL_S
        while left:
            part, rest = left[: self._batch], left[self._batch :]
            try:
                await self._worker.partitions.fresh()
                if not self._worker.partitions.quiet:
                    part = await self._change_elsewhere(wishes, outcomes, part)
                again, busy = await self._change_some(wishes, outcomes, current, part)
            except StoreUnavailableError as error:
                if isinstance(error, DeadlineExceededError):
                    self._batch = max(self._batch // 4, BULK_BATCH_MIN)
                if realtime.monotonic() >= give_up_at:
                    raise
                again, busy = [index for index in part if outcomes[index] is None], True
                for index in again:
                    current.pop(index, None)  # what became of it is unknown: read it
            else:
                self._batch = min(2 * self._batch, self.batch_max)
                if len(again) < len(part):
                    give_up_at = realtime.monotonic() + BULK_PATIENCE_S
                    pause = PAUSE_INITIAL_S
            left = again + rest
            if busy:
                if realtime.monotonic() >= give_up_at:
                    for index in again:
                        outcomes[index] = StoreUnavailableError(
                            f"The record of {printable(wishes[index].key)} is locked by an open "
                            "transaction, or the store does not write it"
                        )
                    left = rest
                    continue
                with self.clock.hold():
                    await realtime.sleep(pause)
                pause = min(2 * pause, PAUSE_MAX_S)
        return outcomes

    async def _change_elsewhere(
        self, wishes: Sequence[Wish], outcomes: list[Outcome], left: Sequence[int]
    ) -> list[int]:
        """Changes those records that may lie in several places; returns which are left."""
        moving = [index for index in left if self._may_be_elsewhere(wishes[index])]
        found = await self.places.change_all([wishes[index] for index in moving])
        for index, outcome in zip(moving, found, strict=True):
            outcomes[index] = outcome
        done = set(moving)
        return [index for index in left if index not in done]

    def _may_be_elsewhere(self, wish: Wish) -> bool:
        return self.places.several(wish.group, wish.key)

    async def _change_some(
        self,
        wishes: Sequence[Wish],
        outcomes: list[Outcome],
        current: dict[int, Record | None],
        part: Sequence[int],
    ) -> tuple[list[int], bool]:
        """One batch. Returns what is to be tried again, and whether to wait before that."""
        unread = [index for index in part if index not in current]
        if unread:
            found = await self.store.get(
                [(wishes[index].group, wishes[index].key) for index in unread]
            )
            current.update(zip(unread, found, strict=True))
        now = self.clock.microseconds()
        writes: dict[int, Write] = {}
        confirmed: set[int] = set()
        for index in part:
            wish, there = wishes[index], current[index]
            if there is not None and in_transit(there):
                outcomes[index] = await self.places.outcome(wish)
                continue
            try:
                change = wish.decide(there, now)
            except Exception as error:
                outcomes[index] = error
                continue
            if change is None:
                change = self.confirmation(there, wish.group, wish.key)
                if change is None:
                    continue
                confirmed.add(index)
            if there is None:
                writes[index] = write_of((wish.group, wish.key, change, ABSENT, None))
            else:
                writes[index] = write_after(wish.group, wish.key, there, change)
        again: list[int] = []
        busy = False
        if writes:
            # Like every write, in the context of the app and not of the caller. If the caller is
            # cancelled, the write is, too.
            try:
                results = await self._background.start(
                    self._write(list(writes.values()), now), "pyncette bulk write", awaited=True
                )
            except StoreUnavailableError as error:
                for index in writes:
                    if index not in confirmed and not wishes[index].repeatable(now):
                        outcomes[index] = error
                raise
            applied: list[Write] = []
            for (index, write), result in zip(writes.items(), results, strict=True):
                if isinstance(result, Applied):
                    outcomes[index] = None if index in confirmed else write
                    applied.append(write)
                elif isinstance(result, Refused):
                    current[index] = result.current
                    again.append(index)
                    busy = busy or expectation_holds(write, result.current)
                elif isinstance(result.error, StoreUnavailableError) and (
                    isinstance(result, Failed)
                    or index in confirmed
                    or wishes[index].repeatable(now)
                ):
                    del current[index]
                    again.append(index)
                    busy = True
                else:
                    outcomes[index] = result.error
            self._wake_own(applied)
        if not again:
            current.clear() if len(current) == len(part) else _drop(current, part)
        else:
            _drop(current, set(part).difference(again))
        return again, busy

    async def write_all(self, writes: Sequence[Write], floor: int) -> list[Result]:
        """Makes writes in batches; a batch that is not answered is ``Unknown``.

        Args:
            writes: The writes, of different records.
            floor: The versions of the records are at least this.
        """
        results: list[Result] = []
        while len(results) < len(writes):
            part = writes[len(results) : len(results) + self._batch]
            now = max(self.clock.microseconds(), floor)
            try:
                results += await self._background.start(
                    self._write(part, now), "pyncette bulk write", awaited=True
                )
            except StoreUnavailableError as error:
                if isinstance(error, DeadlineExceededError):
                    self._batch = max(self._batch // 4, BULK_BATCH_MIN)
                results += [Unknown(error)] * len(part)
            else:
                self._batch = min(2 * self._batch, self.batch_max)
        return results

    def _wake_own(self, writes: Iterable[Write]) -> None:
        """Lets the worker of this context look at each group once, for the soonest instant."""
        soonest: dict[str, Write] = {}
        for write in writes:
            due_at = write.change.due_at
            if due_at is None:
                continue
            known = soonest.get(write.group)
            if known is None or due_at < (known.change.due_at or 0):
                soonest[write.group] = write
        for write in soonest.values():
            self._worker.wrote(write)

    async def _write(self, batch: Sequence[Write], now: int) -> list[Result]:
        soon = now + self._worker.settings.poll_interval
        for write in batch:
            due_at = write.change.due_at
            if due_at is not None and due_at < soon:
                self._waker.add(write.group)
        try:
            results = await self.store.write(batch, now, self._waker.take())
        except BaseException:
            self._doubt(batch)
            raise
        for write, result in zip(batch, results, strict=False):
            if isinstance(result, Unknown):
                self._doubt((write,))
            elif self._doubtful and isinstance(result, Applied):
                # The record has another version now: an earlier write with a condition is refused.
                self._doubtful.pop(write[:2], None)
        return results

    def _doubt(self, writes: Iterable[Write]) -> None:
        for write in writes:
            self._doubtful[write[:2]] = None
        while len(self._doubtful) > DOUBTFUL_MAX:
            del self._doubtful[next(iter(self._doubtful))]

    def notify(self, group: str) -> None:
        """Notifies the watchers of a group with the next write."""
        self._waker.add(group)

    async def close(self, patience_s: float) -> None:
        """Writes what is left, for a limited time."""
        await self._queue.close(patience_s)
        await self._waker.close()
        self._deadlines.close()


class Deadlines:
    """Ends calls that the store has not answered in time: one timer for all of them.

    A timer for each call would cost a tenth of the call.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        """Waits for no call yet.

        Args:
            seconds: How long a call may take that is made now.
        """
        self._seconds = seconds
        self._waiting: deque[tuple[float, Call]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, call: Call) -> None:
        """Waits for a call that is made now."""
        waiting = self._waiting
        while waiting and waiting[0][1].answer.done():
            waiting.popleft()
        if len(waiting) > 4 * CALLS_MAX:
            # Behind one that waits, most have been answered.
            self._waiting = waiting = deque(
                entry for entry in waiting if not entry[1].answer.done()
            )
        seconds = self._seconds()
        waiting.append((realtime.monotonic() + seconds, call))
        if self._timer is None:
            self._timer = realtime.timer(seconds, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now, waiting = realtime.monotonic(), self._waiting
        while waiting and (waiting[0][0] <= now or waiting[0][1].answer.done()):
            waiting.popleft()[1].expire()
        if waiting:
            self._timer = realtime.timer(waiting[0][0] - now, self._expire)

    def close(self) -> None:
        """Waits no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _drop(current: dict[int, Record | None], indices: Iterable[int]) -> None:
    for index in indices:
        current.pop(index, None)


def _new_ones(names: Names | None, records: list[Record]) -> list[Record]:
    """Returns the records of a page whose names are not known yet, and notes these."""
    if names is None:
        return records
    found = names.missing(records)
    for record in found:
        if not in_transit(record):
            names.add(record.key)
    return found
