"""The real engine in a simulated world: thousands of seeds, each with a history of its own.

``PYNCETTE_TEST_SIMULATION_SEEDS`` says how many seeds of each profile are run.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.simulation.checker import check
from tests.simulation.plan import PROFILES, draw
from tests.simulation.shrinking import report, shrink
from tests.simulation.simulation import simulate

pytestmark = pytest.mark.exhaustive

SEEDS = int(os.environ.get("PYNCETTE_TEST_SIMULATION_SEEDS", "200"))
CHUNK = 50
"""Seeds in one test: small enough that two processes end at the same time."""


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
@pytest.mark.parametrize("profile", PROFILES)
def test_every_promise_holds_in_every_history(profile: str, first: int) -> None:
    for seed in range(first, min(first + CHUNK, SEEDS)):
        plan = draw(seed, profile)
        violations = check(plan, simulate(plan))
        if violations:
            plan = shrink(plan, violations[0].promise)
            history = simulate(plan)
            pytest.fail(report(plan, history, check(plan, history)), pytrace=False)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_seed_replays_exactly(profile: str) -> None:
    for seed in range(3):
        first, second = (simulate(draw(seed, profile)).lines(calls=True) for _ in range(2))
        assert first == second


def test_a_seed_replays_exactly_in_another_process() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--calls", "--seeds", "3-5"]
    outputs = {
        subprocess.run(
            [*command, "--profile", "rough", "--no-shrink"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=False,
            text=True,
            timeout=120,
        ).stdout.rpartition("\n1")[0]
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1
