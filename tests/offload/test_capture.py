"""Real traffic, captured here by tcpdump of iperf3, ping and Python's HTTP server, goes through all kernels."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import dpkt
import netns
import pytest
from netns import CSUM, TSO4, TSO6, USO4, USO6, Link, Pump
from offloads import naive_checksum, naive_sum
from peers import need_peer

from virtio import NetFeature, offload

A, B = 0, 1


class Carried:
    """Carry frames between both ends with their virtio_net_hdr as it is: the kernels talk to each other."""

    def __init__(self, link: Link) -> None:
        self.link = link

    def give(self, to: int) -> Any:
        def forward(group: list[tuple[bytes, bytes]]) -> None:
            for header, frame in group:
                self.link.taps[to].write(frame, header=header)

        return forward

    def __enter__(self) -> None:
        self.pumps = [Pump(self.link.taps[A], self.give(B)), Pump(self.link.taps[B], self.give(A))]

    def __exit__(self, *_: object) -> None:
        for pump in self.pumps:
            pump.stop()


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """The frames of two captures: "plain", as on a wire; "large", as the kernel leaves them to a NIC (GSO)."""
    return {
        "plain": capture(tmp_path_factory.mktemp("plain"), 0),
        "large": capture(tmp_path_factory.mktemp("large"), CSUM | TSO4 | TSO6 | USO4 | USO6),
    }


def capture(folder: Path, offloads: int) -> list[bytes]:
    programs = {name: need_peer(name, package) for name, package in
                (("tcpdump", "tcpdump"), ("iperf3", "iperf3"), ("ping", "iputils-ping"), ("curl", "curl"))}  # fmt: skip
    (folder / "file").write_bytes(bytes(range(256)) * 2000)
    with netns.link(offloads=(offloads, offloads)) as link, Carried(link):
        a, b = link.namespaces
        path = folder / "capture.pcap"
        servers = [
            subprocess.Popen(a.command(programs["tcpdump"], "-i", "tap0", "-w", str(path), "-U", "-Z", "root"),
                             stderr=subprocess.PIPE),
            subprocess.Popen(b.command(programs["iperf3"], "-s"), stdout=subprocess.DEVNULL),
            subprocess.Popen(b.command(sys.executable, "-m", "http.server", "8000", "-d", str(folder), "-b", "::"),
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL),
        ]  # fmt: skip
        try:
            assert servers[0].stderr is not None
            assert b"listening" in servers[0].stderr.readline()
            time.sleep(1)
            for words in (
                ["iperf3", "-c", "10.77.0.2", "-n", "2M"],
                ["iperf3", "-c", "fd77::2", "-n", "2M", "-R"],
                ["iperf3", "-c", "fd77::2", "-n", "1M", "-P", "3"],
                ["iperf3", "-c", "10.77.0.2", "-u", "-b", "20M", "-n", "300K"],
                ["ping", "-c", "2", "-i", "0.2", "-s", "3000", "10.77.0.2"],
                ["ping", "-c", "2", "-i", "0.2", "fd77::2"],
                ["curl", "-s", "-o", "/dev/null", "http://[fd77::2]:8000/file"],
                ["curl", "-s", "-o", "/dev/null", "http://10.77.0.2:8000/file"],
            ):
                subprocess.run(
                    a.command(programs[words[0]], *words[1:]), check=True, timeout=60, stdout=subprocess.DEVNULL
                )
            time.sleep(0.3)
        finally:
            for server in servers:
                server.terminate()
                server.wait()
        assert link.errors() == {}
    with path.open("rb") as file:
        frames = [frame for _, frame in dpkt.pcap.Reader(file)]
    assert len(frames) > 200
    return frames


def tcp_payload(frame: bytes) -> int:
    """Bytes of TCP payload, by dpkt; 0 for anything else."""
    packet = dpkt.ethernet.Ethernet(frame).data
    tcp = getattr(packet, "data", None)
    return len(tcp.data) if isinstance(tcp, dpkt.tcp.TCP) else 0


def test_the_captures_hold_what_they_are_for(captured: dict[str, list[bytes]]) -> None:
    longest = {name: max(map(len, frames)) for name, frames in captured.items()}
    assert longest["plain"] == 1514
    assert longest["large"] > 10_000
    assert len({offload.parse(frame).outer.protocol for frame in captured["plain"]}) >= 4


@pytest.mark.parametrize("name", ["plain", "large"])
def test_parse(captured: dict[str, list[bytes]], name: str) -> None:
    """Offsets and protocols as dpkt has them."""
    frames = captured[name]
    for frame, whole in zip(frames, offload.parse_burst(frames), strict=True):
        parsed = whole.outer
        assert not parsed.stop.is_fault
        theirs = dpkt.ethernet.Ethernet(frame)
        assert parsed.ethertype == theirs.type
        packet = theirs.data
        if not isinstance(packet, dpkt.ip.IP | dpkt.ip6.IP6):
            continue
        assert parsed.protocol == packet.p
        if isinstance(packet.data, dpkt.tcp.TCP):
            assert frame[parsed.l4 :].startswith(bytes(packet.data)[:12])
            assert parsed.end - parsed.payload == len(packet.data.data)
        elif isinstance(packet.data, dpkt.udp.UDP):
            assert parsed.end - parsed.payload == packet.data.ulen - 8


def test_checksums_of_what_was_on_the_wire_are_good(captured: dict[str, list[bytes]], simd: str) -> None:
    good = Counter[str]()
    for frame, checks in zip(captured["plain"], offload.verify_burst(captured["plain"]), strict=True):
        assert offload.Verdict.BAD not in (checks.l3, checks.l4), frame.hex()
        good[checks.l4.name] += 1
        filled = bytearray(frame)
        offload.fill_checksums(filled)
        field = offload.parse(frame).outer.l4 + 16
        if frame[field : field + 2] == b"\xff\xff":  # Linux writes 0 so, for TCP too (skb_checksum_help)
            filled[field : field + 2] = b"\xff\xff"
        assert filled == frame
    assert good["GOOD"] > len(captured["plain"]) * 0.9


def test_large_frames_are_cut_into_what_is_right(captured: dict[str, list[bytes]], simd: str) -> None:
    cut = 0
    for frame in captured["large"]:
        if (size := tcp_payload(frame)) > 1448:
            packets = offload.segment(frame, 1448).packets()
            assert len(packets) == -(-size // 1448)
            for packet in packets:
                checks = offload.verify(packet)
                assert checks.l4 is offload.Verdict.GOOD
                assert checks.l3 is not offload.Verdict.BAD
            data = offload.parse(frame).outer.payload
            assert b"".join(packet[data:] for packet in packets) == frame[data:]
            cut += 1
    assert cut > 20


@pytest.mark.parametrize("burst", [1, 16, 10_000])
def test_coalescing_loses_nothing(captured: dict[str, list[bytes]], burst: int, simd: str) -> None:
    frames = captured["plain"]
    coalescer = offload.Coalescer()
    out: list[offload.Merged] = []
    for at in range(0, len(frames), burst):
        out += coalescer.receive(frames[at : at + burst])
    out += coalescer.flush()
    again: list[bytes] = []
    for one in out:
        if one.segments > 1:
            again += offload.segment(bytes(one), one.gso_size, one.gso_type).packets()
        else:
            again.append(bytes(one))
    assert Counter(again) == Counter(frames)
    assert max(one.segments for one in out) > 8


@pytest.mark.parametrize("name", ["plain", "large"])
def test_what_a_driver_sends_completes_to_what_was_on_the_wire(captured: dict[str, list[bytes]], name: str) -> None:
    """Derived headers, done by the naive steps of a device: the checksum is completed, or the frame cut."""
    features = NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6
    sent = [bytearray(frame) for frame in captured[name]]
    reasons, headers = offload.prepare_transmit_burst(sent, features, 1448)
    seen = Counter[str]()
    for i, (frame, went) in enumerate(zip(captured[name], sent, strict=True)):
        large = tcp_payload(frame) > 1448
        outcome = offload.TransmitReason(reasons[i]).outcome
        header = offload.NetHeader.from_bytes(headers[10 * i : 10 * i + 10], 10)
        seen[outcome.name] += 1
        assert header.check(len(frame), features) is offload.NetHeaderFault.OK
        if outcome is not offload.TransmitOutcome.SENT_AS:
            continue
        told = offload.classify_receive(header, went, features, to_driver=False)
        assert told.verdict is offload.ReceiveVerdict.NEEDS_CHECKSUM
        assert bool(header.gso_type) is large
        field = header.csum_start + header.csum_offset
        packet = dpkt.ethernet.Ethernet(frame).data
        pseudo = packet.src + packet.dst + struct.pack("!II", len(bytes(packet.data)), packet.p)
        assert int.from_bytes(went[field : field + 2], "big") == naive_sum(pseudo)
        right = bytearray(frame)  # of the large capture, the checksums on the wire are partial ones
        right[field : field + 2] = b"\0\0"
        right[field : field + 2] = (naive_checksum(pseudo + right[header.csum_start :]) or 0xFFFF).to_bytes(2, "big")
        completed = bytearray(went)
        assert offload.complete_receive(header, completed, features, to_driver=False).verdict is told.verdict
        assert completed == right
        if name == "plain":
            if frame[field : field + 2] == b"\0\0":  # 0 and 0xFFFF are the same sum: a completion writes the latter
                completed[field : field + 2] = b"\0\0"
            assert completed == frame
        if large:
            assert header.hdr_len == offload.parse(frame).outer.payload
            wanted = offload.segment(frame, 1448).packets()
            room = [bytearray(len(one)) for one in wanted]
            lengths = offload.segment_into(went, header.gso_size, room, header.gso_type)
            assert [bytes(one[:n]) for one, n in zip(room, lengths, strict=True)] == wanted
    assert seen["SENT_AS"] > 100


def test_a_router_updates_checksums(captured: dict[str, list[bytes]]) -> None:
    """One hop less, the checksum updated: the same as a header checksum made anew."""
    for frame in captured["plain"]:
        if frame[12:14] == b"\x08\x00":
            hop = bytearray(frame)
            hop[22] -= 1
            checksum = offload.update_checksum(int.from_bytes(frame[24:26], "big"), frame[22:24], hop[22:24])
            hop[24:26] = checksum.to_bytes(2, "big")
            assert naive_sum(bytes(hop[14:34])) == 0xFFFF


def test_coalescing_out_of_order_loses_nothing(captured: dict[str, list[bytes]]) -> None:
    frames = list(captured["plain"])
    for at in range(0, len(frames), 12):
        part = frames[at : at + 12]
        random.Random(at).shuffle(part)
        frames[at : at + 12] = part
    coalescer = offload.Coalescer()
    again: list[bytes] = []
    for one in coalescer.receive(frames) + coalescer.flush():
        again += offload.segment(bytes(one), one.gso_size, one.gso_type).packets() if one.segments > 1 else [bytes(one)]
    assert Counter(again) == Counter(frames)


def test_toeplitz(captured: dict[str, list[bytes]]) -> None:
    """As the definition has it, bit by bit; under a key of 0x6d5a repeated, alike in both directions."""
    toeplitz = offload.Toeplitz(b"\x6d\x5a" * 20)
    key = int.from_bytes(toeplitz.key, "big")
    found = toeplitz.hash_burst(captured["plain"])
    hashes: dict[frozenset[Any], set[int]] = {}
    for frame, (value, _) in zip(captured["plain"], found, strict=True):
        packet = dpkt.ethernet.Ethernet(frame).data
        if tcp_payload(frame):
            data = packet.src + packet.dst + struct.pack("!HH", packet.data.sport, packet.data.dport)
            bits = [i for i in range(8 * len(data)) if data[i // 8] >> (7 - i % 8) & 1]
            naive = 0
            for i in bits:
                naive ^= key >> (320 - 32 - i) & 0xFFFFFFFF
            assert value == naive
            ends = frozenset([(packet.src, packet.data.sport), (packet.dst, packet.data.dport)])
            hashes.setdefault(ends, set()).add(value)
    assert len(hashes) > 5
    assert all(len(values) == 1 for values in hashes.values())
