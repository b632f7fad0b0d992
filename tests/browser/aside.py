"""Places that are made and removed beside the browser."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

_T = TypeVar("_T")


@contextmanager
def aside(manager: AbstractContextManager[_T]) -> Iterator[_T]:
    """Enters and leaves a block in another thread.

    Playwright has an event loop in this one, in which ``asyncio.run`` cannot be called.
    """
    with ThreadPoolExecutor(1) as thread:
        value = thread.submit(manager.__enter__).result()
        try:
            yield value
        finally:
            thread.submit(manager.__exit__, None, None, None).result()
