"""Lists and counts in a large group: exact where an index tells, and nothing looks at all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stores.every_store import place_of

from pyncette.dynamodb import dynamodb_repository
from pyncette.dynamodb import table as dynamodb_table
from pyncette.store import EVERYTHING, Counted, Filter, Store, Write
from pyncette.store.record import ABSENT, Put, State
from pyncette.testing.conformance import Place

RECORDS = 12_000
"""More than any store looks at for a page of a filtered scan, or for a count."""

NOW = 1_764_000_000_000_000


def rare(records: int = RECORDS) -> list[str]:
    """The keys of those that are parked, in order."""
    return [f"key {number:05}" for number in (11, records // 2, records - 1)]


async def fill(store: Store, records: int = RECORDS) -> None:
    parked = rare(records)
    for first in range(0, records, 1_000):
        await store.write(
            [
                Write(
                    "g",
                    key,
                    Put(
                        None if key in parked else NOW + number,
                        State.PARKED if key in parked else State.SCHEDULED,
                        None,
                        0,
                        "1 plan",
                        "1 {}",
                        "1 - born",
                    ),
                    ABSENT,
                )
                for number in range(first, first + 1_000)
                for key in [f"key {number:05}"]
            ],
            NOW,
        )


STORES = ["sqlite-file", "postgres", "mysql", "mariadb", "redis", "redis-cluster", "dynamodb"]


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with place_of(request.param, tmp_path) as place:
        yield place


def test_the_few_that_are_not_simply_scheduled_are_found_without_looking_at_the_others(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = RECORDS
    if place.factory is dynamodb_repository:
        # Its server takes a millisecond for each record. See test_dynamodb_plans for the real one.
        records = 2_000
        monkeypatch.setattr(dynamodb_table, "COUNTED_MAX", 1_500)

    async def main() -> None:
        async with place.open() as store:
            await fill(store, records)
            for states in ({State.PARKED}, {State.PARKED, State.PAUSED, State.RETRYING}):
                where = Filter(frozenset(states))
                assert await store.count("g", where, 10) == Counted(3, True)
                assert await store.count("g", where, 2) == Counted(2, False)
                page = await store.scan("g", where, None, 10)
                assert [record.key for record in page.records] == rare(records)
                assert page.cursor is None
                first = await store.scan("g", where, None, 2)
                assert first.cursor is not None
                second = await store.scan("g", where, first.cursor, 2)
                assert [record.key for record in second.records] == rare(records)[2:]
            due = Filter(due_before=NOW + 100)
            assert await store.count("g", due, 1_000) == Counted(99, True)
            assert await store.count("g", EVERYTHING, 20_000) == Counted(records, True)
            # What no index tells is looked for in a part of them, and the answer says so.
            running = Filter(frozenset({State.RUNNING}))
            assert await store.count("g", running, 10) == Counted(0, False)

    asyncio.run(main())


@pytest.mark.parametrize("server", ["redis", "redis-cluster"])
def test_redis_counts_what_its_sorted_sets_tell_exactly(server: str, tmp_path: Path) -> None:
    async def main(place: Place) -> None:
        async with place.open() as store:
            await fill(store)
            assert await store.count("g", EVERYTHING, 20_000) == Counted(RECORDS, True)
            assert await store.count("g", Filter(prefix="key 00"), 5_000) == Counted(1_000, True)
            due = Filter(due_before=NOW + 10_000)
            assert await store.count("g", due, 20_000) == Counted(9_998, True)
            parked = Filter(frozenset({State.PARKED}), prefix="key 0")
            assert await store.count("g", parked, 10) == Counted(2, True)

    with place_of(server, tmp_path) as place:
        asyncio.run(main(place))
