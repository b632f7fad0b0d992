"""Tells the handlers of events of the calls that have changed what runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol

from pyncette.acting import actor
from pyncette.clock import from_microseconds
from pyncette.errors import printable
from pyncette.events import Action, InstanceSteered, Steered
from pyncette.model import Where
from pyncette.observers import Reporter
from pyncette.store.record import Pause, template_of
from pyncette.task import Task


class Counted(Protocol):
    """What a call that is about many has done so far.

    Attributes:
        changed, failed: How many instances or static tasks.
        effective: Whether it has changed anything.
    """

    @property
    def changed(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def effective(self) -> bool: ...


class Telling:
    """Tells of calls, once the store has answered them."""

    def __init__(self, reporter: Reporter, in_transaction: bool = False) -> None:
        """Tells the handlers of an app.

        Args:
            reporter: Tells of a worker.
            in_transaction: Whether the calls are made in a transaction of the application.
        """
        self._reporter = reporter
        self._observers = reporter.observers
        self._in_transaction = in_transaction

    def instance(self, action: Action, template: str, name: str) -> None:
        """Tells of an instance that was scheduled or removed; there may be millions."""
        by = actor()
        if by is None and not self._observers.watch_instances:
            return
        here = self._reporter.here()
        if self._observers.watch_instances:
            self._observers.tell_detail(
                InstanceSteered(
                    **here,
                    action=action,
                    task=template,
                    instance=name,
                    by=by,
                    in_transaction=self._in_transaction,
                )
            )
        if by is not None and self._observers.watch_steering():
            self._reporter.tell(
                Steered(
                    **here,
                    action=action,
                    task=template,
                    instance=name,
                    label=printable(f"{template}:{name}"),
                    by=by,
                    in_transaction=self._in_transaction,
                )
            )

    def one(
        self,
        action: Action,
        task: Task,
        name: str | None,
        *,
        pause: Pause | None = None,
        count: int | None = 1,
    ) -> None:
        """Tells of a static task, an instance, or of a template or partition as a whole."""
        if self._observers.watch_steering():
            template, instance, partition = _named(task, name)
            self._reporter.tell(
                Steered(
                    **self._reporter.here(),
                    action=action,
                    task=template,
                    instance=instance,
                    partition=partition,
                    label=label_of(template, instance, partition),
                    count=count,
                    until=None if pause is None else _shown(pause.until),
                    reason=None if pause is None else pause.reason,
                    by=actor(),
                    in_transaction=self._in_transaction,
                )
            )

    @contextmanager
    def many(
        self,
        action: Action,
        task: Task | str,
        counted: Counted,
        where: str | None = None,
        partition_count: int | None = None,
        pause: Pause | None = None,
    ) -> Iterator[None]:
        """Tells of a call that changes many, at its end, also if it fails half-way."""
        interrupted = True
        try:
            yield
            interrupted = False
        finally:
            if counted.effective and self._observers.watch_steering():
                name, partition = task, None
                if isinstance(task, Task):
                    name, _, partition = _named(task, None)
                self._reporter.tell(
                    Steered(
                        **self._reporter.here(),
                        action=action,
                        task=str(name),
                        partition=partition,
                        label=label_of(str(name), None, partition),
                        count=counted.changed,
                        failed=counted.failed,
                        where=where,
                        partition_count=partition_count,
                        until=None if pause is None else _shown(pause.until),
                        reason=None if pause is None else pause.reason,
                        by=actor(),
                        in_transaction=self._in_transaction,
                        interrupted=interrupted,
                    )
                )


def label_of(task: str, instance: str | None, partition: int | None) -> str:
    """Returns a task, an instance or a partition as one text for people."""
    if instance is not None:
        return printable(f"{task}:{instance}")
    return printable(task if partition is None else f"{task} partition {partition}")


def _named(task: Task, name: str | None) -> tuple[str, str | None, int | None]:
    """The names of the task and of the instance, and the number of the partition."""
    if not task.dynamic:
        if task.parent_task is None:
            return task.name, None, None
        return task.template.name, task.name, None
    if name is not None:
        return task.template.name, name, None
    template, partition = template_of(task.group)
    return template, None, partition


def in_words(where: Where | None) -> str | None:
    """Returns which instances a call is about, for people; None: all."""
    if where is None:
        return None
    said = []
    if where.states is not None:
        said.append(f"state {' or '.join(sorted(where.states))}")
    if where.prefix:
        said.append(f"name begins with '{where.prefix}'")
    if where.due_before is not None:
        said.append(f"due before {where.due_before.isoformat()}")
    if where.paused is not None:
        said.append("paused" if where.paused else "not paused")
    if where.failing is not None:
        said.append("failing" if where.failing else "not failing")
    return ", ".join(said) or None


def _shown(instant: int | None) -> datetime | None:
    return None if instant is None else from_microseconds(instant)
