"""Scheduling what exists: what is kept, what is replaced, and what the caller is told."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support import Bench, after, lines, logged, run, seconds

from pyncette import FailureMode, Instance, OnExisting, Retry
from pyncette.errors import TaskExistsError, TaskLockedException
from pyncette.task import Task


def of(bench: Bench, **options: Any) -> Task:
    return bench.app.dynamic_task(name="job", **options)(bench.note)


def test_a_sooner_time_that_is_kept_is_said_and_the_instance_returned_knows_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "pyncette")

    async def main() -> None:
        bench = Bench()
        job = of(bench)
        async with bench.running() as context:
            first = await context.schedule_task(job, "x", execute_at=after(10), text="one")
            assert first.next_run == after(10)
            second = await context.schedule_task(job, "x", execute_at=after(70), text="two")
            assert (second.next_run, second.execute_at) == (after(10), after(10))
            state = await context.get_task(job, "x")
            assert state is not None
            assert (state.scheduled_at, state.task.execute_at) == (after(10), after(10))
            await bench.advance(100)
        assert bench.times == [10]
        assert bench.runs[0].args == {"text": "two"}

    run(main())
    assert logged(
        caplog, "job:x keeps its sooner time", "12:00:10", "12:01:10", "on_existing", "force"
    )


def test_repeated_calls_for_the_same_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pyncette.calls")

    async def main() -> None:
        bench = Bench()
        job = of(bench)
        async with bench.running() as context:
            for _ in range(5):
                instance = await context.schedule_task(job, "x", interval=seconds(10))
                assert instance.next_run == after(10)
                await bench.advance(1)
            sooner = await context.schedule_task(job, "x", interval=seconds(2))
            assert sooner.next_run == after(7)

    run(main())
    assert not lines(caplog)


def test_a_call_that_changes_nothing_writes_nothing() -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench)
        async with bench.app.create() as context:
            await context.schedule_task(job, "x", execute_at=after(10), n=1)
            before = await bench.record(job, "x")
            await context.schedule_task(job, "x", execute_at=after(10), n=1)
            assert await bench.record(job, "x") == before

    run(main())


def test_replacing_moves_the_next_time_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench)
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(10), n=1)
            moved = await context.schedule_task(
                job, "x", execute_at=after(70), n=2, on_existing=OnExisting.REPLACE
            )
            assert (moved.next_run, moved.execute_at) == (after(70), after(70))
            await bench.advance(100)
        assert bench.times == [70]
        assert bench.runs[0].args == {"n": 2}

    run(main())
    assert not logged(caplog, "keeps")


def test_replacing_does_not_disturb_a_running_execution() -> None:
    async def main() -> None:
        bench = Bench()

        async def slow(context: Any) -> None:
            await bench.note(context)
            await bench.clock.sleep(5)
            await context.heartbeat()

        job = bench.app.dynamic_task(name="job")(slow)
        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=seconds(10), n=1)
            await bench.advance(12)
            new = await context.schedule_task(
                job, "x", interval=seconds(30), n=2, on_existing=OnExisting.REPLACE
            )
            assert new.next_run == after(42)
            await bench.advance(50)
        assert bench.times == [10, 42]
        assert [item.args["n"] for item in bench.runs] == [1, 2]

    run(main())


@pytest.mark.parametrize("in_bulk", [False, True])
def test_replacing_what_has_failed_and_keeps_its_lease_holds_at_once(in_bulk: bool) -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(name="job", failure_mode=FailureMode.NONE)(bench.fail)
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(10), n=1)
            await bench.advance(12)
            with pytest.raises(TaskLockedException, match=r"REPLACE, which holds at once"):
                await context.schedule_task(job, "x", execute_at=after(20), n=2)
            if in_bulk:
                result = await context.schedule_tasks(
                    job,
                    [Instance("x", execute_at=after(20), n=2)],
                    on_existing=OnExisting.REPLACE,
                )
                assert result.updated == 1
            else:
                new = await context.schedule_task(
                    job, "x", execute_at=after(20), n=2, on_existing=OnExisting.REPLACE
                )
                assert new.next_run == after(20)
            state = await context.get_task(job, "x")
            assert state is not None
            assert (state.state, state.next, state.attempt) == ("scheduled", after(20), 1)
            await bench.advance(10)
        # The old occurrence is not run again when its lease ends.
        assert [(run.at, run.args["n"]) for run in bench.runs] == [(10, 1), (20, 2)]

    run(main())


def test_what_runs_says_when_a_replacement_would_hold() -> None:
    async def main() -> None:
        bench = Bench()

        async def slow(context: Any) -> None:
            await bench.clock.sleep(5)

        job = bench.app.dynamic_task(name="job")(slow)
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(10))
            await bench.advance(12)
            words = "OnExisting.REPLACE, which holds from the end of that execution"
            with pytest.raises(TaskLockedException, match=words):
                await context.schedule_task(job, "x", execute_at=after(20))
            await bench.advance(10)

    run(main())


def test_a_task_replaces_its_own_schedule_without_losing_its_lease(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()

        async def again(context: Any) -> None:
            await bench.note(context)
            if len(bench.runs) < 3:
                await context.app_context.schedule_task(
                    job,
                    "x",
                    execute_at=after(10 * (len(bench.runs) + 1)),
                    on_existing=OnExisting.REPLACE,
                )

        job = bench.app.dynamic_task(name="job")(again)
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(10))
            await bench.advance(60)
            assert await context.get_task(job, "x") is None
        assert bench.times == [10, 20, 30]

    run(main())
    assert not [record for record in caplog.records if record.levelno >= 30]


def test_keeping_leaves_what_is_there_and_returns_it() -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench)
        async with bench.running() as context:
            await context.schedule_task(job, "x", execute_at=after(10), n=1)
            kept = await context.schedule_task(
                job, "x", execute_at=after(5), n=2, on_existing=OnExisting.KEEP
            )
            assert (kept.execute_at, kept.next_run) == (after(10), after(10))
            assert kept.extra_args == {"n": 1}
            made = await context.schedule_task(
                job, "y", execute_at=after(5), on_existing=OnExisting.KEEP
            )
            assert made.next_run == after(5)
            await bench.advance(20)
        assert bench.times == [5, 10]

    run(main())


@pytest.mark.parametrize("how", [OnExisting.KEEP, OnExisting.SOONER])
def test_the_instance_returned_knows_when_it_is_really_due(how: OnExisting) -> None:
    async def main() -> None:
        bench = Bench()
        retry = Retry(initial=seconds(30), jitter=0)
        fails = bench.app.dynamic_task(name="fails", retry=retry)(bench.fail)
        none = bench.app.dynamic_task(name="none")(bench.fail)
        spread: dict[str, Any] = {"interval": seconds(100), "jitter": seconds(50)}
        job = of(bench)
        async with bench.running() as context:
            for task in (fails, none):
                await context.schedule_task(task, "x", execute_at=after(1))
            first = await context.schedule_task(job, "x", **spread)
            await context.schedule_task(job, "y", interval=seconds(10))
            await context.pause(job, "y", until=after(70))
            await bench.advance(2)
            retried = await context.schedule_task(fails, "x", execute_at=after(1), on_existing=how)
            assert retried.next_run == after(31)
            if how is OnExisting.KEEP:
                left = await context.schedule_task(none, "x", interval=1, on_existing=how)
                assert left.next_run == after(61), "when the lease of its failure ends"
            again = await context.schedule_task(job, "x", on_existing=how, **spread)
            state = await context.get_task(job, "x")
            assert state is not None
            assert first.next_run == again.next_run == state.next
            assert state.next is not None
            assert state.scheduled_at == after(100) < state.next
            paused = await context.schedule_task(job, "y", interval=seconds(10), on_existing=how)
            assert paused.next_run == after(70)

    run(main())


def test_what_must_not_exist_is_refused_where_it_does() -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench)
        async with bench.app.create() as context:
            options: dict[str, Any] = {"interval": seconds(10), "on_existing": OnExisting.RAISE}
            await context.schedule_task(job, "x", **options)
            with pytest.raises(TaskExistsError, match="job:x"):
                await context.schedule_task(job, "x", **options)

    run(main())


def test_a_running_instance_is_kept_and_locked_as_the_caller_chooses() -> None:
    async def main() -> None:
        bench = Bench()

        async def slow(context: Any) -> None:
            await bench.clock.sleep(5)

        job = bench.app.dynamic_task(name="job", failure_mode=FailureMode.UNLOCK)(slow)
        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=seconds(10))
            await bench.advance(12)
            with pytest.raises(TaskLockedException):
                await context.schedule_task(job, "x", interval=seconds(10))
            kept = await context.schedule_task(
                job, "x", interval=seconds(99), on_existing=OnExisting.KEEP
            )
            assert (kept.interval, kept.next_run) == (seconds(10), after(10))
            await bench.advance(5)

    run(main())


def test_force_and_on_existing_exclude_each_other() -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench)
        async with bench.app.create() as context:
            with pytest.raises(ValueError, match="force"):
                await context.schedule_task(
                    job, "x", True, interval=1, on_existing=OnExisting.SOONER
                )
            with pytest.raises(ValueError, match="never run"):
                await context.schedule_task(
                    job, "x", schedule="0 0 1 1 * 0 1970", on_existing=OnExisting.REPLACE
                )

    run(main())


def test_an_argument_of_that_name_stays_an_argument(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench = Bench()
        job = of(bench)
        async with bench.running() as context:
            await context.schedule_task(
                job,
                "x",
                execute_at=after(1),
                on_existing="replace",  # type: ignore[arg-type]
            )
            await bench.advance(2)
        assert bench.runs[0].args == {"on_existing": "replace"}

    run(main())
    assert logged(caplog, "'on_existing' is an argument of the task")


def test_what_waits_for_a_retry_keeps_it_and_nothing_is_said_of_a_sooner_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "pyncette.calls")

    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task(
            name="job", failure_mode=FailureMode.UNLOCK, lease_duration=seconds(9)
        )(bench.fail)
        async with bench.running() as context:
            await context.schedule_task(job, "x", interval=seconds(10))
            await bench.advance(10.5)
            instance = await context.schedule_task(job, "x", interval=seconds(20))
            assert instance.next_run == after(11)

    run(main())
    assert not logged(caplog, "keeps")
