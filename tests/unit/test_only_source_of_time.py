"""The whole package takes time from `pyncette.clock`, and from nowhere else.

A scheduler that reads the machine's clock here and there cannot be tested with a clock of one's
own, nor be corrected by the store's. So no other module may read a clock, sleep, or set a timer.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pyncette

pytestmark = pytest.mark.exhaustive

PACKAGE = Path(pyncette.__file__).parent
SOURCE_OF_TIME = PACKAGE / "clock.py"

FORBIDDEN_CALLS = {
    "asyncio.sleep",
    "asyncio.timeout",
    "asyncio.timeout_at",
    "asyncio.wait_for",
    "datetime.date.today",
    "datetime.datetime.now",
    "datetime.datetime.today",
    "datetime.datetime.utcnow",
    "threading.Timer",
}
FORBIDDEN_MODULES = {"time", "sched"}
TIMERS_OF_A_LOOP = {"call_later", "call_at"}


def sources_of_time(source: str, *, may_yield: bool = False) -> list[str]:
    """What in this module reads a clock, sleeps or sets a timer, each as `line: what`.

    Args:
        source: the text of the module.
        may_yield: allow `asyncio.sleep(0)`, which only lets other tasks run.
    """
    tree = ast.parse(source)
    names: dict[str, str] = {}
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
                if top in FORBIDDEN_MODULES:
                    found.append((node.lineno, f"import {alias.name}"))
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            if node.module in FORBIDDEN_MODULES:
                found.append((node.lineno, f"from {node.module} import"))

    def dotted(node: ast.AST) -> str:
        if isinstance(node, ast.Name):
            return names.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            return f"{dotted(node.value)}.{node.attr}"
        if isinstance(node, ast.Call):
            return f"{dotted(node.func)}()"
        return "?"

    yields = {
        node.func
        for node in ast.walk(tree)
        if may_yield
        and isinstance(node, ast.Call)
        and dotted(node.func) == "asyncio.sleep"
        and len(node.args) == 1
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value == 0
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and node not in yields:
            name = dotted(node)
            receiver, _, method = name.rpartition(".")
            if (
                name in FORBIDDEN_CALLS
                or method in TIMERS_OF_A_LOOP
                or (method == "time" and receiver.rstrip("()").endswith("loop"))
            ):
                found.append((node.lineno, name))
        elif (
            isinstance(node, ast.Call)
            and dotted(node.func) in {"asyncio.wait", "asyncio.as_completed"}
            and any(keyword.arg == "timeout" for keyword in node.keywords)
        ):
            found.append((node.lineno, f"{dotted(node.func)}(timeout=)"))
    return [f"{line}: {name}" for line, name in sorted(found)]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=str(path.relative_to(PACKAGE)))
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != SOURCE_OF_TIME
    ],
)
def test_a_module_takes_time_from_the_clock_only(path: Path) -> None:
    may_yield = "testing" in path.relative_to(PACKAGE).parts
    assert sources_of_time(path.read_text(encoding="utf-8"), may_yield=may_yield) == []


def test_the_one_source_of_time_is_seen_as_one() -> None:
    found = sources_of_time(SOURCE_OF_TIME.read_text(encoding="utf-8"))
    assert {what.partition(": ")[2] for what in found} == {
        "asyncio.get_running_loop().call_later",
        "asyncio.get_running_loop().time",
        "loop.time",
        "asyncio.sleep",
        "asyncio.timeout",
        "datetime.datetime.now",
        "import time",
    }


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import time as clock",
        "from time import monotonic",
        "import sched",
        "import datetime\ndatetime.datetime.now()",
        "import datetime as dt\ndt.datetime.utcnow()",
        "import datetime as dt\ndt.date.today()",
        "from datetime import datetime, UTC\ndatetime.now(UTC)",
        "from datetime import datetime as moment\nmoment.today()",
        "from datetime import datetime\nfactory = datetime.now",
        "from datetime import date\ndate.today()",
        "import asyncio\nasyncio.sleep(1)",
        "import asyncio\nasyncio.sleep(0)",
        "from asyncio import sleep as nap\nnap(1)",
        "import asyncio\nasyncio.wait_for(f, 3)",
        "import asyncio\nasyncio.timeout(3)",
        "import asyncio\nasyncio.timeout_at(3)",
        "import asyncio\nasyncio.wait(fs, timeout=3)",
        "import asyncio\nasyncio.get_running_loop().time()",
        "import asyncio\nloop = asyncio.get_running_loop()\nloop.time()",
        "self._loop.time()",
        "self._loop.call_later(1, f)",
        "anything.call_at(1, f)",
        "import threading\nthreading.Timer(1, f)",
    ],
)
def test_a_source_of_time_is_found(source: str) -> None:
    assert len(sources_of_time(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from datetime import datetime, timedelta, timezone\ndatetime(2026, 1, 1).time()",
        "clock.now(), clock.sleep(1), clock.monotonic()",
        "from pyncette.clock import realtime\nrealtime.sleep(1), realtime.timeout(1)",
        "import asyncio\nasyncio.wait(fs)",
        "from . import time",
    ],
)
def test_what_only_looks_like_one_is_not(source: str) -> None:
    assert sources_of_time(source) == []


def test_a_yield_is_no_source_of_time_where_it_is_allowed() -> None:
    assert sources_of_time("import asyncio\nasyncio.sleep(0)", may_yield=True) == []
    assert sources_of_time("import asyncio\nasyncio.sleep(0.1)", may_yield=True) != []
