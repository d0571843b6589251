"""The command ``virtio net``: joins two endpoints until it is told to stop."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import sys
import threading
from typing import Any

from virtio.errors import VirtioError

EPILOG = """
endpoints:
  vhost-user:PATH[,option=value...]  a network device at a UNIX socket, for QEMU, DPDK, user-mode Linux, ...
      queues=N         queue pairs (default 1)
      client=1         connect to a socket at which the other side listens
      fd=NUMBER        in place of PATH: a listening socket that we inherit
      mtu=N mac=ADDRESS speed=MBIT queue-size=N
      withhold=A+B     features not to offer, by the specification's names (offer=A+B: further ones)
      withhold-protocol=A+B   the same of vhost-user's protocol features
  tap:NAME  loopback  gen[,size=N...]  sink  pcap:FILE  replay:FILE  null
"""


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    command = commands.add_parser(
        "net",
        help="join two endpoints: guests' network devices, TAPs, files",
        description="Join two endpoints: a cable between two guests, or a guest and a TAP, a capture file, ...",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("endpoints", nargs=2, metavar="ENDPOINT")
    command.add_argument("--poll", action="store_true", help="poll without end: a whole CPU for each worker")
    command.add_argument("--workers", type=int, metavar="N", help="threads (default: one for each queue pair)")
    command.add_argument("--cpus", default="", metavar="LIST", help="CPUs to pin them to, such as 1,2")
    command.add_argument("--status", metavar="PATH", help="socket for `virtio top` (default: one by our process id)")
    command.add_argument("--json", action="store_true", help="print the counters as one JSON object at the end")
    command.add_argument("-v", "--verbose", action="store_true", help="say who comes and goes")
    command.set_defaults(run=run)


def complain(text: object) -> int:
    """Say what cannot be, in one line; return the exit code."""
    print(f"virtio net: {' '.join(str(text).split())}", file=sys.stderr)
    return 2


def notify(state: str) -> None:
    """Tell the supervisor that started us, if it wants to know (sd_notify)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
            supervisor.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def run(options: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT: both end it cleanly, with exit code 0."""
    from virtio.net.endpoints import Joined, parse
    from virtio.net.status import StatusSocket

    logging.basicConfig(
        format="virtio net: %(message)s", level=logging.INFO if options.verbose else logging.WARNING, stream=sys.stderr
    )
    if options.workers is not None and not 1 <= options.workers <= 256:
        return complain(f"--workers {options.workers} is not within 1 to 256")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        cpus = [int(cpu) for cpu in options.cpus.split(",") if cpu]
    except ValueError:
        return complain(f"--cpus {options.cpus!r} is no list of numbers")
    try:
        ends = [parse(text) for text in options.endpoints]
        with (
            Joined(ends, workers=options.workers, poll=options.poll, cpus=cpus) as joined,
            StatusSocket(joined.statistics, options.status),
        ):
            print("ready", file=sys.stderr, flush=True)
            notify("READY=1")
            ended.wait()
            notify("STOPPING=1")
            figures = joined.statistics()
    except (VirtioError, OSError, ValueError) as error:
        return complain(error)
    if options.json:
        print(json.dumps(figures))
    return 0
