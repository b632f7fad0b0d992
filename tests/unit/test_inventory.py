"""Static tasks, what removed tasks have left, and parked records that are tried again."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support import Bench, Progress, after, micros, run, seconds

from pyncette import Instance, Where
from pyncette.model import TaskCount, UnknownTask
from pyncette.schedule import Every


def test_static_tasks_are_listed_with_their_states() -> None:
    async def main() -> None:
        bench = Bench()
        tick = bench.app.task(name="tick", interval=seconds(10))(bench.note)
        tock = bench.app.task(name="tock", interval=seconds(20))(bench.note)
        bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            assert await context.static_tasks() == []
        async with bench.running() as context:
            await context.pause(tock, reason="why")
            states = await context.static_tasks()
            assert [state.task for state in states] == [tick, tock]
            assert [state.state for state in states] == ["scheduled", "paused"]

    run(main())


def test_what_removed_tasks_have_left_is_listed_and_purged() -> None:
    async def main() -> None:
        bench = Bench()
        before = bench.another_app(worker_name="before")
        before.task(name="static", interval=seconds(10))(bench.note)
        plain = before.dynamic_task(name="plain:%")(bench.note)
        parted = before.partitioned_task(3, name="parted")(bench.note)
        before.dynamic_task(name="empty")(bench.note)
        kept = before.dynamic_task(name="kept")(bench.note)
        async with bench.running(before) as context:
            for template, number in ((plain, 1_500), (parted, 30), (kept, 5)):
                await context.schedule_tasks(
                    template, (Instance(f"{n}", execute_at=after(900)) for n in range(number))
                )
            await context.pause(plain)
            await context.pause(parted.get_partitions()[1])
            assert await context.unknown() == []

        bench.app.dynamic_task(name="kept")(bench.note)
        async with bench.running() as context:
            assert await context.unknown() == [
                UnknownTask("empty", True, None, TaskCount(0, True)),
                UnknownTask("parted", True, 3, TaskCount(30, True)),
                UnknownTask("plain:%", True, None, TaskCount(1_500, True)),
                UnknownTask("static", False, None, TaskCount(1, True)),
            ]
            with pytest.raises(ValueError, match="is declared in this app"):
                await context.purge("kept")
            with pytest.raises(TypeError, match="string"):
                await context.purge(kept)  # type: ignore[arg-type]
            assert (await context.purge("plain:%")).removed == 1_500
            assert (await context.purge("parted")).removed == 30
            assert (await context.purge("static")).removed == 1
            assert (await context.purge("empty")).removed == 0
            assert (await context.purge("never heard of")).removed == 0
            assert await context.unknown() == []
            assert await context.pauses() == []

        # What was purged may be declared again, as another kind of task.
        again = bench.another_app(worker_name="again")
        again.dynamic_task(name="parted")(bench.note)
        again.partitioned_task(2, name="plain:%")(bench.note)
        async with again.create():
            pass

    run(main())


def test_parked_instances_are_tried_again_by_name_and_by_filter() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.partitioned_task(3, name="job")(bench.note)
        parked = Progress(micros(0), "i", failures=5, error="no")
        names = ["a1", "a2", "b1", "b2"]
        for name in names:
            await bench.plant(job, name, state="parked", due=9_000, progress=parked)
        await bench.plant(job, "bad", state="parked", due=9_000, schedule="what", progress=parked)
        async with bench.running() as context:
            await context.schedule_task(job, "fine", execute_at=after(500))
            assert await context.retry_parked(job, "a1")
            assert not await context.retry_parked(job, "fine")
            result = await context.retry_parked_tasks(job, where=Where(prefix="a"))
            assert (result.updated, result.failed) == (1, 0)
            result = await context.retry_parked_tasks(job)
            assert (result.updated, result.failed) == (2, 1)
            [failure] = result.failures
            assert failure.name == "bad"
            assert isinstance(failure.error, ValueError)
            await bench.advance(1)
            assert sorted(item.name.split(":")[2] for item in bench.runs) == names
            result = await context.drop_parked_tasks(job, where=Where(prefix="b"))
            assert [failure.name for failure in result.failures] == ["bad"]
            result = await context.unschedule_tasks(job, where=Where(states={"parked"}))
            assert result.removed == 1
            with pytest.raises(TypeError, match="Where"):
                await context.retry_parked_tasks(job, where="all")  # type: ignore[arg-type]

    run(main())


def test_the_runs_of_parked_instances_are_given_up_by_filter() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.partitioned_task(3, name="job")(bench.note)
        parked = Progress(micros(-5), "i", failures=5, error="no")
        told: dict[str, Any] = {"state": "parked", "due": 9_000, "progress": parked}
        for name in ("a1", "a2", "b1"):
            await bench.plant(job, name, schedule=Every(seconds(10)), **told)
        await bench.plant(job, "a once", **told)
        async with bench.running() as context:
            result = await context.drop_parked_tasks(job, where=Where(prefix="a"))
            assert (result.updated, result.removed, result.failed) == (2, 1, 0)
            assert await context.get_task(job, "a once") is None
            state = await context.get_task(job, "a1")
            assert state is not None
            found = (state.state, state.scheduled_at, state.attempt, state.last_error)
            assert found == ("scheduled", after(5), 1, "no")
            await bench.advance(6)
            assert sorted(item.name.split(":")[2] for item in bench.runs) == ["a1", "a2"]
            assert (await context.drop_parked_tasks(job)).updated == 1

    run(main())
