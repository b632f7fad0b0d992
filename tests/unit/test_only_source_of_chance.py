"""The whole package draws from `pyncette.chance`, and from nowhere else.

A simulation replays a run from its seed only if no module has randomness of its own.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pyncette

pytestmark = pytest.mark.exhaustive

PACKAGE = Path(pyncette.__file__).parent
SOURCE_OF_CHANCE = PACKAGE / "chance.py"
# Names and tokens of the dashboard that nobody may guess; no part of a simulation.
SECRET = {PACKAGE / "web" / name for name in ("jobs.py", "protection.py")}


def sources_of_chance(source: str) -> list[str]:
    """What in this module draws at random by itself, each as `line: what`."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [
                (node.lineno, alias.name)
                for alias in node.names
                if alias.name.partition(".")[0] in {"random", "secrets"}
            ]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found += [
                (node.lineno, f"{node.module}.{alias.name}")
                for alias in node.names
                # The type of a source that is handed in draws nothing.
                if (
                    node.module in {"random", "secrets"}
                    and (node.module, alias.name) != ("random", "Random")
                )
                or (node.module, alias.name) in {("os", "urandom"), ("uuid", "uuid4")}
            ]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {
            "Random",
            "os.urandom",
            "uuid.uuid4",
        }:
            found.append((node.lineno, ast.unparse(node.func)))
    return [f"{line}: {name}" for line, name in sorted(found)]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=str(path.relative_to(PACKAGE)))
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != SOURCE_OF_CHANCE and path not in SECRET
    ],
)
def test_a_module_draws_from_the_one_source_only(path: Path) -> None:
    assert sources_of_chance(path.read_text(encoding="utf-8")) == []


def test_the_one_source_of_chance_is_seen_as_one() -> None:
    assert sources_of_chance(SOURCE_OF_CHANCE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import random",
        "import random as dice",
        "from random import uniform",
        "import secrets",
        "from secrets import token_hex",
        "import os\nos.urandom(8)",
        "from os import urandom",
        "import uuid\nuuid.uuid4()",
        "from uuid import uuid4",
        "from random import Random\nRandom(1)",
    ],
)
def test_a_source_of_chance_is_found(source: str) -> None:
    assert len(sources_of_chance(source)) == 1


@pytest.mark.parametrize(
    "source",
    ["from random import Random\ndef f(source: Random): ...", "from pyncette import chance"],
)
def test_what_only_looks_like_one_is_not(source: str) -> None:
    assert sources_of_chance(source) == []
