"""One execution, from its start to its outcome: each way to end it, and each of its states.

The store answers nothing here: what is looked at is what waits to be written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from itertools import product
from types import SimpleNamespace
from typing import Any, Final

import pytest
from tests.simulation.places import FIRST, HELD, LEASE_END, NOW, SECOND, START, Place, place_of
from tests.simulation.test_small_members import alone
from tests.simulation.workers import at

from pyncette import Context, ExecutionMode, FailureMode, GiveUp, Pyncette, Retry, Skip
from pyncette.clock import to_microseconds
from pyncette.engine import bodies as module_of_bodies
from pyncette.engine import execution as module
from pyncette.engine import run_events
from pyncette.engine.bodies import Bodies
from pyncette.engine.dispatch import Claim, _Release
from pyncette.engine.execution import Execution
from pyncette.engine.polling import NEVER
from pyncette.engine.rules import Failure
from pyncette.engine.transaction import Transaction
from pyncette.engine.writes import Next
from pyncette.errors import PyncetteException, StoreUnavailableError
from pyncette.memory import memory_repository
from pyncette.model import Outcome
from pyncette.schedule import dumps
from pyncette.store import Applied, Failed, Refused, Write
from pyncette.store.record import (
    ANY,
    DELETE,
    Patch,
    Put,
    Reading,
    Record,
    State,
    dump_progress,
    load_progress,
    read,
)
from pyncette.testing.clocks import VirtualClock

ONCE: Final[dict[str, Any]] = {"execution_mode": ExecutionMode.AT_MOST_ONCE}
Body = Callable[[Context], Awaitable[None]]


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


@asynccontextmanager
async def running(
    body: Body, record: Record = HELD, told: list[Any] | None = None, **options: Any
) -> Any:
    """A worker whose template has this body, and an execution of the record; nothing is started.

    Events are told to ``told``.
    """
    clock = VirtualClock(START)
    app = Pyncette(memory_repository, clock=clock, worker_name="me")
    if told is not None:
        app.on_event(told.append)
    options = {"lease_duration": timedelta(seconds=20), **options}
    template = app.dynamic_task(name="t", **options)(body)
    async with app.create() as context:
        worker = context._worker
        worker.sources.refresh([template])
        worker.sources.due(NEVER - 1)
        batch = worker.dispatcher._batch(template, Claim(clock.monotonic(), 0.0, NOW))
        execution = worker.dispatcher._execution(batch, record, NOW)
        assert execution is not None
        worker.writes._writing = True
        place = Place(worker, template, execution, clock, [], [])
        try:
            yield place
        finally:
            place.leave()
            worker.writes._take_all()
            worker.writes._writing = False


async def _returns(context: Context) -> None: ...


async def _begun(place: Place) -> asyncio.Task[None]:
    """The execution runs, as the executor would run it."""
    run = place.execution.run()
    place.worker.dispatcher.executions[place.execution] = run
    task = asyncio.ensure_future(run)
    await _turns()
    return task


async def _turns() -> None:
    """Lets others go on; the clock would wait for bodies that wait for something else."""
    for _ in range(5):
        await asyncio.sleep(0)


def _written(place: Place) -> list[Any]:
    return [*place.worker.writes._urgent, *place.worker.writes._queue]


# Whether it starts.


@pytest.mark.parametrize("late_s", [-1, 0, 1])
@pytest.mark.parametrize("cancelled", [None, False, True])
def test_a_body_starts_only_while_its_lease_holds_and_it_is_not_cancelled(
    late_s: int, cancelled: bool | None
) -> None:
    async def main() -> None:
        ran: list[str] = []
        told: list[Any] = []

        async def body(context: Context) -> None:
            ran.append("ran")

        async with running(body, told=told) as place:
            await place.clock.advance(timedelta(seconds=20 + late_s))
            if cancelled is not None:
                place.execution.rarely().cancelled = cancelled
            await (await _begun(place))
            starts = late_s < 0 and not cancelled
            assert bool(ran) is starts
            # What its worker has cancelled is given back, what is too late is another's.
            kinds = [type(entry) for entry in _written(place)]
            expected: list[Any] = [Execution] if starts else [_Release] if cancelled else []
            assert kinds == expected
            assert place.execution.ended
            if not starts:
                why = "its worker is closing" if cancelled else "its lease ended before"
                assert [event.reason[: len(why)] for event in told] == [why]

    _run(main)


# How it ends.


class Own(BaseException):
    """No ``Exception``."""


@pytest.mark.parametrize("at_most_once", [False, True])
@pytest.mark.parametrize("give_back", [False, True])
@pytest.mark.parametrize("lost", [False, True])
def test_a_run_that_its_worker_cancels_is_given_back_if_it_holds_its_record(
    at_most_once: bool, give_back: bool, lost: bool
) -> None:
    async def main() -> None:
        async def body(context: Context) -> None:
            await asyncio.sleep(60)

        async with running(body) as place:
            execution = place.execution
            if at_most_once:
                execution._parts = replace(execution._parts, at_most_once=True)
            task = await _begun(place)
            if at_most_once:
                [advance] = _written(place)
                place.worker.writes._urgent.clear()
                advance._finish(True)
                await _turns()
            assert execution.in_body
            if lost:
                execution.rarely().loss = "it was removed"
            execution.cancel(give_back)
            execution.cancel(False)  # a second one takes nothing back
            with suppress(asyncio.CancelledError):
                await task
            given_back = give_back and not at_most_once and not lost
            assert [type(entry) for entry in _written(place)] == [_Release] * given_back
            if given_back:
                [entry] = _written(place)
                assert entry.build(NOW).change.state == State.SCHEDULED

    _run(main)


@pytest.mark.parametrize("interrupted", [None, False, True])
@pytest.mark.parametrize(
    "ends", ["returns", "ValueError", "CancelledError", "Own", "outside", "swallows"]
)
def test_each_way_to_end_has_its_outcome(interrupted: bool | None, ends: str) -> None:
    async def main() -> None:
        goes_on = asyncio.Event()

        async def body(context: Context) -> None:
            try:
                await goes_on.wait()
            except asyncio.CancelledError:
                if ends == "swallows":
                    return
                if interrupted and ends == "ValueError":
                    raise ValueError("no") from None
                raise
            match ends:
                case "ValueError":
                    raise ValueError("no")
                case "CancelledError":
                    raise asyncio.CancelledError
                case "Own":
                    raise Own

        async with running(body, failure_mode=FailureMode.UNLOCK) as place:
            execution = place.execution
            task = await _begun(place)
            if interrupted is not None:
                execution.rarely()
            if interrupted:
                execution.interrupt()
                execution.interrupt()  # once is enough
                assert task.cancelling() == 1
            elif ends in ("outside", "swallows"):
                task.cancel()
            else:
                goes_on.set()
            await asyncio.wait([task])
            outside = not interrupted and ends in ("outside", "swallows")
            assert not task.cancelled()
            # Of a cancellation that is its outcome nothing is left.
            assert task.cancelling() == (1 if outside and ends == "swallows" else 0)
            assert _written(place) == [execution]
            failure = execution.rarely().failure
            if interrupted:
                failed = ends == "ValueError"
            else:
                failed = ends in ("ValueError", "CancelledError", "Own", "outside")
            assert (failure is not None) is failed
            if failure is not None:
                assert failure.error.startswith("CancelledError" if ends == "outside" else ends)

    _run(main)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("has_runner", [False, True])
def test_the_end_of_the_process_is_no_outcome(error: type[BaseException], has_runner: bool) -> None:
    async def main() -> None:
        async def body(context: Context) -> None: ...

        async with running(body) as place:
            execution = place.execution
            execution.runner = asyncio.current_task() if has_runner else None
            ends = execution._ends_the_run(error())
            # A coroutine that is closed is no task any more; one that raises it itself has failed.
            assert ends is (error is GeneratorExit and has_runner)
            execution.runner = None

    _run(main)


@pytest.mark.parametrize("cancelling", [0, 1, 2])
@pytest.mark.parametrize("interrupted", [None, False, True])
@pytest.mark.parametrize("cancelled", [False, True])
def test_only_a_cancellation_from_outside_ends_a_run_without_an_outcome(
    cancelling: int, interrupted: bool | None, cancelled: bool
) -> None:
    async def main() -> None:
        told: list[Any] = []
        async with running(_returns, told=told) as place:
            execution = place.execution
            execution._started = NOW
            if interrupted is not None or cancelled:
                execution.rarely().interrupted = bool(interrupted)
                execution.rarely().cancelled = cancelled

            async def ask() -> bool:
                task = asyncio.current_task()
                assert task is not None
                for _ in range(cancelling):
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await asyncio.sleep(0)
                ends: bool = execution._ends_the_run(asyncio.CancelledError())
                return ends

            outside = cancelling > bool(interrupted)
            assert await asyncio.ensure_future(ask()) is not (outside or cancelled)
            assert [(event.by_worker, event.reason) for event in told] == (
                [(True, "its worker is closing")]
                if cancelled
                else [(False, "it is run again when its lease ends at 2026-01-05T12:00:20+00:00")]
                if outside
                else []
            )
            if told and not cancelled:
                told.clear()
                execution._parts = replace(execution._parts, at_most_once=True)
                await asyncio.ensure_future(ask())
                assert told[0].reason == "it is not run again"

    _run(main)


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("cancels", ["it", "its worker as well"])
@pytest.mark.parametrize("runs", ["its own coroutine", "another one", "none"])
def test_a_cancellation_of_this_run_alone_is_its_outcome_unless_that_is_settled(
    settled: bool, cancels: str, runs: str
) -> None:
    async def main() -> None:
        told: list[Any] = []
        async with running(_returns, told=told) as place:
            execution, ended = place.execution, list[bool]()
            execution._started = NOW
            background = place.worker.background
            other = background.start(asyncio.sleep(60), "other")
            if settled:
                execution.rarely().settled = True

            async def ask() -> None:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError as error:
                    ended.append(execution._ends_the_run(error))

            run, unrelated = ask(), asyncio.sleep(0)
            coroutines = {"its own coroutine": run, "another one": unrelated}
            if runs in coroutines:
                place.worker.dispatcher.executions[execution] = coroutines[runs]
            task = asyncio.ensure_future(run)
            await _turns()
            if cancels != "it":
                for internal in background._tasks:
                    internal.cancel()
            task.cancel()
            await asyncio.wait([task])
            alone = not settled and cancels == "it" and runs == "its own coroutine"
            assert ended == [alone]
            # Of a cancellation that is its outcome nothing is left.
            assert task.cancelling() == (0 if alone else 1)
            expected = [] if alone else ["Succeeded"] if settled else ["Cancelled"]
            assert [kind for kind in _kinds(told) if kind != "Started"] == expected
            other.cancel()
            unrelated.close()

    _run(main)


@pytest.mark.parametrize(("watched", "noted"), list(product((False, True), repeat=2)))
@pytest.mark.parametrize("settled", [False, True])
def test_a_success_is_told_and_noted_where_anybody_wants_it(
    watched: bool, noted: bool, settled: bool
) -> None:
    async def main() -> None:
        told: list[Any] = []
        notes: list[Any] = []

        def note_end(*note: Any) -> None:
            notes.append(note[2:])

        async def body(context: Context) -> None:
            if settled:
                context._execution.rarely().settled = True
                context._execution.cancel(False)
                await asyncio.sleep(0)

        async with running(body, told=told) as place:
            execution = place.execution
            execution._batch = replace(execution._batch, watched=watched, noted=noted)
            place.worker.reporter.note_end = note_end if noted else None
            task = await _begun(place)
            await asyncio.wait([task])
            assert _kinds(told) == (["Started", "Succeeded"] if watched else [])
            assert notes == ([(execution._started, Outcome.SUCCEEDED, None)] if noted else [])
            assert execution._started is not None

    _run(main)


@pytest.mark.parametrize("told_to_note", [False, True])
def test_a_batch_knows_whether_its_ends_are_noted(told_to_note: bool) -> None:
    async def main() -> None:
        async with place_of() as place:
            place.worker.reporter.note_end = (lambda *note: None) if told_to_note else None
            claim = Claim(place.clock.monotonic(), 0.0, NOW)
            assert place.worker.dispatcher._batch(place.template, claim).noted is told_to_note

    _run(main)


@pytest.mark.parametrize("same", [False, True])
def test_what_ends_a_run_without_an_outcome_tells_what_it_came_from(
    same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = SystemExit("first"), SystemExit("second")

    async def left(self: Execution, error: BaseException) -> BaseException:
        return error if same else second

    monkeypatch.setattr(Execution, "_left_transaction", left)

    async def main() -> None:
        async def body(context: Context) -> None:
            raise first

        async with running(body) as place:
            run = place.execution.run()
            place.worker.dispatcher.executions[place.execution] = run
            with pytest.raises(SystemExit) as raised:
                await run
            assert raised.value is (first if same else second)
            assert raised.value.__cause__ is (None if same else first)

    _run(main)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit()])
def test_a_transaction_is_left_unless_the_process_ends(error: BaseException) -> None:
    async def main() -> None:
        left: list[BaseException] = []

        class Open:
            async def leave(self, error: BaseException) -> None:
                left.append(error)

        async with running(_returns) as place:
            execution = place.execution
            assert await execution._left_transaction(error) is error
            execution.rarely().transaction = Open()
            assert await execution._left_transaction(error) is error
            assert left == ([error] if isinstance(error, ValueError) else [])
            execution.rarely().transaction = None

    _run(main)


@pytest.mark.parametrize("ends", ["well", "badly", "cancelled"])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_run_waits_for_another_task_that_ends_its_transaction(
    ends: str, fails: bool, cancelled: bool
) -> None:
    async def main() -> None:
        async with running(_returns) as place:
            transaction = Transaction(place.execution, None)
            goes_on = asyncio.Event()

            async def end() -> None:
                await goes_on.wait()
                if ends == "badly":
                    raise OSError("COMMIT")

            ending = transaction._end_task = asyncio.ensure_future(end())
            error = ValueError("no") if fails else None
            leaving = asyncio.ensure_future(transaction.leave(error))
            await _turns()
            if cancelled:
                leaving.cancel()
                await _turns()
            assert not leaving.done()
            goes_on.set()
            if ends == "cancelled":
                ending.cancel()
            await asyncio.wait([leaving])
            if cancelled:
                assert leaving.cancelled()
                ending.cancelled() or ending.exception()  # it was looked at
                return
            # What the body has raised comes first; then what has become of its transaction.
            expected = error or (ending.exception() if ends == "badly" else None)
            assert leaving.result() is expected

    _run(main)


@pytest.mark.parametrize("fails", [False, True])
def test_a_transaction_that_has_not_begun_when_its_body_ends_never_does(fails: bool) -> None:
    async def main() -> None:
        async with running(_returns) as place:
            place.worker.dispatcher.executions[place.execution] = run = place.execution.run()
            transaction = Transaction(place.execution, None)
            transaction._check_run()
            error = ValueError("no") if fails else None
            left = await transaction.leave(error)
            if fails:
                assert left is error
            else:
                assert "in the middle of its transaction" in str(left)
            with pytest.raises(PyncetteException, match="has ended already"):
                transaction._check_run()
            run.close()

    _run(main)


def test_a_run_has_the_label_that_is_known_or_that_of_its_record() -> None:
    async def main() -> None:
        async with running(_returns) as place:
            parts, reading = place.execution.parts, place.execution.reading
            assert run_events.about_run(parts, reading)["label"] == place.execution.label
            assert run_events.about_run(parts, reading, "known")["label"] == "known"

    _run(main)


@pytest.mark.parametrize("stage", ["queued", "sent", "failed", "decided", "refused"])
@pytest.mark.parametrize("may_run", [False, True])
@pytest.mark.parametrize("ends", ["", "waits no more", "the worker is ended"])
def test_a_run_that_is_cancelled_while_its_record_moves_on_waits_for_the_answer(
    stage: str, may_run: bool, ends: str
) -> None:
    async def main() -> None:
        async with running(_returns, **ONCE) as place:
            execution, cancelled_at = place.execution, list[str]()

            async def advance() -> bool:
                execution.runner = asyncio.current_task()
                answer: bool = await execution._advanced()
                if answer:
                    try:
                        await asyncio.sleep(0)
                    except asyncio.CancelledError:
                        cancelled_at.append("the first wait of the body")
                return answer

            other = place.worker.background.start(asyncio.sleep(60), "other")
            task = asyncio.ensure_future(advance())
            await _turns()
            [entry] = _written(place)
            if stage != "queued":
                write = entry.build(NOW)
                assert write is not None
            if stage == "failed":
                unknown = Failed(StoreUnavailableError("down"))
                assert entry.answered(unknown, write, NOW) is Next.BACK_OFF
            if stage in ("decided", "refused"):
                answer = Applied(NOW + 1) if stage == "decided" else Refused(None)
                assert entry.answered(answer, write, NOW) is Next.DONE
            if ends == "the worker is ended":
                for internal in place.worker.background._tasks:
                    internal.cancel()
            for _ in range(3):
                execution.cancel(waits_no_more=ends == "waits no more")
            await _turns()
            if stage == "sent" and not ends:
                assert not task.done()
                entry._finish(may_run)
            await asyncio.wait([task])
            if stage in ("queued", "failed") or (stage == "sent" and ends):
                assert task.cancelled()
            else:
                runs = stage == "decided" or (stage == "sent" and may_run)
                assert task.result() is runs
                assert cancelled_at == ["the first wait of the body"] * runs
            execution.runner = None
            other.cancel()

    _run(main)


def test_only_a_body_that_runs_is_interrupted() -> None:
    async def main() -> None:
        async with place_of() as place:
            execution = place.execution
            for begun, entered, runner, before in product((False, True), repeat=4):
                place.leave()
                if entered:
                    place.enter()
                execution._started = NOW if begun else None
                task = asyncio.ensure_future(asyncio.sleep(60))
                execution.runner = task if runner else None
                execution.rarely().interrupted = before
                execution.interrupt()
                hit = begun and entered and runner and not before
                assert execution.rarely().interrupted is (before or hit)
                assert task.cancelling() == hit
                task.cancel()
                await asyncio.wait([task])
                assert execution.begun is (runner or not entered)
            execution.runner = None
            # Without anything rare, nothing is interrupted, cancelled or lost.
            execution.rare = None
            execution._end_interruption()
            assert not execution._interrupted
            assert not execution._is_cancelled
            assert not execution.is_lost

    _run(main)


# What is told to the body.


def test_a_context_has_what_the_execution_has() -> None:
    async def main() -> None:
        seen: list[Any] = []

        async def body(context: Context) -> None:
            seen.extend((context.attempt, context.fencing_token, context.deadline))
            with pytest.raises(AttributeError, match="no fixture or item of that name"):
                _ = context.nothing_of_this_name
            seen.append(context.execution_id)

        ids: list[str] = []
        for planned, triggered in ((NOW - SECOND, None), (NOW, None), (NOW, NOW), (None, NOW)):
            progress = dump_progress(FIRST._replace(planned=planned, triggered=triggered))
            async with running(body, HELD._replace(progress=progress)) as place:
                seen.clear()
                await (await _begun(place))
                assert seen[:3] == [1, HELD.version, None]
                ids.append(seen[3])
        # Two triggered runs of one instant are one, whatever waits for them.
        assert ids[2] == ids[3]
        assert len(set(ids)) == 3

    _run(main)


def test_the_version_at_the_claim_is_the_fencing_token_whatever_is_written_since() -> None:
    async def main() -> None:
        async with place_of() as place:
            execution = place.execution
            assert execution.fencing_token == HELD.version
            execution.rarely()
            assert execution.fencing_token == HELD.version
            execution.take(HELD._replace(version=70))
            assert execution.fencing_token == HELD.version
            execution.take(HELD._replace(version=80))
            assert execution.fencing_token == HELD.version

    _run(main)


@pytest.mark.parametrize(("settling", "settled"), list(product((False, True), repeat=2)))
def test_what_a_transaction_has_settled_or_is_about_to_needs_no_lease(
    settling: bool, settled: bool
) -> None:
    async def main() -> None:
        async with place_of(heartbeat=True) as place:
            execution = place.execution
            assert not execution.is_settled
            place.enter(begun=True)
            execution.rarely().settling, execution.rarely().settled = settling, settled
            assert execution.is_settled is (settling or settled)
            assert (execution.beats is None) is (settling or settled)
            # A heartbeat that waits is answered, and not sent.
            heartbeat = module._Heartbeat(execution)
            assert (heartbeat.build(NOW) is None) is (settling or settled)
            assert heartbeat.done.done() is (settling or settled)
            execution.rarely().beating = True
            automatic = module._AutomaticHeartbeat(execution, lambda error: None)
            assert (automatic.build(NOW) is None) is (settling or settled)
            assert execution.rarely().beating is not (settling or settled)

    _run(main)


def test_the_lease_of_a_body_that_goes_on_is_kept_unless_it_is_lost_or_not_needed() -> None:
    async def main() -> None:
        for beats, at_most_once, lost in product((False, True), repeat=3):
            async with place_of(heartbeat=True if beats else None) as place:
                execution = place.execution
                place.enter(begun=True)
                execution._parts = replace(execution._parts, at_most_once=at_most_once)
                if lost:
                    execution.rarely().loss = "it was removed"
                execution.keep_lease()
                kept = execution.rarely().kept is not None
                assert kept is not (beats or at_most_once or lost)

    _run(main)


def test_automatic_heartbeats_make_sense_while_it_runs_and_holds_its_record() -> None:
    async def main() -> None:
        for begun, lost, beats in product((False, True), repeat=3):
            async with place_of(heartbeat=True if beats else None) as place:
                execution = place.execution
                place.enter()
                if begun:
                    execution.runner = asyncio.current_task()
                if lost:
                    execution.rarely().loss = "it was removed"
                assert (execution.beats is not None) is (begun and not lost and beats)
                execution.runner = None
                # One at a time.
                for beating in (False, True):
                    execution.rarely().beating = beating
                    place.worker.writes._take_all()
                    execution.beat(lambda error: None)
                    assert len(place.worker.writes) == (not beating)

    _run(main)


# The outcome.


FAILURES: Final = (None, Failure("no"), Failure("no", outcome=Outcome.SKIPPED))


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("ended", [None, NOW + 2])
@pytest.mark.parametrize("lost", [False, True])
def test_an_outcome_says_when_it_began_and_ended(
    failure: Failure | None, ended: int | None, lost: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with place_of(failure_mode=FailureMode.UNLOCK) as place:
            execution = place.execution
            for started in (None, NOW + 1):
                execution._started = started
                rare = execution.rarely()
                rare.failure, rare.ended = failure, ended
                rare.loss = "it was removed" if lost else None
                write = execution.build(NOW + 5)
                assert (write is None) is lost
                if write is None:
                    continue
                assert isinstance(write.change, Patch)
                progress = load_progress(write.change.progress or "")
                took = (ended or NOW + 5) - (started or 0)
                assert progress.last == f"{started or 0}+{took}"
                retried = failure is not None and failure.outcome is None
                assert (write.change.state == State.RETRYING) is retried
                assert progress.outcome is (None if failure is None else failure.outcome)
            if not lost and failure is None and ended is None:
                execution.rare = None
                write = execution.build(NOW + 5)
                assert write is not None
                assert load_progress(write.change.progress or "").last == f"{NOW + 1}+4"  # type: ignore[union-attr]
        said = [record for record in caplog.records if "lost its lease" in record.getMessage()]
        assert len(said) == (2 if lost else 0)

    _run(main)


@pytest.mark.parametrize("failure", [None, Failure("no", final=True)])
@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("gone", [False, True])
def test_what_follows_an_outcome_is_told_and_logged_where_it_matters(
    failure: Failure | None, skips: bool, gone: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with place_of() as place:
            execution = place.execution
            execution._parts = replace(execution._parts, skips=skips)
            if failure is not None or skips:
                execution.rarely().failure = failure
            if failure is None and not skips and not gone:
                execution.rarely()  # as a heartbeat leaves it
            progress = dump_progress(FIRST._replace(skipped=3))
            change: Any = DELETE if gone else Patch(NOW + 9, State.SCHEDULED, 0, progress)
            caplog.clear()
            execution.answered(Applied(9), Write("t", "k", change, ANY), NOW)
            assert (place.told_of() == NOW + 9) is not gone
            said = [record.getMessage() for record in caplog.records]
            skipped = [line for line in said if "3 missed occurrences are skipped" in line]
            assert len(skipped) == (not gone and (skips or failure is not None))
            ends = [line for line in said if "is given up" in line]
            assert len(ends) == (failure is not None)

    _run(main)


# What is logged of what follows.


def _kinds(told: list[Any]) -> list[str]:
    return [type(event).__name__ for event in told]


def test_of_skipped_occurrences_those_are_told_that_are_not_told_already() -> None:
    async def main() -> None:
        told: list[Any] = []
        async with running(_returns, told=told, misfire_grace=timedelta(seconds=9)) as place:
            parts = place.execution._parts
            before = Reading(HELD, at(5), FIRST._replace(skipped=2))
            for skipped, less, late in product((2, 3, 4), (0, 1), (False, True)):
                for change in (
                    Patch(NOW, State.SCHEDULED, 0, dump_progress(FIRST._replace(skipped=skipped))),
                    Patch(NOW, State.SCHEDULED, 0),
                    DELETE,
                ):
                    told.clear()
                    run_events.tell_missed(parts, before, change, less, late)
                    says = isinstance(change, Patch) and change.progress is not None
                    count = max(skipped - 2 - less, 0) if says else 0
                    assert _kinds(told) == (["Missed"] if count or late else [])
                    if told:
                        grace = timedelta(seconds=9) if late else None
                        assert (told[0].count, told[0].grace) == (count, grace)

    _run(main)


def test_what_becomes_of_a_record_after_its_last_attempt_is_told() -> None:
    async def main() -> None:
        told: list[Any] = []
        async with running(_returns, told=told) as place:
            changes: list[tuple[Any, str]] = [
                (Patch(None, State.PARKED, 0), "Parked"),
                (Patch(None, State.PAUSED, 0), "Paused"),
                (Patch(NOW, State.SCHEDULED, 0), "GivenUp"),
                (DELETE, "GivenUp"),
                (Put(None, State.PARKED, None, 0, "", "", ""), "GivenUp"),
            ]
            for change, name in changes:
                told.clear()
                about = place.execution.about()
                run_events.tell_exhausted(place.worker.reporter, about, change)
                assert _kinds(told) == [name]

    _run(main)


@pytest.mark.parametrize(
    "failure", [None, Failure("no"), Failure("no", final=True), Failure("no", delay=7)]
)
def test_what_follows_a_failure_is_told_when_it_is_written(failure: Failure | None) -> None:
    async def main() -> None:
        told: list[Any] = []
        async with running(_returns, told=told) as place:
            execution = place.execution
            execution._parts = replace(execution._parts, skips=True)
            for change in (
                Patch(NOW + 7, State.RETRYING, 0),
                Patch(None, State.PAUSED, 0),
                DELETE,
            ):
                told.clear()
                execution.rarely().failure = failure
                execution.answered(Applied(9), Write("t", "k", change, ANY), NOW)
                if failure is None or failure == Failure("no"):
                    assert told == []
                elif failure.final:
                    pauses = isinstance(change, Patch) and change.state == State.PAUSED
                    name = "Paused" if pauses else "GivenUp"
                    assert _kinds(told) == [name]
                else:
                    retried = change is not DELETE and change.due_at is not None
                    assert _kinds(told) == ["Retried"] * retried
                    if told:
                        assert to_microseconds(told[0].retry_at) == NOW + 7

    _run(main)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_lost_lease_is_a_warning_unless_the_body_is_its_cause(
    replaced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        told: list[Any] = []
        async with running(_returns, told=told) as place:
            place.execution.rarely().replaced_by_body = replaced
            place.execution.rarely().loss = "it was removed"
            caplog.clear()
            place.execution._tell_lost()
            [event] = told
            assert (event.by_body, event.reason) == (replaced, "it was removed")
            assert [record.levelname for record in caplog.records] == [
                "DEBUG" if replaced else "WARNING"
            ]

    _run(main)


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("ends", ["returns", "fails", "skips", "interrupted", "beats"])
def test_starts_and_ends_are_told_where_anybody_listens(watched: bool, ends: str) -> None:
    async def main() -> None:
        async def body(context: Context) -> None:
            match ends:
                case "fails":
                    raise ValueError("no")
                case "skips":
                    raise Skip("nothing to do")
                case "interrupted":
                    context._execution.interrupt()
                    await asyncio.sleep(60)
                case "beats":
                    context._execution.rarely()

        told: list[Any] = []
        async with running(body, told=told) as place:
            execution = place.execution
            execution._batch = replace(execution._batch, watched=watched)
            await asyncio.wait([await _begun(place)])
            names = {"fails": ["Failed"], "skips": ["SkippedByBody"], "interrupted": ["Cancelled"]}
            expected = names.get(ends, ["Succeeded"] if watched else [])
            assert _kinds(told) == [*(["Started"] if watched else []), *expected]
            for event in told:
                assert (event.task, event.instance, event.attempt) == ("t", "k", 1)
            if watched:
                assert to_microseconds(told[0].due_at) == NOW - SECOND

    _run(main)


FAILED: Final = Failure("no")


@pytest.mark.parametrize("timed_out", [None, False, True])
@pytest.mark.parametrize("mode", FailureMode)
@pytest.mark.parametrize("retry", [None, Retry(attempts=3)])
@pytest.mark.parametrize("at_most_once", [False, True])
@pytest.mark.parametrize("final", [False, True])
def test_a_failure_is_told_with_whether_it_is_final(
    timed_out: bool | None,
    mode: FailureMode,
    retry: Retry | None,
    at_most_once: bool,
    final: bool,
) -> None:
    async def main() -> None:
        told: list[Any] = []
        async with running(_returns, told=told) as place:
            execution = place.execution
            policy = execution._parts.policy._replace(failure_mode=mode)
            execution._parts = replace(
                execution._parts, retry=retry, policy=policy, at_most_once=at_most_once
            )
            if timed_out is not None:
                execution.rarely().timed_out = timed_out
            failure = FAILED._replace(final=final)
            execution._tell_failure(ValueError("no"), failure, "it is over")
            [event] = told
            assert _kinds(told) == ["TimedOut" if timed_out else "Failed"]
            commits = retry is None and mode is FailureMode.COMMIT
            assert event.final is (final or at_most_once or commits)

    _run(main)


def test_a_postponed_run_is_told_with_its_delay() -> None:
    async def main() -> None:
        told: list[Any] = []
        async with running(_returns, told=told) as place:
            for delay in (None, 0, SECOND):
                told.clear()
                failure = Failure("later", delay=delay, outcome=Outcome.POSTPONED)
                place.execution._tell_failure(ValueError("no"), failure, "in a second")
                [event] = told
                assert _kinds(told) == ["Postponed"]
                assert event.delay == timedelta(microseconds=delay or 0)

    _run(main)


def test_only_a_body_that_has_started_is_told_to_be_cancelled() -> None:
    async def main() -> None:
        told: list[Any] = []
        async with running(_returns, told=told) as place:
            for started in (None, NOW + 5):
                told.clear()
                place.execution._started = started
                place.execution._tell_cancelled(True, "its worker is closing")
                assert _kinds(told) == ["Cancelled"] * (started is not None)
                instant = to_microseconds(place.execution._ran()["started_at"])
                assert instant == (started or 0)

    _run(main)


def test_an_outcome_that_cannot_be_recorded_is_told_with_the_end_of_its_lease() -> None:
    async def main() -> None:
        told: list[Any] = []
        for due_at in (LEASE_END, None):
            async with running(_returns, HELD._replace(due_at=due_at), told) as place:
                told.clear()
                place.execution.abandon(ValueError("no"))
                [event] = told
                assert to_microseconds(event.lease_end) == (due_at or 0)

    _run(main)


# What runs it.


def test_an_exception_that_ends_the_process_is_looked_at_once() -> None:
    async def main() -> None:
        async def fails() -> None:
            raise Own

        for cancel in (False, True):
            task = asyncio.ensure_future(fails() if not cancel else asyncio.sleep(60))
            if cancel:
                task.cancel()
            await asyncio.wait([task])
            module._retrieve_exception(task)
            assert task.cancelled() is cancel
            assert not task._log_traceback

    _run(main)


def test_middlewares_are_wrapped_around_what_limits_the_body_the_first_outermost() -> None:
    async def main() -> None:
        order: list[str] = []

        def named(name: str) -> Any:
            async def middleware(context: Any, following: Any) -> None:
                order.append(name)
                await following()

            return middleware

        def limited(handler: Any) -> Any:
            async def within(context: Any) -> None:
                order.append("limit")
                await handler(context)

            return within

        async def body(context: Any) -> None:
            order.append("body")

        for limit in (None, limited):
            order.clear()
            await module.compose([named("a"), named("b")], body, limit)(None)
            assert order == ["a", "b", *(["limit"] if limit is not None else []), "body"]

    _run(main)


@pytest.mark.parametrize("once", [False, True])
def test_a_middleware_may_start_the_rest_twice_unless_that_is_refused(once: bool) -> None:
    async def main() -> None:
        ran: list[str] = []

        async def twice(context: Any, following: Any) -> None:
            await following()
            await following()

        async def body(context: Any) -> None:
            ran.append("body")

        context = SimpleNamespace(_execution=SimpleNamespace(label="t"))
        handler = module.compose([twice], body, once=once)
        if once:
            with pytest.raises(PyncetteException):
                await handler(context)
        else:
            await handler(context)
        assert len(ran) == (1 if once else 2)

    _run(main)


# The bodies that run, and what a test is told of them.


def test_bodies_are_under_way_from_their_start_to_their_end() -> None:
    async def main() -> None:
        async with place_of() as place:
            bodies, execution = place.worker.bodies, place.execution
            task = asyncio.current_task()
            assert task is not None
            for entered, begun, runs in product((False, True), repeat=3):
                if entered:
                    place.enter()
                execution._started = NOW if begun else None
                execution.runner = task if runs else None
                expected = [(execution.label, task)] if entered and begun and runs else []
                assert bodies.under_way() == expected
                name = "t" if entered and runs else None
                assert bodies.name_of(task) == name
                other = asyncio.ensure_future(asyncio.sleep(0))
                assert bodies.name_of(other) is None
                await other
                execution.runner = None
                place.leave()

    _run(main)


@pytest.mark.parametrize("raises_errors", [False, True])
def test_errors_of_bodies_are_raised_one_by_one_and_named_together(
    raises_errors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_of_bodies, "ERRORS_MAX", 2)

    async def main() -> None:
        async with place_of() as place:
            bodies = Bodies(place.worker, raises_errors)
            bodies.check()
            errors = [ValueError("a"), GiveUp("b"), ValueError("c"), ValueError("d")]
            for number, error in enumerate(errors):
                bodies.failed(error, f"attempt {number}")
            assert bodies.failures == 4
            if not raises_errors:
                bodies.check()
                return
            with pytest.raises(ValueError, match="a") as raised:
                bodies.check()
            assert raised.value is errors[0]
            # GiveUp is a decision, not an error; of the others, two are kept.
            assert raised.value.__notes__ == [
                "Raised by attempt 0 (raise_task_errors)",
                "attempt 2 raised ValueError: c (raise_task_errors)",
                "1 more attempts have failed; the log names them",
            ]
            bodies.check()  # each is raised once
            bodies.failed(errors[2], "attempt 5")
            bodies.failed(asyncio.CancelledError(), "attempt 5")
            with pytest.raises(ValueError, match="c"):
                bodies.check()
            bodies.failed(asyncio.CancelledError("e"), "attempt 6")
            with pytest.raises(RuntimeError, match="attempt 6 raised CancelledError") as wrapped:
                bodies.check()
            assert isinstance(wrapped.value.__cause__, asyncio.CancelledError)
            # What is raised already is not named once more.
            again = ValueError("f")
            bodies.failed(again, "attempt 7")
            bodies.note_on(again)
            assert not hasattr(again, "__notes__")

    _run(main)


@pytest.mark.parametrize("error", [ValueError("no"), Skip("nothing"), PyncetteException("x")])
def test_only_a_failure_is_an_error_of_a_body(error: Exception) -> None:
    async def main() -> None:
        async def body(context: Context) -> None:
            raise error

        async with running(body) as place:
            await asyncio.wait([await _begun(place)])
            assert place.worker.bodies.failures == (not isinstance(error, Skip))

    _run(main)


def test_a_skip_is_an_outcome_of_its_own() -> None:
    async def main() -> None:
        async def body(context: Context) -> None:
            raise Skip("nothing to do")

        async with running(body, HELD._replace(schedule=dumps(at(NOW - SECOND)))) as place:
            await (await _begun(place))
            failure = place.execution.rarely().failure
            assert failure is not None
            assert failure.outcome is Outcome.SKIPPED
            assert to_microseconds(place.execution._lease_end()) == LEASE_END

    _run(main)


def test_an_instance_that_lies_where_no_call_looks_is_noted_when_it_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def by_number(count: int, name: str) -> int:
        return int(name) % count

    async def main() -> None:
        for group, said in (("t:1", 0), ("t:2", 1)):
            caplog.clear()
            async with alone(t={"count": 4, "partition_selector": by_number}) as one:
                dispatcher = one.worker.dispatcher
                batch = dispatcher._batch(one.tasks["t"], Claim(0.0, 0.0, NOW))
                record = HELD._replace(group=group, key="5")
                assert Execution(batch, read(record)).task().name == "5"
            lines = [entry.getMessage() for entry in caplog.records]
            assert sum("lies in the group 't:2'" in line for line in lines) == said

    _run(main)


def test_a_run_came_due_after_its_jitter_or_when_it_was_triggered() -> None:
    async def main() -> None:
        told: list[Any] = []
        for planned, triggered in ((NOW, None), (NOW, NOW + 3), (None, NOW + 3), (None, None)):
            progress = dump_progress(FIRST._replace(planned=planned, triggered=triggered))
            async with running(_returns, HELD._replace(progress=progress), told) as place:
                told.clear()
                place.execution._tell_start()
                [event] = told
                came_due = triggered or planned or 0
                assert to_microseconds(event.due_at) == came_due
                assert to_microseconds(event.planned_at) == came_due
                assert to_microseconds(place.execution.planned_at()) == came_due

    _run(main)


def test_an_error_that_ends_the_process_is_said_by_the_loop_alone() -> None:
    async def main() -> None:
        async def ends() -> None:
            await asyncio.sleep(0)
            raise Own

        async with place_of() as place:
            execution = place.execution
            execution.runner = runner = asyncio.ensure_future(ends())
            assert not execution._ends_the_run(SystemExit())
            execution.runner = None
            await asyncio.wait([runner])
            await asyncio.sleep(0)
            assert not runner._log_traceback

    _run(main)
