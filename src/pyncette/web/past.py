"""What the run history tells the dashboard; the only place that reads it.

Without history, every answer is None or empty, and the screens show what the states tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pyncette.context import PyncetteContext
from pyncette.task import Task


class Minute(NamedTuple):
    """What was run in a minute.

    Attributes:
        at: When the minute began, aware UTC.
        succeeded: Attempts that succeeded.
        failed: Attempts that failed.
        other: Attempts that ended otherwise.
        lateness_s: The largest lateness of a start, in seconds.
    """

    at: datetime
    succeeded: int
    failed: int
    other: int
    lateness_s: float


def is_kept(context: PyncetteContext) -> bool:
    """Returns whether this app keeps a history of its runs."""
    return False


async def minutes(
    context: PyncetteContext, since: datetime, tasks: Sequence[str] | None = None
) -> list[Minute] | None:
    """Returns what was run in each minute since then, oldest first; None: it is not kept."""
    return None


async def runs(
    context: PyncetteContext, task: Task, instance: str | None, limit: int
) -> list[Any] | None:
    """Returns the last runs, newest first; None: they are not kept."""
    return None
