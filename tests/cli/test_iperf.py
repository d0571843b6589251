"""The main job: turns and faults of the measurement, the command's arguments, and the command as a user runs it."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence

import pytest

from virtio.cli.iperf import command as iperf_cli
from virtio.cli.iperf.paths import Counts
from virtio.cli.iperf.run import measure
from virtio.cli.iperf.settings import DIRECTIONS, Direction, Settings
from virtio.cli.iperf.traffic import Result, TrafficError
from virtio.cli.progress import Progress
from virtio.constants import Feature, NetFeature


class FakePath:
    """Counts 10 frames of 1000 bytes each time that it is asked; gives what it was told to."""

    def __init__(self, nic: str, results: Sequence[Result | TrafficError] = ()) -> None:
        self.nic, self.offloads, self.label = nic, True, nic
        self.results = iter(results)
        self.asked = 0

    def warm_up(self, direction: Direction) -> Result:
        return self.run(direction)

    def run(self, direction: Direction) -> Result:
        result = next(self.results, Result(10**6, 1.0))
        if isinstance(result, TrafficError):
            raise result
        return result

    def counts(self) -> Counts:
        self.asked += 1
        n = self.asked
        return Counts(
            {"guest-to-host": 10 * n, "host-to-guest": 3 * n},
            {"guest-to-host": 10_000 * n, "host-to-guest": 200 * n},
            5 * n, 2 * n, n, n,
        )  # fmt: skip

    def about(self) -> str:
        return "a fake"

    def details(self) -> str:
        return ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_paths_take_turns_after_a_warm_up_that_is_not_counted() -> None:
    terminal = Terminal()
    found = measure([FakePath("vtnet"), FakePath("tap-loop")], Settings(runs=2), Progress(terminal))
    rows = [f"{direction}, {label}" for direction in DIRECTIONS for label in ("vtnet", "tap-loop")]
    said = [text.rpartition(", ")[0] for text in terminal.getvalue().split("\r\x1b[K") if text]
    assert said == [
        f"  row {place} of 4, {run}: {row}"
        for run in ("warm-up", "run 1 of 2", "run 2 of 2")
        for place, row in enumerate(rows, 1)
    ]
    assert found.faults == []
    assert [(row.nic, row.direction, row.mbit_s, row.verified) for row in found.rows] == [
        (nic, direction, [8.0, 8.0], True) for direction in DIRECTIONS for nic in ("vtnet", "tap-loop")
    ]
    there, back = found.rows[0], found.rows[2]
    assert (there.packets, there.packets_back, there.frame_bytes, there.frame_bytes_back) == (20, 6, 20_000, 400)
    assert (back.packets, back.packets_back, back.frame_bytes, back.frame_bytes_back) == (6, 20, 400, 20_000)
    assert (there.kicks, there.receive_interrupts, there.transmit_interrupts, there.copied) == (10, 4, 2, 2)


def test_one_direction() -> None:
    found = measure([FakePath("vtnet")], Settings(runs=1, directions=("host-to-guest",)), Progress(io.StringIO()))
    assert [row.direction for row in found.rows] == ["host-to-guest"]


def test_a_path_that_fails_its_warm_up_is_not_run() -> None:
    paths = [FakePath("vtnet", [TrafficError("no connection to 10.77.0.2: timed out")]), FakePath("tap-loop")]
    found = measure(paths, Settings(runs=2), Progress(io.StringIO()))
    assert [(row.verified, len(row.mbit_s)) for row in found.rows] == [(False, 0), (True, 2), (True, 2), (True, 2)]
    assert found.faults == ["vtnet, guest-to-host: no connection to 10.77.0.2: timed out"]


@pytest.mark.parametrize("number", [0, 2])
def test_wrong_bytes_are_a_fault(number: int) -> None:
    results: list[Result | TrafficError] = [Result(10**6, 1.0)] * number
    results += [Result(10**6, 1.0, "byte 0 is 0x01, not 0x00")]
    found = measure([FakePath("vtnet", results)], Settings(runs=3, directions=DIRECTIONS[:1]), Progress(io.StringIO()))
    assert not found.rows[0].verified
    where = f"run {number}: " if number else ""
    assert found.faults == [f"vtnet, guest-to-host: {where}byte 0 is 0x01, not 0x00"]
    assert len(found.rows[0].mbit_s) == (3 if number else 0)


def test_a_run_that_fails_does_not_stop_the_others() -> None:
    results: list[Result | TrafficError]
    results = [Result(1, 1.0), Result(10**6, 1.0), TrafficError("stalled for 10 s"), Result(2 * 10**6, 1.0)]
    found = measure([FakePath("vtnet", results)], Settings(runs=3, directions=DIRECTIONS[:1]), Progress(io.StringIO()))
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
        "--mode", "busy", "--spin-us", "0", "--iperf3", "--generator", "-v",
    ]  # fmt: skip
    assert parse(*words) == Settings(
        runs=3, seconds=0.5, directions=("host-to-guest",), rows=("vtnet", "tap-loop"), mtu=9000, ipv6=True, queues=2,
        streams=4, packed=True, queue_size=512, workers=2, mode="busy", spin_us=0, iperf3=True, generator=True,
        verbose=True,
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


@pytest.mark.parametrize("words", [("--rows", ","), ("--rows", ""), ("--offloads", ",")])
def test_lists_of_nothing(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(*words)
    assert f"{words[1]!r} names none of" in capsys.readouterr().err
