"""Makes a failing plan short, and prints it with its history."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from enum import Enum
from typing import Any, Final

from tests.simulation.checker import Promise, Violation, check
from tests.simulation.history import History
from tests.simulation.plan import Death, Manner, Plan
from tests.simulation.simulation import simulate

TRIES_MAX: Final = 250
LINES_MAX: Final = 120

_LISTS: Final = ("faults", "actions", "lives", "clocks", "tasks")


def failures(plan: Plan) -> list[Violation]:
    """The promises that a plan breaks."""
    return check(plan, simulate(plan))


def shrink(
    plan: Plan, promise: Promise, broken: Callable[[Plan], list[Violation]] = failures
) -> Plan:
    """A plan that breaks the same promise, with as little in it as was found.

    Args:
        plan: One that breaks it.
        promise: What is broken.
        broken: Tells what a plan breaks.
    """
    tries = 0
    progress = True
    while progress:
        progress = False
        for simpler in _simpler(plan):
            tries += 1
            if tries > TRIES_MAX:
                return plan
            if any(violation.promise is promise for violation in broken(simpler)):
                plan, progress = simpler, True
                break
    return plan


def _simpler(plan: Plan) -> Iterator[Plan]:
    """Plans with less in them, those with much less first."""
    for name in _LISTS:
        items = getattr(plan, name)
        size = len(items)
        while size >= 1:
            for start in range(0, len(items), size):
                left = items[:start] + items[start + size :]
                if size < len(items) or name in ("faults", "clocks"):
                    smaller = replace(plan, **{name: left})
                    if name == "tasks":
                        smaller = _of_tasks(smaller)
                    # Without the last worker nothing would have to run at the end.
                    if smaller.tasks and smaller.lives[-1:] == plan.lives[-1:]:
                        yield smaller
            size //= 2
    for changes in (
        {"middleware": False},
        {"eager": False},
        {"synchronous": False},
        {"own_executor": False},
        {"batch_size": 100},
        {"concurrency_limit": 100},
        {"latency_s": 0.002},
        {"store_offset_s": 0.0},
        {"store_clock": False},
        {"poll_s": 1.0},
    ):
        if any(getattr(plan, name) != value for name, value in changes.items()):
            yield replace(plan, **changes)
    for manner in dict.fromkeys(plan.manners):
        if manner is not Manner.RETURN:
            left = tuple(other for other in plan.manners if other is not manner)
            yield replace(plan, manners=left or (Manner.RETURN,))
    for number, life in enumerate(plan.lives):
        if life.end is not None and life.how is not Death.SHUTDOWN:
            lives = list(plan.lives)
            lives[number] = life._replace(end=None, how=Death.SHUTDOWN)
            yield replace(plan, lives=tuple(lives))
    for number, action in enumerate(plan.actions):
        if action.process != "users":
            actions = list(plan.actions)
            actions[number] = action._replace(process="users")
            yield replace(plan, actions=tuple(actions))
    for number, task in enumerate(plan.tasks):
        for simple in (task._replace(partitions=None), task._replace(fast_forward=False)):
            if simple != task:
                tasks = list(plan.tasks)
                tasks[number] = simple
                yield replace(plan, tasks=tuple(tasks))


def _of_tasks(plan: Plan) -> Plan:
    names = {task.name for task in plan.tasks}
    return replace(plan, actions=tuple(action for action in plan.actions if action.task in names))


# For a reader.


def report(plan: Plan, history: History, violations: list[Violation]) -> str:
    """A failing plan: what is broken, the plan as code, and what happened."""
    until = violations[0].time + 0.05 if violations else plan.end
    lines = [event.line() for event in history if event.kind != "call" and event.time <= until]
    left_out = len(lines) - LINES_MAX
    if left_out > 0:
        lines = [*lines[:20], f"… {left_out} lines …", *lines[-(LINES_MAX - 20) :]]
    return "\n".join(
        [
            f"Seed {plan.seed} of profile {plan.profile!r} breaks:",
            *(f"    {violation}" for violation in violations[:10]),
            "",
            code(plan),
            "",
            *lines,
        ]
    )


def code(plan: Plan) -> str:
    """A plan as Python."""
    defaults = Plan(plan.seed)
    parts = [f"seed={plan.seed}"]
    for field in fields(plan):
        value = getattr(plan, field.name)
        if field.name != "seed" and value != getattr(defaults, field.name):
            parts.append(f"{field.name}={_code(value)}")
    return "Plan(\n    " + ",\n    ".join(parts) + ",\n)"


def _code(value: Any) -> str:
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        defaults: dict[str, Any] = value._field_defaults  # type: ignore[attr-defined]
        given = (
            f"{name}={_code(item)}"
            for name, item in zip(value._fields, value, strict=True)
            if name not in defaults or defaults[name] != item
        )
        return f"{type(value).__name__}({', '.join(given)})"
    if isinstance(value, tuple):
        inner = ",\n        ".join(map(_code, value))
        return f"(\n        {inner},\n    )"
    return repr(round(value, 6)) if isinstance(value, float) else repr(value)
