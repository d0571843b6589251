"""Backends to be killed: a process that forks one after the other, each with a device that keeps chains for a while."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from virtio import Chain, Device
from virtio.vhost_user import Server

KEPT = 8  # chains that it keeps at most
FLUSH = b"flush"


class Whimsical(Device):
    """Answers in upper case, in any order, some soon and some late; at "flush" all that it has."""

    device_type = 42

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self.choose = random.Random(seed)
        self.kept: list[Chain] = []

    def notified(self, index: int) -> None:
        queue = self.device_queue(index)
        while True:
            popped = queue.pop_burst(self.choose.randint(1, 8))
            self.kept += popped
            if popped and self.choose.random() < 0.2:  # and changes its mind
                self.kept.remove(popped[-1])
                queue.unpop(popped[-1])
            flush = any(chain.read() == FLUSH for chain in self.kept)
            least = 0 if flush else self.choose.randint(0, KEPT)
            self.choose.shuffle(self.kept)
            used, self.kept = self.kept[least:], self.kept[:least]
            for chain in used:
                chain.write(chain.read().upper())
            queue.add_used_burst(used)
            if not popped and not queue.enable_notification():
                return


def serve() -> None:
    """Fork a backend for each path and seed on the input; it says which process it is when it listens."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    child = 0
    for line in sys.stdin:
        path, seed = line.split()
        child = os.fork()
        if child == 0:
            with Server(Whimsical(int(seed)), path):
                print(os.getpid(), flush=True)
                signal.pause()
    os.kill(child, signal.SIGKILL)


class Backends:
    """The process that has them; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.running = 0
        words = [sys.executable, str(Path(__file__))]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.kill()
        self.process.communicate()

    def start(self, seed: int) -> None:
        """Start the next, and wait until it listens."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.path.unlink(missing_ok=True)
        print(self.path, seed, file=self.process.stdin, flush=True)
        self.running = int(self.process.stdout.readline())

    def kill(self) -> None:
        """End it as the kernel ends what has run out of memory, and wait for its end."""
        if self.running:
            os.kill(self.running, signal.SIGKILL)
            while Path(f"/proc/{self.running}").exists():
                pass
            self.running = 0


if __name__ == "__main__":
    serve()
