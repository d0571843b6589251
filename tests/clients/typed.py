"""A client of virtio.offload with types, for mypy --strict; it runs, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from virtio import offload
from virtio.offload import Checks, Frame, GsoType, HashReport, NetHeaderFlag, Verdict


def faults(frames: Sequence[Frame]) -> list[str]:
    return [frame.explain() for frame in frames if frame.stop.is_fault]


def wrong(checks: Sequence[Checks]) -> list[int]:
    return [i for i, check in enumerate(checks) if Verdict.BAD in check]


def busy(counters: Mapping[str, int]) -> dict[str, int]:
    return {name: number for name, number in counters.items() if number}


def sizes(pieces: list[bytes], mss: int, kind: GsoType = GsoType.TCPV4) -> list[int]:
    segments = offload.segment(pieces, mss, kind)
    lengths: list[int] = [sum(map(len, views)) for views in segments]
    assert isinstance(segments, Sequence) and segments[0] in segments and len(segments[:2]) <= 2
    assert lengths == offload.segment_into(pieces, mss, [bytearray(2000) for _ in segments])
    return lengths


def main() -> None:
    payload = bytes(3000)
    header = b"\x45\0" + (40 + len(payload)).to_bytes(2, "big") + bytes(4) + b"\x40\6\0\0" + bytes(range(8))
    head = bytes(12) + b"\x08\0" + header
    tcp = bytes(12) + b"\x50\x10" + bytes(6)
    frames: list[bytes] = [head + tcp + payload, bytes(60), b"short"]
    assert len(faults(offload.parse_burst(frames))) == 1
    assert wrong(offload.verify_burst(frames)) == [0]
    for check in offload.verify_burst(iter(frames)):
        verdict: Verdict = check.l4
        assert verdict is not Verdict.GOOD
    assert offload.checksum(frames[1:]) == offload.checksum([memoryview(frames[1]), bytearray(frames[2])])
    reports: list[HashReport] = [report for _, report in offload.Toeplitz(bytes(40)).hash_burst(frames)]
    assert reports[0] is HashReport.TCPV4
    assert sizes([head, tcp, payload], 1448) == [1502, 1502, 158]
    counters = offload.OffloadCounters()
    prepared = offload.prepare_transmit(bytearray(frames[0]), features=1, counters=counters)
    assert prepared.header is not None and NetHeaderFlag(prepared.header.flags) is NetHeaderFlag.NEEDS_CSUM
    assert busy(counters) == {"tx_csum_offloaded": 1}
    print(offload.simd())


if __name__ == "__main__":
    main()
