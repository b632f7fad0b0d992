"""Calls of a context after its app was closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support import run

from pyncette import (
    AppClosedError,
    Context,
    Instance,
    Pyncette,
    PyncetteContext,
    PyncetteException,
    StoreError,
    StoreUnavailableError,
)
from pyncette.memory import MemoryRepository
from pyncette.task import Task

Call = Callable[[PyncetteContext, Task], Awaitable[Any]]

NOW = timedelta(0)

CALLS: dict[str, Call] = {
    "schedule_task": lambda context, job: context.schedule_task(job, "x", execute_in=NOW),
    "unschedule_task": lambda context, job: context.unschedule_task(job, "a"),
    "get_task": lambda context, job: context.get_task(job, "a"),
    "list_tasks": lambda context, job: context.list_tasks(job),
    "count_tasks": lambda context, job: context.count_tasks(job),
    "static_tasks": lambda context, job: context.static_tasks(),
    "unknown": lambda context, job: context.unknown(),
    "workers": lambda context, job: context.workers(),
    "tasks_without_worker": lambda context, job: context.tasks_without_worker(),
    "pauses": lambda context, job: context.pauses(),
    "pause": lambda context, job: context.pause(job, "a"),
    "pause all": lambda context, job: context.pause(job),
    "resume": lambda context, job: context.resume(job, "a"),
    "trigger": lambda context, job: context.trigger(job, "a"),
    "retry_parked": lambda context, job: context.retry_parked(job, "a"),
    "drop_parked": lambda context, job: context.drop_parked(job, "a"),
    "runs": lambda context, job: context.runs(),
    "iter_tasks": lambda context, job: anext(context.iter_tasks(job)),
    "schedule_tasks": lambda context, job: context.schedule_tasks(
        job, [Instance("x", interval=timedelta(hours=1))]
    ),
    "unschedule_tasks": lambda context, job: context.unschedule_tasks(job, ["a"]),
    "purge": lambda context, job: context.purge("old"),
    "run": lambda context, job: context.run(),
    "run_until_idle": lambda context, job: context.run_until_idle(),
}


@pytest.mark.parametrize("file", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_after_the_app_was_closed_says_so(call: str, file: bool, tmp_path: Path) -> None:
    async def main() -> None:
        app = (
            Pyncette(url=f"sqlite:///{tmp_path / 'tasks.db'}")
            if file
            else Pyncette(MemoryRepository())
        )

        @app.dynamic_task()
        async def job(context: Context) -> None: ...

        async with app.create() as context:
            await context.schedule_task(job, "a", interval=timedelta(hours=1))
        for _ in range(2):
            with pytest.raises(AppClosedError, match=r"async with app\.create"):
                await CALLS[call](context, job)
        async with app.create() as another:
            assert await another.get_task(job, "a") is not None

    run(main())


def test_it_is_no_error_that_may_pass() -> None:
    assert issubclass(AppClosedError, StoreError)
    assert issubclass(AppClosedError, PyncetteException)
    assert issubclass(AppClosedError, RuntimeError)
    assert not issubclass(AppClosedError, StoreUnavailableError)


def test_the_calls_for_code_that_is_not_asynchronous_open_the_app_again() -> None:
    app = Pyncette(MemoryRepository())

    @app.dynamic_task()
    async def job(context: Context) -> None: ...

    with app.sync() as calls:
        calls.schedule_task(job, "a", interval=timedelta(hours=1))
        kept = calls._opened_here()
    with app.sync() as calls:
        assert calls.get_task(job, "a") is not None
    # Closed by another thread after the call has begun.
    with pytest.raises(AppClosedError):
        kept.thread.do(kept.context.get_task(job, "a"))


def test_a_context_that_runs_no_more_but_is_open_serves_calls() -> None:
    async def main() -> None:
        app = Pyncette(MemoryRepository())

        @app.dynamic_task()
        async def job(context: Context) -> None: ...

        async with app.create() as context:
            running = asyncio.ensure_future(context.run())
            context.shutdown()
            await running
            await context.schedule_task(job, "a", interval=timedelta(hours=1))
            assert await context.get_task(job, "a") is not None

    run(main())


@pytest.mark.parametrize("method", ["create", "running"])
def test_a_call_without_async_with_says_what_is_missing(method: str) -> None:
    app = Pyncette(MemoryRepository())
    opening: Any = getattr(app, method)()
    words = rf"'async with app\.{method}\(\) as context:' and call context\.schedule_task inside"
    with pytest.raises(AttributeError, match=words):
        getattr(opening, "schedule_task")  # noqa: B009
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(opening, "nonsense")  # noqa: B009
    assert not hasattr(opening, "_worker")
