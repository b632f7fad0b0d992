"""Every event on every small record: what must hold afterwards, whatever the record was.

The explorer takes records as histories make them, and so meets a pause and a trigger and a
replacement of one run rarely. Here all combinations are enumerated, also those that only a user's
hand could make. What is asked: a record is due exactly if it can run; nothing that was requested is
lost; whoever held the record can tell from its token what became of it; two requests in a row are
as good as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import product
from typing import Final

import pytest
from tests.simulation import model
from tests.simulation.workers import EPOCH, at, every

from pyncette.engine import rules
from pyncette.engine.rules import CLOCK_ERROR_MAX, Failure, Policy, Verdict, Wanted
from pyncette.model import Exhausted, FailureMode, Outcome
from pyncette.schedule import Every, Schedule, dumps
from pyncette.store import Write
from pyncette.store.record import (
    DELETE,
    LATEST_INSTANT,
    STATIC_GROUP,
    Change,
    Patch,
    Pause,
    Pending,
    Progress,
    Put,
    Reading,
    Record,
    State,
    dump_progress,
    load_progress,
    read,
)

NOW: Final = 10
LEASE_END: Final = 15
FAR: Final = NOW + 2 * CLOCK_ERROR_MAX
EVERY: Final = every(3)
NEW: Final = every(4)
ONCE: Final = at(12)
OVER: Final = EVERY.between(None, EPOCH)
"""Never runs any more."""
WANTED: Final = Wanted(NEW, "1 {}", "new", ("g", "k"))
SOON: Final = Policy(failure_mode=FailureMode.UNLOCK, retry_after=7)
NONE: Final = Policy(failure_mode=FailureMode.NONE)
COMMIT: Final = Policy(failure_mode=FailureMode.COMMIT)
FORWARD: Final = Policy(fast_forward=True)
NO: Final = Failure("no", "where")

RESTING: Final = (State.PAUSED, State.PARKED, State.FINISHED)
FLAGS: Final = [
    Pending(paused=paused, triggered=triggered)
    for paused, triggered in product((False, True), (None, 9))
]


def _requests(running: bool) -> Iterator[Pending | None]:
    """What may be pending: while the record runs, a replacement or a new plan, too."""
    yield None
    yield from FLAGS[1:]
    if running:
        for flags, planned, incarnation in product(FLAGS, (None, 7, 14), ("old", "replaced")):
            yield flags._replace(
                schedule=dumps(ONCE), args="1 []", planned=planned, incarnation=incarnation
            )


def records(*states: State, groups: tuple[str, ...] = ("g",)) -> Iterator[Reading]:
    """Every small record in one of these states."""
    for state, group, schedule, planned, triggered, failures, unfinished in product(
        states, groups, (EVERY, ONCE), (None, 8, 10, 16), (None, 9), (0, 1), (0, 1, 2)
    ):
        running = state is State.RUNNING
        if running and not unfinished and not failures:
            continue
        for pending in _requests(running):
            progress = Progress(
                planned, "old", triggered, failures, pending, "e" * failures or None
            )
            dues: tuple[int | None, ...] = (None,)
            if state is State.SCHEDULED:
                dues = (progress.occurrence,)
            elif state not in RESTING:
                dues = (LEASE_END, NOW)
            if (dues == (None,)) is not (state in RESTING):
                continue
            for due_at in dues:
                token = None if state is State.PARKED and not failures else "t"
                text = dump_progress(progress)
                yield Reading(
                    Record(
                        *(group, "k", due_at, 5, token, state, unfinished),
                        *(dumps(schedule), "1 {}", text),
                    ),
                    schedule,
                    progress,
                )


def after(before: Reading, change: Change) -> Record | None:
    """The record after a change, which must be whole."""
    record = before.record
    current, _ = model.written(
        record, Write(record.group, record.key, change, record.version, None), NOW
    )
    if current is None:
        assert change is DELETE
        return None
    _, schedule, progress = read(current)
    pause = progress.pause
    ends = current.state == State.PAUSED and pause is not None and pause.until is not None
    assert (current.due_at is None) is (current.state in RESTING and not ends), current
    if current.state == State.SCHEDULED:
        # Unless it was triggered, or waits a little.
        others = (_requested(before).triggered, NOW, NOW + 6)
        due_at = progress.occurrence
        if progress.triggered is None and due_at is not None:
            due_at = schedule.due(due_at, record.group, record.key)
        assert current.due_at == due_at or current.due_at in others, current
    if current.state == State.RUNNING:
        assert record.state == State.RUNNING
    assert progress.pending != Pending(), current
    return current


def _requested(before: Reading) -> Pending:
    return before.progress.pending or Pending()


def _replacement(before: Reading) -> Pending | None:
    pending = _requested(before)
    return pending if pending.schedule and pending.incarnation != "old" else None


def _by_holder(before: Reading, change: Change) -> tuple[Record | None, Progress]:
    """A holder ends the run: its own write is known from the token, its replacement applied."""
    current = after(before, change)
    if current is None:
        assert before.record.group != STATIC_GROUP
        return None, before.progress
    assert current.token == before.record.token
    if before.record.unfinished_attempts:
        assert rules.verdict(current, before) is Verdict.SETTLED, (before, current)
    return current, load_progress(current.progress)


def _is_promoted(before: Reading, current: Record | None) -> bool:
    """Whether the requested replacement has taken the place of the record, with its flags."""
    wanted = _requested(before)
    assert current is not None
    progress = load_progress(current.progress)
    whole = (current.schedule, current.args, progress.planned, progress.incarnation) == (
        wanted.schedule,
        wanted.args,
        wanted.planned,
        wanted.incarnation,
    )
    flagged = (
        (State.SCHEDULED, wanted.triggered, wanted.triggered, wanted.paused)
        if wanted.triggered is not None
        else (State.FINISHED, None, None, False)
        if wanted.planned is None
        else (State.PAUSED, None, None, False)
        if wanted.paused
        else (State.SCHEDULED, wanted.planned, None, False)
    )
    paused = progress.pending is not None and progress.pending.paused
    found = (current.state, current.due_at, progress.triggered, paused)
    fresh = (progress.failures, progress.error, current.unfinished_attempts) == (0, None, 0)
    left = Pending() if progress.pending is None else progress.pending
    return whole and found == flagged and fresh and left._replace(paused=False) == Pending()


@pytest.mark.parametrize("policy", [NONE, FORWARD, COMMIT], ids=["done", "collapsed", "failed"])
def test_what_follows_an_occurrence_is_the_next_one_or_what_was_requested(policy: Policy) -> None:
    for before in records(State.RUNNING, groups=("g", STATIC_GROUP)):
        error = "no" if policy is COMMIT else None
        change = (
            rules.failed(before, policy, NOW, NO)
            if policy is COMMIT
            else rules.succeeded(before, policy, NOW)
        )
        current, progress = _by_holder(before, change)
        record, schedule, old = before
        wanted = _requested(before)
        overdue = (
            old.triggered is not None
            and old.planned is not None
            and old.planned <= NOW
            and (wanted.planned is None or old.planned < wanted.planned)
        )
        if wanted.schedule is not None and (_replacement(before) or not overdue):
            assert _is_promoted(before, current), (before, current)
            continue
        planned = old.planned
        if wanted.schedule is None and old.triggered is None and planned is not None:
            planned = schedule.following(planned)
            if policy.fast_forward and planned is not None and planned <= NOW:
                planned = schedule.skip(planned, NOW)
                assert progress.skipped == (NOW - old_planned(before)) // 3
            else:
                assert progress.skipped == 0
        if wanted.triggered is None and planned is None:
            assert (current is None) is (record.group != STATIC_GROUP)
            if current is not None:
                assert (current.state, progress.planned) == (State.FINISHED, None)
            continue
        assert current is not None
        assert (current.unfinished_attempts, progress.failures) == (0, 0)
        assert (progress.planned, progress.incarnation) == (planned, "old")
        assert progress.error == error
        left = progress.pending or Pending()
        assert left.schedule == wanted.schedule, "a new plan that waits is not forgotten"
        assert left.triggered is None
        if wanted.triggered is not None:
            found = (current.state, current.due_at, progress.triggered, left.paused)
            assert found == (State.SCHEDULED, 9, 9, wanted.paused)
        else:
            assert progress.triggered is None
            assert not left.paused
            assert current.state == (State.PAUSED if wanted.paused else State.SCHEDULED)
            assert current.due_at == (None if wanted.paused else planned)


def old_planned(before: Reading) -> int:
    """The planned instant of a record that has one."""
    planned = before.progress.planned
    assert planned is not None
    return planned


def _counted(before: Reading) -> int:
    """The failures afterwards: attempts without an outcome count together with this one."""
    return before.progress.failures + max(before.record.unfinished_attempts, 1)


@pytest.mark.parametrize("policy", [NONE, SOON], ids=["when the lease ends", "soon"])
def test_a_failed_run_is_retried_unless_something_was_requested(policy: Policy) -> None:
    for before in records(State.RUNNING):
        current, progress = _by_holder(before, rules.failed(before, policy, NOW, NO))
        wanted, old = _requested(before), before.progress
        if _replacement(before):
            assert _is_promoted(before, current), (before, current)
            continue
        assert current is not None
        found = (progress.planned, progress.error, progress.traceback)
        assert found == (old.planned, "no", "where")
        if wanted.paused:
            _rests_in_the_middle(before, current, progress, _counted(before), 0)
            continue
        assert progress.failures == _counted(before)
        assert progress.pending == old.pending
        assert (current.state, current.due_at, current.unfinished_attempts) == (
            (State.RETRYING, NOW + 7, 0)
            if policy is SOON
            else (State.RUNNING, before.record.due_at, 0)
        )


def _rests_in_the_middle(
    before: Reading, current: Record, progress: Progress, failures: int, unfinished: int
) -> None:
    """Paused in the middle of an occurrence, or first run for a trigger."""
    wanted = _requested(before)
    left = progress.pending or Pending()
    assert left.schedule == wanted.schedule
    if wanted.triggered is not None:
        found = (current.state, current.due_at, progress.triggered, left.paused, progress.failures)
        assert found == (State.SCHEDULED, 9, 9, True, 0)
    else:
        found_ = (current.state, left.paused, progress.failures, current.unfinished_attempts)
        assert found_ == (State.PAUSED, False, failures, unfinished)
    assert left.triggered is None


@pytest.mark.parametrize("delay", [0, 6])
def test_what_is_given_back_is_as_before_the_claim(delay: int) -> None:
    for before in records(State.RUNNING):
        record, _, old = before
        current, progress = _by_holder(before, rules.given_back(before, NOW, delay))
        if _replacement(before):
            assert _is_promoted(before, current), (before, current)
            continue
        assert current is not None
        unfinished = max(record.unfinished_attempts - 1, 0)
        if _requested(before).paused and old.triggered is None:
            _rests_in_the_middle(before, current, progress, old.failures, unfinished)
            continue
        assert progress == old
        assert current.unfinished_attempts == unfinished
        assert current.state == (State.RETRYING if unfinished or old.failures else State.SCHEDULED)
        waits = delay or unfinished or old.failures or old.occurrence is None
        assert current.due_at == (NOW + delay if waits else old.occurrence)


def test_after_the_last_attempt_a_record_is_parked_unless_something_was_requested() -> None:
    for before in records(State.RUNNING):
        change = rules.exhausted(before, Policy(exhausted=Exhausted.PARK), NOW, NO)
        current, progress = _by_holder(before, change)
        if _replacement(before):
            assert _is_promoted(before, current), (before, current)
            continue
        assert current is not None
        _is_parked(before, current, progress)


def _is_parked(before: Reading, current: Record, progress: Progress) -> None:
    """Parked with its error; or tried once more, if it was triggered meanwhile."""
    wanted, old = _requested(before), before.progress
    assert (progress.planned, progress.triggered) == (old.planned, old.triggered)
    assert (progress.error, current.unfinished_attempts) == ("no", 0)
    if wanted.triggered is not None:
        left = wanted._replace(triggered=None)
        due_at = max(wanted.triggered, old.occurrence or 0)
        assert (current.state, current.due_at) == (State.SCHEDULED, due_at)
        assert (progress.failures, progress.pending or Pending()) == (0, left)
        assert progress.renewed == NOW
    else:
        assert current.state == State.PARKED
        assert (progress.failures, progress.pending) == (_counted(before), old.pending)


@pytest.mark.parametrize("exhausted", [None, Exhausted.CONTINUE])
def test_after_the_last_attempt_a_schedule_goes_on_and_a_single_run_is_parked(
    exhausted: Exhausted | None,
) -> None:
    for before in records(State.RUNNING, groups=("g", STATIC_GROUP)):
        change = rules.exhausted(before, Policy(exhausted=exhausted), NOW, NO)
        final = rules.failed(before, Policy(exhausted=exhausted), NOW, NO._replace(final=True))
        assert final == change
        committed = rules.failed(before, COMMIT, NOW, NO)
        assert rules.exhausted(before, COMMIT, NOW, NO) == committed
        record, schedule, old = before
        following = old.planned
        if old.triggered is None and old.planned is not None:
            following = schedule.following(old.planned)
        stays = record.group == STATIC_GROUP or following is not None
        if stays or _replacement(before):
            assert change == committed
            continue
        # A trigger that waits does not take the place of the run that has failed.
        current, progress = _by_holder(before, change)
        assert current is not None
        _is_parked(before, current, progress)


def test_after_the_last_attempt_a_record_is_paused_and_resumed_with_all_attempts() -> None:
    for before in records(State.RUNNING):
        change = rules.exhausted(before, Policy(exhausted=Exhausted.PAUSE), NOW, NO)
        current, progress = _by_holder(before, change)
        if _replacement(before):
            assert _is_promoted(before, current), (before, current)
            continue
        assert current is not None
        assert (progress.error, progress.failures, progress.renewed) == ("no", 0, NOW)
        _rests_in_the_middle(before, current, progress, 0, 0)


def test_a_heartbeat_only_moves_the_end_of_the_lease() -> None:
    for before in records(State.RUNNING):
        current = after(before, rules.heartbeat(before.record, NOW, 9))
        assert current is not None
        assert current == before.record._replace(due_at=NOW + 9, version=current.version)
        if before.record.unfinished_attempts:
            assert rules.verdict(current, before) is Verdict.HELD


# Requests of users.


def _only_pending(before: Reading, change: Change, pending: Pending | None) -> None:
    """Nothing but the pending requests changes, and the holder goes on holding the record."""
    current = after(before, change)
    assert current is not None
    progress = before.progress._replace(pending=None if pending == Pending() else pending)
    text = dump_progress(progress)
    assert current == before.record._replace(progress=text, version=current.version)
    if before.record.state == State.RUNNING and before.record.unfinished_attempts:
        assert rules.verdict(current, before) is Verdict.HELD


def _token_of(before: Reading) -> str | None:
    """A request that ends a run takes the record from its holder."""
    return None if before.record.state == State.RUNNING else before.record.token


def test_scheduling_keeps_the_sooner_time_and_what_waits() -> None:
    for before in records(*State):
        record, _, old = before
        change = rules.merged(record, WANTED, NOW)
        if rules.alive(record, NOW):
            assert change is None
            continue
        assert change is not None
        current = after(before, change)
        assert current is not None
        progress = load_progress(current.progress)
        assert (current.schedule, current.args) == (dumps(NEW), "1 {}")
        if record.state == State.PARKED:
            anew = _made_anew(before, current)
            if _requested(before).paused:
                anew = anew._replace(state=State.PAUSED, due_at=None)
            assert current == anew
            continue
        assert current.token == _token_of(before)
        assert current.unfinished_attempts == record.unfinished_attempts
        flags = _requested(before)
        assert (progress.pending or Pending()) == Pending(
            paused=flags.paused, triggered=flags.triggered
        )
        first = NOW + 4
        moves = record.state in (State.SCHEDULED, State.PAUSED, State.FINISHED)
        sooner = first if old.planned is None else min(old.planned, first)
        assert progress.planned == (sooner if moves or old.planned is None else old.planned)
        assert progress[1:4] == old[1:4]
        if record.state in (State.SCHEDULED, State.FINISHED):
            assert (current.state, current.due_at) == (State.SCHEDULED, progress.occurrence)
        else:
            assert (current.state, current.due_at) == (record.state, record.due_at)


def _made_anew(before: Reading, current: Record) -> Record:
    text = dump_progress(Progress(NOW + 4, "new"))
    return Record(
        *(before.record.group, "k", NOW + 4, current.version, None, State.SCHEDULED, 0),
        *(dumps(NEW), "1 {}", text),
    )


def test_replacing_is_creating_anew_at_once_or_when_the_run_ends() -> None:
    for before in records(*State):
        change = rules.replaced(before.record, WANTED, NOW)
        if rules.alive(before.record, NOW) and before.record.unfinished_attempts:
            pending = _requested(before)._replace(
                schedule=dumps(NEW), args="1 {}", planned=NOW + 4, incarnation="new"
            )
            _only_pending(before, change, pending)
            continue
        current = after(before, change)
        assert current is not None
        anew = _made_anew(before, current)
        if before.record.state == State.PAUSED or _requested(before).paused:
            anew = anew._replace(state=State.PAUSED, due_at=None)
        assert current == anew


def test_a_pause_rests_and_a_resumption_takes_it_back() -> None:
    for before in records(*State):
        record, _, old = before
        change = rules.paused(before, NOW)
        if record.state in RESTING or (rules.alive(record, NOW) and _requested(before).paused):
            assert change is None
            continue
        assert change is not None
        if rules.alive(record, NOW):
            _only_pending(before, change, _requested(before)._replace(paused=True))
            assert rules.paused(read_after(before, change), NOW) is None
            taken_back = rules.resumed(read_after(before, change), NOW)
            assert taken_back is not None
            back = after(read_after(before, change), taken_back)
            assert back is not None
            left = _requested(before)._replace(paused=False)
            assert (load_progress(back.progress).pending or Pending()) == left
            continue
        current = after(before, change)
        assert current is not None
        progress = load_progress(current.progress)
        assert (current.state, current.token) == (State.PAUSED, _token_of(before))
        assert current.unfinished_attempts == record.unfinished_attempts
        assert (current.schedule, current.args) == (record.schedule, record.args)
        assert progress[:4] == old[:4]
        assert (progress.pending or Pending()) == _requested(before)._replace(paused=False)
        assert rules.paused(read(current), NOW) is None


def read_after(before: Reading, change: Change) -> Reading:
    """The record after a change, read."""
    current = after(before, change)
    assert current is not None
    return read(current)


def test_what_is_resumed_goes_on_where_it_stood() -> None:
    for before in records(*State):
        record, _, old = before
        change = rules.resumed(before, NOW)
        if record.state != State.PAUSED:
            if not _requested(before).paused:
                assert change is None
                continue
            assert change is not None
            _only_pending(before, change, _requested(before)._replace(paused=False))
            continue
        assert change is not None
        current = after(before, change)
        assert current is not None
        middle = record.unfinished_attempts or old.failures
        assert current.unfinished_attempts == record.unfinished_attempts
        assert current.progress == record.progress
        assert current.token == record.token
        if middle:
            assert (current.state, current.due_at) == (State.RETRYING, NOW)
        elif old.occurrence is None:
            assert current.state == State.FINISHED
        else:
            assert (current.state, current.due_at) == (State.SCHEDULED, old.occurrence)


def test_a_trigger_runs_once_and_moves_no_plan() -> None:
    for before in records(*State):
        record, schedule, old = before
        change = rules.triggered(before, NOW)
        if record.state == State.RUNNING:
            if _requested(before).triggered is not None:
                assert change is None
                continue
            assert change is not None
            _only_pending(before, change, _requested(before)._replace(triggered=NOW))
            continue
        if record.state == State.SCHEDULED and old.triggered is not None:
            assert change is None
            continue
        assert change is not None
        current = after(before, change)
        assert current is not None
        progress = load_progress(current.progress)
        assert current.due_at == NOW
        assert current.token == record.token
        if record.state == State.RETRYING:
            begun = record.unfinished_attempts or old.failures
            assert progress == (old if begun else old._replace(renewed=NOW))
            unchanged = record._replace(due_at=NOW, version=current.version)
            assert current == unchanged._replace(progress=current.progress)
            continue
        assert current.state == State.SCHEDULED
        assert (progress.failures, current.unfinished_attempts) == (0, 0)
        waits = record.state != State.PARKED and old.triggered is None
        begun = waits and (record.unfinished_attempts or old.failures)
        assert progress.begun == (NOW if begun else None)
        retried = record.state == State.PARKED and old.occurrence is not None
        assert progress.triggered == (old.triggered if retried else NOW)
        planned = old.planned
        if record.state == State.PARKED and old.occurrence is None:
            planned = schedule.next(NOW)
        assert progress.planned == planned
        flags = _requested(before)
        if record.state == State.PAUSED:
            flags = flags._replace(paused=True)
        assert (progress.pending or Pending()) == flags


@pytest.mark.parametrize("schedule", [NEW, at(9), at(14)], ids=["often", "past", "once"])
def test_a_static_task_that_is_replanned_keeps_what_is_begun_and_the_sooner_time(
    schedule: Schedule,
) -> None:
    first = schedule.first(NOW)
    for before in records(*State):
        record, _, old = before
        change = rules.replanned(record, schedule, NOW)
        wanted = _requested(before)
        if record.state == State.PARKED and (
            old.occurrence is None or record.schedule != dumps(schedule)
        ):
            assert change is not None
            current = after(before, change)
            assert current is not None
            found = (current.state, current.due_at, current.schedule, current.token)
            assert found == (State.SCHEDULED, first, dumps(schedule), None)
            assert load_progress(current.progress) == Progress(
                first, "old", pending=None if wanted == Pending() else wanted
            )
            continue
        if dumps(schedule) == (wanted.schedule or record.schedule):
            continue
        assert change is not None
        again = read_after(before, change)
        assert rules.replanned(again.record, schedule, NOW) is None, "once is enough"
        if record.state == State.RUNNING:
            pending = wanted._replace(
                schedule=dumps(schedule), args=record.args, planned=first, incarnation="old"
            )
            _only_pending(before, change, pending)
            continue
        current, progress = again.record, again.progress
        assert (current.schedule, current.args) == (dumps(schedule), record.args)
        assert (current.token, current.unfinished_attempts) == (
            record.token,
            record.unfinished_attempts,
        )
        assert (progress.incarnation, progress.triggered, progress.failures) == (
            "old",
            old.triggered,
            old.failures,
        )
        assert (progress.pending or Pending()) == wanted
        overdue = old.planned is not None and old.planned <= NOW
        begun = old.triggered is None and (record.unfinished_attempts > 0 or old.failures > 0)
        sooner = first if old.planned is None or first is None else min(old.planned, first)
        match record.state:
            case State.FINISHED:
                planned = first
            case State.SCHEDULED:
                planned = old.planned if overdue else sooner
            case State.PAUSED | State.RETRYING:
                planned = old.planned if overdue or begun else sooner
            case _:
                planned = old.planned
        assert progress.planned == planned
        if record.state in (State.SCHEDULED, State.FINISHED):
            assert (current.state, current.due_at) == (State.SCHEDULED, progress.occurrence)
        else:
            assert (current.state, current.due_at) == (record.state, record.due_at)


@pytest.mark.parametrize("at_most_once", [False, True])
@pytest.mark.parametrize("token", [None, "t"])
def test_only_a_plan_that_contradicts_its_schedule_is_mended(
    token: str | None, at_most_once: bool
) -> None:
    edge = EVERY.next(NOW + CLOCK_ERROR_MAX)
    assert edge is not None
    for state, planned, triggered in product(State, (None, 12, edge, edge + 1, FAR), (None, 9)):
        progress = Progress(planned, "old", triggered)
        due_at = None if state in RESTING else planned or 9
        record = Record(
            *(STATIC_GROUP, "k", due_at, 5, token, state, int(state == State.RUNNING)),
            *(dumps(EVERY), "", dump_progress(progress)),
        )
        wrong = (
            state in (State.SCHEDULED, State.RETRYING)
            and triggered is None
            and planned is not None
            and planned > edge
        )
        if state == State.PARKED and progress.occurrence is None:
            continue
        change = rules.replanned(record, EVERY, NOW, at_most_once)
        if not wrong or (at_most_once and token is not None):
            assert change is None
            continue
        assert change is not None
        current = after(Reading(record, EVERY, progress), change)
        assert current is not None
        assert (current.due_at, current.token) == (NOW + 3, None)
        assert load_progress(current.progress) == Progress(NOW + 3, "old")


def test_only_a_lease_that_has_not_ended_is_alive() -> None:
    for before in records(*State):
        record = before.record
        holds = record.state == State.RUNNING and record.due_at == LEASE_END
        assert rules.alive(record, NOW) is holds
        # Only a user's hand makes such a row; a claim of others must not end at it.
        assert not rules.alive(record._replace(due_at=None), NOW)


def test_three_attempts_without_an_outcome_make_a_suspect() -> None:
    record = next(records(State.RUNNING)).record
    for unfinished in range(5):
        suspect = rules.suspect(record._replace(unfinished_attempts=unfinished))
        assert suspect is (unfinished > 2)


def test_another_claim_has_taken_what_has_another_token_or_is_gone() -> None:
    for before in records(State.RUNNING):
        if not before.record.unfinished_attempts:
            continue
        other = before.record._replace(token="u")
        assert rules.verdict(None, before) is Verdict.LOST
        assert rules.verdict(other, before) is Verdict.LOST
        assert rules.verdict(before.record, before) is Verdict.HELD
        # A claim that was repeated has taken a later occurrence with the same token.
        later = dump_progress(before.progress._replace(planned=13))
        assert rules.verdict(before.record._replace(progress=later), before) is Verdict.SETTLED


@pytest.mark.parametrize(("first", "due_at"), [(9, LEASE_END), (20, 20)])
def test_what_runs_and_cannot_be_read_is_replaced_when_its_lease_ends(
    first: int, due_at: int
) -> None:
    record = next(records(State.RUNNING)).record._replace(progress="garbage")
    wanted = WANTED._replace(schedule=at(first))
    change = rules.replaced(record, wanted, NOW)
    assert change.due_at == due_at
    assert change == rules.created(wanted, NOW)._replace(due_at=due_at)
    assert rules.merged(record, wanted, NOW) is None
    ended = record._replace(due_at=NOW)
    assert rules.merged(ended, wanted, NOW) == rules.created(wanted, NOW)
    never = WANTED._replace(schedule=OVER)
    assert rules.replaced(record, never, NOW) == rules.created(never, NOW)


@pytest.mark.parametrize("rule", ["merged", "replanned"])
def test_what_runs_at_once_does_so_when_it_is_new_and_not_whenever_it_is_given_again(
    rule: str,
) -> None:
    at_once = Every(timedelta(microseconds=4), at_once=True)
    for schedule, first in ((at_once, 14), (EVERY, 10)):
        for state in (State.FINISHED, State.SCHEDULED, State.PAUSED):
            progress = dump_progress(Progress(None if state is State.FINISHED else 90, "old"))
            record = Record(
                *(STATIC_GROUP, "k", 90 if state is State.SCHEDULED else None, 5, "t", state, 0),
                *(dumps(schedule), "1 {}", progress),
            )
            change = (
                rules.merged(record, WANTED._replace(schedule=at_once), NOW)
                if rule == "merged"
                else rules.replanned(record, at_once, NOW)
            )
            if change is None:
                assert rule == "replanned"
                assert schedule == at_once
                continue
            assert load_progress(change.progress or "").planned == first
            assert change.due_at == (None if state is State.PAUSED else first)


def test_an_occurrence_that_was_renewed_stays_so_beside_a_triggered_run() -> None:
    for triggered, kept in ((None, None), (9, 5)):
        before = _running(triggered=triggered, renewed=5)
        done = _read(before, rules.succeeded(before, NONE, NOW))
        assert (done.renewed, done.planned) == (kept, 8 if triggered else 11)


def test_what_a_later_release_wrote_is_given_back_unread() -> None:
    record = next(records(State.RUNNING)).record
    for unfinished, left in ((0, 0), (1, 0), (3, 2)):
        change = rules.given_back_unread(record._replace(unfinished_attempts=unfinished), NOW, 6)
        assert change == Patch(NOW + 6, State.RETRYING, left)


# Pauses with an end.


@pytest.mark.parametrize("until", [9, 13, 20])
def test_a_pause_with_an_end_is_due_then_but_not_before_the_plan(until: int) -> None:
    pause = Pause(until, "why")
    for before in records(State.SCHEDULED, State.RETRYING, State.RUNNING):
        record, _, old = before
        change = rules.paused(before, NOW, pause)
        assert change is not None
        if rules.alive(record, NOW):
            _only_pending(before, change, _requested(before)._replace(paused=True, pause=pause))
            assert rules.paused(read_after(before, change), NOW, pause) is None
            assert rules.paused(read_after(before, change), NOW) is not None
            continue
        resting = read_after(before, change)
        begun = record.unfinished_attempts or old.failures or old.occurrence is None
        due_at = until if begun else max(until, old.occurrence or 0)
        assert (resting.record.state, resting.record.due_at) == (State.PAUSED, due_at)
        assert resting.progress.pause == pause
        assert rules.paused(resting, NOW, pause) is None
        assert rules.paused(resting, NOW) is not None
        resumed = rules.resumed(resting, NOW)
        assert resumed is not None
        again = read_after(resting, resumed)
        assert again.progress.pause is None
        assert again.progress[:4] == old[:4]
        # Whatever else happens to the record, the pause goes on.
        merged = rules.merged(resting.record, WANTED, NOW)
        assert merged is not None
        _rests_until(read_after(resting, merged), pause)
        _rests_until(read_after(resting, rules.replaced(resting.record, WANTED, NOW)), pause)
        planned = rules.replanned(resting.record, NEW, NOW)
        pending = resting.progress.pending
        if planned is not None and (pending is None or pending.schedule is None):
            _rests_until(read_after(resting, planned), pause)
        change = rules.triggered(resting, NOW)
        assert change is not None
        run = read_after(resting, change)
        assert (run.record.due_at, run.progress.pause) == (NOW, None)
        assert run.progress.pending is not None
        assert (run.progress.pending.paused, run.progress.pending.pause) == (True, pause)


def _rests_until(reading: Reading, pause: Pause) -> None:
    record, _, progress = reading
    assert pause.until is not None
    begun = record.unfinished_attempts or progress.failures or progress.occurrence is None
    due_at = pause.until if begun else max(pause.until, progress.occurrence or 0)
    assert (record.state, record.due_at, progress.pause) == (State.PAUSED, due_at, pause)


@pytest.mark.parametrize("until", [9, 13, 20])
def test_a_pause_that_was_requested_holds_after_the_run_unless_it_has_ended(until: int) -> None:
    pause, ended = Pause(until, "why"), until <= NOW
    for plain in records(State.RUNNING):
        if _requested(plain).triggered is not None:
            continue
        pending = _requested(plain)._replace(paused=True, pause=pause)
        progress = plain.progress._replace(pending=pending)
        record = plain.record._replace(progress=dump_progress(progress))
        before = Reading(record, plain.schedule, progress)
        change = rules.succeeded(before, NONE, NOW)
        if change is not DELETE:
            done = read_after(before, change)
            if done.record.state != State.FINISHED:
                _rests_until(done, pause)
        for change in (
            rules.failed(before, SOON, NOW, NO),
            rules.given_back(before, NOW),
        ):
            current = read_after(before, change)
            if _replacement(before):
                if current.record.state != State.FINISHED:
                    _rests_until(current, pause)
            elif ended or (progress.triggered is not None and current.record.state != State.PAUSED):
                assert current.record.state in (State.RETRYING, State.SCHEDULED)
            else:
                _rests_until(current, pause)


# Occurrences that are skipped, and attempts that are counted.


def _running(schedule: Schedule = EVERY, unfinished: int = 1, **fields: object) -> Reading:
    """A record in hand, with these fields of its progress."""
    progress = Progress(8, "old")._replace(**fields)  # type: ignore[arg-type]
    record = Record(
        *("g", "k", LEASE_END, 5, "t", State.RUNNING, unfinished),
        *(dumps(schedule), "1 {}", dump_progress(progress)),
    )
    return Reading(record, schedule, progress)


def _read(before: Reading, change: Change) -> Progress:
    return read_after(before, change).progress


def test_what_is_too_late_is_skipped_with_all_that_is_too_late_with_it() -> None:
    for planned, grace, now in product((2, 8), (0, 2, 5), (8, 9, 10, 11, 17, 30)):
        policy = Policy(misfire_grace=grace)
        before = _running(planned=planned)
        late = now - planned > grace
        assert rules.too_late(before, policy, now) is late
        assert not rules.too_late(before, Policy(), now)
        assert not rules.too_late(_running(planned=planned, triggered=1), policy, now)
        assert not rules.too_late(_running(planned=None), policy, now)
        assert not rules.too_late(_running(planned=planned, failures=1), policy, now)
        assert not rules.too_late(_running(planned=planned, unfinished=2), policy, now)
        assert not rules.too_late(_running(planned=planned, renewed=5), policy, now)
        postponed = _running(planned=planned, outcome=Outcome.POSTPONED)
        assert not rules.too_late(postponed, policy, now)
        given_back = _read(before, rules.given_back(before, now, started=7))
        assert (given_back.begun, given_back.planned) == (7, planned)
        assert not rules.too_late(before._replace(progress=given_back), policy, now)
        if not late:
            continue
        progress = _read(before, rules.misfired(before, policy, now))
        missed = [instant for instant in range(planned, 99, 3) if now - instant > grace]
        assert (progress.planned, progress.skipped) == (missed[-1] + 3, len(missed))
        assert (progress.outcome, progress.failures) == (Outcome.SKIPPED, 0)
        for paused, triggered in product((False, True), (None, 9)):
            pending = Pending(paused=paused, triggered=triggered)
            wanted = _running(planned=planned, pending=None if pending == Pending() else pending)
            current = read_after(wanted, rules.misfired(wanted, policy, now))
            if triggered is not None:
                assert (current.record.due_at, current.progress.triggered) == (9, 9)
            else:
                state = State.PAUSED if paused else State.SCHEDULED
                assert current.record.state == state
        once = _running(at(planned), planned=planned)
        kept = read_after(once, rules.misfired(once, policy, now))
        assert (kept.record.state, kept.progress.skipped) == (State.FINISHED, 1)
        replaced = Pending(dumps(NEW), "1 []", 14, "replaced")
        wanted = _running(planned=planned, pending=replaced)
        assert _is_promoted(wanted, read_after(wanted, rules.misfired(wanted, policy, now)).record)


def test_with_jitter_nothing_is_skipped_that_may_still_be_in_time() -> None:
    for interval, jitter, now, grace in product((3, 9), (2, 5), range(14, 30), (1, 4)):
        spread = timedelta(microseconds=jitter)
        before = _running(every(interval).with_jitter(spread), planned=8)
        if not rules.too_late(before, Policy(misfire_grace=grace), now):
            continue
        progress = _read(before, rules.misfired(before, Policy(misfire_grace=grace), now))
        # Each may wait for as long as its jitter, but not beyond the next one.
        wait = min(interval, jitter)
        late = [planned for planned in range(8, 99, interval) if now - planned - wait > grace]
        count = max(len(late), 1)
        assert (progress.planned, progress.skipped) == (8 + count * interval, count)
        once = _running(at(8).with_jitter(spread), planned=8)
        if rules.too_late(once, Policy(misfire_grace=grace), now):
            kept = read_after(once, rules.misfired(once, Policy(misfire_grace=grace), now))
            assert (kept.record.state, kept.progress.skipped) == (State.FINISHED, 1)


def test_what_came_due_during_a_run_is_skipped_where_it_may_not_overlap() -> None:
    overlap = Policy(skip_overlap=True)
    for started, begun, now in product((8, 9, 12), (None, 8, 12), (9, 11, 12, 15)):
        before = _running(begun=begun)
        ran = (started, now)
        since = started if begun is None else begun
        progress = _read(before, rules.succeeded(before, overlap, now, ran))
        following = 11
        if following <= now and following > since:
            missed = range(following, now + 1, 3)
            assert (progress.planned, progress.skipped) == (missed[-1] + 3, len(missed))
        else:
            assert (progress.planned, progress.skipped) == (following, 0)
        assert progress.last == f"{started}+{max(now - started, 0)}"
        assert _read(before, rules.succeeded(before, NONE, now, ran)).skipped == 0
        failed = _read(before, rules.failed(before, overlap, now, NO, ran))
        assert failed.begun == since
        assert _read(before, rules.failed(before, NONE, now, NO, ran)).begun == begun
        assert _read(before, rules.failed(before, overlap, now, NO)).begun == begun
        assert _read(before, rules.succeeded(before, overlap, now)).skipped == (
            0 if begun is None or not begun < following <= now else (now - following) // 3 + 1
        )


def test_attempts_are_counted_with_those_that_have_no_outcome() -> None:
    for failures, unfinished, limit in product((0, 1, 2), (1, 2, 3), (None, 1, 2, 3)):
        before = _running(unfinished=unfinished, failures=failures, error="e" * failures or None)
        made = failures + unfinished - 1
        assert rules.attempt_of(before) == made + 1
        assert rules.too_late(before, Policy(misfire_grace=1), NOW) is (made == 0)
        told = rules.previous_error(before)
        if unfinished > 1:
            assert told == rules.NO_OUTCOME
        else:
            assert told == ("e" * failures or None)
        found = rules.too_many(before, Policy(attempts=limit), NOW)
        if limit is None or not made or made < limit:
            assert found is None
        else:
            assert found is not None
            assert (found.final, found.free) == (True, True)
            assert ("e" * failures in found.error) is True
            assert (rules.NO_OUTCOME in found.error) is (unfinished > 1)
            progress = _with_failure_of(before, found)
            assert progress.failures == made
        within = rules.too_many(before, Policy(attempts=9, within=1), NOW)
        assert (within is not None) is (made > 0)
        assert rules.too_many(before, Policy(attempts=9, within=2), NOW) is None
        renewed = before._replace(progress=before.progress._replace(renewed=9))
        assert rules.too_many(renewed, Policy(attempts=9, within=1), NOW) is None


def test_a_failure_of_which_no_error_is_known_is_told_as_one_without_an_outcome() -> None:
    found = rules.too_many(_running(failures=1), Policy(attempts=1), NOW)
    assert found is not None
    assert found.error == rules.NO_OUTCOME
    lost = f"Attempt 2: {rules.NO_OUTCOME}"
    # An error of before is told only if it belongs to the attempts that are counted.
    for failures, error, told in (
        (0, "e", f"Attempt 1: {rules.NO_OUTCOME}"),
        (1, None, lost),
        (1, "e", f"{lost}; before that: e"),
    ):
        before = _running(unfinished=2, failures=failures, error=error)
        found = rules.too_many(before, Policy(attempts=1), NOW)
        assert found is not None
        assert found.error == told


def _with_failure_of(before: Reading, failure: Failure) -> Progress:
    return _read(before, rules.exhausted(before, Policy(exhausted=Exhausted.PARK), NOW, failure))


def test_a_retry_after_the_last_instant_is_too_late() -> None:
    for due_at, within in product((9, 10, 11), (None, 1, 2, 3)):
        late = within is not None and due_at > 8 + within
        assert rules.last_chance(_running(), Policy(within=within), due_at) is late
        renewed = within is not None and due_at > 9 + within
        assert rules.last_chance(_running(renewed=9), Policy(within=within), due_at) is renewed


def test_a_failure_with_a_delay_is_retried_then() -> None:
    for before, policy in product(records(State.RUNNING), (NONE, COMMIT)):
        failure = NO._replace(delay=5)
        if _replacement(before) or _requested(before).paused:
            continue
        current = read_after(before, rules.failed(before, policy, NOW, failure))
        assert (current.record.state, current.record.due_at) == (State.RETRYING, NOW + 5)
        free = read_after(before, rules.failed(before, policy, NOW, failure._replace(free=True)))
        assert free.progress.failures == _counted(before) - 1


def test_what_says_that_there_is_nothing_to_do_is_done_and_shown_as_skipped() -> None:
    before = _running(skipped=2)
    progress = _read(before, rules.skipped(before, NONE, NOW, "nothing"))
    found = (progress.planned, progress.skipped, progress.error, progress.outcome)
    assert found == (11, 3, "nothing", Outcome.SKIPPED)


# Parked records.


def test_what_is_parked_is_run_again_with_all_attempts_or_dropped() -> None:
    for before in records(*State):
        record, schedule, old = before
        rerun, dropped = rules.rerun(before, NOW), rules.dropped(before, NONE, NOW)
        if record.state != State.PARKED:
            assert (rerun, dropped) == (None, None)
            continue
        assert rerun is not None
        assert dropped is not None
        current = read_after(before, rerun)
        progress = current.progress
        assert (current.record.state, current.record.due_at) == (State.SCHEDULED, NOW)
        assert (progress.failures, progress.renewed) == (0, NOW)
        lost = old.occurrence is None
        assert progress.triggered == (NOW if lost else old.triggered)
        assert progress.planned == (schedule.next(NOW) if lost else old.planned)
        other = rules.rerun(before, NOW, "1 [1]")
        assert other is not None
        changed = read_after(before, other).record
        assert changed == current.record._replace(args="1 [1]", version=changed.version)
        following = old.planned
        if old.triggered is None:
            following = schedule.next(NOW) if lost else schedule.following(old.planned or 0)
        if dropped is DELETE:
            assert following is None
            continue
        after_it = read_after(before, dropped)
        assert after_it.progress.planned == following
        assert after_it.progress.failures == 0
        if _requested(before).schedule is None:
            assert after_it.progress.error == (old.error or "parked")


# Clocks that were ahead, and records that are behind.


def test_what_a_clock_that_was_ahead_has_planned_is_planned_from_now() -> None:
    edge = NOW + CLOCK_ERROR_MAX
    upcoming = EVERY.next(edge)
    assert upcoming is not None
    for planned, triggered in product((edge, edge + 1, upcoming, FAR), (None, 9)):
        before = _running(planned=planned, triggered=triggered)
        done = _read(before, rules.succeeded(before, NONE, NOW))
        if triggered is None:
            wrong = planned > edge
            assert done.planned == (NOW + 3 if wrong else planned + 3)
            assert _read(before, rules.advanced(before, NONE, NOW)).planned == planned + 3
        else:
            wrong = planned > edge and planned > upcoming
            assert done.planned == (NOW + 3 if wrong else planned)
            assert _read(before, rules.advanced(before, NONE, NOW)).planned == planned


def test_a_retry_or_a_trigger_that_a_clock_ahead_has_set_is_due_now() -> None:
    far = NOW + rules.RETRY_DELAY_MAX
    edge = NOW + CLOCK_ERROR_MAX
    for state, due_at, triggered in product(
        (State.SCHEDULED, State.RETRYING), (12, edge + 1, far, far + 1), (None, 9, edge, edge + 1)
    ):
        if state is State.SCHEDULED and triggered is None:
            continue
        progress = Progress(12, "old", triggered)
        record = Record(
            *(STATIC_GROUP, "k", due_at, 5, "t", state, 0),
            *(dumps(EVERY), "", dump_progress(progress)),
        )
        change = rules.replanned(record, EVERY, NOW)
        retry = state is State.RETRYING and due_at > far
        trigger = triggered is not None and triggered > edge and due_at > edge
        if state is State.SCHEDULED and due_at > far and triggered == 9:
            assert change is not None  # its row was edited
            assert (change.due_at, change.state) == (9, state)
            continue
        if not retry and not trigger:
            assert change is None
            continue
        assert change is not None
        assert (change.due_at, change.state) == (NOW, state)
        if not retry:
            assert load_progress(change.progress or "").triggered == NOW


MINUTE = CLOCK_ERROR_MAX
DAY = 1_440 * MINUTE
LEASE = 10


@pytest.mark.parametrize("unfinished_attempts", [0, 1])
@pytest.mark.parametrize(
    ("version", "end", "lease", "in_time"),
    [
        # Written by a clock that was an hour ahead: the lease of its holder begins anew.
        (60 * MINUTE, 60 * MINUTE + LEASE, LEASE, NOW + LEASE),
        (60 * MINUTE, 60 * MINUTE + 3 * LEASE, LEASE, NOW + 3 * LEASE),
        (60 * MINUTE, 60 * MINUTE + LEASE, 3 * LEASE, NOW + 3 * LEASE),
        (NOW + MINUTE + 1, NOW + MINUTE + 1 + LEASE, LEASE, NOW + LEASE),
        # Clocks of workers differ, and other releases have other leases.
        (NOW + MINUTE, NOW + MINUTE + LEASE, LEASE, None),
        (NOW, NOW + 5 * MINUTE, LEASE, None),
        # The version was ahead already, and tells nothing.
        (60 * MINUTE, NOW + LEASE, LEASE, None),
        (60 * MINUTE, 60 * MINUTE, LEASE, None),
        (90 * DAY, NOW + 30 * DAY, LEASE, None),
        (90 * DAY, NOW + 30 * DAY + 1, LEASE, NOW + LEASE),
        (NOW, NOW + 30 * DAY + 1, LEASE, NOW + LEASE),
        (NOW, NOW + 40 * DAY, 40 * DAY, None),
        # A long lease that was put right already is not put off by each start.
        (2 * MINUTE, NOW + 60 * MINUTE, 60 * MINUTE, None),
        (2 * MINUTE, NOW + 61 * MINUTE, 60 * MINUTE, None),
        (2 * MINUTE, NOW + 61 * MINUTE + 1, 60 * MINUTE, NOW + 60 * MINUTE),
    ],
)
def test_a_lease_that_a_clock_ahead_has_counted_begins_anew_at_a_start(
    unfinished_attempts: int, version: int, end: int, lease: int, in_time: int | None
) -> None:
    progress = Progress(12, "old", failures=1 - unfinished_attempts)
    record = Record(
        *(STATIC_GROUP, "k", end, version, "t", State.RUNNING, unfinished_attempts),
        *(dumps(EVERY), "", dump_progress(progress)),
    )
    change = rules.replanned(record, EVERY, NOW, lease=lease)
    if in_time is None:
        assert change is None
        return
    assert change == Patch(in_time, State.RUNNING, unfinished_attempts)
    # The next start finds it as it should be.
    new = record._replace(due_at=in_time, version=version + 1)
    assert rules.replanned(new, EVERY, NOW + 1, lease=lease) is None
    # A changed schedule waits for the end of the run, as always.
    other = every(7)
    change = rules.replanned(record, other, NOW, lease=lease)
    assert change is not None
    assert (change.due_at, change.state) == (in_time, State.RUNNING)
    pending = load_progress(change.progress or "").pending
    assert pending is not None
    assert pending.schedule == dumps(other)


@pytest.mark.parametrize("state", [state for state in State if state != State.RUNNING])
def test_only_what_runs_has_a_lease_that_may_begin_anew(state: State) -> None:
    for due_at in (None, 60 * MINUTE + LEASE, LATEST_INSTANT + 1):
        record = Record(
            *(STATIC_GROUP, "k", due_at, 60 * MINUTE, "t", state, 0),
            *(dumps(EVERY), "", dump_progress(Progress(12, "old"))),
        )
        assert rules.lease_in_time(record, NOW, LEASE) is None
    # What has no instant that a row can have is due at once instead.
    for edited in (None, LATEST_INSTANT + 1):
        running = record._replace(due_at=edited, state=State.RUNNING)
        assert rules.lease_in_time(running, NOW, LEASE) is None


def test_a_retry_that_waits_no_longer_than_a_rare_schedule_does_is_left_alone() -> None:
    rare = every(3 * rules.RETRY_DELAY_MAX)
    upcoming = rare.next(NOW + CLOCK_ERROR_MAX)
    assert upcoming is not None
    assert upcoming > NOW + rules.RETRY_DELAY_MAX
    for due_at in (upcoming, upcoming + 1, None):
        record = Record(
            *(STATIC_GROUP, "k", due_at, 5, "t", State.RETRYING, 0),
            *(dumps(rare), "", dump_progress(Progress(12, "old"))),
        )
        wrong = due_at == upcoming + 1
        assert rules.retries_too_late(record, rare, NOW) is wrong
        edited = due_at is None
        assert (rules.replanned(record, rare, NOW) is not None) is (wrong or edited)


def test_a_schedule_that_has_ended_contradicts_no_plan() -> None:
    for state in (State.SCHEDULED, State.RETRYING):
        record = Record(
            *(STATIC_GROUP, "k", FAR, 5, "t", state, 0),
            *(dumps(OVER), "", dump_progress(Progress(FAR, "old"))),
        )
        assert not rules.contradicts(record, read(record).progress, OVER, NOW)


def test_a_schedule_that_was_not_known_is_filled_in_and_the_occurrence_kept() -> None:
    for state, planned in product((State.SCHEDULED, State.PAUSED, State.RUNNING), (8, 16, 90)):
        due_at = {State.SCHEDULED: planned, State.PAUSED: None, State.RUNNING: LEASE_END}[state]
        record = Record(
            *(STATIC_GROUP, "k", due_at, 5, "t", state, int(state is State.RUNNING)),
            *(rules.UNKNOWN_SCHEDULE, "", dump_progress(Progress(planned, "old"))),
        )
        change = rules.replanned(record, EVERY, NOW)
        assert isinstance(change, Put)
        assert change == Put(
            *(due_at, state, "t", record.unfinished_attempts, dumps(EVERY), "", record.progress)
        )


def test_what_collapses_is_skipped_whether_or_not_it_overlaps() -> None:
    policy = Policy(fast_forward=True, skip_overlap=True)
    for started in (9, 14, 20):
        progress = _read(_running(), rules.succeeded(_running(), policy, 21, (started, 21)))
        assert (progress.planned, progress.skipped) == (23, 4)


def test_a_pause_without_an_end_keeps_its_reason() -> None:
    pause = Pause(None, "why")
    before = next(records(State.SCHEDULED))
    change = rules.paused(before, NOW, pause)
    assert change is not None
    rests = read_after(before, change)
    assert (rests.record.state, rests.record.due_at) == (State.PAUSED, None)
    assert rests.progress.pause == pause


def test_a_static_record_that_cannot_be_read_is_planned_anew_only_once_it_is_parked() -> None:
    for state, progress in product(
        (State.SCHEDULED, State.RETRYING, State.RUNNING, State.PARKED),
        ("garbage", dump_progress(Progress(None, "old", error="cannot be read"))),
    ):
        due_at = None if state is State.PARKED else 12
        record = Record(
            *(STATIC_GROUP, "k", due_at, 171, "t", state, 0, dumps(EVERY), "", progress)
        )
        change = rules.replanned(record, EVERY, NOW)
        if state is not State.PARKED:
            assert change is None
            continue
        assert isinstance(change, Put)
        incarnation = "ab" if progress == "garbage" else "old"
        assert change == Put(
            *(13, State.SCHEDULED, None, 0, dumps(EVERY), ""),
            dump_progress(Progress(13, incarnation)),
        )


def test_a_trigger_of_a_record_that_runs_is_left_to_its_holder() -> None:
    for state in (State.RUNNING, State.SCHEDULED):
        record = Record(
            *(STATIC_GROUP, "k", FAR, 5, "t", state, int(state is State.RUNNING)),
            *(dumps(EVERY), "", dump_progress(Progress(12, "old", FAR))),
        )
        change = rules.replanned(record, EVERY, NOW)
        assert (change is None) is (state is State.RUNNING)


def test_a_triggered_run_leaves_the_last_occurrence_where_it_is() -> None:
    before = _running(OVER, planned=FAR, triggered=9)
    assert _read(before, rules.succeeded(before, NONE, NOW)).planned == FAR


def test_what_is_paused_and_gets_a_schedule_that_has_ended_is_finished() -> None:
    wanted = WANTED._replace(schedule=OVER)
    for before in records(State.PAUSED):
        change = rules.replaced(before.record, wanted, NOW)
        assert change == rules.created(wanted, NOW)
        assert (change.state, change.due_at) == (State.FINISHED, None)


def test_a_new_plan_that_begins_with_the_overdue_occurrence_takes_its_place() -> None:
    for planned, promoted in ((8, True), (9, False)):
        pending = Pending(dumps(NEW), "1 []", planned, "old")
        before = _running(planned=8, triggered=9, pending=pending)
        current = read_after(before, rules.succeeded(before, NONE, NOW))
        assert current.progress.planned == 8
        assert (current.record.schedule == dumps(NEW)) is promoted
        assert (current.progress.pending is None) is promoted


def test_a_record_that_is_behind_is_due_a_little_later_than_now() -> None:
    interval = 1_000
    now = 2 * rules.BEHIND_MIN
    for behind, pace in product((0, 1, rules.BEHIND_MIN, rules.BEHIND_MIN + 1), (0, 50, 500)):
        planned = now - behind
        before = _running(every(interval), planned=planned - interval)
        for policy, failure in product((Policy(pace=pace),), (None, NO)):
            change = (
                rules.succeeded(before, policy, now)
                if failure is None
                else rules.failed(before, policy._replace(failure_mode=FailureMode.COMMIT), now, NO)
            )
            paced = pace and behind >= rules.BEHIND_MIN
            assert change.due_at == (now + min(pace, interval // 10) if paced else planned)
            assert isinstance(change, Patch)
            assert load_progress(change.progress or "").planned == planned


def test_no_task_runs_where_a_failure_left_the_lease() -> None:
    for before in records(*State):
        record = before.record
        left = record.state == State.RUNNING and not record.unfinished_attempts
        assert rules.failed_under_lease(record) is left


def test_the_error_of_the_attempt_before_is_told_and_none_of_an_older_run() -> None:
    for triggered, failures, started, outcome, renewed in product(
        (None, 9), (0, 1), (None, 8, 9, 10), (None, Outcome.POSTPONED), (None, 8, 9, 10)
    ):
        before = _running(
            triggered=triggered,
            failures=failures,
            last=None if started is None else f"{started}+1",
            outcome=outcome,
            renewed=renewed,
            error="e",
        )
        since = triggered or 0
        postponed = outcome is not None and (started or 0) >= since
        again = renewed is not None and renewed > since
        told = "e" if failures or postponed or again else None
        assert rules.previous_error(before) == told, before.progress
        lost = before._replace(record=before.record._replace(unfinished_attempts=2))
        assert rules.previous_error(lost) == rules.NO_OUTCOME
