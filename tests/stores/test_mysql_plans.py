"""How MySQL and MariaDB list and count: by the index that is named, and little of the table.

Each statement is planned and run on a table of 100,000 records, 25,000 of them in each group. What
it reads is counted by the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
from tests.servers import url
from tests.stores.mysql_place import connected, new_table, run_sql

from pyncette.mysql.connection import Connection, Results, query
from pyncette.mysql.sql import schema_sql
from pyncette.mysql.table import EXAMINED_MAX, MysqlTable
from pyncette.store import EVERYTHING, Filter
from pyncette.store.record import Record, State
from pyncette.testing.suite.harness import NOW

GROUP = "group 1"
IN_GROUP = 25_000
PARKED = 25
"""In each group. They lie all over the table, as does what is due."""

_DIGITS = "JSON_TABLE('[0,1,2,3,4,5,6,7,8,9]', '$[*]' COLUMNS (n INT PATH '$'))"
FILL = f"""INSERT INTO {{table}} (`group`, `key`, due_at, version, token, state,
    unfinished_attempts, schedule, args, progress)
SELECT CONCAT('group ', n % 4), CONCAT('key ', n), IF(n DIV 4 % 1000 = 7, NULL, {NOW} - n * 7919),
    {NOW} - 1, NULL, IF(n DIV 4 % 1000 = 7, 'parked', 'scheduled'), 0, '1 plan', '1 {{{{}}}}',
    '1 - born'
FROM (SELECT a.n + 10 * b.n + 100 * c.n + 1000 * d.n + 10000 * e.n AS n
    FROM {_DIGITS} a, {_DIGITS} b, {_DIGITS} c, {_DIGITS} d, {_DIGITS} e) AS numbers"""

PARKED_ONLY = frozenset({State.PARKED})
RARE = frozenset({State.PARKED, State.PAUSED})
WAITING = frozenset({State.SCHEDULED, State.RUNNING})
EARLY = NOW - 7919 * 90_000
"""One tenth of a group is due before."""

SEEN = [
    Record(GROUP, f"key {n}", None if parked else NOW - n * 7919, 1, None, state, 0, "", "", "")
    for n in range(1, 100_000, 4)
    for parked in [n // 4 % 1_000 == 7]
    for state in [State.PARKED if parked else State.SCHEDULED]
]
"""The records of the group, as far as a filter looks at them."""


class _Table(MysqlTable):
    """Notes the statements that it runs."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.statements: list[str] = []

    async def _run(self, connection: Connection, *statements: str) -> Results:
        self.statements += statements
        return await super()._run(connection, *statements)


class Big(NamedTuple):
    url: str
    name: str
    mariadb: bool

    def table(self) -> _Table:
        table = _Table(self.name)
        if self.mariadb:
            table.use_mariadb()
        return table


@pytest.fixture(scope="module", params=["mysql", "mariadb"])
def big(request: pytest.FixtureRequest) -> Iterator[Big]:
    server, table = url(request.param), new_table()
    try:
        run_sql(
            server,
            schema_sql(table).removesuffix(";\n"),
            FILL.format(table=table),
            f"ANALYZE TABLE {table}",
        )
        yield Big(server, table, request.param == "mariadb")
    finally:
        run_sql(server, f"DROP TABLE IF EXISTS {table}")


class Plan(NamedTuple):
    """How one table of a statement is read."""

    access: str
    key: str
    extra: str


async def plans_of(connection: Connection, big: Big, statement: str) -> list[Plan]:
    """How the table itself is read by a statement."""
    [rows] = await query(connection, f"EXPLAIN FORMAT=TRADITIONAL {statement}")
    # MySQL has a column for partitions before the kind of access.
    access = 3 if big.mariadb else 4
    return [
        Plan(row[access], row[access + 2], row[-1] or "")
        for row in rows
        if row[2] in ("r", big.name)
    ]


async def reads_of(connection: Connection) -> int:
    """How many rows this session has read, of tables and of intermediate results."""
    [rows] = await query(connection, "SHOW SESSION STATUS LIKE 'Handler_read%'")
    return sum(int(row[1]) for row in rows)


async def looked_up(big: Big, call: str, *arguments: Any) -> tuple[Any, int, Sequence[Plan]]:
    """What a call answers, how many rows it reads, and how."""
    connection = await connected(big.url)
    try:
        table = big.table()
        await reads_of(connection)  # to look is to read as well: as much each time
        looks = -await reads_of(connection) + await reads_of(connection)
        before = await reads_of(connection)
        answer = await getattr(table, call)(connection, GROUP, *arguments)
        reads = await reads_of(connection) - before - looks
        assert table.statements
        plans = [
            plan
            for statement in table.statements
            for plan in await plans_of(connection, big, statement)
        ]
        return answer, reads, plans
    finally:
        await connection.ensure_closed()


def read_by(index: str, plans: Sequence[Plan]) -> None:
    assert plans
    for plan in plans:
        assert plan.key == index, plan
        assert plan.access in ("ref", "range"), plan
        assert "filesort" not in plan.extra, plan


# A count reads a row of the index, and once more what it has found, as an intermediate result.
COUNTED = 2 * EXAMINED_MAX + 20


@pytest.mark.parametrize(
    ("where", "limit", "index", "complete", "reads_max"),
    [
        (EVERYTHING, 1_000, "PRIMARY", False, COUNTED),
        (EVERYTHING, 30_000, "PRIMARY", True, 2 * IN_GROUP + 20),
        (Filter(prefix="key 12"), 1_000, "PRIMARY", True, 600),
        (Filter(prefix="key 12", states=PARKED_ONLY), 1_000, "PRIMARY", True, 600),
        (Filter(states=WAITING), 10, "PRIMARY", False, COUNTED),
        (Filter(states=WAITING, prefix="key 1"), 9, "PRIMARY", False, COUNTED),
        (Filter(due_before=EARLY), 10_000, "due", True, 5_020),
        (Filter(due_before=NOW + 1), 1_000, "due", False, COUNTED),
        (Filter(due_before=EARLY, states=WAITING), 100, "due", False, 5_020),
        (Filter(states=PARKED_ONLY), 1_000, "rare", True, 2 * PARKED + 20),
        (Filter(states=RARE), 10, "rare", False, 2 * PARKED + 20),
        (Filter(states=RARE, due_before=NOW + 1), 10, "rare", True, 2 * PARKED + 20),
    ],
)
def test_a_count_reads_by_an_index_and_not_more_than_it_may(
    big: Big, where: Filter, limit: int, index: str, complete: bool, reads_max: int
) -> None:
    counted, reads, plans = asyncio.run(looked_up(big, "count", where, limit))
    assert counted == (min(sum(map(where.admits, SEEN)), limit), complete)
    read_by(index, plans)
    assert reads <= reads_max


@pytest.mark.parametrize(
    ("where", "cursor", "index", "reads_max"),
    [
        (EVERYTHING, "", "PRIMARY", 110),
        (EVERYTHING, "key 50001", "PRIMARY", 110),
        (Filter(prefix="key 12"), "", "PRIMARY", 110),
        (Filter(states=WAITING), "", "PRIMARY", EXAMINED_MAX + 120),
        (Filter(states=WAITING, prefix="key 1"), "key 12", "PRIMARY", EXAMINED_MAX + 120),
        (Filter(due_before=EARLY), "", "PRIMARY", 2 * EXAMINED_MAX + 20),
        (Filter(states=PARKED_ONLY), "", "rare", PARKED + 10),
        (Filter(states=RARE), "key 5", "rare", PARKED + 10),
        (Filter(states=RARE, prefix="key 2"), "", "rare", PARKED + 10),
        (Filter(states=RARE, due_before=NOW), "", "rare", PARKED + 10),
    ],
)
def test_a_page_of_a_listing_reads_by_an_index_and_not_more_than_it_may(
    big: Big, where: Filter, cursor: str, index: str, reads_max: int
) -> None:
    page, reads, plans = asyncio.run(looked_up(big, "scan", where, cursor or None, 100))
    after = sorted(record.key for record in SEEN if record.key > cursor)
    after = [key for key in after if key.startswith(where.prefix)]
    if (index == "PRIMARY" and where.states is not None) or where.due_before is not None:
        after = after[:EXAMINED_MAX]
    admitted = {record.key for record in SEEN if where.admits(record)}
    assert [record.key for record in page.records] == [k for k in after if k in admitted][:100]
    read_by(index, plans)
    assert reads <= reads_max
