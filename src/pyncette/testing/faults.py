"""A store that fails on demand, around a real one.

For tests of what a program, or Pyncette itself, does when a call to its store fails, is answered
too late, or is made while its answer is lost. It knows only the storage contract::

    faults = Faults()
    app = Pyncette(faulty(sqlite_repository, faults))
    ...
    faults.next("claim", LoseAnswer())     # the next claim happens, and raises
    with faults.down():                    # every call fails
        ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from random import Random
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from pyncette.clock import Clock
from pyncette.errors import StoreUnavailableError
from pyncette.store import (
    Claimed,
    Filter,
    Identity,
    Page,
    RepositoryFactory,
    Result,
    Source,
    Store,
    WakeCallback,
    Watch,
    Write,
)
from pyncette.store.record import Record

T = TypeVar("T")

CALLS: Final = ("claim", "write", "get", "scan", "now", "watch")
"""The names of the calls of a store."""


class Call(NamedTuple):
    """A call that was made.

    Attributes:
        name: One of ``CALLS``.
        arguments: In the order of the contract.
        fault: What was done to it, if anything.
    """

    name: str
    arguments: tuple[Any, ...]
    fault: Fault | None


class Fault(Protocol):
    """Something that happens to a call."""

    async def strike(self, call: Callable[[], Awaitable[T]]) -> T:
        """Makes the call, or does not, and returns its answer, or raises."""
        ...


class Fail:
    """The call is not made, and raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    async def strike(self, call: Callable[[], Awaitable[T]]) -> T:
        raise self._error or StoreUnavailableError("injected: the call did not arrive")


class LoseAnswer:
    """The call is made, and raises all the same."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    async def strike(self, call: Callable[[], Awaitable[T]]) -> T:
        await call()
        raise self._error or StoreUnavailableError("injected: the answer was lost")


class Delay:
    """The call is made, or its answer arrives, after a while on a clock.

    Where the clock is held during calls (``pyncette.clock.Clock.hold``), as a program does
    with its own, it never gets there: use a ``Gate``.
    """

    def __init__(self, clock: Clock, seconds: float, *, answer: bool = False) -> None:
        """Creates a delay of the call, or of its ``answer``."""
        self._clock = clock
        self._seconds = seconds
        self._answer = answer

    async def strike(self, call: Callable[[], Awaitable[T]]) -> T:
        if not self._answer:
            await self._clock.sleep(self._seconds)
            return await call()
        result = await call()
        await self._clock.sleep(self._seconds)
        return result


class Gate:
    """The call, or its answer, waits until the test lets it through.

    One gate serves any number of calls; it lies open once it was released.
    """

    def __init__(self, *, answer: bool = False) -> None:
        """Creates a closed gate before the call, or before its ``answer``."""
        self._answer = answer
        self._reached = asyncio.Event()
        self._released = asyncio.Event()

    async def reached(self) -> None:
        """Returns when a call stands at the gate."""
        await self._reached.wait()

    def release(self) -> None:
        """Lets all through, from now on."""
        self._released.set()

    async def strike(self, call: Callable[[], Awaitable[T]]) -> T:
        if not self._answer:
            await self._pass()
            return await call()
        result = await call()
        await self._pass()
        return result

    async def _pass(self) -> None:
        self._reached.set()
        await self._released.wait()


class _Planned(NamedTuple):
    """A fault that waits for its call."""

    name: str
    fault: Fault
    matches: Callable[..., bool] | None


class Faults:
    """Which calls are struck, and a record of all that were made.

    What was planned by ``next`` comes first, then what ``down`` says, then chance.
    """

    def __init__(
        self,
        seed: int | None = None,
        probability: float = 0.0,
        kinds: Sequence[Fault] | None = None,
        calls_max: int = 100_000,
    ) -> None:
        """Creates a plan.

        Args:
            seed: The same one strikes the same calls, as long as these come in the same order.
            probability: With which any call is struck, from 0 to 1.
            kinds: By one of these, at random. Default: a call or an answer that is lost.
            calls_max: So many calls are remembered, the latest ones.

        Raises:
            ValueError: The probability is not one.
        """
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must lie between 0 and 1, not {probability}")
        self.calls: list[Call] = []
        self._calls_max = calls_max
        self._random = Random(seed)
        self._probability = probability
        self._kinds: Sequence[Fault] = [Fail(), LoseAnswer()] if kinds is None else kinds
        self._planned: list[_Planned] = []
        self._down: list[tuple[Collection[str], Fault]] = []

    def next(self, name: str, *faults: Fault, matches: Callable[..., bool] | None = None) -> None:
        """Strikes the next calls of this name, one with each fault, in this order.

        Args:
            name: One of ``CALLS``.
            faults: What is done to them.
            matches: Called with the arguments of a call: only those that it approves are struck.

        Raises:
            ValueError: There is no such call.
        """
        if name not in CALLS:
            raise ValueError(f"a store has no call '{name}', it has {', '.join(CALLS)}")
        self._planned += [_Planned(name, fault, matches) for fault in faults]

    @contextmanager
    def down(self, *names: str, fault: Fault | None = None) -> Iterator[None]:
        """Strikes every call of these names (of any, where none is given) within the block."""
        entry: tuple[Collection[str], Fault] = (names or CALLS, fault or Fail())
        self._down.append(entry)
        try:
            yield
        finally:
            self._down.remove(entry)

    def made(self, name: str) -> list[Call]:
        """The calls of this name, in the order in which they came."""
        return [call for call in self.calls if call.name == name]

    async def strike(
        self, name: str, arguments: tuple[Any, ...], call: Callable[[], Awaitable[T]]
    ) -> T:
        """Makes a call as planned."""
        fault = self._fault_for(name, arguments)
        self.calls.append(Call(name, arguments, fault))
        if len(self.calls) > self._calls_max:
            del self.calls[0]
        return await (call() if fault is None else fault.strike(call))

    def _fault_for(self, name: str, arguments: tuple[Any, ...]) -> Fault | None:
        for number, planned in enumerate(self._planned):
            if planned.name == name and (planned.matches is None or planned.matches(*arguments)):
                del self._planned[number]
                return planned.fault
        for names, fault in self._down:
            if name in names:
                return fault
        if self._probability and self._random.random() < self._probability:
            return self._random.choice(self._kinds)
        return None


class FaultyStore:
    """Passes the calls of ``pyncette.store.Store`` on, as far as the faults let it."""

    def __init__(self, store: Store, faults: Faults) -> None:
        """Wraps a store."""
        self._store = store
        self._faults = faults

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
        return await self._faults.strike(
            "claim",
            (sources, limit, now, token, repeated),
            lambda: self._store.claim(
                sources,
                limit,
                now,
                token,
                repeated,
                bounded=bounded,
                unfinished_max=unfinished_max,
            ),
        )

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        return await self._faults.strike(
            "write", (batch, now, wake), lambda: self._store.write(batch, now, wake)
        )

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        return await self._faults.strike("get", (identities,), lambda: self._store.get(identities))

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        return await self._faults.strike(
            "scan",
            (group, where, cursor, limit),
            lambda: self._store.scan(group, where, cursor, limit),
        )

    async def now(self) -> int | None:
        return await self._faults.strike("now", (), self._store.now)

    async def watch(self, groups: Collection[str], on_wake: WakeCallback) -> Watch | None:
        return await self._faults.strike(
            "watch", (groups, on_wake), lambda: self._store.watch(groups, on_wake)
        )


def faulty(factory: RepositoryFactory, faults: Faults) -> RepositoryFactory:
    """A factory that opens the stores of another one, with these faults."""

    @asynccontextmanager
    async def open_faulty(**configuration: Any) -> AsyncIterator[FaultyStore]:
        async with factory(**configuration) as store:
            yield FaultyStore(store, faults)

    return open_faulty


__all__ = [
    "CALLS",
    "Call",
    "Delay",
    "Fail",
    "Fault",
    "Faults",
    "FaultyStore",
    "Gate",
    "LoseAnswer",
    "faulty",
]
