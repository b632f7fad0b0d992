"""The transaction of a run: its effects and its outcome commit together."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from tests.stores.clients import KINDS, Client, client
from tests.stores.every_store import place_of

from pyncette import Context, ExecutionMode, FailureMode, Pyncette, PyncetteContext, Retry, Task
from pyncette.clock import realtime
from pyncette.engine.transaction import _BoundedLink
from pyncette.errors import (
    LeaseLostException,
    PyncetteException,
    StoreMisconfiguredError,
    TransactionBegunError,
)
from pyncette.model import Heartbeat, OnExisting, TaskState
from pyncette.retry import RetryIn, Skip
from pyncette.sqlite.joined import JoinedSqlite
from pyncette.testing.conformance import Place

LATER = datetime(2200, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)

EACH = [
    ("postgres", "asyncpg"),
    ("mysql", "asyncmy"),
    ("mariadb", "asyncmy"),
    ("sqlite-file", "aiosqlite"),
]


Body = Callable[["Bank", Context], Awaitable[None]]


class Bank:
    """An app whose task writes into a table beside the records."""

    def __init__(
        self, place: Place, body: Callable[[Bank, Context], Awaitable[None]], **options: Any
    ) -> None:
        self.app = Pyncette(place.factory, poll_interval=0.05, **place.configuration)
        self.errors: list[BaseException] = []
        self.ended = asyncio.Event()
        self.table = f"effects_{id(self)}"

        @self.app.dynamic_task(**{"lease_duration": 20 * SECOND, **options})
        async def pay(context: Context) -> None:
            try:
                await body(self, context)
            except BaseException as error:
                self.errors.append(error)
                raise
            finally:
                self.ended.set()

        self.pay: Task = pay
        self.context: PyncetteContext

    @property
    def effect(self) -> str:
        """The statement that has an effect."""
        return f"INSERT INTO {self.table} VALUES (1)"

    async def run(self, name: str = "a", **when: Any) -> None:
        """Schedules an instance, and waits for the end of its next run."""
        self.ended.clear()
        when = when or {"execute_in": timedelta(0)}
        await self.context.schedule_task(self.pay, name, **when)
        await self.ended.wait()

    async def run_again(self) -> TaskState:
        """Triggers an instance that recurs; its state after that run."""
        if await self.state() is None:
            await self.context.schedule_task(self.pay, "a", execute_at=LATER)
            await self.context.schedule_task(self.pay, "a", interval=3600, force=True)
        self.ended.clear()
        await self.context.trigger(self.pay, "a")
        await self.ended.wait()
        state = await self.until(lambda state: state is None or state.state != "running")
        assert state is not None
        return state

    async def state(self, name: str = "a") -> TaskState | None:
        return await self.context.get_task(self.pay, name)

    async def until(self, holds: Callable[[TaskState | None], bool]) -> TaskState | None:
        while not holds(state := await self.state()):
            await realtime.sleep(0.01)
        return state


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Runs a test; what waits for ever ends."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main()

    asyncio.run(bounded())


async def execute(connection: Any, statement: str) -> None:
    """Runs a statement on whatever a driver calls a connection."""
    name = type(connection).__module__.partition(".")[0]
    if name == "sqlalchemy":
        import sqlalchemy

        await connection.execute(sqlalchemy.text(statement))
    elif name in ("asyncmy", "aiomysql", "psycopg"):
        async with connection.cursor() as cursor:
            await cursor.execute(statement)
    elif name == "sqlite3":
        connection.execute(statement)
    else:
        await connection.execute(statement)


@pytest.fixture
def place(kind: tuple[str, str], tmp_path: Path) -> Iterator[Place]:
    with place_of(kind[0], tmp_path) as place:
        yield place


@asynccontextmanager
async def bank_at(
    place: Place,
    kind: tuple[str, str],
    body: Callable[[Bank, Context], Awaitable[None]],
    **options: Any,
) -> AsyncIterator[tuple[Bank, Callable[[], Awaitable[int]]]]:
    """A bank that runs, and how many effects there are."""
    bank = Bank(place, body, **options)
    store = kind[0]
    driver = dict(EACH)[store]
    async with client(store, driver, place) as reader:
        await reader.run(f"CREATE TABLE {bank.table} (n INTEGER)")
        if store != "postgres":
            await reader.commit()

        async def count() -> int:
            [row] = await reader.run(f"SELECT count(*) FROM {bank.table}")
            if store != "postgres":
                await reader.rollback()
            [number] = row
            return int(number)

        try:
            async with bank.app.running() as bank.context:
                yield bank, count
        finally:
            await reader.run(f"DROP TABLE {bank.table}")
            if store != "postgres":
                await reader.commit()


ASYNC = [
    kind for kind in KINDS if "blocking" not in kind[1] and kind[1] not in ("django", "pymysql")
]


@pytest.mark.parametrize("kind", ASYNC, ids=lambda kind: "-".join(kind).replace(" ", "-"))
def test_a_run_is_settled_in_a_transaction_of_the_application(
    place: Place, kind: tuple[str, str]
) -> None:
    async def main() -> None:
        async with client(*kind, place) as held:
            fail = True

            async def body(bank: Bank, context: Context) -> None:
                nonlocal fail
                async with context.transaction(held.connection) as connection:
                    assert connection is held.connection
                    await execute(connection, bank.effect)
                    if fail:
                        fail = False
                        raise ValueError("the first time")

            async with bank_at(
                place, kind, body, retry=Retry(attempts=3, initial=timedelta(0))
            ) as (bank, count):
                await bank.run()
                await bank.until(lambda state: state is None)
                assert await count() == 1
                assert [type(error) for error in bank.errors] == [ValueError]

    run(main)


each = pytest.mark.parametrize("kind", EACH, ids=lambda kind: kind[0])


@each
def test_a_run_is_settled_in_a_transaction_that_the_store_lends(
    place: Place, kind: tuple[str, str]
) -> None:
    async def body(bank: Bank, context: Context) -> None:
        async with context.transaction() as connection:
            await execute(connection, bank.effect)

    async def main() -> None:
        async with bank_at(place, kind, body) as (bank, count):
            state = await bank.run_again()
            assert state.last_outcome == "succeeded"
            assert state.locked_until is None
            assert await count() == 1
            assert bank.errors == []

    run(main)


@each
def test_an_exception_in_the_block_undoes_it_and_fails_the_run(
    place: Place, kind: tuple[str, str]
) -> None:
    async def body(bank: Bank, context: Context) -> None:
        async with context.transaction() as connection:
            await execute(connection, bank.effect)
            raise errors.pop()

    async def main() -> None:
        async with bank_at(place, kind, body) as (bank, count):
            for outcome in ("skipped", "failed"):
                state = await bank.run_again()
                assert state.last_outcome == outcome
            assert await count() == 0

    errors: list[Exception] = [ValueError("no"), Skip("nothing to do")]
    run(main)


@each
def test_the_block_is_retried_as_its_exception_says(place: Place, kind: tuple[str, str]) -> None:
    attempts: list[int] = []

    async def body(bank: Bank, context: Context) -> None:
        attempts.append(context.attempt)
        async with context.transaction() as connection:
            await execute(connection, bank.effect)
            if context.attempt < 3:
                raise RetryIn(timedelta(0), "again")

    async def main() -> None:
        async with bank_at(place, kind, body) as (bank, count):
            await bank.context.schedule_task(bank.pay, "a", execute_in=timedelta(0))
            await bank.until(lambda state: state is None)
            assert attempts == [1, 2, 3]
            assert await count() == 1

    run(main)


@each
def test_what_follows_the_block_cannot_fail_the_run(
    place: Place, kind: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    async def body(bank: Bank, context: Context) -> None:
        async with context.transaction() as connection:
            await execute(connection, bank.effect)
        await context.heartbeat()
        with pytest.raises(PyncetteException, match="has had its transaction"):
            async with context.transaction():
                pass
        raise ValueError("too late")

    async def main() -> None:
        async with bank_at(place, kind, body) as (bank, count):
            state = await bank.run_again()
            assert state.last_outcome == "succeeded"
            assert await count() == 1

    run(main)
    [told] = [record for record in caplog.records if "after its transaction" in record.message]
    assert told.levelno == logging.WARNING
    assert "too late" in told.message


@each
@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("commits", [False, True], ids=["fails", "commits"])
def test_a_body_that_ends_while_its_transaction_does_has_the_outcome_of_that(
    place: Place,
    kind: tuple[str, str],
    commits: bool,
    raises: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    commit = _BoundedLink.commit
    committing = asyncio.Event()

    async def slow(link: _BoundedLink) -> None:
        committing.set()
        await realtime.sleep(0.05)  # in which the body ends
        if commits:
            await commit(link)
        else:
            await link.rollback()
            raise ConnectionError("a deferred constraint")

    monkeypatch.setattr(_BoundedLink, "commit", slow)

    async def body(bank: Bank, context: Context) -> None:
        async def work() -> None:
            async with context.transaction() as connection:
                await execute(connection, bank.effect)

        branch = asyncio.create_task(work())
        branch.add_done_callback(lambda branch: branch.cancelled() or branch.exception())
        await committing.wait()
        if raises:
            raise ValueError("another branch")

    async def main() -> None:
        async with bank_at(place, kind, body, failure_mode=FailureMode.COMMIT) as (bank, count):
            state = await bank.run_again()
            assert state.last_outcome == ("succeeded" if commits else "failed")
            assert await count() == commits
            if not commits:
                error = "another branch" if raises else "a deferred constraint"
                assert error in (state.last_error or "")

    run(main)
    warned = [line for line in caplog.messages if "raised after its transaction" in line]
    assert len(warned) == (commits and raises)


@each
def test_a_body_that_ends_while_its_transaction_begins_has_failed(
    place: Place, kind: tuple[str, str]
) -> None:
    branches: list[asyncio.Task[None]] = []

    async def body(bank: Bank, context: Context) -> None:
        async def work() -> None:
            async with context.transaction() as connection:
                await execute(connection, bank.effect)

        branches.append(asyncio.create_task(work()))
        await asyncio.sleep(0)  # it has begun to begin

    async def main() -> None:
        async with bank_at(place, kind, body, failure_mode=FailureMode.COMMIT) as (bank, count):
            state = await bank.run_again()
            assert state.last_outcome == "failed"
            assert "in the middle of its transaction" in (state.last_error or "")
            [branch] = branches
            await asyncio.wait([branch])
            assert "has ended already" in str(branch.exception())
            assert await count() == 0

    run(main)


@each
def test_a_block_that_failed_may_be_followed_by_another_one(
    place: Place, kind: tuple[str, str]
) -> None:
    async def body(bank: Bank, context: Context) -> None:
        try:
            async with context.transaction() as connection:
                await execute(connection, bank.effect)
                with pytest.raises(PyncetteException, match="has had its transaction"):
                    async with context.transaction():
                        pass
                raise ValueError("once more")
        except ValueError:
            pass
        async with context.transaction() as connection:
            await execute(connection, bank.effect)

    async def main() -> None:
        async with bank_at(place, kind, body) as (bank, count):
            assert (await bank.run_again()).last_outcome == "succeeded"
            assert await count() == 1

    run(main)


@each
def test_heartbeats_and_calls_during_the_block_do_not_keep_it_from_being_settled(
    place: Place, kind: tuple[str, str]
) -> None:
    if kind[0] == "sqlite-file":
        pytest.skip("nobody else writes to the file during the block")

    async def body(bank: Bank, context: Context) -> None:
        async with context.transaction() as connection:
            table = next(name for key, name in place.configuration.items() if "table" in key)
            await execute(connection, f"SELECT * FROM {table}")  # a snapshot, on MySQL
            await execute(connection, bank.effect)
            for _ in range(3):
                await context.heartbeat()
            await bank.context.pause(bank.pay, "a", reason="a moment")
            await bank.context.resume(bank.pay, "a")
            await bank.context.schedule_task(
                bank.pay, "a", interval=7200, on_existing=OnExisting.REPLACE
            )

    async def main() -> None:
        async with bank_at(place, kind, body, heartbeat=Heartbeat(every=SECOND / 50)) as (
            bank,
            count,
        ):
            state = await bank.run_again()
            assert bank.errors == []
            assert state.task.interval == timedelta(hours=2)
            assert await count() == 1

    run(main)


@each
def test_a_run_that_was_replaced_meanwhile_leaves_no_trace(
    place: Place, kind: tuple[str, str]
) -> None:
    async def body(bank: Bank, context: Context) -> None:
        async with context.transaction(None if kind[0] != "sqlite-file" else held) as connection:
            await execute(connection, bank.effect)
            began.set()
            await replaced.wait()

    async def main() -> None:
        async with bank_at(place, kind, body) as (bank, count):
            await bank.context.schedule_task(bank.pay, "a", execute_in=timedelta(0))
            await began.wait()
            await bank.context.schedule_task(bank.pay, "a", execute_at=LATER, force=True)
            replaced.set()
            await bank.ended.wait()
            assert [type(error) for error in bank.errors] == [LeaseLostException]
            assert await count() == 0
            state = await bank.state()
            assert state is not None
            assert state.scheduled_at == LATER

    if kind[0] == "sqlite-file":
        pytest.skip("nobody else writes to the file during the block")
    held = None
    began, replaced = asyncio.Event(), asyncio.Event()
    run(main)


@each
def test_a_body_may_replace_its_own_run_in_the_transaction(
    place: Place, kind: tuple[str, str]
) -> None:
    async def body(bank: Bank, context: Context) -> None:
        async with context.transaction() as connection:
            await execute(connection, bank.effect)
            await bank.context.schedule_task(
                bank.pay, "a", execute_at=LATER, force=True, connection=connection
            )
            await bank.context.schedule_task(bank.pay, "b", execute_at=LATER, connection=connection)

    async def main() -> None:
        async with bank_at(place, kind, body) as (bank, count):
            await bank.run()
            state = await bank.until(lambda state: state is not None and state.next == LATER)
            assert state is not None
            assert await bank.state("b") is not None
            assert await count() == 1
            assert bank.errors == []

    run(main)


@each
def test_a_timeout_in_the_block_undoes_it(place: Place, kind: tuple[str, str]) -> None:
    async def body(bank: Bank, context: Context) -> None:
        async with context.transaction() as connection:
            await execute(connection, bank.effect)
            await asyncio.Event().wait()

    async def main() -> None:
        async with bank_at(place, kind, body, timeout=SECOND / 5) as (bank, count):
            state = await bank.run_again()
            assert state.last_outcome == "failed"
            assert "did not end within" in str(state.last_error)
            assert await count() == 0

    run(main)


@each
def test_a_block_that_ends_its_transaction_itself_is_refused(
    place: Place, kind: tuple[str, str]
) -> None:
    async def body(bank: Bank, context: Context) -> None:
        async with context.transaction() as connection:
            await execute(connection, "COMMIT")
            if kind[0] == "postgres":
                return
            await execute(connection, "BEGIN")

    async def main() -> None:
        async with bank_at(place, kind, body) as (bank, _):
            state = await bank.run_again()
            assert state.last_outcome == "failed"
            assert "the block has ended it" in str(state.last_error)

    run(main)


@each
def test_a_task_that_runs_at_most_once_has_no_transaction(
    place: Place, kind: tuple[str, str]
) -> None:
    async def body(bank: Bank, context: Context) -> None:
        async with context.transaction():
            pass

    async def main() -> None:
        mode = ExecutionMode.AT_MOST_ONCE
        async with bank_at(place, kind, body, execution_mode=mode) as (bank, _):
            await bank.run()
            [error] = bank.errors
            assert "is at most once" in str(error)

    run(main)


@pytest.mark.parametrize("kind", EACH[:1], ids=lambda kind: kind[0])
def test_an_isolation_at_which_a_heartbeat_would_fail_it_is_refused(
    place: Place, kind: tuple[str, str]
) -> None:
    async def main() -> None:
        async with client(*kind, place) as held:
            await held.run("SET default_transaction_isolation = 'repeatable read'")

            async def body(bank: Bank, context: Context) -> None:
                async with context.transaction(held.connection):
                    pass

            async with bank_at(place, kind, body) as (bank, _):
                await bank.run()
                [error] = bank.errors
                assert isinstance(error, StoreMisconfiguredError)
                assert "REPEATABLE READ" in str(error)

    run(main)


@pytest.mark.parametrize("kind", EACH[1:3], ids=lambda kind: kind[0])
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_every_isolation_of_mysql_settles_after_heartbeats(
    place: Place, kind: tuple[str, str], level: str
) -> None:
    async def main() -> None:
        async with client(*kind, place) as held:
            await held.run(f"SET SESSION TRANSACTION ISOLATION LEVEL {level}")
            await held.commit()

            async def body(bank: Bank, context: Context) -> None:
                async with context.transaction(held.connection) as connection:
                    await execute(connection, f"SELECT * FROM {bank.table}")
                    await execute(connection, bank.effect)
                    for _ in range(3):
                        await context.heartbeat()

            async with bank_at(place, kind, body) as (bank, count):
                assert (await bank.run_again()).last_outcome == "succeeded"
                assert await count() == 1

    run(main)


@pytest.mark.parametrize("kind", EACH[3:], ids=lambda kind: kind[0])
def test_a_block_that_keeps_a_file_locked_for_too_long_is_cancelled(
    place: Place, kind: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(bank: Bank, context: Context) -> None:
        async with context.transaction() as connection:
            await execute(connection, bank.effect)
            await asyncio.Event().wait()

    async def main() -> None:
        async with bank_at(place, kind, body) as (bank, count):
            state = await bank.run_again()
            assert state.last_outcome == "failed"
            assert "nobody else could write to the file" in str(state.last_error)
            assert await count() == 0

    monkeypatch.setattr(JoinedSqlite, "seconds_max", 0.1)
    run(main)


BLOCKING = [
    kind for kind in KINDS if "blocking" in kind[1] or kind[1] in ("django", "pymysql", "sqlite3")
]


@pytest.mark.parametrize("kind", BLOCKING, ids=lambda kind: "-".join(kind).replace(" ", "-"))
def test_a_plain_function_settles_its_run_in_its_thread(
    place: Place, kind: tuple[str, str]
) -> None:
    async def main() -> None:
        app = Pyncette(place.factory, poll_interval=0.05, **place.configuration)
        held: Client
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        failures = [ValueError("the first time")]

        @app.dynamic_task(retry=Retry(attempts=3, initial=timedelta(0)))
        def pay(context: Context) -> None:
            own = held
            if kind[1] == "django":
                from django.db import connections

                own = Client(connections[held.connection.alias])
            with context.transaction(own.connection) as connection:
                assert connection is own.connection
                asyncio.run(own.run(f"INSERT INTO {table} VALUES (1)"))
                if failures:
                    raise failures.pop()
            if own is not held:
                own.connection.close()
            loop.call_soon_threadsafe(ended.set)

        table = f"effects_{id(app)}"
        driver = dict(EACH)[kind[0]]
        async with client(kind[0], driver, place) as reader:
            await reader.run(f"CREATE TABLE {table} (n INTEGER)")
            if kind[0] != "postgres":
                await reader.commit()
            async with client(*kind, place, shared=True) as held, app.running() as context:
                await context.schedule_task(pay, "a", execute_in=timedelta(0))
                await ended.wait()
                while await context.get_task(pay, "a") is not None:
                    await realtime.sleep(0.01)
            [row] = await reader.run(f"SELECT count(*) FROM {table}")
            assert tuple(row) == (1,)
            await reader.run(f"DROP TABLE {table}")
            if kind[0] != "postgres":
                await reader.commit()

    run(main)


def test_a_plain_function_has_the_connection_of_a_file_lent(tmp_path: Path) -> None:
    async def main(place: Place) -> None:
        app = Pyncette(place.factory, poll_interval=0.05, **place.configuration)
        messages: list[str] = []
        ended = asyncio.Event()

        @app.dynamic_task()
        def pay(context: Context) -> None:
            with context.transaction() as connection:
                connection.execute("CREATE TABLE effects (n)")

        @app.dynamic_task()
        async def wrong(context: Context) -> None:
            try:
                with context.transaction():
                    pass
            except PyncetteException as error:
                messages.append(str(error))
            ended.set()

        async with app.running() as context:
            await context.schedule_task(pay, "a", execute_in=timedelta(0))
            while await context.get_task(pay, "a") is not None:
                await realtime.sleep(0.01)
            await context.schedule_task(wrong, "a", execute_in=timedelta(0))
            await ended.wait()
        connection = sqlite3.connect(place.configuration["sqlite_database"])
        assert connection.execute("SELECT * FROM effects").fetchall() == []
        connection.close()
        assert "async with" in messages[0]

    with place_of("sqlite-file", tmp_path) as place:
        run(lambda: main(place))


def test_a_context_of_no_run_has_no_transaction() -> None:
    with pytest.raises(PyncetteException, match="belongs to no run"):
        Context().transaction()


def test_a_connection_of_sqlalchemy_that_has_begun_is_refused_and_a_fresh_one_is_used(
    tmp_path: Path,
) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'effects.db'}")
    app = Pyncette(sqlite_database=str(tmp_path / "effects.db"))
    refused: list[TransactionBegunError] = []

    @app.dynamic_task()
    def note(context: Context) -> None:
        if not refused:
            try:
                with engine.begin() as connection, context.transaction(connection):
                    pytest.fail("The block runs in a transaction of somebody else")
            except TransactionBegunError as error:
                refused.append(error)
        with engine.connect() as connection, context.transaction(connection):
            connection.execute(sqlalchemy.text("INSERT INTO effects VALUES (1)"))

    async def main() -> None:
        async with app.create() as context:
            await context.schedule_task(note, "a", execute_in=timedelta())
            await context.run_until_idle(raise_task_errors=True)

    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE effects (number INTEGER)"))
    asyncio.run(main())
    with engine.connect() as connection:
        counted = connection.execute(sqlalchemy.text("SELECT count(*) FROM effects"))
        assert counted.scalar() == 1
    engine.dispose()
    [error] = refused
    assert "engine.connect(), not of engine.begin()" in str(error)
