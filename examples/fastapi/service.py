"""A FastAPI service that schedules tasks, and runs them in the background.

    uvicorn service:service
    curl -X PUT localhost:8000/reminders/tea -H 'Content-Type: application/json' \
        -d '{"what": "The tea is ready", "seconds": 180}'

With `RUN_TASKS=no` in its environment it only schedules. Then start workers: `python tasks.py`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel, Field
from tasks import app, remind

from pyncette import OnExisting, PyncetteContext

# uvicorn sets up its own loggers only.
logging.basicConfig(level=logging.INFO)


@asynccontextmanager
async def lifespan(service: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Opens the app when the service starts, and closes it when the service stops."""
    opening = app.create if os.environ.get("RUN_TASKS") == "no" else app.running
    async with opening() as pyncette:
        yield {"pyncette": pyncette}  # request.state.pyncette


service = FastAPI(lifespan=lifespan)


def opened(request: Request) -> PyncetteContext:
    """The open app, for the functions below."""
    pyncette: PyncetteContext = request.state.pyncette
    return pyncette


Opened = Annotated[PyncetteContext, Depends(opened)]


class Reminder(BaseModel):
    """What a client sends."""

    what: str
    seconds: float = Field(ge=0)


@service.put("/reminders/{name}", status_code=202)
async def schedule_reminder(name: str, reminder: Reminder, pyncette: Opened) -> None:
    """Creates or replaces a reminder."""
    await pyncette.schedule_task(
        remind,
        name,
        execute_in=timedelta(seconds=reminder.seconds),
        on_existing=OnExisting.REPLACE,
        what=reminder.what,
    )


@service.get("/reminders/{name}")
async def next_time(name: str, pyncette: Opened) -> datetime | None:
    """When the reminder is due."""
    state = await pyncette.get_task(remind, name)
    if state is None:
        raise HTTPException(404, f"There is no reminder {name}")
    return state.scheduled_at


@service.delete("/reminders/{name}", status_code=204)
async def cancel_reminder(name: str, pyncette: Opened) -> None:
    """Removes a reminder."""
    await pyncette.unschedule_task(remind, name)
