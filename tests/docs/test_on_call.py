"""Every command of the page for people on call is given, to a store in which things went wrong."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path

import pytest
from tests.docs.named_tests import ROOT

from pyncette import Pyncette, Where
from pyncette.cli.arguments import main

PAGE = (ROOT / "docs" / "how-to" / "on-call.md").read_text()
COMMANDS = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if line.strip().startswith("pyncette ")
]
NAMED = sorted(set(re.findall(r"`(pyncette [^`]+)`", PAGE)) - set(COMMANDS))

PROGRAM = """
import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from pyncette import Context, Exhausted, Pyncette, Retry
from pyncette.clock import SystemClock

class Hasty(SystemClock):
    "Waits for nothing: a long wait has passed at once."
    passed = timedelta()
    def now(self): return super().now() + self.passed
    def microseconds(self): return super().microseconds() + self.passed // timedelta(microseconds=1)
    def monotonic(self): return super().monotonic() + self.passed.total_seconds()
    async def sleep(self, seconds):
        self.passed += timedelta(seconds=max(seconds, 0))
        await asyncio.sleep(0)

def create_app(file="tasks.db", hasty=True, removed=False):
    clock = Hasty() if hasty else SystemClock()
    app = Pyncette(url="sqlite:///" + str(Path(file).absolute()), clock=clock)

    @app.task(schedule="0 9 * * *")
    async def report(context: Context) -> None:
        pass

    @app.dynamic_task(interval=timedelta(hours=1), retry=Retry(attempts=1),
                      exhausted=Exhausted.PARK)
    async def reminder(context: Context) -> None:
        if context.args.get("fail"):
            raise RuntimeError("no mail today")

    @app.partitioned_task(2, interval=timedelta(hours=1))
    async def spread(context: Context) -> None:
        pass

    if removed:
        app.dynamic_task(interval=timedelta(hours=1), name="removed_task")(reminder.task_func)
    return app

app = create_app
"""


async def went_wrong(app: Pyncette) -> None:
    tasks = {task.name: task for task in app.tasks}
    reminder = tasks["reminder"]
    async with app.create() as context:
        await context.schedule_task(reminder, "alice")
        for number in range(3):
            name = f"parked-{number}"
            await context.schedule_task(reminder, name, execute_in=timedelta(), fail=True)
        for number in range(4):
            await context.schedule_task(tasks["spread"], f"i{number}")
        await context.schedule_task(tasks["removed_task"], "left")
        await context.run_until_idle()
        assert (await context.count_tasks(reminder, Where(states={"parked"}))).count == 3
        long_ago = datetime(2020, 1, 1, tzinfo=UTC)
        await context.schedule_task(reminder, "old-1", execute_at=long_ago)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the program and its store."""
    directory = tmp_path_factory.mktemp("on_call")
    (directory / "on_call_program.py").write_text(PROGRAM)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        patch.chdir(directory)
        program = import_module("on_call_program")
        asyncio.run(went_wrong(program.create_app(hasty=False, removed=True)))
        yield directory
    sys.modules.pop("on_call_program", None)


@pytest.mark.parametrize("command", dict.fromkeys([*COMMANDS, *NAMED]))
def test_the_command_can_be_given(
    command: str, wrong: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in wrong.glob("tasks.db*"):
        shutil.copy(file, tmp_path / file.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYNCETTE_APP", "on_call_program")
    program, *arguments = shlex.split(command)
    assert program == "pyncette"
    assert main(arguments) == 0


def test_the_page_has_the_commands_of_all_verbs_that_mend() -> None:
    verbs = {command.split()[1] for command in COMMANDS}
    assert verbs >= {
        *("doctor", "list", "show", "next", "workers", "pause", "resume", "retry", "trigger"),
        *("rebalance", "purge", "schedule", "unschedule", "run"),
    }


def test_each_symptom_leads_to_a_section_of_the_page() -> None:
    titles = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    known = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= known
