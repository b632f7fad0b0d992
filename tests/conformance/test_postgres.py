"""The store in PostgreSQL against the storage contract: direct, and through a pooler."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from tests.conformance.edits import edit_postgres
from tests.servers import url
from tests.stores.postgres_place import place_at

from pyncette.store import Identity
from pyncette.testing.conformance import Place, StoreConformance


class TestPostgres(StoreConformance):
    processes = True
    wakes = True
    edits = True

    async def edit(self, place: Place, identity: Identity, column: str, value: Any) -> bool:
        return await asyncio.to_thread(
            edit_postgres, url("postgres"), place, identity, column, value
        )

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
