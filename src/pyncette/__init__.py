"""A reliable distributed scheduler for async Python with pluggable storage."""

from pyncette.app import Pyncette
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
    "OnExisting",
    "Overlap",
    "Pyncette",
    "PyncetteContext",
    "Retry",
    "RetryIn",
    "Skip",
    "__version__",
]
