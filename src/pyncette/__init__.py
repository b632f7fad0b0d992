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
    PerWorker,
    Where,
)
from pyncette.retry import GiveUp, Retry, RetryIn, Skip

__version__ = "2.0.0"

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
    "PerWorker",
    "Pyncette",
    "PyncetteContext",
    "Retry",
    "RetryIn",
    "Skip",
    "Where",
    "__version__",
]
