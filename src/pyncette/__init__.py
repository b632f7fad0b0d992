"""A reliable distributed scheduler for async Python with pluggable storage."""

from typing import TYPE_CHECKING, Any

from pyncette.acting import acting_as
from pyncette.app import Pyncette
from pyncette.bulk import BulkFailure, BulkResult, Instance, RebalanceResult
from pyncette.errors import (
    AppClosedError,
    ArgumentError,
    DeadlineExceededError,
    LeaseLostException,
    NoTransactionError,
    ProcessEndedError,
    PyncetteException,
    StoreError,
    StoreMisconfiguredError,
    StoreUnavailableError,
    TaskExistsError,
    TaskLockedException,
    TaskNotFoundError,
    TaskPausedError,
    TaskUnreadableError,
    TransactionBegunError,
)
from pyncette.model import (
    CatchUp,
    Context,
    ExecutionMode,
    Exhausted,
    FailureMode,
    Heartbeat,
    ListTasksResponse,
    OnExisting,
    Overlap,
    Partitions,
    PauseState,
    PerWorker,
    Process,
    RunCounts,
    TaskCount,
    TaskState,
    UnknownTask,
    Where,
    WorkerState,
)
from pyncette.retry import GiveUp, Retry, RetryIn, Skip
from pyncette.schedule import At, Calendar, Cron, Every, Rule, Schedule
from pyncette.task import PartitionedTask, Task
from pyncette.utils import with_heartbeat
from pyncette.version import __version__

if TYPE_CHECKING:
    from pyncette.context import PyncetteContext

__all__ = [
    "AppClosedError",
    "ArgumentError",
    "At",
    "BulkFailure",
    "BulkResult",
    "Calendar",
    "CatchUp",
    "Context",
    "Cron",
    "DeadlineExceededError",
    "Every",
    "ExecutionMode",
    "Exhausted",
    "FailureMode",
    "GiveUp",
    "Heartbeat",
    "Instance",
    "LeaseLostException",
    "ListTasksResponse",
    "NoTransactionError",
    "OnExisting",
    "Overlap",
    "PartitionedTask",
    "Partitions",
    "PauseState",
    "PerWorker",
    "Process",
    "ProcessEndedError",
    "Pyncette",
    "PyncetteContext",
    "PyncetteException",
    "RebalanceResult",
    "Retry",
    "RetryIn",
    "Rule",
    "RunCounts",
    "Schedule",
    "Skip",
    "StoreError",
    "StoreMisconfiguredError",
    "StoreUnavailableError",
    "Task",
    "TaskCount",
    "TaskExistsError",
    "TaskLockedException",
    "TaskNotFoundError",
    "TaskPausedError",
    "TaskState",
    "TaskUnreadableError",
    "TransactionBegunError",
    "UnknownTask",
    "Where",
    "WorkerState",
    "__version__",
    "acting_as",
    "with_heartbeat",
]

# The context brings the engine with it, which a program that only declares tasks does not need.
# Modules that programs name by the package, as after `import pyncette` of 1.x, are imported when
# they are asked for.
if not TYPE_CHECKING:
    _MODULES = frozenset({"context", "events", "pyncette", "repository", "sqlite", "sync"})

    def __getattr__(name: str) -> Any:
        if name == "PyncetteContext":
            from pyncette.context import PyncetteContext

            return PyncetteContext
        if name in _MODULES:
            from importlib import import_module

            return import_module(f"pyncette.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
