"""``app.main()`` in real processes: signals, exit codes, the environment."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

STOPS = [signal.SIGTERM, signal.SIGINT]

PREAMBLE = """
import asyncio, os, sys, time
from contextlib import asynccontextmanager
from datetime import timedelta
from pyncette import Pyncette
from pyncette.memory import MemoryRepository

def say(*words):
    print(*words, flush=True)

app = Pyncette(MemoryRepository(), poll_interval=timedelta(seconds=0.2))
"""

Program = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """Starts a program: the preamble, and what the test adds."""
    started: list[subprocess.Popen[str]] = []

    def start(
        code: str, main: str = "app.main()\nsay('returned')", **environment: str
    ) -> subprocess.Popen[str]:
        path = tmp_path / "program.py"
        path.write_text(f"{PREAMBLE}{textwrap.dedent(code)}\n{main}\n")
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in ("LOG_LEVEL", "USE_UVLOOP")
        }
        process = subprocess.Popen(
            [sys.executable, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**inherited, **environment},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def heard(process: subprocess.Popen[str], word: str) -> None:
    """Waits until the program has said a word."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    raise AssertionError(f"'{word}' was not said: {process.communicate()}")


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=20)
    return process.returncode, output, errors


SLOW_TASK = """
@app.task(interval=timedelta(seconds=0.05))
async def slow(context):
    say("began")
    await asyncio.sleep(0.5)
    say("ended")
    app._tasks[0].enabled = False
"""


@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize("loop", ["", "1"], ids=["asyncio", "uvloop"])
def test_the_first_signal_stops_gracefully_and_running_tasks_finish(
    program: Program, number: signal.Signals, loop: str
) -> None:
    process = program(SLOW_TASK, USE_UVLOOP=loop)
    heard(process, "began")
    process.send_signal(number)
    code, output, errors = ended(process)
    assert code == 0
    assert output.splitlines()[-2:] == ["ended", "returned"]
    assert "Stopping" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize("loop", ["", "1"], ids=["asyncio", "uvloop"])
def test_the_second_signal_ends_the_process_at_once_with_a_code(
    program: Program, number: signal.Signals, loop: str
) -> None:
    process = program(
        """
        @app.task(interval=timedelta(seconds=0.05))
        async def endless(context):
            say("began")
            await asyncio.sleep(1000)

        @app.middleware
        async def told(context, next):
            asyncio.get_running_loop().call_later(0.1, tell)
            await next()

        def tell():
            if stopping():
                say("stopping")
            else:
                asyncio.get_running_loop().call_later(0.01, tell)

        def stopping():
            return contexts and contexts[0]._worker.stopping

        contexts = []

        @app.fixture()
        async def keep(context):
            contexts.append(context)
            yield
        """,
        USE_UVLOOP=loop,
    )
    heard(process, "began")
    process.send_signal(number)
    heard(process, "stopping")
    process.send_signal(number)
    code, output, _ = ended(process)
    assert code == 128 + number
    assert "returned" not in output


@pytest.mark.parametrize("loop", ["", "1"], ids=["asyncio", "uvloop"])
def test_the_second_signal_is_heard_also_where_a_body_blocks_the_event_loop(
    program: Program, loop: str
) -> None:
    process = program(
        """
        @app.task(interval=timedelta(seconds=0.05))
        async def blocking(context):
            say("began")
            for _ in range(1000):
                time.sleep(0.02)
                say("still")
        """,
        USE_UVLOOP=loop,
    )
    heard(process, "began")
    process.send_signal(signal.SIGTERM)
    heard(process, "still")
    heard(process, "still")
    process.send_signal(signal.SIGTERM)
    code, _, errors = ended(process)
    assert code == 128 + signal.SIGTERM
    assert "second signal" in errors


OPENING = """
@asynccontextmanager
async def slow_to_open(**configuration):
    say("opening")
    await asyncio.sleep(0.5)
    say("opened")
    async with MemoryRepository()() as store:
        yield store

app = Pyncette(slow_to_open)

@app.task(interval=timedelta(seconds=0.01))
async def tick(context):
    say("ran")
"""


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_that_comes_while_the_store_opens_stops_gracefully(
    program: Program, number: signal.Signals
) -> None:
    process = program(OPENING)
    heard(process, "opening")
    process.send_signal(number)
    code, output, errors = ended(process)
    assert code == 0
    assert "Traceback" not in errors
    assert output.splitlines() == ["returned"]


def test_a_signal_that_comes_while_the_store_is_away_ends_the_wait_for_it(
    program: Program,
) -> None:
    process = program(
        """
        from pyncette import StoreUnavailableError

        @asynccontextmanager
        async def away(**configuration):
            say("tried")
            raise StoreUnavailableError("nobody listens")
            yield

        app = Pyncette(away, open_timeout=3600)
        """
    )
    heard(process, "tried")
    heard(process, "tried")
    process.send_signal(signal.SIGTERM)
    code, output, errors = ended(process)
    assert code == 0
    assert "Traceback" not in errors
    assert output.splitlines()[-1] == "returned"


def test_a_store_that_cannot_open_ends_the_process_with_a_code(program: Program) -> None:
    process = program(
        """
        app = Pyncette(sqlite_database="/nowhere/at/all/pyncette.db")
        """
    )
    code, output, errors = ended(process)
    assert code not in (0, None)
    assert "returned" not in output
    assert "/nowhere/at/all/pyncette.db" in errors


LOGGING = """
import logging

@app.task(interval=timedelta(seconds=0.05))
async def tick(context):
    logger = logging.getLogger("pyncette.test")
    for level in ("debug", "info", "warning"):
        getattr(logger, level)(f"at {level}")
    say("ran")
"""


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        (None, ["info", "warning"]),
        ("", ["info", "warning"]),
        ("DEBUG", ["debug", "info", "warning"]),
        ("debug", ["debug", "info", "warning"]),
        ("WARNING", ["warning"]),
    ],
)
def test_the_level_of_the_log_comes_from_the_environment(
    program: Program, level: str | None, seen: list[str]
) -> None:
    process = program(LOGGING, **({} if level is None else {"LOG_LEVEL": level}))
    heard(process, "ran")
    process.send_signal(signal.SIGTERM)
    _, _, errors = ended(process)
    assert sorted(set(re.findall("at (debug|info|warning)", errors))) == sorted(seen)
    assert ("Stopping" in errors) is ("info" in seen)


LOOP = """
@app.task(interval=timedelta(seconds=0.05))
async def tick(context):
    say(type(asyncio.get_running_loop()).__module__.split(".")[0])
"""


@pytest.mark.parametrize(
    ("value", "module"),
    [(None, "asyncio"), ("", "asyncio"), ("1", "uvloop"), ("0", "uvloop"), ("no", "uvloop")],
)
def test_any_value_of_use_uvloop_picks_uvloop(
    program: Program, value: str | None, module: str
) -> None:
    process = program(LOOP, **({} if value is None else {"USE_UVLOOP": value}))
    heard(process, module)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 0


def test_a_missing_uvloop_names_the_extra(program: Program) -> None:
    process = program("sys.modules['uvloop'] = None", USE_UVLOOP="1")
    code, _, errors = ended(process)
    assert code == 1
    assert "pip install 'pyncette[uvloop]'" in errors


def test_main_returns_with_the_handlers_of_before(program: Program) -> None:
    process = program(
        """
        import signal

        def before(number, frame):
            say("mine")

        signal.signal(signal.SIGTERM, before)

        @app.task(interval=timedelta(seconds=0.05))
        async def tick(context):
            say("ran")
            context.app_context.shutdown()

        main = app.main

        class Twice:
            def main(self):
                main()
                os.kill(os.getpid(), signal.SIGTERM)

        app = Twice()
        """
    )
    code, output, _ = ended(process)
    assert code == 0
    assert output.splitlines() == ["ran", "mine", "returned"]


UNTIL_IDLE = """
counts = app.main(until_idle=True)
say(counts)
sys.exit(1 if counts.failures else 0)
"""


def test_a_program_that_runs_until_idle_ends_by_itself_with_what_it_has_done(
    program: Program,
) -> None:
    tasks = """
    from pyncette import Every

    @app.task(schedule=Every(timedelta(hours=1), at_once=True))
    async def fine(context): ...

    @app.task(schedule=Every(timedelta(hours=1), at_once=True))
    async def wrong(context):
        raise ValueError("wrong")
    """
    code, output, errors = ended(program(tasks, UNTIL_IDLE))
    assert (code, output) == (1, "RunCounts(runs=2, failures=1)\n")
    assert "ValueError: wrong" in errors


@pytest.mark.parametrize("number", STOPS)
def test_a_program_that_runs_until_idle_stops_gracefully_by_a_signal(
    program: Program, number: signal.Signals
) -> None:
    tasks = """
    from pyncette import Every

    @app.task(schedule=Every(timedelta(seconds=0.001), at_once=True))
    async def endless(context):
        say("began")
        await asyncio.sleep(0.3)
        say("ended")
    """
    process = program(tasks, UNTIL_IDLE)
    heard(process, "began")
    process.send_signal(number)
    code, output, errors = ended(process)
    assert code == 0
    assert output.splitlines()[-2] == "ended"
    assert "failures=0" in output
    assert "Stopping" in errors
    assert "Traceback" not in errors
