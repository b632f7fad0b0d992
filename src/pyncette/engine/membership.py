"""Which workers are alive, and how they share partitions.

Each worker writes one record about itself, again and again, and one that shares partitions reads
those of the others. All of them compute from these, by the same rule, who owns which partition.

The loop writes the record through the write queue, so that it costs no call of its own while the
worker is busy. A record counts until its lease ends, by the clock of the store. Whether a run may
start does not depend on it: a membership that is wrong, or cannot be read, makes no run early or
double. Ownership is a preference: see ``pyncette.engine.polling``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from zlib import crc32

from pyncette import chance
from pyncette.clock import realtime
from pyncette.engine.polling import Share
from pyncette.engine.writes import Next
from pyncette.errors import describe, printable
from pyncette.model import Partitions
from pyncette.schedule import NewerFormat
from pyncette.store import (
    EVERYTHING,
    Applied,
    Failed,
    Identity,
    Result,
    Scans,
    Unknown,
    Write,
    scan_pages,
)
from pyncette.store.record import (
    ANY,
    DELETE,
    EARLIEST_INSTANT,
    LATEST_INSTANT,
    MEMBERS_GROUP,
    Put,
    Record,
    State,
    dump_args,
    load_args,
)
from pyncette.task import PartitionedTask, Task
from pyncette.task_options import TAGS_MAX
from pyncette.version import __version__

if TYPE_CHECKING:
    from pyncette.engine.worker import Worker

logger = logging.getLogger(__name__)

LEASE: Final = 60_000_000
"""For how long, in microseconds, a worker counts as alive after it has written its record. It is
longer for a worker that polls so seldom that it would have to wake up for this alone."""

LEASE_MIN: Final = 2_000_000
"""The shortest lease. A worker that shares partitions has that of its tasks, within these."""

BEATS_PER_LEASE: Final = 3

MEMBERS_MAX: Final = 10_000
"""Maximum records that are read. All workers read the same ones, the first in the order of keys."""

PAGE_SIZE: Final = 1_000

TASKS_MAX: Final = 200
TASKS_CHARACTERS_MAX: Final = 10_000
RUNS_MAX: Final = 20
NAME_CHARACTERS_MAX: Final = 200
"""What a record holds at most, so that it stays small."""

LEAVING_PATIENCE_S: Final = 2.0
"""How long closing tries to remove the record. One that stays counts until its lease ends."""

FORGET_AFTER: Final = 86_400_000_000
"""When the record of a dead worker is removed, in microseconds after it was last written."""

DEAD_MAX: Final = 100
"""Maximum records of dead workers that are kept for so long. Of more, the oldest are removed."""

TIDY_INTERVAL: Final = 3_600_000_000
"""How often a worker looks for such records, in microseconds."""

UNSERVED_INTERVAL: Final = 60_000_000
"""How often a worker looks whether others run the tasks whose tags it does not have. At first it
waits for this time, because other workers may start later."""

REMOVALS_MAX: Final = 1_000
"""Maximum records that a worker removes at once."""


class Member(NamedTuple):
    """What the record of a worker says.

    Attributes:
        id: The key of the record.
        name: The ``worker_name``.
        since: When its ``run()`` began.
        seen: When it wrote the record.
        lease: For how long it counts as alive after that.
        host, process_id, version: As in ``pyncette.model.WorkerState``.
        tasks: The names of the tasks that it claims; perhaps not all of them.
        task_count: The number of these tasks.
        running: The number of its executions.
        runs: The names of some of them, and when each was claimed.
        tags: What it has, for tasks that ask for it.
    """

    id: str
    name: str
    since: int | None
    seen: int
    lease: int = LEASE
    host: str | None = None
    process_id: int | None = None
    version: str | None = None
    tasks: tuple[str, ...] = ()
    task_count: int = 0
    running: int = 0
    runs: tuple[tuple[str, int], ...] = ()
    tags: tuple[str, ...] = ()

    def alive(self, now: int) -> bool:
        """Returns whether the worker counts as alive.

        A record from the future was written before the clock of the store was set back: a worker
        that is alive writes it again soon.
        """
        return abs(now - self.seen) < self.lease


def read_member(record: Record) -> Member | None:
    """Reads the record of a worker, as far as this release can; None if it is not one."""
    name = record.key.rpartition(":")[0] or record.key
    try:
        said = load_args(record.args)
    except NewerFormat:
        # Every write moves the version to its instant.
        known = _is_instant(record.version)
        return Member(record.key, name, None, record.version) if known else None
    except ValueError:
        return None
    seen: Any = said.get("seen")
    if not _is_instant(seen):
        return None
    tasks = _items(said.get("tasks"), str)
    runs = [
        (name, started)
        for name, started in (run for run in _items(said.get("runs"), list) if len(run) == 2)
        if type(name) is str and _is_instant(started)
    ]
    since, lease, process_id = said.get("since"), said.get("lease"), said.get("process")
    return Member(
        record.key,
        _text(said.get("name")) or name,
        since if _is_instant(since) else None,
        seen,
        lease if type(lease) is int and 0 < lease <= LATEST_INSTANT else LEASE,
        _text(said.get("host")),
        process_id if type(process_id) is int else None,
        _text(said.get("version")),
        tuple(tasks[:TASKS_MAX]),
        _count(said.get("task_count"), len(tasks)),
        _count(said.get("running"), len(runs)),
        tuple(runs[:RUNS_MAX]),
        tuple(_items(said.get("tags"), str)[:TAGS_MAX]),
    )


def _is_instant(value: Any) -> bool:
    return type(value) is int and EARLIEST_INSTANT <= value <= LATEST_INSTANT


def _text(value: Any) -> str | None:
    return value if type(value) is str else None


def _count(value: Any, least: int) -> int:
    return max(value, least) if type(value) is int else least


def _items(value: Any, kind: type) -> list[Any]:
    return [item for item in value if type(item) is kind] if type(value) is list else []


def member_record(member: Member) -> Put:
    """Returns the record of a worker."""
    args = {
        "name": member.name,
        "since": member.since,
        "seen": member.seen,
        "lease": member.lease,
        "host": member.host,
        "process": member.process_id,
        "version": member.version,
        "tasks": member.tasks,
        "task_count": member.task_count,
        "running": member.running,
        "runs": member.runs,
        "tags": member.tags,
    }
    # Without an instant: no index has to be written, and no claim ever finds it.
    return Put(None, State.FINISHED, None, 0, "", dump_args(args), "")


async def read_members(store: Scans) -> list[tuple[Record, Member | None]]:
    """Returns the records of workers, dead ones too, and what each says.

    Raises:
        StoreError: The store failed.
    """
    found: list[tuple[Record, Member | None]] = []
    async with aclosing(scan_pages(store, [MEMBERS_GROUP], EVERYTHING, PAGE_SIZE)) as pages:
        async for records in pages:
            found += [(record, read_member(record)) for record in records]
            if len(found) >= MEMBERS_MAX:
                break
    return found[:MEMBERS_MAX]


def forgotten(found: Iterable[tuple[Record, Member | None]], now: int) -> list[Record]:
    """Returns the records that are to be removed: their workers are dead, and nobody asks."""
    dead = sorted(
        (record.version, record)
        for record, member in found
        if member is None or not member.alive(now)
    )
    old = [record for version, record in dead if abs(now - version) > FORGET_AFTER]
    crowd = [record for _, record in dead[: max(len(dead) - DEAD_MAX, 0)]]
    return list(dict.fromkeys([*old, *crowd]))[:REMOVALS_MAX]


def shares_of(names: Iterable[str], members: Collection[Member], own_id: str) -> dict[str, Share]:
    """Returns what a worker owns of templates: every worker that reads the same computes the same.

    Args:
        names: The templates whose partitions it shares.
        members: The workers that are alive.
        own_id: The id of the worker, which counts in any case.
    """
    shares: dict[str, Share] = {}
    for name in names:
        ids = sorted({own_id, *(member.id for member in members if name in member.tasks)})
        # Begins with another worker for each template, so that many templates with few partitions
        # do not all go to the first one.
        position = (ids.index(own_id) + crc32(name.encode())) % len(ids)
        shares[name] = Share(position, len(ids))
    return shares


def served(name: str, members: Iterable[Member]) -> bool:
    """Returns whether one of these workers runs a task, as far as their records say."""
    return any(name in member.tasks or member.task_count > len(member.tasks) for member in members)


def _shared(tasks: Iterable[Task]) -> list[Task]:
    return [
        task
        for task in tasks
        if isinstance(task, PartitionedTask)
        and task.partitions is Partitions.SHARED
        and task.enabled
    ]


class Membership:
    """The record of one worker, and what it owns.

    Attributes:
        id: The name of the worker, and what makes it unique: the key of its record.
        beat_at: When the record is to be written again, in monotonic microseconds.
        sharing: Whether it shares partitions with other workers, as far as they are alive.
    """

    def __init__(self, worker: Worker) -> None:
        """Prepares the record; nothing is written before ``beat``."""
        self._worker = worker
        self.id = f"{worker.settings.worker_name}:{chance.new_id(4)}"
        self.beat_at = 0
        self.sharing = False
        self._since: int | None = None
        self._writing: _Beat | None = None
        self._failing = False
        self._left = False
        self._leaving: Any = None
        self._tidy_at: int | None = None
        self._ask_at: int | None = None
        # Tasks that no worker runs, of which the log has told.
        self._unserved: set[Task] = set()
        self._shares: dict[str, Share] = {}
        self._unread = False
        self._said: list[str] = []

    @property
    def identity(self) -> Identity:
        """Where its record is."""
        return MEMBERS_GROUP, self.id

    async def beat(self, monotonic: int) -> bool:
        """Writes the record again, with the next batch of the write queue, and reads the others.

        The others are read if it shares partitions with them. Never raises an error.

        Args:
            monotonic: The monotonic instant, in microseconds.

        Returns:
            Whether it owns other partitions than before.
        """
        worker = self._worker
        if self._since is None:
            self._since = worker.clock.microseconds()
        shared = _shared(worker.tasks())
        self.sharing = bool(shared)
        self._said = self._enabled()
        self.beat_at = monotonic + self._lease(shared) // BEATS_PER_LEASE
        if self._writing is None:  # else the store is slow
            self._writing = _Beat(self)
            worker.writes.add(self._writing, urgent=True)
        if self._tidy_at is None:
            self._tidy_at = self.beat_at  # not at the start, which many workers may have at once
        tidies = self._tidy_at <= monotonic
        if tidies:
            self._tidy_at = monotonic + TIDY_INTERVAL
        asks = self._asks(monotonic)
        if not shared and not tidies and not asks:
            self._shares = {}
            return False
        return await self._read(shared, tidies, asks)

    def _asks(self, monotonic: int) -> bool:
        """Returns whether to look now if other workers run the tasks that this one may not."""
        if not self._left_to_others():
            return False
        asks = self._ask_at is not None and self._ask_at <= monotonic
        if asks or self._ask_at is None:
            self._ask_at = monotonic + UNSERVED_INTERVAL
        return asks

    def _left_to_others(self) -> list[Task]:
        worker = self._worker
        return [task for task in worker.declared() if task.enabled and not worker.may_run(task)]

    def _name_unserved(self, alive: Collection[Member]) -> None:
        unserved = {task for task in self._left_to_others() if not served(task.name, alive)}
        for task in self._left_to_others():
            if task in unserved and task not in self._unserved:
                logger.warning(
                    "Task '%s' does not run: no worker that is alive has all of its tags (%s). "
                    "Start one with worker_tags=",
                    printable(task),
                    ", ".join(sorted(task.tags)),
                )
        self._unserved = unserved

    def _lease(self, shared: Sequence[Task]) -> int:
        if not shared:
            return max(LEASE, BEATS_PER_LEASE * self._worker.settings.poll_interval)
        return min(max(min(task.lease for task in shared), LEASE_MIN), LEASE)

    async def _read(self, shared: Sequence[Task], tidies: bool, asks: bool) -> bool:
        worker = self._worker
        names = [task.name for task in shared]
        try:
            found = await read_members(worker.store)
        except Exception as error:
            shares: dict[str, Share] = {}  # everything is its own
            if not shared:
                logger.debug("Records of dead workers cannot be read: %s", describe(error))
            elif not self._unread:
                self._unread = True
                logger.warning(
                    "Worker %s cannot read which other workers are alive, so it claims from all "
                    "partitions: %s",
                    printable(worker.settings.worker_name),
                    describe(error),
                )
        else:
            self._unread = False
            now = worker.clock.microseconds()
            alive = [member for _, member in found if member is not None and member.alive(now)]
            shares = shares_of(names, alive, self.id)
            if asks:
                self._name_unserved(alive)
            if tidies:
                for record in forgotten(found, now):
                    worker.writes.add(_Removal(record))
        changed = shares != self._shares
        if changed:
            self._log(shared, shares)
            self._shares = shares
        return changed

    def _log(self, shared: Iterable[Task], shares: Mapping[str, Share]) -> None:
        for task in shared:
            share = shares.get(task.name)
            if share is not None and share != self._shares.get(task.name):
                logger.info(
                    "Task '%s': %d workers share its partitions; this one has every one whose "
                    "number is %d modulo %d",
                    printable(task),
                    share.workers,
                    share.position,
                    share.workers,
                )

    def _enabled(self) -> list[str]:
        """Returns the names of the tasks that it claims, first those whose partitions it shares."""
        tasks = self._worker.tasks()
        shared = _shared(tasks)
        others = [task for task in tasks if task.enabled and task not in shared]
        return [task.name for task in (*shared, *others)]

    def shares(self) -> Mapping[str, Share]:
        """Returns what this worker owns of templates; of others it owns everything.

        If other tasks are enabled than the record says, it is written soon.
        """
        if self._enabled() != self._said:
            self.beat_at = 0
        return self._shares

    def described(self, now: int) -> Member:
        """Returns what the record is to say now."""
        worker = self._worker
        names = self._enabled()
        executions = worker.dispatcher.executions
        since_epoch = now - worker.clock.monotonic() * 1_000_000
        return Member(
            self.id,
            worker.settings.worker_name,
            self._since,
            now,
            self._lease(_shared(worker.tasks())),
            socket.gethostname(),
            os.getpid(),
            __version__,
            _bounded(names),
            len(names),
            len(executions),
            tuple(
                (
                    str(execution.task())[:NAME_CHARACTERS_MAX],
                    round(execution.claimed_at * 1_000_000 + since_epoch),
                )
                for execution in islice(executions, RUNS_MAX)
            ),
            tuple(sorted(worker.settings.tags)),
        )

    # The ends of the record.

    def written(self, answer: Result) -> None:
        """The store has answered."""
        self._writing = None
        failing = not isinstance(answer, Applied)
        if self._left:
            return
        if failing and not self._failing:
            logger.warning(
                "Worker %s cannot write that it is alive, so that others may take it for dead; "
                "it goes on: %s",
                printable(self._worker.settings.worker_name),
                describe(answer.error) if isinstance(answer, (Failed, Unknown)) else "refused",
            )
        elif self._failing and not failing:
            logger.info("Worker %s is known again to be alive", printable(self.id))
        self._failing = failing

    def write(self, now: int) -> Write | None:
        """Returns the record as it is to be written; None: the worker has left."""
        if self._left:
            return None
        return Write(*self.identity, member_record(self.described(now)), ANY)

    async def join(self) -> None:
        """The loop begins, perhaps not for the first time."""
        await self.left()
        self._leaving, self._left, self._since, self.beat_at = None, False, None, 0

    def leave(self, reachable: bool) -> None:
        """The loop has ended: the record is removed, if the store answers soon.

        Args:
            reachable: Whether the store has answered the last call of the loop.
        """
        self._left = True
        if self._since is not None and reachable and not self._failing:
            self._leaving = self._worker.background.start(
                self._remove(), "pyncette leaving", awaited=True
            )

    async def _remove(self) -> None:
        worker = self._worker
        write = Write(*self.identity, DELETE, ANY)
        try:
            async with realtime.timeout(LEAVING_PATIENCE_S):
                await worker.writes.settled([self.identity])
                await worker.store.write([write], worker.clock.microseconds())
        except Exception as error:
            logger.debug("The record of this worker stays for a while: %s", describe(error))

    async def left(self) -> None:
        """Waits until the record is removed, or cannot be."""
        if self._leaving is not None:
            # A caller that is cancelled must not cancel it for others, which wait for it too.
            await asyncio.wait([self._leaving])


def _bounded(names: Iterable[str]) -> tuple[str, ...]:
    kept: list[str] = []
    characters = 0
    for name in islice(names, TASKS_MAX):
        characters += len(name)
        if characters > TASKS_CHARACTERS_MAX:
            break
        kept.append(name)
    return tuple(kept)


class _Beat:
    """The entry of a worker's record in the write queue."""

    __slots__ = ("_membership",)

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    def build(self, now: int) -> Write | None:
        return self._membership.write(now)

    def answered(self, answer: Result, write: Write, now: int) -> Next:
        self._membership.written(answer)
        return Next.DONE  # it is written again soon, whatever became of it

    def abandon(self, error: Exception) -> None:
        self._membership.written(Unknown(error))


class _Removal:
    """The removal of the record of a dead worker, unless it has written meanwhile."""

    __slots__ = ("_record",)

    def __init__(self, record: Record) -> None:
        self._record = record

    def build(self, now: int) -> Write | None:
        group, key, _, version, *_ = self._record
        return Write(group, key, DELETE, version)

    def answered(self, answer: Result, write: Write, now: int) -> Next:
        return Next.DONE

    def abandon(self, error: Exception) -> None:
        """Nothing is lost: another worker removes it."""
