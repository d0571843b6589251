"""Waiting for what another thread, process or kernel does."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], seconds: float = 10, what: str = "it did not happen") -> None:
    """Return when the condition holds; AssertionError with ``what`` after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.001)
