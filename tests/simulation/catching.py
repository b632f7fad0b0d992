"""Named histories, and how a mutant is held against them: the cheapest and likeliest first.

python -m tests.simulation.catching --survey FILE   runs every history of the list, and writes which
                                                    lines of the sources each of them reaches
python -m tests.simulation.catching                 runs the histories named on the input, and stops
                                                    at the first that breaks a promise

A history has the name ``scenario: NAME, seed N`` or ``PROFILE, seed N``. A history that does not
reach the line of a mutant cannot catch it, so ``tests.simulation.mutate`` runs only the others.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from tests.simulation.checker import check
from tests.simulation.plan import PROFILES, Plan, draw
from tests.simulation.scenarios import scenarios
from tests.simulation.simulation import simulate

ENDLESS_S: Final = 6.0
"""A history that takes so long, in seconds of the processor, never ends. Usual are 0.1."""


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


def catch(wanted: Iterable[str]) -> tuple[str, str] | None:
    """The first history that breaks a promise, and the promise; None if all keep them."""
    known = known_plans()
    for name in wanted:
        plan = plan_of(name, known)
        with _ending(name):
            violations = check(plan, simulate(plan))
        if violations:
            return name, str(violations[0])
    return None


class _ending:  # noqa: N801
    """Ends the process if a history is endless: nothing in it may catch that."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        def ended(number: int, frame: FrameType | None) -> None:
            print(f"{self._name}\tdoes not end", flush=True)
            os._exit(1)

        signal.signal(signal.SIGVTALRM, ended)
        signal.setitimer(signal.ITIMER_VIRTUAL, ENDLESS_S)

    def __exit__(self, *error: object) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


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


def survey(wanted: list[str], root: Path, paths: list[str]) -> dict[str, Any]:
    """Runs every history: its duration, and the lines that it reaches.

    Raises:
        AssertionError: A history breaks a promise without any mutation.
    """
    reached = Reached({str(root / path): path for path in paths})
    known = known_plans()
    found: dict[str, Any] = {}
    for name in wanted:
        plan = plan_of(name, known)
        began = time.process_time()
        violations: list[Any] = []
        lines = reached.of(
            lambda plan=plan, violations=violations: violations.extend(  # type: ignore[misc]
                check(plan, simulate(plan))
            )
        )
        if violations:
            raise AssertionError(f"Without a mutation, too: {name}: {violations[0]}")
        found[name] = {"seconds": round(time.process_time() - began, 3), "lines": lines}
    return found


def main() -> int:
    """Returns 1 where a history breaks a promise."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.catching",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--survey", type=Path, help="write the survey to this file")
    parser.add_argument("--seeds", type=int, default=30, help="of each profile, in a survey")
    parser.add_argument("--scenario-seeds", type=int, default=2)
    parser.add_argument("--root", type=Path, default=Path.cwd())
    parser.add_argument("paths", nargs="*", help="the files whose lines matter")
    options = parser.parse_args()
    if options.survey is not None:
        wanted = names(options.seeds, options.scenario_seeds)
        options.survey.write_text(json.dumps(survey(wanted, options.root, options.paths)))
        return 0
    caught = catch([line.rstrip("\n") for line in sys.stdin])
    if caught is not None:
        print("\t".join(caught))
    return int(caught is not None)


if __name__ == "__main__":
    sys.exit(main())
