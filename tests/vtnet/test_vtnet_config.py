"""What a device's configuration says already when vtnet comes, or comes up again: the interrupt for it is past."""

from __future__ import annotations

from typing import Any

import pytest
from netdev import frames_of

from virtio import GuestMemory
from virtio.device.queue_state import Interrupt
from virtio.direct import DirectTransport
from virtio.memory.dma import DmaPool
from virtio.net.device import NetDevice
from virtio.net.ports import CallPort
from virtio.net.rarp import reverse_arp
from virtio.net.vtnet import Vtnet

MAC = bytes.fromhex("525400123456")


class Migrated(NetDevice):
    """Wants each driver to announce itself, as QEMU's does after a migration, also to one that just comes."""

    def activate(self, memory: GuestMemory, interrupt: Interrupt) -> None:
        super().activate(memory, interrupt)
        self._announce = True
        self._write_config()


def driver(device: NetDevice, **options: Any) -> Vtnet:
    memory = GuestMemory.allocate(32 << 20)
    return Vtnet(DirectTransport(device, memory), DmaPool(memory, 0, 32 << 20), idle=device.poll, **options)


def test_a_device_that_wants_an_announcement_when_its_driver_comes() -> None:
    sent: list[Any] = []
    with Migrated(CallPort(sent.extend), mac=MAC) as device:
        nic = driver(device)
        for count, begin in enumerate((nic.attach, nic.reset, nic.up), 1):
            if begin == nic.up:
                nic.down()
            begin()
            device.poll()
            assert [frame for _, frame in sent] == [reverse_arp(MAC)] * count
            assert device.read_config(6, 2) == b"\1\0"  # acknowledged
            assert device.control.counters["announce"] == count
            assert nic.counters["announcements"] == count
        nic.tick()
        assert nic.counters["announcements"] == 3


def test_no_announcement_by_a_driver_without_the_feature() -> None:
    sent: list[Any] = []
    with Migrated(CallPort(sent.extend), mac=MAC) as device:
        nic = driver(device, refuse="GUEST_ANNOUNCE")
        nic.attach()
        device.poll()
        assert sent == [] and nic.counters["announcements"] == 0


def test_a_link_that_is_down_when_the_driver_comes() -> None:
    with NetDevice(mac=MAC, link=False) as device:
        nic = driver(device)
        told: list[bool] = []
        nic.on_link = told.append
        nic.attach()
        assert not nic.link_up
        nic.tick()
        assert told == [False] and nic.counters["link_changes"] == 1
        nic.tick()
        device.link = True
        nic.tick()
        assert told == [False, True]


@pytest.mark.parametrize("first", [True, False])
def test_a_link_that_changes_while_the_driver_is_down(first: bool) -> None:
    with NetDevice(mac=MAC, link=first) as device:
        nic = driver(device)
        nic.attach()
        nic.tick()
        told: list[bool] = []
        nic.on_link = told.append
        nic.down()
        device.link = not first
        nic.up()
        nic.tick()
        assert told == [not first]


def test_a_need_of_reset_that_is_there_already_is_seen() -> None:
    """By a driver that comes: the reset heals it. By one that is there, and whose interrupt was lost: at its tick."""
    with NetDevice(mac=MAC) as device:
        nic = driver(device)
        nic.attach()
        device.needs_reset("for a test")
        nic.transport.config_bell.answer()  # the interrupt is lost
        nic.tick()
        assert nic.counters["resets"] == 1 and device.reason is None
        nic.transmit(frames_of(1))
        device.needs_reset("for a test")
        nic.detach()
        nic.attach()
        assert device.reason is None and nic.attached
