"""`import pyncette` loads what a program on the default store needs, and nothing else.

Not timed: which modules are loaded is what the time is made of.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

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
    "uvloop",
}
HEAVY = {"argparse", "email", "http", "importlib.metadata", "pydoc", "unittest", "urllib", "xml"}
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
    modules: list[str] = json.loads(done.stdout)
    return set(modules)


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    return loaded_by("import pyncette")


def test_no_driver_but_the_one_of_sqlite_is_loaded(loaded: set[str]) -> None:
    assert "sqlite3" in loaded
    assert loaded.isdisjoint(DRIVERS)


def test_nothing_heavy_is_loaded_that_a_bare_interpreter_does_not_load(loaded: set[str]) -> None:
    # Some environments load things of their own at start, such as coverage's.
    assert (loaded - loaded_by("")).isdisjoint(HEAVY)


def test_stores_and_parts_that_are_not_asked_for_are_not_loaded(loaded: set[str]) -> None:
    assert loaded.isdisjoint(f"pyncette.{part}" for part in OPTIONAL_PARTS)


def test_the_watched_names_are_those_of_modules_that_exist() -> None:
    names = {f"pyncette.{part}" for part in OPTIONAL_PARTS}
    assert names <= loaded_by(f"import {', '.join(sorted(names))}")
