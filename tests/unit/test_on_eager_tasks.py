"""The core once more, on an event loop that starts every task at once.

A task may then have ended before its creator goes on.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import pytest
from tests import support
from tests.unit import test_bodies, test_closing, test_context, test_execution, test_loop
from tests.unit.test_on_uvloop import plain_tests

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="there are eager task factories from Python 3.12 on"
)


def eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    return loop


@pytest.mark.parametrize(
    "test",
    plain_tests(test_bodies, test_closing, test_context, test_execution, test_loop),
    ids=lambda test: test.__name__.removeprefix("test_"),
)
def test_it_holds_with_eager_tasks_too(
    test: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "loop_factory", eager_loop)
    test()
