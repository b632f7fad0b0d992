"""Which tests a page names."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(?P<file>(?:tests|src)/[\w/]+\.py)?(?:::)?(?P<test>test_\w+)?(?:\[[^`]*\])?`")


def named_tests(page: str, own: str = "") -> list[tuple[str, str]]:
    """Each file and test that a page names; the test is empty where a whole file is named.

    `::` alone means the file named before in the same line; a test without a file is in ``own``.
    """
    named = []
    for line in page.splitlines():
        before = own
        for match in NAMED.finditer(line):
            if match["file"] is None and match["test"] is None:
                continue
            if match["file"] is not None:
                before = match["file"]
            elif not match[0].startswith("`::"):
                before = own
            named.append((before, match["test"] or ""))
    return named


def exists(file: str, name: str) -> bool:
    """Whether there is a test of this name, or one that begins with it."""
    return re.search(rf"def {name}\w*\(", (ROOT / file).read_text()) is not None
