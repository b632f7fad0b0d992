"""A reliable distributed scheduler for async Python with pluggable storage."""

from pyncette.app import Pyncette
from pyncette.bulk import Instance
from pyncette.context import PyncetteContext
from pyncette.model import Context, ExecutionMode, FailureMode, OnExisting, Where

__version__ = "2.0.0"

__all__ = [
    "Context",
    "ExecutionMode",
    "FailureMode",
    "Instance",
    "OnExisting",
    "Pyncette",
    "PyncetteContext",
    "Where",
    "__version__",
]
