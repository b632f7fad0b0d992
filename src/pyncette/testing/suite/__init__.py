"""The parts of the conformance suite; use them through ``pyncette.testing.conformance``."""
