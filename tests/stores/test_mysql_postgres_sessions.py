"""Sessions at the server, on all SQL servers: bounded in number, and gone when they should be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from tests.stores.sql_servers import SERVERS, SqlPlace, place_of_a_user, until

from pyncette.clock import realtime
from pyncette.errors import StoreUnavailableError
from pyncette.store import EVERYTHING, Applied
from pyncette.store.sql.store import SqlStore
from pyncette.testing.suite.harness import NOW, a_group, new

PATIENCE_S = 60.0
POOL_SIZE = 4


@pytest.fixture(params=SERVERS)
def place(request: pytest.FixtureRequest) -> Iterator[SqlPlace]:
    with place_of_a_user(request.param) as place:
        yield place


def opened(place: SqlPlace) -> Any:
    prefix = "mysql" if place.mysql else "postgres"
    return place.open(**{f"{prefix}_pool_size": POOL_SIZE})


LOCK = {
    "postgres": "BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE",
    "mysql": "LOCK TABLES {table} WRITE",
    "mariadb": "LOCK TABLES {table} WRITE",
}


async def locked(place: SqlPlace) -> Any:
    """A session that holds the whole table."""
    admin = await place.admin()
    for statement in LOCK[place.server].split("; "):
        await admin.run(statement)
    return admin


def test_calls_given_up_on_a_locked_table_never_have_more_sessions_than_the_pool(
    place: SqlPlace,
) -> None:
    async def main() -> None:
        admin = await place.admin()
        async with realtime.timeout(PATIENCE_S), opened(place) as store:
            # One more listens.
            most = POOL_SIZE
            holder = await locked(place)
            for _ in range(8):
                calls = [
                    store.claim([a_group()], 1, NOW, "mine"),
                    store.write([new("reports", "a")], NOW),
                    store.get([("reports", "a")]),
                    store.scan("reports", EVERYTHING, None, 1),
                ]
                tasks = [asyncio.ensure_future(call) for call in calls]
                await asyncio.wait(tasks, timeout=0.1)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                assert await place.sessions(admin) <= most
            holder.leave()
            # The store can be used as soon as the table is free.
            assert await store.write([new("reports", "b")], NOW) == [Applied(NOW)]
            assert (await store.claim([a_group()], 5, NOW, "mine")).records
        await until(lambda: _none(place, admin))
        admin.leave()

    asyncio.run(main())


async def _none(place: SqlPlace, admin: Any) -> bool:
    return await place.sessions(admin) == 0


def test_a_closed_store_opens_nothing(place: SqlPlace) -> None:
    async def main() -> None:
        admin = await place.admin()
        async with realtime.timeout(PATIENCE_S):
            async with opened(place) as store:
                await store.write([new("reports", "a")], NOW)
            await until(lambda: _none(place, admin))
            for call in (
                store.claim([a_group()], 1, NOW, "mine"),
                store.write([new("reports", "b")], NOW),
                store.get([("reports", "a")]),
                store.scan("reports", EVERYTHING, None, 1),
                store.now(),
            ):
                with pytest.raises(StoreUnavailableError, match="the store is closed"):
                    await call
            assert await place.sessions(admin) == 0
        admin.leave()

    asyncio.run(main())


async def calls_under_way(place: SqlPlace, store: SqlStore) -> list[asyncio.Future[Any]]:
    """Calls that wait for a table that is locked, for connections, or for their turn."""
    calls = [
        store.claim([a_group()], 1, NOW, "mine"),
        *(store.write([new("reports", f"{number}")], NOW) for number in range(5)),
        store.get([("reports", "a")]),
    ]
    return [asyncio.ensure_future(call) for call in calls]


@pytest.mark.parametrize("passes", [0, 1, 3, 200])
def test_calls_under_way_when_a_store_is_closed_fail_and_leave_no_session(
    place: SqlPlace, passes: int
) -> None:
    async def main() -> None:
        admin = await place.admin()
        async with realtime.timeout(PATIENCE_S):
            async with opened(place) as store:
                holder = await locked(place)
                calls = await calls_under_way(place, store)
                for _ in range(passes):
                    await asyncio.sleep(0)
            for answer in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(answer, StoreUnavailableError)
            await until(lambda: _none(place, admin))
            holder.leave()
        admin.leave()

    asyncio.run(main())


@pytest.mark.parametrize("passes", [0, 1, 2, 3, 5, 8])
@pytest.mark.parametrize("cancels", [1, 2])
def test_closing_that_is_cancelled_leaves_no_session(
    place: SqlPlace, passes: int, cancels: int
) -> None:
    async def main() -> None:
        admin = await place.admin()
        closing = asyncio.Event()

        async def life() -> None:
            async with opened(place) as store:
                await store.watch(["reports"], lambda groups: None)
                await store.claim([a_group()], 0, NOW, "mine")
                answers = [store.get([("reports", f"{number}")]) for number in range(3)]
                await asyncio.gather(*answers)
                closing.set()

        async with realtime.timeout(PATIENCE_S):
            living = asyncio.ensure_future(life())
            await closing.wait()
            for _ in range(cancels):
                for _ in range(passes):
                    await asyncio.sleep(0)
                living.cancel()
            await asyncio.wait([living])
            await until(lambda: _none(place, admin))
        admin.leave()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
