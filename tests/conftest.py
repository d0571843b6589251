"""Fixtures of more than one test file."""

from __future__ import annotations

from guardpages import children
from offloads import guarded, simd
from spaces import space

__all__ = ["children", "guarded", "simd", "space"]
