"""A guest that moves from one QEMU to another while its streams run, with a device of ours on either side.

There is no bridge: each device has a TAP, with the same MAC address and neighbour. The host sends to the second one
when the guest is heard there, as a bridge would.
"""

from __future__ import annotations

import mmap
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from guesthost import Host
from guestwire import V4, V4_HOST, exchanges, hashes, job
from qemuguest import MAC, Qemu
from spaces import MACS, namespaces
from waiting import wait_for

from virtio import Feature
from virtio.net import Namespace, NetDevice
from virtio.vhost_user import Server

ALL = socket.htons(3)  # protocols
PAGE = 4096
PARKED = 1 << 20  # bytes that come during the migration, and are read after it
STREAMED = 4 << 20  # bytes of the other stream that come back before, during and after it
FIRST, HOLD, LAST = 48 << 20, 64 << 10, 1 << 30  # bytes/s of the migration: it cannot end before it may be fast
HEARD = {"arp": b"\x08\x06", "rarp": b"\x80\x35"}


class Road:
    """The device and the QEMU on one side."""

    def __init__(self, name: str, space: Namespace, folder: Path, stack: ExitStack) -> None:
        self.tap = space.tap(name, mac=MACS[0], neighbours=[(f"{V4}.2", MAC)])
        self.device = stack.enter_context(NetDevice(self.tap, worker="own", mtu=1500))
        self.path = str(folder / name)
        self.server = stack.enter_context(Server(self.device, self.path))


@contextmanager
def heard(space: Namespace, name: str) -> Iterator[socket.socket]:
    """A socket at which the guest is heard behind an interface."""
    with space.socket(socket.AF_PACKET, socket.SOCK_RAW, ALL) as ear:
        ear.bind((name, 3))
        ear.settimeout(60)
        yield ear


def progress(source: Qemu) -> tuple[str, int]:
    """Return what a migration is doing, and how often it looked for what was written."""
    found = source.command("query-migrate")
    return found["status"], found.get("ram", {}).get("dirty-sync-count", 0)


def different(one: int, other: int) -> list[int]:
    """Return where two files of memory differ, by page."""
    with mmap.mmap(one, 0, prot=mmap.PROT_READ) as a, mmap.mmap(other, 0, prot=mmap.PROT_READ) as b:
        return [at for at in range(0, len(a), PAGE) if a[at : at + PAGE] != b[at : at + PAGE]]


# each format with one of the two ways a guest is announced by: it says so itself, or QEMU has us say it
@pytest.mark.parametrize(
    ("options", "announced"), [("", "arp"), (",packed=on,guest_announce=off", "rarp")], ids=["split", "packed"]
)
def test_a_guest_moves_while_its_streams_run(options: str, announced: str, tmp_path: Path) -> None:
    """One stream goes to the guest and back all the time; what comes of another is read only after the migration, so
    that it lies in pages that nobody but our device wrote to: they are there if they are in the dirty log.
    """
    lines = [
        "echo '4096 4194304 8388608' > /proc/sys/net/ipv4/tcp_rmem",
        f"exchange {V4_HOST} &",
        "order", f"nc {V4_HOST} 5001 < /dev/null | {{ order; echo GOT 4 $(sha256sum); }}",
        f"nc {V4_HOST} 5002 -e cat /tmp/x", "wait",
    ]  # fmt: skip
    with namespaces(1) as (space,), ExitStack() as stack:
        here, there = (Road(name, space, tmp_path, stack) for name in ("here", "there"))
        space.add_address("here", f"{V4_HOST}/24")
        host = Host(space, stack, PARKED)
        ear = stack.enter_context(heard(space, "there"))
        work = job(*lines)
        source = stack.enter_context(Qemu(here.path, work, tmp_path, device=options))
        moves = f"unix:{tmp_path}/moves"
        waits = ("-S", "-incoming", moves)
        target = stack.enter_context(Qemu(there.path, work, tmp_path, device=options, more=waits))

        wait_for(lambda: host.back >= STREAMED, 60, "nothing streams")
        before = host.back
        source.command("migrate-set-parameters", **{"downtime-limit": 1, "max-bandwidth": FIRST})
        source.command("migrate", uri=moves)
        wait_for(lambda: progress(source)[1] >= 2, 60, "the memory was not sent once")
        source.command("migrate-set-parameters", **{"max-bandwidth": HOLD})
        host.orders.put(None)
        wait_for(lambda: host.arrived == 1, 60, "nothing came in migration")
        wait_for(lambda: host.back >= before + STREAMED, 60, "nothing streams in migration")
        wait_for(here.device.memory.dirty_pages, 60, "nothing was logged")
        packed = [here.device.negotiated & Feature.RING_PACKED]
        assert progress(source)[0] == "active"
        source.command("migrate-set-parameters", **{"downtime-limit": 60000, "max-bandwidth": LAST})
        wait_for(lambda: progress(source)[0] == "completed", 60, "it did not end")
        assert different(source.memory, target.memory) == []

        target.command("cont")
        # as QEMU does at a migration's end; then nobody heard, as the guest was kept from running
        target.command("announce-self", initial=50, max=550, rounds=5, step=100)
        while (frame := ear.recv(2048))[6:14] != bytes.fromhex(MAC.replace(":", "")) + HEARD[announced]:
            pass
        assert frame[:6] == b"\xff" * 6
        route = ["ip", "route", "replace", f"{V4}.2/32", "dev", "there", "src", V4_HOST]
        assert space.popen(route, stderr=subprocess.PIPE).wait() == 0
        after = host.back
        host.orders.put(None)
        wait_for(lambda: host.back >= after + STREAMED, 60, "nothing streams afterwards")
        packed.append(there.device.negotiated & Feature.RING_PACKED)
        host.enough.set()
        said = source.said() + target.finish()
        hashes(said, host, 1)
        exchanges(host, 1)
        for side in (here, there):
            assert side.server.error is None
            assert not side.device.refused
            assert side.device.statistics()["tx0"]["frames"] > 0
        assert all(packed) == any(packed) == ("packed" in options)
