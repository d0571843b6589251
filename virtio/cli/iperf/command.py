"""The command ``virtio iperf``: its arguments, its progress, and how it ends."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from virtio import features as feature_sets
from virtio.cli.iperf.settings import DIRECTIONS, OFFLOADS, ROWS, SPIN_US, Settings
from virtio.cli.progress import Progress
from virtio.constants import DeviceType, Feature, NetFeature

# what --no-NAME withholds, and how it is said; every other bit by --withhold
SWITCHES: dict[str, tuple[int, str]] = {
    "csum": (OFFLOADS["csum"], "checksums, and all that needs them"),
    "tso4": (OFFLOADS["tso4"], "TCP segmentation over IPv4, both ways"),
    "tso6": (OFFLOADS["tso6"], "TCP segmentation over IPv6, both ways"),
    "ecn": (OFFLOADS["ecn"], "segmentation of what has CWR set"),
    "ufo": (OFFLOADS["ufo"], "UDP fragmentation"),
    "uso": (OFFLOADS["uso"], "UDP segmentation"),
    "mrg-rxbuf": (NetFeature.MRG_RXBUF, "mergeable receive buffers"),
    "event-idx": (Feature.EVENT_IDX, "notifications by index"),
    "indirect": (Feature.INDIRECT_DESC, "indirect descriptors"),
}


def number(low: float, high: float, kind: type = int) -> Callable[[str], Any]:
    """Make a converter of numbers from low to high."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {low:g} to {high:g}")
        return value

    return convert


def choice_list(known: tuple[str, ...], empty: bool = False) -> Callable[[str], tuple[str, ...]]:
    """Make a converter of lists of names, separated by commas; each name counts once. ``empty``: "" is a list, too."""

    def convert(text: str) -> tuple[str, ...]:
        words = [word for word in text.split(",") if word]
        for word in words:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(known)}")
        if not words and (text or not empty):
            raise argparse.ArgumentTypeError(f"{text!r} names none of {', '.join(known)}")
        return tuple(dict.fromkeys(words))

    return convert


def feature_list(text: str) -> int:
    try:
        return feature_sets.parse(text, DeviceType.NET)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def plot_name(text: str) -> str:
    from virtio.cli.iperf import report as iperf_report

    try:
        iperf_report.check_plot(text)
    except (ValueError, ImportError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_to(commands: Any) -> None:
    """Add the command to an argparse subparsers object."""
    command = commands.add_parser(
        "iperf",
        help="TCP streams of the kernel through our driver and our device",
        description="""Move TCP streams of the Linux kernel between two network namespaces, both ways: through our vtnet
driver, our rings and our virtio-net device on a legacy PCI bus; the same without offloads; and through two TAPs joined
by a bare loop of read and write (tap-loop: the price of no device at all). Every byte that arrives is verified.""",
        epilog="""Exit code: 0; 1 if a stream failed or was not verified; 2 for bad arguments; 130 after SIGINT.""",
    )
    add = command.add_argument
    add(
        "--runs",
        type=number(1, 1000),
        default=Settings.runs,
        metavar="N",
        help="of each row and direction (default %(default)s)",
    )
    add(
        "--seconds",
        type=number(0.01, 3600, float),
        default=Settings.seconds,
        metavar="S",
        help="of a run (default %(default)s)",
    )
    add("--direction", choices=(*DIRECTIONS, "both"), default="both", help="(default %(default)s)")
    add("--rows", type=choice_list(ROWS), default=ROWS, metavar="LIST", help=f"of {','.join(ROWS)} (default all)")
    add("--mtu", type=number(576, 65521), default=1500, metavar="BYTES", help="(default %(default)s)")
    add("--ipv6", action="store_true", help="IPv6 in place of IPv4")
    add("--queues", type=number(1, 8), default=1, metavar="N", help="queue pairs of each NIC (default %(default)s)")
    add("--streams", type=number(1, 64), metavar="N", help="TCP streams at a time (default: as many as queues)")
    add(
        "--offloads", type=choice_list(tuple(OFFLOADS), empty=True), default=tuple(OFFLOADS), metavar="LIST",
        help=f"of the row with offloads: of {','.join(OFFLOADS)} (default all)",
    )  # fmt: skip
    for name, (_, what) in SWITCHES.items():
        add(f"--no-{name}", action="append_const", dest="withhold", const=name, help=f"withhold {what}")
    add(
        "--withhold", type=feature_list, action="append", metavar="LIST",
        help="feature bits that the device does not offer, by the specification's names",
    )  # fmt: skip
    ring = command.add_mutually_exclusive_group()
    ring.add_argument("--split", action="store_true", help="split rings over the legacy PCI bus (default)")
    ring.add_argument(
        "--packed", action="store_true",
        help="packed rings; driver and device are then joined directly, as legacy PCI cannot negotiate packed",
    )  # fmt: skip
    add("--queue-size", type=number(4, 32768), default=256, metavar="N", help="descriptors (default %(default)s)")
    add(
        "--workers", type=number(1, 2), default=1, metavar="N",
        help="threads: 1 for driver and device together, 2: one each (default %(default)s)",
    )  # fmt: skip
    add("--mode", choices=("adaptive", "busy"), default="adaptive", help="of the threads (default %(default)s)")
    add("--spin-us", type=number(0, 10**6), default=SPIN_US, metavar="US",
        help="microseconds that an idle thread polls before it sleeps (default %(default)s)")  # fmt: skip
    add(
        "--generator", action="store_true",
        help="packets of a generator in place of the kernel's TCP: needs no namespaces, as where they cannot be had",
    )  # fmt: skip
    add("--iperf3", action="store_true", help="traffic of iperf3 (its content is not looked at: see the manual)")
    add("-v", "--verbose", action="store_true", help="say what was offered and negotiated, feature by feature")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add("--plot", type=plot_name, metavar="FILE", help="draw the runs too, into a .png or .svg")
    command.set_defaults(run=run)


def settings(options: argparse.Namespace) -> Settings:
    """Return what the arguments ask for."""
    withheld = 0
    for word in options.withhold or ():
        withheld |= SWITCHES[word][0] if isinstance(word, str) else word
    for name in OFFLOADS:
        if name not in options.offloads:
            withheld |= SWITCHES[name][0]
    return Settings(
        runs=options.runs,
        seconds=options.seconds,
        directions=DIRECTIONS if options.direction == "both" else (options.direction,),
        rows=tuple(row for row in ROWS if row in options.rows),
        mtu=options.mtu,
        ipv6=options.ipv6,
        queues=options.queues,
        streams=options.streams or options.queues,
        withheld=withheld,
        packed=options.packed,
        queue_size=options.queue_size,
        workers=options.workers,
        mode=options.mode,
        spin_us=options.spin_us,
        iperf3=options.iperf3,
        generator=options.generator,
        verbose=options.verbose,
    )


def unfit(options: argparse.Namespace) -> str:
    """Return what is wrong with the arguments together; "" if nothing is."""
    if options.ipv6 and options.mtu < 1280:
        return f"--mtu {options.mtu} is too small for IPv6, which takes 1280 at least"
    if options.queue_size & (options.queue_size - 1) and not options.packed:
        return f"--queue-size {options.queue_size} is no power of two, which split rings take"
    if options.generator and options.iperf3:
        return "--generator and --iperf3 exclude each other"
    if options.generator and options.ipv6:
        return "the generator's packets are IPv4: not with --ipv6"
    return ""


class Ended(BaseException):
    """A signal asked us to end; it passes through every ``finally`` on its way."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP unwind as SIGINT does; die of them afterwards, as whoever sent them expects."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        raise Ended(number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    except Ended as ended:
        signal.signal(ended.number, signal.SIG_DFL)
        os.kill(os.getpid(), ended.number)
    finally:
        for one, handler in zip(numbers, before, strict=True):
            signal.signal(one, handler)


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from virtio.cli.iperf import report as iperf_report
    from virtio.cli.iperf import run as iperf

    progress = Progress(quiet=options.json)

    def say(text: str) -> None:
        if not options.json:
            progress("")
            print(text, flush=True)

    def note(text: str) -> None:
        progress("")
        print(f"virtio iperf: {text}", file=sys.stderr, flush=True)

    if fault := unfit(options):
        print(f"virtio iperf: {fault} (see virtio iperf --help)", file=sys.stderr)
        return 2
    with signals():
        try:
            found = iperf.run(settings(options), say=say, progress=progress, note=note)
        except iperf.IperfError as error:
            note(str(error))
            return 1
        finally:
            progress("")
        if options.json:
            print(json.dumps(iperf_report.as_json(found.rows)))
        else:
            print()
            print(iperf_report.say_rows(found.rows))
        for fault in found.faults:
            print(f"virtio iperf: {fault}", file=sys.stderr)
        if options.plot:
            try:
                iperf_report.plot(found.rows, options.plot)
            except OSError as error:
                print(f"virtio iperf: {error}", file=sys.stderr)
                return 1
        return 1 if found.faults or not all(row.verified for row in found.rows) else 0
    return 1  # not reached: the signal has ended us
