"""What happens in one simulation, drawn from a seed before it begins.

A plan is a value: the same plan gives the same history, and a plan from which something was taken
away is still one. That is how a failing history is made short.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random
from typing import Final, NamedTuple

from pyncette import Exhausted, FailureMode

SETTLING_S: Final = 14.0
"""How long everything is healthy at the end, before what should have run is counted."""


class Manner(StrEnum):
    """How a body behaves."""

    RETURN = "return"
    YIELD = "yield"
    SLEEP = "sleep"
    EVENT = "event"
    LONG = "long"
    LONG_HEARTBEAT = "long with heartbeats"
    SHORT_HEARTBEAT = "heartbeat and return"
    RAISE = "raise"
    RAISE_BASE = "raise a BaseException"
    RAISE_UNPRINTABLE = "raise what cannot be printed"
    RAISE_CANCELLED = "raise CancelledError"
    SWALLOW = "swallow cancellation"
    SCHEDULE_SELF = "schedule its own record"
    SCHEDULE_OTHER = "schedule another record"
    UNSCHEDULE_SELF = "unschedule its own record"
    KILL = "kill its process"
    OUTLIVE = "outlive its lease several times"
    RAISE_GENERATOR = "raise GeneratorExit"
    EXIT = "raise SystemExit"
    RETRY_IN = "raise RetryIn"
    RETRY_FREE = "raise RetryIn that costs no attempt"
    GIVE_UP = "raise GiveUp"
    SKIP = "raise Skip"
    ENDLESS = "take longer than any timeout"


class Rhythm(NamedTuple):
    """Instants at whole steps from an anchor, in seconds since the store's clock began."""

    step_s: float
    anchor_s: float


MIDNIGHT_S: Final = 60.0
"""When a day begins in the zone of the calendars that close days, in seconds since the epoch."""


class Day(StrEnum):
    """A day of a calendar."""

    BEFORE = "before midnight"
    AFTER = "after midnight"


class Powers(NamedTuple):
    """Options of a task beyond those that every task has.

    Attributes:
        attempts: Of its retry policy; 0: it has none.
        initial_s, factor, maximum_s, jitter, within_s, exhausted: Of that policy.
        timeout_s, heartbeat, misfire_grace_s: As the options of the same name.
        latest: Whether it has ``CatchUp.LATEST``.
        skip_overlap: Whether it has ``Overlap.SKIP``.
        rhythms: Its schedule is their union; none: the interval of the task, or of the call.
        at_once: Whether its interval begins at once.
        start_s, end_s: Its bounds, in seconds since the store's clock began.
        wait_s: The jitter of its schedule.
        calendar: Whether its schedule names a calendar, which processes ``w1.…`` lack.
        closed: Which of two days the calendar of its schedule closes: the one before ``MIDNIGHT_S``
            or the one after it. None: it has no such calendar.
    """

    attempts: int = 0
    initial_s: float = 0.4
    factor: float = 2.0
    maximum_s: float = 1.5
    jitter: float = 0.2
    within_s: float | None = None
    exhausted: Exhausted | None = None
    timeout_s: float | None = None
    heartbeat: bool = False
    misfire_grace_s: float | None = None
    latest: bool = False
    skip_overlap: bool = False
    rhythms: tuple[Rhythm, ...] = ()
    at_once: bool = False
    start_s: float | None = None
    end_s: float | None = None
    wait_s: float = 0.0
    calendar: bool = False
    closed: Day | None = None

    @property
    def scheduled(self) -> bool:
        """Whether it has a schedule of its own, and no plain interval."""
        return bool(self.rhythms or self.at_once)


class TaskPlan(NamedTuple):
    """A declared task."""

    name: str
    dynamic: bool
    at_most_once: bool = False
    failure_mode: FailureMode = FailureMode.NONE
    lease_s: float = 5.0
    fast_forward: bool = False
    interval_s: float = 5.0
    """Of a static task; the default of none."""
    partitions: int | None = None
    shared: bool = False
    """Whether workers share the partitions among themselves."""
    manners: tuple[Manner, ...] = ()
    """How its bodies behave, where not as the plan says."""
    args_bytes: int = 0
    """So large are the arguments of its instances."""
    limit: int | None = None
    """How many of its executions may run at once in one worker."""
    declared_by: str = ""
    """Only by processes whose name begins with this. A name may be declared twice, differently."""
    powers: Powers | None = None


class Death(StrEnum):
    """How the life of a worker ends."""

    SHUTDOWN = "shutdown"
    CANCEL = "cancel"
    CANCEL_TWICE = "cancel twice"
    CANCEL_AND_LEAVE = "cancel run() and leave"
    CRASH = "crash"
    CANCEL_CLOSING = "shutdown, then cancel while it closes"


class Life(NamedTuple):
    """One process of a worker, from its start to its end."""

    process: str
    start: float
    end: float | None = None
    how: Death = Death.SHUTDOWN


class What(StrEnum):
    """What a user does."""

    SCHEDULE = "schedule"
    FORCE = "force"
    UNSCHEDULE = "unschedule"
    REPLACE = "replace"
    PAUSE = "pause"
    """With a delay: until then."""
    RESUME = "resume"
    TRIGGER = "trigger"
    RERUN = "run a parked one again"
    REBALANCE = "rebalance"

    @property
    def steers(self) -> bool:
        """Whether it says nothing about when, and with what, a task runs."""
        return self in (What.PAUSE, What.RESUME, What.TRIGGER, What.RERUN, What.REBALANCE)

    @property
    def schedules(self) -> bool:
        """Whether it gives a schedule."""
        return self in (What.SCHEDULE, What.FORCE, What.REPLACE)


class Action(NamedTuple):
    """A call of a user. Without an instance it is about a static task, or a whole template."""

    at: float
    call: int
    what: What
    task: str
    instance: str
    interval_s: float | None = None
    delay_s: float | None = None
    """For a one-off: how long after the call it shall run; may be negative."""
    process: str = "users"
    partition_count: int = 0
    """Of a rebalance."""


class Kind(StrEnum):
    """What goes wrong."""

    DOWN = "store refuses all calls"
    HANGS = "store answers no call"
    FLAKY = "calls fail"
    SLOW = "calls are slow"
    UNKNOWN = "some writes of a batch are unknown or failed"
    LAGGING = "index lags"
    DEAF = "notifications are lost"
    LOCKED = "records are locked"
    RESTART = "store restarts"
    RESTORE = "store is restored from its last durable state"
    FREEZE = "process is frozen"
    STEP_WALL = "wall clock of the process steps"
    STEP_STORE = "clock of the store steps"
    SHORT = "the store gives too few answers"
    EDIT = "somebody edits a record"


class Fault(NamedTuple):
    """Something that goes wrong for a while.

    Attributes:
        kind: What.
        start, length: When, in seconds.
        process: Where, if it is about one process.
        strength: A probability, a number of seconds of delay, or of a step.
        only: Only this call of the store.
        how: Of what may become of a call that fails, only this; see ``world.flaky``. For an edit,
            the column and its new text.
    """

    kind: Kind
    start: float
    length: float = 0.0
    process: str = ""
    strength: float = 0.0
    only: str = ""
    how: str = ""

    @property
    def end(self) -> float:
        """When it is over."""
        return self.start + self.length


class ClockPlan(NamedTuple):
    """How far the clocks of a process are off."""

    process: str
    offset_s: float = 0.0
    drift_ppm: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A simulation.

    Attributes:
        seed: Draws the order of callbacks, the fate of each call, and the manners of bodies.
        profile: The name of what it was drawn from; the checker knows what holds in each.
        duration: When the last fault is over; everything settles afterwards.
        manners: What bodies do, as often as it is named.
    """

    seed: int
    profile: str = "calm"
    duration: float = 40.0
    poll_s: float = 1.0
    batch_size: int = 100
    concurrency_limit: int = 100
    synchronous: bool = False
    own_executor: bool = False
    """Whether the program brings an executor of its own; see ``tests.simulation.users``."""
    eager: bool = False
    latency_s: float = 0.002
    store_clock: bool = True
    store_offset_s: float = 0.0
    tasks: tuple[TaskPlan, ...] = ()
    lives: tuple[Life, ...] = ()
    actions: tuple[Action, ...] = ()
    faults: tuple[Fault, ...] = ()
    clocks: tuple[ClockPlan, ...] = ()
    manners: tuple[Manner, ...] = (Manner.RETURN,)
    middleware: bool = False
    bytes_per_s: float = 0.0
    """How fast answers travel; 0: at once."""

    @property
    def clock_offset_s(self) -> float:
        """By how much the clock that decides is ahead at the start."""
        return self.store_offset_s if self.store_clock else 0.0

    @property
    def end(self) -> float:
        """When what should have run is counted."""
        return self.duration + SETTLING_S

    def task(self, name: str) -> TaskPlan:
        """The task of this name."""
        return next(task for task in self.tasks if task.name == name)


PROFILES: Final = ("calm", "rough", "clocks", "steps", "restored")
"""``calm``: nothing goes wrong but bodies. ``rough``: the store and the processes fail.
``clocks``: as rough, and the clocks of workers are off, drift and step. ``steps``: as clocks, and
the store's own clock steps. ``restored``: as rough, and the store loses acknowledged writes."""

_POLITE: Final = (
    *(Manner.RETURN,) * 4,
    *(Manner.YIELD,) * 3,
    *(Manner.SLEEP,) * 4,
    *(Manner.EVENT,) * 2,
    Manner.RAISE,
)
_RUDE: Final = (
    *_POLITE,
    *(Manner.LONG,) * 2,
    *(Manner.LONG_HEARTBEAT,) * 2,
    Manner.SHORT_HEARTBEAT,
    Manner.RAISE,
    Manner.RAISE_BASE,
    Manner.RAISE_UNPRINTABLE,
    Manner.RAISE_CANCELLED,
    Manner.SWALLOW,
    Manner.SCHEDULE_SELF,
    Manner.SCHEDULE_OTHER,
    Manner.UNSCHEDULE_SELF,
)


def draw(seed: int, profile: str) -> Plan:
    """The plan of a seed."""
    random = Random(f"plan:{profile}:{seed}")
    calm = profile == "calm"
    duration = random.uniform(4, 20)
    tasks = _shared(seed, profile, _limited(seed, profile, _tasks(random, calm)))
    workers = random.randint(1, 3 if calm else 4)
    lives = [life for number in range(workers) for life in _lives(random, number, duration, calm)]
    lives.append(Life("last", duration))
    processes = ["users", *(life.process for life in lives)]
    # From a source of its own, so that the other draws of a seed stay what they were.
    own_executor = not calm and Random(f"executor:{profile}:{seed}").random() < 0.1
    plan = Plan(
        seed=seed,
        profile=profile,
        duration=duration,
        poll_s=random.choice((0.5, 1.0, 1.0, 3.0)),
        batch_size=100 if calm else random.choice((1, 3, 100, 100)),
        concurrency_limit=100 if calm else random.choice((1, 2, 5, 100, 100)),
        synchronous=random.random() < 0.1 and not own_executor,
        own_executor=own_executor,
        eager=random.random() < 0.2,
        latency_s=random.choice((0.0005, 0.002, 0.02)),
        store_clock=profile in ("clocks", "steps") or random.random() < 0.6,
        store_offset_s=random.choice((0.0, 0.0, 300.0, -300.0, 0.4)),
        tasks=tuple(tasks),
        lives=tuple(lives),
        actions=tuple(_actions(random, tasks, duration, [life.process for life in lives])),
        faults=tuple(_faults(random, profile, duration, processes)),
        clocks=tuple(
            ClockPlan(
                process,
                random.choice((0.0, 0.3, -0.7, 300.0, -300.0)),
                random.uniform(-50, 50),
            )
            for process in processes
            if profile in ("clocks", "steps")
        ),
        manners=_POLITE
        if calm
        else (*_RUDE, *((Manner.KILL,) * 2 if random.random() < 0.15 else ())),
        middleware=random.random() < 0.2,
    )
    plan = replace(plan, actions=_steered(seed, profile, plan))
    # From a source of its own as well.
    random = Random(f"powers:{profile}:{seed}")
    return plan if random.random() >= POWERED_PART else powered(random, plan)


def _tasks(random: Random, calm: bool) -> list[TaskPlan]:
    def draw(name: str, dynamic: bool) -> TaskPlan:
        return TaskPlan(
            name,
            dynamic,
            at_most_once=random.random() < 0.35,
            failure_mode=random.choice(tuple(FailureMode)),
            lease_s=3.0 if calm else random.choice((1.0, 1.5, 3.0)),
            fast_forward=random.random() < 0.2,
            interval_s=random.choice((1.0, 2.0, 5.0)),
            partitions=random.choice((None, None, 4)),
        )

    return [
        *(draw(f"d{number}", True) for number in range(random.randint(1, 3))),
        *(draw(f"s{number}", False) for number in range(random.randint(0, 2))),
    ]


def _limited(seed: int, profile: str, tasks: list[TaskPlan]) -> list[TaskPlan]:
    """The tasks, some of them with a limit: the other draws are made without it."""
    random = Random(f"limited:{profile}:{seed}")
    if random.random() < 0.7:
        return tasks
    return [
        task._replace(limit=random.choice((1, 1, 2))) if random.random() < 0.7 else task
        for task in tasks
    ]


def _shared(seed: int, profile: str, tasks: list[TaskPlan]) -> list[TaskPlan]:
    """The tasks, some of those with partitions shared: the other draws are made without it."""
    random = Random(f"shared:{profile}:{seed}")
    return [
        task._replace(shared=task.partitions is not None and random.random() < 0.5)
        for task in tasks
    ]


_DEATHS: Final = tuple(Death)[:5]


def _lives(random: Random, number: int, duration: float, calm: bool) -> list[Life]:
    lives = []
    start = random.choice((0.0, 0.0, random.uniform(0, duration / 2)))
    for life in range(1, 5):
        process = f"w{number}.{life}"
        how = random.choice(_DEATHS)
        # From a source of its own, so that the other draws of a seed stay what they were.
        if how is Death.SHUTDOWN and Random(f"{duration}:{process}").random() < 0.3:
            how = Death.CANCEL_CLOSING
        if calm:
            how = Death.SHUTDOWN
        end = start + random.uniform(0.001, duration) if random.random() < 0.7 else None
        if end is not None and end > duration:
            end = None
        lives.append(Life(process, start, end, how))
        if end is None:
            break
        start = end + random.choice((0.0, random.uniform(0, 5)))
    return lives


def _actions(
    random: Random, tasks: list[TaskPlan], duration: float, processes: list[str]
) -> list[Action]:
    dynamic = [task for task in tasks if task.dynamic]
    actions = []
    # Few names, so that calls meet; sometimes many at once.
    names = [f"i{number}" for number in range(random.choice((1, 2, 4, 12)))]
    for call in range(1, random.randint(3, 25)):
        task = random.choice(dynamic)
        what = random.choice((*(What.SCHEDULE,) * 6, *(What.FORCE,) * 2, *(What.UNSCHEDULE,) * 2))
        once = random.random() < 0.5
        actions.append(
            Action(
                random.choice((0.1, random.uniform(0, duration), random.uniform(0, duration))),
                call,
                what,
                task.name,
                random.choice(names),
                None if once else random.choice((1.0, 1.0, 2.0, 5.0)),
                random.choice((-5.0, 0.0, 0.05, 1.0, random.uniform(0, 10))) if once else None,
                random.choice(("users", "users", random.choice(processes))),
            )
        )
    return sorted(actions)


STEERED_FROM: Final = 500
"""The number of the first call that steers: the others are drawn without them."""


def _steered(seed: int, profile: str, plan: Plan) -> tuple[Action, ...]:
    """Calls that steer, in a part of the plans, and at the end what resumes everything."""
    random = Random(f"steered:{profile}:{seed}")
    if random.random() < 0.5:
        return plan.actions
    places = sorted({(action.task, action.instance) for action in plan.actions})
    places += [(task.name, "") for task in plan.tasks]
    actions = []
    paused = set()
    for call in range(STEERED_FROM, STEERED_FROM + random.randint(1, 8)):
        task, instance = random.choice(places)
        what = random.choice((What.PAUSE, What.PAUSE, What.RESUME, What.TRIGGER, What.TRIGGER))
        if instance and random.random() < 0.3:
            what = What.REPLACE
        once = random.random() < 0.5
        delay_s = interval_s = None
        if what is What.REPLACE:
            interval_s = None if once else random.choice((1.0, 2.0))
            delay_s = random.choice((0.0, 1.0, random.uniform(0, 10))) if once else None
        elif what is What.PAUSE:
            delay_s = random.uniform(0.1, 10) if once else None
            paused.add((task, instance))
        at, process = random.uniform(0.05, plan.duration), "users"
        if random.random() < 0.3:
            process = random.choice(plan.lives).process
        actions.append(Action(at, call, what, task, instance, interval_s, delay_s, process))
    for number, (task, instance) in enumerate(sorted(paused)):
        call = STEERED_FROM + 100 + number
        actions.append(Action(plan.duration + 0.5, call, What.RESUME, task, instance))
    return tuple(sorted((*plan.actions, *actions)))


POWERED_PART: Final = 0.2
"""So many of the plans have a task with options of its own; see ``Powers``."""

POWERED_FROM: Final = 700
"""The number of the first call about such a task."""

_FAILING: Final = (
    *(Manner.RETURN,) * 2,
    Manner.SLEEP,
    *(Manner.RAISE,) * 6,
    Manner.RETRY_IN,
    Manner.RETRY_FREE,
    Manner.GIVE_UP,
    Manner.SKIP,
)


def powered(random: Random, plan: Plan) -> Plan:
    """The plan with one or two more tasks, which have options of their own."""
    kinds = random.sample((_retried, _late, _timed), random.choice((1, 1, 2)))
    tasks, actions = [], []
    for number, kind in enumerate(kinds):
        task = kind(random, f"p{number}", plan)
        first = POWERED_FROM + 100 * number
        tasks.append(task)
        actions += _about(random, task, plan, first)
    return replace(
        plan,
        tasks=(*plan.tasks, *tasks),
        actions=tuple(sorted((*plan.actions, *actions))),
    )


def _retried(random: Random, name: str, plan: Plan) -> TaskPlan:
    beats = random.random() < 0.3
    timeout_s = random.choice((None, None, 0.6))
    manners = list(_FAILING)
    if timeout_s is not None:
        manners += [Manner.ENDLESS] * 3
    elif beats:
        manners += [Manner.OUTLIVE] * 4
    elif plan.profile != "calm":
        manners += [Manner.LONG, Manner.SWALLOW]
        manners += [Manner.KILL] if random.random() < 0.3 else []
    return TaskPlan(
        name,
        random.random() < 0.8,
        lease_s=0.7 if beats and timeout_s is None else random.choice((1.0, 2.0)),
        interval_s=random.choice((1.0, 2.0)),
        manners=tuple(manners),
        powers=Powers(
            attempts=random.choice((1, 2, 3, 4)),
            jitter=random.choice((0.0, 0.2, 1.0)),
            within_s=random.choice((None, None, 2.0)),
            exhausted=random.choice((None, *Exhausted)),
            timeout_s=timeout_s,
            heartbeat=beats,
        ),
    )


def _late(random: Random, name: str, plan: Plan) -> TaskPlan:
    chosen = random.choice(("misfire", "latest", "overlap"))
    return TaskPlan(
        name,
        random.random() < 0.6,
        failure_mode=random.choice((FailureMode.COMMIT, FailureMode.UNLOCK)),
        lease_s=3.0,
        interval_s=1.0,
        manners=(Manner.RETURN, Manner.SLEEP, Manner.RAISE, *(Manner.LONG,) * 2),
        powers=Powers(
            misfire_grace_s=random.choice((0.5, 1.5)) if chosen == "misfire" else None,
            latest=chosen == "latest",
            skip_overlap=chosen == "overlap",
        ),
    )


def _timed(random: Random, name: str, plan: Plan) -> TaskPlan:
    powers = Powers(wait_s=random.choice((0.0, 0.5, 2.0)))
    match random.choice(("at once", "anchor", "union", "union")):
        case "at once":
            powers = powers._replace(at_once=True)
        case "anchor":
            one = Rhythm(random.choice((0.8, 1.5)), random.uniform(-100, 100))
            powers = powers._replace(rhythms=(one,))
        case _:
            both = (Rhythm(2.0, random.uniform(0, 2)), Rhythm(1.5, random.uniform(-3, 3)))
            powers = powers._replace(rhythms=both)
    if random.random() < 0.4:
        powers = powers._replace(end_s=random.uniform(plan.duration / 2 + 3, plan.duration + 4))
        if random.random() < 0.5:
            powers = powers._replace(start_s=random.uniform(0, 2.5))
    dynamic = random.random() < 0.7
    if dynamic and random.random() < 0.4:
        powers = powers._replace(calendar=True)
    return TaskPlan(
        name,
        dynamic,
        failure_mode=random.choice((FailureMode.COMMIT, FailureMode.UNLOCK)),
        lease_s=2.0,
        interval_s=1.2,
        manners=(Manner.RETURN, Manner.YIELD, Manner.SLEEP, Manner.RAISE),
        powers=powers,
    )


def _about(random: Random, task: TaskPlan, plan: Plan, call: int) -> list[Action]:
    """What users do with a task that has options of its own."""
    powers = task.powers
    assert powers is not None
    places = [f"i{number}" for number in range(random.choice((1, 2, 3)))] if task.dynamic else [""]
    actions = []
    for place in places:
        if task.dynamic:
            once = bool(powers.attempts) and random.random() < 0.5
            interval_s = None if once or powers.scheduled else random.choice((1.0, 1.0, 2.0))
            delay_s = random.choice((0.0, 0.5, 1.0)) if once else None
            at = random.choice((0.1, random.uniform(0, plan.duration / 2)))
            actions.append(Action(at, call, What.SCHEDULE, task.name, place, interval_s, delay_s))
            call += 1
        steering = [What.TRIGGER, What.PAUSE]
        if powers.attempts:
            steering += [What.RERUN] * 3
            steering += [What.REPLACE, What.UNSCHEDULE] if task.dynamic else []
        for _ in range(random.choice((0, 0, 1, 3))):
            what, at = random.choice(steering), random.uniform(0.2, plan.duration)
            interval_s = 1.0 if what is What.REPLACE and not powers.scheduled else None
            actions.append(Action(at, call, what, task.name, place, interval_s))
            call += 1
        if any(action.what is What.PAUSE for action in actions) or (
            powers.exhausted is Exhausted.PAUSE
        ):
            at = plan.duration + 0.5
            actions.append(Action(at, call, What.RESUME, task.name, place))
            call += 1
    # Drawn elsewhere, so that the histories of before stay what they were.
    bulk = Random(f"bulk:{plan.seed}:{task.name}")
    if powers.attempts and task.dynamic and bulk.random() < 0.3:
        at = bulk.uniform(plan.duration / 2, plan.duration)
        actions.append(Action(at, call, What.RERUN, task.name, ""))
    return actions


_STORE_FAULTS: Final = (
    Kind.DOWN,
    Kind.HANGS,
    Kind.FLAKY,
    Kind.FLAKY,
    Kind.SLOW,
    Kind.SLOW,
    Kind.UNKNOWN,
    Kind.LAGGING,
    Kind.DEAF,
    Kind.LOCKED,
    Kind.RESTART,
    Kind.FREEZE,
    Kind.FREEZE,
)


def _faults(random: Random, profile: str, duration: float, processes: list[str]) -> list[Fault]:
    if profile == "calm":
        return []
    kinds = list(_STORE_FAULTS)
    if profile in ("clocks", "steps"):
        kinds += [Kind.STEP_WALL] * 3
    if profile == "steps":
        kinds += [Kind.STEP_STORE] * 5
    if profile == "restored":
        kinds += [Kind.RESTORE] * 5
    faults = []
    for _ in range(random.randint(1, 6)):
        kind = random.choice(kinds)
        start = random.uniform(0, duration)
        length = min(random.choice((0.05, 0.5, 2.0, 5.0, 10.0)) * random.random(), duration - start)
        match kind:
            case Kind.STEP_WALL | Kind.STEP_STORE:
                strength = random.choice((-300.0, -10.0, -0.5, 0.5, 10.0, 300.0))
            case Kind.SLOW:
                strength = random.choice((0.1, 0.5, 1.5))
            case Kind.LAGGING:
                strength = random.choice((0.1, 1.0, 3.0))
            case _:
                strength = random.choice((0.1, 0.3, 0.7))
        about = kind in (Kind.FREEZE, Kind.STEP_WALL) or (
            kind in (Kind.DOWN, Kind.HANGS, Kind.FLAKY, Kind.SLOW) and random.random() < 0.5
        )
        faults.append(
            Fault(kind, start, length, random.choice(processes) if about else "", strength)
        )
    return sorted(faults)


def without(plan: Plan, field: str, index: int) -> Plan:
    """The plan less one thing that happens in it."""
    items = getattr(plan, field)
    return replace(plan, **{field: items[:index] + items[index + 1 :]})
