"""A daily report for each of ten thousand users, at a time and in a time zone of their own.

A whole week passes in compressed time, with the day on which Europe's clocks go forward in it.
Several worker processes share one SQLite file, and they have a hard time: one is killed, one is
frozen until its leases have run out, one is restarted. At the end a table says what was due, what
was run, what was late or repeated and why, and what was lost: nothing.

    python examples/daily_reports.py
    python examples/daily_reports.py --users 50000 --workers 4 --seconds 100
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pyncette import Context, Pyncette, PyncetteContext
from pyncette.clock import Clock
from pyncette.schedule import Cron
from pyncette.testing import ScaledClock, VirtualClock

START = datetime(2026, 3, 28, 18, tzinfo=UTC)
WEEK = timedelta(days=7)
LEASE = timedelta(hours=2)
POLL_INTERVAL = timedelta(minutes=30)
LATE = timedelta(hours=1)
WORK_S = 600.0
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
COLUMNS = ("user", "schedule", "timezone", "planned", "started", "worker")


@dataclass(frozen=True)
class User:
    """Somebody who wants a report every day."""

    name: str
    schedule: str
    timezone: str

    def due(self) -> Iterator[datetime]:
        """The instants of this week at which a report is due."""
        planned = Cron(self.schedule, self.timezone).next_after(START)
        while planned is not None and planned <= START + WEEK:
            yield planned
            planned = Cron(self.schedule, self.timezone).next_after(planned)


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


# What an application declares.


def create_app(database: str, clock: Clock) -> tuple[Pyncette, Any]:
    """The app that all processes share, and its one task."""
    app = Pyncette(sqlite_database=database, clock=clock, poll_interval=POLL_INTERVAL)

    @app.dynamic_task(lease_duration=LEASE)
    async def daily_report(context: Context) -> None:
        clock = context.app_context.clock
        started = clock.now()
        await clock.sleep(WORK_S)
        row = (
            context.task.name,
            context.task.schedule,
            context.task.timezone,
            context.scheduled_at.astimezone(UTC).isoformat(),
            started.isoformat(),
            os.getpid(),
        )
        context.reports.writerow(row)

    return app, daily_report


async def schedule_users(database: str, users: list[User]) -> None:
    """Schedules everybody, at the first moment of the week."""
    app, daily_report = create_app(database, VirtualClock(START))
    async with app.create() as context:
        for first in range(0, len(users), 1_000):
            await asyncio.gather(
                *(
                    context.schedule_task(
                        daily_report,
                        user.name,
                        schedule=user.schedule,
                        timezone=user.timezone,
                    )
                    for user in users[first : first + 1_000]
                )
            )


# One worker process.


def run_worker(database: str, speed: float, origin: float, reports: str) -> None:
    """Runs the app until it is told to stop, and appends each report sent to a file."""
    app, _ = create_app(database, ScaledClock(speed, START, origin))
    # Line by line, so that a report that was sent stays on record even if we are killed.
    with Path(reports).open("a", newline="", buffering=1) as file:

        @app.fixture(name="reports")
        async def writer(context: PyncetteContext) -> Any:
            yield csv.writer(file)

        app.main()


# The one who starts them, and gives them a hard time.


@dataclass
class Worker:
    """A worker process, and what has been done to it."""

    process: subprocess.Popen[bytes]
    reports: Path
    fate: str = ""


@dataclass
class Fleet:
    """The worker processes of the week."""

    database: str
    directory: Path
    clock: ScaledClock
    workers: list[Worker] = field(default_factory=list)

    def start(self) -> Worker:
        """Starts one more worker."""
        reports = self.directory / f"reports-{len(self.workers)}.csv"
        command = [sys.executable, __file__, "--as-worker", self.database, str(reports)]
        command += [repr(self.clock.speed), repr(self.clock.origin)]
        log = (self.directory / f"worker-{len(self.workers)}.log").open("wb")
        with log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        self.workers.append(Worker(process, reports))
        return self.workers[-1]

    def stop(self) -> None:
        """Stops all that still run, gracefully."""
        alive = [worker.process for worker in self.workers if worker.process.poll() is None]
        for process in alive:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in alive:
            process.wait(timeout=30)

    def rows(self) -> list[dict[str, str]]:
        """All reports that were sent so far."""
        rows: list[dict[str, str]] = []
        for worker in self.workers:
            if worker.reports.exists():
                with worker.reports.open(newline="") as file:
                    # The last line of a process that was killed may be cut off.
                    rows += [row for row in csv.DictReader(file, COLUMNS) if row["worker"]]
        return rows


def live_through_the_week(fleet: Fleet, count: int, due: int, seconds: float) -> None:
    """Lets the week pass, with its accidents, and shows how it goes."""
    for _ in range(count):
        fleet.start()
    frozen_s = 3 * LEASE.total_seconds() / fleet.clock.speed
    accidents: list[tuple[float, str, Callable[[], object]]] = [
        (0.25, "killed with -9", lambda: kill(fleet)),
        (0.26, "replaced by a new one", fleet.start),
        (0.45, f"frozen for {frozen_s:.1f} s, thrice its lease", lambda: freeze(fleet)),
        (0.45 + frozen_s / seconds, "thawed", lambda: thaw(fleet)),
        (0.70, "restarted", lambda: restart(fleet)),
    ]
    # What was due in the last minutes of the week may be late by a lease or two.
    end = START + WEEK + 3 * LEASE
    while (now := fleet.clock.now()) < end:
        passed = (now - START) / WEEK
        while accidents and passed >= accidents[0][0]:
            _, what, happen = accidents.pop(0)
            happen()
            print(f"\r{now:%a %d %b %H:%M}  a worker is {what}".ljust(78))
        done = sum(file_lines(worker.reports) for worker in fleet.workers)
        line = f"\r{now:%a %d %b %H:%M}  {done:,} of {due:,} reports sent"
        print(line.ljust(78), end="", flush=True)
        time.sleep(0.25)
    print()


def kill(fleet: Fleet) -> None:
    """Kills a worker in the middle of its work."""
    fleet.workers[0].process.kill()
    fleet.workers[0].process.wait()
    fleet.workers[0].fate = "its worker was killed"


def freeze(fleet: Fleet) -> None:
    """Stops a worker's process without a word."""
    fleet.workers[1].process.send_signal(signal.SIGSTOP)
    fleet.workers[1].fate = "its worker was frozen past its lease"


def thaw(fleet: Fleet) -> None:
    """Lets it go on, as if nothing had been."""
    fleet.workers[1].process.send_signal(signal.SIGCONT)


def restart(fleet: Fleet) -> None:
    """Stops a worker gracefully, and starts another in its place."""
    fleet.workers[-1].process.terminate()
    fleet.start()


def file_lines(path: Path) -> int:
    """How many lines a file has, if it is there."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


# What came of it.


@dataclass(frozen=True)
class Summary:
    """What was due, and what became of it."""

    due: int
    run: int
    late: list[timedelta]
    lateness: list[timedelta]
    repeated: dict[str, int]
    lost: int
    unasked: int


def summarize(users: list[User], rows: list[dict[str, str]], fates: dict[str, str]) -> Summary:
    """Compares what was due with what was run."""
    due = {(user.name, planned) for user in users for planned in user.due()}
    runs: dict[tuple[str, datetime], list[dict[str, str]]] = {}
    for row in rows:
        planned = datetime.fromisoformat(row["planned"])
        if planned <= START + WEEK:
            runs.setdefault((row["user"], planned), []).append(row)
    repeated: dict[str, int] = {}
    lateness: list[timedelta] = []
    for (_, planned), again in runs.items():
        lateness.append(min(datetime.fromisoformat(row["started"]) for row in again) - planned)
        if len(again) > 1:
            why = {fates[row["worker"]] for row in again} - {""} or {"nobody knows why"}
            for reason in why:
                repeated[reason] = repeated.get(reason, 0) + len(again) - 1
    return Summary(
        due=len(due),
        run=len(due & runs.keys()),
        late=sorted(late for late in lateness if late > LATE),
        lateness=sorted(lateness),
        repeated=repeated,
        lost=len(due - runs.keys()),
        unasked=len(runs.keys() - due),
    )


def show(summary: Summary, speed: float) -> None:
    """Prints the table."""

    def both(late: timedelta) -> str:
        minutes = late.total_seconds() / 60
        return f"{minutes:6.1f} min of the week, {late.total_seconds() / speed * 1000:5.0f} ms"

    def percentile(share: float) -> timedelta:
        return summary.lateness[int(share * (len(summary.lateness) - 1))]

    late_max = both(summary.late[-1]) if summary.late else "none"
    print(f"""
reports due               {summary.due:>8,}
reports run               {summary.run:>8,}
  late, half of them      {both(percentile(0.5))}
  late, 99 of 100         {both(percentile(0.99))}
late by more than an hour {len(summary.late):>8,}   (at most {late_max.strip()})
run more than once        {sum(summary.repeated.values()):>8,}""")
    for reason, count in sorted(summary.repeated.items()):
        print(f"  {reason:<40} {count:,}")
    print(f"run though not due        {summary.unasked:>8,}")
    print(f"lost                      {summary.lost:>8,}")


def main() -> int:
    """Plays the week; the exit code tells whether all went as promised."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--users", type=int, default=10_000, help="how many (default 10,000)")
    parser.add_argument("--workers", type=int, default=3, help="processes, 2 or more (default 3)")
    parser.add_argument("--seconds", type=float, default=60.0, help="a week takes so long (60)")
    parser.add_argument("--csv", type=Path, default=Path("daily_reports.csv"), help="every run")
    options = parser.parse_args()
    if options.users < 1 or options.workers < 2 or options.seconds < 5:
        parser.error("at least one user, two workers and five seconds are needed")

    users = generate_users(options.users)
    due = sum(1 for user in users for _ in user.due())
    with tempfile.TemporaryDirectory(prefix="daily-reports-") as directory:
        database = str(Path(directory) / "pyncette.db")
        began = time.perf_counter()
        asyncio.run(schedule_users(database, users))
        took = time.perf_counter() - began
        print(f"{len(users):,} users scheduled in {took:.1f} s; a week takes {options.seconds:g} s")
        speed = WEEK.total_seconds() / options.seconds
        clock = ScaledClock(speed, START, ScaledClock(1, START).origin + 1.0)
        fleet = Fleet(database, Path(directory), clock)
        try:
            live_through_the_week(fleet, options.workers, due, options.seconds)
        finally:
            fleet.stop()
        rows = fleet.rows()
        fates = {str(worker.process.pid): worker.fate for worker in fleet.workers}
    with options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (row["user"], row["planned"])))
    summary = summarize(users, rows, fates)
    show(summary, speed)
    print(f"\nevery run is in {options.csv}")
    unexplained = summary.repeated.get("nobody knows why", 0)
    return 1 if summary.lost or summary.unasked or unexplained else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-worker"]:
        run_worker(sys.argv[2], float(sys.argv[4]), float(sys.argv[5]), sys.argv[3])
    else:
        raise SystemExit(main())
