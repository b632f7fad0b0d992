"""The tutorial's programs print what the tutorial shows."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs.named_tests import ROOT

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
TITLED = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.M | re.S)
FILES = {title: text for kind, title, text in TITLED.findall(PAGE) if kind == "python"}
SCREENS = {title: text for kind, title, text in TITLED.findall(PAGE) if kind == "console"}
PATIENCE_S = 90

# What differs from run to run, the longest first.
VARIABLE = (
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(,\d+|\.\d+)?(\+\d\d:\d\d)?"), "<instant>"),
    (re.compile(r"\b\d\d:\d\d:\d\d\b"), "<time>"),
    (re.compile(r"Worker \S+"), "Worker <name>"),
    (re.compile(r"\d+(\.\d+)?(e-\d+)? ?s\b"), "<duration>"),
)


def essence(text: str) -> list[str]:
    """The lines of a screen, without what differs from run to run."""
    for pattern, name in VARIABLE:
        text = pattern.sub(name, text)
    return [line.rstrip() for line in text.splitlines()]


def shown(title: str) -> list[str]:
    """What the page says that the screen shows, without the commands."""
    lines = SCREENS[title].splitlines()
    return essence("\n".join(line for line in lines if line != "^C" and not line.startswith("$ ")))


def commands(title: str) -> list[str]:
    return [line[2:] for line in SCREENS[title].splitlines() if line.startswith("$ ")]


def assert_shows(printed: str, title: str) -> None:
    """Each line of the page's screen was printed, in their order."""
    lines = iter(essence(printed))
    for wanted in shown(title):
        assert wanted in lines, (wanted, printed)


class Directory:
    """Where the reader of the tutorial works."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name, text in FILES.items():
            (path / name).write_text(text)
        bin_path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": bin_path, "PYTHONUNBUFFERED": "1"}
        self.environment.pop("PYNCETTE_URL", None)
        self.environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        self.started: list[Worker] = []

    def do(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.path,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def start(self, program: str) -> Worker:
        worker = Worker(self, program)
        self.started.append(worker)
        return worker


class Worker:
    """A program that runs until it is stopped."""

    def __init__(self, directory: Directory, program: str) -> None:
        self.log = directory.path / f"{len(directory.started)}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, program],
                cwd=directory.path,
                env=directory.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def printed(self) -> str:
        return self.log.read_text()

    def until(self, words: str, times: int = 1) -> None:
        """Waits until these words were printed so often."""
        deadline = time.monotonic() + PATIENCE_S
        while self.printed.count(words) < times:
            assert time.monotonic() < deadline, self.printed
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(PATIENCE_S) == 0, self.printed


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    directory = Directory(tmp_path)
    yield directory
    for worker in directory.started:
        worker.process.kill()
        worker.process.wait()


def test_the_counter_catches_up_and_two_workers_share_it(directory: Directory) -> None:
    first = directory.start("counter.py")
    first.until("Counted", 3)
    first.stop()
    assert_shows(first.printed, "First start")

    last = int(re.findall(r"Counted for ..:..:(..)", first.printed)[-1])
    time.sleep(6.5)  # three occurrences are missed, by the clock of the machine
    again = directory.start("counter.py")
    again.until("Counted", 4)
    assert_shows(again.printed, "Second start")
    counted = [int(second) for second in re.findall(r"Counted for ..:..:(..)", again.printed)]
    assert counted[:4] == [(last + 2 * number) % 60 for number in range(1, 5)]

    second = directory.start("counter.py")
    second.until("starts with 1 task")
    again.process.kill()
    again.process.wait()
    second.until("Counted", 2)


def test_the_newsletter_subscribes_fails_shows_and_is_repaired(directory: Directory) -> None:
    subscribed = [directory.do(command) for command in commands("Subscribing")]
    assert_shows("".join(subscribed), "Subscribing")
    assert "08:00:00+00:00" in subscribed[0] or "07:00:00+00:00" in subscribed[0]
    assert "23:00:00+00:00" in subscribed[1]

    worker = directory.start("newsletter.py")
    worker.until("starts with 1 task")
    directory.do("python now.py ada")
    worker.until("the occurrence is given up")
    assert_shows(worker.printed, "Failing")
    [show] = commands("Showing")
    assert_shows(directory.do(show), "Showing")

    for command in commands("Repairing"):
        directory.do(command)
    worker.until("Sent to ada@example.com")
    worker.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


ADDED = re.search(r"insert these lines.*?^```python\n(.*?)^```$", PAGE, re.M | re.S)


def test_the_newsletter_with_a_health_check_still_subscribes_beside_its_workers(
    directory: Directory,
) -> None:
    assert ADDED is not None
    newsletter = directory.path / "newsletter.py"
    before, mark, after = newsletter.read_text().partition("async def send")
    newsletter.write_text(f"{before}{ADDED[1]}\n\n{mark}{after}")
    ports = [str(free_port()) for _ in range(2)]
    for port in ports:
        directory.environment["HEALTH_PORT"] = port
        worker = directory.start("newsletter.py")
        worker.until("starts with 1 task")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE_S) as answer:
            assert answer.status == 200
    # Like the last worker, these scripts are told a port that is in use.
    subscribed = [directory.do(command) for command in commands("Subscribing")]
    assert_shows("".join(subscribed), "Subscribing")
    # So is its test, which touches neither their ports nor their letters.
    [command] = commands("Testing")
    assert_shows(directory.do(command), "Testing")
    [show] = commands("Showing")
    assert directory.do(show).count(" scheduled ") == len(subscribed)
    directory.do("touch mail-server && python now.py ada")
    deadline = time.monotonic() + PATIENCE_S
    while not any("Sent to ada@example.com" in one.printed for one in directory.started):
        assert time.monotonic() < deadline, [one.printed for one in directory.started]
        time.sleep(0.05)
    for worker in directory.started:
        worker.stop()


def test_the_test_of_the_newsletter_passes(directory: Directory) -> None:
    [command] = commands("Testing")
    assert_shows(directory.do(command), "Testing")
    # A plain pytest must be safe: its clock is another one than that of the real letters.
    assert command.startswith("pytest")
    assert not list(directory.path.glob("newsletter.db*"))


def test_no_screen_of_the_tutorial_is_left_out() -> None:
    here = Path(__file__).read_text()
    for title in SCREENS:
        assert f'"{title}"' in here
