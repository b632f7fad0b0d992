"""A model of a store, and a checker of what happens on it: both small, pure and hashable.

The store is the contract of ``pyncette.store`` as steps on values, so that whoever explores
interleavings can keep each state and go on from it in several ways. The checker is a
``Ledger``: what a record owes its users, kept from their calls and from the runs alone.
After each step ``check`` holds it against the record; a broken promise is a
``Violation`` that names its ``Row``.

Nothing in here runs anything: what workers do is in ``tests.simulation.workers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

from pyncette.engine import rules
from pyncette.schedule import INHERITED_MARK, At, Schedule
from pyncette.schedule import dumps as dump_schedule
from pyncette.schedule import loads as load_schedule
from pyncette.store import (
    Applied,
    Claimed,
    Group,
    Identity,
    Key,
    Refused,
    Result,
    Source,
    Write,
    next_version,
)
from pyncette.store.record import (
    ABSENT,
    ANY,
    Delete,
    Pending,
    Progress,
    Put,
    Record,
    State,
    load_progress,
)

# The store, one record at a time.


def claimable(record: Record, shown: Record, before: int) -> bool:
    """Whether a claim may take a record of which an index shows an older form.

    Both conditions are read from the record itself: that it is due, and that it is still what was
    seen.
    """
    return (
        shown.due_at is not None
        and shown.due_at <= before
        and record.due_at is not None
        and record.due_at <= before
        and record.version == shown.version
    )


def taken(record: Record, lease: int, now: int, token: str) -> Record:
    """The record after a claim."""
    return record._replace(
        due_at=now + lease,
        version=next_version(record.version, now),
        token=token,
        state=State.RUNNING,
        unfinished_attempts=record.unfinished_attempts + 1,
    )


def taken_before(record: Record, lease: int, now: int, token: str) -> bool:
    """Whether the very claim that is now repeated has taken the record."""
    return record.token == token and record.due_at == now + lease


def written(current: Record | None, write: Write, now: int) -> tuple[Record | None, Result]:
    """What is there after a write, and the answer to it."""
    version = ABSENT if current is None else current.version
    if write.expect not in (version, ANY):
        return current, Refused(current)
    if write.token is not None and (current is None or current.token != write.token):
        return current, Refused(current)
    change = write.change
    version = next_version(version, now)
    if isinstance(change, Put):
        due_at, state, token, unfinished_attempts, schedule, args, progress = change
        record = Record(
            write.group,
            write.key,
            due_at,
            version,
            token,
            state,
            unfinished_attempts,
            schedule,
            args,
            progress,
        )
        return record, Applied(version)
    if current is None or isinstance(change, Delete):
        return None, Applied(ABSENT)
    record = current._replace(
        due_at=change.due_at,
        version=version,
        state=change.state,
        unfinished_attempts=change.unfinished_attempts,
        progress=current.progress if change.progress is None else change.progress,
    )
    return record, Applied(version)


class ModelStore:
    """The steps above over many records: what a real store is compared with, call by call."""

    def __init__(self) -> None:
        self.records: dict[Identity, Record] = {}

    def claim(
        self, sources: Sequence[Source], limit: int, now: int, token: str, repeated: bool = False
    ) -> Claimed:
        """As ``pyncette.store.Store.claim``."""
        claimed: list[Record] = []
        for source in sources:
            held: list[Record] = []
            due: list[Record] = []
            before = source.before if isinstance(source, Group) else now
            for record in self._of(source):
                if claimable(record, record, before):
                    due.append(record)
                elif repeated and taken_before(record, source.lease, now, token):
                    held.append(record)
            due.sort(key=lambda record: (record.due_at, record.key))
            room = limit - len(claimed)
            if isinstance(source, Group):
                room = min(room, source.share)
            for record in (held + due)[:room]:
                if record not in held:
                    record = taken(record, source.lease, now, token)  # noqa: PLW2901
                    self.records[record.group, record.key] = record
                claimed.append(record)
        return Claimed(claimed, [self._next_due(source) for source in sources])

    def write(self, batch: Sequence[Write], now: int) -> list[Result]:
        """As ``pyncette.store.Store.write``."""
        results = []
        for write in batch:
            identity = (write.group, write.key)
            record, result = written(self.records.get(identity), write, now)
            if record is not None:
                self.records[identity] = record
            else:
                self.records.pop(identity, None)
            results.append(result)
        return results

    def _of(self, source: Source) -> list[Record]:
        return [
            record
            for record in self.records.values()
            if record.group == source.group
            and (not isinstance(source, Key) or record.key == source.key)
        ]

    def _next_due(self, source: Source) -> int | None:
        instants = [record.due_at for record in self._of(source) if record.due_at is not None]
        return min(instants, default=None)


# The checker.


class Row(StrEnum):
    """What is promised, in the order of the failure table."""

    ONE_BODY = "one record never runs twice at once while its lease holds"
    STARTS_IN_TIME = "a body starts only while its lease holds"
    NOT_EARLY = "nothing runs before it is planned"
    STARTS_ONCE = "an at-most-once occurrence starts at most once"
    NOTHING_LOST = "every planned occurrence runs, or was taken away by its user"
    NOTHING_OVERWRITTEN = "what was asked for while a record ran holds after it"
    NOTHING_RESURRECTED = "an unscheduled record stays away"
    ONLY_ITS_OWN = "an execution settles only what it ran"
    PAUSED_RESTS = "a paused record becomes due for nobody"
    TRIGGER_RUNS = "what was triggered runs once more"
    COMES_DUE = "a record that shall run always comes due again"
    SKIPS_COUNTED = "what is too late or overlaps is skipped, nothing else, and it is counted"
    ATTEMPTS = "an occurrence is started at most as often as its policy says"
    BACKOFF_HOLDS = "who schedules again and again defeats no backoff, and his arguments hold"


class Violation(AssertionError):  # noqa: N818
    """A promise was broken."""

    def __init__(self, row: Row, what: str) -> None:
        super().__init__(f"{row}: {what}")
        self.row = row


class Ask(StrEnum):
    """What a user, or the start of a worker with other code, may ask for."""

    SOONER = "sooner"
    REPLACE = "replace"
    FORCE = "force"
    UNSCHEDULE = "unschedule"
    PAUSE = "pause"
    PAUSE_UNTIL = "pause until"
    RESUME = "resume"
    TRIGGER = "trigger"
    REPLAN = "replan"
    RERUN = "run a parked one again"
    DROP = "give a parked one up"


SHIFT_MAX: Final = 10
"""By how much a triggered run may be planned later than it was asked for."""

PAUSE_LENGTH: Final = 2
"""How long a pause with an end takes."""


class Run(NamedTuple):
    """One execution: which occurrence of which record, with which arguments."""

    incarnation: str
    planned: int | None
    triggered: int | None
    args: str

    @property
    def instant(self) -> int | None:
        """The planned time that its body sees."""
        return self.planned if self.triggered is None else self.triggered


class Ledger(NamedTuple):
    """What is owed.

    Attributes:
        args: Of the last accepted schedule call; None: there shall be no record.
        plan: Of the last accepted schedule call, or of the code, as text.
        due: The first planned instant that is still to be run; None: nothing is left.
        then: After ``due`` has run: the first instant of a new plan that waits for it.
        triggers: The instants at which a run was triggered that is still to come.
        paused: It shall rest, as soon as what is in hand has ended.
        until: When it shall rest no longer; None: when it is resumed.
        triggered: The last instant at which a run was triggered.
        started: At most once, or with a grace: the runs whose bodies have started.
        exhausted: It was paused because it has failed for good.
        starts: Of the occurrence whose body started last: which, and how often it has started
            since it last got all of its attempts.
    """

    args: str | None = None
    schedule: str = ""
    due: int | None = None
    then: tuple[int | None] | None = None
    triggers: tuple[int, ...] = ()
    paused: bool = False
    triggered: int | None = None
    started: frozenset[Run] = frozenset()
    until: int | None = None
    starts: tuple[Run, int] | None = None
    exhausted: bool = False


NOTHING = Ledger()


@lru_cache(maxsize=1 << 16)
def progress_of(text: str) -> Progress:
    """The progress in a text."""
    return load_progress(text)


def run_of(record: Record) -> Run:
    """The run that is in hand, or comes next."""
    progress = progress_of(record.progress)
    return Run(progress.incarnation, progress.planned, progress.triggered, record.args)


def scheduled(ledger: Ledger, args: str, schedule: Schedule, now: int) -> Ledger:
    """A record is made, or made anew."""
    return Ledger(args, dump_schedule(schedule), schedule.first(now), started=ledger.started)


def asked(
    ledger: Ledger,
    ask: Ask,
    args: str,
    schedule: Schedule,
    before: Record | None,
    after: Record | None,
    now: int,
) -> Ledger:
    """A user's call was accepted.

    Args:
        ledger: What was owed before it.
        ask: The call.
        args: Its arguments, as text, for calls that schedule.
        plan: Its plan, for calls that schedule or replan.
        before: The record that it met.
        after: The record that it left.
        now: When.

    Raises:
        Violation: The call did something else than it says.
    """
    if ask is Ask.UNSCHEDULE:
        return Ledger(started=ledger.started)
    if before is None or ask is Ask.FORCE:
        return scheduled(ledger, args, schedule, now)
    if before.state == State.FINISHED:
        ledger = ledger._replace(paused=False, until=None)  # the pause ended with its last run
    if ask is Ask.DROP:
        return done(ledger, run_of(before), now)._replace(starts=None)
    assert after is not None
    held = rules.alive(before, now)
    progress = progress_of(before.progress)
    in_hand = (progress.triggered,)
    match ask:
        case Ask.REPLACE if held and before.unfinished_attempts:
            # Should the run in hand fail, the replacement takes its place.
            left = tuple(instant for instant in ledger.triggers if instant not in in_hand)
            new = scheduled(ledger, args, schedule, now)
            return new._replace(
                triggers=left,
                paused=ledger.paused,
                until=ledger.until,
                triggered=ledger.triggered,
                exhausted=ledger.exhausted,
            )
        case Ask.REPLACE:
            new = scheduled(ledger, args, schedule, now)
            # What waits to be resumed waits on, whoever has paused it.
            return new._replace(
                paused=ledger.paused, until=ledger.until, exhausted=ledger.exhausted
            )
        case Ask.SOONER if before.state == State.PARKED:
            if after.state == State.PARKED:
                raise Violation(Row.COMES_DUE, f"scheduled at {now}, but stays parked: {after}")
            new = scheduled(ledger, args, schedule, now)
            return new._replace(paused=ledger.paused, until=ledger.until)
        case Ask.SOONER:
            return _merged(ledger, args, schedule, before, after, now)
        case Ask.PAUSE | Ask.PAUSE_UNTIL:
            # Should a triggered run in hand fail, the pause keeps it back.
            left = tuple(instant for instant in ledger.triggers if held and instant not in in_hand)
            until = now + PAUSE_LENGTH if ask is Ask.PAUSE_UNTIL else None
            return ledger._replace(paused=True, until=until, triggers=left)
        case Ask.RERUN:
            return ledger._replace(starts=None)
        case Ask.RESUME:
            return ledger._replace(paused=False, until=None, exhausted=False)
        case Ask.TRIGGER if before.state in (State.RETRYING, State.PARKED):
            if after.due_at is None or after.due_at > now:
                raise Violation(Row.TRIGGER_RUNS, f"triggered at {now}, but due {after.due_at}")
            return ledger if before.state == State.RETRYING else ledger._replace(starts=None)
        case Ask.TRIGGER:
            found = progress_of(after.progress)
            requested = (found.pending or Pending()).triggered
            instant = requested if after.state == State.RUNNING else found.triggered
            # Not in the past, not much later, and no other run looks like it.
            others = (*in_hand, (progress.pending or Pending()).triggered)
            if instant is None or instant in others or not now <= instant <= now + SHIFT_MAX:
                raise Violation(Row.TRIGGER_RUNS, f"triggered at {now} for {instant}: {after}")
            triggers = (*ledger.triggers, instant)
            # What is exhausted then is tried again.
            return ledger._replace(triggers=triggers, triggered=instant, starts=None)
        case _:
            return _replanned(ledger, schedule, before, after, now)


def _merged(
    ledger: Ledger, args: str, schedule: Schedule, before: Record, after: Record, now: int
) -> Ledger:
    planned = progress_of(before.progress).planned
    first = schedule.first(now)
    if before.state in (State.RETRYING, State.RUNNING):
        if (after.due_at, after.unfinished_attempts) != (before.due_at, before.unfinished_attempts):
            raise Violation(Row.BACKOFF_HOLDS, f"{before} became {after}")
        if after.args != args:
            raise Violation(Row.BACKOFF_HOLDS, f"the next attempt has {after.args}")
    elif planned is not None and first is not None:
        planned = min(planned, first)
    due = first if planned is None else planned
    if isinstance(schedule, At) and due is not None:
        schedule = At.of(due)  # no record names two times for its only run
    return ledger._replace(args=args, schedule=dump_schedule(schedule), due=due, then=None)


def _replanned(
    ledger: Ledger, schedule: Schedule, before: Record, after: Record, now: int
) -> Ledger:
    planned, first = progress_of(before.progress).planned, schedule.first(now)
    # The body may have ended, and its settle not yet have arrived.
    has_run = planned is not None and planned != ledger.due
    text = dump_schedule(schedule)
    ledger = ledger._replace(schedule=text, then=None)
    if before.state == State.PARKED and before.schedule != text:
        if after.state == State.PARKED:
            raise Violation(Row.COMES_DUE, f"replanned at {now}, but stays parked: {after}")
        return ledger._replace(due=first, triggers=(), starts=None)
    if before.state == State.RUNNING:
        return ledger._replace(due=first) if has_run else ledger._replace(then=(first,))
    if planned is None or first is None:
        return ledger._replace(due=first)
    if planned > now:
        return ledger._replace(due=min(planned, first))
    return ledger._replace(due=schedule.following(planned)) if has_run else ledger


def counted(ledger: Ledger, run: Run, attempts: int) -> Ledger:
    """A body starts for which there is a policy."""
    occurrence = run._replace(args="")
    starts = 1
    if ledger.starts is not None and ledger.starts[0] == occurrence:
        starts = ledger.starts[1] + 1
    if starts > attempts:
        raise Violation(Row.ATTEMPTS, f"{run} started {starts} times, {attempts} are allowed")
    return ledger._replace(starts=(occurrence, starts))


def gave_back(ledger: Ledger, run: Run) -> Ledger:
    """A body was cancelled by its closing worker, and given back: this was no attempt."""
    if ledger.starts is None or ledger.starts[0] != run._replace(args=""):
        return ledger
    return ledger._replace(starts=(ledger.starts[0], ledger.starts[1] - 1))


def gave_up(
    ledger: Ledger,
    run: Run,
    after: Record | None,
    now: int,
    pauses: bool = False,
    fast_forward: bool = False,
) -> Ledger:
    """An occurrence has failed for good.

    Args:
        ledger: What was owed before.
        run: The occurrence.
        after: The record as it is written then.
        now: When.
        pauses: Whether the record then rests until it is resumed.
        fast_forward: Whether what is missed collapses.
    """
    if after is None:
        raise Violation(Row.NOTHING_LOST, f"{run} has failed for good, and left no trace")
    kept = run_of(after)
    if kept.incarnation != run.incarnation:
        return done(ledger, run, now, fast_forward)
    if pauses:
        left = tuple(instant for instant in ledger.triggers if instant != run.triggered)
        return ledger._replace(triggers=left, exhausted=True, starts=None)
    if kept[:3] != run[:3]:
        return done(ledger, run, now, fast_forward)
    if after.state == State.PARKED:
        return ledger
    # It was triggered meanwhile, which gives it more attempts.
    left = tuple(instant for instant in ledger.triggers if instant == run.triggered)
    return ledger._replace(triggers=left, starts=None)


def started(
    ledger: Ledger, run: Run, now: int, at_most_once: bool, in_grace: bool = False
) -> Ledger:
    """A body starts.

    Args:
        ledger: What was owed before.
        run: What it runs.
        now: When.
        at_most_once: Whether it may not start again.
        in_grace: Whether its occurrence could have been too late, had it not started now.
    """
    if run.instant is None or run.instant > now:
        raise Violation(Row.NOT_EARLY, f"{run} started at {now}")
    if at_most_once and run in ledger.started:
        raise Violation(Row.STARTS_ONCE, f"{run} started again")
    if at_most_once or in_grace:
        return ledger._replace(started=ledger.started | {run})
    return ledger


def done(
    ledger: Ledger,
    run: Run,
    now: int,
    fast_forward: bool = False,
    after: Record | None = None,
) -> Ledger:
    """A body has succeeded, or its failure counts as such; at most once: it was advanced.

    Args:
        ledger: What was owed before.
        run: The run.
        now: When.
        fast_forward: Whether missed runs collapse into one.
        after: The record as it is then written, if the release of the worker decides by which
            default it goes on.
    """
    if run.triggered is not None:
        left = tuple(instant for instant in ledger.triggers if instant != run.triggered)
        ledger = ledger._replace(triggers=left)
        if ledger.then is None or ledger.due is None:
            return ledger
        (first,) = ledger.then
        if ledger.due > now or (first is not None and first <= ledger.due):
            return ledger._replace(due=first, then=None)
        return ledger
    if run.args != ledger.args or run.planned is None or ledger.due is None:
        return ledger
    follows = after is not None and same_plan(after.schedule, ledger.schedule)
    schedule = load_schedule(after.schedule if after and follows else ledger.schedule)
    if run.planned < ledger.due:
        if follows and schedule.inherited:
            # Run again, perhaps by a worker of another release, which plans what follows.
            return ledger._replace(due=schedule.following(run.planned))
        if not fast_forward:
            return ledger
        # Run again, and later: more collapses into it.
        due = schedule.skip(run.planned, now)
        return ledger if due is None else ledger._replace(due=max(ledger.due, due))
    if run.planned > ledger.due:
        raise Violation(Row.NOTHING_LOST, f"{ledger.due} was still to be run before {run}")
    if ledger.then is not None:
        return ledger._replace(due=ledger.then[0], then=None)
    due = schedule.skip(run.planned, now) if fast_forward else schedule.following(run.planned)
    return ledger._replace(due=due)


def skipped(
    ledger: Ledger, run: Run, before: Record, after: Record | None, now: int, grace: int
) -> Ledger:
    """A claimed occurrence is too late, and is not run.

    Raises:
        Violation: It was not too late, or more or fewer were skipped and counted than are too late.
    """
    if after is None:
        raise Violation(Row.SKIPS_COUNTED, f"{run} was skipped, and left no trace")
    kept = run_of(after)
    if any(run[:3] == each[:3] for each in ledger.started):
        raise Violation(Row.SKIPS_COUNTED, f"{run} had started before, and was skipped at {now}")
    if kept.incarnation != run.incarnation:
        return done(ledger, run, now)
    planned, count = run.planned, 0
    schedule = load_schedule(before.schedule)
    while planned is not None and now - planned > grace:
        planned, count = schedule.following(planned), count + 1
    since = _backlog_since(run, before)
    if planned is not None and since is not None and planned > since:
        # It was the last of a backlog, during which these came due.
        while planned is not None and planned <= now:
            planned, count = schedule.following(planned), count + 1
    counted = progress_of(after.progress).skipped - progress_of(before.progress).skipped
    if not count or counted != count or kept.planned != planned:
        raise Violation(Row.SKIPS_COUNTED, f"{count} of {run} are too late: {after}")
    if run.args != ledger.args:
        return ledger  # it was replaced meanwhile
    if ledger.due is None or planned is None or planned > ledger.due:
        return ledger._replace(due=planned)
    return ledger


def _backlog_since(run: Run, before: Record) -> int | None:
    """When the first run of the backlog began to which a run belongs; None: to none."""
    since = progress_of(before.progress).backlog
    if since is None or run.planned is None or run.planned > since:
        return None
    return since


def overlapped(
    ledger: Ledger, run: Run, before: Record, after: Record | None, now: int, began: int | None
) -> Ledger:
    """A body has succeeded: what came due after its first attempt began is skipped.

    If it was one of a backlog, that is what came due after the first attempt of the backlog.

    Args:
        ledger: What was owed before.
        run: The occurrence.
        before: The record that its worker knows.
        after: The record as it is written then.
        now: When.
        began: When this attempt started; None: that is not known.

    Raises:
        Violation: More or fewer were skipped and counted than overlap.
    """
    ledger = done(ledger, run, now)
    if after is None or run.triggered is not None or run.planned is None:
        return ledger
    kept = run_of(after)
    # The worker need not have heard of a replacement.
    if kept.incarnation != run.incarnation or run.args != ledger.args:
        return ledger
    first = progress_of(before.progress).begun
    first = began if first is None else first
    since = _backlog_since(run, before)
    first = first if since is None else since
    schedule = load_schedule(before.schedule)
    planned, count = schedule.following(run.planned), 0
    if planned is not None and first is not None and first < planned:
        while planned is not None and planned <= now:
            planned, count = schedule.following(planned), count + 1
    counted = progress_of(after.progress).skipped - progress_of(before.progress).skipped
    if (counted, kept.planned) != (count, planned):
        raise Violation(Row.SKIPS_COUNTED, f"{count} overlap with {run}: {after}")
    behind = planned is not None and first is not None and planned <= min(first, now)
    if kept.triggered is None and after.state == State.SCHEDULED:
        known = progress_of(after.progress).backlog
        if known != (first if behind else None):
            raise Violation(Row.SKIPS_COUNTED, f"{run} ran in the backlog of {first}: {after}")
    if ledger.due is None or planned is None or planned > ledger.due:
        return ledger._replace(due=planned)
    return ledger


def began_before(run: Run, before: Record, after: Record | None, began: int | None) -> None:
    """A body has failed: the next attempt knows since when its occurrence runs.

    Raises:
        Violation: It does not.
    """
    if after is None or run_of(after)[:3] != run[:3] or after.state == State.PAUSED:
        return
    if run.triggered is not None:
        return  # what is triggered overlaps with nothing
    first = progress_of(before.progress).begun
    if run.triggered is None and first is None:
        first = began  # a triggered run leaves what is known of the occurrence that waits for it
    found = progress_of(after.progress).begun
    if found != first:
        raise Violation(Row.SKIPS_COUNTED, f"{run} began at {first}, and not at {found}")


def held_back(ledger: Ledger, run: Run) -> Ledger:
    """A body has failed: where it shall rest, a triggered run rests, too."""
    if not (ledger.paused or ledger.exhausted):
        return ledger
    left = tuple(instant for instant in ledger.triggers if instant != run.triggered)
    return ledger._replace(triggers=left)


def passed(ledger: Ledger, now: int) -> Ledger:
    """It is now so late: a pause with an end has ended."""
    if ledger.until is None or ledger.until > now:
        return ledger
    return ledger._replace(paused=False, until=None)


def same_plan(schedule: str, owed: str) -> bool:
    """Whether a schedule is the one that is owed: each release has its own default."""
    if owed.startswith(INHERITED_MARK):
        return schedule.startswith(INHERITED_MARK)
    return schedule == owed


def settles(run: Run, before: Record | None) -> None:
    """A write of an execution is applied to what was there before it."""
    if before is not None and run_of(before)[:3] != run[:3]:
        raise Violation(Row.ONLY_ITS_OWN, f"{run} changed {before}")


def check(ledger: Ledger, record: Record | None) -> None:
    """Holds a record against what is owed.

    Raises:
        Violation: It does not keep a promise.
    """
    if ledger.args is None:
        if record is not None:
            raise Violation(Row.NOTHING_RESURRECTED, f"{record}")
        return
    if record is None:
        if ledger.due is not None:
            raise Violation(Row.NOTHING_LOST, f"the record is gone before {ledger.due} was run")
        if ledger.triggers:
            raise Violation(Row.TRIGGER_RUNS, f"the record is gone: {ledger.triggers}")
        return
    progress = progress_of(record.progress)
    pending = progress.pending or Pending()
    _check_due(record, progress)
    replaced = pending.schedule is not None
    if (pending.args if replaced else record.args) != ledger.args:
        raise Violation(Row.NOTHING_OVERWRITTEN, f"{ledger.args} was scheduled last: {record}")
    schedule = pending.schedule if replaced else record.schedule
    if not same_plan(schedule or "", ledger.schedule):
        raise Violation(Row.NOTHING_OVERWRITTEN, f"{ledger.schedule} was planned last: {record}")
    planned = progress.planned
    if replaced and pending.incarnation != progress.incarnation:
        planned = pending.planned
    elif planned is not None and pending.planned is not None:
        planned = min(planned, pending.planned)
    if ledger.due is not None and (planned is None or planned > ledger.due):
        raise Violation(Row.NOTHING_LOST, f"{ledger.due} was still to be run: {record}")
    if ledger.paused and not (pending.paused or record.state in (State.PAUSED, State.FINISHED)):
        raise Violation(Row.PAUSED_RESTS, f"the pause is gone: {record}")
    rests = ledger.paused or ledger.exhausted
    if not rests and record.state == State.PAUSED and record.due_at is None:
        raise Violation(Row.COMES_DUE, f"nobody paused it: {record}")
    if record.state == State.PAUSED and ledger.paused:
        due_at, until = record.due_at, ledger.until
        if until is not None and due_at is None:
            raise Violation(Row.COMES_DUE, f"its pause ends at {until}: {record}")
        if due_at is not None and (until is None or due_at < until):
            raise Violation(Row.PAUSED_RESTS, f"paused until {until}: {record}")
    for instant in ledger.triggers:
        if instant not in (progress.triggered, pending.triggered) or record.state == State.PAUSED:
            raise Violation(Row.TRIGGER_RUNS, f"triggered at {instant}: {record}")


def _check_due(record: Record, progress: Progress) -> None:
    due_at = record.due_at
    match record.state:
        case State.PARKED | State.FINISHED:
            if due_at is not None:
                raise Violation(Row.PAUSED_RESTS, f"{record}")
        case State.PAUSED:
            occurrence = progress.occurrence
            begun = record.unfinished_attempts > 0 or progress.failures > 0
            if due_at is None or begun or occurrence is None:
                return
            if due_at < occurrence:
                raise Violation(Row.NOT_EARLY, f"{record}")
        case _ if due_at is None:
            raise Violation(Row.COMES_DUE, f"{record}")
        case State.SCHEDULED if progress.occurrence is not None and due_at < progress.occurrence:
            raise Violation(Row.NOT_EARLY, f"{record}")
        case _:
            pass
