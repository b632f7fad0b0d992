"""The small rules that others are made of, each with every small input."""

from __future__ import annotations

from datetime import timedelta
from itertools import product
from typing import Any, Final

import pytest
from tests.simulation.test_small_records import COMMIT, EVERY, LEASE_END, NOW
from tests.simulation.workers import EPOCH, at, every

from pyncette.engine import rules
from pyncette.engine.rules import (
    CLOCK_ERROR_MAX,
    RETRY_DELAY_MAX,
    Failure,
    Policy,
    Verdict,
    Wanted,
)
from pyncette.model import Exhausted, FailureMode, Outcome
from pyncette.schedule import Every, Inherited, Schedule, dumps
from pyncette.store.record import (
    DELETE,
    LATEST_INSTANT,
    STATIC_GROUP,
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
)

JITTERED: Final = EVERY.with_jitter(timedelta(microseconds=5))
AT_ONCE: Final = Every(timedelta(microseconds=3), at_once=True)
INSTANTS: Final = (None, 0, 3, 8, 9, 12)


def _held(
    schedule: Schedule = EVERY,
    state: State = State.RUNNING,
    unfinished: int = 1,
    group: str = "g",
    **fields: object,
) -> Reading:
    progress = Progress(8, "old")._replace(**fields)  # type: ignore[arg-type]
    due_at = LEASE_END if state is State.RUNNING else None
    record = Record(
        *(group, "k", due_at, 5, "t", state, unfinished),
        *(dumps(schedule), "1 {}", dump_progress(progress)),
    )
    return Reading(record, schedule, progress)


@pytest.mark.parametrize("planned", INSTANTS)
def test_an_occurrence_is_due_when_it_is_planned_or_after_its_jitter(planned: int | None) -> None:
    identity = ("g", "k")
    assert rules._due(None, identity, planned) == planned
    assert rules._due(EVERY, identity, planned) == planned
    late = None if planned is None else JITTERED.due(planned, *identity)
    assert rules._due(JITTERED, identity, planned) == late
    for triggered in (None, 9):
        before = _held(JITTERED, planned=planned, triggered=triggered)
        due_at = rules._due_of(JITTERED, before.record, before.progress)
        assert due_at == (late if triggered is None else 9)


def test_a_new_record_is_due_after_the_jitter_of_its_first_occurrence() -> None:
    waits = [JITTERED.due(NOW + 3, "g", f"k{number}") for number in range(20)]
    made = [
        rules.created(Wanted(JITTERED, "1 {}", "new", ("g", f"k{number}")), NOW).due_at
        for number in range(20)
    ]
    assert made == waits
    assert len(set(waits)) > 1
    over = EVERY.between(None, EPOCH).with_jitter(timedelta(microseconds=5))
    put = rules.created(Wanted(over, "1 {}", "new", ("g", "k")), NOW)
    assert (put.due_at, put.state) == (None, State.FINISHED)


def test_the_sooner_of_two_instants_is_kept_and_one_that_is_missing_is_not() -> None:
    for one, other in product(INSTANTS, repeat=2):
        known = [instant for instant in (one, other) if instant is not None]
        assert rules._soonest(one, other) == min(known, default=None)


def test_a_schedule_that_is_given_again_begins_anew_only_if_it_is_no_interval_from_now() -> None:
    for schedule, given in product((EVERY, AT_ONCE, at(7), at(12)), repeat=2):
        current = _held(given).record
        same = schedule is given
        first = rules._first_again(schedule, current, NOW)
        # What runs at once does so when it is new.
        if schedule is AT_ONCE and same:
            assert first == schedule.next(NOW) != schedule.first(NOW)
        else:
            assert first == schedule.first(NOW)


def test_an_occurrence_came_due_after_its_jitter_or_when_a_user_asked_for_it_again() -> None:
    for schedule, triggered, renewed in product((EVERY, JITTERED), (None, 9), (None, 5, 8, 20)):
        reading = _held(schedule, triggered=triggered, renewed=renewed)
        due_at = rules._due_of(schedule, reading.record, reading.progress)
        assert due_at is not None
        assert rules.came_due(reading) == (due_at if renewed is None else max(due_at, renewed))
    assert rules.came_due(_held(planned=None)) is None


def test_only_what_nobody_has_begun_or_asked_for_is_claimed_early() -> None:
    plans = (None, NOW, NOW + CLOCK_ERROR_MAX, NOW + CLOCK_ERROR_MAX + 1)
    for planned, triggered, unfinished, (name, value) in product(
        plans,
        (None, 9),
        (1, 2),
        (("failures", 0), ("failures", 1), ("begun", 3), ("renewed", 3), ("outcome", "postponed")),
    ):
        fields: dict[str, Any] = {name: Outcome.POSTPONED if name == "outcome" else value}
        reading = _held(planned=planned, triggered=triggered, unfinished=unfinished, **fields)
        begun = unfinished > 1 or (name, value) != ("failures", 0)
        ahead = planned is not None and planned > NOW + CLOCK_ERROR_MAX
        assert rules.early(reading, NOW) is (ahead and triggered is None and not begun)


def test_what_was_claimed_early_is_put_back_until_its_occurrence_is_due() -> None:
    planned = NOW + 2 * CLOCK_ERROR_MAX + 9
    assert JITTERED.due(planned, "g", "k") > planned
    replacement = Pending(schedule=dumps(at(7)), args="1 []", planned=7, incarnation="new")
    for schedule, unfinished, failures, pending in product(
        (EVERY, JITTERED),
        (1, 2),
        (0, 1),
        (None, Pending(paused=True), replacement),
    ):
        reading = _held(
            schedule, planned=planned, unfinished=unfinished, failures=failures, pending=pending
        )
        change = rules.put_back(reading, NOW)
        given_back = rules.given_back(reading, NOW)
        if pending is not None or unfinished > 1 or failures:
            assert change == given_back
        else:
            due_at = schedule.due(planned, "g", "k")
            assert change == Patch(due_at, State.SCHEDULED, 0)


def test_what_should_run_and_has_no_due_time_or_one_that_no_rule_gives_is_stranded() -> None:
    for schedule, state, occurrence in product((EVERY, JITTERED), State, (None, 8, NOW + 50)):
        latest = NOW if occurrence is None else max(occurrence, NOW)
        if schedule is JITTERED:
            latest += 5
        for due_at in (
            *(None, NOW, latest + RETRY_DELAY_MAX, latest + RETRY_DELAY_MAX + 1),
            *(LATEST_INSTANT, LATEST_INSTANT + 1),
        ):
            reading = _held(schedule, state, planned=occurrence)
            reading = reading._replace(record=reading.record._replace(due_at=due_at))
            runs = state in (State.SCHEDULED, State.RETRYING, State.RUNNING)
            never = due_at is None or due_at > LATEST_INSTANT
            late = (
                state is State.SCHEDULED
                and occurrence is not None
                and due_at is not None
                and due_at > latest + RETRY_DELAY_MAX
            )
            assert rules.stranded(reading, NOW) is (runs and (never or late))


def test_a_lease_that_no_datetime_shows_was_edited_and_counted_by_no_clock() -> None:
    for due_at, counted in ((LATEST_INSTANT, True), (LATEST_INSTANT + 1, False)):
        record = _held().record._replace(due_at=due_at)
        assert rules.lease_in_time(record, NOW, 7) == (NOW + 7 if counted else None)


def test_a_schedule_that_has_ended_ends_its_backlog() -> None:
    assert rules._running_since(Progress(None, "old", backlog=5, begun=3), None) == 3
    change = rules._next_occurrence(_held(backlog=5), COMMIT, NOW, None, None, None, keep=True)
    assert isinstance(change, Patch)
    assert load_progress(change.progress or "").backlog is None


def test_a_claim_holds_only_what_it_has_seen_running() -> None:
    held = _held()
    for state, unfinished, token, planned in product(State, (0, 1), ("t", "other"), (8, 11)):
        current = _held(state=state, unfinished=unfinished, planned=planned).record
        current = current._replace(token=token)
        expected = Verdict.SETTLED
        if token != "t":
            expected = Verdict.LOST
        elif state is State.RUNNING and unfinished and planned == 8:
            expected = Verdict.HELD
        assert rules.verdict(current, held) is expected
    assert rules.verdict(None, held) is Verdict.LOST


# Failures.


@pytest.mark.parametrize("mode", FailureMode)
@pytest.mark.parametrize("delay", [None, 0, 4])
def test_a_failure_that_says_when_is_retried_then_whatever_the_mode(
    mode: FailureMode, delay: int | None
) -> None:
    policy = Policy(failure_mode=mode, retry_after=7)
    change = rules.failed(_held(), policy, NOW, Failure("no", delay=delay))
    assert isinstance(change, Patch)
    if delay is not None:
        assert (change.state, change.due_at) == (State.RETRYING, NOW + delay)
    elif mode is FailureMode.UNLOCK:
        assert (change.state, change.due_at) == (State.RETRYING, NOW + 7)
    elif mode is FailureMode.NONE:
        assert (change.state, change.due_at) == (State.RUNNING, LEASE_END)
    else:
        assert (change.state, change.due_at) == (State.SCHEDULED, 11)


@pytest.mark.parametrize("grace", [None, 5])
@pytest.mark.parametrize("overlap", [False, True])
def test_where_it_matters_a_failure_tells_when_the_first_attempt_began(
    grace: int | None, overlap: bool
) -> None:
    policy = Policy(failure_mode=FailureMode.UNLOCK, retry_after=7)
    policy = policy._replace(misfire_grace=grace, skip_overlap=overlap)
    for begun, triggered, ran in product((None, 6), (None, 9), (None, (8, 9))):
        before = _held(begun=begun, triggered=triggered)
        change = rules.failed(before, policy, NOW, Failure("no"), ran)
        assert isinstance(change, Patch)
        notes = (grace is not None or overlap) and ran is not None
        expected = 8 if notes and begun is None and triggered is None else begun
        assert load_progress(change.progress or "").begun == expected


@pytest.mark.parametrize("mode", FailureMode)
@pytest.mark.parametrize("exhausted", [None, *Exhausted])
@pytest.mark.parametrize("schedule", [EVERY, at(8)])
def test_what_follows_the_last_attempt_is_what_the_policy_says(
    mode: FailureMode, exhausted: Exhausted | None, schedule: Schedule
) -> None:
    policy = Policy(failure_mode=mode, exhausted=exhausted)
    change = rules.exhausted(_held(schedule), policy, NOW, Failure("no", final=True))
    goes_on = schedule is EVERY
    commits = exhausted is None and mode is FailureMode.COMMIT
    if not goes_on and commits:
        assert change is DELETE
        return
    state = change.state  # type: ignore[union-attr]
    if exhausted in (None, Exhausted.CONTINUE) and (goes_on or commits):
        assert state == State.SCHEDULED
    elif exhausted is Exhausted.PAUSE:
        assert state == State.PAUSED
    else:
        assert state == State.PARKED


# Pauses and triggers.


PAUSES: Final = (None, Pause(14), Pause(20), Pause(None, "because"))


def test_a_pause_takes_the_place_of_another_one_but_not_of_itself() -> None:
    for before, said in product(PAUSES, PAUSES[1:]):
        assert said is not None
        reading = _held(state=State.PAUSED, unfinished=0, pause=before)
        change = rules.paused(reading, NOW, said)
        if said == before:
            assert change is None
            continue
        assert isinstance(change, Put)
        assert load_progress(change.progress).pause == said
        assert change.due_at == said.until


def test_what_is_resumed_forgets_its_pause_and_when_it_got_its_attempts() -> None:
    for pause, renewed, failures in product(PAUSES, (None, 3), (0, 1)):
        reading = _held(
            state=State.PAUSED, unfinished=0, pause=pause, renewed=renewed, failures=failures
        )
        change = rules.resumed(reading, NOW)
        assert isinstance(change, Patch)
        if pause is None and renewed is None:
            assert change.progress is None
            continue
        assert change.progress is not None
        progress = load_progress(change.progress)
        assert (progress.pause, progress.renewed) == (None, renewed and NOW)


def test_a_triggered_run_is_told_from_one_of_this_instant() -> None:
    for triggered, waiting, started, now in product(INSTANTS, INSTANTS, INSTANTS, (0, 8, 9, 20)):
        progress = Progress(
            8,
            "old",
            triggered,
            pending=None if waiting is None else Pending(triggered=waiting),
            last=None if started is None else f"{started}+1",
        )
        last = max(instant or 0 for instant in (triggered, waiting, started))
        # Only what lies as far ahead as clocks may differ is a run of this instant.
        assert rules._trigger_instant(progress, now) == (last + 1 if now <= last else now)
    far = now + rules._TRIGGER_SHIFT_MAX
    for ahead, expected in ((far - 1, far), (far, now)):
        progress = Progress(8, "old", ahead)
        assert rules._trigger_instant(progress, now) == expected


def test_a_run_that_waits_for_a_triggered_one_keeps_when_it_was_begun() -> None:
    for triggered, begun, started, unfinished, failures in product(
        (None, 9), (None, 6), (None, 7), (0, 1), (0, 1)
    ):
        progress = Progress(
            8,
            "old",
            triggered,
            failures,
            begun=begun,
            last=None if started is None else f"{started}+1",
        )
        after = rules._triggered(progress, unfinished, 12)
        assert (after.triggered, after.failures) == (12, 0)
        expected = begun
        if begun is None and triggered is None and rules._begun(progress, unfinished):
            expected = 12 if started is None else started
        assert after.begun == expected


def test_what_is_parked_and_run_again_has_begun_only_if_it_waits_for_a_triggered_run() -> None:
    for triggered, begun in product((None, 9), (None, 6)):
        reading = _held(state=State.PARKED, triggered=triggered, begun=begun, failures=2)
        change = rules.rerun(reading, NOW)
        assert isinstance(change, Patch)
        progress = load_progress(change.progress or "")
        assert progress.begun == (None if triggered is None else begun)
        assert (progress.failures, progress.renewed) == (0, NOW)


def test_an_occurrence_that_was_renewed_before_a_trigger_stays_so() -> None:
    for renewed, triggered in product(INSTANTS, INSTANTS):
        progress = Progress(8, "old", triggered, renewed=renewed)
        later = triggered is not None and renewed is not None and renewed > triggered
        assert rules._renewed_before(progress) == (None if later else renewed)


# What follows an occurrence.


@pytest.mark.parametrize("group", ["g", STATIC_GROUP])
@pytest.mark.parametrize("schedule", [EVERY, at(8), EVERY.between(None, EPOCH)])
@pytest.mark.parametrize("pending", [None, Pending(paused=True)])
def test_only_the_record_of_an_instance_is_gone_when_nothing_follows(
    group: str, schedule: Schedule, pending: Pending | None
) -> None:
    reading = _held(schedule, group=group, pending=pending)
    change = rules.succeeded(reading, COMMIT, NOW)
    if schedule is EVERY:
        assert change is not DELETE
    else:
        assert (change is DELETE) is (group == "g")


@pytest.mark.parametrize("begun", [None, 8, 9])
@pytest.mark.parametrize("ran", [None, 8, 9])
@pytest.mark.parametrize("following", [8, 9, 10])
def test_what_comes_due_after_the_first_attempt_began_overlaps(
    begun: int | None, ran: int | None, following: int
) -> None:
    progress = Progress(5, "old", begun=begun)
    given = None if ran is None else (ran, 12)
    for forward, overlap in product((False, True), repeat=2):
        policy = Policy(fast_forward=forward, skip_overlap=overlap)
        since = begun if begun is not None else ran
        overlaps = overlap and since is not None and following > since
        assert rules._skips(policy, progress, following, given) is (forward or overlaps)


def test_what_comes_due_after_the_first_run_of_its_backlog_overlaps() -> None:
    policy = Policy(skip_overlap=True)
    for planned, backlog, begun, started, now in product(
        (2, 5, 8), (None, 4, 5, 9), (None, 9), (None, 10, 12), (4, 6, 8, 12, 20)
    ):
        reading = _held(planned=planned, backlog=backlog, begun=begun)
        ran = None if started is None else (started, now)
        since = started if begun is None else begun
        if backlog is not None and planned <= backlog:
            since = backlog
        following, missed = planned + 3, len(range(planned + 3, now + 1, 3))
        overlaps = bool(missed) and since is not None and following > since
        left = following + 3 * missed if overlaps else following
        keeps = since if missed and not overlaps else None
        # Also if it has failed for good, which is written in another way.
        for failure in (None, Failure("no")):
            change = rules._occurrence_done(reading, policy, now, failure, ran)
            assert isinstance(change, Patch)
            progress = load_progress(change.progress or "")
            assert (progress.planned, progress.skipped) == (left, missed if overlaps else 0)
            assert (progress.backlog, progress.begun) == (keeps, None)
        plain = rules.succeeded(reading, Policy(), now, ran)
        assert isinstance(plain, Patch)
        assert load_progress(plain.progress or "").backlog is None


def test_a_triggered_run_leaves_the_backlog_and_a_pause_or_parking_ends_it() -> None:
    held: dict[str, Any] = {"planned": 5, "backlog": 8}
    no = Failure("no")
    policy = Policy(skip_overlap=True)
    change = rules.succeeded(_held(triggered=9, **held), policy, NOW, (9, 10))
    assert isinstance(change, Patch)
    assert load_progress(change.progress or "").backlog == 8
    failed = rules.failed(_held(**held), policy._replace(failure_mode=FailureMode.UNLOCK), NOW, no)
    assert isinstance(failed, Patch)
    assert load_progress(failed.progress or "").backlog == 8
    given_back = rules.given_back(_held(**held), NOW, started=9)
    assert isinstance(given_back, Patch)
    progress = load_progress(given_back.progress or "")
    assert (progress.backlog, progress.begun) == (8, 9)
    for ended in (
        rules.paused(_held(state=State.SCHEDULED, unfinished=0, **held), NOW),
        rules.succeeded(_held(pending=Pending(paused=True), **held), policy, NOW, (9, 10)),
        rules.failed(_held(pending=Pending(paused=True), **held), policy, NOW, no),
        rules.rerun(_held(state=State.PARKED, **held), NOW),
    ):
        assert isinstance(ended, Put | Patch)
        assert load_progress(ended.progress or "").backlog is None


def test_what_overlaps_with_a_backlog_is_skipped_with_the_last_of_it_that_is_too_late() -> None:
    for backlog, grace, now in product((None, 2, 4, 5, 8, 11), (0, 1, 4), (9, 11, 12, 16)):
        policy = Policy(skip_overlap=True, misfire_grace=grace)
        reading = _held(planned=2, backlog=backlog)
        instants = range(2, 40, 3)
        rest = [instant for instant in instants if now - instant <= grace]
        if backlog is not None and backlog >= 2 and rest[0] > backlog:
            rest = [instant for instant in instants if instant > now]
        for forward in (False, True):
            change = rules.misfired(reading, policy._replace(fast_forward=forward), now)
            assert isinstance(change, Patch)
            progress = load_progress(change.progress or "")
            if forward:
                rest = [instant for instant in instants if now - instant <= grace]
            assert (progress.planned, progress.skipped) == (rest[0], instants.index(rest[0]))
            behind = backlog is not None and rest[0] <= min(backlog, now)
            assert progress.backlog == (backlog if behind else None)


@pytest.mark.parametrize("at_most_once", [False, True])
def test_what_a_clock_ahead_has_planned_is_planned_from_now_when_its_run_has_ended(
    at_most_once: bool,
) -> None:
    for ahead, triggered in product((0, CLOCK_ERROR_MAX, CLOCK_ERROR_MAX + 1), (None, 9)):
        hour = every(3_600_000_000)
        reading = _held(hour, planned=NOW + ahead, triggered=triggered)
        change = rules._occurrence_done(reading, COMMIT, NOW, None, None, at_most_once)
        assert isinstance(change, Patch)
        planned = load_progress(change.progress or "").planned
        if triggered is not None:
            assert planned == NOW + ahead  # no later than its schedule allows
        elif ahead > CLOCK_ERROR_MAX and not at_most_once:
            assert planned == hour.next(NOW)
        else:
            assert planned == hour.following(NOW + ahead)


def test_an_instance_that_follows_a_default_takes_a_new_one_over_with_its_next_occurrence() -> None:
    old, new = Inherited(every(5)), Inherited(every(4))
    for inherited, known, failure in product((old, new), (old, new), (None, Failure("no"))):
        before = _held(known)
        reading = before._replace(schedule=inherited)
        policy = Policy(failure_mode=FailureMode.COMMIT)
        change = (
            rules.succeeded(reading, policy, NOW)
            if failure is None
            else rules.failed(reading, policy, NOW, failure)
        )
        following = inherited.following(8)
        assert change.due_at == following
        # The text is written only if it is another one.
        assert isinstance(change, Patch if inherited is known else Put)
        if isinstance(change, Put):
            assert change.schedule == dumps(inherited)
            assert (change.args, change.token) == ("1 {}", "t")


@pytest.mark.parametrize("group", ["g", STATIC_GROUP])
def test_a_default_that_has_ended_leaves_no_instance_behind(group: str) -> None:
    over = Inherited(EVERY.between(None, EPOCH))
    for known in (over, Inherited(every(5))):
        reading = _held(known, group=group)._replace(schedule=over)
        change = rules.succeeded(reading, COMMIT, NOW)
        assert (change is DELETE) is (group == "g")
        change = rules._go_on(reading, COMMIT, NOW, None, None, None)
        assert (change is DELETE) is (group == "g")
    # A request that waits is granted, whatever the default is now.
    waiting = Pending(schedule=dumps(every(6)), args="1 []", planned=14, incarnation="new")
    reading = _held(Inherited(every(5)), group=group, pending=waiting)
    change = rules.succeeded(reading._replace(schedule=Inherited(every(4))), COMMIT, NOW)
    assert isinstance(change, Put)
    assert (change.schedule, change.args, change.due_at) == (dumps(every(6)), "1 []", 14)
    # What is skipped to its end is kept, with what it is a trace of.
    forward = Policy(fast_forward=True)
    ending = Inherited(EVERY.between(None, EPOCH + timedelta(microseconds=10)))
    change = rules.succeeded(_held(ending, planned=3, group=group), forward, 50)
    assert isinstance(change, Patch)
    assert change.state == State.FINISHED
