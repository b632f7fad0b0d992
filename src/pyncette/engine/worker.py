"""One worker: the state that its members share, and the events that they report.

The loop decides when to claim, the dispatcher turns records into executions, and executions add
their outcomes to the write queue. The members know each other only through the worker: the worker
calls their methods, and they report events through the few methods here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

from pyncette.clock import Clock, StoreClock, from_microseconds
from pyncette.engine.alarm import Alarm
from pyncette.engine.background import Background
from pyncette.engine.backlog import Backlogs, Waits
from pyncette.engine.bodies import Bodies
from pyncette.engine.dispatch import Dispatcher
from pyncette.engine.execution import Execution, RunContext
from pyncette.engine.heartbeats import Heartbeats
from pyncette.engine.loop import Loop
from pyncette.engine.membership import Membership
from pyncette.engine.partitions import Partitions
from pyncette.engine.polling import Sources
from pyncette.engine.run_events import about_task
from pyncette.engine.steering import Pauses
from pyncette.engine.writes import WriteQueue
from pyncette.errors import printable
from pyncette.events import Behind, GroupPaused, GroupResumed, Waiting
from pyncette.model import Heartbeat, MiddlewareFunc
from pyncette.observers import Reporter
from pyncette.store import Identity, Write
from pyncette.store.deadline import DeadlineStore
from pyncette.store.record import CONTROL_GROUP, Pause, template_of
from pyncette.task import Task


class Executor(Protocol):
    """Runs executions."""

    async def spawn_task(self, awaitable: Any, /) -> None:
        """Returns once the work has started."""


class Settings(NamedTuple):
    """The options of a worker, which do not change.

    Attributes:
        worker_name: The name of the worker.
        poll_interval: Microseconds between two polls of all sources.
        batch_size: Maximum records in one claim.
        concurrency_limit: Maximum executions at once.
        heartbeat: The automatic heartbeats of tasks that do not say; None: they have none.
        thread_limit: Maximum plain functions at once; None: as many as there are slots.
        raise_task_errors: Whether errors of bodies are raised in the program that runs the app.
        tags: What the worker has, for tasks that ask for it.
    """

    worker_name: str
    poll_interval: int
    batch_size: int
    concurrency_limit: int
    heartbeat: Heartbeat | None = None
    thread_limit: int | None = None
    raise_task_errors: bool = False
    tags: frozenset[str] = frozenset()


class Worker:
    """One worker.

    Attributes:
        store: The store of the records.
        executor: Runs executions.
        clock: Decides which records are due.
        settings: See ``Settings``.
        declared: Returns the tasks that are declared now.
        middlewares: Wrapped around each task, the first outermost.
        context_class: The app's class of contexts.
        reporter: Tells the handlers of events what happens.
        background: Starts internal tasks.
        sources: The sources to claim from, and when to claim next.
        partitions: Over how many partitions templates are spread.
        pauses: The groups from which nothing is claimed.
        alarm: The loop waits on it.
        writes: Writes outcomes and heartbeats to the store.
        backlogs: Detects tasks that are behind their schedule.
        waits: How long records wait for a worker.
        heartbeats: Sends automatic heartbeats.
        dispatcher: Turns records into executions.
        bodies: The bodies that run, and the errors of those that have failed.
        membership: Says in the store that this worker is alive.
        loop: Waits, claims, dispatches.
    """

    def __init__(
        self,
        store: DeadlineStore,
        executor: Executor,
        clock: Clock,
        settings: Settings,
        tasks: Callable[[], Sequence[Task]],
        middlewares: Sequence[MiddlewareFunc],
        context_class: type[RunContext],
        reporter: Reporter,
        background: Background,
    ) -> None:
        """Creates a worker that does nothing yet."""
        self.store = store
        self.executor = executor
        self.clock = clock
        self.settings = settings
        self.declared = tasks
        self.middlewares = middlewares
        self.context_class = context_class
        self.reporter = reporter
        self.background = background
        self.stopping = False
        self.sources = Sources()
        self.partitions = Partitions(store, clock, tasks)
        self.pauses = Pauses(self.partitions, clock, self._pause_changed)
        self.alarm = Alarm(clock, background)
        self.writes = WriteQueue(store.write, clock.microseconds, background)
        self.writes.on_written = self._written
        self.backlogs = Backlogs(clock, self._behind)
        self.waits = Waits(self._waiting)
        self.heartbeats = Heartbeats(self)
        self.bodies = Bodies(self, settings.raise_task_errors)
        self.dispatcher = Dispatcher(self)
        self.membership = Membership(self)
        self.loop = Loop(self)
        self.partitions.on_change = self.loop.sources_changed
        self._changed = asyncio.Event()

    def tasks(self) -> list[Task]:
        """Returns the tasks that are declared now, but for those that need other tags."""
        return [task for task in self.declared() if self.may_run(task)]

    def may_run(self, task: Task) -> bool:
        """Returns whether the worker has the tags that a task needs."""
        return task.options.tags <= self.settings.tags

    async def measure_clock(self) -> bool:
        """Measures the store's clock; returns whether it has one.

        Raises:
            StoreError: The store failed.
        """
        clock = self.clock
        if not isinstance(clock, StoreClock):
            return False
        return await clock.measure(self.store.now, lambda: self.store.now_uncertainty)

    # Events that the members report.

    def wake(self, group: str, key: str, due_at: int) -> None:
        """A record comes due at this instant, perhaps sooner than the last claim has told."""
        source = self.sources.find(group, key)
        if source is not None and self.sources.ask_by(source, due_at):
            self.alarm.ring()

    def wake_groups(self, groups: Iterable[str] | None) -> None:
        """Records may have changed in these groups; None: in any group."""
        now = self.clock.microseconds()
        for source in self.sources.all():
            if groups is None or source.group in groups:
                self.sources.ask_by(source, now)
        if groups is not None and CONTROL_GROUP in groups:
            self.loop.look_at_pauses()
        self.alarm.ring()

    def wrote(self, write: Write) -> None:
        """A write of this worker was applied: its record may come due soon."""
        due_at = write.change.due_at
        if due_at is not None:
            self.wake(write.group, write.key, due_at)

    def replaced(self, group: str, key: str) -> None:
        """A caller replaces or removes a record: if its own run is the caller, it is told."""
        caller = asyncio.current_task()
        for execution in self.dispatcher.executions:
            if execution.runner is caller and execution.reading.record[:2] == (group, key):
                execution.rarely().replaced_by_body = True

    def execution_ended(self, execution: Execution) -> None:
        """An execution needs its slot no more."""
        dispatcher = self.dispatcher
        dispatcher.executions.pop(execution, None)
        if self.sources.held:
            for task in dispatcher.wait_for(execution.declared, self.sources.held):
                self.sources.release(task, self.clock.microseconds())
        if execution is dispatcher.suspect:
            dispatcher.suspect = None
            self.wake_groups(None)  # suspects that waited for it may be claimed now
        if self.stopping:
            self._changed.set()
        if not self.alarm.rung:
            self.alarm.ring()

    def _behind(self, task: Task, identity: Identity, count: int, age: int) -> None:
        about = about_task(self.reporter.here(), task, identity[1], printable(task))
        self.reporter.tell(Behind(**about, count=count, age=timedelta(microseconds=age)))

    def _pause_changed(self, pause: Pause | None, group: str) -> None:
        name, partition = template_of(group)
        here = self.reporter.here()
        label = printable(name if partition is None else f"{name} partition {partition}")
        if pause is None:
            self.reporter.tell(GroupResumed(**here, task=name, partition=partition, label=label))
            return
        until = None if pause.until is None else from_microseconds(pause.until)
        self.reporter.tell(
            GroupPaused(
                **here,
                task=name,
                partition=partition,
                label=label,
                until=until,
                reason=pause.reason,
                by=pause.by,
            )
        )

    def _waiting(self, task: Task, age: int) -> None:
        event = Waiting(**self.reporter.here(), task=task.name, age=timedelta(microseconds=age))
        self.reporter.observers.tell_detail(event)

    def _written(self) -> None:
        if self.loop.starved:
            self.alarm.ring()

    # Ending.

    def shutdown(self) -> None:
        """Stops claiming, and lets the loop return. Safe in signal handlers and threads."""
        self.stopping = True
        self.background.call(self.alarm.ring)

    def returned(self) -> None:
        """The loop has returned."""
        self._changed.set()

    async def at_rest(self, queued: bool) -> None:
        """Waits until the loop has returned and no task runs. Call it after ``shutdown``.

        Args:
            queued: Whether to wait also for executions that the executor has accepted but not
                begun.
        """
        while self.loop.running or any(
            execution.begun or queued for execution in self.dispatcher.executions
        ):
            self._changed.clear()
            await self._changed.wait()
