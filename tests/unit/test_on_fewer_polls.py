"""Tests of the engine once more, with a clock that leaves out polls that can find nothing new."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests import support
from tests.unit import (
    test_execution,
    test_loop,
    test_per_worker,
    test_rebalance,
    test_run_until_idle,
    test_shared_partitions,
    test_steering,
    test_templates,
)
from tests.unit.test_on_uvloop import plain_tests

pytestmark = pytest.mark.exhaustive

COUNT_POLLS = (
    test_loop.test_the_store_is_looked_at_once_per_poll_interval_though_nothing_is_due,
    test_loop.test_the_store_is_looked_at_once_per_poll_interval_though_no_task_is_declared,
    test_steering.test_a_worker_without_templates_does_not_look_for_pauses,
)


@pytest.mark.parametrize(
    "test",
    [
        test
        for test in plain_tests(
            test_execution,
            test_loop,
            test_per_worker,
            test_rebalance,
            test_run_until_idle,
            test_shared_partitions,
            test_steering,
            test_templates,
        )
        if test not in COUNT_POLLS
    ],
    ids=lambda test: test.__name__.removeprefix("test_"),
)
def test_it_holds_with_fewer_polls_too(
    test: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "every_poll", False)
    test()
