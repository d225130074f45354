"""Plans for the PVH entry: start_info and the 32-bit CPU."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kvmkit.boot.image import open_kernel
from kvmkit.boot.linux import plan_linux
from kvmkit.errors import BadKernel
from tests.boot.kernel_images import (
    ADDRESSES,
    MIB,
    PACKERS,
    RAM_256,
    TEXT,
    Memory,
    bzimage,
    elf64,
    pvh_note,
)

ENTRY = TEXT.address + 0x40
KERNEL = elf64(notes=pvh_note(ENTRY))
INFO = ADDRESSES.start_info


@pytest.mark.parametrize("image", [KERNEL, bzimage(PACKERS["gzip"](KERNEL))], ids=["elf", "bz"])
def test_pvh_hands_over_start_info(tmp_path: Path, image: bytes) -> None:
    """The fields of start_info.h, version 1: magic, command line, RSDP, module, memory map."""
    (tmp_path / "kernel").write_bytes(image)
    (tmp_path / "initrd").write_bytes(b"initrd")

    plan = plan_linux(
        open_kernel(tmp_path / "kernel", pvh=True),
        initrds=[tmp_path / "initrd"],
        command_line="console=ttyS0",
        ram=RAM_256,
        acpi_rsdp=0xE_0040,
        addresses=ADDRESSES,
    )
    memory = Memory(plan)

    assert plan.entry.rip == ENTRY
    assert plan.entry.rbx == INFO
    fields = struct.unpack("<4I4QII", memory.read(INFO, 56))
    magic, version, flags, modules, module, command_line, rsdp, table, entries, _ = fields
    assert (magic, version, flags, modules) == (0x336E_C578, 1, 0, 1)
    assert memory.read(command_line, 14) == b"console=ttyS0\0"
    assert rsdp == 0xE_0040
    address, size, options, reserved = struct.unpack("<4Q", memory.read(module, 32))
    assert memory.read(address, size)[:6] == b"initrd"
    assert (options, reserved) == (0, 0)
    ranges = [struct.unpack("<QQII", memory.read(table + 24 * i, 24)) for i in range(entries)]
    assert ranges == [
        (0, 0x9_FC00, 1, 0),
        (0x9_FC00, 0x6_0400, 2, 0),
        (MIB, 255 * MIB, 1, 0),
    ]


def test_pvh_starts_in_32_bit_mode_without_paging(tmp_path: Path) -> None:
    """pvh.pandoc: CR0 with PE alone, CR4 0, flat segments, 32-bit code in the GDT."""
    (tmp_path / "kernel").write_bytes(KERNEL)

    plan = plan_linux(open_kernel(tmp_path / "kernel", pvh=True), ram=RAM_256, addresses=ADDRESSES)

    assert plan.entry.cr0 & 0x8000_0001 == 1
    assert (plan.entry.cr4, plan.entry.efer) == (0, 0)
    assert Memory(plan).u64(ADDRESSES.gdt + 0x10) == 0x00CF_9B00_0000_FFFF


def test_pvh_without_initrd_has_no_module(tmp_path: Path) -> None:
    """The number and the address of modules are both zero."""
    (tmp_path / "kernel").write_bytes(KERNEL)

    memory = Memory(
        plan_linux(open_kernel(tmp_path / "kernel", pvh=True), ram=RAM_256, addresses=ADDRESSES)
    )

    assert (memory.u32(INFO + 12), memory.u64(INFO + 16)) == (0, 0)


def test_pvh_of_a_bzimage_without_note_is_an_error(tmp_path: Path) -> None:
    """Asked for PVH, a bzImage whose kernel has none says so."""
    (tmp_path / "kernel").write_bytes(bzimage(PACKERS["gzip"](elf64())))

    with pytest.raises(BadKernel, match="no PVH entry"):
        plan_linux(open_kernel(tmp_path / "kernel", pvh=True), ram=RAM_256, addresses=ADDRESSES)
