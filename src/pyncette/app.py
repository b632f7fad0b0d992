"""The app: what is declared. No I/O happens here, except in ``Pyncette.main``."""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Set
from contextlib import (
    AbstractAsyncContextManager,
    AsyncContextDecorator,
    asynccontextmanager,
)
from datetime import datetime, timedelta, tzinfo
from functools import cached_property
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Literal,
    NoReturn,
    Protocol,
    TypeVar,
    overload,
)

from pyncette.body import BodyResult, check_fixture, check_found, check_middleware, name_of
from pyncette.clock import Clock, SystemClock
from pyncette.entering import Opening
from pyncette.errors import printable
from pyncette.executor import DefaultExecutor
from pyncette.model import (
    CatchUp,
    ExecutionMode,
    Exhausted,
    FailureMode,
    FixtureFunc,
    Heartbeat,
    Json,
    MiddlewareFunc,
    Overlap,
    Partitions,
    PartitionSelector,
    PerWorker,
    Process,
    RunCounts,
    TaskFunc,
)
from pyncette.options import at_least_one
from pyncette.parts import (
    AppParts,
    OpenContexts,
    RunHistory,
    check_context_name,
    check_not_imported,
    check_not_loaded,
)
from pyncette.retry import Retry
from pyncette.schedule import CalendarFunction, Calendars, Schedule
from pyncette.task import P, PartitionedTask, Task, default_partition_selector
from pyncette.task_options import check_pause, duration, tags_of

# What only an open app needs is imported when it is opened: it takes as long as all the rest.
if TYPE_CHECKING:
    from pyncette.context import PyncetteContext
    from pyncette.events import Event
    from pyncette.observers import Observers
    from pyncette.sync import SyncContext

logger: Final = logging.getLogger(__name__)

_Fixture = TypeVar("_Fixture", bound=FixtureFunc)
_Middleware = TypeVar("_Middleware", bound=MiddlewareFunc)
_Calendar = TypeVar("_Calendar", bound=CalendarFunction)
_EventHandler = TypeVar("_EventHandler", bound=Callable[[Any], object])

# Options of all stores, since a misspelt one is warned about whichever store is used. They are
# repeated here because the classes that define them import drivers; a test compares the two.
_STORE_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "sqlite": ("database", "table_name", "synchronous"),
    "redis": ("url", "namespace", "timeout", "pool_size", "wait_replicas", "client"),
    "postgres": ("url", "table_name", "skip_table_create", "pool_size", "listen_url", "pool"),
    "mysql": (
        *("host", "port", "user", "password", "database", "table_name", "skip_table_create"),
        *("url", "pool_size", "ssl", "pool"),
    ),
    "dynamodb": (
        *("region_name", "endpoint", "table_name", "partition_prefix", "skip_table_create"),
        *("pool_size", "client"),
    ),
}
_STORE_OF: Final = {
    f"{store}_{name}": store for store, names in _STORE_OPTIONS.items() for name in names
}
_OF_TASKS: Final = frozenset(
    {
        "catch_up",
        "execution_mode",
        "exhausted",
        "failure_mode",
        "fast_forward",
        "lease_duration",
        "misfire_grace",
        "overlap",
        "retry",
    }
)
"""Options of tasks that are no likely options of a store or an executor of the application."""

KNOWN_OPTIONS: Final = ("batch_size", "concurrency_limit", "worker_name", *_STORE_OF)
_PARAMETERS: Final = (
    *("repository_factory", "executor_cls", "poll_interval", "url", "clock", "heartbeat"),
    *("open_timeout", "shutdown_timeout", "thread_limit", "raise_task_errors"),
    *("worker_tags", "block_warning"),
)


class TaskDecorator(Protocol):
    """Declares a function as a task."""

    def __call__(self, func: Callable[Concatenate[Any, P], BodyResult], /) -> Task[P]:
        """Declares ``func``."""
        ...


class PartitionedTaskDecorator(Protocol):
    """Declares a function as a partitioned task."""

    def __call__(self, func: Callable[Concatenate[Any, P], BodyResult], /) -> PartitionedTask[P]:
        """Declares ``func``."""
        ...


class Pyncette:
    """An application: its tasks, fixtures and middlewares, and the store it runs on.

    Attributes:
        clock: Where the app takes time from. A test may set another one before it opens the app.
    """

    def __init__(
        self,
        repository_factory: Callable[..., AbstractAsyncContextManager[Any]] | None = None,
        executor_cls: Callable[..., AbstractAsyncContextManager[Any]] = DefaultExecutor,
        poll_interval: timedelta | float = timedelta(seconds=1),
        *,
        url: str | None = None,
        clock: Clock | None = None,
        heartbeat: bool | Heartbeat = False,
        open_timeout: timedelta | float = timedelta(seconds=10),
        shutdown_timeout: timedelta | float | None = None,
        thread_limit: int | None = None,
        raise_task_errors: bool = False,
        worker_tags: Collection[str] = (),
        block_warning: timedelta | float | None = timedelta(seconds=1),
        **configuration: Any,
    ) -> None:
        """Declares an app without tasks.

        Args:
            repository_factory: Opens the store; ``sqlite_repository`` if not given, in memory
                unless ``sqlite_database`` names a file.
            executor_cls: Opens the executor.
            poll_interval: How often the worker polls for changes it was not notified of.
            url: Names the store, instead of ``repository_factory``: ``sqlite:///tasks.db``,
                ``sqlite://`` (in memory), ``postgresql://…``, ``mysql://…``, ``redis://…``,
                ``redis+sentinel://…``, ``redis+cluster://…``, ``dynamodb://region/table``. Other
                options of that store may be given besides.
            clock: Where the app takes time from; the machine's clock by default.
            heartbeat: Automatic heartbeats for all at-least-once tasks that have no ``heartbeat=``
                of their own.
            open_timeout: For how long opening tries again while the store is not available; 0:
                it tries once.
            shutdown_timeout: For how long closing waits for running tasks. Then they are
                cancelled, and other workers may run them at once. None: until they end.
            thread_limit: How many plain functions run at once, each in a thread; others wait. By
                default, as many as ``concurrency_limit`` lets run.
            raise_task_errors: For tests: whether an error of a task is raised in the program that
                runs the app as well, even if the task is tried again. The first one is raised, at
                the next of these: a ``VirtualClock`` is moved, ``run_until_idle`` returns, the
                open app is left. Its notes name the others. ``Skip``, ``RetryIn`` and ``GiveUp``
                are not raised: with these, a task says itself what follows.
            worker_tags: What this worker has, for tasks with ``tags``: it runs those all of whose
                tags are among these, and all tasks without tags.
            block_warning: For how long something may block the event loop before the log names it,
                with its stack; None: nothing is named. Nothing is, either, with a clock that is
                moved by hand.
            configuration: Options of the store and of the executor, and ``batch_size``,
                ``concurrency_limit`` and ``worker_name``.

        Raises:
            ValueError: ``poll_interval`` is not longer than zero, or absurdly long; a timeout is
                negative; ``url`` names no store; or options of a store are given without its
                factory.
            TypeError: ``repository_factory`` or ``executor_cls`` cannot be called, or is a store
                that is already being opened; ``url`` is given besides; or ``heartbeat`` is neither
                True, nor False, nor a ``Heartbeat``.
            ImportError: The driver of the store that ``url`` names is not installed.
        """
        if not isinstance(heartbeat, (bool, Heartbeat)):
            raise TypeError(f"heartbeat must be True or a pyncette.Heartbeat, not {heartbeat!r}")
        if url is not None:
            if repository_factory is not None:
                raise TypeError("Pass either url or repository_factory, not both")
            # Not at the top: what reads URLs takes longer to import than it is worth without one.
            from pyncette.store_url import store_named_by

            repository_factory, named = store_named_by(url)
            twice = [option for option in named if configuration.get(option) is not None]
            if twice:
                raise ValueError(f"url says already what {', '.join(twice)} would say")
            configuration.update(named)
        if repository_factory:
            _check_factory("repository_factory", repository_factory)
        _check_factory("executor_cls", executor_cls)
        _check_store_options(repository_factory, configuration, by_url=url is not None)
        self._repository_factory = repository_factory or None
        self._has_store = (
            repository_factory is not None or configuration.get("sqlite_database") is not None
        )
        self._executor_cls = executor_cls
        self._poll_interval = duration("poll_interval", poll_interval)
        self._open_timeout = _timeout("open_timeout", open_timeout)
        self._shutdown_timeout = (
            None if shutdown_timeout is None else _timeout("shutdown_timeout", shutdown_timeout)
        )
        self._thread_limit = (
            None if thread_limit is None else at_least_one("thread_limit", thread_limit)
        )
        if not isinstance(raise_task_errors, bool):
            raise TypeError(f"raise_task_errors must be True or False, not {raise_task_errors!r}")
        self._raise_task_errors = raise_task_errors
        self._isolated = False
        self._worker_tags = tags_of("worker_tags", worker_tags)
        self._block_warning = (
            None if block_warning is None else duration("block_warning", block_warning)
        )
        if clock is not None and not isinstance(clock, Clock):
            raise TypeError(f"clock must be a pyncette.Clock, not {clock!r}")
        self.clock: Clock = SystemClock() if clock is None else clock
        self._heartbeat = Heartbeat() if heartbeat is True else heartbeat or None
        self._configuration = configuration
        self._tasks: list[Task] = []
        self._warned = False
        self._opened = OpenContexts()
        self._fixtures: list[tuple[str, Callable[..., Any]]] = []
        self._middlewares: list[MiddlewareFunc] = []
        self._calendars = Calendars()
        self._history: RunHistory | None = None
        _warn_of_unknown(configuration)

    # Declaring.

    # The overloads are there for type checkers and editors. Options are parameters, so that they
    # are completed and their values are checked. A misspelt one is an argument of the task; it is
    # found where its value is no JSON (a timedelta, a mode), or where `schedule` or `interval` is
    # missed. TypedDict with `extra_items` (PEP 728) would say the same, but mypy does not know it.

    @overload
    def task(
        self,
        *,
        name: str | None = ...,
        schedule: str | Schedule,
        timezone: str | tzinfo | None = ...,
        start_at: datetime = ...,
        end_at: datetime = ...,
        jitter: timedelta = ...,
        interval: None = ...,
        fast_forward: bool = ...,
        failure_mode: FailureMode = ...,
        execution_mode: ExecutionMode = ...,
        lease_duration: timedelta | float = ...,
        enabled: bool = ...,
        retry: Retry | None = ...,
        exhausted: Exhausted | None = ...,
        timeout: timedelta | None = ...,
        heartbeat: bool | Heartbeat | None = ...,
        misfire_grace: timedelta | None = ...,
        catch_up: CatchUp | None = ...,
        overlap: Overlap | None = ...,
        limit: PerWorker | None = ...,
        tags: Set[str] = ...,
        executor: Process | None = ...,
        args: Mapping[str, Any] = ...,
        **keywords: Json,
    ) -> TaskDecorator: ...
    @overload
    def task(
        self,
        *,
        name: str | None = ...,
        interval: timedelta | float,
        schedule: None = ...,
        timezone: None = ...,
        start_at: datetime = ...,
        end_at: datetime = ...,
        jitter: timedelta = ...,
        fast_forward: bool = ...,
        failure_mode: FailureMode = ...,
        execution_mode: ExecutionMode = ...,
        lease_duration: timedelta | float = ...,
        enabled: bool = ...,
        retry: Retry | None = ...,
        exhausted: Exhausted | None = ...,
        timeout: timedelta | None = ...,
        heartbeat: bool | Heartbeat | None = ...,
        misfire_grace: timedelta | None = ...,
        catch_up: CatchUp | None = ...,
        overlap: Overlap | None = ...,
        limit: PerWorker | None = ...,
        tags: Set[str] = ...,
        executor: Process | None = ...,
        args: Mapping[str, Any] = ...,
        **keywords: Json,
    ) -> TaskDecorator: ...
    def task(self, *misplaced: object, **options: Any) -> TaskDecorator:
        """Declares a static task. It needs exactly one of ``schedule`` and ``interval``.

        May be stacked, each time with another ``name``.

        Args:
            misplaced: None: all options are given by name.
            options: See ``pyncette.task.Task``. Any other keyword is an argument of the task.

        Raises:
            ValueError: An option is invalid, or the name is taken.
            TypeError: An option is of a wrong type, or the function cannot be a task.
        """
        _check_parentheses("task", misplaced)
        return self._declaring(Task, options)

    @overload
    def dynamic_task(
        self,
        *,
        name: str | None = ...,
        schedule: str | Schedule | None = ...,
        timezone: str | tzinfo | None = ...,
        start_at: datetime = ...,
        end_at: datetime = ...,
        jitter: timedelta = ...,
        interval: None = ...,
        fast_forward: bool = ...,
        failure_mode: FailureMode = ...,
        execution_mode: ExecutionMode = ...,
        lease_duration: timedelta | float = ...,
        enabled: bool = ...,
        retry: Retry | None = ...,
        exhausted: Exhausted | None = ...,
        timeout: timedelta | None = ...,
        heartbeat: bool | Heartbeat | None = ...,
        misfire_grace: timedelta | None = ...,
        catch_up: CatchUp | None = ...,
        overlap: Overlap | None = ...,
        limit: PerWorker | None = ...,
        tags: Set[str] = ...,
        executor: Process | None = ...,
        args: Mapping[str, Any] = ...,
        **keywords: Json,
    ) -> TaskDecorator: ...
    @overload
    def dynamic_task(
        self,
        *,
        name: str | None = ...,
        interval: timedelta | float,
        schedule: None = ...,
        timezone: None = ...,
        start_at: datetime = ...,
        end_at: datetime = ...,
        jitter: timedelta = ...,
        fast_forward: bool = ...,
        failure_mode: FailureMode = ...,
        execution_mode: ExecutionMode = ...,
        lease_duration: timedelta | float = ...,
        enabled: bool = ...,
        retry: Retry | None = ...,
        exhausted: Exhausted | None = ...,
        timeout: timedelta | None = ...,
        heartbeat: bool | Heartbeat | None = ...,
        misfire_grace: timedelta | None = ...,
        catch_up: CatchUp | None = ...,
        overlap: Overlap | None = ...,
        limit: PerWorker | None = ...,
        tags: Set[str] = ...,
        executor: Process | None = ...,
        args: Mapping[str, Any] = ...,
        **keywords: Json,
    ) -> TaskDecorator: ...
    def dynamic_task(self, *misplaced: object, **options: Any) -> TaskDecorator:
        """Declares the template of a dynamic task.

        ``schedule`` or ``interval`` is the default of its instances; otherwise as ``task``.
        """
        _check_parentheses("dynamic_task", misplaced)
        return self._declaring(Task, {**options, "dynamic": True})

    @overload
    def partitioned_task(
        self,
        partition_count: int,
        partition_selector: PartitionSelector = ...,
        enabled_partitions: Collection[int] | None = ...,
        *,
        partitions: Partitions = ...,
        name: str | None = ...,
        schedule: str | Schedule | None = ...,
        timezone: str | tzinfo | None = ...,
        start_at: datetime = ...,
        end_at: datetime = ...,
        jitter: timedelta = ...,
        interval: None = ...,
        fast_forward: bool = ...,
        failure_mode: FailureMode = ...,
        execution_mode: ExecutionMode = ...,
        lease_duration: timedelta | float = ...,
        enabled: bool = ...,
        retry: Retry | None = ...,
        exhausted: Exhausted | None = ...,
        timeout: timedelta | None = ...,
        heartbeat: bool | Heartbeat | None = ...,
        misfire_grace: timedelta | None = ...,
        catch_up: CatchUp | None = ...,
        overlap: Overlap | None = ...,
        limit: PerWorker | None = ...,
        tags: Set[str] = ...,
        executor: Process | None = ...,
        args: Mapping[str, Any] = ...,
        **keywords: Json,
    ) -> PartitionedTaskDecorator: ...
    @overload
    def partitioned_task(
        self,
        partition_count: int,
        partition_selector: PartitionSelector = ...,
        enabled_partitions: Collection[int] | None = ...,
        *,
        partitions: Partitions = ...,
        name: str | None = ...,
        interval: timedelta | float,
        schedule: None = ...,
        timezone: None = ...,
        start_at: datetime = ...,
        end_at: datetime = ...,
        jitter: timedelta = ...,
        fast_forward: bool = ...,
        failure_mode: FailureMode = ...,
        execution_mode: ExecutionMode = ...,
        lease_duration: timedelta | float = ...,
        enabled: bool = ...,
        retry: Retry | None = ...,
        exhausted: Exhausted | None = ...,
        timeout: timedelta | None = ...,
        heartbeat: bool | Heartbeat | None = ...,
        misfire_grace: timedelta | None = ...,
        catch_up: CatchUp | None = ...,
        overlap: Overlap | None = ...,
        limit: PerWorker | None = ...,
        tags: Set[str] = ...,
        executor: Process | None = ...,
        args: Mapping[str, Any] = ...,
        **keywords: Json,
    ) -> PartitionedTaskDecorator: ...
    def partitioned_task(
        self,
        partition_count: int,
        partition_selector: PartitionSelector = default_partition_selector,
        enabled_partitions: Collection[int] | None = None,
        **options: Any,
    ) -> PartitionedTaskDecorator:
        """Declares a template whose instances are spread over partitions.

        Args:
            partition_count: The number of partitions.
            partition_selector: Returns the number of the partition for the name of an instance.
            enabled_partitions: The partitions that this worker runs; None means all.
            options: As for ``dynamic_task``, and ``partitions``: with ``Partitions.SHARED``, the
                workers that run the task share its partitions among themselves.
        """
        if callable(partition_count):
            raise TypeError(
                "partitioned_task takes options: write @app.partitioned_task(…), with the number "
                "of partitions"
            )
        options.update(
            partition_count=partition_count,
            partition_selector=partition_selector,
            enabled_partitions=enabled_partitions,
        )
        return self._declaring(PartitionedTask, options)

    def _declaring(self, kind: type[_Task], options: dict[str, Any]) -> Callable[[TaskFunc], _Task]:
        def declare(func: TaskFunc) -> _Task:
            body = func.task_func if isinstance(func, Task) else func
            name = options.get("name") or getattr(body, "__name__", None)
            task = kind(**{**options, "name": name}, func=body)
            if any(task.name == other.name for other in self._tasks):
                raise ValueError(f"Duplicate task name '{printable(task.name)}'")
            task.calendars = self._calendars
            self._tasks.append(task)
            return task

        return declare

    def calendar(self, name: str) -> Callable[[_Calendar], _Calendar]:
        """Declares a calendar: days on which the schedules that name it do not run.

        The function takes a ``date`` and returns whether it is in the calendar. It is asked for
        one day after the other whenever an occurrence is planned, by every worker, so it must be
        quick and must answer the same everywhere. A record whose calendar a worker has not
        declared is left to other workers.

        Args:
            name: What schedules call it, as in ``Cron("0 9 * * *") - Calendar("de-holidays")``.

        Raises:
            ValueError: The name is invalid or taken.
            TypeError: The function cannot be a calendar.
        """
        if callable(name):
            raise TypeError('calendar takes a name: write @app.calendar("…")')

        def declare(function: _Calendar) -> _Calendar:
            self._calendars.declare(name, function)
            return function

        return declare

    def fixture(self, name: str | None = None) -> Callable[[_Fixture], _Fixture]:
        """Declares a fixture: an async generator function that takes the app's context.

        The value that it yields is an attribute of the context of every execution. A function that
        is no generator is refused when the app is opened.

        Args:
            name: The name of the attribute; that of the function if not given.

        Raises:
            ValueError: The name is reserved or taken.
            TypeError: The function cannot be called with the app's context.
        """
        if callable(name):
            raise TypeError("fixture takes a name: write @app.fixture(), with parentheses")

        def declare(func: _Fixture) -> _Fixture:
            known = name or getattr(func, "__name__", None)
            if not known:
                raise ValueError("Unable to determine name for the fixture")
            self.use_fixture(known, func)
            return func

        return declare

    def use_fixture(self, name: str, func: FixtureFunc) -> None:
        """As ``fixture``."""
        check_context_name(name)
        check_fixture(func)
        if any(name == other for other, _ in self._fixtures):
            raise ValueError(f"Duplicate fixture name '{name}'")
        self._fixtures.append((name, func))

    @overload
    def middleware(self, func: _Middleware) -> _Middleware: ...
    # The mistake `@app.middleware()`: None cannot decorate. With NoReturn, which would be exact,
    # mypy takes the rest of the module for unreachable and checks nothing in it.
    @overload
    def middleware(self) -> None: ...
    def middleware(self, func: _Middleware | None = None) -> _Middleware | None:
        """Declares a middleware, ``async def m(context, next)``; the first is outermost.

        If it returns without an exception, the run counts as a success, even if it has not awaited
        ``next()``.

        Raises:
            TypeError: The function cannot be a middleware.
        """
        if func is None:
            raise TypeError(
                "middleware takes no options: write @app.middleware, without parentheses"
            )
        self.use_middleware(func)
        return func

    def use_middleware(self, func: MiddlewareFunc) -> None:
        """As ``middleware``."""
        check_middleware(func)
        self._middlewares.append(func)

    def on_event(self, handler: _EventHandler, *kinds: type[Event]) -> _EventHandler:
        """Registers a handler of events, see ``pyncette.events``; also a decorator.

        The handler is called at once, in the event loop, so it must be quick: it may put events
        into a queue for a task or a thread of its own. An exception that it raises is logged once
        and breaks nothing. It sees what happens from now on, in contexts that are open already too.

        Args:
            handler: A plain function (or another callable) of an event.
            kinds: The classes of events that it wants; none: all but ``pyncette.events.Detail``.

        Returns:
            The handler.

        Raises:
            TypeError: The handler cannot be called, or is asynchronous; or a kind is no class of
                events.
        """
        self._observers.add(handler, kinds)
        return handler

    @cached_property
    def _observers(self) -> Observers:
        from pyncette.observers import Observers

        return Observers()

    # Running.

    @property
    def _in_sqlite(self) -> bool:
        factory = self._repository_factory
        return factory is None or _store_of(factory) == "sqlite"

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The static tasks and the templates that were declared, in this order."""
        return tuple(self._tasks)

    def create(
        self, context_items: Mapping[str, Any] | None = None, *, fixtures: bool = True
    ) -> AbstractAsyncContextManager[PyncetteContext]:
        """Opens the app.

        Args:
            context_items: Attributes of the context of every execution.
            fixtures: Whether to open the fixtures. A program that only schedules, or looks, needs
                none of them; a context without them must not run tasks.

        Raises:
            ValueError: An option is invalid.
            RuntimeError: A process that this program has started imports the program.
            StoreError: The store cannot be opened, or was not available for ``open_timeout``.
        """
        from pyncette.opening import open_context

        factory = self._repository_factory
        if factory is None:
            from pyncette.sqlite import sqlite_repository

            factory = sqlite_repository
        for task in self._tasks:
            if task.executor is not None:
                check_found(task.task_func)
            if self._heartbeat is not None and task.heartbeat is None:
                check_pause(self._heartbeat, task.lease_duration)
        parts = AppParts(
            factory,
            self._executor_cls,
            self._poll_interval,
            self._configuration,
            self.clock,
            self._tasks,
            list(self._fixtures) if fixtures else [],
            list(self._middlewares),
            self._observers,
            self._calendars,
            self._open_timeout.total_seconds(),
            None if self._shutdown_timeout is None else self._shutdown_timeout.total_seconds(),
            self._thread_limit,
            self._opened,
            self._heartbeat,
            self._raise_task_errors,
            self._worker_tags,
            None if self._block_warning is None else self._block_warning.total_seconds(),
            self._history,
            self._has_store or not self._in_sqlite,
        )
        return Opening("create", open_context(parts, context_items or {}))

    def running(
        self, context_items: Mapping[str, Any] | None = None
    ) -> AbstractAsyncContextManager[PyncetteContext]:
        """Opens the app and runs its tasks in the background, for example in a web server.

        On leaving, it claims nothing more and waits for running tasks, see ``shutdown_timeout``. A
        cancellation of the caller cancels them, and other workers may run them at once.

        Args:
            context_items: Attributes of the context of every execution.

        Raises:
            ValueError: An option is invalid.
            RuntimeError: A process that this program has started imports the program.
            StoreError: The store cannot be opened, or was not available for ``open_timeout``.
        """
        return Opening("running", self._running(context_items))

    @asynccontextmanager
    async def _running(
        self, context_items: Mapping[str, Any] | None
    ) -> AsyncIterator[PyncetteContext]:
        async with self.create(context_items) as context:
            context._check_run()
            loop = context._run_in_background()
            try:
                yield context
            except asyncio.CancelledError:
                context._give_up_runs()
                loop.cancel()
                raise
            finally:
                context.shutdown()
        await loop

    @cached_property
    def _sync(self) -> SyncContext:
        from pyncette.sync import SyncContext

        return SyncContext(self)

    def sync(self) -> SyncContext:
        """Returns the calls of the open app for code that is not asynchronous.

        The app is opened by the first call in a thread of its own, once in a process, and closed
        at the end of the process. No tasks run there: start workers for that. So fixtures are not
        opened, and a health check does not listen. An app that keeps its
        records in memory has others there than its workers have; the log warns about that.
        """
        in_memory = self._configuration.get("sqlite_database") in (None, ":memory:")
        if self._in_sqlite and in_memory and not self._warned:
            self._warned = True
            logger.warning(
                "This app keeps its records in memory, and app.sync() has a memory of its own: no "
                "worker sees what is scheduled there. Name a file, as in "
                "Pyncette(url='sqlite:///tasks.db')"
            )
        return self._sync

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "An app cannot be pickled, so it cannot be sent to another process. Instead of "
            "Process(target=app.main) pass a function of a module that imports the app, for "
            "example: def work(): app.main()"
        )

    @overload
    def main(self) -> None: ...
    @overload
    def main(self, *, until_idle: Literal[True]) -> RunCounts: ...
    def main(self, *, until_idle: bool = False) -> RunCounts | None:
        """Runs the app as a program, until SIGINT or SIGTERM.

        The first signal stops it gracefully; a second one ends the process at once, with a
        non-zero code. The level of the log is ``LOG_LEVEL`` of the environment (INFO); with a
        non-empty ``USE_UVLOOP``, the event loop is uvloop's.

        Outside the main thread no signal handler can be installed; that is logged. Such an app is
        stopped by ``shutdown`` of its context.

        Args:
            until_idle: Runs what is due and returns, see ``PyncetteContext.run_until_idle``: for
                programs that cron or another scheduler starts now and then. A signal stops it
                earlier, likewise.

        Returns:
            With ``until_idle``, what was done.

        Raises:
            RuntimeError: A process that this program has started imports the program, or the
                command line does; or an event loop runs in this thread.
            Exception: What ``create`` and ``run_until_idle`` raise.
        """
        check_not_imported("app.main() was called", "call it")
        check_not_loaded("app.main() was called", "call it")
        _check_no_loop()
        logging.basicConfig(
            level=(os.environ.get("LOG_LEVEL") or "INFO").upper(),
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            stream=sys.stderr,
        )
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
        if os.environ.get("USE_UVLOOP"):
            try:
                import uvloop
            except ImportError as error:
                raise ImportError(
                    "USE_UVLOOP is set, but uvloop is not installed: pip install 'pyncette[uvloop]'"
                ) from error
            loop_factory = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(self._main(until_idle))

    async def _main(self, until_idle: bool) -> RunCounts | None:
        counts = RunCounts(0, 0) if until_idle else None
        main = asyncio.current_task()
        assert main is not None
        with _StopSignals() as stop:
            # Until the app is open there is nothing to wait for, unless the store is away.
            stop.call(main.cancel)
            try:
                async with self.create() as context:
                    stop.call(context.shutdown)
                    if until_idle:
                        counts = await context.run_until_idle()
                    else:
                        await context.run()
            except asyncio.CancelledError:
                if not stop.received or main.uncancel():
                    raise
        return counts


def _check_no_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "app.main() starts an event loop, and one runs here already, as in a notebook: write "
        "'async with app.running():' in a coroutine; or, with the context of app.create(), await "
        "context.run() or context.run_until_idle()"
    )


class _StopSignals:
    """SIGINT and SIGTERM: the first is passed on, the second ends the process."""

    # Handlers of the interpreter, not of the event loop: the second signal must also work while the
    # body of a task blocks the loop.

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.received = False
        self._stop_by: Callable[[], object] | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._receive)
            except ValueError:
                logger.warning(
                    "main() runs in thread '%s', where no signal handler can be installed: "
                    "SIGINT and SIGTERM do not stop this app. Call shutdown() of its context to "
                    "stop it, or call main() in the main thread",
                    threading.current_thread().name,
                )
                break
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def call(self, stop: Callable[[], object]) -> None:
        """Sets what the first signal calls; it is called at once if the signal has come already."""
        self._stop_by = stop
        if self.received:
            stop()

    def _receive(self, number: int, frame: object) -> None:
        if self.received:
            # Not with the logger, because the interrupted code may be writing to the log.
            os.write(2, b"Stopped at once by a second signal\n")
            os._exit(128 + number)
        self.received = True
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        logger.info("Stopping: running tasks are waited for; another signal ends them")
        if self._stop_by is not None:
            self._stop_by()


_Task = TypeVar("_Task", bound=Task)


def _check_parentheses(decorator: str, misplaced: tuple[object, ...]) -> None:
    if not misplaced:
        return
    [first, *_] = misplaced
    if callable(first):
        raise TypeError(
            f"{decorator} takes options: write @app.{decorator}(…), with its options in "
            f"parentheses (it was given {name_of(first)})"
        )
    raise TypeError(f"{decorator} takes options by name only, not {first!r}")


def _timeout(option: str, value: timedelta | float) -> timedelta:
    seconds: object = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, (int, float)) and seconds < 0:
        raise ValueError(f"{option} must not be negative, not {value!r}")
    return duration(option, value, zero=True)


def _check_factory(parameter: str, factory: object) -> None:
    # What `redis_repository(…)` returns can be called too: it is also a decorator.
    if not callable(factory) or isinstance(factory, AsyncContextDecorator):
        raise TypeError(
            f"{parameter} must be a function or a class that is called when the app is opened, "
            f"not {factory!r}: pass it without calling it, and give its options to Pyncette(…)"
        )


def _check_store_options(factory: object, configuration: Mapping[str, Any], by_url: bool) -> None:
    """Refuses, or warns about, options of a store that the app will not use."""
    given = {
        option: _STORE_OF[option]
        for option, value in configuration.items()
        if option in _STORE_OF and value is not None
    }
    if factory is None and given and "sqlite" not in given.values():
        option, owner = next(iter(given.items()))
        raise ValueError(
            f"{option} is an option of {owner}_repository, but no repository_factory is given: "
            "the tasks would be kept in memory and lost when the process ends. Pass "
            f"repository_factory={owner}_repository (from pyncette.{owner}), or "
            "repository_factory=sqlite_repository if you want SQLite"
        )
    store = "sqlite" if factory is None else _store_of(factory)
    unread = [option for option, owner in given.items() if owner != store]
    if unread and store is not None:
        logger.warning(
            "The store of this app does not read %s: %s, or remove %s",
            ", ".join(unread),
            f"pass options of {store} only, which url names"
            if by_url
            else "pass the repository_factory of the store that you want to use",
            "it" if len(unread) == 1 else "them",
        )


def _store_of(factory: object) -> str | None:
    """Which of Pyncette's stores a factory opens; None for a factory of the application.

    A function of the application may wrap one of Pyncette's factories, and read any option.
    """
    for store in _STORE_OPTIONS:
        module = sys.modules.get(f"pyncette.{store}")  # importing it might load a driver
        if module is not None and getattr(module, f"{store}_repository", None) is factory:
            return store
    return None


def _warn_of_unknown(configuration: Mapping[str, Any]) -> None:
    for option in configuration:
        if option in _OF_TASKS:
            logger.warning(
                "The app has no option '%s': it is an option of a task, as in @app.task(%s=…)",
                option,
                option,
            )
        elif option not in KNOWN_OPTIONS:
            known = (*KNOWN_OPTIONS, *_PARAMETERS)
            close = difflib.get_close_matches(option, known, 1, 0.85)
            if close:
                logger.warning("There is no option '%s': did you mean '%s'?", option, close[0])
