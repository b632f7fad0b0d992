"""The tasks of the newsletter. `manage.py run_tasks` runs them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from datetime import timedelta

from django.conf import settings
from django.db import close_old_connections
from django.db.models import F

from newsletter.models import Subscriber
from pyncette import Context, Pyncette, Retry

logger = logging.getLogger(__name__)

app = Pyncette(url=settings.PYNCETTE_URL, shutdown_timeout=timedelta(seconds=20))


def with_database(function: Callable[[Context], None]) -> Callable[[Context], None]:
    """Does for a task what Django does for a request: it drops connections that are too old."""

    @functools.wraps(function)
    def run(context: Context) -> None:
        close_old_connections()
        try:
            function(context)
        finally:
            close_old_connections()

    return run


@app.dynamic_task(retry=Retry(attempts=5))
@with_database
def send_letter(context: Context) -> None:
    """A plain function: it runs in a thread, where the ORM may be used as in a view."""
    subscriber = Subscriber.objects.get(pk=context.args["subscriber"])
    logger.info("A letter to %s", subscriber.email)
    Subscriber.objects.filter(pk=subscriber.pk).update(letters=F("letters") + 1)
