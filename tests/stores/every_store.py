"""The places of all stores, for tests of what is above them: one parameter for each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from tests.servers import url
from tests.stores import dynamodb_place, mysql_place, postgres_place, redis_place

from pyncette.memory import MemoryRepository
from pyncette.sqlite import sqlite_repository
from pyncette.testing.conformance import Place

STORES: Final = (
    "memory",
    "sqlite",
    "sqlite-file",
    "postgres",
    "mysql",
    "mariadb",
    "redis",
    "redis-cluster",
    "dynamodb",
)


@contextmanager
def place_of(store: str, directory: Path) -> Iterator[Place]:
    """An empty place of a store. Skips the test if its server does not run."""
    match store:
        case "memory":
            yield Place(MemoryRepository())
        case "sqlite":
            yield Place(sqlite_repository)
        case "sqlite-file":
            yield Place(sqlite_repository, {"sqlite_database": str(directory / "tasks.db")})
        case "postgres":
            with postgres_place.place_at(url(store)) as place:
                yield place
        case "mysql" | "mariadb":
            with mysql_place.place_at(url(store)) as place:
                yield place
        case "redis" | "redis-cluster":
            with redis_place.place_at(url(store)) as place:
                yield place
        case _:
            with pytest.MonkeyPatch.context() as monkeypatch:
                dynamodb_place.set_credentials(monkeypatch)
                with dynamodb_place.place_at(url(store)) as place:
                    yield place
