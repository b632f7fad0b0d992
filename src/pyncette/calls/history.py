"""Reading the run history."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, Final

from pyncette.calls.requests import Requests
from pyncette.clock import from_microseconds
from pyncette.errors import ERROR_CHARACTERS_MAX, PyncetteException, printable
from pyncette.model import RUN_OUTCOMES, Run, RunOutcome, RunsPage, RunTotals
from pyncette.options import at_least_one
from pyncette.schedule import instant_of
from pyncette.store.deadline import DeadlineHistory
from pyncette.store.history import RunFilter, RunRow, TotalRow, place_of
from pyncette.store.record import EARLIEST_INSTANT, LATEST_INSTANT
from pyncette.task import Task

LIMIT_MAX: Final = 1_000
"""Maximum attempts in one page."""

LOOKS_MAX: Final = 20
"""Maximum pages of the store that are read for one, where few of the rows match."""


async def runs(
    requests: Requests,
    task: Task | None,
    instance_name: str | None,
    outcomes: Collection[RunOutcome] | None,
    since: datetime | None,
    until: datetime | None,
    cursor: str | None,
    limit: int,
) -> RunsPage:
    """Returns a page of the run history; see ``PyncetteContext``."""
    if task is not None:
        requests.check_declared(task)
    where = _filter_of(task, instance_name, outcomes, since, until)
    limit = min(at_least_one("limit", limit), LIMIT_MAX)
    if cursor is not None:
        if not isinstance(cursor, str):
            raise TypeError(f"cursor must be that of a page of runs, not {cursor!r}")
        place_of(cursor)
    history = requests.store.history
    found: list[Run] = []
    if history is None:
        return RunsPage(found, None)
    for _ in range(LOOKS_MAX):
        rows, cursor = await history.runs(where, cursor, limit - len(found))
        found += [run for row in rows if (run := _run_of(row)) is not None]
        if cursor is None or len(found) == limit:
            break
    return RunsPage(found, cursor)


async def run_totals(
    requests: Requests, since: datetime, until: datetime | None, task: Task | None
) -> list[RunTotals]:
    """Returns the totals of minutes; see ``PyncetteContext``."""
    if task is not None:
        requests.check_declared(task)
    first, end = _instant("since", since), _instant("until", until)
    if first is None:
        raise TypeError("since must be a datetime, not None")
    history = requests.store.history
    if history is None:
        return []
    name = None if task is None else task.template.name
    found = await history.totals(name, first, LATEST_INSTANT if end is None else end)
    return [totals for row in found[::-1] if (totals := _totals_of(row)) is not None]


def required_history(history: DeadlineHistory | None, store: str) -> DeadlineHistory:
    """Refuses a store that cannot keep a run history.

    Raises:
        PyncetteException: It cannot.
    """
    if history is None:
        raise PyncetteException(
            f"The store of this app ({store}) cannot keep a run history: remove use_history, or "
            "use a store that can, as all those of Pyncette do"
        )
    return history


def _filter_of(
    task: Task | None,
    instance_name: str | None,
    outcomes: Collection[RunOutcome] | None,
    since: datetime | None,
    until: datetime | None,
) -> RunFilter:
    if task is None:
        if instance_name is not None:
            raise ValueError(
                f"instance_name is {instance_name!r}, but no task is given: pass its template"
            )
        name = None
    else:
        name, instance_name = _names_of(task, instance_name)
    if outcomes is not None:
        if isinstance(outcomes, (str, bytes)) or not isinstance(outcomes, Collection):
            raise TypeError(
                f"outcomes must be a collection of names, such as {{'failed'}}, not {outcomes!r}"
            )
        for outcome in outcomes:
            if outcome not in RUN_OUTCOMES:
                raise ValueError(
                    f"There is no outcome {outcome!r}; there are {', '.join(RUN_OUTCOMES)}"
                )
    return RunFilter(
        name,
        instance_name,
        None if outcomes is None else frozenset(outcomes),
        _instant("since", since),
        _instant("until", until),
    )


def _names_of(task: Task, instance_name: str | None) -> tuple[str, str | None]:
    """Returns the names of a task, or of its template, and of the instance."""
    template = task.template
    if not task.dynamic:
        if instance_name is not None:
            raise ValueError(
                f"'{printable(task)}' has no instances, so instance_name must not be given"
            )
        return template.name, task.name if template.dynamic else None
    if instance_name is not None:
        task.identify(instance_name)
    elif task is not template:
        raise ValueError(
            f"The run history does not know partitions: pass the template "
            f"'{printable(template)}', or the name of an instance as well"
        )
    return template.name, instance_name


def _instant(name: str, value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise TypeError(f"{name} must be a datetime, not {value!r}")
    return instant_of(value)


def _run_of(row: RunRow) -> Run | None:
    """Returns what a row says; None if it was not written by Pyncette, or by a later release."""
    times = (row.planned_at, row.started_at, row.ended_at)
    if not (
        all(_is_instant(time) for time in times)
        and _is_count(row.attempt)
        and row.attempt > 0
        and row.outcome in RUN_OUTCOMES
        and all(isinstance(text, str) for text in (row.task, row.execution_id, row.worker))
        and all(text is None or isinstance(text, str) for text in (row.instance, row.error))
    ):
        return None
    return Run(
        task=row.task,
        instance=row.instance,
        execution_id=row.execution_id,
        attempt=row.attempt,
        planned_at=from_microseconds(row.planned_at),
        started_at=from_microseconds(row.started_at),
        ended_at=from_microseconds(row.ended_at),
        worker=row.worker,
        outcome=row.outcome,
        error=None if row.error is None else printable(row.error)[:ERROR_CHARACTERS_MAX],
    )


def _totals_of(row: TotalRow) -> RunTotals | None:
    counts = (row.succeeded, row.failed, row.other, row.took, row.lateness_max)
    if not (
        _is_instant(row.minute)
        and isinstance(row.task, str)
        and all(_is_count(number) for number in counts)
    ):
        return None
    return RunTotals(
        task=row.task,
        minute=from_microseconds(row.minute),
        succeeded=row.succeeded,
        failed=row.failed,
        other=row.other,
        took=timedelta(microseconds=row.took),
        lateness_max=timedelta(microseconds=row.lateness_max),
    )


def _is_instant(value: Any) -> bool:
    return type(value) is int and EARLIEST_INSTANT <= value <= LATEST_INSTANT


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LATEST_INSTANT
