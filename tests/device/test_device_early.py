"""A legacy driver that uses its queues before DRIVER_OK, or writes its features late (VIRTIO 1.4, 3.1.2).

So do Linux before 2.6.30 (a disk's partitions are read in its probe), SeaBIOS, iPXE and unikernels.
"""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event, Thread

import pytest
from blkdevice import F_FLUSH, HEADER, IN, Blk
from nic import ALL, PACKED, RawNic
from virtio_device import ACK, DRIVER, DRIVER_OK, FAILED, NEEDS_RESET, Echo, Guest, Later, Silent

from virtio import DriverQueue, Feature, GuestMemory, QueueLayout
from virtio.constants import NetFeature as F
from virtio.device import Device
from virtio.net.device import NetDevice
from virtio.net.ports import CallPort
from virtio.offload import NetHeader
from virtio.pci.legacy_device import LegacyFunction

RING_BITS = int(Feature.EVENT_IDX | Feature.INDIRECT_DESC)


def early(device: Device, features: int = RING_BITS, queues: tuple[int, ...] = (0, 1)) -> Guest:
    """A legacy driver that has set its queues up and not said DRIVER_OK."""
    return Guest(device, legacy=True).negotiate(features).setup(*queues)


@pytest.mark.parametrize("features", [0, RING_BITS])
def test_a_legacy_driver_is_answered_before_driver_ok(features: int) -> None:
    guest = early(Echo(), features)
    assert guest.ask(b"probe") == b"PROBE"
    assert guest.calls.rings() == 1 and guest.device.live
    assert guest.go().ask(b"and after") == b"AND AFTER"
    assert guest.device.told == ["activate"]


def test_it_is_answered_before_it_writes_features_or_status() -> None:
    guest = Guest(Echo(), legacy=True).setup(0)
    assert guest.ask(b"firmware") == b"FIRMWARE"


def test_a_modern_driver_is_not() -> None:
    guest = Guest(Echo()).negotiate().setup(0)
    assert guest.ask(b"early") is None and not guest.device.live
    guest.go()
    assert guest.received() == [b"EARLY"]


def test_nothing_begins_without_a_kick() -> None:
    device = early(Echo()).device
    assert not device.live and device.told == []
    device.kick(5)
    assert not device.live
    Guest(device, legacy=True)
    device.write_status(0)
    device.kick(0)  # of a queue that is not set up
    assert not device.live


def test_a_kick_of_before_a_queue_was_set_up_is_none_of_it() -> None:
    guest = Guest(Echo(), legacy=True).negotiate(0)
    guest.device.kick(0)
    guest.setup(0)
    assert not guest.device.live


@pytest.mark.parametrize("status", [FAILED, NEEDS_RESET])
def test_a_device_that_failed_is_not_begun(status: int) -> None:
    guest = early(Echo())
    if status == FAILED:
        guest.device.write_status(FAILED)
    else:
        guest.device.needs_reset("for a test")
    assert guest.ask(b"early") is None and not guest.device.live


def test_a_device_that_does_not_start_is_tried_once() -> None:
    class Fails(Echo):
        def activate(self, memory: GuestMemory, interrupt: object) -> None:
            super().activate(memory, interrupt)
            raise OSError("for a test")

    guest = early(Fails())
    for _ in range(3):
        guest.device.kick(0)
    assert guest.device.told == ["activate", "deactivate"]
    assert guest.device.status & NEEDS_RESET


def test_a_reset_in_between_forgets() -> None:
    guest = early(Echo())
    assert guest.ask(b"first") == b"FIRST"
    guest.device.write_status(0)
    assert not guest.device.live and guest.device.told == ["activate", "deactivate"]
    guest.memory.write(0x10000, bytes(0x20000))
    guest.negotiate(0).setup(0)
    assert not guest.device.live
    assert guest.ask(b"second") == b"SECOND"


def test_one_queue_is_stopped_in_between() -> None:
    guest = early(Echo())
    assert guest.ask(b"a", 1) == b"A"
    assert guest.device.reset_queue(0) and guest.device.live
    guest.setup(0)
    assert guest.ask(b"b") == b"B"
    assert guest.device.told == ["activate", ("reset", 0), ("enable", 0)]


def test_what_was_kicked_without_dma_is_served_with_it() -> None:
    guest = early(Echo())
    guest.device.set_dma(False)
    assert guest.ask(b"early") is None and not guest.device.live
    guest.device.set_dma(True)
    assert guest.received() == [b"EARLY"]
    other = early(Echo())
    other.device.set_dma(False)
    other.device.set_dma(True)
    assert not other.device.live


@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize("features", [RING_BITS, int(Feature.INDIRECT_DESC)])
def test_features_written_late_count_and_no_chain_is_lost(features: int, ready: bool) -> None:
    """Linux before 2.6.30 writes them when its driver has probed, and used the device."""
    guest = early(Echo(), 0)
    for i in range(11):  # over the end of the ring
        assert guest.ask(b"%d" % i) == b"%d" % i
    if ready:
        guest.go()
    guest.send(b"between", kick=False)
    guest.device.driver_features(features)
    assert guest.device.negotiated == features
    assert guest.received() == [b"BETWEEN"]
    state = guest.queues[0].state() | {"features": features}
    guest.queues[0] = DriverQueue.restore(guest.memory, state, {})
    for i in range(11):
        assert guest.ask(b"%d" % i) == b"%d" % i
    assert guest.device.told == ["activate", "deactivate", "activate"]
    guest.device.driver_features(features)  # Linux writes them twice
    assert guest.device.told == ["activate", "deactivate", "activate"]


def test_chains_that_the_device_has_come_again_after_late_features() -> None:
    guest = early(Later(), 0)
    guest.send(b"a")
    guest.send(b"b")
    device = guest.device
    assert isinstance(device, Later) and len(device.held) == 2
    device.driver_features(int(Feature.INDIRECT_DESC))
    assert len(device.held) == 2
    device.finish()
    assert guest.received() == [b"A", b"B"]


def test_a_queue_that_has_left_memory_when_features_come() -> None:
    guest = early(Echo(), 0)
    assert guest.ask(b"a") == b"A"
    guest.memory.replace([(1 << 30, bytearray(4096))])
    guest.device.driver_features(int(Feature.INDIRECT_DESC))
    assert guest.device.status & NEEDS_RESET and not guest.device.live


@pytest.mark.parametrize("kicked", [False, True])
def test_snapshot_before_driver_ok(kicked: bool) -> None:
    guest = early(Echo())
    if kicked:
        assert guest.ask(b"a") == b"A"
        guest.send(b"b", kick=False)
    state = json.loads(json.dumps(guest.device.snapshot()))
    memory = GuestMemory.allocate(1 << 20)
    memory.write(0, guest.memory.read(0, 1 << 20))
    new = Guest(Echo(), legacy=True, memory=memory)
    new.queues[0] = DriverQueue.restore(memory, guest.queues[0].state(), {})
    new.device.restore(state, memory)
    assert new.device.live == kicked
    if not kicked:
        new.send(b"b")
    assert len(new.queues[0].dequeue_burst()) == 1
    assert new.go().ask(b"c") == b"C"


def test_a_kick_that_waits_for_dma_outlives_a_snapshot() -> None:
    guest = early(Echo())
    guest.device.set_dma(False)
    guest.send(b"a")
    memory = guest.memory
    state = guest.device.snapshot()
    new = Guest(Echo(), legacy=True, memory=memory)
    new.device.set_dma(False)
    new.device.restore(state, memory)
    assert not new.device.live
    new.device.set_dma(True)
    assert guest.received() == [b"A"]


def test_a_disk_is_read_before_driver_ok(tmp_path: Path) -> None:
    """As Linux before 2.6.30 does for the partition table, and a BIOS for the boot sector."""
    image = tmp_path / "disk"
    image.write_bytes(b"boot".ljust(512, b"\x55") + bytes(512))
    guest = Guest(Blk(str(image)), legacy=True)
    guest.device.write_status(ACK | DRIVER)
    assert guest.device.setup_queue(0, guest.layout(0))
    queue = DriverQueue(guest.memory, guest.layout(0))
    guest.memory.write(0x80000, HEADER.pack(IN, 0, 0))
    queue.enqueue([(0x80000, 16)], [(0x81000, 512), (0x82000, 1)])
    guest.device.kick(0)
    assert queue.dequeue() is not None
    assert guest.memory.read(0x81000, 8) == b"boot\x55\x55\x55\x55" and guest.memory.read_u8(0x82000) == 0
    guest.device.driver_features(F_FLUSH)
    guest.device.write_status(ACK | DRIVER | DRIVER_OK)
    queue.enqueue([(0x80000, 16)], [(0x81000, 512), (0x82000, 1)])
    guest.device.kick(0)
    assert queue.dequeue() is not None


class Hasty(RawNic):
    """A network driver that does not say DRIVER_OK until it is told."""

    def _go(self) -> None:
        self._route_interrupts()


@pytest.mark.parametrize("by", ["register", "hand"])
def test_a_network_device_is_used_before_driver_ok(by: str) -> None:
    """Its control queue, and its data queues: a kick of any of them starts it."""
    sent: list[tuple[NetHeader, bytes]] = []
    given = [b"\xff" * 6 + bytes(58)]
    port = CallPort(sent.extend, lambda limit: [given.pop()] if given else [])
    with NetDevice(port, mac="52:54:00:12:34:56") as device:
        nic = Hasty(device, wanted=ALL & ~PACKED & ~int(F.MQ), legacy=True)
        nic.attach()
        assert device.poll() == 0 and not device.live and given
        nic.post(4)
        nic.send([(NetHeader(), b"\xff" * 6 + bytes(54))])
        if by == "register":
            device.kick(1)
        else:
            nic.queues[1].kick.ring()
        assert device.poll() == 2
        assert device.live and not device.status & DRIVER_OK
        assert [len(frame) for _, frame in sent] == [60] and len(nic.reap()) == 1
        assert [len(frame) for _, frame in nic.receive()] == [64]
        nic.transport.status = DRIVER_OK
        nic.send([(NetHeader(), b"\xff" * 6 + bytes(54))])
        assert device.poll() == 1 and len(sent) == 2


def test_a_control_command_before_driver_ok() -> None:
    with NetDevice(mac="52:54:00:12:34:56") as device:
        nic = Hasty(device, wanted=ALL & ~PACKED, legacy=True)
        nic.attach()
        queue = nic.queues[nic.control_index]
        ack = nic.pool.allocate(1)
        queue.queue.enqueue([nic.buffer(b"\0\0"), nic.buffer(b"\0")], [(ack, 1)])
        queue.notify()
        assert queue.queue.dequeue() is not None and nic.memory.read_u8(ack) == 0
        assert device.control.modes == 0
        nic.transport.status = DRIVER_OK
        assert device.control.modes == 0  # what was said before counts


def test_workers_run_an_early_device() -> None:
    """The driver kicks by a bell (DirectTransport), no register is written."""
    came = Event()
    with NetDevice(CallPort(lambda frames: came.set()), worker="own") as device:
        nic = Hasty(device, legacy=True)
        nic.attach()
        for _ in range(2):  # the second time after a reset
            nic.send([(NetHeader(), bytes(60))])
            assert came.wait(60)
            came.clear()
            device.write_status(0)
            assert not device.live and device.tasks == ()
            nic.detach(force=True)
            nic.attach()


def test_a_doorbell_starts_an_early_device() -> None:
    came = Event()
    with NetDevice(CallPort(lambda frames: came.set()), worker="own") as device:
        function = LegacyFunction(device, GuestMemory.allocate(1 << 20))
        function.config_write(4, 2, 7)
        function.write(0x12, 1, ACK | DRIVER)
        function.write(0x0E, 2, 1)
        function.write(0x08, 4, 0x10)
        layout = QueueLayout.split(function.read(0x0C, 2), 0x10000)
        DriverQueue(function.memory, layout).enqueue([(0x80000, 10), (0x81000, 60)], [])
        function.doorbell(1).ring()
        assert came.wait(60)


def test_a_bell_that_is_rung_while_another_thread_has_the_device() -> None:
    device = Silent()
    Guest(device, legacy=True).negotiate(0)
    assert device.setup_queue(0, QueueLayout.split(8, 0x10000))
    with device._control():
        thread = Thread(target=device.queues[0].kick.ring)
        thread.start()
        thread.join()
        assert not device.live
    assert device.live
    device.queues[0].kick.ring()  # and from then on it is a bell like any other
    assert device.queues[0].kick.answer()


def test_a_device_whose_queues_nobody_handles_begins_too() -> None:
    guest = Guest(Silent(), legacy=True).negotiate(0)
    assert guest.device.setup_queue(0, QueueLayout.split(8, 0x10000))
    guest.device.kick(0)
    assert guest.device.live
