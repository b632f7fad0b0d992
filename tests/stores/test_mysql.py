"""Opening the store in MySQL and MariaDB: options, tables, privileges, connections, errors."""

from __future__ import annotations

import asyncio
import secrets
import ssl
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncmy
import pytest
from asyncmy.constants import CLIENT
from tests.servers import url
from tests.stores.mysql_place import new_table, place_at, run_sql

from pyncette.errors import StoreMisconfiguredError, StoreUnavailableError
from pyncette.mysql import MysqlOptions, mysql_repository, schema_sql
from pyncette.mysql.connection import Server, connect, query, server_of
from pyncette.store import EVERYTHING, Applied, Failed, Write
from pyncette.store.record import ANY, DELETE, Patch, State
from pyncette.store.sql.store import SqlStore
from pyncette.testing.conformance import Place
from pyncette.testing.suite.harness import NOW, a_group, a_key, new

LEGACY = """CREATE TABLE {table} (name varchar(256) PRIMARY KEY, parent_name varchar(256),
    locked_until double, locked_by varchar(256), execute_after double, task_spec text)"""


@pytest.fixture(params=["mysql", "mariadb"])
def server(request: pytest.FixtureRequest) -> str:
    """The URL of a server."""
    return url(request.param)


@pytest.fixture
def place(server: str) -> Iterator[Place]:
    with place_at(server) as place:
        yield place


@pytest.fixture
def table(server: str) -> Iterator[str]:
    """The name of a table that is dropped in the end."""
    table = new_table()
    yield table
    run_sql(server, f"DROP TABLE IF EXISTS {table}")


@pytest.fixture
def user(server: str) -> Iterator[str]:
    """The name of an account without privileges, whose password is "worker"."""
    user = f"user_{secrets.token_hex(6)}"
    run_sql(server, f"CREATE USER {user} IDENTIFIED BY 'worker'")
    yield user
    run_sql(server, f"DROP USER {user}")


def as_user(address: str, user: str, password: str) -> str:
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.hostname}:{parts.port}"))


def opening(**configuration: Any) -> None:
    async def main() -> None:
        async with mysql_repository(**configuration):
            pass

    asyncio.run(main())


def unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mysql_host": None}, "mysql_host is required"),
        ({"mysql_user": None}, "mysql_user is required"),
        ({"mysql_database": None}, "mysql_database is required"),
        ({"mysql_port": 0}, "mysql_port must be .* not 0"),
        ({"mysql_port": "3306"}, "mysql_port must be .* not '3306'"),
        ({"mysql_url": 7}, "mysql_url must look like"),
        ({"mysql_url": "postgres://u:hidden@host/db"}, "must begin with mysql://"),
        ({"mysql_url": "mysql://u:hid/den@host/db"}, "percent-encoded"),
        ({"mysql_url": "mysql://u:hidden@host/db?compress=1"}, "ssl_ca=FILE, and in nothing else"),
        ({"mysql_url": "mysql://u:hidden@host/db?ssl=maybe"}, "ssl=false"),
        ({"mysql_url": "mysql://u:hidden@h/d?ssl_ca=/absent"}, "'/absent' cannot be read"),
        ({"mysql_ssl": True}, "mysql_ssl must be an ssl.SSLContext, not True"),
        ({"mysql_table_name": "Tasks"}, "Table name 'Tasks'"),
        ({"mysql_table_name": "t" * 65}, "at most 64 characters"),
        ({"mysql_pool_size": 2}, "mysql_pool_size must be .* from 3 to 1000, not 2"),
        ({"mysql_pool": "pool"}, "mysql_pool must be an asyncmy.Pool, not str"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(options: dict[str, Any], message: str) -> None:
    usual = {"mysql_host": "host", "mysql_user": "u", "mysql_database": "db"}
    with pytest.raises(ValueError, match=message) as refused:
        opening(**{**usual, **options})
    assert "hid" not in str(refused.value)


def test_options_do_not_print_the_password() -> None:
    options = MysqlOptions(mysql_url="mysql://user:hidden@host/db", mysql_password="secret")
    for text in (repr(options), repr(options.address()), options.address().place):
        assert "hidden" not in text
        assert "secret" not in text


def test_a_url_tells_everything_percent_encoded() -> None:
    address = MysqlOptions(mysql_url="mysql://us%40er:p%2Fa%25ss@host:3307/d%2Db").address()
    assert address[:5] == ("host", 3307, "us@er", "p/a%ss", "d-b")
    assert MysqlOptions(mysql_url="mariadb://u@host/db").address()[:4] == ("host", 3306, "u", None)


def test_an_option_counts_more_than_the_url() -> None:
    options = MysqlOptions(
        mysql_url="mysql://u:p@host:1/db",
        mysql_host="other",
        mysql_port=2,
        mysql_user="v",
        mysql_password="100%41",
        mysql_database="db2",
    )
    assert options.address()[:5] == ("other", 2, "v", "100%41", "db2")


def test_a_socket_is_named_by_its_path() -> None:
    options = MysqlOptions(mysql_host="/absent/mysqld.sock", mysql_user="u", mysql_database="db")
    with pytest.raises(StoreUnavailableError, match=r"MySQL at /absent/mysqld\.sock/db"):
        asyncio.run(connect(options.address()))


def test_importing_the_package_does_not_import_the_driver() -> None:
    code = "import sys, pyncette; sys.exit('asyncmy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Servers.


@pytest.mark.parametrize(
    ("greeting", "server"),
    [
        ("8.0.11", Server(False, (8, 0, 11))),
        ("9.7.4-2", Server(False, (9, 7, 4))),
        ("10.6.1-MariaDB", Server(True, (10, 6, 1))),
        ("5.5.5-10.11.6-MariaDB-0+deb12u1", Server(True, (10, 11, 6))),
    ],
)
def test_a_server_is_known_by_its_greeting(greeting: str, server: Server) -> None:
    assert server_of(greeting, "MySQL") == server


@pytest.mark.parametrize(
    "greeting",
    ["5.7.44-log", "10.5.29-MariaDB", "5.5.5-10.4.1-MariaDB", "8.0.11-TiDB-v7.5.0", "what?"],
)
def test_a_server_that_is_too_old_is_refused_by_name(greeting: str) -> None:
    with pytest.raises(StoreMisconfiguredError, match=r"at least MySQL 8\.0 or MariaDB 10\.6"):
        server_of(greeting, "MySQL at host/db")


def test_a_wrong_password_is_said_without_telling_any(server: str) -> None:
    with pytest.raises(StoreMisconfiguredError, match="Access denied for user 'pyncette'") as error:
        opening(mysql_url=as_user(server, "pyncette", "hidden"))
    assert "hidden" not in str(error.value)


def test_a_database_that_is_not_there_is_named(server: str) -> None:
    with pytest.raises(StoreMisconfiguredError, match="Unknown database 'absent'"):
        opening(mysql_url=server, mysql_database="absent")


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(StoreUnavailableError, match=r"MySQL at 127\.0\.0\.1:1/db") as error:
        opening(mysql_url="mysql://user:hidden@127.0.0.1:1/db")
    assert "hidden" not in str(error.value)


def test_its_clock_is_that_of_utc_whatever_the_time_zone_of_the_server(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            now = await store.now()
            [[[seconds]]] = await store._users.run(  # type: ignore[attr-defined]
                lambda connection: query(connection, "SELECT UNIX_TIMESTAMP()")
            )
            assert now is not None
            assert 0 <= seconds - now // 1_000_000 <= 5

    asyncio.run(main())


# Encryption, which MariaDB 10.11 has to be set up for.


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_password_that_the_server_has_not_seen_yet_is_told_safely(encrypted: bool) -> None:
    """The full exchange of caching_sha2_password: in the clear within TLS, else by RSA."""
    user = f"user_{secrets.token_hex(6)}"
    made = f"CREATE USER {user} IDENTIFIED WITH caching_sha2_password BY 'worker'"
    run_sql(url("mysql"), made, f"GRANT SELECT ON pyncette.* TO {user}")

    async def main() -> None:
        context = unverified() if encrypted else None
        options = MysqlOptions(mysql_url=as_user(url("mysql"), user, "worker"), mysql_ssl=context)
        connection = await connect(options.address())
        [[[_, cipher]]] = await query(connection, "SHOW STATUS LIKE 'Ssl_cipher'")
        assert bool(cipher) is encrypted
        await connection.ensure_closed()

    try:
        asyncio.run(main())
    finally:
        run_sql(url("mysql"), f"DROP USER {user}")


def test_every_connection_of_the_store_is_encrypted_as_told() -> None:
    with place_at(url("mysql"), mysql_ssl=unverified()) as place:

        async def main() -> None:
            async with place.open() as store:
                assert isinstance(store, SqlStore)
                for connections in (store._claims, store._outcomes, store._users):
                    [[[_, cipher]]] = await connections.run(
                        lambda connection: query(connection, "SHOW STATUS LIKE 'Ssl_cipher'")
                    )
                    assert cipher

        asyncio.run(main())


def test_a_certificate_that_nobody_vouches_for_is_refused() -> None:
    with pytest.raises(StoreMisconfiguredError, match="certificate verify failed"):
        opening(mysql_url=url("mysql") + "?ssl=true")


def test_a_server_without_encryption_is_not_talked_to_in_the_clear() -> None:
    with pytest.raises((StoreUnavailableError, StoreMisconfiguredError)):
        opening(mysql_url=url("mariadb") + "?ssl=true")


# Tables.


def test_a_missing_table_is_made_only_where_that_is_wanted(server: str, table: str) -> None:
    options = {"mysql_url": server, "mysql_table_name": table, "mysql_skip_table_create": True}
    with pytest.raises(StoreMisconfiguredError, match=f"no table '{table}'.*schema_sql"):
        opening(**options)
    run_sql(server, schema_sql(table).rstrip(";\n"))
    opening(**options)


def test_a_table_made_by_1x_is_recognised_and_left_alone(server: str, table: str) -> None:
    run_sql(server, LEGACY.format(table=table), f"INSERT INTO {table} (name) VALUES ('a')")
    with pytest.raises(StoreMisconfiguredError, match=r"pyncette 1\.x.*migrate"):
        opening(mysql_url=server, mysql_table_name=table)
    [[row]] = run_sql(server, f"SELECT * FROM {table}")
    assert len(row) == 6


def test_a_foreign_table_is_refused(server: str, table: str) -> None:
    run_sql(server, f"CREATE TABLE {table} (id integer)")
    with pytest.raises(StoreMisconfiguredError, match="is not one of ours: it has the columns id"):
        opening(mysql_url=server, mysql_table_name=table)


def test_a_table_of_an_engine_without_row_locks_is_refused(server: str, table: str) -> None:
    made = schema_sql(table).rstrip(";\n").replace("ENGINE = InnoDB ROW_FORMAT = DYNAMIC", "")
    keys = made.replace("VARBINARY(1000)", "VARBINARY(200)")
    keys = keys.replace("KEY rare (`group`, rare),", "")
    run_sql(server, keys + " ENGINE = MyISAM")
    with pytest.raises(StoreMisconfiguredError, match="engine MyISAM"):
        opening(mysql_url=server, mysql_table_name=table)


def test_a_table_without_the_index_is_refused(server: str, table: str) -> None:
    made = schema_sql(table).rstrip(";\n").replace("KEY due (`group`, due_at),", "")
    run_sql(server, made)
    with pytest.raises(StoreMisconfiguredError, match="'due'"):
        opening(mysql_url=server, mysql_table_name=table)


def test_a_table_that_is_there_needs_no_privilege_to_make_one(
    place: Place, server: str, user: str
) -> None:
    opening(**place.configuration)
    table = place.configuration["mysql_table_name"]
    run_sql(server, f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {user}")
    limited = as_user(server, user, "worker")

    async def use() -> None:
        async with mysql_repository(mysql_url=limited, mysql_table_name=table) as store:
            assert await store.write([new("reports", "a")], NOW) == [Applied(NOW)]
            sources = [a_group(), a_key("a", ":static")]
            [record] = (await store.claim(sources, 1, NOW, "mine")).records
            await store.write([Write(*record[:2], DELETE, record.version, "mine")], NOW)
            assert await store.scan("reports", EVERYTHING, None, 10) == ([], None)

    asyncio.run(use())
    with pytest.raises(StoreMisconfiguredError, match="CREATE command denied"):
        opening(mysql_url=limited, mysql_table_name=new_table())


def test_a_key_that_is_no_text_cannot_be_written_by_hand(place: Place, server: str) -> None:
    opening(**place.configuration)
    table = place.configuration["mysql_table_name"]
    values = "1, 1, NULL, 'scheduled', 0, '', '', '', DEFAULT"
    for key in ("x'ff'", "x'c080'", "x'61e4'"):
        with pytest.raises(asyncmy.errors.MySQLError):
            run_sql(server, f"INSERT INTO {table} VALUES ('reports', {key}, {values})")
    run_sql(server, f"INSERT INTO {table} VALUES ('reports', x'f09f9880', {values})")


def test_a_text_that_is_no_utf_8_is_seen_as_unreadable_and_hinders_nothing() -> None:
    """MariaDB takes half of a surrogate pair for a character."""

    async def main(place: Place) -> None:
        table = place.configuration["mysql_table_name"]
        async with place.open() as store:
            await store.write([new("reports", "a"), new("reports", "b ä")], NOW)
            connection = await connect(MysqlOptions(mysql_url=url("mariadb")).address())
            await query(connection, f"UPDATE {table} SET schedule = x'eda080' WHERE `key` = 'a'")
            await connection.ensure_closed()
            records, _ = await store.claim([a_group()], 10, NOW, "mine")
            assert sorted(record.key for record in records) == ["a", "b ä"]
            assert {record.schedule for record in records} == {"1 plan", "\ufffd\ufffd\ufffd"}

    with place_at(url("mariadb")) as place:
        asyncio.run(main(place))


def test_counters_edited_to_their_last_value_do_not_stand_in_the_way(
    place: Place, server: str
) -> None:
    async def main() -> None:
        table = place.configuration["mysql_table_name"]
        async with place.open() as store:
            await store.write([new("reports", "a"), new("reports", "b")], NOW)
            connection = await connect(MysqlOptions(mysql_url=server).address())
            edit = "UPDATE {} SET version = 4611686018427387903, unfinished_attempts = 2147483646"
            await query(connection, edit.format(table))
            await connection.ensure_closed()
            assert len((await store.claim([a_group()], 10, NOW, "mine")).records) == 2
            again = NOW + 120_000_000
            source = a_group(before=again)
            assert len((await store.claim([source], 10, again, "again")).records) == 2

    asyncio.run(main())


def test_a_value_that_the_table_cannot_hold_is_refused(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            [failed] = await store.write([new("reports", "a", token="t" * 1_001)], NOW)
            assert isinstance(failed, Failed)
            assert isinstance(failed.error, ValueError)
            assert "refuses a value" in str(failed.error)
            assert await store.get([("reports", "a")]) == [None]
            assert await store.write([new("reports", "a")], NOW) == [Applied(NOW)]

    asyncio.run(main())


# Connections.


@pytest.mark.parametrize("flags", [0, CLIENT.FOUND_ROWS])
@pytest.mark.parametrize("autocommit", [True, False])
def test_a_pool_that_the_application_brought_is_used_and_returned_as_it_came(
    place: Place, server: str, flags: int, autocommit: bool
) -> None:
    asked = "SELECT @@autocommit, @@sql_mode, @@innodb_lock_wait_timeout, @@lock_wait_timeout, " + (
        "@@tx_isolation" if server == url("mariadb") else "@@transaction_isolation"
    )

    async def main() -> None:
        host, port, user, password, database, _ = MysqlOptions(mysql_url=server).address()
        pool = await asyncmy.create_pool(
            minsize=0,
            maxsize=3,
            host=host,
            port=port,
            user=user,
            password=password,
            database=database,
            client_flag=flags,
            autocommit=autocommit,
            sql_mode="'ANSI_QUOTES,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES'",
        )
        async with pool.acquire() as connection:
            before = await query(connection, asked)
        options = {"mysql_pool": pool, "mysql_table_name": place.configuration["mysql_table_name"]}
        async with mysql_repository(**options) as store:
            keys = [f"{number}\\'" for number in range(20)]
            await store.write([new("reports", key) for key in keys], NOW)
            reads = [asyncio.ensure_future(store.get([("reports", key)])) for key in keys]
            [record, *_] = (await store.claim([a_group()], 10, NOW, "mine")).records
            same = Patch(record.due_at, State.RUNNING, record.unfinished_attempts)
            write = Write(*record[:2], same, record.version, "mine")
            assert await store.write([write], NOW) == [Applied(record.version + 1)]
            assert await store.write([write._replace(change=DELETE, expect=ANY)], NOW) == [
                Applied(0)
            ]
            assert all(record for [record] in await asyncio.gather(*reads))
            assert pool.size <= 3
        assert pool.freesize == pool.size
        for _ in range(pool.size):
            async with pool.acquire() as connection:
                assert await query(connection, asked) == before
        pool.close()
        await pool.wait_closed()

    asyncio.run(main())


def test_a_pool_of_another_character_set_is_refused(server: str) -> None:
    async def main() -> None:
        host, port, user, password, database, _ = MysqlOptions(mysql_url=server).address()
        where: Any = {"host": host, "port": port, "user": user, "password": password}
        async with asyncmy.create_pool(
            minsize=0, maxsize=3, database=database, charset="latin1", **where
        ) as pool:
            with pytest.raises(StoreMisconfiguredError, match="charset='utf8mb4', not 'latin1'"):
                async with mysql_repository(mysql_pool=pool):
                    pass
            assert pool.size == 0

    asyncio.run(main())


def test_a_pool_that_is_too_small_is_refused(server: str) -> None:
    async def main() -> None:
        async with asyncmy.create_pool(minsize=0, maxsize=2) as pool:
            with pytest.raises(ValueError, match=r"maxsize of mysql_pool must be .* from 3"):
                async with mysql_repository(mysql_pool=pool):
                    pass

    asyncio.run(main())


def test_five_hundred_calls_at_once_stay_within_the_pool(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            assert isinstance(store, SqlStore)
            calls = [store.write([new("reports", f"{n}")], NOW) for n in range(500)]
            assert await asyncio.gather(*calls) == [[Applied(NOW)]] * 500
            found = await asyncio.gather(*(store.get([("reports", f"{n}")]) for n in range(500)))
            assert all(record for [record] in found)
            assert 1 <= len(store._users._idle) <= 8

    asyncio.run(main())


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


# What is asked of the server.


def test_a_claim_reads_few_rows_of_a_large_group(place: Place) -> None:
    """Neither what is paused, which has no instant, nor what is due later is walked over."""

    async def main() -> None:
        async with place.open() as store:
            assert isinstance(store, SqlStore)
            for first in range(0, 6_000, 1_000):
                keys = [f"{number:05}" for number in range(first, first + 1_000)]
                paused = [new("reports", f"p{key}", due_at=None) for key in keys]
                later = [new("reports", f"l{key}", due_at=NOW + 1 + first) for key in keys]
                await store.write(paused, NOW)
                await store.write(later, NOW)
            await store.write([new("reports", f"due {number}") for number in range(5)], NOW)

            async def handled() -> int:
                [rows] = await store._claims.run(
                    lambda connection: query(connection, "SHOW SESSION STATUS LIKE 'Handler_read%'")
                )
                return sum(int(count) for _, count in rows)

            before = await handled()
            sources = [a_group(), a_key("p00001", ":static"), a_group("absent")]
            assert len((await store.claim(sources, 100, NOW, "mine")).records) == 5
            claimed = await handled()
            assert claimed - before < 200
            assert not (await store.claim(sources, 100, NOW, "next")).records
            assert await handled() - claimed < 150

    asyncio.run(main())


def test_a_page_reads_few_rows_of_a_large_group(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            assert isinstance(store, SqlStore)
            keys = [f"{number:05}" for number in range(3_000)]
            await store.write([new("reports", key) for key in keys], NOW)
            page = await store.scan("reports", EVERYTHING, "01000", 10)
            assert [record.key for record in page.records] == keys[1_001:1_011]
            [connection] = store._users._idle[-1:]
            status = "SHOW SESSION STATUS LIKE 'Handler_read%'"
            [before] = await query(connection, status)
            await store.scan("reports", EVERYTHING, "01000", 10)
            await store.get([("reports", "01000")])
            [after] = await query(connection, status)
            read = [int(b) - int(a) for (_, a), (_, b) in zip(before, after, strict=True)]
            assert sum(read) < 100

    asyncio.run(main())


def test_what_others_schedule_for_the_past_is_seen_within_a_second(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store, place.open() as other:
            await store.write([new("reports", "a")], NOW)
            assert len((await store.claim([a_group()], 10, NOW, "mine")).records) == 1
            await store.write([new("reports", "own", due_at=NOW - 7)], NOW)
            await other.write([new("reports", "theirs", due_at=NOW - 5)], NOW)
            own, _ = await store.claim([a_group(share=1)], 10, NOW, "next")
            assert [record.key for record in own] == ["own"]
            later = NOW + 1_000_000
            theirs, _ = await store.claim([a_group(before=later)], 10, later, "last")
            assert [record.key for record in theirs] == ["theirs"]

    asyncio.run(main())
