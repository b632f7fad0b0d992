"""What the run history tells the dashboard; the only place that reads it.

Where no history is kept, the answers are None, and the screens show what the states tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from pyncette.context import PyncetteContext
from pyncette.model import RunOutcome, RunsPage, RunTotals
from pyncette.task import Task

MINUTE: Final = timedelta(minutes=1)
MINUTES: Final = 60
"""Minutes that the overview shows."""

FAILED: Final[frozenset[RunOutcome]] = frozenset({"failed", "timed_out"})
"""The outcomes that are failures."""


class Minute(NamedTuple):
    """What has ended in a minute.

    Attributes:
        done: Attempts that succeeded, or ended otherwise, but have not failed.
        failed: Attempts that failed.
        lateness_s: The largest lateness of a start, in seconds.
    """

    done: int
    failed: int
    lateness_s: float


async def totals(context: PyncetteContext, now: datetime) -> list[RunTotals] | None:
    """Returns what has ended in each of the last minutes, by task; None: it is not kept.

    Raises:
        StoreError: The store failed.
    """
    found = await context.run_totals(now - MINUTES * MINUTE)
    return found if found or _is_kept(context) else None


async def runs(
    context: PyncetteContext,
    task: Task | None,
    instance: str | None = None,
    cursor: str | None = None,
    failed: bool = False,
    limit: int = 20,
) -> RunsPage | None:
    """Returns a page of the last runs, newest first; None: they are not kept.

    Raises:
        StoreError: The store failed.
        ValueError: The cursor is not one of the history.
    """
    outcomes = FAILED if failed else None
    page = await context.runs(task, instance, outcomes=outcomes, cursor=cursor, limit=limit)
    if not page.runs and cursor is None and not _is_kept(context):
        some = await context.runs(limit=1) if failed else page
        return page if some.runs else None
    return page


def minutes_of(
    found: Sequence[RunTotals], now: datetime, sees: Callable[[str], bool]
) -> list[Minute]:
    """Returns the last minutes, oldest first, also those in which nothing has ended."""
    last = now.replace(second=0, microsecond=0)
    minutes = [Minute(0, 0, 0.0)] * MINUTES
    for one in found:
        at = MINUTES - 1 - round((last - one.minute) / MINUTE)
        if 0 <= at < MINUTES and sees(one.task):
            done, failed, lateness_s = minutes[at]
            minutes[at] = Minute(
                done + one.succeeded + one.other,
                failed + one.failed,
                max(lateness_s, one.lateness_max.total_seconds()),
            )
    return minutes


def _is_kept(context: PyncetteContext) -> bool:
    """Whether this program keeps it; if not, another one on the same store may do so."""
    return context._recorder is not None
