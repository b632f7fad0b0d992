"""Transactions in one SQLite file, in one event loop: none blocks the loop, in which others end."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.stores.clients import SQLITE, Client, client
from tests.stores.every_store import place_of
from tests.stores.test_run_transactions import run

from pyncette import Context, Instance, Pyncette, PyncetteContext, Retry
from pyncette.clock import realtime
from pyncette.errors import StoreUnavailableError
from pyncette.sqlite.turns import Turns
from pyncette.testing.conformance import Place

RUNS = 4
NOW = timedelta(0)


@pytest.fixture
def place(tmp_path: Path) -> Any:
    with place_of("sqlite-file", tmp_path) as place:
        with closing(sqlite3.connect(place.configuration["sqlite_database"])) as connection:
            connection.execute("CREATE TABLE effects (n INTEGER)")
        yield place


def file_of(place: Place) -> str:
    return str(place.configuration["sqlite_database"])


def effects(place: Place) -> int:
    with closing(sqlite3.connect(file_of(place))) as connection:
        [[number]] = connection.execute("SELECT count(*) FROM effects")
    return int(number)


def app_at(place: Place) -> Pyncette:
    return Pyncette(place.factory, poll_interval=0.05, **place.configuration)


async def until(holds: Callable[[], Any]) -> None:
    while not await holds():
        await realtime.sleep(0.01)


async def settled(context: PyncetteContext, task: Any) -> None:
    async def gone() -> bool:
        return not (await context.list_tasks(task)).tasks

    await until(gone)


@pytest.mark.parametrize("driver", ["lent", *SQLITE])
def test_transactions_of_runs_in_one_worker_take_turns(place: Place, driver: str) -> None:
    async def main() -> None:
        app = app_at(place)
        errors: list[BaseException] = []
        together = asyncio.Barrier(RUNS)

        @app.dynamic_task(retry=Retry(attempts=1))
        async def pay(context: Context) -> None:
            own: Any = nullcontext() if driver == "lent" else client("sqlite-file", driver, place)
            async with own as held:
                await together.wait()
                given = None if held is None else held.connection
                try:
                    async with context.transaction(given) as connection:
                        statement = "INSERT INTO effects VALUES (1)"
                        await (Client(connection) if held is None else held).run(statement)
                        await realtime.sleep(0.02)
                except BaseException as error:
                    errors.append(error)
                    raise

        async with app.running() as context:
            await context.schedule_tasks(
                pay, [Instance(str(number), execute_in=NOW) for number in range(RUNS)]
            )
            await settled(context, pay)
        assert errors == []
        assert effects(place) == RUNS

    run(main)


@asynccontextmanager
async def beginning(place: Place, how: str) -> AsyncIterator[Any]:
    """A connection of sqlite3 that begins in this way."""
    options: dict[str, Any] = {"by hand": {"isolation_level": None}, "implicit": {}}[how]
    with closing(sqlite3.connect(file_of(place), **options)) as connection:
        if how == "by hand":
            connection.execute("BEGIN")
        yield connection
        connection.rollback()


@pytest.mark.parametrize("how", ["by hand", "implicit"])
def test_calls_in_two_transactions_of_one_loop_do_not_wait_in_it(place: Place, how: str) -> None:
    async def main() -> None:
        app = app_at(place)

        @app.dynamic_task()
        async def remind(context: Context) -> None: ...

        async def order(name: str) -> None:
            async with beginning(place, how) as connection:
                await context.schedule_task(
                    remind, name, execute_in=timedelta(days=1), connection=connection
                )
                await realtime.sleep(0.02)
                connection.commit()
                [[patience_ms]] = connection.execute("PRAGMA busy_timeout")
                assert patience_ms == 5000

        async with app.create() as context:
            await asyncio.gather(*(order(str(number)) for number in range(RUNS)))
            assert len((await context.list_tasks(remind)).tasks) == RUNS

    run(main)


def test_a_transaction_that_has_read_what_was_changed_is_refused_at_once(place: Place) -> None:
    async def main() -> None:
        app = app_at(place)

        @app.dynamic_task()
        async def remind(context: Context) -> None: ...

        async with app.create() as context, beginning(place, "by hand") as connection:
            connection.execute("PRAGMA busy_timeout = 3600000")
            connection.execute("SELECT * FROM effects").fetchall()
            await context.schedule_task(remind, "a", execute_in=timedelta(days=1))
            with pytest.raises(StoreUnavailableError, match="BEGIN IMMEDIATE"):
                await context.schedule_task(
                    remind, "b", execute_in=timedelta(days=1), connection=connection
                )

    run(main)


@pytest.mark.parametrize("driver", ["lent", *SQLITE])
def test_the_loop_goes_on_while_another_process_has_the_file(place: Place, driver: str) -> None:
    async def main() -> None:
        app = app_at(place)
        looked = 0

        @app.dynamic_task(retry=Retry(attempts=1))
        async def pay(context: Context) -> None:
            nonlocal looked
            own: Any = nullcontext() if driver == "lent" else client("sqlite-file", driver, place)
            async with own as held:
                other.execute("BEGIN IMMEDIATE")

                async def end_soon() -> None:
                    nonlocal looked
                    while looked < 20:
                        looked += 1
                        await realtime.sleep(0.005)
                    other.execute("COMMIT")

                ending = asyncio.ensure_future(end_soon())
                async with context.transaction(None if held is None else held.connection):
                    assert ending.done()

        with closing(sqlite3.connect(file_of(place), isolation_level=None)) as other:
            async with app.running() as context:
                await context.schedule_task(pay, "a", execute_in=NOW)
                await settled(context, pay)
        assert looked == 20

    run(main)


def test_a_block_is_given_up_when_the_file_stays_locked(place: Place) -> None:
    async def main() -> None:
        app = app_at(place)
        errors: list[BaseException] = []

        @app.dynamic_task(retry=Retry(attempts=1))
        async def pay(context: Context) -> None:
            with closing(sqlite3.connect(file_of(place), timeout=0.05)) as own:
                other.execute("BEGIN IMMEDIATE")
                try:
                    async with context.transaction(own):
                        pass
                except StoreUnavailableError as error:
                    errors.append(error)
                finally:
                    other.execute("COMMIT")

        with closing(sqlite3.connect(file_of(place), isolation_level=None)) as other:
            async with app.running() as context:
                await context.schedule_task(pay, "a", execute_in=NOW)
                await settled(context, pay)
        assert "cannot write to" in str(errors[0])

    run(main)


@pytest.mark.parametrize("child", [False, True])
def test_a_block_that_is_never_left_is_undone_when_the_function_ends(
    place: Place, child: bool
) -> None:
    async def main() -> None:
        app = app_at(place)
        kept: list[Any] = []

        @app.dynamic_task(retry=Retry(attempts=1))
        async def pay(context: Context) -> None:
            async def begin() -> None:
                transaction = context.transaction()
                connection = await transaction.__aenter__()
                connection.execute("INSERT INTO effects VALUES (1)")
                kept.append(transaction)
                if child:
                    await asyncio.Event().wait()

            if child:
                kept.append(asyncio.ensure_future(begin()))
                while len(kept) < 2:
                    await realtime.sleep(0)
            else:
                await begin()

        async with app.running() as context:
            await context.schedule_task(pay, "a", execute_in=NOW)

            async def parked() -> bool:
                state = await context.get_task(pay, "a")
                return state is not None and state.state == "parked"

            await until(parked)
            state = await context.get_task(pay, "a")
            assert state is not None
            assert "in the middle of its transaction" in str(state.last_error)
            # The file is free.
            await context.unschedule_task(pay, "a")
            if child:
                kept[0].cancel()
                with pytest.raises(asyncio.CancelledError):
                    await kept[0]
        assert effects(place) == 0

    run(main)


def test_a_plain_function_that_never_leaves_its_block_has_it_undone(place: Place) -> None:
    async def main() -> None:
        app = app_at(place)
        kept: list[Any] = []

        @app.dynamic_task(retry=Retry(attempts=1))
        def pay(context: Context) -> None:
            transaction = context.transaction()
            connection = transaction.__enter__()
            connection.execute("INSERT INTO effects VALUES (1)")
            kept.append(transaction)

        async with app.running() as context:
            await context.schedule_task(pay, "a", execute_in=NOW)

            async def parked() -> bool:
                state = await context.get_task(pay, "a")
                return state is not None and state.state == "parked"

            await until(parked)
            await context.unschedule_task(pay, "a")
        assert effects(place) == 0

    run(main)


def test_those_that_wait_for_a_turn_have_it_in_their_order() -> None:
    async def main() -> None:
        turns, order = Turns(), []

        async def one(number: int) -> None:
            async with turns.turn(lambda: None):
                order.append(number)
                await realtime.sleep(0)

        await asyncio.gather(*(one(number) for number in range(5)))
        assert order == [0, 1, 2, 3, 4]

    run(main)


def test_one_that_is_cancelled_while_it_waits_hands_its_turn_on() -> None:
    async def main() -> None:
        turns, order = Turns(), []

        async def one(number: int) -> None:
            async with turns.turn(lambda: None):
                order.append(number)
                await realtime.sleep(0)

        async with turns.turn(lambda: None):
            waiting = [asyncio.ensure_future(one(number)) for number in range(3)]
            await realtime.sleep(0)
            waiting[0].cancel()
            await realtime.sleep(0)
        waiting[1].cancel()  # in the instant in which it has its turn
        await asyncio.gather(*waiting, return_exceptions=True)
        assert order == [2]
        async with turns.turn(lambda: None):
            pass

    run(main)


def test_one_whose_lease_has_ended_waits_no_longer() -> None:
    async def main() -> None:
        turns, ended = Turns(), False

        def still() -> None:
            if ended:
                raise StoreUnavailableError("its lease has ended")

        async def one() -> None:
            async with turns.turn(still):
                raise AssertionError

        async with turns.turn(lambda: None):
            waiting = asyncio.ensure_future(one())
            await realtime.sleep(0)
            ended = True
            with pytest.raises(StoreUnavailableError):
                await waiting
        async with turns.turn(lambda: None):
            pass

    run(main)
