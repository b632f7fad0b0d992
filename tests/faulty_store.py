"""Wraps a real store in one that fails on demand.

It shows what a program, or Pyncette itself, does when a call to its store fails, when the
answer comes too late or in part, or when the call is made and its answer is lost. It knows only the
storage contract::

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
    Counted,
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
from pyncette.store.history import KEEP, History, RowsPage, RunFilter, RunRow, TotalRow
from pyncette.store.record import Record

T = TypeVar("T")

CALLS: Final = (
    *("claim", "write", "get", "scan", "count", "now", "watch"),
    *("prepare", "append", "runs", "totals", "prune"),
)
"""The names of the calls of a store, and of its run history."""


class Call(NamedTuple):
    """A call to the store.

    Attributes:
        name: One of ``CALLS``.
        arguments: Its arguments, in the order of the contract.
        fault: The fault that was applied to it, if any.
    """

    name: str
    arguments: tuple[Any, ...]
    fault: Fault | None


class Fault(Protocol):
    """A fault of a call. A ``WriteFault`` can treat each write of a batch differently."""

    async def strike(self, call: Callable[[], Awaitable[T]]) -> T:
        """Makes the call, or does not, and returns its answer, or raises."""
        ...


@runtime_checkable
class WriteFault(Fault, Protocol):
    """A fault that can treat each write of a batch differently. Other calls go to ``strike``."""

    async def strike_writes(
        self,
        batch: Sequence[Write],
        make: Callable[[Sequence[Write]], Awaitable[list[Result]]],
    ) -> list[Result]:
        """Makes all of a batch, or part of it, or nothing, and returns its answers, or raises."""
        ...


class Fail:
    """The call is not made, and raises."""

    def __init__(self, error: BaseException | None = None) -> None:
        self._error = error

    async def strike(self, call: Callable[[], Awaitable[T]]) -> T:
        raise self._error or StoreUnavailableError("injected: the call did not arrive")


class LoseAnswer:
    """The call is made, and raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    async def strike(self, call: Callable[[], Awaitable[T]]) -> T:
        await call()
        raise self._error or StoreUnavailableError("injected: the answer was lost")


class Delay:
    """The call is made, or its answer arrives, after a delay on a clock.

    If the clock is held during calls (``pyncette.clock.Clock.hold``), as a program does with its
    own clock, the delay never ends: use a ``Gate``.
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
    """The call, or its answer, waits until the test calls ``release``.

    One gate can hold any number of calls; after ``release`` it stays open.
    """

    def __init__(self, *, answer: bool = False) -> None:
        """Creates a closed gate before the call, or before its ``answer``."""
        self._answer = answer
        self._reached = asyncio.Event()
        self._released = asyncio.Event()

    async def reached(self) -> None:
        """Returns when a call waits at the gate."""
        await self._reached.wait()

    def release(self) -> None:
        """Lets all calls through, from now on."""
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
    """Some writes of a batch are answered with an error; the others are made as usual.

    A store answers like this if it cannot keep one value (``Failed``), or if one node of a cluster
    does not answer (``Unknown``). Other calls are made as usual.
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
            made: Whether the chosen writes are made, too, and only their answer is replaced.

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
    """The call is made, and its answer has too few results, which the contract forbids.

    It shortens the results of a write and a get, ``next_due`` of a claim, and the records of a
    page. The answers to other calls stay as they are.
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
    """Chooses the calls that get a fault, and records all calls.

    Faults planned by ``next`` come first, then those of ``down``, then random ones.
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
            seed: The same seed chooses the same calls, if they come in the same order.
            probability: The probability that a call gets a fault, from 0 to 1.
            kinds: The faults to choose from at random. Default: a call or an answer is lost.
            calls_max: Maximum calls to record; the oldest are removed.

        Raises:
            ValueError: The probability is not between 0 and 1.
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
        """Applies each fault to one of the next calls of this name, in this order.

        Args:
            name: One of ``CALLS``.
            faults: The faults.
            matches: Called with the arguments of a call; only calls for which it returns True get
                a fault.

        Raises:
            ValueError: There is no such call.
        """
        if name not in CALLS:
            raise ValueError(f"a store has no call '{name}', it has {', '.join(CALLS)}")
        self._planned += [_Planned(name, fault, matches) for fault in faults]

    @contextmanager
    def down(self, *names: str, fault: Fault | None = None) -> Iterator[None]:
        """Makes every call of these names (of any name, if none is given) fail in the block."""
        entry: tuple[Collection[str], Fault] = (names or CALLS, fault or Fail())
        self._down.append(entry)
        try:
            yield
        finally:
            self._down.remove(entry)

    def made(self, name: str) -> list[Call]:
        """Returns the calls of this name, in the order in which they came."""
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
        """Returns the fault of a call, if any, and records the call."""
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
    """Passes the calls of ``pyncette.store.Store`` on, with the faults applied."""

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

    async def count(self, group: str, where: Filter, limit: int) -> Counted:
        return await self._faults.strike(
            "count", (group, where, limit), lambda: self._store.count(group, where, limit)
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

    @property
    def history(self) -> FaultyHistory | None:
        history: History | None = getattr(self._store, "history", None)
        return None if history is None else FaultyHistory(history, self._faults)


class FaultyHistory:
    """Passes the calls of ``pyncette.store.history.History`` on, with the faults applied."""

    def __init__(self, history: History, faults: Faults) -> None:
        """Wraps the history of a store."""
        self._history = history
        self._faults = faults

    async def prepare(self, keep: int = KEEP) -> None:
        await self._faults.strike("prepare", (keep,), lambda: self._history.prepare(keep))

    async def append(self, runs: Sequence[RunRow], totals: Sequence[TotalRow]) -> None:
        await self._faults.strike(
            "append", (runs, totals), lambda: self._history.append(runs, totals)
        )

    async def runs(self, where: RunFilter, cursor: str | None, limit: int) -> RowsPage:
        return await self._faults.strike(
            "runs", (where, cursor, limit), lambda: self._history.runs(where, cursor, limit)
        )

    async def totals(self, task: str | None, since: int, until: int) -> list[TotalRow]:
        return await self._faults.strike(
            "totals", (task, since, until), lambda: self._history.totals(task, since, until)
        )

    async def prune(self, task: str | None, before: int, limit: int) -> int:
        return await self._faults.strike(
            "prune", (task, before, limit), lambda: self._history.prune(task, before, limit)
        )


def faulty(factory: RepositoryFactory, faults: Faults) -> RepositoryFactory:
    """Returns a factory that opens the stores of another factory, with these faults."""

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
    "FaultyHistory",
    "FaultyStore",
    "Gate",
    "LoseAnswer",
    "Truncate",
    "WriteFault",
    "faulty",
]
