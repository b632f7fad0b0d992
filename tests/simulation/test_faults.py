"""Every fault that was mended is found when it is put back: docs/explanation/simulation.md."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.simulation.faults import ELSEWHERE, FAULTS, Fault, found_by, put_back, rows

pytestmark = pytest.mark.exhaustive

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.letter)
def test_a_fault_that_is_put_back_is_found(fault: Fault) -> None:
    if sys.version_info < fault.since:
        with put_back(fault):
            pytest.skip(f"Python {'.'.join(map(str, fault.since))} has what this is about")
    broken = {violation.promise for violation in found_by(fault, fault.history)}
    assert fault.promise in broken


@pytest.mark.parametrize("letter", ELSEWHERE)
def test_a_fault_that_needs_a_real_store_has_a_test(letter: str) -> None:
    path, _, name = ELSEWHERE[letter].partition("::")
    assert f"def {name}(" in (ROOT / path).read_text()


def test_the_documentation_lists_what_finds_each_fault() -> None:
    assert "\n".join(rows()) in (ROOT / "docs" / "explanation" / "simulation.md").read_text()
