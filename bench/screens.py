"""How long the server takes for each screen of the dashboard, with very many instances."""

from __future__ import annotations

import logging
import os
import statistics
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any, Final

from table import Table

from pyncette import Context, Exhausted, Instance, Pyncette, Retry
from pyncette.history import use_history
from pyncette.store.history import MINUTE, RunRow, TotalRow
from stores import STORES

BATCH: Final = 1_000

PARKED: Final = 500
"""Instances that fail before the others are scheduled."""

SCREENS: Final = {
    "overview": "/",
    "tasks": "/tasks",
    "failures": "/failures",
    "runs": "/runs",
    "runs that failed": "/runs?outcome=failed",
    "due next": "/next",
    "workers": "/workers",
    "unknown": "/unknown",
    "static task": "/task?name=report",
    "template": "/task?name=send",
    "template, by prefix": "/task?name=send&prefix=user-0000",
    "template, parked": "/task?name=send&state=parked",
    "template, due before": "/task?name=send&due_before={soon}",
    "template, paused (none)": "/task?name=send&state=paused",
    "instance": "/task?name=send&instance=user-00000100",
}
"""The addresses of the screens."""


def _app(repository: Any, options: dict[str, Any]) -> tuple[Pyncette, Any]:
    app = Pyncette(repository, **options)
    use_history(app)

    @app.task(schedule="0 9 * * *")
    async def report(context: Context) -> None: ...

    @app.dynamic_task(retry=Retry(attempts=1), exhausted=Exhausted.PARK)
    async def send(context: Context) -> None:
        raise ValueError(f"no address in {context.args['user'] % 3}")

    return app, send


async def _fill(store: Any, number: int, now: datetime) -> None:
    """Writes the history of the last hour."""
    end = round(now.timestamp() * 1_000_000)
    apart = 3_600_000_000 // number
    for first in range(0, number, BATCH):
        rows, totals = [], dict[int, list[int]]()
        for index in range(first, min(first + BATCH, number)):
            at, failed = end - index * apart, index % 50 == 0
            rows.append(
                RunRow(
                    at,
                    index + 1,
                    "send",
                    f"user-{index:08}",
                    f"{index:032x}",
                    1,
                    at - 30_000,
                    at - 20_000,
                    "worker-1",
                    "failed" if failed else "succeeded",
                    "ValueError: no address" if failed else None,
                )
            )
            totals.setdefault(at - at % MINUTE, [0, 0])[failed] += 1
        await store.history.append(
            rows,
            [
                TotalRow(minute, "send", done, failed, 0, 20_000 * (done + failed), 10_000)
                for minute, (done, failed) in totals.items()
            ],
        )


def _instances(number: int, now: datetime) -> Iterator[Instance]:
    """Most of them are due within a week; a hundredth is overdue."""
    for index in range(number):
        late = index % 100 == 0
        seconds = -600 if late else 60 + index * 604_800 // number
        yield Instance(f"user-{index:08}", execute_at=now + timedelta(seconds=seconds), user=index)


async def _look(asgi: Any, address: str) -> float:
    """Requests a screen, and returns how many milliseconds it took."""
    path, _, query = address.partition("?")
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
        "scheme": "http",
        "http_version": "1.1",
    }
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    began = perf_counter()
    await asgi(scope, receive, send)
    took = 1_000 * (perf_counter() - began)
    if status != 200:
        raise RuntimeError(f"{address} was answered with {status}")
    return took


@asynccontextmanager
async def _boards(name: str, options: dict[str, Any], number: int, past: int) -> AsyncIterator[Any]:
    """Gives a function that makes a dashboard which has read nothing yet, on a full store."""
    from pyncette.web import dashboard

    logging.getLogger("pyncette").setLevel(logging.CRITICAL)
    app, send = _app(STORES[name].repository(), options)
    now = datetime.now(UTC)
    async with app.create() as context:
        bad = (Instance(f"bad-{index:08}", execute_at=now, user=index) for index in range(PARKED))
        await context.schedule_tasks(send, bad)
        await context.run_until_idle()
        await context.schedule_tasks(send, _instances(number, now))
        await _fill(context._store, past, now)
        yield lambda: dashboard(app, read_only=True, refresh=timedelta(microseconds=1))


async def _measure(
    name: str, options: dict[str, Any], number: int, past: int, looks: int, table: Table
) -> None:
    async with _boards(name, options, number, past) as new:
        soon = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M")
        for screen, form in SCREENS.items():
            address = form.format(soon=soon)
            first = await _look(new(), address)
            # Each by a dashboard of its own: one keeps what it has read for a while.
            later = [await _look(new(), address) for _ in range(looks)]
            table.row(
                name,
                screen,
                f"{first:,.0f}",
                f"{statistics.median(later):,.0f}",
                f"{max(later):,.0f}",
            )


def measure(
    names: Sequence[str],
    number: int,
    past: int,
    looks: int,
    run: Callable[[Coroutine[Any, Any, Any]], Any],
) -> None:
    """Prints for each screen how long the server takes: at first, and of some later looks."""
    table = Table(
        f"Screens of the dashboard in ms, {number:,} instances, {past:,} past runs, "
        f"load {os.getloadavg()[0]:.1f}",
        *("store", "screen", "first", "later: p50", "most"),
    )
    for name in names:
        with STORES[name].emptied() as options:
            run(_measure(name, options, number, past, looks, table))
