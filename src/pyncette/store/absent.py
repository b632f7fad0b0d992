"""The error of a store that was told to create nothing, and finds nothing to open."""

from __future__ import annotations

from pyncette.errors import StoreMisconfiguredError


class NothingThereError(StoreMisconfiguredError):
    """There is no table, or nothing in the namespace, and none may be created.

    Applications get it as ``StoreMisconfiguredError``.

    Args:
        message: What there is not; then, behind ", and ", why none is created.

    Attributes:
        what: The first part of it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.what = message.partition(", and ")[0]
