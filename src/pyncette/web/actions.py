"""What the forms of the dashboard ask for: which action, on what, and how it is done."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from pyncette.bulk import BulkFailure, BulkResult
from pyncette.context import PyncetteContext
from pyncette.errors import PyncetteException, plural, printable
from pyncette.model import STATES, StateName, TaskCount, TaskState, Where
from pyncette.showing import named, triggered_text
from pyncette.task import PartitionedTask, Task
from pyncette.web.access import Action
from pyncette.web.jobs import Job

SELECTED_MAX: Final = 1_000
"""Instances that one form may name."""

AT_ONCE: Final = 16
"""Calls that are made at the same time for the instances of a bulk action that has no bulk call."""

PAUSES: Final[Mapping[str, timedelta | None]] = {
    "": None,
    "1h": timedelta(hours=1),
    "8h": timedelta(hours=8),
    "1d": timedelta(days=1),
    "7d": timedelta(days=7),
}
"""How long a pause may last, as the form says it; None: until it is ended."""

PARKED_ONLY: Final = frozenset({Action.RETRY, Action.DROP})
DESTRUCTIVE: Final = frozenset({Action.DROP, Action.UNSCHEDULE, Action.PURGE})

_PARKED: Final[frozenset[StateName]] = frozenset({"parked"})


class BadFormError(Exception):
    """A form or an address asks for what cannot be done. The message is for people."""


class MissingError(BadFormError):
    """It asks for a task or an instance that does not exist."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which instances of a template a list or an action is about.

    Attributes:
        state: In this state; ``"failing"``: those whose last attempt has failed; None: any.
        prefix: Whose name begins with this.
        due_before: That are due before this instant.
        error: Whose last error has this digest, see ``digest_of``. Not the error itself: addresses
            are written into logs, and some viewers may not see it.
    """

    state: str | None = None
    prefix: str = ""
    due_before: datetime | None = None
    error: str | None = None

    @classmethod
    def given(cls, values: Mapping[str, str]) -> Chosen:
        """Reads it from an address or a form.

        Raises:
            BadFormError: A value is invalid.
        """
        state = values.get("state") or None
        if state is not None and state != "failing" and state not in STATES:
            raise BadFormError(f"There is no state {state!r}.")
        due_before = None
        if text := values.get("due_before"):
            try:
                due_before = datetime.fromisoformat(text)
            except ValueError:
                raise BadFormError(
                    f"{text!r} is no time: write it as 2026-11-29T18:00, or with an offset."
                ) from None
            if due_before.tzinfo is None:
                due_before = due_before.replace(tzinfo=UTC)
        return cls(state, values.get("prefix", ""), due_before, values.get("error") or None)

    @property
    def all(self) -> bool:
        """Whether all instances are meant."""
        return self == Chosen()

    def where(self) -> Where:
        """As the calls of the context take it; the error is looked at besides."""
        states: Collection[StateName] | None = None
        if self.state == "failing":
            states = frozenset({"retrying", "parked"})
        elif self.state is not None:
            states = frozenset(name for name in STATES if name == self.state)
        return Where(states=states, prefix=self.prefix, due_before=self.due_before)

    def fields(self) -> dict[str, str]:
        """As a form or an address carries it."""
        given = {
            "state": self.state,
            "prefix": self.prefix,
            "due_before": self.due_before and self.due_before.isoformat(),
            "error": self.error,
        }
        return {name: value for name, value in given.items() if value}

    def words(self) -> str:
        """For people."""
        parts = [
            self.state and f"state {self.state}",
            self.prefix and f"name begins with {printable(self.prefix)!r}",
            self.due_before and f"due before {self.due_before:%Y-%m-%d %H:%M %Z}",
            self.error and "the same error",
        ]
        return ", ".join(part for part in parts if part)


class Wish(NamedTuple):
    """An action that was asked for.

    Attributes:
        action: What to do.
        task: The static task, the template or the partition; None for a purge.
        name: The name of what is purged.
        instance: The instance that it is about.
        selected: The instances that it is about.
        chosen: The instances that it is about, by what they have in common.
        until: When a pause ends.
        reason: Why it is paused.
        back: The page to show afterwards.
    """

    action: Action
    task: Task | None
    name: str
    instance: str | None
    selected: tuple[str, ...]
    chosen: Chosen | None
    until: timedelta | None
    reason: str | None
    back: str

    @property
    def one(self) -> bool:
        """Whether it is about one static task or instance, or about a template by itself."""
        return not self.selected and self.chosen is None and self.action is not Action.PURGE

    @property
    def whole(self) -> bool:
        """Whether it is about a template, or a partition, as a whole."""
        return self.one and self.task is not None and self.task.dynamic and self.instance is None

    def needs_confirmation(self) -> bool:
        """Whether people are asked first: if something is lost, or much is begun.

        Also until when, and why, if several instances are paused.
        """
        if self.action in DESTRUCTIVE or self.chosen is not None:
            return True
        if self.action is Action.PAUSE and self.selected:
            return True
        return self.action is Action.TRIGGER and self.whole


def wish_of(fields: Sequence[tuple[str, str]], tasks: Sequence[Task]) -> Wish:
    """Reads a form.

    Raises:
        BadFormError: It is incomplete, or a value is invalid.
    """
    values = dict(fields)
    try:
        action = Action(values.get("action", ""))
    except ValueError:
        raise BadFormError("The form names no action.") from None
    name = values.get("task", "")
    task = None
    if action is not Action.PURGE:
        task = task_named(name, tasks)
        if values.get("partition"):
            task = _partition(task, values["partition"])
    selected = tuple(dict.fromkeys(value for field, value in fields if field == "selected"))
    if len(selected) > SELECTED_MAX:
        raise BadFormError(f"At most {SELECTED_MAX:,} instances can be selected in one form.")
    scope = values.get("scope", "one")
    if scope == "selected" and not selected:
        raise BadFormError("No instance is selected.")
    instance = values.get("instance") if scope == "one" else None
    if task is not None and not task.dynamic and (instance or scope != "one"):
        raise BadFormError(f"{named(task, None)} is a static task: it has no instances.")
    if values.get("lasting", "") not in PAUSES:
        raise BadFormError("There is no such duration of a pause.")
    wish = Wish(
        action,
        task,
        name,
        instance or None,
        selected if scope == "selected" else (),
        Chosen.given(values) if scope == "matching" else None,
        PAUSES[values.get("lasting", "")],
        values.get("reason") or None,
        _safe_page(values.get("back", "")),
    )
    if wish.one and wish.whole and action in (*PARKED_ONLY, Action.UNSCHEDULE):
        raise BadFormError(f"{action} of a template needs instances: select some, or a filter.")
    if action is Action.UNSCHEDULE and task is not None and not task.dynamic:
        raise BadFormError(f"{named(task, None)} is a static task: it is removed from the code.")
    return wish


def task_named(name: str, tasks: Sequence[Task]) -> Task:
    """Returns the declared task of this name.

    Raises:
        MissingError: There is none.
    """
    for task in tasks:
        if task.name == name:
            return task
    raise MissingError(f"The app declares no task {printable(name)!r}.")


def _partition(task: Task, text: str) -> Task:
    if not isinstance(task, PartitionedTask):
        raise BadFormError(f"{named(task, None)} has no partitions.")
    partitions = task.get_partitions()
    if not (text.isascii() and text.isdecimal()) or int(text) >= len(partitions):
        raise BadFormError(
            f"{named(task, None)} has the partitions 0 to {len(partitions) - 1}, not {text!r}."
        )
    return partitions[int(text)]


def _safe_page(text: str) -> str:
    """A page of the dashboard to go back to: never another site."""
    page, _, query = text.partition("?")
    known = {"", "./", "tasks", "task", "failures", "runs", "next", "workers", "unknown"}
    # It becomes a header: links of the dashboard encode what is not ASCII.
    if page not in known or not text.isascii() or any(each in text for each in "\r\n\\"):
        return "./"
    return f"{page or './'}?{query}" if query else page or "./"


def target(wish: Wish) -> str:
    """What a wish is about, for people."""
    if wish.task is None:
        return printable(wish.name)
    if wish.selected:
        return f"{plural(len(wish.selected), 'instance')} of {named(wish.task, None)}"
    if wish.chosen is not None:
        words = wish.chosen.words()
        return f"all instances of {named(wish.task, None)}" + (f" with {words}" if words else "")
    return named(wish.task, wish.instance)


async def affected(context: PyncetteContext, wish: Wish) -> TaskCount:
    """Counts what a wish is about; of what is parked only, if it is about that.

    Raises:
        StoreError: The store failed.
    """
    if wish.action is Action.PURGE:
        for left in await context.unknown():
            if left.name == wish.name:
                return left.count
        return TaskCount(0, True)
    assert wish.task is not None
    if wish.selected:
        return TaskCount(len(wish.selected), True)
    if wish.whole or wish.chosen is not None:
        chosen = wish.chosen or Chosen()
        if chosen.error is None:
            return await context.count_tasks(wish.task, _where(wish))
        found = 0
        async with aclosing(_matching(context, wish)) as states:
            async for _ in states:
                found += 1
                if found >= SELECTED_MAX:
                    return TaskCount(found, False)
        return TaskCount(found, True)
    return TaskCount(1, True)


def _where(wish: Wish) -> Where:
    where = (wish.chosen or Chosen()).where()
    if wish.action in PARKED_ONLY:
        states = _PARKED if where.states is None else _PARKED & frozenset(where.states)
        where = Where(states=states, prefix=where.prefix, due_before=where.due_before)
    return where


async def _matching(context: PyncetteContext, wish: Wish) -> AsyncGenerator[TaskState]:
    assert wish.task is not None
    error = None if wish.chosen is None else wish.chosen.error
    async with aclosing(context.iter_tasks(wish.task, _where(wish))) as states:
        async for state in states:
            if error is None or digest_of(error_of(state)) == error:
                yield state


def error_of(state: TaskState) -> str:
    """The error by which failures are put together."""
    return (state.last_error or state.reason or "").strip()[:500]


def digest_of(error: str) -> str:
    """What stands for an error in addresses and forms."""
    return hashlib.sha256(error.encode(errors="replace")).hexdigest()[:16]


async def do_one(context: PyncetteContext, wish: Wish) -> str:
    """Does what is about one thing, and returns what was done, for people.

    Raises:
        PyncetteException, ValueError, TypeError: It cannot be done.
    """
    task, instance, what = wish.task, wish.instance, target(wish)
    assert task is not None
    match wish.action:
        case Action.PAUSE:
            until = _end(context, wish)
            await context.pause(task, instance, until=until, reason=wish.reason)
            return f"Paused {what}."
        case Action.RESUME:
            await context.resume(task, instance)
            return f"Resumed {what}."
        case Action.TRIGGER:
            if wish.whole:
                added = await context.trigger(task, instance)
                return f"{plural(added, 'run')} of {what} added."
            added, running = await context._steering.trigger_one(task, instance)
            return f"{triggered_text(what, added, running, context.clock.now())}."
        case Action.RETRY:
            done = await context.retry_parked(task, instance)
            return f"{what} runs again." if done else f"{what} is not parked: nothing was changed."
        case Action.DROP:
            done = await context.drop_parked(task, instance)
            if done:
                return f"Gave up the parked run of {what}."
            return f"{what} is not parked: nothing was changed."
        case Action.UNSCHEDULE:
            await context.unschedule_task(task, instance)
            return f"Removed {what}."
    raise BadFormError(f"{wish.action} is not about one task.")


def _end(context: PyncetteContext, wish: Wish) -> datetime | None:
    """When the pause that is asked for ends; None: when it is resumed."""
    return None if wish.until is None else context.clock.now() + wish.until


async def do_many(context: PyncetteContext, wish: Wish, job: Job) -> BulkResult:
    """Does what is about many instances, in batches, and notes its progress in a job.

    Raises:
        PyncetteException, ValueError, TypeError: It cannot be done.
    """
    told: dict[str, Any] = {"progress": job.progress, "on_failure": job.failed}
    if wish.action is Action.PURGE:
        return await context.purge(wish.name, **told)
    task, chosen = wish.task, wish.chosen
    assert task is not None
    if wish.action is Action.UNSCHEDULE and wish.selected:
        return await context.unschedule_tasks(task, wish.selected, **told)
    if chosen is not None and chosen.error is None:
        match wish.action:
            case Action.UNSCHEDULE:
                return await context.unschedule_tasks(task, where=_where(wish), **told)
            case Action.RETRY:
                return await context.retry_parked_tasks(task, where=_where(wish), **told)
            case Action.DROP:
                return await context.drop_parked_tasks(task, where=_where(wish), **told)
            case Action.PAUSE:
                return await context.pause_tasks(
                    task, where=_where(wish), until=_end(context, wish), reason=wish.reason, **told
                )
            case Action.RESUME:
                return await context.resume_tasks(task, where=_where(wish), **told)
            case Action.TRIGGER:
                return await context.trigger_tasks(task, where=_where(wish), **told)
    return await _each(context, wish, job)


async def _each(context: PyncetteContext, wish: Wish, job: Job) -> BulkResult:
    """Does it for each of the instances, some at a time."""
    changed = failed = unchanged = 0
    failures: list[BulkFailure] = []

    async def do(name: str) -> None:
        nonlocal changed, failed, unchanged
        one = wish._replace(instance=name, selected=(), chosen=None)
        try:
            said = await do_one(context, one)
        except (PyncetteException, ValueError) as error:
            failed += 1
            job.failed(BulkFailure(name, error))
        else:
            if said.endswith("nothing was changed."):
                unchanged += 1
            else:
                changed += 1

    async def names() -> AsyncGenerator[str]:
        if wish.selected:
            for name in wish.selected:
                yield name
        else:
            async with aclosing(_matching(context, wish)) as states:
                async for state in states:
                    yield state.task.name

    batch: list[str] = []
    result = BulkResult(0, 0, 0, 0, 0, ())
    async with aclosing(names()) as every:
        async for name in every:
            batch.append(name)
            if len(batch) == AT_ONCE:
                await asyncio.gather(*map(do, batch))
                batch = []
                result = BulkResult(0, changed, 0, unchanged, failed, ())
                job.progress(result)
    await asyncio.gather(*map(do, batch))
    removed = wish.action is Action.UNSCHEDULE
    return BulkResult(
        0, 0 if removed else changed, changed if removed else 0, unchanged, failed, tuple(failures)
    )


def done_words(result: BulkResult) -> str:
    """What a bulk action has done, for people."""
    counts = {
        "changed": result.updated + result.created,
        "removed": result.removed,
        "left as they were": result.unchanged,
        "failed": result.failed,
    }
    return ", ".join(f"{count:,} {word}" for word, count in counts.items() if count) or "nothing"


TITLES: Final[Mapping[Action, str]] = {
    Action.PAUSE: "Pause",
    Action.RESUME: "Resume",
    Action.TRIGGER: "Run now",
    Action.RETRY: "Retry",
    Action.DROP: "Give up",
    Action.UNSCHEDULE: "Remove",
    Action.PURGE: "Purge",
}

CONSEQUENCES: Final[Mapping[Action, str]] = {
    Action.PAUSE: "Nothing of this starts until it is resumed.",
    Action.RESUME: "What was missed runs as after any other delay.",
    Action.TRIGGER: "Each runs once now. The schedule is not changed by it.",
    Action.RETRY: "Each runs the same occurrence again at once, with all of its attempts.",
    Action.DROP: (
        "The parked run is given up for good. A recurrence goes on with its next run; an instance "
        "without a next run is removed."
    ),
    Action.UNSCHEDULE: "Each is removed with its schedule and its arguments, running or not.",
    Action.PURGE: (
        "All records and pauses of this task are removed. If another app on this store declares "
        "it, they are lost to that app."
    ),
}
