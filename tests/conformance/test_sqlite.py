"""The store in SQLite against the storage contract: in memory, and on a file that others share."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.edits import edit_sqlite

from pyncette.sqlite import sqlite_repository
from pyncette.store import Identity
from pyncette.testing.conformance import Place, StoreConformance


class TestSqliteInMemory(StoreConformance):
    contexts = False

    @pytest.fixture
    def place(self) -> Place:
        return Place(sqlite_repository)


class TestSqliteFile(StoreConformance):
    processes = True
    wakes = True
    edits = True

    async def edit(self, place: Place, identity: Identity, column: str, value: Any) -> bool:
        path = place.configuration["sqlite_database"]
        return await asyncio.to_thread(edit_sqlite, path, identity, column, value)

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return Place(sqlite_repository, {"sqlite_database": str(tmp_path / "tasks.db")})
