"""Conditional writes on an SQL server: an answer for each write of a batch.

A batch is attempted. The records of writes that were not made are then read: they tell why, or
the write is attempted again. This module knows neither a dialect nor a connection: the caller
passes the functions that write and read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, NamedTuple

from pyncette.clock import realtime
from pyncette.errors import StoreError, StoreUnavailableError
from pyncette.store import (
    Applied,
    Failed,
    Identity,
    Refused,
    Result,
    Unknown,
    Write,
    expectation_holds,
)
from pyncette.store.record import ABSENT, ANY, Delete, Patch, Put, Record
from pyncette.store.sql.conflicts import Backoff

HELD_PATIENCE_S: Final = 0.25
"""How long a write waits for a record that another transaction holds before it is refused."""

HELD_AGAIN_PATIENCE_S: Final = 0.02
"""The same for a record that was held that long before, because the rest of its batch waits."""

HELD_UNANSWERED_S: Final = 1.0
"""The same for a write that cannot be ``Refused`` with the current record. It then fails."""

HELD_KNOWN_MAX: Final = 1_000

ROWS_MAX: Final = 1_000
"""Maximum rows of one statement."""

CHARACTERS_MAX: Final = 1_000_000
"""Maximum characters of the texts of one statement, unless it is a single row."""


class Look(NamedTuple):
    """The record whose write was not made.

    Attributes:
        current: The record as it is now; None if there is none.
        free: Whether certainly no other transaction holds the record.
    """

    current: Record | None
    free: bool = False


class HeldRecords:
    """Decides the answer to a write that was not made, if other transactions may hold the record.

    One open transaction must not delay the rest of a batch. So a conditional write of a record
    that is held for long is refused with the record as it is now, and the writer retries it with
    its next batch. An unconditional write, or a creation, fails.
    """

    def __init__(self) -> None:
        # The records that were held for long at the last attempt to write them.
        self._known: set[Identity] = set()

    def answer(self, write: Write, current: Record | None, waited_s: float) -> Result | None:
        """Returns the answer; None if the write is to be attempted again.

        Args:
            write: The write that was not made.
            current: The record afterwards.
            waited_s: Seconds since the first attempt.
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
                    f"The record {key!r} of {group!r} is locked by an open transaction"
                )
            )
        if waited_s <= (HELD_AGAIN_PATIENCE_S if identity in self._known else HELD_PATIENCE_S):
            return None
        if len(self._known) >= HELD_KNOWN_MAX:
            self._known.clear()
        self._known.add(identity)
        return Refused(current)


class ConditionalWrite:
    """A batch that is being written, with the answers that are known so far.

    Attributes:
        batch: The writes. A place is the number of a write in it.
        expected: The expected version of each place. If any version is accepted, it is ``ANY``
            until the record was read.
        results: The answer of each place; None while it is not known.
        untouched: Whether certainly nothing was changed so far.
    """

    def __init__(self, batch: Sequence[Write]) -> None:
        self.batch = batch
        self.expected = [write.expect for write in batch]
        self.results: list[Result | None] = [None] * len(batch)
        self.untouched = True

    async def run(
        self,
        attempt: Callable[[Sequence[int]], Awaitable[None]],
        look: Callable[[Sequence[Identity]], Awaitable[Sequence[Look]]],
        held: HeldRecords,
    ) -> None:
        """Continues until every write has an answer.

        Args:
            attempt: Makes the writes of these places, as far as it can now; see ``apply``.
            look: Reads the records of these identities.
            held: The records that were held before.
        """
        batch, results = self.batch, self.results
        started = realtime.monotonic()
        backoff = Backoff(0.0)
        ready: Sequence[int] = range(len(batch))
        while True:
            await attempt(ready)
            pending = [at for at, result in enumerate(results) if result is None]
            if not pending:
                return
            looks = await look([batch[at][:2] for at in pending])
            waited_s = realtime.monotonic() - started
            ready = []
            for at, (current, free) in zip(pending, looks, strict=True):
                results[at] = held.answer(batch[at], current, 0.0 if free else waited_s)
                if results[at] is None:
                    ready.append(at)
                    if batch[at].expect == ANY:
                        self.expected[at] = ABSENT if current is None else current.version
            if not ready:
                return
            await backoff.pause()

    async def apply(
        self,
        places: Sequence[int],
        make: Callable[[Sequence[int]], Awaitable[None]],
        refusal: Callable[[Exception], ValueError | None],
    ) -> None:
        """Makes changes part by part, each in one statement.

        If a value is refused, nothing of its part was done. The part is then halved, until the
        refused value is alone: that write has failed.

        Args:
            places: The writes.
            make: Makes the writes of these places in one statement, and stores which were applied.
            refusal: Returns the error about a value; None if the error has another cause.
        """
        parts = list(self._parts(places))[::-1]
        while parts:
            part = parts.pop()
            try:
                await make(part)
            except Exception as error:
                refused = refusal(error)
                if refused is None:
                    raise
                if len(part) > 1:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
                else:
                    refused.__cause__ = error
                    self.results[part[0]] = Failed(refused)
            self.untouched = False

    def answers(self, error: StoreError | None = None) -> list[Result]:
        """The answers. After an error, a write without an answer is unknown.

        Raises:
            StoreError: No answer at all is known.
        """
        if error is not None and not any(self.results):
            raise error
        if None not in self.results:
            return self.results  # type: ignore[return-value]
        return [
            Unknown(error or StoreUnavailableError("There was no answer"))
            if result is None
            else result
            for result in self.results
        ]

    def _parts(self, places: Sequence[int]) -> Iterator[Sequence[int]]:
        """Divides the places, in their order, into parts that fit into one statement."""
        first, size = 0, 0
        for number, at in enumerate(places):
            length = _characters_of(self.batch[at])
            if number > first and (number - first >= ROWS_MAX or size + length > CHARACTERS_MAX):
                yield places[first:number]
                first, size = number, 0
            size += length
        if first < len(places):
            yield places[first:]


def _characters_of(write: Write) -> int:
    change = write.change
    if isinstance(change, Patch):
        return len(change.progress or "")
    if isinstance(change, Delete):
        return 0
    return len(change.schedule) + len(change.args) + len(change.progress)
