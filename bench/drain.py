"""How many no-op runs a second one worker drains, beside the floor of the bare driver.

Floor and engine take turns within one run, since machines differ and drift: what counts is their
ratio. Everything goes through the public API, and a run counts once it is settled: the clock stops
when the context has closed.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from table import Table, spread

from pyncette import Context, Pyncette
from pyncette.clock import Clock, SystemClock
from stores import STORES, BenchStore

_LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
_CONCURRENT_CALLS = 10_000


class SteppedClock(Clock):
    """The machine's clock, some time ago or now; never corrected by the store's."""

    def __init__(self) -> None:
        self.behind = 0
        self._machine = SystemClock()

    def now(self) -> datetime:
        return self._machine.now() - timedelta(microseconds=self.behind)

    def microseconds(self) -> int:
        return self._machine.microseconds() - self.behind

    def monotonic(self) -> float:
        return self._machine.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._machine.sleep(seconds)


class Figures(NamedTuple):
    """What one round gave.

    Attributes:
        schedule: Calls of ``schedule_task`` per second.
        schedule_cpu: Microseconds of CPU a call in this process.
        drain: Runs per second.
        cpu: Microseconds of CPU a run in this process.
    """

    schedule: float
    schedule_cpu: float
    drain: float
    cpu: float


async def drain(store: BenchStore, runs: int, recurring: bool, **options: Any) -> Figures:
    """Schedules no-op tasks that are due, runs them all, and waits until all is settled."""
    clock = SteppedClock()
    app = Pyncette(store.repository(), clock=clock, **options)
    left = runs

    @app.dynamic_task()
    async def nothing(context: Context) -> None:
        nonlocal left
        left -= 1
        if not left:
            context.app_context.shutdown()

    clock.behind = 3_600_000_000
    when: dict[str, Any] = {"execute_at": _LONG_AGO}
    if recurring:
        when = {"interval": timedelta(minutes=55)}
    async with app.create() as context:
        cpu, began = time.process_time(), time.perf_counter()
        for first in range(0, runs, _CONCURRENT_CALLS):
            numbers = range(first, min(first + _CONCURRENT_CALLS, runs))
            await asyncio.gather(
                *(context.schedule_task(nothing, f"task-{n}", **when) for n in numbers)
            )
        scheduled, scheduled_cpu = time.perf_counter() - began, time.process_time() - cpu
        clock.behind = 0
        gc.collect()
        gc.freeze()
        cpu, began = time.process_time(), time.perf_counter()
        await context.run()
    drained, drained_cpu = time.perf_counter() - began, time.process_time() - cpu
    gc.unfreeze()
    assert left == 0
    return Figures(
        runs / scheduled, scheduled_cpu / runs * 1e6, runs / drained, drained_cpu / runs * 1e6
    )


def measure(names: Collection[str], rounds: int, runs: int | None, runner: Any) -> None:
    """Prints how fast runs are drained, and then how fast they had been scheduled."""
    table = Table(
        "Drain: no-op runs a second, one worker, everything settled",
        *("store", "floor", "one-off", "of the floor", "recurring", "of one-off"),
        *("µs CPU one-off", "µs CPU recurring"),
    )
    schedules: dict[str, list[Figures]] = {}
    for name in names:
        store = STORES[name]
        count = runs or store.runs
        floors: list[float] = []
        once: list[Figures] = []
        again: list[Figures] = []
        for _ in range(rounds):
            floors.append(runner(store.floor(count)))
            for figures in (once, again):
                with store.emptied() as options:
                    recurring = figures is again
                    figures.append(runner(drain(store, count, recurring, **options)))
        ratios = [figures.drain / base for figures, base in zip(once, floors, strict=True)]
        shares = [a.drain / b.drain for a, b in zip(again, once, strict=True)]
        table.row(
            name,
            spread(floors),
            spread([figures.drain for figures in once]),
            f"{statistics.median(ratios):.2f}",
            spread([figures.drain for figures in again]),
            f"{statistics.median(shares):.2f}",
            f"{statistics.median(figures.cpu for figures in once):.1f}",
            f"{statistics.median(figures.cpu for figures in again):.1f}",
        )
        schedules[name] = once
    calls = f"{_CONCURRENT_CALLS:,} calls at a time"
    table = Table(f"Scheduling: `schedule_task` a second, {calls}", "store", "calls/s", "µs CPU")
    for name, once in schedules.items():
        cpu = statistics.median(figures.schedule_cpu for figures in once)
        table.row(name, spread([figures.schedule for figures in once]), f"{cpu:.1f}")
