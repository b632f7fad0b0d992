"""Says in words that a call is about a record that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyncette.errors import TaskUnreadableError, describe
from pyncette.schedule import UnreadableHere
from pyncette.store.record import STATIC_GROUP, Record, UnreadableRecord


@contextmanager
def reading_record(record: Record) -> Iterator[None]:
    """Reads a record of a task in this block, for the call of a user.

    Raises:
        TaskUnreadableError: It cannot be read.
    """
    try:
        yield
    except (UnreadableHere, UnreadableRecord) as error:
        elsewhere = isinstance(error, UnreadableHere)
        static = record.group == STATIC_GROUP
        raise TaskUnreadableError(record.key, describe(error), elsewhere, static) from error
