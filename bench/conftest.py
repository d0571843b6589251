"""Fixtures of the benchmarks: the machine's facts, a peer beside each figure, and the row of the final table."""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from bench import machine, peers
from bench.__main__ import RATES
from virtio.cli.progress import Progress

ROUNDS = int(os.environ.get("VIRTIO_BENCH_ROUNDS", "7"))


class Rows:
    """Which row of all is measured, on a terminal: "3 of 120, split ring, 64 B, round 2 of 7, 5 s".

    The line changes between rounds only: a thread that rewrites it would take part in what is measured.
    """

    def __init__(self) -> None:
        self.progress = Progress(os.fdopen(os.dup(2), "w"))  # pytest replaces file 2 while a test runs
        self.total = self.number = 0
        self.name = ""
        self.began = 0.0

    def begin(self, name: str) -> None:
        self.number += 1
        self.name, self.began = name, time.monotonic()
        self.say("")

    def say(self, more: str) -> None:
        seconds = time.monotonic() - self.began
        self.progress(f"{self.number} of {self.total}, {self.name}{more}, {seconds:.0f} s")


ROWS = pytest.StashKey[Rows]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = Rows()


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[ROWS].total = len(session.items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    rows = item.config.stash[ROWS]
    rows.begin(item.name)
    try:
        return (yield)
    finally:
        rows.progress("")


@pytest.hookimpl(wrapper=True)
def pytest_report_teststatus(config: pytest.Config) -> Generator[None, Any, Any]:
    """Leave out the letter of each test where a line says more; the summary has what failed."""
    category, letter, word = yield
    return (category, "", word) if config.stash[ROWS].progress.on else (category, letter, word)


def without_peer() -> Generator[None, Any, Any]:
    """Skip a row whose peer cannot be had here; where CI is set it fails, as everything is installed there."""
    try:
        return (yield)
    except peers.MissingPeer as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, Any, Any]:
    return (yield from without_peer())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    return (yield from without_peer())


@pytest.fixture(scope="session")
def facts() -> dict[str, Any]:
    return {**machine.facts(), "pingpong_ns": peers.pingpong()}


@pytest.fixture
def benchmark(benchmark: Any, request: pytest.FixtureRequest) -> Any:
    """The plugin's fixture, whose rounds are said on a terminal."""
    rows, pedantic = request.config.stash[ROWS], benchmark.pedantic

    def told(target: Callable[[], object], *, setup: Callable[[], None] | None = None, rounds: int, **more: Any) -> Any:
        number = -int(more.get("warmup_rounds", 0))

        def before() -> None:
            nonlocal number
            number += 1
            rows.say(f", round {number} of {rounds}" if number > 0 else ", warm-up")
            if setup is not None:
                setup()

        return pedantic(target, setup=before, rounds=rounds, **more)

    benchmark.pedantic = told
    return benchmark


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Warn when something else uses the machine, before or after a benchmark."""
    before = machine.others()
    yield
    for busy in before + machine.others(0.2):
        warnings.warn(f"another process uses this machine: {busy}", stacklevel=1)


@pytest.fixture
def one_core() -> Iterator[int]:
    """Pin this thread to the last core, as the peer will be; give the core's number."""
    allowed = os.sched_getaffinity(0)
    cpu = max(allowed)
    os.sched_setaffinity(0, {cpu})
    yield cpu
    os.sched_setaffinity(0, allowed)


@pytest.fixture
def versus(benchmark: Any, facts: dict[str, Any], request: pytest.FixtureRequest) -> Callable[..., None]:
    """Run ours and the peer in turn (A B A B ...), each giving nanoseconds a unit; note the row of the table.

    ``unit`` may be that of a rate too; the ratio is one of times in any case: less is better.
    ``bar`` is the largest ratio ours / peer that the project asks of itself, None where it asks nothing.
    """

    def measure(
        row: str, ours: Callable[[], float], peer: Callable[[], float], peer_name: str, *, bar: float | None = None,
        native: Callable[[], float] | None = None, unit: str = "ns",
    ) -> None:  # fmt: skip
        request.config.stash[ROWS].name = row
        figures: dict[str, list[float]] = {"ours": [], "peer": [], "native": []}
        ours()  # warm up
        peer()

        def beside() -> None:
            figures["peer"].append(peer())
            if native is not None:
                figures["native"].append(native())

        benchmark.pedantic(lambda: figures["ours"].append(ours()), setup=beside, rounds=ROUNDS)
        ours_ns, peer_ns = statistics.median(figures["ours"]), statistics.median(figures["peer"])
        if unit in RATES:
            ours_ns, peer_ns = 1 / ours_ns, 1 / peer_ns
        benchmark.extra_info.update(
            row=row, unit=unit, peer_name=peer_name, bar=bar, machine=facts,
            ours=figures["ours"], peer=figures["peer"], native=figures["native"], ratio=ours_ns / peer_ns,
            met=None if bar is None else ours_ns / peer_ns <= bar,
        )  # fmt: skip

    return measure
