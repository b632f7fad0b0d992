"""The core once more, on SQLite: a file of its own for each test."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from tests import support
from tests.unit import test_app, test_context, test_execution, test_failures, test_loop
from tests.unit.test_on_uvloop import plain_tests

from pyncette.sqlite import sqlite_repository
from pyncette.store import Store

NOT_HERE = {
    # Other workers on a file are heard of when the thread of the store looks, in real time.
    "test_another_worker_is_told_of_what_comes_due_sooner_than_it_looks",
    "test_a_store_that_returns_tells_of_changes_again",
    # Passes of the event loop are counted, and calls to the thread take any number of them.
    "test_a_backlog_of_outcomes_that_is_written_is_no_reason_to_wait_for_the_next_poll",
    "test_an_at_most_once_run_that_is_cancelled_before_its_advance_leaves_keeps_the_record",
}


@pytest.mark.parametrize(
    "test",
    plain_tests(test_app, test_context, test_execution, test_failures, test_loop, but=NOT_HERE),
    ids=lambda test: test.__name__.removeprefix("test_"),
)
def test_it_holds_on_sqlite_too(
    test: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = 0

    class Repository:
        def __init__(self) -> None:
            nonlocal files
            files += 1
            self.path = tmp_path / f"{files}.db"

        def __call__(self, **configuration: Any) -> AbstractAsyncContextManager[Store]:
            return sqlite_repository(**{**configuration, "sqlite_database": str(self.path)})

    monkeypatch.setattr(support, "MemoryRepository", Repository)
    test()
