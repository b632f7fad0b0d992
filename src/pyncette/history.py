"""The run history: each attempt of a task that has ended, kept in the store beside the records.

``use_history`` has the workers of an app write it. ``PyncetteContext.runs`` and ``run_totals`` read
it, in every process that opens the store.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from pyncette.app import Pyncette
from pyncette.errors import PyncetteException
from pyncette.model import Run, RunOutcome, RunsPage, RunTotals
from pyncette.options import at_least_one
from pyncette.parts import RunHistory
from pyncette.task_options import duration

__all__ = ["Run", "RunHistory", "RunOutcome", "RunTotals", "RunsPage", "use_history"]

KEEP: Final = timedelta(days=7)
"""For how long attempts are kept, if nothing else is said."""

KEEP_MIN: Final = timedelta(minutes=1)
KEEP_MAX: Final = timedelta(days=3_650)


def use_history(
    app: Pyncette, keep: timedelta | float = KEEP, per_task: int | None = None
) -> RunHistory:
    """Has the workers of an app write each attempt into the run history of its store.

    Call it once for an app, before it is opened. No run waits for it: attempts are written in
    batches, aside from claims and outcomes. Each costs the worker some 10 microseconds of CPU (on
    DynamoDB: 300). If the store is too slow, or not available for long, attempts are missing in the
    history; this is counted and logged, and has no other effect. What a worker has not written when
    it is killed is missing as well.

    Args:
        app: The app.
        keep: For how long an attempt is kept, and the totals of its minute; from a minute to ten
            years (a number: seconds). Workers of one store that keep it for different times remove
            what is older than the shortest.
        per_task: About how many attempts of a static task, or of all instances of a template
            together, are kept at most: whole minutes are removed. None: all that are not too old.

    Returns:
        The history, whose ``lost`` counts what is missing.

    Raises:
        ValueError: A value is out of range.
        TypeError: A value is of a wrong type.
        PyncetteException: It was called for this app before.
    """
    kept = duration("keep", keep)
    if not KEEP_MIN <= kept <= KEEP_MAX:
        raise ValueError(f"keep must be from a minute to ten years, not {keep!r}")
    if per_task is not None:
        at_least_one("per_task", per_task)
    if app._history is not None:
        raise PyncetteException("use_history was called for this app before: call it once")
    app._history = RunHistory(kept, per_task)
    return app._history
