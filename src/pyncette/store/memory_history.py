"""The run history in memory: the simplest correct one, with which the others are compared."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

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
    place_of,
)

_List = tuple[str | None, str | None, bool]
"""What a list has the rows of: a task, an instance, and whether only what has not succeeded."""


class MemoryHistory:
    """See ``pyncette.store.history.History``. Each list of rows is in the order of time."""

    def __init__(self) -> None:
        self._lists: dict[_List, list[RunRow]] = {}
        self._totals: dict[tuple[int, str], TotalRow] = {}

    async def prepare(self, keep: int = KEEP) -> None:
        pass

    async def append(self, runs: Sequence[RunRow], totals: Sequence[TotalRow]) -> None:
        if runs and self._has(runs[0]):
            return
        for row in runs:
            if not self._has(row):
                for name in _lists_of(row):
                    insort(self._lists.setdefault(name, []), row)
        for total in totals:
            before = self._totals.get(total[:2])
            self._totals[total[:2]] = total if before is None else _sum(before, total)

    def _has(self, row: RunRow) -> bool:
        rows = self._lists.get((None, None, False), [])
        at = bisect_left(rows, row[:2])
        return at < len(rows) and rows[at][:2] == row[:2]

    async def runs(self, where: RunFilter, cursor: str | None, limit: int) -> RowsPage:
        unsuccessful = where.only_unsuccessful and where.instance is None
        rows = self._lists.get((where.task, where.instance, unsuccessful), [])
        end = len(rows) if where.until is None else bisect_left(rows, (where.until,))
        if cursor is not None:
            end = min(end, bisect_left(rows, place_of(cursor)))
        start = 0 if where.since is None else bisect_left(rows, (where.since,))
        most = examined(where, limit)
        found = rows[max(start, end - most) : max(start, end)]
        return page_of(found[::-1], where, limit, most)

    async def totals(self, task: str | None, since: int, until: int) -> list[TotalRow]:
        found = [
            total
            for total in self._totals.values()
            if since <= total.minute < until and task in (None, total.task)
        ]
        return sorted(found, key=lambda total: (-total.minute, total.task))[:TOTALS_MAX]

    async def prune(self, task: str | None, before: int, limit: int) -> int:
        rows = self._lists.get((task, None, False), [])
        old = rows[: min(bisect_left(rows, (before,)), limit)]
        for row in old:
            for name in _lists_of(row):
                of_name = self._lists[name]
                del of_name[bisect_left(of_name, row)]
                if not of_name:
                    del self._lists[name]
        if task is not None:
            return len(old)
        minutes = sorted(place for place in self._totals if place[0] < before)[:limit]
        for place in minutes:
            del self._totals[place]
        return max(len(old), len(minutes))


def _lists_of(row: RunRow) -> Iterator[_List]:
    yield None, None, False
    yield row.task, None, False
    if row.instance is not None:
        yield row.task, row.instance, False
    if row.outcome != SUCCEEDED:
        yield None, None, True
        yield row.task, None, True


def _sum(before: TotalRow, more: TotalRow) -> TotalRow:
    minute, task, succeeded, failed, other, took, lateness_max = before
    return TotalRow(
        minute,
        task,
        succeeded + more.succeeded,
        failed + more.failed,
        other + more.other,
        took + more.took,
        max(lateness_max, more.lateness_max),
    )
