"""Our network device before DPDK's virtio driver, over vhost-user: every frame comes back, and is what it was.

A generator is behind the device, testpmd sends back what it receives, and the generator verifies it.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from testpmd import LARGE, MODES, TWO_CPUS, Testpmd
from waiting import wait_for

from virtio.event.worker import Worker
from virtio.net import Cable, Generator, Loopback, NetDevice
from virtio.vhost_user import Server

pytestmark = TWO_CPUS


def all_come_back(tmp_path: Path, vdev: str, size: int, count: int, queues: int = 1, **more: Any) -> None:
    source = Generator(size, count=count, queues=queues)
    workers = [Worker() for _ in range(queues)]
    with NetDevice(source, worker=workers, queue_pairs=queues) as device:
        path = str(tmp_path / "s")
        with (
            Server(device, path) as server,
            Testpmd(path, vdev, queues=queues, **more) as testpmd,
            ExitStack() as stack,
        ):
            assert "vectorized path for requirements not met" not in testpmd.text()
            testpmd.forward()
            for worker in workers:  # not before: testpmd sets its port up more than once
                stack.enter_context(worker)
            wait_for(lambda: source.statistics()["send_packets"] == count * queues or device.reason, 30)
            assert (device.reason, list(device.refused), server.error) == (None, [], None)
            counters = testpmd.stop()
            assert counters["RX-packets"] == counters["TX-packets"] == count * queues
            assert source.faults() == {}


@pytest.mark.parametrize("size", [64, 1500])
@pytest.mark.parametrize("mode", MODES)
def test_all_frames_come_back(mode: str, size: int, tmp_path: Path) -> None:
    all_come_back(tmp_path, MODES[mode], size, 100_000)


@pytest.mark.parametrize("mode", ["split", "split-in-order", "packed", "packed-in-order"])
def test_frames_in_several_buffers(mode: str, tmp_path: Path) -> None:
    """9000 bytes: five of testpmd's buffers to receive into, five to send from."""
    all_come_back(tmp_path, MODES[mode], 9000, 20_000, more=LARGE)


@pytest.mark.parametrize("mode", ["split", "packed"])
def test_two_queue_pairs(mode: str, tmp_path: Path) -> None:
    """DPDK serves its control queue itself, so we see MQ without CTRL_VQ."""
    all_come_back(tmp_path, MODES[mode], 1500, 50_000, queues=2)


def test_soak(tmp_path: Path) -> None:
    """Half a minute of frames of all sizes, round and round, by a split and by a packed ring: none is lost or changed.

    VIRTIO_SOAK_SECONDS: as long as that.
    """
    modes = ("split", "packed")
    sources = [Generator([60, 64, 200, 1500, 9000]) for _ in modes]
    workers = [Worker() for _ in modes]
    paths = [str(tmp_path / mode) for mode in modes]
    with ExitStack() as stack:
        devices = [
            stack.enter_context(NetDevice(source, worker=worker))
            for source, worker in zip(sources, workers, strict=True)
        ]
        servers = [stack.enter_context(Server(*each)) for each in zip(devices, paths, strict=True)]
        options = [MODES[mode] for mode in modes]
        more = (*LARGE, "--port-topology=loop")
        with Testpmd(",".join(paths), options, more=more) as testpmd:
            testpmd.forward()
            for worker in workers:
                worker.start()
                stack.callback(worker.stop)
            time.sleep(float(os.environ.get("VIRTIO_SOAK_SECONDS", "30")))
            for source in sources:
                source.stop()
            for source in sources:
                wait_for(lambda now=source.statistics: now()["send_packets"] == now()["receive_packets"], 30)  # type: ignore[misc]
            testpmd.stop()
        for source, device, server in zip(sources, devices, servers, strict=True):
            assert (device.reason, list(device.refused), server.error) == (None, [], None)
            assert source.faults() == {}
            assert source.statistics()["send_packets"] > 100_000


@pytest.mark.parametrize("mode", ["split", "packed"])
def test_ports_stop_and_start_and_frontends_come_and_go(mode: str, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with NetDevice(Loopback(), worker="own") as device, Server(device, path) as server:
        for _ in range(2):
            with Testpmd(path, MODES[mode]) as testpmd:
                for _ in range(3):
                    before = device.statistics().get("tx0", {}).get("frames", 0)
                    testpmd.ask("start tx_first 4", "packets/burst")
                    wait_for(lambda n=before: device.statistics()["tx0"]["frames"] > n + 1000, 30)  # type: ignore[misc]
                    testpmd.stop()
                    testpmd.ask("port stop 0", "Done")
                    testpmd.ask("port start 0", "Done")
            wait_for(lambda: not server.connected, 30)
        assert server.error is None
        assert not device.refused


@pytest.mark.parametrize("mode", ["split", "split-in-order", "packed", "packed-in-order"])
def test_the_backend_comes_again(mode: str, tmp_path: Path) -> None:
    """testpmd listens (server=1): we connect, go, and connect again; it goes on with its rings."""
    path = str(tmp_path / "s")
    first = NetDevice(Loopback(), worker="own")
    second = NetDevice(Loopback(), worker="own")
    server = Server(first, path, client=True).start()  # testpmd waits for us before it is ready
    with Testpmd(path, f"server=1,{MODES[mode]}") as testpmd:
        try:
            testpmd.ask("start tx_first 4", "packets/burst")
            wait_for(lambda: first.live and first.statistics()["tx0"]["frames"] > 1000, 30)
        finally:
            server.close()
            first.close()
        with second, Server(second, path, client=True) as again:
            wait_for(lambda: second.live, 30)
            testpmd.stop()
            testpmd.ask("start tx_first 4", "packets/burst")
            wait_for(lambda: second.statistics()["tx0"]["frames"] > 1000, 30)
            assert again.error is None


def test_two_guests_on_a_cable(tmp_path: Path) -> None:
    """Two of DPDK's ports, in one testpmd, which forwards between them: a frame goes round for ever."""
    cable = Cable()
    paths = [str(tmp_path / name) for name in "ab"]
    with (
        NetDevice(cable.a, worker="own") as a,
        NetDevice(cable.b, worker="own") as b,
        Server(a, paths[0]),
        Server(b, paths[1]),
        Testpmd(",".join(paths)) as testpmd,
    ):
        testpmd.say("set burst tx delay 5 retry 1000000")
        testpmd.ask("set fwd io retry", "forwarding mode")
        testpmd.ask("start tx_first 2", "packets/burst")
        wait_for(lambda: min(d.statistics()["rx0"]["frames"] for d in (a, b)) > 100_000, 30)
        testpmd.stop()
        figures = [d.statistics() for d in (a, b)]
        for one, other in (figures, figures[::-1]):
            assert one["tx0"]["frames"] == other["rx0"]["frames"]
            assert one["tx0"]["dropped"] == one["rx0"]["dropped"] == {}
