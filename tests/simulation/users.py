"""What runs on the real engine in a simulation: bodies of tasks, and calls of users.

Both are written against the public interface alone, and note what they see in the history.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextvars import ContextVar, copy_context
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any, Final, NoReturn, Self

from tests.simulation.history import EPOCH
from tests.simulation.plan import Action, Day, Manner, Plan, Powers, TaskPlan, What
from tests.simulation.world import USER, World

from pyncette import (
    CatchUp,
    Context,
    ExecutionMode,
    GiveUp,
    OnExisting,
    Overlap,
    Partitions,
    PerWorker,
    Pyncette,
    PyncetteContext,
    Retry,
    RetryIn,
    Skip,
)
from pyncette.clock import from_microseconds, to_microseconds
from pyncette.errors import (
    LeaseLostException,
    PyncetteException,
    StoreError,
    TaskLockedException,
    TaskNotFoundError,
    TaskPausedError,
)
from pyncette.events import Behind
from pyncette.executor import DefaultExecutor, SynchronousExecutor
from pyncette.schedule import Calendar, Every, Schedule
from pyncette.task import PartitionedTask, Task

LONG_S: Final = 4.0
"""The longest that a body takes by itself."""


RUN: ContextVar[str | None] = ContextVar("run", default=None)
"""Set by each body: the next one must not see it."""


class Unprintable(Exception):  # noqa: N818
    """Cannot be printed."""

    def __str__(self) -> NoReturn:
        raise RuntimeError("no words for it")

    __repr__ = __str__


class OfNoKind(BaseException):
    """An exception that is no ``Exception``."""


CALENDAR: Final = "closed"
CLOSED: Final = {Day.BEFORE: "closed-before", Day.AFTER: "closed-after"}
ZONE: Final = "+11:59"
"""In this zone it is a minute to midnight at the epoch of the simulation."""
MIDNIGHT: Final = date(2026, 1, 6)
"""The day that begins then."""


def schedule_of(task: TaskPlan, plan: Plan) -> Schedule:
    """The schedule of a task that has one of its own."""
    powers = task.powers
    assert powers is not None
    schedule: Schedule
    if powers.at_once:
        schedule = Every(timedelta(seconds=task.interval_s), at_once=True)
    else:
        first, *others = (
            Every(timedelta(seconds=step_s), anchor=instant(anchor_s, plan))
            for step_s, anchor_s in powers.rhythms
        )
        schedule = first
        for other in others:
            schedule = schedule | other
    if powers.calendar:
        schedule = schedule - Calendar(CALENDAR)
    if powers.closed is not None:
        schedule = schedule - Calendar(CLOSED[powers.closed], ZONE)
    start, end = (
        None if bound is None else instant(bound, plan) for bound in (powers.start_s, powers.end_s)
    )
    if start is not None or end is not None:
        schedule = schedule.between(start, end)
    return schedule.with_jitter(timedelta(seconds=powers.wait_s))


def instant(seconds: float, plan: Plan) -> datetime:
    """So long after the store's clock began."""
    return from_microseconds(EPOCH + round((plan.clock_offset_s + seconds) * 1_000_000))


def options_of(powers: Powers) -> dict[str, Any]:
    """The options of a task, as they are declared."""
    options: dict[str, Any] = {}
    if powers.attempts:
        options["retry"] = Retry(
            attempts=powers.attempts,
            initial=timedelta(seconds=powers.initial_s),
            factor=powers.factor,
            maximum=timedelta(seconds=powers.maximum_s),
            jitter=powers.jitter,
            within=None if powers.within_s is None else timedelta(seconds=powers.within_s),
        )
    if powers.exhausted is not None:
        options["exhausted"] = powers.exhausted
    if powers.timeout_s is not None:
        options["timeout"] = timedelta(seconds=powers.timeout_s)
    if powers.heartbeat:
        options["heartbeat"] = True
    if powers.misfire_grace_s is not None:
        options["misfire_grace"] = timedelta(seconds=powers.misfire_grace_s)
    if powers.latest:
        options["catch_up"] = CatchUp.LATEST
    if powers.skip_overlap:
        options["overlap"] = Overlap.SKIP
    return options


class OwnExecutor:
    """As a program may bring one: two runs at once, others wait, and now and then it fails.

    When it is left, what waits is never begun.
    """

    RUNS_MAX: Final = 2

    def __init__(self, world: World, process: str, **configuration: Any) -> None:
        self._world = world
        self._process = process
        self._running: set[asyncio.Task[Any]] = set()
        self._waiting: deque[Coroutine[Any, Any, Any]] = deque()

    async def __aenter__(self) -> Self:
        self._context = copy_context()
        return self

    async def __aexit__(self, *exception: object) -> None:
        while self._waiting:
            self._waiting.popleft().close()
        while self._running:
            await asyncio.wait(self._running)

    async def spawn_task(self, work: Coroutine[Any, Any, Any]) -> None:
        draw = self._world.random("executor", self._process, self._world.serial("executor"))
        if draw.random() < 0.2 and self._world.loop.time() < self._world.plan.duration:
            raise RuntimeError("simulated: no room")
        self._waiting.append(work)
        self._begin()

    def _begin(self) -> None:
        while self._waiting and len(self._running) < self.RUNS_MAX:
            work = self._waiting.popleft()
            loop = asyncio.get_running_loop()
            task = loop.create_task(work, context=self._context.copy())
            self._running.add(task)
            task.add_done_callback(self._ended, context=self._context)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        self._begin()


class Apps:
    """Apps as one program would declare them, one for each process."""

    def __init__(self, world: World, kill: Callable[[str], None]) -> None:
        """Declares nothing yet.

        Args:
            world: Where they run.
            kill: Crashes a process.
        """
        self._world = world
        self._kill = kill
        self.open: dict[str, tuple[PyncetteContext, dict[str, Task]]] = {}
        self._begun: dict[tuple[Any, ...], int] = {}
        self._runs = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    def declare(self, process: str) -> tuple[Pyncette, dict[str, Task]]:
        """The app of a process."""
        plan = self._world.plan
        app = Pyncette(
            lambda **_: self._world.repository(process),
            partial(OwnExecutor, self._world, process)
            if plan.own_executor
            else SynchronousExecutor
            if plan.synchronous
            else DefaultExecutor,
            timedelta(seconds=plan.poll_s),
            clock=self._world.clock(process),
            worker_name=process,
            batch_size=plan.batch_size,
            concurrency_limit=plan.concurrency_limit,
            block_warning=None,  # no thread: a seed replays exactly
        )
        note = self._world.note

        async def fixture(context: PyncetteContext) -> AsyncIterator[None]:
            yield
            note(process, "fixture closed")

        app.use_fixture("used_by_bodies", fixture)
        if not process.startswith("w1."):

            def closed(day: date) -> bool:
                return False

            app.calendar(CALENDAR)(closed)
        app.calendar(CLOSED[Day.BEFORE])(lambda day: day == MIDNIGHT - timedelta(1))
        app.calendar(CLOSED[Day.AFTER])(lambda day: day == MIDNIGHT)
        app.on_event(
            lambda event: note(
                process, "behind", event.task, count=event.count, age=event.age.total_seconds()
            ),
            Behind,
        )
        if plan.middleware:

            async def middleware(
                context: Context, following: Callable[[], Awaitable[None]]
            ) -> None:
                await asyncio.sleep(0)
                await following()

            app.middleware(middleware)
        tasks = {}
        for task in plan.tasks:
            if not process.startswith(task.declared_by) and process != "users":
                continue
            if task.name in tasks:
                continue
            body = partial(self._body, process, task)
            options: dict[str, Any] = {
                "name": task.name,
                "lease_duration": timedelta(seconds=task.lease_s),
            }
            if task.limit is not None:
                options["limit"] = PerWorker(task.limit)
            powers = task.powers or Powers()
            options |= options_of(powers)
            if not powers.latest:
                options["fast_forward"] = task.fast_forward
            if task.at_most_once:
                options["execution_mode"] = ExecutionMode.AT_MOST_ONCE
            elif not powers.attempts:
                options["failure_mode"] = task.failure_mode
            if not task.dynamic:
                if powers.scheduled:
                    options["schedule"] = schedule_of(task, plan)
                else:
                    options["interval"] = timedelta(seconds=task.interval_s)
                # A list, which every run finds empty, although each appends to it.
                declared = app.task(marks=[], **options)(body)
            elif task.partitions is not None:
                if task.shared:
                    options["partitions"] = Partitions.SHARED
                declared = app.partitioned_task(task.partitions, **options)(body)
            else:
                declared = app.dynamic_task(**options)(body)
            tasks[task.name] = declared
        return app, tasks

    # Bodies.

    async def _body(self, process: str, task: TaskPlan, context: Context) -> None:
        world = self._world
        self._look_for_others(process, context)
        call = context.args.get("call", 0)
        scheduled_at = to_microseconds(context.scheduled_at)
        instance = context.task.name
        subject = f"{task.name}/{instance}" if task.dynamic else task.name
        occurrence = (subject, call, scheduled_at)
        attempt = self._begun[occurrence] = self._begun.get(occurrence, 0) + 1
        random = world.random("body", *occurrence, attempt)
        manner = random.choice(task.manners or world.plan.manners)
        if world.loop.time() >= world.plan.duration:
            manner = Manner.RETURN
        self._runs += 1
        run = self._runs
        note = partial(world.note, process, subject=subject, run=run)
        # No public name says these. Without the one, a run that a user triggered cannot be told
        # from one that is not on the grid; without the other, two runs of one process that were
        # claimed one after the other, and began in another order, cannot be told apart.
        reading = context._execution.reading
        triggered = reading.progress.triggered is not None
        details: dict[str, Any] = {"triggered": True} if triggered else {}
        note(
            "start",
            call=call,
            planned=scheduled_at,
            attempt=attempt,
            manner=str(manner),
            token=reading.record.token,
            **details,
        )
        try:
            await self._behave(manner, process, task, context, random.random())
        except asyncio.CancelledError:
            note("cancelled")
            raise
        except BaseException as error:
            more: dict[str, Any] = {}
            if isinstance(error, RetryIn):
                more = {"delay": error.delay.total_seconds(), "free": error.free}
            note("raise", error=type(error).__name__, **more)
            raise
        note("end")

    def _look_for_others(self, process: str, context: Context) -> None:
        """Notes what another run has left for this one."""
        task = asyncio.current_task()
        marks = context.args.get("marks", [])
        left = [*marks]
        marks.append("a run")
        if RUN.get() is not None and not self._world.plan.synchronous:
            left.append("a context variable")
        RUN.set(process)
        if not self._world.plan.synchronous:
            if task in self._tasks:
                left.append("its asyncio task")
            if task is not None:
                self._tasks.add(task)
        if left:
            self._world.note(process, "crossed", context.task.name, what=", ".join(left))

    async def _behave(
        self, manner: Manner, process: str, task: TaskPlan, context: Context, draw: float
    ) -> None:
        sleep = context.app_context.clock.sleep
        match manner:
            case Manner.RETURN:
                pass
            case Manner.YIELD:
                await asyncio.sleep(0)
            case Manner.SLEEP:
                await sleep(0.01 + draw * 0.5)
            case Manner.EVENT:
                event = asyncio.Event()
                loop = self._world.loop
                loop.call_later(draw, event.set)
                await event.wait()
            case Manner.LONG:
                await sleep(min(task.lease_s * 3 * draw, LONG_S))
            case Manner.OUTLIVE:
                await sleep(task.lease_s * 5.5)
            case Manner.LONG_HEARTBEAT:
                left = min(task.lease_s * 3 * draw, LONG_S)
                while left > 0:
                    await sleep(min(task.lease_s / 3, left))
                    left -= task.lease_s / 3
                    await self._heartbeat(process, context)
            case Manner.SHORT_HEARTBEAT:
                await self._heartbeat(process, context)
            case Manner.RAISE:
                await asyncio.sleep(draw * 0.1)
                raise ValueError("simulated")
            case Manner.RAISE_BASE:
                raise OfNoKind
            case Manner.RAISE_UNPRINTABLE:
                raise Unprintable
            case Manner.RAISE_CANCELLED:
                raise asyncio.CancelledError
            case Manner.RAISE_GENERATOR:
                raise GeneratorExit
            case Manner.EXIT:
                await asyncio.sleep(draw * 0.1)
                raise SystemExit(1)
            case Manner.RETRY_IN | Manner.RETRY_FREE:
                await asyncio.sleep(draw * 0.1)
                seconds = 0.2 + draw
                raise RetryIn(timedelta(seconds=seconds), free=manner is Manner.RETRY_FREE)
            case Manner.GIVE_UP:
                raise GiveUp("simulated")
            case Manner.SKIP:
                raise Skip("simulated")
            case Manner.ENDLESS:
                await sleep(30.0)
            case Manner.SWALLOW:
                try:
                    await sleep(0.5 + draw)
                except asyncio.CancelledError:
                    # Not on the app's clock, which is slow while it makes up for a step.
                    await asyncio.sleep(draw)
            case Manner.KILL:
                self._kill(process)
                await asyncio.sleep(3600)
            case Manner.SCHEDULE_SELF | Manner.SCHEDULE_OTHER | Manner.UNSCHEDULE_SELF:
                await self._reschedule(manner, process, task, context, draw)

    async def _heartbeat(self, process: str, context: Context) -> None:
        before = USER.set("a heartbeat")
        try:
            await context.heartbeat()
        except LeaseLostException:
            self._world.note(process, "lease lost", context.task.name)
        except StoreError:
            self._world.note(process, "no heartbeat", context.task.name)
        else:
            self._world.note(process, "heartbeat", context.task.name)
        finally:
            USER.reset(before)

    async def _reschedule(
        self, manner: Manner, process: str, task: TaskPlan, context: Context, draw: float
    ) -> None:
        dynamic = [
            other for other in self._world.plan.tasks if other.dynamic and other.powers is None
        ]
        if manner is not Manner.SCHEDULE_OTHER and not task.dynamic:
            return
        if manner is Manner.SCHEDULE_OTHER:
            task = dynamic[int(draw * len(dynamic))]
        name = context.task.name if manner is not Manner.SCHEDULE_OTHER else "other"
        await self.act(
            Action(
                0,
                1_000 + self._world.serial("call of a body"),
                What.UNSCHEDULE if manner is Manner.UNSCHEDULE_SELF else What.SCHEDULE,
                task.name,
                name,
                delay_s=draw * 5,
                process=process,
            )
        )

    # Users.

    async def list_workers(self) -> None:
        """Notes which workers a user is told of."""
        context, _ = self.open["users"]
        names = sorted(state.name for state in await context.workers())
        self._world.note("users", "workers", names=names)

    async def act(self, action: Action) -> None:
        """Makes a call, and notes what came of it."""
        world = self._world
        opened = self.open.get(action.process) or self.open.get("users")
        if opened is None:
            return
        context, tasks = opened
        task, what = tasks[action.task], action.what
        subject = f"{action.task}/{action.instance}" if action.instance else action.task
        options: dict[str, Any] = {}
        due = None
        if action.interval_s is not None:
            options["interval"] = timedelta(seconds=action.interval_s)
        elif action.delay_s is not None:
            due = world.store_time() + round(action.delay_s * 1_000_000)
            options["until" if what is What.PAUSE else "execute_at"] = from_microseconds(due)
        declared = world.plan.task(action.task)
        powers = declared.powers
        if not options and powers is not None and powers.scheduled and what.schedules:
            options["schedule"] = schedule_of(declared, world.plan)
        size = declared.args_bytes
        if size and not what.steers:
            options["filler"] = "x" * size
        process = action.process if action.process in self.open else "users"
        world.note(
            process,
            f"{what}…",
            subject,
            call=action.call,
            **({"interval": action.interval_s} if action.interval_s else {}),
            **({"at": due} if due else {}),
        )
        answer = "?"
        details: dict[str, Any] = {}
        before = USER.set(f"call {action.call}")
        try:
            if what.steers:
                details = await self._steer(context, task, action, options)
            elif what is What.UNSCHEDULE:
                await context.unschedule_task(task, action.instance)
            else:
                if what is What.REPLACE:
                    options["on_existing"] = OnExisting.REPLACE
                await context.schedule_task(
                    task, action.instance, what is What.FORCE, call=action.call, **options
                )
            answer = "ok"
        except TaskLockedException:
            answer = "locked"
        except TaskNotFoundError:
            answer = "absent"
        except TaskPausedError:
            answer = "paused"
        except StoreError:
            answer = "unknown"
        except Exception as error:
            # An end of a pause that is past when the call is made, by the clock of a process that
            # is off or was frozen.
            # So may be the end of a schedule.
            late = isinstance(error, ValueError) and (
                "must lie in the future" in str(error) or "would never run" in str(error)
            )
            answer = "late" if late else f"error {error!r}"
        finally:
            USER.reset(before)
            # Also when it was cancelled: what became of it is then unknown.
            world.note(process, f"{what}", subject, call=action.call, answer=answer, **details)

    async def _steer(
        self, context: PyncetteContext, task: Task, action: Action, options: dict[str, Any]
    ) -> dict[str, Any]:
        name, world = action.instance or None, self._world
        match action.what:
            case What.PAUSE:
                await context.pause(task, name, **options)
            case What.RESUME:
                await context.resume(task, name)
            case What.REBALANCE:
                assert isinstance(task, PartitionedTask)
                try:
                    await context.rebalance(task, action.partition_count)
                except StoreError:
                    raise
                except PyncetteException as error:
                    return {"refused": str(error)}
            case What.RERUN if name is None and world.plan.task(action.task).dynamic:
                result = await context.retry_parked_tasks(task)
                return {"updated": result.updated, "failed": result.failed}
            case What.RERUN:
                return {"added": await context.retry_parked(task, name)}
            case _:
                return {"added": await context.trigger(task, name)}
        return {}
