"""Each rule of a ring that a hostile driver can break, and what a device says to it."""

from __future__ import annotations

from collections.abc import Callable

from rawring import BASE, DATA, INDIRECT, NEXT, SIZE, TABLE, TOP, WRITE, RawRing

from virtio import BadDescriptor, ChainLoop, ChainTooLong, MemoryFault, VirtioError

HUGE = 0xFFFFFFFF


def loop(ring: RawRing) -> None:
    ring.desc(1, DATA, 8, NEXT, 2)
    ring.desc(2, DATA, 8, NEXT, 1)


def self_loop(ring: RawRing) -> None:
    ring.desc(1, DATA, 8, NEXT, 1)


def next_out_of_range(ring: RawRing) -> None:
    ring.desc(1, DATA, 8, NEXT, SIZE)


def table_loop(ring: RawRing) -> None:
    ring.desc(1, TABLE, 32, INDIRECT, 1)
    ring.entry(0, DATA, 8, NEXT, 1)
    ring.entry(1, DATA, 8, NEXT, 0)


def table_next_out_of_range(ring: RawRing) -> None:
    ring.desc(1, TABLE, 32, INDIRECT, 1)
    ring.entry(0, DATA, 8, NEXT, 2)


def nested(ring: RawRing) -> None:
    ring.desc(1, TABLE, 32, INDIRECT, 1)
    ring.entry(0, DATA, 8, NEXT, 1)
    ring.entry(1, TABLE, 16, INDIRECT)


def indirect_with_next(ring: RawRing) -> None:
    ring.desc(1, TABLE, 16, INDIRECT | NEXT, 2)
    ring.entry(0, DATA, 8)
    ring.desc(2, DATA, 8, 0, 1)


def empty_table(ring: RawRing) -> None:
    ring.desc(1, TABLE, 0, INDIRECT, 1)


def odd_table(ring: RawRing) -> None:
    ring.desc(1, TABLE, 24, INDIRECT, 1)


def long_table(ring: RawRing) -> None:
    ring.desc(1, TABLE, 16 * (SIZE + 1), INDIRECT, 1)


def table_outside(ring: RawRing) -> None:
    ring.desc(1, TOP, 16, INDIRECT, 1)


def table_overflow(ring: RawRing) -> None:
    ring.desc(1, (1 << 64) - 16, 32, INDIRECT, 1)


def table_half_outside(ring: RawRing) -> None:
    ring.desc(1, TOP - 16, 32, INDIRECT, 1)
    ring.memory.write(TOP - 16, DATA.to_bytes(8, "little") + (8).to_bytes(4, "little") + b"\x01\x00\x01\x00")


def outside(ring: RawRing) -> None:
    ring.desc(1, TOP, 8, 0, 1)


def half_outside(ring: RawRing) -> None:
    ring.desc(1, TOP - 8, 9, 0, 1)


def below(ring: RawRing) -> None:
    ring.desc(1, BASE - 1, 2, 0, 1)


def overflow(ring: RawRing) -> None:
    ring.desc(1, (1 << 64) - 8, 16, 0, 1)


def last_address(ring: RawRing) -> None:
    ring.desc(1, (1 << 64) - 1, HUGE, WRITE, 1)


def read_after_write(ring: RawRing) -> None:
    ring.desc(1, DATA, 8, WRITE | NEXT, 2)
    ring.desc(2, DATA, 8, 0, 1)


def zero_length(ring: RawRing) -> None:
    ring.desc(1, DATA, 0, 0, 1)


def zero_length_later(ring: RawRing) -> None:
    ring.desc(1, DATA, 8, NEXT, 2)
    ring.desc(2, DATA, 0, WRITE, 1)


def long_chain_in_table(ring: RawRing) -> None:
    """Direct descriptors and a table, together more than the queue size."""
    for i in range(1, 4):
        ring.desc(i, DATA, 8, NEXT, i + 1)
    ring.desc(4, TABLE, 16 * SIZE, INDIRECT, 1)
    for i in range(SIZE):
        ring.entry(i, DATA, 8, NEXT if i + 1 < SIZE else 0, i + 1)


CASES: list[tuple[Callable[[RawRing], None], type[VirtioError], type[VirtioError] | None, str]] = [
    # what, the error in a split ring, in a packed ring (None: it means nothing there), words of the message
    (loop, ChainLoop, None, "9 descriptors walked (table size 8)|8"),
    (self_loop, ChainLoop, None, "table size 8|8"),
    (next_out_of_range, BadDescriptor, None, "8 out of range (table size 8)"),
    (table_loop, ChainLoop, None, "table size 2"),
    (table_next_out_of_range, BadDescriptor, None, "2 out of range (table size 2)"),
    (nested, BadDescriptor, BadDescriptor, "entry 1 of an indirect table is indirect"),
    (indirect_with_next, BadDescriptor, BadDescriptor, "both INDIRECT and NEXT"),
    (empty_table, BadDescriptor, BadDescriptor, "table of 0 bytes (16 to 128"),
    (odd_table, BadDescriptor, BadDescriptor, "table of 24 bytes (16 to 128"),
    (long_table, BadDescriptor, BadDescriptor, "table of 144 bytes (16 to 128"),
    (table_outside, MemoryFault, MemoryFault, hex(TOP)),
    (table_overflow, MemoryFault, MemoryFault, hex((1 << 64) - 16)),
    (table_half_outside, MemoryFault, MemoryFault, hex(TOP)),
    (outside, MemoryFault, MemoryFault, f"8 bytes at {TOP:#x}"),
    (half_outside, MemoryFault, MemoryFault, f"9 bytes at {TOP - 8:#x}"),
    (below, MemoryFault, MemoryFault, f"2 bytes at {BASE - 1:#x}"),
    (overflow, MemoryFault, MemoryFault, f"16 bytes at {(1 << 64) - 8:#x}"),
    (last_address, MemoryFault, MemoryFault, f"{HUGE} bytes at {(1 << 64) - 1:#x}"),
    (read_after_write, BadDescriptor, BadDescriptor, "descriptor 2 is device-readable after a device-writable one"),
    (zero_length, BadDescriptor, BadDescriptor, "descriptor 1 has length 0"),
    (zero_length_later, BadDescriptor, BadDescriptor, "descriptor 2 has length 0"),
    (long_chain_in_table, ChainTooLong, ChainTooLong, "9 or more descriptors (limit 8)"),
]
