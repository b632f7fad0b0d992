"""Every interleaving of a few workers, users, faults and time, to a stated depth.

The workers are those of ``tests.simulation.workers``; after each step the checker of
``tests.simulation.model`` holds the record against what is owed. The search is breadth first,
so the first violation found has a shortest history.

A user's calls are one step each: they write on the condition of the version that they read, so
nothing can come in between. A user whose call is late or lost does not repeat it.

What keeps it fast: parts of a state are interned, so that a state is a few small integers; what a
part does is computed once; workers are interchangeable.
"""

from __future__ import annotations

import gc
from collections.abc import Hashable
from random import Random
from typing import Final, Generic, NamedTuple, TypeVar

from tests.simulation import model
from tests.simulation.model import NOTHING, Ask, Ledger, Row, Run, Violation
from tests.simulation.workers import (
    IDLE,
    Edge,
    Event,
    Message,
    Phase,
    Protocol,
    Scenario,
    Worker,
    at,
    every,
    read,
)

from pyncette.engine import rules
from pyncette.engine.rules import Wanted
from pyncette.model import Exhausted
from pyncette.schedule import Schedule, loads
from pyncette.store import Applied, Write
from pyncette.store.record import ANY, DELETE, Change, Pause, Record, State

KEY: Final = "x"
COMPLETION_RUNS: Final = 8
COMPLETION_RUNS_MAX: Final = 40
"""Where one occurrence after the other is behind."""


class Report(NamedTuple):
    """What came of an exploration.

    Attributes:
        states: How many different ones were seen, but for those after the last step.
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


T = TypeVar("T", bound=Hashable)


class Interned(Generic[T]):
    """Values and the small integers that stand for them."""

    def __init__(self) -> None:
        self.values: list[T] = []
        self._ids: dict[T, int] = {}

    def __call__(self, value: T) -> int:
        """Returns the number of a value."""
        found = self._ids.get(value)
        if found is None:
            found = self._ids[value] = len(self.values)
            self.values.append(value)
        return found


# Now, the record, what the index shows (-1: the same), the ledger, the workers, late calls, how
# many tokens were given out, how often users asked, how many faults there were. A plain tuple is
# twice as fast as one with names, and nothing else counts here.
_State = tuple[int, int, int, int, tuple[int, ...], tuple[int, ...], int, int, int]

# On the way to the end: what is owed, the record, now, the runs so far, what was owed first.
_Completing = tuple[Ledger, Record | None, int, int, int | None]


class _Step(NamedTuple):
    """An edge, interned."""

    name: str
    worker: int
    record: int
    events: tuple[Event, ...]
    message: int | None
    faults: int
    tokens: int


class _Move(NamedTuple):
    """A step of a worker that met a ledger, and broke nothing that can be told from the two.

    Attributes:
        owed: The ledger after it.
        began: The run whose body it started, where no other may run beside it.
    """

    name: str
    worker: int
    record: int
    message: int | None
    faults: int
    tokens: int
    owed: int
    began: Run | None


class Explorer:
    """Searches one scenario."""

    def __init__(self, scenario: Scenario, protocol: type[Protocol] = Protocol) -> None:
        self.scenario = scenario
        self.protocol = protocol(scenario)
        self.pauses = scenario.exhausted is Exhausted.PAUSE
        self._records: Interned[Record | None] = Interned()
        self._ledgers: Interned[Ledger] = Interned()
        self._workers: Interned[Worker] = Interned()
        self._messages: Interned[Message] = Interned()
        self._idle = self._workers(IDLE)
        self._steps: dict[tuple[int, ...], list[_Step]] = {}
        self._moves: dict[tuple[int, ...], list[_Move]] = {}
        self._arrivals: dict[tuple[int, ...], _Step | None] = {}
        self._arrived: dict[tuple[int, ...], tuple[str, int, int] | None] = {}
        self._asks: dict[tuple[int, ...], list[tuple[str, int, int]]] = {}
        self._told: dict[tuple[int, tuple[Event, ...], int], int] = {}
        self._checked: set[tuple[int, int]] = set()
        # From there on, all that is owed is done in the end.
        self._completed: set[_Completing] = set()
        self._wishes: dict[tuple[int, int, bool], tuple[Schedule, str, Wanted]] = {}

    def run(self) -> Report:
        """Searches until the first violation, the depth, or the end of what is new."""
        collects = gc.isenabled()
        gc.disable()  # a million tuples, all of them kept: looking for cycles halves the speed
        try:
            return self._search()
        finally:
            if collects:
                gc.enable()

    def wander(self, random: Random, steps: int) -> Report:
        """Takes one long way at random, looking at all that could have been next on it."""
        state = self._first()
        trace: list[str] = []
        for _ in range(steps):
            try:
                choices = self._successors(state)
            except Violation as violation:
                return Report(len(trace), len(trace), False, violation, (*trace, f"{violation}"))
            if not choices:
                break
            name, state = random.choice(choices)
            trace.append(name)
        return Report(len(trace), len(trace), False)

    def _search(self) -> Report:
        first = self._first()
        states = [first]
        seen = {first}
        parents: list[tuple[int, str]] = [(-1, "")]
        begin, depth = 0, 0
        while begin < len(states) and depth < self.scenario.depth:
            end = len(states)
            depth += 1
            # What the last step leads to is checked on the way there, and never looked at again.
            # Most states are of this kind.
            last = depth == self.scenario.depth
            for index in range(begin, end):
                try:
                    if last:
                        self._look_ahead(states[index])
                        continue
                    for name, state in self._successors(states[index]):
                        if state not in seen:
                            seen.add(state)
                            states.append(state)
                            parents.append((index, name))
                except Violation as violation:
                    trace = (*self._history(parents, index), f"{violation}")
                    return Report(len(states), depth, False, violation, trace)
            if last:
                return Report(len(states), depth, False)
            begin = end
            if len(states) > self.scenario.states_max:
                break
        return Report(len(states), depth, begin == len(states))

    def _first(self) -> _State:
        scenario = self.scenario
        wanted = Wanted(scenario.schedule, "1 {}", "b0", (scenario.group, KEY))
        put = rules.created(wanted, 0)
        record, _ = model.written(None, Write(scenario.group, KEY, put, ANY), 0)
        ledger = model.scheduled(NOTHING, wanted.args, wanted.schedule, 0)
        known = self._records(record)
        shown = known if scenario.lagging else -1
        idle = (self._idle,) * scenario.workers
        return (scenario.begin, known, shown, self._ledgers(ledger), idle, (), 0, 0, 0)

    def _history(self, parents: list[tuple[int, str]], index: int) -> list[str]:
        names: list[str] = []
        while index > 0:
            index, name = parents[index]
            names.append(name)
        return names[::-1]

    def _successors(self, state: _State) -> list[tuple[str, _State]]:
        now, record, shown, ledger, workers, messages, tokens, asks, faults = state
        scenario = self.scenario
        found: list[tuple[str, _State]] = []
        if now < scenario.end:
            owed = self._passed(ledger, now + 1)
            found.append(("time passes", (now + 1, record, shown, owed, *state[4:])))
        if shown not in (-1, record):
            found.append(("the index catches up", (now, record, record, *state[3:])))
        at_hand = record if shown == -1 else shown
        may_fail = faults < scenario.faults_max
        previous = -1
        for index, worker in enumerate(workers):
            if worker == previous:
                continue  # interchangeable
            previous = worker
            others = workers[:index] + workers[index + 1 :]
            for move in self._moves_of(worker, record, at_hand, now, tokens, ledger, may_fail):
                name, next_worker, after, message, fault, token, owed, began = move
                if began is not None:
                    self._check_alone(name, began, now, others)
                queue = messages if message is None else tuple(sorted((*messages, message)))
                moved = tuple(sorted((*others, next_worker)))
                to = (now, after, shown, owed, moved, queue, tokens + token, asks, faults + fault)
                found.append((name, to))
        for index, message in enumerate(messages):
            arrived = self._arrives(message, record, at_hand, now, ledger)
            if arrived is not None:
                name, after, owed = arrived
                queue = messages[:index] + messages[index + 1 :]
                found.append((name, (now, after, shown, owed, workers, queue, *state[6:])))
        if asks < scenario.asks_max:
            for name, after, owed in self._asked(ledger, record, now, asks):
                found.append((name, (now, after, shown, owed, *state[4:7], asks + 1, faults)))
        return found

    def _look_ahead(self, state: _State) -> None:
        """Checks what the state leads to, and keeps nothing of it."""
        now, record, shown, ledger, workers, messages, tokens, asks, faults = state
        at_hand = record if shown == -1 else shown
        may_fail = faults < self.scenario.faults_max
        for index, worker in enumerate(workers):
            for move in self._moves_of(worker, record, at_hand, now, tokens, ledger, may_fail):
                if move.began is not None:
                    others = workers[:index] + workers[index + 1 :]
                    self._check_alone(move.name, move.began, now, others)
        for message in messages:
            self._arrives(message, record, at_hand, now, ledger)
        if asks < self.scenario.asks_max:
            self._asked(ledger, record, now, asks)

    # What the parts do, each computed once.

    def _moves_of(
        self,
        worker: int,
        record: int,
        shown: int,
        now: int,
        tokens: int,
        ledger: int,
        may_fail: bool,
    ) -> list[_Move]:
        """The steps of a worker, checked against the ledger."""
        if worker != self._idle:
            tokens = -1  # it has its own
        known = (worker, record, shown, now, tokens, ledger, may_fail)
        moves = self._moves.get(known)
        if moves is None:
            moves = []
            for step in self._worker_steps(worker, record, shown, now, tokens):
                name, next_worker, after, events, message, fault, token = step
                if fault and not may_fail:
                    continue
                owed = self._after(ledger, step, record, now)
                alone = events and events[0].kind == "started" and not self.scenario.at_most_once
                began = events[0].run if alone else None
                moves.append(_Move(name, next_worker, after, message, fault, token, owed, began))
            self._moves[known] = moves
        return moves

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
            who = f"{acting.token or token}: "
            steps = self._steps[known] = [self._interned(edge, who) for edge in edges]
        return steps

    def _arrives(
        self, message: int, record: int, shown: int, now: int, ledger: int
    ) -> tuple[str, int, int] | None:
        """What a late call does, its record, and what is owed then, checked; None: nothing."""
        known = (message, record, shown, now, ledger)
        if known not in self._arrived:
            arrival = self._arrival(message, record, shown, now)
            self._arrived[known] = (
                None
                if arrival is None
                else (arrival.name, arrival.record, self._after(ledger, arrival, record, now))
            )
        return self._arrived[known]

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

    def _interned(self, edge: Edge, who: str = "") -> _Step:
        name, worker, record, events, message, faults, tokens = edge
        return _Step(
            who + name,
            self._workers(worker),
            self._records(record),
            events,
            None if message is None else self._messages(message),
            faults,
            tokens,
        )

    def _after(self, ledger: int, step: _Step, record: int, now: int) -> int:
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
            if step.record != record or owed != ledger:
                self._check(owed, step.record)
        except Violation as violation:
            raise Violation(violation.row, f"at {now}, {step.name}: {violation}") from None
        return owed

    def _passed(self, ledger: int, now: int) -> int:
        owed = self._ledgers.values[ledger]
        return ledger if owed.until is None else self._ledgers(model.passed(owed, now))

    def _tell(self, ledger: Ledger, events: tuple[Event, ...], now: int) -> Ledger:
        scenario = self.scenario
        for kind, run, before, after, began in events:
            match kind:
                case "skips" if before is not None:
                    grace = scenario.misfire_grace
                    assert grace is not None
                    ledger = model.skipped(ledger, run, before, after, now, grace)
                case "overlaps" if before is not None:
                    ledger = model.overlapped(ledger, run, before, after, now, began)
                case "failed" if before is not None:
                    model.began_before(run, before, after, began)
                case "started":
                    self._check_waited(ledger, run, now)
                    in_grace = scenario.misfire_grace is not None
                    ledger = model.started(ledger, run, now, scenario.at_most_once, in_grace)
                    if scenario.attempts is not None:
                        ledger = model.counted(ledger, run, scenario.attempts)
                case "done":
                    ledger = model.done(ledger, run, now, scenario.fast_forward, after)
                case "gives up":
                    forward = scenario.fast_forward
                    ledger = model.gave_up(ledger, run, before, now, self.pauses, forward)
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
                case "give back, begun":
                    model.settles(run, before)
                    ledger = model.gave_back(ledger, run)
                case _:
                    model.settles(run, before)
        return ledger

    def _check_waited(self, ledger: Ledger, run: Run, now: int) -> None:
        """A planned run starts after its jitter."""
        if run.triggered is not None or run.planned is None or run.args != ledger.args:
            return
        schedule = loads(ledger.schedule)
        if schedule.jitter and now < schedule.due(run.planned, self.scenario.group, KEY):
            raise Violation(Row.NOT_EARLY, f"{run} started at {now}, before its jitter")

    def _check_alone(self, name: str, run: Run, now: int, others: tuple[int, ...]) -> None:
        """Whether nobody else runs while a body starts."""
        for other in others:
            phase, _, _, until, _, running, step, _, _ = self._workers.values[other]
            if (
                phase is Phase.BODY
                and running is not None
                and running.incarnation == run.incarnation
                and now < until
            ):
                what = f"{run} beside {running}, {step} held to {until}"
                raise Violation(Row.ONE_BODY, f"at {now}, {name}: {Row.ONE_BODY}: {what}")

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
            change = rules.resumed(read(record), now)
            if change is not None:
                record, _ = model.written(record, self._users(record, change), now)
                awaited = ledger = ledger._replace(paused=False, until=None)
        policy = self.protocol.policy
        passed: list[_Completing] = []
        for number in range(COMPLETION_RUNS_MAX):
            # Most ways to the end meet one another after the first run.
            here = (ledger, record, now, number, awaited.due)
            if here in self._completed:
                self._completed.update(passed)
                return
            passed.append(here)
            met = ledger.due is None or ledger.due != awaited.due
            if record is None or (number >= COMPLETION_RUNS and met and not ledger.triggers):
                break
            if record.due_at is None and policy.attempts is not None:
                # What has failed for good waits for a user.
                now = max(now, self.scenario.end)
                is_parked = record.state == State.PARKED
                change = (rules.rerun if is_parked else rules.resumed)(read(record), now)
                if change is not None:
                    record, _ = model.written(record, self._users(record, change), now)
                    assert record is not None
            if record.due_at is None:
                break
            now = max(now, record.due_at)
            record = model.taken(record, self.scenario.lease, now, "last")
            run = model.run_of(record)
            failure = rules.too_many(read(record), policy, now)
            if failure is None:
                ledger = model.started(ledger, run, now, self.scenario.at_most_once)
                before = record
                change = rules.succeeded(self.protocol.reading(record, now), policy, now)
                record, _ = model.written(record, self._users(record, change), now)
                if policy.skip_overlap:
                    ledger = model.overlapped(ledger, run, before, record, now, None)
                else:
                    after = record if self.scenario.new_default is not None else None
                    ledger = model.done(ledger, run, now, self.scenario.fast_forward, after)
            else:
                change = rules.exhausted(read(record), policy, now, failure)
                record, _ = model.written(record, self._users(record, change), now)
                forward = self.scenario.fast_forward
                ledger = model.gave_up(ledger, run, record, now, self.pauses, forward)
            model.check(ledger, record)
        if ledger.args is not None:
            if awaited.due is not None and ledger.due == awaited.due:
                raise Violation(Row.COMES_DUE, f"{awaited.due} is never run: {record}")
            if ledger.triggers:
                raise Violation(Row.TRIGGER_RUNS, f"never: {ledger.triggers}: {record}")
        self._completed.update(passed)

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
        schedule, args, wanted = self._wish(now, asks, ask is Ask.REPLAN)
        change = self._change(ask, record, wanted, now)
        if change is None or (ask is Ask.TRIGGER and now == ledger.triggered):
            return None  # these records do not say that a run of this microsecond has ended
        write = Write(self.scenario.group, KEY, change, ANY)
        after, result = model.written(record, write, now)
        assert isinstance(result, Applied)
        try:
            owed = model.asked(ledger, ask, args, schedule, record, after, now)
        except Violation as violation:
            raise Violation(violation.row, f"at {now}, {ask}: {violation}") from None
        return owed, after

    def _wish(self, now: int, asks: int, replans: bool) -> tuple[Schedule, str, Wanted]:
        known = (now, asks, replans)
        wish = self._wishes.get(known)
        if wish is None:
            interval = self.scenario.asked_plan
            schedule = at(now + 1) if interval is None else every(interval)
            args = f'1 {{"call":{asks + 1}}}' if not replans else "1 {}"
            wanted = Wanted(schedule, args, f"b{asks + 1}", (self.scenario.group, KEY))
            wish = self._wishes[known] = (schedule, args, wanted)
        return wish

    def _change(self, ask: Ask, record: Record | None, wanted: Wanted, now: int) -> Change | None:
        if record is None:
            creates = ask in (Ask.SOONER, Ask.REPLACE, Ask.FORCE)
            return rules.created(wanted, now) if creates else None
        match ask:
            case Ask.SOONER:
                return rules.merged(record, wanted, now)
            case Ask.REPLACE:
                return rules.replaced(record, wanted, now)
            case Ask.FORCE:
                return rules.created(wanted, now)
            case Ask.UNSCHEDULE:
                return DELETE
            case Ask.PAUSE:
                return rules.paused(read(record), now)
            case Ask.PAUSE_UNTIL:
                return rules.paused(read(record), now, Pause(now + model.PAUSE_LENGTH))
            case Ask.RESUME:
                return rules.resumed(read(record), now)
            case Ask.TRIGGER:
                return rules.triggered(read(record), now)
            case Ask.RERUN:
                return rules.rerun(read(record), now)
            case Ask.DROP:
                return rules.dropped(read(record), self.protocol.policy, now)
            case Ask.REPLAN:
                return rules.replanned(record, wanted.schedule, now)
