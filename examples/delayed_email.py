"""An e-mail a day after somebody has signed up, once.

A one-off is an instance with `execute_at`: it runs at that instant, and is gone when it has
succeeded. If the mail server is down, the task is tried again, with the same name and arguments,
after a poll interval: here, every minute. Somebody who leaves before gets no mail.

    python examples/delayed_email.py
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from pyncette import Context, FailureMode, Pyncette, PyncetteContext

logger = logging.getLogger(__name__)

app = Pyncette(sqlite_database="delayed_email.db", poll_interval=timedelta(minutes=1))


def send(address: str, text: str) -> None:
    """Stands for the mail server; raises OSError while it cannot be reached."""
    logger.info("To %s: %s", address, text)


@app.dynamic_task(failure_mode=FailureMode.UNLOCK)
async def welcome(context: Context) -> None:
    """Repeated until it has succeeded, so that a mail may be sent twice, but never lost."""
    send(context.args["email"], f"How are you getting on, {context.args['person']}?")


async def signed_up(context: PyncetteContext, person: str, email: str) -> None:
    """The address is the identity: who signs up twice gets one mail, at the sooner time."""
    tomorrow = context.clock.now() + timedelta(days=1)
    await context.schedule_task(welcome, email, execute_at=tomorrow, person=person, email=email)


async def left(context: PyncetteContext, email: str) -> None:
    """No mail for somebody who has left."""
    await context.unschedule_task(welcome, email)


async def main() -> None:
    """Stands for the web application."""
    async with app.create() as context:
        await signed_up(context, "Ada", "ada@example.com")
        await signed_up(context, "Charles", "charles@example.com")
        await left(context, "charles@example.com")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main())
    app.main()
