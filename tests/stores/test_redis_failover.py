"""The store in Redis while slots move and masters die, on a cluster and sentinels of its own."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from redis.asyncio import Redis
from tests.ports import reserved_port
from tests.stores.redis_place import Client
from tests.stores.redis_server import RedisServer, Sentinel, started

from pyncette import Context, Pyncette
from pyncette.clock import realtime
from pyncette.errors import StoreUnavailableError
from pyncette.redis import redis_repository
from pyncette.redis.layout import Names, slot_of
from pyncette.store import EVERYTHING, Applied, Claimed, Source, Store, Unknown, Write
from pyncette.store.record import ANY, DELETE
from pyncette.testing.suite.harness import LEASE, NOW, a_group, new

PATIENCE_S = 30.0
MASTERS = 3

T = TypeVar("T")


def run(main: Awaitable[None]) -> None:
    async def in_time() -> None:
        async with realtime.timeout(PATIENCE_S):
            await main

    asyncio.run(in_time())


async def until(look: Callable[[], Awaitable[bool]]) -> None:
    """Waits until something is so."""
    async with realtime.timeout(PATIENCE_S):
        while not await look():  # noqa: ASYNC110 - another process tells no event
            await asyncio.sleep(0.02)


async def answered(call: Callable[[], Awaitable[T]]) -> T:
    """Calls until it is answered."""
    async with realtime.timeout(PATIENCE_S):
        while True:
            try:
                return await call()
            except StoreUnavailableError:
                await asyncio.sleep(0.05)


class OwnCluster:
    """Three masters, and a replica of the first one."""

    def __init__(self, nodes: list[RedisServer]) -> None:
        self.nodes = nodes
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)

    def client(self, number: int) -> Client:
        return Redis(port=self.nodes[number].port, decode_responses=True)

    async def ready(self) -> None:
        """Waits until all of them agree."""
        clients = [self.client(number) for number in range(len(self.nodes))]

        async def agreed() -> bool:
            for client in clients:
                about = str(await client.execute_command("CLUSTER", "INFO"))
                if "cluster_state:ok" not in about:
                    return False
            role = await clients[MASTERS].execute_command("ROLE")
            return bool(role[3] == "connected")

        await until(agreed)
        for client in clients:
            await client.aclose()


class Node(RedisServer):
    """A node that knows from its configuration who else there is."""

    def __init__(self, directory: Path, *options: str) -> None:
        super().__init__(directory, *options)
        self.bus = reserved_port()
        self.id = secrets.token_hex(20)

    def command(self) -> list[str]:
        more = ("--cluster-enabled", "yes", "--cluster-port", f"{self.bus}")
        return [*super().command(), *more, "--cluster-config-file", "nodes.conf"]

    def know(self, nodes: list[Node]) -> None:
        """Writes down who is who: the last one is the replica of the first."""
        lines = []
        for number, node in enumerate(nodes):
            role, slots = f"slave {nodes[0].id} 0 0 1", ""
            if number < MASTERS:
                first = 16_384 * number // MASTERS
                slots = f" {first}-{16_384 * (number + 1) // MASTERS - 1}"
                role = f"master - 0 0 {number + 1}"
            myself = "myself," if node is self else ""
            address = f"127.0.0.1:{node.port}@{node.bus}"
            lines.append(f"{node.id} {address} {myself}{role} connected{slots}")
        lines.append(f"vars currentEpoch {MASTERS} lastVoteEpoch 0")
        (self.directory / "nodes.conf").write_text("\n".join(lines) + "\n")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[OwnCluster]:
    options = ["--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no"]
    options += ["--repl-diskless-sync-delay", "0"]
    nodes = [Node(tmp_path / f"node-{number}", *options) for number in range(MASTERS + 1)]
    for node in nodes:
        node.directory.mkdir()
    with ExitStack() as stack:
        for node in nodes:
            node.know(nodes)
            stack.enter_context(started(node))
        cluster = OwnCluster(list(nodes))
        asyncio.run(cluster.ready())
        yield cluster


def groups_of_each_node(cluster: OwnCluster) -> list[list[str]]:
    """Names of four groups on each master."""
    found: list[list[str]] = [[] for _ in range(MASTERS)]
    for number in range(200):
        group = f"reports:{number}"
        node = slot_of(Names("").of(group)[0]) * MASTERS // 16_384
        if len(found[node]) < 4:
            found[node].append(group)
    return found


def test_a_slot_that_moves_is_followed_and_every_record_is_claimed_once(
    cluster: OwnCluster,
) -> None:
    group = groups_of_each_node(cluster)[0][0]
    due, *_ = keys = Names("").of(group)
    slot = slot_of(due)

    async def main() -> None:
        here, there = cluster.client(0), cluster.client(1)
        here_id = await here.execute_command("CLUSTER", "MYID")
        there_id = await there.execute_command("CLUSTER", "MYID")
        seen: list[str] = []

        async def move(key: bytes) -> None:
            await here.execute_command("MIGRATE", "127.0.0.1", cluster.nodes[1].port, key, 0, 5_000)

        async def use(store: Store) -> None:
            claimed, _ = await store.claim([a_group(group)], 5, NOW, f"token {len(seen)}")
            assert len(claimed) == 5
            seen.extend(record.key for record in claimed)
            assert await store.get([claimed[0][:2]]) == [claimed[0]]
            page = await store.scan(group, EVERYTHING, None, 100)
            assert len(page.records) == 50 - (len(seen) // 5 - 1)
            removed = Write(group, claimed[0].key, DELETE, claimed[0].version, claimed[0].token)
            assert await store.write([removed], NOW) == [Applied(0)]

        async with redis_repository(redis_url=cluster.url) as store:
            await store.write([new(group, f"{number}") for number in range(50)], NOW)
            await use(store)
            await there.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", here_id)
            await here.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", there_id)
            await use(store)

            await move(keys[0])
            half_way = asyncio.ensure_future(use(store))
            await asyncio.sleep(0.02)
            assert not half_way.done()
            await move(keys[1])
            await move(keys[2])
            await half_way
            await use(store)

            await there.script_flush()
            await use(store)
            await there.execute_command("CLUSTER", "SETSLOT", slot, "NODE", there_id)
            await here.execute_command("CLUSTER", "SETSLOT", slot, "NODE", there_id)
            await use(store)
            await use(store)
            assert len(set(seen)) == len(seen) == 35
        await here.aclose()
        await there.aclose()

    run(main())


def test_keys_that_are_on_their_way_for_long_are_an_outage_and_nothing_is_done(
    cluster: OwnCluster,
) -> None:
    group = groups_of_each_node(cluster)[0][0]
    keys = Names("").of(group)

    async def main() -> None:
        here, there = cluster.client(0), cluster.client(1)
        async with redis_repository(redis_url=cluster.url) as store:
            await store.write([new(group, "a")], NOW)
            slot = slot_of(keys[0])
            for client, other, state in ((there, here, "IMPORTING"), (here, there, "MIGRATING")):
                other_id = await other.execute_command("CLUSTER", "MYID")
                await client.execute_command("CLUSTER", "SETSLOT", slot, state, other_id)
            port = cluster.nodes[1].port
            await here.execute_command("MIGRATE", "127.0.0.1", port, keys[0], 0, 5_000)
            with pytest.raises(StoreUnavailableError, match="keeps moving slot"):
                await store.write([Write(group, "a", DELETE, ANY)], NOW)
            assert await store.claim([a_group(group)], 5, NOW, "mine") == ([], [NOW])
            for client in (here, there):
                await client.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")
        await here.aclose()
        await there.aclose()

    run(main())


def test_a_master_that_dies_is_replaced_while_a_worker_runs(cluster: OwnCluster) -> None:
    app = Pyncette(
        repository_factory=redis_repository,
        redis_url=cluster.url,
        poll_interval=timedelta(seconds=0.2),
    )
    runs: dict[str, int] = {}

    @app.partitioned_task(12, lease_duration=timedelta(seconds=2))
    async def report(context: Context) -> None:
        runs[context.args["who"]] = runs.get(context.args["who"], 0) + 1

    names = [f"{number}" for number in range(24)]

    async def main() -> None:
        async with app.create() as context:
            await asyncio.gather(
                *(
                    context.schedule_task(report, name, interval=timedelta(seconds=0.2), who=name)
                    for name in names
                )
            )
            running = asyncio.ensure_future(context.run())

            async def all_ran() -> bool:
                return len(runs) == len(names)

            await until(all_ran)
            cluster.nodes[0].kill()
            runs.clear()
            # Whoever ran while its node was up has to run again on the one that took over.
            replica = cluster.client(MASTERS)

            async def took_over() -> bool:
                return bool((await replica.execute_command("ROLE"))[0] == "master")

            await until(took_over)
            await replica.aclose()
            runs.clear()
            await until(all_ran)
            context.shutdown()
            await running

    run(main())


def test_a_part_of_the_cluster_that_is_down_keeps_nobody_from_the_others(
    cluster: OwnCluster, caplog: pytest.LogCaptureFixture
) -> None:
    of_nodes = groups_of_each_node(cluster)
    groups = [group for of_node in of_nodes for group in of_node]

    async def main() -> None:
        async with redis_repository(redis_url=cluster.url) as store:
            await store.write([new(group, "a") for group in groups], NOW)
            cluster.nodes[2].kill()
            sources: list[Source] = [a_group(group) for group in groups]
            repeated = False

            async def claim() -> Claimed:
                nonlocal repeated
                repeated, again = True, repeated
                return await store.claim(sources, 100, NOW, "mine", repeated=again)

            claimed, next_due = await answered(claim)
            assert {record.group for record in claimed} == {*of_nodes[0], *of_nodes[1]}
            assert next_due == [
                NOW if source.group in of_nodes[2] else NOW + LEASE for source in sources
            ]
            told = [text for text in caplog.messages if "Nothing is claimed for now" in text]
            assert len(told) == 1
            asked: list[Source] = [a_group(of_nodes[2][0])]
            assert await store.claim(asked, 10, NOW, "mine") == ([], [NOW])
            batch = [new(group, "b") for group in groups]
            for group, result in zip(groups, await store.write(batch, NOW), strict=True):
                assert type(result) is (Unknown if group in of_nodes[2] else Applied)
            with pytest.raises(StoreUnavailableError):
                await store.write([new(of_nodes[2][0], "b")], NOW)
            with pytest.raises(StoreUnavailableError):
                await store.get([(of_nodes[2][0], "a")])
            # As it had no replica, it comes back empty, and is used again.
            cluster.nodes[2].start()

            async def write() -> object:
                return await store.write([new(of_nodes[2][0], "b")], NOW)

            assert await answered(write) == [Applied(NOW)]

    run(main())


def test_a_failover_by_sentinel_is_followed(tmp_path: Path) -> None:
    directories = [tmp_path / name for name in ("master", "replica", "sentinel")]
    for directory in directories:
        directory.mkdir()
    with ExitStack() as stack:
        master = stack.enter_context(started(RedisServer(directories[0])))
        of_replica = ("--replicaof", f"127.0.0.1 {master.port}", "--repl-diskless-sync-delay", "0")
        replica = stack.enter_context(started(RedisServer(directories[1], *of_replica)))

        async def main() -> None:
            following: Any = Redis(port=replica.port)

            async def linked() -> bool:
                role = await following.execute_command("ROLE")
                return bool(role[3] == b"connected")

            await until(linked)
            await following.aclose()
            lines = (
                f"sentinel monitor tasks 127.0.0.1 {master.port} 1",
                "sentinel down-after-milliseconds tasks 500",
                "sentinel failover-timeout tasks 3000",
            )
            sentinel = stack.enter_context(started(Sentinel(directories[2], *lines)))
            address = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/tasks/0"
            async with (
                redis_repository(redis_url=address, redis_wait_replicas=1) as careful,
                redis_repository(redis_url=address) as store,
            ):
                heard = asyncio.Event()
                await store.watch(["reports"], lambda groups: heard.set())
                await heard.wait()
                await careful.write([new("reports", "a")], NOW)
                before = await store.get([("reports", "a")])
                heard.clear()
                master.kill()

                async def read() -> object:
                    return await store.get([("reports", "a")])

                assert await answered(read) == before
                await heard.wait()
                claimed, _ = await store.claim([a_group()], 10, NOW, "mine")
                assert len(claimed) == 1
                with pytest.raises(StoreUnavailableError, match="0 of the 1 replicas"):
                    await careful.write([new("reports", "b")], NOW)

        run(main())
