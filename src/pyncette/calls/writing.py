"""What all calls that write share: the condition of a write, and waiting for a locked record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from pyncette.clock import Clock, realtime
from pyncette.engine.moves import in_transit
from pyncette.errors import StoreUnavailableError, printable
from pyncette.store import (
    Applied,
    Identity,
    Refused,
    Result,
    Write,
    expectation_holds,
)
from pyncette.store.record import ABSENT, Change, Patch, Record

if TYPE_CHECKING:
    from pyncette.calls.places import Places
    from pyncette.calls.telling import Telling

T = TypeVar("T")

PAUSE_INITIAL_S: Final = 0.02
PAUSE_MAX_S: Final = 0.5
"""Delay between retries of a write to a record that an open transaction holds."""

BULK_PATIENCE_S: Final = 30.0
"""How long a bulk call retries what the store does not answer, counted from its last answer."""

Decide = Callable[[Record | None, int], Change | None]
"""Decides what to write, from the current record and the current instant; None: nothing."""


class Reading(Protocol):
    """Where records are read."""

    deadline_s: float

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        """See ``pyncette.store.Store.get``."""
        ...


class Calling(Protocol):
    """What makes calls to a store."""

    @property
    def store(self) -> Reading:
        """The store."""
        ...

    @property
    def clock(self) -> Clock:
        """The app's clock."""
        ...


class Writer(Calling, Protocol):
    """Where one record is changed: in batches with other callers, or in a transaction of its own.

    Attributes:
        places: Finds and changes instances that may lie in several places.
        telling: Tells of what was changed.
    """

    places: Places
    telling: Telling

    async def now(self) -> int:
        """Returns the current instant, by which a call decides."""
        ...

    async def fresh(self) -> None:
        """Lets what is known of partitions be fresh enough to decide by."""

    async def settled(self, identities: Collection[Identity]) -> None:
        """Waits until writes of these records that are under way have been answered."""

    def confirmation(self, current: Record | None, group: str, key: str) -> Patch | None:
        """Returns what to write to a record that is to stay as it is; None: nothing."""
        ...

    async def submit(self, write: Write) -> Applied | Refused:
        """Makes one write."""
        ...

    async def write_all(self, writes: Sequence[Write], floor: int) -> list[Result]:
        """Makes writes of different records, whose versions are at least ``floor``."""
        ...

    def wrote(self, write: Write) -> None:
        """A write was applied: the worker of this context may have to claim it soon."""


async def change_record(requests: Writer, group: str, key: str, decide: Decide) -> Write | None:
    """Changes one record, from what it is now.

    Returns:
        The write that was applied; None if there was nothing to change.

    Raises:
        StoreUnavailableError: The store does not answer; or an open transaction holds the record.
    """
    await requests.now()
    await requests.settled(((group, key),))
    [current] = await requests.store.get([(group, key)])
    holding = Holding(requests, f"{key} of {group}")
    while True:
        if requests.places.several(group, key) or (current is not None and in_transit(current)):
            return await requests.places.change(group, key, decide)
        change = decide(current, requests.clock.microseconds())
        confirmed = change is None
        if change is None:
            change = requests.confirmation(current, group, key)
            if change is None:
                return None
        write = write_after(group, key, current, change)
        result = await requests.submit(write)
        if isinstance(result, Applied):
            requests.wrote(write)
            return None if confirmed else write
        await holding.wait(write, result)
        current = result.current
        await requests.fresh()


class Patience:
    """Makes calls again while the store is unavailable, for a limited time in all."""

    def __init__(
        self, seconds: float, pause_initial_s: float, pause_max_s: float, clock: Clock
    ) -> None:
        """Begins to count.

        Args:
            seconds: The time in all.
            pause_initial_s: The first pause; it doubles.
            pause_max_s: The longest pause.
            clock: A clock that a test moves stands still during a pause.
        """
        self._give_up_at = realtime.monotonic() + seconds
        self._pause_initial_s = pause_initial_s
        self._pause_max_s = pause_max_s
        self._clock = clock

    @property
    def left_s(self) -> float:
        """Seconds until it gives up."""
        return self._give_up_at - realtime.monotonic()

    async def insist(
        self,
        call: Callable[[], Awaitable[T]],
        failed: Callable[[StoreUnavailableError], object] = lambda error: None,
    ) -> T:
        """Makes a call until it is answered.

        Args:
            call: The call.
            failed: Told each error after which the call is made again. It may raise.

        Raises:
            StoreUnavailableError: The store was unavailable until the end.
        """
        pause = self._pause_initial_s
        while True:
            try:
                return await call()
            except StoreUnavailableError as error:
                left = self.left_s
                if left <= 0:
                    raise
                failed(error)
            with self._clock.hold():
                await realtime.sleep(min(pause, left))
            pause = min(2 * pause, self._pause_max_s)


class Holding:
    """Waits while an open transaction holds the record that a call writes."""

    def __init__(self, requests: Calling, what: object) -> None:
        """Begins to count.

        Args:
            requests: Where the call is made.
            what: What is written, for the error.
        """
        self._clock = requests.clock
        self._what = what
        self._give_up_at = realtime.monotonic() + requests.store.deadline_s
        self._pause = PAUSE_INITIAL_S

    async def wait(self, write: Write, refused: Refused) -> None:
        """Waits if a write was refused although its condition holds.

        Raises:
            StoreUnavailableError: The record has been held for too long.
        """
        if not expectation_holds(write, refused.current):
            return
        if realtime.monotonic() >= self._give_up_at:
            raise StoreUnavailableError(
                f"The record of {printable(self._what)} is locked by an open transaction"
            )
        with self._clock.hold():
            await realtime.sleep(self._pause)
        self._pause = min(2 * self._pause, PAUSE_MAX_S)


def write_after(group: str, key: str, current: Record | None, change: Change) -> Write:
    """Returns a change of a record as a write with the condition that it is still this one.

    If the clock stands still, a record that was removed and created again has the same version,
    but another token.
    """
    if current is None:
        return Write(group, key, change, ABSENT)
    return Write(group, key, change, current.version, current.token)
