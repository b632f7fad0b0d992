"""The store in SQLite against the storage contract: in memory, and on a file that others share."""

from pathlib import Path

import pytest

from pyncette.sqlite import sqlite_repository
from pyncette.testing.conformance import Place, StoreConformance


class TestSqliteInMemory(StoreConformance):
    contexts = False

    @pytest.fixture
    def place(self) -> Place:
        return Place(sqlite_repository)


class TestSqliteFile(StoreConformance):
    processes = True
    wakes = True

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return Place(sqlite_repository, {"sqlite_database": str(tmp_path / "tasks.db")})
