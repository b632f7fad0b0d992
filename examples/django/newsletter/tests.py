"""The view schedules a letter, and the task sends it.

    PYNCETTE_URL=sqlite:// python manage.py test

keeps the tasks in memory.
"""

from __future__ import annotations

from types import SimpleNamespace

from django.test import TransactionTestCase

from newsletter.models import Subscriber
from newsletter.tasks import app, send_letter


class NewsletterTest(TransactionTestCase):
    """Transactions are real here, so that what waits for their commit is called."""

    def tearDown(self) -> None:
        """Closes the store in memory; the next call opens an empty one."""
        app.sync().close()

    def test_a_subscriber_gets_a_letter(self) -> None:
        """The view; then the function of the task, as a worker would call it."""
        self.client.post("/subscribers/", {"email": "ada@example.com"})
        subscriber = Subscriber.objects.get()
        state = app.sync().get_task(send_letter, str(subscriber.pk))
        assert state is not None
        send_letter.task_func(SimpleNamespace(args=state.args))
        subscriber.refresh_from_db()
        assert subscriber.letters == 1

    def test_nothing_is_scheduled_if_the_transaction_is_rolled_back(self) -> None:
        """The same address twice."""
        self.client.raise_request_exception = False
        for _ in range(2):
            self.client.post("/subscribers/", {"email": "ada@example.com"})
        assert app.sync().count_tasks(send_letter).count == 1
