"""A whole worker that runs nothing by itself, and what it would make of one claimed record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from tests.simulation.workers import every

from pyncette import Context, Pyncette
from pyncette.engine.dispatch import Claim
from pyncette.engine.execution import Execution
from pyncette.engine.polling import NEVER
from pyncette.engine.worker import Worker
from pyncette.memory import memory_repository
from pyncette.schedule import dumps
from pyncette.store.record import Progress, Record, State, dump_progress
from pyncette.task import Task
from pyncette.testing.clocks import VirtualClock

SECOND: Final = 1_000_000
START: Final = datetime(2026, 1, 5, 12, tzinfo=UTC)
NOW: Final = int(START.timestamp()) * SECOND
LEASE_END: Final = NOW + 20 * SECOND
EVERY: Final = every(10 * SECOND)
FIRST: Final = Progress(NOW - SECOND, "old")
HELD: Final = Record(
    *("t", "k", LEASE_END, 5, "me:1:1", State.RUNNING, 1),
    *(dumps(EVERY), "1 {}", dump_progress(FIRST)),
)
"""What the worker has claimed."""


class Place(NamedTuple):
    """A worker that runs nothing, and an execution of its record.

    Attributes:
        worker: The worker.
        template: The template of the record.
        execution: Of the record.
        clock: Of the worker.
        runs: The keys of the records whose bodies have run.
        entered: Runs of the execution that are not started.
    """

    worker: Worker
    template: Task
    execution: Execution
    clock: VirtualClock
    runs: list[str]
    entered: list[Coroutine[Any, Any, None]]

    def enter(self, begun: bool = False) -> None:
        """Counts the execution among those of the worker; its run is not started."""
        run = self.worker.dispatcher.executions[self.execution] = self.execution.run()
        self.entered.append(run)
        if begun:
            self.execution.runner = asyncio.ensure_future(asyncio.sleep(60))

    def begin_body(self) -> None:
        """The body has begun, now."""
        self.execution._started = self.clock.microseconds()

    def leave(self) -> None:
        """Takes it out again."""
        self.worker.dispatcher.executions.pop(self.execution, None)
        for run in self.entered:
            run.close()

    def told_of(self) -> int:
        """When the worker claims from the group of the record next."""
        soonest = self.worker.sources.soonest()
        self.worker.sources.due(NEVER - 1)
        return soonest


@asynccontextmanager
async def place_of(
    record: Record = HELD, app_options: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Place]:
    """Opens an app with one template, and dispatches the record without starting it."""
    clock, runs = VirtualClock(START), list[str]()
    app = Pyncette(memory_repository, clock=clock, worker_name="me", **(app_options or {}))

    async def body(context: Context) -> None:
        runs.append(context.task.name)

    options = {"lease_duration": timedelta(seconds=20), **options}
    template = app.dynamic_task(name="t", **options)(body)
    async with app.create() as context:
        worker = context._worker
        worker.sources.refresh([template])
        worker.sources.due(NEVER - 1)
        batch = worker.dispatcher._batch(template, Claim(clock.monotonic(), 0.0, NOW))
        execution = worker.dispatcher._execution(batch, record, NOW)
        assert execution is not None
        # As if a batch were under way: what is queued stays there.
        worker.writes._writing = True
        try:
            place = Place(worker, template, execution, clock, runs, [])
            yield place
        finally:
            place.leave()
            if execution.runner is not None:
                execution.runner.cancel()
            worker.writes._take_all()
            worker.writes._writing = False
