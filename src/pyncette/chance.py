"""The only source of randomness in the package: ids, backoff, the order of requests.

Nothing here is secret. A simulation replaces the source, so that a seed replays a whole run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["current", "new_id", "use"]

_source = random.Random()


def current() -> random.Random:
    """The source that is in use."""
    return _source


def new_id(bytes_count: int) -> str:
    """Random hexadecimal digits, two for each byte."""
    return _source.randbytes(bytes_count).hex()


@contextmanager
def use(source: random.Random) -> Iterator[None]:
    """Uses ``source`` for all randomness inside the block; for simulations."""
    global _source  # noqa: PLW0603 (there is one source, as there is one clock of the machine)
    before, _source = _source, source
    try:
        yield
    finally:
        _source = before


def _seed_again() -> None:
    _source.seed()


if hasattr(os, "register_at_fork"):
    # A child process must not repeat the names and tokens of its parent.
    os.register_at_fork(after_in_child=_seed_again)
