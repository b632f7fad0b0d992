"""Conformance: conditional writes, the answer to a refused write, and how versions grow."""

from __future__ import annotations

import asyncio

from pyncette.store import Applied, Refused, Store, Write
from pyncette.store.record import ABSENT, ANY, Change, Delete, Patch, Record, State
from pyncette.testing.suite.harness import (
    NOW,
    SECOND,
    Suite,
    a_group,
    new,
    on_store,
    on_two_stores,
    pages_of,
    put,
    record_of,
    refusal_of,
    version_of,
)

CHANGES: dict[str, Change] = {
    "put": put(
        due_at=NOW + 1,
        schedule="2 other",
        args="2 other",
        progress="2 other",
        unfinished_attempts=3,
    ),
    "patch": Patch(NOW + 1, State.RETRYING, 3, "2 other"),
    "bare patch": Patch(NOW + 1, State.RETRYING, 3),
    "delete": Delete(),
}


class Writing(Suite):
    """Tests of ``pyncette.store.Store.write``."""

    @on_store
    async def test_a_created_record_is_there_as_it_was_written(self, store: Store) -> None:
        change = put(NOW + 5, "retrying", "a token", 4, "1 p", "1 a", "1 s")
        [result] = await store.write([Write("reports", "a", change, ABSENT)], NOW)
        assert result == Applied(NOW)
        assert await record_of(store, "reports", "a") == Record(
            "reports", "a", NOW + 5, NOW, "a token", "retrying", 4, "1 p", "1 a", "1 s"
        )

    @on_store
    async def test_a_record_that_is_there_is_not_created(self, store: Store) -> None:
        await self.add(store, "reports", "a", token="first")
        before = await record_of(store, "reports", "a")
        [result] = await store.write([new("reports", "a", token="second")], NOW + 1)
        assert refusal_of(result) == before
        assert await record_of(store, "reports", "a") == before

    @on_store
    async def test_a_change_is_made_where_the_version_matches(self, store: Store) -> None:
        for name, change in CHANGES.items():
            [version] = await self.add(store, "reports", name, token="t")
            before = await record_of(store, "reports", name)
            [result] = await store.write([Write("reports", name, change, version)], NOW + 9)
            await _check_made(store, before, change, version_of(result), NOW + 9)

    @on_store
    async def test_a_change_is_refused_where_the_version_does_not_match(self, store: Store) -> None:
        for name, change in CHANGES.items():
            [version] = await self.add(store, "reports", name)
            before = await record_of(store, "reports", name)
            for wrong in (version - 1, version + 1):
                [result] = await store.write([Write("reports", name, change, wrong)], NOW + 9)
                assert refusal_of(result) == before
            assert await record_of(store, "reports", name) == before

    @on_store
    async def test_a_change_of_what_is_gone_is_refused_and_brings_nothing_back(
        self, store: Store
    ) -> None:
        for name, change in CHANGES.items():
            [version] = await self.add(store, "reports", name)
            await store.write([Write("reports", name, Delete(), version)], NOW)
            for token in (None, "mine"):
                write = Write("reports", name, change, version, token)
                assert refusal_of((await store.write([write], NOW + 9))[0]) is None
            assert await store.get([("reports", name)]) == [None]
        assert await pages_of(store, "reports") == []

    @on_store
    async def test_a_change_is_made_where_version_and_token_match(self, store: Store) -> None:
        for name, change in CHANGES.items():
            [version] = await self.add(store, "reports", name, token="mine")
            before = await record_of(store, "reports", name)
            [result] = await store.write([Write("reports", name, change, version, "mine")], NOW)
            await _check_made(store, before, change, version_of(result), NOW)

    @on_store
    async def test_a_change_is_refused_where_the_token_is_anothers(self, store: Store) -> None:
        for name, change in CHANGES.items():
            for number, token in enumerate([None, "other", "MINE", "mine ", ""]):
                key = f"{name} {number}"
                [version] = await self.add(store, "reports", key, token=token)
                before = await record_of(store, "reports", key)
                for expect in (version, ANY):
                    write = Write("reports", key, change, expect, "mine")
                    assert refusal_of((await store.write([write], NOW + 9))[0]) == before
                assert await record_of(store, "reports", key) == before

    @on_store
    async def test_a_forced_change_is_made_whatever_is_there(self, store: Store) -> None:
        for name, change in CHANGES.items():
            await self.add(store, "reports", name, token="somebody")
            before = await record_of(store, "reports", name)
            [result] = await store.write([Write("reports", name, change, ANY)], NOW + 9)
            await _check_made(store, before, change, version_of(result), NOW + 9)

    @on_store
    async def test_a_forced_put_creates_what_is_absent(self, store: Store) -> None:
        [result] = await store.write([Write("reports", "a", put(), ANY)], NOW)
        assert result == Applied(NOW)
        assert (await record_of(store, "reports", "a")).version == NOW

    @on_store
    async def test_a_forced_patch_or_delete_of_what_is_absent_does_nothing(
        self, store: Store
    ) -> None:
        for change in (CHANGES["patch"], CHANGES["bare patch"], CHANGES["delete"]):
            assert await store.write([Write("reports", "a", change, ANY)], NOW) == [Applied(0)]
        assert await store.get([("reports", "a")]) == [None]
        assert (await self.claim(store, [a_group()])).next_due == [None]

    @on_store
    async def test_a_deleted_record_is_gone_from_everywhere(self, store: Store) -> None:
        await self.add(store, "reports", "a")
        [result] = await store.write([Write("reports", "a", Delete(), ANY)], NOW)
        assert result == Applied(0)
        assert await store.get([("reports", "a")]) == [None]
        assert await pages_of(store, "reports") == []
        assert await self.claim(store, [a_group()]) == ([], [None])

    @on_store
    async def test_a_change_that_changes_nothing_is_applied_and_moves_the_version(
        self, store: Store
    ) -> None:
        [version] = await self.add(store, "reports", "a", token="mine", unfinished_attempts=1)
        same = Write("reports", "a", Patch(NOW, State.SCHEDULED, 1), version, "mine")
        assert await store.write([same], NOW) == [Applied(version + 1)]
        again = same._replace(expect=version + 1, change=put(token="mine", unfinished_attempts=1))
        assert await store.write([again], NOW) == [Applied(version + 2)]

    @on_store
    async def test_versions_grow_while_now_stands_still_or_lies_behind(self, store: Store) -> None:
        [version] = await self.add(store, "reports", "a")
        for now in (NOW, NOW, NOW - 3_600 * SECOND, 0, -SECOND, NOW):
            for change in (put(), Patch(NOW, State.SCHEDULED, 0)):
                [result] = await store.write([Write("reports", "a", change, version)], now)
                assert result == Applied(version + 1)
                version += 1
        [result] = await store.write([Write("reports", "a", put(), version)], NOW + SECOND)
        assert result == Applied(NOW + SECOND)

    @on_store
    async def test_a_version_is_never_that_of_absence(self, store: Store) -> None:
        for number, now in enumerate((0, -1, -NOW)):
            [result] = await store.write([new("reports", f"{number}")], now)
            assert result == Applied(1)
            assert (await record_of(store, "reports", f"{number}")).version == 1

    @on_store
    async def test_a_record_made_again_at_the_same_instant_is_not_taken_for_the_old_one(
        self, store: Store
    ) -> None:
        """Time stands still, so that versions repeat; the token tells the two apart."""
        await self.add(store, "reports", "a")
        [old] = (await self.claim(store, [a_group()], token="mine")).records
        await store.write([Write("reports", "a", Delete(), ANY)], NOW)
        await self.add(store, "reports", "a")
        [again] = (await self.claim(store, [a_group()], token="theirs")).records
        assert again.version == old.version
        settle = Write("reports", "a", Delete(), old.version, "mine")
        assert refusal_of((await store.write([settle], NOW))[0]) == again
        assert await record_of(store, "reports", "a") == again

    @on_store
    async def test_a_forced_put_takes_a_running_record_from_its_holder(self, store: Store) -> None:
        await self.add(store, "reports", "a")
        [held] = (await self.claim(store, [a_group()], token="mine")).records
        await store.write([Write("reports", "a", put(NOW + 5), ANY)], NOW)
        for change in CHANGES.values():
            for expect in (held.version, ANY):
                write = Write("reports", "a", change, expect, "mine")
                current = refusal_of((await store.write([write], NOW))[0])
                assert current == await record_of(store, "reports", "a")
                assert (current.token, current.due_at) == (None, NOW + 5)

    @on_store
    async def test_the_writes_of_a_batch_are_independent(self, store: Store) -> None:
        versions = dict(zip("abcd", await self.add(store, "reports", *"abcd"), strict=True))
        batch = [
            Write("reports", "a", Delete(), versions["a"]),
            Write("reports", "b", Delete(), versions["b"] + 1),
            new("reports", "e"),
            Write("reports", "c", Patch(None, State.PAUSED, 0), versions["c"]),
            new("reports", "d"),
            Write("absent", "a", put(), 17),
            Write("other", "a", Delete(), ANY),
            Write("other", "b", put(), ANY),
        ]
        results = await store.write(batch, NOW + 9)
        assert [type(result) for result in results] == [
            Applied,
            Refused,
            Applied,
            Applied,
            Refused,
            Refused,
            Applied,
            Applied,
        ]
        assert [record.key for record in await _in_order(store, "reports")] == ["b", "c", "d", "e"]
        assert (await record_of(store, "reports", "c")).state == State.PAUSED
        assert [record.key for record in await _in_order(store, "other")] == ["b"]

    @on_store
    async def test_an_empty_batch_is_no_error(self, store: Store) -> None:
        assert await store.write([], NOW) == []
        assert await store.write([], NOW, wake=["reports"]) == []

    @on_store
    async def test_results_come_in_the_order_of_a_big_batch(self, store: Store) -> None:
        count = self.many // 2 * 5
        keys = [f"key {number}" for number in range(count)]
        assert await self.add(store, "reports", *keys) == [NOW] * count
        batch = [
            Write("reports", key, Patch(NOW + number, State.SCHEDULED, 0), NOW + number % 2)
            for number, key in enumerate(keys)
        ]
        results = await store.write(batch, NOW + 5)
        assert [isinstance(result, Applied) for result in results] == [
            number % 2 == 0 for number in range(count)
        ]
        assert [
            result.current.key
            for result in results
            if isinstance(result, Refused) and result.current is not None
        ] == keys[1::2]
        records = await store.get([("reports", key) for key in keys])
        assert [record and record.due_at for record in records] == [
            NOW if number % 2 else NOW + number for number in range(count)
        ]
        results = await store.write([Write("reports", key, Delete(), ANY) for key in keys], NOW)
        assert results == [Applied(0)] * count
        assert await pages_of(store, "reports") == []

    @on_store
    async def test_of_concurrent_creations_one_is_applied(self, store: Store) -> None:
        answers = await asyncio.gather(
            *(store.write([new("reports", "a", args=f"{number}")], NOW) for number in range(10))
        )
        applied = [
            f"{number}" for number, [result] in enumerate(answers) if isinstance(result, Applied)
        ]
        assert applied == [(await record_of(store, "reports", "a")).args]

    @on_store
    async def test_of_concurrent_changes_of_one_version_one_is_applied(self, store: Store) -> None:
        [version] = await self.add(store, "reports", "a")
        answers = await asyncio.gather(
            *(
                store.write(
                    [Write("reports", "a", Patch(NOW, "retrying", 0, f"{number}"), version)], NOW
                )
                for number in range(10)
            )
        )
        applied = [
            f"{number}" for number, [result] in enumerate(answers) if isinstance(result, Applied)
        ]
        assert applied == [(await record_of(store, "reports", "a")).progress]

    @on_store
    async def test_concurrent_forced_changes_of_one_record_are_all_applied(
        self, store: Store
    ) -> None:
        """A store that joins calls into one batch must not join two changes of a key."""
        await self.add(store, "reports", "a")
        answers = await asyncio.gather(
            *(
                store.write([Write("reports", "a", Patch(NOW, "retrying", number), ANY)], NOW)
                for number in range(20)
            )
        )
        versions = sorted(version_of(result) for [result] in answers)
        assert versions == [NOW + 1 + number for number in range(20)]

    @on_store
    async def test_concurrent_batches_in_opposite_order_come_through(self, store: Store) -> None:
        await self._opposite(store, store)

    @on_two_stores
    async def test_batches_of_two_openings_in_opposite_order_come_through(
        self, store: Store, other: Store
    ) -> None:
        await self._opposite(store, other)

    async def _opposite(self, store: Store, other: Store) -> None:
        keys = [f"key {number}" for number in range(self.many)]
        versions = await self.add(store, "reports", *keys)
        for round_number in range(3):
            batch = [
                Write("reports", key, Patch(NOW, State.SCHEDULED, round_number), version)
                for key, version in zip(keys, versions, strict=True)
            ]
            forwards, backwards = await asyncio.gather(
                store.write(batch, NOW), other.write(batch[::-1], NOW)
            )
            backwards.reverse()
            versions = []
            for one, two in zip(forwards, backwards, strict=True):
                assert isinstance(one, Applied) != isinstance(two, Applied)
                versions.append(version_of(one if isinstance(one, Applied) else two))


async def _in_order(store: Store, group: str) -> list[Record]:
    return sorted(await pages_of(store, group))


async def _check_made(store: Store, before: Record, change: Change, version: int, now: int) -> None:
    """The record is what the change makes of it, at the version that the answer told."""
    [after] = await store.get([before[:2]])
    if isinstance(change, Delete):
        assert after is None
        assert version == 0
        return
    assert version == max(before.version + 1, now)
    if isinstance(change, Patch):
        columns = {name: value for name, value in change._asdict().items() if value is not None}
        assert after == before._replace(version=version, **columns)
    else:
        assert after == Record(before.group, before.key, version=version, **change._asdict())
