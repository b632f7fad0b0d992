"""What handlers of events are told, and what they cannot break."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from typing import Any

import pytest
from tests.faulty_store import Fail
from tests.support import START, Bench, after, logged, run, seconds

from pyncette import (
    Context,
    ExecutionMode,
    Exhausted,
    FailureMode,
    Heartbeat,
    LeaseLostException,
    Pyncette,
    Retry,
    RetryIn,
    Skip,
    events,
)


class Told:
    """The events of an app, by the names of their classes."""

    def __init__(self, bench: Bench, *kinds: type[events.Event]) -> None:
        self.all: list[Any] = []
        bench.app.on_event(self.all.append, *kinds)

    def names(self) -> list[str]:
        left_out = (events.WorkerJoined, events.WorkerLeft, events.Claimed)
        return [type(event).__name__ for event in self.all if not isinstance(event, left_out)]

    def one(self, kind: type[Any]) -> Any:
        [event] = [event for event in self.all if type(event) is kind]
        return event


async def succeeds(context: Context) -> None: ...


async def fails(context: Context) -> None:
    raise ValueError("broken")


async def skips(context: Context) -> None:
    raise Skip("nothing to do")


async def postpones(context: Context) -> None:
    if context.attempt == 1:
        raise RetryIn(seconds(5))


@pytest.mark.parametrize(
    ("body", "options", "expected"),
    [
        (succeeds, {}, ["Started", "Succeeded"]),
        (fails, {"failure_mode": FailureMode.COMMIT}, ["Started", "Failed"]),
        (fails, {"retry": Retry(attempts=1)}, ["Started", "Failed", "Parked"]),
        (
            fails,
            {"retry": Retry(attempts=1), "exhausted": Exhausted.PAUSE},
            ["Started", "Failed", "Paused"],
        ),
        (
            fails,
            {"retry": Retry(attempts=2, initial=seconds(3), jitter=0)},
            ["Started", "Failed", "Retried", "Started", "Failed", "Parked"],
        ),
        (skips, {}, ["Started", "SkippedByBody"]),
        (
            postpones,
            {"retry": Retry(attempts=3)},
            ["Started", "Postponed", "Retried", "Started", "Succeeded"],
        ),
        (fails, {"execution_mode": ExecutionMode.AT_MOST_ONCE}, ["Started", "Failed"]),
        (succeeds, {"execution_mode": ExecutionMode.AT_MOST_ONCE}, ["Started", "Succeeded"]),
    ],
)
def test_each_run_is_told_with_its_end_and_what_follows(
    body: Callable[[Context], Any], options: dict[str, Any], expected: list[str]
) -> None:
    async def main() -> None:
        bench = Bench()
        told = Told(bench)
        job = bench.app.dynamic_task(name="job", **options)(body)
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=START)
            await bench.advance(30)
        assert told.names() == expected
        assert {(event.task, event.instance, event.label) for event in told.all[2:3]} == {
            ("job", "a", "job:a")
        }

    run(main())


def test_an_event_says_which_attempt_of_which_occurrence_it_is_about() -> None:
    ids: list[str] = []

    async def main() -> None:
        bench = Bench()
        told = Told(bench)

        @bench.app.task(
            interval=seconds(100), retry=Retry(attempts=2, initial=seconds(3), jitter=0)
        )
        async def tick(context: Context) -> None:
            ids.append(context.execution_id)
            await bench.clock.sleep(2)
            raise ValueError("broken")

        async with bench.running():
            await bench.advance(150)
        runs: list[Any] = [event for event in told.all if isinstance(event, events.RunEvent)]
        assert {event.execution_id for event in runs} == {ids[0]}
        assert ids[0] == ids[1]
        assert {(event.instance, event.label, event.planned_at) for event in runs} == {
            (None, "tick", after(100))
        }
        first, failed, retried, second, last, given_up = runs
        assert (first.attempt, first.attempts, first.due_at) == (1, 2, after(100))
        assert (failed.attempt, failed.final, failed.took) == (1, False, seconds(2))
        assert failed.error == "ValueError: broken"
        assert isinstance(failed.exception, ValueError)
        assert retried.retry_at == second.at
        assert (second.attempt, last.final, type(given_up)) == (2, True, events.GivenUp)

    run(main())


def test_a_timeout_is_told_as_one() -> None:
    async def main() -> None:
        bench = Bench()
        told = Told(bench)

        @bench.app.dynamic_task(timeout=seconds(3), retry=Retry(attempts=1))
        async def job(context: Context) -> None:
            await bench.clock.sleep(10)

        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=START)
            await bench.advance(30)
        assert told.names() == ["Started", "TimedOut", "Parked"]
        assert told.one(events.TimedOut).took == seconds(3)

    run(main())


def test_a_lost_lease_is_told_after_the_end_of_the_body() -> None:
    async def main() -> None:
        bench = Bench()
        told = Told(bench)

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            await bench.clock.sleep(10)

        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=START)
            await bench.advance(1)
            await context.unschedule_task(job, "a")
            await bench.advance(20)
        assert told.names() == ["Started", "Succeeded", "LeaseLost"]
        lost = told.one(events.LeaseLost)
        assert (lost.reason, lost.by_body) == ("it was removed", False)

    run(main())


def test_a_body_that_is_cancelled_because_its_lease_is_lost_is_told_as_cancelled() -> None:
    async def main() -> None:
        bench = Bench()
        told = Told(bench)

        @bench.app.dynamic_task(
            heartbeat=Heartbeat(cancel_on_lease_lost=True), lease_duration=seconds(9)
        )
        async def job(context: Context) -> None:
            await bench.clock.sleep(100)

        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=START)
            await bench.advance(1)
            await context.unschedule_task(job, "a")
            await bench.advance(20)
        assert told.names() == ["Started", "Cancelled", "LeaseLost"]
        assert told.one(events.Cancelled).by_worker

    run(main())


def test_closing_tells_of_the_runs_that_it_cancels() -> None:
    async def main() -> None:
        bench = Bench()
        told = Told(bench)

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            await bench.clock.sleep(1_000)

        async with bench.app.create() as context:
            loop = asyncio.create_task(context.run())
            await context.schedule_task(job, "a", execute_at=START)
            await bench.advance(1)
            loop.cancel()
            with suppress(asyncio.CancelledError):
                await loop
        assert told.names() == ["Started", "Cancelled"]
        assert told.one(events.Cancelled).reason == "its worker is closing"

    run(main())


def test_missed_occurrences_and_a_backlog_are_told() -> None:
    async def main() -> None:
        bench = Bench()
        told = Told(bench)
        late = bench.app.dynamic_task(name="late", misfire_grace=seconds(60))(succeeds)
        behind = bench.app.dynamic_task(name="behind")(succeeds)
        async with bench.app.create() as context:
            await context.schedule_task(late, "a", interval=seconds(100))
            await context.schedule_task(behind, "b", interval=seconds(100))
        await bench.clock.advance(seconds(1_050))
        async with bench.running():
            await bench.advance(40)
        missed = told.one(events.Missed)
        assert (missed.label, missed.count, missed.grace) == ("late:a", 9, seconds(60))
        about = [
            (event.task, event.instance, event.count, event.age)
            for event in told.all
            if isinstance(event, events.Behind)
        ]
        assert about[0] == ("behind", "b", 10, seconds(950))
        assert about[-1][2:] == (0, seconds(0))

    run(main())


def test_the_store_that_fails_and_answers_again_is_told_and_so_is_the_worker() -> None:
    async def main() -> None:
        bench = Bench(worker_name="w1")
        told = Told(bench)
        bench.app.task(interval=seconds(100))(succeeds)
        async with bench.running():
            bench.faults.next("claim", Fail(OSError("down")))
            await bench.advance(30)
        assert [type(event).__name__ for event in told.all] == [
            "WorkerJoined",
            "StoreDown",
            "StoreUp",
            "WorkerLeft",
        ]
        assert {event.worker for event in told.all} == {"w1"}
        assert told.all[0].tasks == 1
        assert told.all[1].error == "OSError: down"
        assert told.all[1].failures == 1

    run(main())


def test_the_steps_of_the_engine_are_told_only_to_handlers_that_name_them() -> None:
    async def main() -> None:
        bench = Bench()
        everything, calls = Told(bench), Told(bench, events.StoreCallEnded, events.Succeeded)
        job = bench.app.dynamic_task()(succeeds)
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=START)
            await bench.advance(30)
        assert not any(isinstance(event, events.Detail) for event in everything.all)
        ended = [event for event in calls.all if isinstance(event, events.StoreCallEnded)]
        assert {event.operation for event in ended} >= {"claim", "write"}
        assert calls.names().count("Succeeded") == 1

    run(main())


class Unhashable:
    """A handler as a dataclass with ``__call__`` is one: equal by value, so without a hash."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unhashable)

    def __call__(self, event: events.Event) -> None:
        raise ConnectionError("broken handler")


def broken(event: events.Event) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("handler", [broken, Unhashable()], ids=["function", "unhashable"])
def test_a_handler_that_fails_breaks_no_run_and_is_logged_once(
    handler: Callable[[events.Event], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        bench = Bench()
        bench.app.on_event(handler)
        told = Told(bench)
        job = bench.app.dynamic_task(retry=Retry(attempts=2, initial=seconds(1), jitter=0))(fails)
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=START)
            await bench.advance(30)
            [state] = (await context.list_tasks(job)).tasks
            assert state.state == "parked"
        assert told.names() == ["Started", "Failed", "Retried", "Started", "Failed", "Parked"]
        assert bench.app._observers.failures == len(told.all)

    run(main())
    said = [line for line in caplog.messages if "The handler" in line and "failed" in line]
    assert len(said) == 1
    assert "WorkerJoined" in said[0]


@pytest.mark.parametrize("kind", [events.WorkerJoined, events.WorkerLeft])
def test_a_handler_that_ends_the_process_does_not_keep_the_app_from_closing(
    kind: type[events.Event],
) -> None:
    def leave(event: events.Event) -> None:
        raise SystemExit(3)

    async def main() -> None:
        bench = Bench()
        bench.app.on_event(leave, kind)
        async with bench.app.create() as context:
            asyncio.get_running_loop().call_soon(context.shutdown)
            with pytest.raises(SystemExit):
                await context.run()

    run(main())


def test_a_handler_stays_a_function_and_may_be_added_while_the_app_is_open() -> None:
    async def main() -> None:
        bench = Bench()
        job = bench.app.dynamic_task()(succeeds)
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=START)
            await bench.advance(1)
            told = Told(bench)
            await context.schedule_task(job, "b", execute_at=after(2))
            await bench.advance(2)
        assert told.names() == ["Started", "Succeeded"]

    run(main())


@pytest.mark.parametrize(
    ("handler", "kinds", "said"),
    [
        (succeeds, (), "asynchronous"),
        ("print", (), "not callable"),
        (print, (ValueError,), "classes of pyncette.events"),
        (print, ("Failed",), "classes of pyncette.events"),
    ],
)
def test_what_can_be_no_handler_is_refused_at_once(
    handler: Any, kinds: tuple[Any, ...], said: str
) -> None:
    with pytest.raises(TypeError, match=said):
        Pyncette().on_event(handler, *kinds)


def test_runs_that_succeed_cost_nothing_while_nothing_listens(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "pyncette")
    bench = Bench()
    observers = bench.app._observers
    assert not observers.watch_runs()
    assert not observers.watch_details
    bench.app.on_event(print, events.Failed)
    assert observers.watch_runs() is True  # an end of a run
    other = Bench().app._observers
    other.add(print, (events.Parked, events.StoreDown))
    assert not other.watch_runs()


def test_every_event_is_exported_and_explains_its_attributes() -> None:
    kinds = {
        kind
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, events.Event)
    }
    assert {kind.__name__ for kind in kinds} | {"Action"} == set(events.__all__)
    for kind in kinds:
        inherited = {
            field.name for base in kind.__bases__ if base is not object for field in fields(base)
        }
        for field in fields(kind):
            if field.name not in inherited:
                # From Python 3.13 on, docstrings are indented less.
                assert f"    {field.name}: " in (kind.__doc__ or ""), (kind, field.name)


def test_a_body_that_ends_its_own_recurrence_is_told_as_such() -> None:
    async def main() -> None:
        bench = Bench()
        told = Told(bench)

        @bench.app.dynamic_task()
        async def job(context: Context) -> None:
            await context.app_context.unschedule_task(context.task)
            with suppress(LeaseLostException):
                await context.heartbeat()

        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=START)
            await bench.advance(10)
        assert told.names() == ["Started", "Succeeded", "LeaseLost"]
        assert told.one(events.LeaseLost).by_body

    run(main())


def test_the_log_is_written_before_other_handlers_are_called(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench()
        seen: list[bool] = []
        bench.app.on_event(
            lambda event: seen.append(logged(caplog, "job:a failed in attempt 1")), events.Failed
        )
        job = bench.app.dynamic_task(name="job", retry=Retry(attempts=1))(fails)
        async with bench.running() as context:
            await context.schedule_task(job, "a", execute_at=START)
            await bench.advance(10)
        assert seen == [True]

    run(main())
