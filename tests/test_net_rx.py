"""The device's receive queue: frames of every kind into buffers of every shape, in both ring formats."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_device import transmit
from nic import ALL, PACKED, RawNic, attach
from undone import CSUM, KINDS, payload, reassemble, udp_right, ufo, undone

from virtio import GuestMemory
from virtio._bell import Bell
from virtio._cable import Cable
from virtio._devicebench import ScriptPort
from virtio._net_receive import NetReceive, guest_offloads
from virtio._port import Port
from virtio.constants import Feature, NetFeature
from virtio.net.device import NetDevice
from virtio.offload import NetHeader

F = NetFeature
FORMATS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
IN_PLACE = pytest.mark.parametrize("in_place", [False, True], ids=["deliver", "reserve"])
GUEST = F.GUEST_CSUM | F.GUEST_TSO4 | F.GUEST_TSO6 | F.GUEST_ECN | F.GUEST_UFO | F.GUEST_USO4 | F.GUEST_USO6
NONE = NetHeader()
IN_ORDER = int(Feature.IN_ORDER)


def machine(
    *,
    packed: bool = False,
    without: int = 0,
    in_place: bool = False,
    legacy: bool = False,
    size: int = 256,
    **options: Any,
) -> tuple[NetDevice, RawNic, ScriptPort]:
    port = ScriptPort(in_place=in_place, offloads=0x1FF)
    device = NetDevice(port, queue_size=size, **options)
    wanted = ALL & ~PACKED & ~int(without) | (PACKED if packed else 0)
    return device, attach(device, wanted, legacy=legacy), port


def got(nic: RawNic) -> list[tuple[NetHeader, bytes]]:
    """The frames received; num_buffers, which post() decides, is left out."""
    frames = nic.receive()
    for header, _ in frames:
        header.num_buffers = 0
    return frames


@FORMATS
@IN_PLACE
@pytest.mark.parametrize("without", [F(0), F.MRG_RXBUF], ids=["mergeable", "whole"])
@pytest.mark.parametrize("order", [0, IN_ORDER], ids=["any", "in-order"])
def test_frames_of_all_sizes(packed: bool, in_place: bool, without: F, order: int) -> None:
    device, nic, port = machine(packed=packed, without=without | IN_ORDER & ~order, in_place=in_place)
    sizes = [14, 15, 31, 32, 33, 60, 63, 64, 65, 127, 128, 129, 130, 255, 1000, 1514]
    frames = [(NONE, payload(size, size)) for size in sizes]
    nic.post(len(frames), 1526)
    port.give(frames)
    assert device.poll() == len(frames)
    assert got(nic) == frames
    figures = device.statistics()["rx0"]
    assert (figures["frames"], figures["bytes"], figures["dropped"]) == (len(frames), sum(sizes), {})


@FORMATS
@IN_PLACE
@pytest.mark.parametrize("splits", [(), (5,), (14, 34, 54, 700)])
def test_a_frame_over_many_buffers(packed: bool, in_place: bool, splits: tuple[int, ...]) -> None:
    device, nic, port = machine(packed=packed, in_place=in_place)
    frame = payload(5000)
    nic.post(256, 512)
    port.give([(NONE, frame), (NONE, frame[:500]), (NONE, frame[:501])], splits=splits)
    device.poll()
    frames = nic.receive()
    assert [header.num_buffers for header, _ in frames] == [10, 1, 2]
    assert [data for _, data in frames] == [frame, frame[:500], frame[:501]]
    assert device.statistics()["rx0"]["merged"] == 2


@FORMATS
@IN_PLACE
def test_num_buffers_and_lengths(packed: bool, in_place: bool) -> None:
    """Each buffer but the last is full, and the header stands in the first."""
    device, nic, port = machine(packed=packed, in_place=in_place, without=IN_ORDER)
    nic.post(256, 300)
    port.give([(NONE, payload(1000))])
    device.poll()
    buffers = nic.buffers()
    assert [length for _, length in buffers] == [300, 300, 300, 112]
    assert buffers[0][0][10:12] == b"\4\0"
    assert buffers[0][0][:10] == bytes(10)


@IN_PLACE
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("without", [F(0), F.MRG_RXBUF])
def test_a_header_in_a_buffer_of_its_own(in_place: bool, legacy: bool, without: F) -> None:
    """As drivers do that know no ANY_LAYOUT."""
    device, nic, port = machine(in_place=in_place, without=without, legacy=legacy)
    frame = payload(1000)
    nic.post(4, pieces=[nic.header, 600, 914])
    port.give([(NONE, frame)])
    device.poll()
    assert got(nic) == [(NONE, frame)]


@pytest.mark.parametrize(
    ("legacy", "without", "offer", "size"),
    [
        (True, F.MRG_RXBUF, 0, 10),
        (True, F(0), 0, 12),
        (False, F.MRG_RXBUF, 0, 12),
        (False, F(0), F.HASH_REPORT, 20),
        (False, F(0), F.GUEST_UDP_TUNNEL_GSO | F.HOST_UDP_TUNNEL_GSO, 24),
    ],
)
@IN_PLACE
def test_header_sizes(legacy: bool, without: F, offer: F, size: int, in_place: bool) -> None:
    device, nic, port = machine(legacy=legacy, without=without, offer=int(offer), in_place=in_place)
    assert nic.header == size
    header, frame = undone("tcp4", 100)
    nic.post(4, 500)
    port.give([(NONE, frame), (header, frame)])
    device.poll()
    assert got(nic) == [(NONE, frame), (header, frame)]


@FORMATS
@IN_PLACE
def test_back_pressure(packed: bool, in_place: bool) -> None:
    """What finds no room waits in the port; in order, and none twice."""
    device, nic, port = machine(packed=packed, in_place=in_place, without=F.MRG_RXBUF, size=8)
    frames = [(NONE, payload(100, i)) for i in range(50)]
    port.give(frames)
    received: list[tuple[NetHeader, bytes]] = []
    while len(received) < len(frames):
        posted = nic.post(3)
        device.poll()
        received += got(nic)
        assert port.waiting() == len(frames) - len(received)
        assert posted
    assert received == frames
    assert device.statistics()["rx0"]["stalls"] > 10


@FORMATS
@IN_PLACE
def test_a_frame_waits_until_all_its_buffers_are_there(packed: bool, in_place: bool) -> None:
    """In the port, or, as how large it is shows only when it is read, with us; and those behind it wait, too."""
    device, nic, port = machine(packed=packed, in_place=in_place, mtu=5000, without=GUEST & ~F.GUEST_CSUM)
    frame = payload(5018)
    port.give([(NONE, frame), (NONE, frame[:60])])
    for _ in range(9):
        nic.post(1, 512)
        device.poll()
        assert port.waiting() == (1 if in_place else 2)
        assert nic.buffers() == []
    nic.post(1, 512)
    device.poll()
    assert nic.receive()[0][1] == frame
    nic.post(1, 512)
    device.poll()
    assert nic.receive()[0][1] == frame[:60]


def test_a_frame_that_waits_with_us_needs_no_more_of_the_port() -> None:
    device, nic, port = machine(in_place=True)
    port.give([(NONE, payload(1000))])
    nic.post(1, 512)
    assert device.poll() == 1
    assert port.waiting() == 0
    nic.post(1, 512)
    assert nic.queues[0].kick.rings == 1
    assert device.poll() == 1
    assert nic.receive()[0][1] == payload(1000)


@FORMATS
def test_a_frame_that_no_queue_can_take_is_dropped(packed: bool) -> None:
    device, nic, port = machine(packed=packed, size=8)
    nic.post(8, 512)
    port.give([(NONE, payload(8 * 512 - 12 + 1)), (NONE, payload(60))])
    device.poll()
    assert nic.receive()[0][1] == payload(60)
    assert device.statistics()["rx0"]["dropped"] == {"too_large": 1}


def test_a_frame_that_no_queue_of_chains_can_take_is_dropped() -> None:
    """All descriptors are there, two to a buffer: no more will come."""
    device, nic, port = machine(size=8, without=int(Feature.INDIRECT_DESC))
    nic.post(4, pieces=[200, 300])
    port.give([(NONE, payload(4 * 500 - 11)), (NONE, payload(4 * 500 - 12))])
    device.poll()
    assert [len(frame) for _, frame in nic.receive()] == [4 * 500 - 12]
    assert device.statistics()["rx0"]["dropped"] == {"too_large": 1}


def test_a_frame_over_more_buffers_than_can_be_held_is_dropped() -> None:
    device, nic, port = machine(size=2048)
    nic.post(2000, 16)
    port.give([(NONE, payload(1088 * 16 - 11)), (NONE, payload(1088 * 16 - 12))])
    device.poll()
    assert [len(frame) for _, frame in nic.receive()] == [1088 * 16 - 12]
    assert device.statistics()["rx0"]["dropped"] == {"too_large": 1}


@FORMATS
@IN_PLACE
def test_a_buffer_too_small_is_not_lost(packed: bool, in_place: bool) -> None:
    """Not mergeable: the frame is dropped, its buffer takes the next."""
    device, nic, port = machine(packed=packed, in_place=in_place, without=F.MRG_RXBUF)
    nic.post(1, 100)
    port.give([(NONE, payload(89)), (NONE, payload(88))])
    device.poll()
    assert got(nic) == [(NONE, payload(88))]
    assert device.statistics()["rx0"]["dropped"] == {"too_large": 1}


@IN_PLACE
def test_very_many_buffers(in_place: bool) -> None:
    """Buffers of 64 bytes: the largest frame takes more of them than a port may be given pieces."""
    device, nic, port = machine(in_place=in_place, size=2048)
    nic.post(2000, 64)
    port.give([(NONE, payload(65589)), (NONE, payload(40000))])
    device.poll()
    frames = nic.receive()
    assert [header.num_buffers for header, _ in frames] == [1026, 626]
    assert [frame for _, frame in frames] == [payload(65589), payload(40000)]


# ---- what is undone ----


@FORMATS
@IN_PLACE
@pytest.mark.parametrize("without", [F(0), F.MRG_RXBUF])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "vxlan"])
def test_what_the_guest_accepts_is_passed_on(packed: bool, in_place: bool, without: F, kind: str) -> None:
    device, nic, port = machine(packed=packed, in_place=in_place, without=without)
    frames = [undone(kind, 200), undone(kind, 5000, 1000)]
    nic.post(50, 2048 if not without else 6000)
    port.give(frames)
    device.poll()
    assert got(nic) == frames
    figures = device.statistics()["rx0"]
    assert (figures["csum"], figures["gso"], figures["cut"]) == (2, 1, 0)


@FORMATS
@IN_PLACE
@pytest.mark.parametrize("size", [20, 200, 3000])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "vxlan"])
@pytest.mark.parametrize("splits", [(), (17, 41, 55)], ids=["whole", "pieces"])
def test_checksums_are_completed(packed: bool, in_place: bool, size: int, kind: str, splits: tuple[int, ...]) -> None:
    device, nic, port = machine(packed=packed, in_place=in_place, without=GUEST)
    header, frame = undone(kind, size)
    nic.post(20, 500)
    port.give([(header, frame)], splits=splits)
    device.poll()
    assert got(nic) == [(NONE, data) for data in transmit(header, frame)]
    assert device.statistics()["rx0"]["checksums"] == 1


@FORMATS
@IN_PLACE
@pytest.mark.parametrize("accept", [F(0), F.GUEST_CSUM], ids=["nothing", "checksums"])
@pytest.mark.parametrize("without", [F(0), F.MRG_RXBUF], ids=["mergeable", "whole"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "vxlan"])
def test_frames_are_cut(packed: bool, in_place: bool, accept: F, without: F, kind: str) -> None:
    device, nic, port = machine(packed=packed, in_place=in_place, without=GUEST & ~accept | without)
    header, frame = undone(kind, 5000, 700)
    nic.post(100, 300 if not without else 1600)
    port.give([(header, frame)], splits=(20, 60, 1000))
    device.poll()
    frames = got(nic)
    assert all(each.flags == (1 if accept else 0) and each.gso_type == 0 for each, _ in frames)
    assert [transmit(each, data)[0] for each, data in frames] == transmit(header, frame)
    assert device.statistics()["rx0"]["cut"] == 1


@IN_PLACE
def test_fragments(in_place: bool) -> None:
    device, nic, port = machine(in_place=in_place, without=F.GUEST_UFO)
    header, frame = ufo(4000, 1000)
    nic.post(20)
    port.give([(header, frame)])
    device.poll()
    frames = got(nic)
    assert all(each == NONE for each, _ in frames)
    assert udp_right(frame, reassemble([data for _, data in frames]))


def test_usos_ip_version_counts() -> None:
    """A guest that accepts USO of one IP version only gets cut what is of either: the header does not say which."""
    device, nic, port = machine(without=F.GUEST_USO6)
    header, frame = undone("udp6", 3000, 1000)
    nic.post(20)
    port.give([(header, frame)])
    device.poll()
    assert len(nic.receive()) == 3


@FORMATS
def test_a_cut_frame_goes_on_where_it_stopped(packed: bool) -> None:
    """Fewer buffers than segments: no segment twice, none lost, and the frame is not another's."""
    device, nic, port = machine(packed=packed, without=GUEST | F.MRG_RXBUF, size=8)
    first, second = undone("tcp4", 20000, 700), undone("udp4", 9000, 700)
    port.give([first, (NONE, payload(60)), second])
    received: list[bytes] = []
    for _ in range(50):
        nic.post(5, 1600)
        device.poll()
        received += [frame for _, frame in nic.receive()]
    assert received == [*transmit(*first), payload(60), *transmit(*second)]
    assert port.waiting() == 0


def test_a_cut_frame_is_not_taken_for_another() -> None:
    """One that was cut in part and dropped does not shorten the next of its size."""
    device, nic, port = machine(without=GUEST | F.MRG_RXBUF)
    first, second = undone("tcp4", 3000, 500), undone("tcp6", 2980, 500)
    assert len(first[1]) == len(second[1])
    port.give([first, second])
    nic.post(3, 1600)
    device.poll()
    assert len(nic.receive()) == 3
    device.link = False
    port.give([(NONE, payload(60))])
    device.poll()
    assert port.waiting() == 0
    device.link = True
    port.give([second, first])
    nic.post(30, 1600)
    device.poll()
    assert [frame for _, frame in nic.receive()] == [*transmit(*second), *transmit(*first)]


def test_a_frame_that_waits_with_us_is_dropped_with_the_link() -> None:
    device, nic, port = machine(in_place=True)
    port.give([(NONE, payload(1000)), (NONE, payload(60))])
    nic.post(1, 512)
    device.poll()
    assert port.waiting() == 1
    device.link = False
    device.poll()
    assert device.statistics()["rx0"]["dropped"] == {"closed": 2}
    device.link = True
    nic.post(3, 512)
    port.give([(NONE, payload(61))])
    device.poll()
    assert [frame for _, frame in nic.receive()] == [payload(61)]


def test_a_paused_queue_loses_nothing() -> None:
    """A cable's other end finds no room, and tries again."""
    (first, sender), (second, receiver) = ((device := NetDevice(end), attach(device)) for end in Cable())
    receiver.post(10)
    second.pause()
    sender.send([(NONE, payload(60))] * 5)
    assert first.poll() == 0
    assert sender.reap() == []
    second.resume()
    assert first.poll() == 5
    assert len(receiver.receive()) == 5


@IN_PLACE
@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (NetHeader(flags=1, gso_type=1, gso_size=100, csum_start=34, csum_offset=16), "segment"),
        (NetHeader(flags=1, gso_type=5, gso_size=1, csum_start=34, csum_offset=6), "segment"),
        (NetHeader(flags=1, csum_start=2990, csum_offset=60000), "checksum"),
    ],
)
def test_what_cannot_be_done_is_dropped(in_place: bool, header: NetHeader, reason: str) -> None:
    device, nic, port = machine(in_place=in_place, without=GUEST)
    nic.post(20)
    port.give([(header, undone("udp4", 3000)[1]), (NONE, payload(60))])
    device.poll()
    assert got(nic) == [(NONE, payload(60))]
    assert device.statistics()["rx0"]["dropped"] == {reason: 1}


@IN_PLACE
def test_verified_checksums(in_place: bool) -> None:
    """DATA_VALID goes to a guest that accepts it, and is left out for another."""
    frame = payload(100)
    for without, expected in ((F(0), NetHeader(flags=2)), (GUEST, NONE)):
        device, nic, port = machine(in_place=in_place, without=without)
        nic.post(4)
        port.give([(NetHeader(flags=2), frame)])
        device.poll()
        assert got(nic) == [(expected, frame)]


def test_a_header_that_says_nothing_leaks_nothing() -> None:
    device, nic, port = machine()
    nic.post(4)
    port.give([(NetHeader(hdr_len=1, gso_size=2, csum_start=3, csum_offset=4), payload(60))])
    device.poll()
    assert got(nic) == [(NONE, payload(60))]


# ---- bad guests, links, filters ----


@FORMATS
@pytest.mark.parametrize("order", [0, IN_ORDER], ids=["any", "in-order"])
def test_buffers_that_are_none(packed: bool, order: int) -> None:
    """Readable, or smaller than a header: given back empty, and counted; frames go into those behind them."""
    device, nic, port = machine(packed=packed, without=IN_ORDER & ~order)
    queue = nic.ring(0)
    bad = nic.pool.allocate(64)
    queue.enqueue([(bad, 64)], (), "readable")
    queue.enqueue([(bad, 32)], [(bad + 32, 32)], "both")
    queue.enqueue((), [(bad, 11)], "small")
    nic.post(1, 100)
    queue.enqueue([(bad, 64)], (), "between")
    nic.post(40, 100)
    port.give([(NONE, payload(60)), (NONE, payload(1000)), (NONE, payload(88))])
    device.poll()
    done = queue.dequeue_burst()
    assert [cookie for cookie, length in done if length == 0][:3] == ["readable", "both", "small"]
    assert device.statistics()["rx0"]["bad_chains"] == 4
    assert device.statistics()["rx0"]["frames"] == 3
    assert device.queues[0].queue is not None
    assert device.queues[0].queue.broken is None


@FORMATS
@IN_PLACE
@pytest.mark.parametrize("order", [0, IN_ORDER], ids=["any", "in-order"])
def test_bad_buffers_among_too_few(packed: bool, in_place: bool, order: int) -> None:
    """They are given back, and all before them, while a frame waits for more; they are never written to."""
    device, nic, port = machine(packed=packed, without=IN_ORDER & ~order, in_place=in_place)
    queue = nic.ring(0)
    bad = nic.pool.allocate(64)
    nic.memory.write(bad, b"\x55" * 64)
    frame = payload(3000)
    port.give([(NONE, frame)])
    rng = random.Random(packed + 2 * in_place)
    got_back: list[Any] = []
    for round_ in range(100):
        for _ in range(rng.randint(0, 2) if round_ < 20 else 0):
            queue.enqueue([(bad, 32)], [(bad + 32, 32)] if rng.random() < 0.5 else (), "bad")
        nic.post(rng.randint(0, 2), 100)
        device.poll()
        got_back += queue.dequeue_burst()
    assert nic.memory.read(bad, 64) == b"\x55" * 64
    data = b""
    for cookie, length in got_back:
        if cookie == "bad":
            assert length == 0
        else:
            data += nic.memory.read(cookie[0][0], length)
    assert data[12:] == frame


@FORMATS
@IN_PLACE
def test_no_chain_is_held_between_bursts(packed: bool, in_place: bool) -> None:
    device, nic, port = machine(packed=packed, in_place=in_place)
    nic.post(200, 400)
    for size in (60, 3000, 65000):
        port.give([(NONE, payload(size))])
        device.poll()
        assert device.queues[0].queue is not None
        state = device.queues[0].queue.state()
        assert state["next_avail"] == state["next_used"]
        assert state["outstanding"] == []
    assert [len(frame) for _, frame in nic.receive()] == [60, 3000, 65000]


@IN_PLACE
def test_the_link_is_down(in_place: bool) -> None:
    device, nic, port = machine(in_place=in_place)
    nic.post(8)
    device.link = False
    port.give([(NONE, payload(60))] * 3)
    assert device.poll() == 3
    assert nic.receive() == []
    assert device.statistics()["rx0"]["dropped"] == {"closed": 3}
    device.link = True
    port.give([(NONE, payload(60))])
    device.poll()
    assert len(nic.receive()) == 1


@IN_PLACE
@pytest.mark.parametrize("splits", [(), (3, 13)])
def test_filter(in_place: bool, splits: tuple[int, ...]) -> None:
    device, nic, port = machine(in_place=in_place, mac="02:00:00:00:00:aa")
    nic.post(64, 256)
    own, other = bytes.fromhex("0200000000aa"), bytes.fromhex("0200000000ab")
    multi, broad = bytes.fromhex("01005e000001"), b"\xff" * 6
    assert nic.control(0, 0, b"\0") == 0
    frames = [(NONE, address + payload(60)) for address in (own, other, multi, broad)]
    port.give(frames, splits=splits)
    device.poll()
    assert got(nic) == [frames[0], frames[3]]
    assert device.statistics()["rx0"]["filtered"] == 2


@IN_PLACE
def test_a_broken_queue_takes_frames_no_more(in_place: bool) -> None:
    """They are dropped, so that a port behind which others are does not fill up; the device says NEEDS_RESET."""
    device, nic, port = machine(in_place=in_place)
    nic.post(2)
    port.give([(NONE, payload(60))] * 2)
    device.poll()
    nic.memory.write_u16(nic.queues[0].layout.driver + 2, 1000)
    port.give([(NONE, payload(60))] * 3)
    assert device.poll() == 3
    figures = device.statistics()["rx0"]
    assert (figures["frames"], figures["dropped"]) == (2, {"broken": 3})
    assert device.status & 64
    assert device.reason is not None
    assert "queue 0" in device.reason
    assert len(nic.receive()) == 2


# ---- interrupts, kicks, memory ----


@FORMATS
def test_interrupts(packed: bool) -> None:
    """One for a burst, none while the driver wants none."""
    device, nic, port = machine(packed=packed)
    bell = nic.queues[0].interrupt
    assert bell is not None
    nic.post(64)
    nic.ring(0).disable_intr()
    port.give([(NONE, payload(60))] * 10)
    device.poll()
    assert not bell.answer()
    nic.receive()
    assert not nic.ring(0).enable_intr()
    port.give([(NONE, payload(60))] * 10)
    device.poll()
    assert bell.answer()
    assert bell.rings == 1


@FORMATS
def test_kicks_are_wanted_only_while_there_is_no_room(packed: bool) -> None:
    device, nic, port = machine(packed=packed, without=F.MRG_RXBUF)
    kick = nic.queues[0].kick
    nic.post(2)
    assert not kick.rings
    port.give([(NONE, payload(60))] * 3)
    device.poll()
    nic.post(1)
    assert kick.rings == 1
    device.poll()
    assert len(nic.receive()) == 3
    nic.post(5)
    assert kick.rings == 1


@FORMATS
def test_a_kick_comes_for_the_buffer_that_makes_it_enough(packed: bool) -> None:
    """Buffers that are there and too few: EVENT_IDX must not ask for a kick that was due before."""
    device, nic, port = machine(packed=packed)
    kick = nic.queues[0].kick
    port.give([(NONE, payload(1000))])
    nic.post(2, 400)
    device.poll()
    assert port.waiting() == 1
    before = kick.rings
    nic.post(1, 400)
    assert kick.rings == before + 1
    device.poll()
    assert port.waiting() == 0


@FORMATS
def test_frames_over_the_seams_of_regions(packed: bool) -> None:
    """Buffers that lie in two adjacent regions of memory."""
    base = 1 << 20
    memory = GuestMemory([(0, bytearray(base)), (base, bytearray(4096)), (base + 4096, bytearray(base))])
    port = ScriptPort()
    device = NetDevice(port)
    nic = attach(device, ALL & ~PACKED | (PACKED if packed else 0), memory=memory, pool=(0, base))
    queue = nic.ring(0)
    for at in (base - 5, base - 40 + 4096, base - 13):
        queue.enqueue((), [(at, 6000)], None)
        frame = payload(5900, at)
        port.give([(NONE, frame)])
        device.poll()
        assert queue.dequeue() == (None, 5912)
        assert memory.read(at, 12) == bytes(10) + b"\1\0"
        assert memory.read(at + 12, 5900) == frame


@FORMATS
@IN_PLACE
def test_dirty_log(packed: bool, in_place: bool) -> None:
    """What was written is in the log, and the buffers that were not are not."""
    _, nic, port = machine(packed=packed, in_place=in_place)
    gpa = nic.pool.allocate(16 * 4096, 4096)
    queue = nic.ring(0)
    for i in range(16):
        queue.enqueue((), [(gpa + 4096 * i, 4096)], i)
    nic.memory.start_log()
    port.give([undone("tcp4", 9000), (NONE, payload(60))])
    nic.device.poll()
    pages = [page - gpa // 4096 for page in nic.memory.dirty_pages()]
    assert [page for page in pages if 0 <= page < 16] == [0, 1, 2, 3]


# ---- at random ----

sizes = st.integers(14, 3000)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    packed=st.booleans(),
    in_place=st.booleans(),
    mergeable=st.booleans(),
    accept=st.lists(st.sampled_from(list(GUEST)), max_size=7),
    order=st.booleans(),
)
def test_any_mixture(seed: int, packed: bool, in_place: bool, mergeable: bool, accept: list[F], order: bool) -> None:
    """Frames of all kinds, buffers of all sizes, at any time: what arrives, when all is done, is what was sent."""
    rng = random.Random(seed)
    accepted = sum(set(accept), F(0))
    without = GUEST & ~accepted | (F(0) if mergeable else F.MRG_RXBUF) | (0 if order else IN_ORDER)
    device, nic, port = machine(packed=packed, in_place=in_place, without=without)
    given_frames: list[tuple[NetHeader, bytes]] = []
    for _ in range(rng.randint(1, 12)):
        kind = rng.choice([kind for kind in KINDS if kind != "vxlan"])
        size = rng.randint(0, 6000)
        frame = rng.choice([(NONE, payload(size + 14)), undone(kind, size), undone(kind, size + 1000, 999)])
        given_frames.append(frame)
    for frame in given_frames:
        port.give([frame], splits=[rng.randint(1, 200) for _ in range(rng.randint(0, 3))])
    received: list[tuple[NetHeader, bytes]] = []
    for _ in range(400):
        if mergeable:
            nic.post(rng.randint(1, 30), rng.choice([64, 300, 1500, 4096]))
        else:
            nic.post(rng.randint(1, 30), 7200)
        device.poll()
        received += got(nic)
    assert port.waiting() == 0
    assert [each for header, frame in received for each in transmit(header, frame)] == [
        each for header, frame in given_frames for each in transmit(header, frame)
    ]
    assert not device.statistics()["rx0"]["dropped"]


# ---- the object ----


def test_guest_offloads() -> None:
    assert guest_offloads(int(GUEST)) == 0x7F
    assert guest_offloads(int(F.GUEST_CSUM | F.MRG_RXBUF)) == CSUM


def test_arguments() -> None:
    _, nic, _ = machine()
    queue = nic.device.queues[0].queue
    assert queue is not None
    bell = Bell()
    with pytest.raises(ValueError, match=r"frame_max 13 out of range \(14 to 65589\)"):
        NetReceive(queue, Port(), 0, 0, frame_max=13, kick=bell, call=bell, trouble=bell)
    task = NetReceive(queue, Port(), 0, 0, kick=bell, call=bell, trouble=bell)
    assert not task.active
    assert task.poll() == 0
    with pytest.raises(TypeError, match="already"):
        task.__init__(queue, Port(), 0, 0, kick=bell, call=bell, trouble=bell)  # type: ignore[misc]
    with pytest.raises(ValueError, match="65 addresses"):
        task.filter(modes=0, mac=bytes(6), unicast=[bytes(6)] * 65)
