"""Automatic heartbeats: they extend the leases of runs whose task has ``heartbeat=``.

One internal task serves all runs of a worker, so a run that needs no heartbeat pays nothing for it,
and a short run that might need one hardly anything.
"""

from __future__ import annotations

import logging
import math
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from pyncette.engine.alarm import Alarm
from pyncette.errors import LeaseLostException, describe
from pyncette.model import Heartbeat
from pyncette.task import Task

if TYPE_CHECKING:
    from pyncette.engine.execution import Execution
    from pyncette.engine.worker import Worker

logger = logging.getLogger(__name__)

_PART_OF_LEASE: Final = 3
"""So the lease is kept even if every second heartbeat fails."""


class BeatPlan(NamedTuple):
    """The heartbeats of a task.

    Attributes:
        every_s: Seconds between two of them.
        cancel_on_lease_lost: Whether the body is cancelled if its lease is lost.
    """

    every_s: float
    cancel_on_lease_lost: bool


def beat_plan(task: Task, default: Heartbeat | None) -> BeatPlan | None:
    """Returns the plan of a task; None if it has no automatic heartbeats.

    Args:
        task: The task.
        default: What holds for tasks that do not say; None: no heartbeats.
    """
    heartbeat = default if task.heartbeat is None else task.heartbeat
    if heartbeat is None or heartbeat is False:
        return None
    every = heartbeat.every or task.lease_duration / _PART_OF_LEASE
    return BeatPlan(every / timedelta(seconds=1), heartbeat.cancel_on_lease_lost)


def keeping_plan(lease: int) -> BeatPlan:
    """Returns the plan that keeps a lease of so many microseconds, whatever the task has."""
    return BeatPlan(lease / _PART_OF_LEASE / 1_000_000, cancel_on_lease_lost=False)


class Heartbeats:
    """Sends the heartbeats of one worker."""

    def __init__(self, worker: Worker) -> None:
        """Sends nothing before the first run begins."""
        self._worker = worker
        self._alarm = Alarm(worker.clock, worker.background)
        self._beating = False
        self._every_s = math.inf

    def begin(self, execution: Execution, plan: BeatPlan) -> None:
        """A run begins. Its heartbeats end with it."""
        execution.rarely().beat_at = execution.claimed_at + plan.every_s
        if plan.every_s < self._every_s:
            self._every_s = plan.every_s
            self._alarm.ring()
        if not self._beating:
            self._beating = True
            self._worker.background.start(self._beat(), "pyncette heartbeats")

    async def _beat(self) -> None:
        worker = self._worker
        try:
            while True:
                now = worker.clock.monotonic()
                soonest = math.inf
                for execution in list(worker.dispatcher.executions):
                    plan = execution.beats
                    if plan is None:
                        continue
                    rare = execution.rarely()
                    if rare.beat_at <= now:
                        self._send(execution, plan)
                    soonest = min(soonest, rare.beat_at)
                if soonest == math.inf:
                    return
                # A run that begins meanwhile is due after its own pause, at the soonest.
                pause_s = min(soonest - now, self._every_s)
                await self._alarm.wait_for(math.ceil(pause_s * 1_000_000))
        finally:
            self._alarm.close()
            self._beating = False
            self._every_s = math.inf

    def _send(self, execution: Execution, plan: BeatPlan) -> None:
        execution.rarely().beat_at = self._worker.clock.monotonic() + plan.every_s
        execution.beat(lambda error: self._answered(execution, plan, error))

    def _answered(self, execution: Execution, plan: BeatPlan, error: Exception | None) -> None:
        if error is None or execution.ended:
            return
        if not isinstance(error, LeaseLostException):
            logger.warning(
                "A heartbeat of %s failed, the next one is in %g s: %s",
                execution.label,
                plan.every_s,
                describe(error),
            )
        elif error.by_body:
            # It is meant to end its recurrence, or to plan it anew, and goes on.
            logger.debug("%s; it goes on, but its outcome will not be recorded", error)
        elif plan.cancel_on_lease_lost:
            logger.warning("%s; it is cancelled", error)
            execution.interrupt()
        else:
            logger.warning("%s; it goes on, but its outcome will not be recorded", error)
