"""Conditional writes on an SQL server: an answer for each write of a batch.

A batch is tried. What was not written is read, and the record says why, or it is tried again.
This module knows neither a dialect nor a connection: trying and reading are handed in.
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
"""The same for a record that was held for that long before: other writes wait in the same batch."""

HELD_UNANSWERED_S: Final = 1.0
"""The same for a write that cannot be refused with the record. It then fails."""

HELD_KNOWN_MAX: Final = 1_000

ROWS_MAX: Final = 1_000
"""Maximum rows of one statement."""

CHARACTERS_MAX: Final = 1_000_000
"""Maximum characters of the texts of one statement, unless it is a single row."""


class Look(NamedTuple):
    """What was found where a write was not made.

    Attributes:
        current: The record; None where there is none.
        free: No other transaction holds the record. False also where that is not known.
    """

    current: Record | None
    free: bool = False


class HeldRecords:
    """What to answer to a write that was not made, on a server where others hold records.

    One open transaction must not keep the rest of a batch waiting. So a conditional write of a
    record that is held for long is refused with the record as it stands: the writer tries again
    with its next batch. An unconditional write, or a creation, fails: the record is busy.
    """

    def __init__(self) -> None:
        # Records that were held for long when they were last to be written.
        self._known: set[Identity] = set()

    def answer(self, write: Write, current: Record | None, waited_s: float) -> Result | None:
        """The answer, or None: try again.

        Args:
            write: It was tried and not made.
            current: What was there afterwards.
            waited_s: How long it has been tried.
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
    """A batch under way, and what is known about each of its writes.

    Attributes:
        batch: The writes. A place is the number of one of them.
        expected: For each place the version to expect. Where any version will do, it is ``ANY``
            until the record was read.
        results: For each place the answer; None while it is not known.
        untouched: Nothing can have been changed so far.
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
        """Goes on until there is an answer for each write.

        Args:
            attempt: Makes those writes of these places that can be made now, see ``apply``.
            look: Reads the records of these identities.
            held: Which records were held before.
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

        Where a value is refused, nothing of its part was done. Its halves are made one by one,
        until the refused value is alone: that write has failed.

        Args:
            places: Which writes.
            make: Makes the writes of these places in one statement, and notes what was applied.
            refusal: What an error says about a value; None where it is about something else.
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
            StoreError: Nothing at all is known.
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
        """The places, in their order, in parts that fit into one statement."""
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
