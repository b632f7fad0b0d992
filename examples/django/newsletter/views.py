"""Subscribing to the newsletter."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from newsletter.models import Subscriber
from newsletter.tasks import app, send_letter


@csrf_exempt  # no form of the website: programs call it
@require_POST
@transaction.atomic
def subscribe(request: HttpRequest) -> HttpResponse:
    """Adds a subscriber, whose first letter is sent a moment after the transaction commits."""
    subscriber = Subscriber.objects.create(email=request.POST["email"])
    transaction.on_commit(
        partial(
            app.sync().schedule_task,
            send_letter,
            str(subscriber.pk),
            execute_in=timedelta(seconds=0.1),
            subscriber=subscriber.pk,
        )
    )
    return HttpResponse(status=202)
