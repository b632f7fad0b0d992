"""Metrics for Prometheus, in the default registry: of executions, of the loop, of the store.

They are made from the events of the app. The metrics belong to the process: they are created once,
when the first app asks for them, and all apps share them. `prometheus_client` is imported only
then.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pyncette import events
from pyncette.app import Pyncette
from pyncette.errors import class_name
from pyncette.options import check_flag

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
    """Measures an app, from now on.

    Call it once for an app. The application serves the metrics, for example with
    ``prometheus_client.start_http_server``. Durations are measured by the app's clock.

    Args:
        app: The app.
        measure_repository: Whether to measure the calls of the storage contract.
        measure_ticks: Whether to measure the passes of the loop that call the store, and by how
            much the event loop lags (see ``block_warning`` of the app).
        measure_tasks: Whether to measure executions, with their middlewares, and backlogs. An
            exception that a middleware catches is no failure.

    Raises:
        ImportError: ``prometheus_client`` is not installed.
    """
    for option, flag in (
        ("measure_repository", measure_repository),
        ("measure_ticks", measure_ticks),
        ("measure_tasks", measure_tasks),
    ):
        check_flag(option, flag)
    metrics = _metrics()
    if measure_repository:
        calls = _Calls(metrics.repository)
        app.on_event(calls.began, events.StoreCallBegan)
        app.on_event(calls.ended, events.StoreCallEnded)
    if measure_ticks:
        passes = metrics.ticks
        app.on_event(lambda _: passes.begin(), events.PassBegan)
        app.on_event(lambda event: passes.end(event.took, event.exception), events.PassEnded)
        app.on_event(lambda event: metrics.lag.set(event.lag.total_seconds()), events.LoopAnswered)
    if measure_tasks:
        runs = _Runs(metrics)
        app.on_event(runs.started, events.Started)
        app.on_event(runs.ended, events.AttemptEnded)
        app.on_event(metrics.backlog.behind, events.Behind)
        app.on_event(metrics.backlog.waiting, events.Waiting)
        app.on_event(lambda event: metrics.lost.inc(event.attempts), events.HistoryLost)


class _Series:
    """The four metrics of one kind of operation, under one set of labels."""

    def __init__(self, operations: _Operations, labels: Sequence[str]) -> None:
        def child(metric: Any) -> Any:
            return metric.labels(*labels) if labels else metric

        self._failures = operations.failures
        self._labels = labels
        self._total: Counter = child(operations.total)
        self._duration: Histogram = child(operations.duration)
        self._in_progress: Gauge = child(operations.in_progress)

    def begin(self) -> None:
        self._in_progress.inc()

    def end(self, took: timedelta, failure: BaseException | None) -> None:
        self._duration.observe(took.total_seconds())
        self._in_progress.dec()
        self._total.inc()
        if failure is not None:
            self._failures.labels(*self._labels, class_name(failure)).inc()


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
            "For how long the soonest due run of the task has waited for a worker",
            ["task_name"],
            multiprocess_mode="max",
        )
        self._behind: dict[str, timedelta] = {}
        self._waiting: dict[str, timedelta] = {}

    def behind(self, event: events.Behind) -> None:
        """The occurrences of a record are late, of which only one is due at a time."""
        self._behind[event.task] = event.age
        self._count.labels(event.task).set(event.count)
        self._set_age(event.task)

    def waiting(self, event: events.Waiting) -> None:
        """A record is due, and no worker has claimed it."""
        self._waiting[event.task] = event.age
        self._set_age(event.task)

    def _set_age(self, task: str) -> None:
        age = max(self._behind.get(task, timedelta()), self._waiting.get(task, timedelta()))
        self._age.labels(task).set(age.total_seconds())


class _Metrics(NamedTuple):
    tasks: _Operations
    backlog: _Backlog
    staleness: Histogram
    ticks: _Series
    repository: _Operations
    lag: Gauge
    lost: Counter


@functools.cache
def _metrics() -> _Metrics:
    try:
        from prometheus_client import Counter, Gauge, Histogram
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
            "How long after their planned time, and their jitter, first attempts started",
            ["task_name"],
            buckets=STALENESS_BUCKETS_S,
        ),
        _Operations("ticks", "Passes of the loop").labelled(),
        _Operations("repository_ops", "Calls to the store", ["operation"]),
        Gauge(
            "pyncette_event_loop_lag_seconds",
            "How late the event loop of the worker answered when it was asked last",
            multiprocess_mode="livemax",
        ),
        Counter("pyncette_history_lost", "Attempts that are missing in the run history"),
    )


class _Runs:
    """The handlers of runs. A run that was cancelled has ended, but has not failed."""

    # The label is the template, because the number of instances is unbounded.

    def __init__(self, metrics: _Metrics) -> None:
        self._metrics = metrics

    def started(self, event: events.Started) -> None:
        if event.attempt == 1:  # a retry has waited because it should
            staleness = event.at - event.due_at
            self._metrics.staleness.labels(event.task).observe(max(staleness.total_seconds(), 0.0))
        self._metrics.tasks.labelled(event.task).begin()

    def ended(self, event: events.AttemptEnded) -> None:
        failure = event.exception if isinstance(event, events.Failed) else None
        self._metrics.tasks.labelled(event.task).end(event.took, failure)


class _Calls:
    """The handlers of calls of the store.

    A call that is cancelled counts as a failure: a call that takes too long ends like that.
    """

    def __init__(self, operations: _Operations) -> None:
        self._operations = operations

    def began(self, event: events.StoreCallBegan) -> None:
        self._operations.labelled(event.operation).begin()

    def ended(self, event: events.StoreCallEnded) -> None:
        self._operations.labelled(event.operation).end(event.took, event.exception)
