"""The conformance suite for stores: it tests every sentence of the storage contract.

Needs pytest and Hypothesis. To test a store, write five lines::

    class TestMyStore(StoreConformance):
        @pytest.fixture
        def place(self, tmp_path):
            return Place(my_repository, {"my_database": tmp_path / "tasks"})

The place must be empty at the beginning of each test. If the store can do more than the minimum, or
less than usual, set class attributes: see ``StoreConformance``.
"""

from __future__ import annotations

import pytest

# Before these modules are imported, so that their assertions show the compared values.
pytest.register_assert_rewrite("pyncette.testing.suite")

from pyncette.testing.suite.choosing import Choosing  # noqa: E402
from pyncette.testing.suite.claiming import Claiming  # noqa: E402
from pyncette.testing.suite.editing import Editing  # noqa: E402
from pyncette.testing.suite.harness import Place  # noqa: E402
from pyncette.testing.suite.history import Remembering  # noqa: E402
from pyncette.testing.suite.machine import Agreeing  # noqa: E402
from pyncette.testing.suite.reading import Reading  # noqa: E402
from pyncette.testing.suite.sharing import Sharing  # noqa: E402
from pyncette.testing.suite.writing import Writing  # noqa: E402

__all__ = ["Place", "StoreConformance"]


class StoreConformance(
    Claiming, Choosing, Writing, Reading, Editing, Sharing, Remembering, Agreeing
):
    """Inherit from this class, and add a fixture ``place`` that returns an empty ``Place``.

    Class attributes:

    * ``contexts = True``: two openings of one place see the same records.
    * ``processes = False``: two processes see the same records. The factory must be importable.
    * ``wakes = False``: ``watch`` notifies of writes by other openings of the place.
    * ``bounds_claims = True``: a store with a clock compares with it in the statement of the claim
      (``bounded``). Set False if the database cannot; the store then ignores ``bounded``.
    * ``edits = False``: set True and override ``edit``, which changes a column of a row without
      the store, and returns False if the database refuses the value.
    * ``prunes = True``: ``prune`` of the run history removes rows at once. The tests of the history
      are skipped if the store has none.
    * ``index_lags = False``: a claim may miss a record that was just written. Also override
      ``async def index_catches_up(self, store)``.
    * ``many = 1_000``: how many records make a large batch: more than the store reads or writes
      with one statement or request. Smaller numbers make the suite faster on a slow server.
    """
