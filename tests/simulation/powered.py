"""The promises about tasks with options of their own, held against what is seen of one record.

Retries, timeouts, heartbeats, late and missed runs, and schedules. As in
``tests.simulation.checker``, nothing here knows how the engine keeps a promise: due instants are
computed by the arithmetic of whole steps from an anchor.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from tests.simulation.history import EPOCH, Event
from tests.simulation.plan import MIDNIGHT_S, Day, Kind, Plan, Powers, TaskPlan, What
from tests.simulation.promises import SECOND, Call, Promise, Run, Violation

from pyncette import Exhausted, FailureMode

_GAINS: Final = (What.RERUN, What.TRIGGER, What.RESUME)
"""Calls after which an occurrence may have all of its attempts again."""

_RENEWED: Final = (What.SCHEDULE, What.FORCE, What.REPLACE)

_SPREAD_RUNS: Final = 5
_SPREAD_PART: Final = 0.05
"""That so many runs wait for less than this part of their jitter, by chance: once in 3 million."""


class Known(NamedTuple):
    """What is seen of one record, and what excuses it."""

    plan: Plan
    subject: str
    task: TaskPlan
    runs: list[Run]
    claims: list[Event]
    writes: list[Event]
    calls: list[Call]
    steered: list[Call]
    record: Event | None
    counted: float
    counted_store: int
    stepped: bool
    calm: bool
    crashed: dict[str, float]
    stopped: dict[str, float]

    @property
    def powers(self) -> Powers:
        """The options of its task."""
        assert self.task.powers is not None
        return self.task.powers

    @property
    def clock_error_s(self) -> float:
        """How far a worker's idea of the store's clock may be off."""
        return 0.05 if self.plan.profile in ("calm", "rough", "scenario") else 1.0

    @property
    def room(self) -> bool:
        """Whether every run may start at once."""
        plan = self.plan
        return not (plan.synchronous or plan.own_executor or plan.concurrency_limit < 100)

    def free(self, run: Run) -> bool:
        """Whether a start does not count: it said so, or was given back by a closing worker."""
        end = run.end
        if end is None:
            return False
        stopped = self.stopped.get(end.process, float("inf"))
        return bool(end.details.get("free")) or (end.kind == "cancelled" and end.time >= stopped)

    def asked(self, since: float, until: float) -> bool:
        """Whether a call of a user may have had an effect meanwhile."""
        return any(
            call.begun.time <= until and call.over >= since for call in (*self.calls, *self.steered)
        )

    def broken(self, promise: Promise, time: float, what: str) -> Violation:
        """A promise that did not hold."""
        return Violation(promise, time, f"{self.subject} {what}")

    def claim_of(self, run: Run) -> Event | None:
        """The claim that a run came from."""
        return run.claim(self.claims)


def powered(known: Known) -> Iterator[Violation]:
    """The promises about a record that did not hold."""
    powers = known.powers
    if powers.attempts:
        yield from _attempts(known)
        yield from _kept(known)
        yield from _backoff(known)
        if not known.stepped:
            yield from _traces(known)
    if powers.timeout_s is not None:
        yield from _timeouts(known)
    if powers.heartbeat and known.calm:
        yield from _beats(known)
    if known.stepped:
        return
    if powers.misfire_grace_s is not None and known.room:
        yield from _in_grace(known)
    if powers.skip_overlap:
        yield from _overlap(known)
    if powers.scheduled:
        yield from _planned(known)
        yield from _spread(known)
    elif not powers.attempts:
        yield from _counted(known)


def _only(known: Known) -> bool:
    """Whether one call has scheduled the record, and no other one was about its schedule."""
    calls = known.calls
    return len(calls) == 1 and calls[0].answer == "ok" and calls[0].what in _RENEWED


def _occurrences(known: Known) -> dict[tuple[int, int], list[Run]]:
    """The runs of each occurrence, by call and planned time, without those that were triggered."""
    found: dict[tuple[int, int], list[Run]] = {}
    for run in known.runs:
        if not run.triggered:
            found.setdefault((run.call, run.occurrence), []).append(run)
    return found


def _skipped(run: Run) -> bool:
    return run.end is not None and run.end.details.get("error") == "Skip"


def _done(known: Known, run: Run) -> bool:
    if run.end is None:
        return False
    commits = not known.powers.attempts and known.task.failure_mode is FailureMode.COMMIT
    return run.end.kind == "end" or _skipped(run) or commits


# Retries.


def _attempts(known: Known) -> Iterator[Violation]:
    """Every start counts, but for those that have asked for one that is free."""
    starts: dict[tuple[int, int, bool], int] = {}
    for run in known.runs:
        if known.free(run):
            continue
        key = (run.call, run.occurrence, run.triggered)
        starts[key] = starts.get(key, 0) + 1
        gained = sum(
            call.what in _GAINS and call.begun.time <= run.start.time for call in known.steered
        )
        # One that its user schedules again keeps its attempts, or has them anew.
        gained += sum(
            call.what in _RENEWED and call.begun.time <= run.start.time for call in known.calls[1:]
        )
        if starts[key] > known.powers.attempts * (1 + gained):
            yield known.broken(
                Promise.ATTEMPTS,
                run.start.time,
                f"starts {starts[key]} times for {run.occurrence}, "
                f"{known.powers.attempts} attempts are allowed",
            )


def _kept(known: Known) -> Iterator[Violation]:
    parked = [event for event in known.writes if event.details["state"] == "parked"]
    for event in parked:
        for claim in known.claims:
            if claim.time <= event.time:
                continue
            if not known.asked(event.time, claim.time):
                yield known.broken(
                    Promise.KEPT, claim.time, f"was parked at {event.time:.4f} and is claimed"
                )
            break


def _backoff(known: Known) -> Iterator[Violation]:
    """The instant that is written after a failure is no sooner than the policy says."""
    powers, starts = known.powers, dict[tuple[int, int, bool], int]()
    for run in known.runs:
        key = (run.call, run.occurrence, run.triggered)
        end, claim = run.end, known.claim_of(run)
        starts[key] = starts.get(key, 0) + (not known.free(run))
        if end is None or end.kind != "raise" or claim is None:
            continue
        settled = next(
            (
                event
                for event in known.writes
                if event.time >= end.time
                and event.process == end.process
                and event.details["was_token"] == claim.details["token"]
            ),
            None,
        )
        if settled is None or settled.details["state"] != "retrying":
            continue
        if known.asked(claim.time - 1, settled.time):
            continue
        delay_s = end.details.get("delay")
        if delay_s is None:
            # At least: a start of which nothing is seen has counted as well.
            grown = powers.initial_s * powers.factor ** (starts[key] - 1)
            delay_s = min(grown, powers.maximum_s) * (1 - powers.jitter)
        waits_s = (settled.details["due"] - end.store_time) / SECOND
        if not known.stepped and waits_s < delay_s - known.clock_error_s:
            yield known.broken(
                Promise.BACKOFF,
                settled.time,
                f"is retried after {waits_s:.3f} s, its policy says {delay_s:.3f} s",
            )


def _final(known: Known, runs: list[Run], until: float) -> bool:
    """Whether an occurrence may have failed for good: it said so, or has no more attempts."""
    powers, first = known.powers, runs[0].start
    if any(run.end is not None and run.end.details.get("error") == "GiveUp" for run in runs):
        return True
    longest_s = max(powers.maximum_s, 2.0)
    if powers.within_s is not None and any(
        run.end is not None
        and run.end.store_time + (longest_s + known.clock_error_s) * SECOND
        > run.occurrence + powers.within_s * SECOND
        for run in runs
    ):
        return True
    if powers.within_s is not None and any(run.end is None for run in runs):
        return True
    earlier = [run.start.time for run in known.runs if run.start.time < first.time]
    since = max(earlier, default=-1.0)
    return sum(since < claim.time <= until for claim in known.claims) >= powers.attempts


def _traces(known: Known) -> Iterator[Violation]:
    """What has begun ends well, or is there, or has had all of its attempts."""
    occurrences = _occurrences(known)
    record = known.record
    by_call: dict[int, list[int]] = {}
    for call, occurrence in occurrences:
        by_call.setdefault(call, []).append(occurrence)
    last_call = known.calls[-1] if known.calls else None
    for call, found in by_call.items():
        instants = sorted(found)
        for before, after in pairwise(instants):
            runs = [run for run in known.runs if run.occurrence == before and not run.triggered]
            if any(_done(known, run) for run in runs):
                continue
            until = occurrences[call, after][0].start.time
            if not _final(known, runs, until):
                yield known.broken(
                    Promise.TRACE,
                    until,
                    f"of call {call} was neither done nor given up at {before}, and goes on",
                )
        alone = last_call is None or _only(known)
        if not alone:
            continue
        interval = known.task.interval_s
        if last_call is not None:
            interval = last_call.begun.details.get("interval", 0.0)
        step = round(interval * SECOND)
        for before, after in pairwise(instants):
            if step and after - before != step:
                since = occurrences[call, before][-1].start.time
                until = occurrences[call, after][0].start.time
                claims = sum(since < claim.time <= until for claim in known.claims)
                missed = (after - before) / step - 1
                if missed % 1 or claims < missed * known.powers.attempts:
                    yield known.broken(
                        Promise.TRACE, until, f"has no run between {before} and {after}"
                    )
        yield from _end_of(known, step, instants, occurrences[call, instants[-1]])
    if not by_call and record is None and _only(known):
        yield known.broken(Promise.TRACE, known.counted, "was scheduled, and is gone")


def _end_of(known: Known, step: int, instants: list[int], runs: list[Run]) -> Iterator[Violation]:
    """How a record that nobody has scheduled again stands at the end."""
    record = known.record
    done = any(_done(known, run) for run in runs)
    if record is None:
        if step or not done:
            yield known.broken(
                Promise.TRACE, known.counted, f"is gone, and {instants[-1]} was not done"
            )
        return
    state, due = record.details["state"], record.details["due"]
    if state == "parked":
        if not record.details["error"]:
            yield known.broken(Promise.TRACE, known.counted, "is parked without an error")
        if record.details["planned"] == instants[-1] and not (
            _final(known, runs, known.counted) or any(run.triggered for run in known.runs)
        ):
            yield known.broken(
                Promise.ATTEMPTS, known.counted, "is parked before its attempts are used"
            )
        return
    if state == "paused":
        if known.powers.exhausted is not Exhausted.PAUSE:
            yield known.broken(Promise.TRACE, known.counted, "is paused by nobody")
        return
    late_s = 0.0 if due is None else (known.counted_store - due) / SECOND
    if due is None or late_s > 5 + step / SECOND:
        yield known.broken(
            Promise.TRACE, known.counted, f"is {state}, and due at {due}: nobody runs it"
        )
    longest_s = max(known.task.lease_s, step / SECOND, known.powers.maximum_s, 2.0) + 1
    if due is not None and -late_s > longest_s:
        yield known.broken(
            Promise.TRACE, known.counted, f"is {state}, and not due for {-late_s:.1f} s"
        )


# Timeouts and heartbeats.


def _timeouts(known: Known) -> Iterator[Violation]:
    assert known.powers.timeout_s is not None
    wrong = {
        fault.process for fault in known.plan.faults if fault.kind in (Kind.STEP_WALL, Kind.FREEZE)
    }
    longest = known.powers.timeout_s + 0.2
    for run in known.runs:
        process = run.start.process
        if process in wrong:
            continue
        ended = known.counted if run.end is None else run.end.time
        ended = min(ended, known.crashed.get(process, ended))
        if ended > run.start.time + longest:
            yield known.broken(
                Promise.TIMEOUT,
                ended,
                f"runs for {ended - run.start.time:.3f} s, its timeout is {longest - 0.2} s",
            )


def _beats(known: Known) -> Iterator[Violation]:
    for runs in _occurrences(known).values():
        for before, after in pairwise(runs):
            end = before.end
            if end is None or end.time > after.start.time or end.kind == "end":
                yield known.broken(
                    Promise.BEATS,
                    after.start.time,
                    f"is started again, though it runs since {before.start.time:.4f}",
                )


# What is late or missed.


def _in_grace(known: Known) -> Iterator[Violation]:
    assert known.powers.misfire_grace_s is not None
    for runs in _occurrences(known).values():
        first = runs[0]
        claim = known.claim_of(first)
        if claim is None or claim.details["was"] != "scheduled":
            continue
        # A process that is frozen between the claim and the start does not know.
        late_s = (claim.store_time - first.occurrence) / SECOND
        if late_s > known.powers.misfire_grace_s + known.clock_error_s:
            yield known.broken(
                Promise.IN_GRACE, first.start.time, f"starts though it is {late_s:.3f} s late"
            )


def _overlap(known: Known) -> Iterator[Violation]:
    occurrences = list(_occurrences(known).values())
    for runs, following in pairwise(occurrences):
        last = runs[-1]
        if last.end is None or last.end.kind != "end":
            continue
        error = known.clock_error_s * SECOND
        if (
            last.end.time - last.start.time < known.task.lease_s - 0.1
            and last.start.store_time + error
            < following[0].occurrence
            < last.end.store_time - error
        ):
            yield known.broken(
                Promise.OVERLAP,
                following[0].start.time,
                f"runs for {following[0].occurrence}, which came due while it ran",
            )


def _paused_last(known: Known) -> bool:
    """Returns whether a pause that was asked for earlier may have come after the last resume."""
    resumed = [call.begun.time for call in known.steered if call.what == What.RESUME]
    return bool(resumed) and any(
        call.what == What.PAUSE and call.over >= max(resumed) for call in known.steered
    )


def _counted(known: Known) -> Iterator[Violation]:
    """Each instant of the interval was started, or is counted as skipped."""
    occurrences, record = _occurrences(known), known.record
    if record is None or (known.task.dynamic and not _only(known)) or not occurrences:
        return
    interval = known.task.interval_s
    if known.task.dynamic:
        interval = known.calls[0].begun.details.get("interval", 0.0)
    step, upcoming = round(interval * SECOND), record.details["planned"]
    if upcoming is None:
        yield known.broken(Promise.COUNTED, known.counted, "is not planned any more")
        return
    instants = sorted({occurrence for _, occurrence in occurrences})
    for before, after in pairwise(instants):
        if (after - before) % step:
            yield known.broken(Promise.ON_GRID, known.counted, f"runs at {before} and {after}")
            return
    started = sum(instant < upcoming for instant in instants)
    skipped = record.details["skipped"]
    if known.task.dynamic:
        # Its first instant lies an interval after the call, and is on the grid of all others.
        call = known.calls[0]
        earliest = call.begun.store_time + step - round(known.clock_error_s * SECOND)
        first = instants[0] - (instants[0] - earliest) // step * step
        total = (upcoming - first) // step
        if known.clock_error_s * 2 + call.over - call.begun.time >= interval:
            return  # which instant was the first one is not known
    else:
        total = (upcoming - instants[0]) // step
        # Those before the first run were skipped before anybody saw one.
        opened = max(0, skipped - (total - started))
        earliest = (instants[0] - opened * step - EPOCH) / SECOND - known.plan.clock_offset_s
        total += opened if earliest >= -known.clock_error_s else 0
    # A run that a closing worker has cancelled was given back, and may be too late then. So may be
    # one that was triggered before its next attempt.
    triggered = any(run.triggered for run in known.runs)
    given_back = sum(
        occurrence < upcoming
        and (
            all(known.free(run) for run in runs)
            or (triggered and (len(runs) > 1 or not any(_done(known, run) for run in runs)))
        )
        for (_, occurrence), runs in occurrences.items()
    )
    if not started - given_back <= total - skipped <= started:
        yield known.broken(
            Promise.COUNTED,
            known.counted,
            f"has come due {total} times, was run {started} times and skipped {skipped} times",
        )
    if record.details["state"] == "paused" and _paused_last(known):
        return
    owner_s = 3 * known.plan.poll_s if known.task.shared else 0.0
    if (known.counted_store - upcoming) / SECOND > interval + 4 + owner_s:
        yield known.broken(Promise.AT_LEAST_ONCE, known.counted, f"is left behind at {upcoming}")


# Schedules.


def instants_of(known: Known, since: int, until: int) -> list[int]:
    """All instants of its rhythms, both included, by plain arithmetic."""
    powers, base = known.powers, EPOCH + round(known.plan.clock_offset_s * SECOND)
    found: set[int] = set()
    for step_s, anchor_s in powers.rhythms:
        step = round(step_s * SECOND)
        anchor = EPOCH + round((known.plan.clock_offset_s + anchor_s) * SECOND)
        first = anchor + -((anchor - since) // step) * step
        found.update(range(first, until + 1, step))
    low, high = (
        None if bound is None else base + round(bound * SECOND)
        for bound in (powers.start_s, powers.end_s)
    )
    return sorted(
        instant
        for instant in found
        if instant >= since
        and not _closed(powers, instant)
        and (low is None or instant >= low)
        and (high is None or instant <= high)
    )


def _closed(powers: Powers, instant: int) -> bool:
    """Whether the calendar of a task closes the day of an instant."""
    if powers.closed is None:
        return False
    return (instant < EPOCH + round(MIDNIGHT_S * SECOND)) is (powers.closed is Day.BEFORE)


def _planned(known: Known) -> Iterator[Violation]:
    powers, record = known.powers, known.record
    occurrences = _occurrences(known)
    instants = sorted({occurrence for _, occurrence in occurrences})
    base = EPOCH + round(known.plan.clock_offset_s * SECOND)
    error = round(known.clock_error_s * SECOND)
    if known.task.dynamic and not _only(known):
        return
    created = base
    if known.calls:
        ended = known.calls[0].ended
        assert ended is not None
        created = ended.store_time
    end = None if powers.end_s is None else base + round(powers.end_s * SECOND)
    step = round(known.task.interval_s * SECOND)
    if powers.rhythms:
        since = instants[0] if instants else created
        expected = instants_of(known, min(since, created), known.counted_store)
        # What came due while it was being made may be planned, or not.
        sure = [instant for instant in expected if instant > created + error]
        if not known.task.dynamic:
            sure = [instant for instant in expected if instant >= since]
        wrong = [instant for instant in instants if instant not in expected]
    else:
        first = instants[0] if instants else created
        low = None if powers.start_s is None else base + round(powers.start_s * SECOND)
        # With a start, it is the anchor of all but the first one.
        anchor = first if low is None else low
        sure = [first, *range(anchor, known.counted_store, step)]
        sure = [instant for instant in sure if instant >= first and (end is None or instant <= end)]
        wrong = [
            instant
            for instant in instants
            if ((instant - anchor) % step and instant != first)
            or (low is not None and instant < low)
            or (end is not None and instant > end)
        ]
        if known.calls and instants and low is None:
            begun = known.calls[0].begun.store_time
            if not begun - error <= first <= created + error:
                yield known.broken(
                    Promise.PLANNED, known.counted, f"was to run at once, and runs at {first}"
                )
    if wrong:
        yield known.broken(
            Promise.PLANNED, known.counted, f"has runs that are not planned: {wrong}"
        )
    # At the end, one run after the other may be under way.
    distance = max([step / SECOND, *(rhythm.step_s for rhythm in powers.rhythms)])
    until = known.counted_store - round((distance + powers.wait_s + 4) * SECOND)
    if powers.calendar and _lacking(known):
        until = min(until, instants[-1]) if instants else 0
    done = {
        occurrence
        for (_, occurrence), runs in occurrences.items()
        if any(_done(known, run) for run in runs)
    }
    lost = [instant for instant in sure if instant <= until and instant not in done]
    if lost and not _may_rest(known):
        yield known.broken(Promise.AT_LEAST_ONCE, known.counted, f"was never run for {lost[:5]}")
    if end is not None and end < until and not (powers.calendar and _lacking(known)):
        state = "gone" if record is None else record.details["state"]
        if state != ("gone" if known.task.dynamic else "finished"):
            yield known.broken(Promise.BOUNDED, known.counted, f"is {state} after its end")


def _may_rest(known: Known) -> bool:
    """Whether it may be paused at the end: no resume began after the last pause was over."""
    pauses = [call for call in known.steered if call.what == What.PAUSE]
    return bool(pauses) and not any(
        call.what == What.RESUME
        and call.answer == "ok"
        and all(pause.over <= call.begun.time for pause in pauses)
        for call in known.steered
    )


def _lacking(known: Known) -> bool:
    """Whether a process without the calendar takes part to the end: it holds runs up."""
    return any(
        life.process.startswith("w1.") and (life.end is None or life.end > known.plan.duration - 30)
        for life in known.plan.lives
    )


def _spread(known: Known) -> Iterator[Violation]:
    wait_s = known.powers.wait_s
    if not wait_s:
        return
    occurrences = _occurrences(known)
    instants = sorted({occurrence for _, occurrence in occurrences})
    waits = []
    for (_, occurrence), runs in occurrences.items():
        # The runs that are planned when the one before has ended.
        later = [instant for instant in instants if instant > occurrence]
        longest = min(wait_s, (later[0] - occurrence) / SECOND) if later else wait_s
        waits.append(((runs[0].start.store_time - occurrence) / SECOND, longest))
    late = [wait for wait, longest in waits[1:] if wait > longest * _SPREAD_PART]
    if len(waits) > _SPREAD_RUNS and not late and known.clock_error_s < wait_s * _SPREAD_PART * 5:
        yield known.broken(
            Promise.SPREAD, known.counted, f"never waits: {[round(wait, 3) for wait, _ in waits]}"
        )
