"""QEMU (emulated, without KVM) as the frontend, and Debian's kernel in it as the guest."""

from __future__ import annotations

import functools
import json
import lzma
import os
import re
import socket
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import initramfs
import pytest
from guestprocess import GuestProcess
from peers import need_peer

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "virtio-tests"
# how a kernel is compressed, by its first bytes: Debian 12's cloud kernel by lz4, 13's by zstd; all else is lzma's
UNPACKERS = {b"\x02\x21\x4c\x18": "lz4", b"\x28\xb5\x2f\xfd": "zstd"}
CONSOLE = "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check nokaslr random.trust_cpu=on"
# what a device wrote shows only where the kernel has not just written zeros
CONSOLE += " init_on_alloc=0"
MAC = "52:54:00:11:22:33"
# bytes. Not 256 MB: of memory whose pages are a multiple of 64, QEMU before 9.0 loses track of what an emulated
# processor writes between two looks at its dirty bits, and a guest that is migrated breaks
MEMORY = (256 << 20) - 8192


def uncompressed(image: bytes) -> bytes:
    """The kernel proper out of a bzImage: emulated, unpacking it takes longer than booting it."""
    (setup,) = struct.unpack_from("<B", image, 0x1F1)
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[((setup or 4) + 1) * 512 + offset :][:length]
    if unpacker := UNPACKERS.get(payload[:4]):
        command = [need_peer(unpacker, unpacker), "-dcq"]  # which takes the size at the end for garbage
        kernel = subprocess.run(command, input=payload, capture_output=True, check=False).stdout
    else:
        kernel = lzma.LZMADecompressor().decompress(payload)
    if kernel[:4] != b"\x7fELF":
        raise ValueError(f"no kernel in an image that begins with {payload[:4].hex()}")
    return kernel


def kernel(flavour: str) -> tuple[Path, Path]:
    """Return a kernel of Debian's and its folder of modules, unpacked into a cache: "cloud-amd64", "amd64"."""
    cache = CACHE / flavour
    found = cache / "vmlinux"
    if not found.exists():
        cache.mkdir(parents=True, exist_ok=True)
        try:
            depends = subprocess.run(
                ["apt-cache", "depends", f"linux-image-{flavour}"], check=True, capture_output=True, text=True
            ).stdout
            package = next(line.split()[1] for line in depends.splitlines() if "Depends: linux-image" in line)
            run: dict[str, Any] = {"cwd": cache, "check": True, "capture_output": True, "timeout": 120}
            subprocess.run(["apt-get", "download", "-q", package], **run)
            archive = max(cache.glob("linux-image-*.deb"))
            subprocess.run(["dpkg-deb", "-x", archive, cache], **run)
            if not (cache / "lib").exists():  # Debian 13 has the modules in /usr/lib, where /lib is a link
                (cache / "lib").symlink_to("usr/lib")
            (modules,) = (cache / "lib/modules").iterdir()
            subprocess.run([initramfs.program("depmod", "kmod"), "-b", cache, modules.name], **run)
            (image,) = (cache / "boot").glob("vmlinuz-*")
            found.write_bytes(uncompressed(image.read_bytes()))
        except (OSError, ValueError, StopIteration, lzma.LZMAError, subprocess.SubprocessError) as error:
            reason = f"a kernel for QEMU is not there: apt-get download linux-image-{flavour}: {error}"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
    (modules,) = (cache / "lib/modules").iterdir()
    return found, modules


@functools.cache
def reconnect() -> str:
    """Return the option with which a socket's client tries again each second: QEMU 11 has no longer the old one."""
    command = [need_peer("qemu-system-x86_64", "qemu-system-x86"), "-version"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"version (\d+)\.(\d+)", text)
    assert found, text
    return "reconnect-ms=1000" if (int(found[1]), int(found[2])) >= (9, 2) else "reconnect=1"


def network(sock: str, queues: int, more: str = "") -> list[str]:
    """The words for a network device at a socket, with more properties."""
    return [
        *("-chardev", f"socket,id=c0,path={sock},{reconnect()}"),
        *("-netdev", f"vhost-user,id=n0,chardev=c0,queues={queues}", "-device"),
        f"virtio-net-pci,netdev=n0,romfile=,vectors=0,mac={MAC}{',mq=on' if queues > 1 else ''}{more}",
    ]


def block(number: int, sock: str, more: str) -> list[str]:
    """The words for a block device at a socket, with more properties."""
    return [
        *("-chardev", f"socket,id=b{number},path={sock},{reconnect()}"),
        *("-device", f"vhost-user-blk-pci,chardev=b{number},num-queues=1,vectors=0{more}"),
    ]


class Qemu(GuestProcess):
    """A guest that runs ``job`` with a network device at a socket, ``queues`` pairs; a context manager.

    ``device`` is more options of QEMU's device; ``devices`` are the words for other ones in its place, ``more`` those
    of anything else. ``flavour`` is the kernel's: the one for virtual machines has fewer drivers. A guest that reboots
    ends QEMU, unless ``reboots``. Its memory is a file, :attr:`memory`: once QEMU ends, it is the test's alone.

    No MSI-X (vectors=0): with it, QEMU 7.2 crashes when an emulated guest finds a vhost-user device.
    """

    def __init__(
        self, sock: str, job: str, folder: Path, *, queues: int = 1, modules: tuple[str, ...] = (), device: str = "",
        devices: Sequence[str] = (), flavour: str = "cloud-amd64", reboots: bool = False, more: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> None:  # fmt: skip
        program = need_peer("qemu-system-x86_64", "qemu-system-x86")
        image, folder_of_modules = kernel(flavour)
        initrd = folder / f"{Path(sock).name}.initramfs"
        initrd.write_bytes(initramfs.make(job, folder_of_modules, ["virtio_pci", "virtio_net", *modules]))
        self.monitor = f"{sock}.qmp"
        self.memory = os.memfd_create("guest", 0)
        os.ftruncate(self.memory, MEMORY)
        super().__init__(
            [
                *(program, "-accel", "tcg", "-machine", "pc,memory-backend=m0"),
                *("-cpu", "max", "-m", f"{MEMORY >> 10}K", "-smp", str(queues)),
                *("-nodefaults", "-no-user-config", "-nographic"),
                *("-serial", "stdio", "-monitor", "none", "-kernel", str(image), "-initrd", str(initrd)),
                *([] if reboots else ["-no-reboot"]), "-append", CONSOLE, "-object",
                f"memory-backend-file,id=m0,size={MEMORY >> 10}K,share=on,mem-path=/proc/self/fd/{self.memory}",
                *(devices or network(sock, queues, device)),
                *("-qmp", f"unix:{self.monitor},server=on,wait=off"), *more,
            ],
            150, pass_fds=[self.memory, *pass_fds],
        )  # fmt: skip

    def close(self) -> None:
        super().close()
        if self.memory >= 0:
            os.close(self.memory)
            self.memory = -1

    def command(self, what: str, **arguments: Any) -> Any:
        """Give QEMU itself a command; return its answer."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(20)
            monitor.connect(self.monitor)
            lines = monitor.makefile("rb")
            for order in ({"execute": "qmp_capabilities"}, {"execute": what, "arguments": arguments}):
                monitor.sendall(json.dumps(order).encode() + b"\n")
                while True:
                    answer = json.loads(lines.readline())
                    assert "error" not in answer, answer
                    if "return" in answer:
                        break
            lines.close()
            return answer["return"]
