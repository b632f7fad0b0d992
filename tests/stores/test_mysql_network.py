"""The store in MySQL and MariaDB when the network or the server gets in the way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.servers import url
from tests.stores.mysql_place import connected, place_at
from tests.stores.wire import Wire

from pyncette import Context, Pyncette
from pyncette.clock import realtime
from pyncette.errors import StoreUnavailableError
from pyncette.mysql import MysqlOptions, mysql_repository
from pyncette.mysql import connection as mysql_connection
from pyncette.mysql.connection import connect, query
from pyncette.store import EVERYTHING, Applied
from pyncette.store.sql import pool
from pyncette.store.sql.store import SqlStore
from pyncette.testing.conformance import Place
from pyncette.testing.suite.harness import NOW, a_group, new

PATIENCE_S = 30.0


@pytest.fixture(params=["mysql", "mariadb"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place_at(url(request.param)) as place:
        yield place


def test_a_call_on_a_half_open_connection_ends_with_its_deadline_and_the_next_works(
    place: Place,
) -> None:
    async def main() -> None:
        async with (
            Wire(place.configuration["mysql_url"]).open() as wire,
            mysql_repository(**{**place.configuration, "mysql_url": wire.url}) as store,
        ):
            await store.claim([a_group()], 0, NOW, "mine")
            await store.get([("reports", "a")])
            wire.freeze()
            for call in (store.claim([a_group()], 1, NOW, "mine"), store.get([("r", "a")])):
                with pytest.raises(TimeoutError):
                    async with realtime.timeout(0.2):
                        await call
            async with realtime.timeout(PATIENCE_S):
                await store.claim([a_group()], 1, NOW, "mine")
                await store.get([("reports", "a")])

    asyncio.run(main())


def test_closing_does_not_wait_for_a_server_that_has_vanished(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "CLOSE_TIMEOUT_S", 0.1)

    async def main() -> None:
        async with (
            Wire(place.configuration["mysql_url"]).open() as wire,
            realtime.timeout(PATIENCE_S),
            mysql_repository(**{**place.configuration, "mysql_url": wire.url}) as store,
        ):
            await store.get([("reports", "a")])
            wire.freeze()

    asyncio.run(main())


def test_a_call_whose_connection_the_server_ends_fails_and_the_next_works(place: Place) -> None:
    async def main() -> None:
        other = await connected(place.configuration["mysql_url"])
        async with place.open() as store:
            assert isinstance(store, SqlStore)
            await store.write([new("reports", "a")], NOW)
            ids: asyncio.Queue[int] = asyncio.Queue()

            async def sleep(connection: object) -> None:
                [[[number]]] = await query(connection, "SELECT CONNECTION_ID()")
                ids.put_nowait(number)
                await query(connection, "SELECT SLEEP(30)")

            sleeping = asyncio.ensure_future(store._claims.run(sleep))
            await query(other, f"KILL {await ids.get()}")
            with pytest.raises(StoreUnavailableError):
                async with realtime.timeout(PATIENCE_S):
                    await sleeping
            assert len((await store.claim([a_group()], 1, NOW, "mine")).records) == 1
        await other.ensure_closed()

    asyncio.run(main())


def test_connections_that_the_server_ended_while_idle_are_replaced(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            assert isinstance(store, SqlStore)
            await store.write([new("reports", "a")], NOW)
            await store.claim([a_group()], 0, NOW, "mine")
            idle = [*store._claims._idle, *store._users._idle]
            assert len(idle) == 2
            other = await connect(
                MysqlOptions(mysql_url=place.configuration["mysql_url"]).address()
            )
            for connection in idle:
                await query(other, f"KILL {connection.thread_id()}")
            await other.ensure_closed()
            async with realtime.timeout(PATIENCE_S):
                while any(map(mysql_connection.is_open, idle)):
                    await realtime.sleep(0.01)
            assert await store.get([("reports", "a")]) != [None]
            assert len((await store.claim([a_group()], 1, NOW, "mine")).records) == 1

    asyncio.run(main())


def test_a_connection_is_replaced_before_the_server_ends_it_for_idleness(place: Place) -> None:
    """Afterwards it would be unknown whether the server has executed what was just sent."""

    async def main() -> None:
        async with (
            Wire(place.configuration["mysql_url"]).open() as wire,
            mysql_repository(**{**place.configuration, "mysql_url": wire.url}) as store,
            realtime.timeout(PATIENCE_S),
        ):
            assert isinstance(store, SqlStore)
            await store.write([new("reports", "a")], NOW)
            [connection] = store._users._idle
            [[[wait_timeout_s]]] = await query(connection, "SELECT @@wait_timeout")
            assert mysql_connection._idle_s_max[connection] == wait_timeout_s * 0.75
            await query(connection, "SET SESSION wait_timeout = 1")
            mysql_connection._idle_s_max[connection] = 0.0
            wire.freeze_requests()
            assert await store.write([new("reports", "b")], NOW) == [Applied(NOW)]
            assert not mysql_connection.is_open(connection)

    asyncio.run(main())


def test_a_read_that_meets_a_session_ended_for_idleness_is_repeated_on_another_one(
    place: Place,
) -> None:
    async def main() -> None:
        async with (
            Wire(place.configuration["mysql_url"]).open() as wire,
            mysql_repository(**{**place.configuration, "mysql_url": wire.url}) as store,
            realtime.timeout(PATIENCE_S),
        ):
            assert isinstance(store, SqlStore)
            await store.write([new("reports", "a")], NOW)
            for read in (
                store.get([("reports", "a")]),
                store.scan("reports", EVERYTHING, None, 10),
            ):
                [connection] = store._users._idle
                await query(connection, "SET SESSION wait_timeout = 1")
                wire.freeze_requests()
                assert await read
            await store.claim([a_group()], 0, NOW, "mine")
            [connection] = store._claims._idle
            await query(connection, "SET SESSION wait_timeout = 1")
            wire.freeze_requests()
            assert await store.now() is not None

    asyncio.run(main())


def test_a_write_that_may_have_arrived_is_not_repeated(place: Place) -> None:
    async def main() -> None:
        async with (
            Wire(place.configuration["mysql_url"]).open() as wire,
            mysql_repository(**{**place.configuration, "mysql_url": wire.url}) as store,
        ):
            before = wire.connections
            wire.cut_before = b"INSERT INTO"
            with pytest.raises(StoreUnavailableError):
                await store.write([new("reports", "a")], NOW)
            assert wire.connections == before

    asyncio.run(main())


def test_the_loop_carries_on_when_its_server_has_ended_every_connection(place: Place) -> None:
    app = Pyncette(
        repository_factory=mysql_repository,
        poll_interval=timedelta(milliseconds=50),
        **place.configuration,
    )
    ran: list[str] = []

    @app.dynamic_task()
    async def note(context: Context) -> None:
        ran.append(context.args["text"])
        context.app_context.shutdown()

    async def main() -> None:
        other = await connected(place.configuration["mysql_url"])
        async with app.create() as context:
            loop = asyncio.ensure_future(context.run())
            await context.schedule_task(note, "later", interval=timedelta(days=1), text="later")
            store: Any = context._store._store
            for connections in (store._claims, store._outcomes, store._users):
                for connection in connections._idle:
                    await query(other, f"KILL {connection.thread_id()}")
            async with realtime.timeout(PATIENCE_S):
                while True:
                    try:
                        await context.schedule_task(
                            note, "now", execute_at=datetime(2026, 1, 1, tzinfo=UTC), text="now"
                        )
                        break
                    except StoreUnavailableError:
                        await realtime.sleep(0.01)
                await loop
        await other.ensure_closed()
        assert ran == ["now"]

    asyncio.run(main())
