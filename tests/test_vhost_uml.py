"""Our network device before the Linux kernel's own driver, over vhost-user: user-mode Linux, a TAP, TCP both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from guestwire import FIRST_CONTACT, V4, first_contact, hashes, job, toggled, wired
from umlguest import Uml

from virtio import Feature

SMALL = 512 << 10


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
        with Uml(path, job(f"ping -c 3 -i 0.2 -s 8900 {V4}.1", f"both 4 {V4}.1", mtu=9000), tmp_path) as guest:
            said = guest.finish()
        assert "3 packets received, 0% packet loss" in said
        hashes(said, host, 1)
        assert server.error is None
        assert not device.negotiated & Feature.RING_PACKED
