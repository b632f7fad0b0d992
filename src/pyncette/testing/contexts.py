"""The context of a run that does not take place, for a test that calls the function of a task."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from pyncette.model import Context
from pyncette.schedule.zone import parse_timezone
from pyncette.task import Task

__all__ = ["context_for"]

_PLANNED: Final = datetime(2026, 1, 1, tzinfo=UTC)
_EXECUTION_ID: Final = "0" * 32


class _ContextOfTest(Context):
    """It belongs to no run: a heartbeat does nothing, and there is nothing to settle."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"The context of this test has no {name!r}: pass it, as in "
            f"context_for(task, {name}=…). It was made by pyncette.testing.context_for"
        )


def context_for(
    task: Task[...],
    instance_name: str | None = None,
    *,
    args: Mapping[str, Any] | None = None,
    scheduled_at: datetime = _PLANNED,
    attempt: int = 1,
    execution_id: str = _EXECUTION_ID,
    fencing_token: int = 1,
    deadline: datetime | None = None,
    previous_error: str | None = None,
    **attributes: Any,
) -> Context:
    """Returns a context with which a unit test calls a task: nothing is stored, and no app opened.

    ``await invoice(context_for(invoice, attempt=2), email="ada@example.org")``. Its ``heartbeat()``
    does nothing, ``upcoming()`` returns nothing, and ``transaction()`` is refused, because there is
    no run. What it does not have, it refuses with an ``AttributeError`` that says how to pass it.

    Args:
        task: The task; ``context.task`` is this one, or the instance.
        instance_name: The name of an instance, if the task is a template.
        args: What ``context.args`` holds, over the arguments of the declaration.
        scheduled_at: The planned time of the run (aware), by default 2026-01-01 00:00 UTC; the
            context has it in the time zone of the task.
        attempt: See ``Context``, as for the following.
        execution_id: By default 32 zeros.
        fencing_token: By default 1.
        deadline: By default None.
        previous_error: By default None.
        attributes: Fixtures, context items, or an ``app_context`` of your own.

    Raises:
        ValueError: ``scheduled_at`` is naive; or the task is no template, but an instance is named.
        ArgumentError: The function takes no such argument.
    """
    if scheduled_at.tzinfo is None:
        raise ValueError(f"scheduled_at must be aware, not {scheduled_at!r}")
    given = {} if args is None else dict(args)
    if instance_name is not None:
        task = task.instantiate(instance_name, execute_at=scheduled_at, args=given)
        given = {}
    elif (parameters := task.options.parameters) is not None:
        given = parameters.written(given, lambda: str(task), lambda name: "")
    zone = task.template.timezone
    context: Context = _ContextOfTest()
    context.__dict__.update(
        task=task,
        args={**task.extra_args, **given},
        scheduled_at=scheduled_at.astimezone(UTC if zone is None else parse_timezone(zone)),
        attempt=attempt,
        execution_id=execution_id,
        fencing_token=fencing_token,
        deadline=deadline,
        previous_error=previous_error,
        **attributes,
    )
    return context
