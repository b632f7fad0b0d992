"""The fixtures for pytest, as a project uses them in which Pyncette is installed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tomllib
from datetime import timedelta
from pathlib import Path

import pytest

from pyncette import Context, Pyncette, PyncetteException
from pyncette.clock import SystemClock
from pyncette.testing import VirtualClock, isolated

ROOT = Path(__file__).resolve().parents[2]
# Without it, pytest-asyncio warns.
LOOP_SCOPE = ("-o", "asyncio_default_fixture_loop_scope=function")

SHOP = """
from datetime import timedelta
from pyncette import Context, Pyncette

app = Pyncette(url="sqlite:///production.db")
mails = []

@app.task(schedule="30 8 * * *")
async def report(context: Context) -> None:
    mails.append(f"report at {context.app_context.clock.now():%H:%M}")

@app.dynamic_task()
def remind(context: Context) -> None:
    assert "@" in context.args["email"]
    mails.append(context.args["email"])

def order(email: str) -> None:
    app.sync().schedule_task(remind, email, execute_in=timedelta(hours=1), email=email)
"""

SYNC = """
from datetime import UTC, datetime, timedelta
import pytest
from pyncette.testing import VirtualClock
from shop import app, mails, order, remind

@pytest.mark.parametrize("time", [1, 2])
def test_a_reminder_is_sent(pyncette_isolated, time):
    mails.clear()
    isolated = pyncette_isolated(app)
    order("ann@example.org")
    isolated.advance(timedelta(minutes=59))
    assert mails == []
    isolated.advance(timedelta(minutes=1))
    assert mails == ["ann@example.org"]
    isolated.advance(timedelta(days=1))
    assert mails[1:] == ["report at 08:30"]

def test_what_is_due_runs(pyncette_isolated, pyncette_clock):
    isolated = pyncette_isolated(app)
    assert isolated.clock is pyncette_clock
    assert isolated.run_until_idle().runs == 0

def test_a_task_that_fails_is_tried_again(pyncette_isolated, pyncette_clock):
    isolated = pyncette_isolated(app, raise_task_errors=False)
    assert isolated.clock is pyncette_clock
    order("no address")
    isolated.advance(timedelta(hours=2))
    assert app.sync().get_task(remind, "no address").last_error is not None

def test_the_clock_may_be_another_one(pyncette_isolated):
    clock = VirtualClock(datetime(2030, 1, 1, tzinfo=UTC))
    assert pyncette_isolated(app, clock=clock).clock is app.clock is clock

def test_it_fails_with_its_task(pyncette_isolated):
    isolated = pyncette_isolated(app)
    order("no address")
    isolated.advance(timedelta(days=1))
"""

ASYNC = """
from datetime import timedelta
import pytest
from shop import app, mails

{marker}
async def test_the_report_is_made(pyncette_isolated, pyncette_clock):
    mails.clear()
    pyncette_isolated(app)
    async with app.running():
        await pyncette_clock.advance(timedelta(days=2))
    assert mails == ["report at 08:30"] * 2
"""


def run_pytest(
    directory: Path, code: str, *plugins: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    (directory / "shop.py").write_text(SHOP)
    (directory / "test_shop.py").write_text(code)
    (directory / "pytest.ini").write_text("[pytest]\npythonpath = .\nfilterwarnings = error\n")
    loaded = [argument for plugin in plugins for argument in ("-p", plugin)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "pyncette_pytest", *loaded, *options],
        cwd=directory,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_test_that_is_not_asynchronous_isolates_the_app_and_moves_its_clock(
    tmp_path: Path,
) -> None:
    ended = run_pytest(tmp_path, SYNC)
    assert "5 passed" in ended.stdout, ended.stdout
    assert "1 failed" in ended.stdout
    assert "no running event loop" not in ended.stdout
    assert "assert '@' in 'no address'" in ended.stdout or "AssertionError" in ended.stdout
    assert not (tmp_path / "production.db").exists()


@pytest.mark.parametrize(
    ("plugin", "marker", "options"),
    [
        ("anyio.pytest_plugin", "@pytest.mark.anyio", ()),
        (
            "pytest_asyncio.plugin",
            "@pytest.mark.asyncio",
            ("-o", "asyncio_mode=strict", *LOOP_SCOPE),
        ),
        ("pytest_asyncio.plugin", "", ("-o", "asyncio_mode=auto", *LOOP_SCOPE)),
    ],
    ids=["anyio", "pytest-asyncio-strict", "pytest-asyncio-auto"],
)
def test_an_asynchronous_test_uses_the_same_fixtures(
    tmp_path: Path, plugin: str, marker: str, options: tuple[str, ...]
) -> None:
    pytest.importorskip(plugin.partition(".")[0])
    code = ASYNC.format(marker=marker)
    if "anyio" in plugin:
        code += "\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n"
    ended = run_pytest(tmp_path, code, plugin, options=options)
    assert ended.stdout.strip().splitlines()[-1].startswith("1 passed"), ended.stdout
    assert not (tmp_path / "production.db").exists()


def test_a_project_that_uses_no_fixture_does_not_load_pyncette(tmp_path: Path) -> None:
    code = "import sys\ndef test_it():\n    assert 'pyncette' not in sys.modules\n"
    assert "1 passed" in run_pytest(tmp_path, code).stdout


def test_pytest_finds_the_fixtures_by_the_entry_point_of_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["entry-points"]["pytest11"] == {"pyncette": "pyncette_pytest"}
    targets = project["tool"]["hatch"]["build"]["targets"]
    assert "src/pyncette_pytest.py" in targets["wheel"]["packages"]
    assert "src/pyncette_pytest.py" in targets["sdist"]["only-include"]
    assert (ROOT / "src/pyncette_pytest.py").is_file()


def test_after_the_block_the_app_is_as_it_was(tmp_path: Path) -> None:
    app = Pyncette(url=f"sqlite:///{tmp_path / 'tasks.db'}")

    @app.dynamic_task()
    async def job(context: Context) -> None: ...

    clock = app.clock
    with app.sync() as calls:
        calls.schedule_task(job, "real", interval=60)
        with isolated(app) as world:
            assert isinstance(app.clock, VirtualClock)
            assert world.clock is app.clock
            assert calls.list_tasks(job).tasks == []
            calls.schedule_task(job, "of the test", interval=60)
            assert world.run_until_idle().runs == 0
            world.advance(timedelta(minutes=3))
        assert app.clock is clock
        assert isinstance(app.clock, SystemClock)
        assert [state.task.name for state in calls.list_tasks(job).tasks] == ["real"]


def test_the_calls_for_tests_that_are_not_asynchronous_say_so_in_a_coroutine() -> None:
    async def main() -> None:
        with isolated(Pyncette()) as world:
            with pytest.raises(PyncetteException, match=r"await clock\.advance"):
                world.advance(timedelta(seconds=1))
            with pytest.raises(PyncetteException, match="run_until_idle"):
                world.run_until_idle()

    asyncio.run(main())


def test_errors_of_tasks_are_raised_unless_the_test_does_not_want_that() -> None:
    app = Pyncette()

    @app.task(interval=60)
    async def job(context: Context) -> None:
        raise ValueError("wrong")

    with isolated(app) as world, pytest.raises(ValueError, match="wrong"):
        world.advance(timedelta(hours=1))
    with isolated(app, raise_task_errors=False) as world:
        world.advance(timedelta(hours=1))


class Sleepers:
    """An app with a task that sleeps on the clock for so long, and one that fails a while later."""

    def __init__(self, sleeps_s: float = 30) -> None:
        self.app = Pyncette()
        self.log: list[str] = []

        @self.app.task(interval=timedelta(minutes=10))
        async def sleeps(context: Context) -> None:
            clock = context.app_context.clock
            self.log.append(f"begins at {clock.now():%H:%M:%S}")
            try:
                await clock.sleep(sleeps_s)
            except asyncio.CancelledError:
                self.log.append("cancelled")
                raise
            self.log.append(f"ends at {clock.now():%H:%M:%S}")

    def fails(self, minutes: float) -> None:
        @self.app.task(interval=timedelta(minutes=minutes))
        async def wrong(context: Context) -> None:
            raise AssertionError("the assertion of the test")


def test_a_task_that_sleeps_when_the_clock_stops_goes_on_when_it_is_moved_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sleepers = Sleepers()
    with isolated(sleepers.app) as world:
        world.advance(timedelta(minutes=10))
        assert sleepers.log == ["begins at 00:10:00"]
        assert world.run_until_idle().runs == 0
        world.advance(timedelta(seconds=29))
        assert len(sleepers.log) == 1
        world.advance(timedelta(seconds=1))
        assert sleepers.log == ["begins at 00:10:00", "ends at 00:10:30"]
        state = sleepers.app.sync().get_task(sleepers.app.tasks[0])
        assert state is not None
        assert state.last_finished_at is not None
        world.advance(timedelta(minutes=9.5))
        assert world.run_until_idle().runs == 0
    assert sleepers.log[2:] == ["begins at 00:20:00", "cancelled"]
    assert "sleeps" in caplog.text
    assert "move the clock further" in caplog.text


def test_what_run_until_idle_has_started_goes_on_when_the_clock_is_moved() -> None:
    sleepers = Sleepers(60)
    with isolated(sleepers.app) as world:
        world.run_until_idle()
        world.clock._now += 600_000_000  # due, and nobody has run it
        assert world.run_until_idle().runs == 1
        assert sleepers.log == ["begins at 00:10:00"]
        world.advance(timedelta(minutes=1))
        assert sleepers.log[1:] == ["ends at 00:11:00"]


@pytest.mark.parametrize("advances", [1, 2])
def test_a_task_that_sleeps_does_not_hide_the_error_of_another_one(advances: int) -> None:
    sleepers = Sleepers()
    sleepers.fails(20 + 5 / 60)

    def work() -> None:
        with isolated(sleepers.app) as world:
            for _ in range(advances):
                world.advance(timedelta(seconds=1_210 / advances))

    with pytest.raises(AssertionError, match="the assertion of the test") as caught:
        work()
    assert caught.value.__context__ is None
    assert "wrong" in caught.value.__notes__[0]
    assert sleepers.log[-1] == "cancelled"


@pytest.mark.parametrize("in_background", [False, True])
def test_a_task_that_sleeps_does_not_hide_the_error_in_a_coroutine_either(
    in_background: bool,
) -> None:
    sleepers = Sleepers()
    sleepers.fails(20 + 5 / 60)

    async def main() -> None:
        with isolated(sleepers.app) as world:
            if in_background:
                async with sleepers.app.running():
                    await world.clock.advance(timedelta(seconds=1_210))
            async with sleepers.app.create() as context:
                running = asyncio.ensure_future(context.run())
                try:
                    await world.clock.advance(timedelta(seconds=1_210))
                finally:
                    running.cancel()

    with pytest.raises(AssertionError, match="the assertion of the test"):
        asyncio.run(main())


def test_a_failing_test_shows_its_error_only() -> None:
    app = Pyncette()

    @app.task(interval=60)
    async def job(context: Context) -> None:
        raise ValueError("wrong")

    for run_once in (False, True):
        with isolated(app) as world:
            world.run_until_idle()
            if run_once:
                world.clock._now += 60_000_000
            with pytest.raises(ValueError, match="wrong") as caught:
                world.run_until_idle() if run_once else world.advance(timedelta(hours=1))
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_an_error_of_the_test_is_not_hidden_by_what_still_sleeps() -> None:
    sleepers = Sleepers()

    def work() -> None:
        with isolated(sleepers.app) as world:
            world.advance(timedelta(minutes=10))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert sleepers.log[-1] == "cancelled"
