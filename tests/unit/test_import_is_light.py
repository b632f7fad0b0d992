"""`import pyncette` loads what a program that declares tasks needs, and nothing else.

Not timed: which modules are loaded is what the time is made of.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import pyncette
from pyncette.context import PyncetteContext
from pyncette.engine.execution import RunContext
from pyncette.model import Context
from pyncette.parts import RESERVED

DRIVERS = {
    "aiobotocore",
    "asyncmy",
    "asyncpg",
    "botocore",
    "cryptography",
    "dateutil",
    "hiredis",
    "holidays",
    "prometheus_client",
    "redis",
    "sqlite3",
    "uvloop",
}
HEAVY = {"argparse", "email", "http", "importlib.metadata", "pydoc", "unittest", "urllib", "xml"}
OF_AN_OPEN_APP = {
    "calls",
    "context",
    "engine.worker",
    "events",
    "observers",
    "opening",
    "recorder",
    "sqlite",
    "sync",
}
OPTIONAL_PARTS = {
    "calendars",
    "dynamodb",
    "healthcheck",
    "memory",
    "mysql",
    "postgres",
    "prometheus",
    "redis",
    "testing",
}


def loaded_by(program: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after this program."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys, json\nprint(json.dumps([*sys.modules]))"],
        check=True,
        capture_output=True,
        text=True,
    )
    modules: list[str] = json.loads(done.stdout.splitlines()[-1])
    return set(modules)


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    return loaded_by("import pyncette")


def test_no_driver_is_loaded(loaded: set[str]) -> None:
    assert loaded.isdisjoint(DRIVERS)


PROGRAM = """
from pyncette import Pyncette, Retry
from pyncette.history import use_history

app = Pyncette(url="sqlite:///tasks.db", heartbeat=True)
use_history(app)

@app.fixture()
async def mailer(context):
    yield None

@app.middleware
async def measured(context, next):
    await next()

@app.task(schedule="0 9 * * *", timezone="Europe/Paris", retry=Retry())
async def report(context):
    pass

@app.dynamic_task()
async def remind(context):
    pass
"""


def test_a_program_that_only_declares_tasks_loads_nothing_of_an_open_app(loaded: set[str]) -> None:
    parts = {f"pyncette.{part}" for part in OF_AN_OPEN_APP}
    # Its URL names a store, whose options are checked.
    assert loaded_by(PROGRAM) & parts == {"pyncette.sqlite"}
    assert (loaded & {*parts, "sqlite3"}) == set()
    opened = loaded_by(
        "import asyncio, pyncette\n"
        "async def main():\n"
        "    async with pyncette.Pyncette().create(): pass\n"
        "asyncio.run(main())\n"
        "pyncette.Pyncette().sync()"
    )
    assert opened >= parts


def test_a_command_that_opens_no_app_loads_nothing_of_an_open_app() -> None:
    # Not its parser: argparse asks how wide the terminal is, and what knows that compresses files.
    loaded = loaded_by("import pyncette.cli.arguments")
    assert loaded.isdisjoint({*(f"pyncette.{part}" for part in OF_AN_OPEN_APP), "sqlite3"})
    heavy = HEAVY - {"argparse", "urllib"}  # of which it reads only addresses
    assert (loaded - loaded_by("")).isdisjoint({*heavy, "bz2", "tempfile"})


def test_a_process_that_runs_one_function_loads_nothing_of_an_open_app() -> None:
    loaded = loaded_by("import pyncette.processes, tests.unit.process_bodies")
    assert loaded.isdisjoint({*(f"pyncette.{part}" for part in OF_AN_OPEN_APP), "pytest"})


def test_the_context_that_is_loaded_late_is_there_as_the_others_are() -> None:
    assert pyncette.PyncetteContext is PyncetteContext
    assert {*pyncette.__all__} <= {*dir(pyncette)}
    with pytest.raises(AttributeError, match="has no attribute 'PyncettContext'"):
        _ = pyncette.PyncettContext  # type: ignore[attr-defined]


def test_modules_that_programs_name_by_the_package_are_there_without_an_import() -> None:
    loaded = loaded_by(
        "import pyncette; pyncette.events.Failed, pyncette.context.PyncetteContext, "
        "pyncette.sync.SyncContext, pyncette.sqlite.sqlite_repository, "
        "pyncette.pyncette.Pyncette, pyncette.repository.__doc__"
    )
    assert {"pyncette.events", "pyncette.pyncette", "pyncette.repository"} <= loaded


def test_the_names_that_the_context_of_a_run_reserves_are_those_that_it_has() -> None:
    # From Python 3.13 on, a class has some that no attribute has.
    of_classes = {"__firstlineno__", "__static_attributes__"}
    names = {*dir(RunContext), *Context.__annotations__, *RunContext.__annotations__}
    assert RESERVED - of_classes == names - of_classes - {"upcoming"}


def test_nothing_heavy_is_loaded_that_a_bare_interpreter_does_not_load(loaded: set[str]) -> None:
    # Some environments load things of their own at start, such as coverage's.
    assert (loaded - loaded_by("")).isdisjoint(HEAVY)


def test_stores_and_parts_that_are_not_asked_for_are_not_loaded(loaded: set[str]) -> None:
    assert loaded.isdisjoint(f"pyncette.{part}" for part in OPTIONAL_PARTS)


def test_the_watched_names_are_those_of_modules_that_exist() -> None:
    names = {f"pyncette.{part}" for part in OPTIONAL_PARTS}
    assert names <= loaded_by(f"import {', '.join(sorted(names))}")
