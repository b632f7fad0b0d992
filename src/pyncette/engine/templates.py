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
from pyncette.engine.partitions import (
    PREFIX,
    Fact,
    Partitions,
    fact_identity,
    fact_record,
    misread,
    read_fact,
)
from pyncette.errors import PyncetteException, TaskUnreadableError, printable
from pyncette.store import (
    EVERYTHING,
    Applied,
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
)
from pyncette.task import PARTITION_COUNT_MAX, PartitionedTask, Task

logger = logging.getLogger(__name__)

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


async def check_templates(
    store: Store, clock: Clock, declared: Sequence[Task], partitions: Partitions
) -> None:
    """Refuses tasks whose instances the store holds as another kind; stores new partition counts.

    Args:
        store: The store.
        clock: The clock.
        declared: The tasks of the app.
        partitions: Learns what the store says of their partitions.

    Raises:
        PyncetteException: Existing instances would never run again.
        StoreError: The store failed.
    """
    if not declared:
        return
    kinds = {task.name: _kind_of(task) for task in declared}
    templates = [task.name for task in declared if task.dynamic]
    found = await store.get(
        [*map(fact_identity, kinds), *((CONTROL_GROUP, f"{_TEMPLATE}{name}") for name in templates)]
    )
    left: list[tuple[str, Record | None]] = []
    for task, fact in zip(declared, found, strict=False):
        if fact is None or (error := misread(fact)) is None:
            left.append((task.name, fact))
        elif isinstance(task, PartitionedTask):
            partitions.misread(task, fact, error)
        else:
            logger.error(
                "Task '%s' is declared as %s, but was a template with partitions, and may have "
                "instances that would never run again. To move them, declare it as it was. %s",
                printable(task),
                kinds[task.name],
                printable(error),
            )
    opened: dict[str, tuple[Fact, int]] = {}
    await _register(store, clock, templates, found[len(kinds) :])
    await _check_static_names(store, clock, [task for task in declared if not task.dynamic])
    await _look_for_static_records(store, [task for task in declared if task.dynamic])
    while left:
        writes = []
        for name, fact in left:
            write = await _checked(store, name, kinds[name], fact)
            if write is not None:
                writes.append(write)
            elif fact is not None:
                opened[name] = read_fact(fact), fact.version
        if not writes:
            break
        left = []
        results = await store.write(writes, clock.microseconds())
        for write, result in zip(writes, results, strict=True):
            if isinstance(result, (Failed, Unknown)):
                raise result.error
            name = write.key.removeprefix(PREFIX)
            count = kinds[name].partition_count
            if isinstance(result, Refused):  # another worker has started
                left.append((name, result.current))
            elif count is not None and isinstance(result, Applied):
                opened[name] = Fact(count), result.version
    for task in declared:
        if isinstance(task, PartitionedTask) and task.name in opened:
            partitions.opened(task, *opened[task.name])
            await partitions.look_beyond(task, opened[task.name][0])


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


async def registered_templates(
    store: Scans,
) -> list[tuple[str, Fact | TaskUnreadableError | None]]:
    """Returns the names of all templates that were ever opened, and what is known of partitions.

    Where that cannot be read, the error says it.
    """
    facts: dict[str, Fact | TaskUnreadableError] = {}
    async for record in scan_all(store, CONTROL_GROUP, Filter(prefix=PREFIX)):
        facts[record.key.removeprefix(PREFIX)] = misread(record) or read_fact(record)
    names = [
        record.key.removeprefix(_TEMPLATE)
        async for record in scan_all(store, CONTROL_GROUP, Filter(prefix=_TEMPLATE))
    ]
    return [(name, facts.get(name)) for name in sorted({*names, *facts})]


def groups_of(name: str, fact: Fact | TaskUnreadableError | None) -> list[str]:
    """Returns all groups that may hold instances of a template; without partitions it has one."""
    if fact is None:
        return [group_of(name)]
    if isinstance(fact, TaskUnreadableError):
        return [group_of(name, number) for number in range(PARTITION_COUNT_MAX)]
    return [group_of(name, number) for number in range(max(fact.known_counts))]


def registration_of(name: str) -> list[Identity]:
    """Returns the control records of a template."""
    return [fact_identity(name), (CONTROL_GROUP, f"{_TEMPLATE}{name}")]


async def _checked(store: Store, name: str, declared: _Kind, fact: Record | None) -> Write | None:
    """Returns the fact to write, if it differs from the stored one."""
    stored = None if fact is None else read_fact(fact)
    if stored is not None and declared.partition_count in stored.known_counts:
        return None
    before = _Kind(True, None if stored is None else stored.partition_count)
    if before == declared or (fact is None and not declared.dynamic):
        return None
    for group in groups_of(name, stored):
        if (await _first_key(store, group)) is not None:
            raise _left_behind(name, declared, before)
    if fact is not None:
        logger.warning("Task '%s' becomes %s; it was %s", printable(name), declared, before)
    version = ABSENT if fact is None else fact.version
    if declared.partition_count is None:
        return Write(*fact_identity(name), DELETE, version)
    return Write(*fact_identity(name), fact_record(Fact(declared.partition_count)), version)


def _left_behind(name: str, declared: _Kind, before: _Kind) -> PyncetteException:
    other = "give it another name and schedule them there"
    if declared.partition_count is not None and before.partition_count is not None:
        other = (
            f"move them with rebalance(task, {declared.partition_count}) from a program that "
            "declares it as before"
        )
    return PyncetteException(
        f"Task '{printable(name)}' is declared as {declared}, but the store holds instances of it "
        f"as {before}. They would never run again. Declare it as before, or {other}."
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
        return _Kind(True, task.declared_count)
    return _Kind(task.dynamic)
