"""TCP between a Linux guest and the host, through our vhost-user backend and a TAP, beside what else guests have."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.peers import guests


@pytest.mark.parametrize("direction", guests.DIRECTIONS)
def test_user_mode_linux(direction: str, versus: Callable[..., None]) -> None:
    # the guest takes a packed ring of ours; DPDK's backend has to be kept from offering one (peers/withhold.py)
    versus(
        f"TCP, user-mode Linux {direction}",
        lambda: guests.uml(guests.ours, direction),
        lambda: guests.uml(guests.dpdk, direction),
        "DPDK net_vhost + net_tap, split", bar=1 / 1.5, unit="Mbit/s",
    )  # fmt: skip


@pytest.mark.parametrize(("device", "bar"), [("virtio-net-pci", 1 / 1.0), ("e1000", 1 / 2.0)])
@pytest.mark.parametrize("direction", guests.DIRECTIONS)
def test_qemu(direction: str, device: str, bar: float, versus: Callable[..., None]) -> None:
    versus(
        f"TCP, guest in QEMU (TCG) {direction}",
        lambda: guests.qemu(guests.ours, direction),
        lambda: guests.qemu_own(device, direction),
        f"QEMU's {device}", bar=bar, unit="Mbit/s",
    )  # fmt: skip
