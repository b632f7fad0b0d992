"""The store in DynamoDB against the storage contract: as it is here, and as it may be on AWS."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from tests.servers import url
from tests.stores.dynamodb_place import edit, place_at, set_credentials
from tests.stores.dynamodb_proxy import LaggingIndex, proxy_before

from pyncette.store import Identity, Store
from pyncette.testing.conformance import Place, StoreConformance


class OnDynamoDB(StoreConformance):
    """The suite on the place that the fixture ``place`` makes."""

    # PartiQL has no clock.
    bounds_claims = False
    # The service removes what has expired.
    prunes = False
    # Eight requests that write, two that read.
    many = 200


class TestDynamoDB(OnDynamoDB):
    processes = True
    edits = True

    async def edit(self, place: Place, identity: Identity, column: str, value: Any) -> bool:
        return await asyncio.to_thread(edit, url("dynamodb"), place, identity, column, value)

    @pytest.fixture
    def place(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
        set_credentials(monkeypatch)
        with place_at(url("dynamodb")) as place:
            yield place


class TestDynamoDBWithALaggingIndex(OnDynamoDB):
    index_lags = True

    @pytest.fixture
    def place(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
        set_credentials(monkeypatch)
        server = url("dynamodb")
        with proxy_before(server) as proxy:
            proxy.behaviour = self.index = LaggingIndex(queries=3)
            with place_at(server, proxy.url) as place:
                yield place

    async def index_catches_up(self, store: Store) -> None:
        self.index.catch_up()
