"""A worker to deploy: what it needs is in its environment, and probes can ask how it is.

    PYNCETTE_URL=postgresql://… python worker.py
    curl -i localhost:8080/ready localhost:8081/live

The files beside it run it under systemd, Docker Compose and Kubernetes.
"""

from __future__ import annotations

import logging
import os
from datetime import timedelta

from pyncette import Context, Pyncette, PyncetteContext, Retry
from pyncette.healthcheck import use_healthcheck_server

logger = logging.getLogger(__name__)

app = Pyncette(
    url=os.environ.get("PYNCETTE_URL", "sqlite:///tasks.db"),
    # The database may start later than the worker.
    open_timeout=timedelta(seconds=60),
    # Shorter than the grace period of whatever stops the worker.
    shutdown_timeout=timedelta(seconds=20),
)


async def is_alive(app_context: PyncetteContext) -> bool:
    """Whether this answers at all: whether no task blocks the event loop."""
    return True


# Ready: the loop reaches the store. If not, a restart does not help.
ready = use_healthcheck_server(app, port=int(os.environ.get("READY_PORT", "8080")))
# Alive: if not, restart the worker.
live = use_healthcheck_server(
    app, port=int(os.environ.get("LIVE_PORT", "8081")), healthcheck_handler=is_alive
)


@app.task(interval=timedelta(minutes=1), retry=Retry(attempts=3), heartbeat=True)
async def fetch_rates(context: Context) -> None:
    """Stands for the work."""
    logger.info("Rates of %s are fetched", context.scheduled_at)


if __name__ == "__main__":
    app.main()
