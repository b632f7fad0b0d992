"""The bodies that run: a clock that a test moves waits for them, and tells what they raised."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from pyncette.errors import describe, printable
from pyncette.retry import GiveUp

if TYPE_CHECKING:
    from pyncette.engine.worker import Worker

ERRORS_MAX: Final = 100
"""Maximum errors that are kept; of others, only the number is known."""


class Bodies:
    """See ``pyncette.clock.Work``.

    Attributes:
        raises_errors: Whether errors of bodies are raised in the program that runs the app.
        failures: The number of attempts that have failed.
    """

    def __init__(self, worker: Worker, raises_errors: bool) -> None:
        """Knows no error yet."""
        self._worker = worker
        self.raises_errors = raises_errors
        self.failures = 0
        self._errors: list[tuple[BaseException, str]] = []
        self._more = 0

    def under_way(self) -> list[tuple[str, asyncio.Task[Any]]]:
        return [
            (execution.label, execution.runner)
            for execution in self._worker.dispatcher.executions
            if execution.in_body and execution.runner is not None
        ]

    def name_of(self, task: asyncio.Task[Any]) -> str | None:
        """Returns the task whose body a task of asyncio runs, by name. Safe in other threads."""
        for execution in list(self._worker.dispatcher.executions):
            if execution.runner is task:
                return printable(execution.declared)
        return None

    def failed(self, error: BaseException, attempt: str) -> None:
        """An attempt has failed with an error."""
        self.failures += 1
        if not self.raises_errors or issubclass(type(error), GiveUp):
            return
        if len(self._errors) < ERRORS_MAX:
            self._errors.append((error, attempt))
        else:
            self._more += 1

    def check(self) -> None:
        """Raises the first error of a body that was not raised before; its notes name the others.

        Raises:
            Exception: What the body raised.
        """
        if not self._errors:
            return
        [(first, attempt), *others] = self._errors
        error = first
        if not issubclass(type(first), Exception):
            # A CancelledError, for example, would mean something else to the caller.
            error = RuntimeError(f"{attempt} raised {describe(first)}")
            error.__cause__ = first
        error.add_note(f"Raised by {attempt} (raise_task_errors)")
        self._errors = others
        self.note_on(error)
        raise error

    def note_on(self, error: BaseException) -> None:
        """Adds notes to an error that is raised: which bodies have failed besides."""
        for other, attempt in self._errors:
            if other is not error:
                error.add_note(f"{attempt} raised {describe(other)} (raise_task_errors)")
        if self._more:
            error.add_note(f"{self._more} more attempts have failed; the log names them")
        self._errors, self._more = [], 0
