"""The loop: wait until something comes due, claim it, dispatch it; and again.

Knows when to ask the store and for how much (``pyncette.engine.polling`` keeps the table), which
slots are free, and what to do when the store fails. What becomes of a run is settled elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Final, NamedTuple

from pyncette import chance
from pyncette.clock import Clock, StoreClock
from pyncette.engine import static_tasks
from pyncette.engine.alarm import NEVER, Alarm
from pyncette.engine.dispatch import Claim, Dispatcher, Executor
from pyncette.engine.execution import RunContext
from pyncette.engine.polling import AskedSource, Sources
from pyncette.engine.writes import Lane
from pyncette.errors import PyncetteException, StoreError
from pyncette.model import MiddlewareFunc
from pyncette.store import Claimed, Group, Key, Source, Store, Watch
from pyncette.task import Task

logger = logging.getLogger(__name__)

BACKLOG_MAX: Final = 1_000
"""With so many outcomes waiting to be written, nothing more is claimed."""

STORE_RETRY_DELAY_MAX_S: Final = 3.0

MEASURE_INTERVAL_S: Final = 10.0
"""So often is the store's clock looked at; two clocks drift apart by some 50 us/s at most."""


_group_of_record = attrgetter("group")


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
        self._clock = clock
        self._lane = lane
        lane.landed = self._landed
        self._last_tick = clock.microseconds()
        self._store = store
        self._tasks = tasks
        self._settings = settings
        self._tick = tick
        self._alarm = Alarm(clock)
        self._sources = Sources()
        self._dispatcher = Dispatcher(
            executor,
            clock,
            lane,
            middlewares,
            context_class,
            settings.poll_interval,
            self._ended,
            self.wake,
        )
        self._tokens = f"{settings.worker}:{chance.new_id(4)}:"
        self._claims = 0
        self._next_poll = 0
        self._measure_at = clock.monotonic() + MEASURE_INTERVAL_S
        self._running = False
        self._stopping = False
        self._unanswered: _Question | None = None
        self._failures = 0
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
        """Waits until ``run`` has returned. Only after ``shutdown``."""
        while self._running:
            self._changed.clear()
            await self._changed.wait()

    async def idle(self) -> None:
        """Waits until no execution is left. Only after ``shutdown``."""
        while self._dispatcher.executions:
            self._changed.clear()
            await self._changed.wait()

    # What others tell it.

    def shutdown(self) -> None:
        """Claims nothing more, and lets ``run`` return."""
        self._stopping = True
        self._alarm.ring()

    def cancel(self) -> None:
        """Cancels what runs, and lets nothing start any more."""
        self._dispatcher.cancel()

    def wake(self, group: str, key: str, due_at: int) -> None:
        """A record comes due at this instant, perhaps sooner than was known."""
        source = self._sources.find(group, key)
        if source is not None and self._sources.ask_by(source, due_at):
            self._alarm.ring()

    def wake_groups(self, groups: Iterable[str] | None) -> None:
        """Something may have changed in these groups, or in any."""
        now = self._clock.microseconds()
        for source in self._sources.all():
            if groups is None or source.group in groups:
                self._sources.ask_by(source, now)
        self._alarm.ring()

    def _ended(self) -> None:
        if self._stopping:
            self._changed.set()
        self._alarm.ring()

    def _landed(self) -> None:
        if self._starved:
            self._alarm.ring()

    # The loop.

    async def run(self) -> None:
        """Runs until ``shutdown``.

        Raises:
            PyncetteException: It runs already.
        """
        if self._running:
            raise PyncetteException("run() is under way already in this context")
        self._running = True
        worker = self._settings.worker
        logger.info("Worker %s starts, with %d tasks", worker, sum(1 for _ in self._tasks()))
        try:
            await self._watch_changes()
            await self._meet_static_tasks()
            while not self._stopping:
                await self._pass()
        finally:
            logger.info("Worker %s claims no more", worker)
            self._running = False
            self._changed.set()
            if self._watch is not None:
                self._watch.close()
            self._alarm.close()

    async def _pass(self) -> None:
        now = self._clock.microseconds()
        free = self._free_slots()
        wake_at = self._next_poll
        if free and not self._failures:
            wake_at = min(wake_at, self._sources.soonest())
        if now < wake_at:
            await self._alarm.wait_until(wake_at)
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
        clock = self._clock
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
        self._starved = len(self._lane) >= BACKLOG_MAX
        if self._starved:
            return 0
        return min(self._settings.batch_size, max(limit - len(self._dispatcher.executions), 0))

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
        chance.current().shuffle(asked)
        share = -(-free // len(asked)) if asked else 0
        self._claims += 1
        return _Question(
            asked,
            [self._source(source, share, now) for source in asked],
            free,
            share,
            now,
            f"{self._tokens}{self._claims}",
            self._clock.monotonic(),
        )

    def _source(self, asked: AskedSource, share: int, now: int) -> Source:
        lease = self._dispatcher.lease(asked.task)
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
        await self._dispatcher.dispatch(
            claimed.records,
            {source.group: source.task for source in question.asked if source.key is None},
            {source.key: source.task for source in question.asked if source.key is not None},
            Claim(sent, self._clock.monotonic() - sent, self._last_tick),
            lambda: self._stopping,
        )
        unplanned = [
            source.task
            for source, next_due in zip(question.asked, claimed.next_due, strict=True)
            if next_due is None and source.key is not None
        ]
        if unplanned:
            await self._meet(unplanned, replan=False)

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

    # The store's health.

    def _succeeded(self) -> None:
        self._last_tick = self._clock.microseconds()
        if self._failures:
            logger.info("The store answers again")
            self._failures = 0

    def _store_failed(self, error: Exception) -> None:
        self._failures += 1
        longest = min(0.1 * 2 ** min(self._failures, 10), STORE_RETRY_DELAY_MAX_S)
        delay = longest * chance.current().random()
        logger.warning(
            "The store failed, trying again in %.1f s: %s",
            delay,
            error,
            exc_info=None if isinstance(error, StoreError) else error,
        )
        now = self._clock.microseconds()
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
                static = [task for task in self._tasks() if task.enabled and not task.dynamic]
                await self._meet(static, replan=True)
            except Exception as error:
                self._store_failed(error)
                await self._alarm.wait_until(self._next_poll)
            else:
                self._next_poll = 0
                return

    async def _meet(self, tasks: list[Task], replan: bool) -> None:
        for write in await static_tasks.meet(self._store, self._clock, tasks, replan):
            self._dispatcher.wrote(write)
