"""Reading the states of tasks: one, or pages of them."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Final

from pyncette.calls.filters import Selection, selection_of, shown_state
from pyncette.calls.identity import check_template, identity_of
from pyncette.calls.requests import Requests
from pyncette.clock import from_microseconds
from pyncette.engine import rules
from pyncette.engine.moves import in_transit
from pyncette.errors import describe, printable
from pyncette.model import ContinuationToken, ListTasksResponse, TaskCount, TaskState, Where
from pyncette.options import at_least_one
from pyncette.schedule import INHERITED_MARK, UnreadableHere
from pyncette.store import Filter, Store
from pyncette.store.record import (
    LATEST_INSTANT,
    Pause,
    Progress,
    Record,
    State,
    UnreadableRecord,
    load_progress,
    read,
)
from pyncette.task import Task

logger: Final = logging.getLogger(__name__)

PAGE_LIMIT_MAX: Final = 1 << 30
"""The largest limit that every store accepts; a page may always be shorter than its limit."""


COUNT_LIMIT_MAX: Final = 100_000
"""The largest limit of a count: more is counted by going through all instances."""

COUNTED_PAGES_MAX: Final = 20
"""Maximum pages of records that are looked at for one count."""

COUNTED_PAGE: Final = 1_000
"""Maximum records of such a page."""


STRANDED: Final = (
    "the due_at of its row was edited, so that it never comes due: schedule or trigger it, or, if "
    "it is a static task, start a worker"
)
"""The reason that is shown of a record which no rule can have left as it is."""

LEASE_AHEAD: Final = (
    "its lease was counted by a clock that was ahead, and lasts too long: if no worker runs it, "
    "schedule it with force, or start a worker, if it is a static task"
)
"""The reason that is shown of a record whose lease ends later than any that is taken now."""

ON_THEIR_WAY_MAX: Final = 10_000
"""Maximum instances on their way to another partition that a list remembers not to show twice."""


class Listing:
    """The calls; see ``PyncetteContext`` for what they promise."""

    def __init__(self, requests: Requests, batch_size: int) -> None:
        """Reads from the store of an app."""
        self._requests = requests
        self._batch_size = batch_size

    async def get(self, task: Task, name: str | None) -> TaskState | None:
        self._requests.check_declared(task)
        if task.dynamic and name is None:
            logger.warning(
                "get_task of the template '%s' without the name of an instance finds nothing: pass "
                "the name as well",
                task,
            )
            return None
        group, key = identity_of(task, name)
        record = await self._requests.find(group, key)
        return None if record is None else self._state(task, record)

    async def page(
        self,
        task: Task,
        limit: int | None,
        token: ContinuationToken | None,
        where: Where | None = None,
    ) -> ListTasksResponse:
        self._checked(task, where)
        limit = (
            self._batch_size if limit is None else min(at_least_one("limit", limit), PAGE_LIMIT_MAX)
        )
        await self._requests.now()
        groups, selection = self._checked(task, where)
        self._requests.check_placed(groups[0])
        group, cursor = _go_on(groups, token)
        page = await self._requests.store.scan(groups[group], selection.filter, cursor, limit)
        following = None
        if page.cursor is not None:
            following = ContinuationToken(f"{group}:{page.cursor}")
        elif group + 1 < len(groups):
            following = ContinuationToken(f"{group + 1}:")
        states = [
            self._state(task, record)
            for record in page.records
            if not in_transit(record) and selection.admits(record)
        ]
        return ListTasksResponse(states, following)

    async def iterate(self, task: Task, where: Where | None) -> AsyncGenerator[TaskState, None]:
        self._checked(task, where)
        await self._requests.now()
        groups, selection = self._checked(task, where)
        async with aclosing(self._shown(groups, selection, self._batch_size)) as pages:
            async for records in pages:
                for record in records:
                    yield self._state(task, record)

    async def _shown(
        self, groups: Sequence[str], selection: Selection, page_size: int
    ) -> AsyncGenerator[list[Record]]:
        """Yields the instances that were asked for, in pages; each of them where it lies now."""
        on_their_way: set[str] = set()
        scan = self._requests.pages(groups, selection.filter, page_size)
        async with aclosing(scan) as pages:
            async for records in pages:
                shown: list[Record] = []
                for record in records:
                    if record.key in on_their_way:
                        continue
                    found = record
                    if in_transit(record):
                        there = await self._requests.find(record.group, record.key)
                        if there is None or there.group != record.group:
                            continue  # it is met where it lies
                        if len(on_their_way) < ON_THEIR_WAY_MAX:
                            on_their_way.add(record.key)
                        found = there
                    if selection.admits(found):
                        shown.append(found)
                yield shown

    async def count(self, task: Task, where: Where | None, limit: int) -> TaskCount:
        self._checked(task, where)
        await self._requests.now()
        groups, selection = self._checked(task, where)
        limit = min(at_least_one("limit", limit), COUNT_LIMIT_MAX)
        self._requests.check_placed(groups[0])
        if selection.exact and not self._requests.moving(groups):
            return await count_in_groups(self._requests.store, groups, selection.filter, limit)
        return await self._count_here(groups, selection, limit)

    async def _count_here(
        self, groups: Sequence[str], selection: Selection, limit: int
    ) -> TaskCount:
        """Counts what no store can select, in a bounded number of pages.

        So it does while instances are moved to other partitions: a store counts what is on its way
        as well, perhaps twice.
        """
        count = looked = 0
        async with aclosing(self._shown(groups, selection, COUNTED_PAGE)) as pages:
            async for records in pages:
                count += len(records)
                if count > limit:
                    return TaskCount(limit, False)
                looked += 1
                if looked == COUNTED_PAGES_MAX:
                    return TaskCount(count, False)
        return TaskCount(count, True)

    def _checked(self, task: Task, where: Where | None) -> tuple[Sequence[str], Selection]:
        self._requests.check_declared(task)
        check_template(task)
        return task.groups(), selection_of(where, task)

    def _state(self, task: Task, record: Record) -> TaskState:
        return state_of(task, record, self._requests.clock.microseconds())


async def count_in_groups(
    store: Store, groups: Sequence[str], where: Filter, limit: int
) -> TaskCount:
    """Counts the records that match in all of these groups, exactly up to the limit."""
    count, exact = 0, True
    for group in groups:
        found = await store.count(group, where, limit - count + 1)
        count += found.matches
        exact = exact and found.complete
        if count > limit:
            return TaskCount(limit, False)
    return TaskCount(count, exact)


def state_of(task: Task, record: Record, now: int) -> TaskState:
    """Returns the state of a record; ``task`` is the static task, or the template."""
    reason: str | None = None
    pause, attempt = Pause(), 1
    progress = Progress(None, "")
    try:
        progress = load_progress(record.progress)
    except ValueError as error:
        occurrence = record.due_at if record.state == State.SCHEDULED else None
        reason = describe(error)
    else:
        occurrence, reason = progress.occurrence, progress.error
        running_now = record.state == State.RUNNING and record.unfinished_attempts > 0
        attempt += progress.failures + record.unfinished_attempts - running_now
        if record.state == State.PARKED:
            attempt = max(progress.failures, 1)  # no next one is to come
        if record.state == State.PAUSED and progress.pause is not None:
            pause = progress.pause
    if record.state == State.PARKED:
        occurrence = None
    failed = rules.failed_under_lease(record)
    running = record.state == State.RUNNING and not failed
    # A pause that has ended by itself leaves its mark until the next claim.
    state = State.SCHEDULED if pause.ended(now) else shown_state(record)
    if state == State.PAUSED and pause.reason is not None:
        reason = pause.reason
    shown = task.template.from_record(record) if task.template.dynamic else task
    if reason is None and state != State.FINISHED:
        reason = _why_unreadable(shown, record)
    if _is_stranded(record, now):
        state, reason = State.PARKED, STRANDED
    elif _is_lease_ahead(task, record, now):
        reason = LEASE_AHEAD
    return TaskState(
        shown,
        _instant_or_none(occurrence),
        _instant_or_none(record.due_at) if running else None,
        record.token.rsplit(":", 2)[0] if running and record.token else None,
        # Some stores return a member of an enum, others a plain string.
        str(state),
        reason,
        _instant_or_none(pause.until if state == State.PAUSED else None),
        _instant_or_none(record.due_at),
        attempt,
        _instant_or_none(progress.last_started),
        _instant_or_none(progress.last_finished),
        progress.last_outcome,
        progress.error,
        progress.traceback,
        progress.skipped,
        task.template.dynamic and record.schedule.startswith(INHERITED_MARK),
        _instant_or_none(pause.since if state == State.PAUSED else None),
        pause.by if state == State.PAUSED else None,
    )


def _is_stranded(record: Record, now: int) -> bool:
    if record.due_at is not None and record.due_at <= now + rules.RETRY_DELAY_MAX:
        return False  # nearly all: their texts need not be read once more
    try:
        return rules.stranded(read(record), now)
    except ValueError:
        return False


def _is_lease_ahead(task: Task, record: Record, now: int) -> bool:
    return (
        record.state == State.RUNNING
        and rules.lease_in_time(record, now, task.template.lease) is not None
    )


def tell_of_lease(task: Task, record: Record, now: int) -> None:
    """Warns a caller whose request waits for the end of a lease that lasts too long.

    Args:
        task: The static task, the instance or its template.
        record: The record as the request has found it.
        now: The instant.
    """
    if _is_lease_ahead(task, record, now):
        shown = f"{task}:{record.key}" if task.dynamic else task
        ends = _instant_or_none(record.due_at)
        logger.warning(
            "%s does not run before its lease ends at %s, which a clock that was ahead has "
            "counted: if no worker runs it, %s",
            printable(shown),
            None if ends is None else ends.isoformat(),
            "schedule it with force=True, or unschedule it"
            if task.template.dynamic
            else "start a worker, which counts the lease anew",
        )


def _why_unreadable(task: Task, record: Record) -> str | None:
    """Why no run of it is to come on this machine, such as a zone that is not known here."""
    plan = task.named_plan
    if not task.template.dynamic or (plan is not None and not plan.calendars):
        return None
    try:
        task.template.reading_of(record)
    except (UnreadableHere, UnreadableRecord) as error:
        return describe(error)
    return None


def _instant_or_none(instant: int | None) -> datetime | None:
    # A row that was edited by hand may hold an instant that a datetime cannot represent.
    return None if instant is None or abs(instant) > LATEST_INSTANT else from_microseconds(instant)


def _go_on(groups: Sequence[str], token: ContinuationToken | None) -> tuple[int, str | None]:
    if token is None:
        return 0, None
    number, divided, cursor = str(token).partition(":")
    if not divided or not number.isdecimal() or int(number) >= len(groups):
        raise ValueError(f"Not a continuation token of this task: {token!r}")
    return int(number), cursor or None
