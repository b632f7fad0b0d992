"""What tasks share: things that are opened once, and things that happen around every run.

A fixture is opened with the app and closed after the last task has ended; what it yields is an
attribute of every task's context. A middleware wraps every execution; the first is outermost.

    python examples/fixtures_and_middlewares.py
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from datetime import timedelta

from pyncette import Context, FailureMode, Pyncette, PyncetteContext

logger = logging.getLogger(__name__)

app = Pyncette()


@app.fixture()
async def shop(context: PyncetteContext) -> AsyncIterator[sqlite3.Connection]:
    """The shop's own database: the tasks need not know how to reach it."""
    with closing(sqlite3.connect("shop.db")) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS sales (item TEXT, cents INTEGER)")
        yield connection


@app.middleware
async def timed(context: Context, call_next: Callable[[], Awaitable[None]]) -> None:
    """Says how long each run took, whether it failed or not."""
    clock = context.app_context.clock
    began = clock.monotonic()
    try:
        await call_next()
    finally:
        logger.info("%s took %.3f s", context.task, clock.monotonic() - began)


@app.middleware
async def in_a_transaction(context: Context, call_next: Callable[[], Awaitable[None]]) -> None:
    """Committed if the task succeeds, rolled back if it fails."""
    with context.shop:
        await call_next()


@app.task(interval=timedelta(seconds=1), failure_mode=FailureMode.COMMIT)
async def sell(context: Context) -> None:
    """Fails at every third second, leaves nothing behind, and is not tried again."""
    context.shop.execute("INSERT INTO sales VALUES ('tea', 250)")
    if context.scheduled_at.second % 3 == 0:
        raise ValueError("The customer changed their mind")


if __name__ == "__main__":
    app.main()
