"""What the SQL stores have in common: the name of the table, its columns, rows as records.

Knows no SQL dialect, no driver and no connection.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, Final

from pyncette.errors import StoreMisconfiguredError
from pyncette.store import Counted, next_version
from pyncette.store.absent import NothingThereError
from pyncette.store.record import Record

VERSION_MAX: Final = 1 << 53
"""Versions are less than this, because it is later than every instant."""

UNFINISHED_MAX: Final = 1 << 29
"""Claims do not count unfinished attempts beyond this."""

COLUMNS: Final = Record._fields
"""The columns of a table, in the order of a row."""

RARE: Final = "state IN ('finished', 'parked', 'paused', 'retrying')"
"""The condition of the index of rare states, see ``pyncette.store.rare``. A statement must repeat
it word for word to be served by it."""

LEGACY_COLUMNS: Final = frozenset(
    ("name", "parent_name", "locked_until", "locked_by", "execute_after", "task_spec")
)
"""The columns of a table that release 1.x has created."""

_TABLE_NAME = re.compile(r"[a-z_][a-z0-9_]*", re.ASCII)


def counted(examined: int, matches: int, examined_max: int, limit: int) -> Counted:
    """Returns the answer of a count that has looked at up to one record more than it may."""
    complete = examined <= examined_max and matches <= limit
    return Counted(min(matches, limit), complete)


def check_table_name(option: str, name: Any, characters_max: int | None = None) -> str:
    """Returns the name, if it can be used in a statement without quotes.

    Raises:
        ValueError: It is not a lower-case ASCII identifier, or it is too long.
    """
    if not isinstance(name, str) or _TABLE_NAME.fullmatch(name) is None:
        raise ValueError(
            f"Table name {name!r} ({option}) must be made of lower-case letters, digits and "
            "underscores, and must not begin with a digit"
        )
    if characters_max is not None and len(name) > characters_max:
        raise ValueError(
            f"Table name {name!r} ({option}) must have at most {characters_max} characters"
        )
    return name


def describe_foreign_table(table: str, place: str, columns: Collection[str], option: str) -> str:
    """The error about a table with other columns: why it cannot be used, and what to do."""
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


def check_layout(columns: Sequence[str], table: str, place: str, package: str) -> None:
    """Refuses a table that is missing, or that Pyncette has not created.

    Args:
        columns: Its columns in their order; empty if there is no such table.
        table, place: The name of the table, and the server.
        package: The name of the store's package, with which its options begin.

    Raises:
        StoreMisconfiguredError: The table cannot be used.
    """
    if not columns:
        raise NothingThereError(
            f"There is no table '{table}' in {place}, and {package}_skip_table_create is set. "
            f"pyncette.{package}.schema_sql() tells how to create it."
        )
    if list(columns) != list(COLUMNS):
        raise StoreMisconfiguredError(
            describe_foreign_table(table, place, columns, f"{package}_table_name")
        )


def prefix_end(prefix: str) -> str | None:
    """The least text that is greater than every text with this prefix; None if there is none.

    Compared bytewise in UTF-8, which is the order of the code points.
    """
    head = prefix.rstrip("\U0010ffff")
    if not head:
        return None
    following = ord(head[-1]) + 1
    # Surrogates are not characters, so they are skipped.
    return head[:-1] + chr(0xE000 if following == 0xD800 else following)


def version_after(version: int, now: int) -> int:
    """The version that a write gives to a record; an absurd version is repaired.

    The statements of the stores compute the same.
    """
    return next_version(version, now) if version < VERSION_MAX else now
