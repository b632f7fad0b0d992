"""The stores that are measured: how to open each one empty, and what its floor is.

The stores on a server are measured where a variable tells its URL, PYNCETTE_TEST_POSTGRES_URL and
so on; `tools/servers` starts the servers and sets the variables.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, Final, NamedTuple

from draining import repository_of

Options = dict[str, Any]
"""What a store is opened with; can be handed to another process as JSON."""

SUFFIXES: Final = ("", "_runs", "_run_totals")
"""The ends of the names of the tables in an SQL database; the last two are of the run history."""


class BenchStore(NamedTuple):
    """A store to measure.

    Attributes:
        factory: Module and name of the repository factory; empty for the store in memory.
        floor: How fast the bare parts are: runs per second, given a number of runs.
        options: Options that open it empty.
        clear: Removes what was put there.
        runs: How many runs take a second or so.
        shared: Whether another process can open it, too.
    """

    factory: str
    floor: Callable[[int], Awaitable[float]]
    options: Callable[[str], Options]
    clear: Callable[[Options], Coroutine[Any, Any, None]] | None
    runs: int
    shared: bool

    @contextmanager
    def emptied(self) -> Iterator[Options]:
        """Options that open the store empty; what is put there is removed afterwards."""
        with tempfile.TemporaryDirectory() as directory:
            options = self.options(directory)
            try:
                yield options
            finally:
                if self.clear is not None:
                    asyncio.run(self.clear(options))

    def repository(self) -> Callable[..., AbstractAsyncContextManager[Any]]:
        """A factory of the store."""
        return repository_of(self.factory)


async def _floor_of_asyncio(runs: int) -> float:
    """Bare asyncio: a task for each run decodes its arguments and queues an outcome."""
    outcomes: list[int] = []

    async def run(number: int) -> None:
        json.loads('{"user": 1}')
        outcomes.append(number)

    began = perf_counter()
    for _ in range(runs // 100):
        tasks = [asyncio.create_task(run(number)) for number in range(100)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(outcomes) == len(tasks)
        outcomes.clear()
    return runs / (perf_counter() - began)


def _sqlite_floor(file: bool, synchronous: str) -> Callable[[int], Awaitable[float]]:
    async def measured(runs: int) -> float:
        from floor_sqlite import floor

        with tempfile.TemporaryDirectory() as directory:
            return floor(f"{directory}/floor.db" if file else ":memory:", synchronous, runs)

    return measured


def _floor_at(name: str, url: str) -> Callable[[int], Awaitable[float]]:
    async def measured(runs: int) -> float:
        rate: float = await import_module(f"floor_{name}").floor(url, runs)
        return rate

    return measured


async def _clear_postgres(options: Options) -> None:
    import asyncpg

    connection = await asyncpg.connect(options["postgres_url"])
    for suffix in SUFFIXES:
        await connection.execute(f"DROP TABLE IF EXISTS {options['postgres_table_name']}{suffix}")
    await connection.close()


async def _clear_redis(options: Options) -> None:
    from redis.asyncio import Redis

    client: Any = Redis.from_url(options["redis_url"])
    async for key in client.scan_iter(match=f"*{options['redis_namespace']}*", count=1_000):
        await client.unlink(key)
    await client.aclose()


async def _clear_mysql(options: Options) -> None:
    from pyncette.mysql import MysqlOptions
    from pyncette.mysql.connection import connect, query

    connection = await connect(MysqlOptions(mysql_url=options["mysql_url"]).address())
    # Without notes that there is no such table, which the driver would print as warnings.
    await query(connection, "SET SESSION sql_notes = 0")
    for suffix in SUFFIXES:
        await query(connection, f"DROP TABLE IF EXISTS {options['mysql_table_name']}{suffix}")
    await connection.ensure_closed()


async def _clear_dynamodb(options: Options) -> None:
    from pyncette.dynamodb.requests import open_client

    region, endpoint = options["dynamodb_region_name"], options["dynamodb_endpoint"]
    async with open_client(region, endpoint, 30) as client:
        await client.delete_table(TableName=options["dynamodb_table_name"])
        with suppress(client.exceptions.ResourceNotFoundException):
            await client.delete_table(TableName=f"{options['dynamodb_table_name']}-runs")


def _server(
    url: str, prefix: str, place: str, clear: Callable[[Options], Coroutine[Any, Any, None]]
) -> BenchStore:
    def options(_: str) -> Options:
        return {f"{prefix}_url": url, f"{prefix}_{place}": f"bench_{secrets.token_hex(6)}"}

    factory = f"pyncette.{prefix}:{prefix}_repository"
    return BenchStore(factory, _floor_at(prefix, url), options, clear, 20_000, True)


def _dynamodb(url: str) -> BenchStore:
    region = os.environ.setdefault("AWS_DEFAULT_REGION", "eu-west-1")
    # DynamoDB Local takes any.
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "bench")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "bench")

    def options(_: str) -> Options:
        return {
            "dynamodb_endpoint": url,
            "dynamodb_region_name": region,
            "dynamodb_table_name": f"bench_{secrets.token_hex(6)}",
        }

    factory = "pyncette.dynamodb:dynamodb_repository"
    return BenchStore(factory, _floor_at("dynamodb", url), options, _clear_dynamodb, 2_000, True)


def _sqlite(file: bool, synchronous: str) -> BenchStore:
    def options(directory: str) -> Options:
        database = f"{directory}/bench.db" if file else ":memory:"
        return {"sqlite_database": database, "sqlite_synchronous": synchronous}

    factory = "pyncette.sqlite:sqlite_repository"
    return BenchStore(factory, _sqlite_floor(file, synchronous), options, None, 50_000, file)


def _known() -> dict[str, BenchStore]:
    stores = {
        "memory": BenchStore("", _floor_of_asyncio, lambda _: {}, None, 100_000, False),
        "sqlite-memory": _sqlite(False, "NORMAL"),
        "sqlite-normal": _sqlite(True, "NORMAL"),
        "sqlite-full": _sqlite(True, "FULL"),
    }
    for name, prefix, place, clear in (
        ("postgres", "postgres", "table_name", _clear_postgres),
        ("redis", "redis", "namespace", _clear_redis),
        ("mysql", "mysql", "table_name", _clear_mysql),
        ("mariadb", "mysql", "table_name", _clear_mysql),
    ):
        if url := os.environ.get(f"PYNCETTE_TEST_{name.upper()}_URL"):
            stores[name] = _server(url, prefix, place, clear)
    if url := os.environ.get("PYNCETTE_TEST_DYNAMODB_URL"):
        stores["dynamodb"] = _dynamodb(url)
    return stores


# The floors lie beside this file.
sys.path.insert(0, str(Path(__file__).parent))

STORES: Final = _known()
"""The stores that can be measured here, by name."""
