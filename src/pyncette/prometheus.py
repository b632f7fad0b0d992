"""Metrics for Prometheus, in the default registry: of executions, of the loop, of the store.

There are three parts: a middleware, an observer of the loop's passes, and a store that wraps the
app's store. The metrics belong to the process: they are created once, when the first app asks for
them, and all apps share them. `prometheus_client` is imported only then.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pyncette.app import Pyncette
from pyncette.clock import Clock
from pyncette.model import Context, NextFunc
from pyncette.retry import RetryIn, Skip
from pyncette.store import (
    Claimed,
    Counted,
    Filter,
    Identity,
    Page,
    RepositoryFactory,
    Result,
    Source,
    Store,
    WakeCallback,
    Watch,
    Write,
    check_store,
)
from pyncette.store.record import Record
from pyncette.task import Task

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

STALENESS_BUCKETS_S: Final = (
    0.05,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    25.0,
    50.0,
    75.0,
    100.0,
    250.0,
    500.0,
    750.0,
    1000.0,
)


def use_prometheus(
    app: Pyncette,
    measure_repository: bool = True,
    measure_ticks: bool = True,
    measure_tasks: bool = True,
) -> None:
    """Measures an app, from its next opening on.

    Call it once for an app. The application serves the metrics, for example with
    ``prometheus_client.start_http_server``. Durations are measured by the app's clock.

    Args:
        app: The app.
        measure_repository: Whether to measure the calls of the storage contract.
        measure_ticks: Whether to measure the passes of the loop that call the store.
        measure_tasks: Whether to measure executions. The measuring middleware is declared by this
            call: earlier middlewares are not part of a duration, and an exception that a later one
            catches is no failure.

    Raises:
        ImportError: ``prometheus_client`` is not installed.
    """
    metrics = _metrics()
    clock = app.clock
    if measure_repository:
        app._repository_factory = _measured_factory(app._repository_factory, metrics, clock)
    if measure_ticks:
        app._tick_observers.append(functools.partial(metrics.ticks.measure, clock))
    if measure_tasks:
        app.use_middleware(_TaskMeter(metrics))
        app._backlog_observers.append(metrics.backlog.note)


class _Series:
    """The four metrics of one kind of operation, under one set of labels."""

    def __init__(self, operations: _Operations, labels: Sequence[str]) -> None:
        def child(metric: Any) -> Any:
            return metric.labels(*labels) if labels else metric

        self._failures = operations.failures
        self._labels = labels
        self.total: Counter = child(operations.total)
        self.duration: Histogram = child(operations.duration)
        self.in_progress: Gauge = child(operations.in_progress)

    def measure(self, clock: Clock, failures: type[BaseException] = Exception) -> _Measurement:
        """A context manager that measures what happens in it, once.

        Args:
            clock: Measures the duration.
            failures: The exceptions that are failures.
        """
        return _Measurement(self, clock, failures)

    def failed(self, error: type[BaseException]) -> None:
        self._failures.labels(*self._labels, error.__name__).inc()


class _Measurement:
    __slots__ = ("_clock", "_failures", "_series", "_started")

    def __init__(self, series: _Series, clock: Clock, failures: type[BaseException]) -> None:
        self._series = series
        self._clock = clock
        self._failures = failures

    def __enter__(self) -> None:
        self._series.in_progress.inc()
        self._started = self._clock.monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        series = self._series
        series.duration.observe(self._clock.monotonic() - self._started)
        series.in_progress.dec()
        series.total.inc()
        if (
            kind is not None
            and issubclass(kind, self._failures)
            # A body raises these to say something, not because it failed.
            and not issubclass(kind, (Skip, RetryIn))
        ):
            series.failed(kind)


class _Operations:
    """The four metrics of one kind of operation."""

    def __init__(self, name: str, what: str, labels: Sequence[str] = ()) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self.total = Counter(f"pyncette_{name}", f"{what} that have ended", labels)
        self.duration = Histogram(
            f"pyncette_{name}_duration_seconds", f"How long {what.lower()} took", labels
        )
        self.failures = Counter(
            f"pyncette_{name}_failures",
            f"{what} that raised an exception",
            [*labels, "exception_type"],
        )
        self.in_progress = Gauge(
            f"pyncette_{name}_in_progress",
            f"{what} under way",
            labels,
            multiprocess_mode="livesum",
        )
        self._series: dict[tuple[str, ...], _Series] = {}

    def labelled(self, *labels: str) -> _Series:
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Series(self, labels)
        return series


class _Backlog:
    """How far tasks are behind their schedules; the loop finds that when it claims."""

    def __init__(self) -> None:
        from prometheus_client import Gauge

        self._count = Gauge(
            "pyncette_tasks_backlog",
            "Overdue occurrences of the record of the task that is furthest behind",
            ["task_name"],
            multiprocess_mode="max",
        )
        self._age = Gauge(
            "pyncette_tasks_backlog_age_seconds",
            "By how much the oldest of these is overdue",
            ["task_name"],
            multiprocess_mode="max",
        )

    def note(self, task: Task, count: int, age_s: float) -> None:
        self._count.labels(task.name).set(count)
        self._age.labels(task.name).set(age_s)


class _Metrics(NamedTuple):
    tasks: _Operations
    backlog: _Backlog
    staleness: Histogram
    ticks: _Series
    repository: _Operations


@functools.cache
def _metrics() -> _Metrics:
    try:
        from prometheus_client import Histogram
    except ImportError as error:
        raise ImportError(
            "use_prometheus needs the package prometheus-client, which is not installed: "
            "pip install 'pyncette[prometheus]'"
        ) from error
    return _Metrics(
        _Operations("tasks", "Executions", ["task_name"]),
        _Backlog(),
        Histogram(
            "pyncette_tasks_staleness_seconds",
            "How long after their planned time, and their jitter, executions started",
            ["task_name"],
            buckets=STALENESS_BUCKETS_S,
        ),
        _Operations("ticks", "Passes of the loop").labelled(),
        _Operations("repository_ops", "Calls to the store", ["operation"]),
    )


class _TaskMeter:
    """The middleware. A cancelled execution has ended, but has not failed."""

    def __init__(self, metrics: _Metrics) -> None:
        self._tasks = metrics.tasks
        self._staleness = metrics.staleness

    async def __call__(self, context: Context, following: NextFunc) -> None:
        clock = context.app_context.clock
        # The label is the template, because the number of instances is unbounded.
        name = (context.task.parent_task or context.task).name
        # A jitter is no lateness. A context that a test has made has no execution.
        execution = getattr(context, "_execution", None)
        due_at = context.scheduled_at if execution is None else execution.came_due()
        staleness_s = (clock.now() - due_at).total_seconds()
        self._staleness.labels(name).observe(max(staleness_s, 0.0))
        with self._tasks.labelled(name).measure(clock):
            await following()


def _measured_factory(
    factory: RepositoryFactory, metrics: _Metrics, clock: Clock
) -> RepositoryFactory:
    @asynccontextmanager
    async def opened(**configuration: Any) -> AsyncIterator[Store]:
        async with factory(**configuration) as store:
            check_store(store, factory)
            yield _MeasuredStore(store, metrics.repository, clock)

    return opened


class _MeasuredStore:
    """Passes calls on to a store; see ``pyncette.store.Store`` for what they do.

    A call that is cancelled counts as a failure: a call that takes too long ends like that.
    """

    def __init__(self, store: Store, operations: _Operations, clock: Clock) -> None:
        self._store = store
        self._operations = operations
        self._clock = clock

    def _measure(self, operation: str) -> _Measurement:
        return self._operations.labelled(operation).measure(self._clock, BaseException)

    async def claim(
        self,
        sources: Sequence[Source],
        limit: int,
        now: int,
        token: str,
        repeated: bool = False,
        *,
        bounded: bool = False,
        unfinished_max: int | None = None,
    ) -> Claimed:
        with self._measure("claim"):
            return await self._store.claim(
                sources,
                limit,
                now,
                token,
                repeated,
                bounded=bounded,
                unfinished_max=unfinished_max,
            )

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        with self._measure("write"):
            return await self._store.write(batch, now, wake)

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        with self._measure("get"):
            return await self._store.get(identities)

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        with self._measure("scan"):
            return await self._store.scan(group, where, cursor, limit)

    async def count(self, group: str, where: Filter, limit: int) -> Counted:
        with self._measure("count"):
            return await self._store.count(group, where, limit)

    async def now(self) -> int | None:
        with self._measure("now"):
            return await self._store.now()

    @property
    def now_uncertainty(self) -> int:
        uncertainty: int = getattr(self._store, "now_uncertainty", 1)
        return uncertainty

    async def watch(self, groups: Collection[str], on_wake: WakeCallback) -> Watch | None:
        with self._measure("watch"):
            return await self._store.watch(groups, on_wake)
