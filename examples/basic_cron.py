"""Two tasks that are declared in code: one by the calendar, one by an interval.

The store is in memory, so that nothing outlives the process: enough for one worker whose tasks may
be missed while it is down.

    python examples/basic_cron.py
"""

from __future__ import annotations

import logging
from datetime import timedelta

from pyncette import Context, Pyncette

logger = logging.getLogger(__name__)

app = Pyncette()


@app.task(schedule="30 8 * * MON-FRI", timezone="Europe/Berlin")
async def standup(context: Context) -> None:
    """At half past eight by the clock on the wall, in summer and in winter."""
    logger.info("Reminding the team: %s", context.scheduled_at.strftime("%A %H:%M %Z"))


@app.task(interval=timedelta(seconds=10))
async def refresh_dashboard(context: Context) -> None:
    """Every ten seconds from the start on. How long it takes shifts nothing."""
    logger.info("Refreshing the dashboard of %s", context.scheduled_at.strftime("%H:%M:%S"))


if __name__ == "__main__":
    app.main()
