"""The main job: TCP streams of the real kernel through our driver, our rings and our device, beside no device at all.

A *path* leads from network namespace A, the guest's side, to B, the host's side. Of each path the same traffic is
measured, in turns, so that what changes on the machine meanwhile meets all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from virtio.errors import ConfigError, VirtioError
from virtio.net.iperf_paths import Counts, Path, Settings, TapLoopPath, VtnetPath
from virtio.net.iperf_report import Direction, Row
from virtio.net.iperf_traffic import Iperf3, Result, Streams, TrafficError
from virtio.net.netns import become_root

HASHED = 32 << 20  # bytes of the warm-up, which is verified by SHA-256
HASHED_OFF = 8 << 20  # where each takes longer
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
    row.kicks += after.kicks - before.kicks
    row.interrupts += after.interrupts - before.interrupts
    row.copied += after.copied - before.copied


def measure(paths: Sequence[Path], settings: Settings, progress: Say) -> Found:
    """Warm each path up with a hashed stream, then run them in turns."""
    rows = [
        (path, Row(path.nic, direction, path.offloads, path.label))
        for direction in settings.directions
        for path in paths
    ]
    found = Found([row for _, row in rows])

    def fail(row: Row, what: str) -> None:
        row.verified = False
        found.faults.append(f"{row.label}, {row.direction}: {what}")

    with Streams(settings.streams) as streams:
        traffic = Iperf3(settings.streams) if settings.iperf3 else streams
        for path, row in rows:
            progress(f"{row.direction}, {row.label}: warm-up")
            try:
                size = HASHED if path.offloads else HASHED_OFF
                result = streams.run_hashed(*path.spaces[row.direction], path.addresses[row.direction], size)
            except TrafficError as error:
                fail(row, str(error))
            else:
                if result.wrong:
                    fail(row, result.wrong)
        rows = [(path, row) for path, row in rows if row.verified]  # what does not work is not waited for again
        for number in range(1, settings.runs + 1):
            for path, row in rows:
                progress(f"run {number} of {settings.runs}, {row.direction}, {row.label}")
                before = path.counts()
                try:
                    spaces = path.spaces[row.direction]
                    result = traffic.run(*spaces, path.addresses[row.direction], settings.seconds)
                except TrafficError as error:
                    fail(row, f"run {number}: {error}")
                    continue
                add_run(row, before, path.counts(), result)
                if result.wrong:
                    fail(row, f"run {number}: {result.wrong}")
    return found


def run(settings: Settings, say: Say, progress: Say) -> Found:
    """Make the paths that the settings ask for, measure them, and take them down again."""
    try:
        if become_root():
            say("no root: in a user namespace, in which we are")
    except ConfigError as error:
        raise IperfError(f"no network namespaces can be made: {error}") from None
    with ExitStack() as stack:
        progress("making network namespaces")
        try:
            paths = [make_path(row, settings, stack) for row in settings.rows]
        except (OSError, VirtioError) as error:
            raise IperfError(str(error)) from None
        for path in paths:
            say(f"{path.label}: {path.about()}")
        return measure(paths, settings, progress)


def make_path(row: str, settings: Settings, stack: ExitStack) -> Path:
    """Make the path of a row; the stack takes it down."""
    if row == "tap-loop":
        return TapLoopPath(settings, stack)
    return VtnetPath(settings, stack, offloads=row == "vtnet")
