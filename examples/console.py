"""A guest's console at a vhost-user socket: its terminal is a pseudo-terminal here, its port "log" is printed.

    python examples/console.py /tmp/console
    linux mem=128M initrd=... console=hvc0 virtio_uml.device=/tmp/console:3    # user-mode Linux
    screen /dev/pts/...                                                        # as it is told

In the guest, ``echo started > /dev/vport0p1`` writes to the log.
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress

from virtio.console import ConsoleDevice, ConsolePort, FileBridge
from virtio.vhost_user import Server


def show(data: bytes) -> None:
    sys.stdout.write(data.decode(errors="replace"))
    sys.stdout.flush()


def main(path: str) -> None:
    terminal = ConsolePort(console=True, lossy=True)  # a terminal without a reader does not hold the guest up
    console = ConsoleDevice(terminal, ports=[ConsolePort("log", on_data=show)])
    console.resize(rows=40, cols=120)
    with FileBridge.pty(terminal) as bridge, Server(console, path), suppress(KeyboardInterrupt):
        print(f"terminal: {bridge.path}", flush=True)
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
