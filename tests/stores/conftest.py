"""What the tests of the stores have in common."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from tests.measuring import unmeasured

UNMEASURED = {
    "test_calls_on_every_store",
    "test_cli_on_every_store",
    "test_dynamodb_plans",
    "test_engine_on_sqlite",
    "test_history_killed",
    "test_history_plans",
    "test_mysql_plans",
    "test_postgres_plans",
}
"""What makes the stores do nothing that the conformance suite does not make them do."""


@pytest.fixture(autouse=True, scope="module")
def measured_where_it_tells(request: pytest.FixtureRequest) -> Iterator[None]:
    """Stops coverage where it would see nothing new."""
    name = request.module.__name__.rpartition(".")[2]
    with unmeasured() if name in UNMEASURED else nullcontext():
        yield
