"""What needs attention, for the overview: what was found, what to do, and on which screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from pyncette import checks
from pyncette.app import Pyncette
from pyncette.context import PyncetteContext
from pyncette.model import PauseState, TaskState
from pyncette.showing import died_text, duration_text
from pyncette.task import Task
from pyncette.web.access import Access
from pyncette.web.actions import error_of
from pyncette.web.reading import Snapshot, shown_templates
from pyncette.web.view import counted, link

NAMES_MAX: Final = 5
"""Names in a line."""

ERROR_CHARACTERS_MAX: Final = 200

NOTHING: Final = timedelta()
LEVELS: Final = ("bad", "warn", "rest")


class Notice(NamedTuple):
    """Something that needs attention.

    Attributes:
        level: ``"bad"``, ``"warn"`` or ``"rest"``.
        text: What it is.
        advice: What to do.
        href: The screen on which that is done, or where more is shown.
    """

    level: str
    text: str
    advice: str
    href: str


def notices(
    app: Pyncette, context: PyncetteContext, found: Snapshot, access: Access
) -> list[Notice]:
    """Returns what needs attention of what a viewer may see, the worst first."""
    told = [
        *_of_workers(found, access),
        *_of_store(app, found, access),
        *_of_statics(context, found, access),
        *_of_templates(found, access),
        *_of_looks(found, access),
        *_of_partitions(found, access),
        *_of_pauses(app, found, access),
        *_of_unknown(app, found, access),
    ]
    return sorted(told, key=lambda notice: LEVELS.index(notice.level))


def _of_workers(found: Snapshot, access: Access) -> Iterator[Notice]:
    crew = found.crew
    if not crew.alive:
        yield Notice("bad", "No worker is alive", "Start one: pyncette run", "workers")
    if crew.died:
        yield Notice(
            "warn",
            f"Died: {_names([died_text(worker, found.at) for worker in crew.died])}",
            "It was killed, is frozen, or does not reach the store: look at its log, end the "
            "process, start it again. Others run what it had claimed when its leases have ended",
            "workers",
        )
    if crew.silent:
        yield Notice(
            "warn",
            f"Silent: {_names([worker.name for worker in crew.silent])}",
            "It was killed, or a body blocks its event loop: look at its log, restart it",
            "workers",
        )
    left = [task.name for task in crew.unserved if access.sees(task.name)]
    if left and crew.alive:
        yield Notice(
            "bad",
            f"No worker runs {_names(left)}",
            "Deploy the release that declares it, or start a worker with its tags",
            "workers",
        )


def _of_store(app: Pyncette, found: Snapshot, access: Access) -> Iterator[Notice]:
    if checks.is_slow(found.seldom.answer):
        yield Notice(
            "warn",
            f"The store is slow: it answers in {duration_text(found.seldom.answer)}",
            "Look at the load of the server, its disk, its locks, and the way to it: runs start "
            "late meanwhile, and none is lost",
            "",
        )
    offset = found.clock_offset
    if offset is not None and checks.is_off(offset):
        yield Notice(
            "warn",
            f"The clock of this machine is {offset.total_seconds():+.1f} s off the store's",
            "Workers correct it; the times in logs differ: let both use NTP",
            "workers",
        )
    if checks.is_in_memory(app):
        yield Notice(
            "rest",
            "The app keeps its records in memory: only this process sees them",
            "Name a file or a server, for example url='sqlite:///tasks.db'",
            "",
        )


def _of_statics(context: PyncetteContext, found: Snapshot, access: Access) -> Iterator[Notice]:
    for task, state in found.statics:
        if state is None or not access.sees(task.name):
            continue
        href = link("task", name=task.name)
        if state.state == "parked":
            text = f"{task.name} is parked{_error(state, access)}"
            yield Notice("bad", text, "Retry it, or give the run up", href)
        elif state.state == "paused":
            yield _paused(
                task.name,
                (state.paused_since, state.paused_until, state.paused_by, access.reason(state)),
                found.at,
                href,
            )
        elif state.state == "retrying" or state.last_outcome == "failed":
            success = found.seldom.successes.get(task.name)
            since = "" if success is None else f"; it last succeeded {_ago(success, found.at)}"
            text = f"{task.name} has failed{_error(state, access)}{since}"
            yield Notice("warn", text, "See its traceback; after the fix, run it now", href)
        if checks.is_held_too_long(state):
            yield Notice(
                "warn",
                f"{task.name}: its lease lasts too long",
                "A clock that was ahead has counted it: the next start of a worker mends it",
                href,
            )
        if checks.is_overdue(context, state):
            yield Notice("bad", f"{task.name} is overdue", "Is a worker alive that runs it?", href)


def _of_templates(found: Snapshot, access: Access) -> Iterator[Notice]:
    for name, why in found.unreadable.items():
        if access.sees(name):
            yield Notice("bad", f"{name} cannot be counted: {why}", "Give that command", "")
    for task, counts in shown_templates(found, access.sees):
        if counts is None:
            continue
        name = task.name
        if counts.overdue.count:
            yield Notice(
                "bad" if found.paused(name) is None else "rest",
                f"{name}: {counted(counts.overdue)} overdue",
                "Start workers, or more of them; is it paused, or its executor full?",
                link("task", name=name, due_before=found.at.isoformat(timespec="seconds")),
            )
        if counts.parked.count:
            yield Notice(
                "bad",
                f"{name}: {counted(counts.parked)} parked",
                "See why, then retry them or give them up",
                link("failures", task=name),
            )
        if counts.paused.count:
            yield Notice(
                "rest",
                f"{name}: {counted(counts.paused)} paused, each by itself",
                "See since when, and why; if it was forgotten: resume them",
                link("task", name=name, state="paused"),
            )
        if counts.retrying.count:
            yield Notice(
                "warn",
                f"{name}: {counted(counts.retrying)} retrying",
                "See their errors",
                link("failures", task=name),
            )


def _of_looks(found: Snapshot, access: Access) -> Iterator[Notice]:
    for task, look in found.seldom.looks:
        if not access.sees(task.name):
            continue
        if look.stranded:
            name = look.stranded[0].task.name
            yield Notice(
                "bad",
                f"{task.name}: {len(look.stranded)} instances never come due, such as {name}",
                "The due_at of their rows was edited or lost: run them now, or schedule them",
                link("task", name=task.name, instance=name),
            )
        if look.held:
            name = look.held[0].task.name
            yield Notice(
                "warn",
                f"{task.name}: {len(look.held)} leases last too long, such as that of {name}",
                "A clock that was ahead has counted them. If no worker runs these any more: remove "
                "and schedule them, or pyncette schedule with --force; what is run now waits for "
                "the end of the lease",
                link("task", name=task.name, instance=name),
            )


def _of_partitions(found: Snapshot, access: Access) -> Iterator[Notice]:
    overdue = {task.name for task, counts in found.templates if counts and counts.overdue.count}
    by_task: dict[str, list[Task]] = {}
    for partition in found.seldom.late:
        name = partition.template.name
        if access.sees(name) and name in overdue and found.paused(name) is None:
            by_task.setdefault(name, []).append(partition)
    for name, late in by_task.items():
        yield Notice(
            "bad",
            f"Overdue in partitions: {_names([str(partition) for partition in late])}",
            "Start a worker with them in its enabled_partitions, or give the task "
            "Partitions.SHARED, which does this by itself",
            link("task", name=name),
        )
    moves = found.seldom.moves
    if moves is None:
        return
    for task, number in moves.under_way:
        if access.sees(task.name):
            yield Notice(
                "warn",
                f"{task.name} is moved to {number} partitions, or that was interrupted",
                f"If no rebalance runs: pyncette rebalance {task.name} {number}",
                link("task", name=task.name),
            )
    for task, number in moves.left:
        if access.sees(task.name):
            yield Notice(
                "warn",
                f"{task.name} has instances in partitions that no worker claims from",
                f"A frozen program has left them: pyncette rebalance {task.name} {number}",
                link("task", name=task.name),
            )


def _of_pauses(app: Pyncette, found: Snapshot, access: Access) -> Iterator[Notice]:
    declared = {task.name for task in app.tasks}
    for pause in found.pauses:
        if access.sees(pause.name):
            part = "" if pause.partition is None else f" partition {pause.partition}"
            href = link("task", name=pause.name) if pause.name in declared else "unknown"
            yield _paused(f"{pause.name}{part}", _told(pause), found.at, href)


_Pause = tuple[datetime | None, datetime | None, str | None, str | None]
"""Since when, until when, by whom, and why."""


def _told(pause: PauseState) -> _Pause:
    return pause.since, pause.until, pause.by, pause.reason


def _paused(name: str, told: _Pause, now: datetime, href: str) -> Notice:
    since, until, by, reason = told
    text = f"{name} is paused" if since is None else f"{name} was paused {_ago(since, now)}"
    text += (f" by {by}" if by else "") + (f" ({reason})" if reason else "")
    if until is not None:
        text += f", for another {duration_text(max(until - now, NOTHING))}"
    return Notice(
        "warn" if checks.is_forgotten(since, now) else "rest",
        text,
        "Ask who paused it; if it was forgotten: resume it",
        href,
    )


def _of_unknown(app: Pyncette, found: Snapshot, access: Access) -> Iterator[Notice]:
    unknown = checks.left_behind(found.seldom.unknown)
    if not unknown or access.tasks is not None:
        return
    near = [
        f"'{name}' is near to '{close}', which is declared"
        for name, close in checks.nearest(unknown, app).items()
    ]
    text = f"Not declared: {_names([left.name for left in unknown])}"
    yield Notice(
        "warn" if near else "rest",
        f"{text}; {_names(near)}" if near else text,
        "If it was renamed: give it its old name; if another app owns it: leave it; if it is "
        "gone: purge it",
        "unknown",
    )


def _error(state: TaskState, access: Access) -> str:
    """The first line of an error, if the viewer may see such."""
    told = error_of(state).strip().splitlines() if access.arguments else []
    return f": {told[0][:ERROR_CHARACTERS_MAX]}" if told else ""


def _ago(instant: datetime, now: datetime) -> str:
    return f"{duration_text(max(now - instant, NOTHING))} ago"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_MAX} more" if len(names) > NAMES_MAX else ""
    return ", ".join(names[:NAMES_MAX]) + more
