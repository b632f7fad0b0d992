"""Helpers of the conformance suite: a place to open, builders, leak checks.

Knows the types of the storage contract and pytest, but no particular store.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, ClassVar, Final, NamedTuple

import pytest

from pyncette.clock import realtime
from pyncette.store import (
    EVERYTHING,
    Applied,
    Claimed,
    Filter,
    Group,
    Identity,
    Key,
    Refused,
    RepositoryFactory,
    Source,
    Store,
    Write,
)
from pyncette.store.record import ABSENT, Put, Record, State

SECOND: Final = 1_000_000
LEASE: Final = 60 * SECOND
NOW: Final = 1_764_000_000_123_457
"""2025-11-24 16:00:00.123457 UTC: an instant whose digits all matter."""

ENDLESS: Final = 10_000
"""Maximum iterations of any loop in the suite."""

DEADLINE_S: Final = 60.0
"""Real time after which a test is assumed to wait for ever."""

# A cancelled task ends in a later iteration of the event loop, and may have to clean up.
_PASSES_UNTIL_TASKS_HAVE_ENDED: Final = 20


class Place(NamedTuple):
    """The place where a store under test keeps its records: empty when each test begins.

    Attributes:
        factory: Opens the store. For tests with several processes it must be importable by name: a
            function at the top of a module.
        configuration: Its options. The same options open the same records.
    """

    factory: RepositoryFactory
    configuration: Mapping[str, Any] = {}

    def open(self, **more: Any) -> AbstractAsyncContextManager[Store]:
        """Opens the store, with further options."""
        return self.factory(**self.configuration, **more)


class Suite:
    """The declared abilities of a store, and the helpers that the tests share.

    Attributes:
        contexts: Two openings of one place see the same records.
        processes: Two processes see the same records.
        wakes: ``watch`` notifies of writes by other openings of the place.
        bounds_claims: A store that has a clock (``now`` returns an instant) compares with it in
            the statement of the claim, if ``bounded`` is set. False: it has a clock, but cannot
            compare with it there; ``bounded`` is then ignored. For a store without a clock this
            has no meaning.
        edits: ``edit`` is overridden, and the tests of edited rows run.
        index_lags: A claim may miss a record that was just written. Also override
            ``index_catches_up``.
        many: How many records make a large batch: more than the store reads or writes with one
            statement or request. Smaller numbers make the suite faster on a slow server.
    """

    contexts: ClassVar[bool] = True
    processes: ClassVar[bool] = False
    wakes: ClassVar[bool] = False
    bounds_claims: ClassVar[bool] = True
    edits: ClassVar[bool] = False
    index_lags: ClassVar[bool] = False
    many: ClassVar[int] = 1_000

    async def index_catches_up(self, store: Store) -> None:
        """Waits until the index shows all changes; does nothing if the index does not lag."""

    async def edit(self, place: Place, identity: Identity, column: str, value: Any) -> bool:
        """Sets a column of a row without the store, as a user with a database client does.

        Override it, and set ``edits``, to test that an edited row affects only itself.

        Args:
            place: Where the store under test keeps its records; a store is open there.
            identity: The group and key of the record. It exists.
            column: A field of ``pyncette.store.record.Record``, never the group.
            value: None (NULL, or no such attribute), a number, a bool, a text or bytes, whatever
                the type of the column. Write it as the database's own client would.

        Returns:
            False if the database refuses the value; the row must then be unchanged.
        """
        raise NotImplementedError

    async def add(
        self, store: Store, group: str, *keys: str, now: int = NOW, **columns: Any
    ) -> list[int]:
        """Creates records and returns their versions."""
        results = await store.write([new(group, key, **columns) for key in keys], now)
        await self.index_catches_up(store)
        return [version_of(result) for result in results]

    async def claim(
        self,
        store: Store,
        sources: Sequence[Source],
        limit: int = 100,
        now: int = NOW,
        token: str = "worker-1",
        repeated: bool = False,
        *,
        bounded: bool = False,
        unfinished_max: int | None = None,
    ) -> Claimed:
        """A claim; the index catches up before and after it."""
        await self.index_catches_up(store)
        records, next_due = await store.claim(
            sources,
            limit,
            now,
            token,
            repeated,
            bounded=bounded,
            unfinished_max=unfinished_max,
        )
        if self.index_lags:
            await self.index_catches_up(store)
            _, next_due = await store.claim(sources, 0, now, token)
        return Claimed(records, next_due)

    async def drain(
        self, store: Store, sources: Sequence[Source], limit: int, token: str, now: int = NOW
    ) -> list[Record]:
        """Claims, each time with a new token, until nothing in the sources is due."""
        drained: list[Record] = []
        for turn in range(ENDLESS):
            records, next_due = await store.claim(sources, limit, now, f"{token}-{turn}")
            drained += records
            if not records and all(due_at is None or due_at > now for due_at in next_due):
                return drained
            await self.index_catches_up(store)
        raise AssertionError(f"due records are never claimed: {next_due}")


OnStore = Callable[[Any, Place], None]


def on_store(
    test: Callable[[Any, Store], Coroutine[Any, Any, None]],
) -> OnStore:
    """Makes a synchronous test of a coroutine that takes the opened store."""

    async def opened(self: Suite, place: Place) -> None:
        async with place.open() as store:
            await test(self, store)

    return on_place(_named(opened, test))


def on_two_stores(
    test: Callable[[Any, Store, Store], Coroutine[Any, Any, None]],
) -> OnStore:
    """As ``on_store``, for two openings of one place in one process."""

    async def opened(self: Suite, place: Place) -> None:
        if not self.contexts:
            pytest.skip("each opening of this store is a store of its own")
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(place.open())
            second = await stack.enter_async_context(place.open())
            await test(self, first, second)

    return on_place(_named(opened, test))


def on_place(
    test: Callable[[Any, Place], Coroutine[Any, Any, None]],
) -> OnStore:
    """As ``on_store``, for a test that opens the place itself.

    Raises:
        AssertionError: also if the test leaves a task or a thread behind.
    """

    async def without_leaks(self: Suite, place: Place) -> None:
        async with realtime.timeout(DEADLINE_S):
            await test(self, place)
        me = asyncio.current_task()
        for _ in range(_PASSES_UNTIL_TASKS_HAVE_ENDED):
            await asyncio.sleep(0)
        left = [task for task in asyncio.all_tasks() if task is not me]
        assert not left, f"the closed store left tasks behind: {left}"

    def synchronous(self: Suite, place: Place) -> None:
        before = set(threading.enumerate())
        asyncio.run(without_leaks(self, place))
        left = set(threading.enumerate()) - before
        assert not left, f"the closed store left threads behind: {left}"

    named: OnStore = _named(synchronous, test)
    return named


def _named(function: Any, like: Any) -> Any:
    # Not functools.wraps: pytest would follow __wrapped__ to the coroutine's own parameters.
    function.__name__ = like.__name__
    function.__qualname__ = like.__qualname__
    function.__doc__ = like.__doc__
    function.__module__ = like.__module__
    return function


def put(
    due_at: int | None = NOW,
    state: str = State.SCHEDULED,
    token: str | None = None,
    unfinished_attempts: int = 0,
    schedule: str = "1 plan",
    args: str = "1 {}",
    progress: str = "1 - born",
) -> Put:
    """A whole record, with texts that a store must not read."""
    return Put(due_at, state, token, unfinished_attempts, schedule, args, progress)


def new(group: str, key: str, **columns: Any) -> Write:
    """The creation of a record."""
    return Write(group, key, put(**columns), ABSENT)


def a_group(
    name: str = "reports", *, lease: int = LEASE, share: int = 1_000, before: int = NOW
) -> Source:
    """A source whose share allows all records."""
    return Group(name, lease, share, before)


def a_key(key: str, group: str = "reports", lease: int = LEASE) -> Source:
    """A source of one record."""
    return Key(group, key, lease)


def has_type_of(column: str, value: object) -> bool:
    """Whether a value has the type of a field of ``Record``, for stores of Python objects."""
    if value is None:
        return column in ("due_at", "token")
    return type(value) is (int if column in ("due_at", "version", "unfinished_attempts") else str)


def version_of(result: object) -> int:
    """The version of an applied write."""
    assert isinstance(result, Applied), f"the write was not applied: {result}"
    return result.version


def refusal_of(result: object) -> Record | None:
    """The current record in the answer to a refused write."""
    assert isinstance(result, Refused), f"the write was not refused: {result}"
    return result.current


def keys_of(records: Iterable[Record]) -> list[str]:
    """The keys in order."""
    return sorted(record.key for record in records)


def without_repetition(records: Iterable[Record]) -> set[str]:
    """The keys; none may occur twice."""
    counted = Counter(record.key for record in records)
    repeated = [key for key, times in counted.items() if times > 1]
    assert not repeated, f"more than once: {repeated[:10]}"
    return set(counted)


async def record_of(store: Store, group: str, key: str) -> Record:
    """A record that must exist."""
    [record] = await store.get([(group, key)])
    assert record is not None, f"{group!r}, {key!r} is gone"
    return record


async def pages_of(
    store: Store, group: str, where: Filter = EVERYTHING, limit: int = 1_000
) -> list[Record]:
    """A scan from the beginning to the end."""
    found: list[Record] = []
    cursor: str | None = None
    for _ in range(ENDLESS):
        page = await store.scan(group, where, cursor, limit)
        assert len(page.records) <= limit, "a page is longer than asked"
        found += page.records
        cursor = page.cursor
        if cursor is None:
            return found
        assert isinstance(cursor, str)
    raise AssertionError("the scan does not end")
