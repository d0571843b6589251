"""Fixtures of more than one test file."""

from __future__ import annotations

import signal

from guardpages import children
from hypothesis import HealthCheck, settings
from offloads import guarded, simd
from spaces import space

__all__ = ["children", "guarded", "simd", "space"]

# how fast inputs are made says something of the machine, and nothing of the code
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_configure() -> None:
    """Take SIGINT, which a shell ignores for a suite in its background: programs under test inherit that, and stay."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
