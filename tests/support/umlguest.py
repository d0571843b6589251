"""User-mode Linux as a guest: the real kernel's drivers at a vhost-user socket of ours, with no emulator between."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import initramfs
import pytest
from guestprocess import GuestProcess

from virtio.constants import DeviceType

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "virtio-tests" / "uml"

MODULES = {DeviceType.NET: ("ipv6", "virtio_net"), DeviceType.CONSOLE: ("virtio_console",)}


def kernel() -> tuple[Path, Path]:
    """Return the kernel and its folder of modules: Debian's package, unpacked into a cache, not installed."""
    found = CACHE / "usr/bin/linux.uml"
    if not found.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(
                ["apt-get", "download", "-q", "user-mode-linux"],
                cwd=CACHE, check=True, capture_output=True, timeout=120,
            )  # fmt: skip
            (package,) = CACHE.glob("user-mode-linux_*.deb")
            subprocess.run(["dpkg-deb", "-x", package, CACHE], check=True, capture_output=True, timeout=120)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            reason = f"user-mode Linux is not there: apt-get download user-mode-linux: {error}"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
    (modules,) = (CACHE / "usr/lib/uml/modules").iterdir()
    return found, modules


class Uml(GuestProcess):
    """A guest that runs ``job`` with a device (of ``kind``, a DeviceType) at a socket, and the modules for it."""

    def __init__(
        self,
        sock: str,
        job: str,
        folder: Path,
        memory: int = 192,
        modules: tuple[str, ...] = (),
        kind: int = DeviceType.NET,
    ) -> None:
        program, folder_of_modules = kernel()
        image = folder / f"{Path(sock).name}.initramfs"
        image.write_bytes(initramfs.make(job, folder_of_modules, [*MODULES[kind], *modules]))
        super().__init__(
            [
                *(str(program), f"mem={memory}M", f"initrd={image}", "con=null", "con0=null,fd:1", "ssl=null"),
                *("root=/dev/ram0", "quiet", f"virtio_uml.device={sock}:{kind:d}"),
            ],
            120, cwd=folder, env={**os.environ, "TMPDIR": str(folder)},
        )  # fmt: skip
