"""Real traffic, captured here by tcpdump of iperf3, ping and Python's HTTP server, goes through all kernels."""

from __future__ import annotations

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
    """Derived headers, done by the naive steps of a device: completed, or cut, and the same as the kernel made it."""
    features = NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6
    seen = Counter[str]()
    for frame in captured[name]:
        large = tcp_payload(frame) > 1448
        sent = bytearray(frame)
        outcome, _, header = offload.prepare_transmit(sent, features, 1448)
        seen[outcome.name] += 1
        assert header.check(len(frame), features) is offload.NetHeaderFault.OK
        if outcome is not offload.TransmitOutcome.SENT_AS:
            assert sent == frame
            continue
        told = offload.classify_receive(header, sent, features, to_driver=False)
        assert told.verdict is offload.ReceiveVerdict.NEEDS_CHECKSUM
        assert bool(header.gso_type) is large
        if large:
            assert len(offload.segment(sent, header.gso_size, header.gso_type)) == -(-tcp_payload(frame) // 1448)
        elif name == "plain":
            offload.complete_checksum(sent, header.csum_start, header.csum_offset)
            assert sent == frame
    assert seen["SENT_AS"] > 100


def test_toeplitz(captured: dict[str, list[bytes]]) -> None:
    """Both directions of a connection have the same hash under a key of 0x6d5a repeated."""
    toeplitz = offload.Toeplitz(b"\x6d\x5a" * 20)
    hashes: dict[frozenset[Any], set[int]] = {}
    for frame in captured["plain"]:
        packet = dpkt.ethernet.Ethernet(frame).data
        if tcp_payload(frame):
            ends = frozenset([(packet.src, packet.data.sport), (packet.dst, packet.data.dport)])
            hashes.setdefault(ends, set()).add(toeplitz.hash_frame(frame)[0])
    assert len(hashes) > 5
    assert all(len(found) == 1 for found in hashes.values())
