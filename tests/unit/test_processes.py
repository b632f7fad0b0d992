"""Functions that compute, in processes of their own: what arrives there, and how they end."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.support import START, Bench, after, run, seconds
from tests.unit.process_bodies import (
    fail,
    generate,
    note,
    note_attributes,
    stay,
    use_what_does_not_travel,
)

from pyncette import (
    Context,
    FailureMode,
    Instance,
    PerWorker,
    Process,
    ProcessEndedError,
    Pyncette,
    Retry,
)
from pyncette.clock import SystemClock
from pyncette.errors import LeaseLostException
from pyncette.memory import MemoryRepository
from pyncette.model import Outcome
from pyncette.processes import ProcessContext, Processes

T = TypeVar("T")

ONE = Process(max_workers=1)
PATIENCE_S = 60.0


declared = Pyncette().dynamic_task(name="declared", executor=ONE)(note)


async def asynchronous(context: Context) -> None: ...


class Job:
    def method(self, context: Context) -> None: ...

    @staticmethod
    def static(context: Context) -> None: ...

    def __call__(self, context: Context) -> None: ...


def shadowed(context: Context) -> None: ...


original = shadowed


def shadowed(context: Context) -> None: ...  # type: ignore[no-redef]


# Helpers.


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + PATIENCE_S
    # A process seems to be there until the thread of its pool has noted that it has ended.
    while left := multiprocessing.active_children():
        assert time.monotonic() < deadline, left
        time.sleep(0.005)


async def until(condition: Callable[[], T]) -> T:
    """Waits for what another process does."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    return found


async def exists(path: Path) -> str:
    """Waits for a file, and returns its text."""
    return await until(lambda: path.read_text() if path.exists() else "")


def has_ended(process_id: int) -> bool:
    """Returns whether a process has ended, which may be the child of another one."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{process_id}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


# What arrives.


def test_a_function_runs_in_a_process_that_is_kept_for_the_next_run(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench()
        path = tmp_path / "notes"
        job = bench.app.dynamic_task(name="job", executor=ONE)(note)
        async with bench.running() as context:
            for number in (1, 2):
                await context.schedule_task(
                    job,
                    str(number),
                    execute_at=after(number),
                    args=job.args(path, day=date(2026, 5, number)),
                )
            await bench.advance(2)
        first, second = (line.split(" ", 1) for line in path.read_text().splitlines())
        assert int(first[0]) != os.getpid()
        assert first[0] == second[0]
        assert first[1] == "job:1 1 datetime.date(2026, 5, 1)"
        assert second[1] == "job:2 1 datetime.date(2026, 5, 2)"

    run(main())


def test_the_attributes_of_the_context_that_can_travel_arrive(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench()
        path = tmp_path / "notes"
        job = bench.app.task(interval=1, timeout=seconds(30), executor=ONE, path=str(path))(
            note_attributes
        )
        async with bench.running():
            await bench.advance(1)
        planned = START + seconds(1)
        assert job.executor == ONE
        expected = (True, planned.isoformat(), 1, 32, True, planned + seconds(30), None)
        assert path.read_text() == repr(expected)

    run(main())


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("heartbeat", "give the task heartbeat=True"),
        ("upcoming", "does not know its schedule"),
        ("database", "The context has no 'database' in a process of its own"),
        ("app_context", "no 'app_context'"),
        ("task", "no 'task'"),
    ],
)
def test_what_does_not_travel_says_so(what: str, words: str) -> None:
    context = ProcessContext({"args": {}, "task_name": "job"})
    with pytest.raises((RuntimeError, AttributeError), match=words):
        use_what_does_not_travel(context, what)


def test_a_call_of_the_task_runs_in_place(tmp_path: Path) -> None:
    declared(ProcessContext({"task_name": "x", "attempt": 1}), tmp_path / "notes")
    assert (tmp_path / "notes").read_text().startswith(f"{os.getpid()} x 1")


# How it ends.


ENDS = {
    "plainly": ("OSError: no such thing", Outcome.FAILED),
    "by what cannot travel": ("RuntimeError: Unportable: 1 and 2", Outcome.FAILED),
    "by the end of the process": ("RuntimeError: SystemExit: 3", Outcome.FAILED),
    "by StopIteration": ("RuntimeError: StopIteration: over", Outcome.FAILED),
    "for good": ("GiveUp: no use", Outcome.FAILED),
    "later": ("RetryIn: not yet", Outcome.POSTPONED),
    "not": ("Skip: nothing to do", Outcome.SKIPPED),
    "killed": ("ProcessEndedError.*signal 9 has ended it", Outcome.FAILED),
    "exit": ("ProcessEndedError.*exit code 7", Outcome.FAILED),
}


@pytest.mark.usefixtures("measured")
def test_the_exception_of_a_function_is_the_failure_of_its_run() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="good", interval=60)(bench.note)
        job = bench.app.dynamic_task(
            name="job", interval=60, failure_mode=FailureMode.COMMIT, executor=ONE
        )(fail)
        async with bench.running() as context:
            await context.schedule_tasks(job, [Instance(how, how=how) for how in ENDS])
            await bench.advance(60)
            for how, (error, outcome) in ENDS.items():
                state = await context.get_task(job, how)
                assert state is not None
                assert state.last_outcome is outcome
                assert re.search(error, str(state.last_error))
                if how == "plainly":
                    assert "process_bodies.py" in str(state.last_traceback)
                    assert 'raise OSError("no such thing")' in str(state.last_traceback)
            await bench.advance(60)
        assert len(bench.runs) == 2

    run(main())


def test_the_classes_of_exceptions_decide_over_retries() -> None:
    async def main() -> None:
        bench = Bench()
        policy = Retry(attempts=3, initial=seconds(1), jitter=0, on=(ProcessEndedError,))
        job = bench.app.dynamic_task(name="job", executor=ONE, retry=policy)(fail)
        async with bench.running() as context:
            await context.schedule_task(job, "killed", execute_at=after(1), how="killed")
            await context.schedule_task(job, "other", execute_at=after(1), how="plainly")
            await bench.advance(1)
            killed = await context.get_task(job, "killed")
            other = await context.get_task(job, "other")
        assert killed is not None
        assert other is not None
        assert (killed.state, other.state) == ("retrying", "parked")

    run(main())


@pytest.mark.usefixtures("measured")
def test_a_function_that_returns_a_generator_has_failed() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", executor=ONE)(generate)
        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=1)
            await bench.advance(1)
            state = await context.get_task(job, "x")
        assert state is not None
        assert "returned generator, of which nothing was run" in str(state.last_error)

    run(main())


def test_arguments_that_do_not_fit_are_the_failure_of_the_run(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.middleware
        async def spoil(context: Context, rest: Any) -> None:
            context.args["path"] = 3
            await rest()

        job = bench.app.dynamic_task(name="job", executor=ONE)(note)
        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=1, path="x")
            await bench.advance(1)
            state = await context.get_task(job, "x")
        assert state is not None
        assert "The argument 'path' of 'job:x' must be a Path, not int 3" in str(state.last_error)

    run(main())


def test_a_process_that_dies_concerns_its_own_run_only(tmp_path: Path) -> None:
    async def main() -> None:
        app = Pyncette(MemoryRepository())
        job = app.dynamic_task(
            name="job", executor=Process(max_workers=2), failure_mode=FailureMode.COMMIT
        )(stay)
        async with app.running() as context:
            for name in ("a", "b"):
                await context.schedule_task(job, name, interval=seconds(0.001), path=str(tmp_path))
            killed = int(await exists(tmp_path / "begun job:a"))
            await exists(tmp_path / "begun job:b")
            os.kill(killed, signal.SIGKILL)
            (tmp_path / "begun job:a").unlink()
            other = int(await exists(tmp_path / "begun job:a"))
            assert other != killed
            assert not (tmp_path / "ended job:b").exists()
            state = await context.get_task(job, "a")
            assert state is not None
            assert "ProcessEndedError" in str(state.last_error)
            (tmp_path / "go").touch()
        assert (tmp_path / "ended job:b").exists()

    run(main())


def test_a_process_that_dies_while_it_is_idle_is_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench()
        path = tmp_path / "notes"
        job = bench.app.dynamic_task(name="job", executor=ONE)(note)
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(1), path=str(path))
            await context.schedule_task(job, "y", execute_at=after(2), path=str(path))
            await bench.advance(1)
            [process] = multiprocessing.active_children()
            process.kill()
            process.join()
            await asyncio.sleep(0.05)
            await bench.advance(1)
            assert await context.get_task(job, "y") is None
        assert len({line.split()[0] for line in path.read_text().splitlines()}) == 2

    run(main())


def test_a_timeout_kills_the_process_and_frees_its_slot(tmp_path: Path) -> None:
    async def main() -> None:
        app = Pyncette(MemoryRepository())
        slow = app.dynamic_task(
            name="slow", executor=ONE, timeout=seconds(1), failure_mode=FailureMode.COMMIT
        )(stay)
        quick = app.dynamic_task(name="quick", executor=ONE)(note)
        async with app.running() as context:
            await context.schedule_task(slow, "x", execute_at=after(0), path=str(tmp_path))
            await context.schedule_task(
                quick, "x", execute_in=timedelta(), path=str(tmp_path / "notes")
            )
            await exists(tmp_path / "notes")
        assert not (tmp_path / "ended slow:x").exists()

    run(main())


def test_what_has_no_process_free_is_not_claimed(tmp_path: Path) -> None:
    async def main() -> None:
        app = Pyncette(MemoryRepository())
        first = app.dynamic_task(name="first", executor=ONE)(stay)
        second = app.dynamic_task(name="second", executor=ONE, limit=PerWorker(5))(stay)
        bench = Bench()
        other = app.dynamic_task(name="other")(bench.note)
        async with app.running() as context:
            for task in (first, second):
                for name in ("a", "b"):
                    await context.schedule_task(task, name, execute_at=after(0), path=str(tmp_path))
            begun = await until(lambda: [*tmp_path.glob("begun *")])
            await context.schedule_task(other, "x", execute_at=after(0))
            await until(lambda: bench.runs)
            states = [
                state.state
                for task in (first, second)
                for state in (await context.list_tasks(task)).tasks
            ]
            assert sorted(states) == ["running", "scheduled", "scheduled", "scheduled"]
            assert len(begun) == 1
            (tmp_path / "go").touch()
            await until(lambda: len([*tmp_path.glob("ended *")]) == 4)

    run(main())


def test_closing_waits_for_the_function_and_then_kills_it(tmp_path: Path) -> None:
    async def main() -> None:
        repository = MemoryRepository()
        app = Pyncette(repository, shutdown_timeout=0)
        job = app.dynamic_task(name="job", executor=ONE)(stay)
        async with app.running() as context:
            await context.schedule_task(job, "x", execute_at=after(0), path=str(tmp_path))
            process = int(await exists(tmp_path / "begun job:x"))
        await until(lambda: has_ended(process))
        async with app.create() as context:
            state = await context.get_task(job, "x")
            assert state is not None
            assert state.state == "scheduled"  # given back at once

    run(main())


def test_a_function_that_waited_for_a_process_extends_its_lease_or_does_not_run(
    tmp_path: Path,
) -> None:
    class Waiting:
        def __init__(self, lost: bool) -> None:
            self.lost = lost
            self.beats = 0

        async def heartbeat(self) -> None:
            self.beats += 1
            if self.lost:
                raise LeaseLostException(None)  # type: ignore[arg-type]

    async def main() -> None:
        processes = Processes(SystemClock())

        def started(body: Any, context: Any, name: str, path: Path) -> asyncio.Task[None]:
            view = {"task_name": name, "attempt": 1, "args": {"path": str(path)}}
            function = (body.__module__, body.__qualname__)
            return asyncio.create_task(processes.run(ONE, function, context, view))

        at_once, later, lost = Waiting(False), Waiting(False), Waiting(True)
        runs = [
            started(stay, at_once, "first", tmp_path),
            started(note, later, "second", tmp_path / "later"),
            started(note, lost, "third", tmp_path / "lost"),
        ]
        await exists(tmp_path / "begun first")
        (tmp_path / "go").touch()
        results = await asyncio.gather(*runs, return_exceptions=True)
        assert isinstance(results[2], LeaseLostException)
        assert (tmp_path / "later").exists()
        assert not (tmp_path / "lost").exists()
        assert [at_once.beats, later.beats, lost.beats] == [0, 1, 1]
        await processes.close()

    run(main())


def test_what_cannot_be_pickled_is_the_failure_of_its_run() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.middleware
        async def spoil(context: Context, rest: Any) -> None:
            context.args["path"] = lambda: None
            await rest()

        job = bench.app.dynamic_task(name="job", executor=ONE)(note)
        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=1, path="x")
            await bench.advance(1)
            state = await context.get_task(job, "x")
        assert state is not None
        assert "pickle" in str(state.last_error)

    run(main())


# A program of its own.

PROGRAM = """
import os, sys, time
from datetime import timedelta
from pathlib import Path
from pyncette import Context, Process, Pyncette, FailureMode

app = Pyncette(poll_interval=0.05)
here = Path(sys.argv[1])

@app.task(interval=0.05, executor=Process(max_workers=1), failure_mode=FailureMode.COMMIT)
def job(context: Context) -> None:
    (here / "begun").write_text(str(os.getpid()))
    time.sleep(600)

@app.task(interval=0.05)
async def look(context: Context) -> None:
    state = await context.app_context.get_task(job)
    if state is not None and state.last_error:
        (here / "error").write_text(state.last_error)

"""


def started(tmp_path: Path, end: str, beginning: str = PROGRAM) -> subprocess.Popen[bytes]:
    program = tmp_path / "program.py"
    program.write_text(beginning + textwrap.dedent(end))
    return subprocess.Popen([sys.executable, str(program), str(tmp_path)], stderr=subprocess.PIPE)


def test_a_process_ends_with_its_worker_that_is_killed(tmp_path: Path) -> None:
    async def main() -> None:
        program = started(tmp_path, 'if __name__ == "__main__":\n    app.main()\n')
        process = int(await exists(tmp_path / "begun"))
        os.kill(process, signal.SIGTERM)  # as a service manager does to all processes of a service
        os.kill(process, signal.SIGINT)
        assert program.poll() is None
        program.kill()
        program.communicate()
        await until(lambda: has_ended(process))

    run(main())


RUNNING = """
import asyncio

async def work() -> None:
    (here / f"works {os.getpid()}").touch()
    async with %s as context:
        (here / f"open {os.getpid()}").touch()
        await %s

asyncio.run(work())
"""


@pytest.mark.parametrize(
    "end",
    [
        "app.main()\n",
        "app.main(until_idle=True)\napp.main()\n",
        "app.sync().get_task(job)\n(here / f'open {os.getpid()}').touch()\napp.main()",
        RUNNING % ("app.running()", "asyncio.sleep(600)"),
        RUNNING % ("app.create()", "context.run()"),
        RUNNING % ("app.create()", "context.run_until_idle(); await context.run()"),
    ],
    ids=["main", "main until idle", "sync", "running", "run", "run_until_idle"],
)
def test_a_program_that_runs_on_import_fails_its_runs_and_says_why(
    tmp_path: Path, end: str
) -> None:
    async def main() -> None:
        program = started(tmp_path, end)
        error = await exists(tmp_path / "error")
        program.kill()
        _, stderr = program.communicate()
        assert "ProcessEndedError" in error
        assert "exit code 1" in error
        assert 'if __name__ == "__main__":' in error
        assert b'if __name__ == "__main__": only' in stderr

    run(main())
    assert len(list(tmp_path.glob("open *"))) <= 1


def test_a_module_that_runs_on_import_fails_the_runs_of_its_functions_likewise(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        (tmp_path / "module.py").write_text(PROGRAM + "app.main()\n")
        program = started(tmp_path, "", 'if __name__ == "__main__":\n    import module\n')
        error = await exists(tmp_path / "error")
        program.kill()
        program.communicate()
        assert "RuntimeError: app.main() was called while a process" in error

    run(main())


# What is refused.


@pytest.mark.parametrize(
    ("func", "words"),
    [
        (asynchronous, "it is asynchronous"),
        (lambda context: None, "it is a lambda"),
        (functools.partial(note, path=Path()), "it has no name"),
        (Job().method, "a method of an object"),
        (Job(), "it has no name"),
    ],
)
def test_a_function_that_another_process_cannot_import_is_refused(func: Any, words: str) -> None:
    with pytest.raises(TypeError, match=f"cannot run in a process of its own.*{words}"):
        Pyncette().dynamic_task(name="x", executor=Process())(func)


def test_a_function_inside_of_another_one_is_refused() -> None:
    def inner(context: Context) -> None: ...

    with pytest.raises(TypeError, match="it is defined inside of test_a_function_inside"):
        Pyncette().task(interval=1, executor=Process())(inner)
    task = Pyncette().task(interval=1)(inner)
    with pytest.raises(TypeError, match="inside of"):
        task.executor = ONE


def test_a_function_whose_name_means_another_object_is_refused_when_the_app_is_opened() -> None:
    async def main() -> None:
        for func, words in ((original, "another object of that name"),):
            app = Pyncette()
            app.task(interval=1, executor=ONE)(func)
            with pytest.raises(TypeError, match=words):
                async with app.create():
                    pass
        lost = Pyncette()
        lost.task(name="x", interval=1, executor=ONE)(Job.static)
        async with lost.create():
            pass
        func = functools.wraps(note)(lambda context: None)
        func.__qualname__ = "missing"
        lost.task(name="y", interval=1, executor=ONE)(func)
        with pytest.raises(TypeError, match=r"AttributeError: .*missing"):
            async with lost.create():
                pass

    run(main())


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), ("3", TypeError), (True, TypeError), (1.5, TypeError)]
)
def test_a_bad_number_of_processes_is_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_workers must be"):
        Process(max_workers=value)


def test_an_executor_that_json_can_hold_is_an_argument_as_in_1_x() -> None:
    task = Pyncette().dynamic_task(name="x", executor="fast")(asynchronous)  # type: ignore[call-overload]
    assert task.extra_args == {"executor": "fast"}
    with pytest.raises(TypeError, match=r"executor must be a pyncette\.Process"):
        Pyncette().dynamic_task(name="x", executor=Process)(note)  # type: ignore[call-overload]


def test_there_are_as_many_processes_as_processors() -> None:
    assert 1 <= Process().limit <= (os.cpu_count() or 1)
    assert Process() == Process()
    assert pickle.loads(pickle.dumps(ProcessEndedError(-9))).exit_code == -9
