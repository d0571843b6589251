"""Sums of bytes, on every SIMD path, against the slow way and scapy."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import random
import re
import struct
import subprocess
import sys

import pytest
from guardpages import PAGE, Guarded
from hypothesis import given
from hypothesis import strategies as st
from offloads import each_simd, naive_checksum, naive_crc32c, naive_sum
from scapy.layers.inet import IP, TCP, UDP, in4_pseudoheader
from scapy.layers.inet6 import IPv6, in6_pseudoheader
from scapy.packet import Raw

from bench.kernels.offloadbench import gather_sum, update_field
from virtio import offload
from virtio.offload import (
    checksum,
    checksum_burst,
    complete_checksum,
    copy_checksum,
    crc32c,
    partial_sum,
    pseudo_header_sum,
    update_checksum,
)
from virtio.offload import inet_checksum as _checksum

LONGEST = 3000
RANDOM = random.Random(1).randbytes(LONGEST + 64)
ONES = b"\xff" * (LONGEST + 64)
ZEROS = bytes(LONGEST + 64)
PATTERNS = {"random": RANDOM, "ones": ONES, "zeros": ZEROS, "low": b"\0\1" * (LONGEST // 2 + 32)}


def running_checksums(data: memoryview) -> list[int]:
    """The checksum of each start of the data, 0 to LONGEST bytes."""
    found, even = [0xFFFF], 0
    for n in range(1, LONGEST + 1):
        here = data[n - 1] if n % 2 == 0 else data[n - 1] << 8
        total = even + here
        if n % 2:
            odd = here
            found.append(naive_checksum(b"", total))
        else:
            even += odd + here
            found.append(naive_checksum(b"", even))
    return found


@pytest.mark.parametrize("offset", [0, 1, 14, 31, 32, 63])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_length(simd: str, pattern: str, offset: int) -> None:
    buffer = bytearray(LONGEST + 192)
    address = _address(buffer)
    start = -address % 64 + offset
    data = memoryview(buffer)[start : start + LONGEST]
    data[:] = PATTERNS[pattern][:LONGEST]
    expected = running_checksums(data)
    assert [checksum(data[:n]) for n in range(LONGEST + 1)] == expected
    assert list(checksum_burst([data[:n] for n in range(LONGEST + 1)])) == expected


@pytest.mark.parametrize("offset", [0, 1, 14, 63])
@pytest.mark.parametrize("to_offset", [0, 3, 26])
def test_every_length_copied(simd: str, offset: int, to_offset: int) -> None:
    source, target = bytearray(LONGEST + 192), bytearray(LONGEST + 192)
    start, to = -_address(source) % 64 + offset, -_address(target) % 64 + to_offset
    data = memoryview(source)[start : start + LONGEST]
    data[:] = RANDOM[:LONGEST]
    expected = running_checksums(data)
    for n in [*range(700), *range(1400, 1600), LONGEST]:
        target[:] = b"\x55" * len(target)
        assert copy_checksum(memoryview(target)[to:], data[:n]) == expected[n]
        assert target[to : to + n] == data[:n]
        assert target.count(b"\x55", 0, to) == to and set(target[to + n :]) <= {0x55}


def _address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def test_nothing_outside_is_read(simd: str, guarded: Guarded) -> None:
    for n in [*range(400), 1500, PAGE - 1, PAGE, PAGE + 1]:
        data = RANDOM[:n] if n <= len(RANDOM) else os.urandom(n)
        right = naive_checksum(data)
        crc = naive_crc32c(data) if n < 200 else None
        for place in (guarded.first, guarded.last):
            view = place(data)
            assert checksum(view) == right
            assert crc is None or crc32c(view) == crc


def test_nothing_outside_is_copied(simd: str, guarded: Guarded) -> None:
    other = Guarded(2)
    for n in [*range(1, 400), 1500, PAGE + 1]:
        data = (RANDOM * 3)[:n]
        right = naive_checksum(data)
        for place, to in itertools.product((guarded.first, guarded.last), (other.first, other.last)):
            source, target = place(data), to(bytes(n))
            assert copy_checksum(target, source) == right
            assert target == data


PIECES = st.lists(
    st.one_of(st.binary(max_size=9), st.integers(0, 700).map(lambda n: RANDOM[-n:] if n else b"")), max_size=8
)


@given(PIECES)
def test_gather_lists(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    for _ in each_simd():
        assert checksum(pieces) == checksum(tuple(map(memoryview, pieces))) == checksum(whole) == naive_checksum(whole)
        assert partial_sum(pieces, 0x1234) == naive_sum(whole, 0x1234)


@given(PIECES, st.data())
def test_part_of_a_gather_list(pieces: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(pieces)
    skip = data.draw(st.integers(0, len(whole) + 3))
    length = data.draw(st.integers(0, len(whole) + 3))
    for _ in each_simd():
        assert gather_sum(pieces, skip, length) == naive_sum(whole[skip : skip + length])


def test_more_than_one_piece_of_a_large_buffer() -> None:
    with mmap.mmap(-1, (1 << 30) + 2 * PAGE) as large:
        large[0:3] = b"abc"
        large[-3:] = b"xyz"
        assert checksum(large) == naive_checksum(b"abc" + b"\0" + b"\0xyz")


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_partial_sums_go_on(a: bytes, b: bytes) -> None:
    a += b"\0" * (len(a) & 1)
    assert checksum(b, partial_sum(a)) == naive_checksum(a + b)
    assert partial_sum(b, partial_sum(a)) == naive_sum(a + b)


def test_batches() -> None:
    frames = [RANDOM[i : 2 * i] for i in range(200)]
    expected = [naive_checksum(frame) for frame in frames]
    offsets = [0]
    for frame in frames:
        offsets.append(offsets[-1] + len(frame))
    burst = checksum_burst(frames)
    assert list(burst) == expected and burst.itemsize == 2
    assert list(checksum_burst(b"".join(frames), offsets)) == expected
    assert list(checksum_burst([])) == []


def test_rfc_1624_example() -> None:
    # section 4: the sum of the other words is 0xCD7A, and 0x5555 becomes 0x3285
    assert checksum(b"\xcd\x7a\x55\x55") == 0xDD2F
    assert update_checksum(0xDD2F, b"\x55\x55", b"\x32\x85") == 0
    assert update_field(0xDD2F, 0x5555, 0x3285, bits=16) == 0
    assert checksum(b"\xcd\x7a\x32\x85") == 0


@given(st.binary(min_size=2, max_size=200), st.data())
def test_updates_are_what_summing_anew_gives(before: bytes, data: st.DataObject) -> None:
    at = 2 * data.draw(st.integers(0, len(before) // 2 - 1))
    old = before[at : at + data.draw(st.integers(1, len(before) - at))]
    new = data.draw(st.binary(min_size=len(old), max_size=len(old)))
    after = before[:at] + new + before[at + len(old) :]
    got = update_checksum(naive_checksum(before), old, new)
    assert got == naive_checksum(after) or (not any(after) and got == 0)
    for bits in (16, 32):
        if len(old) * 8 == bits:
            numbers = int.from_bytes(old, "big"), int.from_bytes(new, "big")
            assert update_field(naive_checksum(before), *numbers, bits=bits) == got


def test_update_of_a_pseudo_header() -> None:
    """NAT64: the addresses of 4 bytes become addresses of 16."""
    data = b"payload"
    four, six = (b"\x0a\0\0\1", b"\x0a\0\0\2"), (os.urandom(16), os.urandom(16))
    before = checksum(data, pseudo_header_sum(*four, 6, len(data)))
    after = checksum(data, pseudo_header_sum(*six, 6, len(data)))
    assert update_checksum(before, b"".join(four), b"".join(six)) == after


@given(st.binary(min_size=8, max_size=8), st.integers(0, 255), st.integers(0, 0xFFFF))
def test_pseudo_header_4(addresses: bytes, protocol: int, length: int) -> None:
    src, dst = addresses[:4], addresses[4:]
    header = in4_pseudoheader(protocol, IP(src=".".join(map(str, src)), dst=".".join(map(str, dst))), length)
    assert pseudo_header_sum(src, dst, protocol, length) == naive_sum(header)


@given(st.binary(min_size=32, max_size=32), st.integers(0, 255), st.integers(0, 0xFFFFFFFF))
def test_pseudo_header_6(addresses: bytes, protocol: int, length: int) -> None:
    src, dst = addresses[:16], addresses[16:]
    texts = [b.hex(":", 2) for b in (src, dst)]
    header = bytes(in6_pseudoheader(protocol, IPv6(src=texts[0], dst=texts[1]), length))
    assert pseudo_header_sum(src, dst, protocol, length) == naive_sum(header)


@pytest.mark.parametrize("transport", [TCP(), UDP()], ids=["tcp", "udp"])
@pytest.mark.parametrize("network", [IP(src="10.1.2.3", dst="10.3.2.1"), IPv6(src="fe80::1", dst="fe80::2")], ids="46")
@pytest.mark.parametrize("size", [0, 1, 1460, 1461])
def test_completion_is_scapys_checksum(simd: str, network: IP | IPv6, transport: TCP | UDP, size: int) -> None:
    right = bytes(network / transport / Raw(RANDOM[:size]))
    start = 20 if isinstance(network, IP) else 40
    offset = 16 if isinstance(transport, TCP) else 6
    src, dst = (right[12:16], right[16:20]) if start == 20 else (right[8:24], right[24:40])
    frame = bytearray(b"\0" * 14 + right)
    partial = pseudo_header_sum(src, dst, 6 if offset == 16 else 17, len(right) - start)
    struct.pack_into("!H", frame, 14 + start + offset, partial)
    assert complete_checksum(frame, 14 + start, offset) == struct.unpack_from("!H", right, start + offset)[0]
    assert frame[14:] == right


@pytest.mark.parametrize("offset", [6, 16])
def test_completed_zero_is_stored_as_ones(simd: str, offset: int) -> None:
    frame = bytearray(34)
    frame[32:34] = b"\x12\x34"
    struct.pack_into("!H", frame, offset, 0xEDCB)
    assert complete_checksum(frame, 0, offset) == 0xFFFF
    assert frame[offset : offset + 2] == b"\xff\xff"


@pytest.mark.parametrize(
    ("size", "start", "offset", "text"),
    [
        (64, 65, 0, "csum_start 65 is beyond the frame (64 bytes)"),
        (64, 64, 0, "csum_start 64 + csum_offset 0 + 2 is beyond the frame (64 bytes)"),
        (64, 63, 0, "csum_start 63 + csum_offset 0 + 2"),
        (64, 0, 63, "csum_start 0 + csum_offset 63 + 2"),
        (64, 34, 2**63 - 1, "csum_offset 9223372036854775807 + 2"),
        (64, 2**63 - 1, 2**63 - 1, "csum_start 9223372036854775807"),
        (0, 0, 0, "beyond the frame (0 bytes)"),
        (64, -1, 0, "csum_start -1 out of range"),
        (64, 0, -2, "csum_offset -2 out of range"),
    ],
)
def test_completion_outside_of_the_frame(size: int, start: int, offset: int, text: str) -> None:
    frame = bytearray(RANDOM[:size])
    with pytest.raises(ValueError, match=re.escape(text)):
        complete_checksum(frame, start, offset)
    assert frame == RANDOM[:size]


def test_completion_at_the_very_end(guarded: Guarded) -> None:
    view = guarded.last(b"\x01\x02\0\0")
    assert complete_checksum(view, 0, 2) == naive_checksum(b"\x01\x02") == 0xFEFD
    assert complete_checksum(guarded.last(b"\0\0"), 0, 0) == 0xFFFF


def test_completion_at_an_odd_offset() -> None:
    """Nonsense that a hostile driver may ask for: what is stored is the sum, at that place."""
    frame = bytearray(b"\1\2\3\4\5\6\7\x08")
    assert complete_checksum(frame, 0, 3) == naive_checksum(b"\1\2\3\4\5\6\7\x08")


# RFC 3720, B.4
ISCSI_READ = bytes.fromhex(
    "01c00000 00000000 00000000 00000000 14000000 00000400 00000014 00000018 28000000 00000000 02000000 00000000"
)


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (ISCSI_READ, 0xD9963A56),
    ],
)
def test_crc32c_vectors(simd: str, data: bytes, crc: int) -> None:
    assert crc32c(data) == crc


def test_crc32c_of_every_length(simd: str) -> None:
    running = 0xFFFFFFFF
    for n in range(1, 1700):
        running ^= RANDOM[n - 1]
        for _ in range(8):
            running = running >> 1 ^ (0x82F63B78 if running & 1 else 0)
        assert crc32c(RANDOM[:n]) == running ^ 0xFFFFFFFF


@given(st.binary(max_size=64), st.integers(0, 20000), st.integers(0, 20000))
def test_crc32c_goes_on(head: bytes, size: int, cut: int) -> None:
    data = head + (RANDOM * 8)[:size]
    right = [crc32c(data) for _ in each_simd()]
    for _ in each_simd():
        assert [crc32c(data[cut:], crc32c(data[:cut]))] * len(right) == right


def test_refused() -> None:
    for call, text in [
        (lambda: checksum(b"", 0x10000), "initial sum 65536 out of range (0 to 65535)"),
        (lambda: partial_sum(b"", -1), "initial sum -1 out of range (0 to 65535)"),
        (lambda: update_checksum(-1, b"", b""), "checksum -1 out of range (0 to 65535)"),
        (lambda: crc32c(b"", 1 << 32), "initial CRC 4294967296 out of range"),
        (lambda: pseudo_header_sum(b"1234", b"12345", 6, 0), "addresses of 4 and 5 bytes (both 4, or both 16)"),
        (lambda: pseudo_header_sum(b"12", b"12", 6, 0), "addresses of 2 and 2 bytes"),
        (lambda: pseudo_header_sum(b"1234", b"1234", 256, 0), "protocol 256 out of range (0 to 255)"),
        (lambda: pseudo_header_sum(b"1234", b"1234", 6, 65536), "length 65536 out of range (0 to 65535)"),
        (lambda: pseudo_header_sum(bytes(16), bytes(16), 6, 1 << 32), "length 4294967296 out of range"),
        (lambda: copy_checksum(bytearray(3), b"1234"), "destination has 3 bytes, source 4"),
    ]:
        with pytest.raises(ValueError, match=re.escape(text)):
            call()  # type: ignore[no-untyped-call]
    shared = memoryview(bytearray(100))
    with pytest.raises(ValueError, match="overlap: 60 bytes, 20 apart"):
        copy_checksum(shared[20:], shared[:60])
    assert copy_checksum(shared[50:], shared[:50]) == 0xFFFF
    with pytest.raises((TypeError, BufferError)):
        complete_checksum(b"\0" * 40, 0, 0)
    with pytest.raises((TypeError, BufferError)):
        copy_checksum(b"\0" * 40, b"")
    with pytest.raises(BufferError):
        checksum(memoryview(b"abcdef")[::2])
    with pytest.raises(TypeError):
        checksum("text")  # type: ignore[arg-type]


def _simd_in_a_new_process(value: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if name != "VIRTIO_SIMD"}
    if value is not None:
        environment["VIRTIO_SIMD"] = value
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    code = "import virtio.offload.inet_checksum as c; print(c.simd(), c.checksum(bytes(range(200))))"
    return subprocess.run([sys.executable, "-c", code], env=environment, check=False, capture_output=True, text=True)


def test_environment_variable() -> None:
    right = naive_checksum(bytes(range(200)))
    for value in _checksum.simd_available():
        assert _simd_in_a_new_process(value).stdout.split() == [value, str(right)]
    for unset in (None, ""):
        assert _simd_in_a_new_process(unset).stdout.split() == [_checksum.simd_available()[-1], str(right)]
    done = _simd_in_a_new_process("sse9")
    assert done.returncode and "ImportError" in done.stderr
    there_is = ", ".join(_checksum.simd_available())
    assert f"VIRTIO_SIMD: SIMD path 'sse9' is unknown (there is: {there_is})" in done.stderr


def test_use() -> None:
    before = _checksum.simd()
    with pytest.raises(ValueError, match="'mmx' is unknown"):
        _checksum.use("mmx")  # type: ignore[arg-type]
    assert _checksum.simd() == before
    for name in {"scalar", "avx2", "avx512"} - set(_checksum.simd_available()):
        with pytest.raises(ValueError, match="not supported by this CPU"):
            _checksum.use(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [-1, 2**63, 2**70, -(2**70)])
def test_numbers_of_any_size_are_value_errors(number: int) -> None:
    for call in (
        lambda: offload.checksum(b"a", number),
        lambda: offload.partial_sum(b"a", number),
        lambda: offload.update_checksum(number, b"", b""),
        lambda: offload.crc32c(b"a", number),
        lambda: offload.pseudo_header_sum(bytes(4), bytes(4), number, 0),
        lambda: offload.pseudo_header_sum(bytes(16), bytes(16), 6, number),
        lambda: offload.complete_checksum(bytearray(64), number, 0),
        lambda: offload.segment(bytes(64), number),
        lambda: offload.segment(bytes(64), 10, number),
        lambda: offload.segment(bytes(64), 10, max_segments=number),
        lambda: offload.Toeplitz(bytes(40)).hash_frame(bytes(64), types=number),
        lambda: offload.Toeplitz(bytes(40)).hash_burst([bytes(64)], tunnels=number),
    ):
        with pytest.raises(ValueError, match=str(number)):
            call()


def test_pseudo_header_of_any_buffers() -> None:
    src, dst = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
    want = offload.pseudo_header_sum(src, dst, 6, 20)
    assert offload.pseudo_header_sum(bytearray(src), memoryview(dst), 6, 20) == want
