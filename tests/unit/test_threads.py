"""Plain functions as tasks: they run in threads, and the event loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.support import Bench, after, logged, run, seconds

from pyncette import Context, FailureMode, Pyncette, Retry
from pyncette.body import runs_in_thread
from pyncette.clock import SystemClock
from pyncette.errors import TRACEBACK_CHARACTERS_MAX, LeaseLostException
from pyncette.memory import MemoryRepository
from pyncette.threads import Threads
from pyncette.utils import with_heartbeat


async def coroutine(context: Context) -> None: ...


async def two(extra: object, context: Context) -> None: ...


def plain(context: Context) -> None: ...


def says_awaitable(context: Context) -> Awaitable[None]:
    return coroutine(context)


def says_future(context: Context) -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


@functools.wraps(coroutine)
def wrapper(context: Context) -> Any:
    return coroutine(context)


@functools.wraps(plain)
def plain_wrapper(context: Context) -> None:
    plain(context)


class Asynchronous:
    async def __call__(self, context: Context) -> None: ...


class Plain:
    def __call__(self, context: Context) -> None: ...

    def method(self, context: Context) -> None: ...


@pytest.mark.parametrize(
    "func",
    [
        coroutine,
        functools.partial(two, 1),
        functools.partial(says_awaitable),
        says_awaitable,
        says_future,
        wrapper,
        Asynchronous(),
    ],
)
def test_what_is_asynchronous_runs_in_the_event_loop(func: Any) -> None:
    assert not runs_in_thread(func)


@pytest.mark.parametrize(
    "func",
    [
        plain,
        plain_wrapper,
        functools.partial(plain),
        functools.partial(functools.partial(plain)),
        lambda context: None,
        Plain(),
        Plain().method,
        print,
    ],
)
def test_what_is_plain_runs_in_a_thread(func: Any) -> None:
    assert runs_in_thread(func)


def test_the_event_loop_goes_on_while_a_plain_function_runs() -> None:
    async def main() -> None:
        bench = Bench()
        go_on = threading.Event()
        threads: list[int] = []

        @bench.app.task(name="blocking", interval=1)
        def blocking(context: Context) -> None:
            threads.append(threading.get_ident())
            assert go_on.wait(30)

        @bench.app.task(name="other", interval=1)
        async def other(context: Context) -> None:
            threads.append(threading.get_ident())
            go_on.set()

        async with bench.running():
            await bench.advance(1)
        here = threading.get_ident()
        assert len(threads) == 2
        assert sum(thread == here for thread in threads) == 1

    run(main())


def test_a_plain_function_sees_context_fixtures_and_context_variables() -> None:
    async def main() -> None:
        bench = Bench()
        tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")
        seen: list[object] = []

        @bench.app.middleware
        async def with_tenant(context: Context, rest: Callable[[], Awaitable[None]]) -> None:
            tenant.set("ada")
            await rest()
            seen.append(tenant.get())

        @bench.app.dynamic_task()
        def job(context: Context) -> None:
            seen.append((tenant.get(), context.args["n"], context.attempt, context.item))
            tenant.set("changed in the thread")

        async with bench.running(context_items={"item": 7}) as context:
            await context.schedule_task(job, "x", execute_at=after(1), n=5)
            await bench.advance(1)
        assert seen == [("ada", 5, 1, 7), "ada"]

    run(main())


def test_an_awaitable_that_a_plain_function_returns_is_awaited_in_the_event_loop() -> None:
    async def main() -> None:
        bench = Bench()
        here = threading.get_ident()
        seen: list[bool] = []

        async def rest() -> None:
            seen.append(threading.get_ident() == here)

        def job(context: Context):  # type: ignore[no-untyped-def]
            seen.append(threading.get_ident() == here)
            return rest()

        bench.app.task(interval=1)(job)
        async with bench.running():
            await bench.advance(1)
        assert seen == [False, True]

    run(main())


class Asks:
    def __call__(self, context: Context, *, more: int = 0) -> None:
        asyncio.get_running_loop()


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (Asks(), "'Asks.__call__' is a plain function"),
        (functools.partial(Asks.__call__, Asks()), "'Asks.__call__' is a plain function"),
        (functools.partial(Asks(), more=1), "'Asks.__call__' is a plain function"),
    ],
    ids=["object", "partial", "partial of an object"],
)
def test_the_name_of_a_plain_function_is_not_its_address(
    body: Callable[[Context], None], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", failure_mode=FailureMode.COMMIT)(body)
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=after(1))
            await bench.advance(2)

    run(main())
    assert name in caplog.text
    assert "object at 0x" not in caplog.text


@pytest.mark.parametrize("ask", [asyncio.get_running_loop, asyncio.get_event_loop])
def test_a_plain_function_that_needs_the_event_loop_is_told_how_to_be_called_there(
    ask: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    def plain(context: Context) -> None:
        ask()

    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", failure_mode=FailureMode.COMMIT)(plain)
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=after(1))
            await bench.advance(2)

    run(main())
    advice = caplog.text.partition("where no event loop runs. ")[2]
    assert advice.startswith("Declare it with 'async def'.")
    assert "annotate it with '-> Awaitable[None]'" in advice


@pytest.mark.parametrize("error", [OSError("no such thing"), StopIteration("over")])
def test_an_exception_of_a_plain_function_is_the_failure_of_its_run(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="good", interval=1)(bench.note)

        @bench.app.dynamic_task(failure_mode=FailureMode.COMMIT)
        def job(context: Context) -> None:
            raise error

        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=1)
            await bench.advance(2)
            state = await context.get_task(job, "x")
        assert state is not None
        assert type(error).__name__ in str(state.last_error)
        assert len(bench.runs) == 2

    run(main())


def test_no_more_functions_run_at_once_than_there_may_be_threads() -> None:
    async def main() -> None:
        bench = Bench()
        lock = threading.Lock()
        running, most, done = 0, 0, 0
        pause = threading.Event()

        def job(context: Context) -> None:
            nonlocal running, most, done
            with lock:
                running += 1
                most = max(most, running)
            pause.wait(0.002)
            with lock:
                running -= 1
                done += 1

        app = Pyncette(MemoryRepository(), clock=bench.clock, thread_limit=3)
        template = app.dynamic_task()(job)
        async with bench.running(app) as context:
            for number in range(20):
                await context.schedule_task(template, str(number), execute_at=after(1))
            await bench.advance(1)
        assert done == 20
        assert 1 < most <= 3

    run(main())


def test_what_would_have_to_wait_for_a_thread_is_not_claimed() -> None:
    async def main() -> None:
        bench = Bench()
        app = Pyncette(bench.repository, clock=bench.clock, thread_limit=2)
        loop = asyncio.get_running_loop()
        begun = asyncio.Semaphore(0)
        go_on, ran = threading.Event(), []

        def body(context: Context) -> None:
            loop.call_soon_threadsafe(begun.release)
            assert go_on.wait(30)
            ran.append(context.attempt)

        policy = Retry(attempts=1)
        first = app.dynamic_task(name="first", timeout=seconds(60), retry=policy)(body)
        second = app.dynamic_task(name="second", timeout=seconds(60), retry=policy)(body)
        other = app.dynamic_task(name="other")(bench.note)
        async with app.running() as context:
            for number in range(5):
                for task in (first, second, other):
                    await context.schedule_task(task, str(number), execute_at=after(0))
            for _ in range(2):
                await begun.acquire()
            states = [
                state.state
                for task in (first, second)
                for state in (await context.list_tasks(task)).tasks
            ]
            assert sorted(states) == ["running"] * 2 + ["scheduled"] * 8
            go_on.set()
            for _ in range(8):
                await begun.acquire()
        assert ran == [1] * 10
        assert len(bench.runs) == 5

    run(main())


def test_a_thread_that_another_task_could_have_had_and_did_not_need_is_used_at_once() -> None:
    async def main() -> None:
        bench = Bench()
        app = Pyncette(bench.repository, clock=bench.clock, thread_limit=1)
        ran: list[str] = []

        def body(context: Context) -> None:
            ran.append(context.task.name)

        # The first claim asks all of them, in any order, and has one thread to give.
        templates = [app.dynamic_task(name=str(number))(body) for number in range(20)]
        async with app.create() as context:
            await context.schedule_task(templates[7], "one", execute_at=after(0))
        async with bench.running(app):
            await bench.clock.settle()
            assert ran == ["one"]

    run(main())


def test_what_a_function_has_done_counts_although_closing_did_not_want_to_wait() -> None:
    async def main() -> None:
        repository = MemoryRepository()
        app = Pyncette(repository, shutdown_timeout=0)
        loop = asyncio.get_running_loop()
        begun, go_on = asyncio.Event(), threading.Event()

        @app.dynamic_task()
        def job(context: Context) -> None:
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(30)

        async with app.running() as context:
            await context.schedule_task(job, "x", execute_at=after(0))
            await begun.wait()
            loop.call_later(0.05, go_on.set)
        async with app.create() as context:
            assert await context.get_task(job, "x") is None

    run(main())


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), ("3", ValueError)])
def test_a_bad_thread_limit_is_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="thread_limit must be a whole number of at least 1"):
        Pyncette(thread_limit=value)


def test_a_function_that_waited_for_a_thread_extends_its_lease_or_does_not_run() -> None:
    class Waiting:
        def __init__(self, lost: bool) -> None:
            self.lost = lost
            self.beats = 0

        async def heartbeat(self) -> None:
            self.beats += 1
            if self.lost:
                raise LeaseLostException(None)  # type: ignore[arg-type]

    async def main() -> None:
        threads = Threads(1, SystemClock())
        go_on = threading.Event()
        ran: list[Waiting] = []

        def first(context: Waiting) -> None:
            assert go_on.wait(30)

        at_once, later, lost = Waiting(False), Waiting(False), Waiting(True)
        runs = [
            asyncio.create_task(threads.run(first, at_once)),
            asyncio.create_task(threads.run(ran.append, later)),
            asyncio.create_task(threads.run(ran.append, lost)),
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        go_on.set()
        results = await asyncio.gather(*runs, return_exceptions=True)
        assert isinstance(results[2], LeaseLostException)
        assert ran == [later]
        assert [at_once.beats, later.beats, lost.beats] == [0, 1, 1]
        threads.close()

    run(main())


class Freeing(logging.Handler):
    """Sets an event when the log says that a task is cancelled."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self._event = event

    def emit(self, record: logging.LogRecord) -> None:
        if "is cancelled" in record.getMessage():
            self._event.set()


@pytest.mark.parametrize("levels", [1, 500])
def test_the_traceback_of_a_timeout_shows_where_the_plain_function_stood(
    levels: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "pyncette.engine.timeouts")

    async def main() -> None:
        begun, free = threading.Event(), threading.Event()

        def deep(levels: int) -> None:
            if levels:
                deep(levels - 1)
                return
            begun.set()
            assert free.wait(30)

        def job(context: Context) -> None:
            deep(levels)

        app = Pyncette(MemoryRepository())
        task = app.dynamic_task(timeout=seconds(0.2), failure_mode=FailureMode.COMMIT)(job)
        log = logging.getLogger("pyncette.engine.timeouts")
        log.addHandler(handler := Freeing(free))
        try:
            async with app.create() as context:
                await context.schedule_task(task, "x", interval=seconds(3_600))
                await context.trigger(task, "x")
                await context.run_until_idle()
                assert begun.is_set()
                state = await context.get_task(task, "x")
        finally:
            log.removeHandler(handler)
        assert state is not None
        told = state.last_traceback or ""
        assert told.index("TimeoutError") < told.index("its function stood here:")
        assert "in deep" in told
        assert "free.wait" in told
        assert "pyncette/threads.py" not in told.partition("stood here:")[2]
        assert len(told) <= TRACEBACK_CHARACTERS_MAX

    run(main())


def test_a_timeout_ends_the_run_when_its_thread_has_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        app = Pyncette(MemoryRepository())
        go_on, begun = threading.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        ended = []

        @app.dynamic_task(timeout=seconds(0.02), failure_mode=FailureMode.COMMIT)
        def job(context: Context) -> None:
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(30)
            ended.append(True)

        async with app.running() as context:
            await context.schedule_task(job, "x", interval=seconds(0.01))
            await begun.wait()
            await asyncio.sleep(0.05)
            assert not ended
            state = await context.get_task(job, "x")
            assert state is not None
            assert state.state == "running"
            go_on.set()
        assert ended

    run(main())
    assert logged(caplog, "Task job:x failed", "counts as done")


def test_closing_waits_for_threads() -> None:
    async def main() -> None:
        app = Pyncette(MemoryRepository(), shutdown_timeout=0.01)
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        ended = []

        @app.dynamic_task()
        def job(context: Context) -> None:
            loop.call_soon_threadsafe(begun.set)
            threading.Event().wait(0.05)
            ended.append(True)

        async with app.running() as context:
            await context.schedule_task(job, "x", execute_at=after(0))
            await begun.wait()
        assert ended == [True]

    run(main())


def test_a_plain_function_may_have_heartbeats() -> None:
    async def main() -> None:
        bench = Bench()
        ran = []

        @bench.app.task(interval=1)
        @with_heartbeat()
        def job(context: Context) -> None:
            ran.append(threading.get_ident())

        async with bench.running():
            await bench.advance(1)
        assert ran
        assert ran[0] != threading.get_ident()

    run(main())
