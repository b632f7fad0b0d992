"""How late a planned run starts: the body's clock against the planned time.

Once with runs that were planned beforehand in the same process, fifty a second; and once with runs
that another process plans a tenth of a second ahead, which a worker learns of by a notification,
or by looking. The poll interval is the default one.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Collection
from datetime import timedelta
from typing import Any

from table import Table, percentile

from pyncette import Context, Pyncette, PyncetteContext
from pyncette.history import use_history
from pyncette.task import Task
from stores import STORES, BenchStore, Options

RUNS_A_SECOND = 50
AHEAD = timedelta(milliseconds=100)


def _app(
    store: BenchStore, options: Options, history: bool = False
) -> tuple[Pyncette, Task, list[float]]:
    app = Pyncette(store.repository(), **options)
    if history:
        use_history(app)
    late_ms: list[float] = []

    @app.dynamic_task()
    async def note(context: Context) -> None:
        late = context.app_context.clock.now() - context.scheduled_at
        late_ms.append(late / timedelta(milliseconds=1))

    return app, note, late_ms


async def _run_until(context: PyncetteContext, late_ms: list[float], runs: int) -> None:
    running = asyncio.create_task(context.run())
    while len(late_ms) < runs and not running.done():  # noqa: ASYNC110 (plain for the body)
        await asyncio.sleep(0.05)
    context.shutdown()
    await running


async def planned_before(
    store: BenchStore,
    options: Options,
    runs: int,
    warm_up: float,
    a_second: int = RUNS_A_SECOND,
    history: bool = False,
) -> list[float]:
    """Milliseconds by which runs were late that had been planned before the loop began."""
    app, note, late_ms = _app(store, options, history)
    async with app.create() as context:
        begin = context.clock.now() + timedelta(seconds=warm_up)
        await asyncio.gather(
            *(
                context.schedule_task(
                    note,
                    f"run-{number}",
                    execute_at=begin + timedelta(seconds=(number + random.random()) / a_second),
                )
                for number in range(runs)
            )
        )
        await _run_until(context, late_ms, runs)
    return late_ms


async def planned_elsewhere(name: str, options: Options, runs: int) -> list[float]:
    """Milliseconds by which runs were late that another process planned shortly before."""
    app, _, late_ms = _app(STORES[name], options)
    async with app.create() as context:
        planner = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, name, json.dumps(options), str(runs)),
            stderr=subprocess.DEVNULL,
        )
        await _run_until(context, late_ms, runs)
        await planner.wait()
    return late_ms


async def schedule(name: str, options: Options, runs: int) -> None:
    """What the other process does."""
    app, note, _ = _app(STORES[name], options)
    async with app.create() as context:
        await asyncio.sleep(0.5)
        for number in range(runs):
            at = context.clock.now() + AHEAD
            await context.schedule_task(note, f"run-{number}", execute_at=at)
            await asyncio.sleep(random.random() * 2 / RUNS_A_SECOND)


def measure(names: Collection[str], runs: int, runner: Any, warm_up: float) -> None:
    """Prints percentiles. The first run is planned so many seconds ahead."""
    table = Table(
        f"Start latency in ms, {runs} runs, {RUNS_A_SECOND} a second, default poll interval",
        *("store", "planned before: p50", "p99", "most"),
        *("planned 100 ms ahead by another process: p50", "p99", "most"),
    )

    def shown(late_ms: list[float]) -> list[str]:
        return [f"{value:.1f}" for value in (*map(percentile_of(late_ms), (50, 99)), max(late_ms))]

    def percentile_of(late_ms: list[float]) -> Any:
        return lambda percent: percentile(late_ms, percent)

    for name in names:
        store = STORES[name]
        with store.emptied() as options:
            cells = shown(runner(planned_before(store, options, runs, warm_up)))
        if store.shared:
            with store.emptied() as options:
                cells += shown(runner(planned_elsewhere(name, options, runs)))
        else:
            cells += ["", "", ""]
        table.row(name, *cells)


if __name__ == "__main__":
    asyncio.run(schedule(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])))
