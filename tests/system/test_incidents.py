"""Ten incidents, found and mended with the command line alone, as the person on call would.

Each test makes an incident in a real store, SQLite or Redis, and then gives commands only.
``Night`` counts them: first what shows the incident, then what mends it, then what proves that it
is mended; ``pytest -rP`` shows them, with times. ``tests/browser/test_incidents.py`` does the same
with the dashboard.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from tests import incidents
from tests.incidents import DAILY, Place


class Night(Place):
    """The shell of the person on call: it gives commands, and counts them."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.commands: list[str] = []
        self.began = time.monotonic()

    def gives(self, *arguments: str, **environment: str) -> str:
        """A command of the person on call; returns what it shows."""
        self.began = self.began if self.commands else time.monotonic()
        self.commands.append(" ".join(arguments))
        return self.before(*arguments, **environment)

    def doctor(self, check: str, **environment: str) -> str:
        """``pyncette doctor``: the line of one check."""
        shown = self.gives("doctor", **environment)
        [line] = [line for line in shown.splitlines() if line[6:].startswith(f"{check}:")]
        return line

    def worker(self, **environment: str) -> AbstractContextManager[Popen[str]]:
        """A worker as it is deployed."""
        return self.process("run", **environment)

    def until(self, part: str, *arguments: str, **environment: str) -> str:
        """Waits until a command shows something; the last time, it is counted."""
        shown = super().until(part, *arguments, **environment)
        self.commands.append(" ".join(arguments))
        return shown

    def row(self, *arguments: str, **environment: str) -> dict[str, Any]:
        """What is known of one task; not counted."""
        found: dict[str, Any] = json.loads(self.before(*arguments, "--json", **environment))
        return found


@pytest.fixture
def night(tmp_path: Path) -> Iterator[Night]:
    night = Night(tmp_path)
    yield night
    print(f"{time.monotonic() - night.began:.0f} s: {' > '.join(night.commands)}")


def test_a_task_that_fails_since_noon(night: Night) -> None:
    now = incidents.failing_since_noon(night)
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
        # Silent after 40 s, dead after 60: this leaves a busy machine most of the time between.
        soon, later = {"SHIFT_S": "42"}, {"SHIFT_S": "120"}
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
    incidents.lost_zone(night)
    assert "Europe/Newtown" in night.gives("list", "reminder")
    assert "this machine does not know it" in night.gives("show", "reminder", "alice")
    night.gives("schedule", "reminder", "alice", *DAILY, "Europe/Berlin")
    assert "Europe/Berlin" in night.gives("show", "reminder", "alice")
    assert night.row("show", "reminder", "alice")["reason"] is None
    assert len(night.commands) == 4


def test_a_backlog(night: Night) -> None:
    later = incidents.backlog(night)
    line = night.doctor("overdue", **later)
    assert line == "warn  overdue: reminder (3)"
    assert night.doctor("workers", **later) == "warn  workers: none is alive"
    shown = night.gives("run", "--until-idle", **later)
    assert "0 of them failed" in shown
    assert night.doctor("overdue", **later) == "ok    overdue: none"
    assert len(night.commands) == 4


def test_a_paused_template_that_was_forgotten(night: Night) -> None:
    later = incidents.forgotten_pause(night)
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
    incidents.parked_batch(night)
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
def redis_store() -> Iterator[dict[str, str]]:
    with incidents.redis_store() as store:
        yield store


def test_a_clock_that_is_off(night: Night, redis_store: dict[str, str]) -> None:
    line = night.doctor("clock", SHIFT_S="90", **redis_store)
    assert line.startswith("warn  clock: the clock of this machine is +")
    assert "s off that of the store" in line
    # NTP was started again.
    assert night.doctor("clock", **redis_store).startswith("ok    clock: ")
    assert len(night.commands) == 2


def test_an_unknown_group_after_a_rename(night: Night) -> None:
    renamed = incidents.renamed(night)
    line = night.doctor("unknown tasks", **renamed)
    assert line.startswith("warn  unknown tasks: in the store, but not declared: reminder (1)")
    assert "'reminder' is near to 'reminders', which is declared" in line
    # It is deployed again with its old name.
    assert night.doctor("unknown tasks") == "ok    unknown tasks: none"
    # Or: what it has left is removed.
    night.gives("purge", "reminder", "--yes", **renamed)
    assert night.doctor("unknown tasks", **renamed) == "ok    unknown tasks: none"
    assert len(night.commands) == 4


def test_a_partition_without_a_worker(night: Night) -> None:
    later = incidents.lonely_partition(night)
    line = night.doctor("partitions", **later)
    assert line == "warn  partitions: with overdue instances: spread:1"
    # A worker is started for the partition.
    night.gives("run", "--until-idle", PARTITIONS="1", **later)
    assert night.doctor("partitions", **later) == "ok    partitions: none with overdue instances"
    assert len(night.commands) == 3


def test_a_store_that_is_slow(night: Night, redis_store: dict[str, str]) -> None:
    with incidents.slow_way(redis_store) as slow:
        shown = night.gives("doctor", "--timeout", "50s", **slow)
        assert "warn  speed: answers in " in shown
        assert "Look at the load of the server, its disk, its locks, and the way to it" in shown
    # The way to it is as before.
    line = night.doctor("speed", **redis_store)
    assert line.startswith("ok    speed: answers in ")
    assert len(night.commands) == 2
