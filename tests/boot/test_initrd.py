"""Initrds: concatenation, placement, and when they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.boot.image import open_kernel
from kvmkit.boot.initrd import Initrd, open_initrds, place_initrd
from kvmkit.boot.linux import plan_linux
from kvmkit.boot.plan import BootPlan
from kvmkit.errors import BadInitrd, NotEnoughMemory
from tests.boot.kernel_images import (
    ADDRESSES,
    MIB,
    PACKERS,
    Memory,
    Part,
    bzimage,
    elf64,
)

KERNEL = PACKERS["gzip"](elf64([Part(0x100_0000, b"\x90" * 64, 6 * MIB)]))
PARAMS = ADDRESSES.boot_params


def _plan(folder: Path, initrds: list[bytes], ram: int, **options: int) -> BootPlan:
    kernel = folder / "kernel"
    kernel.write_bytes(bzimage(KERNEL, **options))  # type: ignore[arg-type]
    paths = []
    for index, data in enumerate(initrds):
        paths.append(folder / f"initrd{index}")
        paths[-1].write_bytes(data)
    return plan_linux(
        open_kernel(kernel), initrds=paths, ram=[(0, ram)], addresses=ADDRESSES, cache=None
    )


def _ramdisk(plan: BootPlan) -> tuple[int, int]:
    memory = Memory(plan)
    address = memory.u32(PARAMS + 0x218) | memory.u32(PARAMS + 0x0C0) << 32
    return address, memory.u32(PARAMS + 0x21C) | memory.u32(PARAMS + 0x0C4) << 32


def test_initrds_are_joined_at_multiples_of_four(tmp_path: Path) -> None:
    """Each archive starts aligned, the padding is zero, the size counts all of it."""
    plan = _plan(tmp_path, [b"first", b"second!", b"3"], 256 * MIB)

    address, size = _ramdisk(plan)
    assert size == 8 + 8 + 4
    assert Memory(plan).read(address, size) == b"first\0\0\0second!\0" + b"3\0\0\0"
    assert (address + 5, 3) in plan.zero
    assert (address + 17, 3) in plan.zero


def test_initrd_lies_as_high_as_may_be(tmp_path: Path) -> None:
    """At the end of RAM, on a page boundary."""
    assert _ramdisk(_plan(tmp_path, [b"x" * 5000], 256 * MIB)) == (256 * MIB - 8192, 5000)


def test_initrd_stays_below_initrd_addr_max(tmp_path: Path) -> None:
    """The kernel's limit is the last byte it may have."""
    plan = _plan(tmp_path, [b"x" * 5000], 1 << 30, initrd_addr_max=0x37FF_FFFF)

    assert _ramdisk(plan) == (0x3800_0000 - 8192, 5000)


def test_initrd_gives_up_the_decompressors_space_before_the_boot(tmp_path: Path) -> None:
    """init_size is honoured while there is room; the unpacked kernel's end always is."""
    init_size = 20 * MIB
    roomy = _plan(tmp_path, [bytes(8 * MIB)], 64 * MIB, init_size=init_size, relocatable=0)
    tight = _plan(tmp_path, [bytes(16 * MIB)], 40 * MIB, init_size=init_size, relocatable=0)

    assert _ramdisk(roomy)[0] >= 16 * MIB + init_size
    assert 16 * MIB + 6 * MIB <= _ramdisk(tight)[0] < 16 * MIB + init_size


def test_initrd_may_lie_below_the_kernel(tmp_path: Path) -> None:
    """Between the first MiB and the kernel is room too."""
    address, size = _ramdisk(_plan(tmp_path, [bytes(10 * MIB)], 24 * MIB, relocatable=0))

    assert address >= MIB
    assert address + size <= 16 * MIB


def test_initrd_that_does_not_fit_says_what_is_missing(tmp_path: Path) -> None:
    """The message has the need and what there is, the hint how much more memory helps."""
    with pytest.raises(NotEnoughMemory, match=r"needs 50 MiB .* leaves \d+ MiB") as caught:
        _plan(tmp_path, [bytes(50 * MIB)], 64 * MIB)

    assert "more memory" in caught.value.hint


def test_initrd_that_the_kernel_cannot_reach_is_a_bad_initrd() -> None:
    """Where only initrd_addr_max is in the way, more memory is no advice."""
    initrd = Initrd(((0, memoryview(bytes(MIB))),), MIB)

    with pytest.raises(BadInitrd, match="below address 0x40000"):
        place_initrd(initrd, [(0x10_0000, 64 * MIB)], limit=0x3_FFFF, above_4g=False)


def test_initrd_goes_above_4_gib_for_kernels_that_allow_it() -> None:
    """XLF_CAN_BE_LOADED_ABOVE_4G."""
    initrd = Initrd(((0, memoryview(bytes(2 * MIB))),), 2 * MIB)
    free = [(MIB, MIB), (4 << 30, 8 * MIB)]

    assert place_initrd(initrd, free, limit=0x7FFF_FFFF, above_4g=True) == (4 << 30) + 6 * MIB


@pytest.mark.parametrize(
    ("name", "message"), [("missing", "does not exist"), (".", "directory"), ("empty", "empty")]
)
def test_open_initrds_names_the_one_that_is_bad(tmp_path: Path, name: str, message: str) -> None:
    """Of several initrds, the error names the file."""
    (tmp_path / "good").write_bytes(b"x")
    (tmp_path / "empty").touch()

    with pytest.raises(BadInitrd, match=message) as caught:
        open_initrds([tmp_path / "good", tmp_path / name])

    assert str(tmp_path / name) in str(caught.value)


RANGES = st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 300)), max_size=5)


@settings(deadline=None, max_examples=300)
@given(RANGES, st.integers(1, 400 * 4096), st.integers(0, 1500 * 4096), st.booleans())
def test_placement_is_always_in_free_memory(
    pages: list[tuple[int, int]], size: int, limit: int, above: bool
) -> None:
    """Wherever an initrd goes, it is page-aligned, free, and below the limit if it can be."""
    free = [(start * 4096, count * 4096) for start, count in pages]
    initrd = Initrd(((0, memoryview(b"")),), size)

    try:
        address = place_initrd(initrd, free, limit=limit, above_4g=above)
    except (NotEnoughMemory, BadInitrd):
        return

    assert address % 4096 == 0
    assert any(low <= address and address + size <= low + length for low, length in free)
    assert above or address + size <= limit + 1
