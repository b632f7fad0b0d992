"""What a worker does with each kind of claimed record, and with each way of not starting it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, Final

import pytest
from tests.simulation.places import FIRST, HELD, NOW, SECOND, Place, place_of
from tests.simulation.workers import at

from pyncette import (
    CatchUp,
    ExecutionMode,
    Exhausted,
    FailureMode,
    Heartbeat,
    Overlap,
    PerWorker,
    Retry,
)
from pyncette.engine import dispatch
from pyncette.engine.backlog import BACKLOG_AGE_MIN
from pyncette.engine.dispatch import (
    AT_MOST_ONCE_LEASE_MIN,
    SUSPECT_DELAY,
    UNREADABLE_DELAY_MAX,
    YIELDS_FOR_S,
    Claim,
    _direct_start,
    _Release,
)
from pyncette.engine.polling import NEVER
from pyncette.engine.rules import CLOCK_ERROR_MAX, NO_OUTCOME, Policy
from pyncette.executor import DefaultExecutor, SynchronousExecutor
from pyncette.schedule import UnreadableHere, dumps
from pyncette.store import Write
from pyncette.store.record import Patch, Record, State, dump_progress, load_progress

POLL: Final = 1 * SECOND
UNSTARTED: Final = Patch(NOW - SECOND, State.SCHEDULED, 0)
"""What is written of a record that is given back at once."""


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def _written(place: Place) -> dict[str, Any]:
    """What waits to be written, by key."""
    return {write.key: write.change for write in _builds(place, object)}


def _given_back(place: Place) -> dict[str, Any]:
    """The same, without outcomes."""
    return {write.key: write.change for write in _builds(place, _Release)}


def _builds(place: Place, kind: type) -> list[Write]:
    entries = [entry for entry in place.worker.writes._queue if isinstance(entry, kind)]
    place.worker.writes._queue.clear()
    return [write for entry in entries if (write := entry.build(NOW)) is not None]


async def _dispatch(place: Place, *records: Record) -> dict[str, Any]:
    """Has records started; returns what is not, and waits for the bodies of the others."""
    worker = place.worker
    claim = Claim(place.clock.monotonic(), 0.0, NOW)
    await worker.dispatcher.dispatch(records, {"t": place.template}, {}, claim)
    written = _given_back(place)
    for _ in range(20):
        await asyncio.sleep(0)
    # What waits for an answer of the store would wait for ever.
    worker.dispatcher.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not worker.dispatcher.executions
    place.worker.writes._queue.clear()
    return written


def _named(key: str, **changes: Any) -> Record:
    return HELD._replace(key=key, **changes)


OPTIONS: Final[dict[str, Any]] = {"poll_interval": timedelta(seconds=1)}


# Which records are started.


@pytest.mark.parametrize("ahead", [None, 0, CLOCK_ERROR_MAX, CLOCK_ERROR_MAX + SECOND])
def test_what_is_claimed_long_before_its_planned_time_is_put_back_and_said_once(
    ahead: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with place_of() as place:
            planned = None if ahead is None else NOW + ahead
            progress = dump_progress(FIRST._replace(planned=planned))
            early = planned is not None and planned > NOW + CLOCK_ERROR_MAX
            records = [_named(key, progress=progress) for key in "ab"]
            written = await _dispatch(place, *records)
            back = Patch(planned, State.SCHEDULED, 0)
            assert written == ({"a": back, "b": back} if early else {})
            assert place.runs == ([] if early else ["a", "b"])
            said = [record for record in caplog.records if "before its planned" in record.message]
            assert len(said) == early

    _run(main)


def test_a_worker_that_stops_or_whose_group_is_paused_gives_all_back() -> None:
    async def main() -> None:
        for stopping, known in product((False, True), ({}, {"t": NEVER}, {"t": NOW}, {"u": NEVER})):
            async with place_of() as place:
                place.worker.stopping = stopping
                place.worker.pauses.known = known
                written = await _dispatch(place, _named("a"), _named("b"))
                given_back = stopping or known == {"t": NEVER}
                assert written == ({"a": UNSTARTED, "b": UNSTARTED} if given_back else {})
                assert place.runs == ([] if given_back else ["a", "b"])

    _run(main)


def test_what_has_had_all_its_attempts_or_is_too_late_is_settled_and_not_started(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"retry": Retry(attempts=2), "exhausted": Exhausted.PARK},
        {"misfire_grace": timedelta(seconds=3)},
    ]

    async def main() -> None:
        for unfinished, planned, options in product(
            (1, 2, 3), (NOW - SECOND, NOW - 5 * SECOND), kinds
        ):
            caplog.clear()
            progress = dump_progress(FIRST._replace(planned=planned))
            record = _named("a", unfinished_attempts=unfinished, progress=progress)
            async with place_of(**options) as place:
                written = await _dispatch(place, record)
                parked = "retry" in options and unfinished > 2
                skipped = "misfire_grace" in options and unfinished == 1 and planned < NOW - SECOND
                # A suspect waits for its lease to be extended.
                waits = parked or skipped or unfinished > 2
                assert place.runs == ([] if waits else ["a"])
                if parked:
                    assert written["a"].state == State.PARKED
                    assert NO_OUTCOME in (load_progress(written["a"].progress).error or "")
                    assert "t:a is not started again" in caplog.text
                elif skipped:
                    assert load_progress(written["a"].progress).skipped == 1
                    assert "late by more than misfire_grace" in caplog.text
                else:
                    assert not written, written

    _run(main)


def test_one_suspect_runs_at_a_time_after_its_lease_was_extended() -> None:
    async def main() -> None:
        async with place_of() as place:
            dispatcher = place.worker.dispatcher
            assert dispatcher.unfinished_max is None
            for key, unfinished in (("a", 2), ("b", 3), ("c", 4), ("d", 1)):
                record = _named(key, unfinished_attempts=unfinished)
                batch = dispatcher._batch(place.template, Claim(0.0, 0.0, NOW))
                execution = dispatcher._execution(batch, record, NOW)
                if key == "c":
                    assert execution is None
                    [change] = _written(place).values()
                    assert change == Patch(NOW + SUSPECT_DELAY, State.RETRYING, 3)
                    continue
                assert execution is not None
                assert execution._batch.extend is (key == "b")
                assert (dispatcher.suspect is execution) is (key == "b")
            assert dispatcher.unfinished_max == 2

    _run(main)


def test_a_body_that_outlives_its_lease_is_started_again_beside_itself_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with place_of() as place:
            dispatcher = place.worker.dispatcher
            place.enter()
            batch = dispatcher._batch(place.template, Claim(0.0, 0.0, NOW))
            for unfinished in (2, 3, 4):
                record = HELD._replace(unfinished_attempts=unfinished)
                execution = dispatcher._execution(batch, record, NOW)
                assert execution is not None
                assert not execution._batch.extend
            assert dispatcher.suspect is None
            place.leave()
        assert caplog.text.count("takes longer than lease_duration") == 1

    _run(main)


def test_what_cannot_be_read_here_is_left_to_others_ever_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "UNREADABLE_KNOWN_MAX", 2)

    async def main() -> None:
        async with place_of(app_options=OPTIONS) as place:
            dispatcher, error = place.worker.dispatcher, UnreadableHere("no such zone")
            delays = []
            for _ in range(8):
                dispatcher._release(place.template, HELD, error)
                delays.append(_written(place)["k"].due_at - NOW)
            assert delays == [min(2**times * POLL, UNREADABLE_DELAY_MAX) for times in range(1, 9)]
            assert dispatcher.yields == {"t": place.clock.monotonic() + YIELDS_FOR_S}
            for key in ("x", "y"):  # so many are known that the first is forgotten
                dispatcher._release(place.template, _named(key), error)
                assert _written(place)[key].due_at == NOW + 2 * POLL
            dispatcher._release(place.template, HELD, error)
            assert _written(place)["k"].due_at == NOW + 2 * POLL

    _run(main)


def test_only_recurrences_that_are_minutes_behind_are_a_backlog() -> None:
    async def main() -> None:
        late = BACKLOG_AGE_MIN + 10 * SECOND
        for age, fast_forward, once in product(
            (0, BACKLOG_AGE_MIN - 1, BACKLOG_AGE_MIN, late), (False, True), (False, True)
        ):
            planned = NOW - age
            changes: dict[str, Any] = {"progress": dump_progress(FIRST._replace(planned=planned))}
            if once:
                changes["schedule"] = dumps(at(planned))
            async with place_of(fast_forward=fast_forward) as place:
                backlogs = place.worker.backlogs
                await _dispatch(place, _named("a", **changes))
                behind = age >= BACKLOG_AGE_MIN and not fast_forward and not once
                assert (place.template in backlogs.behind) is behind
                if not behind:
                    continue
                # Another one that is punctual, or a one-off, does not end that; its own next does.
                await _dispatch(place, _named("b"))
                assert place.template in backlogs.behind
                await _dispatch(place, _named("a"))
                assert place.template not in backlogs.behind
                # Or a one-off that has taken its place.
                await _dispatch(place, _named("a", **changes))
                assert place.template in backlogs.behind
                await _dispatch(place, _named("b", schedule=dumps(at(NOW))))
                assert place.template in backlogs.behind
                await _dispatch(place, _named("a", schedule=dumps(at(NOW))))
                assert place.template not in backlogs.behind

    _run(main)


def test_a_record_without_an_occurrence_is_no_backlog() -> None:
    async def main() -> None:
        lost = dump_progress(FIRST._replace(planned=None, triggered=NOW))
        async with place_of() as place:
            for behind in (False, True):
                if behind:
                    late = FIRST._replace(planned=NOW - 2 * BACKLOG_AGE_MIN)
                    await _dispatch(place, _named("a", progress=dump_progress(late)))
                await _dispatch(place, _named("x", progress=lost))
                assert place.runs[-1] == "x"
                assert (place.template in place.worker.backlogs.behind) is behind

    _run(main)


# What is not started after all.


def test_a_run_whose_asyncio_task_was_cancelled_before_its_first_step_is_given_back() -> None:
    async def main() -> None:
        for begun, closed in product((False, True), repeat=2):
            async with place_of() as place:
                dispatcher = place.worker.dispatcher
                place.enter(begun)
                [run] = place.entered
                if closed:
                    run.close()
                dispatcher.drop_unstarted()
                dropped = closed and not begun
                assert _written(place) == ({"k": UNSTARTED} if dropped else {})
                assert (place.execution in dispatcher.executions) is not dropped
                place.leave()

    _run(main)


def test_only_what_has_begun_and_waits_for_the_store_is_cancelled_while_it_waits() -> None:
    async def main() -> None:
        for begun, in_body in product((False, True), repeat=2):
            async with place_of() as place:
                dispatcher = place.worker.dispatcher
                place.enter(begun)
                if in_body:
                    place.begin_body()
                dispatcher.cancel_waiting()
                assert place.execution._is_cancelled is (begun and not in_body)
                place.leave()

    _run(main)


def test_what_the_executor_never_began_is_withdrawn() -> None:
    async def main() -> None:
        for begun in (False, True):
            async with place_of() as place:
                dispatcher = place.worker.dispatcher
                place.enter(begun)
                dispatcher.withdraw_queued()
                assert place.execution._is_cancelled is not begun
                assert _written(place) == ({} if begun else {"k": UNSTARTED})
                place.leave()

    _run(main)


class Refusing(DefaultExecutor):
    """An executor that takes some runs on, and raises."""

    error: BaseException = RuntimeError("no room")
    begins = False
    cancels = False

    async def spawn_task(self, task: Awaitable[Any]) -> None:
        if self.begins:
            await task
        if self.cancels:
            runner = asyncio.current_task()
            assert runner is not None
            runner.cancel()
        raise self.error


def test_a_run_that_the_executor_does_not_take_on_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        for error, begins, cancels in product(
            (RuntimeError("no room"), asyncio.CancelledError()), (False, True), (False, True)
        ):
            if cancels and isinstance(error, RuntimeError):
                continue
            monkeypatch.setattr(Refusing, "error", error)
            monkeypatch.setattr(Refusing, "begins", begins)
            monkeypatch.setattr(Refusing, "cancels", cancels)
            async with place_of(app_options={**OPTIONS, "executor_cls": Refusing}) as place:
                claim = Claim(place.clock.monotonic(), 0.0, NOW)
                starting = asyncio.create_task(
                    place.worker.dispatcher.dispatch(
                        [_named("a"), _named("b")], {"t": place.template}, {}, claim
                    )
                )
                await asyncio.wait([starting])
                written = _written(place)
                postponed = Patch(NOW + POLL, State.SCHEDULED, 0)
                refused = postponed if isinstance(error, RuntimeError) else UNSTARTED
                ended = cancels and isinstance(error, asyncio.CancelledError)
                assert starting.cancelled() is ended
                if begins:
                    # Its outcome is written, and it is not given back.
                    assert written["a"].due_at > NOW
                    assert written["a"].progress is not None
                else:
                    assert written["a"] == refused
                if ended:
                    assert written["b"] == UNSTARTED
                assert not place.worker.dispatcher.executions

    _run(main)


class Swallowing(DefaultExecutor):
    """An executor that runs a task within the call; the task swallows what cancels the loop."""

    async def spawn_task(self, task: Awaitable[Any]) -> None:
        await task
        runner = asyncio.current_task()
        assert runner is not None
        runner.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1)


def test_a_cancellation_of_the_loop_that_a_body_swallows_ends_the_loop_all_the_same() -> None:
    async def main() -> None:
        async with place_of(app_options={"executor_cls": Swallowing}) as place:
            claim = Claim(place.clock.monotonic(), 0.0, NOW)
            starting = asyncio.create_task(
                place.worker.dispatcher.dispatch(
                    [_named("a"), _named("b")], {"t": place.template}, {}, claim
                )
            )
            await asyncio.wait([starting])
            assert starting.cancelled()
            assert place.runs == ["a"]
            assert _written(place)["b"] == UNSTARTED

    _run(main)


def test_what_a_record_has_missed_runs_without_pauses_where_nothing_else_waits() -> None:
    async def main() -> None:
        async with place_of() as place:
            dispatcher, paces = place.worker.dispatcher, list[int]()
            for at_once in (False, True, True, False):
                before = dispatcher._task_parts(place.template)
                again = dispatcher._catches_up_at_once is at_once
                dispatcher.catch_up_at_once(at_once)
                parts = dispatcher._task_parts(place.template)
                assert (parts is before) is again
                paces.append(parts.policy.pace)
            assert paces[1:3] == [0, 0]
            assert paces[0] == paces[3] > 0

    _run(main)


def test_a_cancellation_of_before_is_none_of_the_run_that_is_passed_on() -> None:
    async def main() -> None:
        async with place_of() as place:
            passed: list[Any] = []

            async def spawn(run: Any) -> None:
                passed.append(run)

            async def swallows(run: Any) -> None:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)

            async def loop() -> None:
                one: Any = "a run"
                await place.worker.dispatcher._spawn(spawn, one)
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
                await place.worker.dispatcher._spawn(spawn, one)
                with pytest.raises(asyncio.CancelledError):
                    await place.worker.dispatcher._spawn(swallows, one)

            running = asyncio.ensure_future(loop())
            await asyncio.sleep(0)
            running.cancel()
            await running
            assert passed == ["a run", "a run"]

    _run(main)


def test_only_the_default_executor_is_started_directly() -> None:
    class Slower(DefaultExecutor):
        """With a start of its own."""

        async def spawn_task(self, task: Awaitable[Any]) -> None:
            await super().spawn_task(task)

    class Named(DefaultExecutor):
        """With nothing of its own."""

    class Odd:
        """With a start that is no method."""

        def __init__(self) -> None:
            self.spawn_task = DefaultExecutor().spawn_task

    async def main() -> None:
        for kind, direct in (
            *((DefaultExecutor, True), (Named, True)),
            *((Slower, False), (SynchronousExecutor, False), (Odd, False)),
        ):
            assert (_direct_start(kind()) is not None) is direct

    _run(main)


# What the executions of a task share.


def test_options_of_a_task_are_read_again_once_they_have_changed() -> None:
    async def main() -> None:
        async with place_of() as place:
            dispatcher, template = place.worker.dispatcher, place.template
            before = dispatcher._task_parts(template)
            assert dispatcher._task_parts(template) is before
            template.lease_duration = timedelta(seconds=7)
            after = dispatcher._task_parts(template)
            assert after is not before
            assert dispatcher.lease(template) == 7 * SECOND

    _run(main)


def test_the_options_of_a_task_reach_its_runs() -> None:
    retry = Retry(attempts=4, within=timedelta(seconds=9))
    cases: list[tuple[dict[str, Any], Policy, tuple[bool, bool, bool]]] = [
        ({}, Policy(), (False, False, False)),
        ({"fast_forward": True}, Policy(fast_forward=True), (False, False, True)),
        ({"catch_up": CatchUp.LATEST}, Policy(fast_forward=True), (False, False, True)),
        ({"overlap": Overlap.SKIP}, Policy(skip_overlap=True), (False, False, True)),
        (
            {"failure_mode": FailureMode.COMMIT},
            Policy(failure_mode=FailureMode.COMMIT),
            (False, False, False),
        ),
        (
            {"retry": retry, "exhausted": Exhausted.PAUSE},
            Policy(exhausted=Exhausted.PAUSE, attempts=4, within=9 * SECOND),
            (False, True, False),
        ),
        (
            {"misfire_grace": timedelta(seconds=2)},
            Policy(misfire_grace=2 * SECOND),
            (False, True, False),
        ),
        ({"heartbeat": Heartbeat()}, Policy(), (True, False, False)),
    ]

    async def main() -> None:
        for poll_s, (options, policy, (beats, selective, skips)) in product((0.5, 3.0), cases):
            app_options = {"poll_interval": timedelta(seconds=poll_s)}
            async with place_of(app_options=app_options, **options) as place:
                parts = place.worker.dispatcher._task_parts(place.template)
                poll = round(poll_s * SECOND)
                assert parts.policy == policy._replace(retry_after=poll, pace=min(poll, SECOND))
                assert (parts.beats is not None, parts.selective, parts.skips) == (
                    beats,
                    selective,
                    skips,
                )
                assert (parts.lease, parts.at_most_once) == (20 * SECOND, False)

    _run(main)


@pytest.mark.parametrize("lease_s", [0.5, 9.0])
def test_an_at_most_once_task_has_no_heartbeats_and_no_shorter_lease(lease_s: float) -> None:
    async def main() -> None:
        async with place_of(
            app_options={"heartbeat": True},
            execution_mode=ExecutionMode.AT_MOST_ONCE,
            lease_duration=timedelta(seconds=lease_s),
        ) as place:
            parts = place.worker.dispatcher._task_parts(place.template)
            assert parts.beats is None
            assert parts.lease == max(round(lease_s * SECOND), AT_MOST_ONCE_LEASE_MIN)

    _run(main)


def test_a_limit_leaves_room_for_as_many_as_do_not_run() -> None:
    async def main() -> None:
        for most, running, free in product((1, 2, 3), (0, 1, 2), (0, 1, 5)):
            async with place_of(limit=PerWorker(most)) as place:
                dispatcher = place.worker.dispatcher
                runs = []
                for _ in range(running):
                    batch = dispatcher._batch(place.template, Claim(0.0, 0.0, NOW))
                    execution = dispatcher._execution(batch, HELD, NOW)
                    assert execution is not None
                    dispatcher.executions[execution] = run = execution.run()
                    runs.append(run)
                room = dispatcher.room([place.template], free)
                assert room == {place.template: min(max(most - running, 0), free)}
                for run in runs:
                    run.close()
                dispatcher.executions.clear()

    _run(main)


def test_starts_are_logged_where_the_log_asks_for_them(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        for level, said in ((logging.DEBUG, True), (logging.INFO, False)):
            caplog.set_level(level, "pyncette.events")
            caplog.clear()
            async with place_of() as place:
                await _dispatch(place, _named("a"))
            assert ("starts attempt 1" in caplog.text) is said

    _run(main)


def test_the_instant_of_a_claim_is_kept_for_its_runs() -> None:
    assert datetime.fromtimestamp(NOW / SECOND, UTC).hour == 12

    async def main() -> None:
        async with place_of() as place:
            for took, extend in ((0.0, False), (2.0, False), (2.1, True)):
                await place.clock.advance(timedelta(seconds=1))
                claim = Claim(place.clock.monotonic(), took, NOW)
                batch = place.worker.dispatcher._batch(place.template, claim)
                assert batch.extend is extend
                assert batch.start_before == claim.sent + 20.0
                assert batch.since_epoch == NOW

    _run(main)
