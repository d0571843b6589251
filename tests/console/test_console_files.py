"""A console's port joined to files: pseudo-terminals, sockets, pipes, each way, with what does not fit waiting."""

from __future__ import annotations

import os
import socket
import threading

import pytest
from virtcon import Virtcon, attach
from waiting import wait_for

from virtio.console import ConsoleDevice, ConsolePort, FileBridge

TEXT = bytes(range(256)) * 1024


def served(port: ConsolePort) -> Virtcon:
    device = ConsoleDevice(port)
    driver = attach(device)
    driver.console = device  # type: ignore[attr-defined]  # which the port does not keep alive
    return driver


def transmitted(driver: Virtcon, text: bytes) -> None:
    """Send all of it, as the device takes it."""
    queue, out = driver.queues[1].queue, 0
    while text or out:
        while text and queue.nfree:
            chunk, text = text[:1000], text[1000:]
            driver.transmit(chunk)
            out += 1
        out -= driver.sent(1)


@pytest.mark.threads
def test_a_socket_carries_more_than_fits_anywhere() -> None:
    port = ConsolePort(console=True, limit=1000)
    driver = served(port)
    here, there = socket.socketpair()
    got = bytearray()

    def read() -> None:
        while len(got) < len(TEXT):
            got.extend(there.recv(777))

    with here, there, FileBridge(port, here.fileno()) as bridge:
        reader = threading.Thread(target=read)
        reader.start()
        transmitted(driver, TEXT)
        reader.join(30)
        assert bytes(got) == TEXT
        writer = threading.Thread(target=there.sendall, args=(TEXT,))
        writer.start()
        driver.post(0, *[300] * 100)
        came = b""
        while len(came) < len(TEXT):
            fresh = driver.came(0)
            came += b"".join(fresh)
            driver.post(0, *[300] * len(fresh))
        writer.join(30)
        assert came == TEXT
        there.close()  # its end is the end of the input; writing to it ends the bridge
        transmitted(driver, b"x")
        wait_for(lambda: bridge.error is not None)
        assert isinstance(bridge.error, BrokenPipeError)
    assert here.fileno() == -1
    assert port.on_ready is None


@pytest.mark.threads
def test_a_pseudo_terminal_is_opened_again_and_again() -> None:
    port = ConsolePort(console=True, lossy=True)
    driver = served(port)
    driver.post(0, *[64] * 4)
    with FileBridge.pty(port) as bridge:
        for _ in range(2):
            terminal = os.open(bridge.path, os.O_RDWR | os.O_NOCTTY)
            os.write(terminal, b"\x03raw\r")
            wait_for(lambda: port.counters["in_bytes"])
            assert driver.received() == b"\x03raw\r"
            driver.transmit(b"\n\x04back")
            assert os.read(terminal, 64) == b"\n\x04back"
            os.close(terminal)
            assert driver.sent(1) == 1
            port.counters.clear()
        for _ in range(300):  # nobody reads: the kernel keeps some, the port the last, and the guest goes on
            driver.transmit(b"y" * 1000)
            assert driver.sent(1) == 1
        wait_for(lambda: port.counters["dropped_bytes"])
        assert bridge.error is None
    bridge.close()


@pytest.mark.threads
def test_two_pipes_and_the_end_of_one() -> None:
    port = ConsolePort(console=True)
    driver = served(port)
    source, feed = os.pipe()
    drain, target = os.pipe()
    driver.post(0, 64)
    with FileBridge(port, source, target) as bridge:
        assert not os.get_blocking(source)
        os.write(feed, b"last words")
        os.close(feed)
        wait_for(lambda: port.counters["in_bytes"] == 10)
        driver.transmit(b"heard")
        assert os.read(drain, 64) == b"heard"
        assert bridge.error is None
        port.open = False
        port.open = True
        driver.transmit(b"still")
        assert os.read(drain, 64) == b"still"
    assert os.get_blocking(source)
    for fd in (source, drain, target):
        os.close(fd)


def test_a_port_that_has_a_reader_already() -> None:
    with pytest.raises(ValueError, match="on_data"):
        FileBridge(ConsolePort(on_data=print), 0)
    bridge = FileBridge(ConsolePort(), 0)
    bridge.close()  # it was never started
    bridge.close()
