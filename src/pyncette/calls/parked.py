"""Runs parked tasks again, or gives up their occurrences."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from pyncette.calls.identity import identity_of
from pyncette.calls.requests import Requests
from pyncette.calls.unreadable import reading_record
from pyncette.engine import rules
from pyncette.engine.rules import Policy
from pyncette.errors import printable
from pyncette.store.record import Change, Record, State
from pyncette.task import Task
from pyncette.task_options import INSTANCE_OPTIONS


async def rerun_parked(
    requests: Requests, task: Task, instance_name: str | None, args: Mapping[str, Any]
) -> bool:
    """Runs a parked record again; see ``PyncetteContext.retry_parked``."""
    requests.check_declared(task)
    group, key = identity_of(task, instance_name)
    text = _new_args(task, key, args) if args else None

    def decide(record: Record | None, now: int) -> Change | None:
        return rerun(task, record, now, text)

    done = await requests.change(group, key, decide) is not None
    if done:
        requests.telling.one("retry", task, instance_name)
    return done


async def drop_parked(requests: Requests, task: Task, instance_name: str | None) -> bool:
    """Gives up the occurrence of a parked record; see ``PyncetteContext.drop_parked``."""
    requests.check_declared(task)
    group, key = identity_of(task, instance_name)
    done = await requests.change(group, key, partial(dropped, task)) is not None
    if done:
        requests.telling.one("drop", task, instance_name)
    return done


def dropped(task: Task, record: Record | None, now: int) -> Change | None:
    """Returns the change that gives up the occurrence of a parked record; None: it is not parked.

    Raises:
        TaskUnreadableError: The record cannot be read.
    """
    if record is None or record.state != State.PARKED:
        return None
    with reading_record(record):
        policy = Policy(task.template.fast_forward)
        return rules.dropped(task.reading_of(record), policy, now)


def rerun(task: Task, record: Record | None, now: int, args: str | None = None) -> Change | None:
    """Returns the change that runs a parked record of a task again; None if it is not parked.

    Raises:
        TaskUnreadableError: The record cannot be read.
    """
    if record is None or record.state != State.PARKED:
        return None
    with reading_record(record):
        return rules.rerun(task.reading_of(record), now, args)


def _new_args(task: Task, name: str, args: Mapping[str, Any]) -> str:
    template = task.template
    if not template.dynamic:
        raise TypeError(f"'{printable(task)}' is a static task: its arguments are in the code")
    if wrong := {*INSTANCE_OPTIONS}.intersection(args):
        raise TypeError(
            f"{min(wrong)} is an option, not an argument: retry_parked runs the same occurrence "
            "again. Use schedule_task to give it another schedule"
        )
    # A handle: when it runs is in the record.
    return template.describe(name, {"interval": timedelta(), **args}, complete=True).args_text
