"""User code is hostile: whatever a body does, its run has an outcome and the others go on."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
from typing import Any

import pytest
from tests.support import Bench, logged, looping, run, seconds

from pyncette import Context, ExecutionMode, FailureMode, Retry
from pyncette.executor import DefaultExecutor, SynchronousExecutor

pytestmark = pytest.mark.every_poll

EXECUTORS = pytest.mark.parametrize("executor", [DefaultExecutor, SynchronousExecutor])


class Aborted(BaseException):
    """As ``pytest.fail``, trio's ``Cancelled`` and others."""


async def cancel_a_task_of_its_own() -> None:
    task = asyncio.create_task(asyncio.sleep(30))
    await asyncio.sleep(0)
    task.cancel()
    await task


OUTCOMES: dict[str, Any] = {
    "CancelledError, raised": asyncio.CancelledError(),
    "CancelledError, out of a task of its own": None,
    "GeneratorExit": GeneratorExit(),
    "a BaseException of its own": Aborted("no"),
}


@EXECUTORS
@pytest.mark.parametrize("mode", FailureMode)
@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)
def test_whatever_comes_out_of_a_body_has_an_outcome_by_its_failure_mode(
    executor: Any, mode: FailureMode, outcome: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench(executor_cls=executor)

        @bench.app.dynamic_task(failure_mode=mode, lease_duration=seconds(60))
        async def job(context: Context) -> None:
            await bench.note(context)
            if outcome is None:
                await cancel_a_task_of_its_own()
            raise outcome

        @bench.app.task(interval=seconds(30))
        async def neighbour(context: Context) -> None:
            pass

        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=bench.clock.now())
            await bench.advance(3)
            state = await context.get_task(job, "x")
            if mode is FailureMode.COMMIT:
                assert state is None
                assert bench.times == [0]
            elif mode is FailureMode.UNLOCK:
                assert bench.times == [0, 1, 2, 3]
            else:
                assert bench.times == [0]
                assert state is not None
                assert state.reason is not None
                await bench.advance(57)
                assert bench.times == [0, 60]

    run(main())
    assert logged(caplog, "Task job:x failed")


class _ExitsWhenShownError(Exception):
    def __str__(self) -> str:
        raise SystemExit(9)


class _InterruptsWhenShownError(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class _Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__"):
            raise KeyError(name)
        return super().__getattribute__(name)


class _NamelessError(Exception, metaclass=_Nameless):
    pass


class _ClosedError(BaseException):
    def __getattribute__(self, name: str) -> Any:
        raise ZeroDivisionError(name)


@pytest.mark.parametrize("retry", [None, Retry(attempts=1)])
@pytest.mark.parametrize(
    "kind",
    [_ExitsWhenShownError, _InterruptsWhenShownError, _NamelessError, _ClosedError],
    ids=["SystemExit", "KeyboardInterrupt", "no name", "no attribute"],
)
def test_an_exception_that_raises_when_it_is_looked_at_is_an_ordinary_failure(
    kind: Any, retry: Retry | None
) -> None:
    async def main() -> None:
        bench = Bench()
        mode = {"failure_mode": FailureMode.UNLOCK} if retry is None else {"retry": retry}

        @bench.app.dynamic_task(**mode, timeout=seconds(30), lease_duration=seconds(60))
        async def job(context: Context) -> None:
            await bench.note(context)
            if len(bench.runs) == 1:
                raise kind

        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=bench.clock.now())
            await bench.clock.settle()
            state = await context.get_task(job, "x")
            assert state is not None
            assert "Error" in str(state.last_error)
            await bench.advance(2)
            assert bench.times == ([0, 1] if retry is None else [0])

    run(main())


@pytest.mark.parametrize("mode", FailureMode)
def test_a_body_that_cancels_itself_has_failed(mode: FailureMode) -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.dynamic_task(failure_mode=mode, lease_duration=seconds(60))
        async def job(context: Context) -> None:
            await bench.note(context)
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await bench.clock.sleep(1)

        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=bench.clock.now())
            await bench.clock.settle()
            state = await context.get_task(job, "x")
            assert bench.times == [0]
            assert (state is None) is (mode is FailureMode.COMMIT)
            assert state is None or str(state.reason).startswith("CancelledError")

    run(main())


@pytest.mark.parametrize("mode", FailureMode)
def test_an_exception_that_cannot_be_shown_is_recorded_with_the_name_of_its_class(
    mode: FailureMode,
) -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    async def main() -> None:
        bench = Bench()

        @bench.app.dynamic_task(failure_mode=mode)
        async def job(context: Context) -> None:
            await bench.note(context)
            raise BrokenError

        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=bench.clock.now())
            await bench.clock.settle()
            state = await context.get_task(job, "x")
            assert bench.times == [0]
            if mode is FailureMode.COMMIT:
                assert state is None
            else:
                assert state is not None
                assert str(state.reason).startswith("BrokenError")

    run(main())


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
@EXECUTORS
@pytest.mark.parametrize("waits", [False, True])
def test_only_the_end_of_the_process_ends_the_worker(
    ending: type[BaseException], executor: Any, waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench(executor_cls=executor)

        @bench.app.task(interval=1)
        async def tick(context: Context) -> None:
            if waits:
                await asyncio.sleep(0)
            raise ending

        async with bench.app.create() as context, looping(context):
            await bench.advance(1)

    with pytest.raises(ending):
        run(main())
    gc.collect()  # asyncio reports an exception that was never retrieved at the latest now
    assert not logged(caplog, "never retrieved", "Execution.run")


@pytest.mark.parametrize("waits", [False, True])
def test_each_run_has_an_asyncio_task_of_its_own(waits: bool) -> None:
    async def main() -> None:
        bench = Bench()
        job = None
        tasks: list[Any] = []

        @bench.app.dynamic_task()
        async def body(context: Context) -> None:
            if waits:
                await asyncio.sleep(0)
            tasks.append(asyncio.current_task())

        job = body
        for number in range(50):
            await bench.plant(job, str(number))
        async with bench.running():
            await bench.clock.settle()
        assert len(set(map(id, tasks))) == len(tasks) == 50

    run(main())


def test_a_late_cancellation_hits_no_other_run() -> None:
    async def main() -> None:
        bench = Bench()
        ended: list[str] = []

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            current = asyncio.current_task()
            assert current is not None
            if context.task.name == "0":
                asyncio.get_running_loop().call_soon(current.cancel)
            ended.append(context.task.name)

        for number in range(20):
            await bench.plant(job, str(number))
        async with bench.running() as context:
            await bench.clock.settle()
            assert sorted(ended, key=int) == [str(number) for number in range(20)]
            assert (await context.list_tasks(job)).tasks == []

    run(main())


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")


def test_what_is_written_carries_the_context_variables_of_no_caller() -> None:
    seen: list[str] = []

    async def main() -> None:
        bench = Bench()

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            variable.set(f"run {context.task.name}")

        async with bench.running() as context:
            write = bench.repository._store.write

            async def noting(*arguments: Any, **options: Any) -> Any:
                seen.append(variable.get())
                return await write(*arguments, **options)

            bench.repository._store.write = noting  # type: ignore[method-assign]
            variable.set("caller")
            for number in range(3):
                await context.schedule_task(job, str(number), execute_at=bench.clock.now())
            await bench.clock.settle()

    run(main())
    assert len(seen) >= 2
    assert set(seen) == {"none"}


@pytest.mark.parametrize("mode", ExecutionMode)
def test_what_a_body_changes_in_its_arguments_is_seen_by_no_other_run(mode: ExecutionMode) -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[list[str]] = []

        @bench.app.task(interval=1, execution_mode=mode, names=["start"])
        async def tick(context: Context) -> None:
            seen.append(list(context.args["names"]))
            context.args["names"].append("more")

        async with bench.running():
            await bench.advance(3)
        assert seen == [["start"]] * 3
        assert tick.extra_args == {"names": ["start"]}

    run(main())


def test_a_body_that_outlives_its_lease_is_started_again_each_time_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.task(interval=2, lease_duration=seconds(2))
        async def slow(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(10)

        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.advance(10)
            context.shutdown()
            await loop
            await bench.advance(60)
        assert bench.times == [2, 4, 6, 8, 10]

    with caplog.at_level(logging.WARNING):
        run(main())
    told = [line for line in caplog.messages if "longer than lease_duration" in line]
    assert len(told) == 1
    assert "heartbeat" in told[0]


def test_suspects_that_wait_for_another_are_not_claimed_at_all() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(30)

        for number in range(50):
            await bench.plant(
                job, str(number), unfinished_attempts=3, state="running", token="dead:1:1"
            )
        await bench.plant(job, "innocent", planned=5)
        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.advance(20)
            claims, writes = bench.faults.made("claim"), bench.faults.made("write")
            assert len(claims) < 60  # one a poll interval, and the hold-off after the first
            assert sum(len(call.arguments[0]) for call in writes) < 110
            assert [str(entry.name) for entry in bench.runs].count("job:innocent") == 1
            assert len(bench.runs) == 2
            await bench.advance(11)
            assert len(bench.runs) == 3  # the next suspect, when the first has ended
            context.shutdown()
            await loop
            await bench.advance(60)

    run(main())


def test_names_cannot_write_lines_of_their_own_into_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", failure_mode=FailureMode.COMMIT)(bench.fail)
        async with bench.running() as context:
            name = "bob\n2026-11-28 CRITICAL\x1b[2K"
            await context.schedule_task(job, name, execute_at=bench.clock.now())
            await bench.clock.settle()

    run(main())
    assert logged(caplog, "job:bob\\n2026-11-28 CRITICAL\\x1b[2K failed")
    assert not any("\n" in line or "\x1b" in line for line in caplog.messages)
