"""How the SQL stores read and prune the run history: by an index, and little of it.

The tables have 60,000 attempts, most of them of one static task, which is what the servers know of
them. A page of 50, or a step of 50, must not look at many more.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
from tests.servers import url
from tests.stores.mysql_place import connected, new_table
from tests.stores.mysql_place import run_sql as run_mysql
from tests.stores.postgres_place import a_table, run_sql
from tests.stores.test_postgres_plans import explain, literal, pages_of

from pyncette.mysql import history_schema_sql as mysql_schema
from pyncette.mysql.connection import Connection, Results, query
from pyncette.mysql.history import MysqlHistory
from pyncette.postgres import history_schema_sql as postgres_schema
from pyncette.postgres.connection import SESSION
from pyncette.postgres.history import HistoryStatements
from pyncette.sqlite.history import SqliteHistory
from pyncette.store.history import MINUTE, RunFilter, RunRow
from pyncette.store.sql.history import FIRST, LAST, RUN_COLUMNS, RunIndex, Selection, selected
from pyncette.testing.suite.harness import NOW

ROWS = 60_000
STEP = 50
FAILED = frozenset({"failed"})


def row(number: int) -> RunRow:
    """Every tenth is of a template, of which one in 10 is of 'rare'; one in 1,000 fails."""
    template = number % 10 == 7
    task = "job" if not template else "rare" if number % 100 == 7 else "often"
    return RunRow(
        NOW + number * 1_000,
        number,
        task,
        f"instance {number % 700}" if template else None,
        "0123456789abcdef0123456789abcdef",
        1,
        NOW,
        NOW,
        "worker",
        "failed" if number % 1_000 in (7, 8) else "succeeded",
        None,
    )


LATE = NOW + ROWS * 1_000 - 1
MIDDLE = NOW + ROWS * 500
PAGES = [
    (RunFilter(), RunIndex.ALL),
    (RunFilter(since=NOW + 5_000, until=MIDDLE), RunIndex.ALL),
    (RunFilter("job"), RunIndex.TASK),
    (RunFilter("rare"), RunIndex.TASK),
    (RunFilter("absent"), RunIndex.TASK),
    (RunFilter("rare", until=MIDDLE), RunIndex.TASK),
    (RunFilter("rare", "instance 7"), RunIndex.INSTANCE),
    (RunFilter("rare", "absent", FAILED), RunIndex.INSTANCE),
    (RunFilter("zest"), RunIndex.TASK),
    (RunFilter("rare", "zest"), RunIndex.INSTANCE),
    (RunFilter("often", "instance 697"), RunIndex.INSTANCE),
    (RunFilter(None, None, FAILED), RunIndex.FAILED),
    (RunFilter("rare", None, FAILED, NOW, LATE), RunIndex.TASK_FAILED),
    (RunFilter("absent", None, FAILED), RunIndex.TASK_FAILED),
]


@pytest.fixture(scope="module")
def on_postgres() -> Iterator[str]:
    with a_table(url("postgres")) as table:
        run_sql(url("postgres"), *postgres_schema(table).split(";\n")[:-1])

        async def fill() -> None:
            connection = await asyncpg.connect(url("postgres"))
            try:
                await connection.copy_records_to_table(
                    f"{table}_runs", records=[row(number) for number in range(ROWS)]
                )
                await connection.execute(f"VACUUM ANALYZE {table}_runs")
            finally:
                await connection.close()

        asyncio.run(fill())
        yield table


def postgres_plan(statement: str, parameters: Sequence[Any], session: str) -> str:
    async def main() -> str:
        connection = await asyncpg.connect(url("postgres"))
        try:
            await connection.execute(session)
            return await explain(connection, statement, tuple(parameters))
        finally:
            await connection.close()

    return asyncio.run(main())


SESSIONS = pytest.mark.parametrize(
    "session",
    [
        "SET plan_cache_mode = force_generic_plan",
        "SET plan_cache_mode = force_custom_plan",
        SESSION,
    ],
    ids=["generic", "custom", "ours"],
)


def by_index(plan: str, index: str, pages_max: int) -> None:
    assert f"using {index} " in plan, plan
    assert "Sort" not in plan, plan
    assert "Bitmap" not in plan, plan
    assert pages_of(plan) <= pages_max, plan


@SESSIONS
@pytest.mark.parametrize(("where", "by"), PAGES)
def test_a_page_on_postgres_is_found_by_its_index(
    on_postgres: str, where: RunFilter, by: RunIndex, session: str
) -> None:
    selection = selected(where, None)
    assert selection.by is by
    names = [name for name in (where.instance, where.task) if name is not None]
    plan = postgres_plan(
        HistoryStatements(on_postgres).page[by],
        (*selection.end, selection.since, STEP, *names),
        session,
    )
    index = f"{on_postgres}_runs_{by.value or 'pkey'}"
    by_index(plan, index, 4 * STEP)


MANY = 200_000
# Of two templates, with an instance for each of 1,000.
FILL = """INSERT INTO {table}_runs SELECT {now} + n::bigint * 1000, n, 'task ' || n % 2,
    'instance ' || n % 1000, '', 1, 0, 0, '', CASE WHEN {failed} THEN 'failed' ELSE 'succeeded' END
    FROM generate_series({first}, {last}) AS n"""
FILL_TOTALS = """INSERT INTO {table}_run_totals
    SELECT {now} + n::bigint * 60000000, 'task ' || m, 1, 0, 0, 1, 1
    FROM generate_series(0, 20000) AS n, generate_series(0, 1) AS m"""

EARLY = {
    "empty": [],
    "empty, and known to be": ["VACUUM ANALYZE {table}_runs", "VACUUM ANALYZE {table}_run_totals"],
    "nothing has failed": [
        FILL.format(table="{table}", now=NOW, failed=False, first=-1_000, last=0),
        "VACUUM ANALYZE {table}_runs",
    ],
    "all has failed": [
        FILL.format(table="{table}", now=NOW, failed=True, first=-1_000, last=0),
        "VACUUM ANALYZE {table}_runs",
    ],
}


async def plans_made_early(table: str, early: Sequence[str]) -> dict[str, str]:
    """Plans of a session of the store that were made before the rows came, and still are used."""
    names = {
        RunIndex.TASK: ["task 1"],
        RunIndex.TASK_FAILED: ["task 1"],
        RunIndex.INSTANCE: ["instance 7", "task 1"],
    }
    statements = HistoryStatements(table)
    asked: dict[str, tuple[str, Sequence[Any]]] = {
        f"runs_{by.value or 'pkey'}": (page, (LAST, 0, FIRST, STEP, *names.get(by, [])))
        for by, page in statements.page.items()
    }
    asked["run_totals_pkey"] = statements.totals, (NOW, NOW + 60 * MINUTE)
    asked["run_totals_task"] = statements.totals_of_task, (NOW, NOW + 60 * MINUTE, "task 1")
    connection = await asyncpg.connect(url("postgres"))
    try:
        for statement in postgres_schema(table).split(";\n")[:-1]:
            await connection.execute(statement)
        for name in ("runs", "run_totals"):
            # What analyses the table has plans made anew: here, it comes too late.
            await connection.execute(f"ALTER TABLE {table}_{name} SET (autovacuum_enabled = off)")
        await connection.execute(SESSION)
        for statement in early:
            await connection.execute(statement.format(table=table))
        for index, (statement, parameters) in asked.items():
            await connection.execute(f'PREPARE "{index}" AS {statement}')
            await connection.fetch(f'EXECUTE "{index}"({", ".join(map(literal, parameters))})')
        fill = FILL.format(table=table, now=NOW, failed="n % 20 = 7", first=1, last=MANY)
        await connection.execute(fill)
        await connection.execute(FILL_TOTALS.format(table=table, now=NOW))
        plans = {}
        for index, (_, parameters) in asked.items():
            rows = await connection.fetch(
                "EXPLAIN (ANALYZE, BUFFERS, SUMMARY OFF) "
                f'EXECUTE "{index}"({", ".join(map(literal, parameters))})'
            )
            plans[index] = "\n".join(row[0] for row in rows)
        return plans
    finally:
        await connection.close()


@pytest.mark.parametrize("early", EARLY.values(), ids=EARLY)
def test_a_plan_that_was_made_early_on_postgres_goes_by_its_index_later(early: list[str]) -> None:
    with a_table(url("postgres")) as table:
        plans = asyncio.run(plans_made_early(table, early))
    for index, plan in plans.items():
        by_index(plan, f"{table}_{index}", 4 * STEP)
        assert "Filter" not in plan, plan


@SESSIONS
@pytest.mark.parametrize("task", [None, "job", "rare", "absent", "zest"])
def test_a_step_of_pruning_on_postgres_looks_at_what_it_removes(
    on_postgres: str, task: str | None, session: str
) -> None:
    statements = HistoryStatements(on_postgres)
    if task is None:
        plan = postgres_plan(statements.prune, (MIDDLE, STEP), session)
        by_index(plan.replace("Tid Scan", ""), f"{on_postgres}_runs_pkey", 12 * STEP)
    else:
        plan = postgres_plan(statements.prune_task, (MIDDLE, STEP, task), session)
        by_index(plan.replace("Tid Scan", ""), f"{on_postgres}_runs_task", 12 * STEP)


@SESSIONS
def test_a_batch_on_postgres_reads_no_table_as_a_whole(on_postgres: str, session: str) -> None:
    columns = [list(column) for column in zip(*[row(ROWS + 1)], strict=True)]
    totals = [[NOW], ["job"], [1], [0], [0], [1], [1]]
    plan = postgres_plan(HistoryStatements(on_postgres).append, (*columns, *totals), session)
    assert "Seq Scan" not in plan, plan


class OnMysql(NamedTuple):
    server: str
    table: str
    mariadb: bool


class _Noting(MysqlHistory):
    """Notes the statements that it runs."""

    def __init__(self, table: str) -> None:
        super().__init__(table, "MySQL", False)
        self.statements: list[str] = []

    async def _run(self, connection: Connection, *statements: str) -> Results:
        self.statements += statements
        return await super()._run(connection, *statements)


@pytest.fixture(
    scope="module",
    params=[("mysql", True), ("mysql", False), ("mariadb", True), ("mariadb", False)],
    ids=["mysql", "mysql, known as empty", "mariadb", "mariadb, known as empty"],
)
def on_mysql(request: pytest.FixtureRequest) -> Iterator[OnMysql]:
    name, analysed = request.param
    server = url(name)
    table = new_table()
    drops = [f"DROP TABLE IF EXISTS {table}_{name}" for name in ("runs", "run_totals")]

    async def fill() -> None:
        connection = await connected(server)
        history = MysqlHistory(table, "MySQL", True)
        try:
            for start in range(0, ROWS, 1_000):
                rows = [row(number) for number in range(start, start + 1_000)]
                await history.append(connection, rows, [])
        finally:
            await connection.ensure_closed()

    try:
        run_mysql(server, *drops)
        run_mysql(server, *mysql_schema(table).split(";\n")[:-1])
        if not analysed:
            run_mysql(server, f"ALTER TABLE {table}_runs STATS_AUTO_RECALC = 0")
            run_mysql(server, f"ANALYZE TABLE {table}_runs")
        asyncio.run(fill())
        if analysed:
            run_mysql(server, f"ANALYZE TABLE {table}_runs")
        yield OnMysql(server, table, name == "mariadb")
    finally:
        run_mysql(server, *drops)


async def reads_of(connection: Connection) -> int:
    """How many rows this session has read, of tables and of intermediate results."""
    [rows] = await query(connection, "SHOW SESSION STATUS LIKE 'Handler_read%'")
    return sum(int(status[1]) for status in rows)


def read_on_mysql(place: OnMysql, call: str, *arguments: Any) -> tuple[Any, int, list[Any]]:
    """What a call answers, how many rows it reads, and the plan of its first statement."""

    async def main() -> tuple[Any, int, list[Any]]:
        connection = await connected(place.server)
        history = _Noting(place.table)
        try:
            await reads_of(connection)  # to look is to read as well: as much each time
            looks = -await reads_of(connection) + await reads_of(connection)
            before = await reads_of(connection)
            answer = await getattr(history, call)(connection, *arguments)
            reads = await reads_of(connection) - before - looks
            explained = f"EXPLAIN FORMAT=TRADITIONAL {history.statements[0]}"
            [rows] = await query(connection, explained)
            return answer, reads, rows
        finally:
            await connection.ensure_closed()

    return asyncio.run(main())


@pytest.mark.parametrize(("where", "by"), PAGES)
def test_a_page_on_mysql_is_found_by_its_index(
    on_mysql: OnMysql, where: RunFilter, by: RunIndex
) -> None:
    found, reads, plan = read_on_mysql(on_mysql, "read", selected(where, None), STEP)
    rows = [one for one in map(row, reversed(range(ROWS))) if where.admits(one)]
    assert found == rows[:STEP]
    [step] = plan
    key = 5 if on_mysql.mariadb else 6
    assert step[key] == (by.value or "PRIMARY")
    assert "filesort" not in (step[-1] or "")
    assert reads <= STEP + 5


@pytest.mark.parametrize("task", [None, "job", "rare", "absent"])
def test_a_step_of_pruning_on_mysql_looks_at_what_it_removes(
    on_mysql: OnMysql, task: str | None
) -> None:
    # A few at the beginning: the other tests look at the end.
    removed, reads, _ = read_on_mysql(on_mysql, "prune", task, NOW + 400_000, 10)
    of_rare = range(3, 5)
    assert removed in {"absent": [0], "rare": of_rare}.get(task or "", [10])
    assert reads <= 120


@pytest.mark.parametrize("analysed", [None, "before", "of one task", "after"])
def test_what_is_read_and_removed_on_sqlite_is_found_by_an_index(
    tmp_path: Path, analysed: str | None
) -> None:
    connection = sqlite3.connect(tmp_path / "tasks.db")

    async def never(*_: Any) -> None:
        raise AssertionError

    history = SqliteHistory(never, "tasks", "SQLite")  # type: ignore[arg-type]
    for statement in history.schema:
        connection.execute(statement)
    values = ", ".join("?" * len(RUN_COLUMNS))
    insert = f"INSERT INTO tasks_runs VALUES ({values})"
    if analysed == "of one task":
        one = [row(-number)._replace(task="job") for number in range(1, 500)]
        connection.executemany(insert, one)
        totals = [(NOW + number * MINUTE, "job", 1, 0, 0, 1, 1) for number in range(500)]
        connection.executemany("INSERT INTO tasks_run_totals VALUES (?, ?, ?, ?, ?, ?, ?)", totals)
    if analysed in ("before", "of one task"):
        connection.execute("ANALYZE")
    connection.executemany(insert, map(row, range(2_000)))
    if analysed == "after":
        connection.execute("ANALYZE")

    def steps(statement: str, parameters: Sequence[Any]) -> str:
        rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
        return "\n".join(step for *_, step in rows)

    for where, by in PAGES:
        selection: Selection = selected(where, None)
        statement, parameters = history.page(selection)
        plan = steps(statement, [*parameters, STEP])
        index = f"USING INDEX tasks_runs_{by.value} " if by.value else "USING PRIMARY KEY "
        assert f"SEARCH tasks_runs {index}" in plan, plan
        assert "B-TREE" not in plan, plan
    for task, index in (
        (None, "USING PRIMARY KEY (minute>? AND minute<?)"),
        ("rare", "USING INDEX tasks_run_totals_task (task=? AND minute>? AND minute<?)"),
    ):
        plan = steps(*history.sums(task, NOW, NOW + MINUTE))
        assert f"SEARCH tasks_run_totals {index}" in plan, plan
        assert "B-TREE" not in plan, plan
    for task, index in (
        (None, "USING PRIMARY KEY (ended_at<?)"),
        ("rare", "USING COVERING INDEX tasks_runs_task (task=? AND ended_at<?)"),
    ):
        plan = steps(*history.removal(task, MIDDLE, STEP))
        assert f"SEARCH tasks_runs {index}" in plan, plan
        assert "SCAN" not in plan.replace("SCAN sub", ""), plan
    connection.close()
