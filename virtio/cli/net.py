"""The command ``virtio net``: joins two endpoints until it is told to stop."""

from __future__ import annotations

import argparse
import json
import logging
import resource
import signal
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from virtio.errors import VirtioError

if TYPE_CHECKING:
    from virtio.cli.endpoints import Joined

WORKERS_MAX = 256
SWITCH = 0.0005  # seconds that a guest whose commands flood a thread of Python holds up the others' messages
CPUS_MAX = 1024  # as many as a range may name

EPILOG = """
endpoints, any two of:
  vhost-user:PATH[,option=value...]  a network device at a UNIX socket, for QEMU, DPDK, user-mode Linux, ...
      queues=N         queue pairs (default 1)
      client=1         connect to a socket at which the other side listens
      fd=NUMBER        in place of PATH: a UNIX socket that we inherit; it listens, or is connected (then it is served
                       once). `vhost-user:` alone takes the next --fd, or, without any, the next of LISTEN_FDS
      mtu=N mac=ADDRESS speed=MBIT
      withhold=A+B     features not to offer, by the specification's names (offer=A+B: further ones)
      withhold-protocol=A+B   the same of vhost-user's protocol features
  tap:NAME       an interface of this machine's kernel (queues=N mtu=N)
  gen[:size=N,count=N,rate=N,kind=tcp...]  gives frames, and verifies those of a generator that come to it
  sink           counts what comes, and verifies those frames
  pcap:FILE      writes what comes to a capture file;  replay:FILE  gives what one has (loops=N speed=X)
  loopback       gives back what comes
  null           drops what comes

The process stays in the foreground, says "ready" and READY=1 (NOTIFY_SOCKET) when all is there, and ends with exit
code 0 on SIGTERM or SIGINT, and when there were guests by inherited connections only, and all have gone. 2: it could
not begin.
"""


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    command = commands.add_parser(
        "net",
        help="join two endpoints: guests' network devices, TAPs, files",
        description="Join two endpoints by a cable: guests, TAPs, capture files, generators, in any combination.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("endpoints", nargs=2, metavar="ENDPOINT")
    command.add_argument("--poll", action="store_true", help="poll without end: a whole CPU for each worker")
    command.add_argument("--workers", type=int, metavar="N", help="threads (default, and at most: one a queue pair)")
    command.add_argument("--cpus", default="", metavar="LIST", help="CPUs to pin them to, in turn, such as 1,2 or 4-7")
    command.add_argument(
        "--fd", type=int, action="append", default=[], metavar="N",
        help="inherited UNIX socket for `vhost-user:` without a path; may be repeated, in the endpoints' order",
    )  # fmt: skip
    command.add_argument("--status", metavar="PATH", help="socket for `virtio top` (default: one by our process id)")
    command.add_argument("--json", action="store_true", help="print the counters as one JSON object at the end")
    command.add_argument("-v", "--verbose", action="store_true", help="say who comes and goes")
    command.set_defaults(run=run)


def complain(text: object) -> int:
    """Say what cannot be, in one line; return the exit code."""
    print(f"virtio net: {' '.join(str(text).split())}", file=sys.stderr)
    return 2


def cpus_of(text: str) -> list[int]:
    """Return the CPUs of a list such as 1,4-7. Raises ValueError for what is none."""
    found: list[int] = []
    for word in filter(None, text.split(",")):
        first, dash, last = word.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"--cpus {text!r} is no list of numbers")
        low, high = int(first), int(last or first)
        if not low <= high < low + CPUS_MAX:
            raise ValueError(f"--cpus {text!r}: {word} is no range")
        found += range(low, high + 1)
    return found


def status_of(joined: Joined, path: str | None) -> AbstractContextManager[object]:
    """Return the socket for `virtio top`. Without a place for one that nobody asked for we go on."""
    from virtio.cli.status import StatusSocket

    try:
        return StatusSocket(joined.statistics, path)
    except OSError as error:
        if path is not None:
            raise
        logging.getLogger("virtio.net").warning("no socket for virtio top: %s", error)
        return nullcontext()


def raise_limit() -> None:
    """Have as many file descriptors as we may: each ring of a guest takes up to three."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(options: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT: both end it cleanly, with exit code 0."""
    from virtio.cli.endpoints import Joined, give_descriptors, parse
    from virtio.cli.supervisor import Stop, Stopped, activated, notify

    logging.basicConfig(
        format="virtio net: %(message)s", level=logging.INFO if options.verbose else logging.WARNING, stream=sys.stderr
    )
    if options.workers is not None and not 1 <= options.workers <= WORKERS_MAX:
        return complain(f"--workers {options.workers} is not within 1 to {WORKERS_MAX}")
    raise_limit()
    sys.setswitchinterval(SWITCH)
    stop = Stop(signal.SIGTERM, signal.SIGINT)
    try:
        ends = give_descriptors([parse(text) for text in options.endpoints], options.fd or activated)
        cpus = cpus_of(options.cpus)
        with stop.breaks():
            made = Joined(ends, workers=options.workers, poll=options.poll, cpus=cpus, over=stop.set)
        with made as joined, status_of(joined, options.status):
            print("ready", file=sys.stderr, flush=True)
            notify("READY=1")
            stop.wait()
            notify("STOPPING=1")
            joined.drain()
            figures = joined.statistics()
    except Stopped:
        return 0
    except (VirtioError, OSError, ValueError) as error:
        return complain(error)
    if options.json:
        print(json.dumps(figures))
    return 0
