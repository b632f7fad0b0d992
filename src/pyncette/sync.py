"""The calls of an open app for code that is not asynchronous: Django, Flask, scripts, notebooks.

All apps of a process share one thread with an event loop. It starts with the first call, and ends
with the process. A forked process starts a thread and connections of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import inspect
import logging
import os
import threading
import weakref
from collections.abc import (
    Callable,
    Coroutine,
    Generator,
    Iterable,
)
from contextlib import AbstractAsyncContextManager
from functools import update_wrapper
from typing import Any, Concatenate, Final, ParamSpec, Protocol, Self, TypeVar

from pyncette.clock import realtime
from pyncette.connections import is_argument, link_of
from pyncette.context import PyncetteContext
from pyncette.desk import PAGE, Desk, result_of
from pyncette.errors import PyncetteException, describe
from pyncette.model import TaskState, Where
from pyncette.task import Task

logger: Final = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Item = TypeVar("_Item")

EXIT_PATIENCE_S: Final = 10.0
"""How long the end of the process waits for connections to close."""

EXIT_GRACE_S: Final = 1.0


class _Thread:
    """The thread with the event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        # Not awaited by the interpreter when it ends: `_at_exit` closes the apps first.
        self.thread = threading.Thread(target=self._run, name="pyncette sync", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def do(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Waits for a coroutine that runs in the thread; an interrupted wait cancels it."""
        if threading.current_thread() is self.thread:
            work.close()
            raise PyncetteException(
                "A call of app.sync() would wait for its own event loop: use the asynchronous "
                "context here"
            )
        if not self.thread.is_alive():
            work.close()
            raise PyncetteException(
                "This was begun by the process that this one was forked from: begin it anew here"
            )
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return result_of(future)
        finally:
            future.cancel()


class _Process:
    """What the apps of this process share."""

    def __init__(self) -> None:
        self.contexts: weakref.WeakSet[SyncContext] = weakref.WeakSet()
        self.opened: set[SyncContext] = set()
        self._lock = threading.Lock()
        self._thread: _Thread | None = None
        self._of_parent: list[object] = []

    def shared_thread(self) -> _Thread:
        """Returns the thread; starts it if this is the first call."""
        with self._lock:
            if self._thread is None:
                self._thread = _Thread()
            return self._thread

    def forked(self) -> None:
        """In a forked process: leaves alone what the parent has opened; only it may close it."""
        self._lock = threading.Lock()
        # Kept, because their finalizers would close what the parent still uses.
        self._of_parent.append((self._thread, [one._abandon() for one in list(self.contexts)]))
        self._thread = None
        self.opened.clear()

    def ends(self) -> None:
        """Closes what is open, side by side: a store that does not answer delays no other one."""
        closing = [
            future
            for context in list(self.opened)
            if (future := context._begin_closing(EXIT_PATIENCE_S)) is not None
        ]
        # A cancelled step of closing may take a moment longer.
        done, left = concurrent.futures.wait(closing, EXIT_PATIENCE_S + EXIT_GRACE_S)
        for future in done:
            error = None if future.cancelled() else future.exception()
            if error is not None:
                logger.warning("An app was not closed as it should be: %s", describe(error))
        if left:
            logger.warning(
                "%d apps were not closed within %g s: their stores do not answer",
                len(left),
                EXIT_PATIENCE_S,
            )


_process: Final = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.forked)
atexit.register(_process.ends)


class Opens(Protocol):
    """An app."""

    def create(self, *, fixtures: bool = True) -> AbstractAsyncContextManager[PyncetteContext]:
        """Opens it, with or without the fixtures that only executions need."""
        ...


class _Open:
    """An app that is open in the thread, until it is closed."""

    def __init__(self, thread: _Thread, app: Opens) -> None:
        self.thread = thread
        self.context: PyncetteContext = thread.do(self._open(app))

    async def _open(self, app: Opens) -> PyncetteContext:
        # Opened and closed by one task, as the context variables of a store may ask for.
        opened: asyncio.Future[PyncetteContext] = asyncio.get_running_loop().create_future()
        self._end = asyncio.Event()
        self._kept = asyncio.ensure_future(self._keep(app, opened))
        try:
            either: list[asyncio.Future[Any]] = [opened, self._kept]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._kept.cancel()
            raise
        if not opened.done():
            await self._kept  # raises why it was not opened
        return opened.result()

    async def _keep(self, app: Opens, opened: asyncio.Future[PyncetteContext]) -> None:
        # Nothing runs here. Fixtures serve executions, and the health check is one of them: its
        # port belongs to the worker.
        async with app.create(fixtures=False) as context:
            opened.set_result(context)
            await self._end.wait()

    async def close(self, patience: float | None) -> None:
        self._end.set()
        async with realtime.timeout(patience):
            await self._kept


def _blocking(
    method: Callable[Concatenate[PyncetteContext, _P], Coroutine[Any, Any, _T]],
) -> Callable[[Callable[..., Any]], Callable[Concatenate[SyncContext, _P], _T]]:
    """Gives what it decorates the signature of a method, which it calls in the thread."""

    def call(self: SyncContext, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        opened = self._opened_here()
        connection = kwargs.get("connection")
        if connection is not None and not is_argument(connection):
            return _call_joined(opened, method, connection, args, kwargs)
        return opened.thread.do(method(opened.context, *args, **kwargs))

    return lambda _: update_wrapper(call, method)


def _call_joined(
    opened: _Open,
    method: Callable[..., Coroutine[Any, Any, _T]],
    connection: Any,
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> _T:
    """Makes a call in a transaction of the caller, who alone uses its connection.

    The statements are run in this thread; the event loop decides which.
    """
    with Desk() as desk:
        options = {**options, "connection": link_of(connection, desk.do)}
        return desk.serve(opened.thread.loop, method(opened.context, *args, **options))


_READ_BY_CALLER: Final = ("instances", "names")
_TOLD_TO_CALLER: Final = ("progress", "on_failure")
"""Parameters of calls for many instances."""


def _served(
    method: Callable[Concatenate[PyncetteContext, _P], Coroutine[Any, Any, _T]],
) -> Callable[[Callable[..., Any]], Callable[Concatenate[SyncContext, _P], _T]]:
    """As ``_blocking``, for a call that reads what its caller yields, or tells it of progress."""
    signature = inspect.signature(method)

    def call(self: SyncContext, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        with Desk() as desk:
            given = signature.bind(None, *args, **kwargs).arguments
            for name in _READ_BY_CALLER:
                if isinstance(given.get(name), Iterable):
                    given[name] = desk.read(given[name])
            for name in _TOLD_TO_CALLER:
                if given.get(name) is not None:
                    given[name] = desk.told(given[name])
            del given["self"]
            many: Callable[..., Coroutine[Any, Any, _T]] = method
            opened = self._opened_here()
            return desk.serve(opened.thread.loop, many(opened.context, **given))

    return lambda _: update_wrapper(call, method)


class SyncContext:
    """The calls of ``PyncetteContext``, each of which waits for its answer.

    The app is opened by the first call, and closed at the end of the process, or by ``close``. It
    may be used from any thread. It runs no tasks: workers do. So no fixture is opened, and no
    health check listens. A call made in a coroutine blocks
    the event loop of that coroutine; use the asynchronous context there.

    All calls raise what the asynchronous ones raise. The first one may also raise what
    ``Pyncette.create`` raises.
    """

    def __init__(self, app: Opens) -> None:
        """Opens nothing yet."""
        self._app = app
        self._lock = threading.Lock()
        self._open: _Open | None = None
        _process.contexts.add(self)

    @_blocking(PyncetteContext.schedule_task)
    def schedule_task(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.schedule_task``."""

    @_blocking(PyncetteContext.unschedule_task)
    def unschedule_task(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.unschedule_task``."""

    @_blocking(PyncetteContext.retry_parked)
    def retry_parked(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.retry_parked``."""

    @_blocking(PyncetteContext.drop_parked)
    def drop_parked(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.drop_parked``."""

    @_blocking(PyncetteContext.get_task)
    def get_task(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.get_task``."""

    @_blocking(PyncetteContext.list_tasks)
    def list_tasks(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.list_tasks``."""

    @_blocking(PyncetteContext.count_tasks)
    def count_tasks(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.count_tasks``."""

    @_blocking(PyncetteContext.static_tasks)
    def static_tasks(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.static_tasks``."""

    @_blocking(PyncetteContext.unknown)
    def unknown(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.unknown``."""

    @_blocking(PyncetteContext.preview)
    def preview(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.preview``."""

    @_blocking(PyncetteContext.pause)
    def pause(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.pause``."""

    @_blocking(PyncetteContext.resume)
    def resume(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.resume``."""

    @_blocking(PyncetteContext.trigger)
    def trigger(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.trigger``."""

    @_blocking(PyncetteContext.pauses)
    def pauses(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.pauses``."""

    @_blocking(PyncetteContext.workers)
    def workers(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.workers``."""

    @_blocking(PyncetteContext.tasks_without_worker)
    def tasks_without_worker(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.tasks_without_worker``."""

    @_blocking(PyncetteContext.runs)
    def runs(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.runs``."""

    @_blocking(PyncetteContext.run_totals)
    def run_totals(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.run_totals``."""

    @_served(PyncetteContext.schedule_tasks)
    def schedule_tasks(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.schedule_tasks``.

        The instances are read, and ``progress`` and ``on_failure`` are called, in the thread of
        the caller: a query of its ORM may yield them. The same holds for the calls below.
        """

    @_served(PyncetteContext.unschedule_tasks)
    def unschedule_tasks(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.unschedule_tasks``."""

    @_served(PyncetteContext.sync_tasks)
    def sync_tasks(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.sync_tasks``."""

    @_served(PyncetteContext.retry_parked_tasks)
    def retry_parked_tasks(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.retry_parked_tasks``."""

    @_served(PyncetteContext.drop_parked_tasks)
    def drop_parked_tasks(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.drop_parked_tasks``."""

    @_served(PyncetteContext.pause_tasks)
    def pause_tasks(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.pause_tasks``."""

    @_served(PyncetteContext.resume_tasks)
    def resume_tasks(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.resume_tasks``."""

    @_served(PyncetteContext.trigger_tasks)
    def trigger_tasks(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.trigger_tasks``."""

    @_served(PyncetteContext.purge)
    def purge(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.purge``."""

    @_served(PyncetteContext.rebalance)
    def rebalance(self, *args: Any, **options: Any) -> Any:
        """As ``PyncetteContext.rebalance``."""

    def iter_tasks(
        self, task: Task, where: Where | None = None
    ) -> Generator[TaskState, None, None]:
        """As ``PyncetteContext.iter_tasks``."""
        opened = self._opened_here()
        found = opened.context.iter_tasks(task, where)

        async def page() -> list[TaskState]:
            states = []
            async for state in found:
                states.append(state)
                if len(states) == PAGE:
                    break
            return states

        try:
            while states := opened.thread.do(page()):
                yield from states
        finally:
            if opened.thread.thread.is_alive():  # not in a forked process
                opened.thread.do(found.aclose())

    def close(self) -> None:
        """Closes the app. The next call opens it again."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _opened_here(self) -> _Open:
        with self._lock:
            if self._open is None:
                self._open = _Open(_process.shared_thread(), self._app)
                _process.opened.add(self)
            return self._open

    def _close(self) -> None:
        with self._lock:
            opened, self._open = self._open, None
            _process.opened.discard(self)
        if opened is not None:
            opened.thread.do(opened.close(None))

    def _begin_closing(self, patience: float) -> concurrent.futures.Future[None] | None:
        """At the end of the process: closes the app, if it is open."""
        # Another thread may be opening it, from a store that does not answer.
        if not self._lock.acquire(timeout=EXIT_GRACE_S):
            return None
        opened, self._open = self._open, None
        self._lock.release()
        _process.opened.discard(self)
        if opened is None or not opened.thread.thread.is_alive():
            return None
        return asyncio.run_coroutine_threadsafe(opened.close(patience), opened.thread.loop)

    def _abandon(self) -> object:
        """After a fork, in the child: forgets what the parent has opened."""
        opened, self._open = self._open, None
        self._lock = threading.Lock()
        return opened
