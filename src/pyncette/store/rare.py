"""The states that are no part of an ordinary run. Stores keep an index of the records in them.

So a call that asks for parked records, for example, reads only those, among however many others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pyncette.store import Filter, Page
from pyncette.store.record import Record, State

RARE_STATES: Final = frozenset({State.RETRYING, State.PAUSED, State.PARKED, State.FINISHED})
"""The states of records that do not simply go from run to run."""


def is_rare(where: Filter) -> bool:
    """Returns whether the index of rare states has all records that match."""
    return where.states is not None and where.states <= RARE_STATES


def merged_page(pages: Sequence[Sequence[Record]], limit: int) -> Page:
    """Returns the first records by key of several lists, each with up to ``limit + 1`` records."""
    records = sorted((record for page in pages for record in page), key=by_key)
    if len(records) <= limit:
        return Page(records, None)
    return Page(records[:limit], records[limit - 1].key)


def by_key(record: Record) -> bytes:
    """Returns what records are sorted by: their key in UTF-8."""
    return record.key.encode(errors="surrogateescape")
