"""What the scripts of Redis repeat, since they share nothing, is the same in all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pyncette.redis
from pyncette.redis import layout
from pyncette.store.rare import RARE_STATES

SCRIPTS = {
    name: (Path(pyncette.redis.__file__).parent / f"{name}.lua").read_text(encoding="utf-8")
    for name in ("claim", "write", "scan")
}


def line_with(script: str, name: str) -> str:
    """The only line of a script that declares a constant."""
    (line,) = re.findall(rf"^local [A-Z_, ]*\b{name}\b.*$", SCRIPTS[script], re.MULTILINE)
    return str(line)


@pytest.mark.parametrize("script", ["claim", "write"])
def test_the_rare_states_of_a_script_are_those_of_the_package(script: str) -> None:
    states = re.findall(r"(\w+) = true", line_with(script, "RARE"))
    assert set(states) == set(RARE_STATES)
    assert len(states) == len(RARE_STATES)


@pytest.mark.parametrize("script", ["write", "scan"])
def test_the_bounds_of_a_value_are_the_same_in_each_script(script: str) -> None:
    assert line_with(script, "VERSION_MAX") == line_with("claim", "VERSION_MAX")


def test_the_bounds_of_a_value_are_those_of_the_layout() -> None:
    version_max = re.search(r"= (\d+),", line_with("claim", "VERSION_MAX"))
    assert version_max is not None
    assert int(version_max[1]) == layout._VERSION_MAX


def test_the_parts_of_a_value_are_found_alike_in_each_script() -> None:
    def head(script: str) -> str:
        # Scanning needs neither the token nor the place of what follows.
        return line_with(script, "HEAD").replace("(", "").replace(")", "").removesuffix("'")

    assert line_with("write", "HEAD") == line_with("claim", "HEAD")
    assert head("scan") == head("claim")
