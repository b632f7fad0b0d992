"""Opening the store in PostgreSQL: options, tables, privileges, connections, errors."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from asyncpg.types import ServerVersion
from tests.servers import url
from tests.stores.postgres_place import a_table, new_table, place_at, run_sql

from pyncette.clock import realtime
from pyncette.errors import StoreMisconfiguredError, StoreUnavailableError
from pyncette.postgres import PostgresOptions, postgres_repository, schema_sql
from pyncette.postgres.connection import place_of, translated
from pyncette.store import EVERYTHING, Applied, Write
from pyncette.store.record import DELETE
from pyncette.testing.conformance import Place
from pyncette.testing.suite.harness import NOW, a_group, new

LEGACY = """CREATE TABLE {table} (name text PRIMARY KEY, parent_name text,
    locked_until timestamptz, locked_by uuid, execute_after timestamptz, task_spec json)"""


@pytest.fixture
def place() -> Iterator[Place]:
    with place_at(url("postgres")) as place:
        yield place


def with_credentials(address: str, user: str, password: str) -> str:
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.hostname}:{parts.port}"))


def opening(**configuration: Any) -> None:
    async def main() -> None:
        async with postgres_repository(**configuration):
            pass

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "postgres_url must be a URL"),
        ({"postgres_url": 7}, "postgres_url must be .* not 7"),
        ({"postgres_url": "mysql://u:hidden@host/db"}, "postgres_url must be a URL"),
        ({"postgres_listen_url": "host"}, "postgres_listen_url must be a URL"),
        ({"postgres_table_name": "Tasks"}, "Table name 'Tasks'"),
        ({"postgres_table_name": "t" * 60}, "at most 59 characters"),
        ({"postgres_pool_size": 2}, "postgres_pool_size must be .* from 3 to 1000, not 2"),
        ({"postgres_pool": "pool"}, "postgres_pool must be an asyncpg.Pool, not str"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(options: dict[str, Any], message: str) -> None:
    if options and "postgres_url" not in options:
        options = {"postgres_url": "postgres://host/db", **options}
    with pytest.raises(ValueError, match=message) as refused:
        opening(**options)
    assert "hidden" not in str(refused.value)


def test_options_do_not_print_the_password() -> None:
    address = "postgresql://user:hidden@host/db"
    assert "hidden" not in repr(PostgresOptions(postgres_url=address, postgres_listen_url=address))


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("postgresql://user:hidden@host:5432/db", "PostgreSQL at host:5432/db"),
        ("postgres://host/db?password=hidden", "PostgreSQL at host/db"),
        ("postgres://user:hid@den@host/db", "PostgreSQL"),
        ("postgres://user:hid/den@host/db", "PostgreSQL"),
        ("postgres://user:hid?den@host/db", "PostgreSQL"),
        ("postgres://host/db?user=u&password=hid@den", "PostgreSQL"),
        ("postgres://u:hidden@one:1,two:2/db", "PostgreSQL at one:1,two:2/db"),
        ("postgres:///db?host=/run", "PostgreSQL"),
    ],
)
def test_a_place_is_told_without_what_may_be_secret(address: str, place: str) -> None:
    assert place_of(address) == place


def test_a_wrong_password_is_said_without_telling_any() -> None:
    address = with_credentials(url("postgres"), "pyncette", "hidden")
    with pytest.raises(StoreMisconfiguredError, match="password authentication failed") as error:
        opening(postgres_url=address)
    assert "hidden" not in str(error.value)


def test_a_url_that_the_driver_does_not_understand_is_not_quoted() -> None:
    with pytest.raises(StoreMisconfiguredError, match="postgres_url is not understood") as error:
        opening(postgres_url="postgresql://user:hid/den@host/db")
    assert "hid" not in str(error.value).replace("postgresql://user:***@host", "")


def test_a_database_that_is_not_there_is_named() -> None:
    address = urlunsplit(urlsplit(url("postgres"))._replace(path="/absent"))
    with pytest.raises(StoreMisconfiguredError, match='database "absent" does not exist'):
        opening(postgres_url=address)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(StoreUnavailableError, match=r"PostgreSQL at 127\.0\.0\.1:1/db"):
        opening(postgres_url="postgresql://user:hidden@127.0.0.1:1/db")


def test_tls_options_of_the_url_reach_the_driver() -> None:
    with pytest.raises(StoreUnavailableError, match="SSL"):
        opening(postgres_url=url("postgres") + "?sslmode=require")


def test_a_missing_table_is_made_only_where_that_is_wanted() -> None:
    with a_table(url("postgres")) as table:
        options = {"postgres_url": url("postgres"), "postgres_table_name": table}
        with pytest.raises(StoreMisconfiguredError, match=f"no table '{table}'.*schema_sql"):
            opening(**options, postgres_skip_table_create=True)
        run_sql(url("postgres"), *schema_sql(table).split(";\n")[:-1])
        opening(**options, postgres_skip_table_create=True)


def test_a_table_made_by_1x_is_recognised_and_left_alone() -> None:
    with a_table(url("postgres"), LEGACY, "INSERT INTO {table} VALUES ('a')") as table:
        with pytest.raises(StoreMisconfiguredError, match=r"pyncette 1\.x.*migrate"):
            opening(postgres_url=url("postgres"), postgres_table_name=table)
        [row] = run_sql(url("postgres"), f"SELECT * FROM {table}")
        assert (len(row), row[0]) == (6, "a")


def test_a_foreign_table_is_refused() -> None:
    with (
        a_table(url("postgres"), "CREATE TABLE {table} (id integer)") as table,
        pytest.raises(StoreMisconfiguredError, match="not one of ours: it has the columns id"),
    ):
        opening(postgres_url=url("postgres"), postgres_table_name=table)


def test_a_table_that_is_there_needs_no_privilege_to_make_one(place: Place) -> None:
    opening(**place.configuration)
    table = place.configuration["postgres_table_name"]
    role = f"role_{secrets.token_hex(6)}"
    run_sql(
        url("postgres"),
        f"CREATE ROLE {role} LOGIN PASSWORD 'worker'",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}",
    )
    limited = with_credentials(url("postgres"), role, "worker")

    async def use() -> None:
        async with postgres_repository(postgres_url=limited, postgres_table_name=table) as store:
            assert await store.write([new("reports", "a")], NOW, wake=["reports"]) == [Applied(NOW)]
            [record] = (await store.claim([a_group()], 1, NOW, "mine")).records
            await store.write([Write(*record[:2], DELETE, record.version, "mine")], NOW)
            assert await store.scan("reports", EVERYTHING, None, 10) == ([], None)

    try:
        asyncio.run(use())
        with pytest.raises(StoreMisconfiguredError, match="permission denied for schema public"):
            opening(postgres_url=limited, postgres_table_name=new_table())
    finally:
        run_sql(url("postgres"), f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_importing_the_package_does_not_import_the_driver() -> None:
    code = "import sys, pyncette; sys.exit('asyncpg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("size", [1, 4])
def test_a_pool_that_the_application_brought_is_used_and_left_open(place: Place, size: int) -> None:
    async def main() -> None:
        async with asyncpg.create_pool(url("postgres"), min_size=0, max_size=size) as pool:
            options = {
                "postgres_pool": pool,
                "postgres_table_name": place.configuration["postgres_table_name"],
            }
            async with postgres_repository(**options) as store:
                await store.write([new("reports", f"{n}") for n in range(20)], NOW)
                reads = [asyncio.ensure_future(store.get([("reports", f"{n}")])) for n in range(20)]
                assert len((await store.claim([a_group()], 10, NOW, "mine")).records) == 10
                assert all(record for [record] in await asyncio.gather(*reads))
                assert await store.watch(["reports"], lambda groups: None) is None
            assert pool.get_size() <= size
            assert await pool.fetchval("SELECT 1") == 1

    asyncio.run(main())


def test_five_hundred_calls_at_once_stay_within_the_pool(place: Place) -> None:
    name = f"test-{secrets.token_hex(6)}"
    configuration = dict(place.configuration)
    configuration["postgres_url"] += f"?application_name={name}"

    async def main() -> None:
        async with postgres_repository(**configuration) as store:
            calls = [store.write([new("reports", f"{n}")], NOW) for n in range(500)]
            assert await asyncio.gather(*calls) == [[Applied(NOW)]] * 500
            found = await asyncio.gather(*(store.get([("reports", f"{n}")]) for n in range(500)))
            assert all(record for [record] in found)
            connected = run_on(
                await asyncpg.connect(url("postgres")),
                f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'",
            )
            assert 1 <= await connected <= 10

    asyncio.run(main())


async def run_on(connection: Any, statement: str) -> Any:
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def test_claims_and_outcomes_do_not_queue_behind_what_users_ask_for(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            await store.write([new("reports", "a")], NOW)
            reads = [
                asyncio.ensure_future(store.scan("reports", EVERYTHING, None, 10))
                for _ in range(2_000)
            ]
            [record] = (await store.claim([a_group()], 1, NOW, "mine")).records
            settled = Write(*record[:2], DELETE, record.version, "mine")
            assert await store.write([settled], NOW) == [Applied(0)]
            assert not reads[-1].done()
            await asyncio.gather(*reads)

    asyncio.run(main())


def test_connections_that_the_server_ended_are_replaced(place: Place) -> None:
    name = f"test-{secrets.token_hex(6)}"
    configuration = dict(place.configuration)
    configuration["postgres_url"] += f"?application_name={name}"
    kill = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name='{name}'"

    async def main() -> None:
        async with postgres_repository(**configuration) as store:
            await store.write([new("reports", "a")], NOW)
            await store.claim([a_group()], 0, NOW, "mine")
            idle = [*store._claims._idle, *store._users._idle]
            lost: asyncio.Queue[Any] = asyncio.Queue()
            for connection in idle:
                connection.add_termination_listener(lost.put_nowait)
            connection = await asyncpg.connect(url("postgres"))
            assert len(await connection.fetch(kill)) == len(idle) == 2
            await connection.close()
            async with realtime.timeout(10):
                for _ in idle:
                    await lost.get()
            assert await store.get([("reports", "a")]) != [None]
            assert len((await store.claim([a_group()], 1, NOW, "mine")).records) == 1

    asyncio.run(main())


def test_names_of_the_search_path_are_respected() -> None:
    schema = new_table()
    address = f"{url('postgres')}?search_path={schema}"
    run_sql(url("postgres"), f"CREATE SCHEMA {schema}")
    try:
        opening(postgres_url=address, postgres_table_name="tasks")
        opening(postgres_url=address, postgres_table_name="tasks")
        found = run_sql(
            url("postgres"), f"SELECT to_regclass('{schema}.tasks_due'), to_regclass('tasks')"
        )
        assert found[0][0] is not None
        assert found[0][1] is None
    finally:
        run_sql(url("postgres"), f"DROP SCHEMA {schema} CASCADE")


def test_a_database_in_another_encoding_is_refused() -> None:
    database = new_table()
    address = urlunsplit(urlsplit(url("postgres"))._replace(path=f"/{database}"))
    run_sql(
        url("postgres"),
        f"CREATE DATABASE {database} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' "
        "TEMPLATE template0",
    )
    try:
        with pytest.raises(StoreMisconfiguredError, match="holds its texts in LATIN1"):
            opening(postgres_url=address)
    finally:
        run_sql(url("postgres"), f"DROP DATABASE {database} WITH (FORCE)")


def test_a_server_that_is_too_old_is_refused() -> None:
    class OldServer:
        """As much of a pool, and of its one connection, as is asked before the version is known."""

        def get_max_size(self) -> int:
            return 1

        async def acquire(self) -> OldServer:
            return self

        async def release(self, connection: OldServer) -> None:
            assert connection is self

        def get_server_version(self) -> ServerVersion:
            return ServerVersion(12, 22, 0, "final", 0)

    with pytest.raises(StoreMisconfiguredError, match=r"PostgreSQL 12\.22.*at least 13"):
        opening(postgres_pool=OldServer())


def test_a_server_that_only_reads_is_unavailable(place: Place) -> None:
    opening(**place.configuration)
    configuration = dict(place.configuration)
    configuration["postgres_url"] += "?default_transaction_read_only=on"

    async def main() -> None:
        async with postgres_repository(**configuration) as store:
            with pytest.raises(StoreUnavailableError, match="is it a standby"):
                await store.write([new("reports", "a")], NOW)

    asyncio.run(main())


def test_a_pool_that_names_statements_behind_a_pooler_is_told_what_to_do() -> None:
    error = translated(asyncpg.InvalidSQLStatementNameError("does not exist"), "PostgreSQL")
    assert isinstance(error, StoreMisconfiguredError)
    assert "statement_cache_size=0" in str(error)


def test_a_table_that_is_dropped_while_a_worker_runs_is_named(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            await asyncio.to_thread(
                run_sql,
                url("postgres"),
                f"DROP TABLE {place.configuration['postgres_table_name']}",
            )
            with pytest.raises(StoreMisconfiguredError, match="does not exist"):
                await store.get([("reports", "a")])

    asyncio.run(main())
