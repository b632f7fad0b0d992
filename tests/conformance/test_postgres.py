"""The store in PostgreSQL against the storage contract: direct, and through a pooler."""

from collections.abc import Iterator

import pytest
from tests.servers import url
from tests.stores.postgres_place import place_at

from pyncette.testing.conformance import Place, StoreConformance


class TestPostgres(StoreConformance):
    processes = True
    wakes = True

    @pytest.fixture
    def place(self) -> Iterator[Place]:
        with place_at(url("postgres")) as place:
            yield place


class TestPostgresThroughPgbouncerInTransactionMode(StoreConformance):
    processes = True
    wakes = True

    @pytest.fixture
    def place(self) -> Iterator[Place]:
        with place_at(url("pgbouncer"), postgres_listen_url=url("postgres")) as place:
            yield place
