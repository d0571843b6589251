"""Our network device before the Linux kernel's own driver, over vhost-user: user-mode Linux, a TAP, TCP both ways."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from guestwire import FIRST_CONTACT, FOREIGN, OTHER, SMALL, V4_HOST, came, first_contact, hashes, job, toggled, wired
from umlguest import Uml

from virtio import Feature

V4_GUEST = V4_HOST[:-1] + "2"


@pytest.mark.parametrize("more", [{}, {"withhold": "RING_PACKED"}], ids=["packed", "split"])
def test_a_kernel_pings_and_moves_streams(more: dict[str, Any], tmp_path: Path) -> None:
    """IPv4 and IPv6, checksums and segmentation left undone both ways; and it may be booted again."""
    with wired(tmp_path, **more) as (path, device, host, server):
        with Uml(path, FIRST_CONTACT, tmp_path) as guest:
            said = guest.finish()
        first_contact(said, host, device)
        with Uml(path, job(f"both 4 {V4_HOST}"), tmp_path) as guest:
            host.taken.clear()
            hashes(guest.finish(), host, 1)
        assert server.error is None
        assert not device.refused
        assert server.connections == 2


@pytest.mark.parametrize(
    "more", [{}, {"withhold": "RING_PACKED"}, {"queue_pairs": 2}], ids=["packed", "split", "two pairs"]
)
def test_its_driver_is_unbound_and_bound_again(more: dict[str, Any], tmp_path: Path) -> None:
    """It stops no ring then: it says sizes, positions and places of rings that run, and kicks them.

    Until it does, the memory of the old ones is free, and may be anything: a queue may be found broken meanwhile.
    """
    driver = "/sys/bus/virtio/drivers/virtio_net"
    lines = [f"both before {V4_HOST}", f"device=$(basename {driver}/virtio*)"]
    for i in range(3):
        lines += [
            f"echo $device > {driver}/unbind", f"echo GONE $(ls -d {driver}/virtio* | wc -l)",
            f"echo $device > {driver}/bind", f"ip addr add {V4_GUEST}/24 dev eth0", "ip link set eth0 up",
            f"ping -c 2 -i 0.2 {V4_HOST}", f"both bound{i} {V4_HOST}",
        ]  # fmt: skip
    with wired(tmp_path, **more) as (path, _, host, server):
        with Uml(path, job(*lines), tmp_path) as guest:
            said = guest.finish()
        assert said.count("GONE 0") == 3, said
        assert said.count("2 packets received, 0% packet loss") == 3, said
        hashes(said, host, 4)
        assert server.error is None
        assert server.connections == 1


def test_each_offload_of_the_guest_may_be_switched(tmp_path: Path) -> None:
    with wired(tmp_path, size=SMALL) as (path, device, host, server):
        with Uml(path, job("toggle_each", size=SMALL), tmp_path) as guest:
            said = guest.finish()
        names = toggled(said)
        assert {"tx-tcp-segmentation", "rx-gro-hw", "tx-checksum-ip-generic"} <= set(names)
        hashes(said, host, 2 * len(names))
        assert server.error is None
        assert not device.refused


def test_large_frames_without_segmentation(tmp_path: Path) -> None:
    """MTU 9000, and a device that offers nothing but mergeable buffers: frames in several buffers, checksums done."""
    plain = "CSUM, GUEST_CSUM, RING_PACKED"
    with wired(tmp_path, mtu=9000, withhold=plain) as (path, device, host, server):
        with Uml(path, job(f"ping -c 3 -i 0.2 -s 8900 {V4_HOST}", f"both 4 {V4_HOST}", mtu=9000), tmp_path) as guest:
            said = guest.finish()
        assert "3 packets received, 0% packet loss" in said
        hashes(said, host, 1)
        assert server.error is None
        assert not device.negotiated & Feature.RING_PACKED


def test_a_guest_works_the_control_queue(tmp_path: Path) -> None:
    """Queue pairs, receive modes and VLANs are asked of our device itself; and the link goes and comes."""
    lines = [
        "ethtool -L eth0 combined 2", "ethtool -l eth0 | grep Combined | tail -1",
        *(f"both {i} {V4_HOST}" for i in range(8)),
        "count normal", "ip link set eth0 promisc on", "count promiscuous",
        "ip link set eth0 promisc off", "count again",
        "ip link add link eth0 name v5 type vlan id 5", "ip link set v5 up", "count vlan5", "count vlan6",
        "ip link set eth0 down", "ip link set eth0 up", f"both again {V4_HOST}",
        "echo READY", "carrier 0", "echo DOWN", "carrier 1", f"both up {V4_HOST}",
    ]  # fmt: skip
    with wired(tmp_path, queue_pairs=2) as (path, device, host, server):
        for to, vlan in ((OTHER, None), (OTHER, None), (OTHER, None), (device.mac, 5), (device.mac, 6)):
            host.orders.put(partial(host.frames, to, FOREIGN, vlan))
        with Uml(path, job(*lines), tmp_path, modules=("8021q",)) as guest:
            guest.wait_for("READY")
            device.link = False
            guest.wait_for("DOWN")
            device.link = True
            said = guest.finish()
        assert "Combined:\t2" in said
        hashes(said, host, 10)
        assert came(said) == {"normal": False, "promiscuous": True, "again": False, "vlan5": True, "vlan6": False}
        figures = device.statistics()
        assert figures["rx0"]["filtered"] + figures["rx1"]["filtered"] >= 3 * FOREIGN
        for one, other in (("tx0", "tx1"), ("rx0", "rx1")):  # streams are dealt out by a hash
            assert figures[one]["frames"] > 0
            assert figures[other]["frames"] > 0
        assert server.error is None
        assert not device.refused
