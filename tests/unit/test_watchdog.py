"""The watchdog names what blocks the event loop, and measures how late the loop is."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support import Bench, run, seconds

from pyncette import Context, Pyncette, event_log, watchdog
from pyncette.events import Detail, Event, LoopAnswered, LoopBlocked, LoopGoesOn
from pyncette.memory import MemoryRepository

PATIENCE_S = 30


class Ears(logging.Handler):
    """Hears what the watchdog says, in its thread."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []
        self.named = threading.Event()
        self.still = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "event loop" not in message:
            return  # another event
        self.heard.append(message)
        (self.still if "is still" in self.heard[-1] else self.named).set()

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.heard if "blocked" in line]


@pytest.fixture
def ears() -> Iterator[Ears]:
    handler = Ears()
    event_log.logger.addHandler(handler)
    yield handler
    event_log.logger.removeHandler(handler)


def an_app(**options: Any) -> Pyncette:
    return Pyncette(MemoryRepository(), **{"block_warning": seconds(0.02), **options})


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pyncette watchdog"]


def test_a_body_that_blocks_the_event_loop_is_named_with_its_stack(ears: Ears) -> None:
    def deep_inside() -> None:
        ears.named.wait(PATIENCE_S)

    async def main() -> None:
        app = an_app()

        @app.dynamic_task()
        async def resize(context: Context) -> None:
            deep_inside()

        async with app.create() as context:
            await context.schedule_task(resize, "photo", execute_in=seconds(0))
            await context.run_until_idle()

    run(main())
    [warning] = ears.warnings
    assert "blocked for 0." in warning
    assert "by task resize." in warning
    assert "ears.named.wait(PATIENCE_S)" in warning
    assert "in deep_inside" in warning


def test_a_body_that_blocks_again_soon_is_not_named_again(ears: Ears) -> None:
    late = threading.Event()

    async def main() -> None:
        app = an_app()

        def note(event: LoopAnswered) -> None:
            if event.lag > seconds(0.02):
                late.set()

        app.on_event(note, LoopAnswered)

        @app.dynamic_task()
        async def resize(context: Context) -> None:
            if context.task.name == "first":
                ears.named.wait(PATIENCE_S)
            else:
                late.clear()
                late.wait(PATIENCE_S)

        @app.dynamic_task()
        async def other(context: Context) -> None:
            ears.named.clear()
            ears.named.wait(PATIENCE_S)

        async with app.create() as context:
            for name in ("first", "second", "third"):
                await context.schedule_task(resize, name, execute_in=seconds(0))
                await context.run_until_idle()
            await context.schedule_task(other, "x", execute_in=seconds(0))
            await context.run_until_idle()

    run(main())
    # A machine that stands still for a moment names code that is no task, too.
    named = [line for line in ears.warnings if " no task " not in line]
    assert ["task resize" in line for line in named] == [True, False]


def test_one_that_blocks_for_long_is_named_again_as_still_blocking(
    ears: Ears, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watchdog, "STILL_AFTER_S", 0.01)

    async def main() -> None:
        app = an_app()

        @app.dynamic_task()
        async def resize(context: Context) -> None:
            ears.still.wait(PATIENCE_S)

        async with app.running() as context:
            await context.schedule_task(resize, "x", execute_in=seconds(0))
            while not any("goes on" in line for line in ears.heard):  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    caplog.set_level(logging.INFO)
    run(main())
    assert "has been blocked" in ears.warnings[0]
    assert "is still blocked" in ears.warnings[1]


def test_code_beside_the_tasks_that_blocks_is_named_by_its_place(ears: Ears) -> None:
    async def main() -> None:
        before = set(watchers())  # one of another test may just be ending
        async with an_app().running():
            while before.issuperset(watchers()):  # noqa: ASYNC110
                await asyncio.sleep(0)
            ears.named.wait(PATIENCE_S)

    run(main())
    [warning] = ears.warnings
    assert "code that is no task of Pyncette" in warning
    assert "test_watchdog.py" in warning


def test_it_measures_how_late_the_event_loop_is() -> None:
    async def main() -> None:
        app = an_app()
        measured = asyncio.Event()
        loop = asyncio.get_running_loop()
        lags: list[float] = []

        def note(event: LoopAnswered) -> None:
            lags.append(event.lag.total_seconds())
            loop.call_soon_threadsafe(measured.set)

        app.on_event(note, LoopAnswered)
        async with app.running():
            await measured.wait()
        assert lags[0] >= 0

    run(main())


def test_it_watches_only_while_the_loop_of_the_app_runs() -> None:
    async def main() -> None:
        before = set(watchers())
        async with an_app().create() as context:
            assert before.issuperset(watchers())
            running = asyncio.create_task(context.run())
            while before.issuperset(watchers()):  # noqa: ASYNC110
                await asyncio.sleep(0)
            watching = set(watchers()) - before
            context.shutdown()
            await running
        for thread in watching:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in watching)

    run(main())


@pytest.mark.parametrize("by_hand", [True, False])
def test_nothing_is_watched_without_the_option_or_under_a_clock_that_is_moved_by_hand(
    by_hand: bool,
) -> None:
    async def main() -> None:
        before = set(watchers())
        app = Bench().app if by_hand else an_app(block_warning=None)
        async with app.running():
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert before.issuperset(watchers())

    run(main())


def test_it_ends_with_an_event_loop_that_is_closed_under_a_running_app() -> None:
    opening = an_app().running()

    async def main() -> None:
        await opening.__aenter__()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    for thread in watchers():
        assert thread.daemon
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()
    for thread in watchers():
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError), (True, TypeError)]
)
def test_the_option_is_checked(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="block_warning"):
        Pyncette(block_warning=value)


def test_a_handler_that_names_the_event_is_told_what_blocks_and_when_it_ends() -> None:
    told: list[Any] = []
    blocked, ended = threading.Event(), threading.Event()

    def note(event: LoopBlocked | LoopGoesOn) -> None:
        told.append(event)
        (blocked if isinstance(event, LoopBlocked) else ended).set()

    async def main() -> None:
        app = an_app(worker_name="me")
        app.on_event(note, LoopBlocked, LoopGoesOn)
        others: list[Event] = []
        app.on_event(others.append)

        @app.dynamic_task()
        async def resize(context: Context) -> None:
            blocked.wait(PATIENCE_S)

        async with app.running() as context:
            await context.schedule_task(resize, "photo", execute_in=seconds(0))
            while not ended.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert not any(isinstance(event, Detail) for event in others)

    run(main())
    first, *_, last = told
    assert (first.worker, first.still, first.task, first.what) == (
        "me",
        False,
        "resize",
        "task resize",
    )
    assert first.lag >= seconds(0.02)
    assert "blocked.wait(PATIENCE_S)" in first.stack
    assert isinstance(last, LoopGoesOn)
    assert last.lag >= first.lag
