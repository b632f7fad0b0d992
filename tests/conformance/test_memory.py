"""The store in memory against the storage contract."""

from typing import Any

import pytest

from pyncette.memory import MemoryRepository
from pyncette.store import Identity
from pyncette.testing.conformance import Place, StoreConformance
from pyncette.testing.suite.harness import has_type_of


class TestMemory(StoreConformance):
    wakes = True

    edits = True

    @pytest.fixture
    def place(self) -> Place:
        return Place(MemoryRepository())

    async def edit(self, place: Place, identity: Identity, column: str, value: Any) -> bool:
        repository = place.factory
        assert isinstance(repository, MemoryRepository)
        if not has_type_of(column, value):
            return False
        group, key = identity
        shelf = repository._store._shelves[group]
        record = shelf.records[key]
        shelf.remove(record)
        shelf.put(record._replace(**{column: value}))
        return True
