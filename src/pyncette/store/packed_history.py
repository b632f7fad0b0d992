"""Attempts as bytes and texts, for stores that have no columns: in the order of time."""

from __future__ import annotations

import json
from typing import Final

from pyncette.store.history import RunRow

PLACE_BYTES: Final = 16

_FIELDS: Final = len(RunRow._fields) - 2
_to_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def number_bytes(value: int) -> bytes:
    """A number as eight bytes in the order of numbers; one that is too large as the largest."""
    return min(max(value + (1 << 63), 0), (1 << 64) - 1).to_bytes(8, "big")


def number_in(data: bytes) -> int:
    """The reverse of ``number_bytes``."""
    return int.from_bytes(data, "big") - (1 << 63)


def place_bytes(ended_at: int, number: int) -> bytes:
    """A place in time as bytes, in the order of places."""
    return number_bytes(ended_at) + number_bytes(number)


def place_in(data: bytes) -> tuple[int, int]:
    """The reverse of ``place_bytes``, for any bytes."""
    data = data[:PLACE_BYTES].ljust(PLACE_BYTES, b"\0")
    return number_in(data[:8]), number_in(data[8:])


def text_of(row: RunRow) -> str:
    """All of an attempt but for its place."""
    return _to_json(row[2:])


def row_of(place: tuple[int, int], text: str | bytes) -> RunRow | None:
    """The attempt of a text; None if it is none."""
    try:
        # A later release may have more.
        row = RunRow(*place, *json.loads(text)[:_FIELDS])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    names = (row.task, row.outcome)
    if not all(isinstance(name, str) for name in names) or not isinstance(
        row.instance, (str, type(None))
    ):
        return None
    return row


def unreadable(place: tuple[int, int]) -> RunRow:
    """What stands for a text that is no attempt: whoever reads it leaves it out."""
    return RunRow(*place, "", None, "", 0, 0, 0, "", "", None)
