"""User-mode Linux as a guest: the real kernel's virtio_net at a vhost-user socket of ours, with no emulator between."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import initramfs
import pytest
from guestprocess import GuestProcess

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "virtio-tests" / "uml"


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
    """A guest that runs ``job`` with a network device at a socket; :meth:`finish` returns what it said."""

    def __init__(self, sock: str, job: str, folder: Path, memory: int = 192) -> None:
        program, modules = kernel()
        image = folder / "initramfs"
        image.write_bytes(initramfs.make(job, modules, ["ipv6", "virtio_net"]))
        self.process = subprocess.Popen(
            [
                *("timeout", "-k", "3", "120", str(program), f"mem={memory}M", f"initrd={image}", "con=null"),
                *("con0=null,fd:1", "ssl=null", "root=/dev/ram0", "quiet", f"virtio_uml.device={sock}:1"),
            ],
            process_group=0,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
            env={**os.environ, "TMPDIR": str(folder)},
        )  # fmt: skip

    def finish(self, seconds: float = 90) -> str:
        """Wait for its end; return what it said. AssertionError unless it came to the job's end."""
        try:
            said, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.close()
            raise AssertionError("the guest did not end") from None
        assert "GUEST-DONE" in said, said
        return said
