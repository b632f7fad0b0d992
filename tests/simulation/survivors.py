"""Mutants that are known to survive the simulation, the explorer and the conformance suite.

For each: the module, the function, the change (``*``: every one of this function), and the reason.
``python -m tests.simulation.mutate --report`` prints the reasons beside the survivors.
"""

from __future__ import annotations

from typing import Final

SURVIVORS: Final[dict[tuple[str, str, str], str]] = {
    ("loop", "Loop._pass", "condition inverted"): (
        "Only when the store's clock is measured and the watch renewed: at a poll, or at another "
        "claim."
    ),
    ("polling", "Sources._push", "comparison shifted"): (
        "Whether a source that is never due is kept in the heap when it is rebuilt."
    ),
    ("execution", "Execution._log_what_follows", "*"): "Only what is logged.",
    ("writes", "WriteQueue._defer", "min/max exchanged"): (
        "Only how long the pauses between retries of one write become; a lease ends them."
    ),
    ("rules", "alive", "without 'record.due_at is not None'"): (
        "A running record always has an end of its lease."
    ),
}
