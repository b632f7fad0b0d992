"""What the SQL stores have in common: the name of the table, its columns, rows as records.

It knows no SQL dialect, no driver and no connection.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final

from pyncette.errors import StoreUnavailableError
from pyncette.store import Applied, Failed, Identity, Refused, Result, Write
from pyncette.store.record import ABSENT, ANY, Put, Record

HELD_PATIENCE_S: Final = 0.25
"""How long a write waits for a record that somebody holds before it says so."""

HELD_AGAIN_PATIENCE_S: Final = 0.02
"""The same for a record that was held for that long before: others wait in the same flight."""

HELD_UNANSWERED_S: Final = 1.0
"""The same for a write that cannot be refused with the record: then the record is busy."""

HELD_KNOWN_MAX: Final = 1_000

COLUMNS: Final = Record._fields
"""The columns of a table, in the order of a row."""

LEGACY_COLUMNS: Final = frozenset(
    ("name", "parent_name", "locked_until", "locked_by", "execute_after", "task_spec")
)
"""The columns of a table that release 1.x made."""

_TABLE_NAME = re.compile(r"[a-z_][a-z0-9_]*", re.ASCII)


def check_table_name(option: str, name: Any) -> str:
    """The name, if it can stand in a statement as it is.

    Raises:
        ValueError: It is not a lower-case ASCII identifier.
    """
    if not isinstance(name, str) or _TABLE_NAME.fullmatch(name) is None:
        raise ValueError(
            f"Table name {name!r} ({option}) must be made of lower-case letters, digits and "
            "underscores, and must not begin with a digit"
        )
    return name


def describe_foreign_table(table: str, place: str, columns: Collection[str], option: str) -> str:
    """Why a table that has other columns than ours cannot be used, and what to do."""
    if LEGACY_COLUMNS.issuperset(columns) and "execute_after" in columns:
        return (
            f"Table '{table}' in {place} was made by pyncette 1.x. Stop every worker and run "
            f"'python -m pyncette migrate', or name a table for this release with {option}. "
            "Nothing was changed."
        )
    return (
        f"Table '{table}' in {place} is not one of ours: it has the columns "
        f"{', '.join(columns)}; expected are {', '.join(COLUMNS)}. Name another table with "
        f"{option}. Nothing was changed."
    )


def prefix_end(prefix: str) -> str | None:
    """The least text that is greater than every text with this prefix; None where there is none.

    Compared bytewise in UTF-8, which is the order of the code points.
    """
    head = prefix.rstrip("\U0010ffff")
    if not head:
        return None
    following = ord(head[-1]) + 1
    # The surrogates between the two planes are no characters.
    return head[:-1] + chr(0xE000 if following == 0xD800 else following)


def expectation_holds(write: Write, current: Record | None) -> bool:
    """Whether the record that is there is the one that a write expects."""
    version = ABSENT if current is None else current.version
    if write.expect not in (version, ANY):
        return False
    return write.token is None or (current is not None and current.token == write.token)


class HeldRecords:
    """What to say of a write that was not made, on a server where others hold records.

    Somebody's open transaction must not keep all others of a batch waiting. So a conditional write
    of a record that is held for long is refused with the record as it stands: the writer comes
    back with its next batch. An unconditional write, or a creation, is told that the record is
    busy.
    """

    def __init__(self) -> None:
        # Those that somebody held for long when they were last to be written.
        self._known: set[Identity] = set()

    def answer(self, write: Write, current: Record | None, waited_s: float) -> Result | None:
        """The answer, or None: try again.

        Args:
            write: It was tried and not made.
            current: What was there afterwards.
            waited_s: For so long it has been tried.
        """
        identity = write[:2]
        if not expectation_holds(write, current):
            self._known.discard(identity)
            return Refused(current)
        if current is None and not isinstance(write.change, Put):
            return Applied(ABSENT)
        if current is None or write.expect == ANY:
            if waited_s <= HELD_UNANSWERED_S:
                return None
            group, key = identity
            return Failed(
                StoreUnavailableError(
                    f"The record {key!r} of '{group}' is locked by an open transaction"
                )
            )
        if waited_s <= (HELD_AGAIN_PATIENCE_S if identity in self._known else HELD_PATIENCE_S):
            return None
        if len(self._known) >= HELD_KNOWN_MAX:
            self._known.clear()
        self._known.add(identity)
        return Refused(current)
