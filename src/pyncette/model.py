"""The nouns that applications see, and the types of the functions that they hand in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, NewType, Protocol, TypeVar

if TYPE_CHECKING:
    from pyncette.context import PyncetteContext
    from pyncette.task import Task


class ExecutionMode(Enum):
    """What happens to a run whose worker dies."""

    AT_LEAST_ONCE = 0
    """It runs again: the record moves on after the body has ended."""

    AT_MOST_ONCE = 1
    """It is not repeated: the record moves on before the body starts."""


class FailureMode(Enum):
    """What happens when the body of an at-least-once task raises."""

    NONE = 0
    """The lease stays; the run is retried when it expires."""

    UNLOCK = 1
    """The run is due again after one poll interval."""

    COMMIT = 2
    """The failure counts as done."""


class Context:
    """What a task gets: one object for each execution.

    Fixtures, and what was added to the app's context, are further attributes. Tasks and
    middlewares may set attributes of their own. A test may build an empty one and set what the
    task reads.

    Attributes:
        app_context: The context of the running app.
        task: The task, or the instance of a dynamic task, that is executed.
        scheduled_at: The planned time of this run, aware, in the task's time zone.
        args: The arguments of this execution, a copy of its own.
    """

    app_context: PyncetteContext
    task: Task
    scheduled_at: datetime
    args: dict[str, Any]

    if TYPE_CHECKING:
        # Fixtures and context items are attributes that no type checker can know.
        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    async def heartbeat(self) -> None:
        """Extends the lease of this run by the task's ``lease_duration``, from now.

        A lease that has expired, but that nobody took, is extended all the same. Does nothing for
        at-most-once tasks, which hold no lease while they run.

        Raises:
            LeaseLostException: Somebody else took, replaced or removed the record. What this
                execution ends in will not be recorded.
        """


@dataclass(frozen=True, slots=True)
class TaskState:
    """What a store knows of a task.

    Attributes:
        task: The static task, or the instance.
        scheduled_at: When it runs next, aware UTC; while a run is in hand, its planned time.
            None where no run is to come.
        locked_until: End of the lease, aware UTC, only while the task runs (it may have passed
            where its worker died); else None.
        locked_by: The worker that runs it; else None.
    """

    task: Task
    scheduled_at: datetime | None
    locked_until: datetime | None = None
    locked_by: str | None = None


ContinuationToken = NewType("ContinuationToken", str)
"""Where a listing goes on. Opaque: it is only good to be handed back."""


@dataclass(frozen=True, slots=True)
class ListTasksResponse:
    """One page of a listing.

    Attributes:
        tasks: The states of some instances; perhaps fewer than asked for though more follow.
        continuation_token: To be handed to the next call; None at the end.
    """

    tasks: list[TaskState]
    continuation_token: ContinuationToken | None


Lease = NewType("Lease", str)
"""The token of a claim."""

Json = None | bool | int | float | str | list[Any] | tuple[Any, ...] | Mapping[Any, Any]
"""What an argument of a task may be, as far as a type can say it."""

TaskFunc = Callable[[Any], Awaitable[Any]]
"""The body of a task: takes the context."""

NextFunc = Callable[[], Awaitable[None]]
"""The rest of an execution, as a middleware sees it."""

MiddlewareFunc = Callable[[Any, NextFunc], Awaitable[Any]]
"""Wraps each execution: takes the context and the rest of the execution."""

FixtureFunc = Callable[["PyncetteContext"], AsyncIterator[Any]]
"""An async generator function that yields the fixture's value once."""

PartitionSelector = Callable[[int, str], int]
"""Takes the number of partitions and the name of an instance, gives the partition's number."""


class Heartbeater(Protocol):
    """Something that can extend a lease."""

    async def heartbeat(self) -> None:
        """Extends it; see ``Context.heartbeat``."""


_Decorated = TypeVar("_Decorated", bound=Callable[..., Any], contravariant=True)


class Decorator(Protocol[_Decorated]):
    """A decorator that returns what it was given, or the task made of it."""

    def __call__(self, func: _Decorated, /) -> Any:
        """Decorates ``func``."""
