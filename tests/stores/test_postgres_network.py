"""The store in PostgreSQL when the network, the server or a pooler in between gets in the way."""

from __future__ import annotations

import asyncio
import gc
import secrets
from collections.abc import Collection, Iterator
from datetime import timedelta
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.servers import url
from tests.stores.listening import listening
from tests.stores.postgres_place import place_at, run_sql
from tests.stores.wire import Wire

from pyncette import Context, Pyncette
from pyncette.clock import realtime
from pyncette.errors import StoreUnavailableError
from pyncette.postgres import connection as postgres_connection
from pyncette.postgres import postgres_repository
from pyncette.store import Applied
from pyncette.store.sql import listener, pool
from pyncette.testing.conformance import Place
from pyncette.testing.suite.harness import NOW, a_group, new

PATIENCE_S = 30.0


@pytest.fixture
def place() -> Iterator[Place]:
    with place_at(url("postgres")) as place:
        yield place


def test_a_call_on_a_half_open_connection_ends_with_its_deadline_and_the_next_works(
    place: Place,
) -> None:
    async def main() -> None:
        async with Wire(url("postgres")).open() as wire:
            options = {**place.configuration, "postgres_url": wire.url}
            async with postgres_repository(**options) as store:
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
        async with Wire(url("postgres")).open() as wire, realtime.timeout(PATIENCE_S):
            options = {**place.configuration, "postgres_url": wire.url}
            async with postgres_repository(**options) as store:
                await store.claim([a_group()], 0, NOW, "mine")
                wire.freeze()

    asyncio.run(main())


def test_a_statement_that_meets_a_session_ended_for_idleness_is_made_on_another_one(
    place: Place,
) -> None:
    """It was sent, and the server had not read it when it ended the session."""

    async def main() -> None:
        async with (
            Wire(url("postgres")).open() as wire,
            postgres_repository(**{**place.configuration, "postgres_url": wire.url}) as store,
            realtime.timeout(PATIENCE_S),
        ):
            await store.write([new("reports", "a")], NOW)
            [connection] = store._users._idle
            await connection.execute("SET idle_session_timeout = '100ms'")
            wire.freeze_requests()
            assert await store.write([new("reports", "b")], NOW) == [Applied(NOW)]
            assert connection.is_closed()

    asyncio.run(main())


def test_a_call_on_a_session_that_has_just_ended_is_made_on_another_one(place: Place) -> None:
    """What ended the session has arrived, and the end of the stream has not."""

    async def main() -> None:
        async with (
            Wire(url("postgres")).open() as wire,
            postgres_repository(**{**place.configuration, "postgres_url": wire.url}) as store,
        ):
            await store.get([("reports", "a")])
            wire.keep_open = True
            [connection] = store._users._idle
            pid = connection.get_server_pid()
            await asyncio.to_thread(run_sql, url("postgres"), f"SELECT pg_terminate_backend({pid})")
            async with realtime.timeout(PATIENCE_S):
                await wire.ended.wait()
                assert not connection.is_closed()
                assert await store.write([new("reports", "a")], NOW) == [Applied(NOW)]

    asyncio.run(main())


def test_a_call_that_may_have_arrived_is_not_repeated(place: Place) -> None:
    async def main() -> None:
        async with (
            Wire(url("postgres")).open() as wire,
            postgres_repository(**{**place.configuration, "postgres_url": wire.url}) as store,
        ):
            before = wire.connections
            wire.cut_before = b"INSERT INTO"
            with pytest.raises(StoreUnavailableError):
                await store.write([new("reports", "a")], NOW)
            assert wire.connections == before

    asyncio.run(main())


def test_a_listener_replaces_a_half_open_connection(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "PING_INTERVAL_S", 0.1)

    async def main() -> None:
        heard: asyncio.Queue[Collection[str] | None] = asyncio.Queue()
        async with Wire(url("postgres")).open() as wire:
            options = {**place.configuration, "postgres_listen_url": wire.url}
            async with postgres_repository(**options) as store, realtime.timeout(PATIENCE_S):
                await store.watch(["reports"], heard.put_nowait)
                assert await heard.get() is None
                wire.freeze()
                # Any may have come due while nothing was heard.
                assert await heard.get() is None
                assert wire.connections == 2
                await store.write([new("reports", "a")], NOW, wake=["reports", "others"])
                while (groups := await heard.get()) is None:
                    pass
                assert groups == {"reports"}

    asyncio.run(main())


def test_a_listener_whose_connection_the_server_ends_listens_again(place: Place) -> None:
    name = f"test-{secrets.token_hex(6)}"

    async def main() -> None:
        heard: asyncio.Queue[Collection[str] | None] = asyncio.Queue()
        options = dict(place.configuration)
        options["postgres_listen_url"] = f"{url('postgres')}?application_name={name}"
        async with postgres_repository(**options) as store, realtime.timeout(PATIENCE_S):
            await store.watch(["reports"], heard.put_nowait)
            assert await heard.get() is None
            connection = await asyncpg.connect(url("postgres"))
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE application_name = '{name}'"
            )
            await connection.close()
            assert await heard.get() is None

    asyncio.run(main())


def test_a_listener_that_reaches_nobody_says_so_once_and_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "RECONNECT_DELAY_MAX_S", 0.01)
    monkeypatch.setattr(listener, "RECONNECT_DELAY_INITIAL_S", 0.005)
    tries = 0

    async def main() -> None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal tries
            tries += 1
            writer.close()
            if tries == 4:
                enough.set()

        enough = asyncio.Event()
        async with listening(hang_up) as port:
            options = {
                **place.configuration,
                "postgres_listen_url": f"postgresql://user:hidden@127.0.0.1:{port}/db",
            }
            async with postgres_repository(**options) as store, realtime.timeout(PATIENCE_S):
                await store.watch(["reports"], lambda groups: None)
                await enough.wait()
                written = await store.write([new("reports", "a")], NOW, wake=["reports"])
                assert written == [Applied(NOW)]

    asyncio.run(main())
    [said] = [record.message for record in caplog.records if "notified" in record.message]
    assert said.startswith("Not notified for now, only polling: PostgreSQL at 127.0.0.1")


@pytest.mark.parametrize("payload", ["", "no json", "7", '["a", ["b"]]'])
def test_what_strangers_send_on_the_channel_wakes_everybody(place: Place, payload: str) -> None:
    async def main() -> None:
        heard: asyncio.Queue[Collection[str] | None] = asyncio.Queue()
        async with place.open() as store, realtime.timeout(PATIENCE_S):
            await store.watch(["reports"], heard.put_nowait)
            await heard.get()
            connection = await asyncpg.connect(url("postgres"))
            table = place.configuration["postgres_table_name"]
            await connection.execute("SELECT pg_notify($1, $2)", table, payload)
            await connection.close()
            assert await heard.get() is None

    asyncio.run(main())


def test_more_groups_than_a_notification_holds_wake_everybody(place: Place) -> None:
    async def main() -> None:
        heard: asyncio.Queue[Collection[str] | None] = asyncio.Queue()
        async with place.open() as store, realtime.timeout(PATIENCE_S):
            await store.watch(["reports"], heard.put_nowait)
            await heard.get()
            await store.write([], NOW, wake=[f"{n}{'ä' * 450}" for n in range(20)])
            assert await heard.get() is None

    asyncio.run(main())


def test_an_outage_is_ridden_out(place: Place) -> None:
    async def main() -> None:
        async with Wire(url("postgres")).open() as wire:
            options = {**place.configuration, "postgres_url": wire.url}
            async with postgres_repository(**options) as store:
                wire._server.close()
                for pump in wire._pumps:
                    pump.cancel()
                await asyncio.sleep(0)
                for _ in range(3):
                    with pytest.raises(StoreUnavailableError):
                        await store.write([new("reports", "a")], NOW)
                port = urlsplit(options["postgres_url"]).port
                wire._server = await asyncio.start_server(wire._accept, "127.0.0.1", port)
                assert await store.write([new("reports", "a")], NOW) == [Applied(NOW)]

    asyncio.run(main())


def test_a_pooler_that_keeps_no_sessions_is_noticed_and_not_listened_to() -> None:
    async def main(place: Place) -> None:
        async with place.open() as store:
            assert await store.watch(["reports"], lambda groups: None) is None

    with place_at(url("pgbouncer")) as place:
        asyncio.run(main(place))


def test_more_connections_than_the_pooler_has_share_them() -> None:
    async def main(place: Place) -> None:
        async with place.open() as store:
            for _ in range(3):
                keys = [secrets.token_hex(4) for _ in range(200)]
                answers = await asyncio.gather(
                    *(store.write([new("reports", key)], NOW) for key in keys),
                    *(store.get([("reports", key)]) for key in keys),
                )
                assert answers[:200] == [[Applied(NOW)]] * 200

    with place_at(url("pgbouncer"), postgres_pool_size=30) as place:
        asyncio.run(main(place))


def test_nothing_stays_behind_on_a_poolers_connections(place: Place) -> None:
    address = url("pgbouncer")

    async def main() -> None:
        options = {**place.configuration, "postgres_url": address}
        async with postgres_repository(**options) as store:
            await store.write([new("reports", "a")], NOW)
            await store.claim([a_group()], 1, NOW, "mine")

    asyncio.run(main())
    assert run_sql(address, "SELECT name FROM pg_prepared_statements WHERE name <> ''") == []


def test_a_worker_runs_at_once_what_another_process_schedules(place: Place) -> None:
    """It polls every five minutes only."""
    options = {**place.configuration, "repository_factory": postgres_repository}
    worker = Pyncette(poll_interval=timedelta(minutes=5), **options)
    web = Pyncette(poll_interval=timedelta(minutes=5), **options)
    ran: asyncio.Queue[str] = asyncio.Queue()

    @worker.dynamic_task(name="greet")
    async def greet(context: Context) -> None:
        ran.put_nowait(context.args["person"])

    @web.dynamic_task(name="greet")
    async def elsewhere(context: Context) -> None:
        raise AssertionError

    async def main() -> None:
        async with (
            realtime.timeout(PATIENCE_S),
            worker.create() as running,
            web.create() as scheduling,
        ):
            loop = asyncio.create_task(running.run())
            past = running.clock.now() - timedelta(seconds=1)
            await running.schedule_task(greet, "first", person="Alice", execute_at=past)
            assert await ran.get() == "Alice"
            await scheduling.schedule_task(elsewhere, "second", person="Bob", execute_at=past)
            assert await ran.get() == "Bob"
            running.shutdown()
            await loop

    asyncio.run(main())


def test_opening_that_is_cancelled_at_any_step_leaves_nothing_behind(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def opening() -> None:
        async with postgres_repository(**place.configuration):
            pass

    async def main() -> None:
        for steps in range(40):
            task = asyncio.create_task(opening())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or task.exception() is None
            for _ in range(5):
                await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            gc.collect()  # what was never retrieved is reported when it is collected

    asyncio.run(main())
    assert "never retrieved" not in caplog.text


@pytest.mark.parametrize("cancellations", [1, 2])
def test_connecting_to_a_server_that_does_not_answer_can_be_cancelled(
    cancellations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "CONNECT_GRACE_S", 0.05)

    async def main() -> None:
        asked = asyncio.Event()

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(1)
            asked.set()
            await reader.read()
            writer.close()

        async with listening(hang) as port:
            there = f"postgresql://user:password@127.0.0.1:{port}/database"
            connecting = asyncio.create_task(postgres_connection.connect(there, "here", named=True))
            await asked.wait()
            for _ in range(cancellations):
                connecting.cancel()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            async with realtime.timeout(PATIENCE_S):
                await asyncio.wait([connecting])
            assert connecting.cancelled()

    asyncio.run(main())
