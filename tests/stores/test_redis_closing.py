"""The store in Redis: closing leaves no socket, a value that cannot be kept stops itself alone."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import pytest
from tests.servers import url
from tests.stores.redis_place import Client, client_at, place_at
from tests.stores.redis_server import RedisServer, a_server

from pyncette.clock import realtime
from pyncette.errors import StoreUnavailableError
from pyncette.redis import layout, redis_repository
from pyncette.store import EVERYTHING, Applied, Failed, Refused, Write
from pyncette.store.record import ANY
from pyncette.testing.conformance import Place
from pyncette.testing.suite.harness import NOW, a_group, new, put

PATIENCE_S = 30.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with a_server(tmp_path, "--proto-max-bulk-len", "1mb") as server:
        yield server


@pytest.fixture
def place() -> Iterator[Place]:
    with place_at(url("redis")) as place:
        yield place


def run(main: Any, factory: Any = None) -> None:
    async def in_time() -> None:
        if factory is not None:
            asyncio.get_running_loop().set_task_factory(factory)
        async with realtime.timeout(PATIENCE_S):
            await main

    asyncio.run(in_time())


async def left_alone(client: Client) -> None:
    """Waits until the server has no other connection than this one."""
    while len(await client.client_list()) > 1:  # noqa: ASYNC110 - the server tells no event
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("cancellations", [1, 2, 3])
@pytest.mark.parametrize("passes", range(6))
def test_closing_that_is_cancelled_leaves_no_socket_open(
    server: RedisServer, cancellations: int, passes: int
) -> None:
    async def main() -> None:
        async with client_at(server.url) as client:
            closing = asyncio.Event()

            async def life() -> None:
                async with redis_repository(redis_url=server.url) as store:
                    heard = asyncio.Event()
                    await store.watch(["reports"], lambda groups: heard.set())
                    await heard.wait()
                    await asyncio.gather(*(store.get([("reports", f"{n}")]) for n in range(20)))
                    await store.claim([a_group()], 10, NOW, "mine")
                    closing.set()

            living = asyncio.ensure_future(life())
            await closing.wait()
            for _ in range(cancellations):
                for _ in range(passes):
                    await asyncio.sleep(0)
                living.cancel()
            await asyncio.wait([living])
            await left_alone(client)

    run(main())


def test_closing_ends_calls_under_way_on_a_server_that_hangs(server: RedisServer) -> None:
    """Also one that has not sent all of its request: its socket would wait for the server."""

    async def main() -> None:
        async with redis_repository(redis_url=server.url) as store:
            await store.get([("reports", "a")])
            server.signal(SIGSTOP)
            large = [new("reports", f"{n}", args="x" * 200_000) for n in range(200)]
            calls = [
                asyncio.ensure_future(call)
                for call in (store.write(large, NOW), store.claim([a_group()], 1, NOW, "mine"))
            ]
            await asyncio.sleep(0.1)
            await store.close()
            for call in calls:
                with pytest.raises(StoreUnavailableError):
                    await call
        server.signal(SIGCONT)
        async with client_at(server.url) as client:
            await left_alone(client)

    run(main())


def test_a_closed_store_opens_no_connection_for_late_calls(server: RedisServer) -> None:
    async def main() -> None:
        async with redis_repository(redis_url=server.url) as store:
            await store.write([new("reports", "a")], NOW)
        async with client_at(server.url) as client:
            before = (await client.info("stats"))["total_connections_received"]
            for call in (
                store.claim([a_group()], 10, NOW, "mine"),
                store.write([new("reports", "b")], NOW),
                store.write([], NOW, ["reports"]),
                store.get([("reports", "a")]),
                store.scan("reports", EVERYTHING, None, 10),
                store.now(),
                store.watch(["reports"], lambda groups: None),
            ):
                with pytest.raises(StoreUnavailableError, match="closed"):
                    await call
            await asyncio.sleep(0)
            assert (await client.info("stats"))["total_connections_received"] == before

    run(main())


def test_a_value_that_the_server_does_not_take_stops_itself_alone(server: RedisServer) -> None:
    async def main() -> None:
        async with redis_repository(redis_url=server.url) as store:
            sizes = {"small": 10, "large": 900_000, "too large": 1_100_000, "last": 10}
            batch = [new("reports", key, args="x" * size) for key, size in sizes.items()]
            batch += [new("others", f"{number}") for number in range(1_500)]
            results = await store.write(batch, NOW, ["reports"])
            [failed] = [result for result in results if not isinstance(result, Applied)]
            assert failed is results[2]
            assert isinstance(failed, Failed)
            assert isinstance(failed.error, ValueError)
            assert "'too large'" in str(failed.error)
            assert "proto-max-bulk-len" in str(failed.error)
            found = await store.get([("reports", key) for key in sizes])
            assert [record and len(record.args) for record in found] == [10, 900_000, None, 10]
            alone = await store.write([batch[2]], NOW)
            assert isinstance(alone[0], Failed)

    run(main())


def test_many_large_values_are_written_in_parts(server: RedisServer) -> None:
    async def main() -> None:
        async with redis_repository(redis_url=server.url) as store:
            batch = [new("reports", f"{n}", args="é" * 120_000) for n in range(100)]
            assert await store.write(batch, NOW) == [Applied(NOW)] * 100
            again = await store.write(batch, NOW)
            assert {type(result) for result in again} == {Refused}
            async with client_at(server.url) as client:
                calls = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
                assert calls >= 4

    run(main())


def test_a_value_that_no_server_may_keep_is_refused_here(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "VALUE_BYTES_MAX", 1_000_000)

    async def main() -> None:
        async with place.open() as store:
            texts = {"args": "x" * 1_000_000, "progress": "\ud800", "schedule": "\udcff"}
            batch = [
                Write("reports", name, put(**{name: text}), ANY)  # type: ignore[arg-type]
                for name, text in texts.items()
            ]
            batch += [new("reports", "\ud800"), new("reports", "good", args="é")]
            results = await store.write(batch, NOW)
            assert [type(result) for result in results] == [Failed] * 4 + [Applied]
            assert all(
                isinstance(result.error, ValueError)
                for result in results
                if isinstance(result, Failed)
            )
            page = await store.scan("reports", EVERYTHING, None, 10)
            assert [record.key for record in page.records] == ["good"]

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there is no eager task factory")
@pytest.mark.parametrize("server_name", ["redis", "redis-sentinel", "redis-cluster"])
def test_everything_works_with_tasks_that_start_eagerly(server_name: str) -> None:
    with place_at(url(server_name)) as place:

        async def main() -> None:
            async with place.open() as store, place.open() as other:
                heard: asyncio.Queue[Any] = asyncio.Queue()
                await store.watch(["reports"], heard.put_nowait)
                assert await heard.get() is None
                batch = [new(f"reports:{number}", "a") for number in range(20)]
                assert await other.write(batch, NOW, ["reports"]) == [Applied(NOW)] * 20
                assert await heard.get() == {"reports"}
                sources = [a_group(f"reports:{number}", share=2) for number in range(20)]
                records, _ = await store.claim(sources, 100, NOW, "mine")
                assert len(records) == 20
                found = await store.get([record[:2] for record in records])
                assert found == records

        run(main(), asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
