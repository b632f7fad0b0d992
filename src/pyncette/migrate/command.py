"""``python -m pyncette migrate``: reads its arguments, shows the progress, prints the result.

The migration itself is in ``pyncette.migrate``. Credentials are never shown. Each option of a store
can also be set in the environment, where other users of the machine do not see it: if the arguments
name a store, the variables of other stores are ignored.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from pyncette.clock import from_microseconds
from pyncette.errors import StoreError
from pyncette.migrate import MigrationError, Report, WorkersRunningError, migrate
from pyncette.migrate.copying import Counts, Example

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
WORKERS_RUNNING: Final = 3
INTERRUPTED: Final = 130

_STEP: Final = 10_000
"""Records between two lines of progress, if the output is not a terminal."""

_STORES: Final = {
    "SQLite": {
        "sqlite-database": "path of the file",
        "sqlite-table-name": "the table of 1.x (pyncette_tasks)",
    },
    "PostgreSQL": {
        "postgres-url": "postgresql://user:password@host/database",
        "postgres-table-name": "the table of 1.x (pyncette_tasks)",
    },
    "MySQL and MariaDB": {
        "mysql-url": "mysql://user:password@host/database, or the five that follow",
        "mysql-host": "the server",
        "mysql-port": "3306",
        "mysql-user": "as whom to log in",
        "mysql-password": "with what",
        "mysql-database": "the database",
        "mysql-table-name": "the table of 1.x (pyncette_tasks)",
    },
    "Redis": {
        "redis-url": "redis://host/0, or redis+sentinel://host,host/service/0",
        "redis-namespace": "the namespace of 1.x ('')",
        "to-namespace": "the namespace to copy to (required)",
    },
    "DynamoDB": {
        "dynamodb-table-name": "the table of 1.x",
        "dynamodb-region-name": "the region, if the environment does not say it",
        "dynamodb-endpoint": "the URL of the service, if it is not that of the region",
        "dynamodb-partition-prefix": "the prefix of 1.x ('')",
        "to-table": "the table to copy to (required)",
    },
}
_NUMBERS: Final = frozenset({"mysql-port"})

_IN_MYSQL_URL: Final = frozenset({"mysql-host", "mysql-port", "mysql-user", "mysql-database"})
"""What a URL says, too. Its password may be missing."""

_NAMED_BY: Final = {
    "SQLite": ("sqlite-database",),
    "PostgreSQL": ("postgres-url",),
    "MySQL and MariaDB": ("mysql-url", "mysql-host"),
    "Redis": ("redis-url",),
    "DynamoDB": ("dynamodb-table-name",),
}
"""The options that name a store: exactly one store has to be named."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to those of ``python -m pyncette``."""
    parser = commands.add_parser(
        "migrate",
        help="take over the tasks that release 1.x left in a store",
        description="Turns a store of release 1.x into one of this release: planned times, "
        "arguments and leases are kept. Stop all workers first. It may be interrupted, and run "
        "again.",
        epilog="Each option of a store can be given in the environment, for example "
        "PYNCETTE_POSTGRES_URL. Exit codes: 0 done, or nothing to do; 1 failed; 2 wrong usage; 3 "
        "workers seem to be running. See docs/coming-from/from-1.x.md.",
    )
    parser.add_argument("--dry-run", action="store_true", help="only count; change nothing")
    parser.add_argument(
        "--force", action="store_true", help="also where records are leased, or would be lost"
    )
    parser.add_argument(
        "--drop-old",
        action="store_true",
        help="remove the old data once all is copied, or where that was done before",
    )
    for title, options in _STORES.items():
        group = parser.add_argument_group(title)
        for option, text in options.items():
            group.add_argument(
                f"--{option}",
                help=text,
                type=int if option in _NUMBERS else str,
            )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Migrates; returns the exit code."""
    try:
        configuration = _configuration(vars(arguments))
        report = asyncio.run(
            migrate(
                dry_run=arguments.dry_run,
                force=arguments.force,
                drop_old=arguments.drop_old,
                progress=_progress(),
                **configuration,
            )
        )
    except (MigrationError, StoreError, ImportError) as error:
        print(f"\nmigrate: {error}", file=sys.stderr)
        return WORKERS_RUNNING if isinstance(error, WorkersRunningError) else FAILED
    except ValueError as error:
        print(f"\nmigrate: {_as_typed(str(error))}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("\nmigrate: interrupted; run it again to go on", file=sys.stderr)
        return INTERRUPTED
    print(described(report, arguments.dry_run))
    return DONE


def _configuration(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of the one store that is named, as ``migrate`` takes them.

    An empty variable counts as one that is not set.

    Raises:
        ValueError: No store is named, or several are; or a variable holds no number where one is
            needed.
    """
    every = [option for options in _STORES.values() for option in options]
    given = {option: value for option in every if (value := arguments[_name(option)]) is not None}
    variables = {option: text for option in every if (text := os.environ.get(_variable(option)))}
    # What was typed is meant. A variable may have been set for something else.
    if "mysql-url" in given:
        variables = {each: text for each, text in variables.items() if each not in _IN_MYSQL_URL}
    typed = _store_named(given, "--{}".format)
    store = typed or _store_named(variables, _variable)
    if store is None:
        raise ValueError(
            "Name the store: "
            + ", ".join(_name(option) for options in _NAMED_BY.values() for option in options)
        )
    return {
        _name(option): given[option] if option in given else _read(option, variables[option])
        for option in _STORES[store]
        if option in given or option in variables
    }


def _store_named(options: Collection[str], written: Callable[[str], str]) -> str | None:
    """Returns the store that these options name; None: they name none.

    Raises:
        ValueError: They name several.
    """
    naming = {store: [each for each in by if each in options] for store, by in _NAMED_BY.items()}
    named = [store for store, by in naming.items() if by]
    if len(named) > 1:
        by = [written(option) for store in named for option in naming[store]]
        raise ValueError(f"Name one store, not {len(named)}: {', '.join(by)}")
    return named[0] if named else None


def _read(option: str, text: str) -> str | int:
    if option not in _NUMBERS:
        return text
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{_variable(option)} must be a whole number, not {text!r}") from None


def _name(option: str) -> str:
    return option.replace("-", "_")


def _variable(option: str) -> str:
    return f"PYNCETTE_{_name(option).upper()}"


def _as_typed(text: str) -> str:
    """An error about the options of ``migrate``, with their names as users of the command write
    them.
    """
    return _OPTION.sub(
        lambda found: f"--{(option := found[0].replace('_', '-'))} (or {_variable(option)})", text
    )


_OPTION: Final = re.compile(
    rf"\b({'|'.join(_name(option) for options in _STORES.values() for option in options)})\b"
)


def _progress() -> Callable[[int, int], None]:
    """Shows the progress: in one line on a terminal, else in a line from time to time."""
    terminal = sys.stderr.isatty()
    shown = 0

    def show(done: int, total: int) -> None:
        nonlocal shown
        if terminal:
            end = "\n" if done >= total else ""
            print(f"\r{done:,} of {total:,} copied", end=end, file=sys.stderr, flush=True)
        elif not shown or done >= total or done >= shown + _STEP or done < shown:
            shown = done
            print(f"{done:,} of {total:,} copied", file=sys.stderr, flush=True)

    return show


def described(report: Report, dry_run: bool) -> str:
    """Returns a report as text."""
    lines = [f"Tasks of pyncette 1.x in {report.place}"]
    if report.found is None:
        lines = [f"There is nothing to migrate in {report.place}: it is of this release."]
    else:
        lines += _counted(report.found)
    if dry_run and report.found is not None:
        lines.append("Dry run: nothing was changed.")
    if report.finished and report.found is not None:
        earlier = f" ({report.present:,} of them earlier)" if report.present else ""
        lines.append(f"Done: {report.written + report.present:,} records copied{earlier}.")
    if report.kept is not None:
        lines.append(f"The old data are left in {report.kept}.")
    if report.dropped:
        lines.append("The old data were removed.")
    return "\n".join(lines)


def _counted(found: Counts) -> list[str]:
    lines = [
        f"  static tasks         {found.static:>12,}",
        f"  instances            {found.instances.total():>12,}",
        *(f"    {label:<19}{count:>12,}" for label, count in sorted(found.instances.items())),
    ]
    until = ""
    if found.leased_until is not None:
        end = from_microseconds(found.leased_until).isoformat(timespec="seconds")
        until = f"   of those above, the last until {end}; each runs again when its lease ends"
    lines += [
        f"  leased               {found.leased:>12,}{until}",
        f"  done, not copied     {found.done:>12,}",
        f"  unreadable, parked   {found.parked:>12,}"
        + ("   of those above, kept with the reason" if found.parked else ""),
        *_examples(found.parked, found.parked_examples),
        f"  unusable, left behind{found.left_behind:>12,}",
        *_examples(found.left_behind, found.left_behind_examples),
    ]
    return lines


def _examples(count: int, examples: list[Example]) -> list[str]:
    lines = [f"    {ascii(name)[:80]}: {reason}" for name, reason in examples]
    if count > len(examples):
        lines.append(f"    and {count - len(examples):,} more")
    return lines
