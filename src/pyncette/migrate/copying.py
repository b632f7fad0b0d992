"""Counts the data of 1.x in a store, and writes them to a store of this release.

Knows the calls of a reader (``Source``) and the storage contract, but no database. A record is only
created; a record that a worker has claimed is never overwritten. So everything here may be
interrupted at any point and done again.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple, Protocol

from pyncette.clock import Clock
from pyncette.errors import PyncetteException, describe
from pyncette.migrate.legacy import NOBODY, Done, LeftBehind, LegacyRow, Taken, taken_over
from pyncette.schedule import NewerFormat
from pyncette.store import EVERYTHING, Applied, Failed, Refused, Store, Unknown, Write
from pyncette.store.record import (
    ABSENT,
    CONTROL_GROUP,
    STATIC_GROUP,
    Put,
    Record,
    State,
    UnreadableRecord,
    dump_args,
    load_args,
    load_progress,
)

BATCH: Final = 1_000
"""Rows that are read, and written, at a time."""

EXAMPLES_MAX: Final = 10
"""Maximum defective records that are reported one by one."""

MARK: Final = "migration:1.x"
"""The control record with the progress of a migration into this store."""


class MigrationError(PyncetteException):
    """There are no data to migrate, or they cannot be migrated now. Nothing was changed."""


class WorkersRunningError(MigrationError):
    """Records are leased, so workers of 1.x are probably running.

    Attributes:
        leased_until: The end of the last lease, in microseconds since the epoch.
    """

    def __init__(self, message: str, leased_until: int) -> None:
        super().__init__(message)
        self.leased_until = leased_until


class Layout(Enum):
    """The data that were found in the place that is to be migrated."""

    LEGACY = "legacy"
    """Tasks of 1.x."""

    TAKEN_OVER = "taken over"
    """Records of this release: the migration was completed, or there was nothing to do."""


class Example(NamedTuple):
    """A defective record.

    Attributes:
        name: Its canonical name.
        reason: The defect.
    """

    name: str
    reason: str


@dataclass
class Counts:
    """The data of 1.x in a store.

    Attributes:
        static: Static tasks with a planned time.
        instances: Instances, by the canonical name of their template or partition.
        leased: Records of both kinds whose lease has not ended.
        leased_until: The end of the last of these leases, in microseconds since the epoch.
        done: Tasks with nothing left to run; they are not copied.
        parked: Records of ``static`` and ``instances`` that could not be read; they are copied,
            with the reason.
        left_behind: Rows without a name that could be a key; they are not copied.
        parked_examples: Some of the parked records.
        left_behind_examples: Some of the rows that are not copied.
    """

    static: int = 0
    instances: Counter[str] = field(default_factory=Counter)
    leased: int = 0
    leased_until: int | None = None
    done: int = 0
    parked: int = 0
    left_behind: int = 0
    parked_examples: list[Example] = field(default_factory=list)
    left_behind_examples: list[Example] = field(default_factory=list)

    @property
    def to_copy(self) -> int:
        """How many records there are to copy."""
        return self.static + self.instances.total()

    def add(self, row: LegacyRow, outcome: Taken | Done | LeftBehind) -> None:
        """Counts a row."""
        if isinstance(outcome, Done):
            self.done += 1
        elif isinstance(outcome, LeftBehind):
            self.leave_behind(outcome.name, outcome.reason)
        else:
            if outcome.label:
                self.instances[outcome.label] += 1
            else:
                self.static += 1
            if outcome.leased_until is not None:
                self.leased += 1
                self.leased_until = max(self.leased_until or 0, outcome.leased_until)
            if outcome.reason is not None:
                self.parked += 1
                _note(self.parked_examples, str(row.name), outcome.reason)

    def leave_behind(self, name: str, reason: str) -> None:
        """Counts a row that cannot be copied."""
        self.left_behind += 1
        _note(self.left_behind_examples, name, reason)


def _note(examples: list[Example], name: str, reason: str) -> None:
    if len(examples) < EXAMPLES_MAX:
        examples.append(Example(name, reason))


class Fingerprint:
    """Detects changes of a store of 1.x: equal after reading equal rows in any order."""

    def __init__(self) -> None:
        self._rows = 0
        self._sum = 0

    def add(self, rows: Sequence[LegacyRow]) -> None:
        """Adds rows."""
        self._rows += len(rows)
        self._sum += sum(zlib.crc32(repr(row).encode("utf-8", "replace")) for row in rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fingerprint):
            return NotImplemented
        return (self._rows, self._sum) == (other._rows, other._sum)

    __hash__ = None  # type: ignore[assignment]


class Source(Protocol):
    """A store of 1.x, open for reading, and the store of this release that it is copied to."""

    place: str
    """The name of the store for messages, without secrets."""

    kept: str
    """Where the old data are afterwards, for messages."""

    async def look(self) -> Layout:
        """Returns which data are there. Changes nothing.

        Raises:
            MigrationError: They are neither tasks of 1.x nor records of this release.
        """
        ...

    def rows(self) -> AsyncIterator[list[LegacyRow]]:
        """All rows, at most ``BATCH`` at a time."""
        ...

    def target(self) -> AbstractAsyncContextManager[Store]:
        """Opens the store to copy to; creates it if it is missing.

        Raises:
            MigrationError: An application uses it already.
        """
        ...

    async def finish(self, copied: Fingerprint, records: int) -> bool:
        """Puts the copy in the place of the old data, if it is a copy of the current data.

        Args:
            copied: The fingerprint of the copied data.
            records: The number of records in the copy.

        Returns:
            Whether that was done; if not, everything must be copied again.
        """
        ...

    async def drop_old(self) -> bool:
        """Removes the old data, if the migration was completed; returns whether there were any.

        Raises:
            MigrationError: This program cannot remove them.
        """
        ...


async def survey(source: Source, now: int) -> Counts:
    """Counts the data. Changes nothing."""
    counts = Counts()
    async for rows in source.rows():
        for row in rows:
            counts.add(row, taken_over(row, now))
    return counts


class Copied(NamedTuple):
    """The result of ``copy``.

    Attributes:
        written: Records that were written.
        present: Records that an earlier, interrupted migration had written.
        counts: The data that were found.
        fingerprint: The fingerprint of the data that were read.
    """

    written: int
    present: int
    counts: Counts
    fingerprint: Fingerprint


async def copy(
    source: Source,
    store: Store,
    clock: Clock,
    total: int,
    progress: Callable[[int, int], None] | None,
) -> Copied:
    """Writes everything to the store.

    Args:
        source: The old data.
        store: The new store.
        clock: Tells which leases have not ended.
        total: The number of records to copy.
        progress: Called with the number of records that are in the store so far, and the total.
    """
    counts, fingerprint = Counts(), Fingerprint()
    written = present = 0
    async for rows in source.rows():
        fingerprint.add(rows)
        now = clock.microseconds()
        writes: dict[tuple[str, str], Write] = {}
        for row in rows:
            outcome = taken_over(row, now)
            counts.add(row, outcome)
            if isinstance(outcome, Taken):
                writes[outcome.write[:2]] = outcome.write
        new, old = await _write(store, list(writes.values()), now, counts)
        written += new
        present += old
        if progress is not None:
            progress(written + present, total)
    return Copied(written, present, counts, fingerprint)


async def _write(store: Store, batch: Sequence[Write], now: int, counts: Counts) -> tuple[int, int]:
    """Writes a batch; returns how many records were created, and how many existed."""
    if not batch:
        return 0, 0
    results = await store.write(batch, now)
    written = present = 0
    stale: list[Write] = []
    for write, result in zip(batch, results, strict=True):
        if isinstance(result, Applied):
            written += 1
        elif isinstance(result, (Failed, Unknown)):
            if not isinstance(result.error, ValueError):
                raise result.error
            counts.leave_behind(write.key, str(result.error))
        elif result.current is not None and _is_stale(result.current, write):
            stale.append(write._replace(expect=result.current.version))
        else:
            present += 1
    if stale:
        again = await store.write(stale, now)
        refused = sum(isinstance(result, Refused) for result in again)
        written += len(stale) - refused
        present += refused
    return written, present


def _is_stale(current: Record, wanted: Write) -> bool:
    """Whether a record is an outdated copy that no worker has claimed yet.

    Workers of 1.x continued after an interrupted migration had created it, or the lease that was
    copied with it has ended.
    """
    if current.token is not None and not current.token.endswith(f":{NOBODY}"):
        return False
    change = wanted.change
    assert isinstance(change, Put)
    try:
        ours, theirs = load_progress(current.progress), load_progress(change.progress)
    except (UnreadableRecord, NewerFormat):
        return False
    return (current.due_at, current.state, current.schedule, current.args, ours.planned) != (
        change.due_at,
        change.state,
        change.schedule,
        change.args,
        theirs.planned,
    )


# If the copy has its own name, a record in it has the progress of the migration.


async def is_marked_finished(store: Store) -> bool:
    """Whether a migration into the store was completed."""
    return bool(await _marked(store) == "finished")


async def _marked(store: Store) -> Any:
    [record] = await store.get([(CONTROL_GROUP, MARK)])
    try:
        return None if record is None else load_args(record.args).get("state")
    except ValueError as error:
        raise PyncetteException(
            f"It cannot be read how far the migration is: the row with the key '{MARK}' of the "
            f"group '{CONTROL_GROUP}' in the new store: {describe(error)}. If no worker has run on "
            "the new store yet, empty it, and migrate again; if the migration was complete, remove "
            "this row"
        ) from error


async def mark_begun(store: Store, place: str, now: int) -> None:
    """Records that a migration into the store has begun.

    Raises:
        MigrationError: An application uses it already.
    """
    if await _marked(store) is not None:
        return
    for group in (CONTROL_GROUP, STATIC_GROUP):
        page = await store.scan(group, EVERYTHING, None, 1)
        if page.records:
            raise MigrationError(
                f"{place} is in use already: it has a record {page.records[0].key!r} that no "
                "migration has put there. Choose an empty one."
            )
    await store.write([Write(CONTROL_GROUP, MARK, _mark("copying"), ABSENT)], now)


async def mark_finished(store: Store, now: int) -> None:
    """Records that the migration into the store was completed."""
    [record] = await store.get([(CONTROL_GROUP, MARK)])
    version = ABSENT if record is None else record.version
    await store.write([Write(CONTROL_GROUP, MARK, _mark("finished"), version)], now)


def _mark(state: str) -> Put:
    return Put(None, State.FINISHED, None, 0, "", dump_args({"state": state}), "")
