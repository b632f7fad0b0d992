"""The run history in MySQL and MariaDB: its tables, and every statement on them.

A batch is one transaction, sent whole in one round trip: the server completes it even if this
process ends. Every table is read by a named index. Texts are compared as bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from asyncmy import errors

from pyncette.mysql.connection import (
    DEADLOCK,
    DUPLICATE,
    NO_SUCH_TABLE,
    Connection,
    Results,
    code_of,
    packet_bytes_max,
    query,
    refusal,
    size_of,
)
from pyncette.mysql.sql import LAYOUT, TEXT, batch_of
from pyncette.store.history import SUCCEEDED, TOTALS_MAX, RunRow, TotalRow
from pyncette.store.sql.conflicts import retried
from pyncette.store.sql.history import (
    RUN_COLUMNS,
    TOTAL_COLUMNS,
    RunIndex,
    Selection,
    check_history_layout,
    check_history_name,
)

TABLE_NAME_CHARACTERS_MAX: Final = 53
"""The maximum, since a name has 64 characters and that of the totals adds 11."""

_RUNS_SCHEMA: Final = f"""\
CREATE TABLE IF NOT EXISTS {{table}}_runs (
    ended_at     BIGINT NOT NULL,
    id           BIGINT NOT NULL,
    task         VARBINARY(1000) NOT NULL,
    instance     VARBINARY(1000),
    execution_id VARCHAR(100) NOT NULL,
    attempt      BIGINT NOT NULL,
    planned_at   BIGINT NOT NULL,
    started_at   BIGINT NOT NULL,
    worker       VARCHAR(1000) NOT NULL,
    outcome      VARCHAR(100) NOT NULL,
    error        TEXT,
    failed       TINYINT AS (CASE WHEN outcome <> '{SUCCEEDED}' THEN 1 END) VIRTUAL,
    failed_task  VARBINARY(1000) AS (CASE WHEN outcome <> '{SUCCEEDED}' THEN task END) VIRTUAL,
    PRIMARY KEY (ended_at, id),
    KEY task (task, ended_at, id),
    KEY instance (task, instance, ended_at, id),
    KEY failed (failed, ended_at, id),
    KEY task_failed (failed_task, ended_at, id)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET = utf8mb4 COLLATE = utf8mb4_bin"""
_TOTALS_SCHEMA: Final = """\
CREATE TABLE IF NOT EXISTS {table}_run_totals (
    minute       BIGINT NOT NULL,
    task         VARBINARY(1000) NOT NULL,
    succeeded    BIGINT NOT NULL,
    failed       BIGINT NOT NULL,
    other        BIGINT NOT NULL,
    took         BIGINT NOT NULL,
    lateness_max BIGINT NOT NULL,
    PRIMARY KEY (minute, task),
    KEY task (task, minute)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET = utf8mb4 COLLATE = utf8mb4_bin"""

_BIGINTS: Final = frozenset(("ended_at", "id", "attempt", "planned_at", "started_at"))
_BYTES: Final = frozenset(("task", "instance"))
_RUN_TYPES: Final = {name: "BIGINT" if name in _BIGINTS else TEXT for name in RUN_COLUMNS}
_TOTAL_TYPES: Final = {name: TEXT if name == "task" else "BIGINT" for name in TOTAL_COLUMNS}

# A row that is there already makes the batch fail: then all of it is there.
_INSERT_RUNS: Final = "INSERT INTO {table}_runs ({columns}) SELECT {values} FROM {batch}"
_ADD_TOTALS: Final = """\
INSERT INTO {table}_run_totals ({columns}) SELECT {values} FROM {batch}
ON DUPLICATE KEY UPDATE {table}_run_totals.succeeded = {table}_run_totals.succeeded + j.succeeded,
    {table}_run_totals.failed = {table}_run_totals.failed + j.failed,
    {table}_run_totals.other = {table}_run_totals.other + j.other,
    {table}_run_totals.took = {table}_run_totals.took + j.took,
    {table}_run_totals.lateness_max = GREATEST({table}_run_totals.lateness_max, j.lateness_max)"""

# A page by an index.
_PAGE: Final = """\
SELECT {columns} FROM {table}_runs AS r FORCE INDEX ({index})
WHERE {conditions} ORDER BY r.ended_at DESC, r.id DESC LIMIT {limit}"""

# Removes the oldest rows. Several workers do not wait for each other.
_PRUNE: Final = """\
DELETE t FROM (
    SELECT r.{first} AS a, r.{second} AS b FROM {table} AS r FORCE INDEX ({index})
    WHERE {conditions} ORDER BY r.{first}, r.{second} LIMIT {limit} FOR UPDATE SKIP LOCKED
) AS q STRAIGHT_JOIN {table} AS t FORCE INDEX (PRIMARY) ON t.{first} = q.a AND t.{second} = q.b"""

_TOTALS: Final = """\
SELECT {columns} FROM {table}_run_totals AS r FORCE INDEX ({index})
WHERE {of_task}r.minute >= {since} AND r.minute < {until}
ORDER BY r.minute DESC, r.task DESC LIMIT {limit}"""


def history_schema_sql(table: str) -> str:
    """The statements that create the tables of the history and their indexes."""
    return "".join(f"{schema.format(table=table)};\n" for schema in (_RUNS_SCHEMA, _TOTALS_SCHEMA))


class MysqlHistory:
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

    async def _run(self, connection: Connection, *statements: str) -> Results:
        return await retried(
            lambda: query(connection, *statements), lambda error: code_of(error) == DEADLOCK
        )

    async def prepare(self, connection: Connection) -> None:
        check_history_name(self._table, TABLE_NAME_CHARACTERS_MAX, "mysql")
        tables = {f"{self._table}_runs": RUN_COLUMNS, f"{self._table}_run_totals": TOTAL_COLUMNS}
        found = await self._layout(connection, tables)
        for table, columns in found.items():
            if columns:
                check_history_layout(columns, tables[table], table, self._place, "mysql")
        if self._creates and not all(found.values()):
            # Another worker may be creating them, which takes longer than other locks on a table.
            await query(connection, "SET SESSION lock_wait_timeout = 10")
            await query(connection, _RUNS_SCHEMA.format(table=self._table))
            await query(connection, _TOTALS_SCHEMA.format(table=self._table))
            await query(connection, "SET SESSION lock_wait_timeout = 1")
            found = await self._layout(connection, tables)
        for table, expected in tables.items():
            check_history_layout(found[table], expected, table, self._place, "mysql")

    async def _layout(
        self, connection: Connection, tables: Collection[str]
    ) -> dict[str, list[str]]:
        """The columns of each table; none if there is no such table."""
        results = await query(connection, *(LAYOUT.format(table=table) for table in tables))
        return {
            table: [row[0] for row in rows] for table, rows in zip(tables, results, strict=True)
        }

    async def append(
        self, connection: Connection, runs: Sequence[RunRow], totals: Sequence[TotalRow]
    ) -> None:
        statements = [
            "START TRANSACTION",
            self._insertion(connection, _INSERT_RUNS, runs, _RUN_TYPES),
        ]
        if totals:
            statements.append(self._insertion(connection, _ADD_TOTALS, totals, _TOTAL_TYPES))
        statements.append("COMMIT")
        size, size_max = sum(map(size_of, statements)), packet_bytes_max(connection)
        if size >= size_max:
            # In two halves, each of them a batch.
            if len(runs) == 1:
                raise ValueError(
                    f"a statement of {size} bytes is larger than max_allowed_packet of the server, "
                    f"which is {size_max}"
                )
            half = len(runs) // 2
            await self.append(connection, runs[half:], ())
            await self.append(connection, runs[:half], totals)
            return
        await retried(
            lambda: self._transaction(connection, statements),
            lambda error: code_of(error) == DEADLOCK,
        )

    async def _transaction(self, connection: Connection, statements: Sequence[str]) -> None:
        try:
            await query(connection, *statements)
        except errors.MySQLError as error:
            await query(connection, "ROLLBACK")
            if code_of(error) == DUPLICATE:
                return
            refused = refusal(error)
            if refused is not None:
                raise refused from error
            raise

    def _insertion(
        self,
        connection: Connection,
        statement: str,
        rows: Sequence[Sequence[Any]],
        types: Mapping[str, str],
    ) -> str:
        return statement.format(
            table=self._table,
            columns=", ".join(types),
            values=", ".join(
                f"CAST(j.{name} AS BINARY)" if name in _BYTES else f"j.{name}" for name in types
            ),
            batch=batch_of(connection, rows, types),
        )

    async def read(self, connection: Connection, selection: Selection, limit: int) -> list[RunRow]:
        index, task, instance, since, (last, before) = selection
        conditions = [
            f"r.ended_at >= {since}",
            f"r.ended_at <= {last}",
            f"(r.ended_at < {last} OR r.id < {before})",
        ]
        if index is RunIndex.FAILED:
            conditions.append("r.failed = 1")
        if task is not None:
            column = "failed_task" if index is RunIndex.TASK_FAILED else "task"
            conditions.append(f"r.{column} = {_bytes(connection, task)}")
        if instance is not None:
            conditions.append(f"r.instance = {_bytes(connection, instance)}")
        statement = _PAGE.format(
            columns=_columns(_RUN_TYPES),
            table=self._table,
            index=index.value or "PRIMARY",
            conditions=" AND ".join(conditions),
            limit=limit,
        )
        return [RunRow(*row) for row in await self._found(connection, statement)]

    async def totals(
        self, connection: Connection, task: str | None, since: int, until: int
    ) -> list[TotalRow]:
        statement = _TOTALS.format(
            columns=_columns(_TOTAL_TYPES),
            table=self._table,
            index="PRIMARY" if task is None else "task",
            of_task="" if task is None else f"r.task = {_bytes(connection, task)} AND ",
            since=since,
            until=until,
            limit=TOTALS_MAX,
        )
        return [TotalRow(*row) for row in await self._found(connection, statement)]

    async def _found(self, connection: Connection, statement: str) -> list[list[Any]]:
        """Reads rows, with bytes that are not UTF-8 replaced; none if there is no such table."""
        try:
            [rows] = await self._run(connection, statement)
        except errors.MySQLError as error:
            if code_of(error) != NO_SUCH_TABLE:
                raise
            return []
        return [
            [value.decode(errors="replace") if isinstance(value, bytes) else value for value in row]
            for row in rows
        ]

    async def prune(self, connection: Connection, task: str | None, before: int, limit: int) -> int:
        runs = {
            "table": f"{self._table}_runs",
            "first": "ended_at",
            "second": "id",
            "limit": limit,
        }
        old = f"r.ended_at < {before}"
        if task is not None:
            of_task = f"r.task = {_bytes(connection, task)} AND {old}"
            [removed] = await self._run(
                connection, _PRUNE.format(**runs, index="task", conditions=of_task)
            )
            return int(removed)
        [removed] = await self._run(
            connection, _PRUNE.format(**runs, index="PRIMARY", conditions=old)
        )
        [minutes] = await self._run(
            connection,
            _PRUNE.format(
                table=f"{self._table}_run_totals",
                first="minute",
                second="task",
                index="PRIMARY",
                conditions=f"r.minute < {before}",
                limit=limit,
            ),
        )
        return int(max(removed, minutes))


def _columns(types: Mapping[str, str]) -> str:
    return ", ".join(
        f"CAST(r.{name} AS BINARY)" if kind is TEXT else f"r.{name}" for name, kind in types.items()
    )


def _bytes(connection: Connection, text: str) -> str:
    return f"CAST({connection.escape(text)} AS BINARY)"
