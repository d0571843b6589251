"""A frontend out of its mind: any messages, in any order, with any file descriptors; rings scribbled over.

Whatever it does, the server serves the next, its neighbour notices nothing, and no descriptor stays open.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_vhost_user import Upper, descriptors, exchange, running, wait_for
from vhost_frontend import GPA, SIZE, UADDR, Frontend, layout_of

from virtio import DriverQueue, Feature
from virtio.errors import VhostUserError
from virtio.net import Loopback, NetDevice
from virtio.vhost_user import Server
from virtio.vhost_user.messages import ADDRESS, CONFIG, INFLIGHT, LOG, REGION, STATE, TABLE, U64, Request

EXAMPLES = 20 * int(os.environ.get("VIRTIO_FUZZ_SECONDS", "10")) // 10

small = st.integers(0, 5)
odd = st.one_of(small, st.sampled_from([255, 256, 0x7FFF, 0xFFFF, 1 << 31, (1 << 32) - 1]))
wide = st.one_of(odd, st.sampled_from([GPA, UADDR, UADDR + SIZE - 16, SIZE, 1 << 63, (1 << 64) - 1]))
features = st.sampled_from([0, 1 << 30, 1 << 32, 1 << 30 | 1 << 32, 1 << 32 | 1 << 34, 1 << 26 | 1 << 30 | 1 << 32])
payloads = st.one_of(
    st.binary(max_size=80),
    st.builds(U64.pack, st.one_of(wide, features)),
    st.builds(STATE.pack, odd, odd),
    st.builds(ADDRESS.pack, small, small, wide, wide, wide, wide),
    st.builds(lambda n, regions: TABLE.pack(n, 0) + b"".join(regions), odd,
              st.lists(st.builds(REGION.pack, wide, wide, wide, wide), max_size=3)),
    st.builds(lambda region: bytes(8) + region, st.builds(REGION.pack, wide, wide, wide, wide)),
    st.builds(LOG.pack, wide, wide),
    st.builds(INFLIGHT.pack, wide, small, small, st.sampled_from([0, 1, 64, 0x8000, 0xFFFF])),
    st.builds(lambda o, s, f, data: CONFIG.pack(o, s, f) + data, odd, odd, small, st.binary(max_size=40)),
    st.just(TABLE.pack(1, 0) + REGION.pack(GPA, SIZE, UADDR, 0)),
    st.builds(lambda i: ADDRESS.pack(i, 0, UADDR, UADDR + 0x2000, UADDR + 0x1000, 0), small),
)  # fmt: skip
requests = st.one_of(st.sampled_from(list(Request)), st.integers(0, 60))
kinds = st.lists(st.sampled_from(["memory", "sealable", "eventfd", "null", "folder"]), max_size=3)
messages = st.tuples(requests, payloads, kinds, st.sampled_from([0, 8]))
scribbles = st.tuples(st.integers(0, 0x3000), st.binary(min_size=1, max_size=64))


@dataclass
class Served:
    path: str
    server: Server
    honest: Frontend
    driver: DriverQueue


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("fuzz")
    with ExitStack() as stack:
        device = stack.enter_context(NetDevice(Loopback(queues=2), worker="own", queue_pairs=2))
        server = stack.enter_context(Server(device, folder / "s"))
        stack.enter_context(Server(Upper(), folder / "honest"))
        honest = stack.enter_context(Frontend(str(folder / "honest")))
        found = Served(str(folder / "s"), server, honest, running(honest, False))
        served(found)  # the device keeps the bells of its last frontend until the next comes
        yield found


def open_one(kind: str, frontend: Frontend) -> int:
    if kind == "memory":
        return os.dup(frontend.fd)
    if kind == "sealable":
        fd = os.memfd_create("sealable", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, SIZE)
        return fd
    if kind == "eventfd":
        return os.eventfd(1)
    return os.open("/dev/null" if kind == "null" else "/", os.O_RDONLY)


def served(victim: Served) -> None:
    """The neighbour works, and the next frontend is served."""
    assert exchange(victim.honest, victim.driver, b"here") == b"HERE"
    wait_for(lambda: not victim.server.connected)
    assert victim.server.error is None or isinstance(victim.server.error, VhostUserError), victim.server.error
    with Frontend(victim.path) as frontend:
        assert frontend.ask_u64(Request.GET_QUEUE_NUM) == 2
    wait_for(lambda: not victim.server.connected)


@given(st.lists(messages, min_size=1, max_size=12), st.booleans())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_messages(victim: Served, said: list[tuple[int, bytes, list[str], int]], begun: bool) -> None:
    before = descriptors()
    with Frontend(victim.path) as frontend, suppress(OSError, EOFError, struct.error):
        if begun:  # some way into the usual course
            frontend.negotiate(Feature.VERSION_1)
            frontend.share_memory()
        for request, payload, kinds, flags in said:
            fds = [open_one(kind, frontend) for kind in kinds]
            try:
                frontend.say(request, payload, fds, flags)
            finally:
                for fd in fds:
                    os.close(fd)
        frontend.socket.shutdown(socket.SHUT_WR)
        while frontend.socket.recv(4096):
            pass
    served(victim)
    assert descriptors() <= before


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@given(said=st.lists(scribbles, min_size=1, max_size=8), index=st.integers(0, 3))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rings_of_garbage(victim: Served, packed: bool, said: list[tuple[int, bytes]], index: int) -> None:
    with Frontend(victim.path) as frontend, suppress(OSError, EOFError):
        frontend.negotiate(Feature.VERSION_1 | (Feature.RING_PACKED if packed else 0))
        frontend.share_memory()
        layout = layout_of(0, packed)
        frontend.start(index, layout)
        for at, data in said:
            frontend.memory.write(layout.desc + at, data)
            frontend.kick(index)
        frontend.stop(index)
    served(victim)


def test_the_path_is_free_again(tmp_path: Path) -> None:
    with Server(Upper(), tmp_path / "s"):
        pass
    assert not list(tmp_path.iterdir())
