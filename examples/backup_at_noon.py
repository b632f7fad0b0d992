"""A backup of a database, every day at noon, of which never two run at once.

Start it on as many processes as share the store: one of them makes the backup. While it does,
heartbeats extend its lease, so that nobody else starts another one, however long it takes; should
it die, another starts over within a minute. Days that were missed need one backup, not one each.

    python examples/backup_at_noon.py
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from pyncette import Context, Pyncette, with_heartbeat

logger = logging.getLogger(__name__)

DATABASE = Path("shop.db")

app = Pyncette(sqlite_database="backup_at_noon.db")


@app.task(
    schedule="0 12 * * *",
    timezone="Europe/Berlin",
    lease_duration=timedelta(minutes=1),
    fast_forward=True,
)
@with_heartbeat(lease_remaining_ratio=0.3, cancel_on_lease_lost=True)
async def back_up(context: Context) -> None:
    """Copies the database while others write to it."""
    day = context.scheduled_at.date()
    unfinished = DATABASE.with_name(f"shop-{day}.db.part")
    unfinished.unlink(missing_ok=True)
    stop = threading.Event()
    try:
        # In a thread: a body that blocks the event loop blocks its heartbeats, too.
        await asyncio.to_thread(copy, unfinished, stop)
    finally:
        stop.set()
    # What bears this name is whole, whatever happened on the way.
    unfinished.replace(DATABASE.with_name(f"shop-{day}.db"))
    logger.info("The backup of %s is made", day)


def copy(target: Path, stop: threading.Event) -> None:
    """Copies a hundred pages at a time, and waits while somebody holds the database."""

    def progress(status: int, remaining: int, total: int) -> None:
        if stop.is_set():
            raise InterruptedError("Nobody waits for this backup any more")

    with closing(sqlite3.connect(DATABASE)) as source, closing(sqlite3.connect(target)) as into:
        source.backup(into, pages=100, progress=progress, sleep=0.05)


if __name__ == "__main__":
    app.main()
