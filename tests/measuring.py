"""What coverage leaves out: to trace a test takes half as long again as the test, or as long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from coverage import Coverage


@contextmanager
def unmeasured() -> Iterator[None]:
    """Stops coverage in this process; those that tests start are left out (tests/conftest.py)."""
    measuring = Coverage.current()
    if measuring is not None:
        measuring.stop()
    try:
        yield
    finally:
        if measuring is not None:
            measuring.start()
