"""Each entry of the write queue against each answer of the store, on a whole worker.

An entry belongs to a claimed record. The store says that its write was applied, or refused (what
the record is now goes with it), or has failed, or that its end is unknown. What must follow is the
same for all entries: what is still held is written again, what is lost is told, what cannot succeed
ends at once, and nothing is tried after the lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import product
from typing import Any, Final

import pytest
from tests.simulation.places import (
    FIRST,
    HELD,
    LEASE_END,
    NOW,
    SECOND,
    START,
    Place,
    place_of,
)
from tests.simulation.workers import every

from pyncette import ExecutionMode, FailureMode, Heartbeat
from pyncette.engine.background import Background
from pyncette.engine.dispatch import _Release
from pyncette.engine.execution import _Advance, _AutomaticHeartbeat, _Heartbeat
from pyncette.engine.polling import NEVER
from pyncette.engine.rules import Failure
from pyncette.engine.writes import Call, Next, Waker, WriteQueue
from pyncette.errors import LeaseLostException, StoreUnavailableError
from pyncette.model import Outcome
from pyncette.schedule import dumps
from pyncette.store import Applied, Failed, Refused, Result, Unknown, Write
from pyncette.store.record import DELETE, Pending, Record, State, dump_progress

LOCKED: Final = StoreUnavailableError("locked")
NEVER_FITS: Final = ValueError("too large")


@asynccontextmanager
async def held_by(record: Record = HELD, **options: Any) -> AsyncIterator[Place]:
    """A worker whose body has run, though its outcome is not written."""
    async with place_of(record, **options) as place:
        place.enter()
        place.begin_body()
        yield place


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


OTHERS: Final[dict[str, Record | None]] = {
    "it was removed": None,
    "worker you took it": HELD._replace(token="you:1:1", version=9),
    "this worker took it again": HELD._replace(token="me:1:2", version=9),
    "it was scheduled again after its lease": HELD._replace(token=None, version=9),
    "it was replaced, or removed": HELD._replace(
        token="you:1:1", version=9, progress=dump_progress(FIRST._replace(incarnation="new"))
    ),
    "so that it cannot be read": HELD._replace(token="you:1:1", version=9, progress="garbage"),
}
"""Records that are not held any more, and what became of them."""

PAUSED: Final = HELD._replace(
    version=9, progress=dump_progress(FIRST._replace(pending=Pending(paused=True)))
)
"""What a user has changed while it is held."""

MOVED_ON: Final = HELD._replace(
    version=9,
    state=State.SCHEDULED,
    unfinished_attempts=0,
    due_at=NOW + 9 * SECOND,
    progress=dump_progress(FIRST._replace(planned=NOW + 9 * SECOND)),
)
"""What an earlier write of the same holder has left."""

FAILURES: Final[tuple[Result, ...]] = (
    Failed(LOCKED),
    Failed(NEVER_FITS),
    Unknown(LOCKED),
    Unknown(NEVER_FITS),
)


def _in_lease(answer: Result, now: int) -> bool:
    """Whether an entry that has failed is tried again."""
    never = isinstance(answer, Failed) and isinstance(answer.error, ValueError)
    return not never and now < LEASE_END


# Outcomes.


def test_an_outcome_that_was_written_tells_when_the_record_comes_due() -> None:
    async def main() -> None:
        for mode, fails in product(FailureMode, (False, True)):
            async with held_by(failure_mode=mode) as place:
                execution = place.execution
                if fails:
                    execution.rarely().failure = Failure("no")
                write = execution.build(NOW)
                assert write is not None
                assert (write.expect, write.token) == (5, "me:1:1")
                assert execution.answered(Applied(6), write, NOW) is Next.DONE
                assert place.told_of() == write.change.due_at

    _run(main)


def test_an_outcome_that_removes_the_record_tells_nothing() -> None:
    async def main() -> None:
        once = HELD._replace(schedule=dumps(every(10 * SECOND).between(None, START)))
        async with held_by(once) as place:
            write = place.execution.build(NOW)
            assert write is not None
            assert write.change is DELETE
            assert place.execution.answered(Applied(0), write, NOW) is Next.DONE
            assert place.told_of() == NEVER

    _run(main)


@pytest.mark.parametrize("answer", FAILURES, ids=repr)
def test_an_outcome_that_was_not_written_is_tried_until_the_lease_ends(answer: Result) -> None:
    async def main() -> None:
        for now in (NOW + SECOND, LEASE_END - 1, LEASE_END, LEASE_END + 1):
            async with held_by() as place:
                execution = place.execution
                write = execution.build(NOW)
                assert write is not None
                expected = Next.BACK_OFF if _in_lease(answer, now) else Next.DONE
                assert execution.answered(answer, write, now) is expected
                # However long it takes: the run has ended when it was first to be written.
                execution.answered(answer, write, now + SECOND)
                again = execution.build(now + 2 * SECOND)
                assert again is not None
                last = again.change.progress.split(" ")[-1]  # type: ignore[union-attr]
                assert last == f"{NOW}+{now - NOW}"

    _run(main)


def test_an_outcome_of_which_a_row_has_no_due_time_is_not_repeated() -> None:
    async def main() -> None:
        async with held_by(HELD._replace(due_at=None)) as place:
            assert not place.execution.may_repeat(Unknown(LOCKED), NOW)

    _run(main)


@pytest.mark.parametrize("became", OTHERS)
def test_an_outcome_of_a_lost_record_is_dropped_with_the_reason(
    became: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with held_by() as place:
            execution = place.execution
            write = execution.build(NOW)
            assert write is not None
            answer = Refused(OTHERS[became])
            assert execution.answered(answer, write, NOW) is Next.DONE
            assert became in caplog.text
            assert execution.build(NOW) is None
            assert became in str(execution.lost())
            assert place.told_of() == NEVER
            with pytest.raises(LeaseLostException, match=became):
                await execution.heartbeat()

    _run(main)


def test_an_outcome_is_decided_again_from_what_a_user_has_changed() -> None:
    async def main() -> None:
        async with held_by() as place:
            execution = place.execution
            write = execution.build(NOW)
            assert write is not None
            assert execution.answered(Refused(PAUSED), write, NOW) is Next.RETRY
            again = execution.build(NOW)
            assert again is not None
            assert again.expect == 9
            assert again.change.state == State.PAUSED  # type: ignore[union-attr]
            assert execution.fencing_token == 5
            # The row is what the write expects, and was refused: something else holds it.
            assert execution.answered(Refused(PAUSED), again, NOW) is Next.BACK_OFF

    _run(main)


def test_what_a_user_has_made_unreadable_is_lost() -> None:
    async def main() -> None:
        async with held_by() as place:
            execution = place.execution
            write = execution.build(NOW)
            assert write is not None
            odd = HELD._replace(version=9, schedule="garbage")
            assert execution.answered(Refused(odd), write, NOW) is Next.DONE
            assert "cannot be read" in str(execution.lost())
            assert execution.build(NOW) is None

    _run(main)


def test_an_outcome_that_was_written_before_is_done() -> None:
    async def main() -> None:
        async with held_by() as place:
            execution = place.execution
            write = execution.build(NOW)
            assert write is not None
            assert execution.answered(Refused(MOVED_ON), write, NOW) is Next.DONE
            assert place.told_of() == write.change.due_at
            assert not execution.is_lost

    _run(main)


def test_what_follows_an_outcome_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def main() -> None:
        for failure, fast_forward, planned, said in (
            (None, False, NOW - SECOND, ""),
            (None, True, NOW - 35 * SECOND, "3 missed occurrences are skipped"),
            (None, True, NOW - SECOND, ""),
            (Failure("no", outcome=Outcome.SKIPPED), False, NOW - SECOND, ""),
            (Failure("no", final=True), False, NOW - SECOND, "the occurrence is given up"),
        ):
            progress = dump_progress(FIRST._replace(planned=planned))
            async with held_by(
                HELD._replace(progress=progress), fast_forward=fast_forward
            ) as place:
                if failure is not None:
                    place.execution.rarely().failure = failure
                write = place.execution.build(NOW)
                assert write is not None
                caplog.clear()
                place.execution.answered(Applied(6), write, NOW)
                assert (said in caplog.text) if said else not caplog.records

    _run(main)


# Heartbeats.


@pytest.mark.parametrize("answer", [Applied(7), *FAILURES], ids=repr)
def test_a_heartbeat_is_not_repeated_and_its_caller_told(answer: Result) -> None:
    async def main() -> None:
        async with held_by() as place:
            execution = place.execution
            heartbeat = _Heartbeat(execution)
            write = heartbeat.build(NOW + SECOND)
            assert write is not None
            assert write.change.due_at == NOW + 21 * SECOND
            assert heartbeat.answered(answer, write, NOW + SECOND) is Next.DONE
            if isinstance(answer, Applied):
                assert heartbeat.done.exception() is None
                record = execution.reading.record
                assert (record.version, record.due_at) == (7, NOW + 21 * SECOND)
                assert execution.fencing_token == 5
                outcome = execution.build(NOW + SECOND)
                assert outcome is not None
                assert outcome.expect == 7
            else:
                assert isinstance(answer, (Failed, Unknown))
                assert heartbeat.done.exception() is answer.error
                assert execution.reading.record == HELD

    _run(main)


@pytest.mark.parametrize("became", [*OTHERS, "held", "moved on"])
def test_a_heartbeat_that_is_refused_finds_what_became_of_the_record(became: str) -> None:
    async def main() -> None:
        async with held_by() as place:
            heartbeat = _Heartbeat(place.execution)
            write = heartbeat.build(NOW)
            assert write is not None
            current = {**OTHERS, "held": PAUSED, "moved on": MOVED_ON}[became]
            followed = heartbeat.answered(Refused(current), write, NOW)
            if became == "held":
                assert followed is Next.RETRY
                assert not heartbeat.done.done()
                again = heartbeat.build(NOW)
                assert again is not None
                assert again.expect == 9
                return
            assert followed is Next.DONE
            error = heartbeat.done.exception()
            if became == "moved on":
                assert error is None
                return
            assert isinstance(error, LeaseLostException)
            assert became in str(error)
            late = _Heartbeat(place.execution)
            assert late.build(NOW) is None
            assert became in str(late.done.exception())

    _run(main)


def test_a_heartbeat_that_nobody_awaits_any_more_is_not_sent() -> None:
    async def main() -> None:
        async with held_by() as place:
            cancelled, ended = _Heartbeat(place.execution), _Heartbeat(place.execution)
            cancelled.done.cancel()
            assert cancelled.build(NOW) is None
            cancelled.abandon(LOCKED)
            place.leave()
            assert ended.build(NOW) is None
            assert ended.done.exception() is None

    _run(main)


def test_an_automatic_heartbeat_tells_of_each_answer_and_ends_with_its_run() -> None:
    async def main() -> None:
        for answer in (Applied(7), *FAILURES, Refused(None), Refused(MOVED_ON)):
            async with held_by() as place:
                execution, told = place.execution, list[Exception | None]()
                execution.rarely().beating = True
                heartbeat = _AutomaticHeartbeat(execution, told.append)
                write = heartbeat.build(NOW)
                assert write is not None
                assert heartbeat.answered(answer, write, NOW) is Next.DONE
                assert not execution.rarely().beating
                if isinstance(answer, (Failed, Unknown)):
                    assert told == [answer.error]
                elif answer == Refused(None):
                    assert isinstance(told[0], LeaseLostException)
                else:
                    assert told == [None]
        for ended, lost in ((True, False), (False, True)):
            async with held_by() as place:
                execution, told = place.execution, list[Exception | None]()
                if ended:
                    place.leave()
                if lost:
                    execution.rarely().loss = "gone"
                execution.rarely().beating = True
                assert _AutomaticHeartbeat(execution, told.append).build(NOW) is None
                assert not execution.rarely().beating
                assert not told

    _run(main)


def test_automatic_heartbeats_go_on_while_the_run_holds_its_record() -> None:
    async def main() -> None:
        async with held_by(heartbeat=Heartbeat(every=timedelta(seconds=3))) as place:
            execution = place.execution
            assert execution.beats is None
            place.leave()
            place.enter(begun=True)
            assert execution.beats is not None
            execution.beat(lambda error: None)
            execution.beat(lambda error: None)
            assert len(place.worker.writes) == 1
            execution.rarely().loss = "gone"
            assert execution.beats is None

    _run(main)


@pytest.mark.parametrize(("in_body", "ended", "before"), [*product((True, False), repeat=3)])
def test_only_a_body_that_runs_is_interrupted_and_once(
    in_body: bool, ended: bool, before: bool
) -> None:
    async def main() -> None:
        async with held_by() as place:
            execution = place.execution
            execution.interrupt()
            assert not execution._interrupted
            runner = asyncio.ensure_future(asyncio.sleep(1))
            execution.runner = runner
            if not in_body:
                execution._started = None
            if ended:
                place.leave()
            execution.rarely().interrupted = before
            execution.interrupt()
            interrupts = in_body and not ended and not before
            assert runner.cancelling() == int(interrupts)
            assert execution._interrupted is (interrupts or before)
            if interrupts:
                execution._end_interruption()
                assert runner.cancelling() == 0
            runner.cancel()
            await asyncio.wait([runner])

    _run(main)


# Advances.

ONCE: Final[dict[str, Any]] = {"execution_mode": ExecutionMode.AT_MOST_ONCE}


def test_an_advance_lets_its_body_run_only_once_it_is_known_to_be_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers: list[Result] = [Applied(6), Refused(MOVED_ON), Refused(PAUSED), *FAILURES]
    answers += [Refused(current) for current in OTHERS.values()]

    async def main() -> None:
        for answer, now in product(answers, (NOW, LEASE_END)):
            caplog.clear()
            async with held_by(**ONCE) as place:
                advance = _Advance(place.execution)
                write = advance.build(NOW)
                assert write is not None
                followed = advance.answered(answer, write, now)
                if answer == Refused(PAUSED):
                    assert (followed, advance.done.done()) == (Next.RETRY, False)
                elif isinstance(answer, (Failed, Unknown)) and _in_lease(answer, now):
                    assert (followed, advance.done.done()) == (Next.BACK_OFF, False)
                else:
                    may_run = answer in (Applied(6), Refused(MOVED_ON))
                    assert (followed, advance.done.result()) == (Next.DONE, may_run)
                    assert place.told_of() == (write.change.due_at if may_run else NEVER)
                    assert ("was not started" in caplog.text) is not may_run
                    assert advance.build(NOW) is None

    _run(main)


def test_an_advance_whose_answer_was_lost_cannot_say_whether_a_record_that_is_gone_has_moved_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        for first, current in product(
            (Unknown(LOCKED), Failed(LOCKED), None), (None, OTHERS["worker you took it"])
        ):
            caplog.clear()
            async with held_by(**ONCE) as place:
                advance = _Advance(place.execution)
                write = advance.build(NOW)
                assert write is not None
                if first is not None:
                    assert advance.answered(first, write, NOW) is Next.BACK_OFF
                    # A later failure does not make the first answer known.
                    assert advance.answered(Failed(LOCKED), write, NOW) is Next.BACK_OFF
                assert advance.answered(Refused(current), write, NOW) is Next.DONE
                assert advance.done.result() is False
                unknown = isinstance(first, Unknown) and current is None
                assert ("is unknown" in caplog.text) is unknown
                assert ("before it had moved on" in caplog.text) is not unknown

    _run(main)


def test_an_advance_of_a_run_that_was_cancelled_says_nothing_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        for answer in (Applied(6), *FAILURES, Refused(None), Refused(MOVED_ON)):
            async with held_by(**ONCE) as place:
                advance = _Advance(place.execution)
                write = advance.build(NOW)
                assert write is not None
                advance.done.cancel()
                assert advance.answered(answer, write, NOW) is Next.DONE
        assert "was not started" not in caplog.text

    _run(main)


# What is given back.


def test_what_is_given_back_is_written_while_it_is_held_and_the_lease_lasts() -> None:
    waits = HELD._replace(state=State.RETRYING, version=9)
    more = HELD._replace(unfinished_attempts=2, version=9)
    lost = [None, OTHERS["worker you took it"], waits, more, MOVED_ON]
    free = HELD._replace(due_at=None)

    async def main() -> None:
        for held, now in product((HELD, free), (NOW, LEASE_END - 1, LEASE_END)):
            answers: list[tuple[Result, Next]] = [
                (Applied(6), Next.DONE),
                *((Refused(current), Next.DONE) for current in lost),
                (Refused(PAUSED), Next.RETRY),
                (Refused(held), Next.BACK_OFF),
            ]
            for answer in FAILURES:
                tried = held.due_at is not None and _in_lease(answer, now)
                answers.append((answer, Next.BACK_OFF if tried else Next.DONE))
            for answer, expected in answers:
                async with held_by() as place:
                    dispatcher = place.worker.dispatcher
                    dispatcher.give_back(held)
                    [release] = place.worker.writes._queue
                    assert isinstance(release, _Release)
                    write = release.build(now)
                    assert write is not None
                    assert (write.expect, write.token) == (5, "me:1:1")
                    assert write.change.unfinished_attempts == 0  # type: ignore[union-attr]
                    assert release.answered(answer, write, now) is expected, (answer, now)
                    told = write.change.due_at if answer == Applied(6) else NEVER
                    assert place.told_of() == told
                    if answer == Refused(PAUSED):
                        again = release.build(now)
                        assert again is not None
                        assert again.expect == 9
                        assert again.change.state == State.PAUSED  # type: ignore[union-attr]

    _run(main)


# Calls of users.


def test_a_call_has_the_answer_of_its_write_unless_it_has_one_already() -> None:
    write = Write("t", "k", DELETE, 5, None)

    async def main() -> None:
        answers: list[Result] = [Applied(6), Refused(PAUSED), *FAILURES]
        for answer, before in product(answers, (None, "cancelled", "expired")):
            call = Call(write)
            assert call.sent is False
            if before == "expired":
                call.expire()
                assert "the call was not made" in str(call.answer.exception())
            elif before == "cancelled":
                call.answer.cancel()
            assert call.build(NOW) is (write if before is None else None)
            assert call.sent is (before is None)
            assert call.answered(answer, write, NOW) is Next.DONE
            if before is not None:
                continue
            if isinstance(answer, (Failed, Unknown)):
                assert call.answer.exception() is answer.error
            else:
                assert call.answer.result() == answer
            call.abandon(LOCKED)  # it has its answer
        late = Call(write)
        late.build(NOW)
        late.expire()
        assert "is unknown" in str(late.answer.exception())

    _run(main)


def test_a_queue_that_is_being_torn_down_tells_what_was_under_way() -> None:
    write = Write("t", "k", DELETE, 5, None)

    async def main() -> None:
        for from_outside in (False, True):
            started = asyncio.Event()

            async def commit(
                writes: Sequence[Write],
                now: int,
                started: asyncio.Event = started,
                from_outside: bool = from_outside,
            ) -> list[Result]:
                started.set()
                if from_outside:
                    await asyncio.Event().wait()
                raise asyncio.CancelledError  # of something that the store awaited

            background = Background()
            queue, call = WriteQueue(commit, lambda: NOW, background), Call(write)
            queue.add(call)
            await started.wait()
            if from_outside:
                await background.close()
            error = await asyncio.gather(call.answer, return_exceptions=True)
            assert "closed while this was being written" in str(error[0])
            await background.close()

    _run(main)


def test_groups_are_told_of_at_once_and_then_at_intervals() -> None:
    async def main() -> None:
        told: list[set[str]] = []

        async def notify(groups: Collection[str]) -> None:
            told.append(set(groups))

        background = Background()
        waker = Waker(notify, background)
        assert waker.take() == ()
        waker.add("a")
        assert waker.take() == {"a"}
        waker.add("b")
        assert waker.take() == ()
        waker.add("c")
        assert waker.take() == ()
        await waker.close()
        assert told == [{"b", "c"}]
        assert waker.take() == ()
        await background.close()

    _run(main)
