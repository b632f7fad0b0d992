"""How a command ends: the exit codes, and the errors that only the command line has."""

from __future__ import annotations

from typing import Final

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
REFUSED: Final = 4
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141


class CommandError(Exception):
    """A command cannot go on. The message is for people.

    Attributes:
        code: The exit code.
    """

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def usage(message: str) -> CommandError:
    """The command was given wrongly."""
    return CommandError(message, USAGE)


def not_found(message: str) -> CommandError:
    """There is no such task or instance."""
    return CommandError(message, NOT_FOUND)
