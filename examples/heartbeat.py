"""A task that takes longer than its lease, and a crash that is noticed soon all the same.

A search index is rebuilt every hour, which takes minutes. A lease as long as that would leave the
task lying for as long, should its worker die. So the lease is short, and heartbeats extend it
while the task runs. If the lease is lost nevertheless, because this process hung for too long and
another worker took over, the task is cancelled: two of them must not write to one index.

    python examples/heartbeat.py
"""

from __future__ import annotations

import logging
from datetime import timedelta

from pyncette import Context, Pyncette, with_heartbeat

logger = logging.getLogger(__name__)

app = Pyncette(sqlite_database="heartbeat.db")


@app.task(schedule="0 * * * *", lease_duration=timedelta(seconds=30))
@with_heartbeat(lease_remaining_ratio=0.3, cancel_on_lease_lost=True)
async def rebuild_index(context: Context) -> None:
    """Takes five minutes. Beats every 9 s: two may fail in a row, and the lease still holds."""
    for shard in range(1, 11):
        await context.app_context.clock.sleep(30)  # stands for the work
        logger.info("Shard %d of 10 is indexed", shard)


if __name__ == "__main__":
    app.main()
