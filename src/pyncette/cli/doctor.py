"""``doctor``: checks what goes wrong in practice, and says what to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Final, Literal, NamedTuple

from pyncette.app import Pyncette
from pyncette.cli.failures import DONE, FAILED, CommandError
from pyncette.cli.printing import Printer
from pyncette.clock import StoreClock
from pyncette.context import PyncetteContext
from pyncette.errors import (
    PyncetteException,
    StoreError,
    StoreMisconfiguredError,
    StoreUnavailableError,
    TaskUnreadableError,
    describe,
    printable,
)
from pyncette.model import Partitions, TaskState, Where, WorkerState
from pyncette.schedule import parse_timezone
from pyncette.showing import CLOCK_OFFSET_MAX, SILENT_AFTER, overdue, silent
from pyncette.sqlite import sqlite_repository
from pyncette.task import PartitionedTask, Task

COUNT_LIMIT: Final = 1_000

PARTITIONS_LOOKED_AT_MAX: Final = 100

PROBE: Final = "pyncette doctor"
"""The name of a task that no app has: the record of it is removed, to see whether that may be."""

Level = Literal["ok", "warn", "fail"]


class Check(NamedTuple):
    """What was looked at, and how it is.

    Attributes:
        name: What was looked at.
        level: How it is.
        found: What was found, for people.
        advice: What to do.
    """

    name: str
    level: Level
    found: str
    advice: str = ""


async def examine(
    load: Callable[[], tuple[Pyncette, bool]], out: Printer, strict: bool = False
) -> int:
    """Makes all checks, shows each, and returns the exit code."""
    levels: list[Level] = []
    async for check in _checks(load):
        levels.append(check.level)
        out.data(check._asdict())
        out.text(f"{check.level:<5} {check.name}: {printable(check.found)}")
        if check.advice:
            out.text(f"      {printable(check.advice)}")
    warnings, failures = levels.count("warn"), levels.count("fail")
    out.text(f"{len(levels)} checks, {warnings} warnings, {failures} failures")
    return FAILED if failures or (strict and warnings) else DONE


async def _checks(load: Callable[[], tuple[Pyncette, bool]]) -> AsyncIterator[Check]:
    try:
        app, declares = load()
    except ImportError as error:
        yield Check("driver", "fail", str(error), "Install it as the message says")
        return
    except CommandError as error:
        yield Check("app", "fail", str(error))
        return
    yield Check("app", "ok", f"{len(app.tasks)} tasks" if declares else "the store alone")
    yield _zones(app)
    if declares and not app.tasks:
        yield Check(
            "tasks",
            "warn",
            "the app declares no task",
            "Is this the module that imports those that declare tasks?",
        )
    if app._repository_factory is sqlite_repository and app._configuration.get(
        "sqlite_database"
    ) in (None, ":memory:"):
        yield Check(
            "in memory",
            "warn",
            "the app keeps its records in memory: no other process sees them",
            "Name a file or a server, for example url='sqlite:///tasks.db'",
        )
    try:
        async with app.create(fixtures=False) as context:
            yield Check("store", "ok", "reached; its version and the layout of its tables fit")
            async for check in _of_store(app, context, declares):
                yield check
    except StoreUnavailableError as error:
        yield Check(
            "store",
            "fail",
            str(error),
            "Is the server up, is its name right, and does a firewall let this machine through?",
        )
    except StoreMisconfiguredError as error:
        yield Check(
            "store",
            "fail",
            str(error),
            "Rights, the version of the server, or the layout of the table: see the message and "
            "the page of the store in the documentation",
        )
    except StoreError as error:
        yield Check("store", "fail", str(error), "See the log of the server")
    except PyncetteException as error:
        yield Check("records", "fail", describe(error))
    except (ValueError, TypeError) as error:
        yield Check("app", "fail", describe(error), "Correct the declaration")


def _zones(app: Pyncette) -> Check:
    try:
        release = version("tzdata")
    except PackageNotFoundError:
        release = "of the system"
    try:
        for zone in {"Europe/Berlin", *(task.timezone for task in app.tasks if task.timezone)}:
            parse_timezone(zone)
    except ValueError as error:
        return Check("time zones", "fail", str(error), "pip install --upgrade tzdata")
    return Check("time zones", "ok", f"known (tzdata {release})")


async def _of_store(
    app: Pyncette, context: PyncetteContext, declares: bool
) -> AsyncIterator[Check]:
    try:
        await context.purge(PROBE)
        yield Check("rights", "ok", "may read and write")
    except StoreError as error:
        yield Check(
            "rights", "fail", describe(error), "Grant the rights that the documentation lists"
        )
    yield _clock(app, context)
    workers = await context.workers()
    yield _workers(workers, context)
    if declares:
        async for check in _of_tasks(app, context, workers):
            yield check
    unknown = await context.unknown()
    if declares and unknown:
        names = _names([f"{left.name} ({left.count})" for left in unknown])
        yield Check(
            "unknown tasks",
            "warn",
            f"in the store, but not declared: {names}",
            "If one was renamed, give it its old name; if another app owns it, leave it; if it is "
            "gone, pyncette purge NAME",
        )
    elif declares:
        yield Check("unknown tasks", "ok", "none")
    else:
        held = _names([f"{left.name} ({left.count})" for left in unknown])
        yield Check("tasks in the store", "ok", held or "none")
    pauses = await context.pauses()
    if pauses:
        said = _names(
            [
                pause.name
                + ("" if pause.partition is None else f" partition {pause.partition}")
                + (f" since {pause.since.isoformat(' ', 'seconds')}" if pause.since else "")
                + (f" ({pause.reason})" if pause.reason else "")
                for pause in pauses
            ]
        )
        yield Check("paused templates", "warn", said, "If it was forgotten: pyncette resume NAME")
    else:
        yield Check("paused templates", "ok", "none")


def _clock(app: Pyncette, context: PyncetteContext) -> Check:
    clock = context.clock
    if not isinstance(clock, StoreClock) or not clock.is_measured:
        return Check("clock", "ok", "the store uses the clock of this machine")
    offset = app.clock.now() - clock.now()
    seconds = offset.total_seconds()
    if abs(offset) > CLOCK_OFFSET_MAX:
        return Check(
            "clock",
            "warn",
            f"the clock of this machine is {seconds:+.1f} s off that of the store",
            "Workers correct it, but the times in logs differ: let both use NTP",
        )
    return Check("clock", "ok", f"{seconds:+.3f} s off that of the store")


def _workers(workers: list[WorkerState], context: PyncetteContext) -> Check:
    if not workers:
        return Check("workers", "warn", "none is alive", "Start one: pyncette run")
    now = context.clock.now()
    found = [worker.name for worker in silent(workers, now)]
    if found:
        return Check(
            "workers",
            "warn",
            f"silent for more than {SILENT_AFTER.seconds} s: {_names(found)}",
            "It was killed, or its event loop is blocked by a body: look at its log, restart it",
        )
    return Check("workers", "ok", f"{len(workers)} alive: {_names([w.name for w in workers])}")


async def _of_tasks(
    app: Pyncette, context: PyncetteContext, workers: list[WorkerState]
) -> AsyncIterator[Check]:
    if workers and all(worker.task_count <= len(worker.tasks) for worker in workers):
        claimed = {name for worker in workers for name in worker.tasks}
        left = [task.name for task in app.tasks if task.enabled and task.name not in claimed]
        if left:
            yield Check(
                "tasks without a worker",
                "warn",
                _names(left),
                "Are the workers of an older release of your program, or have none of them its "
                "worker_tags? Deploy this release, or start one with these tags",
            )
        else:
            yield Check("tasks without a worker", "ok", "none")
    statics = await context.static_tasks()
    templates = []
    for task in app.tasks:
        if isinstance(task, PartitionedTask):
            try:
                await context.list_tasks(task, 1)
            except TaskUnreadableError as error:
                yield Check("number of partitions", "fail", str(error))
                continue
        if task.dynamic:
            templates.append(task)
    yield await _overdue(context, templates, statics)
    partitions = await _partitions(context, templates)
    if partitions is not None:
        yield partitions
    paused = [state.task.name for state in statics if state.state == "paused"]
    if paused:
        yield Check(
            "paused tasks", "warn", _names(paused), "If it was forgotten: pyncette resume NAME"
        )
    yield await _number(
        context,
        "parked",
        templates,
        [state for state in statics if state.state == "parked"],
        Where(states={"parked"}),
        "pyncette list NAME --state parked shows why; then pyncette retry NAME, or with --drop",
    )
    yield await _number(
        context,
        "failing",
        templates,
        [state for state in statics if state.last_outcome == "failed" and state.state != "parked"],
        Where(failing=True, states={"scheduled", "running", "retrying", "paused"}),
        "pyncette list NAME --failing, and pyncette show NAME INSTANCE for the traceback",
    )


async def _overdue(
    context: PyncetteContext, templates: list[Task], statics: list[TaskState]
) -> Check:
    where = overdue(context)
    assert where.due_before is not None
    late = [
        state
        for state in statics
        if state.state in ("scheduled", "retrying", "running")
        and state.next is not None
        and state.next < where.due_before
    ]
    return await _number(
        context,
        "overdue",
        templates,
        late,
        where,
        "Start workers, or more of them (pyncette workers); is the task paused, or its executor "
        "full (concurrency_limit, PerWorker)?",
    )


async def _partitions(context: PyncetteContext, templates: list[Task]) -> Check | None:
    """Partitions whose instances are overdue, where workers claim from fixed ones."""
    fixed = [
        task
        for task in templates
        if isinstance(task, PartitionedTask) and task.partitions is Partitions.ALL
    ]
    if not fixed:
        return None
    where = overdue(context)
    late: list[str] = []
    for task in fixed:
        late += [
            str(partition)
            for partition in task.get_partitions()[:PARTITIONS_LOOKED_AT_MAX]
            if (await context.count_tasks(partition, where, limit=1)).count
        ]
    if not late:
        return Check("partitions", "ok", "none with overdue instances")
    return Check(
        "partitions",
        "warn",
        f"with overdue instances: {_names(late)}",
        "Does a worker have them in its enabled_partitions? Partitions.SHARED does this by itself",
    )


async def _number(
    context: PyncetteContext,
    name: str,
    templates: list[Task],
    statics: list[TaskState],
    where: Where,
    advice: str,
) -> Check:
    found = [state.task.name for state in statics]
    for task in templates:
        count = await context.count_tasks(task, where, limit=COUNT_LIMIT)
        if count.count:
            found.append(f"{task.name} ({count})")
    return Check(name, "warn", _names(found), advice) if found else Check(name, "ok", "none")


def _names(names: list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
