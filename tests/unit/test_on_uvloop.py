"""The core once more, on uvloop."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from types import ModuleType

import pytest
from tests import support
from tests.unit import test_app, test_context, test_execution, test_loop

pytestmark = pytest.mark.exhaustive


def plain_tests(*modules: ModuleType, but: Collection[str] = ()) -> list[Callable[[], None]]:
    """The tests of these modules that take nothing, so that they can be called."""
    return [
        test
        for module in modules
        for name, test in vars(module).items()
        if name.startswith("test_")
        and name not in but
        and inspect.isfunction(test)
        and not inspect.signature(test).parameters
    ]


# What a test sees of single passes of the event loop, it sees on asyncio's own only.
PASSES_COUNTED = {
    "test_a_backlog_of_outcomes_that_is_written_is_no_reason_to_wait_for_the_next_poll",
}


@pytest.mark.parametrize(
    "test",
    plain_tests(test_app, test_context, test_execution, test_loop, but=PASSES_COUNTED),
    ids=lambda test: test.__name__.removeprefix("test_"),
)
def test_it_holds_on_uvloop_too(test: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    uvloop = pytest.importorskip("uvloop")
    monkeypatch.setattr(support, "loop_factory", uvloop.new_event_loop)
    test()
