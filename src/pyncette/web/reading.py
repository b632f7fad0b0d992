"""What the screens show, read from the store in bounded queries."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from typing import Final, NamedTuple

from pyncette import checks, showing
from pyncette.app import Pyncette
from pyncette.clock import realtime
from pyncette.context import PyncetteContext
from pyncette.errors import PyncetteException, StoreError, TaskUnreadableError, describe
from pyncette.model import (
    ContinuationToken,
    PauseState,
    RunTotals,
    StateName,
    TaskCount,
    TaskState,
    UnknownTask,
    Where,
)
from pyncette.task import Task
from pyncette.web import past

COUNT_LIMIT: Final = 10_000
"""Up to how many instances are counted; more is shown as "more than 10,000"."""

TROUBLE_LIMIT: Final = 1_000
"""The same for those that are overdue, fail or are parked."""

COUNTING_S: Final = 0.1
"""How long counting may take in one reading; what was not reached is counted in the next ones."""

COUNTS_AT_ONCE: Final = 4

SELDOM_S: Final = 30.0
"""How often what hardly changes, and costs more, is read."""

LOOKED_AT_MAX: Final = 1_000
"""How many instances, of all templates, are looked at for what no index tells."""

PAGE: Final = 50
"""Instances on a page."""

SCANS_MAX: Final = 10
"""Pages of the store that are looked at for one page of instances."""

SCANNING_S: Final = 0.1
"""The same in seconds: then the page ends, and another one goes on from there."""

SAMPLES_MAX: Final = 120

EXPLAINED_MAX: Final = 10
"""Failing static tasks of which the last success is looked up."""

FAILED: Final[frozenset[StateName]] = frozenset({"retrying", "parked"})
"""The states of what fails: at least one attempt has failed, and the occurrence is not done."""


@dataclass
class TemplateCounts:
    """How many instances of a template there are, as they were counted last.

    Attributes:
        read_at: When, by a monotonic clock.
        total: All of them.
        overdue: Those that could have been run for a while.
        retrying: Those that wait for another attempt.
        parked: Those that are kept, and never run.
        paused: Those that are paused by themselves.
    """

    read_at: float
    total: TaskCount
    overdue: TaskCount
    retrying: TaskCount
    parked: TaskCount
    paused: TaskCount


@dataclass
class Seldom:
    """What hardly changes, and costs more: it is read again after a while.

    Attributes:
        read_at: When, by a monotonic clock.
        asked: The templates that had overdue instances, and the static tasks that failed; if they
            are others, it is read again at once.
        answer: How long the store takes for a small question.
        unknown: What the store holds of tasks that the app does not declare.
        late: The partitions with overdue instances, where workers claim from fixed ones.
        moves: The moves to another number of partitions; None: that cannot be read.
        looks: What some instances of each template are like that no index tells of.
        successes: When the static tasks that fail have succeeded last; None: that is not known.
    """

    read_at: float
    asked: tuple[frozenset[str], frozenset[str]]
    answer: timedelta
    unknown: list[UnknownTask]
    late: list[Task]
    moves: checks.Moves | None
    looks: list[tuple[Task, checks.Look]]
    successes: dict[str, datetime | None]


class Sample(NamedTuple):
    """What was found at an instant, while a viewer looked."""

    at: datetime
    overdue: int
    running: int


@dataclass
class Snapshot:
    """The store as a whole.

    Attributes:
        at: When it was read, by the clock of the app.
        took: How long it took.
        statics: The static tasks of the app and their states; None: never started.
        templates: Its templates, and how many instances they have; None: not counted yet.
        pauses: What is paused as a whole.
        crew: The workers, and the tasks that no living one runs.
        unreadable: The templates that cannot be counted, and why.
        seldom: What is read less often.
        clock_offset: How far the clock of this machine is ahead of that of the store; None: the
            store has none.
        totals: What has ended in each of the last minutes; None: no history is kept.
        samples: What was found before, while viewers looked.
    """

    at: datetime
    took: timedelta
    statics: list[tuple[Task, TaskState | None]]
    templates: list[tuple[Task, TemplateCounts | None]]
    pauses: list[PauseState]
    crew: checks.Crew
    unreadable: dict[str, str]
    seldom: Seldom
    clock_offset: timedelta | None
    totals: list[RunTotals] | None
    samples: Sequence[Sample] = ()

    def paused(self, name: str) -> str | None:
        """Returns how a template is paused; None: it is not."""
        return showing.paused_word(self.pauses, name)


class Page(NamedTuple):
    """Instances that match.

    Attributes:
        states: At most a page of them.
        token: Where the next page begins; None: there is none.
        partial: Whether it ends because enough was looked at, not because it is full.
    """

    states: list[TaskState]
    token: str | None
    partial: bool


class Reader:
    """Reads snapshots and pages. It remembers what need not be read each time."""

    def __init__(self, app: Pyncette) -> None:
        """Has read nothing yet."""
        self._app = app
        self._counts: dict[str, TemplateCounts] = {}
        self._unreadable: dict[str, str] = {}
        self._seldom: Seldom | None = None
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)

    def forget(self) -> None:
        """Something was changed: all of it is read again."""
        self._seldom = None
        for counts in self._counts.values():
            counts.read_at = 0.0

    async def snapshot(self, context: PyncetteContext) -> Snapshot:
        """Reads the store as a whole.

        Raises:
            StoreError: The store failed.
        """
        began, at = realtime.monotonic(), context.clock.now()
        known, pauses, crew, totals = await asyncio.gather(
            context.static_tasks(),
            context.pauses(),
            checks.crew(self._app, context),
            past.totals(context, at),
        )
        states = {state.task.name: state for state in known}
        statics = [(task, states.get(task.name)) for task in self._app.tasks if not task.dynamic]
        templates = [task for task in self._app.tasks if task.dynamic]
        await self._count(context, templates)
        counted = [(task, self._counts.get(task.name)) for task in templates]
        found = Snapshot(
            at,
            timedelta(),
            statics,
            counted,
            pauses,
            crew,
            dict(self._unreadable),
            await self._read_seldom(context, [state for _, state in statics if state], counted),
            checks.clock_offset(self._app, context),
            totals,
        )
        overdue = sum(counts.overdue.count for _, counts in counted if counts is not None)
        overdue += sum(checks.is_overdue(context, state) for _, state in statics)
        running = sum(worker.running_count for worker in crew.alive)
        self._samples.append(Sample(at, overdue, running))
        found.samples = tuple(self._samples)
        found.took = timedelta(seconds=realtime.monotonic() - began)
        return found

    async def _read_seldom(
        self,
        context: PyncetteContext,
        statics: Sequence[TaskState],
        templates: Sequence[tuple[Task, TemplateCounts | None]],
    ) -> Seldom:
        late = [
            task
            for task, counts in templates
            if counts is not None and (counts.overdue.count or not counts.overdue.exact)
        ]
        failing = checks.failing(statics)[:EXPLAINED_MAX]
        asked = (
            frozenset(task.name for task in late),
            frozenset(state.task.name for state in failing),
        )
        now, known = realtime.monotonic(), self._seldom
        if known is not None and now - known.read_at <= SELDOM_S and known.asked == asked:
            return known
        if known is None or now - known.read_at > SELDOM_S:
            # One after the other: what is asked at the same time would be waited for as well.
            answer, unknown = await checks.answer_time(context), await context.unknown()
            moves, read_at = await _moves(self._app, context), now
            looks = await _looks(context, [task for task, counts in templates if counts])
        else:
            answer, unknown, moves = known.answer, known.unknown, known.moves
            looks, read_at = known.looks, known.read_at
        self._seldom = Seldom(
            read_at,
            asked,
            answer,
            unknown,
            await _late_partitions(context, late),
            moves,
            looks,
            {state.task.name: await checks.last_success(context, state) for state in failing},
        )
        return self._seldom

    async def _count(self, context: PyncetteContext, templates: Sequence[Task]) -> None:
        """Counts what was counted longest ago first, for as long as that may take."""
        oldest_first = sorted(
            templates,
            key=lambda task: self._counts[task.name].read_at if task.name in self._counts else -1,
        )
        began = realtime.monotonic()
        waiting = iter(oldest_first)

        async def work() -> None:
            for task in waiting:
                if realtime.monotonic() - began > COUNTING_S:
                    return
                try:
                    self._counts[task.name] = await count_template(context, task)
                    self._unreadable.pop(task.name, None)
                except TaskUnreadableError as error:
                    self._counts.pop(task.name, None)
                    self._unreadable[task.name] = describe(error)

        await asyncio.gather(*(work() for _ in range(COUNTS_AT_ONCE)))


async def count_template(context: PyncetteContext, task: Task) -> TemplateCounts:
    """Counts the instances of a template or of a partition, up to the limits.

    Raises:
        StoreError: The store failed.
    """
    total, overdue, retrying, parked, paused = await asyncio.gather(
        context.count_tasks(task, limit=COUNT_LIMIT),
        context.count_tasks(task, showing.overdue(context), limit=TROUBLE_LIMIT),
        context.count_tasks(task, Where(states={"retrying"}), limit=TROUBLE_LIMIT),
        context.count_tasks(task, Where(states={"parked"}), limit=TROUBLE_LIMIT),
        context.count_tasks(task, Where(states={"paused"}), limit=TROUBLE_LIMIT),
    )
    return TemplateCounts(realtime.monotonic(), total, overdue, retrying, parked, paused)


async def _late_partitions(context: PyncetteContext, late: Sequence[Task]) -> list[Task]:
    """The first of them: of one task with very many partitions, or of several with few."""
    found: list[Task] = []
    looked_at = 0
    for task in filter(checks.has_fixed_partitions, late):
        if looked_at < checks.PARTITIONS_LOOKED_AT_MAX:
            looked_at += len(task.groups())
            found += await checks.late_partitions(context, task)
    return found


async def _looks(
    context: PyncetteContext, templates: Sequence[Task]
) -> list[tuple[Task, checks.Look]]:
    """Looks at some instances of each template: at fewer where there are many templates."""
    if not templates:
        return []
    limit = max(LOOKED_AT_MAX // len(templates), 1)
    looks: list[tuple[Task, checks.Look]] = []
    for task in templates[:LOOKED_AT_MAX]:
        with suppress(TaskUnreadableError):  # the count of them says why
            looks.append((task, await checks.look(context, task, limit, SCANS_MAX)))
    return looks


async def _moves(app: Pyncette, context: PyncetteContext) -> checks.Moves | None:
    try:
        return await checks.moves(context, app.tasks)
    except StoreError:
        raise
    except PyncetteException:
        return None  # the screens of such a task say why


async def page_of(
    context: PyncetteContext,
    task: Task,
    where: Where | None,
    token: str | None = None,
    limit: int = PAGE,
    admits: Callable[[TaskState], bool] = lambda state: True,
) -> Page:
    """Reads a page of instances. Where few match, it ends when enough was looked at.

    Args:
        context: The open app.
        task: The template.
        where: Which instances.
        token: Where the page begins.
        limit: How many it has at most.
        admits: What else is asked of them.

    Raises:
        StoreError: The store failed.
        ValueError: The token is not one of this task.
    """
    began = realtime.monotonic()
    states: list[TaskState] = []
    following = None if token is None else ContinuationToken(token)
    for looked in count(1):
        page = await context.list_tasks(task, limit - len(states), following, where=where)
        states += filter(admits, page.tasks)
        following = page.continuation_token
        if following is None or len(states) >= limit:
            return Page(states, following, False)
        if looked >= SCANS_MAX or realtime.monotonic() - began > SCANNING_S:
            return Page(states, following, True)
    raise AssertionError


def shown_templates(
    found: Snapshot, sees: Callable[[str], bool]
) -> list[tuple[Task, TemplateCounts | None]]:
    """The templates that a viewer may see."""
    return [(task, counts) for task, counts in found.templates if sees(task.name)]


def total(counts: Collection[TaskCount]) -> TaskCount:
    """Several counts as one."""
    return TaskCount(sum(one.count for one in counts), all(one.exact for one in counts))
