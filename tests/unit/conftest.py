"""What the unit tests have in common."""

from pathlib import Path

import pytest

ALONE = {"exhaustive", "every_poll"}
"""Markers that may be all that is wanted."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out files without such a test if only those with certain markers are wanted.

    To import them all takes as long as many of the tests.
    """
    wanted = config.getoption("markexpr").split(" or ")
    if not ALONE.issuperset(wanted) or collection_path.suffix != ".py":
        return None
    text = collection_path.read_text(encoding="utf-8")
    return not any(f"mark.{marker}" in text for marker in wanted) or None
