"""Where release 1.x kept the app; see ``pyncette.app`` and ``pyncette.context``."""

from pyncette.app import Pyncette
from pyncette.context import PyncetteContext

__all__ = ["Pyncette", "PyncetteContext"]
