"""What README says outside its table of promises: its programs, and its lists.

The table of promises: tests/system/test_guarantees.py. That every program on the page runs:
tests/docs/test_examples_in_docs.py.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import sys
import time
import tomllib
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pyncette.testing import VirtualClock

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STATIC, FAILING, DYNAMIC = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
PATIENCE_S = 30


def declared(program: str) -> dict[str, Any]:
    """What a program declares when it is imported."""
    module: dict[str, Any] = {"__name__": "app"}
    exec(compile(program, "README.md", "exec"), module)
    return module


def until(holds: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_processes_share_the_work_and_one_continues_when_the_other_is_killed(
    tmp_path: Path,
) -> None:
    every_second = STATIC.replace("timedelta(seconds=10)", "timedelta(seconds=1)")
    assert every_second != STATIC
    (tmp_path / "app.py").write_text(every_second)
    logs = [tmp_path / "first", tmp_path / "second"]

    def planned() -> list[str]:
        return re.findall(r"Planned for (\S+)", "".join(log.read_text() for log in logs))

    processes = []
    try:
        for log in logs:
            with log.open("w") as file:
                command = [sys.executable, "-u", "-W", "error", "app.py"]
                processes.append(
                    subprocess.Popen(command, cwd=tmp_path, stdout=file, stderr=subprocess.DEVNULL)
                )
        until(lambda: len(planned()) >= 2)
        time.sleep(0.3)  # between two runs, so that no lease has to end first
        processes[0].kill()
        processes[0].wait()
        before = len(planned())
        until(lambda: len(planned()) >= before + 2)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert len(planned()) == len(set(planned())), "each second is run by one process"


@pytest.mark.parametrize(
    ("before", "noons"),
    [
        # The clocks of Berlin go forward on 29 March 2026, a Sunday.
        (datetime(2026, 3, 26, 23, tzinfo=UTC), ["27 11:00", "30 10:00", "31 10:00"]),
        (datetime(2026, 10, 22, 22, tzinfo=UTC), ["23 10:00", "26 11:00", "27 11:00"]),
    ],
    ids=["spring", "autumn"],
)
def test_noon_on_a_working_day_is_noon_whatever_the_clocks_did(
    before: datetime, noons: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Polling does not move a run; once an hour is enough here.
    seldom = STATIC.replace('.db")', '.db", poll_interval=timedelta(hours=1))')
    assert seldom != STATIC
    program = declared(seldom)
    clock = program["app"].clock = VirtualClock(before)
    program["heartbeat"].enabled = False
    ran: list[str] = []
    program["print"] = lambda text: ran.append(clock.now().strftime("%d %H:%M"))

    async def main() -> None:
        async with program["app"].create() as context:
            loop = asyncio.create_task(context.run())
            await clock.advance(timedelta(days=5))
            context.shutdown()
            await loop

    asyncio.run(main())
    assert ran == noons


def test_the_heartbeats_that_were_missed_run_first_when_the_program_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = declared(STATIC)
    clock = program["app"].clock = VirtualClock(datetime(2026, 11, 28, tzinfo=UTC))
    printed: list[str] = []
    program["print"] = printed.append

    async def run(seconds: int) -> None:
        async with program["app"].running():
            await clock.advance(timedelta(seconds=seconds))

    async def main() -> None:
        await run(20)
        await clock.advance(timedelta(minutes=1))
        del printed[:]
        await run(0)

    asyncio.run(main())
    assert printed == [f"Planned for 00:{second // 60:02}:{second % 60:02}" for second in SECONDS]


SECONDS = range(30, 90, 10)
"""After midnight: the heartbeats of the minute in which the program did not run."""


def test_the_badges_say_what_the_package_says() -> None:
    said = re.findall(
        r"^!\[([^\]]*)\]\(https://img\.shields\.io/badge/([^)]*)-blue\)$", README, re.M
    )
    versions = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if " 3." in line]
    expected = f"{versions[0]} to {versions[-1]}"
    assert said == [
        (f"Python {expected}", f"python-{expected.replace(' ', '%20')}"),
        (f"Licence: {PROJECT['license']}", f"licence-{PROJECT['license']}"),
        ("Typed", "typed-strict"),
    ]
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_an_instance_is_created_listed_and_removed_at_run_time(tmp_path: Path) -> None:
    in_a_file = DYNAMIC.replace("Pyncette()", 'Pyncette(sqlite_database="tasks.db")')
    assert in_a_file != DYNAMIC
    command = [sys.executable, "-W", "error", "-c", in_a_file]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert re.fullmatch(
        r"daily_report:user-17 is due at \d{4}-\d\d-\d\d 1[12]:30:00\+00:00\n", done.stdout
    ), done.stdout
    with closing(sqlite3.connect(tmp_path / "tasks.db")) as connection:
        keys = [key for (key,) in connection.execute("SELECT key FROM pyncette_tasks")]
    assert "user-17" not in keys


def test_the_extras_are_those_of_the_package() -> None:
    listed = README.partition("the extras are ")[2].partition(". ")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(PROJECT["optional-dependencies"])


def test_the_versions_of_python_are_those_of_the_package() -> None:
    prefix = "Programming Language :: Python :: 3."
    minors = [
        int(line.removeprefix(prefix)) for line in PROJECT["classifiers"] if line.startswith(prefix)
    ]
    assert f"Python 3.{min(minors)} to 3.{max(minors)} are supported" in README
    assert PROJECT["requires-python"] == f">=3.{min(minors)}"


def test_a_task_that_fails_is_retried_then_kept_and_runs_again_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = declared(FAILING.replace("asyncio.run(main())", ""))
    clock = program["app"].clock = VirtualClock(datetime(2026, 11, 28, tzinfo=UTC))
    invoice, attempts = program["invoice"], []

    def fail(text: str) -> None:
        attempts.append(text)
        raise RuntimeError("no paper")

    program["print"] = fail

    async def main() -> None:
        async with program["app"].create() as context:
            loop = asyncio.create_task(context.run())
            await context.schedule_task(invoice, "2026-117", execute_at=clock.now(), customer="Ada")
            await clock.advance(timedelta(hours=1))
            assert attempts == [f"Attempt {number} for Ada" for number in range(1, 6)]
            state = await context.get_task(invoice, "2026-117")
            assert state is not None
            assert (state.state, state.reason) == ("parked", "RuntimeError: no paper")
            program["print"] = attempts.append
            await context.retry_parked_tasks(invoice)
            await clock.advance(timedelta(seconds=5))
            assert attempts[5:] == ["Attempt 1 for Ada"]
            assert await context.get_task(invoice, "2026-117") is None
            context.shutdown()
            await loop

    asyncio.run(main())


def test_a_paused_task_is_resumed_and_run_at_once_as_the_program_says(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", FAILING]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout == "", "nothing is parked"
    with closing(sqlite3.connect(tmp_path / "pyncette.db")) as connection:
        rows = connection.execute(
            "SELECT state, due_at FROM pyncette_tasks WHERE key = '2026-117'"
        ).fetchall()
    [(state, due_at)] = rows
    assert state == "scheduled"
    assert due_at <= time.time() * 1_000_000, "it was triggered, so it is due now"
