"""``virtio demo``: what the rings do, shown."""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from virtio import DeviceQueue, DriverQueue, Feature, GuestMemory, QueueLayout
from virtio.cli.progress import Progress

if TYPE_CHECKING:
    from argparse import _SubParsersAction

BASE, BUFFERS = 0x100000, 0x140000  # guest addresses of the ring and of the buffers
MAX_CHAINS = 10**10


def ends(packed: bool, size: int) -> tuple[DriverQueue, DeviceQueue]:
    """Make both ends of a queue with EVENT_IDX in 1 MiB of guest memory."""
    memory = GuestMemory.allocate(1 << 20, BASE)
    layout = QueueLayout.packed(size, BASE) if packed else QueueLayout.split(size, BASE)
    features = Feature.EVENT_IDX | (Feature.RING_PACKED if packed else Feature(0))
    return DriverQueue(memory, layout, features=features), DeviceQueue(memory, layout, features=features)


def by_hand(packed: bool, say: Any) -> DeviceQueue:
    """Send three messages by the Python calls and show each end's view; return the device end."""
    driver, device = ends(packed, 8)
    memory = driver.memory
    for i, text in enumerate((b"one", b"two", b"three")):
        memory.write(BUFFERS + 64 * i, text)
        driver.enqueue([(BUFFERS + 64 * i, len(text))], [(BUFFERS + 0x1000 + 64 * i, 64)], cookie=text.decode())
    say(f"  driver: 3 chains enqueued; kick the device? {driver.notify()}\n    {driver.explain_notify()}")
    for chain in device.pop_burst():
        chain.write(chain.read().upper())
        device.add_used(chain)
    say(f"  device: 3 chains answered; interrupt the driver? {device.needs_notification()}")
    say(f"    {device.explain_notify()}")
    for i, (cookie, length) in enumerate(driver.dequeue_burst()):
        answer = memory.read(BUFFERS + 0x1000 + 64 * i, length)
        if answer != cookie.upper().encode():
            raise RuntimeError(f"wrong answer {answer!r} to {cookie!r}")
        say(f"    {cookie!r} came back as {answer!r}")
    say("  " + driver.dump().replace("\n", "\n  "))
    return device


def two_threads(packed: bool, chains: int, progress: Progress) -> dict[str, Any]:
    """Run a driver thread and a device thread that sleep on eventfds; every byte is checked. Return the figures."""
    from virtio.cli.pair import Pair

    driver, device = ends(packed, 256)
    kick, call = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    pair = Pair(driver, device, count=chains, batch=32, buffers=BUFFERS, verify=True, kick=kick, call=call)
    errors: list[BaseException] = []

    def guard(loop: Any) -> None:
        try:
            loop()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guard, args=(loop,)) for loop in (pair.serve, pair.drive)]
    start = time.perf_counter()
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            threads[1].join(0.2)
            progress(f"{pair.returned:,} of {chains:,} chains")
    finally:
        pair.stop()
        for thread in threads:
            if thread.is_alive():  # an interrupt may come before it is started
                thread.join()
        os.close(kick)
        os.close(call)
        progress("")
    if errors:
        raise errors[0]
    seconds = time.perf_counter() - start
    drove, served = driver.counters(), device.counters()
    return {
        "format": "packed" if packed else "split",
        "chains": pair.returned,
        "verified": pair.returned == chains,
        "mchains_s": round(pair.returned / seconds / 1e6, 2),
        "kicks": drove["kicks"],
        "kicks_saved": drove["kicks_suppressed"],
        "interrupts": served["calls"],
        "interrupts_saved": served["calls_suppressed"],
    }


def demo(options: argparse.Namespace) -> int:
    def say(text: str) -> None:
        if not options.json:
            print(text)

    # imported before the first line of output: the import of an extension may lose a KeyboardInterrupt
    import virtio.cli.pair  # noqa: F401

    rows = []
    for packed in (False, True):
        name = "packed" if packed else "split"
        say(f"{name} ring, by hand: a driver sends three messages, a device answers each in upper case")
        by_hand(packed, say)
        say("")
    say(f"driver and device on a thread each, sleeping when idle: {options.chains:,} chains, every byte checked")
    for packed in (False, True):
        rows.append(two_threads(packed, options.chains, progress=Progress(quiet=options.json)))
    if options.json:
        print(json.dumps({"rows": rows}))
        return 0
    head = ("format", "chains", "verified", "Mchains/s", "kicks", "saved", "interrupts", "saved")
    lines = [head, *(tuple(f"{v:,}" if type(v) is int else str(v) for v in row.values()) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    return 0


def chains_argument(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_CHAINS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of chains (1 to {MAX_CHAINS})")
    return int(text)


def add_to(commands: _SubParsersAction[Any]) -> None:
    """Add the command to those of ``virtio``."""
    command = commands.add_parser(
        "demo",
        help="a short demonstration of the rings",
        description="Pass chains both ways through rings of both formats and show what happened.",
    )
    command.add_argument("--chains", type=chains_argument, default=1_000_000, help="per format (default %(default)s)")
    command.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    command.set_defaults(run=demo)
