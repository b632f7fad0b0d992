"""Namespaces of their own for tests on Redis, and commands sent beside the store."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.sentinel import Sentinel

from pyncette.redis import redis_repository
from pyncette.redis.layout import Names
from pyncette.testing.conformance import Place

Client = Any
"""A redis-py client; its types say little of what a command returns."""


def new_namespace() -> str:
    """A name that no other test has."""
    return f"test-{secrets.token_hex(6)}"


@asynccontextmanager
async def client_at(url: str) -> AsyncIterator[Client]:
    """A client of redis-py for the same server, sentinels or cluster."""
    scheme, _, rest = url.partition("://")
    hosts = [host.split(":") for host in rest.partition("/")[0].split(",")]
    addresses = [(host, int(port)) for host, port in hosts]
    client: Client
    if scheme == "redis+cluster":
        client = RedisCluster(startup_nodes=[ClusterNode(*address) for address in addresses])
    elif scheme == "redis+sentinel":
        sentinel: Any = Sentinel(addresses)  # type: ignore[no-untyped-call]
        client = sentinel.master_for(rest.split("/")[1])
        client.sentinels = sentinel.sentinels
    else:
        client = Redis.from_url(url)
    try:
        yield client
    finally:
        await client.aclose()
        if scheme == "redis+sentinel":
            for one in client.sentinels:
                await one.aclose()


async def keys_in(client: Client, namespace: str) -> list[bytes]:
    """The keys of the stores in a namespace."""
    pattern = Names(namespace).layout.rpartition(b"}")[0] + b"*"
    return [key async for key in client.scan_iter(match=pattern, count=1_000)]


async def _clear(url: str, namespace: str) -> None:
    async with client_at(url) as client:
        for key in await keys_in(client, namespace):
            await client.unlink(key)


@contextmanager
def place_at(url: str, **more: Any) -> Iterator[Place]:
    """An empty place; what was put there is removed afterwards."""
    options = {"redis_url": url, "redis_namespace": new_namespace(), **more}
    yield Place(redis_repository, options)
    asyncio.run(_clear(url, options["redis_namespace"]))
