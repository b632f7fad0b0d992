"""Retries of statements that failed because of another transaction; they had no effect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from pyncette import chance
from pyncette.clock import realtime

TRIES_MAX: Final = 10
"""Maximum attempts of one statement."""

DELAY_INITIAL_S: Final = 0.001
DELAY_MAX_S: Final = 0.05

_Answer = TypeVar("_Answer")


class Backoff:
    """Pauses that double, with jitter.

    Args:
        first_s: The first pause; 0 only lets other tasks run.
    """

    def __init__(self, first_s: float = DELAY_INITIAL_S) -> None:
        self._next_s = first_s

    async def pause(self) -> None:
        """Waits, and doubles the next pause."""
        await realtime.sleep(self._next_s * chance.current().uniform(0.5, 1.0))
        self._next_s = min(2 * self._next_s or DELAY_INITIAL_S, DELAY_MAX_S)


async def retried(
    statement: Callable[[], Awaitable[_Answer]], is_conflict: Callable[[Exception], bool]
) -> _Answer:
    """Runs a statement, and retries it after a conflict (a deadlock, a serialization failure)."""
    backoff = Backoff()
    for tries_left in reversed(range(TRIES_MAX)):
        try:
            return await statement()
        except Exception as error:
            if not tries_left or not is_conflict(error):
                raise
        await backoff.pause()
    raise AssertionError("never reached: the last try returns or raises")
