"""Calls in transactions of the application: every driver, on every store that has transactions."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.orm import scoped_session, sessionmaker
from tests.servers import url
from tests.stores.clients import KINDS, Client, client
from tests.stores.every_store import place_of

from pyncette import Context, Pyncette, PyncetteContext, Task, acting_as
from pyncette.clock import realtime
from pyncette.engine.partitions import Fact, fact_identity, fact_record
from pyncette.errors import (
    NoTransactionError,
    StoreMisconfiguredError,
    StoreUnavailableError,
    TaskExistsError,
    TaskLockedException,
    TaskNotFoundError,
)
from pyncette.events import InstanceSteered, Steered
from pyncette.model import OnExisting
from pyncette.store import Write
from pyncette.store.record import ANY
from pyncette.testing.conformance import Place

LATER = datetime(2200, 1, 1, tzinfo=UTC)
LATEST = datetime(2201, 1, 1, tzinfo=UTC)


class Shop:
    """An app, and a table of its own beside the records."""

    def __init__(self, place: Place) -> None:
        self.app = Pyncette(place.factory, **place.configuration)

        @self.app.dynamic_task()
        async def remind(context: Context) -> None: ...

        @self.app.partitioned_task(partition_count=4)
        async def greet(context: Context) -> None: ...

        self.remind: Task = remind
        self.greet: Task = greet
        self.context: PyncetteContext

    async def schedule(
        self, client: Client, name: str, task: Task | None = None, **more: Any
    ) -> Any:
        options = {"execute_at": LATER, "connection": client.connection, **more}
        if client.blocking:
            return self.app.sync().schedule_task(task or self.remind, name, **options)
        return await self.context.schedule_task(task or self.remind, name, **options)

    async def call(self, client: Client, method: str, *arguments: Any) -> Any:
        if client.blocking:
            return getattr(self.app.sync(), method)(*arguments, connection=client.connection)
        call = getattr(self.context, method)
        return await call(*arguments, connection=client.connection)

    async def names(self, task: Task | None = None) -> list[str]:
        found = self.context.iter_tasks(task or self.remind)
        return sorted([state.task.name async for state in found])


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(kind).replace(" ", "-"))
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


@pytest.fixture
def place(kind: tuple[str, str], tmp_path: Path) -> Iterator[Place]:
    with place_of(kind[0], tmp_path) as place:
        yield place


@asynccontextmanager
async def shop_at(place: Place, kind: tuple[str, str]) -> AsyncIterator[tuple[Shop, Client]]:
    shop = Shop(place)
    try:
        async with shop.app.create() as shop.context, client(*kind, place) as held:
            if held.blocking:
                shop.app.sync().list_tasks(shop.remind)  # opened outside of a transaction
            yield shop, held
    finally:
        shop.app.sync().close()


def test_what_is_scheduled_in_a_transaction_is_there_when_it_is_committed(
    place: Place, kind: tuple[str, str]
) -> None:
    async def main() -> None:
        async with shop_at(place, kind) as (shop, held):
            told: list[InstanceSteered | Steered] = []
            shop.app.on_event(told.append, InstanceSteered, Steered)
            await held.begin()
            task = await shop.schedule(held, "a%b?$1:c", note='it\'s 100% \\ "ünïcode"')
            assert task.next_run == LATER
            with acting_as("alice"):
                await shop.schedule(held, "b", shop.greet)
            assert await shop.names() == []
            await held.commit()
            assert [(type(e), e.instance, e.by, e.in_transaction) for e in told] == [
                (InstanceSteered, "a%b?$1:c", None, True),
                (InstanceSteered, "b", "alice", True),
                (Steered, "b", "alice", True),
            ]
            assert await shop.names() == ["a%b?$1:c"]
            assert await shop.names(shop.greet) == ["b"]
            state = await shop.context.get_task(shop.remind, "a%b?$1:c")
            assert state is not None
            assert state.args == {"note": 'it\'s 100% \\ "ünïcode"'}

    asyncio.run(main())


def test_what_is_scheduled_in_a_transaction_vanishes_with_it(
    place: Place, kind: tuple[str, str]
) -> None:
    async def main() -> None:
        async with shop_at(place, kind) as (shop, held):
            await shop.context.schedule_task(shop.remind, "changed", execute_at=LATEST)
            await shop.context.schedule_task(shop.remind, "removed", execute_at=LATER)
            await held.begin()
            await shop.schedule(held, "new")
            await shop.schedule(held, "changed")
            await shop.call(held, "unschedule_task", shop.remind, "removed")
            await held.rollback()
            assert await shop.names() == ["changed", "removed"]
            state = await shop.context.get_task(shop.remind, "changed")
            assert state is not None
            assert state.scheduled_at == LATEST

    asyncio.run(main())


def test_a_transaction_sees_its_own_changes(place: Place, kind: tuple[str, str]) -> None:
    async def main() -> None:
        async with shop_at(place, kind) as (shop, held):
            await held.begin()
            await shop.schedule(held, "a", execute_at=LATEST)
            again = await shop.schedule(held, "a", execute_at=LATER)
            assert again.next_run == LATER
            forced = await shop.schedule(held, "a", execute_at=LATEST, force=True)
            assert forced.next_run == LATEST
            await shop.schedule(held, "b", force=True)
            assert await shop.call(held, "trigger", shop.remind, "b") == 1
            await shop.schedule(held, "c")
            await shop.call(held, "unschedule_task", shop.remind, "c")
            await shop.call(held, "unschedule_task", shop.remind, "never")
            await held.commit()
            assert await shop.names() == ["a", "b"]
            state = await shop.context.get_task(shop.remind, "a")
            assert state is not None
            assert state.scheduled_at == LATEST

    asyncio.run(main())


def test_a_refusal_leaves_the_transaction_as_it_was(place: Place, kind: tuple[str, str]) -> None:
    async def main() -> None:
        async with shop_at(place, kind) as (shop, held):
            await shop.context.schedule_task(shop.remind, "there", execute_at=LATEST)
            await held.begin()
            await shop.schedule(held, "first")
            with pytest.raises(TaskExistsError):
                await shop.schedule(held, "there", on_existing=OnExisting.RAISE)
            with pytest.raises(TaskNotFoundError):
                await shop.call(held, "trigger", shop.remind, "nowhere")
            kept = await shop.schedule(held, "there", on_existing=OnExisting.KEEP)
            assert kept.next_run == LATEST
            await shop.schedule(held, "last")
            await held.commit()
            assert await shop.names() == ["first", "last", "there"]

    asyncio.run(main())


def test_a_connection_outside_of_a_transaction_is_refused(
    place: Place, kind: tuple[str, str]
) -> None:
    if kind[1] not in ("asyncpg", "asyncpg pool", "sqlite3 by hand", "django"):
        pytest.skip("a statement begins a transaction by itself")

    async def main() -> None:
        async with shop_at(place, kind) as (shop, held):
            with pytest.raises(NoTransactionError, match="Begin a transaction first"):
                await shop.schedule(held, "a")
            assert await shop.names() == []

    asyncio.run(main())


# What depends on the database and not on the driver.

EACH = [
    ("postgres", "asyncpg"),
    ("mysql", "asyncmy"),
    ("mariadb", "asyncmy"),
    ("sqlite-file", "sqlite3"),
]
SERVERS = EACH[:3]


@pytest.mark.parametrize("kind", SERVERS, ids=lambda kind: kind[0])
def test_two_transactions_create_different_instances_at_the_same_time(
    place: Place, kind: tuple[str, str]
) -> None:
    async def main() -> None:
        async with shop_at(place, kind) as (shop, held), client(*kind, place) as other:
            for one in (held, other):
                await one.begin()
                await one.run("SELECT 1")
            for name in "ace":
                await shop.schedule(held, name)
                await shop.schedule(other, chr(ord(name) + 1))
                await shop.context.schedule_task(shop.remind, f"{name}0", execute_at=LATER)
            await held.commit()
            await other.commit()
            assert await shop.names() == ["a", "a0", "b", "c", "c0", "d", "e", "e0", "f"]

    asyncio.run(main())


@pytest.mark.parametrize("kind", SERVERS, ids=lambda kind: kind[0])
def test_an_instance_that_another_transaction_creates_is_waited_for_and_then_refused(
    place: Place, kind: tuple[str, str]
) -> None:
    async def main() -> None:
        async with shop_at(place, kind) as (shop, held), client(*kind, place) as other:
            shop.context._store.deadline_s = 0.3
            await held.begin()
            await shop.schedule(held, "a")
            await other.begin()
            with pytest.raises(StoreUnavailableError, match="locked by an open transaction"):
                await shop.schedule(other, "a")
            await shop.schedule(other, "b")
            await other.commit()
            await held.commit()
            assert await shop.names() == ["a", "b"]

    asyncio.run(main())


@pytest.mark.parametrize("kind", SERVERS, ids=lambda kind: kind[0])
def test_an_instance_that_another_transaction_changes_is_waited_for_and_then_refused(
    place: Place, kind: tuple[str, str]
) -> None:
    async def main() -> None:
        async with shop_at(place, kind) as (shop, held), client(*kind, place) as other:
            shop.context._store.deadline_s = 0.3
            await shop.context.schedule_task(shop.remind, "a", execute_at=LATEST)
            await held.begin()
            await shop.schedule(held, "a", execute_at=LATER)
            await other.begin()
            for force in (False, True):
                with pytest.raises(StoreUnavailableError, match="locked by an open transaction"):
                    await shop.schedule(other, "a", execute_at=LATER, note=1, force=force)
            await held.commit()
            await shop.schedule(other, "a", execute_at=LATER, note=2)
            await other.commit()
            state = await shop.context.get_task(shop.remind, "a")
            assert state is not None
            assert (state.scheduled_at, state.args) == (LATER, {"note": 2})

    asyncio.run(main())


@pytest.mark.parametrize("kind", SERVERS, ids=lambda kind: kind[0])
def test_a_call_decides_by_what_was_committed_since_the_transaction_began(
    place: Place, kind: tuple[str, str]
) -> None:
    async def main() -> None:
        async with shop_at(place, kind) as (shop, held):
            await shop.context.schedule_task(shop.remind, "a", execute_at=LATEST)
            await shop.context.schedule_task(shop.remind, "b", execute_at=LATEST)
            await held.begin()
            table = next(
                value for name, value in place.configuration.items() if "table_name" in name
            )
            await held.run(f"SELECT * FROM {table}")  # from here on, a snapshot on MySQL
            await shop.context.schedule_task(shop.remind, "a", execute_at=LATER, note=1)
            await shop.context.schedule_task(shop.remind, "c", execute_at=LATER)
            await shop.context.unschedule_task(shop.remind, "b")
            kept = await shop.schedule(held, "a", on_existing=OnExisting.KEEP)
            assert kept.next_run == LATER
            assert kept.extra_args == {"note": 1}
            await shop.schedule(held, "b")
            with pytest.raises(TaskExistsError):
                await shop.schedule(held, "c", on_existing=OnExisting.RAISE)
            await shop.schedule(held, "c", force=True, note=3)
            await held.commit()
            assert await shop.names() == ["a", "b", "c"]

    asyncio.run(main())


@pytest.mark.parametrize("kind", SERVERS, ids=lambda kind: kind[0])
def test_the_settings_of_the_session_stay_as_they_were(place: Place, kind: tuple[str, str]) -> None:
    asked, wanted = (
        ("SHOW lock_timeout", "SET lock_timeout = '1234ms'")
        if kind[0] == "postgres"
        else (
            "SELECT @@innodb_lock_wait_timeout",
            "SET SESSION innodb_lock_wait_timeout = 1234",
        )
    )

    async def main() -> None:
        async with shop_at(place, kind) as (shop, held), client(*kind, place) as other:
            await held.run(wanted)
            await held.begin()
            await shop.schedule(held, "a")
            await shop.schedule(held, "a", note=1)
            await other.begin()
            await other.run(wanted)
            shop.context._store.deadline_s = 0.1
            with pytest.raises(StoreUnavailableError):
                await shop.schedule(other, "a")
            for one in (held, other):
                [[value]] = map(tuple, await one.run(asked))
                assert "1234" in str(value)
            await held.rollback()
            await other.rollback()

    asyncio.run(main())


@pytest.mark.parametrize("kind", EACH, ids=lambda kind: kind[0])
def test_a_commit_wakes_the_workers_of_the_store(place: Place, kind: tuple[str, str]) -> None:
    if kind[0] in ("mysql", "mariadb"):
        pytest.skip("these servers notify nobody: the worker polls")

    async def main() -> None:
        app = Pyncette(place.factory, poll_interval=600, **place.configuration)
        ran = asyncio.Event()

        @app.dynamic_task()
        async def remind(context: Context) -> None:
            ran.set()

        async with (
            app.create() as context,
            app.running(),
            client(*kind, place) as held,
        ):
            await context.schedule_task(remind, "first", execute_in=timedelta(0))
            await ran.wait()  # the loop sleeps from now on
            ran.clear()
            await held.begin()
            await context.schedule_task(
                remind, "a", execute_in=timedelta(0), connection=held.connection
            )
            assert not ran.is_set()
            await held.commit()
            await ran.wait()

    asyncio.run(main())


@pytest.mark.parametrize("kind", EACH, ids=lambda kind: kind[0])
def test_a_running_instance_is_locked_as_outside_of_a_transaction(
    place: Place, kind: tuple[str, str]
) -> None:
    async def main() -> None:
        app = Pyncette(place.factory, poll_interval=0.05, **place.configuration)
        began, end = asyncio.Event(), asyncio.Event()

        @app.dynamic_task()
        async def remind(context: Context) -> None:
            began.set()
            await end.wait()

        async with app.running() as context, client(*kind, place) as held:
            await context.schedule_task(remind, "a", execute_in=timedelta(0))
            await began.wait()
            await held.begin()
            with pytest.raises(TaskLockedException):
                await context.schedule_task(
                    remind, "a", execute_at=LATER, connection=held.connection
                )
            await context.schedule_task(
                remind,
                "a",
                execute_at=LATER,
                on_existing=OnExisting.REPLACE,
                connection=held.connection,
            )
            await held.commit()
            end.set()
            while True:
                state = await context.get_task(remind, "a")
                if state is not None and state.scheduled_at == LATER:
                    break
                await realtime.sleep(0.01)

    asyncio.run(main())


@pytest.mark.parametrize("kind", EACH, ids=lambda kind: kind[0])
def test_an_instance_that_moves_to_other_partitions_is_found_in_a_transaction(
    place: Place, kind: tuple[str, str]
) -> None:
    async def main() -> None:
        async with shop_at(place, kind) as (shop, held):
            for number in range(8):
                await shop.context.schedule_task(shop.greet, f"i{number}", execute_at=LATEST)
            partitions = shop.context._worker.partitions
            fact = Fact(8, sources=(4,))
            await shop.context._store.write(
                [Write(*fact_identity("greet"), fact_record(fact), ANY)], 1
            )
            await partitions.read()
            await held.begin()
            for number in range(10):
                await shop.schedule(held, f"i{number}", shop.greet, note=number)
            await held.rollback()
            assert await shop.names(shop.greet) == [f"i{number}" for number in range(8)]
            await held.begin()
            for number in range(10):
                await shop.schedule(held, f"i{number}", shop.greet, note=number)
            await held.commit()
            assert await shop.names(shop.greet) == [f"i{number}" for number in range(10)]
            state = await shop.context.get_task(shop.greet, "i7")
            assert state is not None
            assert state.args == {"note": 7}

    asyncio.run(main())


@pytest.mark.parametrize("kind", EACH, ids=lambda kind: kind[0])
def test_a_connection_to_another_kind_of_database_is_refused(
    place: Place, kind: tuple[str, str], tmp_path: Path
) -> None:
    store, driver = ("postgres", "asyncpg") if kind[0] != "postgres" else ("mysql", "asyncmy")

    async def main() -> None:
        async with shop_at(place, kind) as (shop, _), client(store, driver, place) as other:
            await other.begin()
            with pytest.raises(TypeError, match="a transaction cannot span both"):
                await shop.schedule(other, "a")

    asyncio.run(main())


@pytest.mark.parametrize("kind", EACH, ids=lambda kind: kind[0])
def test_what_is_no_connection_for_this_call_is_refused(
    place: Place, kind: tuple[str, str]
) -> None:
    async def main() -> None:
        async with shop_at(place, kind) as (shop, held):
            with pytest.raises(TypeError, match="must be a connection of asyncpg, psycopg"):
                await shop.context.schedule_task(shop.remind, "a", connection=object())
            engine = sqlalchemy.create_engine("sqlite://")
            with pytest.raises(TypeError, match="not the pool or the engine"):
                await shop.context.schedule_task(shop.remind, "a", connection=engine)
            if not isinstance(held.connection, sqlite3.Connection):
                with pytest.raises(TypeError, match="belongs to an event loop"):
                    shop.app.sync().schedule_task(
                        shop.remind, "a", execute_at=LATER, connection=held.connection
                    )
            # As in 1.x.
            await shop.context.schedule_task(shop.remind, "b", execute_at=LATER, connection="x")
            state = await shop.context.get_task(shop.remind, "b")
            assert state is not None
            assert state.args == {"connection": "x"}

    asyncio.run(main())


def test_a_blocking_connection_is_refused_in_the_event_loop(tmp_path: Path) -> None:
    kind = ("postgres", "psycopg blocking")

    async def main(place: Place) -> None:
        async with shop_at(place, kind) as (shop, held):
            with pytest.raises(TypeError, match="would block the event loop"):
                await shop.context.schedule_task(
                    shop.remind, "a", execute_at=LATER, connection=held.connection
                )

    with place_of("postgres", tmp_path) as place:
        asyncio.run(main(place))


def test_a_database_without_the_records_is_named(tmp_path: Path) -> None:
    async def main(place: Place, kind: tuple[str, str], other: Place, message: str) -> None:
        async with shop_at(place, kind) as (shop, _), client(*kind, other) as held:
            await held.begin()
            if kind[0] == "postgres":
                await held.run("CREATE SCHEMA elsewhere; SET search_path = elsewhere")
            with pytest.raises(StoreMisconfiguredError, match=message):
                await shop.schedule(held, "a")
            await held.rollback()

    with place_of("sqlite-file", tmp_path) as place:
        other = Place(place.factory, {"sqlite_database": str(tmp_path / "other.db")})
        asyncio.run(main(place, ("sqlite-file", "sqlite3 by hand"), other, "has opened"))


def test_the_table_is_found_whatever_the_search_path_and_the_database_of_the_connection_are(
    tmp_path: Path,
) -> None:
    async def main(place: Place, kind: tuple[str, str], elsewhere: list[str]) -> None:
        async with shop_at(place, kind) as (shop, held):
            for statement in elsewhere:
                await held.run(statement)
            await held.begin()
            await shop.schedule(held, "a")
            await held.commit()
            assert await shop.names() == ["a"]

    with place_of("postgres", tmp_path) as place:
        asyncio.run(main(place, ("postgres", "asyncpg"), ["SET search_path = pg_catalog"]))
    for server in ("mysql", "mariadb"):
        with place_of(server, tmp_path) as place:
            asyncio.run(main(place, (server, "asyncmy"), ["USE information_schema"]))


def test_a_table_that_is_gone_is_named(tmp_path: Path) -> None:
    async def main(place: Place, kind: tuple[str, str]) -> None:
        name = next(value for name, value in place.configuration.items() if "table_name" in name)
        async with shop_at(place, kind) as (shop, held):
            await held.begin()
            await held.run(f"ALTER TABLE {name} RENAME TO {name}_gone")
            with pytest.raises(StoreMisconfiguredError, match=f"finds no table '.*{name}'"):
                await shop.schedule(held, "a")
            await held.run(f"ALTER TABLE {name}_gone RENAME TO {name}")
            await held.commit()

    for kind in SERVERS:
        with place_of(kind[0], tmp_path) as place:
            asyncio.run(main(place, kind))


@pytest.mark.parametrize("store", ["memory", "sqlite", "redis", "dynamodb"])
def test_a_store_without_transactions_says_so(store: str, tmp_path: Path) -> None:
    async def main(place: Place) -> None:
        shop = Shop(place)
        async with shop.app.create() as context:
            connection = sqlite3.connect(tmp_path / "mine.db")
            with pytest.raises(
                (TypeError, StoreMisconfiguredError),
                match=r"cannot take part in a transaction|no other connection can reach",
            ):
                await context.schedule_task(
                    shop.remind, "a", execute_at=LATER, connection=connection
                )
            connection.close()

    with place_of(store, tmp_path) as place:
        asyncio.run(main(place))


def test_a_file_that_another_connection_writes_to_is_waited_for_and_then_refused(
    tmp_path: Path,
) -> None:
    kind = ("sqlite-file", "sqlite3")

    async def main(place: Place) -> None:
        async with shop_at(place, kind) as (shop, held), client(*kind, place) as other:
            await shop.schedule(held, "a")
            other.connection.execute("PRAGMA busy_timeout = 50")
            with pytest.raises(StoreUnavailableError, match="BEGIN IMMEDIATE"):
                await shop.schedule(other, "b")
            await held.commit()
            await shop.schedule(other, "b")
            await other.commit()
            assert await shop.names() == ["a", "b"]

    with place_of("sqlite-file", tmp_path) as place:
        asyncio.run(main(place))


@pytest.mark.parametrize("dialect", ["postgresql+psycopg", "mysql+pymysql", "sqlite"])
def test_a_session_in_autocommit_is_refused(dialect: str, tmp_path: Path) -> None:
    store = {"postgresql+psycopg": "postgres", "mysql+pymysql": "mysql"}.get(dialect, "sqlite-file")
    with place_of(store, tmp_path) as place:
        shop = Shop(place)
        address = place.configuration.get("sqlite_database")
        rest = f"/{address}" if address else url(store).partition("://")[2]
        engine = sqlalchemy.create_engine(f"{dialect}://{rest}", isolation_level="AUTOCOMMIT")
        with shop.app.sync() as calls, engine.connect() as connection:
            with pytest.raises(NoTransactionError):
                calls.schedule_task(shop.remind, "a", execute_at=LATER, connection=connection)
            assert calls.list_tasks(shop.remind).tasks == []
        engine.dispose()


def test_the_objects_of_a_scope_are_unwrapped(tmp_path: Path) -> None:
    with place_of("sqlite-file", tmp_path) as place:
        shop = Shop(place)
        engine = sqlalchemy.create_engine(f"sqlite:///{place.configuration['sqlite_database']}")
        sessions = scoped_session(sessionmaker(engine))
        with shop.app.sync() as calls:
            calls.schedule_task(shop.remind, "a", execute_at=LATER, connection=sessions)
            assert calls.list_tasks(shop.remind).tasks == []
            sessions.commit()
            assert len(calls.list_tasks(shop.remind).tasks) == 1
        sessions.remove()
        engine.dispose()


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind[0] == "sqlite-file"], ids=lambda kind: kind[1]
)
def test_a_connection_that_returns_texts_as_bytes_keeps_that_and_can_be_used(
    place: Place, kind: tuple[str, str]
) -> None:
    async def main() -> None:
        shop = Shop(place)
        async with shop.app.create() as shop.context, client(*kind, place) as held:
            raw = held.connection
            if kind[1].startswith("sqlalchemy"):
                if "session" in kind[1]:
                    raw = raw.connection()
                    raw = raw if "blocking" in kind[1] else await raw
                raw = raw.connection if "blocking" in kind[1] else await raw.get_raw_connection()
                raw = raw.driver_connection
            elif kind[1] == "django":
                raw.ensure_connection()
                raw = raw.connection
            raw.text_factory = bytes
            await held.begin()
            await shop.schedule(held, "a")
            await shop.schedule(held, "a", on_existing=OnExisting.REPLACE)
            await held.commit()
            assert raw.text_factory is bytes
            raw.text_factory = str
            assert await shop.context.get_task(shop.remind, "a") is not None

    asyncio.run(main())
