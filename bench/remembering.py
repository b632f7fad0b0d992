"""What the run history costs: the runs that are recorded, and calls beside millions of rows.

Runs with and without a history take turns: a backlog that is drained, and planned runs, so many a
second that full batches are written meanwhile. A history with many rows is compared with an empty
one in the same process: a claim, pages by each index, and a step that removes what is old.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection
from statistics import median
from typing import Any

from draining import Figures, Work, drain
from latency import planned_before
from table import Table, percentile, spread

from pyncette.store import Group, Write
from pyncette.store.history import KEEP, MINUTE, RunFilter, RunRow, TotalRow
from pyncette.store.record import ABSENT, Put
from stores import STORES, BenchStore

BATCH = 1_000
CALLS = 30
"""How often each call is timed."""

TASKS = 20
INSTANCES = 1_000
SUCCEEDS = 19
"""Of twenty attempts, so many have succeeded."""

NOW = 1_800_000_000_000_000
STEP = 1_000


PLANNED_A_SECOND = 500


def measure(
    names: Collection[str],
    rounds: int,
    runs: int | None,
    planned: int,
    warm_up: float,
    rows: int,
    runner: Callable[..., Any],
) -> None:
    """Prints what a history costs those that run, and those that read.

    Args:
        names: Of the stores.
        rounds: Of runs with and without a history in turn.
        runs: Drained in each round; None: what the store takes about a second for.
        planned: Planned runs in each round.
        warm_up: Seconds before the first one of them.
        rows: Of the history beside which calls are timed; 0: none are.
        runner: Runs a coroutine.
    """
    table = Table(
        "Drain with a run history, alternating rounds, no-op bodies",
        *("store", "without", "with", "with / without", "µs CPU without", "µs CPU with"),
    )
    for name in names:
        store = STORES[name]
        sides: dict[bool, list[Figures]] = {False: [], True: []}
        for turn in range(rounds):
            for history in (False, True) if turn % 2 == 0 else (True, False):
                with store.emptied() as options:
                    work = Work(store.factory, runs or store.runs, options, False, False, history)
                    sides[history].append(runner(drain(work)))
        without, recorded = ([side.drain for side in sides[kept]] for kept in (False, True))
        table.row(
            name,
            spread(without),
            spread(recorded),
            spread([a / b for a, b in zip(recorded, without, strict=True)], 2),
            *(f"{median(figures.cpu for figures in sides[kept]):.1f}" for kept in (False, True)),
        )
    _measure_latency(names, rounds, planned, warm_up, runner)
    if rows:
        _measure_rows(names, rows, runner)


def _measure_latency(
    names: Collection[str], rounds: int, planned: int, warm_up: float, runner: Callable[..., Any]
) -> None:
    table = Table(
        f"Start latency in ms with a run history, alternating rounds of {planned:,} runs, "
        f"{PLANNED_A_SECOND} a second",
        *("store", "without: p50", "p99", "with: p50", "p99"),
    )
    for name in names:
        store = STORES[name]
        late_ms: dict[bool, list[list[float]]] = {False: [], True: []}
        for turn in range(rounds):
            for history in (False, True) if turn % 2 == 0 else (True, False):
                with store.emptied() as options:
                    calls = planned_before(
                        store, options, planned, warm_up, PLANNED_A_SECOND, history
                    )
                    late_ms[history].append(runner(calls))
        table.row(
            name,
            *(
                spread([percentile(each, percent) for each in late_ms[history]], 1)
                for history in (False, True)
                for percent in (50, 99)
            ),
        )


def _measure_rows(names: Collection[str], rows: int, runner: Callable[..., Any]) -> None:
    table = Table(
        f"Median ms of a call: with an empty history, and with {rows:,} attempts",
        *("store", "call", "empty", "full", "µs for each attempt that was written"),
    )
    for name in names:
        store = STORES[name]
        with store.emptied() as options:
            empty, full, each = runner(_beside(store, options, rows))
        for call, took in full.items():
            table.row(name, call, f"{empty[call]:.2f}", f"{took:.2f}", f"{each:.0f}")


async def _beside(
    store: BenchStore, options: dict[str, Any], rows: int
) -> tuple[dict[str, float], dict[str, float], float]:
    async with store.repository()(**options) as opened:
        await opened.history.prepare(KEEP)
        empty = await _timed(opened, 0)
        began = time.perf_counter()
        for first in range(0, rows, BATCH):
            await opened.history.append(*_batch(first, min(BATCH, rows - first)))
        each = (time.perf_counter() - began) / rows * 1e6
        return empty, await _timed(opened, rows), each


def _batch(first: int, count: int) -> tuple[list[RunRow], list[TotalRow]]:
    """Attempts, one for each millisecond, and the totals of some minutes."""
    rows = []
    for number in range(first, first + count):
        ended, task = NOW + number * 1_000, f"task-{number % TASKS}"
        failed = number % 20 >= SUCCEEDS
        rows.append(
            RunRow(
                *(ended, number, task, f"instance-{number % INSTANCES}", f"{number:032x}", 1),
                *(ended - 2_000, ended - 1_000, "worker-of-the-bench"),
                *(("failed", "ValueError: no such address") if failed else ("succeeded", None)),
            )
        )
    minute = rows[0].ended_at - rows[0].ended_at % MINUTE
    totals = [TotalRow(minute, f"task-{number}", 47, 3, 0, 50_000, 1) for number in range(TASKS)]
    return rows, totals


async def _timed(store: Any, rows: int) -> dict[str, float]:
    history = store.history
    failed = frozenset({"failed", "timed_out"})
    middle = f"{NOW + rows * 500}.0"
    group = Group("bench", MINUTE, 1, NOW)
    turn = 0

    async def claim() -> None:
        nonlocal turn
        turn += 1
        claimed = await store.claim([group], 1, NOW, f"{rows}-{turn}")
        assert len(claimed.records) == 1

    due = Put(NOW - 1, "scheduled", None, 0, "", "", "")
    await store.write([Write("bench", f"{rows}-{n}", due, ABSENT) for n in range(CALLS)], NOW)

    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "claim": claim,
        "page of all": lambda: history.runs(RunFilter(), None, 50),
        "page in the middle": lambda: history.runs(RunFilter(), middle, 50),
        "page of a task": lambda: history.runs(RunFilter("task-3"), None, 50),
        "page of an instance": lambda: history.runs(RunFilter("task-3", "instance-3"), None, 50),
        "page of failed": lambda: history.runs(RunFilter(None, None, failed), None, 50),
        "page of failed of a task": lambda: history.runs(
            RunFilter("task-19", None, failed), None, 50
        ),
        "totals of an hour": lambda: history.totals(None, NOW, NOW + 60 * MINUTE),
        f"removing {STEP:,}": lambda: history.prune(None, NOW + rows * 1_000, STEP),
    }
    return {name: await _median_ms(call) for name, call in calls.items()}


async def _median_ms(call: Callable[[], Awaitable[Any]]) -> float:
    took = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await call()
        took.append((time.perf_counter() - began) * 1e3)
    return median(took)
