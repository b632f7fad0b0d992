"""Runs a plan: the real engine, several times over, in a simulated world."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, Final

from tests.simulation.event_loop import WORLD, SimulatedLoop, Stuck
from tests.simulation.history import History
from tests.simulation.plan import Death, Kind, Life, Plan
from tests.simulation.users import Apps
from tests.simulation.world import World, subject

import pyncette.clock
from pyncette import chance
from pyncette.engine.moves import in_transit
from pyncette.errors import StoreError, describe
from pyncette.store.record import Record, load_progress

CLOSING_S = 120.0
"""After so long the simulation does not wait any more for workers to close."""

ALONE_S: Final = 6.0
"""For so long before its end those workers that went through the faults are alone."""


def simulate(plan: Plan, shuffled: bool = False) -> History:
    """What happens in a plan.

    Args:
        plan: The plan.
        shuffled: Shuffle the callbacks of one process, too; see ``SimulatedLoop``.
    """
    with _quiet():
        history = _simulate(plan, shuffled)
        # What was crashed is taken away here, where nobody listens to its last words.
        gc.collect()
    return history


def _simulate(plan: Plan, shuffled: bool) -> History:
    # What needs a real system is not there.
    loop = SimulatedLoop(  # type: ignore[abstract]
        Random(f"order:{plan.seed}"), shuffled
    )
    world = World(plan, loop)
    if plan.eager and sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)
    module: Any = pyncette.clock
    monotonic, module._monotonic = module._monotonic, loop.time
    try:
        with chance.use(Random(f"chance:{plan.seed}")):
            try:
                loop.run_until_complete(loop.start(WORLD, _Director(world).direct(), "director"))
            except Stuck as stuck:
                world.note(WORLD, "stuck", what=str(stuck))
            _last_look(world)
            world.history.closed = True
            loop.close()
    finally:
        module._monotonic = monotonic
    return world.history


@contextmanager
def _quiet() -> Iterator[None]:
    """No log, no word from what was crashed, and no garbage collection at other moments."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    collecting = gc.isenabled()
    gc.disable()
    gc.freeze()  # so that only what the simulation has made is looked at after it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.unfreeze()
        logging.disable(level)
        sys.unraisablehook = hook
        if collecting:
            gc.enable()


def _last_look(world: World) -> None:
    for process, error in world.loop.unretrieved():
        if world.loop.alive(process):
            world.note(process, "unretrieved", error=describe(error))  # it may not be printable
    for context in world.loop.errors:
        world.note(
            WORLD,
            "unhandled",
            what=context.get("message"),
            error=repr(context.get("exception")),
        )


def _shown(record: Record) -> dict[str, Any]:
    """What users are shown of how a record stands."""
    try:
        progress = load_progress(record.progress)
    except ValueError:
        return {}
    return {
        "planned": progress.planned,
        "skipped": progress.skipped,
        "error": progress.error,
    }


class _Director:
    """Carries out a plan."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._loop = world.loop
        self._apps = Apps(world, self._crash)
        world.loop.on_exit = self._crash
        self._stops: dict[str, list[Any]] = {}
        self._mains: dict[str, asyncio.Task[Any]] = {}
        self._calls: list[asyncio.Task[Any]] = []
        self._told: set[str] = set()

    async def direct(self) -> None:
        plan, loop, world = self._world.plan, self._loop, self._world
        for fault in plan.faults:
            self._arrange(fault)
        self._start(Life("users", 0.0))
        for life in plan.lives:
            loop.at(life.start, self._start, life)
        for action in plan.actions:
            loop.at(action.at, self._act, action)
        loop.at(plan.end - ALONE_S, self._leave_alone)
        await asyncio.sleep(plan.end)
        self._look()
        if not plan.faults:
            await asyncio.wait([loop.start("users", self._apps.list_workers(), "list workers")])
        world.note(WORLD, "closing")
        for process in self._mains:
            self._ask_to_stop(process, Death.SHUTDOWN)
        left = [main for process, main in self._mains.items() if loop.alive(process)]
        await asyncio.wait(left, timeout=CLOSING_S)
        for process, main in self._mains.items():
            if loop.alive(process) and not main.done():
                world.note(process, "never closed")
        await asyncio.sleep(1.0)

    def _arrange(self, fault: Any) -> None:
        loop, world = self._loop, self._world
        at = loop.at

        def tell() -> None:
            world.note(
                fault.process or WORLD,
                "fault",
                what=str(fault.kind),
                seconds=round(fault.length, 4),
                strength=fault.strength,
            )

        at(fault.start, tell)
        match fault.kind:
            case Kind.FREEZE:
                at(fault.start, loop.freeze, fault.process)
                at(fault.end, loop.thaw, fault.process)
                at(fault.end, world.note, fault.process, "thawed")
            case Kind.STEP_WALL:
                at(fault.start, world.step, fault.process, fault.strength)
            case Kind.STEP_STORE:
                at(fault.start, world.step, "store", fault.strength)
            case Kind.RESTART:
                at(fault.start, world.store.restart)
            case Kind.EDIT:
                at(fault.start, world.store.edit, fault.only, fault.how)
            case Kind.RESTORE:
                at(max(fault.start - fault.length, 0.0), world.store.save)
                at(fault.start, world.store.restore)

    def _leave_alone(self) -> None:
        """The last worker leaves: those that went through the faults must do without it."""
        tasks = self._world.plan.tasks

        def does_all(process: str) -> bool:
            return all(
                process.startswith(task.declared_by)
                for task in tasks
                if "last".startswith(task.declared_by)
            )

        others = [process for process in self._apps.open if process not in ("users", "last")]
        if any(does_all(process) for process in others if process not in self._told):
            self._ask_to_stop("last", Death.SHUTDOWN)

    # Processes.

    def _start(self, life: Life) -> None:
        self._stops[life.process] = [asyncio.Event(), None]
        main = self._loop.start(life.process, self._live(life), f"main of {life.process}")
        self._mains[life.process] = main
        main.add_done_callback(lambda main: self._ended(life.process, main))
        if life.end is not None:
            self._loop.at(life.end, self._ask_to_stop, life.process, life.how)

    async def _live(self, life: Life) -> None:
        """What a program does with an app."""
        world, process = self._world, life.process
        app, tasks = self._apps.declare(process)
        stopped: asyncio.Event = self._stops[process][0]
        while not stopped.is_set():
            world.note(process, "opening")
            try:
                async with app.create() as context:
                    self._apps.open[process] = (context, tasks)
                    self._stops[process][1] = context
                    world.note(process, "opened")
                    try:
                        if process == "users":
                            await stopped.wait()
                        elif stopped.is_set():
                            pass
                        elif life.how is Death.CANCEL_AND_LEAVE:
                            running = asyncio.create_task(context.run(), name="run")
                            await asyncio.wait(
                                [running, asyncio.ensure_future(stopped.wait())],
                                return_when=asyncio.FIRST_COMPLETED,
                            )
                            if stopped.is_set():
                                running.cancel()
                        else:
                            await context.run()
                            world.note(process, "run returned")
                    finally:
                        self._apps.open.pop(process, None)
                        world.note(process, "leaving")
                return
            except StoreError as error:
                # Opening failed: whatever watches over the process starts it again.
                world.note(process, "not opened", error=type(error).__name__)
                await asyncio.sleep(1.0)

    def _ask_to_stop(self, process: str, how: Death) -> None:
        world, main = self._world, self._mains.get(process)
        if main is None or main.done() or not self._loop.alive(process):
            return
        if how is Death.CRASH:
            self._crash(process)
            return
        self._told.add(process)
        world.note(process, "told to stop", how=str(how))
        stops = self._stops[process]

        async def stop() -> None:
            stops[0].set()
            if how in (Death.CANCEL, Death.CANCEL_TWICE):
                main.cancel()
                if how is Death.CANCEL_TWICE:
                    await asyncio.sleep(world.random("twice", process).choice((0, 0.001, 0.5)))
                    main.cancel()
            elif stops[1] is not None and how in (Death.SHUTDOWN, Death.CANCEL_CLOSING):
                stops[1].shutdown()
            if how is Death.CANCEL_CLOSING:
                await asyncio.sleep(world.random("closing", process).choice((0.01, 0.1, 0.5)))
                if not main.done():
                    world.note(process, "told to stop", how="cancel while it closes")
                    main.cancel()

        self._loop.start(process, stop(), "stop")

    def _crash(self, process: str) -> None:
        self._world.note(process, "crash")
        self._loop.crash(process)
        self._apps.open.pop(process, None)

    def _ended(self, process: str, main: asyncio.Task[Any]) -> None:
        error = None if main.cancelled() else main.exception()
        self._world.note(
            process, "closed", how="cancelled" if main.cancelled() else repr(error or "ok")
        )
        self._loop.at(self._loop.time() + 0.01, self._look_for_strays, process)

    def _look_for_strays(self, process: str) -> None:
        names = sorted(
            task.get_name()
            for task in self._loop.tasks_of(process)
            if task.get_name() not in ("stop", "simulated notification", "call of a user")
        )
        if names and not self._world.history.closed:
            self._world.note(process, "left behind", tasks=", ".join(names))

    # Users.

    def _act(self, action: Any) -> None:
        process = action.process if action.process in self._apps.open else "users"
        if process not in self._apps.open:
            return
        act = self._apps.act(action._replace(process=process))
        self._calls.append(self._loop.start(process, act, "call of a user"))

    # The end.

    def _look(self) -> None:
        """What is there when everything has settled."""
        world = self._world
        for (group, key), record in sorted(world.store.records.items()):
            if in_transit(record):
                continue  # no user sees it
            world.note(
                WORLD,
                "record",
                subject(group, key),
                state=str(record.state),
                due=record.due_at,
                unfinished=record.unfinished_attempts,
                **_shown(record),
            )
        for process, (context, _) in sorted(self._apps.open.items()):
            if process != "users":
                age = (context.clock.now() - context.last_tick).total_seconds()
                world.note(process, "last tick", age=round(age, 4))
