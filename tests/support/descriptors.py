"""What this process has open."""

from __future__ import annotations

import gc
import os
from collections import Counter
from contextlib import suppress


def open_files() -> list[str]:
    """Return what the descriptors of this process are for."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(found)


def open_kinds() -> Counter[str]:
    """Return how many are open, by kind."""
    return Counter(name.partition(":")[0] for name in open_files())


def open_count() -> int:
    """Return how many are open when all garbage has gone."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
