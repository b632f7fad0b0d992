"""Claims that the server bounds itself, and rows that were edited by hand, on all SQL servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from tests.servers import url
from tests.stores.postgres_place import place_at
from tests.stores.sql_servers import SERVERS, Admin, SqlPlace, place_of_a_user

from pyncette.clock import realtime
from pyncette.store import EVERYTHING, Applied, Claimed, Refused, Store, Write
from pyncette.store.record import ANY, DELETE, Patch, State
from pyncette.testing.suite.harness import (
    LEASE,
    NOW,
    SECOND,
    a_group,
    a_key,
    new,
    put,
    record_of,
)

HOUR = 3_600 * SECOND
PATIENCE_S = 60.0


@pytest.fixture(params=SERVERS)
def place(request: pytest.FixtureRequest) -> Iterator[SqlPlace]:
    with place_of_a_user(request.param) as place:
        yield place


async def clock_of(store: Store) -> int:
    now = await store.now()
    assert now is not None
    return now


async def claim_both_ways(
    store: Store, now: int, token: str, *, bounded: bool
) -> tuple[Claimed, Claimed]:
    """A claim of a group, and one of a key."""
    group = await store.claim([a_group(before=now)], 10, now, token, bounded=bounded)
    key = await store.claim([a_key("static", ":static")], 10, now, token, bounded=bounded)
    return group, key


def test_a_bounded_claim_takes_nothing_early_by_the_clock_of_the_server(place: SqlPlace) -> None:
    async def main() -> None:
        async with place.open() as store:
            now = await clock_of(store)
            early = {"due_at": now + HOUR}
            await store.write(
                [new("reports", "a", **early), new(":static", "static", **early)], now
            )
            ahead = now + 2 * HOUR
            for claimed in await claim_both_ways(store, ahead, "mine", bounded=True):
                assert claimed == ([], [now + HOUR])
            for claimed in await claim_both_ways(store, ahead, "mine", bounded=False):
                assert len(claimed.records) == 1

    asyncio.run(main())


def test_a_bounded_claim_takes_what_is_due_and_leases_it_from_the_instant_handed_in(
    place: SqlPlace,
) -> None:
    async def main() -> None:
        async with place.open() as store:
            now = await clock_of(store)
            due = {"due_at": now - SECOND}
            await store.write([new("reports", "a", **due), new(":static", "static", **due)], now)
            ahead = now + HOUR
            for claimed in await claim_both_ways(store, ahead, "mine", bounded=True):
                [record] = claimed.records
                assert record.due_at == ahead + LEASE
            # So a claim that is repeated finds them.
            again = await store.claim(
                [a_group(before=ahead)], 10, ahead, "mine", repeated=True, bounded=True
            )
            assert [record.key for record in again.records] == ["a"]

    asyncio.run(main())


def test_a_bounded_claim_does_not_look_further_than_the_instant_handed_in(place: SqlPlace) -> None:
    async def main() -> None:
        async with place.open() as store:
            await store.write([new("reports", "a", due_at=NOW + 1)], NOW)
            source = a_group(before=NOW)
            assert not (await store.claim([source], 10, NOW, "mine", bounded=True)).records
            source = a_group(before=NOW + 1)
            assert (await store.claim([source], 10, NOW + 1, "mine", bounded=True)).records

    asyncio.run(main())


def test_a_lease_that_is_alive_by_the_clock_of_the_server_is_not_taken_over(
    place: SqlPlace,
) -> None:
    async def main() -> None:
        async with place.open() as worker, place.open() as other:
            now = await clock_of(worker)
            await worker.write([new("reports", "a", due_at=now)], now)
            [held] = (await worker.claim([a_group(before=now)], 1, now, "worker")).records
            ahead = now + 2 * LEASE
            source = a_group(before=ahead)
            assert not (await other.claim([source], 1, ahead, "other", bounded=True)).records
            assert await record_of(worker, "reports", "a") == held
            assert (await other.claim([source], 1, ahead, "other")).records

    asyncio.run(main())


def test_a_claim_leaves_records_with_more_unfinished_attempts_than_it_may_take(
    place: SqlPlace,
) -> None:
    async def main() -> None:
        async with place.open() as store:
            writes = [
                new(group, f"{count}", unfinished_attempts=count)
                for group in ("reports", ":static")
                for count in (0, 2, 3)
            ]
            await store.write(writes, NOW)
            keys = [a_key(key, ":static") for key in ("0", "2", "3")]
            taken, next_due = await store.claim([a_group(), *keys], 10, NOW, "m", unfinished_max=2)
            assert sorted(record[:2] for record in taken) == [
                (":static", "0"),
                (":static", "2"),
                ("reports", "0"),
                ("reports", "2"),
            ]
            assert next_due == [NOW, NOW + LEASE, NOW + LEASE, NOW]
            left = await record_of(store, "reports", "3")
            assert left is not None
            assert (left.state, left.unfinished_attempts) == ("scheduled", 3)
            # Whoever repeats the claim gets what it took, as it had counted before the claim.
            again, _ = await store.claim(
                [a_group(), *keys], 10, NOW, "m", repeated=True, unfinished_max=2
            )
            assert sorted(again) == sorted(taken)
            fewer, _ = await store.claim([a_group()], 10, NOW, "m", repeated=True, unfinished_max=1)
            assert [record.key for record in fewer] == ["0"]

    asyncio.run(main())


BIGINTS = (-(1 << 63), -1, 0, 1, (1 << 53) - 1, 1 << 53, (1 << 62) - 1, 1 << 62, (1 << 63) - 1)
INTS = (-(1 << 31), -1, 0, (1 << 29), (1 << 30) - 1, 1 << 30, (1 << 31) - 2, (1 << 31) - 1)
TEXTS = ("''", "'nonsense'", "'1 '", "'2 newer'", "'\U0001f600'", "'-'")
EDITS = {
    "due_at": (*map(str, BIGINTS), "NULL"),
    "version": tuple(map(str, BIGINTS)),
    "token": ("NULL", *TEXTS),
    "state": TEXTS,
    "unfinished_attempts": tuple(map(str, INTS)),
    "schedule": (*TEXTS, "repeat('x', 100000)"),
    "args": (*TEXTS, "repeat('x', 100000)"),
    "progress": (*TEXTS, "repeat('x', 100000)"),
    "group": ("''", "'other'", "':static'"),
    "key": ("''", "'z'"),
}


async def without_checks(place: SqlPlace, admin: Admin) -> None:
    """Takes away what keeps a column from holding everything that its type can hold."""
    if place.server == "postgres":
        found = await admin.run(
            "SELECT conname FROM pg_constraint WHERE conrelid = '{table}'::regclass "
            "AND contype = 'c'"
        )
    else:
        found = await admin.run(
            "SELECT constraint_name FROM information_schema.table_constraints "
            "WHERE table_name = '{table}' AND constraint_type = 'CHECK'"
        )
    assert found
    for [name] in found:
        await admin.run(f"ALTER TABLE {{table}} DROP CONSTRAINT `{name}`")


@pytest.mark.parametrize("column", EDITS)
def test_a_row_that_was_edited_to_anything_never_stands_in_the_way_of_others(
    place: SqlPlace, column: str
) -> None:
    good = [("other", "good"), ("reports", "good")]

    async def use(store: Store, identity: tuple[str, str], edit: str) -> None:
        batch = [new(group, key, due_at=NOW) for group, key in good]
        assert await store.write(batch, NOW) == [Applied(NOW)] * 2
        for number in range(3):
            now = NOW + number * 2 * LEASE
            sources = [a_group("other", before=now), a_group(before=now)]
            records, _ = await store.claim(sources, 10, now, f"{number}")
            versions = {record[:2]: record.version for record in records}
            assert set(good) <= set(versions), edit
            # Everything that was claimed can be written back by its holder.
            beats = [
                Write(*key, Patch(now + LEASE, State.RUNNING, 1), version, f"{number}")
                for key, version in versions.items()
            ]
            written = await store.write(beats, now)
            assert all(isinstance(result, Applied) for result in written), edit
        found = await store.get([*good, identity])
        assert None not in found[:2], edit
        page = await store.scan(identity[0], EVERYTHING, None, 10)
        assert ("reports", "good") in [record[:2] for record in page.records] or (
            identity[0] != "reports"
        ), edit
        # The edited one takes a conditional write, as a merge makes it, and a forced one.
        if (current := found[2]) is not None:
            [result] = await store.write([Write(*identity, put(), current.version)], NOW)
            assert isinstance(result, Applied), edit
            assert 0 < result.version < 1 << 54, edit
        [result] = await store.write([Write(*identity, put(), ANY)], NOW)
        assert isinstance(result, Applied), edit
        deleted = await store.write([Write(*key, DELETE, ANY) for key in (*good, identity)], NOW)
        assert not any(isinstance(result, Refused) for result in deleted), edit

    async def main() -> None:
        admin = await place.admin()
        await without_checks(place, admin)
        async with place.open() as store, realtime.timeout(PATIENCE_S):
            for edit in EDITS[column]:
                await store.write([new("reports", "bad", due_at=NOW)], NOW)
                await admin.run(f"UPDATE {{table}} SET `{column}` = {edit} WHERE `key` = 'bad'")
                [row] = await admin.run(text_of_identity(place))
                await use(store, (str(row[0]), str(row[1])), edit)
                await admin.run("DELETE FROM {table}")
        admin.leave()

    asyncio.run(main())


def text_of_identity(place: SqlPlace) -> str:
    if place.mysql:
        return "SELECT CONVERT(`group` USING utf8mb4), CONVERT(`key` USING utf8mb4) FROM {table}"
    return "SELECT `group`, `key` FROM {table}"


@pytest.mark.parametrize(
    ("column", "edit"),
    [("version", "0"), ("version", "9223372036854775807"), ("unfinished_attempts", "-1")],
)
def test_the_table_itself_refuses_numbers_that_nothing_writes(
    place: SqlPlace, column: str, edit: str
) -> None:
    async def main() -> None:
        admin = await place.admin()
        async with place.open() as store:
            await store.write([new("reports", "a")], NOW)
            with pytest.raises(Exception, match=r"(?i)check|constraint"):
                await admin.run(f"UPDATE {{table}} SET {column} = {edit}")
        admin.leave()

    asyncio.run(main())


@pytest.mark.parametrize("server", ["postgres"])
def test_a_bounded_claim_works_behind_a_pooler(server: str) -> None:
    async def main(place: Any) -> None:
        async with place.open() as store:
            now = await clock_of(store)
            await store.write([new("reports", "a", due_at=now + HOUR)], now)
            ahead = now + 2 * HOUR
            source = a_group(before=ahead)
            assert not (await store.claim([source], 10, ahead, "mine", bounded=True)).records
            assert (await store.claim([source], 10, ahead, "mine")).records

    with place_at(url("pgbouncer")) as place:
        asyncio.run(main(place))
