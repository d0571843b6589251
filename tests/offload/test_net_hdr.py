"""virtio_net_hdr: all layouts, and every fault that a header can have by itself."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtio.constants import Feature, NetFeature
from virtio.constants import NetFeature as F
from virtio.offload import NetHeader, NetHeaderFault, net_header_size

FIELDS = {
    "flags": 0xFF, "gso_type": 0xFF, "hdr_len": 0xFFFF, "gso_size": 0xFFFF, "csum_start": 0xFFFF,
    "csum_offset": 0xFFFF, "num_buffers": 0xFFFF, "hash_value": 0xFFFFFFFF, "hash_report": 0xFFFF,
    "outer_th_offset": 0xFFFF, "inner_nh_offset": 0xFFFF,
}  # fmt: skip
VISIBLE = {10: 6, 12: 7, 20: 9, 24: 11}  # fields of each layout
HOST = (
    F.CSUM | F.HOST_TSO4 | F.HOST_TSO6 | F.HOST_ECN | F.HOST_UFO | F.HOST_USO | F.HOST_UDP_TUNNEL_GSO
    | F.HOST_UDP_TUNNEL_GSO_CSUM
)  # fmt: skip
GUEST = (
    F.GUEST_CSUM | F.GUEST_TSO4 | F.GUEST_TSO6 | F.GUEST_ECN | F.GUEST_UFO | F.GUEST_USO4 | F.GUEST_USO6
    | F.GUEST_UDP_TUNNEL_GSO | F.GUEST_UDP_TUNNEL_GSO_CSUM | F.RSC_EXT | F.MRG_RXBUF
)  # fmt: skip
NEEDS, VALID, RSC, TUNNEL_CSUM = 1, 2, 4, 8

headers = st.fixed_dictionaries({name: st.integers(0, most) for name, most in FIELDS.items()})


# ---- layouts ----


@given(fields=headers, size=st.sampled_from(list(VISIBLE)), behind=st.binary(max_size=9))
def test_round_trip(fields: dict[str, int], size: int, behind: bytes) -> None:
    fields = {name: fields[name] for name in FIELDS}
    wire = struct.pack("<BBHHHHHIHHHH", *list(fields.values())[:9], 0, *list(fields.values())[9:])
    header = NetHeader(**fields)
    assert header.to_bytes(24) == wire
    assert header.to_bytes(size) == wire[:size]
    found = NetHeader.from_bytes(wire[:size] + behind, size)
    names = list(FIELDS)
    assert {name: getattr(found, name) for name in names} == {
        name: value if i < VISIBLE[size] else 0 for i, (name, value) in enumerate(fields.items())
    }
    assert found == NetHeader(**{name: fields[name] for name in names[: VISIBLE[size]]})


@pytest.mark.parametrize(
    ("features", "size"),
    [
        (0, 10),
        (HOST & ~F.HOST_UDP_TUNNEL_GSO & ~F.HOST_UDP_TUNNEL_GSO_CSUM, 10),
        (F.MRG_RXBUF, 12),
        (Feature.VERSION_1, 12),
        (Feature.VERSION_1 | F.HASH_REPORT, 20),
        (F.HOST_UDP_TUNNEL_GSO, 24),
        (F.GUEST_UDP_TUNNEL_GSO, 24),
        (F.GUEST_UDP_TUNNEL_GSO | F.HASH_REPORT | F.MRG_RXBUF | Feature.VERSION_1, 24),
    ],
)
def test_size(features: int, size: int) -> None:
    assert net_header_size(features) == size
    assert net_header_size(features | 1 << 200) == size


def test_sizes_that_are_none() -> None:
    for features in (F.OUT_NET_HEADER, F.IPSEC):
        with pytest.raises(ValueError, match="32-byte header"):
            net_header_size(int(features) | 1 << 32)
    with pytest.raises(ValueError, match="features -1 are negative"):
        net_header_size(-1)
    for size in (0, 9, 11, 16, 25, 32):
        with pytest.raises(ValueError, match=f"header size {size} is none of 10, 12, 20, 24"):
            NetHeader().to_bytes(size)
        with pytest.raises(ValueError, match=f"header size {size} is none"):
            NetHeader.from_bytes(bytes(64), size)
    with pytest.raises(ValueError, match="header needs 12 bytes, not 11"):
        NetHeader.from_bytes(bytes(11), 12)


def test_fields() -> None:
    with pytest.raises(OverflowError):
        NetHeader(flags=256)
    with pytest.raises(OverflowError):
        NetHeader().gso_size = -1
    with pytest.raises(TypeError, match="'csum' is no field of virtio_net_hdr"):
        NetHeader(csum=1)  # type: ignore[call-arg]
    assert repr(NetHeader(flags=1, csum_start=34)) == "NetHeader(flags=1, csum_start=34)"
    assert NetHeader() != 0


def test_feature_bits() -> None:
    """The masks are those of VIRTIO 1.4, 5.1.3: spot values, and no bit twice."""
    assert F.HOST_UDP_TUNNEL_GSO_CSUM == 1 << 68 and F.HOST_USO == 1 << 56 and F.MRG_RXBUF == 1 << 15
    assert sum(NetFeature) == sum(set(NetFeature)) and all(bit.bit_count() == 1 for bit in NetFeature)
    assert set(NetFeature).isdisjoint(Feature)


# ---- faults ----

TCP = {"flags": NEEDS, "gso_type": 1, "hdr_len": 54, "gso_size": 1460, "csum_start": 34, "csum_offset": 16}
UDP = {"flags": NEEDS, "gso_type": 5, "hdr_len": 42, "gso_size": 1460, "csum_start": 34, "csum_offset": 6}
INNER = TCP | {"gso_type": 0x21, "hdr_len": 104, "csum_start": 84, "outer_th_offset": 34, "inner_nh_offset": 64}
SUM = {"flags": NEEDS, "csum_start": 34, "csum_offset": 6}
MERGED = TCP | {"flags": RSC, "csum_start": 3, "csum_offset": 1, "num_buffers": 1}
ONE = {"num_buffers": 1}

FAULTS: list[tuple[str, dict[str, int], int, int, bool]] = [
    ("OK", {}, 0, 0, False),
    ("OK", {}, 0, HOST, False),
    ("OK", SUM, 42, HOST, False),
    ("OK", TCP, 54, HOST, False),
    ("OK", UDP, 2000, HOST, False),
    ("OK", UDP | {"gso_type": 3}, 2000, HOST, False),
    ("OK", TCP | {"gso_type": 0x84}, 2000, HOST, False),
    ("OK", INNER, 2000, HOST, False),
    ("OK", INNER | {"flags": NEEDS | TUNNEL_CSUM}, 2000, HOST, False),
    ("OK", ONE, 60, GUEST, True),
    ("OK", {}, 60, GUEST & ~F.MRG_RXBUF, True),
    ("OK", ONE | {"flags": VALID}, 60, GUEST, True),
    ("OK", ONE | {"flags": VALID | TUNNEL_CSUM}, 60, GUEST, True),
    ("OK", ONE | SUM | {"flags": NEEDS | VALID}, 60, GUEST, True),
    ("OK", MERGED, 2000, GUEST, True),
    ("OK", MERGED | {"flags": RSC | NEEDS | VALID, "csum_start": 0xFFFF}, 2000, GUEST, True),
    ("OK", MERGED | {"gso_size": 0, "hdr_len": 0}, 2000, GUEST, True),
    ("OK", MERGED | {"gso_type": 5}, 2000, GUEST, True),
    ("OK", INNER | {"flags": NEEDS | RSC, "csum_start": 3, "csum_offset": 0, "num_buffers": 1}, 2000, GUEST, True),
    ("TUNNEL_OFFSETS", INNER | {"flags": NEEDS | RSC, "csum_start": 99, "num_buffers": 1}, 83, GUEST, True),
    # what the specification says is not to be looked at
    ("OK", {"flags": 0x70}, 60, HOST, False),
    ("OK", {"csum_start": 0xFFFF, "csum_offset": 0xFFFF, "hdr_len": 0xFFFF, "gso_size": 9}, 60, HOST, False),
    ("OK", {"outer_th_offset": 0xFFFF, "inner_nh_offset": 1, "num_buffers": 7}, 60, HOST, False),
    # what says nothing in its direction, is a hint, or is what a peer gets wrong
    ("OK", {"flags": VALID}, 60, HOST, False),  # FreeBSD, on frames that it forwards
    ("OK", SUM | {"flags": NEEDS | VALID}, 60, HOST, False),
    ("OK", {"flags": VALID}, 60, 0, False),
    ("OK", TCP | {"flags": NEEDS | RSC}, 60, HOST | F.RSC_EXT, False),
    ("OK", ONE | {"flags": VALID}, 60, F.CSUM, True),
    ("OK", TCP | {"flags": 0}, 2000, HOST, False),
    ("OK", ONE | TCP | {"flags": VALID}, 2000, GUEST, True),  # a NIC's LRO behind vhost
    ("OK", ONE | TCP | {"flags": 0}, 2000, GUEST, True),
    ("OK", TCP | {"hdr_len": 2001}, 2000, HOST, False),
    ("OK", TCP | {"hdr_len": 0}, 2000, HOST, False),
    ("OK", TCP | {"gso_type": 0x81}, 2000, HOST & ~F.HOST_ECN, False),
    ("OK", UDP | {"gso_type": 0x85}, 2000, HOST, False),
    ("OK", {"gso_type": 0x80}, 60, HOST, False),
    ("OK", MERGED | {"flags": RSC, "csum_start": 0}, 2000, GUEST & ~F.RSC_EXT, True),
    ("OK", ONE | {"flags": RSC}, 2000, GUEST, True),
    ("OK", ONE | INNER | {"flags": NEEDS | VALID}, 2000, GUEST, True),
    ("OK", TCP | {"flags": NEEDS | TUNNEL_CSUM}, 2000, HOST, False),
    ("OK", {"flags": TUNNEL_CSUM}, 2000, HOST, False),
    ("OK", ONE | SUM | {"flags": NEEDS | TUNNEL_CSUM}, 2000, GUEST, True),
    ("OK", ONE | {"flags": VALID | TUNNEL_CSUM}, 60, GUEST & ~F.GUEST_UDP_TUNNEL_GSO_CSUM, True),
    ("CSUM_FEATURE", SUM, 60, HOST & ~F.CSUM, False),
    ("CSUM_FEATURE", SUM, 60, F.GUEST_CSUM, False),
    ("CSUM_FEATURE", ONE | SUM, 60, F.CSUM, True),
    ("CSUM_START", SUM, 33, HOST, False),
    ("CSUM_START", SUM | {"csum_start": 0xFFFF}, 60, HOST, False),
    ("CSUM_OFFSET", SUM, 41, HOST, False),
    ("CSUM_OFFSET", SUM | {"csum_offset": 0xFFFF}, 60, HOST, False),
    ("CSUM_OFFSET", SUM | {"csum_offset": 0x10000 - 34}, 60, HOST, False),
    ("CSUM_OFFSET", SUM | {"csum_offset": 0x10000 - 36}, 60, HOST, False),
    ("RSC_INFO", ONE | {"flags": RSC | NEEDS}, 2000, GUEST, True),
    ("GSO_TYPE", TCP | {"gso_type": 2}, 2000, HOST, False),
    ("GSO_TYPE", TCP | {"gso_type": 0x1F}, 2000, HOST, False),
    ("GSO_TYPE", TCP | {"gso_type": 0x90}, 2000, HOST, False),
    ("GSO_FEATURE", TCP, 2000, HOST & ~F.HOST_TSO4, False),
    ("GSO_FEATURE", TCP | {"gso_type": 4}, 2000, HOST & ~F.HOST_TSO6, False),
    ("GSO_FEATURE", UDP, 2000, HOST & ~F.HOST_USO, False),
    ("GSO_FEATURE", UDP | {"gso_type": 3}, 2000, HOST & ~F.HOST_UFO, False),
    ("GSO_FEATURE", ONE | TCP, 2000, F.GUEST_CSUM | F.HOST_TSO4, True),
    ("GSO_OFFSET", TCP | {"csum_offset": 6}, 2000, HOST, False),
    ("GSO_OFFSET", UDP | {"csum_offset": 16}, 2000, HOST, False),
    ("GSO_OFFSET", TCP, 53, HOST, False),
    ("GSO_OFFSET", TCP | {"csum_start": 1981}, 2000, HOST, False),
    ("GSO_SIZE", TCP | {"gso_size": 0}, 2000, HOST, False),
    ("TUNNEL_TYPE", INNER | {"gso_type": 0x61}, 2000, HOST, False),
    ("TUNNEL_TYPE", INNER | {"gso_type": 0x20}, 2000, HOST, False),
    ("TUNNEL_TYPE", INNER | {"gso_type": 0x23, "csum_offset": 6}, 2000, HOST, False),
    ("TUNNEL_FEATURE", INNER, 2000, HOST & ~F.HOST_UDP_TUNNEL_GSO, False),
    ("TUNNEL_CSUM", INNER | {"flags": NEEDS | TUNNEL_CSUM}, 2000, HOST & ~F.HOST_UDP_TUNNEL_GSO_CSUM, False),
    ("TUNNEL_OFFSETS", INNER | {"outer_th_offset": 57}, 2000, HOST, False),
    ("TUNNEL_OFFSETS", INNER | {"outer_th_offset": 0xFFFF}, 2000, HOST, False),
    ("TUNNEL_OFFSETS", INNER | {"inner_nh_offset": 65}, 2000, HOST, False),
    ("TUNNEL_OFFSETS", INNER | {"gso_type": 0x44, "inner_nh_offset": 45}, 2000, HOST, False),
    ("NUM_BUFFERS", {}, 60, GUEST, True),
]


@pytest.mark.parametrize(("fault", "fields", "length", "features", "to_driver"), FAULTS)
def test_fault(fault: str, fields: dict[str, int], length: int, features: int, to_driver: bool) -> None:
    assert NetHeader(**fields).check(length, features, to_driver=to_driver).name == fault


def test_all_faults_are_tried() -> None:
    assert {name for name, *_ in FAULTS} == set(NetHeaderFault.__members__)


@given(fields=headers, length=st.integers(0, 0xFFFFFFFF), bits=st.integers(0, 2**69 - 1), to_driver=st.booleans())
def test_any_header(fields: dict[str, int], length: int, bits: int, to_driver: bool) -> None:
    """There is always a verdict, and what it promises holds."""
    header = NetHeader(**fields)
    if header.check(length, bits, to_driver=to_driver) is not NetHeaderFault.OK:
        return
    told = header.flags & RSC and to_driver and bits & int(F.RSC_EXT)  # else the flag is not there
    if header.flags & NEEDS and not told:
        assert header.csum_start + header.csum_offset + 2 <= length
    if header.gso_type & 0x1F:
        assert header.gso_size or told
        assert header.gso_type & 0x1F in (0, 1, 3, 4, 5)
    if header.gso_type & 0x60:
        transport = header.csum_start if header.flags & NEEDS and not told else length
        assert header.outer_th_offset + 8 <= header.inner_nh_offset <= transport - 20 <= length


def test_features_are_a_number_that_is_not_negative() -> None:
    with pytest.raises(ValueError, match="features -5 are negative"):
        NetHeader().check(60, -5)
