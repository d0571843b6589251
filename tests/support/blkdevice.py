"""A block device (VIRTIO 1.4, 5.2) over a file: as a process, ``blkdevice.py SOCKET FILE DELAY``, over vhost-user.

It does what waits in any order, each request after DELAY seconds. It says a line when it listens, one with the number
of chains that are to be done again when its queue starts, and one for each write that it has done.
"""

from __future__ import annotations

import os
import random
import struct
import sys
import time
from typing import Any

from virtio.constants import DeviceType
from virtio.device import Device
from virtio.vhost_user import Server

SECTOR = 512
HEADER = struct.Struct("<IIQ")  # type, reserved, sector
IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8
OK, IOERR, UNSUPP = 0, 1, 2
SEG_MAX, BLK_SIZE, F_FLUSH = 1 << 2, 1 << 6, 1 << 9


class Blk(Device):
    """One queue; reads, writes, flushes."""

    device_type = DeviceType.BLOCK
    features = Device.features | SEG_MAX | BLK_SIZE | F_FLUSH

    def __init__(self, path: str, delay: float = 0, **options: Any) -> None:
        self.file = os.open(path, os.O_RDWR)
        self.delay = delay
        self.capacity = os.fstat(self.file).st_size // SECTOR
        # capacity, size_max, seg_max, geometry, blk_size
        self.config = bytearray(struct.pack("<QIIII", self.capacity, 0, 62, 0, SECTOR))
        super().__init__(**options)

    def queue_enable(self, index: int) -> None:
        inflight = self.device_queue(index).inflight
        print("again", inflight.waiting if inflight else 0, flush=True)

    def notified(self, index: int) -> None:
        queue = self.device_queue(index)
        while True:
            chains = queue.pop_burst()
            random.shuffle(chains)
            for chain in chains:
                time.sleep(self.delay)
                done = self.do(chain)
                chain.write(bytes([done]), chain.writable_length - 1)
                queue.add_used(chain)
                if queue.needs_notification():
                    self.interrupt(index)
                if chain.readable_length > HEADER.size:
                    print("wrote", flush=True)
            if not queue.enable_notification() and not chains:
                return

    def do(self, chain: Any) -> int:
        """Do what a chain asks; return its status."""
        kind, _, sector = HEADER.unpack(chain.read(0, HEADER.size))
        data = chain.read(HEADER.size)
        room = chain.writable_length - 1
        if kind == FLUSH:
            os.fsync(self.file)
        elif kind == GET_ID:
            chain.write(b"virtio".ljust(room, b"\0")[:room])
        elif kind not in (IN, OUT):
            return UNSUPP
        elif sector + (len(data) + room) // SECTOR > self.capacity:
            return IOERR
        elif kind == IN:
            chain.write(os.pread(self.file, room, sector * SECTOR))
        else:
            os.pwrite(self.file, data, sector * SECTOR)
        return OK


if __name__ == "__main__":
    with Server(Blk(sys.argv[2], float(sys.argv[3])), sys.argv[1]):
        print("here", flush=True)
        sys.stdin.read()
