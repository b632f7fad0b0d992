"""The store on a cluster of which one node hangs: it accepts connections, and never answers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode
from tests.servers import url
from tests.stores.redis_place import new_namespace, place_at
from tests.stores.redis_relay import Relay

from pyncette.clock import realtime
from pyncette.errors import StoreUnavailableError
from pyncette.redis import redis_repository
from pyncette.redis.layout import Names, slot_of
from pyncette.redis.store import RedisStore
from pyncette.store import EVERYTHING, Applied, Refused, Source, Store, Unknown, Write
from pyncette.store.record import Patch
from pyncette.testing.conformance import Place
from pyncette.testing.suite.harness import LEASE, NOW, SECOND, a_group, a_key, new

PATIENCE_S = 30.0
SHORTEST_DEADLINE_S = 1.0
"""Of a call by a worker: half of its shortest lease, at least this."""


class Network:
    """A cluster behind relays, one in front of each master.

    Attributes:
        store: Reaches every node by its relay.
        direct: Reaches them without.
        hung: The relay of the node that is to hang.
        there: Four groups on that node.
        elsewhere: Four groups on others.
    """

    store: RedisStore
    direct: Store
    hung: Relay
    there: list[str]
    elsewhere: list[str]


@asynccontextmanager
async def network(place: Place) -> AsyncIterator[Network]:
    async with AsyncExitStack() as stack:
        made = Network()
        hosts = place.configuration["redis_url"].partition("://")[2].split(",")
        plain = RedisCluster(
            startup_nodes=[
                ClusterNode(host, int(port)) for host, port in (h.split(":") for h in hosts)
            ]
        )
        await plain.initialize()
        relays: dict[int, Relay] = {}
        for port in (int(node.port) for node in plain.get_nodes()):
            relays[port] = await stack.enter_async_context(Relay(port).open())
        namespace = place.configuration["redis_namespace"]
        owners = {
            group: int(
                plain.nodes_manager.get_node_from_slot(slot_of(Names(namespace).of(group)[0])).port
            )
            for group in (f"reports:{number}" for number in range(200))
        }
        home = plain.nodes_manager.get_node_from_slot(slot_of(Names(namespace).layout)).port
        await plain.aclose()
        port = next(port for port in owners.values() if port != home)
        made.hung = relays[port]
        made.there = [group for group, owner in owners.items() if owner == port][:4]
        made.elsewhere = [group for group, owner in owners.items() if owner != port][:4]
        behind = RedisCluster(
            startup_nodes=[ClusterNode("127.0.0.1", relay.port) for relay in relays.values()],
            address_remap=lambda address: (
                ("127.0.0.1", relays[address[1]].port) if address[1] in relays else address
            ),
        )
        made.direct = await stack.enter_async_context(place.factory(**place.configuration))
        made.store = await stack.enter_async_context(
            redis_repository(redis_client=behind, redis_namespace=namespace)
        )
        yield made
        made.hung.recover()


@pytest.fixture
def cluster() -> Iterator[Place]:
    with place_at(url("redis-cluster")) as place:
        yield place


def on_network(
    test: Callable[[Network], Awaitable[None]], place: Place, factory: object = None
) -> None:
    async def main() -> None:
        if factory is not None:
            asyncio.get_running_loop().set_task_factory(factory)  # type: ignore[arg-type]
        async with realtime.timeout(PATIENCE_S), network(place) as made:
            await test(made)

    asyncio.run(main())


def sources_of(groups: list[str]) -> list[Source]:
    return [a_group(group, share=10) for group in groups]


async def recovered(net: Network) -> None:
    """Waits until the node that hung is asked again."""
    net.hung.recover()
    while True:
        try:
            await net.store.get([(net.there[0], "a")])
        except StoreUnavailableError:
            await asyncio.sleep(0.05)
        else:
            return


@pytest.mark.parametrize("deaf", [True, False])
def test_a_node_that_hangs_does_not_hold_the_answers_of_others_until_the_deadline(
    cluster: Place, deaf: bool
) -> None:
    async def main(net: Network) -> None:
        groups = [*net.there, *net.elsewhere]
        await net.store.write([new(group, "a") for group in groups], NOW)
        net.hung.fall_silent(deaf=deaf)
        later = Patch(NOW + LEASE, "scheduled", 0)
        batch = [Write(group, "a", later, NOW) for group in groups]
        batch += [Write(group, "b", later, NOW) for group in net.elsewhere]
        for _ in range(2):
            async with realtime.timeout(SHORTEST_DEADLINE_S):
                results = await net.store.write(batch, NOW + 1)
            assert [type(result) for result in results[:4]] == [Unknown] * 4
            assert [type(result) for result in results[4:8]] in ([Applied] * 4, [Refused] * 4)
            assert [type(result) for result in results[8:]] == [Refused] * 4
        await recovered(net)
        results = await net.store.write(batch[:4], NOW + 1)
        # Repeated, they are made, or find that they were made before.
        records = await net.direct.get([(group, "a") for group in net.there])
        assert [record and record.due_at for record in records] == [NOW + LEASE] * 4
        if not deaf:
            assert [type(result) for result in results] == [Refused] * 4

    on_network(main, cluster)


def test_a_node_that_just_failed_fails_fast_and_is_asked_again_soon(cluster: Place) -> None:
    async def main(net: Network) -> None:
        await net.store.write([new(net.there[0], "a")], NOW)
        net.hung.fall_silent(deaf=True)
        with pytest.raises(StoreUnavailableError):
            await net.store.get([(net.there[0], "a")])
        accepted = net.hung.accepted
        for _ in range(20):
            with pytest.raises(StoreUnavailableError, match="a moment ago"):
                await net.store.get([(net.there[0], "a")])
        assert net.hung.accepted == accepted, "nothing was sent to it"
        await recovered(net)
        assert (await net.store.get([(net.there[0], "a")]))[0] is not None

    on_network(main, cluster)


@pytest.mark.parametrize("deaf", [True, False])
def test_what_a_claim_took_on_healthy_nodes_comes_although_another_hangs(
    cluster: Place, deaf: bool
) -> None:
    async def main(net: Network) -> None:
        groups = [*net.there, *net.elsewhere]
        await net.store.write([new(group, "a") for group in groups], NOW)
        net.hung.fall_silent(deaf=deaf)
        async with realtime.timeout(SHORTEST_DEADLINE_S):
            records, next_due = await net.store.claim(sources_of(groups), 100, NOW, "first")
        assert sorted(record.group for record in records) == sorted(net.elsewhere)
        assert next_due == [NOW] * 4 + [NOW + LEASE] * 4
        for record in records:
            assert await net.direct.get([record[:2]]) == [record]

    on_network(main, cluster)


@pytest.mark.parametrize("deaf", [True, False])
def test_leases_of_which_no_answer_told_are_taken_over_by_the_next_claim(
    cluster: Place, deaf: bool
) -> None:
    """Else these records would wait for the end of a lease that nobody holds."""

    async def main(net: Network) -> None:
        groups = [*net.there, *net.elsewhere]
        batch = [new(group, "a", due_at=NOW - 9) for group in groups]
        await net.store.write([*batch, new(net.there[0], "static")], NOW)
        sources = [*sources_of(groups[1:]), a_key("static", net.there[0])]
        await net.store.claim(sources, 0, NOW, "opens the connections")
        net.hung.fall_silent(deaf=deaf)
        first, _ = await net.store.claim(sources, 100, NOW, "first")
        assert len(first) == 4
        await recovered(net)
        taken = [await net.direct.get([(group, "a")]) for group in net.there[1:]]
        if not deaf:
            assert {record.token for [record] in taken if record} == {"first"}
        second, next_due = await net.store.claim(sources, 100, NOW + SECOND, "second")
        assert sorted(record[:2] for record in second) == sorted(
            [*((group, "a") for group in net.there[1:]), (net.there[0], "static")]
        )
        assert {record[4:7] for record in second} == {("second", "running", 1)}
        assert next_due == [NOW + SECOND + LEASE] * 3 + [NOW + LEASE] * 4 + [NOW + SECOND + LEASE]
        third, _ = await net.store.claim(sources, 100, NOW + 2 * SECOND, "third")
        assert third == []
        held = await net.direct.get([record[:2] for record in first])
        assert held == first, "what was answered stays with its holder"

    on_network(main, cluster)


def test_a_claim_that_only_a_node_that_hangs_could_answer_says_to_ask_again(
    cluster: Place,
) -> None:
    """Raising would have the worker repeat this claim alone, until the leases end."""

    async def main(net: Network) -> None:
        await net.store.write([new(group, "a") for group in net.there], NOW)
        net.hung.fall_silent(deaf=True)
        for token in ("first", "second"):
            async with realtime.timeout(SHORTEST_DEADLINE_S):
                claimed = await net.store.claim(sources_of(net.there), 100, NOW, token)
            assert claimed == ([], [NOW] * 4)

    on_network(main, cluster)


def test_a_repeated_claim_finds_on_each_node_what_it_took_there(cluster: Place) -> None:
    async def main(net: Network) -> None:
        groups = [*net.there, *net.elsewhere]
        await net.store.write([new(group, "a") for group in groups], NOW)
        taken, _ = await net.store.claim(sources_of(groups), 100, NOW, "first")
        net.hung.fall_silent(deaf=True)
        found, next_due = await net.store.claim(
            sources_of(groups), 100, NOW, "first", repeated=True
        )
        assert sorted(found) == sorted(one for one in taken if one.group in net.elsewhere)
        assert next_due == [NOW] * 4 + [NOW + LEASE] * 4
        await recovered(net)
        more, _ = await net.store.claim(sources_of(groups), 100, NOW + 1, "second")
        assert sorted(record.group for record in more) == sorted(net.there)
        assert {record.unfinished_attempts for record in more} == {1}

    on_network(main, cluster)


def test_a_lease_that_a_repeated_claim_found_after_all_is_not_ended(cluster: Place) -> None:
    async def main(net: Network) -> None:
        groups = [*net.there, *net.elsewhere]
        await net.store.write([new(group, "a") for group in groups], NOW)
        await net.store.claim(sources_of(groups), 0, NOW, "opens the connections")
        net.hung.fall_silent(deaf=False)
        await net.store.claim(sources_of(groups), 100, NOW, "first")
        await recovered(net)
        found, _ = await net.store.claim(sources_of(groups), 100, NOW, "first", repeated=True)
        assert len(found) == 8
        more, next_due = await net.store.claim(sources_of(groups), 100, NOW + 1, "second")
        assert (more, next_due) == ([], [NOW + LEASE] * 8)

    on_network(main, cluster)


def test_the_clock_is_read_and_wake_ups_are_sent_while_the_home_node_is_down(
    cluster: Place,
) -> None:
    """The node that has the namespace's own keys is one as any other."""

    async def main(net: Network) -> None:
        net.store._home = slot_of(
            Names(cluster.configuration["redis_namespace"]).of(net.there[0])[0]
        )
        net.hung.fall_silent(deaf=True)
        for _ in range(2):
            async with realtime.timeout(SHORTEST_DEADLINE_S):
                assert isinstance(await net.store.now(), int)
            await net.store.write([], NOW, ["reports"])
        assert (await net.store.scan(net.elsewhere[0], EVERYTHING, None, 10)).records == []

    on_network(main, cluster)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there is no eager task factory")
def test_a_cluster_is_served_by_tasks_that_start_eagerly(cluster: Place) -> None:
    async def main(net: Network) -> None:
        groups = [*net.there, *net.elsewhere]
        assert (
            await net.store.write([new(group, "a") for group in groups], NOW) == [Applied(NOW)] * 8
        )
        net.hung.fall_silent(deaf=True)
        for _ in range(2):
            records, _ = await net.store.claim(sources_of(groups), 100, NOW, new_namespace())
        assert records == []
        await recovered(net)
        records, _ = await net.store.claim(sources_of(net.there), 100, NOW, "mine")
        assert len(records) == 4

    on_network(main, cluster, asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
