"""The Toeplitz hash beside Microsoft's values and a bit-by-bit oracle; what of a frame is hashed, and reported."""

from __future__ import annotations

import socket

import frames
import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from virtio.offload import HashReport, HashTunnel, HashType, Toeplitz, parse

# Microsoft, "Verifying the RSS Hash Calculation"
KEY = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)  # fmt: skip
PUBLISHED = [  # destination, port, source, port, hash of the addresses, hash with the ports
    ("161.142.100.80", 1766, "66.9.149.187", 2794, 0x323E8FC2, 0x51CCC178),
    ("65.69.140.83", 4739, "199.92.111.2", 14230, 0xD718262A, 0xC626B0EA),
    ("12.22.207.184", 38024, "24.19.198.95", 12898, 0xD2D0A5DE, 0x5C2B394A),
    ("209.142.163.6", 2217, "38.27.205.30", 48228, 0x82989176, 0xAFC7327F),
    ("202.188.127.2", 1303, "153.39.163.191", 44251, 0x5D1809C5, 0x10E828A2),
    ("3ffe:2501:200:3::1", 1766, "3ffe:2501:200:1fff::7", 2794, 0x2CC18CD5, 0x40207D3D),
    ("ff02::1", 4739, "3ffe:501:8::260:97ff:fe40:efab", 14230, 0x0F0C461C, 0xDDE51BBF),
    ("fe80::200:f8ff:fe21:67cf", 38024, "3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, 0x4B61E985, 0x02D1FEEF),
]


def naive(key: bytes, data: bytes) -> int:
    """For each bit of data that is set, add the 32 bits of the key from there on."""
    value, bits = 0, int.from_bytes(key, "big")
    for i in range(8 * len(data)):
        if data[i // 8] >> (7 - i % 8) & 1:
            value ^= bits >> (8 * len(key) - 32 - i) & 0xFFFFFFFF
    return value


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def packet(source: str, destination: str, l4: Packet) -> bytes:
    network = frames.IPv6 if ":" in source else frames.IP
    return bytes(frames.Ether(src="02::", dst="02::") / network(src=source, dst=destination) / l4)


# ---- the hash ----


@pytest.mark.parametrize(("destination", "dport", "source", "sport", "addresses", "ports"), PUBLISHED)
def test_published_values(destination: str, dport: int, source: str, sport: int, addresses: int, ports: int) -> None:
    toeplitz = Toeplitz(KEY)
    data = packed(source) + packed(destination)
    assert toeplitz.hash(data) == addresses
    assert toeplitz.hash(data + sport.to_bytes(2, "big") + dport.to_bytes(2, "big")) == ports
    version = "V6" if ":" in source else "V4"
    tcp = packet(source, destination, frames.TCP(sport=sport, dport=dport))
    udp = packet(source, destination, frames.UDP(sport=sport, dport=dport))
    assert toeplitz.hash_frame(tcp) == (ports, HashReport[f"TCP{version}"])
    assert toeplitz.hash_frame(udp) == (ports, HashReport[f"UDP{version}"])
    addresses_only = HashType[f"IP{version}"]
    assert toeplitz.hash_frame(tcp, addresses_only) == (addresses, HashReport[f"IP{version}"])


@given(key=st.binary(min_size=40, max_size=255), data=st.data())
def test_bit_by_bit(key: bytes, data: st.DataObject) -> None:
    toeplitz = Toeplitz(bytearray(key))
    value = data.draw(st.binary(max_size=len(key) - 4))
    assert toeplitz.key == key
    assert toeplitz.hash(value) == naive(key, value)
    assert toeplitz.hash(memoryview(value)) == naive(key, value)


def test_the_last_byte_of_a_long_key_counts() -> None:
    key = bytes(254) + b"\x01"
    assert Toeplitz(key).hash(bytes(250) + b"\x01") == naive(key, bytes(250) + b"\x01")


def test_lengths_off_range() -> None:
    for size in (0, 39, 256):
        with pytest.raises(ValueError, match=rf"key of {size} bytes \(limits 40 to 255\)"):
            Toeplitz(bytes(size))
    with pytest.raises(ValueError, match=r"37 bytes to hash \(limit 36 with a key of 40\)"):
        Toeplitz(KEY).hash(bytes(37))
    with pytest.raises(TypeError):
        Toeplitz(40)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Toeplitz.__new__(Toeplitz)


# ---- what is hashed ----


def expected(made: frames.Layer, data: bytes, types: int) -> tuple[int, HashReport]:
    """VIRTIO 1.4, 5.1.6.4.3.2 to 5.1.6.4.3.4, as the text has it."""
    if made.l3_kind == "arp":
        return 0, HashReport.NONE
    has = "" if made.fragmented else made.l4_kind.upper()
    size = 4 if made.l3_kind == "ipv4" else 16
    start = made.l3 + (12 if size == 4 else 8)
    addresses = data[start : start + 2 * size]
    ports = data[made.l4 : made.l4 + 4]
    if made.extensions:
        layer = parse(data).inner if made.l3 != parse(data).outer.l3 else parse(data).outer
        assert layer is not None
        source = layer.src if layer.flags & 0x100 else made.l3 + 8
        destination = layer.dst if layer.flags & 0x200 else made.l3 + 24
        far = data[source : source + 16] + data[destination : destination + 16]
        if types & HashType.TCP_EX and has == "TCP":
            return naive(KEY, far + ports), HashReport.TCPV6_EX
        if types & HashType.UDP_EX and has == "UDP":
            return naive(KEY, far + ports), HashReport.UDPV6_EX
        if types & HashType.IP_EX:
            return naive(KEY, far), HashReport.IPV6_EX
    version = "V4" if size == 4 else "V6"
    for name in ("TCP", "UDP"):
        if types & HashType[name + version] and has == name:
            return naive(KEY, addresses + ports), HashReport[name + version]
    if types & HashType["IP" + version]:
        return naive(KEY, addresses), HashReport["IP" + version]
    return 0, HashReport.NONE


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    made=frames.frames(l3=("ipv4", "ipv6", "ipv6", "arp"), fragments=True),
    types=st.integers(0, 0x1FF),
    tunnels=st.sampled_from([0, HashTunnel.VXLAN, HashTunnel.GENEVE, HashTunnel.VXLAN | HashTunnel.GENEVE]),
)
def test_what_is_hashed(made: frames.Made, types: int, tunnels: int) -> None:
    inner = made.tunnel != "none" and tunnels & HashTunnel[made.tunnel.upper()]
    layer = made.inner if inner else made.outer
    assert layer is not None
    found = Toeplitz(KEY).hash_frame(made.data, types, tunnels=tunnels)
    assert found == expected(layer, made.data, types)
    hashes = Toeplitz(KEY).hash_burst([made.data] * 3, types=types, tunnels=tunnels)
    assert list(hashes) == [found] * 3


HOME, CARE, HOST, NEXT = "2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4"


def mobile(**change: object) -> bytes:
    """A packet of a mobile node, from its care-of address, to another's."""
    headers = (
        IPv6(src=CARE, dst=NEXT)
        / frames.IPv6ExtHdrRouting(**({"type": 2, "addresses": [HOST], "segleft": 1} | change))
        / frames.IPv6ExtHdrDestOpt(options=[frames.HAO(hoa=HOME)])
    )
    return bytes(frames.Ether(src="02::", dst="02::") / headers / frames.TCP(sport=1, dport=2))


def test_mobile_addresses() -> None:
    toeplitz, ports = Toeplitz(KEY), b"\0\1\0\2"
    far, near = packed(HOME) + packed(HOST), packed(CARE) + packed(NEXT)
    assert toeplitz.hash_frame(mobile()) == (naive(KEY, far + ports), HashReport.TCPV6_EX)
    assert toeplitz.hash_frame(mobile(), HashType.IP_EX) == (naive(KEY, far), HashReport.IPV6_EX)
    # no type for extension headers: as if there were none
    assert toeplitz.hash_frame(mobile(), HashType.TCPV6) == (naive(KEY, near + ports), HashReport.TCPV6)
    assert toeplitz.hash_frame(mobile(), HashType.UDP_EX | HashType.IPV6) == (naive(KEY, near), HashReport.IPV6)
    # only routing headers of type 2 count
    half = packed(HOME) + packed(NEXT)
    assert toeplitz.hash_frame(mobile(type=0)) == (naive(KEY, half + ports), HashReport.TCPV6_EX)
    assert toeplitz.hash_frame(mobile(segleft=0)) == (naive(KEY, half + ports), HashReport.TCPV6_EX)


@pytest.mark.parametrize("cut", range(1, 21))
def test_a_damaged_transport_header_has_no_ports(cut: int) -> None:
    data = bytearray(packet("1.2.3.4", "5.6.7.8", frames.TCP(sport=1, dport=2)))[:-cut]
    data[16:18] = (40 - cut).to_bytes(2, "big")
    assert Toeplitz(KEY).hash_frame(data) == (naive(KEY, bytes([1, 2, 3, 4, 5, 6, 7, 8])), HashReport.IPV4)


@given(st.binary(max_size=80))
def test_arbitrary_bytes(data: bytes) -> None:
    value, report = Toeplitz(KEY).hash_frame(data)
    if parse(data).outer.src == 0:
        assert (value, report) == (0, HashReport.NONE)


def test_hashes_are_a_record_array() -> None:
    many = [packet("1.2.3.4", "5.6.7.8", frames.TCP(sport=n)) for n in range(5)] + [b""]
    hashes = Toeplitz(KEY).hash_burst(many)
    array = numpy.asarray(hashes)
    assert array.itemsize == 8
    assert array["value"].tolist() == [value for value, _ in hashes]
    assert array["report"].tolist() == [HashReport.TCPV4] * 5 + [HashReport.NONE]
    assert bytes(array)[:8] == hashes[0][0].to_bytes(4, "little") + b"\2\0\0\0"
    offsets = numpy.cumsum([0] + [len(frame) for frame in many])
    assert list(Toeplitz(KEY).hash_burst(b"".join(many), offsets)) == list(hashes)


def test_types_off_range() -> None:
    with pytest.raises(ValueError, match="hash types 512 out of range"):
        Toeplitz(KEY).hash_frame(b"", 0x200)
    with pytest.raises(ValueError, match="tunnel types 0x1: only"):
        Toeplitz(KEY).hash_burst([], tunnels=1)
