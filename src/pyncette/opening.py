"""Opening an app: its store, its executor, its fixtures; and closing them in the reverse order."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import (
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
)
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar

from pyncette import chance
from pyncette.calls.history import required_history
from pyncette.calls.writing import Patience
from pyncette.clock import Clock, StoreClock, corrected, realtime
from pyncette.context import PyncetteContext
from pyncette.engine.background import Background, finished, is_cancelled
from pyncette.engine.templates import check_templates
from pyncette.engine.worker import Settings
from pyncette.errors import (
    CALL_DEADLINE_MAX_S,
    StoreError,
    StoreUnavailableError,
    as_public,
    describe,
    printable,
)
from pyncette.executor import DEFAULT_CONCURRENCY_LIMIT
from pyncette.observers import Reporter
from pyncette.options import at_least_one
from pyncette.parts import AppParts, check_context_name, check_not_imported
from pyncette.recorder import Recorder
from pyncette.schedule import UnreadableHere
from pyncette.store import check_store
from pyncette.store.deadline import DeadlineStore
from pyncette.store.record import (
    check_identity,
)
from pyncette.task import Task

logger: Final = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

OPENING_DEADLINE_S: Final = 10.0
"""How long one attempt to open the store may take."""

OPENING_TRY_MIN_S: Final = 0.5
"""How long a try may take at least: the last one begins at the end of ``open_timeout``."""

OPENING_PAUSE_INITIAL_S: Final = 0.05
OPENING_PAUSE_MAX_S: Final = 1.0
DEADLINE_MIN_S: Final = 1.0
DEADLINE_MAX_S: Final = CALL_DEADLINE_MAX_S
WORKER_NAME_MAX: Final = 200


@asynccontextmanager
async def open_context(
    parts: AppParts, context_items: Mapping[str, Any]
) -> AsyncIterator[PyncetteContext]:
    """Opens the store, the executor and the fixtures of an app, in this order.

    The schedules of its tasks are checked before: only now all calendars are declared.

    They are closed in the reverse order; running tasks end first. If the caller is cancelled
    meanwhile (or its ``asyncio.timeout`` ends), running tasks are cancelled and their leases
    released. Fixtures and store are closed only when no task runs any more. Then the cancellation
    is raised again.
    """
    check_not_imported("The app was opened", "open it")
    for name in context_items:
        check_context_name(name)
    settings = _settings(parts)
    clock = corrected(parts.clock)
    _check_calendars(parts.tasks, clock.microseconds())
    patience = _Patience(parts.open_timeout, clock)
    async with AsyncExitStack() as stack:
        closing = _Closing(Background())
        stack.push_async_callback(closing.go_on)
        after = stack.enter_context(ExitStack())
        with clock.hold():
            opened = await patience.opens(
                lambda: _opened(
                    stack.enter_async_context(parts.repository_factory(**parts.configuration))
                )
            )
        check_store(opened, parts.repository_factory)
        stack.push_async_callback(closing.background.close)
        reporter = Reporter(parts.observers, clock, settings.worker_name)
        deadline_s = deadline_for(parts.tasks)
        # No lease runs yet, and connections have to be made first, which takes several round trips.
        store = DeadlineStore(opened, clock, max(deadline_s, OPENING_DEADLINE_S), reporter)
        after.callback(store.close)
        if isinstance(clock, StoreClock):
            measuring = partial(clock.measure, store.now, lambda: store.now_uncertainty)
            await patience.opens(measuring)
        executor = parts.executor_cls(**parts.configuration)
        async with AsyncExitStack() as executing:
            running = await executing.enter_async_context(executor)
            limit = min(
                settings.concurrency_limit,
                getattr(running, "concurrency_limit", settings.concurrency_limit),
            )
            recorder = None
            if parts.history is not None:
                history = required_history(store.history, store.name)
                await patience.opens(partial(history.prepare, parts.history.keep_us))
                recorder = Recorder(history, parts.history, clock, closing.background, reporter)
            context = PyncetteContext(
                parts,
                store,
                running,
                clock,
                settings._replace(concurrency_limit=limit),
                closing.background,
                reporter,
                recorder,
            )
            partitions = context._worker.partitions
            await patience.opens(lambda: check_templates(store, clock, parts.tasks, partitions))
            store.deadline_s = deadline_s
            stack.push_async_callback(closing.see_through, context._write_what_is_left)
            for name, value in context_items.items():
                context.add_to_context(name, value)
            for name, fixture in parts.fixtures:
                context._set_item(name, await stack.enter_async_context(_fixture(fixture)(context)))
            give_up = context._give_up_runs
            # Once more, in case the executor does not wait for its tasks when it is closed.
            stack.push_async_callback(
                closing.see_through, partial(context._end_runs, True), give_up
            )
            stack.push_async_exit(closing.leaving(executing.pop_all(), give_up))
            stack.push_async_callback(
                closing.see_through, partial(context._end_runs, False), give_up
            )
            bodies = context._worker.bodies
            stack.enter_context(clock.attend(bodies))
            try:
                with parts.opened.holds(context):
                    yield context
            except BaseException as error:
                bodies.note_on(error)
                if clock.moves_by_hand():
                    # What sleeps on it would never end, and hide the error: a test has failed.
                    give_up()
                raise
    bodies.check()


class _Closing:
    """Completes the steps of closing, even if the caller is cancelled meanwhile."""

    def __init__(self, background: Background) -> None:
        self.background = background
        self._cancelled = False

    async def see_through(
        self,
        step: Callable[[], Coroutine[Any, Any, None]],
        on_cancel: Callable[[], None] = lambda: None,
    ) -> None:
        """Waits for the end of a step. A cancellation does not interrupt the step."""
        task = self.background.start(step(), "pyncette closing", awaited=True)
        if await finished(task, on_cancel):
            self._cancelled = True
        task.result()

    def leaving(
        self, executor: AsyncExitStack, on_cancel: Callable[[], None]
    ) -> Callable[..., Coroutine[Any, Any, bool]]:
        """Closes the executor, in the caller's own task; a cancellation is postponed."""

        async def leave(*exception: Any) -> bool:
            try:
                return bool(await executor.__aexit__(*exception))
            except asyncio.CancelledError:
                if not is_cancelled():
                    raise
                self._cancelled = True
                on_cancel()
                return False

        return leave

    async def go_on(self) -> None:
        """Raises the cancellation that was postponed.

        Raises:
            asyncio.CancelledError: The caller was cancelled.
        """
        if self._cancelled:
            raise asyncio.CancelledError


def _check_calendars(tasks: Iterable[Task], now: int) -> None:
    """Refuses tasks that cannot be planned here.

    Raises:
        ValueError: A calendar is not declared, fails, or excludes all occurrences.
    """
    for task in tasks:
        if task.named_plan is not None and task.named_plan.calendars:
            try:
                task.plan.first(now)
            except UnreadableHere as error:
                raise ValueError(f"Task '{printable(task)}' cannot be planned: {error}") from error


def deadline_for(tasks: Iterable[Task]) -> float:
    """Returns the deadline of a call in seconds: half the shortest lease, but 1 to 10 s."""
    shortest = min((task.lease_duration.total_seconds() for task in tasks), default=60.0)
    return min(max(shortest / 2, DEADLINE_MIN_S), DEADLINE_MAX_S)


class _Patience(Patience):
    """Makes calls again while the store is unavailable, as long as opening may take."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        super().__init__(seconds, OPENING_PAUSE_INITIAL_S, OPENING_PAUSE_MAX_S, clock)
        self._seconds = seconds
        self._told = False
        self._last: StoreUnavailableError | None = None

    async def opens(self, call: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """As ``insist``; the first error is logged. No try takes longer than opening may."""
        return await self.insist(lambda: self._within(call), self._tell)

    async def _within(self, call: Callable[[], Awaitable[_Answer]]) -> _Answer:
        seconds = OPENING_DEADLINE_S
        if self._seconds > 0:  # if not, it tries once, for as long as that takes
            seconds = min(seconds, max(self.left_s, OPENING_TRY_MIN_S))
        try:
            async with realtime.timeout(seconds) as deadline:
                return await call()
        except TimeoutError as error:
            if not deadline.expired():
                raise
            before = "" if self._last is None else f". The try before: {describe(self._last)}"
            raise StoreUnavailableError(
                f"The store was not opened within {round(seconds, 1):g} s: nothing answers at its "
                "address, or another kind of server, or something has locked its table, or the "
                "link is too slow for open_timeout"
                f"{before}"
            ) from error

    def _tell(self, error: StoreUnavailableError) -> None:
        self._last = error
        if not self._told:
            self._told = True
            logger.warning(
                "The store is not available yet; opening tries again for up to %g s "
                "(open_timeout): %s",
                self._seconds,
                describe(error),
            )


async def _opened(opening: Awaitable[Any]) -> Any:
    try:
        return await opening
    except StoreError as error:
        raise as_public(error) from error.__cause__


def _settings(parts: AppParts) -> Settings:
    configuration = parts.configuration
    worker = configuration.get("worker_name")
    if worker is None:
        worker = f"{socket.gethostname()}-{os.getpid()}-{chance.new_id(2)}"
    elif not isinstance(worker, str) or not 1 <= len(worker) <= WORKER_NAME_MAX:
        raise ValueError(
            f"worker_name must be a string of 1 to {WORKER_NAME_MAX} characters, not {worker!r}"
        )
    check_identity(worker, worker, "worker_name")
    return Settings(
        worker,
        parts.poll_interval // timedelta(microseconds=1),
        at_least_one("batch_size", configuration.get("batch_size", 100)),
        at_least_one(
            "concurrency_limit", configuration.get("concurrency_limit", DEFAULT_CONCURRENCY_LIMIT)
        ),
        parts.heartbeat,
        parts.thread_limit,
        parts.raise_task_errors,
        parts.worker_tags,
    )


def _fixture(function: Callable[..., Any]) -> Callable[..., Any]:
    @asynccontextmanager
    async def opened(context: PyncetteContext) -> AsyncIterator[Any]:
        generator = function(context)
        if not hasattr(generator, "__anext__"):
            if asyncio.iscoroutine(generator):
                generator.close()
            raise TypeError(
                f"The fixture {function!r} is not an async generator: it must yield its value"
            )
        async with asynccontextmanager(lambda: generator)() as value:
            yield value

    return opened
