"""What a command works with: the app, its open context, and the printer."""

from __future__ import annotations

import argparse
import difflib
import getpass
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from pyncette.app import Pyncette
from pyncette.bulk import BulkFailure, BulkResult
from pyncette.cli.failures import DONE, FAILED, not_found, usage
from pyncette.cli.printing import Printer
from pyncette.errors import describe, plural, printable
from pyncette.model import TaskState, Where
from pyncette.showing import schedule_text
from pyncette.task import PartitionedTask, Task

if TYPE_CHECKING:
    from pyncette.context import PyncetteContext


class Session(NamedTuple):
    """What a command gets.

    Attributes:
        app: The app.
        context: The same, open.
        arguments: What was given.
        out: Where it shows its results.
        declares: Whether the app is that of a program, with its tasks; not that of a bare URL.
    """

    app: Pyncette
    context: PyncetteContext
    arguments: argparse.Namespace
    out: Printer
    declares: bool

    def task(self, name: str | None = None) -> Task:
        """The declared task that was named.

        Raises:
            CommandError: There is none.
        """
        name = self.arguments.task if name is None else name
        if not self.declares:
            raise usage("This needs the tasks of your program: pass --app module:attribute")
        for task in self.app.tasks:
            if task.name == name:
                return task
        near = difflib.get_close_matches(name, [task.name for task in self.app.tasks], 1)
        hint = f"; did you mean '{printable(near[0])}'?" if near else ""
        raise not_found(f"The app declares no task '{printable(name)}'{hint}")

    def chosen(self) -> tuple[Task, str | None]:
        """The task, template, or partition that was named, and the name of the instance."""
        task, instance = self.task(), self.arguments.instance
        if instance is not None and not task.dynamic:
            raise usage(f"'{printable(task)}' is a static task: it has no instances")
        number = getattr(self.arguments, "partition", None)
        if number is not None:
            if not isinstance(task, PartitionedTask):
                raise usage(f"'{printable(task)}' has no partitions")
            if instance is not None:
                raise usage("Name either an instance or a partition")
            partitions = task.get_partitions()
            if number >= len(partitions):
                raise not_found(
                    f"'{printable(task)}' has the partitions 0 to {len(partitions) - 1}"
                )
            task = partitions[number]
        return task, instance

    def where(self) -> Where:
        """Which instances were chosen."""
        given = self.arguments
        return Where(
            states=getattr(given, "state", None) or None,
            prefix=given.prefix or "",
            due_before=getattr(given, "due_before", None),
            failing=True if getattr(given, "failing", False) else None,
        )

    def filtered(self, task: Task, instance: str | None) -> bool:
        """Returns whether instances were chosen by what they are like.

        Raises:
            CommandError: They were, and also by name, or the task has none.
        """
        if not (self.arguments.prefix or getattr(self.arguments, "state", None)):
            return False
        if instance is not None or not task.dynamic:
            raise usage("--prefix and --state choose instances of a template")
        return True

    async def bulk(
        self, call: Callable[..., Awaitable[BulkResult]], task: Task, **options: Any
    ) -> int:
        """Makes a bulk call for the instances that were chosen; returns the exit code."""
        return self.bulk_end(
            await call(
                task,
                where=self.where(),
                progress=self.bulk_progress,
                on_failure=self.bulk_failure,
                **options,
            )
        )

    def bulk_progress(self, result: BulkResult) -> None:
        """Shows how far a bulk call is."""
        self.out.progress(f"{plural(result.handled, 'instance')} handled")

    def bulk_failure(self, failure: BulkFailure) -> None:
        """Tells of an instance that a bulk call could not handle."""
        self.out.note(f"pyncette: {printable(failure.name)}: {describe(failure.error)}")

    def bulk_end(self, result: BulkResult, noun: str | None = None) -> int:
        """Shows what a bulk call has done, and to what; returns the exit code."""
        self.out.end_progress()
        counts = {
            "created": result.created,
            "updated": result.updated,
            "removed": result.removed,
            "unchanged": result.unchanged,
            "failed": result.failed,
        }
        self.out.data(counts)
        told = [(count, name) for name, count in counts.items() if count]
        if noun is not None:
            told = [(count, f"{noun if count == 1 else f'{noun}s'} {name}") for count, name in told]
        said = ", ".join(f"{count:,} {name}" for count, name in told)
        self.out.text(said or "nothing to do")
        return FAILED if result.failed else DONE


def person() -> str:
    """Who runs this command: the user of the operating system, and that it is a command line."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container without users
        name = f"user {os.getuid()}" if hasattr(os, "getuid") else "a user"
    return f"{name[:100]} (cli)"


def state_data(state: TaskState) -> dict[str, Any]:
    """A state, as programs get it."""
    task = state.task
    try:
        args: dict[str, Any] | None = state.args
    except ValueError:
        args = None
    instance = task.parent_task is not None
    return {
        "task": task.template.name if instance else task.name,
        "instance": task.name if instance else None,
        "state": state.state,
        "schedule": schedule_text(task),
        "inherited": state.inherited,
        "args": args,
        "scheduled_at": utc(state.scheduled_at),
        "next": utc(state.next),
        "locked_by": state.locked_by,
        "locked_until": utc(state.locked_until),
        "attempt": state.attempt,
        "reason": state.reason,
        "paused_until": utc(state.paused_until),
        "paused_since": utc(state.paused_since),
        "paused_by": state.paused_by,
        "last_started_at": utc(state.last_started_at),
        "last_finished_at": utc(state.last_finished_at),
        "last_outcome": None if state.last_outcome is None else str(state.last_outcome),
        "last_error": state.last_error,
        "last_traceback": state.last_traceback,
        "skipped": state.skipped,
    }


def utc(instant: datetime | None) -> str | None:
    """An instant, as programs get it."""
    return None if instant is None else instant.astimezone(UTC).isoformat()
