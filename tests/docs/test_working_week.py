"""Each need of a working week takes at most three lines, and they do what they say."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.docs.named_tests import ROOT

from pyncette import Instance, PyncetteContext, TaskState
from pyncette.testing import VirtualClock

EXAMPLE = ROOT / "examples" / "working_week.py"
MONDAY = datetime(2026, 3, 30, 8, tzinfo=UTC)

NEEDS = re.findall(r"^# Need: (.*)\n((?:.*\n)*?)(?:\n\n|\Z)", EXAMPLE.read_text(), re.M)


def test_every_need_of_a_week_takes_at_most_three_lines() -> None:
    assert [need for need, _ in NEEDS] == [
        *("retries", "a timeout", "no overlap", "a limit of two", "a function that blocks"),
        "a function that computes, in another process",
        *("pause", "run now", "the last error", "all tasks", "a changed schedule", "removal"),
        *("100,000 instances", "delete all", "a filtered list"),
    ]
    for need, text in NEEDS:
        lines = [line.strip() for line in text.splitlines()]
        code = [line for line in lines if line and not line.startswith("#")]
        assert 1 <= len(code) <= 3, (need, code)


class Week:
    """The program, on a clock that is moved, and what it sends."""

    def __init__(self) -> None:
        sys.modules.pop("working_week", None)
        # Imported, since the processes of the program look for its functions in a module.
        self.program: dict[str, Any] = vars(importlib.import_module("working_week"))
        self.app = self.program["app"]
        self.clock = self.app.clock = VirtualClock(MONDAY)
        self.sent: list[str] = []
        self.broken = False
        self.program["invoice"].task_func.__globals__["send"] = self.send

    async def send(self, what: str) -> None:
        self.sent.append(what)
        if self.broken:
            raise OSError("no paper")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[PyncetteContext]:
        for name in ("refresh", "rebuild"):
            self.program[name].enabled = False
        async with self.app.running() as context:
            yield context

    async def state(self, context: PyncetteContext, name: str) -> TaskState:
        state = await context.get_task(self.program["invoice"], name)
        assert state is not None
        return state


@pytest.fixture
def week(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Week:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    return Week()


def test_instances_are_filled_run_paused_moved_and_removed(
    week: Week, capsys: pytest.CaptureFixture[str]
) -> None:
    do = week.program

    async def main() -> None:
        async with week.running() as context:
            await do["fill"](context, 1_000)
            count = await context.count_tasks(do["invoice"])
            assert count.count == 1_000

            await do["run_now"](context, "customer-7")
            await week.clock.settle()
            assert week.sent == ["an invoice to customer-7"]

            await do["move"](context, "customer-7", "0 10 * * *")
            moved = await week.state(context, "customer-7")
            assert moved.scheduled_at == MONDAY + timedelta(hours=2)

            await do["pause_invoices"](context)
            await week.clock.advance(timedelta(hours=3))
            assert len(week.sent) == 1
            await context.resume(do["invoice"])
            await week.clock.settle()
            assert len(week.sent) == 1_001

            await do["remove"](context, "customer-8")
            assert await context.get_task(do["invoice"], "customer-8") is None
            await do["show_all"](context)
            shown = capsys.readouterr().out.splitlines()
            assert len(shown) == 1 + 999
            assert "invoice:customer-7 scheduled 2026-03-31 10:00:00+00:00" in shown

            await do["delete_all"](context)
            assert (await context.count_tasks(do["invoice"])).count == 0

    asyncio.run(main())


def test_what_fails_is_retried_and_shows_its_error(
    week: Week, capsys: pytest.CaptureFixture[str]
) -> None:
    do = week.program
    week.broken = True

    async def main() -> None:
        async with week.running() as context:
            await do["fill"](context, 2)
            await do["run_now"](context, "customer-1")
            await week.clock.settle()
            assert await do["last_error"](context, "customer-1") == "OSError: no paper"
            await do["show_failing"](context)
            await week.clock.advance(timedelta(seconds=10))

    asyncio.run(main())
    assert capsys.readouterr().out == "customer-1 2 OSError: no paper\n"
    assert len(week.sent) == 3


def test_two_exports_run_at_once_and_a_rebuild_never_overlaps_itself(week: Week) -> None:
    export, rebuild = week.program["export"], week.program["rebuild"]

    async def main() -> None:
        async with week.running() as context:
            rebuild.enabled = True
            at_once = [Instance(str(number), execute_in=timedelta(0)) for number in range(6)]
            await context.schedule_tasks(export, at_once)
            await week.clock.advance(timedelta(seconds=25))
            running = [
                state async for state in context.iter_tasks(export) if state.state == "running"
            ]
            assert len(running) == 2
            await week.clock.advance(timedelta(minutes=10))
            [state] = [one for one in await context.static_tasks() if one.task.name == "rebuild"]
            assert state.skipped >= 4
            await week.clock.advance(timedelta(minutes=3))
            rebuild.enabled = False
            await week.clock.advance(timedelta(minutes=3))

    asyncio.run(main())
