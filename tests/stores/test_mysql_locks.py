"""What others' transactions do to the store in MySQL and MariaDB: nothing waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from tests.servers import url
from tests.stores.mysql_place import place_at

from pyncette.clock import realtime
from pyncette.mysql import MysqlOptions
from pyncette.mysql.connection import connect, query
from pyncette.store import Applied, Failed, Refused, Store, Write
from pyncette.store.record import ABSENT, ANY, DELETE, Patch, State
from pyncette.testing.conformance import Place
from pyncette.testing.suite.harness import LEASE, NOW, a_group, a_key, new, put, record_of

PATIENCE_S = 10.0
"""Most that a call may take: the longest deadline that it ever has."""

HEARTBEAT = Patch(NOW + 2 * LEASE, State.RUNNING, 1)


@pytest.fixture(params=["mysql", "mariadb"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place_at(url(request.param)) as place:
        yield place


class Other:
    """Somebody else's connection, with a transaction open."""

    def __init__(self, connection: Any, table: str) -> None:
        self.connection = connection
        self.table = table

    async def run(self, statement: str) -> Any:
        [answer] = await query(self.connection, statement.format(table=self.table))
        return answer

    async def waits_for_a_lock(self) -> None:
        """Returns once somebody waits for a lock on the table."""
        while True:
            waiting = await self.run(
                "SELECT COUNT(*) FROM information_schema.innodb_trx "
                "WHERE trx_state = 'LOCK WAIT' AND trx_query LIKE '%{table}%'"
            )
            if waiting[0][0]:
                return
            # What it shows is kept until nobody has looked for a tenth of a second.
            await realtime.sleep(0.15)


def beside(place: Place, test: Callable[[Store, Other], Awaitable[None]]) -> None:
    """Runs a test with a store and somebody else's open transaction."""

    async def main() -> None:
        table = place.configuration["mysql_table_name"]
        connection = await connect(
            MysqlOptions(mysql_url=place.configuration["mysql_url"]).address()
        )
        try:
            async with place.open() as store:
                await query(connection, "START TRANSACTION")
                async with realtime.timeout(PATIENCE_S):
                    await test(store, Other(connection, table))
        finally:
            connection.close()

    asyncio.run(main())


async def running(store: Store, *keys: str) -> list[int]:
    """Records that "mine" holds; their versions."""
    await store.write([new("reports", key) for key in keys], NOW)
    claimed = await store.claim([a_group()], len(keys), NOW, "mine")
    versions = {record.key: record.version for record in claimed.records}
    return [versions[key] for key in keys]


def test_a_claim_passes_over_a_row_that_somebody_holds(place: Place) -> None:
    async def test(store: Store, other: Other) -> None:
        await store.write([new("reports", "a"), new("reports", "b"), new("static", "c")], NOW)
        await other.run("SELECT * FROM {table} WHERE `key` IN ('a', 'c') FOR UPDATE")
        records, next_due = await store.claim([a_group(), a_key("c", "static")], 10, NOW, "mine")
        assert [record.key for record in records] == ["b"]
        assert next_due == [NOW, NOW]

    beside(place, test)


def test_a_row_that_somebody_holds_for_minutes_keeps_no_heartbeat_from_the_others(
    place: Place,
) -> None:
    async def test(store: Store, other: Other) -> None:
        held, free = await running(store, "held", "free")
        await other.run(
            "SELECT * FROM {table} WHERE `group` = 'reports' AND `key` = 'held' FOR UPDATE"
        )
        for _ in range(3):
            of_held, of_free = await store.write(
                [
                    Write("reports", "held", HEARTBEAT, held, "mine"),
                    Write("reports", "free", HEARTBEAT, free, "mine"),
                ],
                NOW,
            )
            # Refused with the record as it was: the writer builds its write again from it.
            assert isinstance(of_held, Refused)
            assert of_held.current is not None
            assert (of_held.current.version, of_held.current.token) == (held, "mine")
            assert isinstance(of_free, Applied)
            free = of_free.version
        await other.run("COMMIT")
        [after] = await store.write([Write("reports", "held", HEARTBEAT, held, "mine")], NOW)
        assert isinstance(after, Applied)

    beside(place, test)


def test_a_write_comes_back_to_a_row_that_is_released_soon(place: Place) -> None:
    async def test(store: Store, other: Other) -> None:
        [version] = await running(store, "a")
        await other.run("SELECT * FROM {table} FOR UPDATE")
        write = asyncio.ensure_future(
            store.write([Write("reports", "a", DELETE, version, "mine")], NOW)
        )
        await store.get([("reports", "a")])
        assert not write.done()
        await other.run("COMMIT")
        assert await write == [Applied(ABSENT)]

    beside(place, test)


def test_a_write_after_somebodys_change_is_refused_with_what_they_wrote(place: Place) -> None:
    async def test(store: Store, other: Other) -> None:
        [version] = await running(store, "a")
        await other.run("UPDATE {table} SET args = '1 changed', version = version + 1")
        write = asyncio.ensure_future(
            store.write([Write("reports", "a", HEARTBEAT, version, "mine")], NOW)
        )
        await store.get([("reports", "a")])
        await other.run("COMMIT")
        [result] = await write
        assert isinstance(result, Refused)
        assert result.current is not None
        assert result.current.args == "1 changed"

    beside(place, test)


@pytest.mark.parametrize("change", [put(), DELETE])
def test_a_forced_write_of_a_row_that_stays_held_fails_alone(place: Place, change: Any) -> None:
    async def test(store: Store, other: Other) -> None:
        await running(store, "a")
        await other.run("SELECT * FROM {table} FOR UPDATE")
        held, beside_it = await store.write(
            [Write("reports", "a", change, ANY), new("reports", "b")], NOW
        )
        assert isinstance(held, Failed)
        assert "'a' of 'reports' is locked" in str(held.error)
        assert isinstance(beside_it, Applied)

    beside(place, test)


def test_a_creation_waits_a_moment_only_for_the_same_one_by_somebody_else(place: Place) -> None:
    async def test(store: Store, other: Other) -> None:
        await other.run(
            "INSERT INTO {table} VALUES ('reports', 'a', 1, 1, NULL, 's', 0, '', '', '', DEFAULT)"
        )
        held, beside_it = await store.write([new("reports", "a"), new("reports", "b")], NOW)
        assert isinstance(held, Failed)
        assert beside_it == Applied(NOW)
        await other.run("COMMIT")
        [result] = await store.write([new("reports", "a")], NOW)
        assert isinstance(result, Refused)

    beside(place, test)


def test_a_creation_of_what_is_there_does_not_wait_for_who_changes_it(place: Place) -> None:
    async def test(store: Store, other: Other) -> None:
        await running(store, "a")
        await other.run("UPDATE {table} SET args = '1 changed'")
        [result] = await store.write([new("reports", "a")], NOW)
        assert isinstance(result, Refused)
        assert result.current == await record_of(store, "reports", "a")

    beside(place, test)


def test_a_creation_does_not_wait_for_who_deletes_it(place: Place) -> None:
    async def test(store: Store, other: Other) -> None:
        await running(store, "a")
        await other.run("DELETE FROM {table}")
        [result] = await store.write([new("reports", "a")], NOW)
        assert isinstance(result, Refused)

    beside(place, test)


def test_a_deadlock_is_tried_again(place: Place) -> None:
    async def test(store: Store, other: Other) -> None:
        insert = (
            "INSERT INTO {table} VALUES "
            "('{group}', '{key}', 1, 1, NULL, 's', 0, '', '', '', DEFAULT)"
        )
        # The transaction that wrote less is the one that the server gives up.
        for number in range(20):
            await other.run(insert.replace("{group}", "theirs").replace("{key}", f"{number}"))
        await other.run(insert.replace("{group}", "reports").replace("{key}", "b"))
        write = asyncio.ensure_future(store.write([new("reports", "a"), new("reports", "b")], NOW))
        await other.waits_for_a_lock()
        await other.run(insert.replace("{group}", "reports").replace("{key}", "a"))
        await other.run("COMMIT")
        for result in await write:
            assert isinstance(result, Refused)
            assert result.current is not None
            assert result.current.state == "s"

    beside(place, test)


def test_opening_does_not_wait_for_who_has_the_table_in_an_open_transaction(
    place: Place,
) -> None:
    async def test(store: Store, other: Other) -> None:
        await store.write([new("reports", "a")], NOW)
        await other.run("UPDATE {table} SET args = '1 changed'")
        async with place.open() as third:
            assert await third.write([new("reports", "b")], NOW) == [Applied(NOW)]

    beside(place, test)


def test_no_call_leaves_a_transaction_open(place: Place) -> None:
    """So that a process which is frozen or cut off between two trips holds no row."""

    async def test(store: Store, other: Other) -> None:
        [version] = await running(store, "a")
        await store.write([Write("reports", "a", HEARTBEAT, version, "mine")], NOW)
        await store.write([Write("reports", "a", HEARTBEAT, version, "mine")], NOW)
        await other.run("COMMIT")
        [[locked]] = await other.run(
            "SELECT COUNT(*) FROM (SELECT 1 FROM {table} FOR UPDATE NOWAIT) AS r"
        )
        assert locked == 1
        connections = (store._claims, store._outcomes, store._users)  # type: ignore[attr-defined]
        for connection in [c for pool in connections for c in pool._idle]:
            assert not connection.get_transaction_status()

    beside(place, test)


def test_flushes_in_opposite_order_all_come_through(place: Place) -> None:
    keys = [f"key {number:04}" for number in range(1_000)]

    async def flush(store: Store, order: list[str]) -> int:
        applied = 0
        while order:
            found = await store.get([("reports", key) for key in order])
            batch = [Write("reports", r.key, HEARTBEAT, r.version, "mine") for r in found if r]
            results = await store.write(batch, NOW)
            left = [w.key for w, r in zip(batch, results, strict=True) if isinstance(r, Refused)]
            applied += len(batch) - len(left)
            order = left
        return applied

    async def main() -> None:
        async with place.open() as store, place.open() as other:
            await store.write([new("reports", key, token="mine") for key in keys], NOW)
            for _ in range(3):
                flushes = flush(store, list(keys)), flush(other, keys[::-1])
                assert sum(await asyncio.gather(*flushes)) == 2_000

    asyncio.run(main())
