"""Arbitrary frames behind arbitrary headers through every offload kernel: no crash, no byte around them is touched or
read, always a reason.

Inputs are seeds of tests/corpus, mutated with knowledge of where the headers are. Each lies before a page that cannot
be touched, or behind one, or in a heap block of just its size (which a sanitizer watches). test_fuzz_offloads.py runs
it, and so does ``python tests/support/fuzz_offloads.py --seconds 60 --seed 7``. What fails is printed in the corpus'
form: save it there.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from guardpages import Guarded

from virtio import offload
from virtio.constants import NetFeature
from virtio.offload import inet_checksum as _checksum
from virtio.offload import segments as _segments
from virtio.ports.software_offload import Executor

CORPUS = Path(__file__).parents[1] / "corpus"
HEADER = 24
PAGES = 18  # 64 KiB and something
NUMBERS = (
    0,
    1,
    2,
    5,
    7,
    8,
    11,
    12,
    19,
    20,
    21,
    39,
    40,
    41,
    63,
    64,
    127,
    128,
    255,
    1460,
    0x7FFF,
    0x8000,
    0xFFFE,
    0xFFFF,
)
GSO_TYPES = (0, 1, 3, 4, 5, 0x80, 0x81, 0x84, 0x20, 0x21, 0x24, 0x25, 0x41, 0x44, 0x45, 0x61, 0xA1, 0x23, 0x43)
HOST = (1 << 0, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 56, 1 << 67, 1 << 68)
ALL = sum(NetFeature) & ~(NetFeature.OUT_NET_HEADER | NetFeature.IPSEC) | 1 << 32
CSUM_TSO = 1 << 0 | 1 << 11 | 1 << 12  # no ECN, no tunnels
TUNNELS = sum(HOST) & ~(1 << 68)  # but no checksum around them
FEATURES = (
    CSUM_TSO,
    TUNNELS,
    1 << 1 | 1 << 54,  # USO of one IP version only
    1 << 1 | 1 << 55,
    0,
    1 << 0 | 1 << 1,
    sum(HOST),
    ALL,
    ALL,
    ALL & ~NetFeature.MRG_RXBUF,
    ALL & ~NetFeature.MRG_RXBUF,
)
# of segment(), but "length", for which a frame of 4 GiB is needed
REFUSALS = {reason for reason, _ in vars(_segments)["REASONS"].values()} - {"length"}
EXECUTED = (
    "a length of 0",
    "taken with its type, but for its lengths",
    "no payload",
    "fragments of IPv6",
    "without NEEDS_CSUM",
)
SEGMENTS = 80  # at most, of one frame: more teach nothing


def load(path: Path) -> bytes:
    return bytes.fromhex("".join(path.read_text().split()))


def dump(data: bytes) -> str:
    frame = data[HEADER:]
    return "\n".join([data[:HEADER].hex(), *(frame[i : i + 32].hex() for i in range(0, len(frame), 32))])


class Mutator:
    """From seeds to inputs. Knows where lengths and types are by what parse() finds in the frame."""

    def __init__(self, rng: random.Random, seeds: list[bytes]) -> None:
        self.rng = rng
        self.seeds = seeds

    def input(self) -> bytes:
        rng = self.rng
        data = rng.choice(self.seeds)
        header, frame = bytearray(data[:HEADER]), bytearray(data[HEADER:])
        if rng.random() < 0.1:
            return bytes(header) + bytes(frame)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            change = rng.choice(
                (
                    self.flip,
                    self.number,
                    self.lie,
                    self.lie,
                    self.cut,
                    self.grow,
                    self.splice,
                    self.repeat,
                    self.stretch,
                )
            )
            frame = change(frame)
        if rng.random() < 0.2:
            self.lengths(header, frame)
        for _ in range(rng.choice((0, 0, 1, 2, 4))):
            self.about(header, frame)
        if rng.random() < 0.03:
            frame += rng.randbytes(rng.choice((3000, 40000, 65535 - len(frame) % 65535, 66000)))
        return bytes(header) + bytes(frame[: PAGES * 4096 - HEADER])

    def flip(self, frame: bytearray) -> bytearray:
        for _ in range(self.rng.choice((1, 1, 2, 8))):
            if frame:
                frame[self.rng.randrange(len(frame))] ^= 1 << self.rng.randrange(8)
        return frame

    def number(self, frame: bytearray) -> bytearray:
        size = self.rng.choice((1, 2, 2, 4))
        if len(frame) >= size:
            at = self.rng.randrange(min(len(frame), 160) - size + 1) if self.rng.random() < 0.8 else len(frame) - size
            value = self.rng.choice((*NUMBERS, len(frame), len(frame) - 14, len(frame) - 34)) + self.rng.choice(
                (0, 0, 1, -1)
            )
            frame[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "big")
        return frame

    def lie(self, frame: bytearray) -> bytearray:
        """One of the fields that say where the next header or the end is."""
        rng = self.rng
        parsed = offload.parse(frame)
        layer = rng.choice([parsed.outer, parsed.inner or parsed.outer])
        wide, narrow = [12, layer.l3 - 2], []
        if layer.l3_kind == 1:
            wide += [layer.l3 + 2, layer.l3 + 6]
            narrow += [layer.l3, layer.l3 + 9, layer.l3 + 20, layer.l3 + 21, layer.l3 + 22]
        elif layer.l3_kind == 2:
            wide += [layer.l3 + 4]
            narrow += [layer.l3, layer.l3 + 6, layer.l3 + 40, layer.l3 + 41, layer.l3 + 42, layer.l3 + 43]
        wide += [layer.l4 + 4, layer.l4 + 2, layer.l4 + 16, layer.l4 + 6]
        narrow += [layer.l4, layer.l4 + 1, layer.l4 + 12, layer.l4 + 13, layer.payload, layer.payload + 1]
        if rng.random() < 0.5:
            at = rng.choice(wide)
            there = len(frame) - at
            value = rng.choice(
                (*NUMBERS, there, there + 2, there + 4, layer.end - layer.l4, 0x0800, 0x86DD, 0x8100, 4789)
            )
            value += rng.choice((0, 0, 0, 1, -1, 2, -2, 8))
            if 0 <= at <= len(frame) - 2:
                frame[at : at + 2] = (value & 0xFFFF).to_bytes(2, "big")
        else:
            at = rng.choice(narrow)
            value = rng.choice(
                (0, 1, 4, 6, 17, 43, 44, 50, 51, 59, 60, 132, 135, 0x40, 0x45, 0x4F, 0x60, 0xF0, 0xC2, 0xFF)
            )
            if 0 <= at < len(frame):
                frame[at] = value
        return frame

    def lengths(self, header: bytearray, frame: bytearray) -> None:
        """Lengths that a driver leaves to the device: 0, or a segment's; of some headers, or of all."""
        parsed = offload.parse(frame)
        end = (parsed.inner or parsed.outer).payload + int.from_bytes(header[4:6], "little")
        segment = self.rng.random() < 0.5
        for layer in filter(None, (parsed.outer, parsed.inner)):
            v4 = layer.l3_kind == 1
            for at, start in ((layer.l3 + (2 if v4 else 4), layer.l3 + (0 if v4 else 40)), (layer.l4 + 4, layer.l4)):
                if at + 2 <= len(frame) and self.rng.random() < 0.7 and (start < layer.l4 or layer.protocol == 17):
                    frame[at : at + 2] = (end - start & 0xFFFF if segment else 0).to_bytes(2, "big")

    def cut(self, frame: bytearray) -> bytearray:
        parsed = offload.parse(frame)
        layer = self.rng.choice([parsed.outer, parsed.inner or parsed.outer])
        at = self.rng.choice((layer.l3, layer.l4, layer.payload, layer.end, self.rng.randrange(len(frame) + 1)))
        return frame[: max(0, at + self.rng.choice((0, 0, 1, -1, 2, 7, 8, 19)))]

    def grow(self, frame: bytearray) -> bytearray:
        return frame + self.rng.randbytes(self.rng.choice((1, 2, 3, 18, 64)))

    def splice(self, frame: bytearray) -> bytearray:
        other = self.rng.choice(self.seeds)[HEADER:]
        at, there = self.rng.randrange(len(frame) + 1), self.rng.randrange(len(other) + 1)
        return frame[:at] + other[there:]

    def repeat(self, frame: bytearray) -> bytearray:
        """A stretch of it again: tags in tags, extension headers behind each other, tunnels in tunnels."""
        parsed = offload.parse(frame)
        marks = sorted({0, 12, 14, parsed.outer.l3, parsed.outer.l4, parsed.outer.payload, parsed.inner_l2, len(frame)})
        marks = [mark for mark in marks if mark <= len(frame)]
        first, last = sorted((self.rng.choice(marks), self.rng.choice(marks)))
        return frame[:last] + frame[first:last] * self.rng.choice((1, 1, 2, 9, 70)) + frame[last:]

    def stretch(self, frame: bytearray) -> bytearray:
        """More IPv6 extension headers: many, long ones, so long that offsets end, or the one that makes a jumbogram."""
        layer = offload.parse(frame).outer
        if layer.l3_kind != 2 or len(frame) < layer.l3 + 40:
            return frame
        at = layer.l3 + 40
        units = self.rng.choice(((1, 3), (1, 64), (1, 65), (100, 1), (256, 1), (256, 31), ()))
        if not units:  # RFC 2675
            size = 0x10000 + self.rng.randrange(1000)
            first = bytes([frame[layer.l3 + 6], 0, 0xC2, 4]) + size.to_bytes(4, "big")
            frame[layer.l3 + 4 : layer.l3 + 7] = bytes(3)
            return frame[:at] + first + frame[at:] + bytes(max(0, size - 8 - (len(frame) - at)))
        lengths = [units[0]] * units[1] + ([247] if units[1] == 31 else [])
        chain = bytearray()
        for i, length in enumerate(lengths):
            chain += bytes([60 if i + 1 < len(lengths) else frame[layer.l3 + 6], length - 1])
            room = 8 * length - 2
            while room:  # PadN
                pad = room if room <= 200 else 100
                chain += bytes([1, pad - 2]) + bytes(pad - 2)
                room -= pad
        rest = frame[at:] if len(chain) < 60000 else frame[at : at + 20 + self.rng.randrange(15)]
        frame[layer.l3 + 6] = 60
        frame[layer.l3 + 4 : layer.l3 + 6] = min(0xFFFF, len(chain) + len(rest)).to_bytes(2, "big")
        return frame[:at] + chain + rest

    def about(self, header: bytearray, frame: bytearray) -> None:
        """One field of the virtio_net_hdr."""
        rng = self.rng
        which = rng.randrange(12)
        if header[0] & 4 and rng.random() < 0.3:  # RSC_INFO: the number of segments
            header[6:8] = rng.choice((0, 1, 0xFFFF)).to_bytes(2, "little")
        elif which == 0:
            header[0] = rng.choice((0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 0xFF, rng.randrange(256)))
        elif which == 1:
            header[1] = rng.choice((*GSO_TYPES, rng.randrange(256)))
        else:
            parsed = offload.parse(frame)
            layers = [parsed.outer, parsed.inner or parsed.outer]
            marks = [mark for layer in layers for mark in (layer.l3, layer.l4, layer.payload, layer.end)]
            value = rng.choice((*marks, *NUMBERS, 6, 16, len(frame), rng.randrange(0x10000))) + rng.choice(
                (0, 0, 0, 1, -1, -2)
            )
            header[2 * which - 2 : 2 * which] = (value & 0xFFFF).to_bytes(2, "little")


class Fuzzer:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.mutator = Mutator(self.rng, [load(path) for path in sorted(CORPUS.glob("*.hex"))])
        self.guarded = Guarded(PAGES)
        self.counters = offload.OffloadCounters()
        self.seen: Counter[str] = Counter()
        self.recent: list[bytes] = []
        self.toeplitz = offload.Toeplitz(bytes(range(40)))
        self.streams = [
            load(CORPUS / f"{name}.hex")[HEADER:] for name in ("v4-tcp-tso", "v6-tcp-tso", "v4-tcp-options")
        ]

    def place(self, data: bytes) -> Any:
        """The bytes as a writable buffer, with something around it that shows."""
        where = self.rng.randrange(3)
        if where == 0:
            return self.guarded.last(data)
        if where == 1:
            return self.guarded.first(data)
        return (ctypes.c_ubyte * len(data)).from_buffer_copy(data)

    def one(self, data: bytes) -> None:
        """All kernels on one input."""
        rng = self.rng
        frame = data[HEADER:]
        _checksum.use(rng.choice(_checksum.simd_available()))
        header = offload.NetHeader.from_bytes(self.place(data[:HEADER]), HEADER)
        size = rng.choice((10, 12, 20, 24))
        short = offload.NetHeader.from_bytes(self.place(data[:size]), size)
        assert offload.NetHeader.from_bytes(self.place(short.to_bytes(size)), size) == short
        features = rng.choice((*FEATURES, rng.getrandbits(69)))
        self.read_only(frame)
        self.filling(frame, header)
        self.sending(frame, features)
        self.receiving(header, frame, features)
        self.cutting(header, frame)
        self.executing(header, frame)
        if rng.random() < 0.1:
            self.many(features)
        self.recent = [data, *self.recent[:7]]

    def read_only(self, frame: bytes) -> None:
        parsed = offload.parse(self.place(frame))
        for layer in filter(None, (parsed.outer, parsed.inner)):
            self.seen[f"stop {layer.stop.name}"] += 1
            assert layer.l3 <= layer.l4 <= layer.payload
            assert layer.payload <= layer.end <= len(frame) or layer.stop.is_fault
            assert str(layer.explain())
        checks = offload.verify(self.place(frame))
        assert list(offload.verify_burst([self.place(frame)])) == [checks]
        self.summing(frame)
        offload.crc32c(self.place(frame))
        value, report = self.toeplitz.hash_frame(self.place(frame), self.rng.getrandbits(9), tunnels=0x50)
        self.seen[f"hash {report.name}"] += 1
        assert (value == 0) or report.name != "NONE"

    def summing(self, frame: bytes) -> None:
        whole = offload.checksum(self.place(frame))
        at, to = sorted(self.rng.randrange(len(frame) + 1) for _ in range(2))
        parts = [bytearray(frame[:at]), bytearray(frame[at:to]), self.place(frame[to:])]
        assert offload.checksum(parts) == whole == offload.partial_sum(parts) ^ 0xFFFF
        at &= ~1
        assert offload.checksum(frame[at:], offload.partial_sum(self.place(frame[:at]))) == whole
        copy = self.place(bytes(len(frame)))
        assert offload.copy_checksum(copy, bytes(frame)) == whole and bytes(copy) == frame
        new = self.rng.randbytes(to - at)
        updated = offload.update_checksum(whole, self.place(frame[at:to]), new)
        if to - at & 1 == 0 or to == len(frame):
            assert updated % 0xFFFF == offload.checksum(frame[:at] + new + frame[to:]) % 0xFFFF

    def filling(self, frame: bytes, header: offload.NetHeader) -> None:
        view = self.place(frame)
        before = offload.fill_checksums(view)
        after = offload.verify(view)
        for one, two in zip(before, after, strict=True):
            assert one.name != "GOOD" or two.name == "GOOD", (before, after)
        view = self.place(frame)
        try:
            start, offset = offload.fill_partial_checksum(view, inner=self.rng.random() < 0.5)
            assert start + offset + 2 <= len(frame)
        except ValueError:
            assert bytes(view) == frame
        view = self.place(frame)
        try:
            offload.complete_checksum(view, header.csum_start, header.csum_offset)
            assert header.csum_start + header.csum_offset + 2 <= len(frame)
        except ValueError:
            assert bytes(view) == frame

    def sending(self, frame: bytes, features: int) -> None:
        view = self.place(frame)
        guest = self.rng.random() < 0.3
        mss = self.rng.choice((0, 1, 8, 100, 1460, 65535))
        sent = offload.prepare_transmit(
            view, features, mss, self.rng.random() < 0.9, to_driver=guest, counters=self.counters
        )
        empty = offload.NetHeader(num_buffers=int(guest))
        if sent.outcome.name == "SENT_AS":
            fault = sent.header.check(len(frame), features, to_driver=guest)
            assert fault.name == "OK", (sent, fault)
        elif sent.outcome.name == "DONE_IN_SOFTWARE":
            assert sent.header == empty
            checks = offload.verify(view)
            assert checks.inner_l4.name == "GOOD" or checks.l4.name == "GOOD", (sent, checks)
        else:
            assert bytes(view) == frame and sent.header == empty
        if sent.outcome.name == "SEGMENT_IN_SOFTWARE" and len(frame) < mss * SEGMENTS:
            for piece in offload.segment(view, mss).packets():
                checks = offload.verify(piece)
                assert "BAD" not in (checks.l4.name, checks.inner_l4.name), (sent, checks)

    def receiving(self, header: offload.NetHeader, frame: bytes, features: int) -> None:
        guest = self.rng.random() < 0.7
        view = self.place(frame)
        got = offload.classify_receive(header, view, features, to_driver=guest, counters=self.counters)
        assert got.segments >= 1 and bytes(view) == frame
        assert offload.complete_receive(header, view, features, to_driver=guest) == got
        if got.verdict.name == "NEEDS_CHECKSUM":
            assert got.csum_start + got.csum_offset + 2 <= len(frame)
            assert got.levels or got.reason is offload.ReceiveReason.CSUM_ELSEWHERE
        elif got.verdict.name == "BAD" or not header.gso_type:  # else lengths may be mended
            assert bytes(view) == frame
        size = offload.net_header_size(features)
        buffer = header.to_bytes(size) + frame
        buffer = buffer[: self.rng.choice((len(buffer), len(buffer), self.rng.randrange(len(buffer) + 1)))]
        verdicts, reasons = offload.classify_receive_burst(
            [self.place(buffer)], features, to_driver=guest, counters=self.counters
        )
        offload.ReceiveVerdict(verdicts[0]), offload.ReceiveReason(reasons[0])

    def cutting(self, header: offload.NetHeader, frame: bytes) -> None:
        rng = self.rng
        size = (
            header.gso_size if len(frame) < header.gso_size * SEGMENTS else len(frame) // rng.randrange(1, SEGMENTS) + 1
        )
        if rng.random() < 0.04:
            size = rng.randrange(9)
        kind = rng.choice((None, header.gso_type))
        limit = 3 if size < 9 or rng.random() < 0.1 else 0xFFFF
        pieces: Any = self.place(frame)
        if rng.random() < 0.3 and not isinstance(pieces, ctypes.Array):
            at = sorted(rng.randrange(len(frame) + 1) for _ in range(rng.randrange(1, 5)))
            pieces = [pieces[i:j] for i, j in zip([0, *at], [*at, len(frame)], strict=True)]
        mode = rng.choice(("full", "partial"))
        try:
            cut = offload.segment(pieces, size, kind, checksum=mode, fixed_id=rng.random() < 0.5, max_segments=limit)
        except offload.SegmentError as error:
            self.seen[f"cut: {error.reason}"] += 1
            assert str(error)
            return
        packets = cut.packets()
        self.seen["cut"] += 1
        assert len(packets) == len(cut) and b"".join(map(bytes, cut[0])) == packets[0]
        buffers = [(ctypes.c_ubyte * len(packet))() for packet in packets]
        again = offload.segment_into(self.place(frame), size, buffers, kind, checksum=mode)
        assert again == [len(packet) for packet in packets]
        gathers = []
        for packet in packets:
            at = rng.randrange(len(packet) + 1)
            gathers.append([bytearray(at), bytearray(len(packet) - at)])
        at = rng.randrange(len(frame) + 1)
        assert offload.segment_into([frame[:at], frame[at:]], size, gathers, kind, checksum=mode) == again
        assert [b"".join(gather) for gather in gathers] == list(map(bytes, buffers))

    def executing(self, header: offload.NetHeader, frame: bytes) -> None:
        """As a device does it: what leaves is sound, or says what is left to do; else it is dropped, once."""
        rng = self.rng
        if header.check(len(frame), ALL) or (len(frame) > header.gso_size * SEGMENTS and header.gso_type & 0x1F):
            return
        pieces: Any = self.place(frame)
        if rng.random() < 0.3 and not isinstance(pieces, ctypes.Array):
            at = sorted(rng.randrange(len(frame) + 1) for _ in range(rng.randrange(1, 5)))
            pieces = [pieces[i:j] for i, j in zip([0, *at], [*at, len(frame)], strict=True)]
        executor = Executor()
        taken = rng.choice((0, 1, 0x1FF))
        made = executor.execute([(header, pieces)], taken)
        figures = executor.statistics()
        dropped = sum(figures["dropped"].values())
        assert (dropped == 1 and not made) or (dropped == 0 and made)
        for reason in figures["dropped"]:
            self.seen[f"dropped: {reason}"] += 1
        for left, one in made:
            assert left.check(len(one), ALL) is offload.NetHeaderFault.OK and len(one) <= len(frame) + 8
            assert left.hdr_len <= len(one) and not left.flags & ~9
            if figures["segments"] and left.flags == 0:
                checks = offload.verify(one)
                sums = [checks.l3.name, checks.l4.name]
                if header.gso_type & 0x60:  # else a tunnel in it is payload, which stays as it is
                    sums += [checks.inner_l3.name, checks.inner_l4.name]
                assert "BAD" not in sums
        if figures["segments"]:
            parsed, after = offload.parse(frame), offload.parse(made[0][1])
            faults = [layer.stop.is_fault for layer in (parsed.outer, parsed.inner) if layer]
            self.seen["executed: a length of 0"] += any(faults)
            self.seen["executed: taken with its type, but for its lengths"] += taken == 0x1FF
            self.seen["executed: no payload"] += after.outer.payload == after.outer.end
            six = after.outer.l3_kind == 2 and header.gso_type == 3
            self.seen["executed: fragments of IPv6"] += six and len(made) > 1
            self.seen["executed: without NEEDS_CSUM"] += not header.flags & 1

    def many(self, features: int) -> None:
        """The last inputs in one call: batches, and the coalescer."""
        rng = self.rng
        frames = [data[HEADER:] for data in self.recent]
        seeds = [rng.choice(self.mutator.seeds)[HEADER:] for _ in range(3)]
        batch = frames + seeds + frames[:2]
        rng.shuffle(batch)
        offsets = [sum(map(len, batch[:i])) for i in range(len(batch) + 1)]
        packed = self.place(b"".join(batch)) if offsets[-1] <= PAGES * 4096 else bytearray(b"".join(batch))
        ways: list[tuple[Any, Any]] = [(batch, None), (packed, offsets)]
        assert len({tuple(map(str, offload.parse_burst(*way))) for way in ways}) == 1
        assert len({tuple(offload.verify_burst(*way)) for way in ways}) == 1
        assert len({bytes(offload.checksum_burst(*way)) for way in ways}) == 1
        assert len({tuple(self.toeplitz.hash_burst(*way)) for way in ways}) == 1
        assert len({offload.classify_receive_burst(way[0], features, offsets=way[1]) for way in ways}) == 1
        mss = rng.choice((0, 9, 1460))
        for some, bounds in (([bytearray(frame) for frame in batch], None), (bytearray(packed), offsets)):
            offload.fill_checksums_burst(some, bounds)
        for some, bounds in (([bytearray(frame) for frame in batch], None), (bytearray(packed), offsets)):
            reasons, headers = offload.prepare_transmit_burst(some, features, mss, offsets=bounds)
            assert len(headers) == len(batch) * offload.net_header_size(features)
            for reason in reasons:
                offload.TransmitReason(reason)
        stream = offload.segment(rng.choice(self.streams), rng.choice((17, 64, 100))).packets()
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(stream))
            stream[at] = bytes(self.mutator.flip(bytearray(stream[at])))
        if rng.random() < 0.3:
            rng.shuffle(stream)
        batch = [*batch[:6], *stream, *batch[6:]]
        coalescer = offload.Coalescer(
            flows=rng.choice((1, 2, 8)), segments=rng.choice((2, 8)), verify=rng.random() < 0.7,
            fixed_id=rng.random() < 0.5, rsc_info=rng.random() < 0.5, max_bytes=rng.choice((150, 600, 65535, 65535)),
            max_age_ns=rng.choice((None, 0, 5)),
        )  # fmt: skip
        # Merged holds views of the frames: each gets a block of its own
        held = [(ctypes.c_ubyte * len(frame)).from_buffer_copy(frame) for frame in batch]
        half = len(held) // 2
        merged = coalescer.receive(held[:half], trusted=rng.random() < 0.3, now=1)
        merged += coalescer.flush(self.place(rng.choice(batch)))
        bounds = [sum(map(len, batch[half:i])) for i in range(half, len(batch) + 1)]
        merged += coalescer.receive(b"".join(batch[half:]), offsets=bounds, now=rng.choice((0, 4, 9)))
        merged += coalescer.flush()
        assert sum(result.segments for result in merged) == len(batch)
        for result in merged:
            self.seen[f"coalesced: {result.passed}"] += 1
            assert len(bytes(result)) == len(result)

    def unseen(self) -> set[str]:
        """What never occurred of all that can. A new member of an enumeration is among it by itself."""
        seen = {name for name, count in self.seen.items() if count} | {
            name for name in self.counters if self.counters[name]
        }
        can = {f"stop {stop.name}" for stop in offload.Stop} | set(self.counters)
        can |= {f"executed: {what}" for what in EXECUTED}
        can |= {f"coalesced: {why}" for why in offload.Coalescer().statistics()["passed"]}
        return (can | {f"cut: {reason}" for reason in REFUSALS}) - seen


def plant(what: str) -> None:
    """An error on purpose: `guard` and `heap` read a byte too many, with `wrong` a kernel returns a false header."""
    if what == "wrong":
        real = offload.prepare_transmit

        def wrong(*arguments: Any, **options: Any) -> offload.Transmit:
            sent = real(*arguments, **options)
            sent.header.csum_start = 0xFFFF if sent.header.flags else 0
            return sent

        offload.prepare_transmit = wrong  # type: ignore[assignment]
        return
    guarded = Guarded()
    block = (ctypes.c_ubyte * 1000).from_buffer_copy(bytes(1000))
    inside = guarded.last(bytes(1000)) if what == "guard" else memoryview(block).cast("B")
    start = ctypes.addressof((ctypes.c_ubyte * 1000).from_buffer(inside))
    _checksum.use("scalar")  # masked loads of AVX-512 fault at a guard page, but the sanitizer does not see them
    offload.checksum((ctypes.c_ubyte * 1001).from_address(start))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0, help="0: --inputs")
    parser.add_argument("--inputs", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--plant", choices=("guard", "heap", "wrong"))
    parser.add_argument("--last", type=Path, help="where each input is written before it is tried")
    parser.add_argument("--cover", action="store_true", help="run until each reason occurred, or fail")
    options = parser.parse_args()
    print(f"VIRTIO_SEED={options.seed}", flush=True)
    if options.plant:
        plant(options.plant)
    fuzzer = Fuzzer(options.seed)
    last = os.open(options.last, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if options.last else None
    begin = shown = time.monotonic()
    done = 0
    seeds = fuzzer.mutator.seeds
    while time.monotonic() - begin < options.seconds if options.seconds else done < options.inputs:
        data = seeds[done] if done < len(seeds) else fuzzer.mutator.input()
        if last is not None:
            os.pwrite(last, len(data).to_bytes(4, "little") + data, 0)
        try:
            fuzzer.one(data)
        except BaseException:
            traceback.print_exc()
            print(f"input {done} of VIRTIO_SEED={options.seed}:\n{dump(data)}", file=sys.stderr)
            return 1
        done += 1
        if options.cover and done % 500 == 0 and not fuzzer.unseen():
            break
        if time.monotonic() - shown >= 10:
            shown = time.monotonic()
            print(f"fuzz: {done} inputs in {shown - begin:.0f} s, nothing found", flush=True)
    if options.cover and fuzzer.unseen():
        print(f"never occurred: {sorted(fuzzer.unseen())}", file=sys.stderr)
        return 1
    for name in fuzzer.counters:
        fuzzer.seen[name] += fuzzer.counters[name]
    print(f"fuzz: {done} inputs, nothing found; {dict(sorted(fuzzer.seen.items()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
