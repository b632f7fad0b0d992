"""The suite that proves a store: every sentence of the storage contract as a test.

Needs pytest and Hypothesis. A store is proven in five lines::

    class TestMyStore(StoreConformance):
        @pytest.fixture
        def place(self, tmp_path):
            return Place(my_repository, {"my_database": tmp_path / "tasks"})

The place must be empty at the beginning of each test. Where the store can do more than the least,
or less than is usual, class attributes say so: see ``StoreConformance``.
"""

from __future__ import annotations

import pytest

# Before these modules are imported: their assertions then tell the values that they compared.
pytest.register_assert_rewrite("pyncette.testing.suite")

from pyncette.testing.suite.choosing import Choosing  # noqa: E402
from pyncette.testing.suite.claiming import Claiming  # noqa: E402
from pyncette.testing.suite.editing import Editing  # noqa: E402
from pyncette.testing.suite.harness import Place  # noqa: E402
from pyncette.testing.suite.machine import Agreeing  # noqa: E402
from pyncette.testing.suite.reading import Reading  # noqa: E402
from pyncette.testing.suite.sharing import Sharing  # noqa: E402
from pyncette.testing.suite.writing import Writing  # noqa: E402

__all__ = ["Place", "StoreConformance"]


class StoreConformance(Claiming, Choosing, Writing, Reading, Editing, Sharing, Agreeing):
    """Inherit from it, with a fixture ``place`` that returns an empty ``Place``.

    Class attributes:

    * ``contexts = True``: two openings of one place see the same records.
    * ``processes = False``: so do two processes. The factory must then be importable.
    * ``wakes = False``: ``watch`` tells of what other openings of the place write.
    * ``bounds_claims = True``: a store with a clock compares with it in the statement that claims
      (``bounded``). Set False where the database cannot; the store then ignores ``bounded``.
    * ``edits = False``: set True and override ``edit``, which changes a column of a row past the
      store, and returns False where the database refuses the value.
    * ``index_lags = False``: a claim may miss what was written a moment ago; override
      ``async def index_catches_up(self, store)``, too.
    """
