"""Opening an app: its store, its executor, its fixtures; and closing them in the reverse order."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any, Final

from pyncette import chance
from pyncette.clock import Clock, StoreClock, corrected, realtime
from pyncette.context import AppParts, PyncetteContext, check_context_name
from pyncette.engine.loop import Settings
from pyncette.errors import PyncetteException, StoreUnavailableError
from pyncette.executor import DEFAULT_CONCURRENCY_LIMIT
from pyncette.options import at_least_one
from pyncette.store import Failed, Refused, Store, Unknown, Write, check_store, scan_all
from pyncette.store.deadline import DeadlineStore
from pyncette.store.record import (
    ABSENT,
    CONTROL_GROUP,
    Put,
    Record,
    State,
    check_identity,
    dump_args,
    load_args,
)
from pyncette.task import PartitionedTask, Task

OPENING_DEADLINE_S: Final = 10.0
DEADLINE_MIN_S: Final = 1.0
DEADLINE_MAX_S: Final = 10.0
WORKER_NAME_MAX: Final = 200


@asynccontextmanager
async def open_context(
    parts: AppParts, context_items: Mapping[str, Any]
) -> AsyncIterator[PyncetteContext]:
    """Opens the store, the executor and the fixtures of an app, in this order."""
    for name in context_items:
        check_context_name(name)
    settings = _settings(parts)
    lease = min((task.lease for task in parts.tasks), default=60_000_000)
    clock = corrected(parts.clock, lease)
    async with AsyncExitStack() as stack:
        with clock.hold():
            opened = await _opened(
                stack.enter_async_context(parts.repository_factory(**parts.configuration))
            )
        check_store(opened, parts.repository_factory)
        store = DeadlineStore(opened, clock, deadline_for(parts.tasks))
        if isinstance(clock, StoreClock):
            await clock.measure(store.now)
        executor = parts.executor_cls(**parts.configuration)
        async with AsyncExitStack() as executing:
            running = await executing.enter_async_context(executor)
            limit = min(
                settings.concurrency_limit,
                getattr(running, "concurrency_limit", settings.concurrency_limit),
            )
            context = PyncetteContext(
                parts, store, running, clock, settings._replace(concurrency_limit=limit)
            )
            await _check_partitions(store, clock, parts.tasks)
            stack.push_async_callback(context._drain)
            for name, value in context_items.items():
                context.add_to_context(name, value)
            for name, fixture in parts.fixtures:
                context._set_item(name, await stack.enter_async_context(_fixture(fixture)(context)))
            # Running tasks end before the fixtures that they use do, also where an executor leaves
            # without waiting for them.
            stack.push_async_callback(context._scheduler.idle)
            stack.push_async_exit(executing.pop_all())
            stack.push_async_callback(context._close)
            yield context


def deadline_for(tasks: Iterable[Task]) -> float:
    """Seconds that a call may take: half the shortest lease, but 1 to 10 s."""
    shortest = min((task.lease_duration.total_seconds() for task in tasks), default=60.0)
    return min(max(shortest / 2, DEADLINE_MIN_S), DEADLINE_MAX_S)


async def _opened(opening: Awaitable[Any]) -> Any:
    try:
        async with realtime.timeout(OPENING_DEADLINE_S) as deadline:
            return await opening
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise StoreUnavailableError(
            f"The store was not opened within {OPENING_DEADLINE_S:g} s"
        ) from error


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


async def _check_partitions(store: Store, clock: Clock, declared: Sequence[Task]) -> None:
    """Refuses another number of partitions than the one that the store was filled with.

    Instances that were scheduled before the template had partitions lie in a place of their own,
    too, where nobody would claim them any more.

    Raises:
        PyncetteException: It differs.
    """
    tasks = [task for task in declared if isinstance(task, PartitionedTask)]
    if not tasks:
        return
    known = await store.get([(CONTROL_GROUP, f"partitions:{task.name}") for task in tasks])
    unknown: list[PartitionedTask] = []
    for task, record in zip(tasks, known, strict=True):
        if record is not None:
            _check_partition_count(task, record)
            continue
        async for _ in scan_all(store, task.group, page_size=1):
            raise PyncetteException(_moved(task, "no partitions"))
        unknown.append(task)
    if not unknown:
        return
    facts = [
        Write(
            CONTROL_GROUP,
            f"partitions:{task.name}",
            Put(
                None,
                State.FINISHED,
                None,
                0,
                "",
                dump_args({"partition_count": task.partition_count}),
                "",
            ),
            ABSENT,
        )
        for task in unknown
    ]
    results = await store.write(facts, clock.microseconds())
    for task, result in zip(unknown, results, strict=True):
        if isinstance(result, (Failed, Unknown)):
            raise result.error
        if isinstance(result, Refused) and result.current is not None:
            _check_partition_count(task, result.current)


def _check_partition_count(task: PartitionedTask, record: Record) -> None:
    stored = load_args(record.args).get("partition_count")
    if stored != task.partition_count:
        raise PyncetteException(_moved(task, f"{stored} partitions"))


def _moved(task: PartitionedTask, stored: str) -> str:
    return (
        f"Task '{task.name}' is declared with {task.partition_count} partitions, but the store "
        f"holds its instances in {stored}. Declare {stored}, or move the instances first: "
        "schedule them anew under another task name."
    )
