"""Reports that users subscribe to while the program runs, each at a time of their own.

A dynamic task is a template: what is scheduled are instances of it, each with a name, a schedule
and arguments. `subscribe` and `unsubscribe` are what the pages of a web application would call, in
this process or any other that opens the app on the same store.

    python examples/user_reports.py

`daily_reports.py` does the same for ten thousand users, and makes life hard for the workers.
"""

from __future__ import annotations

import asyncio
import logging

from pyncette import Context, Pyncette, PyncetteContext

logger = logging.getLogger(__name__)

app = Pyncette(sqlite_database="user_reports.db")


@app.dynamic_task()
async def report(context: Context) -> None:
    """Sends one user their report."""
    user, email = context.task.name, context.args["email"]
    logger.info("Report of %s for %s goes to %s", context.scheduled_at, user, email)


async def subscribe(
    context: PyncetteContext, user: str, email: str, hour: int, timezone: str
) -> None:
    """Also for somebody who has a report already, and wants it at another time or address."""
    # Without force, the sooner of the old and the new time would be kept for the next report.
    await context.schedule_task(
        report, user, force=True, schedule=f"0 {hour} * * *", timezone=timezone, email=email
    )


async def unsubscribe(context: PyncetteContext, user: str) -> None:
    """No report any more, not even one that is due; no error where there was none."""
    await context.unschedule_task(report, user)


async def main() -> None:
    """Stands for the web application: three people subscribe, and one thinks better of it."""
    async with app.create() as context:
        await subscribe(context, "ada", "ada@example.com", 7, "Europe/London")
        await subscribe(context, "grace", "grace@example.com", 7, "America/New_York")
        await subscribe(context, "emmy", "emmy@example.com", 7, "Europe/Berlin")
        await unsubscribe(context, "grace")
        for state in (await context.list_tasks(report)).tasks:
            logger.info("%s gets the next report at %s", state.task.name, state.scheduled_at)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main())
    app.main()
