"""What machine this is, and whether something else is using it."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import psutil

BUSY = 20  # per cent of a core


def facts() -> dict[str, Any]:
    """Return psutil's facts of this machine, for extra_info."""
    frequency = psutil.cpu_freq()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "cpu": model,
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "mhz": round(frequency.current) if frequency else None,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def others(seconds: float = 0.5) -> list[str]:
    """Return the other processes that use over BUSY per cent of a core: with them, two-core figures are worthless."""
    mine = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    mine |= {parent.pid for parent in psutil.Process().parents()}
    processes = [process for process in psutil.process_iter(["name"]) if process.pid not in mine]
    for process in processes:
        try:
            process.cpu_percent()
        except psutil.Error:
            continue
    time.sleep(seconds)
    busy = []
    for process in processes:
        try:
            share = process.cpu_percent()
        except psutil.Error:
            continue
        if share > BUSY:
            busy.append(f"{process.info['name']} (pid {process.pid}) at {share:.0f} %")
    return busy
