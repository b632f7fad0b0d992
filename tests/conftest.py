"""What all tests have in common."""

import gc

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
