"""A frontend out of its mind that begins like a sane one: rings run, frames pass, then anything.

Sequences of mostly valid messages, with descriptors of the right kind and of others; rings with valid chains and with
garbage; files cut short; bells filled and set blocking; ends at any place. Two guests beside it, one that shares its
worker and one at the other end of its cable, exchange frames after each sequence, the next frontend is served, and no
descriptor stays open.

test_vhost_fuzz.py runs it, and so does ``python tests/support/fuzz_vhost.py --seconds 60 --seed 7``. What fails prints
its seed and number: ``--seed 7 --only 123`` repeats it (threads may make it differ), and what was done is printed with
it.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from descriptors import open_files
from fuzz_offloads import CORPUS, HEADER, Mutator, load
from odd_sockets import nested
from vhost_device import Upper
from vhost_frontend import GPA, SIZE, UADDR, Frontend, layout_of
from vhost_guest import Guest, Neighbours
from waiting import wait_for

from virtio import DriverQueue, Feature
from virtio.constants import NetFeature
from virtio.errors import VhostUserError, VirtioError
from virtio.vhost_user import PROTOCOL, Server
from virtio.vhost_user import message as messages
from virtio.vhost_user.message import (
    ADDRESS,
    CONFIG,
    INFLIGHT,
    LOG,
    NEED_REPLY,
    NO_FD,
    REGION,
    STATE,
    TABLE,
    U64,
    ProtocolFeature,
    Request,
)

LOG_ALL, PROTOCOL_FEATURES = 1 << 26, 1 << 30
QUEUES = 5  # of the network device: two pairs, control
LIMIT = 40  # seconds after which one sequence counts as hung
PATIENCE = 2  # seconds that it waits for an answer: after some messages there is none
HALF = SIZE // 2
DATA = GPA + 0x100000
ODD = (0, 1, 2, 3, 4, 5, 63, 64, 65, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 1 << 31, (1 << 32) - 1)
WIDE = (*ODD, GPA, GPA + SIZE - 1, GPA + SIZE, UADDR, UADDR + SIZE - 16, SIZE, 1 << 63, (1 << 64) - 1)
CHANNELS = ("eventfd", "full", "socket", "pipe", "itself", "nested")
KINDS = ("memfd", "small", "sealable", "sealed", "cut", *CHANNELS, "null", "zero", "folder")
NET = (
    NetFeature.CSUM | NetFeature.GUEST_CSUM | NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6 | NetFeature.GUEST_TSO4
    | NetFeature.GUEST_TSO6 | NetFeature.MRG_RXBUF | NetFeature.CTRL_VQ | NetFeature.MQ | NetFeature.HOST_USO
)  # fmt: skip
RINGS = (Feature.INDIRECT_DESC, Feature.EVENT_IDX, Feature.IN_ORDER)
GONE = (OSError, EOFError, struct.error, AssertionError)  # a connection that ended, or an answer that is a refusal


class Player:
    """One connection, from its beginning to its end."""

    def __init__(self, rng: random.Random, net: bool, fuzzer: Fuzzer) -> None:
        self.net = net
        self.rng, self.seen, self.done = rng, fuzzer.seen, fuzzer.done
        self.mutator = Mutator(rng, fuzzer.seeds)
        self.from_far = fuzzer.from_far
        self.frontend = Frontend((fuzzer.neighbours.server if net else fuzzer.upper).path)
        self.frontend.socket.settimeout(PATIENCE)
        self.packed = rng.random() < 0.5
        self.use = self.protocol = 0
        self.drivers: dict[int, DriverQueue] = {}
        self.regions: list[tuple[int, int, int, int]] = []  # guest address, bytes, ours, offset
        self.files = [self.frontend.fd]  # those that can be cut
        self.own: list[int] = []

    def close(self) -> None:
        self.frontend.close()
        for fd in self.own:
            os.close(fd)

    def play(self) -> None:
        """Some way into the usual course, then anything; until the end, or the other side's."""
        rng = self.rng
        try:
            for step in (self.negotiate, self.memory, *[self.start] * rng.choice((0, 1, 1, 2, 3)), self.traffic):
                self.do(step if rng.random() < 0.97 else rng.choice(ANYTHING))
            for _ in range(rng.choice((0, 3, 10, 30))):
                self.do(self.traffic if rng.random() < 0.4 else rng.choice(ANYTHING))
            self.do(rng.choice((self.leave, self.hang_up, self.half_message)))
        except GONE as error:
            self.seen["ended by the other side"] += isinstance(error, OSError | EOFError)

    def do(self, what: Callable[..., None]) -> None:
        what = what if hasattr(what, "__self__") else what.__get__(self)
        self.done.append(what.__name__)
        self.seen[what.__name__] += 1
        what()

    # ---- the usual course ----

    def negotiate(self) -> None:
        want = Feature.VERSION_1 if self.rng.random() < 0.9 else 0
        for bit in RINGS:
            want |= bit if self.rng.random() < 0.5 else 0
        want |= Feature.RING_PACKED if self.packed else 0
        if self.rng.random() < 0.7:
            want |= NET & self.rng.getrandbits(64)
            if self.rng.random() < 0.95:  # what those need
                want |= NetFeature.CSUM | NetFeature.GUEST_CSUM
                want |= NetFeature.CTRL_VQ if want & NetFeature.MQ else 0
        self.protocol = self.rng.choice((0, ProtocolFeature.REPLY_ACK, *[(1 << 17) - 1] * 6))
        self.use = self.frontend.negotiate(want, self.protocol)
        self.packed = bool(self.use & Feature.RING_PACKED)

    def memory(self) -> None:
        """All at once; or in two regions, in a table or one by one."""
        frontend = self.frontend
        self.regions = [(GPA, SIZE, UADDR, 0)]
        if self.rng.random() < 0.3:
            frontend.share_memory()
            return
        if self.rng.random() < 0.3 and not self.drivers and self.protocol & ProtocolFeature.INFLIGHT_SHMFD:
            self.inflight()
        self.regions = [(GPA, HALF, UADDR, 0), (GPA + HALF, HALF, UADDR + HALF, HALF)]
        if self.rng.random() < 0.5 and self.protocol & ProtocolFeature.CONFIGURE_MEM_SLOTS:
            for region in self.regions:
                self.add(region)
            return
        table = TABLE.pack(2, 0) + b"".join(REGION.pack(*region) for region in self.regions)
        frontend.order(Request.SET_MEM_TABLE, table, [frontend.fd, frontend.fd])

    def add(self, region: tuple[int, int, int, int]) -> None:
        self.frontend.order(Request.ADD_MEM_REG, bytes(8) + REGION.pack(*region), [self.frontend.fd])

    def moves(self) -> None:
        """A region goes while rings run, and comes back, or is somewhere else, or in parts; something between."""
        rng = self.rng
        if not self.regions or not self.protocol & ProtocolFeature.CONFIGURE_MEM_SLOTS:
            return
        region = self.regions.pop(rng.randrange(len(self.regions)))
        self.frontend.order(Request.REM_MEM_REG, bytes(8) + REGION.pack(*region))
        self.seen["region moved, rings run"] += bool(self.drivers)
        for _ in range(rng.choice((0, 1, 1, 3))):
            self.do(rng.choice((self.traffic, self.traffic, *ANYTHING)))
        gpa, size, uaddr, offset = region
        if rng.random() < 0.2:
            gpa += 0x1000_0000
        cut = rng.choice((0, 0, 0x8000, 0x10000, size // 2))
        parts = [(gpa, cut, uaddr, offset)] if cut else []
        for part in (*parts, (gpa + cut, size - cut, uaddr + cut, offset + cut)):
            if rng.random() < 0.9:
                self.add(part)
                self.regions.append(part)
        self.traffic()

    def bound_again(self) -> None:
        """A driver that was never unbound sets its rings up again, as user-mode Linux does; it may be another."""
        rng, frontend = self.rng, self.frontend
        if rng.random() < 0.4:
            other = rng.choice((Feature.RING_PACKED, PROTOCOL_FEATURES, *RINGS, NetFeature.MRG_RXBUF))
            self.use ^= int(other) & frontend.ask_u64(Request.GET_FEATURES)
            self.packed = bool(self.use & Feature.RING_PACKED)
            frontend.order(Request.SET_FEATURES, U64.pack(self.use))
        self.seen["bound again, rings run"] += bool(self.drivers)
        for index in self.drivers:
            if rng.random() < 0.9:
                layout = layout_of(index, self.packed, rng.choice((64, 64, 32)))
                if rng.random() < 0.8:
                    frontend.memory.write(layout.desc, bytes(0x8000))
                frontend.start(index, layout, 0x8000 if self.packed and rng.random() < 0.7 else 0)
                self.drivers[index] = frontend.driver(index, layout, self.use & ~LOG_ALL)
        self.traffic()

    def inflight(self) -> None:
        """A file for what is in flight, empty or with anything in it."""
        fd = self.open(self.rng.choice(("memfd", "memfd", "sealable", "zero")))
        if self.rng.random() < 0.2:
            os.write(fd, self.rng.randbytes(300))
        self.frontend.order(Request.SET_INFLIGHT_FD, INFLIGHT.pack(SIZE, 0, QUEUES if self.net else 2, 64), [fd])

    def dirty_log(self) -> None:
        """As in a migration."""
        self.frontend.order(Request.SET_LOG_BASE, LOG.pack(SIZE, 0), [self.open(self.rng.choice(("memfd", "cut")))])
        self.frontend.order(Request.SET_FEATURES, U64.pack(self.use | LOG_ALL))

    def start(self) -> None:
        index = self.rng.choice((0, 1, 0, 1, 2, 3, 4) if self.net else (0, 1))
        for number in (index, index ^ 1 if index < 4 else index):
            if number not in self.drivers:
                layout = layout_of(number, self.packed)
                self.frontend.start(number, layout)
                self.drivers[number] = self.frontend.driver(number, layout, self.use & ~LOG_ALL)
                if self.use & NetFeature.MQ and number >= 2:
                    self.frontend.enable(number, True)

    def stop(self) -> None:
        if self.drivers:
            index = self.rng.choice([*self.drivers])
            self.drivers.pop(index)
            self.frontend.stop(index)

    def traffic(self) -> None:
        """Valid chains on each ring that runs: frames, some in pieces; buffers; commands."""
        rng, memory = self.rng, self.frontend.memory
        if not self.drivers:
            self.start()
        for index, driver in [*self.drivers.items()]:
            with suppress(VirtioError):
                driver.dequeue_burst()
                for i in range(rng.choice((1, 1, 4, 20))):
                    if driver.nfree < 4:
                        break
                    at = DATA + 0x40000 * index + 4096 * i
                    if index == 4:
                        memory.write(at, bytes([rng.randrange(6), rng.randrange(4)]) + rng.randbytes(30))
                        driver.enqueue([(at, rng.randrange(2, 32))], [(at + 64, 1)], cookie=None)
                    elif index & 1:
                        data = bytes(12) + rng.randbytes(60)
                        if rng.random() < 0.5:
                            made = self.mutator.input()
                            data = made[:12] + made[HEADER : HEADER + 3000]
                        memory.write(at, data)
                        cut = rng.randrange(1, len(data))
                        whole = rng.random() < 0.7
                        pieces = [(at, len(data))] if whole else [(at, cut), (at + cut, len(data) - cut)]
                        driver.enqueue(pieces, [], cookie=None)
                    else:
                        driver.enqueue([], [(at, rng.choice((12, 64, 2048, 4096)))], cookie=None)
                driver.notify()
            self.kick(index)
        self.from_far(rng.choice((0, 1, 8)))
        self.sync()

    def kick(self, index: int | None = None) -> None:
        for number, fd in self.frontend.kicks.items():
            if index in (None, number):
                os.set_blocking(fd, False)
                with suppress(BlockingIOError):
                    os.eventfd_write(fd, 1)

    def sync(self) -> None:
        """Wait until what was said is obeyed; ends the connection's part of the game if it has ended."""
        self.frontend.ask_u64(Request.GET_FEATURES)

    # ---- anything ----

    def kick_all(self) -> None:
        self.kick()

    def wide(self) -> int:
        value = self.rng.choice(WIDE) + self.rng.choice((0, 0, 0, 1, -1))
        return value & (1 << 64) - 1

    def odd(self) -> int:
        return self.rng.choice(ODD)

    def payload(self) -> bytes:
        rng, odd, wide = self.rng, self.odd, self.wide
        index = rng.choice((0, 1, 2, 3, 4, 5, 255))
        return rng.choice((
            lambda: rng.randbytes(rng.randrange(80)),
            lambda: U64.pack(rng.choice((wide(), index, index | NO_FD, self.use, self.use ^ 1 << rng.randrange(64)))),
            lambda: STATE.pack(index, rng.choice((odd(), 0, 1, 64, 128, 256))),
            lambda: ADDRESS.pack(index, rng.choice((0, 1)), wide(), wide(), wide(), wide()),
            lambda: ADDRESS.pack(index, 0, UADDR, UADDR + 0x2000, UADDR + 0x1000, 0),
            lambda: TABLE.pack(1, 0) + REGION.pack(GPA, SIZE, UADDR, 0),
            lambda: TABLE.pack(rng.choice((1, 2, 9, odd())), 0) + b"".join(
                REGION.pack(wide(), wide(), wide(), wide()) for _ in range(rng.randrange(4))),
            lambda: bytes(8) + REGION.pack(GPA, rng.choice((SIZE, HALF, wide())), UADDR, rng.choice((0, HALF, 4096))),
            lambda: LOG.pack(rng.choice((1 << 18, wide())), rng.choice((0, 4096, wide()))),
            lambda: INFLIGHT.pack(rng.choice((0, 1 << 17, wide())), rng.choice((0, 64, wide())), rng.randrange(7),
                                  rng.choice((1, 64, 256, 0xFFFF))),
            lambda: CONFIG.pack(odd(), odd(), 0) + rng.randbytes(40),
        ))()  # fmt: skip

    def open(self, kind: str) -> int:
        if kind in ("memfd", "small", "cut", "sealable", "sealed"):
            fd = os.memfd_create(kind, os.MFD_ALLOW_SEALING if kind.startswith("seal") else 0)
            os.ftruncate(fd, 4096 if kind == "small" else SIZE)
            self.files.append(fd)
        elif kind in ("eventfd", "full"):
            fd = os.eventfd((1 << 32) - 1 if kind == "full" else 1)
            if kind == "full":
                os.eventfd_write(fd, (1 << 64) - 2 - ((1 << 32) - 1))
        elif kind == "socket":
            one, other = socket.socketpair()
            fd = one.detach()
            self.own.append(other.detach())
        elif kind == "itself":  # an end of this connection: the other side then holds it
            fd = os.dup(self.frontend.socket.fileno())
        elif kind == "nested":
            fd = nested(self.frontend.socket.fileno())
        elif kind == "pipe":
            other_fd, fd = os.pipe()
            self.own.append(other_fd)
        else:
            fd = os.open({"null": os.devnull, "zero": "/dev/zero", "folder": "/"}[kind],
                         os.O_RDONLY if kind == "folder" else os.O_RDWR)  # fmt: skip
        self.own.append(fd)
        return fd

    def say(self, request: int, payload: bytes, fds: list[int]) -> None:
        """Say it, take what is answered to whatever was said before."""
        self.done[-1] += f" {request} {payload.hex()} {len(fds)}"
        self.frontend.say(request, payload, fds, self.rng.choice((0, 0, NEED_REPLY)))
        if self.rng.random() < 0.2:
            self.cut_memory()
        self.frontend.socket.setblocking(False)
        with suppress(BlockingIOError):
            while self.frontend.socket.recv(4096):
                pass
        self.frontend.socket.settimeout(PATIENCE)

    def message(self) -> None:
        """Any message, with any payload, with any descriptors."""
        fds = [self.open(self.rng.choice(KINDS)) for _ in range(self.rng.choice((0, 0, 0, 1, 1, 1, 2, 3)))]
        known = self.rng.random() < 0.95
        request = self.rng.choice(list(Request)) if known else self.rng.randrange(60)
        self.say(request, self.payload(), fds)

    def near_message(self) -> None:
        """A message that is valid, or nearly."""
        rng = self.rng
        index = rng.choice((*self.drivers, rng.randrange(QUEUES)))
        layout, move = layout_of(index % QUEUES, self.packed), UADDR - GPA
        files = ("memfd", "memfd", "cut", "sealable", "sealed", "small", "zero")
        places = (layout.desc + move, layout.device + move, layout.driver + move)
        off = rng.choice((0, 0, 16, 4096, -64))
        channels = (*["eventfd"] * 4, *CHANNELS)
        request, payload, kind = rng.choice((
            (Request.SET_VRING_CALL, U64.pack(index), rng.choice(channels)),
            (Request.SET_VRING_KICK, U64.pack(index), rng.choice(channels)),
            (Request.SET_VRING_ERR, U64.pack(index), rng.choice(channels)),
            (Request.SET_VRING_KICK, U64.pack(index | NO_FD), ""),
            (Request.SET_VRING_CALL, U64.pack(index | NO_FD), ""),
            (Request.SET_VRING_ENABLE, STATE.pack(index, rng.choice((0, 1))), ""),
            (Request.SET_VRING_NUM, STATE.pack(index, rng.choice((1, 64, 128, 256))), ""),
            (Request.SET_VRING_BASE, STATE.pack(index, rng.choice((0, 1, 64, 0x8000, 0xFFFF))), ""),
            (Request.GET_VRING_BASE, STATE.pack(index, 0), ""),
            (Request.SET_VRING_ADDR, ADDRESS.pack(index, 0, *(place + off for place in places), 0), ""),
            (Request.SET_MEM_TABLE, TABLE.pack(1, 0) + REGION.pack(GPA, SIZE, UADDR, 0), rng.choice(files)),
            (Request.ADD_MEM_REG, bytes(8) + REGION.pack(GPA + SIZE, HALF, UADDR + SIZE, 0), rng.choice(files)),
            (Request.REM_MEM_REG, bytes(8) + REGION.pack(GPA + SIZE, HALF, UADDR + SIZE, 0), ""),
            (Request.REM_MEM_REG, bytes(8) + REGION.pack(GPA, SIZE, UADDR, 0), ""),
            (Request.SET_LOG_BASE, LOG.pack(SIZE, 0), rng.choice(files)),
            (Request.SET_FEATURES, U64.pack(self.use ^ rng.choice((0, LOG_ALL, PROTOCOL_FEATURES, *RINGS))), ""),
            (Request.SET_PROTOCOL_FEATURES, U64.pack(self.protocol & PROTOCOL & rng.getrandbits(17)), ""),
            (Request.SET_OWNER, b"", ""),
            (Request.SET_INFLIGHT_FD, INFLIGHT.pack(1 << 17, 0, rng.randrange(1, 6), 256), rng.choice(files)),
            (Request.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, rng.randrange(1, 6), 256), ""),
            (Request.SET_BACKEND_REQ_FD, b"", rng.choice(channels)),
            (Request.SEND_RARP, U64.pack(rng.getrandbits(48)), ""),
            (Request.NET_SET_MTU, U64.pack(rng.choice((0, 68, 1500, 65536))), ""),
            (Request.SET_CONFIG, CONFIG.pack(0, 6, 0) + rng.randbytes(6), ""),
            (Request.GET_CONFIG, CONFIG.pack(0, 60, 0) + bytes(60), ""),
            (Request.SET_STATUS, U64.pack(rng.choice((0, 1, 3, 11, 15, 128))), ""),
            (Request.RESET_DEVICE, b"", ""),
            (Request.RESET_OWNER, b"", ""),
        ))  # fmt: skip
        self.say(request, payload, [self.open(kind)] if kind else [])
        if kind == "cut":
            os.ftruncate(self.own[-1], rng.choice((0, 4096, HALF)))
        self.seen[request.name] += 1

    def scribble(self) -> None:
        """Anything at all, where the rings are."""
        for _ in range(self.rng.choice((1, 4))):
            at = 0x10000 * self.rng.randrange(QUEUES) + self.rng.randrange(0x800)
            self.frontend.memory.write(GPA + at, self.rng.randbytes(self.rng.choice((1, 2, 8, 64))))
        self.kick()

    def descriptors(self) -> None:
        """Descriptors of the right form with wrong contents, made available."""
        rng, memory = self.rng, self.frontend.memory
        index = rng.choice([*self.drivers, 0, 1])
        layout = layout_of(index, self.packed)
        for i in range(rng.choice((1, 8, 64))):
            address = rng.choice((DATA, DATA + 4096 * i, GPA, GPA + SIZE - 8, layout.desc, self.wide()))
            length = rng.choice((0, 1, 12, 60, 2048, 65536, SIZE, (1 << 32) - 1))
            flags = rng.choice((0, 1, 2, 3, 4, 5, 6, 7))
            if self.packed:
                flags |= rng.choice((0x80, 0x8000, 0x80, 0x8080, 0))
                memory.write(
                    layout.desc + 16 * i, struct.pack("<QIHH", address, length, rng.choice((i, 0xFFFF)), flags)
                )
            else:
                memory.write(layout.desc + 16 * i, struct.pack("<QIHH", address, length, flags, rng.randrange(70)))
        if not self.packed:
            idx = memory.read_u16(layout.driver + 2)
            memory.write(layout.driver + 4, struct.pack("<64H", *(rng.randrange(66) for _ in range(64))))
            memory.write_u16(layout.driver + 2, (idx + rng.choice((1, 1, 3, 64, 65, 0x8000))) & 0xFFFF)
        self.kick()

    def cut_memory(self) -> None:
        """Memory, a log, an inflight file; it may be as long again a moment later."""
        fd = self.rng.choice((self.frontend.fd, *self.files))
        with suppress(OSError):  # sealed
            os.ftruncate(fd, self.rng.choice((0, 0x21000, HALF)))
            if self.rng.random() < 0.3:
                self.kick()
                os.ftruncate(fd, SIZE)
        self.kick()

    def bells(self) -> None:
        """Those that we share: full, blocking, read by us."""
        for fd in [*self.frontend.calls.values(), *self.frontend.kicks.values()]:
            os.set_blocking(fd, False)
            with suppress(BlockingIOError):
                os.eventfd_write(fd, (1 << 64) - 2) if self.rng.random() < 0.5 else os.eventfd_read(fd)
            os.set_blocking(fd, self.rng.random() < 0.5)

    # ---- ends ----

    def leave(self) -> None:
        """Wait for what was said to be done."""
        self.frontend.socket.shutdown(socket.SHUT_WR)
        while self.frontend.socket.recv(4096):
            pass

    def hang_up(self) -> None:
        self.frontend.socket.close()

    def half_message(self) -> None:
        data = messages.HEADER.pack(Request.SET_MEM_TABLE, 1, 40) + bytes(40)
        self.frontend.socket.send(data[: self.rng.randrange(1, len(data))])
        self.leave()


ANYTHING = (
    Player.message, Player.near_message, Player.near_message, Player.near_message, Player.scribble, Player.descriptors,
    Player.descriptors, Player.cut_memory, Player.bells, Player.kick_all, Player.start, Player.stop, Player.memory,
    Player.dirty_log, Player.moves, Player.moves, Player.bound_again,
)  # fmt: skip


class Fuzzer:
    """Servers, guests beside them, and one sequence after the other."""

    def __init__(self, seed: int, stack: ExitStack, folder: Path) -> None:
        self.seed = seed
        self.seen: Counter[str] = Counter()
        self.done: list[str] = []
        self.seeds = [load(path) for path in sorted(CORPUS.glob("*.hex"))]
        self.neighbours = Neighbours(stack, folder)
        self.upper = stack.enter_context(Server(Upper(), folder / "upper"))
        self.descriptors: list[str] = []
        with Guest(self.neighbours.path), Frontend(self.upper.path) as frontend:
            frontend.ask_u64(Request.GET_FEATURES)
        self.settle()

    def from_far(self, count: int) -> None:
        """Frames for the attacker."""
        self.neighbours.far.receive()
        for _ in range(count):
            self.neighbours.far.send(self.neighbours.frame())

    def moved(self) -> tuple[int, int]:
        """Frames that went from and to the attacker."""
        counts = self.neighbours.device.statistics()["port"]
        return counts["send_packets"], counts["receive_packets"]

    def one(self, number: int) -> None:
        """Sequence ``number``."""
        rng = random.Random(f"{self.seed} {number}")
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        net = rng.random() < 0.85
        before = self.moved()
        self.done.clear()
        player = Player(rng, net, self)
        try:
            player.play()
        finally:
            player.close()
        self.seen["ring started"] += bool(player.drivers)
        sent, received = (now - then for now, then in zip(self.moved(), before, strict=True))
        self.seen["frames sent"] += sent > 0
        self.seen["frames received"] += received > 0
        del player
        self.neighbours.exchange(self.neighbours.near, self.neighbours.near, 4)
        self.settle()
        faulthandler.cancel_dump_traceback_later()

    def settle(self) -> None:
        """The connection is over, for no reason of ours; the neighbours live, the next is served, all is closed."""
        for server in (self.neighbours.server, self.upper):
            wait_for(lambda server=server: not server.connected, 30)
            if server.error is not None:
                assert isinstance(server.error, VhostUserError), repr(server.error)
                self.seen["error: " + " ".join(str(server.error).split()[:2])] += 1
                server.error = None
        self.neighbours.check(4)
        gc.collect()
        self.descriptors = self.descriptors or open_files()
        try:
            wait_for(lambda: len(open_files()) <= len(self.descriptors))
        except AssertionError:
            raise AssertionError(f"{self.descriptors} before, {open_files()} now") from None

    def unseen(self) -> list[str]:
        """What the sequences did not do often enough to be worth their name."""
        total = self.seen["sequences"]
        shares = {
            "ring started": 0.6,
            "frames sent": 0.3,
            "frames received": 0.2,
            "near_message": 0.3,
            "cut_memory": 0.1,
            "region moved, rings run": 0.08,
            "bound again, rings run": 0.05,
        }
        # three standard deviations: of a hundred sequences chance alone may leave out some
        rare = [
            f"{name}: {self.seen[name]} of {total}"
            for name, share in shares.items()
            if self.seen[name] < share * total - 3 * (share * total) ** 0.5
        ]
        once = ("error: frontend truncated", "leave", "hang_up", "half_message", "bells", "descriptors", "dirty_log")
        return rare + [f"{name}: never" for name in once if not self.seen[name]]


def plant(what: str, fuzzer: Fuzzer) -> None:
    """Lose a descriptor; keep the worker that two share from working; die of SIGBUS."""
    wait_for.__defaults__ = (1,)  # seconds
    if what == "leak":
        os.dup(0)
    elif what == "hang":
        fuzzer.neighbours.worker.stop()
    else:
        os.kill(os.getpid(), signal.SIGBUS)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0, help="0: --sequences")
    parser.add_argument("--sequences", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--only", type=int, help="the number of one sequence")
    parser.add_argument("--plant", choices=("leak", "hang", "death"), help="an error on purpose, in sequence 5")
    options = parser.parse_args()
    print(f"VIRTIO_SEED={options.seed}", flush=True)
    logging.disable(logging.ERROR)
    begin = shown = time.monotonic()
    done = 0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        fuzzer = Fuzzer(options.seed, stack, Path(folder))
        while time.monotonic() - begin < options.seconds if options.seconds else done < options.sequences:
            number = done if options.only is None else options.only
            print(f"sequence {number}", file=sys.stderr, flush=True)
            try:
                if options.plant and number == 5:
                    plant(options.plant, fuzzer)
                fuzzer.one(number)
            except BaseException:
                traceback.print_exc()
                print(f"--seed {options.seed} --only {number}:", *fuzzer.done, sep="\n", file=sys.stderr, flush=True)
                os._exit(1)  # a guest that hangs shall not hang us
            done += 1
            fuzzer.seen["sequences"] += 1
            if time.monotonic() - shown >= 10:
                shown = time.monotonic()
                print(f"fuzz: {done} sequences in {shown - begin:.0f} s, nothing found", flush=True)
        if options.only is None and done >= 100 and fuzzer.unseen():
            print(f"not often enough: {fuzzer.unseen()}; {dict(fuzzer.seen)}", file=sys.stderr)
            return 1
    print(f"fuzz: {done} sequences, nothing found; {dict(sorted(fuzzer.seen.items()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
