"""How executions are run: side by side, or one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any

import pytest
from tests.support import run

from pyncette.executor import DefaultExecutor, SynchronousExecutor


async def body(done: list[int], number: int, waits: int = 0) -> None:
    for _ in range(waits):
        await asyncio.sleep(0)
    done.append(number)


def test_executors_take_and_ignore_the_options_of_others() -> None:
    async def main() -> None:
        async with DefaultExecutor(batch_size=5), SynchronousExecutor(redis_url="x"):
            pass

    run(main())


def test_work_begins_side_by_side_and_is_awaited_at_the_end() -> None:
    async def main() -> None:
        done: list[int] = []
        async with DefaultExecutor() as executor:
            for number, waits in enumerate((3, 1, 2)):
                await executor.spawn_task(body(done, number, waits))
            assert done == []
        assert sorted(done) == [0, 1, 2]

    run(main())


@pytest.mark.parametrize("waiting", [[], [0], [5, 6], range(0, 100, 2), range(100)])
def test_all_work_begins_though_some_of_it_never_ends(waiting: Any) -> None:
    async def main() -> None:
        done: list[int] = []
        gate = asyncio.Event()

        async def wait() -> None:
            await gate.wait()

        async with DefaultExecutor() as executor:
            for number in range(100):
                work = wait() if number in set(waiting) else body(done, number)
                await executor.spawn_task(work)
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(done) == 100 - len(waiting)
            gate.set()

    run(main())


class Ready:
    """Something that can be awaited and is no coroutine."""

    def __init__(self, done: list[int]) -> None:
        self.done = done

    def __await__(self) -> Generator[Any, None, None]:
        self.done.append(1)
        yield from asyncio.sleep(0).__await__()
        self.done.append(2)


@pytest.mark.parametrize("kind", [DefaultExecutor, SynchronousExecutor])
def test_anything_that_can_be_awaited_is_work(kind: Any) -> None:
    async def main() -> None:
        done: list[int] = []
        work: Awaitable[None] = Ready(done)
        async with kind() as executor:
            await executor.spawn_task(work)
        assert done == [1, 2]

    run(main())


def test_the_synchronous_executor_returns_when_the_work_is_done() -> None:
    async def main() -> None:
        done: list[int] = []
        async with SynchronousExecutor() as executor:
            await executor.spawn_task(body(done, 1, waits=5))
            assert done == [1]

    run(main())


def test_work_that_asks_for_its_own_cancellation_takes_no_other_along() -> None:
    async def main() -> None:
        done: list[int] = []

        async def cancel_oneself() -> None:
            current = asyncio.current_task()
            assert current is not None
            current.cancel()

        async with DefaultExecutor() as executor:
            await executor.spawn_task(cancel_oneself())
            for number in range(3):
                await executor.spawn_task(body(done, number, waits=number))
        assert sorted(done) == [0, 1, 2]

    run(main())
