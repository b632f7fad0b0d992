"""The run history in a SQLite database: two tables beside that of the records.

They are created when the history is used for the first time. All calls go through the thread of the
connection, as those of the store do, in statements that are short enough not to delay a claim.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

from pyncette.errors import StoreMisconfiguredError
from pyncette.store.history import (
    KEEP,
    SUCCEEDED,
    TOTALS_MAX,
    RowsPage,
    RunFilter,
    RunRow,
    TotalRow,
    examined,
    page_of,
)
from pyncette.store.sql.history import (
    RUN_COLUMNS,
    TOTAL_COLUMNS,
    RunIndex,
    Selection,
    begins_with,
    selected,
)

_ROWS: Final = 100
"""Rows of one statement; the rest of a batch has a statement for each row."""

# A row may be edited by hand to any value. Whoever reads it checks the types.
_SCHEMA: Final = (
    """\
CREATE TABLE IF NOT EXISTS {table}_runs (
    ended_at     INTEGER NOT NULL,
    id           INTEGER NOT NULL,
    task         TEXT    NOT NULL,
    instance     TEXT,
    execution_id TEXT    NOT NULL,
    attempt      INTEGER NOT NULL,
    planned_at   INTEGER NOT NULL,
    started_at   INTEGER NOT NULL,
    worker       TEXT    NOT NULL,
    outcome      TEXT    NOT NULL,
    error        TEXT,
    PRIMARY KEY (ended_at, id)
) WITHOUT ROWID""",
    """\
CREATE INDEX IF NOT EXISTS {table}_runs_task ON {table}_runs (task, ended_at, id)""",
    """\
CREATE INDEX IF NOT EXISTS {table}_runs_instance ON {table}_runs (task, instance, ended_at, id)
    WHERE instance IS NOT NULL""",
    f"""\
CREATE INDEX IF NOT EXISTS {{table}}_runs_failed ON {{table}}_runs (ended_at, id)
    WHERE outcome <> '{SUCCEEDED}'""",
    f"""\
CREATE INDEX IF NOT EXISTS {{table}}_runs_task_failed ON {{table}}_runs (task, ended_at, id)
    WHERE outcome <> '{SUCCEEDED}'""",
    """\
CREATE TABLE IF NOT EXISTS {table}_run_totals (
    minute       INTEGER NOT NULL,
    task         TEXT    NOT NULL,
    succeeded    INTEGER NOT NULL,
    failed       INTEGER NOT NULL,
    other        INTEGER NOT NULL,
    took         INTEGER NOT NULL,
    lateness_max INTEGER NOT NULL,
    PRIMARY KEY (minute, task)
) WITHOUT ROWID""",
    """\
CREATE INDEX IF NOT EXISTS {table}_run_totals_task ON {table}_run_totals (task, minute)""",
)


class Thread(Protocol):
    """Makes a call in the thread of the connection; see ``pyncette.sqlite.thread``."""

    def __call__(
        self,
        read: Callable[[sqlite3.Connection], Any] | None,
        write: Callable[[sqlite3.Connection], Any] | None,
        urgent: bool,
        durable: bool = True,
    ) -> Awaitable[Any]: ...


class SqliteHistory:
    """See ``pyncette.store.history.History``.

    Args:
        call: Makes a call in the thread of the connection.
        table: The name of the table of the records.
        place: The name of the database, for messages.
    """

    def __init__(self, call: Thread, table: str, place: str) -> None:
        self._call = call
        self._table = table
        self._place = place
        self.schema: tuple[str, ...] = tuple(statement.format(table=table) for statement in _SCHEMA)
        runs, totals = f"{table}_runs", f"{table}_run_totals"
        self._insert = {
            rows: f"INSERT INTO {runs} ({', '.join(RUN_COLUMNS)}) "
            f"VALUES {', '.join([_values(11)] * rows)} ON CONFLICT DO NOTHING"
            for rows in (_ROWS, 1)
        }
        self._has = f"SELECT 1 FROM {runs} WHERE ended_at = ? AND id = ?"
        self._add = (
            f"INSERT INTO {totals} ({', '.join(TOTAL_COLUMNS)}) VALUES {_values(7)} "
            "ON CONFLICT DO UPDATE SET succeeded = succeeded + excluded.succeeded, "
            "failed = failed + excluded.failed, other = other + excluded.other, "
            "took = took + excluded.took, "
            "lateness_max = max(lateness_max, excluded.lateness_max)"
        )
        # A cursor is made of the first two, so they must be numbers.
        self._columns = ", ".join(
            ["CAST(ended_at AS INTEGER)", "CAST(id AS INTEGER)", *RunRow._fields[2:]]
        )

    async def prepare(self, keep: int = KEEP) -> None:
        def write(connection: sqlite3.Connection) -> bool:
            for statement in self.schema:
                connection.execute(statement)
            for name, fields in (("runs", RUN_COLUMNS), ("run_totals", TOTAL_COLUMNS)):
                table = f"{self._table}_{name}"
                columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
                if not begins_with(columns, fields):
                    raise StoreMisconfiguredError(
                        f"Table '{table}' in {self._place} is not one of ours: it has the columns "
                        f"{', '.join(columns)}; expected are {', '.join(fields)}. Rename it, or "
                        "name another table with sqlite_table_name. Nothing was changed."
                    )
            return True

        await self._call(None, write, False)

    async def append(self, runs: Sequence[RunRow], totals: Sequence[TotalRow]) -> None:
        def write(connection: sqlite3.Connection) -> bool:
            if runs and connection.execute(self._has, runs[0][:2]).fetchone() is not None:
                return True
            start = 0
            while len(runs) - start >= _ROWS:
                rows = runs[start : start + _ROWS]
                connection.execute(self._insert[_ROWS], [value for row in rows for value in row])
                start += _ROWS
            connection.executemany(self._insert[1], runs[start:])
            connection.executemany(self._add, totals)
            return True

        await self._call(None, write, False, False)

    async def runs(self, where: RunFilter, cursor: str | None, limit: int) -> RowsPage:
        statement, parameters = self.page(selected(where, cursor))
        most = examined(where, limit)

        def read(connection: sqlite3.Connection) -> list[RunRow]:
            rows = self._read(connection, statement, (*parameters, most))
            return [RunRow(*row) for row in rows]

        return page_of(await self._call(read, None, False), where, limit, most)

    def page(self, selection: Selection) -> tuple[str, list[Any]]:
        """Returns the statement of a page, by an index, and its parameters but for a limit."""
        index, task, instance, since, end = selection
        name = f"{self._table}_runs"
        by = "" if index is RunIndex.ALL else f" INDEXED BY {name}_{index.value}"
        conditions = ["ended_at >= ?", "(ended_at, id) < (?, ?)"]
        parameters: list[Any] = [since, *end]
        for column, value in (("task", task), ("instance", instance)):
            if value is not None:
                conditions.append(f"{column} = ?")
                parameters.append(value)
        if index in (RunIndex.FAILED, RunIndex.TASK_FAILED):
            conditions.append(f"outcome <> '{SUCCEEDED}'")
        return (
            f"SELECT {self._columns} FROM {name}{by} WHERE {' AND '.join(conditions)} "
            "ORDER BY ended_at DESC, id DESC LIMIT ?",
            parameters,
        )

    async def totals(self, task: str | None, since: int, until: int) -> list[TotalRow]:
        def read(connection: sqlite3.Connection) -> list[TotalRow]:
            statement, parameters = self.sums(task, since, until)
            rows = self._read(connection, statement, parameters)
            # A row that was edited into garbage is left out: a column takes any value.
            return [TotalRow(*row) for row in rows if all(isinstance(n, int) for n in row[2:])]

        found: list[TotalRow] = await self._call(read, None, False)
        return found

    def sums(self, task: str | None, since: int, until: int) -> tuple[str, list[Any]]:
        """Returns the statement that reads totals, by an index, and its parameters."""
        name = f"{self._table}_run_totals"
        by, of_task = ("", "") if task is None else (f" INDEXED BY {name}_task", " AND task = ?")
        return (
            f"SELECT {', '.join(TOTAL_COLUMNS)} FROM {name}{by} WHERE minute >= ? AND minute < ?"
            f"{of_task} ORDER BY minute DESC, task DESC LIMIT {TOTALS_MAX}",
            [since, until] if task is None else [since, until, task],
        )

    async def prune(self, task: str | None, before: int, limit: int) -> int:
        def write(connection: sqlite3.Connection) -> int:
            removed = connection.execute(*self.removal(task, before, limit)).rowcount
            if task is not None:
                return removed
            totals = f"{self._table}_run_totals"
            minutes = connection.execute(
                f"DELETE FROM {totals} WHERE (minute, task) IN "
                f"(SELECT minute, task FROM {totals} WHERE minute < ? ORDER BY minute LIMIT ?)",
                (before, limit),
            ).rowcount
            return max(removed, minutes)

        removed: int = await self._call(None, write, False, False)
        return removed

    def removal(self, task: str | None, before: int, limit: int) -> tuple[str, list[Any]]:
        """Returns the statement that removes the oldest rows, by an index, and its parameters."""
        runs = f"{self._table}_runs"
        by, of_task, parameters = (
            ("", "", []) if task is None else (f" INDEXED BY {runs}_task", "task = ? AND ", [task])
        )
        return (
            f"DELETE FROM {runs} WHERE (ended_at, id) IN (SELECT ended_at, id FROM {runs}{by} "
            f"WHERE {of_task}ended_at < ? ORDER BY ended_at, id LIMIT ?)",
            [*parameters, before, limit],
        )

    def _read(
        self, connection: sqlite3.Connection, statement: str, parameters: Sequence[Any]
    ) -> list[tuple[Any, ...]]:
        """Reads rows; none if the history was never used here."""
        try:
            return connection.execute(statement, parameters).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            return []


def _values(count: int) -> str:
    return f"({', '.join('?' * count)})"
