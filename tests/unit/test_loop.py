"""The loop: when it asks, what it claims, and what it never does."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from contextlib import asynccontextmanager
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from tests.faulty_store import Fail, Gate, LoseAnswer
from tests.support import START, Bench, after, logged, looping, micros, run, seconds

from pyncette import Context, ExecutionMode, FailureMode
from pyncette.engine import rules
from pyncette.engine.loop import BACKLOG_MAX
from pyncette.errors import PyncetteException
from pyncette.schedule import Calendar, Cron, Every
from pyncette.store import Applied, Write
from pyncette.store.record import Progress, read
from pyncette.testing import VirtualClock

pytestmark = pytest.mark.every_poll


def test_a_task_runs_exactly_when_it_is_due() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=seconds(0.3))(bench.note)
        async with bench.running():
            await bench.advance(1)
        assert bench.times == [0.3, 0.6, 0.9]

    run(main())


def test_an_instance_that_is_scheduled_while_the_loop_sleeps_runs_exactly_when_it_is_due() -> None:
    async def main() -> None:
        bench = Bench(poll_interval=seconds(10))
        template = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running() as context:
            await bench.advance(0.5)
            await context.schedule_task(template, "x", execute_at=after(0.7))
            await bench.advance(1)
        assert bench.times == [0.7]

    run(main())


def test_a_run_whose_next_occurrence_is_nearer_than_the_loops_sleep_is_not_late() -> None:
    async def main() -> None:
        bench = Bench(poll_interval=seconds(60))
        bench.app.task(name="tick", interval=seconds(1))(bench.note)
        async with bench.running():
            await bench.advance(5)
        assert bench.times == [1, 2, 3, 4, 5]

    run(main())


def test_the_store_is_looked_at_once_per_poll_interval_though_nothing_is_due() -> None:
    async def main() -> None:
        bench = Bench(polls_always=True)
        bench.app.task(name="yearly", schedule="0 0 1 1 *")(bench.note)
        async with bench.running() as context:
            before = len(bench.faults.made("claim"))
            await bench.advance(10)
            assert len(bench.faults.made("claim")) - before == 10
            assert context.last_tick == after(10)

    run(main())


def test_the_store_is_looked_at_once_per_poll_interval_though_no_task_is_declared() -> None:
    async def main() -> None:
        bench = Bench(polls_always=True)
        async with bench.running() as context:
            await bench.advance(3.5)
            assert context.last_tick == after(3)

    run(main())


def test_the_store_is_looked_at_once_per_poll_interval_though_no_slot_is_free() -> None:
    async def main() -> None:
        bench = Bench(concurrency_limit=1)

        @bench.app.task(interval=seconds(1), lease_duration=seconds(600))
        async def slow(context: Context) -> None:
            await bench.clock.sleep(100)

        async with bench.running() as context:
            before = len(bench.faults.made("claim"))
            await bench.advance(20)
            assert context.last_tick == after(20)
            assert len(bench.faults.made("claim")) - before <= 25
            context.shutdown()
            await bench.advance(100)

    run(main())


def test_what_another_context_wrote_without_a_word_is_found_within_a_poll_interval() -> None:
    async def main() -> None:
        bench = Bench()
        template = bench.app.dynamic_task(name="job")(bench.note)
        async with bench.running():
            await bench.advance(0.5)
            await bench.plant(template, "x", planned=0.6)
            await bench.advance(1)
        assert bench.times == [1]

    run(main())


def test_a_thousand_idle_static_tasks_cost_at_most_three_calls_a_second() -> None:
    async def main() -> None:
        bench = Bench()
        for number in range(1_000):
            bench.app.task(name=f"task {number}", schedule=f"0 0 1 {number % 12 + 1} *")(bench.note)
        async with bench.running():
            before = len(bench.faults.calls)
            await bench.advance(20)
            assert len(bench.faults.calls) - before <= 60

    run(main())


def test_idle_static_tasks_leave_nothing_behind_with_each_poll() -> None:
    async def main() -> None:
        bench = Bench()
        for number in range(50):
            bench.app.task(name=f"task {number}", schedule="0 0 1 1 *")(bench.note)
        async with bench.running() as context:
            await bench.advance(500)
            assert len(context._worker.sources._heap) < 500

    run(main())


def test_a_finished_static_task_is_not_made_again() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="last", schedule="5 12 5 1 * 0 2026")(bench.note)
        async with bench.running():
            await bench.advance(900)
        async with bench.running():
            await bench.advance(300)
        assert bench.times == [300]

    run(main())


def test_no_more_run_at_once_than_the_concurrency_limit_allows() -> None:
    async def main() -> None:
        bench = Bench(concurrency_limit=3)
        running: set[str] = set()
        most = 0

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            nonlocal most
            running.add(context.task.name)
            most = max(most, len(running))
            await bench.clock.sleep(10)
            running.discard(context.task.name)
            await bench.note(context)

        async with bench.running() as context:
            for number in range(10):
                await context.schedule_task(job, str(number), execute_at=START)
            await bench.advance(5)
            held = [await context.get_task(job, str(number)) for number in range(10)]
            assert sum(state is not None and state.locked_by is not None for state in held) == 3
            await bench.advance(60)
        assert most == 3
        assert len(bench.runs) == 10

    run(main())


def test_a_slot_that_becomes_free_is_filled_at_once() -> None:
    async def main() -> None:
        bench = Bench(concurrency_limit=1, poll_interval=seconds(60))

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            await bench.note(context)
            await bench.clock.sleep(1)

        async with bench.running() as context:
            for number in range(3):
                await context.schedule_task(job, str(number), execute_at=START)
            await bench.advance(5)
        assert bench.times == [0, 1, 2]

    run(main())


def test_a_claim_takes_no_more_than_the_batch_size() -> None:
    async def main() -> None:
        bench = Bench(batch_size=7)
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(job, *map(str, range(20)))
        async with bench.running():
            assert len(bench.runs) == 20
        assert {call.arguments[1] for call in bench.faults.made("claim")} == {7}

    run(main())


def test_a_backlog_of_outcomes_that_is_written_is_no_reason_to_wait_for_the_next_poll() -> None:
    async def main() -> None:
        bench = Bench(poll_interval=seconds(60))
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(job, *map(str, range(3_000)))
        gate = Gate()
        async with bench.app.create() as context:
            bench.faults.next("write", gate)
            async with looping(context):
                await gate.reached()
                for _ in range(200):
                    await asyncio.sleep(0)
                assert BACKLOG_MAX <= len(bench.runs) < 2 * BACKLOG_MAX
                gate.release()
                await bench.clock.settle()
                assert len(bench.runs) == 3_000

    run(main())


def test_other_tasks_of_the_process_get_a_turn_after_each_claim() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", lease_duration=seconds(60))(bench.note)
        await bench.plant(job, *map(str, range(1_000)))
        async with bench.app.create() as context, looping(context):
            seen = [len(bench.runs)]
            while seen[-1] < 1_000:
                await asyncio.sleep(0)
                seen.append(len(bench.runs))
        assert max(later - sooner for sooner, later in itertools.pairwise(seen)) <= 100

    run(main())


def test_one_busy_group_among_many_idle_ones_is_served_in_whole_batches() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.partitioned_task(
            256, lambda count, name: 17, name="job", lease_duration=seconds(60)
        )(bench.note)
        await bench.plant(job, *map(str, range(1_000)))
        async with bench.running():
            assert len(bench.runs) == 1_000
        assert len(bench.faults.made("claim")) < 30

    run(main())


def test_more_busy_groups_than_slots_are_all_served() -> None:
    async def main() -> None:
        bench = Bench(batch_size=10)
        job = bench.app.partitioned_task(64, lambda count, name: int(name), name="job")(bench.note)
        await bench.plant(job, *map(str, range(64)))
        async with bench.running():
            assert len(bench.runs) == 64
        assert len(bench.faults.made("claim")) < 80

    run(main())


def test_overdue_static_tasks_of_another_app_do_not_stand_in_front() -> None:
    async def main() -> None:
        bench = Bench()
        other = bench.another_app()
        for number in range(100):
            foreign = other.task(name=f"a{number}", interval=seconds(60))(bench.fail)
            await bench.plant(foreign, planned=-100)
        bench.app.task(name="ours", interval=seconds(1))(bench.note)
        async with bench.running():
            before = len(bench.faults.made("claim"))
            await bench.advance(5)
            assert len(bench.faults.made("claim")) - before <= 15
        assert bench.times == [1, 2, 3, 4, 5]

    run(main())


def test_due_records_that_cannot_be_had_do_not_make_the_loop_spin() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(job, "x")

        class Withholding:
            """Tells of due records, and yields none."""

            def __init__(self, store: Any) -> None:
                self.store = store
                self.claims = 0

            async def claim(
                self, sources: Any, limit: Any, now: Any, token: Any, *_: Any, **options: Any
            ) -> Any:
                self.claims += 1
                claimed = await self.store.claim(sources, 0, now, token, **options)
                assert claimed.next_due == [micros(0)]
                return claimed

            async def write(self, batch: Any, now: Any, wake: Any = ()) -> Any:
                return await self.store.write(batch, now, wake)

            async def get(self, identities: Any) -> Any:
                return await self.store.get(identities)

            async def scan(self, group: Any, where: Any, cursor: Any, limit: Any) -> Any:
                return await self.store.scan(group, where, cursor, limit)

            async def now(self) -> Any:
                return None

            async def watch(self, groups: Any, on_wake: Any) -> Any:
                return None

        opened: list[Withholding] = []

        @asynccontextmanager
        async def factory(**configuration: Any) -> Any:
            async with bench.repository() as store:
                opened.append(Withholding(store))
                yield opened[-1]

        bench.app._repository_factory = factory
        async with bench.running():
            await bench.advance(1)
            within_the_first_second = opened[0].claims
            await bench.advance(9)
        assert within_the_first_second <= 12
        assert opened[0].claims - within_the_first_second <= 25
        assert bench.runs == []

    run(main())


def test_the_loop_survives_a_store_that_is_down_and_carries_on_when_it_returns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=seconds(60))(bench.note)
        async with bench.running() as context:
            await bench.advance(30)
            with bench.faults.down():
                before = len(bench.faults.calls)
                await bench.advance(180)
                assert context.last_tick == after(30)
                assert len(bench.faults.calls) - before < 300
            await bench.advance(5)
            assert context.last_tick > after(210)
            await bench.advance(85)
        assert bench.planned == [60, 120, 180, 240, 300]
        assert 210 <= bench.times[2] <= 215

    caplog.set_level(logging.INFO)
    run(main())
    assert logged(caplog, "store failed", "injected")
    assert logged(caplog, "answers again")


def test_the_pauses_between_tries_of_a_failing_store_are_random_and_bounded() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=seconds(60))(bench.note)
        async with bench.running():
            with bench.faults.down():
                at: list[float] = []
                known = len(bench.faults.calls)
                for _ in range(600):
                    await bench.advance(0.1)
                    if len(bench.faults.calls) > known:
                        at.append(bench.clock.monotonic())
                        known = len(bench.faults.calls)
            gaps = [later - sooner for sooner, later in itertools.pairwise(at)]
            assert max(gaps) <= 3.2
            assert len({round(gap, 1) for gap in gaps}) > 3

    random.seed(1)
    run(main())


def test_static_tasks_are_met_when_a_store_that_was_down_at_the_start_returns() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=seconds(60))(bench.note)
        async with bench.app.create() as context:
            with bench.faults.down():
                loop = asyncio.create_task(context.run())
                await bench.advance(10)
                assert not loop.done()
            await bench.advance(70)
            context.shutdown()
            await loop
        assert len(bench.runs) == 1

    run(main())


def test_a_store_that_returns_tells_of_changes_again() -> None:
    async def main() -> None:
        bench = Bench(poll_interval=seconds(20))
        job = bench.app.dynamic_task(name="job")(bench.note)
        bench.faults.next("watch", Fail(), Fail())
        async with bench.running(), bench.another_app().create() as other:
            await bench.advance(30)
            await other.schedule_task(job, "x", execute_at=after(31))
            await bench.advance(2)
        assert bench.times == [31]

    run(main())


def test_a_claim_whose_answer_was_lost_is_repeated_and_nothing_waits_for_its_lease() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", lease_duration=seconds(600))(bench.note)
        await bench.plant(job, "x", planned=0.5)
        async with bench.running():
            bench.faults.next("claim", LoseAnswer(), LoseAnswer())
            await bench.advance(10)
        assert len(bench.runs) == 1
        assert bench.times[0] < 8

    run(main())


def test_a_claim_that_was_lost_for_longer_than_its_lease_is_made_anew() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", lease_duration=seconds(5))(bench.note)
        await bench.plant(job, "x", planned=0.5)
        async with bench.running():
            bench.faults.next("claim", LoseAnswer())
            with bench.faults.down():
                await bench.advance(20)
            await bench.advance(5)
        assert len(bench.runs) == 1

    run(main())


def test_shutdown_gives_back_what_was_claimed_and_not_started() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(job, "x", planned=1)
        gate = Gate(answer=True)
        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.clock.settle()
            bench.faults.next("claim", gate)
            advancing = asyncio.create_task(bench.advance(1))
            await gate.reached()
            context.shutdown()
            gate.release()
            await loop
            await advancing
        record = await bench.record(job, "x")
        assert record is not None
        assert (record.state, record.due_at, record.unfinished_attempts) == (
            "scheduled",
            micros(1),
            0,
        )
        assert bench.runs == []

    run(main())


def test_what_was_asked_for_between_claim_and_giving_back_does_not_keep_the_record_locked() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(job, "x", planned=1)
        gate = Gate(answer=True)
        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.clock.settle()
            bench.faults.next("claim", gate)
            advancing = asyncio.create_task(bench.advance(1))
            await gate.reached()
            claimed = await bench.record(job, "x")
            assert claimed is not None
            change = rules.paused(read(claimed), micros(1))
            assert change is not None
            async with bench.store() as store:
                write = Write(job.group, "x", change, claimed.version)
                [result] = await store.write([write], micros(1))
                assert isinstance(result, Applied)
            context.shutdown()
            gate.release()
            await loop
            await advancing
        record = await bench.record(job, "x")
        assert record is not None
        assert (record.state, record.due_at) == ("paused", None)

    run(main())


def test_a_loop_that_is_cancelled_gives_back_what_it_had_not_started() -> None:
    async def main() -> None:
        bench = Bench(executor_cls=SlowToTake)
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(job, *map(str, range(3)))
        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.clock.settle()
            loop.cancel()
            await asyncio.wait([loop])
        for number in range(3):
            record = await bench.record(job, str(number))
            assert record is not None
            assert (record.state, record.due_at, record.unfinished_attempts) == (
                "scheduled",
                micros(0),
                0,
            )

    run(main())


class SlowToTake:
    """An executor, written by a user, that has no room."""

    def __init__(self, **configuration: Any) -> None:
        pass

    async def __aenter__(self) -> SlowToTake:
        return self

    async def __aexit__(self, *exception: object) -> None:
        pass

    async def spawn_task(self, awaitable: Any) -> None:
        await asyncio.Event().wait()


def test_a_worker_frozen_between_claim_and_start_does_not_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", lease_duration=seconds(5))(bench.note)
        await bench.plant(job, "x", planned=1)
        held = bench.clock

        class Frozen:
            def __init__(self, **configuration: Any) -> None:
                pass

            async def __aenter__(self) -> Frozen:
                return self

            async def __aexit__(self, *exception: object) -> None:
                pass

            async def spawn_task(self, awaitable: Any) -> None:
                await held.sleep(6)
                await awaitable

        bench.app._executor_cls = Frozen
        async with bench.running() as context:
            await bench.advance(7)
            assert bench.runs == []
            assert logged(caplog, "job:x was not started", "lease ended")
            context.shutdown()
            await bench.advance(10)

    run(main())


def test_a_record_that_kills_its_process_does_not_take_its_neighbours_along() -> None:
    async def main() -> None:
        bench = Bench()
        running: list[str] = []
        seen: list[set[str]] = []

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            running.append(context.task.name)
            seen.append({name for name in running if name.startswith("suspect")})
            await bench.clock.sleep(1)
            running.remove(context.task.name)
            await bench.note(context)

        for number in range(4):
            await bench.plant(
                job, f"suspect {number}", unfinished_attempts=2, state="running", token="dead:1:1"
            )
        for number in range(4):
            await bench.plant(job, f"innocent {number}")
        async with bench.running():
            await bench.advance(8)
        assert len(bench.runs) == 8
        assert max(len(suspects) for suspects in seen) == 1
        assert [run.at for run in bench.runs if "innocent" in run.name] == [1] * 4

    run(main())


def test_a_suspect_that_waits_for_another_is_not_counted_as_started() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            await bench.clock.sleep(5)

        for name in ("a", "b"):
            await bench.plant(job, name, unfinished_attempts=2, state="retrying")
        async with bench.running() as context:
            await bench.advance(4)
            records = [await bench.record(job, name) for name in ("a", "b")]
            assert sorted(record.unfinished_attempts for record in records if record) == [2, 3]
            context.shutdown()
            await bench.advance(5)

    run(main())


@pytest.mark.parametrize(
    ("schedule", "progress"),
    [
        ("3 lunar full-moon", None),
        (None, "2 whatever"),
    ],
)
def test_a_record_of_a_newer_format_is_left_alone_for_longer_and_longer(
    schedule: str | None, progress: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(job, "x", schedule=schedule, progress=progress)
        before = await bench.record(job, "x")
        async with bench.running():
            await bench.advance(600)
        record = await bench.record(job, "x")
        assert record is not None
        assert before is not None
        assert bench.runs == []
        assert (record.schedule, record.args, record.progress) == (
            before.schedule,
            before.args,
            before.progress,
        )
        assert record.unfinished_attempts == 0
        assert record.state == "retrying"

    with caplog.at_level(logging.WARNING):
        run(main())
    taken = [line for line in caplog.messages if "left to others" in line]
    assert 10 <= len(taken) <= 20


@pytest.mark.parametrize("mode", ExecutionMode)
def test_arguments_of_a_newer_format_are_for_newer_workers(mode: ExecutionMode) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", execution_mode=mode)(bench.note)
        await bench.plant(job, "x", args='2 {"a":1}')
        async with bench.running():
            await bench.advance(10)
        assert bench.runs == []
        record = await bench.record(job, "x")
        assert record is not None
        assert (record.state, record.args) == ("retrying", '2 {"a":1}')

    run(main())


GARBAGE = {
    "a plan that is empty": {"schedule": ""},
    "a plan of no known kind": {"schedule": "1 LUNAR 7"},
    "a plan that begins with an instant": {"schedule": "1795869214075539 x"},
    "a progress that begins with an instant": {"progress": "1795869214075539 x"},
    "a plan without an expression": {"schedule": "1 cron UTC"},
    "a plan in no zone": {"schedule": "1 cron No(where) 0 * * * *"},
    "a plan with an interval of nothing": {"schedule": "1 every 0"},
    "a plan beyond all time": {"schedule": "1 at 99999999999999999999"},
    "a plan that is binary": {"schedule": "\x01\x02\xff"},
    "a progress that is empty": {"progress": ""},
    "a progress without a birth": {"progress": "1 0"},
    "a progress whose time is a word": {"progress": "1 noon born"},
    "a progress whose rest is no JSON": {"progress": "1 0 born {"},
    "a progress whose rest is a list": {"progress": "1 0 born [1]"},
    "a progress that is nested too deep": {"progress": "1 0 born " + "[" * 100_000},
    "a progress with failures below zero": {"progress": '1 0 born {"failures":-1}'},
    "a progress with an unknown request": {"progress": '1 0 born {"pending":{"dance":1}}'},
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_a_row_edited_into_garbage_is_parked_with_the_reason(
    garbage: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(job, "bad", **garbage)
        await bench.plant(job, "good")
        async with bench.running() as context:
            before = len(bench.faults.made("claim"))
            await bench.advance(100)
            assert len(bench.faults.made("claim")) - before <= 110
            listed = await context.list_tasks(job)
            assert [state.task.name for state in listed.tasks] == ["bad"]
            assert await context.get_task(job, "bad") is not None
        record = await bench.record(job, "bad")
        assert record is not None
        assert (record.state, record.due_at) == ("parked", None)
        assert [entry.name for entry in bench.runs] == ["job:good"]

    run(main())
    assert logged(caplog, "bad", "parked")


ODD_BUT_ENDING = {
    "arguments that are empty": {"args": ""},
    "arguments that are no JSON": {"args": "1 {"},
    "arguments that are a list": {"args": "1 [1]"},
    "arguments that are nested too deep": {"args": "1 " + "[" * 100_000},
}


@pytest.mark.parametrize("garbage", ODD_BUT_ENDING.values(), ids=ODD_BUT_ENDING.keys())
def test_unreadable_arguments_fail_the_run_as_a_failing_body_does(
    garbage: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", failure_mode=FailureMode.UNLOCK)(bench.note)
        await bench.plant(job, "bad", **garbage)
        await bench.plant(job, "good")
        async with bench.running():
            await bench.advance(10)
        record = await bench.record(job, "bad")
        assert record is not None
        assert record.state == "retrying"
        assert '"failures":' in record.progress
        assert [entry.name for entry in bench.runs] == ["job:good"]

    run(main())
    assert logged(caplog, "job:bad failed")


ODD_ROWS = {
    "a state that there is not": {"state": "dancing"},
    "planned for never": {"progress": "1 - born"},
    "planned before all time": {"progress": f"1 {-8_993_721_599_999_999} born"},
    "planned after all time": {"progress": f"1 {8_993_721_599_999_999} born"},
    "started more often than can be": {"unfinished_attempts": 2_000_000_000},
    "started less than never": {"unfinished_attempts": -5},
    "said to be parked, but due": {"state": "parked"},
    "said to be finished, but due": {"state": "finished"},
}


@pytest.mark.parametrize("odd", ODD_ROWS.values(), ids=ODD_ROWS.keys())
@pytest.mark.parametrize(
    "schedule", ["1 at 0", "1 every 1000000", "1 cron Europe/Berlin 0 * * * *"]
)
@pytest.mark.parametrize("mode", ExecutionMode)
def test_an_odd_row_is_run_or_kept_and_never_stops_the_others(
    odd: dict[str, Any], schedule: str, mode: ExecutionMode
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", execution_mode=mode, fast_forward=True)(bench.note)
        await bench.plant(job, "odd", schedule=schedule, **odd)
        await bench.plant(job, "good")
        async with bench.running() as context:
            await bench.advance(10)
            assert await context.list_tasks(job) is not None
        assert "job:good" in [entry.name for entry in bench.runs]

    run(main())


def test_an_instance_in_a_zone_that_this_worker_does_not_know_is_left_to_others_and_not_parked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        unknown = "1 cron Mars/Olympus_Mons 0 9 * * *"
        await bench.plant(job, "x", schedule=unknown)
        async with bench.running() as context:
            await bench.advance(600)
            state = await context.get_task(job, "x")
            assert state is not None
            assert state.state == "retrying"
            record = await bench.record(job, "x")
            assert record is not None
            assert record.schedule == unknown
            assert record.unfinished_attempts == 0
            # Scheduling it anew with a zone that is known here does it.
            await context.schedule_task(job, "x", force=True, execute_at=bench.clock.now())
            await bench.advance(3)  # this worker lets others claim first from that template
        assert len(bench.runs) == 1

    run(main())
    left = [line for line in caplog.messages if "left to others" in line]
    assert 5 <= len(left) <= 20
    assert "Mars/Olympus_Mons" in left[0]


def test_what_was_parked_as_unreadable_shows_it_and_is_freed_by_scheduling_it_anew() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(job, "x", schedule="garbage")
        async with bench.running() as context:
            await bench.clock.settle()
            state = await context.get_task(job, "x")
            assert state is not None
            assert (state.state, state.scheduled_at) == ("parked", None)
            assert "schedule" in str(state.reason)
            await context.schedule_task(job, "x", execute_at=after(5))
            await bench.advance(5)
        assert bench.times == [5]

    run(main())


def test_a_parked_static_task_is_freed_by_a_start() -> None:
    async def main() -> None:
        bench = Bench()
        task = bench.app.task(name="tick", interval=10)(bench.note)
        await bench.plant(task, progress="garbage")
        async with bench.running() as context:
            await bench.clock.settle()
            state = await context.get_task(task)
            assert state is not None
            assert state.state == "parked"
        async with bench.running():
            await bench.advance(10)
        assert bench.times == [10]

    run(main())


@pytest.mark.parametrize("mode", ExecutionMode)
def test_a_static_task_that_a_clock_years_ahead_has_planned_is_planned_anew_at_a_start(
    mode: ExecutionMode, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        task = bench.app.task(name="tick", interval=10, execution_mode=mode)(bench.note)
        await bench.plant(task, planned=1e8)
        async with bench.running():
            await bench.advance(10)
        assert bench.times == [10]

    run(main())
    assert logged(caplog, "tick was planned for later than its schedule 'every 0:00:10' allows")


@pytest.mark.parametrize("unfinished_attempts", [0, 1])
def test_a_lease_that_a_clock_years_ahead_has_counted_ends_at_a_start(
    unfinished_attempts: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Its worker was killed, or its run has failed and waits for the end of the lease."""

    async def main() -> None:
        bench = Bench()
        task = bench.app.task(name="tick", interval=10, lease_duration=seconds(20))(bench.note)
        await bench.plant(
            task,
            planned=1e8,
            due=1e8 + 20,
            state="running",
            token="w:1:1",
            unfinished_attempts=unfinished_attempts,
            progress=Progress(micros(1e8), "b0", failures=1 - unfinished_attempts),
        )
        async with bench.running():
            await bench.advance(30)
        assert bench.times == [20, 30]

    run(main())
    assert logged(caplog, "The lease of tick would end at 2029-03-07T21:47:00")


def test_what_is_at_most_once_and_was_planned_by_a_clock_years_ahead_is_told_at_a_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        task = bench.app.task(name="tick", interval=10, execution_mode=ExecutionMode.AT_MOST_ONCE)(
            bench.note
        )
        await bench.plant(task, planned=1e8, token="w:1:1")
        async with bench.running() as context:
            await bench.advance(30)
            assert bench.times == []
            await context.trigger(task)
            await bench.advance(1)
        assert len(bench.times) == 1

    run(main())
    assert logged(caplog, "tick is at most once, and was planned for 2029-03-07T21:46:40")


def test_a_row_whose_times_no_datetime_can_hold_is_listed_all_the_same() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(job, "x", due=9e12, state="running", token="w:1:1")
        async with bench.app.create() as context:
            [state] = (await context.list_tasks(job)).tasks
            assert state.locked_until is None

    run(main())


def test_an_unstarted_record_waits_for_its_lease_where_the_store_stays_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", lease_duration=seconds(1))(bench.note)
        async with bench.running():
            with bench.faults.down("write"):
                await bench.plant(job, "x", schedule="nonsense")
                await bench.advance(3)
            await bench.advance(3)
        record = await bench.record(job, "x")
        assert record is not None
        assert record.state == "parked"

    run(main())


def test_run_is_refused_beside_another_run() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.running() as context:
            with pytest.raises(PyncetteException, match="runs already"):
                await context.run()

    run(main())


def test_shutdown_before_run_makes_it_return_at_once() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.app.create() as context:
            context.shutdown()
            await context.run()
            assert bench.faults.made("claim") == []

    run(main())


def test_a_context_that_was_shut_down_never_runs_again() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=seconds(1))(bench.note)
        async with bench.app.create() as context:
            async with looping(context):
                await bench.advance(1)
            with pytest.raises(PyncetteException):
                await context.run()
            await bench.advance(5)
        assert bench.times == [1]

    run(main())


def test_shutdown_lets_run_return_while_tasks_are_running() -> None:
    async def main() -> None:
        bench = Bench()
        ended: list[float] = []

        @bench.app.task(interval=seconds(1), lease_duration=seconds(5))
        async def slow(context: Context) -> None:
            for _ in range(5):
                await bench.clock.sleep(4)
                await context.heartbeat()
            ended.append(bench.clock.monotonic())

        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.advance(2)
            context.shutdown()
            await loop
            assert ended == []
            closing = asyncio.create_task(bench.advance(100))
        await closing
        assert ended == [21]
        record = await bench.record(slow)
        assert record is not None
        assert record.state == "scheduled"

    run(main())


def test_a_loop_that_is_cancelled_cancels_running_tasks_when_the_context_closes() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[str] = []

        @bench.app.task(interval=seconds(1))
        async def endless(context: Context) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.advance(1)
            loop.cancel()
            await asyncio.wait([loop])
            assert loop.cancelled()
            assert seen == []
        assert seen == ["cancelled"]
        record = await bench.record(endless)
        assert record is not None
        assert (record.state, record.due_at) == ("running", micros(61))

    run(main())


def test_a_context_that_closes_under_its_loop_waits_for_the_loop() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=seconds(1))(bench.note)
        gate = Gate(answer=True)
        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.clock.settle()
            bench.faults.next("claim", gate)
            advancing = asyncio.create_task(bench.advance(1))
            await gate.reached()
            asyncio.get_running_loop().call_later(0.01, gate.release)
        assert loop.done()
        await advancing
        task = bench.app._tasks[0]
        record = await bench.record(task)
        assert record is not None
        assert (record.state, record.due_at) == ("scheduled", micros(1))

    run(main())


def test_a_static_task_that_is_named_like_a_group_is_not_mistaken_for_it() -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[str] = []

        async def static(context: Context) -> None:
            seen.append(f"static {context.task}")

        async def dynamic(context: Context) -> None:
            seen.append(f"dynamic {context.task}")

        bench.app.task(name="job:0", interval=1)(static)
        bench.app.task(name="a%3Ab", interval=1)(static)
        job = bench.app.partitioned_task(1, name="job", interval=1)(dynamic)
        other = bench.app.dynamic_task(name="a:b", interval=1)(dynamic)
        async with bench.running() as context:
            await context.schedule_task(job, "x")
            await context.schedule_task(other, "x")
            await bench.advance(1)
        assert sorted(seen) == [
            "dynamic a::b:x",
            "dynamic job:0:x",
            "static a%3Ab",
            "static job::0",
        ]

    run(main())


def test_a_task_that_is_disabled_is_not_claimed_from_that_moment_on() -> None:
    async def main() -> None:
        bench = Bench(poll_interval=seconds(60))
        task = bench.app.task(name="tick", interval=seconds(1))(bench.note)
        async with bench.running():
            await bench.advance(2.5)
            task.enabled = False
            await bench.advance(10)
            assert bench.times == [1, 2]
            task.enabled = True
            await bench.advance(60)
        assert bench.planned[:4] == [1, 2, 3, 4]

    run(main())


def test_a_partition_that_is_disabled_is_not_claimed_from_that_moment_on() -> None:
    async def main() -> None:
        bench = Bench(poll_interval=seconds(60))
        job = bench.app.partitioned_task(
            2, lambda count, name: int(name), name="job", interval=seconds(1)
        )(bench.note)
        async with bench.running() as context:
            await context.schedule_task(job, "0")
            await context.schedule_task(job, "1")
            await bench.advance(1)
            job.enabled_partitions = [1]
            await bench.advance(2)
        assert [entry.name for entry in bench.runs if entry.at > 1] == ["job:1:1"] * 2

    run(main())


def test_a_task_declared_while_the_loop_runs_joins_in() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.running():
            bench.app.task(name="tick", interval=timedelta(seconds=10))(bench.note)
            await bench.advance(15)
        assert bench.times == [11]

    run(main())


def test_an_executor_that_does_not_take_work_on_costs_the_record_no_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        class Moody:
            taken = 0

            def __init__(self, **configuration: Any) -> None:
                pass

            async def __aenter__(self) -> Moody:
                return self

            async def __aexit__(self, *exception: object) -> None:
                pass

            async def spawn_task(self, awaitable: Any) -> None:
                Moody.taken += 1
                if Moody.taken <= 2:
                    raise RuntimeError("not today")
                await awaitable

        bench = Bench(executor_cls=Moody)
        job = bench.app.dynamic_task(name="job")(bench.note)
        await bench.plant(job, "x")
        async with bench.running():
            record = await bench.record(job, "x")
            assert record is not None
            assert record.unfinished_attempts == 0
            await bench.advance(5)
        assert bench.times == [2]

    run(main())
    assert logged(caplog, "executor", "job")


class SteppedClock(VirtualClock):
    """A clock that can be set back, or ahead, while its monotonic time goes on."""

    moved = seconds(0)

    def now(self) -> datetime:
        return super().now() + self.moved

    def microseconds(self) -> int:
        return super().microseconds() + self.moved // timedelta(microseconds=1)


class SteppedBench(Bench):
    """An app on a clock that can be set back."""

    def __init__(self, **configuration: Any) -> None:
        super().__init__(**configuration)
        self.clock = self.stepped = SteppedClock(START)
        self.app = self.another_app()


@pytest.mark.parametrize("moved", [-1, -3_600])
def test_static_tasks_run_on_soon_after_the_clock_was_set_back(moved: float) -> None:
    async def main() -> None:
        bench = SteppedBench()
        bench.app.task(name="tick", interval=seconds(10))(bench.note)
        async with bench.running() as context:
            await bench.advance(15)
            bench.stepped.moved = seconds(moved)
            await bench.advance(20)
            assert context.last_tick <= context.clock.now()
        assert bench.times == ([10, 21, 31] if moved > -60 else [10, 26])

    run(main())


def test_a_static_task_that_fails_while_the_clock_is_set_back_is_planned_anew() -> None:
    async def main() -> None:
        bench = SteppedBench()

        async def fail(context: Context) -> None:
            bench.stepped.moved = seconds(-3_600)
            await bench.fail(context)

        bench.app.task(name="tick", interval=seconds(10), failure_mode=FailureMode.COMMIT)(fail)
        async with bench.running():
            await bench.advance(25)
        assert bench.times == [10, 20]

    run(main())


def test_another_schedule_in_code_is_not_followed_when_the_clock_is_set_back() -> None:
    async def main() -> None:
        bench = SteppedBench()
        task = bench.app.task(name="tick", interval=seconds(100))(bench.note)
        async with bench.running():
            await bench.plant(task, schedule=Every(seconds(50)), planned=200)
            bench.stepped.moved = seconds(-3_600)
            await bench.advance(5)
            record = await bench.record(task)
        assert record is not None
        assert record.due_at == micros(200)

    run(main())


def test_an_instance_that_this_worker_cannot_read_holds_up_no_other_one() -> None:
    async def main() -> None:
        bench = Bench()
        broken = False

        @bench.app.calendar("flaky")
        def flaky(day: date) -> bool:
            if broken:
                raise RuntimeError("the service of holidays is down")
            return False

        late: list[timedelta] = []

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            if context.task.name == "good":
                late.append(bench.clock.now() - context.scheduled_at)

        async with bench.running() as context:
            await context.schedule_task(job, "good", interval=seconds(1))
            await context.schedule_task(job, "bad", schedule=Cron("* * * * *") - Calendar("flaky"))
            broken = True
            await bench.advance(120)
            late.clear()
            await bench.advance(60)
        assert len(late) >= 59
        assert max(late) <= seconds(0.25)

    run(main())
