"""The device's receive queue: frames that leave something undone, for guests that accept it and that do not."""

from __future__ import annotations

import pytest
from formats import FORMATS
from naive_device import transmit
from net_machine import GUEST, IN_PLACE, got, machine
from undone import KINDS, NONE, payload, reassemble, udp_right, ufo, undone

from virtio.constants import NetFeature as F
from virtio.offload import NetHeader


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
    device, nic, port = machine(packed=packed, without=GUEST | F.MRG_RXBUF, queue_size=8)
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
