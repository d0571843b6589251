"""A console whose ports are used by other threads than those that serve it."""

from __future__ import annotations

import threading
import time

import pytest
from formats import FORMATS
from virtcon import ALL, PACKED, attach

from virtio.console import ConsoleDevice, ConsolePort
from virtio.console.control import Event

TEXT = bytes(range(251)) * 800


@pytest.mark.threads
@FORMATS
def test_streams_both_ways_while_ports_come_and_go(packed: bool) -> None:
    """No byte is lost, doubled or out of order, whoever writes, reads, resizes and plugs meanwhile."""
    console = ConsoleDevice(ConsolePort(console=True, limit=3000), ports=["agent"], max_ports=4)
    driver = attach(console, PACKED if packed else int(ALL))
    driver.greet()
    port, got, ended = console.port, bytearray(), threading.Event()
    errors: list[BaseException] = []

    def writes() -> None:
        at = 0
        while at < len(TEXT):
            taken = port.write(TEXT[at : at + 700])
            at += taken
            time.sleep(0 if taken else 0.001)

    def reads() -> None:
        while len(got) < len(TEXT) and not ended.is_set():
            if port.wait(0.1):
                got.extend(port.read(900))

    def disturbs() -> None:
        i = 0
        while not ended.is_set():
            i += 1
            console.resize(1 + i % 100, 80)
            console["agent"].open = bool(i % 2)
            console.remove_port(console.add_port(f"guest {i}"))
            console["agent"].on_data = list if i % 3 else None

    def caught(run: object) -> None:
        try:
            run()  # type: ignore[operator]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=caught, args=(run,)) for run in (writes, reads, disturbs)]
    for thread in threads:
        thread.start()
    try:
        came, text, out, end = b"", TEXT, 0, time.monotonic() + 60
        driver.post(0, *[500] * 50)
        while len(came) < len(TEXT) or text or out:
            assert time.monotonic() < end
            fresh = driver.came(0)
            came += b"".join(fresh)
            driver.post(0, *[500] * len(fresh))
            while text and driver.queues[1].queue.nfree:
                driver.transmit(text[:800])
                text, out = text[800:], out + 1
            out -= driver.sent(1)
            for number, event, *_ in driver.heard(16):
                if event == Event.DEVICE_ADD:
                    driver.say(number, Event.PORT_READY)
            if driver.queues[5].queue.nfree:
                driver.transmit(b"to the agent", 1)
            driver.sent(5)
            time.sleep(0.0005)  # threads that spin keep each other from the interpreter
        threads[1].join(20)
    finally:
        ended.set()
        for thread in threads:
            thread.join(20)
    assert not errors
    assert came == TEXT
    assert bytes(got) == TEXT
    assert set(console.counters) <= {"control"}  # a message about a port that went meanwhile
