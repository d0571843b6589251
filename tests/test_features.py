"""Feature sets: names, parsing, and which bit needs which. The rules are written out anew, from VIRTIO 1.4."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtio.constants import DeviceType, Feature, NetFeature
from virtio.features import bits_of, closed, legacy_only, missing, names_of, parse

NET = DeviceType.NET

# VIRTIO 1.4, 5.1.3.1, as it is printed there: a bit, and what it requires ("|": one of them)
REQUIRES = """
GUEST_TSO4 GUEST_CSUM
GUEST_TSO6 GUEST_CSUM
GUEST_ECN GUEST_TSO4|GUEST_TSO6
GUEST_UFO GUEST_CSUM
GUEST_USO4 GUEST_CSUM
GUEST_USO6 GUEST_CSUM
GUEST_UDP_TUNNEL_GSO GUEST_TSO4 GUEST_TSO6 GUEST_USO4 GUEST_USO6
GUEST_UDP_TUNNEL_GSO_CSUM GUEST_UDP_TUNNEL_GSO
HOST_TSO4 CSUM
HOST_TSO6 CSUM
HOST_ECN HOST_TSO4|HOST_TSO6
HOST_UFO CSUM
HOST_USO CSUM
HOST_UDP_TUNNEL_GSO HOST_TSO4 HOST_TSO6 HOST_USO
HOST_UDP_TUNNEL_GSO_CSUM HOST_UDP_TUNNEL_GSO
CTRL_RX CTRL_VQ
CTRL_VLAN CTRL_VQ
GUEST_ANNOUNCE CTRL_VQ
MQ CTRL_VQ
CTRL_MAC_ADDR CTRL_VQ
NOTF_COAL CTRL_VQ
RSC_EXT HOST_TSO4|HOST_TSO6
RSS CTRL_VQ
VQ_NOTF_COAL CTRL_VQ
HASH_TUNNEL CTRL_VQ RSS|HASH_REPORT
RSS_CONTEXT CTRL_VQ RSS
"""
RULES = {line.split()[0]: [need.split("|") for need in line.split()[1:]] for line in REQUIRES.split("\n") if line}
MODERN = (33, 34, 35, 36, 37, 38, 39, 40, 41, 43)


def net(names: str) -> int:
    return sum(NetFeature[name] for name in names.split())


def test_numbers_of_the_bits() -> None:
    numbers = {**{f.name: f.bit_length() - 1 for f in NetFeature}, **{f.name: f.bit_length() - 1 for f in Feature}}
    for name, number in [("CSUM", 0), ("MAC", 5), ("MQ", 22), ("DEVICE_STATS", 50), ("SPEED_DUPLEX", 63)]:
        assert numbers[name] == number
    for name, number in [("RSS_CONTEXT", 64), ("IPSEC", 70), ("EVENT_IDX", 29), ("VERSION_1", 32), ("SUSPEND", 43)]:
        assert numbers[name] == number


def test_the_complement_of_a_bit_is_as_wide_as_any_set() -> None:
    everything = (1 << 130) - 1
    for mask in (Feature.SUSPEND, NetFeature.CSUM, NetFeature.IPSEC, Feature.VERSION_1 | NetFeature.MAC):
        assert everything & ~mask == everything - int(mask)


@pytest.mark.parametrize("name", RULES)
def test_a_bit_alone_lacks_what_the_specification_requires(name: str) -> None:
    (got,) = [needs for who, needs in missing(NetFeature[name], NET) if who == name]
    for group in RULES[name]:
        for need in group:
            assert need in got
    assert got.count(" and ") == len(RULES[name]) - 1
    assert got.count(" or ") == sum(len(group) - 1 for group in RULES[name])


@pytest.mark.parametrize("name", RULES)
def test_any_choice_of_what_is_required_will_do(name: str) -> None:
    for choice in itertools.product(*RULES[name]):
        bits = NetFeature[name] | net(" ".join(choice))
        assert name not in [who for who, _ in missing(bits, NET)]
        for need in set(choice):
            if not any(need in group and set(group) & (set(choice) - {need}) for group in RULES[name]):
                assert name in [who for who, _ in missing(bits & ~NetFeature[need], NET)]


def test_bits_without_a_rule_need_nothing() -> None:
    for feature in NetFeature:
        assert bool(missing(feature, NET)) == (feature.name in RULES)
    for feature in Feature:
        assert bool(missing(feature)) == (feature.bit_length() - 1 in MODERN)


def test_rings_of_version_1_need_version_1() -> None:
    for bit in MODERN:
        assert missing(1 << bit) == [(names_of(1 << bit)[0], "VERSION_1")]
        assert missing(1 << bit | 1 << 32) == []


def test_alternatives_among_several_needs_are_in_parentheses() -> None:
    assert missing(NetFeature.HASH_TUNNEL, NET) == [("HASH_TUNNEL", "CTRL_VQ and (HASH_REPORT or RSS)")]
    assert missing(NetFeature.HOST_ECN, NET) == [("HOST_ECN", "HOST_TSO4 or HOST_TSO6")]


def test_rules_of_a_type_hold_for_it_alone() -> None:
    assert missing(NetFeature.HOST_TSO4) == missing(NetFeature.HOST_TSO4, DeviceType.ENTROPY) == []


@given(st.integers(0, (1 << 75) - 1))
def test_closed_is_the_largest_subset_in_which_nothing_is_missing(bits: int) -> None:
    inside = closed(bits, NET)
    assert inside & ~bits == 0
    assert missing(inside, NET) == []
    # whatever was taken out is missing something even beside all that is left
    for bit in bits_of(bits & ~inside):
        assert missing(inside | 1 << bit, NET) != []
    assert type(inside) is int


def test_closed_follows_chains_of_needs() -> None:
    everything = sum(NetFeature) | sum(Feature)
    lost = names_of(everything & ~closed(everything & ~NetFeature.CSUM, NET), NET)
    assert set(lost) == {"CSUM", "HOST_TSO4", "HOST_TSO6", "HOST_ECN", "HOST_UFO", "HOST_USO", "RSC_EXT"} | {
        "HOST_UDP_TUNNEL_GSO",
        "HOST_UDP_TUNNEL_GSO_CSUM",
    }
    assert closed(everything, NET) == everything


def test_what_is_useless_is_not_offered_and_yet_allowed() -> None:
    useless = NetFeature.CTRL_GUEST_OFFLOADS | NetFeature.CTRL_RX_EXTRA | NetFeature.HASH_REPORT
    assert missing(useless, NET) == []
    assert closed(useless, NET) == useless
    assert closed(useless | NetFeature.MAC, NET, offer=True) == NetFeature.MAC
    assert closed(useless | NetFeature.CTRL_VQ, NET, offer=True) == useless | NetFeature.CTRL_VQ


def test_names_lowest_first_and_of_the_right_type() -> None:
    bits = 1 << 70 | 1 << 64 | 1 << 47 | 1 << 34 | 1 << 5 | 1
    assert names_of(bits, NET) == ["CSUM", "MAC", "RING_PACKED", "bit 47", "RSS_CONTEXT", "IPSEC"]
    assert names_of(bits) == ["bit 0", "bit 5", "RING_PACKED", "bit 47", "bit 64", "bit 70"]
    assert names_of(0, NET) == []
    assert names_of(1 << 200, NET) == ["bit 200"]


@given(st.integers(0, (1 << 130) - 1))
def test_names_are_parsed_back(bits: int) -> None:
    assert parse(names_of(bits, NET), NET) == bits
    assert parse(", ".join(names_of(bits, NET)), NET) == bits
    assert parse(" ".join(map(str, bits_of(bits))), NET) == bits


@pytest.mark.parametrize(
    "text", ["VIRTIO_NET_F_CSUM", "csum", "Csum,", " csum | CSUM", "0", "bit 0", "BIT 0 csum", ["csum", "bit 0"], 1]
)
def test_spellings(text: str) -> None:
    assert parse(text, NET) == 1


def test_prefixes_of_transport_bits() -> None:
    assert parse("VIRTIO_F_VERSION_1 VIRTIO_RING_F_EVENT_IDX") == Feature.VERSION_1 | Feature.EVENT_IDX


@pytest.mark.parametrize("nothing", ["", " , ", [], 0])
def test_nothing(nothing: str) -> None:
    assert parse(nothing, NET) == 0


def test_what_cannot_be_parsed() -> None:
    with pytest.raises(ValueError, match=r"'CSUMM' is unknown; known are: .*CSUM.*VERSION_1"):
        parse("CSUMM", NET)
    with pytest.raises(ValueError, match="'CSUM' is unknown"):
        parse("CSUM")
    with pytest.raises(ValueError, match="-1 is negative"):
        parse(-1)
    with pytest.raises(ValueError, match="bit 65536 is out of range"):
        parse("65536")
    assert parse("65535") == 1 << 65535


def test_legacy_only_bits() -> None:
    assert legacy_only() == 1 << 24 | 1 << 27 | 1 << 30
    assert legacy_only(NET) == legacy_only() | 1 << 6
