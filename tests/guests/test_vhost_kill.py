"""Our backend, a process of its own, is killed with -9 while a guest's stream runs; and another one takes its place."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from guesthost import Host
from guestprocess import GuestProcess
from guestwire import PINGS, V4_HOST, exchanges, hashes, job
from qemuguest import Qemu
from spaces import namespaces
from umlguest import Uml
from waiting import wait_for

from virtio.vhost_user.listener import somebody_listens

MIDST = 8 << 20  # bytes of a stream of 48 MB after which it happens
Start = Callable[[], "subprocess.Popen[bytes]"]


@contextmanager
def apart(tmp_path: Path) -> Iterator[tuple[str, Host, Start]]:
    """A socket, what is behind it, and what starts a backend between the two."""
    with namespaces(1) as (space,), ExitStack() as stack:
        # an interface that stays when its backend goes
        assert space.popen(["ip", "tuntap", "add", "dev", "tap0", "mode", "tap"]).wait() == 0
        space.add_address("tap0", f"{V4_HOST}/24")
        space.set_link("tap0", up=True)
        path = str(tmp_path / "s")

        def start() -> subprocess.Popen[bytes]:
            words = [sys.executable, "-m", "virtio", "net", f"vhost-user:{path}", "tap:tap0"]
            made: subprocess.Popen[bytes] = space.popen(words, stderr=subprocess.DEVNULL)
            stack.callback(made.wait)
            stack.callback(made.kill)
            return made

        yield path, Host(space, stack, 48 << 20), start


def kill_amid(guest: GuestProcess, host: Host, backend: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while host.out < MIDST:
        assert guest.process.poll() is None and time.monotonic() < end, guest.said()
        time.sleep(0.001)
    backend.kill()
    backend.wait()
    assert host.out < len(host.data)


def test_with_qemu_the_stream_goes_on(tmp_path: Path) -> None:
    """QEMU connects anew, and TCP makes up for what was on its way."""
    with apart(tmp_path) as (path, host, start):
        first = start()
        with Qemu(path, job(f"both 4 {V4_HOST}"), tmp_path) as guest:
            kill_amid(guest, host, first)
            second = start()
            said = guest.finish()
        hashes(said, host, 1)
        assert second.poll() is None


def test_user_mode_linux_loses_its_device_and_a_new_guest_is_served(tmp_path: Path) -> None:
    """It never connects anew: its kernel removes the device, and goes on without."""
    gone = [f"both 4 {V4_HOST} &", "while [ -e /sys/class/net/eth0 ]; do sleep 0.1; done", "echo GONE"]
    with apart(tmp_path) as (path, host, start):
        first = start()
        wait_for(lambda: Path(path).exists() and somebody_listens(path), 60, "no backend")  # user-mode Linux tries once
        with Uml(path, job(*gone), tmp_path) as guest:
            kill_amid(guest, host, first)
            second = start()
            guest.wait_for("GONE")
            guest.finish()
        with Uml(path, job(PINGS[0], f"datagrams {V4_HOST}"), tmp_path) as guest:
            assert "3 packets received, 0% packet loss" in guest.finish()
        exchanges(host, 1)
        assert second.poll() is None
