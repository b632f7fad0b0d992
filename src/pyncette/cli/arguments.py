"""What may be given on the command line, and how a command runs and ends."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, Final

from pyncette.acting import acting_as
from pyncette.app import Pyncette
from pyncette.cli import (
    completion,
    looking,
    moving,
    scheduling,
    serving,
    steering,
    values,
)
from pyncette.cli.failures import (
    DONE,
    FAILED,
    INTERRUPTED,
    NOT_FOUND,
    PIPE_CLOSED,
    REFUSED,
    USAGE,
    CommandError,
    usage,
)
from pyncette.cli.loading import app_of_url, load_app
from pyncette.cli.printing import Printer
from pyncette.cli.session import Session, person
from pyncette.errors import (
    ArgumentError,
    PyncetteException,
    TaskExistsError,
    TaskLockedException,
    TaskNotFoundError,
    TaskPausedError,
    describe,
    plural,
    printable,
)
from pyncette.migrate import command as migrate
from pyncette.model import RUN_OUTCOMES, STATES, OnExisting
from pyncette.version import __version__

Verb = Callable[[Session], Awaitable[int]]

_EPILOG: Final = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 refused (running, paused, exists "
    "already, or not confirmed), 130 interrupted."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: What follows the name of the program; those of this process by default.

    Returns:
        The exit code.

    Raises:
        SystemExit: The arguments are wrong (2), or help was asked for (0).
    """
    debug = False
    # Ctrl-C may come at once, while a command imports what it needs.
    try:
        given = parser_of().parse_args(arguments)
        debug = given.debug or (os.environ.get("LOG_LEVEL") or "").upper() == "DEBUG"
        _check_texts(given)
        code: int = given.run(given)
        if sys.stdout is not None:  # it may have been closed before the start
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("\npyncette: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # What reads has ended, as `head` does. The interpreter must not try to flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, message = _failure(error)
        print(f"pyncette: {message}", file=sys.stderr)
    return code


def _check_texts(given: argparse.Namespace) -> None:
    """Refuses what is not UTF-8: no store has such a name. A file may have one."""
    for name, value in vars(given).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and name not in ("output", "file"):
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    raise usage(f"{printable(text)!r} is not UTF-8 text") from error


def _failure(error: Exception) -> tuple[int, str]:
    message = printable(error)
    match error:
        case CommandError():
            return error.code, message
        case TaskNotFoundError():
            return NOT_FOUND, message
        case TaskLockedException() | TaskExistsError() | TaskPausedError():
            return REFUSED, message
        case ArgumentError():
            return USAGE, message
        case PyncetteException() | ImportError():
            return FAILED, message
        case ValueError() | TypeError():
            return USAGE, message
    return FAILED, f"{describe(error)} (--debug shows where)"


@cache
def parser_of() -> argparse.ArgumentParser:
    """The parser of all commands; to make it takes as long as a short command."""
    parser = argparse.ArgumentParser(
        prog="pyncette",
        description="Looks at the tasks of an app, and steers them.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"pyncette {__version__}")
    _add_common(parser, known=True)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_looking(commands)
    _add_scheduling(commands)
    _add_steering(commands)
    _add_moving(commands)

    run = _plain(commands, "run", "run a worker until SIGINT or SIGTERM")
    run.add_argument(
        "--until-idle", action="store_true", help="run what is due, and end when nothing is left"
    )
    run.set_defaults(run=_run_worker)
    check = _command(commands, "doctor", "check what goes wrong in practice", None)
    check.add_argument("--strict", action="store_true", help="a warning is a failure, too")
    check.add_argument(
        "--timeout",
        type=values.span,
        default=timedelta(seconds=values.OPEN_TIMEOUT_S),
        metavar="DURATION",
        help=f"how long opening the store may take ({values.OPEN_TIMEOUT_S:g}s)",
    )
    check.set_defaults(run=_doctor)

    web = _plain(commands, "web", "serve the dashboard until SIGINT or SIGTERM")
    serving.add_options(web)
    web.set_defaults(run=lambda given: serving.serve(given, chosen_app(given)[0]))

    migrate.add_to(commands)
    shell = _plain(commands, "completion", "print a script that completes commands in a shell")
    shell.add_argument("shell", choices=sorted(completion.SHELLS))
    shell.set_defaults(run=lambda given: _complete(given.shell))
    return parser


def _add_common(parser: argparse.ArgumentParser, known: bool = False) -> None:
    """The options that may stand before and after the command."""

    def default(value: object) -> Any:
        return value if known else argparse.SUPPRESS

    parser.add_argument(
        "--app",
        default=default(None),
        metavar="MODULE:APP",
        help="the app, or a function that returns it; default: PYNCETTE_APP of the environment",
    )
    parser.add_argument(
        "--url",
        default=default(None),
        help="the store alone, without the tasks of a program: for list, runs, workers, doctor, "
        "purge",
    )
    parser.add_argument(
        "--table",
        default=default(None),
        metavar="NAME",
        help="with --url: the table, or in Redis the namespace, unless it has the usual name",
    )
    for option, text in (
        ("--json", "JSON for programs: one object, or one line for each row"),
        ("--utc", "show times in UTC instead of the local time zone"),
        ("--yes", "do not ask before something is destroyed"),
        ("--debug", "show the traceback of an error"),
    ):
        parser.add_argument(option, action="store_true", default=default(False), help=text)


def _plain(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=_EPILOG
    )
    _add_common(parser)
    return parser


def _command(commands: Any, name: str, text: str, verb: Verb | None) -> argparse.ArgumentParser:
    parser = _plain(commands, name, text)
    parser.set_defaults(run=lambda given: _run(given, verb) if verb else FAILED)
    return parser


def _add_task(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    parser.add_argument("task", nargs="?" if optional else None, help="the name of the task")
    parser.add_argument("instance", nargs="?", help="the name of the instance")


def _add_where(parser: argparse.ArgumentParser, states: bool = True) -> None:
    parser.add_argument("--prefix", help="only instances whose name begins with this")
    if states:
        parser.add_argument(
            "--state", action="append", choices=STATES, help="only these; may be repeated"
        )


def _add_task_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arg", action="append", metavar="NAME=VALUE", help="an argument; JSON, or else text"
    )
    parser.add_argument("--args", metavar="JSON", help="all arguments as one JSON object")


def _add_looking(commands: Any) -> None:
    parser = _command(
        commands, "list", "list the tasks, or the instances of a template", looking.list_tasks
    )
    parser.add_argument("task", nargs="?", help="a template")
    _add_where(parser)
    parser.add_argument("--due-before", type=values.instant, metavar="TIME")
    parser.add_argument("--failing", action="store_true", help="only those that fail, or parked")
    parser.add_argument(
        "--limit", type=values.at_least(0), default=100, help="the maximum (100); 0: all"
    )
    _add_task(_command(commands, "show", "show a task, a template or an instance", looking.show))
    parser = _command(commands, "next", "show which occurrences come next", looking.upcoming)
    _add_task(parser, optional=True)
    parser.add_argument("--count", type=values.at_least(1), default=10, help="how many (10)")
    parser.add_argument("--schedule", metavar="CRON", help="a cron expression, instead of a task")
    parser.add_argument("--timezone", help="its time zone (UTC)")
    parser.add_argument("--interval", type=values.span, help="an interval, instead of a task")
    parser = _command(
        commands,
        "runs",
        "show past runs from the history, the last ones first",
        looking.runs,
    )
    _add_task(parser, optional=True)
    parser.add_argument("--failed", action="store_true", help="only those that failed or timed out")
    parser.add_argument(
        "--outcome", action="append", choices=RUN_OUTCOMES, help="only these; may be repeated"
    )
    for option, text in (("--since", "at or after"), ("--until", "before")):
        parser.add_argument(
            option,
            type=values.moment,
            metavar="TIME",
            help=f"only those that ended {text} this: a time, or how long ago, such as 1d",
        )
    parser.add_argument(
        "--limit", type=values.at_least(0), default=50, help="the maximum (50); 0: all"
    )
    _command(commands, "workers", "show the workers that are alive", looking.workers)


def _add_scheduling(commands: Any) -> None:
    parser = _command(
        commands, "schedule", "create or change an instance of a template", scheduling.schedule
    )
    parser.add_argument("task")
    parser.add_argument("instance")
    parser.add_argument("--schedule", metavar="CRON")
    parser.add_argument("--timezone", help="the time zone of the cron expression (UTC)")
    parser.add_argument("--interval", type=values.span, help="for example 90m")
    parser.add_argument("--at", type=values.instant, metavar="TIME", help="run once, then")
    parser.add_argument(
        "--in", type=values.span, dest="after", metavar="DURATION", help="run once, after this"
    )
    parser.add_argument("--start-at", type=values.instant, metavar="TIME")
    parser.add_argument("--end-at", type=values.instant, metavar="TIME")
    parser.add_argument("--jitter", type=values.span)
    parser.add_argument("--on-existing", choices=[choice.value for choice in OnExisting])
    parser.add_argument("--force", action="store_true", help="also if it is running")
    _add_task_arguments(parser)

    parser = _command(
        commands, "unschedule", "remove instances of a template", scheduling.unschedule
    )
    parser.add_argument("task")
    parser.add_argument("instances", nargs="*", metavar="instance")
    _add_where(parser)
    parser.add_argument("--all", action="store_true", help="all instances")

    parser = _command(
        commands, "purge", "remove what a task that is not declared has left", scheduling.purge
    )
    parser.add_argument("task")
    parser = _command(
        commands,
        "rebalance",
        "move instances to another number of partitions",
        scheduling.rebalance,
    )
    parser.add_argument("task")
    parser.add_argument("partitions", type=values.at_least(1))


def _add_steering(commands: Any) -> None:
    def steer(name: str, text: str, verb: Verb) -> argparse.ArgumentParser:
        parser = _command(commands, name, text, verb)
        _add_task(parser)
        parser.add_argument(
            "--partition", type=values.at_least(0), help="one partition of a template"
        )
        return parser

    parser = steer("pause", "pause a task, an instance or a template", steering.pause)
    _add_where(parser)
    parser.add_argument("--until", type=values.instant, metavar="TIME")
    parser.add_argument("--for", type=values.span, dest="lasting", metavar="DURATION")
    parser.add_argument("--reason")
    _add_where(steer("resume", "end a pause", steering.resume))
    _add_where(steer("trigger", "run a task or an instance once now", steering.trigger))
    parser = steer("retry", "run what is parked again, or give it up", steering.retry)
    parser.add_argument("--drop", action="store_true", help="give up the parked run instead")
    _add_where(parser, states=False)
    _add_task_arguments(parser)


def _add_moving(commands: Any) -> None:
    parser = _command(commands, "export", "write instances as JSON lines", moving.export)
    parser.add_argument("tasks", nargs="*", metavar="task", help="templates; default: all")
    parser.add_argument("--output", metavar="FILE", help="a file, instead of standard output")
    parser = _command(commands, "import", "schedule what export has written", moving.take_in)
    parser.add_argument("file", nargs="?", help="a file; default: standard input")
    parser.add_argument(
        "--on-existing",
        choices=["keep", "replace", "sooner"],
        default="keep",
        help="what to do with instances that exist (keep)",
    )
    parser.add_argument(
        "--parked",
        choices=["skip", "run"],
        default="skip",
        help="leave out what was parked (skip), or schedule it anew, which runs it",
    )


def _printer(given: argparse.Namespace) -> Printer:
    return Printer(given.json, given.utc, given.yes)


def chosen_app(given: argparse.Namespace) -> tuple[Pyncette, bool]:
    """The app to work on, and whether it has the tasks of a program.

    Raises:
        CommandError: None was named, or it cannot be loaded.
    """
    if given.app is not None and given.url is not None:
        raise usage("Pass either --app, which knows its store, or --url")
    if given.url is not None:
        return app_of_url(given.url, given.table), False
    if given.table is not None:
        raise usage("--table goes with --url: an app knows its table")
    name = given.app or os.environ.get("PYNCETTE_APP")
    if not name:
        raise usage("Pass --app module:attribute, or set PYNCETTE_APP")
    # A worker may log to the standard output; all else is read by programs.
    return load_app(name, given.json or given.command != "run"), True


def _run(given: argparse.Namespace, verb: Verb) -> int:
    if verb is looking.upcoming and given.task is None:
        if given.schedule is None and given.interval is None:
            raise usage("next takes a task, or --schedule, or --interval")
        app, declares = Pyncette(), False
    else:
        app, declares = chosen_app(given)

    async def work() -> int:
        # The fixtures are for tasks that run. None does here.
        async with app.create(fixtures=False) as context:
            return await verb(Session(app, context, given, _printer(given), declares))

    with acting_as(person()):
        return asyncio.run(work())


def _run_worker(given: argparse.Namespace) -> int:
    if given.url is not None:
        raise usage("run needs the tasks of your program: pass --app module:attribute")
    app, _ = chosen_app(given)
    print(f"pyncette {__version__}: starting a worker", file=sys.stderr)
    if given.until_idle:
        done = app.main(until_idle=True)
        _printer(given).data(done._asdict())
        _printer(given).text(f"{plural(done.runs, 'run')}, {done.failures:,} of them failed")
    else:
        app.main()
    print("pyncette: the worker has stopped", file=sys.stderr)
    return DONE


def _doctor(given: argparse.Namespace) -> int:
    # What examines takes longer to import than all other commands together.
    from pyncette.cli import doctor

    # Not in the event loop: the program may run one of its own while it is imported.
    failure: ImportError | CommandError | None = None
    try:
        chosen = chosen_app(given)
    except (ImportError, CommandError) as error:
        failure = error

    def load() -> tuple[Pyncette, bool]:
        if failure is not None:
            raise failure
        return chosen

    return asyncio.run(
        doctor.examine(
            load,
            _printer(given),
            given.strict,
            given.timeout.total_seconds(),
        )
    )


def _complete(shell: str) -> int:
    print(completion.script(shell, parser_of()), end="")
    return DONE
