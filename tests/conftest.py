"""What all tests have in common."""

from hypothesis import HealthCheck, settings

# How fast examples are made is no property of the code: on a busy machine it differs by ten.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
