"""A payment that is tried again with growing delays, and parked if it has failed for good.

The bank is asked at most four times, over some minutes. The id of the execution is the same for
each attempt, so that a bank that knows idempotency keys charges once, even if its answer was lost.
A card that is refused is not tried again. What is parked stays in the store with its error, until
a person runs it again, perhaps with another card.

    python examples/retries.py
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from pyncette import Context, GiveUp, Pyncette, PyncetteContext, Retry

logger = logging.getLogger(__name__)

app = Pyncette(sqlite_database="retries.db")


class CardRefusedError(Exception):
    """The bank has refused the card."""


async def ask_the_bank(card: str, cents: int, key: str) -> None:
    """Stands for the bank; raises OSError while it cannot be reached."""
    logger.info("%s is charged %d cents", card, cents)


@app.dynamic_task(
    retry=Retry(attempts=4, initial=timedelta(seconds=30), factor=3, jitter=0.1),
    timeout=timedelta(seconds=20),
)
async def charge(context: Context) -> None:
    """An attempt; an OSError or a timeout is followed by another one."""
    try:
        await ask_the_bank(context.args["card"], context.args["cents"], context.execution_id)
    except CardRefusedError as error:
        raise GiveUp("the card was refused") from error


async def order(context: PyncetteContext, number: str, card: str, cents: int) -> None:
    """Charges a card as soon as possible."""
    now = context.clock.now()
    await context.schedule_task(charge, number, execute_at=now, card=card, cents=cents)


async def another_card(context: PyncetteContext, number: str, card: str, cents: int) -> bool:
    """Tries a payment that has failed for good once more."""
    return await context.retry_parked(charge, number, card=card, cents=cents)


async def main() -> None:
    """Stands for the shop."""
    async with app.create() as context:
        await order(context, "order-1", "4242", 995)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main())
    app.main()
