"""The pages for users of other schedulers: their programs do what they did there."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.docs.named_tests import ROOT, exists, named_tests

from pyncette import Pyncette, PyncetteContext
from pyncette.task import Task
from pyncette.testing import VirtualClock

PAGES = ROOT / "docs" / "coming-from"
PAINS = (PAGES / "index.md").read_text().partition("## What users of schedulers complain about")[2]
DAY = timedelta(days=1)
PATIENCE_S = 30


def programs(page: str) -> list[str]:
    """The programs on the page about another scheduler, in their order."""
    text = (PAGES / f"{page}.md").read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)


class Program:
    """What a program on the page declares, on a clock that is moved, and what it prints."""

    def __init__(self, text: str, start: datetime) -> None:
        # Polling does not move a run; once an hour is enough here.
        seldom = text.replace('.db")', '.db", poll_interval=timedelta(hours=1))')
        assert seldom != text
        self.module: dict[str, Any] = {"__name__": "program", "print": self._print}
        exec(compile(seldom, "coming-from", "exec"), self.module)
        self.app: Pyncette = self.module["app"]
        self.clock = self.app.clock = VirtualClock(start)
        self.printed: list[tuple[str, str]] = []

    def _print(self, *parts: object) -> None:
        self.printed.append((self.clock.now().strftime("%d %H:%M"), " ".join(map(str, parts))))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[PyncetteContext]:
        async with self.app.create() as context:
            loop = asyncio.create_task(context.run())
            await self.clock.settle()
            try:
                yield context
            finally:
                context.shutdown()
                await loop

    async def until(self, state: str, context: PyncetteContext, task: Task) -> None:
        """Waits in real time, for a process, until the task is in this state."""
        async with asyncio.timeout(PATIENCE_S):
            while (found := await context.get_task(task)) is None or found.state != state:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# 29 March 2026 is the day on which the clocks of Berlin go forward.


def test_the_program_of_apscheduler_reports_lists_and_reminds_again_until_it_succeeds() -> None:
    _, after = programs("apscheduler-3")
    program = Program(after, datetime(2026, 3, 28, 12, tzinfo=UTC))
    send, failures = program.module["send"], [OSError("no route")] * 2

    def failing(email: str, text: str) -> None:
        if "trial" in text and failures:
            program.module["print"]("tried")
            raise failures.pop()
        send(email, text)

    program.module["send"] = failing

    async def main() -> None:
        running = asyncio.create_task(program.module["main"]())
        await program.clock.settle()
        await program.clock.advance(2 * DAY)
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(main())
    minutes = [int(when[-2:]) for when, _ in program.printed[3:6]]
    assert program.printed[:3] == [
        ("28 12:00", "report:ada 2026-03-29 05:30:00+00:00"),
        ("28 12:00", "remind:ada 2026-03-29 12:00:00+00:00"),
        ("29 05:30", "To ada@example.com: your report"),
    ]
    assert [text for _, text in program.printed[3:]] == [
        "tried",
        "tried",
        "To ada@example.com: your trial ends",
        "To ada@example.com: your report",
    ]
    assert minutes == sorted(minutes)
    assert minutes[0] == 0
    assert 4 <= minutes[2] <= 6
    assert program.printed[-1][0] == "30 05:30"


def test_the_program_of_apscheduler_skips_a_report_that_is_too_late() -> None:
    _, after = programs("apscheduler-3")
    program = Program(after, datetime(2026, 3, 23, 12, tzinfo=UTC))

    async def main() -> None:
        async with program.app.create() as context:
            await context.schedule_task(
                program.module["report"], "ada", schedule="30 7 * * *", email="ada"
            )
        await program.clock.advance(3 * DAY)
        async with program.running():
            await program.clock.advance(DAY)

    asyncio.run(main())
    assert program.printed == [("27 06:30", "To ada: your report")]


@pytest.mark.parametrize("page", ["apscheduler-3", "apscheduler-4"])
def test_the_program_of_apscheduler_has_become_shorter(page: str) -> None:
    before, after = (
        [line for line in program.splitlines() if line.strip()] for program in programs(page)
    )
    assert len(after) < len(before)
    assert programs(page)[1] == programs("apscheduler-3")[1], "the one that is tested above"


def test_the_program_of_celery_beat_subscribes_changes_and_pauses() -> None:
    _, after, _ = programs("celery-beat")
    program = Program(after, datetime(2026, 3, 28, 12, tzinfo=UTC))
    subscribe, pause = program.module["subscribe"], program.module["pause"]

    async def main() -> None:
        async with program.running() as context:
            await subscribe(context, "ada", "ada@example.com", 7, "Europe/London")
            await subscribe(context, "emmy", "emmy@example.com", 7, "Europe/Berlin")
            await program.clock.advance(DAY)
            await subscribe(context, "ada", "new@example.com", 9, "Europe/London")
            await pause(context, "emmy")
            await program.clock.advance(DAY)

    asyncio.run(main())
    assert program.printed == [
        ("29 05:00", "Report for emmy@example.com"),
        ("29 06:00", "Report for ada@example.com"),
        ("30 08:00", "Report for new@example.com"),
    ]


def test_the_program_of_cron_runs_a_command_at_its_time_and_again_when_it_fails(
    tmp_path: Path,
) -> None:
    [after] = programs("cron")
    program = Program(after, datetime(2026, 3, 30, 1, 29, tzinfo=UTC))
    script = "from pathlib import Path; log = Path('log'); log.open('a').write('x'); "
    script += "raise SystemExit(log.read_text() != 'xx')"
    program.module["BACKUP"][:] = [sys.executable, "-c", script]
    task, log = program.module["back_up"], tmp_path / "log"

    async def main() -> None:
        async with program.running() as context:
            assert not log.exists()
            await program.clock.advance(timedelta(minutes=1))
            await program.until("retrying", context, task)
            assert log.read_text() == "x"
            await program.clock.advance(timedelta(minutes=10))
            await program.until("scheduled", context, task)
            state = await context.get_task(task)
            assert state is not None
            assert state.scheduled_at == datetime(2026, 3, 31, 1, 30, tzinfo=UTC)

    asyncio.run(main())
    assert log.read_text() == "xx"


def test_the_program_of_procrastinate_reports_in_its_time_zone_and_reminds_once() -> None:
    _, after = programs("procrastinate")
    program = Program(after, datetime(2026, 3, 28, 12, tzinfo=UTC))
    fill_cart = program.module["fill_cart"]

    async def main() -> None:
        async with program.running() as context:
            await fill_cart(context, "ada@example.com")
            await program.clock.advance(DAY / 2)
            await fill_cart(context, "ada@example.com")
            await program.clock.advance(DAY)

    asyncio.run(main())
    assert program.printed == [
        ("29 05:30", "Report of 29 March"),
        ("29 12:00", "To ada@example.com: your cart is still here"),
    ]


def test_every_complaint_is_answered_by_a_test_that_exists() -> None:
    rows = [line for line in PAINS.splitlines() if line.startswith("| **")]
    assert len(rows) == 16
    for row in rows:
        named = named_tests(row)
        assert named, row
        for file, name in named:
            assert name, row
            assert exists(file, name), f"{file}::{name}"
