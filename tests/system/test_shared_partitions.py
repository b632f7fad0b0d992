"""Real workers that share partitions: one is killed, and the others do its work, on every store."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests import forked
from tests.stores.every_store import place_of

from pyncette import Context, Partitions, Pyncette, PyncetteContext
from pyncette.task import PartitionedTask
from pyncette.testing.conformance import Place

PATIENCE_S = 120
COUNT = 6

PROGRAM = """
import importlib, json, os, sys
from datetime import timedelta
from pyncette import Partitions, Pyncette

module, factory, configuration = json.loads(os.environ["PLACE"])
app = Pyncette(
    getattr(importlib.import_module(module), factory),
    poll_interval=timedelta(seconds=0.5),
    worker_name=sys.argv[1],
    **configuration,
)
LOG = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@app.partitioned_task(
    6,
    partition_selector=lambda count, name: int(name) % count,
    partitions=Partitions.SHARED,
    lease_duration=timedelta(seconds=4),
)
async def job(context):
    os.write(LOG, f"{sys.argv[1]} {context.task.name}\\n".encode())


if __name__ == "__main__":
    app.main()
"""


@pytest.fixture(params=["sqlite-file", "postgres", "mysql", "mariadb", "redis", "dynamodb"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with place_of(request.param, tmp_path) as place:
        yield place


class Site:
    """Workers in processes of their own."""

    def __init__(self, directory: Path, place: Place) -> None:
        self._directory = directory
        self._place = place
        self._processes: dict[str, forked.Process] = {}
        (directory / "program.py").write_text(PROGRAM)

    def start(self, name: str) -> None:
        factory = self._place.factory
        place = [factory.__module__, factory.__name__, self._place.configuration]
        self._processes[name] = forked.Process(
            ["program.py", name],
            self._directory,
            {**os.environ, "PLACE": json.dumps(place)},
            loaded=(factory.__module__,),
        )

    def kill(self, name: str) -> None:
        self._processes[name].kill()
        self._processes[name].wait()

    def stop(self, name: str) -> None:
        self._processes[name].terminate()
        assert self._processes[name].wait() == 0

    def close(self) -> None:
        for name in self._processes:
            self.kill(name)

    def runs(self) -> list[list[str]]:
        """The worker and the instance of each run."""
        log = self._directory / "log"
        return [row.split(" ") for row in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def site(tmp_path: Path, place: Place) -> Iterator[Site]:
    site = Site(tmp_path, place)
    yield site
    site.close()


async def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not await holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def declared(app: Pyncette) -> PartitionedTask:
    async def job(context: Context) -> None: ...

    return app.partitioned_task(
        COUNT,
        partition_selector=lambda count, name: int(name) % count,
        partitions=Partitions.SHARED,
        name="job",
        lease_duration=timedelta(seconds=4),
    )(job)


def test_when_a_worker_is_killed_the_others_do_its_work(site: Site, place: Place) -> None:
    app = Pyncette(place.factory, **place.configuration)
    task = declared(app)

    async def alive(context: PyncetteContext) -> list[str]:
        return [state.name for state in await context.workers()]

    async def schedule(context: PyncetteContext, first: int) -> None:
        # Long ago: the owner of a partition comes first only for two poll intervals.
        for number in range(first, first + COUNT):
            await context.schedule_task(
                task, str(number), execute_at=datetime(2026, 1, 1, tzinfo=UTC)
            )

    async def main() -> None:
        async with app.create() as context:

            async def all_ran(count: int) -> bool:
                """Also what they have written: a worker that is killed before runs them again."""
                if len({instance for _, instance in site.runs()}) < count:
                    return False
                return not [state async for state in context.iter_tasks(task)]

            for name in ("a", "b", "c"):
                site.start(name)

            async def three() -> bool:
                return await alive(context) == ["a", "b", "c"]

            await until(three)
            for number in range(COUNT, 2 * COUNT):
                await context.schedule_task(
                    task, str(number), execute_at=datetime.now(UTC) + timedelta(seconds=3)
                )
            await until(lambda: all_ran(COUNT))
            site.kill("b")
            assert "b" in await alive(context)
            await schedule(context, 2 * COUNT)
            await until(lambda: all_ran(2 * COUNT))

            async def two() -> bool:
                return await alive(context) == ["a", "c"]

            await until(two)
            site.stop("c")
            assert await alive(context) == ["a"]
            await schedule(context, 3 * COUNT)
            await until(lambda: all_ran(3 * COUNT))

    asyncio.run(main())
    runs = site.runs()
    assert len(runs) == 3 * COUNT
    first = [worker for worker, instance in runs if int(instance) < 2 * COUNT]
    assert Counter(first) == {"a": 2, "b": 2, "c": 2}
