"""The store that Prometheus measures: it changes nothing that a store promises."""

import pytest

from pyncette import Pyncette
from pyncette.memory import MemoryRepository
from pyncette.prometheus import use_prometheus
from pyncette.testing.conformance import Place, StoreConformance


class TestMeasuredStore(StoreConformance):
    wakes = True

    @pytest.fixture
    def place(self) -> Place:
        app = Pyncette(MemoryRepository())
        use_prometheus(app)
        assert app._repository_factory is not None
        return Place(app._repository_factory)
