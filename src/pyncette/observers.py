"""Tells the handlers of events what happens. A handler that fails breaks nothing."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypedDict, TypeVar

from pyncette.body import name_of
from pyncette.clock import Clock
from pyncette.event_log import EventLog
from pyncette.events import (
    AttemptEnded,
    Claimed,
    Detail,
    Event,
    InstanceSteered,
    PassBegan,
    PassEnded,
    Started,
    Steered,
    StoreCallBegan,
    StoreCallEnded,
)
from pyncette.logs import log_exception

if TYPE_CHECKING:
    from pyncette.model import RunOutcome
    from pyncette.store.record import Reading
    from pyncette.task import Task

logger = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

Handler = Callable[[Any], object]

ORIGIN_MARK: Final = "~"

_ORIGIN: Final = re.compile(r"[\x21-\x7d]{1,100}")
"""A word of at most 100 characters: it lies in every record."""


def origin_in(incarnation: str) -> str | None:
    """Returns the origin that follows the id of a record; None: there is none."""
    return incarnation.partition(ORIGIN_MARK)[2] or None


_OF_RUNS: Final = (Claimed, Started, AttemptEnded)


class _Observer(NamedTuple):
    handler: Handler
    kinds: tuple[type[Event], ...]


class Observers:
    """The handlers of an app, which its workers call.

    Attributes:
        failures: How often a handler has raised an exception.
        watch_instances: Whether a handler wants to know of each instance that a call changes.
    """

    def __init__(self) -> None:
        """Has one handler, which writes the log."""
        self.failures: int = 0
        self.watch_instances: bool = False
        self._log = EventLog()
        self._observers: list[_Observer] = []
        self._of_details: list[_Observer] = []
        self._of_runs = False
        self._of_steering = False
        self._origin: Callable[[], str | None] | None = None
        # By identity: a handler need not be hashable.
        self._failed: dict[int, Handler] = {}

    def add(self, handler: Handler, kinds: tuple[type[Event], ...]) -> None:
        """Adds a handler.

        Args:
            handler: It is called with each event.
            kinds: The classes of events that it wants; none: all but ``Detail``.

        Raises:
            TypeError: It cannot be called, is asynchronous, or a kind is no class of events.
        """
        if not callable(handler):
            raise TypeError(f"The handler of events is not callable: {handler!r}")
        called = handler if inspect.isroutine(handler) else type(handler).__call__
        if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
            raise TypeError(
                f"The handler of events {name_of(handler)} is asynchronous, and is called without "
                "await: write a plain function, which may put events into a queue for a task"
            )
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, Event)):
                raise TypeError(
                    f"on_event takes classes of pyncette.events after the handler, not {kind!r}"
                )
        details = tuple(kind for kind in kinds if issubclass(kind, Detail))
        others = tuple(kind for kind in kinds if not issubclass(kind, Detail))
        if others or not kinds:
            self._observers.append(_Observer(handler, others or (Event,)))
            self.note_wanted(others or (Event,))
        if details:
            self._of_details.append(_Observer(handler, details))
            self.watch_instances = any(
                issubclass(InstanceSteered, kinds) for _, kinds in self._of_details
            )

    def note_wanted(self, kinds: tuple[type[Event], ...]) -> None:
        """Notes that a handler wants events of these kinds, which may be told only then."""
        self._of_runs = self._of_runs or any(_meets(kinds, kind) for kind in _OF_RUNS)
        self._of_steering = self._of_steering or _meets(kinds, Steered)

    def set_origin(self, origin: Callable[[], str | None]) -> None:
        """Sets what tells, in a call that schedules an instance, what its runs are linked to."""
        self._origin = origin

    def origin(self) -> str:
        """Returns what the record of a new instance keeps of the call that schedules it.

        It follows the id in the record, so that it lives as long as the instance, and every run
        can be linked to the call: the identity of a span, for example. Empty: nothing.
        """
        if self._origin is None:
            return ""
        try:
            said = self._origin()
        except Exception as error:
            log_exception(logger, logging.ERROR, error, "What schedules cannot be told to its runs")
            return ""
        return f"{ORIGIN_MARK}{said}" if said and _ORIGIN.fullmatch(said) else ""

    def watch_runs(self) -> bool:
        """Returns whether a handler wants to know of all claims and runs."""
        return self._of_runs or self._log.wants_starts()

    def watch_steering(self) -> bool:
        """Returns whether a handler wants to know of calls that change what runs."""
        return self._of_steering or self._log.wants_steering()

    @property
    def watch_details(self) -> bool:
        """Whether a handler wants to know of each step of the engine."""
        return bool(self._of_details)

    def tell(self, event: Event) -> None:
        """Calls the handlers that want an event, the log first."""
        self.call(self._log, event)
        for handler, kinds in self._observers:
            if isinstance(event, kinds):
                self.call(handler, event)

    def tell_detail(self, event: Detail) -> None:
        """The same for a step of the engine, which the log does not want."""
        for handler, kinds in self._of_details:
            if isinstance(event, kinds):
                self.call(handler, event)

    def tell_logged_detail(self, event: Detail) -> None:
        """The same for one that the log wants."""
        self.call(self._log, event)
        self.tell_detail(event)

    def call(self, handler: Handler, event: Event) -> None:
        """Calls one handler. What it raises is logged once, and breaks nothing."""
        try:
            handler(event)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self.failures += 1
            if id(handler) not in self._failed:
                self._failed[id(handler)] = handler
                with suppress(Exception):  # a handler of the log may fail as well
                    log_exception(
                        logger,
                        logging.ERROR,
                        error,
                        "The handler %s failed for the event %s; later failures of it are not "
                        "logged",
                        name_of(handler),
                        type(event).__name__,
                    )


def _meets(wanted: tuple[type[Event], ...], kind: type[Event]) -> bool:
    return any(issubclass(kind, each) or issubclass(each, kind) for each in wanted)


class Here(TypedDict):
    """What all events of a worker say."""

    at: datetime
    worker: str


class NoteEnd(Protocol):
    """Takes note of the end of an attempt that has begun."""

    def __call__(
        self, task: Task, reading: Reading, started: int, outcome: RunOutcome, error: str | None
    ) -> None: ...


class Reporter:
    """Tells the observers of an app what happens in one of its workers.

    Attributes:
        worker: The name of the worker.
        note_end: Called at the end of each attempt, with what its events would be made of: to make
            them takes several times as long. It raises nothing.
    """

    def __init__(self, observers: Observers, clock: Clock, worker_name: str) -> None:
        """Reports for a worker, with the times of a clock."""
        self.observers = observers
        self._clock = clock
        self.worker: str = worker_name
        self.tell: Callable[[Event], None] = observers.tell
        self.note_end: NoteEnd | None = None

    def add(self, handler: Handler, *kinds: type[Event]) -> None:
        """Adds a handler of events of this worker alone, which are called after all others.

        Args:
            handler: It is called with each event.
            kinds: The classes of events that it wants; none of them is a ``Detail``.
        """
        tell = self.tell

        def tell_both(event: Event) -> None:
            tell(event)
            if isinstance(event, kinds):
                self.observers.call(handler, event)

        self.tell = tell_both
        self.observers.note_wanted(kinds)

    def here(self) -> Here:
        """Returns what an event says that happens now."""
        return {"at": self._clock.now(), "worker": self.worker}

    async def call(self, operation: str, call: Awaitable[_Answer]) -> _Answer:
        """Awaits a call of the store, and tells of it."""
        self.observers.tell_detail(StoreCallBegan(**self.here(), operation=operation))
        began, error = self._clock.monotonic(), None
        try:
            return await call
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.observers.tell_detail(
                StoreCallEnded(
                    **self.here(), operation=operation, took=self._since(began), exception=error
                )
            )

    @contextmanager
    def loop_pass(self) -> Iterator[None]:
        """Tells of a pass of the loop."""
        if not self.observers.watch_details:
            yield
            return
        self.observers.tell_detail(PassBegan(**self.here()))
        began, error = self._clock.monotonic(), None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.observers.tell_detail(
                PassEnded(**self.here(), took=self._since(began), exception=error)
            )

    def _since(self, began: float) -> timedelta:
        return timedelta(seconds=self._clock.monotonic() - began)
