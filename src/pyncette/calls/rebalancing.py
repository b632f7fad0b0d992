"""Moves the instances of a template to another number of partitions, while workers run them.

The stages of a move are in ``pyncette.engine.partitions``, the writes that move one instance in
``pyncette.engine.moves``. Nothing of it is kept in this process: a call that was interrupted is
made again, and goes on from what the store says.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from pyncette.bulk import RebalanceProgress, RebalanceResult
from pyncette.calls.places import Moved
from pyncette.calls.requests import Requests
from pyncette.calls.writing import BULK_PATIENCE_S, PAUSE_MAX_S, Patience
from pyncette.clock import realtime
from pyncette.engine.moves import Pair, copy_of, mark_of
from pyncette.engine.partitions import (
    KNOWN_FOR_S,
    Fact,
    checked_count,
    fact_identity,
    fact_record,
    misread,
    read_fact,
)
from pyncette.engine.steering import read_pauses
from pyncette.engine.worker import Worker
from pyncette.errors import (
    PyncetteException,
    StoreUnavailableError,
    TaskUnreadableError,
    describe,
    plural,
    printable,
)
from pyncette.store import EVERYTHING, Write
from pyncette.store.record import ABSENT, CONTROL_GROUP, Record, group_of, template_of
from pyncette.task import PARTITION_COUNT_MAX, Layout, PartitionedTask, Task

logger = logging.getLogger(__name__)

T = TypeVar("T")

BATCH: Final = 1_000
"""Instances that are moved together."""

REPORT_INTERVAL_S: Final = 5.0
"""How often a caller is told of a move that waits."""

SWEEP_PAUSE_INITIAL_S: Final = 0.5
SWEEP_PAUSE_MAX_S: Final = 30.0
"""Pause before instances that were running are looked at again; it doubles."""


class Rebalancing:
    """The call; see ``PyncetteContext.rebalance`` for what it promises."""

    def __init__(self, requests: Requests, worker: Worker) -> None:
        """Moves instances in the store of a worker."""
        self._requests = requests
        self._worker = worker

    async def rebalance(
        self, task: Task, partition_count: int, progress: RebalanceProgress | None
    ) -> RebalanceResult:
        """See ``PyncetteContext.rebalance``."""
        self._requests.check_declared(task)
        template = _checked(task)
        count = checked_count(partition_count)
        move = _Move(self._requests, self._worker, template, count, progress)
        with self._requests.telling.many("rebalance", template, move, partition_count=count):
            return await move.run()


class _Move:
    """One call."""

    def __init__(
        self,
        requests: Requests,
        worker: Worker,
        task: PartitionedTask,
        count: int,
        progress: RebalanceProgress | None,
    ) -> None:
        self._requests = requests
        self._worker = worker
        self._task = task
        self._count = count
        self._progress = progress
        self.changed = self.failed = 0
        self.effective = False
        self._waiting: list[str] = []
        self._failed: list[tuple[str, Exception]] = []
        self._stage = "announcing"

    async def run(self) -> RebalanceResult:
        count = self._count
        found, version = await self._read()
        if isinstance(found, TaskUnreadableError):
            await self._collect(found)
            await self._write(Fact(count), version)
            self.effective = True
            return self._done()
        fact = found
        under_way = fact.sources or fact.to is not None
        if under_way and count not in (fact.to, fact.partition_count):
            raise self._other_move(fact)
        self.effective = bool(under_way)
        if under_way and fact.to is not None and count == fact.partition_count:
            fact, version = await self._write(fact.ended(), version)  # nothing was moved yet
        elif not under_way and count != fact.partition_count:
            await self._check_pauses()
            fact, version = await self._write(fact.announced(count), version)
            logger.info("A move of %s to %d partitions is announced", printable(self._task), count)
            self.effective = True
        groups = self._groups(fact)
        if fact.to is not None:
            await self._until_all_know()
        if not fact.sources and fact.begun() != fact:
            fact, version = await self._write(fact.begun(), version)
        if fact.sources:
            await self._until_all_know()
            self._stage = "moving"
            await self._sweep_until_done(groups)
            self._stage = "ending"
            fact, version = await self._write(fact.ended(), version)
            await self._until_all_know()
        await self._sweep_until_done(groups)
        return self._done()

    async def _collect(self, error: TaskUnreadableError) -> None:
        """Moves the instances of a template from wherever they are.

        Its number of partitions cannot be read, so by now, or soon, all programs refuse to look for
        instances, and to create some. They go on once the number has been written.
        """
        if error.elsewhere:
            raise error
        logger.warning(
            "All %s partitions that %s may have are gone through: %s",
            f"{PARTITION_COUNT_MAX:,}",
            printable(self._task),
            printable(error),
        )
        self._task.layout = Layout(self._count)
        await self._until_all_know()
        self._stage = "moving"
        numbers = range(PARTITION_COUNT_MAX)
        await self._sweep_until_done([group_of(self._task.name, number) for number in numbers])
        self._stage = "ending"

    def _done(self) -> RebalanceResult:
        self._stage = "done"
        logger.info(
            "%s has %d partitions; %d instances were moved",
            printable(self._task),
            self._count,
            self.changed,
        )
        return self._result()

    def _groups(self, fact: Fact) -> list[str]:
        numbers = range(max(*fact.known_counts, self._count))
        return [group_of(self._task.name, number) for number in numbers]

    def _result(self) -> RebalanceResult:
        return RebalanceResult(self._count, self.changed, len(self._waiting), self._stage)

    # What is in force.

    async def _read(self) -> tuple[Fact | TaskUnreadableError, int]:
        identity = fact_identity(self._task.name)
        [record] = await self._insist(lambda: self._requests.store.get([identity]))
        await self._worker.partitions.read()
        if record is None:
            return Fact(self._task.partition_count), ABSENT
        return misread(record) or read_fact(record), record.version

    async def _write(self, fact: Fact, version: int) -> tuple[Fact, int]:
        """Changes what is in force; all running workers read it at once if they are notified."""
        write = Write(*fact_identity(self._task.name), fact_record(fact), version)
        give_up_at = realtime.monotonic() + BULK_PATIENCE_S
        while True:
            self._requests.notify(CONTROL_GROUP)
            error: StoreUnavailableError | None = None
            try:
                await self._requests.submit(write)
            except StoreUnavailableError as failed:
                error = failed
            found, found_version = await self._read()
            if found == fact:
                return fact, found_version
            if found_version != version:
                raise self._other_move(found)
            if realtime.monotonic() >= give_up_at:
                raise error or StoreUnavailableError(
                    f"The number of partitions of {printable(self._task)} is locked by an open "
                    "transaction"
                )
            await self._pause()

    def _other_move(self, fact: Fact | TaskUnreadableError) -> PyncetteException:
        if isinstance(fact, TaskUnreadableError):
            return fact
        count = fact.partition_count if fact.to is None else fact.to
        return PyncetteException(
            f"{printable(self._task)} is being moved to {count} partitions: end that move first, "
            f"with rebalance(task, {count})"
        )

    async def _check_pauses(self) -> None:
        """Refuses to spread the instances of a paused partition over others.

        Raises:
            PyncetteException: A partition is paused.
        """
        now = await self._requests.now()
        for pause in await self._insist(lambda: read_pauses(self._requests.store)):
            name, partition = template_of(pause.group)
            if name == self._task.name and partition is not None and not pause.pause.ended(now):
                raise PyncetteException(
                    f"Partition {partition} of {printable(self._task)} is paused, and its "
                    "instances would come into others, which are not: resume it, or pause the "
                    "whole task, first"
                )

    async def _until_all_know(self) -> None:
        """Waits until no call is under way that was decided by what was in force before."""
        left_s = 2 * KNOWN_FOR_S + self._requests.store.deadline_s
        logger.info(
            "The move of %s waits %.0f s until all programs know that it is %s",
            printable(self._task),
            left_s,
            "over" if self._stage == "ending" else "under way",
        )
        while left_s > 0:
            self._report()
            await self._worker.clock.sleep(min(left_s, REPORT_INTERVAL_S))
            left_s -= REPORT_INTERVAL_S

    # Moving.

    async def _sweep_until_done(self, groups: Sequence[str]) -> None:
        """Moves what lies elsewhere, until nothing does.

        Raises:
            PyncetteException: Instances cannot be moved.
        """
        pause = SWEEP_PAUSE_INITIAL_S
        while True:
            groups = await self._sweep(groups)
            if self._failed:
                name, error = self._failed[0]
                raise PyncetteException(
                    f"{plural(len(self._failed), 'instance')} of {printable(self._task)} cannot be "
                    f"moved, such as {printable(name)}: {describe(error)}. They stay where they "
                    "are, and run. Remove them, then call rebalance again"
                )
            if not self._waiting:
                return
            await self._worker.clock.sleep(pause)
            pause = min(2 * pause, SWEEP_PAUSE_MAX_S)

    async def _sweep(self, groups: Sequence[str]) -> list[str]:
        """Moves what lies elsewhere now; returns the groups that held instances that wait."""
        self._waiting, self._failed = [], []
        left: list[str] = []
        for group in groups:
            before = len(self._waiting)
            store = self._requests.store
            cursor: str | None = None
            while True:
                await self._check_count()
                page = await self._insist(partial(store.scan, group, EVERYTHING, cursor, BATCH))
                await self._move(page.records)
                cursor = page.cursor
                if cursor is None:
                    break
            if len(self._waiting) > before:
                left.append(group)
        self._report()
        return left

    async def _check_count(self) -> None:
        await self._insist(self._worker.partitions.fresh)
        if self._task.partition_count != self._count:
            fact, _ = await self._read()
            raise self._other_move(fact)

    async def _move(self, records: Sequence[Record]) -> None:
        pairs = [pair for record in records if (pair := self._pair(record)) is not None]
        if not pairs:
            return
        places = self._requests.places

        async def move() -> Moved:
            return await places.move(await places.read_pairs(pairs))

        moved = await self._insist(move)
        self.changed += moved.moved
        self.effective = self.effective or moved.moved > 0
        self._waiting += moved.waiting
        self._failed += moved.failed
        self._report()

    def _pair(self, record: Record) -> Pair | None:
        """Returns the move that a record is part of, or has to be; None: it lies where it must."""
        group, key = record[:2]
        copy, mark = copy_of(record), mark_of(record)
        if copy is not None:
            return Pair(key, copy.origin, group, None, record)
        if mark is not None:
            return Pair(key, group, mark.target, record, None)
        target = self._task.locate(key)
        return None if target == group else Pair(key, group, target, record, None)

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self._result())

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Makes a call again while the store is unavailable, for a limited time.

        Raises:
            StoreUnavailableError: It was unavailable until then.
        """
        clock = self._worker.clock
        return await Patience(BULK_PATIENCE_S, PAUSE_MAX_S, PAUSE_MAX_S, clock).insist(call)

    async def _pause(self) -> None:
        with self._worker.clock.hold():
            await realtime.sleep(PAUSE_MAX_S)


def _checked(task: Task) -> PartitionedTask:
    if isinstance(task, PartitionedTask):
        return task
    template = task.template
    if isinstance(template, PartitionedTask):
        raise ValueError(
            f"'{printable(task)}' is not a template: pass '{printable(template)}', which has its "
            "partitions"
        )
    raise ValueError(
        f"'{printable(task)}' has no partitions, so its instances cannot be moved to others. "
        "Declare another task with partitioned_task, and schedule them there"
    )
