"""The dashboard of a company whose tasks are in every state, on a clock that the test moves.

It is served on a port of this machine, by a thread, so that a browser can look at it::

    with served() as company:
        company.url
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import uvicorn
from starlette.requests import Request
from tests.faulty_store import Faults, faulty
from tests.ports import reserved_port

from pyncette import Context, Exhausted, Pyncette, PyncetteContext, Retry, acting_as
from pyncette.clock import realtime
from pyncette.history import use_history
from pyncette.memory import MemoryRepository
from pyncette.showing import SILENT_AFTER
from pyncette.store import RepositoryFactory
from pyncette.task import PartitionedTask, Task
from pyncette.testing import VirtualClock
from pyncette.testing.conformance import Place
from pyncette.web import Access, Action, dashboard

_T = TypeVar("_T")

NOON: Final = datetime(2026, 1, 5, 12, 4, 10, tzinfo=UTC)
"""About when one looks: on a Monday."""

SEEDED: Final = timedelta(minutes=52)
"""For how long the workers have run then."""

PATIENCE_S: Final = 60.0

SCREENS: Final = {
    "overview": "",
    "tasks": "tasks",
    "failures": "failures",
    "runs": "runs",
    "next": "next",
    "workers": "workers",
    "unknown": "unknown",
    "static": "task?name=sync_crm",
    "running": "task?name=rebuild_index",
    "paused": "task?name=close_books",
    "template": "task?name=send_reminder",
    "partitioned": "task?name=poll_feed",
    "backlog": "task?name=import_order",
    "parked": "task?name=send_reminder&instance=customer-0013",
    "missing": "task?name=nothing",
}
"""The address of each screen."""


class Tasks:
    """The tasks of the company, as one of its workers declares them."""

    def __init__(
        self,
        repository: RepositoryFactory,
        clock: VirtualClock,
        worker: str,
        indexed: asyncio.Event,
        configuration: Mapping[str, Any],
    ) -> None:
        self.app = app = Pyncette(repository, clock=clock, worker_name=worker, **configuration)
        use_history(app)

        @app.task(schedule="0 2 * * *", timezone="Europe/Berlin")
        async def nightly_report(context: Context) -> None: ...

        @app.task(interval=timedelta(minutes=5))
        async def refresh_rates(context: Context) -> None: ...

        @app.task(schedule="0 6 1 * *", timezone="Europe/Berlin")
        async def close_books(context: Context) -> None: ...

        @app.task(
            schedule="*/10 8-18 * * MON-FRI",
            timezone="America/New_York",
            retry=Retry(attempts=4, initial=timedelta(minutes=2), jitter=0),
        )
        async def archive_mail(context: Context) -> None: ...

        @app.task(
            interval=timedelta(minutes=10),
            retry=Retry(attempts=6, initial=timedelta(minutes=2), jitter=0),
        )
        async def sync_crm(context: Context) -> None:
            raise ConnectionError("crm.example.com:443: the certificate expired on 2026-01-04")

        @app.task(interval=timedelta(hours=6), lease_duration=timedelta(hours=2))
        async def rebuild_index(context: Context) -> None:
            await indexed.wait()

        @app.dynamic_task(
            retry=Retry(attempts=2, initial=timedelta(minutes=1), jitter=0),
            exhausted=Exhausted.PARK,
        )
        async def send_reminder(context: Context) -> None:
            number = int(context.task.name[-4:])
            if number % 13 == 0:
                raise ValueError("the customer has no address")
            if number % 17 == 0:
                raise TimeoutError("mail.example.com did not answer within 30 s")

        @app.partitioned_task(partition_count=4, interval=timedelta(minutes=15))
        async def poll_feed(context: Context) -> None: ...

        @app.dynamic_task()
        async def import_order(context: Context) -> None: ...

        self.rebuild_index: Task = rebuild_index
        self.close_books: Task = close_books
        self.send_reminder: Task = send_reminder
        self.poll_feed: PartitionedTask = poll_feed
        self.import_order: Task = import_order


class Company:
    """The company, open.

    Attributes:
        clock: Its clock; it stands still until it is moved.
        context: The context through which the dashboard looks.
        url: The address of the dashboard.
    """

    clock: VirtualClock
    context: PyncetteContext
    url: str
    _loop: asyncio.AbstractEventLoop

    def __init__(self, place: Place) -> None:
        self.store, self.configuration = place.factory, place.configuration
        self._faults = {"worker-berlin-2": Faults(), "worker-berlin-3": Faults()}
        self._cuts = {worker: ExitStack() for worker in self._faults}

    def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Does something in the event loop of the server."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    async def silence(self, worker: str) -> None:
        """Lets a worker reach the store no more, until it should have been heard of."""
        self._cuts[worker].enter_context(self._faults[worker].down())
        [seen] = [one.seen_at for one in await self.context.workers() if one.name == worker]
        await self.clock.advance_to(seen + SILENT_AFTER + timedelta(seconds=2))

    async def bring_back(self, worker: str) -> None:
        """Lets a worker reach the store again, as one of its name that was started again."""
        self._cuts[worker].close()
        await self.clock.advance(timedelta(seconds=10))

    @asynccontextmanager
    async def opened(self) -> Any:
        """Lets three workers run for a while; one of them is then cut off from the store."""
        self._loop = asyncio.get_running_loop()
        self.clock = clock = VirtualClock(NOON - SEEDED)
        indexed = asyncio.Event()
        async with AsyncExitStack() as stack:
            tasks = Tasks(self.store, clock, "worker-berlin-1", indexed, self.configuration)
            self.context = context = await stack.enter_async_context(tasks.app.running())
            for name, faults in self._faults.items():
                repository = faulty(self.store, faults)
                other = Tasks(repository, clock, name, indexed, self.configuration)
                await stack.enter_async_context(other.app.running())
            for cut in self._cuts.values():
                stack.enter_context(cut)
            await self._schedule(context, tasks)
            await clock.advance(SEEDED - timedelta(seconds=50))
            await context.trigger(tasks.rebuild_index)
            await self.silence("worker-berlin-3")
            with acting_as("grace"):
                await context.pause(tasks.close_books, reason="the auditors are in the house")
                await context.pause(tasks.import_order, reason="shop is being moved")
            with acting_as("ada"):
                await context.pause(tasks.poll_feed.get_partitions()[1])

            def authorize(request: Request) -> Access:
                return Access(request.cookies.get("user", "ada"), Action)

            board = dashboard(tasks.app, authorize, refresh=0.25)
            port = reserved_port()
            config = uvicorn.Config(board, port=port, log_level="warning", lifespan="on")
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server._serve())
            while not server.started:
                await realtime.sleep(0.01)
            self.url = f"http://127.0.0.1:{port}/"
            try:
                yield
            finally:
                board.stop()
                server.should_exit = True
                await serving
                indexed.set()

    async def _schedule(self, context: PyncetteContext, tasks: Tasks) -> None:
        old = Pyncette(self.store, clock=self.clock, **self.configuration)

        @old.dynamic_task(name="send_newsletter")
        async def newsletter(context: Context) -> None: ...

        async with old.create() as former:
            for number in range(12):
                await former.schedule_task(newsletter, f"n-{number}", execute_in=timedelta(days=1))
        for number in range(60):
            name = f"customer-{number:04}"
            await context.schedule_task(
                tasks.send_reminder,
                name,
                execute_in=timedelta(minutes=number),
                args={"to": f"{name}.example.com", "lines": [number, 2], "api_key": "s3cret"},
            )
            await context.schedule_task(tasks.poll_feed, f"feed-{number:02}")
        for number in range(140):
            await context.schedule_task(
                tasks.import_order,
                f"order-{90_000 + number}",
                execute_in=timedelta(minutes=number),
            )
        with acting_as("grace"):
            await context.pause(tasks.import_order, reason="shop is being moved")


@contextmanager
def served(place: Place | None = None) -> Iterator[Company]:
    """Serves the dashboard of the company while the block lasts.

    Args:
        place: The store of the company, empty; in memory by default.
    """
    company = Company(place or Place(MemoryRepository()))
    ready, leave = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    async def main() -> None:
        async with company.opened():
            ready.set()
            while not leave.is_set():
                await realtime.sleep(0.02)

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work, name="company")
    thread.start()
    try:
        ready.wait(PATIENCE_S)
        if failed:
            raise failed[0]
        yield company
    finally:
        leave.set()
        thread.join(PATIENCE_S)
    if failed:
        raise failed[0]
