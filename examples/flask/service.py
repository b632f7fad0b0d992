"""A Flask service that schedules tasks, and the worker that runs them, in two processes.

    gunicorn --workers 4 service:service
    python service.py
    curl -X PUT localhost:8000/invoices/2026-117 --json '{"customer": "Ada", "seconds": 60}'

In a larger program the tasks are in a module of their own, and the worker does not import Flask.
"""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import Any

from flask import Flask, request

from pyncette import Context, Pyncette, Retry

logger = logging.getLogger(__name__)

app = Pyncette(
    url=os.environ.get("PYNCETTE_URL", "sqlite:///invoices.db"),
    shutdown_timeout=timedelta(seconds=20),
)
service = Flask(__name__)


@app.dynamic_task(retry=Retry(attempts=5))
def send_invoice(context: Context) -> None:
    """A plain function: the worker runs it in a thread, so it may use whatever blocks."""
    logger.info("Invoice %s for %s", context.task.name, context.args["customer"])


@service.put("/invoices/<number>")
def schedule_invoice(number: str) -> tuple[str, int]:
    """Sends an invoice, some time from now."""
    wanted: dict[str, Any] = request.get_json()
    app.sync().schedule_task(
        send_invoice,
        number,
        execute_in=timedelta(seconds=wanted["seconds"]),
        customer=wanted["customer"],
    )
    return "", 202


@service.get("/invoices/<number>")
def next_time(number: str) -> tuple[dict[str, Any], int]:
    """When the invoice is due, and how the last attempt failed."""
    state = app.sync().get_task(send_invoice, number)
    if state is None:
        return {}, 404
    return {"at": state.scheduled_at, "error": state.last_error}, 200


if __name__ == "__main__":
    app.main()
