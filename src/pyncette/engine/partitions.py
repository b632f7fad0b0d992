"""How many partitions each template has: what the store says, and how old that knowledge is.

One control record for each template with partitions holds the number in force. A process must know
it to find an instance. It changes while processes run (``pyncette.calls.rebalancing``), in stages:

========= ======================== ============== ==================================
stage     record                   created at     looked for, listed and claimed at
========= ======================== ============== ==================================
settled   count                    count          count
announced count, ``to``            count          count and ``to``
moving    count, ``from``          count          count and ``from``
settled   count, ``was``           count          count
========= ======================== ============== ==================================

No call decides by knowledge that is older than ``KNOWN_FOR_S``. Whoever changes the stage waits for
twice as long before it relies on that. So at any time all processes are in the same stage, or in
two stages that follow each other; see ``pyncette.calls.places`` for why these agree.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from pyncette.clock import Clock
from pyncette.errors import TaskUnreadableError, describe, printable
from pyncette.schedule import UnreadableHere
from pyncette.store import EVERYTHING, Identity
from pyncette.store.deadline import DeadlineStore
from pyncette.store.record import (
    CONTROL_GROUP,
    Put,
    Record,
    State,
    dump_args,
    group_of,
    load_args,
)
from pyncette.task import PARTITION_COUNT_MAX, Layout, PartitionedTask, Task

logger = logging.getLogger(__name__)

PREFIX: Final = "partitions:"

KNOWN_FOR_S: Final = 5.0
"""How old the knowledge may be by which a call decides."""

LOOKED_BEYOND_MAX: Final = 128
LOOKED_TOGETHER: Final = 16
"""How many partitions of before an app looks into when it is opened, and how many at once."""

WAS_MAX: Final = 20
"""Maximum counts of before that are remembered."""


class Fact(NamedTuple):
    """What the control record of a template says.

    Attributes:
        partition_count: The number of partitions in force.
        to: A move to this number is announced.
        sources: A move is under way, from these numbers.
        was: Numbers of before, the latest last.
    """

    partition_count: int
    to: int | None = None
    sources: tuple[int, ...] = ()
    was: tuple[int, ...] = ()

    @property
    def layout(self) -> Layout:
        """Where instances are created, and where they may lie."""
        if self.to is not None:
            return Layout(self.partition_count, (self.to,))
        return Layout(self.partition_count, self.sources, bool(self.sources))

    @property
    def known_counts(self) -> tuple[int, ...]:
        """All numbers that it names. A process that declares one of them may open."""
        to = () if self.to is None else (self.to,)
        return (self.partition_count, *to, *self.sources, *self.was)

    def announced(self, count: int) -> Fact:
        """A move to this number is announced."""
        return self._replace(to=count)

    def begun(self) -> Fact:
        """The announced move has begun; without one, what lies elsewhere is swept up."""
        if self.to is None:
            return self._replace(sources=self.was)
        return Fact(self.to, None, (self.partition_count,), self.was)

    def ended(self) -> Fact:
        """The move is over, or what was announced is withdrawn."""
        was = [*self.was, *self.sources]
        latest = dict.fromkeys(number for number in reversed(was) if number != self.partition_count)
        return Fact(self.partition_count, was=tuple(reversed(list(latest)[:WAS_MAX])))


class Look(NamedTuple):
    """What was found of the partitions of a template.

    Attributes:
        partition_count: The number of partitions in force.
        moving_to: A move to this number is under way, or was interrupted; None: none is.
        stray_group: A group that holds instances, and that no worker claims from; None: none does.
    """

    partition_count: int
    moving_to: int | None
    stray_group: str | None


def fact_identity(name: str) -> Identity:
    """Returns the identity of the control record of a template."""
    return CONTROL_GROUP, f"{PREFIX}{name}"


def fact_record(fact: Fact) -> Put:
    """Returns the control record that says this."""
    args: dict[str, Any] = {"partition_count": fact.partition_count}
    if fact.to is not None:
        args["to"] = fact.to
    if fact.sources:
        args["from"] = fact.sources
    if fact.was:
        args["was"] = fact.was
    return Put(None, State.FINISHED, None, 0, "", dump_args(args), "")


def read_fact(record: Record) -> Fact:
    """Reads a control record.

    Raises:
        TaskUnreadableError: It does not say what it must.
    """
    try:
        args = load_args(record.args)
    except ValueError as error:
        raise _unreadable(record, describe(error), isinstance(error, UnreadableHere)) from error
    to = args.get("to")
    fact = Fact(
        args.get("partition_count", 0),
        to,
        _counts(args.get("from")),
        _counts(args.get("was")),
    )
    if not all(
        type(count) is int and 1 <= count <= PARTITION_COUNT_MAX for count in fact.known_counts
    ):
        raise _unreadable(record, f"args '{printable(record.args)[:100]}'", False)
    return fact


def misread(record: Record) -> TaskUnreadableError | None:
    """Returns why a control record cannot be read; None: it can be."""
    try:
        read_fact(record)
    except TaskUnreadableError as error:
        return error
    return None


def _unreadable(record: Record, reason: str, elsewhere: bool) -> TaskUnreadableError:
    name = record.key.removeprefix(PREFIX)
    return TaskUnreadableError(
        name,
        f"the row with the key '{printable(record.key)}' of the group '{record.group}' does not "
        f"say how many partitions it has: {reason}",
        elsewhere,
        advice=(
            "await context.rebalance(task, partition_count) or 'pyncette rebalance "
            f"{printable(name)} PARTITION_COUNT' collects the instances from all partitions, and "
            "writes it anew. Until then workers run the instances in the partitions that they "
            "know, and calls about the template fail"
        ),
    )


def _counts(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def checked_count(value: object) -> int:
    """Returns a number of partitions.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is out of range.
    """
    if type(value) is not int:
        raise TypeError(f"partition_count must be a whole number, not {value!r}")
    if not 1 <= value <= PARTITION_COUNT_MAX:
        raise ValueError(
            f"partition_count must be from 1 to {PARTITION_COUNT_MAX:,}, not {value:,}"
        )
    return value


def check_placed(task: PartitionedTask) -> None:
    """Refuses a template of which it is not known where its instances are.

    Raises:
        TaskUnreadableError: Its control record cannot be read.
    """
    if task.unplaced is not None:
        read_fact(task.unplaced)


class Partitions:
    """What a context knows of the partitions of its templates.

    It is kept in the tasks themselves (``PartitionedTask.layout``); here is how old it is.

    Attributes:
        on_change: Called when the layout of a task has changed.
    """

    on_change: Callable[[], None] | None = None

    def __init__(
        self, store: DeadlineStore, clock: Clock, tasks: Callable[[], Sequence[Task]]
    ) -> None:
        """Knows nothing yet."""
        self._store = store
        self._clock = clock
        self._declared = tasks
        self._read_at = -math.inf
        self._reading = asyncio.Lock()
        self._strays: set[str] = set()
        self._known: tuple[int, dict[str, PartitionedTask]] = (0, {})

    @property
    def tasks(self) -> dict[str, PartitionedTask]:
        """The templates with partitions, by group."""
        declared = self._declared()
        count, known = self._known
        if count != len(declared):
            known = {task.group: task for task in declared if isinstance(task, PartitionedTask)}
            self._known = (len(declared), known)
        return known

    @property
    def quiet(self) -> bool:
        """Whether all instances lie, and have always lain, where the declarations say."""
        return not any(task.relocated for task in self.tasks.values())

    def places(self, group: str, key: str) -> Sequence[str]:
        """Returns the groups that may hold a record; it is created in the first one.

        Args:
            group: The group that a task says, which may have been asked earlier.
            key: The key of the record.
        """
        task = self.template_of(group)
        if task is None or not task.relocated:
            return (group,)
        check_placed(task)
        places = task.places(key)
        return places if group in places else [*places, group]

    def check(self, group: str) -> None:
        """Refuses a call about a template of which it is not known where its instances are.

        Raises:
            TaskUnreadableError: Its control record cannot be read.
        """
        task = self.template_of(group)
        if task is not None:
            check_placed(task)

    def template_of(self, group: str) -> PartitionedTask | None:
        """Returns the template with partitions that a group belongs to."""
        return self.tasks.get(group.rpartition(":")[0])

    async def fresh(self) -> None:
        """Reads what is in force, if what is known is too old to decide by.

        Raises:
            StoreError: The store failed.
        """
        if not self.tasks or self._is_fresh():
            return
        async with self._reading:
            if not self._is_fresh():
                await self.read()

    def _is_fresh(self) -> bool:
        return self._clock.monotonic() - self._read_at < KNOWN_FOR_S

    async def read(self) -> None:
        """Reads what is in force.

        Raises:
            StoreError: The store failed.
        """
        asked_at = self._clock.monotonic()
        names = [task.name for task in self.tasks.values()]
        found = await self._store.get([fact_identity(name) for name in names])
        self.learn([record for record in found if record is not None], asked_at)

    def learn(self, records: Iterable[Record], asked_at: float) -> None:
        """Takes in what was read. Of a record that cannot be read, its template is told.

        Args:
            records: The control records of all templates with partitions.
            asked_at: The monotonic instant before they were read.
        """
        for record in records:
            task = self.tasks.get(group_of(record.key.removeprefix(PREFIX)))
            if task is not None:
                self._learn(task, record)
        self._read_at = max(self._read_at, asked_at)

    def _learn(self, task: PartitionedTask, record: Record) -> None:
        # Also if its version is the known one: a row that was edited by hand keeps it.
        try:
            fact = read_fact(record)
        except TaskUnreadableError as error:
            self.misread(task, record, error)
            return
        if task.unplaced is not None or record.version > task.layout_version:
            self._adopt(task, fact, record.version)

    def misread(self, task: PartitionedTask, record: Record, error: TaskUnreadableError) -> None:
        """The control record of a template cannot be read.

        Workers go on to claim where its instances lay as far as they know. To claim is never wrong;
        to create an instance, or to say that there is none, would be.
        """
        if task.unplaced is None:
            logger.error("%s", printable(error))
        task.unplaced = record
        task.relocated = True

    def opened(self, task: PartitionedTask, fact: Fact, version: int) -> None:
        """A context was opened on a store that says this of a task."""
        task.layout, task.layout_version, task.unplaced = fact.layout, version, None
        if fact.partition_count != task.declared_count:
            logger.warning(
                "%s is declared with %d partitions, but the store holds its instances in %d: these "
                "are used. Declare partition_count=%d",
                printable(task),
                task.declared_count,
                fact.partition_count,
                fact.partition_count,
            )
            _log_enabled(task)
        if fact.to is not None or fact.sources:
            count = fact.partition_count if fact.to is None else fact.to
            logger.warning(
                "A move of the instances of %s to %d partitions is under way, or was interrupted: "
                "await context.rebalance(task, %d) ends it",
                printable(task),
                count,
                count,
            )

    async def look_beyond(self, task: PartitionedTask, fact: Fact) -> None:
        """Says if an instance lies in a partition that a move has left, where no worker claims.

        A process that was frozen during the whole move may have created it there afterwards.

        Raises:
            StoreError: The store failed.
        """
        group = await self._stray_group(task, fact)
        if group is not None:
            logger.warning(
                "Instances of %s lie in the group '%s', which %d partitions do not have: "
                "no worker runs them. await context.rebalance(task, %d) moves them",
                printable(task),
                printable(group),
                fact.partition_count,
                fact.partition_count,
            )

    async def _stray_group(self, task: PartitionedTask, fact: Fact) -> str | None:
        if fact.to is not None or fact.sources:
            return None  # that move ends with a look
        left = range(fact.partition_count, max(fact.known_counts))[:LOOKED_BEYOND_MAX]
        groups = [group_of(task.name, number) for number in left]
        for first in range(0, len(groups), LOOKED_TOGETHER):
            some = groups[first : first + LOOKED_TOGETHER]
            found = await asyncio.gather(
                *(self._store.scan(group, EVERYTHING, None, 1) for group in some)
            )
            for group, page in zip(some, found, strict=True):
                if page.records:
                    return group
        return None

    async def examine(self, task: PartitionedTask) -> Look:
        """Returns whether a move of a template has not ended, and whether one has left something.

        Raises:
            StoreError: The store failed.
            PyncetteException: The control record cannot be read.
        """
        [record] = await self._store.get([fact_identity(task.name)])
        fact = Fact(task.partition_count) if record is None else read_fact(record)
        moving_to = fact.to
        if moving_to is None and fact.sources:
            moving_to = fact.partition_count
        return Look(fact.partition_count, moving_to, await self._stray_group(task, fact))

    def _adopt(self, task: PartitionedTask, fact: Fact, version: int) -> None:
        before = task.layout
        task.layout_version = version
        task.unplaced = None
        if before == fact.layout:
            return
        task.layout = fact.layout
        if before.partition_count != fact.partition_count:
            _log_count(task, before.partition_count)
        if fact.sources:
            logger.info(
                "Instances of %s are moved to %d partitions", printable(task), fact.partition_count
            )
        if self.on_change is not None:
            self.on_change()

    def note_place(self, task: Task, record: Record) -> None:
        """Says once if an instance that runs lies in a partition where no call looks for it."""
        template = task.template
        if not isinstance(template, PartitionedTask) or template.name in self._strays:
            return
        if template.unplaced is not None:
            return
        if record.group in template.places(record.key):
            return
        self._strays.add(template.name)
        logger.warning(
            "%s of %s lies in the group '%s', where %d partitions do not put it: it runs, but no "
            "call finds it. await context.rebalance(task, %d) moves such instances",
            printable(record.key),
            printable(template),
            printable(record.group),
            template.partition_count,
            template.partition_count,
        )


def _log_count(task: PartitionedTask, before: int) -> None:
    logger.warning(
        "%s has %d partitions now; it had %d (declared are %d)",
        printable(task),
        task.partition_count,
        before,
        task.declared_count,
    )
    _log_enabled(task)


def _log_enabled(task: PartitionedTask) -> None:
    enabled = task.enabled_partitions
    if enabled is not None and task.partition_count != task.enabled_of:
        logger.warning(
            "enabled_partitions of %s were chosen among %d partitions: this worker claims from "
            "every partition whose number modulo %d is one of them, until they are set again",
            printable(task),
            task.enabled_of,
            task.enabled_of,
        )
