"""The context of an open app: it runs the loop, and creates, changes and lists instances.

One app may be opened several times at once: all state that changes at run time is kept here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final, NamedTuple

from pyncette import chance
from pyncette.clock import Clock, from_microseconds, realtime
from pyncette.engine import rules
from pyncette.engine.background import Background
from pyncette.engine.execution import RunContext
from pyncette.engine.rules import Wanted
from pyncette.engine.worker import Executor, Hooks, Settings, Worker
from pyncette.engine.writes import Call, Waker, WriteQueue
from pyncette.errors import (
    PyncetteException,
    StoreUnavailableError,
    TaskLockedException,
    describe,
    printable,
)
from pyncette.model import (
    Context,
    ContinuationToken,
    ExecutionMode,
    Json,
    ListTasksResponse,
    MiddlewareFunc,
    TaskState,
)
from pyncette.options import at_least_one
from pyncette.store import EVERYTHING, Applied, Refused, Result, Write, expectation_holds
from pyncette.store.deadline import DeadlineStore
from pyncette.store.record import (
    ABSENT,
    ANY,
    DELETE,
    LATEST_INSTANT,
    Record,
    State,
    load_progress,
)
from pyncette.task import Task

logger = logging.getLogger(__name__)

CALLS_MAX: Final = 10_000
"""Maximum calls of users that wait for the store; more are refused at once."""

CLOSING_PATIENCE_S: Final = 10.0
"""How long closing retries the writes that are left, if the store does not answer."""

CLOSING_WORD_AFTER_S: Final = 10.0
"""When closing first logs which tasks it waits for; it repeats this with growing pauses."""

CLOSING_WORD_AFTER_BY_HAND_S: Final = 1.0
"""The same if a test moves the clock: a task that sleeps on it may sleep for ever."""

CLOSING_WORD_PAUSE_MAX_S: Final = 600.0

CLOSING_PATIENCE_BY_HAND_S: Final = 3.0
"""When tasks that sleep on such a clock are cancelled, and closing fails."""

LOCKED_PAUSE_INITIAL_S: Final = 0.02
LOCKED_PAUSE_MAX_S: Final = 0.5
"""Delay between retries of an update to a record that an open transaction holds."""

ADVANCE_PATIENCE_S: Final = 1.0
ADVANCE_LOOK_S: Final = 0.005

PAGE_LIMIT_MAX: Final = 1 << 30
"""The largest limit that every store accepts; a page may always be shorter than its limit."""


class AppParts(NamedTuple):
    """The parts of an app that each of its contexts gets."""

    repository_factory: Callable[..., Any]
    executor_cls: Callable[..., Any]
    poll_interval: timedelta
    configuration: Mapping[str, Any]
    clock: Clock
    tasks: Sequence[Task]
    fixtures: Sequence[tuple[str, Callable[..., Any]]]
    middlewares: Sequence[MiddlewareFunc]
    hooks: Hooks


class PyncetteContext:
    """An open app: schedules instances, returns their state, and runs the loop.

    Attributes:
        clock: The app's clock. The machine's own clock is corrected by the clock of the store.
    """

    def __init__(
        self,
        parts: AppParts,
        store: DeadlineStore,
        executor: Executor,
        clock: Clock,
        settings: Settings,
        background: Background,
    ) -> None:
        self.clock = clock
        self._store = store
        self._settings = settings
        self._names = {name for name, _ in parts.fixtures}
        self._context_class = type("Context", (RunContext,), {"app_context": self})
        self._waker = Waker(
            lambda groups: store.write([], clock.microseconds(), groups), background
        )
        self._calls = WriteQueue(self._write_calls, clock.microseconds, background)
        self._worker = Worker(
            store,
            executor,
            clock,
            settings,
            lambda: parts.tasks,
            parts.middlewares,
            self._context_class,
            parts.hooks,
            background,
        )
        self._started = False
        self._cancelled = False
        self._closing = False

    @property
    def last_tick(self) -> datetime:
        """When the loop last reached the store (aware, UTC); at first, when this was opened."""
        return from_microseconds(self._worker.loop.last_tick)

    @property
    def poll_interval(self) -> timedelta:
        """How often the worker polls for changes it was not notified of.

        The loop also wakes whenever a run is due.
        """
        return timedelta(microseconds=self._settings.poll_interval)

    # The loop.

    async def run(self) -> None:
        """Runs tasks until ``shutdown``. Does not wait for tasks that are still running then.

        Raises:
            PyncetteException: ``run`` was called before on this context.
        """
        if self._started:
            raise PyncetteException("This context runs already, or has run: open another one")
        if self._worker.stopping:
            return
        self._started = True
        try:
            await self._worker.loop.run()
        except asyncio.CancelledError:
            self._cancelled = True
            if self._closing:
                self._worker.dispatcher.cancel()
            raise

    def shutdown(self) -> None:
        """Stops claiming. Running tasks continue; closing the context waits for them.

        May also be called from a signal handler and from another thread.
        """
        self._worker.shutdown()

    # Instances.

    async def schedule_task(
        self,
        task: Task,
        instance_name: str,
        force: bool = False,
        *,
        schedule: str | None = None,
        interval: timedelta | float | None = None,
        execute_at: datetime | None = None,
        timezone: str | tzinfo | None = None,
        **args: Json,
    ) -> Task:
        """Creates an instance of a dynamic task, or updates the one of this name.

        If the instance exists, its options and arguments are replaced, and the sooner of its old
        and its new next time is kept, so that repeated calls cannot postpone a run for ever.

        Args:
            task: The template.
            instance_name: The name of the instance, unique in the template.
            force: Replace the instance even if it is running; its execution then loses its lease.
            schedule: Cron expression, see ``pyncette.schedule.Cron``.
            interval: Distance between two runs; the first is one interval after the record is
                created.
            execute_at: The instant of the only run; if it is in the past, the task runs at once.
            timezone: The time zone of ``schedule``.
            args: Arguments of the task: any other keyword, JSON-serialisable.

        Returns:
            The instance.

        Raises:
            TaskLockedException: The instance is running, or has failed and keeps its lease (see
                ``FailureMode.NONE``), and ``force`` is not set.
            ValueError: An option or argument is invalid.
            StoreError: The store failed; it is unknown whether the instance was written.
        """
        _check_declared(task)
        if "name" in args:
            raise TypeError("name cannot be an argument of a task: it is the name of the instance")
        instance = task.instantiate(
            instance_name,
            schedule=schedule,
            interval=interval,
            execute_at=execute_at,
            timezone=timezone,
            **args,
        )
        now = self.clock.microseconds()
        wanted = Wanted(instance.plan, instance.args_text, chance.new_id(4))
        fresh = rules.created(wanted, now)
        if fresh.due_at is None:
            raise ValueError(f"Task '{instance}' would never run: {instance.plan!r}")
        write = Write(instance.group, instance.key, fresh, ANY if force else ABSENT)
        if force:
            self._worker.replaced(instance.group, instance.key)
        started = realtime.monotonic()
        patience = started + ADVANCE_PATIENCE_S
        pause = LOCKED_PAUSE_INITIAL_S
        while isinstance(result := await self._submit(write), Refused):
            if expectation_holds(write, result.current):
                if realtime.monotonic() >= started + self._store.deadline_s:
                    raise StoreUnavailableError(
                        f"The record of {printable(instance)} is locked by an open transaction"
                    )
                with self.clock.hold():
                    await realtime.sleep(pause)
                pause = min(2 * pause, LOCKED_PAUSE_MAX_S)
            write = await self._merge(instance, wanted, result.current, patience)
        self._worker.wrote(write)
        return instance

    async def _merge(
        self, instance: Task, wanted: Wanted, current: Record | None, patience: float
    ) -> Write:
        """Returns the write that updates the current record."""
        while True:
            now = self.clock.microseconds()
            if current is None:
                fresh = rules.created(wanted, now)
                return Write(instance.group, instance.key, fresh, ABSENT)
            change = rules.merged(current, wanted, now)
            if change is not None:
                # If the clock stands still, a record that was removed and created again has the
                # same version, but another token.
                identity = (instance.group, instance.key)
                return Write(*identity, change, current.version, current.token)
            # An at-most-once record is held only briefly, until it has advanced.
            if (
                instance.execution_mode is not ExecutionMode.AT_MOST_ONCE
                or realtime.monotonic() >= patience
            ):
                raise TaskLockedException(
                    instance,
                    None if current.due_at is None else from_microseconds(current.due_at),
                    rules.failed_under_lease(current),
                )
            with self.clock.hold():
                await realtime.sleep(ADVANCE_LOOK_S)
            [current] = await self._store.get([(instance.group, instance.key)])

    async def unschedule_task(self, task: Task, instance_name: str | None = None) -> None:
        """Removes an instance, even if it is running. Does nothing if the instance does not exist.

        Args:
            task: The template, or the instance itself.
            instance_name: The name of the instance, if ``task`` is a template.

        Raises:
            ValueError: The name of the instance is missing, or the task is static.
        """
        _check_declared(task)
        if not task.dynamic and task.parent_task is None:
            raise ValueError(f"Cannot unschedule '{task}': the task is not dynamic")
        group, key = _identity(task, instance_name)
        self._worker.replaced(group, key)
        await self._submit(Write(group, key, DELETE, ANY))

    async def get_task(self, task: Task, instance_name: str | None = None) -> TaskState | None:
        """Returns the state of a static task or of an instance; None if the store has no record.

        Args:
            task: The static task, the template, or the instance.
            instance_name: The name of the instance, if ``task`` is a template.

        Raises:
            ValueError: A name was given, but the task is not a template.
        """
        _check_declared(task)
        if task.dynamic and instance_name is None:
            return None
        group, key = _identity(task, instance_name)
        [record] = await self._store.get([(group, key)])
        return None if record is None else _state(task, record)

    async def list_tasks(
        self,
        task: Task,
        limit: int | None = None,
        continuation_token: ContinuationToken | None = None,
    ) -> ListTasksResponse:
        """Returns a page of the instances of a template, in an order that writes do not change.

        Args:
            task: The template.
            limit: Maximum number of instances; default is ``batch_size``.
            continuation_token: The token of the page before.

        Raises:
            ValueError: The task is not a template, or an argument is invalid.
        """
        _check_declared(task)
        if not task.dynamic:
            raise ValueError("Cannot list instances of non-dynamic task")
        limit = (
            self._settings.batch_size
            if limit is None
            else min(at_least_one("limit", limit), PAGE_LIMIT_MAX)
        )
        groups = task.groups()
        group, cursor = _go_on(groups, continuation_token)
        page = await self._store.scan(groups[group], EVERYTHING, cursor, limit)
        token = None
        if page.cursor is not None:
            token = ContinuationToken(f"{group}:{page.cursor}")
        elif group + 1 < len(groups):
            token = ContinuationToken(f"{group + 1}:")
        return ListTasksResponse([_state(task, record) for record in page.records], token)

    def add_to_context(self, name: str, value: Any) -> None:
        """Adds a value as an attribute to the context of every execution.

        Raises:
            ValueError: The name is reserved or in use.
        """
        check_context_name(name)
        if name in self._names:
            raise ValueError(f"The context has a '{name}' already")
        self._names.add(name)
        self._set_item(name, value)

    def _set_item(self, name: str, value: Any) -> None:
        # As an attribute of a class, a function would become a method.
        bound = staticmethod(value) if hasattr(type(value), "__get__") else value
        setattr(self._context_class, name, bound)

    # Writing for users.

    async def _submit(self, write: Write) -> Applied | Refused:
        """Makes one write, together with those of other callers.

        Raises:
            StoreUnavailableError: The store did not answer within the deadline of its calls,
                counted from now; or too many calls are waiting.
        """
        if len(self._calls) >= CALLS_MAX:
            raise StoreUnavailableError(
                f"{CALLS_MAX:,} calls wait for the store already: this one was not made"
            )
        call = Call(write)
        self._calls.add(call)
        deadline_s = self._store.deadline_s
        try:
            async with realtime.timeout(deadline_s) as deadline:
                return await call.answer
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise StoreUnavailableError(
                f"The store did not answer within {deadline_s:g} s: "
                + ("what became of the call is unknown" if call.sent else "the call was not made")
            ) from error

    async def _write_calls(self, batch: Sequence[Write], now: int) -> list[Result]:
        soon = now + self._settings.poll_interval
        for write in batch:
            due_at = write.change.due_at
            if due_at is not None and due_at < soon:
                self._waker.add(write.group)
        return await self._store.write(batch, now, self._waker.take())

    # Closing, in this order; see ``pyncette.opening``.

    async def _end_runs(self, queued: bool) -> None:
        """Stops claiming, and waits until no task runs any more.

        Args:
            queued: Whether the executor has been left. Before, what it has taken on and not begun
                is not waited for: it may begin that only when it is left. Afterwards, nothing
                begins any more, and it is given back.

        Raises:
            RuntimeError: Tasks sleep on a clock that a test moves, and the clock does not move.
        """
        self._closing = True
        worker = self._worker
        worker.shutdown()
        if self._cancelled:
            worker.dispatcher.cancel()
        if queued:
            worker.dispatcher.withdraw_queued()
        by_hand = self.clock.moves_by_hand()
        pause_s = CLOSING_WORD_AFTER_BY_HAND_S if by_hand else CLOSING_WORD_AFTER_S
        waited_s = 0.0
        while not await self._rests_within(pause_s, queued):
            waited_s += pause_s
            if by_hand or waited_s >= CLOSING_PATIENCE_S:
                worker.dispatcher.cancel_waiting()
                if await self._rests_within(0.0, queued):
                    break
            names = sorted({execution.label for execution in worker.dispatcher.executions})
            message = f"Closing waits for running executions: {', '.join(names[:10])}"
            if by_hand:
                message += (
                    ". The clock of this app is moved by hand: what sleeps on it ends only when "
                    "it is moved. Move it before you leave the context, or cancel run() first."
                )
                if waited_s >= CLOSING_PATIENCE_BY_HAND_S:
                    worker.dispatcher.cancel()
                    await worker.at_rest(queued)
                    raise RuntimeError(message)
            logger.warning(message)
            pause_s = min(2 * pause_s, CLOSING_WORD_PAUSE_MAX_S)

    async def _rests_within(self, seconds: float, queued: bool) -> bool:
        try:
            async with realtime.timeout(seconds):
                await self._worker.at_rest(queued)
        except TimeoutError:
            return False
        return True

    def _give_up_runs(self) -> None:
        """Closing was cancelled: cancels running tasks, and releases their leases."""
        self._worker.dispatcher.cancel(give_back=True)

    async def _write_what_is_left(self) -> None:
        started = realtime.monotonic()
        await self._worker.writes.close(CLOSING_PATIENCE_S)
        left_s = CLOSING_PATIENCE_S - (realtime.monotonic() - started)
        await self._calls.close(max(left_s, 0.0))
        await self._waker.close()


_RESERVED: Final = frozenset(
    {*dir(RunContext), *Context.__annotations__, *RunContext.__annotations__}
)


def check_context_name(name: str) -> None:
    """Refuses names that the context of an execution uses itself.

    Raises:
        ValueError: The name is one of these, or is not a name.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"{name!r} cannot be the name of an attribute of the context")
    if name in _RESERVED:
        raise ValueError(f"The name '{name}' is reserved: the context has it already")


def _check_declared(task: object) -> None:
    if not isinstance(task, Task):
        raise TypeError(f"A task is what its decorator returned, or an instance, not {task!r}")


def _identity(task: Task, instance_name: str | None) -> tuple[str, str]:
    if not task.dynamic:
        if instance_name is not None:
            raise ValueError(
                "instance_name provided but task is not dynamic"
                if task.parent_task is None
                else "Cannot provide instance_name with already-instantiated dynamic task"
            )
        return task.group, task.key
    if instance_name is None or instance_name == "":
        raise ValueError("instance name must be provided")
    return task.identify(instance_name), instance_name


def _state(task: Task, record: Record) -> TaskState:
    reason: str | None = None
    try:
        progress = load_progress(record.progress)
    except ValueError as error:
        occurrence = record.due_at if record.state == State.SCHEDULED else None
        reason = describe(error)
    else:
        occurrence, reason = progress.occurrence, progress.error
    if record.state == State.PARKED:
        occurrence = None
    failed = rules.failed_under_lease(record)
    running = record.state == State.RUNNING and not failed
    return TaskState(
        task.template.from_record(record) if task.template.dynamic else task,
        _instant_or_none(occurrence),
        _instant_or_none(record.due_at) if running else None,
        record.token.rsplit(":", 2)[0] if running and record.token else None,
        # Some stores return a member of an enum, others a plain string.
        State.RETRYING.value if failed else str(record.state),
        reason,
    )


def _instant_or_none(instant: int | None) -> datetime | None:
    # A row that was edited by hand may hold an instant that a datetime cannot represent.
    return None if instant is None or abs(instant) > LATEST_INSTANT else from_microseconds(instant)


def _go_on(groups: Sequence[str], token: ContinuationToken | None) -> tuple[int, str | None]:
    if token is None:
        return 0, None
    number, divided, cursor = str(token).partition(":")
    if not divided or not number.isdecimal() or int(number) >= len(groups):
        raise ValueError(f"Not a continuation token of this task: {token!r}")
    return int(number), cursor or None
