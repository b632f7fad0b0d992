"""How long the import takes, and how long one `next` of a cron expression does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from time import perf_counter
from zoneinfo import ZoneInfo

from table import Table, spread

from pyncette.schedule import Cron

CRONS = ("* * * * *", "*/5 * * * *", "0 12 * * *", "0 9 * * MON-FRI", "30 2 L * *", "0 0 29 2 *")
ZONES = ("UTC", "Europe/Berlin")
_START = datetime(2026, 3, 1, tzinfo=UTC)


def _environment(directory: str) -> dict[str, str]:
    """Bytecode is kept, as it is wherever a program is installed."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": directory}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def _wall_ms(program: str, environment: dict[str, str]) -> float:
    began = perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    return (perf_counter() - began) * 1_000


def _importtime_ms(environment: dict[str, str]) -> float:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import pyncette"],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    found = re.findall(r"\| +(\d+) \| pyncette$", done.stderr, re.MULTILINE)
    return int(found[-1]) / 1_000


def measure_import(rounds: int) -> None:
    """Prints how long the import takes, beside what it is made of."""
    table = Table(f"Import in ms, {rounds} times", "what", "ms")
    programs = ("pass", "import asyncio", "import asyncio, sqlite3", "import pyncette")
    taken: dict[str, list[float]] = {program: [] for program in programs}
    told: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        environment = _environment(directory)
        for program in programs:
            _wall_ms(program, environment)  # compiles
        for _ in range(rounds):
            for program, values in taken.items():
                values.append(_wall_ms(program, environment))
            told.append(_importtime_ms(environment))
    for program, values in taken.items():
        table.row(f"`python -c '{program}'`", spread(values, 1))
    table.row("`python -X importtime` of `pyncette`", spread(told, 1))


def _us_per_next(step: Callable[[datetime], datetime | None], count: int) -> float:
    instants = [_START + timedelta(hours=7 * number, seconds=11) for number in range(count)]
    began = perf_counter()
    for instant in instants:
        step(instant)
    return (perf_counter() - began) / count * 1e6


def _peers(expression: str, zone: str) -> dict[str, Callable[[datetime], datetime | None]]:
    """One `next` of the libraries that are installed and know the expression."""
    found: dict[str, Callable[[datetime], datetime | None]] = {}
    local = ZoneInfo(zone)
    try:
        from croniter import croniter

        iterator = croniter(expression, _START)

        def next_of_croniter(instant: datetime) -> datetime:
            iterator.set_current(instant.astimezone(local), force=True)
            following: datetime = iterator.get_next(datetime)
            return following

        found["croniter"] = next_of_croniter
    except (ImportError, ValueError):
        pass
    try:
        from cronsim import CronSim

        CronSim(expression, _START)
        found["cronsim"] = lambda instant: next(CronSim(expression, instant.astimezone(local)))
    except (ImportError, ValueError):
        pass
    return found


def measure_cron(rounds: int, count: int) -> None:
    """Prints how long one `next` takes from instants spread over years."""
    table = Table(
        f"Cron: µs for one `next`, {count:,} instants, {rounds} rounds",
        *("expression", "zone", "`Cron.next_after`", "croniter", "cronsim"),
    )
    for expression in CRONS:
        for zone in ZONES:
            steps = {"own": Cron(expression, zone).next_after, **_peers(expression, zone)}
            rows: dict[str, list[float]] = {name: [] for name in steps}
            for _ in range(rounds):
                for name, step in steps.items():
                    rows[name].append(_us_per_next(step, count))
            shown = [
                spread(rows[name], 1) if name in rows else ""
                for name in ("own", "croniter", "cronsim")
            ]
            table.row(f"`{expression}`", zone, *shown)
