"""What lists and counts read in DynamoDB: how many requests, and how many items, of how many.

Each call is made on a group of 12,000 records, more than a count may look at, through a proxy that
has the service tell what each request has cost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

import pytest
from tests.servers import url
from tests.stores.dynamodb_place import place_at, set_credentials
from tests.stores.dynamodb_proxy import Answer, Call, Proxy, proxy_before
from tests.stores.test_counts import NOW, RECORDS, fill, rare

from pyncette import Context, Pyncette, PyncetteContext, Retry, Where
from pyncette.dynamodb.rare import SHARDS
from pyncette.dynamodb.table import COUNTED_MAX, EXAMINED_MAX
from pyncette.store import EVERYTHING, Counted, Filter, Store
from pyncette.store.record import State
from pyncette.testing.conformance import Place
from pyncette.testing.suite.harness import pages_of

RARE = rare()

PARKED = Filter(frozenset({State.PARKED}))


class Asked(NamedTuple):
    """A request that reads.

    Attributes:
        source: The index that was read, or the table.
        examined: How many items were read.
        sent: How many items were sent to the store.
        units: What it has cost, in read units.
    """

    source: str
    examined: int
    sent: int
    units: float


class Recorder:
    """A behaviour: passes everything on, and notes what is read."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []

    async def __call__(self, call: Call) -> Answer | None:
        if call.operation not in ("Query", "Scan", "BatchGetItem"):
            return await call.forward()
        answer = await call.forward({**call.body, "ReturnConsumedCapacity": "TOTAL"})
        told = answer.body["ConsumedCapacity"]
        if call.operation == "BatchGetItem":
            [keys] = [tables["Keys"] for tables in call.body["RequestItems"].values()]
            if keys[0]["key"]["S"] == ":clock":
                return answer
            sent = sum(map(len, answer.body["Responses"].values()))
            self.asked.append(Asked("keys", len(keys), sent, told[0]["CapacityUnits"]))
        else:
            sent = len(answer.body.get("Items", ()))
            source = call.body.get("IndexName", "table")
            examined = answer.body["ScannedCount"]
            self.asked.append(Asked(source, examined, sent, told["CapacityUnits"]))
        return answer

    def taken(self) -> list[Asked]:
        """What was asked since the last look."""
        asked, self.asked = self.asked, []
        return asked


class Full(NamedTuple):
    """A full group, behind a recorder."""

    place: Place
    proxy: Proxy
    recorder: Recorder

    def on(self, test: Callable[[Store], Awaitable[None]]) -> None:
        async def main() -> None:
            async with self.place.open() as store:
                self.recorder.taken()
                await test(store)

        asyncio.run(main())


@pytest.fixture(scope="module")
def full() -> Iterator[Full]:
    async def make(place: Place) -> None:
        async with place.open() as store:
            await fill(store)

    server, recorder = url("dynamodb"), Recorder()
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        proxy_before(server) as proxy,
        place_at(server, proxy.url) as place,
    ):
        set_credentials(monkeypatch)
        asyncio.run(make(place))
        proxy.behaviour = recorder
        yield Full(place, proxy, recorder)


def test_a_count_of_the_parked_reads_only_those(full: Full) -> None:
    async def test(store: Store) -> None:
        assert await store.count("g", PARKED, 10_000) == Counted(3, True)
        asked = full.recorder.taken()
        assert [one.source for one in asked] == ["rare"] * SHARDS
        assert sum(one.examined for one in asked) == len(RARE)
        assert sum(one.sent for one in asked) == 0
        assert sum(one.units for one in asked) <= SHARDS * 0.5

    full.on(test)


def test_a_page_of_the_parked_reads_only_those(full: Full) -> None:
    async def test(store: Store) -> None:
        for limit in (2, 20):
            page = await store.scan("g", PARKED, None, limit)
            assert [record.key for record in page.records] == RARE[:limit]
            *looks, fetched = full.recorder.taken()
            assert [look.source for look in looks] == ["rare"] * SHARDS
            assert sum(look.examined for look in looks) <= len(RARE)
            assert (fetched.source, fetched.examined) == ("keys", min(limit, 3))

    full.on(test)


def test_a_count_that_no_index_tells_is_bounded_and_sends_no_records(full: Full) -> None:
    async def test(store: Store) -> None:
        for where in (Filter(frozenset({State.RUNNING})), EVERYTHING, Filter(prefix="key")):
            counted = await store.count("g", where, 100)
            assert not counted.complete
            asked = full.recorder.taken()
            assert {one.source for one in asked} == {"table"}
            examined_max = COUNTED_MAX if where.states else 100
            assert sum(one.examined for one in asked) <= examined_max + 1
            assert sum(one.sent for one in asked) == 0
        assert await store.count("g", PARKED, 1) == Counted(1, False)
        assert sum(one.examined for one in full.recorder.taken()) <= SHARDS

    full.on(test)


def test_a_count_of_what_is_due_reads_only_that(full: Full) -> None:
    async def test(store: Store) -> None:
        where = Filter(due_before=NOW + 100)
        assert await store.count("g", where, 1_000) == Counted(99, True)
        [asked] = full.recorder.taken()
        assert asked[:3] == ("due", 99, 0)
        assert asked.units <= 2

    full.on(test)


def test_a_page_reads_as_many_items_as_it_has(full: Full) -> None:
    async def test(store: Store) -> None:
        for where in (EVERYTHING, Filter(prefix="key 11")):
            page = await store.scan("g", where, None, 100)
            following = await store.scan("g", where, page.cursor, 100)
            assert len(page.records) == len(following.records) == 100
            assert [one[:3] for one in full.recorder.taken()] == [("table", 100, 100)] * 2

    full.on(test)


def test_a_page_of_what_matches_early_reads_no_more_than_it_needs(full: Full) -> None:
    async def test(store: Store) -> None:
        page = await store.scan("g", Filter(due_before=NOW + 6_000), None, 100)
        assert len(page.records) == 99, "one of the first hundred is parked"
        assert [one[:3] for one in full.recorder.taken()] == [("table", 100, 99)]

    full.on(test)


def test_what_few_match_is_found_in_few_requests_that_are_short_each(full: Full) -> None:
    async def test(store: Store) -> None:
        late = Filter(frozenset({State.SCHEDULED}), due_before=NOW + 50)
        assert len(await pages_of(store, "g", late, 20)) == 49
        asked = full.recorder.taken()
        assert sum(one.examined for one in asked) <= RECORDS + 100
        assert max(one.examined for one in asked) <= EXAMINED_MAX
        assert len(asked) <= 2 * RECORDS / EXAMINED_MAX + 5

    full.on(test)


def test_the_public_calls_read_no_more(full: Full) -> None:
    app = Pyncette(full.place.factory, **full.place.configuration)

    @app.dynamic_task(name="g", retry=Retry(attempts=3))
    async def task(context: Context) -> None: ...

    async def test(context: PyncetteContext) -> None:
        full.recorder.taken()
        count = await context.count_tasks(task, Where(states={"parked"}))
        assert (count.count, count.exact) == (3, True)
        found = [state async for state in context.iter_tasks(task, Where(states={"parked"}))]
        assert [state.task.name for state in found] == RARE
        asked = full.recorder.taken()
        assert {one.source for one in asked} == {"rare", "keys"}
        assert sum(one.examined for one in asked) == 3 * len(RARE)
        count = await context.count_tasks(task, Where(states={"retrying"}))
        assert (count.count, count.exact) == (0, True)
        assert [one[:2] for one in full.recorder.taken()] == [("rare", 0)] * SHARDS
        async for _ in context.iter_tasks(task):
            break
        [asked_first] = full.recorder.taken()
        assert asked_first.examined <= 100
        state = await context.get_task(task, "key 00500")
        assert state is not None
        assert [one[:3] for one in full.recorder.taken()] == [("keys", 1, 1)]

    async def main() -> None:
        async with app.create() as context:
            await test(context)

    asyncio.run(main())
