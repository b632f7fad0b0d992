"""The store in DynamoDB against the storage contract."""

from collections.abc import Iterator

import pytest
from tests.servers import url
from tests.stores.dynamodb_place import place_at, set_credentials

from pyncette.testing.conformance import Place, StoreConformance


class TestDynamoDB(StoreConformance):
    processes = True

    @pytest.fixture
    def place(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
        set_credentials(monkeypatch)
        with place_at(url("dynamodb")) as place:
            yield place
