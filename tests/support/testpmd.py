"""dpdk-testpmd as a guest: DPDK's own virtio driver (virtio-user) at a vhost-user socket of ours."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from guestprocess import GuestProcess
from peers import need_peer

TWO_CPUS = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="testpmd and we poll: needs two CPUs")
MODES = {
    "split": "mrg_rxbuf=1,in_order=0",
    "split-unmerged": "mrg_rxbuf=0,in_order=0",
    "split-in-order": "mrg_rxbuf=1,in_order=1",
    "split-in-order-unmerged": "mrg_rxbuf=0,in_order=1",
    "split-vectorised": "mrg_rxbuf=0,in_order=0,vectorized=1",
    "packed": "packed_vq=1,mrg_rxbuf=1,in_order=0",
    "packed-unmerged": "packed_vq=1,mrg_rxbuf=0,in_order=0",
    "packed-in-order": "packed_vq=1,mrg_rxbuf=1,in_order=1",
    "packed-vectorised": "packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1",
}
LARGE = ("--max-pkt-len=9100", "--mbuf-size=2176", "--enable-scatter", "--tx-offloads=0x8000")  # MULTI_SEGS
# without it DPDK's driver leaves out the vectorised paths of packed rings
SIMD = "--force-max-simd-bitwidth=512"
_prefixes = itertools.count()
RATIO = re.compile(r"(RX|TX)-(packets|dropped): +(\d+)")


class Pmd(GuestProcess):
    """A testpmd with these devices; it polls on the second of ``cores``, and its main thread waits on the first.

    ``memory`` are EAL's options for memory, ``more`` testpmd's own; ``under`` is a program that runs it, with its
    options. It is killed after ``seconds``.
    """

    def __init__(
        self,
        vdevs: Sequence[str],
        *,
        memory: Sequence[str] = ("--no-huge", "-m", "256"),
        more: Sequence[str] = (),
        cores: tuple[int, int] | None = None,
        under: Sequence[str] = (),
        seconds: int = 90,
    ) -> None:
        program = need_peer("dpdk-testpmd", "dpdk-dev")
        allowed = sorted(os.sched_getaffinity(0))
        main, polling = cores or (allowed[0], allowed[-1])
        self.log: list[str] = []
        self.process = subprocess.Popen(
            [
                *("stdbuf", "-o0", "timeout", "-k", "3", str(seconds), *under, program),
                *("--lcores", f"0@{main},1@{polling}", "--main-lcore", "0"),
                *("--no-pci", "--no-telemetry", SIMD, "--single-file-segments", *memory),
                *(f"--file-prefix=virtio-{os.getpid()}-{next(_prefixes)}", *(f"--vdev={vdev}" for vdev in vdevs)),
                *("--", "-i", "--nb-cores=1", "--total-num-mbufs=16384", *more),
            ],
            process_group=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.wait_for("testpmd> ", seconds=120 if under else 30)

    def _read(self) -> None:
        assert self.process.stdout is not None
        while text := self.process.stdout.read(1):
            self.log.append(text)

    def text(self) -> str:
        return "".join(self.log)

    @property
    def pid(self) -> int:
        """The number of the program itself: `timeout` is its parent."""
        parent = self.process.pid
        return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])

    def say(self, *commands: str) -> None:
        assert self.process.stdin is not None
        for command in commands:
            self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def wait_for(self, what: str, since: int = 0, seconds: float = 30) -> str:
        """Wait until testpmd has printed something, after position ``since``; return all from there on."""
        end = time.monotonic() + seconds
        while what not in self.text()[since:]:
            assert self.process.poll() is None, f"testpmd ended: {self.text()[-2000:]}"
            assert time.monotonic() < end, f"testpmd never said {what!r}: {self.text()[-2000:]}"
            time.sleep(0.01)
        return self.text()[since:]

    def ask(self, command: str, until: str) -> str:
        """Give a command; return what it printed, up to ``until``."""
        since = len(self.text())
        self.say(command)
        return self.wait_for(until, since)

    def close(self) -> None:
        if self.process.poll() is None:
            self.say("quit")
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        super().close()
        self.reader.join(10)


class Testpmd(Pmd):
    """A testpmd with a virtio-user port at each of ``paths``, comma-separated; a context manager.

    ``vdev`` are the options of all ports, or of each; ``more`` are testpmd's own.
    """

    __test__ = False

    def __init__(
        self, paths: str, vdev: str | Sequence[str] = "", *, queues: int = 1, size: int = 256, more: Sequence[str] = ()
    ) -> None:
        each = paths.split(",")
        options = [vdev] * len(each) if isinstance(vdev, str) else vdev
        super().__init__(
            [
                f"net_virtio_user{i},path={path},queues={queues},queue_size={size}{',' if option else ''}{option}"
                for i, (path, option) in enumerate(zip(each, options, strict=True))
            ],
            more=("--no-flush-rx", f"--rxq={queues}", f"--txq={queues}", *more),
        )

    def forward(self, mode: str = "io") -> None:
        """Send back whatever comes, and wait rather than drop when the ring is full."""
        self.say(f"set fwd {mode} retry", "set burst tx delay 5 retry 1000000")
        self.ask("start", "packets/burst")

    def stop(self) -> dict[str, int]:
        """Stop forwarding; return the counters of the port."""
        text = self.ask("stop", "Done.")
        found = RATIO.findall(text)
        return {f"{way}-{what}": int(count) for way, what, count in found}
