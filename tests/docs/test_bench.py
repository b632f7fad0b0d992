"""Each part of the benchmark runs, with counts so small that the figures say nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
SMALL = ["--rounds", "1", "--runs", "100", "--planned", "1", "--seconds", "0.05"]
SMALL += ["--executions", "1000", "--instants", "5"]
SMALL += ["--rows", "2000", "--warm-up", "0.05", "--imports", "1"]


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
        ("drain", ["memory", "sqlite-memory", "sqlite-normal", "sqlite-full"], "waits once"),
        ("latency", ["memory", "sqlite-full"], "### Start latency"),
        ("idle", ["memory", "sqlite-full"], "### Idle"),
        ("memory", ["memory", "sqlite-memory"], "### Memory"),
        ("history", ["memory", "sqlite-full"], "removing 1,000"),
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


def test_another_checkout_is_measured_in_the_same_rounds() -> None:
    printed = bench("drain", "--stores", "memory", "--against", str(BENCH.parent))
    _, _, comparison = printed.partition("alternating rounds")
    for body in ("waits once", "no-op", "recurring"):
        assert f"\n| memory | {body} | " in comparison


def test_what_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not a checkout"):
        bench("drain", "--against", str(tmp_path))


def test_an_unknown_part_is_refused_by_name() -> None:
    with pytest.raises(AssertionError, match="no such part: speed"):
        bench("speed")
