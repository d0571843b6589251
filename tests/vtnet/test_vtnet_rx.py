"""vtnet's receive queue: packets of one buffer and of many, and a device that lies about them."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from netdev import HandDevice, attached, frames_of, lie_used, raw

from virtio import GuestMemory, Region
from virtio.errors import DeviceBroken
from virtio.net.vtnet import Vtnet
from virtio.offload import NetHeader, ReceiveReason, ReceiveVerdict, segment

RINGS = [
    (False, "", ""),
    (False, "RING_PACKED", ""),
    (False, "RING_PACKED IN_ORDER", ""),
    (False, "", "MRG_RXBUF"),
    (False, "", "GUEST_CSUM"),
    (True, "", ""),
    (True, "", "ANY_LAYOUT"),
    (True, "", "MRG_RXBUF"),
    (True, "", "MRG_RXBUF ANY_LAYOUT"),
    (True, "", "MRG_RXBUF ANY_LAYOUT INDIRECT_DESC"),
]


def nic_of(**options: Any) -> tuple[HandDevice, Vtnet]:
    device = HandDevice(withhold=options.pop("withhold", ""), queue_size=options.pop("queue_size", 256))
    return device, attached(device, **options)


def nothing_is_lost(nic: Vtnet) -> bool:
    """Every buffer is posted, or in the pool, or Python's."""
    queue = nic.pairs[0].receive
    return queue.posted + queue.pool.nfree + queue.pool.lent == queue.pool.count


@pytest.mark.parametrize(("legacy", "want", "withhold"), RINGS)
def test_frames_arrive_whole_and_in_order(legacy: bool, want: str, withhold: str) -> None:
    device, nic = nic_of(legacy=legacy, want=want, withhold=withhold)
    sizes = [*range(14, 80), 1514, 1522] + ([4096, 4097, 9000, 65549, 65589] if "GUEST_CSUM" not in withhold else [])
    for size in sizes:
        frames = [bytes([i]) * size for i in range(3)]
        assert device.give(*frames) == 3
        assert nic.receive() == frames
        assert device.give(*frames) == 3
        assert [b"".join(views) for views in nic.receive_views()] == frames
    assert nic.receive() == []
    assert nothing_is_lost(nic) and nic.pairs[0].receive.pool.lent == 0
    counts = nic.pairs[0].receive.statistics()
    assert counts["ipackets"] == 6 * len(sizes) and counts["ibytes"] == 6 * sum(sizes) == 2 * counts["copied"]


@pytest.mark.parametrize(("withhold", "legacy", "lengths"), [
    ("", False, [4096 + 12]), ("MRG_RXBUF", False, [65589 + 12]), ("MRG_RXBUF ANY_LAYOUT", True, [10, 65589]),
    ("ANY_LAYOUT", True, [4096 + 12]), ("GUEST_CSUM MRG_RXBUF", True, [1522 + 10]), ("GUEST_CSUM", False, [2048 + 12]),
])  # fmt: skip
def test_layout_of_a_buffer(withhold: str, legacy: bool, lengths: list[int]) -> None:
    """Legacy devices without ANY_LAYOUT get the header in a descriptor of its own, unless buffers are mergeable."""
    device, nic = nic_of(withhold=withhold, legacy=legacy)
    chain = device.rx().pop()
    assert chain is not None and [len(piece) for piece in chain.writable] == lengths
    device.rx().unpop(chain)
    assert nic.pairs[0].receive.posted == nic.queues[0].queue.size // (1 if "INDIRECT" not in withhold else 2)


def test_the_limit_is_kept_and_the_rest_stays() -> None:
    device, nic = nic_of()
    frames = frames_of(200)
    assert device.give(*frames) == 200
    assert nic.receive(0) == []
    got = nic.receive(10)
    assert got == frames[:10]
    got += nic.receive(150)
    assert got == frames[:160]
    assert [b"".join(views) for views in nic.receive_views(7)] == frames[160:167]
    assert nic.receive(1000) == frames[167:]
    assert nothing_is_lost(nic)


def test_the_device_is_kicked_for_new_buffers_if_it_wants_to() -> None:
    device, nic = nic_of(queue_size=16)
    assert device.give(*frames_of(20)) == 16
    device.rx().enable_notification()
    before = nic.queues[0].kick.rings
    nic.receive()
    assert nic.queues[0].kick.rings == before + 1
    assert device.give(*frames_of(20)) == 16


def test_no_interrupts_unless_asked_for() -> None:
    device, nic = nic_of()
    bell = nic.queues[0].interrupt
    assert bell is not None
    for _ in range(100):
        device.give(*frames_of(10))
        nic.receive()
    assert bell.rings == 0
    queue = nic.pairs[0].receive
    assert not queue.arm()
    device.give(*frames_of(3))
    assert bell.rings == 1
    assert queue.arm()  # they wait already
    assert len(nic.receive()) == 3
    queue.disarm()
    device.give(*frames_of(1))
    assert bell.rings == 1


# ---- views ----


def test_views_are_the_buffers_and_come_back_when_released() -> None:
    device, nic = nic_of(queue_size=16)
    frames = frames_of(16)
    device.give(*frames)
    views = nic.receive_views()
    queue = nic.pairs[0].receive
    assert queue.posted == 0 and queue.pool.lent == 16
    assert [bytes(view) for (view,) in views] == frames
    assert device.give(*frames) == 0  # nothing to receive into
    for (view,) in views[:5]:
        nic.memory.buffer_to_gpa(view)  # is guest memory
        view.release()
    nic.receive()
    assert queue.posted == 5 and device.give(*frames) == 5
    del view, views
    gc.collect()
    assert nic.receive() == frames[:5]
    assert queue.posted == 16 and nothing_is_lost(nic)


def test_views_of_a_packet_in_many_buffers() -> None:
    device, nic = nic_of()
    frame = bytes(range(256)) * 40
    device.give(frame)
    ((first, *rest),) = nic.receive_views()
    assert [len(first), *map(len, rest)] == [4096, 4108, 2036]
    assert b"".join([first, *rest]) == frame


def test_views_outlive_reset_and_detach() -> None:
    device, nic = nic_of(queue_size=16)
    device.give(b"a" * 60)
    ((view,),) = nic.receive_views()
    nic.reset()
    assert nic.pairs[0].receive.posted == 15
    device.give(*[b"b" * 60] * 15)
    assert nic.receive() == [b"b" * 60] * 15
    assert bytes(view) == b"a" * 60
    used = nic.pool.used
    nic.detach()
    assert 0 < nic.pool.used < used  # what the view is of cannot be given to anybody else
    assert bytes(view) == b"a" * 60
    view.release()
    nic.attach()
    nic.detach()
    assert nic.pool.used == 0


# ---- what headers say ----


def tcp(payload: bytes = b"payload!", port: int = 5) -> bytes:
    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether

    return bytes(Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02") / IP(src="10.0.0.1", dst="10.0.0.2")
                 / TCP(sport=port, dport=6, flags="A") / payload)  # fmt: skip


def partial(frame: bytes) -> bytes:
    """The frame with the pseudo header's sum for a checksum."""
    from virtio.offload import prepare_transmit

    buffer = bytearray(frame)
    prepare_transmit(buffer, 1)
    return bytes(buffer)


NEEDS = NetHeader(flags=1, csum_start=34, csum_offset=16)


def test_checksums_are_completed_unless_told_not_to() -> None:
    device, nic = nic_of()
    whole = tcp()
    half = partial(whole)
    assert half != whole
    device.give(half, half, half, header=NEEDS)
    assert nic.receive(1) == [whole]
    assert nic.receive(1, complete=False) == [half]
    ((view,),) = nic.receive_views(1)
    assert bytes(view) == whole
    assert nic.pairs[0].receive.statistics()["csum"] == 3


@pytest.mark.parametrize("size", [65535, 5000, 4043])  # the last has its checksum field in two buffers
def test_checksums_of_packets_in_many_buffers(size: int) -> None:
    device, nic = nic_of(rx_buffer=64, queue_size=4096)
    whole = tcp((bytes(range(256)) * 256)[: size - 40])
    header = NetHeader(flags=1, csum_start=34, csum_offset=16)
    half = partial(whole)
    device.give(half, half, header=header)
    ((first, *rest),) = nic.receive_views(1)
    (copied,) = nic.receive(1)
    assert b"".join([first, *rest]) == copied
    from virtio.offload import verify

    assert verify(copied).l4.name == "GOOD"


def test_info_of_frames() -> None:
    device, nic = nic_of()
    frame, big = tcp(), tcp(bytes(5000))
    gso = NetHeader(flags=1, gso_type=1, gso_size=1000, hdr_len=54, csum_start=34, csum_offset=16)
    device.give(frame)
    device.give(frame, header=NetHeader(flags=2))
    device.give(partial(frame), header=NEEDS)
    device.give(partial(big), header=gso)
    frames, info = nic.receive_info()
    assert len(frames) == len(info) == 4
    assert [one.verdict for one in info] == [
        ReceiveVerdict.UNKNOWN, ReceiveVerdict.VERIFIED, ReceiveVerdict.NEEDS_CHECKSUM, ReceiveVerdict.NEEDS_CHECKSUM,
    ]  # fmt: skip
    assert [one.segments for one in info] == [1, 1, 1, 5]
    assert info[3].header.gso_size == 1000 and info[0].header == NetHeader(num_buffers=1)
    assert info[1].reason == ReceiveReason.CSUM_OFFLOADED
    records = memoryview(info)
    assert records.itemsize == 32 and len(records) == 4
    frames, info = nic.receive_info()
    assert frames == [] and len(info) == 0
    reasons = nic.pairs[0].receive.reasons()
    assert reasons[ReceiveReason.CSUM_NONE] == 1 and reasons[ReceiveReason.CSUM_PARTIAL] == 2
    assert nic.pairs[0].receive.statistics()["host_lro"] == 1


@pytest.mark.parametrize(("header", "reason"), [
    (NetHeader(flags=1, csum_start=34, csum_offset=6), ReceiveReason.CSUM_BAD_OFFSET),
    (NetHeader(flags=1, csum_start=35, csum_offset=16), ReceiveReason.CSUM_BAD_OFFSET),
    (NetHeader(flags=1, gso_type=4, gso_size=9, csum_start=34, csum_offset=16), ReceiveReason.GSO_BAD_TYPE),
])  # fmt: skip
def test_headers_that_cannot_be_true_of_the_frame(header: NetHeader, reason: ReceiveReason) -> None:
    device, nic = nic_of()
    device.give(tcp(), header=header)
    device.give(tcp())
    assert nic.receive() == [tcp()]
    device.give(tcp(), header=header)
    device.give(tcp())
    assert [bytes(view) for (view,) in nic.receive_views()] == [tcp()]
    counts = nic.pairs[0].receive.statistics()
    assert counts["csum_failed"] == counts["ierrors"] == 2
    assert nic.pairs[0].receive.reasons()[reason] == 2
    gc.collect()
    nic.receive()
    assert nothing_is_lost(nic)


# ---- a device that lies ----

FRAME = b"honest frame".ljust(60, b".")


@pytest.mark.parametrize(("parts", "used", "counter"), [
    ([raw(FRAME, 0)], [72], "mergeable_failed"),
    ([raw(FRAME, 2)], [72], "mergeable_failed"),  # the second never came
    ([raw(FRAME, 65535)], [72], "mergeable_failed"),
    ([raw(FRAME, 2), b"x" * 50], [72, 0], "mergeable_failed"),  # nothing in the second
    ([raw(FRAME, 3), b"x" * 50], [72, 50], "mergeable_failed"),
    ([raw(FRAME)], [0], "frame_too_short"),
    ([raw(FRAME)], [11], "frame_too_short"),
    ([raw(FRAME)], [12], "frame_too_short"),
    ([raw(FRAME)], [25], "frame_too_short"),
    ([raw(b"", 2), b"x" * 13], [12, 13], "frame_too_short"),
    ([raw(b"x" * 4096, 17)] + [b"y" * 4108] * 16, [4108] * 17, "frame_too_large"),
    ([raw(FRAME, flags=1, csum_start=60)], [72], "bad_header"),
    ([raw(FRAME, flags=1, csum_start=50, csum_offset=9)], [72], "bad_header"),
    ([raw(FRAME, gso_type=9)], [72], "bad_header"),
    ([raw(FRAME, flags=1, gso_type=1, csum_start=34, csum_offset=16)], [72], "bad_header"),
    ([raw(FRAME, flags=1, gso_type=0x23, gso_size=9)], [72], "bad_header"),
])  # fmt: skip
@pytest.mark.parametrize("views", [False, True])
def test_lies_cost_one_frame(parts: list[bytes], used: list[int], counter: str, views: bool) -> None:
    device, nic = nic_of()
    before, after = frames_of(2)
    take: Any = nic.receive_views if views else nic.receive
    device.give(before)
    assert [b"".join(frame) if views else frame for frame in take()] == [before]
    device.give_raw(*parts, used=used)
    assert take() == []
    device.give(after)
    assert [b"".join(frame) if views else frame for frame in take()] == [after]
    counts = nic.pairs[0].receive.statistics()
    assert counts[counter] == counts["ierrors"] == 1
    gc.collect()
    nic.receive()
    assert nothing_is_lost(nic) and nic.pairs[0].receive.posted == 256


def test_a_first_buffer_with_the_header_alone() -> None:
    device, nic = nic_of()
    device.give_raw(raw(b"", 3), FRAME[:1], FRAME[1:])
    assert nic.receive() == [FRAME]
    device.give_raw(raw(b"", 2), FRAME)
    assert [b"".join(views) for views in nic.receive_views()] == [FRAME]


def test_a_used_length_that_is_too_large_breaks_the_queue_or_is_cut() -> None:
    device, nic = nic_of()
    lie_used(nic, 0, (0, 1 << 20))
    with pytest.raises(DeviceBroken, match="receive queue 0: used length 1048576 is more than the chain's 4108"):
        nic.receive()
    with pytest.raises(DeviceBroken):
        nic.receive_views()
    assert nic.transmit([FRAME]) == 1 and device.sent() == [FRAME]
    nic.reset()
    device.give(FRAME)
    assert nic.receive() == [FRAME]
    device, nic = nic_of(clamp_used_len=True)
    device.rx().pop()
    lie_used(nic, 0, (0, 1 << 20))
    assert [len(frame) for frame in nic.receive()] in ([4096], [])  # whatever its header says of num_buffers


def test_what_came_before_the_fault_is_received() -> None:
    device, nic = nic_of()
    device.give(*frames_of(3))
    lie_used(nic, 0, (300, 60))
    assert nic.receive() == frames_of(3)
    with pytest.raises(DeviceBroken, match="used id 300 out of range"):
        nic.receive()


@pytest.mark.parametrize("pieces", [2, 100, 700, 860])
def test_bursts_of_packets_of_very_many_buffers(pieces: int) -> None:
    """More than one burst has room for: none is lost, none overruns."""
    device, nic = nic_of(queue_size=8192, rx_buffer=64, memory=GuestMemory.allocate(256 << 20))
    frame = (bytes(range(256)) * 300)[: 76 * pieces - 12]
    assert device.give(*[frame] * 6) == 6
    got = []
    while more := nic.receive(2):
        got += more
    assert got == [frame] * 6
    assert nothing_is_lost(nic)


@pytest.mark.parametrize("num_buffers", [1025, 1100, 4000])
def test_more_buffers_than_a_frame_may_have(num_buffers: int) -> None:
    device, nic = nic_of(queue_size=8192, rx_buffer=64, memory=GuestMemory.allocate(256 << 20))
    for _ in range(2):
        parts = [raw(FRAME, num_buffers), *[b"z"] * (num_buffers - 1)]
        device.give_raw(*parts)
        device.give(FRAME)
    assert nic.receive() == [FRAME] * 2
    counts = nic.pairs[0].receive.statistics()
    assert counts["mergeable_failed"] == 2
    assert nothing_is_lost(nic) and nic.pairs[0].receive.posted == 8192


def test_small_frames_in_single_bytes() -> None:
    device, nic = nic_of(queue_size=1024)
    device.give_raw(raw(FRAME[:1], 60), *[bytes([byte]) for byte in FRAME[1:]])
    device.give_raw(raw(b"", 61), *[bytes([byte]) for byte in FRAME])
    assert nic.receive() == [FRAME] * 2


def test_without_mergeable_buffers_num_buffers_says_nothing() -> None:
    device, nic = nic_of(withhold="MRG_RXBUF")
    device.give_raw(raw(FRAME, 9))
    device.give_raw(raw(FRAME, 0))
    assert nic.receive() == [FRAME] * 2


# ---- software LRO ----


def stream(segments: int, payload: int = 1000, port: int = 5) -> list[bytes]:
    return cut(tcp((bytes(range(256)) * 256)[: segments * payload], port), payload)


def cut(frame: bytes, payload: int) -> list[bytes]:
    return [b"".join(pieces) for pieces in segment(frame, payload)]


@pytest.mark.parametrize("valid", [False, True])
def test_software_lro(valid: bool) -> None:
    device, nic = nic_of(lro="software", refuse="" if valid else "GUEST_CSUM")
    segments, others = stream(20), stream(3, port=6)
    device.give(*segments, FRAME, *others, header=NetHeader(flags=2 * valid))
    frames, info = nic.receive_info(100)
    assert sorted(one.segments for one in info) == [1, 3, 20]
    merged = [frame for frame in frames if frame != FRAME]
    assert [one for frame in merged for one in cut(frame, 1000)] == segments + others
    counts = nic.pairs[0].receive.statistics()
    assert counts["lro_queued"] == 23 and counts["lro_flushed"] == len(merged) == 2 and counts["ipackets"] == 24
    assert nothing_is_lost(nic)


def test_software_lro_leaves_alone_what_it_must() -> None:
    device, nic = nic_of(lro="software", refuse="GUEST_CSUM")
    segments = stream(4)
    damaged = bytearray(segments[2])
    damaged[-1] ^= 1
    given = [segments[0], bytes(damaged), FRAME, segments[3]]
    device.give(*given)
    assert sorted(nic.receive()) == sorted(given)
    assert nic.pairs[0].receive.statistics()["lro_queued"] == 0
    device.give(*segments)
    assert [b"".join(views) for views in nic.receive_views()] == segments  # views never are merged


def test_the_map_is_replaced_while_buffers_are_posted() -> None:
    device, nic = nic_of(memory=GuestMemory.allocate(32 << 20))
    device.give(*frames_of(2))
    old = nic.memory.regions[0]
    nic.memory.replace([Region(0, bytearray(nic.memory.read(0, old.size)))])
    device.give(*frames_of(2, first=2))
    assert nic.receive() == frames_of(4)
