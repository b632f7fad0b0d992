"""The storage contract: the calls that the scheduler makes to a store.

A store keeps records, and changes a record if its version matches. It contains no rule about runs:
these are in ``pyncette.engine.rules``. To write a store, implement ``Store`` (seven calls), or the
four primitives of ``pyncette.store.cas.CasBackend``, and test it with
``pyncette.testing.conformance``.

All instants and leases are integers: microseconds (since the epoch, UTC). Each call gets ``now`` as
an argument; a store reads no clock to decide, except for ``bounded`` of a claim.
"""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Sequence,
)
from contextlib import AbstractAsyncContextManager
from types import MethodType
from typing import Any, Final, NamedTuple, Protocol

from pyncette.store.record import ABSENT, ANY, Change, Record, State

RepositoryFactory = Callable[..., AbstractAsyncContextManager["Store"]]
"""Opens a store. It is called with keywords only, and ignores those that it does not know."""

WakeCallback = Callable[[Collection[str] | None], None]
"""Called in the event loop with the groups in which a record may come due sooner than the last
claim has told. None means that it may be any group."""

Identity = tuple[str, str]
"""The group and the key of a record."""


class Group(NamedTuple):
    """A source of claims: the records of one group.

    Attributes:
        group: The name of the group.
        lease: How long a worker may take before another worker may run the task again, in
            microseconds.
        share: Maximum records of this group in this claim.
        before: Only records with ``due_at <= before`` are claimed; at most ``now``.
    """

    group: str
    lease: int
    share: int
    before: int


class Key(NamedTuple):
    """A source of claims: one record, due when ``due_at <= now``."""

    group: str
    key: str
    lease: int


Source = Group | Key


class Claimed(NamedTuple):
    """The answer to a claim.

    Attributes:
        records: The claimed records, as they are after the claim, in any order.
        next_due: For each source, in the order of the sources, the soonest ``due_at`` in it *after*
            the claim. It includes records that were just claimed, and records that another worker
            holds. It lies at or before ``now`` if due records were left (locked by another
            transaction, beyond the share or the limit). None if no record in the source has a
            ``due_at``. It may lag if the store's index lags.
    """

    records: list[Record]
    next_due: list[int | None]


class Write(NamedTuple):
    """One conditional change.

    Attributes:
        group, key: The record.
        change: The change.
        expect: The version that the record must have. ``ABSENT`` (0): there must be no record.
            ``ANY`` (-1): there is no condition. A ``Patch`` or a ``Delete`` with ``ANY`` of an
            absent record is applied and does nothing; neither is ever written with ``ABSENT``.
        token: If not None, the token of the record must be this one, too.
    """

    group: str
    key: str
    change: Change
    expect: int
    token: str | None = None


write_of: Final[Callable[[tuple[str, str, Change, int, str | None]], Write]] = MethodType(
    tuple.__new__, Write
)
"""Makes a write of a tuple of all fields, at a third of the cost of ``Write(*fields)``."""


class Applied(NamedTuple):
    """The write was made; the record now has this version (0 if it was removed)."""

    version: int


class Refused(NamedTuple):
    """The write was not made, because its condition did not hold.

    Attributes:
        current: The record as it is now; None if there is none.
    """

    current: Record | None


class Failed(NamedTuple):
    """The write was certainly not made. Other writes of the batch may have been made.

    ``StoreUnavailableError``: an open transaction has held the record for too long. This is the
    answer to a creation, or to a write that expects ``ANY``. Other writes are ``Refused`` with the
    record as it is, and are retried from it. ``StoreMisconfiguredError``: the place
    of the record in the store cannot be used. ``ValueError``: this store cannot keep the value, for
    example because it is too large.
    """

    error: Exception


class Unknown(NamedTuple):
    """The write may have been made or not. Other writes of the batch have their own answers.

    For example, one node of a cluster did not answer. A conditional write can be retried: the
    version and the token make that safe. For any other write, the caller gets the error.
    """

    error: Exception


Result = Applied | Refused | Failed | Unknown
"""The answer to one write. Every write of a batch has an answer of its own."""


class Filter(NamedTuple):
    """Which records of a group a scan returns. A record must match all conditions.

    Attributes:
        states: Only records in one of these states; None: in any state.
        prefix: Only keys that begin with this, compared bytewise in UTF-8.
        due_before: Only records with ``due_at < due_before``; None: no condition, so also records
            without a ``due_at``.
    """

    states: frozenset[State] | None = None
    prefix: str = ""
    due_before: int | None = None

    def admits(self, record: Record) -> bool:
        """Returns whether a record of the group matches."""
        states, prefix, due_before = self
        return (
            (states is None or record.state in states)
            and record.key.startswith(prefix)
            and (due_before is None or (record.due_at is not None and record.due_at < due_before))
        )


EVERYTHING = Filter()


class Page(NamedTuple):
    """Part of a scan.

    Attributes:
        records: At most ``limit`` records; perhaps none, although more pages follow.
        cursor: Where the next page begins; None at the end.
    """

    records: list[Record]
    cursor: str | None


class Counted(NamedTuple):
    """How many records match.

    Attributes:
        matches: The number of records that match, at most the limit.
        complete: Whether these are all. If not, there may be more: the limit was reached, or the
            store has looked at as many records as one call may.
    """

    matches: int
    complete: bool


class Watch(Protocol):
    """A registration made by ``Store.watch``."""

    def close(self) -> None:
        """Ends the registration. No callback is made afterwards. May be called twice."""


class Scans(Protocol):
    """What can be read page by page."""

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        """See ``Store.scan``."""
        ...


class Store(Protocol):
    """The calls of every store. All of them may be made concurrently.

    * Each call handles its whole batch in as few round trips as possible.
    * Versions: every write that is applied, including a claim, sets the version to
      ``max(old + 1, now)``; see ``next_version``.
    * No call waits long for a record that another transaction has locked. A claim skips it. A write
      of it is ``Refused`` or ``Failed``, and the other writes of the batch are made.
    * A call may be cancelled. Its change has then either been made or not, and the store stays
      usable (if necessary it closes the connection).
    * Errors are ``StoreUnavailableError`` if a retry may help, else ``StoreMisconfiguredError``.
      Drivers must not retry a call by themselves.
    * Keys, groups and texts are returned exactly as they were written; keys compare bytewise.

    A store may have more: ``history`` (see ``pyncette.store.history``), ``now_uncertainty`` (see
    ``now``), and ``async def shortcomings(self) -> list[str]``, which tells people what it could do
    its work better with, such as a missing index. ``pyncette doctor`` shows it.
    """

    async def claim(
        self,
        sources: Sequence[Source],
        limit: int,
        now: int,
        token: str,
        repeated: bool = False,
        *,
        bounded: bool = False,
        unfinished_max: int | None = None,
    ) -> Claimed:
        """Claims records that are due, at most ``limit`` of them, soonest first in a group.

        A record is due when ``due_at <= now`` (and ``<= before`` of its ``Group``). This is decided
        from the record itself, not from an index that may lag, and not from its ``state``: a record
        that is paused until an instant is due at that instant. Each claimed record gets
        ``state = running``, ``token``, ``unfinished_attempts + 1``, ``due_at = now + lease`` and a
        new version, if its version is still the one that was read.

        ``repeated``: a call with the same ``token`` and ``now`` was made before, and its answer was
        lost. The records of these sources that the token already holds from that call (``token``
        and ``due_at = now + lease`` both match) come first, before new records of any source. They
        count against share and limit.

        ``sources`` contains no source twice, and no key of a group that it contains. With a
        ``limit`` of 0 nothing is claimed, and ``next_due`` is returned.

        ``bounded``: a store that has its own clock (see ``now``) compares with it in the statement
        of the claim, and claims only records that are due by that clock too. So even if the clock
        was measured wrongly, no run starts early, and no lease is taken over before it ends. Leases
        still end at ``now + lease``. It is never set if the app's clock is not the machine's, as in
        tests.

        ``unfinished_max``: only records with ``unfinished_attempts <= unfinished_max`` are claimed.
        Other records stay as they are, even if the claim is repeated and the token holds them
        already. For records that the token already holds, the count before they were claimed is
        compared (one less than it is now), so that a repeated claim returns the same records.
        ``next_due`` includes the other records, so it may lie in the past only because of them.
        """
        ...

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        """Makes each change whose condition holds, and returns an answer for each write.

        Writes of one batch are independent of each other: some may be applied, others refused,
        failed (the store cannot keep the value) or unknown (the node that keeps the record did not
        answer). The call raises only if no answer is known at all. A batch contains no key twice.
        ``wake`` contains groups whose watchers in other workers should be notified. The batch may
        be empty, to notify of earlier writes. A store without notifications ignores ``wake``.
        """
        ...

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        """Returns the records of these identities, in this order; None for each absent record."""
        ...

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        """Returns a page of a group: the first (``cursor`` None), or the one after a cursor.

        All pages together contain every record that exists and matches during the whole scan
        exactly once, even if records are written meanwhile.
        """
        ...

    async def count(self, group: str, where: Filter, limit: int) -> Counted:
        """Counts the records of a group that match, up to ``limit``.

        No call takes long, however many records there are. What an index tells, or at most as many
        records as a page of a filtered scan looks at, is counted; for more, the answer is that it
        is not complete. Records that are written meanwhile may be counted or not.
        """
        ...

    async def now(self) -> int | None:
        """Returns the instant on the store's own clock; None if it uses the machine's clock.

        If the clock cannot be read exactly, this is the earliest instant that it may show. The
        store then has an attribute ``now_uncertainty``: by how many microseconds the clock may be
        ahead of that.
        """
        ...

    async def watch(self, groups: Collection[str], on_wake: WakeCallback) -> Watch | None:
        """Registers a callback for due records in these groups, if the store can notify.

        Returns at once; None if the store cannot notify (polling is the fallback, and enough). The
        store may notify too often, and may lose a notification.
        """
        ...


def next_version(version: int, now: int) -> int:
    """Returns the version after a write to a record of the given version (0: a new record)."""
    return version + 1 if version >= now else now


def expectation_holds(write: Write, current: Record | None) -> bool:
    """Returns whether the current record meets the condition of a write."""
    version = ABSENT if current is None else current.version
    if write.expect not in (version, ANY):
        return False
    return write.token is None or (current is not None and current.token == write.token)


async def scan_all(
    store: Scans, group: str, where: Filter = EVERYTHING, page_size: int = 1_000
) -> AsyncIterator[Record]:
    """Yields every record of a group that matches."""
    async for records in scan_pages(store, [group], where, page_size):
        for record in records:
            yield record


async def scan_pages(
    store: Scans, groups: Iterable[str], where: Filter, page_size: int
) -> AsyncGenerator[list[Record]]:
    """Yields the pages of groups, one after another; a page may be empty."""
    for group in groups:
        cursor: str | None = None
        while True:
            page = await store.scan(group, where, cursor, page_size)
            yield page.records
            cursor = page.cursor
            if cursor is None:
                break


async def count_by_scan(store: Scans, group: str, where: Filter, limit: int, pages: int) -> Counted:
    """Counts by reading the records: for stores that cannot count otherwise.

    Args:
        store: The store.
        group: As in ``Store.count``.
        where: As in ``Store.count``.
        limit: As in ``Store.count``.
        pages: Maximum pages to read.
    """
    count, cursor = 0, None
    for _ in range(pages):
        page = await store.scan(group, where, cursor, max(limit + 1 - count, 1_000))
        count += len(page.records)
        cursor = page.cursor
        if count > limit:
            return Counted(limit, False)
        if cursor is None:
            return Counted(count, True)
    return Counted(count, False)


def check_store(store: Any, factory: Any) -> None:
    """Refuses an object that is not a store, such as a repository written for release 1.x.

    Raises:
        TypeError: The object has no ``claim``.
    """
    if not callable(getattr(store, "claim", None)):
        raise TypeError(
            f"{factory!r} yielded {type(store).__name__}, which is not a store: it has no claim(). "
            "Stores written against pyncette.repository of 1.x need to be rewritten against "
            "pyncette.store.Store."
        )
