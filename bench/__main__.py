"""Measures Pyncette on this machine, and prints tables in markdown.

    python bench                                     # most parts, on the stores that are there
    python bench dashboard --stores postgres --instances 1000000
    python bench looks --stores dynamodb --instances 1000000
    python bench drain --stores memory postgres --rounds 5
    python bench drain --against ../before           # and another checkout, in alternating rounds
    tools/servers run -- python bench drain latency  # with real servers

Figures of different days or machines cannot be compared, for machines differ and drift: compare
ratios within one run. docs/explanation/performance.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
from collections.abc import Coroutine
from typing import Any, TypeVar

import bulk
import drain
import latency
import looking
import remembering
import resting
import screens
import starting

import pyncette
from stores import STORES

# Not all of them are measured by default: "dashboard" and "looks" fill a store first, which takes
# minutes.
USUAL_PARTS = ("drain", "latency", "bulk", "idle", "memory", "import", "cron", "history")
PARTS = (*USUAL_PARTS, "dashboard", "looks")

_T = TypeVar("_T")


def _arguments() -> argparse.Namespace:
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python bench",
        description=about,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts", nargs="*", help=f"of {', '.join(PARTS)}; all but dashboard and looks by default"
    )
    parser.add_argument("--stores", nargs="+", choices=STORES, default=list(STORES))
    parser.add_argument("--rounds", type=int, default=3, help="of drain and cron")
    parser.add_argument("--runs", type=int, help="drained in one round; each store has a default")
    parser.add_argument("--planned", type=int, default=500, help="runs whose latency is taken")
    parser.add_argument("--instances", type=int, default=100_000, help="of bulk, dashboard, looks")
    parser.add_argument("--past", type=int, default=100_000, help="runs that dashboard shows")
    parser.add_argument("--looks", type=int, default=7, help="at each screen, or call")
    parser.add_argument("--seconds", type=float, default=10, help="of idling")
    parser.add_argument("--warm-up", type=float, default=2, help="seconds before latency and idle")
    parser.add_argument("--imports", type=int, default=15, help="how often all is imported")
    parser.add_argument("--executions", type=int, default=1_000_000, help="while memory is seen")
    parser.add_argument("--instants", type=int, default=5_000, help="from which cron goes on")
    parser.add_argument(
        "--rows", type=int, default=0, help="of a history that calls are timed beside"
    )
    parser.add_argument("--against", metavar="PATH", help="another checkout, for drain")
    parser.add_argument("--uvloop", action="store_true", help="run on the event loop of uvloop")
    arguments = parser.parse_args()
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"no such part: {part}")
    if arguments.against is not None:
        try:
            drain.source_of(arguments.against)
        except ValueError as error:
            parser.error(str(error))
    return arguments


def main() -> None:
    """Measures the parts that were asked for."""
    arguments = _arguments()
    parts = arguments.parts or USUAL_PARTS
    loop_factory: Any = None
    if arguments.uvloop:
        import uvloop

        loop_factory = uvloop.new_event_loop

    def run(main: Coroutine[Any, Any, _T]) -> _T:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(main)

    print(
        f"Pyncette {pyncette.__version__}, {platform.python_implementation()} "
        f"{platform.python_version()}, {os.cpu_count()} CPUs, {platform.system()} "
        f"{platform.machine()}, {'uvloop' if arguments.uvloop else 'asyncio'}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    names = arguments.stores
    if "drain" in parts:
        drain.measure(
            names, arguments.rounds, arguments.runs, run, arguments.uvloop, arguments.against
        )
    if "latency" in parts:
        latency.measure(names, arguments.planned, run, arguments.warm_up)
    if "bulk" in parts:
        bulk.measure(names, arguments.instances, arguments.rounds, run)
    if "dashboard" in parts:
        screens.measure(names, arguments.instances, arguments.past, arguments.looks, run)
    if "looks" in parts:
        looking.measure(names, arguments.instances, arguments.looks, run)
    if "idle" in parts:
        resting.measure_idle(names, arguments.seconds, run, arguments.warm_up)
    if "memory" in parts:
        local = [name for name in names if name in ("memory", "sqlite-memory", "sqlite-full")]
        resting.measure_growth(local, arguments.executions, run)
    if "import" in parts:
        starting.measure_import(arguments.imports)
    if "cron" in parts:
        starting.measure_cron(arguments.rounds, arguments.instants)
    if "history" in parts:
        remembering.measure(
            names,
            arguments.rounds,
            arguments.runs,
            arguments.planned,
            arguments.warm_up,
            arguments.rows,
            run,
        )


if __name__ == "__main__":
    main()
