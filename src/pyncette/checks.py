"""What goes wrong in practice, looked for in the store: by ``pyncette doctor`` and the dashboard.

Each function finds facts in a bounded number of calls; what shows them puts them into words.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from pyncette.app import Pyncette
from pyncette.calls.listing import LEASE_AHEAD, STRANDED
from pyncette.calls.workers import crew_of
from pyncette.clock import StoreClock
from pyncette.model import ContinuationToken, Partitions, TaskState, UnknownTask, WorkerState
from pyncette.showing import (
    CLOCK_OFFSET_MAX,
    PAUSED_LONG_AFTER,
    SLOW_ANSWER_MIN,
    overdue,
    silent,
)
from pyncette.task import PartitionedTask, Task

if TYPE_CHECKING:
    from pyncette.context import PyncetteContext

PARTITIONS_LOOKED_AT_MAX: Final = 100

RUNS_READ: Final = 100
"""Attempts in one page in which the last success is looked for, behind many failures."""

GONE_WITHIN: Final = timedelta(hours=1)
"""Workers that died longer ago are not told of."""

SPEED_CALLS: Final = 3


class Crew(NamedTuple):
    """The workers of a store.

    Attributes:
        alive: Those that are alive.
        silent: Those of them that should have written, and have not.
        died: Those that have not ended and are not alive, within an hour. A worker that was
            started again has the name of the one before, which is left out then.
        unserved: The tasks of the app that no living worker runs.
    """

    alive: list[WorkerState]
    silent: list[WorkerState]
    died: list[WorkerState]
    unserved: list[Task]


class Moves(NamedTuple):
    """Moves to another number of partitions.

    Attributes:
        under_way: Those that have not ended: the task, and the number of partitions.
        left: Tasks with instances in partitions that no worker claims from, and their number.
    """

    under_way: list[tuple[Task, int]]
    left: list[tuple[Task, int]]


class Look(NamedTuple):
    """What no index tells, of the first instances of a template.

    Attributes:
        stranded: Those that never come due, since their row was edited.
        held: Those whose lease ends later than any that is taken now.
        partial: Whether there are more, which were not looked at.
    """

    stranded: list[TaskState]
    held: list[TaskState]
    partial: bool


async def look(
    context: PyncetteContext, task: Task, limit: int, calls_max: int | None = None
) -> Look:
    """Looks at some instances of a template, in as few calls as the store allows.

    Raises:
        StoreError: The store failed.
        TaskUnreadableError: The number of its partitions cannot be read.
    """
    found = Look([], [], False)
    left = limit
    token: ContinuationToken | None = None
    for calls in itertools.count(1):
        page = await context.list_tasks(task, left + 1, token)
        for state in page.tasks[:left]:
            if state.reason == STRANDED:
                found.stranded.append(state)
            elif is_held_too_long(state):
                found.held.append(state)
        left -= len(page.tasks)
        token = page.continuation_token
        if left < 0 or (token is not None and calls == calls_max):
            return found._replace(partial=True)
        if token is None:
            return found
    raise AssertionError


def is_held_too_long(state: TaskState) -> bool:
    """Returns whether a clock that was ahead has counted a lease, so that it lasts too long."""
    return state.reason == LEASE_AHEAD


async def crew(app: Pyncette, context: PyncetteContext) -> Crew:
    """Reads who is alive, and who is not.

    Raises:
        StoreError: The store failed.
    """
    alive, gone, unserved = await crew_of(context._requests, app.tasks)
    now = context.clock.now()
    names = {worker.name for worker in alive}
    died = [
        worker for worker in gone if worker.name not in names and now - worker.seen_at < GONE_WITHIN
    ]
    return Crew(alive, silent(alive, now), died, [task for task in unserved if task.enabled])


async def answer_time(context: PyncetteContext) -> timedelta:
    """Returns how long the store takes for a small question: the fastest of some answers.

    Raises:
        StoreError: The store failed.
    """
    took: list[float] = []
    for _ in range(SPEED_CALLS):
        began = context.clock.monotonic()
        await context.pauses()
        took.append(context.clock.monotonic() - began)
    return timedelta(seconds=min(took))


def is_slow(took: timedelta) -> bool:
    """Returns whether a store that takes as long for a small question is slow."""
    return took > SLOW_ANSWER_MIN


def clock_offset(app: Pyncette, context: PyncetteContext) -> timedelta | None:
    """Returns how far the clock of this machine is ahead of the store's; None: it has none."""
    clock = context.clock
    if not isinstance(clock, StoreClock) or not clock.is_measured:
        return None
    return app.clock.now() - clock.now()


def is_off(offset: timedelta | None) -> bool:
    """Returns whether a clock is off by more than people need not know."""
    return offset is not None and abs(offset) > CLOCK_OFFSET_MAX


def is_forgotten(since: datetime | None, now: datetime) -> bool:
    """Returns whether a pause lasts so long that it may have been forgotten."""
    return since is not None and now - since > PAUSED_LONG_AFTER


def is_overdue(context: PyncetteContext, state: TaskState | None) -> bool:
    """Returns whether a static task could have been run for a while, and was not."""
    due_before = overdue(context).due_before
    return (
        state is not None
        and state.state in ("scheduled", "retrying", "running")
        and state.next is not None
        and due_before is not None
        and state.next < due_before
    )


def is_in_memory(app: Pyncette) -> bool:
    """Returns whether no other process can see the records of an app."""
    return app._in_sqlite and app._configuration.get("sqlite_database") in (None, ":memory:")


def has_fixed_partitions(task: Task) -> bool:
    """Returns whether workers claim from the partitions that they were given, and no others."""
    return isinstance(task, PartitionedTask) and task.partitions is Partitions.ALL


async def late_partitions(context: PyncetteContext, task: Task) -> list[Task]:
    """Returns the partitions with overdue instances, where workers claim from fixed ones.

    Of very many partitions, the first hundred are looked at.

    Raises:
        StoreError: The store failed.
    """
    if not isinstance(task, PartitionedTask) or not has_fixed_partitions(task):
        return []
    where = overdue(context)
    return [
        partition
        for partition in task.get_partitions()[:PARTITIONS_LOOKED_AT_MAX]
        if (await context.count_tasks(partition, where, limit=1)).count
    ]


async def moves(context: PyncetteContext, tasks: Iterable[Task]) -> Moves:
    """Returns the moves that have not ended, and what such have left.

    Raises:
        StoreError: The store failed.
        PyncetteException: A control record cannot be read.
    """
    found = Moves([], [])
    for task in tasks:
        if isinstance(task, PartitionedTask):
            look = await context._worker.partitions.examine(task)
            if look.moving_to is not None:
                found.under_way.append((task, look.moving_to))
            if look.stray_group is not None:
                found.left.append((task, look.partition_count))
    return found


def nearest(unknown: Collection[UnknownTask], app: Pyncette) -> dict[str, str]:
    """Returns the declared name that is nearest to each unknown one, where one is near."""
    declared = [task.name for task in app.tasks]
    return {
        left.name: close[0]
        for left in unknown
        if (close := difflib.get_close_matches(left.name, declared, 1))
    }


def left_behind(unknown: Iterable[UnknownTask]) -> list[UnknownTask]:
    """Returns those that have records.

    A name that has none is what an app that was opened once with another name has left.
    """
    return [left for left in unknown if left.count.count]


async def last_success(context: PyncetteContext, state: TaskState) -> datetime | None:
    """Returns when an attempt has succeeded last; None: the history does not tell.

    Raises:
        StoreError: The store failed.
    """
    task = state.task
    instance = None if task.parent_task is None else task.name
    page = await context.runs(task.template, instance, outcomes={"succeeded"}, limit=RUNS_READ)
    return page.runs[0].ended_at if page.runs else None


def failing(statics: Sequence[TaskState]) -> list[TaskState]:
    """Returns the static tasks that have failed last, and run again."""
    return [
        state for state in statics if state.last_outcome == "failed" and state.state != "parked"
    ]
