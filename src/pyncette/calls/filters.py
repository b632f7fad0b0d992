"""From what a user asks for (``Where``) to what a store can select, and what is looked at here."""

from __future__ import annotations

from typing import NamedTuple

from pyncette.engine import rules
from pyncette.model import FailureMode, Where
from pyncette.schedule import instant_of
from pyncette.store import Filter
from pyncette.store.record import Record, State, load_progress
from pyncette.task import Task

FAILING = frozenset({State.RETRYING, State.PARKED, State.RUNNING})
"""The states in which a record may be failing."""


class Selection(NamedTuple):
    """A ``Where`` that was checked.

    Attributes:
        filter: What the store selects.
        failing: What has to be looked at in each record besides; None: nothing.
        states: The states that were asked for, if the store's state does not tell them all.
    """

    filter: Filter
    failing: bool | None
    states: frozenset[State] | None

    @property
    def exact(self) -> bool:
        """Whether the store selects exactly what was asked for."""
        return self.failing is None and self.states is None

    def matches(self, record: Record) -> bool:
        """Returns whether a record, wherever it comes from, is one that was asked for."""
        return self.filter.admits(record) and self.admits(record)

    def admits(self, record: Record) -> bool:
        """Returns whether a record that the store has selected is one that was asked for."""
        if self.failing is not None and is_failing(record) is not self.failing:
            return False
        return self.states is None or shown_state(record) in self.states


def selection_of(where: Where | None, task: Task) -> Selection:
    """Checks what a user asks for.

    Args:
        where: What the user asks for; None: everything.
        task: The task whose instances are selected.

    Raises:
        TypeError: It is no ``Where``, which has checked its values.
    """
    if where is None:
        return Selection(Filter(), None, None)
    if not isinstance(where, Where):
        raise TypeError(f"where must be a Where, not {where!r}")
    states = None if where.states is None else frozenset(map(State, where.states))
    if where.paused is not None:
        chosen = {State.PAUSED} if where.paused else set(State) - {State.PAUSED}
        states = frozenset(chosen if states is None else states & chosen)
    if where.failing:
        states = FAILING if states is None else states & FAILING
    due_before = None if where.due_before is None else instant_of(where.due_before)
    asked = None
    if states is not None and (State.RUNNING in states) != (State.RETRYING in states):
        # A failed run that keeps its lease is stored as running, and waits for a retry.
        if State.RUNNING in states:
            asked = states
        elif _keeps_leases(task.template):
            asked = states
            states = states | {State.RUNNING}
        # Else stores have an index of all that were asked for. What an earlier version of the
        # task has left under its lease is not found until the lease ends.
    return Selection(Filter(states, where.prefix, due_before), where.failing, asked)


def _keeps_leases(template: Task) -> bool:
    """Returns whether a failed run keeps its lease, see ``rules.failed``."""
    return template.retry is None and template.failure_mode is FailureMode.NONE


def shown_state(record: Record) -> str:
    """Returns the state that users see."""
    return State.RETRYING if rules.failed_under_lease(record) else record.state


def is_failing(record: Record) -> bool:
    """Returns whether the last attempt of the occurrence has failed, or no worker can read it."""
    if record.state in (State.PARKED, State.RETRYING) or rules.failed_under_lease(record):
        return True
    try:
        return load_progress(record.progress).failures > 0
    except ValueError:
        return True
