"""A store's calls in a transaction of the application.

They are made on a connection that the application holds, and become visible, or vanish, with what
else it does there. One record at a time: its change is one statement with a condition, so that a
refusal leaves the transaction as it was. Nothing waits for a record that another transaction holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from enum import Enum
from typing import Any, Protocol

from pyncette.connections import Dialect, Link
from pyncette.errors import StoreMisconfiguredError
from pyncette.store import Applied, Refused, Write, expectation_holds
from pyncette.store.record import ABSENT, ANY, Patch, Put, Record


class Joined(Protocol):
    """A store on a connection of the application.

    Attributes:
        seconds_max: How long a transaction of a run may last, since nobody else can write
            meanwhile; None: as long as it likes.
    """

    seconds_max: float | None

    async def begin(self) -> None:
        """Begins a transaction in which the outcome of a run will be written.

        Raises:
            NoTransactionError: One has begun already.
            StoreUnavailableError: The database cannot be written to now.
        """

    async def check(self, settles: bool = False) -> None:
        """Checks the connection; called before the other calls.

        Args:
            settles: Whether the outcome of a run will be written at the end of the transaction,
                perhaps after others have changed its record.

        Raises:
            NoTransactionError: No transaction is open, and none begins by itself.
            StoreMisconfiguredError: The records are not there.
            TypeError: It is connected to another kind of database than the store.
        """

    async def get(self, group: str, key: str) -> Record | None:
        """Reads a record, with the changes of this transaction."""

    async def write(self, write: Write, now: int) -> Applied | Refused:
        """Makes one conditional change.

        ``Refused`` with a record that is as expected means that another transaction holds it.

        Raises:
            Exception: What the driver raises.
        """
        ...

    async def notify(self, groups: Collection[str]) -> None:
        """Notifies other processes of these groups once this is committed, if the server can."""


class JoinedTable:
    """What the dialects have in common: how a write is refused."""

    seconds_max: float | None = None
    _link: Link

    async def begin(self) -> None:
        """See ``Joined.begin``."""
        await self._link.begin()

    async def get(self, group: str, key: str) -> Record | None:
        """See ``Joined.get``."""
        raise NotImplementedError

    async def get_latest(self, group: str, key: str) -> Record | None:
        """The same, but also what was committed since the transaction has begun."""
        return await self.get(group, key)

    async def make(self, write: Write, expect: int, now: int) -> int | None:
        """Makes a change if the record has a version; returns its new one, or None."""
        raise NotImplementedError

    async def write(self, write: Write, now: int) -> Applied | Refused:
        """See ``Joined.write``."""
        group, key, change, _, _ = write
        reads = (self.get, self.get_latest) if write.expect == ANY else (None,)
        for read in reads:
            expect = write.expect
            if read is not None:
                current = await read(group, key)
                if not expectation_holds(write, current):
                    return Refused(current)
                expect = ABSENT if current is None else current.version
            if expect != ABSENT or (isinstance(change, Put) and write.token is None):
                version = await self.make(write, expect, now)
                if version is not None:
                    return Applied(version)
        current = await self.get_latest(group, key)
        if current is None and not isinstance(change, Put) and expectation_holds(write, current):
            return Applied(ABSENT)
        return Refused(current)


def values_of(change: Put | Patch) -> list[Any]:
    """Returns the values of a change: plain ones, since a driver may write an enum by its name."""
    return [value.value if isinstance(value, Enum) else value for value in change]


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and those that it wraps: layers above a driver wrap its errors."""
    for _ in range(5):
        if error is None:
            return
        yield error
        error = getattr(error, "orig", None) or error.__cause__


def check_dialect(link: Link, dialect: Dialect, place: str) -> None:
    """Refuses a connection to another kind of database.

    Raises:
        TypeError: It is one.
    """
    if link.dialect is not dialect:
        raise TypeError(
            f"{link.name} is connected to {link.dialect}, but the store of this app is {place}: a "
            "transaction cannot span both"
        )


def missing_table(link: Link, table: str, place: str) -> StoreMisconfiguredError:
    """Returns the error about a database without the table."""
    return StoreMisconfiguredError(
        f"{link.name} finds no table '{table}', which the store of this app ({place}) uses. It "
        "must be connected to the same database, by a user who may read and write it"
    )
