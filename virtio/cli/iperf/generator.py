"""``virtio iperf`` without network namespaces: a packet generator and a verifying sink in the kernel's place.

Driver, rings and device are the same. What is missing is TCP: nothing is acknowledged, so a row says how many bytes go
through, not what a connection would make of them.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

from virtio.cli.iperf.paths import EVERY_OFFLOAD, Counts, Nic, label
from virtio.cli.iperf.settings import DIRECTIONS, Direction, Settings
from virtio.cli.iperf.traffic import Result, TrafficError
from virtio.net.ports import Generator, Sink

HEADERS = 14 + 20 + 20  # Ethernet, IPv4 and TCP of the generator's frames
FRAME_MAX = 65535 + 14
WARM_UP = 0.1  # seconds


class GeneratorPath:
    """Our driver and our device, between a generator and a sink; a machine of its own for each run."""

    nic = "vtnet"

    def __init__(self, settings: Settings, offloads: bool) -> None:
        self.settings, self.offloads, self.label = settings, offloads, label(offloads)
        self.done = Counts(dict.fromkeys(DIRECTIONS, 0), dict.fromkeys(DIRECTIONS, 0))

    def ports(self) -> tuple[Generator, Sink]:
        """Return a generator, of frames as large as offloads allow, and a sink for them."""
        payload, queues = self.settings.mtu - 40, self.settings.queues
        if self.offloads:
            size = HEADERS + payload * max(1, (FRAME_MAX - HEADERS) // payload)
            source = Generator(size, kind="tcp", gso_size=payload, queues=queues)
        else:
            source = Generator(HEADERS + payload, kind="tcp", queues=queues)
        return source, Sink(queues=queues, offloads=EVERY_OFFLOAD)

    def warm_up(self, direction: Direction) -> Result:
        return self._run(direction, WARM_UP)

    def run(self, direction: Direction) -> Result:
        return self._run(direction, self.settings.seconds)

    def _run(self, direction: Direction, seconds: float) -> Result:
        source, sink = self.ports()
        with ExitStack() as stack:
            guest, host = (source, sink) if direction == "guest-to-host" else (sink, source)
            nic = Nic(self.settings, stack, self.offloads, guest, host)
            begin, before = time.perf_counter(), sink.statistics()
            time.sleep(seconds)
            after, took = sink.statistics(), time.perf_counter() - begin
            nic.stop()
            self.done += nic.counts()
        packets = after["send_packets"] - before["send_packets"]
        if not packets:
            raise TrafficError(f"no frame arrived within {seconds} s")
        faults = sink.faults() | ({"foreign": after["foreign"]} if after["foreign"] else {})
        wrong = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in faults.items())
        return Result(after["send_bytes"] - before["send_bytes"] - HEADERS * packets, took, wrong)

    def counts(self) -> Counts:
        return self.done

    def about(self) -> str:
        return "frames of the packet generator, through driver and device, into a sink that verifies them"

    def details(self) -> str:
        return ""
