"""Writes the run history: the attempts of a worker that ended, in batches, aside from its work.

The end of each attempt puts it into a queue in memory. An internal task writes it about once a
second, or when a batch is full. Nothing waits for that, and nothing depends on it: if the queue is
full, attempts are missing in the history, which is counted and told.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from itertools import count
from typing import Any, Final

from pyncette import chance, events
from pyncette.clock import Clock, realtime
from pyncette.engine.background import Background
from pyncette.engine.rules import attempt_of, came_due
from pyncette.engine.run_events import execution_id
from pyncette.errors import ERROR_CHARACTERS_MAX, StoreUnavailableError, describe
from pyncette.model import RunOutcome
from pyncette.observers import Reporter
from pyncette.parts import RunHistory
from pyncette.store.deadline import DeadlineHistory
from pyncette.store.history import MINUTE, SUCCEEDED, RunRow, TotalRow
from pyncette.store.record import Reading
from pyncette.task import Task

logger: Final = logging.getLogger(__name__)

QUEUE_MAX: Final = 20_000
"""Maximum attempts that wait to be written."""

TOTALS_MAX: Final = 10_000
"""Maximum totals, one for a task and a minute, that wait to be written."""

BATCH_MAX: Final = 500
"""Maximum attempts, and totals, in one batch."""

FLUSH_AFTER_S: Final = 1.0
"""How long an attempt waits at most for others, before it is written."""

RETRY_AFTER_S_MAX: Final = 30.0
"""The longest pause before a batch is tried again, if the store is not available."""

SUSPECT_AFTER: Final = 6
"""After so many failures of a batch, another one is tried: is the store at fault, or the batch?"""

PENDING_MAX: Final = 4
"""Maximum batches that have failed and are tried again."""

RETRY_AFTER_CLOSING_S: Final = 0.05
"""The first such pause while the app is closed; it doubles."""

PRUNE_AFTER_S: Final = 60.0
"""How often a worker looks for what is to be removed, by the app's clock."""

PRUNE_STEP: Final = 1_000
"""Maximum attempts that are removed at once."""

PRUNE_PAUSE_S: Final = 0.1
"""The pause between two such steps, if nothing is to be written meanwhile."""

JUMP_S: Final = 60.0
"""By how much the clock must have moved apart from monotonic time to count as set anew."""

JUMP_GRACE_S: Final = 600.0
"""For how long nothing is removed then: it may have been set wrongly."""

TELL_AFTER_S_MAX: Final = 60.0
"""The longest interval at which it is told that attempts are lost."""


class _Batch:
    """What is written by one call.

    Attributes:
        failures: How often the store was not available for it.
        outlived: Another batch was written after this one had failed ``SUSPECT_AFTER`` times.
    """

    __slots__ = ("failures", "outlived", "rows", "totals")

    def __init__(self, rows: list[RunRow], totals: list[TotalRow]) -> None:
        self.rows = rows
        self.totals = totals
        self.failures = 0
        self.outlived = False

    @property
    def suspect(self) -> bool:
        """Whether the store may be available, and refuse this batch."""
        return self.failures >= SUSPECT_AFTER


class _Total:
    """What has ended of a task in a minute, and is not written yet."""

    __slots__ = ("failed", "lateness_max", "other", "succeeded", "took")

    def __init__(self) -> None:
        self.succeeded = self.failed = self.other = self.took = self.lateness_max = 0


class Recorder:
    """Writes the history of one worker."""

    def __init__(
        self,
        history: DeadlineHistory,
        options: RunHistory,
        clock: Clock,
        background: Background,
        reporter: Reporter,
    ) -> None:
        """Writes nothing until the worker joins."""
        self._history = history
        self._options = options
        self._clock = clock
        self._background = background
        self._reporter = reporter
        self._worker = reporter.worker
        self._queue: deque[tuple[Any, ...]] = deque()
        self._totals: dict[tuple[int, str], _Total] = {}
        self._pending: deque[_Batch] = deque()
        self._ids = count(chance.current().getrandbits(61))
        self._some = asyncio.Event()
        self._full = asyncio.Event()
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._retry_after_s = FLUSH_AFTER_S
        self._reason = "the app was closed before they were written"
        self._untold = 0
        self._tell_at = 0.0
        self._tell_after_s = FLUSH_AFTER_S
        self._pruner = _Pruner(history, options, clock)
        reporter.add(self.joined, events.WorkerJoined)
        reporter.note_end = self.ended

    # What happens in the worker.

    def joined(self, event: events.WorkerJoined) -> None:
        """The worker begins to run."""
        if self._task is None:
            self._task = self._background.start(self._work(), "pyncette history")

    def ended(
        self, task: Task, reading: Reading, started: int, outcome: RunOutcome, error: str | None
    ) -> None:
        """Takes an attempt into the queue; see ``pyncette.observers.NoteEnd``."""
        try:
            self._add(task, reading, started, outcome, error)
        except Exception as failure:  # the run does not depend on it
            self._note_lost(1, describe(failure))

    def _add(
        self, task: Task, reading: Reading, started: int, outcome: RunOutcome, error: str | None
    ) -> None:
        ended, attempt, name = self._clock.microseconds(), attempt_of(reading), task.name
        place = (ended - ended % MINUTE, name)
        total = self._totals.get(place)
        if total is None and len(self._totals) < TOTALS_MAX:  # else its attempt is lost as well
            total = self._totals[place] = _Total()
        if total is not None:
            if outcome == SUCCEEDED:
                total.succeeded += 1
            elif outcome in ("failed", "timed_out"):
                total.failed += 1
            else:
                total.other += 1
            total.took += ended - started
            if attempt == 1:
                lateness = started - (came_due(reading) or 0)
                if lateness > total.lateness_max:
                    total.lateness_max = lateness
        queue = self._queue
        waiting = len(queue)
        if waiting >= QUEUE_MAX:
            self._note_lost(1, f"{QUEUE_MAX:,} attempts wait to be written, and no more may")
            return
        # A tuple of what contains nothing, unlike a RunRow, is no work for the garbage collector.
        queue.append(
            (
                ended,
                next(self._ids),
                name,
                reading.record.key if task.dynamic else None,
                execution_id(task, reading),
                attempt,
                reading.progress.occurrence or 0,
                started,
                self._worker,
                outcome,
                None if error is None else error[:ERROR_CHARACTERS_MAX],
            )
        )
        if not waiting:
            self._some.set()
        elif waiting == BATCH_MAX - 1:
            self._full.set()

    # The internal task.

    async def _work(self) -> None:
        while True:
            if not self._waiting:
                await _wait(self._some, PRUNE_PAUSE_S if self._pruner.more else PRUNE_AFTER_S)
            if self._waiting:
                await _wait(self._full, self._retry_after_s)
            await self._flush_once()
            await self._pruner.step()

    @property
    def _waiting(self) -> bool:
        return bool(self._queue or self._pending)

    async def flush(self) -> None:
        """Writes what waits now; returns early if the store is not available."""
        for _ in range(len(self._queue) // BATCH_MAX + 2):
            if not self._waiting or not await self._flush_once():
                return

    async def _flush_once(self) -> bool:
        """Writes a batch; returns whether more may be written at once."""
        async with self._writing:
            batch = self._next()
            if batch is None:
                return True
            try:
                await self._history.append(batch.rows, batch.totals)
            except StoreUnavailableError as error:
                if not batch.outlived:
                    self._put_back(batch, error)
                    return False
                # The store takes others: an error that is not known as a refusal of a value.
                self._note_lost(len(batch.rows), describe(error))
            except Exception as error:  # also of a store of others: the next batch may be written
                self._note_lost(len(batch.rows), describe(error))
            else:
                self._note_written(batch)
            self._pending.remove(batch)
            return True

    def _next(self) -> _Batch | None:
        """The batch to write now; None if there is nothing to write."""
        pending = self._pending
        if len(pending) < PENDING_MAX and all(batch.suspect for batch in pending):
            taken = self._take()
            if taken is not None:
                pending.appendleft(taken)
        return pending[0] if pending else None

    def _put_back(self, batch: _Batch, error: StoreUnavailableError) -> None:
        # It is repeated as it is: the store knows what it has of it already.
        batch.failures += 1
        self._pending.rotate(-1)
        self._retry_after_s = min(2 * self._retry_after_s, RETRY_AFTER_S_MAX)
        self._full.clear()
        self._reason = describe(error)

    def _note_written(self, batch: _Batch) -> None:
        self._retry_after_s = FLUSH_AFTER_S
        for other in self._pending:
            other.outlived = other.suspect
        if self._options.per_task is not None:
            for total in batch.totals:
                self._pruner.ran(total.task)

    def _take(self) -> _Batch | None:
        queue = self._queue
        rows = [RunRow._make(queue.popleft()) for _ in range(min(len(queue), BATCH_MAX))]
        if len(queue) < BATCH_MAX:
            self._full.clear()
        if not queue:
            self._some.clear()
        if not rows:
            # Totals never go alone: what is repeated is recognised by its rows.
            return None
        totals = []
        for place in list(self._totals)[:BATCH_MAX]:
            total = self._totals.pop(place)
            totals.append(
                TotalRow(
                    *place,
                    total.succeeded,
                    total.failed,
                    total.other,
                    total.took,
                    total.lateness_max,
                )
            )
        return _Batch(rows, totals)

    def _note_lost(self, attempts: int, reason: str) -> None:
        self._options.lost += attempts
        self._untold += attempts
        now = realtime.monotonic()
        if now >= self._tell_at:
            calm = now >= self._tell_at + TELL_AFTER_S_MAX
            self._tell_after_s = (
                FLUSH_AFTER_S if calm else min(2 * self._tell_after_s, TELL_AFTER_S_MAX)
            )
            self._tell_at = now + self._tell_after_s
            self._tell_lost(reason)

    def _tell_lost(self, reason: str) -> None:
        attempts, self._untold = self._untold, 0
        self._reporter.tell(
            events.HistoryLost(**self._reporter.here(), attempts=attempts, reason=reason)
        )

    async def close(self, patience_s: float) -> None:
        """Writes what is left, for so many seconds at most; the rest is lost."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        pause_s = RETRY_AFTER_CLOSING_S
        try:
            async with realtime.timeout(patience_s):
                while self._waiting:
                    if not await self._flush_once():
                        await realtime.sleep(pause_s)
                        pause_s = min(2 * pause_s, FLUSH_AFTER_S)
        except TimeoutError:
            pass
        lost = len(self._queue) + sum(len(batch.rows) for batch in self._pending)
        self._options.lost += lost
        self._untold += lost
        if self._untold:
            self._tell_lost(self._reason)


class _Pruner:
    """Removes what is too old, or too much, in small steps."""

    def __init__(self, history: DeadlineHistory, options: RunHistory, clock: Clock) -> None:
        self._history = history
        self._options = options
        self._clock = clock
        self._began: tuple[float, int] | None = None
        self._quiet_until = 0.0
        # What is to be done: a task whose attempts are counted, or what is older than an instant.
        self._jobs: deque[tuple[str | None, int | None]] = deque()
        self._ran: set[str] = set()
        self._told = False

    @property
    def more(self) -> bool:
        """Whether there is more to remove."""
        return bool(self._jobs)

    def ran(self, task: str) -> None:
        """Attempts of this task were written."""
        self._ran.add(task)

    async def step(self) -> None:
        """Removes at most ``PRUNE_STEP`` attempts, if there is something to remove."""
        if not self._jobs:
            self._begin()
        if not self._jobs:
            return
        task, before = self._jobs.popleft()
        try:
            if before is None:
                assert task is not None
                before = await self._first_kept(task)
            if before is None:
                return
            if await self._history.prune(task, before, PRUNE_STEP) >= PRUNE_STEP:
                self._jobs.appendleft((task, before))
            self._told = False
        except Exception as error:
            # Also of a store of others: what is written does not depend on it.
            self._jobs.clear()
            if isinstance(error, StoreUnavailableError) or self._told:
                level, follows = logging.DEBUG, "it is tried again in a minute"
            else:
                level, follows = logging.WARNING, "it grows until that is mended"
            self._told = self._told or level == logging.WARNING
            logger.log(
                level, "Nothing is removed from the run history, %s: %s", follows, describe(error)
            )

    def _begin(self) -> None:
        elapsed, now = self._clock.monotonic(), self._clock.microseconds()
        if self._began is not None:
            last_elapsed, last_now = self._began
            passed_s = elapsed - last_elapsed
            if passed_s < PRUNE_AFTER_S:
                return
            if abs((now - last_now) / 1_000_000 - passed_s) > JUMP_S:
                self._quiet_until = elapsed + JUMP_GRACE_S
        self._began = elapsed, now
        if elapsed < self._quiet_until:
            return
        self._jobs.append((None, now - self._options.keep_us))
        if self._options.per_task is not None:
            self._jobs.extend((task, None) for task in sorted(self._ran))
            self._ran.clear()

    async def _first_kept(self, task: str) -> int | None:
        """Returns the instant before which a task has more attempts than are kept."""
        left = self._options.per_task or 0
        now = self._clock.microseconds()
        for total in await self._history.totals(task, now - self._options.keep_us, now + MINUTE):
            left -= total.succeeded + total.failed + total.other
            if left < 0:
                # Whole minutes: the attempts of this one stay.
                return total.minute
        return None


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Waits for an event, for so many seconds at most."""
    with suppress(TimeoutError):
        async with realtime.timeout(seconds):
            await event.wait()
