"""The store in memory against the storage contract."""

import pytest

from pyncette.memory import MemoryRepository
from pyncette.testing.conformance import Place, StoreConformance


class TestMemory(StoreConformance):
    wakes = True

    @pytest.fixture
    def place(self) -> Place:
        return Place(MemoryRepository())
