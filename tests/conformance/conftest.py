"""What the conformance suite has in common on all stores."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from tests.measuring import unmeasured

MEASURED = {
    "TestCasStoreWithALaggingIndex",
    "TestDynamoDB",
    "TestMysql",
    "TestPostgres",
    "TestRedis",
    "TestSqliteFile",
}
"""The classes in which coverage measures: one for each store, and what only a lagging one runs."""


@pytest.fixture(autouse=True, scope="class")
def measured_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """Stops coverage where another class runs the same tests on the same store."""
    assert request.cls is not None
    with nullcontext() if request.cls.__name__ in MEASURED else unmeasured():
        yield
