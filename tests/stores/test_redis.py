"""What only the store in Redis has: scripts, its index, slots, replicas, connections, wake-ups."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import pytest
from tests.servers import url
from tests.stores.redis_place import client_at, place_at
from tests.stores.redis_server import a_server
from tests.stores.wire import Wire

from pyncette import Context, Pyncette
from pyncette.clock import realtime
from pyncette.errors import StoreUnavailableError
from pyncette.redis import listener, redis_repository, topology
from pyncette.redis.layout import Names
from pyncette.store import (
    EVERYTHING,
    Applied,
    Counted,
    Filter,
    Group,
    Refused,
    Result,
    Source,
    Write,
)
from pyncette.store.record import ABSENT, ANY, DELETE, Patch, Put, Record, State
from pyncette.testing.conformance import Place
from pyncette.testing.suite.harness import LEASE, NOW, a_group, a_key, new, put

PATIENCE_S = 30.0


@pytest.fixture
def place() -> Iterator[Place]:
    with place_at(url("redis")) as place:
        yield place


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    # On a busy machine a node takes its time. These tests are not about nodes that hang.
    monkeypatch.setattr(topology, "NODE_GRACE_S", 30.0)
    with place_at(url("redis-cluster")) as place:
        yield place


def names_of(place: Place, group: str = "reports") -> tuple[bytes, bytes, bytes]:
    return Names(place.configuration["redis_namespace"]).of(group)


def run(main: Any) -> None:
    async def in_time() -> None:
        async with realtime.timeout(PATIENCE_S):
            await main

    asyncio.run(in_time())


# Scripts.


def test_scripts_that_the_server_forgot_are_sent_again(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store, client_at(url("redis")) as client:
            for number in range(2):
                await client.script_flush()
                assert await store.write([new("reports", f"{number}")], NOW) == [Applied(NOW)]
                await client.script_flush()
                [record] = (await store.claim([a_group()], 10, NOW, f"{number}")).records
                assert record.key == f"{number}"
                await client.script_flush()
                page = await store.scan("reports", EVERYTHING, None, 10)
                assert len(page.records) == number + 1

    run(main())


def test_a_call_that_is_not_answered_in_time_is_made_once(tmp_path: Path) -> None:
    """By itself the driver made such a call eleven times, and told of one error."""
    with a_server(tmp_path, "--enable-debug-command", "yes") as server:

        async def main() -> None:
            async with (
                redis_repository(redis_url=server.url, redis_timeout=0.3) as store,
                client_at(server.url) as client,
            ):
                names = [f"{number}" for number in range(30)]
                await store.write([new("reports", name) for name in names], NOW)
                await store.claim([a_group(share=1)], 1, NOW, "first")
                await client.config_resetstat()
                asleep = asyncio.ensure_future(client.execute_command("DEBUG", "SLEEP", "1"))
                await asyncio.sleep(0.1)
                with pytest.raises(StoreUnavailableError, match=r"(?i)time"):
                    await store.claim([a_group(share=10)], 10, NOW, "mine")
                await asleep
                claimed = await store.claim([a_group(share=10)], 10, NOW, "mine", repeated=True)
                records = (await store.scan("reports", EVERYTHING, None, 100)).records
                assert [record.token for record in records].count("mine") == 10
                assert len(claimed.records) == 10
                calls = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
                assert calls == 3, "the claim, its repetition by the caller, and the scan"

        run(main())


# Values, and what somebody made of them.


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "garbage",
        "\0\0\0\0\0\0\0",
        "12",
        f"{NOW}\0soon\0scheduled\0{0}\0-\0progress\0plan\0args",
        f"{NOW}\0-\0scheduled\0{0}\0-\0progress\0plan\0args",
        f"{10**17}\0{NOW}\0scheduled\0{0}\0-\0progress\0plan\0args",
        f"{NOW}\0{NOW}\0scheduled\0{10**12}\0-\0progress\0plan\0args",
        f"{NOW}\0{NOW}\0SCHEDULED\0{0}\0-\0progress\0plan\0args",
    ],
)
def test_a_value_that_somebody_broke_is_claimed_and_can_be_parked(
    place: Place, garbage: str
) -> None:
    async def main() -> None:
        async with place.open() as store, client_at(url("redis")) as client:
            await store.write([new("reports", "a"), new("reports", "b")], NOW)
            await client.hset(names_of(place)[1], "a", garbage)
            [read] = await store.get([("reports", "a")])
            assert read is not None
            assert (read.version, read.state, read.token) == (1, State.PARKED, None)
            refused = await store.write([Write("reports", "a", DELETE, 7)], NOW)
            assert refused == [Refused(read)]

            claimed = (await store.claim([a_group()], 10, NOW, "mine")).records
            [record] = [record for record in claimed if record.key == "a"]
            assert (record.token, record.due_at, record.unfinished_attempts) == (
                "mine",
                NOW + LEASE,
                1,
            )
            assert record.schedule == garbage.replace("\0", " ")
            park = Write("reports", "a", Patch(None, State.PARKED, 0), record.version, "mine")
            [result] = await store.write([park], NOW)
            assert isinstance(result, Applied)
            [parked] = await store.get([("reports", "a")])
            assert parked is not None
            assert (parked.state, parked.due_at, parked.schedule) == (
                "parked",
                None,
                record.schedule,
            )
            page = await store.scan("reports", Filter(frozenset({State.PARKED})), None, 10)
            assert page.records == [parked]

    run(main())


@pytest.mark.parametrize("claimed", [True, False])
def test_a_value_that_somebody_broke_is_no_longer_listed_in_its_old_state(
    place: Place, claimed: bool
) -> None:
    retrying, parked = (Filter(frozenset({state})) for state in (State.RETRYING, State.PARKED))

    async def main() -> None:
        async with place.open() as store, client_at(url("redis")) as client:
            waits = Put(NOW, State.RETRYING, None, 0, "plan", "args", "progress")
            await store.write([Write("reports", "a", waits, ABSENT)], NOW)
            assert await store.count("reports", retrying, 10) == Counted(1, True)
            await client.hset(names_of(place)[1], "a", "garbage")
            assert (await store.scan("reports", retrying, None, 10)).records == []
            if claimed:
                assert len((await store.claim([a_group()], 10, NOW, "mine")).records) == 1
            else:
                await store.write([Write("reports", "a", Patch(None, "parked", 0), ANY)], NOW)
            assert await store.count("reports", retrying, 10) == Counted(0, True)
            number = 0 if claimed else 1
            assert await store.count("reports", parked, 10) == Counted(number, True)

    run(main())


def test_a_value_that_lost_its_end_is_read_as_if_it_were_empty(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store, client_at(url("redis")) as client:
            await store.write([new("reports", "a")], NOW)
            await client.hset(names_of(place)[1], "a", f"{NOW}\0{NOW}\0scheduled\0{0}\0-\0half")
            [record] = (await store.claim([a_group()], 10, NOW, "mine")).records
            assert (record.progress, record.schedule, record.args) == ("half", "", "")
            change = Write("reports", "a", Patch(NOW, "retrying", 1, "whole"), record.version)
            await store.write([change], NOW)
            [changed] = await store.get([("reports", "a")])
            assert changed is not None
            assert (changed.token, changed.progress, changed.schedule) == ("mine", "whole", "")

    run(main())


def test_a_broken_value_can_be_patched_and_removed_at_the_version_that_was_read(
    place: Place,
) -> None:
    async def main() -> None:
        async with place.open() as store, client_at(url("redis")) as client:
            await store.write([new("reports", "a")], NOW)
            await client.hset(names_of(place)[1], "a", "broken")
            [result] = await store.write(
                [Write("reports", "a", Patch(NOW + 5, "retrying", 2, "p"), 1)], NOW
            )
            assert result == Applied(NOW)
            [record] = await store.get([("reports", "a")])
            expected = ("reports", "a", NOW + 5, NOW, None, "retrying", 2, "broken", "", "p")
            assert record == Record(*expected)
            await client.hset(names_of(place)[1], "a", "broken")
            assert await store.write([Write("reports", "a", DELETE, 1)], NOW) == [Applied(0)]

    run(main())


def test_a_key_that_is_no_text_can_be_claimed_and_removed(place: Place) -> None:
    async def main() -> None:
        due, records, keys = names_of(place)
        async with place.open() as store, client_at(url("redis")) as client:
            await client.hset(records, b"\xff\xfe", f"5\0{NOW}\0scheduled\0{0}\0-\0p\0plan\0args")
            await client.zadd(due, {b"\xff\xfe": NOW})
            await client.zadd(keys, {b":\xff\xfe": 0})
            [record] = (await store.claim([a_group()], 10, NOW, "mine")).records
            assert await store.get([("reports", record.key)]) == [record]
            page = await store.scan("reports", EVERYTHING, None, 10)
            assert page.records == [record]
            removed = await store.write(
                [Write("reports", record.key, DELETE, record.version, "mine")], NOW
            )
            assert removed == [Applied(0)]
            assert await client.exists(due, records, keys) == 0

    run(main())


def test_an_index_that_somebody_edited_is_put_right_by_a_claim(place: Place) -> None:
    async def main() -> None:
        due, records, _ = names_of(place)
        async with place.open() as store, client_at(url("redis")) as client:
            await store.write([new("reports", key) for key in "abcd"], NOW)
            await store.write([new("reports", "later", due_at=NOW + 9)], NOW)
            await client.hdel(records, "a")
            await store.write([Write("reports", "b", Patch(None, "paused", 0), ANY)], NOW)
            await client.zadd(due, {"b": NOW - 1, "later": NOW - 2, "nobody": NOW - 3})
            claimed, next_due = await store.claim([a_group(share=2)], 2, NOW, "mine")
            taken = {record.key for record in claimed}
            more, next_due = await store.claim([a_group()], 10, NOW, "mine")
            assert sorted(taken | {record.key for record in more}) == ["c", "d"]
            assert next_due == [NOW + 9]
            assert await client.zscore(due, "a") is None
            assert await client.zscore(due, "b") is None
            assert await client.zscore(due, "nobody") is None

    run(main())


def test_a_group_without_records_leaves_no_key(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store, client_at(url("redis")) as client:
            await store.write([new("reports", "a"), new("reports", "b", due_at=None)], NOW)
            assert await client.exists(*names_of(place)) == 3
            await store.write([Write("reports", key, DELETE, ANY) for key in "ab"], NOW)
            assert await client.exists(*names_of(place)) == 0

    run(main())


def test_scores_with_an_exponent_are_told_as_whole_microseconds(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            for due_at in (17 * 10**14, 10**15, 10**14, 123_456_789 * 10**7, -(10**15)):
                await store.write([Write("reports", "a", put(due_at=due_at), ANY)], NOW)
                assert (await store.claim([a_group()], 0, NOW, "t")).next_due == [due_at]

    run(main())


# Slots that lie apart.


def sources_of(count: int, share: int) -> list[Source]:
    return [Group(f"reports:{number}", LEASE, share, NOW) for number in range(count)]


async def leased(store: Any, sources: list[Source]) -> int:
    pages = [await store.scan(source.group, EVERYTHING, None, 1_000) for source in sources]
    return sum(record.state == "running" for page in pages for record in page.records)


@pytest.mark.parametrize(("share", "limit"), [(1, 10), (5, 10), (10, 100), (1, 64), (1, 0)])
def test_partitions_on_a_cluster_lease_no_more_than_there_is_room_for(
    cluster: Place, share: int, limit: int
) -> None:
    sources = sources_of(64, share)

    async def main() -> None:
        async with cluster.open() as store:
            batch = [new(source.group, f"{key}") for source in sources for key in range(3)]
            await store.write(batch, NOW)
            claimed, next_due = await store.claim(sources, limit, NOW, "mine")
            assert len(claimed) == min(limit, 64 * min(share, 3))
            assert await leased(store, sources) == len(claimed)
            again, _ = await store.claim(sources, limit, NOW, "mine", repeated=True)
            assert sorted(again) == sorted(claimed)
            assert await leased(store, sources) == len(claimed)
            assert all(due_at in (NOW, NOW + LEASE) for due_at in next_due)

    run(main())


def test_room_that_idle_partitions_leave_is_used_by_the_busy_one(cluster: Place) -> None:
    """With one wave, a busy partition beyond the first ten would get nothing at all."""
    sources = sources_of(64, 10)

    async def main() -> None:
        async with cluster.open() as store:
            await store.write([new("reports:63", f"{key}") for key in range(20)], NOW)
            claimed, next_due = await store.claim(sources, 10, NOW, "mine")
            assert len(claimed) == 10
            assert next_due == [None] * 63 + [NOW]

    run(main())


def test_a_batch_of_many_groups_on_a_cluster_is_answered_in_order(cluster: Place) -> None:
    async def main() -> None:
        async with cluster.open() as store:
            batch = [new(f"group {number % 50}", f"{number}") for number in range(500)]
            assert await store.write(batch, NOW) == [Applied(NOW)] * 500
            settled = [
                Write(write.group, write.key, DELETE, NOW if at % 3 else 7)
                for at, write in enumerate(batch)
            ]
            results = await store.write(settled, NOW, wake=["group 1"])
            assert [type(result) is Applied for result in results] == [
                bool(at % 3) for at in range(500)
            ]
            records = await store.get([(write.group, write.key) for write in batch])
            assert [record and record.key for record in records] == [
                None if at % 3 else f"{at}" for at in range(500)
            ]

    run(main())


# Replicas.


def test_a_write_that_no_replica_confirms_is_an_unknown_outcome() -> None:
    with place_at(url("redis"), redis_wait_replicas=1) as place:

        async def main() -> None:
            async with place.open() as store:
                with pytest.raises(StoreUnavailableError, match="0 of the 1 replicas"):
                    await store.write([new("reports", "a")], NOW)
                assert (await store.get([("reports", "a")]))[0] is not None

        run(main())


@pytest.mark.parametrize("server", ["redis-sentinel", "redis-cluster"])
def test_writes_that_replicas_confirm_are_applied(server: str) -> None:
    with place_at(url(server), redis_wait_replicas=1) as place:

        async def main() -> None:
            async with place.open() as store:
                batch = [new(f"group {number}", "a") for number in range(10)]
                assert await store.write(batch, NOW, ["group 1"]) == [Applied(NOW)] * 10
                refused = await store.write(batch, NOW)
                assert {type(result) for result in refused} == {Refused}

        run(main())


def test_a_repeated_write_that_was_made_before_waits_for_the_replicas_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an at-most-once run would start although its advance may be lost in a failover."""
    monkeypatch.setattr("pyncette.redis.store.WAIT_TIMEOUT_MS", 1_000)
    with ExitStack() as stack:
        for name in ("master", "replica"):
            (tmp_path / name).mkdir()
        master = stack.enter_context(a_server(tmp_path / "master"))
        following = ("--replicaof", f"127.0.0.1 {master.port}", "--repl-diskless-sync-delay", "0")
        replica = stack.enter_context(a_server(tmp_path / "replica", *following))
        options: dict[str, Any] = {"redis_url": master.url, "redis_wait_replicas": 1}
        creation = [new("reports", "a")]

        async def confirmed() -> list[Result]:
            while True:
                try:
                    async with redis_repository(**options) as store:
                        return await store.write(creation, NOW)
                except StoreUnavailableError:
                    await asyncio.sleep(0.05)

        async def main() -> None:
            async with redis_repository(**options) as store:
                await confirmed()
                await store.write([Write("reports", "a", DELETE, ANY)], NOW)
            replica.signal(SIGSTOP)
            for _ in range(2):
                with pytest.raises(StoreUnavailableError, match="0 of the 1 replicas"):
                    async with redis_repository(**options) as store:
                        await store.write(creation, NOW)
            replica.signal(SIGCONT)
            [result] = await confirmed()
            assert isinstance(result, Refused)

        run(main())


# Connections.


def test_500_concurrent_calls_of_users_are_answered(place: Place) -> None:
    app = Pyncette(repository_factory=place.factory, **place.configuration)

    @app.dynamic_task()
    async def report(context: Context) -> None:
        pass

    later = datetime.now(UTC) + timedelta(days=1)

    async def main() -> None:
        async with app.create() as context:
            names = [f"{number}" for number in range(500)]
            await asyncio.gather(
                *(context.schedule_task(report, name, execute_at=later) for name in names)
            )
            states = await asyncio.gather(*(context.get_task(report, name) for name in names))
            assert all(states)

    run(main())


@pytest.mark.parametrize("server", ["redis", "redis-cluster"])
def test_connections_are_bounded_and_claims_do_not_wait_for_users(
    server: str, tmp_path: Path
) -> None:
    with a_server(tmp_path) as own:
        address = own.url if server == "redis" else url(server)
        with place_at(address, redis_pool_size=4) as place:

            async def main() -> None:
                async with place.open() as store:
                    gets = [
                        asyncio.ensure_future(store.get([("reports", f"{number}")]))
                        for number in range(500)
                    ]
                    await asyncio.sleep(0)
                    await store.claim([a_group()], 10, NOW, "mine")
                    assert not all(get.done() for get in gets)
                    await asyncio.gather(*gets)
                    if server == "redis":
                        async with client_at(own.url) as client:
                            ours = len(await client.client_list()) - 1
                            assert ours <= 4

            run(main())


def test_a_restarted_server_is_found_again_by_the_first_call(tmp_path: Path) -> None:
    with a_server(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:

        async def main() -> None:
            async with redis_repository(redis_url=server.url) as store:
                await store.write([new("reports", "a")], NOW)
                await asyncio.gather(*(store.get([("reports", "a")]) for _ in range(20)))
                server.kill()
                with pytest.raises(StoreUnavailableError):
                    await store.get([("reports", "a")])
                server.start()
                records = await asyncio.gather(*(store.get([("reports", "a")]) for _ in range(20)))
                assert all(record is not None for [record] in records)
                claimed, _ = await store.claim([a_group()], 10, NOW, "mine")
                assert len(claimed) == 1
                async with client_at(server.url) as client:
                    await client.client_kill_filter(_type="normal", skipme=True)
                await asyncio.sleep(0.05)
                assert await store.get([("reports", "a")]) == claimed

        run(main())


def test_a_server_that_stopped_answering_is_given_up_on_and_found_again(place: Place) -> None:
    async def main() -> None:
        async with Wire(url("redis")).open() as wire:
            options = {**place.configuration, "redis_url": wire.url, "redis_timeout": 0.5}
            async with redis_repository(**options) as store:
                await store.write([new("reports", "a")], NOW)
                wire.freeze()
                with pytest.raises(StoreUnavailableError):
                    await store.write([new("reports", "b")], NOW)
                assert await store.write([new("reports", "c")], NOW) == [Applied(NOW)]

    run(main())


# Wake-ups.


class Heard:
    """What a watch was told."""

    def __init__(self) -> None:
        self.groups: list[Collection[str] | None] = []
        self._told = asyncio.Event()

    def __call__(self, groups: Collection[str] | None) -> None:
        self.groups.append(groups)
        self._told.set()

    async def next(self) -> Collection[str] | None:
        while not self.groups:
            self._told.clear()
            await self._told.wait()
        return self.groups.pop(0)


@pytest.mark.parametrize("server", ["redis", "valkey", "redis-sentinel", "redis-cluster"])
def test_a_watch_is_told_of_the_groups_that_concern_it(server: str) -> None:
    with place_at(url(server)) as place:

        async def main() -> None:
            async with place.open() as store, place.open() as other:
                heard = Heard()
                # A script that the server does not know yet is sent twice, and so is its message.
                await other.write([new("reports", "first")], NOW)
                await store.watch(["reports", "é😀", "c"], heard)
                assert await heard.next() is None, "listening has begun"
                await other.write([new("reports", "a")], NOW, ["reports", "others"])
                assert await heard.next() == {"reports"}
                await other.write([], NOW, ["others"])
                await other.write([], NOW, ["é😀"])
                assert await heard.next() == {"é😀"}
                await other.write([], NOW, [f"{number:0100}" for number in range(200)])
                assert await heard.next() is None, "too many to name"

        run(main())


def test_what_somebody_else_publishes_is_taken_for_anything(place: Place) -> None:
    async def main() -> None:
        channel = Names(place.configuration["redis_namespace"]).channel
        async with place.open() as store, client_at(url("redis")) as client:
            heard = Heard()
            await store.watch(["reports"], heard)
            await heard.next()
            for payload in (b"", b"\xff", b"[", b"7", b"[[]]", b'{"a":1}'):
                await client.publish(channel, payload)
                assert await heard.next() is None

    run(main())


def test_a_listener_that_lost_its_connection_listens_again(tmp_path: Path) -> None:
    with a_server(tmp_path) as server:

        async def main() -> None:
            async with (
                redis_repository(redis_url=server.url) as store,
                client_at(server.url) as client,
            ):
                heard = Heard()
                await store.watch(["reports"], heard)
                await heard.next()
                await client.client_kill_filter(_type="pubsub")
                assert await heard.next() is None, "something may have been missed"
                await store.write([], NOW, ["reports"])
                assert await heard.next() == {"reports"}

        run(main())


def test_a_listener_whose_connection_is_half_open_listens_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "PING_INTERVAL_S", 0.1)

    async def main() -> None:
        async with Wire(url("redis")).open() as wire:
            options = {**place.configuration, "redis_url": wire.url}
            async with redis_repository(**options) as store, place.open() as other:
                heard = Heard()
                await store.watch(["reports"], heard)
                await heard.next()
                await asyncio.sleep(0.5)
                assert not heard.groups, "a quiet connection that answers is kept"
                wire.freeze()
                assert await heard.next() is None
                await other.write([], NOW, ["reports"])
                assert await heard.next() == {"reports"}

    run(main())


def test_who_may_not_publish_writes_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with a_server(tmp_path) as server:

        async def main() -> None:
            async with client_at(server.url) as client:
                await client.execute_command(
                    "ACL", "SETUSER", "mute", "on", ">secret", "~*", "+@all", "resetchannels"
                )
            address = server.url.replace("//", "//mute:secret@")
            async with redis_repository(redis_url=address) as store:
                assert await store.write([new("reports", "a")], NOW, ["reports"]) == [Applied(NOW)]
                await store.watch(["reports"], Heard())
                await told.wait()

        told = asyncio.Event()
        handler = Telling(told)
        logging.getLogger("pyncette").addHandler(handler)
        try:
            run(main())
        finally:
            logging.getLogger("pyncette").removeHandler(handler)
        assert "only polling" in caplog.text
        assert "secret" not in caplog.text


class Telling(logging.Handler):
    """Sets an event when something is logged."""

    def __init__(self, event: asyncio.Event) -> None:
        super().__init__(logging.WARNING)
        self.emit = lambda record: event.set()  # type: ignore[method-assign]


def test_the_store_tells_the_time_of_its_server(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store, client_at(url("redis")) as client:
            before = await client.time()
            now = await store.now()
            after = await client.time()
            assert before[0] * 1_000_000 + before[1] <= now <= after[0] * 1_000_000 + after[1]

    run(main())


def test_thousands_of_keys_and_a_group_are_claimed_in_one_call(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            await store.write([new(":static", f"{number}") for number in range(2_500)], NOW)
            await store.write([new("reports", f"{number}") for number in range(2_500)], NOW)
            sources = [a_key(f"{number}", ":static") for number in range(2_500)]
            group = a_group(share=5_000)
            claimed, next_due = await store.claim([*sources, group], 5_000, NOW, "mine")
            assert len(claimed) == 5_000
            assert next_due == [NOW + LEASE] * 2_501

    run(main())
