"""The index of rare states in DynamoDB: what is in it, and what happens where it is missing."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from tests.servers import url
from tests.stores.dynamodb_place import edit, place_at, request, set_credentials
from tests.stores.dynamodb_proxy import (
    Answer,
    Call,
    LaggingIndex,
    Proxy,
    error,
    honest,
    proxy_before,
)

from pyncette import Pyncette
from pyncette.cli import doctor
from pyncette.cli.printing import Printer
from pyncette.clock import realtime
from pyncette.dynamodb import table_definition
from pyncette.dynamodb.rare import SHARDS, addition, mark_of
from pyncette.errors import StoreMisconfiguredError
from pyncette.store import Applied, Counted, Filter, Store, Write
from pyncette.store.rare import RARE_STATES
from pyncette.store.record import ANY, DELETE, Patch, State
from pyncette.testing.conformance import Place
from pyncette.testing.suite.harness import NOW, a_group, keys_of, new, pages_of

PARKED = Filter(frozenset({State.PARKED}))
RARE = Filter(frozenset({State.PARKED, State.PAUSED, State.RETRYING}))


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with proxy_before(url("dynamodb")) as proxy:
        yield proxy


@pytest.fixture
def place(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    set_credentials(monkeypatch)
    with place_at(url("dynamodb"), proxy.url) as place:
        yield place


def on(place: Place, test: Callable[[Store], Awaitable[None]], **more: Any) -> None:
    async def main() -> None:
        async with realtime.timeout(60), place.open(**more) as store:
            await test(store)

    asyncio.run(main())


def table_of(place: Place) -> str:
    return str(place.configuration["dynamodb_table_name"])


async def entries(place: Place) -> dict[str, str]:
    """What is in the index: each key, and the state before the first colon of its attribute."""
    answer = await asyncio.to_thread(
        request, url("dynamodb"), "Scan", TableName=table_of(place), IndexName="rare"
    )
    return {item["key"]["S"]: item["rare"]["S"].partition(":")[0] for item in answer["Items"]}


async def add(store: Store, key: str, state: State, due_at: int | None = None) -> None:
    assert await store.write([new("reports", key, state=state, due_at=due_at)], NOW) == [
        Applied(NOW)
    ]


def create_without_index(place: Place, **more: Any) -> None:
    """A table as it was before there was the index of rare states."""
    definition = {**table_definition(table_of(place)), **more}
    definition["AttributeDefinitions"] = definition["AttributeDefinitions"][:3]
    definition["GlobalSecondaryIndexes"] = definition["GlobalSecondaryIndexes"][:1]
    answer = request(url("dynamodb"), "CreateTable", **definition)
    assert "TableDescription" in answer, answer


def wait_for_index(place: Place) -> None:
    """Waits until DynamoDB Local has added it: until then, it does not take every write."""
    for _ in range(1_000):
        described = request(url("dynamodb"), "DescribeTable", TableName=table_of(place))["Table"]
        statuses = [index["IndexStatus"] for index in described["GlobalSecondaryIndexes"]]
        if statuses == ["ACTIVE", "ACTIVE"]:
            return
        threading.Event().wait(0.01)
    raise AssertionError(described)


def refusing(index: str) -> Callable[[Call], Awaitable[Answer | None]]:
    async def refuse(call: Call) -> Answer | None:
        if call.operation == "Query" and call.body.get("IndexName") == index:
            return error("AccessDeniedException")
        return await call.forward()

    return refuse


def test_only_records_in_a_rare_state_are_in_the_index(place: Place) -> None:
    async def test(store: Store) -> None:
        for state in State:
            await add(store, state.value, state, NOW)
        rare = {state.value for state in RARE_STATES}
        assert await entries(place) == {state: state for state in rare}
        # Each way out of it: a claim, an outcome, a replacement, a removal.
        claimed, _ = await store.claim([a_group()], 100, NOW, "worker-1")
        assert len(claimed) == len(State)
        assert await entries(place) == {}
        done = Patch(NOW, State.RETRYING, 0)
        for record in claimed:
            await store.write([Write(*record[:2], done, record.version, record.token)], NOW)
        assert set((await entries(place)).values()) == {"retrying"}
        for change in (
            Patch(None, State.PAUSED, 0),
            Patch(None, State.PARKED, 0),
            new("reports", "x", state=State.FINISHED).change,
            Patch(NOW, State.SCHEDULED, 0),
            Patch(None, State.PARKED, 0),
            DELETE,
        ):
            await store.write([Write("reports", "running", change, ANY)], NOW)
            there = (await entries(place)).get("running")
            wanted = getattr(change, "state", None)
            assert there == (wanted if wanted in RARE_STATES else None)

    on(place, test)


def test_an_index_key_is_unambiguous_and_one_of_few() -> None:
    states = {mark_of(state, ":a:1", "key") for state in RARE_STATES}
    assert len(states) == len(RARE_STATES)
    marks = {mark_of(State.PARKED, ":a", f"user-{number}") for number in range(1_000)}
    assert len(marks) == SHARDS
    assert mark_of(State.SCHEDULED, ":a", "key") is None
    assert mark_of(State.RUNNING, ":a", "key") is None


def test_pages_of_rare_states_are_in_order_and_whole(place: Place) -> None:
    keys = [f"k{number:03}é" for number in range(90)]
    states = (State.PARKED, State.PAUSED, State.RETRYING)

    async def test(store: Store) -> None:
        batch = [
            new(
                "reports", key, state=states[number % 3], due_at=99 - number if number % 2 else None
            )
            for number, key in enumerate(keys)
        ]
        await store.write([*batch, new("reports", "k000", state=State.SCHEDULED)], NOW)
        await store.write([new("reports:1", "k000", state=State.PARKED)], NOW)
        for limit in (1, 7, 30, 1_000):
            assert [r.key for r in await pages_of(store, "reports", RARE, limit)] == keys
            parked = await pages_of(store, "reports", PARKED, limit)
            assert [record.key for record in parked] == keys[::3]
            where = RARE._replace(prefix="k01", due_before=87)
            found = await pages_of(store, "reports", where, limit)
            assert [record.key for record in found] == [keys[13], keys[15], keys[17], keys[19]]
            # Where many entries do not match, one shard has looked further than another.
            found = await pages_of(store, "reports", RARE._replace(due_before=40), limit)
            assert [record.key for record in found] == keys[61::2]
        assert await store.count("reports", RARE, 90) == Counted(90, True)
        assert await store.count("reports", RARE, 89) == Counted(89, False)
        where = RARE._replace(prefix="k01", due_before=87)
        assert await store.count("reports", where, 10) == Counted(4, True)
        page = await store.scan("reports", RARE, None, 20)
        assert [record.key for record in page.records] == keys[:20]

    on(place, test)


@pytest.mark.parametrize(
    "value", [None, "", "x", ":::", "parked:9::reports", "paused:0::reports", 1, 1.5, True, b"\0"]
)
def test_garbage_in_the_attribute_hurts_only_its_record(place: Place, value: Any) -> None:
    async def test(store: Store) -> None:
        for key in "abcdef":
            await add(store, key, State.PARKED)
        await add(store, "running", State.SCHEDULED, NOW)
        marks = [mark_of(State.PARKED, ":reports", key) for key in "abdef"]
        for garbage in (value, *(marks if value is None else ())):
            for key in ("c", "running"):
                await asyncio.to_thread(
                    edit, url("dynamodb"), place, ("reports", key), "rare", garbage
                )
            for limit in (1, 100):
                found = [r.key for r in await pages_of(store, "reports", PARKED, limit)]
                assert [key for key in found if key != "c"] == list("abdef")
                assert len(found) == len(set(found))
            counted = await store.count("reports", PARKED, 100)
            assert counted in (Counted(5, True), Counted(6, True))
        # What is written next mends it.
        claimed, _ = await store.claim([a_group()], 100, NOW, "worker-1")
        assert [record.key for record in claimed] == ["running"]
        await store.write([Write("reports", "c", Patch(None, State.PARKED, 0), ANY)], NOW + 1)
        assert sorted(await entries(place)) == list("abcdef")
        assert await store.count("reports", PARKED, 100) == Counted(6, True)

    on(place, test)


def test_a_page_shows_what_a_record_is_now_and_not_what_the_index_says(
    place: Place, proxy: Proxy
) -> None:
    async def test(store: Store) -> None:
        for key in "abc":
            await add(store, key, State.PARKED)
        proxy.behaviour = LaggingIndex(queries=1_000)
        assert keys_of(await pages_of(store, "reports", PARKED)) == list("abc")
        await store.write([Write("reports", "a", DELETE, ANY)], NOW)
        await store.write([Write("reports", "b", Patch(NOW, State.SCHEDULED, 0), ANY)], NOW)
        assert keys_of(await pages_of(store, "reports", PARKED)) == ["c"]
        assert await store.count("reports", PARKED, 10) == Counted(3, True)

    on(place, test)


def test_a_table_without_the_index_gets_it_with_what_is_in_it(place: Place) -> None:
    create_without_index(place)

    async def park(store: Store) -> None:
        await add(store, "a", State.PARKED)
        await add(store, "b", State.SCHEDULED)
        assert await store.count("reports", PARKED, 10) == Counted(1, True)

    async def look(store: Store) -> None:
        assert await entries(place) == {"a": "parked"}
        assert keys_of(await pages_of(store, "reports", PARKED)) == ["a"]

    # Whoever has no right to change the table writes the attribute all the same.
    on(place, park, dynamodb_skip_table_create=True)
    on(place, look)


def test_an_index_of_a_table_with_provisioned_capacity_has_the_tables_capacity(
    place: Place,
) -> None:
    units = {"ReadCapacityUnits": 7, "WriteCapacityUnits": 9}
    described = {"TableName": "tasks", "ProvisionedThroughput": {**units, "NumberOfDecreases": 0}}
    [update] = addition(described)["GlobalSecondaryIndexUpdates"]
    assert update["Create"]["ProvisionedThroughput"] == units
    on_demand = {**described, "BillingModeSummary": {"BillingMode": "PAY_PER_REQUEST"}}
    [update] = addition(on_demand)["GlobalSecondaryIndexUpdates"]
    assert "ProvisionedThroughput" not in update["Create"]


def test_opening_waits_only_shortly_for_an_index_that_is_added(
    place: Place, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a large table the service takes hours; meanwhile lists are made as without the index."""
    monkeypatch.setattr("pyncette.dynamodb.INDEX_WAIT_S", 0.05)
    monkeypatch.setattr("pyncette.dynamodb.READY_PAUSE_S", 0.01)
    caplog.set_level(logging.INFO, "pyncette")
    create_without_index(place)
    ready = False

    async def filling(call: Call) -> Answer | None:
        answer = await call.forward()
        if not ready and call.operation == "DescribeTable":
            for index in answer.body["Table"]["GlobalSecondaryIndexes"]:
                if index["IndexName"] == "rare":
                    index["IndexStatus"] = "CREATING"
        if not ready and call.operation == "Query" and call.body.get("IndexName") == "rare":
            return error("ValidationException")
        return answer

    async def test(store: Store) -> None:
        nonlocal ready
        await asyncio.to_thread(wait_for_index, place)
        await add(store, "a", State.PARKED)
        for _ in range(2):
            assert await store.count("reports", PARKED, 10) == Counted(1, True)
            assert keys_of(await pages_of(store, "reports", PARKED)) == ["a"]
        proxy.calls.clear()
        ready = True
        assert await store.count("reports", PARKED, 10) == Counted(1, True)
        # The other requests read the clock.
        assert proxy.calls.count("Query") == SHARDS

    proxy.behaviour = filling
    on(place, test)
    assert "the index 'rare' is added" in caplog.text
    assert "the index 'rare' is being made" in caplog.text
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1


@pytest.mark.parametrize("code", ["AccessDeniedException", "LimitExceededException"])
def test_where_the_index_cannot_be_added_it_is_said_and_lists_work(
    place: Place, proxy: Proxy, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    create_without_index(place)

    async def refuse(call: Call) -> Answer | None:
        return error(code) if call.operation == "UpdateTable" else await call.forward()

    async def test(store: Store) -> None:
        await add(store, "a", State.PARKED)
        assert await store.count("reports", PARKED, 10) == Counted(1, True)
        assert keys_of(await pages_of(store, "reports", PARKED)) == ["a"]

    proxy.behaviour = refuse
    on(place, test)
    assert f"has no index 'rare', and it was not added ({code}" in caplog.text


def test_where_the_index_must_not_be_read_it_is_said_once_and_lists_work(
    place: Place, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    refuse = refusing("rare")

    async def test(store: Store) -> None:
        for key in "abc":
            await add(store, key, State.PARKED)
        proxy.behaviour = refuse
        assert await store.count("reports", PARKED, 10) == Counted(3, True)
        assert keys_of(await pages_of(store, "reports", PARKED, 1)) == list("abc")
        # In the middle of a list, too.
        proxy.behaviour = honest
        first = await store.scan("reports", PARKED, None, 1)
        proxy.behaviour = refuse
        second = await store.scan("reports", PARKED, first.cursor, 1)
        assert keys_of(first.records + second.records) == ["a", "b"]

    on(place, test)
    assert caplog.text.count("the index 'rare' cannot be used (AccessDeniedException") == 1


def test_another_index_of_this_name_is_refused(place: Place) -> None:
    definition = table_definition(table_of(place))
    definition["GlobalSecondaryIndexes"][1]["KeySchema"][1]["AttributeName"] = "group"
    request(url("dynamodb"), "CreateTable", **definition)
    with pytest.raises(StoreMisconfiguredError, match=r"not one of ours.*perhaps an index 'rare'"):
        on(place, lambda store: asyncio.sleep(0))


@pytest.mark.parametrize(
    ("index", "rights", "indexes"),
    [("none", "ok", "ok"), ("rare", "ok", "warn"), ("due", "fail", "ok")],
)
def test_the_doctor_tells_of_an_index_that_must_not_be_read(
    place: Place,
    proxy: Proxy,
    capsys: pytest.CaptureFixture[str],
    index: str,
    rights: str,
    indexes: str,
) -> None:
    app = Pyncette(place.factory, **place.configuration)
    proxy.behaviour = refusing(index)
    asyncio.run(doctor.examine(lambda: (app, False), Printer(as_json=True)))
    rows = map(json.loads, capsys.readouterr().out.splitlines())
    checks = {row["name"]: row for row in rows}
    assert (checks["rights"]["level"], checks["indexes"]["level"]) == (rights, indexes)
    if index != "none":
        found = checks["indexes" if index == "rare" else "rights"]["found"]
        assert "AccessDeniedException" in found
