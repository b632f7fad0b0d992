"""Runs many seeds, and prints those that break a promise, shrunk.

python -m tests.simulation --seeds 0-9999 --profile rough
python -m tests.simulation --minutes 120                     all profiles, in turn, from seed 0
python -m tests.simulation --seeds 17-17 --profile steps --calls    with each call to the store
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

from tests.simulation.checker import check
from tests.simulation.plan import PROFILES, draw
from tests.simulation.scenarios import scenarios
from tests.simulation.shrinking import report, shrink
from tests.simulation.simulation import simulate


def main() -> int:
    """Returns 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="", help="A-B, both included")
    parser.add_argument("--profile", choices=PROFILES, action="append")
    parser.add_argument("--minutes", type=float, help="stop after so many")
    parser.add_argument("--no-shrink", action="store_true", help="print failing seeds as they are")
    parser.add_argument("--calls", action="store_true", help="print the whole history of each seed")
    parser.add_argument("--failures", type=int, default=20, help="stop after so many")
    parser.add_argument(
        "--any", action="store_true", help="stop at the first failure, scenarios too"
    )
    parser.add_argument("--skip", default="", help="with --any: a scenario to leave out")
    options = parser.parse_args()
    if options.any:
        return _any(options.seeds, options.skip)
    profiles = options.profile or list(PROFILES)
    began, seeds, failing = time.monotonic(), 0, 0
    virtual_s = 0.0
    for seed in _seeds(options.seeds, options.minutes):
        for profile in profiles:
            plan = draw(seed, profile)
            history = simulate(plan)
            violations = check(plan, history)
            seeds += 1
            virtual_s += plan.end
            if options.calls:
                print("\n".join(history.lines(calls=True)))
            if violations:
                failing += 1
                if not options.no_shrink:
                    plan = shrink(plan, violations[0].promise)
                    history = simulate(plan)
                    violations = check(plan, history)
                print(report(plan, history, violations), "\n", flush=True)
        took = time.monotonic() - began
        if failing >= options.failures or (options.minutes and took > options.minutes * 60):
            break
    took = time.monotonic() - began
    print(
        f"{seeds} simulations, {virtual_s / 3600:.1f} hours of virtual time in {took:.0f} s; "
        f"{failing} broke a promise"
    )
    return 1 if failing else 0


def _any(seeds: str, skip: str) -> int:
    """Whether anything fails: what a mutant is looked at with."""
    for name, scenario in scenarios():
        if skip and skip in name:
            continue
        for seed in range(2):
            plan = replace(scenario.plan, seed=seed)
            if violations := check(plan, simulate(plan)):
                print(f"scenario {name!r}, seed {seed}: {violations[0]}")
                return 1
    for seed in _seeds(seeds, None):
        for profile in PROFILES:
            plan = draw(seed, profile)
            if violations := check(plan, simulate(plan)):
                print(f"seed {seed} of {profile}: {violations[0]}")
                return 1
    return 0


def _seeds(given: str, minutes: float | None) -> Iterator[int]:
    if given:
        first, _, last = given.partition("-")
        return iter(range(int(first), int(last or first) + 1))
    return count() if minutes else iter(range(200))


if __name__ == "__main__":
    sys.exit(main())
