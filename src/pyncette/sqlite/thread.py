"""The one thread that owns a SQLite connection, and the queue of calls in front of it.

All calls that are queued when the thread comes round run in one transaction, so that the cost of
a commit is shared. It knows transactions, other users of the file, and what the errors of SQLite
mean; it knows nothing of tables and records, which are in ``pyncette.sqlite``.

Where a text in the database is no UTF-8, the calls that meet it are made again with
``text_factory`` set to something other than ``str``: bytes that are none are replaced.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from random import uniform
from typing import Any, Final, NamedTuple, TypeVar

from pyncette.clock import realtime
from pyncette.errors import StoreError, StoreMisconfiguredError, StoreUnavailableError

LOOK_INTERVAL_S: Final = 0.03
"""How often a watched file is asked whether somebody else wrote to it; a look takes some 3 µs."""

GAP_S: Final = 0.0005
"""Between two write transactions while others write to the file, too. Without it one that commits
back to back keeps all others out until they give up."""

SHARED_FOR_S: Final = 2.0
"""For so long after a write by somebody else the file counts as shared."""

BUSY_DEADLINE_S: Final = 5.0
"""For so long a transaction waits for a lock on the file that somebody else holds."""

OPENING_DEADLINE_S: Final = 10.0
"""The same, while the file is being opened."""

OTHER_CALLS_MAX: Final = 500
"""So many calls that are not urgent share one transaction; the others wait for the next one."""

_UNAVAILABLE: Final = frozenset(
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_SCHEMA,
    )
)

Work = Callable[[sqlite3.Connection], Any]

_T = TypeVar("_T")


class Call(NamedTuple):
    """What somebody asks of the connection. It may be tried several times.

    Attributes:
        read: Answers without writing, or returns None where it cannot.
        write: Answers within a write transaction. None for a call that only reads.
        durable: What it writes must survive a crash of the machine.
        future: Where the answer goes.
    """

    read: Work | None
    write: Work | None
    durable: bool
    future: asyncio.Future[Any]


class Answer(NamedTuple):
    """What came of a call: ``error`` where it failed, else ``result``."""

    future: asyncio.Future[Any]
    result: Any
    error: BaseException | None


class ConnectionThread:
    """Owns a connection from its opening to its closing.

    Args:
        place: The database, in words, for messages.
        connect: Opens it; called in the thread, again while somebody else has it locked.
        shared: Whether others can have the same database open.
        synchronous: ``FULL``: a transaction with a durable call in it waits for the disk.
            ``NORMAL``: none does.
        on_change: Called in the event loop when somebody else wrote, while ``watch`` is on.
    """

    def __init__(
        self,
        place: str,
        connect: Callable[[], sqlite3.Connection],
        shared: bool,
        synchronous: str,
        on_change: Callable[[], None],
    ) -> None:
        self._place = place
        self._connect = connect
        self._shared = shared
        self._synchronous = synchronous
        self._synchronous_now = ""
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._condition = threading.Condition()
        self._urgent: deque[Call] = deque()
        self._others: deque[Call] = deque()
        self._closing = False
        self._watched = False
        self._data_version = 0
        self._shared_until = 0.0
        self._committed_at = 0.0
        self._looked_at = 0.0
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._pause = threading.Event()  # never set: its wait is a pause
        # A process that ends without closing its context does not wait for this thread: whatever
        # was acknowledged is in the file.
        self._thread = threading.Thread(target=self._run, name=f"pyncette {place}", daemon=True)

    async def open(self) -> None:
        """Starts the thread and opens the database.

        Raises:
            StoreError: It cannot be opened.
        """
        self._thread.start()
        try:
            await self._opened
        except asyncio.CancelledError:
            self._close_soon()
            raise
        except Exception:
            self._thread.join()
            raise

    async def close(self) -> None:
        """Finishes the calls that are queued, closes the database and ends the thread."""
        self._close_soon()
        await asyncio.shield(self._closed)
        self._thread.join()

    def _close_soon(self) -> None:
        with self._condition:
            self._closing = True
            self._condition.notify()

    async def call(
        self, read: Work | None, write: Work | None, urgent: bool, durable: bool = True
    ) -> Any:
        """Has a call made, and returns its answer.

        Urgent calls go before others; calls of the same kind go in the order in which they came.
        See ``Call`` for the other arguments.

        Raises:
            StoreError: It could not be made.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        call = Call(read, write, durable, future)
        with self._condition:
            if self._closing:
                raise StoreError(f"{self._place} is closed")
            idle = not self._urgent and not self._others
            (self._urgent if urgent else self._others).append(call)
            if idle:
                self._condition.notify()
        return await future

    def watch(self, watched: bool) -> None:
        """Whether changes made by others are to be reported."""
        if watched != self._watched and self._shared:
            with self._condition:
                self._watched = watched
                self._condition.notify()

    # What follows runs in the thread.

    def _run(self) -> None:
        try:
            connection = self._patiently(self._connect, OPENING_DEADLINE_S)
        except Exception as error:
            self._tell(_fail, self._opened, self.explain(error))
            self._tell(_finish, self._closed)
            return
        try:
            if self._shared:
                self._data_version = _data_version(connection)
            self._tell(_finish, self._opened)
            while calls := self._next_calls(connection):
                answers = self._answers(connection, calls)
                if answers:
                    self._tell(_give, answers)
        finally:
            connection.close()
            self._tell(_finish, self._closed)

    def _tell(self, callback: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            # The loop was closed with the context still open: nobody waits any more.
            self._closing = True

    def _next_calls(self, connection: sqlite3.Connection) -> list[Call]:
        """All that is to be done in the next transaction; nothing when the thread is to end."""
        while True:
            with self._condition:
                if not self._urgent and not self._others and not self._closing:
                    self._condition.wait(LOOK_INTERVAL_S if self._watched else None)
                waiting = bool(self._urgent or self._others)
                closing = self._closing
            if closing and not waiting:
                return []
            if self._shared:
                self._look(connection)
            if not waiting:
                continue
            if self._shared:
                now = realtime.monotonic()
                gap = self._committed_at + GAP_S - now
                if gap > 0 and now < self._shared_until:
                    self._pause.wait(gap)
            with self._condition:
                calls = list(self._urgent)
                self._urgent.clear()
                while self._others and len(calls) < OTHER_CALLS_MAX:
                    calls.append(self._others.popleft())
                if self._others and len(calls) >= OTHER_CALLS_MAX:
                    calls.append(self._others.popleft())
            return calls

    def _look(self, connection: sqlite3.Connection) -> None:
        """Notices what others wrote."""
        try:
            data_version = _data_version(connection)
        except sqlite3.Error:
            return  # whoever calls next is told
        if data_version != self._data_version:
            self._data_version = data_version
            self._shared_until = realtime.monotonic() + SHARED_FOR_S
            if self._watched:
                self._tell(self._on_change)

    def _answers(self, connection: sqlite3.Connection, calls: list[Call]) -> list[Answer]:
        calls = [call for call in calls if not call.future.cancelled()]
        if all(call.read is not None for call in calls):
            # Most polls find nothing due: they take no lock.
            answers = self._transaction(connection, "BEGIN", calls)
            calls = [
                call
                for call, answer in zip(calls, answers, strict=True)
                if answer.result is None and answer.error is None
            ]
            answers = [
                answer
                for answer in answers
                if answer.result is not None or answer.error is not None
            ]
        else:
            answers = []
        if calls:
            answers += self._transaction(connection, "BEGIN IMMEDIATE", calls)
            self._committed_at = realtime.monotonic()
        return answers

    def _transaction(
        self, connection: sqlite3.Connection, begin: str, calls: Sequence[Call]
    ) -> list[Answer]:
        """Makes the calls in one transaction; one that fails does not undo the others."""

        def attempt() -> list[Answer]:
            try:
                if begin != "BEGIN":
                    self._set_synchronous(connection, any(call.durable for call in calls))
                connection.execute(begin)
                answers = []
                for call in calls:
                    work = call.read if begin == "BEGIN" else call.write or call.read
                    assert work is not None
                    answers.append(Answer(call.future, work(connection), None))
                connection.execute("COMMIT")
                return answers
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

        try:
            return self._patiently(attempt, BUSY_DEADLINE_S)
        except Exception as error:
            if _is_undecodable(error) and connection.text_factory is str:
                connection.text_factory = _decode_leniently
                try:
                    return self._transaction(connection, begin, calls)
                finally:
                    connection.text_factory = str
            if len(calls) == 1 or isinstance(self.explain(error), StoreUnavailableError):
                return [Answer(call.future, None, self.explain(error)) for call in calls]
        return [self._transaction(connection, begin, [call])[0] for call in calls]

    def _set_synchronous(self, connection: sqlite3.Connection, durable: bool) -> None:
        synchronous = self._synchronous if durable else "NORMAL"
        if synchronous != self._synchronous_now:
            # A script, for a statement that is prepared again takes no effect when it is repeated.
            connection.executescript(f"PRAGMA synchronous = {synchronous}")
            self._synchronous_now = synchronous

    def _patiently(self, attempt: Callable[[], _T], deadline_s: float) -> _T:
        """Tries again while somebody else has the database locked."""
        deadline = realtime.monotonic() + deadline_s
        while True:
            try:
                return attempt()
            except sqlite3.OperationalError as error:
                if not is_busy(error) or realtime.monotonic() >= deadline:
                    raise
            # SQLite's own busy handler sleeps ever longer and misses the gaps of a busy writer.
            self._pause.wait(uniform(0.0002, 0.001))

    def explain(self, error: Exception) -> Exception:
        """What an error means to the caller."""
        code = _code(error) if isinstance(error, sqlite3.Error) else 0
        if code == 0:
            return error
        if code in (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG):
            return ValueError(f"{self._place} refuses a value: {error}")
        if is_busy(error):
            return StoreUnavailableError(
                f"{self._place} was locked by somebody else for too long ({error})"
            )
        kind = StoreUnavailableError if code in _UNAVAILABLE else StoreMisconfiguredError
        explained = kind(f"{self._place}: {error}")
        explained.__cause__ = error
        return explained


def is_busy(error: Exception) -> bool:
    """Whether somebody else holds a lock on the database."""
    return isinstance(error, sqlite3.Error) and _code(error) in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
    )


def _data_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


def _code(error: sqlite3.Error) -> int:
    """The primary code of an error; 0 where it is the driver's own."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_undecodable(error: Exception) -> bool:
    """Whether a text in the database is no UTF-8; the driver has no type or code for it."""
    return isinstance(error, sqlite3.OperationalError) and "decode to UTF-8" in str(error)


def _decode_leniently(text: bytes) -> str:
    return text.decode(errors="replace")


def _give(answers: Sequence[Answer]) -> None:
    for future, result, error in answers:
        if not future.done():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
