"""Conformance: what a claim takes, how it changes a record, and what it returns about the rest."""

from __future__ import annotations

import asyncio

from pyncette.store import Store, Write
from pyncette.store.record import ANY, Change, Delete, Patch, Record, State
from pyncette.testing.suite.harness import (
    LEASE,
    NOW,
    SECOND,
    Suite,
    a_group,
    a_key,
    keys_of,
    on_store,
    on_two_stores,
    put,
    record_of,
    refusal_of,
    version_of,
    without_repetition,
)


class Claiming(Suite):
    """Tests of ``pyncette.store.Store.claim``."""

    @on_store
    async def test_a_record_is_due_at_its_very_instant(self, store: Store) -> None:
        await self.add(store, "reports", "a", due_at=NOW)
        assert keys_of((await self.claim(store, [a_group()])).records) == ["a"]

    @on_store
    async def test_a_record_is_not_due_a_microsecond_early(self, store: Store) -> None:
        await self.add(store, "reports", "a", due_at=NOW + 1)
        assert await self.claim(store, [a_group()]) == ([], [NOW + 1])
        assert await self.claim(store, [a_key("a")]) == ([], [NOW + 1])

    @on_store
    async def test_a_record_is_due_whatever_its_state(self, store: Store) -> None:
        # A pause with an end is a record that is paused and due at that end.
        for state in State:
            await self.add(store, "reports", state.value, due_at=NOW, state=state)
            await self.add(store, "reports", f"{state.value} later", due_at=NOW + 1, state=state)
        claimed = (await self.claim(store, [a_group()])).records
        assert sorted(keys_of(claimed)) == sorted(State)
        assert {record.state for record in claimed} == {State.RUNNING}

    @on_store
    async def test_a_claim_leaves_plan_and_arguments_and_sets_the_rest(self, store: Store) -> None:
        [created] = await self.add(
            store,
            "reports",
            "a",
            due_at=NOW - 5,
            token="before",
            unfinished_attempts=2,
            schedule="1 p",
            args="1 a",
            progress="1 s",
        )
        [record] = (await self.claim(store, [a_group()], now=NOW + 7, token="mine")).records
        assert record == Record(
            "reports", "a", NOW + 7 + LEASE, NOW + 7, "mine", "running", 3, "1 p", "1 a", "1 s"
        )
        assert record.version > created
        assert await record_of(store, "reports", "a") == record

    @on_store
    async def test_a_claim_moves_the_version_also_when_now_lies_behind(self, store: Store) -> None:
        [created] = await self.add(store, "reports", "a", due_at=NOW - SECOND, now=NOW)
        source = a_group(before=NOW - SECOND)
        [record] = (await self.claim(store, [source], now=NOW - SECOND)).records
        assert record.version == created + 1

    @on_store
    async def test_a_key_is_claimed_as_one_of_a_group_is(self, store: Store) -> None:
        await self.add(store, "reports", "a", "b")
        records, next_due = await self.claim(store, [a_key("b", lease=5)], token="mine")
        assert keys_of(records) == ["b"]
        assert records[0] == await record_of(store, "reports", "b")
        assert (records[0].due_at, records[0].token, records[0].unfinished_attempts) == (
            NOW + 5,
            "mine",
            1,
        )
        assert next_due == [NOW + 5]
        assert (await record_of(store, "reports", "a")).state == State.SCHEDULED

    @on_store
    async def test_a_claimed_record_is_not_claimed_again_before_its_lease_ends(
        self, store: Store
    ) -> None:
        await self.add(store, "reports", "a")
        await self.claim(store, [a_group()])
        last = NOW + LEASE - 1
        assert not (await self.claim(store, [a_group(before=last)], now=last)).records
        assert not (await self.claim(store, [a_key("a")], now=last)).records

    @on_store
    async def test_a_record_is_claimed_again_when_its_lease_ends(self, store: Store) -> None:
        await self.add(store, "reports", "a")
        [first] = (await self.claim(store, [a_group()], token="first")).records
        end = NOW + LEASE
        [second] = (await self.claim(store, [a_group(before=end)], now=end, token="second")).records
        assert (second.token, second.unfinished_attempts) == ("second", 2)
        assert second.version > first.version

    @on_store
    async def test_a_record_in_any_state_is_claimed_when_it_is_due(self, store: Store) -> None:
        for state in State:
            await self.add(store, "reports", state.value, state=state.value)
        records, _ = await self.claim(store, [a_group()])
        assert keys_of(records) == sorted(state.value for state in State)
        assert {record.state for record in records} == {"running"}

    @on_store
    async def test_a_record_without_an_instant_is_never_claimed(self, store: Store) -> None:
        await self.add(store, "reports", "a", due_at=None, state=State.PAUSED)
        assert await self.claim(store, [a_group()]) == ([], [None])
        assert await self.claim(store, [a_key("a")]) == ([], [None])

    @on_store
    async def test_a_record_that_gets_an_instant_again_is_claimed(self, store: Store) -> None:
        [version] = await self.add(store, "reports", "a", due_at=None, state=State.PAUSED)
        resumed = Patch(NOW, State.SCHEDULED, 0)
        await store.write([Write("reports", "a", resumed, version)], NOW)
        assert keys_of((await self.claim(store, [a_group()])).records) == ["a"]

    @on_store
    async def test_before_leaves_younger_records_to_others(self, store: Store) -> None:
        await self.add(store, "reports", "old", due_at=NOW - 2 * SECOND)
        await self.add(store, "reports", "young", due_at=NOW - 2 * SECOND + 1)
        source = a_group(before=NOW - 2 * SECOND)
        records, next_due = await self.claim(store, [source])
        assert keys_of(records) == ["old"]
        assert next_due == [NOW - 2 * SECOND + 1]

    @on_store
    async def test_the_share_bounds_each_group(self, store: Store) -> None:
        await self.add(store, "a", *"12345")
        await self.add(store, "b", *"67")
        records, next_due = await self.claim(store, [a_group("a", share=3), a_group("b", share=3)])
        assert [record.group for record in records].count("a") == 3
        assert [record.group for record in records].count("b") == 2
        assert next_due == [NOW, NOW + LEASE]

    @on_store
    async def test_the_limit_bounds_all_sources_together(self, store: Store) -> None:
        await self.add(store, "a", *"12345")
        await self.add(store, "b", *"67890")
        await self.add(store, "c", "key")
        sources = [a_group("a", share=3), a_group("b", share=3), a_key("key", "c")]
        records, _ = await self.claim(store, sources, limit=4)
        assert len(records) == 4
        rest = await self.drain(store, sources, 100, "worker-2")
        assert len(rest) == 11 - 4
        assert not {record[:2] for record in records} & {record[:2] for record in rest}

    @on_store
    async def test_a_limit_of_zero_claims_nothing_and_tells_when_to_ask(self, store: Store) -> None:
        await self.add(store, "reports", "a", due_at=NOW - 3)
        await self.add(store, "reports", "b", due_at=NOW - 1)
        sources = [a_group(), a_key("b", "reports"), a_group("absent"), a_key("x", "absent")]
        assert await self.claim(store, sources, limit=0) == ([], [NOW - 3, NOW - 1, None, None])
        assert (await record_of(store, "reports", "a")).state == State.SCHEDULED

    @on_store
    async def test_no_source_at_all_is_no_error(self, store: Store) -> None:
        assert await self.claim(store, []) == ([], [])

    @on_store
    async def test_the_soonest_of_a_group_come_first(self, store: Store) -> None:
        for key, due_at in zip("dbeac", (-4, -2, -5, -1, -3), strict=True):
            await self.add(store, "reports", key, due_at=NOW + due_at)
        records, next_due = await self.claim(store, [a_group()], limit=2)
        assert keys_of(records) == ["d", "e"]
        assert next_due == [NOW - 3]
        records, next_due = await self.claim(store, [a_group(share=2)], token="worker-2")
        assert keys_of(records) == ["b", "c"]
        assert next_due == [NOW - 1]

    @on_store
    async def test_groups_and_keys_that_were_not_asked_for_stay(self, store: Store) -> None:
        for group in ("reports", "report", "reports:1", "Reports", ":static"):
            await self.add(store, group, "a", "b")
        records, _ = await self.claim(store, [a_group(), a_key("b", ":static")])
        assert sorted((record.group, record.key) for record in records) == [
            (":static", "b"),
            ("reports", "a"),
            ("reports", "b"),
        ]

    @on_store
    async def test_the_soonest_left_is_told_for_each_source_in_the_order_asked(
        self, store: Store
    ) -> None:
        await self.add(store, "due", "a", "b", "c", due_at=NOW - 10)
        await self.add(store, "later", "a", due_at=NOW + 3 * LEASE)
        await self.add(store, "taken", "a", "b")
        await self.add(store, "taken", "c", due_at=NOW + LEASE + 5)
        await self.add(store, "paused", "a", due_at=None)
        await self.add(store, ":static", "taken")
        await self.add(store, ":static", "later", due_at=NOW + 99)
        await self.add(store, ":static", "paused", due_at=None)
        sources = [
            a_key("later", ":static"),
            a_group("later"),
            a_group("absent"),
            a_group("due", share=2),
            a_key("absent", ":static"),
            a_group("paused"),
            a_key("paused", ":static"),
            a_group("taken", lease=LEASE),
            a_key("taken", ":static", lease=7),
        ]
        _, next_due = await self.claim(store, sources)
        assert next_due == [
            NOW + 99,
            NOW + 3 * LEASE,
            None,
            NOW - 10,
            None,
            None,
            None,
            NOW + LEASE,
            NOW + 7,
        ]

    @on_store
    async def test_the_end_of_somebody_elses_lease_is_told(self, store: Store) -> None:
        await self.add(store, "reports", "a")
        await self.claim(store, [a_group(lease=LEASE)], token="other")
        records, next_due = await self.claim(store, [a_group(), a_key("a")], now=NOW + 5)
        assert (records, next_due) == ([], [NOW + LEASE, NOW + LEASE])

    @on_store
    async def test_a_sooner_write_lowers_what_is_told(self, store: Store) -> None:
        await self.add(store, "reports", "a", due_at=NOW + 500)
        [version] = await self.add(store, "reports", "b", due_at=NOW + 900)
        sooner = Patch(NOW + 100, State.SCHEDULED, 0)
        await store.write([Write("reports", "b", sooner, version)], NOW)
        assert (await self.claim(store, [a_group()])).next_due == [NOW + 100]

    @on_store
    async def test_a_group_without_records_comes_due_never(self, store: Store) -> None:
        await self.add(store, "reports", "a", due_at=NOW + 500)
        await store.write([Write("reports", "a", Delete(), -1)], NOW)
        assert await self.claim(store, [a_group(), a_key("a")]) == ([], [None, None])

    @on_store
    async def test_many_sources_and_one_with_work(self, store: Store) -> None:
        await self.add(store, "reports:200", *(f"key {number}" for number in range(50)))
        sources = [a_group(f"reports:{partition}", share=1_000) for partition in range(256)]
        records, next_due = await self.claim(store, sources, limit=1_000)
        assert len(without_repetition(records)) == 50
        assert [due_at for due_at in next_due if due_at is not None] == [NOW + LEASE]

    @on_store
    async def test_many_keys_are_asked_for_at_once(self, store: Store) -> None:
        keys = [f"task {number}" for number in range(self.many)]
        await self.add(store, ":static", *keys)
        records, next_due = await self.claim(
            store, [a_key(key, ":static", lease=10) for key in keys], limit=self.many
        )
        assert keys_of(records) == sorted(keys)
        assert next_due == [NOW + 10] * self.many

    @on_store
    async def test_a_claim_of_many(self, store: Store) -> None:
        keys = [f"key {number}" for number in range(self.many + 200)]
        await self.add(store, "reports", *keys)
        records, next_due = await self.claim(store, [a_group(share=self.many)], limit=self.many)
        assert len(without_repetition(records)) == self.many
        assert next_due == [NOW]

    @on_store
    async def test_a_repeated_claim_returns_what_its_token_holds(self, store: Store) -> None:
        await self.add(store, "reports", *"abcde")
        await self.add(store, ":static", "x")
        sources = [a_group(share=2), a_key("x", ":static", lease=5)]
        first, _ = await self.claim(store, sources)
        second, _ = await self.claim(store, sources, repeated=True)
        assert sorted(second) == sorted(first)
        assert all([record == await record_of(store, *record[:2]) for record in first])
        assert len(first) == 3

    @on_store
    async def test_a_repeated_claim_takes_more_where_it_has_less_than_it_may(
        self, store: Store
    ) -> None:
        await self.add(store, "reports", "a", "b")
        first, _ = await self.claim(store, [a_group()])
        await self.add(store, "reports", "c", "d")
        both, _ = await self.claim(store, [a_group(share=3)], repeated=True)
        assert keys_of(first) == ["a", "b"]
        assert len(without_repetition(both)) == 3
        assert {"a", "b"} < set(keys_of(both))

    @on_store
    async def test_a_repeated_claim_that_never_arrived_is_a_claim(self, store: Store) -> None:
        await self.add(store, "reports", "a", "b")
        records, next_due = await self.claim(store, [a_group()], repeated=True)
        assert keys_of(records) == ["a", "b"]
        assert {record.unfinished_attempts for record in records} == {1}
        assert next_due == [NOW + LEASE]

    @on_store
    async def test_a_repeated_claim_is_bounded_by_its_limit(self, store: Store) -> None:
        await self.add(store, "reports", *"abcde")
        first, _ = await self.claim(store, [a_group()], limit=3)
        second, _ = await self.claim(store, [a_group()], limit=3, repeated=True)
        assert keys_of(second) == keys_of(first)

    @on_store
    async def test_a_repeated_claim_returns_what_is_held_before_anything_new(
        self, store: Store
    ) -> None:
        await self.add(store, "one", "a")
        await self.add(store, "two", "a")
        await self.add(store, ":static", "a")
        sources = [a_group("one"), a_group("two"), a_key("a", ":static")]
        first, _ = await self.claim(store, sources, limit=3)
        await self.add(store, "one", "b", "c", due_at=NOW - 1)
        second, _ = await self.claim(store, sources, limit=3, repeated=True)
        assert len(first) == 3
        assert sorted(second) == sorted(first)

    @on_store
    async def test_a_repeated_claim_leaves_what_its_token_holds_from_other_calls(
        self, store: Store
    ) -> None:
        keys = ["extended", "settled", "stolen", "held"]
        changes: dict[str, Change] = {
            "extended": Patch(NOW + LEASE + 1, State.RUNNING, 1),
            "settled": Patch(NOW + 10 * LEASE, State.SCHEDULED, 0),
            "stolen": put(due_at=NOW + LEASE),
        }
        for group in ("reports", ":static"):
            await self.add(store, group, *keys)
        sources = [a_group(), *(a_key(key, ":static") for key in keys)]
        await self.claim(store, sources, token="mine")
        for group in ("reports", ":static"):
            batch = [Write(group, key, change, ANY) for key, change in changes.items()]
            await store.write(batch, NOW)
        records, _ = await self.claim(store, sources, token="mine", repeated=True)
        assert sorted(record[:2] for record in records) == [
            (":static", "held"),
            ("reports", "held"),
        ]

    @on_store
    async def test_a_token_alone_gives_back_nothing(self, store: Store) -> None:
        await self.add(store, "reports", "a")
        await self.claim(store, [a_group()])
        assert not (await self.claim(store, [a_group()], repeated=False)).records
        assert not (await self.claim(store, [a_group()], token="x", repeated=True)).records

    @on_store
    async def test_a_late_heartbeat_does_not_move_a_settled_record(self, store: Store) -> None:
        await self.add(store, "reports", "a")
        [held] = (await self.claim(store, [a_group()])).records
        tomorrow = NOW + 86_400 * SECOND
        settle = Write(
            "reports", "a", Patch(tomorrow, State.SCHEDULED, 0), held.version, held.token
        )
        late = settle._replace(change=Patch(NOW + LEASE, State.RUNNING, 1))
        version_of((await store.write([settle], NOW))[0])
        current = refusal_of((await store.write([late], NOW))[0])
        assert current == await record_of(store, "reports", "a")
        assert (current.due_at, current.state) == (tomorrow, State.SCHEDULED)

    @on_store
    async def test_what_was_extended_or_paused_a_moment_ago_is_not_claimed(
        self, store: Store
    ) -> None:
        """An index that lags still shows the old instant; the record itself decides."""
        await self.add(store, "reports", "extended", "paused", "gone")
        held, _ = await self.claim(store, [a_group()], token="mine")
        end = NOW + LEASE
        await self.index_catches_up(store)
        changes: dict[str, Change] = {
            "extended": Patch(end + LEASE, State.RUNNING, 1),
            "paused": Patch(None, State.PAUSED, 0),
            "gone": Delete(),
        }
        results = await store.write(
            [
                Write("reports", record.key, changes[record.key], record.version, "mine")
                for record in held
            ],
            end - 1,
        )
        assert [version_of(result) >= 0 for result in results] == [True] * 3
        sources = [a_group(before=end), *(a_key(key, "reports") for key in changes)]
        for source in sources:
            assert not (await store.claim([source], 10, end, "other")).records

    @on_store
    async def test_concurrent_claims_share_no_record(self, store: Store) -> None:
        keys = [f"key {number}" for number in range(self.many * 3 // 10)]
        await self.add(store, "reports", *keys)
        drained = await asyncio.gather(
            *(self.drain(store, [a_group()], 7, f"worker-{number}") for number in range(4))
        )
        records = [record for records in drained for record in records]
        assert without_repetition(records) == set(keys)
        assert {record.unfinished_attempts for record in records} == {1}

    @on_two_stores
    async def test_claims_of_two_openings_share_no_record(self, store: Store, other: Store) -> None:
        keys = [f"key {number}" for number in range(self.many * 3 // 10)]
        await self.add(store, "reports", *keys)
        drained = await asyncio.gather(
            *(
                self.drain(opened, [a_group()], 7, f"worker-{number}")
                for number, opened in enumerate([store, other, store, other])
            )
        )
        records = [record for records in drained for record in records]
        assert without_repetition(records) == set(keys)
        assert {record.unfinished_attempts for record in records} == {1}

    @on_store
    async def test_concurrent_claims_of_one_key_have_one_winner(self, store: Store) -> None:
        await self.add(store, ":static", "a")
        answers = await asyncio.gather(
            *(
                store.claim([a_key("a", ":static")], 1, NOW, f"worker-{number}")
                for number in range(8)
            )
        )
        [winner] = [record for answer in answers for record in answer.records]
        assert winner == await record_of(store, ":static", "a")
