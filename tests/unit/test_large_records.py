"""Records that are too large to be read in time: claims ask for less, and others go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from tests.support import Bench, logged, run

from pyncette import Context, Pyncette
from pyncette.memory import MemoryStore
from pyncette.schedule import At, dumps
from pyncette.store import Claimed, Result, Source, Write
from pyncette.store.record import ANY, Progress, Put, dump_args, dump_progress


class Narrow(MemoryStore):
    """A store behind a network that lets so many characters through within a deadline."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.characters = characters
        self.limits: list[int] = []

    async def claim(
        self, sources: Sequence[Source], limit: int, now: int, *rest: Any, **options: Any
    ) -> Claimed:
        self.limits.append(limit)
        claimed = await super().claim(sources, limit, now, *rest, **options)
        size = sum(len(record.args) for record in claimed.records)
        await asyncio.sleep(0.05 * size / self.characters)
        return claimed


async def plant(store: Narrow, group: str, name: str, size: int) -> None:
    put = Put(
        1,
        "scheduled",
        None,
        0,
        dumps(At.of(1)),
        dump_args({"text": "x" * size}),
        dump_progress(Progress(1, "incarnation")),
    )
    await store.write([Write(group, name, put, ANY)], 1)


def app_on(store: MemoryStore, **options: Any) -> Pyncette:
    @asynccontextmanager
    async def factory(**configuration: Any) -> AsyncIterator[MemoryStore]:
        yield store

    return Pyncette(factory, poll_interval=0.02, **options)


def test_a_claim_that_is_not_answered_in_time_asks_for_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pyncette.opening.DEADLINE_MIN_S", 0.05)
    monkeypatch.setattr("pyncette.engine.loop.STORE_RETRY_DELAY_MAX_S", 0.01)

    async def main() -> None:
        store = Narrow(characters=1_000)
        app = app_on(store)
        ran: set[str] = set()
        all_ran = asyncio.Event()

        @app.dynamic_task(lease_duration=0.1)
        async def big(context: Context) -> None:
            ran.add(context.task.name)
            if len(ran) == 16:
                all_ran.set()

        for number in range(16):
            await plant(store, big.group, str(number), 200)
        async with app.create() as context:
            loop = asyncio.create_task(context.run())
            await all_ran.wait()
            context.shutdown()
            await loop
        assert min(store.limits) < 16
        assert max(store.limits) == 100

    run(main())


def test_one_record_that_is_too_large_alone_is_parked_and_others_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pyncette.opening.DEADLINE_MIN_S", 0.05)
    monkeypatch.setattr("pyncette.engine.loop.STORE_RETRY_DELAY_MAX_S", 0.01)

    async def main() -> None:
        store = Narrow(characters=100_000)
        app = app_on(store)
        ran = asyncio.Event()
        ticked = asyncio.Event()

        @app.dynamic_task(lease_duration=0.1)
        async def big(context: Context) -> None:
            ran.set()

        @app.task(interval=timedelta(seconds=0.01), lease_duration=0.1)
        async def tick(context: Context) -> None:
            ticked.set()

        await plant(store, big.group, "huge", 200_000)
        async with app.create() as context:
            loop = asyncio.create_task(context.run())
            state = await context.get_task(big, "huge")
            while state is None or state.state != "parked":
                ticked.clear()
                await ticked.wait()
                state = await context.get_task(big, "huge")
            assert "too large" in str(state.reason)
            assert state.scheduled_at is None
            ticked.clear()
            await ticked.wait()
            context.shutdown()
            await loop
        assert not ran.is_set()

    run(main())
    assert logged(caplog, "huge of big is unreadable and parked", "too large")


def test_a_large_value_does_not_hold_up_the_calls_beside_it() -> None:
    class Slow(MemoryStore):
        """Large writes take until they are let through."""

        def __init__(self) -> None:
            super().__init__()
            self.gate = asyncio.Event()

        async def write(self, batch: Sequence[Write], now: int, wake: Any = ()) -> list[Result]:
            if any(isinstance(w.change, Put) and len(w.change.args) > 200_000 for w in batch):
                assert len(batch) == 1
                await self.gate.wait()
            return await super().write(batch, now, wake)

    async def main() -> None:
        store = Slow()
        app = app_on(store)
        job = app.dynamic_task(name="job")(Bench().note)
        async with app.create() as context:
            large = [
                asyncio.create_task(
                    context.schedule_task(job, f"large {n}", interval=9, text="x" * 300_000)
                )
                for n in range(6)
            ]
            await context.schedule_task(job, "small", interval=9)
            assert not any(task.done() for task in large)
            store.gate.set()
            await asyncio.gather(*large)
            assert len((await context.list_tasks(job)).tasks) == 7

    run(main())


def test_each_call_has_a_deadline_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyncette.opening.DEADLINE_MIN_S", 0.05)

    class Hanging(MemoryStore):
        async def write(self, batch: Sequence[Write], now: int, wake: Any = ()) -> list[Result]:
            if any(write.group == "job" for write in batch):
                await asyncio.Event().wait()
            return await super().write(batch, now, wake)

    async def main() -> None:
        app = app_on(Hanging())
        job = app.dynamic_task(name="job", lease_duration=0.1)(Bench().note)
        async with app.create() as context:
            errors = await asyncio.gather(
                *(context.schedule_task(job, str(n), interval=9) for n in range(3_000)),
                return_exceptions=True,
            )
        texts = {str(error) for error in errors}
        assert len(errors) == 3_000
        assert all("not answer" in text or "not answered" in text for text in texts)
        assert any("the call was not made" in text for text in texts)

    monkeypatch.setattr("pyncette.context.CLOSING_PATIENCE_S", 0.05)
    run(main())


def test_too_many_calls_that_wait_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyncette.calls.requests.CALLS_MAX", 3)

    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            answers = await asyncio.gather(
                *(context.schedule_task(job, str(n), interval=9) for n in range(10)),
                return_exceptions=True,
            )
            refused = [answer for answer in answers if isinstance(answer, Exception)]
            assert len(refused) == 7
            assert "wait for the store already" in str(refused[0])
            assert len((await context.list_tasks(job)).tasks) == 3

    run(main())


def test_a_store_that_is_slow_parks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyncette.opening.DEADLINE_MIN_S", 0.02)
    monkeypatch.setattr("pyncette.engine.loop.STORE_RETRY_DELAY_MAX_S", 0.01)

    class Slow(MemoryStore):
        """Claims of records take longer than the deadline, for some time."""

        slow = 12

        async def claim(
            self, sources: Sequence[Source], limit: int, now: int, *rest: Any, **options: Any
        ) -> Claimed:
            claimed = await super().claim(sources, limit, now, *rest, **options)
            if claimed.records and self.slow:
                self.slow -= 1
                await asyncio.sleep(0.03)
            return claimed

    async def main() -> None:
        app = app_on(Slow(), batch_size=1)
        ran: set[str] = set()
        all_ran = asyncio.Event()

        @app.dynamic_task(lease_duration=0.1)
        async def small(context: Context) -> None:
            ran.add(context.task.name)
            if len(ran) == 3:
                all_ran.set()

        async with app.create() as context:
            for number in range(3):
                await context.schedule_task(small, str(number), interval=0.01)
            loop = asyncio.create_task(context.run())
            await all_ran.wait()
            context.shutdown()
            await loop
            states = (await context.list_tasks(small)).tasks
            assert "parked" not in {state.state for state in states}

    run(main())
