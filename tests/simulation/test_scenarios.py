"""Every row of the failure table, and every history that one process can hold, on the real engine.

Each scenario is run with several seeds, which draw the order of callbacks and the travel times.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from tests.simulation.checker import check
from tests.simulation.scenarios import Scenario, scenarios
from tests.simulation.shrinking import report
from tests.simulation.simulation import simulate

pytestmark = pytest.mark.exhaustive

SEEDS = int(os.environ.get("PYNCETTE_TEST_SCENARIO_SEEDS", "4"))

SCENARIOS = dict(scenarios())


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_promise_holds_when(name: str) -> None:
    scenario: Scenario = SCENARIOS[name]
    seen = False
    for seed in range(SEEDS):
        plan = replace(scenario.plan, seed=seed)
        history = simulate(plan)
        violations = check(plan, history)
        if violations:
            pytest.fail(report(plan, history, violations), pytrace=False)
        seen = seen or scenario.seen(history)
    assert seen, "the scenario shows nothing of what it is named after"
