"""Linux guests with iperf3 in them, and what their network device may be: ours, DPDK's, QEMU's own."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.peers import MissingPeer, need, withhold

sys.path.insert(0, str(Path(__file__).parents[2] / "tests/support"))

from qemuguest import MAC, Qemu
from umlguest import Uml

from virtio.net import Namespace

HOST, GUEST = "10.77.0.1", "10.77.0.2"
KERNEL = "amd64"  # has e1000
SECONDS = 4
RESULT = re.compile(r"([\d.]+) Mbits/sec +receiver")
# a guest's command, by what the guest does
DIRECTIONS = {"sends": "", "receives": " -R"}

Start = Callable[[Namespace, ExitStack, Path], None]


def job(direction: str) -> str:
    return "\n".join((
        "ip link set eth0 up", f"ip addr add {GUEST}/24 dev eth0", f"ping -c 1 -w 5 {HOST}",
        f"iperf3 -c {HOST} -t {SECONDS} -O 1 -f m{DIRECTIONS[direction]}",
    )) + "\n"  # fmt: skip


def until(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} never was")
        time.sleep(0.02)


@contextmanager
def host() -> Iterator[tuple[Namespace, ExitStack, Path]]:
    """Give a namespace with an iperf3 server, what ends with it, and a folder."""
    server = need("iperf3", "iperf3")
    try:
        space = Namespace()
    except OSError as error:
        raise MissingPeer(f"network namespaces: {error}") from None
    with space, ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        space.set_link("lo", up=True)
        start(space, stack, [server, "-s"])
        yield space, stack, Path(folder)


def start(space: Namespace, stack: ExitStack, words: list[str]) -> None:
    """Run a program in a namespace until the stack ends."""
    process = space.popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop() -> None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(stop)


def address(space: Namespace, name: str) -> None:
    until(lambda: name in space.links(), f"the interface {name}")
    space.add_address(name, f"{HOST}/24")
    space.set_link(name, up=True)


def ours(space: Namespace, stack: ExitStack, folder: Path) -> None:
    """`virtio net`, between the socket and a TAP."""
    start(space, stack, [sys.executable, "-m", "virtio", "net", f"vhost-user:{folder}/s", "tap:tap0"])
    until((folder / "s").exists, "the socket")
    address(space, "tap0")


def dpdk(space: Namespace, stack: ExitStack, folder: Path) -> None:
    """testpmd with net_vhost and net_tap, one core; without the control queue that it does not serve."""
    words = [need("dpdk-testpmd", "dpdk-dev"), "--no-pci", "--no-huge", "-m", "512", "-l", "0-1", "--no-telemetry"]
    words += [f"--file-prefix=guests{folder.name}", f"--vdev=net_vhost0,iface={folder}/dpdk,queues=1"]
    words += ["--vdev=net_tap0,iface=tap0", "--", "--forward-mode=io", "--auto-start", "--no-mlockall"]
    start(space, stack, [*words, "--total-num-mbufs=8192", "--nb-cores=1", "--stats-period=60"])
    until((folder / "dpdk").exists, "the socket")
    stack.callback(withhold.between(folder / "s", folder / "dpdk").close)
    address(space, "tap0")


def result(said: str) -> float:
    found = RESULT.search(said)
    if found is None:
        raise RuntimeError(f"no figure of iperf3's: {said[-1500:]}")
    return float(found[1])


def uml(backend: Start, direction: str) -> float:
    """Return Mbit/s of user-mode Linux before a vhost-user backend."""
    with host() as (space, stack, folder):
        backend(space, stack, folder)
        with Uml(str(folder / "s"), job(direction), folder) as guest:
            return result(guest.finish())


def qemu(backend: Start, direction: str) -> float:
    """Return Mbit/s of QEMU's guest before a vhost-user backend."""
    with host() as (space, stack, folder):
        backend(space, stack, folder)
        with Qemu(str(folder / "s"), job(direction), folder, flavour=KERNEL) as guest:
            return result(guest.finish())


def qemu_own(device: str, direction: str) -> float:
    """Return Mbit/s of QEMU's guest with a device of QEMU's and a TAP."""
    with host() as (space, _, folder), space.tap("tap0") as tap:
        address(space, "tap0")
        with Qemu(
            str(folder / "s"), job(direction), folder, flavour=KERNEL, modules=("e1000",), pass_fds=(tap.fileno(),),
            devices=(
                "-netdev", f"tap,id=n0,fd={tap.fileno()},vhost=off",
                "-device", f"{device},netdev=n0,romfile=,mac={MAC}",
            ),
        ) as guest:  # fmt: skip
            return result(guest.finish())
