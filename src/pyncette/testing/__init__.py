"""What a program that uses Pyncette, or a store written for it, is tested with."""

from pyncette.testing.clocks import ScaledClock, VirtualClock

__all__ = ["ScaledClock", "VirtualClock"]
