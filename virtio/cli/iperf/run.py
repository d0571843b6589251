"""The main job: TCP streams of the real kernel through our driver, our rings and our device, beside no device at all.

The same traffic takes each path (virtio.cli.iperf.paths) in turns, so that what changes on the machine meanwhile meets
all of them alike.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from virtio.cli.iperf.generator import GeneratorPath
from virtio.cli.iperf.paths import Counts, Path, TapLoopPath, Traffic, VtnetPath
from virtio.cli.iperf.report import Row
from virtio.cli.iperf.settings import Direction, Settings
from virtio.cli.iperf.traffic import Result, TrafficError
from virtio.cli.progress import Progress
from virtio.errors import ConfigError, VirtioError
from virtio.net.netns import Namespace, become_root

WIDTH = 118
Say = Callable[[str], None]


class IperfError(Exception):
    """The measurement cannot be made; the message says why."""


@dataclass
class Found:
    """Rows, and in words what went wrong."""

    rows: list[Row]
    faults: list[str] = field(default_factory=list)


def add_run(row: Row, before: Counts, after: Counts, result: Result) -> None:
    """Count a run in."""
    back: Direction = "host-to-guest" if row.direction == "guest-to-host" else "guest-to-host"
    row.mbit_s.append(result.mbit_s)
    row.packets += after.packets[row.direction] - before.packets[row.direction]
    row.packets_back += after.packets[back] - before.packets[back]
    row.frame_bytes += after.frame_bytes[row.direction] - before.frame_bytes[row.direction]
    row.frame_bytes_back += after.frame_bytes[back] - before.frame_bytes[back]
    row.kicks += after.kicks - before.kicks
    row.receive_interrupts += after.receive_interrupts - before.receive_interrupts
    row.transmit_interrupts += after.transmit_interrupts - before.transmit_interrupts
    row.copied += after.copied - before.copied


def measure(paths: Sequence[Path], settings: Settings, progress: Progress) -> Found:
    """Warm each path up in each direction, then run them in turns."""
    rows = [
        (path, Row(path.nic, direction, path.offloads, path.label))
        for direction in settings.directions
        for path in paths
    ]
    found = Found([row for _, row in rows])

    def attempt(path: Path, row: Row, number: int, place: str) -> None:
        """Do one run; number 0 is the warm-up."""
        where = f"run {number}: " if number else ""
        before = path.counts()

        def rate(seconds: float) -> str:
            """Return the bits of frames per second until now; "" for a path that counts at its end."""
            moved = path.counts().frame_bytes[row.direction] - before.frame_bytes[row.direction]
            return f"{moved * 8 / seconds / 1e6:,.0f} Mbit/s" if moved else ""

        what = f"run {number} of {settings.runs}" if number else "warm-up"
        try:
            with progress.during(f"{place}, {what}: {row.direction}, {row.label}", rate):
                result = path.run(row.direction) if number else path.warm_up(row.direction)
        except TrafficError as error:
            fault = str(error)
        else:
            fault = result.wrong
            if number:
                add_run(row, before, path.counts(), result)
        if fault:
            row.verified = False
            found.faults.append(f"{row.label}, {row.direction}: {where}{fault}")

    def attempt_all(number: int) -> None:
        for place, (path, row) in enumerate(rows, 1):
            attempt(path, row, number, f"row {place} of {len(rows)}")

    attempt_all(0)
    rows = [(path, row) for path, row in rows if row.verified]  # what does not work is not waited for again
    for number in range(1, settings.runs + 1):
        attempt_all(number)
    return found


def without_kernel() -> str:
    """Return why no kernel's TCP can be had here; "" if it can. The process may become root of a user namespace."""
    try:
        become_root()
        with Namespace() as space, space.tap():
            return ""
    except (ConfigError, OSError) as error:
        return str(error)


def run(settings: Settings, say: Say, progress: Progress, note: Say) -> Found:
    """Make the paths that the settings ask for, measure them, and take them down again.

    ``say`` is told what is measured, ``note`` what is other than was to be expected; ``progress`` shows how far it is.
    Raises IperfError. To be called while the process has one thread, unless it is root's.
    """
    if not settings.generator and (reason := without_kernel()):
        if settings.iperf3:
            raise IperfError(f"iperf3 takes network namespaces: {reason}")
        note(f"no TCP of the kernel can be had here: {reason}; the packet generator takes its place")
        settings = replace(settings, generator=True)
    if settings.generator and "tap-loop" in settings.rows:
        settings = replace(settings, rows=[row for row in settings.rows if row != "tap-loop"])
        note("there is no tap-loop without network namespaces")
    with ExitStack() as stack:
        progress("making the machines")
        try:
            paths = make_paths(settings, stack)
        except (OSError, MemoryError, VirtioError) as error:
            raise IperfError(str(error) or "out of memory") from None
        for path in paths:
            say(textwrap.fill(f"{path.label}: {path.about()}", WIDTH, subsequent_indent="  "))
            if settings.verbose and path.details():
                say(path.details())
        return measure(paths, settings, progress)


def make_paths(settings: Settings, stack: ExitStack) -> list[Path]:
    """Make a path for each row; the stack takes them down."""
    if settings.generator:
        return [GeneratorPath(settings, row == "vtnet") for row in settings.rows]
    traffic = Traffic(settings, stack)  # its processes are started while we have one thread
    return [
        TapLoopPath(settings, stack, traffic)
        if row == "tap-loop"
        else VtnetPath(settings, stack, traffic, offloads=row == "vtnet")
        for row in settings.rows
    ]
