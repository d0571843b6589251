"""What ``virtio iperf`` says: statistics, tables, JSON and plot of measured rows.

The statistics are ministat's: per set N, Min, Max, Median, Avg and Stddev, and between two sets the difference of their
averages by Student's t with a pooled standard deviation, at 95 % confidence.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from virtio.cli.iperf.settings import DIRECTIONS, Direction

MARKS = "x+*%#@O"  # ministat's, one for each set
CONFIDENCE = 0.95


@dataclass
class Row:
    """What one NIC did in one direction, over all counted runs.

    ``packets`` and ``frame_bytes`` are of the stream's own direction, ``..._back`` of the acknowledgements'; ``kicks``,
    interrupts and ``copied`` (bytes that our code copied; the kernel's read and write of a TAP are not ours) are of
    both, for acknowledgements are part of a stream's price.
    """

    nic: str
    direction: Direction
    offloads: bool
    label: str
    mbit_s: list[float] = field(default_factory=list)
    verified: bool = True
    packets: int = 0
    packets_back: int = 0
    frame_bytes: int = 0
    frame_bytes_back: int = 0
    kicks: int = 0
    receive_interrupts: int = 0
    transmit_interrupts: int = 0
    copied: int = 0

    @property
    def median(self) -> float:
        """Median of the runs, Mbit/s; 0 if there is none."""
        return statistics.median(self.mbit_s) if self.mbit_s else 0.0

    @property
    def interrupts(self) -> int:
        """Interrupts of both kinds: frames arrived; frames that were sent are done."""
        return self.receive_interrupts + self.transmit_interrupts

    def as_dict(self) -> dict[str, Any]:
        """Return the row as it stands in the JSON object."""
        return {
            "nic": self.nic,
            "direction": self.direction,
            "offloads": self.offloads,
            "mbit_s": [round(value, 1) for value in self.mbit_s],
            "median": round(self.median, 1),
            "verified": self.verified,
            "packets": self.packets,
            "kicks": self.kicks,
            "interrupts": self.interrupts,
            "receive_interrupts": self.receive_interrupts,
            "transmit_interrupts": self.transmit_interrupts,
        }


def as_json(rows: Iterable[Row]) -> dict[str, Any]:
    """Return the object that ``--json`` prints."""
    return {"rows": [row.as_dict() for row in rows]}


def student_t(df: int, confidence: float = CONFIDENCE) -> float:
    """Return the t that a variate of Student's distribution stays within, on both sides, with this confidence.

    ``df``: degrees of freedom, 1 or more. The probability is the finite series for whole degrees (Abramowitz and
    Stegun, 26.7.3 and 26.7.4), its inverse is found by bisection. Raises ValueError out of range.
    """
    if df < 1:
        raise ValueError(f"{df} degrees of freedom: at least 1")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")

    def within(t: float) -> float:
        theta = math.atan(t / math.sqrt(df))
        cosine = math.cos(theta)
        odd = df % 2
        term, total = (cosine, 0.0) if odd else (1.0, 0.0)
        for k in range(1 + odd, df, 2):
            total += term
            term *= cosine * cosine * k / (k + 1)
        total *= math.sin(theta)
        return (theta + total) * 2 / math.pi if odd else total

    low, high = 0.0, 1.0
    while within(high) < confidence:
        low, high = high, high * 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < confidence else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Difference:
    """Of a set's average from a reference's; ``plus_minus`` is half the width of the confidence interval."""

    value: float
    plus_minus: float
    percent: float
    percent_plus_minus: float
    pooled: float

    @property
    def proven(self) -> bool:
        """Whether 0 lies outside of the interval."""
        return abs(self.value) > self.plus_minus


def difference(values: Sequence[float], reference: Sequence[float], confidence: float = CONFIDENCE) -> Difference:
    """Compare two sets as ministat does; ValueError for a set of fewer than two values, or a reference of average 0."""
    for name, a_set in (("values", values), ("reference", reference)):
        if len(a_set) < 2:
            raise ValueError(f"{len(a_set)} {name}: a standard deviation takes at least 2")
    average = statistics.fmean(reference)
    if not average:
        raise ValueError("the reference's average is 0")
    n, m = len(values), len(reference)
    pooled = math.sqrt(((n - 1) * statistics.variance(values) + (m - 1) * statistics.variance(reference)) / (n + m - 2))
    value = statistics.fmean(values) - average
    plus_minus = student_t(n + m - 2, confidence) * pooled * math.sqrt(1 / n + 1 / m)
    return Difference(value, plus_minus, 100 * value / average, 100 * plus_minus / average, pooled)


def say_difference(row: Row, reference: Row) -> list[str]:
    """Return lines that compare two rows; none where a comparison is impossible."""
    if len(row.mbit_s) < 2 or len(reference.mbit_s) < 2 or not statistics.fmean(reference.mbit_s):
        return []
    found = difference(row.mbit_s, reference.mbit_s)
    ratio = f"median {row.median / reference.median:.3f} x {reference.label}" if reference.median else ""
    if not found.proven:
        return [f"{row.label}: no difference from {reference.label} proven at {CONFIDENCE:.1%} confidence; {ratio}"]
    return [
        f"{row.label}: difference from {reference.label} at {CONFIDENCE:.1%} confidence; {ratio}",
        f"    {found.value:.6g} +/- {found.plus_minus:.6g}",
        f"    {found.percent:.4g}% +/- {found.percent_plus_minus:.4g}%",
        f"    (Student's t, pooled s = {found.pooled:.6g})",
    ]


def table(lines: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Align cells in columns, the first ``left`` ones to the left."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def ratio(value: float, by: float, digits: int = 1) -> str:
    return f"{value / by:,.{digits}f}" if by else "-"


def say_rows(rows: Sequence[Row]) -> str:
    """Return everything of the rows as text: per direction ministat's table, the differences, then what it took."""
    text: list[str] = []
    for direction in DIRECTIONS:
        of = [row for row in rows if row.direction == direction]
        if not of:
            continue
        lines: list[tuple[str, ...]] = [("", "N", "Min", "Max", "Median", "Avg", "Stddev", "verified")]
        for mark, row in zip(MARKS, of, strict=False):
            values = row.mbit_s or [0.0]
            deviation = f"{statistics.stdev(values):.1f}" if len(values) > 1 else "-"
            numbers = (min(values), max(values), row.median, statistics.fmean(values))
            lines.append(
                (
                    f"{mark} {row.label}",
                    str(len(row.mbit_s)),
                    *(f"{number:.1f}" for number in numbers),
                    deviation,
                    "yes" if row.verified else "NO",
                )
            )
        text += [f"{direction}, Mbit/s", *("  " + line for line in table(lines))]
        reference = next((row for row in of if row.nic == "tap-loop"), None)
        on = next((row for row in of if row.nic == "vtnet" and row.offloads), None)
        for row in of:
            if reference is not None and row.nic == "vtnet":
                text += ["  " + line for line in say_difference(row, reference)]
            if on is not None and row.nic == "vtnet" and not row.offloads and row.median:
                text.append(f"  {on.label}: {on.median / row.median:.2f} x {row.label}")
        text.append("")
        lines = [
            (
                "",
                "packets",
                "bytes/packet",
                "kicks",
                "packets/kick",
                "rx interrupts",
                "tx interrupts",
                "packets/interrupt",
                "copies/packet",
            )
        ]
        for mark, row in zip(MARKS, of, strict=False):
            both = row.packets + row.packets_back
            lines.append(
                (
                    f"{mark} {row.label}",
                    f"{row.packets:,}",
                    ratio(row.frame_bytes, row.packets, 0),
                    f"{row.kicks:,}",
                    ratio(both, row.kicks),
                    f"{row.receive_interrupts:,}",
                    f"{row.transmit_interrupts:,}",
                    ratio(both, row.interrupts),
                    ratio(row.copied, row.frame_bytes + row.frame_bytes_back, 3),
                )
            )
        text += ["  " + line for line in table(lines)]
        text.append("")
    return "\n".join(text).rstrip("\n")


def check_plot(path: str) -> None:
    """Raise ValueError unless path ends in .png or .svg and can be written, ImportError if matplotlib is missing."""
    if not path.lower().endswith((".png", ".svg")):
        raise ValueError(f"plot {path!r} ends neither in .png nor in .svg")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError("a plot takes matplotlib: pip install 'virtio[plot]'") from None
    folder = os.path.dirname(path) or "."
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise ValueError(f"plot {path!r} cannot be written: no such folder, or no permission")


def plot(rows: Sequence[Row], path: str) -> None:
    """Draw each run as a point and each row's median as a bar, one panel a direction; the name gives the format.

    Raises as :func:`check_plot`, and OSError if the file cannot be written.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    directions = [direction for direction in DIRECTIONS if any(row.direction == direction for row in rows)]
    figure = Figure(figsize=(1 + 4.5 * max(len(directions), 1), 4.8), layout="constrained")
    panels = figure.subplots(1, max(len(directions), 1), sharey=True, squeeze=False)[0]
    for panel, direction in zip(panels, directions, strict=False):
        of = [row for row in rows if row.direction == direction]
        for i, row in enumerate(of):
            bar = panel.bar(i, row.median, width=0.6, color=f"C{i}", alpha=0.45)
            panel.bar_label(bar, labels=[f"{row.median:,.0f}"], padding=3)
            n = len(row.mbit_s)
            panel.plot(
                [i + 0.3 * (k - (n - 1) / 2) / n for k in range(n)], row.mbit_s, ".", color="black", markersize=5
            )
        panel.set_xticks(range(len(of)), [row.label for row in of], rotation=15)
        panel.set_title(direction)
        panel.grid(axis="y", alpha=0.3)
        panel.set_ylim(bottom=0)
        panel.margins(y=0.12)
    panels[0].set_ylabel("Mbit/s (TCP payload): runs, and their median")
    figure.savefig(path)
