"""The rules about runs: which change of a record follows from which event. Pure functions.

======================== ============================================================
event                    the record afterwards
======================== ============================================================
created                  is scheduled for the first occurrence of its schedule
claimed (by a store)     is running; is due when the lease ends; counts one more attempt
heartbeat                is due later
succeeded, advanced      is scheduled for the next occurrence; is deleted after the last one
failed, ``NONE``         stays running until the lease ends; counts no unfinished attempt
failed, ``UNLOCK``       is retrying, due soon
failed, ``COMMIT``       is the same as after success
failed, with a policy    is retrying, due after the delay of its policy
exhausted, ``PARK``      is kept with the error, and is never due
exhausted, ``CONTINUE``  is the same as after success, with the error
exhausted, ``PAUSE``     is paused; the occurrence is tried again when it is resumed
put back                 is due when its occurrence is; an edit had made it due before
misfired                 is scheduled for the first occurrence that is not too late
given back               is as it was before the claim
merged                   has the new schedule and arguments, and keeps the sooner time; is as
                         if newly created if it was parked
replaced                 is as if newly created, but stays paused; while it runs, from the end
                         of that run
paused, resumed          is no longer due, or not before the end of the pause; is due again
triggered                runs once now; its schedule does not advance
replanned                follows the changed declaration in code, also if it was parked
parked                   is kept with the reason, and is never due
rerun                    is due now, with all of its attempts
dropped                  is the same as after its occurrence was given up
======================== ============================================================

A record without a schedule of its own follows the default of its template. If that has changed, the
reading has the new one: it holds from the occurrence after the planned one, and the change that
plans this one stores it.

While a worker holds the lease, only this worker changes schedule, arguments or ``due_at``. Requests
of users are written to ``pending`` and apply when the run has ended. Any other change that ends
``running``, or changes what the record runs, clears the token. So from the state and the token, the
holder can always tell whether it still holds the record, and whether its own write has settled it
(``verdict``).

This module reads no clock, does not wait or log, and knows no store. Instants and durations are
integers: microseconds, UTC. A record is due when ``due_at <= now``; a lease is held while
``due_at > now``. A planned occurrence is due when it is planned, or after the jitter of its
schedule (``_due``); the planned instant stays.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from pyncette.engine.occurrences import overdue_count
from pyncette.model import Exhausted, FailureMode, Outcome
from pyncette.schedule import NewerFormat, Schedule
from pyncette.schedule import dumps as dump_schedule
from pyncette.schedule import loads as load_schedule
from pyncette.store.record import (
    DELETE,
    LATEST_INSTANT,
    STATIC_GROUP,
    Change,
    Delete,
    Patch,
    Pause,
    Pending,
    Progress,
    Put,
    Reading,
    Record,
    State,
    UnreadableRecord,
    dump_position,
    dump_progress,
    load_progress,
    patch_of,
    put_of,
)

SUSPECT_ATTEMPTS: Final = 3
"""Number of attempts without an outcome from which a record is suspected of killing its process."""

WITHOUT_END: Final = Pause()
"""A pause until the record is resumed, without a reason."""

UNKNOWN_SCHEDULE: Final = "1 at 0"
"""The schedule of a static task's record that was migrated without its schedule. It stays until a
worker starts that has the schedule in its code. No static task can be declared with it."""


# Before Python 3.12, to read a member from its class takes as long as a call.
_SCHEDULED: Final = State.SCHEDULED

BEHIND_MIN: Final = 60_000_000
"""Microseconds by which the next occurrence is overdue before its record is paced."""

_PACE_PART: Final = 10


class Policy(NamedTuple):
    """The options of a task that decide what follows an outcome; from code, at each claim.

    Attributes:
        fast_forward: Missed occurrences run once, together.
        failure_mode: What follows a failure, if there is no retry policy.
        retry_after: Microseconds until an ``UNLOCK`` failure is retried.
        exhausted: What follows the last attempt; None: ``CONTINUE``, but one-offs are parked.
        attempts: Maximum attempts of one occurrence; None: no limit.
        within: Microseconds after the planned time in which attempts may be planned; None: no
            limit.
        misfire_grace: Microseconds by which the first attempt may be late; None: no limit.
        skip_overlap: Occurrences that come due during a run are skipped.
        pace: Microseconds between two runs of a record that is behind its schedule, at most; less
            if its occurrences are closer together than ten times that.
    """

    fast_forward: bool = False
    failure_mode: FailureMode = FailureMode.NONE
    retry_after: int = 1_000_000
    exhausted: Exhausted | None = None
    attempts: int | None = None
    within: int | None = None
    misfire_grace: int | None = None
    skip_overlap: bool = False
    pace: int = 0


class Failure(NamedTuple):
    """An attempt that did not succeed.

    Attributes:
        error: What it raised, as text.
        traceback: The end of its traceback.
        delay: Microseconds until the next attempt; None: the failure mode decides.
        final: There is no further attempt.
        free: The attempt does not count.
        outcome: How it is shown; None: it failed.
    """

    error: str
    traceback: str | None = None
    delay: int | None = None
    final: bool = False
    free: bool = False
    outcome: Outcome | None = None


Ran = tuple[int, int | None]
"""When the body of an attempt started and ended, in microseconds; None: it has not ended."""


class Wanted(NamedTuple):
    """The content that a caller wants a record to have.

    Attributes:
        schedule: The schedule.
        args: The arguments, as text.
        incarnation: A new random id.
        identity: The group and the key of the record.
    """

    schedule: Schedule
    args: str
    incarnation: str
    identity: tuple[str, str]


class Verdict(Enum):
    """What the holder of a claim learns from the current record when its write is refused."""

    HELD = "held"
    """The worker still holds the record; a user has changed it. Decide again from this record."""

    SETTLED = "settled"
    """An earlier write of the same holder changed the record: the outcome is stored already."""

    LOST = "lost"
    """The lease is lost: the record belongs to another claim, or was removed or replaced."""


def alive(record: Record, now: int) -> bool:
    """Returns whether a worker holds the lease of the record."""
    return record.state == State.RUNNING and record.due_at is not None and record.due_at > now


def failed_under_lease(record: Record) -> bool:
    """Returns whether no task runs though the record is running: a failure left the lease.

    With mode ``NONE`` a failed run is retried when its lease ends. A record that a task runs counts
    at least one unfinished attempt.
    """
    return record.state == State.RUNNING and record.unfinished_attempts == 0


def suspect(record: Record) -> bool:
    """Returns whether the record may kill its process, so that it should run alone."""
    return record.unfinished_attempts >= SUSPECT_ATTEMPTS


def verdict(current: Record | None, held: Reading) -> Verdict:
    """Returns what a refused write means to the holder of a claim.

    A running record without unfinished attempts was written by its own holder: only the failure of
    a run with mode ``NONE`` leaves a record like that. If a claim was repeated, the first call may
    arrive late, and claim with the same token an occurrence that this holder does not run.

    Args:
        current: The current record.
        held: The record as its holder last saw it, still running.
    """
    if current is None or current.token != held.record.token:
        return Verdict.LOST
    if (
        current.state == State.RUNNING
        and current.unfinished_attempts > 0
        and _same_run(current, held)
    ):
        return Verdict.HELD
    return Verdict.SETTLED


def _same_run(current: Record, held: Reading) -> bool:
    if current.progress == held.record.progress:
        return True
    try:
        return load_progress(current.progress)[:3] == held.progress[:3]
    except (NewerFormat, UnreadableRecord):
        return True  # reading it fails when its holder decides again


# Events of the holder of a claim.


def heartbeat(record: Record, now: int, lease: int) -> Patch:
    """Extends the lease, from now."""
    return Patch(now + lease, State.RUNNING, record.unfinished_attempts)


def succeeded(reading: Reading, policy: Policy, now: int, ran: Ran | None = None) -> Change:
    """The current occurrence is done."""
    return _occurrence_done(reading, policy, now, None, ran)


def advanced(reading: Reading, policy: Policy, now: int) -> Change:
    """An at-most-once record moves to the next occurrence before its task runs, as after success.

    Only the start of the run is known then. An occurrence that a clock planned that was ahead is
    never planned anew: it may have run.
    """
    return _occurrence_done(reading, policy, now, None, (now, None), at_most_once=True)


def skipped(
    reading: Reading, policy: Policy, now: int, reason: str, ran: Ran | None = None
) -> Change:
    """The task has said that there is nothing to do: done, and shown as skipped."""
    record, schedule, progress = reading
    reading = Reading(record, schedule, progress._replace(skipped=progress.skipped + 1))
    failure = Failure(reason, outcome=Outcome.SKIPPED)
    return _occurrence_done(reading, policy, now, failure, ran)


def attempt_of(reading: Reading) -> int:
    """Returns the number of the attempt for which a record was claimed; the first one is 1."""
    return reading.progress.failures + max(reading.record.unfinished_attempts, 1)


def came_due(reading: Reading) -> int | None:
    """Returns when the current occurrence came due for its first attempt: after its jitter.

    If a user has asked for it again, that is when.
    """
    record, schedule, progress = reading
    due_at = _due_of(schedule, record, progress)
    return due_at if due_at is None else max(due_at, progress.renewed or due_at)


def previous_error(reading: Reading) -> str | None:
    """Returns how the attempt before the claimed one has failed; None if it is the first one."""
    record, _, progress = reading
    if record.unfinished_attempts > 1:
        return NO_OUTCOME
    # What is older than a triggered run concerns the occurrence that waits meanwhile.
    since = progress.triggered or 0
    postponed = progress.outcome is Outcome.POSTPONED and (progress.last_started or 0) >= since
    tried = progress.failures > 0 or postponed or (progress.renewed or 0) > since
    return progress.error if tried else None


def _begun(progress: Progress, unfinished_attempts: int) -> bool:
    """Returns whether the occurrence of a schedule was started before, or a user has asked for it.

    It was started also if a closing worker gave it back, which does not count as an attempt.
    """
    return (
        unfinished_attempts > 0
        or progress.failures > 0
        or progress.begun is not None
        or progress.renewed is not None
        or progress.outcome is Outcome.POSTPONED
    )


def failed(
    reading: Reading, policy: Policy, now: int, failure: Failure, ran: Ran | None = None
) -> Change:
    """The task raised an exception.

    Requests that were made while it ran now apply: a replacement takes the place of the failed
    occurrence, a pause keeps it until the record is resumed. If a static task has a new schedule,
    the failed occurrence is retried first.

    All attempts that ended without an outcome before this one are counted together with it.
    """
    if failure.final:
        return exhausted(reading, policy, now, failure, ran)
    record, schedule, progress = reading
    if failure.delay is None and policy.failure_mode is FailureMode.COMMIT:
        return _occurrence_done(reading, policy, now, failure, ran)
    replacement = _replacement(progress)
    if replacement is not None:
        return _promoted(record, replacement)
    pending = progress.pending
    progress = _with_failure(record, progress, failure, ran)._replace(pause=None)
    if ran is not None and (policy.skip_overlap or policy.misfire_grace is not None):
        progress = _with_begin(progress, ran[0])
    if _asked_to_rest(pending, now):
        return _held_back(record, schedule, progress, 0)
    text = dump_progress(progress)
    if failure.delay is not None:
        return Patch(now + failure.delay, State.RETRYING, 0, text)
    if policy.failure_mode is FailureMode.UNLOCK:
        return Patch(now + policy.retry_after, State.RETRYING, 0, text)
    return Patch(record.due_at, State.RUNNING, 0, text)


def _with_begin(progress: Progress, instant: int) -> Progress:
    """Notes when the occurrence of the schedule was first started; a triggered run is another."""
    if progress.begun is not None or progress.triggered is not None:
        return progress
    return progress._replace(begun=instant)


def _with_failure(
    record: Record, progress: Progress, failure: Failure, ran: Ran | None
) -> Progress:
    attempts = max(record.unfinished_attempts, 1) - failure.free
    return progress._replace(
        failures=progress.failures + attempts,
        error=failure.error,
        last=progress.last if ran is None else _shown(ran),
        outcome=failure.outcome,
        traceback=failure.traceback,
    )


NO_OUTCOME: Final = "it ended without an outcome: its worker crashed, or its lease ended before it"
"""What is told of an attempt that was claimed and never settled."""


def too_many(reading: Reading, policy: Policy, now: int) -> Failure | None:
    """Returns why a claimed record gets no further attempt; None if it gets one.

    A start that ended without an outcome counts as an attempt, so a task that kills its process
    ends as well.
    """
    record, _, progress = reading
    attempts = attempt_of(reading) - 1
    if policy.attempts is None or not attempts:
        return None
    late = policy.within is not None and now > _counted_from(progress) + policy.within
    if attempts < policy.attempts and not late:
        return None
    error = progress.error or NO_OUTCOME
    if record.unfinished_attempts > 1:
        error = f"Attempt {attempts}: {NO_OUTCOME}"
        if progress.error is not None and progress.failures:
            error = f"{error}; before that: {progress.error}"
    # The claim that has found this out is not an attempt.
    return Failure(error, progress.traceback, final=True, free=True)


def last_chance(reading: Reading, policy: Policy, due_at: int) -> bool:
    """Returns whether a next attempt at ``due_at`` would be too late for the policy."""
    return policy.within is not None and due_at > _counted_from(reading.progress) + policy.within


def _counted_from(progress: Progress) -> int:
    """When the current occurrence got its attempts."""
    return max(progress.renewed or 0, progress.occurrence or 0)


def _renewed_before(progress: Progress) -> int | None:
    """When the occurrence that waits for a triggered run got its attempts anew."""
    renewed, triggered = progress.renewed, progress.triggered
    return renewed if triggered is None or (renewed or 0) <= triggered else None


def exhausted(
    reading: Reading, policy: Policy, now: int, failure: Failure, ran: Ran | None = None
) -> Change:
    """The last allowed attempt has failed, or was never settled.

    A record that is parked, and was triggered meanwhile, gets one more attempt, like a parked
    record. An instance that has nothing to continue with is parked, so that no occurrence is lost
    without a trace.
    """
    record, schedule, progress = reading
    replacement = _replacement(progress)
    if replacement is not None:
        return _promoted(record, replacement)
    if policy.exhausted is None and policy.failure_mode is FailureMode.COMMIT:
        return _occurrence_done(reading, policy, now, failure, ran)
    if policy.exhausted in (None, Exhausted.CONTINUE) and _has_next(reading):
        return _occurrence_done(reading, policy, now, failure, ran)
    progress = _with_failure(record, progress, failure, ran)
    pending = progress.pending
    if policy.exhausted is Exhausted.PAUSE:
        pending = (pending or Pending())._replace(paused=True)
        progress = progress._replace(failures=0, pending=pending, renewed=now)
        return _held_back(record, schedule, progress, 0)
    if pending is not None and pending.triggered is not None:
        left = _pending_or_none(pending._replace(triggered=None))
        progress = progress._replace(failures=0, pending=left, renewed=now)
        due_at = max(pending.triggered, progress.occurrence or 0)
        return Patch(due_at, State.SCHEDULED, 0, dump_progress(progress))
    return Patch(None, State.PARKED, 0, dump_progress(progress))


def _has_next(reading: Reading) -> bool:
    """Returns whether the schedule goes on after the current run; a static task stays anyway."""
    record, schedule, progress = reading
    if record.group == STATIC_GROUP:
        return True
    if progress.triggered is not None or progress.planned is None:
        return progress.planned is not None
    return schedule.following(progress.planned) is not None


def too_late(reading: Reading, policy: Policy, now: int) -> bool:
    """Returns whether a claimed occurrence is too late to be started for the first time.

    An occurrence that was started before is never too late, whatever became of that attempt.
    Neither is one that a user has asked for.
    """
    record, _, progress = reading
    if policy.misfire_grace is None or progress.triggered is not None:
        return False
    due_at = came_due(reading)
    if due_at is None or now - due_at <= policy.misfire_grace:
        return False
    return not _begun(progress, record.unfinished_attempts - 1)


def misfired(reading: Reading, policy: Policy, now: int) -> Change:
    """The claimed occurrence is too late: it and all that are too late with it are skipped."""
    record, schedule, progress = reading
    assert progress.planned is not None
    assert policy.misfire_grace is not None
    if progress.pending is not None and progress.pending.schedule is not None:
        return _promoted(record, progress.pending)
    # The latest instant that is too late: an occurrence exactly as late as is allowed still runs.
    last = now - policy.misfire_grace - 1
    if schedule.jitter:
        # One that waits for longer than this one may still be in time.
        following = schedule.following(progress.planned)
        wait = schedule.jitter if following is None else following - progress.planned
        last = max(last - min(wait, schedule.jitter), progress.planned)
    count = overdue_count(schedule, progress.planned, last)
    planned = schedule.skip(progress.planned, last)
    if (
        planned is not None
        and planned <= now
        and not policy.fast_forward
        and _skips(policy, progress, planned, None)
    ):
        # It was the last of a backlog: what came due while that was run overlaps.
        count += overdue_count(schedule, planned, now)
        planned = schedule.skip(planned, now)
    error = f"skipped: {(now - (came_due(reading) or 0)) / 1_000_000:.0f} s late"
    progress = progress._replace(skipped=progress.skipped + count)
    failure = Failure(error, outcome=Outcome.SKIPPED)
    reading = Reading(record, schedule, progress)
    return _go_on(reading, policy, now, planned, failure, None, keep=True)


def early(reading: Reading, now: int) -> bool:
    """Returns whether a claimed record may not run yet: its ``due_at`` was edited.

    No rule makes an occurrence due before it is planned. One that was started before, or that a
    user has asked for, may run: a clock that was ahead may have planned it, and has been set back.
    So may one that is planned for the next minute, because the clocks of workers differ.
    """
    record, _, progress = reading
    planned = progress.planned
    if progress.triggered is not None or planned is None or planned <= now + CLOCK_ERROR_MAX:
        return False
    return not _begun(progress, record.unfinished_attempts - 1)


def put_back(reading: Reading, now: int) -> Change:
    """The record was claimed ``early``: it is due again when its occurrence is."""
    record, schedule, progress = reading
    change = given_back(reading, now)
    if isinstance(change, Patch) and change.state == State.SCHEDULED and change.progress is None:
        return change._replace(due_at=_due_of(schedule, record, progress))
    return change


def stranded(reading: Reading, now: int) -> bool:
    """Returns whether a record that should run never comes due: its ``due_at`` was edited.

    It has none, or one that no rule gives: far later than the occurrence that it is for.
    """
    record, schedule, progress = reading
    if record.state not in (State.SCHEDULED, State.RETRYING, State.RUNNING):
        return False
    if record.due_at is None or record.due_at > LATEST_INSTANT:
        return True
    if record.state != State.SCHEDULED or progress.occurrence is None:
        return False
    latest = max(progress.occurrence, now) + (schedule.jitter or 0)
    return record.due_at > latest + RETRY_DELAY_MAX


def due_again(reading: Reading, now: int) -> Patch:
    """A ``stranded`` record is due as its progress says."""
    record, schedule, progress = reading
    if record.state == State.SCHEDULED:
        due_at = _due_of(schedule, record, progress)
        return Patch(due_at, State.FINISHED if due_at is None else State.SCHEDULED, 0)
    return Patch(now, State.RETRYING, record.unfinished_attempts)


def given_back(reading: Reading, now: int, delay: int = 0, started: int | None = None) -> Change:
    """The record was claimed, but its task has not run, or not to its end: this is no attempt.

    Args:
        reading: The record.
        now: The instant.
        delay: The record is not due before ``now + delay``.
        started: When its task started, if it did. Only this and the token of the claim stay.
    """
    record, schedule, progress = reading
    text = None
    if started is not None:
        progress = _with_begin(progress, started)
        text = dump_progress(progress)
    unfinished_attempts = max(record.unfinished_attempts - 1, 0)
    replacement = _replacement(progress)
    if replacement is not None:
        return _promoted(record, replacement)
    if progress.triggered is None and _asked_to_rest(progress.pending, now):
        return _held_back(record, schedule, progress, unfinished_attempts)
    if unfinished_attempts or progress.failures:
        return Patch(now + delay, State.RETRYING, unfinished_attempts, text)
    due_at = now + delay if delay or progress.occurrence is None else progress.occurrence
    return Patch(due_at, State.SCHEDULED, unfinished_attempts, text)


def given_back_unread(record: Record, now: int, delay: int) -> Patch:
    """The same as ``given_back``, for a record whose texts a later release wrote."""
    return Patch(now + delay, State.RETRYING, max(record.unfinished_attempts - 1, 0))


def parked(record: Record, reason: str, incarnation: str) -> Patch:
    """The record cannot be read: it is kept, with the reason and the readable part."""
    try:
        progress = load_progress(record.progress)._replace(error=reason)
    except NewerFormat:
        return Patch(None, State.PARKED, 0)
    except UnreadableRecord:
        progress = Progress(None, incarnation, error=reason)
    return Patch(None, State.PARKED, 0, dump_progress(progress))


# Requests of users.


def created(wanted: Wanted, now: int) -> Put:
    """A new record, or one that replaces the current record including its lease.

    If the schedule has no first occurrence, the record is finished.
    """
    schedule, args, incarnation, identity = wanted
    first = schedule.first(now)
    return put_of(
        (
            _due(schedule, identity, first),
            State.FINISHED if first is None else State.SCHEDULED,
            None,
            0,
            dump_schedule(schedule),
            args,
            dump_position(first, incarnation),
        )
    )


def merged(current: Record, wanted: Wanted, now: int) -> Put | None:
    """New schedule and arguments; the sooner of the old and the new next time is kept.

    A record that waits for a retry, or whose worker died, keeps its time and its unfinished
    attempts. The new schedule and arguments apply from the next attempt on, so that a caller that
    schedules repeatedly does not defeat a backoff. If its worker is slow but not dead, that worker
    loses the lease, because it has run the old arguments. Paused records stay paused. A parked
    record is created anew, with all of its attempts: it has no next time of its own, and the new
    arguments may be the repair.

    Returns:
        The change, or None if the task is running.

    Raises:
        NewerFormat: A later release wrote the record.
    """
    if alive(current, now):
        return None
    try:
        progress = load_progress(current.progress)
    except UnreadableRecord:
        return created(wanted, now)
    if current.state == State.PARKED:
        return _created_in_place(current, progress, wanted, now)
    found = progress
    if progress.pending is not None:
        # This request is newer than the replacement that was pending when the worker died.
        progress = progress._replace(pending=_only_flags(progress.pending))
    due_at, state = current.due_at, current.state
    schedule = wanted.schedule
    if state in (State.SCHEDULED, State.PAUSED, State.FINISHED) or progress.planned is None:
        planned = _soonest(progress.planned, _first_again(schedule, current, now))
        if planned != progress.planned:
            progress = progress._replace(planned=planned)
    if progress.planned is not None:
        # A single run at the kept time: the record does not name another time beside it.
        schedule = schedule.moved_to(progress.planned)
    if state in (State.SCHEDULED, State.FINISHED):
        due_at = _due_of(schedule, current, progress)
        state = State.FINISHED if due_at is None else State.SCHEDULED
    elif state == State.PAUSED:
        due_at = _due_after(progress.pause, progress, schedule, current)
    return put_of(
        (
            due_at,
            state,
            None if state == State.RUNNING else current.token,
            current.unfinished_attempts,
            dump_schedule(schedule),
            wanted.args,
            # Most instances that are scheduled again are as they should be.
            current.progress if progress is found else dump_progress(progress),
        )
    )


def replaced(current: Record, wanted: Wanted, now: int) -> Put | Patch:
    """The same as newly created; if the task is running, from the end of that run.

    Where a failed run has left its lease, nothing runs, so the record is new at once. A record that
    is paused, or was asked to pause, stays so: only ``resumed`` ends a pause.

    Raises:
        NewerFormat: A later release wrote the record.
    """
    try:
        progress = load_progress(current.progress)
    except UnreadableRecord:
        progress = None
    if not alive(current, now) or failed_under_lease(current):
        return _created_in_place(current, progress, wanted, now)
    if progress is None:
        # The run cannot be identified, and its outcome cannot be written. Only its lease is kept.
        new = created(wanted, now)
        if new.due_at is None or current.due_at is None:
            return new
        return new._replace(due_at=max(new.due_at, current.due_at))
    pending = (progress.pending or Pending())._replace(
        schedule=dump_schedule(wanted.schedule),
        args=wanted.args,
        planned=wanted.schedule.first(now),
        incarnation=wanted.incarnation,
    )
    return _moved(current, progress._replace(pending=pending))


def paused(reading: Reading, now: int, pause: Pause = WITHOUT_END) -> Change | None:
    """Not due until resumed; if the task is running, from the end of that run.

    If the pause has an end, the record is due from then on, or at its planned instant if that lies
    later: the claim that finds it then runs what it finds, and needs to know nothing of the pause.

    Returns:
        The change, or None if the record is parked or finished, or has this pause already.
    """
    record, schedule, progress = reading
    if record.state in (State.PARKED, State.FINISHED):
        return None
    said = _said(pause)
    if record.state == State.PAUSED and progress.pause == said:
        return None
    if alive(record, now):
        pending = (progress.pending or Pending())._replace(paused=True, pause=said)
        return None if pending == progress.pending else _pending_changed(record, progress, pending)
    progress = _unpaused(progress)._replace(pause=said, backlog=None)
    return Put(
        _due_after(said, progress, schedule, record),
        State.PAUSED,
        None if record.state == State.RUNNING else record.token,
        record.unfinished_attempts,
        record.schedule,
        record.args,
        dump_progress(progress),
    )


def resumed(reading: Reading, now: int) -> Change | None:
    """Due again: missed occurrences are handled as after any other delay.

    Returns:
        The change, or None if the record is not paused and no pause is pending.
    """
    record, schedule, progress = reading
    if record.state != State.PAUSED:
        if progress.pending is None or not progress.pending.paused:
            return None
        return _moved(record, _unpaused(progress))
    text = None
    if progress.pause is not None or progress.renewed is not None:
        renewed = None if progress.renewed is None else now
        text = dump_progress(progress._replace(pause=None, renewed=renewed))
    if record.unfinished_attempts or progress.failures:
        return Patch(now, State.RETRYING, record.unfinished_attempts, text)
    due_at = _due_of(schedule, record, progress)
    return Patch(due_at, State.FINISHED if due_at is None else State.SCHEDULED, 0, text)


def triggered(reading: Reading, now: int) -> Change | None:
    """One run now; the schedule is not changed by it.

    A running record runs once more at the end of that run. A record that waits for a retry gets its
    next attempt now. A parked one is run again, see ``rerun``. A paused record stays paused
    afterwards.

    Returns:
        The change, or None if such a run is already under way or requested.
    """
    record, _, progress = reading
    match record.state:
        case State.RUNNING:
            pending = progress.pending or Pending()
            if pending.triggered is not None:
                return None
            pending = pending._replace(triggered=_trigger_instant(progress, now))
            return _pending_changed(record, progress, pending)
        case State.RETRYING:
            # One that was given back unread may not have begun. The user has asked for it now.
            text = None
            if not _begun(progress, record.unfinished_attempts):
                text = dump_progress(progress._replace(renewed=now))
            return Patch(now, State.RETRYING, record.unfinished_attempts, text)
        case State.PARKED:
            return rerun(reading, now)
        case State.SCHEDULED if progress.triggered is not None:
            return None
        case State.PAUSED:
            pending = (progress.pending or Pending())._replace(paused=True, pause=progress.pause)
            progress = progress._replace(pending=pending, pause=None)
        case _:
            pass
    instant = _trigger_instant(progress, now)
    progress = _triggered(progress, record.unfinished_attempts, instant)
    return Patch(instant, State.SCHEDULED, 0, dump_progress(progress))


def _trigger_instant(progress: Progress, now: int) -> int:
    """The planned instant of a triggered run: a microsecond after an earlier run of this instant.

    Otherwise two of them would be taken for one, if the clocks of two callers differ by as much as
    the first one took, or if a clock stands still.
    """
    waiting = None if progress.pending is None else progress.pending.triggered
    last = max(progress.triggered or 0, waiting or 0, progress.last_started or 0)
    return last + 1 if now <= last < now + _TRIGGER_SHIFT_MAX else now


def _triggered(progress: Progress, unfinished_attempts: int, instant: int) -> Progress:
    """A triggered run comes first. The occurrence that waits for it gets its attempts anew."""
    if (
        progress.triggered is None
        and progress.begun is None
        and _begun(progress, unfinished_attempts)
    ):
        # When its first attempt started is not known; the last one is the best guess.
        begun = progress.last_started
        progress = progress._replace(begun=instant if begun is None else begun)
    return progress._replace(triggered=instant, failures=0)


def rerun(reading: Reading, now: int, args: str | None = None) -> Change | None:
    """A parked record is due now, and gets all of its attempts anew.

    Args:
        reading: The record.
        now: The instant.
        args: New arguments, as text; None: those that it has.

    Returns:
        The change, or None if the record is not parked.
    """
    record, schedule, progress = reading
    if record.state != State.PARKED:
        return None
    if progress.occurrence is None:
        progress = progress._replace(planned=schedule.next(now), triggered=now)
    # What came due while it was parked came due during no attempt.
    begun = None if progress.triggered is None else progress.begun
    progress = progress._replace(failures=0, renewed=now, begun=begun, backlog=None)
    text = dump_progress(progress)
    if args is None:
        return Patch(now, State.SCHEDULED, 0, text)
    return Put(now, State.SCHEDULED, record.token, 0, record.schedule, args, text)


def dropped(reading: Reading, policy: Policy, now: int) -> Change | None:
    """The occurrence of a parked record is given up: the next one follows, or the record is gone.

    Returns:
        The change, or None if the record is not parked.
    """
    record, schedule, progress = reading
    if record.state != State.PARKED:
        return None
    failure = Failure(progress.error or "parked", progress.traceback, outcome=progress.outcome)
    if progress.occurrence is None:
        # It could not be read which one it was: what lies ahead follows.
        return _go_on(reading, policy, now, schedule.next(now), failure, None)
    return _occurrence_done(reading, policy, now, failure, None)


def replanned(
    current: Record, schedule: Schedule, now: int, at_most_once: bool = False, lease: int = 0
) -> Put | Patch | None:
    """Brings a static task's record up to date with its declaration in code, when a worker starts.

    A new schedule applies from the next occurrence on, and the sooner of the old and the new next
    time is kept. So workers that start again and again, perhaps of two releases, cannot postpone a
    run for ever. An occurrence that is overdue or running is finished; the new schedule gives the
    occurrences after it. A record that was migrated without its schedule (``UNKNOWN_SCHEDULE``)
    also keeps its occurrence. Its schedule is filled in at once, even while a lease lasts that was
    migrated with it, because it is not a different schedule.

    A parked record is planned anew if no worker could read it, or if its last attempt had another
    schedule. With the same schedule it stays parked: a start repairs nothing. A record whose
    planned time contradicts its own schedule (see ``contradicts``) is planned anew. With
    at-most-once this is done only if the record was never claimed: otherwise a clock that was
    ahead may already have run the occurrences that would be planned now.

    A lease that such a clock has counted begins anew (see ``lease_in_time``): otherwise the task
    of a worker that was killed, or has failed, would not run until that time either.

    Args:
        current: The record.
        schedule: The schedule in code.
        now: The instant.
        at_most_once: Whether the task is at most once.
        lease: The lease of the task, in microseconds.

    Returns:
        The change, or None if the record is already up to date, or will be after its run.

    Raises:
        UnreadableHere: A later release wrote the record.
    """
    in_time = lease_in_time(current, now, lease)
    if in_time is None:
        return _brought_up_to_date(current, schedule, now, at_most_once)
    current = current._replace(due_at=in_time)
    change = _brought_up_to_date(current, schedule, now, at_most_once)
    return change or Patch(in_time, State.RUNNING, current.unfinished_attempts)


def _brought_up_to_date(
    current: Record, schedule: Schedule, now: int, at_most_once: bool
) -> Put | Patch | None:
    text = dump_schedule(schedule)
    try:
        progress = load_progress(current.progress)
    except UnreadableRecord:
        if current.state != State.PARKED:
            return None  # the next claim parks it
        # Its incarnation cannot be read either. The version is unique, so it serves as a new one.
        progress = Progress(None, f"{current.version:x}")
    first = _first_again(schedule, current, now)
    if current.state == State.PARKED and (
        # What could not be read differs as well, or has no occurrence.
        progress.occurrence is None or current.schedule not in (text, UNKNOWN_SCHEDULE)
    ):
        return _planned_anew(current, schedule, progress, first)
    pending = progress.pending
    if text == (
        current.schedule if pending is None or pending.schedule is None else pending.schedule
    ):
        if stranded(Reading(current, schedule, progress), now):
            return due_again(Reading(current, schedule, progress), now)
        never_ran = current.token is None
        if contradicts(current, progress, schedule, now) and (never_ran or not at_most_once):
            return _planned_anew(current, schedule, progress, first)
        if retries_too_late(current, schedule, now):
            return Patch(now, State.RETRYING, current.unfinished_attempts)
        if triggered_too_late(current, progress, now):
            progress = progress._replace(triggered=now)
            return Patch(now, current.state, current.unfinished_attempts, dump_progress(progress))
        return None
    unknown = current.schedule == UNKNOWN_SCHEDULE
    if current.state == State.RUNNING and not unknown:
        # The occurrences belong to the same task, so its incarnation stays.
        pending = (pending or Pending())._replace(
            schedule=text, args=current.args, planned=first, incarnation=progress.incarnation
        )
        return _moved(current, progress._replace(pending=pending))
    if pending is not None:
        progress = progress._replace(pending=_only_flags(pending))
    due_at, state = current.due_at, current.state
    overdue = progress.planned is not None and (progress.planned <= now or unknown)
    begun = progress.triggered is None and (
        current.unfinished_attempts > 0 or progress.failures > 0
    )
    soonest = None if first is None else _soonest(progress.planned, first)
    match state:
        case State.SCHEDULED if not overdue:
            progress = progress._replace(planned=soonest)
        case State.PAUSED | State.RETRYING if not (overdue or begun):
            progress = progress._replace(planned=soonest)
        case State.FINISHED:
            progress = progress._replace(planned=first)
            state = State.FINISHED if first is None else State.SCHEDULED
        case _:
            pass
    if state == State.SCHEDULED:
        due_at = _due_of(schedule, current, progress)
        if due_at is None:
            state = State.FINISHED
    elif state == State.PAUSED:
        due_at = _due_after(progress.pause, progress, schedule, current)
    return Put(
        due_at,
        state,
        current.token,
        current.unfinished_attempts,
        text,
        current.args,
        dump_progress(progress),
    )


_TRIGGER_SHIFT_MAX: Final = 1_000_000

CLOCK_ERROR_MAX: Final = 60_000_000
"""Microseconds by which clocks of workers may differ before a planned time counts as wrong."""

RETRY_DELAY_MAX: Final = 30 * 86_400 * 1_000_000
"""Microseconds that a retry of a static task may be ahead before its time counts as wrong."""


def contradicts(record: Record, progress: Progress, schedule: Schedule, now: int) -> bool:
    """Returns whether a record is planned for later than its own schedule allows.

    This happens if it was planned by a clock that was ahead, for example when a machine booted with
    a wrong time. Otherwise the task would not run until that time, perhaps for years.
    """
    if record.state not in (State.SCHEDULED, State.RETRYING) or progress.triggered is not None:
        return False
    upcoming = schedule.next(now + CLOCK_ERROR_MAX)
    return progress.planned is not None and upcoming is not None and progress.planned > upcoming


def retries_too_late(record: Record, schedule: Schedule, now: int) -> bool:
    """Returns whether a record waits for a retry for longer than any delay explains.

    A clock that was ahead has set the time of the retry. Its occurrence may be planned correctly.
    """
    if record.state != State.RETRYING or record.due_at is None:
        return False
    upcoming = schedule.next(now + CLOCK_ERROR_MAX)
    return record.due_at > max(now + RETRY_DELAY_MAX, upcoming or 0)


def lease_in_time(record: Record, now: int, lease: int) -> int | None:
    """Returns when a lease ends if it is counted from now; None if its end is plausible.

    A worker whose clock was ahead has taken it. It may still run, so it keeps the whole lease. The
    version tells when it was written last, or a later instant if an earlier one was ahead, too.
    """
    if record.state != State.RUNNING or record.due_at is None or record.due_at > LATEST_INSTANT:
        return None
    if now < record.version < record.due_at:
        in_time = now + max(lease, record.due_at - record.version)
        return in_time if record.due_at > in_time + CLOCK_ERROR_MAX else None
    return now + lease if record.due_at > now + max(lease, RETRY_DELAY_MAX) else None


def triggered_too_late(record: Record, progress: Progress, now: int) -> bool:
    """Returns whether a triggered run waits, because a clock that was ahead has triggered it."""
    return (
        record.state in (State.SCHEDULED, State.RETRYING)
        and progress.triggered is not None
        and min(progress.triggered, record.due_at or 0) > now + CLOCK_ERROR_MAX
    )


def _planned_anew(
    current: Record, schedule: Schedule, progress: Progress, first: int | None
) -> Put:
    """The record of a static task as if newly created, with the same incarnation."""
    pending = None if progress.pending is None else _only_flags(progress.pending)
    return Put(
        _due(schedule, current[:2], first),
        State.FINISHED if first is None else State.SCHEDULED,
        None,
        0,
        dump_schedule(schedule),
        current.args,
        dump_progress(Progress(first, progress.incarnation, pending=pending)),
    )


# Steps that several events share.


def _occurrence_done(
    reading: Reading,
    policy: Policy,
    now: int,
    failure: Failure | None,
    ran: Ran | None,
    at_most_once: bool = False,
) -> Change:
    """What follows the current occurrence: a pending request, or the next occurrence.

    If the current occurrence lies in the future, a clock that was ahead has planned it. Then the
    next occurrence is planned from now, unless it is run at most once. The same holds for the
    occurrence that follows a triggered run.
    """
    # By name: to unpack a named tuple takes longer.
    record, schedule, progress = reading.record, reading.schedule, reading.progress
    pending = progress.pending
    planned = progress.planned
    if pending is not None and pending.schedule is not None:
        if _replacement(progress) is not None or not _stood_still(progress, pending, now):
            return _promoted(record, pending)
    elif progress.triggered is None and planned is not None:
        if planned > now + CLOCK_ERROR_MAX and not at_most_once:
            planned = schedule.next(now)
        else:
            planned = schedule.following(planned)
            if planned is not None and planned <= now:
                if _skips(policy, progress, planned, ran):
                    return _skipping(reading, policy, now, planned, failure, ran)
                if policy.skip_overlap:
                    # Missed before. What comes due while it is run is skipped, too.
                    since = _running_since(progress, ran)
                    reading = Reading(record, schedule, progress._replace(backlog=since))
                    return _go_on(reading, policy, now, planned, failure, ran)
    elif planned is not None:
        if planned > now + CLOCK_ERROR_MAX and not at_most_once:
            upcoming = schedule.next(now + CLOCK_ERROR_MAX)
            if upcoming is not None and planned > upcoming:
                planned = schedule.next(now)
        return _go_on(reading, policy, now, planned, failure, ran)
    if planned is None and pending is None and record.group != STATIC_GROUP:
        return DELETE
    if (
        planned is None
        or pending is not None
        or failure is not None
        or progress.skipped
        or schedule.inherited
    ):
        return _go_on(reading, policy, now, planned, failure, ran)
    # The common case.
    due_at = _next_due(record, schedule, policy, planned, now)
    last = progress.last if ran is None else _shown(ran)
    text = dump_position(planned, progress.incarnation, last)
    return patch_of((due_at, _SCHEDULED, 0, text))


def _skipping(
    reading: Reading,
    policy: Policy,
    now: int,
    missed: int,
    failure: Failure | None,
    ran: Ran | None,
) -> Change:
    """The current occurrence is over, and all from ``missed`` on that are due are skipped."""
    record, schedule, progress = reading
    count = overdue_count(schedule, missed, now)
    reading = Reading(record, schedule, progress._replace(skipped=progress.skipped + count))
    return _go_on(reading, policy, now, schedule.skip(missed, now), failure, ran, keep=True)


def _skips(policy: Policy, progress: Progress, following: int, ran: Ran | None) -> bool:
    """Returns whether the next occurrence, which is due already, is skipped.

    It overlaps if it came due after the first attempt of the one before began, or after that of
    the backlog to which the one before belongs. Otherwise, a task that takes longer than its
    interval would never work off its backlog: each of its runs would add to it.
    """
    if policy.fast_forward or not policy.skip_overlap:
        return policy.fast_forward
    since = _running_since(progress, ran)
    return since is not None and following > since


def _running_since(progress: Progress, ran: Ran | None) -> int | None:
    """When the first attempt of the planned occurrence began, or of the backlog that it is in."""
    planned, backlog = progress.planned, progress.backlog
    if backlog is not None and planned is not None and planned <= backlog:
        return backlog
    if progress.begun is not None:
        return progress.begun
    return None if ran is None else ran[0]


def _go_on(
    reading: Reading,
    policy: Policy,
    now: int,
    planned: int | None,
    failure: Failure | None,
    ran: Ran | None,
    keep: bool = False,
) -> Change:
    """The current occurrence is over, and this one is the next of the schedule.

    If the schedule is the changed default of a template, it is stored, too.

    Args:
        reading: The record, which counts already what is skipped.
        policy: The options of the task.
        now: The instant.
        planned: The next occurrence; None: there is none.
        failure: How the occurrence ended, if it did not succeed.
        ran: When its last attempt ran.
        keep: Whether to keep the record even if there is no next occurrence.
    """
    change = _next_occurrence(reading, policy, now, planned, failure, ran, keep)
    record, schedule, _ = reading
    if not schedule.inherited or not isinstance(change, Patch):
        return change
    text = dump_schedule(schedule)
    if text == record.schedule:
        return change
    due_at, state, unfinished_attempts, progress = change
    return Put(
        due_at,
        state,
        record.token,
        unfinished_attempts,
        text,
        record.args,
        record.progress if progress is None else progress,
    )


def _next_occurrence(
    reading: Reading,
    policy: Policy,
    now: int,
    planned: int | None,
    failure: Failure | None,
    ran: Ran | None,
    keep: bool,
) -> Patch | Delete:
    record, schedule, progress = reading
    pending, backlog = progress.pending, progress.backlog
    if backlog is not None and (planned is None or planned > min(backlog, now)):
        backlog = None
    after = Progress(
        planned,
        progress.incarnation,
        last=progress.last if ran is None else _shown(ran),
        skipped=progress.skipped,
        backlog=backlog,
    )
    if progress.triggered is not None:
        # The occurrence of the schedule, which a triggered run leaves where it was.
        after = after._replace(begun=progress.begun, renewed=_renewed_before(progress))
    if failure is not None:
        after = after._replace(
            error=failure.error, outcome=failure.outcome, traceback=failure.traceback
        )
    if pending is not None and pending.triggered is not None:
        left = _pending_or_none(pending._replace(triggered=None))
        after = after._replace(triggered=pending.triggered, pending=left)
        return Patch(pending.triggered, State.SCHEDULED, 0, dump_progress(after))
    if planned is None:
        return _nothing_left(record, after, keep)
    if pending is not None:
        after = after._replace(pending=_pending_or_none(_without_pause(pending)))
        if pending.paused:
            return _resting(record, schedule, after._replace(pause=pending.pause), 0)
    due_at = _next_due(record, schedule, policy, planned, now)
    return Patch(due_at, State.SCHEDULED, 0, dump_progress(after))


def _shown(ran: Ran) -> str:
    started, ended = ran
    return f"{started}" if ended is None else f"{started}+{max(ended - started, 0)}"


def _next_due(record: Record, schedule: Schedule, policy: Policy, planned: int, now: int) -> int:
    """When the next occurrence comes due: at once if it is overdue, but not all of them at once."""
    due_at = planned
    if planned <= now - BEHIND_MIN and policy.pace:
        following = schedule.following(planned)
        if following is not None:
            due_at = now + min(policy.pace, (following - planned) // _PACE_PART)
    if schedule.jitter:
        due_at = max(due_at, schedule.due(planned, record.group, record.key))
    return due_at


def _promoted(record: Record, pending: Pending) -> Put:
    """The replacement that was requested during the run takes the place of the record."""
    assert pending.schedule is not None
    assert pending.args is not None
    assert pending.incarnation is not None
    progress = Progress(pending.planned, pending.incarnation)
    schedule = _schedule_or_none(pending.schedule)
    due_at, state = _due(schedule, record[:2], pending.planned), State.SCHEDULED
    if pending.triggered is not None:
        due_at = pending.triggered
        left = Pending(paused=pending.paused, pause=pending.pause)
        progress = progress._replace(triggered=due_at, pending=_pending_or_none(left))
    elif due_at is None:
        state = State.FINISHED
    elif pending.paused:
        progress = progress._replace(pause=pending.pause)
        due_at = _due_after(
            pending.pause, progress, schedule, record._replace(unfinished_attempts=0)
        )
        state = State.PAUSED
    return Put(
        due_at, state, record.token, 0, pending.schedule, pending.args, dump_progress(progress)
    )


def _nothing_left(record: Record, progress: Progress, keep: bool) -> Patch | Delete:
    """No further occurrence.

    A static task's record is kept; else the next start recreates it. So is one whose last
    occurrences were skipped: what did not run must leave a trace.
    """
    if record.group != STATIC_GROUP and not keep:
        return DELETE
    return Patch(None, State.FINISHED, 0, dump_progress(progress))


def _held_back(
    record: Record, schedule: Schedule, progress: Progress, unfinished_attempts: int
) -> Patch:
    """Paused during an occurrence, which continues when the record is resumed.

    If the record was also triggered, that run comes first, as when a paused record is triggered.
    """
    pending = progress.pending
    if pending is not None and pending.triggered is not None:
        progress = _triggered(progress, unfinished_attempts, pending.triggered)
        progress = progress._replace(pending=pending._replace(triggered=None))
        return Patch(pending.triggered, State.SCHEDULED, 0, dump_progress(progress))
    pause = None if pending is None else pending.pause
    progress = _unpaused(progress)._replace(pause=pause)
    return _resting(record, schedule, progress, unfinished_attempts)


def _resting(
    record: Record, schedule: Schedule, progress: Progress, unfinished_attempts: int
) -> Patch:
    """The record is paused, as ``progress.pause`` says."""
    record = record._replace(unfinished_attempts=unfinished_attempts)
    progress = progress._replace(backlog=None)
    due_at = _due_after(progress.pause, progress, schedule, record)
    return Patch(due_at, State.PAUSED, unfinished_attempts, dump_progress(progress))


def _due_after(
    pause: Pause | None, progress: Progress, schedule: Schedule | None, record: Record
) -> int | None:
    """When a paused record is due: at the end of its pause, but not before it would be due."""
    if pause is None or pause.until is None:
        return None
    due_at = _due_of(schedule, record, progress)
    if record.unfinished_attempts > 0 or progress.failures > 0 or due_at is None:
        return pause.until
    return max(pause.until, due_at)


def _due_of(schedule: Schedule | None, record: Record, progress: Progress) -> int | None:
    """When the current occurrence of a record is due; a triggered run does not wait."""
    if progress.triggered is not None:
        return progress.triggered
    return _due(schedule, record[:2], progress.planned)


def _due(schedule: Schedule | None, identity: tuple[str, str], planned: int | None) -> int | None:
    """When a planned occurrence is due: when it is planned, or after the jitter of its schedule."""
    if schedule is None or planned is None or not schedule.jitter:
        return planned
    return schedule.due(planned, *identity)


def _schedule_or_none(text: str) -> Schedule | None:
    """The schedule that a text stands for; None if this worker cannot read it."""
    try:
        return load_schedule(text)
    except ValueError:
        return None


def _first_again(schedule: Schedule, current: Record, now: int) -> int | None:
    """The first occurrence of a schedule that is given to a record which exists.

    One that runs at once does so when it is new, and not whenever it is given again.
    """
    if schedule.at_once and current.schedule == dump_schedule(schedule):
        return schedule.next(now)
    return schedule.first(now)


def _created_in_place(current: Record, progress: Progress | None, wanted: Wanted, now: int) -> Put:
    """A new record in the place of an old one: it is paused if the old one is, or was to be."""
    new = created(wanted, now)
    pending = None if progress is None else progress.pending
    is_paused = current.state == State.PAUSED
    if new.due_at is None or not (is_paused or (pending is not None and pending.paused)):
        return new
    pause = None if progress is None else progress.pause if is_paused else None
    if pending is not None and pending.paused:
        pause = pending.pause
    fresh = load_progress(new.progress)._replace(pause=pause)
    due_at = _due_after(pause, fresh, wanted.schedule, current._replace(unfinished_attempts=0))
    return new._replace(due_at=due_at, state=State.PAUSED, progress=dump_progress(fresh))


def _asked_to_rest(pending: Pending | None, now: int) -> bool:
    """Returns whether a pause is pending that has not ended by itself meanwhile."""
    if pending is None or not pending.paused:
        return False
    return pending.pause is None or not pending.pause.ended(now)


def _said(pause: Pause) -> Pause | None:
    return None if pause == WITHOUT_END else pause


def _pending_changed(record: Record, progress: Progress, pending: Pending) -> Patch:
    return _moved(record, progress._replace(pending=pending))


def _moved(record: Record, progress: Progress) -> Patch:
    """Only the progress of the record changes."""
    return Patch(record.due_at, record.state, record.unfinished_attempts, dump_progress(progress))


def _replacement(progress: Progress) -> Pending | None:
    """The pending replacement, which takes the place of an occurrence even if it was not done.

    The new schedule of a static task is not a replacement: it continues the old one, with the same
    incarnation.
    """
    pending = progress.pending
    if pending is None or pending.schedule is None or pending.incarnation == progress.incarnation:
        return None
    return pending


def _stood_still(progress: Progress, pending: Pending, now: int) -> bool:
    """Whether an occurrence before the new schedule became overdue during a triggered run."""
    planned = progress.planned
    if progress.triggered is None or planned is None or planned > now:
        return False
    return pending.planned is None or planned < pending.planned


def _unpaused(progress: Progress) -> Progress:
    if progress.pending is None:
        return progress
    return progress._replace(pending=_pending_or_none(_without_pause(progress.pending)))


def _without_pause(pending: Pending) -> Pending:
    return pending._replace(paused=False, pause=None)


def _only_flags(pending: Pending) -> Pending | None:
    """The requests that stay if the replacement among them is dropped."""
    return _pending_or_none(
        Pending(paused=pending.paused, triggered=pending.triggered, pause=pending.pause)
    )


def _pending_or_none(pending: Pending) -> Pending | None:
    return None if pending == Pending() else pending


def _soonest(planned: int | None, first: int | None) -> int | None:
    if planned is None or first is None:
        return first if planned is None else planned
    return min(planned, first)
