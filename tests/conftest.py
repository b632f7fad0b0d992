"""What all tests have in common."""

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# How fast examples are made is no property of the code: on a busy machine it differs by ten.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_collection_finish() -> None:
    """Takes all that the collected tests consist of out of the sight of the garbage collector.

    To walk through it takes 0.2 s, at each of the hundreds of collections that tests ask for.
    """
    gc.collect()
    gc.freeze()


OF_COVERAGE = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")
"""What tells a Python process, when it starts, to measure its coverage."""

_asked_for = {name: os.environ[name] for name in OF_COVERAGE if name in os.environ}


@pytest.fixture(autouse=True, scope="session")
def processes_unmeasured() -> Iterator[None]:
    """Lets coverage leave out the processes that tests start.

    To start one would take twice as long, and nearly all of them reach what is reached here, too.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in OF_COVERAGE:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets coverage measure the processes that a test starts, for what only they reach."""
    for name, value in _asked_for.items():
        monkeypatch.setenv(name, value)
