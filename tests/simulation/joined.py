"""A database in which a run has its transaction: a store in memory, and connections to its server.

What is done on a connection goes to a *session* at the server: its changes are seen by nobody else,
and hold their records, until it commits. A statement may get lost on the way there, or its answer
on the way back; then the driver says so at once, or never. A server that has lost a connection
notices that after a while, and ends the session.

The time is that of a ``SimulatedLoop``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from enum import StrEnum
from random import Random
from typing import Any, Final, NamedTuple

from tests.simulation.event_loop import WORLD, SimulatedLoop
from tests.simulation.history import EPOCH

import pyncette.clock
from pyncette.clock import Clock, from_microseconds
from pyncette.connections import Answer, Dialect, Do, Link
from pyncette.errors import TransactionBegunError
from pyncette.memory import MemoryStore, _Shelf
from pyncette.store import Applied, Claimed, Identity, Refused, Result, Source, Write
from pyncette.store.record import Record
from pyncette.store.sql.joined import JoinedTable

TRAVEL_S: Final = 0.001


class Lost(StrEnum):
    """What may become of a statement."""

    REFUSED = "the server refuses it"
    REQUEST = "the connection ends before the server has heard of it"
    ANSWER = "the connection ends after the server has done it"
    SILENT_REQUEST = "the server never hears of it, and no answer comes"
    SILENT_ANSWER = "the server does it, and no answer comes"
    LATE = "the server does it late, when nobody waits for the answer any more"


SILENT: Final = (Lost.SILENT_REQUEST, Lost.SILENT_ANSWER, Lost.LATE)


class DriverError(Exception):
    """What the driver raises."""


class Fault(NamedTuple):
    """What happens to a statement: to the first of this kind that is made, or to each.

    Attributes:
        statement: The first word of it.
        lost: What happens.
        always: Whether it happens to every statement of this kind.
    """

    statement: str
    lost: Lost
    always: bool = False


class Session:
    """What the server knows of a connection."""

    def __init__(self) -> None:
        self.changes: dict[Identity, Record | None] = {}
        self.effects: list[str] = []
        self.gone = False
        self.forget()

    def forget(self) -> None:
        """Nothing is begun, or all of it is undone."""
        self.open = self.failed = self.savepoint = False
        self.changes, self.effects = {}, []


class LoopClock(Clock):
    """The time of the simulated loop."""

    def now(self) -> datetime:
        return from_microseconds(EPOCH + round(self.monotonic() * 1_000_000))

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Database(MemoryStore):
    """The store, and the server.

    Attributes:
        effects: What transactions have done, once they are committed.
        faults: What happens to statements.
        notices_s: When the server notices that a connection is lost.
        late_s: How late a late statement is.
        seconds_max: See ``pyncette.store.sql.joined.Joined``.
        calls: What has reached a driver, with its time.
        lent_now: How many connections are lent.
        places: For each connection, in which threads it was made and closed.
        waiting: How many wait for their turn.
        fails: What each write to the store raises.
    """

    def __init__(self, *faults: Fault, notices_s: float = 0.5, seconds_max: float | None = None):
        super().__init__()
        self.effects: list[str] = []
        self.faults = [*faults]
        self.notices_s = notices_s
        self.late_s = 3.0
        self.seconds_max = seconds_max
        self.calls: list[tuple[float, str]] = []
        self.lent_now = 0
        self.places: list[list[str]] = []
        self.turns = asyncio.Lock()
        self.waiting = 0
        self.fails: Callable[[], Exception | None] = lambda: None
        self._sessions: list[Session] = []

    # As a store.

    def holder(self, identity: Identity) -> Session | None:
        """The session that holds a record."""
        return next((one for one in self._sessions if identity in one.changes), None)

    @property
    def open_sessions(self) -> int:
        """How many transactions are open."""
        return sum(session.open for session in self._sessions)

    def record(self, group: str, key: str) -> Record | None:
        """A record as it is committed."""
        shelf = self._shelves.get(group)
        return None if shelf is None else shelf.records.get(key)

    async def claim(
        self,
        sources: Sequence[Source],
        limit: int,
        now: int,
        token: str,
        repeated: bool = False,
        **options: Any,
    ) -> Claimed:
        held = [
            record
            for session in self._sessions
            for identity in session.changes
            if (record := self.record(*identity)) is not None
        ]
        for record in held:
            self._shelves[record.group].remove(record)
        try:
            return await super().claim(sources, limit, now, token, repeated, **options)
        finally:
            for record in held:
                self._shelves[record.group].put(record)

    async def write(
        self, batch: Sequence[Write], now: int, wake: Collection[str] = ()
    ) -> list[Result]:
        await asyncio.sleep(TRAVEL_S)
        error = self.fails()
        if error is not None:
            raise error
        return [
            Refused(self.record(write.group, write.key))
            if self.holder((write.group, write.key)) is not None
            else (await super(Database, self).write([write], now, wake))[0]
            for write in batch
        ]

    async def joined(self, link: Link) -> Joined:
        """See ``pyncette.store.deadline.DeadlineStore``."""
        return Joined(link, self.seconds_max)

    @asynccontextmanager
    async def lent(self, do: Do) -> AsyncIterator[Connection]:
        """See ``pyncette.store.deadline.DeadlineStore``."""

        made = len(self.places)
        self.places.append([])

        def note() -> None:
            self.places[made].append(threading.current_thread().name)

        self.lent_now += 1
        connection = Connection(self)
        await do(note)
        try:
            yield connection
        finally:
            self.lent_now -= 1
            await do(note)
            connection.close()

    @asynccontextmanager
    async def turn(self, still: Callable[[], None]) -> AsyncIterator[None]:
        """See ``pyncette.store.deadline.DeadlineStore``; only files have turns."""
        if self.seconds_max is None:
            yield
            return
        self.waiting += 1
        try:
            while self.turns.locked():
                still()
                await asyncio.sleep(0.05)
        finally:
            self.waiting -= 1
        async with self.turns:
            yield

    # As a server.

    def start(self) -> Session:
        session = Session()
        self._sessions.append(session)
        return session

    def end(self, session: Session) -> None:
        """Rolls back."""
        session.forget()

    def seen(self, session: Session, group: str, key: str) -> Record | None:
        """A record as a session sees it."""
        if (group, key) in session.changes:
            return session.changes[group, key]
        return self.record(group, key)

    def make(self, session: Session, write: Write, expect: int, now: int) -> int | None:
        """Makes a change in a session; see ``pyncette.store.sql.joined.JoinedTable.make``."""
        identity = write.group, write.key
        if self.holder(identity) not in (None, session):
            return None
        scratch = MemoryStore()
        current = self.seen(session, *identity)
        if current is not None:
            scratch._shelves[write.group] = shelf = _Shelf()
            shelf.put(current)
        result = scratch._write(write._replace(expect=expect), now)
        if not isinstance(result, Applied):
            return None
        after = scratch._shelves.get(write.group)
        session.changes[identity] = None if after is None else after.records.get(write.key)
        return result.version

    def commit(self, session: Session) -> None:
        for identity, record in session.changes.items():
            self._commit_one(identity, record)
        self.effects += session.effects
        self.end(session)

    def _commit_one(self, identity: Identity, record: Record | None) -> None:
        group, key = identity
        current = self.record(group, key)
        if record is not None:
            shelf = self._shelves.get(group)
            if shelf is None:
                shelf = self._shelves[group] = _Shelf()
            shelf.put(record)
        elif current is not None:
            self._shelves[group].remove(current)


class Connection(Link):
    """A connection of the application, and its driver at once."""

    name = "This connection"
    dialect = Dialect.SQLITE
    patience_s = 0.0

    def __init__(self, database: Database) -> None:
        self.connection = self
        self.closed = False
        self._database = database
        self._session = database.start()
        self._mute = False

    def close(self) -> None:
        """Closes it; the server notices, unless what lies in between is dead."""
        if not self.closed:
            self.closed = True
            self._lose()

    def _lose(self) -> None:
        delay_s = self._database.notices_s if self._mute else 0.0
        asyncio.get_running_loop().call_later(delay_s, self._gone)

    def _gone(self) -> None:
        self._session.gone = True
        self._database.end(self._session)

    def _late(self, do: Callable[[], Any]) -> None:
        if not self._session.gone:
            with suppress(DriverError):
                do()

    async def insert(self, effect: str) -> None:
        """Has an effect."""
        await self._statement("INSERT", lambda: self._session.effects.append(effect))

    async def commit_by_hand(self) -> None:
        """Ends the transaction, as no block should."""
        await self._statement("END", lambda: self._database.commit(self._session))

    # As a link.

    async def run(self, statement: str, *parameters: Any) -> Answer:
        kind = statement.split()[0]
        done = await self._statement(kind, lambda: self._do(kind, *parameters))
        return Answer([(done,)], 1)

    def _do(self, kind: str, *parameters: Any) -> Any:
        match kind:
            case "SAVEPOINT":
                self._session.savepoint = self._session.open
            case "RELEASE":
                self._release()
            case "GET":
                return self._database.seen(self._session, *parameters)
            case "MAKE":
                return self._database.make(self._session, *parameters)
        return None

    def _release(self) -> None:
        if not self._session.savepoint or self._session.failed:
            raise DriverError("no such savepoint")
        self._session.savepoint = False

    async def check_inside(self) -> None:
        """Nothing is begun by itself."""

    async def begin(self) -> None:
        if self._session.open:
            raise TransactionBegunError("begun")
        await self._statement("BEGIN", lambda: setattr(self._session, "open", True))

    async def flush(self) -> None:
        if not self.closed and not self._mute:
            await self._statement("FLUSH", lambda: None)

    async def commit(self) -> None:
        await self._statement("COMMIT", lambda: self._database.commit(self._session))

    async def rollback(self, error: BaseException | None = None) -> None:
        await self._statement("ROLLBACK", lambda: self._database.end(self._session))

    async def _statement(self, kind: str, do: Callable[[], Any]) -> Any:
        database, loop = self._database, asyncio.get_running_loop()
        database.calls.append((loop.time(), kind))
        if self.closed:
            raise DriverError("the connection is closed")
        if self._mute:  # a driver that was interrupted gives the connection up
            self.close()
            raise DriverError("the connection was given up")
        await asyncio.sleep(TRAVEL_S)
        fault = next((one for one in database.faults if one.statement == kind), None)
        if fault is not None and not fault.always:
            database.faults.remove(fault)
        lost = None if fault is None else fault.lost
        if lost is Lost.REFUSED:
            self._session.failed = True
            raise DriverError(f"{kind} is refused")
        if lost in (Lost.ANSWER, Lost.SILENT_ANSWER, None):
            answer = do()
        if lost is None:
            await asyncio.sleep(TRAVEL_S)
            return answer
        if lost in SILENT:
            self._mute = True
            if lost is Lost.LATE:
                loop.call_later(database.late_s, self._late, do)
            await asyncio.Event().wait()
        self._lose()
        self.closed = True
        raise DriverError(f"{kind}: {lost}")


class Joined(JoinedTable):
    """See ``pyncette.store.sql.joined.Joined``."""

    def __init__(self, link: Link, seconds_max: float | None) -> None:
        self._link = link
        self.seconds_max = seconds_max

    async def check(self, settles: bool = False) -> None:
        await self._link.run("CHECK")

    async def get(self, group: str, key: str) -> Record | None:
        answer = await self._link.run("GET", group, key)
        found: Record | None = answer.rows[0][0]
        return found

    async def make(self, write: Write, expect: int, now: int) -> int | None:
        answer = await self._link.run("MAKE", write, expect, now)
        made: int | None = answer.rows[0][0]
        return made

    async def notify(self, groups: Collection[str]) -> None: ...


def in_virtual_time(main: Callable[[], Coroutine[Any, Any, None]], seed: int = 0) -> None:
    """Runs a coroutine on a simulated loop, where no time passes but that of its timers."""
    loop = SimulatedLoop(Random(f"joined:{seed}"))  # type: ignore[abstract]
    module: Any = pyncette.clock
    monotonic, module._monotonic = module._monotonic, loop.time
    try:
        loop.run_until_complete(loop.start(WORLD, main(), "test"))
        assert not loop.errors, loop.errors
    finally:
        module._monotonic = monotonic
        loop.close()
