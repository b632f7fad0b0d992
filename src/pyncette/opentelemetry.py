"""Traces and metrics by OpenTelemetry, made from the events of an app.

Only the API package is needed; the application chooses and configures an SDK. Without one, nothing
is recorded.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pyncette import events
from pyncette.app import Pyncette
from pyncette.engine.run_events import OUTCOMES
from pyncette.errors import class_name
from pyncette.version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context as OtelContext
    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Link, Span, Tracer, TracerProvider

DURATION_BUCKETS_S: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0),
)


def use_opentelemetry(
    app: Pyncette,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Makes a span for each run, and metrics, from now on. Call it once for an app.

    The span of a run is the root of a trace of its own, linked to the span in which its instance
    was scheduled. It is current while the body runs, also in the thread of a plain function. Calls
    to the store that a body or a request of the application makes are spans too, if a span is
    current. The name of an instance is an attribute of spans, and never one of metrics, since there
    may be millions.

    Args:
        app: The app.
        tracer_provider: Makes the spans; the global one if not given.
        meter_provider: Makes the metrics; likewise.

    Raises:
        ImportError: ``opentelemetry-api`` is not installed.
    """
    try:
        from opentelemetry import metrics, trace
    except ImportError as error:
        raise ImportError(
            "use_opentelemetry needs the package opentelemetry-api, which is not installed: "
            "pip install 'pyncette[opentelemetry]'"
        ) from error
    traces = _Traces(trace.get_tracer("pyncette", __version__, tracer_provider))
    app._observers.set_origin(_origin)
    app.on_event(traces.started, events.Started)
    app.on_event(traces.ended, events.AttemptEnded)
    app.on_event(traces.call_ended, events.StoreCallEnded)
    meters = _Metrics(metrics.get_meter("pyncette", __version__, meter_provider))
    app.on_event(meters.started, events.Started)
    app.on_event(meters.ended, events.AttemptEnded)
    app.on_event(meters.call_ended, events.StoreCallEnded)
    app.on_event(meters.behind, events.Behind)
    app.on_event(meters.waiting, events.Waiting)
    app.on_event(meters.followed, *_FOLLOWS)


_FOLLOWS: Final[dict[type[events.TaskEvent], str]] = {
    events.NotStarted: "not_started",
    events.NotStartedAgain: "not_started_again",
    events.Retried: "retried",
    events.Parked: "parked",
    events.Paused: "paused",
    events.GivenUp: "given_up",
    events.LeaseLost: "lease_lost",
    events.NotRecorded: "not_recorded",
    events.Missed: "missed",
    events.Unreadable: "unreadable",
}
"""What follows a run, or takes its place, and how the metric calls it."""


class _Current(NamedTuple):
    """The span of the run whose asyncio task this is."""

    span: Span
    token: Token[OtelContext]


_current: ContextVar[_Current | None] = ContextVar("pyncette span", default=None)


class _Traces:
    """The handlers that make spans."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def started(self, event: events.Started) -> None:
        """Opens the span of a run, and makes it current in the asyncio task of the run."""
        from opentelemetry import context, trace

        span = self._tracer.start_span(
            f"run {event.task}",
            context=context.Context(),  # a root, wherever the worker was started
            kind=trace.SpanKind.CONSUMER,
            attributes=_about(event),
            links=_links(event.origin),
            start_time=_nanoseconds(event),
        )
        token = context.attach(trace.set_span_in_context(span))
        _current.set(_Current(span, token))

    def ended(self, event: events.AttemptEnded) -> None:
        """Ends the span of a run."""
        from opentelemetry import context
        from opentelemetry.trace import Status, StatusCode

        current = _current.get()
        if current is None:
            return  # it has started before the app was given to use_opentelemetry
        _current.set(None)
        context.detach(current.token)
        span = current.span
        span.set_attribute("pyncette.outcome", OUTCOMES[type(event)])
        if isinstance(event, events.Failed):
            span.record_exception(event.exception)
            span.set_attribute("error.type", class_name(event.exception))
            span.set_status(Status(StatusCode.ERROR, event.error))
        span.end(_nanoseconds(event))

    def call_ended(self, event: events.StoreCallEnded) -> None:
        """Makes the span of a call of the store, as a child of the current span."""
        from opentelemetry import trace
        from opentelemetry.trace import Status, StatusCode

        if not trace.get_current_span().get_span_context().is_valid:
            return  # the loop polls all the time
        end = _nanoseconds(event)
        span = self._tracer.start_span(
            f"store {event.operation}",
            kind=trace.SpanKind.CLIENT,
            attributes={"pyncette.operation": event.operation},
            start_time=end - event.took // timedelta(microseconds=1) * 1_000,
        )
        if event.exception is not None:
            span.set_attribute("error.type", class_name(event.exception))
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)


class _Metrics:
    """The handlers that record metrics."""

    def __init__(self, meter: Meter) -> None:
        self._duration = meter.create_histogram(
            "pyncette.run.duration",
            "s",
            "How long runs took",
            explicit_bucket_boundaries_advisory=DURATION_BUCKETS_S,
        )
        self._lateness = meter.create_histogram(
            "pyncette.run.lateness",
            "s",
            "How long after they came due runs started",
            explicit_bucket_boundaries_advisory=DURATION_BUCKETS_S,
        )
        self._active = meter.create_up_down_counter(
            "pyncette.run.active", "{run}", "Runs under way"
        )
        self._follows = meter.create_counter(
            "pyncette.run.events", "{event}", "What followed runs, or took their place"
        )
        self._backlog = meter.create_gauge(
            "pyncette.task.backlog",
            "{occurrence}",
            "Overdue occurrences of the record of the task that is furthest behind",
        )
        self._waiting = meter.create_gauge(
            "pyncette.task.waiting",
            "s",
            "For how long the soonest due record of the task has waited for a worker",
        )
        self._calls = meter.create_histogram(
            "pyncette.store.call.duration",
            "s",
            "How long calls of the store took",
            explicit_bucket_boundaries_advisory=DURATION_BUCKETS_S,
        )

    def started(self, event: events.Started) -> None:
        attributes = {"pyncette.task": event.task}
        if event.attempt == 1:  # a retry has waited because it should
            lateness = (event.at - event.due_at).total_seconds()
            self._lateness.record(max(lateness, 0.0), attributes)
        self._active.add(1, attributes)

    def ended(self, event: events.AttemptEnded) -> None:
        attributes = {"pyncette.task": event.task}
        self._active.add(-1, attributes)
        attributes["pyncette.outcome"] = OUTCOMES[type(event)]
        if isinstance(event, events.Failed):
            attributes["error.type"] = class_name(event.exception)
        self._duration.record(event.took.total_seconds(), attributes)

    def followed(self, event: events.TaskEvent) -> None:
        number = event.count if isinstance(event, events.Missed) else 1
        attributes = {"pyncette.task": event.task, "pyncette.event": _FOLLOWS[type(event)]}
        self._follows.add(number, attributes)

    def behind(self, event: events.Behind) -> None:
        self._backlog.set(event.count, {"pyncette.task": event.task})

    def waiting(self, event: events.Waiting) -> None:
        self._waiting.set(event.age.total_seconds(), {"pyncette.task": event.task})

    def call_ended(self, event: events.StoreCallEnded) -> None:
        attributes = {"pyncette.operation": event.operation}
        if event.exception is not None:
            attributes["error.type"] = class_name(event.exception)
        self._calls.record(event.took.total_seconds(), attributes)


def _origin() -> str | None:
    """The identity of the current span, which lies in the record of an instance."""
    from opentelemetry import trace

    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return None
    return f"{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"


def _links(origin: str | None) -> list[Link]:
    from opentelemetry.trace import Link, SpanContext, TraceFlags

    parts = () if origin is None else origin.split("-")
    if len(parts) != 3:
        return []
    try:
        trace_id, span_id, flags = (int(part, 16) for part in parts)
    except ValueError:
        return []  # a later release writes it otherwise, or it was edited
    return [Link(SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags)))]


def _about(event: events.Started) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "pyncette.task": event.task,
        "pyncette.execution_id": event.execution_id,
        "pyncette.attempt": event.attempt,
        "pyncette.planned_at": event.planned_at.isoformat(),
        "pyncette.worker": event.worker,
    }
    if event.instance is not None:
        attributes["pyncette.instance"] = event.instance
    return attributes


def _nanoseconds(event: events.Event) -> int:
    return int(event.at.timestamp() * 1_000_000) * 1_000
