"""A set of names of any size."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Final

from pyncette.store.record import Record

BATCH: Final = 1_000
"""Names that are written together."""


class Names:
    """The names of instances: a temporary database, which is on disk if it is large.

    The group of a name does not matter: an instance may move to another partition meanwhile.
    """

    def __init__(self) -> None:
        """Has no name yet."""
        self._connection = sqlite3.connect("", isolation_level=None)
        self._connection.execute("PRAGMA cache_size = -8000")
        self._connection.execute("CREATE TABLE names (name TEXT PRIMARY KEY) WITHOUT ROWID")
        self._connection.execute("BEGIN")
        self._new: list[str] = []

    def add(self, name: str) -> None:
        """Adds a name."""
        self._new.append(name)
        if len(self._new) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        self._connection.execute(
            "INSERT OR IGNORE INTO names SELECT value FROM json_each(?)", (json.dumps(self._new),)
        )
        self._new.clear()

    def missing(self, records: Sequence[Record]) -> list[Record]:
        """Returns the records of a group whose names are not in the set."""
        self._flush()
        asked = {record.key: record for record in records}
        rows = self._connection.execute(
            "SELECT value FROM json_each(?) WHERE value NOT IN (SELECT name FROM names)",
            (json.dumps(list(asked)),),
        )
        return [asked[name] for (name,) in rows]

    def close(self) -> None:
        """Removes the set."""
        self._connection.close()
