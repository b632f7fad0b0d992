"""Scheduling, removing and aligning any number of instances, in batches and bounded memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice, repeat
from typing import Any, Final, TypeVar

from pyncette.bulk import (
    FAILURES_KEPT_MAX,
    BulkFailure,
    BulkResult,
    Instance,
    OnFailure,
    Progress,
)
from pyncette.calls import scheduling
from pyncette.calls.filters import Selection, selection_of
from pyncette.calls.names import Names
from pyncette.calls.requests import Changing, Decide, Outcome, Requests, Wish, write_after
from pyncette.calls.telling import in_words
from pyncette.calls.unreadable import reading_record
from pyncette.calls.writing import Writer, change_record
from pyncette.clock import realtime
from pyncette.engine import rules
from pyncette.engine.worker import Worker
from pyncette.errors import TaskLockedException, printable
from pyncette.model import ExecutionMode, OnExisting, Where
from pyncette.options import check_flag
from pyncette.schedule import INHERITED_MARK, dumps
from pyncette.store import EVERYTHING, Filter
from pyncette.store.record import (
    ABSENT,
    DELETE,
    Change,
    Delete,
    Put,
    Record,
    UnreadableRecord,
    load_progress,
)
from pyncette.task import Task

T = TypeVar("T")

BATCH: Final = 1_000
"""Instances that are handled together."""

SLICE: Final = 100
"""Instances that are taken, or prepared, without letting other tasks run; a part of a batch."""


class Tally:
    """Counts what a bulk call does, and tells its caller."""

    def __init__(
        self, progress: Progress | None, on_failure: OnFailure | None, mostly_new: bool = False
    ) -> None:
        """Counts nothing yet.

        Args:
            progress: Gets what was done so far.
            on_failure: Gets failures.
            mostly_new: Whether most instances are expected to be absent from the store; then it is
                whether most of the last batch were.
        """
        for option, function in (("progress", progress), ("on_failure", on_failure)):
            if function is not None and not callable(function):
                raise TypeError(f"{option} must be a function, not {function!r}")
        self.mostly_new = mostly_new
        self.created = self.updated = self.removed = self.unchanged = self.failed = 0
        self._failures: list[BulkFailure] = []
        self._progress = progress
        self._on_failure = on_failure

    def fail(self, name: object, error: Exception) -> None:
        """Counts a failure, and tells it."""
        failure = BulkFailure(str(name), error)
        self.failed += 1
        if len(self._failures) < FAILURES_KEPT_MAX:
            self._failures.append(failure)
        if self._on_failure is not None:
            self._on_failure(failure)

    def add_batch(self, wishes: Sequence[Wish], outcomes: Iterable[Outcome]) -> None:
        """Counts what came of a batch, and tells what was done so far."""
        before = self.created
        for wish, outcome in zip(wishes, outcomes, strict=True):
            if outcome is None:
                self.unchanged += 1
            elif isinstance(outcome, Exception):
                self.fail(wish.key, outcome)
            elif isinstance(outcome.change, Delete):
                self.removed += 1
            elif outcome.expect == ABSENT:
                self.created += 1
            else:
                self.updated += 1
        self.mostly_new = 2 * (self.created - before) >= len(wishes)
        self.batch_done()

    @property
    def changed(self) -> int:
        """How many were changed so far."""
        return self.created + self.updated + self.removed

    @property
    def effective(self) -> bool:
        """Whether anything was changed."""
        return self.changed > 0

    def batch_done(self) -> None:
        """Tells what was done so far."""
        if self._progress is not None:
            self._progress(self.result())

    def result(self) -> BulkResult:
        """Returns what was done so far."""
        return BulkResult(
            self.created,
            self.updated,
            self.removed,
            self.unchanged,
            self.failed,
            tuple(self._failures),
        )


class Bulk:
    """The calls; see ``PyncetteContext`` for what they promise."""

    def __init__(self, requests: Requests, worker: Worker) -> None:
        """Works on the store of a worker."""
        self._requests = requests
        self._worker = worker

    async def schedule(
        self,
        template: Task,
        instances: Iterable[Instance] | AsyncIterable[Instance],
        on_existing: OnExisting,
        progress: Progress | None,
        on_failure: OnFailure | None,
    ) -> BulkResult:
        self._check_template(template)
        if not isinstance(on_existing, OnExisting):
            raise TypeError(f"on_existing must be an OnExisting, not {on_existing!r}")
        tally = Tally(progress, on_failure, mostly_new=True)
        with self._requests.telling.many("schedule", template, tally):
            await self._each(template, instances, scheduling.Wish, on_existing, tally)
        return tally.result()

    def _check_template(self, template: Task) -> None:
        self._requests.check_declared(template)
        if not template.dynamic:
            raise ValueError(
                f"Cannot schedule instances of '{printable(template)}': it is not a dynamic task"
            )
        if template.template is not template:
            raise ValueError(
                f"'{printable(template)}' is a partition: schedule the instances of the "
                "template, which knows the partition of each"
            )

    async def unschedule(
        self,
        template: Task,
        names: Iterable[str] | AsyncIterable[str] | None,
        where: Where | None,
        progress: Progress | None,
        on_failure: OnFailure | None,
    ) -> BulkResult:
        self._requests.check_declared(template)
        if not template.dynamic:
            raise ValueError(
                f"Cannot unschedule instances of '{printable(template)}': it is not dynamic"
            )
        if (names is None) == (where is None):
            raise TypeError("unschedule_tasks needs either names or where")
        tally = Tally(progress, on_failure)
        selection = selection_of(where, template)
        which = "named ones" if names is not None else in_words(where)
        with self._requests.telling.many("unschedule", template, tally, which):
            if names is None:
                await self._unschedule_where(template, selection, tally)
            else:
                await self._unschedule_named(template, names, tally)
        return tally.result()

    async def _unschedule_named(
        self, template: Task, names: Iterable[str] | AsyncIterable[str], tally: Tally
    ) -> None:
        async for batch in _batches(names, lambda name: name):
            wishes: list[Wish] = []
            for name in batch:
                try:
                    group = template.identify(name)
                except (TypeError, ValueError) as error:
                    tally.fail(name, error)
                else:
                    wishes.append(Changing(group, name, removed))
            await self.remove(wishes, tally)

    async def _unschedule_where(self, template: Task, selection: Selection, tally: Tally) -> None:
        def decide(current: Record | None, now: int) -> Change | None:
            # It may have changed since it was selected.
            return DELETE if current is not None and selection.matches(current) else None

        async for records in self._pages(template.groups(), selection.filter):
            await self.remove(_wishes(records, decide), tally, records)

    async def clear(self, groups: Sequence[str], tally: Tally) -> None:
        """Removes all records of these groups."""
        async for records in self._pages(groups, EVERYTHING):
            await self.remove(_wishes(records, removed), tally, records)

    async def change_where(
        self,
        template: Task,
        where: Where | None,
        decide: Callable[[Record, int], Change | None],
        tally: Tally,
        repeatable: bool = True,
    ) -> None:
        """Changes the instances of a template that match."""
        self._requests.check_declared(template)
        if not template.dynamic:
            raise ValueError(f"'{printable(template)}' is not a dynamic task")
        selection = selection_of(where, template)

        def decide_again(current: Record | None, now: int) -> Change | None:
            # It may have changed since it was selected.
            if current is None or not selection.matches(current):
                return None
            return decide(current, now)

        async for records in self._pages(template.groups(), selection.filter):
            await self._change(_wishes(records, decide_again, repeatable), tally, records)

    async def remove(
        self, wishes: Sequence[Wish], tally: Tally, known: Sequence[Record] | None = None
    ) -> None:
        """Makes these wishes, which are to remove records."""
        for wish in wishes:
            self._worker.replaced(wish.group, wish.key)
        await self._change(wishes, tally, known)

    async def _change(
        self, wishes: Sequence[Wish], tally: Tally, known: Sequence[Record] | None
    ) -> None:
        tally.add_batch(wishes, await self._requests.change_all(wishes, known))

    async def _pages(self, groups: Sequence[str], where: Filter) -> AsyncIterator[list[Record]]:
        # What an earlier call wrote may decide which records are found.
        await self._requests.settled()
        async for records in self._requests.pages(groups, where, BATCH):
            if records:
                yield records

    async def synchronise(
        self,
        template: Task,
        instances: Iterable[Instance] | AsyncIterable[Instance],
        dry_run: bool,
        allow_empty: bool,
        progress: Progress | None,
        on_failure: OnFailure | None,
    ) -> BulkResult:
        self._check_template(template)
        for option, flag in (("dry_run", dry_run), ("allow_empty", allow_empty)):
            check_flag(option, flag)
        tally = Tally(progress, on_failure)
        if dry_run:
            await self._aligned(template, instances, True, allow_empty, tally)
        else:
            with self._requests.telling.many("sync", template, tally):
                await self._aligned(template, instances, False, allow_empty, tally)
        return tally.result()

    async def _aligned(
        self,
        template: Task,
        instances: Iterable[Instance] | AsyncIterable[Instance],
        dry_run: bool,
        allow_empty: bool,
        tally: Tally,
    ) -> None:
        with closing(Names()) as names:

            def note(name: object) -> None:
                # Also of what is invalid: it may be what an instance that exists shall become.
                names.add(str(name))

            await self._each(
                template, instances, _Aligned, OnExisting.REPLACE, tally, dry_run, note
            )
            if not tally.result().handled and not allow_empty:
                raise ValueError(
                    f"The set of instances of '{printable(template)}' is empty, so all of them "
                    "would be removed: pass allow_empty=True if that is meant"
                )
            async for records in self._pages(template.groups(), EVERYTHING):
                surplus = names.missing(records)
                if dry_run:
                    tally.removed += len(surplus)
                    tally.batch_done()
                else:
                    await self.remove(_wishes(surplus, removed), tally, surplus)

    async def _each(
        self,
        template: Task,
        instances: Iterable[Instance] | AsyncIterable[Instance],
        kind: type[scheduling.Wish],
        on_existing: OnExisting,
        tally: Tally,
        dry_run: bool = False,
        note: Callable[[object], object] | None = None,
    ) -> None:
        """Makes a wish of each instance; prepares a batch while the one before is written."""
        writing: asyncio.Task[None] | None = None
        clock = self._requests.clock
        origin = self._worker.reporter.observers.origin()
        try:
            async for batch in _batches(instances, _name_of):
                wishes: list[scheduling.Wish] = []
                failed: list[tuple[Any, Exception]] = []
                for first in range(0, len(batch), SLICE):
                    # The batch before is on its way meanwhile, and so is all other work.
                    await realtime.sleep(0)
                    for instance in batch[first : first + SLICE]:
                        try:
                            if not isinstance(instance, Instance):
                                raise TypeError(
                                    f"An instance must be an Instance, not {instance!r}"
                                )
                            wishes.append(kind(template, instance, on_existing, clock, origin))
                        except (TypeError, ValueError) as error:
                            failed.append((_name_of(instance), error))
                if writing is not None:
                    await writing
                if note is not None:
                    for instance in batch:
                        note(_name_of(instance))
                for name, reason in failed:
                    tally.fail(name, reason)
                writing = asyncio.create_task(
                    self._settled(template, wishes, tally, dry_run), name="pyncette bulk"
                )
            if writing is not None:
                await writing
        except BaseException as error:
            if writing is not None and not writing.done():
                # If reading the instances has failed, the batch before is written all the same.
                await _ended(writing, cancel=not isinstance(error, Exception))
            raise

    async def _settled(
        self,
        template: Task,
        wishes: Sequence[Wish],
        tally: Tally,
        dry_run: bool,
    ) -> None:
        if dry_run:
            outcomes = await self._tried(wishes)
        else:
            outcomes = await self._changed(template, wishes, tally.mostly_new)
        tally.add_batch(wishes, outcomes)

    async def _changed(
        self, template: Task, wishes: Sequence[Wish], mostly_new: bool
    ) -> list[Outcome]:
        """Writes a batch. An at-most-once record is held only briefly, until it has advanced.

        Args:
            template: The template.
            wishes: The batch.
            mostly_new: Whether to try to create them. If not, they are read first: a write that is
                refused costs more than a read.
        """
        outcomes = await self._requests.change_all(
            wishes, repeat(None, len(wishes)) if mostly_new else None
        )
        if template.execution_mode is not ExecutionMode.AT_MOST_ONCE:
            return outcomes
        patience = realtime.monotonic() + scheduling.ADVANCE_PATIENCE_S
        while realtime.monotonic() < patience:
            locked = [
                index
                for index, outcome in enumerate(outcomes)
                if isinstance(outcome, TaskLockedException)
            ]
            if not locked:
                break
            with self._requests.clock.hold():
                await realtime.sleep(scheduling.ADVANCE_LOOK_S)
            again = [wishes[index] for index in locked]
            for index, outcome in zip(locked, await self._requests.change_all(again), strict=True):
                outcomes[index] = outcome
        return outcomes

    async def _tried(self, wishes: Sequence[Wish]) -> list[Outcome]:
        """What would be written."""
        found = await self._requests.find_all([(wish.group, wish.key) for wish in wishes])
        now = self._requests.clock.microseconds()
        outcomes: list[Outcome] = []
        for wish, current in zip(wishes, found, strict=True):
            try:
                change = wish.decide(current, now)
            except Exception as error:
                outcomes.append(error)
            else:
                outcomes.append(
                    None if change is None else write_after(wish.group, wish.key, current, change)
                )
        return outcomes


def _name_of(instance: Any) -> Any:
    return getattr(instance, "name", instance)


async def _ended(task: asyncio.Task[None], cancel: bool) -> None:
    """Waits for the end of a task, whatever it is."""
    try:
        if cancel:
            task.cancel()
        await asyncio.wait([task])
    finally:
        if not task.done():
            task.cancel()
        elif not task.cancelled():
            task.exception()  # the error before it is raised


async def _batches(
    items: Iterable[T] | AsyncIterable[T], name_of: Callable[[T], Any]
) -> AsyncIterator[list[T]]:
    """Yields the items in batches. No batch has a name twice."""
    collected: list[T] = []
    if isinstance(items, AsyncIterable):
        async for item in items:
            collected.append(item)
            if len(collected) == BATCH:
                for batch in _without_twins(collected, name_of):
                    yield batch
                collected = []
        for batch in _without_twins(collected, name_of):
            yield batch
    elif isinstance(items, (str, bytes)) or not isinstance(items, Iterable):
        raise TypeError(f"An iterable or an async iterable is needed, not {items!r}")
    else:
        remaining = iter(items)
        collected = []
        while part := list(islice(remaining, SLICE)):
            collected += part
            if len(collected) == BATCH:
                for batch in _without_twins(collected, name_of):
                    yield batch
                collected = []
            await realtime.sleep(0)
        for batch in _without_twins(collected, name_of):
            yield batch


def _without_twins(items: list[T], name_of: Callable[[T], Any]) -> Iterator[list[T]]:
    """Yields the items in as few batches as hold no name twice."""
    names = [name for item in items if isinstance(name := name_of(item), str)]
    if len(set(names)) == len(names):
        if items:
            yield items
        return
    batch: list[T] = []
    seen: set[str] = set()
    for item in items:
        name = name_of(item)
        if isinstance(name, str):
            if name in seen:
                yield batch
                batch, seen = [], set()
            seen.add(name)
        batch.append(item)
    yield batch


async def remove_one(requests: Writer, worker: Worker, group: str, key: str) -> None:
    """Removes an instance, wherever it lies."""

    def decide(current: Record | None, now: int) -> Change | None:
        if current is not None:
            worker.replaced(current.group, key)
        return removed(current, now)

    await change_record(requests, group, key, decide)


def removed(current: Record | None, now: int) -> Change | None:
    """Removes a record, if there is one."""
    return None if current is None else DELETE


def _wishes(records: Iterable[Record], decide: Decide, again: bool = True) -> list[Changing]:
    return [Changing(record.group, record.key, decide, again) for record in records]


class _Aligned(scheduling.Wish):
    """An instance as it is wanted: one that is so already is left alone."""

    __slots__ = ()

    def decide(self, current: Record | None, now: int) -> Change | None:
        """Returns what makes it so; None: it is so, or will be after its run."""
        if current is None:
            return super().decide(current, now)
        schedule, args = dumps(self.wanted.schedule), self.wanted.args
        with reading_record(current):
            try:
                pending = load_progress(current.progress).pending
            except UnreadableRecord:
                return super().decide(current, now)
        if pending is not None and pending.schedule is not None and pending.args is not None:
            if pending.args == args and _same_schedule(pending.schedule, schedule):
                return None
        elif current.args == args and _same_schedule(current.schedule, schedule):
            return None
        elif _same_but_for_defaults(self, current, schedule):
            if rules.alive(current, now):
                return None
            # Only what is its own, and what its template's, changes.
            _, _, due_at, _, token, state, attempts, stored, _, progress = current
            text = stored if _same_schedule(stored, schedule) else schedule
            return Put(due_at, state, token, attempts, text, args, progress)
        return super().decide(current, now)


def _same_schedule(stored: str, wanted: str) -> bool:
    """Returns whether a stored schedule is the wanted one; a default is, whatever it was."""
    if wanted.startswith(INHERITED_MARK):
        return stored.startswith(INHERITED_MARK)
    return stored == wanted


def _same_but_for_defaults(wish: scheduling.Wish, current: Record, schedule: str) -> bool:
    """Returns whether a record has the wanted schedule and arguments, but others are its own."""
    if not _same_schedule(current.schedule, schedule) and current.schedule.removeprefix(
        INHERITED_MARK
    ) != schedule.removeprefix(INHERITED_MARK):
        return False
    template = wish.template
    wanted = template.from_parts(current.key, None, wish.wanted.args)
    try:
        return template.from_record(current).extra_args == wanted.extra_args
    except ValueError:
        return False
