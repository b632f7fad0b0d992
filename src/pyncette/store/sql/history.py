"""The run history in an SQL database: two tables beside that of the records.

The attempts are in a table whose primary key is the time at which they ended. So what is too old is
at its beginning, and removed there in small steps. There are no partitions: to drop one, a worker
would need more rights, and would lock the table.

This module knows what is read, by which index, and which columns there are; a ``HistoryTable`` has
the statements of a dialect.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple, Protocol

from pyncette.errors import StoreMisconfiguredError
from pyncette.store.history import (
    KEEP,
    RowsPage,
    RunFilter,
    RunRow,
    TotalRow,
    examined,
    page_of,
    place_of,
)
from pyncette.store.sql.pool import Connection, Pool

RUN_COLUMNS: Final = RunRow._fields
"""The columns of the table of attempts, in their order."""

TOTAL_COLUMNS: Final = TotalRow._fields
"""The columns of the table of totals, in their order."""

FIRST: Final = -(1 << 62)
"""Before every instant."""

LAST: Final = 1 << 62
"""After every instant."""

_LEAST_ID: Final = -(1 << 63)


class RunIndex(Enum):
    """What finds attempts in the order of time; the value is the end of an index's name."""

    ALL = ""
    """The primary key."""

    TASK = "task"
    INSTANCE = "instance"
    FAILED = "failed"
    """Those that have not succeeded."""

    TASK_FAILED = "task_failed"


class Selection(NamedTuple):
    """Which rows to read by an index, the last ones first.

    Attributes:
        by: The index.
        task: The task; None if the index has all.
        instance: The instance, of ``RunIndex.INSTANCE``.
        since: The first instant.
        end: The place in time before which they are.
    """

    by: RunIndex
    task: str | None
    instance: str | None
    since: int
    end: tuple[int, int]


def selected(where: RunFilter, cursor: str | None) -> Selection:
    """Returns what an index has to find for a page.

    Raises:
        ValueError: It is no cursor.
    """
    if where.instance is not None:
        index = RunIndex.INSTANCE
    elif where.only_unsuccessful:
        index = RunIndex.FAILED if where.task is None else RunIndex.TASK_FAILED
    else:
        index = RunIndex.ALL if where.task is None else RunIndex.TASK
    since = FIRST if where.since is None else where.since
    end = (LAST if where.until is None else where.until, _LEAST_ID)
    if cursor is not None:
        end = min(end, place_of(cursor))
    return Selection(index, where.task, where.instance, since, end)


class HistoryTable(Protocol):
    """The statements of each call; see ``pyncette.store.history.History`` for the calls."""

    async def prepare(self, connection: Connection) -> None: ...

    async def append(
        self, connection: Connection, runs: Sequence[RunRow], totals: Sequence[TotalRow]
    ) -> None:
        """Writes all of it, or nothing; nothing if the first row is there already.

        Raises:
            ValueError: The server refuses a value.
        """

    async def read(
        self, connection: Connection, selection: Selection, limit: int
    ) -> list[RunRow]: ...

    async def totals(
        self, connection: Connection, task: str | None, since: int, until: int
    ) -> list[TotalRow]: ...

    async def prune(
        self, connection: Connection, task: str | None, before: int, limit: int
    ) -> int: ...


class SqlHistory:
    """See ``pyncette.store.history.History``.

    Args:
        table: Has the statements of the calls.
        pool: The connections: those of calls of users, for which no claim and no outcome waits.
    """

    def __init__(self, table: HistoryTable, pool: Pool) -> None:
        self._table = table
        self._pool = pool

    async def prepare(self, keep: int = KEEP) -> None:
        await self._pool.run(self._table.prepare)

    async def append(self, runs: Sequence[RunRow], totals: Sequence[TotalRow]) -> None:
        if runs:
            # Two workers that write totals of the same tasks do so in the same order.
            ordered = sorted(totals)
            await self._pool.run(lambda connection: self._table.append(connection, runs, ordered))

    async def runs(self, where: RunFilter, cursor: str | None, limit: int) -> RowsPage:
        selection, most = selected(where, cursor), examined(where, limit)
        found = await self._pool.run(
            lambda connection: self._table.read(connection, selection, most), reads=True
        )
        return page_of(found, where, limit, most)

    async def totals(self, task: str | None, since: int, until: int) -> list[TotalRow]:
        return await self._pool.run(
            lambda connection: self._table.totals(connection, task, since, until), reads=True
        )

    async def prune(self, task: str | None, before: int, limit: int) -> int:
        return await self._pool.run(
            lambda connection: self._table.prune(connection, task, before, limit)
        )


def check_history_layout(
    columns: Sequence[str], expected: Sequence[str], table: str, place: str, package: str
) -> None:
    """Refuses a table of the history that is missing, or that Pyncette has not created.

    Args:
        columns: Its columns in their order; empty if there is no such table.
        expected: Those that it should have.
        table, place: The name of the table, and the server.
        package: The name of the store's package, with which its options begin.

    Raises:
        StoreMisconfiguredError: The table cannot be used.
    """
    if not columns:
        raise StoreMisconfiguredError(
            f"There is no table '{table}' in {place} for the run history, and "
            f"{package}_skip_table_create is set. pyncette.{package}.history_schema_sql() tells "
            "how to create it."
        )
    if not begins_with(columns, expected):
        raise StoreMisconfiguredError(
            f"Table '{table}' in {place} is not one of ours: it has the columns "
            f"{', '.join(columns)}; expected are {', '.join(expected)}. Rename it, or name another "
            f"table with {package}_table_name. Nothing was changed."
        )


def begins_with(columns: Sequence[str], expected: Sequence[str]) -> bool:
    """Whether a table has these columns first: a later release may have added others."""
    return list(columns[: len(expected)]) == list(expected)


def check_history_name(table: str, characters_max: int, package: str) -> None:
    """Refuses the name of a table, if those of its history would be too long.

    Raises:
        StoreMisconfiguredError: It is too long.
    """
    if len(table) > characters_max:
        raise StoreMisconfiguredError(
            f"Table name {table!r} ({package}_table_name) is too long for a run history: it may "
            f"have {characters_max} characters then, so that the names of its tables and indexes "
            "fit"
        )
