"""A legacy driver that clears DRIVER_OK and does not reset: the device leaves the queues alone until DRIVER_OK.

QEMU takes any status, and stops there. The drivers of virtio-win (network, serial) and SUSE's for Windows (balloon,
random numbers, serial) clear DRIVER_OK when they stop or suspend, and free the queues' memory soon after.
"""

from __future__ import annotations

import json

import pytest
from nic import attach
from virtio_device import ACK, DRIVER, DRIVER_OK, FAILED, NEEDS_RESET, Echo, Guest, Later, Silent

from virtio import DriverQueue, Feature, GuestMemory
from virtio.device import Device
from virtio.net.device import NetDevice
from virtio.net.ports import Loopback
from virtio.offload import NetHeader

RING_BITS = int(Feature.EVENT_IDX | Feature.INDIRECT_DESC)


def running(device: Device) -> Guest:
    return Guest(device, legacy=True).up(RING_BITS)


def stopped(device: Echo) -> Guest:
    guest = running(device)
    assert guest.ask(b"before") == b"BEFORE"
    device.write_status(ACK | DRIVER)
    assert device.status == ACK | DRIVER and not device.live
    return guest


def test_the_device_stops_and_goes_on() -> None:
    guest = stopped(Echo())
    assert guest.device.told == ["activate", "deactivate"]
    memory = guest.memory.read(0, 1 << 20)
    guest.device.kick(0)
    guest.device.kick(1)
    assert guest.memory.read(0, 1 << 20) == memory and not guest.device.live
    assert guest.ask(b"meanwhile") is None
    assert guest.device.counters["status"] == 0
    guest.go()
    assert guest.received() == [b"MEANWHILE"]
    assert guest.ask(b"after") == b"AFTER"
    assert guest.ask(b"another", 1) == b"ANOTHER"
    assert guest.device.told == ["activate", "deactivate", "activate"]


def test_what_the_device_has_comes_again() -> None:
    device = Later()
    guest = running(device)
    guest.send(b"a")
    guest.send(b"b")
    assert len(device.held) == 2
    device.write_status(ACK | DRIVER)
    device.held = []
    guest.go()
    assert len(device.held) == 2
    device.finish()
    assert guest.received() == [b"A", b"B"]


@pytest.mark.parametrize("value", [ACK, DRIVER, FAILED, 8])
def test_other_bits_stay(value: int) -> None:
    guest = running(Echo())
    guest.device.write_status(value)
    assert guest.device.status == ACK | DRIVER | (value & FAILED) and not guest.device.live
    assert guest.device.counters["status"] == (2 if value == 8 else 1)


def test_a_modern_device_goes_on() -> None:
    """VIRTIO 1.4, 2.1.1: a driver must not clear a bit, and this one is told by the status that it did not."""
    guest = Guest(Echo()).up()
    status = guest.device.status
    guest.device.write_status(status & ~DRIVER_OK)
    assert guest.device.status == status and guest.device.counters["status"] == 1
    assert guest.ask(b"a") == b"A"


def test_a_reset_and_queues_set_up_anew_make_it_as_it_was() -> None:
    guest = stopped(Echo())
    assert guest.device.reset_queue(0)
    guest.setup(0)
    assert guest.ask(b"early") == b"EARLY"  # as any legacy driver's, before DRIVER_OK
    guest.device.write_status(ACK)
    assert guest.device.status == ACK | DRIVER
    guest.device.write_status(0)
    guest.memory.write(0, bytes(1 << 20))
    assert guest.up(RING_BITS).ask(b"reset") == b"RESET"


def test_bus_mastering_does_not_start_it() -> None:
    guest = running(Echo())
    guest.device.set_dma(False)
    guest.device.write_status(ACK | DRIVER)
    guest.device.set_dma(True)
    guest.device.kick(0)
    assert not guest.device.live
    assert guest.go().ask(b"a") == b"A"


def test_a_queue_that_has_left_memory_meanwhile() -> None:
    guest = running(Echo())
    assert guest.ask(b"a") == b"A"
    guest.memory.replace([(1 << 30, bytearray(4096))])
    guest.device.write_status(ACK | DRIVER)
    assert guest.device.status == ACK | DRIVER | NEEDS_RESET and not guest.device.live


@pytest.mark.parametrize("sent", [False, True])
def test_snapshot(sent: bool) -> None:
    guest = stopped(Echo())
    if sent:
        guest.send(b"meanwhile")
    state = json.loads(json.dumps(guest.device.snapshot()))
    memory = GuestMemory.allocate(1 << 20)
    memory.write(0, guest.memory.read(0, 1 << 20))
    new = Guest(Echo(), legacy=True, memory=memory)
    for index in (0, 1):
        new.queues[index] = DriverQueue.restore(memory, guest.queues[index].state(), {})
    new.device.restore(state, memory)
    for index in (0, 1):
        new.device.kick(index)
        assert not new.device.live
    again = json.loads(json.dumps(new.device.snapshot()))
    assert again == state
    new.go()
    if sent:
        assert len(new.queues[0].dequeue_burst()) == 1
    assert new.ask(b"after") == b"AFTER"
    assert new.ask(b"another", 1) == b"ANOTHER"


def test_queues_that_nobody_serves_here() -> None:
    """Of a device whose kicks a task answers, the bells are left as they are."""
    device = Silent()
    guest = Guest(device, legacy=True).up(RING_BITS, queues=(0,))
    device.write_status(ACK | DRIVER)
    assert not device.live
    guest.go()
    assert device.live


def test_a_network_device() -> None:
    """Frames wait in the ring, none is written to a buffer, and none is lost."""
    device = NetDevice(Loopback())
    nic = attach(device, legacy=True)
    nic.post(8)
    frames = [bytes([2, 0, 0, 0, 0, i]) + bytes(54) for i in range(4)]
    nic.send([(NetHeader(), frame) for frame in frames[:2]])
    while device.poll():
        pass
    assert [frame for _, frame in nic.receive()] == frames[:2]
    status = device.status
    device.write_status(status & ~DRIVER_OK)
    nic.send([(NetHeader(), frame) for frame in frames[2:]])
    while device.poll():
        pass
    assert nic.receive() == []
    device.write_status(status)
    while device.poll():
        pass
    assert [frame for _, frame in nic.receive()] == frames[2:]
    device.close()
