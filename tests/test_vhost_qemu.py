"""Our network device behind QEMU's virtio-net-pci, over vhost-user: a Linux guest, a TAP, TCP both ways.

QEMU serves the guest's control queue and tells us by messages: queue pairs by SET_VRING_ENABLE, RARP, and so on.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from guestwire import FIRST_CONTACT, V4, Host, first_contact, hashes, job, wired
from qemuguest import Qemu
from spaces import namespaces


def test_a_guest_pings_and_moves_streams(tmp_path: Path) -> None:
    with wired(tmp_path) as (path, device, host, server):
        with Qemu(path, FIRST_CONTACT, tmp_path) as guest:
            said = guest.finish()
        first_contact(said, host, device)
        assert server.error is None


def test_two_queue_pairs_and_a_link_that_goes_and_comes(tmp_path: Path) -> None:
    lines = [
        "ethtool -L eth0 combined 2", "ethtool -l eth0 | grep Combined | tail -1",
        *(f"both {i} {V4}.1" for i in range(8)),
        "echo READY", "while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 0.1; done", "echo DOWN",
        "while [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 0.1; done", "echo UP", f"both up {V4}.1",
    ]  # fmt: skip
    with wired(tmp_path, queue_pairs=2) as (path, device, host, server):
        with Qemu(path, job(*lines), tmp_path, queues=2) as guest:
            guest.wait_for("READY")
            guest.command("set_link", name="n0", up=False)
            guest.wait_for("DOWN")
            guest.command("set_link", name="n0", up=True)
            said = guest.finish()
        assert "Combined:\t2" in said
        hashes(said, host, 9)
        figures = device.statistics()
        for one, other in (("tx0", "tx1"), ("rx0", "rx1")):  # streams are dealt out by a hash
            assert figures[one]["frames"] > 0
            assert figures[other]["frames"] > 0
        assert server.error is None


def test_a_backend_that_is_killed_and_started_again_loses_no_stream(tmp_path: Path) -> None:
    """kill -9 while a stream runs; TCP makes up for what was on its way."""
    with namespaces(1) as (space,), ExitStack() as stack:
        # an interface that stays when its backend goes
        assert space.popen(["ip", "tuntap", "add", "dev", "tap0", "mode", "tap"]).wait() == 0
        space.add_address("tap0", f"{V4}.1/24")
        space.set_link("tap0", up=True)
        host = Host(space, stack, 48 << 20)
        path = str(tmp_path / "s")

        def backend() -> subprocess.Popen[bytes]:
            words = [sys.executable, "-m", "virtio", "net", f"vhost-user:{path},queue-size=1024", "tap:tap0"]
            return space.popen(words, stderr=subprocess.DEVNULL)

        first = backend()
        stack.callback(first.kill)
        with Qemu(path, job(f"echo READY; both 4 {V4}.1"), tmp_path) as guest:
            guest.wait_for("READY")
            while host.out < 8 << 20:
                assert guest.process.poll() is None, guest.said()
                time.sleep(0.001)
            first.kill()
            first.wait()
            assert host.out < len(host.data)
            second = backend()
            stack.callback(second.kill)
            said = guest.finish()
        hashes(said, host, 1)
        assert second.poll() is None
