"""dpdk-testpmd, as the guest that drives a vhost-user device, and as the backend that ours stands beside."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.peers import MissingPeer

sys.path.insert(0, str(Path(__file__).parents[2] / "tests/support"))

from testpmd import Pmd

HUGE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
PAGES = 500
RUN = 2.0  # seconds of a measurement
RING = 1024  # descriptors
# Bursts of 32 frames that go round: they fill half a ring, so that the guest never finds it full. A guest that drops
# would have fewer frames on the way with one backend than with the other; one that waits does so by its own clock.
BURSTS = RING // 2 // 32


def need() -> str:
    """Return the program; see to the huge pages that it takes."""
    program = shutil.which("dpdk-testpmd")
    if program is None:
        raise MissingPeer("dpdk-testpmd is not installed: apt-get install dpdk-dev")
    if len(os.sched_getaffinity(0)) < 2:
        raise MissingPeer("needs two cores: the guest polls one, the backend the other")
    try:
        if int(HUGE.read_text()) < PAGES:
            HUGE.write_text(str(PAGES))
        if int(HUGE.read_text()) < PAGES:
            raise MissingPeer(f"{PAGES} huge pages of 2 MiB cannot be had")
        if not os.path.ismount("/dev/hugepages"):
            os.makedirs("/dev/hugepages", exist_ok=True)
            subprocess.run(["mount", "-t", "hugetlbfs", "nodev", "/dev/hugepages"], check=True, capture_output=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingPeer(f"huge pages for dpdk-testpmd (root): {error}") from None
    return program


def cores() -> tuple[int, int]:
    """Return the guest's core, and the backend's."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


class Huge(Pmd):
    """A testpmd in huge pages that polls on ``core``; its main thread, which only waits, is on the other one."""

    def __init__(self, core: int, other: int, vdevs: list[str], *more: str, under: Sequence[str] = ()) -> None:
        need()
        super().__init__(vdevs, memory=("-m", "300"), more=more, cores=(other, core), under=under, seconds=300)

    def packets(self) -> int:
        """Return how many packets came back, over all ports."""
        text = self.ask("show port stats all", "Tx-pps")
        time.sleep(0.05)
        return sum(map(int, re.findall(r"RX-packets: (\d+)", text)))


@contextmanager
def dpdk_backend(paths: list[str], under: Sequence[str] = ()) -> Iterator[int]:
    """DPDK's net_vhost at these sockets, forwarding what comes: back if there is one, else to the other.

    Gives the number of the process.
    """
    guest, backend = cores()
    vdevs = [f"net_vhost{i},iface={path},queues=1" for i, path in enumerate(paths)]
    peer = Huge(backend, guest, vdevs, "--forward-mode=io", under=under)
    try:
        peer.ask("start", "packets/burst")
        yield peer.pid
    finally:
        peer.close()


@contextmanager
def our_backend(paths: list[str], under: Sequence[str] = ()) -> Iterator[int]:
    """`virtio net --poll` in its place."""
    _, core = cores()
    ends = [f"vhost-user:{path}" for path in paths]
    ends += ["loopback"] * (2 - len(ends))
    process = subprocess.Popen(
        [*under, sys.executable, "-m", "virtio", "net", "--poll", "--cpus", str(core), *ends],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        while under and said.startswith("=="):  # what valgrind has to say
            said = process.stderr.readline()
        assert said == "ready\n", said
        yield process.pid
    finally:
        process.terminate()
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            if not under:  # under valgrind, and beside a busy guest, threads hardly get their turn
                raise


@contextmanager
def guest(paths: list[str], options: str, length: int) -> Iterator[Huge]:
    """A guest that sends frames round through the backend at these sockets. RuntimeError: it dropped some."""
    core, backend = cores()
    vdevs = [f"net_virtio_user{i},path={path},queues=1,queue_size={RING}{options}" for i, path in enumerate(paths)]
    source = Huge(core, backend, vdevs, f"--txd={RING}", f"--rxd={RING}")  # 512 otherwise, of rings that have more
    try:
        source.ask(f"set txpkts {length}", "testpmd>")
        source.ask(f"start tx_first {BURSTS}", "packets/burst")
        yield source
        said = source.ask("stop", "Done.")
        if dropped := sum(map(int, re.findall(r"TX-dropped: (\d+)", said.split("Accumulated")[0]))):
            raise RuntimeError(f"the guest dropped {dropped} frames: fewer went round than with the other backend")
    finally:
        source.close()


def rate(paths: list[str], options: str, length: int) -> float:
    """Return Mpps that come back."""
    with guest(paths, options, length) as source:
        time.sleep(0.5)
        before, start = source.packets(), time.monotonic()
        time.sleep(RUN)
        after, end = source.packets(), time.monotonic()
        return (after - before) / (end - start) / 1e6


def sockets(count: int) -> tuple[tempfile.TemporaryDirectory[str], list[str]]:
    folder = tempfile.TemporaryDirectory()
    return folder, [f"{folder.name}/{i}" for i in range(count)]
