"""The store in MySQL and MariaDB against the storage contract."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from tests.conformance.edits import edit_mysql
from tests.servers import url
from tests.stores.mysql_place import place_at

from pyncette.store import Identity
from pyncette.testing.conformance import Place, StoreConformance


class TestMysql(StoreConformance):
    processes = True
    edits = True

    async def edit(self, place: Place, identity: Identity, column: str, value: Any) -> bool:
        return await asyncio.to_thread(edit_mysql, url("mysql"), place, identity, column, value)

    @pytest.fixture
    def place(self) -> Iterator[Place]:
        with place_at(url("mysql")) as place:
            yield place


class TestMariadb(StoreConformance):
    processes = True
    edits = True

    async def edit(self, place: Place, identity: Identity, column: str, value: Any) -> bool:
        return await asyncio.to_thread(edit_mysql, url("mariadb"), place, identity, column, value)

    @pytest.fixture
    def place(self) -> Iterator[Place]:
        with place_at(url("mariadb")) as place:
            yield place
