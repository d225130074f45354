"""A snapshot's memory: holes, damage, and files that are not what the state says."""

from __future__ import annotations

import os
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.board.memory import GuestMemory
from kvmkit.errors import BadSnapshot
from kvmkit.snapshot.pages import GRAIN, check_pages, save_pages

MIB = 1 << 20
SIZE = 4 * MIB


@pytest.fixture
def ram():
    """The RAM of a small guest."""
    memory = GuestMemory(SIZE)
    yield memory
    memory.close()


@pytest.fixture
def file(tmp_path):
    """An empty file."""
    fd = os.open(tmp_path / "memory", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def whole(fd, size=SIZE):
    """All bytes of a file."""
    return os.pread(fd, size + 1, 0)


def test_untouched_memory_takes_no_room(ram, file):
    """Nothing but a size."""
    extents = save_pages(ram, file)
    assert extents == []
    assert os.fstat(file).st_size == SIZE
    assert os.fstat(file).st_blocks == 0
    check_pages(file, SIZE, extents)


def test_zeroes_become_holes(ram, file):
    """Pages that were touched, and hold zeroes, are left out."""
    ram.fill(MIB, MIB)
    ram.write(3 * MIB, b"x")
    extents = save_pages(ram, file)
    assert extents == [(3 * MIB, GRAIN, crc32(b"x" + bytes(GRAIN - 1)))]
    assert os.fstat(file).st_blocks * 512 <= GRAIN
    check_pages(file, SIZE, extents)


WRITES = st.lists(
    st.tuples(st.integers(0, SIZE - 1), st.integers(1, 200_000), st.integers(0, 255)), max_size=8
)


def draw(ram, writes):
    """Fill pieces of the memory."""
    for address, size, byte in writes:
        ram.fill(address, min(size, SIZE - address), byte)


@settings(deadline=None, max_examples=30)
@given(WRITES, WRITES)
def test_what_is_saved_is_restored(tmp_path_factory, first, second):
    """Any contents, and those of a guest that went on from a snapshot, saved again."""
    folder = tmp_path_factory.mktemp("pages")
    ram = GuestMemory(SIZE)
    draw(ram, first)
    fd = os.open(folder / "first", os.O_RDWR | os.O_CREAT)
    extents = save_pages(ram, fd)
    check_pages(fd, SIZE, extents)
    assert whole(fd) == ram.read(0, SIZE)

    goes_on = GuestMemory(SIZE, source=fd)
    draw(goes_on, second)
    draw(ram, second)
    other = os.open(folder / "second", os.O_RDWR | os.O_CREAT)
    check_pages(other, SIZE, save_pages(goes_on, other))
    assert whole(other) == ram.read(0, SIZE)
    assert whole(fd) != whole(other) or ram.read(0, SIZE) == whole(fd)
    for memory in (ram, goes_on):
        memory.close()
    for open_file in (fd, other):
        os.close(open_file)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, SIZE - 1), st.integers(0, 7))
def test_a_flipped_bit_is_found(tmp_path_factory, at, bit):
    """Wherever it is: in what was saved, and in what was not."""
    fd = os.open(tmp_path_factory.mktemp("flip") / "memory", os.O_RDWR | os.O_CREAT)
    ram = GuestMemory(SIZE)
    draw(ram, [(0, 100_000, 7), (2 * MIB, 300_000, 9)])
    extents = save_pages(ram, fd)
    byte = os.pread(fd, 1, at)[0]
    os.pwrite(fd, bytes([byte ^ 1 << bit]), at)
    with pytest.raises(BadSnapshot, match="damaged"):
        check_pages(fd, SIZE, extents)
    ram.close()
    os.close(fd)


@pytest.mark.parametrize("size", [0, SIZE - 4096, SIZE - 1, SIZE + 1])
def test_a_truncated_file_is_found(ram, file, size):
    """Too short, too long."""
    ram.write(0, b"x")
    extents = save_pages(ram, file)
    os.ftruncate(file, size)
    with pytest.raises(BadSnapshot, match=f"the memory is {size} bytes, not {SIZE}"):
        check_pages(file, SIZE, extents)


@pytest.mark.parametrize(
    "extents",
    [
        [(-1, 10, 0)],
        [(0, 0, 0)],
        [(0, -5, 0)],
        [(0, SIZE + 1, 0)],
        [(SIZE, 1, 0)],
        [(1 << 70, 1, 0)],
        [(0, 4096, crc32(bytes(4096))), (0, 4096, crc32(bytes(4096)))],
        [(4096, 4096, crc32(bytes(4096))), (0, 4096, crc32(bytes(4096)))],
    ],
)
def test_extents_that_cannot_be_are_refused(file, extents):
    """Outside the memory, empty, overlapping, out of order."""
    os.ftruncate(file, SIZE)
    with pytest.raises(BadSnapshot, match="an extent of the memory cannot be"):
        check_pages(file, SIZE, extents)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-10, SIZE), st.integers(-10, SIZE), st.integers())))
def test_any_extents_are_judged(tmp_path_factory, extents):
    """A yes or BadSnapshot."""
    fd = os.open(tmp_path_factory.mktemp("any") / "memory", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, SIZE)
    try:
        check_pages(fd, SIZE, extents)
    except BadSnapshot:
        pass
    os.close(fd)


def test_progress_is_told(ram, file):
    """Percent of what is done, for both directions."""
    ram.write(2 * MIB, b"x")
    told = []
    check_pages(file, SIZE, save_pages(ram, file, told.append), told.append)
    assert told == ["saving the memory: 50 %", "checking the memory: 50 %"]
