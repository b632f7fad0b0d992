"""Scheduling an instance: what is written where there is none yet, and where there is one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any, Final

from pyncette import chance
from pyncette.bulk import Instance
from pyncette.calls.listing import tell_of_lease
from pyncette.calls.unreadable import reading_record
from pyncette.calls.writing import Holding, Writer, change_record, write_after
from pyncette.clock import Clock, from_microseconds, realtime
from pyncette.engine import rules
from pyncette.engine.moves import in_transit
from pyncette.engine.rules import Wanted
from pyncette.engine.worker import Worker
from pyncette.errors import TaskExistsError, TaskLockedException, printable
from pyncette.model import ExecutionMode, OnExisting
from pyncette.schedule import dumps
from pyncette.store import Refused, Write
from pyncette.store.record import (
    ABSENT,
    ANY,
    Change,
    Patch,
    Put,
    Record,
    State,
    load_progress,
)
from pyncette.task import Task
from pyncette.when import check_beside_single, in_time, option_or_argument

logger = logging.getLogger(__name__)

ADVANCE_PATIENCE_S: Final = 1.0
ADVANCE_LOOK_S: Final = 0.005
"""How long, and how often, a call looks whether an at-most-once record has advanced."""


SOON: Final = 120_000_000
"""Microseconds within which a single run may come while the store is asked again."""

_wanted_of: Final[Callable[[tuple[Any, ...]], Wanted]] = partial(tuple.__new__, Wanted)


class Wish:
    """What a caller wants an instance to be.

    It is also a wish of a bulk call, see ``pyncette.calls.requests.Wish``.

    Attributes:
        template: Its template.
        group, key: Its record.
        wanted: What its record shall hold.
        on_existing: What follows if there is one.
        kept: The record that was left as it is, if one was.
    """

    __slots__ = ("_instance", "group", "kept", "key", "on_existing", "template", "wanted")

    def __init__(
        self,
        template: Task,
        instance: Instance,
        on_existing: OnExisting,
        clock: Clock,
        origin: str,
        returned: bool = False,
    ) -> None:
        """Prepares to write an instance.

        Args:
            template: Its template.
            instance: What the caller wants.
            on_existing: What follows if there is one.
            clock: From its present instant, ``execute_in`` is counted.
            origin: What its runs are linked to, see ``pyncette.observers.Observers.origin``.
            returned: Whether the caller gets the instance.

        Raises:
            ValueError: An option or argument is invalid.
            TypeError: Likewise.
        """
        options = instance.options
        if "execute_in" in options:
            options = _with_execute_at(options, clock, instance.name)
        self.template = template
        described = template.describe(instance.name, options, complete=True)
        name, group, _, _, _, _, args = described
        self.group, self.key = group, name
        self.on_existing = on_existing
        self.kept: Record | None = None
        self._instance = template.described_as(described) if returned else None
        self.wanted = _wanted_of(
            (template.stored_plan(described), args, chance.new_id(4) + origin, (group, name))
        )

    @property
    def instance(self) -> Task:
        """The instance as the caller describes it."""
        if self._instance is None:
            schedule, args, _, (_, name) = self.wanted
            self._instance = self.template.from_parts(name, schedule, args)
        return self._instance

    def repeatable(self, now: int) -> bool:
        """Returns whether it may be created again if it is unknown whether it was.

        One whose last run is due soon may be done and gone by then, and would be run again.
        """
        return self.wanted.schedule.next(now + SOON) is not None

    def created(self, now: int) -> Put:
        """Returns the record of a new instance.

        Raises:
            ValueError: It would never run.
        """
        fresh = rules.created(self.wanted, now)
        if fresh.due_at is None:
            raise ValueError(
                f"Task '{printable(self.instance)}' would never run: {self.instance.plan!r}"
            )
        return fresh

    def decide(self, current: Record | None, now: int) -> Change | None:
        """Returns the change that is to be written; None: the record stays as it is.

        Raises:
            TaskExistsError: There is one, and ``on_existing`` says that this is an error.
            TaskLockedException: A worker holds it.
            TaskUnreadableError: A later release wrote its record.
            ValueError: It would never run.
        """
        if current is None:
            return self.created(now)
        match self.on_existing:
            case OnExisting.RAISE:
                raise TaskExistsError(self.instance)
            case OnExisting.KEEP:
                self.kept = current
                return None
            case OnExisting.REPLACE:
                self.created(now)  # refuses what would never run
                with reading_record(current):
                    return rules.replaced(current, self.wanted, now)
            case OnExisting.SOONER:
                with reading_record(current):
                    change = rules.merged(current, self.wanted, now)
        if change is None:
            due_at = None if current.due_at is None else from_microseconds(current.due_at)
            raise TaskLockedException(self.instance, due_at, rules.failed_under_lease(current))
        if _same(current, change):
            self.kept = current
            return None
        return change

    def told(self, change: Change | None, current: Record | None, now: int) -> Task:
        """Returns the instance as it is now, and tells what is otherwise than was asked for."""
        if change is None:
            assert self.kept is not None
            instance = self.instance
            if self.on_existing is OnExisting.KEEP:
                instance = instance.template.from_record(self.kept)
            found: Record | Put | Patch = self.kept
        else:
            instance = self.instance
            assert isinstance(change, (Put, Patch))
            found = change
        if current is None:
            instance.planned_for(found.due_at)  # it was made just now
            return instance
        if isinstance(change, Patch):
            tell_of_lease(self.template, current, now)  # what replaces it waits for its end
        planned = _planned(found)
        instance.planned_for(_next_run(found, planned))
        if self.on_existing is OnExisting.SOONER and planned is not None:
            self._tell_kept(instance, planned, current, now)
        return instance

    def _tell_kept(self, instance: Task, planned: int, current: Record, now: int) -> None:
        first = self.wanted.schedule.first(now)
        if first is None or planned >= first:
            return
        moved = self.wanted.schedule.moved_to(planned)
        if moved is not self.wanted.schedule:
            instance.moved_to(moved)
        if current.schedule != dumps(self.wanted.schedule) and not _begun(current):
            logger.info(
                "%s keeps its sooner time, %s, instead of %s: with on_existing=OnExisting.REPLACE "
                "or force=True the later one would hold",
                printable(instance),
                from_microseconds(planned).isoformat(),
                from_microseconds(first).isoformat(),
            )


class Scheduling:
    """The call; see ``PyncetteContext.schedule_task`` for what it promises."""

    def __init__(self, requests: Writer, worker: Worker) -> None:
        """Schedules instances on the store of a worker."""
        self._requests = requests
        self._worker = worker

    async def schedule(
        self, template: Task, instance: Instance, force: bool, on_existing: OnExisting
    ) -> Task:
        requests = self._requests
        origin = self._worker.reporter.observers.origin()
        wish = Wish(template, instance, on_existing, requests.clock, origin, returned=True)
        group, key = wish.wanted.identity
        now = await requests.now()
        if requests.places.several(group, key):
            return await self._schedule_where_it_lies(wish, group, key, force)
        current: Record | None = None
        kept = False
        write = Write(group, key, wish.created(now), ANY if force else ABSENT)
        if force:
            self._worker.replaced(group, key)
        patience = realtime.monotonic() + ADVANCE_PATIENCE_S
        holding: Holding | None = None
        while isinstance(result := await requests.submit(write), Refused):
            holding = holding or Holding(requests, wish.instance)
            await holding.wait(write, result)
            now = await requests.now()
            moves = result.current is not None and in_transit(result.current)
            if moves or requests.places.several(group, key):
                return await self._schedule_where_it_lies(wish, group, key, force)
            current, change, now = await self._decided(wish, result.current, patience)
            kept = change is None
            if change is None:
                change = requests.confirmation(current, group, key)
                if change is None:
                    return wish.told(None, current, now)
            write = write_after(group, key, current, change)
        requests.wrote(write)
        if not kept:
            requests.telling.instance("schedule", wish.template.name, key)
        return wish.told(None if kept else write.change, current, now)

    async def _schedule_where_it_lies(self, wish: Wish, group: str, key: str, force: bool) -> Task:
        """Schedules an instance that may lie in several places."""
        found: Record | None = None

        def decide(current: Record | None, now: int) -> Change | None:
            nonlocal found
            found = current
            if force:
                if current is not None:
                    self._worker.replaced(current.group, key)
                return wish.created(now)
            return wish.decide(current, now)

        patience = realtime.monotonic() + ADVANCE_PATIENCE_S
        while True:
            try:
                write = await change_record(self._requests, group, key, decide)
            except TaskLockedException:
                if (
                    wish.template.execution_mode is not ExecutionMode.AT_MOST_ONCE
                    or realtime.monotonic() >= patience
                ):
                    raise
            else:
                now = self._requests.clock.microseconds()
                if write is not None:
                    self._requests.telling.instance("schedule", wish.template.name, key)
                return wish.told(None if write is None else write.change, found, now)
            with self._requests.clock.hold():
                await realtime.sleep(ADVANCE_LOOK_S)

    async def _decided(
        self, wish: Wish, current: Record | None, patience: float
    ) -> tuple[Record | None, Change | None, int]:
        """Decides what to write; waits for an at-most-once record, which is held only briefly."""
        while True:
            now = self._requests.clock.microseconds()
            try:
                return current, wish.decide(current, now), now
            except TaskLockedException:
                if (
                    wish.template.execution_mode is not ExecutionMode.AT_MOST_ONCE
                    or realtime.monotonic() >= patience
                ):
                    raise
            with self._requests.clock.hold():
                await realtime.sleep(ADVANCE_LOOK_S)
            [current] = await self._requests.store.get([wish.wanted.identity])


def _with_execute_at(options: Mapping[str, Any], clock: Clock, name: str) -> dict[str, Any]:
    """Options with an instant in the place of ``execute_in``, unless that is an argument.

    Raises:
        TypeError: It can be neither.
        ValueError: It is negative or too long, or what does not go with it is given as well.
    """
    options = dict(options)
    wait = option_or_argument("execute_in", options.pop("execute_in"), timedelta, options)
    if wait is not None:
        check_beside_single(options, "execute_in", name)
        options["execute_at"] = in_time(wait, options.get("execute_at"), clock.now())
    return options


def _rests(found: Record | Put | Patch) -> bool:
    """Returns whether a record does not run until a user asks for it."""
    if found.state == State.PAUSED:
        return found.due_at is None
    return found.state in (State.PARKED, State.FINISHED)


def _next_run(found: Record | Put | Patch, planned: int | None) -> int | None:
    """Returns when a record runs next: a retry, a pause and a jitter included.

    While it runs, that is not known: then it is the planned time of that run, or of the replacement
    that waits for its end.
    """
    if _rests(found):
        return None
    running = found.state == State.RUNNING and found.unfinished_attempts > 0
    return planned if running else found.due_at


def _planned(found: Record | Put | Patch) -> int | None:
    """Returns for when a record is planned, also if a replacement waits for the end of its run."""
    try:
        progress = load_progress(found.progress or "")
    except ValueError:
        return None
    pending = progress.pending
    if pending is not None and pending.schedule is not None:
        return pending.planned
    return progress.occurrence


def _begun(current: Record) -> bool:
    """Returns whether the record keeps an occurrence that has begun, rather than a time."""
    return current.state in (State.RETRYING, State.RUNNING)


def _same(current: Record, change: Put) -> bool:
    return change == (
        current.due_at,
        current.state,
        current.token,
        current.unfinished_attempts,
        current.schedule,
        current.args,
        current.progress,
    )
