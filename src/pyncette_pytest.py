"""Fixtures for pytest. pytest loads this module in every project where Pyncette is installed.

So it imports nothing of Pyncette before a fixture is used. The fixtures are ordinary ones, not
asynchronous: they work in any test, with pytest-asyncio, with anyio, and without both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyncette import Pyncette
    from pyncette.testing import Isolate, IsolatedApp, VirtualClock

__all__ = ["pyncette_clock", "pyncette_isolated"]


@pytest.fixture
def pyncette_clock() -> VirtualClock:
    """A clock that stands at 2026-01-01 00:00 UTC until the test moves it."""
    from pyncette.testing import VirtualClock

    return VirtualClock()


@pytest.fixture
def pyncette_isolated(pyncette_clock: VirtualClock) -> Iterator[Isolate]:
    """Isolates apps for the test, on the clock of ``pyncette_clock``.

    It is called with an app and the options of ``pyncette.testing.isolated``, which see. After the
    test, the app is as it was.
    """
    from pyncette.testing import isolated

    with ExitStack() as stack:

        def isolate(
            app: Pyncette, *, clock: VirtualClock | None = None, raise_task_errors: bool = True
        ) -> IsolatedApp:
            clock = pyncette_clock if clock is None else clock
            return stack.enter_context(
                isolated(app, clock=clock, raise_task_errors=raise_task_errors)
            )

        yield isolate
