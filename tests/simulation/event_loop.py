"""An event loop whose time is virtual and whose order is drawn from a seed.

It holds several *processes*: every callback belongs to the process that is named by the context
variable ``PROCESS`` in the context it runs in. Within a process callbacks run in the order in
which they were asked for, as asyncio promises; between processes the order is drawn, since real
ones promise each other nothing. A process can be frozen for a while (its callbacks and timers are
held back, its time goes on) and crashed (they are dropped for good).

Time moves when nothing is ready, to the next timer, and a little with each callback, so that a
program that never waits cannot stop it.
"""

from __future__ import annotations

import asyncio
import warnings
from asyncio import events
from bisect import insort
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from heapq import heappop, heappush
from itertools import count
from random import Random
from types import FunctionType, MethodType
from typing import Any, Final, TypeVar, cast

T = TypeVar("T")

WORLD: Final = "world"
"""The process of all that is no part of a worker: the store, the users' will, the checker."""

PROCESS: ContextVar[str] = ContextVar("process", default=WORLD)

CALLBACK_S: Final = 2e-5
"""What a callback takes."""

CALLBACKS_MAX: Final = 300_000
"""More callbacks than this in one simulation are taken for an endless loop."""


class Stuck(AssertionError):  # noqa: N818
    """The simulation does not come to its end."""


class _Handle(asyncio.TimerHandle):
    """A callback: what ``asyncio`` wants of a handle, without what a simulation never asks for."""

    __slots__ = ()
    _callback: Any
    _args: Any
    _cancelled: bool
    _context: Context
    _when: float

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: Context, when: float
    ) -> None:
        self._callback = callback
        self._args = args
        self._context = context
        self._cancelled = False
        self._when = when

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = self._args = None

    def __repr__(self) -> str:
        return f"<{self._callback!r} at {self._when}>"


class _Process:
    """What a process has asked for and is still to be run, in order."""

    __slots__ = ("name", "queue", "rank")

    def __init__(self, name: str, rank: int) -> None:
        self.name = name
        self.rank = rank
        self.queue: deque[_Handle] = deque()

    def __lt__(self, other: _Process) -> bool:
        return self.rank < other.rank


class SimulatedLoop(asyncio.AbstractEventLoop):
    """See the module.

    What each callback costs is most of what a simulation costs, so these paths are kept short.

    Attributes:
        errors: What was reported to the loop as an error that nobody handled.
        callbacks: How many callbacks have run.
        on_exit: Called with the process in which ``SystemExit`` was raised.
    """

    def __init__(self, order: Random, shuffled: bool = False) -> None:
        """Creates a loop at time 0.

        Args:
            order: Draws which process goes next, and which of several timers of one instant.
            shuffled: Draw the order within a process, too. More than asyncio allows itself: only
                for looking at code that must not depend on it.
        """
        self.errors: list[dict[str, Any]] = []
        self.on_exit: Callable[[str], None] | None = None
        self.callbacks = 0
        self._order = order
        self._shuffled = shuffled
        self._time = 0.0
        self._queues: dict[str, _Process] = {}
        # Those that have something to do, in the order in which each was first heard of.
        self._ready: list[_Process] = []
        self._ranks = count()
        self._timers: list[tuple[float, float, int, str, _Handle]] = []
        self._serial = 0
        self._frozen: set[str] = set()
        self._crashed: set[str] = set()
        self._disposed = False
        self._processes: dict[asyncio.Task[Any], str] = {}
        self._futures: list[asyncio.Future[Any]] = []
        self._task_factory: Any = None
        self._world = Context()
        self._world.run(PROCESS.set, WORLD)

    # What a simulation does to processes.

    def freeze(self, process: str) -> None:
        """Holds back all that the process does."""
        self._frozen.add(process)

    def thaw(self, process: str) -> None:
        """Lets it go on; whatever came due meanwhile runs now."""
        self._frozen.discard(process)

    def crash(self, process: str) -> None:
        """Drops all that the process has asked for, and will ask for."""
        self._crashed.add(process)
        dropped = self._queues.pop(process, None)
        if dropped is not None and dropped.queue:
            dropped.queue.clear()
            self._ready.remove(dropped)

    def alive(self, process: str) -> bool:
        """Whether the process has not crashed."""
        return process not in self._crashed

    def tasks_of(self, process: str) -> list[asyncio.Task[Any]]:
        """The tasks of a process that are not done."""
        return [
            task for task, owner in self._processes.items() if owner == process and not task.done()
        ]

    def unretrieved(self) -> list[tuple[str, BaseException]]:
        """Exceptions of tasks and futures that nobody has looked at; with the process of each."""
        found: list[tuple[str, BaseException]] = []
        for future in [*self._processes, *self._futures]:
            if future.done() and not future.cancelled() and cast(Any, future)._log_traceback:
                error = future.exception()
                assert error is not None
                owner = self._processes.get(future) if isinstance(future, asyncio.Task) else None
                found.append((owner or WORLD, error))
        return found

    def start(
        self, process: str, main: Coroutine[Any, Any, T], name: str | None = None
    ) -> asyncio.Task[T]:
        """Starts a task in a process, in a context of its own."""
        context = Context()
        context.run(PROCESS.set, process)
        return self.create_task(main, name=name, context=context)

    def at(self, when: float, callback: Callable[..., object], *args: Any) -> None:
        """Has something done by the world at a time."""
        if not self._disposed:
            handle = _Handle(callback, args, self._world.copy(), when)
            self._serial += 1
            heappush(self._timers, (when, self._order.random(), self._serial, WORLD, handle))

    # Running.

    def run_until_complete(self, future: Any) -> Any:
        """Runs until the future is done.

        Raises:
            Stuck: Nothing is left that could bring it about, or far too much is done.
        """
        task = asyncio.ensure_future(future, loop=self)
        events._set_running_loop(self)
        try:
            while not task.done():
                self._step()
        finally:
            events._set_running_loop(None)
        return task.result()

    def _step(self) -> None:
        timers = self._timers
        time = self._time
        while timers and timers[0][0] <= time:
            _, _, _, name, handle = heappop(timers)
            if not handle._cancelled and name not in self._crashed:
                self._enqueue(name, handle)
        ready = self._ready
        if self._frozen:
            ready = [process for process in ready if process.name not in self._frozen]
        if not ready:
            if not timers:
                raise Stuck(f"Nothing is left to be done at {time:.6f} s")
            self._time = timers[0][0]
            return
        process = ready[0] if len(ready) == 1 else ready[int(self._order.random() * len(ready))]
        queue = process.queue
        if self._shuffled and len(queue) > 1:
            queue.rotate(-int(self._order.random() * len(queue)))
        handle = queue.popleft()
        if not queue:
            self._ready.remove(process)
        if handle._cancelled:
            return
        self._time = time + CALLBACK_S
        self.callbacks += 1
        if self.callbacks > CALLBACKS_MAX:
            raise Stuck(f"{self.callbacks} callbacks by {time:.6f} s")
        try:
            handle._context.run(handle._callback, *handle._args)
        except SystemExit:
            if self.on_exit is None or process.name == WORLD:
                raise
            self.on_exit(process.name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            message = f"Exception in callback {handle!r}"
            self.call_exception_handler({"message": message, "exception": error, "handle": handle})

    def _enqueue(self, name: str, handle: _Handle) -> None:
        process = self._queues.get(name)
        if process is None:
            process = self._queues[name] = _Process(name, next(self._ranks))
        if not process.queue:
            insort(self._ready, process)
        process.queue.append(handle)

    # What asyncio asks of a loop.

    def time(self) -> float:
        return self._time

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        if context is None:
            context = copy_context()
        handle = _Handle(callback, args, context, self._time)
        process = context.get(PROCESS, WORLD)
        # A task announces itself by asking for its first step, whoever has made it. It does so in
        # C: most other callbacks are of these types.
        if callback.__class__ is not FunctionType and callback.__class__ is not MethodType:
            task = getattr(callback, "__self__", None)
            if isinstance(task, asyncio.Task) and task not in self._processes:
                self._register(task, process)
        if process not in self._crashed and not self._disposed:
            self._enqueue(process, handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._time + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        if context is None:
            context = copy_context()
        handle = _Handle(callback, args, context, when)
        process = context.get(PROCESS, WORLD)
        if process not in self._crashed and not self._disposed:
            self._serial += 1
            heappush(self._timers, (when, self._order.random(), self._serial, process, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def create_future(self) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.Future(loop=self)
        self._futures.append(future)
        if len(self._futures) > 20_000:
            self._futures = [
                future
                for future in self._futures
                if not future.done() or cast(Any, future)._log_traceback
            ]
        return future

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
        **options: Any,
    ) -> asyncio.Task[T]:
        task: asyncio.Task[T]
        if self._task_factory is not None:
            if context is not None:
                options["context"] = context
            task = self._task_factory(self, coro, **options)
        else:
            task = asyncio.Task(cast(Any, coro), loop=self, name=name, context=context, **options)
        return task

    def _register(self, task: asyncio.Task[Any], process: str) -> None:
        if len(self._processes) > 5_000:
            self._processes = {
                task: owner
                for task, owner in self._processes.items()
                if not task.done() or cast(Any, task)._log_traceback
            }
        self._processes[task] = process

    def set_task_factory(self, factory: Any) -> None:
        self._task_factory = factory

    def get_task_factory(self) -> Any:
        return self._task_factory

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._disposed:
            self.errors.append(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def get_exception_handler(self) -> Any:
        return None

    # Each future asks for it: this is ``False``, without a call of Python.
    get_debug = staticmethod(bool)

    def is_running(self) -> bool:
        return events._get_running_loop() is self

    def is_closed(self) -> bool:
        return self._disposed

    def close(self) -> None:
        """Ends what crashed or was left over, without a word and without an effect."""
        self._disposed = True
        self._queues.clear()
        self._timers.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ended: set[asyncio.Task[Any]] = set()
            # What is ended may start more, in its last words.
            while left := [
                task
                for task in {**self._processes, **dict.fromkeys(asyncio.all_tasks(self))}
                if task not in ended and not task.done()
            ]:
                for task in left:
                    ended.add(task)
                    _end(task)
        self._futures.clear()


def _end(task: asyncio.Task[Any]) -> None:
    cast(Any, task)._log_destroy_pending = False
    coroutine = task.get_coro()
    # User code that swallows everything may need to be told more than once.
    for _ in range(10):
        try:
            if coroutine is not None:
                coroutine.close()
        except BaseException:
            continue
        return
