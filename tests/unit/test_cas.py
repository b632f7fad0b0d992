"""What only CasStore has: trips, rivals, and what an index that lags may do to a claim."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from random import Random
from typing import Any

import pytest
from tests.lagging import LaggingBackend, LaggingRepository

from pyncette.errors import StoreError, StoreUnavailableError
from pyncette.store import (
    Applied,
    Failed,
    Group,
    Identity,
    Key,
    Refused,
    Source,
    Store,
    Unknown,
    Write,
)
from pyncette.store.cas import CasStore, Entry, Swap, Swapped
from pyncette.store.record import ABSENT, ANY, Delete, Patch, Put, Record, State
from pyncette.store.together import together

NOW = 1_000_000
LEASE = 60


class CountingBackend(LaggingBackend):
    """Counts the primitives, and lets a rival come first."""

    def __init__(self, lag: int = 0) -> None:
        super().__init__(Random(1), lag)
        self.counts: Counter[str] = Counter()
        self.rival: Callable[[Sequence[Swap]], Awaitable[None]] | None = None

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        self.counts["get"] += 1
        return await super().get(identities)

    async def swap(self, batch: Sequence[Swap]) -> list[Swapped]:
        self.counts["swap"] += 1
        if self.rival is not None:
            await self.rival(batch)
        return await super().swap(batch)

    async def due(
        self, group: str, since: int | None, before: int | None, limit: int
    ) -> list[Entry]:
        self.counts["due"] += 1
        return await super().due(group, since, before, limit)


def put(due_at: int | None = NOW) -> Put:
    return Put(due_at, State.SCHEDULED, None, 0, "schedule", "args", "progress")


async def add(store: Store, group: str, keys: Sequence[str], due_at: int | None = NOW) -> None:
    await store.write([Write(group, key, put(due_at), ABSENT) for key in keys], NOW)


async def trips(backend: CountingBackend, call: Awaitable[object]) -> dict[str, int]:
    backend.counts.clear()
    await call
    return dict(backend.counts)


def test_a_claim_from_many_sources_is_one_batch_of_swaps() -> None:
    async def main() -> None:
        backend = CountingBackend()
        store = CasStore(backend)
        sources: list[Source] = [Group(f"g{n}", LEASE, 5, NOW) for n in range(20)]
        sources += [Key("s", f"k{n}", LEASE) for n in range(20)]
        for n in range(20):
            await add(store, f"g{n}", "abcdefg")
        await add(store, "s", [f"k{n}" for n in range(20)])
        counted = await trips(backend, store.claim(sources, 1_000, NOW, "t"))
        assert counted == {"get": 1, "due": 20, "swap": 1}

    asyncio.run(main())


def test_a_claim_that_finds_nothing_swaps_nothing() -> None:
    async def main() -> None:
        backend = CountingBackend()
        store = CasStore(backend)
        await add(store, "g", "a", NOW + 1)
        counted = await trips(backend, store.claim([Group("g", LEASE, 5, NOW)], 10, NOW, "t"))
        assert counted == {"due": 2}

    asyncio.run(main())


def test_a_write_that_names_its_version_is_made_unseen() -> None:
    async def main() -> None:
        backend = CountingBackend()
        store = CasStore(backend)
        await add(store, "g", "ab")
        batch = [Write("g", key, Patch(NOW, "retrying", 0), NOW) for key in "ab"]
        assert await trips(backend, store.write(batch, NOW)) == {"swap": 1}
        assert await trips(backend, store.write(batch, NOW)) == {"swap": 1, "get": 1}

    asyncio.run(main())


def test_a_claim_that_rivals_were_quicker_at_takes_others_instead() -> None:
    async def main() -> None:
        backend = CountingBackend()
        store = CasStore(backend)
        await add(store, "g", [f"{n:02}" for n in range(40)])
        taken: list[str] = []

        async def rival(batch: Sequence[Swap]) -> None:
            """Takes the very records, once."""
            backend.rival = None
            taken.extend(swap.key for swap in batch)
            await CasStore(backend).claim([Group("g", LEASE, 10, NOW)], 10, NOW, "rival")

        backend.rival = rival
        claimed = await store.claim([Group("g", LEASE, 10, NOW)], 10, NOW, "mine")
        assert len(claimed.records) == 10
        assert not set(taken) & {record.key for record in claimed.records}
        assert claimed.next_due == [NOW]

    asyncio.run(main())


def test_workers_that_met_part_at_random() -> None:
    async def second_choice(seed: int) -> set[str]:
        backend = CountingBackend()
        await add(CasStore(backend), "g", [f"{n:02}" for n in range(60)])

        async def rival(batch: Sequence[Swap]) -> None:
            backend.rival = None
            await CasStore(backend).claim([Group("g", LEASE, 5, NOW)], 5, NOW, "rival")

        backend.rival = rival
        store = CasStore(backend, Random(seed))
        claimed = await store.claim([Group("g", LEASE, 5, NOW)], 5, NOW, "mine")
        return {record.key for record in claimed.records}

    choices = [asyncio.run(second_choice(seed)) for seed in range(4)]
    assert all(len(choice) == 5 for choice in choices)
    assert len({frozenset(choice) for choice in choices}) > 1


def test_a_claim_gives_up_where_rivals_are_always_quicker() -> None:
    async def main() -> None:
        backend = CountingBackend()
        store = CasStore(backend)
        await add(store, "g", [f"{n:03}" for n in range(200)])

        async def rival(batch: Sequence[Swap]) -> None:
            for swap in batch:
                await LaggingBackend.swap(backend, [swap])

        backend.rival = rival
        claimed = await store.claim([Group("g", LEASE, 5, NOW)], 5, NOW, "mine")
        assert claimed.records == []
        assert claimed.next_due == [NOW]
        assert backend.counts["swap"] < 10

    asyncio.run(main())


def test_a_forced_write_is_repeated_until_nobody_is_quicker() -> None:
    async def main() -> None:
        backend = CountingBackend()
        store = CasStore(backend)
        await add(store, "g", "a")
        turns = iter(range(5))

        async def rival(batch: Sequence[Swap]) -> None:
            for turn in turns:
                columns = {"version": NOW + 1 + turn, "unfinished_attempts": turn}
                await LaggingBackend.swap(backend, [Swap("g", "a", NOW + turn, columns)])
                return

        backend.rival = rival
        [result] = await store.write([Write("g", "a", Patch(None, "paused", 9), ANY)], NOW)
        assert result == Applied(NOW + 6)

    asyncio.run(main())


def test_a_forced_write_gives_up_after_a_thousand_rivals() -> None:
    async def main() -> None:
        backend = CountingBackend()
        store = CasStore(backend)
        await add(store, "g", "a")

        async def rival(batch: Sequence[Swap]) -> None:
            [record] = await LaggingBackend.get(backend, [("g", "a")])
            assert record is not None
            columns = {"version": record.version + 1}
            await LaggingBackend.swap(backend, [Swap("g", "a", record.version, columns)])

        backend.rival = rival
        with pytest.raises(StoreUnavailableError, match="1000 times in a row"):
            await store.write([Write("g", "a", Patch(None, "paused", 9), ANY)], NOW)

    asyncio.run(main())


def test_a_creation_is_made_when_what_stood_in_its_way_has_gone_meanwhile() -> None:
    """A refusal says what is there: nothing there cannot refuse a creation."""

    async def main() -> None:
        class Vanishing(CountingBackend):
            async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
                await self.swap([Swap("g", "a", NOW, None)])
                return await super().get(identities)

        backend = Vanishing()
        store = CasStore(backend)
        await add(store, "g", "a")
        assert await store.write([Write("g", "a", put(), ABSENT)], NOW) == [Applied(NOW)]
        assert backend.counts["get"] == 1

    asyncio.run(main())


def test_a_record_made_again_at_the_same_version_is_not_claimed_by_an_old_entry() -> None:
    async def main() -> None:
        backend = CountingBackend(lag=1_000_000)
        store = CasStore(backend)
        await add(store, "g", "a")
        backend.catch_up()
        await store.write([Write("g", "a", Delete(), ANY)], NOW)
        await add(store, "g", "a", NOW + 500)
        claimed = await store.claim([Group("g", LEASE, 5, NOW)], 5, NOW, "mine")
        assert claimed.records == []
        assert await store.get([("g", "a")]) == [
            Record("g", "a", NOW + 500, NOW, None, "scheduled", 0, "schedule", "args", "progress")
        ]

    asyncio.run(main())


def test_an_index_shows_a_change_late_and_never_an_older_one_after_it() -> None:
    async def main() -> None:
        backend = LaggingBackend(Random(3), lag=30)
        await backend.swap([Swap("g", "a", ABSENT, put(0)._asdict() | {"version": 1})])
        shown = []
        for version in range(1, 60):
            await backend.swap(
                [Swap("g", "a", version, {"version": version + 1, "due_at": version})]
            )
            shown += [entry.version for entry in await backend.due("g", None, None, 1)]
        assert shown == sorted(shown)
        assert shown[-1] < 60
        backend.catch_up()
        assert [entry.version for entry in await backend.due("g", None, None, 1)] == [60]

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(5))
def test_on_an_index_that_lags_nothing_runs_twice_and_nothing_is_lost(seed: int) -> None:
    """Workers claim, settle and remove while the index is told late, and never caught up."""

    async def main() -> None:
        repository = LaggingRepository(seed, lag=60)
        runs: Counter[str] = Counter()
        keys = [f"{n}" for n in range(60)]

        async def worker(name: str) -> None:
            async with repository() as store:
                for turn in range(400):
                    now = NOW + turn
                    token = f"{name}-{turn}"
                    claimed = await store.claim([Group("g", 10**9, 5, now)], 5, now, token)
                    runs.update(record.key for record in claimed.records)
                    await store.write(
                        [
                            Write("g", record.key, Delete(), record.version, record.token)
                            for record in claimed.records
                        ],
                        now,
                    )
                    if len(runs) == len(keys):
                        return

        async with repository() as store:
            await add(store, "g", keys)
        await asyncio.gather(*(worker(f"worker-{n}") for n in range(4)))
        assert runs == Counter(keys)

    asyncio.run(main())


def test_a_refusal_tells_what_is_there() -> None:
    async def main() -> None:
        store = CasStore(CountingBackend())
        await add(store, "g", "a")
        [record] = await store.get([("g", "a")])
        results = await store.write(
            [Write("g", "a", put(), NOW + 1), Write("g", "b", put(), NOW)], NOW
        )
        assert results == [Refused(record), Refused(None)]

    asyncio.run(main())


def test_nobody_is_told_and_no_clock_is_read() -> None:
    async def main() -> None:
        store = CasStore(CountingBackend())
        assert await store.watch(["g"], lambda groups: None) is None
        assert await store.now() is None

    asyncio.run(main())


DOWN = StoreUnavailableError("this part is down")
REFUSED = Failed(ValueError("too large"))
THROTTLED = Failed(StoreUnavailableError("throttled"))
UNKNOWN = Unknown(DOWN)


def striking(answer: Failed | Unknown, *keys: str) -> Callable[[Swap], Failed | Unknown | None]:
    return lambda swap: answer if swap.key in keys else None


@pytest.mark.parametrize("answer", [REFUSED, THROTTLED, UNKNOWN])
def test_each_write_has_an_answer_of_its_own(answer: Failed | Unknown) -> None:
    async def main() -> None:
        backend = CountingBackend()
        store = CasStore(backend)
        await add(store, "g", "abc")
        backend.strike = striking(answer, "b")
        patch = Patch(None, "paused", 0)
        for expect in (NOW, ANY):
            batch = [Write("g", key, patch, expect) for key in "abc"]
            one, two, three = await store.write(batch, NOW)
            assert two == answer
            assert isinstance(one, Applied)
            assert one == three

    asyncio.run(main())


def test_a_write_of_which_nothing_is_known_raises() -> None:
    async def main() -> None:
        backend = CountingBackend()
        store = CasStore(backend)
        for answer in (THROTTLED, UNKNOWN):
            backend.strike = striking(answer, *"ab")
            batch = [Write("g", key, put(), ABSENT) for key in "ab"]
            with pytest.raises(StoreUnavailableError, match=str(answer.error)):
                await store.write(batch, NOW)
        backend.strike = striking(REFUSED, *"ab")
        assert await store.write(batch, NOW) == [REFUSED] * 2

    asyncio.run(main())


def test_what_was_refused_and_cannot_be_read_is_unknown() -> None:
    async def main() -> None:
        class Unreadable(CountingBackend):
            async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
                raise DOWN

        store = CasStore(Unreadable())
        await add(store, "g", "ab")
        patch = Patch(None, "paused", 0)
        results = await store.write(
            [Write("g", "a", patch, NOW), Write("g", "b", patch, NOW + 7)], NOW
        )
        assert results == [Applied(NOW + 1), UNKNOWN]

    asyncio.run(main())


def test_of_a_thousand_rivals_of_one_record_the_others_of_the_batch_hear_nothing() -> None:
    async def main() -> None:
        backend = CountingBackend()
        store = CasStore(backend)
        await add(store, "g", "ab")

        async def rival(batch: Sequence[Swap]) -> None:
            [record] = await LaggingBackend.get(backend, [("g", "a")])
            assert record is not None
            columns = {"version": record.version + 1}
            await LaggingBackend.swap(backend, [Swap("g", "a", record.version, columns)])

        backend.rival = rival
        patch = Patch(None, "paused", 9)
        failed, applied = await store.write([Write("g", key, patch, ANY) for key in "ab"], NOW)
        assert isinstance(failed, Failed)
        assert applied == Applied(NOW + 1)

    asyncio.run(main())


@pytest.mark.parametrize("answer", [REFUSED, THROTTLED])
def test_a_record_that_cannot_be_claimed_leaves_the_others(answer: Failed) -> None:
    async def main() -> None:
        backend = CountingBackend()
        store = CasStore(backend)
        await add(store, "g", "b", NOW - 1)
        await add(store, "g", "ac")
        backend.strike = striking(answer, "b")
        claimed = await store.claim([Group("g", LEASE, 5, NOW)], 5, NOW, "mine")
        assert sorted(record.key for record in claimed.records) == ["a", "c"]
        assert claimed.next_due == [NOW - 1]

    asyncio.run(main())


def test_a_claim_whose_answer_is_lost_in_part_is_repeated_and_finds_it() -> None:
    async def main() -> None:
        backend = CountingBackend()
        store = CasStore(backend)
        await add(store, "g", "abc")

        async def takes_b(batch: Sequence[Swap]) -> None:
            """It is taken, and its answer is lost."""
            backend.rival = None
            await LaggingBackend.swap(backend, [swap for swap in batch if swap.key == "b"])
            backend.strike = striking(UNKNOWN, "b")

        backend.rival = takes_b
        source: list[Source] = [Group("g", LEASE, 5, NOW)]
        with pytest.raises(StoreUnavailableError):
            await store.claim(source, 5, NOW, "mine")
        claimed = await store.claim(source, 5, NOW, "mine", repeated=True)
        assert sorted(record.key for record in claimed.records) == ["a", "b", "c"]

    asyncio.run(main())


def test_a_repeated_claim_reads_what_is_not_answered_again() -> None:
    async def main() -> None:
        backend = CountingBackend()
        store = CasStore(backend)
        await add(store, "g", "abc")

        async def takes_b(batch: Sequence[Swap]) -> None:
            backend.rival = None
            await LaggingBackend.swap(backend, [swap for swap in batch if swap.key == "b"])
            backend.strike = striking(UNKNOWN, "a", "b")

        backend.rival = takes_b
        source: list[Source] = [Group("g", LEASE, 5, NOW)]
        claimed = await store.claim(source, 5, NOW, "mine", repeated=True)
        assert sorted(record.key for record in claimed.records) == ["b", "c"]
        assert claimed.next_due == [NOW]

    asyncio.run(main())


def test_a_claim_that_gets_nothing_because_of_the_store_raises() -> None:
    async def main() -> None:
        backend = CountingBackend()
        store = CasStore(backend)
        await add(store, "g", "ab")
        for answer, repeated in ((THROTTLED, False), (UNKNOWN, False), (UNKNOWN, True)):
            backend.strike = striking(answer, *"ab")
            with pytest.raises(StoreUnavailableError, match=str(answer.error)):
                await store.claim([Group("g", LEASE, 5, NOW)], 5, NOW, "mine", repeated)

    asyncio.run(main())


def test_a_claim_reads_past_what_it_must_leave_in_few_trips() -> None:
    async def main() -> None:
        backend = CountingBackend()
        store = CasStore(backend)
        suspects = [
            Write("g", f"{n:04}", put(NOW - 1)._replace(unfinished_attempts=3), ABSENT)
            for n in range(1_000)
        ]
        await store.write(suspects, NOW)
        await add(store, "g", "abc")
        call = store.claim([Group("g", LEASE, 2, NOW)], 9, NOW, "mine", unfinished_max=2)
        counted = await trips(backend, call)
        assert counted == {"due": 6, "swap": 1}
        # Without the need to leave any, one look is enough.
        call = store.claim([Group("g", LEASE, 2, NOW)], 9, NOW, "mine")
        assert await trips(backend, call) == {"due": 1, "swap": 1}

    asyncio.run(main())


# Calls that are made at the same time.

EAGER: Any = getattr(asyncio, "eager_task_factory", None)
FACTORIES = [None] if EAGER is None else [None, EAGER]


def on_loop(factory: Any, main: Coroutine[Any, Any, None]) -> None:
    async def checked() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left

    asyncio.run(checked())


class SlowBackend(CountingBackend):
    """Looks at groups take long, and longer still to be cancelled; one fails at once."""

    def __init__(self, failing: str = "") -> None:
        super().__init__()
        self.failing = failing
        self.patience = 20
        self.under_way = 0

    async def due(
        self, group: str, since: int | None, before: int | None, limit: int
    ) -> list[Entry]:
        if group == self.failing:
            raise DOWN
        self.under_way += 1
        try:
            try:
                for _ in range(self.patience):
                    await asyncio.sleep(0)
                return await super().due(group, since, before, limit)
            finally:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        finally:
            self.under_way -= 1


SLOW: list[Source] = [Group(name, LEASE, 5, NOW) for name in "abc"]


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("repeated", [False, True])
def test_a_claim_that_fails_leaves_nothing_running(factory: Any, repeated: bool) -> None:
    async def main() -> None:
        for failing in "abc":
            backend = SlowBackend(failing)
            with pytest.raises(StoreError, match="is down"):
                await CasStore(backend).claim(SLOW, 5, NOW, "mine", repeated)
            assert backend.under_way == 0
            assert len(asyncio.all_tasks()) == 1

    on_loop(factory, main())


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("passes", [0, 1, 5, 23, 30, 60])
def test_a_claim_that_is_cancelled_leaves_nothing_running(factory: Any, passes: int) -> None:
    async def main() -> None:
        backend = SlowBackend()
        call = asyncio.ensure_future(
            CasStore(backend).claim([*SLOW, Key("s", "k", 1)], 5, NOW, "mine", True)
        )
        for _ in range(passes):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        assert backend.under_way == 0
        assert len(asyncio.all_tasks()) == 1

    on_loop(factory, main())


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_claim_and_a_write_work_with_any_task_factory(factory: Any) -> None:
    async def main() -> None:
        for patience in (0, 3):
            backend = SlowBackend()
            backend.patience = patience
            store = CasStore(backend)
            for group in "abc":
                await add(store, group, "xy")
            claimed = await store.claim([*SLOW, Key("d", "k", 1)], 9, NOW, "mine")
            assert len(claimed.records) == 6
            assert claimed.next_due == [NOW + LEASE] * 3 + [None]

    on_loop(factory, main())


@pytest.mark.parametrize("factory", FACTORIES)
def test_calls_together_are_answered_in_order_and_wait_for_each_other(factory: Any) -> None:
    ended: list[str] = []

    async def call(name: str, passes: int) -> str:
        for _ in range(passes):
            await asyncio.sleep(0)
        ended.append(name)
        if name.startswith("bad"):
            raise ValueError(name)
        return name

    async def main() -> None:
        assert await together([]) == []
        assert await together([call("a", 0)]) == ["a"]
        assert await together([call("a", 3), call("b", 0), call("c", 1)]) == ["a", "b", "c"]
        ended.clear()
        with pytest.raises(ValueError, match="bad 1"):
            await together([call("a", 5), call("bad 1", 2), call("bad 2", 0)])
        assert sorted(ended) == ["a", "bad 1", "bad 2"]
        with pytest.raises(ValueError, match="bad"):
            await together([call("bad", 0)])

    on_loop(factory, main())
