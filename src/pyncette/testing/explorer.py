"""Every interleaving of a few workers, users, faults and time, to a stated depth.

The workers follow the protocol of the loop (claim, start, heartbeat, settle, each of them
repeated when its answer was lost) with the real functions of :mod:`pyncette.lifecycle`, over the
model store and under the checker of :mod:`pyncette.testing.model`. The search is breadth first,
so the first violation found has a shortest history.

A call of a worker comes back with its answer; or it is applied and the answer is lost; or it is
late, and is applied at any time afterwards, or never. A user's calls are one step each: they
write on the condition of the version that they read, so nothing can come in between. A user whose
call is late or lost does not repeat it.

What keeps it fast: parts of a state are interned, so that a state is a few small integers; what a
part does is computed once; workers are interchangeable. A worker's writes are not repeated with a
fresh decision, as the settler may do: only the versions that they expect matter here.
"""

from __future__ import annotations

import gc
from collections.abc import Hashable, Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, Generic, NamedTuple, TypeVar

from pyncette import lifecycle
from pyncette.lifecycle import Rules, Verdict, Wanted
from pyncette.model import FailureMode
from pyncette.record import ANY, DELETE, Change, Record, read
from pyncette.schedule import At, Every, Schedule
from pyncette.store import Applied, Refused, Write
from pyncette.testing import model
from pyncette.testing.model import NOTHING, Ask, Ledger, Row, Run, Violation

KEY: Final = "x"
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
COMPLETION_RUNS: Final = 8


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
        fast_forward, failure_mode: See :class:`pyncette.lifecycle.Rules`.
        asked_plan: What is scheduled: a recurrence with this interval; None: once, at now + 1.
        lease: Of each claim.
        heartbeats: Whether bodies send them.
        gives_back: Whether workers may shut down before the body starts.
        lagging: Whether claims go by an index that lags.
        group: Of the record.
        states_max: A bound, so that a mistake does not eat the machine.
    """

    plan: Schedule
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
    asked_plan: int | None = None
    lease: int = 2
    heartbeats: bool = False
    gives_back: bool = False
    lagging: bool = False
    group: str = "g"
    states_max: int = 3_000_000


class Report(NamedTuple):
    """What came of an exploration.

    Attributes:
        states: How many different ones were seen.
        depth: Steps of the longest history.
        complete: Whether nothing new was left at that depth.
        violation: The first one found, if any.
        trace: The history that leads to it.
    """

    states: int
    depth: int
    complete: bool
    violation: Violation | None = None
    trace: tuple[str, ...] = ()


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
        phase: See :class:`Phase`.
        token: Of its claim.
        sent: When the claim was sent for the first time.
        until: Up to when it knows to hold the lease.
        record: As it last saw it.
        run: What it executes.
        step: What ``write`` is for.
        write: What it wants written.
    """

    phase: Phase = Phase.IDLE
    token: str = ""
    sent: int = 0
    until: int = 0
    record: Record | None = None
    run: Run | None = None
    step: str = ""
    write: Write | None = None


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


class Edge(NamedTuple):
    """One step of a worker, or the arrival of a late call."""

    name: str
    worker: Worker
    record: Record | None
    events: tuple[Event, ...] = ()
    message: Message | None = None
    faults: int = 0
    tokens: int = 0


T = TypeVar("T", bound=Hashable)


class _Interned(Generic[T]):
    """Values and the small integers that stand for them."""

    def __init__(self) -> None:
        self.values: list[T] = []
        self._ids: dict[T, int] = {}

    def __call__(self, value: T) -> int:
        found = self._ids.get(value)
        if found is None:
            found = self._ids[value] = len(self.values)
            self.values.append(value)
        return found


# Now, the record, what the index shows (-1: the same), the ledger, the workers, late calls, how
# many tokens were given out, how often users asked, how many faults there were. A plain tuple is
# twice as fast as one with names, and nothing else counts here.
_State = tuple[int, int, int, int, tuple[int, ...], tuple[int, ...], int, int, int]


class _Step(NamedTuple):
    """An edge, interned."""

    name: str
    worker: int
    record: int
    events: tuple[Event, ...]
    message: int | None
    faults: int
    tokens: int


class Protocol:
    """What a worker does, step by step. Tests override methods to see what they prevent."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.rules = Rules(scenario.fast_forward, scenario.failure_mode, 1)

    def may_start(self, worker: Worker, now: int) -> bool:
        """Whether a body may still start."""
        return now < worker.sent + self.scenario.lease

    def conditional(self, record: Record, token: str, change: Change, step: str) -> Write:
        """A change, on the condition that the record is still what it was."""
        return Write(record.group, record.key, change, record.version, token)

    def verdict(self, current: Record | None, worker: Worker) -> Verdict:
        """What a refused write means."""
        assert worker.record is not None
        return lifecycle.verdict(current, read(worker.record))

    def change(self, step: str, record: Record, now: int) -> Change:
        """What a step writes."""
        reading = read(record)
        match step:
            case "advance":
                return lifecycle.advanced(reading, self.rules, now)
            case "success":
                return lifecycle.succeeded(reading, self.rules, now)
            case "failure":
                return lifecycle.failed(reading, self.rules, now, "no")
            case "heartbeat":
                return lifecycle.heartbeat(record, now, self.scenario.lease)
            case _:
                return lifecycle.given_back(reading, now)

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
        if self.scenario.at_most_once:
            yield self._decide("advance", worker, record, now)
        else:
            body = worker._replace(phase=Phase.BODY)
            yield Edge("body", body, record, (Event("started", worker.run),))

    def _go_on(self, worker: Worker, record: Record | None, now: int) -> Iterator[Edge]:
        assert worker.run is not None
        for succeeds in self.scenario.outcomes:
            step = "success" if succeeds else "failure"
            counts = succeeds or self.rules.failure_mode is FailureMode.COMMIT
            event = Event("done" if counts else "held back", worker.run)
            yield self._decide(step, worker, record, now, event)
        if self.scenario.heartbeats:
            beat = self._decide("heartbeat", worker, record, now).worker
            yield from self._send(beat, record, now)

    def _decide(
        self, step: str, worker: Worker, record: Record | None, now: int, *events: Event
    ) -> Edge:
        assert worker.record is not None
        change = self.change(step, worker.record, now)
        write = self.conditional(worker.record, worker.token, change, step)
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
            edge = self._decide(worker.step, seen, current, now)
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


class Explorer:
    """Searches one scenario."""

    def __init__(self, scenario: Scenario, protocol: type[Protocol] = Protocol) -> None:
        self.scenario = scenario
        self.protocol = protocol(scenario)
        self._records: _Interned[Record | None] = _Interned()
        self._ledgers: _Interned[Ledger] = _Interned()
        self._workers: _Interned[Worker] = _Interned()
        self._messages: _Interned[Message] = _Interned()
        self._steps: dict[tuple[int, ...], list[_Step]] = {}
        self._arrivals: dict[tuple[int, ...], _Step | None] = {}
        self._asks: dict[tuple[int, ...], list[tuple[str, int, int]]] = {}
        self._told: dict[tuple[int, tuple[Event, ...], int], int] = {}
        self._checked: set[tuple[int, int]] = set()

    def run(self) -> Report:
        """Searches until the first violation, the depth, or the end of what is new."""
        collects = gc.isenabled()
        gc.disable()  # a million tuples, all of them kept: looking for cycles halves the speed
        try:
            return self._search()
        finally:
            if collects:
                gc.enable()

    def _search(self) -> Report:
        first = self._first()
        states = [first]
        seen = {first}
        parents: list[tuple[int, str]] = [(-1, "")]
        begin, depth = 0, 0
        while begin < len(states) and depth < self.scenario.depth:
            end = len(states)
            depth += 1
            for index in range(begin, end):
                try:
                    for name, state in self._successors(states[index]):
                        if state not in seen:
                            seen.add(state)
                            states.append(state)
                            parents.append((index, name))
                except Violation as violation:
                    trace = (*self._history(parents, index), f"{violation}")
                    return Report(len(states), depth, False, violation, trace)
            begin = end
            if len(states) > self.scenario.states_max:
                break
        return Report(len(states), depth, begin == len(states))

    def _first(self) -> _State:
        scenario = self.scenario
        wanted = Wanted(scenario.plan, "1 {}", "b0")
        put = lifecycle.created(wanted, 0)
        record, _ = model.written(None, Write(scenario.group, KEY, put, ANY), 0)
        ledger = model.scheduled(NOTHING, wanted.args, wanted.plan, 0)
        known = self._records(record)
        shown = known if scenario.lagging else -1
        idle = (self._workers(IDLE),) * scenario.workers
        return (scenario.begin, known, shown, self._ledgers(ledger), idle, (), 0, 0, 0)

    def _history(self, parents: list[tuple[int, str]], index: int) -> list[str]:
        names: list[str] = []
        while index > 0:
            index, name = parents[index]
            names.append(name)
        return names[::-1]

    def _successors(self, state: _State) -> Iterator[tuple[str, _State]]:
        now, record, shown, ledger, workers, messages, tokens, asks, faults = state
        scenario = self.scenario
        if now < scenario.end:
            yield "time passes", (now + 1, *state[1:])
        if shown not in (-1, record):
            yield "the index catches up", (now, record, record, *state[3:])
        at_hand = record if shown == -1 else shown
        previous = -1
        for index, worker in enumerate(workers):
            if worker == previous:
                continue  # interchangeable
            previous = worker
            others = workers[:index] + workers[index + 1 :]
            for step in self._worker_steps(worker, record, at_hand, now, tokens):
                name, next_worker, after, _, message, fault, token = step
                if faults + fault > scenario.faults_max:
                    continue
                owed = self._after(ledger, step, record, now, others)
                queue = messages if message is None else tuple(sorted((*messages, message)))
                moved = tuple(sorted((*others, next_worker)))
                yield (
                    name,
                    (now, after, shown, owed, moved, queue, tokens + token, asks, faults + fault),
                )
        for index, message in enumerate(messages):
            arrival = self._arrival(message, record, at_hand, now)
            if arrival is not None:
                owed = self._after(ledger, arrival, record, now, ())
                queue = messages[:index] + messages[index + 1 :]
                yield (
                    arrival.name,
                    (now, arrival.record, shown, owed, workers, queue, tokens, asks, faults),
                )
        if asks < scenario.asks_max:
            for name, after, owed in self._asked(ledger, record, now, asks):
                yield name, (now, after, shown, owed, *state[4:7], asks + 1, faults)

    # What the parts do, each computed once.

    def _worker_steps(
        self, worker: int, record: int, shown: int, now: int, tokens: int
    ) -> list[_Step]:
        known = (worker, record, shown, now, tokens)
        steps = self._steps.get(known)
        if steps is None:
            acting = self._workers.values[worker]
            token = f"t{tokens}"
            edges = self.protocol.edges(
                acting, self._records.values[record], self._records.values[shown], now, token
            )
            steps = self._steps[known] = [
                self._interned(edge._replace(name=f"{acting.token or token}: {edge.name}"))
                for edge in edges
            ]
        return steps

    def _arrival(self, message: int, record: int, shown: int, now: int) -> _Step | None:
        known = (message, record, shown, now)
        if known not in self._arrivals:
            edge = self.protocol.arrives(
                self._messages.values[message],
                self._records.values[record],
                self._records.values[shown],
                now,
            )
            self._arrivals[known] = None if edge is None else self._interned(edge)
        return self._arrivals[known]

    def _interned(self, edge: Edge) -> _Step:
        name, worker, record, events, message, faults, tokens = edge
        return _Step(
            name,
            self._workers(worker),
            self._records(record),
            events,
            None if message is None else self._messages(message),
            faults,
            tokens,
        )

    def _after(
        self, ledger: int, step: _Step, record: int, now: int, others: tuple[int, ...]
    ) -> int:
        """The ledger after a step, which is checked."""
        try:
            owed = ledger
            if step.events:
                told = (ledger, step.events, now)
                known = self._told.get(told)
                if known is None:
                    after = self._tell(self._ledgers.values[ledger], step.events, now)
                    known = self._told[told] = self._ledgers(after)
                owed = known
                if step.events[0].kind == "started" and not self.scenario.at_most_once:
                    self._check_alone(step.events[0].run, now, others)
            if step.record != record or owed != ledger:
                self._check(owed, step.record)
        except Violation as violation:
            raise Violation(violation.row, f"at {now}, {step.name}: {violation}") from None
        return owed

    def _tell(self, ledger: Ledger, events: tuple[Event, ...], now: int) -> Ledger:
        scenario = self.scenario
        for kind, run, before in events:
            match kind:
                case "started":
                    ledger = model.started(ledger, run, now, scenario.at_most_once)
                case "done":
                    ledger = model.done(ledger, run, now, scenario.fast_forward)
                case "held back":
                    ledger = model.held_back(ledger, run)
                case "advance":
                    model.settles(run, before)
                    ledger = model.done(ledger, run, now, scenario.fast_forward)
                case "success" if scenario.fast_forward:
                    model.settles(run, before)
                    ledger = model.done(ledger, run, now, True)
                case "heartbeat":
                    pass  # what it may do wrong shows in the record
                case _:
                    model.settles(run, before)
        return ledger

    def _check_alone(self, run: Run, now: int, others: tuple[int, ...]) -> None:
        for other in others:
            _, _, _, until, _, running, step, _ = self._workers.values[other]
            in_body = self._workers.values[other].phase is Phase.BODY
            if in_body and running is not None and running.born == run.born and now < until:
                raise Violation(Row.ONE_BODY, f"{run} beside {running}, {step} held to {until}")

    def _check(self, ledger: int, record: int) -> None:
        if (ledger, record) in self._checked:
            return
        owed, found = self._ledgers.values[ledger], self._records.values[record]
        model.check(owed, found)
        self._complete(owed, found)
        self._checked.add((ledger, record))

    def _complete(self, ledger: Ledger, record: Record | None) -> None:
        """All workers die, all calls are lost, what rests is resumed; then one new worker runs."""
        now = max(self.scenario.begin, ledger.triggered or 0)
        awaited = ledger
        if record is not None and ledger.paused:
            now = self.scenario.end
            change = lifecycle.resumed(read(record), now)
            if change is not None:
                record, _ = model.written(record, self._users(record, change), now)
                awaited = ledger = ledger._replace(paused=False)
        for _ in range(COMPLETION_RUNS):
            if record is None or record.due_at is None:
                break
            now = max(now, record.due_at)
            record = model.taken(record, self.scenario.lease, now, "last")
            run = model.run_of(record)
            ledger = model.started(ledger, run, now, self.scenario.at_most_once)
            ledger = model.done(ledger, run, now, self.scenario.fast_forward)
            change = lifecycle.succeeded(read(record), self.protocol.rules, now)
            record, _ = model.written(record, self._users(record, change), now)
            model.check(ledger, record)
        if ledger.args is None:
            return
        if awaited.due is not None and ledger.due == awaited.due:
            raise Violation(Row.COMES_DUE, f"{awaited.due} is never run: {record}")
        if ledger.triggers:
            raise Violation(Row.TRIGGER_RUNS, f"never: {ledger.triggers}: {record}")

    def _users(self, record: Record, change: Change) -> Write:
        return Write(record.group, record.key, change, record.version)

    def _asked(self, ledger: int, record: int, now: int, asks: int) -> list[tuple[str, int, int]]:
        known = (ledger, record, now, asks)
        answers = self._asks.get(known)
        if answers is None:
            answers = []
            for ask in self.scenario.asks:
                answer = self._answer(
                    ask, self._ledgers.values[ledger], self._records.values[record], now, asks
                )
                if answer is not None:
                    owed, after = self._ledgers(answer[0]), self._records(answer[1])
                    self._check(owed, after)
                    answers.append((f"at {now}, {ask}", after, owed))
            self._asks[known] = answers
        return answers

    def _answer(
        self, ask: Ask, ledger: Ledger, record: Record | None, now: int, asks: int
    ) -> tuple[Ledger, Record | None] | None:
        """What is owed and what is there after a user's call; None: it changes nothing."""
        interval = self.scenario.asked_plan
        plan = at(now + 1) if interval is None else every(interval)
        args = f'1 {{"call":{asks + 1}}}' if ask is not Ask.REPLAN else "1 {}"
        change = self._change(ask, record, Wanted(plan, args, f"b{asks + 1}"), now)
        if change is None or (ask is Ask.TRIGGER and now == ledger.triggered):
            return None  # two runs triggered at one microsecond would look the same
        write = Write(self.scenario.group, KEY, change, ANY)
        after, result = model.written(record, write, now)
        assert isinstance(result, Applied)
        try:
            owed = model.asked(ledger, ask, args, plan, record, after, now)
        except Violation as violation:
            raise Violation(violation.row, f"at {now}, {ask}: {violation}") from None
        return owed, after

    def _change(self, ask: Ask, record: Record | None, wanted: Wanted, now: int) -> Change | None:
        if record is None:
            creates = ask in (Ask.SOONER, Ask.REPLACE, Ask.FORCE)
            return lifecycle.created(wanted, now) if creates else None
        match ask:
            case Ask.SOONER:
                return lifecycle.merged(record, wanted, now)
            case Ask.REPLACE:
                return lifecycle.replaced(record, wanted, now)
            case Ask.FORCE:
                return lifecycle.created(wanted, now)
            case Ask.UNSCHEDULE:
                return DELETE
            case Ask.PAUSE:
                return lifecycle.paused(read(record), now)
            case Ask.RESUME:
                return lifecycle.resumed(read(record), now)
            case Ask.TRIGGER:
                return lifecycle.triggered(read(record), now)
            case Ask.REPLAN:
                return lifecycle.replanned(record, wanted.plan, now)
