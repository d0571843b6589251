"""The command ``virtio``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from virtio import __version__
from virtio.cli.demo import add_to as add_demo
from virtio.cli.iperf.command import add_to as add_iperf
from virtio.cli.net import add_to as add_net
from virtio.cli.top import add_to as add_top


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with one line, where argparse prints the usage before it."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 130 after SIGINT, 2 for bad arguments."""
    parser = Parser(prog="virtio", description="Both ends of virtio, driver and device.")
    parser.add_argument("--version", action="version", version=f"virtio {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    add_demo(commands)
    add_iperf(commands)
    add_net(commands)
    add_top(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough; nothing more is to be flushed to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
