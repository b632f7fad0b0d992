"""Detects tasks that are late: how long records wait, and who is behind its schedule.

A task that was disabled for a day, or that takes longer than its interval, catches up one
occurrence after the other. This may take hours, so the user should be told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

from pyncette.clock import Clock
from pyncette.engine.occurrences import overdue_count
from pyncette.errors import printable
from pyncette.schedule import Schedule
from pyncette.store import Identity
from pyncette.task import Task

logger = logging.getLogger(__name__)

BACKLOG_AGE_MIN: Final = 60_000_000
"""Microseconds by which an occurrence is overdue before it counts as a backlog."""

WARNING_PAUSE_INITIAL_S: Final = 60.0
WARNING_PAUSE_MAX_S: Final = 3_600.0


class Waits:
    """How long the soonest due record of each task has waited for a worker."""

    def __init__(self, tell: Callable[[Task, int], None]) -> None:
        """Starts without any task.

        Args:
            tell: Called with a task and the age in microseconds, if that has changed.
        """
        self._tell = tell
        self._told: dict[Task, int] = {}

    def note(self, soonest: Iterable[tuple[Task, int]], now: int) -> None:
        """Tells what has changed.

        Args:
            soonest: For each source, its task and when its soonest record is due.
            now: The time.
        """
        ages: dict[Task, int] = {}
        for task, due_at in soonest:
            ages[task] = max(ages.get(task, 0), now - due_at)
        for task in self._told.keys() - ages.keys():
            ages[task] = 0  # it is paused or disabled
        for task, age in ages.items():
            if self._told.get(task) != age:
                self._told[task] = age
                self._tell(task, age)


class _Backlog:
    def __init__(self, identity: Identity, age: int) -> None:
        self.identity = identity
        self.age = age
        self.warn_at = 0.0
        self.pause_s = WARNING_PAUSE_INITIAL_S


class Backlogs:
    """For each task that is behind, its record that is furthest behind."""

    def __init__(self, clock: Clock, tell: Callable[[Task, Identity, int, int], None]) -> None:
        """Starts without any task that is behind.

        Args:
            clock: Paces the warnings.
            tell: Called with a task, its record that is furthest behind, the number of overdue
                occurrences of this (0: it has caught up), and the age of the oldest.
        """
        self._clock = clock
        self._tell = tell
        self.behind: dict[Task, _Backlog] = {}

    def note(
        self, task: Task, identity: Identity, schedule: Schedule, planned: int, now: int
    ) -> None:
        """A record was claimed for an occurrence that was planned for this instant."""
        backlog = self.behind.get(task)
        # What waits for its jitter is not overdue.
        age = now - schedule.due(planned, *identity)
        following = schedule.following(planned) if age >= BACKLOG_AGE_MIN else None
        if following is None or schedule.due(following, *identity) > now:
            if backlog is not None and backlog.identity == identity:
                del self.behind[task]
                self._tell(task, identity, 0, 0)
                logger.info("%s has caught up with its schedule", printable(task))
            return
        if backlog is None:
            backlog = self.behind[task] = _Backlog(identity, age)
        elif backlog.identity != identity and backlog.age >= age:
            return
        backlog.identity, backlog.age = identity, age
        monotonic = self._clock.monotonic()
        count = overdue_count(schedule, planned, now)
        self._tell(task, identity, count, age)
        if monotonic < backlog.warn_at:
            return
        backlog.warn_at = monotonic + backlog.pause_s
        backlog.pause_s = min(2 * backlog.pause_s, WARNING_PAUSE_MAX_S)
        logger.warning(
            "%s is behind its schedule: about %d occurrences of '%s' are overdue, the oldest by "
            "%.0f s. They run one after the other, with pauses. catch_up=CatchUp.LATEST (or "
            "fast_forward=True) runs them as one, misfire_grace=… skips those that are too late.",
            printable(task),
            count,
            printable(identity[1]),
            age / 1_000_000,
        )
