"""Who asks for a call: a name that travels with the code that makes it, for events and the log."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Final

__all__ = ["acting_as", "actor"]

ACTOR_CHARACTERS_MAX: Final = 200

_actor: Final[ContextVar[str | None]] = ContextVar("pyncette actor", default=None)

actor: Final = _actor.get
"""Returns who the calls of this code are made for; None: nobody was named."""


class acting_as:  # noqa: N801
    """Says who the calls within a ``with`` block are made for.

    The events of these calls name it (``pyncette.events.Steered``), so does the log, and a pause
    keeps it in the store. It holds for this thread or asyncio task, for what it awaits, for tasks
    and threads that ``asyncio`` starts meanwhile, and for the calls of ``app.sync()``. Within
    another such block, the inner one holds.

    It is a note, and no check of rights: whoever calls says it.

    Example:
        ``with acting_as("alice@example.com"): await context.pause(report)``
    """

    __slots__ = ("_name", "_tokens")

    def __init__(self, name: str) -> None:
        """Names who acts.

        Args:
            name: The name of a person or of a program; 1 to 200 characters.

        Raises:
            TypeError: It is not a string.
            ValueError: It is empty, or too long.
        """
        if not isinstance(name, str):
            raise TypeError(f"acting_as takes the name of a person or a program, not {name!r}")
        if not name.strip() or len(name) > ACTOR_CHARACTERS_MAX:
            raise ValueError(
                f"acting_as takes a name of 1 to {ACTOR_CHARACTERS_MAX} characters, not {name!r}"
                if len(name) <= ACTOR_CHARACTERS_MAX
                else f"acting_as takes a name of 1 to {ACTOR_CHARACTERS_MAX} characters, not one "
                f"of {len(name):,}"
            )
        self._name = name
        self._tokens: list[Token[str | None]] = []

    def __enter__(self) -> None:
        self._tokens.append(_actor.set(self._name))

    def __exit__(self, *exception: object) -> None:
        _actor.reset(self._tokens.pop())
