"""The values that bulk calls take and return; the calls are methods of ``PyncetteContext``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final, cast

from pyncette.model import UNSET, Json
from pyncette.schedule import Schedule

FAILURES_KEPT_MAX: Final = 1_000
"""How many failures a ``BulkResult`` keeps; ``on_failure`` gets all of them."""


class Instance:
    """An instance that is to be scheduled: its name, and what ``schedule_task`` takes besides.

    Attributes:
        name: The name of the instance.
        options: Its options and arguments.
    """

    __slots__ = ("name", "options")

    def __init__(
        self,
        name: str,
        *,
        schedule: str | Schedule | None = None,
        interval: timedelta | float | None = None,
        execute_at: datetime | None = None,
        execute_in: timedelta = UNSET,
        timezone: str | tzinfo | None = None,
        start_at: datetime = UNSET,
        end_at: datetime = UNSET,
        jitter: timedelta = UNSET,
        args: Mapping[str, Any] = UNSET,
        **keywords: Json,
    ) -> None:
        """Describes an instance; it is checked when it is scheduled.

        Args:
            name: The name of the instance.
            schedule: Cron expression, or another schedule.
            interval: Distance between two runs.
            execute_at: The instant of the only run.
            execute_in: How long from now until the only run.
            timezone: The time zone of a cron expression.
            start_at: No run is planned before it.
            end_at: No run is planned after it.
            jitter: Each run waits for a part of it.
            args: The arguments of the task, as for ``PyncetteContext.schedule_task``.
            keywords: More of them.
        """
        self.name: str = name
        options = cast("dict[str, Any]", keywords)
        self.options: dict[str, Any] = options
        if args is not UNSET:
            options["args"] = args
        if schedule is not None:
            options["schedule"] = schedule
        if interval is not None:
            options["interval"] = interval
        if execute_at is not None:
            options["execute_at"] = execute_at
        if timezone is not None:
            options["timezone"] = timezone
        if execute_in is not UNSET:
            options["execute_in"] = execute_in
        if start_at is not UNSET:
            options["start_at"] = start_at
        if end_at is not UNSET:
            options["end_at"] = end_at
        if jitter is not UNSET:
            options["jitter"] = jitter

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"Instance({self.name!r}{options})"


@dataclass(frozen=True, slots=True)
class BulkFailure:
    """An instance that a bulk call could not handle.

    Attributes:
        name: The name of the instance.
        error: Why.
    """

    name: str
    error: Exception


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What a bulk call has done, or has done so far.

    Attributes:
        created: Instances that did not exist.
        updated: Instances that were changed.
        removed: Instances that were removed.
        unchanged: Instances that needed no change: they were as wanted, or not there to be
            removed.
        failed: Instances that could not be handled.
        failures: The first 1,000 of these.
    """

    created: int = 0
    updated: int = 0
    removed: int = 0
    unchanged: int = 0
    failed: int = 0
    failures: tuple[BulkFailure, ...] = ()

    @property
    def handled(self) -> int:
        """All instances, whatever became of them."""
        return self.created + self.updated + self.removed + self.unchanged + self.failed


Progress = Callable[[BulkResult], object]
"""Called after each batch with what was done so far."""

OnFailure = Callable[[BulkFailure], object]
"""Called with each instance that could not be handled."""


@dataclass(frozen=True, slots=True)
class RebalanceResult:
    """What ``rebalance`` has done, or has done so far.

    Attributes:
        partition_count: The number of partitions that instances are moved to.
        moved: Instances that this call has moved.
        waiting: Instances that are moved when their run has ended; as of the last look.
        stage: What the call does: ``"announcing"`` (it waits until all programs know of the move),
            ``"moving"``, ``"ending"`` (it waits until all know that the move is over, and looks
            for what came late), or ``"done"``.
    """

    partition_count: int
    moved: int = 0
    waiting: int = 0
    stage: str = "done"


RebalanceProgress = Callable[[RebalanceResult], object]
"""Called after each batch, and every five seconds of waiting, with what was done so far."""
