"""README's table of alternatives says what docs/explanation/comparison.md says, with sources."""

from __future__ import annotations

import re

from tests.docs.named_tests import ROOT

README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs" / "explanation" / "comparison.md").read_text()


def rows_of(text: str) -> list[list[str]]:
    """The cells of each row of a table, without the line under its head."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in row.strip("|").split("|")] for row in rows if "---" not in row
    ]


def test_each_cell_is_the_answer_of_the_page_with_the_sources() -> None:
    head, *rows = rows_of(
        README.partition("\n## Compared with alternatives")[2].partition("\n## ")[0]
    )
    assert len(rows) == 9
    for number, column in enumerate(head[1:], start=1):
        name = column.removesuffix(" (pre-release)")
        section = PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        answers = {question: answer for question, answer, _ in rows_of(section)[1:]}
        assert len(answers) == 11, name
        for row in rows:
            assert answers[row[0]] == row[number], (name, row[0])


def test_each_answer_about_an_alternative_but_no_has_a_source() -> None:
    for section in re.split(r"^## ", PAGE, flags=re.M)[2:]:
        for question, answer, source in rows_of(section)[1:]:
            assert source or answer == "no", (section.partition("\n")[0], question)
