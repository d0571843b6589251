"""A capture of real traffic, made here by tcpdump of iperf3, ping and Python's HTTP server, goes through all kernels."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dpkt
import netns
import pytest
from netns import CSUM, TSO4, TSO6, USO4, USO6, Link, Pump
from peers import need_peer

from virtio import offload

A, B = 0, 1


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
    with netns.link(offloads=(offloads, offloads)) as link, pumps(link):
        a, b = link.namespaces
        path = folder / "capture.pcap"
        servers = [
            subprocess.Popen(a.command(programs["tcpdump"], "-i", "tap0", "-w", str(path), "-U", "-s", "0", "-Z", "root"),
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
                subprocess.run(a.command(programs[words[0]], *words[1:]), check=True, timeout=60, stdout=subprocess.DEVNULL)
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


class pumps:
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
