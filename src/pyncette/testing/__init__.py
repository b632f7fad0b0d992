"""Tools to test a program that uses Pyncette, or a store written for it."""

from pyncette.testing.clocks import ScaledClock, VirtualClock
from pyncette.testing.contexts import context_for
from pyncette.testing.isolation import Isolate, IsolatedApp, isolated

__all__ = ["Isolate", "IsolatedApp", "ScaledClock", "VirtualClock", "context_for", "isolated"]
