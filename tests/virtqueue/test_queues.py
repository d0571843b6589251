"""What the two ends write into a ring, byte for byte, and what their calls answer."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from formats import FORMATS
from ring_ends import BASE, DATA, TABLES, ends

from virtio import (
    BadIndex,
    DeviceQueue,
    DoesNotFit,
    DriverQueue,
    Feature,
    GuestMemory,
    MemoryFault,
    Postpone,
    QueueFull,
    QueueLayout,
)

# ---- layout ----


@pytest.mark.parametrize("size", [1, 2, 256, 32768])
def test_legacy_layout_is_vring_size(size: int) -> None:
    """VIRTIO 1.4, 2.7.2, and the event indices that every implementation puts behind the rings."""
    layout = QueueLayout.legacy(size, 0x4000)
    used = (16 * size + 2 * (3 + size) + 4095) & ~4095
    assert (layout.desc, layout.driver, layout.device) == (0x4000, 0x4000 + 16 * size, 0x4000 + used)
    assert layout.end == 0x4000 + used + 2 * 3 + 8 * size


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: QueueLayout.split(0, 0), "queue size 0 out of range"),
        (lambda: QueueLayout.split(65536, 0), "queue size 65536 out of range"),
        (lambda: QueueLayout.split(100, 0), "100 is not a power of two"),
        (lambda: QueueLayout.packed(32769, 0), "queue size 32769 out of range"),
        (lambda: QueueLayout.packed(100, 8), "desc address 0x8 is not aligned to 16 bytes"),
        (lambda: QueueLayout(8, 0, 0x81, 0x100), "driver address 0x81 is not aligned to 2 bytes"),
        (lambda: QueueLayout(8, 0, 0x80, 0x102), "device address 0x102 is not aligned to 4 bytes"),
        (lambda: QueueLayout(8, -16, 0x80, 0x100), "desc address -0x10 is no 64-bit address"),
        (lambda: QueueLayout.legacy(8, 0x4000, 3), "alignment 3 is not a power of two"),
    ],
)
def test_layouts_that_cannot_be(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_ring_outside_of_memory() -> None:
    memory = GuestMemory.allocate(4096, BASE)
    with pytest.raises(MemoryFault):
        DriverQueue(memory, QueueLayout.split(256, BASE))
    with pytest.raises(ValueError, match="RING_PACKED was negotiated"):
        DriverQueue(memory, QueueLayout.split(8, BASE), features=Feature.RING_PACKED)


# ---- bytes ----


def test_split_driver_writes_what_the_spec_says() -> None:
    driver, _ = ends(False)
    memory = driver.memory
    head = driver.enqueue([(DATA, 10), (DATA + 16, 20)], [(DATA + 64, 30)])
    chain = [struct.unpack("<QIHH", memory.read(BASE + 16 * i, 16)) for i in range(3)]
    assert head == 0
    assert chain == [(DATA, 10, 1, 1), (DATA + 16, 20, 1, 2), (DATA + 64, 30, 2, 0)]
    assert struct.unpack("<HHH", memory.read(driver.layout.driver, 6)) == (0, 1, 0)


def test_packed_driver_writes_what_the_spec_says() -> None:
    """AVAIL as the wrap counter, USED its inverse, in both laps; the id in the last descriptor."""
    driver, device = ends(True, size=3)
    memory = driver.memory
    for lap, bits in enumerate((1 << 7, 1 << 15)):
        ident = driver.enqueue([(DATA, 10)], [(DATA + 64, 30), (DATA + 128, 40)])
        ring = [struct.unpack("<QIHH", memory.read(BASE + 16 * i, 16)) for i in range(3)]
        assert [(addr, length, flags) for addr, length, _, flags in ring] == [
            (DATA, 10, bits | 1),
            (DATA + 64, 30, bits | 3),
            (DATA + 128, 40, bits | 2),
        ]
        assert ring[2][2] == ident
        chain = device.pop()
        assert chain is not None
        device.add_used(chain, 5)
        used = (1 << 7 | 1 << 15) * (1 - lap)
        assert struct.unpack("<IHH", memory.read(BASE + 8, 8)) == (5, ident, used | 2)
        assert driver.dequeue() == (None, 5)


@FORMATS
def test_indirect_tables_are_used_from_two_pieces_on(packed: bool) -> None:
    driver, device = ends(packed, features=Feature.INDIRECT_DESC, indirect=TABLES, max_indirect=3)
    driver.enqueue([(DATA, 1)], (), "one")
    driver.enqueue([(DATA, 1), (DATA + 8, 2)], [(DATA + 16, 3)], "three")
    driver.enqueue([(DATA, 1), (DATA + 8, 2)], [(DATA + 16, 3), (DATA + 24, 4)], "four")
    assert driver.nfree == 8 - 1 - 1 - 4
    one, three, four = device.pop_burst()
    assert [len(chain.readable) for chain in (one, three, four)] == [1, 2, 2]
    assert (three.readable_length, three.writable_length, four.writable_length) == (3, 3, 7)
    device.add_used_burst([four, one, three])
    assert [cookie for cookie, _ in driver.dequeue_burst()] == ["four", "one", "three"]
    assert driver.nfree == 8


@FORMATS
def test_in_order_device_writes_one_entry_for_a_batch_that_was_read(packed: bool) -> None:
    driver, device = ends(packed, features=Feature.IN_ORDER)
    for i in range(5):
        driver.enqueue([(DATA + 64 * i, 8)], (), cookie=i)
    device.add_used_burst(device.pop_burst())
    memory, layout = driver.memory, driver.layout
    if packed:
        length, ident, _ = struct.unpack("<IHH", memory.read(BASE + 8, 8))
        assert (length, ident) == (0, 4)
        assert (
            struct.unpack("<H", memory.read(BASE + 16 + 14, 2))[0] & 0x8080 == 0x80
        )  # the next is as the driver left it
    else:
        assert struct.unpack("<II", memory.read(layout.device + 4, 8)) == (4, 0)
        assert memory.read(layout.device + 12, 8) == bytes(8)
        assert memory.read_u16(layout.device + 2) == 5
    assert driver.dequeue_burst(2) == [(0, 0), (1, 0)]
    assert driver.nused == 3
    assert driver.dequeue_burst() == [(2, 0), (3, 0), (4, 0)]


@FORMATS
def test_in_order_each_chain_that_was_written_has_an_entry_of_its_own(packed: bool) -> None:
    """Also one that is full, which a batch could leave out: DPDK's driver reads the length of each."""
    driver, device = ends(packed, features=Feature.IN_ORDER)
    for i in range(5):
        driver.enqueue((), [(DATA + 64 * i, 8)], cookie=i)
    chains = device.pop_burst()
    for chain, written in zip(chains, (8, 8, 3, 8, 5), strict=True):
        chain.written = written
    device.add_used_burst(chains)
    memory, layout = driver.memory, driver.layout
    if packed:
        entries = [struct.unpack("<IHH", memory.read(BASE + 16 * at + 8, 8))[:2] for at in range(5)]
        assert entries == [(8, 0), (8, 1), (3, 2), (8, 3), (5, 4)]
    else:
        entries = [struct.unpack("<II", memory.read(layout.device + 4 + 8 * at, 8)) for at in range(5)]
        assert entries == [(0, 8), (1, 8), (2, 3), (3, 8), (4, 5)]
        assert memory.read_u16(layout.device + 2) == 5
    assert driver.dequeue_burst(2) == [(0, 8), (1, 8)]
    assert driver.dequeue_burst() == [(2, 3), (3, 8), (4, 5)]


@FORMATS
def test_in_order_device_refuses_another_order(packed: bool) -> None:
    driver, device = ends(packed, features=Feature.IN_ORDER)
    driver.enqueue_burst([([(DATA, 1)], (), i) for i in range(3)])
    first, second, third = device.pop_burst()
    with pytest.raises(ValueError, match="not the oldest outstanding"):
        device.add_used(second)
    with pytest.raises(ValueError, match="not the oldest outstanding"):
        device.add_used_burst([first, third])
    assert device.outstanding == [first, second, third]


# ---- limits and errors ----


@FORMATS
@pytest.mark.parametrize("size", [1, 32768])
def test_smallest_and_largest(packed: bool, size: int) -> None:
    driver, device = ends(packed, size)
    pieces = [([(DATA, 16)], (), i) for i in range(size + 1)]
    for _ in range(3):
        assert driver.enqueue_burst(pieces) == size
        with pytest.raises(QueueFull, match=f"queue size {size}"):
            driver.enqueue([(DATA, 1)])
        chains = device.pop_burst(size + 1)
        assert len(chains) == size
        device.add_used_burst(chains)
        assert [cookie for cookie, _ in driver.dequeue_burst(size + 1)] == list(range(size))


@FORMATS
def test_enqueue_errors(packed: bool) -> None:
    driver, _ = ends(packed)
    for bad in ([], [(DATA, 0)], [(DATA, 1 << 32)], [(-1, 1)], [(DATA, 0xFFFFFFFF), (DATA, 1)]):
        with pytest.raises(ValueError, match=r"piece of|address|chain of"):
            driver.enqueue(bad)
    with pytest.raises(TypeError, match="a piece is"):
        driver.enqueue([7])  # type: ignore[list-item]
    with pytest.raises(MemoryFault):
        driver.enqueue([bytearray(4)])
    with pytest.raises(DoesNotFit) as caught:
        driver.enqueue([(DATA, 1)] * 9)
    assert (caught.value.needed, caught.value.available) == (9, 8)
    with pytest.raises(TypeError):
        driver.enqueue_burst([([(DATA, 1)], (), 1), 7])  # type: ignore[list-item]
    assert driver.nfree == 8
    assert driver.enqueue_burst([([(DATA, 1)] * 3, (), i) for i in range(3)]) == 2
    assert driver.nfree == 2


@FORMATS
def test_any_cookie_and_views(packed: bool) -> None:
    driver, device = ends(packed)
    view = driver.memory.view(DATA, 4)
    view[:] = b"data"
    cookie: list[object] = [{}]
    driver.enqueue([view], [driver.memory.view(DATA + 8, 8)], cookie)
    chain = device.pop()
    assert chain is not None
    assert chain.read() == b"data"
    assert chain.read(1, 2) == b"at"
    assert chain.readable[0].readonly
    chain.writable[0][:3] = b"yes"
    with pytest.raises(ValueError, match="do not fit in 8 writable bytes"):
        chain.write(b"123456789")
    with pytest.raises(ValueError, match="9 bytes written into a chain of 8"):
        device.add_used(chain, 9)
    device.add_used(chain, 3)
    with pytest.raises(ValueError, match="given back"):
        chain.write(b"late")
    got = driver.dequeue()
    assert got is not None
    assert got[0] is cookie
    assert driver.memory.read(DATA + 8, 3) == b"yes"


@FORMATS
def test_chain_over_the_seam_of_two_regions(packed: bool) -> None:
    memory = GuestMemory([(BASE, bytearray(0x10000)), (BASE + 0x10000, bytearray(0x10000))])
    layout = QueueLayout.packed(8, BASE) if packed else QueueLayout.split(8, BASE)
    features = Feature.RING_PACKED if packed else Feature(0)
    driver, device = DriverQueue(memory, layout, features=features), DeviceQueue(memory, layout, features=features)
    memory.write(BASE + 0x10000 - 3, b"across")
    driver.enqueue([(BASE + 0x10000 - 3, 6)])
    chain = device.pop()
    assert chain is not None
    assert [bytes(view) for view in chain.readable] == [b"acr", b"oss"]
    assert chain.read() == b"across"


# ---- notification ----


def test_split_event_index() -> None:
    driver, device = ends(False, features=Feature.EVENT_IDX)
    driver.enqueue([(DATA, 1)])
    assert driver.notify()
    assert "event index 0 was passed (old 0, new 1)" in driver.explain_notify()
    assert not driver.notify()
    assert "nothing new" in driver.explain_notify()
    driver.enqueue([(DATA, 1)])
    assert not driver.notify()  # the device has not asked again
    assert "event index 0 was not passed (old 1, new 2)" in driver.explain_notify()
    device.pop_burst()
    assert not device.enable_notification()
    driver.enqueue([(DATA, 1)])
    assert driver.notify()
    assert driver.counters()["kicks"] == 2
    assert driver.counters()["kicks_suppressed"] == 1
    assert device.enable_notification()  # one waits


@FORMATS
def test_flags_without_event_index(packed: bool) -> None:
    driver, device = ends(packed)
    device.disable_notification()
    driver.enqueue([(DATA, 1)])
    assert not driver.notify()
    assert "suppress" in driver.explain_notify()
    assert device.enable_notification()
    driver.enqueue([(DATA, 1)])
    assert driver.notify()
    driver.disable_intr()
    device.add_used_burst(device.pop_burst())
    assert not device.needs_notification()
    assert driver.enable_intr()


@FORMATS
@pytest.mark.parametrize(("hint", "after"), [(Postpone.SHORT, 2), (Postpone.LONG, 6), (Postpone.EMPTIED, 7)])
def test_postponed_interrupts(packed: bool, hint: Postpone, after: int) -> None:
    """With 8 outstanding, the interrupt comes with the completion after a quarter, three quarters, or with the last."""
    driver, device = ends(packed, features=Feature.EVENT_IDX)
    for _ in range(8):
        driver.enqueue([(DATA, 1)])
    assert not driver.postpone_intr(hint)
    asked = []
    for chain in device.pop_burst():
        device.add_used(chain)
        asked.append(device.needs_notification())
    assert asked == [i == after for i in range(8)]
    assert driver.postpone_intr(hint)  # more than that wait already


def test_notify_on_empty() -> None:
    driver, device = ends(False, features=Feature.NOTIFY_ON_EMPTY)
    driver.disable_intr()
    for _ in range(2):
        driver.enqueue([(DATA, 1)])
    first, second = device.pop_burst()
    device.add_used(first)
    assert not device.needs_notification()
    device.add_used(second)
    assert device.needs_notification()
    assert "NOTIFY_ON_EMPTY" in device.explain_notify()


def test_notification_data() -> None:
    """VIRTIO 1.4, 2.9: index, then next offset and wrap."""
    memory = GuestMemory.allocate(1 << 20, BASE)
    split = DriverQueue(memory, QueueLayout.split(4, BASE), index=5)
    packed = DriverQueue(memory, QueueLayout.packed(3, BASE + 0x1000), features=Feature.RING_PACKED, index=6)
    assert split.notification_data() == 5
    assert packed.notification_data() == 6 | 1 << 31
    for queue in (split, packed):
        queue.enqueue_burst([([(BASE + 0x2000, 1)], (), None)] * 3)
    assert split.notification_data() == 5 | 3 << 16
    assert packed.notification_data() == 6  # offset 0 of the next lap, whose wrap counter is 0


def test_a_long_silence_does_not_lose_a_kick() -> None:
    """More than 2^16 chains without a decision: every event index was passed."""
    driver, device = ends(False, 256, features=Feature.EVENT_IDX)
    chains = [([(DATA, 1)], (), None)] * 256
    for _ in range(257):
        driver.enqueue_burst(chains)
        device.add_used_burst(device.pop_burst())
        driver.dequeue_burst()
    assert device.needs_notification()
    assert driver.notify()


# ---- snapshot, reset, dump ----


@FORMATS
def test_restored_ends_go_on_and_force_one_notification(packed: bool) -> None:
    driver, device = ends(packed, features=Feature.EVENT_IDX)
    for i in range(4):
        driver.enqueue([(DATA, 4)], [(DATA + 64 * (i + 1), 8)], cookie=i)
    driver.notify()
    popped = device.pop_burst(2)
    popped[0].write(b"half")
    states = json.loads(json.dumps([driver.state(), device.state()]))
    cookies = {head: f"cookie {head}" for head, _, _ in states[0]["outstanding"]}
    again = DriverQueue.restore(driver.memory, states[0], cookies)
    other = DeviceQueue.restore(device.memory, states[1])
    assert again.notify()
    assert "restore" in again.explain_notify()
    assert other.needs_notification()
    assert not again.notify()
    assert [chain.written for chain in other.outstanding] == [4, 0]
    other.add_used_burst(other.outstanding + other.pop_burst())
    assert sorted(str(cookie) for cookie, _ in again.dequeue_burst()) == sorted(cookies.values())
    assert again.nfree == 8


@FORMATS
@pytest.mark.parametrize(
    ("end", "change"),
    [
        ("driver", {"links": [0] * 8}),
        ("driver", {"links": [9] * 8}),
        ("driver", {"outstanding": [[0, 9, 0]]}),
        ("driver", {"outstanding": [[8, 1, 0]]}),
        ("driver", {"outstanding": [[0, 1, 0], [0, 1, 0]]}),
        ("driver", {"batch": [5, 0]}),
        ("driver", {"end": "device"}),
        ("device", {"end": "driver"}),
        ("device", {"next_avail": 70000}),
        ("device", {"outstanding": [{"head": 0, "slots": 9, "written": 0, "readable": [], "writable": []}]}),
    ],
)
def test_states_that_contradict_themselves(packed: bool, end: str, change: dict[str, Any]) -> None:
    driver, device = ends(packed)
    state = (driver if end == "driver" else device).state() | change
    with pytest.raises(ValueError, match="state"):
        (DriverQueue if end == "driver" else DeviceQueue).restore(driver.memory, state)


@FORMATS
def test_reset_to_another_size(packed: bool) -> None:
    driver, device = ends(packed)
    driver.enqueue([(DATA, 1)], cookie="lost")
    stale = device.pop()
    assert stale is not None
    layout = QueueLayout.packed(16, BASE) if packed else QueueLayout.split(16, BASE)
    assert driver.drain() == ["lost"]
    driver.reset(layout)
    device.reset(layout)
    with pytest.raises(ValueError, match="reset away"):
        device.add_used(stale)
    assert driver.nfree == 16
    driver.enqueue([(DATA, 1)], cookie="kept")
    chain = device.pop()
    assert chain is not None
    device.add_used(chain)
    assert driver.dequeue() == ("kept", 0)
    with pytest.raises(ValueError, match="keeps its format"):
        driver.reset(QueueLayout.split(8, BASE) if packed else QueueLayout.packed(8, BASE))


def test_dump_has_freebsds_fields() -> None:
    driver, device = ends(False)
    driver.enqueue([(DATA, 1)], [(DATA, 7)])
    text = driver.dump()
    fields = "size=8; free=6; used=0; queued=1; desc_head_idx=2; avail.idx=1; used_cons_idx=0; used.idx=0;"
    for field in (*fields.split(), "used_event_idx=0;", "avail.flags=0x0;", "used.flags=0x0", "7 bytes writable"):
        assert field in text
    device.pop()
    assert "Chain 0: 1 bytes readable, 7 writable" in device.dump()
    assert repr(driver) == "<DriverQueue 0: split, size 8, ok>"


def test_a_queue_object_that_was_never_initialised() -> None:
    driver, device = DriverQueue.__new__(DriverQueue), DeviceQueue.__new__(DeviceQueue)
    for call in (driver.enqueue, driver.dequeue, device.pop):
        with pytest.raises((MemoryFault, TypeError, AttributeError)):
            call()
    assert not driver.notify()
    assert not device.needs_notification()
    with pytest.raises(TypeError, match="already"):
        driver, _ = ends(False)
        driver.__init__(driver.memory, driver.layout)  # type: ignore[misc]
    assert issubclass(BadIndex, Exception)


def test_the_dirty_log_sees_what_the_device_writes() -> None:
    driver, device = ends(False)
    memory = driver.memory
    memory.start_log()
    driver.enqueue((), [(DATA, 8192), (DATA + 0x4000, 4096)])
    chain = device.pop()
    assert chain is not None
    memory.dirty_pages(clear=True)
    chain.written = 5000
    device.add_used(chain)
    ring = driver.layout.device >> 12
    assert memory.dirty_pages() == [ring, DATA >> 12, (DATA >> 12) + 1]
