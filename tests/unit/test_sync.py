"""The blocking calls: from threads, over forks, with the caller's own iterators, at exit."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pyncette import Context, Instance, Pyncette, PyncetteContext
from pyncette.errors import PyncetteException, StoreUnavailableError
from pyncette.memory import MemoryRepository
from pyncette.model import Where
from pyncette.sync import SyncContext, _process
from pyncette.task import Task

LATER = datetime(2200, 1, 1, tzinfo=UTC)


class Service:
    """An app in memory, and its blocking calls."""

    def __init__(self, **options: Any) -> None:
        self.opened = 0
        repository = MemoryRepository()

        @asynccontextmanager
        async def counted(**configuration: Any) -> AsyncIterator[Any]:
            self.opened += 1
            async with repository(**configuration) as store:
                yield store
            self.opened -= 1

        self.app = Pyncette(counted, **options)
        self.app.use_fixture("of_workers", self._of_workers)

        @self.app.dynamic_task()
        async def job(context: Context) -> None: ...

        @self.app.task(interval=3600)
        async def hourly(context: Context) -> None: ...

        self.job, self.hourly = job, hourly
        self.calls = self.app.sync()

    async def _of_workers(self, context: object) -> Any:
        pytest.fail("app.sync() runs nothing that would need a fixture")
        yield


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    with service.calls:
        yield service
    assert service.opened == 0


def test_calls_answer_as_the_asynchronous_ones(service: Service) -> None:
    calls, job = service.calls, service.job
    task = calls.schedule_task(job, "a", execute_at=LATER, n=1)
    assert task.execute_at == LATER
    state = calls.get_task(job, "a")
    assert state is not None
    assert state.args == {"n": 1}
    assert [state.task.name for state in calls.list_tasks(job).tasks] == ["a"]
    assert calls.count_tasks(job).count == 1
    calls.pause(job, "a", reason="why not")
    assert [state.reason for state in calls.iter_tasks(job)] == ["why not"]
    calls.resume(job, "a")
    assert calls.trigger(job, "a") == 1
    assert calls.preview(service.hourly, 2)[0] < calls.preview(service.hourly, 2)[1]
    assert calls.pauses() == []
    assert calls.unknown() == []
    assert calls.static_tasks() == []
    assert calls.retry_parked(job, "a") is False
    assert calls.drop_parked(job, "a") is False
    calls.unschedule_task(job, "a")
    assert calls.get_task(job, "a") is None


def test_every_call_but_those_that_run_tasks_is_offered() -> None:
    of_workers = {"run", "run_until_idle", "shutdown", "add_to_context"}
    offered = {name for name in vars(PyncetteContext) if callable(getattr(PyncetteContext, name))}
    public = {name for name in offered if not name.startswith("_")} - of_workers
    assert public <= set(dir(SyncContext))


def test_calls_for_many_answer_as_the_asynchronous_ones(service: Service) -> None:
    told: list[object] = []
    assert service.calls.retry_parked_tasks(service.job, progress=told.append).handled == 0
    assert service.calls.drop_parked_tasks(service.job, progress=told.append).handled == 0
    everything = Where()
    assert service.calls.pause_tasks(service.job, where=everything).handled == 0
    assert service.calls.resume_tasks(service.job, where=everything).handled == 0
    assert service.calls.trigger_tasks(service.job, where=everything).handled == 0
    assert service.calls.purge("removed", progress=told.append).removed == 0
    assert service.calls.workers() == []
    with pytest.raises(ValueError, match="has no partitions"):
        service.calls.rebalance(service.job, 3)  # type: ignore[arg-type]


def test_errors_are_those_of_the_asynchronous_calls(service: Service) -> None:
    with pytest.raises(ValueError, match="needs exactly one of schedule"):
        service.calls.schedule_task(service.job, "a")
    assert service.app.sync() is service.calls


def test_the_app_is_opened_once_for_all_threads(service: Service) -> None:
    def schedule(number: int) -> None:
        service.calls.schedule_task(service.job, str(number), execute_at=LATER)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(schedule, range(100)))
    assert service.calls.count_tasks(service.job).count == 100
    assert service.opened == 1


def test_all_apps_share_one_thread(service: Service) -> None:
    other = Service()
    with other.calls:
        other.calls.unknown()
        service.calls.unknown()
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("pyncette sync") == 1


def test_bulk_calls_read_and_tell_in_the_thread_of_the_caller(service: Service) -> None:
    here = threading.get_ident()
    threads = set()

    def instances() -> Iterator[Instance]:
        for number in range(2_500):
            threads.add(threading.get_ident())
            yield Instance(str(number), execute_at=LATER)
        yield Instance("bad")

    def tell(what: object) -> None:
        threads.add(threading.get_ident())
        told.append(what)

    told: list[Any] = []
    result = service.calls.schedule_tasks(service.job, instances(), progress=tell, on_failure=tell)
    assert (result.created, result.failed) == (2_500, 1)
    assert threads == {here}
    assert [one.name for one in told if not hasattr(one, "created")] == ["bad"]
    assert [one.handled for one in told if hasattr(one, "created")][-1] == 2_501

    aligned = service.calls.sync_tasks(service.job, [Instance("0", execute_at=LATER)])
    assert (aligned.unchanged, aligned.removed) == (1, 2_499)
    assert service.calls.unschedule_tasks(service.job, iter(["0", "no"])).handled == 2
    assert service.calls.unschedule_tasks(service.job, where=Where()).handled == 0


def test_an_error_of_the_callers_iterator_or_callback_is_raised_there(service: Service) -> None:
    def broken() -> Iterator[Instance]:
        yield Instance("a", execute_at=LATER)
        raise KeyError("row")

    with pytest.raises(KeyError, match="row"):
        service.calls.schedule_tasks(service.job, broken())

    def tell(what: object) -> None:
        raise LookupError("told")

    with pytest.raises(LookupError, match="told"):
        service.calls.schedule_tasks(service.job, [Instance("b", execute_at=LATER)], progress=tell)


def test_pages_are_read_while_one_iterates(service: Service) -> None:
    service.calls.schedule_tasks(
        service.job, (Instance(f"{n:05}", execute_at=LATER) for n in range(2_100))
    )
    assert sum(1 for _ in service.calls.iter_tasks(service.job)) == 2_100
    with closing(service.calls.iter_tasks(service.job)) as some:
        next(some)


def test_after_closing_the_next_call_opens_again(service: Service) -> None:
    service.calls.schedule_task(service.job, "a", execute_at=LATER)
    service.calls.close()
    assert service.opened == 0
    assert service.calls.get_task(service.job, "a") is not None
    service.calls.close()
    service.calls.close()


def test_an_app_that_cannot_be_opened_says_so_at_each_call() -> None:
    def factory(**configuration: Any) -> Any:
        raise StoreUnavailableError("nobody listens")

    calls = Pyncette(factory, open_timeout=0).sync()
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="nobody listens"):
            calls.unknown()


def test_a_call_in_the_thread_itself_is_refused_instead_of_waiting_for_ever(
    service: Service,
) -> None:
    service.calls.unknown()

    async def inside() -> None:
        service.calls.unknown()

    with pytest.raises(PyncetteException, match="its own event loop"):
        _process.shared_thread().do(inside())


def test_an_interrupted_call_is_cancelled(service: Service) -> None:
    cancelled = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    thread = _process.shared_thread()
    submit = asyncio.run_coroutine_threadsafe

    def interrupt(work: Any, loop: Any) -> Any:
        future = submit(work, loop)

        class Interrupted:
            def result(self) -> None:
                raise KeyboardInterrupt

            def cancel(self) -> None:
                future.cancel()

        return Interrupted()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "run_coroutine_threadsafe", interrupt)
        with pytest.raises(KeyboardInterrupt):
            thread.do(forever())
    assert cancelled.wait(10)


PROGRAM = """
import os, sys
from datetime import datetime, timezone
from pyncette import Pyncette
from pyncette.sqlite import sqlite_repository

app = Pyncette(url="sqlite:///tasks.db")

@app.dynamic_task()
async def job(context): ...

LATER = datetime(2200, 1, 1, tzinfo=timezone.utc)

def schedule(name):
    app.sync().schedule_task(job, name, execute_at=LATER)
"""


def program(directory: Path, code: str) -> subprocess.CompletedProcess[str]:
    (directory / "program.py").write_text(PROGRAM + code)
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "program.py"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def names(directory: Path) -> list[str]:
    app = Pyncette(url=f"sqlite:///{directory / 'tasks.db'}")

    @app.dynamic_task()
    async def job(context: Context) -> None: ...

    with app.sync() as calls:
        return sorted(state.task.name for state in calls.iter_tasks(job))


@pytest.mark.usefixtures("measured")
def test_a_script_that_closes_nothing_ends_by_itself(tmp_path: Path) -> None:
    ended = program(tmp_path, "schedule('a')\n")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert names(tmp_path) == ["a"]
    assert not (tmp_path / "tasks.db-wal").exists()


FORKING = """
schedule("parent")
children = []
for number in range(3):
    child = os.fork()
    if not child:
        schedule(f"child {number}")
        sys.exit(0)
    children.append(child)
schedule("parent again")
codes = [os.waitpid(child, 0)[1] for child in children]
schedule("parent at the end")
sys.exit(max(codes))
"""


@pytest.mark.usefixtures("measured")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_forked_processes_have_connections_of_their_own(tmp_path: Path) -> None:
    ended = program(tmp_path, FORKING)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert names(tmp_path) == [
        *("child 0", "child 1", "child 2"),
        *("parent", "parent again", "parent at the end"),
    ]


def test_the_signatures_are_those_of_the_asynchronous_calls(service: Service) -> None:
    task: Task = service.calls.schedule_task(service.job, "a", execute_at=LATER)
    assert task.name == "a"
    assert "Creates an instance" in (service.calls.schedule_task.__doc__ or "")


@pytest.mark.parametrize(("options", "warned"), [({}, True), ({"url": "sqlite:///x.db"}, False)])
def test_an_app_in_memory_is_warned_about_since_its_workers_have_another_memory(
    options: dict[str, Any], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = Pyncette(**options)
    for _ in range(3):
        app.sync()
    assert len([line for line in caplog.messages if "a memory of its own" in line]) == warned


LEAVING = """
for name in ("a", "b"):
    schedule(name)
for state in app.sync().iter_tasks(job):
    child = os.fork()
    if not child:
        sys.exit(7)
    break
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.usefixtures("measured")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_leaves_an_iteration_of_its_parent_alone(tmp_path: Path) -> None:
    ended = program(tmp_path, LEAVING)
    assert (ended.returncode, ended.stderr) == (7, "")


def test_a_call_that_is_cancelled_by_the_closing_of_its_app_says_so() -> None:
    async def closed() -> None:
        raise asyncio.CancelledError

    with pytest.raises(StoreUnavailableError, match="closed while the call was under way"):
        _process.shared_thread().do(closed())


SIDE_BY_SIDE = """
import asyncio
from contextlib import asynccontextmanager
from pyncette import sync
from pyncette.memory import MemoryRepository

sync.EXIT_PATIENCE_S = 20.0
closing = []

def another(number):
    @asynccontextmanager
    async def slow(**configuration):
        async with MemoryRepository()(**configuration) as store:
            yield store
        closing.append(number)
        while len(closing) < 3:  # it ends only if the others close meanwhile
            await asyncio.sleep(0.001)
        print("closed", flush=True)

    Pyncette(slow).sync().static_tasks()

for number in range(3):
    another(number)
"""


def test_at_the_end_of_the_process_apps_are_closed_side_by_side(tmp_path: Path) -> None:
    ended = program(tmp_path, SIDE_BY_SIDE)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split() == ["closed"] * 3


FROZEN = """
import asyncio
from contextlib import asynccontextmanager
from pyncette import sync
from pyncette.memory import MemoryRepository

sync.EXIT_PATIENCE_S = sync.EXIT_GRACE_S = 0.1

for _ in range(3):
    @asynccontextmanager
    async def endless(**configuration):
        async with MemoryRepository()(**configuration) as store:
            yield store
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

    Pyncette(endless).sync().static_tasks()
schedule("a")
print("ends", flush=True)
"""


def test_an_app_that_cannot_be_closed_does_not_keep_the_process_nor_the_others(
    tmp_path: Path,
) -> None:
    ended = program(tmp_path, FROZEN)
    assert ended.returncode == 0
    assert ended.stdout.split() == ["ends"]
    assert "3 apps were not closed within 0.1 s" in ended.stderr
    assert names(tmp_path) == ["a"]
    assert not (tmp_path / "tasks.db-wal").exists()


SPAWNING = """
import multiprocessing

def in_child(number):
    schedule(f"child {number}")

if __name__ == "__main__":
    schedule("parent")
    spawned = multiprocessing.get_context("spawn")
    children = [spawned.Process(target=in_child, args=(number,)) for number in range(2)]
    for child in children:
        child.start()
    schedule("parent again")
    for child in children:
        child.join()
    with spawned.Pool(1) as pool:
        pool.map(in_child, [2])
        pool.close()
        pool.join()
    sys.exit(max(child.exitcode for child in children))
"""


def test_spawned_processes_have_connections_of_their_own(tmp_path: Path) -> None:
    ended = program(tmp_path, SPAWNING)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert names(tmp_path) == ["child 0", "child 1", "child 2", "parent", "parent again"]
