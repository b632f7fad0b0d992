"""How long calls take that look at a very large group: counts, first pages, a claim.

Beside a group of a thousand, look by look in turn: what an index serves takes as long in both.
"""

from __future__ import annotations

import logging
import os
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from time import perf_counter
from typing import Any, Final, NamedTuple

from table import Table

from pyncette import Context, Exhausted, Instance, Pyncette, PyncetteContext, Retry, Where
from pyncette.store import Group
from stores import STORES

SMALL: Final = 1_000
"""Instances of the group that the large one is compared with."""

PARKED: Final = 50

CLAIMED: Final = 100
"""Records of one claim."""

_LATER: Final = datetime(2100, 1, 1, tzinfo=UTC)
_LEASE: Final = 3_600_000_000


class Place(NamedTuple):
    """A filled store.

    Attributes:
        context: Of an app that is open on it.
        task: Its template.
    """

    context: PyncetteContext
    task: Any


def _app(repository: Any, options: dict[str, Any]) -> tuple[Pyncette, Any]:
    app = Pyncette(repository, **options)

    @app.dynamic_task(retry=Retry(attempts=1), exhausted=Exhausted.PARK)
    async def job(context: Context) -> None:
        raise ValueError("no address")

    return app, job


def _instances(number: int) -> Iterator[Instance]:
    for index in range(number):
        yield Instance(f"user-{index:08}", execute_at=_LATER + timedelta(seconds=index), user=1)


@asynccontextmanager
async def _filled(name: str, options: dict[str, Any], number: int) -> AsyncIterator[Place]:
    logging.getLogger("pyncette").setLevel(logging.CRITICAL)
    app, job = _app(STORES[name].repository(), options)
    now = datetime.now(UTC)
    async with app.create() as context:
        bad = (Instance(f"bad-{index:08}", execute_at=now, user=index) for index in range(PARKED))
        await context.schedule_tasks(job, bad)
        await context.run_until_idle()
        await context.schedule_tasks(job, _instances(number))
        yield Place(context, job)


async def _first(place: Place, where: Where | None, number: int) -> str:
    found = 0
    async for _ in place.context.iter_tasks(place.task, where):
        found += 1
        if found == number:
            break
    return str(found)


async def _count(place: Place, where: Where | None) -> str:
    return str(await place.context.count_tasks(place.task, where))


_tokens: Final = count()


async def _claim(place: Place) -> str:
    """Claims from the group, of which a few records have become due."""
    context = place.context
    now = context.clock.microseconds()
    source = Group(place.task.group, _LEASE, CLAIMED, now)
    claimed = await context._store.claim([source], CLAIMED, now, f"bench:{next(_tokens)}")
    return str(len(claimed.records))


Call = Callable[[Place], Awaitable[str]]

CALLS: Final[dict[str, Call]] = {
    "a claim of 100": _claim,
    "count_tasks(task)": lambda place: _count(place, None),
    'count_tasks(task, Where(states={"parked"}))': lambda place: _count(
        place, Where(states={"parked"})
    ),
    'count_tasks(task, Where(prefix="user-000000"))': lambda place: _count(
        place, Where(prefix="user-000000")
    ),
    "count_tasks(task, Where(due_before=…)) of what was claimed": lambda place: _count(
        place, Where(due_before=_LATER)
    ),
    "the first 100 of iter_tasks(task)": lambda place: _first(place, None, 100),
    'the first 20 of iter_tasks(task, Where(states={"parked"}))': lambda place: _first(
        place, Where(states={"parked"}), 20
    ),
}
"""What is called, and returns what was found."""


async def look_at(name: str, small: Place, large: Place, looks: int, table: Table) -> None:
    """Times each call on both groups in turn, and puts the medians into the table."""
    for text, call in CALLS.items():
        times: list[tuple[float, float]] = []
        found = ""
        for _ in range(looks + 1):
            took: list[float] = []
            for place in (small, large):
                if call is _claim:
                    await _make_due(place)
                began = perf_counter()
                found = await call(place)
                took.append(1_000 * (perf_counter() - began))
            times.append((took[0], took[1]))
        # The first look pays for connections and caches.
        few, many = (statistics.median(side) for side in zip(*times[1:], strict=True))
        table.row(name, text, found, f"{few:.1f}", f"{many:.1f}", f"{many / few:.2f}")


async def _make_due(place: Place) -> None:
    now = datetime.now(UTC) - timedelta(seconds=1)
    due = (
        Instance(f"due-{now.timestamp()}-{index}", execute_at=now, user=index)
        for index in range(CLAIMED)
    )
    await place.context.schedule_tasks(place.task, due)


async def _measure(
    name: str, both: Sequence[dict[str, Any]], number: int, looks: int, table: Table
) -> None:
    async with AsyncExitStack() as stack:
        small, large = [
            await stack.enter_async_context(_filled(name, options, size))
            for options, size in zip(both, (SMALL, number), strict=True)
        ]
        await look_at(name, small, large, looks, table)


def table_of(number: int) -> Table:
    """Returns the table that the figures go to."""
    return Table(
        f"Looking at {number:,} instances, {PARKED} of them parked, in ms beside {SMALL:,}, "
        f"load {os.getloadavg()[0]:.1f}",
        *("store", "call", "found", f"{SMALL:,}: p50", f"{number:,}: p50", "ratio"),
    )


def measure(
    names: Sequence[str],
    number: int,
    looks: int,
    run: Callable[[Coroutine[Any, Any, Any]], Any],
) -> None:
    """Prints how long each call takes in a small and in a large group."""
    table = table_of(number)
    for name in names:
        with STORES[name].emptied() as small, STORES[name].emptied() as large:
            run(_measure(name, (small, large), number, looks, table))
