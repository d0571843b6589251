"""Pairs of queue ends for the benchmarks, and the running of them on two cores."""

from __future__ import annotations

import os
import threading

from virtio import DeviceQueue, DriverQueue, Feature, GuestMemory, QueueLayout
from virtio.cli.pair import Pair

BASE = 0x10000
TABLES = 0x20000
BUFFERS = 0x40000


def ends(mode: str, *, size: int = 256, features: int = 0, max_indirect: int = 4) -> tuple[DriverQueue, DeviceQueue]:
    """Make both ends of a fresh queue; mode is split, split-in-order, packed, packed-in-order or indirect."""
    memory = GuestMemory.allocate(2 << 20, BASE)
    packed = mode.startswith("packed")
    layout = QueueLayout.packed(size, BASE) if packed else QueueLayout.legacy(size, BASE)
    features |= Feature.RING_PACKED if packed else 0
    features |= Feature.IN_ORDER if mode.endswith("in-order") else 0
    if mode != "indirect":
        return DriverQueue(memory, layout, features=features), DeviceQueue(memory, layout, features=features)
    features |= Feature.INDIRECT_DESC
    driver = DriverQueue(memory, layout, features=features, indirect=TABLES, max_indirect=max_indirect)
    return driver, DeviceQueue(memory, layout, features=features)


def two_cores(pair: Pair, cpus: tuple[int, int] = (0, 1)) -> float:
    """Run a Pair, the driver on this thread and cpus[0], the device on cpus[1]; return nanoseconds a chain."""
    allowed = os.sched_getaffinity(0)
    errors: list[BaseException] = []

    def serve() -> None:
        os.sched_setaffinity(0, {cpus[1]} & allowed or allowed)
        try:
            pair.serve()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        os.sched_setaffinity(0, {cpus[0]} & allowed or allowed)
        taken = pair.drive()
    except BaseException:
        pair.stop()
        thread.join()
        if errors:  # the device's error comes first: the driver's follows from it
            raise errors[0] from None
        raise
    finally:
        os.sched_setaffinity(0, allowed)
    thread.join()
    if errors:
        raise errors[0]
    return taken / pair.count
