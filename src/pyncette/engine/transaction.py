"""The transaction of a run: what its body does in a database, and its outcome, commit together.

The last statement of the transaction writes the outcome, with the condition that this worker still
holds the record. If it does not, the transaction is rolled back. So whatever happens, either both
are there or neither, and a run whose worker died is repeated without a trace of the first one.

Each statement that is made here has the deadline of a call to the store: while the transaction ends
the run cannot be cancelled, so a server that has vanished would hold it, and the worker that wants
to close, for ever.

It is the same change as that of the write queue, which skips a run that was settled here. If the
answer to the commit is lost, the record tells what became of it: a heartbeat that is applied proves
that it was rolled back, since the transaction would hold the record, or would have changed it. A
transaction that is still open at the server when the lease ends is not waited for: the run is lost,
and is repeated by whoever finds its record once it is free.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pyncette.clock import realtime
from pyncette.connections import Answer, Link, link_of
from pyncette.connections.links import Do, at_once
from pyncette.desk import Desk
from pyncette.engine.background import finished
from pyncette.engine.rules import Verdict
from pyncette.engine.writes import Next, again
from pyncette.errors import (
    DeadlineExceededError,
    PyncetteException,
    StoreUnavailableError,
    describe,
)
from pyncette.store import Applied, Refused, Result, Write, expectation_holds
from pyncette.store.record import DELETE
from pyncette.store.sql.joined import Joined

if TYPE_CHECKING:
    from pyncette.engine.execution import Execution

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

SAVEPOINT: Final = "pyncette_run"
"""It is gone at the end if the block has ended the transaction itself, or a statement has."""

PAUSE_INITIAL_S: Final = 0.01
PAUSE_MAX_S: Final = 0.2
"""Delay between retries of the outcome while another transaction holds the record."""


class _Fate(Enum):
    """What became of a commit whose answer was lost."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    """Or never made, or nobody can tell: what the run does next is refused if it was made."""

    OPEN = "open"
    """The server holds the record for it still, at the end of the lease."""


class _BoundedLink(Link):
    """A connection whose statements have the deadline of a call to the store.

    A driver that is interrupted closes the connection, or gives it up.
    """

    def __init__(self, link: Link, deadline_s: float) -> None:
        self._link = link
        self._deadline_s = deadline_s
        self.connection = link.connection
        self.name = link.name
        self.dialect = link.dialect

    async def _bounded(self, what: str, call: Awaitable[_T]) -> _T:
        try:
            async with realtime.timeout(self._deadline_s) as deadline:
                return await call
        except TimeoutError as error:
            if not deadline.expired():  # out of the driver, and not ours
                raise
            raise DeadlineExceededError(what, self._deadline_s) from error

    async def run(self, statement: str, *parameters: Any) -> Answer:
        what = " ".join(statement.split(maxsplit=2)[:2])
        return await self._bounded(what, self._link.run(statement, *parameters))

    async def check_inside(self) -> None:
        await self._link.check_inside()

    async def begin(self) -> None:
        await self._bounded("BEGIN", self._link.begin())

    @property
    def patience_s(self) -> float:
        return self._link.patience_s

    async def flush(self) -> None:
        # What the application has collected may take as long as its own statements.
        await self._link.flush()

    async def commit(self) -> None:
        await self._bounded("COMMIT", self._link.commit())

    async def rollback(self, error: BaseException | None = None) -> None:
        await self._bounded("ROLLBACK", self._link.rollback(error))


class Transaction:
    """The transaction of a run; see ``pyncette.model.Context.transaction``.

    A context manager: ``async with`` in the event loop, ``with`` in a thread. It gives the
    connection.
    """

    def __init__(self, execution: Execution, connection: Any) -> None:
        """Begins nothing yet."""
        self._execution = execution
        self._connection = connection
        self._worker = execution.parts.worker
        self._ending = AsyncExitStack()
        self._link: Link
        self._joined: Joined
        self._limit: asyncio.Timeout | None = None
        self._open = False
        self._left_early = False
        self._end_task: asyncio.Task[None] | None = None
        self._desk: Desk | None = None

    # In the event loop.

    async def __aenter__(self) -> Any:
        await self._begin(None)
        if self._joined.seconds_max is not None:
            self._limit = realtime.timeout(self._joined.seconds_max)
            await self._limit.__aenter__()
        return self._link.connection

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._limit is not None:
            try:
                await self._limit.__aexit__(kind, error, traceback)
            except TimeoutError as late:
                late.args = (self._too_long(),)
                await self._to_its_end(late)
                raise
        if error is None:
            try:
                await self._link.flush()
            except BaseException as failed:
                await self._to_its_end(failed)
                raise
        await self._to_its_end(error)

    def _too_long(self) -> str:
        return (
            f"The transaction of {self._execution.label} was open for more than "
            f"{self._joined.seconds_max:g} s, in which nobody else could write to the "
            "file: do what takes long before it or after it"
        )

    async def _to_its_end(self, error: BaseException | None) -> None:
        """Ends the transaction, also if the run is cancelled meanwhile."""
        ending = self._end_task = asyncio.Task(self._end(error), name="pyncette transaction")
        if await finished(ending, lambda: None):
            with suppress(Exception):
                ending.result()
            raise asyncio.CancelledError
        ending.result()

    # In a thread.

    def __enter__(self) -> Any:
        self._served(lambda: self._begin(self._do))
        return self._link.connection

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        async def end(error: BaseException | None) -> None:
            try:
                if error is None:
                    await self._link.flush()
            except BaseException as failed:
                await self._to_its_end(failed)
                raise
            await self._to_its_end(error)

        self._served(lambda: end(error))

    def _served(self, call: Callable[[], Any]) -> None:
        loop = self._worker.background.loop
        with suppress(RuntimeError):
            if asyncio.get_running_loop() is loop:
                raise PyncetteException(
                    "In the event loop, write 'async with context.transaction()': 'with' is for "
                    "functions that run in a thread"
                )
        try:
            with Desk() as self._desk:
                self._desk.serve(loop, call())
        finally:
            self._desk = None

    async def _do(self, work: Callable[[], _T]) -> _T:
        if self._desk is None:  # the function has ended
            return await asyncio.to_thread(work)
        return await self._desk.do(work)

    # Both.

    async def _begin(self, do: Do | None) -> None:
        """Begins the transaction, and checks that its end can settle the run."""
        execution = self._execution
        rare = execution.rarely()
        if execution.parts.at_most_once:
            raise PyncetteException(
                f"{execution.label} is at most once: its run was settled before it began. "
                "context.transaction() is for tasks that run at least once"
            )
        if rare.settled or rare.transaction is not None:
            raise PyncetteException(
                f"The run of {execution.label} has had its transaction: do all that belongs "
                "together in one"
            )
        self._check_run()
        store, clock = self._worker.store, self._worker.clock
        try:
            rare.transaction = self
            self._ending.callback(self._left)
            # Not while the clock is held: others, whose turn it is, may sleep on it.
            await self._ending.enter_async_context(store.turn(self._check_waiting))
            with clock.hold():
                connection = self._connection
                if connection is None:
                    lent = store.lent(do or at_once)
                    connection = await self._ending.enter_async_context(lent)
                self._link = _BoundedLink(link_of(connection, do), self._worker.store.deadline_s)
                self._joined = await store.joined(self._link)
                await self._joined.begin()
                try:
                    self._check_run()
                    await self._joined.check(settles=True)
                    await self._link.run(f"SAVEPOINT {SAVEPOINT}")
                    self._check_run()
                except BaseException as error:
                    await self._rolled_back(error)
                    raise
            self._open = True
        except BaseException:
            await self._ending.aclose()
            raise

    def _left(self) -> None:
        self._execution.rarely().transaction = None

    def _check_run(self) -> None:
        execution = self._execution
        if execution.is_lost:
            raise execution.lost()
        if execution.ended or self._left_early:
            raise PyncetteException(f"The run of {execution.label} has ended already")

    def _check_waiting(self) -> None:
        self._check_run()
        if self._worker.clock.microseconds() >= (self._execution.reading.record.due_at or 0):
            raise StoreUnavailableError(
                f"The transaction of {self._execution.label} has waited for those of other runs "
                "until its lease ended: make them shorter, run fewer at once, or make the lease "
                "longer"
            )

    async def leave(self, error: BaseException | None) -> BaseException | None:
        """Undoes it at the end of the body, if that has left it open.

        If another task of the body is ending it, the run waits for that: its outcome is in there.

        Args:
            error: What the body has raised.

        Returns:
            What is the error of the body now.
        """
        if self._end_task is not None:
            if await finished(self._end_task, lambda: None):
                raise asyncio.CancelledError
            failed = None if self._end_task.cancelled() else self._end_task.exception()
            return failed if error is None else error
        if not self._open:  # in another task, it is beginning
            self._left_early = True
            return self._unfinished() if error is None else error
        self._open = False
        limit = self._limit
        if limit is not None and not limit.expired():
            limit.reschedule(None)
        elif limit is not None and issubclass(type(error), asyncio.CancelledError):
            runner = asyncio.current_task()
            if runner is not None and not runner.uncancel():
                error = TimeoutError(self._too_long())
        if error is None:
            error = self._unfinished()
        undoing = asyncio.Task(self._undone(error), name="pyncette transaction")
        if await finished(undoing, lambda: None):
            return asyncio.CancelledError()
        return error

    def _unfinished(self) -> PyncetteException:
        return PyncetteException(
            f"The function of {self._execution.label} has ended in the middle of its transaction, "
            "which was rolled back: leave the block of context.transaction() before the end"
        )

    async def _undone(self, error: BaseException) -> None:
        async with self._ending:
            with self._worker.clock.hold():
                await self._rolled_back(error)

    async def _end(self, error: BaseException | None) -> None:
        """Settles the run and commits; or undoes everything."""
        if not self._open:
            if error is None:
                self._check_run()
                raise PyncetteException(
                    f"The transaction of {self._execution.label} was rolled back when its function "
                    "ended, before the block"
                )
            return
        self._open = False
        async with self._ending:
            with self._worker.clock.hold():
                if error is not None:
                    await self._rolled_back(error)
                    return
                rare = self._execution.rarely()
                rare.settling = True
                try:
                    settled = await self._settled()
                    await self._committed(settled)
                finally:
                    rare.settling = False

    async def _settled(self) -> tuple[Write, int] | None:
        """Writes the outcome; returns it, and the version of the record after it."""
        try:
            try:
                await self._link.run(f"RELEASE SAVEPOINT {SAVEPOINT}")
            except DeadlineExceededError:
                raise
            except Exception as error:
                raise PyncetteException(
                    f"The transaction of {self._execution.label} cannot be settled: the block has "
                    "ended it (by a commit, a rollback, or a statement that commits by itself), "
                    f"or a statement in it has failed: {describe(error)}"
                ) from error
            return await self._write_outcome()
        except BaseException as error:
            await self._rolled_back(error)
            raise

    async def _write_outcome(self) -> tuple[Write, int] | None:
        execution = self._execution
        pause = PAUSE_INITIAL_S
        while True:
            now = self._worker.clock.microseconds()
            write = execution.outcome(now)
            result = await self._joined.write(write, now)
            if isinstance(result, Applied):
                return write, result.version
            found = execution.compare(result.current)
            if found is not Verdict.HELD:
                rare = execution.rarely()
                if rare.replaced_by_body:
                    # What the body has put in the place of its own run holds.
                    return None
                raise execution.lost()
            if expectation_holds(write, result.current):
                if now >= (execution.reading.record.due_at or 0):
                    raise StoreUnavailableError(
                        f"The record of {execution.label} was locked by an open transaction until "
                        "its lease ended"
                    )
                await realtime.sleep(pause)
                pause = min(2 * pause, PAUSE_MAX_S)

    async def _committed(self, settled: tuple[Write, int] | None) -> None:
        try:
            await self._link.commit()
        except BaseException as error:
            if self._joined.seconds_max is not None:
                # Nobody can write before that, not even what asks what became of it.
                await self._rolled_back(error)
            fate = _Fate.ROLLED_BACK if settled is None else await self._fate_of(settled[0])
            if fate is not _Fate.COMMITTED:
                await self._rolled_back(error)
                if fate is _Fate.OPEN:
                    raise self._execution.lost() from error
                raise
            logger.info(
                "The answer to the commit of %s was lost; its record tells that it was made: %s",
                self._execution.label,
                describe(error),
            )
        if settled is not None:
            self._execution.was_settled(*settled)

    async def _fate_of(self, write: Write) -> _Fate:
        """Returns what became of a commit without an answer."""
        probe = _Probe(self._execution, write)
        self._worker.writes.add(probe)
        return await probe.fate

    async def _rolled_back(self, error: BaseException) -> None:
        """Undoes everything. If that fails, the connection is lost, and the server does it."""
        try:
            await self._link.rollback(error)
        except Exception as failed:
            logger.debug("A transaction was not rolled back: %s", describe(failed))


class _Probe:
    """An entry of the write queue: a heartbeat whose answer tells what became of a commit.

    It is retried while the transaction may still be open at the server, until the lease ends.
    """

    def __init__(self, execution: Execution, write: Write) -> None:
        self.fate: asyncio.Future[_Fate] = asyncio.get_running_loop().create_future()
        self._execution = execution
        self._written = write

    def build(self, now: int) -> Write | None:
        return self._execution.extension(now)

    def answered(self, answer: Result, write: Write, now: int) -> Next:
        execution = self._execution
        if isinstance(answer, Applied):
            execution.was_extended(answer, write)
            self._finish(_Fate.ROLLED_BACK)
        elif isinstance(answer, Refused):
            if answer.current is None and self._written.change is DELETE:
                self._finish(_Fate.COMMITTED)
                return Next.DONE
            found = execution.compare(answer.current)
            if found is Verdict.HELD:
                following = again(write, answer)
                if following is Next.RETRY or now < (execution.reading.record.due_at or 0):
                    return following
                # Who has the answer to come may be gone, and hold the record for hours.
                execution.rarely().loss = (
                    "whether its transaction was committed is not known: the answer was lost, and "
                    "its record was locked until its lease ended"
                )
                self._finish(_Fate.OPEN)
            else:
                committed = found is Verdict.SETTLED
                self._finish(_Fate.COMMITTED if committed else _Fate.ROLLED_BACK)
        elif execution.may_repeat(answer, now):
            return Next.BACK_OFF
        else:
            self._finish(_Fate.ROLLED_BACK)
        return Next.DONE

    def abandon(self, error: Exception) -> None:
        self._finish(_Fate.ROLLED_BACK)

    def _finish(self, fate: _Fate) -> None:
        if not self.fate.done():
            self.fate.set_result(fate)
