"""Conformance: several openings and processes on one place, wake-ups, cancelled calls."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from typing import TypeVar

import pytest

from pyncette.clock import realtime
from pyncette.store import Applied, Store, Write
from pyncette.store.record import ANY, LATEST_INSTANT, Patch, State
from pyncette.testing.suite.harness import (
    NOW,
    Place,
    Suite,
    a_group,
    new,
    on_place,
    on_store,
    on_two_stores,
    pages_of,
    record_of,
)

T = TypeVar("T")

PATIENCE_S = 30.0
"""Maximum real time for the start of a process, or for a notification, on a busy machine."""


class Sharing(Suite):
    """Tests of several openings of one place, in one process or in several."""

    @on_two_stores
    async def test_what_one_opening_writes_the_other_reads(
        self, store: Store, other: Store
    ) -> None:
        await self.add(store, "reports", "a", args="1 first")
        assert (await record_of(other, "reports", "a")).args == "1 first"
        await other.write([Write("reports", "a", Patch(None, State.PAUSED, 0), ANY)], NOW)
        assert (await record_of(store, "reports", "a")).state == State.PAUSED

    @on_place
    async def test_one_opening_outlives_the_other(self, place: Place) -> None:
        if not self.contexts:
            pytest.skip("each opening of this store is a store of its own")
        async with place.open() as store:
            async with place.open() as other:
                await self.add(other, "reports", "a")
            assert (await self.claim(store, [a_group()])).next_due != [None]

    @on_store
    async def test_the_stores_clock_tells_a_plausible_instant_or_none(self, store: Store) -> None:
        now = await store.now()
        assert now is None or (isinstance(now, int) and NOW < now < LATEST_INSTANT)

    @on_store
    async def test_a_watch_can_be_asked_for_and_closed_twice(self, store: Store) -> None:
        watch = await store.watch(["reports", "absent"], lambda groups: None)
        if watch is not None:
            watch.close()
            watch.close()

    @on_store
    async def test_an_open_watch_does_not_keep_the_store_from_closing(self, store: Store) -> None:
        await store.watch(["reports"], lambda groups: None)

    @on_two_stores
    async def test_a_wake_reaches_another_opening(self, store: Store, other: Store) -> None:
        self._skip_without_wakes()
        heard = _Heard("reports")
        watch = await other.watch(["reports", "others"], heard)
        assert watch is not None
        await store.write([new("reports", "a")], NOW, wake=["reports"])
        await heard.wait()
        watch.close()

    @on_two_stores
    async def test_a_wake_that_follows_its_write_alone_reaches_another_opening(
        self, store: Store, other: Store
    ) -> None:
        """A worker that writes often notifies less often, with an empty batch."""
        self._skip_without_wakes()
        heard = _Heard("reports")
        await other.watch(["reports"], heard)
        await store.write([new("reports", "a")], NOW)
        await store.write([], NOW, wake=["reports"])
        await heard.wait()

    @on_two_stores
    async def test_a_closed_watch_is_silent(self, store: Store, other: Store) -> None:
        self._skip_without_wakes()
        closed, witness = _Heard("reports"), _Heard("reports")
        watch = await other.watch(["reports"], closed)
        assert watch is not None
        watch.close()
        await other.watch(["reports"], witness)
        await store.write([new("reports", "a")], NOW, wake=["reports"])
        await witness.wait()
        assert not closed.event.is_set()

    def _skip_without_wakes(self) -> None:
        if not self.wakes:
            pytest.skip("this store tells nobody; polling is enough")

    @on_store
    async def test_a_cancelled_write_leaves_the_store_usable(self, store: Store) -> None:
        count = self.many // 5
        for passes in range(6):
            keys = [f"{passes} {number}" for number in range(count)]
            call = asyncio.ensure_future(store.write([new("reports", key) for key in keys], NOW))
            await _cancelled(call, passes)
            results = await store.write([new("reports", key) for key in keys], NOW)
            assert len(results) == count
            records = await store.get([("reports", key) for key in keys])
            assert [record and record.version for record in records] == [NOW] * count

    @on_store
    async def test_a_cancelled_claim_leaves_the_store_usable(self, store: Store) -> None:
        for passes in range(6):
            group = f"group {passes}"
            await self.add(store, group, *(f"key {number}" for number in range(50)))
            call = asyncio.ensure_future(store.claim([a_group(group)], 20, NOW, "mine"))
            await _cancelled(call, passes)
            await self.index_catches_up(store)
            again = await self.claim(store, [a_group(group)], limit=20, token="mine", repeated=True)
            assert len(again.records) == 20
            # A server may still be at work on the cancelled call: it and the repeated one may
            # then hold 20 each, but never the same ones.
            await self.drain(store, [a_group(group)], 20, "other")
            records = await pages_of(store, group)
            assert {record.unfinished_attempts for record in records} == {1}
            assert len([record for record in records if record.token == "mine"]) in (20, 40)

    @on_store
    async def test_calls_beside_a_cancelled_one_are_answered(self, store: Store) -> None:
        for passes in range(4):
            writes = [
                asyncio.ensure_future(store.write([new("reports", f"{passes} {number}")], NOW))
                for number in range(10)
            ]
            await _cancelled(writes[passes], passes)
            answers = await asyncio.gather(*writes[:passes], *writes[passes + 1 :])
            assert answers == [[Applied(NOW)]] * 9

    def test_processes_claim_every_record_once(self, place: Place) -> None:
        keys = self._arranged_for_processes(place)
        claimed = _in_two_processes(place, _drain, keys)
        assert sorted(claimed[0] + claimed[1]) == sorted(keys)

    def test_processes_change_every_version_once(self, place: Place) -> None:
        keys = self._arranged_for_processes(place)
        applied = _in_two_processes(place, _change_all, keys)
        assert sorted(applied[0] + applied[1]) == sorted(keys)

    def test_processes_open_an_empty_place_together(self, place: Place) -> None:
        self._skip_without_processes()
        assert _in_two_processes(place, _create_all, []) == [["created"], ["created"]]

    def _arranged_for_processes(self, place: Place) -> list[str]:
        """The keys of records that are due."""
        self._skip_without_processes()
        keys = [f"key {number}" for number in range(self.many * 2 // 5)]

        async def arrange() -> None:
            async with place.open() as store:
                await self.add(store, "reports", *keys)

        asyncio.run(arrange())
        return keys

    @classmethod
    def teardown_class(cls) -> None:
        """Ends the processes, which the tests of a class share."""
        while _pools:
            _pools.pop().shutdown()

    def _skip_without_processes(self) -> None:
        if not self.processes:
            pytest.skip("this store belongs to one process")


class _Heard:
    """A callback of a watch that waits for its group, or for None, which means any group."""

    def __init__(self, group: str) -> None:
        self.event = asyncio.Event()
        self._group = group

    def __call__(self, groups: Collection[str] | None) -> None:
        if groups is None or self._group in groups:
            self.event.set()

    async def wait(self) -> None:
        async with realtime.timeout(PATIENCE_S):
            await self.event.wait()


async def _cancelled(call: asyncio.Future[T], passes: int) -> None:
    """Cancels a call after this many iterations of the event loop."""
    for _ in range(passes):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])


# The functions below run in other processes.

Job = Callable[[Place, list[str], int], list[str]]
_meeting_point: list[Barrier] = []
_pools: list[ProcessPoolExecutor] = []


def _in_two_processes(place: Place, job: Job, keys: list[str]) -> list[list[str]]:
    """Does a job on records of a place in two other processes at the same time.

    The processes serve one test of a class after another, since a process takes longer to start
    than to do the job. Each job opens a store of its own.
    """
    if not _pools:
        context = multiprocessing.get_context("spawn")
        _pools.append(
            ProcessPoolExecutor(2, context, initializer=_meet_at, initargs=(context.Barrier(2),))
        )
    # Each process gets one job: none returns before both have met.
    jobs = [_pools[0].submit(job, place, keys, number) for number in range(2)]
    try:
        return [done.result(timeout=2 * PATIENCE_S) for done in jobs]
    except BaseException:
        # The other process waits for one that does not come: neither can serve another test.
        _pools.pop().shutdown(wait=False, cancel_futures=True)
        raise


def _meet_at(barrier: Barrier) -> None:
    # A bound method would be pickled together with a copy of the list.
    _meeting_point.append(barrier)


def _together() -> None:
    """Waits until the other process has come to this point, too."""
    _meeting_point[-1].wait(PATIENCE_S)


def _drain(place: Place, keys: list[str], number: int) -> list[str]:
    async def main() -> list[str]:
        async with place.open() as store:
            _together()
            records = await Suite().drain(store, [a_group()], 7, f"process-{number}")
            return [record.key for record in records]

    return asyncio.run(main())


def _change_all(place: Place, keys: list[str], number: int) -> list[str]:
    async def main() -> list[str]:
        batch = [Write("reports", key, Patch(NOW, State.RETRYING, 0), NOW) for key in keys]
        if number:
            batch.reverse()
        async with place.open() as store:
            _together()
            applied: list[str] = []
            for start in range(0, len(batch), 20):
                part = batch[start : start + 20]
                results = await store.write(part, NOW)
                applied += [
                    write.key
                    for write, result in zip(part, results, strict=True)
                    if isinstance(result, Applied)
                ]
            return applied

    return asyncio.run(main())


def _create_all(place: Place, keys: list[str], number: int) -> list[str]:
    async def main() -> list[str]:
        _together()
        async with place.open() as store:
            results = await store.write([new("reports", f"{number}")], NOW)
            return ["created" for result in results if isinstance(result, Applied)]

    return asyncio.run(main())
