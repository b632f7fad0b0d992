"""Values that a server refuses, on all SQL servers: each fails alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from tests.stores.sql_servers import SERVERS, SqlPlace, place_of_a_user
from tests.stores.wire import Wire

from pyncette.errors import StoreUnavailableError
from pyncette.store import Applied, Failed, Unknown, Write
from pyncette.store.record import ANY, Patch, Put
from pyncette.testing.suite.harness import NOW, new, put


@pytest.fixture(params=SERVERS)
def place(request: pytest.FixtureRequest) -> Iterator[SqlPlace]:
    with place_of_a_user(request.param) as place:
        yield place


REFUSED: dict[str, dict[str, Any]] = {
    "a text that is not UTF-8": {"args": "\ud800"},
    "an instant that is no bigint": {"due_at": 1 << 63},
    "a count that is no integer": {"unfinished_attempts": 1 << 31},
    "a count against the check": {"unfinished_attempts": -1},
}


def of_server(place: SqlPlace) -> dict[str, dict[str, Any]]:
    if place.mysql:
        # Larger than max_allowed_packet, or than its column.
        size = (16 if place.server == "mariadb" else 64) << 20
        return {
            **REFUSED,
            "a statement larger than a packet": {"args": "x" * (size + 10)},
            "a state too long": {"state": "s" * 21},
        }
    return {**REFUSED, "a NUL": {"progress": "a\0b"}}


def test_a_value_that_is_refused_fails_alone(place: SqlPlace) -> None:
    async def main() -> None:
        async with place.open() as store:
            for what, columns in of_server(place).items():
                batch = [new("reports", f"{what} {number:02}") for number in range(20)]
                batch[13] = new("reports", f"{what} 13", **columns)
                results = await store.write(batch, NOW)
                failed = results.pop(13)
                assert isinstance(failed, Failed), what
                assert isinstance(failed.error, ValueError), what
                assert results == [Applied(NOW)] * 19, what
                keys = [("reports", f"{what} {number}") for number in (12, 13, 14)]
                before, it, after = await store.get(keys)
                assert before is not None
                assert it is None
                assert after is not None

    asyncio.run(main())


def test_refused_values_of_every_kind_of_change_fail_alone_in_one_batch(place: SqlPlace) -> None:
    async def main() -> None:
        async with place.open() as store:
            await store.write([new("reports", f"{number}") for number in range(6)], NOW)
            bad_put: Put = put(unfinished_attempts=1 << 31)
            batch = [
                Write("reports", "0", Patch(NOW, "scheduled", 1 << 31), NOW),
                Write("reports", "1", Patch(NOW, "scheduled", 1), NOW),
                Write("reports", "2", bad_put, NOW),
                Write("reports", "3", put(), NOW),
                Write("reports", "4", bad_put, ANY),
                Write("reports", "5", put(), ANY),
                new("reports", "6", unfinished_attempts=1 << 31),
                new("reports", "7"),
            ]
            results = await store.write(batch, NOW)
            kinds = [type(result) for result in results]
            assert kinds == [Failed, Applied] * 4

    asyncio.run(main())


def test_what_is_known_of_a_batch_is_told_when_the_rest_is_lost(place: SqlPlace) -> None:
    """The connection ends between two statements of one batch."""
    option = "mysql_url" if place.mysql else "postgres_url"

    async def main() -> None:
        async with place.open() as store:
            await store.write([new("reports", "a")], NOW)
        async with (
            Wire(place.place.configuration[option]).open() as wire,
            place.place.factory(**{**place.place.configuration, option: wire.url}) as store,
        ):
            wire.cut_before = b"INSERT INTO"
            patched, created = await store.write(
                [Write("reports", "a", Patch(NOW, "scheduled", 1), NOW), new("reports", "b")], NOW
            )
            assert patched == Applied(NOW + 1)
            assert isinstance(created, Unknown)
            assert isinstance(created.error, StoreUnavailableError)

    asyncio.run(main())
