"""How a driver wants the parameters of a statement to be marked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final

_MARK: Final = re.compile(r"\$(\d+)|\?")


class Style(Enum):
    """How the places of parameters are marked."""

    DOLLAR = "$1"
    """By number, as PostgreSQL itself does. A parameter may be used several times."""

    QUESTION = "?"
    """In their order, as SQLite itself does."""

    PERCENT = "%s"
    """In their order; a percent sign of the statement is doubled."""


STYLES: Final = {
    "numeric_dollar": Style.DOLLAR,
    "qmark": Style.QUESTION,
    "format": Style.PERCENT,
    "pyformat": Style.PERCENT,
}
"""The styles by their names in PEP 249. A driver of ``pyformat`` accepts a sequence as well."""


def rendered(
    statement: str, parameters: Sequence[Any], style: Style
) -> tuple[str, Sequence[Any] | None]:
    """Returns a statement and its parameters as a driver wants them.

    Args:
        statement: Its parameters are marked by numbers (``$1``), or all of them in order (``?``).
            It has these characters nowhere else, and a percent sign only for itself.
        parameters: The parameters.
        style: What the driver wants.

    Returns:
        The statement, and its parameters; None for none: then a driver leaves percent signs alone.
    """
    if not parameters:
        return statement, None
    if style is Style.DOLLAR:
        return statement, parameters
    if style is Style.PERCENT:
        statement = statement.replace("%", "%%")
    ordered: list[Any] = []

    def mark(found: re.Match[str]) -> str:
        number = len(ordered) if found[1] is None else int(found[1]) - 1
        ordered.append(parameters[number])
        return str(style.value)

    return _MARK.sub(mark, statement), ordered
