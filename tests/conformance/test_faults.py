"""The wrapper that injects faults, without any: it changes nothing that a store promises."""

import pytest
from tests.faulty_store import Faults, faulty

from pyncette.memory import MemoryRepository
from pyncette.testing.conformance import Place, StoreConformance


class TestFaultyStoreWithoutFaults(StoreConformance):
    wakes = True

    @pytest.fixture
    def place(self) -> Place:
        return Place(faulty(MemoryRepository(), Faults()))
