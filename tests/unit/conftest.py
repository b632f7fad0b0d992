"""What the unit tests have in common."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out files without an exhaustive test if only those are wanted.

    To import them all takes as long as many of the tests.
    """
    if config.getoption("markexpr") != "exhaustive" or collection_path.suffix != ".py":
        return None
    return "mark.exhaustive" not in collection_path.read_text(encoding="utf-8") or None
