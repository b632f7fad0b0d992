"""How fast `schedule_tasks` fills a store beside bare writes of batches, and its memory."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from time import perf_counter, process_time
from typing import Any, Final, NamedTuple

from pyncette import Context, Instance, Pyncette
from pyncette.schedule import At, dumps
from pyncette.store import Write
from pyncette.store.record import ABSENT, Progress, Put, dump_args, dump_progress
from stores import STORES

BATCH: Final = 1_000
_LATER: Final = datetime(2100, 1, 1, tzinfo=UTC)
_LATER_US: Final = int(_LATER.timestamp()) * 1_000_000


class Cost(NamedTuple):
    """What one record, or one instance, has cost.

    Attributes:
        seconds: By the clock.
        cpu_s: Of the CPU, by this process.
    """

    seconds: float
    cpu_s: float


class Figures(NamedTuple):
    """What one round gave.

    Attributes:
        bare: The cost of a record that bare writes of batches created.
        bulk: The cost of an instance that `schedule_tasks` created.
        again: The cost of one that a second call found as it should be.
        grown_mb: How much more memory the process had at most during both calls.
    """

    bare: Cost
    bulk: Cost
    again: Cost
    grown_mb: float


class Stopwatch:
    """Measures what a number of records cost, from now on."""

    def __init__(self, number: int) -> None:
        """Starts."""
        self._number = number
        self._began, self._cpu_s = perf_counter(), process_time()

    def cost(self) -> Cost:
        """Returns the cost of one of them."""
        return Cost(
            (perf_counter() - self._began) / self._number,
            (process_time() - self._cpu_s) / self._number,
        )


Repository = Callable[..., AbstractAsyncContextManager[Any]]


async def _bare(repository: Repository, options: dict[str, Any], number: int) -> Cost:
    """Creates records of the same content, a batch after the other."""
    schedule, args = dumps(At(_LATER)), dump_args({"user": 1})

    def batches() -> Iterator[list[Write]]:
        for first in range(0, number, BATCH):
            yield [
                Write(
                    "bare",
                    f"user-{index:08}",
                    Put(
                        _LATER_US,
                        "scheduled",
                        None,
                        0,
                        schedule,
                        args,
                        dump_progress(Progress(_LATER_US, f"{index:08x}")),
                    ),
                    ABSENT,
                )
                for index in range(first, min(first + BATCH, number))
            ]

    async with repository(**options) as store:
        now = round(datetime.now(UTC).timestamp() * 1_000_000)
        watch = Stopwatch(number)
        for batch in batches():
            await store.write(batch, now)
        return watch.cost()


async def _bulk(
    repository: Repository, options: dict[str, Any], number: int
) -> tuple[Cost, Cost, float]:
    app = Pyncette(repository, **options)

    @app.dynamic_task()
    async def job(context: Context) -> None: ...

    def instances() -> Iterator[Instance]:
        for index in range(number):
            yield Instance(f"user-{index:08}", execute_at=_LATER, user=1)

    async with app.create() as context:
        gc.collect()
        before = _resident_mb()
        highest = before

        def look(_: object) -> None:
            nonlocal highest
            highest = max(highest, _resident_mb())

        watch = Stopwatch(number)
        result = await context.schedule_tasks(job, instances(), progress=look)
        bulk = watch.cost()
        assert result.created == number, result
        watch = Stopwatch(number)
        result = await context.schedule_tasks(job, instances(), progress=look)
        again = watch.cost()
        assert result.unchanged == number, result
    return bulk, again, highest - before


def _resident_mb() -> float:
    """Memory of this process now, where the system tells it; else the most it ever had."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(
    names: Sequence[str],
    number: int,
    rounds: int,
    run: Callable[[Coroutine[Any, Any, Any]], Any],
) -> None:
    """Prints the best of some rounds for each store; bare and bulk in turn."""
    print(f"\n## Filling a store with {number:,} instances\n")
    print(
        "| store | bare writes/s | schedule_tasks/s | of bare | again, unchanged/s | µs CPU bare "
        "| µs CPU schedule_tasks | µs CPU again | memory |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        store = STORES[name]
        found: list[Figures] = []
        for _ in range(rounds):
            with store.emptied() as options:
                bare = run(_bare(store.repository(), options, number))
            with store.emptied() as options:
                bulk, again, grown = run(_bulk(store.repository(), options, number))
            found.append(Figures(bare, bulk, again, grown))
        bare, bulk, again = (
            Cost(min(cost.seconds for cost in costs), min(cost.cpu_s for cost in costs))
            for costs in zip(*(figures[:3] for figures in found), strict=True)
        )
        grown = min(figures.grown_mb for figures in found)
        print(
            f"| {name} | {1 / bare.seconds:,.0f} | {1 / bulk.seconds:,.0f} "
            f"| {bare.seconds / bulk.seconds:.2f} | {1 / again.seconds:,.0f} "
            f"| {1e6 * bare.cpu_s:.1f} | {1e6 * bulk.cpu_s:.1f} | {1e6 * again.cpu_s:.1f} "
            f"| +{grown:.0f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    measure(list(STORES), 20_000, 1, asyncio.run)
