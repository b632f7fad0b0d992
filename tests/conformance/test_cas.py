"""CasStore, on an index that shows everything at once and on one that lags."""

from typing import Any

import pytest
from tests.lagging import LaggingRepository

from pyncette.store import Identity, Store
from pyncette.testing.conformance import Place, StoreConformance
from pyncette.testing.suite.harness import has_type_of


class OnCas(StoreConformance):
    """The suite on the repository that the fixture ``place`` opens."""

    edits = True
    repository: LaggingRepository

    async def edit(self, place: Place, identity: Identity, column: str, value: Any) -> bool:
        if not has_type_of(column, value):
            return False
        self.repository.backend.edit(identity, **{column: value})
        return True


class TestCasStore(OnCas):
    @pytest.fixture
    def place(self) -> Place:
        self.repository = LaggingRepository(lag=0)
        return Place(self.repository)


class TestCasStoreWithALaggingIndex(OnCas):
    index_lags = True

    @pytest.fixture
    def place(self) -> Place:
        self.repository = LaggingRepository(lag=20)
        return Place(self.repository)

    async def index_catches_up(self, store: Store) -> None:
        self.repository.backend.catch_up()
