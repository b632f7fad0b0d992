"""What comes due in the coming hour, looked up within bounds for however many tasks.

A store finds quickly how many instances are due before an instant, by reading that many entries of
an index. So the hour is divided into fewer parts where more is due, and a look at all tasks ends
after a while: it goes on with those that were looked at longest ago.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from pyncette.clock import realtime
from pyncette.context import PyncetteContext
from pyncette.errors import PyncetteException
from pyncette.model import TaskCount, TaskState, Where
from pyncette.task import Task
from pyncette.web.reading import COUNT_LIMIT, Snapshot, TemplateCounts, page_of

HOUR: Final = timedelta(hours=1)
STEPS: Final = 12
"""Into how many steps the hour is divided at most."""

STEP: Final = HOUR / STEPS

DIVISIONS: Final = (12, 6, 4, 3, 2, 1)
"""Into how many parts it can be divided: each is of whole steps."""

COUNTED_MAX: Final = 2 * COUNT_LIMIT
"""Entries that the counts of one template may read together."""

LISTED: Final = 60
"""Occurrences, or instances, that are listed one by one."""

PREVIEWED: Final = (16, 80, 400)
"""Occurrences of a static task that are looked for, until the hour is covered; what is beyond the
last number is shown as many. Each costs a pass through the rules, and most tasks have few."""

LOOKING_S: Final = 0.1
"""For how long one look begins with further tasks."""

LOOKS_AT_ONCE: Final = 4


class Part(NamedTuple):
    """A part of the coming hour.

    Attributes:
        steps: How many steps it has.
        due: What comes due in it; not exact: that, or more.
    """

    steps: int
    due: TaskCount


class SoonRow(NamedTuple):
    """What comes due of a task in the coming hour.

    Attributes:
        task: The static task or the template.
        parts: How many occurrences, or instances, in each part; together the whole hour.
        listed: The first of them: when, and the name of the instance.
        complete: Whether all instances are listed.
    """

    task: Task
    parts: list[Part]
    listed: Sequence[tuple[datetime, str | None]]
    complete: bool


class Soon:
    """Looks at all tasks in turns, and remembers what was found."""

    def __init__(self) -> None:
        """Has looked at nothing yet."""
        self._found: dict[str, tuple[float, SoonRow | None]] = {}

    def forget(self) -> None:
        """Something was changed: all of it is looked at again."""
        self._found.clear()

    async def look(
        self, context: PyncetteContext, found: Snapshot
    ) -> tuple[list[SoonRow], list[Task]]:
        """Returns what comes due, and the tasks that were not looked at yet.

        Raises:
            StoreError: The store failed.
        """
        statics = {task.name: state for task, state in found.statics if state is not None}
        templates = {
            task.name: counts
            for task, counts in found.templates
            if counts is not None and (counts.total.count or not counts.total.exact)
        }
        tasks = [
            task
            for task, _ in [*found.statics, *found.templates]
            if task.name in statics or task.name in templates
        ]
        began = realtime.monotonic()
        waiting = iter(sorted(tasks, key=self._looked_at))

        async def work() -> None:
            for task in waiting:
                if task.name in statics:
                    row = await _of_static(context, task, statics[task.name])
                else:
                    row = await _of_template(context, task, templates[task.name])
                self._found[task.name] = realtime.monotonic(), row
                if realtime.monotonic() - began >= LOOKING_S:
                    return

        await asyncio.gather(*(work() for _ in range(LOOKS_AT_ONCE)))
        known = [(task, self._found.get(task.name)) for task in tasks]
        rows = [looked[1] for _, looked in known if looked is not None]
        left = [task for task, looked in known if looked is None]
        return [row for row in rows if row is not None], left

    def _looked_at(self, task: Task) -> float:
        looked = self._found.get(task.name)
        return -1.0 if looked is None else looked[0]


async def _of_static(context: PyncetteContext, task: Task, state: TaskState) -> SoonRow | None:
    now = context.clock.now()
    times: list[datetime] = []
    complete = True
    if state.state in ("scheduled", "running", "retrying"):
        for number in PREVIEWED:
            try:
                times = await context.preview(task, number)
            except (PyncetteException, ValueError):
                return None
            complete = len(times) < number or times[-1] >= now + HOUR
            if complete:
                break
    parts = []
    for step in range(STEPS):
        begin, end = now + step * STEP, now + (step + 1) * STEP
        number = sum(time < end and (step == 0 or time >= begin) for time in times)
        parts.append(Part(1, TaskCount(number, complete or times[-1] >= end)))
    within = [(time, None) for time in times if time < now + HOUR]
    return SoonRow(task, parts, within[: LISTED + 1], len(within) <= LISTED and complete)


async def _of_template(context: PyncetteContext, task: Task, counts: TemplateCounts) -> SoonRow:
    now = context.clock.now()
    parts = await _parts(context, task, now)
    if all(part.due.exact and not part.due.count for part in parts):
        return SoonRow(task, parts, [], True)
    if not counts.total.exact:
        # Which instances these are, a store finds only by looking at all of them.
        return SoonRow(task, parts, [], False)
    page = await page_of(context, task, Where(due_before=now + HOUR), None, 2 * LISTED)
    listed = [(state.next, state.task.name) for state in page.states if state.next is not None]
    return SoonRow(task, parts, listed, page.token is None)


async def _parts(context: PyncetteContext, task: Task, now: datetime) -> list[Part]:
    async def due_within(steps: int) -> TaskCount:
        where = Where(due_before=now + steps * STEP)
        return await context.count_tasks(task, where, limit=COUNT_LIMIT)

    whole = await due_within(STEPS)
    if not whole.exact:
        first = await due_within(1)
        if not first.exact:
            return [Part(STEPS, whole)]
        later = TaskCount(whole.count - first.count, False)
        return [Part(1, first), Part(STEPS - 1, later)]
    number = next(number for number in DIVISIONS if number * whole.count <= COUNTED_MAX)
    steps = STEPS // number
    ends = [*[await due_within(steps * part) for part in range(1, number)], whole]
    return list(_differences(ends, steps))


def _differences(ends: Sequence[TaskCount], steps: int) -> list[Part]:
    """The parts of which these are the sums, each with all before it."""
    parts, before = [], 0
    for end in ends:
        # Something may have been run, or scheduled, between two counts.
        parts.append(Part(steps, TaskCount(max(end.count - before, 0), end.exact)))
        before = max(end.count, before)
    return parts
