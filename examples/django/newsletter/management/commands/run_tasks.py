"""The worker: `python manage.py run_tasks`, as many of them as you like."""

from typing import Any

from django.core.management.base import BaseCommand

from newsletter.tasks import app


class Command(BaseCommand):
    """Runs until SIGINT or SIGTERM, and lets running tasks end."""

    help = "Runs the tasks of the newsletter"

    def handle(self, *arguments: Any, **options: Any) -> None:
        """Runs the app in the main thread, which receives the signals."""
        app.main()
