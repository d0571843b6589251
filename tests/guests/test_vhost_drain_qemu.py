"""A guest of QEMU stops, and goes on, while a disk of ours without an inflight region has its requests out."""

from __future__ import annotations

import hashlib
import os
import random
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from blkdevice import Blk
from qemuguest import Qemu, block
from waiting import wait_for

from virtio import Chain, DeviceQueue
from virtio.vhost_user import PROTOCOL, ProtocolFeature, Server

SIZE = 4 << 20
DELAY = 0.002  # seconds that a request takes
ROUNDS = 5
PARTS = 4  # that are written at the same time
PIECES = SIZE // PARTS >> 16  # of each
JOB = f"""
dd if=/dev/urandom of=/tmp/x bs=64k count={PARTS * PIECES} 2> /dev/null
copy() {{
    for piece in $(seq {PIECES}); do
        at=$(($1 + piece - 1))
        dd if=/tmp/x of=/dev/vda bs=64k count=1 skip=$at seek=$at conv=fsync 2> /dev/null || echo FAILED
    done
}}
for part in {" ".join(map(str, range(PARTS)))}; do copy $((part * {PIECES})) & done
wait
echo 3 > /proc/sys/vm/drop_caches
echo SAME $(sha256sum < /tmp/x) $(sha256sum < /dev/vda)
"""


class Asynchronous(Blk):
    """Does requests on a thread of its own, in any order."""

    def __init__(self, path: str, **options: Any) -> None:
        super().__init__(path, **options)
        self.out: list[tuple[DeviceQueue, Chain]] = []
        self.done = 0
        self.drained: list[int] = []  # requests that were out when the queue was to be stopped
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def queue_enable(self, index: int) -> None:
        pass

    def queue_drain(self, index: int) -> bool:
        self.drained.append(len(self.out))
        return True

    def notified(self, index: int) -> None:
        queue = self.device_queue(index)
        while True:
            self.out += [(queue, chain) for chain in queue.pop_burst()]
            if not queue.enable_notification():
                return

    def work(self) -> None:
        while not self.ended.is_set():
            if not self.out:
                time.sleep(DELAY)
                continue
            queue, chain = self.out[random.randrange(len(self.out))]
            time.sleep(DELAY)
            chain.write(bytes([self.do(chain)]), chain.writable_length - 1)
            with self._control():
                queue.add_used(chain)
                if queue.needs_notification():
                    self.interrupt(queue.index)
                self.out.remove((queue, chain))
            self.done += 1


@pytest.mark.parametrize("options", ["", ",packed=on"], ids=["split", "packed"])
def test_a_guest_that_is_stopped_loses_no_request(options: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(SIZE))
    device = Asynchronous(str(disk))
    path = str(tmp_path / "s")
    try:
        with (
            Server(device, path, protocol=PROTOCOL & ~ProtocolFeature.INFLIGHT_SHMFD) as server,
            Qemu(path, JOB, tmp_path, modules=("virtio_blk",), devices=block(0, path, options)) as guest,
        ):
            stops = 0
            while stops < ROUNDS:
                before = device.done
                wait_for(lambda before=before: device.out and device.done > before + 3, 60)  # type: ignore[misc]
                guest.command("stop")
                assert not device.out
                stops += device.drained[-1] > 0
                guest.command("cont")
            said = guest.finish()
            assert server.error is None
            assert not device.refused
    finally:
        device.ended.set()
        device.thread.join()
    (mine, read), *_ = re.findall(r"SAME (\w{64}) - (\w{64})", said)
    assert mine == read == hashlib.sha256(disk.read_bytes()).hexdigest()
    assert "FAILED" not in said
