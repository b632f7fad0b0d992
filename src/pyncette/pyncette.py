"""Where release 1.x kept the app; see :mod:`pyncette.app` and :mod:`pyncette.context`."""

from pyncette.app import Pyncette
from pyncette.context import PyncetteContext

__all__ = ["Pyncette", "PyncetteContext"]
