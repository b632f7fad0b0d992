"""The command line: parse, call the fleet, print."""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from provision import processes
from provision.errors import UnavailableError
from provision.fleet import DIRECTORY_VARIABLE, Fleet, Outcome
from provision.processes import Identity
from provision.recipes import RECIPES

CHECKOUT = Path(__file__).resolve().parents[2]
INTERRUPTED = 130

DISTURBANCES: dict[str, Callable[[Identity], None]] = {
    "kill": processes.kill,
    "pause": processes.pause,
    "resume": processes.resume,
}


def say(line: str) -> None:
    """Progress goes to standard error: standard output is for `env` and the command of `run`."""
    print(line, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    known = ", ".join(RECIPES)
    top = argparse.ArgumentParser(
        prog="tools/servers",
        description="Provision and start the database servers that the tests run against.",
        epilog=f"Servers: {known}. An environment variable with a URL takes a server's place.",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--dir",
        type=Path,
        default=Path(os.environ.get(DIRECTORY_VARIABLE) or CHECKOUT / ".cache/servers"),
        help=f"state and data (default: ${DIRECTORY_VARIABLE} or .cache/servers in the checkout)",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in {
        "start": "start servers (default: all) unless they run already",
        "stop": "stop servers (default: all) and remove their data",
        "status": "list servers; fails unless all that were started run",
        "env": "print the environment variables of running servers, for eval",
    }.items():
        one = commands.add_parser(name, help=help_text, parents=[common])
        if name != "env":
            one.add_argument("names", nargs="*", metavar="NAME")
    run = commands.add_parser(
        "run", help="start servers, run a command, stop them", parents=[common]
    )
    run.add_argument("names", nargs="*", metavar="NAME")
    run.epilog = "The command follows after --, as in: run postgres -- pytest tests/stores"
    for name, help_text in {
        "restart": "end a server in order and start it again with its data",
        "kill": "kill -9 a server with all its processes; start brings it back",
        "pause": "freeze a server (SIGSTOP)",
        "resume": "undo pause (SIGCONT)",
    }.items():
        one = commands.add_parser(name, help=help_text, parents=[common])
        one.add_argument("names", nargs="+", metavar="NAME[/PROCESS]")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    child: list[str] = []
    if "--" in words:
        border = words.index("--")
        words, child = words[:border], words[border + 1 :]
    grammar = parser()
    options = grammar.parse_args(words)
    if (options.command == "run") != bool(child):
        grammar.error("run needs a command after --, and only run takes one")
    selectors = getattr(options, "names", None) or []
    for selector in selectors:
        if selector.partition("/")[0] not in RECIPES:
            grammar.error(f"no server is called {selector!r}, only {', '.join(RECIPES)}")
    # The servers' user must be able to read what we download, whatever the caller's umask.
    os.umask(0o022)
    fleet = Fleet(options.dir.absolute(), os.environ, say)
    try:
        with interruptible():
            return dispatch(fleet, options.command, selectors, child)
    except UnavailableError as error:
        say(f"tools/servers: {error}")
        return 1
    except KeyboardInterrupt:
        say("tools/servers: interrupted")
        return INTERRUPTED


def dispatch(fleet: Fleet, command: str, selectors: Sequence[str], child: Sequence[str]) -> int:
    """Carry out one command; returns its exit code."""
    names = selectors or list(RECIPES)
    match command:
        case "start":
            return start(fleet, names)
        case "stop":
            say(f"stopped {', '.join(fleet.stop(names)) or 'nothing, for nothing runs here'}")
        case "status":
            return status(fleet, selectors)
        case "env":
            return env(fleet)
        case "run":
            return run(fleet, names, child)
        case "restart":
            for selector in selectors:
                fleet.restart(selector)
        case _:
            for selector in selectors:
                fleet.disturb(selector, DISTURBANCES[command])
    return 0


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into what Ctrl-C does, so that clean-up runs on all of them."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def undisturbed(heard: Callable[[int], None]) -> Iterator[None]:
    """Pass signals on instead of dying of them.

    A handler, not SIG_IGN: the latter would be inherited by the commands that we start.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda caught, _: heard(caught)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def report(fleet: Fleet, outcome: Outcome) -> None:
    """Say what could not be started, and what to set instead."""
    for name, reason in outcome.failures.items():
        variable = RECIPES[name].variable
        say(f"{name}: UNAVAILABLE: {reason}\n    or set {variable} to the URL of an existing one")


def start(fleet: Fleet, names: Sequence[str]) -> int:
    """`start`: 0 when all that were named serve or have a URL in the environment."""
    for name in names:
        if fleet.given_url(name) is not None:
            say(f"{name}: not started, {RECIPES[name].variable} is set")
    me = _myself()
    try:
        outcome = fleet.start(names, me)
        fleet.keep(me)
    except BaseException:
        # An interrupt takes back what this call has started, and nothing else.
        release(fleet, me)
        raise
    report(fleet, outcome)
    if not outcome.started and not outcome.failures:
        say("nothing to start")
    return 1 if outcome.failures else 0


def _myself() -> Identity:
    identity = processes.identify(os.getpid())
    assert identity is not None
    return identity


def run(fleet: Fleet, names: Sequence[str], command: Sequence[str]) -> int:
    """`run`: the command's exit code, or 1 when a server is missing and it did not run."""
    me = _myself()
    try:
        outcome = fleet.start(names, me)
        report(fleet, outcome)
        if outcome.failures:
            return 1
        return run_command(command, {**os.environ, **fleet.variables()})
    finally:
        release(fleet, me)


def release(fleet: Fleet, holder: Identity) -> None:
    """Stop what only the holder needs; a second Ctrl-C does not cut this short."""
    with undisturbed(lambda number: None):
        stopped = fleet.release(holder)
    if stopped:
        say(f"stopped {', '.join(stopped)}")


def run_command(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command in the foreground; signals reach it, and its end is waited for.

    Returns:
        Its exit code, 128 plus the signal's number where one ended it.

    Raises:
        UnavailableError: there is no such program.
    """
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int) -> None:
        # The terminal sends SIGINT to the whole foreground group, the child included.
        if child is not None and number != signal.SIGINT:
            child.send_signal(number)

    with undisturbed(pass_on):
        try:
            child = subprocess.Popen(command, env=environment)
        except OSError as error:
            raise UnavailableError(f"cannot run {command[0]}: {error}") from None
        code = child.wait()
    return code if code >= 0 else 128 - code


def status(fleet: Fleet, names: Sequence[str]) -> int:
    """`status`: 0 when all that were named, or all that were started, run."""
    records = fleet.state.read().servers
    healthy = True
    for name in names or RECIPES:
        record = records.get(name)
        given = fleet.given_url(name)
        if record is not None:
            condition = record.condition
            ports = ",".join(str(process.port) for process in record.processes)
            print(f"{name:15} {condition:11} {record.version:8} {ports:6} {record.url}")
            healthy = healthy and condition == "running"
        elif given is not None:
            print(f"{name:15} {'given':11} {RECIPES[name].variable}")
        else:
            print(f"{name:15} stopped")
            healthy = healthy and not names
    return 0 if healthy else 1


def env(fleet: Fleet) -> int:
    """`env`: lines for a shell's eval; fails when there is nothing to say."""
    variables = fleet.variables()
    for variable, value in sorted(variables.items()):
        print(f"export {variable}={shlex.quote(value)}")
    if not variables:
        say("no server runs; start some with tools/servers start")
    return 0 if variables else 1
