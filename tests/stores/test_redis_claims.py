"""What a claim in Redis passes over: by the server's clock, by unfinished attempts, garbage."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from tests.servers import url
from tests.stores.redis_place import client_at, place_at

from pyncette.clock import realtime
from pyncette.redis.layout import Names
from pyncette.store import EVERYTHING, Applied, Failed, Filter, Group, Refused, Source, Store, Write
from pyncette.store.record import (
    ANY,
    DELETE,
    EARLIEST_INSTANT,
    LATEST_INSTANT,
    Patch,
    Record,
    State,
)
from pyncette.testing.conformance import Place
from pyncette.testing.suite.harness import LEASE, NOW, SECOND, a_group, a_key, keys_of, new, put

SERVERS = ["redis", "valkey", "redis-cluster"]
PATIENCE_S = 30.0
HOUR = 3_600 * SECOND


@pytest.fixture(params=SERVERS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place_at(url(request.param)) as place:
        yield place


@pytest.fixture
def single() -> Iterator[Place]:
    with place_at(url("redis")) as place:
        yield place


def run(main: Any) -> None:
    async def in_time() -> None:
        async with realtime.timeout(PATIENCE_S):
            await main

    asyncio.run(in_time())


async def now_of(store: Store) -> int:
    now = await store.now()
    assert now is not None
    return now


# The server's clock.


def test_a_bounded_claim_takes_nothing_that_is_not_due_by_the_clock_of_the_server(
    place: Place,
) -> None:
    async def main() -> None:
        async with place.open() as store:
            now = await now_of(store)
            await store.write([new("reports", "due", due_at=now - 5)], NOW)
            await store.write([new("reports", "early", due_at=now + HOUR)], NOW)
            await store.write([new(":static", "early", due_at=now + HOUR)], NOW)
            await store.write([new(":static", "due", due_at=now - 5)], NOW)
            ahead = now + 2 * HOUR
            sources = [a_group(before=ahead), a_key("early", ":static"), a_key("due", ":static")]
            records, next_due = await store.claim(sources, 10, ahead, "mine", bounded=True)
            assert keys_of(records) == ["due", "due"]
            assert {record.due_at for record in records} == {ahead + LEASE}
            assert {record.version for record in records} == {ahead}
            assert next_due == [now + HOUR, now + HOUR, ahead + LEASE]
            records, _ = await store.claim(sources, 10, ahead, "mine too")
            assert keys_of(records) == ["early", "early"], "unbounded, the handed-in now decides"

    run(main())


def test_a_bounded_claim_takes_over_no_lease_that_is_alive_by_the_clock_of_the_server(
    place: Place,
) -> None:
    async def main() -> None:
        async with place.open() as store:
            now = await now_of(store)
            await store.write([new("reports", "a", due_at=now - 5)], NOW)
            [held], _ = await store.claim([a_group(lease=HOUR, before=now)], 10, now, "living")
            ahead = now + 2 * HOUR
            for source in (a_group(before=ahead), a_key("a")):
                taken = await store.claim([source], 10, ahead, "thief", bounded=True)
                assert taken == ([], [now + HOUR])
            assert await store.get([("reports", "a")]) == [held]

    run(main())


def test_a_bounded_claim_takes_nothing_that_is_not_due_by_the_handed_in_now(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            await store.write([new("reports", "a", due_at=NOW + 1)], NOW)
            assert await store.claim([a_group()], 10, NOW, "mine", bounded=True) == ([], [NOW + 1])
            old = await store.claim([a_group(before=NOW + 1)], 10, NOW + 1, "mine", bounded=True)
            assert keys_of(old.records) == ["a"]

    run(main())


def test_a_repeated_claim_finds_what_it_holds_however_it_is_bounded(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            ahead = await now_of(store) + HOUR
            await store.write([new("reports", "a")], NOW)
            first = await store.claim([a_group()], 10, ahead, "mine", bounded=True)
            again = await store.claim([a_group()], 10, ahead, "mine", True, bounded=True)
            assert again == first

    run(main())


# Unfinished attempts.


async def suspects(store: Store, count: int, group: str = "reports") -> None:
    for first in range(0, count, 1_000):
        numbers = range(first, min(first + 1_000, count))
        await store.write(
            [
                new(group, f"suspect {number}", due_at=NOW - 9, unfinished_attempts=3)
                for number in numbers
            ],
            NOW,
        )


@pytest.mark.parametrize("count", [1, 99, 700])
def test_records_with_more_unfinished_attempts_are_passed_over(place: Place, count: int) -> None:
    async def main() -> None:
        async with place.open() as store:
            await suspects(store, count)
            await store.write(
                [new("reports", f"{key}", unfinished_attempts=2) for key in "abc"], NOW
            )
            records, next_due = await store.claim(
                [a_group(share=2)], 2, NOW, "mine", unfinished_max=2
            )
            assert len(records) == 2
            assert set(keys_of(records)) < {"a", "b", "c"}
            assert {record.unfinished_attempts for record in records} == {3}
            assert next_due == [NOW - 9], "what was passed over counts"
            untouched = await store.get([("reports", "suspect 0")])
            assert [record and record.unfinished_attempts for record in untouched] == [3]
            everything, _ = await store.claim([a_group()], 1_000, NOW, "all")
            assert len(everything) == count + 1

    run(main())


def test_any_number_of_records_that_are_passed_over_does_not_hide_those_behind_them(
    place: Place,
) -> None:
    async def main() -> None:
        async with place.open() as store:
            await suspects(store, 3_000)
            await store.write([new("reports", f"{key}") for key in "abcde"], NOW)
            found: set[str] = set()
            for turn in range(500):
                # Each claim looks elsewhere; an odd step visits every place.
                now = NOW + 977 * turn
                records, _ = await store.claim(
                    [a_group(share=2, before=now)], 2, now, f"{turn}", unfinished_max=2
                )
                found |= {record.key for record in records}
                if len(found) == 5:
                    break
            assert found == set("abcde")

    run(main())


def test_keys_are_passed_over_as_groups_are(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            await store.write(
                [new(":static", "a", unfinished_attempts=3), new(":static", "b")], NOW
            )
            sources = [a_key("a", ":static"), a_key("b", ":static")]
            records, next_due = await store.claim(sources, 10, NOW, "mine", unfinished_max=2)
            assert keys_of(records) == ["b"]
            assert next_due == [NOW, NOW + LEASE]

    run(main())


def test_a_repeated_claim_returns_what_it_may_still_take_and_leaves_suspects(place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            await store.write(
                [
                    new("reports", "at most", unfinished_attempts=2),
                    new("reports", "suspect", unfinished_attempts=3),
                ],
                NOW,
            )
            await store.claim([a_group()], 10, NOW, "mine")
            records, next_due = await store.claim(
                [a_group()], 10, NOW, "mine", True, unfinished_max=2
            )
            assert keys_of(records) == ["at most"]
            assert next_due == [NOW + LEASE]

    run(main())


# Garbage.

SOUND = [f"{NOW}", f"{NOW}", "scheduled", "0", "-", "1 - born", "1 plan", "1 {}"]
ABSURD = {
    0: [
        "",
        "0",
        "-1",
        "007",
        "x",
        "1.5",
        "1e3",
        "nan",
        "9" * 15 + "x",
        "9" * 16,
        "9" * 17,
        "9" * 40,
    ],
    1: ["-", "--5", "x", "1.5", "1e3", "nan", "inf", "-inf", "9" * 18, "-" + "9" * 17, "9" * 40],
    2: ["", "RUNNING", "1", "ru nning", "x" * 1_000],
    3: ["", "-1", "x", "1.5", "inf", "9" * 9, "9" * 10, "9" * 40],
    4: ["", "x", "=", "=" + "x" * 1_000],
    5: ["", "x", "\xff", "1 " + "9" * 40 + " born"],
    6: ["", "x", "2 later"],
    7: ["", "x"],
}
CELLS = [(column, value) for column, values in ABSURD.items() for value in values]


@pytest.mark.parametrize(("column", "value"), CELLS)
def test_an_absurd_value_in_a_record_stops_that_record_alone(
    single: Place, column: int, value: str
) -> None:
    columns = [*SOUND]
    columns[column] = value
    text = "\0".join(columns)

    async def main() -> None:
        async with single.open() as store, client_at(url("redis")) as client:
            names = Names(single.configuration["redis_namespace"]).of("reports")
            await store.write([new("reports", key) for key in ("bad", "good")], NOW)
            await store.write([new("others", "good")], NOW)
            await client.hset(names[1], "bad", text.encode("latin-1"))
            await usable(store)

    run(main())


SCORES = ["inf", "-inf", "1e300", "-1e300", "1e18", "-1e17", "0.5", "-0.5", "9007199254740993"]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("of_record", [True, False])
def test_an_absurd_score_stops_no_other_record(single: Place, score: str, of_record: bool) -> None:
    async def main() -> None:
        async with single.open() as store, client_at(url("redis")) as client:
            names = Names(single.configuration["redis_namespace"]).of("reports")
            await store.write([new("reports", key) for key in ("bad", "good")], NOW)
            await store.write([new("others", "good")], NOW)
            await client.execute_command("ZADD", names[0], score, "bad")
            if not of_record:
                await client.hdel(names[1], "bad")
            for turn in range(3):
                claimed = await store.claim([a_group()], 0, NOW, f"{turn}")
                assert all(isinstance(due_at, int) for due_at in claimed.next_due)
            if of_record:
                await usable(store)
            else:
                records, _ = await store.claim([a_group(), a_group("others")], 9, NOW, "mine")
                assert keys_of(records) == ["good", "good"]

    run(main())


async def usable(store: Store) -> None:
    """Whether every call works, and the bad record can be claimed, parked and removed."""
    [bad, good] = await store.get([("reports", "bad"), ("reports", "good")])
    assert isinstance(good, Record)
    assert bad is not None
    assert bad.version >= 1
    assert bad.due_at is None or EARLIEST_INSTANT <= bad.due_at <= LATEST_INSTANT
    for where in (EVERYTHING, Filter(due_before=NOW + 1), Filter(frozenset(State))):
        page = await store.scan("reports", where, None, 10)
        assert good in page.records
    assert (await store.scan("reports", EVERYTHING, None, 10)).records == [bad, good]
    sources: list[Source] = [a_group(), a_group("others")]
    claimed = await store.claim(sources, 10, NOW, "first")
    assert all(due_at is None or abs(due_at) < 10**16 for due_at in claimed.next_due)
    good_ones = [record for record in claimed.records if record.key == "good"]
    assert [record.group for record in sorted(good_ones)] == ["others", "reports"]
    await store.claim([a_key("bad"), a_key("good")], 10, NOW, "second")
    [bad] = await store.get([("reports", "bad")])
    assert bad is not None
    # As a worker does with a record that it cannot read, once it has claimed it or was refused.
    park = Write("reports", "bad", Patch(None, State.PARKED, 0, "1 - parked"), bad.version)
    settle = [
        Write(r.group, r.key, Patch(NOW + HOUR, "scheduled", 0), r.version, r.token)
        for r in good_ones
    ]
    results = await store.write([park, *settle], NOW + 1)
    assert [type(result) for result in results] == [Applied] * 3
    [parked] = await store.get([("reports", "bad")])
    assert parked is not None
    assert (parked.state, parked.due_at) == (State.PARKED, None)
    [refused] = await store.write([Write("reports", "bad", DELETE, 7)], NOW)
    assert refused == Refused(parked)
    [removed] = await store.write([Write("reports", "bad", DELETE, parked.version)], NOW)
    assert removed == Applied(0)
    later = NOW + 2 * HOUR
    records, _ = await store.claim([Group("reports", LEASE, 9, later)], 9, later, "third")
    assert keys_of(records) == ["good"]
    assert await store.write([Write("reports", "bad", DELETE, ANY)], NOW) == [Applied(0)]


# A key of a wrong type.

PARTS = pytest.mark.parametrize("part", [0, 1, 2], ids=["due records", "records", "keys"])


async def spoil(place: Place, group: str, part: int) -> bytes:
    """Puts a text where a key of the group is; returns the key."""
    name = Names(place.configuration["redis_namespace"]).of(group)[part]
    async with client_at(place.configuration["redis_url"]) as client:
        await client.delete(name)
        await client.set(name, "not ours")
    return name


async def remove(place: Place, name: bytes) -> None:
    async with client_at(place.configuration["redis_url"]) as client:
        await client.delete(name)


@PARTS
@pytest.mark.parametrize("repeated", [False, True])
def test_a_key_of_a_wrong_type_stops_the_claims_of_its_own_group_alone(
    place: Place, repeated: bool, part: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with place.open() as store:
            for group in ("bad", "reports", ":static"):
                await store.write([new(group, "a")], NOW)
            name = await spoil(place, "bad", part)
            sources = [a_group("bad"), a_group("reports"), a_key("a", "bad"), a_key("a", ":static")]
            for source in sources[::2]:
                chosen = [source, *sources[1::2]]
                records, next_due = await store.claim(chosen, 10, NOW, "mine", repeated)
                if part < 2:
                    assert {record.group for record in records} == {"reports", ":static"}
                    assert next_due == [NOW, NOW + LEASE, NOW + LEASE]
                    assert caplog.text.count("Nothing of bad can be claimed") == 1
                again = [Write(group, "a", put(), ANY) for group in ("reports", ":static")]
                await store.write(again, NOW)
            await remove(place, name)
            await store.write([new("bad", "b")], NOW)
            records, _ = await store.claim([a_group("bad")], 10, NOW, "mine")
            assert "b" in keys_of(records)

    run(main())


@PARTS
def test_a_key_of_a_wrong_type_stops_the_writes_of_its_own_group_alone(
    place: Place, part: int
) -> None:
    async def main() -> None:
        async with place.open() as store:
            batch = [new(group, key) for key in "ab" for group in ("bad", "reports")]
            name = await spoil(place, "bad", part)
            results = await store.write(batch, NOW)
            assert results[1::2] == [Applied(NOW)] * 2
            for result in results[::2]:
                assert isinstance(result, Failed)
                assert "WRONGTYPE" in str(result.error)
            removed = [Write(group, "a", DELETE, ANY) for group in ("reports", "bad")]
            applied, failed = await store.write(removed, NOW)
            assert applied == Applied(0)
            if part == 1:
                assert isinstance(failed, Failed)
            await remove(place, name)
            assert await store.write([new("bad", "a"), new("bad", "b")], NOW) == [Applied(NOW)] * 2

    run(main())
