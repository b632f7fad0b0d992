"""The page of guarantees names tests that exist, and README promises nothing that it does not."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text()
OWN = "tests/system/test_guarantees.py"
NAMED = re.compile(r"`(?P<file>(?:tests|src)/[\w/]+\.py)?(?:::)?(?P<test>test_\w+)?(?:\[[^`]*\])?`")


def named_tests() -> list[tuple[str, str]]:
    """Each file and test that the page names; `::` alone means the file named before."""
    named = []
    for line in PAGE.splitlines():
        before = OWN
        for match in NAMED.finditer(line):
            if match["file"] is None and match["test"] is None:
                continue
            if match["file"] is not None:
                before = match["file"]
            elif not match[0].startswith("`::"):
                before = OWN
            named.append((before, match["test"] or ""))
    return named


def test_every_test_that_the_page_names_exists() -> None:
    assert len(named_tests()) > 40
    for file, name in named_tests():
        assert re.search(rf"def {name}\w*\(", (ROOT / file).read_text()), f"{file}::{name}"


def test_every_promise_of_the_readme_has_a_test_that_bears_its_name() -> None:
    readme = (ROOT / "README.md").read_text()
    promises = readme.partition("## What is promised")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| \**([a-z ]+)\** ", promises, re.M)
    assert len(rows) == 7
    tests = " ".join(re.findall(r"def (test_\w+)", (ROOT / OWN).read_text()))
    for row in rows:
        assert row.strip().replace(" ", "_") in tests, row
