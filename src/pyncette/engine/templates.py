"""Checks that the kind of each declared task matches the instances in the store.

For each template with partitions the store keeps one control record with the number of partitions.
If a release declared the same name as a different kind of task, no worker would claim or list the
existing instances. Opening such an app is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, NamedTuple

from pyncette.clock import Clock
from pyncette.errors import PyncetteException, printable
from pyncette.store import (
    EVERYTHING,
    Failed,
    Filter,
    Group,
    Identity,
    Refused,
    Scans,
    Store,
    Unknown,
    Write,
    scan_all,
)
from pyncette.store.record import (
    ABSENT,
    CONTROL_GROUP,
    DELETE,
    STATIC_GROUP,
    Put,
    Record,
    State,
    dump_args,
    group_of,
    load_args,
)
from pyncette.task import PartitionedTask, Task

logger = logging.getLogger(__name__)

_PARTITIONS: Final = "partitions:"
_TEMPLATE: Final = "template:"
_REGISTRATION: Final = Put(None, State.FINISHED, None, 0, "", dump_args({}), "")


class _Kind(NamedTuple):
    """The kind of task that a name is declared as.

    Attributes:
        dynamic: Whether it is a template.
        partition_count: Number of partitions; None: without partitions.
    """

    dynamic: bool
    partition_count: int | None = None

    def __str__(self) -> str:
        if not self.dynamic:
            return "a static task"
        if self.partition_count is None:
            return "a dynamic task without partitions"
        return f"a dynamic task with {self.partition_count} partitions"


async def check_templates(store: Store, clock: Clock, declared: Sequence[Task]) -> None:
    """Refuses tasks whose instances the store holds as another kind; stores new partition counts.

    Raises:
        PyncetteException: Existing instances would never run again.
        StoreError: The store failed.
    """
    if not declared:
        return
    kinds = {task.name: _kind_of(task) for task in declared}
    templates = [task.name for task in declared if task.dynamic]
    found = await store.get(
        [*map(_fact_of, kinds), *((CONTROL_GROUP, f"{_TEMPLATE}{name}") for name in templates)]
    )
    facts = found[: len(kinds)]
    left = list(zip(kinds, facts, strict=True))
    await _register(store, clock, templates, found[len(kinds) :])
    await _check_static_names(store, clock, [task for task in declared if not task.dynamic])
    await _look_for_static_records(store, [task for task in declared if task.dynamic])
    while left:
        writes = []
        for name, fact in left:
            write = await _checked(store, name, kinds[name], fact)
            if write is not None:
                writes.append(write)
        if not writes:
            break
        left = []
        results = await store.write(writes, clock.microseconds())
        for write, result in zip(writes, results, strict=True):
            if isinstance(result, (Failed, Unknown)):
                raise result.error
            if isinstance(result, Refused):  # another worker has started
                left.append((write.key.partition(":")[2], result.current))


async def _register(
    store: Store, clock: Clock, names: Sequence[str], found: Sequence[Record | None]
) -> None:
    """Stores the names of templates, so that their instances are found when they are gone."""
    writes = [
        Write(CONTROL_GROUP, f"{_TEMPLATE}{name}", _REGISTRATION, ABSENT)
        for name, record in zip(names, found, strict=True)
        if record is None
    ]
    if writes:
        for result in await store.write(writes, clock.microseconds()):
            if isinstance(result, (Failed, Unknown)):
                raise result.error


async def registered_templates(store: Scans) -> list[tuple[str, int | None]]:
    """Returns the names of all templates that were ever opened, each with its partition count."""
    counts = {
        record.key.partition(":")[2]: _stored_kind(record).partition_count
        async for record in scan_all(store, CONTROL_GROUP, Filter(prefix=_PARTITIONS))
    }
    names = [
        record.key.removeprefix(_TEMPLATE)
        async for record in scan_all(store, CONTROL_GROUP, Filter(prefix=_TEMPLATE))
    ]
    return [(name, counts.get(name)) for name in sorted({*names, *counts})]


def groups_of(name: str, partition_count: int | None) -> list[str]:
    """Returns the groups of a template; without partitions it has one."""
    if partition_count is None:
        return [group_of(name)]
    return [group_of(name, number) for number in range(partition_count)]


def registration_of(name: str) -> list[Identity]:
    """Returns the control records of a template."""
    return [_fact_of(name), (CONTROL_GROUP, f"{_TEMPLATE}{name}")]


async def _checked(store: Store, name: str, declared: _Kind, fact: Record | None) -> Write | None:
    """Returns the fact to write, if it differs from the stored one."""
    before = _Kind(True) if fact is None else _stored_kind(fact)
    if before == declared or (fact is None and not declared.dynamic):
        return None
    for group in groups_of(name, before.partition_count):
        if (await _first_key(store, group)) is not None:
            raise _left_behind(name, declared, before)
    if fact is not None:
        logger.warning("Task '%s' becomes %s; it was %s", printable(name), declared, before)
    version = ABSENT if fact is None else fact.version
    if declared.partition_count is None:
        return Write(*_fact_of(name), DELETE, version)
    args = dump_args({"partition_count": declared.partition_count})
    return Write(*_fact_of(name), Put(None, State.FINISHED, None, 0, "", args, ""), version)


def _left_behind(name: str, declared: _Kind, before: _Kind) -> PyncetteException:
    return PyncetteException(
        f"Task '{printable(name)}' is declared as {declared}, but the store holds instances of it "
        f"as {before}. They would never run again. Declare it as before, or give it another name "
        "and schedule them there."
    )


async def _check_static_names(store: Store, clock: Clock, tasks: Sequence[Task]) -> None:
    """Refuses a static task that was a template without partitions, and has instances.

    A claim with a limit of 0 returns in one call, for each group, whether a record will come due.
    """
    if not tasks:
        return
    now = clock.microseconds()
    groups = [Group(group_of(task.name), 1, 0, now) for task in tasks]
    _, next_due = await store.claim(groups, 0, now, "opening")
    for task, due in zip(tasks, next_due, strict=True):
        if due is not None:
            raise _left_behind(task.name, _Kind(False), _Kind(True))


async def _first_key(store: Store, group: str) -> str | None:
    cursor: str | None = None
    while True:
        page = await store.scan(group, EVERYTHING, cursor, 1)
        if page.records:
            return page.records[0].key
        if page.cursor is None:
            return None
        cursor = page.cursor


async def _look_for_static_records(store: Store, templates: Sequence[Task]) -> None:
    """Warns if a static task has become a template: its record stays, and never runs."""
    records = await store.get([(STATIC_GROUP, task.name) for task in templates])
    for task, record in zip(templates, records, strict=True):
        if record is not None and record.state != State.FINISHED:
            logger.warning(
                "Task '%s' was a static task and is a dynamic one now: the record of the static "
                "task stays in the store and does not run any more",
                printable(task),
            )


def _kind_of(task: Task) -> _Kind:
    if isinstance(task, PartitionedTask):
        return _Kind(True, task.partition_count)
    return _Kind(task.dynamic)


def _stored_kind(fact: Record) -> _Kind:
    count = load_args(fact.args).get("partition_count")
    if type(count) is not int or count < 1:
        raise PyncetteException(
            f"The record {printable(fact.key)!r} of the group '{CONTROL_GROUP}' in the store does "
            f"not say how many partitions the task has: {printable(fact.args)[:100]}"
        )
    return _Kind(True, count)


def _fact_of(name: str) -> Identity:
    return CONTROL_GROUP, f"{_PARTITIONS}{name}"
