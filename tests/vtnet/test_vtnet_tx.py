"""vtnet's transmit queue: what the device finds in the ring, and what becomes of buffers."""

from __future__ import annotations

import gc
import threading

import pytest
from netdev import HandDevice, attached, frames_of, lie_used

from virtio import GuestMemory, Region
from virtio.errors import DeviceBroken
from virtio.net.vtnet import Vtnet
from virtio.offload import NetHeader

RINGS = [
    (False, "", ""),
    (False, "RING_PACKED", ""),
    (False, "RING_PACKED IN_ORDER", ""),
    (False, "", "INDIRECT_DESC"),
    (True, "", ""),
    (True, "", "ANY_LAYOUT"),
    (True, "", "ANY_LAYOUT MRG_RXBUF"),
    (True, "", "ANY_LAYOUT INDIRECT_DESC"),
]


def nic_of(**options: object) -> tuple[HandDevice, Vtnet]:
    device = HandDevice(withhold=str(options.pop("withhold", "")), queue_size=int(str(options.pop("queue_size", 256))))
    options["refuse"] = f"{options.get('refuse', '')} MTU"  # which would keep large frames from it
    return device, attached(device, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("legacy", "want", "withhold"), RINGS)
def test_frames_arrive_whole_and_in_order(legacy: bool, want: str, withhold: str) -> None:
    device, nic = nic_of(legacy=legacy, want=want, withhold=withhold)
    sent = 0
    for size in [*range(14, 80), 1514, 2048, 2049, 9000, 65549, 65589]:
        frames = [bytes([i]) * size for i in range(5)]
        assert nic.transmit(frames) == 5
        assert device.sent() == frames
        sent += 5
    counts = nic.pairs[0].transmit.statistics()
    assert counts["opackets"] == sent and counts["copied"] == counts["obytes"]


@pytest.mark.parametrize(("legacy", "withhold", "pieces"), [
    (False, "", 1), (True, "", 1), (True, "ANY_LAYOUT", 2), (True, "ANY_LAYOUT INDIRECT_DESC", 2),
])  # fmt: skip
@pytest.mark.parametrize("size", [60, 2048, 60000])
def test_layout_of_a_chain(legacy: bool, withhold: str, pieces: int, size: int) -> None:
    """Legacy devices without ANY_LAYOUT find the header alone in its descriptor (VIRTIO 1.4, 5.1.9.5.1)."""
    device, nic = nic_of(legacy=legacy, withhold=withhold)
    nic.transmit([bytes(size)])
    (chain,) = device.sent_chains()
    lengths = [len(piece) for piece in chain.readable]
    assert lengths == ([device.header_size + size] if pieces == 1 else [device.header_size, size])


def test_a_full_queue_takes_what_fits_and_goes_on_when_it_is_emptied() -> None:
    device, nic = nic_of(queue_size=64)
    frames = frames_of(100)
    assert nic.transmit(frames) == 64
    assert nic.transmit(frames[64:]) == 0
    assert device.sent() == frames[:64]
    assert nic.transmit(frames[64:]) == 36
    assert device.sent() == frames[64:]
    assert nic.pairs[0].transmit.statistics()["rescheduled"] == 2


def test_large_frames_stop_at_the_large_buffers() -> None:
    device, nic = nic_of(queue_size=256)
    frames = [bytes([i]) * 60000 for i in range(100)]
    taken = nic.transmit(frames)
    assert taken == nic.pairs[0].transmit.large.count == 64  # type: ignore[union-attr]
    assert nic.transmit(frames_of(10)) == 10  # small ones go on
    assert device.sent() == frames[:64] + frames_of(10)
    assert nic.transmit(frames[64:]) == 36


def test_without_segmentation_a_frame_is_at_most_the_mtus() -> None:
    device, nic = nic_of(withhold="HOST_TSO4 HOST_TSO6 HOST_UFO HOST_USO")
    queue = nic.pairs[0].transmit
    assert queue.large is None and queue.frame_max == 2048
    assert nic.transmit([bytes(2048), bytes(2049), bytes(60)]) == 3  # what can never be sent is taken
    assert [len(frame) for frame in device.sent()] == [2048, 60]
    assert queue.statistics()["too_large"] == 1


def test_what_is_no_frame() -> None:
    device, nic = nic_of()
    assert nic.transmit([b"", bytes(13), bytes(14), bytes(65590)]) == 4
    assert [len(frame) for frame in device.sent()] == [14]
    counts = nic.pairs[0].transmit.statistics()
    assert (counts["too_short"], counts["too_large"], counts["opackets"]) == (2, 1, 1)
    for wrong in ("text", bytes(60), [60], [bytes(60), None]):
        with pytest.raises(TypeError):
            nic.transmit(wrong)  # type: ignore[arg-type]
    assert device.sent() == []
    assert nic.transmit([]) == 0


def test_one_buffer_with_offsets() -> None:
    device, nic = nic_of()
    frames = frames_of(3, 100)
    assert nic.transmit(b"".join(frames), offsets=[0, 100, 200, 300]) == 3
    assert device.sent() == frames


def test_counters() -> None:
    _, nic = nic_of()
    nic.transmit([bytes([1]) + bytes(99), b"\xff" * 50, bytes(60)])
    counts = nic.pairs[0].transmit.statistics()
    assert (counts["opackets"], counts["obytes"], counts["omcasts"]) == (3, 210, 2)


def test_the_buffer_used_last_is_used_next() -> None:
    """Last in, first out: a queue that is never full stays in few buffers, which stay in the cache."""
    device, nic = nic_of(queue_size=64)
    seen = set()
    for _ in range(50):
        nic.transmit([bytes(60)])
        (chain,) = device.sent_chains()
        seen.add(nic.memory.buffer_to_gpa(chain.readable[0])[0])
        device.tx().add_used(chain)
        nic.pairs[0].transmit.reclaim()
    assert len(seen) == 1


# ---- completion ----


@pytest.mark.parametrize("withhold", ["", "EVENT_IDX"])
def test_no_interrupts_under_load(withhold: str) -> None:
    device, nic = nic_of(withhold=withhold)
    frames = frames_of(32)
    for _ in range(400):
        assert nic.transmit(frames) == 32
        device.sent()
    bell = nic.queues[1].interrupt
    assert bell is not None
    assert bell.rings * 1000 < nic.pairs[0].transmit.statistics()["opackets"]


def test_a_burst_is_one_kick_at_most() -> None:
    device, nic = nic_of()
    device.tx().enable_notification()
    before = nic.queues[1].kick.rings
    nic.transmit(frames_of(64))
    assert nic.queues[1].kick.rings == before + 1
    nic.transmit(frames_of(64))  # the device has not asked again: its event index was passed
    assert nic.queues[1].kick.rings == before + 1
    device.sent()
    device.tx().enable_notification()
    nic.transmit(frames_of(1))
    assert nic.queues[1].kick.rings == before + 2


def test_reclaim_says_what_is_out() -> None:
    device, nic = nic_of()
    queue = nic.pairs[0].transmit
    nic.transmit(frames_of(10))
    assert queue.reclaim() == 10
    free = queue.small.nfree
    device.sent()
    assert queue.reclaim() == 0 and queue.small.nfree == free + 10 == queue.small.count


# ---- headers given ----


def test_headers_of_ones_own() -> None:
    device, nic = nic_of()
    frame = bytes(200)
    csum = NetHeader(flags=1, csum_start=34, csum_offset=16)
    gso = NetHeader(flags=1, gso_type=1, gso_size=100, hdr_len=54, csum_start=34, csum_offset=16)
    assert nic.transmit([frame] * 3, headers=[csum, None, gso]) == 3
    assert [header for header, _ in device.sent_headers()] == [csum, NetHeader(), gso]
    assert nic.transmit([frame] * 2, headers=csum) == 2
    assert [header for header, _ in device.sent_headers()] == [csum, csum]
    counts = nic.pairs[0].transmit.statistics()
    assert (counts["csum"], counts["tso"]) == (3, 1)


def test_a_driver_does_not_say_what_only_a_device_may() -> None:
    """DATA_VALID, num_buffers and a hash are the device's to say; the last would be sent by a forwarder."""
    device, nic = nic_of()
    given = NetHeader(flags=1, csum_start=34, csum_offset=16, num_buffers=7, hash_value=5, hash_report=1)
    nic.transmit([bytes(100)], headers=given)
    ((header, _),) = device.sent_headers()
    assert header == NetHeader(flags=1, csum_start=34, csum_offset=16)


def test_headers_that_cannot_be() -> None:
    device, nic = nic_of()
    bad = [
        NetHeader(flags=1, csum_start=99, csum_offset=0),
        NetHeader(flags=1, csum_start=50, csum_offset=49),
        NetHeader(flags=1, gso_type=1, gso_size=0, csum_start=34, csum_offset=16),
        NetHeader(flags=1, gso_type=7, gso_size=9, csum_start=34, csum_offset=16),
    ]
    assert nic.transmit([bytes(100)] * len(bad), headers=bad) == len(bad)
    assert device.sent() == []
    assert nic.pairs[0].transmit.statistics()["bad_header"] == len(bad)
    assert nic.transmit([bytes(100)], headers=[NetHeader(gso_type=1, gso_size=100)]) == 1  # no TCP is there to be cut
    assert device.sent() == [] and nic.pairs[0].transmit.statistics()["refused"] == 1
    assert nic.transmit([bytes(100)], headers=[NetHeader(flags=2)]) == 1  # says nothing to a device
    assert device.sent_headers() == [(NetHeader(), bytes(100))]
    with pytest.raises(ValueError, match="2 headers for 1 frames"):
        nic.transmit([bytes(60)], headers=[None, None])
    with pytest.raises(TypeError, match="header 0 is a int"):
        nic.transmit([bytes(60)], headers=[1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="either headers"):
        nic.transmit([bytes(60)], headers=NetHeader(), checksum=True)
    with pytest.raises(ValueError, match="layer 'middle'"):
        nic.transmit([bytes(60)], checksum=True, layer="middle")  # type: ignore[arg-type]


# ---- zero copy ----


def test_buffers_are_sent_from_where_they_are() -> None:
    device, nic = nic_of()
    queue = nic.pairs[0].transmit
    views = nic.buffers(4, 300)
    assert [len(view) for view in views] == [300] * 4
    for i, view in enumerate(views):
        view[:] = bytes([i]) * 300
    assert nic.transmit([views[0], views[1][:100], *views[2:]]) == 4
    chains = device.sent_chains()
    for view, chain in zip(views, chains, strict=True):
        at = nic.memory.buffer_to_gpa(view)[0]
        assert nic.memory.buffer_to_gpa(chain.readable[0])[0] == at - device.header_size
    assert [len(chain.readable[0]) - device.header_size for chain in chains] == [300, 100, 300, 300]
    assert queue.statistics()["copied"] == 0
    device.tx().add_used_burst(chains)


def test_a_buffer_is_free_when_both_have_let_go_of_it() -> None:
    device, nic = nic_of()
    queue = nic.pairs[0].transmit
    count = queue.small.count
    first, second, third = nic.buffers(3)
    assert queue.small.nfree == count - 3 and queue.small.lent == 3
    nic.transmit([first, second])
    first.release()
    queue.reclaim()
    assert queue.small.nfree == count - 3 and queue.small.lent == 2  # the device has it
    device.sent()
    queue.reclaim()
    assert queue.small.nfree == count - 2  # the first; Python has the second
    second.release()
    third.release()  # never sent
    queue.reclaim()
    assert queue.small.nfree == count and queue.small.lent == 0


def test_a_forgotten_view_is_a_released_one() -> None:
    _, nic = nic_of()
    queue = nic.pairs[0].transmit
    views = nic.buffers(10)
    part = views[3][5:10]
    del views
    gc.collect()
    queue.reclaim()
    assert queue.small.nfree == queue.small.count - 1  # a slice keeps its buffer
    part.release()
    queue.reclaim()
    assert queue.small.nfree == queue.small.count


def test_what_is_not_a_whole_free_buffer_is_copied() -> None:
    device, nic = nic_of()
    (view,) = nic.buffers(1, 200)
    view[:] = bytes(range(200))
    assert nic.transmit([view, view, view[10:100]]) == 3  # the second time it is on its way
    chains = device.sent_chains()
    assert [chain.read()[device.header_size :] for chain in chains] == [bytes(view), bytes(view), bytes(view[10:100])]
    addresses = {nic.memory.buffer_to_gpa(chain.readable[0])[0] for chain in chains}
    assert len(addresses) == 3
    assert nic.pairs[0].transmit.statistics()["copied"] == 290
    device.tx().add_used_burst(chains)
    nic.pairs[0].transmit.reclaim()
    nic.transmit([view])  # and now it is free again
    assert nic.pairs[0].transmit.statistics()["copied"] == 290


def test_large_buffers_can_be_filled_too() -> None:
    device, nic = nic_of()
    (view,) = nic.buffers(1, 60000)
    view[:] = b"\7" * 60000
    nic.transmit([view])
    assert device.sent() == [b"\7" * 60000]
    assert nic.pairs[0].transmit.statistics()["copied"] == 0
    view.release()
    nic.pairs[0].transmit.reclaim()
    large = nic.pairs[0].transmit.large
    assert large is not None and large.nfree == large.count
    with pytest.raises(ValueError, match="length 70000"):
        nic.buffers(1, 70000)


def test_python_never_gets_the_last_buffer() -> None:
    device, nic = nic_of(queue_size=16)
    views = nic.buffers(100)
    assert len(views) == 15
    for _ in range(20):
        assert nic.transmit([bytes(60)]) == 1
        assert device.sent() == [bytes(60)]


@pytest.mark.threads
def test_views_come_back_from_other_threads() -> None:
    device, nic = nic_of(queue_size=64)
    queue = nic.pairs[0].transmit
    stop = threading.Event()
    errors: list[BaseException] = []

    def borrow() -> None:
        try:
            while not stop.is_set():
                for view in nic.buffers(5, 100):
                    view[:] = b"x" * 100
                    nic.transmit([view])
                    view.release()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=borrow) for _ in range(2)]
    for thread in threads:
        thread.start()
    got = 0
    while got < 3000:
        frames = device.sent()
        assert all(frame in (b"x" * 100, b"y" * 80) for frame in frames)
        got += len(frames)
        nic.transmit([b"y" * 80] * 3)
    stop.set()
    for thread in threads:
        thread.join()
    device.sent()
    assert not errors
    assert queue.reclaim() == 0
    assert queue.small.nfree == queue.small.count


# ---- trouble ----


def test_a_queue_that_the_device_broke_says_so_and_is_whole_after_a_reset() -> None:
    device, nic = nic_of(queue_size=16, withhold="RING_PACKED")
    nic.transmit(frames_of(16))
    lie_used(nic, 1, (99, 0))
    with pytest.raises(DeviceBroken, match="transmit queue 1: used id 99 out of range"):
        nic.transmit([bytes(60)])
    with pytest.raises(DeviceBroken):
        nic.transmit([bytes(60)])
    device.give(bytes(60))
    assert nic.receive() == [bytes(60)]  # the other queue does not mind
    nic.reset()
    frames = frames_of(16)
    assert nic.transmit(frames) == 16
    assert device.sent() == frames


def test_a_view_outlives_a_reset() -> None:
    device, nic = nic_of(queue_size=16)
    (view, sent) = nic.buffers(2, 60)
    nic.transmit([sent])
    nic.reset()
    small = nic.pairs[0].transmit.small
    assert small.nfree == small.count - 2
    view[:] = sent[:] = b"z" * 60
    nic.transmit([view, sent])
    assert device.sent() == [b"z" * 60] * 2
    assert nic.pairs[0].transmit.statistics()["copied"] == 0


def test_the_map_is_replaced_while_frames_are_out() -> None:
    device, nic = nic_of(memory=GuestMemory.allocate(32 << 20))
    frames = frames_of(10)
    nic.transmit(frames)
    (view,) = nic.buffers(1, 60)
    old = nic.memory.regions[0]
    copy = bytearray(nic.memory.read(0, old.size))
    nic.memory.replace([Region(0, copy)])
    assert device.sent() == frames
    view[:] = b"v" * 60  # still writable, though no guest memory any more: it is copied
    assert nic.transmit([*frames, view]) == 11
    assert device.sent() == [*frames, b"v" * 60]


def test_buffers_that_leave_guest_memory() -> None:
    device, nic = nic_of(memory=GuestMemory.allocate(32 << 20), withhold="INDIRECT_DESC CTRL_VQ")
    old = nic.memory.regions[0]
    layouts = [nic.queues[i].layout for i in (0, 1)]
    end = max(layout.end for layout in layouts) + 4095 & -4096
    assert nic.transmit([bytes(60)]) == 1
    nic.memory.replace([Region(0, memoryview(old)[:end])])
    assert nic.transmit([bytes(60)]) == 0
    assert nic.buffers(1) == []
    nic.memory.replace([Region(0, memoryview(old))])
    assert nic.transmit(frames_of(2)) == 2
    assert device.sent()[1:] == frames_of(2)
