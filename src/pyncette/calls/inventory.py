"""What is in the store as a whole: static tasks, and what no task of this app claims."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from pyncette.bulk import BulkResult, OnFailure, Progress
from pyncette.calls.bulk import Bulk, Tally, removed
from pyncette.calls.listing import count_in_groups, state_of
from pyncette.calls.parked import dropped, rerun
from pyncette.calls.requests import Changing, Requests
from pyncette.calls.telling import in_words
from pyncette.engine.steering import pause_identity
from pyncette.engine.templates import groups_of, registered_templates, registration_of
from pyncette.errors import TaskUnreadableError, printable
from pyncette.model import StateName, TaskCount, TaskState, UnknownTask, Where
from pyncette.store import EVERYTHING, Write, scan_all
from pyncette.store.record import ANY, DELETE, STATIC_GROUP, group_of
from pyncette.task import Task

logger = logging.getLogger(__name__)

COUNT_LIMIT = 10_000
"""Up to how many instances of an unknown template are counted."""


class Inventory:
    """The calls; see ``PyncetteContext`` for what they promise."""

    def __init__(self, requests: Requests, bulk: Bulk, tasks: Callable[[], Sequence[Task]]) -> None:
        """Looks at the store of an app that declares these tasks."""
        self._requests = requests
        self._bulk = bulk
        self._tasks = tasks

    async def static_tasks(self) -> list[TaskState]:
        tasks = [task for task in self._tasks() if not task.dynamic]
        records = await self._requests.store.get([(task.group, task.key) for task in tasks])
        now = self._requests.clock.microseconds()
        return [
            state_of(task, record, now)
            for task, record in zip(tasks, records, strict=True)
            if record is not None
        ]

    async def unknown(self) -> list[UnknownTask]:
        store = self._requests.store
        found: list[UnknownTask] = []
        templates = {task.name for task in self._tasks() if task.dynamic}
        for name, fact in await registered_templates(store):
            if name in templates:
                continue
            if isinstance(fact, TaskUnreadableError):
                # To look into every partition that there may be takes long.
                logger.warning("%s", printable(fact))
                found.append(UnknownTask(name, True, None, TaskCount(0, False)))
                continue
            groups = groups_of(name, fact)
            count = await count_in_groups(store, groups, EVERYTHING, COUNT_LIMIT)
            found.append(
                UnknownTask(name, True, None if fact is None else fact.partition_count, count)
            )
        static = {task.name for task in self._tasks() if not task.dynamic}
        left = [
            UnknownTask(record.key, False, None, TaskCount(1, True))
            async for record in scan_all(store, STATIC_GROUP)
            if record.key not in static
        ]
        return [*found, *left]

    async def purge(
        self, name: str, progress: Progress | None, on_failure: OnFailure | None
    ) -> BulkResult:
        if not isinstance(name, str):
            raise TypeError(f"The name of a task must be a string, not {name!r}")
        if any(task.name == name for task in self._tasks()):
            raise ValueError(
                f"Task '{printable(name)}' is declared in this app: purge is for what a task that "
                "was removed has left. Its instances are removed by unschedule_tasks."
            )
        tally = Tally(progress, on_failure)
        store = self._requests.store
        registered = dict(await registered_templates(store))
        with self._requests.telling.many("purge", name, tally):
            if name in registered:
                groups = groups_of(name, registered[name])
                await self._bulk.clear(groups, tally)
                if not tally.failed:
                    identities = [*registration_of(name), pause_identity(group_of(name))]
                    identities += map(pause_identity, groups)
                    for identity in dict.fromkeys(identities):
                        await self._requests.submit(Write(*identity, DELETE, ANY))
            unchanged = tally.unchanged
            await self._bulk.remove([Changing(STATIC_GROUP, name, removed)], tally)
            if name in registered:
                # Usually there was no static task of this name, too: nobody asked to remove it.
                tally.unchanged = unchanged
        return tally.result()

    async def retry_parked(
        self,
        template: Task,
        where: Where | None,
        progress: Progress | None,
        on_failure: OnFailure | None,
    ) -> BulkResult:
        tally = Tally(progress, on_failure)
        where = _only_parked(where)
        with self._requests.telling.many("retry", template, tally, in_words(where)):
            await self._bulk.change_where(template, where, partial(rerun, template), tally)
        return tally.result()

    async def drop_parked(
        self,
        template: Task,
        where: Where | None,
        progress: Progress | None,
        on_failure: OnFailure | None,
    ) -> BulkResult:
        tally = Tally(progress, on_failure)
        where = _only_parked(where)
        with self._requests.telling.many("drop", template, tally, in_words(where)):
            # Dropped once more, its next occurrence would be lost, if that has failed meanwhile.
            await self._bulk.change_where(
                template, where, partial(dropped, template), tally, repeatable=False
            )
        return tally.result()


def _only_parked(where: Where | None) -> Where:
    where = Where() if where is None else where
    if not isinstance(where, Where):
        raise TypeError(f"where must be a Where, not {where!r}")
    parked: set[StateName] = {"parked"}
    states = parked if where.states is None else parked & set(where.states)
    return Where(states, where.prefix, where.due_before, where.paused, where.failing)
