"""Run the benchmarks and print one table: ``python -m bench [--quick] [--json] [-k EXPRESSION]``."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
RATES = ("Mpps", "Mbit/s")  # more is better


def collect(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a pytest-benchmark result."""
    return [entry["extra_info"] for entry in json.loads(path.read_text())["benchmarks"] if "row" in entry["extra_info"]]


def spread(figures: list[float], unit: str) -> str:
    if not figures:
        return ""
    digits = 2 if unit != "ns" or statistics.median(figures) < 100 else 0
    return f"{statistics.median(figures):.{digits}f} {unit} [{min(figures):.{digits}f} - {max(figures):.{digits}f}]"


def bar_text(row: dict[str, Any]) -> str:
    if row["bar"] is None:
        return ""
    bar = f"{row['bar']:.2f}" if row["ratio"] is not None else f"{row['bar']} {row['unit']}"
    least = row["ratio"] is None and row["unit"] in RATES
    return f"{'>=' if least else '<='} {bar} {'met' if row['met'] else 'MISSED'}"


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as aligned text: figures are medians, with the range of the rounds behind them."""
    lines = [("", "virtio", "peer", "", "native", "ratio", "bar")]
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        native = f"{statistics.median(row['native']):.2f} ns" if row["native"] else ""
        lines.append((row["row"], spread(row["ours"], row["unit"]), spread(row["peer"], row["unit"]), row["peer_name"],
                      native, ratio, bar_text(row)))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    right = {1, 2, 4, 5}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def plot(rows: list[dict[str, Any]], path: Path) -> str:
    """Draw ratio by row; return a line that says where it is, or why it is not."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return "no plot: pip install 'virtio[plot]'"
    rows = [row for row in rows if row["ratio"] is not None and not row["row"].startswith("Python")][::-1]
    figure, axes = pyplot.subplots(figsize=(9, 0.32 * len(rows) + 1.2))
    axes.barh([row["row"] for row in rows], [row["ratio"] for row in rows], color="#4878a8", height=0.7)
    for i, row in enumerate(rows):
        axes.text(row["ratio"], i, f" {row['ratio']:.2f} x {row['peer_name']}", va="center", fontsize=7)
        if row["bar"] is not None:
            axes.plot([row["bar"], row["bar"]], [i - 0.4, i + 0.4], color="#b03030", linewidth=2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlim(0, max([1.5, *(row["ratio"] for row in rows)]) * 1.35)
    axes.set_xlabel("time a unit of each row's work, as a multiple of the peer's (less is better; red: the bar)")
    axes.tick_params(axis="y", labelsize=7)
    figure.tight_layout()
    figure.savefig(path)
    figure.savefig(path.with_suffix(".svg"))
    return f"plot: {path} and .svg"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 rounds of each instead of 7")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    parser.add_argument("-k", metavar="EXPRESSION", help="only benchmarks that match, as in pytest")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    result = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    command = [sys.executable, "-m", "pytest", "bench", "-q", "-p", "no:cacheprovider"]
    command += ["--benchmark-disable-gc", "--benchmark-quiet", f"--benchmark-json={result}"]
    command += ["-k", options.k] if options.k else []
    environment = {**os.environ, **({"VIRTIO_BENCH_ROUNDS": "3"} if options.quick else {})}
    # progress goes to stderr, so that --json leaves stdout to programs
    code = subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=False).returncode
    if not result.exists() or not result.stat().st_size:
        print("bench: nothing was measured", file=sys.stderr)
        return code or 1
    rows = collect(result)
    if options.json:
        print(json.dumps(rows, indent=1))
        return code
    print(f"\n{table(rows)}\n")
    machine = next((row["machine"] for row in rows if "machine" in row), None)
    if machine:
        print(f"machine: {machine}")
    print(f"results: {result}")
    print(plot(rows, result.with_suffix(".png")))
    return code


if __name__ == "__main__":
    sys.exit(main())
