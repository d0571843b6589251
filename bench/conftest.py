"""Fixtures of the benchmarks: the machine's facts, a peer beside each figure, and the row of the final table."""

from __future__ import annotations

import os
import statistics
import warnings
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from bench import machine, peers
from bench.__main__ import RATES

ROUNDS = int(os.environ.get("VIRTIO_BENCH_ROUNDS", "7"))


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
def versus(benchmark: Any, facts: dict[str, Any]) -> Callable[..., None]:
    """Run ours and the peer in turn (A B A B ...), each giving nanoseconds a unit; note the row of the table.

    ``unit`` may be that of a rate too; the ratio is one of times in any case: less is better.
    ``bar`` is the largest ratio ours / peer that the project asks of itself, None where it asks nothing.
    """

    def measure(
        row: str, ours: Callable[[], float], peer: Callable[[], float], peer_name: str, *, bar: float | None = None,
        native: Callable[[], float] | None = None, unit: str = "ns",
    ) -> None:  # fmt: skip
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
