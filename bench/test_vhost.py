"""The network device over vhost-user, driven by DPDK's virtio driver on one core, beside DPDK's backend in its place.

`virtio net --poll vhost-user:... loopback` on the other core, and dpdk-testpmd's net_vhost in io mode; and a cable
between two vhost-user endpoints, and two net_vhost ports. Each measurement starts both programs anew, in turn.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from bench.peers import testpmd

MODES = {
    "split": ",in_order=0",
    "packed": ",packed_vq=1,in_order=0",
    "packed in-order vectorised": ",packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1",
}
# ratio of times, ours over the peer's, at most: 1 / the ratio of rates that the project asks of itself
BARS = {
    ("split", 64): 1 / 1.0,
    ("split", 1500): 1 / 1.2,
    ("packed", 64): 1 / 1.0,
    ("packed", 1500): 1 / 1.0,
    ("packed in-order vectorised", 64): 1 / 0.9,
}
CABLE = {64: 1 / 1.2, 1500: 1 / 1.4}


@contextmanager
def our_backend(paths: list[str]) -> Iterator[None]:
    _, core = testpmd.cores()
    ends = [f"vhost-user:{path}" for path in paths]
    ends += ["loopback"] * (2 - len(ends))
    process = subprocess.Popen(
        [sys.executable, "-m", "virtio", "net", "--poll", "--cpus", str(core), *ends], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said == "ready\n", said
        yield
    finally:
        process.terminate()
        process.communicate(timeout=20)


def measure(backend: Callable[[list[str]], AbstractContextManager[None]], count: int, mode: str, length: int) -> float:
    """Return nanoseconds a packet."""
    folder, paths = testpmd.sockets(count)
    with folder, backend(paths):
        return 1e3 / testpmd.rate(paths, MODES[mode], length)


@pytest.mark.parametrize(("mode", "length"), BARS)
def test_loopback(mode: str, length: int, versus: Callable[..., None]) -> None:
    testpmd.need()
    versus(
        f"vhost-user, guest DPDK, {mode}, {length} B",
        lambda: measure(our_backend, 1, mode, length),
        lambda: measure(testpmd.dpdk_backend, 1, mode, length),
        "DPDK net_vhost, io",
        bar=BARS[mode, length],
    )


@pytest.mark.parametrize("length", CABLE)
def test_cable(length: int, versus: Callable[..., None]) -> None:
    testpmd.need()
    versus(
        f"vhost-user, two guests on a cable, {length} B",
        lambda: measure(our_backend, 2, "split", length),
        lambda: measure(testpmd.dpdk_backend, 2, "split", length),
        "DPDK, two net_vhost, io",
        bar=CABLE[length],
    )
