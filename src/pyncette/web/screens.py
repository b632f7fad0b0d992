"""What each screen shows. All of it is read through the shared poller, in bounded queries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

from pyncette import checks, showing
from pyncette.app import Pyncette
from pyncette.context import PyncetteContext
from pyncette.errors import PyncetteException, describe
from pyncette.model import STATES, PauseState, RunsPage, TaskCount, TaskState, Where
from pyncette.task import PartitionedTask, Task
from pyncette.web import charts, past, reading, soon
from pyncette.web.actions import PAUSES, Chosen, MissingError, digest_of, error_of, task_named
from pyncette.web.jobs import Jobs
from pyncette.web.notices import notices
from pyncette.web.poller import Poller
from pyncette.web.reading import (
    Reader,
    Snapshot,
    page_of,
    shown_templates,
    total,
)
from pyncette.web.soon import Soon
from pyncette.web.view import View, link

_T = TypeVar("_T")

OCCURRENCES: Final = 12
"""Occurrences that are previewed for a task."""

FAILURES_LOOKED_AT: Final = 200
"""Failing instances of a template by which its errors are put together."""

RUNS_SHOWN: Final = 50
NAMES_SHOWN: Final = 5
EXPIRED_SHOWN: Final = 20

SOON_TASKS_MAX: Final = 100
"""Tasks of which is shown what comes due."""


class FailureGroup(NamedTuple):
    """What fails in the same way.

    Attributes:
        task: The static task or the template.
        error: The error.
        retrying: How many of those that were looked at wait for another attempt.
        parked: How many are parked.
        names: The names of the first of them; empty: it is a static task.
        last: When the last of them has failed.
        traceback: The end of the traceback of one of them.
        state: The state of a static task.
    """

    task: Task
    error: str
    retrying: int
    parked: int
    names: list[str]
    last: datetime | None
    traceback: str | None
    state: str | None

    @property
    def digest(self) -> str:
        """What stands for the error in addresses and forms."""
        return digest_of(self.error)

    @property
    def number(self) -> int:
        """How many were found."""
        return self.retrying + self.parked

    @classmethod
    def of(cls, task: Task, states: list[TaskState]) -> FailureGroup:
        """Puts these together, which have the same error."""
        ends = [state.last_finished_at for state in states if state.last_finished_at is not None]
        return cls(
            task,
            error_of(states[0]),
            sum(state.state == "retrying" for state in states),
            sum(state.state == "parked" for state in states),
            [state.task.name for state in states[:NAMES_SHOWN]] if task.dynamic else [],
            max(ends, default=None),
            next((state.last_traceback for state in states if state.last_traceback), None),
            None if task.dynamic else states[0].state,
        )


class Screens:
    """Gives each screen its template and values."""

    def __init__(self, app: Pyncette, poller: Poller, reader: Reader, jobs: Jobs) -> None:
        """Shows an app."""
        self._app = app
        self._poller = poller
        self._reader = reader
        self._jobs = jobs
        self._soon = Soon()

    def forget(self) -> None:
        """Something was changed: what was read before is not shown any more."""
        self._soon.forget()
        self._reader.forget()
        self._poller.forget()

    async def snapshot(self, context: PyncetteContext) -> Snapshot:
        """Returns the store as a whole, as it is shared by all viewers."""
        return await self._poller.get("snapshot", lambda: self._reader.snapshot(context))

    async def overview(
        self, context: PyncetteContext, view: View, given: Mapping[str, str]
    ) -> tuple[str, dict[str, Any]]:
        """How it goes as a whole, and what needs attention."""
        access = view.access
        found = await self.snapshot(context)
        templates = shown_templates(found, access.sees)
        counts = [one for _, one in templates if one is not None]
        statics = [(task, state) for task, state in found.statics if access.sees(task.name)]
        minutes = None
        if found.totals is not None:
            minutes = past.minutes_of(found.totals, found.at, access.sees)
        return "overview.html", {
            "page": "",
            "found": found,
            "slow": checks.is_slow(found.seldom.answer),
            "notices": notices(self._app, context, found, access),
            "overdue": _with_statics(
                [one.overdue for one in counts],
                [checks.is_overdue(context, state) for _, state in statics],
            ),
            "retrying": _with_statics(
                [one.retrying for one in counts], [_in(state, "retrying") for _, state in statics]
            ),
            "parked": _with_statics(
                [one.parked for one in counts], [_in(state, "parked") for _, state in statics]
            ),
            "running": sum(worker.running_count for worker in found.crew.alive),
            "minutes": minutes,
            "run_chart": None if minutes is None else _run_chart(minutes),
            "lateness_chart": None if minutes is None else _lateness_chart(minutes),
            "backlog_chart": charts.line(
                [sample.overdue for sample in found.samples],
                f"Overdue, while this page was open: now {found.samples[-1].overdue}",
            ),
            "running_chart": charts.line(
                [sample.running for sample in found.samples],
                f"Running, while this page was open: now {found.samples[-1].running}",
            ),
            "statics": statics,
            "templates": templates,
        }

    async def tasks(
        self, context: PyncetteContext, view: View, given: Mapping[str, str]
    ) -> tuple[str, dict[str, Any]]:
        """The static tasks and the templates."""
        found = await self.snapshot(context)
        sees = view.access.sees
        return "tasks.html", {
            "page": "tasks",
            "found": found,
            "statics": [(task, state) for task, state in found.statics if sees(task.name)],
            "templates": shown_templates(found, sees),
            "left": {task.name for task in found.crew.unserved},
        }

    async def task(
        self, context: PyncetteContext, view: View, given: Mapping[str, str]
    ) -> tuple[str, dict[str, Any]]:
        """A static task, an instance, or a template with its instances.

        Raises:
            MissingError: There is no such task or instance, or it may not be seen.
        """
        name = given.get("name", "")
        task = task_named(name, self._app.tasks)
        if not view.access.sees(name):
            raise MissingError(f"The app declares no task {name!r}.")
        instance = given.get("instance") or None
        if task.dynamic and instance is None:
            return await self._template(context, view, task, given)
        if instance is not None and not task.dynamic:
            raise MissingError(f"{showing.named(task, None)} is a static task: no instances.")
        return await self._single(context, task, instance)

    async def _template(
        self, context: PyncetteContext, view: View, task: Task, given: Mapping[str, str]
    ) -> tuple[str, dict[str, Any]]:
        chosen = Chosen.given(given)
        found = await self.snapshot(context)
        token = given.get("after") or None
        page = await self._poller.get(
            ("page", task.name, chosen, token),
            lambda: page_of(
                context,
                task,
                None if chosen.all else chosen.where(),
                token,
                admits=lambda state: chosen.error in (None, digest_of(error_of(state))),
            ),
        )
        counts = {one.name: counts for one, counts in found.templates}[task.name]
        matching: TaskCount | None = None
        if not chosen.all and chosen.error is None:
            matching = await self._poller.get(
                ("count", task.name, chosen),
                lambda: context.count_tasks(task, chosen.where(), limit=reading.COUNT_LIMIT),
            )
        following = None
        if page.token is not None:
            following = link("task", name=task.name, **chosen.fields(), after=page.token)
        return "template.html", {
            "page": "tasks",
            "task": task,
            "counts": counts,
            "chosen": chosen,
            "matching": matching,
            "instances": page.states,
            "partial": page.partial,
            "following": following,
            "first": token is None,
            "pauses": [pause for pause in found.pauses if pause.name == task.name],
            "partitions": len(task.get_partitions()) if isinstance(task, PartitionedTask) else 0,
            "states": STATES,
            "lastings": PAUSES,
            "left": any(one is task for one in found.crew.unserved),
            "back": link("task", name=task.name, **chosen.fields(), after=token),
        }

    async def _single(
        self, context: PyncetteContext, task: Task, instance: str | None
    ) -> tuple[str, dict[str, Any]]:
        state, times, runs = await self._poller.get(
            ("task", task.name, instance), partial_of(_read_single, context, task, instance)
        )
        if state is None and task.dynamic:
            raise MissingError(
                f"There is no {showing.named(task, instance)}: it was not scheduled, it is done, "
                "or it was removed."
            )
        upcoming: list[datetime] = times if isinstance(times, list) else []
        found = await self.snapshot(context)
        last = [] if runs is None else runs.runs
        ends = [(run.started_at, run.outcome in past.FAILED) for run in last]
        chart = charts.timeline(ends, upcoming, found.at) if upcoming or ends else None
        pauses = [pause for pause in found.pauses if pause.name == task.name]
        return "task.html", {
            "page": "tasks",
            "task": task,
            "instance": instance,
            "state": state,
            "shown": task if state is None else state.task,
            "upcoming": upcoming,
            "upcoming_error": times if isinstance(times, str) else None,
            "chart": chart,
            "runs": runs,
            "pauses": _covering(pauses, state),
            "lastings": PAUSES,
            "left": any(one is task for one in found.crew.unserved),
            "overdue": checks.is_overdue(context, state),
            "back": link("task", name=task.name, instance=instance),
        }

    async def failures(
        self, context: PyncetteContext, view: View, given: Mapping[str, str]
    ) -> tuple[str, dict[str, Any]]:
        """What fails, put together by task and error."""
        found = await self.snapshot(context)
        sees, only = view.access.sees, given.get("task") or None
        groups: list[FailureGroup] = []
        partial = False
        for task, state in found.statics:
            if state is not None and sees(task.name) and only in (None, task.name):
                failed = state.state in reading.FAILED or state.last_outcome == "failed"
                if failed:
                    groups.append(FailureGroup.of(task, [state]))
        for task, counts in shown_templates(found, sees):
            if counts is None or only not in (None, task.name):
                continue
            if counts.retrying.count or counts.parked.count or not counts.retrying.exact:
                more, whole = await self._poller.get(
                    ("failures", task.name), partial_of(_failures_of, context, task)
                )
                groups += more
                partial = partial or not whole
        groups.sort(key=lambda group: (group.parked == 0, -group.number))
        return "failures.html", {
            "page": "failures",
            "groups": groups,
            "partial": partial,
            "only": only,
            "looked_at": FAILURES_LOOKED_AT,
            "back": link("failures", task=only),
        }

    async def runs(
        self, context: PyncetteContext, view: View, given: Mapping[str, str]
    ) -> tuple[str, dict[str, Any]]:
        """The run history: of all tasks, of one, or of one instance.

        Raises:
            MissingError: There is no such task, or it may not be seen.
        """
        name, instance = given.get("name") or None, given.get("instance") or None
        failed, cursor = given.get("outcome") == "failed", given.get("after") or None
        task = None if name is None else task_named(name, self._app.tasks)
        if name is not None and not view.access.sees(name):
            raise MissingError(f"The app declares no task {name!r}.")
        page = await self._poller.get(
            ("runs", name, instance, cursor, failed),
            partial_of(past.runs, context, task, instance, cursor, failed, RUNS_SHOWN),
        )
        following = None
        if page is not None and page.cursor is not None:
            chosen = {"name": name, "instance": instance, "outcome": given.get("outcome")}
            following = link("runs", **chosen, after=page.cursor)
        sees = view.access.sees
        return "runs.html", {
            "page": "runs",
            "task": task,
            "instance": instance,
            "failed": failed,
            "runs": None if page is None else [run for run in page.runs if sees(run.task)],
            "following": following,
            "first": cursor is None,
            "declared": {one.name for one in self._app.tasks},
        }

    async def soon(
        self, context: PyncetteContext, view: View, given: Mapping[str, str]
    ) -> tuple[str, dict[str, Any]]:
        """What comes due in the coming hour."""
        found = await self.snapshot(context)
        sees = view.access.sees
        rows, left = await self._poller.get("soon", lambda: self._soon.look(context, found))
        rows = [row for row in rows if sees(row.task.name)]
        shown = rows[:SOON_TASKS_MAX]
        listed = [(time, row.task, instance) for row in shown for time, instance in row.listed]
        listed.sort(key=lambda entry: entry[0])
        return "next.html", {
            "page": "next",
            "rows": shown,
            "tasks_left_out": len(rows) - len(shown),
            "left": [task.name for task in left if sees(task.name)],
            "steps": [found.at + number * soon.STEP for number in range(soon.STEPS)],
            "listed": listed[: soon.LISTED],
            "more": len(listed) > soon.LISTED,
            "not_listed": [row.task.name for row in shown if not row.complete and row.task.dynamic],
        }

    async def workers(
        self, context: PyncetteContext, view: View, given: Mapping[str, str]
    ) -> tuple[str, dict[str, Any]]:
        """Who is alive, what each one runs, and leases that have run out."""
        found = await self.snapshot(context)
        sees = view.access.sees
        expired: list[TaskState] = [
            state
            for task, state in found.statics
            if state is not None and sees(task.name) and _lease_ended(state, found.at)
        ]
        for task, counts in shown_templates(found, sees):
            if counts is not None and counts.overdue.count:
                page = await self._poller.get(
                    ("expired", task.name), partial_of(_expired, context, task, found.at)
                )
                expired += page.states
        return "workers.html", {
            "page": "workers",
            "found": found,
            "silent": {worker.id for worker in found.crew.silent},
            "left": [task for task in found.crew.unserved if sees(task.name)],
            "expired": expired,
            "everything": view.access.tasks is None,
            "sees": sees,
        }

    async def unknown(
        self, context: PyncetteContext, view: View, given: Mapping[str, str]
    ) -> tuple[str, dict[str, Any]]:
        """What the store holds of tasks that the app does not declare.

        Raises:
            MissingError: The viewer sees some tasks only.
        """
        if view.access.tasks is not None:
            raise MissingError("You may see some of the tasks only.")
        found = await self.snapshot(context)
        declared = {task.name for task in self._app.tasks}
        return "unknown.html", {
            "page": "unknown",
            "unknown": found.seldom.unknown,
            "nearest": checks.nearest(found.seldom.unknown, self._app),
            "pauses": [pause for pause in found.pauses if pause.name not in declared],
            "back": "unknown",
        }


async def _read_single(
    context: PyncetteContext, task: Task, instance: str | None
) -> tuple[TaskState | None, list[datetime] | str, RunsPage | None]:
    """The state, what comes next (or why that is not known), and the last runs."""
    state = await context.get_task(task, instance)
    times: list[datetime] | str
    try:
        times = await context.preview(task, OCCURRENCES, instance) if state is not None else []
        if state is None and not task.dynamic:
            times = await context.preview(task, OCCURRENCES)
    except (PyncetteException, ValueError) as error:
        times = describe(error)
    return state, times, await past.runs(context, task, instance)


def partial_of(
    function: Callable[..., Awaitable[_T]], *arguments: Any
) -> Callable[[], Awaitable[_T]]:
    """Returns a call that is made only if its answer is not kept."""
    return lambda: function(*arguments)


async def _failures_of(context: PyncetteContext, task: Task) -> tuple[list[FailureGroup], bool]:
    """The failures of a template by error, and whether all were looked at."""
    page = await page_of(context, task, Where(states=reading.FAILED), None, FAILURES_LOOKED_AT)
    by_error: dict[str, list[TaskState]] = {}
    for state in page.states:
        by_error.setdefault(error_of(state), []).append(state)
    return [FailureGroup.of(task, states) for states in by_error.values()], page.token is None


async def _expired(context: PyncetteContext, task: Task, now: datetime) -> reading.Page:
    where = Where(states={"running"}, due_before=now)
    return await page_of(context, task, where, None, EXPIRED_SHOWN)


def _lease_ended(state: TaskState, now: datetime) -> bool:
    return state.locked_until is not None and state.locked_until < now


def _in(state: TaskState | None, name: str) -> bool:
    return state is not None and state.state == name


def _with_statics(counts: list[TaskCount], statics: list[bool]) -> TaskCount:
    return total([*counts, TaskCount(sum(statics), True)])


def _covering(pauses: list[PauseState], state: TaskState | None) -> list[PauseState]:
    """The pauses of the template, or of the partition, that an instance belongs to."""
    if state is None or state.task.parent_task is None:
        return []
    number = getattr(state.task.parent_task, "partition_id", None)
    return [pause for pause in pauses if pause.partition in (None, number)]


def _run_chart(minutes: list[past.Minute]) -> Any:
    done = sum(minute.done for minute in minutes)
    failed = sum(minute.failed for minute in minutes)
    return charts.bars(
        [(minute.done, minute.failed) for minute in minutes],
        f"Runs in each minute of the last hour: {done:,} done, {failed:,} failed",
    )


def _lateness_chart(minutes: list[past.Minute]) -> Any:
    worst = max((minute.lateness_s for minute in minutes), default=0.0)
    return charts.line(
        [minute.lateness_s for minute in minutes],
        f"Largest lateness in each minute of the last hour: {worst:.1f} s at most",
    )
