"""What users call, on every store: an app on a clock that is moved by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from tests.stores.every_store import STORES, place_of

from pyncette import (
    Context,
    FailureMode,
    Instance,
    OnExisting,
    PerWorker,
    Pyncette,
    PyncetteContext,
    Retry,
    Where,
    acting_as,
)
from pyncette.errors import TaskLockedException, TaskPausedError
from pyncette.events import Steered
from pyncette.model import TaskCount
from pyncette.sqlite import sqlite_repository
from pyncette.task import PartitionedTask, default_partition_selector
from pyncette.testing import VirtualClock
from pyncette.testing.conformance import Place

START = datetime(2026, 1, 5, 12, tzinfo=UTC)


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with place_of(request.param, tmp_path) as place:
        yield place


class Program:
    """A program with one template, and what it ran."""

    def __init__(
        self,
        place: Place,
        partitions: int | None = None,
        *,
        clock: VirtualClock | None = None,
        **options: Any,
    ) -> None:
        self.clock = clock or VirtualClock(START)
        self.app = Pyncette(place.factory, clock=self.clock, **place.configuration)
        self.runs: list[tuple[str, float]] = []
        self.planned: list[tuple[str, datetime]] = []
        self.args: list[dict[str, Any]] = []

        async def job(context: Context) -> None:
            self.runs.append((context.task.name, self.clock.monotonic()))
            self.args.append(context.args)
            self.planned.append((context.task.name, context.scheduled_at))

        declare = (
            self.app.dynamic_task(**options)
            if partitions is None
            else self.app.partitioned_task(partitions, **options)
        )
        self.job = declare(job)

    async def advance(self, number: float) -> None:
        await self.clock.advance(seconds(number))

    async def while_running(
        self, work: Coroutine[Any, Any, None], context: PyncetteContext
    ) -> None:
        loop = asyncio.create_task(context.run())
        try:
            await work
        finally:
            context.shutdown()
            await loop


def test_steering(place: Place) -> None:
    async def main() -> None:
        program = Program(place)
        job = program.job

        async def steer(context: PyncetteContext) -> None:
            for name in ("a", "b", "c"):
                await context.schedule_task(job, name, interval=seconds(10))
            told: list[Steered] = []
            program.app.on_event(told.append, Steered)
            with acting_as("alïce \x00 \U0001f40d"):
                await context.pause(job, "a", until=START + seconds(35), reason="söme \U0001f40d")
            [event] = told
            assert (event.action, event.label) == ("pause", f"{job.name}:a")
            await context.pause(job, "b")
            state = await context.get_task(job, "a")
            assert state is not None
            assert (state.state, state.reason) == ("paused", "söme \U0001f40d")
            assert state.paused_until == START + seconds(35)
            assert (state.paused_by, state.paused_since) == ("alïce \x00 \U0001f40d", START)
            await program.advance(12)
            assert program.runs == [("c", 10)]
            assert await context.trigger(job, "b") == 1
            await program.advance(3)
            assert program.runs == [("c", 10), ("b", 12)]
            program.runs.clear()
            await program.advance(21)
            assert sorted(program.runs) == [("a", 35)] * 3 + [("c", 20), ("c", 30)]
            program.runs.clear()

            with acting_as("bob"):
                await context.pause(job, reason="all of it")
            [pause] = await context.pauses()
            assert (pause.name, pause.reason, pause.by) == ("job", "all of it", "bob")
            with pytest.raises(TaskPausedError):
                await context.trigger(job, "a")
            await program.advance(20)
            assert program.runs == []
            await context.resume(job)
            await program.advance(1)
            assert {name for name, _ in program.runs} == {"a", "c"}
            program.runs.clear()
            assert await context.trigger(job) == 3
            await program.advance(1)
            assert sorted(name for name, _ in program.runs) == ["a", "b", "c"]

        async with program.app.create() as context:
            await program.while_running(steer(context), context)

    asyncio.run(main())


@pytest.mark.parametrize("partitions", [None, 3])
def test_steering_some_instances(place: Place, partitions: int | None) -> None:
    async def main() -> None:
        program = Program(place, partitions)
        job, tenant = program.job, Where(prefix="a")

        async def steer(context: PyncetteContext) -> None:
            for name in ("a1", "a2", "b1"):
                await context.schedule_task(job, name, interval=seconds(10))
            result = await context.pause_tasks(job, where=tenant, reason="moves")
            assert (result.updated, result.failed) == (2, 0)
            await program.advance(12)
            assert program.runs == [("b1", 10)]
            assert (await context.trigger_tasks(job, where=tenant)).updated == 2
            await program.advance(1)
            assert sorted(name for name, _ in program.runs) == ["a1", "a2", "b1"]
            program.runs.clear()
            result = await context.resume_tasks(job, where=Where(paused=True))
            assert (result.updated, result.failed) == (2, 0)
            await program.advance(1)
            assert sorted(name for name, _ in program.runs) == ["a1", "a2"]

        async with program.app.create() as context:
            await program.while_running(steer(context), context)

    asyncio.run(main())


def test_scheduling_what_exists(place: Place) -> None:
    async def main() -> None:
        program = Program(place)
        job = program.job
        async with program.app.create() as context:
            await context.schedule_task(job, "x", execute_at=START + seconds(10))
            for on_existing, at, planned in (
                (OnExisting.SOONER, 50, 10),
                (OnExisting.KEEP, 5, 10),
                (OnExisting.REPLACE, 50, 50),
            ):
                instance = await context.schedule_task(
                    job, "x", execute_at=START + seconds(at), on_existing=on_existing
                )
                assert instance.next_run == instance.execute_at == START + seconds(planned)
                state = await context.get_task(job, "x")
                assert state is not None
                assert state.scheduled_at == state.task.execute_at == START + seconds(planned)

    asyncio.run(main())


def test_replacing_what_has_failed_and_keeps_its_lease_holds_at_once(place: Place) -> None:
    async def main() -> None:
        clock = VirtualClock(START)
        app = Pyncette(place.factory, clock=clock, **place.configuration)
        seen: list[int] = []

        @app.dynamic_task(failure_mode=FailureMode.NONE)
        async def job(context: Context) -> None:
            seen.append(context.args["n"])
            raise RuntimeError("no")

        async with app.create() as context:
            await context.schedule_task(job, "x", execute_at=START, n=1)
            await context.run_until_idle()
            with pytest.raises(TaskLockedException) as caught:
                await context.schedule_task(job, "x", execute_at=START, n=2)
            assert caught.value.failed
            await context.schedule_task(
                job, "x", execute_at=START, n=2, on_existing=OnExisting.REPLACE
            )
            await context.run_until_idle()
        assert seen == [1, 2]

    asyncio.run(main())


@pytest.mark.parametrize("partitions", [None, 3])
def test_bulk(place: Place, partitions: int | None) -> None:
    async def main() -> None:
        program = Program(place, partitions)
        job = program.job
        at = START + seconds(100)

        def wanted(first: int, last: int, n: int) -> list[Instance]:
            return [Instance(f"ï{index}", execute_at=at, n=n) for index in range(first, last)]

        async with program.app.create() as context:
            for expected in ((120, 0), (0, 120)):
                result = await context.schedule_tasks(job, wanted(0, 120, 1))
                assert (result.created, result.unchanged) == expected
                assert result.failed == 0
            result = await context.sync_tasks(job, [*wanted(50, 100, 1), *wanted(100, 150, 2)])
            assert (result.created, result.updated, result.removed) == (30, 20, 50)
            assert result.unchanged == 50
            await context.pause(job, "ï60")
            result = await context.unschedule_tasks(job, where=Where(paused=True))
            assert result.removed == 1
            result = await context.unschedule_tasks(job, (f"ï{index}" for index in range(200)))
            assert (result.removed, result.unchanged) == (99, 101)

    asyncio.run(main())


@pytest.mark.parametrize("partitions", [None, 3])
def test_two_releases_with_different_defaults_side_by_side(
    place: Place, partitions: int | None
) -> None:
    if place.factory is sqlite_repository and not place.configuration:
        pytest.skip("each app has a database of its own in memory")

    async def main() -> None:
        old = Program(place, partitions, interval=seconds(10), color="red", size=1)
        new = Program(
            place, partitions, clock=old.clock, interval=seconds(25), color="blue", size=1
        )

        async def run_old(context: PyncetteContext) -> None:
            await context.schedule_task(old.job, "ï", size=2)
            await context.schedule_task(old.job, "own", interval=seconds(10))
            await old.advance(12)

        async def run_new(context: PyncetteContext) -> None:
            state = await context.get_task(new.job, "ï")
            assert state is not None
            assert (state.scheduled_at, state.task.interval) == (START + seconds(20), seconds(10))
            assert state.args == {"color": "blue", "size": 2}
            wanted = [Instance("ï", size=2), Instance("own", interval=seconds(10))]
            result = await context.sync_tasks(new.job, wanted)
            assert (result.unchanged, result.handled) == (2, 2)
            assert await context.preview(new.job, 2, "ï") == [
                START + seconds(20),
                START + seconds(45),
            ]
            await new.advance(35)
            state = await context.get_task(new.job, "ï")
            assert state is not None
            assert (state.scheduled_at, state.task.interval) == (START + seconds(70), seconds(25))

        async with old.app.create() as context:
            await old.while_running(run_old(context), context)
        async with new.app.create() as context:
            await new.while_running(run_new(context), context)
        assert sorted(old.runs) == [("own", 10), ("ï", 10)]
        assert [moment for name, moment in new.runs if name == "ï"] == [20, 45]
        assert [moment for name, moment in new.runs if name == "own"] == [20, 30, 40]
        assert {"color": "blue", "size": 2} in new.args
        assert {"color": "blue", "size": 1} in new.args

    asyncio.run(main())


@pytest.mark.parametrize("partitions", [None, 4])
def test_a_limit_per_worker(place: Place, partitions: int | None) -> None:
    async def main() -> None:
        program = Program(place)
        running = most = 0
        times: list[float] = []

        async def slow(context: Context) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            times.append(program.clock.monotonic())
            await program.clock.sleep(1)
            running -= 1

        app = program.app
        limited = (
            app.dynamic_task(name="limited", limit=PerWorker(3))(slow)
            if partitions is None
            else app.partitioned_task(partitions, name="limited", limit=PerWorker(3))(slow)
        )

        async def steer(context: PyncetteContext) -> None:
            for number in range(9):
                await context.schedule_task(limited, str(number), execute_at=START)
            await context.schedule_task(program.job, "other", execute_at=START)
            await program.advance(0.5)
            held = [await context.get_task(limited, str(number)) for number in range(9)]
            assert sum(state is not None and state.state == "running" for state in held) == 3
            assert program.runs == [("other", 0)]
            await program.advance(30)

        async with app.create() as context:
            await program.while_running(steer(context), context)
        assert most == 3
        assert len(times) == 9
        if partitions is None:
            assert times == [0] * 3 + [1] * 3 + [2] * 3

    asyncio.run(main())


def test_workers(place: Place) -> None:
    async def main() -> None:
        # The instant of a beat is that of a poll.
        program = Program(place, clock=VirtualClock(START, every_poll=True))
        other = Pyncette(
            place.factory,
            clock=program.clock,
            worker_name="z söme \U0001f40d",
            **place.configuration,
        )

        async def slow(context: Context) -> None:
            await program.clock.sleep(100)

        slow_job = program.app.dynamic_task(name="slow:job", lease_duration=seconds(600))(slow)

        async def look(context: PyncetteContext) -> None:
            await context.schedule_task(slow_job, "ï", execute_at=START + seconds(1))
            await program.advance(25)
            [state] = await context.workers()
            assert (state.since, state.seen_at) == (START, START + seconds(20))
            assert (state.tasks, state.running_count) == (("job", "slow:job"), 1)
            [running] = state.running
            assert (running.name, running.started_at) == ("slow::job:ï", START + seconds(1))
            async with other.create() as another:
                loop = asyncio.create_task(another.run())
                await program.advance(0)
                names = [state.name for state in await another.workers()]
                # A database in the memory of one context is not shared.
                assert names in (["z söme \U0001f40d"], [state.name, "z söme \U0001f40d"])
                another.shutdown()
                await loop
            assert len(await context.workers()) == 1
            await program.advance(100)
            [state] = await context.workers()
            assert state.running == ()

        async with program.app.create() as context:
            await program.while_running(look(context), context)
            await program.advance(0)
            assert await context.workers() == []

    asyncio.run(main())


def first_run(number: int) -> datetime:
    """At an instant at which a move takes its steps, too: every tenth instance is then due."""
    return START + seconds(number % 10 * 5)


@pytest.mark.parametrize("counts", [(4, 8), (8, 3)])
def test_instances_move_to_other_partitions_while_two_workers_run_them(
    place: Place, counts: tuple[int, int]
) -> None:
    async def main() -> None:
        number = 200
        program = Program(place, counts[0], lease_duration=seconds(20))
        job = program.job
        assert isinstance(job, PartitionedTask)
        async with AsyncExitStack() as stack:
            other, another = program, await stack.enter_async_context(program.app.create())
            context = another
            if place.factory is not sqlite_repository or place.configuration:
                # Else it is in memory, where no other program finds it.
                other = Program(place, counts[0], clock=program.clock, lease_duration=seconds(20))
                another = await stack.enter_async_context(other.app.create())
            programs, opened = {program, other}, {context, another}
            await context.schedule_tasks(
                job,
                (
                    Instance(f"i{n}", interval=seconds(50), start_at=first_run(n), n=n)
                    for n in range(number)
                ),
            )
            loops = [asyncio.create_task(one.run()) for one in opened]
            try:
                move = asyncio.create_task(context.rebalance(job, counts[1]))
                for _ in range(24):
                    await program.advance(5)
                assert move.done()
                result = await move
            finally:
                for one in opened:
                    one.shutdown()
                await asyncio.gather(*loops)
            assert result.moved == sum(
                len({default_partition_selector(count, f"i{n}") for count in counts}) == 2
                for n in range(number)
            )
            found = [state.task.name async for state in another.iter_tasks(other.job)]
            assert len(found) == len(set(found)) == number
            counted = await another.count_tasks(other.job, limit=number)
            assert (counted.count, counted.exact) == (number, True)
        planned = sorted(run for program in programs for run in program.planned)
        assert len(planned) == len(set(planned))  # none is doubled
        by_name: dict[str, list[datetime]] = {}
        for name, instant in planned:
            by_name.setdefault(name, []).append(instant)
        assert len(by_name) == number
        for n in range(number):  # and none is lost
            first = first_run(n)
            assert by_name[f"i{n}"][-1] > START + seconds(69)
            assert by_name[f"i{n}"][0] in (first, first + seconds(50))
            for instant, following in pairwise(by_name[f"i{n}"]):
                assert following - instant == seconds(50)

    asyncio.run(main())


def test_calls_find_instances_that_are_on_their_way(place: Place) -> None:
    async def main() -> None:
        program = Program(place, 4, lease_duration=seconds(20))
        job = program.job
        assert isinstance(job, PartitionedTask)
        async with program.app.create() as context:
            for n in range(20):
                await context.schedule_task(job, f"i{n}", interval=seconds(1_000), n=n)
            move = asyncio.create_task(context.rebalance(job, 8))
            for turn in range(40):
                await program.advance(2)
                name = f"i{turn % 20}"
                state = await context.get_task(job, name)
                assert state is not None
                assert state.task.extra_args["n"] in (turn % 20, -1)
                await context.schedule_task(job, name, interval=seconds(500), n=-1)
                await context.pause(job, name)
                await context.resume(job, name)
                await context.schedule_task(job, f"new{turn}", interval=seconds(500))
                if turn % 2:
                    await context.unschedule_task(job, f"new{turn}")
            assert (await move).waiting == 0
            names = [state.task.name async for state in context.iter_tasks(job)]
            assert len(names) == len(set(names)) == 40

    asyncio.run(main())


def test_arguments_by_name(place: Place) -> None:
    async def main() -> None:
        clock = VirtualClock(START)
        app = Pyncette(place.factory, clock=clock, **place.configuration)
        at = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
        values = {"at": at, "price": Decimal("1.50"), "names": {"söme \U0001f40d", "[a]"}}
        seen: list[dict[str, Any]] = []

        @app.dynamic_task(retry=Retry(attempts=1))
        async def job(context: Context, at: datetime, price: Decimal, names: set[str]) -> None:
            seen.append({"at": at, "price": price, "names": names})
            assert at.fold == 1

        async with app.create() as context:
            loop = asyncio.create_task(context.run())
            await context.schedule_task(job, "x", execute_at=START + seconds(1), args=values)
            result = await context.schedule_tasks(
                job,
                (
                    Instance(str(n), execute_at=START + seconds(1), args=values | {"price": n})
                    for n in range(3)
                ),
            )
            assert (result.created, result.failed) == (0, 3)
            await clock.advance(seconds(1))
            context.shutdown()
            await loop
            assert await context.count_tasks(job) == TaskCount(0, True)
        assert seen == [values]

    asyncio.run(main())
