"""A device queue in a process of its own, that is run instruction by instruction: where may it be killed?

After each store to the shared memory the process might have been killed; what is in memory at that moment is what the
next one finds.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import pytest

from virtio import Chain, DeviceQueue, GuestMemory, QueueLayout, Region
from virtio.virtqueue.inflight import Inflight

GPA = 0x10000
RING = 4096  # bytes: rings first,
SIZE = 1 << 16  # then buffers; behind them, the inflight region
TRACEME, CONT, SINGLESTEP = 0, 7, 9
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def serve(fd: int, layout: dict[str, Any], features: int, entries: int) -> None:
    """The process: obeys words on its input, one line each."""
    layout_ = QueueLayout(**layout)
    memory = GuestMemory([Region.from_fd(GPA, fd, SIZE)])
    queue = DeviceQueue(memory, layout_, features=features)
    size = Inflight.size(entries, layout_.is_packed)
    queue.track(Inflight(Region.from_fd(0, fd, size, SIZE), 0, entries))
    gc.disable()
    chains: list[Chain] = []
    if libc.ptrace(TRACEME, 0, None, None):
        sys.exit("no ptrace")
    print("here", flush=True)
    for line in sys.stdin:
        what, stepped, *numbers = json.loads(line)
        used = [chains[i] for i in numbers] if what == "use" else []
        if stepped:
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "pop":
            popped = queue.pop_burst(numbers[0])
        elif what == "use":
            queue.add_used_burst(used)
        else:
            queue.unpop(chains[-1])
        if stepped:
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "pop":
            chains += popped
        elif what == "use":
            chains = [chain for chain in chains if chain not in used]
        else:
            chains.pop()
        print(len(chains), flush=True)


class Stepped:
    """The process and what it shares; a context manager. ``size`` is the queue's, ``entries`` the region's."""

    def __init__(self, packed: bool, size: int, entries: int, features: int) -> None:
        self.layout = QueueLayout.packed(size, GPA) if packed else QueueLayout.split(size, GPA)
        self.entries, self.features = entries, features
        self.fd = os.memfd_create("stepped", 0)
        self.region_size = Inflight.size(entries, packed)
        os.ftruncate(self.fd, SIZE + self.region_size)
        self.shared = mmap.mmap(self.fd, SIZE + self.region_size)
        self.memory = GuestMemory([Region.from_fd(GPA, self.fd, SIZE)])
        layout = json.dumps(vars(self.layout) | {"is_packed": packed})
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), str(self.fd), layout, str(features), str(entries)],
            pass_fds=[self.fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "here\n":
            said = self.process.communicate()[1]
            self.close()
            if "no ptrace" in said:
                pytest.skip("ptrace is not permitted here")
            raise AssertionError(said)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.shared.close()
        os.close(self.fd)

    def order(self, what: str, *numbers: int) -> int:
        """Have it do something; return the chains that it then holds."""
        self._send(what, False, numbers)
        return self._answer()

    def step(self, what: str, *numbers: int) -> tuple[list[tuple[bytes, bytes]], int]:
        """The same instruction by instruction; return ring and region after each that changed them, the first before
        all, and the chains that it then holds."""
        seen = []
        self._send(what, True, numbers)
        self._wait()
        last = b""
        while True:
            found = self.shared[:RING] + self.shared[SIZE:]
            if found != last:
                last = found
                seen.append((found[:RING], found[RING:]))
            assert libc.ptrace(SINGLESTEP, self.process.pid, None, None) == 0, os.strerror(ctypes.get_errno())
            if self._wait() == signal.SIGSTOP:
                break
        libc.ptrace(CONT, self.process.pid, None, None)
        return seen, self._answer()

    def _send(self, what: str, stepped: bool, numbers: tuple[int, ...]) -> None:
        assert self.process.stdin is not None
        print(json.dumps([what, stepped, *numbers]), file=self.process.stdin, flush=True)

    def _answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def _wait(self) -> int:
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), status
        return os.WSTOPSIG(status)

    def survivor(self, ring: bytes, region: bytes) -> tuple[GuestMemory, DeviceQueue]:
        """What the next process has, if this one was killed then: memory, and a queue that goes on."""
        place = Region.allocate(GPA, SIZE)
        memory = GuestMemory([place])
        memory.write(GPA, ring + self.shared[RING:SIZE])
        kept = Region.allocate(0, self.region_size)
        memoryview(kept)[:] = region
        queue = DeviceQueue(memory, self.layout, features=self.features)
        if not self.layout.is_packed:  # as virtio.vhost_user.vring does: used.idx counts
            used = memory.read_u16(self.layout.device + 2)
            queue = DeviceQueue.restore(memory, queue.state() | {"next_avail": used, "next_used": used})
        queue.track(Inflight(kept, 0, self.entries))
        return memory, queue


if __name__ == "__main__":
    serve(int(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
