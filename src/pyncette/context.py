"""The context of an open app: it runs the loop, and creates, changes and lists instances.

One app may be opened several times at once: all state that changes at run time is kept here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Collection,
    Iterable,
    Mapping,
)
from contextlib import nullcontext, suppress
from datetime import datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, Final

from pyncette.bulk import (
    BulkResult,
    Instance,
    OnFailure,
    Progress,
    RebalanceProgress,
    RebalanceResult,
)
from pyncette.calls.bulk import Bulk, remove_one
from pyncette.calls.history import run_totals, runs
from pyncette.calls.identity import identity_of
from pyncette.calls.inventory import Inventory
from pyncette.calls.joined import JoinedRequests, joined_requests
from pyncette.calls.listing import Listing
from pyncette.calls.parked import drop_parked, rerun_parked
from pyncette.calls.previewing import Previewing
from pyncette.calls.rebalancing import Rebalancing
from pyncette.calls.requests import Requests
from pyncette.calls.scheduling import Scheduling
from pyncette.calls.steering import Steering, trigger_one
from pyncette.calls.workers import without_worker, workers
from pyncette.clock import Clock, from_microseconds, realtime
from pyncette.connections import is_argument, link_of
from pyncette.engine.background import Background
from pyncette.engine.execution import RunContext
from pyncette.engine.worker import Executor, Settings, Worker
from pyncette.errors import AppClosedError, PyncetteException, printable
from pyncette.model import (
    UNSET,
    ContinuationToken,
    Json,
    ListTasksResponse,
    OnExisting,
    PauseState,
    Process,
    RunCounts,
    RunOutcome,
    RunsPage,
    RunTotals,
    TaskCount,
    TaskState,
    UnknownTask,
    Where,
    WorkerState,
)
from pyncette.observers import Reporter
from pyncette.options import check_flag
from pyncette.parts import AppParts, check_context_name, check_not_loaded
from pyncette.recorder import Recorder
from pyncette.schedule import Schedule
from pyncette.store import Write
from pyncette.store.deadline import DeadlineStore
from pyncette.store.record import (
    ANY,
    DELETE,
)
from pyncette.task import PartitionedTask, Task
from pyncette.threads import Threads
from pyncette.watchdog import Watchdog

if TYPE_CHECKING:
    from pyncette.processes import Processes

logger: Final = logging.getLogger(__name__)

CLOSING_PATIENCE_S: Final = 10.0
"""How long closing retries the writes that are left, if the store does not answer."""

CLOSING_HISTORY_PATIENCE_S: Final = 3.0
"""How long of that it tries to write what is left of the run history."""

CLOSING_CLAIM_PATIENCE_S: Final = 2.0
"""Seconds for asking once more what a cancelled claim has taken."""

CLOSING_WORD_AFTER_S: Final = 10.0
"""When closing first logs which tasks it waits for; it repeats this with growing pauses."""

CLOSING_WORD_AFTER_BY_HAND_S: Final = 1.0
"""The same if a test moves the clock: a task that sleeps on it may sleep for ever."""

CLOSING_WORD_PAUSE_MAX_S: Final = 600.0

CLOSING_PATIENCE_BY_HAND_S: Final = 3.0
"""When tasks that sleep on such a clock are cancelled, and closing fails."""


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
        reporter: Reporter,
        recorder: Recorder | None = None,
    ) -> None:
        self.clock = clock
        self._recorder = recorder
        self._store = store
        self._settings = settings
        self._names = {name for name, _ in parts.fixtures}
        self._context_class = type("Context", (RunContext,), {"app_context": self})
        self._worker = Worker(
            store,
            executor,
            clock,
            settings,
            lambda: parts.tasks,
            parts.middlewares,
            self._context_class,
            reporter,
            background,
        )
        self._requests = Requests(self._worker, background, calendars=parts.calendars)
        self._bulk = Bulk(self._requests, self._worker)
        self._inventory = Inventory(self._requests, self._bulk, lambda: parts.tasks)
        self._listing = Listing(self._requests, settings.batch_size)
        self._scheduling = Scheduling(self._requests, self._worker)
        self._steering = Steering(self._requests, self._bulk, self._worker)
        self._rebalancing = Rebalancing(self._requests, self._worker)
        self._previewing = Previewing(self._requests, parts.calendars)
        self._background = background
        self._threads = Threads(parts.thread_limit or settings.concurrency_limit, clock)
        self._processes: Processes | None = None
        self._watchdog = (
            None
            if parts.block_warning is None or clock.moves_by_hand()
            else Watchdog(parts.block_warning, self._worker.bodies.name_of, reporter)
        )
        self._shutdown_timeout = parts.shutdown_timeout
        self._started = False
        self._cancelled = False
        self._closing = False
        self._refused: Exception | None = None
        # Where a test moves the clock, the records are meant to be lost.
        self._tells_no_store = not parts.has_store and not clock.moves_by_hand()

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
            OSError: The health check could not listen on its port.
            AppClosedError: The app is closed.
        """
        self._check_open()
        if self._started:
            raise PyncetteException("This context runs already, or has run: open another one")
        if not self._worker.stopping:
            self._check_run()
            self._started = True
            await self._loop(until_idle=False)

    async def run_until_idle(self, *, raise_task_errors: bool | None = None) -> RunCounts:
        """Runs what is due, and what comes due meanwhile, then returns.

        For programs that another scheduler starts now and then, for functions that are billed by
        time, and for tests. It returns when no task runs, no outcome is left to be written, and
        nothing is due that this context runs. What waits for a later time stays in the store: a
        retry that is due in a minute, for example. It may be called again. While the store is not
        available, it goes on trying. After ``shutdown`` it claims nothing more and returns;
        closing the context waits for what runs then.

        Args:
            raise_task_errors: Whether to raise the first error of a task at the end, even if the
                task is tried again; None: as the app says, see ``Pyncette``.

        Returns:
            How many runs were started by this call, and how many of their attempts have failed.

        Raises:
            PyncetteException: ``run`` is under way on this context.
            OSError: The health check could not listen on its port.
            AppClosedError: The app is closed.
            Exception: What a task has raised, with ``raise_task_errors``.
        """
        self._check_open()
        worker = self._worker
        dispatcher, bodies = worker.dispatcher, worker.bodies
        started, failures = dispatcher.started, bodies.failures
        if not worker.stopping:
            self._check_run()
            usual = bodies.raises_errors
            if raise_task_errors is not None:
                bodies.raises_errors = raise_task_errors
            try:
                await self._loop(until_idle=True)
            finally:
                bodies.raises_errors = usual
            await worker.membership.left()
            bodies.check()
        return RunCounts(dispatcher.started - started, bodies.failures - failures)

    def _refuse_run(self, error: Exception) -> None:
        """What only a worker needs is missing: the loop raises this error when it is started."""
        self._refused = self._refused or error

    def _check_run(self) -> None:
        check_not_loaded("The app was run", "run it")
        if self._refused is not None:
            raise self._refused

    def _check_open(self) -> None:
        if self._store.closed:
            raise AppClosedError

    async def _loop(self, until_idle: bool) -> None:
        if self._tells_no_store:
            self._tells_no_store = False
            logger.warning(
                "This app was given no store: its records are kept in memory, are lost when this "
                "process ends, and no other process sees them. Name one, as in "
                "Pyncette(url='sqlite:///tasks.db'); url='sqlite://' says that memory is meant"
            )
        watching = nullcontext() if self._watchdog is None else self._watchdog.watching()
        try:
            with watching:
                await self._worker.loop.run(until_idle)
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

    def _run_in_background(self) -> asyncio.Task[None]:
        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.critical("The loop has failed: no task runs any more", exc_info=error)

        self._started = True
        task = self._background.start(self._loop(until_idle=False), "pyncette run", awaited=True)
        task.add_done_callback(ended)
        return task

    # Instances.

    async def schedule_task(
        self,
        /,
        task: Task,
        instance_name: str,
        force: bool = False,
        *,
        schedule: str | Schedule | None = None,
        interval: timedelta | float | None = None,
        execute_at: datetime | None = None,
        execute_in: timedelta = UNSET,
        timezone: str | tzinfo | None = None,
        start_at: datetime = UNSET,
        end_at: datetime = UNSET,
        jitter: timedelta = UNSET,
        on_existing: OnExisting | None = None,
        connection: Any = UNSET,
        args: Mapping[str, Any] = UNSET,
        **keywords: Json,
    ) -> Task:
        """Creates an instance of a dynamic task, or updates the one of this name.

        If the instance exists, its options and arguments are replaced, and the sooner of its old
        and its new next time is kept, so that repeated calls cannot postpone a run for ever. The
        log says so (INFO) where a later time was asked for. An instance that is parked is scheduled
        as if newly created, with all of its attempts: a program that schedules it at each of its
        starts passes ``OnExisting.KEEP``. ``on_existing`` chooses otherwise.

        Args:
            task: The template.
            instance_name: The name of the instance, unique in the template.
            force: Replace the instance even if it is running; its execution then loses its lease.
            schedule: Cron expression, see ``pyncette.schedule.Cron``, or another schedule.
            interval: Distance between two runs; the first is one interval after the record is
                created, or ``start_at``.
            execute_at: The instant of the only run; if it is in the past, the task runs at once.
            execute_in: How long from now until the only run. (Of this, ``start_at``, ``end_at``
                and ``jitter``, a value that JSON can hold is an argument of the task, as in 1.x.)
            timezone: The time zone of a cron expression.
            start_at: No run is planned before it; the template's if not given.
            end_at: No run is planned after it: then the instance is gone; likewise.
            jitter: Each run waits for a part of it, see ``Schedule.with_jitter``; likewise.
            on_existing: What to do if the instance exists; default is ``OnExisting.SOONER``. A
                value of another type is an argument of the task.
            connection: A connection of your own, or a session of SQLAlchemy, in whose open
                transaction this is done: the instance is scheduled when you commit, or not at all.
                It must be to the database of the app's store; see "In your own transaction" in the
                documentation. (A value that JSON can hold is an argument of the task.)
            args: The arguments of the task, as a mapping, apart from the options: for example
                ``task.args(email="a@example.org")``, which a type checker checks. They stand over
                those of the template. Each is JSON-serialisable, or of the type that the function
                asks for. (What is no mapping is an argument of the name ``args``, as in 1.x.)
            keywords: Any other keyword is an argument of the task as well.

        Without any option of when, the instance follows the template's default. If a later release
        changes that, the occurrence that is planned stays, and the new default holds from the next
        one on. With one of these options, its schedule is its own, with what it leaves open taken
        from the template now. Likewise, only its own arguments are stored.

        Returns:
            The instance. Its ``next_run`` is when it runs next, which may be sooner than asked
            for; None if it rests: paused without an end, or left parked (``OnExisting.KEEP``).

        Raises:
            TaskLockedException: The instance is running, or has failed and keeps its lease (see
                ``FailureMode.NONE``), and neither ``force`` nor ``on_existing`` is set.
            TaskExistsError: The instance exists, and ``on_existing`` is ``OnExisting.RAISE``.
            TaskUnreadableError: A later release wrote the record of the instance. ``force``
                replaces it.
            ArgumentError: The arguments do not fit the parameters of the function: one is missing,
                is not known, or cannot be converted.
            ValueError: An option or argument is invalid; or both ``force`` and ``on_existing`` are
                set.
            TypeError: ``name`` was given, or an option that only the template has; or a value is
                of a wrong type.
            StoreError: The store failed; it is unknown whether the instance was written.

        With ``connection``, errors of the driver are raised as they are, and:

        Raises:
            NoTransactionError: The connection is not in a transaction.
            StoreMisconfiguredError: It finds no records of the app's store.
            StoreUnavailableError: Another transaction holds the instance.
        """
        self._requests.check_declared(task)
        check_flag("force", force)
        if connection is not UNSET and is_argument(connection):
            _warn_of_connection(task, connection)
            keywords["connection"] = connection
            connection = UNSET
        if "name" in keywords:
            raise TypeError(
                "name cannot be an argument of a task, unless it is given in args={…}: the name of "
                "the instance is the second argument of schedule_task, instance_name (given: "
                f"instance_name={instance_name!r}, name={keywords['name']!r})"
            )
        if on_existing is not None and not isinstance(on_existing, OnExisting):
            keywords["on_existing"] = on_existing
            on_existing = None
        if force and on_existing is not None:
            raise ValueError(
                "force replaces an instance whatever it does: on_existing cannot be set besides"
            )
        instance = Instance(
            instance_name,
            schedule=schedule,
            interval=interval,
            execute_at=execute_at,
            execute_in=execute_in,
            timezone=timezone,
            start_at=start_at,
            end_at=end_at,
            jitter=jitter,
            args=args,
            **keywords,
        )
        scheduling = self._scheduling
        if connection is not UNSET:
            scheduling = Scheduling(await self._joined(connection), self._worker)
        return await scheduling.schedule(task, instance, force, on_existing or OnExisting.SOONER)

    async def _joined(self, connection: Any) -> JoinedRequests:
        return await joined_requests(self._requests, self._worker, link_of(connection))

    async def unschedule_task(
        self, task: Task, instance_name: str | None = None, *, connection: Any = None
    ) -> None:
        """Removes an instance, even if it is running. Does nothing if the instance does not exist.

        Args:
            task: The template, or the instance itself.
            instance_name: The name of the instance, if ``task`` is a template.
            connection: In whose transaction this is done, as in ``schedule_task``.

        Raises:
            ValueError: The name of the instance is missing, or the task is static.
        """
        self._requests.check_declared(task)
        if not task.dynamic and task.parent_task is None:
            raise ValueError(f"Cannot unschedule '{printable(task)}': the task is not dynamic")
        await self._requests.now()
        group, key = identity_of(task, instance_name)
        telling = self._requests.telling
        if connection is not None:
            joined = await self._joined(connection)
            telling = joined.telling
            await remove_one(joined, self._worker, group, key)
        elif self._requests.places.several(group, key):
            await remove_one(self._requests, self._worker, group, key)
        else:
            self._worker.replaced(group, key)
            await self._requests.submit(Write(group, key, DELETE, ANY))
        telling.instance("unschedule", task.template.name, key)

    async def schedule_tasks(
        self,
        template: Task,
        instances: Iterable[Instance] | AsyncIterable[Instance],
        *,
        on_existing: OnExisting = OnExisting.SOONER,
        progress: Progress | None = None,
        on_failure: OnFailure | None = None,
    ) -> BulkResult:
        """Creates or updates any number of instances of a template, in batches.

        Memory does not grow with their number. An instance that cannot be scheduled does not keep
        others from being scheduled. The call can be repeated after it was interrupted: an instance
        that is as it should be is left alone. If a name comes twice, the later instance is
        scheduled over the earlier one. If reading the instances fails, the batches before were
        written, and the error is raised.

        Args:
            template: The template.
            instances: What to schedule.
            on_existing: What to do with instances that exist, see ``OnExisting``.
            progress: Called after each batch with what was done so far.
            on_failure: Called for each instance that was not scheduled, with the error that
                ``schedule_task`` would have raised.

        Returns:
            What was done; it keeps the first 1,000 failures.

        Raises:
            ValueError: The task is not a template.
            StoreUnavailableError: The store has not answered for half a minute. Batches before were
                written.
        """
        return await self._bulk.schedule(template, instances, on_existing, progress, on_failure)

    async def unschedule_tasks(
        self,
        template: Task,
        names: Iterable[str] | AsyncIterable[str] | None = None,
        *,
        where: Where | None = None,
        progress: Progress | None = None,
        on_failure: OnFailure | None = None,
    ) -> BulkResult:
        """Removes any number of instances of a template, in batches, running or not.

        Args:
            template: The template, or one of its partitions.
            names: The names of the instances; absent ones are no error.
            where: Which instances, instead of names. ``Where()`` means all. An instance that has
                changed meanwhile so that it is not meant any more is kept.
            progress: As in ``schedule_tasks``.
            on_failure: As in ``schedule_tasks``.

        Raises:
            TypeError: Both of names and where were given, or neither.
            ValueError: The task is not a template.
            StoreUnavailableError: As in ``schedule_tasks``.
        """
        return await self._bulk.unschedule(template, names, where, progress, on_failure)

    async def sync_tasks(
        self,
        template: Task,
        instances: Iterable[Instance] | AsyncIterable[Instance],
        *,
        dry_run: bool = False,
        allow_empty: bool = False,
        progress: Progress | None = None,
        on_failure: OnFailure | None = None,
    ) -> BulkResult:
        """Makes the instances of a template equal to a set: creates, changes and removes.

        For programs that keep their schedules in a table of their own, or that must refill a lost
        store. An instance that has the wanted schedule and arguments is left alone, whatever it is
        doing; so is one without a schedule that follows the template's default. One that differs is
        replaced, as with ``OnExisting.REPLACE``. What is not in the set is removed, once the whole
        set was read: if reading it fails, nothing is removed. A one-off that has run is gone: if it
        is in the set, it is created, and run, again.

        Memory does not grow with the number of instances; the names are kept in a temporary file.

        Args:
            template: The template.
            instances: All instances that it shall have.
            dry_run: Only count; nothing is written.
            allow_empty: Whether an empty set, which removes everything, is meant.
            progress: As in ``schedule_tasks``.
            on_failure: As in ``schedule_tasks``.

        Raises:
            ValueError: The task is not a template, or the set is empty.
            StoreUnavailableError: As in ``schedule_tasks``.
        """
        return await self._bulk.synchronise(
            template, instances, dry_run, allow_empty, progress, on_failure
        )

    async def retry_parked(
        self,
        /,
        task: Task,
        instance_name: str | None = None,
        *,
        args: Mapping[str, Any] = UNSET,
        **keywords: Json,
    ) -> bool:
        """Runs a parked task again, at once, with all of its attempts.

        It is the same occurrence: ``execution_id`` and ``scheduled_at`` are those of before.

        Args:
            task: The static task, the template, or the instance.
            instance_name: The name of the instance, if ``task`` is a template.
            args: New arguments for an instance, as for ``schedule_task``. They replace all of its
                arguments; those that are not given are the defaults of the template. Without any,
                the arguments stay.
            keywords: More of them.

        Returns:
            Whether the task was parked. If not, nothing is changed.

        Raises:
            ArgumentError: The new arguments do not fit the parameters of the function.
            ValueError: A new argument is invalid.
            TypeError: New arguments were given for a static task, whose arguments are in the code;
                or an option was given.
            TaskUnreadableError: The record cannot be read. If no worker can read it, an instance
                must be scheduled anew.
            StoreError: The store failed; it is unknown whether the task runs again.
        """
        given: dict[str, Any] = dict(keywords)
        if args is not UNSET:
            given["args"] = args
        return await rerun_parked(self._requests, task, instance_name, given)

    async def drop_parked(self, task: Task, instance_name: str | None = None) -> bool:
        """Gives up the run for which a task is parked: the task continues with its next run.

        What came due while it was parked is handled as after any other delay. An instance that has
        no next run is removed. The error stays in the state.

        Args:
            task: The static task, the template, or the instance.
            instance_name: The name of the instance, if ``task`` is a template.

        Returns:
            Whether the task was parked. If not, nothing is changed.

        Raises:
            TaskUnreadableError: The record cannot be read.
            StoreError: The store failed; it is unknown whether the run was given up.
        """
        return await drop_parked(self._requests, task, instance_name)

    async def get_task(self, task: Task, instance_name: str | None = None) -> TaskState | None:
        """Returns the state of a static task or of an instance; None if the store has no record.

        Args:
            task: The static task, the template, or the instance.
            instance_name: The name of the instance, if ``task`` is a template.

        Raises:
            ValueError: A name was given, but the task is not a template.
        """
        return await self._listing.get(task, instance_name)

    async def list_tasks(
        self,
        task: Task,
        limit: int | None = None,
        continuation_token: ContinuationToken | None = None,
        *,
        where: Where | None = None,
    ) -> ListTasksResponse:
        """Returns a page of the instances of a template, in an order that writes do not change.

        Args:
            task: The template, or one of its partitions.
            limit: Maximum number of instances; default is ``batch_size``.
            continuation_token: The token of the page before.
            where: Which instances; all of them by default. Where few of very many match, a page
                may be empty although others follow: the store looks at some thousands for each.

        Raises:
            TypeError: A condition is of a wrong type.
            ValueError: The task is not a template, or an argument is invalid.
        """
        return await self._listing.page(task, limit, continuation_token, where)

    def iter_tasks(self, task: Task, where: Where | None = None) -> AsyncGenerator[TaskState, None]:
        """Goes through the instances of a template, page by page, in an order of our choosing.

        An instance that exists and matches during the whole iteration is met exactly once. Where
        few of very many instances match, the store looks at many to find them, in steps that are
        short each; those that are waiting for a retry, paused, parked or finished are found at
        once in SQLite, PostgreSQL and MySQL.

        Args:
            task: The template, or one of its partitions.
            where: Which instances; all of them by default.

        Raises:
            TypeError, ValueError: The task is not a template, or a condition is invalid.
        """
        return self._listing.iterate(task, where)

    async def count_tasks(
        self, task: Task, where: Where | None = None, *, limit: int = 10_000
    ) -> TaskCount:
        """Counts the instances of a template, exactly up to the limit.

        Never looks at all of very many instances: see ``TaskCount.exact``.

        Args:
            task: The template, or one of its partitions.
            where: Which instances; all of them by default.
            limit: Where to stop; at most 100,000.

        Raises:
            TypeError, ValueError: The task is not a template, or an argument is invalid.
        """
        return await self._listing.count(task, where, limit)

    async def static_tasks(self) -> list[TaskState]:
        """Returns the states of the static tasks of this app, but for those never started yet."""
        return await self._inventory.static_tasks()

    async def unknown(self) -> list[UnknownTask]:
        """Returns what the store holds of tasks that this app does not declare.

        For example, of tasks that were removed or renamed, or of another app on the same store.
        Nothing of it is ever removed by itself; see ``purge``.
        """
        return await self._inventory.unknown()

    async def purge(
        self,
        name: str,
        *,
        progress: Progress | None = None,
        on_failure: OnFailure | None = None,
    ) -> BulkResult:
        """Removes what a task that was removed from the code has left: records and pauses.

        All instances of a template of this name, in batches, and the record of a static task.

        Args:
            name: The name of the task.
            progress: As in ``schedule_tasks``.
            on_failure: As in ``schedule_tasks``.

        Raises:
            ValueError: This app declares a task of this name.
            StoreUnavailableError: As in ``schedule_tasks``.
        """
        return await self._inventory.purge(name, progress, on_failure)

    async def retry_parked_tasks(
        self,
        template: Task,
        *,
        where: Where | None = None,
        progress: Progress | None = None,
        on_failure: OnFailure | None = None,
    ) -> BulkResult:
        """Runs all parked instances that match again, as ``retry_parked`` does, in batches.

        To give up the parked runs instead, use ``drop_parked_tasks``. To remove the instances, use
        ``unschedule_tasks(template, where=Where(states={"parked"}))``.

        Args:
            template: The template, or one of its partitions.
            where: Which of the parked instances; None: all.
            progress: As in ``schedule_tasks``.
            on_failure: As in ``schedule_tasks``; an instance that no worker can read fails.

        Returns:
            How many run again (``updated``), or failed.

        Raises:
            ValueError: The task is not a template.
            StoreUnavailableError: As in ``schedule_tasks``.
        """
        return await self._inventory.retry_parked(template, where, progress, on_failure)

    async def drop_parked_tasks(
        self,
        template: Task,
        *,
        where: Where | None = None,
        progress: Progress | None = None,
        on_failure: OnFailure | None = None,
    ) -> BulkResult:
        """Gives up the runs of all parked instances that match, as ``drop_parked`` does.

        Args:
            template: The template, or one of its partitions.
            where: Which of the parked instances; None: all.
            progress: As in ``schedule_tasks``.
            on_failure: As in ``schedule_tasks``; an instance that cannot be read fails.

        Returns:
            How many continue (``updated``), had no next run (``removed``), or failed.

        Raises:
            ValueError: The task is not a template.
            StoreUnavailableError: As in ``schedule_tasks``.
        """
        return await self._inventory.drop_parked(template, where, progress, on_failure)

    async def preview(
        self, task: Task | Schedule, n: int = 10, instance_name: str | None = None
    ) -> list[datetime]:
        """Returns the planned times that come next, by the very code that plans them.

        Of a task or an instance in the store: what its record is planned for (a planned time that
        has passed included, if it is still to be run; not the running one), and what follows if
        each run ends in time. A pause is left aside. Of what is not in the store, and of a
        schedule: as if it were created now.

        Args:
            task: A static task, a template, an instance, or a schedule. A template without
                ``instance_name`` is a new instance of it.
            n: How many at most, up to 1,000.
            instance_name: The name of the instance, if ``task`` is a template.

        Returns:
            Aware datetimes in the time zone of the schedule, in order; fewer than ``n`` if it
            ends. A jitter is not added.

        Raises:
            ValueError: ``n`` is out of range; or the task does not say when it runs.
            TaskUnreadableError: The record cannot be read, by this process or by any; or one of its
                calendars fails.
            StoreError: The store failed.
        """
        return await self._previewing.preview(task, n, instance_name)

    # Steering.

    async def pause(
        self,
        task: Task,
        instance_name: str | None = None,
        *,
        until: datetime | None = None,
        reason: str | None = None,
    ) -> None:
        """Pauses a static task, an instance, a partition, or a template with all its instances.

        Nothing of it starts any more, on any worker, within a ``poll_interval``; a running task
        ends as usual. What comes due meanwhile is missed, and handled as after any other delay
        (``fast_forward``). A pause survives restarts. Pausing again replaces the end and the
        reason; pausing what is parked or finished does nothing.

        A static task or an instance is paused by itself; its template may be paused besides. A
        static task that no worker has started yet is created paused.

        Args:
            task: A static task, a template, an instance, or one of ``get_partitions()``.
            instance_name: The name of the instance, if ``task`` is a template.
            until: When the pause ends by itself (naive: local time); None: with ``resume``.
            reason: Why, for people; at most 500 characters.

        Raises:
            TaskNotFoundError: There is no such instance.
            TaskUnreadableError: The record cannot be read, by this process or by any.
            ValueError: ``until`` is not in the future, or the reason is too long.
            StoreError: The store failed; it is unknown whether the pause was written.
        """
        await self._steering.pause(task, instance_name, until, reason)

    async def resume(self, task: Task, instance_name: str | None = None) -> None:
        """Ends a pause, which was made with the same arguments. Without a pause, does nothing.

        Raises:
            TaskNotFoundError: There is no such instance.
            TaskUnreadableError: The record cannot be read, by this process or by any.
            StoreError: The store failed; it is unknown whether the pause was ended.
        """
        await self._steering.resume(task, instance_name)

    async def trigger(
        self, task: Task, instance_name: str | None = None, *, connection: Any = None
    ) -> int:
        """Runs a static task or an instance once now; of a template, each of its instances.

        The schedule is not changed by it: the next planned run happens as well. What is running
        runs once more afterwards. What waits for a retry has its next attempt now. What is parked
        runs the same occurrence again, with all of its attempts, as ``retry_parked`` does.
        A paused instance runs once and stays paused. The instances of a template are triggered in
        batches, so this takes time where there are many; calling it again triggers those again
        that have run meanwhile.

        Args:
            task: A static task, a template, an instance, or one of ``get_partitions()``.
            instance_name: The name of the instance, if ``task`` is a template.
            connection: In whose transaction this is done, as in ``schedule_task``; not for all
                instances of a template.

        Returns:
            How many runs were added; 0 if such a run was requested already.

        Raises:
            TaskNotFoundError: There is no such instance.
            TaskPausedError: The template, or the partition, is paused.
            TaskUnreadableError: The record cannot be read, by this process or by any.
            StoreError: The store failed.
        """
        if connection is None:
            return await self._steering.trigger(task, instance_name)
        return (await trigger_one(await self._joined(connection), task, instance_name)).added

    async def pause_tasks(
        self,
        template: Task,
        *,
        where: Where,
        until: datetime | None = None,
        reason: str | None = None,
        progress: Progress | None = None,
        on_failure: OnFailure | None = None,
    ) -> BulkResult:
        """Pauses each instance that matches, as ``pause`` does, in batches.

        An instance that is scheduled later is not paused, whatever its name: to pause a template
        with all that it has and will have, use ``pause(template)``.

        Args:
            template: The template, or one of its partitions.
            where: Which instances; ``Where()`` is all that exist.
            until: As in ``pause``.
            reason: As in ``pause``.
            progress: As in ``schedule_tasks``.
            on_failure: As in ``schedule_tasks``; an instance that cannot be read fails.

        Returns:
            How many were paused (``updated``), were left as they are (``unchanged``: parked or
            finished), or failed.

        Raises:
            TypeError: A value is of a wrong type.
            ValueError: The task is not a template, or as in ``pause``.
            StoreUnavailableError: As in ``schedule_tasks``.
        """
        return await self._steering.pause_where(
            template, where, until, reason, progress, on_failure
        )

    async def resume_tasks(
        self,
        template: Task,
        *,
        where: Where,
        progress: Progress | None = None,
        on_failure: OnFailure | None = None,
    ) -> BulkResult:
        """Ends the pauses of all instances that match, as ``resume`` does, in batches.

        A pause of the template itself is not ended by it.

        Args:
            template: The template, or one of its partitions.
            where: Which instances; ``Where(paused=True)`` is all that are paused by themselves.
            progress: As in ``schedule_tasks``.
            on_failure: As in ``schedule_tasks``; an instance that cannot be read fails.

        Returns:
            How many were resumed (``updated``), were not paused (``unchanged``), or failed.

        Raises:
            TypeError: A value is of a wrong type.
            ValueError: The task is not a template.
            StoreUnavailableError: As in ``schedule_tasks``.
        """
        return await self._steering.resume_where(template, where, progress, on_failure)

    async def trigger_tasks(
        self,
        template: Task,
        *,
        where: Where,
        progress: Progress | None = None,
        on_failure: OnFailure | None = None,
    ) -> BulkResult:
        """Runs each instance that matches once now, as ``trigger`` does, in batches.

        It is not repeated by itself where the store did not answer, since a run that was added may
        have ended: such instances fail.

        Args:
            template: The template, or one of its partitions.
            where: Which instances; ``Where()`` is all.
            progress: As in ``schedule_tasks``.
            on_failure: As in ``schedule_tasks``; an instance that cannot be read fails.

        Returns:
            How many run (``updated``), had been triggered already (``unchanged``), or failed.

        Raises:
            TypeError: A value is of a wrong type.
            ValueError: The task is not a template.
            TaskPausedError: The template, or the partition, is paused.
            StoreUnavailableError: As in ``schedule_tasks``.
        """
        return await self._steering.trigger_where(template, where, progress, on_failure)

    async def pauses(self) -> list[PauseState]:
        """Returns the templates and partitions that are paused now, of all apps on this store.

        Instances and static tasks that are paused by themselves are not among them: their state
        says so.
        """
        return await self._steering.pauses()

    async def workers(self) -> list[WorkerState]:
        """Returns the workers that are alive: those whose ``run()`` is active, of all apps.

        The context need not run itself. A worker that ends is gone at once, one that was killed
        when its record expires: after a minute, or sooner where it shares partitions. A worker
        whose loop waits for long, as in a body under ``SynchronousExecutor``, is gone meanwhile.

        Returns:
            At most 10,000 of them, in the order of their names.

        Raises:
            StoreError: The store failed.
        """
        return await workers(self._requests)

    async def tasks_without_worker(self) -> list[Task]:
        """Returns the declared tasks that no living worker runs, in the order of declaration.

        Either none has all of their ``tags``, or no worker has enabled them, or none is alive. See
        ``workers`` for which workers count as alive. Of a worker with more than 200 tasks, it is
        taken for granted that it runs them.

        Raises:
            StoreError: The store failed.
        """
        return await without_worker(self._requests, self._worker.declared())

    async def runs(
        self,
        task: Task | None = None,
        instance_name: str | None = None,
        *,
        outcomes: Collection[RunOutcome] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> RunsPage:
        """Returns a page of the run history: attempts that have ended, the last ones first.

        The history is written by workers with ``pyncette.history.use_history``, some seconds
        later than the attempts end. It can be read without that. What this context itself has run
        is written before. Attempts that end meanwhile are not on later pages.

        Args:
            task: Only attempts of this static task, of this instance, or of all instances of this
                template; None: of all tasks on this store, also those of other apps.
            instance_name: Only attempts of this instance, if ``task`` is its template.
            outcomes: Only attempts that ended in one of these ways; None: in any way.
            since: Only attempts that ended at or after this (naive: local time).
            until: Only attempts that ended before this; likewise.
            cursor: Where to go on: that of the page before, with the same other arguments.
            limit: How many at most, up to 1,000.

        Raises:
            ValueError: A value is not valid.
            TypeError: A value is of a wrong type.
            StoreError: The store failed.
        """
        if self._recorder is not None:
            await self._recorder.flush()
        return await runs(
            self._requests, task, instance_name, outcomes, since, until, cursor, limit
        )

    async def run_totals(
        self, since: datetime, until: datetime | None = None, *, task: Task | None = None
    ) -> list[RunTotals]:
        """Returns how many attempts have ended in each minute, from the run history.

        Args:
            since: Minutes that began at or after this (naive: local time).
            until: Minutes that began before this; None: all later ones.
            task: Only of this static task or template; None: of all tasks on this store.

        Returns:
            For each minute and task in which any have ended, in the order of the minutes; the
            latest 50,000, if there are more.

        Raises:
            TypeError: A value is of a wrong type.
            StoreError: The store failed.
        """
        if self._recorder is not None:
            await self._recorder.flush()
        return await run_totals(self._requests, since, until, task)

    async def rebalance(
        self,
        task: PartitionedTask,
        partition_count: int,
        progress: RebalanceProgress | None = None,
    ) -> RebalanceResult:
        """Moves the instances of a template to another number of partitions, while workers run.

        Workers and other programs that are open learn the new number by themselves, within
        seconds. An instance that runs is moved when its run has ended. Nothing of an instance
        changes but its partition. The call takes about a minute besides the moves, because it
        waits until all programs must know of them. It returns when nothing is left to do.

        If it is interrupted, at any time, everything continues to run; call it again, from any
        program, to go on. Afterwards, programs that still declare a number of before open as well,
        with the number in force and a warning.

        With the number that is in force, it looks through all partitions, and moves what lies
        elsewhere: after a program was stopped during a whole move, or when ``partition_selector``
        has changed.

        If the number in the store cannot be read, because the row was edited, it looks through all
        10,000 partitions that there may be, and writes the number anew.

        Args:
            task: The template.
            partition_count: The number of partitions, from 1 to 10,000.
            progress: Called after each batch with what was done so far.

        Returns:
            How many instances were moved by this call.

        Raises:
            ValueError: The task has no partitions, or the number is out of range.
            TypeError: The number is not a whole number.
            PyncetteException: A move to another number is under way; or a partition is paused; or
                an instance cannot be moved; or a later release wrote the number in the store.
            StoreError: The store has failed for half a minute. Call it again to go on.
        """
        return await self._rebalancing.rebalance(task, partition_count, progress)

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
        worker = self._worker
        worker.shutdown()
        if not self._closing and self._shutdown_timeout is not None:
            self._background.start(
                self._cancel_after(self._shutdown_timeout), "pyncette shutdown timeout"
            )
        self._closing = True
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
            names = self._running_names()
            if not names:
                continue  # the last of them have ended at this moment
            message = f"Closing waits for running executions: {names}"
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

    async def _cancel_after(self, seconds: float) -> None:
        await realtime.sleep(seconds)
        running = self._worker.dispatcher.executions
        if running:
            logger.warning(
                "Closing has waited for %g s (shutdown_timeout): %d running executions are "
                "cancelled and given back: %s",
                seconds,
                len(running),
                self._running_names(),
            )
            self._give_up_runs()

    def _running_names(self) -> str:
        names = sorted({execution.label for execution in self._worker.dispatcher.executions})
        return ", ".join(names[:10])

    def _give_up_runs(self) -> None:
        """Closing was cancelled or took too long: cancels running tasks and releases leases."""
        self._worker.dispatcher.cancel(give_back=True)

    async def _run_in_process(
        self, option: Process, function: tuple[str, str], context: Any, view: Mapping[str, Any]
    ) -> None:
        if self._processes is None:
            # What starts processes takes longer to import than it is worth without any.
            from pyncette.processes import Processes

            self._processes = Processes(self.clock)
        await self._processes.run(option, function, context, view)

    async def _write_what_is_left(self) -> None:
        self._threads.close()
        if self._processes is not None:
            await self._processes.close()
        started = realtime.monotonic()
        await self._worker.membership.left()
        with suppress(TimeoutError):
            async with realtime.timeout(CLOSING_CLAIM_PATIENCE_S):
                await self._worker.loop.give_back_unanswered()
        await self._worker.writes.close(CLOSING_PATIENCE_S)
        if self._recorder is not None:
            left_s = CLOSING_PATIENCE_S - (realtime.monotonic() - started)
            await self._recorder.close(min(max(left_s, 0.0), CLOSING_HISTORY_PATIENCE_S))
        left_s = CLOSING_PATIENCE_S - (realtime.monotonic() - started)
        await self._requests.close(max(left_s, 0.0))


def _warn_of_connection(task: Task, value: object) -> None:
    """Warns, once for each task, of an argument that was perhaps meant as a connection."""
    template = task.template
    parameters = template.options.parameters
    if parameters is not None and ("connection" in parameters.names or not parameters.lenient):
        return  # it is a parameter, or is refused
    if "connection" not in template._warned:
        template._warned.add("connection")
        logger.warning(
            "Task %s: connection=%s is an argument of the task, not a connection: the instance is "
            "scheduled outside of your transaction",
            printable(template),
            printable(repr(value))[:100],
        )
