"""Tools to test a program that uses Pyncette, or a store written for it."""

from pyncette.testing.clocks import ScaledClock, VirtualClock

__all__ = ["ScaledClock", "VirtualClock"]
