"""The run history of a store: an optional part, beside its records.

A store that can keep one has an attribute ``history``. Nothing in it is ever read by a claim or a
write of records, and nothing waits for it. It may be lost in part: whoever writes it counts that.

All instants and durations are integers, as in ``pyncette.store``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

MINUTE: Final = 60_000_000
"""The length of what one total is about, in microseconds."""

KEEP: Final = 7 * 24 * 60 * MINUTE
"""For how long rows are kept, if nothing else is said."""

SUCCEEDED: Final = "succeeded"
"""The one outcome that most rows have. Indexes have the others alone, where a store can do that."""

TOTALS_MAX: Final = 50_000
"""Maximum totals in one answer."""

EXAMINED_MAX: Final = 500
"""Maximum rows that one call examines beyond those that an index selects."""


class RunRow(NamedTuple):
    """An attempt that has ended. Its place in time is ``(ended_at, id)``, which no other has.

    Attributes:
        ended_at: When the body ended.
        id: A number of 62 bits that its writer has chosen, so that a batch can be repeated.
        task: The name of the static task or of the template.
        instance: The name of the instance; None: the task is static.
        execution_id, attempt, worker: As in ``pyncette.model.Run``.
        planned_at: The planned time of the occurrence.
        started_at: When the body started.
        outcome: One of ``pyncette.model.RUN_OUTCOMES``.
        error: The error in one line; None: none.
    """

    ended_at: int
    id: int
    task: str
    instance: str | None
    execution_id: str
    attempt: int
    planned_at: int
    started_at: int
    worker: str
    outcome: str
    error: str | None


class TotalRow(NamedTuple):
    """The attempts of a task in a minute.

    Attributes:
        minute: When the minute began: a multiple of ``MINUTE``.
        task: The name of the static task or of the template.
        succeeded, failed, other: How many.
        took: How long they took together.
        lateness_max: See ``pyncette.model.RunTotals``.
    """

    minute: int
    task: str
    succeeded: int
    failed: int
    other: int
    took: int
    lateness_max: int


class RunFilter(NamedTuple):
    """Which rows are asked for. A row must match all conditions.

    Attributes:
        task: Only rows of this task; None: of any.
        instance: Only rows of this instance; None: no condition. Not given without a task.
        outcomes: Only rows with one of these outcomes; None: with any.
        since: Only rows with ``ended_at >= since``.
        until: Only rows with ``ended_at < until``.
    """

    task: str | None = None
    instance: str | None = None
    outcomes: frozenset[str] | None = None
    since: int | None = None
    until: int | None = None

    def admits(self, row: RunRow) -> bool:
        """Returns whether a row matches."""
        return (
            (self.task is None or row.task == self.task)
            and (self.instance is None or row.instance == self.instance)
            and (self.outcomes is None or row.outcome in self.outcomes)
            and (self.since is None or row.ended_at >= self.since)
            and (self.until is None or row.ended_at < self.until)
        )

    @property
    def only_unsuccessful(self) -> bool:
        """Whether no row that matches has succeeded."""
        return self.outcomes is not None and SUCCEEDED not in self.outcomes


class RowsPage(NamedTuple):
    """Some rows, the last ones first.

    Attributes:
        rows: At most as many as asked for; perhaps none, although more pages follow.
        cursor: Where the next page begins; None at the end.
    """

    rows: list[RunRow]
    cursor: str | None


class History(Protocol):
    """The calls. All of them may be made concurrently; errors are those of ``Store``.

    Where nothing was ever written, reading finds nothing, also if ``prepare`` was never called.
    """

    async def prepare(self, keep: int = KEEP) -> None:
        """Creates what the history needs, if it is missing. Called before the other writers.

        Args:
            keep: For how long rows will be kept. A store that removes what is old by itself gives
                this time to what it is given from now on.

        Raises:
            StoreMisconfiguredError: It cannot be created, or is not what it should be.
        """
        ...

    async def append(self, runs: Sequence[RunRow], totals: Sequence[TotalRow]) -> None:
        """Adds rows, and adds to the totals of their minutes.

        A batch that fails may have been written, and may be repeated as it is: its rows are there
        only once then. Where the store has transactions, so are its totals: a batch whose first row
        is there already has been written. So ``runs`` is empty only if ``totals`` is.

        An error that says nothing against a second attempt is a ``StoreUnavailableError``: such a
        batch is repeated. One that cannot be kept for what is in it is another error.

        Args:
            runs: At most 1,000.
            totals: At most 1,000; no minute of a task twice.

        Raises:
            ValueError: A value cannot be kept. Part of the batch may have been written.
        """
        ...

    async def runs(self, where: RunFilter, cursor: str | None, limit: int) -> RowsPage:
        """Returns a page of the rows that match: the last ones (``cursor`` None), or what follows.

        An index finds the rows of an instance, of a task, of all, and those of a task or of all
        that have not succeeded. Of other outcomes, a call looks at a bounded number of rows, and
        may return a short page. A row that is no valid one may be left out.
        """
        ...

    async def totals(self, task: str | None, since: int, until: int) -> list[TotalRow]:
        """Returns the totals of the minutes with ``since <= minute < until``, the last ones first.

        Args:
            task: Only of this task; None: of all.
            since: The first instant.
            until: The instant after the last one.

        Returns:
            At most ``TOTALS_MAX``, in the order of their minutes, the latest first.
        """
        ...

    async def prune(self, task: str | None, before: int, limit: int) -> int:
        """Removes the oldest rows with ``ended_at < before``, and totals with ``minute < before``.

        It takes a bounded time. Several workers may do it at once. A store that removes what is
        old by itself does nothing.

        Args:
            task: Only rows of this task, and no totals; None: of all.
            before: The instant.
            limit: Maximum rows, and maximum totals, to remove.

        Returns:
            The larger of the two numbers; as many as the limit, if there may be more.
        """
        ...


def cursor_after(row: RunRow) -> str:
    """Returns the cursor of a page that ends with a row."""
    return f"{row.ended_at}.{row.id}"


def place_of(cursor: str) -> tuple[int, int]:
    """Returns the place in time that a cursor names: the next page begins before it.

    Raises:
        ValueError: It is no cursor.
    """
    ended_at, divided, number = cursor.partition(".")
    try:
        if not divided or len(cursor) > 50:
            raise ValueError
        place = int(ended_at), int(number)
        if max(map(abs, place)) >= 1 << 63:
            raise ValueError
        return place
    except ValueError:
        raise ValueError(f"Not a cursor of the run history: {cursor!r}") from None


def page_of(found: Sequence[RunRow], where: RunFilter, limit: int, examined_max: int) -> RowsPage:
    """Makes a page of the rows that an index has found, some of which may not match.

    Args:
        found: Up to ``examined_max`` rows, the last ones first.
        where: Which of them match.
        limit: How many to return at most.
        examined_max: How many were asked for: if fewer were found, there are no more.
    """
    rows: list[RunRow] = []
    for row in found:
        if not where.admits(row):
            continue
        if len(rows) == limit:
            return RowsPage(rows, cursor_after(rows[-1]))
        rows.append(row)
    more = len(found) >= examined_max
    return RowsPage(rows, cursor_after(found[-1]) if more and found else None)


def examined(where: RunFilter, limit: int) -> int:
    """Returns how many rows to ask the index for, see ``page_of``."""
    if where.outcomes is None:
        return limit + 1
    return max(limit + 1, EXAMINED_MAX)
