"""What ``pyncette doctor`` warns of, each made in a store as it comes about in practice."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tests.unit.web_site import Browser, ada

from pyncette import Context, Pyncette, PyncetteContext, Where, acting_as, checks
from pyncette.cli import doctor, steering
from pyncette.cli.arguments import main
from pyncette.cli.printing import Printer
from pyncette.clock import SystemClock
from pyncette.errors import StoreUnavailableError
from pyncette.history import use_history
from pyncette.memory import MemoryRepository
from pyncette.store import EVERYTHING, Key, Write
from pyncette.store.record import ABSENT, ANY, Patch, Put, Record, State, group_of
from pyncette.testing import VirtualClock
from pyncette.web import dashboard, reading

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


async def nothing(context: Context) -> None:
    pass


async def failing(context: Context) -> None:
    raise RuntimeError("no mail today")


NOTICES = {
    "workers": "No worker is alive|Silent: ",
    "workers that died": "Died: ",
    "tasks without a worker": "No worker runs ",
    "overdue": "overdue",
    "partitions": "Overdue in partitions: ",
    "moves": "is moved to|in partitions that no worker claims from",
    "parked": "parked",
    "failing": "has failed|retrying",
    "speed": "The store is slow",
    "clock": "The clock of this machine",
    "unknown tasks": "Not declared: ",
    "never due": "never come due",
    "leases": "lasts? too long",
    "paused tasks": "(is|was) paused|paused, each by itself",
    "paused templates": "(is|was) paused",
}
"""What the overview of the dashboard says where a check warns."""


async def examined(app: Pyncette, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """What the doctor finds in an app, by the names of its checks; the dashboard finds the same."""
    capsys.readouterr()
    await doctor.examine(lambda: (app, True), Printer(as_json=True))
    found = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    notices = await attention(app)
    for name, said in NOTICES.items():
        if name in found:
            warned = found[name]["level"] != "ok"
            if warned or not name.startswith("paused"):  # a pause that ends is a note there
                assert any(re.search(said, notice) for notice in notices) is warned, (name, notices)
    return found


async def attention(app: Pyncette) -> list[str]:
    """What needs attention, as the overview of the dashboard has it."""
    board = dashboard(app, ada)
    try:
        page = await Browser(board).get()
    finally:
        await board._opened.close()
    return re.findall(r'<li class="(?:bad|warn|rest)">(.*?)</li>', page, re.DOTALL)


class Installation:
    """A store in memory, with a clock that the test moves, and the apps on it."""

    def __init__(self) -> None:
        self.clock = VirtualClock(start=NOON)
        self.repository = MemoryRepository()

    def app(self, declare: Callable[[Pyncette], object] = lambda app: None, **options: Any) -> Any:
        app = Pyncette(self.repository, clock=self.clock, **options)
        declare(app)
        return app


def plain(app: Pyncette) -> None:
    app.task(interval=timedelta(hours=1), name="report")(nothing)
    app.dynamic_task(interval=timedelta(hours=1), name="reminder")(nothing)


@asynccontextmanager
async def working(app: Pyncette) -> AsyncIterator[PyncetteContext]:
    """A worker, until the block ends."""
    async with app.create() as context:
        running = asyncio.ensure_future(context.run())
        try:
            yield context
        finally:
            context.shutdown()
            await running


@asynccontextmanager
async def frozen(place: Installation) -> AsyncIterator[None]:
    """A worker for which time stands still, as for one under SIGSTOP."""
    clock = VirtualClock(start=NOON)
    app = Pyncette(place.repository, clock=clock, worker_name="stuck")
    plain(app)
    async with working(app):
        await clock.advance(timedelta(seconds=1))
        yield


def test_a_worker_that_has_not_written_for_a_while_is_silent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def scenario() -> None:
        place = Installation()
        async with frozen(place):
            await place.clock.advance(timedelta(seconds=50))
            found = (await examined(place.app(plain), capsys))["workers"]
            assert (found["level"], found["found"]) == ("warn", "silent for more than 40 s: stuck")
            assert "restart it" in found["advice"]

    asyncio.run(scenario())


def test_a_worker_that_died_is_named_until_another_one_of_its_name_is_alive(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def scenario() -> None:
        place = Installation()
        async with frozen(place):
            await place.clock.advance(timedelta(minutes=5))
            found = await examined(place.app(plain), capsys)
            assert (found["workers"]["level"], found["workers"]["found"]) == (
                "warn",
                "none is alive",
            )
            died = found["workers that died"]
            assert died["level"] == "warn"
            assert died["found"].startswith("stuck on ")
            assert "last seen 5 min" in died["found"]
            async with working(place.app(plain, worker_name="stuck")):
                await place.clock.advance(timedelta(seconds=1))
                found = await examined(place.app(plain), capsys)
                assert found["workers that died"]["level"] == found["workers"]["level"] == "ok"
            await place.clock.advance(timedelta(hours=2))
            found = await examined(place.app(plain), capsys)
            assert found["workers that died"]["level"] == "ok"

    asyncio.run(scenario())


def test_what_there_is_one_of_is_not_counted_as_several() -> None:
    lines: list[str] = []

    class Read(Printer):
        def text(self, line: str) -> None:
            lines.append(line)

    def fail() -> tuple[Pyncette, bool]:
        raise ImportError("no driver")

    asyncio.run(doctor.examine(fail, Read()))
    assert lines[-1] == "1 check, 0 warnings, 1 failure"


def test_the_app_is_closed_when_nobody_reads_the_checks_any_more() -> None:
    class Read(Printer):
        def text(self, line: str) -> None:
            if "speed: answers in" in line:
                raise BrokenPipeError

    async def main() -> None:
        app = Installation().app()
        with pytest.raises(BrokenPipeError):
            await doctor.examine(lambda: (app, True), Read())
        assert not app._opened.here()

    asyncio.run(main())


LEASE = 60_000_000
DAYS = 86_400_000_000


def late(app: Pyncette) -> None:
    app.task(interval=timedelta(hours=1), name="report")(nothing)
    app.dynamic_task(interval=timedelta(hours=1), name="reminder")(nothing)
    app.dynamic_task(name="letter")(nothing)


async def claimed(
    context: PyncetteContext, keys: list[tuple[str, str]], ahead: int, lease: int = LEASE
) -> None:
    """They are claimed by a worker that is killed, by a clock that is ahead."""
    now = context.clock.microseconds() + ahead
    sources = [Key(group, key, lease) for group, key in keys]
    found = await context._store.claim(sources, len(keys), now, f"killed:1:{now}")
    assert len(found.records) == len(keys)


def test_a_lease_that_a_clock_ahead_has_counted_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def scenario() -> None:
        place = Installation()
        app = place.app(late)
        report, reminder, letter = app.tasks
        async with app.create() as context:
            for name in ("a", "failed", "long"):
                await context.schedule_task(reminder, name)
            await context.schedule_task(letter, "x", execute_at=NOON)
            assert (await examined(app, capsys))["leases"]["level"] == "ok"
            # A release with a longer lease runs it.
            await claimed(context, [("reminder", "long")], 3_600_000_000, 10 * DAYS)
            await place.clock.advance(timedelta(hours=1))
            assert (await examined(app, capsys))["leases"]["level"] == "ok"
            await claimed(context, [("reminder", "a"), ("reminder", "failed")], 2 * DAYS)
            # A failed run has left its lease.
            until = context.clock.microseconds() + 2 * DAYS + LEASE
            left = Write("reminder", "failed", Patch(until, State.RUNNING, 0), ANY)
            await context._store.write([left], context.clock.microseconds())
            await context.trigger(report)
            await claimed(context, [(report.group, report.key)], 2 * DAYS)
            found = (await examined(app, capsys))["leases"]
            assert found["level"] == "warn"
            assert found["found"] == (
                "report, reminder a until 2026-05-06 13:01:00+00:00, "
                "reminder failed until 2026-05-06 13:01:00+00:00"
            )
            notices = await attention(app)
            [said] = [notice for notice in notices if "reminder: 2 leases" in notice]
            assert "such as that of a" in said
            assert any("report: its lease lasts too long" in notice for notice in notices)
            await context.unschedule_task(reminder, "a")
            await context.schedule_task(reminder, "failed", force=True)
            async with working(place.app(late)):
                await place.clock.advance(timedelta(minutes=2))
            assert (await examined(app, capsys))["leases"]["level"] == "ok"

    asyncio.run(scenario())


def test_the_dashboard_looks_at_fewer_instances_of_many_templates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "LOOKED_AT_MAX", 4)

    async def scenario() -> None:
        app = Installation().app(late)
        _, reminder, letter = app.tasks
        async with app.create() as context:
            for name in "abc":
                await context.schedule_task(reminder, name)
                await context.schedule_task(letter, name, execute_at=NOON)
            await claimed(context, [("letter", name) for name in "abc"], 2 * DAYS)
            lost = Write("reminder", "a", Patch(None, State.SCHEDULED, 0), ANY)
            await context._store.write([lost], context.clock.microseconds())
            notices = await attention(app)
            assert any("letter: 2 leases last too long" in notice for notice in notices)
            [said] = [notice for notice in notices if "never come due" in notice]
            assert "reminder: 1 instances never come due, such as a" in said

    asyncio.run(scenario())


def test_what_no_index_tells_is_looked_for_in_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    def spread(app: Pyncette) -> None:
        app.partitioned_task(20, interval=timedelta(hours=1), name="spread")(nothing)

    async def scenario() -> None:
        app = Installation().app(spread)
        [task] = app.tasks
        async with app.create() as context:
            for number in range(40):
                await context.schedule_task(task, f"i{number}")
            calls = 0
            listed = context.list_tasks

            async def counted(*given: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                return await listed(*given, **options)

            monkeypatch.setattr(context, "list_tasks", counted)
            assert (await checks.look(context, task, 40, 3)).partial
            assert calls == 3
            assert not (await checks.look(context, task, 40)).partial
            assert (await checks.look(context, task, 39)).partial

    asyncio.run(scenario())


def test_who_triggers_what_runs_is_told_that_it_waits(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        place = Installation()
        app = place.app(late)
        report, reminder, _ = app.tasks
        board = dashboard(app, ada)
        browser = Browser(board)

        async def trigger(name: str) -> str:
            out = io.StringIO()
            given = SimpleNamespace(task="reminder")
            session = SimpleNamespace(
                context=context,
                arguments=given,
                chosen=lambda: (reminder, name),
                filtered=lambda task, instance: False,
                out=SimpleNamespace(data=lambda row: None, text=out.write),
            )
            await steering.trigger(session)  # type: ignore[arg-type]
            return out.getvalue()

        async with app.create() as context:
            for name in ("far", "near", "failed", "waits"):
                await context.schedule_task(reminder, name)
            await place.clock.advance(timedelta(hours=1))
            await claimed(context, [("reminder", "near")], 0)
            await claimed(context, [("reminder", "far"), ("reminder", "failed")], 2 * DAYS)
            until = context.clock.microseconds() + 2 * DAYS + LEASE
            left = Write("reminder", "failed", Patch(until, State.RUNNING, 0), ANY)
            await context._store.write([left], context.clock.microseconds())
            end = "its lease ends at 2026-05-06 13:01:00+00:00"
            again = "runs once more when what runs has ended"
            assert await trigger("waits") == "reminder:waits runs now, once more"
            assert await trigger("waits") == "reminder:waits is due to run already"
            assert await trigger("near") == f"reminder:near {again}"
            assert await trigger("far") == f"reminder:far {again}: {end}"
            assert await trigger("far") == (
                "reminder:far is due to run once more already, when what runs has ended: " + end
            )
            assert await trigger("failed") == (
                f"reminder:failed runs once more when its next attempt has ended: {end}"
            )
            said = await browser.act("trigger", "reminder", instance="far")
            assert said.startswith("reminder:far is due to run once more already")
            assert await browser.act("trigger", "report") == "report runs now, once more."
            await claimed(context, [(report.group, report.key)], 1_000_000)
            assert await browser.act("trigger", "report") == f"report {again}."
            assert "report does not run before" not in caplog.text
            await place.clock.advance(timedelta(hours=1))
            await claimed(context, [(report.group, report.key)], 2 * DAYS)
            assert (await browser.act("trigger", "report")).startswith("report is due to run once")
            assert "report does not run before its lease ends at 2026-05-06" in caplog.text
            assert "start a worker" in caplog.text
        await board._opened.close()

    asyncio.run(scenario())


def test_a_store_that_stops_answering_is_not_taken_for_one_that_is_not_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def locked(self: PyncetteContext, name: str) -> None:
        raise StoreUnavailableError("canceling statement due to lock timeout")

    async def main() -> None:
        monkeypatch.setattr(PyncetteContext, "purge", locked)
        found = await examined(Installation().app(), capsys)
        assert "rights" not in found
        assert "has something locked the table" in found["store"]["advice"]
        assert "firewall" not in found["store"]["advice"]

    asyncio.run(main())


def test_a_worker_that_was_stopped_has_not_died(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        place = Installation()
        async with working(place.app(plain, worker_name="good")):
            await place.clock.advance(timedelta(seconds=1))
        found = await examined(place.app(plain), capsys)
        assert found["workers that died"]["level"] == "ok"

    asyncio.run(scenario())


def test_a_task_that_no_living_worker_runs_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def tagged(app: Pyncette) -> None:
        plain(app)
        app.task(interval=timedelta(hours=1), name="render", tags={"gpu"})(nothing)

    async def scenario() -> None:
        place = Installation()
        async with working(place.app(tagged)):
            await place.clock.advance(timedelta(seconds=1))
            found = (await examined(place.app(tagged), capsys))["tasks without a worker"]
            assert (found["level"], found["found"]) == ("warn", "render")
            assert "worker_tags" in found["advice"]
            async with working(place.app(tagged, worker_tags={"gpu"})):
                await place.clock.advance(timedelta(seconds=1))
                found = (await examined(place.app(tagged), capsys))["tasks without a worker"]
                assert (found["level"], found["found"]) == ("ok", "none")

    asyncio.run(scenario())


def test_a_partition_that_no_worker_claims_from_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def spread(app: Pyncette, **options: Any) -> Any:
        return app.partitioned_task(2, interval=timedelta(hours=1), name="spread", **options)(
            nothing
        )

    async def scenario() -> None:
        place = Installation()
        half = place.app(lambda app: spread(app, enabled_partitions=[0]))
        async with working(half) as context:
            for number in range(8):
                await context.schedule_task(half.tasks[0], f"i{number}")
            late = half.tasks[0].get_partitions()[1]
            await place.clock.advance(timedelta(hours=3))
            found = (await examined(place.app(spread), capsys))["partitions"]
            assert (found["level"], found["found"]) == ("warn", f"with overdue instances: {late}")
            assert "enabled_partitions" in found["advice"]
            async with working(place.app(lambda app: spread(app, enabled_partitions=[1]))):
                await place.clock.advance(timedelta(minutes=2))
                found = (await examined(place.app(spread), capsys))["partitions"]
                assert found["level"] == "ok"

    asyncio.run(scenario())


def test_a_pause_is_told_with_its_age_its_author_and_its_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def scenario() -> None:
        place = Installation()
        app = place.app(plain)
        report, reminder = app.tasks
        async with app.create() as context:
            await context.run_until_idle()
            with acting_as("ann"):
                await context.pause(report, reason="the disk is full")
                await context.pause(reminder, reason="the release")
            await place.clock.advance(timedelta(minutes=10))
            found = await examined(place.app(plain), capsys)
            for name in ("paused tasks", "paused templates"):
                assert found[name]["level"] == "warn"
                assert "(10 min), by ann, because: the " in found[name]["found"]
                assert "more than" not in found[name]["advice"]
            await place.clock.advance(timedelta(days=3))
            found = await examined(place.app(plain), capsys)
            assert "(3 d)" in found["paused templates"]["found"]
            assert "Paused for more than 1 d: reminder" in found["paused templates"]["advice"]
            assert "Paused for more than 1 d: report" in found["paused tasks"]["advice"]
            # One that ends by itself is shown, and is no warning.
            for task in (report, reminder):
                await context.resume(task)
                await context.pause(task, until=place.clock.now() + timedelta(hours=1))
            found = await examined(place.app(plain), capsys)
            for name in ("paused tasks", "paused templates"):
                assert found[name]["level"] == "ok"
                assert "until" in found[name]["found"]

    asyncio.run(scenario())


def test_instances_that_are_paused_by_themselves_are_told_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def scenario() -> None:
        place = Installation()
        app = place.app(plain)
        _, reminder = app.tasks
        async with app.create() as context:
            await context.run_until_idle()
            for name in ("acme 1", "acme 2", "other"):
                await context.schedule_task(reminder, name, execute_in=timedelta(days=9))
            with acting_as("ann"):
                await context.pause_tasks(reminder, where=Where(prefix="acme"), reason="moves")
            await place.clock.advance(timedelta(days=3))
            found = (await examined(place.app(plain), capsys))["paused tasks"]
            assert found["level"] == "warn"
            assert "reminder acme 1" in found["found"]
            assert "by ann, because: moves" in found["found"]
            assert "reminder acme 2" in found["advice"]
            notices = await attention(place.app(plain))
            assert any("2 instances paused, each by itself" in notice for notice in notices)

    asyncio.run(scenario())


def test_a_task_that_fails_is_told_with_its_error_and_its_last_success(
    capsys: pytest.CaptureFixture[str],
) -> None:
    well = True

    async def report(context: Context) -> None:
        if not well:
            raise RuntimeError("no mail today")

    def declare(app: Pyncette) -> None:
        app.task(interval=timedelta(hours=1))(report)
        app.dynamic_task(interval=timedelta(hours=1), name="reminder")(failing)
        use_history(app)

    async def scenario() -> None:
        nonlocal well
        place = Installation()
        app = place.app(declare)
        async with working(app) as context:
            await context.schedule_task(app.tasks[1], "a")
            await place.clock.advance(timedelta(hours=1, minutes=1))
            well = False
            await place.clock.advance(timedelta(hours=3))
            await context.runs()  # writes what has run so far
            found = (await examined(place.app(declare), capsys))["failing"]
        assert found["level"] == "warn"
        static, instance = found["found"].split(", reminder (1), such as a")
        assert static.startswith("report: RuntimeError: no mail today, last at 2026-05-04 1")
        assert "last success at 2026-05-04 13:00:0" in static
        assert instance.startswith(": RuntimeError: no mail today, last at 2026-05-04 1")
        assert "last success" not in instance

    asyncio.run(scenario())


def test_an_unknown_task_is_compared_with_the_declared_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def scenario() -> None:
        place = Installation()
        app = place.app(plain)
        async with app.create() as context:
            await context.schedule_task(app.tasks[1], "a")

        def renamed(app: Pyncette) -> None:
            app.dynamic_task(interval=timedelta(hours=1), name="reminders")(nothing)

        found = (await examined(place.app(renamed), capsys))["unknown tasks"]
        assert found["level"] == "warn"
        assert "'reminder' is near to 'reminders', which is declared" in found["found"]
        # The name under which it was opened just now has nothing in the store.
        found_before = (await examined(place.app(plain), capsys))["unknown tasks"]
        assert (found_before["level"], found_before["found"]) == ("ok", "none")
        assert "purge" in found["advice"]

    asyncio.run(scenario())


def test_a_move_that_was_interrupted_is_named_and_then_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def spread(app: Pyncette) -> None:
        app.partitioned_task(2, interval=timedelta(hours=1), name="spread")(nothing)

    async def scenario() -> None:
        place = Installation()
        app = place.app(spread)
        async with app.create() as context:
            assert (await examined(place.app(spread), capsys))["moves"]["level"] == "ok"
            moving = asyncio.ensure_future(context.rebalance(app.tasks[0], 3))
            await place.clock.advance(timedelta(seconds=2))
            moving.cancel()
            with suppress(asyncio.CancelledError):
                await moving
            found = (await examined(place.app(spread), capsys))["moves"]
            assert found["level"] == "warn"
            assert "pyncette rebalance spread 3" in found["advice"]
            moving = asyncio.ensure_future(context.rebalance(app.tasks[0], 3))
            await place.clock.advance(timedelta(minutes=5))
            await moving
        assert (await examined(place.app(spread), capsys))["moves"]["level"] == "ok"

    asyncio.run(scenario())


def test_an_instance_in_a_partition_that_a_move_has_left_is_named_and_mended(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def spread(app: Pyncette) -> None:
        app.partitioned_task(2, interval=timedelta(hours=1), name="spread")(nothing)

    async def scenario() -> None:
        place = Installation()
        app = place.app(spread)
        async with app.create() as context:
            moving = asyncio.ensure_future(context.rebalance(app.tasks[0], 1))
            await place.clock.advance(timedelta(minutes=5))
            await moving
            # As a program does that was frozen during the whole move.
            [partition] = app.tasks[0].get_partitions()[:1]
            await context.schedule_task(app.tasks[0], "late")
            [record] = (await context._store.scan(partition.group, EVERYTHING, None, 10)).records
            stray = Write(group_of("spread", 1), "stray", copied(record), ABSENT)
            await context._store.write([stray], place.clock.microseconds())
            found = (await examined(place.app(spread), capsys))["moves"]
            assert found["level"] == "warn"
            assert "pyncette rebalance spread 1" in found["advice"]
            moving = asyncio.ensure_future(context.rebalance(app.tasks[0], 1))
            await place.clock.advance(timedelta(minutes=5))
            await moving
            assert (await examined(place.app(spread), capsys))["moves"]["level"] == "ok"

    asyncio.run(scenario())


def copied(record: Record) -> Put:
    return Put(record.due_at, record.state, None, 0, record.schedule, record.args, record.progress)


class Slow(SystemClock):
    """A clock by which each question takes a while longer."""

    delay_s = 0.0
    _passed = 0.0

    def monotonic(self) -> float:
        self._passed += self.delay_s
        return super().monotonic() + self._passed


def test_a_slow_store_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Slow()

    def app() -> Pyncette:
        return Pyncette(url=f"sqlite:///{tmp_path / 'tasks.db'}", clock=clock)

    found = asyncio.run(examined(app(), capsys))["speed"]
    assert found["level"] == "ok"
    clock.delay_s = 2.0
    found = asyncio.run(examined(app(), capsys))["speed"]
    assert found["level"] == "warn"
    assert found["found"].startswith("answers in ")
    assert "locks" in found["advice"]


@contextmanager
def silent_server() -> Any:
    """The port of a server that takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://someone:word@127.0.0.1:{port}/tasks",
        "mysql://someone:word@127.0.0.1:{port}/tasks",
        "redis://127.0.0.1:{port}/0",
    ],
)
def test_a_server_that_never_answers_is_waited_for_as_long_as_was_said(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with silent_server() as port:
        given = ["doctor", "--url", url.format(port=port), "--timeout", "200ms", "--json"]
        assert main(given) == 1
    [found] = [
        row
        for row in map(json.loads, capsys.readouterr().out.splitlines())
        if row["name"] == "store"
    ]
    assert found["level"] == "fail"
    assert "firewall" in found["advice"]
    assert "10 s" not in found["found"]


class Terminal(io.StringIO):
    """What a terminal was shown."""

    def isatty(self) -> bool:
        return True


def test_a_move_shows_on_a_terminal_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Installation()
    app = place.app(
        lambda app: app.partitioned_task(2, interval=timedelta(hours=1), name="spread")(nothing)
    )
    module = ModuleType("program_that_moves")
    module.app = app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "program_that_moves", module)
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)

    async def fill() -> None:
        async with app.create() as context:
            for number in range(8):
                await context.schedule_task(app.tasks[0], f"i{number}")

    asyncio.run(fill())
    assert moves(place, ["--app", "program_that_moves", "rebalance", "spread", "3"]) == 0
    assert capsys.readouterr().out.startswith("spread has 3 partitions; ")
    shown = terminal.getvalue()
    assert shown.startswith("A move takes a minute or longer")
    for stage in ("until all programs know of the move: 0 moved", "until all programs know that"):
        assert stage in shown, shown


def moves(place: Installation, arguments: list[str]) -> int:
    """Runs a command while time passes."""
    # The command has an event loop of its own, in which the clock is moved.
    original = asyncio.run

    def run(work: Any) -> Any:
        async def both() -> Any:
            command = asyncio.ensure_future(work)
            while not command.done():
                await place.clock.advance(timedelta(seconds=5))
            return await command

        return original(both())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyncette.cli.arguments.asyncio.run", run)
        return main(arguments)
