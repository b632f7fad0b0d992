"""The context of an open app: instances are scheduled, removed, told of and listed."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from tests.faulty_store import Fail, Gate, LoseAnswer, faulty
from tests.support import START, Bench, Progress, after, looping, micros, run, seconds

from pyncette import Context, ExecutionMode, FailureMode, Pyncette, PyncetteContext
from pyncette.errors import (
    PyncetteException,
    StoreUnavailableError,
    TaskLockedException,
    TaskUnreadableError,
)
from pyncette.model import ContinuationToken, ListTasksResponse, OnExisting, Outcome, TaskState
from pyncette.store import Write
from pyncette.store.record import ANY, CONTROL_GROUP, Put, dump_progress
from pyncette.task import Task

pytestmark = pytest.mark.every_poll

# Scheduling.


def test_an_instance_runs_when_it_was_scheduled_for_with_its_arguments() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", color="blue", size=1)(bench.note)
        async with bench.running() as context:
            made = await context.schedule_task(job, "x", execute_at=after(5), color="red")
            assert isinstance(made, Task)
            assert (made.name, made.parent_task) == ("x", job)
            await bench.advance(10)
            assert await context.get_task(job, "x") is None
        [done] = bench.runs
        assert (done.at, done.scheduled_at, done.name) == (5, 5, "job:x")
        assert done.args == {"color": "red", "size": 1}

    run(main())


def test_a_one_off_in_the_past_runs_at_once() -> None:
    async def main() -> None:
        bench = Bench(poll_interval=seconds(60))
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            await bench.advance(10)
            await context.schedule_task(job, "x", execute_at=after(-100))
            await bench.clock.settle()
        assert (bench.times, bench.planned) == ([10], [-100])

    run(main())


def test_a_naive_execute_at_is_local_time_of_the_machine() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        naive = after(5).astimezone().replace(tzinfo=None)
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=naive)
            await bench.advance(10)
        assert bench.times == [5]

    run(main())


def test_instances_recur_by_interval_or_schedule() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", schedule="* * * * *")(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "default")
            await context.schedule_task(job, "interval", interval=seconds(45))
            await context.schedule_task(job, "cron", schedule="0 * * * * 30")
            await bench.advance(100)
        assert [(run.at, run.name) for run in bench.runs] == [
            (30, "job:cron"),
            (45, "job:interval"),
            (60, "job:default"),
            (90, "job:interval"),
        ]

    run(main())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, ValueError, "exactly one of"),
        ({"interval": timedelta()}, ValueError, "longer than zero"),
        ({"interval": seconds(-1)}, ValueError, "longer than zero"),
        ({"schedule": "nonsense"}, ValueError, "nonsense"),
        ({"schedule": "0 0 30 2 *"}, ValueError, "never"),
        ({"schedule": "0 0 1 1 * 0 1999"}, ValueError, "never|year"),
        ({"interval": 1, "timezone": "UTC"}, ValueError, "timezone"),
        ({"interval": 1, "when": START}, ValueError, "JSON serializable.*'when'"),
        ({"interval": 1, "lease_duration": 5}, TypeError, "lease_duration"),
        ({"execute_at": datetime(2300, 1, 1, tzinfo=UTC)}, ValueError, "2255"),
        ({"interval": timedelta(days=365 * 240)}, ValueError, "never run"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_where_it_is_asked_for(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            with pytest.raises(error, match=words):
                await context.schedule_task(job, "x", **options)
            assert await context.get_task(job, "x") is None

    run(main())


def test_a_static_task_cannot_be_scheduled() -> None:
    async def main() -> None:
        bench = Bench()
        tick = bench.app.task(name="tick", interval=1)(bench.note)
        async with bench.app.create() as context:
            with pytest.raises(ValueError, match="not a dynamic task"):
                await context.schedule_task(tick, "x", interval=1)

    run(main())


@pytest.mark.parametrize(("first", "second"), [(10, 20), (20, 10)])
def test_of_two_times_the_sooner_is_kept_and_options_are_replaced(
    first: float, second: float
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(first), n=1)
            await context.schedule_task(job, "x", execute_at=after(second), n=2)
            await bench.advance(30)
            assert await context.get_task(job, "x") is None
        assert bench.times == [10]
        assert bench.runs[0].args == {"n": 2}

    run(main())


def test_repeated_calls_cannot_put_an_instance_off_for_ever() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            for _ in range(20):
                await context.schedule_task(job, "x", interval=seconds(5))
                await bench.advance(1)
        assert bench.times == [5, 10, 15, 20]

    run(main())


def test_another_kind_of_schedule_may_take_the_place_of_the_old_one() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=seconds(10))
            await context.schedule_task(job, "x", schedule="* * * * *", timezone="Europe/Berlin")
            state = await context.get_task(job, "x")
            assert state is not None
            assert (state.task.schedule, state.task.interval) == ("* * * * *", None)
            assert state.task.timezone == "Europe/Berlin"
            await bench.advance(125)
        assert bench.planned == [10, 60, 120]

    run(main())


def test_a_record_that_waits_for_a_retry_keeps_its_time_and_takes_the_new_arguments() -> None:
    async def main() -> None:
        bench = Bench(poll_interval=seconds(10))
        job = bench.app.dynamic_task(name="job", failure_mode=FailureMode.UNLOCK)(bench.fail)
        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=seconds(1), n=1)
            await bench.advance(5)
            await context.schedule_task(job, "x", interval=seconds(2), n=2)
            await bench.advance(10)
        assert [(run.at, run.scheduled_at, run.args["n"]) for run in bench.runs] == [
            (1, 1, 1),
            (11, 1, 2),
        ]

    run(main())


def test_a_record_whose_worker_died_takes_the_new_arguments_when_its_lease_is_over() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(
            job, "x", due=-1, state="running", token="dead:1:1", unfinished_attempts=1
        )
        async with bench.app.create() as context:
            await context.schedule_task(job, "x", execute_at=after(100), n=2)
            async with looping(context):
                await bench.advance(10)
        assert [(run.at, run.scheduled_at, run.args["n"]) for run in bench.runs] == [(0, 0, 2)]

    run(main())


def test_a_record_that_is_being_executed_is_locked() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.dynamic_task(lease_duration=seconds(30))
        async def job(context: Context) -> None:
            await bench.clock.sleep(5)
            await bench.note(context)

        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(1))
            await bench.advance(2)
            with pytest.raises(TaskLockedException) as raised:
                await context.schedule_task(job, "x", execute_at=after(3))
            assert raised.value.locked_until == after(31)
            assert raised.value.locked_until.tzinfo is UTC
            assert raised.value.task.name == "x"
            assert isinstance(raised.value, PyncetteException)
            await bench.advance(5)
        assert bench.times == [6]

    run(main())


def test_force_replaces_a_record_that_is_being_executed_which_then_settles_nothing() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(5)

        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(1), n=1)
            await bench.advance(2)
            await context.schedule_task(job, "x", force=True, execute_at=after(20), n=2)
            await bench.advance(10)
            state = await context.get_task(job, "x")
            assert state is not None
            assert (state.scheduled_at, state.locked_by) == (after(20), None)
            await bench.advance(20)
        assert [(run.at, run.args["n"]) for run in bench.runs] == [(1, 1), (20, 2)]

    run(main())


def test_force_puts_an_idle_record_off() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(5))
            await context.schedule_task(job, "x", force=True, execute_at=after(10))
            await bench.advance(20)
        assert bench.times == [10]

    run(main())


def test_the_moment_in_which_an_at_most_once_record_moves_on_is_waited_out() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", execution_mode=ExecutionMode.AT_MOST_ONCE)(
            bench.note
        )
        gate = Gate()
        async with bench.running() as context, bench.another_app().create() as other:
            await context.schedule_task(job, "x", interval=seconds(5))
            bench.faults.next("write", gate)
            advancing = asyncio.create_task(bench.advance(5))
            await gate.reached()
            asyncio.get_running_loop().call_later(0.02, gate.release)
            await other.schedule_task(job, "x", interval=seconds(3), n=2)
            await advancing
            await bench.advance(4)
        assert [(run.at, run.args) for run in bench.runs] == [(5, {}), (8, {"n": 2})]

    run(main())


def test_an_at_most_once_record_that_does_not_move_on_is_locked_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", execution_mode=ExecutionMode.AT_MOST_ONCE)(
            bench.note
        )
        await bench.plant(
            job, "x", due=20, state="running", token="slow:1:1", unfinished_attempts=1
        )
        async with bench.app.create() as context:
            with pytest.raises(TaskLockedException) as raised:
                await context.schedule_task(job, "x", interval=seconds(3))
            assert raised.value.locked_until == after(20)

    monkeypatch.setattr("pyncette.calls.scheduling.ADVANCE_PATIENCE_S", 0.02)
    run(main())


def test_an_at_most_once_record_that_is_gone_when_it_was_waited_for_is_made_anew() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", execution_mode=ExecutionMode.AT_MOST_ONCE)(
            bench.note
        )
        gate = Gate()
        async with bench.running() as context, bench.another_app().create() as other:
            await context.schedule_task(job, "x", execute_at=after(5))
            bench.faults.next("write", gate)
            advancing = asyncio.create_task(bench.advance(5))
            await gate.reached()
            asyncio.get_running_loop().call_later(0.02, gate.release)
            await other.schedule_task(job, "x", execute_at=after(7))
            await advancing
            await bench.advance(4)
        assert bench.times == [5, 7]

    run(main())


def test_many_calls_at_once_make_few_trips_and_each_has_its_own_answer() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(
            job, "locked", due=60, state="running", token="w:1:1", unfinished_attempts=1
        )
        async with bench.app.create() as context:
            names = [str(number) for number in range(500)]
            results = await asyncio.gather(
                *(context.schedule_task(job, name, interval=5) for name in [*names, "locked"]),
                return_exceptions=True,
            )
            assert [result.name for result in results if isinstance(result, Task)] == names
            assert isinstance(results[-1], TaskLockedException)
        assert len(bench.faults.made("write")) <= 5

    run(main())


def test_calls_for_one_instance_take_effect_in_their_order() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            await asyncio.gather(
                context.schedule_task(job, "x", interval=5),
                context.unschedule_task(job, "x"),
                context.schedule_task(job, "y", interval=5),
            )
            assert await context.get_task(job, "x") is None
            assert await context.get_task(job, "y") is not None

    run(main())


@pytest.mark.parametrize("fault", [Fail(), LoseAnswer()], ids=["fails", "loses its answer"])
def test_a_call_whose_outcome_is_unknown_raises_and_is_not_repeated(fault: Any) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            bench.faults.next("write", fault)
            with pytest.raises(StoreUnavailableError, match="injected"):
                await context.schedule_task(job, "x", interval=5)
            bench.faults.next("write", fault)
            with pytest.raises(StoreUnavailableError, match="injected"):
                await context.unschedule_task(job, "x")
            made = bench.faults.made("write")
            assert sum(call.arguments[0][0].group == job.group for call in made) == 2
            await context.schedule_task(job, "x", interval=5)

    run(main())


def test_a_call_that_is_cancelled_before_it_leaves_is_not_made() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        gate = Gate()
        async with bench.app.create() as context:
            bench.faults.next("write", gate)
            first = asyncio.create_task(context.schedule_task(job, "x", interval=5))
            await gate.reached()
            second = asyncio.create_task(context.schedule_task(job, "y", interval=5))
            await asyncio.sleep(0)
            second.cancel()
            await asyncio.wait([second])
            gate.release()
            await first
            assert await context.get_task(job, "y") is None
            bench.faults.next("write", gate := Gate())
            third = asyncio.create_task(context.schedule_task(job, "z", interval=5))
            await gate.reached()
            third.cancel()
            await asyncio.wait([third])
            gate.release()

    run(main())


def test_bodies_that_all_schedule_do_not_stop_the_worker() -> None:
    async def main() -> None:
        bench = Bench(concurrency_limit=3)

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            await bench.note(context)
            if context.args["depth"]:
                for number in range(2):
                    await context.app_context.schedule_task(
                        job,
                        f"{context.task.name}{number}",
                        execute_at=START,
                        depth=context.args["depth"] - 1,
                    )

        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=START, depth=6)
            await bench.clock.settle()
        assert len(bench.runs) == 127

    run(main())


def test_another_worker_is_told_of_what_comes_due_sooner_than_it_looks() -> None:
    async def main() -> None:
        bench = Bench(poll_interval=seconds(60))
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running(), bench.another_app().create() as other:
            await bench.advance(10)
            await other.schedule_task(job, "x", execute_at=after(12))
            await bench.advance(5)
        assert bench.times == [12]

    run(main())


def test_other_workers_are_not_told_of_each_of_many_changes() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            for number in range(100):
                await context.schedule_task(job, str(number), execute_at=START)
        told = [call for call in bench.faults.made("write") if call.arguments[2]]
        assert 2 <= len(told) <= 50
        assert told[-1].arguments[2] == {"job"}

    run(main())


def test_failing_to_tell_other_workers_is_no_error() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        bench.faults.next("write", Fail(), matches=lambda batch, now, wake: not batch)
        async with bench.app.create() as context:
            for number in range(3):
                await context.schedule_task(job, str(number), execute_at=START)

    run(main())


# Removing.


def test_an_instance_that_was_removed_does_not_run() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "by name", interval=1)
            made = await context.schedule_task(job, "by itself", interval=1)
            await context.schedule_task(job, "stays", interval=1)
            await context.unschedule_task(job, "by name")
            await context.unschedule_task(made)
            await bench.advance(1)
        assert [entry.name for entry in bench.runs] == ["job:stays"]

    run(main())


def test_removing_what_is_absent_is_no_error() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            await context.unschedule_task(job, "x")
            await context.unschedule_task(job, "x")

    run(main())


def test_an_instance_that_is_removed_while_it_runs_is_not_brought_back() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(5)

        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=seconds(10))
            await bench.advance(12)
            await context.unschedule_task(job, "x")
            await bench.advance(30)
            assert await context.get_task(job, "x") is None
        assert bench.times == [10]

    run(main())


def test_an_execution_does_not_settle_the_record_that_was_made_in_place_of_its_own() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(context.args["takes"])

        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(1), takes=5)
            await bench.advance(2)
            await context.unschedule_task(job, "x")
            await context.schedule_task(job, "x", execute_at=after(3), takes=20)
            await bench.advance(8)
            state = await context.get_task(job, "x")
            assert state is not None
            assert (state.scheduled_at, state.locked_until) == (after(3), after(63))
            context.shutdown()
            await bench.advance(30)
        assert bench.times == [1, 3]

    run(main())


def test_removing_needs_the_name_of_an_instance() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", interval=5)(bench.note)
        tick = bench.app.task(name="tick", interval=5)(bench.note)
        async with bench.app.create() as context:
            for name in (None, ""):
                with pytest.raises(ValueError, match=r"^instance name must be provided$"):
                    await context.unschedule_task(job, name)
            instance = await context.schedule_task(job, "x")
            with pytest.raises(ValueError, match="already-instantiated"):
                await context.unschedule_task(instance, "y")
            for name in (None, "x"):
                with pytest.raises(ValueError, match="not dynamic"):
                    await context.unschedule_task(tick, name)
            assert await context.get_task(job, "x") is not None

    run(main())


DEFAULTS: list[dict[str, Any]] = [
    {},
    {"interval": seconds(5)},
    {"schedule": "0 0 * * *"},
    {"schedule": "0 0 * * *", "timezone": "Europe/Berlin"},
    {"timezone": "Europe/Berlin"},
]


@pytest.mark.parametrize("default", DEFAULTS, ids=str)
@pytest.mark.parametrize("partitions", [None, 7])
def test_template_and_name_are_enough_whatever_the_default_schedule_is(
    default: dict[str, Any], partitions: int | None
) -> None:
    async def main() -> None:
        bench = Bench()
        if partitions is None:
            job = bench.app.dynamic_task(name="job", **default)(bench.note)
        else:
            job = bench.app.partitioned_task(partitions, name="job", **default)(bench.note)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x", execute_at=after(5))
            state = await context.get_task(job, "x")
            assert state is not None
            assert state.scheduled_at == after(5)
            handle = job.instantiate("x", interval=timedelta())
            assert await context.get_task(handle) is not None
            await context.unschedule_task(job, "x")
            assert await context.get_task(job, "x") is None

    run(main())


def test_names_that_no_store_could_keep_are_refused_in_every_call() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            for name in ("a\0b", "\ud800", "x" * 1_001):
                with pytest.raises(ValueError, match="instance"):
                    await context.schedule_task(job, name, interval=5)
                with pytest.raises(ValueError, match="instance"):
                    await context.get_task(job, name)
                with pytest.raises(ValueError, match="instance"):
                    await context.unschedule_task(job, name)
            wrong: Any = 7
            with pytest.raises(TypeError, match="string"):
                await context.get_task(job, wrong)
            with pytest.raises(TypeError, match="string"):
                await context.unschedule_task(job, wrong)

    run(main())


# Telling.


def test_the_state_of_a_static_task_refers_to_the_very_task_declared() -> None:
    async def main() -> None:
        bench = Bench()
        tick = bench.app.task(name="tick", interval=10)(bench.note)
        async with bench.running() as context:
            state = await context.get_task(tick)
            assert state == TaskState(tick, after(10), next=after(10))
            assert state.task is tick
            assert state.scheduled_at is not None
            assert state.scheduled_at.tzinfo is UTC

    run(main())


def test_a_static_task_that_no_worker_has_met_has_no_state() -> None:
    async def main() -> None:
        bench = Bench()
        tick = bench.app.task(name="tick", interval=10)(bench.note)
        async with bench.app.create() as context:
            assert await context.get_task(tick) is None

    run(main())


def test_a_template_has_no_state() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", interval=5)(bench.note)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x")
            assert await context.get_task(job) is None

    run(main())


def test_a_name_goes_with_a_template_only() -> None:
    async def main() -> None:
        bench = Bench()
        tick = bench.app.task(name="tick", interval=10)(bench.note)
        job = bench.app.dynamic_task(name="job", interval=5)(bench.note)
        async with bench.app.create() as context:
            with pytest.raises(
                ValueError, match=r"^instance_name provided but task is not dynamic$"
            ):
                await context.get_task(tick, "x")
            instance = await context.schedule_task(job, "x")
            with pytest.raises(
                ValueError,
                match=r"^Cannot provide instance_name with already-instantiated dynamic task$",
            ):
                await context.get_task(instance, "x")

    run(main())


def test_the_state_of_an_instance_tells_what_it_was_scheduled_with() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", size=1)(bench.note)
        async with bench.app.create() as context:
            made = await context.schedule_task(
                job, "x", schedule="0 9 * * *", timezone="Europe/Berlin", color="red"
            )
            for state in (
                await context.get_task(job, "x"),
                await context.get_task(made),
                (await context.list_tasks(job)).tasks[0],
            ):
                assert state is not None
                assert state.task.name == "x"
                assert state.task.parent_task is job
                assert state.task.schedule == "0 9 * * *"
                assert state.task.timezone == "Europe/Berlin"
                assert state.task.extra_args == {"size": 1, "color": "red"}
                assert state.scheduled_at == datetime(2026, 1, 6, 8, tzinfo=UTC)
                assert (state.locked_until, state.locked_by) == (None, None)

    run(main())


def test_a_running_task_tells_its_planned_time_its_lease_and_who_runs_it() -> None:
    async def main() -> None:
        bench = Bench(worker_name="worker:7")
        ended = asyncio.Event()

        @bench.app.task(interval=seconds(10), lease_duration=seconds(30))
        async def tick(context: Context) -> None:
            await ended.wait()

        async with bench.running() as context:
            await bench.advance(12)
            assert await context.get_task(tick) == TaskState(
                tick, after(10), after(40), "worker:7", "running", next=after(40)
            )
            context.shutdown()
            ended.set()
            await bench.clock.settle()
            done = await context.get_task(tick)
            assert done is not None
            assert (done.state, done.scheduled_at, done.next) == ("scheduled", after(20), after(20))
            assert (done.last_started_at, done.last_outcome) == (after(10), Outcome.SUCCEEDED)

    run(main())


def test_a_lease_that_has_run_out_is_told_until_somebody_takes_the_record() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(
            job, "x", planned=-9, due=-1, state="running", token="dead:1:1", unfinished_attempts=1
        )
        async with bench.app.create() as context:
            state = await context.get_task(job, "x")
            assert state is not None
            assert state.scheduled_at == after(-9)
            assert (state.locked_until, state.locked_by) == (after(-1), "dead")

    run(main())


def test_tasks_of_one_name_are_told_apart_by_their_partition_only_where_there_are_any() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.partitioned_task(2, lambda count, name: 1, name="job")(bench.note)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x", interval=5)
            [partition] = [part for part in job.get_partitions() if part.partition_id == 1]
            assert len((await context.list_tasks(partition)).tasks) == 1
            state = await context.get_task(job, "x")
            assert state is not None
            assert str(state.task) == "job:1:x"

    run(main())


def test_the_default_name_of_a_worker_tells_host_and_process_and_is_its_own() -> None:
    async def main() -> None:
        bench = Bench(worker_name=None)
        seen: set[str | None] = set()

        @bench.app.task(interval=seconds(1))
        async def tick(context: Context) -> None:
            state = await context.app_context.get_task(tick)
            assert state is not None
            seen.add(state.locked_by)

        for _ in range(2):
            async with bench.running():
                await bench.advance(2)
        assert len(seen) == 2
        assert all(
            name and name.startswith(f"{socket.gethostname()}-{os.getpid()}-") for name in seen
        )

    run(main())


@pytest.mark.parametrize("state", ["paused", "parked", "retrying"])
def test_a_record_that_is_not_running_is_locked_by_nobody(state: str) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(job, "x", planned=5, due=9, state=state, token="w:1:1")
        async with bench.app.create() as context:
            told = await context.get_task(job, "x")
            assert told is not None
            assert told.state == state
            assert told.scheduled_at == (None if state == "parked" else after(5))
            assert (told.locked_until, told.locked_by) == (None, None)

    run(main())


def test_a_record_that_cannot_be_read_is_listed_with_a_handle_without_schedule() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(job, "x", planned=5, schedule="3 lunar", progress="2 ?", args="2 ?")
        async with bench.app.create() as context:
            [state] = (await context.list_tasks(job)).tasks
            task = state.task
            assert (task.name, task.schedule, task.interval, task.execute_at) == (
                "x",
                None,
                None,
                None,
            )
            assert state.scheduled_at == after(5)
            await context.unschedule_task(task)
            assert (await context.list_tasks(job)).tasks == []

    run(main())


# Listing.


async def listed(context: PyncetteContext, task: Task, limit: int | None = None) -> list[str]:
    names: list[str] = []
    token = None
    while True:
        page = await context.list_tasks(task, limit, token)
        assert isinstance(page, ListTasksResponse)
        assert isinstance(page.tasks, list)
        if limit is not None:
            assert len(page.tasks) <= limit
        names += [state.task.name for state in page.tasks]
        token = page.continuation_token
        if token is None:
            return names


@pytest.mark.parametrize("limit", [1, 3, 7, 100, None])
@pytest.mark.parametrize("partitions", [None, 1, 5])
def test_following_the_tokens_lists_every_instance_once(
    limit: int | None, partitions: int | None
) -> None:
    async def main() -> None:
        bench = Bench(batch_size=10)
        if partitions is None:
            job = bench.app.dynamic_task(name="job")(bench.note)
        else:
            job = bench.app.partitioned_task(partitions, name="job")(bench.note)
        other = bench.app.dynamic_task(name="job:1")(bench.note)
        names = [f"instance {number}" for number in range(25)]
        async with bench.app.create() as context:
            assert await listed(context, job, limit) == []
            for name in names:
                await context.schedule_task(job, name, interval=5)
            await context.schedule_task(other, "foreign", interval=5)
            assert sorted(await listed(context, job, limit)) == sorted(names)

    run(main())


def test_a_page_without_a_limit_holds_batch_size_instances() -> None:
    async def main() -> None:
        bench = Bench(batch_size=4)
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            for number in range(9):
                await context.schedule_task(job, str(number), interval=5)
            page = await context.list_tasks(job)
            assert len(page.tasks) == 4
            page = await context.list_tasks(job, continuation_token=page.continuation_token)
            assert len(page.tasks) == 4
            page = await context.list_tasks(job, continuation_token=page.continuation_token)
            assert len(page.tasks) == 1
            assert page.continuation_token is None

    run(main())


def test_the_order_of_a_listing_is_stable_under_writes() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.partitioned_task(3, name="job")(bench.note)
        async with bench.app.create() as context:
            for number in range(20):
                await context.schedule_task(job, str(number), interval=5)
            before = await listed(context, job)
            seen: list[str] = []
            token = None
            while True:
                page = await context.list_tasks(job, 4, token)
                seen += [state.task.name for state in page.tasks]
                for name in before:
                    await context.schedule_task(job, name, force=True, interval=7)
                token = page.continuation_token
                if token is None:
                    break
            assert seen == before

    run(main())


def test_instances_of_a_static_task_cannot_be_listed() -> None:
    async def main() -> None:
        bench = Bench()
        tick = bench.app.task(name="tick", interval=5)(bench.note)
        async with bench.app.create() as context:
            with pytest.raises(ValueError, match=r"^Cannot list instances of non-dynamic task$"):
                await context.list_tasks(tick)

    run(main())


@pytest.mark.parametrize("limit", [0, -1, 1.5, "3", True])
def test_a_limit_is_a_whole_number_of_at_least_one(limit: Any) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            with pytest.raises(ValueError, match="limit"):
                await context.list_tasks(job, limit)

    run(main())


@pytest.mark.parametrize("token", ["", "x", "99:", ":", "-1:", "1", "0x0:a", 0, b"0:", True])
def test_a_token_of_something_else_is_refused(token: Any) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.partitioned_task(3, name="job")(bench.note)
        async with bench.app.create() as context:
            with pytest.raises(ValueError, match="continuation token"):
                await context.list_tasks(job, None, ContinuationToken(token))

    run(main())


# Partitions.


@pytest.mark.parametrize("count", [3, 5])
def test_another_number_of_partitions_than_the_stores_is_refused(count: int) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.partitioned_task(4, name="job")(bench.note)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x", interval=1)
        other = bench.another_app()
        other.partitioned_task(count, name="job")(bench.note)
        with pytest.raises(PyncetteException, match=rf"'job'.*{count} partitions.*4 partitions"):
            async with other.create():
                pass
        async with bench.app.create():
            pass

    run(main())


def test_instances_are_not_left_behind_where_a_template_gets_partitions() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        other = bench.another_app()
        other.partitioned_task(4, name="job")(bench.note)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x", execute_at=after(1))
            with pytest.raises(PyncetteException, match=r"'job'.*4 partitions.*without partitions"):
                async with other.create():
                    pass
            await context.unschedule_task(job, "x")
        async with other.create():
            pass

    run(main())


@pytest.mark.parametrize("wrong", [None, "job", 5, object])
def test_what_is_no_task_is_refused_in_words(wrong: Any) -> None:
    async def main() -> None:
        async with Bench().app.create() as context:
            for call in (
                context.schedule_task(wrong, "x", interval=seconds(1)),
                context.unschedule_task(wrong, "x"),
                context.get_task(wrong, "x"),
                context.list_tasks(wrong),
            ):
                with pytest.raises(TypeError, match="A task is what its decorator returned"):
                    await call

    run(main())


def test_a_limit_may_be_greater_than_any_store_can_count() -> None:
    async def main() -> None:
        app = Pyncette()
        job = app.dynamic_task(name="job", interval=60)(lambda context: asyncio.sleep(0))
        async with app.create() as context:
            await context.schedule_task(job, "x")
            assert len((await context.list_tasks(job, limit=10**30)).tasks) == 1

    asyncio.run(main())


def test_enabled_partitions_may_differ_from_process_to_process() -> None:
    async def main() -> None:
        bench = Bench()
        apps = [bench.app, bench.another_app()]
        jobs = [
            app.partitioned_task(
                4, lambda count, name: int(name), name="job", enabled_partitions=[2 * n, 2 * n + 1]
            )(bench.note)
            for n, app in enumerate(apps)
        ]
        async with bench.running(apps[0]) as context, bench.running(apps[1]):
            for number in range(4):
                await context.schedule_task(jobs[1], str(number), execute_at=after(1))
            await bench.advance(2)
        assert sorted(entry.name for entry in bench.runs) == [f"job:{n}:{n}" for n in range(4)]

    run(main())


# The clock of a listing is nobody's business: times are told in UTC.


def test_an_execute_at_in_another_zone_is_told_in_utc() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        west = timezone(timedelta(hours=-5))
        async with bench.app.create() as context:
            await context.schedule_task(job, "x", execute_at=after(5).astimezone(west))
            state = await context.get_task(job, "x")
            assert state is not None
            assert state.scheduled_at == after(5)
            assert state.scheduled_at.tzinfo is UTC

    run(main())


def test_a_garbage_count_of_partitions_is_an_error_that_says_so() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.partitioned_task(4, name="job")(bench.note)
        put = Put(None, "finished", None, 0, "", "nonsense", "")
        async with bench.store() as store:
            await store.write([Write(CONTROL_GROUP, "partitions:job", put, ANY)], micros(0))
        async with bench.app.create() as context:
            with pytest.raises(TaskUnreadableError, match="nonsense"):
                await context.schedule_task(job, "x", execute_at=after(1))

    run(main())


def test_a_record_with_a_failed_run_tells_its_planned_time_while_it_waits() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(
            job,
            "x",
            due=50,
            state="running",
            token="w:1:1",
            progress=Progress(micros(3), "incarnation", failures=1, error="RuntimeError: no"),
        )
        async with bench.app.create() as context:
            state = await context.get_task(job, "x")
            assert state is not None
            assert state.scheduled_at == after(3)

    run(main())


def test_scheduling_what_is_paused_changes_its_arguments_only() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            async with bench.store() as store:
                progress = Progress(micros(5), "incarnation")
                put = Put(None, "paused", None, 0, "1 at 0", "1 {}", dump_progress(progress))
                await store.write([Write(job.group, "x", put, ANY)], micros(0))
            told = await context.schedule_task(job, "x", execute_at=after(3), n=2)
            assert told.next_run is None
            await bench.advance(10)
        record = await bench.record(job, "x")
        assert record is not None
        assert (record.state, record.due_at, record.args) == ("paused", None, '1 {"n":2}')
        assert bench.runs == []

    run(main())


@pytest.mark.parametrize("state", ["paused", "parked"])
def test_what_is_kept_and_rests_has_no_next_run(state: str) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            async with bench.store() as store:
                progress = Progress(micros(5), "incarnation")
                put = Put(None, state, None, 0, "1 at 0", "1 {}", dump_progress(progress))
                await store.write([Write(job.group, "x", put, ANY)], micros(0))
            told = await context.schedule_task(
                job, "x", execute_at=after(3), on_existing=OnExisting.KEEP
            )
            assert told.next_run is None
            await bench.advance(10)
        record = await bench.record(job, "x")
        assert record is not None
        assert (record.state, record.args) == (state, "1 {}")
        assert bench.runs == []

    run(main())


def test_a_context_tells_its_poll_interval() -> None:
    async def main() -> None:
        async with Bench(poll_interval=0.25).app.create() as context:
            assert context.poll_interval == seconds(0.25)

    run(main())


def test_a_call_that_is_under_way_when_the_context_closes_is_made_before_the_store_closes() -> None:
    async def main() -> None:
        bench = Bench()
        events: list[str] = []

        @asynccontextmanager
        async def factory(**configuration: Any) -> AsyncIterator[Any]:
            async with faulty(bench.repository, bench.faults)(**configuration) as store:
                yield store
                events.append("closed")

        app = Pyncette(factory)
        job = app.dynamic_task(name="job")(bench.note)
        gate = Gate()
        async with app.create() as context:
            bench.faults.next("write", gate)
            call = asyncio.create_task(context.schedule_task(job, "x", interval=5))
            call.add_done_callback(lambda call: events.append("made"))
            await gate.reached()
            asyncio.get_running_loop().call_later(0.01, gate.release)
        assert events == ["made", "closed"]
        assert (await call).name == "x"

    run(main())


def test_an_argument_called_name_is_refused_in_words() -> None:
    async def main() -> None:
        bench = Bench()
        template = bench.app.dynamic_task(name="template")(bench.note)
        async with bench.app.create() as context:
            words = "name cannot be an argument.* instance_name .*'x', name='y'"
            with pytest.raises(TypeError, match=words):
                await context.schedule_task(template, "x", name="y", interval=1)

    run(main())


def test_arguments_that_are_nested_too_deeply_are_refused_in_words() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]

    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.app.create() as context:
            with pytest.raises(ValueError, match="must be JSON serializable, but 'v'"):
                await context.schedule_task(job, "x", interval=1, v=deep)

    run(main())
