"""``doctor``: checks what goes wrong in practice, and says what to do."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from pyncette import checks
from pyncette.app import Pyncette
from pyncette.cli.failures import DONE, FAILED, CommandError
from pyncette.cli.printing import Printer
from pyncette.cli.values import OPEN_TIMEOUT_S
from pyncette.clock import realtime
from pyncette.errors import (
    PyncetteException,
    StoreError,
    StoreMisconfiguredError,
    StoreUnavailableError,
    TaskUnreadableError,
    describe,
    plural,
    printable,
)
from pyncette.model import TaskState, UnknownTask, Where
from pyncette.schedule import parse_timezone
from pyncette.showing import (
    PAUSED_LONG_AFTER,
    SILENT_AFTER,
    died_text,
    duration_text,
    overdue,
    pause_text,
)
from pyncette.store import Group
from pyncette.task import PartitionedTask, Task

if TYPE_CHECKING:
    from pyncette.context import PyncetteContext

COUNT_LIMIT: Final = 1_000

LOOKED_AT_MAX: Final = 1_000
"""How many instances of each template are looked at for what no index tells."""

PAUSED_SHOWN_MAX: Final = 100
"""How many paused instances of each template are told of."""

EXPLAINED_MAX: Final = 10
"""Of how many tasks a check says why they fail."""

ERROR_SHOWN_MAX: Final = 200

OPEN_GRACE_S: Final = 1.0
"""How much longer it is waited for, so that the error that the store gives is shown."""

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
    load: Callable[[], tuple[Pyncette, bool]],
    out: Printer,
    strict: bool = False,
    timeout: float = OPEN_TIMEOUT_S,
) -> int:
    """Makes all checks, shows each, and returns the exit code.

    Args:
        load: Returns the app, and whether it has the tasks of a program.
        out: Where the checks are shown.
        strict: Whether a warning is a failure, too.
        timeout: How long opening the store may take, in seconds.
    """
    levels: list[Level] = []
    # What reads the output may end before the checks do: they close the app then, too.
    async with aclosing(_checks(load, timeout)) as checks:
        async for check in checks:
            levels.append(check.level)
            out.data(check._asdict())
            out.text(f"{check.level:<5} {check.name}: {printable(check.found)}")
            if check.advice:
                out.text(f"      {printable(check.advice)}")
    warnings, failures = levels.count("warn"), levels.count("fail")
    out.text(
        ", ".join(
            plural(number, word)
            for number, word in (
                (len(levels), "check"),
                (warnings, "warning"),
                (failures, "failure"),
            )
        )
    )
    return FAILED if failures or (strict and warnings) else DONE


async def _checks(
    load: Callable[[], tuple[Pyncette, bool]], timeout: float
) -> AsyncGenerator[Check, None]:
    try:
        app, declares = load()
    except ImportError as error:
        yield Check("driver", "fail", str(error), "Install it as the message says")
        return
    except CommandError as error:
        yield Check("app", "fail", str(error))
        return
    yield Check("app", "ok", plural(len(app.tasks), "task") if declares else "the store alone")
    yield _zones(app)
    if declares and not app.tasks:
        yield Check(
            "tasks",
            "warn",
            "the app declares no task",
            "Is this the module that imports those that declare tasks?",
        )
    if checks.is_in_memory(app):
        yield Check(
            "in memory",
            "warn",
            "the app keeps its records in memory: no other process sees them",
            "Name a file or a server, for example url='sqlite:///tasks.db'",
        )
    app._open_timeout = timedelta(seconds=timeout)
    reached = False
    try:
        async with AsyncExitStack() as stack:
            context = await _open(app, stack, timeout)
            reached = True
            yield Check("store", "ok", "reached; its version and the layout of its tables fit")
            async for check in _of_store(app, context, declares):
                yield check
    except StoreUnavailableError as error:
        yield Check(
            "store",
            "fail",
            str(error),
            "It answered a moment ago: has something locked the table, or is it overloaded?"
            if reached
            else "Is the server up, is its name right, does a firewall let this machine through, "
            "and has something locked the table?",
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


async def _open(app: Pyncette, stack: AsyncExitStack, timeout: float) -> PyncetteContext:
    """Opens the app.

    Raises:
        StoreUnavailableError: It took longer than it may.
    """
    try:
        async with realtime.timeout(timeout + OPEN_GRACE_S) as deadline:
            return await stack.enter_async_context(app.create(fixtures=False))
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise StoreUnavailableError(
            f"The store was not opened within {timeout:g} s: it did not answer"
        ) from error


def _zones(app: Pyncette) -> Check:
    # Not at the top: it brings the reading of mail with it, which all commands would wait for.
    from importlib.metadata import PackageNotFoundError, version

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
    yield await _rights(context)
    yield await _indexes(context)
    yield await _speed(context)
    yield _clock(app, context)
    crew = await checks.crew(app, context)
    yield _workers(crew)
    yield _gone(crew, context.clock.now())
    if declares:
        async for check in _of_tasks(app, context, crew):
            yield check
    yield _unknown(await context.unknown(), app if declares else None)
    now = context.clock.now()
    yield _pauses(
        "paused templates",
        [
            _Pause(
                pause.name + ("" if pause.partition is None else f" partition {pause.partition}"),
                pause.since,
                pause.until,
                pause.by,
                pause.reason,
            )
            for pause in await context.pauses()
        ],
        now,
    )


async def _rights(context: PyncetteContext) -> Check:
    try:
        await context.purge(PROBE)
        # Of a group that no app has, and with a limit of zero: it looks for what is due, only.
        now = context.clock.microseconds()
        await context._store.claim([Group(PROBE, 1, 1, now)], 0, now, PROBE)
    except StoreUnavailableError:
        raise  # it says nothing about rights
    except StoreError as error:
        return Check(
            "rights", "fail", describe(error), "Grant the rights that the documentation lists"
        )
    return Check("rights", "ok", "may read, write and look for what is due")


async def _indexes(context: PyncetteContext) -> Check:
    """What the store misses, and works without."""
    try:
        missed = await context._store.shortcomings()
    except StoreError as error:
        return Check("indexes", "fail", describe(error), "See the log of the server")
    if not missed:
        return Check("indexes", "ok", "none is missing")
    return Check(
        "indexes",
        "warn",
        "; ".join(missed),
        "See the page of the store in the documentation: it tells how to add it, and the rights "
        "that it needs",
    )


class _Pause(NamedTuple):
    """What is paused."""

    name: str
    since: datetime | None
    until: datetime | None
    by: str | None
    reason: str | None


def _pause_of(name: str, state: TaskState) -> _Pause:
    return _Pause(name, state.paused_since, state.paused_until, state.paused_by, state.reason)


async def _paused_instances(context: PyncetteContext, task: Task) -> AsyncIterator[_Pause]:
    """Some of the instances that are paused by themselves; stores have an index of them."""
    left = PAUSED_SHOWN_MAX
    async with aclosing(context.iter_tasks(task, Where(states={"paused"}))) as states:
        async for state in states:
            yield _pause_of(f"{task.name} {state.task.name}", state)
            left -= 1
            if not left:
                break


def _pauses(name: str, pauses: Sequence[_Pause], now: datetime) -> Check:
    """Pauses that end by themselves, and soon, are as they should be; the others are told of."""
    if not pauses:
        return Check(name, "ok", "none")
    said = _names([f"{pause.name} {pause_text(*pause[1:], now=now)}" for pause in pauses])
    long = [pause for pause in pauses if checks.is_forgotten(pause.since, now)]
    if long:
        return Check(
            name,
            "warn",
            said,
            f"Paused for more than {duration_text(PAUSED_LONG_AFTER)}: "
            f"{_names([pause.name for pause in long])}. Ask who paused it; if it was forgotten: "
            "pyncette resume NAME",
        )
    if all(pause.until for pause in pauses):
        return Check(name, "ok", said)
    return Check(name, "warn", said, "If it was forgotten: pyncette resume NAME")


def _unknown(unknown: list[UnknownTask], app: Pyncette | None) -> Check:
    unknown = checks.left_behind(unknown)
    names = _names([f"{left.name} ({left.count})" for left in unknown])
    if app is None:
        return Check("tasks in the store", "ok", names or "none")
    if not unknown:
        return Check("unknown tasks", "ok", "none")
    near = [
        f"'{name}' is near to '{close}', which is declared"
        for name, close in checks.nearest(unknown, app).items()
    ]
    advice = (
        'If one was renamed, give it its old name (name="…"); if another app owns it, leave it; if '
        "it is gone, pyncette purge NAME"
    )
    return Check(
        "unknown tasks",
        "warn",
        f"in the store, but not declared: {names}" + (f"; {_names(near)}" if near else ""),
        advice,
    )


async def _speed(context: PyncetteContext) -> Check:
    fastest = await checks.answer_time(context)
    text = f"answers in {duration_text(fastest)}"
    if not checks.is_slow(fastest):
        return Check("speed", "ok", text)
    return Check(
        "speed",
        "warn",
        text,
        "Look at the load of the server, its disk, its locks, and the way to it: a worker makes "
        "some calls for each batch of runs, so they start late",
    )


def _clock(app: Pyncette, context: PyncetteContext) -> Check:
    offset = checks.clock_offset(app, context)
    if offset is None:
        return Check("clock", "ok", "the store uses the clock of this machine")
    seconds = offset.total_seconds()
    if checks.is_off(offset):
        return Check(
            "clock",
            "warn",
            f"the clock of this machine is {seconds:+.1f} s off that of the store",
            "Workers correct it, but the times in logs differ: let both use NTP",
        )
    return Check("clock", "ok", f"{seconds:+.3f} s off that of the store")


def _workers(crew: checks.Crew) -> Check:
    if not crew.alive:
        return Check("workers", "warn", "none is alive", "Start one: pyncette run")
    if crew.silent:
        return Check(
            "workers",
            "warn",
            f"silent for more than {SILENT_AFTER.seconds} s: "
            f"{_names([worker.name for worker in crew.silent])}",
            "It was killed, or its event loop is blocked by a body: look at its log, restart it",
        )
    names = _names([worker.name for worker in crew.alive])
    return Check("workers", "ok", f"{len(crew.alive)} alive: {names}")


def _gone(crew: checks.Crew, now: datetime) -> Check:
    if not crew.died:
        within = duration_text(checks.GONE_WITHIN)
        return Check("workers that died", "ok", f"none within {within}")
    return Check(
        "workers that died",
        "warn",
        _names([died_text(worker, now) for worker in crew.died]),
        "It was killed, or is frozen, or does not reach the store: look at its log. If no other "
        "one has replaced it, restart it. Others run what it has claimed when its leases have "
        "ended",
    )


async def _of_tasks(
    app: Pyncette, context: PyncetteContext, crew: checks.Crew
) -> AsyncIterator[Check]:
    if crew.alive:
        if crew.unserved:
            yield Check(
                "tasks without a worker",
                "warn",
                _names([task.name for task in crew.unserved]),
                "Are the workers of an older release of your program, or have none of them its "
                "tags (worker_tags)? Deploy this release, or start one with these tags",
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
    async for check in _looked_at(context, templates, statics):
        yield check
    partitions = await _partitions(context, templates)
    if partitions is not None:
        yield partitions
    async for check in _moves(app, context):
        yield check
    yield _pauses(
        "paused tasks",
        [_pause_of(state.task.name, state) for state in statics if state.state == "paused"]
        + [pause for task in templates async for pause in _paused_instances(context, task)],
        context.clock.now(),
    )
    yield await _number(
        context,
        "parked",
        templates,
        [state for state in statics if state.state == "parked"],
        Where(states={"parked"}),
        "pyncette list NAME --state parked shows why; then pyncette retry NAME, or with --drop. "
        "What cannot be read (UnreadableRecord) is scheduled anew, or removed, with pyncette "
        "schedule or unschedule",
        why=True,
    )
    yield await _number(
        context,
        "failing",
        templates,
        checks.failing(statics),
        Where(failing=True, states={"scheduled", "running", "retrying", "paused"}),
        "pyncette list NAME --failing, and pyncette show NAME INSTANCE for the traceback",
        why=True,
    )


async def _moves(app: Pyncette, context: PyncetteContext) -> AsyncIterator[Check]:
    """Moves to another number of partitions that have not ended, and what they have left."""
    if not any(isinstance(task, PartitionedTask) for task in app.tasks):
        return
    found = await checks.moves(context, app.tasks)
    moving = [f"{task.name} {number}" for task, number in found.under_way]
    stray = [f"{task.name} {number}" for task, number in found.left]
    if moving:
        yield Check(
            "moves",
            "warn",
            f"under way, or interrupted, to another number of partitions: {_names(moving)}",
            f"If no rebalance runs: pyncette rebalance {moving[0]}",
        )
    if stray:
        yield Check(
            "moves",
            "warn",
            f"instances lie in partitions that no worker claims from: {_names(stray)}",
            f"A frozen program has created them after a move: pyncette rebalance {stray[0]}",
        )
    if not moving and not stray:
        yield Check("moves", "ok", "none under way, and nothing was left by one")


async def _overdue(
    context: PyncetteContext, templates: list[Task], statics: list[TaskState]
) -> Check:
    return await _number(
        context,
        "overdue",
        templates,
        [state for state in statics if checks.is_overdue(context, state)],
        overdue(context),
        "Start workers, or more of them (pyncette workers); is the task paused, or its executor "
        "full (concurrency_limit, PerWorker)?",
    )


async def _looked_at(
    context: PyncetteContext, templates: list[Task], statics: list[TaskState]
) -> AsyncIterator[Check]:
    """Instances that will never run, or not for long: among some of each template.

    Their row was edited, or a clock that was ahead has counted their lease. No index tells of them,
    and no worker looks at them. Static tasks whose row was edited are shown as parked.
    """
    stranded: list[str] = []
    held = [state.task.name for state in statics if checks.is_held_too_long(state)]
    in_part: list[str] = []
    for task in templates:
        found = await checks.look(context, task, LOOKED_AT_MAX)
        stranded += [f"{task.name} {state.task.name}" for state in found.stranded]
        held += [
            f"{task.name} {state.task.name} until "
            f"{'' if state.next is None else state.next.isoformat(' ', 'seconds')}"
            for state in found.held
        ]
        if found.partial:
            in_part.append(task.name)
    part = ""
    if in_part:
        part = f"; of {_names(in_part)}, {LOOKED_AT_MAX:,} instances were looked at"
    for name, names, advice in (
        (
            "never due",
            stranded,
            "The due_at of their rows was edited or lost: schedule or trigger them, and they run "
            "again",
        ),
        (
            "leases",
            held,
            "A clock that was ahead has counted the lease, and nothing claims it before its end. "
            "If no worker runs it any more: pyncette schedule NAME INSTANCE --force, with its "
            "schedule and arguments (pyncette show NAME INSTANCE), or pyncette unschedule NAME "
            "INSTANCE; without --force it is refused, or waits for that end, as trigger does. The "
            "next start of a worker mends static tasks",
        ),
    ):
        if names:
            yield Check(name, "warn", f"{_names(names)}{part}", advice)
        else:
            yield Check(name, "ok", f"none{part}")


async def _partitions(context: PyncetteContext, templates: list[Task]) -> Check | None:
    """Partitions whose instances are overdue, where workers claim from fixed ones."""
    if not any(map(checks.has_fixed_partitions, templates)):
        return None
    late = [
        str(partition)
        for task in templates
        for partition in await checks.late_partitions(context, task)
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
    why: bool = False,
) -> Check:
    """What static tasks and how many instances are in some state, and why the first of them is."""
    found: list[str] = []
    for state in statics:
        text = await _why(context, state) if why and len(found) < EXPLAINED_MAX else ""
        found.append(state.task.name + text)
    for task in templates:
        count = await context.count_tasks(task, where, limit=COUNT_LIMIT)
        if count.count:
            text = ""
            if why and len(found) < EXPLAINED_MAX:
                page = await context.list_tasks(task, where=where, limit=1)
                for state in page.tasks:
                    text = f", such as {state.task.name}{await _why(context, state)}"
            found.append(f"{task.name} ({count}){text}")
    return Check(name, "warn", _names(found), advice) if found else Check(name, "ok", "none")


async def _why(context: PyncetteContext, state: TaskState) -> str:
    """How the last attempt has failed, and since when none has succeeded, as far as is known."""
    told = (state.last_error or state.reason or "").strip().splitlines()
    text = f": {told[0][:ERROR_SHOWN_MAX]}" if told else ""
    if state.last_finished_at is not None:
        text += f", last at {state.last_finished_at.isoformat(' ', 'seconds')}"
    success = await checks.last_success(context, state)
    if success is not None:
        text += f", last success at {success.isoformat(' ', 'seconds')}"
    return text


def _names(names: list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
