"""The run history in PostgreSQL: its tables, and every statement on them.

Rows are found in the order of an index by comparing all of its columns at once. A plan may be made
while a table is empty, and stays; or, behind a pooler, for the parameters at hand, of which the
server may know too little. So only one index can serve each page: no two begin with the same
columns, and a partial one is for the statement alone that repeats its condition. And parameters are
hidden in subqueries, so that every plan is one for any parameters: it is then never expected that a
few rows are found, which could be sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import asyncpg

from pyncette.postgres.connection import Connection, refusal
from pyncette.postgres.sql import LAYOUT, MAKE
from pyncette.postgres.table import fetch
from pyncette.store.history import SUCCEEDED, TOTALS_MAX, RunRow, TotalRow
from pyncette.store.sql.history import (
    FIRST,
    RUN_COLUMNS,
    TOTAL_COLUMNS,
    RunIndex,
    Selection,
    check_history_layout,
    check_history_name,
)

TABLE_NAME_CHARACTERS_MAX: Final = 46
"""The maximum, since a name has 63 bytes and the longest one of an index adds 17."""

# The second part of each is always true. Without it, the page of a task could be planned as reading
# all of the other index, and sorting: that costs nothing while nothing has failed.
_FAILED: Final = f"outcome <> '{SUCCEEDED}' AND ended_at >= {FIRST}"
_TASK_FAILED: Final = f"outcome <> '{SUCCEEDED}' AND task >= ''"

SCHEMA: Final = f"""\
CREATE TABLE IF NOT EXISTS {{table}}_runs (
    ended_at     bigint NOT NULL,
    id           bigint NOT NULL,
    task         text COLLATE "C" NOT NULL,
    instance     text COLLATE "C",
    execution_id text COLLATE "C" NOT NULL,
    attempt      bigint NOT NULL,
    planned_at   bigint NOT NULL,
    started_at   bigint NOT NULL,
    worker       text COLLATE "C" NOT NULL,
    outcome      text COLLATE "C" NOT NULL,
    error        text,
    PRIMARY KEY (ended_at, id)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
CREATE INDEX IF NOT EXISTS {{table}}_runs_task ON {{table}}_runs (task, ended_at, id);
CREATE INDEX IF NOT EXISTS {{table}}_runs_instance ON {{table}}_runs (instance, task, ended_at, id)
    WHERE instance IS NOT NULL;
CREATE INDEX IF NOT EXISTS {{table}}_runs_failed ON {{table}}_runs (ended_at, id)
    WHERE {_FAILED};
CREATE INDEX IF NOT EXISTS {{table}}_runs_task_failed ON {{table}}_runs (task, ended_at, id)
    WHERE {_TASK_FAILED};
CREATE TABLE IF NOT EXISTS {{table}}_run_totals (
    minute       bigint NOT NULL,
    task         text COLLATE "C" NOT NULL,
    succeeded    bigint NOT NULL,
    failed       bigint NOT NULL,
    other        bigint NOT NULL,
    took         bigint NOT NULL,
    lateness_max bigint NOT NULL,
    PRIMARY KEY (minute, task)
) WITH (fillfactor = 80);
CREATE INDEX IF NOT EXISTS {{table}}_run_totals_task ON {{table}}_run_totals (task, minute);
"""

_RUN_TYPES: Final = (*["bigint"] * 2, *["text"] * 3, *["bigint"] * 3, *["text"] * 3)
_TOTAL_TYPES: Final = ("bigint", "text", *["bigint"] * 5)

# Adds rows; and totals, unless the first row was there. By the primary keys.
_APPEND: Final = """\
WITH made AS (
    INSERT INTO {table}_runs ({run_columns}) SELECT * FROM unnest({runs})
    ON CONFLICT DO NOTHING RETURNING id
), counted AS (
    INSERT INTO {table}_run_totals AS t ({total_columns})
    SELECT w.* FROM unnest({totals}) AS w({total_columns})
    WHERE EXISTS (SELECT FROM made WHERE made.id = ($2::bigint[])[1])
    ON CONFLICT (minute, task) DO UPDATE SET succeeded = t.succeeded + excluded.succeeded,
        failed = t.failed + excluded.failed, other = t.other + excluded.other,
        took = t.took + excluded.took,
        lateness_max = greatest(t.lateness_max, excluded.lateness_max)
)
SELECT"""

# A page by an index: the columns that it has before the time, and the condition that is its own.
_PAGE: Final = """\
SELECT {columns} FROM {table}_runs
WHERE ({before}ended_at, id) < ({values}(SELECT $1::bigint), $2::bigint)
    AND ({before}ended_at) >= ({values}(SELECT $3::bigint)){condition}
ORDER BY {descending}ended_at DESC, id DESC LIMIT $4"""

_INDEXES: Final[dict[RunIndex, tuple[tuple[str, ...], str]]] = {
    RunIndex.ALL: ((), ""),
    RunIndex.TASK: (("task",), ""),
    RunIndex.INSTANCE: (("instance", "task"), " AND instance IS NOT NULL"),
    RunIndex.FAILED: ((), f" AND {_FAILED}"),
    RunIndex.TASK_FAILED: (("task",), f" AND {_TASK_FAILED}"),
}

# Removes the oldest rows, by the primary key or the index of a task. Several workers do not wait
# for each other.
_PRUNE: Final = """\
WITH gone AS (
    DELETE FROM {table}_runs WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM {table}_runs WHERE {condition}
        ORDER BY {order} LIMIT $2 FOR UPDATE SKIP LOCKED))
    RETURNING 1
)
SELECT count(*) FROM gone"""
_PRUNE_TOTALS: Final = """\
WITH gone AS (
    DELETE FROM {table}_run_totals WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM {table}_run_totals WHERE minute < $1
        ORDER BY minute, task LIMIT $2 FOR UPDATE SKIP LOCKED))
    RETURNING 1
)
SELECT count(*) FROM gone"""

# Totals by the primary key, or by the index of tasks.
_TOTALS: Final = f"""\
SELECT {", ".join(TOTAL_COLUMNS)} FROM {{table}}_run_totals
WHERE minute >= $1 AND minute < $2 ORDER BY minute DESC, task DESC LIMIT {TOTALS_MAX}"""
_TOTALS_OF_TASK: Final = f"""\
SELECT {", ".join(TOTAL_COLUMNS)} FROM {{table}}_run_totals
WHERE (task, minute) >= ($3, $1) AND (task, minute) < ($3, $2)
ORDER BY task DESC, minute DESC LIMIT {TOTALS_MAX}"""


def history_schema_sql(table: str) -> str:
    """The statements that create the tables of the history and their indexes."""
    return SCHEMA.format(table=table)


class HistoryStatements:
    """The statements on the tables of one history.

    Args:
        table: The name of the table of the records.
    """

    def __init__(self, table: str) -> None:
        self.make = MAKE.format(schema=history_schema_sql(table))
        self.append = _APPEND.format(
            table=table,
            runs=_arrays(_RUN_TYPES, 1),
            totals=_arrays(_TOTAL_TYPES, 1 + len(_RUN_TYPES)),
            run_columns=", ".join(RUN_COLUMNS),
            total_columns=", ".join(TOTAL_COLUMNS),
        )
        self.page = {index: _page(table, *parts) for index, parts in _INDEXES.items()}
        self.prune = _PRUNE.format(
            table=table, condition="ended_at < (SELECT $1::bigint)", order="ended_at, id"
        )
        self.prune_task = _PRUNE.format(
            table=table,
            condition=f"(task, ended_at) >= ((SELECT $3::text), {FIRST}) "
            "AND (task, ended_at) < ((SELECT $3), $1::bigint)",
            order="task, ended_at, id",
        )
        self.prune_totals = _PRUNE_TOTALS.format(table=table)
        self.totals = _TOTALS.format(table=table)
        self.totals_of_task = _TOTALS_OF_TASK.format(table=table)


def _arrays(types: Sequence[str], first: int) -> str:
    return ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(types, first))


def _page(table: str, columns: Sequence[str], condition: str) -> str:
    return _PAGE.format(
        table=table,
        columns=", ".join(RUN_COLUMNS),
        before="".join(f"{column}, " for column in columns),
        values="".join(f"(SELECT ${number}::text), " for number in range(5, 5 + len(columns))),
        descending="".join(f"{column} DESC, " for column in columns),
        condition=condition,
    )


class PostgresHistory:
    """See ``pyncette.store.sql.history.HistoryTable``.

    Args:
        table: The name of the table of the records.
        place: The server, for messages.
        creates: Whether missing tables may be created.
    """

    def __init__(self, table: str, place: str, creates: bool) -> None:
        self._table = table
        self._place = place
        self._creates = creates
        self._statements = HistoryStatements(table)

    async def prepare(self, connection: Connection) -> None:
        check_history_name(self._table, TABLE_NAME_CHARACTERS_MAX, "postgres")
        tables = {f"{self._table}_runs": RUN_COLUMNS, f"{self._table}_run_totals": TOTAL_COLUMNS}
        found = {table: await self._columns(connection, table) for table in tables}
        for table, columns in found.items():
            if columns:
                check_history_layout(columns, tables[table], table, self._place, "postgres")
        if self._creates and not all(found.values()):
            await connection.execute(self._statements.make)
            found = {table: await self._columns(connection, table) for table in tables}
        for table, expected in tables.items():
            check_history_layout(found[table], expected, table, self._place, "postgres")

    async def _columns(self, connection: Connection, table: str) -> list[str]:
        return [row[0] for row in await connection.fetch(LAYOUT, table)]

    async def append(
        self, connection: Connection, runs: Sequence[RunRow], totals: Sequence[TotalRow]
    ) -> None:
        columns = [*map(list, zip(*runs, strict=True))]
        columns += [list(column) for column in zip(*totals, strict=True)] or [
            [] for _ in TOTAL_COLUMNS
        ]
        try:
            await fetch(connection, self._statements.append, *columns)
        except Exception as error:
            refused = refusal(error)
            if refused is not None:
                raise refused from error
            raise

    async def read(self, connection: Connection, selection: Selection, limit: int) -> list[RunRow]:
        index, task, instance, since, end = selection
        names = [name for name in (instance, task) if name is not None]
        statement = self._statements.page[index]
        return [
            RunRow(*row) for row in await _found(connection, statement, *end, since, limit, *names)
        ]

    async def totals(
        self, connection: Connection, task: str | None, since: int, until: int
    ) -> list[TotalRow]:
        if task is None:
            rows = await _found(connection, self._statements.totals, since, until)
        else:
            rows = await _found(connection, self._statements.totals_of_task, since, until, task)
        return [TotalRow(*row) for row in rows]

    async def prune(self, connection: Connection, task: str | None, before: int, limit: int) -> int:
        statements = self._statements
        if task is not None:
            [(removed,)] = await fetch(connection, statements.prune_task, before, limit, task)
            return int(removed)
        [(removed,)] = await fetch(connection, statements.prune, before, limit)
        [(minutes,)] = await fetch(connection, statements.prune_totals, before, limit)
        return int(max(removed, minutes))


async def _found(connection: Connection, statement: str, *parameters: Any) -> list[Any]:
    """Reads rows; none if the history was never used here."""
    try:
        return await fetch(connection, statement, *parameters)
    except asyncpg.UndefinedTableError:
        return []
