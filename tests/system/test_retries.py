"""What is promised about retries and pauses holds across killed processes, on every store.

Attempts are counted, what is exhausted is parked, and what was paused rests.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests import forked
from tests.servers import url
from tests.stores import dynamodb_place, mysql_place, postgres_place, redis_place

from pyncette import Context, Pyncette, PyncetteContext, Retry
from pyncette.model import TaskState
from pyncette.sqlite import sqlite_repository
from pyncette.task import Task
from pyncette.testing.conformance import Place

PATIENCE_S = 240
LEASE = timedelta(seconds=1)
# By template. A worker that one body kills takes along what it has started beside it, which then
# counts as an attempt of that: the neighbours' policy allows for each kill there is.
ATTEMPTS = {"deadly": 3, "neighbour": 9}

PROGRAM = """
import asyncio, importlib, json, os, signal, sys
from datetime import timedelta
from pyncette import Pyncette, Retry

module, factory, configuration = json.loads(os.environ["PLACE"])
app = Pyncette(
    getattr(importlib.import_module(module), factory),
    poll_interval=timedelta(seconds=0.1),
    **configuration,
)
ATTEMPTS = json.loads(os.environ["ATTEMPTS"])
LOG = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)


async def job(context):
    how = context.args["how"]
    line = f"{context.task.name} {context.attempt} {context.execution_id} {context.fencing_token}"
    os.write(LOG, f"{line}\\n".encode())
    if how == "dies" or (how == "dies once" and context.attempt == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "dies when paused":
        if not os.path.exists("died"):
            while not os.path.exists("paused"):
                await asyncio.sleep(0.02)
            open("died", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
    elif how != "succeeds":
        raise ValueError("no")


for name, attempts in ATTEMPTS.items():
    app.dynamic_task(
        name=name,
        lease_duration=timedelta(seconds=1),
        retry=Retry(attempts=attempts, initial=(pause := timedelta(seconds=0.05)), maximum=pause),
    )(job)
app.dynamic_task(name="steady", lease_duration=timedelta(seconds=1), heartbeat=True)(job)


if __name__ == "__main__":
    app.main()
"""


@contextmanager
def sqlite_place(directory: Path) -> Iterator[Place]:
    yield Place(sqlite_repository, {"sqlite_database": str(directory / "tasks.db")})


STORES = ["sqlite", "postgres", "redis", "mysql", "mariadb", "dynamodb"]


@pytest.fixture(params=STORES)
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    match request.param:
        case "sqlite":
            found = sqlite_place(tmp_path)
        case "postgres":
            found = postgres_place.place_at(url("postgres"))
        case "redis":
            found = redis_place.place_at(url("redis"))
        case "dynamodb":
            dynamodb_place.set_credentials(monkeypatch)
            found = dynamodb_place.place_at(url("dynamodb"))
        case server:
            found = mysql_place.place_at(url(server))
    with found as place:
        yield place


class Site:
    """Workers that are started again when they die, as a supervisor does it."""

    def __init__(self, directory: Path, place: Place) -> None:
        self.directory = directory
        self.place = place
        self.worker: forked.Process | None = None
        (directory / "program.py").write_text(PROGRAM)

    def starts(self, name: str) -> list[tuple[int, str, int]]:
        """Attempt, execution id and fencing token of each start of a task."""
        log = self.directory / "log"
        rows = [row.split(" ") for row in log.read_text().splitlines()] if log.exists() else []
        return [(int(row[1]), row[2], int(row[3])) for row in rows if row[0] == name]

    def until(self, holds: Callable[[], object]) -> None:
        """Keeps a worker running until this holds."""
        factory = self.place.factory
        place = [factory.__module__, factory.__name__, self.place.configuration]
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline
            if self.worker is None or self.worker.poll() is not None:
                assert self.worker is None or self.worker.returncode == -signal.SIGKILL
                self.worker = forked.Process(
                    ["program.py"],
                    self.directory,
                    {
                        **os.environ,
                        "PLACE": json.dumps(place),
                        "ATTEMPTS": json.dumps(ATTEMPTS),
                    },
                    loaded=(factory.__module__,),
                )
            time.sleep(0.1)

    def do(self, work: Callable[[PyncetteContext, dict[str, Task]], Any]) -> Any:
        """Calls this with an opened app and its templates by name."""

        async def main() -> Any:
            app = Pyncette(self.place.factory, **self.place.configuration)

            async def job(context: Context) -> None: ...

            tasks = {
                name: app.dynamic_task(
                    name=name, lease_duration=LEASE, retry=Retry(attempts=attempts)
                )(job)
                for name, attempts in ATTEMPTS.items()
            }
            tasks["steady"] = app.dynamic_task(name="steady", lease_duration=LEASE, heartbeat=True)(
                job
            )
            async with app.create() as context:
                return await work(context, tasks)

        return asyncio.run(main())

    def state(self, template: str, name: str) -> TaskState | None:
        state: TaskState | None = self.do(
            lambda context, tasks: context.get_task(tasks[template], name)
        )
        return state

    def states(self, instances: Sequence[tuple[str, str]]) -> list[str | None]:
        """What each of these does; None: it is gone."""

        async def look(context: PyncetteContext, tasks: dict[str, Task]) -> list[str | None]:
            found = [await context.get_task(tasks[template], name) for template, name in instances]
            return [None if state is None else state.state for state in found]

        states: list[str | None] = self.do(look)
        return states

    def close(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()


@pytest.fixture
def site(tmp_path: Path, place: Place) -> Iterator[Site]:
    assert importlib.import_module(place.factory.__module__)
    site = Site(tmp_path, place)
    yield site
    site.close()


def test_a_body_that_kills_its_process_is_parked_after_its_attempts(site: Site) -> None:
    instances = [
        ("deadly", "bad", "dies"),
        ("neighbour", "mixed", "dies once"),
        ("neighbour", "good", "succeeds"),
    ]

    async def schedule(context: PyncetteContext, tasks: dict[str, Task]) -> None:
        when = datetime(2026, 1, 1, tzinfo=UTC)
        for template, name, how in instances:
            await context.schedule_task(tasks[template], name, execute_at=when, how=how)

    site.do(schedule)

    def settled() -> bool:
        return site.states([(template, name) for template, name, _ in instances]) == [
            *("parked", "parked"),
            None,
        ]

    site.until(settled)
    bad, mixed = site.state("deadly", "bad"), site.state("neighbour", "mixed")
    assert bad is not None
    assert mixed is not None
    assert "ended without an outcome" in (bad.reason or "")
    assert mixed.reason == "ValueError: no"
    for template, name, _ in instances[:2]:
        starts = site.starts(name)
        # Whoever is killed between the claim and the first line of its body writes none.
        attempts = [attempt for attempt, _, _ in starts]
        assert attempts == sorted(set(attempts))
        assert attempts[-1] <= ATTEMPTS[template]
        assert len({execution_id for _, execution_id, _ in starts}) == 1
        tokens = [token for _, _, token in starts]
        assert tokens == sorted(set(tokens))

    assert site.do(
        lambda context, tasks: context.retry_parked(tasks["deadly"], "bad", how="succeeds")
    )
    site.until(lambda: site.state("deadly", "bad") is None)
    assert site.starts("bad")[-1][:2] == (1, site.starts("bad")[0][1])


def test_what_is_paused_while_its_worker_is_killed_rests_until_it_is_resumed(site: Site) -> None:
    async def schedule(context: PyncetteContext, tasks: dict[str, Task]) -> None:
        for name, how in (("kept", "dies when paused"), ("ticks", "succeeds")):
            interval = timedelta(seconds=0.2)
            await context.schedule_task(tasks["steady"], name, interval=interval, how=how)

    site.do(schedule)
    site.until(lambda: site.starts("kept"))
    site.do(lambda context, tasks: context.pause(tasks["steady"], "kept", reason="by a test"))
    (site.directory / "paused").touch()

    def rests() -> bool:
        state = site.state("steady", "kept")
        return state is not None and state.state == "paused"

    # The run in hand had no outcome: it is tried again, and its end begins the pause.
    site.until(rests)
    starts = site.starts("kept")
    # A claim that was answered too late starts nothing, and counts.
    first, second = (attempt for attempt, _, _ in starts)
    assert second > first
    assert len({execution_id for _, execution_id, _ in starts}) == 1
    state = site.state("steady", "kept")
    assert state is not None
    assert state.reason == "by a test"

    # A worker that starts anew leaves it alone, and goes on with the others.
    assert site.worker is not None
    site.worker.kill()
    ticks = len(site.starts("ticks"))
    site.until(lambda: len(site.starts("ticks")) > ticks + 8)
    assert rests()
    assert site.starts("kept") == starts

    site.do(lambda context, tasks: context.resume(tasks["steady"], "kept"))
    site.until(lambda: len(site.starts("kept")) > len(starts))
    assert site.starts("kept")[len(starts)][1] != starts[0][1]
