"""The processes in which an open app runs the functions of tasks that compute.

Each process has a pool of its own, of one worker: if it is killed, that concerns one run only.
Processes are started anew ("spawn"), never forked from a program that has threads; they are started
when they are needed, and kept until the app is closed.
"""

from __future__ import annotations

import asyncio
import inspect
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Final, NoReturn

from pyncette.body import function_named, name_of
from pyncette.clock import Clock, realtime
from pyncette.errors import ProcessEndedError, describe
from pyncette.model import Context, Process
from pyncette.parameters import parameters_of

END_PATIENCE_S: Final = 10.0
"""How long closing waits for a process to end by itself."""

EXIT_LOOKS_MAX: Final = 1_000
EXIT_LOOK_S: Final = 0.01
"""How often, and at which interval, an ended process is asked for its exit code."""


class Processes:
    """At most so many functions at once, each in a process."""

    def __init__(self, clock: Clock) -> None:
        """Starts no process yet.

        Args:
            clock: A clock that a test moves stands still while a function runs.
        """
        self._clock = clock
        self._places: dict[Process, _Places] = {}

    async def run(
        self, option: Process, function: tuple[str, str], context: Any, view: Mapping[str, Any]
    ) -> None:
        """Runs a function in a process.

        If the caller is cancelled, the process is killed, and another one takes its place.

        Args:
            option: The option of the task. Tasks with an equal one share processes.
            function: The names of its module and of itself.
            context: The context of the run.
            view: The attributes of the context that the function sees; they are pickled.

        Raises:
            ProcessEndedError: The process has ended before the function has.
            LeaseLostException: The function had to wait for a process, and the lease was lost
                meanwhile: it was not called.
        """
        places = self._places.get(option)
        if places is None:
            places = self._places[option] = _Places(option.limit)
        waits = places.free.locked()
        async with places.free:
            if waits:
                await context.heartbeat()
            with self._clock.hold():
                await places.run(function, pickle.dumps(dict(view)))

    async def close(self) -> None:
        """Ends the processes, and waits for that. Call it when no function runs any more."""
        workers = [worker for places in self._places.values() for worker in places.idle]
        self._places.clear()
        for worker in workers:
            worker.end()
        if workers:
            await asyncio.to_thread(_await_end, workers)


class _Places:
    """The processes of one option."""

    def __init__(self, limit: int) -> None:
        self.free = asyncio.Semaphore(limit)
        self.idle: list[_Worker] = []

    async def run(self, function: tuple[str, str], view: bytes) -> None:
        worker, future = self._given_to_worker(function, view)
        done = asyncio.wrap_future(future)
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError:
            if not done.done():
                worker.kill()
                await _ended(done)
                worker.end()
                raise
        error = done.exception()
        if isinstance(error, BrokenProcessPool):
            worker.end()
            raise ProcessEndedError(await worker.exit_code()) from None
        self.idle.append(worker)
        if error is not None:
            raise error

    def _given_to_worker(
        self, function: tuple[str, str], view: bytes
    ) -> tuple[_Worker, Future[None]]:
        while self.idle:
            worker = self.idle.pop()
            try:
                return worker, worker.submit(function, view)
            except BrokenProcessPool:  # it has ended while it was idle
                worker.end()
        worker = _Worker()
        return worker, worker.submit(function, view)


async def _ended(done: asyncio.Future[None]) -> None:
    while not done.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([done])
    done.exception()  # it was retrieved


class _Worker:
    """A process."""

    def __init__(self) -> None:
        self._context = _Spawning()
        self._pool = ProcessPoolExecutor(1, self._context, _prepare)

    def submit(self, function: tuple[str, str], view: bytes) -> Future[None]:
        return self._pool.submit(_run, function, view)

    @property
    def process(self) -> SpawnProcess | None:
        return self._context.process

    async def exit_code(self) -> int | None:
        """The exit code of the ended process; None: it is not known in time."""
        if self.process is not None:
            for _ in range(EXIT_LOOKS_MAX):
                # Until the thread of the pool, which waits for it as well, has noted the code, it
                # seems that there is none.
                if self.process.exitcode is not None:
                    return self.process.exitcode
                await realtime.sleep(EXIT_LOOK_S)
        return None

    def kill(self) -> None:
        """Ends the process at once."""
        if self.process is not None:
            self.process.kill()

    def end(self) -> None:
        """Lets the process end."""
        self._pool.shutdown(wait=False)


class _Spawning(SpawnContext):
    """Starts the process of a pool, and keeps it, so that it can be killed."""

    def __init__(self) -> None:
        super().__init__()
        self.process: SpawnProcess | None = None
        self.Process = self._made  # type: ignore[misc, assignment]

    def _made(self, *args: Any, **options: Any) -> SpawnProcess:
        self.process = SpawnProcess(*args, **options)
        return self.process


def _await_end(workers: list[_Worker]) -> None:
    for worker in workers:
        if worker.process is not None:
            worker.process.join(END_PATIENCE_S)
            if worker.process.is_alive():
                worker.kill()
                worker.process.join()


# In the process.


class ProcessContext(Context):
    """What a function in a process gets in place of the context of its run.

    It has ``args``, ``scheduled_at``, ``attempt``, ``execution_id``, ``fencing_token``,
    ``deadline`` and ``previous_error``. Fixtures, context items and what middlewares set stay in
    the worker.

    Attributes:
        task_name: The name of the task or instance, as ``str(context.task)`` is elsewhere.
    """

    task_name: str

    def __init__(self, view: Mapping[str, Any]) -> None:
        """Has these attributes."""
        self.__dict__.update(view)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"The context has no {name!r} in a process of its own (executor=Process()): only "
            f"{', '.join(sorted(self.__dict__))} travel there"
        )

    def heartbeat(self) -> NoReturn:
        """Cannot be called here.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            "A function in a process of its own (executor=Process()) cannot extend its lease: give "
            "the task heartbeat=True, then its worker does"
        )

    def upcoming(self, n: int = 1) -> NoReturn:
        """Cannot be called here.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            "A function in a process of its own (executor=Process()) does not know its schedule"
        )


def _prepare() -> None:
    """Makes the process end with its worker, and not before."""
    # Ctrl-C, and a service manager that stops the service, signal all processes. The worker lets
    # running tasks end. These are handlers, not SIG_IGN, which programs started here would inherit.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: None)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, name="pyncette parent", daemon=True).start()


def _run(function: tuple[str, str], view: bytes) -> None:
    """Calls a function.

    Raises:
        Exception: What the function has raised, if it can travel.
    """
    try:
        with _importing():
            body = function_named(*function)
        context = ProcessContext(pickle.loads(view))
        _call(body, context)
    except BaseException as error:
        if _travels(error):
            raise
        # Its traceback travels as text.
        raise RuntimeError(describe(error)) from error


@contextmanager
def _importing() -> Iterator[None]:
    """While the module of a function is imported, as while the main module is.

    A program that runs when it is imported starts no further processes, and opens no app: see
    ``pyncette.opening.check_not_imported``.
    """
    process: Any = multiprocessing.current_process()
    process._inheriting = True
    try:
        yield
    finally:
        del process._inheriting


def _call(body: Callable[..., Any], context: ProcessContext) -> None:
    parameters = parameters_of(body)
    arguments: dict[str, Any] = {}
    if parameters is not None:
        arguments = parameters.values(context.args, lambda: context.task_name)
    result = body(context, **arguments)
    if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        if close := getattr(result, "close", None):
            close()
        raise TypeError(
            f"{name_of(body)} returned {type(result).__name__}, of which nothing was run: a "
            "function in a process of its own (executor=Process()) is a plain one"
        )
    sys.stdout.flush()
    sys.stderr.flush()


def _travels(error: BaseException) -> bool:
    """Returns whether an exception arrives as it is; other ends of a function are failures, too."""
    if not isinstance(error, Exception) or isinstance(error, StopIteration):
        return False
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False
