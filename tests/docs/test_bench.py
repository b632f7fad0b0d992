"""Each part of the benchmark runs, with counts so small that the figures say nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
SMALL = ["--rounds", "1", "--runs", "200", "--planned", "5", "--seconds", "0.2"]
SMALL += ["--executions", "2000", "--instants", "20"]


def bench(*arguments: str) -> str:
    """What the benchmark prints, without any server."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYNCETTE_TEST_")
    }
    done = subprocess.run(
        [sys.executable, str(BENCH), *arguments, *SMALL],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("part", "stores", "heading"),
    [
        ("drain", ["memory", "sqlite-memory", "sqlite-normal", "sqlite-full"], "### Drain"),
        ("latency", ["memory", "sqlite-full"], "### Start latency"),
        ("idle", ["memory", "sqlite-full"], "### Idle"),
        ("memory", ["memory", "sqlite-memory"], "### Memory"),
    ],
)
def test_a_part_prints_a_row_for_each_store(part: str, stores: list[str], heading: str) -> None:
    printed = bench(part, "--stores", *stores)
    assert heading in printed
    for store in stores:
        assert f"\n| {store} | " in printed


@pytest.mark.parametrize(
    ("part", "row"), [("import", "`python -c 'import pyncette'`"), ("cron", "`0 0 29 2 *` | UTC")]
)
def test_a_part_that_needs_no_store_prints_its_rows(part: str, row: str) -> None:
    assert f"\n| {row} | " in bench(part)


def test_an_unknown_part_is_refused_by_name() -> None:
    with pytest.raises(AssertionError, match="no such part: speed"):
        bench("speed")
