"""A task that waits for something that a clock which a test moves cannot see."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from tests.support import START, logged, looping, run

from pyncette import Context, Heartbeat, Pyncette, with_heartbeat
from pyncette.memory import MemoryRepository
from pyncette.testing import VirtualClock

Wait = Callable[[VirtualClock], Awaitable[Any]]


class Day:
    """A daily task that waits, under a clock with little patience."""

    def __init__(self, wait: Wait, patience_s: float = 30, **options: Any) -> None:
        self.clock = VirtualClock(START, patience=timedelta(seconds=patience_s), **options)
        self.app = Pyncette(MemoryRepository(), clock=self.clock)
        self.began: list[float] = []
        self.ended: list[float] = []

        @self.app.task(schedule="0 13 * * *")
        async def daily(context: Context) -> None:
            self.began.append(self.clock.monotonic())
            await wait(self.clock)
            self.ended.append(self.clock.monotonic())

    async def passes(self, **by: float) -> None:
        async with self.app.create() as context:
            running = asyncio.create_task(context.run())
            try:
                await self.clock.advance(timedelta(**by))
            finally:
                running.cancel()  # and with it what runs


def soon() -> asyncio.Future[None]:
    """Done in a moment of real time."""
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.01, future.set_result, None)
    return future


async def for_a_timer(clock: VirtualClock) -> None:
    await asyncio.sleep(0.01)


async def for_a_future(clock: VirtualClock) -> None:
    await soon()


async def for_a_thread(clock: VirtualClock) -> None:
    done = threading.Event()
    asyncio.get_running_loop().call_later(0.01, done.set)
    await asyncio.to_thread(done.wait)


async def for_a_thread_of_anyio(clock: VirtualClock) -> None:
    done = threading.Event()
    asyncio.get_running_loop().call_later(0.01, done.set)
    await pytest.importorskip("anyio.to_thread").run_sync(done.wait)


async def for_a_socket(clock: VirtualClock) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        writer.write(b"answer")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b"answer"
        writer.close()


async def for_a_socket_of_anyio(clock: VirtualClock) -> None:
    anyio = pytest.importorskip("anyio")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        writer.write(b"answer")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with await anyio.connect_tcp(host, port) as stream:
            assert await stream.receive() == b"answer"


async def in_a_gathering(clock: VirtualClock) -> None:
    await asyncio.gather(soon(), for_a_timer(clock))


async def in_a_group(clock: VirtualClock) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(for_a_future(clock))


async def in_a_group_of_anyio(clock: VirtualClock) -> None:
    anyio = pytest.importorskip("anyio")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(for_a_future, clock)


async def with_a_timeout(clock: VirtualClock) -> None:
    async with asyncio.timeout(30):
        await asyncio.wait_for(for_a_future(clock), 30)


async def in_a_task(clock: VirtualClock) -> None:
    await asyncio.create_task(for_a_future(clock))


async def in_a_wait(clock: VirtualClock) -> None:
    await asyncio.wait([asyncio.create_task(for_a_future(clock))])


async def behind_a_shield(clock: VirtualClock) -> None:
    await asyncio.shield(for_a_future(clock))


async def in_a_generator(clock: VirtualClock) -> None:
    async def values() -> AsyncIterator[int]:
        await soon()
        yield 1

    async for _ in values():
        pass


async def with_heartbeats(clock: VirtualClock) -> None:
    class Task:
        lease_duration = timedelta(seconds=60)

    class Beating:
        task = Task()
        app_context = type("App", (), {"clock": clock})()

        async def heartbeat(self) -> None: ...

    await with_heartbeat()(lambda context: for_a_future(clock))(Beating())


@pytest.mark.parametrize(
    "wait",
    [
        for_a_timer,
        for_a_future,
        for_a_thread,
        for_a_thread_of_anyio,
        for_a_socket,
        for_a_socket_of_anyio,
        in_a_gathering,
        in_a_group,
        in_a_group_of_anyio,
        with_a_timeout,
        in_a_task,
        in_a_wait,
        behind_a_shield,
        in_a_generator,
        with_heartbeats,
    ],
)
def test_time_stands_still_while_a_task_waits_for_something_outside(wait: Wait) -> None:
    if wait.__name__.endswith("anyio"):
        pytest.importorskip("anyio")

    async def main() -> None:
        day = Day(wait)
        await day.passes(days=2)
        assert day.began == day.ended == [3600.0, 3600.0 + 86_400]

    run(main())


async def on_the_clock(clock: VirtualClock) -> None:
    await clock.sleep(10)


async def on_the_clock_in_a_group(clock: VirtualClock) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(clock.sleep(10))
        tasks.create_task(clock.sleep(5))


async def for_an_event(clock: VirtualClock) -> None:
    event = asyncio.Event()

    async def later() -> None:
        await clock.sleep(10)
        event.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(later())
        await event.wait()


async def for_a_queue(clock: VirtualClock) -> None:
    queue = asyncio.Queue[int]()

    async def later() -> None:
        await clock.sleep(10)
        queue.put_nowait(1)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(later())
        await queue.get()


async def for_an_event_of_anyio(clock: VirtualClock) -> None:
    anyio = pytest.importorskip("anyio")

    event = anyio.Event()

    async def later() -> None:
        await clock.sleep(10)
        event.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(later)
        await event.wait()


@pytest.mark.parametrize(
    "wait",
    [
        on_the_clock,
        on_the_clock_in_a_group,
        for_an_event,
        for_a_queue,
        for_an_event_of_anyio,
    ],
)
def test_time_moves_on_while_a_task_waits_for_other_work_of_the_process(wait: Wait) -> None:
    if wait.__name__.endswith("anyio"):
        pytest.importorskip("anyio")

    async def main() -> None:
        day = Day(wait)
        await day.passes(days=1)
        assert (day.began, day.ended) == ([3600.0], [3610.0])

    run(main())


def test_a_task_that_waits_for_ever_is_an_error_that_names_it_and_the_line() -> None:
    async def main() -> None:
        day = Day(lambda clock: asyncio.get_running_loop().create_future(), patience_s=0.01)
        with pytest.raises(RuntimeError, match=r"task daily has waited for 0:00:00\.01") as caught:
            await day.passes(days=30)
        assert day.clock.monotonic() == 3600.0
        assert "await wait(self.clock)" in str(caught.value)
        assert "test_waits.py" in str(caught.value)

    run(main())


def test_a_long_sleep_on_the_event_loop_is_an_error_at_once() -> None:
    async def main() -> None:
        day = Day(lambda clock: asyncio.sleep(3600))
        with pytest.raises(
            RuntimeError, match=r"would wait for 3\d\d\d\.\d s of real time"
        ) as caught:
            await day.passes(days=30)
        assert day.began == [3600.0]
        assert "clock.sleep" in str(caught.value)

    run(main())


def test_the_clock_says_that_it_waits(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyncette.testing.clocks._WORD_AFTER_S", 0.002)

    async def main() -> None:
        gate = asyncio.get_running_loop().create_future()
        day = Day(lambda clock: gate)
        running = asyncio.create_task(day.passes(days=1))
        while not logged(caplog, "stands still"):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        gate.set_result(None)
        await running

    run(main())
    assert logged(caplog, "because task daily waits")


def test_a_clock_that_does_not_wait_for_tasks_moves_on() -> None:
    async def main() -> None:
        gate = asyncio.get_running_loop().create_future()
        day = Day(lambda clock: gate, waits_for_tasks=False)
        day.app._heartbeat = Heartbeat()
        async with day.app.create() as context, looping(context):
            await day.clock.advance(timedelta(hours=2))
            assert day.clock.monotonic() == 7200.0
            gate.set_result(None)
        assert day.began == [3600.0]

    run(main())


def test_a_hold_that_is_not_released_names_the_tasks_that_run() -> None:
    async def hold(clock: VirtualClock) -> None:
        with clock.hold():
            await asyncio.Event().wait()

    async def main() -> None:
        day = Day(hold, patience_s=0.01)
        with pytest.raises(RuntimeError, match=r"has been held .* Tasks that run: daily"):
            await day.passes(hours=2)

    run(main())
