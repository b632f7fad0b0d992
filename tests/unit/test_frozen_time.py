"""Programs whose tests freeze the time of the machine, with freezegun or time-machine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pyncette import Context, Every, Pyncette, event_log
from pyncette.memory import MemoryRepository
from pyncette.task import Task
from pyncette.testing import VirtualClock

NEW_YEAR = datetime(2030, 1, 1, tzinfo=UTC)

Move = Callable[[datetime], object]


@contextmanager
def by_freezegun(**options: Any) -> Iterator[Move]:
    freezegun = pytest.importorskip("freezegun")
    with freezegun.freeze_time(NEW_YEAR.replace(tzinfo=None), **options) as frozen:
        yield lambda instant: frozen.move_to(instant.replace(tzinfo=None))


@contextmanager
def by_time_machine(**options: Any) -> Iterator[Move]:
    time_machine = pytest.importorskip("time_machine")
    with time_machine.travel(NEW_YEAR, **options) as traveller:
        yield traveller.move_to


FREEZES: dict[str, Callable[[], AbstractContextManager[Move]]] = {
    "freezegun": lambda: by_freezegun(real_asyncio=True),
    "freezegun-tick": lambda: by_freezegun(tick=True),
    "time-machine": lambda: by_time_machine(tick=False),
    "time-machine-tick": by_time_machine,
}


class Program:
    def __init__(self, **options: Any) -> None:
        self.app = Pyncette(MemoryRepository(), poll_interval=0.01, **options)
        self.ran: list[str] = []
        self.changed = asyncio.Event()

        @self.app.dynamic_task()
        async def job(context: Context) -> None:
            self.ran.append(context.task.name)
            self.changed.set()

        self.job: Task = job


@pytest.mark.parametrize("freeze", FREEZES.values(), ids=FREEZES.keys())
def test_what_is_due_by_the_frozen_time_runs(
    freeze: Callable[[], AbstractContextManager[Move]],
) -> None:
    async def main(move: Move) -> None:
        program = Program()
        async with program.app.create() as context:
            for days in (0, 1, 2):
                await context.schedule_task(
                    program.job, str(days), execute_at=NEW_YEAR + timedelta(days=days)
                )
            assert (await context.run_until_idle()).runs == 1
            move(NEW_YEAR + timedelta(days=1, hours=1))
            assert (await context.run_until_idle()).runs == 1
        assert program.ran == ["0", "1"]

    with freeze() as move:
        asyncio.run(main(move))


@pytest.mark.parametrize("freeze", FREEZES.values(), ids=FREEZES.keys())
def test_a_running_worker_notices_within_a_poll_that_the_time_was_moved(
    freeze: Callable[[], AbstractContextManager[Move]],
) -> None:
    async def main(move: Move) -> None:
        program = Program()
        async with program.app.running() as context:
            await context.schedule_task(
                program.job, "later", execute_at=NEW_YEAR + timedelta(days=1)
            )
            assert program.ran == []
            move(NEW_YEAR + timedelta(days=1))
            await program.changed.wait()
        assert program.ran == ["later"]

    with freeze() as move:
        asyncio.run(main(move))


class Ears(logging.Handler):
    """Hears what the watchdog says, in its thread."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []
        self.loop = asyncio.get_running_loop()
        self.said = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "event loop" not in record.getMessage():
            return  # another event
        self.heard.append(record.getMessage())
        self.loop.call_soon_threadsafe(self.said.set)


def test_freezegun_without_real_asyncio_freezes_the_event_loop_and_that_is_said_loudly() -> None:
    async def main() -> None:
        ears = Ears()
        event_log.logger.addHandler(ears)
        try:
            async with Program(block_warning=0.02).app.running():
                await ears.said.wait()
        finally:
            event_log.logger.removeHandler(ears)
        assert "The time of the event loop stands still" in ears.heard[0]
        assert "real_asyncio=True" in ears.heard[0]

    with by_freezegun():
        asyncio.run(main())


@pytest.mark.parametrize("freeze", [by_freezegun, *FREEZES.values()])
def test_a_virtual_clock_works_whatever_time_is_frozen(
    freeze: Callable[[], AbstractContextManager[Move]],
) -> None:
    async def main() -> None:
        clock = VirtualClock(datetime(2026, 1, 1, tzinfo=UTC))
        app = Pyncette(MemoryRepository(), clock=clock)
        ran = []

        @app.task(schedule=Every(timedelta(hours=1)))
        async def hourly(context: Context) -> None:
            ran.append(clock.now().hour)

        async with app.running():
            await clock.advance(timedelta(hours=3))
        assert ran == [1, 2, 3]

    with freeze():
        asyncio.run(main())
