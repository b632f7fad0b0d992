"""A worker that tells an orchestrator whether it is well.

It is well while its loop reaches the store, and while there is room on the disk that it writes
thumbnails to.

    python examples/healthcheck.py &
    curl -i http://127.0.0.1:8080/health
"""

from __future__ import annotations

import logging
import os
import shutil
from datetime import timedelta

from pyncette import Context, Pyncette, PyncetteContext
from pyncette.healthcheck import default_healthcheck, use_healthcheck_server

logger = logging.getLogger(__name__)

NEEDED_BYTES = 10_000_000

app = Pyncette()


async def is_well(app_context: PyncetteContext) -> bool:
    """The loop is alive, and there is room on the disk."""
    return await default_healthcheck(app_context) and shutil.disk_usage(".").free > NEEDED_BYTES


use_healthcheck_server(
    app,
    port=int(os.environ.get("PORT", "8080")),
    bind_address="127.0.0.1",
    healthcheck_handler=is_well,
)


@app.task(interval=timedelta(seconds=10))
async def make_thumbnails(context: Context) -> None:
    """Stands for the work."""
    logger.info("Thumbnails of %s are made", context.scheduled_at)


if __name__ == "__main__":
    app.main()
