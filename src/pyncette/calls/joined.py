"""Changes of records in a transaction of the application.

The rules are those of every call. What differs is where records are read and written: on the
connection that the application holds (``pyncette.store.sql.joined``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from pyncette.calls.places import Places
from pyncette.calls.requests import Requests
from pyncette.calls.telling import Telling
from pyncette.calls.writing import Holding
from pyncette.clock import Clock
from pyncette.connections import Link
from pyncette.engine.worker import Worker
from pyncette.store import Applied, Identity, Refused, Result, Write
from pyncette.store.record import ANY, Patch, Record
from pyncette.store.sql.joined import Joined


class _Reads:
    """Reads on the connection."""

    def __init__(self, joined: Joined, clock: Clock, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self._joined = joined
        self._clock = clock

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        with self._clock.hold():
            return [await self._joined.get(*identity) for identity in identities]


class JoinedRequests:
    """Writes in a transaction; see ``pyncette.calls.writing.Writer``."""

    def __init__(self, requests: Requests, worker: Worker, joined: Joined) -> None:
        """Prepares to write on a connection.

        Args:
            requests: The calls outside of the transaction.
            worker: The worker of this context.
            joined: The store on the connection.
        """
        self.clock: Final = requests.clock
        self.store: Final = _Reads(joined, requests.clock, requests.store.deadline_s)
        self.places: Places = Places(self, worker)
        self.telling: Telling = Telling(worker.reporter, in_transaction=True)
        self._requests = requests
        self._worker = worker
        self._joined = joined

    async def now(self) -> int:
        return await self._requests.now()

    async def fresh(self) -> None:
        await self._requests.fresh()

    async def settled(self, identities: Collection[Identity]) -> None:
        """Does nothing: this transaction and the writes of others come one after another.

        To wait for them could take long: they may wait for this transaction.
        """

    def confirmation(self, current: Record | None, group: str, key: str) -> Patch | None:
        """As outside: an earlier write that was not answered must not be made after this one."""
        return self._requests.confirmation(current, group, key)

    async def submit(self, write: Write) -> Applied | Refused:
        """Makes one write.

        Raises:
            StoreUnavailableError: Another transaction holds the record.
            Exception: What the driver raises.
        """
        holding = Holding(self, f"{write.key} of {write.group}")
        while True:
            now = self.clock.microseconds()
            with self.clock.hold():
                result = await self._joined.write(write, now)
            if isinstance(result, Applied):
                await self._notify(write, now)
                return result
            if write.expect != ANY:
                return result
            await holding.wait(write, result)

    async def _notify(self, write: Write, now: int) -> None:
        due_at = write.change.due_at
        if due_at is not None and due_at < now + self._worker.settings.poll_interval:
            with self.clock.hold():
                await self._joined.notify([write.group])

    async def write_all(self, writes: Sequence[Write], floor: int) -> list[Result]:
        now = max(self.clock.microseconds(), floor)
        with self.clock.hold():
            return [await self._joined.write(write, now) for write in writes]

    def wrote(self, write: Write) -> None:
        """The worker of this context looks when the record comes due, if it is committed then.

        Before the commit it would find nothing. Afterwards its server notifies it, or it polls.
        """
        due_at = write.change.due_at
        if due_at is not None and due_at > self.clock.microseconds():
            self._worker.wrote(write)


async def joined_requests(requests: Requests, worker: Worker, link: Link) -> JoinedRequests:
    """Returns the calls on a connection.

    Raises:
        TypeError: The store has no transactions, or the connection is to another kind of database.
        StoreMisconfiguredError: The records of the store are not there.
        NoTransactionError: The connection is not in a transaction.
        StoreUnavailableError: The database cannot be written to now.
    """
    joined = await requests.store.joined(link)
    with requests.clock.hold():
        await joined.check()
    return JoinedRequests(requests, worker, joined)
