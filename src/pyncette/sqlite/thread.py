"""The one thread that owns a SQLite connection, and the queue of calls in front of it.

All calls that are queued when the thread is free run in one transaction, so that they share the
cost of a commit. It knows transactions, other users of the file, and what to do if the file is
deleted or replaced; it knows nothing of tables and records, which are in ``pyncette.sqlite``.

If a text in the database is not UTF-8, the calls that read it are repeated with a
``text_factory`` other than ``str``, see ``pyncette.sqlite.table.decode_leniently``.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from pyncette import chance
from pyncette.clock import realtime
from pyncette.errors import StoreError, StoreUnavailableError
from pyncette.sqlite.errors import explained, is_busy, is_undecodable
from pyncette.sqlite.files import OpenedFiles
from pyncette.sqlite.table import decode_leniently

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S: Final = 0.03
"""How often a watched file is checked for writes of other processes; a check takes some 3 µs."""

GAP_S: Final = 0.0005
"""Pause between two write transactions while other processes write to the file, too. Without it, a
process that commits without a pause would lock out all others until they give up."""

SHARED_FOR_S: Final = 2.0
"""How long the file counts as shared after a write by another connection."""

BUSY_DEADLINE_S: Final = 5.0
"""How long a transaction waits for a lock on the file."""

OPENING_DEADLINE_S: Final = 10.0
"""The same, while the file is being opened."""

OTHER_CALLS_MAX: Final = 500
"""Maximum calls that are not urgent in one transaction; the others wait for the next one."""

Work = Callable[[sqlite3.Connection], Any]

Connect = Callable[[bool], sqlite3.Connection]
"""Opens the database. The argument tells whether it may create a missing file and table."""

_T = TypeVar("_T")


class Call(NamedTuple):
    """A call of the connection. It may be tried several times.

    Attributes:
        read: Answers without writing, or returns None if it cannot.
        write: Answers within a write transaction. None for a call that only reads.
        durable: Its writes must survive a crash of the machine.
        future: Gets the answer.
    """

    read: Work | None
    write: Work | None
    durable: bool
    future: asyncio.Future[Any]


class Answer(NamedTuple):
    """The outcome of a call: ``error`` if it failed, else ``result``."""

    future: asyncio.Future[Any]
    result: Any
    error: BaseException | None


class ConnectionThread:
    """Owns a connection from its opening to its closing.

    Args:
        place: The name of the database, for messages.
        connect: Opens it; called in the thread, and again while another process has it locked, or
            if the file at the path was replaced.
        path: The path of the file; None for a database in memory, which no other connection can
            open.
        synchronous: ``FULL``: a transaction with a durable call waits for the disk. ``NORMAL``: no
            transaction waits.
        on_change: Called in the event loop when another connection wrote, while ``watch`` is on.
    """

    def __init__(
        self,
        place: str,
        connect: Connect,
        path: str | None,
        synchronous: str,
        on_change: Callable[[], None],
    ) -> None:
        self._place = place
        self._connect = connect
        self._path = path
        self._shared = path is not None
        self._connection: sqlite3.Connection | None = None
        self._files: OpenedFiles | None = None
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
        """Completes the queued calls, closes the database and ends the thread."""
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
        """Makes a call in the thread, and returns its answer.

        Urgent calls are made before others; calls of the same kind keep their order. See ``Call``
        for the other arguments.

        Raises:
            StoreError: The call could not be made.
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
        """Sets whether changes by other connections are reported."""
        if watched != self._watched and self._shared:
            with self._condition:
                self._watched = watched
                self._condition.notify()

    # What follows runs in the thread.

    def _run(self) -> None:
        try:
            self._patiently(lambda: self._open(True), OPENING_DEADLINE_S)
        except Exception as error:
            self._tell(_fail, self._opened, explained(error, self._place))
            self._tell(_finish, self._closed)
            return
        try:
            self._tell(_finish, self._opened)
            while calls := self._next_calls():
                try:
                    answers = self._answers(calls)
                except Exception as error:
                    # Without this the callers would wait for ever.
                    told = explained(error, self._place)
                    answers = [Answer(call.future, None, told) for call in calls]
                if answers:
                    self._tell(_give, answers)
        finally:
            self._disconnect()
            self._tell(_finish, self._closed)

    def _open(self, making: bool) -> sqlite3.Connection:
        self._connection = connection = self._connect(making)
        self._synchronous_now = ""
        if self._path is not None:
            self._data_version = _data_version(connection)
            self._files = OpenedFiles(self._path)
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> sqlite3.Connection:
        """Returns a connection to the file that is at the path now.

        Raises:
            StoreUnavailableError: The file was deleted or replaced, and the file at the path now
                cannot be used.
        """
        if self._connection is not None and (self._files is None or not self._files.moved()):
            return self._connection
        self._let_go()
        try:
            connection = self._open(False)
        except Exception as error:
            raise StoreUnavailableError(
                f"{self._place} was deleted, moved or replaced while this process had it open, "
                f"and what is at its path now cannot be used: {error}. Nothing is written until "
                "a good database is there. Put it back, or restart the workers, which then begin "
                "with an empty one"
            ) from error
        logger.warning(
            "%s was deleted or replaced while this process had it open. It goes on with the "
            "database that is at the path now; what was written to the former one is not in it",
            self._place,
        )
        if self._watched:
            self._tell(self._on_change)
        return connection

    def _let_go(self) -> None:
        """Closes the old database, so that its log is not applied to the one at the path.

        Raises:
            StoreUnavailableError: Another process still uses the old database.
        """
        connection, files = self._connection, self._files
        if connection is None or files is None:
            return
        if files.database_moved and files.log_is_ours:
            # SQLite takes the log beside a database for its own: a process that opens the path
            # would replay the former database's log into the new one. So the log is emptied first,
            # into the former database, wherever that was moved.
            try:
                [busy, *_] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.Error as error:
                busy = error
            if busy:
                raise StoreUnavailableError(
                    f"{self._place} was deleted, moved or replaced while processes had it open, "
                    "and its write-ahead log is still in use by another process. Nothing is "
                    "written until that one has ended. Stop the workers before you replace a file"
                )
        self._disconnect()

    def _tell(self, callback: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            # The loop was closed with the context still open: no caller waits any more.
            self._closing = True

    def _next_calls(self) -> list[Call]:
        """Returns all calls of the next transaction; none if the thread must end."""
        while True:
            with self._condition:
                if not self._urgent and not self._others and not self._closing:
                    self._condition.wait(LOOK_INTERVAL_S if self._watched else None)
                waiting = bool(self._urgent or self._others)
                closing = self._closing
            if closing and not waiting:
                return []
            if self._shared:
                self._look()
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

    def _look(self) -> None:
        """Detects writes of other connections."""
        if self._connection is None:
            return
        try:
            data_version = _data_version(self._connection)
        except sqlite3.Error:
            return  # the next call gets the error
        if data_version != self._data_version:
            self._data_version = data_version
            self._shared_until = realtime.monotonic() + SHARED_FOR_S
            if self._watched:
                self._tell(self._on_change)

    def _answers(self, calls: list[Call]) -> list[Answer]:
        calls = [call for call in calls if not call.future.cancelled()]
        try:
            connection = self._connected()
        except StoreUnavailableError as error:
            return [Answer(call.future, None, error) for call in calls]
        answers: list[Answer] = []
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
        if calls:
            written = self._transaction(connection, "BEGIN IMMEDIATE", calls)
            self._committed_at = realtime.monotonic()
            if self._files is not None and self._files.moved():
                # It went into a file that may have been gone already.
                lost = StoreUnavailableError(
                    f"{self._place} was deleted or replaced while it was written to"
                )
                written = [Answer(call.future, None, lost) for call in calls]
            answers += written
        return answers

    def _transaction(
        self, connection: sqlite3.Connection, begin: str, calls: Sequence[Call]
    ) -> list[Answer]:
        """Makes the calls in one transaction; a call that fails does not undo the others."""

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
            if is_undecodable(error) and connection.text_factory is str:
                connection.text_factory = decode_leniently
                try:
                    return self._transaction(connection, begin, calls)
                finally:
                    connection.text_factory = str
            told = explained(error, self._place)
            if len(calls) == 1 or isinstance(told, StoreUnavailableError):
                return [Answer(call.future, None, told) for call in calls]
        return [self._transaction(connection, begin, [call])[0] for call in calls]

    def _set_synchronous(self, connection: sqlite3.Connection, durable: bool) -> None:
        synchronous = self._synchronous if durable else "NORMAL"
        if synchronous != self._synchronous_now:
            # A script, for a statement that is prepared again takes no effect when it is repeated.
            connection.executescript(f"PRAGMA synchronous = {synchronous}")
            self._synchronous_now = synchronous

    def _patiently(self, attempt: Callable[[], _T], deadline_s: float) -> _T:
        """Retries while another connection has the database locked."""
        deadline = realtime.monotonic() + deadline_s
        while True:
            try:
                return attempt()
            except sqlite3.OperationalError as error:
                if not is_busy(error) or realtime.monotonic() >= deadline:
                    raise
            # SQLite's own busy handler sleeps ever longer and misses the gaps of a busy writer.
            self._pause.wait(chance.current().uniform(0.0002, 0.001))


def _data_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


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
