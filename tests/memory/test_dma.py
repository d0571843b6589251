"""The pool of guest memory that a driver's rings and buffers come from."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtio import GuestMemory, MemoryFault
from virtio.errors import PoolExhausted
from virtio.memory.dma import CACHE_LINE, PAGE, DmaPool

BASE, SIZE = 0x10000, 0x10000


@pytest.fixture
def pool():
    return DmaPool(GuestMemory.allocate(BASE + SIZE), BASE, SIZE)


def test_first_fit_and_alignment(pool):
    assert pool.allocate(100) == BASE
    assert pool.allocate(1) == BASE + 2 * CACHE_LINE  # 100 bytes take two lines
    assert pool.allocate(10, PAGE) == BASE + PAGE
    assert pool.allocate(1, 1) == BASE + 100  # the gap before the page is not lost
    assert pool.used == 112 and pool.left == SIZE - 112
    assert pool.allocations == {BASE: 100, BASE + 128: 1, BASE + PAGE: 10, BASE + 100: 1}


def test_everything_can_be_handed_out_and_comes_back_as_one(pool):
    pieces = [pool.allocate(PAGE, PAGE) for _ in range(SIZE // PAGE)]
    assert pool.left == 0
    for gpa in pieces[::2] + pieces[1::2]:
        pool.free(gpa)
    assert pool.used == 0
    assert pool.allocate(SIZE) == BASE


def test_exhausted_says_what_was_wanted_and_what_is_left(pool):
    hold = [pool.allocate(PAGE, PAGE) for _ in range(SIZE // PAGE)]
    pool.free(hold[3])
    pool.free(hold[5])
    text = r"no 5000 bytes aligned to 64 .*: 8192 of 65536 bytes are left, 4096 of"
    with pytest.raises(PoolExhausted, match=text) as e:
        pool.allocate(5000)
    assert (e.value.needed, e.value.available, e.value.largest) == (5000, 2 * PAGE, PAGE)
    pool.free(hold[4])  # joins both
    assert pool.allocate(3 * PAGE) == hold[3]
    with pytest.raises(PoolExhausted, match="0 of 65536 bytes are left, 0 of them"):
        pool.allocate(1)


def test_alignment_may_make_it_not_fit(pool):
    pool.allocate(1, 1)
    with pytest.raises(PoolExhausted):
        pool.allocate(SIZE - 1, CACHE_LINE)
    assert pool.allocate(SIZE - 1, 1) == BASE + 1


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_that_cannot_be(pool, size):
    with pytest.raises(ValueError, match=f"{size} bytes is below 1"):
        pool.allocate(size)


@pytest.mark.parametrize("align", [0, -4, 3, 65])
def test_alignments_that_cannot_be(pool, align):
    with pytest.raises(ValueError, match=f"alignment {align} is not a power of two"):
        pool.allocate(8, align)


def test_free_takes_only_what_was_handed_out(pool):
    gpa = pool.allocate(128)
    for wrong in (gpa + 64, gpa - 1, 0, BASE + SIZE):
        with pytest.raises(ValueError, match="was not allocated"):
            pool.free(wrong)
    pool.free(gpa)
    with pytest.raises(ValueError, match="free already"):
        pool.free(gpa)
    assert pool.used == 0


def test_the_range_must_be_guest_memory():
    memory = GuestMemory.allocate(SIZE, BASE)
    for gpa, size in ((0, SIZE), (BASE, SIZE + 1), (BASE + 1, SIZE)):
        with pytest.raises(MemoryFault):
            DmaPool(memory, gpa, size)
    with pytest.raises(ValueError, match="pool size 0 is below 1"):
        DmaPool(memory, BASE, 0)
    assert DmaPool(memory, BASE, 1).allocate(1, 1) == BASE
    assert DmaPool(memory, BASE, SIZE).memory is memory
    assert "0 of 65536 bytes at 0x10000" in repr(DmaPool(memory, BASE, SIZE))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(1, 9000), st.sampled_from([1, 2, 64, 4096])),
            st.integers(0, 30),  # free the n-th that is left
        ),
        max_size=60,
    )
)
def test_no_two_overlap_and_nothing_is_lost(steps):
    pool = DmaPool(GuestMemory.allocate(SIZE), 0, SIZE)
    held: dict[int, int] = {}
    for step in steps:
        if isinstance(step, int):
            if held:
                gpa = sorted(held)[step % len(held)]
                del held[gpa]
                pool.free(gpa)
            continue
        size, align = step
        try:
            gpa = pool.allocate(size, align)
        except PoolExhausted as error:
            # no gap between what is held fits
            edges = sorted([(0, 0), *held.items(), (SIZE, 0)])
            gaps = [(a + n, b) for (a, n), (b, _) in pairwise(edges)]
            assert not any(-(-start // align) * align + size <= end for start, end in gaps)
            assert error.largest == max(end - start for start, end in gaps)
            continue
        assert gpa % align == 0 and gpa >= 0 and gpa + size <= SIZE
        assert not any(gpa < other + n and other < gpa + size for other, n in held.items())
        held[gpa] = size
        assert pool.allocations == held and pool.used + pool.left == SIZE
    for gpa in held:
        pool.free(gpa)
    assert pool.allocate(SIZE, 1) == 0
