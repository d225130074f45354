"""ELF kernels: segments, entries, notes, damage."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.boot.elf import parse_elf
from kvmkit.errors import BadKernel, KvmkitError
from tests.boot.kernel_images import TEXT, Part, elf32, elf64, note, pvh_note

DATA = Part(0x180_0000, b"data", 0x9000)


def test_parse_sorts_segments_and_knows_the_extent() -> None:
    """Segments by physical address; the end counts BSS."""
    elf = parse_elf(memoryview(elf64([DATA, TEXT], entry=TEXT.address)))

    assert [s.address for s in elf.segments] == [TEXT.address, DATA.address]
    assert (elf.start, elf.end) == (TEXT.address, DATA.address + 0x9000)
    assert elf.is_linux_64


@pytest.mark.parametrize("size", [4, 8])
def test_parse_finds_the_pvh_note(size: int) -> None:
    """XEN_ELFNOTE_PHYS32_ENTRY is found behind other notes, in 4 or 8 bytes."""
    elf = parse_elf(memoryview(elf64(notes=pvh_note(0x100_0040, size))))

    assert elf.pvh_entry == 0x100_0040


def test_parse_ignores_other_owners_notes() -> None:
    """Type 18 of an owner that is not Xen is something else."""
    notes = note(18, bytes(8), b"GNU\0")

    assert parse_elf(memoryview(elf64(notes=notes))).pvh_entry is None


def test_parse_reads_32_bit_files() -> None:
    """A 32-bit ELF file with a PVH note is a PVH kernel, not a Linux 64-bit one."""
    part = Part(0x10_0000, b"\xf4" * 64)
    elf = parse_elf(memoryview(elf32(part, entry=0x10_0000, notes=pvh_note(0x10_0010, 4))))

    assert (elf.bits, elf.pvh_entry, elf.is_linux_64) == (32, 0x10_0010, False)
    assert elf.has_code(0x10_003F)
    assert not elf.has_code(0x10_0040)


def test_linux_is_told_by_its_link_addresses() -> None:
    """A program linked where it is loaded is not Linux, though it is x86-64."""
    part = Part(0x10_0000, b"\xf4" * 64, virtual=0x10_0000)

    assert not parse_elf(memoryview(elf64([part]))).is_linux_64


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (elf64(machine=183), "arm64"),
        (elf64(machine=4321), "machine type 4321"),
        (elf64(kind=1), "not an executable"),
        (elf64()[:60], "truncated"),
        (elf64()[:100], "truncated"),
        (elf64()[:2000], "truncated"),
        (b"\x7fELF" + bytes(100), "little-endian"),
        (elf64([TEXT, Part(TEXT.address + 0x1000, b"x")]), "overlap"),
        (elf64([Part(1 << 50, b"x")]), "no machine has"),
        (elf64([Part(0x1000, b"")]), "nothing to load"),
    ],
)
def test_parse_says_what_is_wrong(image: bytes, message: str) -> None:
    """One clear line for each kind of foreign or damaged file."""
    with pytest.raises(BadKernel, match=message):
        parse_elf(memoryview(image))


def test_parse_rejects_more_file_than_memory() -> None:
    """p_filesz above p_memsz is damage."""
    image = bytearray(elf64())
    struct.pack_into("<Q", image, 64 + 40, 10)

    with pytest.raises(BadKernel, match="larger in the file"):
        parse_elf(memoryview(image))


@settings(deadline=None, max_examples=400)
@given(
    st.dictionaries(st.integers(4, 64 + 56 * 3 - 1), st.integers(0, 255), max_size=10),
    st.integers(4, 6000),
)
def test_parse_survives_any_header(changes: dict[int, int], size: int) -> None:
    """Whatever the headers say, segments lie inside the file, or it is a BadKernel."""
    image = bytearray(elf64([TEXT, DATA], notes=pvh_note(TEXT.address)))
    for at, value in changes.items():
        image[at] = value
    data = memoryview(image)[:size]

    try:
        elf = parse_elf(data)
    except KvmkitError as error:
        assert str(error)
        return

    assert all(s.offset + s.file_size <= len(data) for s in elf.segments)
    assert elf.start < elf.end


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=120))
def test_parse_survives_any_notes(notes: bytes) -> None:
    """Notes are read within their segment only."""
    parse_elf(memoryview(elf64(notes=notes)))
