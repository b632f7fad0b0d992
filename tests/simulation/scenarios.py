"""Named plans: each row of the failure table, and each history that one process can hold.

A scenario is a plan, and what must be seen in its history for it to be that scenario at all. Its
seed draws no more than the order of callbacks and the travel times; each is run with many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from tests.simulation.history import History
from tests.simulation.plan import (
    MIDNIGHT_S,
    Action,
    ClockPlan,
    Day,
    Death,
    Fault,
    Kind,
    Life,
    Manner,
    Plan,
    Powers,
    Rhythm,
    TaskPlan,
    What,
)

from pyncette import Exhausted, FailureMode

Seen = Callable[[History], bool]


class Scenario(NamedTuple):
    """A plan, and what tells that it is what its name says.

    Attributes:
        plan: What happens.
        seen: Whether a history shows it; in some of the seeds it must.
    """

    plan: Plan
    seen: Seen


def _count(history: History, kind: str, subject: str = "", **details: object) -> int:
    return sum(
        event.kind == kind
        and (not subject or event.subject == subject)
        and all(event.details.get(name) == value for name, value in details.items())
        for event in history
    )


def _starts(subject: str, least: int) -> Seen:
    """A body of the record was started for one occurrence at least this often."""

    def seen(history: History) -> bool:
        attempts = [
            event.details["attempt"]
            for event in history
            if event.kind == "start" and event.subject == subject
        ]
        return max(attempts, default=0) >= least

    return seen


def _has(kind: str, subject: str = "", **details: object) -> Seen:
    return lambda history: _count(history, kind, subject, **details) > 0


def _fate(process: str, call: str, word: str) -> Seen:
    return lambda history: any(
        event.kind == "call"
        and event.process == process
        and event.subject == call
        and event.details["fate"] == word
        for event in history
    )


LAST: Final = Life("last", 12.0)
ONE: Final = (Life("w0", 0.0),)
TWO: Final = (Life("w0", 0.0), Life("w1", 0.0))

LEAST: Final = TaskPlan("d0", True, lease_s=2.0, manners=(Manner.SLEEP,))
MOST: Final = TaskPlan("m0", True, at_most_once=True, lease_s=2.0, manners=(Manner.SLEEP,))
BEATS: Final = TaskPlan("h0", True, lease_s=2.0, manners=(Manner.LONG_HEARTBEAT,))
EVERY: Final = TaskPlan("s0", False, lease_s=2.0, interval_s=1.0)


def _once(task: TaskPlan, name: str = "i0", at: float = 0.5, call: int = 1) -> Action:
    return Action(at, call, What.SCHEDULE, task.name, name, delay_s=0.5)


def _each(task: TaskPlan, name: str = "i0", at: float = 0.5, call: int = 1) -> Action:
    return Action(at, call, What.SCHEDULE, task.name, name, interval_s=1.0)


def _plan(
    tasks: Sequence[TaskPlan],
    actions: Sequence[Action] = (),
    faults: Sequence[Fault] = (),
    lives: Sequence[Life] = ONE,
    **others: object,
) -> Plan:
    plan = Plan(
        seed=0,
        profile="scenario",
        duration=LAST.start,
        tasks=tuple(tasks),
        actions=tuple(actions),
        faults=tuple(faults),
        lives=(*lives, LAST),
    )
    return replace(plan, **others)  # type: ignore[arg-type]


def _lost_write(how: str, length: float = 0.6, process: str = "w0", at: float = 0.95) -> Fault:
    return Fault(Kind.FLAKY, at, length, process, 1.0, only="write", how=how)


def scenarios() -> Iterator[tuple[str, Scenario]]:
    """All of them, by name."""
    yield from _failure_table()
    yield from _histories()
    yield from _powered()
    yield from _sharing()


def _powered() -> Iterator[tuple[str, Scenario]]:
    """Tasks with options of their own."""
    retried = Powers(attempts=3, exhausted=Exhausted.PARK)
    fails = LEAST._replace(manners=(Manner.RAISE,), powers=retried)
    kills = fails._replace(manners=(Manner.KILL,))
    yield (
        "a task with a policy kills its process each time, and is parked",
        Scenario(
            _plan(
                (kills,),
                (_once(kills),),
                (),
                tuple(Life(f"w{number}", number * 1.5) for number in range(6)),
            ),
            _has("record", "d0/i0", state="parked"),
        ),
    )
    yield (
        "a task with a policy always fails, is parked, and is run again by a user",
        Scenario(
            _plan((fails,), (_once(fails), Action(8.0, 2, What.RERUN, "d0", "i0"))),
            _starts("d0/i0", 4),
        ),
    )
    names = [f"i{number}" for number in range(3)]
    for fault in (None, "fails after", "answer lost"):
        yield (
            "all parked instances of a template are run again by one call"
            + (f", of which a write {fault}" if fault else ""),
            Scenario(
                _plan(
                    (fails,),
                    [
                        *(_once(fails, name, call=call) for call, name in enumerate(names, 1)),
                        Action(8.0, 9, What.RERUN, "d0", ""),
                        # What the first call may have left.
                        Action(10.5, 10, What.RERUN, "d0", ""),
                    ],
                    [_lost_write(fault, process="users", at=8.0)] if fault else (),
                ),
                lambda history: all(_starts(f"d0/{name}", 4)(history) for name in names),
            ),
        )
    slow = TaskPlan("s0", False, lease_s=6.0, interval_s=1.0, manners=(Manner.LONG,))
    yield (
        "a task that takes longer than its interval skips what overlaps",
        Scenario(
            _plan((slow._replace(powers=Powers(skip_overlap=True)),)),
            lambda history: _skips(history, "s0") > 0,
        ),
    )
    yield (
        "no worker is there for a while, and what is too late is skipped",
        Scenario(
            _plan(
                (EVERY._replace(powers=Powers(misfire_grace_s=1.5)),),
                (),
                (),
                (Life("w0", 0.0, 3.0), Life("w1", 9.0)),
            ),
            lambda history: _skips(history, "s0") > 2,
        ),
    )
    spread = TaskPlan(
        "j0", True, lease_s=2.0, powers=Powers(rhythms=(Rhythm(1.0, 0.25),), wait_s=0.8)
    )
    yield (
        "a schedule with an anchor and jitter",
        Scenario(
            _plan((spread,), (Action(0.1, 1, What.SCHEDULE, "j0", "i0"),)),
            _has("start", "j0/i0"),
        ),
    )

    # Midnight is at second 6.
    for closed in Day:
        powers = Powers(rhythms=(Rhythm(1.0, 0.25),), closed=closed)
        tasks = (
            TaskPlan("j0", True, lease_s=2.0, powers=powers),
            TaskPlan("s0", False, lease_s=2.0, powers=powers),
        )
        yield (
            f"a calendar closes the day {closed}",
            Scenario(
                _plan(
                    tasks,
                    (Action(0.1, 1, What.SCHEDULE, "j0", "i0"),),
                    store_offset_s=MIDNIGHT_S - 6,
                ),
                _runs_on_one_side(closed),
            ),
        )


def _runs_on_one_side(closed: Day) -> Seen:
    """Bodies start on the day that is not closed, and only on it."""

    def seen(history: History) -> bool:
        times = [event.time for event in history if event.kind == "start"]
        return len(times) > 4 and all((time >= 6.25) is (closed is Day.BEFORE) for time in times)

    return seen


def _sharing() -> Iterator[tuple[str, Scenario]]:
    """Workers that share the partitions of a task."""
    shared = LEAST._replace(partitions=4, shared=True)
    most = MOST._replace(partitions=4, shared=True)
    asked = [
        *(_each(shared, f"i{number}", 0.5 + number / 10, number + 1) for number in range(8)),
        *(_each(most, f"i{number}", 0.5 + number / 10, number + 11) for number in range(4)),
    ]
    three = (*TWO, Life("w2", 0.0))
    both = (shared, most, EVERY)
    yield (
        "workers share partitions: one is killed, one is frozen, one comes and goes",
        Scenario(
            _plan(
                both,
                asked,
                [Fault(Kind.FREEZE, 5.0, 4.0, "w1")],
                (
                    Life("w0", 0.0, 3.0, Death.CRASH),
                    Life("w1", 0.0),
                    Life("w2", 0.0),
                    Life("w3", 4.0, 8.0),
                ),
            ),
            lambda history: all(_has("start", f"d0/i{number}")(history) for number in range(8)),
        ),
    )
    for how in ("scan", "write"):
        yield (
            f"workers share partitions, and the store fails in this call: {how}",
            Scenario(
                _plan(both, asked, [Fault(Kind.FLAKY, 1.5, 9.0, "", 0.6, only=how)], three),
                _has("start", "d0/i7"),
            ),
        )
    for kind in (Kind.DEAF, Kind.LAGGING, Kind.UNKNOWN, Kind.HANGS):
        yield (
            f"workers share partitions, while this holds: {kind}",
            Scenario(
                _plan(
                    both,
                    asked,
                    [Fault(kind, 2.0, 6.0, "" if kind is not Kind.HANGS else "w1", 1.0)],
                    three,
                ),
                _has("start", "d0/i7"),
            ),
        )
    yield (
        "workers share partitions, and the clock of the store is set back",
        Scenario(
            _plan(
                (shared._replace(lease_s=3.0), EVERY),
                asked[:8],
                [Fault(Kind.STEP_STORE, 4.0, 0.0, "", -4.0)],
                (Life("w0", 0.0, 5.0, Death.CRASH), Life("w1", 0.0), Life("w2", 6.0)),
                profile="steps",
            ),
            _has("start", "d0/i7"),
        ),
    )
    yield (
        "workers share partitions, have few slots, and are of two versions",
        Scenario(
            _plan(
                (
                    shared._replace(manners=(Manner.LONG,)),
                    shared._replace(name="d1", declared_by="w1"),
                    shared._replace(name="d1", declared_by="last"),
                ),
                [*asked[:8], *(_each(shared._replace(name="d1"), call=31 + n) for n in range(1))],
                (),
                three,
                concurrency_limit=2,
            ),
            _has("start", "d0/i7"),
        ),
    )


def _skips(history: History, subject: str) -> int:
    """How many occurrences of a record were skipped at the end."""
    return sum(
        event.details["skipped"]
        for event in history
        if event.kind == "record" and event.subject == subject
    )


def _failure_table() -> Iterator[tuple[str, Scenario]]:
    both = (LEAST, MOST)
    asked = (_once(LEAST), _once(MOST, call=2))
    long = LEAST._replace(manners=(Manner.LONG,))
    killer = LEAST._replace(manners=(Manner.KILL,))
    yield (
        "a worker is killed between the claim and the body",
        Scenario(
            _plan(
                both,
                asked,
                [Fault(Kind.SLOW, 0.9, 0.3, "w0", 0.8, only="claim")],
                (Life("w0", 0.0, 1.3, Death.CRASH),),
            ),
            _has("crash"),
        ),
    )
    yield (
        "a worker is killed in the body",
        Scenario(
            _plan(
                (killer, MOST._replace(manners=(Manner.KILL,))),
                asked,
                (),
                (Life("w0", 0.0), Life("w1", 2.0), Life("w2", 3.0)),
            ),
            _starts("d0/i0", 2),
        ),
    )
    yield (
        "a body ends its process",
        Scenario(
            _plan(
                (
                    LEAST._replace(manners=(Manner.EXIT,), failure_mode=FailureMode.COMMIT),
                    MOST._replace(manners=(Manner.EXIT,)),
                ),
                asked,
                (),
                tuple(Life(f"w{number}", number * 1.5) for number in range(5)),
            ),
            _starts("d0/i0", 2),
        ),
    )
    yield (
        "a worker is killed after the body and before its outcome is written",
        Scenario(
            _plan(
                both,
                asked,
                [Fault(Kind.SLOW, 1.02, 1.0, "w0", 1.0, only="write")],
                (Life("w0", 0.0, 1.7, Death.CRASH), Life("w1", 2.0)),
            ),
            _has("crash"),
        ),
    )
    for how in ("fails after", "answer lost", "fails before", "late", "late or never"):
        yield (
            f"the answer to an outcome is lost: {how}",
            Scenario(
                _plan(
                    both,
                    (*asked, _each(LEAST, "i1", call=3), _each(MOST, "i1", call=4)),
                    [_lost_write(how)],
                    TWO,
                ),
                lambda history, how=how: (
                    _fate("w0", "write", how)(history)  # type: ignore[misc]
                    or _fate("w1", "write", how)(history)
                ),
            ),
        )
    yield (
        "a lease ends while its outcome is on the way, and another worker claims",
        Scenario(
            _plan(
                [LEAST._replace(lease_s=1.0), MOST._replace(lease_s=1.0)],
                (*asked, _each(LEAST, "i1", call=3)),
                [Fault(Kind.SLOW, 0.9, 4.0, "w0", 3.0, only="write")],
                TWO,
            ),
            _has("claimed", was="running"),
        ),
    )
    for what in (What.FORCE, What.SCHEDULE, What.UNSCHEDULE):
        yield (
            f"a record is changed while it runs: {what}",
            Scenario(
                _plan(
                    (long, MOST._replace(manners=(Manner.LONG,))),
                    (
                        *asked,
                        Action(1.2, 3, what, "d0", "i0", interval_s=1.0),
                        Action(1.2, 4, what, "m0", "i0", interval_s=1.0),
                    ),
                ),
                _has(str(what)),
            ),
        )
    yield (
        "a record is unscheduled and created again while it runs",
        Scenario(
            _plan(
                (long, MOST),
                (
                    *asked,
                    Action(1.2, 3, What.UNSCHEDULE, "d0", "i0"),
                    Action(1.3, 4, What.SCHEDULE, "d0", "i0", delay_s=0.2),
                ),
                (),
                TWO,
            ),
            _has("start", "d0/i0", call=4),
        ),
    )
    yield (
        "a heartbeat arrives after the outcome",
        Scenario(
            _plan(
                [LEAST._replace(manners=(Manner.SHORT_HEARTBEAT,))],
                [_each(LEAST)],
                [Fault(Kind.FLAKY, 0.9, 10.0, "", 0.8, only="write", how="late")],
                TWO,
            ),
            _has("no heartbeat"),
        ),
    )
    yield (
        "a body kills its process every time, and others run all the same",
        Scenario(
            _plan(
                (killer, EVERY, MOST),
                (_once(killer), _each(MOST, call=2)),
                (),
                tuple(Life(f"w{number}", number * 1.5) for number in range(7)),
            ),
            _starts("d0/i0", 4),
        ),
    )
    yield (
        "overdue records of another app and of a removed task",
        Scenario(
            _plan(
                (
                    *(
                        EVERY._replace(name=f"a{number}", declared_by="other")
                        for number in range(20)
                    ),
                    TaskPlan("o0", True, declared_by="other"),
                    EVERY,
                    LEAST,
                ),
                (
                    *(
                        _each(TaskPlan("o0", True), f"i{number}", call=10 + number)
                        for number in range(20)
                    ),
                    _each(LEAST, at=4.0),
                ),
                (),
                (Life("other", 0.0, 2.0), Life("w0", 3.0)),
                batch_size=3,
            ),
            _has("start", "d0/i0"),
        ),
    )
    yield (
        "somebody holds locks for long",
        Scenario(
            _plan(
                (LEAST, MOST, EVERY),
                tuple(
                    _each(task, f"i{number}", call=10 * number + at_most)
                    for number in range(1, 6)
                    for at_most, task in enumerate((LEAST, MOST))
                ),
                [Fault(Kind.LOCKED, 2.7, 7.3, "", 0.4)],
            ),
            _has("fault", what=str(Kind.LOCKED)),
        ),
    )
    for kind in (Kind.DOWN, Kind.HANGS, Kind.RESTART):
        yield (
            f"the store is away for long: {kind}",
            Scenario(
                _plan(
                    (LEAST, MOST, EVERY),
                    (_each(LEAST), _each(MOST, call=2)),
                    [Fault(kind, 2.0, 8.0)],
                    (*TWO, Life("w2", 1.0, 4.0, Death.CRASH)),
                ),
                _has("fault"),
            ),
        )
    yield (
        "the store is restored from a snapshot",
        Scenario(
            _plan(
                (LEAST, MOST, EVERY),
                (_each(LEAST), _each(MOST, call=2)),
                [Fault(Kind.RESTORE, 6.0, 2.0)],
                TWO,
            ),
            _has("fault"),
        ),
    )
    yield (
        "the clock of the store is set back, and a worker notices soon",
        Scenario(
            _plan(
                (EVERY,),
                (),
                [Fault(Kind.STEP_STORE, 3.3, 0.0, "", -300.0)],
                ONE,
            ),
            lambda history: any(
                3.3 < event.time < 3.3 + 5 for event in history if event.kind == "start"
            ),
        ),
    )
    for step in (-300.0, -10.0, 10.0, 300.0):
        yield (
            f"the clock of the store steps by {step:g} s",
            Scenario(
                _plan(
                    (LEAST, MOST, EVERY),
                    (_each(LEAST), _each(MOST, call=2)),
                    [Fault(Kind.STEP_STORE, 3.3, 0.0, "", step)],
                    TWO,
                ),
                _has("fault"),
            ),
        )
    yield (
        "clocks of workers are off by five minutes, step and drift",
        Scenario(
            _plan(
                (LEAST, MOST, EVERY),
                (_each(LEAST), _each(MOST, call=2)),
                [
                    Fault(Kind.STEP_WALL, 2.0, 0.0, "w0", 300.0),
                    Fault(Kind.STEP_WALL, 4.0, 0.0, "w1", -600.0),
                    Fault(Kind.STEP_WALL, 6.0, 0.0, "users", -600.0),
                ],
                TWO,
                clocks=(
                    ClockPlan("w0", 300.0, 50.0),
                    ClockPlan("w1", -300.0, -50.0),
                    ClockPlan("users", 300.0),
                ),
            ),
            _has("fault"),
        ),
    )
    yield (
        "a machine is suspended",
        Scenario(
            _plan(
                (long, MOST, EVERY),
                (_each(LEAST), _each(MOST, call=2)),
                [Fault(Kind.FREEZE, 1.51, 6.0, "w0")],
                TWO,
            ),
            _has("thawed"),
        ),
    )
    yield (
        "two versions of an app with different intervals",
        Scenario(
            _plan(
                (
                    EVERY._replace(interval_s=2.0, declared_by="w"),
                    EVERY._replace(interval_s=3.0, declared_by="v"),
                    EVERY._replace(interval_s=2.0, declared_by="last"),
                ),
                (),
                (),
                tuple(
                    Life(f"{'wv'[number % 2]}{number}", number * 0.9, number * 0.9 + 0.8)
                    for number in range(13)
                ),
            ),
            lambda history: any(event.kind == "start" and event.time < 12 for event in history),
        ),
    )
    for column in (
        *("schedule=garbage", "progress=garbage", "args=garbage", "state=garbage"),
        *("progress=1 - x", "unfinished_attempts=9000000000000000000", "schedule=7 every 1"),
        *("version=9007199254740991", "token=garbage", "due_at=-9000000000000000000"),
    ):
        yield (
            f"a row is edited by hand: {column}",
            Scenario(
                _plan(
                    (LEAST, EVERY, MOST),
                    (
                        # What becomes of the edited one is nobody's promise.
                        _each(LEAST, "edited"),
                        _each(MOST, call=2),
                        _each(LEAST, "i1", call=3),
                    ),
                    [Fault(Kind.EDIT, 2.7, only="edited", how=column)],
                    TWO,
                ),
                _has("fault"),
            ),
        )


NOWHERE: Final = "schedule=1 cron Mars/Olympus * * * * *"


def _histories() -> Iterator[tuple[str, Scenario]]:
    asked = (_once(LEAST), _once(MOST, call=2))
    quick = LEAST._replace(lease_s=1.0)
    yield (
        "2: an at-most-once record moves on twice",
        Scenario(
            _plan(
                [MOST._replace(lease_s=1.0)],
                [_each(MOST)],
                [
                    Fault(Kind.SLOW, 0.9, 6.0, "", 6.0, only="write"),
                    Fault(Kind.FLAKY, 0.9, 6.0, "", 0.5, only="write", how="answer lost"),
                ],
                TWO,
            ),
            _has("claimed", was="running"),
        ),
    )
    yield (
        "6: a one-off is replaced while it runs, and its worker dies",
        Scenario(
            _plan(
                [LEAST._replace(manners=(Manner.LONG,))],
                [
                    _once(LEAST),
                    Action(1.1, 2, What.FORCE, "d0", "i0", delay_s=3.0),
                ],
                (),
                (Life("w0", 0.0, 1.3, Death.CRASH),),
            ),
            _has("start", "d0/i0", call=2),
        ),
    )
    yield (
        "7: a caller schedules every second what always fails",
        Scenario(
            _plan(
                [LEAST._replace(manners=(Manner.RAISE,), failure_mode=FailureMode.UNLOCK)],
                [_each(LEAST, at=0.5 + number, call=number + 1) for number in range(11)],
            ),
            _starts("d0/i0", 1),
        ),
    )
    yield (
        "8: the index lags",
        Scenario(
            _plan(
                (LEAST._replace(manners=(Manner.LONG_HEARTBEAT,)), MOST, EVERY),
                (_each(LEAST), _each(MOST, call=2)),
                [Fault(Kind.LAGGING, 0.9, 10.0, "", 1.0)],
                TWO,
            ),
            _has("heartbeat"),
        ),
    )
    for how in ("answer lost", "fails after", "late"):
        yield (
            f"10: a claim was made, and its answer is lost: {how}",
            Scenario(
                _plan(
                    (LEAST, MOST, EVERY),
                    asked,
                    [Fault(Kind.FLAKY, 0.95, 0.6, "w0", 1.0, only="claim", how=how)],
                ),
                _fate("w0", "claim", how),
            ),
        )
    yield (
        "11: suspects, and records given back at shutdown",
        Scenario(
            _plan(
                (LEAST._replace(manners=(Manner.KILL,)), EVERY),
                [_once(LEAST, f"i{number}", call=number + 1) for number in range(20)],
                (),
                tuple(Life(f"w{number}", number * 1.4) for number in range(8)),
            ),
            lambda history: any(
                event.kind == "start" and event.details["attempt"] > 2 for event in history
            ),
        ),
    )
    for name, count in (("a few", 5), ("many", 50)):
        yield (
            f"11: {name} suspects, and a slow body",
            Scenario(
                _plan(
                    (LEAST._replace(manners=(Manner.LONG,)), EVERY),
                    [
                        _once(LEAST, f"i{number}", 3.0 + number / 400, number + 1)
                        for number in range(count)
                    ],
                    [
                        Fault(Kind.EDIT, 3.2, only=f"i{number}", how="unfinished_attempts=3")
                        for number in range(count)
                    ],
                    TWO,
                    latency_s=0.0002,
                ),
                _has("start", "d0/i3"),
            ),
        )
    yield (
        "12: the store is slower than the lease of an at-most-once record",
        Scenario(
            _plan(
                [MOST._replace(lease_s=0.2)],
                [_each(MOST, at=2.0)],
                (),
                TWO,
                latency_s=0.15,
            ),
            _has("start", "m0/i0"),
        ),
    )
    yield (
        "14: due records, and no slot is free",
        Scenario(
            _plan(
                (quick._replace(manners=(Manner.LONG,)), EVERY),
                [_each(quick, f"i{number}", call=number + 1) for number in range(12)],
                (),
                TWO,
                concurrency_limit=2,
            ),
            _has("start"),
        ),
    )
    yield (
        "17: many partitions, one with work",
        Scenario(
            _plan(
                [LEAST._replace(partitions=256)],
                [_each(LEAST, f"i{number}", call=number + 1) for number in range(5)],
                (),
                TWO,
                batch_size=10,
            ),
            _has("start", "d0/i4"),
        ),
    )
    yield (
        "19: every body schedules, and few slots are there",
        Scenario(
            _plan(
                [LEAST._replace(manners=(Manner.SCHEDULE_OTHER, Manner.SCHEDULE_SELF))],
                [_each(LEAST, f"i{number}", call=number + 1) for number in range(10)],
                (),
                TWO,
                concurrency_limit=3,
                latency_s=0.02,
            ),
            _has("schedule", "d0/other"),
        ),
    )
    yield (
        "20: connections are half open during claims",
        Scenario(
            _plan(
                (LEAST, EVERY),
                [_each(LEAST)],
                [Fault(Kind.HANGS, 2.0, 5.0, "w0", only="claim")],
                TWO,
            ),
            _fate("w0", "claim", "hangs"),
        ),
    )
    yield (
        "21: one-second recurrences and several workers",
        Scenario(
            _plan(
                [LEAST],
                [_each(LEAST, f"i{number}", call=number + 1) for number in range(10)],
                (),
                (*TWO, Life("w2", 0.0), Life("w3", 0.0)),
            ),
            _has("start"),
        ),
    )
    for start in (1.0005, 1.001, 1.0015, 1.002, 1.003, 1.005):
        yield (
            f"36: a worker is frozen between the claim and the start, at {start}",
            Scenario(
                _plan(
                    [quick, MOST._replace(lease_s=1.0), EVERY],
                    asked,
                    [Fault(Kind.FREEZE, start, 5.0, "w0")],
                    (Life("w0", 0.0), Life("w1", 2.0)),
                ),
                _has("thawed"),
            ),
        )
    yield (
        "39: the next occurrence comes sooner than the loop's sleep",
        Scenario(
            _plan(
                [LEAST._replace(manners=(Manner.RETURN,))],
                [Action(0.5, 1, What.SCHEDULE, "d0", "i0", interval_s=0.1)],
                poll_s=5.0,
            ),
            _has("start", "d0/i0"),
        ),
    )
    yield (
        "42, 44: runs side by side, begun eagerly where the interpreter can",
        Scenario(
            _plan(
                (LEAST._replace(manners=tuple(Manner)[:7]), EVERY),
                [_each(LEAST, f"i{number}", call=number + 1) for number in range(10)],
                (),
                TWO,
                eager=True,
            ),
            _has("start"),
        ),
    )
    yield (
        "42: tasks are begun eagerly where the interpreter can, and a lease is lost",
        Scenario(
            _plan(
                (BEATS, LEAST, EVERY),
                [
                    *(_each(BEATS, f"i{number}", call=number + 1) for number in range(6)),
                    *(
                        Action(1.6 + number, 20 + number, What.UNSCHEDULE, "h0", f"i{number}")
                        for number in range(6)
                    ),
                    _each(LEAST, call=30),
                ],
                eager=True,
            ),
            _has("lease lost"),
        ),
    )
    yield (
        "an executor of one's own fails now and then, and keeps runs waiting",
        Scenario(
            _plan(
                (LEAST, MOST, BEATS, EVERY),
                [
                    *(_each(LEAST, f"i{number}", call=number + 1) for number in range(4)),
                    *(_each(MOST, f"i{number}", call=number + 11) for number in range(3)),
                    _each(BEATS, call=30),
                ],
                (),
                (
                    Life("w0", 0.0, 2.7),
                    Life("w1", 0.0, 4.7, Death.CANCEL),
                    Life("w2", 3.0, 6.7, Death.CANCEL_CLOSING),
                    Life("w3", 5.0, 8.7, Death.CANCEL_AND_LEAVE),
                ),
                own_executor=True,
                duration=20.0,
            ),
            _has("start"),
        ),
    )
    yield (
        "large arguments are scheduled beside small ones",
        Scenario(
            _plan(
                (LEAST, TaskPlan("big", True, lease_s=2.0, args_bytes=250_000)),
                [
                    *(
                        _once(TaskPlan("big", True), f"i{number % 6}", call=number + 1)
                        for number in range(12)
                    ),
                    *(_once(LEAST, f"i{number}", call=number + 21) for number in range(6)),
                ],
                [Fault(Kind.SLOW, 0.4, 0.4, "users", 0.4, only="write")],
            ),
            _has("start", "big/i0"),
        ),
    )
    late = _plan(
        (EVERY._replace(interval_s=5.0), LEAST._replace(fast_forward=True)),
        (_each(LEAST),),
        duration=140.0,
    )
    yield (
        "a worker comes two minutes late",
        Scenario(
            replace(late, lives=(Life("w0", 0.0, 2.0), Life("last", 132.0))),
            _has("behind", "s0", count=0),
        ),
    )
    yield (
        "43: some writes of a batch are unknown",
        Scenario(
            _plan(
                (LEAST, MOST, EVERY),
                [
                    _once(task, f"i{number}", 0.5 + number / 5, 10 * number + mode)
                    for number in range(1, 20)
                    for mode, task in enumerate((LEAST, MOST))
                ],
                [Fault(Kind.UNKNOWN, 0.9, 6.0, "", 1.0, only="write")],
                TWO,
            ),
            _fate("w0", "write", "partly unknown"),
        ),
    )
    yield (
        "45: a body takes longer than its lease, again and again",
        Scenario(
            _plan(
                (
                    quick._replace(manners=(Manner.LONG,), lease_s=1.3),
                    TaskPlan("d1", True, lease_s=1.0, manners=(Manner.LONG_HEARTBEAT,)),
                    EVERY,
                ),
                [
                    Action(0.5, 1, What.SCHEDULE, "d0", "i0", interval_s=2.0),
                    Action(0.5, 2, What.SCHEDULE, "d1", "i0", interval_s=2.0),
                ],
            ),
            _starts("d0/i0", 2),
        ),
    )
    yield (
        "45: a body outlives five leases",
        Scenario(
            _plan(
                (LEAST._replace(manners=(Manner.OUTLIVE,), lease_s=1.5), EVERY),
                [Action(0.5, 1, What.SCHEDULE, "d0", "i0", interval_s=30.0)],
                duration=45.0,
            ),
            _starts("d0/i0", 5),
        ),
    )
    yield (
        "46: closing is cancelled, and the leases of the bodies are long",
        Scenario(
            _plan(
                [LEAST._replace(manners=(Manner.LONG,), lease_s=32.0), EVERY],
                [_once(LEAST, f"i{number}", call=number + 1) for number in range(5)],
                (),
                (Life("w0", 0.0, 1.2, Death.CANCEL_CLOSING),),
            ),
            _starts("d0/i0", 2),
        ),
    )
    for how in (
        *(Death.CANCEL, Death.CANCEL_TWICE, Death.CANCEL_AND_LEAVE),
        *(Death.CANCEL_CLOSING, Death.SHUTDOWN),
    ):
        yield (
            f"46: a worker is closed while bodies run: {how}",
            Scenario(
                _plan(
                    (
                        LEAST._replace(manners=(Manner.LONG, Manner.SWALLOW)),
                        MOST._replace(manners=(Manner.LONG, Manner.SWALLOW)),
                        EVERY,
                    ),
                    [
                        *(_each(LEAST, f"i{number}", call=number + 1) for number in range(5)),
                        *(_each(MOST, f"i{number}", call=number + 11) for number in range(5)),
                    ],
                    (),
                    tuple(
                        Life(f"w{number}", number * 1.3, number * 1.3 + 1.9, how)
                        for number in range(7)
                    ),
                ),
                _has("closed"),
            ),
        )
        for kind in (Kind.DOWN, Kind.HANGS):
            yield (
                f"47: a worker is closed ({how}) while this holds: {kind}",
                Scenario(
                    _plan(
                        (LEAST._replace(lease_s=3600.0), MOST, EVERY),
                        [
                            *(_each(LEAST, f"i{number}", call=number + 1) for number in range(5)),
                            _each(MOST, call=9),
                        ],
                        [Fault(kind, 1.6, 55.0, "w0")],
                        (Life("w0", 0.0, 1.7, how),),
                        duration=60.0,
                    ),
                    _has("leaving"),
                ),
            )
    yield (
        "48: exceptions that cannot be printed, or are no Exception",
        Scenario(
            _plan(
                [
                    TaskPlan(
                        f"d{number}",
                        True,
                        failure_mode=mode,
                        manners=(
                            Manner.RAISE_BASE,
                            Manner.RAISE_GENERATOR,
                            Manner.RAISE_UNPRINTABLE,
                            Manner.RAISE_CANCELLED,
                        ),
                    )
                    for number, mode in enumerate(FailureMode)
                ],
                [_each(TaskPlan(f"d{number}", True), call=number + 1) for number in range(3)],
            ),
            lambda history: _count(history, "raise") + _count(history, "cancelled") > 3,
        ),
    )
    yield (
        "49: a clock was far ahead when the worker of a task was killed",
        Scenario(
            _plan(
                [EVERY._replace(manners=(Manner.LONG,))],
                (),
                [
                    Fault(Kind.STEP_WALL, 0.0, 0.0, "w0", 1e8),
                    Fault(Kind.STEP_WALL, 3.0, 0.0, "w0", -1e8),
                ],
                (Life("w0", 0.1, 2.0, Death.CRASH), Life("w1", 4.0)),
                store_clock=False,
            ),
            _starts("s0", 2),
        ),
    )
    yield (
        "49: a clock was far ahead when a task was planned",
        Scenario(
            _plan(
                [EVERY],
                (),
                [
                    Fault(Kind.STEP_WALL, 0.0, 0.0, "w0", 1e8),
                    Fault(Kind.STEP_WALL, 3.0, 0.0, "w0", -1e8),
                ],
                (Life("w0", 0.1, 2.0), Life("w1", 4.0)),
                store_clock=False,
            ),
            _has("start", "s0"),
        ),
    )
    yield (
        "40: an instance in a zone that no worker knows is scheduled anew",
        Scenario(
            _plan(
                [LEAST, EVERY],
                [
                    _each(LEAST, "mended"),
                    Action(8.0, 2, What.SCHEDULE, "d0", "mended", interval_s=1.0),
                ],
                [Fault(Kind.EDIT, 2.7, only="mended", how=NOWHERE)],
                TWO,
            ),
            _has("start", "d0/mended", call=2),
        ),
    )
    yield (
        "40: an instance in a zone that no worker knows for a while",
        Scenario(
            _plan(
                [LEAST, EVERY],
                [
                    _each(LEAST, "mended"),
                    # A call that frees nothing: what is parked would stay so.
                    Action(8.0, 2, What.RESUME, "d0", "mended"),
                ],
                [
                    Fault(Kind.EDIT, 2.7, only="mended", how=NOWHERE),
                    Fault(Kind.EDIT, 3.7, only="mended", how="schedule=1 every 1000000"),
                ],
                TWO,
            ),
            _has("start", "d0/mended", call=1),
        ),
    )
    yield (
        "a store gives too few answers",
        Scenario(
            _plan(
                (LEAST, MOST, EVERY, BEATS),
                [
                    *(_each(LEAST), _each(MOST, call=2), _each(LEAST, "i1", at=3.3, call=3)),
                    *(_each(BEATS, f"i{number}", call=10 + number) for number in range(4)),
                ],
                [Fault(Kind.SHORT, 3.2, 2.0)],
                (Life("w0", 0.0, 4.0), Life("w1", 0.0)),
            ),
            _has("schedule", answer="unknown"),
        ),
    )
    yield (
        "the machine's clock is set back while the store fails",
        Scenario(
            _plan(
                [EVERY],
                (),
                [
                    Fault(Kind.DOWN, 2.0, 4.0),
                    Fault(Kind.STEP_WALL, 4.0, 0.0, "w0", -600.0),
                ],
                ONE,
                store_clock=False,
            ),
            _has("fault"),
        ),
    )
    yield (
        "50: the store's clock is measured while requests are slow",
        Scenario(
            _plan(
                (LEAST, MOST, EVERY),
                (_each(LEAST, at=0.1), _each(MOST, at=0.1, call=2)),
                [Fault(Kind.SLOW, 0.5, 8.0, "w1", 1.5)],
                (Life("w0", 0.0), Life("w1", 0.6)),
            ),
            _has("start"),
        ),
    )
    yield (
        "50: the store's clock is measured by slow calls, and all others are quick",
        Scenario(
            _plan(
                (LEAST, MOST, EVERY),
                (_each(LEAST, at=0.1), _each(MOST, at=0.1, call=2)),
                [Fault(Kind.SLOW, 0.5, 8.0, "w1", 1.5, only="now")],
                (Life("w0", 0.0), Life("w1", 0.6)),
            ),
            _has("start"),
        ),
    )
    yield (
        "51: a claim is too large to be answered in time",
        Scenario(
            _plan(
                (LEAST._replace(args_bytes=20_000), EVERY),
                [_once(LEAST, f"i{number}", 0.1, number + 1) for number in range(60)],
                (),
                (Life("w0", 4.0),),
                bytes_per_s=200_000.0,
            ),
            _has("start", "d0/i9"),
        ),
    )
    yield (
        "51: one lost answer does not make a record too large",
        Scenario(
            _plan(
                [EVERY],
                (),
                [Fault(Kind.FLAKY, 2.9, 0.3, "", 1.0, only="claim", how="answer lost")],
                batch_size=1,
            ),
            _has("call", "claim", fate="answer lost"),
        ),
    )
    yield (
        "51: slow claims, and quick calls else, do not make records too large",
        Scenario(
            _plan(
                (LEAST, EVERY),
                [_each(LEAST)],
                [Fault(Kind.SLOW, 2.0, 9.0, "", 2.2, only="claim")],
                TWO,
                batch_size=3,
            ),
            _has("call", "claim", fate="slow"),
        ),
    )
    yield (
        "51: a slow store does not make records too large",
        Scenario(
            _plan(
                (LEAST, EVERY),
                [_each(LEAST)],
                [Fault(Kind.SLOW, 2.0, 9.0, "", 1.5)],
                TWO,
                batch_size=3,
            ),
            _has("call", "claim", fate="slow"),
        ),
    )
    for count in (8, 3):
        yield (
            f"52: 4 partitions become {count}, the process that moves dies, workers freeze",
            Scenario(_rebalanced(count), _has("rebalance", "p0", call=301, answer="ok")),
        )
        yield (
            f"52: two processes move 4 partitions to {count}, calls fail and are slow",
            Scenario(
                _rebalanced(
                    count,
                    second=4.0,
                    faults=(
                        Fault(Kind.FLAKY, 26.0, 6.0, strength=0.2),
                        Fault(Kind.UNKNOWN, 27.0, 6.0, strength=0.2),
                        Fault(Kind.SLOW, 34.0, 5.0, strength=0.2),
                    ),
                ),
                _has("rebalance", "p0", call=301, answer="ok"),
            ),
        )


def _rebalanced(count: int, second: float = 40.0, faults: Sequence[Fault] = ()) -> Plan:
    """Instances run, and are steered, while they move to other partitions.

    Args:
        count: The number of partitions that there are afterwards.
        second: When a second process begins to move them.
        faults: What fails meanwhile.
    """
    task = TaskPlan("p0", True, lease_s=2.0, partitions=4, manners=(Manner.SLEEP, Manner.RAISE))
    end = 85.0
    actions = [_each(task, f"i{number}", call=number + 1) for number in range(8)]
    whats = (What.SCHEDULE, What.UNSCHEDULE, What.REPLACE, What.FORCE, What.PAUSE, What.TRIGGER)
    for number in range(70):
        what, call = whats[number % len(whats)], 100 + number
        actions.append(
            Action(
                1.0 + number * 1.1,
                call,
                what,
                task.name,
                f"i{number * 5 % 13}",
                delay_s=2.0 if what.schedules else None,
                process=("users", "w0", "w2")[number % 3],
            )
        )
    actions += [
        Action(end + 0.5, 200 + number, What.RESUME, task.name, f"i{number}")
        for number in range(13)
    ]
    for at, call, process in ((3.0, 300, "w1"), (second, 301, "users")):
        actions.append(
            Action(at, call, What.REBALANCE, task.name, "", process=process, partition_count=count)
        )
    return _plan(
        [task],
        sorted(actions),
        (
            *(Fault(Kind.FREEZE, at, 3.0, "w0") for at in (10.0, 27.0, 50.0)),
            *(Fault(Kind.FREEZE, at, 1.5, "w2") for at in (16.0, 29.0, 41.0)),
            *faults,
        ),
        (Life("w0", 0.0), Life("w1", 0.0, 28.7, Death.CRASH), Life("w2", 0.0)),
        duration=end,
        latency_s=0.05,
    )
