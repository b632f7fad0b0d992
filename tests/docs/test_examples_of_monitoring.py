"""The examples of heartbeats, health checks and metrics: each runs, and shows what it is for."""

from __future__ import annotations

import asyncio
import logging
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from tests.ports import reserved_port

from pyncette.testing import VirtualClock

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PATIENCE_S = 30


@contextmanager
def program(name: str, directory: Path) -> Iterator[int]:
    """Runs an example, gives the port that it serves, and stops it as an orchestrator does."""
    port = reserved_port()
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        cwd=directory,
        env={**os.environ, "PORT": str(port)},
    )
    try:
        yield port
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


def page_with(port: int, *parts: str) -> str:
    """The page, once it is there and has all these parts."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE_S) as answer:
                page: str = answer.read().decode()
        except URLError:
            page = ""
        if page and all(part in page for part in parts):
            return page
        assert time.monotonic() < deadline, page
        time.sleep(0.05)


def test_the_worker_with_a_health_check_says_that_it_is_well(tmp_path: Path) -> None:
    with program("healthcheck.py", tmp_path) as port:
        assert page_with(port) == "OK"


def test_the_measured_worker_shows_its_executions_and_failures(tmp_path: Path) -> None:
    with program("prometheus.py", tmp_path) as port:
        page_with(
            port,
            'pyncette_tasks_total{task_name="fetch_rates"}',
            'pyncette_tasks_failures_total{exception_type="ConnectionError",'
            'task_name="send_invoices"}',
            'pyncette_repository_ops_total{operation="claim"}',
            "pyncette_ticks_total",
        )


def test_the_rebuild_of_ten_leases_runs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    app = runpy.run_path(str(EXAMPLES / "heartbeat.py"), run_name="heartbeat")["app"]
    clock = app.clock = VirtualClock(datetime(2026, 1, 1, 11, 59, tzinfo=UTC))

    async def main() -> None:
        async with app.create() as context, app.create() as another:
            running = [asyncio.create_task(worker.run()) for worker in (context, another)]
            await clock.advance(timedelta(minutes=10))
            for worker in (context, another):
                worker.shutdown()
            await asyncio.gather(*running)

    asyncio.run(main())
    indexed = [record.args for record in caplog.records if record.name == "heartbeat"]
    assert indexed == [(shard,) for shard in range(1, 11)]
