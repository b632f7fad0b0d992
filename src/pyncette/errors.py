"""Every exception that Pyncette raises on purpose, apart from ``ValueError`` and ``TypeError``."""

from __future__ import annotations

import traceback
from datetime import datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pyncette.task import Task


ERROR_CHARACTERS_MAX: Final = 2_000
"""What is kept of the text of an error, in a record and in a line of the log."""

TRACEBACK_CHARACTERS_MAX: Final = 4_000
"""What is kept of a traceback in a record: its end, which names the exception."""

_FRAMES_MAX: Final = 30

CALL_DEADLINE_MAX_S: Final = 10.0
"""How long a call of a store may take, however long the leases are."""


def class_name(value: object) -> str:
    """The name of a value's class, even if its metaclass or the value raises when it is asked."""
    name: str = type.__dict__["__name__"].__get__(type(value))
    return name


def printable(value: object) -> str:
    """A value as text for people: without line breaks and terminal codes, whatever it is.

    Names come from users. One that holds a line break must not write a line of its own into a
    log. Control characters are shown as Python writes them (``\\n``); a ``str()`` that raises is
    shown as the class.
    """
    try:
        text = str(value)
    except BaseException:  # whatever it raises, also SystemExit
        return f"<{class_name(value)} that cannot be shown>"
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )


def plural(number: int, word: str) -> str:
    """A number with its noun, for people."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def describe(error: BaseException) -> str:
    """An error in one line: its class and its text, at most 2,000 characters."""
    try:
        text = str(error)
    except BaseException:  # whatever it raises, also SystemExit
        text = "(its text cannot be shown)"
    name = class_name(error)
    # Cut first: to look at megabytes takes long.
    return printable(f"{name}: {text[:ERROR_CHARACTERS_MAX]}" if text else name)[
        :ERROR_CHARACTERS_MAX
    ]


def describe_traceback(error: BaseException) -> str:
    """The end of a traceback as text: the last frames and the exception, 4,000 characters at most.

    An exception that cannot be shown gives its description alone.
    """
    try:
        return "".join(traceback_parts(error))[-TRACEBACK_CHARACTERS_MAX:]
    except BaseException:
        return describe(error)


def traceback_parts(error: BaseException) -> list[str]:
    """The lines of a traceback: the last frames of each exception, no text longer than 2,000."""
    return [
        part if len(part) <= ERROR_CHARACTERS_MAX else f"{part[:ERROR_CHARACTERS_MAX]}…\n"
        for part in traceback.format_exception(error, limit=-_FRAMES_MAX)
    ]


class PyncetteException(Exception):  # noqa: N818 - the name is public since 1.x
    """Base of all exceptions of this package."""


class LeaseLostException(PyncetteException):
    """The lease of a run was lost: the record was removed or replaced, or claimed again.

    Attributes:
        task: The task whose lease was lost.
        reason: What became of the record, as a clause; None if it is not known.
        by_body: Whether the body of the task has itself removed or replaced the record.
    """

    def __init__(self, task: Task, reason: str | None = None, by_body: bool = False) -> None:
        super().__init__(
            f"Lease on the task '{printable(task)}' was lost" + (f": {reason}" if reason else "")
        )
        self.task = task
        self.reason = reason
        self.by_body = by_body


class TaskLockedException(PyncetteException):
    """The lease of the task's record has not ended, so that the record cannot be changed now.

    Attributes:
        task: The task that is locked.
        locked_until: When the lease ends (aware, UTC), if known. A heartbeat extends it.
        failed: Whether no execution runs: the last one failed with ``FailureMode.NONE``, and is
            retried when the lease ends.
    """

    def __init__(
        self, task: Task, locked_until: datetime | None = None, failed: bool = False
    ) -> None:
        until = f" until {locked_until.isoformat()}" if locked_until else ""
        by = "the lease of its failed execution" if failed else "a running execution"
        when = "at once" if failed else "from the end of that execution"
        super().__init__(
            f"The task '{printable(task)}' is locked by {by}{until}: schedule it again afterwards, "
            f"replace it with on_existing=OnExisting.REPLACE, which holds {when}, or replace it "
            "and its lease now with force=True"
        )
        self.task = task
        self.locked_until = locked_until
        self.failed = failed


class NoTransactionError(PyncetteException):
    """A connection is not in a transaction that a call could join."""


class TransactionBegunError(PyncetteException):
    """A connection is in a transaction already, and ``context.transaction`` would begin one."""


class TaskExistsError(PyncetteException):
    """There is an instance of this name already, and it was to be created.

    Attributes:
        task: The instance as it was to be created.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(f"The task '{printable(task)}' exists already")
        self.task = task


class TaskNotFoundError(PyncetteException):
    """The store has no instance of this name.

    Attributes:
        name: The name of the template and of the instance.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no '{printable(name)}': it was not scheduled, or is done")
        self.name = name


class TaskUnreadableError(PyncetteException, ValueError):
    """The record of a task cannot be read, so that the call cannot decide what to do with it.

    Attributes:
        name: The name of the static task, of the instance, or of the template whose number of
            partitions cannot be read.
        elsewhere: Whether another process may be able to read it: a later release wrote it, or
            this process lacks one of its calendars or its time zone. If not, no process can.
    """

    def __init__(
        self,
        name: str,
        reason: str,
        elsewhere: bool,
        static: bool = False,
        advice: str | None = None,
    ) -> None:
        if elsewhere:
            where = "this process, but perhaps by another one"
            advice = "make the call where its release, its calendars and its time zone are known"
        else:
            where = "any worker"
            if advice is None:
                advice = (
                    "once it is parked, a worker that starts plans it anew"
                    if static
                    else "schedule it anew, or remove it"
                )
        super().__init__(
            f"The record of '{printable(name)}' cannot be read by {where} ({reason}): {advice}"
        )
        self.name = name
        self.elsewhere = elsewhere


class TaskPausedError(PyncetteException):
    """The template, or the partition, of an instance is paused, so that it cannot run now.

    Attributes:
        name: The name of the template.
        until: When the pause ends (aware, UTC); None: when the template is resumed.
        reason: Why it is paused, if a reason was given.
    """

    def __init__(self, name: str, until: datetime | None = None, reason: str | None = None) -> None:
        end = f" until {until.isoformat()}" if until else ""
        why = f" ({printable(reason)})" if reason else ""
        super().__init__(f"'{printable(name)}' is paused{end}{why}: resume it first")
        self.name = name
        self.until = until
        self.reason = reason


class ArgumentError(PyncetteException, TypeError, ValueError):
    """The arguments of a task do not fit the parameters of its function.

    One is missing, is not known, or cannot be converted to the type that the function asks for.
    """


class ProcessEndedError(PyncetteException):
    """The process in which a task's function ran (``executor=Process()``) ended before it did.

    Attributes:
        exit_code: The exit code of the process; if a signal has ended it, the negative number of
            that; None if it is not known.
    """

    def __init__(self, exit_code: int | None) -> None:
        if exit_code is not None and exit_code < 0:
            how = f"signal {-exit_code} has ended it"
            if exit_code == -9:
                how += ": it was killed, perhaps because the machine had no memory left"
        else:
            how = f"exit code {exit_code}: what it wrote to stderr says more"
            if exit_code == 1:
                how += (
                    '. If the program has no if __name__ == "__main__": around what it runs, the '
                    "process ran it again"
                )
        super().__init__(f"The process of the task ended before its function did ({how})")
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[ProcessEndedError], tuple[int | None]]:
        return type(self), (self.exit_code,)


class StoreError(PyncetteException):
    """A store could not do what it was asked to."""


class AppClosedError(StoreError, RuntimeError):
    """A call of a context whose app is closed: nothing was done, and trying again does not help.

    Make the calls inside of ``async with app.create() as context:``.
    """

    def __init__(self, message: str | None = None) -> None:
        super().__init__(
            message
            or "The app is closed, so this call does nothing: make it inside of 'async with "
            "app.create() as context:', or open the app once more"
        )


class StoreUnavailableError(StoreError):
    """The store is out of reach, overloaded, or answered too late: trying again may help.

    The outcome of the call that raised it is unknown.
    """


class DeadlineExceededError(StoreUnavailableError):
    """A call of the store was not answered within its deadline; its outcome is unknown.

    Attributes:
        operation: The name of the call.
    """

    def __init__(self, operation: str, deadline_s: float) -> None:
        slow = ""
        if deadline_s < CALL_DEADLINE_MAX_S:
            slow = (
                " (half the shortest lease_duration, but at least 1 s): over a slow link, declare "
                "longer leases"
            )
        super().__init__(f"{operation} was not answered within {deadline_s:g} s{slow}")
        self.operation = operation


class StoreMisconfiguredError(StoreError):
    """The store answers, but cannot be used as configured: trying again does not help.

    Wrong credentials, a missing table, a table of a foreign layout, a server that is too old.
    """


_PUBLIC: Final = (StoreUnavailableError, StoreMisconfiguredError, StoreError)


def as_public(error: StoreError) -> StoreError:
    """An error of a store as one of the classes above: a store may have subclasses of its own.

    The new error has the traceback and the cause of the old one.
    """
    if type(error).__module__ == __name__:
        return error
    kind = next(kind for kind in _PUBLIC if isinstance(error, kind))
    public = kind(*error.args).with_traceback(error.__traceback__)
    public.__cause__, public.__suppress_context__ = error.__cause__, True
    return public
