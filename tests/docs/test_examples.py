"""The programs in examples/ do what they say; those about monitoring and the main job: elsewhere.

On a virtual clock where a program is about the calendar, and as real processes where it is about
processes.
"""

from __future__ import annotations

import asyncio
import logging
import re
import runpy
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pyncette import Pyncette, PyncetteContext
from pyncette.testing import VirtualClock

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TESTED_ELSEWHERE = {
    *("daily_reports.py", "healthcheck.py", "heartbeat.py", "prometheus.py", "working_week.py")
}
PATIENCE_S = 30
LEASE_S = 60


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)


def example(name: str, start: datetime) -> dict[str, Any]:
    """What a program declares, its app on a clock of its own."""
    program = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=name)
    program["app"].clock = VirtualClock(start)
    return program


@asynccontextmanager
async def running(app: Pyncette) -> AsyncIterator[PyncetteContext]:
    async with app.create() as context:
        loop = asyncio.create_task(context.run())
        try:
            await settled(app)
            yield context
        finally:
            context.shutdown()
            await loop


async def settled(app: Pyncette) -> None:
    await clock_of(app).settle()


def clock_of(app: Pyncette) -> VirtualClock:
    assert isinstance(app.clock, VirtualClock)
    return app.clock


async def until(holds: Callable[[], bool]) -> None:
    """Waits in real time, for a thread."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


def said(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == name]


def test_no_example_goes_untested() -> None:
    here = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert path.name in TESTED_ELSEWHERE or f'"{path.stem}"' in here, path.name


MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("day", "reminded"),
    [
        (datetime(2026, 3, 27, 7, 29, tzinfo=UTC), ["Reminding the team: Friday 08:30 CET"]),
        (datetime(2026, 3, 28, 7, 29, tzinfo=UTC), []),
        (datetime(2026, 3, 30, 6, 29, tzinfo=UTC), ["Reminding the team: Monday 08:30 CEST"]),
    ],
)
def test_basic_cron_follows_the_wall_clock_and_the_working_week(
    day: datetime, reminded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    app = example("basic_cron", day)["app"]

    async def main() -> None:
        async with running(app):
            await clock_of(app).advance(2 * MINUTE)

    asyncio.run(main())
    lines = said(caplog, "basic_cron")
    assert [line for line in lines if "team" in line] == reminded
    assert sum("dashboard" in line for line in lines) == 12


def test_persistent_runs_what_was_missed_while_nobody_worked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = example("persistent", datetime(2026, 1, 1, tzinfo=UTC))["app"]

    async def main() -> None:
        async with running(app):
            await clock_of(app).advance(timedelta(seconds=10))
        await clock_of(app).advance(timedelta(seconds=60))
        async with running(app):
            await settled(app)

    asyncio.run(main())
    lines = said(caplog, "persistent")
    assert sum("Sheep" in line for line in lines) == 70
    assert sum("Wolves" in line for line in lines) == 3


def test_persistent_is_shared_by_two_processes_and_survives_one_of_them(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / "persistent.py")]
    logs = [tmp_path / f"{number}.log" for number in range(2)]
    counted = re.compile(r"Sheep of (\S+ \S+) counted by (\d+)")

    def sheep() -> list[tuple[str, str]]:
        return [pair for log in logs for pair in counted.findall(log.read_text())]

    processes = []
    try:
        for log in logs:
            with log.open("w") as file:
                processes.append(subprocess.Popen(command, stderr=file))
        deadline = time.monotonic() + PATIENCE_S
        while len(sheep()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        processes[0].kill()
        processes[0].wait()
        before = len(sheep())
        # It may have been killed after it had counted and before it had written so: then the other
        # one waits for the end of its lease, and counts this sheep once more.
        deadline = time.monotonic() + LEASE_S + PATIENCE_S
        while len(sheep()) < before + 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)
        assert processes[1].wait(PATIENCE_S) == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
    planned = sorted(instant for instant, _ in sheep())
    assert len(planned) <= len(set(planned)) + 1, "each second is counted by one process"


def test_user_reports_go_to_those_who_are_subscribed_at_their_own_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    day = datetime(2026, 3, 27, tzinfo=UTC)
    program = example("user_reports", day)
    app = program["app"]

    async def main() -> None:
        await program["main"]()
        for hour in (6, 7, 11, 18):
            # Nobody looks at the clock while the app is closed, so that this takes no time.
            await clock_of(app).advance_to(day + timedelta(hours=hour) - MINUTE)
            async with running(app) as context:
                await clock_of(app).advance(2 * MINUTE)
                if hour == 7:
                    subscribe = program["subscribe"]
                    await subscribe(context, "ada", "new@example.com", 18, "Europe/London")

    asyncio.run(main())
    assert [line for line in said(caplog, "user_reports") if "goes to" in line] == [
        "Report of 2026-03-27 07:00:00+01:00 for emmy goes to emmy@example.com",
        "Report of 2026-03-27 07:00:00+00:00 for ada goes to ada@example.com",
        "Report of 2026-03-27 18:00:00+00:00 for ada goes to new@example.com",
    ]


def test_office_hours_shows_what_runs_next_and_leaves_out_holidays(
    capsys: pytest.CaptureFixture[str],
) -> None:
    new_years_eve = datetime(2026, 12, 31, 6, tzinfo=UTC)
    program = example("office_hours", new_years_eve)
    app = program["app"]
    asyncio.run(program["main"]())
    assert capsys.readouterr().out.splitlines() == [
        "open_the_office: Thu 31 Dec 09:00, Sat 02 Jan 11:00, Mon 04 Jan 09:00",
        "pay_salaries: Thu 31 Dec 12:00, Fri 29 Jan 12:00, Fri 26 Feb 12:00",
        "measure_the_heat: ",
        "report: Thu 31 Dec 09:00, Mon 04 Jan 09:00, Tue 05 Jan 09:00",
    ]

    async def main() -> None:
        async with running(app) as context:
            for user in ("ada", "emmy"):
                await context.schedule_task(program["report"], user, user=user)
            await clock_of(app).advance(timedelta(hours=2))
            assert capsys.readouterr().out == "Open since Thu 09:00, next time Sat 11:00\n"
            await clock_of(app).advance(timedelta(minutes=10))
            assert sorted(capsys.readouterr().out.splitlines()) == [
                "Report for ada, planned for 09:00",
                "Report for emmy, planned for 09:00",
            ]

    asyncio.run(main())


def test_delayed_email_is_sent_once_a_day_later_unless_somebody_has_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    program = example("delayed_email", datetime(2026, 1, 1, tzinfo=UTC))
    app = program["app"]

    async def main() -> None:
        await program["main"]()
        async with running(app) as context:
            await clock_of(app).advance(timedelta(hours=23, minutes=59))
            assert said(caplog, "delayed_email") == []
            await clock_of(app).advance(timedelta(minutes=10))
            assert (await context.list_tasks(program["welcome"])).tasks == []

    asyncio.run(main())
    assert said(caplog, "delayed_email") == ["To ada@example.com: How are you getting on, Ada?"]


def test_delayed_email_is_tried_again_until_the_mail_server_takes_it() -> None:
    day = datetime(2026, 1, 1, tzinfo=UTC)
    program = example("delayed_email", day)
    app = program["app"]
    tries: list[datetime] = []

    def send(address: str, text: str) -> None:
        tries.append(app.clock.now())
        if len(tries) < 3:
            raise OSError("The mail server cannot be reached")

    program["welcome"].task_func.__globals__["send"] = send

    async def main() -> None:
        await program["main"]()
        async with running(app):
            await clock_of(app).advance(timedelta(days=1, minutes=10))

    asyncio.run(main())
    assert tries == [day + timedelta(days=1) + number * MINUTE for number in range(3)]


def test_retries_park_what_has_failed_for_good_until_there_is_another_card() -> None:
    program = example("retries", datetime(2026, 1, 1, tzinfo=UTC))
    app, charge = program["app"], program["charge"]
    asked: list[tuple[str, str]] = []
    answers: list[BaseException | None] = [OSError("down"), program["CardRefusedError"](), None]

    async def ask_the_bank(card: str, cents: int, key: str) -> None:
        asked.append((card, key))
        if (answer := answers.pop(0)) is not None:
            raise answer

    charge.task_func.__globals__["ask_the_bank"] = ask_the_bank

    async def main() -> None:
        async with running(app) as context:
            await program["order"](context, "order-1", "4242", 995)
            await clock_of(app).advance(timedelta(minutes=5))
            state = await context.get_task(charge, "order-1")
            assert state is not None
            assert (state.state, state.reason) == ("parked", "GiveUp: the card was refused")
            assert await program["another_card"](context, "order-1", "5555", 995)
            await clock_of(app).advance(timedelta(minutes=5))
            assert await context.get_task(charge, "order-1") is None

    asyncio.run(main())
    assert [card for card, _ in asked] == ["4242", "4242", "5555"]
    assert len({key for _, key in asked}) == 1


def test_fixtures_and_middlewares_wrap_every_run(caplog: pytest.LogCaptureFixture) -> None:
    app = example("fixtures_and_middlewares", datetime(2026, 1, 1, tzinfo=UTC))["app"]

    async def main() -> None:
        async with running(app):
            await clock_of(app).advance(timedelta(seconds=6))

    asyncio.run(main())
    timings = [line for line in said(caplog, "fixtures_and_middlewares") if " took " in line]
    assert timings == ["sell took 0.000 s"] * 6
    with closing(sqlite3.connect("shop.db")) as connection:
        [(sold,)] = connection.execute("SELECT count(*) FROM sales")
    assert sold == 4


NOON_IN_BERLIN = datetime(2026, 3, 30, 10, tzinfo=UTC)
BACKUP = Path("shop-2026-03-30.db")


def stock_the_shop() -> None:
    with closing(sqlite3.connect("shop.db")) as connection, connection:
        connection.execute("CREATE TABLE sales (item TEXT)")
        connection.executemany("INSERT INTO sales VALUES (?)", [("tea" * 100,)] * 5_000)


def test_backup_at_noon_is_one_copy_however_long_it_takes_and_whoever_else_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = example("backup_at_noon", NOON_IN_BERLIN - MINUTE)["app"]
    app.clock = VirtualClock(NOON_IN_BERLIN - MINUTE, waits_for_tasks=False)
    stock_the_shop()

    async def main() -> None:
        async with running(app), running(app):
            with closing(sqlite3.connect("shop.db", isolation_level=None)) as customer:
                # The copy has to wait, for ten leases.
                customer.execute("BEGIN EXCLUSIVE")
                await clock_of(app).advance(11 * MINUTE)
                customer.execute("ROLLBACK")
            await until(lambda: bool(said(caplog, "backup_at_noon")))
            await clock_of(app).advance(2 * MINUTE)

    asyncio.run(main())
    assert said(caplog, "backup_at_noon") == ["The backup of 2026-03-30 is made"]
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    with closing(sqlite3.connect(BACKUP)) as connection:
        [(sold,)] = connection.execute("SELECT count(*) FROM sales")
    assert sold == 5_000
    assert list(Path().glob("*.part")) == []


def test_backup_at_noon_makes_one_for_all_the_days_that_were_missed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = example("backup_at_noon", NOON_IN_BERLIN - MINUTE)["app"]
    stock_the_shop()

    async def main() -> None:
        async with running(app):
            await settled(app)
        await clock_of(app).advance(timedelta(days=4, hours=12))
        async with running(app):
            await until(lambda: bool(said(caplog, "backup_at_noon")))
            await clock_of(app).advance(MINUTE)

    asyncio.run(main())
    assert said(caplog, "backup_at_noon") == ["The backup of 2026-03-30 is made"]


def test_steering_obeys_an_operator(capsys: pytest.CaptureFixture[str]) -> None:
    program = example("steering", datetime(2026, 1, 5, 12, tzinfo=UTC))
    app, obey = program["app"], program["obey"]

    async def main() -> None:
        async with running(app) as context:
            await clock_of(app).advance(timedelta(seconds=3))
            for word in ("pause", "trigger"):
                await obey(context, word)
                await clock_of(app).advance(timedelta(seconds=3))
            await obey(context, "resume")
            await clock_of(app).advance(timedelta(seconds=1))

    asyncio.run(main())
    # What is triggered or resumed may run before its state is asked for.
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "The task is paused (an operator said so)"
    assert [line[-8:] for line in said if line.startswith("Looked")] == [
        f"12:00:{second:02}" for second in (2, 6, 4, 6, 8, 10)
    ]
