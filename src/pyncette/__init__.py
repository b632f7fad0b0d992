"""A reliable distributed scheduler for async Python with pluggable storage."""

from pyncette.app import Pyncette
from pyncette.bulk import BulkFailure, BulkResult, Instance, RebalanceResult
from pyncette.context import PyncetteContext
from pyncette.errors import (
    ArgumentError,
    LeaseLostException,
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
)
from pyncette.model import (
    CatchUp,
    Context,
    ExecutionMode,
    Exhausted,
    FailureMode,
    Heartbeat,
    OnExisting,
    Overlap,
    Partitions,
    PerWorker,
    Process,
    TaskState,
    Where,
    WorkerState,
)
from pyncette.retry import GiveUp, Retry, RetryIn, Skip
from pyncette.schedule import At, Calendar, Cron, Every, Rule, Schedule
from pyncette.task import PartitionedTask, Task
from pyncette.utils import with_heartbeat
from pyncette.version import __version__

__all__ = [
    "ArgumentError",
    "At",
    "BulkFailure",
    "BulkResult",
    "Calendar",
    "CatchUp",
    "Context",
    "Cron",
    "Every",
    "ExecutionMode",
    "Exhausted",
    "FailureMode",
    "GiveUp",
    "Heartbeat",
    "Instance",
    "LeaseLostException",
    "OnExisting",
    "Overlap",
    "PartitionedTask",
    "Partitions",
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
    "Schedule",
    "Skip",
    "StoreError",
    "StoreMisconfiguredError",
    "StoreUnavailableError",
    "Task",
    "TaskExistsError",
    "TaskLockedException",
    "TaskNotFoundError",
    "TaskPausedError",
    "TaskState",
    "TaskUnreadableError",
    "Where",
    "WorkerState",
    "__version__",
    "with_heartbeat",
]
