"""dpdk-testpmd, as the guest that drives a vhost-user device, and as the backend that ours stands beside."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.peers import MissingPeer

HUGE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
PAGES = 500
RUN = 2.0  # seconds of a measurement
# without it DPDK's driver leaves out the vectorised paths of packed rings
SIMD = "--force-max-simd-bitwidth=512"
_numbers = itertools.count()


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


class Testpmd:
    """A testpmd that polls on ``core``; its main thread, which only waits, is on the other one.

    ``under`` is a program that runs it, with its options.
    """

    def __init__(self, core: int, other: int, vdevs: list[str], *more: str, under: Sequence[str] = ()) -> None:
        self.log = ""
        self.process = subprocess.Popen(
            [
                *("stdbuf", "-o0", *under, need(), "--lcores", f"0@{other},1@{core}", "--main-lcore", "0", "--no-pci"),
                *("--no-telemetry", SIMD, "--single-file-segments", "-m", "300"),
                *(f"--file-prefix=bench{os.getpid()}-{next(_numbers)}", *(f"--vdev={vdev}" for vdev in vdevs)),
                *("--", "-i", "--nb-cores=1", "--total-num-mbufs=16384", *more),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.wait("testpmd> ", seconds=120 if under else 30)

    def _read(self) -> None:
        assert self.process.stdout is not None
        while text := self.process.stdout.read(1):
            self.log += text

    def say(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def wait(self, what: str, since: int = 0, seconds: float = 30) -> str:
        end = time.monotonic() + seconds
        while what not in self.log[since:]:
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"testpmd never said {what!r}: {self.log[-1500:]}")
            time.sleep(0.02)
        return self.log[since:]

    def ask(self, command: str, until: str) -> str:
        since = len(self.log)
        self.say(command)
        return self.wait(until, since)

    def packets(self) -> int:
        """Return how many packets came back, over all ports."""
        text = self.ask("show port stats all", "Tx-pps")
        time.sleep(0.05)
        return sum(map(int, re.findall(r"RX-packets: (\d+)", text)))

    def close(self) -> None:
        if self.process.poll() is None:
            self.say("quit")
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


@contextmanager
def dpdk_backend(paths: list[str], under: Sequence[str] = ()) -> Iterator[int]:
    """DPDK's net_vhost at these sockets, forwarding what comes: back if there is one, else to the other.

    Gives the number of the process.
    """
    guest, backend = cores()
    vdevs = [f"net_vhost{i},iface={path},queues=1" for i, path in enumerate(paths)]
    peer = Testpmd(backend, guest, vdevs, "--forward-mode=io", under=under)
    try:
        peer.ask("start", "packets/burst")
        yield peer.process.pid
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
        process.communicate(timeout=60)


@contextmanager
def guest(paths: list[str], options: str, length: int) -> Iterator[Testpmd]:
    """A guest that sends frames round through the backend at these sockets."""
    core, backend = cores()
    vdevs = [f"net_virtio_user{i},path={path},queues=1,queue_size=1024{options}" for i, path in enumerate(paths)]
    source = Testpmd(core, backend, vdevs)
    try:
        source.ask(f"set txpkts {length}", "testpmd>")
        # a guest that drops what finds no room would have fewer frames on the way with one backend than with the other
        source.ask("set fwd io retry", "testpmd>")
        source.ask("set burst tx delay 1 retry 1000000", "testpmd>")
        source.ask("start tx_first 32", "packets/burst")
        yield source
        source.ask("stop", "Done.")
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
