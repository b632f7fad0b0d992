"""The metrics, as Prometheus would scrape them.

They belong to the process, so that each test has tasks of its own names or looks at what was
added.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any
from urllib.request import urlopen

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.faulty_store import Fail, Faults, Gate, faulty
from tests.support import START, Bench, after, micros, run

from pyncette import Context, PerWorker, Pyncette, PyncetteContext, Retry
from pyncette.events import HistoryLost, LoopAnswered
from pyncette.memory import MemoryRepository
from pyncette.model import NextFunc
from pyncette.observers import Reporter
from pyncette.prometheus import use_prometheus
from pyncette.retry import GiveUp, RetryIn, Skip
from pyncette.schedule import At
from pyncette.store import EVERYTHING
from pyncette.store.deadline import DeadlineStore
from pyncette.testing import VirtualClock

STALENESS_BUCKETS = [
    *("0.05", "0.1", "0.25", "0.5", "0.75", "1.0", "2.5", "5.0", "7.5", "10.0", "25.0", "50.0"),
    *("75.0", "100.0", "250.0", "500.0", "750.0", "1000.0", "+Inf"),
]


class Scrape:
    """What one scrape has brought."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.values = {
            (sample.name.removeprefix("pyncette_"), frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self.values.get((name, frozenset(labels.items())), 0.0)

    def labels(self, name: str) -> list[dict[str, str]]:
        return [dict(labels) for known, labels in self.values if known == name]


@pytest.fixture(scope="module")
def scrape() -> Iterator[Callable[[], Scrape]]:
    server, thread = prometheus_client.start_http_server(0, "127.0.0.1")

    def ask() -> Scrape:
        with urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=10) as answer:
            return Scrape(answer.read().decode())

    yield ask
    server.shutdown()
    server.server_close()
    thread.join()


@asynccontextmanager
async def running(app: Pyncette) -> AsyncIterator[PyncetteContext]:
    async with app.create() as context:
        loop = asyncio.create_task(context.run())
        await clock_of(app).settle()
        yield context
        context.shutdown()
        await loop


def clock_of(app: Pyncette) -> VirtualClock:
    clock = app.clock
    assert isinstance(clock, VirtualClock)
    return clock


def new_app(faults: Faults | None = None, **measured: bool) -> Pyncette:
    store = MemoryRepository()
    clock = VirtualClock(every_poll=True)
    app = Pyncette(store if faults is None else faulty(store, faults), clock=clock)
    use_prometheus(app, **measured)
    return app


@asynccontextmanager
async def measured_store(app: Pyncette) -> AsyncIterator[DeadlineStore]:
    """The store of an app that is open, as the engine calls it."""
    async with app.create() as context:
        yield context._store


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


async def run_once(app: Pyncette, task: Any, *instances: str, late_s: float = 0) -> None:
    clock = clock_of(app)
    async with running(app) as context:
        for instance in instances:
            planned = clock.now() - seconds(late_s)
            await context.schedule_task(task, instance, execute_at=planned)
        await clock.advance(seconds(30))


def test_what_a_body_raises_to_say_something_is_no_failure(scrape: Callable[[], Scrape]) -> None:
    app = new_app()
    acts = [RetryIn(seconds(1)), Skip("nothing to do")]

    @app.dynamic_task(name="says")
    async def body(context: Context) -> None:
        raise acts.pop(0)

    @app.dynamic_task(name="gives up")
    async def final(context: Context) -> None:
        raise GiveUp("no use")

    asyncio.run(run_once(app, body, "a"))
    asyncio.run(run_once(app, final, "a"))
    seen = scrape()
    assert seen.value("tasks_total", task_name="says") == 2
    assert 'failures_total{exception_type="Skip"' not in seen.text
    assert 'failures_total{exception_type="RetryIn"' not in seen.text
    failed = {"task_name": "gives up", "exception_type": "GiveUp"}
    assert seen.value("tasks_failures_total", **failed) == 1


def test_executions_are_counted_and_timed_under_the_name_of_their_template(
    scrape: Callable[[], Scrape],
) -> None:
    app = new_app()

    @app.dynamic_task(name="counted")
    async def body(context: Context) -> None:
        await clock_of(app).sleep(3)

    asyncio.run(run_once(app, body, "instance-one", "instance-two"))
    seen = scrape()
    assert seen.value("tasks_total", task_name="counted") == 2
    assert seen.value("tasks_duration_seconds_count", task_name="counted") == 2
    assert seen.value("tasks_duration_seconds_sum", task_name="counted") == 6
    assert seen.value("tasks_in_progress", task_name="counted") == 0
    assert "instance-one" not in seen.text


def test_a_partitioned_task_is_counted_under_its_name_without_the_partition(
    scrape: Callable[[], Scrape],
) -> None:
    app = new_app()

    @app.partitioned_task(4, name="parted")
    async def body(context: Context) -> None: ...

    asyncio.run(run_once(app, body, "a", "b", "c"))
    assert scrape().value("tasks_total", task_name="parted") == 3


def test_a_static_task_is_counted_under_its_name(scrape: Callable[[], Scrape]) -> None:
    app = new_app()

    @app.task(name="fixed", interval=seconds(10))
    async def body(context: Context) -> None: ...

    asyncio.run(run_once(app, body))
    assert scrape().value("tasks_total", task_name="fixed") == 3


def test_a_failed_execution_is_counted_by_the_type_of_its_exception(
    scrape: Callable[[], Scrape],
) -> None:
    app = new_app()

    @app.dynamic_task(name="failing")
    async def body(context: Context) -> None:
        raise KeyError("no such thing")

    asyncio.run(run_once(app, body, "a"))
    seen = scrape()
    assert seen.value("tasks_total", task_name="failing") == 1
    assert seen.value("tasks_failures_total", task_name="failing", exception_type="KeyError") == 1
    assert seen.value("tasks_duration_seconds_count", task_name="failing") == 1
    assert seen.value("tasks_in_progress", task_name="failing") == 0


def test_a_running_execution_is_in_progress(scrape: Callable[[], Scrape]) -> None:
    app = new_app()

    @app.dynamic_task(name="lasting")
    async def body(context: Context) -> None:
        await clock_of(app).sleep(3)

    async def main() -> Scrape:
        async with running(app) as context:
            await context.schedule_task(body, "a", execute_at=clock_of(app).now())
            await clock_of(app).advance(seconds(1))
            seen = scrape()
            await clock_of(app).advance(seconds(10))
            return seen

    seen = asyncio.run(main())
    assert seen.value("tasks_in_progress", task_name="lasting") == 1
    assert seen.value("tasks_total", task_name="lasting") == 0


def test_a_cancelled_execution_is_no_failure(scrape: Callable[[], Scrape]) -> None:
    app = new_app()

    @app.dynamic_task(name="cancelled")
    async def body(context: Context) -> None:
        await clock_of(app).sleep(1_000)

    async def main() -> None:
        async with app.create() as context:
            loop = asyncio.create_task(context.run())
            await context.schedule_task(body, "a", execute_at=clock_of(app).now())
            await clock_of(app).advance(seconds(1))
            loop.cancel()
            with suppress(asyncio.CancelledError):
                await loop

    asyncio.run(main())
    seen = scrape()
    assert seen.value("tasks_total", task_name="cancelled") == 1
    assert seen.value("tasks_in_progress", task_name="cancelled") == 0
    assert not any(
        labels["task_name"] == "cancelled" for labels in seen.labels("tasks_failures_total")
    )


def test_staleness_is_how_long_after_its_planned_time_an_execution_starts(
    scrape: Callable[[], Scrape],
) -> None:
    app = new_app()

    @app.dynamic_task(name="stale")
    async def body(context: Context) -> None:
        await clock_of(app).sleep(5)

    asyncio.run(run_once(app, body, "a", late_s=42))
    seen = scrape()
    assert seen.value("tasks_staleness_seconds_sum", task_name="stale") == 42
    buckets = {
        labels["le"]: seen.value("tasks_staleness_seconds_bucket", **labels)
        for labels in seen.labels("tasks_staleness_seconds_bucket")
        if labels["task_name"] == "stale"
    }
    assert list(buckets) == STALENESS_BUCKETS
    assert buckets["25.0"] == 0
    assert buckets["50.0"] == 1


def test_a_jitter_is_no_staleness(scrape: Callable[[], Scrape]) -> None:
    async def main() -> float:
        bench = Bench()
        use_prometheus(bench.app)
        jitter = timedelta(seconds=1_000)
        job = bench.app.dynamic_task(name="spread", jitter=jitter)(bench.note)
        due = At(START).with_jitter(jitter).due(micros(0), job.group, "a")
        waits_s = (due - micros(0)) / 1_000_000
        async with bench.app.create() as context:
            await context.schedule_task(job, "a", execute_at=START)
            await context.schedule_task(job, "b", execute_at=after(5_000))
            await context.trigger(job, "b")
        await bench.advance(waits_s + 7)
        async with bench.running():
            assert len(bench.runs) == 2
        return waits_s

    waits_s = run(main())
    found = scrape().value("tasks_staleness_seconds_sum", task_name="spread")
    # One 7 s after it came due, and a triggered one, which does not wait for its jitter.
    assert found == pytest.approx(7 + waits_s + 7)


def test_a_retry_is_no_staleness_and_a_parked_run_counts_from_when_it_was_asked_for(
    scrape: Callable[[], Scrape],
) -> None:
    async def main() -> None:
        bench = Bench()
        use_prometheus(bench.app)
        retry = Retry(attempts=2, initial=timedelta(seconds=60), jitter=0)
        job = bench.app.dynamic_task(name="retried", retry=retry)(bench.fail)
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=after(1))
            await bench.advance(100)
            assert await context.retry_parked(job, "a")
            await bench.advance(1)
            assert len(bench.runs) == 3

    run(main())
    seen = scrape()
    assert seen.value("tasks_staleness_seconds_count", task_name="retried") == 2
    assert seen.value("tasks_staleness_seconds_sum", task_name="retried") == 0


def test_middlewares_are_part_of_a_run_and_what_they_catch_is_no_failure(
    scrape: Callable[[], Scrape],
) -> None:
    clock = VirtualClock()
    app = Pyncette(MemoryRepository(), clock=clock)

    @app.middleware
    async def outside(context: Context, following: NextFunc) -> None:
        await clock.sleep(1)
        await following()

    use_prometheus(app)

    @app.middleware
    async def swallowing(context: Context, following: NextFunc) -> None:
        await clock.sleep(2)
        with suppress(KeyError):
            await following()

    @app.dynamic_task(name="among")
    async def body(context: Context) -> None:
        raise KeyError("swallowed")

    asyncio.run(run_once(app, body, "a"))
    seen = scrape()
    assert seen.value("tasks_duration_seconds_sum", task_name="among") == 3
    assert not any(labels["task_name"] == "among" for labels in seen.labels("tasks_failures_total"))


def test_each_call_to_the_store_is_counted_under_its_name(scrape: Callable[[], Scrape]) -> None:
    async def main() -> None:
        async with measured_store(new_app()) as store:
            await store.claim([], 1, 0, "token")
            await store.write([], 0)
            await store.get([])
            await store.scan("group", EVERYTHING, None, 1)
            await store.now()
            await store.count("group", EVERYTHING, 1)
            watch = await store.watch([], lambda groups: None)
            assert watch is not None
            watch.close()

    before = scrape()
    asyncio.run(main())
    after = scrape()
    for operation in ("claim", "write", "get", "scan", "count", "now", "watch"):
        for name in ("repository_ops_total", "repository_ops_duration_seconds_count"):
            added = after.value(name, operation=operation) - before.value(name, operation=operation)
            assert added == 1, (name, operation)
        assert after.value("repository_ops_in_progress", operation=operation) == 0


def test_a_store_that_fails_shows_in_the_calls_and_in_the_passes_of_the_loop(
    scrape: Callable[[], Scrape],
) -> None:
    faults = Faults()
    app = new_app(faults)

    async def main() -> None:
        async with running(app):
            faults.next("claim", Fail(OSError("down")))
            await clock_of(app).advance(seconds(30))

    before = scrape()
    asyncio.run(main())
    after = scrape()

    def added(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert added("repository_ops_failures_total", operation="claim", exception_type="OSError") == 1
    assert added("ticks_failures_total", exception_type="OSError") == 1
    assert added("ticks_total") == added("repository_ops_total", operation="claim") > 20
    assert added("ticks_duration_seconds_count") == added("ticks_total")
    assert after.value("ticks_in_progress") == 0


def test_a_call_to_the_store_that_is_given_up_is_a_failure(scrape: Callable[[], Scrape]) -> None:
    async def main() -> None:
        faults, gate = Faults(), Gate()
        async with measured_store(new_app(faults)) as store:
            faults.next("get", gate)
            call = asyncio.create_task(store.get([]))
            await gate.reached()
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call

    labels = {"operation": "get", "exception_type": "CancelledError"}
    before = scrape().value("repository_ops_failures_total", **labels)
    asyncio.run(main())
    assert scrape().value("repository_ops_failures_total", **labels) == before + 1


def test_durations_are_those_of_the_clock_of_the_app(scrape: Callable[[], Scrape]) -> None:
    async def main() -> None:
        app = new_app()
        clock = clock_of(app)
        # Not through an open app: while it calls the store, this clock stands still.
        reporter = Reporter(app._observers, clock, "worker")
        call = asyncio.create_task(reporter.call("scan", clock.sleep(7)))
        await clock.advance(seconds(7))
        await call

    before = scrape().value("repository_ops_duration_seconds_sum", operation="scan")
    asyncio.run(main())
    after = scrape().value("repository_ops_duration_seconds_sum", operation="scan")
    assert after - before == 7


@pytest.mark.parametrize("measured", ["measure_repository", "measure_ticks", "measure_tasks"])
def test_only_what_is_asked_for_is_measured(scrape: Callable[[], Scrape], measured: str) -> None:
    switches = dict.fromkeys(("measure_repository", "measure_ticks", "measure_tasks"), False)
    app = new_app(None, **{**switches, measured: True})

    @app.dynamic_task(name="chosen")
    async def body(context: Context) -> None: ...

    def totals() -> dict[str, float]:
        seen = scrape()
        return {
            "measure_repository": seen.value("repository_ops_total", operation="claim"),
            "measure_ticks": seen.value("ticks_total"),
            "measure_tasks": seen.value("tasks_total", task_name="chosen"),
        }

    before = totals()
    asyncio.run(run_once(app, body, "a"))
    after = totals()
    assert [kind for kind in after if after[kind] > before[kind]] == [measured]


def test_apps_of_one_process_share_the_metrics(scrape: Callable[[], Scrape]) -> None:
    for _ in range(2):
        app = new_app()

        @app.dynamic_task(name="shared")
        async def body(context: Context) -> None: ...

        asyncio.run(run_once(app, body, "a"))
    assert scrape().value("tasks_total", task_name="shared") == 2


def test_what_is_no_store_is_refused_by_the_name_of_its_class() -> None:
    class Repository:
        """As of 1.x."""

    @asynccontextmanager
    async def factory(**configuration: Any) -> AsyncIterator[Any]:
        yield Repository()

    async def main() -> None:
        app = Pyncette(factory)
        use_prometheus(app)
        async with app.create():
            pass

    with pytest.raises(TypeError, match="yielded Repository, which is not a store"):
        asyncio.run(main())


def python(program: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return ended.stdout


def test_the_package_of_prometheus_is_not_imported_before_it_is_used() -> None:
    program = "import sys, pyncette.prometheus; print('prometheus_client' in sys.modules)"
    assert python(program) == "False\n"


def test_a_missing_package_is_an_error_that_says_what_to_install() -> None:
    program = """
import sys
sys.modules["prometheus_client"] = None
from pyncette import Pyncette
from pyncette.observers import Reporter
from pyncette.prometheus import use_prometheus
try:
    use_prometheus(Pyncette())
except ImportError as error:
    print(error)
"""
    assert "pip install 'pyncette[prometheus]'" in python(program)


def test_a_backlog_is_told_until_it_has_been_caught_up_with(scrape: Callable[[], Scrape]) -> None:
    clock = VirtualClock()
    app = Pyncette(MemoryRepository(), clock=clock)
    use_prometheus(app)
    during: list[tuple[float, float]] = []

    @app.task(name="behind", interval=timedelta(minutes=10))
    async def behind(context: Context) -> None:
        during.append(
            (
                scrape().value("tasks_backlog", task_name="behind"),
                scrape().value("tasks_backlog_age_seconds", task_name="behind"),
            )
        )

    async def main() -> None:
        async with app.create() as context:
            loop = asyncio.create_task(context.run())
            await clock.settle()
            behind.enabled = False
            await clock.advance(timedelta(minutes=35))
            behind.enabled = True
            await clock.advance(timedelta(minutes=1))
            context.shutdown()
            await loop

    asyncio.run(main())
    assert during == [(3, 1501), (2, 902), (0, 0)], "a second of pause before the second one"


def test_the_lag_of_the_event_loop_is_a_gauge(scrape: Callable[[], Scrape]) -> None:
    async def main() -> None:
        app = Pyncette(MemoryRepository(), block_warning=seconds(0.02))
        use_prometheus(app)
        measured = asyncio.Event()
        loop = asyncio.get_running_loop()

        def note(event: LoopAnswered) -> None:
            loop.call_soon_threadsafe(measured.set)

        app.on_event(note, LoopAnswered)
        async with app.running():
            await measured.wait()

    asyncio.run(main())
    assert scrape().value("event_loop_lag_seconds") > 0


def test_attempts_that_are_missing_in_the_history_are_counted(
    scrape: Callable[[], Scrape],
) -> None:
    bench = Bench()
    use_prometheus(bench.app)
    before = scrape()
    reporter = Reporter(bench.app._observers, bench.clock, "worker")
    for attempts in (3, 4):
        reporter.tell(HistoryLost(**reporter.here(), attempts=attempts, reason="it is full"))
    added = scrape().value("history_lost_total") - before.value("history_lost_total")
    assert added == 7


def test_one_off_runs_that_wait_have_an_age_too(scrape: Callable[[], Scrape]) -> None:
    clock = VirtualClock()
    app = Pyncette(MemoryRepository(), clock=clock)
    use_prometheus(app)

    @app.dynamic_task(name="waiting", limit=PerWorker(1))
    async def waiting(context: Context) -> None:
        await clock.sleep(600)

    def age() -> float:
        return scrape().value("tasks_backlog_age_seconds", task_name="waiting")

    async def main() -> None:
        async with app.running() as context:
            assert {"task_name": "waiting"} not in scrape().labels("tasks_backlog_age_seconds")
            await clock.advance(timedelta(seconds=1))
            # Also while nothing waits, so that an alert sees that it is measured.
            assert {"task_name": "waiting"} in scrape().labels("tasks_backlog_age_seconds")
            for name in range(2):
                await context.schedule_task(waiting, str(name), execute_in=timedelta(seconds=1))
            await clock.advance(timedelta(seconds=301))
            assert age() == 300
            await clock.advance(timedelta(seconds=302))
            assert age() == 0
            await clock.advance(timedelta(seconds=600))

    asyncio.run(main())
