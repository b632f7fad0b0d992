"""Servers that are killed under a running worker, and come back: for real, so it takes a while.

Not part of the everyday suites: ``tox -e faults`` runs it, on servers of its own.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pyncette import Context, Pyncette

SERVERS = Path(__file__).parents[2] / "tools" / "servers"
OUTAGE_S = 8.0
RESUMED_WITHIN_S = 5.0


class Server:
    """A server that this test may kill."""

    def __init__(self, name: str, directory: Path) -> None:
        self._name = name
        self._directory = directory

    def do(self, verb: str) -> str:
        command = [str(SERVERS), verb, "--dir", str(self._directory)]
        if verb != "env":
            command.append(self._name)
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout

    @property
    def url(self) -> str:
        variable = f"PYNCETTE_TEST_{self._name.upper()}_URL="
        for line in self.do("env").splitlines():
            if variable in line:
                return line.partition(variable)[2].strip("'\"")
        raise LookupError(variable)


@pytest.fixture(params=["postgres", "redis", "mysql", "mariadb"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    server = Server(request.param, tmp_path / "servers")
    server.do("start")
    try:
        yield server
    finally:
        server.do("stop")


def store_at(url: str) -> dict[str, Any]:
    """The options that open the store behind a URL."""
    if url.startswith("postgres"):
        from pyncette.postgres import postgres_repository

        return {"repository_factory": postgres_repository, "postgres_url": url}
    if url.startswith("redis"):
        from pyncette.redis import redis_repository

        return {"repository_factory": redis_repository, "redis_url": url}
    from pyncette.mysql import mysql_repository

    return {"repository_factory": mysql_repository, "mysql_url": url}


def test_a_worker_outlives_its_server_and_misses_nothing(server: Server) -> None:
    ran: list[tuple[datetime, float]] = []

    async def main() -> float:
        app = Pyncette(**store_at(server.url))

        @app.task(interval=timedelta(seconds=1), lease_duration=timedelta(seconds=5))
        async def tick(context: Context) -> None:
            ran.append((context.scheduled_at, time.monotonic()))

        async with app.create() as context:
            running = asyncio.create_task(context.run())
            await asyncio.sleep(3.5)
            await asyncio.to_thread(server.do, "kill")
            await asyncio.sleep(OUTAGE_S)
            await asyncio.to_thread(server.do, "start")
            up_at = time.monotonic()
            await asyncio.sleep(RESUMED_WITHIN_S + 3)
            context.shutdown()
            await running
        return up_at

    up_at = asyncio.run(main())
    resumed = [at for _, at in ran if at > up_at]
    assert resumed
    assert min(resumed) - up_at < RESUMED_WITHIN_S
    planned = sorted({instant for instant, _ in ran})
    assert len(planned) >= OUTAGE_S + RESUMED_WITHIN_S
    steps = {later - sooner for sooner, later in pairwise(planned)}
    assert steps == {timedelta(seconds=1)}, "an occurrence was lost"
