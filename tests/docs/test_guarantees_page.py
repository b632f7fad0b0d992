"""The page of guarantees names tests that exist, and README promises nothing that it does not."""

from __future__ import annotations

import re

from tests.docs.named_tests import ROOT, exists, named_tests

PAGE = (ROOT / "docs" / "explanation" / "guarantees.md").read_text()
OWN = "tests/system/test_guarantees.py"


def test_every_test_that_the_page_names_exists() -> None:
    named = named_tests(PAGE, OWN)
    assert len(named) > 40
    for file, name in named:
        assert exists(file, name), f"{file}::{name}"


def test_every_promise_of_the_readme_has_a_test_that_bears_its_name() -> None:
    readme = (ROOT / "README.md").read_text()
    promises = readme.partition("## What is promised")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| \**([a-z ]+)\** ", promises, re.M)
    assert len(rows) == 7
    tests = " ".join(re.findall(r"def (test_\w+)", (ROOT / OWN).read_text()))
    for row in rows:
        assert row.strip().replace(" ", "_") in tests, row
