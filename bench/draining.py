"""Drains tasks once through the public API, and counts.

Stands on nothing of this directory, and on nothing but the public API of the package, so that the
same measurement runs on another checkout. As a command it takes what to drain as JSON, and prints
figures as JSON; PYTHONPATH says which checkout is measured:

    PYTHONPATH=src python bench/draining.py '{"factory": "", "runs": 1000, "options": {}}'
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any, NamedTuple

from pyncette import Context, Pyncette
from pyncette.clock import Clock, SystemClock
from pyncette.memory import MemoryRepository

CONCURRENT_CALLS = 10_000
"""Calls of ``schedule_task`` at a time."""

_LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


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
        schedule_cpu: Microseconds of CPU per call in this process.
        drain: Runs per second.
        cpu: Microseconds of CPU per run in this process.
    """

    schedule: float
    schedule_cpu: float
    drain: float
    cpu: float


class Work(NamedTuple):
    """What to drain.

    Attributes:
        factory: Module and name of the repository factory; empty for the store in memory.
        runs: How many tasks.
        options: Options that open the store.
        waits: The body waits once (``await asyncio.sleep(0)``), as bodies do that have work. A
            body that never waits does nothing that a scheduler is for.
        recurring: Each task runs again, an hour later, instead of once.
        history: The worker writes a run history.
    """

    factory: str
    runs: int
    options: dict[str, Any]
    waits: bool = True
    recurring: bool = False
    history: bool = False


def repository_of(factory: str) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """The factory of a store, by its module and name."""
    if not factory:
        return MemoryRepository()
    module, _, name = factory.partition(":")
    found: Callable[..., AbstractAsyncContextManager[Any]] = getattr(import_module(module), name)
    return found


async def drain(work: Work) -> Figures:
    """Schedules tasks that are due, runs them all, and waits until all is settled."""
    clock = SteppedClock()
    app = Pyncette(repository_of(work.factory), clock=clock, **work.options)
    if work.history:
        # Not at the top: another checkout may have none.
        import_module("pyncette.history").use_history(app)
    runs = left = work.runs

    def count(context: Context) -> None:
        nonlocal left
        left -= 1
        if not left:
            context.app_context.shutdown()

    if work.waits:

        @app.dynamic_task()
        async def body(context: Context) -> None:
            await asyncio.sleep(0)
            count(context)

    else:

        @app.dynamic_task()
        async def body(context: Context) -> None:
            count(context)

    clock.behind = 3_600_000_000
    when: dict[str, Any] = {"execute_at": _LONG_AGO}
    if work.recurring:
        when = {"interval": timedelta(minutes=55)}
    async with app.create() as context:
        cpu, began = time.process_time(), time.perf_counter()
        for first in range(0, runs, CONCURRENT_CALLS):
            numbers = range(first, min(first + CONCURRENT_CALLS, runs))
            await asyncio.gather(
                *(context.schedule_task(body, f"task-{n}", **when) for n in numbers)
            )
        scheduled, scheduled_cpu = time.perf_counter() - began, time.process_time() - cpu
        clock.behind = 0
        await asyncio.sleep(0)  # until then the event loop keeps the tasks of the last calls
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


def main() -> None:
    """Drains what the command line says."""
    asked = json.loads(sys.argv[1])
    loop_factory: Any = None
    if asked.pop("uvloop", False):
        loop_factory = import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        print(json.dumps(runner.run(drain(Work(**asked)))))


if __name__ == "__main__":
    main()
