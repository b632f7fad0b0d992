"""Builders for tests of the engine: an app on a clock that is moved by hand, and what it ran."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from tests.faulty_store import Faults, faulty

from pyncette import Context, Pyncette, PyncetteContext
from pyncette.memory import MemoryRepository
from pyncette.schedule import At, Schedule, dumps
from pyncette.store import Applied, Result, Store, Write
from pyncette.store.record import ANY, MEMBERS_GROUP, Put, Record, dump_args, dump_progress
from pyncette.store.record import Progress as Progress
from pyncette.task import Task
from pyncette.testing import VirtualClock

START = datetime(2026, 1, 5, 12, tzinfo=UTC)
"""A Monday, at noon."""

T = TypeVar("T")

PATIENCE_S = 300.0
"""After which, in real time, a test is taken for endless: some take a minute on a busy machine."""

every_poll = "PYNCETTE_TEST_EVERY_POLL" in os.environ
"""Whether the workers of a bench make polls that can find nothing new, too.

They take half of the time of the tests of the engine. So they are made on one interpreter only, in
the tests marked ``every_poll`` (tox -e exhaustive).
"""

loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
"""What ``run`` runs on; None: asyncio's own."""


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def after(number: float) -> datetime:
    """The instant so many seconds after the start."""
    return START + seconds(number)


def micros(number: float) -> int:
    """As ``after``, as the engine counts."""
    return int(after(0).timestamp()) * 1_000_000 + round(number * 1_000_000)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a test on an event loop, and sees that it leaves no task behind."""

    async def watched() -> T:
        result = await asyncio.wait_for(main, PATIENCE_S)
        for _ in range(5):
            await asyncio.sleep(0)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not left, f"tasks were left behind: {left}"
        return result

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(watched())


@dataclass
class Run:
    """One execution: when it began, and what it was told."""

    at: float
    scheduled_at: float
    name: str
    args: dict[str, Any]


class BenchFaults(Faults):
    """Faults of calls for records of tasks.

    Attributes:
        of_members: Whether writes by which workers say that they are alive count and fail as well.
    """

    of_members = False

    async def strike_writes(
        self,
        batch: Sequence[Write],
        now: int,
        wake: Collection[str],
        make: Callable[[Sequence[Write]], Awaitable[list[Result]]],
    ) -> list[Result]:
        if batch and not self.of_members and all(write.group == MEMBERS_GROUP for write in batch):
            return await make(batch)
        return await super().strike_writes(batch, now, wake, make)


class Bench:
    """An app in memory, on a virtual clock, whose store fails on demand."""

    def __init__(
        self,
        repository: MemoryRepository | None = None,
        *,
        polls_always: bool = False,
        **configuration: Any,
    ) -> None:
        self.clock = VirtualClock(START, every_poll=every_poll or polls_always)
        self.faults = BenchFaults()
        self.repository = MemoryRepository() if repository is None else repository
        self.runs: list[Run] = []
        self.configuration = configuration
        self.app = self.another_app()

    def another_app(self, **configuration: Any) -> Pyncette:
        """An app on the same store and clock, as of another worker."""
        return Pyncette(
            faulty(self.repository, self.faults),
            clock=self.clock,
            **{"worker_name": "worker", **self.configuration, **configuration},
        )

    async def note(self, context: Context) -> None:
        """A body that notes that it ran."""
        self.runs.append(
            Run(
                self.clock.monotonic(),
                (context.scheduled_at - START).total_seconds(),
                str(context.task),
                context.args,
            )
        )

    async def fail(self, context: Context) -> None:
        """A body that notes that it ran, and fails."""
        await self.note(context)
        raise RuntimeError("the body failed")

    @property
    def times(self) -> list[float]:
        """When executions began, in seconds since the start."""
        return [run.at for run in self.runs]

    @property
    def planned(self) -> list[float]:
        """What executions were planned for."""
        return [run.scheduled_at for run in self.runs]

    async def advance(self, number: float) -> None:
        await self.clock.advance(seconds(number))

    @asynccontextmanager
    async def running(
        self, app: Pyncette | None = None, **options: Any
    ) -> AsyncIterator[PyncetteContext]:
        """The app, opened, with its loop running in the background."""
        async with (app or self.app).create(**options) as context, looping(context):
            await self.clock.settle()
            yield context

    @asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        """The store itself, without faults; time stands still meanwhile."""
        with self.clock.hold():
            async with self.repository() as store:
                yield store

    async def record(self, task: Task, name: str | None = None) -> Record | None:
        """The record of a static task, of an instance, or of the instance of this name."""
        async with self.store() as store:
            group = task.group if name is None else task.locate(name)
            [record] = await store.get([(group, task.key if name is None else name)])
            return record

    async def plant(
        self,
        task: Task,
        *names: str,
        schedule: Schedule | str | None = None,
        planned: float = 0,
        due: float | None = None,
        token: str | None = None,
        unfinished_attempts: int = 0,
        state: str = "scheduled",
        args: str | None = None,
        progress: str | Progress | None = None,
    ) -> None:
        """Writes records as they are wanted, all at once; by default one-offs that are due.

        Args:
            names: Of the instances; none: the record of a static task.
        """
        if schedule is None:
            schedule = At(after(planned)) if names else task.plan
        if progress is None:
            progress = Progress(micros(planned), "incarnation")
        put = Put(
            micros(planned if due is None else due),
            state,
            token,
            unfinished_attempts,
            schedule if isinstance(schedule, str) else dumps(schedule),
            (dump_args({}) if names else "") if args is None else args,
            progress if isinstance(progress, str) else dump_progress(progress),
        )
        identities = [(task.locate(name), name) for name in names] or [(task.group, task.key)]
        async with self.store() as store:
            results = await store.write(
                [Write(*identity, put, ANY) for identity in identities], micros(0)
            )
        assert all(isinstance(result, Applied) for result in results)


@asynccontextmanager
async def looping(context: PyncetteContext) -> AsyncIterator[None]:
    """``context.run()`` in the background, shut down at the end."""
    loop = asyncio.create_task(context.run())
    try:
        yield
    finally:
        context.shutdown()
        await loop


def logged(caplog: pytest.LogCaptureFixture, *words: str) -> bool:
    """Whether some line of the log holds all these words."""
    return any(all(word in line for word in words) for line in lines(caplog))


def lines(caplog: pytest.LogCaptureFixture) -> Sequence[str]:
    return [record.getMessage() for record in caplog.records]
