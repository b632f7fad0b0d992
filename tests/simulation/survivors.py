"""Mutants that are known to survive the simulation, the explorer and the conformance suite.

``python -m tests.simulation.mutate --report`` prints the reasons beside the survivors.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tests.simulation.mutants import Mutant


class Survivor(NamedTuple):
    """Mutants that survive for one reason.

    Attributes:
        module: The module.
        function: The function, with its class.
        line: The line, or a part of it; empty: every line of the function.
        what: The change, or the beginning of its description; empty: every change.
        reason: Why it is not caught.
    """

    module: str
    function: str
    line: str
    what: str
    reason: str

    def covers(self, mutant: Mutant) -> bool:
        """Whether a mutant is one of these."""
        return (
            (mutant.module, mutant.function) == (self.module, self.function)
            and self.line in mutant.before
            and mutant.what.startswith(self.what)
        )


SURVIVORS: Final[tuple[Survivor, ...]] = ()


def reason_of(mutant: Mutant) -> str | None:
    """Why a mutant survives, if that is known."""
    return next((one.reason for one in SURVIVORS if one.covers(mutant)), None)


def rows() -> list[str]:
    """The survivors as a table in Markdown."""
    lines = [
        "| module | function | line | change | why it is not caught |",
        "|---|---|---|---|---|",
    ]
    for module, function, line, what, reason in SURVIVORS:
        cells = (module, function, f"`{line}`" if line else "", what or "any", reason)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines
