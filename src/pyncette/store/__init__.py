"""The storage contract: what a scheduler asks of a place that keeps records.

A store moves rows when a version matches. It holds no rule about runs: these are in
``pyncette.engine.rules``. Whoever writes a store implements ``Store`` (six calls), or the
four primitives of ``pyncette.store.cas.CasStore``, and proves it with
``pyncette.testing.conformance``.

All instants and leases are integers: microseconds (since the epoch, UTC). ``now`` is handed in
with each call; a store never looks at a clock to decide.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from pyncette.store.record import ABSENT, ANY, Change, Record, State

RepositoryFactory = Callable[..., AbstractAsyncContextManager["Store"]]
"""Opens a store: called with keywords only, ignores those that are not its own."""

WakeCallback = Callable[[Collection[str] | None], None]
"""Called in the event loop with the groups in which something may have come due sooner than was
told, or with None where that is not known and any may have."""

Identity = tuple[str, str]
"""The group and the key of a record."""


class Group(NamedTuple):
    """A source of claims: the records of one group.

    Attributes:
        group: Its name.
        lease: Microseconds for which a claim keeps others away.
        share: At most so many records of this group in this claim.
        before: Only records with ``due_at <= before``; at most ``now``.
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
        records: What was claimed, as it stands after the claim, in any order.
        next_due: For each source, in the order asked, the soonest ``due_at`` left in it *after*
            the claim, whoever holds it, the records just claimed included. It lies at or before
            ``now`` where due records were left (locked by others, beyond the share or the
            limit). None where nothing in the source will come due. An index that lags may let
            it lag.
    """

    records: list[Record]
    next_due: list[int | None]


class Write(NamedTuple):
    """One conditional change.

    Attributes:
        group, key: The record.
        change: What to write.
        expect: The version that must be there; ``ABSENT`` (0): there must be no record; ``ANY``
            (-1): whatever is there. A ``Patch`` or a
            ``Delete`` with ``ANY`` of an absent record is applied and does
            nothing; neither is ever written with ``ABSENT``.
        token: Where not None, the record must carry this token, too.
    """

    group: str
    key: str
    change: Change
    expect: int
    token: str | None = None


write_of: Final[Callable[[tuple[str, str, Change, int, str | None]], Write]] = partial(
    tuple.__new__, Write
)
"""A tuple of all fields as a write, at a third of the cost of ``Write(*fields)``."""


class Applied(NamedTuple):
    """The write was made; the record now has this version (0 where it is gone)."""

    version: int


class Refused(NamedTuple):
    """The write was not made: this is what is there (None: nothing)."""

    current: Record | None


class Failed(NamedTuple):
    """The write was not made, and cannot be for now, though those beside it were.

    ``StoreUnavailableError``: somebody's open transaction holds the record, and for too long. That
    is the answer to a creation, or to a write that expects ``ANY``; others are refused with the
    record as it stands, and their writers come back with it. ``ValueError``: this store cannot
    keep it, being too large, for example.
    """

    error: Exception


class Unknown(NamedTuple):
    """Nobody can tell whether the write was made, though those beside it have their answers.

    For example, one node of a cluster did not answer. Its writer repeats a conditional write,
    which is safe by version and token, and tells the caller of any other.
    """

    error: Exception


Result = Applied | Refused | Failed | Unknown
"""The answer to one write. Every write of a batch has an answer of its own."""


class Filter(NamedTuple):
    """Which records of a group a scan returns; all conditions hold together.

    Attributes:
        states: Only records in one of these states; None: in any.
        prefix: Only keys that begin with this, compared bytewise in UTF-8.
        due_before: Only records with ``due_at < due_before``; None: also those without one.
    """

    states: frozenset[State] | None = None
    prefix: str = ""
    due_before: int | None = None


EVERYTHING = Filter()


class Page(NamedTuple):
    """Part of a scan.

    Attributes:
        records: At most ``limit`` of them; perhaps none, though more pages follow.
        cursor: Where to go on; None at the end.
    """

    records: list[Record]
    cursor: str | None


class Watch(Protocol):
    """A registration made by ``Store.watch``."""

    def close(self) -> None:
        """Ends it. No callback is made afterwards. May be called twice."""


class Store(Protocol):
    """What every store can do. All calls are safe to make concurrently.

    * Each call handles its whole batch in as few trips as the store can make it.
    * Versions: every write that is applied, a claim included, moves the version to
      ``max(old + 1, now)``; see ``next_version``.
    * No call waits long for a record that somebody else holds: a claim skips it, and a write of
      it is ``Refused`` or ``Failed`` while the others of its batch are made.
    * A call that is cancelled leaves the store usable (its connection is dropped if need be), and
      what it asked for either happened or did not.
    * Errors are ``StoreUnavailableError`` where trying again may help, and
      ``StoreMisconfiguredError`` where it does not. Drivers must not repeat
      a call by themselves.
    * Keys, groups and texts come back exactly as they were written; keys compare bytewise.
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
        """Takes the records that are due, at most ``limit`` of them, soonest first in a group.

        A record is due when ``due_at <= now`` (and ``<= before`` of its ``Group``), read
        from the record itself, not from an index that may lag. Each one claimed gets
        ``state = running``, ``token``, ``starts + 1``, ``due_at = now + lease`` and a new
        version, if its version is still the one that was seen.

        ``repeated`` says that a call with the same ``token`` and ``now`` was made before and its
        answer was lost: the records of these sources that the token already holds from that call
        (``token`` and ``due_at = now + lease`` both match) come first, those of all sources
        before anything new, counted against share and limit.

        ``sources`` names no source twice, and no key of a group that it names. With a ``limit``
        of 0 nothing is claimed and ``next_due`` is told.

        ``bounded``: a store that has a clock of its own (see ``now``) looks at it in the very
        statement that claims, and takes nothing that is not due by that clock either. So no wrong
        measurement of that clock starts a run early, or takes over a lease that is alive. Leases
        still end at ``now + lease``. Never set while the app's time is not the machine's (tests).

        ``unfinished_max``: only records with ``unfinished_attempts <= unfinished_max`` are taken;
        others stay as they are, also where the claim was repeated and they are held already. Of
        those that the token already holds, the count before they were taken decides (one less
        than it is now), so that the same claim, repeated, returns what it took.
        ``next_due`` counts them, so it may lie in the past because of them alone.
        """
        ...

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        """Makes each change whose expectation holds, and says for each what came of it.

        Writes of one batch are independent of each other: some may be applied, others refused,
        failed (this value cannot be kept) or unknown (where they live did not answer). The call
        raises only where nothing at all is known. No key stands twice in a batch. ``wake`` names
        groups whose other watchers should look now; the batch may be empty, where earlier writes
        are told of. A store without notifications ignores it.
        """
        ...

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        """The records of these identities, in this order; None for each that is not there."""
        ...

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        """A page of a group, from the beginning (``cursor`` None) or where another ended.

        Following the cursors from None to None returns every record that is there, and matches,
        throughout exactly once, whatever else is written meanwhile.
        """
        ...

    async def now(self) -> int | None:
        """The instant on the store's own clock; None where it is this machine's.

        Where the clock cannot be read exactly, the earliest instant that it may show. The store
        then has an attribute ``now_uncertainty``: by how many microseconds it may be ahead.
        """
        ...

    async def watch(self, groups: Collection[str], on_wake: WakeCallback) -> Watch | None:
        """Asks to be told of due records in these groups, where the store can tell.

        Returns at once; None where it cannot (polling is the fallback, and enough). Telling too
        often is allowed, and so is losing one.
        """
        ...


def next_version(version: int, now: int) -> int:
    """The version that a write gives to a record of the given version (0: to a new one)."""
    return version + 1 if version >= now else now


def expectation_holds(write: Write, current: Record | None) -> bool:
    """Whether the record that is there is the one that a write expects."""
    version = ABSENT if current is None else current.version
    if write.expect not in (version, ANY):
        return False
    return write.token is None or (current is not None and current.token == write.token)


async def scan_all(
    store: Store, group: str, where: Filter = EVERYTHING, page_size: int = 1_000
) -> AsyncIterator[Record]:
    """Every record of a group that matches, page by page."""
    cursor: str | None = None
    while True:
        page = await store.scan(group, where, cursor, page_size)
        for record in page.records:
            yield record
        if page.cursor is None:
            return
        cursor = page.cursor


def check_store(store: Any, factory: Any) -> None:
    """Refuses an object that is no store, such as a repository written for release 1.x.

    Raises:
        TypeError: It has no ``claim``.
    """
    if not callable(getattr(store, "claim", None)):
        raise TypeError(
            f"{factory!r} yielded {type(store).__name__}, which is not a store: it has no claim(). "
            "Stores written against pyncette.repository of 1.x need to be rewritten against "
            "pyncette.store.Store."
        )
