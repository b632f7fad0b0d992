"""What only the store in memory has; the contract is tested by the conformance suite."""

import asyncio
import tracemalloc

from pyncette.memory import MemoryRepository, MemoryStore, memory_repository
from pyncette.store import Group, Key, Watch, Write
from pyncette.store.record import ABSENT, ANY, Delete, Patch, Put, State

NOW = 1_000_000


def put(due_at: int | None = NOW) -> Put:
    return Put(due_at, State.SCHEDULED, None, 0, "schedule", "args", "progress")


def test_contexts_of_one_repository_share_their_records() -> None:
    async def main() -> None:
        repository = MemoryRepository()
        async with repository() as store:
            await store.write([Write("g", "a", put(), ABSENT)], NOW)
        async with repository(any_option=1) as store:
            assert await store.get([("g", "a")]) != [None]

    asyncio.run(main())


def test_repositories_share_nothing() -> None:
    async def main() -> None:
        async with MemoryRepository()() as one, MemoryRepository()() as two:
            await one.write([Write("g", "a", put(), ABSENT)], NOW)
            assert await two.get([("g", "a")]) == [None]

    asyncio.run(main())
    assert isinstance(memory_repository, MemoryRepository)


def test_memory_stays_flat_while_records_run_and_come_and_go() -> None:
    """Each claim and settle leaves an entry on the heap, which must not pile up."""

    async def turns(store: MemoryStore, count: int) -> None:
        for turn in range(count):
            now = NOW + turn
            claimed = await store.claim(
                [Group("g", 60, 5, now), Key(":static", "a", 60)], 10, now, f"{turn}"
            )
            batch = [
                Write(record.group, record.key, Patch(now, State.SCHEDULED, 0), record.version)
                for record in claimed.records
            ]
            batch += [Write("one-off", f"{turn}", put(now), ABSENT)]
            await store.write(batch, now)
            await store.write([Write("one-off", f"{turn}", Delete(), ANY)], now)

    async def main() -> int:
        store = MemoryStore()
        await store.write([Write("g", f"{n}", put(), ABSENT) for n in range(5)], NOW)
        await store.write([Write(":static", "a", put(), ABSENT)], NOW)
        tracemalloc.start()
        try:
            await turns(store, 200)
            before, _ = tracemalloc.get_traced_memory()
            await turns(store, 1_000)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        return after - before

    assert asyncio.run(main()) < 50_000


def test_memory_stays_flat_while_records_are_left_out_of_claims() -> None:
    """What is left out goes back on the heap, once."""

    async def main() -> int:
        store = MemoryStore()
        await store.write([Write("g", f"{n}", put(NOW - n), ABSENT) for n in range(20)], NOW)
        suspect = put()._replace(unfinished_attempts=3)
        await store.write([Write("g", f"s{n}", suspect, ABSENT) for n in range(20)], NOW)
        source = [Group("g", 60, 50, NOW)]
        await store.claim(source, 50, NOW, "t", unfinished_max=2)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(2_000):
                claimed = await store.claim(source, 50, NOW, "t", unfinished_max=2)
                assert claimed == ([], [NOW])
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        return after - before

    assert asyncio.run(main()) < 10_000


def test_a_callback_may_close_its_watch() -> None:
    async def main() -> None:
        store = MemoryStore()
        heard: list[str] = []
        watches: list[Watch] = []
        for name in ("first", "second"):

            def on_wake(groups: object, name: str = name) -> None:
                heard.append(name)
                watches[0].close()

            watch = await store.watch(["g"], on_wake)
            watches.append(watch)
        for _ in range(2):
            await store.write([], NOW, wake=["g", "other"])
        await store.write([], NOW, wake=["other"])
        assert heard == ["first", "second", "second"]

    asyncio.run(main())
