"""Tasks that outlive their process, and workers that share them.

The store is a file. Start this program two or three times in one directory: each run is made by one
of the processes. Stop one, and the others do all of it; stop all, and what was missed is run when
one of them comes back.

    python examples/persistent.py &
    python examples/persistent.py
"""

from __future__ import annotations

import logging
import os
from datetime import timedelta

from pyncette import Context, Pyncette

logger = logging.getLogger(__name__)

app = Pyncette(sqlite_database="persistent.db")


@app.task(interval=timedelta(seconds=1))
async def count_sheep(context: Context) -> None:
    """Missed seconds are run one after the other."""
    logger.info("Sheep of %s counted by %d", context.scheduled_at, os.getpid())


@app.task(interval=timedelta(seconds=5), fast_forward=True)
async def count_wolves(context: Context) -> None:
    """However many were missed, one run stands for them all."""
    logger.info("Wolves of %s counted by %d", context.scheduled_at, os.getpid())


if __name__ == "__main__":
    app.main()
