"""Tables in markdown, and figures in words."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median, least and most of a figure that was measured several times."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({least:,.{digits}f}–{most:,.{digits}f})"


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many percent of all values do not exceed (nearest rank)."""
    rank = -(-percent * len(values) // 100)
    return sorted(values)[max(rank, 1) - 1]


class Table:
    """Printed row by row, so that a long run shows how far it has come."""

    def __init__(self, title: str, *columns: str) -> None:
        """Prints the head."""
        print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)

    def row(self, *cells: object) -> None:
        """Prints a row."""
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
