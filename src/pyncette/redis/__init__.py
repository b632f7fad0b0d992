"""The store in Redis or Valkey: one server, a server behind Sentinel, or a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

try:
    import redis.asyncio  # noqa: F401
except ImportError as _error:  # pragma: no cover
    raise ImportError(
        "The store in Redis needs redis-py: pip install 'pyncette[redis]'"
    ) from _error

from pyncette.redis.options import RedisOptions, seconds_of
from pyncette.redis.store import RedisStore


@asynccontextmanager
async def redis_repository(
    *,
    redis_url: str | None = None,
    redis_namespace: str = "",
    redis_timeout: timedelta | float | None = None,
    redis_pool_size: int | None = None,
    redis_wait_replicas: int = 0,
    redis_client: Any = None,
    **_ignored: Any,
) -> AsyncIterator[RedisStore]:
    """Opens a store in Redis.

    Args:
        redis_url: Required, unless a client is given. ``redis://``, ``rediss://`` (TLS) and
            ``unix://`` as in redis-py, including the options of its connections;
            ``redis+sentinel://host,host/service/database`` and ``redis+cluster://host,host``,
            also with ``rediss``.
        redis_namespace: Separates applications on one server.
        redis_timeout: Seconds, or a duration: the limit for opening a connection and for a call.
            The default is five seconds to open a connection; the scheduler sets the deadline of
            calls.
        redis_pool_size: Maximum connections to one server, besides one that listens; by default
            10, at least 3.
        redis_wait_replicas: How many replicas must confirm every write, within a second.
        redis_client: A ``redis.asyncio.Redis`` or ``RedisCluster`` of the application. Address,
            credentials and options are taken from it. It is not used for commands, and stays
            open.

    Raises:
        ValueError: An option is not valid.
        StoreMisconfiguredError: The server refuses the credentials, is older than Redis 6.2, or
            holds data of another format.
        StoreUnavailableError: The server cannot be reached.
    """
    options = RedisOptions(
        redis_url,
        redis_namespace,
        seconds_of(redis_timeout),
        redis_pool_size,
        redis_wait_replicas,
        redis_client,
    )
    store = RedisStore(options)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def existing_namespace(
    *, redis_url: str | None = None, redis_namespace: str = "", **_ignored: Any
) -> AsyncIterator[RedisStore]:
    """As ``redis_repository``, and refuses a namespace in which no app was ever opened.

    Raises:
        NothingThereError: Nothing is kept there.
    """
    store = RedisStore(RedisOptions(redis_url, redis_namespace), creates=False)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


__all__ = ["RedisOptions", "RedisStore", "redis_repository"]
