"""How PostgreSQL reads the table: by an index, whatever it believes about sizes, and little of it.

Every statement of the store is planned on a table of 200,000 records, for parameters that are not
known (`force_generic_plan`) as on connections of the store's own, and for those at hand, as behind
a pooler.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import pytest
from tests.servers import url
from tests.stores.postgres_place import a_table, place_at, run_sql

from pyncette.clock import realtime
from pyncette.postgres.connection import SESSION
from pyncette.postgres.sql import Statements, schema_sql
from pyncette.postgres.table import PostgresTable
from pyncette.store import Group, Write
from pyncette.store.record import DELETE
from pyncette.store.sql.conditional import ConditionalWrite
from pyncette.store.sql.low_water import LowWaterMarks
from pyncette.testing.conformance import Place
from pyncette.testing.suite.harness import LEASE, NOW, a_group, new

RECORDS = 200_000
# What comes due together lies all over the table.
FILL = """INSERT INTO {table}
    SELECT 'group ' || n % 4, 'key ' || n, {now} - n::bigint * 7919 % {count}, {now} - 1,
    NULL, 'scheduled', 0, '1 plan', '1 {{}}', '1 - born' FROM generate_series(1, {count}) AS n"""

BEGINNING = -(1 << 62)
SOURCES = (["group 1"], [None], [BEGINNING], [NOW], [100], [LEASE])
CLAIM = (*SOURCES, 100, NOW, "mine", LEASE, False, None)

ARRAYS = (["group 1"] * 3, ["key 1", "key 5", "key 9"], [NOW - 1] * 3, [None] * 3)
PATCH = (NOW, [NOW] * 3, ["running"] * 3, [1] * 3, [None] * 3)
PUT = (NOW, [NOW] * 3, ["s"] * 3, [None] * 3, [1] * 3, ["p"] * 3, ["a"] * 3, ["g"] * 3)
INSERT = (["group 1"], ["new"], NOW, [NOW], ["s"], [None], [0], ["p"], ["a"], ["g"])
RANGE = ("group 1", "key 1", "key", "kez")


@pytest.fixture(scope="module")
def big() -> Iterator[str]:
    with a_table(url("postgres")) as table:
        make_table(table, RECORDS, "VACUUM ANALYZE")
        yield table


def make_table(table: str, records: int, *then: str) -> None:
    run_sql(
        url("postgres"),
        *schema_sql(table).split(";\n")[:-1],
        FILL.format(table=table, now=NOW, count=records),
        *(f"{statement} {table}" for statement in then),
    )


def literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return f"ARRAY[{', '.join(map(literal, value))}]"
    return f"'{value}'" if isinstance(value, str) else str(value)


async def explain(connection: Any, statement: str, parameters: tuple[Any, ...]) -> str:
    """The plan, and what came of running it, undone again."""
    await connection.execute(f"PREPARE it AS {statement}")
    await connection.execute("BEGIN")
    values = ", ".join(map(literal, parameters))
    rows = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS, SUMMARY OFF) EXECUTE it({values})")
    await connection.execute("ROLLBACK")
    await connection.execute("DEALLOCATE it")
    return "\n".join(row[0] for row in rows)


def pages_of(schedule: str) -> int:
    """How many pages a plan looked at: those of its topmost node."""
    found = re.search(r"shared hit=(\d+)(?: read=(\d+))?", schedule)
    assert found is not None, schedule
    return int(found[1]) + int(found[2] or 0)


def planned(statement: str, parameters: tuple[Any, ...], session: str) -> str:
    async def main() -> str:
        connection = await asyncpg.connect(url("postgres"))
        try:
            await connection.execute(session)
            return await explain(connection, statement, parameters)
        finally:
            await connection.close()

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "parameters", "pages_max"),
    [
        ("claim", CLAIM, 1_800),
        ("claim_key", (["group 1"], ["key 5"], *CLAIM[2:]), 300),
        ("claim", (*CLAIM[:-2], True, 2), 1_800),
        ("claim_key", (["group 1"], ["key 5"], *CLAIM[2:-2], True, 2), 300),
        ("held", (["group 1"], [None], [NOW + LEASE], [100], "mine", 100, None), 500),
        ("held", (["group 1"], [None], [NOW + LEASE], [100], "mine", 100, 3), 500),
        ("delete", ARRAYS, 60),
        ("patch", (*ARRAYS, *PATCH), 100),
        ("put", (*ARRAYS, *PUT), 100),
        ("insert", INSERT, 60),
        ("get", ARRAYS[:2], 20),
        ("last_examined", (*RANGE, 1_000), 1_100),
        ("page", (*RANGE, "kez", None, None, 101), 150),
        ("page", (*RANGE, "kez", NOW, ["scheduled"], 101), 150),
        ("page_of_rare", (*RANGE, "parked", None, 101), 20),
        ("page_of_rare", (*RANGE, "paused", NOW, 101), 20),
        ("count", (None, None, "group 1", "", "\U0010ffff", 1_001), 1_100),
        ("count", (NOW, ["scheduled"], "group 1", "key", "kez", 1_001), 1_100),
        ("count_due", (NOW, "group 1", 1_001), 1_100),
        ("count_due_in_states", (NOW, ["running"], "group 1", 1_001), 1_100),
        ("count_rare", (None, ["parked", "paused"], "group 1", 1_001), 20),
    ],
)
@pytest.mark.parametrize(
    "session",
    [
        "SET plan_cache_mode = force_generic_plan",
        "SET plan_cache_mode = force_custom_plan",
        SESSION,
    ],
    ids=["generic", "custom", "ours"],
)
def test_a_statement_reads_by_an_index(
    big: str, name: str, parameters: tuple[Any, ...], pages_max: int, session: str
) -> None:
    statement = getattr(Statements(big), "claim" if name == "claim_key" else name)
    schedule = planned(statement, parameters, session)
    assert f"Seq Scan on {big}" not in schedule, schedule
    assert "Sort Key: r" not in schedule, schedule
    assert "Bitmap" not in schedule, schedule
    # How many rows it looks up in spite of that depends on who else uses the server.
    assert name != "count_due" or "Index Only Scan" in schedule, schedule
    assert pages_of(schedule) <= pages_max, schedule


def test_a_plan_made_for_a_tiny_table_is_good_for_a_big_one() -> None:
    async def main(statements: Statements) -> None:
        connection = await asyncpg.connect(url("postgres"))
        try:
            await connection.execute(SESSION)
            for statement, parameters in (
                (statements.claim, CLAIM),
                (statements.delete, ARRAYS),
                (statements.patch, (*ARRAYS, *PATCH)),
                (statements.get, ARRAYS[:2]),
            ):
                schedule = await explain(connection, statement, parameters)
                assert f"Seq Scan on {table}" not in schedule, schedule
        finally:
            await connection.close()

    with a_table(url("postgres")) as table:
        make_table(table, 3, "ANALYZE")
        asyncio.run(main(Statements(table)))


def test_a_claim_stays_small_while_somebody_keeps_an_old_snapshot_open() -> None:
    """What was settled meanwhile stays in the index, where claims begin to read."""
    runs = 10_000
    sources = [Group("group 1", LEASE, 1_000, NOW)]

    async def main(place: Place) -> None:
        table = PostgresTable(place.configuration["postgres_table_name"])
        old = await asyncpg.connect(url("postgres"))
        connection = await asyncpg.connect(url("postgres"))
        try:
            async with place.open():
                pass
            await connection.execute(FILL.format(table=table.name, now=NOW, count=4 * runs))
            await old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class")
            for number in range(runs // 1_000 - 1):
                claimed = await table.claim(
                    connection, sources, 1_000, NOW, f"{number}", False, False, None
                )
                done = [
                    Write(*record[:2], DELETE, record.version, record.token)
                    for record in claimed.records
                ]
                await table.write(connection, ConditionalWrite(done), NOW)
            claim = Statements(table.name).claim
            [since] = table.low_water_marks.before_claim(["group 1"], NOW)
            parameters = (["group 1"], [None], [since], *CLAIM[3:])
            marked = pages_of(await explain(connection, claim, parameters))
            parameters = (["group 1"], [None], [BEGINNING], *CLAIM[3:])
            unmarked = pages_of(await explain(connection, claim, parameters))
            # Of a claim of 100, most are the new versions of its rows and their entries.
            assert marked < 1_300
            assert unmarked > marked + 1_000
        finally:
            old.terminate()
            await connection.close()

    with place_at(url("postgres")) as place:
        asyncio.run(main(place))


def test_what_this_opening_writes_before_its_mark_is_claimed_at_once() -> None:
    async def main(place: Place) -> None:
        async with place.open() as store:
            await store.write([new("reports", "a", due_at=NOW)], NOW)
            assert len((await store.claim([a_group()], 10, NOW, "mine")).records) == 1
            await store.write([new("reports", "b", due_at=5)], NOW)
            assert len((await store.claim([a_group()], 10, NOW, "mine")).records) == 1

    with place_at(url("postgres")) as place:
        asyncio.run(main(place))


def test_what_others_write_before_the_mark_is_claimed_within_a_second() -> None:
    async def main(place: Place) -> None:
        async with place.open() as store, place.open() as other:
            await store.claim([a_group()], 10, NOW, "mine")
            await other.write([new("reports", "a", due_at=5)], NOW)
            later = NOW + 1_000_000
            assert len((await store.claim([a_group()], 10, later, "mine")).records) == 1

    with place_at(url("postgres")) as place:
        asyncio.run(main(place))


def test_what_others_write_before_the_mark_is_claimed_once_they_have_notified() -> None:
    async def main(place: Place) -> None:
        async with place.open() as store, place.open() as other:
            heard: asyncio.Queue[object] = asyncio.Queue()
            await store.watch(["reports"], heard.put_nowait)
            async with realtime.timeout(30):
                assert await heard.get() is None
                await store.claim([a_group()], 10, NOW, "mine")
                await other.write([new("reports", "a", due_at=5)], NOW, wake=["reports"])
                await heard.get()
            assert len((await store.claim([a_group()], 10, NOW, "mine")).records) == 1

    with place_at(url("postgres")) as place:
        asyncio.run(main(place))


@pytest.mark.parametrize("asked_before", [True, False])
def test_a_claim_during_which_others_notified_leaves_no_mark(asked_before: bool) -> None:
    marks = LowWaterMarks()

    def claim(while_it_is_out: Callable[[], None]) -> int:
        [since] = marks.before_claim(["reports"], NOW)
        while_it_is_out()
        marks.after_claim(["reports"], [None], [since], [None], NOW)
        return since

    beginning = marks.before_claim(["reports"], NOW)[0]
    if asked_before:
        assert claim(lambda: None) == beginning
        assert claim(lambda: None) == NOW
    claim(marks.forget)
    assert claim(lambda: None) == beginning


def test_what_is_written_during_a_claim_lowers_the_mark_that_it_leaves() -> None:
    marks = LowWaterMarks()
    since = marks.before_claim(["reports"], NOW)
    marks.note([new("reports", "a", due_at=5), new("others", "b", due_at=3)])
    marks.after_claim(["reports"], [None], since, [NOW + 7], NOW)
    assert marks.before_claim(["reports"], NOW) == [5]
