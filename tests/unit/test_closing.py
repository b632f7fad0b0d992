"""Closing ends in any case: bodies first, then fixtures and the store, and nothing stays behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from tests.faulty_store import Fail, Gate
from tests.support import START, Bench, after, logged, micros, run, seconds

from pyncette import Context, ExecutionMode, Pyncette, PyncetteContext
from pyncette.engine import rules
from pyncette.errors import StoreUnavailableError
from pyncette.executor import DefaultExecutor, SynchronousExecutor
from pyncette.memory import MemoryRepository, MemoryStore
from pyncette.store import Result
from pyncette.testing import VirtualClock

pytestmark = pytest.mark.every_poll


class Diary:
    """An app whose body, fixture and store note when they end."""

    def __init__(self, stubborn: bool = False) -> None:
        self.events: list[str] = []
        self.begun = asyncio.Event()
        self.clock = VirtualClock(START)
        self.repository = MemoryRepository()
        self.app = Pyncette(self._store, clock=self.clock)
        self.app.use_fixture("fixture", self._fixture)

        @self.app.dynamic_task()
        async def job(context: Context) -> None:
            self.begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                try:
                    if stubborn:
                        await asyncio.sleep(0.01)
                finally:
                    self.events.append("body")

        self.job = job

    @asynccontextmanager
    async def _store(self, **configuration: Any) -> AsyncIterator[Any]:
        async with self.repository(**configuration) as store:
            yield store
            self.events.append("store")

    async def _fixture(self, context: PyncetteContext) -> AsyncIterator[int]:
        yield 1
        self.events.append("fixture")

    async def record(self) -> Any:
        async with self.repository() as store:
            [record] = await store.get([(self.job.group, "x")])
            return record


def test_a_loop_that_is_cancelled_and_left_in_the_same_step_cancels_its_bodies() -> None:
    async def main() -> None:
        diary = Diary()
        async with diary.app.create() as context:
            await context.schedule_task(diary.job, "x", execute_at=START)
            loop = asyncio.create_task(context.run())
            await diary.begun.wait()
            loop.cancel()
        assert loop.cancelled()
        assert diary.events == ["body", "fixture", "store"]
        record = await diary.record()
        assert (record.state, record.due_at) == ("running", micros(60))

    run(main())


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_cancellation_while_closing_cancels_bodies_and_closes_what_they_use_afterwards(
    times: int,
) -> None:
    async def main() -> None:
        diary = Diary(stubborn=True)

        async def serve() -> None:
            async with diary.app.create() as context:
                await context.schedule_task(diary.job, "x", execute_at=START)
                loop = asyncio.create_task(context.run())
                await diary.begun.wait()
                context.shutdown()
                await loop
                closing.set()

        closing = asyncio.Event()
        serving = asyncio.create_task(serve())
        await closing.wait()
        for _ in range(times):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            serving.cancel()
        await asyncio.wait([serving])
        assert serving.cancelled()
        assert diary.events == ["body", "fixture", "store"]
        record = await diary.record()
        assert (record.state, record.due_at) == ("scheduled", micros(0))
        assert record.unfinished_attempts == 0

    run(main())


def test_a_timeout_around_an_app_ends_its_closing() -> None:
    async def serve(diary: Diary) -> None:
        async with asyncio.timeout(None) as timeout, diary.app.create() as context:
            await context.schedule_task(diary.job, "x", execute_at=START)
            loop = asyncio.create_task(context.run())
            await diary.begun.wait()
            context.shutdown()
            await loop
            timeout.reschedule(asyncio.get_running_loop().time())

    async def main() -> None:
        diary = Diary()
        with pytest.raises(TimeoutError):
            await serve(diary)
        assert diary.events == ["body", "fixture", "store"]

    run(main())


def test_closing_says_who_sleeps_on_a_clock_that_nobody_moves(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        bench = Bench()
        ended: list[str] = []

        @bench.app.task(interval=1)
        async def sleepy(context: Context) -> None:
            try:
                await bench.clock.sleep(90)
            finally:
                ended.append("sleepy")

        async def leave_it_asleep() -> None:
            async with bench.app.create() as context:
                loop = asyncio.create_task(context.run())
                await bench.advance(1)
                context.shutdown()
                await loop

        with pytest.raises(RuntimeError, match=r"sleepy.*moved by hand"):
            await leave_it_asleep()
        assert ended == ["sleepy"]

    monkeypatch.setattr("pyncette.context.CLOSING_WORD_AFTER_BY_HAND_S", 0.01)
    monkeypatch.setattr("pyncette.context.CLOSING_PATIENCE_BY_HAND_S", 0.03)
    run(main())
    assert logged(caplog, "Closing waits for running executions: sleepy")


def test_closing_with_the_store_down_ends_in_time_and_says_what_was_not_written(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        bench = Bench()
        released = asyncio.Event()

        @bench.app.task(interval=1, lease_duration=seconds(3_600))
        async def tick(context: Context) -> None:
            await released.wait()

        down = bench.faults.down("write")
        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.advance(1)
            context.shutdown()
            await loop
            down.__enter__()
            released.set()

    monkeypatch.setattr("pyncette.context.CLOSING_PATIENCE_S", 0.05)
    run(main())
    assert logged(caplog, "1 writes were not made when the app closed", "'tick'")
    assert logged(caplog, "The outcome of tick could not be recorded")


def test_closing_ends_though_the_store_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(MemoryStore):
        hangs = False

        async def write(self, batch: Any, now: int, wake: Any = ()) -> list[Result]:
            if self.hangs:
                await asyncio.Event().wait()
            return await super().write(batch, now, wake)

    async def main() -> None:
        store = Hanging()

        @asynccontextmanager
        async def factory(**configuration: Any) -> AsyncIterator[Hanging]:
            yield store

        app = Pyncette(factory)
        job = app.dynamic_task(name="job")(Bench().note)
        async with app.create() as context:
            store.hangs = True
            call = asyncio.create_task(context.schedule_task(job, "x", interval=1))
            await asyncio.sleep(0)
        with pytest.raises(StoreUnavailableError, match="closed"):
            await call

    monkeypatch.setattr("pyncette.context.CLOSING_PATIENCE_S", 0.02)
    run(main())


DEFECTS = {
    "a change that cannot be decided": "advanced",
    "a store that gives too few answers": None,
    "an answer that cannot be taken in": "verdict",
}


@pytest.mark.parametrize("defect", DEFECTS.values(), ids=DEFECTS)
def test_a_defect_in_one_entry_ends_that_entry_and_closing_returns(
    defect: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("a row that nobody thought of")

    class Curt(MemoryStore):
        curt = False

        async def write(self, batch: Any, now: int, wake: Any = ()) -> list[Result]:
            if defect == "verdict":
                batch = [write._replace(expect=99) for write in batch if self.curt] or batch
            results = await super().write(batch, now, wake)
            return results[:-1] if self.curt and defect is None else results

    async def main() -> None:
        store = Curt()

        @asynccontextmanager
        async def factory(**configuration: Any) -> AsyncIterator[Curt]:
            yield store

        clock = VirtualClock(START)
        app = Pyncette(factory, clock=clock)
        bench = Bench()
        app.task(
            name="tick", interval=1, execution_mode=ExecutionMode.AT_MOST_ONCE, lease_duration=1
        )(bench.note)
        async with app.create() as context:
            loop = asyncio.create_task(context.run())
            await clock.settle()
            store.curt = True
            if defect is not None:
                monkeypatch.setattr(rules, defect, broken)
            await clock.advance(seconds(1))
            context.shutdown()
            await loop
        assert bench.runs == []

    monkeypatch.setattr("pyncette.context.CLOSING_WORD_AFTER_BY_HAND_S", 0.02)
    run(main())
    if defect is not None:
        assert logged(caplog, "tick was not started")


@pytest.mark.parametrize("from_thread", [False, True])
def test_shutdown_is_heard_at_once_from_a_thread_too(from_thread: bool) -> None:
    async def main() -> None:
        bench = Bench(poll_interval=seconds(3_600))
        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.clock.settle()
            if from_thread:
                thread = threading.Thread(target=context.shutdown)
                thread.start()
                thread.join()
            else:
                context.shutdown()
            await loop
        context.shutdown()  # also when all is over

    run(main())


def test_a_loop_whose_clock_is_set_back_while_the_store_fails_asks_again_soon() -> None:
    class Stepping(VirtualClock):
        back = 0

        def microseconds(self) -> int:
            return super().microseconds() - self.back

    async def main() -> None:
        bench = Bench()
        clock = bench.clock = Stepping(START)
        bench.app = bench.another_app()
        bench.app.task(name="tick", interval=1)(bench.note)
        async with bench.running() as context:
            await bench.advance(1)
            with bench.faults.down("claim"):
                await bench.advance(1)
                clock.back = 600_000_000
                await bench.advance(1)
            claims = len(bench.faults.made("claim"))
            await bench.advance(5)
            assert len(bench.faults.made("claim")) > claims
            assert context.last_tick > after(-600)

    run(main())


def test_what_was_not_started_when_closing_is_cancelled_is_given_back() -> None:
    async def main() -> None:
        bench = Bench()
        record = None

        @asynccontextmanager
        async def slow_executor(**configuration: Any) -> AsyncIterator[Any]:
            class Executor:
                concurrency_limit = 10

                async def spawn_task(self, awaitable: Any) -> None:
                    waiting.append(awaitable)

            yield Executor()
            for awaitable in waiting:
                await awaitable

        waiting: list[Any] = []
        app = bench.another_app(executor_cls=slow_executor)
        task = app.task(name="tick", interval=1)(bench.note)
        async with app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.advance(1)
            loop.cancel()
        record = await bench.record(task)
        assert record is not None
        assert (record.state, record.due_at) == ("scheduled", micros(1))
        assert bench.runs == []

    run(main())


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_cancelled_claim_has_taken_is_given_back_if_the_store_still_answers(
    fails: bool,
) -> None:
    async def main() -> None:
        bench = Bench()
        task = bench.app.task(name="tick", interval=1)(bench.note)
        gate = Gate(answer=True)
        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.advance(0.5)
            bench.faults.next("claim", gate)
            moving = asyncio.create_task(bench.advance(0.5))
            await gate.reached()
            if fails:
                bench.faults.next("claim", Fail())
            loop.cancel()
        await moving
        record = await bench.record(task)
        assert record is not None
        assert (record.state, record.unfinished_attempts) == (
            ("running", 1) if fails else ("scheduled", 0)
        )
        assert fails or record.due_at == micros(1)
        assert bench.runs == []

    run(main())


@pytest.mark.parametrize(("times", "patient"), [(1, True), (3, True), (1, False)])
def test_an_at_most_once_run_that_is_cancelled_while_it_moves_on_begins_and_is_told(
    times: int, patient: bool
) -> None:
    async def main() -> None:
        bench = Bench()
        told: list[str] = []
        seen: list[str] = []
        bench.app.on_event(lambda event: told.append(type(event).__name__))

        @bench.app.dynamic_task(execution_mode=ExecutionMode.AT_MOST_ONCE)
        async def job(context: Context) -> None:
            seen.append("begun")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        gate = Gate(answer=True)

        async def release(execution: Any) -> None:
            for _ in range(times):
                await asyncio.sleep(0)
                execution.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
            if not patient:
                # Closing has waited for long.
                execution._parts.worker.dispatcher.cancel_waiting()
            for _ in range(5):
                await asyncio.sleep(0)
            gate.release()

        async with bench.app.create() as context:
            await context.schedule_task(job, "a", execute_at=after(1))
            loop = asyncio.create_task(context.run())
            await bench.advance(0.5)
            bench.faults.next("write", gate)
            moving = asyncio.create_task(bench.advance(0.5))
            await gate.reached()
            loop.cancel()
            [execution] = context._worker.dispatcher.executions
            releasing = asyncio.create_task(release(execution))
        await moving
        await releasing
        # Its record has moved on: it is gone, and nobody runs it again.
        assert await bench.record(job, "a") is None
        assert seen == (["begun", "cancelled"] if patient else [])
        assert told.count("Started") == told.count("Cancelled") == patient

    run(main())


@pytest.mark.parametrize("cancels", [False, True])
def test_what_an_executor_never_begins_is_given_back_when_it_has_been_left(cancels: bool) -> None:
    async def main() -> None:
        bench = Bench()
        waiting: list[Any] = []

        class Losing:
            """Takes work on, and never begins it."""

            def __init__(self, **configuration: Any) -> None:
                pass

            async def __aenter__(self) -> Losing:
                return self

            async def __aexit__(self, *exception: object) -> None:
                for task in waiting:
                    task.cancel()
                if waiting:
                    await asyncio.wait(waiting)

            async def spawn_task(self, awaitable: Any) -> None:
                task = asyncio.ensure_future(awaitable)
                task.cancel()
                if cancels:
                    waiting.append(task)

        app = bench.another_app(executor_cls=Losing)
        task = app.task(name="tick", interval=1)(bench.note)
        async with app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.advance(1)
            context.shutdown()
            await loop
        record = await bench.record(task)
        assert record is not None
        assert (record.state, record.unfinished_attempts) == ("scheduled", 0)
        assert bench.runs == []

    run(main())


def test_a_loop_that_is_cancelled_ends_though_a_body_within_it_suppresses_that() -> None:
    async def main() -> None:
        bench = Bench(executor_cls=SynchronousExecutor)
        begun = asyncio.Event()

        @bench.app.task(interval=seconds(1))
        async def stubborn(context: Context) -> None:
            await bench.note(context)
            begun.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.advance(1)
            await begun.wait()
            loop.cancel()
            await asyncio.wait([loop])
            assert loop.cancelled()
        assert bench.times == [1]

    run(main())


def test_a_loop_runs_on_in_a_task_that_has_suppressed_a_cancellation_before() -> None:
    async def main() -> None:
        bench = Bench(executor_cls=SynchronousExecutor)
        bench.app.task(interval=seconds(1))(bench.note)

        async def serve(context: PyncetteContext) -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await context.run()

        async with bench.app.create() as context:
            serving = asyncio.create_task(serve(context))
            await asyncio.sleep(0)
            serving.cancel()
            await bench.advance(3)
            context.shutdown()
            await serving
        assert bench.times == [1, 2, 3]

    run(main())


class Scatterbrained:
    """An executor that cancels the first of its asyncio tasks before it begins."""

    def __init__(self, **configuration: Any) -> None:
        self.tasks: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> Scatterbrained:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await asyncio.wait(self.tasks)

    async def spawn_task(self, awaitable: Any) -> None:
        self.tasks.append(asyncio.create_task(awaitable))
        if len(self.tasks) == 1:
            self.tasks[0].cancel()


@pytest.mark.parametrize("mode", ExecutionMode)
@pytest.mark.parametrize(
    "executor",
    [DefaultExecutor, Scatterbrained],
    ids=["by the library's executor", "by another one"],
)
def test_a_run_that_is_cancelled_before_its_first_step_gives_back_its_record_and_its_slot(
    executor: Any, mode: ExecutionMode, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench(executor_cls=executor, concurrency_limit=1)
        bench.app.task(name="tick", interval=seconds(3), execution_mode=mode)(bench.note)
        cancelled: list[asyncio.Task[Any]] = []

        def factory(loop: Any, work: Any, **options: Any) -> asyncio.Task[Any]:
            task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
            if executor is DefaultExecutor and "Execution.run" in repr(work) and not cancelled:
                cancelled.append(task)
                task.cancel()
            return task

        asyncio.get_running_loop().set_task_factory(factory)
        async with bench.running():
            await bench.advance(2)
            await bench.advance(1)
            await bench.advance(1)
            [again] = bench.times
            assert again in (3, 4)  # at the same poll or the next one
            await bench.advance(2)
            assert bench.times == [again, 6]

    run(main())
    assert logged(caplog, "tick was not started: its asyncio task was cancelled")


class Held(MemoryStore):
    """A store whose claims wait until they are released."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.released = asyncio.Event(), asyncio.Event()

    async def claim(self, *args: Any, **options: Any) -> Any:
        self.asked.set()
        await self.released.wait()
        return await super().claim(*args, **options)


def test_closing_names_what_it_waits_for_or_says_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pyncette.context.CLOSING_WORD_AFTER_S", 0.01)

    async def main() -> None:
        store = Held()

        @asynccontextmanager
        async def repository(**configuration: Any) -> AsyncIterator[Any]:
            yield store

        async with Pyncette(repository).create() as context:
            running = asyncio.create_task(context.run())
            await store.asked.wait()
            asyncio.get_running_loop().call_later(0.1, store.released.set)
        await running

    run(main())
    assert not logged(caplog, "Closing waits")
