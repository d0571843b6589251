"""The network device as a whole: configuration, links, life, memory."""

from __future__ import annotations

from typing import Any

import pytest
from formats import FORMATS
from net_machine import GUEST, both_ways, machine
from nic import ALL, PACKED, RawNic, attach
from undone import NONE, payload

from bench.kernels.devicebench import ScriptPort
from virtio import GuestMemory
from virtio.constants import NetFeature
from virtio.errors import ConfigError
from virtio.event.notifier import Bell
from virtio.net.device import NetDevice
from virtio.netdev.rxq import NetReceive
from virtio.ports.port import Port

F = NetFeature


# ---- configuration ----


def test_configuration() -> None:
    device = NetDevice(
        ScriptPort(queues=4), mac="52:54:00:12:34:56", mtu=1400, queue_pairs=4, speed=2500, duplex="full"
    )
    assert device.read_config(0, 17) == bytes.fromhex("525400123456 0100 0400 7805 c4090000 01")
    assert device.mac == "52:54:00:12:34:56"
    assert [slot.size_max for slot in device.queues] == [256] * 9
    plain = NetDevice()
    assert plain.read_config(6, 11) == bytes.fromhex("0100 0100 0000 ffffffff ff")
    assert plain.read_config(0, 1)[0] & 3 == 2  # locally administered, unicast
    assert NetDevice(duplex="half").read_config(16, 1) == b"\0"


def test_random_addresses_differ() -> None:
    assert len({NetDevice().mac for _ in range(8)}) == 8


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mac": "01:00:00:00:00:00"}, "unicast"),
        ({"mac": "02:00:00:00:00"}, "6 bytes"),
        ({"mac": "zz"}, "'zz'"),
        ({"mac": b"12345"}, "6 bytes"),
        ({"mtu": 67}, r"67 out of range \(68 to 65535\)"),
        ({"mtu": 65536}, "65536"),
        ({"queue_pairs": 0}, "0 queue pairs"),
        ({"queue_pairs": 0x8001}, "32769"),
        ({"speed": 1 << 31}, "speed"),
        ({"speed": -1}, "speed"),
        ({"queue_size": 0}, "size 0"),
        ({"worker": "none"}, "worker 'none'"),
        ({"worker": []}, "worker"),
        ({"offer": F.OUT_NET_HEADER}, "32-byte header"),
        ({"offer": "CSUM", "withhold": "CSUM"}, "both offered and withheld"),
        ({"offer": "NONSENSE"}, "NONSENSE"),
        ({"offer": "HOST_TSO4", "withhold": "CSUM"}, "HOST_TSO4"),
    ],
)
def test_configurations_that_cannot_be(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        NetDevice(**options)


def test_a_port_of_too_few_queues() -> None:
    port = ScriptPort(queues=2)
    with pytest.raises(ConfigError, match=r"3 queue pairs, but .* has 2"):
        NetDevice(port, queue_pairs=3)
    NetDevice(port, queue_pairs=2)
    with pytest.raises(RuntimeError, match="attached"):
        NetDevice(port)


@pytest.mark.parametrize(
    ("mtu", "accept", "size"),
    [
        (1500, F(0), 1523),
        (1500, F.GUEST_CSUM, 1523),
        (1500, F.GUEST_CSUM | F.GUEST_TSO4, 65589),
        (None, F(0), 65589),
        (68, F(0), 91),
        (65535, F(0), 65558),
    ],
)
def test_how_large_a_frame_a_port_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, mtu: int | None, accept: F, size: int
) -> None:
    """The MTU counts the bytes behind an Ethernet header of 14 and two VLAN tags of 4, and one more shows as too long.

    Frames that are uncut may have any length.
    """
    asked = []

    class Noting(NetReceive):
        def __init__(self, *args: Any, frame_max: int, **options: Any) -> None:
            asked.append(frame_max)
            super().__init__(*args, frame_max=frame_max, **options)

    monkeypatch.setattr("virtio.net.device.NetReceive", Noting)
    machine(mtu=mtu, without=GUEST & ~accept)
    assert asked == [size]


def test_a_closed_device_gives_its_port_back() -> None:
    port = ScriptPort()
    with NetDevice(port) as device:
        attach(device)
    assert port.calls[-1] == ("disconnect", 0)
    NetDevice(port)


# ---- link, legacy MAC, config ----


@pytest.mark.parametrize("status", [True, False])
def test_link(status: bool) -> None:
    device, nic, port = machine(without=F(0) if status else F.STATUS)
    bell = nic.transport.config_bell
    before = device.generation
    device.link = True
    assert device.generation == before
    device.link = False
    assert not device.link
    assert bool(bell.answer()) == status
    assert (device.generation != before) == status
    assert nic.read_config(6, 2) == b"\0\0"
    nic.send([(NONE, payload(60))])
    device.poll()
    assert port.take() == []
    assert nic.reap() == [0]
    assert device.statistics()["tx0"]["dropped"] == {"closed": 1}
    device.link = True
    assert bool(bell.answer()) == status
    assert both_ways(nic, port)


def test_a_link_that_is_down_stays_down_over_a_reset() -> None:
    device, nic, port = machine(link=False)
    assert nic.read_config(6, 2) == b"\0\0"
    assert not both_ways(nic, port)
    device.reset()
    assert device.read_config(6, 2) == b"\0\0"


def test_a_legacy_driver_writes_its_address() -> None:
    """Byte by byte, before it is ready or later (5.1.4.3)."""
    device, nic, port = machine(legacy=True, without=F.CTRL_MAC_ADDR, mac="02:00:00:00:00:aa")
    nic.stop()
    nic.reinit()
    for i, byte in enumerate(bytes.fromhex("0200000000ee")):
        nic.write_config(i, bytes([byte]))
    assert device.mac == "02:00:00:00:00:ee"
    nic.post(4)
    nic.control(0, 0, b"\0")
    port.give(
        [(NONE, bytes.fromhex("0200000000ee") + payload(60)), (NONE, bytes.fromhex("0200000000aa") + payload(60))]
    )
    device.poll()
    assert len(nic.receive()) == 1
    nic.write_config(4, b"\1\2\3")
    assert device.mac == "02:00:00:00:00:ee"
    device.reset()
    assert device.mac == "02:00:00:00:00:aa"


def test_an_address_written_before_the_driver_is_ready_counts() -> None:
    device = NetDevice(mac="02:00:00:00:00:aa")
    nic = RawNic(device, legacy=True, wanted=ALL & ~F.CTRL_MAC_ADDR)
    nic.adjust = lambda features: (nic.write_config(5, b"\xee"), features)[1]  # type: ignore[method-assign]
    nic.attach()
    assert device.mac == "02:00:00:00:00:ee"


def test_a_modern_driver_may_not_write() -> None:
    device, nic, _ = machine(mac="02:00:00:00:00:aa")
    nic.write_config(0, bytes(6))
    assert device.mac == "02:00:00:00:00:aa"
    assert device.counters["config"] == 1


# ---- life ----


@FORMATS
def test_resets(packed: bool) -> None:
    device, nic, port = machine(packed=packed)
    assert both_ways(nic, port)
    for _ in range(3):
        nic.stop()
        assert device.tasks == ()
        assert port.calls[-1] == ("disconnect", 0)
        port.give([(NONE, payload(60))])
        assert device.poll() == 0
        for queue in nic.queues.values():
            queue.queue.drain()
        nic.reinit()
        device.poll()
        nic.post(1)
        device.poll()
        assert len(nic.receive()) == 1
        assert both_ways(nic, port)
    assert device.statistics()["rx0"]["frames"] == 7


@FORMATS
@pytest.mark.parametrize("index", [0, 1], ids=["receive", "transmit"])
def test_one_queue_is_reset(packed: bool, index: int) -> None:
    """RING_RESET (2.6.1): the other one goes on; it comes back empty, at another size if the driver likes."""
    device, nic, port = machine(packed=packed)
    nic.post(10)
    nic.send([(NONE, payload(60))] * 5)
    nic.reset_queue(index)
    assert len(device.tasks) == 1
    port.give([(NONE, payload(60))] * 3)
    device.poll()
    assert (len(port.take()), len(nic.receive())) == ((5, 0) if index == 0 else (0, 3))
    nic.ring(index).drain()
    nic.enable_queue(index)
    device.poll()
    assert both_ways(nic, port) or index == 0
    nic.post(5)
    device.poll()
    assert len(nic.receive()) == (3 if index == 0 else 0)
    assert device.statistics()["tx0"]["frames"] >= 1


@FORMATS
def test_multiqueue(packed: bool) -> None:
    device, nic, port = machine(packed=packed, queue_pairs=3)
    nic.control(4, 0, b"\3\0")
    for pair in range(3):
        assert both_ways(nic, port, pair)
    assert sorted(device.statistics()) == ["control", "port", "rx0", "rx1", "rx2", "tx0", "tx1", "tx2"]


def test_a_driver_that_sets_up_some_queues_only() -> None:
    """Nothing but transmit: the rest is not worked, and nothing breaks."""
    port = ScriptPort()
    device = NetDevice(port)
    nic = RawNic(device)
    plans = nic.plan_queues
    nic.plan_queues = lambda: plans()[1:2]  # type: ignore[method-assign]
    nic.attach()
    nic.send([(NONE, payload(60))])
    port.give([(NONE, payload(60))])
    device.poll()
    assert len(port.take()) == 1
    assert port.waiting() == 1


def test_the_port_is_told() -> None:
    device, _, port = machine(without=F.GUEST_TSO4 | F.GUEST_ECN)
    assert port.calls == [("receive_offloads", 0x75, 12), ("set_queues", 1), ("connect", 0)]
    device.reset()
    assert port.calls[3:] == [("disconnect", 0)]


def test_without_a_port_everything_is_dropped() -> None:
    device = NetDevice()
    nic = attach(device)
    nic.send([(NONE, payload(60))] * 3)
    assert device.poll() == 3
    assert nic.reap() == [0, 0, 0]


def test_another_interrupt_bell() -> None:
    device, nic, port = machine()
    first = nic.queues[1].interrupt
    assert first is not None
    rung: list[int] = []
    device.set_call(1, Bell(lambda: rung.append(1)))
    device.set_call(0, Bell(lambda: rung.append(0)))
    assert both_ways(nic, port)
    assert sorted(rung) == [0, 1]
    assert not first.rings


# ---- memory ----


@FORMATS
def test_memory_is_replaced(packed: bool) -> None:
    """New regions for old while the device is live; nothing of the old is used."""
    _, nic, port = machine(packed=packed)
    assert both_ways(nic, port)
    region = nic.memory.regions[0]
    copy = bytearray(nic.memory.read(region.gpa, region.size))
    nic.memory.replace([(region.gpa, copy)])
    for _ in range(4):
        assert both_ways(nic, port, size=1500)


def test_without_dma_memory_is_not_touched() -> None:
    """PCI's bus master bit: frames wait, on a queue that is reset meanwhile too."""
    device, nic, port = machine()
    nic.post(4)
    device.set_dma(False)
    nic.send([(NONE, payload(60))])
    port.give([(NONE, payload(60))])
    nic.reset_queue(0)
    nic.ring(0).drain()
    nic.enable_queue(0)
    nic.post(4)
    assert device.poll() == 0
    assert (port.take(), nic.receive()) == ([], [])
    device.set_dma(True)
    assert device.poll() == 2
    assert (len(port.take()), len(nic.receive())) == (1, 1)


def test_rings_that_leave_memory_break() -> None:
    device, nic, _ = machine()
    nic.send([(NONE, payload(60))])
    nic.memory.replace([(1 << 40, bytearray(4096))])
    device.poll()
    assert device.status & 64
    assert device.reason is not None


@FORMATS
def test_guests_memory_in_many_regions(packed: bool) -> None:
    size = 1 << 20
    regions = [(i * 4 * size, bytearray(size)) for i in range(20)]
    port = ScriptPort(offloads=0x1FF)
    device = NetDevice(port)
    memory = GuestMemory(regions)
    nic = attach(device, ALL & ~PACKED | (PACKED if packed else 0), memory=memory, pool=(0, size))
    for i in range(20):
        at = i * 4 * size + size // 2
        memory.write(at, bytes(12) + payload(900, i))
        nic.ring(1).enqueue([(at, 912)], (), [])
        nic.ring(0).enqueue((), [(at + 5000, 2000)], at + 5000)
    device.poll()
    frames = port.take()
    assert frames == [(NONE, payload(900, i)) for i in range(20)]
    port.give(frames)
    device.poll()
    for i, (at, length) in enumerate(nic.ring(0).dequeue_burst()):
        assert memory.read(at, length)[12:] == payload(900, i)


def test_repr() -> None:
    device, _, _ = machine()
    assert "NetDevice" in repr(device)
    assert isinstance(Port().queues, int)
