"""A worker whose executions, loop and store are measured, for Prometheus to scrape.

pip install 'pyncette[prometheus]'
python examples/prometheus.py &
curl http://127.0.0.1:9100/metrics
"""

from __future__ import annotations

import os
from datetime import timedelta

from prometheus_client import start_http_server

from pyncette import Context, FailureMode, Pyncette
from pyncette.prometheus import use_prometheus

app = Pyncette()
use_prometheus(app)


@app.task(interval=timedelta(seconds=1))
async def fetch_rates(context: Context) -> None:
    """Goes well, and takes a little while."""
    await context.app_context.clock.sleep(0.2)


@app.task(interval=timedelta(seconds=1), failure_mode=FailureMode.COMMIT)
async def send_invoices(context: Context) -> None:
    """Fails on every third second, so that there is something to be alarmed about."""
    if context.scheduled_at.second % 3 == 0:
        raise ConnectionError("The mail server does not answer")


if __name__ == "__main__":
    start_http_server(int(os.environ.get("PORT", "9100")), "127.0.0.1")
    app.main()
