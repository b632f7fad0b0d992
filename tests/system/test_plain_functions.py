"""Plain functions in threads, in real processes: signals, and a process that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

WORKER = """
import os, sys, time
from pathlib import Path
from datetime import timedelta
from pyncette import Context, Every, Heartbeat, Pyncette

app = Pyncette(url="sqlite:///tasks.db", poll_interval=0.2)

@app.task(
    schedule=Every(timedelta(hours=1), at_once=True), lease_duration=2, heartbeat=Heartbeat()
)
def slow(context: Context) -> None:
    Path("runs").open("a").write("began\\n")
    print("began", flush=True)
    while not Path("go").exists():
        time.sleep(0.01)
    Path("runs").open("a").write("ended\\n")
    print("ended", flush=True)

app.main()
print("returned", flush=True)
"""

Start = Callable[[], subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    (tmp_path / "worker.py").write_text(WORKER)
    started: list[subprocess.Popen[str]] = []

    def begin() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "worker.py"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=dict(os.environ),
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def heard(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert any(line.strip() == word for line in process.stdout)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_a_plain_function_runs_to_its_end(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    process = start()
    heard(process, "began")
    process.send_signal(number)
    (tmp_path / "go").touch()
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output.split()) == (0, ["ended", "returned"])
    assert (tmp_path / "runs").read_text().split() == ["began", "ended"]


def test_a_second_signal_ends_the_process_although_a_plain_function_runs(start: Start) -> None:
    process = start()
    heard(process, "began")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM)


def test_a_plain_function_whose_worker_is_killed_runs_again_elsewhere(
    start: Start, tmp_path: Path
) -> None:
    first = start()
    heard(first, "began")
    first.kill()
    first.wait()
    second = start()
    heard(second, "began")
    (tmp_path / "go").touch()
    heard(second, "ended")
    second.send_signal(signal.SIGTERM)
    output, _ = second.communicate(timeout=60)
    assert (second.returncode, output.split()) == (0, ["returned"])
    assert (tmp_path / "runs").read_text().split() == ["began", "began", "ended"]
