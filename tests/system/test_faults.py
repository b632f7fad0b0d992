"""The loop on a store whose calls fail, whose answers are lost, or come too late.

Each test is named after what must hold all the same. `Faults` strikes the calls of one worker; a
second worker on the same records has none.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from datetime import datetime, timedelta
from typing import Any, TypeVar

import pytest
from tests.faulty_store import Delay, Fail, Fault, Gate, LoseAnswer, faulty
from tests.support import BenchFaults

from pyncette import Context, ExecutionMode, Pyncette, PyncetteContext
from pyncette.executor import DefaultExecutor
from pyncette.memory import MemoryRepository
from pyncette.store import Group, Write, scan_all
from pyncette.store.record import Delete, Patch, State
from pyncette.testing import VirtualClock

SECOND = timedelta(seconds=1)
LEASE = timedelta(seconds=60)

T = TypeVar("T")


class UnheldClock(VirtualClock):
    """Time passes also while a call to the store is under way."""

    def hold(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


class Worker:
    """An app with one template, whose instances count their runs."""

    def __init__(
        self, repository: Any, clock: VirtualClock, runs: Counter[str], **options: Any
    ) -> None:
        self.faults = BenchFaults()
        self.app = Pyncette(faulty(repository, self.faults), clock=clock)
        self.began: list[str] = []
        self.began_at: list[tuple[str, datetime]] = []
        self.finish = asyncio.Event()
        self.finish.set()
        self.is_open = False

        @self.app.dynamic_task(lease_duration=LEASE, **options)
        async def report(context: Context) -> None:
            self.began.append(context.task.name)
            self.began_at.append((context.task.name, context.scheduled_at))
            runs[context.task.name] += 1
            await self.finish.wait()

        self.report = report

    @asynccontextmanager
    async def running(self) -> AsyncIterator[PyncetteContext]:
        async with self.app.create() as context:
            self.is_open = True
            loop = asyncio.create_task(context.run())
            try:
                yield context
            finally:
                context.shutdown()
                await loop


class World:
    """A store in memory, a clock, and workers."""

    def __init__(self, held: bool = True) -> None:
        self.clock = VirtualClock() if held else UnheldClock()
        self.repository = MemoryRepository()
        self.runs: Counter[str] = Counter()

    def worker(self, **options: Any) -> Worker:
        return Worker(self.repository, self.clock, self.runs, **options)

    async def schedule(self, count: int, **options: Any) -> None:
        """One-off instances that are due now, unless options say otherwise."""
        worker = self.worker()
        options = options or {"execute_at": self.clock.now()}
        async with worker.app.create() as context:
            for number in range(count):
                await context.schedule_task(worker.report, f"{number}", **options)

    async def records(self) -> list[Any]:
        async with self.repository() as store:
            return [record async for record in scan_all(store, "report")]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits in real time: retries of the settler do, too."""
        async with asyncio.timeout(20):
            while not holds():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def warnings_are_expected(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.ERROR, logger="pyncette")
    yield
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR], caplog.text


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Runs a test; bodies that are never told to finish would keep one that failed for ever."""

    async def in_time() -> None:
        async with asyncio.timeout(60):
            await main()

    asyncio.run(in_time())


def settles(batch: list[Write], *_: object) -> bool:
    return any(
        isinstance(write.change, Delete)
        or (isinstance(write.change, Patch) and write.change.state != State.RUNNING)
        for write in batch
    )


def claims_a_group(sources: list[Any], limit: int, *_: object) -> bool:
    return limit > 0 and any(isinstance(source, Group) for source in sources)


def test_a_claim_whose_answer_is_lost_again_and_again_leases_one_batch_and_runs_it_once() -> None:
    async def main() -> None:
        world = World()
        await world.schedule(10)
        worker = world.worker()
        worker.faults.next("claim", *[LoseAnswer()] * 4, matches=claims_a_group)
        async with worker.running():
            await world.clock.advance(LEASE / 2)
            assert world.runs == Counter(f"{number}" for number in range(10))
        claims = worker.faults.made("claim")[:5]
        assert len({call.arguments[3] for call in claims}) == 1
        assert [call.arguments[4] for call in claims] == [False, True, True, True, True]
        assert await world.records() == []

    run(main)


def test_what_a_lost_claim_holds_runs_when_its_lease_has_ended() -> None:
    async def main() -> None:
        world = World()
        await world.schedule(10)
        worker = world.worker()
        worker.faults.next("claim", LoseAnswer(), matches=claims_a_group)
        async with worker.running():
            await world.clock.settle()
            with worker.faults.down():
                await world.clock.advance(2 * LEASE)
            await world.clock.advance(5 * SECOND)
            assert world.runs == Counter(f"{number}" for number in range(10))

    run(main)


def test_a_store_that_is_down_for_minutes_is_taken_up_again_within_five_seconds() -> None:
    async def main() -> None:
        world = World()
        worker = world.worker()
        async with worker.running():
            await world.clock.settle()
            with worker.faults.down():
                await world.schedule(3)
                await world.clock.advance(timedelta(minutes=5))
                assert not world.runs
                calls = len(worker.faults.calls)
                assert calls < 5 * 60 * 3
            await world.clock.advance(5 * SECOND)
            assert set(world.runs.values()) == {1}
            assert len(world.runs) == 3

    run(main)


def test_a_store_that_is_down_when_the_loop_begins_is_waited_for() -> None:
    async def main() -> None:
        world = World()
        await world.schedule(1)
        worker = world.worker()
        async with worker.app.create() as context:
            with worker.faults.down():
                loop = asyncio.create_task(context.run())
                await world.clock.advance(10 * SECOND)
                assert not loop.done()
            await world.clock.advance(5 * SECOND)
            assert world.runs == {"0": 1}
            context.shutdown()
            await loop

    run(main)


def test_a_one_off_whose_settle_is_applied_and_unanswered_runs_once() -> None:
    async def main() -> None:
        world = World()
        await world.schedule(1)
        worker = world.worker()
        worker.faults.next("write", LoseAnswer(), LoseAnswer(), matches=settles)
        async with worker.running():
            await world.clock.settle()
            await world.until(lambda: len(worker.faults.made("write")) == 3)
            await world.clock.advance(2 * LEASE)
        assert world.runs == {"0": 1}
        assert await world.records() == []

    run(main)


def test_a_recurrence_whose_settle_is_unanswered_is_settled_once() -> None:
    async def main() -> None:
        world = World()
        await world.schedule(1, interval=10 * SECOND)
        worker = world.worker()
        async with worker.running():
            worker.faults.next("write", LoseAnswer(), Fail(), matches=settles)
            await world.clock.advance(10 * SECOND)
            await world.until(lambda: len(worker.faults.made("write")) == 3)
            assert world.runs == {"0": 1}
            await world.clock.advance(10 * SECOND)
            assert world.runs == {"0": 2}
        [record] = await world.records()
        assert (record.state, record.unfinished_attempts) == (State.SCHEDULED, 0)

    run(main)


def test_a_settle_that_never_arrives_leaves_the_run_to_be_repeated() -> None:
    async def main() -> None:
        world = World()
        await world.schedule(1)
        worker = world.worker()
        async with worker.running() as context:
            with worker.faults.down("write"):
                await world.clock.advance(SECOND)
                assert world.runs == {"0": 1}
                await world.clock.advance(LEASE)
                await world.until(lambda: worker.faults.calls[-1].name != "write")
            await world.clock.advance(5 * SECOND)
            # The settler waits in real time before it tries again; virtual leases would pass by.
            await world.until(lambda: len(context._worker.writes) == 0)
            await world.clock.advance(2 * LEASE)
        assert world.runs["0"] >= 2
        assert await world.records() == []

    run(main)


def test_records_that_are_given_back_at_shutdown_lose_no_attempt() -> None:
    async def main() -> None:
        world = World()
        await world.schedule(5)
        worker = world.worker()
        gate = Gate(answer=True)
        worker.faults.next("claim", gate, matches=claims_a_group)
        async with worker.app.create() as context:
            loop = asyncio.create_task(context.run())
            await gate.reached()
            context.shutdown()
            gate.release()
            await loop
        assert not world.runs
        records = await world.records()
        now = world.clock.microseconds()
        assert {(r.state, r.unfinished_attempts, r.due_at <= now) for r in records} == {
            ("scheduled", 0, True)
        }

    run(main)


def test_a_worker_that_is_frozen_between_claim_and_start_does_not_start_a_second_body() -> None:
    async def main() -> None:
        world = World(held=False)
        await world.schedule(3)
        frozen, other = world.worker(), world.worker()
        gate = Gate(answer=True)
        frozen.faults.next("claim", gate, matches=claims_a_group)
        other.finish.clear()
        async with frozen.running():
            await gate.reached()
            await world.clock.advance(LEASE + SECOND)
            async with other.running():
                await world.clock.advance(SECOND)
                assert len(other.began) == 3
                gate.release()
                await world.clock.advance(SECOND)
                assert frozen.began == []
                other.finish.set()
        assert set(world.runs.values()) == {1}
        assert await world.records() == []

    run(main)


def test_an_executor_that_is_late_by_a_lease_does_not_start_a_second_body() -> None:
    late = asyncio.Event()

    class LateExecutor(DefaultExecutor):
        async def spawn_task(self, awaitable: Awaitable[Any]) -> None:
            async def later() -> None:
                await late.wait()
                await awaitable

            await super().spawn_task(later())

    async def main() -> None:
        world = World()
        await world.schedule(3)
        frozen, other = world.worker(), world.worker()
        frozen.app = Pyncette(world.repository, LateExecutor, clock=world.clock)
        frozen.app.dynamic_task(name="report")(frozen.report)
        other.finish.clear()
        async with frozen.app.create() as context:
            loop = asyncio.create_task(context.run())
            await world.clock.settle()
            context.shutdown()
            await loop
            async with other.running():
                await world.clock.advance(LEASE + SECOND)
                assert len(other.began) == 3
                late.set()
                await world.clock.advance(SECOND)
                assert frozen.began == []
                other.finish.set()
        assert set(world.runs.values()) == {1}

    run(main)


def test_a_slow_answer_to_a_claim_is_extended_before_the_bodies_start() -> None:
    async def main() -> None:
        world = World(held=False)
        await world.schedule(1)
        worker, other = world.worker(), world.worker()
        worker.finish.clear()
        slow = Delay(world.clock, 50, answer=True)
        worker.faults.next("claim", slow, matches=claims_a_group)
        async with worker.running():
            await world.clock.advance(timedelta(seconds=50))
            assert worker.began == ["0"]
            async with other.running():
                await world.clock.advance(timedelta(seconds=59))
                assert other.began == []
                worker.finish.set()
                await world.clock.advance(SECOND)
        assert world.runs == {"0": 1}

    run(main)


def test_at_most_once_with_a_lease_shorter_than_the_latency_of_the_store_runs() -> None:
    async def main() -> None:
        world = World(held=False)
        await world.schedule(1, interval=timedelta(hours=1))
        worker = world.worker(execution_mode=ExecutionMode.AT_MOST_ONCE)
        worker.report.lease_duration = timedelta(milliseconds=100)
        with worker.faults.down("write", fault=Delay(world.clock, 1)):
            async with worker.running():
                await world.clock.advance(timedelta(hours=1, seconds=10))
        assert world.runs == {"0": 1}

    run(main)


def test_at_most_once_that_has_moved_on_runs_also_when_a_shutdown_comes_between() -> None:
    async def main() -> None:
        world = World()
        await world.schedule(1)
        worker = world.worker(execution_mode=ExecutionMode.AT_MOST_ONCE)
        gate = Gate(answer=True)
        worker.faults.next("write", gate)
        async with worker.app.create() as context:
            loop = asyncio.create_task(context.run())
            await gate.reached()
            context.shutdown()
            await loop
            gate.release()
        assert world.runs == {"0": 1}

    run(main)


@pytest.mark.parametrize(("options", "runs"), [({}, 0), ({"interval": LEASE}, 1)])
def test_at_most_once_whose_advance_is_unanswered_runs_where_the_record_tells_that_it_may(
    options: dict[str, timedelta], runs: int
) -> None:
    """A one-off leaves no record behind that could tell."""

    async def main() -> None:
        world = World()
        await world.schedule(1, **options)
        worker = world.worker(execution_mode=ExecutionMode.AT_MOST_ONCE)
        worker.faults.next("write", LoseAnswer())
        async with worker.running():
            await world.clock.advance(options.get("interval", SECOND))
            await world.until(lambda: len(worker.faults.made("write")) == 2)
            await world.clock.advance(SECOND)
        assert world.runs["0"] == runs

    run(main)


def test_at_most_once_that_another_has_taken_while_its_advance_was_on_the_way_runs_once() -> None:
    async def main() -> None:
        world = World(held=False)
        await world.schedule(1, interval=timedelta(hours=1))
        mode = ExecutionMode.AT_MOST_ONCE
        slow, other = world.worker(execution_mode=mode), world.worker(execution_mode=mode)
        gate = Gate()
        slow.faults.next("write", gate)
        slow.faults.next("write", LoseAnswer())
        async with slow.running():
            await world.clock.advance(timedelta(hours=1))
            await gate.reached()
            async with other.running():
                with slow.faults.down("claim"):
                    await world.clock.advance(LEASE + SECOND)
                    assert other.began == ["0"]
                    gate.release()
                    await world.clock.advance(SECOND)
                    assert slow.began == []

    run(main)


class OnceOpen:
    """A fault of the calls of a worker that is open.

    Opening tries for some seconds of real time: a row of faults would end it.
    """

    def __init__(self, worker: Worker, fault: Fault) -> None:
        self._worker = worker
        self._fault = fault

    async def strike(self, call: Callable[[], Awaitable[T]]) -> T:
        return await (self._fault.strike(call) if self._worker.is_open else call())


def with_chance(world: World, seed: int, **options: Any) -> Worker:
    """A worker of which every third call is struck."""
    worker = world.worker(**options)
    kinds = [OnceOpen(worker, fault) for fault in (Fail(), LoseAnswer())]
    worker.faults = BenchFaults(seed, 0.3, kinds)
    factory = faulty(world.repository, worker.faults)
    worker.app = Pyncette(factory, clock=world.clock, batch_size=5)
    worker.app.dynamic_task(name="report", **options)(worker.report)
    return worker


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_lost_what_runs_at_least_once_is_not_lost(seed: int) -> None:
    async def main() -> None:
        world = World()
        await world.schedule(40)
        async with with_chance(world, seed).running() as context, asyncio.timeout(30):
            while await world.records():
                await world.clock.advance(5 * SECOND)
                await world.until(lambda: len(context._worker.writes) == 0)
        assert set(world.runs) == {f"{number}" for number in range(40)}

    run(main)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_lost_what_runs_at_most_once_does_not_run_twice(seed: int) -> None:
    async def main() -> None:
        world = World()
        await world.schedule(10, interval=10 * SECOND)
        worker = with_chance(world, seed, execution_mode=ExecutionMode.AT_MOST_ONCE)
        async with worker.running() as context:
            for _ in range(60):
                await world.clock.advance(5 * SECOND)
                # The settler waits in real time before it tries again.
                await world.until(lambda: len(context._worker.writes) == 0)
        occurrences = Counter(worker.began_at)
        assert max(occurrences.values()) == 1
        assert len(occurrences) > 20

    run(main)
