"""What a command shows: tables for people, JSON lines for programs, progress, questions.

Names come from users: all of it is escaped, see ``pyncette.errors.printable``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pyncette.cli.failures import REFUSED, CommandError
from pyncette.errors import plural, printable
from pyncette.model import TaskCount

_ROWS_AT_ONCE: Final = 200
"""Rows by which the widths of a table are chosen; a longer table is printed in such parts."""

_LAST_COLUMN_MIN: Final = 10
_COLUMN_GAP: Final = "  "


class Printer:
    """Writes to the standard streams.

    Attributes:
        as_json: Whether programs read it.
        in_utc: Whether people see UTC instead of the local time zone.
        yes: Whether questions are answered already.
    """

    def __init__(self, as_json: bool = False, in_utc: bool = False, yes: bool = False) -> None:
        self.as_json = as_json
        self.in_utc = in_utc
        self.yes = yes
        self._progress_shown = False

    def text(self, line: str) -> None:
        """Writes a line for people; it must be escaped. Nothing where programs read."""
        if not self.as_json:
            print(line)

    def data(self, value: Mapping[str, Any]) -> None:
        """Writes a line for programs. Nothing where people read."""
        if self.as_json:
            print(json_line(value))

    def note(self, line: str) -> None:
        """Tells people something that is no result."""
        self.end_progress()
        print(line, file=sys.stderr)

    def time(self, instant: datetime | None) -> str:
        """An instant for people, with its offset."""
        if instant is None:
            return "-"
        zoned = instant.astimezone(UTC if self.in_utc else None)
        return zoned.isoformat(sep=" ", timespec="seconds")

    def table(self, headers: Sequence[str]) -> Table:
        """A table; it is for people only."""
        return Table(self, headers)

    def progress(self, line: str) -> None:
        """Shows how far long work is: on a terminal only, in one line."""
        if sys.stderr is not None and sys.stderr.isatty():
            self._progress_shown = True
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def end_progress(self) -> None:
        """Ends the line of progress, if there is one."""
        if self._progress_shown:
            self._progress_shown = False
            print(file=sys.stderr)

    def confirm(self, what: str) -> None:
        """Asks before something is destroyed.

        Raises:
            CommandError: The answer is no, or there is no terminal to ask on.
        """
        if self.yes:
            return
        streams = (sys.stdin, sys.stderr)
        if not all(stream is not None and stream.isatty() for stream in streams):
            raise CommandError(f"{what}: pass --yes to do so without a terminal", REFUSED)
        print(f"{what}. Continue? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise CommandError("Nothing was changed", REFUSED)


class Table:
    """Rows that are printed in parts, so that memory does not grow with their number."""

    def __init__(self, printer: Printer, headers: Sequence[str]) -> None:
        self._printer = printer
        self._headers = [header.upper() for header in headers]
        self._widths = [0] * len(headers)
        self._rows: list[list[str]] = []
        self._begun = False

    def add(self, *cells: object) -> None:
        """Adds a row; nothing where programs read."""
        if not self._printer.as_json:
            self._rows.append([printable("-" if cell is None else cell) for cell in cells])
            if len(self._rows) >= _ROWS_AT_ONCE:
                self.flush()

    def flush(self) -> None:
        """Prints the rows that were added. A table without rows prints nothing."""
        rows = self._rows
        if not rows:
            return
        if not self._begun:
            self._begun = True
            rows = [self._headers, *rows]
        for row in rows:
            self._widths = [max(w, len(cell)) for w, cell in zip(self._widths, row, strict=True)]
        # Piped, nothing is cut. On a terminal the last column gives way, never a name.
        room = None
        if sys.stdout is not None and sys.stdout.isatty():
            before = sum(self._widths[:-1]) + len(_COLUMN_GAP) * (len(self._widths) - 1)
            import shutil  # as in pyncette.cli.moving

            room = max(shutil.get_terminal_size().columns - before, _LAST_COLUMN_MIN)
        for row in rows:
            *cells, last = row
            if room is not None and len(last) > room:
                last = f"{last[: room - 1]}…"
            padded = [cell.ljust(width) for cell, width in zip(cells, self._widths, strict=False)]
            print(_COLUMN_GAP.join([*padded, last]).rstrip())
        self._rows = []


def counted(count: TaskCount, word: str) -> str:
    """A count with its noun."""
    return plural(count.count, word) if count.exact else f"{count} {word}s"


def json_line(value: Mapping[str, Any]) -> str:
    """An object as JSON that every program can read.

    JSON has no infinite numbers and no NaN: they are shown as the texts ``NaN``, ``Infinity`` and
    ``-Infinity``.
    """
    try:
        return json.dumps(value, default=_as_json, allow_nan=False)
    except ValueError:
        python = json.loads(json.dumps(value, default=_as_json), parse_constant=str)
        return json.dumps(python, allow_nan=False)


def _as_json(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)
