"""The parts of the conformance suite; use them through :mod:`pyncette.testing.conformance`."""
