"""The simulated store, when nothing goes wrong, against the storage contract; and the loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import copy_context
from random import Random
from typing import Any, TypeVar

import pytest
from tests.simulation.event_loop import PROCESS, SimulatedLoop, Stuck
from tests.simulation.plan import Plan
from tests.simulation.world import Client, World

from pyncette.testing.conformance import Place, StoreConformance

T = TypeVar("T")


class Near(Client):
    """A client without a network, on whatever event loop there is."""

    async def _call(self, name: str, make: Callable[[bool], T]) -> T:
        return make(False)


class RealLoop(SimulatedLoop):
    """What a world asks of a loop, on the one that runs."""

    def at(self, when: float, callback: Callable[..., object], *args: Any) -> None:
        asyncio.get_running_loop().call_soon(callback, *args)

    def start(self, process: str, main: Any, name: str | None = None) -> Any:
        return asyncio.get_running_loop().create_task(main)


class SimulatedRepository:
    """Opens one simulated store again and again."""

    def __init__(self) -> None:
        self._world = World(
            Plan(0, store_clock=False),
            RealLoop(Random(0)),  # type: ignore[abstract]
        )
        self._world.store.strict = False  # the suite asks more than the engine may

    @asynccontextmanager
    async def __call__(self, **configuration: Any) -> AsyncIterator[Client]:
        yield Near(self._world, "test")


class TestSimulatedStore(StoreConformance):
    wakes = True

    @pytest.fixture
    def place(self) -> Place:
        return Place(SimulatedRepository())


def _loop() -> SimulatedLoop:
    return SimulatedLoop(Random(1))  # type: ignore[abstract]


def test_time_passes_without_anybody_waiting_for_it() -> None:
    loop = _loop()
    loop.run_until_complete(asyncio.sleep(86_400))
    assert 86_400 <= loop.time() < 86_401
    loop.close()


def test_a_frozen_process_goes_on_where_it_was() -> None:
    loop = _loop()
    seen: list[tuple[str, float]] = []

    async def process(name: str) -> None:
        for _ in range(3):
            await asyncio.sleep(1)
            seen.append((name, round(loop.time())))

    loop.start("a", process("a"))
    loop.start("b", process("b"))
    loop.at(1.5, loop.freeze, "a")
    loop.at(10, loop.thaw, "a")
    loop.run_until_complete(asyncio.sleep(20))
    assert [time for name, time in seen if name == "a"] == [1, 10, 11]
    assert [time for name, time in seen if name == "b"] == [1, 2, 3]
    loop.close()


def test_of_a_crashed_process_nothing_is_heard_again() -> None:
    loop = _loop()
    seen: list[str] = []

    async def process() -> None:
        try:
            await asyncio.sleep(5)
        finally:
            seen.append("last words")

    async def parent() -> None:
        await asyncio.gather(process(), process())

    loop.start("a", parent())
    loop.at(1, loop.crash, "a")
    loop.run_until_complete(asyncio.sleep(20))
    assert not seen
    assert len(loop.tasks_of("a")) == 3
    loop.close()


def test_callbacks_of_one_process_keep_their_order() -> None:
    loop = _loop()
    seen: list[tuple[str, int]] = []

    def ask(name: str) -> None:
        for number in range(50):
            loop.call_soon(seen.append, (name, number))

    for name in "ab":
        context = copy_context()
        context.run(PROCESS.set, name)
        context.run(ask, name)
    loop.run_until_complete(asyncio.sleep(1))
    for name in "ab":
        assert [number for of, number in seen if of == name] == list(range(50))
    assert seen != sorted(seen)
    loop.close()


def test_what_can_never_come_about_is_told() -> None:
    loop = _loop()
    with pytest.raises(Stuck):
        loop.run_until_complete(loop.create_future())
    loop.close()
