"""How fast `schedule_tasks` fills a store beside bare writes of batches, and its memory."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Final, NamedTuple

from pyncette import Context, Instance, Pyncette
from pyncette.schedule import At, dumps
from pyncette.store import Write
from pyncette.store.record import ABSENT, Progress, Put, dump_args, dump_progress
from stores import STORES

BATCH: Final = 1_000
_LATER: Final = datetime(2100, 1, 1, tzinfo=UTC)
_LATER_US: Final = int(_LATER.timestamp()) * 1_000_000


class Figures(NamedTuple):
    """What one round gave.

    Attributes:
        bare: Records per second that bare writes of batches created.
        bulk: Instances per second that `schedule_tasks` created.
        again: Instances per second that a second call found as they should be.
        grown_mb: How much more memory the process had at most during the first call of it.
    """

    bare: float
    bulk: float
    again: float
    grown_mb: float


Repository = Callable[..., AbstractAsyncContextManager[Any]]


async def _bare(repository: Repository, options: dict[str, Any], number: int) -> float:
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
        began = perf_counter()
        for batch in batches():
            await store.write(batch, now)
        return number / (perf_counter() - began)


async def _bulk(
    repository: Repository, options: dict[str, Any], number: int
) -> tuple[float, float, float]:
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

        began = perf_counter()
        result = await context.schedule_tasks(job, instances(), progress=look)
        took = perf_counter() - began
        assert result.created == number, result
        began = perf_counter()
        result = await context.schedule_tasks(job, instances())
        again = perf_counter() - began
        assert result.unchanged == number, result
    return number / took, number / again, highest - before


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
    print(f"\n## Filling a store with {number:,} instances, per second\n")
    print("| store | bare writes | schedule_tasks | of bare | again, unchanged | memory |")
    print("|---|---|---|---|---|---|")
    for name in names:
        store = STORES[name]
        found: list[Figures] = []
        for _ in range(rounds):
            with store.emptied() as options:
                bare = run(_bare(store.repository(), options, number))
            with store.emptied() as options:
                bulk, again, grown = run(_bulk(store.repository(), options, number))
            found.append(Figures(bare, bulk, again, grown))
        bare, bulk, again, _ = (max(values) for values in zip(*found, strict=True))
        grown = min(figures.grown_mb for figures in found)
        print(
            f"| {name} | {bare:,.0f} | {bulk:,.0f} | {bulk / bare:.2f} | {again:,.0f} "
            f"| +{grown:.0f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    measure(list(STORES), 20_000, 1, asyncio.run)
