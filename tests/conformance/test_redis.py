"""The store in Redis against the storage contract: one server, Valkey, Sentinel, a cluster."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.conformance.edits import edit_redis
from tests.servers import url
from tests.stores.redis_place import place_at

from pyncette.redis import topology
from pyncette.store import Identity
from pyncette.testing.conformance import Place, StoreConformance


class OnRedis(StoreConformance):
    """The suite on the server whose name ``server`` is."""

    processes = True
    wakes = True
    edits = True
    server: str

    async def edit(self, place: Place, identity: Identity, column: str, value: Any) -> bool:
        return await edit_redis(url(self.server), place, identity, column, value)

    @pytest.fixture
    def place(self) -> Iterator[Place]:
        with place_at(url(self.server)) as place:
            yield place


class TestRedis(OnRedis):
    server = "redis"


class TestValkey(OnRedis):
    server = "valkey"


class TestRedisBehindSentinel(OnRedis):
    server = "redis-sentinel"


class TestRedisCluster(OnRedis):
    server = "redis-cluster"

    @pytest.fixture
    def place(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
        # On a busy machine a node takes its time. This suite is not about nodes that hang.
        monkeypatch.setattr(topology, "NODE_GRACE_S", 30.0)
        with place_at(url(self.server)) as place:
            yield place
