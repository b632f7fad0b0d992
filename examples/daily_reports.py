"""A daily report for each of ten thousand users, at a time and in a time zone of their own.

A whole week passes in compressed time. Its first night is the one in which Europe's clocks go
forward by an hour, its last hours those in which Lord Howe's go back by half of one. Several worker
processes share one SQLite file, and they have a hard time: one is killed, one is frozen until its
leases have run out, one is restarted. At the end a table says what was due, what was run, what was
late, what was repeated and why, and what was lost: nothing.

    python examples/daily_reports.py
    python examples/daily_reports.py --users 50000 --workers 4 --seconds 100

The exit code is 0 if every report that was due was run, none was run that was not, and whatever was
run again has an explanation; else 1. An application needs no more than the first part of this file;
the rest plays operator and accountant.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pyncette import Context, Cron, Pyncette, PyncetteContext, Task
from pyncette.clock import Clock
from pyncette.testing import ScaledClock, VirtualClock

START = datetime(2026, 3, 28, 18, tzinfo=UTC)
END = START + timedelta(days=7)

# At ten thousand times the usual speed, a pause of the machine that nobody would notice takes an
# hour. So leases are long: 8 hours of a week that passes in a minute are less than three seconds.
LEASE = timedelta(hours=8)
POLL_INTERVAL = timedelta(minutes=30)
WORK = timedelta(minutes=20)
FROZEN_FOR = 1.5 * LEASE
LATE = timedelta(hours=1)

ZONES = (
    "Africa/Casablanca",
    "America/New_York",
    "America/Sao_Paulo",
    "America/St_Johns",
    "Asia/Kathmandu",
    "Asia/Kolkata",
    "Asia/Tokyo",
    "Australia/Lord_Howe",
    "Europe/Berlin",
    "Europe/London",
    "Pacific/Chatham",
    "UTC",
)


@dataclass(frozen=True)
class User:
    """Somebody who wants a report every day."""

    name: str
    schedule: str
    timezone: str


def generate_users(count: int) -> list[User]:
    """The same users each time."""
    chance = random.Random(2026)
    return [
        User(
            f"user-{number:06d}",
            f"{chance.randrange(60)} {chance.randrange(24)} * * *",
            chance.choice(ZONES),
        )
        for number in range(count)
    ]


# What an application consists of: a task, somebody who schedules it, and workers.


def create_app(database: str, clock: Clock) -> tuple[Pyncette, Task]:
    """The app that all processes share, and its one task."""
    app = Pyncette(sqlite_database=database, clock=clock, poll_interval=POLL_INTERVAL)

    @app.dynamic_task(lease_duration=LEASE)
    async def daily_report(context: Context) -> None:
        clock = context.app_context.clock
        started = clock.now()
        await clock.sleep(WORK.total_seconds())
        planned = context.scheduled_at.astimezone(UTC)
        context.reports.writerow(
            (context.task.name, planned.isoformat(), started.isoformat(), os.getpid())
        )

    return app, daily_report


async def schedule_users(database: str, users: list[User]) -> None:
    """Schedules everybody, at the first moment of the week."""
    app, daily_report = create_app(database, VirtualClock(START))
    async with app.create() as context:
        for first in range(0, len(users), 1_000):
            await asyncio.gather(
                *(
                    context.schedule_task(
                        daily_report, user.name, schedule=user.schedule, timezone=user.timezone
                    )
                    for user in users[first : first + 1_000]
                )
            )


def run_worker(database: str, clock: Clock, reports: Path) -> None:
    """Runs the app until it is told to stop, and appends each report sent to a file."""
    app, _ = create_app(database, clock)

    @app.fixture(name="reports")
    async def writer(context: PyncetteContext) -> AsyncIterator[Any]:
        # Line by line, so that a report that was sent stays on record even if we are killed.
        with reports.open("a", newline="", buffering=1) as file:
            yield csv.writer(file)

    app.main()


# The operator, who starts them and gives them a hard time.


@dataclass(frozen=True)
class Run:
    """One report that was sent."""

    user: str
    planned: str
    started: datetime
    pid: int


@dataclass
class Worker:
    """A worker process, and what has been done to it."""

    process: subprocess.Popen[bytes]
    reports: Path
    log: Path
    read_up_to: int = 0
    killed: bool = False
    frozen: tuple[datetime, datetime] | None = None

    def new_runs(self) -> Iterator[Run]:
        """The reports sent since we last looked."""
        if not self.reports.exists():
            return
        with self.reports.open("rb") as file:
            file.seek(self.read_up_to)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]  # a process may be killed in the middle of a line
        self.read_up_to += len(whole)
        for user, planned, started, pid in csv.reader(whole.decode().splitlines()):
            yield Run(user, planned, datetime.fromisoformat(started), int(pid))

    def lost_leases(self) -> set[str]:
        """The users with whose report it was too late, as its log says."""
        pattern = r"daily_report:(\S+) (?:lost its lease|could not be recorded)"
        return set(re.findall(pattern, self.log.read_text(errors="replace")))


@dataclass
class Fleet:
    """The worker processes of the week, and the reports that they sent."""

    database: str
    directory: Path
    clock: ScaledClock
    due: frozenset[tuple[str, str]]
    workers: list[Worker] = field(default_factory=list)
    runs: defaultdict[tuple[str, str], list[Run]] = field(default_factory=lambda: defaultdict(list))
    lock_was_frozen: bool = False

    def start(self) -> Worker:
        """Starts one more worker."""
        number = len(self.workers)
        reports = self.directory / f"reports-{number}.csv"
        log = self.directory / f"worker-{number}.log"
        clock = (repr(self.clock.speed), repr(self.clock.origin))
        command = [sys.executable, __file__, "--as-worker", self.database, str(reports), *clock]
        with log.open("wb") as file:
            # A session of its own: Ctrl-C is for us, and we stop them, the frozen one too.
            process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        self.workers.append(Worker(process, reports, log))
        return self.workers[-1]

    def look(self) -> int:
        """Takes in what was sent, and returns how many of the reports that were due were."""
        for worker in self.workers:
            for run in worker.new_runs():
                self.runs[run.user, run.planned].append(run)
        return len(self.due & self.runs.keys())

    def stop(self) -> None:
        """Stops all that still run, gracefully if they can."""
        alive = [worker.process for worker in self.workers if worker.process.poll() is None]
        for process in alive:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in alive:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def broken(self) -> list[Worker]:
        """Those that ended in a way that nobody has asked for."""
        return [
            worker
            for worker in self.workers
            if not worker.killed and worker.process.poll() not in (None, 0)
        ]


class Progress:
    """A line that is written over where there is a terminal, else one every few seconds."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._next = 0.0

    def show(self, line: str) -> None:
        if self._terminal:
            print(f"\r{line:<78}", end="", flush=True)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + 5
            print(line, flush=True)

    def tell(self, line: str) -> None:
        print(f"\r{line:<78}" if self._terminal else line, flush=True)


def live_through_the_week(fleet: Fleet, count: int) -> None:
    """Lets the week pass, with its accidents, and shows how it goes."""
    workers = [fleet.start() for _ in range(count)]
    accidents = [
        (START + 0.25 * (END - START), lambda: kill(fleet, workers[0])),
        (START + 0.27 * (END - START), lambda: replace(fleet)),
        (START + 0.45 * (END - START), lambda: freeze(fleet, workers[1])),
        (START + 0.45 * (END - START) + FROZEN_FOR, lambda: thaw(fleet, workers[1])),
        (START + 0.70 * (END - START), lambda: restart(fleet, fleet.workers[-1])),
    ]
    progress = Progress()
    # What is in hand when the week ends may be late; a machine that is busy with other things
    # gets a minute for it.
    patience = time.monotonic() + (END - fleet.clock.now()).total_seconds() / fleet.clock.speed + 60
    while accidents or fleet.clock.now() <= END or fleet.look() < len(fleet.due):
        now = fleet.clock.now()
        if fleet.broken() or time.monotonic() > patience:
            break
        if accidents and now >= accidents[0][0]:
            happened, what = accidents.pop(0)[1]()
            progress.tell(f"{happened:%a %d %b %H:%M}  {what}")
            now = fleet.clock.now()
        if now >= START:
            sent, due = fleet.look(), len(fleet.due)
            progress.show(f"{now:%a %d %b %H:%M}  {sent:,} of {due:,} reports sent")
        time.sleep(0.1)
    progress.tell(f"{fleet.clock.now():%a %d %b %H:%M}  {fleet.look():,} reports were sent")


# Each accident tells when it happened, and what.


def kill(fleet: Fleet, worker: Worker) -> tuple[datetime, str]:
    """Kills a worker in the middle of its work."""
    worker.killed = True
    worker.process.kill()
    worker.process.wait()
    return fleet.clock.now(), f"worker {worker.process.pid} is killed with -9"


def replace(fleet: Fleet) -> tuple[datetime, str]:
    """Starts another in the place of the one that was killed."""
    now = fleet.clock.now()
    return now, f"worker {fleet.start().process.pid} takes its place"


def freeze(fleet: Fleet, worker: Worker) -> tuple[datetime, str]:
    """Stops a worker's process without a word."""
    worker.process.send_signal(signal.SIGSTOP)
    since = fleet.clock.now()
    worker.frozen = (since, since + FROZEN_FOR)
    hours = FROZEN_FOR // timedelta(hours=1)
    told = f"worker {worker.process.pid} is frozen for {hours} hours, past its lease"
    patience_s = 0.3 * FROZEN_FOR.total_seconds() / fleet.clock.speed
    if write_lock_is_held(fleet.database, patience_s):
        fleet.lock_was_frozen = True
        told += (
            ".\n  It happens to hold SQLite's write lock, as one worker in ten does: all others"
            "\n  wait until it is thawed, and their leases may run out, too"
        )
    return since, told


def write_lock_is_held(database: str, seconds: float) -> bool:
    """Whether nobody can write to a SQLite file for so long."""
    deadline = time.monotonic() + seconds
    connection = sqlite3.connect(database, timeout=0, isolation_level=None)
    try:
        while time.monotonic() < deadline:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                time.sleep(0.001)
            else:
                connection.execute("ROLLBACK")
                return False
        return True
    finally:
        connection.close()


def thaw(fleet: Fleet, worker: Worker) -> tuple[datetime, str]:
    """Lets it go on, as if nothing had been."""
    now = fleet.clock.now()
    worker.process.send_signal(signal.SIGCONT)
    if worker.frozen is not None:
        worker.frozen = (worker.frozen[0], now)
    return now, f"worker {worker.process.pid} is thawed"


def restart(fleet: Fleet, worker: Worker) -> tuple[datetime, str]:
    """Stops a worker gracefully, and starts another in its place."""
    worker.process.terminate()
    now = fleet.clock.now()
    pid = fleet.start().process.pid
    return now, f"worker {worker.process.pid} is restarted, as worker {pid}"


# The accountant, who compares what was due with what was run.


def due_in_the_week(users: list[User]) -> frozenset[tuple[str, str]]:
    """Which reports are due: whose, and when."""
    due = set()
    for user in users:
        cron = Cron(user.schedule, user.timezone)
        planned = cron.next_after(START)
        while planned is not None and planned <= END:
            due.add((user.name, planned.isoformat()))
            planned = cron.next_after(planned)
    return frozenset(due)


class Explanations:
    """Why a report was sent again."""

    def __init__(self, fleet: Fleet) -> None:
        self._workers = {worker.process.pid: worker for worker in fleet.workers}
        self._lost = {pid: worker.lost_leases() for pid, worker in self._workers.items()}
        self._lock_was_frozen = fleet.lock_was_frozen
        self._frozen = next((w.frozen for w in fleet.workers if w.frozen), (END, END))

    def why(self, earlier: Run, later: Run) -> str | None:
        """Why a run was followed by another of the same occurrence; None if nobody knows."""
        worker = self._workers[earlier.pid]
        if worker.killed:
            return "its worker was killed before it could record the outcome"
        if earlier.user not in self._lost[earlier.pid]:
            return None
        if earlier.started <= self._frozen[1] and later.started >= self._frozen[0]:
            if worker.frozen:
                return "its worker was frozen past its lease"
            if self._lock_was_frozen:
                return "the frozen worker held the write lock past its lease"
        # A lease that ran out took its time, whatever else the machine had to do.
        if later.started - earlier.started < LEASE / 2:
            return None
        return "its lease ran out, since this machine was too busy"


NOBODY_KNOWS = "nobody knows why"


@dataclass
class Account:
    """What became of what was due."""

    lateness: list[timedelta] = field(default_factory=list)
    repeated: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    not_due: int = 0

    @property
    def balanced(self) -> bool:
        """Whether all went as promised."""
        return not (self.lost or self.not_due or self.repeated[NOBODY_KNOWS])


def write_account(fleet: Fleet, users: list[User], path: Path) -> Account:
    """Writes every run of the week to a file, and adds up."""
    explanations = Explanations(fleet)
    known = {user.name: user for user in users}
    week = {key: runs for key, runs in fleet.runs.items() if datetime.fromisoformat(key[1]) <= END}
    account = Account(lost=len(fleet.due - week.keys()), not_due=len(week.keys() - fleet.due))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("user", "schedule", "timezone", "planned", "started", "worker", "again"))
        for (name, planned), runs in sorted(week.items()):
            earlier = None
            for run in sorted(runs, key=lambda run: run.started):
                again = ""
                if earlier is None:
                    account.lateness.append(run.started - datetime.fromisoformat(planned))
                else:
                    again = explanations.why(earlier, run) or NOBODY_KNOWS
                    account.repeated[again] += 1
                user = known[name]
                row = (name, user.schedule, user.timezone, planned, run.started.isoformat())
                writer.writerow((*row, run.pid, again))
                earlier = run
    account.lateness.sort()
    return account


def show(account: Account, due: int, speed: float) -> None:
    """Prints the table."""

    def late(lateness: timedelta) -> str:
        seconds = lateness.total_seconds()
        return f"{seconds / 60:,.1f} min of the week, {seconds / speed * 1000:,.0f} ms in real time"

    lateness = account.lateness or [timedelta()]
    too_late = sum(1 for each in lateness if each > LATE)
    print(f"""
reports due                 {due:>8,}
reports run                 {due - account.lost:>8,}
  half of them within       {late(lateness[len(lateness) // 2])}
  99 of 100 within          {late(lateness[len(lateness) * 99 // 100])}
  the last one within       {late(lateness[-1])}
  late by more than an hour {too_late:>8,}
run again                   {account.repeated.total():>8,}""")
    for why, count in account.repeated.most_common():
        print(f"  {count:>6,}  {why}")
    print(f"run though not due          {account.not_due:>8,}")
    print(f"lost                        {account.lost:>8,}")


@contextmanager
def a_signal_ends_the_program() -> Iterator[None]:
    """SIGTERM and a closed terminal leave as Ctrl-C does: through all that has to be tidied up."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    previous = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def main() -> int:
    """Plays the week; the exit code tells whether all went as promised."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--users", type=int, default=10_000, help="how many (default 10,000)")
    parser.add_argument("--workers", type=int, default=3, help="processes, 2 or more (default 3)")
    parser.add_argument("--seconds", type=float, default=60.0, help="the week takes so long (60)")
    parser.add_argument("--csv", type=Path, default=Path("daily_reports.csv"), help="every run")
    options = parser.parse_args()
    if options.users < 1 or options.workers < 2 or not 10 <= options.seconds <= 86_400:
        parser.error("at least one user, two workers and ten seconds are needed")
    if not hasattr(signal, "SIGSTOP"):
        parser.error("processes cannot be frozen on this system: Linux or macOS is needed")

    users = generate_users(options.users)
    due = due_in_the_week(users)
    with (
        a_signal_ends_the_program(),
        tempfile.TemporaryDirectory(prefix="daily-reports-") as directory,
    ):
        database = str(Path(directory) / "pyncette.db")
        began = time.monotonic()
        asyncio.run(schedule_users(database, users))
        speed = (END - START).total_seconds() / options.seconds
        print(f"{len(users):,} users scheduled in {time.monotonic() - began:.1f} s")
        print(f"The week takes {options.seconds:g} s: {60 / speed * 1000:.3g} ms are a minute")
        # Two seconds for the workers to start in.
        clock = ScaledClock(speed, START, ScaledClock(1, START).origin + 2)
        fleet = Fleet(database, Path(directory), clock, due)
        try:
            live_through_the_week(fleet, options.workers)
        finally:
            fleet.stop()
        fleet.look()
        account = write_account(fleet, users, options.csv)
        show(account, len(due), speed)
        print(f"\nEvery run is in {options.csv}")
        broken = fleet.broken()
        for worker in broken:
            print(f"\nworker {worker.process.pid} ended with {worker.process.returncode}:")
            print(worker.log.read_text(errors="replace")[-2_000:])
    return 0 if account.balanced and not broken else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-worker"]:
        database, reports, speed, origin = sys.argv[2:]
        run_worker(database, ScaledClock(float(speed), START, float(origin)), Path(reports))
    else:
        raise SystemExit(main())
