"""Our network device behind QEMU's virtio-net-pci, over vhost-user: a Linux guest, a TAP, TCP both ways.

QEMU serves the guest's control queue and tells us by messages: queue pairs by SET_VRING_ENABLE, RARP, and so on.
"""

from __future__ import annotations

from pathlib import Path

from guestwire import (
    FIRST_CONTACT,
    FOREIGN,
    OTHER,
    SMALL,
    V4_HOST,
    V6_HOST,
    came,
    first_contact,
    hashes,
    job,
    toggled,
    wired,
)
from qemuguest import Qemu


def test_a_guest_pings_and_moves_streams_and_boots_again(tmp_path: Path) -> None:
    """The same QEMU, the same connection: the driver resets the device and places its rings anew."""
    boots = [FIRST_CONTACT, "echo READY", "order && reboot -f"]
    with wired(tmp_path) as (path, device, host, server):
        with Qemu(path, "\n".join(boots) + "\n", tmp_path, reboots=True) as guest:
            for boot in (1, 2):
                guest.wait_for("READY", times=boot)
                first_contact(guest.said().split("READY")[boot - 1], host, device)
                host.taken.clear()
                host.exchanged.clear()
                if boot == 1:
                    host.orders.put(None)
            assert server.connections == 1
        assert "VHOST_USER_PROTOCOL_F_CONFIG" not in guest.said()  # QEMU warns where that is offered
        assert server.error is None


def test_two_queue_pairs_a_link_that_goes_and_comes_and_frames_for_others(tmp_path: Path) -> None:
    """QEMU keeps what the driver says of addresses and VLANs to itself: whatever is on the link comes to the guest."""
    lines = [
        "ethtool -L eth0 combined 2", "ethtool -l eth0 | grep Combined | tail -1",
        *(f"both {i} {V4_HOST}" for i in range(8)),
        "count normal", "ip link set eth0 promisc on", "count promiscuous",
        "ip link set eth0 promisc off", "count again",
        "echo READY", "carrier 0", "echo DOWN", "carrier 1", f"both up {V4_HOST}",
    ]  # fmt: skip
    with wired(tmp_path, queue_pairs=2) as (path, device, host, server):
        for _ in range(3):
            host.orders.put(lambda: host.frames(OTHER, FOREIGN))
        with Qemu(path, job(*lines), tmp_path, queues=2) as guest:
            guest.wait_for("READY")
            guest.command("set_link", name="n0", up=False)
            guest.wait_for("DOWN")
            guest.command("set_link", name="n0", up=True)
            said = guest.finish()
        assert "Combined:\t2" in said
        hashes(said, host, 9)
        assert came(said) == {"normal": True, "promiscuous": True, "again": True}
        figures = device.statistics()
        for one, other in (("tx0", "tx1"), ("rx0", "rx1")):  # streams are dealt out by a hash
            assert figures[one]["frames"] > 0
            assert figures[other]["frames"] > 0
        assert server.error is None


def test_each_offload_of_the_guest_may_be_switched_and_frames_are_large(tmp_path: Path) -> None:
    lines = [
        "toggle_each", "ip link set eth0 mtu 9001 || echo REFUSED", "ip link set eth0 mtu 9000",
        f"ping -c 3 -i 0.2 -s 8900 {V4_HOST}", f"both 4 {V4_HOST}", f"both 6 {V6_HOST}",
    ]  # fmt: skip
    with wired(tmp_path, size=SMALL, mtu=9000) as (path, device, host, server):
        with Qemu(path, job(*lines, size=SMALL), tmp_path, device=",host_mtu=9000") as guest:
            said = guest.finish()
        names = toggled(said)
        assert {"tx-tcp-segmentation", "rx-gro-hw", "tx-checksum-ip-generic"} <= names
        assert "3 packets received, 0% packet loss" in said
        hashes(said, host, 2 * len(names) + 2)
        assert "REFUSED" in said  # by the driver, which was told the MTU
        assert server.error is None
        assert not device.refused
