"""Fixtures of more than one test file."""

from __future__ import annotations

from offloads import guarded, simd
from spaces import space

__all__ = ["guarded", "simd", "space"]
