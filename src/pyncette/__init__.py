"""A reliable distributed scheduler for async Python with pluggable storage."""

from pyncette.app import Pyncette
from pyncette.bulk import Instance
from pyncette.context import PyncetteContext
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
    Where,
)
from pyncette.retry import GiveUp, Retry, RetryIn, Skip
from pyncette.version import __version__

__all__ = [
    "CatchUp",
    "Context",
    "ExecutionMode",
    "Exhausted",
    "FailureMode",
    "GiveUp",
    "Heartbeat",
    "Instance",
    "OnExisting",
    "Overlap",
    "Partitions",
    "PerWorker",
    "Pyncette",
    "PyncetteContext",
    "Retry",
    "RetryIn",
    "Skip",
    "Where",
    "__version__",
]
