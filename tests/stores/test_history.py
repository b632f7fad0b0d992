"""What only some stores have of the run history: tables, privileges, keys, and garbage in them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.servers import url
from tests.stores import dynamodb_place, mysql_place, postgres_place, redis_place
from tests.stores.redis_place import client_at, keys_in
from tests.stores.redis_server import a_server
from tests.stores.sql_servers import place_of_a_user

import pyncette.mysql
import pyncette.postgres
from pyncette.errors import StoreMisconfiguredError
from pyncette.redis import redis_repository
from pyncette.store.history import MINUTE, RunFilter
from pyncette.testing.conformance import Place
from pyncette.testing.suite.harness import NOW
from pyncette.testing.suite.history import KEPT, THIS_MINUTE, all_of, history_of, row, total

DOCS = Path(__file__).parents[2] / "docs" / "explanation" / "stores"


class Sql(NamedTuple):
    """A server, and a place on it."""

    server: str
    place: Place
    run: Callable[..., Any]

    @property
    def table(self) -> str:
        return str(self.place.configuration[f"{self.kind}_table_name"])

    @property
    def kind(self) -> str:
        return "postgres" if self.server == "postgres" else "mysql"

    @property
    def schema(self) -> str:
        module = pyncette.postgres if self.kind == "postgres" else pyncette.mysql
        return str(module.history_schema_sql(self.table))

    def sql(self, *statements: str) -> Any:
        return self.run(url(self.server), *statements)

    def with_options(self, **options: Any) -> Place:
        named = {f"{self.kind}_{name}": value for name, value in options.items()}
        return Place(self.place.factory, {**self.place.configuration, **named})


@pytest.fixture(params=["postgres", "mysql", "mariadb"])
def sql(request: pytest.FixtureRequest) -> Iterator[Sql]:
    module: Any = postgres_place if request.param == "postgres" else mysql_place
    with module.place_at(url(request.param)) as place:
        yield Sql(request.param, place, module.run_sql)


def prepared(place: Place, *rows: Any) -> list[Any]:
    """Prepares the history of a place, writes rows, and reads all."""

    async def main() -> list[Any]:
        async with place.open() as store:
            history = history_of(store)
            await history.prepare()
            if rows:
                await history.append(rows, [total()])
            return await all_of(history)

    return asyncio.run(main())


def test_tables_that_are_missing_may_not_be_created_if_that_is_switched_off(sql: Sql) -> None:
    async def opened() -> None:
        async with sql.place.open():
            pass

    asyncio.run(opened())
    place = sql.with_options(skip_table_create=True)
    with pytest.raises(StoreMisconfiguredError, match=r"_runs' in .*history_schema_sql"):
        prepared(place)
    sql.sql(*sql.schema.split(";\n")[:-1])
    assert len(prepared(place, row())) == 1


def test_a_table_of_another_program_is_refused_and_left_alone(sql: Sql) -> None:
    sql.sql(f"CREATE TABLE {sql.table}_runs (number integer)")
    with pytest.raises(StoreMisconfiguredError, match="has the columns number; expected are"):
        prepared(sql.place)


def test_a_name_that_leaves_no_room_for_those_of_the_history_is_refused(sql: Sql) -> None:
    name = "test_" + secrets.token_hex(25)
    place = sql.with_options(table_name=name)
    try:
        with pytest.raises(StoreMisconfiguredError, match="too long for a run history"):
            prepared(place)
    finally:
        sql.sql(f"DROP TABLE IF EXISTS {name}")


def test_a_column_that_a_later_release_has_added_does_not_matter(sql: Sql) -> None:
    prepared(sql.place)
    sql.sql(
        f"ALTER TABLE {sql.table}_runs ADD COLUMN later bigint",
        f"ALTER TABLE {sql.table}_run_totals ADD COLUMN later bigint",
    )
    one = row()
    assert prepared(sql.place, one) == [one]


def test_values_that_no_attempt_has_do_not_hide_the_others(sql: Sql) -> None:
    first, second, third = row(1), row(2), row(3)
    prepared(sql.place, first, second, third)
    extreme = 2**63 - 1
    sql.sql(
        f"UPDATE {sql.table}_runs SET attempt = -5, planned_at = {extreme}, outcome = '' "
        f"WHERE ended_at = {second.ended_at}",
        f"UPDATE {sql.table}_run_totals SET succeeded = -1",
    )
    found = prepared(sql.place)
    assert (found[0], found[2]) == (third, first)
    broken = second._replace(attempt=-5, planned_at=extreme, outcome="")
    assert found[1] == broken


def test_a_total_that_cannot_be_added_to_is_refused_and_holds_up_no_other(sql: Sql) -> None:
    prepared(sql.place, row())
    sql.sql(f"UPDATE {sql.table}_run_totals SET succeeded = {2**63 - 1}")
    with pytest.raises(ValueError, match="value"):
        prepared(sql.place, row())
    later = row()

    async def main() -> None:
        async with sql.place.open() as store:
            await history_of(store).append([later], [total(1)])
            assert later in await all_of(history_of(store))

    asyncio.run(main())


def test_a_total_that_cannot_be_added_to_in_dynamodb_is_refused_and_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dynamodb_place.set_credentials(monkeypatch)
    server = url("dynamodb")
    with dynamodb_place.place_at(server) as place:
        table = place.configuration["dynamodb_table_name"] + "-runs"

        async def main() -> None:
            async with place.open() as store:
                history = history_of(store)
                await history.prepare(KEPT)
                await history.append([row()], [total()])
                items = dynamodb_place.request(server, "Scan", TableName=table)["Items"]
                [broken] = [item for item in items if ":n:" in item["in"]["S"] and "took" in item]
                broken["took"] = {"S": "long"}
                dynamodb_place.request(server, "PutItem", TableName=table, Item=broken)
                with pytest.raises(ValueError, match="cannot keep a value of the run history"):
                    await history.append([row()], [total()])
                later = row()
                await history.append([later], [total(1)])
                assert later in await all_of(history)
                assert await history.totals("reports", NOW, NOW + 2 * MINUTE) == [total(1)]

        asyncio.run(main())


@pytest.mark.parametrize("server", ["postgres", "mysql", "mariadb"])
def test_the_privileges_in_the_documentation_are_enough_for_the_history(server: str) -> None:
    with place_of_a_user(server) as of_user:
        with pytest.raises(StoreMisconfiguredError, match=r"(?i)denied"):
            prepared(of_user.place)
        kind = "postgres" if server == "postgres" else "mysql"
        page = (DOCS / f"{kind}.md").read_text()
        grants = [
            line for line in page.splitlines() if line.startswith("GRANT") and "_tasks_run" in line
        ]
        assert grants
        table = of_user.place.configuration[f"{kind}_table_name"]
        module: Any = postgres_place if server == "postgres" else mysql_place
        schema: Any = pyncette.postgres if server == "postgres" else pyncette.mysql
        module.run_sql(url(server), *schema.history_schema_sql(table).split(";\n")[:-1])
        for grant in grants:
            named = grant.replace("app.", "").replace("pyncette_tasks", table)
            module.run_sql(url(server), named.replace("TO worker;", f"TO {of_user.user}"))

        async def main() -> None:
            async with of_user.place.open() as store:
                history = history_of(store)
                await history.prepare()
                await history.append([row()], [total()])
                assert len(await all_of(history)) == 1
                assert await history.prune(None, NOW + 10_000_000, 10) == 1

        asyncio.run(main())


def test_the_privileges_in_the_documentation_are_enough_for_the_history_in_redis(
    tmp_path: Path,
) -> None:
    page = (DOCS / "redis.md").read_text()
    [rules] = [line for line in page.splitlines() if line.startswith("ACL SETUSER")]
    [more] = [line for line in page.splitlines() if "for a run history" in line]
    added = [word.strip("`") for word in more.split("for a run history")[0].split() if "+z" in word]
    assert added
    with a_server(tmp_path) as server:

        async def main() -> None:
            async with client_at(server.url) as client:
                await client.execute_command(*rules.split(), *added, "+pexpire")
            address = server.url.replace("//", "//pyncette:secret@")
            async with redis_repository(redis_url=address, redis_namespace="reports") as store:
                await store.history.append([row(outcome="failed")], [total()])
                assert len(await all_of(store.history, RunFilter("reports"))) == 1
                assert len(await store.history.totals(None, 0, NOW)) == 1
                assert await store.history.prune("reports", NOW + 1, 10) == 1
                assert await store.history.prune(None, NOW + 1, 10) == 1

        asyncio.run(main())


def test_the_history_in_redis_has_few_keys_which_expire_if_no_worker_is_left() -> None:
    async def main(place: Place) -> None:
        async with place.open() as store, client_at(url("redis")) as client:
            rows = [
                row(number, task=f"task {number}", instance=f"{number}") for number in range(500)
            ]
            history = history_of(store)
            await history.append(rows, [total(0, one.task) for one in rows])
            keys = await keys_in(client, place.configuration["redis_namespace"])
            histories = [key for key in keys if key.endswith(b":history")]
            assert len(histories) == 8
            assert [await client.pttl(key) for key in histories] == [-1] * 8
            await history.prune(None, NOW, 10)
            for key in histories:
                assert await client.pttl(key) > 86_000_000

    with redis_place.place_at(url("redis")) as place:
        asyncio.run(main(place))


def test_members_in_redis_that_are_no_attempts_do_not_hide_the_others() -> None:
    async def main(place: Place) -> None:
        async with place.open() as store, client_at(url("redis")) as client:
            history = history_of(store)
            rows = [row(number) for number in range(3)]
            await history.append(rows, [total()])
            keys = await keys_in(client, place.configuration["redis_namespace"])
            [key] = [key for key in keys if key.endswith(b":history")]
            [attempt] = await client.zrangebylex(key, "[a", "(b", 0, 1)
            broken = [
                b"a",
                b"a" + b"x" * 10,
                attempt[:9] + b"\x90" * 7 + b"\x00" + b"{",
                attempt[:9] + b"\x90" * 7 + b"\x01" + b"[1]",
                attempt[:9] + b"\x90" * 7 + b"\x02" + b"\xff",
                attempt[:9] + b"\x90" * 7 + b"\x03" + b"[" * 100_000,
                b"t" + b"reports\0" + b"\x80" * 16,
                b"m",
                b"m\xff",
                b"n" + b"reports\0" + b"\x80" * 9,
                b"z",
            ]
            await client.zadd(key, dict.fromkeys(broken, 0))
            for where in (RunFilter(), RunFilter("reports")):
                found = [one for one in await all_of(history, where, 2) if one.task == "reports"]
                assert found == rows[::-1]
            assert await history.totals(None, THIS_MINUTE, NOW + 1) == [total()]
            for _ in range(20):
                if not await history.prune(None, NOW + 10_000_000, 3):
                    break
            assert await all_of(history) == []

    with redis_place.place_at(url("redis")) as place:
        asyncio.run(main(place))
