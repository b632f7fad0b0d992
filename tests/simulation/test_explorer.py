"""The rules about runs under every interleaving, and proof that the search sees broken ones.

Each mutant takes away one thing that prevents a known history of failure; the explorer must find
that history by itself, and nothing with the real functions.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from random import Random
from typing import Any, NamedTuple

import pytest
from tests.simulation import model
from tests.simulation.explorer import Explorer
from tests.simulation.model import Ask, Row
from tests.simulation.workers import Protocol, Scenario, Worker, at, every

from pyncette.engine import rules
from pyncette.engine.rules import Failure, Policy, Ran, Verdict, Wanted
from pyncette.model import Exhausted, FailureMode
from pyncette.schedule import Inherited, Schedule, dumps
from pyncette.store import Write
from pyncette.store.record import (
    ANY,
    DELETE,
    Change,
    Patch,
    Pending,
    Progress,
    Put,
    Reading,
    Record,
    State,
    dump_progress,
    load_progress,
)

DEEPER = int(os.environ.get("PYNCETTE_TEST_EXPLORER_DEEPER", "0"))
"""So many steps more than usual."""

EVERYTHING = (
    Ask.SOONER,
    Ask.REPLACE,
    Ask.FORCE,
    Ask.UNSCHEDULE,
    Ask.PAUSE,
    Ask.PAUSE_UNTIL,
    Ask.RESUME,
    Ask.TRIGGER,
)
OF_STATIC_TASKS = (Ask.PAUSE, Ask.PAUSE_UNTIL, Ask.RESUME, Ask.TRIGGER, Ask.REPLAN)
BOTH = (True, False)

SCENARIOS = {
    "recurring, retried when the lease ends": Scenario(
        every(3),
        begin=3,
        end=7,
        depth=7,
        asks=EVERYTHING,
        asks_max=2,
        asked_plan=2,
        faults_max=1,
        outcomes=BOTH,
        heartbeats=True,
        gives_back=True,
    ),
    "recurring, retried soon": Scenario(
        every(3),
        begin=3,
        end=7,
        depth=7,
        asks=EVERYTHING,
        asks_max=2,
        faults_max=2,
        outcomes=BOTH,
        failure_mode=FailureMode.UNLOCK,
    ),
    "recurring, failures count as done": Scenario(
        every(2),
        begin=4,
        end=7,
        depth=7,
        asks=EVERYTHING,
        asks_max=2,
        asked_plan=3,
        faults_max=2,
        outcomes=BOTH,
        failure_mode=FailureMode.COMMIT,
    ),
    "recurring, what was missed collapses": Scenario(
        every(2),
        begin=6,
        end=9,
        depth=7,
        asks=EVERYTHING,
        asks_max=2,
        asked_plan=3,
        faults_max=2,
        fast_forward=True,
    ),
    "a longer default in a new release, beside the old one": Scenario(
        Inherited(every(2)),
        begin=2,
        end=7,
        depth=7,
        asks=EVERYTHING,
        asks_max=2,
        asked_plan=3,
        faults_max=2,
        outcomes=BOTH,
        gives_back=True,
        new_default=(4, 3),
    ),
    "a shorter default in a new release, failures count as done": Scenario(
        Inherited(every(3)),
        begin=3,
        end=8,
        depth=7,
        asks=(Ask.PAUSE, Ask.RESUME, Ask.TRIGGER),
        asks_max=2,
        faults_max=2,
        outcomes=BOTH,
        failure_mode=FailureMode.COMMIT,
        new_default=(4, 2),
    ),
    "once": Scenario(
        at(1),
        begin=1,
        end=6,
        depth=7,
        asks=EVERYTHING,
        asks_max=2,
        faults_max=2,
        outcomes=BOTH,
    ),
    "at most once, recurring": Scenario(
        every(2),
        begin=4,
        end=7,
        depth=7,
        asks=EVERYTHING,
        asks_max=2,
        faults_max=2,
        at_most_once=True,
    ),
    "at most once, once": Scenario(
        at(1),
        begin=1,
        end=5,
        depth=7,
        asks=EVERYTHING,
        asks_max=2,
        faults_max=2,
        at_most_once=True,
        gives_back=True,
    ),
    "static, replanned": Scenario(
        every(3),
        begin=3,
        end=8,
        depth=7,
        asks=OF_STATIC_TASKS,
        asks_max=3,
        asked_plan=2,
        faults_max=1,
        outcomes=BOTH,
        gives_back=True,
        group=":static",
    ),
    "static, replanned to something rarer": Scenario(
        every(2),
        begin=4,
        end=8,
        depth=7,
        asks=OF_STATIC_TASKS,
        asks_max=3,
        asked_plan=5,
        faults_max=1,
        outcomes=BOTH,
        failure_mode=FailureMode.UNLOCK,
        group=":static",
    ),
    "with a policy, given up": Scenario(
        every(3),
        begin=3,
        end=9,
        depth=8,
        asks=(*EVERYTHING, Ask.RERUN),
        asks_max=2,
        asked_plan=2,
        faults_max=1,
        outcomes=BOTH,
        attempts=2,
        lease=1,
    ),
    "with a policy, parked": Scenario(
        every(3),
        begin=3,
        end=8,
        depth=8,
        asks=(*EVERYTHING, Ask.RERUN),
        asks_max=2,
        faults_max=2,
        outcomes=BOTH,
        attempts=2,
        exhausted=Exhausted.PARK,
        gives_back=True,
        lease=1,
    ),
    "with a policy, paused": Scenario(
        every(3),
        begin=3,
        end=8,
        depth=8,
        asks=EVERYTHING,
        asks_max=3,
        faults_max=1,
        outcomes=BOTH,
        attempts=2,
        exhausted=Exhausted.PAUSE,
        lease=1,
    ),
    "with a policy, once": Scenario(
        at(1),
        begin=1,
        end=6,
        depth=9,
        asks=(*EVERYTHING, Ask.RERUN),
        asks_max=2,
        faults_max=2,
        outcomes=BOTH,
        attempts=2,
        lease=1,
    ),
    "with a policy, static, replanned": Scenario(
        every(3),
        begin=3,
        end=8,
        depth=8,
        asks=(*OF_STATIC_TASKS, Ask.RERUN),
        asks_max=2,
        asked_plan=2,
        faults_max=1,
        outcomes=BOTH,
        attempts=2,
        exhausted=Exhausted.PARK,
        lease=1,
        group=":static",
    ),
    "with a policy, parked and dropped": Scenario(
        every(3),
        begin=3,
        end=8,
        depth=8,
        asks=(Ask.DROP, Ask.RERUN, Ask.TRIGGER, Ask.PAUSE, Ask.SOONER),
        asks_max=2,
        faults_max=2,
        outcomes=BOTH,
        attempts=1,
        exhausted=Exhausted.PARK,
        lease=1,
    ),
    "what is too late is skipped": Scenario(
        every(2),
        begin=5,
        end=9,
        depth=7,
        asks=(Ask.PAUSE, Ask.RESUME, Ask.TRIGGER, Ask.UNSCHEDULE, Ask.FORCE),
        asks_max=2,
        faults_max=2,
        misfire_grace=1,
        gives_back=True,
    ),
    "what overlaps is skipped": Scenario(
        every(2),
        begin=2,
        end=8,
        depth=8,
        asks=(Ask.PAUSE, Ask.RESUME, Ask.TRIGGER, Ask.UNSCHEDULE, Ask.REPLACE),
        asks_max=1,
        faults_max=1,
        outcomes=BOTH,
        failure_mode=FailureMode.UNLOCK,
        skip_overlap=True,
        lease=4,
    ),
    "what overlaps with a backlog is skipped": Scenario(
        every(2),
        begin=7,
        end=13,
        depth=11,
        workers=1,
        asks=(Ask.PAUSE, Ask.RESUME, Ask.TRIGGER),
        asks_max=2,
        faults_max=1,
        outcomes=BOTH,
        failure_mode=FailureMode.UNLOCK,
        skip_overlap=True,
        gives_back=True,
        lease=4,
    ),
    "what overlaps with a backlog is skipped, and so is what is too late": Scenario(
        every(2),
        begin=6,
        end=13,
        depth=12,
        workers=1,
        asks=(Ask.TRIGGER,),
        asks_max=1,
        faults_max=1,
        outcomes=BOTH,
        failure_mode=FailureMode.UNLOCK,
        misfire_grace=4,
        skip_overlap=True,
        gives_back=True,
        lease=4,
    ),
    "with jitter": Scenario(
        every(3).with_jitter(timedelta(microseconds=3)),
        begin=3,
        end=10,
        depth=8,
        asks=(Ask.PAUSE, Ask.RESUME, Ask.TRIGGER, Ask.UNSCHEDULE),
        asks_max=2,
        faults_max=2,
        outcomes=BOTH,
        failure_mode=FailureMode.UNLOCK,
        gives_back=True,
    ),
    "three workers": Scenario(
        every(3),
        begin=3,
        end=7,
        depth=9,
        workers=3,
        asks=(Ask.TRIGGER, Ask.FORCE, Ask.UNSCHEDULE),
        asks_max=1,
        faults_max=2,
        heartbeats=True,
    ),
    "an index that lags": Scenario(
        every(3),
        begin=3,
        end=8,
        depth=8,
        asks=(Ask.PAUSE, Ask.PAUSE_UNTIL, Ask.TRIGGER, Ask.RESUME),
        asks_max=2,
        faults_max=2,
        heartbeats=True,
        lagging=True,
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_interleaving_breaks_a_promise(name: str) -> None:
    scenario = SCENARIOS[name]
    report = Explorer(scenario._replace(depth=scenario.depth + DEEPER)).run()
    print(f"{name}: {report.states} states, {report.depth} steps deep")
    assert report.violation is None, "\n".join(report.trace)
    assert report.states > 5_000


def far_from_here(scenario: Scenario) -> Scenario:
    return scenario._replace(workers=3, end=scenario.begin + 12, asks_max=6, faults_max=5)


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_long_history_taken_at_random_breaks_a_promise(name: str) -> None:
    explorer = Explorer(far_from_here(SCENARIOS[name]))
    random = Random(name)
    for _ in range(40 * (1 + 10 * DEEPER)):
        report = explorer.wander(random, 45)
        assert report.violation is None, "\n".join(report.trace)
        assert report.depth > 10


# What prevents each history, taken away.


class SettlesWithoutVersion(Protocol):
    def conditional(self, record: Record, token: str, change: Change, step: str) -> Write:
        return Write(record.group, record.key, change, ANY, token)


class SettlesWithoutToken(Protocol):
    def conditional(self, record: Record, token: str, change: Change, step: str) -> Write:
        return Write(record.group, record.key, change, record.version)


class SettlesWholeRows(Protocol):
    def conditional(self, record: Record, token: str, change: Change, step: str) -> Write:
        if isinstance(change, Patch):
            due_at, state, unfinished_attempts, progress = change
            texts = (record.schedule, record.args, progress or record.progress)
            change = Put(due_at, state, token, unfinished_attempts, *texts)
        return Write(record.group, record.key, change, ANY)


class BeatsWithoutVersion(Protocol):
    def conditional(self, record: Record, token: str, change: Change, step: str) -> Write:
        expect = ANY if step == "heartbeat" else record.version
        return Write(record.group, record.key, change, expect, token)


class TakesMovedOnForDone(Protocol):
    def verdict(self, current: Record | None, worker: Worker) -> Verdict:
        assert worker.record is not None
        done = current is not None and current.version > worker.record.version
        return Verdict.SETTLED if done else Verdict.LOST


class AsksOnlyForTheToken(Protocol):
    def verdict(self, current: Record | None, worker: Worker) -> Verdict:
        if current is None or current.token != worker.token:
            return Verdict.LOST
        return Verdict.HELD if current.state == State.RUNNING else Verdict.SETTLED


class PlansByTheNewDefaultAtOnce(Protocol):
    def reading(self, record: Record, sent: int) -> Reading:
        reading = super().reading(record, sent)
        if dumps(reading.schedule) == record.schedule:
            return reading
        planned = reading.schedule.next(sent)
        return reading._replace(progress=reading.progress._replace(planned=planned))


class StartsHoweverLate(Protocol):
    def may_start(self, worker: Worker, now: int) -> bool:
        return True


real_failed = rules.failed
real_merged = rules.merged
real_replanned = rules.replanned
real_paused = rules.paused
real_replaced = rules.replaced
real_succeeded = rules.succeeded
real_triggered = rules.triggered


def triggered_at_once(reading: Reading, now: int) -> Change | None:
    change = real_triggered(reading, now)
    return change._replace(due_at=now) if isinstance(change, Patch) else change


def succeeded_as_if_planned(reading: Reading, policy: Policy, now: int) -> Change:
    progress = reading.progress._replace(triggered=None)
    return real_succeeded(reading._replace(progress=progress), policy, now)


def paused_at_once(reading: Reading, now: int) -> Change | None:
    if rules.alive(reading.record, now):
        return Patch(None, State.RUNNING, reading.record.unfinished_attempts)
    return real_paused(reading, now)


def replaced_in_place(current: Record, wanted: Wanted, now: int) -> Put | Patch:
    change = real_replaced(current, wanted, now)
    if isinstance(change, Put):
        return change
    _, _, _, _, token, state, unfinished_attempts, _, _, progress = current
    return Put(
        current.due_at,
        state,
        token,
        unfinished_attempts,
        dumps(wanted.schedule),
        wanted.args,
        progress,
    )


def merged_anew(current: Record, wanted: Wanted, now: int) -> Put | None:
    change = real_merged(current, wanted, now)
    if change is None or current.state != State.RETRYING:
        return change
    return change._replace(due_at=now, state=State.SCHEDULED, unfinished_attempts=0)


def merged_with_the_least(current: Record, wanted: Wanted, now: int) -> Put | None:
    change = real_merged(current, wanted, now)
    return change and change._replace(due_at=load_progress(change.progress).planned)


def merged_for_later(current: Record, wanted: Wanted, now: int) -> Put | Patch | None:
    if current.state != State.RETRYING:
        return real_merged(current, wanted, now)
    pending = Pending(
        dumps(wanted.schedule), wanted.args, wanted.schedule.first(now), wanted.incarnation
    )
    progress = load_progress(current.progress)._replace(pending=pending)
    return Patch(
        current.due_at, current.state, current.unfinished_attempts, dump_progress(progress)
    )


def merged_beside_a_slow_worker(current: Record, wanted: Wanted, now: int) -> Put | None:
    change = real_merged(current, wanted, now)
    return change and change._replace(token=current.token)


def merged_and_still_parked(current: Record, wanted: Wanted, now: int) -> Put | None:
    change = real_merged(current, wanted, now)
    if change is None or current.state != State.PARKED:
        return change
    return change._replace(due_at=None, state=State.PARKED, progress=current.progress)


def replanned_and_still_parked(
    current: Record, schedule: Schedule, now: int, at_most_once: bool = False
) -> Change | None:
    change = real_replanned(current, schedule, now, at_most_once)
    if current.state != State.PARKED or not isinstance(change, Put):
        return change
    return change._replace(due_at=None, state=State.PARKED, progress=current.progress)


def failed_for_good(
    reading: Reading, policy: Policy, now: int, failure: Failure, ran: Ran | None
) -> Change:
    return real_succeeded(reading, policy, now, ran)


def never_too_many(reading: Reading, policy: Policy, now: int) -> Failure | None:
    return None


def failures_alone(
    record: Record, progress: Progress, failure: Failure, ran: tuple[int, int | None] | None
) -> Progress:
    return progress._replace(failures=progress.failures + 1, error=failure.error)


def given_up_without_a_trace(
    reading: Reading, policy: Policy, now: int, failure: Failure, ran: Any = None
) -> Change:
    return real_succeeded(reading, policy, now)


real_go_on = rules._go_on


def gone_on_without_jitter(reading: Reading, *rest: Any, **more: Any) -> Change:
    change = real_go_on(reading, *rest, **more)
    planned = load_progress(change.progress or "").planned if isinstance(change, Patch) else None
    if isinstance(change, Patch) and change.state == State.SCHEDULED and planned is not None:
        return change._replace(due_at=planned)
    return change


def skipped_without_a_count(reading: Reading, *rest: Any, **more: Any) -> Change:
    progress = reading.progress._replace(skipped=0)
    return real_go_on(reading._replace(progress=progress), *rest, **more)


def never_overlapping(
    policy: Policy, progress: Progress, following: int, ran: tuple[int, int | None] | None
) -> bool:
    return False


def overlapping_since_the_last_attempt(
    policy: Policy, progress: Progress, following: int, ran: tuple[int, int | None] | None
) -> bool:
    return ran is not None and following > ran[0]


real_dropped = rules.dropped


def dropped_as_a_whole(reading: Reading, policy: Policy, now: int) -> Change | None:
    return real_dropped(reading, policy, now) and DELETE


def claimable_by_the_index(record: Record, shown: Record, before: int) -> bool:
    same = (shown.unfinished_attempts, shown.progress) == (
        record.unfinished_attempts,
        record.progress,
    )
    return shown.due_at is not None and shown.due_at <= before and same


def taken_for_ever(record: Record, lease: int, now: int, token: str) -> Record:
    return record._replace(token=token, state=State.RUNNING, due_at=None)


class Mutant(NamedTuple):
    history: str
    scenario: Scenario
    row: Row
    protocol: type[Protocol] = Protocol
    module: Any = rules
    name: str = ""
    function: Callable[..., Any] | None = None


RECURRING = Scenario(every(3), begin=3, end=7, depth=10, asked_plan=2, faults_max=1)
FAULTLESS = RECURRING._replace(faults_max=0)
ONCE = Scenario(at(1), begin=1, end=6, depth=10, faults_max=1)
AT_MOST_ONCE = Scenario(every(3), begin=3, end=7, depth=10, at_most_once=True, faults_max=2)
RETRIED = RECURRING._replace(failure_mode=FailureMode.UNLOCK, outcomes=BOTH)
WITH_POLICY = ONCE._replace(faults_max=2, outcomes=BOTH, attempts=2, lease=1, depth=12)
PARKING = RECURRING._replace(outcomes=BOTH, attempts=1, exhausted=Exhausted.PARK, lease=1)
OVERLAPPING = SCENARIOS["what overlaps is skipped"]._replace(asks_max=0, faults_max=0, depth=14)
LAGGING = RECURRING._replace(lagging=True, heartbeats=True)


def asking(scenario: Scenario, *asks: Ask, most: int = 1) -> Scenario:
    return scenario._replace(asks=asks, asks_max=most)


MUTANTS = [
    Mutant(
        "a new default moves what is planned already",
        Scenario(Inherited(every(2)), begin=2, end=7, depth=8, new_default=(2, 3)),
        Row.NOTHING_LOST,
        PlansByTheNewDefaultAtOnce,
    ),
    Mutant(
        "1: a settle from the copy that was claimed undoes a replacement",
        asking(FAULTLESS, Ask.REPLACE),
        Row.NOTHING_OVERWRITTEN,
        SettlesWithoutVersion,
    ),
    Mutant(
        "1: a settle from the copy that was claimed undoes a pause",
        asking(FAULTLESS, Ask.PAUSE),
        Row.PAUSED_RESTS,
        SettlesWithoutVersion,
    ),
    Mutant(
        "1: a settle from the copy that was claimed undoes a trigger",
        asking(FAULTLESS, Ask.TRIGGER),
        Row.TRIGGER_RUNS,
        SettlesWithoutVersion,
    ),
    Mutant(
        "1: a settle from the copy that was claimed deletes a replaced one-off",
        asking(ONCE._replace(faults_max=0), Ask.REPLACE),
        Row.NOTHING_LOST,
        SettlesWithoutVersion,
    ),
    Mutant(
        "2: an advance that others overtook is taken for done",
        AT_MOST_ONCE,
        Row.STARTS_ONCE,
        TakesMovedOnForDone,
    ),
    Mutant(
        "3: a heartbeat lands after the settle",
        RECURRING._replace(heartbeats=True),
        Row.NOT_EARLY,
        BeatsWithoutVersion,
    ),
    Mutant(
        "4: an old execution settles a record that was made anew",
        asking(RECURRING, Ask.UNSCHEDULE, Ask.SOONER, most=2),
        Row.ONLY_ITS_OWN,
        SettlesWithoutToken,
    ),
    Mutant(
        "5: a trigger makes a running record due",
        asking(RECURRING, Ask.TRIGGER),
        Row.ONE_BODY,
        name="triggered",
        function=triggered_at_once,
    ),
    Mutant(
        "5: a triggered run moves the plan",
        asking(RECURRING, Ask.TRIGGER),
        Row.NOTHING_LOST,
        name="succeeded",
        function=succeeded_as_if_planned,
    ),
    Mutant(
        "5: a pause of a running record leaves it to nobody",
        asking(RECURRING, Ask.PAUSE),
        Row.COMES_DUE,
        name="paused",
        function=paused_at_once,
    ),
    Mutant(
        "6: a running one-off is replaced in place",
        asking(ONCE, Ask.REPLACE),
        Row.NOTHING_LOST,
        name="replaced",
        function=replaced_in_place,
    ),
    Mutant(
        "7: scheduling a paused record makes it due",
        asking(RECURRING, Ask.PAUSE, Ask.SOONER, most=2),
        Row.PAUSED_RESTS,
        name="merged",
        function=merged_with_the_least,
    ),
    Mutant(
        "7: scheduling again and again defeats the backoff",
        asking(RETRIED, Ask.SOONER),
        Row.BACKOFF_HOLDS,
        name="merged",
        function=merged_anew,
    ),
    Mutant(
        "scheduling a parked record changes its arguments, and it never runs",
        asking(WITH_POLICY, Ask.SOONER),
        Row.COMES_DUE,
        name="merged",
        function=merged_and_still_parked,
    ),
    Mutant(
        "a changed schedule of a parked static task is stored, and it never runs",
        asking(PARKING._replace(group=":static"), Ask.REPLAN),
        Row.COMES_DUE,
        name="replanned",
        function=replanned_and_still_parked,
    ),
    Mutant(
        "7: new arguments wait for the end of what always fails",
        asking(RETRIED, Ask.SOONER),
        Row.BACKOFF_HOLDS,
        name="merged",
        function=merged_for_later,
    ),
    Mutant(
        "8: an index that lags starts a second body",
        LAGGING,
        Row.ONE_BODY,
        module=model,
        name="claimable",
        function=claimable_by_the_index,
    ),
    Mutant(
        "8: an index that lags starts what was just paused",
        asking(LAGGING._replace(heartbeats=False), Ask.PAUSE),
        Row.PAUSED_RESTS,
        module=model,
        name="claimable",
        function=claimable_by_the_index,
    ),
    Mutant(
        "36: a worker wakes after its lease and starts the body",
        RECURRING,
        Row.ONE_BODY,
        StartsHoweverLate,
    ),
    Mutant(
        "a claim that was repeated arrives, and its holder settles what it did not run",
        AT_MOST_ONCE._replace(schedule=every(2), begin=4),
        Row.ONLY_ITS_OWN,
        AsksOnlyForTheToken,
    ),
    Mutant(
        "a slow worker settles the arguments that it did not run with",
        asking(ONCE, Ask.SOONER),
        Row.NOTHING_LOST,
        name="merged",
        function=merged_beside_a_slow_worker,
    ),
    Mutant(
        "a failed run is taken for done",
        RECURRING._replace(outcomes=BOTH),
        Row.NOTHING_LOST,
        name="failed",
        function=failed_for_good,
    ),
    Mutant(
        "a body that kills its process is started for ever",
        WITH_POLICY,
        Row.ATTEMPTS,
        name="too_many",
        function=never_too_many,
    ),
    Mutant(
        "a failure forgets the starts without a word before it",
        WITH_POLICY._replace(workers=1, faults_max=1, attempts=3, end=12, depth=25),
        Row.ATTEMPTS,
        name="_with_failure",
        function=failures_alone,
    ),
    Mutant(
        "a one-off that has failed for good vanishes",
        WITH_POLICY,
        Row.NOTHING_LOST,
        name="exhausted",
        function=given_up_without_a_trace,
    ),
    Mutant(
        "a run that failed for good plans the next one without its jitter",
        RECURRING._replace(
            schedule=every(3).with_jitter(timedelta(microseconds=3)),
            end=14,
            depth=16,
            workers=1,
            outcomes=(False,),
            failure_mode=FailureMode.COMMIT,
            faults_max=0,
        ),
        Row.NOT_EARLY,
        name="_go_on",
        function=gone_on_without_jitter,
    ),
    Mutant(
        "what is too late is skipped and not counted",
        FAULTLESS._replace(schedule=every(2), begin=5, misfire_grace=1),
        Row.SKIPS_COUNTED,
        name="_go_on",
        function=skipped_without_a_count,
    ),
    Mutant(
        "what came due while a body ran is run after it",
        OVERLAPPING._replace(outcomes=(True,)),
        Row.SKIPS_COUNTED,
        name="_skips",
        function=never_overlapping,
    ),
    Mutant(
        "what came due since the first of two attempts is run after them",
        OVERLAPPING,
        Row.SKIPS_COUNTED,
        name="_skips",
        function=overlapping_since_the_last_attempt,
    ),
    Mutant(
        "giving up one occurrence removes all that follow",
        asking(
            WITH_POLICY._replace(schedule=every(3), begin=3, attempts=1, exhausted=Exhausted.PARK),
            Ask.DROP,
        ),
        Row.NOTHING_LOST,
        name="dropped",
        function=dropped_as_a_whole,
    ),
    Mutant(
        "a settle brings back what was unscheduled",
        asking(FAULTLESS, Ask.UNSCHEDULE),
        Row.NOTHING_RESURRECTED,
        SettlesWholeRows,
    ),
    Mutant(
        "a worker dies, and its record is due for nobody",
        RECURRING,
        Row.COMES_DUE,
        module=model,
        name="taken",
        function=taken_for_ever,
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.history)
def test_the_search_finds_what_each_rule_prevents(
    mutant: Mutant, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        if mutant.function is not None:
            patched.setattr(mutant.module, mutant.name, mutant.function)
        broken = Explorer(mutant.scenario, mutant.protocol).run()
    print(f"{broken.states} states", *broken.trace, sep="\n  ")

    assert broken.violation is not None
    assert broken.violation.row is mutant.row
    assert len(broken.trace) == broken.depth, "the last step is told with the violation"
    whole = Explorer(mutant.scenario._replace(depth=broken.depth)).run()
    assert whole.violation is None, "\n".join(whole.trace)


def test_long_histories_meet_broken_rules_too() -> None:
    explorer = Explorer(far_from_here(SCENARIOS["once"]), SettlesWithoutVersion)
    random = Random("once")
    assert any(explorer.wander(random, 45).violation is not None for _ in range(40))
