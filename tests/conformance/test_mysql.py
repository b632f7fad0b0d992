"""The store in MySQL and MariaDB against the storage contract."""

from collections.abc import Iterator

import pytest
from tests.servers import url
from tests.stores.mysql_place import place_at

from pyncette.testing.conformance import Place, StoreConformance


class TestMysql(StoreConformance):
    processes = True

    @pytest.fixture
    def place(self) -> Iterator[Place]:
        with place_at(url("mysql")) as place:
            yield place


class TestMariadb(StoreConformance):
    processes = True

    @pytest.fixture
    def place(self) -> Iterator[Place]:
        with place_at(url("mariadb")) as place:
            yield place
