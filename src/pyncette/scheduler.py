"""The loop: wait until something comes due, claim it, dispatch it; and again.

Knows when to ask the store and for how much (:mod:`pyncette.sources` keeps the table), which
slots are free, and what to do when the store fails. What becomes of a run is settled elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Any, Final, NamedTuple, Protocol

from pyncette import lifecycle
from pyncette.clock import Clock, StoreClock
from pyncette.errors import PyncetteException, StoreError
from pyncette.execution import Batch, Execution, RunContext, TaskParts, compose
from pyncette.lifecycle import SUSPECT_STARTS, Rules, Wanted
from pyncette.model import ExecutionMode, MiddlewareFunc
from pyncette.record import (
    ABSENT,
    STATIC_GROUP,
    Change,
    Delete,
    Record,
    State,
    UnreadableRecord,
    read,
)
from pyncette.schedule import NewerFormat, dumps
from pyncette.settler import Lane
from pyncette.sources import NEVER, AskedSource, Sources
from pyncette.store import Claimed, Group, Key, Refused, Result, Source, Store, Watch, Write
from pyncette.task import Task

logger = logging.getLogger(__name__)

BACKLOG_MAX: Final = 1_000
"""With so many outcomes waiting to be written, nothing more is claimed."""

AT_MOST_ONCE_LEASE_MIN: Final = 2_000_000
"""An at-most-once record is held only until it has moved on; a lease shorter than the store's
latency would have it taken away before, again and again."""

STRANGER_DELAY_MAX: Final = 60_000_000
"""Longest time for which a record of a newer format is left alone, in microseconds."""

SUSPECT_DELAY: Final = 100_000
"""For how long a suspect is given back while another one runs, in microseconds."""

STORE_RETRY_DELAY_MAX_S: Final = 3.0

MEASURE_INTERVAL_S: Final = 10.0
"""So often is the store's clock looked at; two clocks drift apart by some 50 us/s at most."""


_group_of_record = attrgetter("group")


class Executor(Protocol):
    """What runs executions."""

    async def spawn_task(self, awaitable: Any, /) -> None:
        """Returns once the work has started."""


class Settings(NamedTuple):
    """What the loop is told once.

    Attributes:
        worker: The worker's name.
        poll_interval: Microseconds between two looks at everything.
        batch_size: Most records in one claim.
        concurrency_limit: Most executions at once.
    """

    worker: str
    poll_interval: int
    batch_size: int
    concurrency_limit: int


class _Question(NamedTuple):
    """A claim as it was sent, to be repeated as it is when its answer is lost."""

    asked: list[AskedSource]
    sources: list[Source]
    limit: int
    share: int
    now: int
    token: str
    sent: float


class Scheduler:
    """The loop of one context, and what its executions share."""

    def __init__(
        self,
        store: Store,
        executor: Executor,
        clock: Clock,
        lane: Lane,
        tasks: Callable[[], Iterable[Task]],
        middlewares: Sequence[MiddlewareFunc],
        context_class: type[RunContext],
        settings: Settings,
        tick: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """Prepares a loop.

        Args:
            store: Where the records are.
            executor: What runs executions.
            clock: Decides what is due.
            lane: Carries outcomes and heartbeats to the store.
            tasks: The declared tasks, at any moment.
            middlewares: Wrapped around each body, the first outermost.
            context_class: The app's class of contexts.
            settings: See there.
            tick: Entered for each pass of the loop that calls the store; sees it fail.
        """
        self.clock = clock
        self.lane = lane
        lane.landed = self.landed
        self.context_class = context_class
        self._last_tick = clock.microseconds()
        self.executions: set[Execution] = set()
        self.notes_runners = not hasattr(executor, "cancel")
        self._store = store
        self._executor = executor
        self._tasks = tasks
        self._middlewares = middlewares
        self._settings = settings
        self._tick = tick
        self._sources = Sources()
        self._parts: dict[Task, TaskParts] = {}
        self._tokens = f"{settings.worker}:{secrets.token_hex(4)}:"
        self._claims = 0
        self._next_poll = 0
        self._measure_at = clock.monotonic() + MEASURE_INTERVAL_S
        self._running = False
        self._stopping = False
        self._unanswered: _Question | None = None
        self._failures = 0
        self._strangers = 0
        self._suspect: Execution | None = None
        self._alarm: asyncio.Task[None] | None = None
        self._alarm_at = NEVER
        self._bell: asyncio.Future[None] | None = None
        self._rung = False
        self._starved = False
        self._watch: Watch | None = None
        self._watching = False
        self._changed = asyncio.Event()

    @property
    def last_tick(self) -> int:
        """The instant of the last successful contact with the store."""
        return self._last_tick

    @property
    def stopping(self) -> bool:
        """Whether it was shut down."""
        return self._stopping

    async def returned(self) -> None:
        """Waits until :meth:`run` has returned. Only after :meth:`shutdown`."""
        while self._running:
            self._changed.clear()
            await self._changed.wait()

    async def idle(self) -> None:
        """Waits until no execution is left. Only after :meth:`shutdown`."""
        while self.executions:
            self._changed.clear()
            await self._changed.wait()

    # What others tell it.

    def shutdown(self) -> None:
        """Claims nothing more, and lets :meth:`run` return."""
        self._stopping = True
        self._ring()

    def cancel(self) -> None:
        """Cancels what runs, and lets nothing start any more."""
        for execution in list(self.executions):
            execution.cancel()
        if not self.notes_runners:
            self._executor.cancel()  # type: ignore[attr-defined]

    def wake(self, group: str, key: str, due_at: int) -> None:
        """A record comes due at this instant, perhaps sooner than was known."""
        source = self._sources.find(group, key)
        if source is not None and self._sources.ask_by(source, due_at):
            self._ring()

    def wake_groups(self, groups: Iterable[str] | None) -> None:
        """Something may have changed in these groups, or in any."""
        now = self.clock.microseconds()
        for source in self._sources.all():
            if groups is None or source.group in groups:
                self._sources.ask_by(source, now)
        self._ring()

    def ended(self, execution: Execution) -> None:
        self.executions.discard(execution)
        if execution is self._suspect:
            self._suspect = None
        if self._stopping:
            self._changed.set()
        self._ring()

    def wrote(self, write: Write) -> None:
        change = write.change
        if not isinstance(change, Delete) and change.due_at is not None:
            self.wake(write.group, write.key, change.due_at)

    def landed(self) -> None:
        """A flight of outcomes has come back: there may be room for more."""
        if self._starved:
            self._ring()

    # The loop.

    async def run(self) -> None:
        """Runs until :meth:`shutdown`.

        Raises:
            PyncetteException: It runs already.
        """
        if self._running:
            raise PyncetteException("run() is under way already in this context")
        self._running = True
        try:
            await self._watch_changes()
            await self._meet_static_tasks()
            while not self._stopping:
                await self._pass()
        finally:
            self._running = False
            self._changed.set()
            if self._watch is not None:
                self._watch.close()
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm, self._alarm_at = None, NEVER

    async def _pass(self) -> None:
        now = self.clock.microseconds()
        free = self._free_slots()
        wake_at = self._next_poll
        if free and not self._failures:
            wake_at = min(wake_at, self._sources.soonest())
        if now < wake_at:
            await self._wait_until(wake_at)
            return
        polls = now >= self._next_poll
        try:
            with self._tick():
                await self._claim(self._unanswered or self._ask(now, free))
                if polls:
                    await self._measure()
                    await self._watch_changes()
        except Exception as error:
            self._store_failed(error)

    async def _measure(self) -> None:
        """Looks at the store's clock now and then, where it has one."""
        clock = self.clock
        if isinstance(clock, StoreClock) and clock.monotonic() >= self._measure_at:
            has_clock = await clock.measure(self._store.now)
            self._measure_at = clock.monotonic() + MEASURE_INTERVAL_S if has_clock else math.inf

    async def _watch_changes(self) -> None:
        """Asks to be told of changes, where the store can tell; if that fails, again later."""
        if self._watching:
            return
        groups = [group for task in self._tasks() for group in task.groups()]
        try:
            self._watch = await self._store.watch(groups, self.wake_groups)
        except Exception as error:
            logger.warning("The store cannot be watched, only polled for now: %s", error)
        else:
            self._watching = True
            self.wake_groups(None)

    def _free_slots(self) -> int:
        limit = self._settings.concurrency_limit
        self._starved = len(self.lane) >= BACKLOG_MAX
        if self._starved:
            return 0
        return min(self._settings.batch_size, max(limit - len(self.executions), 0))

    def _ask(self, now: int, free: int) -> _Question:
        """Decides what to ask: everything once per poll interval, else what is due."""
        if now >= self._next_poll:
            self._sources.refresh(self._tasks())
            self._next_poll = now + self._settings.poll_interval
            asked = self._sources.all()
            for source in asked:
                source.next_ask = NEVER
        else:
            asked = self._sources.due(now)
        random.shuffle(asked)
        share = -(-free // len(asked)) if asked else 0
        self._claims += 1
        return _Question(
            asked,
            [self._source(source, share, now) for source in asked],
            free,
            share,
            now,
            f"{self._tokens}{self._claims}",
            self.clock.monotonic(),
        )

    def _source(self, asked: AskedSource, share: int, now: int) -> Source:
        lease = self._task_parts(asked.task).lease
        if asked.key is None:
            return Group(asked.group, lease, share, now)
        return Key(asked.group, asked.key, lease)

    async def _claim(self, question: _Question) -> None:
        repeated, self._unanswered = self._unanswered is not None, question
        _, sources, limit, _, now, token, sent = question
        claimed = await self._store.claim(sources, limit, now, token, repeated)
        self._unanswered = None
        self._succeeded()
        self._note_next_asks(question, claimed)
        took = self.clock.monotonic() - sent
        # Apart, because a static task may be named like another one's group.
        groups = {source.group: source.task for source in question.asked if source.key is None}
        statics = {source.key: source.task for source in question.asked}
        batches: dict[Task, Batch] = {}
        left = iter(claimed.records)
        try:
            for record in left:
                static = record.group == STATIC_GROUP
                task = statics[record.key] if static else groups[record.group]
                batch = batches.get(task)
                if batch is None:
                    batch = batches[task] = self._batch(task, sent, took)
                execution = self._execution(batch, record)
                if execution is not None:
                    await self._start(execution)
        except asyncio.CancelledError:
            for record in left:
                self._give_back(record, now)
            raise
        unplanned = [
            source.task
            for source, next_due in zip(question.asked, claimed.next_due, strict=True)
            if next_due is None and source.key is not None
        ]
        if unplanned:
            await self._reconcile(unplanned, replan=False)

    def _note_next_asks(self, question: _Question, claimed: Claimed) -> None:
        # A static task that was claimed has nothing due any more: groups are what counts.
        yielded = Counter(map(_group_of_record, claimed.records))
        full = len(claimed.records) >= question.limit
        longest = self._settings.poll_interval
        for source, next_due in zip(question.asked, claimed.next_due, strict=True):
            if next_due is None:
                continue
            if next_due > question.now:
                source.backoff = 0
                self._sources.ask_by(source, next_due)
            elif full or (source.key is None and yielded[source.group] >= question.share):
                source.backoff = 0
                self._sources.ask_by(source, question.now)
            else:
                self._sources.hold_off(source, question.now, longest)

    def _batch(self, task: Task, sent: float, took: float) -> Batch:
        parts = self._task_parts(task)
        lease_s = parts.lease / 1_000_000
        return Batch(parts, sent + lease_s, took > lease_s / 10)

    def _execution(self, batch: Batch, record: Record) -> Execution | None:
        """What a claimed record leads to: an execution, or its being given up."""
        now = self._last_tick
        task = batch.parts.task
        try:
            reading = read(record)
        except NewerFormat as error:
            self._strangers += 1
            delay = min(
                self._settings.poll_interval << min(self._strangers, 16), STRANGER_DELAY_MAX
            )
            logger.warning("%s of %s is for a newer worker: %s", record.key, task, error)
            self._give_back(record, now, delay)
            return None
        except UnreadableRecord as error:
            logger.error("%s of %s is unreadable and parked: %s", record.key, task, error)
            reason, born = str(error), secrets.token_hex(4)
            self._give_up(record, lambda record: lifecycle.parked(record, reason, born))
            return None
        if self._stopping:
            self._give_back(record, now)
            return None
        execution = Execution(batch, reading)
        if record.starts >= SUSPECT_STARTS:
            if self._suspect is not None:
                self._give_back(record, now, SUSPECT_DELAY)
                return None
            self._suspect = execution
        return execution

    async def _start(self, execution: Execution) -> None:
        self.executions.add(execution)
        run = execution.run()
        try:
            await self._executor.spawn_task(run)
        except Exception:
            logger.exception("The executor failed to take on %s", execution.task())
            self._withdraw(execution, run, self._settings.poll_interval)
        except asyncio.CancelledError:
            self._withdraw(execution, run, 0)
            # A body that is run inside the loop may be cancelled alone; the loop goes on then.
            current = asyncio.current_task()
            if current is None or current.cancelling():
                raise

    def _withdraw(self, execution: Execution, run: Coroutine[Any, Any, None], delay: int) -> None:
        """Gives back what the executor was handed, unless it has begun."""
        if not execution.begun:
            run.close()
            self.ended(execution)
            self._give_back(execution.reading.record, self.clock.microseconds(), delay)

    def _give_back(self, record: Record, now: int, delay: int = 0) -> None:
        self._give_up(record, lambda record: _given_back(record, now, delay))

    def _give_up(self, record: Record, decide: Callable[[Record], Change]) -> None:
        self.lane.add(_Release(self, record, decide))

    def _task_parts(self, task: Task) -> TaskParts:
        parts = self._parts.get(task)
        if parts is None:
            at_most_once = task.execution_mode is ExecutionMode.AT_MOST_ONCE
            parts = self._parts[task] = TaskParts(
                self,
                task,
                compose(self._middlewares, task.task_func),
                Rules(task.fast_forward, task.failure_mode, self._settings.poll_interval),
                max(task.lease, AT_MOST_ONCE_LEASE_MIN) if at_most_once else task.lease,
                at_most_once,
            )
        return parts

    # The store's health.

    def _succeeded(self) -> None:
        self._last_tick = self.clock.microseconds()
        if self._failures:
            logger.info("The store answers again")
            self._failures = 0

    def _store_failed(self, error: Exception) -> None:
        self._failures += 1
        longest = min(0.1 * 2 ** min(self._failures, 10), STORE_RETRY_DELAY_MAX_S)
        delay = longest * random.random()
        logger.warning(
            "The store failed, trying again in %.1f s: %s",
            delay,
            error,
            exc_info=None if isinstance(error, StoreError) else error,
        )
        now = self.clock.microseconds()
        self._next_poll = now + int(delay * 1_000_000)
        question = self._unanswered
        if question is not None and now >= question.now + min(
            (source.lease for source in question.sources), default=0
        ):
            self._unanswered = None  # what it may have claimed falls due by itself

    async def _meet_static_tasks(self) -> None:
        """Makes the records of static tasks, and replans those whose schedule has changed."""
        while not self._stopping:
            try:
                await self._reconcile(
                    [task for task in self._tasks() if task.enabled and not task.dynamic]
                )
            except Exception as error:
                self._store_failed(error)
                await self._wait_until(self._next_poll)
            else:
                self._next_poll = 0
                return

    async def _reconcile(self, tasks: list[Task], replan: bool = True) -> None:
        if not tasks:
            return
        current = await self._store.get([(task.group, task.key) for task in tasks])
        left = list(zip(tasks, current, strict=True))
        while left:
            now = self.clock.microseconds()
            writes = [
                (task, write)
                for task, record in left
                if (record is None or replan) and (write := self._met(task, record, now))
            ]
            if not writes:
                return
            results = await self._store.write([write for _, write in writes], now)
            for (_, write), result in zip(writes, results, strict=True):
                if not isinstance(result, Refused):
                    self.wrote(write)
            left = [
                (task, result.current)
                for (task, _), result in zip(writes, results, strict=True)
                if isinstance(result, Refused)
            ]

    def _met(self, task: Task, record: Record | None, now: int) -> Write | None:
        if record is None:
            wanted = Wanted(task.plan, "", secrets.token_hex(4))
            return Write(task.group, task.key, lifecycle.created(wanted, now), ABSENT)
        try:
            change = lifecycle.replanned(record, task.plan, now)
        except NewerFormat as error:
            logger.warning("The schedule of %s is left as it is: %s", task, error)
            return None
        if change is None:
            return None
        logger.info("Schedule of %s: '%s' becomes '%s'", task, record.plan, dumps(task.plan))
        return Write(task.group, task.key, change, record.version)

    # Waiting.

    async def _wait_until(self, instant: int) -> None:
        """Waits until this instant, or until somebody rings."""
        if self._rung:
            self._rung = False
            return
        if self._alarm is None or instant < self._alarm_at:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm_at = instant
            self._alarm = asyncio.create_task(self._sleep_until(instant), name="pyncette alarm")
        self._bell = asyncio.get_running_loop().create_future()
        try:
            await self._bell
        finally:
            self._bell = None
        self._rung = False

    async def _sleep_until(self, instant: int) -> None:
        await self.clock.sleep((instant - self.clock.microseconds()) / 1_000_000)
        self._alarm, self._alarm_at = None, NEVER
        self._ring()

    def _ring(self) -> None:
        self._rung = True
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)


def _given_back(record: Record, now: int, delay: int) -> Change:
    try:
        reading = read(record)
    except ValueError:
        return lifecycle.given_back_unread(record, now, delay)
    return lifecycle.given_back(reading, now, delay)


class _Release:
    """A claimed record that is not run: given back, or parked."""

    __slots__ = ("_decide", "_record", "_scheduler")

    def __init__(
        self, scheduler: Scheduler, record: Record, decide: Callable[[Record], Change]
    ) -> None:
        self._scheduler = scheduler
        self._record = record
        self._decide = decide

    def build(self, now: int) -> Write | None:
        record = self._record
        return Write(record.group, record.key, self._decide(record), record.version, record.token)

    def resolve(self, result: Result, write: Write, now: int) -> bool:
        if not isinstance(result, Refused):
            self._scheduler.wrote(write)
            return False
        current, held = result.current, self._record
        if (
            current is None
            or (current.token, current.starts) != (held.token, held.starts)
            or current.state != State.RUNNING
        ):
            return False
        self._record = current  # somebody has asked for something meanwhile
        return True

    def fail(self, error: Exception, now: int) -> bool:
        return self._record.due_at is not None and now < self._record.due_at
