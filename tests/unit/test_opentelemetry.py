"""Spans and metrics, as OpenTelemetry's own SDK gets them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from functools import partial
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from tests.support import START, Bench, after, run, seconds

from pyncette import Context, Instance, OnExisting, Retry, Skip
from pyncette.opentelemetry import _links, use_opentelemetry


class Recorded:
    """What the SDK has got of an app."""

    def __init__(self, bench: Bench) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        meters = MeterProvider(metric_readers=[self._reader])
        use_opentelemetry(bench.app, tracer_provider=self.provider, meter_provider=meters)

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def points(self, name: str) -> dict[frozenset[tuple[str, str]], Any]:
        """The points of a metric, by their attributes without those of the app."""
        data = self._reader.get_metrics_data()
        return {
            frozenset(
                (key.removeprefix("pyncette."), str(value))
                for key, value in (point.attributes or {}).items()
            ): point
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        }


def attributes(**wanted: str) -> frozenset[tuple[str, str]]:
    return frozenset((key.replace("__", "."), value) for key, value in wanted.items())


def test_a_run_is_a_span_that_is_current_in_its_body_and_of_its_length() -> None:
    seen: list[trace.Span] = []
    ids: list[str] = []

    async def main() -> None:
        bench = Bench(worker_name="w1")
        recorded = Recorded(bench)

        @bench.app.dynamic_task(name="job")
        async def job(context: Context) -> None:
            seen.append(trace.get_current_span())
            ids.append(context.execution_id)
            await bench.clock.sleep(3)

        outside = recorded.provider.get_tracer("test").start_as_current_span("the worker's own")
        with outside:
            async with bench.running() as context:
                await context.schedule_task(job, "a", execute_at=after(5))
                await bench.advance(30)
        [span] = recorded.spans("run job")
        assert span.get_span_context() == seen[0].get_span_context()
        assert span.parent is None
        assert span.kind is SpanKind.CONSUMER
        assert span.status.status_code is StatusCode.UNSET
        assert span.start_time == int(after(5).timestamp()) * 10**9
        assert span.end_time == int(after(8).timestamp()) * 10**9
        assert dict(span.attributes or {}) == {
            "pyncette.task": "job",
            "pyncette.instance": "a",
            "pyncette.execution_id": ids[0],
            "pyncette.attempt": 1,
            "pyncette.planned_at": after(5).isoformat(),
            "pyncette.worker": "w1",
            "pyncette.outcome": "succeeded",
        }
        assert trace.get_current_span() is trace.INVALID_SPAN

    run(main())


def test_runs_side_by_side_have_spans_of_their_own_and_threads_see_theirs() -> None:
    seen: dict[str, trace.SpanContext] = {}

    async def main() -> None:
        bench = Bench()
        recorded = Recorded(bench)

        @bench.app.dynamic_task(name="waiting")
        async def waiting(context: Context) -> None:
            await bench.clock.sleep(1)
            seen[context.task.name] = trace.get_current_span().get_span_context()

        @bench.app.dynamic_task(name="plain")
        def plain(context: Context) -> None:
            seen["plain"] = trace.get_current_span().get_span_context()

        async with bench.running() as context:
            for name in "abc":
                await context.schedule_task(waiting, name, execute_at=START)
            await context.schedule_task(plain, "p", execute_at=START)
            await bench.advance(5)
        found = {
            str((span.attributes or {})["pyncette.instance"]): span.get_span_context()
            for span in recorded.spans("run waiting")
        }
        assert {name: seen[name] for name in "abc"} == found
        assert [span.get_span_context() for span in recorded.spans("run plain")] == [seen["plain"]]
        assert len({context.trace_id for context in seen.values()}) == 4

    run(main())


def test_a_failure_is_an_error_with_its_exception_and_a_skip_is_none() -> None:
    async def main() -> None:
        bench = Bench()
        recorded = Recorded(bench)

        @bench.app.dynamic_task(name="fails", retry=Retry(attempts=2, initial=seconds(1)))
        async def fails(context: Context) -> None:
            raise ValueError("broken")

        @bench.app.dynamic_task(name="skips")
        async def skips(context: Context) -> None:
            raise Skip("nothing to do")

        @bench.app.dynamic_task(name="slow", timeout=seconds(1), retry=Retry(attempts=1))
        async def slow(context: Context) -> None:
            await bench.clock.sleep(10)

        async with bench.running() as context:
            for task in (fails, skips, slow):
                await context.schedule_task(task, "a", execute_at=START)
            await bench.advance(30)
        first, second = recorded.spans("run fails")
        assert [(span.attributes or {})["pyncette.attempt"] for span in (first, second)] == [1, 2]
        assert first.status.status_code is StatusCode.ERROR
        assert first.status.description == "ValueError: broken"
        assert (first.attributes or {})["error.type"] == "ValueError"
        assert first.events[0].name == "exception"
        [skipped] = recorded.spans("run skips")
        assert skipped.status.status_code is StatusCode.UNSET
        counts = {
            key: point.count for key, point in recorded.points("pyncette.run.duration").items()
        }
        assert counts == {
            attributes(task="fails", outcome="failed", error__type="ValueError"): 2,
            attributes(task="skips", outcome="skipped"): 1,
            attributes(task="slow", outcome="timed_out", error__type="TimeoutError"): 1,
        }
        followed = {
            key: point.value for key, point in recorded.points("pyncette.run.events").items()
        }
        assert followed == {
            attributes(task="fails", event="retried"): 1,
            attributes(task="fails", event="parked"): 1,
            attributes(task="slow", event="parked"): 1,
        }

    run(main())


def test_metrics_never_have_the_name_of_an_instance() -> None:
    async def main() -> None:
        bench = Bench()
        recorded = Recorded(bench)
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            await context.schedule_task(job, "instance-one", interval=seconds(100))
        await bench.clock.advance(seconds(1_050))
        async with bench.running():
            await bench.advance(2)
            assert recorded.points("pyncette.task.backlog")[attributes(task="job")].value > 0
            await bench.advance(40)
        assert recorded.points("pyncette.task.backlog")[attributes(task="job")].value == 0
        lateness = recorded.points("pyncette.run.lateness")[attributes(task="job")]
        assert (lateness.count, lateness.max) == (10, 950)
        assert recorded.points("pyncette.run.active")[attributes(task="job")].value == 0
        assert "instance-one" not in str(recorded._reader.get_metrics_data())

    run(main())


def test_calls_of_the_store_are_children_of_the_span_that_makes_them() -> None:
    async def main() -> None:
        bench = Bench(polls_always=True)
        recorded = Recorded(bench)
        job = bench.app.dynamic_task(name="job")(bench.note)
        tracer = recorded.provider.get_tracer("test")
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=after(100))
            assert not recorded.spans("store get")
            with tracer.start_as_current_span("request") as request:
                await context.get_task(job, "a")
            await bench.advance(30)
        [span] = recorded.spans("store get")
        assert span.parent == request.get_span_context()
        assert span.kind is SpanKind.CLIENT
        assert not recorded.spans("store claim"), "polls are no traces"
        claims = recorded.points("pyncette.store.call.duration")[attributes(operation="claim")]
        assert claims.count > 20

    run(main())


def test_the_runs_of_an_instance_are_linked_to_the_span_that_has_scheduled_it() -> None:
    async def main() -> None:
        bench = Bench()
        recorded = Recorded(bench)
        job = bench.app.dynamic_task(name="job")(bench.note)
        tracer = recorded.provider.get_tracer("test")
        async with bench.app.create() as context:
            with tracer.start_as_current_span("request") as request:
                await context.schedule_task(job, "one", interval=seconds(10))
            with tracer.start_as_current_span("import") as imported:
                await context.schedule_tasks(job, [Instance("bulk", execute_at=START)])
            await context.schedule_task(job, "alone", execute_at=START)
            with tracer.start_as_current_span("replacement") as later:
                await context.schedule_task(
                    job, "alone", execute_at=START, on_existing=OnExisting.REPLACE
                )
        async with bench.running():
            await bench.advance(25)
        links = [
            ((span.attributes or {})["pyncette.instance"], link.context.span_id)
            for span in recorded.spans("run job")
            for link in span.links
        ]
        assert sorted(links) == sorted(
            [
                ("one", request.get_span_context().span_id),
                ("one", request.get_span_context().span_id),
                ("bulk", imported.get_span_context().span_id),
                ("alone", later.get_span_context().span_id),
            ]
        )

    run(main())


def test_an_origin_that_no_release_knows_is_no_link() -> None:
    assert _links(None) == []
    assert _links("x-y-z") == []
    assert _links("1-2") == []
    observers = Bench().app._observers
    assert observers.origin() == ""
    for said in (None, "", "two words", "x" * 101, "a~b"):
        observers.set_origin(partial(str, said) if said is not None else lambda: None)
        assert observers.origin() == ""
    observers.set_origin(lambda: "a-b")
    assert observers.origin() == "~a-b"


def test_a_run_that_has_started_before_is_left_alone() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.dynamic_task(name="job")
        async def job(context: Context) -> None:
            await bench.clock.sleep(10)

        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=START)
            await bench.advance(1)
            recorded = Recorded(bench)
            await bench.advance(30)
        assert bench.app._observers.failures == 0
        assert not recorded.spans("run job")

    run(main())


def test_without_an_sdk_nothing_is_recorded_and_nothing_fails() -> None:
    async def main() -> None:
        bench = Bench()
        use_opentelemetry(bench.app)
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=START)
            await bench.advance(5)
        assert len(bench.runs) == 1
        assert bench.app._observers.failures == 0

    asyncio.run(main())


def test_the_package_is_imported_only_when_it_is_used() -> None:
    program = (
        "import sys; import pyncette, pyncette.opentelemetry;"
        "assert 'opentelemetry' not in sys.modules; sys.modules['opentelemetry'] = None;"
        "pyncette.opentelemetry.use_opentelemetry(pyncette.Pyncette())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert "pip install 'pyncette[opentelemetry]'" in done.stderr
