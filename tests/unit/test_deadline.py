"""Every call to a store has a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from tests.faulty_store import Fail
from tests.support import START, Bench, run, seconds

from pyncette import Context, Pyncette
from pyncette.clock import StoreClock, SystemClock
from pyncette.engine.loop import MEASURE_INTERVAL_S
from pyncette.errors import StoreError, StoreMisconfiguredError, StoreUnavailableError
from pyncette.memory import MemoryStore
from pyncette.opening import deadline_for
from pyncette.store import EVERYTHING
from pyncette.store.deadline import DeadlineStore
from pyncette.task import Task
from pyncette.testing import VirtualClock


async def body(context: Context) -> None:
    """Does nothing."""


@pytest.mark.parametrize(
    ("leases", "deadline"),
    [([], 10), ([60], 10), ([60, 8], 4), ([0.5], 1), ([2], 1), ([3_600], 10)],
)
def test_it_is_half_the_shortest_lease_within_one_to_ten_seconds(
    leases: list[float], deadline: float
) -> None:
    tasks = [Task(name=f"{lease}", func=body, interval=1, lease_duration=lease) for lease in leases]
    assert deadline_for(tasks) == deadline


class Silent:
    """A store that never answers, and notes which calls were cancelled."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **options: Any) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.append(name)
                raise

        return call


CALLS: dict[str, Callable[[DeadlineStore], Awaitable[Any]]] = {
    "claim": lambda store: store.claim([], 1, 0, "t"),
    "write": lambda store: store.write([], 0),
    "get": lambda store: store.get([]),
    "scan": lambda store: store.scan("g", EVERYTHING, None, 1),
    "now": lambda store: store.now(),
    "watch": lambda store: store.watch([], lambda groups: None),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_not_answered_is_cancelled_and_its_outcome_unknown(name: str) -> None:
    async def main() -> None:
        silent = Silent()
        store: Any = DeadlineStore(silent, VirtualClock(START), 0.01)
        with pytest.raises(StoreUnavailableError, match=f"{name} was not answered within 0.01 s"):
            await CALLS[name](store)
        assert silent.cancelled == [name]

    run(main())


class Forsaken:
    """A store whose driver waits for something that was cancelled: not by its caller."""

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **options: Any) -> None:
            inner = asyncio.create_task(asyncio.sleep(0))
            inner.cancel()
            await inner

        return call


@pytest.mark.parametrize("name", CALLS)
def test_a_cancellation_that_nobody_has_asked_for_is_a_failure_of_the_store(name: str) -> None:
    async def main() -> None:
        store = DeadlineStore(Forsaken(), VirtualClock(), 60.0)
        with pytest.raises(StoreUnavailableError, match=f"{name} failed: what the store"):
            await CALLS[name](store)

    run(main())


def test_a_driver_whose_tasks_are_cancelled_does_not_end_the_worker() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=10)(bench.note)
        async with bench.running():
            bench.faults.next("claim", Fail(asyncio.CancelledError()))
            await bench.advance(30)
        assert bench.times == [10, 20, 30]

    run(main())


@pytest.mark.parametrize("name", CALLS)
def test_an_answer_in_time_is_passed_on(name: str) -> None:
    async def main() -> None:
        store = DeadlineStore(MemoryStore(), VirtualClock(START), 5)
        expected = await CALLS[name](MemoryStore())  # type: ignore[arg-type]
        assert type(await CALLS[name](store)) is type(expected)

    run(main())


def test_virtual_time_stands_still_while_a_call_is_under_way() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=1)(bench.note)
        async with bench.running() as context:
            real = context._store._store.claim

            async def slow(*arguments: Any, **options: Any) -> Any:
                before = bench.clock.now()
                await asyncio.sleep(0.01)
                assert bench.clock.now() == before
                return await real(*arguments, **options)

            context._store._store.claim = slow  # type: ignore[method-assign]
            await bench.advance(3)
        assert bench.times == [1, 2, 3]

    run(main())


class Skewed(MemoryStore):
    """A store whose clock is ahead of the machine's by an hour."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.again = asyncio.Event()

    async def now(self) -> int | None:
        self.asked += 1
        if self.asked > 2:
            self.again.set()
        return SystemClock().microseconds() + 3_600_000_000


def test_the_clock_of_the_store_is_looked_at_when_it_opens_and_now_and_then() -> None:
    async def main() -> None:
        store = Skewed()

        @asynccontextmanager
        async def factory(**configuration: Any) -> Any:
            yield store

        app = Pyncette(factory, poll_interval=timedelta(seconds=0.01))
        async with app.create() as context:
            ahead = context.clock.now() - SystemClock().now()
            assert abs(ahead - timedelta(hours=1)) < seconds(10)
            assert isinstance(context.clock, StoreClock)
            asked = store.asked
            loop = asyncio.create_task(context.run())
            context._worker.loop._measure_at -= MEASURE_INTERVAL_S
            await store.again.wait()
            context.shutdown()
            await loop
            assert store.asked == asked + 1

    run(main())


def test_a_store_without_a_clock_is_not_asked_again() -> None:
    async def main() -> None:
        asked = 0
        again = asyncio.Event()

        class Clockless(MemoryStore):
            async def now(self) -> int | None:
                nonlocal asked
                asked += 1
                if asked > 1:
                    again.set()
                return None

        @asynccontextmanager
        async def factory(**configuration: Any) -> Any:
            yield Clockless()

        async with Pyncette(factory, poll_interval=0.005).create() as context:
            context._worker.loop._measure_at = 0.0
            loop = asyncio.create_task(context.run())
            await again.wait()
            for _ in range(5):
                await context.clock.sleep(0.006)
            context.shutdown()
            await loop
        assert asked == 2

    run(main())


class RefusedError(StoreUnavailableError):
    """What a store tells itself by; no user knows it."""


class UnusableError(StoreMisconfiguredError):
    """Likewise."""


class OddError(StoreError):
    """Likewise."""


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("private", "public"),
    [
        (RefusedError, StoreUnavailableError),
        (UnusableError, StoreMisconfiguredError),
        (OddError, StoreError),
    ],
)
def test_an_error_of_a_class_of_the_store_itself_leaves_as_one_that_users_know(
    name: str, private: type[StoreError], public: type[StoreError]
) -> None:
    class Failing:
        def __getattr__(self, name: str) -> Any:
            async def fails(*arguments: Any, **options: Any) -> None:
                raise private("it is down") from OSError("no route")

            return fails

    async def main() -> None:
        store: Any = Failing()
        with pytest.raises(StoreError, match=r"^it is down$") as caught:
            await CALLS[name](DeadlineStore(store, SystemClock(), 5.0))
        assert type(caught.value) is public
        assert isinstance(caught.value.__cause__, OSError)
        assert "fails" in [frame.name for frame in caught.traceback]

    run(main())
