"""What coverage leaves out: to trace a test takes half as long again as the test, or as long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from coverage import Coverage


@contextmanager
def processes_unmeasured() -> Iterator[None]:
    """Lets coverage leave out the processes that are started meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        patch.delenv("COVERAGE_PROCESS_START", raising=False)
        yield


@contextmanager
def unmeasured() -> Iterator[None]:
    """Stops coverage, in this process and in those that are started meanwhile."""
    measuring = Coverage.current()
    with processes_unmeasured():
        if measuring is not None:
            measuring.stop()
        try:
            yield
        finally:
            if measuring is not None:
                measuring.start()
