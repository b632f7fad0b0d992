"""What the three readers of SQL tables share: names, and the check of a table."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from pyncette.migrate.copying import Layout, MigrationError
from pyncette.store.sql.rows import COLUMNS, LEGACY_COLUMNS, check_table_name

ROW_COLUMNS = "name, parent_name, execute_after, locked_until, locked_by, task_spec"
"""The columns of 1.x, in the order of a ``LegacyRow``."""


class Tables(NamedTuple):
    """The names of the tables of a migration.

    Attributes:
        current: The table of the application.
        copy: The table of the copy, which gets the name of ``current`` in the end.
        old: The name that the table of 1.x then gets.
    """

    current: str
    copy: str
    old: str

    def layout(
        self, columns: Sequence[str], old_columns: Collection[str], place: str, option: str
    ) -> Layout:
        """Returns which data the application's table has.

        Args:
            columns: The columns of that table; empty if there is no such table.
            old_columns: The columns of the table with the name ``old``, likewise.
            place: The database, for messages.
            option: The option that names the table.

        Raises:
            MigrationError: There is no table that can be migrated.
        """
        if not columns:
            raise MigrationError(
                f"There is no table '{self.current}' in {place}. Name the table of 1.x with "
                f"{option}."
            )
        if list(columns) == list(COLUMNS):
            return Layout.TAKEN_OVER
        if set(columns) != LEGACY_COLUMNS:
            raise MigrationError(
                f"Table '{self.current}' in {place} was not made by pyncette 1.x: it has the "
                f"columns {', '.join(columns)}. Name the table of 1.x with {option}."
            )
        if old_columns:
            raise MigrationError(
                f"The table of 1.x would be kept as '{self.old}', but there is a table of that "
                f"name in {place}. Rename or drop it first."
            )
        return Layout.LEGACY

    def check_old(self, columns: Collection[str], place: str) -> bool:
        """Whether there is an old table to drop.

        Raises:
            MigrationError: The table with its name is not one of 1.x.
        """
        if columns and set(columns) != LEGACY_COLUMNS:
            raise MigrationError(
                f"Table '{self.old}' in {place} was not made by pyncette 1.x, and is left alone."
            )
        return bool(columns)


def tables_of(name: str, option: str, characters_max: int) -> Tables:
    """The names that follow from the name of the application's table.

    Raises:
        ValueError: The name is not valid, or too long for the names that are made of it.
    """
    check_table_name(option, name)
    if len(name) > characters_max:
        raise ValueError(
            f"Table name {name!r} ({option}) must have at most {characters_max} characters, so "
            "that there is room for the names of its copies: rename it first"
        )
    return Tables(name, f"{name}_2x", f"{name}_1x")
