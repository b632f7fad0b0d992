"""What the conformance suite has in common on all stores."""

from collections.abc import Iterator

import pytest
from coverage import Coverage

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
    """Stops coverage where another class runs the same tests on the same store.

    To trace a test takes as long again as the test.
    """
    assert request.cls is not None
    if request.cls.__name__ in MEASURED:
        yield
        return
    measuring = Coverage.current()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        if measuring is not None:
            measuring.stop()
        try:
            yield
        finally:
            if measuring is not None:
                measuring.start()
