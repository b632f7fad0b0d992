"""The loop: it waits until a record comes due, claims it, dispatches it, and repeats this.

Knows when to claim and how many records (``pyncette.engine.polling`` keeps the table), how many
slots are free, and what to do when the store fails. It does not handle the outcome of runs.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from pyncette import chance
from pyncette.clock import StoreClock, realtime
from pyncette.engine import static_tasks
from pyncette.engine.dispatch import Claim
from pyncette.engine.polling import NEVER, PolledSource
from pyncette.engine.static_tasks import Correction
from pyncette.errors import DeadlineExceededError, PyncetteException, describe
from pyncette.events import Claimed as ClaimedEvent
from pyncette.events import StoreDown, StoreUp, WorkerJoined, WorkerLeft
from pyncette.store import Claimed, Group, Key, Source, Watch
from pyncette.store.record import CONTROL_GROUP, Record
from pyncette.task import Task

if TYPE_CHECKING:
    from pyncette.engine.worker import Worker

logger = logging.getLogger(__name__)

BACKLOG_MAX: Final = 1_000
"""Number of outcomes waiting to be written from which the loop stops claiming."""

STORE_RETRY_DELAY_MAX_S: Final = 3.0

MEASURE_INTERVAL_S: Final = 10.0
"""How often the store's clock is measured; two clocks drift apart by some 50 us/s at most."""

SUSPICION_INTERVAL_S: Final = 1.0
"""How often it is measured while the store leaves records that are due by the worker's clock."""

YIELD_MAX: Final = 250_000
"""How long, in microseconds, a worker leaves due records to others that can read them.

Others that know of them claim when they are due. All records of the group are late by this.
"""

OVERDUE_POLLS: Final = 2
"""How many poll intervals a record of another worker's partition must be overdue to be claimed."""

BACKWARD_STEP_MIN: Final = 1_000_000
"""By how many microseconds the worker's clock must go back before planned times are checked."""

PATIENT_FACTOR: Final = 4
"""How many deadlines a claim of a single record may take after it has exceeded one."""

TOO_LARGE_CHARACTERS_MIN: Final = 100_000
"""A smaller record is never too large: if reading it takes long, the store is slow."""

CAREFUL_CLAIMS: Final = 20
"""Number of claims with a limit of one record after a claim that exceeded its deadline. One of them
finds the record that is too large, since the order of the sources is random."""


_LONG_AGO: Final = -(1 << 62)

_group_of_record = attrgetter("group")


class _Question(NamedTuple):
    """A claim as it was sent, so that it can be repeated if its answer is lost.

    Attributes:
        asked: The sources, as entries of the table.
        sources: The same, as arguments of the claim.
        limit: Maximum records, in total.
        now, token: Arguments of the claim.
        sent: The monotonic instant at which it was sent first.
        repeated: Whether it was sent before.
    """

    asked: list[PolledSource]
    sources: list[Source]
    limit: int
    now: int
    token: str
    sent: float
    repeated: bool = False


class Loop:
    """The loop of one worker.

    Its delays are monotonic time; only decisions about runs read the clock.
    """

    def __init__(self, worker: Worker) -> None:
        """Prepares a loop for a worker."""
        self._worker = worker
        self.running = False
        self.starved = False
        self.last_tick = worker.clock.microseconds()
        self._tokens = f"{worker.membership.id}:"
        self._claims = 0
        # Monotonic microseconds, as integers, so that rounding loses none.
        self._poll_at = _LONG_AGO
        self._measure_at = worker.clock.monotonic() + MEASURE_INTERVAL_S
        # The clock minus the monotonic clock, at the last poll.
        self._offset = -NEVER
        self._claim_max = worker.settings.batch_size
        # How many more claims have a limit of one record and a longer deadline.
        self._careful = 0
        self._unanswered: _Question | None = None
        self._failures = 0
        self._watch: Watch | None = None
        self._watching = False
        # Whether nothing was claimed since a poll that was made to find out.
        self._quiet = False

    async def run(self, until_idle: bool = False) -> None:
        """Runs until the worker is shut down.

        Args:
            until_idle: Whether to return when nothing runs, is due, or is left to be written.

        Raises:
            PyncetteException: It is running already.
        """
        if self.running:
            raise PyncetteException("run() is under way already in this context")
        self.running = True
        self._quiet = False
        worker = self._worker
        worker.dispatcher.catch_up_at_once(until_idle)
        reporter = worker.reporter
        tasks = len(worker.tasks())
        left = len(worker.declared()) - tasks
        try:
            reporter.tell(WorkerJoined(**reporter.here(), tasks=tasks, left_to_others=left))
            await worker.membership.join()
            await self._watch_changes()
            await self._ensure_static_records()
            while not worker.stopping and not (until_idle and await self._is_idle()):
                await self._pass()
        finally:
            worker.waits.note((), 0)
            self.running = False
            if self._watch is not None:
                self._watch.close()
                self._watch = None
            self._watching = False
            worker.membership.leave(reachable=not self._failures)
            worker.alarm.close()
            worker.returned()
            # Last: a handler that ends the process must not keep the worker from closing.
            reporter.tell(WorkerLeft(**reporter.here()))

    async def _pass(self) -> None:
        worker = self._worker
        monotonic = self._monotonic()
        if worker.membership.beat_at <= monotonic and not self._failures:
            if await worker.membership.beat(monotonic):
                self._poll_at = _LONG_AGO
            monotonic = self._monotonic()
        free = self._free_slots()
        until_poll = self._poll_at - monotonic
        now = worker.clock.microseconds()
        pause, until_look = NEVER, until_poll
        if not self._failures:
            until_look = min(until_look, worker.membership.beat_at - monotonic)
            if free:
                pause = min(worker.sources.soonest(), worker.pauses.next_end()) - now
        if min(pause, until_look) > 0:
            if not self._only_looks():
                pause = min(pause, until_look)
            await worker.alarm.wait_for(pause, until_look)
            return
        polls = until_poll <= 0 or worker.pauses.next_end() <= now
        try:
            with worker.reporter.loop_pass():
                if polls and await self._read_pauses(now):
                    now = worker.clock.microseconds()
                question = self._unanswered or self._ask(now, free, polls)
                if question.asked or polls:
                    await self._claim(question)
                if polls:
                    worker.dispatcher.drop_unstarted()
                    if worker.reporter.observers.watch_details:
                        await self._look_who_waits()
                    await self._measure()
                    await self._notice_backward_step()
                    await self._watch_changes()
        except Exception as error:
            self._store_failed(error)

    def _only_looks(self) -> bool:
        """Returns whether the next poll only looks whether anything has changed."""
        if self._failures or self._unanswered is not None:
            return False
        # From some groups, records are claimed because they are overdue by some polls.
        worker = self._worker
        return not worker.dispatcher.yields and not worker.membership.sharing

    async def _is_idle(self) -> bool:
        """Returns whether there is nothing to do now; it has polled once more to be sure."""
        worker = self._worker
        if worker.dispatcher.executions or self._failures or self._unanswered is not None:
            return False
        await worker.writes.drained()
        held_off = any(source.own and source.backoff for source in worker.sources.all())
        if held_off or worker.sources.soonest() <= worker.clock.microseconds():
            return False
        if not self._quiet:
            self._quiet = True
            self._poll_at = _LONG_AGO
            return False
        return not worker.dispatcher.executions

    async def _read_pauses(self, now: int) -> bool:
        """Reads which groups are paused, if this worker claims from any."""
        worker = self._worker
        if not any(task.dynamic and task.enabled for task in worker.tasks()):
            return False
        await worker.pauses.refresh(worker.store, now)
        return True

    def look_at_pauses(self) -> None:
        """A group was perhaps paused or resumed: polls at once."""
        if not self._failures:
            self._poll_at = _LONG_AGO

    def sources_changed(self) -> None:
        """The groups of a task are others: watches and polls them at once."""
        if not self.running:
            return
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._watching = False
        self.look_at_pauses()
        self._worker.alarm.ring()

    async def _look_who_waits(self) -> None:
        """Tells how long due records have waited, as the last claims have told."""
        worker = self._worker
        # Other workers may have run meanwhile what waits here for a limit.
        if held := [source for sources in worker.sources.held.values() for source in sources]:
            now = worker.clock.microseconds()
            self._claims += 1
            claimed = await worker.store.claim(
                [self._source(source, 0, now) for source in held],
                0,
                now,
                f"{self._tokens}{self._claims}",
            )
            for source, next_due in zip(held, claimed.next_due, strict=True):
                source.next_due = NEVER if next_due is None else next_due
        soonest = ((source.task, source.next_due) for source in worker.sources.all())
        worker.waits.note(soonest, worker.clock.microseconds())

    async def _measure(self) -> None:
        """Measures the store's clock at intervals, if it has one."""
        monotonic = self._worker.clock.monotonic()
        clock = self._worker.clock
        if isinstance(clock, StoreClock) and (monotonic >= self._measure_at or clock.is_vague()):
            has_clock = await self._worker.measure_clock()
            self._measure_at = monotonic + MEASURE_INTERVAL_S if has_clock else math.inf

    async def _notice_backward_step(self) -> None:
        """Corrects what was planned by the clock before it was set back, if it was."""
        offset = self._worker.clock.microseconds() - self._monotonic()
        if offset < self._offset - BACKWARD_STEP_MIN:
            logger.warning(
                "The clock was set back by %.1f s: static tasks that it had planned for later than "
                "their schedules allow are planned anew",
                (self._offset - offset) / 1_000_000,
            )
            await self._ensure_records(self._static_tasks(), Correction.CLOCK)
            self.last_tick = self._worker.clock.microseconds()
        self._offset = offset

    async def _watch_changes(self) -> None:
        """Registers for notifications, if the store has them; if that fails, retries later."""
        if self._watching:
            return
        worker = self._worker
        groups = [group for task in worker.tasks() for group in task.groups()]
        groups.append(CONTROL_GROUP)
        try:
            self._watch = await worker.store.watch(groups, worker.wake_groups)
        except Exception as error:
            logger.warning("The store cannot be watched, only polled for now: %s", describe(error))
        else:
            self._watching = True
            worker.wake_groups(None)

    def _free_slots(self) -> int:
        worker = self._worker
        self.starved = len(worker.writes) >= BACKLOG_MAX
        if self.starved:
            return 0
        slots = worker.settings.concurrency_limit - len(worker.dispatcher.executions)
        return min(self._claim_max, max(slots, 0))

    def _ask(self, now: int, free: int, polls: bool) -> _Question:
        """Decides what to claim from: all sources once per poll interval, else those due."""
        worker = self._worker
        if polls:
            worker.sources.refresh(
                worker.tasks(),
                lambda group: worker.pauses.holds(group, now),
                worker.membership.shares(),
                worker.dispatcher.is_limited,
            )
            self._poll_at = self._monotonic() + worker.settings.poll_interval
            asked = worker.sources.all()
            for source in asked:
                source.next_ask = NEVER
        else:
            asked = worker.sources.due(now)
        chance.current().shuffle(asked)
        if worker.sources.limited and free:
            asked, sources, free = self._within_limits(asked, free, now)
        else:
            share = -(-free // len(asked)) if asked else 0
            sources = [self._source(source, share, now) for source in asked]
        self._claims += 1
        return _Question(
            asked,
            sources,
            free,
            now,
            f"{self._tokens}{self._claims}",
            worker.clock.monotonic(),
        )

    def _source(self, asked: PolledSource, share: int, now: int) -> Source:
        lease = self._worker.dispatcher.lease(asked.task)
        if asked.key is None:
            return Group(asked.group, lease, share, self._claims_before(asked, now))
        return Key(asked.group, asked.key, lease)

    def _claims_before(self, asked: PolledSource, now: int) -> int:
        """From some groups, a worker claims only what is late.

        A partition of another worker: its owner comes first. A group with records that this worker
        cannot read: else it would take the same record again and again, before a worker that can.
        """
        poll_interval = self._worker.settings.poll_interval
        before = now if asked.own else now - OVERDUE_POLLS * poll_interval
        yields = self._worker.dispatcher.yields
        if asked.group not in yields:
            return before
        if self._worker.clock.monotonic() >= yields[asked.group]:
            del yields[asked.group]
            return before
        return min(before, now - min(poll_interval, YIELD_MAX))

    def _within_limits(
        self, asked: list[PolledSource], free: int, now: int
    ) -> tuple[list[PolledSource], list[Source], int]:
        """Narrows a claim to what the limits of the tasks leave.

        A task may have more groups than it has free slots. All of its groups are then asked in a
        claim of its own, whose limit is that of the task. Which claim comes first is random, so
        that neither this task nor the others have to wait for ever.

        Returns:
            The sources to ask now, as entries and as arguments, and the limit of the claim. What
            was left out is held, or due at once.
        """
        table = self._worker.sources
        dispatcher = self._worker.dispatcher
        groups = Counter(source.task for source in asked if dispatcher.is_limited(source.task))
        room = dispatcher.room(groups, free)
        # Free threads are promised to other tasks of this claim, which may not need them.
        promised = {
            task
            for task, slots in room.items()
            if not slots and dispatcher.room([task], free)[task]
        }
        within: list[PolledSource] = []
        for source in asked:
            if room.get(source.task, free):
                within.append(source)
            elif source.task in promised:
                table.ask_again(source, now)
            else:
                table.hold(source)
        shares = {task: slots // groups[task] for task, slots in room.items() if slots}
        crowded = {task for task, share in shares.items() if not share}
        asked = within
        if crowded:
            first = within[0].task
            alone = first in crowded
            asked = []
            for source in within:
                if source.task is first if alone else source.task not in crowded:
                    asked.append(source)
                else:
                    table.ask_again(source, now)
            if alone:
                free = shares[first] = room[first]
        share = -(-free // len(asked)) if asked else 0
        sources = [
            self._source(source, min(share, shares.get(source.task, share)), now)
            for source in asked
        ]
        return asked, sources, free

    async def _claim(self, question: _Question) -> None:
        worker = self._worker
        patient = self._careful > 0 and await self._store_answers()
        self._unanswered = question._replace(repeated=True)
        asked_at = worker.clock.monotonic()
        claimed = await self._send(question, PATIENT_FACTOR if patient else 1)
        self._unanswered = None
        self._succeeded()
        answered_at = worker.clock.monotonic()
        self._ask_for_more(question, claimed, answered_at - asked_at)
        took = answered_at - question.sent
        self._note_next_asks(question, claimed)
        if claimed.records and worker.reporter.observers.watch_runs():
            worker.reporter.tell(
                ClaimedEvent(
                    **worker.reporter.here(),
                    records=len(claimed.records),
                    took=timedelta(seconds=took),
                )
            )
        if patient and answered_at - asked_at > worker.store.deadline_s:
            records = self._park_too_large(claimed.records, answered_at - asked_at)
        else:
            records = claimed.records
        worker.dispatcher.started += len(records)
        await worker.dispatcher.dispatch(
            records,
            {source.group: source.task for source in question.asked if source.key is None},
            {source.key: source.task for source in question.asked if source.key is not None},
            Claim(question.sent, took, self.last_tick),
        )
        if records:
            self._quiet = False
            # A store in memory never waits, and executions that start eagerly need not: without a
            # turn for others, outcomes would pile up, and nothing else would run in this process.
            await realtime.sleep(0)
        unplanned = [
            source.task
            for source, next_due in zip(question.asked, claimed.next_due, strict=True)
            if next_due is None and source.key is not None
        ]
        if unplanned:
            await self._ensure_records(unplanned, Correction.NONE)

    async def _send(self, question: _Question, deadlines: int = 1) -> Claimed:
        worker = self._worker
        return await worker.store.claim(
            question.sources,
            question.limit,
            question.now,
            question.token,
            question.repeated,
            bounded=isinstance(worker.clock, StoreClock) and worker.clock.is_measured,
            unfinished_max=worker.dispatcher.unfinished_max,
            deadlines=deadlines,
        )

    async def give_back_unanswered(self) -> None:
        """Gives back the records of a claim that was cancelled with the loop, if there was one.

        Without this, they would come due only when their leases end, as they do if the store fails
        now. Call it when the loop has returned, and will not run again.
        """
        question, self._unanswered = self._unanswered, None
        if question is None or self._failures:
            return
        try:
            claimed = await self._send(question)
        except Exception as error:
            logger.debug("What a cancelled claim took cannot be given back: %s", describe(error))
            return
        for record in claimed.records:
            self._worker.dispatcher.give_back(record)

    async def _store_answers(self) -> bool:
        """Checks that the store answers at all; if it does not, no record is too large."""
        await self._worker.store.get([(CONTROL_GROUP, "layout")])
        return True

    def _park_too_large(self, records: Sequence[Record], took: float) -> list[Record]:
        """Parks records that are too large to be read in time; returns the other records."""
        small: list[Record] = []
        for record in records:
            size = len(record.schedule) + len(record.args) + len(record.progress)
            if size < TOO_LARGE_CHARACTERS_MIN:
                small.append(record)
                continue
            reason = (
                f"too large: it took {took:.1f} s to read {size:,} characters, and must take at "
                f"most {self._worker.store.deadline_s:g} s (half the shortest lease)"
            )
            source = self._worker.sources.find(record.group, record.key)
            if source is not None:
                self._worker.dispatcher.tell_unreadable(source.task, record, reason)
            self._worker.dispatcher.park(record, reason)
        return small

    def _note_next_asks(self, question: _Question, claimed: Claimed) -> None:
        full = len(claimed.records) >= question.limit
        # A claimed static task has no other due record, so only groups are counted.
        yielded = {} if full else Counter(map(_group_of_record, claimed.records))
        sources = self._worker.sources
        longest = self._worker.settings.poll_interval
        held_off = False
        asked = zip(question.asked, question.sources, claimed.next_due, strict=True)
        for source, sent, next_due in asked:
            if next_due is None:
                source.next_due = NEVER
                continue
            source.next_due = next_due
            left_to_others = question.now - sent.before if isinstance(sent, Group) else 0
            if next_due + left_to_others > question.now:
                source.backoff = 0
                sources.ask_by(source, next_due + left_to_others)
            elif full or (isinstance(sent, Group) and yielded[source.group] >= sent.share):
                source.backoff = 0
                sources.ask_again(source, question.now)
            else:
                sources.hold_off(source, question.now, longest)
                held_off = True
        if held_off and self._measure_at < math.inf:
            # Perhaps the store's clock was set back, so that by its clock they are not due.
            soon = self._worker.clock.monotonic() + SUSPICION_INTERVAL_S
            self._measure_at = min(self._measure_at, soon)

    def _monotonic(self) -> int:
        return round(self._worker.clock.monotonic() * 1_000_000)

    # The store's health.

    def _succeeded(self) -> None:
        self.last_tick = self._worker.clock.microseconds()
        if self._failures:
            reporter = self._worker.reporter
            reporter.tell(StoreUp(**reporter.here()))
            self._failures = 0

    def _store_failed(self, error: Exception) -> None:
        self._failures += 1
        longest = min(0.1 * 2 ** min(self._failures, 10), STORE_RETRY_DELAY_MAX_S)
        delay = longest * chance.current().random()
        reporter = self._worker.reporter
        reporter.tell(
            StoreDown(
                **reporter.here(),
                error=describe(error),
                exception=error,
                failures=self._failures,
                retry_in=timedelta(seconds=delay),
            )
        )
        self._poll_at = self._monotonic() + round(delay * 1_000_000)
        question = self._unanswered
        if question is None:
            return
        shortest = min((source.lease for source in question.sources), default=0)
        if self._worker.clock.monotonic() >= question.sent + shortest / 1_000_000:
            # Records that it may have claimed come due when their leases end.
            self._unanswered = question = None
        if isinstance(error, DeadlineExceededError) and error.operation == "claim":
            self._ask_for_less(question)

    def _ask_for_more(self, question: _Question, claimed: Claimed, took: float) -> None:
        """A claim was answered: the next one may be larger if this one was full, and quick."""
        if self._careful:
            self._careful -= 1
        elif len(claimed.records) >= question.limit and took < self._worker.store.deadline_s / 2:
            self._claim_max = min(2 * self._claim_max, self._worker.settings.batch_size)

    def _ask_for_less(self, question: _Question | None) -> None:
        """A claim was not answered in time: perhaps its answer is too large."""
        if self._claim_max == 1:
            self._careful = CAREFUL_CLAIMS
        # Each try costs the records in it an attempt: few tries, and no crowd of suspects.
        self._claim_max = max(self._claim_max // 4, 1)
        if question is not None:
            self._unanswered = question._replace(limit=min(question.limit, self._claim_max))

    # Static tasks.

    async def _ensure_static_records(self) -> None:
        """Creates the records of static tasks, and replans those whose schedule has changed."""
        worker = self._worker
        while not worker.stopping:
            try:
                await self._ensure_records(self._static_tasks(), Correction.ALL)
            except Exception as error:
                self._store_failed(error)
                await worker.alarm.wait_for(self._poll_at - self._monotonic())
            else:
                self._poll_at = _LONG_AGO
                return

    def _static_tasks(self) -> list[Task]:
        return [task for task in self._worker.tasks() if task.enabled and not task.dynamic]

    async def _ensure_records(self, tasks: Sequence[Task], correction: Correction) -> None:
        worker = self._worker
        writes = await static_tasks.ensure_records(worker.store, worker.clock, tasks, correction)
        for write in writes:
            worker.wrote(write)
