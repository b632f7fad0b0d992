"""Functions that tests run in processes of their own, which import them from here.

This module imports little: what it imports, each of dozens of processes does.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from pyncette import Context, GiveUp, RetryIn, Skip


class Unportable(Exception):  # noqa: N818
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def note(context: Context, path: Path, day: date = date(2026, 1, 1)) -> int:
    with path.open("a") as file:
        file.write(f"{os.getpid()} {context.task_name} {context.attempt} {day!r}\n")
    return 3


def note_attributes(context: Context, path: Path) -> None:
    path.write_text(
        repr(
            (
                context.args["path"] == str(path),
                context.scheduled_at.isoformat(),
                context.attempt,
                len(context.execution_id),
                context.fencing_token > 0,
                context.deadline,
                context.previous_error,
            )
        )
    )


def use_what_does_not_travel(context: Context, what: str) -> None:
    getattr(context, what)()


def fail(context: Context, how: str) -> None:
    match how:
        case "plainly":
            raise OSError("no such thing")
        case "by what cannot travel":
            raise Unportable(1, 2)
        case "by the end of the process":
            sys.exit(3)
        case "by StopIteration":
            raise StopIteration("over")
        case "for good":
            raise GiveUp("no use")
        case "later":
            raise RetryIn(timedelta(seconds=10), "not yet")
        case "not":
            raise Skip("nothing to do")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(7)


def generate(context: Context) -> Any:
    return (number for number in range(3))


def stay(context: Context, path: Path) -> None:
    """Runs until the file `go` is there."""
    (path / f"begun {context.task_name}").write_text(str(os.getpid()))
    while not (path / "go").exists():
        time.sleep(0.005)
    (path / f"ended {context.task_name}").touch()
