"""Options and calls in any combination, on the whole engine: what must hold of each run.

``tests/simulation`` holds the rules against a model; here are also what it leaves out: timeouts,
calendars, and what a body says.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import START, Bench, run

from pyncette import (
    CatchUp,
    Context,
    ExecutionMode,
    Exhausted,
    FailureMode,
    GiveUp,
    OnExisting,
    Overlap,
    PyncetteContext,
    Retry,
    RetryIn,
    Skip,
)
from pyncette.errors import TaskExistsError, TaskLockedException, TaskNotFoundError
from pyncette.schedule import At, Calendar, Every, Schedule
from pyncette.task import Task

pytestmark = pytest.mark.exhaustive

HOUR = timedelta(hours=1)
TIMEOUT = HOUR
SLOW = 2 * HOUR
GRACE = 3 * HOUR


def odd(day: date) -> bool:
    return day.toordinal() % 2 == 1


class Plan(NamedTuple):
    """What is tried.

    Attributes:
        options: Of the task.
        schedule: Of the instance; it is given again whenever it is scheduled.
        acts: What the body does, one for each start; then it succeeds.
        calls: What users do, and how many hours pass before.
        partitions: Of the template; None: without.
    """

    options: dict[str, Any]
    schedule: Schedule
    acts: list[str]
    calls: list[tuple[int, str]]
    partitions: int | None


ACTS = ("done", "fails", "slow", "again", "again, free", "skips", "gives up", "triggers itself")
CALLS = (
    *("pause", "resume", "trigger", "trigger", "unschedule", "force", "retry", "drop"),
    *(how.value for how in OnExisting),
)
OFTEN = Every(6 * HOUR, anchor=START)
ON_EVEN_DAYS = Every(7 * HOUR, anchor=START) - Calendar("odd")
SCHEDULES = (
    OFTEN,
    ON_EVEN_DAYS,
    At(START + 5 * HOUR),
    At(START + 5 * HOUR) | At(START + 9 * HOUR),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    once = draw(st.booleans())
    options: dict[str, Any] = {
        "execution_mode": ExecutionMode.AT_MOST_ONCE if once else ExecutionMode.AT_LEAST_ONCE,
        "lease_duration": timedelta(days=1),
        "timeout": draw(st.none() | st.just(TIMEOUT)),
        "misfire_grace": draw(st.none() | st.just(GRACE)),
        "catch_up": draw(st.sampled_from(CatchUp)),
    }
    if not once:
        options["overlap"] = draw(st.sampled_from(Overlap))
        if draw(st.booleans()):
            attempts = draw(st.integers(1, 3))
            options["retry"] = Retry(attempts=attempts, initial=HOUR, maximum=HOUR, jitter=0)
        else:
            modes = (FailureMode.UNLOCK, FailureMode.COMMIT)
            options["failure_mode"] = draw(st.sampled_from(modes))
        options["exhausted"] = draw(st.none() | st.sampled_from(Exhausted))
    calls = st.tuples(st.sampled_from((0, 1, 2, 3, 5, 8, 13)), st.sampled_from(CALLS))
    return Plan(
        options,
        draw(st.sampled_from(SCHEDULES)),
        draw(st.lists(st.sampled_from(ACTS), min_size=4, max_size=12)),
        draw(st.lists(calls, min_size=6, max_size=14)),
        draw(st.none() | st.just(3)),
    )


class World:
    """An app with one instance, the calls of its users, and what must hold of each start."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.bench = Bench(poll_interval=HOUR)  # the clock moves by days
        app = self.bench.app
        app.calendar("odd")(odd)
        self.job: Task = (
            app.dynamic_task(name="job", **plan.options)(self.body)
            if plan.partitions is None
            else app.partitioned_task(plan.partitions, name="job", **plan.options)(self.body)
        )
        self.acts = list(plan.acts)
        self.ids: set[str] = set()
        self.tokens: list[int] = [0]
        self.running = 0
        # The instants at which runs were triggered, and whether the instance rests for its user.
        self.triggered: set[datetime] = set()
        self.paused = False
        # For the engine, a broken promise would be a failure like any other.
        self.broken: list[AssertionError] = []

    async def body(self, context: Context) -> None:
        now = self.bench.clock.now()
        try:
            self._check(context, now)
        except AssertionError as error:
            self.broken.append(error)
        self.ids.add(context.execution_id)
        self.tokens.append(context.fencing_token)
        self.running += 1
        try:
            await self._act(context)
        finally:
            self.running -= 1
            took = self.bench.clock.now() - now
            if took > (self.plan.options["timeout"] or SLOW):
                self.broken.append(AssertionError(f"it ran for {took}"))

    async def _act(self, context: Context) -> None:
        match self.acts.pop(0) if self.acts else "done":
            case "fails":
                raise ValueError("no")
            case "slow":
                await self.bench.clock.sleep(SLOW.total_seconds())
            case "again":
                raise RetryIn(HOUR)
            case "again, free":
                raise RetryIn(HOUR, free=True)
            case "skips":
                raise Skip("nothing to do")
            case "gives up":
                raise GiveUp("no use")
            case "triggers itself":
                with suppress(TaskNotFoundError):  # at most once: it was the last run
                    await self.trigger(context.app_context)
            case _:
                pass

    def _check(self, context: Context, now: datetime) -> None:
        options, planned = self.plan.options, context.scheduled_at
        assert planned <= now, "nothing runs early"
        first = context.execution_id not in self.ids
        if planned not in self.triggered:
            if self.plan.schedule is OFTEN:
                assert (planned - START) % (6 * HOUR) == timedelta(), "it is planned by its grid"
            if self.plan.schedule is ON_EVEN_DAYS:
                assert not odd(planned.date()), "the calendar excludes it"
            if first and options["misfire_grace"] is not None:
                assert now - planned <= GRACE, "it is too late"
            assert not self.paused, "what is paused does not start"
        assert context.fencing_token > self.tokens[-1]
        if options["execution_mode"] is ExecutionMode.AT_MOST_ONCE:
            assert first
            assert context.attempt == 1
        else:
            assert not self.running, "one record never runs twice at once"
        if (retry := options.get("retry")) is not None:
            assert context.attempt <= retry.attempts

    async def trigger(self, context: PyncetteContext) -> None:
        now = self.bench.clock.now()
        # Noted before the call, since the run may begin before the call returns.
        instants = {now + timedelta(microseconds=shift) for shift in range(20)} - self.triggered
        self.triggered |= instants
        if not await context.trigger(self.job, "a"):
            self.triggered -= instants

    async def call(self, context: PyncetteContext, name: str) -> None:
        there = await context.get_task(self.job, "a")
        if there is None and name in ("pause", "resume", "trigger"):
            with pytest.raises(TaskNotFoundError):
                await getattr(context, name)(self.job, "a")
            return
        match name:
            case "pause":
                await context.pause(self.job, "a")
                after = await context.get_task(self.job, "a")
                self.paused = after is not None and after.state in ("paused", "running")
            case "resume":
                await context.resume(self.job, "a")
                self.paused = False
            case "trigger":
                await self.trigger(context)
                self.paused = self.paused and there is not None and there.state != "parked"
            case "unschedule" | "force" if self.running:
                pass  # its execution would run on beside the new one
            case "unschedule":
                await context.unschedule_task(self.job, "a")
                self.paused = False
            case "retry":
                if await context.retry_parked(self.job, "a"):
                    self.paused = False
            case "drop":
                await context.drop_parked(self.job, "a")
            case _:
                await self.schedule(context, name)
                self.paused = self.paused and there is not None and name != "force"

    async def schedule(self, context: PyncetteContext, how: str) -> None:
        options: dict[str, Any] = {"schedule": self.plan.schedule}
        options |= {"force": True} if how == "force" else {"on_existing": OnExisting(how)}
        if self.plan.schedule is OFTEN or self.plan.schedule is ON_EVEN_DAYS:
            await self._accepted(context, options)
        elif self.bench.clock.now() < START + 5 * HOUR:
            await self._accepted(context, options)  # later it would be late from the beginning

    async def _accepted(self, context: PyncetteContext, options: dict[str, Any]) -> None:
        with suppress(TaskLockedException, TaskExistsError):
            await context.schedule_task(self.job, "a", **options)

    async def live(self) -> None:
        """What the plan says, call by call; then all is left alone for some days."""
        clock = self.bench.clock
        async with self.bench.running() as context:
            await self.schedule(context, "sooner")
            for hours, name in self.plan.calls:
                await clock.advance(hours * HOUR)
                await self.call(context, name)
                await clock.settle()
            if await context.get_task(self.job, "a") is not None:
                await self.call(context, "resume")
            await clock.advance(5 * timedelta(days=1))
            self.job.enabled = False
            await clock.advance(SLOW)
            state = await context.get_task(self.job, "a")
            if state is None or state.state in ("parked", "finished", "paused"):
                return
            assert state.next is not None
            assert state.next > clock.now() - SLOW, "nothing is behind, or stuck"


@settings(max_examples=60, derandomize=True, deadline=None)
@given(plans())
def test_whatever_options_and_calls_come_together_each_run_is_as_it_was_promised(
    plan: Plan,
) -> None:
    world = World(plan)
    run(world.live())
    if world.broken:
        raise world.broken[0]
