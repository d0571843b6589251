"""Two threads, one ring, every byte checked: ``python -m bench.stress [--buffers N] [--format F] [--sleep] [--json]``.

The driver fills each buffer from a sequence, the device checks it and answers, the driver checks answer and order.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from bench import rings
from virtio import Feature
from virtio.cli.pair import Pair
from virtio.cli.progress import Progress


def stress(mode: str, buffers: int, progress: Progress, *, batch: int = 32, sleep: bool = False) -> dict[str, Any]:
    """Run one format; return its row. Raises what Pair.drive and Pair.serve raise."""
    driver, device = rings.ends(mode, features=Feature.EVENT_IDX)
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)] if sleep else [-1, -1]
    pair = Pair(
        driver, device, count=buffers, batch=batch, buffers=rings.BUFFERS, verify=True, kick=fds[0], call=fds[1]
    )

    def returned(seconds: float) -> str:
        return f"{pair.returned:,} of {buffers:,} buffers ({100 * pair.returned / buffers:.0f} %)"

    try:
        with progress.during(mode, returned):
            ns = rings.two_cores(pair)
    finally:
        for fd in fds:
            if fd >= 0:
                os.close(fd)
    return {"format": mode, "sleep": sleep, "buffers": pair.returned, "ns": round(ns, 1),
            "kicks": driver.counters()["kicks"], "calls": device.counters()["calls"]}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.stress", description=__doc__)
    parser.add_argument(
        "--buffers", type=int, default=100_000_000, help="buffers for each format (default %(default)s)"
    )
    parser.add_argument("--format", choices=["split", "packed", "both"], default="both")
    parser.add_argument("--sleep", action="store_true", help="sleep on eventfds instead of polling")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.buffers < 1:
        parser.error(f"--buffers {options.buffers} is not positive")
    modes = ["split", "packed"] if options.format == "both" else [options.format]
    progress = Progress(quiet=options.json)
    rows = [stress(mode, options.buffers, progress, batch=options.batch, sleep=options.sleep) for mode in modes]
    if options.json:
        print(json.dumps(rows))
        return 0
    print(f"{'format':8}  {'buffers':>13}  {'ns/buffer':>9}  {'kicks':>10}  {'calls':>10}  verified")
    for row in rows:
        counts = f"{row['kicks']:>10,}  {row['calls']:>10,}"
        print(f"{row['format']:8}  {row['buffers']:>13,}  {row['ns']:>9}  {counts}  every byte")
    return 0


if __name__ == "__main__":
    sys.exit(main())
