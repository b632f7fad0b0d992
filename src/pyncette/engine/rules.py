"""The rules about runs: which change of a record follows from which event. Pure functions.

======================== ============================================================
event                    what becomes of the record
======================== ============================================================
created                  scheduled for the first occurrence of its plan
claimed (by a store)     running; due again when the lease ends; one more start
heartbeat                due later
succeeded, advanced      scheduled for the next occurrence; gone after the last one
failed, ``NONE``         stays running until the lease ends, with no start counted
failed, ``UNLOCK``       retrying, due soon
failed, ``COMMIT``       as succeeded
given back               as before the claim
merged                   new plan and arguments, the sooner time kept; freed where it was
                         parked because no worker could read it
replaced                 as if newly created; while it runs, from the end of that run
paused, resumed          no longer due; due again
triggered                one run now; its plan stands still
replanned                as its declaration in code has changed
parked                   kept with the reason, never due
======================== ============================================================

While a lease is alive, nobody but its holder changes plan, arguments or ``due_at``: what others
ask for is written to ``pending`` and holds from the end of the run. Whoever else takes a record
out of ``running``, or changes what is to be run in it, clears its token, so that ``running`` or a
token of one's own always answers "is it mine?" and "was it I who settled it?" (``verdict``).

Nothing in here reads a clock, waits, logs, or knows a store. Instants and durations are integers:
microseconds, UTC. A record is due when ``due_at <= now``; a lease is alive while ``due_at > now``.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from pyncette.model import FailureMode
from pyncette.schedule import NewerFormat, Schedule, UnreadableHere
from pyncette.schedule import dumps as dump_schedule
from pyncette.schedule import loads as load_schedule
from pyncette.store.record import (
    DELETE,
    STATIC_GROUP,
    Change,
    Delete,
    Patch,
    Pending,
    Progress,
    Put,
    Reading,
    Record,
    State,
    UnreadableRecord,
    dump_progress,
    load_progress,
)

SUSPECT_ATTEMPTS: Final = 3
"""From so many starts without a word on, a record is suspected of killing its process."""

UNKNOWN_SCHEDULE: Final = "1 at 0"
"""The plan of a static task's record that was taken over without its schedule: until a worker
starts that has it in its code. No static task can be declared with such a plan."""


class Policy(NamedTuple):
    """The options of a task that decide what an outcome leads to; from code, at each claim.

    Attributes:
        fast_forward: Missed occurrences collapse into the one in hand.
        failure_mode: What a failure leads to.
        retry_after: Microseconds until an ``UNLOCK`` failure is retried.
    """

    fast_forward: bool = False
    failure_mode: FailureMode = FailureMode.NONE
    retry_after: int = 1_000_000


class Wanted(NamedTuple):
    """What a caller wants a record to be.

    Attributes:
        plan: When it shall run.
        args: With what, as text.
        born: A new random id.
    """

    schedule: Schedule
    args: str
    incarnation: str


class Verdict(Enum):
    """What a holder learns from the record that stands in the way of its write."""

    HELD = "held"
    """Still its own: somebody asked for something meanwhile. Decide again from this record."""

    SETTLED = "settled"
    """It was its own earlier write that changed the record."""

    LOST = "lost"
    """Somebody else's, or gone."""


def alive(record: Record, now: int) -> bool:
    """Whether somebody holds the record."""
    return record.state == State.RUNNING and record.due_at is not None and record.due_at > now


def suspect(record: Record) -> bool:
    """Whether the record may be one that kills its process, so that it should run alone."""
    return record.unfinished_attempts >= SUSPECT_ATTEMPTS


def verdict(current: Record | None, held: Reading) -> Verdict:
    """What a refused write means to the holder of a claim.

    A failed run of mode ``NONE`` stays running with no start counted: that is how its own
    holder, and only it, can leave a record. And where the claim was repeated, the first one may
    arrive late and take, with the same token, an occurrence that this holder does not run.

    Args:
        current: What stands in the way.
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
        return True  # it is read, and refused, when its holder decides again


# What the holder of a claim does.


def heartbeat(record: Record, now: int, lease: int) -> Patch:
    """Extends the lease, from now."""
    return Patch(now + lease, State.RUNNING, record.unfinished_attempts)


def succeeded(reading: Reading, policy: Policy, now: int) -> Change:
    """The occurrence in hand is done."""
    return _occurrence_done(reading, policy, now, None)


advanced = succeeded
"""An at-most-once record moves on before its body runs, as if that had been done."""


def failed(reading: Reading, policy: Policy, now: int, error: str) -> Change:
    """The body raised.

    What was asked for while it ran holds from here: a replacement takes the place of the failed
    occurrence, a pause keeps it for later. What a static task's new plan is to follow is retried
    first.
    """
    record, _, progress = reading
    if policy.failure_mode is FailureMode.COMMIT:
        return _occurrence_done(reading, policy, now, error)
    replacement = _replacement(progress)
    if replacement is not None:
        return _promoted(record, replacement)
    pending = progress.pending
    progress = progress._replace(failures=progress.failures + 1, error=error)
    if pending is not None and pending.paused:
        return _held_back(record, progress, 0)
    if policy.failure_mode is FailureMode.UNLOCK:
        return Patch(now + policy.retry_after, State.RETRYING, 0, dump_progress(progress))
    return Patch(record.due_at, State.RUNNING, 0, dump_progress(progress))


def given_back(reading: Reading, now: int, delay: int = 0) -> Change:
    """The record was claimed and not started: the claim leaves no trace but its token.

    With a ``delay`` it is not due before ``now + delay``.
    """
    record, _, progress = reading
    unfinished_attempts = max(record.unfinished_attempts - 1, 0)
    replacement = _replacement(progress)
    if replacement is not None:
        return _promoted(record, replacement)
    pending = progress.pending
    if pending is not None and pending.paused and progress.triggered is None:
        return _held_back(record, progress, unfinished_attempts)
    if unfinished_attempts or progress.failures:
        return Patch(now + delay, State.RETRYING, unfinished_attempts)
    due_at = now + delay if delay or progress.occurrence is None else progress.occurrence
    return Patch(due_at, State.SCHEDULED, unfinished_attempts)


def given_back_unread(record: Record, now: int, delay: int) -> Patch:
    """As ``given_back``, for a record whose texts a later release wrote."""
    return Patch(now + delay, State.RETRYING, max(record.unfinished_attempts - 1, 0))


def exhausted(reading: Reading, error: str) -> Change:
    """The last attempt that was allowed has failed: the record is parked with its error.

    Where it was triggered meanwhile it is tried once more, as a parked one would be.
    """
    record, _, progress = reading
    replacement = _replacement(progress)
    if replacement is not None:
        return _promoted(record, replacement)
    pending = progress.pending
    if pending is not None and pending.triggered is not None:
        left = _pending_or_none(pending._replace(triggered=None))
        progress = progress._replace(failures=0, pending=left, error=error)
        return Patch(pending.triggered, State.SCHEDULED, 0, dump_progress(progress))
    progress = progress._replace(failures=progress.failures + 1, error=error)
    return Patch(None, State.PARKED, 0, dump_progress(progress))


def parked(record: Record, reason: str, incarnation: str) -> Patch:
    """The record cannot be read: it is kept with the reason, and what can be read of it."""
    try:
        progress = load_progress(record.progress)._replace(error=reason)
    except NewerFormat:
        return Patch(None, State.PARKED, 0)
    except UnreadableRecord:
        progress = Progress(None, incarnation, error=reason)
    return Patch(None, State.PARKED, 0, dump_progress(progress))


# What anybody may ask for.


def created(wanted: Wanted, now: int) -> Put:
    """A new record, or one that takes the place of whatever was there, lease included.

    A plan without a first occurrence gives a finished record.
    """
    first = wanted.schedule.first(now)
    return Put(
        first,
        State.FINISHED if first is None else State.SCHEDULED,
        None,
        0,
        dump_schedule(wanted.schedule),
        wanted.args,
        dump_progress(Progress(first, wanted.incarnation)),
    )


def merged(current: Record, wanted: Wanted, now: int) -> Put | None:
    """New plan and arguments, the sooner of the old and the new next time kept.

    A record that waits for a retry, or whose worker died, keeps its time and its starts, and
    takes plan and arguments from the next attempt on, so that a caller who repeats himself
    defeats no backoff. A worker that is not dead but slow loses it: what it ran, it ran with the
    old arguments. Paused and parked ones stay so, but for one that was parked because no worker
    could read it: that is made anew.

    Returns:
        The change, or None where the record is being run.

    Raises:
        NewerFormat: A later release wrote the record.
    """
    if alive(current, now):
        return None
    try:
        progress = load_progress(current.progress)
    except UnreadableRecord:
        return created(wanted, now)
    if _parked_unread(current, progress):
        return created(wanted, now)
    if progress.pending is not None:
        # What is wanted now came later than what a run that died was to be replaced with.
        progress = progress._replace(pending=_only_flags(progress.pending))
    due_at, state = current.due_at, current.state
    if state in (State.SCHEDULED, State.PAUSED, State.FINISHED) or progress.planned is None:
        progress = progress._replace(planned=_soonest(progress.planned, wanted.schedule.first(now)))
    if state in (State.SCHEDULED, State.FINISHED):
        due_at = progress.occurrence
        state = State.FINISHED if due_at is None else State.SCHEDULED
    return Put(
        due_at,
        state,
        None if state == State.RUNNING else current.token,
        current.unfinished_attempts,
        dump_schedule(wanted.schedule),
        wanted.args,
        dump_progress(progress),
    )


def replaced(current: Record, wanted: Wanted, now: int) -> Put | Patch:
    """As if newly created; where the record is being run, from the end of that run.

    Raises:
        NewerFormat: A later release wrote the record.
    """
    if not alive(current, now):
        return created(wanted, now)
    try:
        progress = load_progress(current.progress)
    except UnreadableRecord:
        # Nobody can tell what is run, nor settle it. Its lease is all that can be kept.
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


def paused(reading: Reading, now: int) -> Change | None:
    """Not due until resumed; where it is being run, from the end of that run.

    Returns:
        The change, or None where it is paused, parked or finished.
    """
    record, _, progress = reading
    if record.state in (State.PAUSED, State.PARKED, State.FINISHED):
        return None
    if alive(record, now):
        pending = (progress.pending or Pending())._replace(paused=True)
        return _moved(record, progress._replace(pending=pending))
    return Put(
        None,
        State.PAUSED,
        None if record.state == State.RUNNING else record.token,
        record.unfinished_attempts,
        record.schedule,
        record.args,
        dump_progress(_unpaused(progress)),
    )


def resumed(reading: Reading, now: int) -> Change | None:
    """Due again: what was missed meanwhile is handled as after any other delay.

    Returns:
        The change, or None where it is neither paused nor about to be.
    """
    record, _, progress = reading
    if record.state != State.PAUSED:
        if progress.pending is None or not progress.pending.paused:
            return None
        return _moved(record, _unpaused(progress))
    if record.unfinished_attempts or progress.failures:
        return Patch(now, State.RETRYING, record.unfinished_attempts)
    due_at = progress.occurrence
    return Patch(
        due_at, State.FINISHED if due_at is None else State.SCHEDULED, record.unfinished_attempts
    )


def triggered(reading: Reading, now: int) -> Change | None:
    """One run now, after which the plan goes on as if nothing had been.

    A running record runs once more at the end of that run; one that waits for a retry, or is
    parked, gets its next attempt now; a paused one stays paused afterwards.

    Returns:
        The change, or None where such a run is already in hand.
    """
    record, schedule, progress = reading
    match record.state:
        case State.RUNNING:
            pending = progress.pending or Pending()
            if pending.triggered is not None:
                return None
            pending = pending._replace(triggered=now)
            return _moved(record, progress._replace(pending=pending))
        case State.RETRYING:
            return Patch(now, State.RETRYING, record.unfinished_attempts)
        case State.PARKED if progress.occurrence is not None:
            text = dump_progress(progress._replace(failures=0))
            return Patch(now, State.SCHEDULED, 0, text)
        case State.PARKED:
            progress = progress._replace(planned=schedule.next(now))
        case State.SCHEDULED if progress.triggered is not None:
            return None
        case State.PAUSED:
            pending = (progress.pending or Pending())._replace(paused=True)
            progress = progress._replace(pending=pending)
        case _:
            pass
    text = dump_progress(progress._replace(triggered=now, failures=0))
    return Patch(now, State.SCHEDULED, 0, text)


def replanned(
    current: Record, schedule: Schedule, now: int, at_most_once: bool = False
) -> Put | Patch | None:
    """A static task's record as its declaration in code wants it, when a worker starts.

    A new schedule holds from the next occurrence on, and the sooner of the old and the new next
    time is kept: workers that start again and again, of two releases perhaps, must not put a run
    off for ever. An occurrence that is overdue, or in hand, is finished; the new schedule gives
    those after it. So is the one of a record that was taken over without its schedule
    (``UNKNOWN_SCHEDULE``), which is not another one: it is filled in at once, also while a lease
    lasts that was taken over with it.

    A record that was parked because no worker could read it is freed. One whose planned time
    contradicts its own schedule (see ``contradicts``) is planned anew; at most once only where it
    was never claimed: else the clock that was ahead may have run what is planned now.

    Returns:
        The change, or None where the record is, or will be, as it should.

    Raises:
        UnreadableHere: A later release wrote the record.
    """
    text = dump_schedule(schedule)
    try:
        progress = load_progress(current.progress)
    except UnreadableRecord:
        if current.state != State.PARKED:
            return None  # the claim that meets it parks it
        # Its incarnation cannot be read either; a version is never given twice.
        progress = Progress(None, f"{current.version:x}")
    first = schedule.first(now)
    if current.state == State.PARKED and _parked_unread(current, progress):
        return _planned_anew(current, text, progress, first)
    pending = progress.pending
    if text == (
        current.schedule if pending is None or pending.schedule is None else pending.schedule
    ):
        never_ran = current.token is None
        if contradicts(current, progress, schedule, now) and (never_ran or not at_most_once):
            return _planned_anew(current, text, progress, first)
        return None
    unknown = current.schedule == UNKNOWN_SCHEDULE
    if current.state == State.RUNNING and not unknown:
        # The occurrences belong to the same task: it is not born again.
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
        due_at = progress.occurrence
        if due_at is None:
            state = State.FINISHED
    return Put(
        due_at,
        state,
        current.token,
        current.unfinished_attempts,
        text,
        current.args,
        dump_progress(progress),
    )


CLOCK_ERROR_MAX: Final = 60_000_000
"""Microseconds by which clocks of workers may differ before a planned time is taken for wrong."""


def contradicts(record: Record, progress: Progress, schedule: Schedule, now: int) -> bool:
    """Whether a record is planned for later than its own schedule can have said.

    That happens where it was planned by a clock that was ahead, of a machine that booted without
    the right time perhaps: it would sleep until then, for years.
    """
    if record.state != State.SCHEDULED or progress.triggered is not None:
        return False
    upcoming = schedule.next(now + CLOCK_ERROR_MAX)
    return progress.planned is not None and upcoming is not None and progress.planned > upcoming


def _planned_anew(current: Record, text: str, progress: Progress, first: int | None) -> Put:
    """The record of a static task as if it had just been made, but for its incarnation."""
    return Put(
        first,
        State.FINISHED if first is None else State.SCHEDULED,
        None,
        0,
        text,
        current.args,
        dump_progress(Progress(first, progress.incarnation)),
    )


def _parked_unread(record: Record, progress: Progress) -> bool:
    """Whether a record was parked because no worker could read it."""
    if record.state != State.PARKED:
        return False
    if progress.occurrence is None:
        return True
    try:
        load_schedule(record.schedule)
    except UnreadableHere:
        return False
    except ValueError:
        return True
    return False


# The steps that they share.


def _occurrence_done(reading: Reading, policy: Policy, now: int, error: str | None) -> Change:
    """What follows the occurrence in hand: what is pending, or the next one of the plan."""
    record, schedule, progress = reading
    pending = progress.pending
    planned = progress.planned
    if pending is not None and pending.schedule is not None:
        if _replacement(progress) is not None or not _stood_still(progress, pending, now):
            return _promoted(record, pending)
    elif progress.triggered is None and planned is not None:
        planned = (
            schedule.skip(planned, now) if policy.fast_forward else schedule.following(planned)
        )
    if pending is None:
        if planned is None:
            return _nothing_left(record, progress.incarnation, error)
        text = dump_progress(Progress(planned, progress.incarnation, error=error))
        return Patch(planned, State.SCHEDULED, 0, text)
    return _next(record, Progress(planned, progress.incarnation, error=error), pending)


def _next(record: Record, progress: Progress, pending: Pending) -> Change:
    """The next occurrence of the plan, where something was asked for."""
    if pending.triggered is not None:
        left = _pending_or_none(pending._replace(triggered=None))
        progress = progress._replace(triggered=pending.triggered, pending=left)
        return Patch(pending.triggered, State.SCHEDULED, 0, dump_progress(progress))
    if progress.planned is None:
        return _nothing_left(record, progress.incarnation, progress.error)
    left = _pending_or_none(pending._replace(paused=False))
    text = dump_progress(progress._replace(pending=left))
    if pending.paused:
        return Patch(None, State.PAUSED, 0, text)
    return Patch(progress.planned, State.SCHEDULED, 0, text)


def _promoted(record: Record, pending: Pending) -> Put:
    """The replacement that was asked for while the record ran takes its place."""
    assert pending.schedule is not None
    assert pending.args is not None
    assert pending.incarnation is not None
    progress = Progress(pending.planned, pending.incarnation)
    due_at, state = pending.planned, State.SCHEDULED
    if pending.triggered is not None:
        due_at = pending.triggered
        progress = progress._replace(
            triggered=due_at, pending=Pending(paused=True) if pending.paused else None
        )
    elif pending.paused:
        due_at, state = None, State.PAUSED
    elif due_at is None:
        state = State.FINISHED
    return Put(
        due_at, state, record.token, 0, pending.schedule, pending.args, dump_progress(progress)
    )


def _nothing_left(record: Record, incarnation: str, error: str | None) -> Patch | Delete:
    """The plan has no further occurrence: a static task is kept, or a start would recreate it."""
    if record.group != STATIC_GROUP:
        return DELETE
    return Patch(None, State.FINISHED, 0, dump_progress(Progress(None, incarnation, error=error)))


def _held_back(record: Record, progress: Progress, unfinished_attempts: int) -> Patch:
    """Paused in the middle of an occurrence, which goes on when the record is resumed.

    Where it was triggered, too, that run comes first, as it does when a paused one is triggered.
    """
    pending = progress.pending
    if pending is not None and pending.triggered is not None:
        progress = progress._replace(
            triggered=pending.triggered, failures=0, pending=pending._replace(triggered=None)
        )
        return Patch(pending.triggered, State.SCHEDULED, 0, dump_progress(progress))
    return Patch(None, State.PAUSED, unfinished_attempts, dump_progress(_unpaused(progress)))


def _moved(record: Record, progress: Progress) -> Patch:
    """The record stays as it is, but for its progress."""
    return Patch(record.due_at, record.state, record.unfinished_attempts, dump_progress(progress))


def _replacement(progress: Progress) -> Pending | None:
    """What takes the place of an occurrence even if it was not done.

    The new plan of a static task is none: it goes on where the old one was, and is not born
    again.
    """
    pending = progress.pending
    if pending is None or pending.schedule is None or pending.incarnation == progress.incarnation:
        return None
    return pending


def _stood_still(progress: Progress, pending: Pending, now: int) -> bool:
    """Whether a triggered run let an occurrence become overdue that comes before the new plan."""
    planned = progress.planned
    if progress.triggered is None or planned is None or planned > now:
        return False
    return pending.planned is None or planned < pending.planned


def _unpaused(progress: Progress) -> Progress:
    if progress.pending is None:
        return progress
    pending = progress.pending._replace(paused=False)
    return progress._replace(pending=_pending_or_none(pending))


def _only_flags(pending: Pending) -> Pending | None:
    return _pending_or_none(Pending(paused=pending.paused, triggered=pending.triggered))


def _pending_or_none(pending: Pending) -> Pending | None:
    return None if pending == Pending() else pending


def _soonest(planned: int | None, first: int | None) -> int | None:
    if planned is None or first is None:
        return first if planned is None else planned
    return min(planned, first)
