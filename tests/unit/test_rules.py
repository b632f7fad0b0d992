"""Each rule about runs, one by one: what is there, what happens, what is there afterwards.

The plan is an occurrence every 10 from 10 on, unless said otherwise; it is 12, and what runs has
been claimed by "me", up to 20.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.simulation.model import written

from pyncette.engine import rules
from pyncette.engine.rules import Failure, Policy, Verdict, Wanted
from pyncette.model import Exhausted, FailureMode
from pyncette.schedule import At, Cron, Every, Inherited, NewerFormat, Schedule
from pyncette.schedule import dumps as dump_schedule
from pyncette.store import Write
from pyncette.store.record import (
    ANY,
    DELETE,
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

NOW = 12
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PAST = Cron("0 0 1 1 * 0 1970")
"""A plan without any occurrence left."""

UNREADABLE = "what is this"
NEWER = "2 of tomorrow"


def every(interval: int) -> Every:
    return Every(timedelta(microseconds=interval))


def at(instant: int) -> At:
    return At(EPOCH + timedelta(microseconds=instant))


def a_record(
    state: State = State.SCHEDULED,
    due_at: int | None = 10,
    *,
    planned: int | None = 10,
    schedule: Schedule | None = None,
    unfinished_attempts: int = 0,
    token: str | None = None,
    group: str = "g",
    text: str | None = None,
    **progress: Any,
) -> Record:
    if text is None:
        text = dump_progress(Progress(planned, "b0", **progress))
    plan_text = dump_schedule(schedule or every(10))
    return Record(group, "k", due_at, 1, token, state, unfinished_attempts, plan_text, "1 {}", text)


def running(due_at: int = 20, *, unfinished_attempts: int = 1, **columns: Any) -> Record:
    return a_record(
        State.RUNNING, due_at, unfinished_attempts=unfinished_attempts, token="me", **columns
    )


def after(record: Record, change: Change | None) -> Record:
    assert change is not None
    found, _ = written(record, Write("g", "k", change, ANY), NOW)
    assert found is not None
    return found


def progress_of(record: Record) -> Progress:
    return load_progress(record.progress)


WANTED = Wanted(every(5), '1 {"new":1}', "b1", ("g", "k"))
WANTED_PLAN = dump_schedule(WANTED.schedule)
REPLACEMENT = Pending(WANTED_PLAN, WANTED.args, 17, "b1")
NEW_PLAN = Pending(WANTED_PLAN, "1 {}", 17, "b0")
"""What a static task, whose record is not born again, is going on with."""

AT_ONCE = Policy()
SOON = Policy(failure_mode=FailureMode.UNLOCK, retry_after=3)
AS_DONE = Policy(failure_mode=FailureMode.COMMIT)
PARKS = Policy(exhausted=Exhausted.PARK)
NO = Failure("no")


# Whose it is.


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (running(20), True),
        (running(NOW + 1), True),
        (running(NOW), False),
        (running()._replace(due_at=None), False),
        (a_record(State.RETRYING, 20), False),
        (a_record(State.SCHEDULED, 20), False),
    ],
)
def test_a_record_is_held_while_it_runs_and_its_lease_has_not_ended(
    record: Record, expected: bool
) -> None:
    assert rules.alive(record, NOW) is expected


@pytest.mark.parametrize(
    ("unfinished_attempts", "expected"), [(0, False), (2, False), (3, True), (9, True)]
)
def test_three_starts_without_a_word_make_a_suspect(
    unfinished_attempts: int, expected: bool
) -> None:
    assert rules.suspect(running(unfinished_attempts=unfinished_attempts)) is expected


@pytest.mark.parametrize(
    ("current", "expected"),
    [
        pytest.param(None, Verdict.LOST, id="gone"),
        pytest.param(running()._replace(token="you"), Verdict.LOST, id="another's"),
        pytest.param(a_record(), Verdict.LOST, id="taken away"),
        pytest.param(running(due_at=30), Verdict.HELD, id="its own"),
        pytest.param(running(pending=Pending(paused=True)), Verdict.HELD, id="asked to pause"),
        pytest.param(running(due_at=5), Verdict.HELD, id="run out, but nobody's"),
        pytest.param(running(text=UNREADABLE), Verdict.HELD, id="not readable"),
        pytest.param(running(text=NEWER), Verdict.HELD, id="of a later release"),
        pytest.param(running(unfinished_attempts=0), Verdict.SETTLED, id="failed"),
        pytest.param(running(planned=20), Verdict.SETTLED, id="claimed by its own late call"),
        pytest.param(a_record(token="me"), Verdict.SETTLED, id="moved on"),
        pytest.param(a_record(State.RETRYING, token="me"), Verdict.SETTLED, id="to be retried"),
        pytest.param(a_record(State.PARKED, None, token="me"), Verdict.SETTLED, id="parked"),
    ],
)
def test_what_stands_in_the_way_of_a_write_tells_its_holder_where_he_is(
    current: Record | None, expected: Verdict
) -> None:
    assert rules.verdict(current, read(running())) is expected


# What the holder of a claim does.


def test_a_heartbeat_extends_the_lease_from_now_and_nothing_else() -> None:
    record = running(unfinished_attempts=2)
    beaten = after(record, rules.heartbeat(record, NOW, 60))
    assert beaten == record._replace(due_at=72, version=beaten.version)


@pytest.mark.parametrize(("transition", "last"), [(rules.succeeded, None), (rules.advanced, "12")])
def test_what_is_done_is_due_at_the_next_occurrence(transition: Any, last: str | None) -> None:
    record = running(unfinished_attempts=3, failures=2, error="no")
    done = after(record, transition(read(record), AT_ONCE, NOW))
    assert (done.state, done.due_at, done.unfinished_attempts, done.token) == (
        State.SCHEDULED,
        20,
        0,
        "me",
    )
    assert progress_of(done) == Progress(20, "b0", last=last)


def test_missed_occurrences_follow_one_by_one() -> None:
    change = rules.succeeded(read(running()), AT_ONCE, 45)
    assert change == Patch(20, State.SCHEDULED, 0, dump_progress(Progress(20, "b0")))


def test_missed_occurrences_collapse_where_it_shall_fast_forward_and_are_counted() -> None:
    change = rules.succeeded(read(running(skipped=2)), Policy(fast_forward=True), 45)
    text = dump_progress(Progress(50, "b0", skipped=5))  # 20, 30 and 40
    assert change == Patch(50, State.SCHEDULED, 0, text)


def test_the_last_occurrence_takes_the_record_along() -> None:
    assert rules.succeeded(read(running(schedule=at(10))), AT_ONCE, NOW) == DELETE


def test_a_static_record_stays_after_its_last_occurrence() -> None:
    record = running(schedule=at(10), group=STATIC_GROUP)
    done = after(record, rules.succeeded(read(record), AT_ONCE, NOW))
    assert (done.state, done.due_at) == (State.FINISHED, None)
    assert progress_of(done) == Progress(None, "b0")


def test_a_triggered_run_leaves_the_plan_where_it_was() -> None:
    record = running(planned=20, triggered=11)
    done = after(record, rules.succeeded(read(record), Policy(fast_forward=True), 45))
    assert (done.state, done.due_at) == (State.SCHEDULED, 20)
    assert progress_of(done) == Progress(20, "b0")


def test_a_triggered_run_after_the_last_occurrence_takes_the_record_along() -> None:
    record = running(planned=None, triggered=11)
    assert rules.succeeded(read(record), AT_ONCE, NOW) == DELETE


def test_a_failure_that_is_retried_when_the_lease_ends_stays_running() -> None:
    record = running(unfinished_attempts=2, failures=1)
    failed = after(record, rules.failed(read(record), AT_ONCE, NOW, NO))
    assert (failed.state, failed.due_at, failed.unfinished_attempts) == (State.RUNNING, 20, 0)
    assert progress_of(failed) == Progress(10, "b0", failures=3, error="no")


def test_a_failure_that_unlocks_is_due_again_soon() -> None:
    record = running()
    failed = after(record, rules.failed(read(record), SOON, NOW, NO))
    assert (failed.state, failed.due_at, failed.unfinished_attempts) == (State.RETRYING, 15, 0)
    assert progress_of(failed) == Progress(10, "b0", failures=1, error="no")


def test_a_failure_that_commits_counts_as_done_and_is_remembered() -> None:
    record = running()
    failed = after(record, rules.failed(read(record), AS_DONE, NOW, NO))
    assert (failed.state, failed.due_at) == (State.SCHEDULED, 20)
    assert progress_of(failed) == Progress(20, "b0", error="no")


def test_the_last_failure_that_commits_finishes_a_static_record() -> None:
    record = running(schedule=at(10), group=STATIC_GROUP)
    failed = after(record, rules.failed(read(record), AS_DONE, NOW, NO))
    assert failed.state == State.FINISHED
    assert progress_of(failed).error == "no"


def test_what_is_given_back_is_as_before_the_claim() -> None:
    record = running()
    back = after(record, rules.given_back(read(record), NOW))
    assert back == record._replace(
        state=State.SCHEDULED, due_at=10, unfinished_attempts=0, version=back.version
    )


def test_what_is_given_back_with_a_delay_is_not_due_before() -> None:
    change = rules.given_back(read(running()), NOW, 5)
    assert change == Patch(17, State.SCHEDULED, 0)


@pytest.mark.parametrize("record", [running(unfinished_attempts=3), running(failures=1)])
def test_what_is_given_back_in_the_middle_of_an_occurrence_is_retried(record: Record) -> None:
    change = rules.given_back(read(record), NOW)
    assert change == Patch(NOW, State.RETRYING, record.unfinished_attempts - 1)


def test_what_is_given_back_without_an_occurrence_is_due_now() -> None:
    change = rules.given_back(read(running(planned=None)), NOW)
    assert change == Patch(NOW, State.SCHEDULED, 0)


@pytest.mark.parametrize(("unfinished_attempts", "left"), [(0, 0), (1, 0), (3, 2)])
def test_what_a_later_release_wrote_is_given_back_unread(
    unfinished_attempts: int, left: int
) -> None:
    change = rules.given_back_unread(
        running(unfinished_attempts=unfinished_attempts, text=NEWER), NOW, 5
    )
    assert change == Patch(17, State.RETRYING, left)


def test_the_last_attempt_parks_the_record_with_its_error() -> None:
    record = running(unfinished_attempts=2, failures=4)
    parked = after(record, rules.exhausted(read(record), PARKS, NOW, NO))
    assert (parked.state, parked.due_at, parked.unfinished_attempts) == (State.PARKED, None, 0)
    assert progress_of(parked) == Progress(10, "b0", failures=6, error="no")


def test_a_record_that_cannot_be_read_is_parked_with_the_reason_and_what_can_be_read() -> None:
    record = running(failures=1)
    parked = after(record, rules.parked(record, "plan: nonsense", "b9"))
    assert (parked.state, parked.due_at, parked.unfinished_attempts) == (State.PARKED, None, 0)
    assert progress_of(parked) == Progress(10, "b0", failures=1, error="plan: nonsense")


def test_progress_that_cannot_be_read_is_parked_with_the_reason() -> None:
    record = running(text=UNREADABLE)
    parked = after(record, rules.parked(record, "progress: nonsense", "b9"))
    assert progress_of(parked) == Progress(None, "b9", error="progress: nonsense")


def test_parking_leaves_the_progress_of_a_later_release_alone() -> None:
    record = running(text=NEWER)
    parked = after(record, rules.parked(record, "plan: nonsense", "b9"))
    assert (parked.state, parked.due_at, parked.progress) == (State.PARKED, None, NEWER)


# Attempts, and what follows the last one.


def test_why_there_is_no_further_attempt_names_what_was_before_it() -> None:
    limit = Policy(attempts=3)
    crashed = rules.too_many(read(running(unfinished_attempts=4)), limit, NOW)
    assert crashed is not None
    assert crashed.error == f"Attempt 3: {rules.NO_OUTCOME}"
    record = running(unfinished_attempts=2, failures=2, error="no", traceback="where")
    both = rules.too_many(read(record), limit, NOW)
    assert both is not None
    assert both.error == f"Attempt 3: {rules.NO_OUTCOME}; before that: no"
    assert (both.traceback, both.final, both.free) == ("where", True, True)
    # An error of an earlier occurrence is none of this one.
    later = rules.too_many(read(running(unfinished_attempts=4, error="no")), limit, NOW)
    assert later == crashed


@pytest.mark.parametrize(
    ("columns", "state", "planned"),
    [
        ({"schedule": every(10)}, State.SCHEDULED, 20),
        ({"schedule": at(10)}, State.PARKED, 10),
        ({"schedule": at(10), "group": STATIC_GROUP}, State.FINISHED, None),
        ({"schedule": every(10), "triggered": 5}, State.SCHEDULED, 10),
        ({"schedule": at(10), "triggered": 5}, State.SCHEDULED, 10),
        ({"planned": None, "schedule": at(3), "triggered": 5}, State.PARKED, None),
        ({"planned": None, "schedule": at(3)}, State.PARKED, None),
    ],
)
def test_an_occurrence_that_has_failed_for_good_is_given_up_if_something_follows(
    columns: dict[str, Any], state: State, planned: int | None
) -> None:
    record = running(**columns)
    failure = Failure("no", "where", final=True)
    left = after(record, rules.failed(read(record), AT_ONCE, NOW, failure))
    assert (left.state, progress_of(left).planned) == (state, planned)
    assert (progress_of(left).error, progress_of(left).traceback) == ("no", "where")


def test_a_replacement_takes_the_place_of_what_is_too_late() -> None:
    record = running(pending=REPLACEMENT)
    policy = Policy(misfire_grace=1)
    assert rules.too_late(read(record), policy, NOW)
    new = after(record, rules.misfired(read(record), policy, NOW))
    assert (new.due_at, new.schedule, new.args) == (17, WANTED_PLAN, WANTED.args)
    assert progress_of(new) == Progress(17, "b1")


def test_what_was_given_back_unread_and_is_triggered_is_not_too_late() -> None:
    record = running()
    unread = after(record, rules.given_back_unread(record, NOW, 100))
    assert (unread.state, unread.unfinished_attempts) == (State.RETRYING, 0)
    asked = after(unread, rules.triggered(read(unread), NOW))
    assert (asked.state, asked.due_at) == (State.RETRYING, NOW)
    assert progress_of(asked) == Progress(10, "b0", renewed=NOW)
    policy = Policy(misfire_grace=1)
    claimed = asked._replace(state=State.RUNNING, unfinished_attempts=1)
    assert not rules.too_late(read(claimed), policy, 1_000)
    assert rules.too_late(read(claimed._replace(progress=record.progress)), policy, 1_000)


@pytest.mark.parametrize("state", [state for state in State if state is not State.PARKED])
def test_there_is_nothing_to_run_again_or_to_give_up_in_what_is_not_parked(state: State) -> None:
    record = a_record(state, 20)
    assert rules.rerun(read(record), NOW) is None
    assert rules.dropped(read(record), AT_ONCE, NOW) is None


@pytest.mark.parametrize(
    ("schedule", "planned", "triggered", "following"),
    [
        (every(10), 10, None, 20),
        (every(10), 10, 5, 10),
        (every(10), None, None, every(10).next(NOW)),
        (at(10), 10, None, None),
        (at(10), None, None, None),
        (at(30), None, None, 30),
    ],
)
def test_what_follows_a_parked_occurrence_that_is_given_up(
    schedule: Schedule, planned: int | None, triggered: int | None, following: int | None
) -> None:
    error: dict[str, Any] = {"failures": 3, "error": "no", "traceback": "where"}
    record = a_record(
        State.PARKED, None, schedule=schedule, planned=planned, triggered=triggered, **error
    )
    change = rules.dropped(read(record), AT_ONCE, NOW)
    if following is None:
        assert change is DELETE
        static = record._replace(group=STATIC_GROUP)
        left = after(static, rules.dropped(read(static), AT_ONCE, NOW))
        assert (left.state, left.due_at) == (State.FINISHED, None)
    else:
        left = after(record, change)
        assert (left.state, left.due_at) == (State.SCHEDULED, following)
    expected = Progress(following, "b0", error="no", traceback="where")
    assert progress_of(left) == expected


def test_the_default_of_a_template_is_stored_with_the_next_occurrence_if_it_has_changed() -> None:
    record = running(schedule=Inherited(every(10)))
    reading = read(record)
    same = rules.succeeded(reading, AT_ONCE, NOW)
    assert isinstance(same, Patch)
    assert (same.due_at, same.state) == (20, State.SCHEDULED)
    changed = rules.succeeded(reading._replace(schedule=Inherited(every(7))), AT_ONCE, NOW)
    assert isinstance(changed, Put)
    new = after(record, changed)
    assert (new.due_at, new.schedule) == (17, dump_schedule(Inherited(every(7))))
    assert (new.token, new.args, progress_of(new)) == ("me", record.args, Progress(17, "b0"))


# What was asked for while it ran, and how the run ended.


def ends(record: Record) -> dict[str, Change]:
    """All the ways in which a run can end without having been done."""
    reading = read(record)
    return {
        "failed, at once": rules.failed(reading, AT_ONCE, NOW, NO),
        "failed, soon": rules.failed(reading, SOON, NOW, NO),
        "exhausted": rules.exhausted(reading, PARKS, NOW, NO),
        "given back": rules.given_back(reading, NOW),
    }


def test_a_replacement_takes_the_place_of_the_run_however_it_ends() -> None:
    record = running(pending=REPLACEMENT, triggered=9)
    for change in [
        rules.succeeded(read(record), AT_ONCE, NOW),
        rules.failed(read(record), AS_DONE, NOW, NO),
        *ends(record).values(),
    ]:
        new = after(record, change)
        assert (new.state, new.due_at, new.unfinished_attempts) == (State.SCHEDULED, 17, 0)
        assert (new.schedule, new.args) == (WANTED_PLAN, WANTED.args)
        assert progress_of(new) == Progress(17, "b1")
        assert new.token == "me", "so that a settle that is repeated finds itself"


def test_a_replacement_that_was_paused_as_well_is_paused() -> None:
    record = running(pending=REPLACEMENT._replace(paused=True))
    new = after(record, rules.succeeded(read(record), AT_ONCE, NOW))
    assert (new.state, new.due_at) == (State.PAUSED, None)
    assert progress_of(new) == Progress(17, "b1")


@pytest.mark.parametrize("paused", [False, True])
def test_a_replacement_that_was_triggered_as_well_runs_at_once(paused: bool) -> None:
    record = running(pending=REPLACEMENT._replace(triggered=11, paused=paused))
    new = after(record, rules.succeeded(read(record), AT_ONCE, NOW))
    assert (new.state, new.due_at) == (State.SCHEDULED, 11)
    pending = Pending(paused=True) if paused else None
    assert progress_of(new) == Progress(17, "b1", triggered=11, pending=pending)


def test_a_replacement_that_never_occurs_is_finished() -> None:
    record = running(pending=REPLACEMENT._replace(planned=None))
    new = after(record, rules.succeeded(read(record), AT_ONCE, NOW))
    assert (new.state, new.due_at) == (State.FINISHED, None)


def test_a_pause_holds_after_the_run_with_the_next_occurrence_kept() -> None:
    record = running(pending=Pending(paused=True))
    rests = after(record, rules.succeeded(read(record), AT_ONCE, NOW))
    assert (rests.state, rests.due_at, rests.token) == (State.PAUSED, None, "me")
    assert progress_of(rests) == Progress(20, "b0")


def test_nothing_is_left_to_pause_after_the_last_occurrence() -> None:
    record = running(schedule=at(10), pending=Pending(paused=True))
    assert rules.succeeded(read(record), AT_ONCE, NOW) == DELETE


def test_a_pause_keeps_a_failed_run_for_later() -> None:
    record = running(pending=Pending(paused=True))
    for policy in (AT_ONCE, SOON):
        rests = after(record, rules.failed(read(record), policy, NOW, NO))
        assert (rests.state, rests.due_at) == (State.PAUSED, None)
        assert progress_of(rests) == Progress(10, "b0", failures=1, error="no")


def test_a_pause_keeps_what_is_given_back_for_later() -> None:
    record = running(unfinished_attempts=2, pending=Pending(paused=True))
    rests = after(record, rules.given_back(read(record), NOW))
    assert (rests.state, rests.due_at, rests.unfinished_attempts) == (State.PAUSED, None, 1)
    assert progress_of(rests) == Progress(10, "b0")


def test_a_triggered_run_of_a_paused_record_is_given_back_to_be_run() -> None:
    record = running(20, planned=20, triggered=11, pending=Pending(paused=True))
    assert rules.given_back(read(record), NOW) == Patch(11, State.SCHEDULED, 0)


def test_a_trigger_is_followed_after_the_run_and_leaves_the_plan() -> None:
    record = running(pending=Pending(triggered=11))
    again = after(record, rules.succeeded(read(record), AT_ONCE, NOW))
    assert (again.state, again.due_at) == (State.SCHEDULED, 11)
    assert progress_of(again) == Progress(20, "b0", triggered=11)


def test_a_one_off_that_was_triggered_runs_once_more() -> None:
    record = running(schedule=at(10), pending=Pending(triggered=11))
    again = after(record, rules.succeeded(read(record), AT_ONCE, NOW))
    assert (again.state, again.due_at) == (State.SCHEDULED, 11)
    assert progress_of(again) == Progress(None, "b0", triggered=11)


def test_a_trigger_waits_until_a_failed_run_has_succeeded() -> None:
    record = running(pending=Pending(triggered=11))
    for name, change in ends(record).items():
        if name != "exhausted":
            left = progress_of(after(record, change))
            assert (left.occurrence, left.pending) == (10, Pending(triggered=11))


def test_a_trigger_gives_what_is_exhausted_another_attempt() -> None:
    record = running(failures=4, pending=Pending(triggered=11, paused=True))
    again = after(record, rules.exhausted(read(record), PARKS, NOW, NO))
    assert (again.state, again.due_at) == (State.SCHEDULED, 11)
    expected = Progress(10, "b0", pending=Pending(paused=True), error="no", renewed=NOW)
    assert progress_of(again) == expected


def test_what_was_paused_and_triggered_runs_before_it_rests() -> None:
    record = running(pending=Pending(triggered=11, paused=True))
    again = after(record, rules.succeeded(read(record), AT_ONCE, NOW))
    assert (again.state, again.due_at) == (State.SCHEDULED, 11)
    assert progress_of(again) == Progress(20, "b0", triggered=11, pending=Pending(paused=True))


def test_what_was_paused_and_triggered_runs_before_it_rests_though_the_run_was_not_done() -> None:
    record = running(pending=Pending(triggered=11, paused=True))
    for name in ("failed, at once", "failed, soon", "given back"):
        again = after(record, ends(record)[name])
        assert (again.state, again.due_at, again.unfinished_attempts) == (State.SCHEDULED, 11, 0)
        left = progress_of(again)._replace(error=None)
        begun = None if name == "given back" else 11  # its instant is not known
        assert left == Progress(10, "b0", triggered=11, pending=Pending(paused=True), begun=begun)


def test_a_new_plan_of_a_static_task_follows_the_run_in_hand() -> None:
    record = running(pending=NEW_PLAN)
    new = after(record, rules.succeeded(read(record), AT_ONCE, NOW))
    assert (new.state, new.due_at, new.schedule) == (State.SCHEDULED, 17, WANTED_PLAN)
    assert progress_of(new) == Progress(17, "b0")


def test_a_new_plan_of_a_static_task_waits_until_a_failed_run_has_succeeded() -> None:
    record = running(pending=NEW_PLAN)
    for change in ends(record).values():
        left = after(record, change)
        assert left.schedule == record.schedule
        assert (progress_of(left).planned, progress_of(left).pending) == (10, NEW_PLAN)


def test_an_overdue_occurrence_comes_before_a_new_plan_that_a_triggered_run_let_wait() -> None:
    record = running(planned=11, triggered=9, pending=NEW_PLAN)
    next_one = after(record, rules.succeeded(read(record), AT_ONCE, NOW))
    assert (next_one.state, next_one.due_at) == (State.SCHEDULED, 11)
    assert progress_of(next_one) == Progress(11, "b0", pending=NEW_PLAN)


def test_an_overdue_occurrence_comes_before_a_new_plan_that_never_occurs() -> None:
    pending = NEW_PLAN._replace(planned=None)
    record = running(planned=11, triggered=9, pending=pending)
    next_one = after(record, rules.succeeded(read(record), AT_ONCE, NOW))
    assert next_one.due_at == 11


@pytest.mark.parametrize("planned", [None, NOW + 1, NOW + 10])
def test_a_new_plan_holds_after_a_triggered_run_where_nothing_is_overdue(
    planned: int | None,
) -> None:
    record = running(planned=planned, triggered=9, pending=NEW_PLAN)
    new = after(record, rules.succeeded(read(record), AT_ONCE, NOW))
    assert (new.due_at, new.schedule) == (17, WANTED_PLAN)


def test_an_overdue_occurrence_behind_the_first_of_a_new_plan_is_left_to_that() -> None:
    record = running(planned=18, triggered=9, pending=NEW_PLAN)
    new = after(record, rules.succeeded(read(record), AT_ONCE, 19))
    assert (new.due_at, new.schedule) == (17, WANTED_PLAN)


@pytest.mark.parametrize("asks", ["pause", "trigger", "replace", "pause, trigger"])
def test_it_makes_no_difference_whether_something_is_asked_before_or_after_the_run_ends(
    asks: str,
) -> None:
    def ask(record: Record) -> Record:
        for name in asks.split(", "):
            if name == "replace":
                change: Change | None = rules.replaced(record, WANTED, NOW)
            elif name == "pause":
                change = rules.paused(read(record), NOW)
            else:
                change = rules.triggered(read(record), NOW)
            record = after(record, change)
        return record

    def end(record: Record) -> Record:
        return after(record, rules.succeeded(read(record), AT_ONCE, NOW))

    before, afterwards = end(ask(running())), ask(end(running()))
    assert before._replace(version=0, token=None) == afterwards._replace(version=0, token=None)


# What anybody may ask for: a new record.


def test_a_new_record_is_due_at_the_first_occurrence_of_its_plan() -> None:
    put = rules.created(WANTED, NOW)
    progress = dump_progress(Progress(17, "b1"))
    assert put == Put(17, State.SCHEDULED, None, 0, WANTED_PLAN, WANTED.args, progress)


def test_a_one_off_in_the_past_is_due_at_once() -> None:
    put = rules.created(WANTED._replace(schedule=at(3)), NOW)
    assert (put.due_at, put.state) == (3, State.SCHEDULED)


def test_a_new_record_whose_plan_never_occurs_is_finished() -> None:
    put = rules.created(WANTED._replace(schedule=PAST), NOW)
    assert (put.due_at, put.state) == (None, State.FINISHED)


# Scheduled again: the sooner time holds.


@pytest.mark.parametrize(
    ("schedule", "planned"), [(every(5), 17), (every(50), 20), (at(3), 3), (PAST, 20)]
)
def test_scheduling_what_waits_keeps_the_sooner_time(schedule: Schedule, planned: int) -> None:
    record = a_record(due_at=20, planned=20, token="me")
    merged = after(record, rules.merged(record, WANTED._replace(schedule=schedule), NOW))
    assert (merged.state, merged.due_at) == (State.SCHEDULED, planned)
    assert (merged.schedule, merged.args) == (dump_schedule(schedule), WANTED.args)
    assert progress_of(merged) == Progress(planned, "b0")
    assert merged.token == "me", "so that a settle that is repeated finds itself"


def test_scheduling_what_runs_is_refused() -> None:
    assert rules.merged(running(), WANTED, NOW) is None


def test_scheduling_what_was_triggered_leaves_it_due() -> None:
    record = a_record(due_at=11, planned=20, triggered=11)
    merged = after(record, rules.merged(record, WANTED, NOW))
    assert merged.due_at == 11
    assert progress_of(merged) == Progress(17, "b0", triggered=11)


def test_scheduling_what_waits_for_a_retry_defeats_no_backoff() -> None:
    record = a_record(State.RETRYING, 90, unfinished_attempts=2, failures=3, token="me", error="no")
    merged = after(record, rules.merged(record, WANTED, NOW))
    assert (merged.schedule, merged.args) == (WANTED_PLAN, WANTED.args)
    assert merged == record._replace(
        schedule=merged.schedule, args=merged.args, version=merged.version
    )


def test_scheduling_what_a_dead_worker_ran_takes_it_from_him_and_counts_on() -> None:
    record = running(due_at=NOW, unfinished_attempts=2)
    merged = after(record, rules.merged(record, WANTED, NOW))
    assert (merged.state, merged.due_at, merged.unfinished_attempts) == (State.RUNNING, NOW, 2)
    assert (merged.schedule, merged.args) == (WANTED_PLAN, WANTED.args)
    assert rules.verdict(merged, read(record)) is Verdict.LOST, "should he only be slow"


def test_scheduling_what_a_dead_worker_ran_as_a_triggered_one_off_plans_it() -> None:
    record = running(due_at=NOW, planned=None, triggered=9)
    merged = after(record, rules.merged(record, WANTED, NOW))
    assert progress_of(merged) == Progress(17, "b0", triggered=9)


def test_scheduling_what_is_paused_leaves_it_paused() -> None:
    record = a_record(State.PAUSED, None, planned=20)
    merged = after(record, rules.merged(record, WANTED, NOW))
    assert (merged.state, merged.due_at) == (State.PAUSED, None)
    assert progress_of(merged).planned == 17


@pytest.mark.parametrize("state", [State.SCHEDULED, State.PAUSED, State.RETRYING])
def test_a_single_run_that_keeps_the_sooner_time_says_so_in_its_schedule(state: State) -> None:
    record = a_record(state, None if state == State.PAUSED else 20, planned=20, schedule=at(20))
    merged = after(record, rules.merged(record, WANTED._replace(schedule=at(90)), NOW))
    assert merged.schedule == dump_schedule(at(20))
    assert (merged.args, progress_of(merged).planned) == (WANTED.args, 20)


@pytest.mark.parametrize("triggered", [None, 9])
def test_scheduling_what_is_parked_after_failures_creates_it_anew(triggered: int | None) -> None:
    record = a_record(
        State.PARKED, None, planned=10, failures=5, error="no", triggered=triggered, token="me"
    )
    assert rules.merged(record, WANTED, NOW) == rules.created(WANTED, NOW)


def test_scheduling_what_is_parked_and_was_asked_to_pause_leaves_it_paused() -> None:
    record = a_record(State.PARKED, None, planned=10, failures=5, pending=Pending(paused=True))
    merged = after(record, rules.merged(record, WANTED, NOW))
    assert (merged.state, merged.due_at, merged.args) == (State.PAUSED, None, WANTED.args)
    assert progress_of(merged) == Progress(17, WANTED.incarnation)


@pytest.mark.parametrize("triggered", [None, 9])
def test_a_start_with_a_changed_schedule_frees_a_static_task_that_is_parked(
    triggered: int | None,
) -> None:
    record = a_record(
        State.PARKED, None, planned=10, failures=5, error="no", triggered=triggered, token="me"
    )
    new = after(record, rules.replanned(record, WANTED.schedule, NOW))
    assert (new.state, new.due_at, new.schedule) == (State.SCHEDULED, 17, WANTED_PLAN)
    assert (new.token, progress_of(new)) == (None, Progress(17, "b0"))


def test_a_start_frees_a_static_task_whose_schedule_changed_during_its_last_attempt() -> None:
    pending = Pending(WANTED_PLAN, "", 17, "b0")
    record = a_record(State.PARKED, None, planned=10, failures=5, pending=pending)
    new = after(record, rules.replanned(record, WANTED.schedule, NOW))
    assert (new.state, new.due_at, new.schedule) == (State.SCHEDULED, 17, WANTED_PLAN)
    assert progress_of(new) == Progress(17, "b0")


def test_a_start_with_the_same_schedule_leaves_a_static_task_parked() -> None:
    record = a_record(State.PARKED, None, planned=10, failures=5, error="no")
    assert rules.replanned(record, every(10), NOW) is None
    old = record._replace(schedule=rules.UNKNOWN_SCHEDULE)
    new = after(old, rules.replanned(old, every(10), NOW))
    assert new == record._replace(version=new.version), "only its schedule is filled in"


PARKED_UNREAD = {
    "its schedule is garbage": a_record(State.PARKED, None, planned=10)._replace(schedule="nope"),
    "its progress was garbage": a_record(State.PARKED, None, planned=None, error="no"),
    "its progress is garbage": a_record(State.PARKED, None)._replace(progress="nope"),
    "only this worker cannot read it": a_record(State.PARKED, None)._replace(schedule="3 lunar 7"),
}


@pytest.mark.parametrize("record", PARKED_UNREAD.values(), ids=PARKED_UNREAD)
def test_scheduling_what_no_worker_could_read_frees_it(record: Record) -> None:
    merged = after(record, rules.merged(record, WANTED, NOW))
    assert (merged.state, merged.due_at) == (State.SCHEDULED, 17)
    assert progress_of(merged) == Progress(17, WANTED.incarnation)


@pytest.mark.parametrize("record", PARKED_UNREAD.values(), ids=PARKED_UNREAD)
def test_a_start_frees_a_static_task_that_no_worker_could_read(record: Record) -> None:
    new = replanned(record)
    assert (new.state, new.due_at, new.schedule) == (State.SCHEDULED, 17, WANTED_PLAN)
    assert progress_of(new).planned == 17


def test_scheduling_what_is_parked_and_only_this_worker_cannot_read_creates_it_anew() -> None:
    record = a_record(State.PARKED, None, planned=10)._replace(schedule="3 lunar 7")
    assert rules.merged(record, WANTED, NOW) == rules.created(WANTED, NOW)


@pytest.mark.parametrize("at_most_once", [False, True])
@pytest.mark.parametrize("token", [None, "w:1:1"])
def test_a_planned_time_that_contradicts_its_schedule_is_corrected_at_a_start(
    token: str | None, at_most_once: bool
) -> None:
    interval = every(5)
    late = NOW + 5 + rules.CLOCK_ERROR_MAX + 1
    record = a_record(due_at=late, planned=late, schedule=interval)._replace(token=token)
    new = rules.replanned(record, interval, NOW, at_most_once)
    if token is not None and at_most_once:
        assert new is None
    else:
        assert new == Put(
            NOW + 5,
            State.SCHEDULED,
            None,
            0,
            dump_schedule(interval),
            record.args,
            dump_progress(Progress(NOW + 5, "b0")),
        )


AHEAD = NOW + 5 + rules.CLOCK_ERROR_MAX + 1
"""Later than any next occurrence, counted by a clock that is right, of something every 5."""


def test_an_occurrence_that_waits_for_a_retry_is_corrected_at_a_start_if_it_lies_ahead() -> None:
    pending = Pending(paused=True)
    record = a_record(
        State.RETRYING, AHEAD, planned=AHEAD, schedule=every(5), failures=2, pending=pending
    )
    new = after(record, rules.replanned(record, every(5), NOW))
    assert (new.state, new.due_at, new.unfinished_attempts) == (State.SCHEDULED, NOW + 5, 0)
    assert progress_of(new) == Progress(NOW + 5, "b0", pending=pending)


def test_a_retry_that_is_years_ahead_is_due_at_a_start() -> None:
    late = NOW + rules.RETRY_DELAY_MAX + 1
    record = a_record(State.RETRYING, late, planned=NOW - 3, schedule=every(5), failures=2)
    new = after(record, rules.replanned(record, every(5), NOW))
    assert (new.state, new.due_at) == (State.RETRYING, NOW)
    assert progress_of(new) == progress_of(record)
    assert rules.replanned(record._replace(due_at=late - 1), every(5), NOW) is None
    rare = every(2 * rules.RETRY_DELAY_MAX)
    assert rules.replanned(record._replace(schedule=dump_schedule(rare)), rare, NOW) is None


@pytest.mark.parametrize("fast_forward", [False, True])
def test_what_follows_an_occurrence_that_lies_ahead_is_planned_from_now(fast_forward: bool) -> None:
    reading = read(running(planned=AHEAD, schedule=every(5)))
    policy = Policy(fast_forward=fast_forward)
    done = after(reading.record, rules.succeeded(reading, policy, NOW))
    assert (done.state, done.due_at) == (State.SCHEDULED, NOW + 5)


def test_what_is_run_at_most_once_follows_an_occurrence_that_lies_ahead() -> None:
    reading = read(running(planned=AHEAD, schedule=every(5)))
    advanced = after(reading.record, rules.advanced(reading, AT_ONCE, NOW))
    assert (advanced.state, advanced.due_at) == (State.SCHEDULED, AHEAD + 5)


@pytest.mark.parametrize("at_most_once", [False, True])
def test_a_triggered_run_that_waits_for_a_clock_that_was_ahead_is_due_at_a_start(
    at_most_once: bool,
) -> None:
    record = a_record(due_at=AHEAD, planned=20, triggered=AHEAD, schedule=every(5), token="me")
    new = after(record, rules.replanned(record, every(5), NOW, at_most_once))
    assert (new.state, new.due_at, progress_of(new).triggered) == (State.SCHEDULED, NOW, NOW)
    near = NOW + rules.CLOCK_ERROR_MAX
    record = a_record(due_at=near, planned=20, triggered=near, schedule=every(5), token="me")
    assert rules.replanned(record, every(5), NOW, at_most_once) is None


@pytest.mark.parametrize(("planned", "due_at"), [(AHEAD, NOW + 5), (AHEAD - 1, AHEAD - 1)])
def test_what_follows_a_triggered_run_is_planned_from_now_if_it_lies_ahead(
    planned: int, due_at: int
) -> None:
    reading = read(running(planned=planned, triggered=NOW, schedule=every(5)))
    assert after(reading.record, rules.succeeded(reading, AT_ONCE, NOW)).due_at == due_at
    assert after(reading.record, rules.advanced(reading, AT_ONCE, NOW)).due_at == planned


def test_clocks_that_differ_a_little_plan_by_the_grid() -> None:
    planned = NOW + rules.CLOCK_ERROR_MAX
    reading = read(running(planned=planned, schedule=every(5)))
    done = after(reading.record, rules.succeeded(reading, AT_ONCE, NOW))
    assert done.due_at == planned + 5


def test_clocks_that_differ_a_little_correct_nothing() -> None:
    interval = every(5)
    planned = NOW + 5 + rules.CLOCK_ERROR_MAX
    record = a_record(due_at=planned, planned=planned, schedule=interval)
    assert rules.replanned(record, interval, NOW) is None


def test_a_start_keeps_the_sooner_of_the_old_and_the_new_time() -> None:
    new = replanned(a_record(due_at=14, planned=14), every(7))
    assert (new.state, new.due_at) == (State.SCHEDULED, 14)


def test_scheduling_what_is_finished_makes_it_due() -> None:
    record = a_record(State.FINISHED, None, planned=None)
    merged = after(record, rules.merged(record, WANTED, NOW))
    assert (merged.state, merged.due_at) == (State.SCHEDULED, 17)


def test_what_is_finished_and_scheduled_for_never_stays_finished() -> None:
    record = a_record(State.FINISHED, None, planned=None)
    merged = after(record, rules.merged(record, WANTED._replace(schedule=PAST), NOW))
    assert (merged.state, merged.due_at) == (State.FINISHED, None)


def test_scheduling_overrides_a_replacement_that_came_before_it_and_nothing_else() -> None:
    record = running(due_at=NOW, pending=REPLACEMENT._replace(paused=True, triggered=11))
    merged = after(record, rules.merged(record, WANTED, NOW))
    assert progress_of(merged).pending == Pending(paused=True, triggered=11)
    record = running(due_at=NOW, pending=REPLACEMENT)
    merged = after(record, rules.merged(record, WANTED, NOW))
    assert progress_of(merged).pending is None


def test_scheduling_what_cannot_be_read_makes_it_anew() -> None:
    assert rules.merged(a_record(text=UNREADABLE), WANTED, NOW) == rules.created(WANTED, NOW)


# Replaced.


@pytest.mark.parametrize(
    "record",
    [
        a_record(),
        a_record(State.RETRYING, 90, failures=3, unfinished_attempts=2),
        a_record(State.PARKED, None),
        a_record(State.FINISHED, None, planned=None),
        running(due_at=NOW),
        a_record(text=UNREADABLE),
    ],
    ids=lambda record: str(record.state),
)
def test_what_does_not_run_is_replaced_as_if_newly_made(record: Record) -> None:
    assert rules.replaced(record, WANTED, NOW) == rules.created(WANTED, NOW)


@pytest.mark.parametrize(
    ("text", "pause", "due_at"),
    [
        (None, None, None),
        (None, Pause(reason="why"), None),
        (None, Pause(15), 17),
        (None, Pause(90), 90),
        (UNREADABLE, None, None),
    ],
)
def test_what_is_paused_is_replaced_and_stays_paused(
    text: str | None, pause: Pause | None, due_at: int | None
) -> None:
    record = a_record(State.PAUSED, due_at, pause=pause, text=text, failures=3)
    new = after(record, rules.replaced(record, WANTED, NOW))
    assert (new.state, new.due_at) == (State.PAUSED, due_at)
    assert progress_of(new) == Progress(17, "b1", pause=pause)


def test_what_was_to_be_paused_when_its_worker_died_is_paused_when_it_is_replaced() -> None:
    record = running(due_at=NOW, pending=Pending(paused=True, pause=Pause(90)))
    new = after(record, rules.replaced(record, WANTED, NOW))
    assert (new.state, new.due_at) == (State.PAUSED, 90)
    assert progress_of(new) == Progress(17, "b1", pause=Pause(90))


def test_what_is_paused_and_replaced_by_what_never_runs_is_finished() -> None:
    record = a_record(State.PAUSED, None)
    new = after(record, rules.replaced(record, WANTED._replace(schedule=PAST), NOW))
    assert new.state == State.FINISHED


def test_what_runs_is_replaced_from_the_end_of_the_run() -> None:
    record = running(pending=Pending(paused=True, triggered=11))
    asked = after(record, rules.replaced(record, WANTED, NOW))
    pending = REPLACEMENT._replace(paused=True, triggered=11)
    assert progress_of(asked) == Progress(10, "b0", pending=pending)
    assert asked == record._replace(progress=asked.progress, version=asked.version)


@pytest.mark.parametrize(
    ("schedule", "due_at", "planned"), [(every(5), 20, 17), (every(50), 62, 62), (PAST, None, None)]
)
def test_what_runs_and_cannot_be_read_is_replaced_from_the_end_of_its_lease(
    schedule: Schedule, due_at: int | None, planned: int | None
) -> None:
    record = running(text=UNREADABLE)
    new = after(record, rules.replaced(record, WANTED._replace(schedule=schedule), NOW))
    assert new.due_at == due_at
    assert progress_of(new) == Progress(planned, "b1")
    assert rules.verdict(new, read(running())) is Verdict.LOST


# Paused and resumed.


@pytest.mark.parametrize(
    "record",
    [
        a_record(due_at=20, planned=20, token="me"),
        a_record(due_at=11, planned=20, triggered=11, token="me"),
        a_record(State.RETRYING, 90, unfinished_attempts=2, failures=3, token="me"),
    ],
    ids=["scheduled", "triggered", "retrying"],
)
def test_what_is_paused_is_due_for_nobody_and_keeps_where_it_stands(record: Record) -> None:
    rests = after(record, rules.paused(read(record), NOW))
    expected = record._replace(state=State.PAUSED, due_at=None, version=rests.version)
    assert rests == expected


def test_pausing_what_a_dead_worker_ran_takes_it_from_him() -> None:
    record = running(due_at=NOW, unfinished_attempts=2)
    rests = after(record, rules.paused(read(record), NOW))
    assert (rests.state, rests.due_at, rests.unfinished_attempts) == (State.PAUSED, None, 2)
    assert rules.verdict(rests, read(record)) is Verdict.LOST


def test_pausing_what_runs_is_kept_for_the_end_of_the_run() -> None:
    record = running(pending=Pending(triggered=11))
    asked = after(record, rules.paused(read(record), NOW))
    assert (asked.state, asked.due_at) == (State.RUNNING, 20)
    assert progress_of(asked).pending == Pending(triggered=11, paused=True)


def test_pausing_a_paused_record_whose_triggered_run_waits_keeps_that_back() -> None:
    record = a_record(due_at=11, planned=20, triggered=11, pending=Pending(paused=True))
    rests = after(record, rules.paused(read(record), NOW))
    assert progress_of(rests) == Progress(20, "b0", triggered=11)


UNTIL = Pause(50, "why")


@pytest.mark.parametrize(
    ("record", "due_at"),
    [
        pytest.param(a_record(due_at=20, planned=20), 50, id="scheduled before the end"),
        pytest.param(a_record(due_at=60, planned=60), 60, id="scheduled after the end"),
        pytest.param(a_record(State.RETRYING, 90, failures=1), 50, id="waits for a retry"),
        pytest.param(running(due_at=NOW, planned=60), 50, id="its worker died"),
        pytest.param(a_record(State.PAUSED, None, planned=20), 50, id="paused without an end"),
        pytest.param(
            a_record(State.PAUSED, 70, planned=20, pause=Pause(70)), 50, id="paused for longer"
        ),
        pytest.param(a_record(due_at=11, planned=None, triggered=11), 50, id="triggered"),
    ],
)
def test_a_pause_with_an_end_is_due_at_its_end_but_not_before_it_is_planned(
    record: Record, due_at: int
) -> None:
    rests = after(record, rules.paused(read(record), NOW, UNTIL))
    assert (rests.state, rests.due_at) == (State.PAUSED, due_at)
    assert progress_of(rests) == progress_of(record)._replace(pause=UNTIL)
    assert rules.paused(read(rests), NOW, UNTIL) is None, "it has this pause already"


@pytest.mark.parametrize("pause", [Pause(reason="why"), UNTIL])
def test_what_was_said_about_a_pause_is_kept_through_the_run_and_a_triggered_one(
    pause: Pause,
) -> None:
    record = running()
    asked = after(record, rules.paused(read(record), NOW, pause))
    assert progress_of(asked).pending == Pending(paused=True, pause=pause)
    assert rules.paused(read(asked), NOW, pause) is None
    for outcome in (
        rules.succeeded(read(asked), AT_ONCE, NOW),
        rules.failed(read(asked), AT_ONCE, NOW, NO),
        rules.given_back(read(asked), NOW),
    ):
        rests = after(asked, outcome)
        assert (rests.state, rests.due_at) == (State.PAUSED, pause.until)
        assert progress_of(rests).pause == pause
        again = after(rests, rules.triggered(read(rests), NOW))
        assert progress_of(again).pending == Pending(paused=True, pause=pause)
        assert progress_of(again).pause is None
        again = running(text=again.progress)
        rests = after(again, rules.succeeded(read(again), AT_ONCE, NOW))
        assert (rests.state, progress_of(rests).pause) == (State.PAUSED, pause)


def test_a_pause_that_ended_during_the_run_does_not_keep_a_failure_back() -> None:
    record = running(pending=Pending(paused=True, pause=Pause(NOW)))
    assert after(record, rules.failed(read(record), AT_ONCE, NOW, NO)).state == State.RUNNING
    assert after(record, rules.given_back(read(record), NOW)).state == State.SCHEDULED
    rests = after(record, rules.succeeded(read(record), AT_ONCE, NOW))
    assert rests.due_at == 20, "when it is planned"


def test_a_replacement_keeps_a_pause_with_its_end() -> None:
    record = running(pending=REPLACEMENT._replace(paused=True, pause=UNTIL))
    new = after(record, rules.succeeded(read(record), AT_ONCE, NOW))
    assert (new.state, new.due_at) == (State.PAUSED, 50)
    assert progress_of(new) == Progress(17, "b1", pause=UNTIL)


def test_what_is_claimed_after_its_pause_forgets_it_with_its_outcome() -> None:
    record = running(pause=Pause(NOW))
    for outcome in (
        rules.succeeded(read(record), AT_ONCE, NOW),
        rules.failed(read(record), SOON, NOW, NO),
    ):
        assert progress_of(after(record, outcome)).pause is None


def test_scheduling_what_is_paused_until_then_comes_due_no_sooner() -> None:
    record = a_record(State.PAUSED, 90, planned=90, pause=UNTIL)
    merged = after(record, rules.merged(record, WANTED, NOW))
    assert (merged.state, merged.due_at) == (State.PAUSED, 50)
    assert progress_of(merged) == Progress(17, "b0", pause=UNTIL)


def test_resuming_ends_a_pause_before_its_end() -> None:
    record = a_record(State.PAUSED, 50, planned=20, pause=UNTIL)
    woken = after(record, rules.resumed(read(record), NOW))
    assert (woken.state, woken.due_at) == (State.SCHEDULED, 20)
    assert progress_of(woken) == Progress(20, "b0")


@pytest.mark.parametrize("state", [State.PAUSED, State.PARKED, State.FINISHED])
def test_there_is_nothing_to_pause_in_what_rests(state: State) -> None:
    assert rules.paused(read(a_record(state, None)), NOW) is None


def test_what_is_resumed_is_due_when_it_was_planned() -> None:
    record = a_record(State.PAUSED, None, planned=10)
    assert rules.resumed(read(record), NOW) == Patch(10, State.SCHEDULED, 0)


def test_what_is_resumed_after_it_was_triggered_runs_for_that_first() -> None:
    record = a_record(State.PAUSED, None, planned=20, triggered=11)
    assert rules.resumed(read(record), NOW) == Patch(11, State.SCHEDULED, 0)


@pytest.mark.parametrize(
    "record",
    [a_record(State.PAUSED, None, unfinished_attempts=2), a_record(State.PAUSED, None, failures=1)],
)
def test_what_is_resumed_in_the_middle_of_an_occurrence_is_retried_now(record: Record) -> None:
    assert rules.resumed(read(record), NOW) == Patch(
        NOW, State.RETRYING, record.unfinished_attempts
    )


def test_what_is_resumed_with_nothing_left_is_finished() -> None:
    record = a_record(State.PAUSED, None, planned=None)
    assert rules.resumed(read(record), NOW) == Patch(None, State.FINISHED, 0)


@pytest.mark.parametrize("record", [a_record(), running(), running(pending=REPLACEMENT)])
def test_there_is_nothing_to_resume_in_what_was_not_paused(record: Record) -> None:
    assert rules.resumed(read(record), NOW) is None


@pytest.mark.parametrize(
    ("pending", "left"),
    [
        (Pending(paused=True), None),
        (Pending(paused=True, triggered=11), Pending(triggered=11)),
        (REPLACEMENT._replace(paused=True), REPLACEMENT),
    ],
)
def test_resuming_what_was_to_be_paused_takes_that_back(
    pending: Pending, left: Pending | None
) -> None:
    record = running(pending=pending)
    asked = after(record, rules.resumed(read(record), NOW))
    assert (asked.state, asked.due_at) == (State.RUNNING, 20)
    assert progress_of(asked) == Progress(10, "b0", pending=left)


# Triggered.


def test_what_waits_is_triggered_and_its_plan_stands_still() -> None:
    record = a_record(due_at=20, planned=20, error="no")
    asked = after(record, rules.triggered(read(record), NOW))
    assert (asked.state, asked.due_at) == (State.SCHEDULED, NOW)
    assert progress_of(asked) == Progress(20, "b0", triggered=NOW, error="no")


@pytest.mark.parametrize("due_at", [20, NOW])
def test_what_runs_is_triggered_for_the_end_of_the_run(due_at: int) -> None:
    record = running(due_at, pending=Pending(paused=True))
    asked = after(record, rules.triggered(read(record), NOW))
    assert (asked.state, asked.due_at, asked.token) == (State.RUNNING, due_at, "me")
    assert progress_of(asked).pending == Pending(paused=True, triggered=NOW)


@pytest.mark.parametrize(
    "record",
    [running(pending=Pending(triggered=11)), a_record(due_at=11, planned=20, triggered=11)],
)
def test_one_triggered_run_in_hand_is_enough(record: Record) -> None:
    assert rules.triggered(read(record), NOW) is None


def test_what_waits_for_a_retry_is_triggered_to_have_it_now() -> None:
    record = a_record(State.RETRYING, 90, unfinished_attempts=2, failures=3)
    assert rules.triggered(read(record), NOW) == Patch(NOW, State.RETRYING, 2)


def test_what_is_parked_is_triggered_to_be_tried_again() -> None:
    record = a_record(State.PARKED, None, failures=5, error="no")
    asked = after(record, rules.triggered(read(record), NOW))
    assert (asked.state, asked.due_at) == (State.SCHEDULED, NOW)
    assert progress_of(asked) == Progress(10, "b0", error="no", renewed=NOW)


def test_what_is_parked_without_an_occurrence_is_triggered_and_planned_again() -> None:
    record = a_record(State.PARKED, None, planned=None, error="no")
    asked = after(record, rules.triggered(read(record), NOW))
    assert (asked.state, asked.due_at) == (State.SCHEDULED, NOW)
    expected = Progress(22, "b0", triggered=NOW, error="no", renewed=NOW)
    assert progress_of(asked) == expected


@pytest.mark.parametrize(
    ("pending", "then"),
    [(None, Pending(paused=True)), (NEW_PLAN, NEW_PLAN._replace(paused=True))],
)
def test_what_is_paused_is_triggered_and_rests_afterwards(
    pending: Pending | None, then: Pending
) -> None:
    record = a_record(State.PAUSED, None, failures=2, unfinished_attempts=1, pending=pending)
    asked = after(record, rules.triggered(read(record), NOW))
    assert (asked.state, asked.due_at, asked.unfinished_attempts) == (State.SCHEDULED, NOW, 0)
    assert progress_of(asked) == Progress(10, "b0", triggered=NOW, pending=then, begun=NOW)


def test_what_is_finished_is_triggered_and_finished_again_afterwards() -> None:
    record = a_record(State.FINISHED, None, planned=None, group=STATIC_GROUP)
    asked = after(record, rules.triggered(read(record), NOW))
    assert (asked.state, asked.due_at) == (State.SCHEDULED, NOW)
    assert progress_of(asked) == Progress(None, "b0", triggered=NOW)
    done = after(asked, rules.succeeded(read(asked), AT_ONCE, NOW))
    assert done.state == State.FINISHED


# Replanned: the schedule of a static task is another one in code.


def replanned(record: Record, schedule: Schedule = WANTED.schedule) -> Record:
    new = after(record, rules.replanned(record, schedule, NOW))
    assert new.token == record.token
    return new


def test_a_static_task_whose_schedule_is_the_same_is_left_alone() -> None:
    assert rules.replanned(a_record(), every(10), NOW) is None
    assert rules.replanned(running(pending=Pending(paused=True)), every(10), NOW) is None
    assert rules.replanned(running(pending=NEW_PLAN), WANTED.schedule, NOW) is None


def test_a_static_task_that_cannot_be_read_is_left_to_the_claim_that_meets_it() -> None:
    assert rules.replanned(a_record(text=UNREADABLE), every(5), NOW) is None


@pytest.mark.parametrize("due_at", [20, NOW])
def test_what_waits_is_planned_anew(due_at: int) -> None:
    triggered = due_at if due_at <= NOW else None
    record = a_record(due_at=due_at, planned=20, triggered=triggered)
    new = replanned(record)
    assert new.schedule == WANTED_PLAN
    assert new.due_at == (17 if triggered is None else triggered)
    assert progress_of(new) == Progress(17, "b0", triggered=triggered)


def test_what_is_overdue_is_finished_before_a_new_plan() -> None:
    new = replanned(a_record(due_at=10, planned=10))
    assert (new.state, new.due_at, new.schedule) == (State.SCHEDULED, 10, WANTED_PLAN)


@pytest.mark.parametrize("due_at", [20, NOW])
def test_what_runs_is_finished_before_a_new_plan_by_whomever(due_at: int) -> None:
    record = running(due_at, pending=Pending(paused=True))
    new = replanned(record)
    assert (new.state, new.due_at, new.schedule) == (State.RUNNING, due_at, record.schedule)
    assert rules.verdict(new, read(record)) is Verdict.HELD
    assert progress_of(new) == Progress(10, "b0", pending=NEW_PLAN._replace(paused=True))


def test_a_new_plan_that_waits_gives_way_to_a_newer_one() -> None:
    new = replanned(running(pending=NEW_PLAN), every(10))
    pending = Pending(dump_schedule(every(10)), "1 {}", 22, "b0")
    assert progress_of(new).pending == pending


@pytest.mark.parametrize(
    "record",
    [
        a_record(State.RETRYING, 90, failures=2),
        a_record(State.PAUSED, None, planned=20, failures=2),
        a_record(State.PAUSED, None, planned=20, unfinished_attempts=1),
        a_record(State.PAUSED, None, planned=10),
    ],
    ids=lambda record: str(record.state),
)
def test_what_has_begun_is_finished_before_a_new_plan(record: Record) -> None:
    new = replanned(record)
    assert new == record._replace(schedule=WANTED_PLAN, version=new.version)


@pytest.mark.parametrize(
    "record",
    [
        a_record(State.PAUSED, None, planned=20),
        a_record(State.PAUSED, None, planned=20, triggered=11, unfinished_attempts=1),
    ],
    ids=["paused", "paused in a triggered run"],
)
def test_what_rests_is_planned_anew_and_goes_on_resting(record: Record) -> None:
    new = replanned(record)
    assert (new.state, new.due_at) == (record.state, None)
    assert progress_of(new).planned == 17


def test_what_is_finished_goes_on_with_a_new_plan() -> None:
    new = replanned(a_record(State.FINISHED, None, planned=None))
    assert (new.state, new.due_at) == (State.SCHEDULED, 17)


def test_what_is_finished_stays_so_with_a_plan_that_never_occurs() -> None:
    new = replanned(a_record(State.FINISHED, None, planned=None), PAST)
    assert (new.state, new.due_at) == (State.FINISHED, None)


def test_what_waits_is_finished_by_a_plan_that_never_occurs() -> None:
    new = replanned(a_record(due_at=20, planned=20), PAST)
    assert (new.state, new.due_at) == (State.FINISHED, None)


def test_a_new_plan_takes_the_place_of_one_that_waits_for_a_retry() -> None:
    pending = NEW_PLAN._replace(triggered=11)
    new = replanned(a_record(State.RETRYING, 90, failures=2, pending=pending), every(7))
    assert (new.state, new.schedule) == (State.RETRYING, dump_schedule(every(7)))
    assert progress_of(new) == Progress(10, "b0", failures=2, pending=Pending(triggered=11))


def test_a_triggered_run_that_waits_for_a_retry_does_not_keep_an_old_plan() -> None:
    new = replanned(a_record(State.RETRYING, 90, planned=20, triggered=11, failures=2))
    assert (new.state, new.due_at) == (State.RETRYING, 90)
    assert progress_of(new) == Progress(17, "b0", triggered=11, failures=2)


def test_what_a_later_release_wrote_is_not_changed() -> None:
    with pytest.raises(NewerFormat):
        rules.merged(a_record(text=NEWER), WANTED, NOW)
    with pytest.raises(NewerFormat):
        rules.replaced(running(text=NEWER), WANTED, NOW)
    with pytest.raises(NewerFormat):
        rules.replanned(a_record(text=NEWER), WANTED.schedule, NOW)


def test_a_reading_keeps_the_record_that_it_was_read_from() -> None:
    record = running()
    assert read(record) == Reading(record, every(10), Progress(10, "b0"))


# Jitter.


def jittered(schedule: Schedule, microseconds: int) -> Schedule:
    return schedule.with_jitter(timedelta(microseconds=microseconds))


def test_a_jitter_is_added_when_a_record_is_due_and_not_when_it_is_planned() -> None:
    schedule = jittered(every(1_000), 1_000)
    put = rules.created(WANTED._replace(schedule=schedule), NOW)
    planned = NOW + 1_000
    assert load_progress(put.progress).planned == planned
    assert put.due_at == schedule.due(planned, *WANTED.identity)
    assert put.due_at is not None
    assert planned < put.due_at < planned + 1_000
    record = running(schedule=schedule)
    done = after(record, rules.succeeded(read(record), AT_ONCE, NOW))
    assert (progress_of(done).planned, done.due_at) == (1_010, schedule.due(1_010, "g", "k"))


def test_a_replacement_that_this_worker_cannot_read_is_due_when_it_is_planned() -> None:
    unknown = REPLACEMENT._replace(schedule="1 cron Mars/Olympus_Mons 0 9 * * *")
    record = running(pending=unknown)
    done = after(record, rules.succeeded(read(record), AT_ONCE, NOW))
    assert (done.schedule, done.due_at) == (unknown.schedule, 17)


def test_what_is_behind_its_schedule_is_paced_and_not_delayed_by_its_jitter() -> None:
    schedule = jittered(every(10), 5)
    record = running(schedule=schedule)
    now = rules.BEHIND_MIN + 1_000
    policy = Policy(pace=1_000_000)
    done = after(record, rules.succeeded(read(record), policy, now))
    assert (progress_of(done).planned, done.due_at) == (20, now + 1)


def test_the_last_occurrence_of_what_is_behind_is_due_at_once() -> None:
    schedule = every(10).between(None, EPOCH + timedelta(microseconds=20))
    now = rules.BEHIND_MIN + 1_000
    record = running(schedule=schedule)
    done = after(record, rules.succeeded(read(record), Policy(pace=1_000_000), now))
    assert (progress_of(done).planned, done.due_at) == (20, 20)


def test_what_waits_for_its_jitter_is_not_too_late() -> None:
    schedule = jittered(every(1_000), 900)
    due_at = schedule.due(10, "g", "k")
    record = running(schedule=schedule, planned=10)
    policy = Policy(misfire_grace=5)
    assert not rules.too_late(read(record), policy, due_at + 5)
    assert rules.too_late(read(record), policy, due_at + 6)
    # What may wait for longer is not skipped with it.
    skipped = after(record, rules.misfired(read(record), policy, due_at + 1_006))
    assert progress_of(skipped).planned == 1_010
    assert progress_of(skipped).skipped == 1
    once = running(schedule=jittered(at(10), 900), planned=10)
    gone = after(once, rules.misfired(read(once), policy, 2_000))
    assert gone.state == State.FINISHED
