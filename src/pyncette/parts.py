"""What an app knows before it is opened, and what each of its open contexts gets.

Nothing here needs the engine or a store. A program that only declares tasks loads neither: a
process that runs one function of it, a website before its first call, a command's ``--help``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pyncette.clock import Clock
from pyncette.model import Context, Heartbeat, MiddlewareFunc
from pyncette.schedule import Calendars
from pyncette.task import Task

if TYPE_CHECKING:
    from pyncette.context import PyncetteContext
    from pyncette.observers import Observers


class OpenContexts:
    """The contexts of an app that are open now: what shows it uses one of them."""

    def __init__(self) -> None:
        """None is open."""
        self._contexts: list[tuple[asyncio.AbstractEventLoop, PyncetteContext]] = []

    @contextmanager
    def holds(self, context: PyncetteContext) -> Iterator[None]:
        """Has this one, in the event loop that runs, for as long as the block takes."""
        entry = (asyncio.get_running_loop(), context)
        self._contexts.append(entry)
        try:
            yield
        finally:
            self._contexts.remove(entry)

    def here(self) -> list[PyncetteContext]:
        """Returns those that were opened in the event loop that runs, the last one first."""
        loop = asyncio.get_running_loop()
        return [context for of, context in reversed(self._contexts) if of is loop]


_LOADED: Final[ContextVar[bool]] = ContextVar("loaded by the command line", default=False)


@contextmanager
def loading() -> Iterator[None]:
    """While the command line imports a program, that program must not become a worker."""
    token = _LOADED.set(True)
    try:
        yield
    finally:
        _LOADED.reset(token)


def check_not_loaded(what: str, instead: str) -> None:
    """Refuses to run a worker while the command line imports the program.

    Otherwise a command that only looks would run tasks, and never return.

    Raises:
        RuntimeError: The command line imports it.
    """
    if _LOADED.get():
        raise RuntimeError(
            f"{what} while the command line imports the program: {instead} under "
            'if __name__ == "__main__": only'
        )


class AppParts(NamedTuple):
    """The parts of an app that each of its contexts gets."""

    repository_factory: Callable[..., Any]
    executor_cls: Callable[..., Any]
    poll_interval: timedelta
    configuration: Mapping[str, Any]
    clock: Clock
    tasks: Sequence[Task]
    fixtures: Sequence[tuple[str, Callable[..., Any]]]
    middlewares: Sequence[MiddlewareFunc]
    observers: Observers
    calendars: Calendars
    open_timeout: float
    shutdown_timeout: float | None
    thread_limit: int | None
    opened: OpenContexts
    heartbeat: Heartbeat | None = None
    raise_task_errors: bool = False
    worker_tags: frozenset[str] = frozenset()
    block_warning: float | None = None
    history: RunHistory | None = None
    has_store: bool = True


class RunHistory:
    """The run history of an app, as ``use_history`` was told.

    Attributes:
        keep: For how long an attempt is kept.
        per_task: About how many attempts of a static task, or of all instances of a template, are
            kept; None: all that are not too old.
        lost: How many attempts of this process are missing in the history, because the store was
            not available or too slow.
    """

    def __init__(self, keep: timedelta, per_task: int | None) -> None:
        self.keep = keep
        self.per_task = per_task
        self.lost: int = 0

    @property
    def keep_us(self) -> int:
        """The same as ``keep``, in microseconds."""
        return self.keep // timedelta(microseconds=1)


def check_not_imported(what: str, instead: str) -> None:
    """Refuses to open an app in a process that is being started and imports the program.

    Otherwise the process would run the whole program once more: a second worker.

    Raises:
        RuntimeError: This is such a process.
    """
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing and getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            f"{what} while a process of this program imports it: {instead} under "
            'if __name__ == "__main__": only'
        )


_ADDED: Final = frozenset({"upcoming"})
"""Attributes that 1.x did not have: a fixture or an item of the same name takes their place."""

RESERVED: Final = (
    frozenset(
        {
            *dir(Context),
            *Context.__annotations__,
            *("__getattr__", "_execution", "heartbeat", "transaction"),
        }
    )
    - _ADDED
)
"""Names that the context of an execution uses itself. Some are repeated here because its class
imports the engine; a test compares the two."""


def check_context_name(name: str) -> None:
    """Refuses names that the context of an execution uses itself.

    Raises:
        ValueError: The name is one of these, or is not a name.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"{name!r} cannot be the name of an attribute of the context")
    if name in RESERVED:
        raise ValueError(f"The name '{name}' is reserved: the context has it already")
