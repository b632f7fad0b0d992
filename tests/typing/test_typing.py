"""mypy and pyright find the mistakes of example.py, and nothing else in it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).with_name("example.py")
ROOT = EXAMPLE.parents[2]


def mistakes() -> list[int]:
    """The lines that say of themselves that they are a mistake."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    return [number for number, line in enumerate(lines, 1) if line.endswith("  # mistake")]


def check(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs a type checker on the package that this test runs on."""
    return subprocess.run(
        [sys.executable, "-m", *command, str(EXAMPLE)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
    )


def test_the_example_has_mistakes() -> None:
    assert len(mistakes()) > 20


def test_nine_of_ten_mistakes_of_a_newcomer_are_found() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    ten = text.partition("# What is wrong: ten mistakes")[2].partition("# What else is wrong.")[0]
    assert ten.count("  # mistake\n") == 9
    assert "# The tenth" in ten


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_mypy_finds_the_mistakes_and_nothing_else(tmp_path: Path) -> None:
    done = check("mypy", "--strict", f"--cache-dir={tmp_path}", "--no-error-summary")
    found = re.findall(r"^[^\n]*example\.py:([0-9]+): error:", done.stdout, re.MULTILINE)
    assert sorted(set(map(int, found))) == mistakes(), done.stdout + done.stderr


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
def test_pyright_finds_the_mistakes_and_nothing_else() -> None:
    done = check("pyright", "--outputjson", f"--pythonpath={sys.executable}")
    if not done.stdout.startswith("{"):
        # Its first run fetches a program that it needs.
        pytest.skip(f"pyright cannot run here: {(done.stderr or done.stdout)[-300:]}")
    found = {
        diagnostic["range"]["start"]["line"] + 1
        for diagnostic in json.loads(done.stdout)["generalDiagnostics"]
        if diagnostic["severity"] == "error"
    }
    assert sorted(found) == mistakes(), done.stdout


PUBLIC = {
    "app",
    "bulk",
    "calendars",
    "clock",
    "context",
    "dynamodb",
    "errors",
    "executor",
    "healthcheck",
    "memory",
    "migrate",
    "model",
    "mysql",
    "postgres",
    "prometheus",
    "redis",
    "retry",
    "schedule",
    "sqlite",
    "store",
    "store.cas",
    "store.record",
    "sync",
    "task",
    "testing",
    "testing.clocks",
    "testing.conformance",
    "utils",
}
"""The modules that programs import from; the others are the inside of the package."""


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
def test_pyright_knows_the_type_of_everything_public() -> None:
    # It looks for the package in the environment of the first `python`, whatever it is told.
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pyright"),
            *("--verifytypes", "pyncette", "--ignoreexternal", "--outputjson"),
        ],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PATH": path, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
    )
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright cannot run here: {(done.stderr or done.stdout)[-300:]}")
    report = json.loads(done.stdout)["typeCompleteness"]
    modules = {module["name"] for module in report["modules"]}
    assert {f"pyncette.{name}" for name in PUBLIC} <= modules

    def is_public(symbol: str) -> bool:
        while symbol not in modules:
            symbol = symbol.rpartition(".")[0]
        module = symbol.removeprefix("pyncette").removeprefix(".")
        return module in {"", *PUBLIC} or module.startswith("schedule.")

    public = [symbol for symbol in report["symbols"] if is_public(symbol["name"])]
    exported = [symbol for symbol in public if symbol["isExported"]]
    assert len(exported) > 500
    assert [symbol["name"] for symbol in exported if not symbol["isTypeKnown"]] == []
