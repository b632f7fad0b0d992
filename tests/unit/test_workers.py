"""``context.workers()``: which workers are alive, and what each says about itself."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Any

import pytest
from tests.faulty_store import AnswerWrites, Fail, Gate
from tests.support import Bench, after, lines, logged, looping, micros, run, seconds

import pyncette
from pyncette import Context
from pyncette.engine import membership
from pyncette.engine.membership import (
    DEAD_MAX,
    RUNS_MAX,
    TASKS_CHARACTERS_MAX,
    TASKS_MAX,
    Member,
    forgotten,
    member_record,
    read_member,
)
from pyncette.errors import StoreUnavailableError
from pyncette.model import RunningTask, WorkerState
from pyncette.store import Failed, Write, scan_all
from pyncette.store.record import ANY, DELETE, MEMBERS_GROUP, Put, Record, State

pytestmark = pytest.mark.every_poll


def members_in(bench: Bench, name: str = "worker") -> list[Any]:
    """The writes of the record of a worker that reached the store."""
    return [
        write
        for call in bench.faults.made("write")
        for write in call.arguments[0]
        if write.group == MEMBERS_GROUP and write.key.startswith(f"{name}:")
    ]


async def rows(bench: Bench) -> list[Record]:
    async with bench.store() as store:
        return [record async for record in scan_all(store, MEMBERS_GROUP)]


async def plant(bench: Bench, key: str, args: str, at: float = 0) -> None:
    put = Put(None, State.FINISHED, None, 0, "", args, "")
    async with bench.store() as store:
        await store.write([Write(MEMBERS_GROUP, key, put, ANY)], micros(at))


async def plant_member(bench: Bench, key: str, at: float = 0, **fields: Any) -> None:
    member = Member(key, key.rpartition(":")[0], micros(at), micros(at), **fields)
    await plant(bench, key, member_record(member).args, at)


def test_a_worker_is_alive_from_the_start_of_its_loop_to_the_end() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=seconds(3600))(bench.note)
        bench.app.dynamic_task(name="job")(bench.note)
        bench.app.dynamic_task(name="off", enabled=False)(bench.note)
        async with bench.app.create() as context:
            await bench.advance(5)
            assert await context.workers() == []
            async with looping(context):
                await bench.clock.settle()
                [state] = await context.workers()
                assert state == WorkerState(
                    "worker",
                    state.id,
                    after(5),
                    after(5),
                    after(65),
                    socket.gethostname(),
                    os.getpid(),
                    pyncette.__version__,
                    ("tick", "job"),
                    2,
                )
                assert state.id.startswith("worker:")
                await bench.advance(300)
                [state] = await context.workers()
                assert (state.since, state.seen_at) == (after(5), after(305))
        async with bench.app.create() as context:
            assert await context.workers() == []
        assert await rows(bench) == []

    run(main())


def test_workers_see_each_other_though_they_were_given_the_same_name() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=seconds(3600))(bench.note)
        other = bench.another_app()
        async with bench.app.create() as reader, bench.running(), bench.running(other):
            await bench.advance(90)
            first, second = await reader.workers()
            assert first.name == second.name == "worker"
            assert first.id != second.id
            assert sorted([first.task_count, second.task_count]) == [0, 1]

    run(main())


def test_a_worker_says_what_it_runs() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.dynamic_task(name="job", lease_duration=seconds(600))
        async def job(context: Context) -> None:
            await bench.clock.sleep(50)

        async with bench.running() as context:
            for number in range(3):
                await context.schedule_task(job, f"x{number}", execute_at=after(10 + number))
            await bench.advance(25)
            [state] = await context.workers()
            assert state.running_count == 3
            assert state.running == (
                RunningTask("job:x0", after(10)),
                RunningTask("job:x1", after(11)),
                RunningTask("job:x2", after(12)),
            )
            await bench.advance(60)
            [state] = await context.workers()
            assert (state.running_count, state.running) == (0, ())

    run(main())


def test_what_a_worker_says_is_bounded() -> None:
    async def main() -> None:
        bench = Bench(concurrency_limit=1_000, batch_size=1_000)
        for number in range(TASKS_MAX + 50):
            bench.app.dynamic_task(name=f"task-{number}")(bench.note)

        @bench.app.dynamic_task(name="n" * 300, lease_duration=seconds(600))
        async def job(context: Context) -> None:
            await bench.clock.sleep(50)

        async with bench.running() as context:
            for number in range(RUNS_MAX + 10):
                await context.schedule_task(job, f"x{number}", execute_at=after(1))
            await bench.advance(25)
            [state] = await context.workers()
            assert (len(state.tasks), state.task_count) == (TASKS_MAX, TASKS_MAX + 51)
            assert (len(state.running), state.running_count) == (RUNS_MAX, RUNS_MAX + 10)
            assert state.running[0].name == "n" * 200
            await bench.advance(60)
            [record] = await rows(bench)
            assert len(record.args) < 20_000

    run(main())


def test_long_names_of_tasks_are_left_out() -> None:
    names = ["a" * (TASKS_CHARACTERS_MAX - 1), "b", "c"]
    assert membership._bounded(names) == tuple(names[:2])


def test_a_worker_that_dies_is_gone_when_its_lease_ends() -> None:
    async def main() -> None:
        bench = Bench()
        await plant_member(bench, "dead:1")
        await plant_member(bench, "quick:1", lease=2_000_000)
        async with bench.app.create() as context:
            assert [state.name for state in await context.workers()] == ["dead", "quick"]
            await bench.advance(2)
            assert [state.name for state in await context.workers()] == ["dead"]
            await bench.advance(57.9)
            assert [state.name for state in await context.workers()] == ["dead"]
            await bench.advance(0.1)
            assert await context.workers() == []

    run(main())


def test_a_worker_of_before_the_clock_was_set_back_does_not_live_for_ever() -> None:
    async def main() -> None:
        bench = Bench()
        await plant_member(bench, "ahead:1", at=61)
        async with bench.app.create() as context:
            assert await context.workers() == []
            await bench.advance(2)
            assert len(await context.workers()) == 1

    run(main())


def test_rows_of_other_releases_and_of_nobody_stop_nothing() -> None:
    async def main() -> None:
        bench = Bench()
        await plant(bench, "newer:1", '2 {"who":"knows"}')
        await plant(bench, "garbage:1", "1 [1, 2]")
        await plant(bench, "empty:1", "")
        await plant(bench, "timeless:1", '1 {"name":"x","seen":"now"}')
        seen = micros(0)
        odd = (
            f'1 {{"seen":{seen},"lease":-4,"since":true,"host":7,"process":"x","version":[],'
            f'"tasks":["a",3,null],"task_count":"many","running":2.5,'
            f'"runs":[["a",{seen}],["b"],"c",[4,5],["d",-1e99],["e",true]],"more":1}}'
        )
        await plant(bench, "odd:1", odd)
        await plant(bench, "no-colon", '2 {"who":"knows"}')
        async with bench.running() as context:
            states = {state.name: state for state in await context.workers()}
            assert sorted(states) == ["newer", "no-colon", "odd", "worker"]
            newer = WorkerState("newer", "newer:1", None, after(0), after(60))
            assert states["newer"] == newer
            odd_one = WorkerState("odd", "odd:1", None, after(0), after(60))
            assert states["odd"] == WorkerState(
                *(odd_one.name, odd_one.id, None, after(0), after(60)),
                tasks=("a",),
                task_count=1,
                running_count=1,
                running=(RunningTask("a", after(0)),),
            )
            await bench.advance(120)
            assert [state.name for state in await context.workers()] == ["worker"]

    run(main())


def test_what_a_record_says_is_read_back() -> None:
    member = Member(
        *("w:1", "w", 5, 6, 7, "host", 8, "9", ("a", "b"), 3, 2, (("a:x", 4),)),
    )
    put = member_record(member)
    record = Record(MEMBERS_GROUP, "w:1", None, 6, None, "finished", 0, "", put.args, "")
    assert read_member(record) == member


@pytest.mark.parametrize("version", [-(1 << 62), 1 << 62])
def test_a_row_of_a_newer_release_with_an_impossible_version_is_left_out(version: int) -> None:
    record = Record(MEMBERS_GROUP, "w:1", None, version, None, "finished", 0, "", "2 {}", "")
    assert read_member(record) is None


def test_an_idle_worker_writes_three_times_a_minute_and_reads_once_an_hour() -> None:
    async def main() -> None:
        bench = Bench(polls_always=True, poll_interval=seconds(5))
        bench.faults.of_members = True
        bench.app.task(name="yearly", schedule="0 0 1 1 *")(bench.note)
        async with bench.running():
            await bench.advance(30)
            bench.faults.calls.clear()
            await bench.advance(7200)
            assert len(bench.faults.made("write")) == 360
            assert len(bench.faults.made("scan")) == 2
            assert len(bench.faults.calls) == 7200 / 5 + 360 + 2

    run(main())


def test_a_worker_that_polls_seldom_does_not_wake_up_to_say_that_it_is_alive() -> None:
    async def main() -> None:
        bench = Bench(poll_interval=seconds(600))
        bench.faults.of_members = True
        bench.app.task(name="yearly", schedule="0 0 1 1 *")(bench.note)
        async with bench.running() as context:
            await bench.advance(1000)
            bench.faults.calls.clear()
            await bench.advance(6000)
            assert len(bench.faults.made("write")) == 10
            [state] = await context.workers()
            assert state.expires_at - state.seen_at == seconds(1800)

    run(main())


def test_a_record_that_cannot_be_written_is_said_once_and_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        bench = Bench()
        bench.faults.of_members = True
        bench.app.task(name="tick", interval=seconds(5))(bench.note)
        full = AnswerWrites(
            Failed(ValueError("no room")), lambda write: write.group == MEMBERS_GROUP
        )
        async with bench.running() as context:
            with bench.faults.down("write", fault=full):
                await bench.advance(70)
                assert await context.workers() == []
            await bench.advance(20)
            assert len(await context.workers()) == 1
        assert bench.times == list(range(5, 91, 5))

    run(main())
    assert sum("cannot write that it is alive" in line for line in lines(caplog)) == 1
    assert logged(caplog, "Worker worker:", "is known again to be alive")


def test_while_the_store_is_down_nothing_is_written_and_afterwards_at_once() -> None:
    async def main() -> None:
        bench = Bench()
        bench.faults.of_members = True
        bench.app.task(name="tick", interval=seconds(5))(bench.note)
        async with bench.running() as context:
            await bench.advance(1)
            with bench.faults.down():
                await bench.advance(300)
                tried = members_in(bench)
            await bench.advance(4)
            assert len(tried) <= 2
            [state] = await context.workers()
            assert state.seen_at >= after(301)
            assert state.since == after(0)

    run(main())


def test_a_record_that_is_answered_late_is_not_written_twice() -> None:
    async def main() -> None:
        bench = Bench()
        bench.faults.of_members = True
        gate = Gate()
        async with bench.app.create() as context:
            bench.faults.next("write", gate)
            async with looping(context):
                with bench.clock.hold():
                    await gate.reached()
                    before = context._worker.membership.beat_at
                    context._worker.membership.beat_at = 0
                    context._worker.alarm.ring()
                    for _ in range(10):
                        await asyncio.sleep(0)
                    assert context._worker.membership.beat_at == before
                    assert len(context._worker.writes) == 0
                    gate.release()
                await bench.clock.settle()
                assert len(members_in(bench)) == 1

    run(main())


def test_closing_with_a_store_that_is_down_does_not_try_to_remove_the_record() -> None:
    async def main() -> None:
        bench = Bench()
        bench.faults.of_members = True
        bench.app.task(name="tick", interval=seconds(5))(bench.note)
        async with bench.running():
            await bench.advance(2)
            down = bench.faults.down()
            down.__enter__()
            await bench.advance(10)
            before = len(bench.faults.calls)
        assert len(bench.faults.calls) == before
        [record] = await rows(bench)
        assert record.key.startswith("worker:")

    run(main())


def test_closing_waits_for_a_store_that_hangs_only_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(membership, "LEAVING_PATIENCE_S", 0.01)

    async def main() -> None:
        bench = Bench()
        bench.faults.of_members = True
        async with bench.running():
            await bench.advance(2)
            bench.faults.next("write", Gate())
        assert len(await rows(bench)) == 1

    run(main())


def test_the_removal_comes_after_a_write_that_is_under_way() -> None:
    async def main() -> None:
        bench = Bench()
        bench.faults.of_members = True
        gate = Gate()
        async with bench.app.create() as context:
            bench.faults.next("write", gate)
            loop = asyncio.create_task(context.run())
            await gate.reached()
            context.shutdown()
            await loop
            await asyncio.sleep(0)
            gate.release()
        assert await rows(bench) == []

    run(main())


def test_a_caller_that_gives_up_waiting_for_the_removal_does_not_disturb_closing() -> None:
    async def main() -> None:
        bench = Bench()
        bench.faults.of_members = True
        gate = Gate()
        bench.faults.next(
            "write", gate, matches=lambda batch, *_: any(w.change is DELETE for w in batch)
        )
        async with bench.app.create() as context:
            idle = asyncio.create_task(context.run_until_idle())
            await gate.reached()
            idle.cancel()
            with pytest.raises(asyncio.CancelledError):
                await idle
            gate.release()
        assert await rows(bench) == []

    run(main())


def test_closing_waits_for_the_removal() -> None:
    async def main() -> None:
        bench = Bench()
        bench.faults.of_members = True
        gate = Gate()

        async def live() -> None:
            async with bench.running():
                await bench.advance(2)
                bench.faults.next("write", gate)

        living = asyncio.create_task(live())
        await gate.reached()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not living.done()
        gate.release()
        await living
        assert await rows(bench) == []

    run(main())


def test_a_worker_that_has_left_writes_and_says_nothing_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.advance(1)
            member = context._worker.membership
            assert member.write(micros(1)) is not None
            context.shutdown()
            await loop
            assert member.write(micros(1)) is None
            member.written(Failed(ValueError("too late")))

    run(main())
    assert not logged(caplog, "cannot write that it is alive")


def test_a_removal_that_fails_is_no_error() -> None:
    async def main() -> None:
        bench = Bench()
        bench.faults.of_members = True
        async with bench.running():
            await bench.advance(2)
            bench.faults.next("write", Fail())
        assert len(await rows(bench)) == 1

    run(main())


def test_a_worker_that_wrote_nothing_removes_nothing() -> None:
    async def main() -> None:
        bench = Bench()
        bench.faults.of_members = True
        async with bench.app.create() as context:
            context.shutdown()
            await context.run()
        assert members_in(bench) == []

    run(main())


def test_a_run_that_is_cancelled_removes_the_record_as_well() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await bench.advance(1)
            loop.cancel()
            await asyncio.wait([loop])
        assert await rows(bench) == []

    run(main())


def test_records_of_dead_workers_are_removed_after_a_day_unless_they_write_again() -> None:
    async def main() -> None:
        bench = Bench(poll_interval=seconds(60))
        day = 86_400
        for key in ("dead:1", "back:1"):
            await plant_member(bench, key)
        await plant(bench, "garbage:1", "?")
        async with bench.running() as context:
            await bench.advance(day - 60)
            assert len(await rows(bench)) == 4
            gate = Gate()
            bench.faults.of_members = True
            bench.faults.next(
                "write", gate, matches=lambda batch, *_: any(w.key == "back:1" for w in batch)
            )
            moving = asyncio.create_task(bench.advance(3700))
            await gate.reached()
            await plant_member(bench, "back:1", at=day + 1)
            gate.release()
            await moving
            assert [record.key for record in await rows(bench)][:1] == ["back:1"]
            assert len(await rows(bench)) == 2
            assert len(await context.workers()) == 1

    run(main())


def test_of_very_many_dead_workers_the_oldest_are_removed_at_once() -> None:
    def record(number: int) -> tuple[Record, Member]:
        member = Member(f"w:{number}", "w", 0, number)
        put = member_record(member)
        return Record(MEMBERS_GROUP, member.id, None, number, None, "", 0, "", put.args, ""), member

    now = 10**9
    found = [record(number) for number in range(DEAD_MAX + 3)]
    alive = record(now)
    assert [row.version for row in forgotten([alive, *found], now)] == [0, 1, 2]
    assert forgotten(found[:DEAD_MAX], now) == []
    assert len(forgotten(found, 10**12)) == DEAD_MAX + 3


def test_a_store_that_cannot_list_the_records_stops_nothing() -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", interval=seconds(10))(bench.note)
        async with bench.running() as context:
            with bench.faults.down("scan"):
                await bench.advance(60)
                with pytest.raises(StoreUnavailableError):
                    await context.workers()
        assert bench.times == [10, 20, 30, 40, 50, 60]

    run(main())


def test_a_crowd_of_records_is_read_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "MEMBERS_MAX", 3)
    monkeypatch.setattr(membership, "PAGE_SIZE", 2)

    async def main() -> None:
        bench = Bench()
        for number in range(7):
            await plant_member(bench, f"w{number}:1")
        async with bench.app.create() as context:
            assert [state.name for state in await context.workers()] == ["w0", "w1", "w2"]

    run(main())


def test_a_record_that_is_abandoned_is_written_again() -> None:
    async def main() -> None:
        bench = Bench()
        bench.faults.of_members = True
        async with bench.running() as context:
            bench.faults.next("write", Fail())
            await bench.advance(20)
            [state] = await context.workers()
            assert state.seen_at == after(0)
            await bench.advance(20)
            [state] = await context.workers()
            assert state.seen_at == after(40)

    run(main())
