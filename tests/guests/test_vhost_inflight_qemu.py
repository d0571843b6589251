"""A block device of ours behind QEMU's vhost-user-blk-pci, whose backend is killed while a Linux guest writes."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from qemuguest import Qemu, block

PROGRAM = Path(__file__).parents[1] / "support" / "blkdevice.py"
SIZE = 4 << 20
DELAY = 0.002  # seconds that a request takes
LIMIT = 160  # seconds, above those of a guest
JOB = f"""
dd if=/dev/urandom of=/tmp/x bs=64k count={SIZE >> 16} 2> /dev/null
echo MINE $(sha256sum < /tmp/x)
for disk in vda vdb; do dd if=/tmp/x of=/dev/$disk bs=64k conv=fsync 2> /dev/null || echo FAILED $disk; done
echo 3 > /proc/sys/vm/drop_caches
for disk in vda vdb; do echo READ $disk $(sha256sum < /dev/$disk); done
"""


class Backend:
    """The process that serves a file at a socket."""

    def __init__(self, path: Path, disk: Path) -> None:
        words = [sys.executable, str(PROGRAM), str(path), str(disk), str(DELAY)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.again = 0  # chains of the backend before it, or some of them
        assert self.line() == "here"

    def line(self) -> str:
        """Return what it says next; nothing if that takes longer than a guest may."""
        assert self.process.stdout is not None
        timer = threading.Timer(LIMIT, self.process.kill)
        timer.start()
        try:
            return self.process.stdout.readline().strip()
        finally:
            timer.cancel()

    def wait_for_writes(self, count: int) -> None:
        """Wait until it has done so many."""
        while count:
            line = self.line()
            if line.startswith("again"):
                self.again = max(self.again, int(line.split()[1]))
            else:
                assert line == "wrote", "the guest wrote no more"
                count -= 1

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_guest_does_not_notice_that_its_disks_are_killed(tmp_path: Path) -> None:
    """One split, one packed; each twice, and more often until a kill met a write that was not done."""
    with ExitStack() as stack:
        disks = {name: tmp_path / name for name in ("split", "packed")}
        for disk in disks.values():
            disk.write_bytes(os.urandom(SIZE))
        backends = {name: Backend(tmp_path / f"{name}.s", disk) for name, disk in disks.items()}
        for name in disks:
            stack.callback(lambda name=name: backends[name].kill())
        devices = [
            word
            for number, name in enumerate(disks)
            for word in block(number, str(tmp_path / f"{name}.s"), ",packed=on" if name == "packed" else "")
        ]
        with Qemu(str(tmp_path / "guest"), JOB, tmp_path, modules=("virtio_blk",), devices=devices) as guest:
            for name, disk in disks.items():
                again = 0
                for kill, count in enumerate((3, 5, 2, 2, 2, 2)):
                    if again and kill >= 2:
                        break
                    backends[name].wait_for_writes(count)
                    again += backends[name].again
                    backends[name].kill()
                    backends[name] = Backend(tmp_path / f"{name}.s", disk)
                assert again  # the second had something to do that the first had begun
            said = guest.finish()
        hashes = dict(re.findall(r"READ (vd.) (\w{64})", said)) | {"mine": re.findall(r"MINE (\w{64})", said)[0]}
        wanted = {hashlib.sha256(disk.read_bytes()).hexdigest() for disk in disks.values()}
        assert wanted == set(hashes.values()), said
        assert len(hashes) == 3
        assert "FAILED" not in said
