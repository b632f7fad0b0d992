"""A store that fails on demand, around a real one.

For tests of what a program, or Pyncette itself, does when a call to its store fails, is answered
too late, is answered in part, or is made while its answer is lost. It knows only the storage
contract::

    faults = Faults()
    app = Pyncette(faulty(sqlite_repository, faults))
    ...
    faults.next("claim", LoseAnswer())     # the next claim happens, and raises
    faults.next("write", AnswerWrites(Unknown(error), lambda write: write.key == "a"))
    with faults.down():                    # every call fails
        ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from random import Random
from typing import Any, Final, NamedTuple, Protocol, TypeVar, runtime_checkable

from pyncette.clock import Clock
from pyncette.errors import StoreUnavailableError
from pyncette.store import (
    Claimed,
    Failed,
    Filter,
    Identity,
    Page,
    RepositoryFactory,
    Result,
    Source,
    Store,
    Unknown,
    WakeCallback,
    Watch,
    Write,
)
from pyncette.store.record import Record

T = TypeVar("T")

CALLS: Final = ("claim", "write", "get", "scan", "now", "watch")
"""The names of the calls of a store."""


class Call(NamedTuple):
    """A call that was asked for.

    Attributes:
        name: One of ``CALLS``.
        arguments: In the order of the contract.
        fault: What was done to it, if anything.
    """

    name: str
    arguments: tuple[Any, ...]
    fault: Fault | None


class Fault(Protocol):
    """Something that happens to a call. A ``WriteFault`` looks at the writes of a batch, too."""

    async def strike(self, call: Callable[[], Awaitable[T]]) -> T:
        """Makes the call, or does not, and returns its answer, or raises."""
        ...


@runtime_checkable
class WriteFault(Fault, Protocol):
    """A fault that tells the writes of a batch apart. Calls other than writes go to ``strike``."""

    async def strike_writes(
        self,
        batch: Sequence[Write],
        make: Callable[[Sequence[Write]], Awaitable[list[Result]]],
    ) -> list[Result]:
        """Makes all of a batch, or part of it, or nothing, and returns its answers, or raises."""
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

    One gate serves any number of calls; after it was released it stays open.
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


class AnswerWrites:
    """Some writes of a batch are answered with an error; the others are made as ever.

    So a store answers when one value cannot be kept (``Failed``), or when one node of a cluster
    does not answer (``Unknown``). Calls other than writes pass.
    """

    def __init__(
        self,
        answer: Failed | Unknown,
        chosen: Callable[[Write], bool] | None = None,
        *,
        made: bool = False,
    ) -> None:
        """Creates a fault.

        Args:
            answer: The answer to the chosen writes.
            chosen: Which writes; None: all of them.
            made: The chosen writes are made, too: only their answer is another one.

        Raises:
            ValueError: A write that is made cannot be answered with ``Failed``.
        """
        if made and isinstance(answer, Failed):
            raise ValueError("a write that was made is Unknown, not Failed")
        self._answer = answer
        self._chosen = chosen
        self._made = made

    async def strike(self, call: Callable[[], Awaitable[T]]) -> T:
        return await call()

    async def strike_writes(
        self,
        batch: Sequence[Write],
        make: Callable[[Sequence[Write]], Awaitable[list[Result]]],
    ) -> list[Result]:
        struck = [self._chosen is None or self._chosen(write) for write in batch]
        made = await make(
            [write for write, hit in zip(batch, struck, strict=True) if self._made or not hit]
        )
        answers = iter(made)
        results: list[Result] = []
        for hit in struck:
            answer = next(answers) if self._made or not hit else self._answer
            results.append(self._answer if hit else answer)
        return results


class Truncate:
    """The call is made, and its answer holds too few results, as no store is allowed to answer.

    Of a write and a get the results are cut, of a claim ``next_due``, of a page the records. The
    answers to other calls stay as they are.
    """

    def __init__(self, keep: int = 0) -> None:
        """Creates a fault that leaves the first ``keep`` results."""
        self._keep = keep

    async def strike(self, call: Callable[[], Awaitable[T]]) -> T:
        answer: Any = await call()
        if isinstance(answer, Claimed):
            answer = answer._replace(next_due=answer.next_due[: self._keep])
        elif isinstance(answer, Page):
            answer = answer._replace(records=answer.records[: self._keep])
        elif isinstance(answer, list):
            answer = answer[: self._keep]
        cut: T = answer
        return cut


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
            seed: The same seed strikes the same calls, as long as they come in the same order.
            probability: The probability that a call is struck, from 0 to 1.
            kinds: The faults to choose from at random. Default: a call or an answer is lost.
            calls_max: Maximum calls to remember; the oldest are forgotten.

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
            matches: Called with the arguments of a call; only calls for which it returns True are
                struck.

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
        fault = self._note(name, arguments)
        return await (call() if fault is None else fault.strike(call))

    async def strike_writes(
        self,
        batch: Sequence[Write],
        now: int,
        wake: Collection[str],
        make: Callable[[Sequence[Write]], Awaitable[list[Result]]],
    ) -> list[Result]:
        """Makes a batch of writes as planned."""
        fault = self._note("write", (batch, now, wake))
        if fault is None:
            return await make(batch)
        if isinstance(fault, WriteFault):
            return await fault.strike_writes(batch, make)
        return await fault.strike(lambda: make(batch))

    def _note(self, name: str, arguments: tuple[Any, ...]) -> Fault | None:
        """What is done to a call; the call is remembered."""
        fault = self._fault_for(name, arguments)
        self.calls.append(Call(name, arguments, fault))
        if len(self.calls) > self._calls_max:
            del self.calls[0]
        return fault

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
        return await self._faults.strike_writes(
            batch, now, wake, lambda part: self._store.write(part, now, wake)
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

    @property
    def now_uncertainty(self) -> int:
        uncertainty: int = getattr(self._store, "now_uncertainty", 1)
        return uncertainty

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
    "AnswerWrites",
    "Call",
    "Delay",
    "Fail",
    "Fault",
    "Faults",
    "FaultyStore",
    "Gate",
    "LoseAnswer",
    "Truncate",
    "WriteFault",
    "faulty",
]
