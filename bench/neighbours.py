"""What one guest can do to another on the same worker: ``python -m bench.neighbours``, a row for each attack and port.

The neighbour has a loopback behind it, sends a frame now and then, and waits for it; the attacker does its worst on a
port of its own. Their rings are stopped meanwhile, as GET_VRING_BASE does it.

Then both send all they can. A share is the frames done beside the other over the frames done alone. The neighbour sends
64 KB to cut; 0.4 is its due.

The worker has a core, the guests' loops share the others. It runs in slices that are shorter than a second's real-time
budget, so ``chrt -f 40`` may keep the rest of the machine out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from bench.kernels.neighbourbench import Flood, Ping
from virtio import GuestMemory
from virtio.cli.net import SWITCH
from virtio.constants import DeviceType, NetFeature
from virtio.direct import DirectTransport
from virtio.driver import Driver, QueuePlan
from virtio.errors import DoesNotFit, QueueFull
from virtio.event.worker import Worker
from virtio.memory.dma import DmaPool
from virtio.net import Cable, CallPort, Loopback, NetDevice, PcapWriter, Sink, Tap
from virtio.offload import NetHeader, net_header_size

MEMORY = 64 << 20
MAC = bytes.fromhex("020000000001020000000002")
SLICE = 400  # frames of a measurement in one go
REST = 0.1 if os.sched_getscheduler(0) == os.SCHED_OTHER else 0.7  # seconds between two
DEEP = 32768  # descriptors of a ring that is as large as can be


class Guest(Driver):
    """A driver of one queue pair that leaves its rings to others."""

    device_type = DeviceType.NET

    def __init__(self, device: NetDevice, *, segments: int = 0, without: int = 0) -> None:
        memory = GuestMemory.allocate(MEMORY)
        self.segments = segments
        super().__init__(DirectTransport(device, memory), DmaPool(memory, 0, MEMORY), wanted=((1 << 33) - 1) & ~without)
        self.device = device
        self.attach()

    def plan_queues(self) -> Sequence[QueuePlan]:
        return [QueuePlan(i, name, segments=self.segments * (i == 1)) for i, name in enumerate(("rx", "tx", "control"))]

    def place(self, data: bytes, *, align: int = 64) -> int:
        gpa = self.pool.allocate(max(len(data), 1))
        self.memory.write(gpa, data)
        return gpa

    def frame(self, data: bytes, header: NetHeader | None = None) -> bytes:
        return (header or NetHeader()).to_bytes(net_header_size(self.features)) + data

    def flood(self, index: int, chains: Any, **options: Any) -> Flood:
        queue = self.queues[index]
        return Flood(queue.queue, queue.kick, chains, **options)


def tcp_frame(payload: int, gso_size: int) -> tuple[NetHeader, bytes]:
    """Return a frame whose segments are of ``gso_size`` bytes, with the header that says so."""
    length = 20 + 20 + payload
    ip = bytes([0x45, 0]) + length.to_bytes(2, "big") + bytes(4) + bytes([64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2])
    tcp = bytes.fromhex("03e807d00000000000000000501000ff") + bytes(4)
    frame = MAC + b"\x08\x00" + ip + tcp + bytes(payload)
    if not gso_size:
        return NetHeader(), frame
    header = NetHeader(flags=1, gso_type=1, hdr_len=54, gso_size=gso_size, csum_start=34, csum_offset=16)
    return header, frame


def raw_frame(length: int) -> bytes:
    return MAC + b"\x88\xb5" + bytes(length - 14)


# ---- what the attacker does: each starts its threads' work, and returns the floods ----


def whole(guest: Guest, count: int, frame: bytes, header: NetHeader | None = None) -> list[list[tuple[int, int]]]:
    """Return chains of one piece each."""
    data = guest.frame(frame, header)
    return [[(guest.place(data), len(data))] for _ in range(count)]


def cut_small(guest: Guest) -> list[Flood]:
    """Leave frames uncut whose segments have 32 bytes: 2,048 each."""
    header, frame = tcp_frame(32 * 2040, 32)
    return [guest.flood(1, whole(guest, 8, frame, header))]


def cut_usual(guest: Guest) -> list[Flood]:
    header, frame = tcp_frame(1448 * 45, 1448)
    return [guest.flood(1, whole(guest, 8, frame, header))]


def small(guest: Guest) -> list[Flood]:
    return [guest.flood(1, whole(guest, 64, raw_frame(60)))]


def usual(guest: Guest) -> list[Flood]:
    return [guest.flood(1, whole(guest, 64, raw_frame(1514)))]


def large(guest: Guest) -> list[Flood]:
    return [guest.flood(1, whole(guest, 8, raw_frame(65000)))]


def long_chain(guest: Guest) -> list[Flood]:
    """Make one chain of every descriptor of a ring of 32768."""
    gpa = guest.place(bytes(4096))
    return [guest.flood(1, [[(gpa, 2)] * DEEP], pause=5)]


def many_pieces(guest: Guest) -> list[Flood]:
    """Make chains of 512 descriptors."""
    gpa = guest.place(bytes(4096))
    return [guest.flood(1, [[(gpa, 2)] * 512], pause=5)]


def tables(guest: Guest) -> list[Flood]:
    """Make chains of 256 entries in indirect tables."""
    gpa = guest.place(bytes(4096))
    return [guest.flood(1, [[(gpa, 2)] * 256], pause=5)]


def broken_headers(guest: Guest) -> list[Flood]:
    return [guest.flood(1, whole(guest, 64, raw_frame(60), NetHeader(gso_type=77)))]


def dropped(guest: Guest) -> list[Flood]:
    """Send what is too short to be a frame."""
    gpa = guest.place(bytes(64))
    return [guest.flood(1, [[(gpa, 4)]])]


def kicks(guest: Guest) -> list[Flood]:
    """Kick without end, with little to do."""
    return [guest.flood(1, whole(guest, 1, raw_frame(60)), storm=True, pause=5, depth=1)]


def vlans(guest: Guest) -> list[Commands]:
    """Set VLAN filters without end: the control queue."""
    chain = [(guest.place(bytes([2, 0])), 2), (guest.place(b"\x05\x00"), 2)]
    answer = guest.place(b"\xff")
    return [Commands(guest, chain, answer)]


def starved(guest: Guest) -> list[Flood]:
    """Give receive buffers of 13 bytes and a header's."""
    gpa = guest.place(bytes(4096))
    return [guest.flood(0, [[(gpa, 13)]], writable=True, pause=5), *usual(guest)]


class Commands:
    """Sends one command of the control queue, again and again, from Python as the kicks come."""

    def __init__(self, guest: Guest, chain: list[tuple[int, int]], answer: int) -> None:
        self.queue, self.chain, self.answer = guest.queues[2], chain, [(answer, 1)]
        self.stopped = False
        self.done = 0

    def run(self) -> None:
        self.stopped = False
        while not self.stopped:
            with suppress(QueueFull, DoesNotFit):
                self.queue.queue.enqueue(self.chain, self.answer, None)
                self.queue.notify()
            self.done += len(self.queue.queue.dequeue_burst(64))
            time.sleep(20e-6)

    def stop(self) -> None:
        self.stopped = True


# ---- what is behind the attacker ----


@contextmanager
def no_port() -> Iterator[Any]:
    yield Sink(verify=False)


@contextmanager
def checker() -> Iterator[Any]:
    yield Sink()


@contextmanager
def python_port() -> Iterator[Any]:
    yield CallPort(send=lambda frames: None)


@contextmanager
def pcap() -> Iterator[Any]:
    with PcapWriter("/dev/null") as writer:  # a file in memory would take gigabytes
        yield writer


@contextmanager
def tap(vnet_header: bool) -> Iterator[Any]:
    with Tap("nb%d", vnet_header=vnet_header) as port:
        subprocess.run(["ip", "link", "set", port.name, "up"], check=True)
        yield port


@dataclass
class Rig:
    """Two guests on a worker: the neighbour, and the attacker with its port; of a cable, a third at the other end."""

    stack: ExitStack
    worker: Worker
    ping: Ping
    neighbour: Guest
    attacker: Guest
    others: list[Any] = field(default_factory=list)  # floods behind the attacker's port

    @contextmanager
    def busy(self, floods: list[Any]) -> Iterator[None]:
        threads = [threading.Thread(target=flood.run, daemon=True) for flood in floods]
        for thread in threads:
            thread.start()
        time.sleep(0.01)
        try:
            yield
        finally:
            for flood in floods:
                flood.stop()
            for thread in threads:
                thread.join()


@contextmanager
def rig(port: str, *, deep: bool = False, segments: int = 0, neighbour_port: Any = None, cpu: int = 0) -> Iterator[Rig]:
    with ExitStack() as stack:
        worker = Worker(mode="adaptive", cpu=cpu)
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, allowed - {cpu} or allowed)  # threads made from here on are elsewhere
        stack.callback(os.sched_setaffinity, 0, allowed)
        size = DEEP if deep else 256
        others: list[Any] = []
        if port.startswith("cable"):
            cable = Cable()
            behind: Any = cable.a
            other = stack.enter_context(NetDevice(cable.b, worker=worker, queue_size=DEEP))
            takes = Guest(other, without=NetFeature.GUEST_CSUM if port.endswith("cut") else 0)
            buffer = takes.place(bytes(2048))
            if not port.endswith("full"):
                others.append(takes.flood(0, [[(buffer, 2048)]], writable=True))
        else:
            behind = stack.enter_context(PORTS[port]())
        attacker = Guest(stack.enter_context(NetDevice(behind, worker=worker, queue_size=size)), segments=segments)
        # with a port of its own it sends all it can: enough for the time in which the other loops have the CPU
        room = 2048 if neighbour_port else 256
        near = NetDevice(neighbour_port or Loopback(), worker=worker, queue_size=room)
        neighbour = Guest(stack.enter_context(near))
        data = neighbour.frame(raw_frame(60))
        buffers = [(neighbour.place(bytes(2048)), 2048) for _ in range(64)]
        ping = Ping(
            neighbour.queues[1].queue, neighbour.queues[0].queue, neighbour.queues[1].kick, neighbour.queues[0].kick,
            (neighbour.place(data), len(data)), buffers,
        )  # fmt: skip
        worker.start()
        stack.callback(worker.stop)
        yield Rig(stack, worker, ping, neighbour, attacker, others)


ATTACKS: dict[str, tuple[Callable[[Guest], list[Any]], dict[str, Any]]] = {
    "uncut frames, segments of 32 B": (cut_small, {}),
    "uncut frames, segments of 1448 B": (cut_usual, {}),
    "frames of 60 B": (small, {}),
    "frames of 1514 B": (usual, {}),
    "frames of 65000 B": (large, {}),
    "chains of 32768 descriptors": (long_chain, {"deep": True}),
    "chains of 512 descriptors": (many_pieces, {"deep": True}),
    "tables of 256 entries": (tables, {"segments": 256}),
    "headers that cannot be": (broken_headers, {}),
    "frames too short": (dropped, {}),
    "kicks": (kicks, {}),
    "VLAN commands": (vlans, {}),
    "receive buffers of 1 B": (starved, {}),
}
PORTS: dict[str, Callable[[], Any]] = {
    "checker": checker,
    "Python": python_port,
    "pcap": pcap,
    "TAP without header": lambda: tap(False),
    "TAP": lambda: tap(True),
    "loopback": lambda: ExitStack(),
}
CABLES = ("cable", "cable, cut", "cable, full")


@contextmanager
def loopback() -> Iterator[Any]:
    yield Loopback()


PORTS["loopback"] = loopback


def measure(port: str, attack: str | None, *, count: int = 400, stops: int = 10, cpu: int = 0) -> dict[str, Any]:
    """Return what the neighbour sees: round trips and stops, in microseconds."""
    begin, options = ATTACKS[attack] if attack else (lambda guest: [], {})
    with rig(port, cpu=cpu, **options) as made:
        floods = [*made.others, *begin(made.attacker)]
        trips: list[float] = []
        spent: list[float] = []
        own: list[float] = []
        while len(trips) < count:
            with made.busy(floods):
                trips += [each / 1e3 for each in made.ping.run(SLICE, 500)]
            time.sleep(REST)
        for ring, guest in ((spent, made.neighbour), (own, made.attacker)):
            while len(ring) < stops:
                with made.busy(floods):
                    for _ in range(5):
                        time.sleep(0.01)  # the floods fill their rings
                        ring.append(stop(guest))
                time.sleep(REST)
        trips.sort()
    share, own_share = shares(port, attack, cpu=cpu) if attack else (1.0, 1.0)
    return {
        "port": port, "attack": attack or "", "p50": statistics.median(trips), "p99": trips[int(len(trips) * 0.99)],
        "stop": max(spent), "own stop": max(own), "share": share, "own share": own_share,
    }  # fmt: skip


def shares(port: str, attack: str, *, cpu: int = 0, rounds: int = 3, seconds: float = 0.2) -> tuple[float, float]:
    """Return the frames that the neighbour, and the attacker, get done beside the other, over those alone: medians."""
    begin, options = ATTACKS[attack]
    found: list[tuple[float, float]] = []
    with rig(port, cpu=cpu, neighbour_port=Sink(), **options) as made:
        usual, worst = cut_usual(made.neighbour), begin(made.attacker)

        def rates(*floods: list[Any]) -> list[float]:
            with made.busy([*made.others, *(flood for each in floods for flood in each)]):
                start, before = time.perf_counter(), [each[-1].done for each in floods]
                time.sleep(seconds)
                spent = time.perf_counter() - start
                done = [(each[-1].done - was) / spent for each, was in zip(floods, before, strict=True)]
            time.sleep(REST)
            return done

        for _ in range(rounds):
            alone, worst_alone = *rates(usual), *rates(worst)
            both = rates(usual, worst)
            found.append((both[0] / alone, both[1] / worst_alone if worst_alone else 1.0))
    neighbour, attacker = (statistics.median(each) for each in zip(*found, strict=True))
    return neighbour, attacker


def stop(guest: Guest, index: int = 1) -> float:
    """Stop a ring and go on with it, as a vhost-user frontend does; return the microseconds that the stop took."""
    device = guest.device
    queue = device.device_queue(index)
    start = time.perf_counter_ns()
    device.halt_queue(index)
    device.stop_queue(index)
    spent = (time.perf_counter_ns() - start) / 1e3
    device.queues[index].call = guest.queues[index].interrupt or device.queues[index].call
    device.start_queue(index, queue)
    return spent


def main() -> int:
    parser = argparse.ArgumentParser(description="what one guest can do to another on the same worker")
    parser.add_argument("-k", dest="only", default="", help="only rows whose port or attack has this in it")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    sys.setswitchinterval(SWITCH)  # as `virtio net` does
    rows = []
    if not args.json:
        names = "".join(f"{name:>10}" for name in ("p50", "p99", "stop", "own stop"))
        print(f"{'port':20}{'attack':34}{names} us{'share':>8}{'own share':>11}", flush=True)
    for port in (*PORTS, *CABLES):
        for attack in (None, *ATTACKS):
            if args.only not in f"{port}/{attack or 'quiet'}":
                continue
            row = measure(port, attack, count=args.count, stops=args.stops, cpu=max(os.sched_getaffinity(0)))
            rows.append(row)
            if not args.json:
                figures = "".join(f"{row[name]:10.1f}" for name in ("p50", "p99", "stop", "own stop"))
                parts = f"   {row['share']:8.2f}{row['own share']:11.2f}"
                print(f"{port:20}{attack or 'quiet':34}{figures}{parts}", flush=True)
    if args.json:
        print(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
