"""What the package costs before it does anything: import time and the size of the wheel."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.conftest import ROUNDS

IMPORT_BAR_MS = 50
WHEEL_BAR_MB = 3


def start_ms(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return (time.perf_counter() - start) * 1e3


def note(benchmark: Any, row: str, unit: str, ours: list[float], peer_name: str, peer: list[float], bar: float) -> None:
    """Note a row whose bar is a plain figure, not a ratio."""
    middle = sorted(ours)[len(ours) // 2]
    benchmark.extra_info.update(row=row, unit=unit, ours=ours, peer_name=peer_name, peer=peer, native=[], ratio=None,
                                bar=bar, met=middle <= bar)  # fmt: skip


def test_import(benchmark: Any) -> None:
    bare: list[float] = []
    ours: list[float] = []

    def measure() -> None:
        ours.append(start_ms("import virtio") - bare[-1])

    benchmark.pedantic(measure, setup=lambda: bare.append(start_ms("pass")), rounds=2 * ROUNDS, warmup_rounds=1)
    note(benchmark, "import virtio, over a bare interpreter", "ms", ours, "python -c pass", bare, IMPORT_BAR_MS)


def test_wheel_size(benchmark: Any) -> None:
    sizes: list[float] = []

    def measure() -> None:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, "."],
                cwd=Path(__file__).parent.parent, check=True,
            )  # fmt: skip
            sizes.append(sum(wheel.stat().st_size for wheel in Path(folder).glob("*.whl")) / 1e6)

    benchmark.pedantic(measure, rounds=1)
    note(benchmark, "wheel", "MB", sizes, "", [], WHEEL_BAR_MB)
