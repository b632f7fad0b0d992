"""Reads a namespace of 1.x in Redis; the copy goes into another namespace.

Every task is a hash, which is found by scanning the keys of the database. The sorted sets contain
only the due times, which are in the hashes, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from pyncette.clock import Clock
from pyncette.errors import StoreError
from pyncette.migrate.copying import (
    Fingerprint,
    Layout,
    MigrationError,
    is_marked_finished,
    mark_begun,
    mark_finished,
)
from pyncette.migrate.legacy import LegacyRow, Parent
from pyncette.redis import RedisOptions, redis_repository
from pyncette.redis.connection import Command, Lane, Reply, translated
from pyncette.redis.layout import Names, decoded, encoded
from pyncette.redis.options import Target, place_of, seconds_of
from pyncette.redis.topology import Call, Topology, by_sentinels, fixed
from pyncette.store import Store

KEYS_LOOKED_AT: Final = 1_000
"""Keys that one command scans, including those of other applications."""

_FIELDS: Final = ("execute_after", "locked_until", "locked_by", "task_spec")


@asynccontextmanager
async def open_source(
    *,
    redis_url: str,
    redis_namespace: str = "",
    redis_timeout: Any = None,
    to_namespace: str | None = None,
    clock: Clock,
    **_ignored: Any,
) -> AsyncIterator[RedisSource]:
    """Connects to the server.

    Raises:
        ValueError: An option is not valid.
        StoreError: The server cannot be reached.
    """
    options = RedisOptions(redis_url, redis_namespace, seconds_of(redis_timeout))
    if to_namespace is None or to_namespace == redis_namespace:
        raise ValueError(
            "to_namespace must name the namespace that the tasks are copied to, another one than "
            f"{redis_namespace!r}, which stays as it is"
        )
    RedisOptions(redis_url, to_namespace)
    target = options.target()
    if target.kind == "cluster":
        raise ValueError("redis_url names a cluster: release 1.x could not run on one")
    topology = by_sentinels(target) if target.kind == "sentinel" else fixed(target)
    try:
        await topology.start()
        yield RedisSource(redis_url, options, to_namespace, topology, _place(target), clock)
    finally:
        await topology.close()


def _place(target: Target) -> str:
    if target.kind == "sentinel":
        return f"Redis service '{target.service}'"
    return place_of(target.addresses[0])


class RedisSource:
    """See ``pyncette.migrate.copying.Source``."""

    def __init__(
        self,
        url: str,
        options: RedisOptions,
        to_namespace: str,
        topology: Topology,
        server: str,
        clock: Clock,
    ) -> None:
        namespace = options.namespace
        self.place = f"namespace '{namespace}' of {server}"
        self.kept = self.place
        self._new_place = f"namespace '{to_namespace}' of {server}"
        self._options: dict[str, Any] = {
            "redis_url": url,
            "redis_namespace": to_namespace,
            "redis_timeout": options.timeout_s,
        }
        self._names = Names(namespace)
        self._head = encoded(f"pyncette:{namespace}:task:")
        self._server = server
        self._topology = topology
        self._clock = clock

    async def look(self) -> Layout:
        [found] = await self._ask([("EXISTS", self._names.legacy_static)])
        if not found:
            async for _ in self._keys(self._names.legacy_tasks):
                return Layout.LEGACY
            raise MigrationError(
                f"There are no tasks of pyncette 1.x in {self.place}. Name their namespace with "
                "redis_namespace."
            )
        return Layout.LEGACY

    async def rows(self) -> AsyncIterator[list[LegacyRow]]:
        async for keys in self._keys(self._names.legacy_tasks):
            replies = await self._ask([("HMGET", key, *_FIELDS) for key in keys], refusals=True)
            yield [self._row(key, reply) for key, reply in zip(keys, replies, strict=True)]

    def _row(self, key: bytes, reply: Reply) -> LegacyRow:
        name = decoded(key[len(self._head) :])
        if isinstance(reply, Exception):
            return LegacyRow(name, Parent.UNKNOWN, str(reply), None, None, None)
        execute_after, locked_until, locked_by, task_spec = (
            decoded(value) if value else None for value in reply
        )
        return LegacyRow(name, Parent.UNKNOWN, execute_after, locked_until, locked_by, task_spec)

    async def _keys(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """The keys that match. SCAN may return a key twice."""
        cursor: bytes = b"0"
        while True:
            [(cursor, keys)] = await self._ask(
                [("SCAN", cursor, "MATCH", pattern, "COUNT", KEYS_LOOKED_AT)]
            )
            if keys:
                yield keys
            if cursor == b"0":
                return

    @asynccontextmanager
    async def target(self) -> AsyncIterator[Store]:
        async with redis_repository(**self._options) as store:
            await mark_begun(store, self._new_place, self._clock.microseconds())
            yield store

    async def finish(self, copied: Fingerprint, records: int) -> bool:
        now = Fingerprint()
        async for rows in self.rows():
            now.add(rows)
        if now != copied:
            return False
        async with redis_repository(**self._options) as store:
            await mark_finished(store, self._clock.microseconds())
        return True

    async def drop_old(self) -> bool:
        async with redis_repository(**self._options) as store:
            if not await is_marked_finished(store):
                return False
        indexes = self._names.legacy_tasks.removesuffix(b"task:*") + b"index:*"
        await self._ask([("UNLINK", self._names.legacy_static)])
        for pattern in (indexes, self._names.legacy_tasks):
            async for keys in self._keys(pattern):
                await self._ask([("UNLINK", *keys)])
        return True

    async def _ask(self, commands: Sequence[Command], refusals: bool = False) -> list[Reply]:
        """The answers to commands, in one round trip; errors among them if that is allowed."""
        outcomes = await self._topology.perform(
            Lane.USERS, [Call(0, None, command) for command in commands]
        )
        replies: list[Reply] = []
        for outcome in outcomes:
            if isinstance(outcome, StoreError):
                if not refusals or "WRONGTYPE" not in str(outcome):
                    raise outcome
                replies.append(outcome)
            elif isinstance(outcome[0], Exception):
                raise translated(outcome[0], self._server)
            else:
                replies.append(outcome[0])
        return replies
