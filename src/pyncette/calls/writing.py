"""What all calls that write share: the condition of a write, and waiting for a locked record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from pyncette.clock import Clock, realtime
from pyncette.errors import StoreUnavailableError, printable
from pyncette.store import Refused, Write, expectation_holds
from pyncette.store.deadline import DeadlineStore
from pyncette.store.record import ABSENT, Change, Record

PAUSE_INITIAL_S: Final = 0.02
PAUSE_MAX_S: Final = 0.5
"""Delay between retries of a write to a record that an open transaction holds."""

BULK_PATIENCE_S: Final = 30.0
"""How long a bulk call retries what the store does not answer, counted from its last answer."""

Decide = Callable[[Record | None, int], Change | None]
"""Decides what to write, from the current record and the current instant; None: nothing."""


class Calling(Protocol):
    """What makes calls to a store."""

    @property
    def store(self) -> DeadlineStore:
        """The store."""
        ...

    @property
    def clock(self) -> Clock:
        """The app's clock."""
        ...


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
