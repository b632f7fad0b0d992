"""Named histories, and which lines of the sources are reached.

A history has the name ``scenario: NAME, seed N`` or ``PROFILE, seed N``. A history that does not
reach the line of a mutant cannot catch it, so ``tests.simulation.mutate`` runs only the others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import CodeType, FrameType
from typing import Any

from tests.simulation.plan import PROFILES, Plan, draw
from tests.simulation.scenarios import scenarios


def names(seeds: int, scenario_seeds: int) -> list[str]:
    """The list: so many seeds of each scenario and of each profile."""
    return [
        *(
            f"scenario: {name}, seed {seed}"
            for seed in range(scenario_seeds)
            for name, _ in scenarios()
        ),
        *(f"{profile}, seed {seed}" for seed in range(seeds) for profile in PROFILES),
    ]


def plan_of(name: str, known: dict[str, Plan] | None = None) -> Plan:
    """The plan of a named history."""
    kind, _, seed = name.rpartition(", seed ")
    if not kind.startswith("scenario: "):
        return draw(int(seed), kind)
    if known is None:
        known = known_plans()
    return replace(known[kind.removeprefix("scenario: ")], seed=int(seed))


def known_plans() -> dict[str, Plan]:
    """The plans of all scenarios."""
    return {name: scenario.plan for name, scenario in scenarios()}


# Which lines are reached.


class Reached:
    """The lines that are run, of some files."""

    def __init__(self, files: dict[str, str]) -> None:
        """Watches these files: their absolute path, and the name to report them by."""
        self._files = files
        self._lines: set[tuple[str, int]] = set()

    def of(self, run: Callable[[], object]) -> dict[str, list[int]]:
        """The lines that a call reaches, by file."""
        self._lines = set()
        self._watch(run)
        found: dict[str, list[int]] = {}
        for path, line in sorted(self._lines):
            found.setdefault(self._files[path], []).append(line)
        return found

    if sys.version_info >= (3, 12):

        def _watch(self, run: Callable[[], object]) -> None:
            monitoring = sys.monitoring
            tool, event = monitoring.COVERAGE_ID, monitoring.events.LINE

            def reached(code: CodeType, line: int) -> Any:
                if code.co_filename in self._files:
                    self._lines.add((code.co_filename, line))
                return monitoring.DISABLE

            monitoring.use_tool_id(tool, "survey")
            monitoring.register_callback(tool, event, reached)
            monitoring.set_events(tool, event)
            monitoring.restart_events()
            try:
                run()
            finally:
                monitoring.set_events(tool, 0)
                monitoring.free_tool_id(tool)

    else:

        def _watch(self, run: Callable[[], object]) -> None:
            def called(frame: FrameType, event: str, value: Any) -> Any:
                return within if frame.f_code.co_filename in self._files else None

            def within(frame: FrameType, event: str, value: Any) -> Any:
                self._lines.add((frame.f_code.co_filename, frame.f_lineno))
                return within

            sys.settrace(called)
            try:
                run()
            finally:
                sys.settrace(None)
