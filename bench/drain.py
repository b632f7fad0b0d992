"""How many runs per second one worker drains, beside the floor of the bare driver.

Floor and engine take turns within one run, because machines differ and drift: what counts is their
ratio. Everything goes through the public API, and a run counts once it is settled: the clock stops
when the context has closed.

Another checkout of the package can be measured in the same rounds. Each round of either then has a
process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from statistics import median
from typing import Any

from draining import CONCURRENT_CALLS, Figures, Work, drain
from table import Table, spread

import pyncette
from stores import STORES

HERE = Path(pyncette.__file__).resolve().parents[1]
"""The directory from which this process imports the package."""

KINDS = {
    "waits once": {"waits": True},
    "no-op": {"waits": False},
    "recurring": {"waits": True, "recurring": True},
}
"""What the bodies do, the headline first. Recurring ones wait once, too."""

_HEADLINE = next(iter(KINDS))

Drain = Callable[[Work], Figures]


def source_of(checkout: str) -> Path:
    """The directory to import the package of another checkout from.

    Raises:
        ValueError: There is no such package.
    """
    source = Path(checkout).resolve() / "src"
    if not (source / "pyncette" / "__init__.py").exists():
        raise ValueError(f"'{checkout}' is not a checkout: it has no src/pyncette")
    return source


def drain_in_process(source: Path, uvloop: bool) -> Drain:
    """Drains in a process that imports the package from a directory."""

    def drained(work: Work) -> Figures:
        script = Path(__file__).with_name("draining.py")
        done = subprocess.run(
            [sys.executable, str(script), json.dumps({**work._asdict(), "uvloop": uvloop})],
            env={**os.environ, "PYTHONPATH": str(source)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"The measurement of '{source}' failed:\n{done.stderr}")
        return Figures(*json.loads(done.stdout))

    return drained


def measure(
    names: Collection[str],
    rounds: int,
    runs: int | None,
    runner: Any,
    uvloop: bool = False,
    against: str | None = None,
) -> None:
    """Prints how fast runs are drained, and how fast they had been scheduled.

    Args:
        names: Of the stores.
        rounds: Of floor and engine in turn.
        runs: In each round; None: what the store takes about a second for.
        runner: Runs a coroutine.
        uvloop: Whether to run on the event loop of uvloop.
        against: Another checkout, to be measured in the same rounds.
    """
    here: Drain = lambda work: runner(drain(work))  # noqa: E731
    there: Drain | None = None
    if against is not None:
        here, there = drain_in_process(HERE, uvloop), drain_in_process(source_of(against), uvloop)
    table = Table(
        "Drain: runs a second, one worker, everything settled",
        *("store", "floor", "waits once", "of the floor", "no-op", "of the floor"),
        *("recurring", "of one-off", "µs CPU waits once", "µs CPU no-op", "µs CPU recurring"),
    )
    ours: dict[str, dict[str, list[Figures]]] = {}
    theirs: dict[str, dict[str, list[Figures]]] = {}
    for name in names:
        store = STORES[name]
        count = runs or store.runs
        floors: list[float] = []
        ours[name], theirs[name] = {kind: [] for kind in KINDS}, {kind: [] for kind in KINDS}
        for turn in range(rounds):
            floors.append(runner(store.floor(count)))
            for kind, what in KINDS.items():
                sides = [(here, ours[name][kind])]
                if there is not None:
                    sides.append((there, theirs[name][kind]))
                # Neither always comes after the other.
                for side, figures in sides if turn % 2 == 0 else reversed(sides):
                    with store.emptied() as options:
                        figures.append(side(Work(store.factory, count, options, **what)))
        once, nothing, again = (ours[name][kind] for kind in KINDS)
        table.row(
            name,
            spread(floors),
            spread(_rates(once)),
            spread(_ratios(_rates(once), floors), 2),
            spread(_rates(nothing)),
            spread(_ratios(_rates(nothing), floors), 2),
            spread(_rates(again)),
            spread(_ratios(_rates(again), _rates(once)), 2),
            *(f"{median(figures.cpu for figures in kind):.1f}" for kind in (once, nothing, again)),
        )
    calls = f"{CONCURRENT_CALLS:,} calls at a time"
    table = Table(f"Scheduling: `schedule_task` a second, {calls}", "store", "calls/s", "µs CPU")
    for name, kinds in ours.items():
        cpu = median(figures.schedule_cpu for figures in kinds[_HEADLINE])
        rates = [figures.schedule for figures in kinds[_HEADLINE]]
        table.row(name, spread(rates), f"{cpu:.1f}")
    if against is not None:
        _compare(ours, theirs, against)


def _compare(
    ours: dict[str, dict[str, list[Figures]]],
    theirs: dict[str, dict[str, list[Figures]]],
    against: str,
) -> None:
    """Prints both checkouts side by side; a ratio is of the same round."""
    table = Table(
        f"Drain: this checkout and '{against}', alternating rounds",
        *("store", "body", "here", "there", "here / there", "µs CPU here", "µs CPU there"),
        "scheduling here / there",
    )
    for name, kinds in ours.items():
        for kind, here in kinds.items():
            there = theirs[name][kind]
            scheduled = _ratios([f.schedule for f in here], [f.schedule for f in there])
            table.row(
                name,
                kind,
                spread(_rates(here)),
                spread(_rates(there)),
                spread(_ratios(_rates(here), _rates(there)), 2),
                *(f"{median(f.cpu for f in side):.1f}" for side in (here, there)),
                spread(scheduled, 2),
            )


def _rates(figures: Collection[Figures]) -> list[float]:
    return [each.drain for each in figures]


def _ratios(values: Collection[float], bases: Collection[float]) -> list[float]:
    return [value / base for value, base in zip(values, bases, strict=True)]
