"""The public types of values and functions that applications use."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Literal,
    NamedTuple,
    NewType,
    Protocol,
    TypeVar,
    get_args,
)

from pyncette.errors import PyncetteException

if TYPE_CHECKING:
    from pyncette.context import PyncetteContext
    from pyncette.task import Task


class ExecutionMode(Enum):
    """What happens to a run if its worker dies."""

    AT_LEAST_ONCE = 0
    """The run is repeated: the record advances after the task has ended."""

    AT_MOST_ONCE = 1
    """The run is not repeated: the record advances before the task starts."""


class FailureMode(Enum):
    """What happens if an at-least-once task raises an exception."""

    NONE = 0
    """The lease stays; the run is retried when the lease expires."""

    UNLOCK = 1
    """The run is retried after one poll interval."""

    COMMIT = 2
    """The failure counts as done."""


class OnExisting(Enum):
    """What scheduling an instance does if there is one of this name already."""

    SOONER = "sooner"
    """Options and arguments are replaced, and the sooner of the old and the new next time is kept.
    An instance that is running is not changed: ``TaskLockedException``. One that is parked is
    scheduled as if newly created, with all of its attempts."""

    REPLACE = "replace"
    """Everything is replaced, also the next time. A running execution is not disturbed: the new
    options and arguments hold from its end. Where nothing runs because a failed execution has left
    its lease (``FailureMode.NONE``), they hold at once. A paused instance stays paused."""

    KEEP = "keep"
    """The instance stays as it is."""

    RAISE = "raise"
    """``TaskExistsError``."""


class Exhausted(Enum):
    """What happens to an occurrence that has failed for good."""

    PARK = "park"
    """The record is kept and does not run: with arguments, error, traceback and attempts. The
    default of one-off runs and of a last occurrence. ``retry_parked``, ``drop_parked``,
    ``schedule_task`` or ``unschedule_task`` ends it; for a static task, also a start with a changed
    schedule."""

    CONTINUE = "continue"
    """The occurrence is given up, its error stays in the state, and the next one runs. The default
    of recurrences. An instance without a next occurrence is parked."""

    PAUSE = "pause"
    """The record is paused. When it is resumed, the occurrence is tried again."""


class CatchUp(Enum):
    """What happens to occurrences that came due while nothing could run them."""

    ALL = "all"
    """Each of them runs, one after the other."""

    LATEST = "latest"
    """They run once, together; the same as ``fast_forward=True``."""


class Overlap(Enum):
    """What happens to occurrences that come due while their record still runs."""

    QUEUE = "queue"
    """They run afterwards, as ``catch_up`` says."""

    SKIP = "skip"
    """They are skipped, and counted in the state."""


class Partitions(Enum):
    """From which partitions of a partitioned task a worker claims."""

    ALL = "all"
    """From all of them, or from those in ``enabled_partitions``."""

    SHARED = "shared"
    """The workers that run the task share its partitions among themselves. When a worker ends, the
    others take over its partitions within two lease times. A worker also claims from the partitions
    of others what is overdue by two poll intervals."""


class RunCounts(NamedTuple):
    """What ``run_until_idle`` has done.

    Attributes:
        runs: The number of executions that it has started: attempts, each retry included.
        failures: How many of them have failed. Those that were skipped or postponed have not.
    """

    runs: int
    failures: int


class Outcome(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    """The body raised ``Skip``, or the occurrence was too late for ``misfire_grace``."""

    POSTPONED = "postponed"
    """The body raised ``RetryIn``."""


@dataclass(frozen=True, slots=True)
class PerWorker:
    """How many executions of one task may run at once in one worker.

    The worker claims no more than these: what is above stays in the store, for itself later or for
    other workers now.

    Attributes:
        executions: The limit, at least 1. It counts all instances of a template together, in all
            of its partitions.
    """

    executions: int

    def __post_init__(self) -> None:
        """Checks the value.

        Raises:
            ValueError: It is below 1.
            TypeError: It is not a whole number.
        """
        if isinstance(self.executions, bool) or not isinstance(self.executions, int):
            raise TypeError(f"PerWorker takes a whole number, not {self.executions!r}")
        if self.executions < 1:
            raise ValueError(
                f"PerWorker must be at least 1, not {self.executions}; to stop a task, set "
                "enabled=False or pause it"
            )


@dataclass(frozen=True, slots=True)
class Process:
    """Runs the plain function of a task in another process: for functions that compute.

    Python computes in one thread at a time, so a function that computes for long slows down
    everything else in its worker. Tasks with an equal option share processes. The function must be
    importable, and gets what can travel: its parameters, and of the context ``args``,
    ``scheduled_at``, ``attempt``, ``execution_id``, ``fencing_token``, ``deadline``,
    ``previous_error`` and ``task_name``.

    Attributes:
        max_workers: How many processes there may be; other executions wait. None: as many as there
            are processors for this program.
    """

    max_workers: int | None = None

    def __post_init__(self) -> None:
        """Checks the value.

        Raises:
            ValueError: It is below 1.
            TypeError: It is not a whole number.
        """
        if self.max_workers is None:
            return
        if isinstance(self.max_workers, bool) or not isinstance(self.max_workers, int):
            raise TypeError(f"max_workers must be a whole number, not {self.max_workers!r}")
        if self.max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, not {self.max_workers}")

    @property
    def limit(self) -> int:
        """How many processes there may be."""
        if self.max_workers is not None:
            return self.max_workers
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Extends the lease while a task runs, without code in the task.

    Attributes:
        every: The pause between two heartbeats; shorter than ``lease_duration``. None: a third of
            ``lease_duration``.
        cancel_on_lease_lost: Whether to cancel the body if its lease is lost. Otherwise it goes on,
            and its outcome is not recorded.
    """

    every: timedelta | None = None
    cancel_on_lease_lost: bool = False

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: ``every`` is not longer than zero.
            TypeError: A value is of a wrong type.
        """
        if self.every is not None:
            if not isinstance(self.every, timedelta):
                raise TypeError(f"every must be a timedelta, not {self.every!r}")
            if self.every <= timedelta():
                raise ValueError(f"every must be longer than zero, not {self.every!r}")
        if not isinstance(self.cancel_on_lease_lost, bool):
            raise TypeError(
                f"cancel_on_lease_lost must be True or False, not {self.cancel_on_lease_lost!r}"
            )


class RunTransaction(Protocol):
    """The transaction of a run: a context manager that gives the connection.

    ``async with`` in the event loop, ``with`` in a function that runs in a thread.
    """

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

    def __enter__(self) -> Any: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...


class Context:
    """The argument of a task: one object for each execution.

    Fixtures and context items are further attributes. Tasks and middlewares may set their own
    attributes. In a test, ``pyncette.testing.context_for`` makes one; an empty ``Context()`` has no
    attributes but those that the test sets.

    Attributes:
        app_context: The context of the running app.
        task: The task, or the instance of a dynamic task, that is executed.
        scheduled_at: The planned time of this run, aware, in the task's time zone.
        args: The arguments of this execution: a copy of its own.
        attempt: The number of this attempt; the first attempt of an occurrence is 1. It is 1 again
            when the occurrence gets all of its attempts anew: ``retry_parked``, ``trigger`` of a
            parked task, ``resume`` after ``Exhausted.PAUSE``.
        execution_id: The same text for every attempt of one occurrence, and for no other
            occurrence: 32 hexadecimal digits. Use it as an idempotency key.
        fencing_token: A number that grows with every claim of the record. A system that refuses
            smaller numbers than it has seen is protected from a worker that was frozen.
        deadline: When the body is cancelled, aware UTC, if the task has a ``timeout``; else None.
        previous_error: How the attempt before this one of the same occurrence failed; else None.

    A fixture or a context item with the name of one of the last five takes its place.
    """

    app_context: PyncetteContext
    task: Task
    scheduled_at: datetime
    args: dict[str, Any]

    if TYPE_CHECKING:
        # Not reserved: in 1.x a fixture could have these names.
        attempt: int
        execution_id: str
        fencing_token: int
        deadline: datetime | None
        previous_error: str | None

        # Fixtures and context items are attributes that no type checker can know.
        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    async def heartbeat(self) -> None:
        """Extends the lease of this run by the task's ``lease_duration``, from now.

        A lease that has expired is extended as well, unless another worker has claimed the record.
        Does nothing for at-most-once tasks, which hold no lease while they run.

        Raises:
            LeaseLostException: Another worker has claimed the record, or it was replaced or
                removed. The outcome of this execution will not be recorded.
        """

    def upcoming(self, n: int = 1) -> list[datetime]:
        """Returns the planned times that follow this run, by the very code that plans them.

        They are those that come next if this run succeeded now and later ones end in time. Where
        missed runs collapse into one, those are left out. A fixture or a context item of the name
        ``upcoming`` takes the place of this method.

        Args:
            n: How many at most, up to 1,000.

        Returns:
            Aware datetimes in the task's time zone, in order; fewer than ``n`` if it ends.

        Raises:
            ValueError: ``n`` is out of range, or a calendar fails.
        """
        return []

    def transaction(self, connection: Any = None) -> RunTransaction:
        """Begins a transaction that this run commits together with its outcome.

        What the block does in that database happens exactly once for each occurrence, whatever
        dies meanwhile. See "In your own transaction" in the documentation::

            async with context.transaction() as connection:
                await connection.execute("UPDATE account SET ...")

        At the end of the block the run is settled as succeeded in the transaction, which is then
        committed. If the block raises, it is rolled back, and the run fails as usual. A function
        that runs in a thread writes ``with``. A fixture or a context item of the name
        ``transaction`` takes the place of this method.

        Args:
            connection: A connection of your own, or a session of SQLAlchemy, to the database of
                the app's store; no transaction may be open on it. None: the store lends one, as
                its driver has them (asyncpg, asyncmy, sqlite3).

        Raises:
            PyncetteException: The run has had its transaction; its task is at most once; the block
                has ended the transaction itself.
            LeaseLostException: Another worker has claimed the record, or it was replaced or
                removed. All that was done in the block is undone.
            TransactionBegunError: A transaction is open on the connection already.
            StoreMisconfiguredError: The connection finds no records of the app's store; or its
                isolation is not that of READ COMMITTED on PostgreSQL.
            TypeError: The store has no transactions, or the connection cannot be used here.
        """
        raise PyncetteException("This context belongs to no run, so there is nothing to settle")


@dataclass(frozen=True, slots=True)
class TaskState:
    """The state of a task in the store.

    Attributes:
        task: The static task, or the instance. Of an instance that follows the template's default:
            with the schedule by which ``scheduled_at`` was planned. If the default has changed
            since, ``preview`` shows what follows.
        scheduled_at: When it runs next, aware UTC; while it runs or waits for a retry, the planned
            time of that run. None if there is no further run.
        locked_until: End of the lease, aware UTC, while the task runs (it lies in the past if its
            worker died); else None.
        locked_by: The worker that runs it; else None.
        state: ``"scheduled"``, ``"running"``, ``"retrying"`` (waits for its next attempt),
            ``"paused"``, ``"parked"`` (kept, and never run: see ``reason``) or ``"finished"``; a
            plain string.
        reason: How the last attempt failed, why the task is parked or paused, or why its schedule
            cannot be read on this machine; else None.
        paused_until: When the pause ends by itself, aware UTC; else None.
        next: When it is due next, aware UTC: its next run, its retry, the end of its pause if that
            comes later, or, while it runs, the end of its lease. None if it never is.
        attempt: The number of the attempt that runs, or of the next one, for the current
            occurrence; 1 unless an attempt has failed or ended without an outcome. While the task
            is parked, the number of the last attempt that was made.
        last_started_at: When the last attempt that was recorded started, aware UTC; None if there
            was none.
        last_finished_at: When it ended, aware UTC; None if that is not known.
        last_outcome: How it ended; None if that is not known.
        last_error: The error of that attempt, or the reason that it gave, as text; else None.
        last_traceback: The end of the traceback of an attempt that failed; else None.
        skipped: How many occurrences were skipped, or ran together with another one.
        inherited: Whether it is an instance that follows the default schedule of its template.
        paused_since: When it was paused by a call, aware UTC; else None.
        paused_by: Who has paused it, see ``pyncette.acting_as``; None: nobody was named.
    """

    task: Task
    scheduled_at: datetime | None
    locked_until: datetime | None = None
    locked_by: str | None = None
    state: str = "scheduled"
    reason: str | None = None
    paused_until: datetime | None = None
    next: datetime | None = None
    attempt: int = 1
    last_started_at: datetime | None = None
    last_finished_at: datetime | None = None
    last_outcome: Outcome | None = None
    last_error: str | None = None
    last_traceback: str | None = None
    skipped: int = 0
    inherited: bool = False
    paused_since: datetime | None = None
    paused_by: str | None = None

    @property
    def args(self) -> dict[str, Any]:
        """The arguments of the task: of an instance, its own over those of the template now.

        Raises:
            ValueError: They cannot be read.
        """
        return self.task.extra_args


StateName = Literal["scheduled", "running", "retrying", "paused", "parked", "finished"]
"""The name of a state of a task, as in ``TaskState.state``."""

STATES: Final[tuple[StateName, ...]] = get_args(StateName)
"""All of them."""


@dataclass(frozen=True, slots=True)
class Where:
    """Which instances a call is about. An instance must meet all conditions that are given.

    Attributes:
        states: Only instances in one of these states, see ``TaskState.state``.
        prefix: Only instances whose name begins with this; bytewise, in UTF-8.
        due_before: Only instances that are due before this instant (naive: local time). A running
            instance is due when its lease ends; one that is paused without an end, parked or
            finished never is.
        paused: True: only instances that are paused by themselves; False: only others.
        failing: True: only instances whose last attempt has failed, and that are not done since:
            those that wait for a retry, and the parked; False: only others.
    """

    states: Collection[StateName] | None = None
    prefix: str = ""
    due_before: datetime | None = None
    paused: bool | None = None
    failing: bool | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: There is no such state.
            TypeError: A value is of a wrong type.
        """
        states = self.states
        if states is not None:
            if isinstance(states, (str, bytes)) or not isinstance(states, Collection):
                raise TypeError(
                    f"states must be a collection of names, such as {{'parked'}}, not {states!r}"
                )
            for state in states:
                if state not in STATES:
                    raise ValueError(f"There is no state {state!r}; there are {', '.join(STATES)}")
        if not isinstance(self.prefix, str):
            raise TypeError(f"prefix must be a string, not {self.prefix!r}")
        if self.due_before is not None and not isinstance(self.due_before, datetime):
            raise TypeError(f"due_before must be a datetime, not {self.due_before!r}")
        for name, flag in (("paused", self.paused), ("failing", self.failing)):
            if flag is not None and not isinstance(flag, bool):
                raise TypeError(f"{name} must be True, False or None, not {flag!r}")


@dataclass(frozen=True, slots=True)
class TaskCount:
    """How many instances there are.

    Attributes:
        count: Their number, at most the limit of the call.
        exact: Whether these are all. If not, there are more, or there may be: the limit was
            reached, or more would have had to be looked at than one call may.
    """

    count: int
    exact: bool

    def __str__(self) -> str:
        return f"{self.count:,}" if self.exact else f"{self.count:,}+"


@dataclass(frozen=True, slots=True)
class UnknownTask:
    """What the store holds of a task that this app does not declare.

    Attributes:
        name: The name of the task.
        dynamic: Whether it is a template.
        partition_count: The number of partitions of a template; None: without partitions, or
            their number cannot be read.
        count: The number of its instances; 1 for a static task. ``0+`` if the number of partitions
            cannot be read.
    """

    name: str
    dynamic: bool
    partition_count: int | None
    count: TaskCount


@dataclass(frozen=True, slots=True)
class PauseState:
    """The pause of a whole template, or of one of its partitions.

    Attributes:
        name: The name of the template.
        partition: The number of the partition; None: the whole template.
        since: When it was paused, aware UTC; None if that is not known.
        until: When the pause ends by itself, aware UTC; None: when it is resumed.
        reason: Why it was paused; None if no reason was given.
        by: Who has paused it, see ``pyncette.acting_as``; None: nobody was named.
    """

    name: str
    partition: int | None
    since: datetime | None
    until: datetime | None
    reason: str | None
    by: str | None = None


@dataclass(frozen=True, slots=True)
class RunningTask:
    """A task that a worker runs.

    Attributes:
        name: The name of the task, as ``str(task)``; at most 200 characters.
        started_at: When the worker claimed it, aware UTC.
    """

    name: str
    started_at: datetime


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker that is alive: a context whose ``run()`` is active, in any process.

    A worker writes this about itself every 20 s, or more often if it shares partitions. A field is
    None, or empty, if a later release wrote it in a way that this one cannot read.

    Attributes:
        name: The ``worker_name``. Two workers may have been given the same one.
        id: The name, and what makes it unique.
        since: When ``run()`` began, aware UTC.
        seen_at: When the worker wrote this, aware UTC, by the clock of the store.
        expires_at: When it counts as dead, unless it writes again before.
        host: The name of its machine.
        process_id: Its process on that machine.
        version: The release of Pyncette.
        tasks: The names of the tasks that it claims, the first 200.
        task_count: The number of these tasks.
        running_count: How many executions it ran when it wrote this.
        running: The longest of them, at most 20.
        tags: Its ``worker_tags``.
    """

    name: str
    id: str
    since: datetime | None
    seen_at: datetime
    expires_at: datetime
    host: str | None = None
    process_id: int | None = None
    version: str | None = None
    tasks: tuple[str, ...] = ()
    task_count: int = 0
    running_count: int = 0
    running: tuple[RunningTask, ...] = ()
    tags: frozenset[str] = frozenset()


RunOutcome = Literal["succeeded", "failed", "timed_out", "skipped", "postponed", "cancelled"]
"""How an attempt ended, in the run history."""

RUN_OUTCOMES: Final[tuple[RunOutcome, ...]] = get_args(RunOutcome)
"""All of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """An attempt that has ended, from the run history (``pyncette.history``).

    Attributes:
        task: The name of the static task or of the template.
        instance: The name of the instance; None: the task is static.
        execution_id: The same for all attempts of the occurrence, see ``Context``.
        attempt: The number of the attempt; the first one is 1.
        planned_at: The planned time of the occurrence, aware UTC; likewise the other times.
        started_at: When the body started.
        ended_at: When it ended.
        worker: The name of the worker.
        outcome: ``"succeeded"``, ``"failed"``, ``"timed_out"``, ``"skipped"`` (the body raised
            ``Skip``), ``"postponed"`` (``RetryIn``) or ``"cancelled"``; a plain string.
        error: The error, or the reason that it gave, in one line of at most 2,000 characters; None
            if it has succeeded.
    """

    task: str
    instance: str | None
    execution_id: str
    attempt: int
    planned_at: datetime
    started_at: datetime
    ended_at: datetime
    worker: str
    outcome: RunOutcome
    error: str | None = None


class RunsPage(NamedTuple):
    """One page of the run history.

    Attributes:
        runs: Some attempts, those that ended last first; perhaps fewer than the limit, or none,
            even if more follow.
        cursor: For the next call; None at the end.
    """

    runs: list[Run]
    cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTotals:
    """The attempts of one task that ended in one minute, of all workers together.

    Attributes:
        task: The name of the static task, or of the template: then all of its instances.
        minute: When the minute began, aware UTC.
        succeeded: How many have succeeded.
        failed: How many have failed or timed out.
        other: How many were skipped, postponed or cancelled.
        took: How long they took, all together.
        lateness_max: By how much the latest of them started after its occurrence came due; later
            attempts of an occurrence do not count.
    """

    task: str
    minute: datetime
    succeeded: int
    failed: int
    other: int
    took: timedelta
    lateness_max: timedelta


ContinuationToken = NewType("ContinuationToken", str)
"""Where the next page of a listing begins. Opaque: pass it to the next call."""


@dataclass(frozen=True, slots=True)
class ListTasksResponse:
    """One page of a listing.

    Attributes:
        tasks: The states of some instances; perhaps fewer than the limit even if more follow.
        continuation_token: For the next call; None at the end.
    """

    tasks: list[TaskState]
    continuation_token: ContinuationToken | None


Lease = NewType("Lease", str)
"""The token of a claim."""

Json = None | bool | int | float | str | list[Any] | tuple[Any, ...] | Mapping[Any, Any]
"""The type of a task's argument; the exact rules are stricter than the type."""


class _Unset:
    def __repr__(self) -> str:
        return "<not given>"


UNSET: Final[Any] = _Unset()
"""The default of an option that 1.x did not have: even None would be an argument of the task."""

TaskFunc = Callable[..., Any]
"""The function of a task: takes the context, and arguments of the task by name. A plain function
runs in a thread."""

NextFunc = Callable[[], Awaitable[None]]
"""The rest of an execution, which a middleware calls."""

MiddlewareFunc = Callable[[Any, NextFunc], Awaitable[Any]]
"""Wraps each execution: takes the context and the rest of the execution."""

FixtureFunc = Callable[["PyncetteContext"], AsyncIterator[Any]]
"""An async generator function that yields the fixture's value once."""

PartitionSelector = Callable[[int, str], int]
"""Takes the number of partitions and the name of an instance, returns the partition's number."""


class Heartbeater(Protocol):
    """An object that can extend a lease."""

    async def heartbeat(self) -> None:
        """Extends the lease; see ``Context.heartbeat``."""


_Decorated = TypeVar("_Decorated", bound=Callable[..., Any], contravariant=True)


class Decorator(Protocol[_Decorated]):
    """A decorator that returns its function, or the task that it has created."""

    def __call__(self, func: _Decorated, /) -> Any:
        """Decorates ``func``."""
