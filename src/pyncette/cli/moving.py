"""``export`` and ``import``: instances as JSON lines, from one store to another.

The first line names the format, then come pauses, then instances, and the last line holds their
number. Schedules are written as a store keeps them. An instance that follows the default of its
template has none, and follows that of the app that imports it; only its own arguments are written.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, aclosing, contextmanager, suppress
from datetime import UTC, datetime
from itertools import groupby, islice
from typing import IO, Any, Final

from pyncette.bulk import BulkResult, Instance
from pyncette.cli.failures import DONE, FAILED, CommandError, usage
from pyncette.cli.session import Session, utc
from pyncette.errors import PyncetteException, describe, plural, printable
from pyncette.model import OnExisting, TaskState
from pyncette.schedule import dumps, loads
from pyncette.store.record import load_args
from pyncette.task import PartitionedTask, Task

FORMAT: Final = 1

_LINES_AT_ONCE: Final = 1_000

_NEVER: Final = datetime(2250, 1, 1, tzinfo=UTC)
"""When a paused instance is planned for until it is paused: it must not run in between."""


async def export(session: Session) -> int:
    """Writes the instances of templates, and what is paused."""
    given = session.arguments
    if not session.declares:
        session.task("")  # says that it needs an app
    names = given.tasks or [task.name for task in session.app.tasks if task.dynamic]
    templates = [session.task(name) for name in names]
    for template in templates:
        if not template.dynamic:
            raise usage(f"'{printable(template)}' is a static task: its schedule is in the code")
    if given.output is None:
        if sys.stdout is None:
            raise CommandError("There is no standard output to write to: pass --output FILE")
        count, failed = await _write(session, templates, sys.stdout)
    else:
        with _written(given.output) as stream:
            count, failed = await _write(session, templates, stream)
    session.out.note(
        f"{plural(count, 'instance')} exported" + (f", {failed:,} failed" if failed else "")
    )
    return FAILED if failed else DONE


async def _write(session: Session, templates: list[Task], stream: IO[str]) -> tuple[int, int]:
    def put(line: dict[str, Any]) -> None:
        stream.write(json.dumps(line, allow_nan=False) + "\n")

    context = session.context
    chosen = {template.name for template in templates}
    put({"kind": "export", "format": FORMAT, "at": utc(context.clock.now())})
    for pause in await context.pauses():
        if pause.name in chosen:
            put(_pause_line(pause.name, pause.partition, pause.until, pause.reason))
    if not session.arguments.tasks:
        for state in await context.static_tasks():
            if state.state == "paused":
                put(_pause_line(state.task.name, None, state.paused_until, state.reason))
    count = failed = 0
    for template in templates:
        async with aclosing(context.iter_tasks(template)) as states:
            async for state in states:
                if state.state == "finished":
                    continue
                try:
                    put(_instance_line(template, state))
                except ValueError as error:
                    failed += 1
                    session.out.note(f"pyncette: {printable(state.task)}: {error}")
                    continue
                count += 1
                if not count % _LINES_AT_ONCE:
                    session.out.progress(f"{count:,} instances")
    put({"kind": "end", "instances": count})
    return count, failed


def _pause_line(
    name: str, partition: int | None, until: datetime | None, reason: str | None
) -> dict[str, Any]:
    return {
        "kind": "pause",
        "task": name,
        "partition": partition,
        "until": utc(until),
        "reason": reason,
    }


def _instance_line(template: Task, state: TaskState) -> dict[str, Any]:
    plan = state.task.named_plan
    if plan is None:
        raise ValueError(f"its schedule cannot be read: {state.reason or 'see pyncette show'}")
    line: dict[str, Any] = {
        "kind": "instance",
        "task": template.name,
        "instance": state.task.name,
        "schedule": None if state.inherited else dumps(plan),
        "args": load_args(state.task.args_text),
        "state": state.state,
        "next": utc(state.next),
    }
    try:
        json.dumps(line["args"], allow_nan=False)
    except ValueError:
        # JSON has no infinite numbers and no NaN, but Python's does: another program reads a text.
        line |= {"args": None, "args_text": json.dumps(line["args"])}
    if state.state in ("paused", "parked"):
        line |= {"reason": state.reason, "paused_until": utc(state.paused_until)}
    return line


class _Import:
    """Schedules the lines of a file, in batches."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._on_existing = OnExisting(session.arguments.on_existing)
        self._now = session.context.clock.now()
        self.counts = dict.fromkeys(("created", "updated", "unchanged", "failed", "parked"), 0)
        self.announced: int | None = None
        self._met = 0
        self._unknown: set[str] = set()

    async def read(self, lines: Iterator[str]) -> None:
        """Handles all lines."""
        number = 0
        while batch := list(islice(lines, _LINES_AT_ONCE)):
            read = []
            for text in batch:
                number += 1
                if text.strip():
                    read.append(_line_of(text, number))
            for (kind, name), group in groupby(read, lambda line: (line["kind"], line.get("task"))):
                if kind == "pause":
                    await self._pauses(name, group)
                elif kind == "instance":
                    await self._instances(name, list(group))
                elif kind == "end":
                    self.announced = next(group).get("instances")
                elif kind != "export":
                    raise CommandError(
                        f"This is no export: a line of it has the kind '{printable(kind)}'. Only "
                        "what pyncette export has written can be imported"
                    )
                else:
                    for line in group:
                        if line.get("format") != FORMAT:
                            raise CommandError(
                                "This was exported by a later release, in a format that is unknown"
                            )
            self._session.out.progress(f"{plural(self._met, 'instance')} handled")

    @property
    def complete(self) -> bool:
        """Whether the export had its last line, and as many instances as that says."""
        return self.announced == self._met

    def _task(self, name: str) -> Task | None:
        for task in self._session.app.tasks:
            if task.name == name:
                return task
        if name not in self._unknown:
            self._unknown.add(name)
            self._session.out.note(f"pyncette: the app declares no task '{printable(name)}'")
        return None

    async def _pauses(self, name: str, lines: Iterable[dict[str, Any]]) -> None:
        for line in lines:
            task, until = self._task(name), _instant(line.get("until"))
            if task is None:
                self.counts["failed"] += 1
                continue
            if until is not None and until <= self._now:
                continue
            if line.get("partition") is not None:
                partitions = task.get_partitions() if isinstance(task, PartitionedTask) else []
                if line["partition"] >= len(partitions):
                    self.counts["failed"] += 1
                    self._session.out.note(
                        f"pyncette: {printable(task)} has no partition {line['partition']} to pause"
                    )
                    continue
                task = partitions[line["partition"]]
            await self._session.context.pause(task, until=until, reason=line.get("reason"))

    async def _instances(self, name: str, lines: list[dict[str, Any]]) -> None:
        self._met += len(lines)
        template = self._task(name)
        if template is None or not template.dynamic:
            self.counts["failed"] += len(lines)
            return
        plain: list[Instance] = []
        for line in lines:
            try:
                instance = _instance(line)
            except (ValueError, KeyError, TypeError) as error:
                self._failed(str(line.get("instance")), error)
                continue
            if line.get("state") == "parked" and self._session.arguments.parked == "skip":
                self.counts["parked"] += 1
            elif line.get("state") == "paused" and self._is_still_paused(line):
                await self._paused(template, instance, line)
            else:
                plain.append(instance)
        result: BulkResult = await self._session.context.schedule_tasks(
            template,
            plain,
            on_existing=self._on_existing,
            on_failure=self._session.bulk_failure,
        )
        for count in ("created", "updated", "unchanged", "failed"):
            self.counts[count] += getattr(result, count)

    def _is_still_paused(self, line: dict[str, Any]) -> bool:
        until = _instant(line.get("paused_until"))
        return until is None or until > self._now

    async def _paused(self, template: Task, instance: Instance, line: dict[str, Any]) -> None:
        context, name = self._session.context, instance.name
        args = {"args": instance.options["args"]} if "args" in instance.options else {}
        try:
            found = await context.get_task(template, name)
            # What an interrupted import has left is planned for that time, and is gone on with.
            present = found is not None and found.task.execute_at != _NEVER
            if present and self._on_existing is OnExisting.KEEP:
                self.counts["unchanged"] += 1
                return
            if not present:
                await context.schedule_task(
                    template, name, execute_at=_NEVER, on_existing=OnExisting.REPLACE, **args
                )
            await context.pause(
                template,
                name,
                until=_instant(line.get("paused_until")),
                reason=line.get("reason"),
            )
            await context.schedule_task(
                template, name, on_existing=OnExisting.REPLACE, **instance.options
            )
        except (PyncetteException, ValueError, TypeError) as error:
            self._failed(name, error)
        else:
            self.counts["updated" if present else "created"] += 1

    def _failed(self, name: str, error: Exception) -> None:
        self.counts["failed"] += 1
        self._session.out.note(f"pyncette: {printable(name)}: {describe(error)}")


async def take_in(session: Session) -> int:
    """Schedules what ``export`` has written."""
    if not session.declares:
        session.task("")
    work = _Import(session)
    name = session.arguments.file
    with ExitStack() as stack:
        stream: IO[str] = sys.stdin
        if name is None and stream is None:
            raise CommandError("There is no standard input to read: pass a file")
        if name is not None:
            stream = stack.enter_context(_opened(name, "r"))
        await work.read(iter(stream))
    session.out.end_progress()
    session.out.data(work.counts)
    said = ", ".join(f"{count:,} {what}" for what, count in work.counts.items() if count)
    session.out.text(said or "nothing to do")
    if work.counts["parked"]:
        session.out.note("Parked instances were left out: --parked run schedules them anew")
    if not work.complete:
        session.out.note("pyncette: the export is not complete: it was cut off")
        return FAILED
    return FAILED if work.counts["failed"] else DONE


@contextmanager
def _written(name: str) -> Iterator[IO[str]]:
    """A file that appears, or changes, only once all of it is written.

    Links are followed. A file that exists keeps its mode; a new one is for its owner alone, because
    arguments may be secret. What is no file, as a device or a pipe, is written to directly.
    """
    try:
        before = os.stat(name)
    except FileNotFoundError:
        before = None
    except OSError as error:
        raise _not_opened(name, error) from None
    # The standard output may be a file, too: what wrote to it before must stay.
    if before is not None and (not stat.S_ISREG(before.st_mode) or _is_standard(before)):
        with _opened(name, "w" if not _is_standard(before) else "a") as stream:
            yield stream
        return
    path = os.path.realpath(name)
    try:
        # Beside it, so that it can be renamed; mkstemp makes a file that nobody else can read.
        import tempfile  # with all that compresses files, which no other command needs

        descriptor, part = tempfile.mkstemp(
            ".part", f".{os.path.basename(path)[:100]}.", os.path.dirname(path)
        )
    except OSError as error:
        raise _not_opened(name, error) from None
    try:
        with open(descriptor, "w", encoding="utf-8") as stream:
            yield stream
            stream.flush()
            if before is not None:
                _keep_rights(part, before)
            os.fsync(stream.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


def _is_standard(status: os.stat_result) -> bool:
    """Whether this is what the standard output or the standard error goes to."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.path.samestat(status, os.fstat(descriptor)):
                return True
    return False


def _keep_rights(part: str, before: os.stat_result) -> None:
    """Gives a file the owner and the mode of the one that it replaces, as far as it may."""
    if hasattr(os, "chown"):
        with suppress(OSError):
            os.chown(part, before.st_uid, before.st_gid)
    os.chmod(part, stat.S_IMODE(before.st_mode))


def _opened(name: str, mode: str) -> IO[str]:
    try:
        return open(name, mode, encoding="utf-8")
    except OSError as error:
        raise _not_opened(name, error) from None


def _not_opened(name: str, error: OSError) -> CommandError:
    return CommandError(f"Cannot open {printable(name)}: {error.strerror}")


def _line_of(line: str, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
        raise CommandError(
            f"Line {number} is no line of an export; what came before in other batches was "
            "imported, and importing again goes on"
        )
    return found


def _instance(line: dict[str, Any]) -> Instance:
    options: dict[str, Any] = {}
    if line["schedule"] is not None:
        options["schedule"] = loads(line["schedule"])
    if line.get("args_text") is not None:
        options["args"] = json.loads(line["args_text"])
    elif line["args"]:
        options["args"] = line["args"]
    return Instance(line["instance"], **options)


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
