"""What a worker does with one record, step by step, with calls that get lost or come late.

The workers follow the protocol of the loop (claim, start, heartbeat, settle, each of them
repeated when its answer was lost) with the real functions of ``pyncette.engine.rules``, over the
model store of ``tests.simulation.model``. Which step is taken when is left to
``tests.simulation.explorer``.

A call of a worker comes back with its answer; or it is applied and the answer is lost; or it is
late, and is applied at any time afterwards, or never. A write is repeated as it was, not decided
anew with a later time, as the settler may do: only the version that it expects matters here.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

from tests.simulation import model
from tests.simulation.model import Ask, Run

from pyncette.engine import rules
from pyncette.engine.rules import Failure, Policy, Verdict
from pyncette.model import Exhausted, FailureMode
from pyncette.schedule import At, Every, Inherited, Schedule
from pyncette.store import Refused, Write
from pyncette.store.record import Change, Reading, Record
from pyncette.store.record import read as read_anew

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=1 << 16)
def read(record: Record) -> Reading:
    """As the function of the engine: a search meets the same records again and again."""
    return read_anew(record)


def every(microseconds: int) -> Every:
    """A recurrence in the small units of the model."""
    return Every(timedelta(microseconds=microseconds))


def at(instant: int) -> At:
    """A single run in the small units of the model."""
    return At(EPOCH + timedelta(microseconds=instant))


class Scenario(NamedTuple):
    """What is explored. Instants and durations are small integers.

    Attributes:
        plan: Of the record that is there in the beginning, made at 0.
        begin, end: Time runs from the one to the other.
        depth: Most steps of a history.
        workers: How many.
        asks: What users may ask for.
        asks_max: How often they may, all together.
        faults_max: How many faults there may be: lost answers, late calls, crashes.
        outcomes: What bodies may end in.
        at_most_once: The execution mode.
        fast_forward, failure_mode: See ``pyncette.engine.rules.Rules``.
        attempts: Maximum attempts of an occurrence, if there is a policy.
        exhausted: What follows the last one.
        misfire_grace: How late an occurrence may be when it is first started.
        skip_overlap: Whether what comes due while a body runs is skipped.
        asked_plan: What is scheduled: a recurrence with this interval; None: once, at now + 1.
        lease: Of each claim.
        heartbeats: Whether bodies send them.
        gives_back: Whether workers may shut down before the body starts; with a grace, also while
            it runs.
        lagging: Whether claims go by an index that lags.
        group: Of the record.
        new_default: Workers whose claim is sent from this instant on are of a release whose
            template has a default with this interval. The schedule is then inherited.
        states_max: A bound, so that a mistake does not eat the machine.
    """

    schedule: Schedule
    begin: int
    end: int
    depth: int
    workers: int = 2
    asks: tuple[Ask, ...] = ()
    asks_max: int = 0
    faults_max: int = 0
    outcomes: tuple[bool, ...] = (True,)
    at_most_once: bool = False
    fast_forward: bool = False
    failure_mode: FailureMode = FailureMode.NONE
    attempts: int | None = None
    exhausted: Exhausted | None = None
    misfire_grace: int | None = None
    skip_overlap: bool = False
    asked_plan: int | None = None
    lease: int = 2
    heartbeats: bool = False
    gives_back: bool = False
    lagging: bool = False
    group: str = "g"
    new_default: tuple[int, int] | None = None
    states_max: int = 3_000_000


class Phase(StrEnum):
    """Where a worker stands."""

    IDLE = "idle"
    ASKING = "asking"
    CLAIMED = "claimed"
    BODY = "body"
    WRITING = "writing"
    ADVANCED = "advanced"


class Worker(NamedTuple):
    """What a worker knows.

    Attributes:
        phase: See ``Phase``.
        token: Of its claim.
        sent: When the claim was sent for the first time.
        until: Up to when it knows to hold the lease.
        record: As it last saw it.
        run: What it executes.
        step: What ``write`` is for.
        write: What it wants written.
        began: When the body started, where that matters.
    """

    phase: Phase = Phase.IDLE
    token: str = ""
    sent: int = 0
    until: int = 0
    record: Record | None = None
    run: Run | None = None
    step: str = ""
    write: Write | None = None
    began: int | None = None


IDLE: Final = Worker()


class Message(NamedTuple):
    """A call that is late: a claim (``write`` is None) or a write."""

    token: str
    sent: int
    run: Run | None = None
    step: str = ""
    write: Write | None = None


class Event(NamedTuple):
    """Something that the checker is told."""

    kind: str
    run: Run
    before: Record | None = None
    after: Record | None = None
    began: int | None = None


class Edge(NamedTuple):
    """One step of a worker, or the arrival of a late call."""

    name: str
    worker: Worker
    record: Record | None
    events: tuple[Event, ...] = ()
    message: Message | None = None
    faults: int = 0
    tokens: int = 0


class Protocol:
    """What a worker does, step by step. Tests override methods to see what they prevent."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.policy = Policy(
            scenario.fast_forward,
            scenario.failure_mode,
            1,
            scenario.exhausted,
            scenario.attempts,
            misfire_grace=scenario.misfire_grace,
            skip_overlap=scenario.skip_overlap,
        )

    def may_start(self, worker: Worker, now: int) -> bool:
        """Whether a body may still start."""
        return now < worker.sent + self.scenario.lease

    def conditional(self, record: Record, token: str, change: Change, step: str) -> Write:
        """A change, on the condition that the record is still what it was."""
        return Write(record.group, record.key, change, record.version, token)

    def verdict(self, current: Record | None, worker: Worker) -> Verdict:
        """What a refused write means."""
        assert worker.record is not None
        return rules.verdict(current, read(worker.record))

    def failure(self, reading: Reading) -> Failure:
        """What a failed attempt means: with a policy, it is retried after 1, or is final."""
        attempts = self.policy.attempts
        if attempts is None:
            return Failure("no")
        return Failure("no", delay=1, final=rules.attempt_of(reading) >= attempts)

    def reading(self, record: Record, sent: int) -> Reading:
        """What a record says to a worker whose claim was sent then."""
        reading, new = read(record), self.scenario.new_default
        if new is None or not reading.schedule.inherited:
            return reading
        schedule = Inherited(every(new[1])) if sent >= new[0] else self.scenario.schedule
        return reading._replace(schedule=schedule)

    def change(self, step: str, record: Record, now: int, began: int | None = None) -> Change:
        """What a step writes."""
        reading = self.reading(record, (record.due_at or 0) - self.scenario.lease)
        ran = None if began is None else (began, now)
        match step:
            case "advance":
                return rules.advanced(reading, self.policy, now)
            case "success":
                return rules.succeeded(reading, self.policy, now, ran)
            case "failure":
                return rules.failed(reading, self.policy, now, self.failure(reading), ran)
            case "exhausted":
                failure = rules.too_many(reading, self.policy, now)
                # A user's request may have given it more attempts meanwhile.
                return rules.exhausted(reading, self.policy, now, failure or Failure("no"))
            case "misfire":
                return rules.misfired(reading, self.policy, now)
            case "heartbeat":
                return rules.heartbeat(record, now, self.scenario.lease)
            case "give back, begun":
                return rules.given_back(reading, now, started=now)
            case _:
                return rules.given_back(reading, now)

    def edges(
        self, worker: Worker, record: Record | None, shown: Record | None, now: int, token: str
    ) -> Iterator[Edge]:
        """All that a worker may do next."""
        if worker.phase is not Phase.IDLE:
            yield Edge("crash", IDLE, record, faults=1)
        match worker.phase:
            case Phase.IDLE:
                yield from self._claim(record, shown, now, token)
            case Phase.ASKING:
                yield self._ask_again(worker, record, shown)
            case Phase.CLAIMED:
                yield from self._begin(worker, record, now)
            case Phase.BODY:
                yield from self._go_on(worker, record, now)
            case Phase.WRITING:
                yield from self._send(worker, record, now)
            case Phase.ADVANCED:
                assert worker.run is not None
                yield Edge("body", IDLE, record, (Event("started", worker.run),))

    def _claim(
        self, record: Record | None, shown: Record | None, now: int, token: str
    ) -> Iterator[Edge]:
        if record is None or shown is None or not model.claimable(record, shown, now):
            return
        held = self._held(model.taken(record, self.scenario.lease, now, token), token, now)
        asking = Worker(Phase.ASKING, token, now)
        yield Edge("claim", held, held.record, tokens=1)
        yield Edge("claim, answer lost", asking, held.record, faults=1, tokens=1)
        yield Edge("claim, late", asking, record, (), Message(token, now), 1, 1)

    def _held(self, record: Record, token: str, sent: int) -> Worker:
        until = sent + self.scenario.lease
        return Worker(Phase.CLAIMED, token, sent, until, record, model.run_of(record))

    def _ask_again(self, worker: Worker, record: Record | None, shown: Record | None) -> Edge:
        token, sent, lease = worker.token, worker.sent, self.scenario.lease
        if record is not None:
            if model.taken_before(record, lease, sent, token):
                return Edge("claim again", self._held(record, token, sent), record)
            if shown is not None and model.claimable(record, shown, sent):
                record = model.taken(record, lease, sent, token)
                return Edge("claim again", self._held(record, token, sent), record)
        return Edge("claim again, for nothing", IDLE, record)

    def _begin(self, worker: Worker, record: Record | None, now: int) -> Iterator[Edge]:
        assert worker.run is not None
        if not self.may_start(worker, now):
            yield Edge("drop, too late", IDLE, record)
            return
        if self.scenario.gives_back:
            yield self._decide("give back", worker, record, now)
        assert worker.record is not None
        if rules.too_many(read(worker.record), self.policy, now) is not None:
            yield self._decide("exhausted", worker, record, now, Event("gives up", worker.run))
            return
        if rules.too_late(read(worker.record), self.policy, now):
            skips = self._final(worker._replace(step="misfire"))
            yield self._decide("misfire", worker, record, now, *skips)
            return
        if self.scenario.at_most_once:
            yield self._decide("advance", worker, record, now)
        else:
            began = now if self.scenario.skip_overlap else None
            body = worker._replace(phase=Phase.BODY, began=began)
            yield Edge("body", body, record, (Event("started", worker.run),))

    def _go_on(self, worker: Worker, record: Record | None, now: int) -> Iterator[Edge]:
        assert worker.run is not None
        for succeeds in self.scenario.outcomes:
            step = "success" if succeeds else "failure"
            counts = succeeds or self.policy.failure_mode is FailureMode.COMMIT
            event = Event("done" if counts else "held back", worker.run)
            events = () if succeeds else self._final(worker._replace(step=step))
            yield self._decide(step, worker, record, now, *(events or (event,)))
        if self.scenario.gives_back and self.policy.misfire_grace is not None:
            yield self._decide("give back, begun", worker, record, now)
        if self.scenario.heartbeats:
            beat = self._decide("heartbeat", worker, record, now).worker
            yield from self._send(beat, record, now)

    def _final(self, worker: Worker) -> tuple[Event, ...]:
        """What the checker is told where no attempt follows: it is given up, or is too late."""
        assert worker.record is not None
        assert worker.run is not None
        if worker.step == "misfire":
            return (Event("skips", worker.run, worker.record),)
        last = worker.step == "failure" and self.failure(read(worker.record)).final
        return (Event("gives up", worker.run),) if last or worker.step == "exhausted" else ()

    def _decide(
        self, step: str, worker: Worker, record: Record | None, now: int, *events: Event
    ) -> Edge:
        assert worker.record is not None
        change = self.change(step, worker.record, now, worker.began)
        write = self.conditional(worker.record, worker.token, change, step)
        if events and events[0].kind == "gives up":
            after, _ = model.written(worker.record, write, now)
            events = (events[0]._replace(before=after),)
        if events and events[0].kind == "done" and self.scenario.new_default is not None:
            after, result = model.written(record, write, now)
            # A write that is refused now is never applied.
            events = (events[0]._replace(after=None if isinstance(result, Refused) else after),)
        if events and events[0].kind == "skips":
            after, _ = model.written(worker.record, write, now)
            events = (events[0]._replace(after=after),)
        if self.scenario.skip_overlap and step in ("success", "failure"):
            assert worker.run is not None
            after, _ = model.written(worker.record, write, now)
            kind = "overlaps" if step == "success" else "failed"
            events = (*events, Event(kind, worker.run, worker.record, after, worker.began))
        worker = worker._replace(phase=Phase.WRITING, step=step, write=write)
        return Edge(step, worker, record, events)

    def _send(self, worker: Worker, record: Record | None, now: int) -> Iterator[Edge]:
        step, write, run = worker.step, worker.write, worker.run
        assert write is not None
        assert run is not None
        name = f"write {step}"
        after, result = model.written(record, write, now)
        if isinstance(result, Refused):
            yield self._refused(name, worker, record, now)
        else:
            event = Event(step, run, record)
            yield Edge(name, self._applied(worker, after), after, (event,))
            yield Edge(f"{name}, answer lost", self._unknown(worker), after, (event,), faults=1)
        message = Message(worker.token, worker.sent, run, step, write)
        yield Edge(f"{name}, late", self._unknown(worker), record, (), message, 1)

    def _applied(self, worker: Worker, after: Record | None) -> Worker:
        if worker.step == "advance":
            return worker._replace(phase=Phase.ADVANCED, record=None, write=None)
        if worker.step != "heartbeat" or after is None or after.due_at is None:
            return IDLE
        return worker._replace(
            phase=Phase.BODY, record=after, until=after.due_at, step="", write=None
        )

    def _unknown(self, worker: Worker) -> Worker:
        if worker.step != "heartbeat":
            return worker
        # The body goes on meanwhile; whatever is written next finds out.
        return worker._replace(phase=Phase.BODY, step="", write=None)

    def _refused(self, name: str, worker: Worker, current: Record | None, now: int) -> Edge:
        verdict = self.verdict(current, worker)
        if verdict is Verdict.HELD:
            seen = worker._replace(record=current)
            edge = self._decide(worker.step, seen, current, now, *self._final(seen))
            if worker.step == "heartbeat":
                edge = edge._replace(worker=self._unknown(edge.worker))
            return edge._replace(name=f"{name}: refused, decide again")
        if verdict is Verdict.SETTLED:
            return Edge(f"{name}: refused, it was settled", self._applied(worker, None), current)
        return Edge(f"{name}: refused, lost", IDLE, current)

    def arrives(
        self, message: Message, record: Record | None, shown: Record | None, now: int
    ) -> Edge | None:
        """What a late call does when it is applied at last; None: nothing."""
        if message.write is None:
            if record is None or shown is None:
                return None
            if not model.claimable(record, shown, message.sent):
                return None
            record = model.taken(record, self.scenario.lease, message.sent, message.token)
            return Edge("the late claim arrives", IDLE, record)
        after, result = model.written(record, message.write, now)
        if isinstance(result, Refused):
            return None
        assert message.run is not None
        event = Event(message.step, message.run, record)
        return Edge(f"the late {message.step} arrives", IDLE, after, (event,))
