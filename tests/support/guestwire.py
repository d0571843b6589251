"""A guest's cable: a device of ours between a vhost-user socket and a TAP, and what the guest does with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from guesthost import PATIENCE, SIZE, Host
from spaces import namespaces
from waiting import wait_for

from virtio.net import NetDevice
from virtio.vhost_user import Server

V4, V6 = "10.77.0", "fd77::"
SMALL = 512 << 10  # bytes of a stream of which there are many
OTHER = "02:00:00:00:00:ff"  # nobody's MAC address
FOREIGN = 200  # frames for somebody else: many more than come otherwise meanwhile
V4_HOST, V6_HOST = f"{V4}.1", f"{V6}1"


@contextmanager
def wired(
    tmp_path: Path, *, mtu: int = 1500, size: int = SIZE, **options: Any
) -> Iterator[tuple[str, NetDevice, Host, Server]]:
    with namespaces(1) as (space,), ExitStack() as stack:
        tap = space.tap("tap0", mtu=mtu, queues=options.get("queue_pairs", 1))
        space.add_address("tap0", f"{V4_HOST}/24")
        space.add_address("tap0", f"{V6_HOST}/64")
        space.set_link("tap0", up=True)
        space.settle()
        host = Host(space, stack, size)
        device = stack.enter_context(NetDevice(tap, worker="own", mtu=mtu, **options))
        path = str(tmp_path / "s")
        yield path, device, host, stack.enter_context(Server(device, path))


FUNCTIONS = rf"""
# what was sent has come: a guest that powers off takes with it what is in its sockets (FIN_WAIT1, LAST_ACK, CLOSING)
sent() {{
    for i in $(seq 300); do
        cat /proc/net/tcp /proc/net/tcp6 | grep -q ":138[AB] 0[49B] " || break
        sleep 0.1
    done
}}
# cat writes 64 KB at a time, nc 1 KB: too little at once for segmentation
both() {{ echo GOT $1 $(nc $2 5001 < /dev/null | sha256sum); nc $2 5002 -e cat /tmp/x; echo SENT $1; }}
exchange() {{ nc $1 5003 -e cat; }}
order() {{ nc {V4_HOST} 5004 < /dev/null; }}
datagrams() {{ bash -c "exec 3<> /dev/udp/$1/5005; echo >&3; cat <&3 >&3"; }}
carrier() {{ while [ $(cat /sys/class/net/eth0/carrier) != $1 ]; do sleep 0.1; done; }}
came() {{ cat /sys/class/net/eth0/statistics/rx_packets; }}
count() {{ before=$(came); order; echo CAME $1 $(($(came) - before)); }}
toggle_each() {{
    ethtool -k eth0 | grep -v fixed > /tmp/all
    sed -n 's/^[[:space:]]*\([a-z0-9-]*\): \(on\|off\).*/\1 \2/p' /tmp/all > /tmp/offloads
    while read name before; do
        case $before in on) states="off on";; *) states="on off";; esac
        for state in $states; do
            ethtool -K eth0 $name $state > /dev/null 2>&1
            echo TOGGLED $name $state $(ethtool -k eth0 | grep "^[[:space:]]*$name:")
            both $name-$state {V4_HOST}
        done
    done < /tmp/offloads
}}
"""


def job(*lines: str, mtu: int = 1500, size: int = SIZE) -> str:
    """A guest's job, behind what each begins with."""
    begin = [
        "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad", f"ip link set eth0 mtu {mtu} up",
        f"ip addr add {V4}.2/24 dev eth0",
        f"ip -6 addr add {V6}2/64 dev eth0", "ethtool -i eth0 | head -1",
        f"dd if=/dev/urandom of=/tmp/x bs=64k count={size >> 16} 2>/dev/null",
        "echo MINE $(sha256sum < /tmp/x)",
    ]  # fmt: skip
    return "\n".join((FUNCTIONS, *begin, *lines, "sent")) + "\n"


def hashes(said: str, host: Host, rounds: int) -> None:
    """Every stream of the guest's, either way, is what it was."""
    wait_for(lambda: len(host.taken) >= rounds, PATIENCE, said)
    got = re.findall(r"^GOT \S+ ([0-9a-f]{64})", said, re.M)
    (mine,) = re.findall(r"^MINE ([0-9a-f]{64})", said, re.M)
    assert got == [host.given] * rounds, said
    assert host.taken == [mine] * rounds, said


def exchanges(host: Host, count: int) -> None:
    """So many streams, or trains of datagrams, came back as they were sent."""
    wait_for(lambda: len(host.exchanged) >= count, PATIENCE)
    assert len(host.exchanged) == count
    assert all(sent == came for sent, came in host.exchanged)


def came(said: str) -> dict[str, bool]:
    """Return, for each name that a guest counted under, whether all that are FOREIGN came, or at least half did not."""
    counts = {name: int(count) for name, count in re.findall(r"^CAME (\S+) (\d+)", said, re.M)}
    assert all(count >= FOREIGN or count < FOREIGN // 2 for count in counts.values()), counts
    return {name: count >= FOREIGN for name, count in counts.items()}


PINGS = [f"ping -c 3 -i 0.2 {V4_HOST}", f"ping -6 -c 3 -i 0.2 {V6_HOST}"]


def first_contact(said: str, host: Host, device: NetDevice) -> None:
    """A guest has pinged us by both protocols and moved by each a stream each way, with segmentation left undone, and
    datagrams.
    """
    assert "driver: virtio_net" in said
    assert said.count("3 packets received, 0% packet loss") == 2, said
    hashes(said, host, 2)
    exchanges(host, 2)
    figures = device.statistics()
    assert figures["tx0"]["gso"] > 0
    assert figures["rx0"]["gso"] > 0
    assert figures["tx0"]["dropped"] == {}
    assert not device.refused


FIRST_CONTACT = job(*PINGS, f"both 4 {V4_HOST}", f"both 6 {V6_HOST}", f"datagrams {V4_HOST}", f"datagrams {V6_HOST}")


def toggled(said: str) -> set[str]:
    """Return the offloads that a guest switched, all that it says are not fixed; each was off and on."""
    found = re.findall(r"^TOGGLED (\S+) (\w+) \S+: (\w+)", said, re.M)
    assert all(wanted == state for _, wanted, state in found), found
    names = {name for name, _, _ in found}
    assert len(found) == 2 * len(names)
    assert {(name, state) for name, _, state in found} == {(name, state) for name in names for state in ("on", "off")}
    return names
