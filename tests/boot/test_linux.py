"""Plans for Linux's 64-bit boot protocol: memory as the kernel finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmkit.boot.image import open_kernel
from kvmkit.boot.linux import plan_linux
from kvmkit.boot.plan import BootPlan
from kvmkit.errors import BadKernel, NotEnoughMemory, UsageError
from tests.boot.kernel_images import (
    ADDRESSES,
    MIB,
    PACKERS,
    RAM_256,
    TEXT,
    Memory,
    Part,
    bzimage,
    elf32,
    elf64,
    pvh_note,
)

DATA = Part(0x120_0000, b"data" + bytes(200_000) + b"end", 0x8_0000)
KERNEL = elf64([TEXT, DATA], entry=TEXT.address + 16)
PARAMS = ADDRESSES.boot_params


def _plan(folder: Path, data: bytes, **options: object) -> BootPlan:
    path = folder / "kernel"
    path.write_bytes(data)
    arguments: dict[str, object] = {"ram": RAM_256, "addresses": ADDRESSES, **options}
    return plan_linux(open_kernel(path), **arguments)  # type: ignore[arg-type]


def _bzimage(**options: int) -> bytes:
    return bzimage(PACKERS["gzip"](KERNEL), **options)  # type: ignore[arg-type]


def test_plan_enters_the_unpacked_kernel(tmp_path: Path) -> None:
    """The kernel's own entry in 64-bit mode, RSI at boot_params (boot.rst)."""
    plan = _plan(tmp_path, _bzimage())

    assert plan.entry.rip == TEXT.address + 16
    assert plan.entry.rsi == PARAMS
    assert plan.entry.cr3 == ADDRESSES.page_tables
    assert (plan.entry.cs.selector, plan.entry.ds.selector) == (0x10, 0x18)
    assert not plan.entry.rflags & 0x200
    assert plan.version.startswith("6.9.1-test")


@pytest.mark.parametrize("cached", [False, True])
def test_plan_loads_the_segments_and_names_the_zeros(tmp_path: Path, cached: bool) -> None:
    """Content at its physical address; the rest of the segments is listed as zero."""
    cache = tmp_path / "cache" if cached else None
    plan = _plan(tmp_path, _bzimage(), cache=cache)
    memory = Memory(plan)

    assert memory.read(TEXT.address, len(TEXT.data)) == TEXT.data
    assert memory.read(DATA.address, len(DATA.data)) == DATA.data
    covered = sorted(
        [(load.address, len(load.data)) for load in plan.loads if load.address >= MIB]
        + list(plan.zero)
    )
    ends = [start + size for start, size in covered]
    assert ends[-1] == DATA.address + DATA.memory_size
    starts = [start for start, _ in covered if start >= DATA.address]
    assert starts[1:] == ends[-len(starts) : -1]
    assert sum(size for _, size in plan.zero) > 0x8_0000 - 140_000


def test_plan_fills_in_boot_params(tmp_path: Path) -> None:
    """The fields of zero-page.rst, the header from the file, and nothing the loader must clear."""
    plan = _plan(tmp_path, _bzimage(loadflags=0x83), command_line="quiet", acpi_rsdp=0xE_0040)
    memory = Memory(plan)

    assert memory.read(PARAMS + 0x202, 4) == b"HdrS"
    assert memory.u32(PARAMS + 0x238) == 2047
    assert memory.read(PARAMS + 0x210, 2) == b"\xff\x01"
    assert memory.u64(PARAMS + 0x070) == 0xE_0040
    assert memory.u32(PARAMS + 0x228) == ADDRESSES.command_line
    assert memory.read(ADDRESSES.command_line, 6) == b"quiet\0"
    assert memory.read(PARAMS, 0x40) == bytes(0x40)  # screen_info: no VGA
    assert memory.read(PARAMS + 0x1EF, 1) == b"\0"  # sentinel
    assert memory.u64(PARAMS + 0x250) == 0  # setup_data
    assert memory.u32(PARAMS + 0x218) == memory.u32(PARAMS + 0x21C) == 0


def test_plan_writes_the_e820_table(tmp_path: Path) -> None:
    """RAM without what is reserved, in 20-byte entries."""
    memory = Memory(_plan(tmp_path, _bzimage(), ram=[(0, 256 * MIB), (4 << 30, MIB)]))

    assert memory.read(PARAMS + 0x1E8, 1) == b"\x04"
    entries = [
        (memory.u64(at), memory.u64(at + 8), memory.u32(at + 16))
        for at in range(PARAMS + 0x2D0, PARAMS + 0x2D0 + 80, 20)
    ]
    assert entries == [
        (0, 0x9_FC00, 1),
        (0x9_FC00, 0x6_0400, 2),
        (MIB, 255 * MIB, 1),
        (4 << 30, MIB, 1),
    ]


def test_plan_maps_4_gib_to_itself(tmp_path: Path) -> None:
    """Walk the page tables as the CPU does, at the edges."""
    plan = _plan(tmp_path, _bzimage())
    memory = Memory(plan)

    for address in (0, 0x1F_FFFF, 0x20_0000, TEXT.address, 0xC000_0000, 0xFFFF_FFFF):
        table = plan.entry.cr3
        for shift in (39, 30):
            entry = memory.u64(table + (address >> shift & 511) * 8)
            assert entry & 3 == 3
            table = entry & ~0xFFF
        entry = memory.u64(table + (address >> 21 & 511) * 8)
        assert entry & 0x83 == 0x83
        assert (entry & ~0x1F_FFFF) | address & 0x1F_FFFF == address


def test_plan_gives_a_gdt_that_matches_the_cpu(tmp_path: Path) -> None:
    """CS 0x10 is 64-bit code, DS 0x18 is data."""
    memory = Memory(_plan(tmp_path, _bzimage()))

    assert memory.u64(ADDRESSES.gdt + 0x10) == 0x00AF_9B00_0000_FFFF
    assert memory.u64(ADDRESSES.gdt + 0x18) == 0x00CF_9300_0000_FFFF


def test_plan_hands_over_a_seed(tmp_path: Path) -> None:
    """setup_data with SETUP_RNG_SEED (9), the only one in its list."""
    memory = Memory(_plan(tmp_path, _bzimage(), seed=b"S" * 32))

    at = memory.u64(PARAMS + 0x250)
    assert at == ADDRESSES.start_info
    assert (memory.u64(at), memory.u32(at + 8), memory.u32(at + 12)) == (0, 9, 32)
    assert memory.read(at + 16, 32) == b"S" * 32


def test_plan_synthesises_a_header_for_a_vmlinux(tmp_path: Path) -> None:
    """An ELF kernel gets boot_params as a bzImage does."""
    plan = _plan(tmp_path, KERNEL)
    memory = Memory(plan)

    assert plan.entry.rip == TEXT.address + 16
    assert memory.read(PARAMS + 0x1FE, 2) == b"\x55\xaa"
    assert memory.read(PARAMS + 0x202, 6) == b"HdrS\x0f\x02"
    assert memory.u64(PARAMS + 0x258) == TEXT.address
    assert memory.u32(PARAMS + 0x260) == DATA.address + DATA.memory_size - TEXT.address


def test_plan_starts_a_bzimage_that_unpacks_itself(tmp_path: Path) -> None:
    """unpack=False: the file's code at its preferred address, entered at 0x200 behind it."""
    image = _bzimage()

    plan = _plan(tmp_path, image, unpack=False)

    assert plan.entry.rip == 0x100_0200
    assert Memory(plan).read(0x100_0000, len(image) - 5 * 512) == image[5 * 512 :]


def test_plan_starts_a_bzimage_without_payload(tmp_path: Path) -> None:
    """Programs in a bzImage's clothes (memtest86+) are entered by the 64-bit protocol."""
    plan = _plan(tmp_path, bzimage(b"", payload_length=0))

    assert plan.entry.rip == 0x100_0200


@pytest.mark.parametrize("length", [2047, 2048])
def test_plan_bounds_the_command_line(tmp_path: Path, length: int) -> None:
    """cmdline_size counts without the NUL; one more is an error that tells both numbers."""
    text = "x" * length

    if length == 2047:
        memory = Memory(_plan(tmp_path, _bzimage(), command_line=text))
        assert memory.read(ADDRESSES.command_line, 2048) == text.encode() + b"\0"
    else:
        with pytest.raises(UsageError, match="2048 bytes, this kernel takes 2047"):
            _plan(tmp_path, _bzimage(), command_line=text)


def test_plan_honours_a_smaller_command_line(tmp_path: Path) -> None:
    """The kernel's own limit counts."""
    with pytest.raises(UsageError, match="takes 255"):
        _plan(tmp_path, _bzimage(cmdline_size=255), command_line="x" * 256)


def test_plan_honours_the_room_for_the_command_line(tmp_path: Path) -> None:
    """A kernel that claims to take more than there is room for does not get it."""
    limit = ADDRESSES.command_line_max - 1

    with pytest.raises(UsageError, match=f"takes {limit}"):
        _plan(tmp_path, _bzimage(cmdline_size=1 << 31), command_line="x" * (limit + 1))


def test_plan_rejects_a_nul_in_the_command_line(tmp_path: Path) -> None:
    """What is behind it would be lost."""
    with pytest.raises(UsageError, match="NUL"):
        _plan(tmp_path, _bzimage(), command_line="a\0b")


def test_plan_rejects_a_32_bit_bzimage(tmp_path: Path) -> None:
    """A payload for i386 without a PVH entry is 32-bit only."""
    kernel = elf32(Part(0x100_0000, b"\xf4" * 64), entry=0x100_0000)

    with pytest.raises(BadKernel, match="32-bit only") as caught:
        _plan(tmp_path, bzimage(PACKERS["xz"](kernel), xloadflags=0))

    assert str(tmp_path) in str(caught.value)
    assert "64-bit kernel" in caught.value.hint


def test_plan_rejects_a_32_bit_bzimage_that_unpacks_itself(tmp_path: Path) -> None:
    """Without the host's unpacking, the flag in the header decides."""
    with pytest.raises(BadKernel, match="32-bit only"):
        _plan(tmp_path, _bzimage(xloadflags=0), unpack=False)


def test_plan_uses_pvh_for_a_32_bit_bzimage_that_has_it(tmp_path: Path) -> None:
    """A 32-bit Linux with CONFIG_PVH is started by its PVH entry."""
    part = Part(0x100_0000, b"\xf4" * 64)
    kernel = elf32(part, entry=0x100_0000, notes=pvh_note(0x100_0020, 4))

    plan = _plan(tmp_path, bzimage(PACKERS["xz"](kernel), xloadflags=0))

    assert plan.entry.rip == 0x100_0020
    assert not plan.entry.cr0 >> 31


def test_plan_takes_the_payload_of_an_old_64_bit_kernel(tmp_path: Path) -> None:
    """Protocol 2.08 to 2.11 had no flag for it, but the payload says what it is."""
    plan = _plan(tmp_path, _bzimage(protocol=0x20A, xloadflags=0))

    assert plan.entry.rip == TEXT.address + 16


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (b"no ELF file at all" * 10, "no ELF file"),
        (elf64(machine=183), "arm64"),
        (elf64([TEXT], entry=0x5000), "no entry point"),
    ],
)
def test_plan_rejects_strange_payloads(tmp_path: Path, inner: bytes, message: str) -> None:
    """What is inside a bzImage is checked as a file would be."""
    with pytest.raises(BadKernel, match=message):
        _plan(tmp_path, bzimage(PACKERS["gzip"](inner)))


def test_plan_moves_a_kernel_down_where_memory_is_small(tmp_path: Path) -> None:
    """A relocatable kernel that does not fit at 16 MiB runs at 2 MiB, aligned as it asks."""
    plan = _plan(tmp_path, _bzimage(), ram=[(0, 12 * MIB)])

    assert plan.entry.rip == 0x20_0010
    memory = Memory(plan)
    assert memory.read(0x20_0000, len(TEXT.data)) == TEXT.data
    assert memory.read(0x40_0000, len(DATA.data)) == DATA.data


@pytest.mark.parametrize(
    "image", [_bzimage(relocatable=0), bzimage(b"", payload_length=0)], ids=["fixed", "native"]
)
def test_plan_says_how_much_memory_a_kernel_needs(tmp_path: Path, image: bytes) -> None:
    """A kernel that cannot move names the memory it needs, and what there is."""
    with pytest.raises(NotEnoughMemory, match=r"needs memory up to (19|20) MiB.* 12 MiB"):
        _plan(tmp_path, image, ram=[(0, 12 * MIB)])


def test_plan_rejects_a_kernel_in_reserved_memory(tmp_path: Path) -> None:
    """More memory would not help; the message says where."""
    image = elf64([Part(0xA_0000, b"x")])

    with pytest.raises(BadKernel, match="0xa0000"):
        _plan(tmp_path, image)


def test_plan_keeps_kernels_off_the_loaders_own_memory(tmp_path: Path) -> None:
    """A kernel in low RAM must not be overwritten by boot_params or page tables."""
    image = elf64([Part(0x6000, b"x" * 0x2000)])

    with pytest.raises(BadKernel, match="loader"):
        _plan(tmp_path, image)


def test_loads_do_not_overlap(tmp_path: Path) -> None:
    """No load writes over another, and none over what must be zero."""
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"i" * 12_345)

    plan = _plan(tmp_path, _bzimage(), initrds=[initrd, initrd], seed=bytes(32))

    ranges = sorted([(load.address, len(load.data)) for load in plan.loads] + list(plan.zero))
    ends = [start + size for start, size in ranges]
    assert all(end <= start for end, (start, _) in zip(ends, ranges[1:], strict=False))
