"""The store in Redis against the storage contract: one server, Valkey, Sentinel, a cluster."""

from collections.abc import Iterator

import pytest
from tests.servers import url
from tests.stores.redis_place import place_at

from pyncette.testing.conformance import Place, StoreConformance


class OnRedis(StoreConformance):
    """The suite on the server whose name ``server`` is."""

    processes = True
    wakes = True
    server: str

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
