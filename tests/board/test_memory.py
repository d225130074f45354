"""Guest RAM."""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.board import layout
from kvmkit.board.memory import MAX_SIZE, GuestMemory
from kvmkit.errors import FileTrouble, GuestAddressError, NotEnoughMemory, UsageError

GIB = layout.GIB
MIB = layout.MIB


@pytest.fixture
def memory():
    memory = GuestMemory(16 * MIB)
    yield memory
    memory.close()


@pytest.fixture
def big():
    memory = GuestMemory(6 * GIB)
    yield memory
    memory.close()


def test_small_memory_is_one_piece_from_zero(memory):
    """Below 3 GiB there is one slot, at guest address 0."""
    assert [(slot.address, slot.size) for slot in memory.slots] == [(0, 16 * MIB)]


def test_big_memory_leaves_the_hole_free(big):
    """What does not fit below 3 GiB goes on at 4 GiB."""
    assert [(slot.address, slot.size) for slot in big.slots] == [(0, 3 * GIB), (4 * GIB, 3 * GIB)]


def test_usable_ranges_leave_out_what_is_reserved_below_1_mib(big):
    """The e820 RAM ranges: low RAM, 1 MiB to the hole, 4 GiB on."""
    assert big.usable == (
        (0, layout.LOW_RAM_END),
        (MIB, 3 * GIB - MIB),
        (4 * GIB, 3 * GIB),
    )


def test_six_gib_cost_nothing_until_touched(big):
    """Pages are made when they are written."""
    before = big.resident()
    big.write(6 * GIB, b"x")
    assert (before, big.resident()) == (0, 4096)


def test_host_address_is_the_mapping(big):
    """The address found without ctypes is where the bytes are."""
    big.write(5 * GIB, b"here")
    slot = big.slots[1]
    assert ctypes.string_at(slot.host + GIB, 4) == b"here"


def test_host_addresses_of_two_memories_differ():
    """Two guests in one process are told apart, though their files have one name."""
    one, two = GuestMemory(2 * MIB), GuestMemory(2 * MIB)
    one.write(0, b"1")
    two.write(0, b"2")
    found = [ctypes.string_at(memory.slots[0].host, 1) for memory in (one, two)]
    one.close()
    two.close()
    assert found == [b"1", b"2"]


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (16 * MIB, 1),
        (16 * MIB - 1, 2),
        (-1, 1),
        (0, -1),
        (4 * GIB, 1),
        (1 << 64, 8),
        (0, 1 << 64),
    ],
)
def test_access_outside_ram_is_an_error(memory, address, size):
    """Every range that is not all RAM raises GuestAddressError."""
    with pytest.raises(GuestAddressError):
        memory.view(address, size)


def test_range_across_the_hole_is_an_error(big):
    """The two pieces do not join, though they do in the file."""
    with pytest.raises(GuestAddressError):
        big.read(3 * GIB - 1, 2)


def test_numbers_are_little_endian(memory):
    """The accessors store the low bits, low byte first."""
    memory.write_u64(0x1000, 0x1_1122334455667788)
    assert memory.read(0x1000, 8) == bytes.fromhex("8877665544332211")
    assert memory.read_u16(0x1000) == 0x7788
    assert memory.read_u32(0x1002) == 0x33445566
    memory.write_u32(0x1000, -1)
    memory.write_u16(0x1002, 0)
    assert memory.read_u64(0x1000) == 0x11223344_0000FFFF


@given(start=st.integers(0, 3 * MIB), size=st.integers(0, 3 * MIB), byte=st.integers(0, 255))
@settings(deadline=None, max_examples=30)
def test_fill_sets_exactly_its_range(start, size, byte):
    """Nothing before, nothing after, everything between."""
    memory = GuestMemory(8 * MIB)
    memory.fill(start, size, byte)
    found = memory.read(0, 8 * MIB)
    memory.close()
    assert found == bytes(start) + bytes((byte,)) * size + bytes(8 * MIB - start - size)


@given(
    address=st.integers(-(1 << 65), 1 << 65) | st.integers(0, 8 * GIB),
    size=st.integers(-4, 1 << 34),
)
@settings(deadline=None)
def test_offset_agrees_with_the_map(address, size):
    """An offset is given exactly when a slot holds the range, and is that slot's."""
    memory = BIG
    inside = [
        slot.offset + address - slot.address
        for slot in memory.slots
        if size >= 0 and slot.address <= address and address + size <= slot.address + slot.size
    ]
    try:
        found = [memory.offset(address, size)]
    except GuestAddressError:
        found = []
    assert found == inside


BIG = GuestMemory(6 * GIB)


@given(address=st.integers(0, 5 * GIB), size=st.integers(60_000, 300_000))
@settings(deadline=None, max_examples=30)
def test_large_writes_are_seen_through_views(address, size):
    """They take another way than small ones, to the same place."""
    data = os.urandom(64) * (size // 64)
    try:
        BIG.write(address, data)
    except GuestAddressError:
        assert address + len(data) > 3 * GIB
        return
    assert bytes(BIG.view(address, len(data))) == data


def test_file_that_shrinks_while_it_is_loaded_is_an_error(memory, tmp_path):
    """Not a SIGBUS that ends the process."""
    path = tmp_path / "initrd"
    path.write_bytes(bytes(MIB))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    os.truncate(path, 4096)
    with pytest.raises(FileTrouble, match="became shorter"):
        memory.write(0x1000, memoryview(mapped))


def test_discard_zeroes_and_frees(memory):
    """Thrown-away memory reads as zeros and costs nothing."""
    memory.fill(0, MIB, 0xAA)
    memory.discard()
    assert memory.resident() == 0
    assert memory.read_u64(0x1000) == 0


@pytest.mark.parametrize("size", [0, -4096, MIB, 2 * MIB + 1, MAX_SIZE + 4096])
def test_impossible_sizes_are_refused(size):
    """Too small, too big and not a multiple of a page are UsageErrors."""
    with pytest.raises(UsageError):
        GuestMemory(size)


def test_unknown_kind_of_huge_pages_is_refused():
    """The two kinds are named."""
    with pytest.raises(UsageError, match="thp or hugetlb"):
        GuestMemory(4 * MIB, huge_pages="big")


def test_missing_huge_pages_are_explained():
    """Without a pool the error says how many are needed and how to get them."""
    with open("/proc/sys/vm/nr_hugepages") as file:
        if int(file.read()):
            pytest.skip("this host has huge pages reserved")
    with pytest.raises(NotEnoughMemory, match="32 huge pages of 2 MiB") as caught:
        GuestMemory(64 * MIB, huge_pages="hugetlb")
    assert caught.value.hint == "reserve them: sysctl vm.nr_hugepages=32"


def test_transparent_huge_pages_are_a_wish():
    """They may be asked for on any kernel."""
    memory = GuestMemory(4 * MIB, huge_pages="thp")
    memory.write(0, b"x")
    memory.close()


def test_close_frees_the_descriptor_and_may_be_called_twice():
    """Nothing is left open."""
    memory = GuestMemory(2 * MIB)
    fd = memory.fd
    memory.close()
    memory.close()
    with pytest.raises(OSError):
        os.fstat(fd)
    with pytest.raises(GuestAddressError):
        memory.read(0, 1)


def test_close_with_a_view_held_is_harmless():
    """The mapping stays until the view goes."""
    memory = GuestMemory(2 * MIB)
    view = memory.view(0, 4)
    memory.close()
    assert bytes(view) == bytes(4)
