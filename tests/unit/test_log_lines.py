"""What the log says of a run: which attempt it was, what follows, and how a lease was lost."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from tests.support import Bench, after, lines, run, seconds

from pyncette import Context, ExecutionMode, FailureMode
from pyncette.errors import LeaseLostException, TaskLockedException
from pyncette.utils import with_heartbeat

NONE, UNLOCK, COMMIT = FailureMode
RUN = "of the run planned for 2026-01-05T12:00:05+00:00"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"failure_mode": NONE, "lease_duration": 2},
            [
                f"1 {RUN}: it is retried when its lease ends at 2026-01-05T12:00:07+00:00",
                f"2 {RUN}: it is retried when its lease ends at 2026-01-05T12:00:09+00:00",
            ],
        ),
        (
            {"failure_mode": UNLOCK},
            [f"{attempt} {RUN}: it is retried in 1 s" for attempt in (1, 2, 3, 4)],
        ),
        ({"failure_mode": COMMIT}, [f"1 {RUN}: the failure counts as done"]),
        (
            {"execution_mode": ExecutionMode.AT_MOST_ONCE},
            [f"1 {RUN}: it is not run again, because it is at most once"],
        ),
    ],
    ids=["none", "unlock", "commit", "at most once"],
)
def test_a_failure_is_told_with_its_attempt_its_planned_time_and_what_follows(
    options: dict[str, Any], told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="bad", interval=5, **options)(bench.fail)
        async with bench.running():
            await bench.advance(8.5)

    run(main())
    assert warnings(caplog) == [f"Task bad failed in attempt {line}" for line in told]


def test_an_attempt_that_a_dead_worker_began_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.fail)
        await bench.plant(
            job, "x", planned=5, due=6, state="running", token="dead:1:1", unfinished_attempts=1
        )
        async with bench.running():
            await bench.advance(6)

    run(main())
    [line] = warnings(caplog)
    assert line.startswith(f"Task job:x failed in attempt 2 {RUN}: ")


def test_each_run_has_one_line_at_debug_level(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.task(name="tick", schedule="* * * * *", timezone="Asia/Kolkata")(bench.note)
        async with bench.running():
            await bench.advance(120)

    with caplog.at_level(logging.DEBUG, "pyncette"):
        run(main())
    assert [line for line in lines(caplog) if "tick" in line] == [
        f"Task tick starts attempt 1 of the run planned for 2026-01-05T17:3{minute}:00+05:30"
        for minute in (1, 2)
    ]


def test_a_worker_without_tasks_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Bench().running():
            pass

    run(main())
    [line] = warnings(caplog)
    assert line.startswith("Worker worker starts with 0 tasks")


def test_a_worker_says_how_many_tasks_it_has(caplog: pytest.LogCaptureFixture) -> None:
    async def main(count: int) -> None:
        bench = Bench()
        for number in range(count):
            bench.app.task(name=f"tick {number}", interval=1)(bench.note)
        async with bench.running():
            pass

    caplog.set_level(logging.INFO, "pyncette")
    for count, said in ((1, "1 task"), (2, "2 tasks")):
        run(main(count))
        assert f"Worker worker starts with {said}" in lines(caplog)


# How a lease was lost.


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("removed", "it was removed"),
        ("replaced", "it was replaced, or removed and scheduled again"),
        ("taken", "worker thief took it after its lease had ended"),
        ("taken again", "this worker took it again after its lease had ended"),
        ("scheduled", "it was scheduled again after its lease had ended"),
        ("garbage", "its record was changed so that it cannot be read"),
    ],
)
def test_a_lost_lease_is_told_with_what_became_of_the_record(
    how: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        lost: list[tuple[str, bool]] = []

        @bench.app.dynamic_task(lease_duration=10)
        async def job(context: Context) -> None:
            if bench.runs:
                return
            await bench.note(context)
            await bench.clock.sleep(9.5 if how != "scheduled" else 10.5)
            try:
                await context.heartbeat()
            except LeaseLostException as error:
                lost.append((str(error), error.by_body))
                raise

        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(1))
            await bench.advance(1)
            record = await bench.record(job, "x")
            assert record is not None
            taken: dict[str, Any] = {
                "planned": 1,
                "due": 60,
                "state": "running",
                "unfinished_attempts": 1,
                "progress": record.progress,
            }
            match how:
                case "removed":
                    await context.unschedule_task(job, "x")
                case "replaced":
                    await context.schedule_task(job, "x", force=True, execute_at=after(100))
                case "taken":
                    await bench.plant(job, "x", token="thief:1:1", **taken)
                case "taken again":
                    await bench.plant(job, "x", token="worker:9:9", **taken)
                case "scheduled":
                    job.enabled = False
                    await bench.advance(10)
                    await context.schedule_task(job, "x", execute_at=after(100))
                case _:
                    await bench.plant(
                        job, "x", token="thief:1:1", **{**taken, "progress": "garbage"}
                    )
            await bench.advance(15)
        assert lost == [(f"Lease on the task 'job:x' was lost: {reason}", False)]

    run(main())
    [line] = [line for line in warnings(caplog) if "lost its lease" in line]
    assert line == f"job:x lost its lease: its outcome is not recorded, because {reason}"


@pytest.mark.parametrize("how", ["removes", "replaces"])
@pytest.mark.parametrize("beats", [False, True])
def test_a_body_that_removes_or_replaces_its_own_instance_is_not_warned_about(
    how: str, beats: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()

        async def body(context: Context) -> None:
            await bench.note(context)
            if how == "removes":
                await context.app_context.unschedule_task(context.task)
            else:
                at = bench.clock.now() + seconds(100)
                await context.app_context.schedule_task(job, "x", force=True, execute_at=at)
            await bench.clock.sleep(6)

        job = bench.app.dynamic_task(name="job", lease_duration=10)(
            with_heartbeat()(body) if beats else body
        )
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(1))
            await bench.advance(50)
            assert (await context.get_task(job, "x") is None) == (how == "removes")
        assert bench.times == [1]

    with caplog.at_level(logging.DEBUG, "pyncette"):
        run(main())
    assert warnings(caplog) == []
    assert any("job:x lost its lease" in line for line in lines(caplog))


# A failure that keeps its lease.


def test_a_failed_run_that_keeps_its_lease_is_shown_as_waiting_for_its_retry() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", lease_duration=10)(bench.fail)
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(1))
            await bench.advance(2)
            state = await context.get_task(job, "x")
            assert state is not None
            assert (state.state, state.scheduled_at) == ("retrying", after(1))
            assert (state.locked_until, state.locked_by) == (None, None)
            assert state.reason == "RuntimeError: the body failed"
            with pytest.raises(TaskLockedException, match="by the lease of its failed exec") as got:
                await context.schedule_task(job, "x", execute_at=after(3))
            assert got.value.failed
            assert got.value.locked_until == after(11)

    run(main())


def test_a_running_execution_is_what_locks_a_record() -> None:
    async def main() -> None:
        bench = Bench()

        @bench.app.dynamic_task(lease_duration=10)
        async def job(context: Context) -> None:
            await bench.clock.sleep(5)

        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(1))
            await bench.advance(2)
            state = await context.get_task(job, "x")
            assert state is not None
            assert (state.state, state.locked_until, state.locked_by) == (
                "running",
                after(11),
                "worker",
            )
            with pytest.raises(TaskLockedException, match="by a running execution until") as got:
                await context.schedule_task(job, "x", execute_at=after(3))
            assert not got.value.failed
            assert "force=True" in str(got.value)
            await bench.advance(10)

    run(main())


def test_the_state_of_a_task_is_a_plain_string_whatever_the_store_returns() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job")(bench.fail)
        seen: list[Any] = []
        async with bench.running() as context:
            await context.schedule_task(job, "later", execute_at=after(90))
            await context.schedule_task(job, "x", execute_at=after(1))
            await bench.advance(2)
            seen += (await context.list_tasks(job)).tasks
            await bench.plant(job, "y", state="parked")
            seen.append(await context.get_task(job, "y"))
        assert [(type(state.state), repr(state.state)) for state in seen] == [
            (str, "'scheduled'"),
            (str, "'retrying'"),
            (str, "'parked'"),
        ]

    run(main())
