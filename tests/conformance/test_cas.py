"""CasStore, on an index that shows everything at once and on one that lags."""

import pytest

from pyncette.store import Store
from pyncette.testing.conformance import Place, StoreConformance
from pyncette.testing.lagging import LaggingRepository


class TestCasStore(StoreConformance):
    @pytest.fixture
    def place(self) -> Place:
        return Place(LaggingRepository(lag=0))


class TestCasStoreWithALaggingIndex(StoreConformance):
    index_lags = True

    @pytest.fixture
    def place(self) -> Place:
        self.repository = LaggingRepository(lag=20)
        return Place(self.repository)

    async def index_catches_up(self, store: Store) -> None:
        self.repository.backend.catch_up()
