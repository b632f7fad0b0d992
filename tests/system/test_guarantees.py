"""What README promises: each promise has a test that bears its name.

Where processes are killed or frozen they are real ones, on one SQLite file, and where in its work a
process dies is decided by the program itself, so that no test depends on who is quick. Where time
has to pass it is the virtual clock's.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests import forked
from tests.faulty_store import Faults, faulty
from tests.support import run

from pyncette import Context, ExecutionMode, FailureMode, Pyncette, PyncetteContext, Retry
from pyncette.clock import Clock, SystemClock
from pyncette.memory import MemoryRepository
from pyncette.store import Write
from pyncette.store.record import ANY, STATIC_GROUP, Put
from pyncette.testing import VirtualClock

PATIENCE_S = 180
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
LEASE = timedelta(seconds=60)
START = datetime(2026, 1, 5, 12, tzinfo=UTC)
MODES = [ExecutionMode.AT_LEAST_ONCE, ExecutionMode.AT_MOST_ONCE]

# Real processes. Each writes what it does to one file, a line at a time.

PROGRAM = '''
import asyncio, os, signal, sys
from contextlib import asynccontextmanager
from datetime import timedelta
from pyncette import ExecutionMode, Pyncette
from pyncette.sqlite import sqlite_repository
from pyncette.utils import with_heartbeat

MOMENT, SIGNAL = os.environ.get("MOMENT"), int(os.environ.get("SIGNAL", signal.SIGKILL))
WORK_S = float(os.environ.get("WORK_S", "0"))
MODE = ExecutionMode[os.environ.get("MODE", "AT_LEAST_ONCE")]
LOG = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def say(word, context):
    now, planned = context.app_context.clock.now().timestamp(), context.scheduled_at.timestamp()
    line = f"{word} {context.task.name} {planned!r} {now!r} {os.getpid()}\\n"
    os.write(LOG, line.encode())


def reached(moment):
    global MOMENT
    if moment == MOMENT:
        MOMENT = None
        os.kill(os.getpid(), SIGNAL)


class Watched:
    """A store before and after whose calls a signal comes."""

    def __init__(self, store):
        self.store = store

    def __getattr__(self, name):
        return getattr(self.store, name)

    async def claim(self, *arguments, **options):
        claimed = await self.store.claim(*arguments, **options)
        if claimed.records:
            reached("claimed")
        return claimed

    async def write(self, batch, *arguments):
        settles = any(write.token is not None for write in batch)
        if settles:
            reached("before its outcome is written")
        results = await self.store.write(batch, *arguments)
        if settles:
            reached("when its outcome is written")
        return results


@asynccontextmanager
async def repository(**configuration):
    async with sqlite_repository(**configuration) as store:
        yield Watched(store)


app = Pyncette(repository, sqlite_database="tasks.db", poll_interval=timedelta(seconds=0.1))


@app.dynamic_task(lease_duration=timedelta(seconds=1), execution_mode=MODE)
async def job(context):
    say("began", context)
    reached("in the body")
    if context.task.name.startswith("bad"):
        os.abort()
    await asyncio.sleep(WORK_S)
    say("ended", context)


@app.dynamic_task(lease_duration=timedelta(seconds=1))
@with_heartbeat(lease_remaining_ratio=0.2)
async def long(context):
    say("began", context)
    await asyncio.sleep(WORK_S)
    say("ended", context)


if __name__ == "__main__":
    app.main()
'''


@dataclass(frozen=True)
class Line:
    """What a worker said."""

    word: str
    name: str
    planned: float
    at: float
    pid: int


class Site:
    """A directory with the program, its store, its log, and its processes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[forked.Process] = []
        (directory / "program.py").write_text(PROGRAM)

    def worker(self, **environment: str) -> forked.Process:
        errors = self.directory / f"errors-{len(self.processes)}"
        errors.touch()
        process = forked.Process(
            ["program.py"], self.directory, {**os.environ, **environment}, errors
        )
        self.processes.append(process)
        return process

    def errors(self, process: forked.Process) -> str:
        return (self.directory / f"errors-{self.processes.index(process)}").read_text()

    def lines(self, word: str = "") -> list[Line]:
        log = self.directory / "log"
        if not log.exists():
            return []
        rows = [row.split(" ") for row in log.read_text().splitlines()]
        lines = [Line(w, name, float(p), float(at), int(pid)) for w, name, p, at, pid in rows]
        return [line for line in lines if word in ("", line.word)]

    def schedule(self, template: str, *names: str, **options: Any) -> None:
        """Schedules instances, by default once and at once."""

        async def main() -> None:
            app = Pyncette(sqlite_database=str(self.directory / "tasks.db"))

            @app.dynamic_task(name=template)
            async def task(context: Context) -> None: ...

            when = options or {"execute_at": datetime(2026, 1, 1, tzinfo=UTC)}
            async with app.create() as context:
                for name in names:
                    await context.schedule_task(task, name, **when)

        asyncio.run(main())

    def records(self) -> int:
        with closing(sqlite3.connect(self.directory / "tasks.db")) as connection:
            [(count,)] = connection.execute(
                "SELECT count(*) FROM pyncette_tasks"
                " WHERE \"group\" NOT IN (':control', ':members')"
            )
        return int(count)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def killed(process: forked.Process) -> None:
    assert process.wait(PATIENCE_S) == -signal.SIGKILL


DEATHS = {
    "claimed": ["began", "ended"],
    "in the body": ["began", "began", "ended"],
    "before its outcome is written": ["began", "ended", "began", "ended"],
    "when its outcome is written": ["began", "ended"],
}


@pytest.mark.parametrize(("moment", "words"), DEATHS.items(), ids=DEATHS)
def test_each_occurrence_runs_at_least_once_though_workers_are_killed(
    site: Site, moment: str, words: list[str]
) -> None:
    site.schedule("job", "once")
    killed(site.worker(MOMENT=moment))
    site.worker()
    until(lambda: site.records() == 0)
    lines = site.lines()
    assert [line.word for line in lines] == words
    assert len({line.planned for line in lines}) == 1


DEATHS_AT_MOST_ONCE = {
    "claimed": ["began", "ended"],
    "before its outcome is written": ["began", "ended"],
    "when its outcome is written": [],
    "in the body": ["began"],
}


@pytest.mark.parametrize(("moment", "words"), DEATHS_AT_MOST_ONCE.items(), ids=DEATHS_AT_MOST_ONCE)
def test_an_occurrence_starts_at_most_once_though_workers_are_killed(
    site: Site, moment: str, words: list[str]
) -> None:
    site.schedule("job", "once")
    killed(site.worker(MOMENT=moment, MODE="AT_MOST_ONCE"))
    other = site.worker(MODE="AT_MOST_ONCE")
    site.schedule("job", "later")
    until(lambda: any(line.name == "later" for line in site.lines("ended")))
    until(lambda: site.records() == 0)
    other.send_signal(signal.SIGTERM)
    assert other.wait(PATIENCE_S) == 0
    assert [line.word for line in site.lines() if line.name == "once"] == words


def test_recurrences_go_on_though_one_worker_after_the_other_is_killed(site: Site) -> None:
    site.schedule("job", "tick", interval=SECOND / 2)
    for moment in DEATHS:
        killed(site.worker(MOMENT=moment))
    last = site.worker()
    until(lambda: sum(line.pid == last.pid for line in site.lines("ended")) >= 8)
    planned = sorted({line.planned for line in site.lines("ended")})
    steps = {round(b - a, 6) for a, b in pairwise(planned)}
    assert steps == {0.5}, "an occurrence was left out"


def test_one_at_a_time_runs_a_record_while_its_lease_holds(site: Site) -> None:
    site.schedule("long", *"abc")
    for _ in range(3):
        site.worker(WORK_S="4")
    until(lambda: len(site.lines("ended")) == 3)
    until(lambda: site.records() == 0)
    assert Counter(line.name for line in site.lines("began")) == Counter("abc")


@pytest.mark.parametrize("mode", MODES)
def test_a_worker_frozen_past_its_lease_is_replaced_and_settles_nothing(
    site: Site, mode: ExecutionMode
) -> None:
    once = mode is ExecutionMode.AT_MOST_ONCE
    site.schedule("job", "tick", interval=SECOND)
    stop = {"MOMENT": "in the body", "SIGNAL": str(int(signal.SIGSTOP))}
    frozen = site.worker(MODE=mode.name, **stop)
    until(lambda: site.lines("began"))
    other = site.worker(MODE=mode.name)
    until(lambda: len(site.lines("ended")) >= 2)
    frozen.send_signal(signal.SIGCONT)
    until(lambda: any(line.pid == frozen.pid for line in site.lines("ended")))
    until(lambda: len({line.planned for line in site.lines("ended")}) >= 4)
    other.send_signal(signal.SIGTERM)
    frozen.send_signal(signal.SIGTERM)
    assert (other.wait(PATIENCE_S), frozen.wait(PATIENCE_S)) == (0, 0)
    runs = Counter(line.planned for line in site.lines("began"))
    first, *others = sorted(runs)
    assert runs[first] == (1 if once else 2)
    assert {runs[planned] for planned in others} == {1}
    assert ("lost its lease: its outcome is not recorded" in site.errors(frozen)) is not once


def test_a_body_that_kills_its_process_every_time_does_not_take_others_along(site: Site) -> None:
    names = [f"good-{number}" for number in range(10)]
    site.schedule("job", "bad", *names)

    def only_the_bad_one_is_left() -> bool:
        return {line.name for line in site.lines("ended")} == set(names) and site.records() == 1

    # A busy machine may start few of them in the life of a worker, and one may be killed between
    # the end of a good body and the note of it: then that one runs again.
    for _ in range(60):
        if only_the_bad_one_is_left():
            break
        worker = site.worker(WORK_S="0.2")
        until(lambda worker=worker: only_the_bad_one_is_left() or worker.poll() is not None)  # type: ignore[misc]
    assert only_the_bad_one_is_left()


def test_nothing_early_starts_before_its_planned_time(site: Site) -> None:
    site.schedule("job", *(f"{number}" for number in range(20)), interval=timedelta(seconds=0.3))
    site.worker()
    site.worker()
    until(lambda: len(site.lines("ended")) >= 100)
    assert [line for line in site.lines("began") if line.at < line.planned] == []


# Workers in this process, on a clock that is moved.


class World:
    """Workers on one store, and what they ran."""

    def __init__(self, store: Any = None, clock: Clock | None = None, **options: Any) -> None:
        self.clock = VirtualClock(START)
        self.faults = Faults()
        self.store = MemoryRepository() if store is None else store
        self.app = Pyncette(
            faulty(self.store, self.faults),
            clock=self.clock if clock is None else clock,
            **options,
        )
        self.runs: list[tuple[datetime, datetime]] = []

    async def note(self, context: Context) -> None:
        """A body that notes when it was planned for, and when it began."""
        self.runs.append((context.scheduled_at.astimezone(UTC), context.app_context.clock.now()))

    @property
    def planned(self) -> list[datetime]:
        return [planned for planned, _ in self.runs]

    @property
    def began(self) -> list[datetime]:
        return [began for _, began in self.runs]

    @asynccontextmanager
    async def running(self, app: Pyncette | None = None) -> AsyncIterator[PyncetteContext]:
        async with (app or self.app).create() as context:
            loop = asyncio.create_task(context.run())
            await self.clock.settle()
            try:
                yield context
            finally:
                context.shutdown()
                await loop

    async def advance(self, by: timedelta) -> None:
        await self.clock.advance(by)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fast_forward", [False, True])
def test_nothing_missed_is_left_out_when_nobody_worked(
    mode: ExecutionMode, fast_forward: bool
) -> None:
    async def main() -> None:
        world = World()
        world.app.task(interval=MINUTE, execution_mode=mode, fast_forward=fast_forward)(world.note)
        async with world.running():
            await world.advance(MINUTE)
        await world.advance(10 * MINUTE)
        async with world.running():
            await world.advance(20 * SECOND)  # one after another, with pauses of a second
        missed = [START + (number + 2) * MINUTE for number in range(10)]
        assert world.planned[0] == START + MINUTE
        assert world.planned[1:] == (missed[:1] if fast_forward else missed)

    run(main())


FAILURES = {
    "by the failure mode NONE": {"failure_mode": FailureMode.NONE},
    "by the failure mode UNLOCK": {"failure_mode": FailureMode.UNLOCK},
    "by a retry policy": {"retry": Retry(attempts=4)},
}


@pytest.mark.parametrize("options", FAILURES.values(), ids=FAILURES)
def test_each_occurrence_runs_at_least_once_until_its_body_does_not_raise(
    options: dict[str, Any],
) -> None:
    async def main() -> None:
        world = World()

        @world.app.task(interval=10 * MINUTE, **options)
        async def flaky(context: Context) -> None:
            await world.note(context)
            if len(world.runs) % 4:
                raise RuntimeError("The body failed")

        async with world.running(), world.running():
            await world.advance(35 * MINUTE)
        due = [START + number * 10 * MINUTE for number in (1, 2, 3)]
        assert world.planned == [planned for planned in due for _ in range(4)]

    run(main())


def test_an_occurrence_starts_at_most_once_though_its_body_raises() -> None:
    async def main() -> None:
        world = World()

        @world.app.task(interval=MINUTE, execution_mode=ExecutionMode.AT_MOST_ONCE)
        async def bad(context: Context) -> None:
            await world.note(context)
            raise RuntimeError("The body failed")

        async with world.running(), world.running():
            await world.advance(5 * MINUTE)
        assert world.planned == [START + (number + 1) * MINUTE for number in range(5)]

    run(main())


def test_nothing_missed_of_cron_and_of_one_offs_is_left_out_when_nobody_worked() -> None:
    async def main() -> None:
        world = World()
        world.app.task(schedule="*/5 * * * *")(world.note)
        once: list[datetime] = []

        @world.app.dynamic_task()
        async def remind(context: Context) -> None:
            once.append(context.scheduled_at)

        async with world.running() as context:
            for number in (7, 3, 21):
                planned = START + number * MINUTE
                await context.schedule_task(remind, f"at {number}", execute_at=planned)
        await world.advance(20 * MINUTE + SECOND)
        async with world.running():
            await world.advance(2 * MINUTE)
        assert world.planned == [START + number * MINUTE for number in (5, 10, 15, 20)]
        assert sorted(once) == [START + number * MINUTE for number in (3, 7, 21)]

    run(main())


class WrongMachine(SystemClock):
    """The clock of a machine that is set wrong."""

    def __init__(self, true: VirtualClock, error: timedelta) -> None:
        self.true = true
        self.error = error
        self.hold = true.hold  # type: ignore[method-assign]

    def now(self) -> datetime:
        return self.true.now() + self.error

    def monotonic(self) -> float:
        return self.true.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self.true.sleep(seconds)


class WithClock:
    """A store with a clock of its own, as database servers have one."""

    def __init__(self, store: Any, clock: Clock) -> None:
        self.store = store
        self.clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    async def now(self) -> int:
        return self.clock.microseconds()


@pytest.mark.parametrize("error", [-7 * MINUTE, 7 * MINUTE], ids=["behind", "ahead"])
def test_nothing_early_starts_by_the_clock_of_the_store_though_that_of_a_worker_is_wrong(
    error: timedelta,
) -> None:
    async def main() -> None:
        world = World()

        @asynccontextmanager
        async def repository(**configuration: Any) -> AsyncIterator[WithClock]:
            async with world.store(**configuration) as store:
                yield WithClock(store, world.clock)

        began: list[datetime] = []

        def worker(clock: Clock) -> Pyncette:
            app = Pyncette(repository, clock=clock)

            @app.task(interval=MINUTE)
            async def note(context: Context) -> None:
                began.append(world.clock.now())

            return app

        # A worker whose clock is right plans the first occurrence.
        async with world.running(worker(world.clock)):
            pass
        async with world.running(worker(WrongMachine(world.clock, error))):
            await world.advance(5 * MINUTE + SECOND)
        due = [START + (number + 1) * MINUTE for number in range(5)]
        assert len(began) == len(due)
        # Not before the planned time, and late by no more than the clock is uncertain.
        assert all(
            timedelta() <= at - planned <= SECOND for at, planned in zip(began, due, strict=True)
        )

    run(main())


def test_no_drift_however_long_runs_take_and_however_late_they_start() -> None:
    async def main() -> None:
        world = World()

        @world.app.task(interval=10 * SECOND)
        async def slow(context: Context) -> None:
            await world.note(context)
            await world.clock.sleep(3.7 if len(world.runs) != 5 else 34)

        async with world.running():
            await world.advance(204 * SECOND)
        assert world.planned == [START + (number + 1) * 10 * SECOND for number in range(20)]
        assert world.began[-1] == START + 200 * SECOND

    run(main())


def test_no_drift_of_cron_through_changes_of_daylight_saving() -> None:
    async def main() -> None:
        world = World(poll_interval=timedelta(hours=1))
        await world.clock.advance_to(datetime(2026, 3, 27, 12, tzinfo=UTC))
        world.app.task(schedule="30 7 * * *", timezone="Europe/Berlin")(world.note)
        async with world.running():
            await world.advance(timedelta(days=4))
        assert [instant.strftime("%d %H:%M") for instant in world.began] == [
            "28 06:30",
            "29 05:30",
            "30 05:30",
            "31 05:30",
        ]

    run(main())


GARBAGE = Put(0, "scheduled", None, 0, "a plan that is none", "", "")


@pytest.mark.parametrize("what", ["a body raises", "the store is down", "a record is garbage"])
def test_a_failure_is_not_the_end_of_the_others(what: str) -> None:
    async def main() -> None:
        world = World()
        failed: list[datetime] = []
        world.app.task(name="good", interval=MINUTE)(world.note)

        @world.app.task(interval=MINUTE, failure_mode=FailureMode.COMMIT)
        async def bad(context: Context) -> None:
            failed.append(context.scheduled_at)
            if what == "a body raises":
                raise RuntimeError("The body failed")

        async with world.running() as context:
            await world.advance(MINUTE)
            if what == "a record is garbage":
                async with world.store() as store:
                    await store.write([Write(STATIC_GROUP, "bad", GARBAGE, ANY)], 0)
            if what == "the store is down":
                with world.faults.down():
                    await world.advance(5 * MINUTE)
                # The next try, and what was missed, a second apart.
                await world.advance(15 * SECOND)
            else:
                await world.advance(5 * MINUTE)
            assert await context.get_task(bad) is not None
        assert world.planned == [START + (number + 1) * MINUTE for number in range(6)]
        if what != "the store is down":
            assert world.began == world.planned
        async with world.store() as store:
            [record] = await store.get([(STATIC_GROUP, "bad")])
        if what == "a record is garbage":
            assert record is not None
            assert record.state == "parked"
        else:
            assert failed == world.planned

    run(main())


# Rows of the table of failures that are met by nobody else.


class SteppedClock(Clock):
    """A clock whose wall time is set to something else now and then."""

    def __init__(self, inner: VirtualClock) -> None:
        self.inner = inner
        self.step = timedelta()
        self.hold = inner.hold  # type: ignore[method-assign]

    def now(self) -> datetime:
        return self.inner.now() + self.step

    def monotonic(self) -> float:
        return self.inner.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self.inner.sleep(seconds)


@pytest.mark.parametrize("step", [-5 * MINUTE, 5 * MINUTE], ids=["back", "ahead"])
@pytest.mark.parametrize("mode", MODES)
def test_a_clock_that_steps_by_more_than_a_lease_loses_nothing_and_repeats_nothing_at_most_once(
    mode: ExecutionMode, step: timedelta
) -> None:
    async def main() -> None:
        world = World()
        clock = world.app.clock = SteppedClock(world.clock)

        @world.app.task(interval=MINUTE, execution_mode=mode, lease_duration=LEASE)
        async def slow(context: Context) -> None:
            await world.note(context)
            await world.clock.sleep(10)

        async with world.running(), world.running():
            await world.advance(MINUTE + 5 * SECOND)
            clock.step = step
            await world.advance(20 * MINUTE)
            slow.enabled = False
            await world.advance(MINUTE)
        counted = Counter(world.planned)
        planned = sorted(counted)
        if mode is ExecutionMode.AT_LEAST_ONCE and step < timedelta():
            # What the clock had planned before it was set back is planned anew.
            planned.remove(START + MINUTE)
            assert planned[0] < START
        else:
            assert planned[0] == START + MINUTE
        expected = [planned[0] + number * MINUTE for number in range(len(planned))]
        assert planned == expected
        assert len(expected) >= 14
        assert all(began >= planned for planned, began in world.runs)
        if mode is ExecutionMode.AT_MOST_ONCE:
            assert set(counted.values()) == {1}

    run(main())


def test_a_store_restored_from_a_snapshot_repeats_what_ran_since_and_nothing_else(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        database, snapshot = tmp_path / "tasks.db", tmp_path / "snapshot.db"
        world = World()
        app = Pyncette(sqlite_database=str(database), clock=world.clock)
        app.task(interval=MINUTE)(world.note)
        async with world.running(app):
            await world.advance(3 * MINUTE)
        shutil.copy(database, snapshot)
        async with world.running(app):
            await world.advance(2 * MINUTE)
        shutil.copy(snapshot, database)
        async with world.running(app):
            await world.advance(MINUTE)
        minutes = [(planned - START) // MINUTE for planned in world.planned]
        assert minutes == [1, 2, 3, 4, 5, 4, 5, 6]

    run(main())


def test_two_versions_of_an_app_share_a_store_and_each_runs_what_it_knows(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        database = str(tmp_path / "tasks.db")
        world = World()
        old = Pyncette(sqlite_database=database, clock=world.clock, worker_name="old")
        new = Pyncette(sqlite_database=database, clock=world.clock, worker_name="new")
        ran: list[tuple[str, str]] = []

        def body(worker: str) -> Any:
            async def note(context: Context) -> None:
                ran.append((worker, str(context.task)))

            return note

        old.task(name="known", interval=MINUTE)(body("old"))
        new.task(name="known", interval=MINUTE)(body("new"))
        old.task(name="removed", interval=MINUTE)(body("old"))
        added = new.dynamic_task(name="added")(body("new"))

        async with world.running(old):
            await world.advance(MINUTE)
            async with world.running(new) as context:
                await context.schedule_task(added, "instance", interval=MINUTE)
                await world.advance(5 * MINUTE)
        assert Counter(name for _, name in ran) == {"known": 6, "removed": 6, "added:instance": 5}
        assert {worker for worker, name in ran if name == "removed"} == {"old"}
        assert {worker for worker, name in ran if name == "added:instance"} == {"new"}

    run(main())
