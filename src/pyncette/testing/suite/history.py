"""Conformance: the run history of a store, if it has one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import ClassVar

import pytest

from pyncette.errors import StoreMisconfiguredError
from pyncette.store import Store
from pyncette.store.history import (
    MINUTE,
    History,
    RowsPage,
    RunFilter,
    RunRow,
    TotalRow,
)
from pyncette.testing.suite.harness import ENDLESS, NOW, SECOND, Suite, a_group, on_store

EVERY: RunFilter = RunFilter()
FAILED = frozenset({"failed", "timed_out"})
KEPT: int = 20 * 365 * 24 * 60 * MINUTE
"""So long that no server removes rows by its own clock."""

THIS_MINUTE = NOW - NOW % MINUTE

_numbers = count(1)


def row(
    ended: float = 0,
    task: str = "reports",
    instance: str | None = None,
    outcome: str = "succeeded",
    error: str | None = None,
    **fields: object,
) -> RunRow:
    """An attempt that ended so many seconds after the instant of the suite."""
    ended_at = NOW + round(ended * SECOND)
    made = RunRow(
        ended_at,
        next(_numbers),
        task,
        instance,
        "0123456789abcdef0123456789abcdef",
        1,
        ended_at - 3 * SECOND,
        ended_at - 2 * SECOND,
        "worker-1",
        outcome,
        error,
    )
    return made._replace(**fields)  # type: ignore[arg-type]


def total(minute: int = 0, task: str = "reports", succeeded: int = 1) -> TotalRow:
    """The total of a minute after the one of the suite."""
    return TotalRow(THIS_MINUTE + minute * MINUTE, task, succeeded, 2, 3, 4_000, 5_000)


def history_of(store: Store) -> History:
    """The history of a store; the test is skipped if it has none."""
    history: History | None = getattr(store, "history", None)
    if history is None:
        pytest.skip("this store keeps no run history")
    return history


async def all_of(history: History, where: RunFilter = EVERY, limit: int = 100) -> list[RunRow]:
    """All rows that match, page by page."""
    found: list[RunRow] = []
    cursor: str | None = None
    for _ in range(ENDLESS):
        page = await history.runs(where, cursor, limit)
        assert isinstance(page, RowsPage)
        assert len(page.rows) <= limit, "a page is longer than asked"
        found += page.rows
        cursor = page.cursor
        if cursor is None:
            return found
        assert isinstance(cursor, str)
    raise AssertionError("the pages do not end")


def newest_first(rows: Sequence[RunRow]) -> list[RunRow]:
    """The rows in the order of an answer."""
    return sorted(rows, key=lambda row: row[:2], reverse=True)


class Remembering(Suite):
    """Tests of ``pyncette.store.history.History``.

    Attributes:
        prunes: ``prune`` removes rows at once. False: the store removes by itself what is old.
    """

    prunes: ClassVar[bool] = True

    @on_store
    async def test_a_history_that_was_never_used_is_empty(self, store: Store) -> None:
        history = history_of(store)
        assert await history.runs(EVERY, None, 10) == RowsPage([], None)
        assert await history.runs(RunFilter("reports", "a", FAILED), None, 10) == ([], None)
        assert await history.totals(None, 0, NOW + MINUTE) == []
        assert await history.totals("reports", 0, NOW + MINUTE) == []

    @on_store
    async def test_rows_are_read_as_they_were_written_newest_first(self, store: Store) -> None:
        history = history_of(store)
        await history.prepare(KEPT)
        rows = [
            row(0),
            row(1, instance="a", outcome="failed", error="ValueError: broken", attempt=7),
            row(2, task="other", worker="w" * 200),
            row(-5, instance="ä\U0001f600\u2028", error="\U0001f600 \\x00 " + "x" * 1_900),
            row(3, instance="b" * 900, outcome="a later kind"),
            row(4, task="t'\\\"%{}:\n", instance="i'\\\"%{}:\r\n\t", error="e'\\\"%{}"),
        ]
        await history.append(rows, [])
        assert await all_of(history) == newest_first(rows)
        for one in rows:
            assert one in await all_of(history, RunFilter(one.task, one.instance))

    @on_store
    async def test_preparing_again_changes_nothing(self, store: Store) -> None:
        history = history_of(store)
        await history.prepare(KEPT)
        await history.append([row()], [total()])
        await history.prepare(KEPT)
        assert len(await all_of(history)) == 1

    @on_store
    async def test_pages_follow_each_other_without_a_gap_or_a_repetition(
        self, store: Store
    ) -> None:
        history = history_of(store)
        await history.prepare(KEPT)
        # Several end in the same microsecond.
        rows = [row(number // 4, instance=f"{number % 3}") for number in range(50)]
        for start in range(0, 50, 20):
            await history.append(rows[start : start + 20], [])
        for limit in (1, 3, 7, 49, 50, 51):
            assert await all_of(history, limit=limit) == newest_first(rows)
        wanted = [one for one in rows if one.instance == "1"]
        for limit in (1, 3, 16, 17):
            found = await all_of(history, RunFilter("reports", "1"), limit)
            assert found == newest_first(wanted)

    @on_store
    async def test_each_condition_selects_and_all_of_them_together(self, store: Store) -> None:
        history = history_of(store)
        await history.prepare(KEPT)
        rows = [
            row(
                number,
                task=("reports", "other", "reportss")[number % 3],
                instance=(None, "a", "b", "a:b")[number % 4],
                outcome=("succeeded", "failed", "timed_out", "skipped", "cancelled")[number % 5],
            )
            for number in range(120)
        ]
        await history.append(rows, [])
        tasks = (None, "reports", "other", "absent")
        instances = (None, "a", "a:b", "absent")
        outcomes = (None, FAILED, {"skipped"}, {"succeeded"}, {"succeeded", "failed"}, set[str]())
        spans = ((None, None), (NOW + 30 * SECOND, None), (NOW + 10 * SECOND, NOW + 60 * SECOND))
        for task in tasks:
            for instance in instances if task is not None else (None,):
                for outcome in outcomes:
                    for since, until in spans:
                        wanted = None if outcome is None else frozenset(outcome)
                        where = RunFilter(task, instance, wanted, since, until)
                        expected = [one for one in rows if where.admits(one)]
                        assert await all_of(history, where, 40) == newest_first(expected), where

    @on_store
    async def test_a_rare_outcome_is_found_although_a_call_looks_at_few_rows(
        self, store: Store
    ) -> None:
        history = history_of(store)
        await history.prepare(KEPT)
        rare = row(0, instance="a", outcome="skipped")
        rows = [row(1 + number, instance="a") for number in range(1_500)]
        await history.append([rare], [])
        for start in range(0, 1_500, 500):
            await history.append(rows[start : start + 500], [])
        for where in (
            RunFilter("reports", "a", frozenset({"skipped"})),
            RunFilter("reports", None, frozenset({"skipped"})),
            RunFilter(None, None, frozenset({"skipped"})),
        ):
            assert await all_of(history, where, 10) == [rare]

    @on_store
    async def test_a_batch_that_is_repeated_is_there_once(self, store: Store) -> None:
        history = history_of(store)
        await history.prepare(KEPT)
        rows = [row(number, instance="a") for number in range(150)]
        await history.append(rows, [total()])
        await history.append(rows, [total()])
        assert await all_of(history) == newest_first(rows)
        [found] = await history.totals(None, THIS_MINUTE, THIS_MINUTE + MINUTE)
        assert found == total()

    @on_store
    async def test_a_batch_that_cannot_be_kept_is_refused_and_not_said_to_be_worth_a_retry(
        self, store: Store
    ) -> None:
        history = history_of(store)
        await history.prepare(KEPT)
        written = []
        for bad in (
            row(instance="a\ud800"),
            row(worker="w\0"),
            row(error="e\ud800", outcome="failed"),
            row(attempt=1 << 70),
            row(instance="i" * 5_000),
            row(worker="w" * 500_000),
        ):
            try:
                await history.append([bad], [])
            except (ValueError, StoreMisconfiguredError):
                pass
            else:
                written.append(bad.id)
        good = row()
        await history.append([good], [total()])
        found = await all_of(history)
        assert good in found
        assert {one.id for one in found} <= {good.id, *written}

    @on_store
    async def test_batches_of_many_workers_at_once_are_all_there(self, store: Store) -> None:
        history = history_of(store)
        await history.prepare(KEPT)
        batches = [
            [row(number + worker / 100, instance=f"{number}") for number in range(20)]
            for worker in range(8)
        ]
        totals = [total(minute) for minute in range(3)]
        await asyncio.gather(*(history.append(batch, totals[::-1]) for batch in batches))
        rows = [one for batch in batches for one in batch]
        assert await all_of(history) == newest_first(rows)
        found = await history.totals("reports", THIS_MINUTE, THIS_MINUTE + 3 * MINUTE)
        assert [one.succeeded for one in found] == [8, 8, 8]

    @on_store
    async def test_totals_are_written_for_a_task_without_an_attempt_in_the_batch(
        self, store: Store
    ) -> None:
        history = history_of(store)
        await history.prepare(KEPT)
        others = [total(0, f"other {number}") for number in range(20)]
        batch = [row()]
        await history.append(batch, others)
        await history.append(batch, others)
        found = await history.totals(None, THIS_MINUTE, THIS_MINUTE + MINUTE)
        assert sorted(found) == sorted(others)

    @on_store
    async def test_totals_add_up_over_batches(self, store: Store) -> None:
        history = history_of(store)
        await history.prepare(KEPT)
        await history.append([row()], [total(0), total(0, "other"), total(1)])
        late = total(0)._replace(lateness_max=9_000)
        await history.append([row()], [late, total(0, "third")])
        await history.append([row()], [total(0)])
        found = await history.totals(None, THIS_MINUTE, THIS_MINUTE + 2 * MINUTE)
        summed = TotalRow(THIS_MINUTE, "reports", 3, 6, 9, 12_000, 9_000)
        assert sorted(found) == sorted([summed, total(0, "other"), total(0, "third"), total(1)])
        assert [one.minute for one in found] == sorted((one.minute for one in found), reverse=True)

    @on_store
    async def test_totals_are_those_of_the_minutes_and_the_task_asked_for(
        self, store: Store
    ) -> None:
        history = history_of(store)
        await history.prepare(KEPT)
        totals = [total(minute, task) for minute in range(6) for task in ("reports", "other")]
        await history.append([row()], totals)
        since, until = THIS_MINUTE + 2 * MINUTE, THIS_MINUTE + 4 * MINUTE
        found = await history.totals(None, since, until)
        assert sorted(found) == sorted(one for one in totals if since <= one.minute < until)
        found = await history.totals("other", since + 1, until)
        assert found == [total(3, "other")]
        assert await history.totals("absent", since, until) == []

    @on_store
    async def test_what_is_old_is_removed_in_steps(self, store: Store) -> None:
        history = history_of(store)
        await history.prepare(KEPT)
        rows = [row(number, instance=f"{number % 2}") for number in range(30)]
        await history.append(rows, [total(minute) for minute in range(4)])
        if not self.prunes:
            assert await history.prune(None, NOW + 20 * SECOND, 8) == 0
            return
        before = NOW + 20 * SECOND
        removed = []
        for _ in range(ENDLESS):
            removed.append(await history.prune(None, before, 8))
            assert removed[-1] <= 8
            if removed[-1] < 8:
                break
        assert sum(removed) >= 20
        assert await all_of(history) == newest_first(rows[20:])
        of_one = RunFilter("reports", "1")
        assert await all_of(history, of_one) == newest_first(rows[21::2])
        assert await history.prune(None, before, 8) == 0
        assert await history.prune(None, THIS_MINUTE + 2 * MINUTE, 100) == 10
        found = await history.totals(None, THIS_MINUTE, THIS_MINUTE + 4 * MINUTE)
        assert found == [total(3), total(2)]

    @on_store
    async def test_rows_of_one_task_alone_can_be_removed(self, store: Store) -> None:
        history = history_of(store)
        if not self.prunes:
            pytest.skip("this store removes by itself what is old")
        await history.prepare(KEPT)
        rows = [row(number, task=("reports", "other")[number % 2]) for number in range(30)]
        await history.append(rows, [total(0), total(0, "other")])
        assert await history.prune("reports", NOW + 10 * SECOND, 100) == 5
        assert await all_of(history) == newest_first(
            [one for one in rows if one.task == "other" or one.ended_at >= NOW + 10 * SECOND]
        )
        assert len(await history.totals(None, THIS_MINUTE, THIS_MINUTE + MINUTE)) == 2

    @on_store
    async def test_no_claim_and_no_scan_finds_the_history(self, store: Store) -> None:
        history = history_of(store)
        await history.prepare(KEPT)
        await self.add(store, "reports", "a")
        await history.append([row(instance="a"), row(instance="b")], [total()])
        [record] = (await self.claim(store, [a_group()])).records
        assert record.key == "a"
        assert len(await all_of(history)) == 2
