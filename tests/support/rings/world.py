"""A queue between two ends, and the oracle: what was added must be popped, what was used must be taken, as it was.

Either end can fall asleep as real ones do: it asks for a notification, looks once more, and then does nothing until it
is told. An end that sleeps while there is something for it to do, after the other has decided, is a lost wake-up.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any

from models import packed, split

from virtio import GuestMemory, Postpone, Region

from .ends import DeviceEnd, DriverEnd, ModelDevice, ModelDriver, OurDevice, OurDriver
from .plan import BLOCKS, DATA, DATA_REGIONS, RING, RING_BYTES, Job, Plan, make_job

UNTOUCHED = 0xEE


class World:
    def __init__(self, plan: Plan, our_driver: bool, our_device: bool) -> None:
        self.plan = plan
        self.fd = os.memfd_create("rings")
        os.ftruncate(self.fd, RING_BYTES + sum(DATA_REGIONS))
        self.memory = GuestMemory(self.regions())
        self.serial = 0
        self.blocks = deque(range(BLOCKS))
        self.fresh(plan)
        if plan.start or not our_driver:
            (packed if plan.packed else split).lay_out(self.memory, plan.layout, plan.start)
        else:  # the driver must zero the ring, whatever is there
            for gpa, length in plan.layout.areas:
                self.memory.write(gpa, b"\xa5" * length)
        self.driver: DriverEnd = (OurDriver if our_driver else ModelDriver)(plan, self.memory)
        self.device: DeviceEnd = (OurDevice if our_device else ModelDevice)(plan, self.memory)

    def close(self) -> None:
        os.close(self.fd)

    def regions(self) -> list[Region]:
        """Map the file (again): the same bytes at other host addresses."""
        found = [Region.from_fd(RING, self.fd, RING_BYTES)]
        gpa, offset = DATA, RING_BYTES
        for size in DATA_REGIONS:
            found.append(Region.from_fd(gpa, self.fd, size, offset))
            gpa, offset = gpa + size, offset + size
        return found

    def fresh(self, plan: Plan) -> None:
        """Know of no chain, as after a reset."""
        self.plan = plan
        self.added: deque[Job] = deque()  # made available and not popped
        self.popped: list[tuple[Any, Job]] = []  # with the device's handle, oldest first
        self.used: deque[Job] = deque()  # given back and not taken
        self.driver_sleeps: int | None = None  # asleep until more than so many units wait
        self.device_sleeps = False
        ring: Any = packed.PackedRing if plan.packed else split.SplitRing
        self.kicks, self.calls = (
            ring(self.memory, plan.layout, plan.event_idx, plan.in_order, plan.start) for _ in range(2)
        )

    # ---- what the oracle knows ----

    @property
    def jobs(self) -> list[Job]:
        return [*self.added, *(job for _, job in self.popped), *self.used]

    @property
    def slots(self) -> int:
        return sum(job.slots for job in self.jobs)

    def units(self, jobs: Any) -> int:
        """Event indices count chains in a split ring, slots in a packed one."""
        return sum(job.slots for job in jobs) if self.plan.packed else len(jobs)

    # ---- the driver's deeds ----

    def add(self, shapes: list[tuple[list[int], list[int], int | None]]) -> int:
        """Make chains available: (lengths readable, lengths writable, direct pieces). Returns how many fitted."""
        jobs = []
        for readable, writable, direct in shapes[: len(self.blocks)]:
            jobs.append(make_job(self.serial, self.blocks.popleft(), readable, writable, direct))
            self.serial += 1
        nfree = self.plan.size - self.slots
        left, fits = nfree, 0
        for job in jobs:
            job.slots = self.driver.slots(job)
            left -= job.slots
            if left < 0:
                break
            fits += 1
        for job in jobs:
            at = 0
            for piece in job.pieces:
                part = bytes([UNTOUCHED]) * piece.length if piece.write else job.question[at : at + piece.length]
                self.memory.write(piece.gpa, part)
                at += piece.length
        assert not jobs or self.driver.add(jobs, nfree) == fits
        self.added.extend(jobs[:fits])
        self.kicks.navail += self.units(jobs[:fits])
        self.blocks.extend(job.block for job in jobs[fits:])
        return fits

    def kick(self) -> bool:
        ring = self.kicks
        if self.plan.packed:
            want = ring.wanted(ring.device, ring.navail)
        else:
            want = ring.wanted(ring.avail_event, ring.used, ring.navail)
        want = want or self.driver.forced
        got = self.driver.kick()
        assert got == want, f"kick decision {got}, but the device asked for {want}"
        if got:
            self.device_sleeps = False
        assert not (self.device_sleeps and self.added), "the device sleeps and was not kicked"
        return got

    def take(self, limit: int) -> int:
        assert self.driver_sleeps is None
        got = self.driver.take(limit)
        assert len(got) == min(limit, len(self.used))
        for cookie, length in got:
            job = self.used.popleft()
            assert cookie is job.cookie and length == job.written
            back = b"".join(self.memory.read(piece.gpa, piece.length) for piece in job.writable)
            rest = bytes([UNTOUCHED]) * (len(back) - length)
            assert back == job.answer[:length] + rest
            assert b"".join(self.memory.read(piece.gpa, piece.length) for piece in job.readable) == job.question
            self.blocks.append(job.block)
        return len(got)

    def distance(self, hint: Postpone | None) -> int:
        """How much may wait before an interrupt: FreeBSD's arithmetic, on what is outstanding."""
        waiting = self.units(self.jobs)
        if hint is None:
            return 0
        if hint == Postpone.EMPTIED:
            return max(waiting - 1, 0)  # the last one that can come
        return waiting // 4 if hint == Postpone.SHORT else waiting * 3 // 4

    def driver_sleep(self, hint: Postpone | None) -> None:
        """Ask for an interrupt and look once more; sleep if there is nothing (or not enough) to do."""
        distance = self.distance(hint)
        waits = self.units(self.used) > distance
        assert self.driver.arm(hint, distance) == waits
        self.driver_sleeps = None if waits else distance

    # ---- the device's deeds ----

    def pop(self, limit: int, written: list[int]) -> int:
        """Take chains; ``written`` says, in turn, how much of each to write: 0 none, 1 all, else all but so many."""
        assert not self.device_sleeps
        handles = self.device.pop(limit)
        assert len(handles) == min(limit, len(self.added))
        for k, handle in enumerate(handles):
            job = self.added.popleft()
            how = written[k % len(written)]
            job.written = job.writable_length if how == 1 else max(job.writable_length - how, 0) if how else 0
            self.device.look(handle, job)
            self.popped.append((handle, job))
        return len(handles)

    def use(self, which: list[int], burst: bool) -> None:
        """Give chains back: those at these places, in this order; the oldest ones if IN_ORDER."""
        places = list(dict.fromkeys(place % len(self.popped) for place in which)) if self.popped else []
        if self.plan.in_order:
            places = list(range(len(places)))
        done = [self.popped[place] for place in places]
        self.device.use(done, burst)
        self.popped = [entry for entry in self.popped if all(entry is not gone for gone in done)]
        self.used.extend(job for _, job in done)
        self.calls.nused += self.units([job for _, job in done])

    def call(self) -> bool:
        ring, new = self.calls, self.calls.nused != self.calls.told
        if self.plan.packed:
            want = ring.wanted(ring.driver, ring.nused)
        else:
            want = ring.wanted(ring.used_event, ring.avail, ring.nused)
        want = want or self.device.forced or (new and self.plan.on_empty and not self.popped and not self.added)
        got = self.device.call()
        assert got == want, f"interrupt decision {got}, but the driver asked for {want}"
        if got:
            self.driver_sleeps = None
        assert self.driver_sleeps is None or self.units(self.used) <= self.driver_sleeps, "the driver was not woken"
        return got

    def device_sleep(self) -> None:
        """Ask for a kick and look once more; sleep if there is nothing to do."""
        waits = self.device.arm()
        assert waits == bool(self.added)
        self.device_sleeps = not waits

    # ---- what happens to both ----

    def check(self) -> None:
        self.driver.figures(self.plan, len(self.jobs), self.slots, len(self.used))
        self.device.figures(self.plan, len(self.added), [handle for handle, _ in self.popped])

    def remap(self) -> None:
        """Replace the memory map by another one of the same bytes, while chains are out."""
        self.memory.replace(self.regions())

    def snapshot_driver(self) -> None:
        if isinstance(self.driver, OurDriver):
            self.driver.snapshot()
            self.driver_sleeps = None

    def snapshot_device(self) -> None:
        if isinstance(self.device, OurDevice):
            handles = self.device.snapshot()
            assert len(handles) == len(self.popped)
            for handle, (before, job) in zip(handles, self.popped, strict=True):
                assert (handle.head, handle.written) == (before.head, before.written)
                assert handle.read() == job.question and handle.writable_length == job.writable_length
            self.popped = [(handle, job) for handle, (_, job) in zip(handles, self.popped, strict=True)]
            self.device_sleeps = False

    def reset(self, size: int) -> None:
        """RING_RESET: the queue starts again, with another size, whatever was in flight."""
        plan = self.plan.resized(size)
        cookies = [job.cookie for job in self.jobs]
        self.blocks.extend(job.block for job in self.jobs)
        self.fresh(plan)
        if isinstance(self.driver, OurDriver):
            self.driver.reset(plan, cookies)
        else:
            (packed if plan.packed else split).lay_out(self.memory, plan.layout, 0)
            self.driver = ModelDriver(plan, self.memory)
        if isinstance(self.device, OurDevice):
            self.device.reset(plan)
        else:
            self.device = ModelDevice(plan, self.memory)

    def settle(self, hint: Postpone | None) -> None:
        """Let both ends work on wake-ups alone until nothing is in flight."""
        while self.jobs:
            before = len(self.added), len(self.popped), len(self.used)
            self.kick()
            if not self.device_sleeps:
                self.pop(64, [1, 0, 3])
                self.device_sleep()
            self.use(list(range(len(self.popped))), True)
            self.call()
            if self.driver_sleeps is None:
                self.take(256)
                self.driver_sleep(hint)
            assert before != (len(self.added), len(self.popped), len(self.used)), "the queue stalls"
        self.check()
