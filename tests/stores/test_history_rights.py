"""What a run history does where a right is missing: the runs go on, and the log names it.

DynamoDB Local checks no rights: a proxy does so, by a policy.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.servers import url
from tests.stores import dynamodb_place, mysql_place, postgres_place
from tests.stores.dynamodb_proxy import Answer, Call, Proxy, proxy_before
from tests.stores.sql_servers import place_of_a_user

import pyncette.mysql
import pyncette.postgres
from pyncette import Context, Pyncette
from pyncette.errors import StoreMisconfiguredError
from pyncette.history import use_history
from pyncette.store.history import MINUTE
from pyncette.testing.conformance import Place
from pyncette.testing.suite.harness import NOW
from pyncette.testing.suite.history import all_of, history_of, row, total

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "stores" / "dynamodb.md"
POLICY = frozenset(
    re.findall(
        r'"dynamodb:(\w+)"', PAGE.read_text().partition("### The table of the run history")[2]
    )
)
"""The actions that the documentation allows a worker on the table of the history."""

NEEDED = POLICY - {"CreateTable", "UpdateTimeToLive"}

# A transaction needs the rights of its parts.
ACTIONS = {"TransactWriteItems": "UpdateItem"}


def tables_of(body: dict[str, Any]) -> set[str]:
    """The tables that a request is about."""
    transaction = [item["Update"]["TableName"] for item in body.get("TransactItems", ())]
    return {*body.get("RequestItems", ()), *transaction, *filter(None, [body.get("TableName")])}


def with_rights(actions: Collection[str]) -> Callable[[Call], Any]:
    """Refuses what a policy does not allow on the table of the history, in the service's words."""

    async def behaviour(call: Call) -> Answer | None:
        action = ACTIONS.get(call.operation, call.operation)
        of_history = [name for name in tables_of(call.body) if name.endswith("-runs")]
        if not of_history or action in actions:
            return await call.forward()
        message = (
            "User: arn:aws:iam::123456789012:user/worker is not authorized to perform: "
            f"dynamodb:{action} on resource: arn:aws:dynamodb:eu-west-1:123456789012:table/"
            f"{of_history[0]} because no identity-based policy allows the dynamodb:{action} action"
        )
        body = {
            "__type": "com.amazon.coral.service#AccessDeniedException",
            "Message": message,
        }
        return Answer(400, body, "Tue, 24 Nov 2026 16:00:00 GMT")

    return behaviour


class Limited(NamedTuple):
    """A worker with all rights that it needs, and how to take one away.

    Attributes:
        place: Where it works; the tables are there.
        take: Takes a right: "add", "total", "read" or "remove".
        named: What an error says that lacks such a right.
        reads_to_write: Whether a worker that may not read may not write either.
    """

    place: Place
    take: Callable[[str], None]
    named: Callable[[str], str]
    reads_to_write: bool


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    dynamodb_place.set_credentials(monkeypatch)
    with proxy_before(url("dynamodb")) as proxy:
        yield proxy


@contextmanager
def limited_sql(server: str) -> Iterator[Limited]:
    postgres = server == "postgres"
    module: Any = postgres_place if postgres else mysql_place
    schema: Any = pyncette.postgres if postgres else pyncette.mysql
    with place_of_a_user(server) as of_user:
        kind = "postgres" if postgres else "mysql"
        table = of_user.place.configuration[f"{kind}_table_name"]

        def run(*statements: str) -> None:
            module.run_sql(url(server), *statements)

        verbs = {"add": "INSERT", "total": "UPDATE", "read": "SELECT", "remove": "DELETE"}
        tables = [f"{table}_runs", f"{table}_run_totals"]
        run(*schema.history_schema_sql(table).split(";\n")[:-1])
        run(*(f"GRANT {', '.join(verbs.values())} ON {name} TO {of_user.user}" for name in tables))

        def take(right: str) -> None:
            run(*(f"REVOKE {verbs[right]} ON {name} FROM {of_user.user}" for name in tables))

        def named(right: str) -> str:
            # PostgreSQL names the table alone.
            return f"permission denied for table {table}_run" if postgres else verbs[right]

        yield Limited(of_user.place, take, named, True)


@contextmanager
def limited_dynamodb(proxy: Proxy) -> Iterator[Limited]:
    actions = {"add": "BatchWriteItem", "total": "UpdateItem", "read": "Query"}
    with dynamodb_place.place_at(url("dynamodb"), proxy.url) as place:

        async def main() -> None:
            async with place.open() as store:
                await history_of(store).prepare()

        asyncio.run(main())
        proxy.behaviour = with_rights(NEEDED)

        def take(right: str) -> None:
            proxy.behaviour = with_rights(NEEDED - {actions[right]})

        yield Limited(place, take, lambda right: f"dynamodb:{actions[right]}", False)


@pytest.fixture(params=["postgres", "mysql", "mariadb", "dynamodb"])
def limited(request: pytest.FixtureRequest) -> Iterator[Limited]:
    if request.param == "dynamodb":
        with limited_dynamodb(request.getfixturevalue("proxy")) as place:
            yield place
    else:
        with limited_sql(request.param) as place:
            yield place


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelname in ("WARNING", "ERROR")]


@pytest.mark.parametrize("right", ["add", "total"])
def test_a_worker_that_may_not_write_goes_on_and_says_what_it_lacks(
    limited: Limited, right: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        app = Pyncette(limited.place.factory, **limited.place.configuration)
        history = use_history(app)
        ran: list[str] = []

        @app.dynamic_task()
        async def body(context: Context) -> None:
            ran.append(context.task.name)

        async with app.create() as context:
            await asyncio.to_thread(limited.take, right)
            for name in "abc":
                await context.schedule_task(body, name, execute_at=LONG_AGO)
            await context.run_until_idle()
            await context.runs()  # writes what waits
            assert sorted(ran) == ["a", "b", "c"]
            assert (await context.list_tasks(body)).tasks == []
            assert history.lost == 3
            [text] = warnings_in(caplog)
            assert text.startswith("3 attempts are missing in the run history")
            assert limited.named(right) in text

    asyncio.run(main())


def test_who_may_not_read_is_told_what_is_lacking_and_the_worker_goes_on(
    limited: Limited, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        app = Pyncette(limited.place.factory, **limited.place.configuration)
        history = use_history(app)

        @app.dynamic_task()
        async def body(context: Context) -> None:
            pass

        async with app.create() as context:
            await asyncio.to_thread(limited.take, "read")
            await context.schedule_task(body, "a", execute_at=LONG_AGO)
            await context.run_until_idle()
            for call in (context.runs(), context.run_totals(LONG_AGO)):
                with pytest.raises(StoreMisconfiguredError, match=limited.named("read")):
                    await call
            # An SQL server wants the right to read for what adds to a total, too.
            said = warnings_in(caplog)
            assert history.lost == len(said) == limited.reads_to_write
            assert all(limited.named("read") in text for text in said)

    asyncio.run(main())


@pytest.mark.parametrize("server", ["postgres", "mysql", "mariadb"])
def test_who_may_not_remove_is_told_what_is_lacking(server: str) -> None:
    with limited_sql(server) as limited:

        async def main() -> None:
            async with limited.place.open() as store:
                history = history_of(store)
                await history.prepare()
                await history.append([row()], [total()])
                await asyncio.to_thread(limited.take, "remove")
                for task in (None, "reports"):
                    with pytest.raises(StoreMisconfiguredError, match=limited.named("remove")):
                        await history.prune(task, NOW + MINUTE, 10)
                assert len(await all_of(history)) == 1

        asyncio.run(main())


@pytest.mark.parametrize("creates", [True, False], ids=["created", "there"])
def test_the_policy_in_the_documentation_is_enough_for_the_history_in_dynamodb(
    proxy: Proxy, creates: bool
) -> None:
    assert len(POLICY) == 7
    with dynamodb_place.place_at(url("dynamodb"), proxy.url) as place:

        async def main(actions: Collection[str]) -> None:
            proxy.behaviour = with_rights(actions)
            async with place.open() as store:
                history = history_of(store)
                await history.prepare()
                await history.append([row(outcome="failed")], [total()])
                # What is read may be a moment old, and empty: it is the right that counts here.
                await all_of(history)
                await history.totals(None, 0, NOW + MINUTE)
                assert await history.prune(None, NOW + MINUTE, 10) == 0

        asyncio.run(main(POLICY))
        if not creates:
            asyncio.run(main(NEEDED))


@pytest.mark.parametrize("action", sorted(POLICY - {"BatchWriteItem", "UpdateItem", "Query"}))
def test_who_may_not_prepare_the_table_in_dynamodb_is_told_what_is_lacking_at_once(
    proxy: Proxy, action: str
) -> None:
    proxy.behaviour = with_rights(POLICY - {action})
    with dynamodb_place.place_at(url("dynamodb"), proxy.url) as place:

        async def main() -> None:
            app = Pyncette(place.factory, **place.configuration)
            use_history(app)
            async with app.create():
                raise AssertionError

        with pytest.raises(StoreMisconfiguredError, match=f"dynamodb:{action} "):
            asyncio.run(main())
