"""Guest memory against a model: a dictionary of addresses and a set of pages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtio import GuestMemory, MemoryFault

TOP = 1 << 64
GIB = 1 << 30

PIECES = st.lists(st.tuples(st.sampled_from([0, 0, 1, 5, 4096]), st.integers(1, 40)), max_size=12)
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["read", "write", "gather", "view", "u16", "u32", "u64"]),
        st.integers(-4, 600),
        st.integers(0, 90),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(pieces=PIECES, operations=OPERATIONS, base=st.sampled_from([0, 4090, 4 * GIB - 30, 2**45 + 1, "top"]))
def test_access_agrees_with_a_dictionary(pieces: Any, operations: Any, base: Any) -> None:
    """The model: a dictionary of every address there is, and the set of pages that were written."""
    if base == "top":
        base = TOP - sum(gap + size for gap, size in pieces)
    regions, start = [], base
    for gap, size in pieces:
        regions.append((start + gap, bytearray(size)))
        start += gap + size
    memory = GuestMemory(reversed(regions))
    model = {gpa + i: 0 for gpa, buffer in regions for i in range(len(buffer))}
    starts = {gpa for gpa, _ in regions}
    spots = sorted(model) or [0]
    pages: set[int] = set()
    log = start < 1 << 44
    if log:
        memory.start_log()
    for number, (kind, where, length) in enumerate(operations):
        gpa = max(0, spots[where % len(spots)] - (where < 0) * 3)
        if kind[0] == "u":
            length = int(kind[1:]) // 8
        touched = range(gpa, gpa + length)
        seams = sum(address in starts for address in touched[1:])
        if not all(address in model for address in touched):
            for call in (memory.read, memory.gather):
                with pytest.raises(MemoryFault):
                    call(gpa, length)
            with pytest.raises(MemoryFault):
                memory.write(gpa, bytes(length))
        elif kind == "read":
            assert memory.read(gpa, length) == bytes(model[address] for address in touched)
        elif kind == "write":
            data = bytes((number * 7 + i) & 0xFF for i in range(length))
            memory.write(gpa, data)
            model.update(zip(touched, data, strict=True))
            pages.update(address // 4096 for address in touched)
        elif kind == "gather":
            parts = memory.gather(gpa, length)
            assert b"".join(parts) == bytes(model[address] for address in touched)
            assert len(parts) == (seams + 1 if length else 0)
        elif kind == "view":
            if seams:
                with pytest.raises(MemoryFault):
                    memory.view(gpa, length)
            elif length:
                assert memory.view(gpa, length) == bytes(model[address] for address in touched)
        else:
            value = number * 0x9E3779B97F4A7C15 & (1 << 8 * length) - 1
            getattr(memory, f"write_{kind}")(gpa, value)
            assert getattr(memory, f"read_{kind}")(gpa) == value
            model.update(zip(touched, value.to_bytes(length, "little"), strict=True))
            pages.update(address // 4096 for address in touched)
    for gpa, buffer in regions:
        assert buffer == bytes(model[gpa + i] for i in range(len(buffer)))
    if log:
        assert memory.dirty_pages() == sorted(pages)
