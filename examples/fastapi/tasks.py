"""The tasks of the service. `python tasks.py` is a worker of its own."""

from __future__ import annotations

import logging
import os
from datetime import timedelta

from pyncette import Context, Pyncette, Retry

logger = logging.getLogger(__name__)

app = Pyncette(
    url=os.environ.get("PYNCETTE_URL", "sqlite:///reminders.db"),
    shutdown_timeout=timedelta(seconds=20),
)


@app.dynamic_task(retry=Retry(attempts=5))
async def remind(context: Context) -> None:
    """Stands for a message to somebody."""
    logger.info("Reminder %s: %s", context.task.name, context.args["what"])


if __name__ == "__main__":
    app.main()
