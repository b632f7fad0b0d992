"""Pause, resume and trigger: a static task, an instance, a partition, or a whole template.

A single record is changed itself. A template or a partition is paused by one control record, which
all workers read within a poll interval; its instances stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Final, NamedTuple

from pyncette import chance
from pyncette.acting import actor
from pyncette.bulk import BulkFailure, BulkResult, OnFailure, Progress
from pyncette.calls.bulk import Bulk, Tally
from pyncette.calls.identity import check_declared, identity_of
from pyncette.calls.listing import state_of, tell_of_lease
from pyncette.calls.requests import Requests
from pyncette.calls.telling import in_words
from pyncette.calls.unreadable import reading_record
from pyncette.calls.writing import Writer, change_record
from pyncette.clock import from_microseconds
from pyncette.engine import rules
from pyncette.engine.rules import Wanted
from pyncette.engine.steering import (
    GroupPause,
    covering,
    pause_identity,
    pause_record,
    read_pause,
    read_pauses,
)
from pyncette.engine.worker import Worker
from pyncette.errors import (
    TaskNotFoundError,
    TaskPausedError,
    describe,
    plural,
    printable,
)
from pyncette.events import Action
from pyncette.model import PauseState, TaskState, Where
from pyncette.schedule import instant_of
from pyncette.store import Write
from pyncette.store.record import (
    ABSENT,
    ANY,
    CONTROL_GROUP,
    DELETE,
    LATEST_INSTANT,
    Change,
    Patch,
    Pause,
    Put,
    Reading,
    Record,
    State,
    template_of,
)
from pyncette.task import Task

logger = logging.getLogger(__name__)

REASON_CHARACTERS_MAX: Final = 500

ERRORS_LOGGED_MAX: Final = 10

Rule = Callable[[Reading, int], Change | None]


class Steering:
    """The calls; see ``PyncetteContext`` for what they promise."""

    def __init__(self, requests: Requests, bulk: Bulk, worker: Worker) -> None:
        """Steers the tasks of a worker, and of all other workers on its store."""
        self._requests = requests
        self._bulk = bulk
        self._worker = worker

    async def pause(
        self, task: Task, name: str | None, until: datetime | None, reason: str | None
    ) -> None:
        self._requests.check_declared(task)
        now = await self._requests.now()
        pause = self._checked(until, reason, now)
        if task.dynamic and name is None:
            await self._change_control(Write(*pause_identity(task.group), pause_record(pause), ANY))
            self._requests.telling.one("pause", task, None, pause=pause, count=None)
        elif await _change(
            self._requests, task, name, lambda reading, now: rules.paused(reading, now, pause)
        ):
            self._requests.telling.one("pause", task, name, pause=pause)

    async def resume(self, task: Task, name: str | None) -> None:
        self._requests.check_declared(task)
        if task.dynamic and name is None:
            await self._change_control(Write(*pause_identity(task.group), DELETE, ANY))
            self._requests.telling.one("resume", task, None, count=None)
        elif await _change(self._requests, task, name, rules.resumed, creates=False):
            self._requests.telling.one("resume", task, name)

    async def trigger(self, task: Task, name: str | None) -> int:
        self._requests.check_declared(task)
        if task.dynamic and name is None:
            await _refuse_if_paused(self._requests, task, name)
            return await self._trigger_all(task)
        return (await self.trigger_one(task, name)).added

    async def trigger_one(self, task: Task, name: str | None) -> Triggered:
        return await trigger_one(self._requests, task, name)

    async def pauses(self) -> list[PauseState]:
        now = await self._requests.now()
        found = await read_pauses(self._requests.store)
        return [_shown(pause) for pause in found if not pause.pause.ended(now)]

    # One record.

    def _checked(self, until: datetime | None, reason: str | None, now: int) -> Pause:
        """Returns a pause.

        Raises:
            TypeError: A value is of a wrong type.
            ValueError: The end is not in the future, or the reason is too long.
        """
        if reason is not None and not isinstance(reason, str):
            raise TypeError(f"reason must be a string, not {reason!r}")
        if reason is not None and len(reason) > REASON_CHARACTERS_MAX:
            raise ValueError(
                f"reason has {len(reason):,} characters, at most {REASON_CHARACTERS_MAX} are kept"
            )
        if until is None:
            return Pause(None, reason, now, actor())
        if not isinstance(until, datetime):
            raise TypeError(f"until must be a datetime, not {until!r}")
        instant = instant_of(until)
        if instant <= now:
            raise ValueError(f"until must lie in the future, not {until.isoformat()}")
        if instant > LATEST_INSTANT:
            raise ValueError(f"until must lie before the year 2255, not {until.isoformat()}")
        return Pause(instant, reason, now, actor())

    # A whole template.

    async def _change_control(self, write: Write) -> None:
        self._requests.notify(CONTROL_GROUP)
        await self._requests.submit(write)
        self._worker.wake_groups((CONTROL_GROUP,))

    async def _trigger_all(self, task: Task) -> int:
        failed = 0

        def warn(failure: BulkFailure) -> None:
            nonlocal failed
            failed += 1
            if failed <= ERRORS_LOGGED_MAX:
                logger.warning(
                    "%s of %s was not triggered: %s",
                    printable(failure.name),
                    printable(task),
                    describe(failure.error),
                )

        tally = Tally(None, warn)
        await self._change_each("trigger", task, None, rules.triggered, tally, repeatable=False)
        if failed:
            logger.warning(
                "%s of %s could not be triggered", plural(failed, "instance"), printable(task)
            )
        return tally.changed

    # Some instances of it, each by itself.

    async def pause_where(
        self,
        task: Task,
        where: Where,
        until: datetime | None,
        reason: str | None,
        progress: Progress | None,
        on_failure: OnFailure | None,
    ) -> BulkResult:
        tally = _tally(where, progress, on_failure)
        pause = self._checked(until, reason, await self._requests.now())
        await self._change_each(
            "pause",
            task,
            where,
            lambda reading, now: rules.paused(reading, now, pause),
            tally,
            pause,
        )
        return tally.result()

    async def resume_where(
        self, task: Task, where: Where, progress: Progress | None, on_failure: OnFailure | None
    ) -> BulkResult:
        tally = _tally(where, progress, on_failure)
        await self._change_each("resume", task, where, rules.resumed, tally)
        return tally.result()

    async def trigger_where(
        self, task: Task, where: Where, progress: Progress | None, on_failure: OnFailure | None
    ) -> BulkResult:
        tally = _tally(where, progress, on_failure)
        self._requests.check_declared(task)
        if task.dynamic:
            await _refuse_if_paused(self._requests, task, None)
        await self._change_each("trigger", task, where, rules.triggered, tally, repeatable=False)
        return tally.result()

    async def _change_each(
        self,
        action: Action,
        task: Task,
        where: Where | None,
        rule: Rule,
        tally: Tally,
        pause: Pause | None = None,
        repeatable: bool = True,
    ) -> None:
        with self._requests.telling.many(action, task, tally, in_words(where), pause=pause):
            await self._bulk.change_where(
                task,
                where,
                lambda current, now: _ruled(task, current, rule, now),
                tally,
                repeatable,
            )


def _tally(where: Where, progress: Progress | None, on_failure: OnFailure | None) -> Tally:
    if not isinstance(where, Where):
        raise TypeError(f"where must be a Where, not {where!r}")
    return Tally(progress, on_failure)


class Triggered(NamedTuple):
    """What came of triggering one static task or instance.

    Attributes:
        added: 1, or 0 if that was requested already.
        running: What was running, and runs once more later; None: it runs now.
    """

    added: int
    running: TaskState | None


async def trigger_one(requests: Writer, task: Task, name: str | None) -> Triggered:
    """Triggers a static task or an instance.

    Raises:
        TaskNotFoundError: There is no such instance.
        TaskPausedError: Its template, or its partition, is paused.
        TaskUnreadableError: The record cannot be read.
        ValueError: The name of the instance is missing.
    """
    check_declared(task)
    if task.dynamic:
        await _refuse_if_paused(requests, task, name)
    elif task.parent_task is not None:
        await _refuse_if_paused(requests, task.parent_task, task.name)
    found: Record | None = None

    def rule(reading: Reading, now: int) -> Change | None:
        nonlocal found
        found = reading.record
        return rules.triggered(reading, now)

    done = await _change(requests, task, name, rule)
    if done:
        requests.telling.one("trigger", task, name)
    if found is None or found.state != State.RUNNING:
        return Triggered(int(done), None)
    now = requests.clock.microseconds()
    tell_of_lease(task, found, now)
    return Triggered(int(done), state_of(task, found, now))


async def _change(
    requests: Writer, task: Task, name: str | None, rule: Rule, creates: bool = True
) -> bool:
    """Changes one record by a rule; returns whether it was changed.

    Raises:
        TaskNotFoundError: There is no such instance.
        TaskUnreadableError: The record cannot be read.
    """
    group, key = identity_of(task, name)
    static = not task.dynamic and task.parent_task is None

    def decide(current: Record | None, now: int) -> Change | None:
        if current is not None:
            return _ruled(task, current, rule, now)
        if not static:
            raise TaskNotFoundError(f"{task}" if name is None else f"{task}:{name}")
        if not creates:
            return None
        # No worker has started with it yet: the record is created as a worker would.
        return _created(task, rule, now)

    return await change_record(requests, group, key, decide) is not None


async def _refuse_if_paused(requests: Writer, task: Task, name: str | None) -> None:
    """Refuses to trigger what would wait for the end of a pause.

    Raises:
        TaskPausedError: The template or the partition is paused.
    """
    group = task.group if name is None else task.identify(name)
    now = await requests.now()
    identities = [pause_identity(name) for name in covering(group)]
    await requests.settled(identities)
    found = await requests.store.get(identities)
    for record in found:
        if record is None:
            continue
        pause = read_pause(record)
        if not pause.pause.ended(now):
            state = _shown(pause)
            raise TaskPausedError(state.name, state.until, state.reason)


def _ruled(task: Task, current: Record, rule: Rule, now: int) -> Change | None:
    with reading_record(current):
        return rule(task.reading_of(current), now)


def _created(task: Task, rule: Rule, now: int) -> Change:
    """A static task's record as it is created, with a rule applied to it."""
    wanted = Wanted(task.plan, "", chance.new_id(4), (task.group, task.key))
    put = rules.created(wanted, now)
    record = Record(
        task.group,
        task.key,
        put.due_at,
        ABSENT,
        put.token,
        put.state,
        put.unfinished_attempts,
        put.schedule,
        put.args,
        put.progress,
    )
    change = rule(task.reading_of(record), now)
    if isinstance(change, Patch):
        due_at, state, unfinished_attempts, progress = change
        return put._replace(
            due_at=due_at,
            state=state,
            unfinished_attempts=unfinished_attempts,
            progress=put.progress if progress is None else progress,
        )
    return change if isinstance(change, Put) else put


def _shown(pause: GroupPause) -> PauseState:
    name, partition = template_of(pause.group)
    return PauseState(
        name,
        partition,
        None if pause.pause.since is None else from_microseconds(pause.pause.since),
        None if pause.pause.until is None else from_microseconds(pause.pause.until),
        pause.pause.reason,
        pause.pause.by,
    )
