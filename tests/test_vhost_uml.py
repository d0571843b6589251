"""Our network device before the Linux kernel's own driver, over vhost-user: user-mode Linux, a TAP, TCP both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from guestwire import FIRST_CONTACT, V4, first_contact, hashes, job, wired
from umlguest import Uml

from virtio import Feature


@pytest.mark.parametrize("more", [{}, {"withhold": "RING_PACKED"}], ids=["packed", "split"])
def test_a_kernel_pings_and_moves_streams(more: dict[str, Any], tmp_path: Path) -> None:
    """IPv4 and IPv6, checksums and segmentation left undone both ways; and it may be booted again."""
    with wired(tmp_path, **more) as (path, device, host, server):
        with Uml(path, FIRST_CONTACT, tmp_path) as guest:
            said = guest.finish()
        first_contact(said, host, device)
        with Uml(path, job(f"both 4 {V4}.1"), tmp_path) as guest:
            host.taken.clear()
            hashes(guest.finish(), host, 1)
        assert server.error is None
        assert not device.refused
        assert server.connections == 2


def test_each_offload_of_the_guest_may_be_switched(tmp_path: Path) -> None:
    toggles = ("tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-checksum-ip-generic", "tx-scatter-gather", "rx-gro",
               "rx-gro-hw", "tx-generic-segmentation")  # fmt: skip
    lines = []
    for name in toggles:
        for state in ("off", "on"):
            lines += [f"ethtool -K eth0 {name} {state} 2>&1"]
            lines += [f"both {name} {V4}.1"] if state == "off" else []
    with wired(tmp_path) as (path, device, host, server):
        with Uml(path, job(*lines), tmp_path) as guest:
            hashes(guest.finish(), host, len(toggles))
        assert server.error is None
        assert not device.refused


def test_large_frames_without_segmentation(tmp_path: Path) -> None:
    """MTU 9000, and a device that offers nothing but mergeable buffers: frames in several buffers, checksums done."""
    plain = "CSUM, GUEST_CSUM, RING_PACKED"
    with wired(tmp_path, mtu=9000, withhold=plain) as (path, device, host, server):
        with Uml(path, job(f"ping -c 3 -i 0.2 -s 8900 {V4}.1", f"both 4 {V4}.1", mtu=9000), tmp_path) as guest:
            said = guest.finish()
        assert "3 packets received, 0% packet loss" in said
        hashes(said, host, 1)
        assert server.error is None
        assert not device.negotiated & Feature.RING_PACKED
