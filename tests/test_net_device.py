"""The network device as a whole: configuration, features, life, workers, snapshots."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from nic import ALL, PACKED, RawNic, attach
from undone import payload, undone

from virtio import GuestMemory
from virtio._bell import Bell
from virtio._devicebench import ScriptPort
from virtio._port import Port
from virtio._worker import Worker
from virtio.constants import Feature, NetFeature
from virtio.errors import ConfigError, NegotiationError
from virtio.features import LEGACY_BITS, closed
from virtio.net.device import NetDevice
from virtio.offload import NetHeader

F = NetFeature
NONE = NetHeader()
FORMATS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
NET_BITS = [
    F.CSUM, F.GUEST_CSUM, F.CTRL_GUEST_OFFLOADS, F.MTU, F.MAC, F.GSO, F.GUEST_TSO4, F.GUEST_TSO6, F.GUEST_ECN,
    F.GUEST_UFO, F.HOST_TSO4, F.HOST_TSO6, F.HOST_ECN, F.HOST_UFO, F.MRG_RXBUF, F.STATUS, F.CTRL_VQ, F.CTRL_RX,
    F.CTRL_VLAN, F.CTRL_RX_EXTRA, F.GUEST_ANNOUNCE, F.MQ, F.CTRL_MAC_ADDR, F.GUEST_USO4, F.GUEST_USO6, F.HOST_USO,
    F.SPEED_DUPLEX,
]  # fmt: skip
RING_BITS = [
    Feature.NOTIFY_ON_EMPTY, Feature.ANY_LAYOUT, Feature.INDIRECT_DESC, Feature.EVENT_IDX, Feature.VERSION_1,
    Feature.RING_PACKED, Feature.IN_ORDER, Feature.RING_RESET,
]  # fmt: skip


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.001)


def machine(
    *, packed: bool = False, without: int = 0, legacy: bool = False, offloads: int = 0x1FF, **options: Any
) -> tuple[NetDevice, RawNic, ScriptPort]:
    port = ScriptPort(offloads=offloads, queues=options.get("queue_pairs", 1))
    device = NetDevice(port, **options)
    wanted = ALL & ~PACKED & ~int(without) | (PACKED if packed else 0)
    return device, attach(device, wanted, legacy=legacy), port


def both_ways(nic: RawNic, port: ScriptPort, pair: int = 0, size: int = 60) -> bool:
    """Whether a frame passes in each direction."""
    data = payload(size)
    nic.post(1, pair=pair)
    nic.send([(NONE, data)], pair=pair)
    port.give([(NONE, data)], queue=pair)
    nic.device.poll()
    sent = port.take(pair)
    received = nic.receive(pair=pair)
    nic.reap(pair=pair)
    return sent == [(NONE, data)] and [frame for _, frame in received] == [data]


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


def test_a_closed_device_gives_its_port_back() -> None:
    port = ScriptPort()
    with NetDevice(port) as device:
        attach(device)
    assert port.calls[-1] == ("disconnect", 0)
    NetDevice(port)


# ---- features ----


def test_what_is_offered() -> None:
    device = NetDevice(ScriptPort(queues=2), mtu=1500, queue_pairs=2)
    assert device.offered == sum({*NET_BITS, *RING_BITS})
    device.legacy = True
    assert device.device_features == sum({*NET_BITS, *RING_BITS}) & LEGACY_BITS
    assert not NetDevice().offered & (F.MQ | F.MTU)


@pytest.mark.parametrize("bit", [*NET_BITS, *RING_BITS], ids=lambda bit: bit.name)
@pytest.mark.parametrize("legacy", [False, True], ids=["modern", "legacy"])
def test_each_bit_on_and_off(bit: F, legacy: bool) -> None:
    """The device works with the bit negotiated, declined and withheld, and then what needs it is not there either."""
    for on in (True, False):
        for withhold in (0, bit) if not on else (0,):
            port = ScriptPort(queues=2, offloads=0x1FF)
            device = NetDevice(port, mtu=1500, queue_pairs=2, withhold=withhold)
            assert not device.offered & withhold
            offered = device.offered
            if bit == Feature.VERSION_1 and not legacy and not on:
                continue  # not a modern device without it: see test_direct
            nic = attach(device, ALL if on else closed(ALL & ~bit, 1), legacy=legacy)
            device_has = offered & (LEGACY_BITS if legacy else ~0)
            assert bool(nic.features & bit) == (on and bool(device_has & bit) and (legacy or bit not in LEGACY_ONLY))
            assert both_ways(nic, port)
            if nic.features & F.CTRL_RX:
                assert nic.control(0, 0, b"\1") == 0


LEGACY_ONLY = (F.GSO, Feature.NOTIFY_ON_EMPTY, Feature.ANY_LAYOUT)


def test_a_bit_that_was_not_offered_is_refused_by_name() -> None:
    device = NetDevice(withhold="GUEST_TSO4")
    transport_features = device.device_features | F.GUEST_TSO4
    with pytest.raises(NegotiationError, match=r"GUEST_TSO4 \(not offered\)"):
        device.check_features(transport_features)
    with pytest.raises(NegotiationError, match=r"GUEST_TSO6 \(needs GUEST_CSUM\)"):
        device.check_features(device.device_features & ~F.GUEST_CSUM)


def test_withheld_checksums_take_the_legacy_offload_bit_along() -> None:
    assert not NetDevice(withhold="CSUM").offered & F.GSO
    assert NetDevice(withhold="HOST_TSO4").offered & F.GSO


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


@pytest.mark.threads
def test_an_interrupt_that_resets_the_device() -> None:
    """A handler may do so in the middle of a poll: nothing that is gone is touched."""
    for workers in (None, "own"):
        device, nic, port = machine(worker=workers)
        done = threading.Event()

        def handler(device: NetDevice = device, done: threading.Event = done) -> None:
            device.reset()
            done.set()

        device.set_call(1, Bell(handler))
        nic.send([(NONE, payload(60))] * 3)
        device.poll()
        assert done.wait(10)
        until(lambda device=device: device.tasks == ())  # type: ignore[misc]
        assert len(port.take()) == 3
        device.close()


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


# ---- workers ----


@pytest.mark.threads
@FORMATS
@pytest.mark.parametrize("kind", ["own", "busy", "one", "two"])
def test_workers(packed: bool, kind: str) -> None:
    """Frames go both ways, on each pair, while nobody polls; a sleeper is woken by kicks."""
    workers: Any = kind
    mine: list[Worker] = []
    if kind in ("one", "two"):
        mine = [Worker(spin_us=0) for _ in range(1 if kind == "one" else 2)]
        workers = mine if kind == "two" else mine[0]
    port = ScriptPort(queues=2, offloads=0x1FF, keep=False)
    device = NetDevice(port, queue_pairs=2, worker=workers)
    for worker in mine:
        worker.start()
    try:
        nic = attach(device, ALL if packed else ALL & ~PACKED)
        nic.control(4, 0, b"\2\0")
        for _ in range(5):
            for pair in range(2):
                nic.send([(NONE, payload(60))] * 50, pair=pair)
                until(lambda pair=pair: nic.ring(2 * pair + 1).nused == 50)  # type: ignore[misc]
                nic.reap(pair=pair)
        figures = device.statistics()
        assert (figures["tx0"]["frames"], figures["tx1"]["frames"]) == (250, 250)
        assert all(worker.tasks for worker in mine)
        nic.stop()
        assert all(worker.tasks == () for worker in mine)
        nic.reinit()
    finally:
        device.close()
        for worker in mine:
            worker.stop()


@pytest.mark.threads
def test_a_worker_receives_when_the_guest_gives_buffers() -> None:
    port = ScriptPort(offloads=0x1FF)
    device = NetDevice(port, worker="own")
    port.give([(NONE, payload(60, i)) for i in range(40)])
    nic = attach(device)
    got: list[bytes] = []
    try:
        for _ in range(10):
            nic.post(4)
            until(lambda: nic.ring(0).nused == 4)
            got += [frame for _, frame in nic.receive()]
    finally:
        device.close()
    assert got == [payload(60, i) for i in range(40)]


def test_kicks_are_off_while_a_worker_is_awake() -> None:
    worker = Worker(mode="busy")
    device, nic, _ = machine(worker=worker, without=Feature.EVENT_IDX)
    nic.send([(NONE, payload(60))])
    assert not nic.queues[1].kick.rings
    assert device.poll() == 1
    device.close()


@pytest.mark.threads
def test_a_worker_goes_on_when_a_full_port_has_room() -> None:
    device, nic, port = machine(worker="own", offloads=0)
    port.room = 3
    nic.send([undone("tcp4", 3000, 500)])
    until(lambda: port.refused > 0)
    assert nic.ring(1).nused == 0
    port.room = -1
    until(lambda: nic.ring(1).nused == 1)
    device.close()
    assert len(port.take()) == 6


@pytest.mark.threads
def test_a_link_that_comes_up_while_the_worker_sleeps() -> None:
    device, nic, port = machine(worker="own", link=False)
    nic.post(4)
    time.sleep(0.01)
    device.link = True
    nic.send([(NONE, payload(60))])
    until(lambda: nic.ring(1).nused == 1)
    device.close()
    assert len(port.take()) == 1


@pytest.mark.threads
def test_a_broken_queue_is_reported_from_a_worker() -> None:
    device, nic, _ = machine(worker="own")
    nic.memory.write_u16(nic.queues[1].layout.driver + 2, 1000)
    nic.queues[1].kick.ring()
    until(lambda: bool(device.status & 64))
    assert device.reason is not None
    assert "queue 1" in device.reason
    device.close()


@pytest.mark.threads
def test_resets_under_load() -> None:
    """A driver resets while workers and a port that always has frames are at it."""
    port = ScriptPort(offloads=0x1FF, keep=False)
    device = NetDevice(port, worker="own")
    nic = attach(device)
    stop = threading.Event()
    for _ in range(30):
        port.give([(NONE, payload(1000))] * 100) if not stop.is_set() else None
        nic.post(50)
        nic.send([undone("tcp4", 3000, 500)] * 20)
        nic.stop()
        for queue in nic.queues.values():
            queue.queue.drain()
        nic.reinit()
    device.close()


# ---- snapshot ----


def moved(device: NetDevice, nic: RawNic, **options: Any) -> tuple[NetDevice, RawNic, ScriptPort]:
    """The device and its guest on another machine."""
    state = json.loads(json.dumps(device.snapshot()))
    region = nic.memory.regions[0]
    memory = GuestMemory([(region.gpa, bytearray(nic.memory.read(region.gpa, region.size)))])
    queues = {index: queue.queue.state() for index, queue in nic.queues.items()}
    cookies = {index: {each[0]: [] for each in state["outstanding"]} for index, state in queues.items()}
    device.reset()
    port = ScriptPort(offloads=0x1FF, queues=device.max_pairs)
    other = NetDevice(port, queue_pairs=device.max_pairs, **options)
    again = RawNic(other, memory=memory)
    again.features = nic.features
    again.pool = nic.pool
    again.pool.memory = memory
    other.restore(state, memory)
    for index, queue in nic.queues.items():
        queue.queue = type(queue.queue).restore(memory, queues[index], cookies[index])
        queue.kick = other.queues[index].kick
        bell = again.transport.interrupt_bells([index])[0]
        queue.interrupt = bell
    again.queues = nic.queues
    return other, again, port


@FORMATS
@pytest.mark.parametrize("pairs", [1, 2])
def test_snapshot_in_mid_stream(packed: bool, pairs: int) -> None:
    """What the driver said stays said; buffers that it had given are filled; what was sent is not sent again."""
    device, nic, port = machine(packed=packed, queue_pairs=pairs, mac="02:00:00:00:00:aa")
    if pairs > 1:
        nic.control(4, 0, b"\2\0")
    assert nic.control(0, 0, b"\0") == 0
    assert nic.control(1, 1, bytes.fromhex("0200000000bb")) == 0
    assert nic.control(2, 0, b"\7\0") == 0
    assert nic.control(5, 0, (2 | 1 << 7).to_bytes(8, "little")) == 0
    nic.post(20, 256)
    port.give([(NONE, bytes.fromhex("0200000000bb") + payload(60))] * 3)
    nic.send([(NONE, payload(60))] * 4)
    device.poll()
    assert len(port.take()) == 4
    nic.reap()
    nic.receive()
    nic.send([(NONE, payload(61))] * 2)
    device, nic, port = moved(device, nic)
    assert device.mac == "02:00:00:00:00:bb"
    assert nic.read_config(0, 6) == bytes.fromhex("0200000000bb")
    assert port.calls[0] == ("receive_offloads", 3, 12)
    assert port.calls[1] == ("set_queues", pairs)
    device.poll()
    assert port.take() == [(NONE, payload(61))] * 2
    to = [bytes.fromhex("0200000000bb"), bytes.fromhex("0200000000aa")]
    port.give([(NONE, to[0] + payload(60)), (NONE, to[1] + payload(60)), undone_to(to[0])])
    device.poll()
    assert [length for _, length in nic.ring(0).dequeue_burst()] == [78, 256, 222]
    assert device.control.pairs == pairs


def undone_to(address: bytes) -> tuple[NetHeader, bytes]:
    header, frame = undone("tcp4", 400, 100)
    return header, address + frame[6:]


@pytest.mark.threads
def test_a_device_takes_a_snapshot_and_goes_on() -> None:
    device, nic, port = machine(worker="own")
    for _ in range(20):
        nic.send([(NONE, payload(60))] * 10)
        state = device.snapshot()
        assert state["queues"][1]["state"]["outstanding"] == []
        until(lambda: nic.ring(1).nused == 10)
        nic.reap()
    assert len(port.take()) == 200
    device.close()


def test_states_that_are_not_this_devices() -> None:
    device, nic, _ = machine()
    state = device.snapshot()
    with pytest.raises(ValueError, match="queues"):
        NetDevice(ScriptPort(queues=2), queue_pairs=2).restore(state, nic.memory)
    with pytest.raises(NegotiationError, match="MRG_RXBUF"):
        NetDevice(withhold="MRG_RXBUF").restore(state, nic.memory)
    other = NetDevice()
    broken = state | {"own": state["own"] | {"pairs": 9}}
    with pytest.raises(ValueError, match="9 queue pairs"):
        other.restore(broken, nic.memory)
    assert other.status == 0


def test_repr() -> None:
    device, _, _ = machine()
    assert "NetDevice" in repr(device)
    assert isinstance(Port().queues, int)
