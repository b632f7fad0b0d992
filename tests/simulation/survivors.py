"""Mutants that are known to survive the simulation, the explorer and the conformance suite.

For each: the module, the function, the change (``*``: every one of this function), and the reason.
``python -m tests.simulation.mutate --report`` prints the reasons beside the survivors.
"""

from __future__ import annotations

from typing import Final

SURVIVORS: Final[dict[tuple[str, str, str], str]] = {}
