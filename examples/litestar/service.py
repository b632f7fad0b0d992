"""A Litestar service that schedules tasks, and runs them in the background.

    litestar --app service:service run
    curl -X PUT localhost:8000/digests/ada -H 'Content-Type: application/json' \
        -d '{"schedule": "0 7 * * *", "timezone": "Europe/Berlin"}'
    curl -X POST localhost:8000/digests/ada/now
"""

# Litestar reads the annotations when the program runs, so it imports what they name.
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from litestar import Litestar, post, put
from litestar.datastructures import State
from litestar.exceptions import ValidationException

from pyncette import Context, Cron, Pyncette

logger = logging.getLogger(__name__)
logging.basicConfig(level=logging.INFO)

app = Pyncette(
    url=os.environ.get("PYNCETTE_URL", "sqlite:///digests.db"),
    shutdown_timeout=timedelta(seconds=20),
)


@app.dynamic_task()
async def send_digest(context: Context) -> None:
    """Stands for the mail."""
    logger.info("Digest for %s", context.task.name)


@asynccontextmanager
async def tasks(service: Litestar) -> AsyncIterator[None]:
    """Runs the tasks while the service runs; `app.create()` instead would only schedule them."""
    async with app.running() as pyncette:
        service.state.pyncette = pyncette
        yield


@dataclass
class Digest:
    """What a client sends."""

    schedule: str
    timezone: str = "UTC"


@put("/digests/{reader:str}", status_code=202)
async def subscribe(reader: str, data: Digest, state: State) -> None:
    """Sends the reader a digest at these times."""
    try:
        when = Cron(data.schedule, timezone=data.timezone)
    except ValueError as error:
        raise ValidationException(str(error)) from error
    await state.pyncette.schedule_task(send_digest, reader, schedule=when)


@post("/digests/{reader:str}/now", status_code=202)
async def send_now(reader: str, state: State) -> None:
    """Sends the reader one more digest, now."""
    await state.pyncette.trigger(send_digest, reader)


service = Litestar([subscribe, send_now], lifespan=[tasks])
