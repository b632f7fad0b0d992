"""Mutants are what they say, and those that are known to survive still exist."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.simulation.mutants import Mutant, all_mutants
from tests.simulation.mutate import in_child
from tests.simulation.survivors import SURVIVORS, Survivor, rows

from pyncette.engine import rules
from pyncette.store.record import Record, State

pytestmark = pytest.mark.exhaustive

ROOT = Path(__file__).resolve().parents[2]

RUNNING = Record("g", "k", 15, 5, "t", State.RUNNING, 1, "", "", "")


@pytest.fixture(scope="module")
def found() -> list[Mutant]:
    return all_mutants()


def test_each_mutant_has_an_id_of_its_own(found: list[Mutant]) -> None:
    assert len({mutant.id for mutant in found}) == len(found) > 1_000


def test_a_mutant_is_in_force_in_its_child_alone(found: list[Mutant]) -> None:
    said = {
        mutant.what: in_child(mutant, lambda: str(rules.alive(RUNNING, 10)))
        for mutant in found
        if (mutant.module, mutant.function) == ("rules", "alive")
    }
    assert len(said) >= 5
    assert said["comparison negated"] == "False"
    assert said["without 'record.due_at > now'"] == "True"
    assert rules.alive(RUNNING, 10)


@pytest.mark.parametrize("survivor", SURVIVORS, ids=lambda survivor: survivor.function)
def test_what_is_known_to_survive_still_exists(survivor: Survivor, found: list[Mutant]) -> None:
    assert any(survivor.covers(mutant) for mutant in found)


def test_the_documentation_lists_what_survives_and_why() -> None:
    assert "\n".join(rows()) in (ROOT / "docs" / "explanation" / "simulation.md").read_text()
