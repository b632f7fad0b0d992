"""Ten incidents, found and mended with the command line alone, as the person on call would.

Each test makes an incident in a real store, SQLite or Redis, and then gives commands only.
``Night`` counts them: first what shows the incident, then what mends it, then what proves that it
is mended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zoneinfo
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.servers import url
from tests.stores import redis_place

PATIENCE_S = 60

PROGRAM = """
import os
from datetime import timedelta
from pyncette import CatchUp, Context, FailureMode, Pyncette, Retry
from pyncette.clock import SystemClock
from pyncette.history import use_history

class Shifted(SystemClock):
    "The clock of the machine of the test, at another time, or a machine with a wrong one."
    by = timedelta(seconds=float(os.environ.get("SHIFT_S", "0")))
    def now(self): return super().now() + self.by
    def microseconds(self): return super().microseconds() + self.by // timedelta(microseconds=1)

options = {"redis_namespace": os.environ["SPACE"]} if "SPACE" in os.environ else {}
app = Pyncette(url=os.environ["STORE_URL"], worker_name=os.environ.get("WORKER"), clock=Shifted(),
               poll_interval=0.2, **options)
use_history(app)

@app.task(interval=timedelta(hours=1), failure_mode=FailureMode.COMMIT)
async def report(context: Context) -> None:
    if os.environ.get("DISK") == "full":
        raise OSError("the disk is full")

@app.dynamic_task(interval=timedelta(hours=1), name=os.environ.get("REMINDER", "reminder"))
async def reminder(context: Context) -> None:
    pass

@app.dynamic_task(retry=Retry(attempts=1))
async def invoice(context: Context) -> None:
    if os.environ.get("DISK") == "full":
        raise OSError("the disk is full")

enabled = os.environ.get("PARTITIONS")
@app.partitioned_task(2, interval=timedelta(hours=1),
                      enabled_partitions=[int(enabled)] if enabled else None)
async def spread(context: Context) -> None:
    pass
"""


class Night:
    """The shell of the person on call: it gives commands, and counts them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONTZPATH"},
            "PYNCETTE_APP": "night_program",
            "STORE_URL": f"sqlite:///{directory / 'tasks.db'}",
            "TZ": "UTC",
        }
        self.commands: list[str] = []

    def before(self, *arguments: str, **environment: str) -> str:
        """Something that led to the incident: it is not counted."""
        done = subprocess.run(
            [sys.executable, "-m", "pyncette", *arguments],
            cwd=self.directory,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def gives(self, *arguments: str, **environment: str) -> str:
        """A command of the person on call; returns what it shows."""
        self.commands.append(" ".join(arguments))
        return self.before(*arguments, **environment)

    def doctor(self, check: str, **environment: str) -> str:
        """``pyncette doctor``: the line of one check."""
        shown = self.gives("doctor", **environment)
        [line] = [line for line in shown.splitlines() if line[6:].startswith(f"{check}:")]
        return line

    @contextmanager
    def worker(self, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """A worker as it is deployed."""
        with subprocess.Popen(
            [sys.executable, "-m", "pyncette", "run"],
            cwd=self.directory,
            env={**self.environment, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                process.wait(PATIENCE_S)

    def until(self, part: str, *arguments: str, **environment: str) -> str:
        """Waits until a command shows something; the last time, it is counted."""
        deadline = time.monotonic() + PATIENCE_S
        while part not in (shown := self.before(*arguments, **environment)):
            assert time.monotonic() < deadline, shown
        self.commands.append(" ".join(arguments))
        return shown

    def row(self, *arguments: str, **environment: str) -> dict[str, Any]:
        """What is known of one task; not counted."""
        found: dict[str, Any] = json.loads(self.before(*arguments, "--json", **environment))
        return found


@pytest.fixture
def night(tmp_path: Path) -> Night:
    (tmp_path / "night_program.py").write_text(PROGRAM)
    return Night(tmp_path)


def test_a_task_that_fails_since_noon(night: Night) -> None:
    for hours in range(4):
        disk = "fine" if hours < 2 else "full"
        night.before("run", "--until-idle", SHIFT_S=str(hours * 3_601), DISK=disk)
    now = {"SHIFT_S": str(4 * 3_601)}
    line = night.doctor("failing", **now)
    assert line.startswith("warn  failing: report: OSError: the disk is full, last at ")
    assert "last success at " in line
    assert "raise OSError" in night.gives("show", "report", **now)
    # The disk was cleared.
    night.gives("trigger", "report", **now)
    night.before("run", "--until-idle", **now)
    assert night.doctor("failing", **now) == "ok    failing: none"
    assert len(night.commands) == 4


def test_a_worker_that_is_frozen(night: Night) -> None:
    with night.worker(WORKER="frozen") as process:
        night.until("frozen", "workers")
        night.commands.clear()
        process.send_signal(signal.SIGSTOP)
        soon, later = {"SHIFT_S": "50"}, {"SHIFT_S": "120"}
        assert "silent for more than 40 s: frozen" in night.doctor("workers", **soon)
        line = night.doctor("workers that died", **later)
        assert f"frozen on {os.uname().nodename}, process {process.pid}, last seen" in line
        # End that process, and start the worker again.
        process.kill()
        with night.worker(WORKER="frozen", **later):
            night.until("ok    workers: 1 alive: frozen", "doctor", **later)
            assert night.doctor("workers that died", **later).startswith("ok")
    assert len(night.commands) == 4


def test_a_zone_that_was_lost(night: Night) -> None:
    zones = night.directory / "zones"
    (zones / "Europe").mkdir(parents=True)
    berlins = [Path(path, "Europe", "Berlin") for path in zoneinfo.TZPATH]
    berlin = next((path for path in berlins if path.exists()), None)
    if berlin is None:
        pytest.skip("this machine has no files of time zones")
    shutil.copy(berlin, zones / "Europe" / "Newtown")
    known = {"PYTHONTZPATH": os.pathsep.join([str(zones), *zoneinfo.TZPATH])}
    daily = ("--schedule", "0 9 * * *", "--timezone", "Europe/Newtown")
    night.before("schedule", "reminder", "alice", *daily, **known)
    assert "Europe/Newtown" in night.gives("list", "reminder")
    assert "this machine does not know it" in night.gives("show", "reminder", "alice")
    night.gives("schedule", "reminder", "alice", *daily[:-1], "Europe/Berlin")
    assert "Europe/Berlin" in night.gives("show", "reminder", "alice")
    assert night.row("show", "reminder", "alice")["reason"] is None
    assert len(night.commands) == 4


def test_a_backlog(night: Night) -> None:
    for number in range(3):
        night.before("schedule", "reminder", f"r{number}")
    later = {"SHIFT_S": str(2 * 3_600)}
    line = night.doctor("overdue", **later)
    assert line == "warn  overdue: reminder (3)"
    assert night.doctor("workers", **later) == "warn  workers: none is alive"
    shown = night.gives("run", "--until-idle", **later)
    assert "0 of them failed" in shown
    assert night.doctor("overdue", **later) == "ok    overdue: none"
    assert len(night.commands) == 4


def test_a_paused_template_that_was_forgotten(night: Night) -> None:
    night.before("schedule", "reminder", "alice")
    night.before("pause", "reminder", "--reason", "the release")
    later = {"SHIFT_S": str(3 * 86_400)}
    line = night.doctor("paused templates", **later)
    assert line.startswith("warn  paused templates: reminder since ")
    assert "(3 d), by " in line
    assert line.endswith("because: the release")
    night.gives("resume", "reminder", **later)
    assert night.doctor("paused templates", **later) == "ok    paused templates: none"
    night.before("run", "--until-idle", **later)
    assert night.row("show", "reminder", "alice")["last_outcome"] == "succeeded"
    assert len(night.commands) == 3


def test_a_batch_that_was_parked(night: Night) -> None:
    for number in range(3):
        night.before("schedule", "invoice", f"i{number}", "--in", "0s")
    night.before("run", "--until-idle", DISK="full")
    line = night.doctor("parked")
    assert line.startswith("warn  parked: invoice (3), such as i")
    assert "OSError: the disk is full" in line
    assert "the disk is full" in night.gives("list", "invoice", "--state", "parked")
    # The disk was cleared.
    assert "3 updated" in night.gives("retry", "invoice")
    night.before("run", "--until-idle")
    assert night.doctor("parked") == "ok    parked: none"
    assert night.before("list", "invoice") == "No instances\n"
    assert len(night.commands) == 4


@pytest.fixture
def redis_space() -> Iterator[str]:
    """A namespace of its own on a Redis server, which has a clock and a network of its own."""
    with redis_place.place_at(url("redis")) as place:
        yield place.configuration["redis_namespace"]


def test_a_clock_that_is_off(night: Night, redis_space: str) -> None:
    store = {"STORE_URL": url("redis"), "SPACE": redis_space}
    line = night.doctor("clock", SHIFT_S="90", **store)
    assert line.startswith("warn  clock: the clock of this machine is +")
    assert "s off that of the store" in line
    # NTP was started again.
    assert night.doctor("clock", **store).startswith("ok    clock: ")
    assert len(night.commands) == 2


def test_an_unknown_group_after_a_rename(night: Night) -> None:
    night.before("schedule", "reminder", "alice")
    line = night.doctor("unknown tasks", REMINDER="reminders")
    assert line.startswith("warn  unknown tasks: in the store, but not declared: reminder (1)")
    assert "'reminder' is near to 'reminders', which is declared" in line
    # It is deployed again with its old name.
    assert night.doctor("unknown tasks") == "ok    unknown tasks: none"
    # Or: what it has left is removed.
    night.gives("purge", "reminder", "--yes", REMINDER="reminders")
    assert night.doctor("unknown tasks", REMINDER="reminders") == "ok    unknown tasks: none"
    assert len(night.commands) == 4


def test_a_partition_without_a_worker(night: Night) -> None:
    for number in range(6):
        night.before("schedule", "spread", f"i{number}")
    later = {"SHIFT_S": str(2 * 3_600)}
    night.before("run", "--until-idle", PARTITIONS="0", **later)
    line = night.doctor("partitions", **later)
    assert line == "warn  partitions: with overdue instances: spread:1"
    # A worker is started for the partition.
    night.gives("run", "--until-idle", PARTITIONS="1", **later)
    assert night.doctor("partitions", **later) == "ok    partitions: none with overdue instances"
    assert len(night.commands) == 3


RELAY = """
import asyncio, sys
host, port, delay_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])

async def pump(reader, writer, delay_s):
    while data := await reader.read(65_536):
        await asyncio.sleep(delay_s)
        writer.write(data)
    writer.close()

async def relay(reader, writer):
    to_reader, to_writer = await asyncio.open_connection(host, port)
    await asyncio.gather(pump(reader, to_writer, delay_s), pump(to_reader, writer, 0))

async def main():
    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def test_a_store_that_is_slow(night: Night, redis_space: str) -> None:
    given = url("redis")
    parts = urlsplit(given)
    command = [sys.executable, "-c", RELAY, str(parts.hostname), str(parts.port or 6379), "0.4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as relay:
        try:
            assert relay.stdout is not None
            port = relay.stdout.readline().strip()
            login, at, _ = parts.netloc.rpartition("@")
            slow = parts._replace(netloc=f"{login}{at}127.0.0.1:{port}").geturl()
            shown = night.gives("doctor", "--timeout", "50s", STORE_URL=slow, SPACE=redis_space)
            assert "warn  speed: answers in " in shown
            assert "Look at the load of the server, its disk, its locks, and the way to it" in shown
        finally:
            relay.kill()
    # The way to it is as before.
    line = night.doctor("speed", STORE_URL=given, SPACE=redis_space)
    assert line.startswith("ok    speed: answers in ")
    assert len(night.commands) == 2
