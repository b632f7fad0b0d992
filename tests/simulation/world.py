"""The simulated world around the workers: a store with the real contract, its network, all clocks.

The store keeps its state as values and changes them by the pure steps of
``tests.simulation.model``. Each call travels to it and back, and the faults of the plan decide
what becomes of it on the way. Whatever can be observed goes to the history.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import partial
from hashlib import blake2b
from struct import Struct
from typing import Any, Final, NamedTuple, TypeVar

from tests.simulation.event_loop import PROCESS, WORLD, SimulatedLoop
from tests.simulation.history import EPOCH, Event, History
from tests.simulation.model import claimable, taken, taken_before, written
from tests.simulation.plan import Fault, Kind, Plan

from pyncette.clock import SystemClock, from_microseconds
from pyncette.engine.moves import in_transit
from pyncette.errors import StoreUnavailableError
from pyncette.store import (
    Claimed,
    Counted,
    Failed,
    Filter,
    Group,
    Identity,
    Page,
    Refused,
    Result,
    Source,
    Unknown,
    WakeCallback,
    Write,
    count_by_scan,
)
from pyncette.store.record import ABSENT, ANY, STATIC_GROUP, Put, Record, State

T = TypeVar("T")

_EIGHT: Final = Struct("<8Q")

LATE_MAX_S: Final = 2.0
"""A call may arrive so much later than it was sent, also when nobody waits for it any more."""


LARGE: Final = 200_000
"""A write with so many characters of arguments is large."""

LARGE_MAX: Final = 4
"""So many large writes of one process may be under way."""

_OF_THE_NETWORK: Final = {Kind.SLOW, Kind.UNKNOWN, Kind.FLAKY, Kind.DOWN, Kind.HANGS}

DRIFT_MAX_PPM: Final = 50
"""No clock drifts faster."""


USER: ContextVar[str | None] = ContextVar("user", default=None)
"""Set while a user, or a body, calls: what the worker does on its own must not see it."""


class Broken(AssertionError):  # noqa: N818
    """A caller of the store broke its contract."""


class Draws:
    """A source of chance: a ``Random`` takes long to make, and from most few numbers are drawn."""

    __slots__ = ("_left", "_state")

    def __init__(self, about: str) -> None:
        self._state = about.encode()
        self._left: list[int] = []

    def random(self) -> float:
        """As ``Random.random``."""
        if not self._left:
            self._state = blake2b(self._state).digest()
            self._left = list(_EIGHT.unpack(self._state))
        return (self._left.pop() >> 11) / (1 << 53)

    def uniform(self, lowest: float, highest: float) -> float:
        """As ``Random.uniform``."""
        return lowest + (highest - lowest) * self.random()

    def choice(self, among: Sequence[T]) -> T:
        """As ``Random.choice``."""
        return among[int(self.random() * len(among))]


class World:
    """What there is beside the workers.

    Attributes:
        plan: What happens.
        loop: Where.
        history: What was observed.
        store: The server.
    """

    def __init__(self, plan: Plan, loop: SimulatedLoop) -> None:
        self.plan = plan
        self.loop = loop
        self.history = History()
        self._faults: dict[Kind, list[Fault]] = {}
        for fault in plan.faults:
            self._faults.setdefault(fault.kind, []).append(fault)
        self._network_fails = not _OF_THE_NETWORK.isdisjoint(self._faults)
        self._steps: dict[str, float] = {}
        self._rates = {clock.process: 1 + clock.drift_ppm * 1e-6 for clock in plan.clocks}
        self._offsets = {clock.process: clock.offset_s for clock in plan.clocks}
        self._store_offset_s = plan.clock_offset_s
        self._seed = f"{plan.seed}:"
        self._serials: dict[str, int] = {}
        self.store = Server(self)

    def random(self, *about: object) -> Draws:
        """A source that depends on the seed and on what it is for, and on nothing else."""
        return Draws(self._seed + ":".join(map(str, about)))

    def serial(self, of: str) -> int:
        """A number that grows with each call."""
        number = self._serials[of] = self._serials.get(of, 0) + 1
        return number

    def note(self, process: str, kind: str, subject: str = "", **details: Any) -> None:
        """Adds to the history."""
        self.history.note(
            Event(self.loop.time(), self.store_time(), process, kind, subject, details)
        )

    def active(self, kind: Kind, process: str = "", call: str = "") -> Iterable[Fault]:
        """The faults of a kind that strike now (in this process, in this call)."""
        faults = self._faults.get(kind)
        if faults is None:
            return ()
        now = self.loop.time()
        return [
            fault
            for fault in faults
            if fault.start <= now < fault.end
            and fault.process in ("", process)
            and fault.only in ("", call)
        ]

    # Time.

    def store_time(self) -> int:
        """The instant on the clock of the store."""
        time = self.loop.time() + self._steps.get("store", 0.0) + self._store_offset_s
        return EPOCH + round(time * 1_000_000)

    def step(self, whose: str, seconds: float) -> None:
        """Moves a wall clock: a process's, or ``store``."""
        if not self.plan.store_clock:
            whose = "store"  # one machine, one clock
        self._steps[whose] = self._steps.get(whose, 0.0) + seconds

    def wall_time(self, process: str) -> int:
        """What a process takes for the time of day."""
        if not self.plan.store_clock:
            return self.store_time()
        rate = self._rates.get(process, 1.0)
        time = self.loop.time() * rate + self._offsets.get(process, 0.0)
        return EPOCH + round((time + self._steps.get(process, 0.0)) * 1_000_000)

    def monotonic(self, process: str) -> float:
        """Seconds since the machine of a process started."""
        return self.loop.time() * self.rate(process)

    def rate(self, process: str) -> float:
        """How fast the clock of the machine of a process is."""
        return self._rates.get(process, 1.0)

    def clock(self, process: str) -> WorkerClock:
        """The clock of the machine of a process."""
        return WorkerClock(self, process)

    # The network.

    async def call(self, process: str, name: str, make: Callable[[bool], T]) -> T:
        """Carries a call to the server, and its answer back.

        Args:
            process: Who calls.
            name: The call.
            make: Does it; told whether some of its parts may have an unknown end.
        """
        number = self.serial(f"call:{process}")
        fate = self._fate(process, name, number)
        self.note(process, "call", name, fate=fate.word)
        if name == "write" and USER.get() is not None:
            self.note(process, "crossed", name, what=f"sent in the context of {USER.get()}")
        answer: asyncio.Future[T] = self.loop.create_future()

        def arrive() -> None:
            if not fate.applied or (answer.cancelled() and fate.dropped):
                deliver(None, StoreUnavailableError(f"simulated: {fate.word}"))
                return
            try:
                result = make(fate.partial)
            except StoreUnavailableError as error:
                deliver(None, error)
            except Exception as error:
                self.note(WORLD, "broken contract", name, by=process, error=repr(error))
                deliver(None, error)
            else:
                error_after = StoreUnavailableError(f"simulated: {fate.word}")
                deliver(result, error_after if fate.raises else None)

        def deliver(result: T | None, error: Exception | None) -> None:
            if fate.answered:
                after = fate.answer_s
                if self.plan.bytes_per_s and isinstance(result, Claimed):
                    after += sum(len(record.args) for record in result.records) / (
                        self.plan.bytes_per_s
                    )
                self.loop.at(self.loop.time() + after, settle, result, error)

        def settle(result: T, error: Exception | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
                answer.exception()  # perhaps its caller has crashed
            else:
                answer.set_result(result)

        self.loop.at(self.loop.time() + fate.request_s, arrive)
        self.store.under_way[answer] = process
        try:
            return await answer
        finally:
            self.store.under_way.pop(answer, None)

    def _fate(self, process: str, name: str, number: int) -> Fate:
        random = self.random("call", process, number)
        latency = self.plan.latency_s
        request_s = latency * random.uniform(0.2, 1.0)
        answer_s = latency * random.uniform(0.2, 1.0)
        fate = Fate(request_s, answer_s)
        if not self._network_fails:
            return fate
        for fault in self.active(Kind.SLOW, process, name):
            share = random.random()
            slow = fault.strength * random.uniform(0.3, 1.0)
            fate = fate._replace(
                word="slow",
                request_s=request_s + slow * share,
                answer_s=answer_s + slow * (1 - share),
            )
        if any(
            random.random() < fault.strength for fault in self.active(Kind.UNKNOWN, process, name)
        ):
            fate = fate._replace(word="partly unknown", partial=True)
        for fault in self.active(Kind.FLAKY, process, name):
            if random.random() < fault.strength:
                fate = flaky(random, fate, fault.how)
        if list(self.active(Kind.DOWN, process, name)):
            fate = fate._replace(word="refused", applied=False)
        if list(self.active(Kind.HANGS, process, name)):
            fate = fate._replace(
                word="hangs",
                applied=random.random() < 0.3,
                answered=False,
                request_s=request_s + random.uniform(0, LATE_MAX_S),
            )
        return fate

    # The store as a process sees it.

    @asynccontextmanager
    async def repository(self, process: str) -> AsyncIterator[Client]:
        """Opens the store for a process."""
        await self.call(process, "open", lambda partial: None)
        client = Client(self, process)
        try:
            yield client
        finally:
            client.closed = True


class Fate(NamedTuple):
    """What becomes of a call."""

    request_s: float
    answer_s: float
    word: str = "ok"
    applied: bool = True
    answered: bool = True
    raises: bool = False
    partial: bool = False
    dropped: bool = False


def flaky(random: Draws, fate: Fate, how: str = "") -> Fate:
    """What becomes of a call that fails."""
    late = fate.request_s + random.uniform(0, LATE_MAX_S)
    return random.choice([fate for fate in _fates(fate, late) if how in ("", fate.word)])


def _fates(fate: Fate, late: float) -> tuple[Fate, ...]:
    return (
        fate._replace(word="fails before", applied=False),
        fate._replace(word="fails after", raises=True),
        fate._replace(word="answer lost", answered=False),
        fate._replace(word="request lost", applied=False, answered=False),
        fate._replace(word="late", request_s=late),
        fate._replace(word="late or never", request_s=late, dropped=True),
    )


class Server:
    """The store: records, and those who want to be told of changes.

    Attributes:
        records: What is there.
        under_way: Calls that wait for an answer, and their processes.
        strict: Whether a claim that breaks the contract is refused.
    """

    def __init__(self, world: World) -> None:
        self.strict = True
        self._world = world
        self.records: dict[Identity, Record] = {}
        self._groups: dict[str, dict[str, Record]] = {}
        self.under_way: dict[asyncio.Future[Any], str] = {}
        self._past: dict[Identity, list[tuple[float, Record | None]]] = {}
        self._durable: dict[Identity, Record] = {}
        self._watches: list[Watch] = []

    # The calls.

    def claim(
        self,
        process: str,
        sources: Sequence[Source],
        limit: int,
        now: int,
        token: str,
        repeated: bool,
        bounded: bool,
        unfinished_max: int | None,
    ) -> Claimed:
        """See ``pyncette.store.Store.claim``."""
        if self.strict:
            _check_sources(sources, limit)
        world = self._world
        time = world.store_time()
        edge = min(now, time) if bounded and world.plan.store_clock else now
        claimed: list[Record] = []
        room = [source.share if isinstance(source, Group) else 1 for source in sources]
        if repeated:
            for number, source in enumerate(sources):
                for record in self._of(source):
                    if len(claimed) >= limit or room[number] <= 0:
                        break
                    if taken_before(record, source.lease, now, token) and (
                        unfinished_max is None or record.unfinished_attempts - 1 <= unfinished_max
                    ):
                        claimed.append(record)
                        room[number] -= 1
        order = world.random("claim", token, now)
        for number, source in enumerate(sources):
            before = min(edge, source.before) if isinstance(source, Group) else edge
            due = []
            for record in self._of(source):
                shown = self._shown(record)
                if shown is None or not claimable(record, shown, before):
                    continue
                if unfinished_max is not None and record.unfinished_attempts > unfinished_max:
                    continue
                if not self._locked(record.group, record.key):
                    due.append((record.due_at or 0, order.random(), record))
            due.sort()
            for _, _, record in due[: max(min(room[number], limit - len(claimed)), 0)]:
                after = taken(record, source.lease, now, token)
                self._set((record.group, record.key), after)
                claimed.append(after)
                world.note(
                    process,
                    "claimed",
                    subject(record.group, record.key),
                    token=token,
                    was=str(record.state),
                    was_due=record.due_at,
                    was_token=record.token,
                    lease_end=after.due_at,
                )
        return Claimed(claimed, [self._next_due(source) for source in sources])

    def write(
        self, process: str, batch: Sequence[Write], now: int, wake: Collection[str], partial: bool
    ) -> list[Result]:
        """See ``pyncette.store.Store.write``."""
        _check_batch(batch)
        world = self._world
        results: list[Result] = []
        for write in batch:
            identity = (write.group, write.key)
            current = self.records.get(identity)
            if self._locked(*identity):
                results.append(
                    Failed(StoreUnavailableError("simulated: the record is locked"))
                    if write.expect in (ABSENT, ANY)
                    else Refused(current)
                )
                continue
            if partial:
                random = world.random("partial", process, world.serial("partial"))
                draw = random.random()
                if draw < 0.2:
                    results.append(Failed(StoreUnavailableError("simulated: failed")))
                    continue
                if draw < 0.6:
                    if draw < 0.4:
                        self._write(process, write, current, now)
                    results.append(Unknown(StoreUnavailableError("simulated: unknown")))
                    continue
            results.append(self._write(process, write, current, now))
        if wake:
            self._wake(wake)
        return results

    def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        """See ``pyncette.store.Store.get``."""
        return [self.records.get(identity) for identity in identities]

    def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        """See ``pyncette.store.Store.scan``."""
        records: list[Record] = []
        for key, record in sorted(self._groups.get(group, {}).items()):
            if (cursor is not None and key <= cursor) or not key.startswith(where.prefix):
                continue
            if where.states is not None and record.state not in where.states:
                continue
            if where.due_before is not None and (
                record.due_at is None or record.due_at >= where.due_before
            ):
                continue
            if len(records) == limit:
                return Page(records, records[-1].key)
            records.append(record)
        return Page(records, None)

    def watch(self, process: str, groups: Collection[str], on_wake: WakeCallback) -> Watch:
        """See ``pyncette.store.Store.watch``."""
        watch = Watch(process, frozenset(groups), on_wake, self._watches)
        self._watches.append(watch)
        return watch

    # What happens to it.

    def restart(self) -> None:
        """Ends every connection: calls under way have an unknown end, nobody is told any more."""
        self._watches.clear()
        for future in list(self.under_way):
            if not future.done():
                future.set_exception(StoreUnavailableError("simulated: the server went away"))
                future.exception()

    def edit(self, key: str, how: str) -> None:
        """Writes a text into a column of a record, past everybody."""
        column, _, text = how.partition("=")
        for identity, record in list(self.records.items()):
            if identity[1] == key:
                value: Any = int(text) if text.lstrip("-").isdigit() else text
                self._set(identity, record._replace(**{column: value}))

    def save(self) -> None:
        """Makes what is there durable."""
        self._durable = dict(self.records)

    def restore(self) -> None:
        """Restarts from what was durable."""
        for identity in {**self.records, **self._durable}:
            record = self._durable.get(identity)
            if record != self.records.get(identity):
                self._set(identity, record)
        self.restart()

    # Parts.

    def _of(self, source: Source) -> list[Record]:
        if isinstance(source, Group):
            return list(self._groups.get(source.group, {}).values())
        record = self.records.get((source.group, source.key))
        return [] if record is None else [record]

    def _write(self, process: str, write: Write, current: Record | None, now: int) -> Result:
        record, result = written(current, write, now)
        if record != current:
            self._set((write.group, write.key), record)
            self._world.note(
                process,
                "written",
                subject(write.group, write.key),
                change=type(write.change).__name__,
                state="gone" if record is None else str(record.state),
                due=None if record is None else record.due_at,
                was_token=None if current is None else current.token,
            )
            self._look_for_another(process, record)
        return result

    def _look_for_another(self, process: str, record: Record | None) -> None:
        """Notes if an instance lies in two partitions."""
        if record is None or in_transit(record) or ":" not in record.group[1:]:
            return
        name = subject(record.group, record.key)
        for (group, key), other in self.records.items():
            if (
                key == record.key
                and group != record.group
                and subject(group, key) == name
                and not in_transit(other)
            ):
                self._world.note(process, "two places", name, group=group, other=record.group)

    def _set(self, identity: Identity, record: Record | None) -> None:
        group, key = identity
        past = self._past.setdefault(identity, [(0.0, None)])
        past.append((self._world.loop.time(), record))
        del past[:-20]
        if record is None:
            self.records.pop(identity, None)
            self._groups.get(group, {}).pop(key, None)
        else:
            self.records[identity] = record
            self._groups.setdefault(group, {})[key] = record

    def _shown(self, record: Record) -> Record | None:
        """The record as the index shows it."""
        faults = list(self._world.active(Kind.LAGGING))
        if not faults:
            return record
        random = self._world.random("lag", self._world.serial("lag"))
        until = self._world.loop.time() - random.uniform(0, faults[0].strength)
        shown = None
        for time, past in self._past[record.group, record.key]:
            if time <= until:
                shown = past
        return shown

    def _next_due(self, source: Source) -> int | None:
        instants = [
            shown.due_at
            for record in self._of(source)
            if (shown := self._shown(record)) is not None and shown.due_at is not None
        ]
        return min(instants, default=None)

    def _locked(self, group: str, key: str) -> bool:
        return any(
            self._world.random("lock", fault.start, group, key).random() < fault.strength
            for fault in self._world.active(Kind.LOCKED)
        )

    def _wake(self, groups: Collection[str]) -> None:
        world = self._world
        for watch in list(self._watches):
            common = watch.groups.intersection(groups)
            if not common:
                continue
            random = world.random("wake", world.serial("wake"))
            if any(random.random() < fault.strength for fault in world.active(Kind.DEAF)):
                continue
            delay = world.plan.latency_s * random.uniform(0.2, 1.0)
            told = sorted(common)
            world.loop.at(world.loop.time() + delay, watch.tell, told, world.loop)


class Watch:
    """A registration."""

    def __init__(
        self, process: str, groups: frozenset[str], on_wake: WakeCallback, watches: list[Watch]
    ) -> None:
        self.groups = groups
        self._process = process
        self._on_wake = on_wake
        self._watches = watches
        self._open = True

    def tell(self, groups: list[str], loop: SimulatedLoop) -> None:
        """Calls back, in the process that has registered."""
        if loop.alive(self._process):
            loop.start(self._process, self._tell(groups), "simulated notification")

    async def _tell(self, groups: list[str]) -> None:
        if self._open:
            self._on_wake(groups)

    def close(self) -> None:
        self._open = False
        if self in self._watches:
            self._watches.remove(self)


class Client:
    """The store as one process sees it. See ``pyncette.store.Store``."""

    def __init__(self, world: World, process: str) -> None:
        self.closed = False
        self._world = world
        self._process = process
        self._large = 0

    async def _call(self, name: str, make: Callable[[bool], T]) -> T:
        if self.closed:
            raise StoreUnavailableError("simulated: closed")
        return await self._world.call(self._process, name, make)

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
        sources = list(sources)
        server, process = self._world.store, self._process
        return await self._call(
            "claim",
            lambda partial: server.claim(
                process, sources, limit, now, token, repeated, bounded, unfinished_max
            ),
        )

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        batch, wake = list(batch), list(wake)
        server, process = self._world.store, self._process
        large = any(isinstance(one.change, Put) and len(one.change.args) > LARGE for one in batch)
        self._large += large
        if large and (len(batch) > 1 or self._large > LARGE_MAX):
            what = f"{len(batch)} writes in the batch, {self._large} large ones under way"
            self._world.note(process, "crowded", what=what)
        try:
            results = await self._call(
                "write", lambda partial: server.write(process, batch, now, wake, partial)
            )
        finally:
            self._large -= large
        return results[:-1] if list(self._world.active(Kind.SHORT, process)) else results

    async def get(self, identities: Sequence[Identity]) -> list[Record | None]:
        identities = list(identities)
        return await self._call("get", lambda partial: self._world.store.get(identities))

    async def scan(self, group: str, where: Filter, cursor: str | None, limit: int) -> Page:
        return await self._call(
            "scan", lambda partial: self._world.store.scan(group, where, cursor, limit)
        )

    async def count(self, group: str, where: Filter, limit: int) -> Counted:
        return await count_by_scan(self, group, where, limit, 10)

    async def now(self) -> int | None:
        if not self._world.plan.store_clock:
            return None
        return await self._call("now", lambda partial: self._world.store_time())

    async def watch(self, groups: Collection[str], on_wake: WakeCallback) -> Watch | None:
        server, process = self._world.store, self._process
        return await self._call("watch", lambda partial: server.watch(process, groups, on_wake))


class WorkerClock(SystemClock):
    """The machine's clock of one process."""

    def __init__(self, world: World, process: str) -> None:
        self._loop_time = world.loop.time
        self._rate = world.rate(process)
        self._wall_time = partial(world.wall_time, process)

    def now(self) -> datetime:
        return from_microseconds(self._wall_time())

    def microseconds(self) -> int:
        return self._wall_time()

    def monotonic(self) -> float:
        return self._loop_time() * self._rate

    async def sleep(self, seconds: float) -> None:
        # Of a slow clock, less passes than of the loop's.
        await asyncio.sleep(max(seconds, 0.0) * (1 + 2 * DRIFT_MAX_PPM * 1e-6))


def subject(group: str, key: str) -> str:
    """A record's name in a history."""
    if group == STATIC_GROUP:
        return key
    return f"{group.partition(':')[0]}/{key}" if group[0] != ":" else f"{group}/{key}"


def current_process() -> str:
    """The process that is running."""
    return PROCESS.get()


def _check_sources(sources: Sequence[Source], limit: int) -> None:
    groups = [source.group for source in sources if isinstance(source, Group)]
    keys = [(source.group, source.key) for source in sources if not isinstance(source, Group)]
    if len(set(groups)) != len(groups) or len(set(keys)) != len(keys):
        raise Broken(f"A claim names a source twice: {sources!r}")
    if set(groups) & {group for group, _ in keys}:
        raise Broken(f"A claim names a key of a group that it names: {sources!r}")
    if limit < 0 or any(source.lease <= 0 for source in sources):
        raise Broken(f"A claim has limit {limit}, sources {sources!r}")


def _check_batch(batch: Sequence[Write]) -> None:
    identities = [(write.group, write.key) for write in batch]
    if len(set(identities)) != len(identities):
        raise Broken(f"A key stands twice in a batch: {identities!r}")
    for write in batch:
        if write.expect == ABSENT and not isinstance(write.change, Put):
            raise Broken(f"A change of what is absent: {write!r}")
        if isinstance(write.change, Put) and write.change.state not in tuple(State):
            raise Broken(f"No state: {write!r}")
