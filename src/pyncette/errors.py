"""Every exception that Pyncette raises on purpose, apart from ``ValueError`` and ``TypeError``."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pyncette.task import Task


ERROR_CHARACTERS_MAX: Final = 2_000
"""What is kept of the text of an error, in a record and in a line of the log."""


def printable(value: object) -> str:
    """A value as text for people: without line breaks and terminal codes, whatever it is.

    Names come from users. One that holds a line break must not write a line of its own into a
    log. Control characters are shown as Python writes them (``\\n``); a ``str()`` that raises is
    shown as the class.
    """
    try:
        text = str(value)
    except Exception:
        return f"<{type(value).__name__} that cannot be shown>"
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )


def describe(error: BaseException) -> str:
    """An error in one line: its class and its text, at most 2,000 characters."""
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be shown)"
    name = type(error).__name__
    return printable(f"{name}: {text}" if text else name)[:ERROR_CHARACTERS_MAX]


class PyncetteException(Exception):  # noqa: N818 - the name is public since 1.x
    """Base of all exceptions of this package."""


class LeaseLostException(PyncetteException):
    """The lease on a task's run was lost: somebody else took, replaced or removed the record.

    Attributes:
        task: The task whose lease was lost.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(f"Lease on the task '{printable(task)}' was lost")
        self.task = task


class TaskLockedException(PyncetteException):
    """The task is being executed, so that its record cannot be changed now.

    Attributes:
        task: The task that is locked.
        locked_until: When the lease ends (aware, UTC), if known.
    """

    def __init__(self, task: Task, locked_until: datetime | None = None) -> None:
        until = f" until {locked_until.isoformat()}" if locked_until else ""
        super().__init__(f"The task '{printable(task)}' is locked by a running execution{until}")
        self.task = task
        self.locked_until = locked_until


class StoreError(PyncetteException):
    """A store could not do what it was asked to."""


class StoreUnavailableError(StoreError):
    """The store is out of reach, overloaded, or answered too late: trying again may help.

    The outcome of the call that raised it is unknown.
    """


class StoreMisconfiguredError(StoreError):
    """The store answers, but cannot be used as configured: trying again does not help.

    Wrong credentials, a missing table, a table of a foreign layout, a server that is too old.
    """
