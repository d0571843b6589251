"""Initial file systems for Linux guests: busybox, a few programs, kernel modules, and a job to do."""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from peers import need_peer

APPLETS = (
    "sh mount ip ifconfig insmod cat echo sleep poweroff reboot ping sha256sum nc timeout ls grep sed seq head cut dd "
    "test stty sync"
)
INIT = """#!/bin/sh
export PATH=/bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp
for module in $(cat /modules/order); do insmod /modules/$module || echo "cannot load $module"; done
ip link set lo up
there() { [ -e /sys/class/net/eth0 ] || [ -e /sys/block/vda ] || [ -e /dev/vport0p0 ]; }
i=0; while ! there && [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done
. /job
echo GUEST-DONE
poweroff -f
"""


def entry(name: str, content: bytes, mode: int, number: int) -> bytes:
    """One file of a cpio archive, in the format "newc"."""
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An archive of files: name to mode and content; the folders they are in come first."""
    folders = sorted({str(parent) for name in files for parent in Path(name).parents} - {"."})
    parts = [entry(name, b"", 0o040755, i) for i, name in enumerate(folders)]
    parts += [entry(name, content, mode, 1000 + i) for i, (name, (mode, content)) in enumerate(files.items())]
    return b"".join(parts) + entry("TRAILER!!!", b"", 0, 0)


def with_libraries(programs: Iterable[str]) -> dict[str, tuple[int, bytes]]:
    """Programs, in /bin, and the libraries that they are linked with."""
    files = {}
    for program in programs:
        files[f"bin/{Path(program).name}"] = (0o100755, Path(program).read_bytes())
        out = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
        for library in re.findall(r"(/\S+) \(", out):
            files[library[1:]] = (0o100755, Path(library).read_bytes())
    return files


def with_modules(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, bytes]]:
    """Kernel modules out of a /lib/modules/VERSION, and those they need, in /modules; "order" says which comes when."""
    needs = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[Path(path).stem.split(".")[0]] = [path, *rest.split()]
    order: list[str] = []
    files = {}
    for name in names:
        for path in reversed(needs.get(name, [])):  # what is built into the kernel is not there
            module = Path(path).name.removesuffix(".xz")  # Debian 13 compresses them; insmod of busybox may not unpack
            if module not in order:
                order.append(module)
                content = (folder / path).read_bytes()
                files[f"modules/{module}"] = (0o100644, lzma.decompress(content) if path.endswith(".xz") else content)
    files["modules/order"] = (0o100644, "\n".join(order).encode())
    return files


def make(job: str, modules: Path, names: Iterable[str]) -> bytes:
    """The archive of a guest that does ``job``, a shell script, and powers off."""
    busybox = need_peer("busybox", "busybox-static")
    files = {"init": (0o100755, INIT.encode()), "job": (0o100644, job.encode())}
    files["bin/busybox"] = (0o100755, Path(busybox).read_bytes())
    # bash sends datagrams: this busybox's nc does not
    files |= with_libraries([program("ethtool", "ethtool"), need_peer("iperf3", "iperf3"), need_peer("bash", "bash")])
    files |= {f"bin/{name}": (0o120777, b"busybox") for name in APPLETS.split()}
    files |= {f"{name}/.keep": (0o100644, b"") for name in ("dev", "proc", "sys", "tmp")}
    return cpio(files | with_modules(modules, names))


def program(name: str, package: str) -> str:
    """Return where a program is that root alone has in its path."""
    return shutil.which(name, path="/usr/sbin:/sbin") or need_peer(name, package)
