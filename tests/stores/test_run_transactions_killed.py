"""Effects that happen exactly once: though a worker is killed before any of the statements of its
transaction, and though the answer to the commit, or the commit itself, is lost."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests import forked
from tests.servers import url
from tests.stores.clients import client
from tests.stores.every_store import place_of
from tests.stores.wire import Wire

from pyncette import Context, DeadlineExceededError, LeaseLostException, Pyncette, Retry
from pyncette.testing.conformance import Place

DRIVERS = {
    "postgres": "asyncpg",
    "mysql": "asyncmy",
    "mariadb": "asyncmy",
    "sqlite-file": "sqlite3",
}
PAST = datetime(2026, 1, 1, tzinfo=UTC)
MOMENTS_MAX = 40

# A worker that kills itself before the statement of its number. It ends when nothing is left.
LOADED = {
    "sqlite-file": (),
    "postgres": ("pyncette.postgres",),
    "mysql": ("pyncette.mysql",),
    "mariadb": ("pyncette.mysql",),
}
"""What the program of a store would import each time."""

PROGRAM = """
import asyncio, json, os, signal, sys
from datetime import timedelta
from pyncette import Pyncette
from pyncette.connections import links

STORE, TABLE, CONFIGURATION, MOMENT = (*sys.argv[1:3], json.loads(sys.argv[3]), int(sys.argv[4]))
reached = 0


def moment():
    global reached
    reached += 1
    if reached == MOMENT:
        os.kill(os.getpid(), signal.SIGKILL)


def before(method):
    async def call(*arguments):
        moment()
        answer = await method(*arguments)
        if method.__name__ == "commit":
            moment()
        return answer

    return call


for link in (links.AsyncLink, links.BlockingLink):
    for name in ("begin", "run", "commit"):
        setattr(link, name, before(getattr(link, name)))

app = Pyncette(
    url=None if STORE == "sqlite-file" else CONFIGURATION.pop(STORE),
    poll_interval=0.05,
    concurrency_limit=1,
    **CONFIGURATION,
)


async def execute(connection, statement):
    moment()
    if STORE == "sqlite-file":
        connection.execute(statement)
    elif STORE == "postgres":
        await connection.execute(statement)
    else:
        async with connection.cursor() as cursor:
            await cursor.execute(statement)


@app.dynamic_task(lease_duration=timedelta(seconds=1))
async def pay(context):
    global reached
    reached = 0
    async with context.transaction() as connection:
        await execute(connection, f"INSERT INTO {TABLE} VALUES ('{context.task.name}', 'debit')")
        await execute(connection, f"INSERT INTO {TABLE} VALUES ('{context.task.name}', 'credit')")
    moment()
    print(reached)


async def list_states(context):
    return (await context.list_tasks(pay)).tasks


async def main():
    async with app.create() as context:
        while await list_states(context):
            await context.run_until_idle()
            await asyncio.sleep(0.05)


asyncio.run(main())
"""


@pytest.fixture(params=DRIVERS)
def store(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def place(store: str, tmp_path: Path) -> Iterator[Place]:
    with place_of(store, tmp_path) as place:
        yield place


class Ledger:
    """The instances, and a table with the effects of their runs."""

    def __init__(self, store: str, place: Place) -> None:
        self.store = store
        self.place = place
        self.table = f"effects_{secrets.token_hex(5)}"

    async def make(self) -> None:
        async with client(self.store, DRIVERS[self.store], self.place) as admin:
            await admin.run(f"CREATE TABLE {self.table} (name VARCHAR(20), kind VARCHAR(20))")
            if self.store != "postgres":
                await admin.commit()

    async def drop(self) -> None:
        async with client(self.store, DRIVERS[self.store], self.place) as admin:
            await admin.run(f"DROP TABLE {self.table}")
            if self.store != "postgres":
                await admin.commit()

    async def effects(self) -> list[tuple[str, str]]:
        async with client(self.store, DRIVERS[self.store], self.place) as admin:
            rows = await admin.run(f"SELECT name, kind FROM {self.table}")
            return sorted((str(name), str(kind)) for name, kind in map(tuple, rows))

    async def schedule(self, name: str) -> None:
        app = Pyncette(self.place.factory, **self.place.configuration)

        @app.dynamic_task()
        async def pay(context: Context) -> None: ...

        async with app.create() as context:
            await context.schedule_task(pay, name, execute_at=PAST)

    def worker(self, moment: int) -> subprocess.CompletedProcess[str]:
        configuration = dict(self.place.configuration)
        if self.store in ("mysql", "mariadb"):
            configuration[self.store] = configuration.pop("mysql_url")
        elif self.store == "postgres":
            configuration["postgres"] = configuration.pop("postgres_url")
        return forked.run(
            ["-c", PROGRAM, self.store, self.table, json.dumps(configuration), str(moment)],
            Path(),
            os.environ,
            120,
            loaded=LOADED[self.store],
        )


def test_effects_happen_once_though_a_worker_is_killed_before_any_statement(
    place: Place, store: str
) -> None:
    ledger = Ledger(store, place)
    asyncio.run(ledger.make())
    names: list[str] = []
    for moment in range(1, MOMENTS_MAX):
        names.append(f"run-{moment}")
        asyncio.run(ledger.schedule(names[-1]))
        process = ledger.worker(moment)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, process.stderr
    else:
        raise AssertionError("it was killed every time")
    assert len(names) > 8  # as many statements there were
    assert asyncio.run(ledger.effects()) == sorted(
        (name, kind) for name in names for kind in ("debit", "credit")
    )
    asyncio.run(ledger.drop())


@pytest.mark.parametrize("lost", ["the answer", "the request"])
@pytest.mark.parametrize("recurs", [True, False], ids=["recurring", "once"])
@pytest.mark.parametrize("store", ["postgres", "mysql", "mariadb"])
def test_effects_happen_once_though_a_commit_or_its_answer_is_lost(
    place: Place, store: str, lost: str, recurs: bool
) -> None:
    ledger = Ledger(store, place)

    async def main() -> None:
        async with Wire(url(store)).open() as wire:
            option = "postgres_url" if store == "postgres" else "mysql_url"
            configuration: dict[str, Any] = {**place.configuration, option: wire.url}
            app = Pyncette(place.factory, poll_interval=0.05, **configuration)
            errors: list[Exception | None] = []
            ended = asyncio.Event()

            async def attempt(context: Context) -> None:
                async with context.transaction() as connection:
                    statement = f"INSERT INTO {ledger.table} VALUES ('a', 'debit')"
                    if store == "postgres":
                        await connection.execute(statement)
                    else:
                        async with connection.cursor() as cursor:
                            await cursor.execute(statement)
                    if not errors:
                        # Not READ COMMITTED, which the store sends when it connects.
                        request = b"COMMIT;" if store == "postgres" else b"\x03COMMIT"
                        if lost == "the answer":
                            wire.cut_after = request
                        else:
                            wire.cut_before = request

            @app.dynamic_task(lease_duration=timedelta(seconds=20), retry=Retry(attempts=3))
            async def pay(context: Context) -> None:
                try:
                    await attempt(context)
                except Exception as error:
                    errors.append(error)
                    raise
                else:
                    errors.append(None)
                    ended.set()
                finally:
                    wire.cut_after = wire.cut_before = None

            async with app.running() as context:
                if recurs:
                    await context.schedule_task(pay, "a", interval=3600)
                    await context.trigger(pay, "a")
                else:
                    await context.schedule_task(pay, "a", execute_at=PAST)
                await ended.wait()
            if lost == "the answer":
                assert errors == [None]
            else:
                assert [type(error) is type(None) for error in errors] == [False, True]
            assert await ledger.effects() == [("a", "debit")]

    async def bounded() -> None:
        await ledger.make()
        async with asyncio.timeout(60):
            await main()
        await ledger.drop()

    asyncio.run(bounded())


SILENT = {
    "COMMIT": LeaseLostException,
    "RELEASE": DeadlineExceededError,
    "SAVEPOINT": DeadlineExceededError,
    "ROLLBACK": ValueError,
}
"""What a run is told if the server never hears of that statement, and its connection stays open."""


class Silence:
    """An app with a run whose first transaction loses a statement, without a word."""

    def __init__(self, ledger: Ledger, wire: Wire, lost: str | None) -> None:
        option = "postgres_url" if ledger.store == "postgres" else "mysql_url"
        self.errors: list[BaseException] = []
        self.failed = asyncio.Event()
        self.ended = asyncio.Event()
        self.app = app = Pyncette(
            ledger.place.factory,
            poll_interval=0.05,
            **{**ledger.place.configuration, option: wire.url},
        )
        first = lost is not None
        # Not READ COMMITTED, which the store sends when it connects.
        commit = b"COMMIT;" if ledger.store == "postgres" else b"\x03COMMIT"
        texts = {
            "COMMIT": commit,
            "RELEASE": b"RELEASE SAVEPOINT pyncette_run",
            "SAVEPOINT": b"SAVEPOINT pyncette_run",
            "ROLLBACK": b"ROLLBACK",
        }

        async def attempt(context: Context) -> None:
            nonlocal first
            begun, first = first, False
            if begun and lost == "SAVEPOINT":
                wire.hold_before = texts[str(lost)]
            async with context.transaction() as connection:
                statement = f"INSERT INTO {ledger.table} VALUES ('a', 'debit')"
                if ledger.store == "postgres":
                    await connection.execute(statement)
                else:
                    async with connection.cursor() as cursor:
                        await cursor.execute(statement)
                if begun:
                    wire.hold_before = texts[str(lost)]
                    if lost == "ROLLBACK":
                        raise ValueError("no")

        @app.dynamic_task(lease_duration=timedelta(seconds=2), retry=Retry(attempts=3))
        async def pay(context: Context) -> None:
            try:
                await attempt(context)
            except BaseException as error:
                self.errors.append(error)
                self.failed.set()
                raise
            self.ended.set()

        self.pay = pay


@pytest.mark.parametrize("lost", SILENT)
@pytest.mark.parametrize("store", ["postgres", "mysql", "mariadb"])
def test_a_run_ends_though_its_server_never_hears_of_a_statement_and_it_is_run_again(
    place: Place, store: str, lost: str
) -> None:
    ledger = Ledger(store, place)

    async def main() -> None:
        async with Wire(url(store)).open() as wire:
            silence = Silence(ledger, wire, lost)
            async with silence.app.running() as context:
                await context.schedule_task(silence.pay, "a", execute_at=PAST)
                await silence.failed.wait()
                wire.release()
                await silence.ended.wait()
            assert [type(error) for error in silence.errors] == [SILENT[lost]]
            assert await ledger.effects() == [("a", "debit")]

    async def bounded() -> None:
        await ledger.make()
        async with asyncio.timeout(30):
            await main()
        await ledger.drop()

    asyncio.run(bounded())


@pytest.mark.parametrize("store", ["postgres", "mysql", "mariadb"])
def test_an_app_closes_though_a_server_never_hears_of_a_commit(place: Place, store: str) -> None:
    ledger = Ledger(store, place)

    async def main() -> None:
        async with Wire(url(store)).open() as wire:
            silence = Silence(ledger, wire, "COMMIT")
            async with silence.app.running() as context:
                await context.schedule_task(silence.pay, "a", execute_at=PAST)
                await wire.held()
            # The server still holds the record: the wire is not released before.
            assert [type(error) for error in silence.errors] == [LeaseLostException]
            wire.release()
        async with Wire(url(store)).open() as wire:
            again = Silence(ledger, wire, None)
            async with again.app.running():
                await again.ended.wait()
        assert await ledger.effects() == [("a", "debit")]

    async def bounded() -> None:
        await ledger.make()
        async with asyncio.timeout(30):
            await main()
        await ledger.drop()

    asyncio.run(bounded())
