"""What the website answers."""

from django.urls import path
from newsletter.views import subscribe

urlpatterns = [path("subscribers/", subscribe)]
