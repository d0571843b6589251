"""The main job: turns and faults of the measurement, the command's arguments, and the command as a user runs it."""

from __future__ import annotations

import argparse
import socket
import subprocess
from collections.abc import Sequence
from typing import Any

import pytest

from virtio.constants import Feature, NetFeature
from virtio.net import iperf_cli
from virtio.net.iperf import measure
from virtio.net.iperf_paths import Counts, Settings
from virtio.net.iperf_report import DIRECTIONS, Direction
from virtio.net.iperf_traffic import Result, Space, Streams, TrafficError

OTHER: dict[Direction, Direction] = {DIRECTIONS[0]: DIRECTIONS[1], DIRECTIONS[1]: DIRECTIONS[0]}


class Here:
    def socket(self, family: int, kind: int) -> socket.socket:
        return socket.socket(family, kind)

    def popen(self, words: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        return subprocess.Popen(words, **options)


class FakePath:
    """Counts 10 frames of 1000 bytes each time that it is asked, and goes over the loopback interface."""

    def __init__(self, nic: str, offloads: bool, label: str) -> None:
        self.nic, self.offloads, self.label = nic, offloads, label
        pair: tuple[Space, Space] = (Here(), Here())
        self.spaces = dict.fromkeys(DIRECTIONS, pair)
        self.addresses = dict.fromkeys(DIRECTIONS, "127.0.0.1")
        self.asked = 0

    def counts(self) -> Counts:
        self.asked += 1
        n = self.asked
        return Counts(
            {"guest-to-host": 10 * n, "host-to-guest": 3 * n},
            {"guest-to-host": 10_000 * n, "host-to-guest": 200 * n},
            5 * n, 2 * n, n,
        )  # fmt: skip

    def about(self) -> str:
        return "a fake"

    def close(self) -> None: ...


@pytest.fixture
def paths() -> list[FakePath]:
    return [FakePath("vtnet", True, "vtnet"), FakePath("tap-loop", True, "tap-loop")]


def test_paths_take_turns_after_a_warm_up_that_is_not_counted(paths: list[FakePath]) -> None:
    said: list[str] = []
    found = measure(paths, Settings(runs=2, seconds=0.02), said.append)
    assert said == [
        "guest-to-host, vtnet: warm-up", "guest-to-host, tap-loop: warm-up",
        "host-to-guest, vtnet: warm-up", "host-to-guest, tap-loop: warm-up",
        *(f"run {n} of 2, {direction}, {label}" for n in (1, 2) for direction in DIRECTIONS
          for label in ("vtnet", "tap-loop")),
    ]  # fmt: skip
    assert found.faults == []
    assert [(row.nic, row.direction, len(row.mbit_s), row.verified) for row in found.rows] == [
        (nic, direction, 2, True) for direction in DIRECTIONS for nic in ("vtnet", "tap-loop")
    ]
    there, back = found.rows[0], found.rows[2]
    assert (there.packets, there.packets_back, there.frame_bytes) == (20, 6, 20_000)
    assert (back.packets, back.packets_back, back.frame_bytes) == (6, 20, 400)
    assert (there.kicks, there.interrupts, there.copied) == (10, 4, 2)
    assert all(value > 0 for row in found.rows for value in row.mbit_s)


def test_one_direction(paths: list[FakePath]) -> None:
    found = measure(paths[:1], Settings(runs=1, seconds=0.02, directions=("host-to-guest",)), lambda _: None)
    assert [row.direction for row in found.rows] == ["host-to-guest"]


def test_a_path_that_fails_its_warm_up_is_not_run(paths: list[FakePath]) -> None:
    paths[0].addresses["guest-to-host"] = "192.0.2.1"
    found = measure(paths, Settings(runs=2, seconds=0.02), lambda _: None)
    assert [(row.verified, len(row.mbit_s)) for row in found.rows] == [(False, 0), (True, 2), (True, 2), (True, 2)]
    assert len(found.faults) == 1
    assert found.faults[0].startswith("vtnet, guest-to-host: no connection to 192.0.2.1: ")


@pytest.mark.parametrize("name", ["run", "run_hashed"])
def test_wrong_bytes_are_a_fault(paths: list[FakePath], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(Streams, name, lambda *_: Result(1, 1.0, "byte 0 is 0x01, not 0x00"))
    found = measure(paths[:1], Settings(runs=1, seconds=0.02, directions=DIRECTIONS[:1]), lambda _: None)
    assert not found.rows[0].verified
    assert "byte 0 is 0x01, not 0x00" in found.faults[0]
    assert len(found.faults) == 1


def test_a_run_that_fails_does_not_stop_the_others(paths: list[FakePath], monkeypatch: pytest.MonkeyPatch) -> None:
    results = iter([Result(10**6, 1.0), TrafficError("stalled for 10 s"), Result(2 * 10**6, 1.0)])

    def run(*_: Any) -> Result:
        result = next(results)
        if isinstance(result, Result):
            return result
        raise result

    monkeypatch.setattr(Streams, "run", run)
    found = measure(paths[:1], Settings(runs=3, directions=DIRECTIONS[:1]), lambda _: None)
    assert found.rows[0].mbit_s == [8.0, 16.0]
    assert not found.rows[0].verified
    assert found.faults == ["vtnet, guest-to-host: run 2: stalled for 10 s"]


# ---- arguments ----


def parse(*words: str) -> Settings:
    parser = argparse.ArgumentParser()
    iperf_cli.add_to(parser.add_subparsers())
    return iperf_cli.settings(parser.parse_args(["iperf", *words]))


def test_settings_by_default() -> None:
    assert parse() == Settings()


def test_every_option_arrives() -> None:
    words = [
        "--runs", "3", "--seconds", "0.5", "--direction", "host-to-guest", "--rows", "tap-loop,vtnet", "--mtu", "9000",
        "--ipv6", "--queues", "2", "--streams", "4", "--packed", "--queue-size", "512", "--workers", "2",
        "--mode", "busy", "--spin-us", "0", "--iperf3",
    ]  # fmt: skip
    assert parse(*words) == Settings(
        runs=3, seconds=0.5, directions=("host-to-guest",), rows=("vtnet", "tap-loop"), mtu=9000, ipv6=True, queues=2,
        streams=4, packed=True, queue_size=512, workers=2, mode="busy", spin_us=0, iperf3=True,
    )  # fmt: skip
    assert parse("--queues", "3").streams == 3


def test_each_offload_can_be_withheld() -> None:
    N = NetFeature
    assert parse("--no-tso4").withheld == N.HOST_TSO4 | N.GUEST_TSO4 | N.GSO
    assert parse("--no-csum", "--no-indirect").withheld == N.CSUM | N.GUEST_CSUM | Feature.INDIRECT_DESC
    assert parse("--withhold", "EVENT_IDX,GUEST_ECN", "--no-mrg-rxbuf").withheld == (
        Feature.EVENT_IDX | N.GUEST_ECN | N.MRG_RXBUF
    )
    some = parse("--offloads", "csum,uso").withheld
    assert some == (
        N.HOST_TSO4 | N.GUEST_TSO4 | N.HOST_TSO6 | N.GUEST_TSO6 | N.HOST_ECN | N.GUEST_ECN | N.HOST_UFO | N.GUEST_UFO
        | N.GSO
    )  # fmt: skip
    for name, (bits, _) in iperf_cli.SWITCHES.items():
        assert parse(f"--no-{name}").withheld == bits
    assert parse("--offloads", "").withheld & N.CSUM
