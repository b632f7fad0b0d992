"""Runs programs in processes that have imported the package already.

A command of the command line, or an example of a page, takes longer to import what it needs than
to run. So one process imports that once, and is forked for each program. A program sees there what
it sees in a fresh interpreter, but for the modules that are loaded: where these are the point, as
when a program uses a module that it has not imported, it has to run in a fresh one.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Final

SERVER: Final = """
import asyncio, gc, importlib, json, os, runpy, signal, sys, time, types
import pyncette, pyncette.opening, pyncette.sqlite, pyncette.sync
import pyncette.cli.arguments, pyncette.history, pyncette.testing

for name in sys.argv[1:]:
    importlib.import_module(name)


def ended(process, deadline_s):
    "Its exit code; it is killed when its time is over, unless it has none."
    deadline = time.monotonic() + deadline_s
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        left = deadline - time.monotonic()
        if deadline_s == 0:
            return None
        if left <= 0:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return None
        signal.sigtimedwait([signal.SIGCHLD], left)


def program():
    "Returns, in a fork, what that fork has to run."
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    with os.fdopen(os.dup(1), "w") as answers:
        for line in sys.stdin:
            job = json.loads(line)
            if (process := job.get("asked")) is None:
                process = os.fork()
                if not process:
                    signal.pthread_sigmask(signal.SIG_SETMASK, usual)
                    return job
            deadline_s = job["deadline_s"]
            answer = process if deadline_s is None else ended(process, deadline_s)
            print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)


gc.freeze()
job = program()
for number, path in enumerate([os.devnull, *job["outputs"]]):
    file = os.open(path, os.O_RDWR | os.O_APPEND)
    os.dup2(file, number)
    os.close(file)
sys.stdin = open(0)
os.chdir(job["directory"])
os.environ.clear()
os.environ.update(job["environment"])
time.tzset()
importlib.invalidate_caches()
match job["arguments"]:
    case ["-m", module, *arguments]:
        sys.argv = ["-m", *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    case ["-c", text, *arguments]:
        sys.argv = ["-c", *arguments]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(text, "<string>", "exec"), main.__dict__)
    case arguments:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
"""


class _Server:
    """The process that is forked."""

    def __init__(self, options: Sequence[str], loaded: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *options, "-c", SERVER, *loaded],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self._end)

    def run(self, job: Mapping[str, object], deadline_s: float | None) -> int | None:
        """Returns the exit code, or None if it does not end in time.

        Without a deadline, it returns the id of the process that was started.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({**job, "deadline_s": deadline_s}) + "\n")
        self._process.stdin.flush()
        answers, _, _ = select.select([self._process.stdout], [], [], (deadline_s or 0) + 60)
        line = self._process.stdout.readline() if answers else ""
        assert line, "what is forked has ended, see its error above"
        code: int | None = json.loads(line)
        return code

    def _end(self) -> None:
        self._process.communicate()


@cache
def _server(options: tuple[str, ...], loaded: tuple[str, ...]) -> _Server:
    return _Server(options, loaded)


def _of_interpreter(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith("PYTHON")}


def run(
    arguments: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
    deadline_s: float,
    options: tuple[str, ...] = (),
    merged: bool = False,
    loaded: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Runs a program, and returns what it has printed.

    Args:
        arguments: Those of the interpreter: ``-m`` and a module, ``-c`` and a program, or the path
            of a program; and what follows.
        directory: Where it runs.
        environment: Its whole environment.
        deadline_s: After this it is killed, and the test fails.
        options: Options of the interpreter.
        merged: Whether its errors are printed with the rest.
        loaded: Modules that are loaded besides the package, such as a driver.
    """
    if not hasattr(os, "fork") or _of_interpreter(environment) != _of_interpreter(os.environ):
        # An interpreter reads such variables when it starts.
        return subprocess.run(
            [sys.executable, *options, *arguments],
            cwd=directory,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            text=True,
            timeout=deadline_s,
            check=False,
        )
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        job = {
            "arguments": [*arguments],
            "directory": str(directory.absolute()),
            "environment": dict(environment),
            "outputs": [out.name, out.name if merged else err.name],
        }
        code = _server(options, loaded).run(job, deadline_s)
        printed = [_text(file) for file in (out, err)]
    if code is None:
        raise subprocess.TimeoutExpired([*arguments], deadline_s, *printed)
    return subprocess.CompletedProcess([*arguments], code, *printed)


class Process:
    """A program that goes on, as ``subprocess.Popen`` has it.

    Attributes:
        pid: Its id.
        returncode: Its exit code; None: it has not ended, as far as is known.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        errors: Path | None = None,
        loaded: tuple[str, ...] = (),
    ) -> None:
        """Starts it; see ``run``. Its errors go to a file that exists; what it prints, nowhere."""
        self._server = _server((), loaded)
        job = {
            "arguments": [*arguments],
            "directory": str(directory.absolute()),
            "environment": dict(environment),
            "outputs": [os.devnull, os.devnull if errors is None else str(errors.absolute())],
        }
        process = self._server.run(job, None)
        assert process is not None
        self.pid: int = process
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code; None: it has not ended."""
        if self.returncode is None:
            self.returncode = self._server.run({"asked": self.pid}, 0)
        return self.returncode

    def wait(self, deadline_s: float = 60) -> int:
        """Waits for its end, and returns the exit code; in the end, it is killed."""
        if self.returncode is None:
            self.returncode = self._server.run({"asked": self.pid}, deadline_s)
        assert self.returncode is not None, "it did not end"
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal, if it has not ended. Its id is its own until its end was asked for."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Asks it to end."""
        self.send_signal(signal.SIGTERM)


def _text(file: IO[str]) -> str:
    # By its name: what is read through the file may have been read before the program wrote.
    return Path(file.name).read_text()
