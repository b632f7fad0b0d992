"""The service schedules. `PYNCETTE_URL=sqlite:// pytest` keeps the tasks in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from service import service


@pytest.fixture
def client() -> Iterator[TestClient]:
    """A client; its `with` starts and stops the service."""
    with TestClient(service) as client:
        yield client


def test_a_reminder_can_be_put_and_deleted(client: TestClient) -> None:
    """No waiting: the next time is known as soon as it is scheduled."""
    client.put("/reminders/tea", json={"what": "It is ready", "seconds": 180})
    assert client.get("/reminders/tea").json().startswith("20")
    client.delete("/reminders/tea")
    assert client.get("/reminders/tea").status_code == 404
