"""Conformance: a claim that must not take some of the due records.

With ``unfinished_max`` it leaves records that may cause crashes. With ``bounded`` it leaves records
that are due by the caller's clock only.
"""

from __future__ import annotations

import pytest

from pyncette.store import Store
from pyncette.store.record import State
from pyncette.testing.suite.harness import (
    LEASE,
    NOW,
    SECOND,
    Suite,
    a_group,
    a_key,
    keys_of,
    on_store,
    record_of,
    without_repetition,
)

HOUR = 3_600 * SECOND


class Choosing(Suite):
    """Tests of ``unfinished_max`` and ``bounded`` of ``pyncette.store.Store.claim``."""

    @on_store
    async def test_only_records_with_few_unfinished_attempts_are_taken(self, store: Store) -> None:
        for attempts in range(5):
            await self.add(store, "reports", f"{attempts}", unfinished_attempts=attempts)
        records, _ = await self.claim(store, [a_group()], unfinished_max=2)
        assert keys_of(records) == ["0", "1", "2"]
        assert sorted(record.unfinished_attempts for record in records) == [1, 2, 3]
        rest, _ = await self.claim(store, [a_group()], token="worker-2", unfinished_max=None)
        assert keys_of(rest) == ["3", "4"]

    @on_store
    async def test_without_unfinished_attempts_at_all_is_a_choice_too(self, store: Store) -> None:
        await self.add(store, "reports", "fresh")
        await self.add(store, "reports", "tried", unfinished_attempts=1)
        records, _ = await self.claim(store, [a_group()], unfinished_max=0)
        assert keys_of(records) == ["fresh"]

    @on_store
    async def test_a_record_with_too_many_unfinished_attempts_stays_as_it_is(
        self, store: Store
    ) -> None:
        await self.add(store, "reports", "a", unfinished_attempts=3, token="before")
        before = await record_of(store, "reports", "a")
        for source in (a_group(), a_key("a")):
            claimed = await self.claim(store, [source], unfinished_max=2)
            assert claimed == ([], [NOW])
            assert await record_of(store, "reports", "a") == before

    @on_store
    async def test_the_filter_holds_for_keys_too(self, store: Store) -> None:
        for attempts in range(4):
            await self.add(store, ":static", f"{attempts}", unfinished_attempts=attempts)
        sources = [a_key(f"{attempts}", ":static", lease=9) for attempts in range(4)]
        records, next_due = await self.claim(store, sources, unfinished_max=1)
        assert keys_of(records) == ["0", "1"]
        assert next_due == [NOW + 9, NOW + 9, NOW, NOW]

    @on_store
    async def test_healthy_records_behind_those_left_out_come_through(self, store: Store) -> None:
        """There are more of them than share and limit allow, and all are due sooner."""
        suspects = [f"suspect {number:03}" for number in range(150)]
        healthy = [f"healthy {number}" for number in range(8)]
        await self.add(store, "reports", *suspects, due_at=NOW - 9, unfinished_attempts=3)
        await self.add(store, "reports", *healthy, due_at=NOW - 5)
        records, next_due = await self.claim(store, [a_group(share=5)], limit=5, unfinished_max=2)
        assert len(without_repetition(records)) == 5
        assert set(keys_of(records)) < set(healthy)
        assert next_due == [NOW - 9]
        rest, next_due = await self.claim(
            store, [a_group(share=5)], limit=5, token="worker-2", unfinished_max=2
        )
        assert sorted(keys_of(rest) + keys_of(records)) == healthy
        assert next_due == [NOW - 9]

    @on_store
    async def test_the_soonest_of_those_that_may_be_taken_come_first(self, store: Store) -> None:
        await self.add(store, "reports", "suspect", due_at=NOW - 5, unfinished_attempts=3)
        for number in range(4):
            await self.add(store, "reports", f"{number}", due_at=NOW - 4 + number)
        records, next_due = await self.claim(store, [a_group()], limit=2, unfinished_max=2)
        assert keys_of(records) == ["0", "1"]
        assert next_due == [NOW - 5]

    @on_store
    async def test_the_filter_holds_for_the_end_of_a_lease(self, store: Store) -> None:
        """After three workers died with it, only a worker that runs nothing else claims it."""
        await self.add(store, "reports", "a")
        now = NOW
        for attempt in range(3):
            [record] = (
                await self.claim(
                    store, [a_group(before=now)], now=now, token=f"{attempt}", unfinished_max=2
                )
            ).records
            assert record.unfinished_attempts == attempt + 1
            now += LEASE
        claimed = await self.claim(
            store, [a_group(before=now)], now=now, token="last", unfinished_max=2
        )
        assert claimed == ([], [now])

    @on_store
    async def test_a_repeated_claim_returns_what_it_took_at_the_very_maximum(
        self, store: Store
    ) -> None:
        """The claim itself has increased the count."""
        await self.add(store, "reports", "a", unfinished_attempts=2)
        await self.add(store, ":static", "a", unfinished_attempts=2)
        sources = [a_group(), a_key("a", ":static")]
        first, _ = await self.claim(store, sources, unfinished_max=2)
        again, _ = await self.claim(store, sources, repeated=True, unfinished_max=2)
        assert len(first) == 2
        assert sorted(again) == sorted(first)

    @on_store
    async def test_a_repeated_claim_leaves_what_it_holds_and_may_not_take_now(
        self, store: Store
    ) -> None:
        for group in ("reports", ":static"):
            await self.add(store, group, "suspect", unfinished_attempts=3)
            await self.add(store, group, "healthy")
        sources = [a_group(), a_key("suspect", ":static"), a_key("healthy", ":static")]
        first, _ = await self.claim(store, sources, limit=9)
        assert len(first) == 4
        await self.add(store, "reports", "new")
        again, _ = await self.claim(store, sources, limit=3, repeated=True, unfinished_max=2)
        assert sorted((record.group, record.key) for record in again) == [
            (":static", "healthy"),
            ("reports", "healthy"),
            ("reports", "new"),
        ]
        held = await record_of(store, "reports", "suspect")
        assert (held.state, held.unfinished_attempts) == (State.RUNNING, 4)

    @on_store
    async def test_a_filter_with_a_limit_of_zero_claims_nothing(self, store: Store) -> None:
        await self.add(store, "reports", "suspect", due_at=NOW - 5, unfinished_attempts=3)
        await self.add(store, "reports", "healthy")
        assert await self.claim(store, [a_group()], limit=0, unfinished_max=2) == ([], [NOW - 5])

    @on_store
    async def test_a_bounded_claim_takes_what_is_due_by_the_stores_clock_too(
        self, store: Store
    ) -> None:
        there = await self._clock_of(store)
        ahead = there + HOUR
        await self.add(store, "reports", "due", due_at=there - SECOND, now=there)
        await self.add(store, "reports", "in between", due_at=there + HOUR // 2, now=there)
        await self.add(store, ":static", "due", due_at=there - SECOND, now=there)
        await self.add(store, ":static", "in between", due_at=there + HOUR // 2, now=there)
        sources = [
            a_group(before=ahead),
            a_key("due", ":static", lease=5),
            a_key("in between", ":static"),
        ]
        records, next_due = await self.claim(store, sources, now=ahead, bounded=True)
        assert sorted(record[:3] for record in records) == [
            (":static", "due", ahead + 5),
            ("reports", "due", ahead + LEASE),
        ]
        assert next_due == [there + HOUR // 2, ahead + 5, there + HOUR // 2]
        assert (await record_of(store, "reports", "in between")).state == State.SCHEDULED

    @on_store
    async def test_a_bounded_claim_takes_no_lease_that_is_alive_by_the_stores_clock(
        self, store: Store
    ) -> None:
        there = await self._clock_of(store)
        ahead = there + HOUR
        for group in ("reports", ":static"):
            await self.add(store, group, "a", due_at=there - SECOND, now=there)
        sources = [a_group(before=there, lease=600 * SECOND), a_key("a", ":static", 600 * SECOND)]
        held, _ = await self.claim(store, sources, now=there, token="mine", bounded=True)
        assert len(held) == 2
        sources = [a_group(before=ahead), a_key("a", ":static")]
        claimed = await self.claim(store, sources, now=ahead, token="theirs", bounded=True)
        assert claimed == ([], [there + 600 * SECOND] * 2)
        for record in held:
            assert await record_of(store, *record[:2]) == record
        # If time is not the machine's, as in tests, the argument alone decides.
        taken, _ = await self.claim(store, sources, now=ahead, token="theirs")
        assert len(taken) == 2

    @on_store
    async def test_a_bounded_claim_takes_nothing_that_is_due_by_the_stores_clock_alone(
        self, store: Store
    ) -> None:
        there = await self._clock_of(store)
        behind = there - HOUR
        await self.add(store, "reports", "due", due_at=behind, now=behind)
        await self.add(store, "reports", "later", due_at=behind + 1, now=behind)
        await self.add(store, "reports", "younger", due_at=behind - 1, now=behind)
        source = a_group(before=behind)
        records, next_due = await self.claim(store, [source], now=behind, bounded=True)
        assert keys_of(records) == ["due", "younger"]
        assert next_due == [behind + 1]
        source = a_group(before=there - HOUR // 2)
        records, _ = await self.claim(store, [source], now=there, token="later", bounded=True)
        assert keys_of(records) == ["due", "later", "younger"]

    @on_store
    async def test_a_bounded_claim_that_is_repeated_returns_what_its_token_holds(
        self, store: Store
    ) -> None:
        there = await self._clock_of(store)
        ahead = there + HOUR
        for group in ("reports", ":static"):
            await self.add(store, group, "a", "b", due_at=there - SECOND, now=there)
        sources = [a_group(before=ahead), a_key("a", ":static")]
        first, _ = await self.claim(store, sources, now=ahead, bounded=True)
        again, _ = await self.claim(store, sources, now=ahead, bounded=True, repeated=True)
        assert len(first) == 3
        assert sorted(again) == sorted(first)

    async def _clock_of(self, store: Store) -> int:
        """The store's own clock."""
        now = await store.now()
        if now is None:
            pytest.skip("this store has no clock of its own to bound a claim by")
        if not self.bounds_claims:
            pytest.skip("this store cannot compare with its clock in the statement that claims")
        return now

    @on_store
    async def test_a_store_without_a_clock_ignores_the_bound(self, store: Store) -> None:
        if await store.now() is not None:
            pytest.skip("this store has a clock of its own")
        # Later than the clock of any machine that runs the test.
        now = 8_000_000_000 * SECOND
        await self.add(store, "reports", "a", due_at=now)
        source = a_group(before=now)
        assert len((await self.claim(store, [source], now=now, bounded=True)).records) == 1
