"""Ten incidents of a night, and the programs in which they happen: for the command line, and for
the dashboard.

They are made of real processes on a real store. What has to have passed meanwhile has passed at
once: a process whose ``SHIFT_S`` is set lives so many seconds later.
"""

from __future__ import annotations

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
from typing import Final
from urllib.parse import urlsplit

import pytest
from tests import forked
from tests.servers import url
from tests.stores import redis_place

PATIENCE_S: Final = 60

HOUR_S: Final = 3_600

PROGRAM: Final = """
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

RELAY: Final = """
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


class Place:
    """Where the programs run: a directory, and the store of all of them."""

    def __init__(self, directory: Path) -> None:
        (directory / "night_program.py").write_text(PROGRAM)
        self.directory = directory
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONTZPATH"},
            "PYNCETTE_APP": "night_program",
            "STORE_URL": f"sqlite:///{directory / 'tasks.db'}",
            "TZ": "UTC",
        }

    def before(self, *arguments: str, **environment: str) -> str:
        """A command that led to the incident."""
        done = forked.run(
            ["-m", "pyncette", *arguments],
            self.directory,
            {**self.environment, **environment},
            PATIENCE_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def until(self, part: str, *arguments: str, **environment: str) -> str:
        """Waits until a command shows something."""
        deadline = time.monotonic() + PATIENCE_S
        while part not in (shown := self.before(*arguments, **environment)):
            assert time.monotonic() < deadline, shown
        return shown

    @contextmanager
    def process(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """A command that goes on, until the block ends."""
        with subprocess.Popen(
            [sys.executable, "-m", "pyncette", *arguments],
            cwd=self.directory,
            env={**self.environment, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                process.communicate(timeout=PATIENCE_S)


@contextmanager
def redis_store() -> Iterator[dict[str, str]]:
    """A store on a Redis server, which has a clock and a network of its own."""
    with redis_place.place_at(url("redis")) as place:
        yield {"STORE_URL": url("redis"), "SPACE": place.configuration["redis_namespace"]}


def failing_since_noon(place: Place) -> dict[str, str]:
    """Its fourth run is two hours after the last success; returns when that is."""
    for hours in range(4):
        disk = "fine" if hours < 2 else "full"
        place.before("run", "--until-idle", SHIFT_S=str(hours * (HOUR_S + 1)), DISK=disk)
    return {"SHIFT_S": str(4 * (HOUR_S + 1))}


DAILY: Final = ("--schedule", "0 9 * * *", "--timezone")


def lost_zone(place: Place) -> dict[str, str]:
    """Schedules alice in a zone that the machines do not know; returns what one needs to."""
    zones = place.directory / "zones"
    (zones / "Europe").mkdir(parents=True)
    berlins = [Path(path, "Europe", "Berlin") for path in zoneinfo.TZPATH]
    berlin = next((path for path in berlins if path.exists()), None)
    if berlin is None:
        pytest.skip("this machine has no files of time zones")
    shutil.copy(berlin, zones / "Europe" / "Newtown")
    known = {"PYTHONTZPATH": os.pathsep.join([str(zones), *zoneinfo.TZPATH])}
    place.before("schedule", "reminder", "alice", *DAILY, "Europe/Newtown", **known)
    return known


def backlog(place: Place) -> dict[str, str]:
    """Nobody has run three instances for hours; returns when that is."""
    for number in range(3):
        place.before("schedule", "reminder", f"r{number}")
    return {"SHIFT_S": str(2 * HOUR_S)}


def forgotten_pause(place: Place) -> dict[str, str]:
    """A template is paused; returns when that was forgotten."""
    place.before("schedule", "reminder", "alice")
    place.before("pause", "reminder", "--reason", "the release")
    return {"SHIFT_S": str(3 * 24 * HOUR_S)}


def parked_batch(place: Place) -> None:
    for number in range(3):
        place.before("schedule", "invoice", f"i{number}", "--in", "0s")
    place.before("run", "--until-idle", DISK="full")


def renamed(place: Place) -> dict[str, str]:
    """Returns how the program is deployed in which the template has another name."""
    place.before("schedule", "reminder", "alice")
    return {"REMINDER": "reminders"}


def lonely_partition(place: Place) -> dict[str, str]:
    """Only one of two partitions has had a worker; returns when that is."""
    for number in range(6):
        place.before("schedule", "spread", f"i{number}")
    later = {"SHIFT_S": str(2 * HOUR_S)}
    place.before("run", "--until-idle", PARTITIONS="0", **later)
    return later


@contextmanager
def slow_way(store: dict[str, str]) -> Iterator[dict[str, str]]:
    """The same store, on a way that takes a while."""
    parts = urlsplit(store["STORE_URL"])
    command = [sys.executable, "-c", RELAY, str(parts.hostname), str(parts.port or 6379), "0.3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as relay:
        try:
            assert relay.stdout is not None
            port = relay.stdout.readline().strip()
            login, at, _ = parts.netloc.rpartition("@")
            slow = parts._replace(netloc=f"{login}{at}127.0.0.1:{port}").geturl()
            yield {**store, "STORE_URL": slow}
        finally:
            relay.kill()
