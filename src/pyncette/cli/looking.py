"""``list``, ``show``, ``next``, ``runs`` and ``workers``."""

from __future__ import annotations

from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any, Final

from pyncette.cli.failures import DONE, not_found, usage
from pyncette.cli.session import Session, state_data, utc
from pyncette.errors import printable
from pyncette.model import Run, RunOutcome, TaskState, Where
from pyncette.schedule import Cron, Every, Schedule
from pyncette.showing import (
    clock_change,
    clock_change_text,
    duration_text,
    named,
    paused_word,
    schedule_text,
)
from pyncette.task import Task

RUNS_PAGE: Final = 500
"""Attempts that are read at once."""

_FAILED: Final[tuple[RunOutcome, ...]] = ("failed", "timed_out")


async def list_tasks(session: Session) -> int:
    """Lists the tasks of the app, or the instances of a template."""
    if session.arguments.task is None:
        return await _overview(session)
    template = session.task()
    if not template.dynamic:
        raise usage(f"'{printable(template)}' is a static task: pyncette show shows it")
    limit = session.arguments.limit
    table = session.out.table(["instance", "state", "next", "attempt", "last outcome", "reason"])
    shown = 0
    more = False
    async with aclosing(session.context.iter_tasks(template, session.where())) as states:
        async for state in states:
            if limit and shown >= limit:
                more = True
                break
            shown += 1
            session.out.data(state_data(state))
            table.add(
                state.task.name,
                state.state,
                session.out.time(state.next),
                state.attempt,
                state.last_outcome,
                state.reason or state.last_error,
            )
    table.flush()
    if more:
        session.out.note(f"There are more than {shown}: --limit 0 shows all of them")
    elif not shown:
        session.out.text("No instances")
    return DONE


async def _overview(session: Session) -> int:
    table = session.out.table(["task", "kind", "instances", "state", "next", "schedule"])
    context = session.context
    states = {state.task.name: state for state in await context.static_tasks()}
    pauses = await context.pauses()
    for task in session.app.tasks:
        schedule = schedule_text(task)
        data: dict[str, Any] = {"task": task.name, "kind": "static", "schedule": schedule}
        if task.dynamic:
            count = await context.count_tasks(task)
            state = paused_word(pauses, task.name)
            data |= {"kind": "template", "state": state}
            data |= {"instances": count.count, "exact": count.exact}
            table.add(task.name, "template", count, state or "-", "-", schedule)
        else:
            found = states.get(task.name)
            if found is None:
                state = "never started"
                data |= {"state": None, "next": None}
            else:
                state = found.state
                data |= {"state": state, "next": utc(found.next), "reason": found.reason}
            when = session.out.time(found.next if found else None)
            table.add(task.name, "static", "-", state, when, schedule)
        session.out.data(data)
    unknown = await context.unknown()
    for left in unknown:
        kind = "template" if left.dynamic else "static"
        state = paused_word(pauses, left.name)
        session.out.data(
            {
                "task": left.name,
                "kind": "unknown",
                "state": state,
                "instances": left.count.count,
                "exact": left.count.exact,
            }
        )
        table.add(left.name, f"unknown {kind}", left.count, state or "-", "-", "-")
    table.flush()
    if not (session.app.tasks or unknown):
        session.out.text("No tasks")
    return DONE


async def show(session: Session) -> int:
    """Shows all that is known of a static task, a template or an instance."""
    task, instance = session.chosen()
    if task.dynamic and instance is None:
        return await _show_template(session, task)
    state = await session.context.get_task(task, instance)
    if state is None:
        if not task.dynamic:
            raise not_found(f"No worker has started '{printable(task)}' yet: it has no state")
        raise not_found(f"There is no '{named(task, instance)}': it was not scheduled, or is done")
    session.out.data(state_data(state))
    for label, value in _lines(session, state):
        if value is not None:
            session.out.text(f"{label:<16}{printable(value)}")
    if state.last_traceback:
        session.out.text("last traceback")
        for line in state.last_traceback.splitlines():
            session.out.text(f"  {printable(line)}")
    return DONE


def _lines(session: Session, state: TaskState) -> list[tuple[str, Any]]:
    time = session.out.time
    data = state_data(state)
    schedule = data["schedule"]
    return [
        ("task", data["task"]),
        ("instance", data["instance"]),
        ("state", state.state),
        ("schedule", f"{schedule} (the template's default)" if state.inherited else schedule),
        ("next", time(state.next)),
        ("planned for", time(state.scheduled_at)),
        ("arguments", "cannot be read" if data["args"] is None else data["args"]),
        ("attempt", state.attempt),
        ("reason", state.reason),
        ("paused until", state.paused_until and time(state.paused_until)),
        ("paused since", state.paused_since and time(state.paused_since)),
        ("paused by", state.paused_by),
        ("run by", state.locked_by),
        ("leased until", state.locked_until and time(state.locked_until)),
        ("last started", state.last_started_at and time(state.last_started_at)),
        ("last finished", state.last_finished_at and time(state.last_finished_at)),
        ("last outcome", state.last_outcome),
        ("last error", state.last_error),
        ("skipped", state.skipped or None),
    ]


async def _show_template(session: Session, task: Task) -> int:
    context = session.context
    count = await context.count_tasks(task)
    parked = await context.count_tasks(task, Where(states={"parked"}))
    failing = await context.count_tasks(task, Where(failing=True))
    pauses = [pause for pause in await context.pauses() if pause.name == task.name]
    session.out.data(
        {
            "task": task.name,
            "kind": "template",
            "schedule": schedule_text(task),
            "instances": count.count,
            "exact": count.exact,
            "parked": parked.count,
            "failing": failing.count,
            "pauses": [
                {
                    "partition": pause.partition,
                    "since": utc(pause.since),
                    "until": utc(pause.until),
                    "reason": pause.reason,
                    "by": pause.by,
                }
                for pause in pauses
            ],
        }
    )
    session.out.text(f"task            {printable(task.name)}")
    session.out.text(f"schedule        {printable(schedule_text(task))}")
    session.out.text(f"instances       {count}")
    session.out.text(f"parked          {parked}")
    session.out.text(f"failing         {failing}")
    for pause in pauses:
        what = "all" if pause.partition is None else f"partition {pause.partition}"
        until = "until it is resumed" if pause.until is None else session.out.time(pause.until)
        by = f", by {printable(pause.by)}" if pause.by else ""
        why = f" ({printable(pause.reason)})" if pause.reason else ""
        session.out.text(f"paused          {what}, {until}{by}{why}")
    return DONE


def given_schedule(session: Session) -> Schedule | None:
    """The schedule that ``next`` was given instead of a task."""
    given = session.arguments
    if given.schedule is not None and given.interval is not None:
        raise usage("Pass either --schedule or --interval")
    if given.schedule is not None:
        return Cron(given.schedule, given.timezone or "UTC")
    if given.timezone is not None:
        raise usage("--timezone goes with --schedule")
    return None if given.interval is None else Every(given.interval)


async def upcoming(session: Session) -> int:
    """Shows which occurrences come next."""
    schedule = given_schedule(session)
    number = session.arguments.count
    if schedule is not None:
        times = await session.context.preview(schedule, number)
    else:
        task, instance = session.chosen()
        if instance is not None and await session.context.get_task(task, instance) is None:
            raise not_found(f"There is no '{named(task, instance)}'")
        if task.dynamic and instance is None and schedule_text(task) == "-":
            raise usage(
                f"The template '{printable(task)}' has no schedule of its own: name an instance"
            )
        times = await session.context.preview(task, number, instance)
    table = session.out.table(["in its zone", "zone", "local", "clocks"])
    before: datetime | None = None
    for time in times:
        change = clock_change(before, time)
        session.out.data(
            {
                "at": utc(time),
                "in_zone": time.isoformat(),
                "zone": str(time.tzinfo),
                "clocks_changed": None if change is None else change.total_seconds(),
            }
        )
        moved = "" if change is None else clock_change_text(change)
        table.add(time.isoformat(" "), time.tzinfo, session.out.time(time), moved)
        before = time
    table.flush()
    if not times:
        session.out.text("No further occurrence")
    return DONE


async def runs(session: Session) -> int:
    """Shows attempts that have ended, from the run history, the last ones first."""
    given = session.arguments
    outcomes: set[RunOutcome] = {*(given.outcome or ()), *(_FAILED if given.failed else ())}
    task, instance = (None, None) if given.task is None else session.chosen()
    table = session.out.table(["ended", "task", "instance", "outcome", "took", "attempt", "error"])
    now = session.context.clock.now()
    shown, cursor = 0, None
    while True:
        page = await session.context.runs(
            task,
            instance,
            outcomes=outcomes or None,
            since=_moment(given.since, now),
            until=_moment(given.until, now),
            cursor=cursor,
            limit=min(given.limit - shown, RUNS_PAGE) if given.limit else RUNS_PAGE,
        )
        for run in page.runs:
            session.out.data(_run_data(run))
            table.add(
                session.out.time(run.ended_at),
                run.task,
                run.instance,
                run.outcome,
                duration_text(run.ended_at - run.started_at),
                run.attempt,
                run.error,
            )
        shown, cursor = shown + len(page.runs), page.cursor
        if cursor is None or (given.limit and shown >= given.limit):
            break
    table.flush()
    if cursor is not None:
        session.out.note(f"There may be more than {shown}: --limit 0 shows all of them")
    elif not shown:
        session.out.text("No runs in the history")
    return DONE


def _moment(given: datetime | timedelta | None, now: datetime) -> datetime | None:
    """A time, or one so long ago."""
    if isinstance(given, timedelta):
        try:
            return now - given
        except OverflowError:
            raise usage(f"{given} ago is before the first year") from None
    return given


def _run_data(run: Run) -> dict[str, Any]:
    return {
        "task": run.task,
        "instance": run.instance,
        "execution_id": run.execution_id,
        "attempt": run.attempt,
        "planned_at": utc(run.planned_at),
        "started_at": utc(run.started_at),
        "ended_at": utc(run.ended_at),
        "worker": run.worker,
        "outcome": run.outcome,
        "error": run.error,
    }


async def workers(session: Session) -> int:
    """Shows the workers that are alive."""
    table = session.out.table(["worker", "host", "process", "since", "seen", "running", "tasks"])
    found = await session.context.workers()
    for worker in found:
        session.out.data(
            {
                "worker": worker.name,
                "id": worker.id,
                "host": worker.host,
                "process_id": worker.process_id,
                "version": worker.version,
                "since": utc(worker.since),
                "seen_at": utc(worker.seen_at),
                "expires_at": utc(worker.expires_at),
                "running_count": worker.running_count,
                "running": [
                    {"task": run.name, "started_at": utc(run.started_at)} for run in worker.running
                ],
                "tasks": list(worker.tasks),
                "task_count": worker.task_count,
                "tags": sorted(worker.tags),
            }
        )
        table.add(
            worker.name,
            worker.host,
            worker.process_id,
            session.out.time(worker.since),
            session.out.time(worker.seen_at),
            worker.running_count,
            ", ".join(worker.tasks),
        )
    table.flush()
    if not found:
        session.out.text("No worker is alive")
    return DONE
