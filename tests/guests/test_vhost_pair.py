"""Two Linux guests, joined by a cable of ours: no kernel of the host's in between."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

from guestwire import FUNCTIONS
from qemuguest import Qemu
from spaces import MACS

from virtio.net import Cable, NetDevice
from virtio.vhost_user import Server

VLAN = "10.78.0"


def lines(number: int, *rest: str) -> str:
    """A guest's job, within a VLAN; what it has to give is in /tmp/x."""
    return "\n".join([
        FUNCTIONS, "echo", "ip link set eth0 up", "ip link add link eth0 name v5 type vlan id 5",
        f"ip addr add {VLAN}.{number}/24 dev v5", "ip link set v5 up",
        "dd if=/dev/urandom of=/tmp/x bs=64k count=32 2>/dev/null", "echo MINE $(sha256sum < /tmp/x)",
        *rest, "sent", "",
    ])  # fmt: skip


def test_streams_within_a_vlan(tmp_path: Path) -> None:
    """Each way, with segmentation left undone from kernel to kernel."""
    # one gives at one port and takes at the other; the other one asks until it is there
    gives = ["nc -l -p 5001 -e cat /tmp/x < /dev/null &", "echo GOT $(nc -l -p 5002 < /dev/null | sha256sum)", "wait"]
    asks = [
        "echo GOT $(until [ -s /tmp/y ]; do sleep 0.1; nc V.1 5001 < /dev/null > /tmp/y; done; sha256sum < /tmp/y)",
        "until nc V.1 5002 -e cat /tmp/x; do sleep 0.1; done",
    ]  # fmt: skip
    with ExitStack() as stack:
        cable = Cable()
        paths, devices = [], []
        for name, end in zip(("one", "other"), cable, strict=True):
            devices.append(stack.enter_context(NetDevice(end, worker="own", mtu=1500)))
            paths.append(str(tmp_path / name))
            stack.enter_context(Server(devices[-1], paths[-1]))
        vlan = ("8021q",)
        one = stack.enter_context(Qemu(paths[0], lines(1, *gives), tmp_path, modules=vlan, device=f",mac={MACS[0]}"))
        job = lines(2, *asks).replace("V.", f"{VLAN}.")
        other = stack.enter_context(Qemu(paths[1], job, tmp_path, modules=vlan, device=f",mac={MACS[1]}"))
        said = [other.finish(), one.finish()]
        mine, got = zip(*(re.findall(r"^(?:MINE|GOT) ([0-9a-f]{64})", text, re.M) for text in said), strict=True)
        assert got == mine[::-1], said
        for device in devices:
            assert device.statistics()["tx0"]["gso"] > 0
            assert not device.refused
