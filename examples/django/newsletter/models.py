"""Subscribers of the newsletter."""

from django.db import models


class Subscriber(models.Model):
    """Somebody who gets the newsletter."""

    email = models.EmailField(unique=True)
    letters = models.PositiveIntegerField(default=0)
