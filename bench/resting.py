"""What a loop costs that has nothing to run, and whether one that runs for long grows."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from draining import SteppedClock
from table import Table

from pyncette import Context, Pyncette
from stores import STORES, BenchStore, Options

STATIC_TASKS = 1_000
INSTANCES = 1_000


_CALLS = {"claim", "write", "get", "scan", "count", "now"}
"""What goes to the store each time; `watch` only registers a function."""


class CountingStore:
    """A store whose calls are counted."""

    def __init__(self, store: Any) -> None:
        self.calls: Counter[str] = Counter()
        self._store = store

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)
        if name not in _CALLS:
            return call

        async def counted(*arguments: Any, **options: Any) -> Any:
            self.calls[name] += 1
            return await call(*arguments, **options)

        return counted


async def idle(
    store: BenchStore, options: Options, seconds: float, warm_up: float
) -> tuple[float, float]:
    """Calls of the store a second, and the share of a core, while nothing comes due."""
    stores: list[CountingStore] = []

    @asynccontextmanager
    async def counting(**options: Any) -> AsyncIterator[CountingStore]:
        async with store.repository()(**options) as opened:
            stores.append(CountingStore(opened))
            yield stores[0]

    app = Pyncette(counting, **options)
    for number in range(STATIC_TASKS):

        @app.task(name=f"yearly-{number}", schedule="0 0 29 2 *")
        async def yearly(context: Context) -> None:
            raise AssertionError("not due")

    async with app.create() as context:
        loop = asyncio.create_task(context.run())
        await asyncio.sleep(warm_up)
        stores[0].calls.clear()
        cpu, began = time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        took = time.perf_counter() - began
        share = (time.process_time() - cpu) / took
        calls = stores[0].calls.total() / took
        context.shutdown()
        await loop
    return calls, share


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def growth(store: BenchStore, options: Options, runs: int) -> list[float]:
    """MiB of this process after a tenth of the runs, after half of them, and after all."""
    clock = SteppedClock()
    clock.behind = 10 * 86_400_000_000
    app = Pyncette(store.repository(), clock=clock, **options)
    looks = [runs // 10, runs // 2, runs]
    seen: list[float] = []
    done = 0

    @app.dynamic_task()
    async def count(context: Context) -> None:
        nonlocal done
        done += 1
        if len(seen) < len(looks) and done >= looks[len(seen)]:
            gc.collect()
            seen.append(_resident_mib())
            if len(seen) == len(looks):
                context.app_context.shutdown()

    async with app.create() as context:
        for number in range(INSTANCES):
            await context.schedule_task(count, f"count-{number}", interval=timedelta(seconds=10))
        clock.behind = 0
        await context.run()
    return seen


def measure_idle(names: Collection[str], seconds: float, runner: Any, warm_up: float) -> None:
    """Prints calls and share, after so many seconds in which the worker starts."""
    table = Table(
        f"Idle: {STATIC_TASKS:,} static tasks, nothing due, {seconds:g} s",
        *("store", "calls of the store a second", "share of a core"),
    )
    for name in names:
        with STORES[name].emptied() as options:
            calls, share = runner(idle(STORES[name], options, seconds, warm_up))
        table.row(name, f"{calls:.1f}", f"{share:.2%}")


def measure_growth(names: Collection[str], runs: int, runner: Any) -> None:
    """Prints memory."""
    table = Table(
        f"Memory: MiB resident over {runs:,} executions of {INSTANCES:,} recurring instances",
        *("store", "after a tenth", "after half", "after all"),
    )
    for name in names:
        with STORES[name].emptied() as options:
            seen = runner(growth(STORES[name], options, runs))
        table.row(name, *(f"{mib:.1f}" for mib in seen))
