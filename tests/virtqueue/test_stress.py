"""Driver and device on a thread each, without the GIL: nothing lost, nothing twice, no wake-up missed.

VIRTIO_STRESS_BUFFERS sets the buffers per test; ``python -m bench.stress`` runs 10^8 with progress.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from virtio import BadIndex, DeviceQueue, DriverQueue, Feature, GuestMemory, QueueLayout, Region
from virtio.cli.pair import Pair

pytestmark = [pytest.mark.threads, pytest.mark.timeout(600)]

BUFFERS = int(os.environ.get("VIRTIO_STRESS_BUFFERS", "20000000"))
BASE, TABLES, DATA = 0x10000, 0x80000, 0x100000

FORMATS = {
    "split": (False, Feature(0)),
    "split-in-order": (False, Feature.IN_ORDER),
    "split-indirect": (False, Feature.INDIRECT_DESC),
    "packed": (True, Feature.RING_PACKED),
    "packed-in-order": (True, Feature.RING_PACKED | Feature.IN_ORDER),
    "packed-indirect": (True, Feature.RING_PACKED | Feature.INDIRECT_DESC),
}


def ends(name: str, size: int, *, event_idx: bool = True) -> tuple[DriverQueue, DeviceQueue]:
    packed, features = FORMATS[name]
    features |= Feature.EVENT_IDX if event_idx else Feature(0)
    memory = GuestMemory.allocate(4 << 20, BASE)
    layout = QueueLayout.packed(size, BASE) if packed else QueueLayout.split(size, BASE)
    tables = {"indirect": TABLES, "max_indirect": 4} if Feature.INDIRECT_DESC in features else {}
    return DriverQueue(memory, layout, features=features, **tables), DeviceQueue(memory, layout, features=features)


def run(pair: Pair) -> None:
    """Run both loops to the end; raise the first error of either."""
    errors: list[BaseException] = []

    def serve() -> None:
        try:
            pair.serve()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        pair.drive()
    except BaseException as error:
        errors.append(error)
        pair.stop()
    thread.join()
    if errors:
        raise errors[0]
    assert pair.returned == pair.count


@pytest.fixture
def eventfds() -> Iterator[dict[str, int]]:
    fds = {"kick": os.eventfd(0, os.EFD_NONBLOCK), "call": os.eventfd(0, os.EFD_NONBLOCK)}
    yield fds
    for fd in fds.values():
        os.close(fd)


@pytest.mark.parametrize("name", ["split", "packed"])
def test_polling_pair_moves_every_byte(name: str) -> None:
    driver, device = ends(name, 256)
    run(Pair(driver, device, count=BUFFERS, batch=32, buffers=DATA, verify=True))
    assert driver.counters()["chains"] == driver.counters()["completions"] == device.counters()["chains"] == BUFFERS
    assert driver.empty
    assert driver.nfree == 256


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("split", "packed")])
def test_polling_pair_of_the_other_kinds(name: str) -> None:
    driver, device = ends(name, 64)
    run(Pair(driver, device, count=BUFFERS // 10, batch=8, buffers=DATA, verify=True))
    assert driver.empty


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("name", FORMATS)
def test_sleeping_pair_loses_no_wake_up(name: str, batch: int, eventfds: dict[str, int]) -> None:
    driver, device = ends(name, 64)
    run(Pair(driver, device, count=BUFFERS // 80, batch=batch, buffers=DATA, verify=True, **eventfds))
    assert driver.counters()["kicks"] > 0


@pytest.mark.parametrize("name", ["split", "packed"])
def test_sleeping_pair_without_event_index(name: str, eventfds: dict[str, int]) -> None:
    driver, device = ends(name, 64, event_idx=False)
    run(Pair(driver, device, count=BUFFERS // 80, batch=4, buffers=DATA, verify=True, **eventfds))


@pytest.mark.parametrize("name", ["split", "packed"])
def test_smallest_rings(name: str, eventfds: dict[str, int]) -> None:
    driver, device = ends(name, 2)
    run(Pair(driver, device, count=max(1, BUFFERS // 1000), batch=1, buffers=DATA, verify=True, **eventfds))


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("name", ["split", "packed"])
def test_the_map_is_replaced_while_both_ends_run(name: str, verify: bool) -> None:
    """One shared file under two maps in turn: queues follow, nothing is lost."""
    packed, features = FORMATS[name]
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 4 << 20)
    memory = GuestMemory([Region.from_fd(BASE, fd, 4 << 20)])
    layout = QueueLayout.packed(256, BASE) if packed else QueueLayout.split(256, BASE)
    driver = DriverQueue(memory, layout, features=features)
    device = DeviceQueue(memory, layout, features=features)
    pair = Pair(driver, device, count=max(1, BUFFERS // 100), batch=16, buffers=DATA, verify=verify)
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            memory.replace([Region.from_fd(BASE, fd, 2 << 20), Region.from_fd(BASE + (2 << 20), fd, 2 << 20, 2 << 20)])
            memory.replace([Region.from_fd(BASE, fd, 4 << 20)])

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        run(pair)
    finally:
        stop.set()
        thread.join()
        os.close(fd)


@pytest.mark.races
def test_a_pair_reports_what_goes_wrong() -> None:
    """The check can fail: a driver that lies about a buffer is found out, and both loops end."""
    driver, device = ends("split", 64)
    memory = driver.memory
    pair = Pair(driver, device, count=1 << 40, batch=8, buffers=DATA, verify=True)
    started = threading.Event()

    def spoil() -> None:
        started.wait()
        while pair.returned < 1000:
            pass
        while not over.is_set():
            memory.write(DATA, os.urandom(64 * 128))

    over = threading.Event()
    thread = threading.Thread(target=spoil)
    thread.start()
    started.set()
    with pytest.raises(RuntimeError, match="wrong data in chain"):
        try:
            run(pair)
        finally:
            over.set()
            thread.join()


@pytest.mark.races
def test_a_pair_stops_when_the_ring_breaks() -> None:
    driver, device = ends("split", 64)
    pair = Pair(driver, device, count=1 << 40, batch=8, buffers=DATA)

    def spoil() -> None:
        while pair.returned < 1000:
            pass
        while device.broken is None and driver.broken is None:
            driver.memory.write_u16(driver.layout.driver + 2, 0x7777)

    thread = threading.Thread(target=spoil)
    thread.start()
    with pytest.raises(BadIndex):
        run(pair)
    thread.join()
