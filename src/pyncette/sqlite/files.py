"""The files that a SQLite connection has open; checks whether they are still those at its path.

A file that is deleted or replaced stays open in the processes that have it open. SQLite continues
to read and write it, but a process that opens the path never sees these writes.
"""

from __future__ import annotations

import os
from typing import Final

_LOG: Final = "-wal"
_INDEX: Final = "-shm"

_Identity = tuple[int, int] | None
"""Device and inode; None if there is no file."""


class OpenedFiles:
    """The database, its write-ahead log and the index of that log, as a connection opened them.

    Args:
        path: The path of the database. It is made absolute here, since the process may change its
            directory.

    A connection must be open on the path, and must have read from it: the log and its index are
    created then, and stay until the last connection closes.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        # SQLite puts them beside the file that a symbolic link leads to.
        real = os.path.realpath(path)
        self._log = real + _LOG
        self._paths = (self._path, self._log, real + _INDEX)
        self._opened = self._now()

    def moved(self) -> bool:
        """Returns whether a file at one of the paths is no longer the one that was opened."""
        return self._now() != self._opened

    @property
    def database_moved(self) -> bool:
        """Returns whether the database file itself was deleted or replaced."""
        return _identity(self._path) != self._opened[0]

    @property
    def log_is_ours(self) -> bool:
        """Returns whether the log at the path is still the one that was opened."""
        return _identity(self._log) == self._opened[1] is not None

    def _now(self) -> tuple[_Identity, ...]:
        return tuple(map(_identity, self._paths))


def _identity(path: str) -> _Identity:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
